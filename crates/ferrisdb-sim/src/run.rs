//! One seed: a world with a database, clients and a judge, [`run`] from its foundation to the verdict.
//!
//! ```text
//! prepare   the judge puts there what the workloads begin with          nothing goes wrong
//! rage      clients work, things go wrong                               20 s and more, three faults, 300 commits
//! quiet     everything heals, clients go on                             each workload gets something done within 10 s
//! wind up   clients begin nothing any more, what waits is let go        everything ends within 20 s
//! judge     each workload looks at what is there                        replicas are the same; what is on disk is verified
//! ```
//!
//! The seed also decides the *knobs*: how large memtables and segments are, how fast network and disk, how many clients there are, how right
//! the clocks go, which faults are likely.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::{Error, Random, SplitMix64, rare};
use ferrisdb_rpc::client::Connector;
use ferrisdb_rpc::{ClientOptions, Endpoint, TokioRuntime};
use ferrisdb_server::NodeOptions;
use ferrisdb_server::cluster::{ClusterOptions, ShardOptions};
use ferrisdb_server::log::replicated::LogStoreOptions;
use futures_util::future::join_all;

use crate::faults::{Chaos, Kind, REPLICAS};
use crate::members::Members;
use crate::programs::{self, OfMany, PORT, Start, one_of_many, one_process};
use crate::replicas;
use crate::seeds::RARE_PREFIX;
use crate::workloads::{self, ALONE, Client, Shared, Verdict, Ways, Work, Workload, client_name};
use crate::world::clock::{HostClock, RATE_RIGHT};
use crate::world::disk::Speed;
use crate::world::trace::Trace;
use crate::world::{Death, Doors, Ended, World};

/// Things go wrong for at least so long.
const RAGE_MIN: Duration = Duration::from_secs(20);
/// And for at most so long, if until then there were not enough commits.
const RAGE_MAX: Duration = Duration::from_secs(240);
/// Who joins does so within so many milliseconds of that.
const JOIN_MAX: u64 = 15_000;
/// The longest pause of a client between two steps, in milliseconds, while others join.
const HURRIED: u64 = 10;
/// A run has at least so many faults.
const FAULTS_MIN: u64 = 3;
/// And at least so many commits that were acknowledged.
const COMMITS_MIN: u64 = 300;
/// Once nothing goes wrong any more, each workload gets something done within this time.
const PROGRESS_MAX: Duration = Duration::from_secs(10);
/// Clients that begin nothing new end within this time.
const END_MAX: Duration = Duration::from_secs(20);
/// Once nothing goes wrong any more, and who was lost is gone, a cluster has all its replicas within this time.
const WHOLE_MAX: Duration = Duration::from_secs(60);
/// When nothing happens any more, replicas are the same, and have been told to be durable, within this time.
const EQUAL_MAX: Duration = Duration::from_secs(60);
/// What is asked of all at one version is said within this time, or asked again at another.
const STOCK_MAX: Duration = Duration::from_secs(3);
/// How often orders are given that may have been lost.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Founding and judging take less than this.
const CALM_MAX: Duration = Duration::from_secs(60);
/// One in so many seeds has the workload that runs alone.
const ALONE_ONE_IN: u64 = 6;
/// How often the judge and clients in waiting look around.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const JUDGE: &str = "judge";

fn server_name(number: u64) -> String {
    format!("server-{number}")
}

/// Where clients look for the database.
fn addresses(servers: &[String]) -> String {
    let addresses: Vec<String> = servers.iter().map(|server| format!("{server}:{PORT}")).collect();
    addresses.join(",")
}

/// What to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Decides everything.
    pub seed: u64,
    /// The names of the workloads to run; none: those that the seed chooses.
    pub workloads: Vec<String>,
    /// How many processes the database has, 1 or more; `None`: the seed chooses.
    pub processes: Option<u64>,
    /// The names of the kinds of faults that happen, and to whoever leads more often than to others; none: those that the seed chooses, to anybody.
    pub faults: Vec<String>,
    /// Print the trace.
    pub is_traced: bool,
}

/// What became of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Which.
    pub seed: u64,
    /// What was wrong; empty: it passed.
    pub failures: Vec<String>,
    /// Stands for the whole trace.
    pub hash: u64,
    /// Simulated milliseconds.
    pub millis: u64,
    /// What was counted.
    pub counts: BTreeMap<String, u64>,
}

