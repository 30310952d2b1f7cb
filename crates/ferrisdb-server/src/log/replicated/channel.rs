//! The channels and locks that the consensus library is given: bounded queues, a value to watch, answers, a lock.
//!
//! All of them wake whoever waits in the order of their coming. The usual ones do not: tokio's watch channel picks at random among its waiters, which is
//! another run for the same seed.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Poll, Waker};

use openraft::async_runtime::{mpsc, mutex, oneshot, watch};
use openraft::{OptionalSend, OptionalSync};

/// Bounded queues with many senders and one receiver.
pub(super) struct Channels;

pub(super) struct Sender<T>(async_channel::Sender<T>);

pub(super) struct WeakSender<T>(async_channel::WeakSender<T>);

pub(super) struct Receiver<T>(async_channel::Receiver<T>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender(self.0.clone())
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> WeakSender<T> {
        WeakSender(self.0.clone())
    }
}

impl mpsc::Mpsc for Channels {
    type Sender<T: OptionalSend> = Sender<T>;
    type Receiver<T: OptionalSend> = Receiver<T>;
    type WeakSender<T: OptionalSend> = WeakSender<T>;

    fn channel<T: OptionalSend>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = async_channel::bounded(capacity);
        (Sender(sender), Receiver(receiver))
    }
}

impl<T: OptionalSend> mpsc::MpscSender<Channels, T> for Sender<T> {
    fn send(&self, message: T) -> impl Future<Output = Result<(), mpsc::SendError<T>>> + OptionalSend {
        let sending = self.0.send(message);
        async move { sending.await.map_err(|error| mpsc::SendError(error.0)) }
    }

    fn downgrade(&self) -> WeakSender<T> {
        WeakSender(self.0.downgrade())
    }
}

impl<T: OptionalSend> mpsc::MpscReceiver<T> for Receiver<T> {
    async fn recv(&mut self) -> Option<T> {
        self.0.recv().await.ok()
    }

    fn try_recv(&mut self) -> Result<T, mpsc::TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            async_channel::TryRecvError::Empty => mpsc::TryRecvError::Empty,
            async_channel::TryRecvError::Closed => mpsc::TryRecvError::Disconnected,
        })
    }
}

impl<T: OptionalSend> mpsc::MpscWeakSender<Channels, T> for WeakSender<T> {
    fn upgrade(&self) -> Option<Sender<T>> {
        self.0.upgrade().map(Sender)
    }
}

/// Answers: one value, once.
pub(super) struct Once;

pub(super) struct OnceSender<T>(futures_channel::oneshot::Sender<T>);

impl oneshot::Oneshot for Once {
    type Sender<T: OptionalSend> = OnceSender<T>;
    type Receiver<T: OptionalSend> = futures_channel::oneshot::Receiver<T>;
    type ReceiverError = futures_channel::oneshot::Canceled;

    fn channel<T: OptionalSend>() -> (OnceSender<T>, futures_channel::oneshot::Receiver<T>) {
        let (sender, receiver) = futures_channel::oneshot::channel();
        (OnceSender(sender), receiver)
    }
}

impl<T: OptionalSend> oneshot::OneshotSender<T> for OnceSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

/// A lock that is waited for without holding up the thread. Not `async-lock`: there whoever has waited for half a millisecond of real time goes first.
pub(super) struct Lock<T>(futures_util::lock::Mutex<T>);

impl<T: OptionalSend + 'static> mutex::Mutex<T> for Lock<T> {
    type Guard<'a> = futures_util::lock::MutexGuard<'a, T>;

    fn new(value: T) -> Lock<T> {
        Lock(futures_util::lock::Mutex::new(value))
    }

    fn lock(&self) -> impl Future<Output = futures_util::lock::MutexGuard<'_, T>> + OptionalSend {
        self.0.lock()
    }
}

/// A value of which only the latest counts.
pub(super) struct Latest;

