//! [`View`]: everything that a read looks through, as one immutable object.
//!
//! ```text
//! active memtable ─▶ immutable memtables, newest first ─▶ L0 by rank ─▶ L1 … L6
//! ```
//!
//! A rotation, a flush and a compaction each publish a new view; a read uses the one that it found, whole. Memtables rotate only between
//! versions, so any view together with any visible version loaded *after* it shows a prefix of the writes: all versions up to
//! the smaller of the visible version and the newest in the view.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use ferrisdb_core::Version;

use super::blobs::Blobs;
use super::files::ObsoleteFiles;
use super::table_cache::{Closable, TableCache};
use crate::cache::{BlockCache, CacheId};
use crate::epoch::{Epoch, EpochGuard, EpochSlot};
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::levels::{Levels, TableLike};
use crate::manifest::{EngineId, TableMeta};
use crate::memtable::Memtable;
use crate::table::{ReadMode, TableId, TableReader};
use crate::tombstone::FragmentList;
use crate::wal::WalPosition;

/// What a read looks through.
pub(crate) struct View {
    /// Newest first; the first is active. Never empty.
    pub(crate) memtables: Vec<Arc<LiveMemtable>>,
    pub(crate) levels: Levels<Table>,
    /// Where the tables' blob pointers lead.
    pub(crate) blobs: Arc<Blobs>,
    /// For each level, whether any of its tables has range tombstones: reads skip asking otherwise.
    pub(crate) range_tombstones: [bool; crate::levels::LEVELS],
}

impl View {
    pub(crate) fn new(memtables: Vec<Arc<LiveMemtable>>, levels: Levels<Table>, blobs: Arc<Blobs>) -> View {
        let range_tombstones = std::array::from_fn(|level| {
            levels.level(level).tables().iter().any(|table| table.meta.range_tombstones > 0)
        });
        View { memtables, levels, blobs, range_tombstones }
    }

    pub(crate) fn active(&self) -> &Arc<LiveMemtable> {
        &self.memtables[0]
    }

    pub(crate) fn immutables(&self) -> &[Arc<LiveMemtable>] {
        &self.memtables[1..]
    }
}

/// A memtable with what the engine knows about it.
pub(crate) struct LiveMemtable {
    pub(crate) entries: Arc<Memtable>,
    /// Set when it stops being active: the newest version that was written before, here or earlier.
    pub(crate) sealed_at: OnceLock<Version>,
    /// Set when it stops being active: where the WAL ended then, if there is one. Replay begins here once this memtable is flushed.
    pub(crate) wal_end: OnceLock<Option<WalPosition>>,
    /// The owner's bytes as of its newest version, if a batch in it set them.
    pub(crate) owner_state: Mutex<Option<(Version, Vec<u8>)>>,
    /// Its unused memory has been given back to the operating system.
    pub(crate) has_rested: AtomicBool,
}

impl LiveMemtable {
    pub(crate) fn new(entries: Memtable) -> LiveMemtable {
        LiveMemtable {
            entries: Arc::new(entries),
            sealed_at: OnceLock::new(),
            wal_end: OnceLock::new(),
            owner_state: Mutex::new(None),
            has_rested: AtomicBool::new(false),
        }
    }

    /// True while there is nothing in it to flush.
    pub(crate) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.owner_state.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Notes the owner's bytes of a batch; batches insert side by side, so the newest version wins.
    pub(crate) fn set_owner_state(&self, version: Version, bytes: &[u8]) {
        let mut state = self.owner_state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.as_ref().is_none_or(|(at, _)| *at <= version) {
            *state = Some((version, bytes.to_vec()));
        }
    }
}

/// What every handle of a table or blob file of an engine shares.
pub(crate) struct TableContext {
    pub(crate) dir: PathBuf,
    pub(crate) engine_id: EngineId,
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) obsolete: Arc<ObsoleteFiles>,
    pub(crate) open_files: TableCache,
    /// Of the view's readers, who also borrow tables' readers.
    pub(crate) epoch: Arc<Epoch>,
}

