//! [`TableCache`]: bounds how many tables and blob files are open.
//!
//! A table or blob file is opened when it is first read and stays open, with its index and filter in memory, until there are more than
//! [`Options::max_open_files`](crate::Options::max_open_files); then those go that were not used for longest, and are opened again when they are
//! next read. Recency is the clock algorithm's: a use sets a flag; whoever is oldest goes if its flag is clear, and else the flag is cleared and it is
//! the youngest. So a read costs a load of a flag that is nearly always set, and a scan over everything drives out what was read once.
//!
//! A reader that somebody holds (an iterator, a compaction, a read in this moment) stays open until that is done with it, whatever the limit. So the
//! descriptors of the engine are at most the limit, what iterators and jobs hold (a table per level and one per table of L0), the WAL's
//! segments, and what is being written.
//!
//! # Invariants
//! - A file's blocks have the same cache id for as long as its handle lives, so what is cached of a closed file is found again.
//! - `open` is the number of handles whose file is open here.
//!
//! # Concurrency
//! Any thread. The ring's lock is taken when a file is opened, never to use an open one, and not while a file is opened or closed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, Weak};

/// An open file that can be closed.
pub(crate) trait Closable: Send + Sync {
    /// True if it was used since this was last asked.
    fn take_used(&self) -> bool;

    /// Closes the file, unless that has been done.
    fn close(&self);
}

pub(crate) struct TableCache {
    limit: usize,
    open: AtomicUsize,
    /// Oldest first. Handles that were dropped stay until they are met.
    ring: Mutex<VecDeque<Weak<dyn Closable>>>,
}

impl TableCache {
    pub(crate) fn new(limit: usize) -> TableCache {
        TableCache { limit, open: AtomicUsize::new(0), ring: Mutex::new(VecDeque::new()) }
    }

    /// The files that are open.
    pub(crate) fn open_files(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A handle has opened its file: others are closed to make room.
    pub(crate) fn opened(&self, handle: Weak<dyn Closable>) {
        let mut excess = (self.open.fetch_add(1, Ordering::Relaxed) + 1).saturating_sub(self.limit);
        let mut close = Vec::new();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // Each flag is cleared once at most: the second round finds someone.
        let mut looks = 2 * ring.len();
        while excess > 0
            && looks > 0
            && let Some(oldest) = ring.pop_front()
        {
            looks -= 1;
            let Some(file) = oldest.upgrade() else { continue };
            if file.take_used() {
                ring.push_back(oldest);
            } else {
                close.push(file);
                excess -= 1;
            }
        }
        ring.push_back(handle);
        if ring.len() > 2 * self.limit + 64 {
            ring.retain(|handle| handle.strong_count() > 0);
        }
        drop(ring);
        // Without the lock: the last handle of a file queues it for removal.
        close.iter().for_each(|file| file.close());
    }

    /// A handle has closed its file, or ended with it open.
    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    struct File {
        used: AtomicBool,
        open: AtomicBool,
        cache: Arc<TableCache>,
    }

    impl Closable for File {
        fn take_used(&self) -> bool {
            self.used.swap(false, Ordering::Relaxed)
        }

        fn close(&self) {
            assert!(self.open.swap(false, Ordering::Relaxed), "closed once");
            self.cache.closed();
        }
    }

    /// The limit holds; what was used since it was last looked at outlives what was not; a dropped handle takes no place.
    #[test]
    fn the_least_recently_used_go() {
        let cache = Arc::new(TableCache::new(3));
        let open = || {
            let file =
                Arc::new(File { used: AtomicBool::new(false), open: AtomicBool::new(true), cache: Arc::clone(&cache) });
            let weak: Weak<File> = Arc::downgrade(&file);
            cache.opened(weak);
            file
        };
        let is_open = |file: &Arc<File>| file.open.load(Ordering::Relaxed);
        let files = [open(), open(), open()];
        files[0].used.store(true, Ordering::Relaxed);
        let fourth = open();
        assert_eq!((cache.open_files(), files.each_ref().map(is_open)), (3, [true, false, true]));
        let [first, _, third] = files;
        cache.closed();
        drop(third);
        let fifth = open();
        assert_eq!((cache.open_files(), is_open(&first)), (3, true));
        fourth.used.store(true, Ordering::Relaxed);
        let _sixth = open();
        assert!(!is_open(&first) && is_open(&fourth) && is_open(&fifth), "the first was not used again");
    }
}
