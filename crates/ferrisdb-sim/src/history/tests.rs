//! A sound history certifies, and each kind of anomaly, planted in it, is found and named.

use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn row(key: &str, value: &str) -> KeyValue {
    KeyValue { key: bytes(key), value: bytes(value) }
}

fn get(key: &str, value: Option<&str>) -> Read {
    Read { after: 0, is_snapshot: false, what: ReadWhat::Key { key: bytes(key), value: value.map(bytes) } }
}

fn scan(begin: &str, end: &str, rows: Vec<KeyValue>) -> Read {
    let range = KeyRange::new(bytes(begin), bytes(end));
    Read { after: 0, is_snapshot: false, what: ReadWhat::Range { range, rows } }
}

/// An attempt over [began, ended] that reads at one version and commits at another (0: read-only).
fn attempt(
    id: u64,
    (began, ended): (u64, u64),
    (read, commit): (u64, u64),
    reads: Vec<Read>,
    sets: &[(&str, &str)],
) -> Attempt {
    let mut mutations: Vec<Mutation> =
        sets.iter().map(|(key, value)| Mutation::set(bytes(key), bytes(value))).collect();
    let outcome = if commit == 0 {
        Outcome::ReadOnly
    } else {
        mutations.push(marker(id));
        Outcome::Committed { version: Version::from_u64(commit), batch_index: 0 }
    };
    Attempt { id, began, sent: began, ended, read_version: Version::from_u64(read), reads, mutations, outcome }
}

/// What the database holds after these attempts, if it did as it said.
fn end_of(initial: &[KeyValue], attempts: &[Attempt]) -> Vec<KeyValue> {
    let mut replay = Replay::new(initial);
    let mut committed: Vec<_> = attempts
        .iter()
        .filter_map(|attempt| match attempt.outcome {
            Outcome::Committed { version, batch_index } => Some((version, batch_index, &attempt.mutations)),
            _ => None,
        })
        .collect();
    committed.sort_unstable_by_key(|(version, batch_index, _)| (*version, *batch_index));
    for (version, batch_index, mutations) in committed {
        replay.apply(mutations, version, batch_index);
    }
    replay.range(&KeyRange::new(bytes(""), Bytes::from_static(b"\xff")), Version::MAX, &[])
}

fn certify_all(initial: &[KeyValue], attempts: &[Attempt]) -> Result<Certificate, Violation> {
    certify(initial, attempts, &end_of(initial, attempts))
}

#[test]
fn a_sound_history_certifies() {
    let initial = [row("a", "1"), row("b", "1")];
    let mut own_writes = attempt(3, (30, 35), (20, 30), vec![], &[("c", "x"), ("a", "3")]);
    own_writes.reads.push(Read { after: 1, ..scan("a", "d", vec![row("a", "2"), row("b", "1"), row("c", "x")]) });
    let history = [
        attempt(1, (0, 5), (5, 10), vec![get("a", Some("1"))], &[("a", "2")]),
        attempt(2, (6, 9), (10, 20), vec![get("b", Some("1")), get("z", None)], &[("d", "1")]),
        own_writes,
        attempt(
            4,
            (40, 41),
            (30, 0),
            vec![scan("", "\u{7f}", vec![row("a", "3"), row("b", "1"), row("c", "x"), row("d", "1")])],
            &[],
        ),
    ];
    let certificate = certify_all(&initial, &history).expect("it is sound");
    assert_eq!((certificate.committed, certificate.read_only, certificate.reads), (3, 1, 5));
}

/// Two that read each other's key and wrote their own: each alone is right, both together are in no order.
#[test]
fn write_skew_is_found() {
    let history = [
        attempt(1, (0, 9), (5, 10), vec![get("x", None), get("y", None)], &[("x", "1")]),
        attempt(2, (0, 9), (5, 11), vec![get("x", None), get("y", None)], &[("y", "1")]),
    ];
    assert!(matches!(certify_all(&[], &history), Err(Violation::Overtaken { id: 2, by: 1, .. })));
}

#[test]
fn a_lost_update_is_found() {
    let history = [
        attempt(1, (0, 9), (5, 10), vec![get("n", Some("0"))], &[("n", "1")]),
        attempt(2, (0, 9), (5, 11), vec![get("n", Some("0"))], &[("n", "1")]),
    ];
    assert!(matches!(certify_all(&[row("n", "0")], &history), Err(Violation::Overtaken { id: 2, by: 1, .. })));
}

/// The range was empty, and someone wrote into it.
#[test]
fn a_phantom_is_found() {
    let history = [
        attempt(1, (0, 9), (5, 10), vec![], &[("m5", "1")]),
        attempt(2, (0, 9), (5, 10), vec![scan("m", "n", vec![])], &[("count", "0")]),
    ];
    let mut history = history;
    history[1].outcome = Outcome::Committed { version: Version::from_u64(10), batch_index: 1 };
    assert!(matches!(certify_all(&[], &history), Err(Violation::Overtaken { id: 2, by: 1, .. })));
    // As a snapshot read it is allowed.
    history[1].reads[0].is_snapshot = true;
    certify_all(&[], &history).expect("snapshot reads may be overtaken");
}

#[test]
fn a_read_of_the_wrong_version_is_found() {
    let write = attempt(1, (0, 5), (5, 10), vec![], &[("a", "new")]);
    for (read_version, value) in [(10, "old"), (9, "new")] {
        let read = attempt(2, (3, 20), (read_version, 0), vec![get("a", Some(value))], &[]);
        let found = certify_all(&[row("a", "old")], &[write.clone(), read]);
        assert!(matches!(found, Err(Violation::WrongRead { id: 2, .. })), "{found:?}");
    }
}

