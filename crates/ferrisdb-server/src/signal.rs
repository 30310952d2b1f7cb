//! How tasks of a role wait for one another: a [`Bell`] that one task sleeps on, and a [`Reply`] that one future gets.
//!
//! No condition variable and no channel: what is handed over lies in the owner's own queue, under the owner's own lock, and these say only that it
//! is worth looking again.
//!
//! # Concurrency
//! A wake is never lost: the bell's flag is set before its waker is taken, and a sleeper leaves its waker before it looks at the flag.
//! Wakers are woken without a lock held.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::{Code, Error, Result};

/// Locks, whoever panicked before: what these locks guard is whole between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes one sleeping task. Many may ring; one listens.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    is_rung: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    /// Has the listener look again, now or when it next listens.
    pub(crate) fn ring(&self) {
        self.is_rung.store(true, Ordering::SeqCst);
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// True if it was rung since this last said so; otherwise the task of `context` will be woken.
    pub(crate) fn poll_rung(&self, context: &Context<'_>) -> bool {
        if self.is_rung.swap(false, Ordering::SeqCst) {
            return true;
        }
        {
            let mut waker = lock(&self.waker);
            match waker.as_mut() {
                Some(waker) => waker.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
        }
        self.is_rung.swap(false, Ordering::SeqCst)
    }

    /// Ready once it is rung.
    pub(crate) fn rung(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|context| if self.poll_rung(context) { Poll::Ready(()) } else { Poll::Pending })
    }
}

/// Set once, and then for good: tells tasks to end.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    is_set: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Latch {
    /// Sets it.
    pub(crate) fn set(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// What `future` gives, or `None` if it is set before that.
    pub(crate) async fn unless_set<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            {
                let mut wakers = lock(&self.wakers);
                if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
            }
            // Looked at after the waker was left: a set in between has woken it, or is seen.
            if self.is_set.load(Ordering::SeqCst) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

/// What a [`Reply`] and its [`Replied`] share.
struct Slot<T> {
    result: Option<Result<T>>,
    waker: Option<Waker>,
}

/// The right to answer once. Dropped without an answer, it answers with the error of its making.
pub(crate) struct Reply<T> {
    slot: Option<Arc<Mutex<Slot<T>>>>,
    lost: Code,
}

/// The answer, when it comes.
pub(crate) struct Replied<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

/// A pair of which the first answers the second. `lost` is the answer if nobody gives one.
pub(crate) fn reply<T>(lost: Code) -> (Reply<T>, Replied<T>) {
    let slot = Arc::new(Mutex::new(Slot { result: None, waker: None }));
    (Reply { slot: Some(Arc::clone(&slot)), lost }, Replied { slot })
}

impl<T> Reply<T> {
    /// True if nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.slot.as_ref().is_none_or(|slot| Arc::strong_count(slot) == 1)
    }

    /// Answers.
    pub(crate) fn send(mut self, result: Result<T>) {
        self.put(result);
    }

    fn put(&mut self, result: Result<T>) {
        let Some(slot) = self.slot.take() else { return };
        let waker = {
            let mut slot = lock(&slot);
            slot.result = Some(result);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        let lost = self.lost;
        self.put(Err(Error::with(lost, "the database was closed or failed while this was under way")));
    }
}

impl<T> Future for Replied<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = lock(&self.slot);
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_bell_rung_before_anybody_listens_is_heard_once() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        assert!(bell.poll_rung(&Context::from_waker(Waker::noop())));
        assert!(!bell.poll_rung(&Context::from_waker(Waker::noop())));
    }

    #[test]
    fn a_reply_that_is_dropped_says_so() {
        let (answer, mut answered) = reply::<u32>(Code::CommitUnknownResult);
        assert!(poll(&mut answered).is_pending());
        drop(answer);
        let Poll::Ready(Err(error)) = poll(&mut answered) else { panic!("it answers") };
        assert_eq!(error.code(), Code::CommitUnknownResult);
        let (answer, mut answered) = reply(Code::CommitUnknownResult);
        answer.send(Ok(7));
        assert_eq!(poll(&mut answered), Poll::Ready(Ok(7)));
    }
}
