//! The consensus library's types, filled in for us, and their bytes on disk and wire.
//!
//! Standard Raft: one leader a term, so a place in the log is (term, index).
//!
//! # Format (version 1; numbers are varints unless said otherwise)
//! ```text
//! log id        term, index
//! option of x   u8: 0 none, 1 then x
//! vote          term, process, u8 committed (0 or 1)
//! entry         log id, u8 payload: 0 blank
//!                                   1 proposal: entries of our log: count, then each: bytes (see log/entry.rs)
//!                                   2 membership
//! membership    configurations (one, or two while it changes): count, then of each: voters: count, each;
//!               processes: count, then of each: process, bytes address, bytes zone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ferrisdb_core::Bytes;
use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use openraft::alias::{CommittedLeaderIdOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership, StoredMembership};

use super::super::entry::{Entry, count};
use super::super::state::Applied;
use super::runtime::RaftRuntime;

/// A process of the cluster, never numbered again.
pub type ProcessId = u64;

/// Where a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Host and port.
    pub address: String,
    /// The zone that it fails with; empty if nobody said.
    pub zone: String,
}

/// A place in the log: term, then index. Places are in the order of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The term of whoever appended it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// What of the log a replica has. Nothing is all zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The term in which it voted last, durably: never goes down, whatever happens to the process.
    pub voted: u64,
    /// What it has durably and knows to be committed: nothing below it is ever cut off again.
    pub held: Place,
    /// The last entry. What is above `held` may still be lost, or cut off.
    pub last: Place,
}

/// Entries that are proposed together: one place in the log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proposal(pub Arc<Vec<Entry>>);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.0.len())
    }
}

/// What became of a proposal: void if any of its entries was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome(pub Applied);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

openraft::declare_raft_types!(
    /// The library's types.
    pub(super) Types:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = RaftRuntime,
);

/// A place in the log.
pub(super) type LogId = LogIdOf<Types>;
/// A vote, which is also who leads in which term.
pub(super) type Vote = VoteOf<Types>;
/// An entry as the library sees it.
pub(super) type RaftLogEntry = openraft::alias::EntryOf<Types>;
/// The members, and where in the log that was said.
pub(super) type Members = StoredMembership<CommittedLeaderIdOf<Types>, u64, Peer>;
/// Who belongs to the log, as voter or learner.
pub(super) type Membered = Membership<u64, Peer>;

/// The place `index` of `term`.
pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(leader_id_std::LeaderId { term, voted_for: 0 }.to_committed(), index)
}

/// A place's term.
pub(super) fn term_of(id: &LogId) -> u64 {
    *id.leader_id
}

pub(super) fn place(id: &LogId) -> Place {
    Place { term: term_of(id), index: id.index }
}

pub(super) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    put_varint(out, term_of(id));
    put_varint(out, id.index);
}

pub(super) fn take_log_id(decoder: &mut Decoder<'_>) -> Result<LogId, DecodeError> {
    let term = decoder.varint("log id: term")?;
    Ok(log_id(term, decoder.varint("log id: index")?))
}

/// Appends an optional thing.
pub(super) fn put_option<T>(out: &mut Vec<u8>, option: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    match option {
        None => out.push(0),
        Some(thing) => {
            out.push(1);
            put(out, thing);
        }
    }
}

pub(super) fn take_option<T>(
    decoder: &mut Decoder<'_>,
    take: impl FnOnce(&mut Decoder<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    Ok(if take_bool(decoder, "an option")? { Some(take(decoder)?) } else { None })
}

pub(super) fn take_bool(decoder: &mut Decoder<'_>, what: &'static str) -> Result<bool, DecodeError> {
    match decoder.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError { what }),
    }
}

pub(super) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    put_varint(out, vote.leader_id.term);
    put_varint(out, vote.leader_id.voted_for);
    out.push(u8::from(vote.committed));
}

