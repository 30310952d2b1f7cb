//! [`EpochCell`]: a pointer that many threads read and few replace, without a counter that all readers share; and [`EpochSlot`]: an object
//! that may be taken away, which the same readers borrow at no further cost.
//!
//! Both belong to an [`Epoch`]. A reader announces itself in one of 64 padded counters, chosen by its thread, loads the pointer, and withdraws when it is done.
//! Whoever replaces the pointer keeps the old object until it has seen **each** counter at zero at least once after the swap: a
//! reader that still held the old object would have kept its counter above zero. This is sleepable read-copy-update (McKenney, SRCU) with the
//! two-phase flip left out: counters are per thread in practice, so each is soon seen at zero, and nothing but memory waits for it.
//!
//! Reclamation is never asynchronous: objects are dropped inside [`EpochCell::replace`] or [`EpochCell::reclaim`], by the caller. With one thread that is at
//! once, so a simulated run does not depend on anybody's garbage collector (the reason why this is not crossbeam-epoch).
//!
//! # Invariants
//! - The current object is owned by the cell through one `Arc` count, and so is a slot's by the slot.
//! - A retired object is dropped only after each counter was zero at some moment after the object was replaced or taken away.
//!
//! # Concurrency
//! `read` and `borrow` from any thread, wait-free. `replace`, `take` and `reclaim` serialise on a mutex that readers never touch.
//! `loom_tests` has every interleaving of readers and a replacement.

use std::any::Any;
use std::cell::Cell;
use std::ops::Deref;
use std::ptr;
// For what is static: a model checker's own atomics live no longer than one of its runs.
use std::sync::atomic::{AtomicUsize as StaticUsize, Ordering as StaticOrdering};
use std::sync::{Arc, PoisonError};

use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

#[cfg(all(test, loom))]
mod loom_tests;

/// One bit of a `u64` mask for each counter.
const STRIPES: usize = if cfg!(loom) { 2 } else { 64 };

/// A counter on a cache line of its own (two lines: adjacent-line prefetch couples neighbours).
#[repr(align(128))]
#[derive(Default)]
struct Stripe(AtomicUsize);

/// The readers of some cells and slots, and what waits for them.
pub(crate) struct Epoch {
    stripes: [Stripe; STRIPES],
    retired: Mutex<Vec<Retired>>,
}

struct Retired {
    // Held only to be dropped.
    object: Arc<dyn Any + Send + Sync>,
    /// A bit for each counter not yet seen at zero since the object was replaced.
    unseen: u64,
}

/// A replaceable shared object. See the head of the file.
pub(crate) struct EpochCell<T> {
    current: AtomicPtr<T>,
    epoch: Arc<Epoch>,
}

/// Room for a shared object that may be put there and taken away again.
pub(crate) struct EpochSlot<T> {
    /// What readers borrow. Invariant: null, or what `owner` holds, or for a moment what it has just let go of.
    shown: AtomicPtr<T>,
    owner: Mutex<Option<Arc<T>>>,
    epoch: Arc<Epoch>,
}

/// A reader's hold on the object that was current when it was taken, and on what it borrows meanwhile. Keep it short: it delays reclamation.
pub(crate) struct EpochGuard<'a, T> {
    object: &'a T,
    stripe: &'a AtomicUsize,
}

impl Epoch {
    pub(crate) fn new() -> Epoch {
        Epoch { stripes: std::array::from_fn(|_| Stripe::default()), retired: Mutex::new(Vec::new()) }
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Retired>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops `object`, which no new reader can reach, as soon as no reader can hold it: now, or in a later call.
    fn retire(&self, object: Arc<dyn Any + Send + Sync>) {
        let mut retired = self.retired();
        retired.push(Retired { object, unseen: u64::MAX });
        let free = self.collect(&mut retired);
        drop(retired);
        // Dropped outside the lock: the last handle of a table may queue its file for removal.
        drop(free);
    }

    /// Drops what no reader can hold any more, and says how many retired objects remain.
    pub(crate) fn reclaim(&self) -> usize {
        let mut retired = self.retired();
        let free = self.collect(&mut retired);
        let remaining = retired.len();
        drop(retired);
        drop(free);
        remaining
    }

    fn collect(&self, retired: &mut Vec<Retired>) -> Vec<Arc<dyn Any + Send + Sync>> {
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

    /// True if a guard is of this epoch.
    #[inline]
    fn counts<T>(&self, guard: &EpochGuard<'_, T>) -> bool {
        let stripe: *const AtomicUsize = guard.stripe;
        self.stripes.as_ptr_range().contains(&stripe.cast::<Stripe>())
    }
}

impl<T: Send + Sync + 'static> EpochCell<T> {
    /// A cell with an epoch of its own.
    pub(crate) fn new(object: Arc<T>) -> EpochCell<T> {
        EpochCell::with_epoch(object, Arc::new(Epoch::new()))
    }

    pub(crate) fn with_epoch(object: Arc<T>, epoch: Arc<Epoch>) -> EpochCell<T> {
        EpochCell { current: AtomicPtr::new(Arc::into_raw(object).cast_mut()), epoch }
    }

    /// The current object, borrowed.
    #[inline]
    pub(crate) fn read(&self) -> EpochGuard<'_, T> {
        self.read_as(stripe_of_this_thread())
    }

