//! The storage server: applies the log's batches to an engine, in order, and answers reads at any version in the window.
//!
//! The engine has no WAL: the log is its WAL. What a flush has made durable ([`StorageServer::flushed_version`]) the log may forget; after a
//! crash the log is applied again from there. The engine flushes whole versions in order, and with each flush goes the owner's state as of
//! exactly that version.
//!
//! ```text
//! apply    folding a batch into writes of the engine; floor, leases    read     what a read does, in memory or on disk
//! wait     who waits for a version, and for a flush                    pool     the jobs that read from disk
//! watch    who waits for a key to change                               sample   the size of what is not flushed yet
//! failure  errors of the engine in the words of the contract           state    what is kept with a flush
//! ```
//!
//! # Invariants
//! - Batches are applied in the order of their versions, each completely or not at all: a reader at version v sees exactly the batches
//!   at or below v.
//! - The engine's floor is at or below the horizon of the last batch, so that every version from the horizon up is readable, and so is
//!   every leased one, also across a restart.
//! - Nobody waits for what will not come: closing, a failure of the engine and a bound of time end every wait.
//!
//! # Concurrency
//! One caller applies. Everything else may be called from any thread at once, does not block, and takes no lock where memory has the
//! answer. What must read from disk goes to a pool of jobs, over a bounded queue. Dropping an answer takes its question out of every queue.

mod apply;
mod failure;
mod pool;
mod read;
mod sample;
mod state;
mod wait;
mod watch;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeyValue, Limits, Mutation, Result, Runtime, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{GetKeyRequest, GetRangeRequest, GetRequest, Rows, SplitPointsRequest, WatchRequest};
use ferrisdb_storage::{Engine, Error as EngineError, Listener, Options, Retention};

use crate::JobRuntime;
use crate::failure::NotOpened;
use apply::ApplyState;
use failure::{engine_error, engine_error_at_open};
use pool::ReadPool;
use read::{EstimatedSize, Get, GetKey, GetRange, Query, SplitPoints};
use sample::Sample;
use state::KeptState;
use wait::{EngineNews, VersionWaiters};
use watch::Watches;

/// How a storage server is opened.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// The engine's. Its WAL, its retention and its pinned versions are set by the role, and its listener hears everything that the role hears.
    pub engine: Options,
    /// Bytes of the longest value that an appending atomic operation may make. Default: that of [`Limits`].
    pub value_bytes: usize,
    /// How long a read waits for its version to be applied before it gets `future_version`. Longer: a server that is behind is
    /// noticed later. Default: 1 s.
    pub version_wait: Duration,
    /// Reads that may wait for their versions at once; more get `process_behind`. Default: 100,000.
    pub version_waiters: usize,
    /// Watches that may be pending; more get `too_many_watches`. Default: 100,000.
    pub watches: usize,
    /// Jobs that read from disk. With real threads, each is one. Default: 8.
    pub read_jobs: usize,
    /// Reads that may wait for one of those jobs; more get `process_behind`. Default: 10,000.
    pub read_queue: usize,
    /// Bytes of rows (with 8 for each) in one answer at most, but for a first row that is larger. Default: 1 MB.
    pub range_bytes: usize,
}

impl Default for StorageOptions {
    fn default() -> StorageOptions {
        StorageOptions {
            engine: Options::default(),
            value_bytes: Limits::DEFAULT.value_bytes,
            version_wait: Duration::from_secs(1),
            version_waiters: 100_000,
            watches: 100_000,
            read_jobs: 8,
            read_queue: 10_000,
            range_bytes: 1_000_000,
        }
    }
}

/// What a storage server found when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageRecovery {
    /// Everything up to this version is there. The log goes on above it.
    pub flushed: Version,
    /// The owner's state as of `flushed`, if one was ever given.
    pub owner_state: Option<Vec<u8>>,
    /// There was nothing: it was created.
    pub is_new: bool,
    /// `flushed` and `owner_state` are durable beyond doubt. Otherwise, after an open on a full disk, a power cut may bring back those of an earlier
    /// flush: what that would need must stay until the next flush of this life.
    pub is_settled: bool,
}

