//! The records of a log store, and what they amount to: [`Memory`].
//!
//! # Format of a record (version 1)
//! ```text
//! u8 format version, u8 kind, then by kind (see types.rs for the parts):
//! 1 entry      entry
//! 2 vote       vote
//! 3 committed  log id
//! 4 cut        option of log id: what lies above it in the log is not there any more
//! 5 snapshot   option of vote, option of log id (committed), option of log id (last in the snapshot), members, bytes state
//! ```
//!
//! # Invariants
//! - The entries are consecutive, and begin right above `purged`.
//! - After a restart `purged` is the place of the last snapshot: nobody purges further than that.
//!
//! # Concurrency
//! Plain data, under the store's lock `memory`.

use std::collections::VecDeque;
use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, Decoder};
use ferrisdb_core::{Bytes, Error};
use ferrisdb_storage::wal::WalPosition;
use openraft::entry::RaftEntry;
use openraft::storage::IOFlushed;

use super::to_io;
use crate::log::replicated::types::{
    LogId, Members, RaftLogEntry, Types, Vote, take_entry, take_log_id, take_members, take_option, take_vote,
};
use crate::signal::Reply;

/// What this build writes, and the newest that it reads.
const FORMAT_VERSION: u8 = 1;

pub(super) const KIND_ENTRY: u8 = 1;
pub(super) const KIND_VOTE: u8 = 2;
pub(super) const KIND_COMMITTED: u8 = 3;
pub(super) const KIND_CUT: u8 = 4;
pub(super) const KIND_SNAPSHOT: u8 = 5;

/// A snapshot: the state of the log as of one of its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::log::replicated) struct StoredSnapshot {
    /// The last entry in it.
    pub(in crate::log::replicated) last: Option<LogId>,
    /// The members as of then.
    pub(in crate::log::replicated) members: Members,
    /// The state, encoded.
    pub(in crate::log::replicated) state: Bytes,
}

/// What the records so far amount to.
pub(super) struct Memory {
    pub(super) vote: Option<Vote>,
    /// The newest term in which it voted, and is known to be durable.
    pub(super) voted: u64,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) log: VecDeque<Slot>,
    /// Entries before this index have no copy in memory.
    hot_from: u64,
    hot_bytes: u64,
    pub(super) snapshot: Option<Arc<StoredSnapshot>>,
    /// Where the newest snapshot record lies: nothing from there on may be purged.
    pub(super) snapshot_at: WalPosition,
    pub(super) pending: VecDeque<Pending>,
    pub(super) failed: Option<Error>,
}

/// An entry of the log.
pub(super) struct Slot {
    pub(super) id: LogId,
    pub(super) position: WalPosition,
    pub(super) bytes: u64,
    pub(super) entry: Option<RaftLogEntry>,
}

/// Who waits for a record to be durable.
pub(super) struct Pending {
    pub(super) position: WalPosition,
    pub(super) done: Done,
}

/// How it is told.
pub(super) enum Done {
    Library(IOFlushed<Types>),
    Caller(Reply<()>),
}

