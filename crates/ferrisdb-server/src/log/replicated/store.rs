//! The consensus library's log, votes and snapshots, in a write-ahead log of ours: [`LogStore`].
//!
//! Everything that a voter must not forget is a record of one WAL, in the order in which it was said; so there are no two files that must move
//! together. A snapshot is a record too: it is small (the log's state, not the data), and has beside it whatever else the records before
//! it said, so that those can go.
//!
//! ```text
//! append ─▶ WAL ─▶ in memory, readable ─▶ pending ──(one sync for all before it)──▶ told the library, in order
//! ```
//!
//! `memory.rs` has the records and what they amount to, `library.rs` what the consensus library asks, `verify.rs` a look at a log that nobody has open.
//!
//! # Invariants
//! - The library is told of durable records in the order of their appending, and of none that is not durable.
//!
//! # Failures
//! A failed sync ends the store: it takes nothing more and says why, and the library stops with it. On a full disk an append waits for space, and the library waits
//! with it: it neither sends nor answers anything, so a leader with a full disk is replaced. Whoever asks [`LogStore::is_full`] knows that, and must not take what the
//! library said last for the present.
//!
//! # Concurrency
//! Callable from any thread. Locks: `writer` (held for one WAL append, so that memory has the WAL's order), then `memory` (held for no I/O).

mod library;
mod memory;
mod verify;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::codec::{Decoder, put_bytes};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Clock, Code, Error, Result, Runtime};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::wal::{ReadUpTo, Space, Wal, WalOptions, WalPosition};
use openraft::entry::RaftEntry;

use self::memory::{Done, KIND_ENTRY, KIND_SNAPSHOT, Memory, Pending, put_head, take_head};
use super::super::appending::{Maintained, maintain_until_closed};
use super::types::{
    LogId, Position, RaftLogEntry, Vote, place, put_log_id, put_members, put_option, put_vote, take_entry,
};
use crate::failure::{NotOpened, from_storage};
use crate::runtime::JobRuntime;
use crate::signal::{Bell, lock, reply};

pub(super) use self::memory::StoredSnapshot;
pub use self::verify::ReplicaReport;
pub(crate) use self::verify::verify;

/// How long a full disk is left alone before an append is tried again.
const SPACE_RETRY: Duration = Duration::from_millis(100);
/// A voter with space for fewer segments says that it is low. Until the leader knows that a second goes by, in which what comes must still fit; a disk that others fill in a moment still has the
/// rest of the current segment, and most times one that is ready.
const SEGMENTS_MIN: u64 = 2;
/// What is said of a log whose sync failed.
const NOT_DURABLE: &str = "the log of the cluster cannot be made durable any more";
/// A disk is full if so many attempts in a row found no space: a purge or a compaction that is under way gives some back sooner.
const FULL_AFTER: u32 = 3;

/// How a log store is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStoreOptions {
    /// Bytes of a WAL segment file, preallocated. Default: 16 MiB.
    pub segment_bytes: u32,
    /// Bytes of entries kept in memory for followers and for applying; older ones are read from the WAL. Default: 32 MiB.
    pub hot_bytes: u64,
}

impl Default for LogStoreOptions {
    fn default() -> LogStoreOptions {
        LogStoreOptions { segment_bytes: 16 << 20, hot_bytes: 32 << 20 }
    }
}

impl LogStoreOptions {
    /// So small that a test reaches every mechanism with a few kilobytes.
    pub fn tiny() -> LogStoreOptions {
        LogStoreOptions { segment_bytes: 4 << 10, hot_bytes: 1 << 10 }
    }
}

/// What a replica of the log takes of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogExtent {
    /// Bytes of records that are kept.
    pub bytes: u64,
    /// Bytes that there is space for yet.
    pub free_bytes: u64,
    /// Bytes that its disk has in all.
    pub disk_bytes: u64,
    /// There is space for less than `SEGMENTS_MIN` segments: what is on its way may take all of it.
    pub is_low: bool,
}

