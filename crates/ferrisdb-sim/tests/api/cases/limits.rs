//! Section 1: limits and legal ranges.

use super::{code, range};
use crate::deployment::Deployment;
use ferrisdb_client::{ConflictRangeType, RangeOptions, Transaction, TransactionOption};
use ferrisdb_core::{KeyRange, KeySelector, Limits, Mutation, MutationKind};
use futures_executor::block_on;

/// What a call that returns nothing did wrong is told by the next call that does, and by all after it, until a reset.
fn deferred(tx: &Transaction, call: impl FnOnce(&Transaction)) -> u16 {
    tx.reset();
    call(tx);
    let told = code(tx.get_approximate_size());
    let read = code(block_on(tx.get("k")));
    assert_eq!(told, read, "it is told again");
    assert_eq!(told, code(block_on(tx.commit())));
    tx.reset();
    assert_eq!(code(tx.get_approximate_size()), 0);
    told
}

pub(crate) fn sizes_are_limited_where_they_are_written(here: &Deployment) {
    let db = here.database();
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

pub(crate) fn system_and_special_keys_need_options(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    let get = |key: &[u8]| code(block_on(tx.get(key)));
    let get_key = |key: &[u8]| code(block_on(tx.get_key(KeySelector::first_greater_or_equal(key.to_vec()))));
    let get_range = |end: &[u8]| code(block_on(tx.get_range(KeyRange::new(&b""[..], end.to_vec()))));
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
pub(crate) fn the_metadata_version_takes_a_versionstamp_and_nothing_else(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    let key = b"\xff/metadataVersion";
    let kind = MutationKind::SetVersionstampedValue;
    assert_eq!(deferred(&tx, |tx| tx.set(key, b"x")), 2000);
    assert_eq!(deferred(&tx, |tx| tx.clear(key)), 2004);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(key, b"x", MutationKind::Add)), 2000);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(key, [1; 14], kind)), 2000);
    assert_eq!(deferred(&tx, |tx| tx.atomic_op(key, [0; 14], kind)), 0);
    let stamp = block_on(db.create_transaction().get(key)).expect("anyone may read it").expect("it is there");
    assert_eq!(stamp.len(), 10);
}

pub(crate) fn atomic_operations_are_checked(here: &Deployment) {
    let db = here.database();
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

pub(crate) fn a_transaction_that_is_too_large_does_not_commit(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::SizeLimit(32));
    tx.set(b"0123456789", b"01");
    assert_eq!(code(block_on(tx.commit())), 2101, "12 bytes and a conflict range of 21");
    tx.reset();
    tx.set_option(&TransactionOption::SizeLimit(33));
    tx.set(b"0123456789", b"01");
    assert_eq!(code(block_on(tx.commit())), 0);
    tx.reset();
    for number in 0..101u8 {
        tx.set([number], vec![0; Limits::DEFAULT.value_bytes]);
    }
    assert_eq!(code(block_on(tx.commit())), 2101);
}

pub(crate) fn the_approximate_size_grows_with_every_write_and_conflict_range(here: &Deployment) {
    let db = here.database();
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

/// Sizes are sampled: of little they may say anything. What they say is asked for in the right words, points are within the range, and its ends are among them.
pub(crate) fn estimates_split_points_and_addresses(here: &Deployment) {
    let db = here.database();
    here.write((0..100).map(|number| Mutation::set(format!("k{number:02}"), vec![b'v'; 1_000])).collect());
    let tx = db.create_transaction();
    block_on(tx.get_estimated_range_size(range("k", "l"))).expect("it answers");
    assert_eq!(code(block_on(tx.get_estimated_range_size(range("c", "a")))), 2005);
    let system = KeyRange::new(&b""[..], &b"\xff\x01"[..]);
    assert_eq!(code(block_on(tx.get_estimated_range_size(system))), 2004);
    for part_bytes in [1, 10_000, 1_000_000_000] {
        let points = block_on(tx.get_range_split_points(range("k1", "k9"), part_bytes, 0)).expect("it answers");
        assert_eq!((points[0].as_ref(), points[points.len() - 1].as_ref()), (&b"k1"[..], &b"k9"[..]));
        assert!(points.windows(2).all(|pair| pair[0] < pair[1]), "{points:?}");
    }
    assert_eq!(code(block_on(tx.get_range_split_points(range("a", "c"), 0, 0))), 2000);
    let found = block_on(tx.get_addresses_for_key("k")).expect("it answers");
    assert_eq!(found.is_empty(), here.addresses().is_empty(), "{found:?}");
    assert!(found.iter().all(|address| here.addresses().contains(address)), "{found:?}");
    let empty = block_on(tx.get_range(RangeOptions::from(range("c", "a")))).expect("an inverted one is empty");
    assert!(empty.rows.is_empty() && !empty.more);
}

/// A key that is longer than any can be is not there, and bounds that are cut off where no key can lie.
pub(crate) fn a_key_that_cannot_exist_is_absent(here: &Deployment) {
    here.write(vec![Mutation::set("k", "1"), Mutation::set("l", "1")]);
    let tx = here.database().create_transaction();
    assert_eq!(block_on(tx.get(vec![b'k'; 10_001])), Ok(None));
    tx.clear_range(vec![b'k'; 10_500], vec![b'l'; 20_000]);
    tx.add_conflict_range(KeyRange::new(vec![b'x'; 10_500], vec![b'y'; 20_000]), ConflictRangeType::Read).expect("ok");
    block_on(tx.commit()).expect("it commits");
    let keys: Vec<_> = here.rows().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["k"], "'l' lies between the bounds");
}