pub(super) fn take_vote(decoder: &mut Decoder<'_>) -> Result<Vote, DecodeError> {
    let term = decoder.varint("vote: term")?;
    let voted_for = decoder.varint("vote: process")?;
    let committed = take_bool(decoder, "vote: committed")?;
    Ok(Vote { leader_id: leader_id_std::LeaderId { term, voted_for }, committed })
}

pub(super) fn put_entry(out: &mut Vec<u8>, entry: &RaftLogEntry) {
    put_log_id(out, &entry.log_id());
    match &entry.payload {
        EntryPayload::Blank => out.push(0),
        EntryPayload::Normal(proposal) => {
            out.push(1);
            put_varint(out, proposal.0.len() as u64);
            let mut bytes = Vec::new();
            for entry in proposal.0.iter() {
                bytes.clear();
                entry.encode(&mut bytes);
                put_bytes(out, &bytes);
            }
        }
        EntryPayload::Membership(membership) => {
            out.push(2);
            put_membership(out, membership);
        }
    }
}

/// The entry that comes next in `decoder`, which reads from `all`: keys and values are slices of it.
pub(super) fn take_entry(all: &Bytes, decoder: &mut Decoder<'_>) -> Result<RaftLogEntry, DecodeError> {
    let id = take_log_id(decoder)?;
    let payload = match decoder.u8("raft entry: payload")? {
        0 => EntryPayload::Blank,
        1 => {
            let count = count(decoder, "proposal: entries")?;
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                entries.push(Entry::decode(&all.slice_ref(decoder.bytes("proposal: entry")?))?);
            }
            EntryPayload::Normal(Proposal(Arc::new(entries)))
        }
        2 => EntryPayload::Membership(take_membership(decoder)?),
        _ => return Err(DecodeError { what: "raft entry: an unknown payload" }),
    };
    Ok(RaftLogEntry::new(id, payload))
}

pub(super) fn put_membership(out: &mut Vec<u8>, membership: &Membered) {
    let configs = membership.get_joint_config();
    put_varint(out, configs.len() as u64);
    for voters in configs {
        put_varint(out, voters.len() as u64);
        voters.iter().for_each(|&voter| put_varint(out, voter));
    }
    let nodes: Vec<_> = membership.nodes().collect();
    put_varint(out, nodes.len() as u64);
    for (&process, peer) in nodes {
        put_varint(out, process);
        put_bytes(out, peer.address.as_bytes());
        put_bytes(out, peer.zone.as_bytes());
    }
}

pub(super) fn take_membership(decoder: &mut Decoder<'_>) -> Result<Membered, DecodeError> {
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError { what: "membership: a text that is not UTF-8" })
    };
    let config_count = count(decoder, "membership: configurations")?;
    let mut configs = Vec::with_capacity(config_count);
    for _ in 0..config_count {
        let voter_count = count(decoder, "membership: voters")?;
        let mut voters = BTreeSet::new();
        for _ in 0..voter_count {
            voters.insert(decoder.varint("membership: voter")?);
        }
        configs.push(voters);
    }
    let node_count = count(decoder, "membership: processes")?;
    let mut nodes = BTreeMap::new();
    for _ in 0..node_count {
        let process = decoder.varint("membership: process")?;
        let address = text(decoder.bytes("membership: address")?)?;
        let zone = text(decoder.bytes("membership: zone")?)?;
        nodes.insert(process, Peer { address, zone });
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membered::default());
    }
    Membered::new(configs, nodes).map_err(|_| DecodeError { what: "membership: a voter that is no process" })
}

pub(super) fn put_members(out: &mut Vec<u8>, members: &Members) {
    put_option(out, members.log_id().as_ref(), put_log_id);
    put_membership(out, members.membership());
}

pub(super) fn take_members(decoder: &mut Decoder<'_>) -> Result<Members, DecodeError> {
    let id = take_option(decoder, take_log_id)?;
    Ok(Members::new(id, take_membership(decoder)?))
}
