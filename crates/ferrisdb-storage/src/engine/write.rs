//! Writing: from a batch to a visible, durable version.
//!
//! 1. The batch is validated and made canonical, without any lock.
//! 2. Under the writer lock: it takes its version, its room in the active memtable (or the memtable rotates), and is appended to the WAL.
//! 3. Without the lock, side by side with other writers: it is inserted into the memtable.
//! 4. It becomes visible once all before it are ([`Visibility`](super::visibility::Visibility)).
//! 5. With [`Durability::Sync`]: one of the waiting writers syncs the WAL for all that have been appended, while the next group appends.
//!
//! A batch is visible before it is durable; a reader that must not see what a crash could take back reads what it knows to be durable.
//!
//! # When something fails
//! Before and in step 2: nothing happened. A failed sync poisons the engine: whether the batches since the last sync survive is unknown, and no
//! write is accepted any more. A panic in step 3 poisons too: later batches would never become visible.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_core::Version;

use super::Core;
use super::events::Event;
use super::open::shared_prefix;
use super::view::{LiveMemtable, View};
use super::visibility;
use crate::batch::{BatchRecord, Operation, WriteBatch};
use crate::compaction::picker;
use crate::env::wait;
use crate::error::{Error, Result};
use crate::key::ValueKind;
use crate::memtable::{Inserter, Memtable, PointEntry, RUN_ENTRIES};
use crate::options::{Durability, WriteOptions};
use crate::wal::{Space, SyncTicket, Turn, Wal, WalPosition};

/// What the writer lock protects.
pub(super) struct WriteState {
    /// The newest version taken; at or above the visible one.
    pub(super) last_version: Version,
    /// The newest record in the WAL.
    pub(super) last_record: WalPosition,
    /// A buffer for record headers.
    header: Vec<u8>,
}

impl WriteState {
    pub(super) fn new(last_version: Version) -> WriteState {
        WriteState { last_version, last_record: WalPosition::ZERO, header: Vec::with_capacity(16) }
    }
}

thread_local! {
    /// Where this thread last inserted: sequential writes find their place at once. It forgets when the memtable is another one.
    static INSERTER: RefCell<Inserter> = const { RefCell::new(Inserter::new()) };
}

/// What became of a batch given to [`Engine::submit`](super::Engine::submit).
#[derive(Debug)]
pub enum Submitted {
    /// It was written; the ticket says when it is visible and durable.
    Written(Ticket),
    /// The engine is behind with flushes or compactions: the batch comes back unwritten.
    Stalled {
        /// The batch.
        batch: WriteBatch,
        /// When to try again: after this time (it is asked for once for each batch), or (`None`) once [`Engine::poll_writable`](super::Engine::poll_writable) says so.
        retry_after: Option<Duration>,
    },
}

/// A write under way. A future, ready once the write is visible and as durable as asked. Dropping it changes nothing about
/// the write.
#[must_use = "a write is durable only when its ticket says so"]
pub struct Ticket {
    core: Arc<Core>,
    version: Version,
    /// The wait for the sync, if one was asked for.
    sync: Option<SyncTicket>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Ticket {
    /// The batch's version.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl Future for Ticket {
    /// # Errors
    /// [`Error::Poisoned`]: whether the write survives is unknown until the engine is reopened.
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = &mut *self;
        if !ticket.core.visibility.poll_visible(ticket.version, context.waker()) {
            return match ticket.core.check_poison() {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            };
        }
        if let Some(sync) = &mut ticket.sync {
            match Pin::new(sync).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => {
                    result.inspect_err(|error| ticket.core.note_wal_error(error))?;
                    ticket.sync = None;
                }
            }
        }
        Poll::Ready(Ok(ticket.version))
    }
}

/// A batch that is in the WAL and in the memtable.
#[derive(Debug, Clone, Copy)]
struct Written {
    version: Version,
    /// The WAL position that must be synced before the write is as durable as asked.
    sync: Option<WalPosition>,
}

enum Attempt {
    Written(Written),
    Stalled,
}

