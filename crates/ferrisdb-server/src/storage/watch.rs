//! [`Watches`]: who waits for a key to change.
//!
//! A watch has a place from the call on (so that their number is bounded), is armed once its version is applied, and is fired by the first batch
//! after which the key's value differs from the watch's. A batch is looked at as a whole: a key that was changed and changed back within
//! it has not changed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result, Version};

/// All watches of a storage server.
pub(super) struct Watches {
    watches_max: usize,
    /// How many there are: a batch looks no further if there are none.
    count: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// By key and then by number: the order in which they came.
    watches: BTreeMap<Bytes, BTreeMap<u64, Watch>>,
    /// Why no watch will fire any more.
    ended: Option<Error>,
}

struct Watch {
    value: Option<Bytes>,
    is_armed: bool,
    fired: Option<Version>,
    waker: Option<Waker>,
}

impl Watch {
    /// Fires if `value` is another one than the watch knows. Returns whom to wake.
    fn look(&mut self, value: Option<&[u8]>, version: Version) -> Option<Waker> {
        if !self.is_armed || self.fired.is_some() || self.value.as_deref() == value {
            return None;
        }
        self.fired = Some(version);
        self.waker.take()
    }
}

impl Watches {
    pub(super) fn new(watches_max: usize) -> Watches {
        Watches { watches_max, count: AtomicUsize::new(0), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a watch.
    ///
    /// # Errors
    /// `too_many_watches`; why no watch will fire any more.
    pub(super) fn enter(watches: &Arc<Watches>, key: &Bytes, value: Option<Bytes>) -> Result<Place> {
        let mut state = watches.state();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        if watches.count.load(Ordering::Relaxed) >= watches.watches_max {
            let detail = format!("{} watches are pending, which is the storage server's limit", watches.watches_max);
            return Err(Error::with(Code::TooManyWatches, detail));
        }
        let number = state.next;
        state.next += 1;
        let watch = Watch { value, is_armed: false, fired: None, waker: None };
        state.watches.entry(key.clone()).or_default().insert(number, watch);
        watches.count.fetch_add(1, Ordering::Relaxed);
        Ok(Place { watches: Arc::clone(watches), key: key.clone(), number })
    }

    /// True if there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// A batch has been applied: these keys were written or cleared, in order, and these ranges were cleared before that.
    pub(super) fn applied<'a>(
        &self,
        version: Version,
        writes: impl Iterator<Item = (&'a Bytes, Option<&'a Bytes>)>,
        cleared: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
        is_written: impl Fn(&Bytes) -> bool,
    ) {
        let mut wakers = Vec::new();
        let mut state = self.state();
        for (key, value) in writes {
            for watch in state.watches.get_mut(key).into_iter().flat_map(BTreeMap::values_mut) {
                wakers.extend(watch.look(value.map(AsRef::as_ref), version));
            }
        }
        for (begin, end) in cleared {
            for (key, watches) in state.watches.range_mut(begin.clone()..end.clone()) {
                if !is_written(key) {
                    wakers.extend(watches.values_mut().filter_map(|watch| watch.look(None, version)));
                }
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Fires all watches of keys in this range, armed or not yet: the keys are looked after elsewhere.
    pub(super) fn fire(&self, range: &KeyRange, version: Version) {
        if range.is_empty() {
            return;
        }
        let mut state = self.state();
        let watches = state.watches.range_mut(range.begin.clone()..range.end.clone());
        let mut wakers = Vec::new();
        for watch in watches.flat_map(|(_, watches)| watches.values_mut()) {
            watch.fired.get_or_insert(version);
            wakers.extend(watch.waker.take());
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// No watch will fire any more: all get this error.
    pub(super) fn end(&self, error: &Error) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| error.clone());
        let watches = state.watches.values_mut().flat_map(BTreeMap::values_mut);
        let wakers: Vec<Waker> = watches.filter_map(|watch| watch.waker.take()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let state = self.state();
        let places = state.watches.values().map(BTreeMap::len).sum();
        assert_eq!(places, self.count.load(Ordering::Relaxed), "the count is of the places");
        assert!(state.watches.values().all(|watches| !watches.is_empty()), "no key is kept without a watch");
        places
    }
}

/// A watch's place. A future: ready with the version of the batch that fired it. Dropping it ends the watch.
pub(super) struct Place {
    watches: Arc<Watches>,
    key: Bytes,
    number: u64,
}

impl Place {
    fn watch<'a>(&self, state: &'a mut State) -> &'a mut Watch {
        let watches = state.watches.get_mut(&self.key).expect("a place is kept until it is dropped");
        watches.get_mut(&self.number).expect("a place is kept until it is dropped")
    }

    /// From now on batches fire it.
    pub(super) fn arm(&self) {
        self.watch(&mut self.watches.state()).is_armed = true;
        // With the one in `Shared::apply`: a batch that does not see this watch is seen by the read that follows.
        fence(Ordering::SeqCst);
    }
}

impl Future for Place {
    type Output = Result<Version>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Version>> {
        let mut state = self.watches.state();
        let ended = state.ended.clone();
        let watch = self.watch(&mut state);
        match (watch.fired, ended) {
            (Some(version), _) => Poll::Ready(Ok(version)),
            (None, Some(error)) => Poll::Ready(Err(error)),
            (None, None) => {
                watch.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.watches.state();
        let watches = state.watches.get_mut(&self.key).expect("a place is kept until it is dropped");
        watches.remove(&self.number);
        if watches.is_empty() {
            state.watches.remove(&self.key);
        }
        self.watches.count.fetch_sub(1, Ordering::Relaxed);
    }
}
