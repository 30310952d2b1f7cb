//! The log of a database in one process: [`LocalLog`], over the storage crate's write-ahead log.
//!
//! An entry is a WAL record. Appending writes; a task of its own syncs, one sync for all that was appended before it began, applies the
//! entries to the state machine, and answers. Meanwhile more is appended: the next group.
//!
//! ```text
//! append ─▶ WAL ─▶ pending ──(synced, in order)──▶ state machine ─▶ answered
//!                                                        └────────▶ hot batches ─▶ subscriber
//!                                    WAL (what the hot ones no longer have) ──────────┘
//! ```
//!
//! # What is kept where
//! Entries leave the WAL once the storage server has their mutations in tables. What they said beside (epoch, versions, leases, commit ids) is then
//! only in the state machine; so from time to time a batch is delivered with the state as of that batch, and the storage server makes it durable
//! in the same edit as the data (the **owner state**). At open the state comes from there, and the WAL is replayed from the place
//! that it names. The WAL is purged up to that place, and no further; and not before the storage server has said, by a pop, that the state is durable:
//! what was read at open may be in memory only.
//!
//! `owner_state.rs` has the bytes of that state, `subscription.rs` how batches get to the storage server.
//!
//! # Failures
//! A failed sync ends the log: what waits for it gets the error and does not know, and everything later is refused with the file and
//! the reason. A full disk refuses appends until there is space; small entries that free space or start an epoch use a reserve.
//!
//! # Concurrency
//! Callable from any thread. Locks: `writer` (held for one WAL append, so that `pending` has the WAL's order) or `syncing` (held
//! for one sync, so that answers come in order), then `core` (held for no I/O).

mod owner_state;
mod subscription;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Code, Error, Result, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{Afterwards, CommitId};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::wal::{ReadUpTo, Wal, WalOptions, WalPosition, WalState};

pub(super) use self::owner_state::OwnerState;
use self::subscription::{LocalSubscription, delivery};
use super::appending::{Maintained, append_records, maintain_until_closed, space_for};
use super::entry::{Entry, Pop, Tag};
use super::state::{Applied, Known, State};
use super::{Confirmed, Delivery, Log, Recovered, Subscription};
use crate::failure::from_storage;
use crate::runtime::JobRuntime;
use crate::signal::{Bell, Reply, lock, reply};

/// A place for a subscriber to begin reading is remembered about once in so many bytes of WAL.
const INDEX_BYTES: u64 = 64 << 10;
/// What is said of a log whose sync failed.
const NOT_DURABLE: &str = "the log cannot be made durable any more";

/// How a local log is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLogOptions {
    /// Bytes of a WAL segment file, preallocated. Default: 16 MiB.
    pub segment_bytes: u32,
    /// Bytes of batches kept in memory for the storage server; what does not fit is read from the WAL. Default: 32 MiB.
    pub hot_bytes: u64,
    /// The owner state is delivered about once in so many bytes of entries. Smaller: a shorter WAL, and more work. Default: 4 MiB.
    pub owner_state_every_bytes: u64,
    /// Write fresh segments once with zeros before they are used ([`WalOptions::fill`]): a sync then takes about half the time, until segments are
    /// used again. Default: yes; of no use where the disk is memory.
    pub fill: bool,
}

impl Default for LocalLogOptions {
    fn default() -> LocalLogOptions {
        LocalLogOptions { segment_bytes: 16 << 20, hot_bytes: 32 << 20, owner_state_every_bytes: 4 << 20, fill: true }
    }
}

impl LocalLogOptions {
    /// So small that a test reaches every mechanism with a few kilobytes.
    pub fn tiny() -> LocalLogOptions {
        LocalLogOptions { segment_bytes: 4 << 10, hot_bytes: 2 << 10, owner_state_every_bytes: 512, fill: true }
    }
}

/// A handle to an open local log; clones share it. The tasks that drive it hold one too: they end with [`LocalLog::close`].
#[derive(Clone)]
pub struct LocalLog {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: JobRuntime,
    wal: Wal,
    dir: PathBuf,
    cluster_id: [u8; 16],
    options: LocalLogOptions,
    /// Encodes and appends, one at a time. The buffer is kept so that appends do not allocate.
    writer: Mutex<Vec<u8>>,
    /// Held by whoever syncs, until it has answered: the log's task, or one that appended alone.
    syncing: Mutex<()>,
    core: Mutex<Core>,
    /// The state machine's last version, and when it got there: what `begin` reads.
    last: AtomicU64,
    last_at_nanos: AtomicU64,
    is_closed: AtomicBool,
    sync_bell: Bell,
    maintain_bell: Bell,
}

