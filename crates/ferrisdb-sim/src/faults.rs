//! What goes wrong, and when: [`Chaos`].
//!
//! At random times, seconds apart, one of the [`Kind`]s befalls one host. Some are over at once, others last; how likely each is differs from seed to
//! seed, so that some seeds are all about crashes and others all about the network. [`heal`](Chaos::heal) ends all of them.
//!
//! # What is not done to a single process
//! A disk that lies about syncs, loses writes, or is put back, takes what was acknowledged with it when there is no replica. So bits are
//! flipped only in tables, which are checked when read and never rewritten, and flipped back before the end: until then the answer is the right one or an
//! error.
//!
//! # What is done to one of many
//! Its disk is lost, and a new process comes in its place; or the disk goes back to how it was; or a bit of its log is wrong where it was synced. Each only while every other one has everything:
//! a cluster of three survives one such loss at a time. (A bit of a record that no mark says was synced is left alone: to its process that is a torn tail.)
//!
//! Somebody also has roles move, processes give up what they hold, and shards have more replicas or fewer, whatever else is wrong at that moment. While there may be one replica of
//! something, nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_server::cluster::{Order, REPLICATION_MAX};
use ferrisdb_storage::fs::sim::{CrashMode, DiskError, Injection, OpKind, Verdict};

use crate::cuts::{Cuts, Link, Way, links};
use crate::members::Members;
use crate::programs;
use crate::workloads::snapshots::MAY_END_LEASES;
use crate::world::clock::RATE_RIGHT;
use crate::world::disk::Speed;
use crate::world::{Death, World};

/// A space that no disk of a run fills.
const ENDLESS_BYTES: u64 = 1 << 40;
/// An image is so old before it is put back that the others know what it lacks, and have written that down.
const IMAGE_OLD: Duration = Duration::from_secs(10);
/// For so long all processes of a cluster have reached each other before one may be lost: each has heard several times what the others have.
const CONNECTED: Duration = Duration::from_secs(3);
/// Nobody carries out an order that is older.
const ORDER_MAX: Duration = Duration::from_secs(30);
const YEAR_SECONDS: u64 = 365 * 24 * 60 * 60;
/// So many replicas a shard has unless somebody wants another number.
pub(crate) const REPLICAS: usize = 3;

/// A kind of fault, with the name under which it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A server process is killed.
    Kill,
    /// Power fails.
    PowerLoss,
    /// Power fails at an I/O.
    PowerLossAtIo,
    /// Power fails at an I/O during the recovery after another failure.
    PowerLossInRecovery,
    /// A client process is killed.
    ClientKill,
    /// A process stands still, and what was sent to it waits for it.
    Pause,
    /// Nothing goes between two hosts.
    Partition,
    /// Nothing goes from one host to another.
    OneWayPartition,
    /// Messages between two hosts take long.
    SlowNetwork,
    /// Connections break in the middle of something.
    BrokenStreams,
    /// What a client or a process of a cluster sent arrives long after it has given up the connection, and after what it has asked again on the next one.
    LateMessages,
    /// A sync fails, and what it should have written is gone.
    FailedSync,
    /// Writes, creations, reads or other operations fail for a while.
    DiskErrors,
    /// The disk stalls.
    SlowDisk,
    /// The processors have too much to do: threads wait for one, each for another time.
    BusyProcessor,
    /// The disk is full.
    FullDisk,
    /// A bit of a table, or of a log in a cluster, is wrong.
    BitFlip,
    /// A clock jumps forward.
    ClockJump,
    /// The time of day jumps, ahead or back.
    WallClockJump,
    /// A clock stands still.
    ClockFreeze,
    /// A clock goes too fast or too slowly.
    ClockRate,
    /// A process of a cluster is lost with its disk, and a new one comes in its place.
    LostForGood,
    /// The disk of a process of a cluster goes back to how it was.
    WentBack,
    /// Nothing goes between one process of a cluster and all others; clients reach it.
    Isolate,
    /// Nothing goes from one process of a cluster to the others, or from them to it; clients reach it.
    OneWayIsolate,
    /// Somebody has another process of a cluster lead.
    Transfer,
    /// Somebody has a process of a cluster give up what it holds, and its vote, and wants it back a while later.
    Exclude,
    /// Somebody wants another number of replicas.
    Configure,
}

