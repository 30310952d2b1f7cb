//! A simulated world: machines with processes on them, and what may happen to them.
//!
//! Everything runs on one thread. The network and tokio's time are turmoil's; each machine has a [disk], a [clock], [jobs] in place of
//! threads, and a seeded source of randomness of its own. What a process is, is a value: a [`Process`] gets the [`Doors`] of its machine and runs until it
//! ends or is dropped. So the same world runs a database in one process, a replica of a log, or a client.
//!
//! ```text
//! World ── turmoil: hosts in turn, a millisecond each, messages between them
//!   └─ Host ── Disk   what was written, what was synced, how long it takes, what it does wrong
//!        ├──── HostClock   offset, rate, jumps, standing still
//!        └──── a life: HostJobs (dropped with it), Process ── Doors { env, network, address, directory }
//! ```
//!
//! # Determinism
//! The seed decides everything: which host goes first, which job steps next, how long messages and syncs take, what a loss of power leaves. One
//! world in a process: tokio numbers the tasks of a process, and the numbers decide the order in which a crash drops them.

pub mod clock;
pub mod disk;
pub mod jobs;
pub mod network;
pub mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::fs::sim::CrashMode;

use self::clock::HostClock;
use self::disk::Disk;
use self::jobs::HostJobs;
use self::network::Network;
use self::trace::Trace;

/// Where a process has its data.
pub const DIRECTORY: &str = "/data";
/// The simulation's smallest step: each host runs so long before the next one does, and messages move in between.
pub const TICK: Duration = Duration::from_millis(1);
/// Bytes may be under way in a stream up to this many segments: never the limit.
const TCP_SEGMENTS: usize = 1 << 16;

/// Why a process has ended by itself: `Err` says what was wrong.
pub type Ended = Result<(), String>;

/// A future that stays on the simulation's thread.
pub type Running = Pin<Box<dyn Future<Output = Ended>>>;

/// The program of a process.
pub trait Process: 'static {
    /// Runs until it ends by itself, or is dropped: then the process has died.
    fn run(&self, doors: Doors) -> Running;
}

impl<F, R> Process for F
where
    F: Fn(Doors) -> R + 'static,
    R: Future<Output = Ended> + 'static,
{
    fn run(&self, doors: Doors) -> Running {
        Box::pin(self(doors))
    }
}

/// Everything that a process has of the world outside.
#[derive(Debug)]
pub struct Doors {
    /// Disk, clock, jobs and randomness.
    pub env: Env,
    /// The way to other hosts.
    pub network: Network,
    /// The host's name: what others connect to, with a port.
    pub address: String,
    /// Where its data is.
    pub directory: PathBuf,
    /// Another number in each life.
    pub seed: u64,
    clock: Arc<HostClock>,
}

impl Doors {
    /// Waits until the simulation has caught up with a process that waited without giving way. To be called after opening a database, so that a recovery
    /// takes the time that it took.
    pub async fn catch_up(&self) {
        loop {
            let ahead = self.clock.ahead();
            if ahead.is_zero() {
                return;
            }
            tokio::time::sleep(ahead).await;
        }
    }
}

/// A machine.
pub struct Host {
    name: String,
    disk: Arc<Disk>,
    clock: Arc<HostClock>,
    network: Network,
    seed: u64,
    lives: AtomicU64,
    life: Mutex<Life>,
}

/// What a process has besides its tasks.
#[derive(Default)]
struct Life {
    jobs: Option<Arc<HostJobs>>,
    ended: Option<Ended>,
}

impl Host {
    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its clock.
    pub fn clock(&self) -> &HostClock {
        &self.clock
    }

    /// Its network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The jobs of its process stand still for so long.
    pub fn stop_jobs_for(&self, duration: Duration) {
        if let Some(jobs) = &self.life().jobs {
            jobs.stop_for(duration);
        }
    }

