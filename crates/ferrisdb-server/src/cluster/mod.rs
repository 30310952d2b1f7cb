//! One process of a cluster: [`ClusterNode`], all roles over one directory, on the replicated log.
//!
//! ```text
//! DIR/LOCK       who has it open
//! DIR/process    which process of which cluster this is; there from the moment of joining or founding
//! DIR/raft/      the replica of the log
//! DIR/storage/   the engine of the storage server
//! ```
//! ```text
//! identity   the file `process`                    lead      the coordinator, where the log's leader is
//! metadata   processes and storage servers         control   what the controller does next with processes and the log's group (pure)
//! messages   what processes ask each other         spread    the controller and the shards; distribute: what it does next (pure)
//! lines      ways to other processes               fill      the way from the log to storage
//! moves      shards that come are fetched          locate    reads where the data is
//! loads      how much is read and written of each shard
//! beat       I am here, and this is how I am       members   who was heard when (pure)
//! known      what peers said that they have        rejoin    to begin again as a new process
//! orders     what somebody wants of the cluster    status    the status document
//! route      questions to whoever can answer them; the endpoint
//! damaged    what is done about files that are not what was written
//! standing   how all this stands, for whoever checks it
//! verify     a directory that nobody has open
//! open       founding, joining and opening again, up to the running roles
//! ```
//!
//! Every process has a replica of the log and a storage server, which holds some of the [shards](crate::shards). The coordinator and the controller run
//! where the log's leader is. Any process takes any question, and has those answer it who can.
//!
//! # Life of a process
//! It **founds** a cluster (a new one, or one that goes on where a database in one process ended) or **joins** one: it asks a process that it
//! was told of, gets a number and a tag, is sent the log, and begins with nothing at the version at which its tag was made: what is committed above
//! that the log keeps for it. Then it says that it has begun, and the controller has shards move to it, which it fetches. With the third such process the log gets
//! three voters.
//!
//! A process that is gone for long loses its place, one whose disk went back must not take part: both begin again by themselves, in the same directory
//! ([decision 0019](../../../../docs/decisions/0019-membership.md)).
//!
//! # Invariants
//! - Storage applies only what the log has committed, in order.
//! - A storage server answers only for what it holds, at the versions at which it does.
//! - A process answers for the coordinator only if it runs the coordinator of the log's current owner; the log's read index says so.
//! - Each task holds the directory's lock until its future is gone.

mod beat;
mod control;
mod damaged;
mod distribute;
mod fill;
mod identity;
mod known;
mod lead;
mod lines;
mod loads;
mod locate;
mod members;
mod messages;
mod metadata;
mod moves;
mod open;
mod orders;
mod rejoin;
mod route;
mod spread;
mod standing;
mod status;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Bytes, Clock, Code, Error, Limits, Result, Runtime};
use ferrisdb_rpc::Endpoint;
use ferrisdb_rpc::pace::Pace;
use ferrisdb_storage::Env;
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::FileSystem;

use self::fill::Copied;
use self::identity::Identity;
use self::known::Recorder;
use self::lead::Leading;
use self::lines::Lines;
use self::metadata::Registry;
use self::rejoin::Again;
use self::route::{Direct, Route};
use crate::coordinator::CoordinatorOptions;
use crate::counters::Counters;
use crate::failure::from_storage;
use crate::feed::Progress;
use crate::lifetime::{SharedLock, ended, spawn, take_directory};
use crate::log::replicated::{GroupView, Position, ReplicatedLog, ReplicatedLogOptions};
use crate::log::{State, Tag};
use crate::runtime::JobRuntime;
use crate::shards::keeper::Keeper;
use crate::shards::load::Load;
use crate::shards::{SHARD_PREFIX, ShardMap};
use crate::signal::{Latch, Replied, lock};
use crate::storage::{StorageOptions, StorageServer};

pub use crate::log::replicated::{Peer, ProcessId, ReplicaReport};
pub use lines::{Network, RpcNetwork, line_options};
pub use members::MemberOptions;
pub use messages::asks_to_join;
#[cfg(test)]
pub(crate) use messages::join_message;
pub use orders::{Order, Ordered, REPLICATION_MAX, order};
pub use standing::{LogStanding, ShardStanding, Standing};
pub use verify::ProcessReport;

