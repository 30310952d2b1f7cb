//! Which questions a client asks: none for what it can know by itself, few for what it has to find out, and as many as the parts that the answers come in.

use super::{code, text};
use crate::testing::database;
use crate::{ConflictRangeType, RangeOptions, StreamingMode};
use ferrisdb_core::{KeyRange, KeySelector, Mutation};
use futures_executor::block_on;

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

#[test]
fn a_key_that_cannot_exist_is_not_asked_for() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    assert_eq!(block_on(tx.get(vec![b'k'; 10_001])), Ok(None));
    assert_eq!(endpoint.log().gets, 0);
    // Bounds that are longer than any key are cut where no key can lie.
    tx.clear_range(vec![b'k'; 10_500], vec![b'l'; 20_000]);
    tx.add_conflict_range(KeyRange::new(vec![b'x'; 10_500], vec![b'y'; 20_000]), ConflictRangeType::Read).expect("ok");
    block_on(tx.commit()).expect("it commits");
    let commit = &endpoint.log().commits[0];
    for range in [&commit.read_conflicts[0], &commit.write_conflicts[0]] {
        assert_eq!((range.begin.len(), range.end.len()), (10_001, 10_001));
    }
}

/// What the transaction has cleared is not asked for.
#[test]
fn what_is_cleared_is_not_asked_for() {
    let (db, endpoint, _) = database();
    endpoint.write((b'a'..=b'h').map(|key| Mutation::set(vec![key], "old")).collect());
    let tx = db.create_transaction();
    tx.clear_range("b", "g");
    for reverse in [false, true] {
        let rows = block_on(tx.get_range(RangeOptions::from(super::range("", "\x7f")).reverse(reverse)));
        assert_eq!(rows.expect("it reads").rows.len(), 3);
    }
    assert_eq!(block_on(tx.get("c")), Ok(None));
    let log = endpoint.log();
    assert!(log.gets == 0 && log.ranges.iter().all(|(asked, _)| !asked.contains(b"c")), "{:?}", log.ranges);
}

/// Chunks put together are the whole, whatever the mode, the direction and the size of the database's parts.
#[test]
fn chunks_continue_where_the_last_ended() {
    let (db, endpoint, _) = database();
    endpoint.write((0..60).map(|number| Mutation::set(format!("k{number:02}"), vec![b'v'; 80])).collect());
    let tx = db.create_transaction();
    for number in (0..60).step_by(7) {
        tx.clear(format!("k{number:02}"));
        tx.set(format!("k{number:02}+"), "own");
    }
    let whole = block_on(tx.get_range(RangeOptions::prefix(b"k").mode(StreamingMode::WantAll))).expect("it reads");
    assert_eq!(whole.rows.len(), 60);
    for part_rows in [1, 5, 1000] {
        endpoint.limit_parts(part_rows);
        for limit in [0, 13] {
            for reverse in [false, true] {
                let mut expected = whole.rows.clone();
                if reverse {
                    expected.reverse();
                }
                expected.truncate(if limit == 0 { 60 } else { limit as usize });
                let options = RangeOptions::prefix(b"k").mode(StreamingMode::Small).reverse(reverse).limit(limit);
                let rows = block_on(tx.get_ranges(options).collect()).expect("it reads");
                assert_eq!(text(&rows), text(&expected), "parts of {part_rows}, reverse: {reverse}");
            }
        }
    }
}

/// Many keys that are cleared one by one cost few questions.
#[test]
fn single_cleared_keys_are_read_over() {
    let (db, endpoint, _) = database();
    endpoint.write((0..2000).map(|number| Mutation::set(format!("k{number:04}"), "v")).collect());
    let tx = db.create_transaction();
    for number in 0..1999 {
        tx.clear(format!("k{number:04}"));
    }
    let all = KeyRange::prefix(b"k");
    let chunk = block_on(tx.get_range(RangeOptions::from(all).limit(1))).expect("it reads");
    assert_eq!(text(&chunk.rows), "k1999=v");
    assert!(endpoint.log().ranges.len() < 20, "{}", endpoint.log().ranges.len());
    let last = block_on(tx.get_key(KeySelector::last_less_than("k1999"))).expect("it reads");
    assert_eq!(last.as_ref(), b"");
    assert!(endpoint.log().ranges.len() < 40, "{}", endpoint.log().ranges.len());
}