impl Kind {
    /// All of them.
    pub const ALL: &[(Kind, &str)] = &[
        (Kind::Kill, "kill"),
        (Kind::PowerLoss, "power-loss"),
        (Kind::PowerLossAtIo, "power-loss-at-io"),
        (Kind::PowerLossInRecovery, "power-loss-in-recovery"),
        (Kind::ClientKill, "client-kill"),
        (Kind::Pause, "pause"),
        (Kind::Partition, "partition"),
        (Kind::OneWayPartition, "one-way-partition"),
        (Kind::SlowNetwork, "slow-network"),
        (Kind::BrokenStreams, "broken-streams"),
        (Kind::LateMessages, "late-messages"),
        (Kind::FailedSync, "failed-sync"),
        (Kind::DiskErrors, "disk-errors"),
        (Kind::SlowDisk, "slow-disk"),
        (Kind::BusyProcessor, "busy-processor"),
        (Kind::FullDisk, "full-disk"),
        (Kind::BitFlip, "bit-flip"),
        (Kind::ClockJump, "clock-jump"),
        (Kind::WallClockJump, "wall-clock-jump"),
        (Kind::ClockFreeze, "clock-freeze"),
        (Kind::ClockRate, "clock-rate"),
        (Kind::LostForGood, "lost-for-good"),
        (Kind::WentBack, "went-back"),
        (Kind::Isolate, "isolate"),
        (Kind::OneWayIsolate, "one-way-isolate"),
        (Kind::Transfer, "transfer"),
        (Kind::Exclude, "exclude"),
        (Kind::Configure, "configure"),
    ];
}

/// The files of a disk.
type Image = Vec<(PathBuf, Vec<u8>)>;

/// What ends a fault that lasts.
#[derive(Debug, Clone)]
enum Cure {
    Mend(Vec<Link>),
    Include(u64),
    Release(String, Vec<String>),
    Latency(String, String),
    Errors(String),
    Speed(String),
    Space(String),
    Bit { host: String, path: PathBuf, offset: u64, bit: u8 },
    Rate(String),
    Busy(String),
}

/// Lets things go wrong in a [`World`].
#[derive(Debug)]
pub struct Chaos {
    random: SplitMix64,
    servers: Vec<String>,
    clients: Vec<String>,
    /// Each kind as often as it is likely.
    urn: Vec<(Kind, &'static str)>,
    /// Only some kinds happen: whoever wants that wants to see what they do where most can go wrong.
    is_focused: bool,
    /// Milliseconds between two faults, at most.
    pause_max: u64,
    latency_max: Duration,
    speed: Speed,
    next: Duration,
    lasting: Vec<(Duration, Cure)>,
    cuts: Cuts,
    /// Since then all processes of a cluster have reached each other.
    connected_since: Duration,
    /// When somebody last wanted one replica only: until that is long over none may be lost.
    single_since: Option<Duration>,
    /// Hosts that are down, and until when; with how many operations their recovery is to last.
    down: BTreeMap<String, (Duration, Option<u64>)>,
    /// How the processes of a cluster stand.
    members: Members,
    /// Of one host, how its disk was, and when: old enough, it may be put back.
    image: Option<(Duration, String, Image)>,
    /// Hosts whose disk has done something wrong since their process was started.
    excused: BTreeSet<String>,
    /// Clients that died since this was asked for.
    felled: Vec<String>,
    /// How often what happened.
    pub happened: BTreeMap<&'static str, u64>,
}

impl Chaos {
    /// For these hosts. `latency_max` and `speed` are what the network and the disks are like when nothing is wrong with them. If `only` names kinds, nothing else happens, and
    /// to whoever leads more often than to others.
    pub fn new(
        seed: u64,
        only: &[String],
        servers: Vec<String>,
        clients: Vec<String>,
        latency_max: Duration,
        speed: Speed,
        members: Members,
    ) -> Chaos {
        let mut random = SplitMix64::new(seed);
        let mut urn = Vec::new();
        while urn.is_empty() {
            for kind in Kind::ALL {
                let weight = [0, 1, 1, 4][usize::try_from(random.below(4)).expect("below four")];
                let weight = match only.iter().any(|name| name == kind.1) {
                    true => weight.max(1),
                    false if only.is_empty() => weight,
                    false => 0,
                };
                urn.extend(std::iter::repeat_n(*kind, weight));
            }
        }
        let pause_max = [1_000, 3_000, 6_000][usize::try_from(random.below(3)).expect("below three")];
        Chaos {
            random,
            servers,
            clients,
            urn,
            is_focused: !only.is_empty(),
            pause_max,
            latency_max,
            speed,
            next: Duration::ZERO,
            lasting: Vec::new(),
            cuts: Cuts::default(),
            connected_since: Duration::ZERO,
            single_since: None,
            down: BTreeMap::new(),
            members,
            image: None,
            excused: BTreeSet::new(),
            felled: Vec::new(),
            happened: BTreeMap::new(),
        }
    }

