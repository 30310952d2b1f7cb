//! A whole database in one process: [`Node`], all roles over one directory.
//!
//! ```text
//! DIR/LOCK       who has it open
//! DIR/cluster    the cluster id, minted once
//! DIR/log/       the log: WAL segments
//! DIR/storage/   the engine
//! ```
//!
//! # Recovery
//! The engine says up to which version it has everything, and keeps the log's state as of a version not far below. The log is replayed
//! from there: its entries bring the state up to date, and its batches above the engine's version are applied to the engine. Then an epoch begins
//! with an entry of its own, and only after that is anything answered.
//!
//! # Invariants
//! - Storage applies only what is durable in the log, in order.
//! - The log is purged only behind what the engine has flushed.
//! - A node that is closed or dropped ends its tasks: they hold the roles, not the node.
//!
//! # Format of the cluster file
//!   0  8    magic "FERRISD" and 0xDB
//!   8  u32  format version, 1
//!  12  16   cluster id
//!  28  u32  CRC-32C of bytes 0..28

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::codec::{Decoder, put_u32};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Limits, Result, Runtime, Version};
use ferrisdb_rpc::api::{
    Afterwards, BeginRequest, Begun, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest,
    Lease, LeaseRequest, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use ferrisdb_rpc::{Answer, Endpoint};
use ferrisdb_storage::env::Entropy;
use ferrisdb_storage::fs::{FileSystem, OpenMode, read_exact_at};
use ferrisdb_storage::{Env, Error as StorageError, Statistics};
use serde_json::json;

use crate::cluster::{Beginning, ClusterNode};
use crate::coordinator::rate::Lag;
use crate::coordinator::{Coordinator, CoordinatorOptions};
use crate::counters::Counters;
use crate::failure::from_storage;
use crate::feed::{Feed, Progress, pop_flushed};
use crate::lifetime::{SharedLock, block_on, ended, spawn, take_directory, write_file};
use crate::log::verify::Stored;
use crate::log::{Applied, LocalLog, LocalLogOptions, Log, LogReport, Tag};
use crate::notice::Notice;
use crate::runtime::JobRuntime;
use crate::signal::{Latch, Replied, lock};
use crate::storage::{StorageOptions, StorageServer};

const MAGIC: [u8; 8] = *b"FERRISD\xDB";
const FORMAT_VERSION: u32 = 1;
const CLUSTER_FILE_LEN: usize = 32;

/// What to do about a node that has a [`failure`](Node::failure). Also said by whoever serves it.
pub const BROKEN_REMEDY: &str = "The database commits nothing any more, and answers reads from what it has. Look at the disk and the system's log, mend the cause, \
     then restart the process: what was acknowledged is in the log, and a commit whose outcome was unknown is there or not.";

/// How a node is opened.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// The log.
    pub log: LocalLogOptions,
    /// The storage server. Its limit of values is set from the coordinator's limits.
    pub storage: StorageOptions,
    /// The coordinator, and the database's limits.
    pub coordinator: CoordinatorOptions,
}

impl NodeOptions {
    /// So small that a test reaches every mechanism with a few kilobytes of data.
    pub fn tiny() -> NodeOptions {
        let engine = ferrisdb_storage::Options::tiny();
        NodeOptions {
            log: LocalLogOptions::tiny(),
            storage: StorageOptions { engine, read_jobs: 2, ..StorageOptions::default() },
            coordinator: CoordinatorOptions::default(),
        }
    }
}

/// A database in this process. It answers as an [`Endpoint`] until it is closed or dropped.
///
/// Dropping it ends its tasks in the background: what was asked to commit may still commit, and the directory is in use until they have ended.
/// [`close`](Self::close) waits for all that: when it returns, the directory can be opened.
pub struct Node {
    runtime: JobRuntime,
    dir: PathBuf,
    cluster_id: [u8; 16],
    limits: Limits,
    storage: StorageServer,
    log: LocalLog,
    coordinator: Coordinator,
    counters: Arc<Counters>,
    tasks: Mutex<Tasks>,
    is_closed: AtomicBool,
    /// Ends the tasks that hold the storage server.
    stop: Arc<Latch>,
    /// The node's own share in the directory's lock. The last field, so that it goes after the roles.
    lock: Mutex<Option<SharedLock>>,
}

