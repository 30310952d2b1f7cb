//! Certifies that a recorded history of transactions was strictly serializable.
//!
//! General checkers (Knossos, Elle) must search for an order, or infer one. Ours is told: every transaction has a read version and, if it wrote, a
//! commit version and a place in its batch. If the order that the database claims does not certify, the database is wrong, whatever other order there might
//! be. That takes O(n log n) and finds phantoms as well as everything else.
//!
//! # What is checked
//! - **a** every read shows exactly the state at its read version, with the transaction's own earlier writes on top;
//! - **b** of a transaction that wrote, nothing that it read was written by another between its read version and its place in the order;
//! - **c** the order respects real time: a read version is at or above every version acknowledged before the transaction began, and
//!   a commit comes after every commit that was acknowledged before it was sent;
//! - **d** a commit whose outcome is unknown happened entirely or not at all, and an aborted one not at all;
//! - **e** the final state of the database is the one that all commits lead to; no two have the same place.
//!
//! # Markers
//! Whether an unknown commit happened must be visible in the data. So each transaction that writes also sets its [`marker`] to its own
//! versionstamp. The final state then says which commits are in, and where.

//! A [`workload`] records such histories; on an [`unreliable`] way to the database answers are lost.

mod replay;
#[cfg(test)]
mod tests;
pub mod unreliable;
pub mod workload;

use std::collections::BTreeMap;
use std::fmt;

use ferrisdb_core::key::printable;
use ferrisdb_core::{Bytes, KeyRange, KeyValue, Mutation, MutationKind, Version, Versionstamp, versionstamp};

use replay::Replay;

/// The prefix of all markers.
pub const MARKER_PREFIX: &[u8] = b"\xfehistory/";

/// A transaction's marker, to be written with every attempt to commit it: a mutation that sets a key of its own to the versionstamp.
pub fn marker(id: u64) -> Mutation {
    let template = [[0; 10].as_slice(), &0u32.to_le_bytes()].concat();
    Mutation::new(MutationKind::SetVersionstampedValue, marker_key(id), template)
}

fn marker_key(id: u64) -> Bytes {
    Bytes::from([MARKER_PREFIX, &id.to_be_bytes()].concat())
}

/// One attempt to run a transaction, from its first call to its end. Retries are attempts of their own, except that a commit which is
/// sent again under the same commit id is the same attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Different from that of every other attempt; decides the marker.
    pub id: u64,
    /// When the read version was asked for, on a clock that all clients share.
    pub began: u64,
    /// When the commit was sent.
    pub sent: u64,
    /// When the outcome was known.
    pub ended: u64,
    /// The version at which it read.
    pub read_version: Version,
    /// What it read.
    pub reads: Vec<Read>,
    /// What it wrote, in order, the marker among it.
    pub mutations: Vec<Mutation>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It wrote nothing, and its reads were answered.
    ReadOnly,
    /// It is durable, at this place in the order.
    Committed {
        /// Its version.
        version: Version,
        /// Its place among those with the same version.
        batch_index: u16,
    },
    /// It did not happen.
    Aborted,
    /// Nobody knows.
    Unknown,
}

/// A read and its result.
#[derive(Debug, Clone)]
pub struct Read {
    /// How many of the attempt's mutations came before it.
    pub after: usize,
    /// A snapshot read: may be overtaken by other commits.
    pub is_snapshot: bool,
    /// What was asked and answered.
    pub what: ReadWhat,
}

/// What a read asked, and its answer.
#[derive(Debug, Clone)]
pub enum ReadWhat {
    /// One key.
    Key {
        /// Which.
        key: Bytes,
        /// Its value.
        value: Option<Bytes>,
    },
    /// All keys in the range: what a limit left unread is not part of it.
    Range {
        /// The part of the range that was read.
        range: KeyRange,
        /// The rows, ascending.
        rows: Vec<KeyValue>,
    },
}

impl ReadWhat {
    fn range(&self) -> KeyRange {
        match self {
            ReadWhat::Key { key, .. } => KeyRange::single(key),
            ReadWhat::Range { range, .. } => range.clone(),
        }
    }
}

