//! Sections 3 and 4: key selectors, and chunks of ranges.

use super::{code, conflict_text, range, text};
use crate::deployment::Deployment;
use ferrisdb_client::{RangeOptions, StreamingMode, Transaction, TransactionOption};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, Mutation};
use futures_executor::block_on;

/// Selectors over a view with keys of the snapshot, cleared ones and own ones: `b d f h` are there.
pub(crate) fn selectors_resolve_over_the_merged_view(here: &Deployment) {
    for is_merged in [false, true] {
        let db = here.database();
        let tx = db.create_transaction();
        here.write(vec![Mutation::clear_range("", "\x7f")]);
        if is_merged {
            here.write(["b", "c", "e", "f"].map(|key| Mutation::set(key, "old")).to_vec());
            tx.clear("c");
            tx.clear_range("e", "e~");
            tx.set("d", "own");
            tx.set("h", "own");
        } else {
            here.write(["b", "d", "f", "h"].map(|key| Mutation::set(key, "old")).to_vec());
        }
        let cases = [
            ("b", false, 1, "b"),
            ("b", true, 1, "d"),
            ("a", true, 1, "b"),
            ("c", false, 1, "d"),
            ("c", true, 2, "f"),
            ("b", false, 4, "h"),
            ("b", false, 5, "\\xff"),
            ("i", false, 1, "\\xff"),
            ("", false, 1, "b"),
            ("b", false, 0, ""),
            ("b", true, 0, "b"),
            ("e", false, 0, "d"),
            ("e", false, -1, "b"),
            ("e", false, -2, ""),
            ("z", true, -3, "b"),
            ("z", true, -4, ""),
            ("z", true, i32::MIN, ""),
            ("", false, i32::MAX, "\\xff"),
        ];
        for (key, or_equal, offset, expected) in cases {
            let selector = KeySelector { key: Bytes::from(key), or_equal, offset };
            let found = block_on(tx.get_key(selector)).expect("it reads");
            assert_eq!(found.escape_ascii().to_string(), expected, "{key} {or_equal} {offset}, merged: {is_merged}");
        }
        tx.set_option(&TransactionOption::ReadSystemKeys);
        let end = block_on(tx.get_key(KeySelector::first_greater_than("i"))).expect("it reads");
        assert_eq!(end.as_ref(), b"\xff\xff");
    }
}

fn rows_of(tx: &Transaction, options: RangeOptions) -> (String, bool) {
    let chunk = block_on(tx.get_range(options)).expect("it reads");
    (text(&chunk.rows).replace('=', ""), chunk.more)
}

/// Bounds that are counted, in both directions, over own writes: keys a to j, of which own ones are empty too.
pub(crate) fn ranges_between_selectors(here: &Deployment) {
    let db = here.database();
    here.write(["a", "b", "x", "e", "g", "j"].map(|key| Mutation::set(key, "")).to_vec());
    let tx = db.create_transaction();
    for key in ["c", "d", "f", "h", "i"] {
        tx.set(key, "");
    }
    tx.clear("x");
    let at = |key: &str, offset| KeySelector { key: Bytes::from(key.to_owned()), or_equal: false, offset };
    let cases = [
        (at("c", 1), at("f", 1), "c d e"),
        (at("c", 2), at("f", 3), "d e f g"),
        (at("c", 0), at("f", 0), "b c d"),
        (at("c", -5), at("f", -1), "a b c"),
        (at("h", -1), at("b", 3), ""),
        (at("h", -1), at("b", 7), "f g"),
        (at("b", 7), at("h", -1), ""),
        (at("a", 1), at("z", 50), "a b c d e f g h i j"),
        (at("z", 50), at("z", 60), ""),
        (at("j", 2), at("z", 1), ""),
    ];
    for (begin, end, expected) in cases {
        for reverse in [false, true] {
            let options = RangeOptions::new(begin.clone(), end.clone()).reverse(reverse);
            let mut keys: Vec<_> = expected.split(' ').collect();
            if reverse {
                keys.reverse();
            }
            assert_eq!(rows_of(&tx, options), (keys.join(" "), false), "{begin:?} {end:?}");
        }
    }
}

