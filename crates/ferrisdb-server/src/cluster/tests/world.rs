//! The world: processes over simulated disks and a simulated network, and clients that transfer between accounts.
//!
//! Checked as it happens: the accounts that any process shows at any version have one total, and a read version is at or above every version that was
//! acknowledged before it was asked for. Checked at the end, by the [judge]: every transfer that was acknowledged happened once, and all storage servers are equal.
//! How messages go is the [network]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{
    Bytes, Clock, Code, Error, KeyRange, KeyValue, ManualClock, Random, Result, Runtime, SplitMix64, Version,
};
use ferrisdb_rpc::api::GetRangeRequest;
use ferrisdb_rpc::{Answer, Endpoint};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};

use super::super::{Beginning, ClusterNode, ClusterOptions, Doors, MemberOptions, ShardOptions};
use crate::coordinator::rate::RateOptions;
use crate::coordinator::{Coordinator, CoordinatorOptions};
use crate::links::{Counts, Links};
use crate::lives::{Life, LifeSpawner};
use crate::log::Tag;
use crate::log::replicated::{LogStoreOptions, Peer, ProcessId, ReplicatedLogOptions};
use crate::runtime::JobRuntime;
use crate::shards::change::Change;
use crate::signal::lock;
use crate::storage::StorageOptions;

mod judge;
mod losses;
mod network;

use losses::Losses;
use network::{Anywhere, Line, OUTSIDE, SimNetwork, address};

const MILLISECOND: Duration = Duration::from_millis(1);
const ACCOUNTS: u64 = 8;
const BALANCE: i64 = 100;
const CLIENTS: u64 = 3;

struct Host {
    disk: SimFileSystem,
    life: Option<Arc<Life>>,
    runtime: Option<JobRuntime>,
    node: Option<Arc<ClusterNode>>,
}

#[derive(Default)]
struct Truth {
    committed: u64,
    /// How often each client's transfers were acknowledged.
    transfers: BTreeMap<u64, u64>,
    /// Transfers of which nobody can tell.
    unknown: u64,
    acknowledged: Version,
    epochs: BTreeSet<u64>,
    moves: BTreeSet<(Bytes, Version)>,
    failures: Vec<String>,
    trace: u64,
}

