//! The model against hand-made cases, and its arithmetic against the database's.

use ferrisdb_core::{Bytes, Code, Limits, MutationKind, Random, SplitMix64, mutation};

use super::program::{Mode, Observed, RangeQuestion, Step};
use super::{Model, arithmetic};
use ferrisdb_core::{KeyRange, KeySelector, KeyValue};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn set(slot: usize, key: &'static str, value: &'static str) -> Step {
    Step::Set { slot, key: bytes(key), value: bytes(value) }
}

fn get(slot: usize, key: &'static str) -> Step {
    Step::Get { slot, key: bytes(key), snapshot: false }
}

fn committed(version: u64) -> Observed {
    let mut stamp = [0; 10];
    stamp[..8].copy_from_slice(&version.to_be_bytes());
    Observed::Committed { version: Some(version), stamp: Ok(stamp) }
}

fn value(text: &'static str) -> Observed {
    Observed::Value(Some(bytes(text)))
}

/// A model that has gone through these steps as told.
fn after(steps: &[(Step, Observed)]) -> Model {
    let mut model = Model::new();
    for (step, observed) in steps {
        model.check(step, observed).unwrap_or_else(|what| panic!("{step:?}: {what}"));
    }
    model
}

/// Two implementations of the same table, by different hands and different ways.
#[test]
fn arithmetic_agrees_with_the_databases() {
    use MutationKind::*;
    let kinds = [Add, BitAnd, BitOr, BitXor, AppendIfFits, Max, Min, ByteMin, ByteMax, CompareAndClear];
    let mut random = SplitMix64::new(5);
    let some = |random: &mut SplitMix64| -> Bytes {
        (0..random.below(6)).map(|_| [0, 1, 0x80, 0xFF][usize::try_from(random.below(4)).expect("small")]).collect()
    };
    for round in 0..100_000 {
        let kind = kinds[usize::try_from(random.below(10)).expect("small")];
        let existing = if random.one_in(4) { None } else { Some(some(&mut random)) };
        let operand = some(&mut random);
        assert_eq!(
            arithmetic::fold(kind, existing.as_ref(), &operand),
            mutation::apply(kind, existing.as_ref(), &operand, Limits::DEFAULT.value_bytes),
            "round {round}: {kind:?} of {existing:?} and {operand:?}"
        );
    }
}

/// A conflict that the contract demands, one that it forbids, and one in a range that was cut short.
#[test]
fn the_model_knows_which_commits_conflict() {
    let begin = |slot| (Step::Begin { slot }, Observed::Done);
    let version = |slot, version| (Step::ReadVersion { slot }, Observed::Version(version));
    let question = RangeQuestion {
        begin: KeySelector::first_greater_or_equal(&b"a"[..]),
        end: KeySelector::first_greater_or_equal(&b"z"[..]),
        limit: 1,
        target_bytes: 0,
        mode: Mode::Exact,
        reverse: false,
    };
    let first = KeyValue { key: bytes("b"), value: bytes("1") };
    let range = Step::GetRange { slot: 0, question, snapshot: false };
    let rows = Observed::Rows { rows: vec![first], more: true };
    let prepared = |written: &'static str| {
        after(&[
            begin(1),
            (set(1, "b", "1"), Observed::Done),
            (set(1, "m", "1"), Observed::Done),
            (Step::Commit { slot: 1 }, committed(10)),
            begin(0),
            version(0, 10),
            (range.clone(), rows.clone()),
            (set(0, "x", "1"), Observed::Done),
            begin(1),
            (set(1, written, "2"), Observed::Done),
            (Step::Commit { slot: 1 }, committed(20)),
        ])
    };
    let commit = Step::Commit { slot: 0 };
    let conflict = Observed::Failed(Code::NotCommitted);
    // Behind the one row that was read nothing was read.
    prepared("m").check(&commit, &committed(30)).expect("it may commit");
    prepared("m").check(&commit, &conflict).expect_err("a conflict with what was not read");
    prepared("b").check(&commit, &conflict).expect("it was read");
    prepared("a5").check(&commit, &conflict).expect("a phantom before the row");
    prepared("a5").check(&commit, &committed(30)).expect_err("a phantom before the row");
}

/// What a versionstamp will decide cannot be read before the commit, and can after a clear.
#[test]
fn the_model_knows_what_is_unreadable() {
    let template = Bytes::from([&[0; 10][..], &0i32.to_le_bytes()].concat());
    let stamped =
        Step::Atomic { slot: 0, kind: MutationKind::SetVersionstampedValue, key: bytes("k"), operand: template };
    let steps = [
        (Step::Begin { slot: 0 }, Observed::Done),
        (Step::ReadVersion { slot: 0 }, Observed::Version(0)),
        (stamped, Observed::Done),
        (get(0, "k"), Observed::Failed(Code::AccessedUnreadable)),
        (set(0, "k", "v"), Observed::Done),
        (get(0, "k"), Observed::Failed(Code::AccessedUnreadable)),
        (Step::Clear { slot: 0, key: bytes("k") }, Observed::Done),
        (get(0, "k"), Observed::Value(None)),
        (set(0, "k", "w"), Observed::Done),
        (get(0, "k"), value("w")),
    ];
    after(&steps).check(&get(0, "k"), &value("v")).expect_err("it was overwritten");
}