impl Done {
    pub(super) fn tell(self, result: Result<(), &Error>) {
        match self {
            Done::Library(flushed) => flushed.io_completed(result.map_err(to_io)),
            Done::Caller(reply) => reply.send(result.map_err(Error::clone)),
        }
    }
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            vote: None,
            voted: 0,
            committed: None,
            purged: None,
            log: VecDeque::new(),
            hot_from: 0,
            hot_bytes: 0,
            snapshot: None,
            snapshot_at: WalPosition::ZERO,
            pending: VecDeque::new(),
            failed: None,
        }
    }

    /// The index of the first entry that is or would be there.
    fn first_index(&self) -> u64 {
        match (self.log.front(), &self.purged) {
            (Some(slot), _) => slot.id.index,
            (None, Some(purged)) => purged.index + 1,
            (None, None) => 0,
        }
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.log.back().map(|slot| slot.id).or(self.purged)
    }

    /// Where in `log` the entry with `index` lies, or would.
    pub(super) fn slot_of(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first_index())).unwrap_or(usize::MAX).min(self.log.len())
    }

    pub(super) fn push(&mut self, entry: RaftLogEntry, position: WalPosition, bytes: u64, hot_bytes_max: u64) {
        let id = entry.log_id();
        if self.log.is_empty() {
            self.hot_from = id.index;
        }
        self.log.push_back(Slot { id, position, bytes, entry: Some(entry) });
        self.hot_bytes += bytes;
        while self.hot_bytes > hot_bytes_max && self.hot_from < id.index {
            let at = self.slot_of(self.hot_from);
            let slot = &mut self.log[at];
            slot.entry = None;
            self.hot_bytes -= slot.bytes;
            self.hot_from += 1;
        }
    }

    pub(super) fn cut_after(&mut self, last: Option<&LogId>) {
        let keep = last.map_or(0, |last| last.index + 1);
        while self.log.back().is_some_and(|slot| slot.id.index >= keep) {
            let slot = self.log.pop_back().expect("there is a last one");
            if slot.entry.is_some() {
                self.hot_bytes -= slot.bytes;
            }
            self.hot_from = self.hot_from.min(slot.id.index);
        }
    }

    pub(super) fn purge_to(&mut self, last: LogId) {
        while self.log.front().is_some_and(|slot| slot.id.index <= last.index) {
            let slot = self.log.pop_front().expect("there is a first one");
            if slot.entry.is_some() {
                self.hot_bytes -= slot.bytes;
            }
        }
        self.hot_from = self.hot_from.max(last.index + 1);
        self.purged = self.purged.max(Some(last));
    }

    /// All records were taken in: what is left is the log above the newest snapshot. `is_purged`: the WAL no longer has its beginning.
    ///
    /// # Errors
    /// What of the log should be there and is not.
    pub(super) fn begin(&mut self, is_purged: bool) -> Result<(), &'static str> {
        if let Some(last) = self.snapshot.as_ref().and_then(|snapshot| snapshot.last) {
            self.purge_to(last);
        } else if is_purged || self.log.front().is_some_and(|slot| slot.id.index > 0) {
            return Err("no snapshot stands for what is no longer there");
        }
        if self.committed > self.last() {
            return Err("the log ends before what it calls committed");
        }
        Ok(())
    }

    /// From where on the WAL is needed.
    pub(super) fn needed_from(&self) -> WalPosition {
        self.log.front().map_or(self.snapshot_at, |slot| slot.position.min(self.snapshot_at))
    }

    /// Takes in the next record, which lies at `position`. For opening.
    pub(super) fn replay(
        &mut self,
        payload: &Bytes,
        position: WalPosition,
        hot_bytes_max: u64,
    ) -> Result<(), DecodeError> {
        let mut decoder = Decoder::new(payload);
        match take_head(&mut decoder)? {
            KIND_ENTRY => {
                let entry = take_entry(payload, &mut decoder)?;
                let next = self.log.back().map(|slot| slot.id.index + 1);
                if next.is_some_and(|next| next != entry.log_id().index) {
                    return Err(DecodeError { what: "an entry that does not follow on the one before" });
                }
                self.push(entry, position, payload.len() as u64, hot_bytes_max);
            }
            KIND_VOTE => self.vote = Some(take_vote(&mut decoder)?),
            KIND_COMMITTED => self.committed = Some(take_log_id(&mut decoder)?),
            KIND_CUT => {
                let last = take_option(&mut decoder, take_log_id)?;
                self.cut_after(last.as_ref());
            }
            KIND_SNAPSHOT => {
                self.vote = take_option(&mut decoder, take_vote)?;
                self.committed = take_option(&mut decoder, take_log_id)?;
                let last = take_option(&mut decoder, take_log_id)?;
                let members = take_members(&mut decoder)?;
                let state = payload.slice_ref(decoder.bytes("snapshot: state")?);
                // One that was sent by a leader replaces the log that did not reach so far.
                if let Some(last) = last
                    && self.last() < Some(last)
                {
                    self.cut_after(None);
                }
                self.snapshot = Some(Arc::new(StoredSnapshot { last, members, state }));
                self.snapshot_at = position;
            }
            _ => return Err(DecodeError { what: "a record of an unknown kind" }),
        }
        decoder.finish("bytes behind the end of a record")
    }
}

pub(super) fn put_head(out: &mut Vec<u8>, kind: u8) {
    out.extend_from_slice(&[FORMAT_VERSION, kind]);
}

pub(super) fn take_head(decoder: &mut Decoder<'_>) -> Result<u8, DecodeError> {
    if decoder.u8("record: format version")? != FORMAT_VERSION {
        return Err(DecodeError { what: "a record of a format that this build does not know" });
    }
    decoder.u8("record: kind")
}
