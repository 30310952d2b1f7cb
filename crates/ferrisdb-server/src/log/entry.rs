//! The bytes of the log's entries: [`Entry`].
//!
//! An entry is what the log orders. It is opaque to the WAL and to a consensus library, and is the same in every deployment.
//!
//! # Format (version 1; numbers are varints unless said otherwise)
//! ```text
//! every entry   u8 format version, u8 kind, then by kind:
//! 1 EpochStart  epoch, owner (16 bytes), process, first version
//! 2 Batch       epoch, owner (16 bytes), previous version, version, horizon,
//!               leased versions: count, then each one's distance from the one before (the first: from zero)
//!               directory: sections: count, then of each: tags: count, each; mutations; bytes
//!                          metadata: mutations, bytes
//!                          commit ids: count
//!               the sections' mutations, the metadata mutations: each u8 kind, bytes key, bytes value
//!               commit ids: each u64 client, counter, lowest unanswered counter, u8 outcome (0 aborted; 1 committed, then batch index)
//! 3 Pop         tag, version
//! 4 Lease       u8 change (0 grant, then id, version; 1 renew, then id; 2 end, then id)
//! 5 Membership  reserved for the replicated log, which defines it: refused by this build
//! 6 Foundation  a log's state (see state.rs)
//! ```
//! The directory comes first so that a reader of one tag skips the sections of others without decoding them.

use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_u64, put_varint};
use ferrisdb_core::{Bytes, Mutation, MutationKind, Version};
use ferrisdb_rpc::api::CommitId;

use super::state::State;

/// What this build writes, and the newest that it reads.
const FORMAT_VERSION: u8 = 1;

const KIND_EPOCH_START: u8 = 1;
const KIND_BATCH: u8 = 2;
const KIND_POP: u8 = 3;
const KIND_LEASE: u8 = 4;
const KIND_FOUNDATION: u8 = 6;

/// Whose mutations: each storage server has one, never used again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

impl Tag {
    /// The tag of the storage server of a database in one process.
    pub const FIRST: Tag = Tag(0);
}

/// Sixteen fresh random bytes that a coordinator picks when it starts: two coordinators never have the same, whatever epoch they think it is.
pub type Owner = [u8; 16];

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A coordinator takes over.
    EpochStart(EpochStart),
    /// Transactions commit.
    Batch(Batch),
    /// A storage server needs no more of what came before.
    Pop(Pop),
    /// A version is kept readable, or no more.
    Lease(LeaseChange),
    /// A log goes on where another one ended. Counts only as the very first entry.
    Foundation(Box<State>),
}

/// A coordinator takes over. Counts only if its epoch is above the current one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochStart {
    /// Above every epoch before.
    pub epoch: u64,
    /// The coordinator.
    pub owner: Owner,
    /// The process where it runs.
    pub process: u64,
    /// An empty batch at this version; all later versions are above.
    pub first_version: Version,
}

/// Transactions that commit at one version. Counts only if epoch and owner are current, and `previous` is the last version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The proposer's epoch.
    pub epoch: u64,
    /// The proposer.
    pub owner: Owner,
    /// The version of the batch before this one.
    pub previous: Version,
    /// This batch's version.
    pub version: Version,
    /// Versions below this, but for the leased ones, need not be readable any more.
    pub horizon: Version,
    /// Versions that are kept readable, ascending.
    pub leased: Arc<[Version]>,
    /// Mutations, by who needs them.
    pub sections: Vec<Section>,
    /// Mutations of the metadata.
    pub metadata: Vec<Mutation>,
    /// What became of commits that carry an id.
    pub ids: Vec<IdOutcome>,
}

/// The mutations that one set of storage servers needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The set, ascending, not empty.
    pub tags: Vec<Tag>,
    /// The mutations, in order.
    pub mutations: Vec<Mutation>,
}

