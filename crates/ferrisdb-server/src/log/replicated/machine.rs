//! What the replicated log's entries amount to on one replica, and the streams for its subscribers: [`Machine`].
//!
//! ```text
//! committed entries ─▶ state ─▶ hot batches ─▶ subscribers by tag
//!                                   log store (what the hot ones no longer have) ─┘
//!        trailing state, at P: the greatest place before which no tag needs anything ─▶ snapshot, then purge
//! ```
//!
//! # Invariants
//! - All replicas apply the same entries in the same order; what is void on one is void on all.
//! - A snapshot is the trailing state, and never newer than P: whoever starts from it still gets all that any tag needs from the log after it.
//! - A tag that was taken gets nothing any more, not even what came before.
//! - A subscriber gets each batch that counted, once, in the order of versions, or an error: never an empty stream in the place of one.
//!
//! # Concurrency
//! Callable from any thread, under one lock, which is held for no I/O. The library applies entries from one task.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Bytes, Code, Error, Result, Version};
use ferrisdb_rpc::api::CommitId;
use futures_util::StreamExt;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{EntryPayload, OptionalSend};

use super::super::entry::{Batch, Entry, Tag};
use super::super::state::{Applied, Known, State};
use super::super::{Confirmed, Delivery, Recovered, Subscription};
use super::store::{LogStore, StoredSnapshot};
use super::types::{LogId, Members, Outcome, Proposal, RaftLogEntry, Types};
use crate::signal::{Bell, lock};

/// A place for a subscriber to begin reading is remembered about once in so many bytes of batches.
const INDEX_BYTES: u64 = 64 << 10;
/// The most bytes of entries that are read at once from the log store.
const READ_BYTES: u64 = 256 << 10;

/// A replica's view of the log. Cheap to clone; clones are the same one.
#[derive(Clone)]
pub(super) struct Machine {
    shared: Arc<Shared>,
}

struct Shared {
    store: LogStore,
    hot_bytes_max: u64,
    core: Mutex<Core>,
    /// Rung when more of the log may be purged than before.
    purge_bell: Bell,
}

/// A state, and which entry was the last in it.
#[derive(Clone)]
struct Placed {
    last: Option<LogId>,
    members: Members,
    state: State,
}

struct Core {
    now: Placed,
    /// The same at P, for the next snapshot.
    trailing: Placed,
    hot: VecDeque<Hot>,
    hot_bytes: u64,
    /// Places in the log, ascending: from this index on all versions are above the one beside it.
    index: VecDeque<(Version, u64)>,
    bytes_since_index: u64,
    /// Entries that were void: the index of the proposal, and which one in it. Only since the trailing state.
    voids: BTreeSet<(u64, usize)>,
    next_subscription: u64,
    wakers: BTreeMap<u64, Waker>,
    /// Subscribers and whoever waits for this replica get no more, because of this.
    closed: Option<Error>,
}

/// A batch that counted, or an epoch's beginning, which is an empty one.
struct Hot {
    previous: Version,
    version: Version,
    horizon: Version,
    leased: Arc<[Version]>,
    proposal: Proposal,
    at: usize,
    bytes: u64,
}

impl Hot {
    fn delivery(&self, tag: Tag) -> Delivery {
        let (mutations, batch_bytes) = match &self.proposal.0[self.at] {
            Entry::Batch(batch) => (mutations_of(batch, tag), batch.mutation_bytes() as u64),
            _ => (Vec::new(), 0),
        };
        let leased = Arc::clone(&self.leased);
        Delivery {
            previous: self.previous,
            version: self.version,
            horizon: self.horizon,
            leased,
            mutations,
            batch_bytes,
            owner_state: None,
        }
    }
}

fn mutations_of(batch: &Batch, tag: Tag) -> Vec<ferrisdb_core::Mutation> {
    let sections = batch.sections.iter().filter(|section| section.tags.contains(&tag));
    sections.flat_map(|section| section.mutations.iter().cloned()).collect()
}

