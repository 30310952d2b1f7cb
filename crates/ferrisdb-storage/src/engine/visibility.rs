//! [`Visibility`]: how far readers may see.
//!
//! Writers take their versions in order, under the writer lock, and then insert into the memtable side by side. A version may become
//! visible only when it and all before it have been inserted: otherwise a reader could see a later batch without an earlier one. Each
//! writer therefore has a place in a ring; it marks its place done, and whoever finds the oldest place done advances
//! past it (the commit pipeline is Pebble's, without its queue lock).
//!
//! # Invariants
//! - `visible` never goes down, and every version at or below it is wholly in the memtables.
//! - A place is reused only after it was passed: at most [`PLACES`] writers are between `enter` and `finish`.
//!
//! # Concurrency
//! `enter` under the writer lock only. `finish` from any thread, lock-free. Waiting registers a waker behind a mutex that nobody touches
//! while nobody waits.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::task::Waker;

use ferrisdb_core::Version;

/// Writers between taking a version and having inserted it: each is a thread in the middle of a call, so a process would need
/// as many threads to meet the limit.
const PLACES: usize = 4096;

pub(crate) struct Visibility {
    visible: AtomicU64,
    /// Tickets handed out; only under the writer lock.
    entered: AtomicU64,
    /// Tickets passed.
    passed: AtomicU64,
    places: Box<[Place]>,
    waiting: AtomicU64,
    wakers: Mutex<Vec<(Version, Waker)>>,
}

#[derive(Default)]
struct Place {
    version: AtomicU64,
    /// The ticket plus one, once its writer has finished.
    done: AtomicU64,
}

/// A writer's place in the order. It must be finished, whatever happens: readers wait behind it.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Turn {
    ticket: u64,
    pub(crate) version: Version,
}

impl Visibility {
    pub(crate) fn new(visible: Version) -> Visibility {
        Visibility {
            visible: AtomicU64::new(visible.get()),
            entered: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            places: (0..PLACES).map(|_| Place::default()).collect(),
            waiting: AtomicU64::new(0),
            wakers: Mutex::new(Vec::new()),
        }
    }

    /// The newest version that readers may see.
    #[inline]
    pub(crate) fn visible(&self) -> Version {
        Version::from_u64(self.visible.load(Ordering::Acquire))
    }

    /// True if [`Visibility::enter`] will give a place. Only under the writer lock.
    pub(crate) fn has_room(&self) -> bool {
        self.entered.load(Ordering::Relaxed) - self.passed.load(Ordering::Acquire) < PLACES as u64
    }

    /// Takes the next place, for `version`, which is greater than all before. Only under the writer lock. `None` if
    /// too many writers are under way.
    pub(crate) fn enter(&self, version: Version) -> Option<Turn> {
        let ticket = self.entered.load(Ordering::Relaxed);
        if !self.has_room() {
            return None;
        }
        self.place(ticket).version.store(version.get(), Ordering::Relaxed);
        self.entered.store(ticket + 1, Ordering::Relaxed);
        Some(Turn { ticket, version })
    }

