//! All jobs on the caller's thread, one step at a time: [`StepSpawner`].
//!
//! Nothing runs by itself: jobs step only inside [`block_on`](Spawner::block_on), [`step_one`](StepSpawner::step_one),
//! [`run_until_idle`](StepSpawner::run_until_idle) and [`run_for`](StepSpawner::run_for). The next job is the one that
//! has been ready longest, or the one that a seed picks: then each seed is another interleaving, and the same seed is
//! the same one. Time stands still while anything can run; only when a caller waits (`block_on`, `run_for`) and nothing
//! is ready does the shared [`ManualClock`] jump to the earliest timer.
//!
//! # Crashes
//! [`drop_jobs`](StepSpawner::drop_jobs) ends all jobs where they stand, as a dying process does, save that their
//! `Drop` runs. Jobs usually hold the environment and with it this spawner, so a test that abandons an engine without
//! closing it must call that, or the cycle keeps both alive.
//!
//! # Concurrency
//! `Send + Sync`: wakers may be woken from anywhere, and steps from several threads exclude each other. But only a
//! program that runs all steps from one thread is deterministic, and only there is a deadlock told from a wait for
//! another thread. A step may spawn jobs and wake wakers; it must not run steps, which panics.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;
use std::time::Duration;

use ferrisdb_core::{Clock, ManualClock, Random, SplitMix64};

use super::{Job, Spawner, Step};

/// A single `block_on` may pass this much simulated time. Beyond it some job goes on forever on timers while the caller
/// waits for something that never comes: a deadlock in disguise.
const BLOCK_ON_TIME_MAX: Duration = Duration::from_secs(60 * 60);

/// Runs jobs deterministically on the caller's thread. See the [module](self).
pub struct StepSpawner {
    shared: Arc<Shared>,
    clock: Arc<ManualClock>,
    /// Held during a step, so that two threads do not step at once. Says which thread steps.
    stepping: Mutex<()>,
    stepping_thread: Mutex<Option<ThreadId>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

/// Invariant: a job is in exactly one of: running, `ready`, waiting (with or without an entry in `timers`).
#[derive(Default)]
struct State {
    next: u64,
    jobs: BTreeMap<u64, Slot>,
    ready: VecDeque<u64>,
    timers: BTreeSet<(Duration, u64)>,
    /// Picks among the ready jobs; without it, first come, first served.
    random: Option<SplitMix64>,
    steps: u64,
}

struct Slot {
    name: String,
    /// None while it runs.
    job: Option<Box<dyn Job>>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    /// Woken since the step began: call it once more, whatever it says.
    Running {
        is_woken: bool,
    },
    Waiting,
    /// Waiting until this time, or until woken.
    Timed(Duration),
}

struct JobWaker {
    // Weak, because a job that holds its own waker would else live as long as it is waiting.
    shared: Weak<Shared>,
    job: u64,
}

impl Wake for JobWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.state().wake(self.job);
        }
    }
}

/// The waker of a caller in `block_on`.
struct CallerWaker {
    is_woken: AtomicBool,
}

