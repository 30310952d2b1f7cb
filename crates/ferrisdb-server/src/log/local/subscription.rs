//! What the storage server gets of the log: the batches, complete and in order, from memory or from the WAL.
//!
//! The newest batches are kept in memory (*hot*): a subscriber that keeps up never reads the disk. One that has fallen behind what memory holds reads the WAL
//! (*cold*) from the nearest place below its version that the log remembers, until it has caught up. Both give the same batches; only an owner state
//! comes from memory alone.
//!
//! # Invariants
//! - Each delivery follows on the one before: its `previous` is the version that the subscriber has.
//! - What is read from the WAL was synced: nobody sees what a crash could take back.
//!
//! # Concurrency
//! One subscription is served at a time; one begun later ends it. The place where a reader stands may be purged meanwhile: it then looks for its place again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use ferrisdb_core::{Bytes, Code, Error, Result, Version};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::wal::{ReadUpTo, WalReader};

use super::{Core, LocalLog, lost, unreadable};
use crate::failure::from_storage;
use crate::log::{Delivery, Entry, State, Subscription, Tag};
use crate::signal::lock;

/// The batches above `cursor`.
pub(super) struct LocalSubscription {
    log: LocalLog,
    number: u64,
    cursor: Version,
    /// Of what was read from the WAL.
    horizon: Version,
    /// Reads what memory no longer has.
    cold: Option<WalReader>,
}

impl LocalSubscription {
    pub(super) fn new(log: LocalLog, number: u64, above: Version) -> LocalSubscription {
        LocalSubscription { log, number, cursor: above, horizon: Version::ZERO, cold: None }
    }

    /// The next batch from the WAL, where it certainly is. `None`: try again, from another place.
    fn read_cold(&mut self) -> Result<Option<Delivery>> {
        let shared = &self.log.shared;
        let cannot = |error| from_storage("cannot read the log", &error);
        let (mut reader, is_kept) = match self.cold.take() {
            Some(reader) => (reader, true),
            None => {
                let from = {
                    let core = lock(&shared.core);
                    let at = core.index.partition_point(|&(version, _)| version <= self.cursor);
                    let Some(&(_, position)) = at.checked_sub(1).and_then(|at| core.index.get(at)) else {
                        return Err(lost(&shared.dir, "no longer has what the storage server needs next"));
                    };
                    position
                };
                // The place may be the end of a segment that was purged: what follows is then the first that is kept.
                let from = from.max(shared.wal.first_position());
                match shared.wal.subscribe(from, ReadUpTo::Synced) {
                    Ok(reader) => (reader, false),
                    // Purged between the two.
                    Err(StorageError::PositionNotInWal { .. }) if shared.wal.first_position() > from => {
                        return Ok(None);
                    }
                    Err(error) => return Err(cannot(error)),
                }
            }
        };
        loop {
            match reader.advance() {
                Ok(true) => {}
                Ok(false) => break,
                // It stood at the end of a segment whose batches were flushed and purged meanwhile.
                Err(StorageError::PositionNotInWal { .. }) if is_kept => return Ok(None),
                Err(error) => return Err(cannot(error)),
            }
            let record = reader.record();
            let payload = Bytes::copy_from_slice(record.payload);
            let position = record.position;
            let entry = Entry::decode(&payload).map_err(|error| unreadable(&shared.dir, position, error.what))?;
            let follows = match &entry {
                Entry::EpochStart(start) => start.first_version > self.cursor,
                Entry::Batch(batch) if batch.version <= self.cursor => false,
                Entry::Batch(batch) if batch.previous == self.cursor => {
                    self.horizon = self.horizon.max(batch.horizon);
                    true
                }
                // One process has one coordinator at a time: nothing in its log is void, so something is missing here.
                Entry::Batch(_) => break,
                Entry::Pop(_) | Entry::Lease(_) | Entry::Foundation(_) => false,
            };
            let state = &lock(&shared.core).state;
            if follows && let Some(delivery) = delivery(entry, self.cursor, state, self.horizon, Tag::FIRST) {
                self.cold = Some(reader);
                return Ok(Some(delivery));
            }
        }
        Err(lost(&shared.dir, "no longer has what the storage server needs next"))
    }
}

impl Subscription for LocalSubscription {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery>> {
        let shared = Arc::clone(&self.log.shared);
        {
            let mut core = lock(&shared.core);
            if shared.is_closed.load(Ordering::SeqCst) || core.subscription != self.number {
                return Poll::Ready(Err(Error::with(Code::OperationCancelled, "the subscription has ended")));
            }
            if let Some(delivery) = core.take_hot(self.cursor) {
                core.counters.hot_deliveries += 1;
                self.cursor = delivery.version;
                self.cold = None;
                return Poll::Ready(Ok(delivery));
            }
            if self.cursor >= core.state.last() {
                if let Some(failed) = &core.failed {
                    return Poll::Ready(Err(failed.clone()));
                }
                core.subscriber = Some(context.waker().clone());
                // `close` sets its flag and then takes the waker, under this lock.
                return Poll::Pending;
            }
        }
        let delivery = loop {
            if let Some(delivery) = self.read_cold().transpose() {
                break delivery;
            }
        };
        if let Ok(delivery) = &delivery {
            self.cursor = delivery.version;
            lock(&shared.core).counters.cold_deliveries += 1;
        }
        Poll::Ready(delivery)
    }
}

impl Core {
    /// The next hot batch above `cursor`, if it follows on.
    fn take_hot(&mut self, cursor: Version) -> Option<Delivery> {
        while let Some(front) = self.hot.front()
            && front.version <= cursor
        {
            self.hot_bytes -= front.bytes();
            self.hot.pop_front();
        }
        let delivery = self.hot.pop_front_if(|front| front.previous == cursor)?;
        self.hot_bytes -= delivery.bytes();
        Some(delivery)
    }
}

/// What a subscriber of `tag` gets of an entry that counted; `None` if it is no batch. `state` is the one after the entry, or a later one.
pub(super) fn delivery(entry: Entry, previous: Version, state: &State, horizon: Version, tag: Tag) -> Option<Delivery> {
    match entry {
        Entry::EpochStart(start) => Some(Delivery {
            previous,
            version: start.first_version,
            horizon,
            // An epoch ends no lease. Of a later state: what has ended since need not be kept, and what began since does no harm.
            leased: state.leased_versions(),
            mutations: Vec::new(),
            batch_bytes: 0,
            owner_state: None,
        }),
        Entry::Batch(batch) => {
            let batch_bytes = batch.mutation_bytes() as u64;
            let mut sections = batch.sections.into_iter().filter(|section| section.tags.contains(&tag));
            let mut mutations = sections.next().map(|section| section.mutations).unwrap_or_default();
            sections.for_each(|section| mutations.extend(section.mutations));
            let (version, leased) = (batch.version, batch.leased);
            Some(Delivery { previous, version, horizon, leased, mutations, batch_bytes, owner_state: None })
        }
        Entry::Pop(_) | Entry::Lease(_) | Entry::Foundation(_) => None,
    }
}
