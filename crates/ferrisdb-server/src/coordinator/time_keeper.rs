//! The time keeper: writes down which version there was at which time of day, for programs that look for "the database as of yesterday noon".
//!
//! ```text
//! \xff\x02/timeKeeper/map/ tuple (seconds since 1970)  ->  tuple (version)
//! ```
//!
//! Keys and values are those of FoundationDB, whose programs read them with the option `read_system_keys`. Every ten seconds the coordinator commits such a pair like any
//! client, but also while the database is locked; not if nothing has happened since the last one, so that an idle database stays idle: the newest entry at or before a time
//! still has the version whose data was there at that time. Entries are kept for thirty days, which is 259,200 at the most, some 15 MB.
//!
//! The time is what the machine that coordinates believes it is. It may jump, and an entry may replace another one of the same second: nothing is decided by these.

use std::time::Duration;

use ferrisdb_core::{Bytes, Clock, KeyRange, Mutation, MutationKind, Runtime};
use ferrisdb_rpc::api::{CommitRequest, Committed};

use super::{Coordinator, Shared};

/// What the keys begin with.
const PREFIX: &[u8] = b"\xff\x02/timeKeeper/map/";
/// How often an entry is written.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long an entry is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Once in so many entries those that are too old are cleared, an hour's worth at once: a range that is cleared costs readers a little.
const CLEARED_AFTER: u64 = 360;

/// Until the coordinator is closed.
pub(super) async fn run(coordinator: Coordinator) {
    let shared = &coordinator.shared;
    let mut last = shared.log.last_known();
    let mut entries = 0;
    while shared.closing.unless_set(shared.runtime.sleep(INTERVAL)).await.is_some() {
        if shared.log.last_known() <= last {
            continue;
        }
        let request = entry(shared, entries % CLEARED_AFTER == 0);
        // What does not go well has no entry: the next one is soon enough. A commit ends when the coordinator does.
        if let Ok(committed) = coordinator.commit(request).await {
            last = match committed {
                Committed::At { version, .. } => version,
                Committed::Conflict { .. } => unreachable!("it has read nothing"),
            };
            entries += 1;
        }
    }
}

fn entry(shared: &Shared, clears: bool) -> CommitRequest {
    let (now, version) = (shared.runtime.unix_time(), shared.log.last_known());
    let mut mutations = vec![Mutation::set(key_at(now), tuple(version.get()))];
    if clears {
        mutations.push(Mutation::clear_range(key_at(Duration::ZERO), key_at(now.saturating_sub(KEPT))));
    }
    CommitRequest {
        read_version: version,
        read_conflicts: Vec::new(),
        write_conflicts: conflicts(&mutations),
        mutations,
        id: None,
        lowest_unanswered: 0,
        report_conflicting_keys: false,
        begins: None,
        lock_aware: true,
    }
}

/// What is written, for transactions that read it.
fn conflicts(mutations: &[Mutation]) -> Vec<KeyRange> {
    let mut ranges: Vec<KeyRange> = mutations
        .iter()
        .map(|mutation| match mutation.kind {
            MutationKind::ClearRange => KeyRange { begin: mutation.key.clone(), end: mutation.value.clone() },
            _ => KeyRange::single(&mutation.key),
        })
        .collect();
    // What is cleared lies before what is set.
    ranges.reverse();
    ranges
}

fn key_at(time: Duration) -> Bytes {
    [PREFIX, &tuple(time.as_secs())].concat().into()
}

/// A tuple of one number, as the tuple layer writes it: how many bytes, then those, the highest first.
fn tuple(number: u64) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let skipped = usize::try_from(number.leading_zeros() / 8).expect("eight at the most");
    let mut out = vec![0x14 + u8::try_from(8 - skipped).expect("eight at the most")];
    out.extend_from_slice(&bytes[skipped..]);
    out
}

#[cfg(test)]
mod tests {
    use ferrisdb_client::layers::Tuple;

    use super::*;

    /// Keys and values are tuples as the client's layer packs them, so that they lie in the order of time.
    #[test]
    fn entries_are_tuples() {
        for number in [0, 1, 255, 256, 1_577_836_800, u64::from(u32::MAX), 1 << 40, (1 << 56) - 1] {
            assert_eq!(tuple(number), Tuple::new().with(number).pack(), "{number}");
        }
        let keys = [0, 255, 256, 1_577_836_800, 1 << 33].map(|second| key_at(Duration::from_secs(second)));
        assert!(keys.is_sorted(), "{keys:?}");
    }
}