/// A handle to an open log store; clones share it. The tasks that drive it hold one too: they end with [`LogStore::close`].
#[derive(Clone)]
pub(super) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: JobRuntime,
    wal: Wal,
    dir: PathBuf,
    options: LogStoreOptions,
    /// Encodes and appends, one at a time. The buffer is kept so that appends do not allocate.
    writer: Mutex<Vec<u8>>,
    memory: Mutex<Memory>,
    is_closed: AtomicBool,
    /// How many records have waited for space for so long that the disk is full.
    without_space: AtomicUsize,
    /// Nobody is to wait for space any more.
    gives_up: AtomicBool,
    sync_bell: Bell,
    maintain_bell: Bell,
}

impl LogStore {
    /// Opens the store in `dir`, or founds it. `cluster_id` tells its files from those of another cluster. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says, and what of the log is damaged or missing.
    pub(super) fn open(
        runtime: JobRuntime,
        dir: &Path,
        options: LogStoreOptions,
        cluster_id: [u8; 16],
    ) -> std::result::Result<LogStore, NotOpened> {
        let wal_options = WalOptions {
            segment_bytes: options.segment_bytes,
            reserve_bytes: (options.segment_bytes / 8).min(1 << 20),
            identity: wal_identity(cluster_id),
            fill: true,
            ..WalOptions::default()
        };
        let fs = Arc::clone(&runtime.env().fs);
        let failed = |error: StorageError| match error.damage() {
            Some(damage) => NotOpened::Damaged(damage),
            None => NotOpened::Failed(from_storage("cannot open the log of the cluster", &error)),
        };
        let damaged =
            |position, what| NotOpened::Damaged(format!("corruption in {} at {position}: {what}", dir.display()));
        let (wal, recovery) = Wal::open(fs, dir, wal_options).map_err(failed)?;
        let mut memory = Memory::new();
        let mut reader = wal.subscribe(recovery.replay_from, ReadUpTo::Appended).map_err(failed)?;
        while let Some(record) = reader.next().map_err(failed)? {
            let payload = Bytes::copy_from_slice(record.payload);
            let position = record.position;
            // Its checksum holds: it is what was written, by a newer build perhaps.
            memory
                .replay(&payload, position, options.hot_bytes)
                .map_err(|error| unreadable(dir, position, error.what))?;
        }
        memory.begin(recovery.purged).map_err(|what| damaged(recovery.end, what))?;
        // What the WAL finds when it is opened it makes durable.
        memory.voted = memory.vote.map_or(0, |vote| vote.leader_id.term);
        let shared = Shared {
            runtime,
            wal,
            dir: dir.to_path_buf(),
            options,
            writer: Mutex::default(),
            memory: Mutex::new(memory),
            is_closed: AtomicBool::new(false),
            without_space: AtomicUsize::new(0),
            gives_up: AtomicBool::new(false),
            sync_bell: Bell::default(),
            maintain_bell: Bell::default(),
        };
        Ok(LogStore { shared: Arc::new(shared) })
    }

    /// The tasks that make records durable and look after the files. `spawn` is given a name and a future.
    pub(super) fn spawn(&self, mut spawn: impl FnMut(&str, BoxFuture<()>)) {
        let store = self.clone();
        spawn("raft-log", Box::pin(async move { store.sync_until_closed().await }));
        spawn("raft-files", Box::pin(maintain_until_closed(Arc::clone(&self.shared))));
    }

    /// Refuses everything from now on; the tasks make durable what was appended, and end.
    pub(super) fn close(&self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        self.shared.sync_bell.ring();
        self.shared.maintain_bell.ring();
    }

    /// What the machine's clock shows.
    pub(super) fn now(&self) -> Duration {
        self.shared.runtime.now()
    }

    /// Where the log lies.
    pub(super) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// True while the disk has no space for what the library has said, and the library waits for it.
    pub(super) fn is_full(&self) -> bool {
        self.shared.without_space.load(Ordering::SeqCst) > 0
    }