/// A range read that shows a part of one transaction's writes.
#[test]
fn a_torn_range_read_is_found() {
    let history = [
        attempt(1, (0, 5), (5, 10), vec![], &[("a", "1"), ("b", "1")]),
        attempt(2, (6, 7), (10, 0), vec![scan("a", "c", vec![row("a", "1")])], &[]),
    ];
    assert!(matches!(certify_all(&[], &history), Err(Violation::WrongRead { id: 2, .. })));
}

#[test]
fn a_stale_read_version_is_found() {
    let history =
        [attempt(1, (0, 5), (5, 10), vec![], &[("a", "1")]), attempt(2, (6, 7), (9, 0), vec![get("a", None)], &[])];
    assert!(matches!(certify_all(&[], &history), Err(Violation::StaleRead { id: 2, .. })));
}

#[test]
fn a_commit_back_in_time_is_found() {
    let mut late = attempt(2, (0, 20), (3, 8), vec![], &[("b", "1")]);
    late.sent = 6;
    let history = [attempt(1, (0, 5), (5, 10), vec![], &[("a", "1")]), late];
    assert!(matches!(certify_all(&[], &history), Err(Violation::BackInTime { id: 2, after: 1 })));
}

#[test]
fn a_commit_below_its_read_version_is_found() {
    let history = [attempt(1, (0, 5), (10, 10), vec![], &[("a", "1")])];
    assert!(matches!(certify_all(&[], &history), Err(Violation::CommitBelowRead { id: 1 })));
}

/// Unknown ones are in or out as the marker says; half of one, or an aborted one that is in, is found.
#[test]
fn unknown_outcomes_are_resolved_by_markers() {
    let known = attempt(1, (0, 5), (5, 10), vec![], &[("a", "1"), ("b", "1")]);
    let end = end_of(&[], std::slice::from_ref(&known));
    let as_outcome = |outcome| Attempt { outcome, ..known.clone() };
    let unknown = [as_outcome(Outcome::Unknown)];
    assert_eq!(certify(&[], &unknown, &end).expect("it is in").committed_unknown, 1);
    assert_eq!(certify(&[], &unknown, &[]).expect("it is out").aborted, 1);
    let half: Vec<KeyValue> = end.iter().filter(|row| row.key != "b").cloned().collect();
    assert!(matches!(certify(&[], &unknown, &half), Err(Violation::WrongEnd { .. })));
    let without_marker: Vec<KeyValue> = end.iter().filter(|row| row.key.len() == 1).cloned().collect();
    assert!(matches!(certify(&[], &unknown, &without_marker), Err(Violation::WrongEnd { .. })));
    let aborted = [as_outcome(Outcome::Aborted)];
    assert!(matches!(certify(&[], &aborted, &end), Err(Violation::WrongOutcome { id: 1, .. })));
}

/// An acknowledged commit that is gone, one that was applied twice, and one that is elsewhere than it was said.
#[test]
fn lost_doubled_and_moved_commits_are_found() {
    let history = [attempt(1, (0, 5), (5, 10), vec![], &[("a", "1")])];
    assert!(matches!(certify(&[], &history, &[]), Err(Violation::WrongOutcome { id: 1, .. })));
    let mut add = attempt(1, (0, 5), (5, 10), vec![], &[]);
    add.mutations.push(Mutation::new(MutationKind::Add, bytes("n"), Bytes::from_static(&[1])));
    let mut end = end_of(&[], std::slice::from_ref(&add));
    let place = end.iter().position(|row| row.key == "n").expect("it was added");
    end[place].value = Bytes::from_static(&[2]);
    assert!(matches!(certify(&[], &[add], &end), Err(Violation::WrongEnd { .. })));
    let moved = [Attempt {
        outcome: Outcome::Committed { version: Version::from_u64(11), batch_index: 0 },
        ..history[0].clone()
    }];
    assert!(matches!(certify(&[], &moved, &end_of(&[], &history)), Err(Violation::WrongOutcome { id: 1, .. })));
}

#[test]
fn two_at_one_place_are_found() {
    let history =
        [attempt(1, (0, 5), (5, 10), vec![], &[("a", "1")]), attempt(2, (0, 5), (5, 10), vec![], &[("b", "1")])];
    assert!(matches!(certify_all(&[], &history), Err(Violation::SamePlace { .. })));
}

/// A key that only the commit knew is a phantom like any other, and only where it came to lie.
#[test]
fn a_versionstamped_phantom_is_found() {
    let template = Bytes::from([b"k/".as_slice(), &[0; 10], &2u32.to_le_bytes()].concat());
    let mut writer = attempt(1, (0, 5), (5, 10), vec![], &[]);
    writer.mutations.push(Mutation::new(MutationKind::SetVersionstampedKey, template, bytes("v")));
    let reader = |begin: &str, end: &str| attempt(2, (0, 20), (5, 20), vec![scan(begin, end, vec![])], &[("x", "y")]);
    let whole = certify_all(&[], &[writer.clone(), reader("k/", "k0")]);
    assert!(matches!(whole, Err(Violation::Overtaken { id: 2, by: 1, .. })), "{whole:?}");
    // Where the template's zeros stand nothing was written.
    certify_all(&[], &[writer, reader("k/", "k/\0\0\0\0\0\0\0\0\0\0\0")]).expect("it was not read");
}
