//! [`RaftRuntime`]: the consensus library's tasks, timers and randomness, taken from a [`Runtime`] of ours.
//!
//! The library asks for its runtime by type, not by value: `spawn`, `sleep` and `now` are functions of the type. Which of our runtimes is meant is a
//! matter of who asks: every task is polled inside a **scope** that names one, and what a task spawns inherits it. So several processes of a
//! simulated cluster, each with its own clock and disk, live on one thread, and nothing here knows tokio.
//!
//! # Invariants
//! - A call from outside of any scope panics: it would be a way past the door.
//! - A scope lasts for one poll; it is put back as it was when the poll returns or panics.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ferrisdb_core::Runtime;
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_storage::Env;
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;

use super::channel::{Channels, Latest, Lock, Once};
use crate::runtime::JobRuntime;

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Runtime>>> = const { RefCell::new(None) };
}

/// The runtime of the scope within which the caller is.
fn current() -> Arc<dyn Runtime> {
    let current = CURRENT.with_borrow(Clone::clone);
    current.expect("the consensus library is only called from within a scope of its runtime")
}

/// Puts back the scope that was there before.
struct Leave(Option<Arc<dyn Runtime>>);

impl Drop for Leave {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

fn enter(runtime: &Arc<dyn Runtime>) -> Leave {
    Leave(CURRENT.replace(Some(Arc::clone(runtime))))
}

/// Has `future` use `runtime` for whatever the consensus library does on its behalf.
pub(super) fn scope<F: Future>(runtime: Arc<dyn Runtime>, future: F) -> Scope<F> {
    Scope { runtime, future: Box::pin(future) }
}

/// See [`scope`].
pub(super) struct Scope<F> {
    runtime: Arc<dyn Runtime>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _leave = enter(&self.runtime);
        self.future.as_mut().poll(context)
    }
}

/// The library's runtime. Has no value but in the library's own test suite; see the [module](self).
pub(super) struct RaftRuntime {
    runtime: JobRuntime,
}

impl fmt::Debug for RaftRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftRuntime").finish_non_exhaustive()
    }
}

/// Why a task gave no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TaskEnded {
    /// It panicked, with this message.
    Panicked(String),
    /// Its runtime went before it was done.
    Dropped,
}

impl fmt::Display for TaskEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskEnded::Panicked(message) => write!(f, "a task of the log panicked: {message}"),
            TaskEnded::Dropped => f.write_str("a task of the log was dropped before its end"),
        }
    }
}

/// What a task will give. Dropping it lets the task run on.
pub(super) struct TaskHandle<T>(futures_channel::oneshot::Receiver<Result<T, TaskEnded>>);

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, TaskEnded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|ended| ended.unwrap_or(Err(TaskEnded::Dropped)))
    }
}

/// Catches the panics of a task, as its handle has to tell of them.
struct Guarded<F>(Pin<Box<F>>);

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, TaskEnded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A future that has panicked is never polled again, so nobody sees what it left half done.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(TaskEnded::Panicked(message_of(payload.as_ref())))),
        }
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// A moment, by the clock of the runtime that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(Duration);

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(duration))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(duration))
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Instant for Moment {
    fn now() -> Moment {
        Moment(current().now())
    }
}

/// A bound on a future's time.
pub(super) struct Bounded<F> {
    sleep: BoxFuture<()>,
    future: Pin<Box<F>>,
}

/// The time is up.
#[derive(Debug)]
pub(super) struct TimeIsUp;

impl fmt::Display for TimeIsUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time is up")
    }
}

impl<F: Future> Future for Bounded<F> {
    type Output = Result<F::Output, TimeIsUp>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        self.sleep.as_mut().poll(context).map(|()| Err(TimeIsUp))
    }
}

/// Random numbers of the runtime that was current when it was made.
pub(super) struct Dice(Arc<dyn Runtime>);

impl rand::TryRng for Dice {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        #[expect(clippy::cast_possible_truncation, reason = "half of the random bits are as random")]
        Ok(self.0.random() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.random())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.random().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl AsyncRuntime for RaftRuntime {
    type JoinError = TaskEnded;
    type JoinHandle<T: openraft::OptionalSend + 'static> = TaskHandle<T>;
    type Sleep = BoxFuture<()>;
    type Instant = Moment;
    type TimeoutError = TimeIsUp;
    type Timeout<R, T: Future<Output = R> + openraft::OptionalSend> = Bounded<T>;
    type ThreadLocalRng = Dice;
    type Mpsc = Channels;
    type Watch = Latest;
    type Oneshot = Once;
    type Mutex<T: openraft::OptionalSend + 'static> = Lock<T>;

    fn spawn<T>(future: T) -> TaskHandle<T::Output>
    where
        T: Future + openraft::OptionalSend + 'static,
        T::Output: openraft::OptionalSend + 'static,
    {
        let runtime = current();
        let (sender, receiver) = futures_channel::oneshot::channel();
        let task = scope(Arc::clone(&runtime), Guarded(Box::pin(future)));
        let task = async move {
            // Nobody may be left who wants to know.
            drop(sender.send(task.await));
        };
        runtime.spawn("raft", Box::pin(task));
        TaskHandle(receiver)
    }

    fn sleep(duration: Duration) -> BoxFuture<()> {
        current().sleep(duration)
    }

    fn sleep_until(deadline: Moment) -> BoxFuture<()> {
        let runtime = current();
        let now = runtime.now();
        runtime.sleep(deadline.0.saturating_sub(now))
    }

    fn timeout<R, F: Future<Output = R> + openraft::OptionalSend>(duration: Duration, future: F) -> Bounded<F> {
        Bounded { sleep: Self::sleep(duration), future: Box::pin(future) }
    }

    fn timeout_at<R, F: Future<Output = R> + openraft::OptionalSend>(deadline: Moment, future: F) -> Bounded<F> {
        Bounded { sleep: Self::sleep_until(deadline), future: Box::pin(future) }
    }

    fn is_panic(error: &TaskEnded) -> bool {
        matches!(error, TaskEnded::Panicked(_))
    }

    fn thread_rng() -> Dice {
        Dice(current())
    }

    /// A runtime of real threads, for the library's own tests.
    fn new(_threads: usize) -> RaftRuntime {
        RaftRuntime { runtime: JobRuntime::new(Env::real()) }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        let mut output = None;
        let runtime: Arc<dyn Runtime> = Arc::new(self.runtime.clone());
        {
            let task = std::pin::pin!(scope(runtime, async { output = Some(future.await) }));
            self.runtime.env().spawner.block_on(task);
        }
        output.expect("the spawner polls it to its end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft_rt::testing::Suite;

    /// The library says itself what it expects of a runtime, its channels and its locks.
    #[test]
    fn the_librarys_suite_is_content() {
        Suite::<RaftRuntime>::test_all();
    }

    #[test]
    #[should_panic(expected = "only called from within a scope")]
    fn a_call_past_the_door_panics() {
        let _now = Moment::now();
    }
}