impl Core {
    /// Applies one committed entry.
    fn apply(&mut self, entry: &RaftLogEntry, hot_bytes_max: u64) -> Outcome {
        let id = entry.log_id();
        let mut all = Applied::Counted;
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => self.now.members = Members::new(Some(id), membership.clone()),
            EntryPayload::Normal(proposal) => {
                for (at, entry) in proposal.0.iter().enumerate() {
                    let previous = self.now.state.last();
                    if self.now.state.apply(entry) == Applied::Void {
                        // A pop only rides along: that nobody has its tag any more says nothing of what it rides with.
                        if !matches!(entry, Entry::Pop(_)) {
                            all = Applied::Void;
                        }
                        reached(Rare::VoidEntry);
                        self.voids.insert((id.index, at));
                        continue;
                    }
                    let (bytes, leased) = match entry {
                        Entry::Batch(batch) => (batch.mutation_bytes() as u64 + 256, Arc::clone(&batch.leased)),
                        // An epoch ends no lease.
                        Entry::EpochStart(_) => (256, self.now.state.leased_versions()),
                        Entry::Pop(_) | Entry::Lease(_) => continue,
                        // Whoever founds the log has told its storage servers all of it.
                        Entry::Foundation(_) => continue,
                    };
                    let (version, mut horizon) = (self.now.state.last(), self.now.state.horizon());
                    if matches!(entry, Entry::EpochStart(_)) && planted(Bug::HorizonJumpsWithEpoch) {
                        horizon = version;
                    }
                    let proposal = proposal.clone();
                    self.hot.push_back(Hot { previous, version, horizon, leased, proposal, at, bytes });
                    self.hot_bytes += bytes;
                    self.bytes_since_index += bytes;
                }
            }
        }
        self.now.last = Some(id);
        if self.bytes_since_index >= INDEX_BYTES.min(hot_bytes_max) {
            self.bytes_since_index = 0;
            self.index.push_back((self.now.state.last(), id.index + 1));
        }
        while self.hot_bytes > hot_bytes_max && self.hot.len() > 1 {
            let dropped = self.hot.pop_front().expect("there are two");
            self.hot_bytes -= dropped.bytes;
        }
        Outcome(all)
    }

    /// A tag that was taken gets nothing more: what is committed from then on has no section for it, and would look like batches that are empty.
    fn check_tag(&self, tag: Tag) -> Result<()> {
        if self.now.state.popped(tag).is_some() || planted(Bug::DroppedTagServes) {
            return Ok(());
        }
        let detail = format!("the log has no tag {} any more: its storage server was gone, or excluded", tag.0);
        Err(Error::with(Code::ClientInvalidOperation, detail))
    }

    /// Starts over from a snapshot.
    fn restart_from(&mut self, placed: Placed) {
        self.hot.clear();
        self.hot_bytes = 0;
        self.bytes_since_index = 0;
        self.index = VecDeque::from([(placed.state.last(), placed.last.map_or(0, |last| last.index + 1))]);
        self.voids.clear();
        self.now = placed.clone();
        self.trailing = placed;
    }

    /// P: the greatest remembered place before which no tag needs anything. `None` if the trailing state is already there.
    fn purgeable(&self) -> Option<u64> {
        let state = &self.now.state;
        let popped = if planted(Bug::PurgedBeforePopped) { state.last() } else { state.popped_by_all() };
        let count = self.index.partition_point(|&(version, _)| version <= popped);
        let &(_, from) = self.index.get(count.checked_sub(1)?)?;
        let to = from.checked_sub(1)?;
        (self.trailing.last.is_none_or(|last| last.index < to)).then_some(to)
    }

    fn wake_all(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers).into_values().collect()
    }
}