/// Why a history is not strictly serializable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A read does not show the state at its read version.
    WrongRead {
        /// By which attempt.
        id: u64,
        /// What was read.
        what: String,
        /// What is right.
        expected: String,
        /// What was answered.
        found: String,
    },
    /// Something that a committed transaction read was changed before its place in the order.
    Overtaken {
        /// The transaction.
        id: u64,
        /// Who changed it.
        by: u64,
        /// What was read and changed.
        range: String,
    },
    /// A transaction that began after a commit was acknowledged reads at a version below it.
    StaleRead {
        /// The transaction.
        id: u64,
        /// Its read version.
        read_version: Version,
        /// Acknowledged before it began.
        acknowledged: Version,
    },
    /// A commit was sent after another was acknowledged and stands before it in the order.
    BackInTime {
        /// The later one.
        id: u64,
        /// The one that it should follow.
        after: u64,
    },
    /// A commit's version is not above its read version.
    CommitBelowRead {
        /// The transaction.
        id: u64,
    },
    /// The marker says that something else happened than the client was told.
    WrongOutcome {
        /// The transaction.
        id: u64,
        /// What the client was told.
        told: Outcome,
        /// What the marker says.
        marker: String,
    },
    /// Two transactions have the same place in the order.
    SamePlace {
        /// One.
        id: u64,
        /// The other.
        other: u64,
    },
    /// The final state is not what the commits lead to.
    WrongEnd {
        /// The first key that differs.
        key: String,
        /// What is right.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::WrongRead { id, what, expected, found } => {
                write!(f, "transaction {id} read {what} and got {found}; at its read version there was {expected}")
            }
            Violation::Overtaken { id, by, range } => {
                write!(f, "transaction {id} committed although {by} had changed {range}, which it had read")
            }
            Violation::StaleRead { id, read_version, acknowledged } => write!(
                f,
                "transaction {id} reads at {read_version}, but {acknowledged} was acknowledged before it began"
            ),
            Violation::BackInTime { id, after } => {
                write!(f, "transaction {id} was sent after {after} was acknowledged, and stands before it in the order")
            }
            Violation::CommitBelowRead { id } => write!(f, "transaction {id} committed at or below its read version"),
            Violation::WrongOutcome { id, told, marker } => {
                write!(f, "transaction {id} was told {told:?}, and its marker says: {marker}")
            }
            Violation::SamePlace { id, other } => {
                write!(f, "transactions {id} and {other} have the same place in the order")
            }
            Violation::WrongEnd { key, expected, found } => {
                write!(f, "in the end the key '{key}' has {found} and should have {expected}")
            }
        }
    }
}

impl std::error::Error for Violation {}

/// What a certificate rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Certificate {
    /// Attempts that happened.
    pub committed: usize,
    /// Among them those whose client never knew.
    pub committed_unknown: usize,
    /// Attempts that did not.
    pub aborted: usize,
    /// Attempts that only read.
    pub read_only: usize,
    /// Reads compared with the replayed state.
    pub reads: usize,
    /// Rows that these reads returned.
    pub rows: usize,
}

/// Certifies a history, given what the database held before it and everything that it holds after it.
///
/// # Errors
/// The first violation found.
///
/// # Panics
/// If the history itself is broken: two attempts with one id, or a committed one without its marker.
pub fn certify(initial: &[KeyValue], attempts: &[Attempt], end: &[KeyValue]) -> Result<Certificate, Violation> {
    let mut certificate = Certificate::default();
    let places = places(attempts, end, &mut certificate)?;
    let order = in_order(attempts, &places)?;
    let mut replay = Replay::new(initial);
    for &index in &order {
        let (version, batch_index) = places[&attempts[index].id];
        replay.apply(&attempts[index].mutations, version, batch_index);
    }
    for attempt in attempts {
        // What an aborted attempt read was right all the same.
        for read in &attempt.reads {
            check_read(&replay, attempt, read, &mut certificate)?;
        }
    }
    check_overtaken(attempts, &order, &places)?;
    check_real_time(attempts, &places)?;
    check_end(&replay, end)?;
    Ok(certificate)
}

type Places = BTreeMap<u64, (Version, u16)>;