struct Core {
    state: State,
    /// Appended, in the order of the WAL, and not yet known to be durable.
    pending: VecDeque<Pending>,
    /// The newest batches, each following on the one before it, the last at the state machine's last version.
    hot: VecDeque<Delivery>,
    hot_bytes: u64,
    /// Places in the WAL, ascending: from there on all versions are above the one beside it.
    index: VecDeque<(Version, WalPosition)>,
    bytes_since_index: u64,
    /// Owner states that were delivered and are not known to be durable: their versions, and where they have the WAL replayed from.
    owner_states: VecDeque<(Version, WalPosition)>,
    bytes_since_owner_state: u64,
    /// All below may be purged.
    purge_to: WalPosition,
    /// Popped, but not yet in the log: to ride with the next entries.
    pops: BTreeMap<Tag, Version>,
    /// The subscription that is served; one begun later ends it.
    subscription: u64,
    subscriber: Option<Waker>,
    /// Nothing is accepted any more, because of this.
    failed: Option<Error>,
    counters: LogCounters,
}

/// Entries that were appended together.
struct Pending {
    entries: Vec<Entry>,
    /// The last one's.
    position: WalPosition,
    /// Just behind it.
    end: WalPosition,
    bytes: u64,
    reply: Reply<Applied>,
}

/// What a log has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogCounters {
    /// Groups of entries appended.
    pub appends: u64,
    /// Bytes of entries appended.
    pub append_bytes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Batches that the subscriber got from memory.
    pub hot_deliveries: u64,
    /// Batches that it got from the WAL.
    pub cold_deliveries: u64,
    /// Owner states delivered.
    pub owner_states: u64,
}

/// What a log looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStatistics {
    /// What it has done.
    pub counters: LogCounters,
    /// Groups that wait for a sync.
    pub pending: usize,
    /// Bytes of batches in memory.
    pub hot_bytes: u64,
    /// Clients in the table of commit ids, and outcomes.
    pub ids: (usize, usize),
    /// Leases.
    pub leases: usize,
    /// Its files.
    pub wal: WalState,
}

