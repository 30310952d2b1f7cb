//! [`JobRuntime`]: futures run as jobs of the storage engine's spawner.
//!
//! A task is a [`Job`] whose step polls a future; the future's waker is the job's. With the real spawner each task has a thread of its own, so that
//! a task may block for a while in a sync or a read; with the deterministic one, all tasks take turns on one thread, in an order that a seed
//! decides. One more job, spawned with the first timer, keeps all timers in a heap; it ends when the last clone of the runtime goes.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, Runtime};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::{Job, Step};

/// A [`Runtime`] over the clock, spawner and entropy of an [`Env`]. Cheap to clone; clones are the same runtime.
#[derive(Clone)]
pub struct JobRuntime {
    env: Env,
    timers: Arc<Timers>,
}

impl JobRuntime {
    /// A runtime without tasks.
    pub fn new(env: Env) -> JobRuntime {
        JobRuntime { env, timers: Arc::new(Timers::default()) }
    }

    /// What it stands on.
    pub fn env(&self) -> &Env {
        &self.env
    }
}

impl fmt::Debug for JobRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobRuntime").field("spawner", &self.env.spawner).finish_non_exhaustive()
    }
}

impl Clock for JobRuntime {
    fn now(&self) -> Duration {
        self.env.clock.now()
    }

    fn unix_time(&self) -> Duration {
        self.env.clock.unix_time()
    }
}

impl Runtime for JobRuntime {
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let deadline = self.now().saturating_add(duration);
        Box::pin(Sleep { runtime: self.clone(), deadline, timer: None })
    }

    fn spawn(&self, name: &str, task: BoxFuture<()>) {
        let waker = Arc::new(TaskWaker::default());
        let job = TaskJob { task, waker: Waker::from(Arc::clone(&waker)) };
        let job_waker = self.env.spawner.spawn(name, Box::new(job));
        waker.job.set(job_waker).expect("a task's waker is set once, here");
        // The first step may have run already, and what it waits for may have happened before its waker was known.
        if waker.is_woken_early.load(Ordering::SeqCst) {
            waker.wake_job();
        }
    }

    fn random(&self) -> u64 {
        let bytes = self.env.entropy.unique_bytes();
        u64::from_le_bytes(bytes[..8].try_into().expect("eight of sixteen bytes"))
    }
}

/// Polls a future.
struct TaskJob {
    task: BoxFuture<()>,
    waker: Waker,
}

impl Job for TaskJob {
    fn step(&mut self) -> Step {
        match self.task.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(()) => Step::Done,
            Poll::Pending => Step::Wait,
        }
    }
}

/// A waker for a job that gets its own only once it has been spawned.
#[derive(Default)]
struct TaskWaker {
    job: OnceLock<Waker>,
    is_woken_early: AtomicBool,
}

impl TaskWaker {
    fn wake_job(&self) {
        match self.job.get() {
            Some(job) => job.wake_by_ref(),
            None => {
                self.is_woken_early.store(true, Ordering::SeqCst);
                // It may have been set between the two: then `spawn` may have looked at the flag too early.
                if let Some(job) = self.job.get() {
                    job.wake_by_ref();
                }
            }
        }
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_job();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_job();
    }
}

/// All pending timers of a runtime.
#[derive(Default)]
struct Timers {
    state: Mutex<TimerState>,
    /// The job that wakes them; spawned with the first timer.
    job: OnceLock<Waker>,
}

#[derive(Default)]
struct TimerState {
    next_number: u64,
    /// By deadline; the number makes equal deadlines different, in the order of their making.
    pending: BTreeMap<(Duration, u64), Waker>,
}

impl Timers {
    fn state(&self) -> MutexGuard<'_, TimerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        // The job finds nothing to keep any more, and ends.
        if let Some(job) = self.job.get() {
            job.wake_by_ref();
        }
    }
}

struct TimerJob {
    clock: Arc<dyn Clock>,
    timers: Weak<Timers>,
}

impl Job for TimerJob {
    fn step(&mut self) -> Step {
        let now = self.clock.now();
        let Some(timers) = self.timers.upgrade() else { return Step::Done };
        let (due, next) = {
            let mut state = timers.state();
            let later = state.pending.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.pending, later);
            (due, state.pending.keys().next().map(|(deadline, _)| *deadline))
        };
        due.into_values().for_each(Waker::wake);
        match next {
            Some(deadline) => Step::WaitFor(deadline - now),
            None => Step::Wait,
        }
    }
}