/// Runs a seed. One in a process: see [`crate::world`].
///
/// # Panics
/// If something of the simulated database does: the seed has failed then. Also if a workload does not exist.
pub fn run(options: &RunOptions) -> Outcome {
    let trace = Trace::new(options.is_traced);
    let mut random = SplitMix64::new(options.seed);
    let mut knobs = Knobs::draw(&mut random);
    knobs.processes = options.processes.unwrap_or(knobs.processes);
    knobs.is_joined &= knobs.processes > 1;
    let workloads = chosen(options, &mut random);
    let names: Vec<&str> = workloads.iter().map(|workload| workload.name()).collect();
    trace.note(format_args!("seed {} with {names:?} and {knobs:?}", options.seed));
    let is_known = |name: &String| Kind::ALL.iter().any(|(_, known)| known == name);
    assert!(options.faults.iter().all(is_known), "no such fault: {:?}", options.faults);
    let mut run = Run::new(knobs, workloads, &options.faults, random, trace);
    let failures = run.play().err().into_iter().collect::<Vec<_>>();
    run.outcome(options.seed, failures)
}

/// What the seed chooses before anything runs.
#[derive(Debug, Clone)]
struct Knobs {
    clients: u64,
    latency_max: Duration,
    speed: Speed,
    /// The longest pause of a client between two steps, in milliseconds.
    think_max: u64,
    /// The clocks go right within so many parts of a million.
    skew: u64,
    memory: Memory,
    is_power_lost_at_the_end: bool,
    /// One: a database in one process. More: a cluster of so many.
    processes: u64,
    /// Several processes are one at first, as of plain `ferrisdb serve`, and the others join it while clients work and things go wrong. Otherwise the
    /// cluster is founded before.
    is_joined: bool,
    /// A process that is silent for so long is gone for good, as far as the others can tell.
    gone_after: Duration,
    /// Into how many zones the processes of a cluster are divided; 0: nobody says where they are.
    zones: u64,
    /// From how many bytes on a cluster splits a shard.
    split_bytes: u64,
    /// From how much load on.
    split_load: u64,
}

/// How much the database keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Tiny,
    Small,
    Default,
}

impl Knobs {
    fn draw(random: &mut SplitMix64) -> Knobs {
        let mut of = |choices: &[u64]| choices[usize::try_from(random.below(choices.len() as u64)).expect("an index")];
        let speed = Speed { sync_max: of(&[1, 4, 20]), other_max: of(&[0, 1, 4]), stall: 0 };
        Knobs {
            clients: of(&[2, 3, 5]),
            latency_max: Duration::from_millis(of(&[1, 5, 20])),
            speed,
            think_max: of(&[10, 50, 200]),
            skew: of(&[0, 1_000, 100_000]),
            memory: [Memory::Tiny, Memory::Small, Memory::Default][usize::try_from(of(&[0, 0, 1, 2])).expect("small")],
            is_power_lost_at_the_end: of(&[0, 1]) == 1,
            processes: of(&[1, 1, 3, 3, 5]),
            split_bytes: of(&[2_000, 20_000, 1 << 30]),
            split_load: of(&[500, 5_000, 1 << 30]),
            gone_after: Duration::from_secs(of(&[4, 10, 60])),
            is_joined: of(&[0, 0, 1]) == 1,
            zones: of(&[0, 0, 2, 3]),
        }
    }

    /// The zone of the process with this number, from 0.
    fn zone_of(&self, number: u64) -> String {
        if self.zones == 0 { String::new() } else { format!("zone-{}", number % self.zones) }
    }

    /// In how many zones the replicas of each shard are to be, so many as they are to be; 0: that cannot be told.
    fn zones_of_a_team(&self) -> usize {
        usize::try_from(self.zones.min(self.processes)).expect("a few").min(REPLICAS)
    }

    fn cluster_options(&self) -> ClusterOptions {
        let NodeOptions { storage, coordinator, .. } = self.node_options();
        let shards = ShardOptions {
            split_bytes: self.split_bytes,
            split_load: self.split_load,
            merge_after: Duration::from_secs(3),
            size_interval: Duration::from_secs(1),
            ..ShardOptions::default()
        };
        let mut options = ClusterOptions { storage, coordinator, shards, ..ClusterOptions::default() };
        options.members.gone_after = self.gone_after;
        if self.memory != Memory::Default {
            options.log.store = LogStoreOptions { segment_bytes: 64 << 10, hot_bytes: 16 << 10 };
            options.log.hot_bytes = 8 << 10;
        }
        options
    }

