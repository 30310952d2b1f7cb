//! The engine: one directory, one ordered multi-version store.
//!
//! [`Engine`] is the handle; what all handles and background jobs share is `Core`. The files of this module:
//!
//! ```text
//! write        versions, WAL, memtable insertion, rotation; tickets    visibility  the order in which versions become visible
//! read, iter   point reads and cursors over a view                     view        memtables and tables as one immutable object
//! open, close  recovery, locking, options                             versions    floor and pins: what compaction must keep
//! jobs         the background jobs and when they run                  merge_run   the loop that flushes and compactions share
//! blobs        live blob files, and what to collect                   large_values  what goes to blob files in that loop
//! stall        when writes slow down                                  files       names, and removing obsolete files
//! ingest       sorted data past the WAL and the memtable         checkpoint   a copy made of hard links
//! sizes        how large a range is, and where to cut it         events       telling the owner what happens
//! table_cache  which tables and blob files are open              pace         how fast background jobs may write
//! multi_get    several keys at once
//! ```
//!
//! # Locks, in the order in which they are taken
//! 1. `write`: versions, WAL appends, rotation. Never held across a sync or a wait.
//! 2. `manifest`: edits, each with its fsync. Flush and compaction installs only.
//! 3. `view_lock`: publishing a view. Held for microseconds.
//!
//! Readers take none of them.

mod blobs;
mod checkpoint;
mod compact;
mod events;
mod ingest;
mod iter;
mod jobs;
mod large_values;
mod merge_run;
mod multi_get;
mod open;
mod pace;
mod read;
mod signal;
mod sizes;
mod sources;
mod stall;
mod stats;
mod table_cache;
mod value;
mod verify;
mod versions;
mod view;
mod visibility;
mod write;

pub(crate) mod files;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use ferrisdb_core::Version;
use ferrisdb_core::rare::{Rare, reached};

pub use events::{Compaction, Event, EventListener, Listener};
pub use ingest::{IngestOptions, Ingestion};
pub use iter::{Iter, IterOptions};
pub use sizes::RangeSize;
pub use stats::{LevelStatistics, Statistics};
pub use value::Value;
pub use verify::VerifyReport;
pub use write::{Submitted, Ticket};

use crate::batch::WriteBatch;
use crate::blob::garbage;
use crate::cache::BlockCache;
use crate::env::Env;
use crate::epoch::EpochCell;
use crate::error::{Error, Result};
use crate::iter::visible::VisibleIterator;
use crate::levels::Levels;
use crate::manifest::{FileNumber, Manifest, ManifestEdit};
use crate::memtable::MemoryPool;
use crate::options::{Options, WriteOptions};
use crate::table::ReadMode;
use crate::wal::{Wal, WalPosition};
use files::ObsoleteFiles;
use jobs::Jobs;
use pace::Pace;
use signal::Signal;
use sources::Source;
use stall::Stall;
use stats::Counters;
use versions::ReadableVersions;
use view::{LiveMemtable, Table, TableContext, View};
use visibility::Visibility;
use write::WriteState;

/// An open engine. Cheap to clone; all clones are the same engine. `Send + Sync`: everything may be called from any thread at once.
///
/// # What is durable when
/// A write with [`Durability::Sync`](crate::options::Durability::Sync) is on stable storage when the call returns, and so is everything before it. A
/// [`Buffered`](crate::options::Durability::Buffered) one survives the death of the process. Without a WAL ([`Options::wal`]) nothing is durable before
/// [`Engine::flush`] says so.
///
/// # Ending
/// [`Engine::close`] makes everything durable, waits for the background jobs, and reports errors. Dropping the last clone stops the jobs and
/// gives the directory free, without syncing or reporting.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

/// Stops the jobs when the last clone is gone: the jobs hold `Core`, so its own drop would never come.
struct Handle {
    core: Arc<Core>,
}