    /// As [`EpochCell::read`], announced in that counter.
    #[inline]
    fn read_as(&self, stripe: usize) -> EpochGuard<'_, T> {
        let stripe = &self.epoch.stripes[stripe].0;
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
        let old = self.current.swap(Arc::into_raw(object).cast_mut(), Ordering::SeqCst);
        loom_fence();
        // SAFETY: the pointer came from Arc::into_raw in `new` or here, and the swap made this the only owner of its count.
        let old = unsafe { Arc::from_raw(old.cast_const()) };
        self.epoch.retire(old);
    }

    /// As [`Epoch::reclaim`].
    pub(crate) fn reclaim(&self) -> usize {
        self.epoch.reclaim()
    }
}

impl<T> Drop for EpochCell<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Relaxed);
        debug_assert!(!ptr::eq(current, ptr::null()), "the cell always holds an object");
        // SAFETY: the cell owns one count of the current object, and guards borrow the cell, so none is left.
        drop(unsafe { Arc::from_raw(current.cast_const()) });
        // What was retired may hold the epoch: without this, neither would ever go. No guard is left to read it.
        drop(std::mem::take(&mut *self.epoch.retired()));
    }
}

impl<T: Send + Sync + 'static> EpochSlot<T> {
    pub(crate) fn new(epoch: Arc<Epoch>) -> EpochSlot<T> {
        EpochSlot { shown: AtomicPtr::new(ptr::null_mut()), owner: Mutex::new(None), epoch }
    }

    fn owner(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object, if there is one, for as long as the guard lives.
    ///
    /// # Panics
    /// If the guard is of another epoch.
    #[inline]
    pub(crate) fn borrow<'a, U>(&'a self, guard: &'a EpochGuard<'_, U>) -> Option<&'a T> {
        assert!(self.epoch.counts(guard), "a guard protects what is of its own epoch");
        let object = self.shown.load(Ordering::SeqCst);
        // SAFETY: null, or shown after the guard's counter went up: `take` clears `shown` before it retires the object, which is then
        // dropped only after this counter was seen at zero. The slot's own drop needs it unborrowed.
        unsafe { object.as_ref() }
    }

    /// The object with a count of its own, for those who have no guard or stay longer. Takes a lock for a few instructions.
    pub(crate) fn load(&self) -> Option<Arc<T>> {
        self.owner().clone()
    }

    /// True if there is one.
    pub(crate) fn is_full(&mut self) -> bool {
        self.owner.get_mut().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Puts an object there, unless there is one already, and says which is there now.
    pub(crate) fn put(&self, object: Arc<T>) -> (Arc<T>, bool) {
        let mut owner = self.owner();
        if let Some(there) = &*owner {
            return (Arc::clone(there), false);
        }
        self.shown.store(Arc::as_ptr(&object).cast_mut(), Ordering::SeqCst);
        *owner = Some(Arc::clone(&object));
        (object, true)
    }

    /// Takes the object away, and drops it as soon as no reader borrows it. False if there was none.
    pub(crate) fn take(&self) -> bool {
        let mut owner = self.owner();
        let Some(object) = owner.take() else { return false };
        self.shown.store(ptr::null_mut(), Ordering::SeqCst);
        loom_fence();
        drop(owner);
        self.epoch.retire(object);
        true
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

    struct Canary(AtomicBool);

    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

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

    /// What is taken out of a slot lives on under a guard and under an owner, and not longer.
    #[test]
    fn what_is_taken_away_stays_for_who_uses_it() {
        let epoch = Arc::new(Epoch::new());
        let cell = EpochCell::with_epoch(Arc::new(()), Arc::clone(&epoch));
        let slot = EpochSlot::new(Arc::clone(&epoch));
        assert!(slot.borrow(&cell.read()).is_none() && !slot.take());
        assert!(slot.put(Arc::new(1)).1);
        assert_eq!(slot.put(Arc::new(2)), (Arc::new(1), false), "what is there stays");
        let first = Arc::downgrade(&slot.load().unwrap());
        let guard = cell.read();
        let borrowed = slot.borrow(&guard).unwrap();
        assert!(slot.take());
        assert!(slot.load().is_none() && slot.borrow(&guard).is_none());
        assert_eq!((*borrowed, epoch.reclaim()), (1, 1), "the guard still reads it");
        drop(guard);
        assert_eq!(epoch.reclaim(), 0);
        assert!(first.upgrade().is_none());
        let owned = slot.put(Arc::new(3)).0;
        assert!(slot.take());
        assert_eq!(*owned, 3);
    }

    /// A guard of another epoch protects nothing here.
    #[test]
    #[should_panic(expected = "of its own epoch")]
    fn a_guard_of_another_epoch_is_refused() {
        let slot = EpochSlot::<u8>::new(Arc::new(Epoch::new()));
        let other = EpochCell::new(Arc::new(()));
        let _nothing = slot.borrow(&other.read());
    }

    /// Readers on several threads never borrow an object that was dropped.
    #[test]
    fn readers_race_with_taking_away() {
        let epoch = Arc::new(Epoch::new());
        let cell = EpochCell::with_epoch(Arc::new(()), Arc::clone(&epoch));
        let slot = EpochSlot::new(Arc::clone(&epoch));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let guard = cell.read();
                        for _ in 0..20 {
                            let borrowed: Option<&Canary> = slot.borrow(&guard);
                            assert!(borrowed.is_none_or(|canary| !canary.0.load(Ordering::SeqCst)), "read after drop");
                        }
                    }
                });
            }
            for _ in 0..20_000 {
                assert!(slot.put(Arc::new(Canary(AtomicBool::new(false)))).1 && slot.take());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(epoch.reclaim(), 0);
    }
}
