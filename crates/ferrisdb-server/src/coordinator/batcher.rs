//! Which transactions commit, and as what: [`Batcher`], the coordinator's core.
//!
//! It takes requests in order and makes of them what is to be appended to the log: conflicts are checked against the window (which
//! holds the writes of the requests before them too), versionstamps filled in, commit ids looked up and noted. It knows no clock, disk or task.
//!
//! # Invariants
//! - What one request of a group is told rests on the requests before it, in the group or earlier, and on nothing else.
//! - An id is in `in_flight` from the group that decides it until that group is durable, and from then on in the log's state: at no moment in
//!   neither. (The driver takes it out only after the log has said that it is durable.)
//! - `previous` is the version of the last batch that was appended. A batch that the log refused leaves only a gap in the versions.
//! - `horizon` never goes down.
//! - `lock` is what the database will be locked with once everything that was appended is durable. Where a transaction changes it, the metadata of the
//!   batch says so: the lock is the log's, and is there after a restart, whoever coordinates then.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ferrisdb_core::codec::DecodeError;
use ferrisdb_core::key::{DATABASE_LOCK_KEY, SYSTEM_END, printable};
use ferrisdb_core::mutation::apply;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::versionstamp::{OFFSET_BYTES, fill, stamp_offset};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Limits, Mutation, MutationKind, Result, Version, Versionstamp};
use ferrisdb_rpc::api::{CommitId, CommitRequest, Committed, Lease, LeaseRequest, ResolveRequest};

use super::lease::{LeaseOptions, Leases};
use super::sequencer::Sequencer;
use crate::log::state::change_tags;
use crate::log::{Batch, Entry, EpochStart, IdOutcome, Known, LeaseChange, Outcome, Owner, Recovered, Section, Tag};
use crate::resolver::{Checked, ConflictWindow};
use crate::shards::ShardMap;
use crate::shards::change::{Change, Moment};
use crate::shards::holding::Assignment;

/// What clients ask the coordinator for, in order.
#[derive(Debug)]
pub enum Request {
    /// To commit.
    Commit(CommitRequest),
    /// What became of a commit.
    Resolve(ResolveRequest),
    /// A lease.
    Lease(LeaseRequest),
    /// To change the cluster's metadata, in this order. Only the controller asks that, and it knows what is there.
    Metadata(Vec<Mutation>),
    /// To change who holds which keys, if it fits the map as it is by then.
    Shards(Change),
}

/// An answer to a [`Request`] of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To a commit.
    Commit(Committed),
    /// To a resolve.
    Resolve(Option<Committed>),
    /// To a lease.
    Lease(Lease),
    /// To a change of the metadata or of the shards: at which version it is there. Who gets which mutations is as it says for those above it.
    Metadata(Version),
}

/// When a response may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// At once: it rests on nothing that is not durable.
    Now(Result<Response>),
    /// Once the batch at this version is durable. It is this group's, or an earlier one's.
    WhenDurable(Version, Response),
    /// Once what this group appends is durable.
    WhenAppended(Response),
}

/// What became of a group of requests.
#[derive(Debug)]
pub struct Group {
    /// What to append, in order; nothing if empty.
    pub entries: Vec<Entry>,
    /// The version of the batch among them.
    pub version: Option<Version>,
    /// One for each request.
    pub decisions: Vec<Decision>,
    /// Transactions that commit with it.
    pub transactions: u64,
    /// Bytes of their mutations.
    pub bytes: u64,
    /// Changes of the metadata.
    metadata: Vec<Mutation>,
    /// The map of the shards after it, if it changes that, and what storage servers must know of it.
    shards: Option<ShardMap>,
    assignments: Vec<(Tag, Assignment)>,
    /// The batch's horizon.
    horizon: Version,
    /// The ids that it decides.
    ids: Vec<CommitId>,
    /// The leases that it grants and ends.
    granted: Vec<u64>,
    ended: Vec<Entry>,
    /// What the database was locked with before.
    lock_before: Option<Bytes>,
}

/// What the log has to say about an id: what is known, and the id floor.
pub type Lookup<'a> = &'a dyn Fn(CommitId) -> (Known, Version);