/// Futures that are ready when a task has ended.
#[derive(Default)]
struct Tasks {
    coordinator: Vec<Replied<()>>,
    log: Vec<Replied<()>>,
    storage: Vec<Replied<()>>,
}

impl Node {
    /// Opens the database in `dir`, founding it if there is none, and recovers what it must. Blocks on the disk; not to be called in a task.
    ///
    /// # Errors
    /// What the disk says, naming the file; where files do not belong together, which and what to do; `file_not_writable` if another process, or
    /// another node of this one, has the directory open.
    pub fn open(env: Env, dir: impl AsRef<Path>, options: NodeOptions) -> Result<Node> {
        let dir = dir.as_ref();
        let directory_lock: SharedLock = take_directory(env.fs.as_ref(), dir)?;
        if ClusterNode::is_in(env.fs.as_ref(), dir)? {
            let detail = format!(
                "{} belongs to a process of a cluster: serve it (`ferrisdb serve --data {0}`), and connect to that",
                dir.display()
            );
            return Err(Error::with(Code::ClientInvalidOperation, detail));
        }
        let cluster_id = found_or_read(env.fs.as_ref(), env.entropy.as_ref(), dir)?;
        let runtime = JobRuntime::new(env);
        let limits = options.coordinator.limits;
        let storage_options = StorageOptions { value_bytes: limits.value_bytes, ..options.storage };
        let (storage, found) = StorageServer::open(runtime.clone(), &dir.join("storage"), storage_options)?;
        let owner_state = found.owner_state.as_deref();
        let log_dir = dir.join("log");
        let log = LocalLog::open(runtime.clone(), &log_dir, options.log, cluster_id, owner_state, found.flushed)?;

        let counters = Arc::new(Counters::default());
        let applied = Arc::new(Progress::default());
        let low = options.coordinator.rate.backlog_low_bytes;
        let queues = {
            let (applied, storage) = (Arc::clone(&applied), storage.clone());
            Box::new(move |appended: u64| {
                let backlog_bytes = appended.saturating_sub(applied.bytes.load(Ordering::Relaxed));
                // The engine's statistics take locks: not on the way of every commit.
                // What the log keeps is that and what is in storage's memory, which is bounded.
                Lag { backlog_bytes, is_stalled: backlog_bytes > low && storage.lag().is_stalled, process: 0 }.into()
            })
        };
        let (coordinator, starting) = Coordinator::new(
            runtime.clone(),
            Arc::new(log.clone()),
            options.coordinator,
            Arc::clone(&counters),
            queues,
        );
        let started = coordinator.start(&starting)?;
        while log.sync_step() {}
        let mut feed = Feed {
            subscription: log.subscribe(Tag::FIRST, storage.applied_version())?,
            storage: storage.clone(),
            progress: applied,
            counted_from: log.last(),
            readable_from: Version::ZERO,
            load: None,
            keeper: None,
        };
        // Until storage has what the log had, reads would have to wait: rather wait here.
        let recovered = block_on(&runtime, async {
            match started.await? {
                Applied::Counted => feed.catch_up(log.last()).await,
                Applied::Void => Err(Error::with(Code::InternalError, "the log did not accept the start of an epoch")),
            }
        });
        recovered?;

        let mut tasks = Tasks::default();
        let spawn = |name: &str, task| spawn(&runtime, name, task, Arc::clone(&directory_lock));
        log.spawn(|name, task| tasks.log.push(spawn(name, task)));
        coordinator.spawn(starting, |name, task| tasks.coordinator.push(spawn(name, task)));
        let stop = Arc::new(Latch::default());
        let (stopping, failing) = (Arc::clone(&stop), coordinator.clone());
        let feeding = Box::pin(async move {
            if let Some(Err(error)) = stopping.unless_set(feed.run()).await {
                failing.fail(&error);
            }
        });
        tasks.storage.push(spawn("apply", feeding));
        let (stopping, popping) =
            (Arc::clone(&stop), pop_flushed(storage.clone(), Arc::new(log.clone()), Tag::FIRST, found.is_settled));
        let popping = Box::pin(async move { stopping.unless_set(popping).await.unwrap_or_default() });
        tasks.storage.push(spawn("pop", popping));
        Ok(Node {
            dir: dir.to_path_buf(),
            cluster_id,
            limits,
            storage,
            log,
            coordinator,
            counters,
            tasks: Mutex::new(tasks),
            is_closed: AtomicBool::new(false),
            stop,
            lock: Mutex::new(Some(directory_lock)),
            runtime,
        })
    }