impl Machine {
    /// Before the first entry; what is in `store` is applied by the library.
    pub(super) fn new(store: LogStore, tags: &[Tag], hot_bytes_max: u64) -> Machine {
        let placed = Placed { last: None, members: Members::default(), state: State::new(tags) };
        let core = Core {
            now: placed.clone(),
            trailing: placed,
            hot: VecDeque::new(),
            hot_bytes: 0,
            index: VecDeque::from([(Version::ZERO, 0)]),
            bytes_since_index: 0,
            voids: BTreeSet::new(),
            next_subscription: 0,
            wakers: BTreeMap::new(),
            closed: None,
        };
        Machine {
            shared: Arc::new(Shared { store, hot_bytes_max, core: Mutex::new(core), purge_bell: Bell::default() }),
        }
    }

    /// Ends all streams.
    pub(super) fn close(&self, error: Error) {
        let wakers = {
            let mut core = lock(&self.shared.core);
            core.closed.get_or_insert(error);
            core.wake_all()
        };
        wakers.into_iter().for_each(Waker::wake);
        self.shared.purge_bell.ring();
    }

    /// Where the state stands here.
    pub(super) fn newest(&self) -> Confirmed {
        lock(&self.shared.core).now.state.confirmed()
    }

    /// Looks at the state, under the lock.
    pub(super) fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.shared.core).now.state)
    }

    /// The last applied entry, and the bytes of the state after it: equal on all replicas that have applied the same.
    pub(super) fn fingerprint(&self) -> (Option<u64>, Vec<u8>) {
        let core = lock(&self.shared.core);
        let mut bytes = Vec::new();
        core.now.state.encode(&mut bytes);
        (core.now.last.map(|last| last.index), bytes)
    }

    pub(super) fn recover(&self) -> Recovered {
        let core = lock(&self.shared.core);
        let state = &core.now.state;
        Recovered {
            epoch: state.epoch(),
            last: state.last(),
            horizon: state.horizon(),
            leases: state.leases().clone(),
            next_lease: state.next_lease(),
            popped: state.tags().clone(),
            lock: state.lock().cloned(),
            metadata: Arc::clone(state.metadata()),
        }
    }

    pub(super) fn known(&self, id: CommitId) -> (Known, Version) {
        let core = lock(&self.shared.core);
        (core.now.state.known(id), core.now.state.id_floor())
    }

    pub(super) fn popped(&self, tag: Tag) -> Option<Version> {
        lock(&self.shared.core).now.state.popped(tag)
    }

    /// Ready when more of the log can be purged: up to which index. An error when the replica is closed.
    pub(super) async fn purgeable(&self) -> Result<u64> {
        loop {
            {
                let core = lock(&self.shared.core);
                if let Some(closed) = &core.closed {
                    return Err(closed.clone());
                }
                if let Some(to) = core.purgeable() {
                    return Ok(to);
                }
            }
            self.shared.purge_bell.rung().await;
        }
    }

    /// Brings the trailing state to the entry at `to`, by applying the entries once more. Reads the log store.
    pub(super) fn trail_to(&self, to: u64) -> Result<()> {
        let mut placed = lock(&self.shared.core).trailing.clone();
        let begun_at = placed.last;
        loop {
            let next = placed.last.map_or(0, |last| last.index + 1);
            if next > to {
                break;
            }
            let entries = self.shared.store.read(next, to + 1, READ_BYTES)?;
            if entries.first().is_none_or(|entry| entry.log_id().index != next) {
                return Err(Error::with(Code::IoError, format!("the log no longer has its entry {next}")));
            }
            for entry in &entries {
                match &entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Membership(membership) => {
                        placed.members = Members::new(Some(entry.log_id()), membership.clone());
                    }
                    EntryPayload::Normal(proposal) => proposal.0.iter().for_each(|entry| {
                        placed.state.apply(entry);
                    }),
                }
                placed.last = Some(entry.log_id());
            }
        }
        let mut core = lock(&self.shared.core);
        if core.trailing.last == begun_at {
            core.voids = core.voids.split_off(&(to + 1, 0));
            // The first place stays: what is read from the store begins there or later.
            while core.index.get(1).is_some_and(|&(_, from)| from <= to + 1) {
                core.index.pop_front();
            }
            core.trailing = placed;
        }
        Ok(())
    }

    /// The batches above `above` with the mutations of `tag`.
    pub(super) fn subscribe(&self, tag: Tag, above: Version) -> Result<Box<dyn Subscription>> {
        let refused = |detail| Err(Error::with(Code::ClientInvalidOperation, detail));
        let mut core = lock(&self.shared.core);
        let state = &core.now.state;
        let Some(popped) = state.popped(tag) else {
            return refused(format!("the log has no tag {}", tag.0));
        };
        let (first, last) = (popped.max(core.trailing.state.last()), state.last());
        if above < first || above > last {
            reached(Rare::SubscriptionRefused);
            return refused(format!(
                "the log cannot deliver from version {above} on: here it reaches from {first} to {last}"
            ));
        }
        core.next_subscription += 1;
        let number = core.next_subscription;
        let machine = self.clone();
        Ok(Box::new(Stream { machine, number, tag, cursor: above, cold: VecDeque::new(), next_index: None }))
    }

    async fn install(&self, snapshot: StoredSnapshot) -> Result<()> {
        let state = State::decode(&snapshot.state).map_err(|error| {
            Error::with(Code::IoError, format!("a snapshot of the log cannot be read: {}", error.what))
        })?;
        // The library also hands back what it found in the store.
        let is_stored = self.shared.store.snapshot().is_some_and(|stored| stored.last == snapshot.last);
        let placed = Placed { last: snapshot.last, members: snapshot.members.clone(), state };
        if !is_stored {
            reached(Rare::SnapshotInstalled);
            self.shared.store.save_snapshot(snapshot).await?;
        }
        let wakers = {
            let mut core = lock(&self.shared.core);
            core.restart_from(placed);
            core.wake_all()
        };
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }
}

