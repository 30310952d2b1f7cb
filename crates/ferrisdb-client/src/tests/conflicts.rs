//! Section 5: what a read conflicts with.

use super::{code, range, ranges_text, stamp_value, template};
use crate::testing::database;
use crate::{ConflictRangeType, RangeOptions, StreamingMode, Transaction, TransactionOption};
use ferrisdb_core::{Bytes, KeySelector, Mutation, MutationKind};
use futures_executor::block_on;

fn at(key: &str, offset: i32) -> KeySelector {
    KeySelector { key: Bytes::from(key.to_owned()), or_equal: false, offset }
}

/// The read conflict ranges of a transaction that does `reads` over the keys b, d, f, h, and commits something. They are the same whether
/// values have to be asked for or are there.
fn conflicts(reads: impl Fn(&Transaction)) -> String {
    let found = [false, true].map(|is_here| {
        let (db, endpoint, _) = database();
        if is_here {
            endpoint.have_values_here();
        }
        endpoint.write(["b", "d", "f", "h"].map(|key| Mutation::set(key, "old")).to_vec());
        let tx = db.create_transaction();
        reads(&tx);
        tx.set("~", "");
        block_on(tx.commit()).expect("it commits");
        let commit = endpoint.log().commits.pop().expect("one");
        ranges_text(&commit.read_conflicts)
    });
    assert_eq!(found[0], found[1], "asked for, and there");
    found[0].clone()
}

fn get(tx: &Transaction, key: &str) {
    block_on(tx.get(key)).expect("it reads");
}

fn scan(tx: &Transaction, options: RangeOptions) {
    block_on(tx.get_range(options)).expect("it reads");
}

#[test]
fn a_get_conflicts_with_its_key() {
    assert_eq!(conflicts(|tx| get(tx, "b")), "b..b\\x00");
    assert_eq!(conflicts(|tx| get(tx, "absent")), "absent..absent\\x00");
    assert_eq!(conflicts(|tx| drop(block_on(tx.snapshot().get("b")))), "");
}

/// What was there without a question conflicts with whoever changes it, and so does what was not there; a snapshot read does not.
#[test]
fn a_value_that_is_here_conflicts() {
    for (key, is_snapshot, expected) in [("b", false, 1020), ("absent", false, 1020), ("b", true, 0)] {
        let (db, endpoint, _) = database();
        endpoint.have_values_here();
        endpoint.write(vec![Mutation::set("b", "old")]);
        let tx = db.create_transaction();
        let read = if is_snapshot { tx.snapshot().get(key) } else { tx.get(key) };
        block_on(read).expect("it reads");
        endpoint.write(vec![Mutation::set(key, "new")]);
        tx.set("~", "");
        assert_eq!(code(block_on(tx.commit())), expected, "{key}, snapshot: {is_snapshot}");
        assert_eq!((endpoint.log().gets_here, endpoint.log().gets), (1, 0));
    }
}

/// From the key asked with to the key found, whichever side it is on.
#[test]
fn a_get_key_conflicts_with_all_it_passed() {
    let cases = [
        (at("c", 1), "c..d\\x00"),
        (at("c", 2), "c..f\\x00"),
        (KeySelector::first_greater_than("d"), "d\\x00..f\\x00"),
        (at("e", 0), "d..e"),
        (at("e", -1), "b..e"),
        (KeySelector::last_less_or_equal("d"), "d..d\\x00"),
        (at("a", 0), "..a"),
        (at("i", 1), "i..\\xff\\x00"),
    ];
    for (selector, expected) in cases {
        let found = conflicts(|tx| drop(block_on(tx.get_key(selector.clone())).expect("it reads")));
        assert_eq!(found, expected, "{selector:?}");
        let found = conflicts(|tx| drop(block_on(tx.snapshot().get_key(selector.clone()))));
        assert_eq!(found, "");
    }
}

/// What a chunk did not reach does not conflict; what its selectors passed does.
#[test]
fn a_chunk_conflicts_with_what_it_has_looked_at() {
    let whole = || RangeOptions::from(range("a", "g"));
    let cases: [(RangeOptions, &str); 16] = [
        (whole(), "a..g"),
        (whole().limit(2), "a..d\\x00"),
        (whole().limit(1).reverse(true), "f..g"),
        (whole().reverse(true), "a..g"),
        (whole().target_bytes(1).mode(StreamingMode::Exact), "a..b\\x00"),
        (RangeOptions::from(range("c", "c~")), "c..c~"),
        // Selectors that lead on.
        (RangeOptions::new(at("c", 2), at("z", 1)), "c..z"),
        (RangeOptions::new(at("c", 2), at("z", 1)).limit(1), "c..f\\x00"),
        (RangeOptions::new(at("a", 1), at("c", 3)), "a..f\\x00"),
        (RangeOptions::new(at("a", 1), at("c", 9)), "a..\\xff"),
        // Selectors that lead back.
        (RangeOptions::new(at("g", 0), at("i", 1)), "f..i"),
        (RangeOptions::new(at("g", -9), at("i", 1)), "..i"),
        (RangeOptions::new(at("g", -9), at("i", 1)).limit(1), "..g"),
        (RangeOptions::new(at("a", 1), at("g", 0)), "a..g"),
        // Reversed.
        (RangeOptions::new(at("g", 0), at("z", 1)).reverse(true).limit(1), "h..z"),
        (RangeOptions::new(at("a", 1), at("e", 2)).reverse(true).limit(1), "e..f\\x00"),
    ];
    for (options, expected) in cases {
        assert_eq!(conflicts(|tx| scan(tx, options.clone())), expected, "{options:?}");
    }
}