/// The core. See the [module](self).
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    epoch: u64,
    owner: Owner,
    sequencer: Sequencer,
    window: ConflictWindow,
    previous: Version,
    horizon: Version,
    /// The newest version that changed anything.
    changed: Version,
    in_flight: BTreeMap<CommitId, (Version, Outcome)>,
    leases: Leases,
    /// Lease entries that the log has refused so far.
    ended: Vec<Entry>,
    /// The storage servers.
    tags: BTreeSet<Tag>,
    /// What the database is locked with, if it is.
    lock: Option<Bytes>,
    /// Who holds what; `None`: each of them has everything. An error: nobody can tell, and nothing commits.
    shards: std::result::Result<Option<ShardMap>, DecodeError>,
    /// A batch was refused after its writes went into the window: an empty one above it lets readers get past them.
    needs_batch: bool,
}

impl Batcher {
    /// Begins an epoch where the log stands: the entry that does so, and the batcher to use once that is durable.
    pub fn begin_epoch(
        recovered: &Recovered,
        owner: Owner,
        limits: Limits,
        leases: LeaseOptions,
        now: Duration,
    ) -> (Entry, Batcher) {
        let first_version = Sequencer::first_of_epoch(recovered.last);
        let epoch = recovered.epoch + 1;
        let start = Entry::EpochStart(EpochStart { epoch, owner, process: 0, first_version });
        let batcher = Batcher {
            limits,
            epoch,
            owner,
            sequencer: Sequencer::new(first_version, now),
            window: ConflictWindow::new(if planted(Bug::FloorNotRaised) { Version::ZERO } else { first_version }),
            previous: first_version,
            horizon: recovered.horizon,
            changed: first_version,
            in_flight: BTreeMap::new(),
            leases: Leases::new(leases, &recovered.leases, recovered.next_lease, now),
            ended: Vec::new(),
            tags: recovered.popped.keys().copied().collect(),
            lock: recovered.lock.clone(),
            shards: ShardMap::read(&recovered.metadata),
            needs_batch: false,
        };
        (start, batcher)
    }

    /// The epoch has begun, and this is where the log stands now: what an earlier epoch had under way may have come to count before its end.
    pub fn epoch_began(&mut self, recovered: &Recovered, leases: LeaseOptions, now: Duration) {
        self.horizon = recovered.horizon;
        let none = BTreeMap::new();
        let held = if planted(Bug::LeasesNotRecovered) { &none } else { &recovered.leases };
        self.leases = Leases::new(leases, held, recovered.next_lease, now);
        self.tags = recovered.popped.keys().copied().collect();
        self.lock = if planted(Bug::LockNotRecovered) { None } else { recovered.lock.clone() };
        self.shards = ShardMap::read(&recovered.metadata);
    }

    /// Whose batches these are.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The conflict window, for statistics.
    pub fn window(&self) -> &ConflictWindow {
        &self.window
    }