    fn node_options(&self) -> NodeOptions {
        let mut options = NodeOptions::tiny();
        match self.memory {
            Memory::Tiny => {}
            Memory::Small => options.storage.engine.write_buffer_bytes = 64 << 10,
            Memory::Default => options = NodeOptions::default(),
        }
        options
    }
}

/// The workloads to run.
fn chosen(options: &RunOptions, random: &mut SplitMix64) -> Vec<Rc<dyn Workload>> {
    let all = workloads::ALL;
    let known = |name: &String| all.iter().any(|(known, _)| known == name);
    assert!(options.workloads.iter().all(known), "no such workload: {:?}", options.workloads);
    let is_one = options.workloads.iter().all(|name| *name == options.workloads[0]);
    assert!(is_one || !options.workloads.iter().any(|name| name == ALONE), "{ALONE} runs alone");
    let is_alone = random.one_in(ALONE_ONE_IN);
    let mut chosen = Vec::new();
    while chosen.is_empty() {
        for (name, make) in all {
            let seed = random.next_u64();
            let is_chosen = match options.workloads.as_slice() {
                [] if is_alone || *name == ALONE => is_alone && *name == ALONE,
                [] => random.one_in(2),
                names => names.iter().any(|wanted| wanted == name),
            };
            if is_chosen {
                chosen.push(Rc::from(make(seed)));
            }
        }
    }
    chosen
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Prepare,
    Rage,
    WindUp,
    Judge,
    Judged,
}

/// What the run, its clients and its judge share.
struct Stage {
    phase: Cell<Phase>,
    workloads: Vec<Rc<dyn Workload>>,
    verdicts: RefCell<Vec<String>>,
    shared: Arc<Shared>,
}

struct Run {
    world: World,
    chaos: Chaos,
    stage: Rc<Stage>,
    random: SplitMix64,
    trace: Trace,
    servers: Vec<String>,
    members: Members,
    /// When, after things begin to go wrong, who may join.
    joins: Vec<(Duration, Rc<Cell<bool>>)>,
    is_power_lost_at_the_end: bool,
    /// A cluster is whole again so long after the last fault.
    whole_max: Duration,
    /// In how many zones each shard is to be.
    zones: usize,
}

impl Run {
    fn new(
        knobs: Knobs,
        workloads: Vec<Rc<dyn Workload>>,
        faults: &[String],
        mut random: SplitMix64,
        trace: Trace,
    ) -> Run {
        let mut world = World::new(random.next_u64(), knobs.latency_max, trace.clone());
        let shared = Arc::new(Shared::new(trace.clone()));
        let stage = Stage { phase: Cell::new(Phase::Prepare), workloads, verdicts: RefCell::default(), shared };
        let stage = Rc::new(stage);
        let mut clock = || {
            let offset = Duration::from_millis(random.below(1 << 32));
            HostClock::new(offset, RATE_RIGHT - knobs.skew + random.below(2 * knobs.skew + 1))
        };
        let servers: Vec<String> = (1..=knobs.processes).map(server_name).collect();
        let members = Members::default();
        let mut joins = Vec::new();
        for (number, server) in (0..).zip(&servers) {
            if knobs.processes == 1 {
                world.add(server, clock(), one_process(knobs.node_options()));
            } else {
                let start = if server != &servers[0] {
                    let may_join = Rc::new(Cell::new(!knobs.is_joined));
                    joins.push(Rc::clone(&may_join));
                    Start::Joins(may_join)
                } else if knobs.is_joined {
                    Start::Alone(Box::new(knobs.node_options()))
                } else {
                    Start::Founds
                };
                let others = servers.iter().filter(|other| *other != server).cloned().collect();
                let (options, members, trace) = (knobs.cluster_options(), members.clone(), trace.clone());
                let zone = knobs.zone_of(number);
                world.add(server, clock(), one_of_many(OfMany { options, start, zone, others, members, trace }));
            }
            world.host(server).disk().set_speed(knobs.speed);
        }
        let addresses: Rc<str> = addresses(&servers).into();
        let clients: Vec<String> = (1..=knobs.clients).map(client_name).collect();
        for (client, number) in clients.iter().zip(1..) {
            // One that is joined is under load.
            let think_max = if knobs.is_joined { knobs.think_max.min(HURRIED) } else { knobs.think_max };
            let (stage, addresses) = (Rc::clone(&stage), Rc::clone(&addresses));
            world.add(client, clock(), move |doors| {
                work(doors, Rc::clone(&stage), Rc::clone(&addresses), number, think_max)
            });
        }
        let of_judge = Rc::clone(&stage);
        world.add(JUDGE, clock(), move |doors| judge(doors, Rc::clone(&of_judge), Rc::clone(&addresses)));
        let seed = random.next_u64();
        let chaos = Chaos::new(seed, faults, servers.clone(), clients, knobs.latency_max, knobs.speed, members.clone());
        let joins = joins.into_iter().map(|join| (Duration::from_millis(random.below(JOIN_MAX)), join)).collect();
        let is_power_lost_at_the_end = knobs.is_power_lost_at_the_end;
        let (whole_max, zones) = (WHOLE_MAX + knobs.gone_after, knobs.zones_of_a_team());
        Run { world, chaos, stage, random, trace, servers, members, joins, is_power_lost_at_the_end, whole_max, zones }
    }