    /// How many faults there were.
    pub fn count(&self) -> u64 {
        self.happened.values().sum()
    }

    /// The hosts that have died since the last call.
    pub fn take_felled(&mut self) -> Vec<String> {
        std::mem::take(&mut self.felled)
    }

    /// What has to be looked after in every tick: hosts whose power failed, processes that have ended, faults that are over. Returns what a process ended
    /// with though its disk has done nothing wrong: nothing else may end one.
    pub fn look_after(&mut self, world: &mut World) -> Option<String> {
        let now = world.now();
        let mut wrong = None;
        if self.is_any_held() || self.cuts.is_any_between(&self.servers) {
            self.connected_since = now;
        }
        for name in self.servers.clone() {
            if self.down.contains_key(&name) {
                continue;
            }
            if world.host(&name).disk().is_gone() {
                world.trace().count("power lost at an operation");
                let mode = self.crash_mode();
                self.fell(world, &name, Death::Power(mode));
            } else if let Some(ended) = world.take_ended(&name) {
                // Somebody looks at it, and starts it again.
                world.trace().count(if ended.is_ok() { "processes that ended" } else { "processes that gave up" });
                if let Some(why) = ended.err().filter(|_| !self.excused.contains(&name)) {
                    wrong = Some(format!("{name} gave up, though nothing is wrong with its disk: {why}"));
                }
                self.fell(world, &name, Death::Killed);
            }
        }
        let due: Vec<String> =
            self.down.iter().filter(|(_, (at, _))| *at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            let (_, fails_in) = self.down.remove(&name).expect("it was just found");
            if let Some(operations) = fails_in {
                world.host(&name).disk().fail_in(operations);
            }
            world.start(&name);
        }
        let over: Vec<Cure> =
            self.lasting.iter().filter(|(until, _)| *until <= now).map(|(_, cure)| cure.clone()).collect();
        self.lasting.retain(|(until, _)| *until > now);
        over.into_iter().for_each(|cure| self.cure(world, cure));
        wrong
    }

    /// Lets something go wrong, if it is time.
    pub fn rage(&mut self, world: &mut World) {
        let now = world.now();
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(200 + self.random.below(self.pause_max));
        self.take_image(world);
        let (kind, name) = self.urn[usize::try_from(self.random.below(self.urn.len() as u64)).expect("an index")];
        if self.befall(world, kind) {
            if matches!(kind, Kind::ClockJump | Kind::ClockRate | Kind::LostForGood | Kind::WentBack) {
                world.trace().count(MAY_END_LEASES);
            }
            *self.happened.entry(name).or_default() += 1;
            world.trace().note(format_args!("fault {name}"));
        }
    }

    /// A host has too much to do, for a second.
    pub fn load(&mut self, world: &World, server: &str) {
        world.host(server).set_busy(true);
        self.lasting.push((world.now() + Duration::from_secs(1), Cure::Busy(server.to_owned())));
    }

