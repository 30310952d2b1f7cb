//! [`Promise`]: a result that many futures wait for; [`WakerSet`]: those to wake when something about a transaction changes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::Result;

/// A result that is set once. Clones are the same promise, and each is a future for it.
pub(crate) struct Promise<T> {
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    result: Option<Result<T>>,
    wakers: WakerSet,
}

impl<T: Clone> Promise<T> {
    pub(crate) fn new() -> Promise<T> {
        Promise { state: Arc::new(Mutex::new(State { result: None, wakers: WakerSet::default() })) }
    }

    /// Sets it, if it is not set yet.
    pub(crate) fn set(&self, result: Result<T>) {
        let mut state = self.lock();
        if state.result.is_some() {
            return;
        }
        state.result = Some(result);
        let wakers = state.wakers.take();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// True if both are the same promise.
    pub(crate) fn is(&self, other: &Promise<T>) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// A future for it.
    pub(crate) fn wait(&self) -> Wait<T> {
        Wait { promise: Promise { state: Arc::clone(&self.state) }, slot: None }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Promise<T> {
        Promise { state: Arc::clone(&self.state) }
    }
}

/// Waits for a [`Promise`]. Dropped, it leaves nothing behind.
pub(crate) struct Wait<T: Clone> {
    promise: Promise<T>,
    slot: Option<u64>,
}

impl<T: Clone> Future for Wait<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = self.slot;
        let mut state = self.promise.lock();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone());
        }
        state.wakers.register(&mut slot, context.waker());
        drop(state);
        self.slot = slot;
        Poll::Pending
    }
}

impl<T: Clone> Drop for Wait<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.promise.lock().wakers.forget(slot);
        }
    }
}

/// Wakers, each in a slot of its owner's.
#[derive(Debug, Default)]
pub(crate) struct WakerSet {
    next_slot: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl WakerSet {
    /// Puts `waker` into the slot, which is made if there is none.
    pub(crate) fn register(&mut self, slot: &mut Option<u64>, waker: &Waker) {
        let slot = *slot.get_or_insert_with(|| {
            self.next_slot += 1;
            self.next_slot
        });
        self.wakers.insert(slot, waker.clone());
    }

    pub(crate) fn forget(&mut self, slot: u64) {
        self.wakers.remove(&slot);
    }

    /// All of them, to be woken once no lock is held. Their slots stay theirs.
    #[must_use = "they are to be woken"]
    pub(crate) fn take(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers).into_values().collect()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.wakers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_set_once_and_a_dropped_wait_is_forgotten() {
        let promise = Promise::new();
        let mut wait = promise.wait();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut wait).poll(&mut context).is_pending());
        assert!(Pin::new(&mut wait).poll(&mut context).is_pending());
        assert_eq!(promise.lock().wakers.len(), 1);
        drop(wait);
        assert_eq!(promise.lock().wakers.len(), 0);
        promise.set(Ok(1));
        promise.set(Ok(2));
        assert_eq!(futures_executor::block_on(promise.wait()), Ok(1));
    }
}