/// What became of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdOutcome {
    /// Which commit.
    pub id: CommitId,
    /// The client needs no outcome of a counter below this any more.
    pub lowest_unanswered: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a commit; the version is the batch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen, and will not: its client asked for the outcome before the commit itself came, if it ever does.
    Aborted,
    /// It happened.
    Committed {
        /// As which transaction of the batch.
        batch_index: u16,
    },
}

/// All batches up to a version are durable where the tag's mutations belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pop {
    /// Whose.
    pub tag: Tag,
    /// Up to which version.
    pub version: Version,
}

/// A change of the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// A lease begins.
    Grant {
        /// Its number, never used before.
        id: u64,
        /// What it keeps readable.
        version: Version,
    },
    /// A lease runs its full term again; terms are the coordinator's to measure.
    Renew {
        /// Its number.
        id: u64,
    },
    /// A lease ends.
    End {
        /// Its number.
        id: u64,
    },
}

impl Entry {
    /// Appends the entry's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT_VERSION);
        match self {
            Entry::EpochStart(start) => {
                out.push(KIND_EPOCH_START);
                put_varint(out, start.epoch);
                out.extend_from_slice(&start.owner);
                put_varint(out, start.process);
                put_version(out, start.first_version);
            }
            Entry::Batch(batch) => {
                out.push(KIND_BATCH);
                batch.encode(out);
            }
            Entry::Pop(pop) => {
                out.push(KIND_POP);
                put_varint(out, u64::from(pop.tag.0));
                put_version(out, pop.version);
            }
            Entry::Foundation(state) => {
                out.push(KIND_FOUNDATION);
                state.encode(out);
            }
            Entry::Lease(change) => {
                out.push(KIND_LEASE);
                match *change {
                    LeaseChange::Grant { id, version } => {
                        out.push(0);
                        put_varint(out, id);
                        put_version(out, version);
                    }
                    LeaseChange::Renew { id } => {
                        out.push(1);
                        put_varint(out, id);
                    }
                    LeaseChange::End { id } => {
                        out.push(2);
                        put_varint(out, id);
                    }
                }
            }
        }
    }

    /// The entry in `bytes`, all of them. Keys and values are slices of `bytes`.
    ///
    /// # Errors
    /// What is wrong, if it is not exactly one whole entry of a format that this build knows.
    pub fn decode(bytes: &Bytes) -> Result<Entry, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u8("log entry: format version")? != FORMAT_VERSION {
            return Err(DecodeError { what: "log entry: a format version that this build does not know" });
        }
        let entry = match decoder.u8("log entry: kind")? {
            KIND_EPOCH_START => Entry::EpochStart(EpochStart {
                epoch: decoder.varint("epoch start: epoch")?,
                owner: owner(&mut decoder)?,
                process: decoder.varint("epoch start: process")?,
                first_version: version(&mut decoder, "epoch start: first version")?,
            }),
            KIND_BATCH => Entry::Batch(Batch::decode(bytes, &mut decoder)?),
            KIND_POP => Entry::Pop(Pop { tag: tag(&mut decoder)?, version: version(&mut decoder, "pop: version")? }),
            KIND_LEASE => Entry::Lease(match decoder.u8("lease: change")? {
                0 => LeaseChange::Grant {
                    id: decoder.varint("lease: id")?,
                    version: version(&mut decoder, "lease: version")?,
                },
                1 => LeaseChange::Renew { id: decoder.varint("lease: id")? },
                2 => LeaseChange::End { id: decoder.varint("lease: id")? },
                _ => return Err(DecodeError { what: "lease: an unknown change" }),
            }),
            KIND_FOUNDATION => {
                let state = decoder.take(decoder.rest().len(), "foundation: state")?;
                Entry::Foundation(Box::new(State::decode(state)?))
            }
            _ => return Err(DecodeError { what: "log entry: an unknown kind" }),
        };
        if decoder.is_empty() { Ok(entry) } else { Err(DecodeError { what: "log entry: bytes behind its end" }) }
    }
}