    /// What waits for space fails from now on, and ends the library with it: for whoever closes both.
    pub(super) fn give_up_waiting(&self) {
        self.shared.gives_up.store(true, Ordering::SeqCst);
    }

    /// How much of the log is here, and for how much more there is space.
    pub(super) fn extent(&self) -> LogExtent {
        let shared = &self.shared;
        let wal = shared.wal.state();
        // Segments that wait to be used, and what is left of the current one.
        let prepared = wal.disk_bytes.saturating_sub(wal.log_bytes);
        // A disk that does not say is not known to be full; some file systems say that they have nothing at all.
        let fs = &shared.runtime.env().fs;
        let disk_bytes = fs.total_space(&shared.dir).ok().filter(|&bytes| bytes > 0);
        let free = disk_bytes.and_then(|_| fs.available_space(&shared.dir).ok()).unwrap_or(u64::MAX);
        let disk_bytes = disk_bytes.unwrap_or(u64::MAX);
        let free_bytes = free.saturating_add(prepared);
        let is_low = free_bytes < SEGMENTS_MIN * u64::from(shared.options.segment_bytes);
        LogExtent { bytes: wal.log_bytes, free_bytes, disk_bytes, is_low }
    }

    /// The newest snapshot.
    pub(super) fn snapshot(&self) -> Option<Arc<StoredSnapshot>> {
        lock(&self.shared.memory).snapshot.clone()
    }

    /// Where the log is known to be committed.
    pub(super) fn committed(&self) -> Option<LogId> {
        lock(&self.shared.memory).committed
    }

    /// The vote that the library had saved last, durable or about to be.
    pub(super) fn vote(&self) -> Option<Vote> {
        lock(&self.shared.memory).vote
    }

    /// What of the log is here.
    pub(super) fn position(&self) -> Position {
        let memory = lock(&self.shared.memory);
        let below_log = if self.shared.wal.is_synced(memory.snapshot_at) { memory.purged } else { None };
        let held = memory.committed.and_then(|committed| {
            let slots = memory.log.iter().rev().filter(|slot| slot.id <= committed);
            slots.map(|slot| (slot.id, slot.position)).find(|&(_, position)| self.shared.wal.is_synced(position))
        });
        let held = held.map(|(id, _)| id).or(below_log);
        let to_place = |id: Option<LogId>| id.as_ref().map(place).unwrap_or_default();
        Position { voted: memory.voted, held: to_place(held), last: to_place(memory.last()) }
    }

    /// Keeps a snapshot in the place of the one before; durable when the future is ready.
    pub(super) async fn save_snapshot(&self, snapshot: StoredSnapshot) -> Result<()> {
        let saved = {
            let shared = &self.shared;
            let mut waiting = Waiting { store: self, tries: 0 };
            loop {
                let appended = {
                    let mut buffer = lock(&shared.writer);
                    buffer.clear();
                    {
                        let memory = lock(&shared.memory);
                        put_head(&mut buffer, KIND_SNAPSHOT);
                        put_option(&mut buffer, memory.vote.as_ref(), put_vote);
                        put_option(&mut buffer, memory.committed.as_ref(), put_log_id);
                    }
                    put_option(&mut buffer, snapshot.last.as_ref(), put_log_id);
                    put_members(&mut buffer, &snapshot.members);
                    put_bytes(&mut buffer, &snapshot.state);
                    self.append_record(&buffer, Space::Reserve).map(|position| {
                        let mut memory = lock(&shared.memory);
                        memory.snapshot = Some(Arc::new(snapshot.clone()));
                        memory.snapshot_at = position;
                        self.wait_for(&mut memory, position)
                    })
                };
                match appended {
                    Ok(saved) => break saved,
                    Err(error) => waiting.again(error).await?,
                }
            }
        };
        self.shared.sync_bell.ring();
        saved.await
    }

