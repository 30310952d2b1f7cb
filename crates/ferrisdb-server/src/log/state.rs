//! What the log's entries amount to: [`State`], the same on every replica that has applied the same entries.
//!
//! It is small and in memory. It says which epoch it is and whose, which version is the last, which versions are readable, how far each
//! storage server has come, and what became of the commits that clients may still ask about. Batches themselves stay in the log.
//!
//! # Commit ids
//! The table holds, for each client that was heard of lately, the outcomes that it may not know yet. An outcome leaves when the client says that it
//! knows it (its lowest unanswered counter is above), when the client has too many, or when its client has been silent for long.
//! Long is counted in versions, less the jumps that epochs begin with: the time that the log was at work, as every replica sees it. The **id floor**
//! is the version that lies so far back. Who asks for an outcome with a read version below it gets no answer, never a wrong one.
//!
//! # Invariants
//! - Epoch, last version, horizon, popped versions and the id floor never go down.
//! - `heard` has one entry for each client, and `outcomes` is the number of outcomes of all.
//! - An id that is in the table keeps its first outcome.
//! - `jumps` are ascending, and all end above the id floor.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_u64, put_varint};
use ferrisdb_core::key::DATABASE_LOCK_KEY;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::versionstamp::VERSIONSTAMP_BYTES;
use ferrisdb_core::{Bytes, Mutation, MutationKind, Version};
use ferrisdb_rpc::api::CommitId;

use super::Confirmed;
use super::entry::{
    Batch, Entry, EpochStart, LeaseChange, Outcome, Owner, Pop, Tag, count, outcome, owner, put_outcome, put_version,
    tag, version,
};

/// What this build writes, and the newest that it reads. Without metadata it writes the one before.
const FORMAT_VERSION: u8 = 2;
/// Begins the keys of the metadata that make tags: a tag follows, big endian. What the value says is the cluster's business.
pub const TAG_PREFIX: &[u8] = b"\xff/storage/";

/// Versions (at a million a second of work: ten minutes) for which the outcomes of a silent client are kept.
pub const ID_LIFE_VERSIONS: u64 = 600_000_000;
/// Clients in the table; above it the longest silent one leaves. 65,536 clients of some 30 bytes are 2 MiB of encoded state.
const CLIENTS_MAX: usize = 65_536;
/// Outcomes of one client; above it the lowest counters leave.
const OUTCOMES_OF_CLIENT_MAX: usize = 4_096;
/// Outcomes of all clients; above it the longest silent client leaves.
const OUTCOMES_MAX: usize = 131_072;
/// Jumps of versions that are remembered; above it the id floor moves up to the oldest.
const JUMPS_MAX: usize = 256;

/// Whether an entry had an effect. What has none is void on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It had.
    Counted,
    /// It had none.
    Void,
}

/// What is known about a commit id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// What became of it.
    Outcome(Version, Outcome),
    /// Its client has said that it knows the outcome, or had too many.
    Forgotten,
    /// Nothing was written about it, or it was long ago: see [`State::id_floor`].
    Nothing,
}

/// The state that the entries so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    epoch: u64,
    owner: Owner,
    last: Version,
    horizon: Version,
    leases: BTreeMap<u64, Version>,
    next_lease: u64,
    tags: BTreeMap<Tag, Version>,
    clients: BTreeMap<u64, Client>,
    heard: BTreeSet<(Version, u64)>,
    outcomes: usize,
    jumps: VecDeque<Jump>,
    id_floor: Version,
    /// Shared with whoever looks at it: a change makes a new one.
    metadata: Arc<BTreeMap<Bytes, Bytes>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Client {
    /// The batch that last said something of it.
    heard: Version,
    /// Counters below this are forgotten.
    lowest: u64,
    outcomes: BTreeMap<u64, (Version, Outcome)>,
}

/// An epoch's beginning: no version lies in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jump {
    from: Version,
    to: Version,
}

