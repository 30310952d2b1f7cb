//! [`HostJobs`]: the jobs of one simulated machine.
//!
//! All jobs of a process are run by one task of its runtime, the *machine*, one step at a time, in an order that the seed decides. A job that
//! used the disk in its last step pays for the next one beforehand: it becomes ready, and then waits for the disk. So between a write and its
//! sync, and between a sync that was asked for and its end, simulated time passes, other jobs run, and the power may fail.
//!
//! # Waiting without giving way
//! A process that waits in [`block_on`](Spawner::block_on) (opening a database) runs steps until it has what it waits for; where all of them wait for a time,
//! the machine's raw time is pushed ahead. The simulation catches up afterwards.
//!
//! # The end of a process
//! A death drops all jobs where they stand. Nothing that their `Drop` wakes or spawns runs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::env::{Job, Spawner, Step};

use super::clock::HostClock;
use super::disk::{Disk, Used};

/// The shortest wait for a time: a clock that stands still must not make a busy loop.
const WAIT_MIN: Duration = Duration::from_micros(100);
/// Steps that a machine can do in a millisecond. Only a job that never waits does so many: it must not stop the simulation's time.
const STEPS_PER_MILLISECOND: u32 = 5_000;
/// A job that has to wait for a processor does so for so many milliseconds at most.
const STARVES_MAX: u64 = 10;
/// While processors are busy: one job in so many has to, and for how long at most.
const BUSY: (u64, u64) = (3, 30);
/// Raw time that one `block_on` may pass. Beyond it some job goes on for ever on timers while the caller waits for something that never comes.
const BLOCK_ON_MAX: Duration = Duration::from_secs(600);

/// A [`Spawner`] for one life of a simulated process.
pub struct HostJobs {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    clock: Arc<HostClock>,
    disk: Arc<Disk>,
    /// For a while: the process is stopped (SIGSTOP).
    stopped_until_nanos: AtomicU64,
}

/// Invariant: a job is in exactly one of: running, `ready`, waiting, or waiting for a time, with an entry in `times`.
struct State {
    next: u64,
    jobs: BTreeMap<u64, Slot>,
    ready: Vec<u64>,
    times: BTreeSet<(Duration, u64)>,
    random: SplitMix64,
    /// One job in so many has to wait for a processor, for some milliseconds.
    starves_one_in: u64,
    /// For a while the processors have too much to do: many have to wait, and longer.
    is_busy: bool,
    machine: Option<Waker>,
    is_stepping: bool,
    is_dead: bool,
    steps_now: (Duration, u32),
}

struct Slot {
    name: String,
    /// None while it runs.
    job: Option<Box<dyn Job>>,
    place: Place,
    /// What its last step did on the disk.
    used: Used,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Running {
        is_woken: bool,
    },
    Waiting,
    /// Until raw time is there, or until woken.
    Timed(Duration),
    /// It has something to do, and waits for the disk or a processor: a wake changes nothing.
    Delayed(Duration),
}

impl HostJobs {
    /// A machine without jobs. `seed` decides the order of steps.
    pub(super) fn new(clock: Arc<HostClock>, disk: Arc<Disk>, seed: u64) -> HostJobs {
        let mut random = SplitMix64::new(seed);
        let starves_one_in = [0, 50, 500][usize::try_from(random.below(3)).expect("below three")];
        let state = State {
            next: 0,
            jobs: BTreeMap::new(),
            ready: Vec::new(),
            times: BTreeSet::new(),
            random,
            starves_one_in,
            is_busy: false,
            machine: None,
            is_stepping: false,
            is_dead: false,
            steps_now: (Duration::ZERO, 0),
        };
        let stopped_until_nanos = AtomicU64::new(0);
        HostJobs { shared: Arc::new(Shared { state: Mutex::new(state), clock, disk, stopped_until_nanos }) }
    }