    /// True if the directory holds a database of one process.
    ///
    /// # Errors
    /// What the disk says.
    pub fn is_in(fs: &dyn FileSystem, dir: &Path) -> Result<bool> {
        let path = dir.join("cluster");
        let failed = |error| from_storage("cannot open the database", &StorageError::io("look for", &path, error));
        fs.exists(&path).map_err(failed)
    }

    /// Ends the life of the database in `dir` as one process's, so that a cluster may go on with it: everything is made durable in tables. `None` if there is no
    /// database. Blocks. Nothing has changed if the cluster is not founded after all.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`close`](Self::close).
    pub fn for_a_cluster(env: Env, dir: impl AsRef<Path>, options: NodeOptions) -> Result<Option<Beginning>> {
        if !Node::is_in(env.fs.as_ref(), dir.as_ref())? {
            return Ok(None);
        }
        let node = Node::open(env, dir, options)?;
        block_on(&node.runtime, node.close_for_a_cluster()).map(Some)
    }

    /// The same for a database that is open: [`close`](Self::close), but what was committed is in tables, and the directory is free for
    /// [`ClusterNode::open`](crate::cluster::ClusterNode::open) with what this returns. What waits to begin hears `process_behind`: it is to be asked again.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub async fn close_for_a_cluster(&self) -> Result<Beginning> {
        self.begin_to_close()?;
        let Tasks { coordinator, log, storage } = std::mem::take(&mut *lock(&self.tasks));
        self.coordinator.close_saying(&Error::with(Code::ProcessBehind, "the database turns into a cluster"));
        ended(coordinator).await;
        let last = self.log.last();
        // Not the coordinator's failure: it has ended, and says so.
        let is_whole = || self.log.failure().is_none() && self.storage.failure().is_none();
        while self.storage.applied_version() < last && is_whole() && !planted(Bug::TurnBeforeApplied) {
            self.runtime.sleep(Duration::from_millis(1)).await;
        }
        self.end(log, storage).await?;
        let (state, flushed) = (self.log.state(), self.storage.flushed_version());
        if flushed < state.last() {
            let detail =
                format!("the tables have version {flushed} of {}; open and close the database once more", state.last());
            return Err(Error::with(Code::InternalError, detail));
        }
        Ok(Beginning::GoOn { cluster_id: self.cluster_id, state: Box::new(state) })
    }

    /// Checks the log of a database that nobody has open: every record, every entry, and its ends against what the storage engine has. Changes nothing. The tables
    /// are for [`ferrisdb_storage::inspect::verify`]; if they are damaged, only the log itself is looked at.
    ///
    /// # Errors
    /// What the disk says. Damage is no error but a problem in the report.
    pub fn verify_log(env: Env, dir: impl AsRef<Path>) -> Result<LogReport> {
        let (dir, fs) = (dir.as_ref(), Arc::clone(&env.fs));
        let cluster_id = match read_cluster_file(fs.as_ref(), &dir.join("cluster")) {
            Ok(Ok(cluster_id)) => cluster_id,
            Ok(Err(damage)) => return Ok(LogReport { problems: vec![damage.to_string()], ..LogReport::default() }),
            Err(error) => return Err(error),
        };
        let stored = StorageServer::look(env, &dir.join("storage"), &StorageOptions::default()).ok();
        let stored = stored.map(|found| Stored { owner_state: found.owner_state, flushed: found.flushed });
        crate::log::verify::verify(&fs, &dir.join("log"), cluster_id, stored.as_ref())
    }

    /// Refuses new commits, ends those under way, makes everything durable in tables, ends all tasks, and gives the directory free. What
    /// is asked afterwards, or still waits, gets an error.
    ///
    /// # Errors
    /// What the last flush said: nothing is lost, the next open takes it from the log. `operation_cancelled` if it was closed before.
    pub async fn close(&self) -> Result<()> {
        self.begin_to_close()?;
        let Tasks { coordinator, log, storage } = std::mem::take(&mut *lock(&self.tasks));
        self.coordinator.close();
        ended(coordinator).await;
        self.end(log, storage).await
    }

    fn begin_to_close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::SeqCst) {
            return Err(Error::with(Code::OperationCancelled, "the database was closed already"));
        }
        Ok(())
    }

    /// Ends log and storage, after the coordinator.
    async fn end(&self, log: Vec<Replied<()>>, storage: Vec<Replied<()>>) -> Result<()> {
        self.log.close();
        ended(log).await;
        let closed = self.storage.clone().close().await;
        self.stop.set();
        ended(storage).await;
        drop(lock(&self.lock).take());
        closed
    }

    /// [`close`](Self::close), waiting. Not to be called in a task.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub fn close_blocking(&self) -> Result<()> {
        block_on(&self.runtime, self.close())
    }

    /// What its roles run on.
    pub fn runtime(&self) -> &JobRuntime {
        &self.runtime
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The log, for statistics.
    pub fn log(&self) -> &LocalLog {
        &self.log
    }

    /// The storage server.
    pub fn storage(&self) -> &StorageServer {
        &self.storage
    }

    /// The coordinator.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// What it counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why it does not commit any more, if that is so.
    pub fn failure(&self) -> Option<Error> {
        self.log.failure().or_else(|| self.coordinator.failure()).or_else(|| self.storage.failure())
    }

    /// What it means that some of its files are not what was written, if somebody has met such a one.
    pub(crate) fn damaged(&self) -> Option<String> {
        self.storage.damage().map(|damage| {
            format!(
                "Files of the database are damaged: {}. Met {} time(s) so far. What is there cannot be read; everything else goes on. `ferrisdb verify`, while it is stopped, says what \
                 else is damaged. Export what can be read and restore the rest from a backup, on another disk",
                damage.first, damage.met
            )
        })
    }

    fn status_document(&self) -> String {
        let coordinator = self.coordinator.statistics();
        let log = self.log.statistics();
        let lag = self.storage.lag();
        let engine = self.storage.statistics();
        let failure = self.failure().map(|error| error.to_string());
        let is_closed = self.is_closed.load(Ordering::SeqCst);
        let available = failure.is_none() && !is_closed;
        let state = match (is_closed, &failure) {
            (true, _) => "closed",
            (false, Some(_)) => "broken",
            (false, None) => "available",
        };
        let mut messages: Vec<_> = failure
            .iter()
            .map(|failure| Notice::Broken.document(format!("{BROKEN_REMEDY} The reason: {failure}")))
            .collect();
        let damaged = self.damaged();
        messages.extend(damaged.map(|damaged| Notice::StorageDamaged.document(damaged)));
        let id: String = self.cluster_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let document = json!({
            "client": {
                "database_status": { "available": available, "healthy": available && messages.is_empty() },
            },
            "cluster": {
                "generation": self.coordinator.epoch(),
                "cluster_id": id,
                "state": state,
                "failure": failure,
                "messages": messages,
                "database_lock_state": self.log.state().lock_document(),
                "processes": { "0": {
                    "address": "",
                    "directory": self.dir.display().to_string(),
                    "roles": ["coordinator", "log", "storage"],
                } },
                "versions": {
                    "last": self.log.last().get(),
                    "applied": self.storage.applied_version().get(),
                    "flushed": self.storage.flushed_version().get(),
                },
                "workload": self.counters.document(),
                "qos": {
                    "performance_limited_by": {
                        "name": coordinator.reason.name(),
                        "description": coordinator.reason.message(),
                    },
                    "transactions_per_second_limit": coordinator.begins_per_second,
                    "begins_waiting": coordinator.begins_waiting,
                    "queue_requests": coordinator.queue_requests,
                    "queue_bytes": coordinator.queue_bytes,
                    "backlog_bytes": coordinator.lag.backlog_bytes,
                    "conflict_window_bytes": coordinator.window_bytes,
                    "leases": coordinator.leases,
                },
                "log": {
                    "appends": log.counters.appends,
                    "append_bytes": log.counters.append_bytes,
                    "syncs": log.counters.syncs,
                    "hot_deliveries": log.counters.hot_deliveries,
                    "cold_deliveries": log.counters.cold_deliveries,
                    "pending": log.pending,
                    "hot_bytes": log.hot_bytes,
                    "clients_with_ids": log.ids.0,
                    "outcomes": log.ids.1,
                    "wal_bytes": log.wal.log_bytes,
                    "disk_bytes": log.wal.disk_bytes,
                    "segments": log.wal.segments,
                },
                "storage": {
                    "unflushed_bytes": lag.unflushed_bytes,
                    "unflushed_bytes_max": lag.unflushed_bytes_max,
                    "is_stalled": lag.is_stalled,
                    "compaction_debt_bytes": lag.compaction_debt_bytes,
                    "waiting_reads": lag.waiting_reads,
                    "queued_reads": lag.queued_reads,
                    "engine": engine_document(&engine),
                },
            },
        });
        document.to_string()
    }

    fn refuse<T>(&self) -> Option<Answer<T>> {
        let closed = self.is_closed.load(Ordering::Relaxed);
        closed.then(|| Answer::from(Error::with(Code::OperationCancelled, "the database was closed; open it again")))
    }
}