impl State {
    /// Before the first entry of a log with these tags.
    pub fn new(tags: &[Tag]) -> State {
        State {
            epoch: 0,
            owner: [0; 16],
            last: Version::ZERO,
            horizon: Version::ZERO,
            leases: BTreeMap::new(),
            next_lease: 1,
            tags: tags.iter().map(|&tag| (tag, Version::ZERO)).collect(),
            clients: BTreeMap::new(),
            heard: BTreeSet::new(),
            outcomes: 0,
            jumps: VecDeque::new(),
            id_floor: Version::ZERO,
            metadata: Arc::default(),
        }
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The coordinator of the current epoch.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The last version.
    pub fn last(&self) -> Version {
        self.last
    }

    /// Below this only leased versions are readable.
    pub fn horizon(&self) -> Version {
        self.horizon
    }

    /// Below this no version is readable, leased or not.
    pub fn past(&self) -> Version {
        self.leases.values().copied().min().map_or(self.horizon, |leased| leased.min(self.horizon))
    }

    /// The leases, by number.
    pub fn leases(&self) -> &BTreeMap<u64, Version> {
        &self.leases
    }

    /// The leased versions, ascending.
    pub fn leased_versions(&self) -> Arc<[Version]> {
        self.leases.values().copied().collect::<BTreeSet<Version>>().into_iter().collect()
    }

    /// A number above that of every lease there was.
    pub fn next_lease(&self) -> u64 {
        self.next_lease
    }

    /// Up to where a tag's mutations are durable where they belong; `None` for an unknown tag.
    pub fn popped(&self, tag: Tag) -> Option<Version> {
        self.tags.get(&tag).copied()
    }

    /// All tags, and up to where each one's mutations are durable where they belong.
    pub fn tags(&self) -> &BTreeMap<Tag, Version> {
        &self.tags
    }

    /// The least version up to which nobody needs the log any more.
    pub fn popped_by_all(&self) -> Version {
        self.tags.values().copied().min().unwrap_or(self.last)
    }

    /// The cluster's own data: who belongs to it, who stores what, and whether the database is locked.
    pub fn metadata(&self) -> &Arc<BTreeMap<Bytes, Bytes>> {
        &self.metadata
    }

    /// What the database is locked with, if it is.
    pub fn lock(&self) -> Option<&Bytes> {
        self.metadata.get(DATABASE_LOCK_KEY)
    }

    /// Whether it is locked, for the status document.
    pub(crate) fn lock_document(&self) -> serde_json::Value {
        let id = self.lock().map(|value| value.get(VERSIONSTAMP_BYTES..).unwrap_or_default());
        let id = id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        serde_json::json!({ "locked": id.is_some(), "lock_uid": id })
    }

    /// Where it stands, for whoever has confirmed that it is the newest.
    pub(crate) fn confirmed(&self) -> Confirmed {
        Confirmed { owner: self.owner, version: self.last, is_locked: self.lock().is_some() }
    }

    /// Changes the metadata of a log that is about to be founded.
    pub(crate) fn set_metadata(&mut self, mutations: &[Mutation]) {
        let version = self.last;
        mutations.iter().for_each(|mutation| self.change_metadata(mutation, version));
    }

    /// What is known about a commit id.
    pub fn known(&self, id: CommitId) -> Known {
        match self.clients.get(&id.client) {
            Some(client) if id.counter < client.lowest => Known::Forgotten,
            Some(client) => match client.outcomes.get(&id.counter) {
                Some(&(version, outcome)) => Known::Outcome(version, outcome),
                None => Known::Nothing,
            },
            None => Known::Nothing,
        }
    }

    /// For a commit with a read version below this, [`Known::Nothing`] says nothing.
    pub fn id_floor(&self) -> Version {
        self.id_floor
    }

    /// Clients in the table of commit ids, and outcomes, for statistics.
    pub fn id_counts(&self) -> (usize, usize) {
        (self.clients.len(), self.outcomes)
    }

    /// Applies the next entry.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        match entry {
            Entry::EpochStart(start) => self.start_epoch(start),
            Entry::Batch(batch) => self.apply_batch(batch),
            Entry::Pop(pop) => self.pop(*pop),
            Entry::Lease(change) => self.change_lease(*change),
            Entry::Foundation(state) => self.found(state),
        }
    }

    /// A log begins with what another one came to. Only before anything else.
    fn found(&mut self, state: &State) -> Applied {
        if self.epoch > 0 || self.last > Version::ZERO || !self.metadata.is_empty() {
            return Applied::Void;
        }
        self.clone_from(state);
        Applied::Counted
    }

    fn start_epoch(&mut self, start: &EpochStart) -> Applied {
        let is_reused = start.epoch == self.epoch && !planted(Bug::EpochReused);
        if start.epoch < self.epoch || is_reused || start.first_version <= self.last {
            return Applied::Void;
        }
        self.epoch = start.epoch;
        self.owner = start.owner;
        // The proposer did not know the window: what the last version showed stays readable.
        self.jumps.push_back(Jump { from: self.last, to: start.first_version });
        if self.jumps.len() > JUMPS_MAX
            && let Some(oldest) = self.jumps.pop_front()
        {
            self.id_floor = self.id_floor.max(oldest.to);
        }
        self.last = start.first_version;
        self.expire_ids();
        Applied::Counted
    }

    fn apply_batch(&mut self, batch: &Batch) -> Applied {
        let is_owners = batch.epoch == self.epoch && (batch.owner == self.owner || planted(Bug::TwoOwners));
        let is_next = batch.previous == self.last || planted(Bug::OrderNotChecked) && batch.version > self.last;
        if !is_owners || !is_next {
            return Applied::Void;
        }
        self.last = batch.version;
        self.horizon = self.horizon.max(batch.horizon);
        for id in &batch.ids {
            self.note(id.id, id.lowest_unanswered, batch.version, id.outcome);
        }
        batch.metadata.iter().for_each(|mutation| self.change_metadata(mutation, batch.version));
        self.expire_ids();
        Applied::Counted
    }

    /// Sets and clears; others have no effect here. A new tag needs what is above this version.
    fn change_metadata(&mut self, mutation: &Mutation, version: Version) {
        match mutation.kind {
            MutationKind::Set => {
                Arc::make_mut(&mut self.metadata).insert(mutation.key.clone(), mutation.value.clone());
            }
            MutationKind::ClearRange => {
                Arc::make_mut(&mut self.metadata).retain(|key, _| *key < mutation.key || *key >= mutation.value);
            }
            _ => {}
        }
        let mut tags = self.tags.keys().copied().collect();
        change_tags(&mut tags, mutation);
        self.tags.retain(|tag, _| tags.contains(tag));
        for tag in tags {
            self.tags.entry(tag).or_insert(version);
        }
    }

    fn pop(&mut self, pop: Pop) -> Applied {
        match self.tags.get_mut(&pop.tag) {
            Some(popped) if pop.version <= self.last => {
                *popped = pop.version.max(*popped);
                Applied::Counted
            }
            _ => Applied::Void,
        }
    }

    fn change_lease(&mut self, change: LeaseChange) -> Applied {
        let counts = match change {
            LeaseChange::Grant { id, version } => {
                let is_new = id >= self.next_lease;
                let is_leased = || self.leases.values().any(|&leased| leased == version);
                let is_readable = version <= self.last && (version >= self.horizon || is_leased());
                if is_new && is_readable {
                    self.leases.insert(id, version);
                    self.next_lease = id.saturating_add(1);
                }
                is_new && is_readable
            }
            LeaseChange::Renew { id } => self.leases.contains_key(&id),
            LeaseChange::End { id } => self.leases.remove(&id).is_some(),
        };
        if counts { Applied::Counted } else { Applied::Void }
    }

    fn note(&mut self, id: CommitId, lowest_unanswered: u64, version: Version, outcome: Outcome) {
        let client = self.clients.entry(id.client).or_default();
        if client.heard != version {
            self.heard.remove(&(client.heard, id.client));
            self.heard.insert((version, id.client));
            client.heard = version;
        }
        client.lowest = client.lowest.max(lowest_unanswered);
        let before = client.outcomes.len();
        if id.counter >= client.lowest {
            client.outcomes.entry(id.counter).or_insert((version, outcome));
        }
        while let Some(first) = client.outcomes.first_entry()
            && *first.key() < client.lowest
        {
            first.remove();
        }
        while client.outcomes.len() > OUTCOMES_OF_CLIENT_MAX
            && let Some((counter, _)) = client.outcomes.pop_first()
        {
            client.lowest = counter + 1;
        }
        self.outcomes = self.outcomes + client.outcomes.len() - before;
    }

    /// Moves the id floor up, and forgets the clients that were last heard of below it.
    fn expire_ids(&mut self) {
        let mut left = ID_LIFE_VERSIONS;
        let mut end = self.last;
        let mut floor = None;
        for jump in self.jumps.iter().rev().filter(|_| !planted(Bug::IdsExpireByRawVersions)) {
            let worked = end.get() - jump.to.get();
            if worked >= left {
                floor = Some(end.get() - left);
                break;
            }
            left -= worked;
            end = jump.from;
        }
        let floor = floor.unwrap_or_else(|| end.get().saturating_sub(left));
        self.id_floor = self.id_floor.max(Version::from_u64(floor));
        while self.jumps.front().is_some_and(|jump| jump.to <= self.id_floor) {
            self.jumps.pop_front();
        }
        while let Some(&(heard, client)) = self.heard.first() {
            let is_silent = heard < self.id_floor;
            let is_too_much = self.clients.len() > CLIENTS_MAX || self.outcomes > OUTCOMES_MAX;
            if !is_silent && !is_too_much {
                break;
            }
            // Whatever is forgotten for want of room must not be taken for never written.
            self.id_floor = self.id_floor.max(heard);
            self.heard.pop_first();
            let forgotten = self.clients.remove(&client).expect("heard has one entry for each client");
            self.outcomes -= forgotten.outcomes.len();
        }
    }

    /// Its bytes.
    ///
    /// # Format (version 2; numbers are varints unless said otherwise)
    /// ```text
    /// u8 format version, epoch, owner (16 bytes), last version, horizon, id floor
    /// next lease id, leases: count, then of each: id, version
    /// tags: count, then of each: tag, popped version
    /// jumps: count, then of each: from, to
    /// clients: count, then of each: u64 client, heard, lowest counter, outcomes: count, then of each: counter, version, outcome
    /// metadata (not in version 1): count, at least 1, then of each: bytes key, bytes value
    /// ```
    /// All in ascending order, so that equal states have equal bytes. A state without metadata is written as version 1.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(if self.metadata.is_empty() { FORMAT_VERSION - 1 } else { FORMAT_VERSION });
        put_varint(out, self.epoch);
        out.extend_from_slice(&self.owner);
        put_version(out, self.last);
        put_version(out, self.horizon);
        put_version(out, self.id_floor);
        put_varint(out, self.next_lease);
        put_varint(out, self.leases.len() as u64);
        for (&id, &version) in &self.leases {
            put_varint(out, id);
            put_version(out, version);
        }
        put_varint(out, self.tags.len() as u64);
        for (&tag, &popped) in &self.tags {
            put_varint(out, u64::from(tag.0));
            put_version(out, popped);
        }
        put_varint(out, self.jumps.len() as u64);
        for jump in &self.jumps {
            put_version(out, jump.from);
            put_version(out, jump.to);
        }
        put_varint(out, self.clients.len() as u64);
        for (&number, client) in &self.clients {
            put_u64(out, number);
            put_version(out, client.heard);
            put_varint(out, client.lowest);
            put_varint(out, client.outcomes.len() as u64);
            for (&counter, &(version, outcome)) in &client.outcomes {
                put_varint(out, counter);
                put_version(out, version);
                put_outcome(out, outcome);
            }
        }
        if !self.metadata.is_empty() {
            put_varint(out, self.metadata.len() as u64);
            for (key, value) in self.metadata.iter() {
                put_bytes(out, key);
                put_bytes(out, value);
            }
        }
    }

    /// The state in `bytes`, all of them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<State, DecodeError> {
        let decoder = &mut Decoder::new(bytes);
        let format = decoder.u8("log state: format version")?;
        if !(FORMAT_VERSION - 1..=FORMAT_VERSION).contains(&format) {
            return Err(DecodeError { what: "log state: a format version that this build does not know" });
        }
        let mut state = State::new(&[]);
        state.epoch = decoder.varint("log state: epoch")?;
        state.owner = owner(decoder)?;
        state.last = version(decoder, "log state: last version")?;
        state.horizon = version(decoder, "log state: horizon")?;
        state.id_floor = version(decoder, "log state: id floor")?;
        state.next_lease = decoder.varint("log state: next lease")?;
        let unsorted = DecodeError { what: "log state: a list that is not ascending" };
        for _ in 0..count(decoder, "log state: leases")? {
            let id = decoder.varint("log state: lease")?;
            if id >= state.next_lease || state.leases.last_key_value().is_some_and(|(&last, _)| last >= id) {
                return Err(unsorted);
            }
            state.leases.insert(id, version(decoder, "log state: leased version")?);
        }
        for _ in 0..count(decoder, "log state: tags")? {
            let tag = tag(decoder)?;
            if state.tags.last_key_value().is_some_and(|(&last, _)| last >= tag) {
                return Err(unsorted);
            }
            state.tags.insert(tag, version(decoder, "log state: popped version")?);
        }
        for _ in 0..count(decoder, "log state: jumps")? {
            let jump = Jump { from: version(decoder, "log state: jump")?, to: version(decoder, "log state: jump")? };
            let after = state.jumps.back().map_or(Version::ZERO, |jump: &Jump| jump.to);
            if jump.from >= jump.to || jump.from < after || jump.to > state.last {
                return Err(unsorted);
            }
            state.jumps.push_back(jump);
        }
        for _ in 0..count(decoder, "log state: clients")? {
            let number = decoder.u64("log state: client")?;
            if state.clients.last_key_value().is_some_and(|(&last, _)| last >= number) {
                return Err(unsorted);
            }
            let heard = version(decoder, "log state: client heard of")?;
            let lowest = decoder.varint("log state: lowest counter")?;
            let mut client = Client { heard, lowest, outcomes: BTreeMap::new() };
            for _ in 0..count(decoder, "log state: outcomes")? {
                let counter = decoder.varint("log state: counter")?;
                let last = client.outcomes.last_key_value();
                if counter < lowest || last.is_some_and(|(&last, _)| last >= counter) {
                    return Err(unsorted);
                }
                let version = version(decoder, "log state: outcome's version")?;
                client.outcomes.insert(counter, (version, outcome(decoder)?));
            }
            state.outcomes += client.outcomes.len();
            state.heard.insert((heard, number));
            state.clients.insert(number, client);
        }
        if format == FORMAT_VERSION {
            let count = count(decoder, "log state: metadata")?;
            if count == 0 {
                return Err(DecodeError { what: "log state: no metadata, in a format that has some" });
            }
            let metadata = Arc::make_mut(&mut state.metadata);
            for _ in 0..count {
                let key = Bytes::copy_from_slice(decoder.bytes("log state: key of metadata")?);
                if metadata.last_key_value().is_some_and(|(last, _)| *last >= key) {
                    return Err(unsorted);
                }
                metadata.insert(key, Bytes::copy_from_slice(decoder.bytes("log state: value of metadata")?));
            }
        }
        if state.last < state.horizon || state.last < state.id_floor {
            return Err(DecodeError { what: "log state: a version above the last" });
        }
        if decoder.is_empty() { Ok(state) } else { Err(DecodeError { what: "log state: bytes behind its end" }) }
    }

    /// Panics if an invariant does not hold. For tests.
    pub fn check(&self) {
        assert_eq!(self.heard.len(), self.clients.len());
        assert!(self.clients.iter().all(|(&number, client)| self.heard.contains(&(client.heard, number))));
        assert_eq!(self.outcomes, self.clients.values().map(|client| client.outcomes.len()).sum::<usize>());
        let above_lowest = |client: &Client| client.outcomes.keys().all(|&counter| counter >= client.lowest);
        assert!(self.clients.values().all(above_lowest));
        assert!(self.horizon <= self.last && self.id_floor <= self.last);
        assert!(self.tags.values().all(|&popped| popped <= self.last));
        assert!(self.jumps.iter().all(|jump| jump.from < jump.to && jump.to > self.id_floor && jump.to <= self.last));
        assert!(self.jumps.iter().zip(self.jumps.iter().skip(1)).all(|(one, next)| one.to <= next.from));
        assert!(self.leases.keys().all(|&id| id < self.next_lease));
    }
}

