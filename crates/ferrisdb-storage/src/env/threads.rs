//! A thread for each job: [`ThreadSpawner`], the only module that starts or parks threads.
//!
//! A job's thread calls its step until that says `Done`, and parks in between if it says `Wait`. The waker sets a flag
//! and then unparks: the flag is looked at after every step and after every unpark, so a wake at any moment leads to a
//! step that begins after it. A token of `unpark` alone would not do: the step may use it up in a wait of its own.
//!
//! # Ends
//! A job ends with `Done`, with a panic in its step (the thread ends, the job is dropped, its wakers do nothing; the
//! engine wraps its jobs to learn of that), or with the drop of the spawner, which lets running steps finish and joins
//! the threads. No thread outlives the spawner, save one that drops it itself: that ends when its step returns.
//!
//! # Concurrency
//! Everything is callable from any thread. [`Spawner::block_on`] may be called inside a step; it occupies that job's
//! thread.

#![expect(clippy::disallowed_methods, reason = "this is the one door to real threads")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};

use super::{Job, Spawner, Step};

/// Runs each job on an operating-system thread of its own.
#[derive(Debug, Default)]
pub struct ThreadSpawner {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    threads: Mutex<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    next: u64,
    /// Threads that run, and threads that have ended but were not joined yet.
    running: BTreeMap<u64, (JoinHandle<()>, Arc<Wakeup>)>,
    /// Threads that are about to end: joining them takes no time.
    ended: Vec<u64>,
}

/// What a waker does to a thread.
#[derive(Debug)]
struct Wakeup {
    /// Shared with the thread, which is not known before it runs.
    is_woken: Arc<AtomicBool>,
    thread: Thread,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl ThreadSpawner {
    /// A spawner without jobs.
    pub fn new() -> ThreadSpawner {
        ThreadSpawner::default()
    }

    /// The number of jobs that have not ended.
    pub fn live_jobs(&self) -> usize {
        let threads = self.shared.threads();
        threads.running.len() - threads.ended.len()
    }
}

impl Shared {
    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps the job until it is done or the spawner goes.
    fn run(&self, job: &mut dyn Job, is_woken: &AtomicBool) {
        while !self.is_stopping.load(Ordering::Acquire) {
            // A swap, not a store: it must read the waker's Release, so that the step sees what was written before the
            // wake.
            is_woken.swap(false, Ordering::AcqRel);
            match job.step() {
                Step::Again => {}
                Step::Done => return,
                Step::Wait => {
                    while !is_woken.load(Ordering::Acquire) {
                        thread::park();
                    }
                }
                Step::WaitFor(duration) => {
                    // Waking early is allowed: the step is called again and says how long is left.
                    if !is_woken.load(Ordering::Acquire) {
                        thread::park_timeout(duration);
                    }
                }
            }
        }
    }
}

impl Threads {
    fn join_ended(&mut self) {
        for number in std::mem::take(&mut self.ended) {
            if let Some((handle, _)) = self.running.remove(&number) {
                // A panic was already reported on the thread, and the engine's job wrapper heard of it.
                drop(handle.join());
            }
        }
    }
}

/// Reports a thread as ended, whichever way it ends.
struct EndReport {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for EndReport {
    fn drop(&mut self) {
        self.shared.threads().ended.push(self.number);
    }
}

impl Spawner for ThreadSpawner {
    /// # Panics
    /// If the operating system has no more threads to give.
    fn spawn(&self, name: &str, job: Box<dyn Job>) -> Waker {
        let is_woken = Arc::new(AtomicBool::new(false));
        let mut threads = self.shared.threads();
        threads.join_ended();
        threads.next += 1;
        let number = threads.next;
        let (shared, flag) = (Arc::clone(&self.shared), Arc::clone(&is_woken));
        let body = move || {
            // Declared first, dropped last: who sees no live job may rely on what its drop did, also after a panic.
            let report = EndReport { shared, number };
            let mut job = job;
            report.shared.run(&mut *job, &flag);
        };
        // The name of a thread cannot hold a zero byte.
        let builder = thread::Builder::new().name(name.replace('\0', ""));
        let handle = builder.spawn(body).expect("the operating system has a thread for a background job");
        let wakeup = Arc::new(Wakeup { is_woken, thread: handle.thread().clone() });
        threads.running.insert(number, (handle, Arc::clone(&wakeup)));
        wakeup.into()
    }

    fn block_on(&self, mut future: Pin<&mut dyn Future<Output = ()>>) {
        let is_woken = Arc::new(AtomicBool::new(false));
        let wakeup = Arc::new(Wakeup { is_woken: Arc::clone(&is_woken), thread: thread::current() });
        let waker = Waker::from(wakeup);
        let mut context = Context::from_waker(&waker);
        while future.as_mut().poll(&mut context) == Poll::Pending {
            while !is_woken.swap(false, Ordering::AcqRel) {
                thread::park();
            }
        }
    }
}

impl Drop for ThreadSpawner {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        let running = std::mem::take(&mut self.shared.threads().running);
        running.values().for_each(|(_, wakeup)| wakeup.wake_by_ref());
        for (handle, _) in running.into_values() {
            if handle.thread().id() != thread::current().id() {
                drop(handle.join());
            }
        }
    }
}

#[cfg(test)]
mod tests;
