//! The state, entry by entry; and its bytes.

use ferrisdb_core::{Random, SplitMix64};

use super::ids::OUTCOMES_OF_CLIENT_MAX;
use super::*;
use crate::log::{IdOutcome, Outcome};

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
    let expected = format!("0101{owner}f20700000201 01f207 0100ed07 0100e807 01 0500000000000000f20701 0102f2070100");
    assert_eq!(hex, expected.replace(' ', ""));
    state.apply(&with_metadata(batch(1, ME, 1_010, 1_011, &[]), vec![Mutation::set(&b"k"[..], &b"v"[..])]));
    let mut bytes = Vec::new();
    state.encode(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected =
        format!("0201{owner}f30700000201 01f207 0100ed07 0100e807 01 0500000000000000f20701 0102f2070100 01 016b 0176");
    assert_eq!(hex, expected.replace(' ', ""));
}