impl Core {
    pub(super) fn write(&self, mut batch: WriteBatch, options: WriteOptions) -> Result<Version> {
        prepare(&mut batch)?;
        if let Some(delay) = self.stall.delay(batch.encoded_bytes(), || self.env.clock.now()) {
            self.counters.delayed(delay);
            self.env.spawner.sleep(delay);
        }
        let written = loop {
            match self.attempt(&batch, options)? {
                Attempt::Written(written) => break written,
                Attempt::Stalled => self.wait_for_room()?,
            }
        };
        self.finish_write(written)
    }

    pub(super) fn submit(core: &Arc<Core>, mut batch: WriteBatch, options: WriteOptions) -> Result<Submitted> {
        prepare(&mut batch)?;
        if !batch.is_delay_served
            && let Some(delay) = core.stall.delay(batch.encoded_bytes(), || core.env.clock.now())
        {
            batch.is_delay_served = true;
            core.counters.delayed(delay);
            return Ok(Submitted::Stalled { batch, retry_after: Some(delay) });
        }
        match core.attempt(&batch, options)? {
            Attempt::Stalled => Ok(Submitted::Stalled { batch, retry_after: None }),
            Attempt::Written(Written { version, sync }) => {
                let sync = sync.zip(core.wal.as_ref()).map(|(position, wal)| wal.sync_ticket(position));
                Ok(Submitted::Written(Ticket { core: Arc::clone(core), version, sync }))
            }
        }
    }

    /// True when a write would not be stalled for want of a memtable; otherwise the waker is woken when that may have changed.
    pub(super) fn poll_writable(&self, waker: &Waker) -> bool {
        self.progress.register(waker);
        self.poison.get().is_some() || self.closed.load(Ordering::Acquire) || self.has_room()
    }

    fn attempt(&self, batch: &WriteBatch, options: WriteOptions) -> Result<Attempt> {
        INSERTER.with_borrow_mut(|inserter| self.attempt_with(batch, options, inserter))
    }

    fn attempt_with(&self, batch: &WriteBatch, options: WriteOptions, inserter: &mut Inserter) -> Result<Attempt> {
        let needed = memtable_bytes(batch);
        let mut state = self.write_state();
        if self.read_only {
            return Err(Error::ReadOnly { directory: self.dir.clone() });
        }
        self.check_open()?;
        self.check_poison()?;
        let version = match options.version {
            Some(given) if given <= state.last_version => {
                return Err(Error::VersionNotIncreasing { given, last: state.last_version });
            }
            Some(given) => given,
            None if batch.is_empty() => {
                let sync =
                    self.wal.as_ref().map(|_| state.last_record).filter(|_| options.durability == Durability::Sync);
                return Ok(Attempt::Written(Written { version: state.last_version, sync }));
            }
            None if state.last_version == Version::MAX => {
                return Err(Error::VersionNotIncreasing { given: Version::MAX, last: Version::MAX });
            }
            None => state.last_version.next(),
        };
        if !self.visibility.has_room() || self.gate_closed.load(Ordering::Relaxed) {
            return Ok(Attempt::Stalled);
        }
        let mut view = self.view.read();
        if !view.active().entries.try_reserve(needed, inserter) {
            if !view.active().entries.is_empty() && self.is_full(&view) {
                return Ok(Attempt::Stalled);
            }
            drop(view);
            self.rotate(&mut state, needed);
            view = self.view.read();
            let reserved = view.active().entries.try_reserve(needed, inserter);
            assert!(reserved, "a fresh memtable has room for the batch that it was made for");
        }
        let memtable = view.active();
        let mut sync = None;
        if let Some(wal) = &self.wal {
            state.header.clear();
            BatchRecord::encode_header(version, &mut state.header);
            // Deletes make room: they may use the reserve of a full disk.
            let space = if batch.only_deletes() { Space::Reserve } else { Space::Ordinary };
            let position = wal.append_from(&[&state.header, batch.data()], space);
            let position = position.inspect_err(|error| self.note_wal_error(error))?;
            state.last_record = position;
            sync = Some(position).filter(|_| options.durability == Durability::Sync);
        }
        state.last_version = version;
        let turn = self.visibility.enter(version).expect("there was room a moment ago, under the same lock");
        drop(state);

        let unfinished = Unfinished { core: self, turn, done: false };
        insert(memtable, batch, version, inserter);
        unfinished.finish();
        self.counters.wrote(batch);
        Ok(Attempt::Written(Written { version, sync }))
    }