impl LocalLog {
    /// Opens the log in `dir`, or founds it. `owner_state` is what the storage server kept for the log, and `flushed` the version up to which it
    /// has everything; both are those of its last durable flush. Blocks on the disk.
    ///
    /// The log makes nothing durable until its tasks run, see [`spawn`](Self::spawn), or [`sync_step`](Self::sync_step) is called.
    ///
    /// # Errors
    /// What the disk says; and where log and storage do not belong together, which file or directory went back in time.
    pub fn open(
        runtime: JobRuntime,
        dir: &Path,
        options: LocalLogOptions,
        cluster_id: [u8; 16],
        owner_state: Option<&[u8]>,
        flushed: Version,
    ) -> Result<LocalLog> {
        let kept = owner_state.map(|bytes| OwnerState::decode(bytes, cluster_id)).transpose()?;
        let OwnerState { replay_from, state } = match kept {
            Some(kept) => kept,
            None => OwnerState { replay_from: WalPosition::ZERO, state: State::new(&[Tag::FIRST]) },
        };
        let identity = u64::from_le_bytes(cluster_id[..8].try_into().expect("eight of sixteen bytes"));
        let reserve_bytes = (options.segment_bytes / 8).min(1 << 20);
        let wal_options = WalOptions {
            segment_bytes: options.segment_bytes,
            reserve_bytes,
            identity,
            required_from: replay_from,
            fill: options.fill,
            ..WalOptions::default()
        };
        let fs = Arc::clone(&runtime.env().fs);
        let failed = |error| from_storage("cannot open the log", &error);
        if replay_from != WalPosition::ZERO {
            // Opening would found an empty log in the place of one that is gone: look first.
            let (_, found) = Wal::read_only(Arc::clone(&fs), dir, &wal_options).map_err(|error| match error {
                StorageError::MissingFile { file } => {
                    let detail = format!(
                        "{} is missing: either files of the log were lost, or the storage directory beside it is of an earlier \
                         time; put back what belongs together",
                        file.display()
                    );
                    Error::with(Code::IoError, detail)
                }
                error => failed(error),
            })?;
            if found.end < replay_from {
                return Err(lost(dir, "ends before what the storage engine has already stored"));
            }
        }
        let (wal, recovery) = Wal::open(fs, dir, wal_options).map_err(failed)?;
        if owner_state.is_none() && recovery.purged {
            let detail = format!(
                "the storage directory beside {} is empty or older than the log, which no longer has its beginning; \
                 put the storage directory back",
                dir.display()
            );
            return Err(Error::with(Code::IoError, detail));
        }
        let mut core = Core {
            state,
            pending: VecDeque::new(),
            hot: VecDeque::new(),
            hot_bytes: 0,
            index: VecDeque::new(),
            bytes_since_index: 0,
            owner_states: VecDeque::new(),
            bytes_since_owner_state: 0,
            // Nothing, though the owner state that was found needs nothing before its place: whether that state itself is durable the storage
            // server knows, which pops then. Until it does, a power cut may bring back an older state, with an older place.
            purge_to: WalPosition::ZERO,
            pops: BTreeMap::new(),
            subscription: 0,
            subscriber: None,
            failed: None,
            counters: LogCounters::default(),
        };
        if replay_from != WalPosition::ZERO {
            core.owner_states.push_back((core.state.last(), replay_from));
        }
        core.replay(&wal, dir, recovery.replay_from)?;
        let last = core.state.last();
        if flushed > last {
            return Err(lost(dir, "ends before what the storage engine has already stored"));
        }
        if core.state.popped(Tag::FIRST).is_some_and(|popped| popped > flushed) {
            let detail = format!(
                "the storage directory beside {} went back in time: the log no longer has what is missing there; \
                 put the storage directory back",
                dir.display()
            );
            return Err(Error::with(Code::IoError, detail));
        }
        let shared = Shared {
            wal,
            dir: dir.to_path_buf(),
            cluster_id,
            options,
            writer: Mutex::default(),
            syncing: Mutex::default(),
            last: AtomicU64::new(last.get()),
            last_at_nanos: AtomicU64::new(0),
            core: Mutex::new(core),
            is_closed: AtomicBool::new(false),
            sync_bell: Bell::default(),
            maintain_bell: Bell::default(),
            runtime,
        };
        Ok(LocalLog { shared: Arc::new(shared) })
    }

    /// The tasks that make appended entries durable and look after the files. `spawn` is given a name and a future.
    pub fn spawn(&self, mut spawn: impl FnMut(&str, BoxFuture<()>)) {
        let log = self.clone();
        spawn("log", Box::pin(async move { log.sync_until_closed().await }));
        spawn("log-files", Box::pin(maintain_until_closed(Arc::clone(&self.shared))));
    }

    /// The state machine's last version: everything up to it is durable.
    pub fn last(&self) -> Version {
        Version::from_u64(self.shared.last.load(Ordering::SeqCst))
    }

    /// The state that its entries have led to.
    pub(crate) fn state(&self) -> State {
        lock(&self.shared.core).state.clone()
    }

    /// When the last version became durable, by the runtime's clock.
    pub fn last_at(&self) -> Duration {
        Duration::from_nanos(self.shared.last_at_nanos.load(Ordering::SeqCst))
    }

