//! What the consensus library asks of a log store: its traits, on [`LogStore`].
//!
//! A vote is durable when the library hears that it was saved. Entries are so later, and it is told then. What is known to be committed, and what is cut off,
//! need no sync of their own: the next one takes them along, and no record is durable without those before it.

use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};

use ferrisdb_core::Result;
use ferrisdb_core::planted::{Bug, planted};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};

use super::memory::{Done, KIND_COMMITTED, KIND_CUT, KIND_ENTRY, KIND_VOTE, Pending, put_head};
use super::{LogStore, Waiting, to_io};
use crate::log::appending::{append_records, space_for};
use crate::log::replicated::types::{LogId, RaftLogEntry, Types, Vote, put_entry, put_log_id, put_option, put_vote};
use crate::signal::lock;

/// The most bytes of entries that one read for a follower returns, beside the first entry.
const READ_BYTES_MAX: u64 = 1 << 20;

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> std::result::Result<Vec<RaftLogEntry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, u64::MAX).map_err(|error| to_io(&error))
    }

    async fn read_vote(&mut self) -> std::result::Result<Option<Vote>, io::Error> {
        Ok(lock(&self.shared.memory).vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> std::result::Result<Vec<RaftLogEntry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).map_err(|error| to_io(&error))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> std::result::Result<LogState<Types>, io::Error> {
        let memory = lock(&self.shared.memory);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> std::result::Result<(), io::Error> {
        let put = |buffer: &mut Vec<u8>| {
            put_head(buffer, KIND_VOTE);
            put_vote(buffer, vote);
        };
        let saved = self
            .say(put, |memory, position| {
                memory.vote = Some(*vote);
                self.wait_for(memory, position)
            })
            .await
            .map_err(|error| to_io(&error))?;
        self.shared.sync_bell.ring();
        if !planted(Bug::VoteNotDurable) {
            saved.await.map_err(|error| to_io(&error))?;
        }
        let mut memory = lock(&self.shared.memory);
        memory.voted = memory.voted.max(vote.leader_id.term);
        Ok(())
    }

    /// Not synced: the next sync takes it along. An older one is found after a crash, which costs applying again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> std::result::Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        let put = |buffer: &mut Vec<u8>| {
            put_head(buffer, KIND_COMMITTED);
            put_log_id(buffer, &committed);
        };
        self.say(put, |memory, _| memory.committed = Some(committed)).await.map_err(|error| to_io(&error))
    }

    async fn read_committed(&mut self) -> std::result::Result<Option<LogId>, io::Error> {
        Ok(self.committed())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> std::result::Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftLogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<RaftLogEntry> = entries.into_iter().collect();
        let mut flushed = Some(flushed);
        let result = self.append_all(&entries, &mut flushed).await;
        if let (Err(error), Some(flushed)) = (&result, flushed) {
            flushed.io_completed(Err(to_io(error)));
        }
        self.shared.sync_bell.ring();
        result.map_err(|error| to_io(&error))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> std::result::Result<(), io::Error> {
        if planted(Bug::CutForgotten) {
            lock(&self.shared.memory).cut_after(last.as_ref());
            return Ok(());
        }
        let put = |buffer: &mut Vec<u8>| {
            put_head(buffer, KIND_CUT);
            put_option(buffer, last.as_ref(), put_log_id);
        };
        self.say(put, |memory, _| memory.cut_after(last.as_ref())).await.map_err(|error| to_io(&error))
    }

    async fn purge(&mut self, last: LogId) -> std::result::Result<(), io::Error> {
        lock(&self.shared.memory).purge_to(last);
        self.shared.maintain_bell.ring();
        Ok(())
    }
}

impl LogStore {
    async fn append_all(&self, entries: &[RaftLogEntry], flushed: &mut Option<IOFlushed<Types>>) -> Result<()> {
        self.check()?;
        let proposed = entries.iter().filter_map(|entry| match &entry.payload {
            EntryPayload::Normal(proposal) => Some(proposal.0.iter()),
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        });
        let space = space_for(proposed.flatten());
        let mut waiting = Waiting { store: self, tries: 0 };
        loop {
            let appended = {
                let mut buffer = lock(&self.shared.writer);
                buffer.clear();
                let mut ends = Vec::with_capacity(entries.len());
                for entry in entries {
                    put_head(&mut buffer, KIND_ENTRY);
                    put_entry(&mut buffer, entry);
                    ends.push(buffer.len());
                }
                let mut positions = Vec::with_capacity(entries.len());
                let appended = append_records(&self.shared.wal, &buffer, &ends, space, &mut positions);
                appended.map(|()| {
                    let mut memory = lock(&self.shared.memory);
                    let mut begin = 0;
                    for ((entry, &position), &end) in entries.iter().zip(&positions).zip(&ends) {
                        memory.push(entry.clone(), position, (end - begin) as u64, self.shared.options.hot_bytes);
                        begin = end;
                    }
                    let flushed = flushed.take().expect("it is taken once, here");
                    match positions.last() {
                        Some(&position) => {
                            memory.pending.push_back(Pending { position, done: Done::Library(flushed) });
                            None
                        }
                        None => Some(flushed),
                    }
                })
            };
            match appended {
                Ok(None) => return Ok(()),
                Ok(Some(flushed)) => {
                    flushed.io_completed(Ok(()));
                    return Ok(());
                }
                Err(error) => waiting.again(error).await?,
            }
        }
    }
}