/// How often a process looks again for what it waits for, where nothing wakes it.
const LOOK: Duration = Duration::from_millis(20);
/// How long a leader that closes waits for another one.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How a process of a cluster is opened.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The replica of the log. Its tags are the cluster's business. Default: elections after 0.75 to 1 s, otherwise its own.
    pub log: ReplicatedLogOptions,
    /// The storage server. Its limit of values is set from the coordinator's limits.
    pub storage: StorageOptions,
    /// The coordinator, where it runs, and the database's limits.
    pub coordinator: CoordinatorOptions,
    /// How long a question waits for a coordinator before its client is told that there is none. Default: 5 s.
    pub coordinator_wait: Duration,
    /// When a silent process is suspected, and when it is gone.
    pub members: MemberOptions,
    /// The shards.
    pub shards: ShardOptions,
}

/// How data is distributed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// A shard with more bytes is split; two that have less than a quarter of it together may be merged. Larger: fewer moves, which take longer. Default: 256 MiB.
    pub split_bytes: u64,
    /// A shard with more load is split, if it can be: bytes that one replica writes and reads a second, with 100 for each key. Smaller: load is spread over storage servers in smaller
    /// pieces, of which there are more. Default: 4 MiB/s, some 20,000 small reads or writes a second, a fifth of a processor.
    pub split_load: u64,
    /// For so long two neighbouring shards must have had less than a quarter of that load together before they are merged. Longer: less is split that was merged a moment
    /// ago, and more shards are kept. Default: 1 min.
    pub merge_after: Duration,
    /// How fast a storage server fetches shards that come to it at the most. Higher: healed sooner, and clients feel it more. Default: 32 MiB/s.
    pub move_bytes_per_second: u64,
    /// How fast all storage servers together fetch at the most; while the database is limited because storage is behind, a quarter of it. Default: 64 MiB/s.
    pub all_moves_bytes_per_second: u64,
    /// Shards that move at once. Default: 4.
    pub moves: usize,
    /// Shards that move to one storage server at once. Default: 2.
    pub moves_to_one: usize,
    /// How often the size of each shard is looked at. Its load is looked at twice as often. Default: 10 s.
    pub size_interval: Duration,
}

impl Default for ShardOptions {
    fn default() -> ShardOptions {
        ShardOptions {
            split_bytes: 256 << 20,
            split_load: 4 << 20,
            merge_after: Duration::from_secs(60),
            move_bytes_per_second: 32 << 20,
            all_moves_bytes_per_second: 64 << 20,
            moves: 4,
            moves_to_one: 2,
            size_interval: Duration::from_secs(10),
        }
    }
}

impl ShardOptions {
    /// Bytes a second that each of so many storage servers may fetch.
    fn fetch_rate(&self, fetching: usize) -> u64 {
        self.move_bytes_per_second.min(self.all_moves_bytes_per_second / fetching.max(1) as u64).max(1)
    }
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            // A leader that dies is missed after 3 to 4 times so long, 0.75 to 1 s (decision 0020): six heartbeats, long beside a sync.
            log: ReplicatedLogOptions {
                election_timeout: Duration::from_millis(250),
                heartbeat_interval: Duration::from_millis(120),
                ..ReplicatedLogOptions::default()
            },
            storage: StorageOptions::default(),
            // The library sends a follower one message at a time: a second group would wait, and one of all that is queued by then is cheaper.
            coordinator: CoordinatorOptions {
                groups_in_flight: 1,
                company: 0.25,
                alone_at_most: Duration::ZERO,
                ..CoordinatorOptions::default()
            },
            coordinator_wait: Duration::from_secs(5),
            members: MemberOptions::default(),
            shards: ShardOptions::default(),
        }
    }
}