pub(crate) fn limits_and_modes_cut_chunks(here: &Deployment) {
    let db = here.database();
    // 100 rows of 8 + 3 + 89 = 100 bytes each.
    let rows = (0..100).map(|number| Mutation::set(format!("k{number:02}"), vec![b'v'; 89]));
    here.write(rows.collect());
    for is_merged in [false, true] {
        let tx = db.create_transaction();
        if is_merged {
            tx.set("k07", vec![b'w'; 89]);
        }
        let whole = || RangeOptions::from(range("k", "l"));
        let count = |options: RangeOptions| {
            let chunk = block_on(tx.get_range(options)).expect("it reads");
            (chunk.rows.len(), chunk.more)
        };
        use StreamingMode as M;
        assert_eq!(count(whole().mode(M::Small)), (3, true), "the row that reaches 256 bytes is the last");
        assert_eq!(count(whole().mode(M::Medium)), (10, true));
        assert_eq!(count(whole().mode(M::Large)), (41, true));
        assert_eq!(count(whole().mode(M::Serial)), (100, false));
        assert_eq!(count(whole().mode(M::WantAll)), (100, false));
        assert_eq!(count(whole()), (41, true), "the first iteration");
        assert_eq!(count(RangeOptions { iteration: 2, ..whole() }), (62, true));
        assert_eq!(count(RangeOptions { iteration: 100, ..whole() }), (100, false));
        assert_eq!(count(whole().limit(5)), (5, true));
        assert_eq!(count(whole().limit(100).mode(M::WantAll)), (100, true), "nobody has looked behind the limit");
        assert_eq!(count(whole().limit(-1).mode(M::WantAll)), (100, false));
        assert_eq!(count(whole().target_bytes(1)), (1, true), "one row at least");
        assert_eq!(count(whole().mode(M::Small).target_bytes(10_000)), (3, true), "the lesser counts");
        assert_eq!(count(whole().mode(M::Exact).target_bytes(500)), (5, true));
        assert_eq!(count(whole().mode(M::Exact).limit(7).reverse(true)), (7, true));
    }
}

pub(crate) fn limits_that_are_none_are_refused(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    let read = |options: RangeOptions| code(block_on(tx.get_range(options)));
    let whole = || RangeOptions::from(range("k", "l"));
    assert_eq!(read(whole().mode(StreamingMode::Exact)), 2210);
    assert_eq!(read(whole().mode(StreamingMode::Exact).limit(-1)), 2210);
    assert_eq!(read(RangeOptions { iteration: 0, ..whole() }), 2000);
    assert_eq!(read(RangeOptions { iteration: 0, ..whole().mode(StreamingMode::Small) }), 0, "only there it counts");
    assert_eq!(read(whole().limit(-2)), 2012);
    assert_eq!(read(whole().target_bytes(-2)), 2012);
    assert_eq!(StreamingMode::from_number(5), None);
    assert_eq!(StreamingMode::from_number(-2), Some(StreamingMode::WantAll));
    // An inverted range says by itself that it is empty, and conflicts with nothing.
    let inverted = RangeOptions::new(KeySelector::first_greater_than("k"), KeySelector::first_greater_or_equal("k\0"));
    assert_eq!(rows_of(&tx, inverted), (String::new(), false));
    tx.set("x", "");
    assert_eq!(conflict_text(&tx, "read"), "k..l");
    block_on(tx.commit()).expect("the calls that were refused do not fail it");
}

/// Chunks put together are the whole, whatever the limit and the direction.
pub(crate) fn chunks_continue_where_the_last_ended(here: &Deployment) {
    let db = here.database();
    here.write((0..60).map(|number| Mutation::set(format!("k{number:02}"), vec![b'v'; 80])).collect());
    let tx = db.create_transaction();
    for number in (0..60).step_by(7) {
        tx.clear(format!("k{number:02}"));
        tx.set(format!("k{number:02}+"), "own");
    }
    let whole = block_on(tx.get_range(RangeOptions::prefix(b"k").mode(StreamingMode::WantAll))).expect("it reads");
    assert_eq!(whole.rows.len(), 60);
    for limit in [0, 13] {
        for reverse in [false, true] {
            let mut expected = whole.rows.clone();
            if reverse {
                expected.reverse();
            }
            expected.truncate(if limit == 0 { 60 } else { limit as usize });
            let options = RangeOptions::prefix(b"k").mode(StreamingMode::Small).reverse(reverse).limit(limit);
            let rows = block_on(tx.get_ranges(options).collect()).expect("it reads");
            assert_eq!(text(&rows), text(&expected), "limit {limit}, reverse: {reverse}");
        }
    }
}

/// Many keys that are cleared one by one are read over.
pub(crate) fn single_cleared_keys_are_read_over(here: &Deployment) {
    let db = here.database();
    here.write((0..2000).map(|number| Mutation::set(format!("k{number:04}"), "v")).collect());
    let tx = db.create_transaction();
    for number in 0..1999 {
        tx.clear(format!("k{number:04}"));
    }
    let all = KeyRange::prefix(b"k");
    assert_eq!(rows_of(&tx, RangeOptions::from(all.clone()).limit(1)).0, "k1999v");
    let last = block_on(tx.get_key(KeySelector::last_less_than("k1999"))).expect("it reads");
    assert_eq!(last.as_ref(), b"");
}
