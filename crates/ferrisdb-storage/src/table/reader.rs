//! Reads a table: [`TableReader`].
//!
//! A point read is: one cache line of the filter; a binary search in the pinned index; one lookup in the block cache; a search in
//! the block where it lies. What it returns pins the block; nothing is copied, and nothing is allocated unless a block comes from
//! the disk.
//!
//! # Concurrency
//! Immutable once open; any number of threads.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrisdb_core::Version;
use ferrisdb_core::codec::DecodeError;

use super::block::Block;
use super::builder::bounds;
use super::filter::Filter;
use super::footer::{FOOTER_BYTES, Footer};
use super::frame::{BlockHandle, open_frame};
use super::index::Index;
use super::{Properties, ReadMode, TableId, TableSummary, tombstone_block};
use crate::cache::{BlockCache, CacheId, CacheReservation, CachedBlock};
use crate::error::{Error, Result};
use crate::fs::{File, FileSystem, OpenMode, read_exact_at};
use crate::key::{InternalKey, ValueKind};
use crate::tombstone::FragmentList;

/// An open table.
pub struct TableReader {
    file: Arc<dyn File>,
    path: PathBuf,
    id: TableId,
    file_bytes: u64,
    data_end: u64,
    cache: Arc<BlockCache>,
    cache_id: CacheId,
    /// Of the data blocks, or of the partitions if there are any.
    index: Index,
    partitioned: bool,
    filter: Option<Filter>,
    tombstones: Arc<FragmentList>,
    properties: Properties,
    _pinned: CacheReservation,
}

impl fmt::Debug for TableReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableReader").field("path", &self.path).field("id", &self.id).finish_non_exhaustive()
    }
}

/// What is pinned while a table is open, and the footer that led to it.
struct Rear {
    footer: Footer,
    index: Index,
    filter: Option<Filter>,
    tombstones: FragmentList,
    properties: Properties,
}

impl Rear {
    fn load(file: &dyn File, path: &Path, id: TableId, file_bytes: u64) -> Result<Rear> {
        let tail_bytes = file_bytes.min(FOOTER_BYTES as u64);
        let tail = read_range(file, path, file_bytes - tail_bytes, tail_bytes)?;
        let footer = Footer::decode(&tail, path, file_bytes)?;
        if footer.id != id {
            let what = format!("this is table {}, not table {}: the file was put in its place", footer.id.0, id.0);
            return Err(Error::corruption(path, file_bytes - tail_bytes, what));
        }
        let load = |handle: BlockHandle| {
            let frame = read_range(file, path, handle.offset, handle.len)?;
            open_frame(&frame, id, handle.offset).map_err(|error| bad_block(path, handle.offset, error))
        };
        let at = |handle: BlockHandle| move |error| bad_block(path, handle.offset, error);

        let partitioned = footer.index_levels == 2;
        let (start, limit) = if partitioned { (footer.data_end, footer.index.offset) } else { (0, footer.data_end) };
        let index = Index::decode(&load(footer.index)?, limit).map_err(at(footer.index))?;
        if !index.is_empty() && (index.start_offset() != start || index.end_offset() != limit) {
            return Err(Error::corruption(path, footer.index.offset, "index: the blocks do not fill their region"));
        }
        let filter = match footer.filter.len {
            0 => None,
            _ => Some(Filter::decode(&load(footer.filter)?).map_err(at(footer.filter))?),
        };
        let tombstones = match footer.tombstones.len {
            0 => FragmentList::default(),
            _ => tombstone_block::decode(&load(footer.tombstones)?).map_err(at(footer.tombstones))?,
        };
        let properties = Properties::decode(&load(footer.properties)?).map_err(at(footer.properties))?;
        Ok(Rear { footer, index, filter, tombstones, properties })
    }
}