/// What a process stands on.
#[derive(Clone)]
pub struct Doors {
    /// Disk, clock, entropy, and jobs that may block.
    pub env: Env,
    /// Tasks that never block: the consensus library's.
    pub runtime: Arc<dyn Runtime>,
    /// The other processes.
    pub network: Arc<dyn Network>,
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doors").field("env", &self.env).field("network", &self.network).finish_non_exhaustive()
    }
}

/// What a new directory becomes.
#[derive(Debug, Clone)]
pub enum Beginning {
    /// The first process of a new cluster.
    Found,
    /// The first process of a cluster that goes on where a database in one process ended: with its id and its log's state. Its engine is there already.
    GoOn {
        /// The database's id.
        cluster_id: [u8; 16],
        /// What its log came to.
        state: Box<State>,
    },
    /// One more process of the cluster that one of these addresses belongs to.
    Join(Vec<String>),
}

/// A process of a cluster. As an [`Endpoint`] it answers like the whole cluster.
///
/// Dropping it ends its tasks in the background; [`close`](Self::close) waits for them.
pub struct ClusterNode {
    life: Arc<Life>,
    supervisor: Mutex<Vec<Replied<()>>>,
    /// The last field, so that the lock goes after the roles.
    lock: Mutex<Option<SharedLock>>,
}

/// One life of a process after the other, in one directory: most have one.
struct Life {
    doors: Doors,
    jobs: JobRuntime,
    dir: PathBuf,
    options: ClusterOptions,
    here: Peer,
    now: RwLock<Arc<Shared>>,
    is_stopped: AtomicBool,
    stop: Latch,
    /// What somebody should know, and was not told yet.
    notices: Mutex<Vec<String>>,
}

/// What the tasks and answers of a process share.
struct Shared {
    jobs: JobRuntime,
    dir: PathBuf,
    identity: Identity,
    here: Peer,
    limits: Limits,
    options: ClusterOptions,
    log: ReplicatedLog,
    storage: StorageServer,
    /// The storage server has begun: it takes batches from the log.
    has_begun: AtomicBool,
    /// That it has told the log of something durable is written down: what it has will not be thrown away.
    is_lasting: AtomicBool,
    /// What there was below this version it has never seen.
    readable_from: AtomicU64,
    progress: Arc<Progress>,
    counters: Arc<Counters>,
    pace: Arc<Pace<Tag>>,
    /// Many timers of a short life: the transport's are cheaper than those of jobs.
    timers: Arc<dyn Runtime>,
    lines: Arc<Lines>,
    leading: Leading,
    route: Route,
    is_closed: AtomicBool,
    stop: Latch,
    tasks: Mutex<Vec<Replied<()>>>,
    /// A random number of this life, and what it found of the log when it began.
    life: u64,
    found: Position,
    recorder: Arc<Recorder>,
    /// What the leader sees, and when it was told.
    view: Mutex<Option<(Duration, String)>>,
    copied: Copied,
    /// How the process begins again after this life, if it does; then `ends` is set.
    again: Mutex<Option<Again>>,
    ends: Latch,
    /// Why storage ended, if it did.
    failure: Mutex<Option<Error>>,
    /// Somebody was told that files of storage are damaged.
    is_damage_told: AtomicBool,
    /// What the storage server holds, and what comes to it.
    keeper: Arc<Keeper>,
    /// How much of which keys it reads and writes.
    load: Arc<Load>,
    /// How many bytes a second it may fetch of what moves here: the controller's word, or what this process takes for its part until it has heard one.
    fetch_rate: AtomicU64,
    /// The metadata, as it was last read.
    layout: Mutex<Option<Layout>>,
    /// What went wrong with the last attempt to fetch something that moves here.
    moving: Mutex<Option<Error>>,
}

/// The metadata, read.
#[derive(Clone)]
struct Layout {
    metadata: Arc<BTreeMap<Bytes, Bytes>>,
    registry: Arc<Registry>,
    shards: Arc<ShardMap>,
}