    /// True if a write would find its place: no ingestion is in the way, and a memtable may be added.
    fn has_room(&self) -> bool {
        !self.gate_closed.load(Ordering::Acquire) && !self.is_full(&self.view.read())
    }

    /// True if no memtable may be added.
    pub(super) fn is_full(&self, view: &View) -> bool {
        view.memtables.len() >= self.options.write_buffers_max
            || picker::l0_runs(&view.levels) >= self.options.l0_stop_tables as u64 && self.options.compaction_jobs > 0
    }

    /// Starts a new memtable with room for `needed` bytes. Under the writer lock, so between two versions.
    fn rotate(&self, state: &mut WriteState, needed: usize) {
        if self.view.read().active().is_idle() {
            // Nothing to flush: it is only too small for this batch.
            let fresh = self.fresh_memtable(needed);
            self.change_view(|view| {
                let mut memtables = view.memtables.clone();
                memtables[0] = fresh;
                View::new(memtables, view.levels.clone(), Arc::clone(&view.blobs))
            });
        } else {
            self.seal(state, needed);
        }
    }

    /// Makes the active memtable immutable, to be flushed, and starts a new one. Under the writer lock.
    pub(super) fn seal(&self, state: &mut WriteState, needed: usize) {
        let fresh = self.fresh_memtable(needed);
        let wal_end = self.wal.as_ref().map(Wal::last_position);
        self.change_view(|view| {
            let active = view.active();
            active.sealed_at.set(state.last_version).expect("a memtable is sealed once");
            active.wal_end.set(wal_end).expect("a memtable is sealed once");
            let memtables = std::iter::once(fresh).chain(view.memtables.iter().cloned()).collect();
            View::new(memtables, view.levels.clone(), Arc::clone(&view.blobs))
        });
        self.jobs.wake_flush();
    }

    pub(super) fn fresh_memtable(&self, needed: usize) -> Arc<LiveMemtable> {
        let view = self.view.read();
        // The newest memtable with enough entries to tell; a wrong guess costs time only.
        let known = view.memtables.iter().map(|memtable| memtable.entries.common_prefix()).find(|it| !it.is_empty());
        let prefix = known.map_or_else(|| shared_prefix(&view.levels), <[u8]>::to_vec);
        let capacity = self.options.write_buffer_bytes.max(Memtable::capacity_for(needed));
        Arc::new(LiveMemtable::new(Memtable::in_pool(capacity, &prefix, &self.memtable_memory)))
    }

    fn finish_write(&self, written: Written) -> Result<Version> {
        if self.visibility.visible() < written.version {
            self.wait_visible(written.version)?;
        }
        match (written.sync, &self.wal) {
            (Some(position), Some(wal)) => {
                self.sync_wal(wal, position).inspect_err(|error| self.note_wal_error(error)).map(|()| written.version)
            }
            _ => Ok(written.version),
        }
    }

    #[cold]
    pub(super) fn wait_visible(&self, version: Version) -> Result<()> {
        // A writer before us is inserting, which takes about a microsecond; longer only if its thread lost its core.
        for _ in 0..200 {
            std::hint::spin_loop();
            if self.visibility.visible() >= version {
                return Ok(());
            }
        }
        let mut result = Ok(());
        let waiting = std::future::poll_fn(|context| {
            if self.visibility.poll_visible(version, context.waker()) {
                return Poll::Ready(());
            }
            result = self.check_poison();
            if result.is_err() { Poll::Ready(()) } else { Poll::Pending }
        });
        self.env.spawner.block_on(pin!(waiting));
        result
    }