/// What a change of the metadata makes of a set of tags.
pub(crate) fn change_tags(tags: &mut BTreeSet<Tag>, mutation: &Mutation) {
    match mutation.kind {
        MutationKind::Set => {
            let number = mutation.key.strip_prefix(TAG_PREFIX).and_then(|number| number.try_into().ok());
            tags.extend(number.map(|number| Tag(u32::from_be_bytes(number))));
        }
        MutationKind::ClearRange => {
            tags.retain(|&tag| {
                let key = tag_key(tag);
                key < mutation.key || key >= mutation.value
            });
        }
        _ => {}
    }
}

/// The key of the metadata that makes a tag.
pub fn tag_key(tag: Tag) -> Bytes {
    [TAG_PREFIX, &tag.0.to_be_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::super::entry::IdOutcome;
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    const ME: Owner = [7; 16];

    fn v(number: u64) -> Version {
        Version::from_u64(number)
    }

    fn start(epoch: u64, owner: Owner, first: u64) -> Entry {
        Entry::EpochStart(EpochStart { epoch, owner, process: 0, first_version: v(first) })
    }

    fn batch(epoch: u64, owner: Owner, previous: u64, version: u64, ids: &[(u64, u64, u64)]) -> Entry {
        let outcome = Outcome::Committed { batch_index: 0 };
        let ids = ids
            .iter()
            .map(|&(client, counter, lowest_unanswered)| IdOutcome {
                id: CommitId { client, counter },
                lowest_unanswered,
                outcome,
            })
            .collect();
        let (previous, version) = (v(previous), v(version));
        let horizon = Version::ZERO;
        Entry::Batch(Batch {
            epoch,
            owner,
            previous,
            version,
            horizon,
            leased: Arc::default(),
            sections: vec![],
            metadata: vec![],
            ids,
        })
    }

    fn started() -> State {
        let mut state = State::new(&[Tag::FIRST]);
        assert_eq!(state.apply(&start(1, ME, 1_000)), Applied::Counted);
        state
    }

    /// A deposed coordinator's batch, one that does not follow on, one of an older epoch: void, and nothing changes.
    #[test]
    fn only_the_current_owner_in_order_counts() {
        let mut state = started();
        assert_eq!(state.apply(&batch(1, ME, 1_000, 1_010, &[])), Applied::Counted);
        let before = state.clone();
        for entry in [
            start(1, [8; 16], 9_000),
            start(2, [8; 16], 1_010),
            batch(1, [8; 16], 1_010, 1_020, &[]),
            batch(2, ME, 1_010, 1_020, &[]),
            batch(1, ME, 1_000, 1_020, &[]),
            Entry::Pop(Pop { tag: Tag(9), version: v(5) }),
            Entry::Pop(Pop { tag: Tag::FIRST, version: v(1_011) }),
            Entry::Lease(LeaseChange::End { id: 1 }),
            Entry::Lease(LeaseChange::Grant { id: 1, version: v(1_011) }),
        ] {
            assert_eq!(state.apply(&entry), Applied::Void, "{entry:?}");
            assert_eq!(state, before);
        }
        assert_eq!(state.apply(&start(2, [8; 16], 9_000)), Applied::Counted);
        assert_eq!(state.apply(&batch(1, ME, 1_010, 1_020, &[])), Applied::Void, "its epoch is over");
    }

    #[test]
    fn an_outcome_stays_until_its_client_knows_it() {
        let mut state = started();
        let id = |counter| CommitId { client: 5, counter };
        state.apply(&batch(1, ME, 1_000, 1_010, &[(5, 1, 1), (5, 2, 1)]));
        let committed = Outcome::Committed { batch_index: 0 };
        assert_eq!(state.known(id(1)), Known::Outcome(v(1_010), committed));
        assert_eq!(state.known(id(3)), Known::Nothing);
        state.apply(&batch(1, ME, 1_010, 1_020, &[(5, 2, 1), (5, 4, 2)]));
        assert_eq!(state.known(id(1)), Known::Forgotten);
        assert_eq!(state.known(id(2)), Known::Outcome(v(1_010), committed), "the first outcome stays");
        state.check();
    }

    /// The jump of a restart makes nobody silent, but work does; and what is forgotten lies below the floor.
    #[test]
    fn silent_clients_are_forgotten_by_work_and_not_by_jumps() {
        let mut state = started();
        state.apply(&batch(1, ME, 1_000, 1_010, &[(5, 1, 1)]));
        let mut last = 1_010;
        for epoch in 2..10 {
            last += 2 * ID_LIFE_VERSIONS;
            assert_eq!(state.apply(&start(epoch, ME, last)), Applied::Counted);
            state.check();
        }
        assert_ne!(state.known(CommitId { client: 5, counter: 1 }), Known::Nothing, "no work was done");
        assert!(state.id_floor() <= v(1_010));
        let mut worked = 0;
        while worked <= ID_LIFE_VERSIONS {
            state.apply(&batch(9, ME, last, last + 1_000_000, &[]));
            last += 1_000_000;
            worked += 1_000_000;
        }
        assert_eq!(state.known(CommitId { client: 5, counter: 1 }), Known::Nothing);
        assert!(state.id_floor() > v(1_010), "nobody takes it for never written");
        state.check();
    }

    /// Many restarts in a row stay bounded and only raise the floor.
    #[test]
    fn restarts_without_work_stay_bounded() {
        let mut state = started();
        for epoch in 2..2_000 {
            assert_eq!(state.apply(&start(epoch, ME, epoch * 100_000_000)), Applied::Counted);
            state.check();
        }
        assert!(state.jumps.len() <= JUMPS_MAX);
    }

    #[test]
    fn a_client_with_too_many_outcomes_loses_the_oldest() {
        let mut state = started();
        for counter in 1..=OUTCOMES_OF_CLIENT_MAX as u64 + 3 {
            state.apply(&batch(1, ME, 999 + counter, 1_000 + counter, &[(5, counter, 1)]));
        }
        state.check();
        assert_eq!(state.known(CommitId { client: 5, counter: 3 }), Known::Forgotten);
        assert_ne!(state.known(CommitId { client: 5, counter: 4 }), Known::Nothing);
    }

    fn with_metadata(mut entry: Entry, metadata: Vec<Mutation>) -> Entry {
        let Entry::Batch(batch) = &mut entry else { panic!("a batch") };
        batch.metadata = metadata;
        entry
    }

    /// A key of the metadata makes a tag, which needs all that is above; clearing the key unmakes it, and the log waits for it no more.
    #[test]
    fn tags_come_and_go_with_the_metadata() {
        let mut state = started();
        let makes = vec![Mutation::set(tag_key(Tag(3)), &b"7"[..]), Mutation::set(&b"\xff/x"[..], &b"1"[..])];
        state.apply(&with_metadata(batch(1, ME, 1_000, 1_010, &[]), makes.clone()));
        state.apply(&Entry::Pop(Pop { tag: Tag::FIRST, version: v(1_010) }));
        state.apply(&with_metadata(batch(1, ME, 1_010, 1_020, &[]), makes));
        assert_eq!(state.popped(Tag(3)), Some(v(1_010)), "said twice, it is still the same tag");
        state.apply(&Entry::Pop(Pop { tag: Tag::FIRST, version: v(1_020) }));
        assert_eq!(state.popped_by_all(), v(1_010));
        state.check();
        let clears = vec![Mutation::clear_range(tag_key(Tag(3)), tag_key(Tag(4)))];
        assert_eq!(state.apply(&with_metadata(batch(2, ME, 1_020, 1_030, &[]), clears.clone())), Applied::Void);
        assert_eq!(state.metadata().len(), 2, "what is void changes nothing");
        state.apply(&with_metadata(batch(1, ME, 1_020, 1_030, &[]), clears));
        assert_eq!((state.popped(Tag(3)), state.popped_by_all()), (None, v(1_020)));
        assert_eq!(state.metadata().len(), 1);
        state.check();
    }

    /// A log goes on where another one ended; but only a new one.
    #[test]
    fn only_a_new_log_is_founded() {
        let before = random_state(9);
        let mut state = State::new(&[]);
        let found = Entry::Foundation(Box::new(before.clone()));
        assert_eq!(state.apply(&found), Applied::Counted);
        assert_eq!(state, before);
        let again = Entry::Foundation(Box::new(started()));
        assert_eq!((state.apply(&again), &state), (Applied::Void, &before));
    }

    fn random_state(seed: u64) -> State {
        let mut random = SplitMix64::new(seed);
        let mut state = started();
        let mut epoch = 1;
        for _ in 0..60 {
            let last = state.last().get();
            let entry = match random.below(8) {
                0 => {
                    epoch += 1;
                    start(epoch, ME, last + 1 + random.below(1 << 40))
                }
                1 => Entry::Pop(Pop { tag: Tag::FIRST, version: v(random.below(last)) }),
                2 => Entry::Lease(LeaseChange::Grant { id: state.next_lease(), version: v(last) }),
                3 => Entry::Lease(LeaseChange::End { id: random.below(state.next_lease()) }),
                _ => {
                    let (client, counter) = (random.below(6), random.below(30));
                    let next = last + 1 + random.below(1_000_000);
                    let entry = batch(epoch, ME, last, next, &[(client, counter, counter / 2)]);
                    let tag = Tag(random.below(4) as u32);
                    match random.below(16) {
                        0 => with_metadata(entry, vec![Mutation::set(tag_key(tag), b"x".repeat(tag.0 as usize))]),
                        1 => with_metadata(entry, vec![Mutation::clear_range(tag_key(tag), tag_key(Tag(tag.0 + 2)))]),
                        _ => entry,
                    }
                }
            };
            state.apply(&entry);
            state.check();
        }
        state
    }

    /// A state that was written and read goes on as the one that was not.
    #[test]
    fn what_is_written_is_read() {
        for seed in 0..100 {
            let state = random_state(seed);
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            assert_eq!(State::decode(&bytes), Ok(state), "seed {seed}");
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_are_another_state() {
        let mut random = SplitMix64::new(3);
        let mut bytes = Vec::new();
        random_state(4).encode(&mut bytes);
        for len in 0..bytes.len() {
            assert!(State::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        for _ in 0..50_000 {
            let mut changed = bytes.clone();
            let at = random.below(changed.len() as u64) as usize;
            changed[at] ^= 1 << random.below(8);
            if let Ok(state) = State::decode(&changed) {
                let mut again = Vec::new();
                state.encode(&mut again);
                assert_eq!(again, changed);
            }
        }
    }

    /// If this fails, the format has changed: that is a new format version, and the old one is still to be read.
    #[test]
    fn the_bytes_are_these() {
        let mut state = started();
        state.apply(&batch(1, ME, 1_000, 1_010, &[(5, 2, 1)]));
        state.apply(&Entry::Lease(LeaseChange::Grant { id: 1, version: v(1_010) }));
        state.apply(&Entry::Pop(Pop { tag: Tag::FIRST, version: v(1_005) }));
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let owner = "07".repeat(16);
        let expected =
            format!("0101{owner}f20700000201 01f207 0100ed07 0100e807 01 0500000000000000f20701 0102f2070100");
        assert_eq!(hex, expected.replace(' ', ""));
        state.apply(&with_metadata(batch(1, ME, 1_010, 1_011, &[]), vec![Mutation::set(&b"k"[..], &b"v"[..])]));
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = format!(
            "0201{owner}f30700000201 01f207 0100ed07 0100e807 01 0500000000000000f20701 0102f2070100 01 016b 0176"
        );
        assert_eq!(hex, expected.replace(' ', ""));
    }
}