impl ClusterNode {
    /// Opens the process in `dir`, which others reach at `here`. A new directory becomes what `beginning` says; an old one is what it is. Returns
    /// when the process runs; shards may have to come to it before it answers reads itself. To be awaited in a task of `doors.runtime`.
    ///
    /// # Errors
    /// What the disk says, naming the file; `file_not_writable` if another process has the directory open; what the cluster says to a process that wants to join,
    /// naming the addresses.
    pub async fn open(
        doors: Doors,
        dir: &Path,
        options: ClusterOptions,
        here: Peer,
        beginning: Beginning,
    ) -> Result<ClusterNode> {
        let lock: SharedLock = take_directory(doors.env.fs.as_ref(), dir)?;
        let jobs = JobRuntime::new(doors.env.clone());
        let notices = Mutex::default();
        let shared = Shared::open(&doors, &jobs, dir, &options, &here, beginning, &lock, &notices).await?;
        let life = Arc::new(Life {
            doors,
            jobs,
            dir: dir.to_path_buf(),
            options,
            here,
            now: RwLock::new(shared),
            is_stopped: AtomicBool::new(false),
            stop: Latch::default(),
            notices,
        });
        let supervising = Box::pin(rejoin::supervise(Arc::clone(&life), Arc::clone(&lock)));
        let supervisor = spawn(&life.jobs, "supervise", supervising, Arc::clone(&lock));
        Ok(ClusterNode { life, supervisor: Mutex::new(vec![supervisor]), lock: Mutex::new(Some(lock)) })
    }

    /// True if the directory belongs to a process of a cluster, or of one that is to join.
    ///
    /// # Errors
    /// What the disk says.
    pub fn is_in(fs: &dyn FileSystem, dir: &Path) -> Result<bool> {
        let path = dir.join(identity::FILE);
        let failed = |error| from_storage("cannot open the process", &StorageError::io("look for", &path, error));
        fs.exists(&path).map_err(failed)
    }

    /// Hands the lead over if it has it, refuses everything new, makes what storage has durable in tables, ends all tasks and gives the directory free.
    ///
    /// # Errors
    /// What the last flush said: nothing is lost, it comes again from the log. `operation_cancelled` if it was closed before.
    pub async fn close(&self) -> Result<()> {
        let life = &self.life;
        if life.is_stopped.swap(true, Ordering::SeqCst) {
            return Err(Error::with(Code::OperationCancelled, "the process was closed already"));
        }
        life.stop.set();
        let supervisor = std::mem::take(&mut *lock(&self.supervisor));
        ended(supervisor).await;
        let closed = life.shared().close().await;
        drop(lock(&self.lock).take());
        closed
    }

    /// As what clients see it.
    pub fn endpoint(&self) -> Arc<dyn Endpoint> {
        Arc::new(route::Cluster { life: Arc::clone(&self.life) })
    }

    /// The number of this process. It may have another one later, if it is forgotten and joins again.
    pub fn process(&self) -> ProcessId {
        self.life.shared().identity.process
    }

    /// The id of the cluster.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.life.shared().identity.cluster_id
    }

    /// How the log's group stands, as far as this process knows.
    pub fn group(&self) -> GroupView {
        self.life.shared().log.view()
    }

    /// True if its storage server has all shards that it is to have, and each shard has its replicas, as far as there are processes for them.
    pub fn is_complete(&self) -> bool {
        let shared = self.life.shared();
        shared.has_its_share(shared.identity.tag)
    }

    /// How many shards have come to it by moves since it was opened.
    pub fn shards_arrived(&self) -> u64 {
        self.life.shared().keeper.arrived()
    }

    /// The storage server.
    pub fn storage(&self) -> StorageServer {
        self.life.shared().storage.clone()
    }

    /// What happened to this process that whoever looks after it should know, since the last call: for its log.
    pub fn take_notices(&self) -> Vec<String> {
        let mut notices = std::mem::take(&mut *lock(&self.life.notices));
        let shared = self.life.shared();
        if let Some(damage) = shared.storage.damage()
            && !shared.is_damage_told.swap(true, Ordering::SeqCst)
        {
            notices.push(status::damaged(&shared, &damage));
        }
        notices
    }

    /// Why it does not work any more, if that is so.
    pub fn failure(&self) -> Option<Error> {
        self.life.shared().failure()
    }
}

