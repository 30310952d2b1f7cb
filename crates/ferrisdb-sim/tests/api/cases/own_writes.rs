//! Section 2: reads see the transaction's own writes.

use super::{code, conflict_text, range, stamp_value, template, text};
use crate::deployment::Deployment;
use ferrisdb_client::{RangeOptions, Transaction, TransactionOption};
use ferrisdb_core::{Bytes, KeySelector, Mutation, MutationKind};
use futures_executor::block_on;

/// Where a transaction's range from `begin` to `end` fails, or what it finds.
fn scan(tx: &Transaction, options: impl Into<RangeOptions>) -> String {
    match block_on(tx.get_range(options)) {
        Ok(chunk) => text(&chunk.rows),
        Err(error) => error.code().number().to_string(),
    }
}

/// Value over value, clears, and atomic operations on what is there, what is cleared, and what was never there.
pub(crate) fn reads_see_writes_folded_over_the_snapshot(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("a", "\x01"), Mutation::set("b", "\x01"), Mutation::set("c", "\x01")]);
    let tx = db.create_transaction();
    tx.atomic_op("a", [2], MutationKind::Add);
    tx.clear("b");
    tx.atomic_op("b", [2], MutationKind::Add);
    tx.set("c", "x");
    tx.atomic_op("c", "x", MutationKind::CompareAndClear);
    tx.atomic_op("d", "new", MutationKind::ByteMax);
    assert_eq!(scan(&tx, range("a", "z")), "a=\x03 b=\x02 d=new");
    for (key, value) in [("a", Some("\x03")), ("b", Some("\x02")), ("c", None), ("d", Some("new"))] {
        assert_eq!(block_on(tx.get(key)), Ok(value.map(Bytes::from)), "{key}");
    }
    block_on(tx.commit()).expect("it commits");
    let after = db.create_transaction();
    assert_eq!(scan(&after, range("a", "z")), "a=\x03 b=\x02 d=new", "the commit does what the transaction saw");
}

/// A clear hides the snapshot and the writes before it, not those after it.
pub(crate) fn clears_hide_what_was_before_them(here: &Deployment) {
    let db = here.database();
    here.write((b'a'..=b'h').map(|key| Mutation::set(vec![key], "old")).collect());
    let tx = db.create_transaction();
    tx.set("c", "own");
    tx.set("x", "own");
    tx.clear_range("b", "g");
    tx.set("e", "new");
    for reverse in [false, true] {
        let rows = RangeOptions::from(range("", "\x7f")).reverse(reverse);
        let expected = if reverse { "x=own h=old g=old e=new a=old" } else { "a=old e=new g=old h=old x=own" };
        assert_eq!(scan(&tx, rows), expected);
    }
    assert_eq!(block_on(tx.get("c")), Ok(None));
}

pub(crate) fn unreadable_keys_fail_the_reads_that_touch_them(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("a", "1"), Mutation::set("k", "old"), Mutation::set("z", "3")]);
    let tx = db.create_transaction();
    stamp_value(&tx, "k");
    assert_eq!(code(block_on(tx.get("k"))), 1036);
    assert_eq!(code(block_on(tx.get("a"))), 0);
    assert_eq!(scan(&tx, range("a", "z")), "1036");
    assert_eq!(scan(&tx, RangeOptions::from(range("a", "z")).limit(1)), "a=1", "it stops before it gets there");
    assert_eq!(scan(&tx, RangeOptions::from(range("a", "{")).limit(1).reverse(true)), "z=3");
    assert_eq!(scan(&tx, range("k\0", "{")), "z=3");
    assert_eq!(scan(&tx, range("a", "k")), "a=1");
    assert_eq!(code(block_on(tx.get_key(KeySelector::first_greater_than("a")))), 1036);
    assert_eq!(code(block_on(tx.get_key(KeySelector::last_less_than("z")))), 1036);
    assert_eq!(block_on(tx.get_key(KeySelector::first_greater_than("k"))), Ok(Bytes::from("z")));
    // A write does not make it readable, a clear does.
    tx.set("k", "own");
    assert_eq!(code(block_on(tx.get("k"))), 1036);
    tx.clear("k");
    assert_eq!(block_on(tx.get("k")), Ok(None));
    tx.set("k", "own");
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from("own"))));
    assert_eq!(code(block_on(tx.commit())), 1036, "a read that failed fails the commit");
}

/// Everything that the key can become is unreadable: from the first stamp after the read version, or from zero if there is none.
pub(crate) fn the_range_of_a_versionstamped_key_is_unreadable(here: &Deployment) {
    let db = here.database();
    let version = here.write(vec![Mutation::set("a", "1")]).get();
    let key = |stamp: u64| [b"p", &stamp.to_be_bytes()[..], b"\0\0s"].concat();
    for asks_first in [false, true] {
        let tx = db.create_transaction();
        if asks_first {
            block_on(tx.get_read_version()).expect("it answers");
        }
        tx.atomic_op(template("p", "s"), "v", MutationKind::SetVersionstampedKey);
        let first = if asks_first { version + 1 } else { 0 };
        assert_eq!(code(block_on(tx.get(key(first)))), 1036);
        assert_eq!(code(block_on(tx.get([b"p", &[0xFF; 10][..], b"s"].concat()))), 1036);
        assert_eq!(code(block_on(tx.get([b"p", &[0xFF; 10][..], b"s\0"].concat()))), 0);
        if asks_first {
            assert_eq!(code(block_on(tx.get(key(version)))), 0);
        }
        assert_eq!(code(block_on(tx.get("p"))), 0);
        assert_eq!(scan(&tx, range("a", "z")), "1036");
        assert_eq!(scan(&tx, RangeOptions::from(range("a", "z")).limit(1)), "a=1");
        tx.clear_range("p", "q");
        assert_eq!(scan(&tx, range("a", "z")), "a=1");
    }
}

