//! [`Later`]: the answers of one connection that are not there yet.
//!
//! What a `FuturesUnordered` does, and what a connection needs beside it: a question is found by its id to be cancelled, the places of finished
//! answers are used again with their wakers, so that a waiting answer costs no allocation of ours, and they are polled in the order in which they were
//! woken, which is the same in each run of a simulation. Who gives many answers at once may have the connection woken when all are given ([`Afterwards::hold`](crate::api::Afterwards::hold)).
//!
//! # Concurrency
//! Polled by the connection's task only. Wakers may be called from any thread; one that outlives its answer wakes whichever is in
//! its place then, which is polled once too often.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use ferrisdb_core::{Code, Version};
use tokio::time::Instant;

use crate::afterwards::wake_or_hold;
use crate::answer::Answer;
use crate::api::{Begun, Committed, Lease, Locations, Rows};
use crate::stats::Method;
use crate::wire::{Body, result_out};

macro_rules! pending {
    ($($variant:ident($answer:ty),)*) => {
        /// An answer of any type that is not there yet.
        pub(crate) enum Pending {
            $($variant(Answer<$answer>),)*
        }

        $(impl From<Answer<$answer>> for Pending {
            fn from(answer: Answer<$answer>) -> Pending {
                Pending::$variant(answer)
            }
        })*

        impl Pending {
            /// The body of the reply, and the code if it is an error.
            fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Body, Option<Code>)> {
                match self {
                    $(Pending::$variant(answer) => Pin::new(answer).poll(context).map(|result| {
                        let code = result.as_ref().err().map(|error| error.code());
                        (result_out(result), code)
                    }),)*
                }
            }
        }
    };
}

pending! {
    Begun(Begun),
    Value(Option<Bytes>),
    Key(Bytes),
    Rows(Rows),
    Committed(Committed),
    Resolved(Option<Committed>),
    Changed(Version),
    Lease(Lease),
    Size(u64),
    Keys(Vec<Bytes>),
    Addresses(Vec<String>),
    Text(String),
    Locations(Locations),
}

use std::future::Future;

struct Entry {
    id: u64,
    method: Method,
    pending: Pending,
    /// Bytes of the request, which the answer may hold on to.
    bytes: usize,
    since: Instant,
}

/// An answer that has come.
pub(crate) struct Ready {
    pub(crate) id: u64,
    pub(crate) method: Method,
    pub(crate) body: Body,
    pub(crate) error: Option<Code>,
    pub(crate) since: Instant,
}

#[derive(Default)]
struct Woken {
    /// Places whose waker was called, each once.
    places: Vec<usize>,
    /// The connection's task, if it waits.
    task: Option<Waker>,
}

#[derive(Default)]
struct WokenList(Mutex<Woken>);

impl WokenList {
    fn lock(&self) -> MutexGuard<'_, Woken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PlaceWaker {
    place: usize,
    /// True while the place is in the list.
    is_listed: AtomicBool,
    list: Arc<WokenList>,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut woken = self.list.lock();
            woken.places.push(self.place);
            woken.task.take()
        };
        if let Some(task) = task {
            wake_or_hold(task);
        }
    }
}

struct Place {
    entry: Option<Entry>,
    flag: Arc<PlaceWaker>,
    waker: Waker,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Later {
    places: Vec<Place>,
    free: Vec<usize>,
    by_id: BTreeMap<u64, usize>,
    list: Arc<WokenList>,
    /// Taken from the list and not polled yet.
    turn: Vec<usize>,
    watches: usize,
    bytes: usize,
}

impl Later {
    /// All that wait.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Watches among them.
    pub(crate) fn watches(&self) -> usize {
        self.watches
    }