/// One version of the log, ready to be applied.
#[derive(Debug, Clone, Default)]
pub struct ApplyBatch {
    /// Its version.
    pub version: Version,
    /// Versions from here up stay readable. At most `version`. It never goes back; a lower one changes nothing.
    pub horizon: Version,
    /// The versions below the horizon that stay readable too. All of them, each time: one that is missing is given up.
    pub leased: Arc<[Version]>,
    /// Its changes, in order, those of a transaction behind those of the ones before it. Versionstamps are filled in; atomic operations are
    /// as the clients sent them.
    pub mutations: Vec<Mutation>,
    /// What the owner wants to find again together with this version; `None` leaves what was given before. 4,000,000 bytes at most.
    pub owner_state: Option<Vec<u8>>,
}

/// How far a storage server is behind, for rate control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageLag {
    /// Bytes in memory that are not flushed yet.
    pub unflushed_bytes: u64,
    /// Bytes of memory that there are for that, about. At this much applying waits.
    pub unflushed_bytes_max: u64,
    /// Applying waits for the engine now.
    pub is_stalled: bool,
    /// Bytes that compactions have to move until every level has its size.
    pub compaction_debt_bytes: u64,
    /// Reads that wait for a version.
    pub waiting_reads: usize,
    /// Reads that wait for a job to read from disk.
    pub queued_reads: usize,
}

/// What of a storage server's files is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What was met first: the file, where in it, and what did not hold.
    pub first: String,
    /// How often reads and compactions have met damage.
    pub met: u64,
}

/// A storage server. Cheap to clone; all clones are the same one. When the last is dropped without a [`close`](StorageServer::close), the
/// engine ends without a last flush.
#[derive(Clone)]
pub struct StorageServer {
    shared: Arc<Shared>,
}

/// What all clones share. Jobs of the pool do not hold it, so that it goes when the last clone and the last answer under way do.
struct Shared {
    engine: Engine,
    runtime: JobRuntime,
    options: StorageOptions,
    /// The newest version whose waiters have been told. Invariant: at most the engine's visible version.
    applied: AtomicU64,
    is_closed: AtomicBool,
    is_stalled: AtomicBool,
    /// Taken by whoever applies, for as long as that takes.
    is_applying: AtomicBool,
    apply: Mutex<ApplyState>,
    waiters: Arc<VersionWaiters>,
    watches: Arc<Watches>,
    pool: Arc<ReadPool>,
    news: Arc<EngineNews>,
    sample: Mutex<Sample>,
}

impl StorageServer {
    /// Opens the storage server in `dir`, or creates it. Blocks for as long as the engine's manifest takes to read.
    ///
    /// # Errors
    /// Damage apart from the rest; `io_error` with what the engine said; `invalid_option_value` for an option of the engine that is out of range.
    pub fn open(
        runtime: JobRuntime,
        dir: &Path,
        options: StorageOptions,
    ) -> std::result::Result<(StorageServer, StorageRecovery), NotOpened> {
        let env = runtime.env().clone();
        let news = Arc::new(EngineNews::new(options.engine.event_listener.clone()));
        let mut engine_options = options.engine.clone();
        engine_options.wal = false;
        engine_options.retention = Retention::FromFloor;
        engine_options.event_listener = Some(Listener(Arc::<EngineNews>::clone(&news)));
        engine_options.pinned_versions = Vec::new();

        // The leases must be pinned before the first compaction could collect what they hold, and what they are is in the manifest.
        let (kept, is_new) = match Engine::open_read_only(env.clone(), dir, engine_options.clone()) {
            Ok(engine) => (KeptState::decode(engine.owner_state().as_deref(), dir)?, false),
            Err(EngineError::NotAnEngine { .. }) => (KeptState::default(), true),
            Err(error) => return Err(engine_error_at_open(&error)),
        };
        engine_options.pinned_versions.clone_from(&kept.leased);
        let engine = Engine::open_in(env, dir, engine_options).map_err(|error| engine_error_at_open(&error))?;
        let flushed = engine.flushed_version();
        news.begin(flushed);

        let is_settled = engine.is_settled();
        let recovery = StorageRecovery { flushed, owner_state: kept.owner.clone(), is_new, is_settled };
        let shared = Shared {
            pool: Arc::new(ReadPool::new(options.read_jobs, options.read_queue)),
            waiters: Arc::new(VersionWaiters::new(options.version_waiters)),
            watches: Arc::new(Watches::new(options.watches)),
            applied: AtomicU64::new(flushed.get()),
            is_closed: AtomicBool::new(false),
            is_stalled: AtomicBool::new(false),
            is_applying: AtomicBool::new(false),
            apply: Mutex::new(ApplyState::new(flushed, kept)),
            sample: Mutex::new(Sample::default()),
            engine,
            runtime,
            options,
            news,
        };
        let shared = Arc::new(shared);
        shared.news.on_failure({
            let (waiters, watches) = (Arc::clone(&shared.waiters), Arc::clone(&shared.watches));
            move |error| {
                waiters.end(error);
                watches.end(error);
            }
        });
        Ok((StorageServer { shared }, recovery))
    }