    /// Why nothing is accepted any more, if that is so.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.shared.core).failed.clone()
    }

    /// What it looks like.
    pub fn statistics(&self) -> LogStatistics {
        let wal = self.shared.wal.state();
        let core = lock(&self.shared.core);
        LogStatistics {
            counters: core.counters,
            pending: core.pending.len(),
            hot_bytes: core.hot_bytes,
            ids: core.state.id_counts(),
            leases: core.state.leases().len(),
            wal,
        }
    }

    /// Refuses everything from now on; the tasks make durable what was appended, and end.
    pub fn close(&self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        self.shared.sync_bell.ring();
        self.shared.maintain_bell.ring();
        let subscriber = lock(&self.shared.core).subscriber.take();
        if let Some(subscriber) = subscriber {
            subscriber.wake();
        }
    }

    /// Makes everything durable that is appended, and answers for it. False if there was nothing to do.
    pub fn sync_step(&self) -> bool {
        let (has_worked, subscriber) = self.sync_pending();
        if let Some(subscriber) = subscriber {
            subscriber.wake();
        }
        has_worked
    }

    /// [`sync_step`](Self::sync_step), with the subscriber left to be woken.
    fn sync_pending(&self) -> (bool, Option<Waker>) {
        let shared = &self.shared;
        let _turn = lock(&shared.syncing);
        let Some(position) = lock(&shared.core).pending.front().map(|pending| pending.position) else {
            return (false, None);
        };
        let is_durable = |position| shared.wal.is_synced(position) || planted(Bug::LogSkipsSync);
        if !is_durable(position) {
            match shared.wal.sync() {
                Ok(_) => lock(&shared.core).counters.syncs += 1,
                Err(error) => {
                    shared.broken(&error);
                    return (true, None);
                }
            }
        }
        let (answers, subscriber) = {
            let mut core = lock(&shared.core);
            let mut answers = Vec::new();
            while core.pending.front().is_some_and(|pending| is_durable(pending.position)) {
                let pending = core.pending.pop_front().expect("there is a first one");
                answers.push(core.apply(pending, shared));
            }
            shared.last_at_nanos.store(nanos(shared.runtime.env().clock.now()), Ordering::SeqCst);
            shared.last.store(core.state.last().get(), Ordering::SeqCst);
            (answers, core.subscriber.take())
        };
        // Answered only now: whoever hears of its commit and asks for a read version gets one at or above it.
        for (reply, applied) in answers {
            reply.send(Ok(applied));
        }
        (true, subscriber)
    }

    async fn sync_until_closed(self) {
        // Whoever waits is told, also after a panic.
        let _told = FailOnDrop(self.clone());
        loop {
            while self.sync_step() {}
            if self.shared.is_closed.load(Ordering::SeqCst) {
                break;
            }
            self.shared.sync_bell.rung().await;
        }
        // Who appends holds the lock, and looks at `is_closed` under it: after this nobody comes any more.
        drop(lock(&self.shared.writer));
        while self.sync_step() {}
        // Damage that comes from here on is told from a torn tail.
        let marked = self.shared.wal.try_begin_sync().map(|claim| claim.map(|claim| claim.sync_and_mark()));
        drop(marked);
    }

    /// Appends to the WAL, and to what waits for the sync; nobody is told.
    fn append_entries(&self, mut entries: Vec<Entry>) -> Result<BoxFuture<Result<Applied>>> {
        let shared = &self.shared;
        let mut buffer = lock(&shared.writer);
        if shared.is_closed.load(Ordering::SeqCst) {
            return Err(Error::with(Code::OperationCancelled, "the database was closed; open it again"));
        }
        let pops = {
            let mut core = lock(&shared.core);
            if let Some(failed) = &core.failed {
                return Err(failed.clone());
            }
            std::mem::take(&mut core.pops)
        };
        let ridden = entries.len();
        entries.extend(pops.iter().map(|(&tag, &version)| Entry::Pop(Pop { tag, version })));
        buffer.clear();
        let mut ends = Vec::with_capacity(entries.len());
        for entry in &entries {
            entry.encode(&mut buffer);
            ends.push(buffer.len());
        }
        let space = space_for(entries.iter());
        let mut positions = Vec::with_capacity(entries.len());
        if let Err(error) = append_records(&shared.wal, &buffer, &ends, space, &mut positions) {
            // A failed sync is seen by whoever appends next as soon as by the one that synced: both say the same of it.
            let is_broken = matches!(error, StorageError::Poisoned { .. });
            let failure = from_storage(if is_broken { NOT_DURABLE } else { "the log takes no commit" }, &error);
            let mut core = lock(&shared.core);
            for (tag, version) in pops {
                let popped = core.pops.entry(tag).or_default();
                *popped = version.max(*popped);
            }
            drop(core);
            if is_broken {
                drop(buffer);
                shared.fail(failure.clone());
            }
            return Err(failure);
        }
        let bytes = buffer.len() as u64;
        let (answer, answered) = reply(Code::CommitUnknownResult);
        let position = *positions.last().expect("at least one entry was appended");
        let pending = Pending { entries, position, end: shared.wal.last_position(), bytes, reply: answer };
        {
            let mut core = lock(&shared.core);
            core.counters.appends += 1;
            core.counters.append_bytes += bytes;
            core.pending.push_back(pending);
        }
        if buffer.capacity() > 1 << 20 {
            *buffer = Vec::new();
        }
        drop(buffer);
        debug_assert!(ridden > 0, "an append has entries");
        Ok(Box::pin(answered))
    }
}

