//! Reads a blob file: [`BlobReader`].
//!
//! # Concurrency
//! Immutable once open; any number of threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BlobPointer;
use super::format::{HEADER_BYTES, check_header, open_record};
use crate::cache::{BlockCache, CacheId, CachedBlock};
use crate::error::{Error, Result};
use crate::fs::{File, FileSystem, OpenMode, read_exact_at};
use crate::manifest::{BlobMeta, EngineId};
use crate::table::ReadMode;

/// Longer values are not put into the block cache: a quarter of its smallest shard, so that one value does not drive out
/// everything else there. Reading one costs one read of the disk that is long enough to be efficient.
pub(crate) const CACHED_VALUE_BYTES_MAX: u64 = 256 << 10;

/// An open blob file.
pub(crate) struct BlobReader {
    file: Arc<dyn File>,
    path: PathBuf,
    meta: BlobMeta,
    engine: EngineId,
    cache: Arc<BlockCache>,
    cache_id: CacheId,
}

impl BlobReader {
    /// Opens the file that the manifest knows as `meta`.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Corruption`] (wrong length, another engine's or another blob file), [`Error::FormatTooNew`],
    /// [`Error::Io`].
    #[cfg(test)]
    pub(crate) fn open(
        fs: &dyn FileSystem,
        path: &Path,
        meta: BlobMeta,
        engine: EngineId,
        cache: &Arc<BlockCache>,
    ) -> Result<BlobReader> {
        BlobReader::open_cached(fs, path, meta, engine, (cache, cache.new_id()))
    }

    /// As [`BlobReader::open`], of a file whose values may be in the cache under an id from an earlier time that it was open.
    pub(crate) fn open_cached(
        fs: &dyn FileSystem,
        path: &Path,
        meta: BlobMeta,
        engine: EngineId,
        (cache, cache_id): (&Arc<BlockCache>, CacheId),
    ) -> Result<BlobReader> {
        let file = fs.open(path, OpenMode::Read).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::MissingFile { file: path.into() },
            _ => Error::io("open", path, error),
        })?;
        let len = file.len().map_err(|error| Error::io("stat", path, error))?;
        if len != meta.file_bytes {
            let what = format!("the file has {len} bytes, not the {} that the manifest says", meta.file_bytes);
            return Err(Error::corruption(path, len.min(meta.file_bytes), what));
        }
        file.expect_random_reads();
        let reader = BlobReader { file, path: path.to_path_buf(), meta, engine, cache: Arc::clone(cache), cache_id };
        reader.check_header()?;
        Ok(reader)
    }

    /// Reads the header and checks it.
    pub(crate) fn check_header(&self) -> Result<()> {
        let header = self.read_range(0, HEADER_BYTES.min(self.meta.file_bytes))?;
        check_header(&header, &self.path, self.engine, self.meta.number)
    }

    /// The value that `pointer` points to.
    ///
    /// # Errors
    /// [`Error::Corruption`], [`Error::Io`], and in [`ReadMode::MemoryOnly`] [`Error::WouldRead`].
    #[cfg(test)]
    pub(crate) fn read(&self, pointer: &BlobPointer, mode: ReadMode) -> Result<Arc<[u8]>> {
        match cached_value(&self.cache, self.cache_id, &self.path, &self.meta, pointer, mode)? {
            Some(value) => Ok(value),
            None => self.read_value(pointer, mode),
        }
    }

    /// The same for one that is not cached, as [`cached_value`] has said.
    pub(crate) fn read_value(&self, pointer: &BlobPointer, mode: ReadMode) -> Result<Arc<[u8]>> {
        let record = self.read_range(pointer.offset, pointer.record_bytes)?;
        let value = open_record(&record, pointer).map_err(|error| Error::decode(&self.path, pointer.offset, error))?;
        if is_cacheable(pointer, mode) {
            self.cache.insert(self.cache_id, pointer.offset, CachedBlock::Blob(Arc::clone(&value)));
        }
        Ok(value)
    }

    /// Reads exactly `len` bytes, which lie within the file as the manifest knows it.
    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(len).map_err(|_| Error::corruption(&self.path, offset, "blob record: length"))?;
        let mut bytes = vec![0; len];
        match read_exact_at(&*self.file, &mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::corruption(&self.path, offset, "the file ends before the record does"))
            }
            Err(error) => Err(Error::io("read", &self.path, error)),
        }
    }
}

fn is_cacheable(pointer: &BlobPointer, mode: ReadMode) -> bool {
    pointer.value_bytes <= CACHED_VALUE_BYTES_MAX && mode != ReadMode::Compaction
}

/// The value that `pointer` points to, if it is cached: the file need not be open. `None` says that it must be read.
///
/// # Errors
/// [`Error::Corruption`], and in [`ReadMode::MemoryOnly`] [`Error::WouldRead`] if it is not cached.
pub(crate) fn cached_value(
    cache: &BlockCache,
    cache_id: CacheId,
    path: &Path,
    meta: &BlobMeta,
    pointer: &BlobPointer,
    mode: ReadMode,
) -> Result<Option<Arc<[u8]>>> {
    debug_assert_eq!(pointer.number, meta.number, "the pointer is into this file");
    // The bound comes first: an offset in the cache's key is one of a record of this file.
    if pointer.end() > meta.file_bytes {
        return Err(Error::corruption(path, pointer.offset, "a blob pointer leads past the end of the file"));
    }
    if is_cacheable(pointer, mode)
        && let Some(CachedBlock::Blob(value)) = cache.get(cache_id, pointer.offset)
    {
        return Ok(Some(value));
    }
    if mode == ReadMode::MemoryOnly { Err(Error::WouldRead) } else { Ok(None) }
}