/// What [`TableReader::get`] found.
#[derive(Debug, Clone)]
pub struct Found {
    /// When it was written.
    pub version: Version,
    /// Value, tombstone or blob pointer.
    pub kind: ValueKind,
    /// The value, the encoded blob pointer, or nothing.
    pub value: TableValue,
}

/// What [`TableReader::get_in_order`] has looked up last, in one table.
#[derive(Default)]
pub(crate) struct LastBlock {
    /// Which index partition, in a table that has any.
    partition: Option<(usize, Arc<Index>)>,
    /// The data block, and where it lies.
    block: Option<(u64, Arc<Block>)>,
}

/// A value that lies in a block, and keeps the block in memory.
#[derive(Clone)]
pub struct TableValue {
    block: Arc<Block>,
    // Invariant: start ≤ end ≤ the block's length.
    start: u32,
    end: u32,
}

impl Deref for TableValue {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.block.bytes()[self.start as usize..self.end as usize]
    }
}

impl AsRef<[u8]> for TableValue {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for TableValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of value", self.len())
    }
}

impl TableReader {
    /// Opens the table that the manifest knows as `id` with a length of `file_bytes`, and pins its index, filter, range tombstones
    /// and properties; `cache` makes room for them.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Corruption`] (wrong length, another table's file, bad bytes), [`Error::FormatTooNew`],
    /// [`Error::Io`].
    pub fn open(
        fs: &dyn FileSystem,
        path: &Path,
        id: TableId,
        file_bytes: u64,
        cache: &Arc<BlockCache>,
    ) -> Result<TableReader> {
        TableReader::open_cached(fs, path, id, file_bytes, (cache, cache.new_id()))
    }

