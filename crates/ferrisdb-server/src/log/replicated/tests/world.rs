//! A small simulated world: processes with a replica each, on one thread, over simulated disks and a simulated network.
//!
//! One seed decides everything: the order of steps, delays, losses, who crashes when and what his disk keeps. What must hold is checked as it
//! happens, and at the end, when all faults are over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Clock, Code, Error, ManualClock, Mutation, Random, Result, Runtime, SplitMix64, Version};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};
use futures_channel::oneshot;

use super::super::{GroupView, LogStoreOptions, Peer, Peers, ProcessId, ReplicatedLog, ReplicatedLogOptions};
use crate::links::{Counts, Links};
use crate::lives::{Life, LifeSpawner};
use crate::log::{Applied, Batch, Entry, EpochStart, Log, Owner, Section, Tag};
use crate::runtime::JobRuntime;
use crate::signal::lock;

const MILLISECOND: Duration = Duration::from_millis(1);
const CLUSTER: [u8; 16] = [7; 16];
/// The second byte of a message that asks for a vote, see `network.rs`.
const VOTE: u8 = 2;

struct Host {
    disk: SimFileSystem,
    life: Option<Arc<Life>>,
    runtime: Option<JobRuntime>,
    log: Option<ReplicatedLog>,
}

/// What the world knows, to check against.
#[derive(Default)]
struct Truth {
    /// Version to (version before, value), as the first replica delivered it.
    batches: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Acknowledged: version and value.
    acknowledged: BTreeMap<u64, Vec<u8>>,
    /// The last version that the storage server of the tag has.
    stored: u64,
    owners: BTreeSet<Owner>,
    failures: Vec<String>,
    trace: u64,
    events: u64,
    snapshots: u64,
    leaders: BTreeSet<(u64, ProcessId)>,
    /// Who believes to own the epoch, at each process.
    leading: BTreeMap<ProcessId, Owner>,
    confirmed: u64,
}

impl Truth {
    fn note(&mut self, what: &str) {
        self.events += 1;
        for byte in what.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn fail(&mut self, what: String) {
        self.failures.push(what);
    }
}

pub(super) struct World {
    clock: Arc<ManualClock>,
    steps: Arc<StepSpawner>,
    seed: u64,
    state: Mutex<State>,
    truth: Mutex<Truth>,
    /// Only for the processes' clients to find the world.
    me: Weak<World>,
    /// Where messages are under way.
    outside: JobRuntime,
}

struct State {
    random: SplitMix64,
    hosts: BTreeMap<ProcessId, Host>,
    links: Links,
    lives: u64,
    /// Nobody commits any more.
    is_quiet: bool,
    /// The storage server pops nothing.
    keeps_pops: bool,
}

/// One process's way to the others.
struct Net {
    world: Weak<World>,
    from: ProcessId,
    runtime: JobRuntime,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the network of process {}", self.from)
    }
}

impl Peers for Net {
    fn ask(&self, to: ProcessId, _: &Peer, message: Bytes, deadline: Duration) -> BoxFuture<Result<Bytes>> {
        let (world, from, runtime) = (self.world.clone(), self.from, self.runtime.clone());
        Box::pin(async move {
            let lost = || Error::with(Code::ConnectionFailed, "lost");
            let world = world.upgrade().ok_or_else(lost)?;
            let asking = async {
                let is_vote = message.get(1) == Some(&VOTE);
                let there = world.passes(from, to).ok_or_else(lost)?;
                let (late, again) = world.comes_late_or_twice();
                let there = there + late;
                if let Some(again) = again {
                    drop(world.deliver(to, message.clone(), there + again));
                }
                let answer = world.deliver(to, message, there).await.map_err(|_| lost())?;
                if is_vote {
                    world.perhaps_kill_a_voter(to);
                }
                runtime.sleep(world.passes(to, from).ok_or_else(lost)?).await;
                answer
            };
            let asking = std::pin::pin!(asking);
            match futures_util::future::select(asking, runtime.sleep(deadline)).await {
                futures_util::future::Either::Left((result, timer)) => match result {
                    Ok(answer) => Ok(answer),
                    // Nobody is told that a message was lost.
                    Err(_) => {
                        timer.await;
                        Err(lost())
                    }
                },
                futures_util::future::Either::Right(_) => Err(lost()),
            }
        })
    }
}