/// A timer, entered in the heap when it is first polled and taken out when dropped.
struct Sleep {
    runtime: JobRuntime,
    deadline: Duration,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.runtime.now() >= self.deadline {
            return Poll::Ready(());
        }
        let deadline = self.deadline;
        let is_first = {
            let mut state = self.runtime.timers.state();
            let number = match self.timer {
                Some(number) => number,
                None => {
                    state.next_number += 1;
                    state.next_number
                }
            };
            state.pending.insert((deadline, number), context.waker().clone());
            let is_first = state.pending.keys().next() == Some(&(deadline, number));
            drop(state);
            self.timer = Some(number);
            is_first
        };
        let env = &self.runtime.env;
        let timers = &self.runtime.timers;
        let job = timers.job.get_or_init(|| {
            let job = TimerJob { clock: Arc::clone(&env.clock), timers: Arc::downgrade(timers) };
            env.spawner.spawn("timers", Box::new(job))
        });
        if is_first {
            job.wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            self.runtime.timers.state().pending.remove(&(self.deadline, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::ManualClock;
    use ferrisdb_storage::env::SeededEntropy;
    use ferrisdb_storage::env::steps::StepSpawner;
    use ferrisdb_storage::fs::sim::SimFileSystem;

    fn stepped() -> (Arc<StepSpawner>, JobRuntime) {
        let clock = Arc::new(ManualClock::new());
        let spawner = Arc::new(StepSpawner::new(Arc::clone(&clock)));
        let env = Env {
            fs: Arc::new(SimFileSystem::new()),
            clock,
            spawner: Arc::<StepSpawner>::clone(&spawner),
            entropy: Arc::new(SeededEntropy::new(1)),
        };
        (spawner, JobRuntime::new(env))
    }

    /// Three sleepers wake in the order of their deadlines, on a clock that only the spawner moves.
    #[test]
    fn timers_fire_in_order_and_not_early() {
        let (spawner, runtime) = stepped();
        let woken = Arc::new(Mutex::new(Vec::new()));
        for seconds in [3, 1, 2] {
            let (woken, sleeper) = (Arc::clone(&woken), runtime.clone());
            runtime.spawn(
                "sleeper",
                Box::pin(async move {
                    sleeper.sleep(Duration::from_secs(seconds)).await;
                    woken.lock().expect("no panic").push((seconds, sleeper.now()));
                }),
            );
        }
        spawner.run_for(Duration::from_millis(2500));
        assert_eq!(woken.lock().expect("no panic").len(), 2, "the third is not due");
        spawner.run_for(Duration::from_secs(1));
        let woken = woken.lock().expect("no panic").clone();
        assert_eq!(woken.iter().map(|(seconds, _)| *seconds).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(woken.iter().all(|(seconds, at)| *at >= Duration::from_secs(*seconds)));
    }

    /// A dropped timer leaves nothing behind.
    #[test]
    fn a_dropped_timer_is_forgotten() {
        let (_spawner, runtime) = stepped();
        let mut sleep = runtime.sleep(Duration::from_secs(1));
        assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(runtime.timers.state().pending.len(), 1);
        drop(sleep);
        assert_eq!(runtime.timers.state().pending.len(), 0);
    }

    /// Nothing of a runtime is left when its last clone goes: not the job of its timers either.
    #[test]
    fn the_timers_end_with_the_runtime() {
        let (spawner, runtime) = stepped();
        let sleeper = runtime.clone();
        runtime.spawn("sleeper", Box::pin(async move { sleeper.sleep(Duration::from_secs(1)).await }));
        spawner.run_for(Duration::from_secs(2));
        assert_eq!(spawner.jobs(), ["timers"]);
        drop(runtime);
        spawner.run_until_idle();
        assert!(spawner.jobs().is_empty());
    }

    /// On real threads: many tasks that wake each other at once, each wake being needed.
    #[test]
    fn no_wake_is_lost_on_threads() {
        let runtime = JobRuntime::new(Env::real());
        let (sender, receiver) = std::sync::mpsc::channel();
        for number in 0..50u64 {
            let (runtime_of_task, sender) = (runtime.clone(), sender.clone());
            runtime.spawn(
                "napper",
                Box::pin(async move {
                    for _ in 0..5 {
                        runtime_of_task.sleep(Duration::from_micros(number * 7)).await;
                    }
                    sender.send(number).expect("the test waits");
                }),
            );
        }
        let mut done: Vec<u64> = (0..50).map(|_| receiver.recv().expect("every task ends")).collect();
        done.sort_unstable();
        assert_eq!(done, (0..50).collect::<Vec<_>>());
    }
}