impl Endpoint for Node {
    fn description(&self) -> Description {
        Description {
            cluster_id: self.cluster_id,
            limits: self.limits,
            connection_string: self.dir.display().to_string(),
        }
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.refuse().unwrap_or_else(|| self.coordinator.begin(request))
    }

    fn get_here(&self, key: &[u8], version: Version) -> Option<Option<Bytes>> {
        if self.is_closed.load(Ordering::Relaxed) {
            return None;
        }
        let value = self.storage.get_here(key, version)?;
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        Some(value)
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        self.refuse().unwrap_or_else(|| self.storage.get(request))
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.counters.get_keys.fetch_add(1, Ordering::Relaxed);
        self.refuse().unwrap_or_else(|| self.storage.get_key(request))
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.counters.get_ranges.fetch_add(1, Ordering::Relaxed);
        self.refuse().unwrap_or_else(|| self.storage.get_range(request))
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.coordinator.commit(request)
    }

    fn commit_alone(&self, request: CommitRequest, afterwards: &mut Afterwards) -> Answer<Committed> {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.coordinator.commit_alone(request, afterwards)
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.counters.resolves.fetch_add(1, Ordering::Relaxed);
        self.coordinator.resolve(request)
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.counters.watches.fetch_add(1, Ordering::Relaxed);
        self.refuse().unwrap_or_else(|| self.storage.watch(request))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.counters.leases.fetch_add(1, Ordering::Relaxed);
        self.coordinator.lease(request)
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.refuse().unwrap_or_else(|| self.storage.estimated_size(range))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.refuse().unwrap_or_else(|| self.storage.split_points(request))
    }

