//! The range tombstones of a memtable.
//!
//! Readers want fragments ([`FragmentList`]); writers add one tombstone at a time. Fragmenting everything anew after each
//! insertion costs O(n) per insertion or per read, which is what RocksDB did (issue 4808, pull requests 10380 and 10547) and Pebble
//! does. Here the logarithmic method does it (Bentley and Saxe 1980): tombstones live in runs, each twice as large as the next; an
//! insertion makes a run of one, and two runs of one size become one. So each tombstone is fragmented O(log n) times, and a lookup asks
//! O(log n) runs, the large old ones first.
//!
//! # Memory
//! n tombstones that all overlap make up to n² / 2 fragment versions: a queue that is trimmed by ever longer deletes does that
//! (RocksDB issue 11407 ran out of memory in flush and again in recovery). [`RangeTombstones::memory_bytes`] counts the fragments
//! themselves, so the engine rotates the memtable before this hurts: one of 64 MiB after about four thousand such deletes.
//!
//! # Invariants
//! - The sizes of runs fall strictly, and each is a power of two: they are the binary digits of their number.
//! - A published set of runs never changes.
//!
//! # Concurrency
//! Readers take no lock: they reach the runs over an [`EpochCell`], and without any tombstone they read one flag. Insertions
//! queue on a mutex; range deletes are rare. The cell, with its counters of 8 KiB, is made by the first of them: most memtables never
//! have one.

use std::sync::{Arc, OnceLock};

use ferrisdb_core::Version;

use crate::epoch::EpochCell;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::tombstone::{FragmentList, RangeTombstone};

/// What is published: unchanging but for the merged list, which is made when somebody first asks.
#[derive(Debug, Default)]
struct Runs {
    /// Largest, and so oldest, first.
    runs: Vec<Run>,
    merged: OnceLock<Arc<FragmentList>>,
}

#[derive(Debug, Clone)]
struct Run {
    /// How many tombstones went in.
    count: usize,
    fragments: Arc<FragmentList>,
}

impl Runs {
    /// With one more tombstone.
    fn with(&self, tombstone: &RangeTombstone) -> Runs {
        let one = (&*tombstone.start, &*tombstone.end, tombstone.version);
        // As in a binary counter: all runs that the carry passes are merged at once.
        let mut carried = 1;
        let mut kept = self.runs.len();
        while kept > 0 && self.runs[kept - 1].count == carried {
            carried *= 2;
            kept -= 1;
        }
        let merged = self.runs[kept..].iter().flat_map(|run| run.fragments.tombstones()).chain([one]);
        let fragments = Arc::new(FragmentList::new(merged));
        let mut runs = self.runs[..kept].to_vec();
        runs.push(Run { count: carried, fragments });
        Runs { runs, merged: OnceLock::new() }
    }

    fn count(&self) -> usize {
        self.runs.iter().map(|run| run.count).sum()
    }

    fn memory_bytes(&self) -> usize {
        self.runs.iter().map(|run| run.fragments.memory_bytes()).sum()
    }

    fn merged(&self) -> &Arc<FragmentList> {
        self.merged.get_or_init(|| match &self.runs[..] {
            [only] => Arc::clone(&only.fragments),
            runs => Arc::new(FragmentList::new(runs.iter().flat_map(|run| run.fragments.tombstones()))),
        })
    }

    fn check(&self) {
        assert!(self.runs.is_sorted_by(|a, b| a.count > b.count), "sizes of runs fall strictly");
        assert!(self.runs.iter().all(|run| run.count.is_power_of_two()), "sizes of runs are powers of two");
        self.runs.iter().for_each(|run| run.fragments.check());
    }
}

/// See the module.
pub(super) struct RangeTombstones {
    /// Set by the first insertion, and never empty of tombstones. Its owner publishes a version after inserting its tombstones, and a
    /// reader asks at a published version, so a reader that finds it unset may not see any tombstone.
    runs: OnceLock<EpochCell<Runs>>,
    memory_bytes: AtomicUsize,
    inserting: Mutex<()>,
}

impl RangeTombstones {
    pub(super) fn new() -> RangeTombstones {
        RangeTombstones { runs: OnceLock::new(), memory_bytes: AtomicUsize::new(0), inserting: Mutex::new(()) }
    }

    /// True before the first insertion.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.runs.get().is_none()
    }

    /// How many were inserted.
    pub(super) fn count(&self) -> usize {
        self.runs.get().map_or(0, |runs| runs.read().count())
    }

    /// Bytes of memory that the fragments take.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn insert(&self, tombstone: &RangeTombstone) {
        let _inserting = self.inserting.lock().expect("no insertion panics: it only allocates and compares");
        let cell = self.runs.get();
        let runs = cell.map_or_else(Arc::default, EpochCell::load).with(tombstone);
        if cfg!(debug_assertions) {
            runs.check();
        }
        self.memory_bytes.store(runs.memory_bytes(), Ordering::Relaxed);
        match cell {
            Some(cell) => cell.replace(Arc::new(runs)),
            None => {
                self.runs.get_or_init(|| EpochCell::new(Arc::new(runs)));
            }
        }
    }

    /// The newest tombstone over `user_key` that a reader at `at` sees.
    #[inline]
    pub(super) fn newest_covering(&self, user_key: &[u8], at: Version) -> Option<Version> {
        let runs = self.runs.get()?.read();
        runs.runs.iter().filter_map(|run| run.fragments.newest_covering(user_key, at)).max()
    }

    /// All of them in one list; `None` without any. Made once per insertion that is followed by a call: O(n log n).
    pub(super) fn merged(&self) -> Option<Arc<FragmentList>> {
        // With a count of its own: a guard would delay reclamation for as long as the merge takes.
        Some(Arc::clone(self.runs.get()?.load().merged()))
    }

    /// All of them in O(log n) lists, without work.
    pub(super) fn runs(&self) -> Vec<Arc<FragmentList>> {
        let Some(cell) = self.runs.get() else { return Vec::new() };
        cell.read().runs.iter().map(|run| Arc::clone(&run.fragments)).collect()
    }

    pub(super) fn check(&self) {
        if let Some(cell) = self.runs.get() {
            let runs = cell.read();
            runs.check();
            assert!(!runs.runs.is_empty(), "the cell is made by the first insertion");
        }
    }
}