/// What handles and jobs share.
pub(crate) struct Core {
    env: Env,
    dir: PathBuf,
    options: Options,
    read_only: bool,
    view: EpochCell<View>,
    /// Serialises publishing a view.
    view_lock: Mutex<()>,
    visibility: Visibility,
    versions: ReadableVersions,
    write: Mutex<WriteState>,
    wal: Option<Wal>,
    /// While an ingestion is being installed no write takes a version. Set under the writer lock.
    gate_closed: AtomicBool,
    manifest: Mutex<Manifest>,
    tables: Arc<TableContext>,
    obsolete: Arc<ObsoleteFiles>,
    cache: Arc<BlockCache>,
    memtable_memory: Arc<MemoryPool>,
    jobs: Jobs,
    stall: Stall,
    pace: Pace,
    /// Flushes, compactions, errors, the end of a job: whoever waits for one of them looks again.
    progress: Signal,
    poison: OnceLock<Arc<str>>,
    closed: AtomicBool,
    counters: Counters,
    next_file_number: AtomicU64,
    /// Keeps the directory ours until the jobs have ended. `None` on a read-only disk.
    lock: Mutex<Option<Box<dyn crate::fs::FileLock>>>,
}

impl Engine {
    /// Opens the engine in `dir` with the real disk, clock and threads; creates it if [`Options::create_if_missing`] says so.
    ///
    /// # Errors
    /// - [`Error::InvalidOption`]: nothing was touched;
    /// - [`Error::Locked`]: it is open elsewhere, in this process or another;
    /// - [`Error::NotAnEngine`]: the directory is missing or empty and [`Options::create_if_missing`] is off, or it holds something else;
    /// - [`Error::FormatTooNew`]: a newer FerrisDB has written there;
    /// - [`Error::MissingFile`], [`Error::Corruption`]: files are not as they were left;
    /// - [`Error::NoSpace`], [`Error::Io`]: the operating system refused something.
    ///
    /// An open that fails leaves the data as it was. It may leave an empty directory or a lock file behind.
    ///
    /// # Examples
    /// On a simulated disk, for a test; with [`Engine::open`] and a path it is on the real one.
    /// ```
    /// use ferrisdb_storage::fs::sim::SimFileSystem;
    /// use ferrisdb_storage::{Durability, Engine, Env, IterOptions, Options, WriteBatch};
    ///
    /// # fn main() -> ferrisdb_storage::Result<()> {
    /// let env = Env::sim(SimFileSystem::new());
    /// let engine = Engine::open_in(env.clone(), "/fruit", Options::tiny())?;
    /// let mut batch = WriteBatch::new();
    /// batch.put(b"apple", b"red").put(b"plum", b"blue");
    /// let version = engine.write(batch, Durability::Sync)?;
    ///
    /// let before = engine.snapshot();
    /// let mut batch = WriteBatch::new();
    /// batch.delete(b"apple");
    /// engine.write(batch, Durability::Buffered)?;
    /// assert_eq!(engine.get(b"apple")?, None);
    /// assert_eq!(engine.get_at(b"apple", before.version())?.as_deref(), Some(&b"red"[..]));
    /// assert_eq!(before.version(), version);
    /// drop(before);
    /// engine.close()?;
    ///
    /// let engine = Engine::open_in(env, "/fruit", Options::tiny())?;
    /// let mut fruit = engine.iter(IterOptions::default())?;
    /// fruit.seek_to_first()?;
    /// assert_eq!((fruit.key(), fruit.value()), (&b"plum"[..], &b"blue"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Engine> {
        Engine::open_in(Env::real(), dir, options)
    }

    /// Opens the engine in a given environment.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: Options) -> Result<Engine> {
        open::open(env, dir.as_ref(), options, false)
    }

    /// Opens an existing engine for reading. Nothing in the directory is changed but the lock file; records in the WAL are read into
    /// memory. While it is open nobody else can open the directory, unless the disk is read-only.
    ///
    /// # Errors
    /// As [`Engine::open`]; and [`Error::NotAnEngine`] where that would create one.
    pub fn open_read_only(env: Env, dir: impl AsRef<Path>, options: Options) -> Result<Engine> {
        open::open(env, dir.as_ref(), options, true)
    }

    /// Writes a batch and waits until it is visible and as durable as asked. Returns its version; an empty batch without a
    /// given version changes nothing and returns the newest version.
    ///
    /// During a write stall the call waits.
    ///
    /// # Errors
    /// The batch's own: [`Error::KeyTooLarge`], [`Error::ValueTooLarge`], [`Error::BatchTooLarge`], [`Error::InvertedRange`],
    /// [`Error::VersionNotIncreasing`]; then nothing happened. [`Error::NoSpace`] and [`Error::Io`] from the WAL append: nothing
    /// happened. [`Error::ReadOnly`], [`Error::Closed`]: nothing happened. [`Error::Poisoned`] after a failed sync: whether this batch
    /// survives is unknown until the engine is reopened.
    pub fn write(&self, batch: WriteBatch, options: impl Into<WriteOptions>) -> Result<Version> {
        self.core().write(batch, options.into())
    }

    /// Writes a batch without waiting: the returned ticket says when it is visible and as durable as asked. A stall gives the batch back.
    ///
    /// # Errors
    /// As [`Engine::write`].
    pub fn submit(&self, batch: WriteBatch, options: impl Into<WriteOptions>) -> Result<Submitted> {
        Core::submit(self.core(), batch, options.into())
    }

    /// True when a write would find a memtable to go to. Otherwise the waker is woken when that may have changed: how to wait
    /// after [`Submitted::Stalled`] without a time.
    pub fn poll_writable(&self, waker: &std::task::Waker) -> bool {
        self.core().poll_writable(waker)
    }

    /// The value of a key, newest visible version.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corruption`].
    #[inline]
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.core().get(key, None, ReadMode::Blocking)
    }

    /// The value of a key as of a version.
    ///
    /// # Errors
    /// As [`Engine::get`], and [`Error::VersionNotReadable`].
    pub fn get_at(&self, key: &[u8], version: Version) -> Result<Option<Value>> {
        self.core().get(key, Some(version), ReadMode::Blocking)
    }

    /// True once what was found at opening ([`Engine::flushed_version`], [`Engine::owner_state`]) is durable beyond doubt: always, unless the disk was
    /// full then. Until there is space, or a flush has succeeded, a power cut may bring back an earlier flush, as far as the process before this one
    /// had not synced, or could not sync, what this one has read. May wait for an fsync of the manifest.
    pub fn is_settled(&self) -> bool {
        self.core().manifest().is_settled()
    }

    /// As [`Engine::get`] or [`Engine::get_at`], without waiting for the disk.
    ///
    /// # Errors
    /// As those, and [`Error::WouldRead`] where memory does not have the answer.
    pub fn try_get(&self, key: &[u8], version: Option<Version>) -> Result<Option<Value>> {
        self.core().get(key, version, ReadMode::MemoryOnly)
    }

    /// The values of several keys, in their order, all as of one version: the given one, or the newest visible. Cheaper than as many calls of
    /// [`Engine::get`]: keys that lie near each other share the work.
    ///
    /// # Errors
    /// As [`Engine::get_at`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K], version: Option<Version>) -> Result<Vec<Option<Value>>> {
        self.core().multi_get(keys, version)
    }

    /// A cursor over keys in order.
    ///
    /// # Errors
    /// [`Error::InvertedRange`], [`Error::VersionNotReadable`], and those of opening tables.
    pub fn iter(&self, options: IterOptions) -> Result<Iter> {
        Iter::new(self.core(), options, ReadMode::Blocking)
    }

    /// As [`Engine::iter`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Engine::iter`], and [`Error::WouldRead`] if a table that it needs is not open.
    pub fn try_iter(&self, options: IterOptions) -> Result<Iter> {
        Iter::new(self.core(), options, ReadMode::MemoryOnly)
    }

    /// The newest visible version.
    pub fn visible_version(&self) -> Version {
        self.core().visibility.visible()
    }

    /// Pins the newest visible version until the snapshot is dropped. Cheap; take as many as you like, but know that
    /// what is overwritten meanwhile is kept for them.
    pub fn snapshot(&self) -> Snapshot {
        let core = self.core();
        let version = core.versions.pin_visible(|| core.visibility.visible());
        Snapshot { engine: self.clone(), version }
    }

    /// The oldest version that readers may ask for without a pin.
    pub fn oldest_readable_version(&self) -> Version {
        self.core().versions.floor()
    }

    /// Lets versions below `floor` be collected, except pinned ones. Never moves back. Remembered across restarts as far as
    /// something was collected because of it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] unless the engine was opened with [`Retention::FromFloor`](crate::options::Retention::FromFloor).
    pub fn set_oldest_readable_version(&self, floor: Version) -> Result<()> {
        let core = self.core();
        core.check_open()?;
        if core.options.retention != crate::options::Retention::FromFloor {
            return Err(Error::InvalidOption {
                option: "retention",
                value: format!("{:?}", core.options.retention),
                reason: "only with Retention::FromFloor may the owner set the oldest readable version".into(),
            });
        }
        core.versions.raise_floor(floor.min(core.visibility.visible()));
        Ok(())
    }

    /// Keeps a readable version readable until [`Engine::unpin`], also when the floor passes it. Pins are counted, and not kept
    /// across a restart: see [`Options::pinned_versions`].
    ///
    /// # Errors
    /// [`Error::VersionNotReadable`].
    pub fn pin(&self, version: Version) -> Result<()> {
        let core = self.core();
        core.check_open()?;
        core.versions.pin(version, core.visibility.visible())
    }

    /// Takes back one pin. False if the version was not pinned.
    pub fn unpin(&self, version: Version) -> bool {
        self.core().versions.unpin(version)
    }

    /// Writes everything that is visible now into tables, waits until that is durable, and returns the version up to which it is.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`], [`Error::Poisoned`], [`Error::ReadOnly`], [`Error::Closed`].
    pub fn flush(&self) -> Result<Version> {
        self.core().flush()
    }

    /// As [`Engine::flush`], as a future: the caller's thread is not held up meanwhile. Dropping it takes nothing back.
    ///
    /// # Errors
    /// As [`Engine::flush`].
    pub fn flush_later(&self) -> impl Future<Output = Result<Version>> + Send + 'static + use<> {
        let engine = self.clone();
        async move { engine.core().flush_later(false).await }
    }

    /// The version up to which everything is durable in tables, whatever happens to the WAL.
    pub fn flushed_version(&self) -> Version {
        self.core().flushed_version()
    }

    /// The owner's bytes as of [`Engine::flushed_version`] (see [`WriteBatch::set_owner_state`]).
    pub fn owner_state(&self) -> Option<Vec<u8>> {
        let owner = self.core().manifest().state().owner.to_vec();
        (!owner.is_empty()).then_some(owner)
    }

    /// Compacts everything in the range (`None`: no bound) down to the deepest level that holds some of it, and waits for that.
    ///
    /// # Errors
    /// [`Error::InvertedRange`]; [`Error::InvalidOption`] if the engine was opened with no compaction job; and those of [`Engine::flush`].
    pub fn compact_range(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> Result<()> {
        self.core().compact_range(start, end)
    }

    /// Waits until no compaction is due and what flushes and compactions left behind is removed: tables that nobody reads any more, segments
    /// of the WAL. Writes that go on meanwhile may make it wait longer. An engine that was opened with no compaction job has no compaction
    /// due, ever: then it waits for what is to be removed only. One that is read only has nothing to wait for.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if a compaction found none, which it will try again; [`Error::Poisoned`] if a job failed;
    /// [`Error::Closed`] if the engine is closed meanwhile.
    pub fn wait_for_compactions(&self) -> Result<()> {
        self.core().wait_for_compactions()
    }

    /// What the engine has done and holds. Cheap enough to ask every second.
    pub fn statistics(&self) -> Statistics {
        self.core().statistics()
    }

    /// Reads every live file and checks everything: checksums, order, bounds, level overlap, the manifest against the directory. Returns what
    /// it found; problems are in the report, not an error.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.core().check_open()?;
        verify::verify(self.core())
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.core().dir
    }

    /// Makes everything written durable, stops the background jobs, waits for them, and gives the directory free. Writes and flushes
    /// through other clones get [`Error::Closed`] from then on; reads go on. Without a WAL it flushes.
    ///
    /// # Errors
    /// What the last sync or flush said; the engine is closed all the same. [`Error::Closed`] if it was closed before.
    pub fn close(self) -> Result<()> {
        self.core().close()
    }

    /// As [`Engine::close`], as a future: without a WAL the caller's thread is not held up meanwhile. Dropped before it is ready, it
    /// leaves the engine closed, perhaps without the last flush.
    ///
    /// # Errors
    /// As [`Engine::close`].
    pub async fn close_later(self) -> Result<()> {
        self.core().close_later().await
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("dir", &self.core().dir).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.stop_jobs();
    }
}