    /// Plays a seed to its end.
    fn play(&mut self) -> Result<(), String> {
        self.tick_until(CALM_MAX, "the database is founded", |run| run.stage.phase.get() > Phase::Prepare)?;
        self.rage()?;
        self.recover()?;
        self.stage.phase.set(Phase::WindUp);
        self.stage.shared.end();
        let ended = |run: &Run| run.stage.shared.busy().is_empty() && run.stage.phase.get() >= Phase::Judge;
        self.tick_until(END_MAX, "all clients end", ended)?;
        self.tick_until(CALM_MAX, "the judge has judged", |run| run.stage.phase.get() == Phase::Judged)?;
        if let Some(verdict) = self.stage.verdicts.borrow().first() {
            return Err(verdict.clone());
        }
        if self.servers.len() > 1 {
            self.compare_replicas()?;
        }
        self.verify()
    }

    /// The replicas of each shard are the same, nobody has anything else, and the log need keep nothing of it any more.
    fn compare_replicas(&mut self) -> Result<(), String> {
        let end = self.world.now() + EQUAL_MAX;
        loop {
            let version = self.members.take_stock();
            let left = |run: &Run| end.saturating_sub(run.world.now());
            let again = (self.world.now() + STOCK_MAX).min(end);
            let is_there = |run: &Run| run.members.stock(&run.servers).is_some() || run.world.now() >= again;
            self.tick_until(STOCK_MAX, "", is_there)?;
            let Some(stock) = self.members.stock(&self.servers) else {
                if self.world.now() >= end {
                    let trouble = self.members.trouble();
                    return Err(format!("within {EQUAL_MAX:?} not every process has said what it has: {trouble}"));
                }
                // By now that version may not be readable any more.
                continue;
            };
            if let Err(unsettled) = replicas::are_settled(&stock, (REPLICAS, self.zones), version) {
                let again = (self.world.now() + ASK_EVERY).min(end);
                self.tick_until(ASK_EVERY, "", |run| run.world.now() >= again)?;
                if self.world.now() >= end {
                    return Err(format!("shards do not come to rest within {EQUAL_MAX:?}: {unsettled}"));
                }
                continue;
            }
            replicas::compare(&stock)?;
            let has_told =
                |run: &Run| run.members.all(|standing| standing.log.popped.values().all(|popped| *popped >= version));
            return self.tick_until(left(self), "every storage server has told that all of it is durable", has_told);
        }
    }

    fn rage(&mut self) -> Result<(), String> {
        let begin = self.world.now();
        let length = RAGE_MIN + Duration::from_millis(self.random.below(10_000));
        loop {
            self.chaos.rage(&mut self.world);
            self.tick()?;
            let lasted = self.world.now() - begin;
            let due = self.joins.iter().filter(|(at, may_join)| *at <= lasted && !may_join.get());
            for (_, may_join) in due {
                may_join.set(true);
                // Whoever is joined is at work: what has been committed may not have been applied when it turns.
                self.chaos.load(&self.world, &self.servers[0]);
            }
            let is_whole_second = lasted.subsec_millis() == 0;
            if lasted < length || !is_whole_second {
                continue;
            }
            let (faults, commits) = (self.chaos.count(), self.commits());
            if faults >= FAULTS_MIN && commits >= COMMITS_MIN {
                return Ok(());
            }
            if lasted > RAGE_MAX {
                return Err(format!("only {commits} commits and {faults} faults in {lasted:?}"));
            }
        }
    }