/// Own values and clears hide a read, atomic operations do not.
#[test]
fn own_writes_hide_what_is_read_through_them() {
    assert_eq!(conflicts(|tx| (tx.set("d", "own"), get(tx, "d")).1), "");
    assert_eq!(conflicts(|tx| (tx.clear("d"), get(tx, "d")).1), "");
    assert_eq!(conflicts(|tx| (tx.atomic_op("d", "x", MutationKind::Add), get(tx, "d")).1), "d..d\\x00");
    let on_own = |tx: &Transaction| {
        tx.set("d", "own");
        tx.atomic_op("d", "x", MutationKind::Add);
        get(tx, "d");
    };
    assert_eq!(conflicts(on_own), "");
    let on_cleared = |tx: &Transaction| {
        tx.clear_range("c", "e");
        tx.atomic_op("d", "x", MutationKind::Add);
        get(tx, "d");
    };
    assert_eq!(conflicts(on_cleared), "", "it was computed from nothing");
    let mixed = |tx: &Transaction| {
        tx.set("b", "own");
        tx.clear_range("c", "e");
        tx.atomic_op("f", "x", MutationKind::Add);
        scan(tx, RangeOptions::from(range("a", "z")));
    };
    assert_eq!(conflicts(mixed), "a..b b\\x00..c e..z");
    let explicit = |tx: &Transaction| {
        tx.set("b", "own");
        tx.clear_range("c", "e");
        tx.add_conflict_range(range("a", "g"), ConflictRangeType::Read).expect("legal");
    };
    assert_eq!(conflicts(explicit), "a..b b\\x00..c e..g");
    let stamped = |tx: &Transaction| {
        stamp_value(tx, "d");
        tx.add_conflict_range(range("c", "e"), ConflictRangeType::Read).expect("legal");
    };
    assert_eq!(conflicts(stamped), "c..d d\\x00..e");
    let disabled = |tx: &Transaction| {
        tx.set_option(&TransactionOption::ReadYourWritesDisable);
        tx.set("d", "own");
        get(tx, "d");
        tx.add_conflict_range(range("c", "e"), ConflictRangeType::Read).expect("legal");
    };
    assert_eq!(conflicts(disabled), "c..e");
}

#[test]
fn writes_add_write_conflicts_unless_told_not_to() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    let quietly = || tx.set_option(&TransactionOption::NextWriteNoWriteConflictRange);
    tx.set("a", "");
    tx.clear("b");
    tx.clear_range("c", "d");
    tx.atomic_op("e", "", MutationKind::Add);
    stamp_value(&tx, "f");
    tx.atomic_op(template("g", ""), "", MutationKind::SetVersionstampedKey);
    tx.add_conflict_range(range("h", "i"), ConflictRangeType::Write).expect("legal");
    quietly();
    tx.set("x", "");
    tx.set("y", "");
    quietly();
    tx.clear_range("z", "zz");
    block_on(tx.commit()).expect("it commits");
    let commit = endpoint.log().commits.pop().expect("one");
    let expected = "a..a\\x00 b..b\\x00 c..d e..e\\x00 f..f\\x00 h..i y..y\\x00";
    assert_eq!(ranges_text(&commit.write_conflicts), expected);
    assert_eq!(commit.mutations.len(), 9);
}

/// The option counts for a write that was refused too.
#[test]
fn the_option_for_the_next_write_is_used_up_by_any() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::NextWriteNoWriteConflictRange);
    tx.clear(vec![b'x'; 20_000]);
    tx.set("y", "");
    block_on(tx.commit()).expect("it commits");
    assert_eq!(ranges_text(&endpoint.log().commits[0].write_conflicts), "y..y\\x00");
}

#[test]
fn a_conflict_is_told_and_its_keys_are_reported() {
    let (db, endpoint, _) = database();
    for asks in [true, false] {
        let tx = db.create_transaction();
        if asks {
            tx.set_option(&TransactionOption::ReportConflictingKeys);
        }
        for key in ["a", "b", "d"] {
            get(&tx, key);
        }
        endpoint.write(vec![Mutation::set("b", ""), Mutation::set("d", "")]);
        tx.set("x", "");
        assert_eq!(code(block_on(tx.commit())), 1020);
        let keys = |tx: &Transaction| {
            let prefix = b"\xff\xff/transaction/conflicting_keys/";
            let chunk = block_on(tx.get_range(RangeOptions::from(ferrisdb_core::KeyRange::new(
                &prefix[..],
                [&prefix[..], b"\xff\xff"].concat(),
            ))));
            let rows = chunk.expect("it reads").rows;
            let row = |row: &ferrisdb_core::KeyValue| {
                format!("{}={}", row.key[prefix.len()..].escape_ascii(), row.value.escape_ascii())
            };
            rows.iter().map(row).collect::<Vec<_>>().join(" ")
        };
        let expected = if asks { "b=1 b\\x00=0 d=1 d\\x00=0" } else { "" };
        assert_eq!(keys(&tx), expected);
        tx.reset();
        assert_eq!(keys(&tx), "");
    }
    // Who writes only cannot conflict.
    let tx = db.create_transaction();
    block_on(tx.get_read_version()).expect("it answers");
    endpoint.write(vec![Mutation::set("x", "")]);
    tx.set("x", "");
    block_on(tx.commit()).expect("it commits");
}