    /// The leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Decides about requests, in order. `durable` is the newest version that is durable; with `wants_batch` a batch is made even if nothing
    /// commits, so that the newest version is a young one.
    pub fn form(
        &mut self,
        requests: Vec<Request>,
        wants_batch: bool,
        now: Duration,
        durable: Version,
        known: Lookup<'_>,
    ) -> Group {
        // The next version would be one microsecond further at the least: take it only if there is something to give it to.
        let is_needed = |request: &Request| !matches!(request, Request::Lease(_));
        let wants_batch = wants_batch || self.needs_batch;
        let version = (wants_batch || requests.iter().any(is_needed)).then(|| self.sequencer.next(now));
        let mut group = Group {
            entries: Vec::new(),
            version: None,
            decisions: Vec::with_capacity(requests.len()),
            transactions: 0,
            bytes: 0,
            metadata: Vec::new(),
            shards: None,
            assignments: Vec::new(),
            horizon: self.horizon,
            ids: Vec::new(),
            granted: Vec::new(),
            ended: std::mem::take(&mut self.ended),
            lock_before: self.lock.clone(),
        };
        group.ended.extend(self.leases.expire(now));
        let mut grants = Vec::new();
        let mut mutations = Vec::new();
        let mut ids = Vec::new();
        for request in requests {
            let decision = match (request, version) {
                (Request::Commit(request), Some(version)) => {
                    self.commit(request, version, known, &mut group, &mut mutations, &mut ids)
                }
                (Request::Resolve(request), Some(version)) => {
                    self.resolve(request, version, known, &mut group, &mut ids)
                }
                (Request::Lease(request), _) => self.lease(request, now, durable, &mut group, &mut grants),
                (Request::Metadata(mutations), Some(version)) => self.change_metadata(mutations, version, &mut group),
                (Request::Shards(change), Some(version)) => self.change_shards(change, version, &mut group),
                (Request::Commit(_) | Request::Resolve(_) | Request::Metadata(_) | Request::Shards(_), None) => {
                    unreachable!("such a request makes a version needed")
                }
            };
            group.decisions.push(decision);
        }
        // Grants come before the batch whose horizon may pass them, and ends too: the order of the state machine is this one.
        group.entries.extend(grants);
        group.entries.extend(group.ended.iter().cloned());
        let is_batch = wants_batch || group.transactions > 0 || !ids.is_empty() || !group.metadata.is_empty();
        if let Some(version) = version.filter(|_| is_batch) {
            let window = self.limits.window_versions;
            let behind = Version::from_u64(version.get().saturating_sub(window));
            let horizon = self.horizon.max(self.previous.min(behind));
            // Those that change the map now go where the map before it says, like all of this batch.
            let mut sections = match &self.shards {
                Ok(Some(map)) => map.sections(mutations),
                _ if mutations.is_empty() => Vec::new(),
                _ => vec![Section { tags: self.tags.iter().copied().collect(), mutations }],
            };
            sections.extend(
                group
                    .assignments
                    .drain(..)
                    .map(|(tag, assignment)| Section { tags: vec![tag], mutations: vec![assignment.to_mutation()] }),
            );
            group.version = Some(version);
            group.horizon = horizon;
            group.entries.push(Entry::Batch(Batch {
                epoch: self.epoch,
                owner: self.owner,
                previous: self.previous,
                version,
                horizon,
                leased: self.leases.versions(),
                sections,
                metadata: group.metadata.clone(),
                ids,
            }));
        }
        group
    }

    /// The group's entries are in the log's hands: what follows builds on them.
    pub fn appended(&mut self, group: &Group) {
        let Some(version) = group.version else { return };
        self.previous = version;
        self.horizon = group.horizon;
        self.needs_batch = false;
        if group.transactions > 0 {
            self.changed = version;
        }
        // Metadata governs what is above it: this group's mutations were for the storage servers before.
        group.metadata.iter().for_each(|mutation| change_tags(&mut self.tags, mutation));
        if let Some(map) = &group.shards {
            self.shards = Ok(Some(map.clone()));
        }
        let behind = version.get().saturating_sub(self.limits.window_versions);
        self.window.forget_below(Version::from_u64(behind));
    }

    /// The log refused the group's entries: none of it happened.
    pub fn refused(&mut self, group: Group) {
        for id in &group.ids {
            self.in_flight.remove(id);
        }
        group.granted.into_iter().for_each(|id| self.leases.take_back(id));
        self.ended.extend(group.ended);
        self.lock = group.lock_before;
        self.needs_batch |= group.transactions > 0;
    }

    /// The ids that a group decides, to be given to [`durable`](Self::durable).
    pub fn take_ids(group: &mut Group) -> Vec<CommitId> {
        std::mem::take(&mut group.ids)
    }

    /// Groups are durable: the log's state knows their ids now.
    pub fn durable(&mut self, ids: &[CommitId]) {
        for id in ids {
            self.in_flight.remove(id);
        }
    }