    /// Ends all faults. What is down starts.
    pub fn heal(&mut self, world: &mut World) {
        world.trace().note(format_args!("all faults end"));
        for (_, cure) in std::mem::take(&mut self.lasting) {
            self.cure(world, cure);
        }
        for name in self.servers.clone() {
            world.host(&name).disk().files().clear_injections();
            world.host(&name).disk().fail_in(u64::MAX / 2);
        }
        for (name, (at, fails_in)) in &mut self.down {
            world.trace().note(format_args!("{name} will start"));
            (*at, *fails_in) = (world.now(), None);
        }
    }

    /// The power of all servers fails, and they start again.
    pub fn fell_all(&mut self, world: &mut World) {
        for name in self.servers.clone() {
            if !self.down.contains_key(&name) {
                let mode = self.crash_mode();
                self.fell(world, &name, Death::Power(mode));
            }
        }
    }

    fn befall(&mut self, world: &mut World, kind: Kind) -> bool {
        let now = world.now();
        let server = self.victim();
        let client = self.one_of(&self.clients.clone());
        let lasts = Duration::from_millis(200 + self.random.below(4_000));
        match kind {
            Kind::ClientKill => {
                if self.down.contains_key(&client) {
                    return false;
                }
                self.fell(world, &client, Death::Killed);
                return true;
            }
            Kind::Kill | Kind::PowerLoss | Kind::PowerLossInRecovery => {
                if self.down.contains_key(&server) {
                    return false;
                }
                let mode = self.crash_mode();
                self.fell(world, &server, if kind == Kind::Kill { Death::Killed } else { Death::Power(mode) });
                if kind == Kind::PowerLossInRecovery {
                    let operations = 1 + self.random.below(40);
                    self.down.get_mut(&server).expect("it was just felled").1 = Some(operations);
                }
                return true;
            }
            Kind::LostForGood => return self.change_disk(world, &server, &[]),
            Kind::BitFlip if self.servers.len() > 1 && self.random.one_in(2) => {
                return self.damage_log(world, &server);
            }
            Kind::WentBack => {
                let Some((taken, server, image)) = self.image.clone() else { return false };
                let has_changed = now > taken + IMAGE_OLD && self.change_disk(world, &server, &image);
                self.image = self.image.take().filter(|_| !has_changed);
                return has_changed;
            }
            _ => {}
        }
        if self.down.contains_key(&server) {
            return false;
        }
        let host = std::sync::Arc::clone(world.host(&server));
        if matches!(kind, Kind::FailedSync | Kind::DiskErrors | Kind::FullDisk | Kind::BitFlip) {
            self.excused.insert(server.clone());
        }
        match kind {
            Kind::PowerLossAtIo => host.disk().fail_in(1 + self.random.below(60)),
            Kind::Pause => {
                let others: Vec<String> =
                    self.servers.iter().chain(&self.clients).filter(|other| **other != server).cloned().collect();
                if self.is_any_held() || self.cuts.is_cut(&server) {
                    return false;
                }
                others.iter().for_each(|other| world.network().hold(server.as_str(), other.as_str()));
                host.stop_jobs_for(lasts);
                self.lasting.push((now + lasts, Cure::Release(server, others)));
            }
            Kind::Partition | Kind::OneWayPartition | Kind::SlowNetwork => {
                // Between a server and a client, or another server.
                let others: Vec<String> =
                    self.servers.iter().chain(&self.clients).filter(|other| **other != server).cloned().collect();
                let other = if self.servers.len() > 1 { self.one_of(&others) } else { client };
                if kind == Kind::SlowNetwork {
                    let latency = Duration::from_millis(50 + self.random.below(500));
                    world.network().set_link_max_message_latency(server.as_str(), other.as_str(), latency);
                    self.lasting.push((now + lasts, Cure::Latency(server, other)));
                    return true;
                }
                let way = if kind == Kind::Partition { Way::Both } else { self.one_of(&[Way::Out, Way::In]) };
                return self.cut(world, &server, &[other], way, lasts);
            }
            Kind::Isolate | Kind::OneWayIsolate => {
                let others: Vec<String> = self.servers.iter().filter(|other| **other != server).cloned().collect();
                if others.is_empty() {
                    return false;
                }
                let way = if kind == Kind::Isolate { Way::Both } else { self.one_of(&[Way::Out, Way::In]) };
                return self.cut(world, &server, &others, way, 2 * lasts);
            }
            Kind::Transfer | Kind::Exclude | Kind::Configure => return self.order(now, kind, lasts),
            Kind::BrokenStreams => {
                let host = if self.random.one_in(2) { host } else { std::sync::Arc::clone(world.host(&client)) };
                host.network().break_streams();
            }
            Kind::LateMessages => {
                // What processes of a cluster send each other is asked again on the next connection, and so comes twice.
                let is_between_servers = self.servers.len() > 1 && self.random.one_in(2);
                world.host(if is_between_servers { &server } else { &client }).network().delay_streams();
            }
            Kind::FailedSync => {
                let verdict = Verdict::FailAndDrop(DiskError::Io);
                let after = self.random.below(20);
                host.disk().files().inject(Injection::new(&[OpKind::Sync], verdict).after(after).once());
                self.lasting.push((now + lasts, Cure::Errors(server)));
            }
            Kind::DiskErrors => {
                let kinds: &[OpKind] = match self.random.below(5) {
                    0 => &[OpKind::Write],
                    1 => &[OpKind::Create],
                    2 => &[OpKind::Read],
                    3 => &[OpKind::SyncDir],
                    _ => &[OpKind::Rename, OpKind::Remove, OpKind::Open, OpKind::Allocate],
                };
                let times = 1 + self.random.below(3);
                let after = self.random.below(20);
                let injection = Injection::new(kinds, Verdict::Fail(DiskError::Io)).after(after).times(times);
                host.disk().files().inject(injection);
                self.lasting.push((now + lasts, Cure::Errors(server)));
            }
            Kind::SlowDisk => {
                let stall = [5, 50, 500][usize::try_from(self.random.below(3)).expect("below three")];
                host.disk().set_speed(Speed { stall: 1 + self.random.below(stall), ..self.speed });
                self.lasting.push((now + lasts, Cure::Speed(server)));
            }
            Kind::BusyProcessor => {
                host.set_busy(true);
                self.lasting.push((now + lasts, Cure::Busy(server)));
            }
            Kind::FullDisk => {
                let spare = self.random.below(64 << 10);
                host.disk().files().set_capacity(host.disk().files().used_bytes() + spare);
                self.lasting.push((now + lasts, Cure::Space(server)));
            }
            Kind::BitFlip => {
                let tables: Vec<(PathBuf, u64)> = host.disk().files().files();
                let tables: Vec<(PathBuf, u64)> = tables
                    .into_iter()
                    .filter(|(path, len)| path.extension().is_some_and(|name| name == "sst") && *len > 0)
                    .collect();
                if tables.is_empty() {
                    return false;
                }
                let (path, len) = self.one_of(&tables);
                let (offset, bit) = (self.random.below(len), u8::try_from(self.random.below(8)).expect("below eight"));
                host.disk().files().flip_bit(&path, offset, bit);
                self.lasting.push((now + lasts, Cure::Bit { host: server, path, offset, bit }));
            }
            Kind::ClockJump => host.clock().jump(Duration::from_millis(self.random.below(20_000))),
            Kind::WallClockJump => {
                let seconds = 1 + self.random.below(YEAR_SECONDS);
                host.clock().jump_wall(Duration::from_secs(seconds), self.random.one_in(2));
            }
            Kind::ClockFreeze => host.clock().freeze(lasts),
            Kind::ClockRate => {
                host.clock().set_rate(RATE_RIGHT / 2 + self.random.below(RATE_RIGHT * 3));
                self.lasting.push((now + lasts, Cure::Rate(server)));
            }
            Kind::Kill
            | Kind::PowerLoss
            | Kind::PowerLossInRecovery
            | Kind::ClientKill
            | Kind::LostForGood
            | Kind::WentBack => {
                unreachable!("done above")
            }
        }
        true
    }