/// A live table: its meta, its reader while the file is open, and its file's end.
pub(crate) struct Table {
    pub(crate) meta: TableMeta,
    pub(crate) path: PathBuf,
    reader: EpochSlot<TableReader>,
    /// Used since the table cache last looked.
    used: AtomicBool,
    cache_id: CacheId,
    /// Once the file was open for the first time: iterators ask them without I/O, also when it is closed. Their memory is counted with
    /// an open reader's only; lists that are worth counting are those of a few tables.
    range_tombstones: OnceLock<Arc<FragmentList>>,
    /// Set when the manifest no longer names the file; the last handle then queues it for removal.
    obsolete: AtomicBool,
    context: Arc<TableContext>,
    /// This handle, for the table cache.
    me: Weak<Table>,
}

impl Table {
    pub(crate) fn new(meta: TableMeta, path: PathBuf, context: Arc<TableContext>) -> Arc<Table> {
        Arc::new_cyclic(|me| Table {
            meta,
            path,
            reader: EpochSlot::new(Arc::clone(&context.epoch)),
            used: AtomicBool::new(false),
            cache_id: context.cache.new_id(),
            range_tombstones: OnceLock::new(),
            obsolete: AtomicBool::new(false),
            context,
            me: me.clone(),
        })
    }

    /// The reader. Opening the file reads the table's index, filter and properties.
    pub(crate) fn reader(&self) -> Result<Arc<TableReader>> {
        match self.open_reader() {
            Some(reader) => Ok(reader),
            None => self.open(),
        }
    }

    /// The reader if the file is open.
    pub(crate) fn open_reader(&self) -> Option<Arc<TableReader>> {
        self.note_use();
        self.reader.load()
    }

    /// The reader if the file is open, for as long as the guard lives. Costs no reference count.
    #[inline]
    pub(crate) fn borrow_reader<'a>(&'a self, guard: &'a EpochGuard<'_, View>) -> Option<&'a TableReader> {
        self.note_use();
        self.reader.borrow(guard)
    }

    /// The range tombstones; with [`ReadMode::MemoryOnly`] only if the file was open before.
    pub(crate) fn range_tombstones(&self, mode: ReadMode) -> Result<&FragmentList> {
        if self.range_tombstones.get().is_none() {
            if mode == ReadMode::MemoryOnly {
                return Err(Error::WouldRead);
            }
            self.reader()?;
        }
        Ok(self.range_tombstones.get().expect("set when the file is opened"))
    }

    /// The range tombstones, if the file was open before.
    pub(crate) fn known_range_tombstones(&self) -> Option<&Arc<FragmentList>> {
        self.range_tombstones.get()
    }

    #[inline]
    fn note_use(&self) {
        // Nearly always set: then the line stays in every core's cache.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    #[cold]
    fn open(&self) -> Result<Arc<TableReader>> {
        let context = &self.context;
        // What was closed while somebody read it may be closable now.
        context.epoch.reclaim();
        let reader = TableReader::open_cached(
            &*context.fs,
            &self.path,
            TableId(self.meta.number.0),
            self.meta.file_bytes,
            (&context.cache, self.cache_id),
        )?;
        self.range_tombstones.get_or_init(|| Arc::clone(reader.range_tombstones()));
        // Two threads may open at once; one reader wins and the other is dropped.
        let (reader, is_ours) = self.reader.put(Arc::new(reader));
        if is_ours {
            let me: Weak<Table> = self.me.clone();
            context.open_files.opened(me);
        }
        Ok(reader)
    }

    /// The manifest no longer names the file.
    pub(crate) fn set_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Closable for Table {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn close(&self) {
        if self.reader.take() {
            self.context.open_files.closed();
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // Nobody borrows from a handle that is dropped.
        if self.reader.is_full() {
            self.context.open_files.closed();
        }
        if self.obsolete.load(Ordering::Acquire) {
            self.context.obsolete.push(std::mem::take(&mut self.path));
        }
    }
}

impl TableLike for Table {
    #[inline]
    fn meta(&self) -> &TableMeta {
        &self.meta
    }
}