impl Core {
    /// Applies all entries of the WAL from `from` on.
    fn replay(&mut self, wal: &Wal, dir: &Path, from: WalPosition) -> Result<()> {
        let cannot = |error| from_storage("cannot replay the log", &error);
        let mut reader = wal.subscribe(from, ReadUpTo::Appended).map_err(cannot)?;
        self.index.push_back((self.state.last(), from));
        while let Some(record) = reader.next().map_err(cannot)? {
            let payload = Bytes::copy_from_slice(record.payload);
            let entry = Entry::decode(&payload).map_err(|error| unreadable(dir, record.position, error.what))?;
            self.note_place(payload.len() as u64, record.position);
            self.state.apply(&entry);
        }
        Ok(())
    }

    /// Remembers where to begin reading, about once in [`INDEX_BYTES`]. `at` is where the next entry to be applied lies.
    fn note_place(&mut self, bytes: u64, at: WalPosition) {
        self.bytes_since_index += bytes;
        if self.bytes_since_index >= INDEX_BYTES || self.index.is_empty() {
            self.bytes_since_index = 0;
            self.index.push_back((self.state.last(), at));
        }
    }

    /// All before `position` may be purged; from there on versions are above `version`.
    fn may_purge(&mut self, version: Version, position: WalPosition) {
        self.purge_to = position;
        while self.index.front().is_some_and(|&(_, other)| other <= position) {
            self.index.pop_front();
        }
        self.index.push_front((version, position));
    }

    /// Applies durable entries, and says what to answer.
    fn apply(&mut self, pending: Pending, shared: &Shared) -> (Reply<Applied>, Applied) {
        let Pending { entries, end, bytes, reply, .. } = pending;
        let mut all = Applied::Counted;
        self.bytes_since_owner_state += bytes;
        let before = self.hot.back().map(|delivery| delivery.version);
        for entry in entries {
            let previous = self.state.last();
            if self.state.apply(&entry) == Applied::Void {
                all = Applied::Void;
                continue;
            }
            if let Some(delivery) = delivery(entry, previous, &self.state, self.state.horizon(), Tag::FIRST) {
                self.hot_bytes += delivery.bytes();
                self.hot.push_back(delivery);
            }
        }
        self.bytes_since_index += bytes;
        if self.bytes_since_index >= INDEX_BYTES {
            self.bytes_since_index = 0;
            self.index.push_back((self.state.last(), end));
        }
        if self.bytes_since_owner_state >= shared.options.owner_state_every_bytes
            && let Some(delivery) = self.hot.back_mut()
            && Some(delivery.version) != before
        {
            self.bytes_since_owner_state = 0;
            self.counters.owner_states += 1;
            delivery.owner_state = Some(OwnerState::encode(shared.cluster_id, end, &self.state));
            self.owner_states.push_back((delivery.version, end));
        }
        while self.hot_bytes > shared.options.hot_bytes
            && self.hot.len() > 1
            && let Some(dropped) = self.hot.pop_front()
        {
            self.hot_bytes -= dropped.bytes();
            if dropped.owner_state.is_some() {
                // It will be delivered from the WAL, without its owner state.
                self.owner_states.retain(|&(version, _)| version != dropped.version);
            }
        }
        (reply, all)
    }
}

impl Log for LocalLog {
    fn append(&self, entries: Vec<Entry>) -> Result<BoxFuture<Result<Applied>>> {
        let appended = self.append_entries(entries)?;
        self.shared.sync_bell.ring();
        Ok(appended)
    }