    fn commit(
        &mut self,
        request: CommitRequest,
        version: Version,
        known: Lookup<'_>,
        group: &mut Group,
        mutations: &mut Vec<Mutation>,
        ids: &mut Vec<IdOutcome>,
    ) -> Decision {
        if let Some(id) = request.id.filter(|_| !planted(Bug::CommitIdIgnored)) {
            if let Some(&(version, outcome)) = self.in_flight.get(&id) {
                reached(Rare::CommitAgain);
                return Decision::WhenDurable(version, Response::Commit(committed(version, outcome)));
            }
            match known(id) {
                (Known::Outcome(version, outcome), _) => {
                    reached(Rare::CommitAgain);
                    return Decision::Now(Ok(Response::Commit(committed(version, outcome))));
                }
                (Known::Forgotten, _) => {
                    reached(Rare::IdForgotten);
                    return Decision::Now(Err(Error::new(Code::CommitUnknownResultFatal)));
                }
                // It may have been told that it did not happen, and that may have been forgotten.
                (Known::Nothing, floor) if request.read_version < floor => {
                    let read = request.read_version;
                    let detail =
                        format!("its read version {read} is below {floor}, from where on commit ids are known");
                    return Decision::Now(Err(Error::with(Code::TransactionTooOld, detail)));
                }
                (Known::Nothing, _) => {}
            }
        }
        if let Err(error) = check(&request, &self.limits) {
            return Decision::Now(Err(error));
        }
        if let Err(error) = &self.shards {
            let detail = format!("nobody can tell who holds the keys: {}; use a newer FerrisDB", error.what);
            return Decision::Now(Err(Error::with(Code::InternalError, detail)));
        }
        if request.read_version > self.previous {
            let detail = format!("the read version {} was not given out yet", request.read_version);
            return Decision::Now(Err(Error::with(Code::FutureVersion, detail)));
        }
        if self.lock.is_some() && !request.lock_aware && !planted(Bug::LockNotCheckedAtCommit) {
            return Decision::Now(Err(Error::new(Code::DatabaseLocked)));
        }
        match self.window.check(request.read_version, &request.read_conflicts) {
            Checked::Ok => {}
            Checked::Conflict(_) if planted(Bug::BatchMatesNotChecked) && group.transactions > 0 => {}
            Checked::TooOld => {
                let (read, floor) = (request.read_version, self.window.floor());
                let detail = format!("its read version {read} is below {floor}, the oldest that may still commit");
                return Decision::Now(Err(Error::with(Code::TransactionTooOld, detail)));
            }
            Checked::Conflict(indices) => {
                let ranges = if request.report_conflicting_keys { indices } else { Vec::new() };
                return Decision::Now(Ok(Response::Commit(Committed::Conflict { ranges })));
            }
        }
        let batch_index = u16::try_from(group.transactions).expect("a group has at most 65,536 transactions");
        let stamp = Versionstamp::new(version, if planted(Bug::BatchIndexNotFilled) { 0 } else { batch_index });
        self.window.add(version, &request.write_conflicts);
        for mut mutation in request.mutations {
            match mutation.kind {
                MutationKind::SetVersionstampedKey => {
                    let key = fill(&mutation.key, stamp).expect("the template was checked");
                    self.window.add(version, &[KeyRange::single(&key)]);
                    mutation = Mutation::set(key, mutation.value);
                }
                MutationKind::SetVersionstampedValue => {
                    let is_old = planted(Bug::MetadataVersionOld) && mutation.key == b"\xff/metadataVersion"[..];
                    let stamp = if is_old { Versionstamp::new(self.previous, batch_index) } else { stamp };
                    let value = fill(&mutation.value, stamp).expect("the template was checked");
                    mutation = Mutation::set(mutation.key, value);
                }
                _ => {}
            }
            self.note_lock(&mutation, group);
            group.bytes += mutation.bytes() as u64;
            mutations.push(mutation);
        }
        group.transactions += 1;
        let outcome = Outcome::Committed { batch_index };
        if let Some(id) = request.id {
            ids.push(IdOutcome { id, lowest_unanswered: request.lowest_unanswered, outcome });
            self.in_flight.insert(id, (version, outcome));
            group.ids.push(id);
        }
        Decision::WhenDurable(version, Response::Commit(committed(version, outcome)))
    }

    /// If this locks or unlocks the database: so it is from here on.
    fn note_lock(&mut self, mutation: &Mutation, group: &mut Group) {
        let Mutation { kind, key, value } = mutation;
        if *key > DATABASE_LOCK_KEY || *kind != MutationKind::ClearRange && *key < DATABASE_LOCK_KEY {
            return;
        }
        self.lock = match kind {
            MutationKind::ClearRange if *value <= DATABASE_LOCK_KEY => return,
            MutationKind::ClearRange => None,
            MutationKind::Set => Some(value.clone()),
            kind => apply(*kind, self.lock.as_ref(), value, self.limits.value_bytes),
        };
        group.metadata.push(match &self.lock {
            Some(value) => Mutation::set(DATABASE_LOCK_KEY, value.clone()),
            None => {
                let KeyRange { begin, end } = KeyRange::single(DATABASE_LOCK_KEY);
                Mutation::clear_range(begin, end)
            }
        });
    }

