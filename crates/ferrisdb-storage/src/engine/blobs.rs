//! [`Blobs`]: the live blob files, as a part of a view.
//!
//! Every view holds the blob files that the manifest named when it was published, and so does every iterator: what a table of an old view
//! points to stays readable for as long as somebody may read it, although the manifest has let go of the file. The last handle then
//! queues the file for removal, as with tables.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::files;
use super::table_cache::Closable;
use super::view::TableContext;
use crate::blob::{BlobPointer, BlobReader, GARBAGE_PERCENT_MAX, cached_value, record_bytes};
use crate::cache::CacheId;
use crate::error::{Error, Result};
use crate::manifest::{BlobMeta, FileNumber, LiveBlob, ManifestEdit, ManifestState};
use crate::table::ReadMode;

/// The live blob files. Immutable, but for the counts of garbage.
pub(crate) struct Blobs {
    files: BTreeMap<FileNumber, Arc<Blob>>,
    context: Arc<TableContext>,
}

/// A live blob file: its reader while it is open, and its file's end.
pub(crate) struct Blob {
    pub(crate) meta: BlobMeta,
    pub(crate) path: PathBuf,
    /// As the manifest says. Only for choosing what to collect and for statistics: a reader may find it a moment behind.
    garbage_bytes: AtomicU64,
    /// Locked for a few instructions, and only for values that are not cached.
    reader: Mutex<Option<Arc<BlobReader>>>,
    /// Used since the table cache last looked.
    used: AtomicBool,
    cache_id: CacheId,
    /// Set when the manifest no longer names the file; the last handle then queues it for removal.
    obsolete: AtomicBool,
    context: Arc<TableContext>,
    /// This handle, for the table cache.
    me: Weak<Blob>,
}

/// What the blob files hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BlobTotals {
    pub(crate) files: usize,
    pub(crate) file_bytes: u64,
    pub(crate) garbage_bytes: u64,
}

/// Files with too much garbage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Dirty {
    /// Worst first.
    pub(crate) files: Vec<FileNumber>,
    /// True if all files together hold more garbage than values: then collecting cannot wait until there is nothing else to do.
    pub(crate) urgent: bool,
}

impl Blobs {
    /// Those that the manifest names, each checked to be there and to have its length.
    pub(crate) fn open(state: &ManifestState, context: &Arc<TableContext>) -> Result<Blobs> {
        let mut blobs = Blobs { files: BTreeMap::new(), context: Arc::clone(context) };
        for live in state.blobs.values() {
            let blob = Blob::new(*live, context);
            let found = context.fs.len(&blob.path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Error::MissingFile { file: blob.path.clone() },
                _ => Error::io("open", &blob.path, error),
            })?;
            if found != live.meta.file_bytes {
                let what = format!("the file has {found} bytes, but the manifest says {}", live.meta.file_bytes);
                return Err(Error::corruption(&blob.path, found.min(live.meta.file_bytes), what));
            }
            blobs.files.insert(live.meta.number, blob);
        }
        Ok(blobs)
    }

    /// The files after `edit`, which the manifest has applied. `None` if they are the same.
    pub(crate) fn apply(&self, edit: &ManifestEdit) -> Option<Blobs> {
        for (number, bytes) in &edit.blob_garbage {
            let blob = self.files.get(number).expect("an edit names garbage of live files");
            blob.garbage_bytes.fetch_add(*bytes, Ordering::Relaxed);
        }
        if edit.added_blobs.is_empty() && edit.removed_blobs.is_empty() {
            return None;
        }
        let mut files = self.files.clone();
        for meta in &edit.added_blobs {
            let live = LiveBlob { meta: *meta, garbage_bytes: 0 };
            files.insert(meta.number, Blob::new(live, &self.context));
        }
        for number in &edit.removed_blobs {
            let gone = files.remove(number).expect("an edit removes live files");
            gone.obsolete.store(true, Ordering::Release);
        }
        Some(Blobs { files, context: Arc::clone(&self.context) })
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &Arc<Blob>> {
        self.files.values()
    }

    /// The value that an encoded pointer points to.
    pub(crate) fn read(&self, pointer: &[u8], mode: ReadMode) -> Result<Arc<[u8]>> {
        let pointer = self.decode(pointer)?;
        let Some(blob) = self.files.get(&pointer.number) else {
            let path = files::blob_path(&self.context.dir, pointer.number);
            return Err(Error::corruption(
                path,
                pointer.offset,
                "a table points into this blob file, which is not live",
            ));
        };
        blob.read(&pointer, mode)
    }

    /// Decodes the value of an entry of kind `BlobPointer`.
    pub(crate) fn decode(&self, pointer: &[u8]) -> Result<BlobPointer> {
        // Its block was proven by a checksum, so it was written like this; which table, the caller may know.
        BlobPointer::decode(pointer).map_err(|error| Error::decode(&self.context.dir, 0, error))
    }

    /// The files to empty: at least half garbage.
    pub(crate) fn dirty(&self) -> Dirty {
        let share = |garbage: u64, bytes: u64| u128::from(garbage) * 10_000 / u128::from(bytes.max(1));
        let mut dirty: Vec<(u128, FileNumber)> = Vec::new();
        let mut totals = (0, 0);
        for blob in self.files.values() {
            let (garbage, bytes) = (blob.garbage_bytes(), record_bytes(&blob.meta));
            totals = (totals.0 + garbage, totals.1 + bytes);
            let share = share(garbage, bytes);
            if garbage > 0 && share >= u128::from(GARBAGE_PERCENT_MAX) * 100 {
                dirty.push((share, blob.meta.number));
            }
        }
        // Of equally bad ones the oldest: what is still in it has stayed longest and will not soon go by itself.
        dirty.sort_by_key(|&(share, number)| (std::cmp::Reverse(share), number));
        let urgent = share(totals.0, totals.1) > 5_000;
        Dirty { files: dirty.into_iter().map(|(_, number)| number).collect(), urgent }
    }

    pub(crate) fn live_bytes(&self, number: FileNumber) -> u64 {
        self.files.get(&number).map_or(0, |blob| record_bytes(&blob.meta).saturating_sub(blob.garbage_bytes()))
    }

    pub(crate) fn totals(&self) -> BlobTotals {
        BlobTotals {
            files: self.files.len(),
            file_bytes: self.files.values().map(|blob| blob.meta.file_bytes).sum(),
            garbage_bytes: self.files.values().map(|blob| blob.garbage_bytes()).sum(),
        }
    }
}

