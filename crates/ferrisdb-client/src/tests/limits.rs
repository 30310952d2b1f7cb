//! Section 1: limits and legal ranges.

use super::{code, range};
use crate::testing::database;
use crate::{ConflictRangeType, RangeOptions, Transaction, TransactionOption};
use ferrisdb_core::{KeyRange, KeySelector, Limits, MutationKind};

/// What a call that returns nothing did wrong is told by the next call that does, and by all after it, until a reset.
fn deferred(tx: &Transaction, call: impl FnOnce(&Transaction)) -> u16 {
    tx.reset();
    call(tx);
    let told = code(tx.get_approximate_size());
    let read = code(futures_executor::block_on(tx.get("k")));
    assert_eq!(told, read, "it is told again");
    assert_eq!(told, code(futures_executor::block_on(tx.commit())));
    tx.reset();
    assert_eq!(code(tx.get_approximate_size()), 0);
    told
}

#[test]
fn sizes_are_limited_where_they_are_written() {
    let (db, _, _) = database();
    let tx = db.create_transaction();
    let (longest, too_long) = (vec![b'k'; 10_000], vec![b'k'; 10_001]);
    assert_eq!(deferred(&tx, |tx| tx.set(&longest, vec![0; 100_000])), 0);
    assert_eq!(deferred(&tx, |tx| tx.set(&too_long, b"")), 2102);
    assert_eq!(deferred(&tx, |tx| tx.set(b"k", vec![0; 100_001])), 2103);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(&too_long, b"", MutationKind::Add)), 2102);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(b"k", vec![0; 100_001], MutationKind::Add)), 2103);
    assert_eq!(deferred(&tx, |tx| tx.clear(&too_long)), 0, "no such key can exist");
    tx.set_option(&TransactionOption::AccessSystemKeys);
    tx.set([b"\xff", &vec![b'k'; 29_999][..]].concat(), b"");
    assert_eq!(code(tx.get_approximate_size()), 0, "system keys may be longer");
}

#[test]
fn a_key_that_cannot_exist_is_absent() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    assert_eq!(futures_executor::block_on(tx.get(vec![b'k'; 10_001])), Ok(None));
    assert_eq!(endpoint.log().gets, 0);
    // Bounds that are longer than any key are cut where no key can lie.
    tx.clear_range(vec![b'k'; 10_500], vec![b'l'; 20_000]);
    tx.add_conflict_range(KeyRange::new(vec![b'x'; 10_500], vec![b'y'; 20_000]), ConflictRangeType::Read).expect("ok");
    futures_executor::block_on(tx.commit()).expect("it commits");
    let commit = &endpoint.log().commits[0];
    for range in [&commit.read_conflicts[0], &commit.write_conflicts[0]] {
        assert_eq!((range.begin.len(), range.end.len()), (10_001, 10_001));
    }
}

#[test]
fn system_and_special_keys_need_options() {
    let (db, _, _) = database();
    let tx = db.create_transaction();
    let get = |key: &[u8]| code(futures_executor::block_on(tx.get(key)));
    let get_key =
        |key: &[u8]| code(futures_executor::block_on(tx.get_key(KeySelector::first_greater_or_equal(key.to_vec()))));
    let get_range = |end: &[u8]| code(futures_executor::block_on(tx.get_range(KeyRange::new(&b""[..], end.to_vec()))));
    assert_eq!((get(b"\xff"), get_key(b"\xff"), get_range(b"\xff")), (2004, 0, 0));
    assert_eq!((get_key(b"\xff\x01"), get_range(b"\xff\x01")), (2004, 2004));
    assert_eq!(get(b"\xff/metadataVersion"), 0, "anyone may read it");
    assert_eq!(deferred(&tx, |tx| tx.set(b"\xff", b"")), 2004);
    assert_eq!(deferred(&tx, |tx| tx.clear(b"\xff/x")), 2004);
    assert_eq!(deferred(&tx, |tx| tx.clear_range(b"a", b"\xff")), 0);
    assert_eq!(deferred(&tx, |tx| tx.clear_range(b"a", b"\xff\x01")), 2004);
    assert_eq!(deferred(&tx, |tx| tx.clear_range(b"b", b"a")), 2005);
    assert_eq!(deferred(&tx, |tx| tx.add_conflict_range(range("a", "~~"), ConflictRangeType::Read).expect("ok")), 0);
    let system = KeyRange::new(&b"a"[..], &b"\xff\x01"[..]);
    for kind in [ConflictRangeType::Read, ConflictRangeType::Write] {
        assert_eq!(deferred(&tx, |tx| tx.add_conflict_range(system.clone(), kind).expect("deferred")), 2004);
        assert_eq!(code(tx.add_conflict_range(range("b", "a"), kind)), 2005, "this one is told at once");
    }

    tx.reset();
    tx.set_option(&TransactionOption::ReadSystemKeys);
    assert_eq!((get(b"\xff/x"), get_key(b"\xff\xff"), get_range(b"\xff\xff")), (0, 0, 0));
    tx.set(b"\xff/x", b"");
    assert_eq!(get(b"k"), 2004, "reading is not writing");
    tx.reset();
    tx.set_option(&TransactionOption::AccessSystemKeys);
    tx.set(b"\xff/x", b"");
    assert_eq!(get(b"\xff/x"), 0);
}