impl Life {
    /// The present life.
    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins the next life, after the one before has ended.
    async fn begin(&self, beginning: Beginning, lock: &SharedLock) -> Result<()> {
        let Life { doors, jobs, dir, options, here, notices, .. } = self;
        let next = Shared::open(doors, jobs, dir, options, here, beginning, lock, notices).await?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    fn notice(&self, what: String) {
        lock(&self.notices).push(what);
    }
}

impl Drop for ClusterNode {
    fn drop(&mut self) {
        self.life.is_stopped.store(true, Ordering::SeqCst);
        self.life.stop.set();
        let shared = self.life.shared();
        shared.is_closed.store(true, Ordering::SeqCst);
        lead::give_up(&shared);
        shared.stop.set();
        shared.storage.end();
        let log = shared.log.clone();
        let closing = Box::pin(async move { log.close().await });
        shared.jobs.spawn("close", closing);
    }
}

impl fmt::Debug for ClusterNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterNode").field("process", &self.process()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Ends this life: hands the lead over, refuses everything new, and waits for all tasks.
    async fn close(self: &Arc<Shared>) -> Result<()> {
        let shared = self;
        if shared.is_closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        shared.hand_over().await;
        lead::step_down(shared).await;
        shared.stop.set();
        let closed = shared.storage.clone().close().await;
        shared.log.close().await;
        let tasks = std::mem::take(&mut *lock(&shared.tasks));
        ended(tasks).await;
        // If the task that leads was just about to begin an epoch.
        lead::step_down(shared).await;
        closed
    }

    fn registry(&self) -> Result<Arc<Registry>> {
        Ok(self.layout()?.registry)
    }

    fn failure(&self) -> Option<Error> {
        if lock(&self.again).is_some() {
            // It begins again: that what it was has ended is no failure.
            return None;
        }
        let ended = || lock(&self.failure).clone();
        let stopped = || {
            let failure = self.log.view().failure?;
            let is_closed = self.is_closed.load(Ordering::SeqCst);
            (!is_closed).then(|| Error::with(Code::IoError, format!("the replica of the log has stopped: {failure}")))
        };
        self.storage.failure().or_else(ended).or_else(stopped)
    }

    /// The metadata has a map of the shards; if not, an older FerrisDB has written it.
    fn has_map(&self) -> bool {
        let metadata = self.log.with_state(|state| Arc::clone(state.metadata()));
        metadata.range(Bytes::from_static(SHARD_PREFIX)..).next().is_some_and(|(key, _)| key.starts_with(SHARD_PREFIX))
    }

    /// A storage server has all that it is to have, as far as this process knows.
    fn has_its_share(&self, tag: Tag) -> bool {
        let (Ok(registry), Ok(map)) = (self.registry(), self.shards()) else { return false };
        let begun = registry
            .storage
            .values()
            .filter(|storage| storage.is_complete && !registry.excluded.contains(&storage.process))
            .count();
        let has_begun = registry.storage.get(&tag).is_some_and(|storage| storage.is_complete);
        has_begun && self.has_map() && map.has_its_share(tag, registry.replicas().min(begun))
    }

    fn closed(&self) -> Error {
        if lock(&self.again).is_some() {
            return Error::with(Code::ProcessBehind, "the process joins the cluster again");
        }
        // Nothing happened, and another process can say what this one does not any more: clients try again.
        Error::with(Code::ProcessBehind, "this process has closed; ask another one, or start it again")
    }

    /// What answers for this process alone.
    fn direct(self: &Arc<Shared>) -> Direct {
        Direct { shared: Arc::clone(self) }
    }

    /// A leader that goes asks another voter to lead, and waits a little for that.
    async fn hand_over(&self) {
        let until = self.jobs.now() + HAND_OVER;
        while self.log.is_leader() && self.jobs.now() < until {
            let view = self.log.view();
            let Some(&next) = view.voters.iter().find(|&&voter| voter != self.identity.process) else { return };
            reached(Rare::HandedOverByItself);
            if self.log.transfer_leader(next).await.is_err() {
                return;
            }
            self.jobs.sleep(10 * LOOK).await;
        }
    }
}