impl Truth {
    fn note(&mut self, what: &str) {
        for byte in what.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

struct State {
    random: SplitMix64,
    hosts: BTreeMap<ProcessId, Host>,
    links: Links,
    lives: u64,
    is_quiet: bool,
    losses: Losses,
    shards: ShardOptions,
    rate: RateOptions,
}

pub(super) struct World {
    /// How many processes there are to be.
    processes: u64,
    clock: Arc<ManualClock>,
    steps: Arc<StepSpawner>,
    seed: u64,
    state: Mutex<State>,
    truth: Mutex<Truth>,
    me: Weak<World>,
    /// Where the clients live.
    outside: JobRuntime,
    gone_after: Duration,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Processes that were lost for good, and disks that went back.
    pub(super) losses: (u64, u64),
    pub(super) counts: Counts,
    pub(super) failures: Vec<String>,
    pub(super) committed: u64,
    pub(super) epochs: usize,
    /// How many moves of shards were seen to begin.
    pub(super) moves: usize,
    pub(super) trace: u64,
}

impl World {
    /// One in which nobody is ever lost for good.
    pub(super) fn new(seed: u64) -> Arc<World> {
        World::of(seed, 3)
    }

    pub(super) fn of(seed: u64, processes: u64) -> Arc<World> {
        World::with(seed, processes, MemberOptions::default().gone_after)
    }

    /// One in which a process that is silent for so long is gone.
    pub(super) fn with(seed: u64, processes: u64, gone_after: Duration) -> Arc<World> {
        let clock = Arc::new(ManualClock::new());
        let steps = Arc::new(StepSpawner::with_seed(Arc::clone(&clock), seed));
        let spawner = LifeSpawner { life: Life::new(OUTSIDE, seed), steps: Arc::clone(&steps) };
        let outside = JobRuntime::new(Env {
            fs: Arc::new(SimFileSystem::new()),
            clock: Arc::<ManualClock>::clone(&clock),
            spawner: Arc::new(spawner),
            entropy: Arc::new(SeededEntropy::new(seed ^ 0xc11e)),
        });
        let state = State {
            random: SplitMix64::new(seed ^ 0x5eed),
            hosts: BTreeMap::new(),
            links: Links::default(),
            lives: 0,
            is_quiet: false,
            losses: Losses::default(),
            shards: ShardOptions::default(),
            rate: RateOptions::default(),
        };
        Arc::new_cyclic(|me| World {
            processes,
            clock,
            steps,
            seed,
            state: Mutex::new(state),
            truth: Mutex::default(),
            me: me.clone(),
            outside,
            gone_after,
        })
    }

    fn random(&self, below: u64) -> u64 {
        lock(&self.state).random.below(below)
    }

    fn fail(&self, what: String) {
        lock(&self.truth).failures.push(what);
    }

    fn options(&self) -> ClusterOptions {
        let (shards, rate) = {
            let state = lock(&self.state);
            (state.shards.clone(), state.rate.clone())
        };
        ClusterOptions {
            log: ReplicatedLogOptions {
                store: LogStoreOptions { segment_bytes: 64 << 10, hot_bytes: 16 << 10 },
                hot_bytes: 8 << 10,
                purge_interval: Duration::from_millis(300),
                ..ReplicatedLogOptions::default()
            },
            storage: StorageOptions {
                engine: ferrisdb_storage::Options::tiny(),
                read_jobs: 2,
                ..StorageOptions::default()
            },
            members: MemberOptions { gone_after: self.gone_after, ..MemberOptions::default() },
            shards,
            coordinator: CoordinatorOptions { rate, ..CoordinatorOptions::default() },
            ..ClusterOptions::default()
        }
    }

    /// How processes that are started from now on distribute data.
    pub(super) fn set_shards(&self, shards: ShardOptions) {
        lock(&self.state).shards = shards;
    }

    /// When processes that are started from now on limit how many transactions begin.
    pub(super) fn set_rate(&self, rate: RateOptions) {
        lock(&self.state).rate = rate;
    }

    /// The disk that a process has its tables on is slow: each step of a flush or a compaction takes so long.
    pub(super) fn slow_tables(&self, process: ProcessId, step: Duration) {
        if let Some(life) = &lock(&self.state).hosts[&process].life {
            life.slow_tables(step);
        }
    }

    /// Starts a process, on the disk that it has. The first one founds the cluster, the others join.
    pub(super) fn start(&self, process: ProcessId) {
        let runtime = {
            let mut state = lock(&self.state);
            state.lives += 1;
            let seed = self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(state.lives);
            let life = Life::new(process, seed);
            let spawner = LifeSpawner { life: Arc::clone(&life), steps: Arc::clone(&self.steps) };
            let host = state.hosts.entry(process).or_insert_with(|| Host {
                disk: SimFileSystem::new(),
                life: None,
                runtime: None,
                node: None,
            });
            let runtime = JobRuntime::new(Env {
                fs: Arc::new(host.disk.clone()),
                clock: Arc::<ManualClock>::clone(&self.clock),
                spawner: Arc::new(spawner),
                entropy: Arc::new(SeededEntropy::new(seed)),
            });
            host.life = Some(life);
            host.runtime = Some(runtime.clone());
            host.node = None;
            runtime
        };
        let network = SimNetwork { world: self.me.clone(), from: process, runtime: runtime.clone() };
        let doors =
            Doors { env: runtime.env().clone(), runtime: Arc::new(runtime.clone()), network: Arc::new(network) };
        let (me, options, life) = (self.me.clone(), self.options(), lock(&self.state).lives);
        let is_founder = lock(&self.state).hosts.len() == 1;
        let here = lock(&self.state).losses.address_of(process);
        let processes = self.processes;
        let boot = async move {
            let here = Peer { address: here, zone: String::new() };
            loop {
                let others = (1..=processes).filter(|&other| other != process).map(address).collect();
                let beginning = if is_founder { Beginning::Found } else { Beginning::Join(others) };
                let opened =
                    ClusterNode::open(doors.clone(), Path::new("/p"), options.clone(), here.clone(), beginning).await;
                let Some(world) = me.upgrade() else { return };
                match opened {
                    Ok(node) => {
                        let mut state = lock(&world.state);
                        if state.lives == life || state.hosts[&process].node.is_none() {
                            state.hosts.get_mut(&process).expect("it was started").node = Some(Arc::new(node));
                        }
                        drop(state);
                        lock(&world.truth).note(&format!("{process} is open"));
                        return;
                    }
                    // Whoever cannot reach the cluster asks again, as a person would.
                    Err(error) if error.code() == Code::ConnectionFailed => {}
                    Err(error) => return world.fail(format!("process {process} does not open: {error}")),
                }
            }
        };
        runtime.spawn("boot", Box::pin(boot));
    }

    /// Starts processes one after the other, with clients from the first on, until all have everything.
    pub(super) fn grow_to(&self, processes: u64) {
        self.start(1);
        self.run(2 * Duration::from_secs(1));
        self.start_clients();
        self.run(Duration::from_secs(1));
        for process in 2..=processes {
            self.start(process);
            self.run(Duration::from_secs(1));
        }
        for _ in 0..60 {
            let is_whole = {
                let state = lock(&self.state);
                state.hosts.values().all(|host| {
                    host.node.as_ref().is_some_and(|node| {
                        node.is_complete() && node.group().voters.len() == processes.min(3) as usize
                    })
                })
            };
            if is_whole {
                return;
            }
            self.run(Duration::from_millis(500));
        }
        let state = lock(&self.state);
        let states: Vec<_> = state
            .hosts
            .iter()
            .map(|(process, host)| {
                let node = host.node.as_ref();
                (
                    process,
                    node.map(|node| {
                        (node.is_complete(), node.failure(), lock(&node.life.shared().moving).clone(), node.group())
                    }),
                )
            })
            .collect();
        panic!("the cluster has not grown: {states:#?}");
    }

    pub(super) fn run(&self, duration: Duration) {
        self.steps.run_for(duration);
    }

    /// Runs for so many milliseconds, with changes of the shards if that is wanted.
    fn run_shuffled(&self, millis: u64, moves: bool) {
        let end = self.clock.now() + millis as u32 * MILLISECOND;
        while self.clock.now() < end {
            let left = (end - self.clock.now()).as_millis() as u64;
            let step = if moves { left.min(50 + self.random(400)) } else { left };
            self.run((step.max(1) as u32) * MILLISECOND);
            if moves {
                self.shuffle();
            }
        }
    }

    /// The newest epoch that any process knows.
    pub(super) fn epochs(&self) -> u64 {
        self.note_epochs();
        lock(&self.truth).epochs.last().copied().unwrap_or_default()
    }

    /// The newest version that was acknowledged.
    pub(super) fn acknowledged(&self) -> Version {
        lock(&self.truth).acknowledged
    }

    /// The coordinator that runs there.
    pub(super) fn coordinator(&self, process: ProcessId) -> Coordinator {
        let node = self.node(process).expect("it lives");
        node.life.shared().leading.coordinator().expect("it leads")
    }

    pub(super) fn committed(&self) -> u64 {
        lock(&self.truth).committed
    }

    /// Clients begin nothing any more.
    pub(super) fn be_quiet(&self) {
        lock(&self.state).is_quiet = true;
        self.run(Duration::from_secs(5));
    }

    pub(super) fn spawn_outside(&self, task: BoxFuture<()>) {
        self.outside.spawn("task", task);
    }

    pub(super) fn node(&self, process: ProcessId) -> Option<Arc<ClusterNode>> {
        lock(&self.state).hosts.get(&process).and_then(|host| host.node.clone())
    }

    pub(super) fn leader(&self) -> ProcessId {
        self.leading().expect("somebody leads")
    }

    /// Who runs a coordinator, or believes to.
    pub(super) fn leading(&self) -> Option<ProcessId> {
        let state = lock(&self.state);
        let nodes: Vec<_> =
            state.hosts.iter().filter_map(|(&number, host)| Some((number, host.node.clone()?))).collect();
        drop(state);
        nodes.iter().find(|(_, node)| node.life.shared().leading.coordinator().is_some()).map(|(number, _)| *number)
    }

    /// A client that knows this process and no other.
    pub(super) fn client_of(&self, process: ProcessId) -> Database {
        let line = Line { world: self.me.clone(), from: OUTSIDE, to: process, runtime: self.outside.clone() };
        Database::new(Arc::new(line), Arc::new(self.outside.clone()), DatabaseOptions::default())
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    pub(super) fn clock(&self) -> Arc<ManualClock> {
        Arc::clone(&self.clock)
    }

    /// A process stands still, or goes on.
    pub(super) fn pause(&self, process: ProcessId, is_paused: bool) {
        if let Some(life) = &lock(&self.state).hosts[&process].life {
            life.pause(is_paused);
        }
    }

    /// The disk that a process has, itself.
    pub(super) fn present_disk(&self, process: ProcessId) -> SimFileSystem {
        lock(&self.state).hosts[&process].disk.clone()
    }

    /// What a process's disk holds now, synced or not.
    pub(super) fn disk(&self, process: ProcessId) -> SimFileSystem {
        lock(&self.state).hosts[&process].disk.fork_crashed(CrashMode::NothingLost)
    }

    pub(super) fn put_disk(&self, process: ProcessId, disk: SimFileSystem) {
        lock(&self.state).hosts.get_mut(&process).expect("it was started").disk = disk;
    }

    pub(super) fn kill(&self, process: ProcessId, mode: CrashMode) {
        let mut state = lock(&self.state);
        let host = state.hosts.get_mut(&process).expect("it was started");
        let Some(life) = host.life.take() else { return };
        life.end();
        let disk = host.disk.fork_crashed(mode);
        host.disk.halt();
        host.disk = disk;
        let gone = (host.node.take(), host.runtime.take());
        drop(state);
        drop(gone);
        lock(&self.truth).note(&format!("{process} is dead"));
    }

    /// Closes a process, and waits until it has.
    pub(super) fn close(&self, process: ProcessId) {
        self.close_and(process, |closed| closed.expect("it closes"));
    }

    /// The same, however well.
    pub(super) fn close_somehow(&self, process: ProcessId) {
        self.close_and(process, drop);
    }

    fn close_and(&self, process: ProcessId, look: fn(Result<()>)) {
        let node = self.node(process).expect("it lives");
        let runtime = lock(&self.state).hosts[&process].runtime.clone().expect("it lives");
        let is_closed = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&is_closed);
        runtime.spawn(
            "close",
            Box::pin(async move {
                look(node.close().await);
                closed.store(true, Ordering::SeqCst);
            }),
        );
        for _ in 0..100 {
            self.run(20 * MILLISECOND);
            if is_closed.load(Ordering::SeqCst) {
                let mut state = lock(&self.state);
                let host = state.hosts.get_mut(&process).expect("it was started");
                let gone = (host.node.take(), host.runtime.take(), host.life.take());
                drop(state);
                drop(gone);
                return;
            }
        }
        panic!("process {process} does not close");
    }

    /// What a question hears at a process that is closing, if the coordinator answers with `code`.
    pub(super) fn told_while_closing(&self, process: ProcessId, code: Code) -> Code {
        let node = self.node(process).expect("it lives");
        node.life.shared().is_closed.store(true, Ordering::SeqCst);
        let told = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&told);
        let asking = async move {
            let answer = node.life.shared().at_coordinator(|_| Answer::<()>::from(Error::new(code))).await;
            *lock(&tell) = answer.err();
        };
        self.outside.spawn("ask", Box::pin(asking));
        self.run(Duration::from_secs(1));
        lock(&told).take().expect("it is told").code()
    }

    /// What comes of a question to the database, which is asked again as long as it leads to a process that is not there.
    pub(super) fn ask<T, F>(&self, question: impl Fn(Database) -> F + Send + Sync + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let endpoint = Anywhere { world: self.me.clone(), runtime: self.outside.clone() };
        let runtime: Arc<dyn Runtime> = Arc::new(self.outside.clone());
        let database = Database::new(Arc::new(endpoint), runtime, DatabaseOptions::default());
        let told = Arc::new(Mutex::new(None));
        let (tell, outside) = (Arc::clone(&told), self.outside.clone());
        let asking = async move {
            loop {
                match question(database.clone()).await {
                    Err(error) if error.code() == Code::ConnectionFailed => {
                        outside.sleep(Duration::from_millis(10)).await;
                    }
                    result => break *lock(&tell) = Some(result),
                }
            }
        };
        self.outside.spawn("ask", Box::pin(asking));
        self.run(Duration::from_secs(5));
        lock(&told).take().expect("it is answered within five seconds")
    }

    fn start_clients(&self) {
        for client in 0..CLIENTS {
            let world = self.me.upgrade().expect("it is alive");
            let endpoint = Anywhere { world: self.me.clone(), runtime: self.outside.clone() };
            let runtime: Arc<dyn Runtime> = Arc::new(self.outside.clone());
            let database = Database::new(Arc::new(endpoint), runtime, DatabaseOptions::default());
            let task = async move {
                if client == 0 {
                    world.check_totals(database).await;
                } else {
                    world.transfer(client, database).await;
                }
            };
            self.outside.spawn("client", Box::pin(task));
        }
    }

    /// Moves money, all the time.
    async fn transfer(self: Arc<World>, client: u64, database: Database) {
        while !lock(&self.state).is_quiet {
            let (from, to) = (self.random(ACCOUNTS), self.random(ACCOUNTS));
            let amount = 1 + self.random(10) as i64;
            let acknowledged = lock(&self.truth).acknowledged;
            let transaction = database.create_transaction();
            loop {
                match self.transfer_once(&transaction, client, from, to, amount).await {
                    Ok((read_version, committed)) => {
                        let mut truth = lock(&self.truth);
                        if read_version < acknowledged {
                            truth.failures.push(format!("a read version {read_version} after {acknowledged}"));
                        }
                        truth.committed += 1;
                        *truth.transfers.entry(client).or_default() += 1;
                        truth.acknowledged = truth.acknowledged.max(committed);
                        truth.note(&format!("{client} at {committed}"));
                        break;
                    }
                    Err(error) => {
                        if lock(&self.state).is_quiet && error.code() == Code::ProcessBehind {
                            break;
                        }
                        if error.code() == Code::CommitUnknownResult || error.code() == Code::CommitUnknownResultFatal {
                            lock(&self.truth).unknown += 1;
                            break;
                        }
                        let code = error.code();
                        if let Err(error) = transaction.on_error(error).await {
                            // It has not happened; what cannot be tried again as it is begins anew.
                            if !matches!(code, Code::ConnectionFailed | Code::OperationCancelled) {
                                self.fail(format!("client {client}: {error}"));
                            }
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn transfer_once(
        &self,
        transaction: &ferrisdb_client::Transaction,
        client: u64,
        from: u64,
        to: u64,
        amount: i64,
    ) -> Result<(Version, Version)> {
        let read_version = transaction.get_read_version().await?;
        for (account, change) in [(from, -amount), (to, amount)] {
            let key = format!("account/{account}");
            let balance = transaction.get(&key).await?.map_or(BALANCE, |value| number(&value));
            transaction.set(&key, (balance + change).to_le_bytes());
        }
        let counter = format!("transfers/{client}");
        let count = transaction.get(&counter).await?.map_or(0, |value| number(&value));
        transaction.set(&counter, (count + 1).to_le_bytes());
        transaction.commit().await?;
        Ok((read_version, transaction.get_committed_version().expect("it wrote")))
    }

    /// Reads all accounts at once, all the time.
    async fn check_totals(self: Arc<World>, database: Database) {
        while !lock(&self.state).is_quiet {
            self.outside.sleep(Duration::from_millis(5 + self.random(50))).await;
            let acknowledged = lock(&self.truth).acknowledged;
            let transaction = database.create_transaction();
            let read = async {
                let version = transaction.get_read_version().await?;
                let rows = transaction.get_range(KeyRange::new(&b"account/"[..], &b"account0"[..])).await?.rows;
                Ok::<_, Error>((version, rows))
            };
            let Ok((version, rows)) = read.await else { continue };
            let total: i64 = rows.iter().map(|row| number(&row.value)).sum();
            if total != rows.len() as i64 * BALANCE {
                // Accounts that nobody has touched are not there, and have what they began with: but money has moved between those that are.
                let missing = ACCOUNTS as i64 - rows.len() as i64;
                if total + missing * BALANCE != ACCOUNTS as i64 * BALANCE {
                    self.fail(format!("at {version} the accounts have {total}: {rows:?}"));
                }
            }
            if version < acknowledged {
                self.fail(format!("a stale read version: {version} after {acknowledged}"));
            }
        }
    }

    /// `moves`: shards are moved at random, so that one process may be the only one that has one: none is lost for good.
    fn disturb(&self, moves: bool) {
        // Whoever leads is hit more often: that is where something can go wrong.
        let process = match self.leading() {
            Some(leader) if self.random(2) == 0 => leader,
            _ => 1 + self.random(self.processes),
        };
        let other = 1 + (process + self.random(self.processes - 1)) % self.processes;
        let seed = self.random(u64::MAX);
        match self.random(if moves { 7 } else { 9 }) {
            7 => self.lose_for_good(process, seed),
            8 => self.set_back(process, seed),
            0 | 1 => {
                let mode = match seed % 3 {
                    0 => CrashMode::NothingLost,
                    1 => CrashMode::UnsyncedLost,
                    _ => CrashMode::RandomSubset { seed },
                };
                self.kill(process, mode);
            }
            2 => {
                if let Some(life) = &lock(&self.state).hosts[&process].life {
                    life.pause(true);
                }
            }
            3 => lock(&self.state).links.cut(process, other),
            4 | 5 => {
                lock(&self.state).links.cut_off(process, OUTSIDE + 1..=self.processes);
            }
            _ => lock(&self.state).links.lose(150),
        }
    }

    fn heal(&self) {
        let dead: Vec<ProcessId> = {
            let mut state = lock(&self.state);
            state.links.heal();
            state.hosts.values().filter_map(|host| host.life.as_ref()).for_each(|life| life.pause(false));
            state.hosts.iter().filter(|(_, host)| host.life.is_none()).map(|(&process, _)| process).collect()
        };
        dead.into_iter().for_each(|process| self.start(process));
    }

    /// A change of the shards that nobody has thought about: any that fits.
    fn shuffle(&self) {
        let Some(leader) = self.leading().and_then(|leader| self.node(leader)) else { return };
        let Some(coordinator) = leader.life.shared().leading.coordinator() else { return };
        let (Ok(map), Ok(registry)) = (leader.life.shared().shards(), leader.life.shared().registry()) else { return };
        let shards: Vec<_> = map.iter().map(|(range, shard)| (range, shard.clone())).collect();
        let (range, shard) = shards[self.random(shards.len() as u64) as usize].clone();
        let moving = shards.iter().filter_map(|(range, shard)| Some((range.begin.clone(), shard.moving.as_ref()?.id)));
        lock(&self.truth).moves.extend(moving);
        let change = match (self.random(6), &shard.moving) {
            (0, _) if shards.len() < 6 => Change::Split { at: format!("account/{}", self.random(ACCOUNTS)).into() },
            (1, _) => Change::Merge { begin: range.begin },
            (2, Some(moving)) => Change::Cancel { begin: range.begin, id: moving.id },
            _ => {
                let tags: Vec<Tag> = registry.storage.keys().copied().collect();
                let size = 1 + self.random(3);
                let team = (0..size).map(|_| tags[self.random(tags.len() as u64) as usize]).collect();
                Change::Move { begin: range.begin, end: range.end, team }
            }
        };
        lock(&self.truth).note(&format!("{change:?}"));
        // What does not fit is refused.
        self.outside.spawn("shuffle", Box::pin(async move { drop(coordinator.change_shards(change).await) }));
    }

    fn note_epochs(&self) {
        let nodes: Vec<_> = lock(&self.state).hosts.values().filter_map(|host| host.node.clone()).collect();
        let epochs = nodes.iter().map(|node| node.life.shared().log.with_state(|state| state.epoch()));
        lock(&self.truth).epochs.extend(epochs);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.steps.drop_jobs();
    }
}

fn number(value: &[u8]) -> i64 {
    i64::from_le_bytes(value.try_into().expect("eight bytes"))
}

/// The life of a cluster, under faults; with `moves` its shards are changed all the time, for no reason.
pub(super) fn live(seed: u64, processes: u64, moves: bool, duration: Duration) -> Outcome {
    let world = World::with(seed, processes, 5 * Duration::from_secs(1));
    world.grow_to(processes);
    let end = world.clock.now() + duration;
    lock(&world.state).links.is_disturbed = true;
    while world.clock.now() < end {
        world.run_shuffled(100 + world.random(900), moves);
        world.disturb(moves);
        world.run_shuffled(100 + world.random(2500), moves);
        if world.random(3) > 0 {
            world.heal();
        }
        world.note_epochs();
        world.take_image();
    }
    lock(&world.state).links.is_disturbed = false;
    world.heal();
    let before = world.committed();
    world.run(Duration::from_secs(10));
    if world.committed() == before {
        world.fail("no commit within 10 s after the faults".to_owned());
    }
    world.note_epochs();
    world.until_whole(3);
    world.check_quiet();
    let losses = world.losses();
    let counts = lock(&world.state).links.counts();
    let truth = lock(&world.truth);
    Outcome {
        losses,
        counts,
        failures: truth.failures.clone(),
        committed: truth.committed,
        epochs: truth.epochs.len(),
        moves: truth.moves.len(),
        trace: truth.trace,
    }
}