impl Batch {
    /// Bytes of its mutations.
    pub fn mutation_bytes(&self) -> usize {
        self.sections.iter().flat_map(|section| &section.mutations).map(Mutation::bytes).sum()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.epoch);
        out.extend_from_slice(&self.owner);
        put_version(out, self.previous);
        put_version(out, self.version);
        put_version(out, self.horizon);
        put_ascending(out, &self.leased);
        put_varint(out, self.sections.len() as u64);
        for section in &self.sections {
            put_varint(out, section.tags.len() as u64);
            section.tags.iter().for_each(|tag| put_varint(out, u64::from(tag.0)));
            put_varint(out, section.mutations.len() as u64);
            put_varint(out, mutations_len(&section.mutations) as u64);
        }
        put_varint(out, self.metadata.len() as u64);
        put_varint(out, mutations_len(&self.metadata) as u64);
        put_varint(out, self.ids.len() as u64);
        let mutations = self.sections.iter().map(|section| &section.mutations).chain([&self.metadata]);
        for mutation in mutations.flatten() {
            out.push(mutation.kind.number());
            put_bytes(out, &mutation.key);
            put_bytes(out, &mutation.value);
        }
        for IdOutcome { id, lowest_unanswered, outcome } in &self.ids {
            put_u64(out, id.client);
            put_varint(out, id.counter);
            put_varint(out, *lowest_unanswered);
            put_outcome(out, *outcome);
        }
    }

    fn decode(all: &Bytes, decoder: &mut Decoder<'_>) -> Result<Batch, DecodeError> {
        let epoch = decoder.varint("batch: epoch")?;
        let owner = owner(decoder)?;
        let previous = version(decoder, "batch: previous version")?;
        let own = version(decoder, "batch: version")?;
        let horizon = version(decoder, "batch: horizon")?;
        if own <= previous || horizon > previous {
            return Err(DecodeError { what: "batch: versions out of order" });
        }
        let leased = ascending(decoder)?.into();
        let section_count = count(decoder, "batch: sections")?;
        let mut directory = Vec::with_capacity(section_count);
        for _ in 0..section_count {
            let tag_count = count(decoder, "batch: tags")?;
            let tags = (0..tag_count).map(|_| tag(decoder)).collect::<Result<Vec<_>, _>>()?;
            if tags.is_empty() || !tags.is_sorted_by(|a, b| a < b) {
                return Err(DecodeError { what: "batch: a section's tags are not a sorted set" });
            }
            directory.push((tags, decoder.varint_usize("batch: mutations")?, decoder.varint_usize("batch: bytes")?));
        }
        let metadata_count = decoder.varint_usize("batch: metadata mutations")?;
        let metadata_len = decoder.varint_usize("batch: metadata bytes")?;
        let id_count = count(decoder, "batch: commit ids")?;
        let mut sections = Vec::with_capacity(section_count);
        for (tags, count, len) in directory {
            sections.push(Section { tags, mutations: mutations(all, decoder, count, len)? });
        }
        let metadata = mutations(all, decoder, metadata_count, metadata_len)?;
        let mut ids = Vec::with_capacity(id_count);
        for _ in 0..id_count {
            let client = decoder.u64("commit id: client")?;
            let counter = decoder.varint("commit id: counter")?;
            let lowest_unanswered = decoder.varint("commit id: lowest unanswered counter")?;
            let outcome = outcome(decoder)?;
            ids.push(IdOutcome { id: CommitId { client, counter }, lowest_unanswered, outcome });
        }
        Ok(Batch { epoch, owner, previous, version: own, horizon, leased, sections, metadata, ids })
    }
}

pub(super) fn put_version(out: &mut Vec<u8>, version: Version) {
    put_varint(out, version.get());
}

pub(super) fn version(decoder: &mut Decoder<'_>, what: &'static str) -> Result<Version, DecodeError> {
    Version::new(decoder.varint(what)?).ok_or(DecodeError { what })
}