    /// As [`TableReader::open`], of a table whose blocks may be in the cache under an id from an earlier time that it was open.
    pub(crate) fn open_cached(
        fs: &dyn FileSystem,
        path: &Path,
        id: TableId,
        file_bytes: u64,
        (cache, cache_id): (&Arc<BlockCache>, CacheId),
    ) -> Result<TableReader> {
        let file = fs.open(path, OpenMode::Read).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::MissingFile { file: path.into() },
            _ => Error::io("open", path, error),
        })?;
        let len = file.len().map_err(|error| Error::io("stat", path, error))?;
        if len != file_bytes {
            let what = format!("the file has {len} bytes, not the {file_bytes} that the manifest says");
            return Err(Error::corruption(path, len.min(file_bytes), what));
        }
        // Scans and compactions read ahead by themselves, as far as they need; the kernel would guess, and push out of its cache what others read.
        file.expect_random_reads();
        let Rear { footer, index, filter, tombstones, properties } = Rear::load(&*file, path, id, file_bytes)?;
        let pinned = index.memory_bytes()
            + filter.as_ref().map_or(0, Filter::memory_bytes)
            + tombstones.memory_bytes()
            + size_of::<TableReader>();
        Ok(TableReader {
            path: path.to_path_buf(),
            id,
            file_bytes,
            data_end: footer.data_end,
            cache: Arc::clone(cache),
            cache_id,
            index,
            partitioned: footer.index_levels == 2,
            filter,
            tombstones: Arc::new(tombstones),
            properties,
            _pinned: cache.reserve(pinned),
            file,
        })
    }

    /// The table's id.
    pub fn id(&self) -> TableId {
        self.id
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Counts, sizes, bounds.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The range tombstones.
    pub fn range_tombstones(&self) -> &Arc<FragmentList> {
        &self.tombstones
    }

    /// True if the index has partitions.
    pub fn is_partitioned(&self) -> bool {
        self.partitioned
    }

    /// What [`TableBuilder::finish`](super::TableBuilder::finish) returned when the table was written.
    pub fn summary(&self) -> TableSummary {
        let (smallest, largest, largest_is_exclusive) =
            bounds(&self.properties, &self.tombstones).unwrap_or((b"", b"", true));
        TableSummary {
            id: self.id,
            file_bytes: self.file_bytes,
            smallest: smallest.to_vec(),
            largest: largest.to_vec(),
            largest_is_exclusive,
            properties: self.properties.clone(),
        }
    }

    /// False if no point entry has a user key with this [hash](super::filter::hash).
    #[inline]
    pub fn may_contain(&self, key_hash: u64) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.may_contain(key_hash))
    }

    /// The newest range tombstone over `user_key` that a reader at `at` sees.
    #[inline]
    pub fn newest_covering(&self, user_key: &[u8], at: Version) -> Option<Version> {
        self.tombstones.newest_covering(user_key, at)
    }

    /// The newest point entry of `user_key` that a reader at `at` sees. `key_hash` is the key's
    /// [hash](super::filter::hash), computed once for all tables. Range tombstones are the caller's to apply.
    #[inline]
    pub fn get(&self, user_key: &[u8], key_hash: u64, at: Version, mode: ReadMode) -> Result<Option<Found>> {
        if !self.may_contain(key_hash) {
            return Ok(None);
        }
        let target = InternalKey::seek(user_key, at);
        let Some(handle) = self.locate(target, mode)? else { return Ok(None) };
        let block = self.data_block(handle, mode)?;
        // The separator lies at or after the target. If the block ends before the target, then so does every version of the key:
        // a key whose versions go on in the next block has its last entry here as separator.
        let (version, kind, (start, end)) = match block.seek(target) {
            Ok(Some(found)) if found.same_user_key => (found.trailer.version(), found.kind, found.value_range()),
            Ok(_) => return Ok(None),
            Err(error) => return Err(bad_block(&self.path, handle.offset, error)),
        };
        Ok(Some(Found { version, kind, value: TableValue { block, start, end } }))
    }

    /// As [`TableReader::get`], for keys asked in ascending order: neither partition nor block that answered for the key before is looked
    /// up again.
    pub(crate) fn get_in_order(
        &self,
        user_key: &[u8],
        key_hash: u64,
        at: Version,
        mode: ReadMode,
        last: &mut LastBlock,
    ) -> Result<Option<Found>> {
        if !self.may_contain(key_hash) {
            return Ok(None);
        }
        let target = InternalKey::seek(user_key, at);
        let mut ordinal = self.index.find(target);
        if ordinal == self.index.len() {
            return Ok(None);
        }
        let index = if self.partitioned {
            if last.partition.as_ref().is_none_or(|(held, _)| *held != ordinal) {
                last.partition = Some((ordinal, self.partition(ordinal, mode)?));
            }
            let (_, partition) = last.partition.as_ref().expect("just loaded");
            ordinal = partition.find(target);
            &**partition
        } else {
            &self.index
        };
        if ordinal >= index.len() {
            return Ok(None);
        }
        let handle = index.handle(ordinal);
        if last.block.as_ref().is_none_or(|(offset, _)| *offset != handle.offset) {
            last.block = Some((handle.offset, self.data_block(handle, mode)?));
        }
        let (_, block) = last.block.as_ref().expect("just loaded");
        let (version, kind, (start, end)) = match block.seek(target) {
            Ok(Some(found)) if found.same_user_key => (found.trailer.version(), found.kind, found.value_range()),
            Ok(_) => return Ok(None),
            Err(error) => return Err(bad_block(&self.path, handle.offset, error)),
        };
        Ok(Some(Found { version, kind, value: TableValue { block: Arc::clone(block), start, end } }))
    }

    /// The data block that holds `target`, if any does.
    #[inline]
    fn locate(&self, target: InternalKey<'_>, mode: ReadMode) -> Result<Option<BlockHandle>> {
        let at = self.index.find(target);
        if at == self.index.len() {
            return Ok(None);
        }
        if !self.partitioned {
            return Ok(Some(self.index.handle(at)));
        }
        let partition = self.partition(at, mode)?;
        let at = partition.find(target);
        Ok((at < partition.len()).then(|| partition.handle(at)))
    }

    /// About how many bytes of the file lie before `key`: exact to a data block. Reads an index partition if there are any.
    pub fn approximate_offset_of(&self, key: &[u8], mode: ReadMode) -> Result<u64> {
        let target = InternalKey::seek(key, Version::MAX);
        Ok(self.locate(target, mode)?.map_or(self.data_end, |handle| handle.offset))
    }

    /// Calls `each` with the separator of every data block (its user key: at or after the block's last, before the next block's
    /// first) and the block's length in the file: for split points of ranges and of compactions.
    pub fn for_each_separator(&self, mode: ReadMode, mut each: impl FnMut(&[u8], u64)) -> Result<()> {
        let mut key = Vec::new();
        let mut walk = |index: &Index| {
            for at in 0..index.len() {
                index.separator(at, &mut key);
                each(&key, index.handle(at).len);
            }
        };
        if !self.partitioned {
            walk(&self.index);
            return Ok(());
        }
        (0..self.index.len()).try_for_each(|at| self.partition(at, mode).map(|partition| walk(&partition)))
    }

    /// The pinned index: of the data blocks, or of the partitions.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    pub(super) fn data_end(&self) -> u64 {
        self.data_end
    }

    /// Index partition `at`.
    pub(super) fn partition(&self, at: usize, mode: ReadMode) -> Result<Arc<Index>> {
        let handle = self.index.handle(at);
        match self.cached(handle, mode)? {
            Some(CachedBlock::Index(index)) => return Ok(index),
            Some(_) => return Err(self.corruption(handle, "the cache holds another kind of block here")),
            None => {}
        }
        let frame = read_range(&*self.file, &self.path, handle.offset, handle.len)?;
        let decoded = open_frame(&frame, self.id, handle.offset).and_then(|raw| Index::decode(&raw, self.data_end));
        let index = Arc::new(decoded.map_err(|error| bad_block(&self.path, handle.offset, error))?);
        if mode == ReadMode::Blocking {
            self.cache.insert(self.cache_id, handle.offset, CachedBlock::Index(Arc::clone(&index)));
        }
        Ok(index)
    }

    /// The data block at `handle`.
    #[inline]
    pub(super) fn data_block(&self, handle: BlockHandle, mode: ReadMode) -> Result<Arc<Block>> {
        let cached = if mode == ReadMode::Compaction { None } else { self.cached_data_block(handle)? };
        match (cached, mode) {
            (Some(block), _) => Ok(block),
            (None, ReadMode::MemoryOnly) => Err(Error::WouldRead),
            (None, ReadMode::Blocking) => self.read_data_block(handle),
            (None, ReadMode::Compaction) => self.read_uncached(handle).map(Arc::new),
        }
    }

    /// The data block at `handle` if the cache holds it.
    #[inline]
    pub(super) fn cached_data_block(&self, handle: BlockHandle) -> Result<Option<Arc<Block>>> {
        match self.cache.get(self.cache_id, handle.offset) {
            Some(CachedBlock::Data(block)) => Ok(Some(block)),
            Some(_) => Err(self.corruption(handle, "the cache holds another kind of block here")),
            None => Ok(None),
        }
    }

    /// Reads a data block that the cache does not hold, and caches it.
    #[cold]
    pub(super) fn read_data_block(&self, handle: BlockHandle) -> Result<Arc<Block>> {
        Ok(self.cache_data_block(handle, self.read_uncached(handle)?))
    }

    /// Gives the cache a data block that was just read.
    pub(super) fn cache_data_block(&self, handle: BlockHandle, block: Block) -> Arc<Block> {
        let block = Arc::new(block);
        self.cache.insert(self.cache_id, handle.offset, CachedBlock::Data(Arc::clone(&block)));
        block
    }

    fn read_uncached(&self, handle: BlockHandle) -> Result<Block> {
        with_range(&*self.file, &self.path, handle.offset, handle.len, |frame| {
            self.decode_data_block(frame, handle.offset)
        })
    }

    #[inline]
    fn cached(&self, handle: BlockHandle, mode: ReadMode) -> Result<Option<CachedBlock>> {
        if mode == ReadMode::Compaction {
            return Ok(None);
        }
        match self.cache.get(self.cache_id, handle.offset) {
            None if mode == ReadMode::MemoryOnly => Err(Error::WouldRead),
            answer => Ok(answer),
        }
    }

    /// Reads a piece of the file, past the cache, into the beginning of `bytes`, which grows to hold it and keeps its length otherwise, so that only
    /// what it grows by is cleared first. Returns the length of the piece.
    pub(super) fn read(&self, offset: u64, len: u64, bytes: &mut Vec<u8>) -> Result<usize> {
        let len = block_len(&self.path, offset, len)?;
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        fill(&*self.file, &self.path, offset, &mut bytes[..len]).map(|()| len)
    }

    /// Checks and parses a framed data block that lies at `offset`.
    pub(super) fn decode_data_block(&self, frame: &[u8], offset: u64) -> Result<Block> {
        let block = open_frame(frame, self.id, offset).and_then(Block::parse);
        block.map_err(|error| bad_block(&self.path, offset, error))
    }

    /// Reads the pinned blocks once more: they may have gone bad since they were read.
    pub(super) fn reload_rear(&self) -> Result<()> {
        let rear = Rear::load(&*self.file, &self.path, self.id, self.file_bytes)?;
        if rear.properties != self.properties || rear.tombstones != *self.tombstones {
            return Err(Error::corruption(
                &self.path,
                rear.footer.properties.offset,
                "the table changed while it was open",
            ));
        }
        Ok(())
    }

    pub(super) fn corruption(&self, handle: BlockHandle, what: impl Into<String>) -> Error {
        Error::corruption(&self.path, handle.offset, what)
    }

    pub(super) fn bad_block(&self, handle: BlockHandle, error: DecodeError) -> Error {
        bad_block(&self.path, handle.offset, error)
    }
}

