//! Who waits for a version to be applied ([`VersionWaiters`]), and for news of the engine ([`EngineNews`]): flushes, failures.
//!
//! A waiter has a place in a list from the call that made it until it is ready or dropped: a list holds nobody who is gone.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Code, Error, Result, Version};
use ferrisdb_storage::{Error as EngineError, Event, EventListener, Listener};

use super::Damage;

/// The future's output, or `None` if the timeout was ready first.
pub(super) async fn first<T>(future: impl Future<Output = T>, mut timeout: BoxFuture<()>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        timeout.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Those who wait for a version, by version. Bounded.
pub(super) struct VersionWaiters {
    waiters_max: usize,
    state: Mutex<VersionState>,
}

#[derive(Default)]
struct VersionState {
    reached: Version,
    /// Why nothing more will be reached.
    ended: Option<Error>,
    next: u64,
    /// The number makes waiters for one version different, and keeps the order in which they came.
    waiting: BTreeMap<(Version, u64), Option<Waker>>,
}

impl VersionWaiters {
    pub(super) fn new(waiters_max: usize) -> VersionWaiters {
        VersionWaiters { waiters_max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, VersionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// A future that is ready once `version` is reached, or never will be.
    ///
    /// # Errors
    /// `process_behind` if too many wait already; why nothing more will be reached.
    pub(super) fn wait(waiters: &Arc<VersionWaiters>, version: Version) -> Result<VersionWait> {
        let mut state = waiters.state();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        if state.waiting.len() >= waiters.waiters_max {
            let detail =
                format!("{} reads wait for versions that the storage server has not applied", waiters.waiters_max);
            return Err(Error::with(Code::ProcessBehind, detail));
        }
        let place = (version, state.next);
        state.next += 1;
        state.waiting.insert(place, None);
        Ok(VersionWait { waiters: Arc::clone(waiters), place })
    }

    /// `version` is reached: wakes those who waited for it or a lower one, in the order of the versions.
    pub(super) fn advance(&self, version: Version) {
        let mut state = self.state();
        state.reached = state.reached.max(version);
        let wakers: Vec<Waker> =
            state.waiting.range_mut(..=(version, u64::MAX)).filter_map(|(_, waker)| waker.take()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nothing more will be reached.
    pub(super) fn end(&self, error: &Error) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| error.clone());
        let wakers: Vec<Waker> = state.waiting.values_mut().filter_map(Option::take).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A place among the waiters.
pub(super) struct VersionWait {
    waiters: Arc<VersionWaiters>,
    place: (Version, u64),
}

impl Future for VersionWait {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.waiters.state();
        if state.reached >= self.place.0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.ended {
            return Poll::Ready(Err(error.clone()));
        }
        let waker = state.waiting.get_mut(&self.place).expect("a waiter has its place until it is dropped");
        *waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for VersionWait {
    fn drop(&mut self) {
        self.waiters.state().waiting.remove(&self.place);
    }
}

/// Hears what happens in the engine, and tells those who wait for it.
pub(super) struct EngineNews {
    flushed: AtomicU64,
    /// A flush or a compaction found no space, and no flush has found some since.
    is_full: AtomicBool,
    state: Mutex<NewsState>,
    /// The owner's own listener.
    listener: Option<Listener>,
}

#[derive(Default)]
struct NewsState {
    /// Why the engine takes no more writes.
    failure: Option<Error>,
    /// What of the engine is not what was written, as far as somebody has met it.
    damage: Option<Damage>,
    closed: Option<Error>,
    next: u64,
    wakers: BTreeMap<u64, Waker>,
    on_failure: Option<Tell>,
}

/// Whom to tell of a failure.
type Tell = Arc<dyn Fn(&Error) + Send + Sync>;

impl EngineNews {
    pub(super) fn new(listener: Option<Listener>) -> EngineNews {
        EngineNews { flushed: AtomicU64::new(0), is_full: AtomicBool::new(false), state: Mutex::default(), listener }
    }

    fn state(&self) -> MutexGuard<'_, NewsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was flushed when the engine was opened.
    pub(super) fn begin(&self, flushed: Version) {
        self.flushed.fetch_max(flushed.get(), Ordering::AcqRel);
    }

    pub(super) fn flushed(&self) -> Version {
        Version::from_u64(self.flushed.load(Ordering::Acquire))
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.clone()
    }

    /// Takes note of damage, if an error says that there is some.
    pub(super) fn note(&self, error: &EngineError) {
        let Some(what) = error.damage() else { return };
        self.state().damage.get_or_insert(Damage { first: what, met: 0 }).met += 1;
    }

    pub(super) fn damage(&self) -> Option<Damage> {
        self.state().damage.clone()
    }

    /// Called once if the engine fails, or has failed already.
    pub(super) fn on_failure(&self, tell: impl Fn(&Error) + Send + Sync + 'static) {
        let tell: Tell = Arc::new(tell);
        let mut state = self.state();
        state.on_failure = Some(Arc::clone(&tell));
        let failure = state.failure.clone();
        drop(state);
        failure.iter().for_each(|error| tell(error));
    }

    /// The engine takes no more writes.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.state();
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(error.clone());
        let tell = state.on_failure.clone();
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        if let Some(tell) = tell {
            tell(&error);
        }
        wakers.into_values().for_each(Waker::wake);
    }

    /// No more news will come.
    pub(super) fn close(&self, error: &Error) {
        let mut state = self.state();
        state.closed.get_or_insert_with(|| error.clone());
        state.on_failure = None;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_values().for_each(Waker::wake);
    }

    /// A future that is ready once more than `after` is flushed.
    pub(super) fn next_flush(self: &Arc<Self>, after: Version) -> NextFlush {
        NextFlush { news: Arc::clone(self), after, place: None }
    }

    /// How many wait for a flush.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state().wakers.len()
    }
}

impl EventListener for EngineNews {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::FlushDone { flushed, .. } => {
                self.flushed.fetch_max(flushed.get(), Ordering::AcqRel);
                self.is_full.store(false, Ordering::Relaxed);
                let wakers = std::mem::take(&mut self.state().wakers);
                wakers.into_values().for_each(Waker::wake);
            }
            Event::BackgroundError { error, is_retried: true } if error.is_no_space() => {
                self.is_full.store(true, Ordering::Relaxed);
            }
            Event::BackgroundError { error, .. } => self.note(error),
            Event::Poisoned { reason } => {
                let detail = format!("the storage engine takes no more writes since an earlier failure: {reason}");
                self.fail(Error::with(Code::IoError, detail));
            }
            _ => {}
        }
        if let Some(listener) = &self.listener {
            listener.0.on_event(event);
        }
    }
}

/// Somebody who waits for a flush.
pub(super) struct NextFlush {
    news: Arc<EngineNews>,
    after: Version,
    place: Option<u64>,
}

impl Future for NextFlush {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Version>> {
        let news = Arc::clone(&self.news);
        let mut state = news.state();
        // Under the lock: a flush that comes now takes the waker that is put there below.
        let flushed = news.flushed();
        if flushed > self.after {
            return Poll::Ready(Ok(flushed));
        }
        if let Some(error) = state.failure.as_ref().or(state.closed.as_ref()) {
            return Poll::Ready(Err(error.clone()));
        }
        let place = *self.place.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        state.wakers.insert(place, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for NextFlush {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.news.state().wakers.remove(&place);
        }
    }
}
