//! [`ReadPool`]: the jobs that wait for the disk, so that callers need not.
//!
//! First come, first served, over a bounded queue; whoever drops its answer leaves the queue. The jobs are started with the first read that
//! needs one: a database that fits into memory has none. They hold the pool and nothing else, and end when it is closed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::{Code, Error, Result, Runtime};

use super::failure;

/// See the [module](self).
pub(super) struct ReadPool {
    jobs: usize,
    queue_max: usize,
    state: Mutex<State>,
}

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    is_started: bool,
    is_closed: bool,
    next: u64,
    /// In the order in which they came.
    queue: BTreeMap<u64, Task>,
    /// The jobs that have nothing to do, with how to wake them.
    idle: BTreeMap<usize, Waker>,
}

impl ReadPool {
    pub(super) fn new(jobs: usize, queue_max: usize) -> ReadPool {
        ReadPool { jobs: jobs.max(1), queue_max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads that wait for a job.
    pub(super) fn len(&self) -> usize {
        self.state().queue.len()
    }

    /// Has a job call `read`, and returns where its result will be.
    ///
    /// # Errors
    /// `process_behind` if too many reads wait; `connection_failed` if the pool was closed.
    pub(super) fn ask<T: Send + 'static>(
        pool: &Arc<ReadPool>,
        runtime: &dyn Runtime,
        read: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<PoolAnswer<T>> {
        let mut state = pool.state();
        if state.is_closed {
            return Err(failure::closed());
        }
        if state.queue.len() >= pool.queue_max {
            let detail = format!("{} reads wait for the storage server's disk", pool.queue_max);
            return Err(Error::with(Code::ProcessBehind, detail));
        }
        let reply = Arc::new(Mutex::new(Reply { result: None, waker: None }));
        let replier = Replier { reply: Arc::clone(&reply) };
        let place = state.next;
        state.next += 1;
        state.queue.insert(place, Box::new(move || replier.reply(read())));
        let start = !std::mem::replace(&mut state.is_started, true);
        let idle = state.idle.pop_first();
        drop(state);
        if let Some((_, waker)) = idle {
            waker.wake();
        }
        if start {
            for index in 0..pool.jobs {
                runtime.spawn(&format!("read-{index}"), Box::pin(work(Arc::clone(pool), index)));
            }
        }
        Ok(PoolAnswer { pool: Arc::clone(pool), place, reply })
    }

    /// Ends the jobs. Reads that wait get an error.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let idle = std::mem::take(&mut state.idle);
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        // Outside the lock: dropping a task wakes who waits for it.
        drop(queue);
        idle.into_values().for_each(Waker::wake);
    }
}

/// One job of the pool: a read for each poll.
async fn work(pool: Arc<ReadPool>, index: usize) {
    std::future::poll_fn(|context| {
        let task = {
            let mut state = pool.state();
            state.idle.remove(&index);
            if state.is_closed {
                return Poll::Ready(());
            }
            let Some((_, task)) = state.queue.pop_first() else {
                state.idle.insert(index, context.waker().clone());
                return Poll::Pending;
            };
            task
        };
        // A panic is a bug of ours. It has told who waits for the read, and the job goes on with the next.
        drop(catch_unwind(AssertUnwindSafe(task)));
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

struct Reply<T> {
    result: Option<Result<T>>,
    waker: Option<Waker>,
}

fn lock<T>(reply: &Mutex<Reply<T>>) -> MutexGuard<'_, Reply<T>> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task's end: replies in any case.
struct Replier<T> {
    reply: Arc<Mutex<Reply<T>>>,
}

impl<T> Replier<T> {
    fn reply(self, result: Result<T>) {
        self.set(result);
    }

    fn set(&self, result: Result<T>) {
        let mut reply = lock(&self.reply);
        if reply.result.is_some() {
            return;
        }
        reply.result = Some(result);
        let waker = reply.waker.take();
        drop(reply);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Replier<T> {
    fn drop(&mut self) {
        if Arc::strong_count(&self.reply) == 1 {
            // The answer was dropped: nobody looks.
            return;
        }
        self.set(Err(if std::thread::panicking() {
            Error::with(Code::InternalError, "a read panicked in the storage server")
        } else {
            failure::closed()
        }));
    }
}

/// The result of a read that a job does. Dropped before, it takes the read out of the queue.
pub(super) struct PoolAnswer<T> {
    pool: Arc<ReadPool>,
    place: u64,
    reply: Arc<Mutex<Reply<T>>>,
}

impl<T> Future for PoolAnswer<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut reply = lock(&self.reply);
        match reply.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                reply.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for PoolAnswer<T> {
    fn drop(&mut self) {
        let task = self.pool.state().queue.remove(&self.place);
        // Outside the lock: it holds what the read needs.
        drop(task);
    }
}