impl Wake for CallerWaker {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self, job: u64) {
        let Some(slot) = self.jobs.get_mut(&job) else { return };
        match slot.place {
            Place::Ready => {}
            Place::Running { .. } => slot.place = Place::Running { is_woken: true },
            Place::Waiting => self.make_ready(job),
            Place::Timed(deadline) => {
                self.timers.remove(&(deadline, job));
                self.make_ready(job);
            }
        }
    }

    fn make_ready(&mut self, job: u64) {
        self.jobs.get_mut(&job).expect("the caller has found the job").place = Place::Ready;
        self.ready.push_back(job);
    }

    /// Readies the jobs whose time has come, in the order of their times.
    fn fire_timers(&mut self, now: Duration) {
        while let Some(&(deadline, job)) = self.timers.first()
            && deadline <= now
        {
            self.wake(job);
        }
    }

    /// Takes a ready job out to run it.
    fn pick(&mut self) -> Option<(u64, Box<dyn Job>)> {
        let index = match &mut self.random {
            Some(random) if !self.ready.is_empty() => {
                let ready = self.ready.len() as u64;
                usize::try_from(random.below(ready)).expect("it is below a length")
            }
            _ => 0,
        };
        let number = self.ready.remove(index)?;
        let slot = self.jobs.get_mut(&number).expect("a ready job exists");
        slot.place = Place::Running { is_woken: false };
        self.steps += 1;
        Some((number, slot.job.take().expect("a ready job is at home")))
    }

    /// Puts a job back after a step. Returns it if it is to be dropped.
    fn put_back(&mut self, number: u64, job: Box<dyn Job>, step: Step, now: Duration) -> Option<Box<dyn Job>> {
        let Some(slot) = self.jobs.get_mut(&number) else {
            // All jobs were dropped while it ran.
            return Some(job);
        };
        if step == Step::Done {
            self.jobs.remove(&number);
            return Some(job);
        }
        let is_woken = slot.place == Place::Running { is_woken: true };
        slot.job = Some(job);
        match step {
            Step::Wait if !is_woken => slot.place = Place::Waiting,
            Step::WaitFor(duration) if !is_woken => {
                let deadline = now.saturating_add(duration);
                slot.place = Place::Timed(deadline);
                self.timers.insert((deadline, number));
            }
            _ => self.make_ready(number),
        }
        None
    }

    fn waiting_jobs(&self) -> String {
        let names: Vec<&str> = self.jobs.values().map(|slot| slot.name.as_str()).collect();
        if names.is_empty() { "no job is left".to_owned() } else { format!("waiting jobs: {}", names.join(", ")) }
    }
}

impl StepSpawner {
    /// A spawner that runs jobs in the order in which they became ready. `clock` is what its timers go by, and what it
    /// moves.
    pub fn new(clock: Arc<ManualClock>) -> StepSpawner {
        StepSpawner { shared: Arc::default(), clock, stepping: Mutex::default(), stepping_thread: Mutex::default() }
    }

    /// A spawner that lets `seed` decide which ready job runs next, and whether a waiting caller goes before them.
    pub fn with_seed(clock: Arc<ManualClock>, seed: u64) -> StepSpawner {
        let spawner = StepSpawner::new(clock);
        spawner.shared.state().random = Some(SplitMix64::new(seed));
        spawner
    }

    /// Runs one step of one job that is ready now. False if there is none.
    ///
    /// # Panics
    /// If called inside a step. A panic of the job passes through, after the job was dropped.
    pub fn step_one(&self) -> bool {
        let this_thread = std::thread::current().id();
        assert!(*lock(&self.stepping_thread) != Some(this_thread), "a job's step must not run other steps or block");
        let _one_at_a_time = lock(&self.stepping);
        let picked = {
            let mut state = self.shared.state();
            state.fire_timers(self.clock.now());
            state.pick()
        };
        let Some((number, mut job)) = picked else { return false };
        *lock(&self.stepping_thread) = Some(this_thread);
        // Forgets the job if the step panics; the job itself is then dropped by the unwinding.
        let mut step_guard = StepGuard { spawner: self, job: Some(number) };
        let step = job.step();
        step_guard.job = None;
        drop(step_guard);
        let finished = self.shared.state().put_back(number, job, step, self.clock.now());
        // Outside the lock: dropping a job may wake others.
        drop(finished);
        true
    }

    /// Runs steps until no job is ready. Jobs that wait for a time later than the clock's go on waiting. Returns the
    /// number of steps.
    pub fn run_until_idle(&self) -> u64 {
        let mut steps = 0;
        while self.step_one() {
            steps += 1;
        }
        steps
    }

    /// Runs steps for `duration` of simulated time, jumping from timer to timer, and leaves the clock at the end of it.
    pub fn run_for(&self, duration: Duration) {
        let end = self.clock.now().saturating_add(duration);
        loop {
            self.run_until_idle();
            if !self.advance_to_timer(end) {
                break;
            }
        }
        self.clock.advance(end.saturating_sub(self.clock.now()));
    }