    /// Nothing goes wrong any more: each workload gets something done.
    fn recover(&mut self) -> Result<(), String> {
        self.chaos.heal(&mut self.world);
        if self.is_power_lost_at_the_end {
            self.chaos.fell_all(&mut self.world);
            self.trace.count("power losses at the end");
        }
        let since = self.world.now();
        let workloads = self.stage.workloads.clone();
        for workload in workloads {
            let name = workload.name();
            let what = format!("{name} gets something done after all faults");
            let left = PROGRESS_MAX.saturating_sub(self.world.now() - since);
            self.tick_until(left, &what, |run| run.stage.shared.last_progress(name) > since)?;
        }
        if self.servers.len() > 1 {
            self.become_whole(since)?;
        }
        let took = self.world.now() - since;
        self.trace.note(format_args!("everything goes on after {took:?}"));
        Ok(())
    }

    /// The cluster is configured as at first, each process has all that it is to have, and those that were lost are forgotten.
    fn become_whole(&mut self, since: Duration) -> Result<(), String> {
        let mut asked = Duration::ZERO;
        loop {
            let now = self.world.now();
            // As often as processes say how they stand.
            if now.subsec_millis().is_multiple_of(100)
                && self.chaos.is_restored()
                && self.members.are_whole(&self.servers)
            {
                return Ok(());
            }
            if now >= asked + ASK_EVERY {
                asked = now;
                self.chaos.restore();
            }
            if now >= since + self.whole_max {
                return Err(format!(
                    "{:?} after the last fault the cluster is not whole: {}",
                    self.whole_max,
                    self.members.told()
                ));
            }
            self.tick()?;
        }
    }

