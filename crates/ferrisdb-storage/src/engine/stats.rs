//! What the engine counts, and [`Statistics`], what it tells.
//!
//! Counters of the write path and of jobs are plain relaxed atomics: they are touched once per batch or less. Reads count nothing here; the
//! block cache counts its own hits and misses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferrisdb_core::Version;

use super::Core;
use crate::batch::WriteBatch;
use crate::cache::CacheStatistics;
use crate::levels::LEVELS;
use crate::manifest::FileNumber;

/// Numbers about an engine at one moment. Counters begin at zero when it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The newest version that readers see.
    pub visible_version: Version,
    /// Everything up to this version is durable in tables.
    pub flushed_version: Version,
    /// The oldest version that readers may ask for without a pin.
    pub oldest_readable_version: Version,
    /// Pinned versions.
    pub pinned_versions: usize,
    /// Batches written.
    pub batches: u64,
    /// Operations in them.
    pub operations: u64,
    /// Their encoded bytes.
    pub batch_bytes: u64,
    /// Memtables, the active one included.
    pub memtables: usize,
    /// Bytes in memtables.
    pub memtable_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Bytes that flushes wrote, blob files included.
    pub flushed_bytes: u64,
    /// Compactions done, trivial moves and dropped tables not counted.
    pub compactions: u64,
    /// Bytes that compactions read, values that were left in their blob files not counted.
    pub compaction_read_bytes: u64,
    /// Bytes that compactions wrote, blob files included.
    pub compaction_written_bytes: u64,
    /// Blob files.
    pub blob_files: usize,
    /// Bytes of blob files, garbage included.
    pub blob_bytes: u64,
    /// Bytes in blob files that no table refers to any more.
    pub blob_garbage_bytes: u64,
    /// Bytes in blob files that compactions moved to others, to empty those that were mostly garbage.
    pub blob_relocated_bytes: u64,
    /// Tables that only changed their level.
    pub trivial_moves: u64,
    /// Tables removed without being read, because a range tombstone covered them.
    pub tables_dropped: u64,
    /// Ingestions done.
    pub ingestions: u64,
    /// Bytes of the tables that they added.
    pub ingested_bytes: u64,
    /// Bytes that compactions still have to move until every level has its size.
    pub pending_compaction_bytes: u64,
    /// Writes that were delayed, and for how long in all.
    pub delayed_writes: u64,
    /// Time that writes were delayed, in all.
    pub delayed: Duration,
    /// Writes that had to wait for a flush or a compaction.
    pub stalled_writes: u64,
    /// Time that writes waited, in all.
    pub stalled: Duration,
    /// The longest such wait.
    pub longest_stall: Duration,
    /// Tombstones and hidden entries that iterators passed over.
    pub skipped_entries: u64,
    /// Background attempts that failed for want of space and will be tried again.
    pub background_retries: u64,
    /// Obsolete files that could not be removed; the next open tries again.
    pub unremoved_files: u64,
    /// Why writes are refused, if they are.
    pub poisoned: Option<String>,
    /// Tables and blob files that are open.
    pub open_files: usize,
    /// The block cache.
    pub cache: CacheStatistics,
    /// The levels.
    pub levels: [LevelStatistics; LEVELS],
}

/// One level at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LevelStatistics {
    /// Tables.
    pub tables: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// Point entries, tombstones included.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters { $($name: AtomicU64,)* }
    };
}