    fn append_alone(
        &self,
        entries: Vec<Entry>,
        meanwhile: &mut Afterwards,
    ) -> Result<(BoxFuture<Result<Applied>>, Option<Waker>)> {
        let appended = self.append_entries(entries)?;
        meanwhile.wake();
        // One step is enough: the sync begins after the append.
        let (_, subscriber) = self.sync_pending();
        Ok((appended, subscriber))
    }

    fn subscribe(&self, tag: Tag, above: Version) -> Result<Box<dyn Subscription>> {
        let mut core = lock(&self.shared.core);
        let Some(popped) = core.state.popped(tag) else {
            return Err(Error::with(Code::ClientInvalidOperation, format!("the log has no tag {}", tag.0)));
        };
        if above < popped || above > core.state.last() {
            let last = core.state.last();
            let detail = format!("the log cannot deliver from version {above} on: it reaches from {popped} to {last}");
            return Err(Error::with(Code::ClientInvalidOperation, detail));
        }
        core.subscription += 1;
        let number = core.subscription;
        drop(core);
        Ok(Box::new(LocalSubscription::new(self.clone(), number, above)))
    }

    fn pop(&self, tag: Tag, version: Version) {
        let mut core = lock(&self.shared.core);
        let Some(popped) = core.state.popped(tag) else { return };
        if popped < version {
            core.pops.insert(tag, version);
        }
        let before = core.purge_to;
        while let Some(&(at, position)) = core.owner_states.front()
            && at <= version
        {
            core.owner_states.pop_front();
            core.may_purge(at, position);
        }
        let moved = before != core.purge_to;
        drop(core);
        if moved {
            self.shared.maintain_bell.ring();
        }
    }

    fn recover(&self) -> Recovered {
        let core = lock(&self.shared.core);
        let state = &core.state;
        let popped = [Tag::FIRST].into_iter().filter_map(|tag| Some((tag, state.popped(tag)?)));
        Recovered {
            epoch: state.epoch(),
            last: state.last(),
            horizon: state.horizon(),
            leases: state.leases().clone(),
            next_lease: state.next_lease(),
            popped: popped.collect(),
            lock: state.lock().cloned(),
            metadata: Arc::clone(state.metadata()),
        }
    }

    /// There is one process, and the directory's lock keeps others away: nothing to confirm.
    fn last_known(&self) -> Version {
        self.last()
    }

    fn read_index(&self) -> Answer<Confirmed> {
        Answer::now(Ok(lock(&self.shared.core).state.confirmed()))
    }

    fn known(&self, id: CommitId) -> (Known, Version) {
        let core = lock(&self.shared.core);
        (core.state.known(id), core.state.id_floor())
    }
}

/// Ends the log when the task that makes it durable goes, whichever way.
struct FailOnDrop(LocalLog);

impl Drop for FailOnDrop {
    fn drop(&mut self) {
        self.0.shared.fail(Error::with(Code::OperationCancelled, "the database was closed; open it again"));
    }
}

impl Shared {
    fn fail(&self, error: Error) {
        let (pending, subscriber) = {
            let mut core = lock(&self.core);
            core.failed.get_or_insert(error.clone());
            (std::mem::take(&mut core.pending), core.subscriber.take())
        };
        for pending in pending {
            pending.reply.send(Err(error.clone()));
        }
        if let Some(subscriber) = subscriber {
            subscriber.wake();
        }
    }
}

impl Maintained for Shared {
    fn wal(&self) -> &Wal {
        &self.wal
    }

    fn runtime(&self) -> &JobRuntime {
        &self.runtime
    }

    fn maintain_bell(&self) -> &Bell {
        &self.maintain_bell
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    fn purge_position(&self) -> WalPosition {
        lock(&self.core).purge_to
    }

    fn broken(&self, error: &StorageError) {
        self.fail(from_storage(NOT_DURABLE, error));
    }
}

impl fmt::Debug for LocalLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLog").field("dir", &self.shared.dir).field("last", &self.last()).finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lost(dir: &Path, what: &str) -> Error {
    let detail = format!("the log in {} {what}; put its files back, or restore a backup", dir.display());
    Error::with(Code::IoError, detail)
}

fn unreadable(dir: &Path, position: WalPosition, what: &str) -> Error {
    let detail = format!("the log in {} has an entry at {position} that cannot be read: {what}", dir.display());
    Error::with(Code::IoError, detail)
}

#[cfg(test)]
mod tests;