    fn check(&self) -> Result<()> {
        if let Some(failed) = &lock(&self.shared.memory).failed {
            return Err(failed.clone());
        }
        if self.shared.is_closed.load(Ordering::SeqCst) {
            return Err(Error::with(Code::OperationCancelled, "the log of the cluster was closed"));
        }
        Ok(())
    }

    /// One record. The caller holds `writer`.
    fn append_record(&self, payload: &[u8], space: Space) -> std::result::Result<WalPosition, StorageError> {
        self.shared.wal.append_from(&[payload], space)
    }

    /// What to wait for until the record at `position` is durable. Ring afterwards.
    fn wait_for(&self, memory: &mut Memory, position: WalPosition) -> impl Future<Output = Result<()>> + use<> {
        let (answer, answered) = reply(Code::OperationCancelled);
        memory.pending.push_back(Pending { position, done: Done::Caller(answer) });
        answered
    }

    /// Appends one record of `kind`, and has `applied` see memory and position before anybody else appends.
    async fn say<T>(
        &self,
        put: impl Fn(&mut Vec<u8>),
        mut applied: impl FnMut(&mut Memory, WalPosition) -> T,
    ) -> Result<T> {
        self.check()?;
        let mut waiting = Waiting { store: self, tries: 0 };
        loop {
            let appended = {
                let mut buffer = lock(&self.shared.writer);
                buffer.clear();
                put(&mut buffer);
                self.append_record(&buffer, Space::Reserve)
                    .map(|position| applied(&mut lock(&self.shared.memory), position))
            };
            match appended {
                Ok(value) => return Ok(value),
                Err(error) => waiting.again(error).await?,
            }
        }
    }

    /// Makes everything durable that is appended, and says so. False if there was nothing to do.
    fn sync_step(&self) -> bool {
        let shared = &self.shared;
        let Some(position) = lock(&shared.memory).pending.front().map(|pending| pending.position) else { return false };
        let is_durable = |position| shared.wal.is_synced(position) || planted(Bug::ReplicaSkipsSync);
        if !is_durable(position)
            && let Err(error) = shared.wal.sync()
        {
            shared.broken(&error);
            return true;
        }
        let done: Vec<Done> = {
            let mut memory = lock(&shared.memory);
            let durable = memory.pending.iter().take_while(|pending| is_durable(pending.position)).count();
            memory.pending.drain(..durable).map(|pending| pending.done).collect()
        };
        done.into_iter().for_each(|done| done.tell(Ok(())));
        true
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
        let marked = self.shared.wal.try_begin_sync().map(|claim| claim.map(|claim| claim.sync_and_mark()));
        drop(marked);
    }

    /// The entries of `[start, end)` that are there, as long as they are consecutive; of more than `bytes_max` bytes only the first ones.
    pub(super) fn read(&self, start: u64, end: u64, bytes_max: u64) -> Result<Vec<RaftLogEntry>> {
        enum Found {
            Hot(RaftLogEntry),
            Cold(LogId, WalPosition),
        }
        let found: Vec<Found> = {
            let memory = lock(&self.shared.memory);
            let (from, to) = (memory.slot_of(start), memory.slot_of(end));
            let mut bytes = 0;
            memory
                .log
                .range(from..to.max(from))
                .take_while(|slot| {
                    let is_within = bytes == 0 || bytes + slot.bytes <= bytes_max;
                    bytes += slot.bytes;
                    is_within
                })
                .map(|slot| match &slot.entry {
                    Some(entry) => Found::Hot(entry.clone()),
                    None => Found::Cold(slot.id, slot.position),
                })
                .collect()
        };
        let cannot = |error| from_storage("cannot read the log of the cluster", &error);
        let mut reader = None;
        let mut entries = Vec::with_capacity(found.len());
        for found in found {
            match found {
                Found::Hot(entry) => entries.push(entry),
                Found::Cold(id, position) => {
                    let reader = match &mut reader {
                        Some(reader) => reader,
                        none => none.insert(self.shared.wal.subscribe(position, ReadUpTo::Appended).map_err(cannot)?),
                    };
                    entries.push(self.read_cold(reader, id, position)?);
                }
            }
        }
        Ok(entries)
    }