/// Only a template of nothing but a stamp may be written there.
#[test]
fn the_metadata_version_takes_a_versionstamp_and_nothing_else() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    let key = b"\xff/metadataVersion";
    let kind = MutationKind::SetVersionstampedValue;
    assert_eq!(deferred(&tx, |tx| tx.set(key, b"x")), 2000);
    assert_eq!(deferred(&tx, |tx| tx.clear(key)), 2004);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(key, b"x", MutationKind::Add)), 2000);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(key, [1; 14], kind)), 2000);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(key, [0; 14], kind)), 0);
    assert_eq!(endpoint.rows()[0].1.len(), 10);
}

#[test]
fn atomic_operations_are_checked() {
    let (db, _, _) = database();
    let tx = db.create_transaction();
    for number in [0, 1, 3, 21, -1, 1000] {
        assert_eq!(deferred(&tx, |tx| tx.atomic_op_by_number(b"k", b"", number)), 2018, "{number}");
    }
    assert_eq!(deferred(&tx, |tx| tx.atomic_op_by_number(b"k", b"", 2)), 0);
    // A stamp of ten bytes must have room where the last four bytes say.
    let bad = [&[0u8; 12][..], &3u32.to_le_bytes()].concat();
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(&bad, b"", MutationKind::SetVersionstampedKey)), 2000);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(b"k", &bad, MutationKind::SetVersionstampedValue)), 2000);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(b"k", b"abc", MutationKind::SetVersionstampedValue)), 2000);
}

#[test]
fn a_transaction_that_is_too_large_does_not_commit() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::SizeLimit(32));
    tx.set(b"0123456789", b"01");
    assert_eq!(code(futures_executor::block_on(tx.commit())), 2101, "12 bytes and a conflict range of 21");
    tx.reset();
    tx.set_option(&TransactionOption::SizeLimit(33));
    tx.set(b"0123456789", b"01");
    assert_eq!(code(futures_executor::block_on(tx.commit())), 0);
    assert_eq!(endpoint.log().commits.len(), 1);
    tx.reset();
    for number in 0..101u8 {
        tx.set([number], vec![0; Limits::DEFAULT.value_bytes]);
    }
    assert_eq!(code(futures_executor::block_on(tx.commit())), 2101);
}

#[test]
fn the_approximate_size_grows_with_every_write_and_conflict_range() {
    let (db, _, _) = database();
    let tx = db.create_transaction();
    let mut last = 0;
    let calls: [&dyn Fn(); 6] = [
        &|| tx.set(b"k", b""),
        &|| tx.clear(b"k"),
        &|| tx.clear_range(b"k", b"l"),
        &|| tx.atomic_op(b"k", b"", MutationKind::Add),
        &|| tx.add_conflict_range(range("r", "s"), ConflictRangeType::Read).expect("legal"),
        &|| tx.add_conflict_range(range("r", "s"), ConflictRangeType::Write).expect("legal"),
    ];
    for call in calls {
        call();
        let size = tx.get_approximate_size().expect("fine");
        assert!(size > last);
        last = size;
    }
}

#[test]
fn estimates_split_points_and_addresses() {
    let (db, _, _) = database();
    futures_executor::block_on(async {
        let tx = db.create_transaction();
        for key in ["a", "b", "c"] {
            tx.set(key, b"0123456789");
        }
        tx.commit().await.expect("it commits");
        let tx = db.create_transaction();
        assert_eq!(tx.get_estimated_range_size(range("a", "c")).await, Ok(22));
        let points = tx.get_range_split_points(range("a", "c"), 5, 0).await.expect("it answers");
        assert_eq!(points, ["a", "b", "c"]);
        assert_eq!(code(tx.get_range_split_points(range("a", "c"), 0, 0).await), 2000);
        assert_eq!(code(tx.get_estimated_range_size(range("c", "a")).await), 2005);
        assert_eq!(code(tx.get_estimated_range_size(KeyRange::new(&b""[..], &b"\xff\x01"[..])).await), 2004);
        assert_eq!(tx.get_addresses_for_key("a").await.expect("it answers"), ["127.0.0.1:4500"]);
        let empty = tx.get_range(RangeOptions::from(range("c", "a"))).await.expect("an inverted one is empty");
        assert!(empty.rows.is_empty() && !empty.more);
    });
}