impl World {
    pub(super) fn new(seed: u64, processes: u64) -> Arc<World> {
        let clock = Arc::new(ManualClock::new());
        let steps = Arc::new(StepSpawner::with_seed(Arc::clone(&clock), seed));
        let fresh = || Host { disk: SimFileSystem::new(), life: None, runtime: None, log: None };
        let state = State {
            random: SplitMix64::new(seed ^ 0x5eed),
            hosts: (1..=processes).map(|process| (process, fresh())).collect(),
            links: Links::default(),
            lives: 0,
            is_quiet: false,
            keeps_pops: false,
        };
        let outside = JobRuntime::new(Env {
            fs: Arc::new(SimFileSystem::new()),
            clock: Arc::<ManualClock>::clone(&clock),
            spawner: Arc::new(LifeSpawner { life: Life::new(0, seed), steps: Arc::clone(&steps) }),
            entropy: Arc::new(SeededEntropy::new(seed ^ 0xc11e)),
        });
        Arc::new_cyclic(|me| World {
            clock,
            steps,
            seed,
            state: Mutex::new(state),
            truth: Mutex::default(),
            me: me.clone(),
            outside,
        })
    }

    fn random(&self, below: u64) -> u64 {
        lock(&self.state).random.below(below)
    }

    fn passes(&self, from: ProcessId, to: ProcessId) -> Option<Duration> {
        let State { links, random, .. } = &mut *lock(&self.state);
        links.passes(random, from, to)
    }

    /// How late a message is, and, if it comes a second time, how long after that.
    fn comes_late_or_twice(&self) -> (Duration, Option<Duration>) {
        let State { links, random, .. } = &mut *lock(&self.state);
        (links.comes_late(random), links.comes_twice(random))
    }

    /// Takes a message to a process, which answers it in a task of its own. It gets there whatever becomes of the asker meanwhile, and to whoever is there by then; to
    /// nobody: it is lost.
    fn deliver(&self, to: ProcessId, message: Bytes, after: Duration) -> oneshot::Receiver<Result<Bytes>> {
        let (sender, receiver) = oneshot::channel();
        let (world, outside) = (self.me.clone(), self.outside.clone());
        let delivering = async move {
            outside.sleep(after).await;
            let Some((log, runtime)) = world.upgrade().and_then(|world| world.host(to)) else { return };
            runtime.spawn("rpc", Box::pin(async move { drop(sender.send(log.answer(message).await)) }));
        };
        self.outside.spawn("message", Box::pin(delivering));
        receiver
    }

    /// Power may fail just when a vote has been told, and come back soon.
    fn perhaps_kill_a_voter(&self, process: ProcessId) {
        let may_die = {
            let state = lock(&self.state);
            state.links.is_disturbed && state.hosts[&process].life.is_some()
        };
        if may_die && self.random(3) == 0 {
            self.kill(process, CrashMode::UnsyncedLost);
            self.start(process);
        }
    }

    fn options(&self) -> ReplicatedLogOptions {
        ReplicatedLogOptions {
            store: LogStoreOptions { segment_bytes: 16 << 10, hot_bytes: 4 << 10 },
            hot_bytes: 2 << 10,
            purge_interval: Duration::from_millis(300),
            ..ReplicatedLogOptions::default()
        }
    }