pub(super) fn owner(decoder: &mut Decoder<'_>) -> Result<Owner, DecodeError> {
    let (low, high) = (decoder.u64("owner")?, decoder.u64("owner")?);
    let mut owner = [0; 16];
    owner[..8].copy_from_slice(&low.to_le_bytes());
    owner[8..].copy_from_slice(&high.to_le_bytes());
    Ok(owner)
}

pub(super) fn tag(decoder: &mut Decoder<'_>) -> Result<Tag, DecodeError> {
    u32::try_from(decoder.varint("tag")?).map(Tag).map_err(|_| DecodeError { what: "tag" })
}

/// A count of things of at least one byte each: never more than there are bytes, so that room for them may be reserved.
pub(crate) fn count(decoder: &mut Decoder<'_>, what: &'static str) -> Result<usize, DecodeError> {
    let count = decoder.varint_usize(what)?;
    if count <= decoder.rest().len() { Ok(count) } else { Err(DecodeError { what }) }
}

pub(super) fn put_outcome(out: &mut Vec<u8>, outcome: Outcome) {
    match outcome {
        Outcome::Aborted => out.push(0),
        Outcome::Committed { batch_index } => {
            out.push(1);
            put_varint(out, u64::from(batch_index));
        }
    }
}

pub(super) fn outcome(decoder: &mut Decoder<'_>) -> Result<Outcome, DecodeError> {
    let what = "commit id: outcome";
    Ok(match decoder.u8(what)? {
        0 => Outcome::Aborted,
        1 => {
            let batch_index = u16::try_from(decoder.varint(what)?).map_err(|_| DecodeError { what })?;
            Outcome::Committed { batch_index }
        }
        _ => return Err(DecodeError { what }),
    })
}

pub(super) fn put_ascending(out: &mut Vec<u8>, versions: &[Version]) {
    put_varint(out, versions.len() as u64);
    let mut before = 0;
    for version in versions {
        put_varint(out, version.get() - before);
        before = version.get();
    }
}

pub(super) fn ascending(decoder: &mut Decoder<'_>) -> Result<Vec<Version>, DecodeError> {
    let what = "leased versions";
    let count = count(decoder, what)?;
    let mut versions = Vec::with_capacity(count);
    let mut before = 0u64;
    for index in 0..count {
        let distance = decoder.varint(what)?;
        if distance == 0 && index > 0 {
            return Err(DecodeError { what });
        }
        before = before.checked_add(distance).ok_or(DecodeError { what })?;
        versions.push(Version::new(before).ok_or(DecodeError { what })?);
    }
    Ok(versions)
}

fn mutations_len(mutations: &[Mutation]) -> usize {
    let bytes_len = |bytes: &Bytes| ferrisdb_core::codec::varint_len(bytes.len() as u64) + bytes.len();
    mutations.iter().map(|mutation| 1 + bytes_len(&mutation.key) + bytes_len(&mutation.value)).sum()
}