    /// The processors have too much to do from now on, or no more, until the process ends.
    pub fn set_busy(&self, is_busy: bool) {
        if let Some(jobs) = &self.life().jobs {
            jobs.set_busy(is_busy);
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What becomes of a machine's disk when its process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The process is killed: what it wrote is there, and its connections are closed.
    Killed,
    /// The power fails: the disk loses of what was not synced what the mode says, and nobody is told.
    Power(CrashMode),
}

/// A world of hosts.
pub struct World {
    sim: turmoil::Sim<'static>,
    hosts: BTreeMap<String, Arc<Host>>,
    random: SplitMix64,
    trace: Trace,
}

impl World {
    /// An empty world. Messages take up to `latency_max`.
    pub fn new(seed: u64, latency_max: Duration, trace: Trace) -> World {
        assert!(
            crate::is_reproducible(),
            "the simulator must be built with `--cfg tokio_unstable`, as .cargo/config.toml says"
        );
        let mut random = SplitMix64::new(seed);
        let sim = turmoil::Builder::new()
            .rng_seed(random.next_u64())
            // The run ends by its own rules.
            .simulation_duration(Duration::from_secs(24 * 60 * 60))
            .tick_duration(TICK)
            .epoch(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(latency_max)
            .tcp_capacity(TCP_SEGMENTS)
            .enable_random_order()
            .build();
        World { sim, hosts: BTreeMap::new(), random, trace }
    }

    /// Adds a machine with a process, which starts with the next [`tick`](Self::tick).
    pub fn add(&mut self, name: &str, clock: HostClock, process: impl Process) {
        let seed = self.random.next_u64();
        let host = Arc::new(Host {
            name: name.to_owned(),
            disk: Arc::new(Disk::new(name, self.trace.clone())),
            clock: Arc::new(clock),
            network: Network::new(name, self.trace.clone(), self.random.next_u64()),
            seed,
            lives: AtomicU64::new(0),
            life: Mutex::default(),
        });
        self.hosts.insert(name.to_owned(), Arc::clone(&host));
        let (trace, process) = (self.trace.clone(), Rc::new(process));
        self.sim.host(name, move || live(Arc::clone(&host), Rc::clone(&process), trace.clone()));
    }

    /// A machine.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn host(&self, name: &str) -> &Arc<Host> {
        self.hosts.get(name).expect("only names of hosts are asked for")
    }

    /// The record of what happens.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The network, for its faults.
    pub fn network(&self) -> &turmoil::Sim<'static> {
        &self.sim
    }

    /// Time since the beginning.
    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// A millisecond passes.
    ///
    /// # Panics
    /// What a process panics with.
    pub fn tick(&mut self) {
        self.trace.set_now(self.sim.elapsed());
        self.sim.step().expect("no process of ours ends with an error");
    }

    /// A process dies. Its host is down until it is [started](Self::start).
    pub fn kill(&mut self, name: &str, death: Death) {
        let host = Arc::clone(self.host(name));
        self.trace.note(format_args!("{name} dies: {death:?}"));
        // First of all: what is dropped from now on reaches no disk.
        host.disk.halt();
        let jobs = std::mem::take(&mut *host.life()).jobs;
        if let Some(jobs) = jobs {
            jobs.kill();
        }
        let others: Vec<String> = self.hosts.keys().filter(|other| *other != name).cloned().collect();
        if matches!(death, Death::Power(_)) {
            // No goodbye leaves the machine.
            others.iter().for_each(|other| self.sim.partition(name, other.as_str()));
        }
        self.sim.crash(name);
        if matches!(death, Death::Power(_)) {
            others.iter().for_each(|other| self.sim.repair(name, other.as_str()));
        }
        host.disk.crash(match death {
            Death::Killed => CrashMode::NothingLost,
            Death::Power(mode) => mode,
        });
    }

    /// Starts the process of a host that is down.
    pub fn start(&mut self, name: &str) {
        self.trace.note(format_args!("{name} starts"));
        self.sim.bounce(name);
    }

    /// How the process of a host has ended by itself, if it has, told once.
    pub fn take_ended(&self, name: &str) -> Option<Ended> {
        self.host(name).life().ended.take()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("hosts", &self.hosts.keys()).field("now", &self.now()).finish_non_exhaustive()
    }
}

/// One life of a process.
async fn live(host: Arc<Host>, process: Rc<impl Process>, trace: Trace) -> turmoil::Result {
    let life = host.lives.fetch_add(1, Ordering::SeqCst);
    host.clock.boot(tokio::runtime::Handle::current(), trace.now());
    let mut random = SplitMix64::new(host.seed.wrapping_add(life.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let jobs = Arc::new(HostJobs::new(Arc::clone(&host.clock), Arc::clone(&host.disk), random.next_u64()));
    host.life().jobs = Some(Arc::clone(&jobs));
    // It ends with the host's runtime.
    drop(tokio::task::spawn_local(jobs.machine()));
    let env = Env {
        fs: Arc::new(host.disk.files().clone()),
        clock: Arc::<HostClock>::clone(&host.clock),
        spawner: jobs,
        entropy: Arc::new(SeededEntropy::new(random.next_u64())),
    };
    let doors = Doors {
        env,
        network: host.network.clone(),
        address: host.name.clone(),
        directory: PathBuf::from(DIRECTORY),
        seed: random.next_u64(),
        clock: Arc::clone(&host.clock),
    };
    let ended = process.run(doors).await;
    trace.note(format_args!("{} has ended: {ended:?}", host.name));
    host.life().ended = Some(ended);
    // Whoever runs the world decides when it is gone.
    std::future::pending().await
}