    /// What an engine that nobody has open keeps of the log, and the version up to which it has everything.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn look(env: ferrisdb_storage::Env, dir: &Path, options: &StorageOptions) -> Result<StorageRecovery> {
        let engine_options = Options { wal: false, retention: Retention::FromFloor, ..options.engine.clone() };
        let engine = Engine::open_read_only(env, dir, engine_options).map_err(|error| engine_error_at_open(&error))?;
        let owner_state = KeptState::decode(engine.owner_state().as_deref(), dir)?.owner;
        // Who only looks has made nothing durable.
        Ok(StorageRecovery { flushed: engine.flushed_version(), owner_state, is_new: false, is_settled: false })
    }

    /// Applies a batch: afterwards it is readable. During a stall of the engine (a full disk is one) it waits. May block for reads of the
    /// values that atomic operations need: call it from a job. A batch at or below the version that was recovered is passed over.
    /// Dropped before it is ready, or failed, it has applied nothing, and the same batch may be given again.
    ///
    /// # Errors
    /// `io_error`: the engine failed, see the detail; if it takes no more writes, so does the role. `internal_error`: the batch
    /// is not one, or versions do not increase. `connection_failed`: the server was closed.
    pub async fn apply(&self, batch: ApplyBatch) -> Result<()> {
        self.shared.apply(batch).await
    }

    /// The newest version that was applied.
    pub fn applied_version(&self) -> Version {
        self.shared.applied()
    }

    /// Everything up to this version is durable here: the log may forget it.
    pub fn flushed_version(&self) -> Version {
        self.shared.news.flushed()
    }

    /// Ready once the flushed version is above `after`.
    ///
    /// # Errors
    /// The engine has failed, or the server was closed.
    pub fn next_flush(&self, after: Version) -> impl Future<Output = Result<Version>> + Send + 'static + use<> {
        self.shared.news.next_flush(after)
    }

    /// Makes everything that was applied durable in tables, and returns the version up to which it is.
    ///
    /// # Errors
    /// `io_error`, and `connection_failed` if the server was closed.
    pub fn flush(&self) -> impl Future<Output = Result<Version>> + Send + 'static + use<> {
        let flushed = self.shared.engine.flush_later();
        async move { flushed.await.map_err(|error| engine_error(&error)) }
    }

    /// Why the role takes no more batches, if it does not.
    pub fn failure(&self) -> Option<Error> {
        self.shared.news.failure()
    }

    /// What of its files is damaged, as far as reads and compactions of this life have met it. What is not goes on to be answered.
    pub fn damage(&self) -> Option<Damage> {
        self.shared.news.damage()
    }

    /// How far it is behind. May wait for an fsync of the engine's manifest.
    pub fn lag(&self) -> StorageLag {
        let statistics = self.shared.engine.statistics();
        let options = &self.shared.options.engine;
        StorageLag {
            unflushed_bytes: statistics.memtable_bytes,
            unflushed_bytes_max: (options.write_buffers_max * options.write_buffer_bytes) as u64,
            is_stalled: self.shared.is_stalled.load(Ordering::Relaxed),
            compaction_debt_bytes: statistics.pending_compaction_bytes,
            waiting_reads: self.shared.waiters.len(),
            queued_reads: self.shared.pool.len(),
        }
    }

    /// True while it takes no writes because its flushes or compactions are behind.
    pub fn is_stalled(&self) -> bool {
        self.shared.is_stalled.load(Ordering::Relaxed)
    }

    /// True while its disk has no space for new tables. It tries again by itself, and takes writes for as long as there is memory for them: then it is
    /// [stalled](Self::is_stalled) too.
    pub fn is_full(&self) -> bool {
        self.shared.news.is_full()
    }

    /// The engine's numbers, for the status document. May wait for an fsync of the engine's manifest.
    pub fn statistics(&self) -> ferrisdb_storage::Statistics {
        self.shared.engine.statistics()
    }

    /// The value of a key, if memory has it and the version is there to be read.
    /// See [`Endpoint::get_here`](ferrisdb_rpc::Endpoint::get_here).
    #[inline]
    pub fn get_here(&self, key: &[u8], mut version: Version) -> Option<Option<Bytes>> {
        if planted(Bug::ReadAboveApplied) {
            version = version.min(self.shared.engine.visible_version());
        }
        let value = self.shared.engine.try_get(key, Some(version)).ok()?;
        Some(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The value of a key. See [`Endpoint::get`](ferrisdb_rpc::Endpoint::get).
    #[inline]
    pub fn get(&self, mut request: GetRequest) -> Answer<Option<Bytes>> {
        if planted(Bug::ReadAboveApplied) {
            request.version = request.version.min(self.shared.engine.visible_version());
        }
        // The fast path, without anything that the slow one needs.
        match self.shared.engine.try_get(&request.key, Some(request.version)) {
            Ok(value) => Answer::now(Ok(value.map(|value| Bytes::copy_from_slice(&value)))),
            Err(error) => Shared::ask_again(&self.shared, Get(request), &error),
        }
    }

    /// The key at a place. See [`Endpoint::get_key`](ferrisdb_rpc::Endpoint::get_key).
    pub fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        Shared::ask(&self.shared, GetKey::new(request))
    }

    /// Rows of a range. See [`Endpoint::get_range`](ferrisdb_rpc::Endpoint::get_range).
    pub fn get_range(&self, mut request: GetRangeRequest) -> Answer<Rows> {
        if planted(Bug::ReadAboveApplied) {
            request.version = request.version.min(self.shared.engine.visible_version());
        }
        if request.range.is_empty() {
            return Answer::now(Ok(Rows::default()));
        }
        Shared::ask(&self.shared, GetRange::new(request, self.shared.options.range_bytes))
    }

    /// Waits for a key to change. See [`Endpoint::watch`](ferrisdb_rpc::Endpoint::watch).
    pub fn watch(&self, request: WatchRequest) -> Answer<Version> {
        Shared::watch(&self.shared, request)
    }

    /// Has every watch of a key in this range fire, whatever the key's value: it is to be looked at elsewhere.
    pub fn fire_watches(&self, range: &KeyRange, version: Version) {
        self.shared.watches.fire(range, version);
    }

    /// About how many bytes a range takes: in tables as they lie on disk, old versions included, and in memory from a sample of what is not
    /// flushed. After a restart the sample is what the log applies again, which is the same.
    pub fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        Shared::ask_pool(&self.shared, EstimatedSize { range, shared: Arc::clone(&self.shared) })
    }

    /// Where to cut a range. See [`Endpoint::split_points`](ferrisdb_rpc::Endpoint::split_points).
    pub fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        Shared::ask_pool(&self.shared, SplitPoints(request))
    }

    /// Makes everything that was applied durable and ends the role: every wait, through every clone, ends with `connection_failed`.
    ///
    /// # Errors
    /// What the last flush said; the role has ended all the same. `connection_failed` if it was closed before.
    pub async fn close(self) -> Result<()> {
        if self.shared.is_closed.swap(true, Ordering::AcqRel) {
            return Err(failure::closed());
        }
        self.shared.end_waits();
        self.shared.engine.clone().close_later().await.map_err(|error| engine_error(&error))
    }

    /// Ends the role without a last flush, as a drop of the last clone does, but at once and for all clones: every wait ends with
    /// `connection_failed`. What is not flushed is in the log.
    pub fn end(&self) {
        if !self.shared.is_closed.swap(true, Ordering::AcqRel) {
            self.shared.end_waits();
        }
    }
}

