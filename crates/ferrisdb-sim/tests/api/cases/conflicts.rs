//! Section 5: what a read conflicts with.

use super::{code, conflict_ranges, conflict_text, range, stamp_value, template};
use crate::deployment::Deployment;
use ferrisdb_client::{ConflictRangeType, RangeOptions, StreamingMode, Transaction, TransactionOption};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, Mutation, MutationKind};
use futures_executor::block_on;

fn at(key: &str, offset: i32) -> KeySelector {
    KeySelector { key: Bytes::from(key.to_owned()), or_equal: false, offset }
}

/// The read conflict ranges of a transaction that does `reads` over the keys b, d, f, h, and writes something: as it says, and as others find out who write
/// where a range begins, and where it ends.
fn conflicts(here: &Deployment, reads: impl Fn(&Transaction)) -> String {
    let db = here.database();
    let begin = || {
        let mut rows = vec![Mutation::clear_range("", "\x7f")];
        rows.extend(["b", "d", "f", "h"].map(|key| Mutation::set(key, "old")));
        here.write(rows);
        let tx = db.create_transaction();
        reads(&tx);
        tx.set("~", "");
        tx
    };
    let tx = begin();
    let ranges = conflict_ranges(&tx, "read");
    block_on(tx.commit()).expect("nobody has written");
    let borders = ranges.iter().flat_map(|range| [range.begin.clone(), range.end.clone()]);
    for border in borders.filter(|border| border.as_ref() < &b"\xff"[..]) {
        let tx = begin();
        // Programs that only take snapshots have begun by now too.
        block_on(tx.get_read_version()).expect("it answers");
        here.write(vec![Mutation::set(border.clone(), "new")]);
        let expected = if ranges.iter().any(|range| range.contains(&border)) { 1020 } else { 0 };
        assert_eq!(code(block_on(tx.commit())), expected, "a write of {border:?}, with {ranges:?}");
    }
    conflict_text(&tx, "read")
}

fn get(tx: &Transaction, key: &str) {
    block_on(tx.get(key)).expect("it reads");
}

fn scan(tx: &Transaction, options: RangeOptions) {
    block_on(tx.get_range(options)).expect("it reads");
}

pub(crate) fn a_get_conflicts_with_its_key(here: &Deployment) {
    assert_eq!(conflicts(here, |tx| get(tx, "b")), "b..b\\x00");
    assert_eq!(conflicts(here, |tx| get(tx, "absent")), "absent..absent\\x00");
    assert_eq!(conflicts(here, |tx| drop(block_on(tx.snapshot().get("b")))), "");
}

/// From the key asked with to the key found, whichever side it is on.
pub(crate) fn a_get_key_conflicts_with_all_it_passed(here: &Deployment) {
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
        let found = conflicts(here, |tx| drop(block_on(tx.get_key(selector.clone())).expect("it reads")));
        assert_eq!(found, expected, "{selector:?}");
        let found = conflicts(here, |tx| drop(block_on(tx.snapshot().get_key(selector.clone()))));
        assert_eq!(found, "");
    }
}

/// What a chunk did not reach does not conflict; what its selectors passed does.
pub(crate) fn a_chunk_conflicts_with_what_it_has_looked_at(here: &Deployment) {
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
        assert_eq!(conflicts(here, |tx| scan(tx, options.clone())), expected, "{options:?}");
    }
}

