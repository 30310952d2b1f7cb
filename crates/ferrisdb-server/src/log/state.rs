//! What the log's entries amount to: [`State`], the same on every replica that has applied the same entries.
//!
//! It is small and in memory. It says which epoch it is and whose, which version is the last, which versions are readable, how far each
//! storage server has come, and what became of the commits that clients may still ask about (`ids.rs`). Batches themselves stay in the log.
//!
//! # Invariants
//! - Epoch, last version, horizon, popped versions and the id floor never go down.

mod ids;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::key::DATABASE_LOCK_KEY;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::versionstamp::VERSIONSTAMP_BYTES;
use ferrisdb_core::{Bytes, Mutation, MutationKind, Version};
use ferrisdb_rpc::api::CommitId;

use self::ids::Ids;
use super::Confirmed;
use super::entry::{
    Batch, Entry, EpochStart, LeaseChange, Outcome, Owner, Pop, Tag, count, owner, put_version, tag, version,
};

pub use self::ids::ID_LIFE_VERSIONS;

/// What this build writes, and the newest that it reads. Without metadata it writes the one before.
const FORMAT_VERSION: u8 = 2;
const UNSORTED: DecodeError = DecodeError { what: "log state: a list that is not ascending" };
/// Begins the keys of the metadata that make tags: a tag follows, big endian. What the value says is the cluster's business.
pub const TAG_PREFIX: &[u8] = b"\xff/storage/";

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
    ids: Ids,
    /// Shared with whoever looks at it: a change makes a new one.
    metadata: Arc<BTreeMap<Bytes, Bytes>>,
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
            ids: Ids::default(),
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
        self.ids.known(id)
    }

    /// For a commit with a read version below this, [`Known::Nothing`] says nothing.
    pub fn id_floor(&self) -> Version {
        self.ids.floor()
    }

    /// Clients in the table of commit ids, and outcomes, for statistics.
    pub fn id_counts(&self) -> (usize, usize) {
        self.ids.counts()
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
        self.ids.jump(self.last, start.first_version);
        self.last = start.first_version;
        self.ids.expire(self.last);
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
            self.ids.note(id.id, id.lowest_unanswered, batch.version, id.outcome);
        }
        batch.metadata.iter().for_each(|mutation| self.change_metadata(mutation, batch.version));
        self.ids.expire(self.last);
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
        put_version(out, self.ids.floor());
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
        self.ids.encode(out);
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
        let id_floor = version(decoder, "log state: id floor")?;
        state.next_lease = decoder.varint("log state: next lease")?;
        for _ in 0..count(decoder, "log state: leases")? {
            let id = decoder.varint("log state: lease")?;
            if id >= state.next_lease || state.leases.last_key_value().is_some_and(|(&last, _)| last >= id) {
                return Err(UNSORTED);
            }
            state.leases.insert(id, version(decoder, "log state: leased version")?);
        }
        for _ in 0..count(decoder, "log state: tags")? {
            let tag = tag(decoder)?;
            if state.tags.last_key_value().is_some_and(|(&last, _)| last >= tag) {
                return Err(UNSORTED);
            }
            state.tags.insert(tag, version(decoder, "log state: popped version")?);
        }
        state.ids = Ids::decode(decoder, id_floor, state.last)?;
        if format == FORMAT_VERSION {
            let count = count(decoder, "log state: metadata")?;
            if count == 0 {
                return Err(DecodeError { what: "log state: no metadata, in a format that has some" });
            }
            let metadata = Arc::make_mut(&mut state.metadata);
            for _ in 0..count {
                let key = Bytes::copy_from_slice(decoder.bytes("log state: key of metadata")?);
                if metadata.last_key_value().is_some_and(|(last, _)| *last >= key) {
                    return Err(UNSORTED);
                }
                metadata.insert(key, Bytes::copy_from_slice(decoder.bytes("log state: value of metadata")?));
            }
        }
        if state.last < state.horizon || state.last < id_floor {
            return Err(DecodeError { what: "log state: a version above the last" });
        }
        if decoder.is_empty() { Ok(state) } else { Err(DecodeError { what: "log state: bytes behind its end" }) }
    }

    /// Panics if an invariant does not hold. For tests.
    pub fn check(&self) {
        self.ids.check(self.last);
        assert!(self.horizon <= self.last);
        assert!(self.tags.values().all(|&popped| popped <= self.last));
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
mod tests;