    /// Drops all jobs where they stand: the process is dead. Their wakers do nothing any more.
    pub fn drop_jobs(&self) {
        let jobs = {
            let mut state = self.shared.state();
            state.ready.clear();
            state.timers.clear();
            std::mem::take(&mut state.jobs)
        };
        // Outside the lock: dropping a job may wake others.
        drop(jobs);
    }

    /// The names of the jobs that have not ended, in the order of their spawning.
    pub fn jobs(&self) -> Vec<String> {
        self.shared.state().jobs.values().map(|slot| slot.name.clone()).collect()
    }

    /// The number of steps run so far: a cheap sign that two runs were the same.
    pub fn steps(&self) -> u64 {
        self.shared.state().steps
    }

    /// Moves the clock to the earliest timer, unless that is later than `limit`.
    fn advance_to_timer(&self, limit: Duration) -> bool {
        let earliest = self.shared.state().timers.first().map(|&(deadline, _)| deadline);
        match earliest {
            Some(deadline) if deadline <= limit => {
                self.clock.advance(deadline.saturating_sub(self.clock.now()));
                true
            }
            _ => false,
        }
    }

    /// With a seed, lets some steps run between a caller's wake and its turn.
    fn jobs_go_first(&self) -> bool {
        let mut state = self.shared.state();
        match &mut state.random {
            Some(random) => random.one_in(2) && !state.ready.is_empty(),
            None => false,
        }
    }
}

/// Ends a step, by return or by panic.
struct StepGuard<'a> {
    spawner: &'a StepSpawner,
    /// The job to forget if the step panics.
    job: Option<u64>,
}

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.spawner.stepping_thread) = None;
        if let Some(job) = self.job {
            self.spawner.shared.state().jobs.remove(&job);
        }
    }
}

impl Spawner for StepSpawner {
    fn sleep(&self, duration: Duration) {
        self.run_for(duration);
    }

    fn spawn(&self, name: &str, job: Box<dyn Job>) -> Waker {
        let mut state = self.shared.state();
        let number = state.next;
        state.next += 1;
        state.jobs.insert(number, Slot { name: name.to_owned(), job: Some(job), place: Place::Ready });
        state.ready.push_back(number);
        Arc::new(JobWaker { shared: Arc::downgrade(&self.shared), job: number }).into()
    }

    fn may_block(&self) -> bool {
        *lock(&self.stepping_thread) != Some(std::thread::current().id())
    }

    /// # Panics
    /// If the future is pending and no job can run, or an hour of simulated time has passed: a deadlock. The message
    /// names the jobs that wait. Also if called inside a step.
    fn block_on(&self, mut future: Pin<&mut dyn Future<Output = ()>>) {
        let this_thread = std::thread::current().id();
        assert!(*lock(&self.stepping_thread) != Some(this_thread), "a job's step must not run other steps or block");
        let caller = Arc::new(CallerWaker { is_woken: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&caller));
        let mut context = Context::from_waker(&waker);
        let end = self.clock.now().saturating_add(BLOCK_ON_TIME_MAX);
        loop {
            if caller.is_woken.load(Ordering::SeqCst) && !self.jobs_go_first() {
                caller.is_woken.store(false, Ordering::SeqCst);
                if future.as_mut().poll(&mut context) == Poll::Ready(()) {
                    return;
                }
                continue;
            }
            if !self.step_one() && !self.advance_to_timer(end) && !caller.is_woken.load(Ordering::SeqCst) {
                let jobs = self.shared.state().waiting_jobs();
                panic!("deadlock: a caller waits, and no job can go on; {jobs}");
            }
        }
    }
}

impl Drop for StepSpawner {
    fn drop(&mut self) {
        self.drop_jobs();
    }
}

impl fmt::Debug for StepSpawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        let waiting = state.jobs.values().map(|slot| (&slot.name, slot.place));
        f.debug_struct("StepSpawner").field("jobs", &waiting.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
