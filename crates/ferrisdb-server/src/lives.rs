//! Processes that live and die in a simulated world of a test: their jobs are steps of one spawner.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::env::{Job, Spawner, Step};

use crate::signal::lock;

const MILLISECOND: Duration = Duration::from_millis(1);

/// One life of a process.
pub(crate) struct Life {
    process: u64,
    is_alive: AtomicBool,
    is_paused: AtomicBool,
    /// For so many microseconds the disk is busy with each step of those who write tables, beside what is random.
    tables_take: AtomicU64,
    random: Mutex<SplitMix64>,
}

impl Life {
    pub(crate) fn new(process: u64, seed: u64) -> Arc<Life> {
        Arc::new(Life {
            process,
            is_alive: AtomicBool::new(true),
            is_paused: AtomicBool::new(false),
            tables_take: AtomicU64::new(0),
            random: Mutex::new(SplitMix64::new(seed)),
        })
    }

    /// It stands still, or goes on.
    pub(crate) fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::SeqCst);
    }

    /// Its disk is slow: each step of a flush or a compaction takes so long. The log is on a disk of its own.
    pub(crate) fn slow_tables(&self, step: Duration) {
        self.tables_take.store(u64::try_from(step.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// True while it stands still.
    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::SeqCst)
    }

    /// Its jobs take no step any more.
    pub(crate) fn end(&self) {
        self.is_alive.store(false, Ordering::SeqCst);
    }
}

/// A process's jobs: they end with it, and stand still while it is paused.
pub(crate) struct LifeSpawner {
    pub(crate) life: Arc<Life>,
    pub(crate) steps: Arc<StepSpawner>,
}

impl fmt::Debug for LifeSpawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.life.process)
    }
}

struct LifeJob {
    life: Arc<Life>,
    job: Option<Box<dyn Job>>,
    /// A disk takes its time: what is appended meanwhile is not synced yet.
    is_slow: bool,
    /// It writes tables.
    writes_tables: bool,
    has_waited: bool,
}

impl Job for LifeJob {
    fn step(&mut self) -> Step {
        if !self.life.is_alive.load(Ordering::SeqCst) {
            self.job = None;
            return Step::Done;
        }
        if self.life.is_paused.load(Ordering::SeqCst) {
            return Step::WaitFor(10 * MILLISECOND);
        }
        let takes = self.life.tables_take.load(Ordering::SeqCst);
        if self.writes_tables && takes > 0 && !self.has_waited {
            self.has_waited = true;
            return Step::WaitFor(Duration::from_micros(takes));
        }
        if self.is_slow && !self.has_waited {
            let mut random = lock(&self.life.random);
            if random.one_in(2) {
                self.has_waited = true;
                let most = if random.one_in(20) { 200_000 } else { 5_000 };
                return Step::WaitFor(Duration::from_micros(random.below(most)));
            }
        }
        self.has_waited = false;
        self.job.as_mut().map_or(Step::Done, |job| job.step())
    }
}

impl Spawner for LifeSpawner {
    fn spawn(&self, name: &str, job: Box<dyn Job>) -> Waker {
        let is_slow = name == "raft-log" || name == "flush";
        let writes_tables = name == "flush" || name.starts_with("compact");
        let life = Arc::clone(&self.life);
        let job = LifeJob { life, job: Some(job), is_slow, writes_tables, has_waited: false };
        self.steps.spawn(name, Box::new(job))
    }

    fn block_on(&self, future: std::pin::Pin<&mut dyn Future<Output = ()>>) {
        self.steps.block_on(future);
    }

    fn may_block(&self) -> bool {
        self.steps.may_block()
    }

    fn sleep(&self, duration: Duration) {
        self.steps.sleep(duration);
    }
}