    /// Starts a process, on the disk that it has.
    pub(super) fn start(&self, process: ProcessId) {
        let (runtime, disk) = {
            let mut state = lock(&self.state);
            state.lives += 1;
            let number = state.lives;
            let seed = self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number);
            let life = Life::new(process, seed);
            let spawner = LifeSpawner { life: Arc::clone(&life), steps: Arc::clone(&self.steps) };
            let host = state.hosts.get_mut(&process).expect("the process exists");
            let env = Env {
                fs: Arc::new(host.disk.clone()),
                clock: Arc::<ManualClock>::clone(&self.clock),
                spawner: Arc::new(spawner),
                entropy: Arc::new(SeededEntropy::new(seed)),
            };
            let runtime = JobRuntime::new(env);
            host.life = Some(life);
            host.runtime = Some(runtime.clone());
            host.log = None;
            (runtime, host.disk.clone())
        };
        drop(disk);
        let (me, options) = (self.me.clone(), self.options());
        let runtime_of_task = runtime.clone();
        let task = async move {
            let runtime = runtime_of_task;
            let peers = Arc::new(Net { world: me.clone(), from: process, runtime: runtime.clone() });
            let tasks = runtime.clone();
            let opened = ReplicatedLog::open(
                runtime.clone(),
                Arc::new(runtime.clone()),
                Path::new("/log"),
                options,
                CLUSTER,
                process,
                peers,
                |_, name, task| tasks.spawn(name, task),
            );
            let Some(world) = me.upgrade() else { return };
            match opened.await {
                Ok(log) => {
                    lock(&world.truth).note(&format!("{process} is open"));
                    if let Some(host) = lock(&world.state).hosts.get_mut(&process) {
                        host.log = Some(log.clone());
                    }
                    let leading = world.clone();
                    let (leader, on) = (log.clone(), runtime.clone());
                    runtime.spawn("lead", Box::pin(async move { leading.lead(process, leader, on).await }));
                    let asking = world.clone();
                    let (asked, on) = (log.clone(), runtime.clone());
                    runtime.spawn("ask", Box::pin(async move { asking.ask_for_versions(process, asked, on).await }));
                    let on = runtime.clone();
                    runtime.spawn("follow", Box::pin(async move { world.follow(process, log, on).await }));
                }
                Err(error) => lock(&world.truth).fail(format!("process {process} does not open: {error:?}")),
            }
        };
        runtime.spawn("boot", Box::pin(task));
    }

    pub(super) fn found(&self, processes: u64) {
        self.run(100 * MILLISECOND);
        let members = (1..=processes).map(|process| (process, Peer::default())).collect();
        let (log, runtime) = self.host(1).expect("it was started");
        runtime.spawn("found", Box::pin(async move { log.found_with(members).await.expect("a new group") }));
    }

    fn host(&self, process: ProcessId) -> Option<(ReplicatedLog, JobRuntime)> {
        let state = lock(&self.state);
        let host = state.hosts.get(&process)?;
        Some((host.log.clone()?, host.runtime.clone()?))
    }

    /// Has `task` run in a process, and waits for its end.
    pub(super) fn on<F: Future<Output = ()> + Send + 'static>(
        &self,
        process: ProcessId,
        task: impl FnOnce(ReplicatedLog) -> F,
    ) {
        let (log, runtime) = self.host(process).expect("it lives");
        let is_done = Arc::new(AtomicBool::new(false));
        let (done, task) = (Arc::clone(&is_done), task(log));
        let task = async move {
            task.await;
            done.store(true, Ordering::SeqCst);
        };
        runtime.spawn("test", Box::pin(task));
        for _ in 0..100 {
            self.run(100 * MILLISECOND);
            if is_done.load(Ordering::SeqCst) {
                return;
            }
        }
        panic!("not done after ten seconds");
    }

    pub(super) fn view(&self, process: ProcessId) -> GroupView {
        self.host(process).expect("it lives").0.view()
    }

    /// From now on nobody commits, and nobody pops but the test.
    pub(super) fn hush(&self) {
        let mut state = lock(&self.state);
        (state.is_quiet, state.keeps_pops) = (true, true);
    }

    /// The last version, and up to where the tag is popped, as a process has applied it.
    pub(super) fn last_and_popped(&self, process: ProcessId) -> (Version, Version) {
        let recovered = self.host(process).expect("it lives").0.recover();
        (recovered.last, recovered.popped[&Tag::FIRST])
    }

    /// Cuts a process off from all others, in both directions.
    pub(super) fn cut_off(&self, process: ProcessId) {
        let mut state = lock(&self.state);
        let others: Vec<ProcessId> = state.hosts.keys().copied().collect();
        state.links.cut_off(process, others);
    }

    pub(super) fn acknowledged(&self) -> usize {
        lock(&self.truth).acknowledged.len()
    }

    /// How many epochs have begun.
    pub(super) fn epochs(&self) -> usize {
        lock(&self.truth).owners.len()
    }

    /// Ends a process where it stands; its disk keeps what `mode` says.
    pub(super) fn kill(&self, process: ProcessId, mode: CrashMode) {
        let mut state = lock(&self.state);
        let host = state.hosts.get_mut(&process).expect("the process exists");
        let Some(life) = host.life.take() else { return };
        life.end();
        let disk = host.disk.fork_crashed(mode);
        host.disk.halt();
        host.disk = disk;
        let (log, runtime) = (host.log.take(), host.runtime.take());
        drop(state);
        drop((log, runtime));
        lock(&self.truth).note(&format!("{process} is dead"));
    }

    pub(super) fn run(&self, duration: Duration) {
        self.steps.run_for(duration);
    }

    /// What a coordinator does, while its replica leads.
    async fn lead(self: Arc<World>, process: ProcessId, log: ReplicatedLog, runtime: JobRuntime) {
        loop {
            runtime.sleep(20 * MILLISECOND).await;
            if log.is_leader() {
                let ended = self.lead_one_epoch(process, &log, &runtime).await;
                lock(&self.truth).leading.remove(&process);
                lock(&self.truth).note(&format!("{process} no longer leads: {ended}"));
            }
        }
    }

    /// Asks for read versions, all the time, wherever somebody believes to own the epoch: also where nobody can be reached any more.
    async fn ask_for_versions(self: Arc<World>, process: ProcessId, log: ReplicatedLog, runtime: JobRuntime) {
        loop {
            runtime.sleep(Duration::from_millis(10 + self.random(40))).await;
            let (owner, least) = {
                let truth = lock(&self.truth);
                let Some(&owner) = truth.leading.get(&process) else { continue };
                // A read version is at least whatever was acknowledged before it was asked for.
                (owner, truth.acknowledged.last_key_value().map_or(0, |(&version, _)| version))
            };
            let Ok(confirmed) = log.read_index().await else { continue };
            let version = confirmed.version;
            if confirmed.owner == owner {
                let mut truth = lock(&self.truth);
                truth.confirmed += 1;
                if version.get() < least {
                    truth.fail(format!("a stale read version: {version} after {least}"));
                }
            }
        }
    }

    async fn lead_one_epoch(&self, process: ProcessId, log: &ReplicatedLog, runtime: &JobRuntime) -> &'static str {
        let known = log.recover();
        let mut owner = [0; 16];
        owner[..8].copy_from_slice(&runtime.random().to_le_bytes());
        owner[8..].copy_from_slice(&runtime.random().to_le_bytes());
        let epoch = known.epoch + 1;
        let first_version = Version::from_u64(known.last.get() + 100_000_000);
        let start = Entry::EpochStart(EpochStart { epoch, owner, process, first_version });
        let Ok(appended) = log.append(vec![start]) else { return "it does not lead" };
        if !matches!(appended.await, Ok(Applied::Counted)) {
            return "its epoch did not begin";
        }
        {
            let mut truth = lock(&self.truth);
            if !truth.owners.insert(owner) {
                truth.fail("two epochs of one owner".to_owned());
            }
            truth.leaders.insert((epoch, process));
            truth.leading.insert(process, owner);
        }
        let mut previous = first_version;
        let mut under_way: VecDeque<(u64, Vec<u8>, BoxFuture<Result<Applied>>)> = VecDeque::new();
        loop {
            if under_way.len() < 4 && !lock(&self.state).is_quiet {
                let version = Version::from_u64(previous.get() + 1 + self.random(1000));
                let value = runtime.random().to_le_bytes()[..4].repeat(1 + self.random(40) as usize);
                let key = version.get().to_be_bytes().to_vec();
                let sections =
                    vec![Section { tags: vec![Tag::FIRST], mutations: vec![Mutation::set(key, value.clone())] }];
                let horizon = Version::from_u64(known.horizon.get());
                let batch = Batch {
                    epoch,
                    owner,
                    previous,
                    version,
                    horizon,
                    leased: [].into(),
                    sections,
                    metadata: vec![],
                    ids: vec![],
                };
                let Ok(appended) = log.append(vec![Entry::Batch(batch)]) else { return "it does not lead any more" };
                under_way.push_back((version.get(), value, appended));
                previous = version;
                if self.random(3) > 0 {
                    continue;
                }
            }
            let Some((version, value, appended)) = under_way.pop_front() else {
                runtime.sleep(20 * MILLISECOND).await;
                if !log.is_leader() {
                    return "it does not lead any more";
                }
                continue;
            };
            match appended.await {
                Ok(Applied::Counted) => {
                    let mut truth = lock(&self.truth);
                    truth.note(&format!("{version} by {process}"));
                    truth.acknowledged.insert(version, value);
                }
                Ok(Applied::Void) => return "its batch is void",
                Err(_) => return "its batch is unknown",
            }
        }
    }

    /// What a storage server does. Process 1's is the one that pops.
    async fn follow(self: Arc<World>, process: ProcessId, log: ReplicatedLog, runtime: JobRuntime) {
        let mut cursor = lock(&self.truth).stored;
        loop {
            let Ok(mut stream) = log.subscribe(Tag::FIRST, Version::from_u64(cursor)) else {
                // Not there yet, or purged here: then from where this replica begins.
                runtime.sleep(50 * MILLISECOND).await;
                cursor = cursor.max(lock(&self.truth).stored);
                continue;
            };
            loop {
                let delivery = match std::future::poll_fn(|context| stream.poll_next(context)).await {
                    Ok(delivery) => delivery,
                    Err(_) => break,
                };
                let value = delivery.mutations.first().map_or_else(Vec::new, |mutation| mutation.value.to_vec());
                let mut truth = lock(&self.truth);
                if delivery.previous.get() != cursor {
                    truth.fail(format!("process {process} got {} after {cursor}", delivery.previous));
                }
                cursor = delivery.version.get();
                let seen =
                    truth.batches.entry(cursor).or_insert_with(|| (delivery.previous.get(), value.clone())).clone();
                if seen != (delivery.previous.get(), value) {
                    truth.fail(format!("process {process} got another batch at {cursor}"));
                }
                if process == 1 && cursor > truth.stored && !lock(&self.state).keeps_pops {
                    truth.stored = cursor;
                    drop(truth);
                    log.pop(Tag::FIRST, delivery.version);
                }
            }
            runtime.sleep(50 * MILLISECOND).await;
        }
    }

    /// Lets a random fault happen.
    fn disturb(&self) {
        let (kind, process, other) = {
            let mut state = lock(&self.state);
            let count = state.hosts.len() as u64;
            let process = 1 + state.random.below(count);
            let other = 1 + (process + state.random.below(count - 1)) % count;
            (state.random.below(8), process, other)
        };
        lock(&self.truth).note(&format!("fault {kind} of {process}"));
        let mut state = lock(&self.state);
        match kind {
            0..=2 => {
                let seed = state.random.next_u64();
                let mode = match state.random.below(4) {
                    0 => CrashMode::NothingLost,
                    1 => CrashMode::UnsyncedLost,
                    2 => CrashMode::RandomSubset { seed },
                    _ => CrashMode::OldestFirst { seed },
                };
                drop(state);
                self.kill(process, mode);
            }
            3 => {
                if let Some(life) = &state.hosts[&process].life {
                    life.pause(true);
                }
            }
            4 => state.links.cut(process, other),
            5 => state.links.cut_off(process, [other]),
            6 => {
                drop(state);
                self.cut_off(process);
            }
            _ => state.links.lose(200),
        }
    }

    /// Ends all faults: everybody lives, and everything goes through.
    pub(super) fn heal(&self) {
        let dead: Vec<ProcessId> = {
            let mut state = lock(&self.state);
            state.links.heal();
            for host in state.hosts.values() {
                if let Some(life) = &host.life {
                    life.pause(false);
                }
            }
            state.hosts.iter().filter(|(_, host)| host.life.is_none()).map(|(&process, _)| process).collect()
        };
        dead.into_iter().for_each(|process| self.start(process));
    }

    /// Some seconds with faults, then quiet; then everything is checked.
    pub(super) fn live(&self, duration: Duration) -> Outcome {
        let end = self.clock.now() + duration;
        lock(&self.state).links.is_disturbed = true;
        while self.clock.now() < end {
            let pause = 100 + self.random(900);
            self.run(pause as u32 * MILLISECOND);
            self.disturb();
            let pause = 100 + self.random(2500);
            self.run(pause as u32 * MILLISECOND);
            if self.random(3) > 0 {
                self.heal();
            }
        }
        lock(&self.state).links.is_disturbed = false;
        self.heal();
        let before = lock(&self.truth).acknowledged.len();
        self.run(Duration::from_secs(10));
        if lock(&self.truth).acknowledged.len() == before {
            lock(&self.truth).fail("no commit within 10 s after the faults".to_owned());
        }
        lock(&self.state).is_quiet = true;
        self.run(Duration::from_secs(10));
        self.check()
    }

    fn check(&self) -> Outcome {
        let logs: Vec<(ProcessId, ReplicatedLog)> = {
            let state = lock(&self.state);
            state.hosts.iter().filter_map(|(&process, host)| Some((process, host.log.clone()?))).collect()
        };
        let mut truth = lock(&self.truth);
        if logs.len() != lock(&self.state).hosts.len() {
            truth.fail("not every process is there at the end".to_owned());
        }
        let views: Vec<_> = logs.iter().map(|(_, log)| log.view()).collect();
        truth.snapshots = views.iter().filter(|view| view.snapshot.is_some()).count() as u64;
        for view in &views {
            if let Some(failure) = &view.failure {
                truth.fail(format!("a replica has stopped: {failure}"));
            }
        }
        let prints: BTreeSet<_> = logs.iter().map(|(_, log)| log.fingerprint()).collect();
        if prints.len() > 1 {
            let applied: Vec<_> = prints.iter().map(|(applied, _)| *applied).collect();
            truth.fail(format!("the replicas differ at the end: they have applied {applied:?}"));
        }
        let newest = truth.acknowledged.last_key_value().map_or(0, |(&version, _)| version);
        if truth.stored < newest {
            let stored = truth.stored;
            truth.fail(format!("the storage server has come to {stored} of {newest} only"));
        }
        let lost: Vec<u64> = truth
            .acknowledged
            .iter()
            .filter(|(version, value)| truth.batches.get(version).is_none_or(|(_, found)| found != *value))
            .map(|(&version, _)| version)
            .collect();
        if !lost.is_empty() {
            truth.fail(format!("acknowledged and not there: {lost:?}"));
        }
        Outcome {
            failures: truth.failures.clone(),
            acknowledged: truth.acknowledged.len(),
            epochs: truth.owners.len(),
            confirmed: truth.confirmed,
            messages: lock(&self.state).links.counts(),
            snapshots: truth.snapshots,
            purged: views.iter().filter_map(|view| view.purged).max().unwrap_or(0),
            trace: truth.trace,
            events: truth.events,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.steps.drop_jobs();
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) failures: Vec<String>,
    pub(super) acknowledged: usize,
    pub(super) epochs: usize,
    pub(super) confirmed: u64,
    pub(super) messages: Counts,
    pub(super) snapshots: u64,
    pub(super) purged: u64,
    pub(super) trace: u64,
    pub(super) events: u64,
}

/// A life of a group of three, under faults.
pub(super) fn run(seed: u64, duration: Duration) -> Outcome {
    let world = World::new(seed, 3);
    (1..=3).for_each(|process| world.start(process));
    world.found(3);
    world.run(Duration::from_secs(3));
    let outcome = world.live(duration);
    world.steps.drop_jobs();
    outcome
}