    /// The storage servers, once the metadata of the group is in force.
    fn tags_after(&self, group: &Group) -> BTreeSet<Tag> {
        let mut tags = self.tags.clone();
        group.metadata.iter().for_each(|mutation| change_tags(&mut tags, mutation));
        tags
    }

    /// The map, once the group is in force.
    fn map_after<'a>(&'a self, group: &'a Group) -> Option<&'a ShardMap> {
        group.shards.as_ref().or_else(|| self.shards.as_ref().ok()?.as_ref())
    }

    fn change_metadata(&self, mutations: Vec<Mutation>, version: Version, group: &mut Group) -> Decision {
        let before = self.tags_after(group);
        let mut after = before.clone();
        mutations.iter().for_each(|mutation| change_tags(&mut after, mutation));
        // Whoever decided that may not have seen a change of the map that came in between.
        let map = self.map_after(group).filter(|_| !before.is_subset(&after));
        if let Some(range) = map.and_then(|map| orphan(map, &after)) {
            return Decision::Now(Err(nobody_else(&range)));
        }
        group.metadata.extend(mutations);
        Decision::WhenDurable(version, Response::Metadata(version))
    }

    fn change_shards(&self, change: Change, version: Version, group: &mut Group) -> Decision {
        if let Change::Move { team, .. } = &change
            && let Some(gone) = team.difference(&self.tags_after(group)).next()
        {
            let detail = format!("no storage server has the tag {}: nothing can move there", gone.0);
            return Decision::Now(Err(Error::with(Code::ClientInvalidOperation, detail)));
        }
        let mut map = self.map_after(group).cloned();
        let leased = self.leases.versions();
        match change.make(&mut map, Moment { version, horizon: self.horizon, leased: &leased }) {
            Err(error) => Decision::Now(Err(error)),
            // Of those who are new some may have lost their tags meanwhile.
            Ok(_) if let Some(range) = map.as_ref().and_then(|map| orphan(map, &self.tags_after(group))) => {
                Decision::Now(Err(nobody_else(&range)))
            }
            Ok(changed) => {
                group.metadata.extend(changed.metadata);
                group.assignments.extend(changed.assignments);
                group.shards = map;
                Decision::WhenDurable(version, Response::Metadata(version))
            }
        }
    }

    fn resolve(
        &mut self,
        request: ResolveRequest,
        version: Version,
        known: Lookup<'_>,
        group: &mut Group,
        ids: &mut Vec<IdOutcome>,
    ) -> Decision {
        let response = |version, outcome| {
            Response::Resolve(match outcome {
                Outcome::Committed { .. } => Some(committed(version, outcome)),
                Outcome::Aborted => None,
            })
        };
        let id = request.id;
        if let Some(&(version, outcome)) = self.in_flight.get(&id)
            && !planted(Bug::AskThenFence)
        {
            reached(Rare::ResolvedInFlight);
            return Decision::WhenDurable(version, response(version, outcome));
        }
        match known(id) {
            (Known::Outcome(version, outcome), _) => {
                reached(Rare::ResolvedKnown);
                Decision::Now(Ok(response(version, outcome)))
            }
            (Known::Nothing, _) if planted(Bug::ResolveWritesNothing) => {
                Decision::Now(Ok(response(version, Outcome::Aborted)))
            }
            (Known::Nothing, floor) if request.read_version >= floor => {
                reached(Rare::ResolvedAsNever);
                let outcome = Outcome::Aborted;
                ids.push(IdOutcome { id, lowest_unanswered: 0, outcome });
                self.in_flight.insert(id, (version, outcome));
                group.ids.push(id);
                Decision::WhenDurable(version, response(version, outcome))
            }
            (Known::Nothing | Known::Forgotten, _) => {
                reached(Rare::ResolvedTooLate);
                Decision::Now(Err(Error::new(Code::CommitUnknownResultFatal)))
            }
        }
    }

