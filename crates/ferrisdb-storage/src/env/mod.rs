//! The doors to threads and time: [`Spawner`], [`Job`], [`Env`].
//!
//! The engine starts no thread and waits on no condition variable. Its background work is a set of [`Job`]s: step
//! functions that a [`Spawner`] calls until they say that they are done. The real spawner gives each job a thread
//! ([`threads::ThreadSpawner`]); the deterministic one runs the steps of all jobs on the caller's thread, one at a
//! time, in an order that a seed decides ([`steps::StepSpawner`]).
//!
//! # Waiting
//! A job that has nothing to do returns [`Step::Wait`] and is called again after its waker was woken. A wake that comes
//! while the step runs, or between its return and the wait, is not lost: the step is called once more. A caller that
//! must wait (a blocking write during a stall, `flush`, `close`) does so in [`Spawner::block_on`], over a future.

pub mod clock;
pub mod steps;
pub mod threads;

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use ferrisdb_core::{Clock, ManualClock, Random, SplitMix64};

use crate::fs::FileSystem;
use crate::fs::real::RealFileSystem;
use crate::fs::sim::SimFileSystem;

/// What a job wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is more to do: call again.
    Again,
    /// Nothing to do until the job's waker is woken.
    Wait,
    /// Nothing to do for this long, or until woken: pacing and retries.
    WaitFor(Duration),
    /// Finished: drop the job.
    Done,
}

/// A background job: a state machine whose step does a bounded amount of work (some tens of kilobytes of I/O), so that
/// one thread can interleave all of them.
pub trait Job: Send + 'static {
    /// Does some work. Never called from two threads at once, never after [`Step::Done`].
    fn step(&mut self) -> Step;
}

/// Runs jobs, and lets a caller wait.
pub trait Spawner: fmt::Debug + Send + Sync + 'static {
    /// Takes a job and returns its waker. The first step needs no wake.
    fn spawn(&self, name: &str, job: Box<dyn Job>) -> Waker;

    /// Polls `future` until it is ready: the caller's thread sleeps in between (real), or runs other jobs
    /// (deterministic).
    ///
    /// # Panics
    /// The deterministic spawner panics when the future is pending and no job can run: that is a deadlock.
    fn block_on(&self, future: Pin<&mut dyn Future<Output = ()>>);

    /// False where [`Spawner::block_on`] would panic: inside a step of the deterministic spawner.
    fn may_block(&self) -> bool {
        true
    }

    /// Lets the caller wait for so long: its thread sleeps (real), or other jobs run and the clock moves (deterministic).
    fn sleep(&self, duration: Duration);
}

/// Lets the caller wait for a future, as [`Spawner::block_on`] does, and returns what it was ready with.
pub fn wait<T>(spawner: &dyn Spawner, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut output = None;
    let waiting = std::future::poll_fn(|context| future.as_mut().poll(context).map(|ready| output = Some(ready)));
    spawner.block_on(pin!(waiting));
    output.expect("the spawner returns when the future is ready")
}

/// Everything that the engine takes from the outside world.
#[derive(Clone)]
pub struct Env {
    /// The disk.
    pub fs: Arc<dyn FileSystem>,
    /// Time, for pacing and statistics only: nothing that is stored depends on it.
    pub clock: Arc<dyn Clock>,
    /// Threads.
    pub spawner: Arc<dyn Spawner>,
    /// Randomness, for ids that must differ between engines. Nothing else is random.
    pub entropy: Arc<dyn Entropy>,
}

/// A source of bytes that nobody else gets.
pub trait Entropy: Send + Sync + 'static {
    /// Sixteen bytes, different at each call and in each process.
    fn unique_bytes(&self) -> [u8; 16];
}

/// Entropy that a seed decides: for tests and simulation.
#[derive(Debug)]
pub struct SeededEntropy {
    random: Mutex<SplitMix64>,
}

impl SeededEntropy {
    /// All bytes follow from `seed`.
    pub fn new(seed: u64) -> SeededEntropy {
        SeededEntropy { random: Mutex::new(SplitMix64::new(seed)) }
    }
}

impl Entropy for SeededEntropy {
    fn unique_bytes(&self) -> [u8; 16] {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&random.next_u64().to_le_bytes());
        bytes
    }
}

/// The operating system's entropy.
#[derive(Debug, Default)]
pub struct RealEntropy;

impl Entropy for RealEntropy {
    fn unique_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            // Only an interruption may fail here, and then nothing was filled.
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
        }
        bytes
    }
}

impl Env {
    /// The operating system's disk, clock and threads.
    pub fn real() -> Env {
        Env {
            fs: Arc::new(RealFileSystem::new()),
            clock: Arc::new(clock::RealClock::new()),
            spawner: Arc::new(threads::ThreadSpawner::new()),
            entropy: Arc::new(RealEntropy),
        }
    }

    /// A simulated disk, and jobs that run on the caller's thread whenever it waits, in the order in which they became
    /// ready, on a clock of their own.
    pub fn sim(fs: SimFileSystem) -> Env {
        let clock = Arc::new(ManualClock::new());
        let spawner = Arc::new(steps::StepSpawner::new(Arc::clone(&clock)));
        Env { fs: Arc::new(fs), clock, spawner, entropy: Arc::new(SeededEntropy::new(0)) }
    }

    /// As [`Env::sim`], with the order of jobs, and the entropy, chosen by a seed; and beside it what runs jobs without waiting, and what moves the clock.
    pub fn sim_with_seed(fs: SimFileSystem, seed: u64) -> (Env, Arc<steps::StepSpawner>, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new());
        let spawner = Arc::new(steps::StepSpawner::with_seed(Arc::clone(&clock), seed));
        let env = Env {
            fs: Arc::new(fs),
            clock: Arc::<ManualClock>::clone(&clock),
            spawner: Arc::<steps::StepSpawner>::clone(&spawner),
            entropy: Arc::new(SeededEntropy::new(seed)),
        };
        (env, spawner, clock)
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("fs", &self.fs).field("spawner", &self.spawner).finish_non_exhaustive()
    }
}