fn mutations(all: &Bytes, decoder: &mut Decoder<'_>, count: usize, len: usize) -> Result<Vec<Mutation>, DecodeError> {
    let section = decoder.take(len, "batch: a section's bytes")?;
    let mut decoder = Decoder::new(section);
    // A mutation has at least three bytes: its kind, and two lengths.
    if count > len / 3 {
        return Err(DecodeError { what: "batch: more mutations than their bytes can hold" });
    }
    let mut mutations = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = decoder.u8("mutation: kind")?;
        let kind = MutationKind::from_number(kind).ok_or(DecodeError { what: "mutation: an unknown kind" })?;
        let key = all.slice_ref(decoder.bytes("mutation: key")?);
        let value = all.slice_ref(decoder.bytes("mutation: value")?);
        mutations.push(Mutation { kind, key, value });
    }
    if decoder.is_empty() {
        Ok(mutations)
    } else {
        Err(DecodeError { what: "batch: bytes behind a section's mutations" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    fn v(number: u64) -> Version {
        Version::from_u64(number)
    }

    fn examples() -> Vec<Entry> {
        let owner = *b"0123456789abcdef";
        let batch = Batch {
            epoch: 3,
            owner,
            previous: v(1000),
            version: v(1300),
            horizon: v(7),
            leased: [v(2), v(5)].into(),
            sections: vec![
                Section { tags: vec![Tag(0)], mutations: vec![Mutation::set(&b"k"[..], &b"v"[..])] },
                Section { tags: vec![Tag(0), Tag(300)], mutations: vec![Mutation::clear_range(&b"a"[..], &b"b"[..])] },
            ],
            metadata: vec![],
            ids: vec![
                IdOutcome {
                    id: CommitId { client: 0x0102, counter: 9 },
                    lowest_unanswered: 8,
                    outcome: Outcome::Committed { batch_index: 1 },
                },
                IdOutcome { id: CommitId { client: 1, counter: 1 }, lowest_unanswered: 1, outcome: Outcome::Aborted },
            ],
        };
        vec![
            Entry::EpochStart(EpochStart { epoch: 3, owner, process: 5, first_version: v(100_000_000) }),
            Entry::Batch(batch),
            Entry::Pop(Pop { tag: Tag(0), version: v(300) }),
            Entry::Lease(LeaseChange::Grant { id: 4, version: v(300) }),
            Entry::Lease(LeaseChange::Renew { id: 4 }),
            Entry::Lease(LeaseChange::End { id: 4 }),
            Entry::Foundation(Box::new(State::new(&[Tag(2)]))),
        ]
    }

    fn encode(entry: &Entry) -> Bytes {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        bytes.into()
    }

    /// If this fails, the format has changed: that is a new format version, and the old one is still to be read.
    #[test]
    fn the_bytes_are_these() {
        let hex = |entry: &Entry| encode(entry).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found: Vec<String> = examples().iter().map(hex).collect();
        let owner = "30313233343536373839616263646566";
        // Epoch, owner, versions, leases; directory; mutations; commit ids.
        let batch = format!(
            "010203{owner}e807 940a 07 02 02 03 \
             02 01 00 01 05 02 00 ac02 01 05 00 00 02 00 01 6b 01 76 01 01 61 01 62 \
             0201000000000000 09 08 01 01 0100000000000000 01 01 00"
        );
        let expected = [
            format!("010103{owner}0580c2d72f"),
            batch.replace(' ', ""),
            "010300ac02".to_owned(),
            "01040004ac02".to_owned(),
            "01040104".to_owned(),
            "01040204".to_owned(),
            format!("010601 00 {} 00 00 00 01 00 01 02 00 00 00", "00".repeat(16)).replace(' ', ""),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_written_is_read() {
        for entry in examples() {
            assert_eq!(Entry::decode(&encode(&entry)), Ok(entry));
        }
    }

    /// Cut, lengthened and changed at random, an entry is refused or is another entry, and never makes the decoder panic.
    #[test]
    fn damaged_bytes_are_refused_or_are_another_entry() {
        let mut random = SplitMix64::new(11);
        for entry in examples() {
            let bytes = encode(&entry);
            for len in 0..bytes.len() {
                assert!(Entry::decode(&bytes.slice(..len)).is_err(), "cut to {len}");
            }
            for _ in 0..20_000 {
                let mut changed = bytes.to_vec();
                for _ in 0..=random.below(3) {
                    let at = random.below(changed.len() as u64) as usize;
                    match random.below(4) {
                        0 => changed[at] = random.next_u64() as u8,
                        1 => changed[at] ^= 1 << random.below(8),
                        2 => changed.insert(at, random.next_u64() as u8),
                        _ => drop(changed.remove(at)),
                    }
                    if changed.is_empty() {
                        break;
                    }
                }
                if let Ok(other) = Entry::decode(&changed.clone().into()) {
                    assert!(Entry::decode(&encode(&other)) == Ok(other), "what is accepted can be written again");
                }
            }
        }
    }
}