    /// Cuts links. Not those of a process that stands still: what is held for it would be let go.
    fn cut(&mut self, world: &World, one: &str, others: &[String], way: Way, lasts: Duration) -> bool {
        if self.is_held(one) || others.iter().any(|other| self.is_held(other)) {
            return false;
        }
        let links = links(one, others, way);
        self.cuts.cut(world, &links);
        self.lasting.push((world.now() + lasts, Cure::Mend(links)));
        true
    }

    /// Somebody wants something of the cluster, and asks any of its processes, whatever else is wrong; often the next thing that goes wrong follows at once.
    fn order(&mut self, now: Duration, kind: Kind, lasts: Duration) -> bool {
        let hosts = self.members.hosts();
        if self.servers.len() < 2 || hosts.is_empty() {
            return false;
        }
        let host = self.one_of(&hosts);
        let processes: Vec<u64> =
            hosts.iter().filter_map(|host| self.members.standing(host)).map(|at| at.process).collect();
        let process = self.one_of(&processes);
        let order = match kind {
            Kind::Transfer => Order::Transfer(if self.random.one_in(3) { None } else { Some(process) }),
            Kind::Exclude => {
                self.lasting.push((now + 3 * lasts, Cure::Include(process)));
                Order::Exclude(process)
            }
            _ => {
                // Where there is one replica it must not be lost, nor one of two be gone when one is to be left.
                let least = if self.may_lose_one(now) { 1 } else { 2 };
                let replicas = least + self.random.below(REPLICATION_MAX + 1 - least);
                if replicas == 1 {
                    self.single_since = Some(now);
                }
                Order::Replication(replicas)
            }
        };
        self.members.order(&host, order);
        if self.random.one_in(2) {
            self.next = now + Duration::from_millis(self.random.below(300));
        }
        true
    }