/// Who ran off the end has read up to the greatest key that may be read (section 5), also if the other end of the range was named behind it: seed 277 said so
/// after 1,385,506 steps.
#[test]
fn off_the_end_is_up_to_the_greatest_key() {
    let question = RangeQuestion {
        begin: KeySelector { key: bytes("a"), or_equal: true, offset: 2 },
        end: KeySelector { key: Bytes::from_static(b"\xff"), or_equal: true, offset: 1 },
        limit: 0,
        target_bytes: 0,
        mode: Mode::WantAll,
        reverse: false,
    };
    let told = |end: &'static [u8]| {
        let mut model = after(&[
            (Step::Begin { slot: 0 }, Observed::Done),
            (Step::ReadVersion { slot: 0 }, Observed::Version(0)),
            (
                Step::GetRange { slot: 0, question: question.clone(), snapshot: false },
                Observed::Rows { rows: Vec::new(), more: false },
            ),
        ]);
        let ranges = Observed::Ranges(vec![KeyRange::new(&b"a\0"[..], end)]);
        model.check(&Step::ConflictRanges { slot: 0, of_writes: false }, &ranges)
    };
    told(b"\xff").expect("as the contract says");
    told(b"\xff\0").expect("nobody can tell the difference by what he reads");
    told(b"\xfe").expect_err("a key behind it was not there");
}

/// Own writes hide what others write: reading them is no dependence.
#[test]
fn own_writes_add_no_conflicts() {
    let mut model = after(&[
        (Step::Begin { slot: 0 }, Observed::Done),
        (Step::ReadVersion { slot: 0 }, Observed::Version(0)),
        (set(0, "a", "1"), Observed::Done),
        (get(0, "a"), value("1")),
        (Step::Begin { slot: 1 }, Observed::Done),
        (set(1, "a", "2"), Observed::Done),
        (Step::Commit { slot: 1 }, committed(10)),
    ]);
    model.check(&Step::Commit { slot: 0 }, &Observed::Failed(Code::NotCommitted)).expect_err("it read only its own");
}

/// A commit that was refused late may cost those a conflict that began before the next one; nobody else.
#[test]
fn what_was_refused_may_conflict_until_the_next_commit() {
    let begin = |slot| (Step::Begin { slot }, Observed::Done);
    let version = |slot, version| (Step::ReadVersion { slot }, Observed::Version(version));
    let refused = || {
        let mut model = after(&[
            begin(0),
            version(0, 0),
            (get(0, "a"), Observed::Value(None)),
            (set(0, "x", "1"), Observed::Done),
            begin(1),
            (set(1, "a", "1"), Observed::Done),
        ]);
        model.fail(&Step::Commit { slot: 1 }, Code::ProcessBehind);
        model
    };
    let conflict = Observed::Failed(Code::NotCommitted);
    refused().check(&Step::Commit { slot: 0 }, &conflict).expect("the resolver has it");
    refused().check(&Step::Commit { slot: 0 }, &committed(10)).expect("or it has not");
    let mut model = refused();
    for (step, observed) in [
        begin(2),
        (set(2, "y", "1"), Observed::Done),
        (Step::Commit { slot: 2 }, committed(10)),
        begin(3),
        version(3, 10),
        (get(3, "a"), Observed::Value(None)),
        (set(3, "z", "1"), Observed::Done),
    ] {
        model.check(&step, &observed).expect("it fits");
    }
    model.check(&Step::Commit { slot: 3 }, &conflict).expect_err("it began after the next commit");
}

/// What became of a commit is learned later: it is there with its version, or not at all.
#[test]
fn a_commit_is_settled() {
    let begun = || {
        after(&[
            (Step::Begin { slot: 0 }, Observed::Done),
            (Step::ReadVersion { slot: 0 }, Observed::Version(5)),
            (set(0, "a", "1"), Observed::Done),
        ])
    };
    let stamp = |version: u64| {
        let mut stamp = [0; 10];
        stamp[..8].copy_from_slice(&version.to_be_bytes());
        stamp
    };
    let mut model = begun();
    model.settle(0, Some((10, stamp(10)))).expect("it fits");
    assert_eq!((model.newest(), model.state().len()), (10, 1));
    let mut model = begun();
    model.settle(0, None).expect("it fits");
    assert_eq!((model.newest(), model.state().len()), (0, 0));
    begun().settle(0, Some((5, stamp(5)))).expect_err("it read at that version");
}