fn to_io(error: &Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn to_snapshot(stored: &StoredSnapshot) -> SnapshotOf<Types, Bytes> {
    let meta = SnapshotMeta { last_log_id: stored.last, last_membership: stored.members.clone() };
    Snapshot { meta, snapshot: stored.state.clone() }
}

/// Keeps the trailing state as it was asked for.
pub(super) struct Builder {
    store: LogStore,
    snapshot: StoredSnapshot,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> std::result::Result<SnapshotOf<Types, Bytes>, io::Error> {
        self.store.save_snapshot(self.snapshot.clone()).await.map_err(|error| to_io(&error))?;
        Ok(to_snapshot(&self.snapshot))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> std::result::Result<(Option<LogId>, Members), io::Error> {
        let core = lock(&self.shared.core);
        Ok((core.now.last, core.now.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> std::result::Result<(), io::Error>
    where
        S: futures_util::Stream<Item = std::result::Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let (outcome, may_purge, wakers) = {
                let mut core = lock(&self.shared.core);
                let outcome = core.apply(&entry, self.shared.hot_bytes_max);
                (outcome, core.purgeable().is_some(), core.wake_all())
            };
            // Answered only now: whoever hears of its commit and asks for a read version gets one at or above it.
            if let Some(responder) = responder {
                responder.send(outcome);
            }
            wakers.into_iter().for_each(Waker::wake);
            if may_purge {
                self.shared.purge_bell.ring();
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let trailing = {
            let core = lock(&self.shared.core);
            if planted(Bug::SnapshotTooNew) { core.now.clone() } else { core.trailing.clone() }
        };
        let mut state = Vec::new();
        trailing.state.encode(&mut state);
        let snapshot = StoredSnapshot { last: trailing.last, members: trailing.members, state: state.into() };
        Builder { store: self.shared.store.clone(), snapshot }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        state: Bytes,
    ) -> std::result::Result<(), io::Error> {
        let snapshot = StoredSnapshot { last: meta.last_log_id, members: meta.last_membership.clone(), state };
        self.install(snapshot).await.map_err(|error| to_io(&error))
    }

    async fn get_current_snapshot(&mut self) -> std::result::Result<Option<SnapshotOf<Types, Bytes>>, io::Error> {
        Ok(self.shared.store.snapshot().map(|stored| to_snapshot(&stored)))
    }
}

/// The batches above `cursor` for one tag.
struct Stream {
    machine: Machine,
    number: u64,
    tag: Tag,
    cursor: Version,
    /// Read from the log store, and not yet delivered.
    cold: VecDeque<Delivery>,
    /// Where the store is read next, while it is.
    next_index: Option<u64>,
}

impl Stream {
    /// Reads batches above the cursor from the log store, where they certainly are.
    fn read_cold(&mut self) -> Result<()> {
        let gone = || {
            let detail = "the log no longer has what the storage server needs next; subscribe again";
            Error::with(Code::ProcessBehind, detail)
        };
        let shared = &self.machine.shared;
        while self.cold.is_empty() {
            let (from, applied) = {
                let core = lock(&shared.core);
                let from = match self.next_index {
                    Some(next) => next,
                    None => {
                        let at = core.index.partition_point(|&(version, _)| version <= self.cursor);
                        at.checked_sub(1).and_then(|at| core.index.get(at)).ok_or_else(gone)?.1
                    }
                };
                (from, core.now.last.map_or(0, |last| last.index + 1))
            };
            let entries = shared.store.read(from, applied, READ_BYTES)?;
            reached(Rare::ColdBatches);
            let core = lock(&shared.core);
            core.check_tag(self.tag)?;
            let is_there = entries.first().is_some_and(|entry| entry.log_id().index == from);
            // Voids below the trailing state are forgotten: a place below it cannot be read rightly any more.
            if !is_there || core.trailing.last.is_some_and(|last| last.index >= from) {
                return Err(gone());
            }
            let mut cursor = self.cursor;
            for entry in &entries {
                let index = entry.log_id().index;
                self.next_index = Some(index + 1);
                let EntryPayload::Normal(proposal) = &entry.payload else { continue };
                for (at, entry) in proposal.0.iter().enumerate() {
                    if core.voids.contains(&(index, at)) {
                        continue;
                    }
                    let delivery = match entry {
                        Entry::Batch(batch) if batch.version > cursor => Delivery {
                            previous: cursor,
                            version: batch.version,
                            horizon: batch.horizon,
                            leased: Arc::clone(&batch.leased),
                            mutations: mutations_of(batch, self.tag),
                            batch_bytes: batch.mutation_bytes() as u64,
                            owner_state: None,
                        },
                        Entry::EpochStart(start) if start.first_version > cursor => Delivery {
                            previous: cursor,
                            version: start.first_version,
                            // Nothing is collected because of it.
                            horizon: Version::ZERO,
                            leased: core.now.state.leased_versions(),
                            mutations: Vec::new(),
                            batch_bytes: 0,
                            owner_state: None,
                        },
                        _ => continue,
                    };
                    cursor = delivery.version;
                    self.cold.push_back(delivery);
                }
            }
        }
        Ok(())
    }
}

impl Subscription for Stream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery>> {
        if self.cold.is_empty() {
            let shared = Arc::clone(&self.machine.shared);
            let mut core = lock(&shared.core);
            if let Some(closed) = &core.closed {
                return Poll::Ready(Err(closed.clone()));
            }
            core.check_tag(self.tag)?;
            if self.cursor >= core.now.state.last() {
                core.wakers.insert(self.number, context.waker().clone());
                return Poll::Pending;
            }
            let at = core.hot.partition_point(|hot| hot.version <= self.cursor);
            if let Some(hot) = core.hot.get(at)
                && hot.previous == self.cursor
            {
                let delivery = hot.delivery(self.tag);
                self.cursor = delivery.version;
                self.next_index = None;
                return Poll::Ready(Ok(delivery));
            }
            drop(core);
            self.read_cold()?;
        }
        let delivery = self.cold.pop_front().expect("it was read");
        self.cursor = delivery.version;
        Poll::Ready(Ok(delivery))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.machine.shared.core).wakers.remove(&self.number);
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}