    /// Has the cluster be as it was configured at first. To be called again until [it is](Self::is_restored): an order may be lost.
    pub fn restore(&mut self) {
        let hosts = self.members.hosts();
        if hosts.is_empty() {
            return;
        }
        let host = self.one_of(&hosts);
        let Some(standing) = self.members.standing(&host) else { return };
        standing.excluded.iter().for_each(|&process| self.members.order(&host, Order::Include(process)));
        if standing.replicas != REPLICAS {
            self.members.order(&host, Order::Replication(REPLICAS as u64));
        }
    }

    /// All processes of the cluster know that it is as it was configured at first.
    pub fn is_restored(&self) -> bool {
        self.members.all(|standing| standing.excluded.is_empty() && standing.replicas == REPLICAS)
    }

    /// True if any process may be lost with its disk: nothing else is wrong that could cost a second one, and each knows from all others what they have.
    fn may_lose_one(&self, now: Duration) -> bool {
        let is_single = self.single_since.is_some_and(|since| now < since + ORDER_MAX);
        self.servers.len() > 1
            && self.down.is_empty()
            && !is_single
            && now > self.connected_since + CONNECTED
            && self.members.may_lose_one(&self.servers)
    }

    /// Remembers how a disk is.
    fn take_image(&mut self, world: &World) {
        let now = world.now();
        let is_old = self.image.as_ref().is_none_or(|(taken, _, _)| now > *taken + 3 * IMAGE_OLD);
        if is_old && self.may_lose_one(now) {
            let server = self.one_of(&self.servers.clone());
            let image = world.host(&server).disk().image();
            self.image = Some((now, server, image));
        }
    }

    /// A machine dies, and starts with other files on its disk.
    fn change_disk(&mut self, world: &mut World, server: &str, files: &[(PathBuf, Vec<u8>)]) -> bool {
        if !self.may_lose_one(world.now()) || world.host(server).disk().is_gone() {
            return false;
        }
        self.fell(world, server, Death::Killed);
        world.host(server).disk().replace(files);
        true
    }