    /// Bytes of their requests.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Adds an answer that is not there yet. It is polled with the next [`poll_next`](Self::poll_next).
    pub(crate) fn push(&mut self, id: u64, method: Method, pending: Pending, bytes: usize, since: Instant) {
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let list = Arc::clone(&self.list);
            let flag = Arc::new(PlaceWaker { place, is_listed: AtomicBool::new(false), list });
            self.places.push(Place { entry: None, waker: Waker::from(Arc::clone(&flag)), flag });
            place
        });
        self.places[place].entry = Some(Entry { id, method, pending, bytes, since });
        let before = self.by_id.insert(id, place);
        debug_assert!(before.is_none(), "ids under way are unique: the caller asks `contains`");
        self.watches += usize::from(method == Method::Watch);
        self.bytes += bytes;
        self.places[place].flag.wake_by_ref();
    }

    /// Drops the answer to a question: true if it was still waiting.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        self.by_id.get(&id).copied().is_some_and(|place| self.take(place).is_some())
    }

    fn take(&mut self, place: usize) -> Option<Entry> {
        let entry = self.places[place].entry.take()?;
        self.free.push(place);
        self.by_id.remove(&entry.id);
        self.watches -= usize::from(entry.method == Method::Watch);
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// The next answer that has come.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Ready> {
        loop {
            if self.turn.is_empty() {
                let mut woken = self.list.lock();
                if woken.places.is_empty() {
                    // Under the lock: a waker called from now on sees the task.
                    woken.task = Some(context.waker().clone());
                    return Poll::Pending;
                }
                std::mem::swap(&mut self.turn, &mut woken.places);
                drop(woken);
                // Popped from the end below.
                self.turn.reverse();
            }
            while let Some(number) = self.turn.pop() {
                let place = &mut self.places[number];
                // Before the poll: what wakes it during the poll lists it again.
                place.flag.is_listed.store(false, Ordering::Release);
                let Some(entry) = &mut place.entry else { continue };
                let polled = entry.pending.poll(&mut Context::from_waker(&place.waker));
                if let Poll::Ready((body, error)) = polled {
                    let entry = self.take(number).expect("it was polled just now");
                    let Entry { id, method, since, .. } = entry;
                    return Poll::Ready(Ready { id, method, body, error, since });
                }
            }
        }
    }

    /// Gives memory back that a burst needed.
    pub(crate) fn release_memory(&mut self) {
        if self.by_id.is_empty() && self.turn.is_empty() {
            *self = Later::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::oneshot;

    use super::*;
    use crate::api::Afterwards;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A connection's answers that are given while somebody holds its wakes: it is not woken by any of them, sees those that there are whenever it runs, and is woken once afterwards.
    #[test]
    fn answers_given_together_wake_once() {
        let count = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut later = Later::default();
        let askers: Vec<_> = (0..4)
            .map(|id| {
                let (sender, receiver) = oneshot::channel();
                let answer = Answer::later(async move { Ok(receiver.await.expect("it is answered")) });
                later.push(id, Method::EstimatedSize, Pending::Size(answer), 0, Instant::now());
                sender
            })
            .collect();
        assert!(later.poll_next(&mut context).is_pending());

        let mut afterwards = Afterwards::new();
        let mut came = Vec::new();
        afterwards.hold(|| {
            for (asked, asker) in askers.into_iter().enumerate() {
                asker.send(7).expect("it waits");
                if asked == 1 {
                    // It runs for another reason.
                    while let Poll::Ready(ready) = later.poll_next(&mut context) {
                        came.push(ready.id);
                    }
                    assert_eq!(came, [0, 1]);
                }
            }
        });
        let woken = || count.0.load(Ordering::SeqCst);
        assert_eq!(woken(), 0);
        afterwards.wake();
        // Once for the time before it ran, once for the time after.
        assert_eq!(woken(), 2);
        while let Poll::Ready(ready) = later.poll_next(&mut context) {
            came.push(ready.id);
        }
        assert_eq!((came.as_slice(), later.len()), (&[0, 1, 2, 3][..], 0));
    }
}