    fn lease(
        &mut self,
        request: LeaseRequest,
        now: Duration,
        durable: Version,
        group: &mut Group,
        grants: &mut Vec<Entry>,
    ) -> Decision {
        // Whoever asks for the newest version must get what is acknowledged, and nothing that may yet turn out not to have happened.
        let readable = (self.horizon, durable);
        match self.leases.ask(request, readable, self.changed.min(durable), now) {
            Err(error) => {
                reached(Rare::LeaseRefused);
                Decision::Now(Err(error))
            }
            Ok(answer) => {
                let response = Response::Lease(answer.lease);
                match answer.entry {
                    Some(entry @ Entry::Lease(LeaseChange::Grant { id, .. })) => {
                        group.granted.push(id);
                        grants.push(entry);
                        Decision::WhenAppended(response)
                    }
                    Some(entry) => {
                        group.ended.push(entry);
                        Decision::Now(Ok(response))
                    }
                    None => Decision::Now(Ok(response)),
                }
            }
        }
    }
}

fn committed(version: Version, outcome: Outcome) -> Committed {
    match outcome {
        Outcome::Committed { batch_index } => Committed::At { version, batch_index },
        // It was asked for before it came, and written down as not to happen: whoever still waits for it gets to try again.
        Outcome::Aborted => Committed::Conflict { ranges: Vec::new() },
    }
}

/// Whether a commit keeps the rules that clients keep too: nobody else's data may rest on a client being correct.
fn check(request: &CommitRequest, limits: &Limits) -> Result<()> {
    let range_bytes = |range: &KeyRange| range.begin.len() + range.end.len();
    let ranges = request.read_conflicts.iter().chain(&request.write_conflicts);
    let bytes = ranges.map(range_bytes).sum::<usize>() + request.mutations.iter().map(Mutation::bytes).sum::<usize>();
    if bytes > limits.transaction_bytes {
        let detail = format!("it has {bytes} bytes; the limit is {}; split it", limits.transaction_bytes);
        return Err(Error::with(Code::TransactionTooLarge, detail));
    }
    request.mutations.iter().try_for_each(|mutation| check_mutation(mutation, limits))
}

fn check_mutation(mutation: &Mutation, limits: &Limits) -> Result<()> {
    let Mutation { kind, key, value } = mutation;
    let stored = |key: &[u8]| {
        let detail = || format!("{} is not a key that is stored", printable(key));
        if key < SYSTEM_END { Ok(()) } else { Err(Error::with(Code::KeyOutsideLegalRange, detail())) }
    };
    let templates = usize::from(*kind == MutationKind::SetVersionstampedKey) * OFFSET_BYTES;
    if *kind == MutationKind::ClearRange {
        if key > value {
            return Err(Error::with(Code::InvertedRange, format!("{} is above {}", printable(key), printable(value))));
        }
        return if value.as_ref() <= SYSTEM_END { Ok(()) } else { stored(value) };
    }
    stored(key)?;
    let key_max = limits.key_bytes_for(key) + templates;
    if key.len() > key_max {
        return Err(Error::with(Code::KeyTooLarge, format!("a key has {} bytes; the limit is {key_max}", key.len())));
    }
    let templates = usize::from(*kind == MutationKind::SetVersionstampedValue) * OFFSET_BYTES;
    let value_max = limits.value_bytes + templates;
    if value.len() > value_max {
        let detail = format!("the value of {} has {} bytes; the limit is {value_max}", printable(key), value.len());
        return Err(Error::with(Code::ValueTooLarge, detail));
    }
    let template = match kind {
        MutationKind::SetVersionstampedKey => Some(key),
        MutationKind::SetVersionstampedValue => Some(value),
        _ => None,
    };
    match template {
        Some(template) if stamp_offset(template).is_none() => {
            let detail = format!("a versionstamp does not fit where the template {} says", printable(template));
            Err(Error::with(Code::ClientInvalidOperation, detail))
        }
        _ => Ok(()),
    }
}
/// Keys that none of these storage servers is to hold.
fn orphan(map: &ShardMap, tags: &BTreeSet<Tag>) -> Option<KeyRange> {
    let mut shards = map.iter();
    shards.find_map(|(range, shard)| shard.team().is_disjoint(tags).then_some(range))
}

fn nobody_else(range: &KeyRange) -> Error {
    let (begin, end) = (printable(&range.begin), printable(&range.end));
    let detail = format!("nobody else holds the keys from {begin} to {end}: their storage server stays");
    Error::with(Code::ClientInvalidOperation, detail)
}