    /// What is on the disk in the end belongs together.
    fn verify(&mut self) -> Result<(), String> {
        for server in self.servers.clone() {
            self.world.kill(&server, Death::Killed);
            let files = self.world.host(&server).disk().files();
            let verified =
                if self.servers.len() == 1 { programs::verify(files) } else { programs::verify_process(files) };
            verified.map_err(|problem| format!("{server}: {problem}"))?;
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), String> {
        if let Some(wrong) = self.chaos.look_after(&mut self.world) {
            self.stage.shared.violation(wrong);
        }
        if let Some(wrong) = self.members.take_contradiction() {
            self.stage.shared.violation(wrong);
        }
        for client in self.chaos.take_felled() {
            self.stage.shared.forget(&client);
        }
        self.world.tick();
        match self.stage.shared.violations().first() {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    fn tick_until(&mut self, max: Duration, what: &str, is_so: impl Fn(&Run) -> bool) -> Result<(), String> {
        let end = self.world.now() + max;
        while !is_so(self) {
            if self.world.now() >= end {
                let busy = self.stage.shared.busy().join(", ");
                return Err(format!(
                    "within {max:?} it did not come to this: {what} (in the middle of something: {busy})"
                ));
            }
            self.tick()?;
        }
        Ok(())
    }

    fn commits(&self) -> u64 {
        let apart: u64 = self.stage.workloads.iter().map(|workload| workload.counted_apart()).sum();
        apart + self.trace.counted("commits")
    }

    fn outcome(&self, seed: u64, failures: Vec<String>) -> Outcome {
        let mut counts: BTreeMap<String, u64> =
            self.trace.counts().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        counts.insert("commits".to_owned(), self.commits());
        counts.insert("lines of trace".to_owned(), self.trace.lines());
        for workload in &self.stage.workloads {
            counts.insert(format!("seeds with {}", workload.name()), 1);
        }
        for (_, name) in Kind::ALL {
            counts.insert(format!("fault {name}"), self.chaos.happened.get(name).copied().unwrap_or(0));
        }
        for (name, count) in rare::counts() {
            counts.insert(format!("{RARE_PREFIX}{name}"), count);
        }
        let millis = u64::try_from(self.world.now().as_millis()).unwrap_or(u64::MAX);
        Outcome { seed, failures, hash: self.trace.hash(), millis, counts }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("world", &self.world).finish_non_exhaustive()
    }
}

/// How a client of the simulation asks. A simulated network does not send again what was lost: only pings and deadlines find that out.
fn client_options(seed: u64, asks_holders: bool) -> ClientOptions {
    ClientOptions {
        seed: Some(seed),
        connect_timeout: Duration::from_secs(1),
        question_timeout: Duration::from_secs(3),
        commit_timeout: Duration::from_secs(3),
        keep_alive: Duration::from_secs(1),
        outage_max: Duration::from_secs(3),
        asks_holders,
        ..ClientOptions::default()
    }
}

/// Connects, again and again until it works.
async fn connected(doors: &Doors, addresses: &str) -> ((Database, Arc<dyn Endpoint>), Arc<TokioRuntime>) {
    let mut random = SplitMix64::new(doors.seed);
    let runtime = Arc::new(TokioRuntime::new(tokio::runtime::Handle::current(), random.next_u64()));
    loop {
        // Most clients ask the processes that have the answer, some leave that to whom they are connected to.
        let options = client_options(random.next_u64(), random.below(4) > 0);
        match ferrisdb_rpc::Router::connect_with(doors.network.connector(), addresses, options).await {
            Ok(client) => {
                let of_client = Arc::<TokioRuntime>::clone(&runtime);
                let endpoint: Arc<dyn Endpoint> = Arc::new(client);
                let db = Database::new(Arc::clone(&endpoint), of_client, DatabaseOptions::default());
                return ((db, endpoint), runtime);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50 + random.below(200))).await,
        }
    }
}

/// Connects to one server, which is to forward what it cannot answer: once.
async fn connected_to_one(
    connector: Arc<dyn Connector>,
    runtime: Arc<TokioRuntime>,
    address: String,
    seed: u64,
) -> Result<Database, Error> {
    let options = client_options(seed, false);
    let client = ferrisdb_rpc::Router::connect_with(connector, &address, options).await?;
    Ok(Database::new(Arc::new(client), runtime, DatabaseOptions::default()))
}

/// The program of a client.
async fn work(doors: Doors, stage: Rc<Stage>, addresses: Rc<str>, number: u64, think_max: u64) -> Ended {
    while stage.phase.get() == Phase::Prepare {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (way, runtime) = connected(&doors, &addresses).await;
    let mut random = SplitMix64::new(doors.seed ^ 1);
    let works = stage.workloads.iter().map(|workload| {
        let of_client = Arc::<TokioRuntime>::clone(&runtime);
        let shared = Arc::clone(&stage.shared);
        let (connector, of_ways) = (doors.network.connector(), Arc::<TokioRuntime>::clone(&runtime));
        let connect = move |address, seed| {
            let connecting = connected_to_one(Arc::clone(&connector), Arc::clone(&of_ways), address, seed);
            Box::pin(connecting) as Work<'static, Database>
        };
        let servers = addresses.split(',').map(str::to_owned).collect();
        let ways = Ways::new(servers, Box::new(connect));
        let client = Client::new(way.clone(), number, of_client, random.next_u64(), shared, ways);
        work_at(Rc::clone(workload), client, Rc::clone(&stage), think_max)
    });
    join_all(works.collect::<Vec<_>>()).await;
    std::future::pending().await
}

async fn work_at(workload: Rc<dyn Workload>, client: Client, stage: Rc<Stage>, think_max: u64) {
    while !stage.shared.is_over() {
        stage.shared.begins(&client.name, workload.name());
        let done = workload.step(&client).await;
        stage.shared.ends(&client.name, workload.name(), done.is_ok() && workload.is_driven_by(&client));
        let mut pause = client.below(think_max);
        if done.is_err() {
            client.count("steps that failed");
            pause += 20;
        }
        client.sleep(Duration::from_millis(pause)).await;
    }
}

/// The program of the judge.
async fn judge(doors: Doors, stage: Rc<Stage>, addresses: Rc<str>) -> Ended {
    let ((db, endpoint), _) = connected(&doors, &addresses).await;
    for workload in &stage.workloads {
        while workload.prepare(&db).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    stage.phase.set(Phase::Rage);
    while stage.phase.get() < Phase::WindUp {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    loop {
        for workload in &stage.workloads {
            // What could not be done is done in the next round.
            workload.wind_up(&db).await.ok();
        }
        if stage.shared.busy().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stage.phase.set(Phase::Judge);
    for workload in &stage.workloads {
        while workload.settle(&endpoint).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let verdict = loop {
            match workload.judge(&db).await {
                Ok(verdict) => break verdict,
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        note(&stage, workload.name(), verdict);
    }
    stage.phase.set(Phase::Judged);
    std::future::pending().await
}

fn note(stage: &Stage, name: &str, verdict: Verdict) {
    if let Some(verdict) = verdict {
        stage.verdicts.borrow_mut().push(format!("{name}: {verdict}"));
    }
}