    /// Runs the jobs for as long as it is polled.
    pub(super) fn machine(&self) -> impl Future<Output = ()> + 'static {
        let shared = Arc::clone(&self.shared);
        let mut sleep: Pin<Box<tokio::time::Sleep>> = Box::pin(tokio::time::sleep(Duration::ZERO));
        poll_fn(move |context| shared.turn(context, &mut sleep))
    }

    /// No step runs for so long.
    pub(super) fn stop_for(&self, duration: Duration) {
        let until = self.shared.clock.raw() + duration;
        self.shared.stopped_until_nanos.store(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// From now on the processors have too much to do, or no more.
    pub(super) fn set_busy(&self, is_busy: bool) {
        self.shared.lock().is_busy = is_busy;
    }

    /// Ends all jobs where they stand: the process is dead.
    pub(super) fn kill(&self) {
        let jobs = {
            let mut state = self.shared.lock();
            state.is_dead = true;
            state.ready.clear();
            state.times.clear();
            state.machine = None;
            std::mem::take(&mut state.jobs)
        };
        // Outside the lock: dropping a job may wake others.
        drop(jobs);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn of the machine.
    fn turn(&self, context: &mut Context<'_>, sleep: &mut Pin<Box<tokio::time::Sleep>>) -> Poll<()> {
        let mut steps_left = {
            let mut state = self.lock();
            state.machine = Some(context.waker().clone());
            1 + state.random.below(8)
        };
        loop {
            let now = self.clock.raw();
            let stopped_until = Duration::from_nanos(self.stopped_until_nanos.load(Ordering::SeqCst));
            let next = if self.lock().is_dead || self.disk.is_gone() {
                None
            } else if now < stopped_until {
                Some(stopped_until)
            } else if steps_left == 0 {
                // The tasks beside this one get their turn.
                context.waker().wake_by_ref();
                return Poll::Pending;
            } else if self.has_no_time_left(now) {
                Some(now + Duration::from_millis(1))
            } else if self.step_one(now) {
                steps_left -= 1;
                continue;
            } else {
                self.lock().times.first().map(|(time, _)| *time)
            };
            let Some(next) = next else { return Poll::Pending };
            let wait = next.saturating_sub(now).max(WAIT_MIN) + self.clock.ahead();
            sleep.as_mut().reset(tokio::time::Instant::now() + wait);
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn has_no_time_left(&self, now: Duration) -> bool {
        let mut state = self.lock();
        let millisecond = Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        if state.steps_now.0 != millisecond {
            state.steps_now = (millisecond, 0);
        }
        state.steps_now.1 += 1;
        state.steps_now.1 > STEPS_PER_MILLISECOND
    }

    /// Runs one step of one job that is ready. False if there is none.
    fn step_one(&self, now: Duration) -> bool {
        let (number, mut job) = {
            let mut state = self.lock();
            assert!(!state.is_stepping, "a job's step must not run other steps or block");
            while let Some(&(time, job)) = state.times.first()
                && time <= now
            {
                state.times.pop_first();
                let place = state.jobs[&job].place;
                match place {
                    Place::Delayed(_) => state.make_ready(job),
                    _ => self.has_work(&mut state, job, now),
                }
            }
            let Some(picked) = state.pick() else { return false };
            state.is_stepping = true;
            picked
        };
        self.disk.take_used();
        let step = job.step();
        let used = self.disk.take_used();
        let mut state = self.lock();
        state.is_stepping = false;
        let finished = self.put_back(&mut state, number, job, step, used);
        drop(state);
        // Outside the lock: dropping a job may wake others.
        drop(finished);
        true
    }

    /// Puts a job back after a step. Returns it if it is to be dropped.
    fn put_back(
        &self,
        state: &mut State,
        number: u64,
        job: Box<dyn Job>,
        step: Step,
        used: Used,
    ) -> Option<Box<dyn Job>> {
        // Killed while it ran: its slot has gone.
        let Some(slot) = state.jobs.get_mut(&number) else { return Some(job) };
        if step == Step::Done {
            state.jobs.remove(&number);
            return Some(job);
        }
        let is_woken = slot.place == Place::Running { is_woken: true };
        slot.job = Some(job);
        slot.used = used;
        match step {
            Step::Wait if !is_woken => slot.place = Place::Waiting,
            Step::WaitFor(duration) if !is_woken => {
                let time = self.clock.raw_after(duration.max(WAIT_MIN));
                slot.place = Place::Timed(time);
                state.times.insert((time, number));
            }
            _ => self.has_work(state, number, self.clock.raw()),
        }
        None
    }

    /// A job has something to do: at once, or when the disk or a processor lets it.
    fn has_work(&self, state: &mut State, job: u64, now: Duration) {
        let used = state.jobs[&job].used;
        let mut delay = self.disk.latency(used, &mut state.random);
        let (one_in, most) = if state.is_busy { BUSY } else { (state.starves_one_in, STARVES_MAX) };
        if one_in > 0 && state.random.one_in(one_in) {
            delay += Duration::from_millis(1 + state.random.below(most));
        }
        if delay.is_zero() {
            return state.make_ready(job);
        }
        let time = now + delay;
        state.jobs.get_mut(&job).expect("the caller has found the job").place = Place::Delayed(time);
        state.times.insert((time, job));
        state.wake_machine();
    }

    fn wake(&self, job: u64) {
        let now = self.clock.raw();
        let mut state = self.lock();
        let Some(slot) = state.jobs.get_mut(&job) else { return };
        match slot.place {
            Place::Ready | Place::Delayed(_) => {}
            Place::Running { .. } => slot.place = Place::Running { is_woken: true },
            Place::Waiting => self.has_work(&mut state, job, now),
            Place::Timed(time) => {
                state.times.remove(&(time, job));
                self.has_work(&mut state, job, now);
            }
        }
    }
}

impl State {
    fn make_ready(&mut self, job: u64) {
        self.jobs.get_mut(&job).expect("the caller has found the job").place = Place::Ready;
        self.ready.push(job);
        self.wake_machine();
    }

    fn wake_machine(&mut self) {
        if let Some(machine) = &self.machine {
            machine.wake_by_ref();
        }
    }

    /// Takes a ready job out to run it.
    fn pick(&mut self) -> Option<(u64, Box<dyn Job>)> {
        if self.ready.is_empty() {
            return None;
        }
        let index = usize::try_from(self.random.below(self.ready.len() as u64)).expect("it is below a length");
        let number = self.ready.remove(index);
        let slot = self.jobs.get_mut(&number).expect("a ready job exists");
        slot.place = Place::Running { is_woken: false };
        Some((number, slot.job.take().expect("a ready job is at home")))
    }
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
            shared.wake(self.job);
        }
    }
}

struct CallerWaker(AtomicBool);

impl Wake for CallerWaker {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Spawner for HostJobs {
    fn spawn(&self, name: &str, job: Box<dyn Job>) -> Waker {
        let now = self.shared.clock.raw();
        let mut state = self.shared.lock();
        if state.is_dead {
            drop(state);
            drop(job);
            return Waker::noop().clone();
        }
        let number = state.next;
        state.next += 1;
        let slot = Slot { name: name.to_owned(), job: Some(job), place: Place::Waiting, used: Used::default() };
        state.jobs.insert(number, slot);
        self.shared.has_work(&mut state, number, now);
        drop(state);
        Waker::from(Arc::new(JobWaker { shared: Arc::downgrade(&self.shared), job: number }))
    }

    fn block_on(&self, mut future: Pin<&mut dyn Future<Output = ()>>) {
        let caller = Arc::new(CallerWaker(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&caller));
        let end = self.shared.clock.raw() + BLOCK_ON_MAX;
        loop {
            if caller.0.swap(false, Ordering::SeqCst)
                && future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
            {
                return;
            }
            let now = self.shared.clock.raw();
            assert!(now < end, "a caller has waited for {BLOCK_ON_MAX:?}; {self:?}");
            if self.shared.step_one(now) || caller.0.load(Ordering::SeqCst) {
                continue;
            }
            let next = self.shared.lock().times.first().map(|(time, _)| *time);
            match next {
                Some(time) => self.shared.clock.push_to(time.max(now + WAIT_MIN)),
                None => panic!("deadlock: a caller waits, and no job can go on; {self:?}"),
            }
        }
    }

    fn may_block(&self) -> bool {
        let state = self.shared.lock();
        !state.is_stepping && !state.is_dead
    }

    fn sleep(&self, duration: Duration) {
        let end = self.shared.clock.raw_after(duration);
        let clock = Arc::clone(&self.shared.clock);
        loop {
            let now = clock.raw();
            if now >= end {
                return;
            }
            if !self.shared.step_one(now) {
                let next = self.shared.lock().times.first().map_or(end, |(time, _)| *time);
                clock.push_to(next.clamp(now + WAIT_MIN, end.max(now + WAIT_MIN)));
            }
        }
    }
}

impl fmt::Debug for HostJobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        let jobs = state.jobs.values().map(|slot| (slot.name.as_str(), slot.place));
        f.debug_struct("HostJobs").field("jobs", &jobs.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