/// Own values and clears hide a read, atomic operations do not.
pub(crate) fn own_writes_hide_what_is_read_through_them(here: &Deployment) {
    assert_eq!(conflicts(here, |tx| (tx.set("d", "own"), get(tx, "d")).1), "");
    assert_eq!(conflicts(here, |tx| (tx.clear("d"), get(tx, "d")).1), "");
    assert_eq!(conflicts(here, |tx| (tx.atomic_op("d", "x", MutationKind::Add), get(tx, "d")).1), "d..d\\x00");
    let on_own = |tx: &Transaction| {
        tx.set("d", "own");
        tx.atomic_op("d", "x", MutationKind::Add);
        get(tx, "d");
    };
    assert_eq!(conflicts(here, on_own), "");
    let on_cleared = |tx: &Transaction| {
        tx.clear_range("c", "e");
        tx.atomic_op("d", "x", MutationKind::Add);
        get(tx, "d");
    };
    assert_eq!(conflicts(here, on_cleared), "", "it was computed from nothing");
    let mixed = |tx: &Transaction| {
        tx.set("b", "own");
        tx.clear_range("c", "e");
        tx.atomic_op("f", "x", MutationKind::Add);
        scan(tx, RangeOptions::from(range("a", "z")));
    };
    assert_eq!(conflicts(here, mixed), "a..b b\\x00..c e..z");
    let explicit = |tx: &Transaction| {
        tx.set("b", "own");
        tx.clear_range("c", "e");
        tx.add_conflict_range(range("a", "g"), ConflictRangeType::Read).expect("legal");
    };
    assert_eq!(conflicts(here, explicit), "a..b b\\x00..c e..g");
    let stamped = |tx: &Transaction| {
        stamp_value(tx, "d");
        tx.add_conflict_range(range("c", "e"), ConflictRangeType::Read).expect("legal");
    };
    assert_eq!(conflicts(here, stamped), "c..d d\\x00..e");
    let disabled = |tx: &Transaction| {
        tx.set_option(&TransactionOption::ReadYourWritesDisable);
        tx.set("d", "own");
        get(tx, "d");
        tx.add_conflict_range(range("c", "e"), ConflictRangeType::Read).expect("legal");
    };
    assert_eq!(conflicts(here, disabled), "c..e");
}

pub(crate) fn writes_add_write_conflicts_unless_told_not_to(here: &Deployment) {
    let db = here.database();
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
    let expected = "a..a\\x00 b..b\\x00 c..d e..e\\x00 f..f\\x00 h..i y..y\\x00";
    assert_eq!(conflict_text(&tx, "write"), expected);
    // Whoever has read what it says that it writes conflicts, and so does who has read what a stamp made; who has read the rest does not.
    let readers = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "x", "y", "z"].map(|key| {
        let reader = db.create_transaction();
        block_on(reader.get_range(KeyRange::prefix(key.as_bytes()))).expect("it reads");
        reader.set("~", "");
        (key, reader)
    });
    block_on(tx.commit()).expect("it commits");
    let conflicting = readers.into_iter().filter(|(_, reader)| code(block_on(reader.commit())) == 1020);
    let conflicting: Vec<&str> = conflicting.map(|(key, _)| key).collect();
    assert_eq!(conflicting, ["a", "b", "c", "e", "f", "g", "h", "y"]);
}

/// The option counts for a write that was refused too.
pub(crate) fn the_option_for_the_next_write_is_used_up_by_any(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::NextWriteNoWriteConflictRange);
    tx.clear(vec![b'x'; 20_000]);
    tx.set("y", "");
    assert_eq!(conflict_text(&tx, "write"), "y..y\\x00");
    block_on(tx.commit()).expect("it commits");
}

pub(crate) fn a_conflict_is_told_and_its_keys_are_reported(here: &Deployment) {
    let db = here.database();
    for asks in [true, false] {
        let tx = db.create_transaction();
        if asks {
            tx.set_option(&TransactionOption::ReportConflictingKeys);
        }
        for key in ["a", "b", "d"] {
            get(&tx, key);
        }
        here.write(vec![Mutation::set("b", ""), Mutation::set("d", "")]);
        tx.set("x", "");
        assert_eq!(code(block_on(tx.commit())), 1020);
        let keys = |tx: &Transaction| {
            let prefix = b"\xff\xff/transaction/conflicting_keys/";
            let chunk = block_on(
                tx.get_range(RangeOptions::from(KeyRange::new(&prefix[..], [&prefix[..], b"\xff\xff"].concat()))),
            );
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
    here.write(vec![Mutation::set("x", "")]);
    tx.set("x", "");
    block_on(tx.commit()).expect("it commits");
}