    /// Steps `reader`, which is at or before it, to the record at `position`.
    fn read_cold(
        &self,
        reader: &mut ferrisdb_storage::wal::WalReader,
        id: LogId,
        position: WalPosition,
    ) -> Result<RaftLogEntry> {
        let cannot = |error| from_storage("cannot read the log of the cluster", &error);
        let broken = |what| unreadable(&self.shared.dir, position, what);
        while let Some(record) = reader.next().map_err(cannot)? {
            if record.position < position {
                continue;
            }
            let payload = Bytes::copy_from_slice(record.payload);
            let mut decoder = Decoder::new(&payload);
            let is_entry = take_head(&mut decoder).map_err(|error| broken(error.what))? == KIND_ENTRY;
            let entry = take_entry(&payload, &mut decoder).map_err(|error| broken(error.what))?;
            if !is_entry || record.position != position || entry.log_id() != id {
                return Err(broken("another record is where an entry was"));
            }
            return Ok(entry);
        }
        Err(broken("an entry is no longer there"))
    }
}

/// A record on its way to a disk that may be full.
struct Waiting<'a> {
    store: &'a LogStore,
    tries: u32,
}

impl Waiting<'_> {
    /// Waits a while before the next attempt, if it was only space that was missing.
    async fn again(&mut self, error: StorageError) -> Result<()> {
        let shared = &self.store.shared;
        self.store.check()?;
        if !error.is_no_space() {
            // A failed sync is seen by whoever appends next as soon as by the one that synced: both say the same of it.
            let is_broken = matches!(error, StorageError::Poisoned { .. });
            let failure =
                from_storage(if is_broken { NOT_DURABLE } else { "the log of the cluster takes no record" }, &error);
            shared.fail(&failure);
            return Err(failure);
        }
        if shared.gives_up.load(Ordering::SeqCst) {
            return Err(from_storage("the log of the cluster was closed while it waited for space", &error));
        }
        self.tries += 1;
        if self.tries == FULL_AFTER {
            shared.without_space.fetch_add(1, Ordering::SeqCst);
        }
        shared.runtime.sleep(SPACE_RETRY).await;
        self.store.check()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.tries >= FULL_AFTER {
            self.store.shared.without_space.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Ends the store when the task that makes it durable goes, whichever way.
struct FailOnDrop(LogStore);

impl Drop for FailOnDrop {
    fn drop(&mut self) {
        self.0.shared.fail(&Error::with(Code::OperationCancelled, "the log of the cluster was closed"));
    }
}

impl Shared {
    fn fail(&self, error: &Error) {
        let pending = {
            let mut memory = lock(&self.memory);
            memory.failed.get_or_insert_with(|| error.clone());
            std::mem::take(&mut memory.pending)
        };
        pending.into_iter().for_each(|pending| pending.done.tell(Err(error)));
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
        // What is purged is replaced by a snapshot that is durable.
        let memory = lock(&self.memory);
        if memory.snapshot.is_some() && self.wal.is_synced(memory.snapshot_at) {
            memory.needed_from()
        } else {
            WalPosition::ZERO
        }
    }

    fn broken(&self, error: &StorageError) {
        self.fail(&from_storage(NOT_DURABLE, error));
    }
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// The library takes errors of the operating system's kind.
fn to_io(error: &Error) -> io::Error {
    io::Error::other(error.to_string())
}

/// What tells the files of one cluster's logs from those of another one's.
fn wal_identity(cluster_id: [u8; 16]) -> u64 {
    u64::from_le_bytes(cluster_id[..8].try_into().expect("eight of sixteen bytes"))
}

fn unreadable(dir: &Path, position: WalPosition, what: &str) -> Error {
    let detail = format!(
        "the log of the cluster in {} cannot be read at {position}: {what}; start this process again, with the newest FerrisDB that has run there",
        dir.display()
    );
    Error::with(Code::IoError, detail)
}

#[cfg(test)]
mod tests;