pub(crate) fn bypass_unreadable_reads_what_was_there(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("k", "old"), Mutation::set("p~", "old")]);
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::BypassUnreadable);
    tx.atomic_op(template("p", ""), "v", MutationKind::SetVersionstampedKey);
    assert_eq!(block_on(tx.get("p~")), Ok(Some(Bytes::from("old"))));
    stamp_value(&tx, "k");
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from(template("", "")))), "a template is its own value");
    assert_eq!(block_on(tx.get_range(range("a", "z"))).expect("it reads").rows.len(), 2);
}

/// The effect of the commit is that of the calls in their order, also around a key that nobody knows yet.
pub(crate) fn writes_around_a_versionstamped_key_keep_their_order(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("p~", "old"), Mutation::set("r", "old")]);
    let tx = db.create_transaction();
    tx.set("p~", "before");
    tx.clear_range("a", "z");
    tx.set("p\x7f", "kept");
    tx.atomic_op(template("p", ""), "first", MutationKind::SetVersionstampedKey);
    block_on(tx.commit()).expect("it commits");
    let keys: Vec<_> = here.rows().into_iter().map(|(key, _)| key.len()).collect();
    assert_eq!(keys, [11, 2], "the clear before it does not clear it");

    let tx = db.create_transaction();
    tx.atomic_op(template("p", ""), "second", MutationKind::SetVersionstampedKey);
    tx.clear_range("a", "z");
    tx.set("q", "last");
    block_on(tx.commit()).expect("it commits");
    let rows = here.rows();
    assert_eq!(rows.len(), 1, "the clear after it does: {rows:?}");
}

pub(crate) fn read_your_writes_can_be_disabled_before_anything_is_done(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("k", "old")]);
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::ReadYourWritesDisable);
    tx.set("k", "new");
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from("old"))));
    assert_eq!(scan(&tx, range("a", "z")), "k=old");
    assert_eq!(code(block_on(tx.watch("k"))), 1034);
    assert_eq!(conflict_text(&tx, "read"), "a..z", "own writes do not hide conflicts");
    block_on(tx.commit()).expect("it commits");
    assert_eq!(here.rows()[0].1, "new");

    let touch: [fn(&Transaction); 4] = [
        |tx| tx.set("k", ""),
        |tx| drop(tx.get("k")),
        |tx| drop(tx.snapshot().get_range(range("a", "b"))),
        |tx| tx.clear("k"),
    ];
    for touch in touch {
        let tx = db.create_transaction();
        touch(&tx);
        tx.set_option(&TransactionOption::ReadYourWritesDisable);
        assert_eq!(code(tx.get_approximate_size()), 2000);
    }
}

/// Snapshot reads see own writes while the count is above zero.
pub(crate) fn snapshot_reads_see_own_writes_as_the_counter_says(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("k", "old")]);
    let tx = db.create_transaction();
    tx.set("k", "new");
    let read = || block_on(tx.snapshot().get("k")).expect("it reads").expect("it is there");
    assert_eq!(read(), "new");
    tx.set_option(&TransactionOption::SnapshotRywDisable);
    assert_eq!(read(), "old");
    tx.set_option(&TransactionOption::SnapshotRywDisable);
    tx.set_option(&TransactionOption::SnapshotRywEnable);
    assert_eq!(read(), "old", "the count is zero");
    tx.set_option(&TransactionOption::SnapshotRywEnable);
    assert_eq!(read(), "new");
    assert_eq!(conflict_text(&tx, "read"), "", "they add no conflicts");
    block_on(tx.commit()).expect("it commits");
}

/// A read sees what was written before it was called, also if it ends later.
pub(crate) fn a_read_sees_the_writes_before_its_call(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("k", "old")]);
    let tx = db.create_transaction();
    let (get, all) = (tx.get("k"), tx.get_range(range("a", "z")));
    tx.set("k", "new");
    tx.set("l", "new");
    let later = tx.get_range(range("a", "z"));
    block_on(async {
        assert_eq!(get.await, Ok(Some(Bytes::from("old"))));
        assert_eq!(text(&all.await.expect("it reads").rows), "k=old");
        assert_eq!(text(&later.await.expect("it reads").rows), "k=new l=new");
    });
    let conflicts = conflict_text(&tx, "read");
    assert_eq!(conflicts, "a..z", "the reads before the writes conflict where the writes are");
    block_on(tx.commit()).expect("it commits");
}
