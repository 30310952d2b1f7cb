//! [`EpochCell`]: a pointer that many threads read and few replace, without a counter that all readers share.
//!
//! A reader announces itself in one of 64 padded counters, chosen by its thread, loads the pointer, and withdraws when it is done.
//! Whoever replaces the pointer keeps the old object until it has seen **each** counter at zero at least once after the swap: a
//! reader that still held the old object would have kept its counter above zero. This is sleepable read-copy-update (McKenney, SRCU) with the
//! two-phase flip left out: counters are per thread in practice, so each is soon seen at zero, and nothing but memory waits for it.
//!
//! Reclamation is never asynchronous: objects are dropped inside [`EpochCell::replace`] or [`EpochCell::reclaim`], by the caller. With one thread that is at
//! once, so a simulated run does not depend on anybody's garbage collector (the reason why this is not crossbeam-epoch).
//!
//! # Invariants
//! - The current object is owned by the cell through one `Arc` count.
//! - A retired object is dropped only after each counter was zero at some moment after the object was replaced.
//!
//! # Concurrency
//! `read` from any thread, wait-free. `replace` and `reclaim` serialise on a mutex that readers never touch. `loom_tests` has every
//! interleaving of readers and a replacement.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr;
// For what is static: a model checker's own atomics live no longer than one of its runs.
use std::sync::atomic::{AtomicUsize as StaticUsize, Ordering as StaticOrdering};
use std::sync::{Arc, PoisonError};

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

#[cfg(all(test, loom))]
mod loom_tests;

/// One bit of a `u64` mask for each counter.
const STRIPES: usize = if cfg!(loom) { 2 } else { 64 };

/// A counter on a cache line of its own (two lines: adjacent-line prefetch couples neighbours).
#[repr(align(128))]
#[derive(Default)]
struct Stripe(AtomicUsize);

/// A replaceable shared object. See the head of the file.
pub(crate) struct EpochCell<T> {
    current: AtomicPtr<T>,
    stripes: Box<[Stripe; STRIPES]>,
    retired: Mutex<Vec<Retired<T>>>,
}

struct Retired<T> {
    // Held only to be dropped.
    object: Arc<T>,
    /// A bit for each counter not yet seen at zero since the object was replaced.
    unseen: u64,
}

/// A reader's hold on the object that was current when it was taken. Keep it short: it delays reclamation.
pub(crate) struct EpochGuard<'a, T> {
    object: &'a T,
    stripe: &'a AtomicUsize,
}

impl<T> EpochCell<T> {
    pub(crate) fn new(object: Arc<T>) -> EpochCell<T> {
        EpochCell {
            current: AtomicPtr::new(Arc::into_raw(object).cast_mut()),
            stripes: Box::new(std::array::from_fn(|_| Stripe::default())),
            retired: Mutex::new(Vec::new()),
        }
    }

    /// The current object, borrowed.
    #[inline]
    pub(crate) fn read(&self) -> EpochGuard<'_, T> {
        self.read_as(stripe_of_this_thread())
    }

    /// As [`EpochCell::read`], announced in that counter.
    #[inline]
    fn read_as(&self, stripe: usize) -> EpochGuard<'_, T> {
        let stripe = &self.stripes[stripe].0;
        // SeqCst here and in `replace`: either the reclaimer sees this count, or this reader sees the swapped pointer.
        stripe.fetch_add(1, Ordering::SeqCst);
        loom_fence();
        let object = self.current.load(Ordering::SeqCst);
        // SAFETY: `object` was current after our count went up. It is dropped only after this counter was seen at zero
        // after it was replaced, and the guard keeps the counter above zero as long as the reference lives.
        let object = unsafe { &*object };
        EpochGuard { object, stripe }
    }

    /// The current object with a count of its own, for holders that stay long (iterators).
    pub(crate) fn load(&self) -> Arc<T> {
        self.load_as(stripe_of_this_thread())
    }

    /// As [`EpochCell::load`], announced in that counter.
    fn load_as(&self, stripe: usize) -> Arc<T> {
        let guard = self.read_as(stripe);
        let object: *const T = guard.object;
        // SAFETY: the pointer came from Arc::into_raw and the guard keeps the cell's own count alive meanwhile.
        unsafe {
            Arc::increment_strong_count(object);
            Arc::from_raw(object)
        }
    }

    /// Replaces the object. The old one is dropped as soon as no reader can hold it: now, or in a later `replace` or `reclaim`.
    pub(crate) fn replace(&self, object: Arc<T>) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current.swap(Arc::into_raw(object).cast_mut(), Ordering::SeqCst);
        loom_fence();
        // SAFETY: the pointer came from Arc::into_raw in `new` or here, and the swap made this the only owner of its count.
        let old = unsafe { Arc::from_raw(old.cast_const()) };
        retired.push(Retired { object: old, unseen: u64::MAX });
        let free = self.collect(&mut retired);
        drop(retired);
        // Dropped outside the lock: the last handle of a table may queue its file for removal.
        drop(free);
    }

    /// Drops what no reader can hold any more, and says how many retired objects remain.
    pub(crate) fn reclaim(&self) -> usize {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.collect(&mut retired);
        let remaining = retired.len();
        drop(retired);
        drop(free);
        remaining
    }

    fn collect(&self, retired: &mut Vec<Retired<T>>) -> Vec<Arc<T>> {
        let mut busy = 0u64;
        for (index, stripe) in self.stripes.iter().enumerate() {
            busy |= u64::from(stripe.0.load(Ordering::SeqCst) != 0) << index;
        }
        let mut free = Vec::new();
        let mut index = 0;
        while index < retired.len() {
            retired[index].unseen &= busy;
            if retired[index].unseen == 0 {
                free.push(retired.remove(index).object);
            } else {
                index += 1;
            }
        }
        free
    }
}