#[cold]
fn bad_block(path: &Path, offset: u64, error: DecodeError) -> Error {
    Error::decode(path, offset, error)
}

/// As [`read_range`], into a buffer that the thread keeps: a block read from the page cache costs so little that allocating and
/// clearing memory for its compressed form would show.
fn with_range<T>(
    file: &dyn File,
    path: &Path,
    offset: u64,
    len: u64,
    use_bytes: impl FnOnce(&[u8]) -> Result<T>,
) -> Result<T> {
    /// What a thread keeps at most: blocks are larger only where a value is.
    const KEPT_BYTES_MAX: usize = 64 << 10;
    thread_local! {
        static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let Some(fits) = usize::try_from(len).ok().filter(|&len| len <= KEPT_BYTES_MAX) else {
        return use_bytes(&read_range(file, path, offset, len)?);
    };
    // Taken while in use, so that a nested call would find an empty one and not this.
    let mut buffer = BUFFER.take();
    if buffer.len() < fits {
        buffer.resize(fits, 0);
    }
    let result = fill(file, path, offset, &mut buffer[..fits]).and_then(|()| use_bytes(&buffer[..fits]));
    BUFFER.set(buffer);
    result
}

/// Reads exactly `len` bytes; they lie within the file, as was checked, so an end before them is corruption.
pub(super) fn read_range(file: &dyn File, path: &Path, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; block_len(path, offset, len)?];
    fill(file, path, offset, &mut bytes).map(|()| bytes)
}

fn block_len(path: &Path, offset: u64, len: u64) -> Result<usize> {
    usize::try_from(len).map_err(|_| Error::corruption(path, offset, "block: length"))
}

fn fill(file: &dyn File, path: &Path, offset: u64, bytes: &mut [u8]) -> Result<()> {
    match read_exact_at(file, bytes, offset) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Error::corruption(path, offset, "the file ends before the block does"))
        }
        Err(error) => Err(Error::io("read", path, error)),
    }
}