impl fmt::Debug for StorageServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageServer")
            .field("applied", &self.applied_version())
            .field("flushed", &self.flushed_version())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn applied(&self) -> Version {
        Version::from_u64(self.applied.load(Ordering::Acquire))
    }

    /// Why nothing more is applied, if that is so.
    fn check(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(failure::closed());
        }
        self.news.failure().map_or(Ok(()), Err)
    }

    fn end_waits(&self) {
        let closed = failure::closed();
        self.news.close(&closed);
        self.waiters.end(&closed);
        self.watches.end(&closed);
        self.pool.close();
    }

    /// Answers from memory, or as soon as the version is there and a job has read from disk.
    fn ask<Q: Query>(shared: &Arc<Shared>, mut query: Q) -> Answer<Q::Output> {
        match query.run(&shared.engine, read::Mode::Memory) {
            Ok(output) => Answer::now(Ok(output)),
            Err(error) => Shared::ask_again(shared, query, &error),
        }
    }

    /// What becomes of a query that memory could not answer.
    #[cold]
    fn ask_again<Q: Query>(shared: &Arc<Shared>, query: Q, error: &EngineError) -> Answer<Q::Output> {
        match error {
            EngineError::WouldRead => Shared::ask_pool(shared, query),
            EngineError::VersionNotReadable { version, newest, .. } if version > newest => {
                let version = *version;
                let waiting = Shared::wait_applied(shared, version);
                let shared = Arc::clone(shared);
                Answer::later(async move {
                    waiting?.await?;
                    Shared::ask(&shared, query).await
                })
            }
            error => {
                shared.news.note(error);
                Answer::now(Err(engine_error(error)))
            }
        }
    }

    /// Lets a job of the pool answer.
    fn ask_pool<Q: Query>(shared: &Arc<Shared>, mut query: Q) -> Answer<Q::Output> {
        let (engine, news) = (shared.engine.clone(), Arc::clone(&shared.news));
        let read = move || {
            query.run(&engine, read::Mode::Disk).map_err(|error| {
                news.note(&error);
                engine_error(&error)
            })
        };
        match ReadPool::ask(&shared.pool, &shared.runtime, read) {
            Ok(answer) => Answer::later(answer),
            Err(error) => Answer::now(Err(error)),
        }
    }

    /// A future that is ready once `version` is applied, or the bound for that is over.
    fn wait_applied(
        shared: &Arc<Shared>,
        version: Version,
    ) -> Result<impl Future<Output = Result<()>> + Send + 'static + use<>> {
        shared.check()?;
        let timeout = shared.runtime.sleep(shared.options.version_wait);
        let applied = {
            let shared = Arc::downgrade(shared);
            move || shared.upgrade().map_or(Version::ZERO, |shared| shared.applied())
        };
        let waiting = VersionWaiters::wait(&shared.waiters, version)?;
        Ok(async move {
            match wait::first(waiting, timeout).await {
                Some(result) => result,
                None => Err(Error::with(
                    Code::FutureVersion,
                    format!("version {version} is not here yet: the storage server has applied up to {}", applied()),
                )),
            }
        })
    }

    fn watch(shared: &Arc<Shared>, request: WatchRequest) -> Answer<Version> {
        if let Err(error) = shared.check() {
            return Answer::now(Err(error));
        }
        // The place is taken now, so that a watch that is refused is refused at once.
        let place = match Watches::enter(&shared.watches, &request.key, request.value.clone()) {
            Ok(place) => place,
            Err(error) => return Answer::now(Err(error)),
        };
        let shared = Arc::clone(shared);
        Answer::later(async move {
            if shared.applied() < request.version {
                let waiting = Shared::wait_applied(&shared, request.version);
                waiting?.await?;
            }
            // From here on batches look at it. What came before them is seen by the read, at a version at or above the request's.
            place.arm();
            loop {
                let version = shared.engine.visible_version();
                let read = Shared::ask(&shared, Get(GetRequest { key: request.key.clone(), version })).await;
                match read {
                    Ok(value) if value == request.value => break,
                    Ok(_) => return Ok(version),
                    // The read waited for the disk for so long that the window has passed it: look at a newer version.
                    Err(error) if error.code() == Code::TransactionTooOld => {}
                    Err(error) => return Err(error),
                }
            }
            drop(shared);
            place.await
        })
    }

    fn sample(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end_waits();
    }
}

/// Bytes that a row counts for in an answer.
fn row_bytes(key: &[u8], value: &[u8]) -> usize {
    8 + key.len() + value.len()
}

/// Rows out of one buffer: for each the lengths of its key and value.
fn rows_of(buffer: Vec<u8>, lengths: &[(usize, usize)]) -> Vec<KeyValue> {
    let mut rest = Bytes::from(buffer);
    lengths.iter().map(|&(key, value)| KeyValue { key: rest.split_to(key), value: rest.split_to(value) }).collect()
}