    /// A process dies, and a bit of its replica of the log is wrong from now on. It has forgotten what it voted, and has to know that.
    fn damage_log(&mut self, world: &mut World, server: &str) -> bool {
        if !self.may_lose_one(world.now()) || world.host(server).disk().is_gone() {
            return false;
        }
        let records = programs::synced_records(world.host(server).disk().files());
        if records.is_empty() {
            return false;
        }
        let (path, bytes) = self.one_of(&records);
        let offset = bytes.start + self.random.below(bytes.end - bytes.start);
        let bit = u8::try_from(self.random.below(8)).expect("below eight");
        self.fell(world, server, Death::Killed);
        world.host(server).disk().files().flip_bit(&path, offset, bit);
        // It comes back as a new process, with nothing, and may have been the only one that had a version of before others joined it: a move brings a shard at one version.
        world.trace().count(MAY_END_LEASES);
        world.trace().count("logs that were damaged");
        true
    }

    fn cure(&mut self, world: &mut World, cure: Cure) {
        world.trace().note(format_args!("over: {cure:?}"));
        match cure {
            Cure::Mend(links) => self.cuts.mend(world, &links),
            // At any process that runs.
            Cure::Include(process) => {
                let hosts = self.members.hosts();
                if !hosts.is_empty() {
                    let host = self.one_of(&hosts);
                    self.members.order(&host, Order::Include(process));
                }
            }
            Cure::Release(one, others) => {
                others.iter().for_each(|other| world.network().release(one.as_str(), other.as_str()));
            }
            Cure::Latency(one, other) => {
                world.network().set_link_max_message_latency(one.as_str(), other.as_str(), self.latency_max);
            }
            Cure::Errors(host) => world.host(&host).disk().files().clear_injections(),
            Cure::Speed(host) => world.host(&host).disk().set_speed(self.speed),
            Cure::Space(host) => world.host(&host).disk().files().set_capacity(ENDLESS_BYTES),
            Cure::Bit { host, path, offset, bit } => {
                let files = world.host(&host).disk().files();
                // A table that was compacted away has gone with its bit.
                if files.files().iter().any(|(name, _)| *name == path) {
                    files.flip_bit(&path, offset, bit);
                }
            }
            Cure::Rate(host) => world.host(&host).clock().set_rate(RATE_RIGHT),
            Cure::Busy(host) => world.host(&host).set_busy(false),
        }
    }

    /// Any server, or who leads.
    fn victim(&mut self) -> String {
        let leads = |host: &&String| self.members.standing(host).is_some_and(|standing| standing.leads);
        let leading = self.servers.iter().find(leads).cloned();
        match leading {
            Some(leading) if self.is_focused && !self.random.one_in(3) => leading,
            _ => self.one_of(&self.servers.clone()),
        }
    }

    /// A host dies and will start again.
    fn fell(&mut self, world: &mut World, name: &str, death: Death) {
        world.kill(name, death);
        self.members.forget(name);
        let is_at_fault = |(_, cure): &(Duration, Cure)| match cure {
            Cure::Errors(host) | Cure::Space(host) | Cure::Bit { host, .. } => host == name,
            _ => false,
        };
        if !self.lasting.iter().any(is_at_fault) {
            self.excused.remove(name);
        }
        self.felled.push(name.to_owned());
        let until = world.now() + Duration::from_millis(50 + self.random.below(1_500));
        self.down.insert(name.to_owned(), (until, None));
        if matches!(death, Death::Power(_)) {
            // Its links were cut and mended with it: nothing is held any more, and what was cut is to be.
            self.lasting.retain(|(_, cure)| !matches!(cure, Cure::Release(one, _) if one == name));
            self.cuts.renew(world, name);
        }
    }

    /// What goes from and to this host waits.
    fn is_held(&self, name: &str) -> bool {
        self.lasting.iter().any(|(_, cure)| matches!(cure, Cure::Release(one, _) if one == name))
    }

    fn is_any_held(&self) -> bool {
        self.lasting.iter().any(|(_, cure)| matches!(cure, Cure::Release(..)))
    }

    fn crash_mode(&mut self) -> CrashMode {
        let seed = self.random.next_u64();
        match self.random.below(4) {
            0 => CrashMode::UnsyncedLost,
            1 => CrashMode::OldestFirst { seed },
            _ => CrashMode::RandomSubset { seed },
        }
    }

    fn one_of<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.random.below(of.len() as u64)).expect("an index")].clone()
    }
}