/// The place of everything that happened, from what clients were told and from the markers (checks d).
fn places(attempts: &[Attempt], end: &[KeyValue], certificate: &mut Certificate) -> Result<Places, Violation> {
    let markers: BTreeMap<&[u8], &[u8]> = end
        .iter()
        .filter(|row| row.key.starts_with(MARKER_PREFIX))
        .map(|row| (row.key.as_ref(), row.value.as_ref()))
        .collect();
    let mut places = Places::new();
    for attempt in attempts {
        let id = attempt.id;
        let key = marker_key(id);
        if attempt.outcome == Outcome::ReadOnly {
            assert!(attempt.mutations.is_empty(), "attempt {id} wrote something");
            certificate.read_only += 1;
            continue;
        }
        assert!(attempt.mutations.iter().any(|mutation| mutation.key == key), "attempt {id} has no marker");
        let marker = markers.get(key.as_ref()).map(|stamp| {
            let (version, batch_index) = stamp.split_at_checked(8).unwrap_or_default();
            let version = <[u8; 8]>::try_from(version).ok().map(u64::from_be_bytes).and_then(Version::new);
            let batch_index = <[u8; 2]>::try_from(batch_index).ok().map(u16::from_be_bytes);
            version.zip(batch_index)
        });
        let wrong = |marker: &dyn fmt::Debug| Violation::WrongOutcome {
            id,
            told: attempt.outcome,
            marker: format!("{marker:?}"),
        };
        let place = match (attempt.outcome, marker) {
            (Outcome::Aborted | Outcome::Unknown, None) => {
                certificate.aborted += 1;
                continue;
            }
            (Outcome::Committed { version, batch_index }, Some(Some(place))) if place == (version, batch_index) => {
                place
            }
            (Outcome::Unknown, Some(Some(place))) => {
                certificate.committed_unknown += 1;
                place
            }
            (_, marker) => return Err(wrong(&marker)),
        };
        certificate.committed += 1;
        if place.0 <= attempt.read_version {
            return Err(Violation::CommitBelowRead { id });
        }
        assert!(places.insert(id, place).is_none(), "two attempts have the id {id}");
    }
    Ok(places)
}

/// The indexes of what happened, in the order of their places.
fn in_order(attempts: &[Attempt], places: &Places) -> Result<Vec<usize>, Violation> {
    let mut order: Vec<usize> = (0..attempts.len()).filter(|&index| places.contains_key(&attempts[index].id)).collect();
    order.sort_by_key(|&index| places[&attempts[index].id]);
    for pair in order.windows(2) {
        let (id, other) = (attempts[pair[0]].id, attempts[pair[1]].id);
        if places[&id] == places[&other] {
            return Err(Violation::SamePlace { id, other });
        }
    }
    Ok(order)
}

/// Check a.
fn check_read(replay: &Replay, attempt: &Attempt, read: &Read, certificate: &mut Certificate) -> Result<(), Violation> {
    let range = read.what.range();
    let expected = replay.range(&range, attempt.read_version, &attempt.mutations[..read.after]);
    let found: Vec<KeyValue> = match &read.what {
        ReadWhat::Key { key, value } => {
            value.iter().map(|value| KeyValue { key: key.clone(), value: value.clone() }).collect()
        }
        ReadWhat::Range { rows, .. } => rows.clone(),
    };
    certificate.reads += 1;
    certificate.rows += found.len();
    if expected == found {
        return Ok(());
    }
    Err(Violation::WrongRead {
        id: attempt.id,
        what: show_range(&range),
        expected: show_rows(&expected),
        found: show_rows(&found),
    })
}

/// Check b.
fn check_overtaken(attempts: &[Attempt], order: &[usize], places: &Places) -> Result<(), Violation> {
    let writes: Vec<Vec<KeyRange>> =
        order.iter().map(|&index| written(&attempts[index].mutations, places[&attempts[index].id])).collect();
    for (rank, &index) in order.iter().enumerate() {
        let attempt = &attempts[index];
        let reads: Vec<KeyRange> =
            attempt.reads.iter().filter(|read| !read.is_snapshot).map(|read| read.what.range()).collect();
        let first = order.partition_point(|&other| places[&attempts[other].id].0 <= attempt.read_version);
        for other in first..rank {
            for read in &reads {
                // What an attempt had written itself before it read is still counted as read: a workload that minds reads first.
                if writes[other].iter().any(|write| write.intersects(read)) {
                    let by = attempts[order[other]].id;
                    return Err(Violation::Overtaken { id: attempt.id, by, range: show_range(read) });
                }
            }
        }
    }
    Ok(())
}