    fn addresses_for_key(&self, _key: Bytes) -> Answer<Vec<String>> {
        Answer::now(Ok(Vec::new()))
    }

    fn locations(&self, _request: LocationsRequest) -> Answer<Locations> {
        Answer::now(Ok(Locations::whole(Vec::new())))
    }

    fn status(&self) -> Answer<String> {
        Answer::now(Ok(self.status_document()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.coordinator.close();
        self.log.close();
        self.stop.set();
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The engine's part of the status document.
fn engine_document(engine: &Statistics) -> serde_json::Value {
    let levels: Vec<_> = engine
        .levels
        .iter()
        .map(|level| {
            json!({
                "tables": level.tables,
                "bytes": level.bytes,
                "entries": level.entries,
                "tombstones": level.tombstones,
            })
        })
        .collect();
    json!({
        "visible_version": engine.visible_version.get(),
        "flushed_version": engine.flushed_version.get(),
        "oldest_readable_version": engine.oldest_readable_version.get(),
        "pinned_versions": engine.pinned_versions,
        "batches": engine.batches,
        "operations": engine.operations,
        "batch_bytes": engine.batch_bytes,
        "memtables": engine.memtables,
        "memtable_bytes": engine.memtable_bytes,
        "flushes": engine.flushes,
        "flushed_bytes": engine.flushed_bytes,
        "compactions": engine.compactions,
        "compaction_read_bytes": engine.compaction_read_bytes,
        "compaction_written_bytes": engine.compaction_written_bytes,
        "pending_compaction_bytes": engine.pending_compaction_bytes,
        "trivial_moves": engine.trivial_moves,
        "tables_dropped": engine.tables_dropped,
        "blob_files": engine.blob_files,
        "blob_bytes": engine.blob_bytes,
        "blob_garbage_bytes": engine.blob_garbage_bytes,
        "blob_relocated_bytes": engine.blob_relocated_bytes,
        "ingestions": engine.ingestions,
        "ingested_bytes": engine.ingested_bytes,
        "delayed_writes": engine.delayed_writes,
        "delayed_seconds": engine.delayed.as_secs_f64(),
        "stalled_writes": engine.stalled_writes,
        "stalled_seconds": engine.stalled.as_secs_f64(),
        "longest_stall_seconds": engine.longest_stall.as_secs_f64(),
        "skipped_entries": engine.skipped_entries,
        "background_retries": engine.background_retries,
        "unremoved_files": engine.unremoved_files,
        "open_files": engine.open_files,
        "poisoned": engine.poisoned,
        "block_cache": {
            "hits": engine.cache.hits,
            "misses": engine.cache.misses,
            "cached_bytes": engine.cache.cached_bytes,
            "pinned_bytes": engine.cache.pinned_bytes,
            "capacity_bytes": engine.cache.capacity_bytes,
        },
        "levels": levels,
    })
}

/// The cluster id: the one in the file, or a new one if this directory was never a database.
fn found_or_read(fs: &dyn FileSystem, entropy: &dyn Entropy, dir: &Path) -> Result<[u8; 16]> {
    let failed = |op, path: &Path, error| from_storage("cannot open the database", &StorageError::io(op, path, error));
    let path = dir.join("cluster");
    if fs.exists(&path).map_err(|error| failed("look for", &path, error))? {
        let read = read_cluster_file(fs, &path)?;
        // An earlier process may have died before it synced the name.
        fs.sync_dir(dir).map_err(|error| failed("sync", dir, error))?;
        return read.map_err(|damage| from_storage("cannot open the database", &damage));
    }
    for part in ["log", "storage"] {
        let part = dir.join(part);
        if fs.exists(&part).map_err(|error| failed("look for", &part, error))? {
            let error = StorageError::MissingFile { file: path };
            let detail = format!("{} holds data without a cluster file: {error}", dir.display());
            return Err(Error::with(Code::IoError, detail));
        }
    }
    let cluster_id = entropy.unique_bytes();
    write_file(fs, dir, "cluster", &encode_cluster_file(cluster_id))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs.sync_dir(parent).map_err(|error| failed("sync", parent, error))?;
    }
    Ok(cluster_id)
}

/// The cluster id in the file; what is damaged is not an error of the disk.
fn read_cluster_file(fs: &dyn FileSystem, path: &Path) -> Result<std::result::Result<[u8; 16], StorageError>> {
    let failed = |op, error| from_storage("cannot open the database", &StorageError::io(op, path, error));
    let file = fs.open(path, OpenMode::Read).map_err(|error| failed("open", error))?;
    let mut bytes = [0; CLUSTER_FILE_LEN];
    read_exact_at(file.as_ref(), &mut bytes, 0).map_err(|error| failed("read", error))?;
    Ok(decode_cluster_file(&bytes).map_err(|what| StorageError::corruption(path, 0, what)))
}

fn encode_cluster_file(cluster_id: [u8; 16]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    put_u32(&mut bytes, FORMAT_VERSION);
    bytes.extend_from_slice(&cluster_id);
    let checksum = crc_fast::crc32_iscsi(&bytes);
    put_u32(&mut bytes, checksum);
    bytes
}

fn decode_cluster_file(bytes: &[u8; CLUSTER_FILE_LEN]) -> std::result::Result<[u8; 16], String> {
    let mut decoder = Decoder::new(bytes);
    let mut read = || {
        let magic = decoder.take(8, "magic")?;
        let version = decoder.u32("format version")?;
        let id: [u8; 16] = decoder.take(16, "cluster id")?.try_into().expect("sixteen bytes were taken");
        Ok::<_, ferrisdb_core::codec::DecodeError>((magic, version, id, decoder.u32("checksum")?))
    };
    let (magic, version, id, checksum) = read().map_err(|error| error.to_string())?;
    if magic != MAGIC {
        return Err("it is not a cluster file".to_owned());
    }
    if crc_fast::crc32_iscsi(&bytes[..28]) != checksum {
        return Err("cluster file checksum".to_owned());
    }
    if version != FORMAT_VERSION {
        return Err(format!("format version {version}, but this build reads {FORMAT_VERSION}; use a newer FerrisDB"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests;