counters!(
    batches,
    operations,
    batch_bytes,
    flushes,
    flushed_bytes,
    compactions,
    compaction_read_bytes,
    compaction_written_bytes,
    blob_relocated_bytes,
    trivial_moves,
    tables_dropped,
    ingestions,
    ingested_bytes,
    pending_compaction_bytes,
    delayed_writes,
    delayed_nanos,
    stalled_writes,
    stalled_nanos,
    longest_stall_nanos,
    skipped_entries,
    background_retries,
    unremoved_files
);

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Counters {
    #[inline]
    pub(super) fn wrote(&self, batch: &WriteBatch) {
        add(&self.batches, 1);
        add(&self.operations, batch.len() as u64);
        add(&self.batch_bytes, batch.encoded_bytes() as u64);
    }

    pub(super) fn flushed(&self, bytes: u64) {
        add(&self.flushes, 1);
        add(&self.flushed_bytes, bytes);
    }

    pub(super) fn compacted(&self, read: u64, written: u64) {
        add(&self.compactions, 1);
        add(&self.compaction_read_bytes, read);
        add(&self.compaction_written_bytes, written);
    }

    pub(super) fn relocated(&self, bytes: u64) {
        add(&self.blob_relocated_bytes, bytes);
    }

    pub(super) fn moved(&self, tables: u64) {
        add(&self.trivial_moves, tables);
    }

    pub(super) fn dropped(&self, tables: u64) {
        add(&self.tables_dropped, tables);
    }

    pub(super) fn ingested(&self, bytes: u64) {
        add(&self.ingestions, 1);
        add(&self.ingested_bytes, bytes);
    }

    pub(super) fn set_pending(&self, bytes: u64) {
        self.pending_compaction_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn pending(&self) -> u64 {
        self.pending_compaction_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn delayed(&self, delay: Duration) {
        add(&self.delayed_writes, 1);
        add(&self.delayed_nanos, nanos(delay));
    }

    pub(super) fn stalled(&self, wait: Duration) {
        add(&self.stalled_writes, 1);
        add(&self.stalled_nanos, nanos(wait));
        self.longest_stall_nanos.fetch_max(nanos(wait), Ordering::Relaxed);
    }

    pub(super) fn skipped(&self, entries: u64) {
        add(&self.skipped_entries, entries);
    }

    pub(super) fn unremoved(&self) {
        add(&self.unremoved_files, 1);
    }

    pub(super) fn retried(&self) {
        add(&self.background_retries, 1);
    }
}

impl Core {
    pub(super) fn statistics(&self) -> Statistics {
        let counters = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let flushed_version = self.flushed_version();
        let view = self.view.read();
        let blobs = view.blobs.totals();
        let levels = std::array::from_fn(|level| {
            let tables = view.levels.level(level).tables();
            LevelStatistics {
                tables: tables.len(),
                bytes: view.levels.level(level).bytes(),
                entries: tables.iter().map(|table| table.meta.entries).sum(),
                tombstones: tables.iter().map(|table| table.meta.tombstones).sum(),
            }
        });
        Statistics {
            visible_version: self.visibility.visible(),
            flushed_version,
            oldest_readable_version: self.versions.floor(),
            pinned_versions: self.versions.pinned().len(),
            batches: get(&counters.batches),
            operations: get(&counters.operations),
            batch_bytes: get(&counters.batch_bytes),
            memtables: view.memtables.len(),
            memtable_bytes: view.memtables.iter().map(|memtable| memtable.entries.memory_bytes() as u64).sum(),
            flushes: get(&counters.flushes),
            flushed_bytes: get(&counters.flushed_bytes),
            compactions: get(&counters.compactions),
            compaction_read_bytes: get(&counters.compaction_read_bytes),
            compaction_written_bytes: get(&counters.compaction_written_bytes),
            blob_files: blobs.files,
            blob_bytes: blobs.file_bytes,
            blob_garbage_bytes: blobs.garbage_bytes,
            blob_relocated_bytes: get(&counters.blob_relocated_bytes),
            trivial_moves: get(&counters.trivial_moves),
            tables_dropped: get(&counters.tables_dropped),
            ingestions: get(&counters.ingestions),
            ingested_bytes: get(&counters.ingested_bytes),
            pending_compaction_bytes: get(&counters.pending_compaction_bytes),
            delayed_writes: get(&counters.delayed_writes),
            delayed: Duration::from_nanos(get(&counters.delayed_nanos)),
            stalled_writes: get(&counters.stalled_writes),
            stalled: Duration::from_nanos(get(&counters.stalled_nanos)),
            longest_stall: Duration::from_nanos(get(&counters.longest_stall_nanos)),
            skipped_entries: get(&counters.skipped_entries),
            background_retries: get(&counters.background_retries),
            unremoved_files: get(&counters.unremoved_files),
            poisoned: self.poison.get().map(|reason| reason.to_string()),
            open_files: self.tables.open_files.open_files(),
            cache: self.cache.statistics(),
            levels,
        }
    }

    pub(super) fn flushed_version(&self) -> Version {
        self.manifest().state().flushed
    }

    /// The number for a new file. Edits say how far numbers were used.
    pub(super) fn allocate_file_number(&self) -> FileNumber {
        FileNumber(self.next_file_number.fetch_add(1, Ordering::Relaxed))
    }
}