impl Blob {
    fn new(live: LiveBlob, context: &Arc<TableContext>) -> Arc<Blob> {
        Arc::new_cyclic(|me| Blob {
            meta: live.meta,
            path: files::blob_path(&context.dir, live.meta.number),
            garbage_bytes: AtomicU64::new(live.garbage_bytes),
            reader: Mutex::new(None),
            used: AtomicBool::new(false),
            cache_id: context.cache.new_id(),
            obsolete: AtomicBool::new(false),
            context: Arc::clone(context),
            me: me.clone(),
        })
    }

    fn garbage_bytes(&self) -> u64 {
        self.garbage_bytes.load(Ordering::Relaxed)
    }

    /// The value that a pointer into this file points to. The file is opened only if the value is not cached.
    fn read(&self, pointer: &BlobPointer, mode: ReadMode) -> Result<Arc<[u8]>> {
        match cached_value(&self.context.cache, self.cache_id, &self.path, &self.meta, pointer, mode)? {
            Some(value) => Ok(value),
            None => self.reader()?.read_value(pointer, mode),
        }
    }

    /// The reader.
    pub(crate) fn reader(&self) -> Result<Arc<BlobReader>> {
        self.used.store(true, Ordering::Relaxed);
        if let Some(reader) = &*self.open_reader() {
            return Ok(Arc::clone(reader));
        }
        let TableContext { fs, cache, engine_id, open_files, .. } = &*self.context;
        let opened = BlobReader::open_cached(&**fs, &self.path, self.meta, *engine_id, (cache, self.cache_id))?;
        let mut reader = self.open_reader();
        // Two threads may open at once; one reader wins and the other is dropped.
        if let Some(reader) = &*reader {
            return Ok(Arc::clone(reader));
        }
        let opened = Arc::clone(reader.insert(Arc::new(opened)));
        drop(reader);
        let me: Weak<Blob> = self.me.clone();
        open_files.opened(me);
        Ok(opened)
    }

    fn open_reader(&self) -> MutexGuard<'_, Option<Arc<BlobReader>>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Closable for Blob {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn close(&self) {
        let closed = self.open_reader().take();
        if closed.is_some() {
            self.context.open_files.closed();
        }
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.close();
        if self.obsolete.load(Ordering::Acquire) {
            self.context.obsolete.push(std::mem::take(&mut self.path));
        }
    }
}