/// A pinned version: reads at it give the same answers until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    engine: Engine,
    version: Version,
}

impl Snapshot {
    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The value of a key as of the snapshot.
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.engine.get_at(key, self.version)
    }

    /// A cursor as of the snapshot; the options' version is ignored.
    ///
    /// # Errors
    /// As [`Engine::iter`].
    pub fn iter(&self, options: IterOptions) -> Result<Iter> {
        self.engine.iter(IterOptions { version: Some(self.version), ..options })
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.engine.unpin(self.version);
    }
}

/// How often a writer looks whether the writer lock is free before it sleeps, and for how many pauses it looks away in between: about 10 µs
/// in all, what going to sleep and being woken costs.
const WRITE_LOCK_ATTEMPTS: usize = 30;
const WRITE_LOCK_PAUSES: usize = 10;

impl Core {
    fn write_state(&self) -> MutexGuard<'_, WriteState> {
        // Held for the one to two microseconds of a `pwrite`. The standard lock stops spinning as soon as anybody sleeps, and whoever was
        // woken leaves it marked as contended: two writers then go to sleep and wake each other for every single write.
        for _ in 0..WRITE_LOCK_ATTEMPTS {
            match self.write.try_lock() {
                Ok(state) => return state,
                Err(TryLockError::WouldBlock) => (0..WRITE_LOCK_PAUSES).for_each(|_| std::hint::spin_loop()),
                Err(TryLockError::Poisoned(_)) => break,
            }
        }
        // A writer that panicked has poisoned the engine before it let go of the lock; the state itself is whole.
        self.write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses all writes from now on. The first reason stays.
    fn poison(&self, reason: impl fmt::Display) {
        let reason: Arc<str> = reason.to_string().into();
        reached(Rare::Poisoned);
        // The first reason stays: later failures follow from it.
        let _first = self.poison.set(reason);
        // Told by the keeper: who poisons may hold locks.
        self.jobs.wake_keeper();
        self.progress.notify();
        self.visibility.wake_all();
    }

    fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            Some(reason) => Err(Error::Poisoned { reason: Arc::clone(reason) }),
            None => Ok(()),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Publishes the view that `change` makes of the current one.
    fn change_view(&self, change: impl FnOnce(&View) -> View) {
        let _guard = self.view_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let next = change(&self.view.read());
        self.view.replace(Arc::new(next));
    }

    /// The handle of a table in a changed set of levels; one that only moves keeps its open reader.
    fn table_handle(&self, meta: &crate::manifest::TableMeta) -> Arc<Table> {
        let path = files::table_path(&self.dir, meta.number);
        Table::new(meta.clone(), path, Arc::clone(&self.tables))
    }

    /// Makes an edit durable and publishes it, with the flushed memtables gone from the view.
    fn install(&self, edit: ManifestEdit, flushed: &[Arc<LiveMemtable>]) -> Result<()> {
        self.install_with(edit, |memtables| {
            let stays = |memtable: &&Arc<LiveMemtable>| !flushed.iter().any(|gone| Arc::ptr_eq(gone, memtable));
            memtables.iter().filter(stays).cloned().collect()
        })
    }

    /// The same for tables that did not come from a memtable. The active memtable is empty, nobody writes to it, and the new view gets
    /// another one, so that no write that follows is in a view without these tables.
    fn install_above(&self, edit: ManifestEdit) -> Result<()> {
        let fresh = self.fresh_memtable(0);
        self.install_with(edit, |memtables| {
            debug_assert!(memtables[0].is_idle(), "the gate is closed");
            std::iter::once(fresh).chain(memtables[1..].iter().cloned()).collect()
        })
    }