    /// Makes the WAL durable up to the record at `position`: this caller syncs, or waits for the one that does.
    pub(super) fn sync_wal(&self, wal: &Wal, position: WalPosition) -> Result<()> {
        while !wal.is_synced(position) {
            let turn = match wal.try_begin_sync()? {
                Some(claim) => Turn::Claimed(claim),
                None => wait(&*self.env.spawner, wal.sync_turn(position))?,
            };
            match turn {
                Turn::Synced => break,
                Turn::Claimed(claim) => claim.sync().map(|_| ()).inspect_err(|error| self.note_wal_error(error))?,
            }
        }
        Ok(())
    }

    /// Waits until a memtable may be added, or the engine stops.
    #[cold]
    fn wait_for_room(&self) -> Result<()> {
        let began = self.env.clock.now();
        self.tell(|| Event::StallBegun);
        self.progress.wait(&*self.env.spawner, || {
            let go = self.poison.get().is_some()
                || self.closed.load(Ordering::Acquire)
                || (self.visibility.has_room() && self.has_room());
            go.then_some(())
        });
        let took = self.env.clock.now().saturating_sub(began);
        self.counters.stalled(took);
        self.tell(|| Event::StallEnded { took });
        self.check_open()?;
        self.check_poison()
    }

    /// A WAL that refuses everything from now on takes the engine with it.
    pub(super) fn note_wal_error(&self, error: &Error) {
        if let Error::Poisoned { reason } = error {
            self.poison(reason);
        }
    }
}

/// Checks limits and makes the batch canonical.
fn prepare(batch: &mut WriteBatch) -> Result<()> {
    batch.validate()?;
    batch.canonicalize();
    Ok(())
}

/// The most that the batch can take of a memtable.
fn memtable_bytes(batch: &WriteBatch) -> usize {
    // What an entry needs beside its key and value does not depend on them, up to alignment.
    let each = Memtable::bytes_needed(0, 0) + 8;
    batch.point_count() * each + batch.point_bytes()
}

/// Inserts a batch for which room was reserved.
pub(super) fn insert(memtable: &LiveMemtable, batch: &WriteBatch, version: Version, inserter: &mut Inserter) {
    insert_operations(memtable, batch.operations(), version, inserter);
}

/// Inserts operations for which room was reserved.
pub(super) fn insert_operations<'a>(
    memtable: &LiveMemtable,
    operations: impl Iterator<Item = Operation<'a>>,
    version: Version,
    inserter: &mut Inserter,
) {
    let entries = &memtable.entries;
    let mut run = [PointEntry { key: &[], kind: ValueKind::Tombstone, value: &[] }; RUN_ENTRIES];
    let mut len = 0;
    let flush = |run: &[PointEntry<'_>], inserter: &mut Inserter| {
        let inserted = entries.insert_run(run, version, inserter);
        inserted.expect("room was reserved, and a canonical batch has each key once");
    };
    // Points wait for one another; what lies beside them need not: all of it is of one version, and visible at once.
    for operation in operations {
        run[len] = match operation {
            Operation::Put { key, value } => PointEntry { key, kind: ValueKind::Value, value },
            Operation::Delete { key } => PointEntry { key, kind: ValueKind::Tombstone, value: &[] },
            Operation::DeleteRange { start, end } => {
                entries.insert_range_tombstone(start, end, version);
                continue;
            }
            Operation::OwnerState { bytes } => {
                memtable.set_owner_state(version, bytes);
                continue;
            }
        };
        len += 1;
        if len == RUN_ENTRIES {
            flush(&run, inserter);
            len = 0;
        }
    }
    flush(&run[..len], inserter);
}

/// A writer between taking its version and having inserted it.
struct Unfinished<'a> {
    core: &'a Core,
    turn: visibility::Turn,
    done: bool,
}

impl Unfinished<'_> {
    fn finish(mut self) {
        self.core.visibility.finish(self.turn);
        self.done = true;
    }
}

impl Drop for Unfinished<'_> {
    /// Only when the insertion panicked. The version never becomes visible, and so no later one.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.core.poison(format_args!("a writer panicked while it inserted version {}", self.turn.version));
    }
}