impl<T> Drop for EpochCell<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Relaxed);
        debug_assert!(!ptr::eq(current, ptr::null()), "the cell always holds an object");
        // SAFETY: the cell owns one count of the current object, and guards borrow the cell, so none is left.
        drop(unsafe { Arc::from_raw(current.cast_const()) });
    }
}

// SAFETY: the cell shares `T` between threads (Sync) and drops it on any of them (Send).
unsafe impl<T: Send + Sync> Send for EpochCell<T> {}
// SAFETY: as above; all of the cell's own state is atomic or behind a mutex.
unsafe impl<T: Send + Sync> Sync for EpochCell<T> {}

impl<T> Deref for EpochGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.object
    }
}

impl<T> Drop for EpochGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: our reads of the object come before the count goes down.
        self.stripe.fetch_sub(1, Ordering::Release);
    }
}

/// loom treats a SeqCst access as AcqRel and only a fence as sequentially consistent, so it wants one where the order of the
/// accesses on either side matters. Elsewhere the accesses themselves are enough.
#[inline(always)]
fn loom_fence() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// Threads take the counters in turn; two share one only above 64 threads.
#[inline]
fn stripe_of_this_thread() -> usize {
    static NEXT: StaticUsize = StaticUsize::new(0);
    thread_local! {
        static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    STRIPE.with(|stripe| {
        let mut index = stripe.get();
        if index == usize::MAX {
            index = NEXT.fetch_add(1, StaticOrdering::Relaxed) % STRIPES;
            stripe.set(index);
        }
        index
    })
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Alone, a replaced object is dropped at once; under a reader, only after the reader let go.
    #[test]
    fn an_object_outlives_its_readers_and_not_more() {
        let cell = EpochCell::new(Arc::new(1));
        let first = Arc::downgrade(&cell.load());
        let guard = cell.read();
        cell.replace(Arc::new(2));
        assert_eq!((*guard, *cell.read()), (1, 2));
        assert!(first.upgrade().is_some(), "the guard still reads it");
        assert_eq!(cell.reclaim(), 1);
        drop(guard);
        assert_eq!(cell.reclaim(), 0);
        assert!(first.upgrade().is_none(), "nobody can read it any more");
        let second = Arc::downgrade(&cell.load());
        cell.replace(Arc::new(3));
        assert!(second.upgrade().is_none());
    }

    /// Readers on several threads never see an object that was dropped.
    #[test]
    fn readers_race_with_replacement() {
        struct Canary(AtomicBool);
        impl Drop for Canary {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let cell = EpochCell::new(Arc::new(Canary(AtomicBool::new(false))));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let guard = cell.read();
                        for _ in 0..20 {
                            assert!(!guard.0.load(Ordering::SeqCst), "read after drop");
                        }
                    }
                });
            }
            for _ in 0..20_000 {
                cell.replace(Arc::new(Canary(AtomicBool::new(false))));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(cell.reclaim(), 0);
    }
}