    fn install_with(
        &self,
        mut edit: ManifestEdit,
        memtables: impl FnOnce(&[Arc<LiveMemtable>]) -> Vec<Arc<LiveMemtable>>,
    ) -> Result<()> {
        let mut manifest = self.manifest();
        // Jobs that run side by side took these numbers at different times; neither goes back.
        edit.next_file_number = Some(self.next_file_number());
        let oldest_readable = manifest.state().oldest_readable;
        edit.oldest_readable = edit.oldest_readable.map(|version| version.max(oldest_readable));
        // An ingestion may have gone ahead of memtables that hold nothing for its range, or nothing at all.
        let state = manifest.state();
        edit.last_version = edit.last_version.map(|version| version.max(state.last_version));
        edit.flushed = edit.flushed.map(|version| version.max(state.flushed));
        garbage::settle(manifest.state(), &mut edit);
        let edit = &edit;
        manifest.apply(edit)?;
        // Before anybody who waits for this edit is told of it: who waits for the keeper next must find it with all there is to do.
        if let Some(start) = edit.wal_start {
            self.jobs.purge_wal_below(WalPosition::from_u64(start));
        }
        self.change_view(|view| {
            for (level, number) in &edit.removed {
                let gone =
                    view.levels.level(usize::from(*level)).tables().iter().find(|table| table.meta.number == *number);
                let stays = edit.added.iter().any(|(_, meta)| meta.number == *number);
                if let (Some(table), false) = (gone, stays) {
                    table.set_obsolete();
                }
            }
            let levels = view.levels.apply::<std::convert::Infallible>(edit, |meta, before| {
                Ok(match before {
                    Some(table) if table.meta == *meta => table,
                    _ => self.table_handle(meta),
                })
            });
            let Ok(levels) = levels;
            let blobs = view.blobs.apply(edit).map_or_else(|| Arc::clone(&view.blobs), Arc::new);
            View::new(memtables(&view.memtables), levels, blobs)
        });
        drop(manifest);
        self.progress.notify();
        self.tell_created(&edit.added, |number| edit.removed.iter().any(|(_, gone)| *gone == number));
        Ok(())
    }

    fn levels(&self) -> Levels<Table> {
        self.view.read().levels.clone()
    }

    /// The number that the next file will get.
    fn next_file_number(&self) -> FileNumber {
        FileNumber(self.next_file_number.load(Ordering::Relaxed))
    }

    /// An iterator had to pass over many entries that it could not show: the range is worth compacting although it is not large.
    fn note_skipped(&self, visible: &VisibleIterator<Source>, skipped: u64) {
        self.counters.skipped(skipped);
        if skipped >= compact::SKIPPED_ENTRIES_WORTH_COMPACTING {
            self.jobs.compaction.hint(visible.first_skipped(), visible.last_skipped(), skipped);
            self.jobs.wake_compactions();
            self.jobs.note_tombstones_passed(skipped);
        }
    }
}