    /// Says that the writer's operations are in the memtable, and advances as far as possible.
    pub(crate) fn finish(&self, turn: Turn) {
        // Release: our inserts come before the mark, and so before whoever advances past it.
        self.place(turn.ticket).done.store(turn.ticket + 1, Ordering::Release);
        let mut advanced = false;
        loop {
            let head = self.passed.load(Ordering::Acquire);
            let place = self.place(head);
            if place.done.load(Ordering::Acquire) != head + 1 {
                break;
            }
            // If somebody else passes this place meanwhile and it is reused, the version read here is wrong, and the exchange fails.
            let version = place.version.load(Ordering::Relaxed);
            if self.passed.compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.visible.fetch_max(version, Ordering::AcqRel);
                advanced = true;
            }
        }
        if advanced {
            // Either the waiter's registration is seen here, or the waiter sees the new version after registering.
            fence(Ordering::SeqCst);
            if self.waiting.load(Ordering::Relaxed) != 0 {
                self.wake();
            }
        }
    }

    /// True once `version` is visible; otherwise the waker is woken when that may have changed.
    pub(crate) fn poll_visible(&self, version: Version, waker: &Waker) -> bool {
        if self.visible() >= version {
            return true;
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|(at, other)| *at == version && other.will_wake(waker)) {
            wakers.push((version, waker.clone()));
        }
        self.waiting.store(wakers.len() as u64, Ordering::Relaxed);
        drop(wakers);
        fence(Ordering::SeqCst);
        self.visible() >= version
    }

    /// Wakes everyone who waits, reached or not: on advancing, and when the engine stops.
    pub(crate) fn wake_all(&self) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let all = std::mem::take(&mut *wakers);
        self.waiting.store(0, Ordering::Relaxed);
        drop(wakers);
        all.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn wake(&self) {
        let visible = self.visible();
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = Vec::new();
        wakers.retain(|(version, waker)| {
            let wait = *version > visible;
            if !wait {
                reached.push(waker.clone());
            }
            wait
        });
        self.waiting.store(wakers.len() as u64, Ordering::Relaxed);
        drop(wakers);
        reached.into_iter().for_each(Waker::wake);
    }

    #[inline]
    fn place(&self, ticket: u64) -> &Place {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder below PLACES always fits")]
        let index = (ticket % PLACES as u64) as usize;
        &self.places[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A later writer that finishes first is seen only with the earlier one.
    #[test]
    fn versions_become_visible_in_order() {
        let visibility = Visibility::new(Version::from_u64(5));
        let first = visibility.enter(Version::from_u64(7)).unwrap();
        let second = visibility.enter(Version::from_u64(9)).unwrap();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        assert!(!visibility.poll_visible(second.version, &waker));
        visibility.finish(second);
        assert_eq!((visibility.visible(), count.0.load(Ordering::SeqCst)), (Version::from_u64(5), 0));
        visibility.finish(first);
        assert_eq!((visibility.visible(), count.0.load(Ordering::SeqCst)), (Version::from_u64(9), 1));
        assert!(visibility.poll_visible(second.version, &waker));
    }

    /// The ring refuses a writer rather than overwrite a place in use, and goes round many times.
    #[test]
    fn the_ring_is_bounded() {
        let visibility = Visibility::new(Version::ZERO);
        let turns: Vec<Turn> = (1..=PLACES as u64).map(|v| visibility.enter(Version::from_u64(v)).unwrap()).collect();
        assert!(visibility.enter(Version::MAX).is_none());
        turns.into_iter().rev().for_each(|turn| visibility.finish(turn));
        assert_eq!(visibility.visible().get(), PLACES as u64);
        for v in PLACES as u64 + 1..4 * PLACES as u64 {
            let turn = visibility.enter(Version::from_u64(v)).unwrap();
            visibility.finish(turn);
            assert_eq!(visibility.visible().get(), v);
        }
    }

    /// Many threads: what is visible is always wholly done.
    #[test]
    fn threads_never_see_a_gap() {
        let visibility = Visibility::new(Version::ZERO);
        let done: Vec<AtomicU64> = (0..20_001).map(|_| AtomicU64::new(0)).collect();
        done[0].store(1, Ordering::Relaxed);
        let lock = Mutex::new(1u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let mut next = lock.lock().unwrap();
                        if *next > 20_000 {
                            break;
                        }
                        // Full, while the owner of the oldest place does not get a processor: writers wait then.
                        let Some(turn) = visibility.enter(Version::from_u64(*next)) else {
                            drop(next);
                            std::thread::yield_now();
                            continue;
                        };
                        *next += 1;
                        drop(next);
                        done[turn.version.get() as usize].store(1, Ordering::Relaxed);
                        visibility.finish(turn);
                        let visible = visibility.visible().get() as usize;
                        assert_eq!(done[visible].load(Ordering::Relaxed), 1);
                        assert_eq!(done[visible / 2].load(Ordering::Relaxed), 1);
                    }
                });
            }
        });
        assert_eq!(visibility.visible().get(), 20_000);
    }
}