/// Check c.
fn check_real_time(attempts: &[Attempt], places: &Places) -> Result<(), Violation> {
    // By the time of their acknowledgement, with the greatest place so far.
    let mut acknowledged: Vec<(u64, (Version, u16), u64)> = attempts
        .iter()
        .filter(|attempt| matches!(attempt.outcome, Outcome::Committed { .. }))
        .map(|attempt| (attempt.ended, places[&attempt.id], attempt.id))
        .collect();
    acknowledged.sort_unstable();
    for at in 1..acknowledged.len() {
        if acknowledged[at].1 < acknowledged[at - 1].1 {
            (acknowledged[at].1, acknowledged[at].2) = (acknowledged[at - 1].1, acknowledged[at - 1].2);
        }
    }
    let before = |time: u64| {
        let count = acknowledged.partition_point(|(ended, _, _)| *ended < time);
        count.checked_sub(1).map(|last| (acknowledged[last].1, acknowledged[last].2))
    };
    for attempt in attempts {
        if let Some(((version, _), _)) = before(attempt.began)
            && attempt.read_version < version
        {
            let (id, read_version) = (attempt.id, attempt.read_version);
            return Err(Violation::StaleRead { id, read_version, acknowledged: version });
        }
        if let Some(&place) = places.get(&attempt.id)
            && let Some((newest, after)) = before(attempt.sent)
            && place < newest
        {
            return Err(Violation::BackInTime { id: attempt.id, after });
        }
    }
    Ok(())
}

/// Check e.
fn check_end(replay: &Replay, end: &[KeyValue]) -> Result<(), Violation> {
    let expected = replay.range(&KeyRange::new(Bytes::new(), Bytes::from_static(b"\xff")), Version::MAX, &[]);
    let expected: BTreeMap<&Bytes, &Bytes> = expected.iter().map(|row| (&row.key, &row.value)).collect();
    let found: BTreeMap<&Bytes, &Bytes> = end.iter().map(|row| (&row.key, &row.value)).collect();
    let keys = expected.keys().chain(found.keys());
    let Some(key) = keys.filter(|key| expected.get(*key) != found.get(*key)).min() else { return Ok(()) };
    let show = |value: Option<&&Bytes>| value.map_or("no value".to_owned(), |value| format!("'{}'", printable(value)));
    Err(Violation::WrongEnd { key: printable(key), expected: show(expected.get(key)), found: show(found.get(key)) })
}

/// The ranges that mutations write.
fn written(mutations: &[Mutation], (version, batch_index): (Version, u16)) -> Vec<KeyRange> {
    let stamp = Versionstamp::new(version, batch_index);
    mutations
        .iter()
        .map(|mutation| match mutation.kind {
            MutationKind::ClearRange => KeyRange::new(mutation.key.clone(), mutation.value.clone()),
            MutationKind::SetVersionstampedKey => {
                let key = versionstamp::fill(&mutation.key, stamp).expect("the client checked the template");
                KeyRange::single(&key)
            }
            _ => KeyRange::single(&mutation.key),
        })
        .collect()
}

fn show_range(range: &KeyRange) -> String {
    format!("'{}'..'{}'", printable(&range.begin), printable(&range.end))
}

fn show_rows(rows: &[KeyValue]) -> String {
    const SHOWN_MAX: usize = 8;
    let mut shown: Vec<String> =
        rows.iter().take(SHOWN_MAX).map(|row| format!("{}={}", printable(&row.key), printable(&row.value))).collect();
    if rows.len() > SHOWN_MAX {
        shown.push(format!("... {} rows", rows.len()));
    }
    format!("[{}]", shown.join(", "))
}