/// What senders and receivers share. Locks: `value`, then `waiting`.
struct Watched<T> {
    value: RwLock<Versioned<T>>,
    waiting: Mutex<Waiting>,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

struct Versioned<T> {
    value: T,
    /// Grows with each change.
    version: u64,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl<T> Watched<T> {
    fn read(&self) -> RwLockReadGuard<'_, Versioned<T>> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        let wakers = std::mem::take(&mut self.waiting().wakers);
        wakers.into_values().for_each(Waker::wake);
    }
}

pub(super) struct LatestSender<T>(Arc<Watched<T>>);

pub(super) struct LatestReceiver<T> {
    watched: Arc<Watched<T>>,
    /// The version that was last seen.
    seen: u64,
}

/// A look at the value. Changes wait while there is one.
pub(super) struct Look<'a, T>(RwLockReadGuard<'a, Versioned<T>>);

impl<T> Deref for Look<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Look<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

impl watch::Watch for Latest {
    type Sender<T: OptionalSend + OptionalSync> = LatestSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = LatestReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Look<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(value: T) -> (LatestSender<T>, LatestReceiver<T>) {
        let watched = Arc::new(Watched {
            value: RwLock::new(Versioned { value, version: 0 }),
            waiting: Mutex::default(),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(1),
        });
        (LatestSender(Arc::clone(&watched)), LatestReceiver { watched, seen: 0 })
    }
}

impl<T> Clone for LatestSender<T> {
    fn clone(&self) -> LatestSender<T> {
        self.0.senders.fetch_add(1, Ordering::SeqCst);
        LatestSender(Arc::clone(&self.0))
    }
}

impl<T> Drop for LatestSender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.wake_all();
        }
    }
}

impl<T> Clone for LatestReceiver<T> {
    fn clone(&self) -> LatestReceiver<T> {
        self.watched.receivers.fetch_add(1, Ordering::SeqCst);
        LatestReceiver { watched: Arc::clone(&self.watched), seen: self.seen }
    }
}

impl<T> Drop for LatestReceiver<T> {
    fn drop(&mut self) {
        self.watched.receivers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T: OptionalSend + OptionalSync> watch::WatchSender<Latest, T> for LatestSender<T> {
    fn send(&self, value: T) -> Result<(), watch::SendError<T>> {
        if self.0.receivers.load(Ordering::SeqCst) == 0 {
            return Err(watch::SendError(value));
        }
        self.send_if_modified(|current| {
            *current = value;
            true
        });
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        {
            let mut versioned = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
            if !modify(&mut versioned.value) {
                return false;
            }
            versioned.version += 1;
        }
        self.0.wake_all();
        true
    }

    fn borrow_watched(&self) -> Look<'_, T> {
        Look(self.0.read())
    }

    fn subscribe(&self) -> LatestReceiver<T> {
        self.0.receivers.fetch_add(1, Ordering::SeqCst);
        let seen = self.0.read().version;
        LatestReceiver { watched: Arc::clone(&self.0), seen }
    }
}

/// A waker that was left, taken back when it is not needed any more.
struct Place<'a, T> {
    watched: &'a Watched<T>,
    number: Option<u64>,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.watched.waiting().wakers.remove(&number);
        }
    }
}

impl<T: OptionalSend + OptionalSync> watch::WatchReceiver<Latest, T> for LatestReceiver<T> {
    async fn changed(&mut self) -> Result<(), watch::RecvError> {
        let mut place = Place { watched: &self.watched, number: None };
        let seen = self.seen;
        let version = poll_fn(|context| {
            {
                let mut waiting = place.watched.waiting();
                let number = place.number.unwrap_or_else(|| {
                    waiting.next += 1;
                    waiting.next
                });
                place.number = Some(number);
                waiting.wakers.insert(number, context.waker().clone());
            }
            // Looked at after the waker was left: a change in between has woken it, or is seen.
            let version = place.watched.read().version;
            if version != seen {
                Poll::Ready(Ok(version))
            } else if place.watched.senders.load(Ordering::SeqCst) == 0 {
                Poll::Ready(Err(watch::RecvError(())))
            } else {
                Poll::Pending
            }
        })
        .await?;
        drop(place);
        self.seen = version;
        Ok(())
    }

    fn borrow_watched(&self) -> Look<'_, T> {
        Look(self.watched.read())
    }

    fn borrow_and_update(&mut self) -> Look<'_, T> {
        let look = self.watched.read();
        self.seen = look.version;
        Look(look)
    }
}
