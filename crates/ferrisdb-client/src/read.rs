//! Futures of a transaction: [`ReadFuture`], what a call that reads returns, and [`Guarded`], which ends when the transaction does.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Error, Result};
use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};

use crate::promise::{Promise, Wait};
use crate::state::Inner;

/// The result of a read. The read began when the call was made and sees what the transaction had written by then; often the result
/// is here already. It needs no particular runtime. Dropping it gives the read up, and a commit does not wait for it any more.
#[must_use = "a read tells nothing unless it is awaited"]
pub struct ReadFuture<T: Clone>(Reading<T>);

enum Reading<T: Clone> {
    /// `None` once it has been taken.
    Ready(Option<Result<T>>),
    /// Shared with the commit, which waits for it.
    Pending(Shared<BoxFuture<Result<T>>>),
}

impl<T: Clone> ReadFuture<T> {
    #[inline]
    pub(crate) fn ready(result: Result<T>) -> ReadFuture<T> {
        ReadFuture(Reading::Ready(Some(result)))
    }
}

impl<T: Clone + Send + Sync + 'static> ReadFuture<T> {
    /// A read that belongs to no transaction.
    pub(crate) fn alone(mut future: BoxFuture<Result<T>>) -> ReadFuture<T> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => ReadFuture::ready(result),
            Poll::Pending => ReadFuture(Reading::Pending(future.shared())),
        }
    }

    /// Begins a read of `inner`'s transaction. What can be done at once is done before this returns. The commit waits for it, and, if
    /// `fails_commit`, fails if it fails.
    pub(crate) fn start(
        inner: &Arc<Inner>,
        epoch: u64,
        fails_commit: bool,
        future: BoxFuture<Result<T>>,
    ) -> ReadFuture<T> {
        let mut guarded = Guarded::new(Arc::clone(inner), epoch, future);
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = Pin::new(&mut guarded).poll(&mut context) {
            if fails_commit {
                inner.note_read(epoch, &result);
            }
            return ReadFuture::ready(result);
        }
        let noting = Arc::clone(inner);
        let note = move |result: &Result<T>| {
            if fails_commit {
                noting.note_read(epoch, result);
            }
        };
        let shared = guarded.inspect(note).boxed().shared();
        if let Some(weak) = shared.downgrade() {
            inner.add_outstanding(epoch, Box::new(weak));
        }
        ReadFuture(Reading::Pending(shared))
    }
}

impl<T: Clone> Future for ReadFuture<T> {
    type Output = Result<T>;

    /// # Panics
    /// If it is polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match &mut self.0 {
            Reading::Ready(result) => Poll::Ready(result.take().expect("a result is taken once")),
            Reading::Pending(shared) => Pin::new(shared).poll(context),
        }
    }
}

impl<T: Clone> Unpin for ReadFuture<T> {}

impl<T: Clone> fmt::Debug for ReadFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Reading::Ready(_) => "ReadFuture::Ready",
            Reading::Pending(_) => "ReadFuture::Pending",
        })
    }
}

/// A read that a commit must wait for, unless whoever began it has dropped it.
pub(crate) trait Outstanding: Send {
    /// Waits for it; `None` if nobody else does.
    fn wait(&self) -> Option<BoxFuture<()>>;

    /// True if somebody still waits for it.
    fn is_awaited(&self) -> bool;
}

impl<T: Clone + Send + Sync + 'static> Outstanding for WeakShared<BoxFuture<Result<T>>> {
    fn wait(&self) -> Option<BoxFuture<()>> {
        Some(self.upgrade()?.map(|_| ()).boxed())
    }

    fn is_awaited(&self) -> bool {
        self.upgrade().is_some()
    }
}

/// A future that fails as soon as its transaction is cancelled, reset, timed out or otherwise of no more use.
pub(crate) struct Guarded<T> {
    inner: Arc<Inner>,
    epoch: u64,
    slot: Option<u64>,
    /// The timer for the transaction's timeout, and when it is due.
    timer: Option<(Duration, BoxFuture<()>)>,
    /// `None` once it is ready.
    future: Option<BoxFuture<Result<T>>>,
}

impl<T> Guarded<T> {
    pub(crate) fn new(inner: Arc<Inner>, epoch: u64, future: BoxFuture<Result<T>>) -> Guarded<T> {
        Guarded { inner, epoch, slot: None, timer: None, future: Some(future) }
    }

    /// What was not finished.
    pub(crate) fn take(&mut self) -> Option<BoxFuture<Result<T>>> {
        self.future.take()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl<T> Future for Guarded<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let this = &mut *self;
        loop {
            let deadline = match this.inner.guard(this.epoch, &mut this.slot, context.waker()) {
                Ok(deadline) => deadline,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let future = this.future.as_mut().expect("it is not polled after it was ready");
            if let Poll::Ready(result) = future.as_mut().poll(context) {
                this.future = None;
                return Poll::Ready(result);
            }
            let Some(deadline) = deadline else {
                this.timer = None;
                return Poll::Pending;
            };
            if this.timer.as_ref().is_none_or(|(due, _)| *due != deadline) {
                let runtime = this.inner.runtime();
                let timer = runtime.sleep(deadline.saturating_sub(runtime.now()));
                this.timer = Some((deadline, timer));
            }
            let (_, timer) = this.timer.as_mut().expect("it was set just now");
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // The time is over: the guard says so.
            this.timer = None;
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.inner.forget_waker(slot);
        }
    }
}

/// What a transaction has promised, and keeps when it ends: by its commit, or in another way. Among those is its timeout, which it notices here even if nobody calls it any more. It does
/// not hold the transaction: when that is dropped the promise ends.
pub(crate) struct Promised<T: Clone> {
    transaction: Weak<Inner>,
    epoch: u64,
    slot: Option<u64>,
    timer: Option<(Duration, BoxFuture<()>)>,
    promise: Wait<T>,
}

impl<T: Clone> Promised<T> {
    pub(crate) fn new(inner: &Arc<Inner>, epoch: u64, promise: &Promise<T>) -> Promised<T> {
        Promised { transaction: Arc::downgrade(inner), epoch, slot: None, timer: None, promise: promise.wait() }
    }
}

impl<T: Clone> Future for Promised<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(result) = Pin::new(&mut this.promise).poll(context) {
                return Poll::Ready(result);
            }
            let Some(inner) = this.transaction.upgrade() else { return Poll::Pending };
            // If it has ended, the promise has too, or will in a moment: then it wakes us.
            let Ok(deadline) = inner.guard(this.epoch, &mut this.slot, context.waker()) else {
                return Pin::new(&mut this.promise).poll(context);
            };
            let Some(deadline) = deadline else {
                this.timer = None;
                return Poll::Pending;
            };
            if this.timer.as_ref().is_none_or(|(due, _)| *due != deadline) {
                let runtime = inner.runtime();
                this.timer = Some((deadline, runtime.sleep(deadline.saturating_sub(runtime.now()))));
            }
            let (_, timer) = this.timer.as_mut().expect("it was set just now");
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            this.timer = None;
        }
    }
}

impl<T: Clone> Unpin for Promised<T> {}

impl<T: Clone> Drop for Promised<T> {
    fn drop(&mut self) {
        if let (Some(slot), Some(inner)) = (self.slot, self.transaction.upgrade()) {
            inner.forget_waker(slot);
        }
    }
}

/// The error of a future whose transaction was cancelled, reset or dropped.
pub(crate) fn cancelled() -> Error {
    Error::new(ferrisdb_core::Code::TransactionCancelled)
}
