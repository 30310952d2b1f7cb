//! Section 10: watches.

use std::sync::Arc;
use std::time::Duration;

use super::{code, stamp_value};
use crate::testing::{MemoryEndpoint, database};
use crate::{DatabaseOption, Transaction};
use ferrisdb_core::{Code, Mutation, MutationKind};
use futures_executor::block_on;
use futures_util::FutureExt as _;

fn set(endpoint: &MemoryEndpoint, value: &str) {
    endpoint.write(vec![Mutation::set("k", value.to_owned())]);
}

fn commit(tx: &Transaction) {
    block_on(tx.commit()).expect("it commits");
}

#[test]
fn a_watch_fires_when_another_changes_the_value_after_the_commit() {
    for writes in [false, true] {
        let (db, endpoint, rt) = database();
        set(&endpoint, "old");
        let tx = db.create_transaction();
        let mut watch = tx.watch("k");
        if writes {
            tx.set("x", "");
        }
        commit(&tx);
        drop(tx);
        assert!((&mut watch).now_or_never().is_none());
        set(&endpoint, "old");
        assert!((&mut watch).now_or_never().is_none(), "it is the same value");
        set(&endpoint, "new");
        assert_eq!(rt.block_on(watch), Ok(()));
        assert_eq!(db.inner.watch_count(), 0);
    }
}

/// Before the commit the changes of others do not fire it, and make the commit conflict.
#[test]
fn a_watch_reads_with_a_conflict() {
    let (db, endpoint, _) = database();
    let tx = db.create_transaction();
    let mut watch = tx.watch("k");
    set(&endpoint, "new");
    assert!((&mut watch).now_or_never().is_none());
    tx.set("x", "");
    assert_eq!(code(block_on(tx.commit())), 1020);
    assert_eq!(code(block_on(watch)), 1020, "it fails with the commit");
}

/// A commit that a deferred error refuses has failed, as any other: nobody waits for what depends on it.
#[test]
fn a_refused_commit_ends_its_watches() {
    let (db, _, _) = database();
    let tx = db.create_transaction();
    let (watch, stamp) = (tx.watch("k"), tx.get_versionstamp());
    tx.set([0xFF, b'x'], "");
    assert_eq!(code(block_on(tx.commit())), 2004);
    assert_eq!(watch.now_or_never().map(code), Some(2004));
    assert_eq!(stamp.now_or_never().map(code), Some(2020));
}

/// What the transaction saw counts, and what it writes afterwards fires at once if it differs.
#[test]
fn own_writes_count() {
    let (db, endpoint, rt) = database();
    set(&endpoint, "old");
    let tx = db.create_transaction();
    tx.set("k", "own");
    let mut watch = tx.watch("k");
    tx.set("k", "own");
    assert!((&mut watch).now_or_never().is_none(), "the same again");
    commit(&tx);
    assert!((&mut watch).now_or_never().is_none());
    set(&endpoint, "new");
    assert_eq!(rt.block_on(watch), Ok(()));

    let later: [fn(&Transaction); 4] = [
        |tx| tx.set("k", "own"),
        |tx| tx.clear_range("a", "z"),
        |tx| tx.atomic_op("k", "x", MutationKind::Add),
        |tx| stamp_value(tx, "k"),
    ];
    for later in later {
        let tx = db.create_transaction();
        let watch = tx.watch("k");
        later(&tx);
        assert_eq!(block_on(watch), Ok(()), "it fires before the commit");
    }
}

/// A write while the watch's read is still under way is compared when it ends.
#[test]
fn a_write_during_the_read_counts() {
    let (db, endpoint, rt) = database();
    set(&endpoint, "old");
    endpoint.answer_late(2);
    for (value, fires) in [("old", false), ("own", true)] {
        let tx = db.create_transaction();
        let mut watch = tx.watch("k");
        tx.set("k", value);
        rt.block_on(tx.commit()).expect("it commits");
        assert_eq!((&mut watch).now_or_never().is_some(), fires);
    }
}

#[test]
fn a_watch_ends_with_a_transaction_that_does_not_commit() {
    let (db, endpoint, _) = database();
    let end: [fn(Transaction); 3] = [|tx| tx.cancel(), |tx| tx.reset(), drop];
    for end in end {
        let tx = db.create_transaction();
        let watch = tx.watch("k");
        end(tx);
        assert_eq!(code(block_on(watch)), 1025);
    }
    // Once it is armed it lives by itself.
    for end in end {
        let tx = db.create_transaction();
        let mut watch = tx.watch("k");
        commit(&tx);
        end(tx);
        assert!((&mut watch).now_or_never().is_none());
    }
    assert_eq!(db.inner.watch_count(), 0);
    drop(endpoint);
}

#[test]
fn watches_are_counted_and_checked() {
    let (db, _, _) = database();
    db.set_option(&DatabaseOption::MaxWatches(2)).expect("legal");
    let tx = db.create_transaction();
    let (_first, second) = (tx.watch("k"), tx.watch("k"));
    assert_eq!(code(block_on(tx.watch("k"))), 1032);
    drop(second);
    let _third = tx.watch("k");
    assert_eq!(code(block_on(tx.watch("k"))), 1032);
    db.set_option(&DatabaseOption::MaxWatches(100)).expect("legal");
    assert_eq!(code(block_on(tx.watch(b"\xff/x"))), 2004);
    assert_eq!(code(block_on(tx.watch(vec![b'x'; 10_001]))), 2102);
    let tx = db.create_transaction();
    stamp_value(&tx, "s");
    assert_eq!(code(block_on(tx.watch("s"))), 1036);
    commit(&tx);
}

/// An armed watch whose server is lost looks again, and goes on waiting if nothing has changed.
#[test]
fn an_armed_watch_survives_its_server() {
    let (db, endpoint, rt) = database();
    set(&endpoint, "old");
    for failure in [Code::ConnectionFailed, Code::TransactionTooOld, Code::TooManyWatches] {
        let tx = db.create_transaction();
        let mut watch = tx.watch("k");
        commit(&tx);
        endpoint.fail_watch(failure);
        endpoint.fail_watch(failure);
        assert!((&mut watch).now_or_never().is_none());
        rt.run_for(Duration::from_secs(1));
        assert!((&mut watch).now_or_never().is_none());
        rt.run_for(Duration::from_secs(1));
        assert!((&mut watch).now_or_never().is_none());
        set(&endpoint, &format!("new {failure}"));
        assert_eq!(rt.block_on(watch), Ok(()));
    }
    // What changes while it is away is found.
    let tx = db.create_transaction();
    let mut watch = tx.watch("k");
    commit(&tx);
    endpoint.fail_watch(Code::ConnectionFailed);
    assert!((&mut watch).now_or_never().is_none());
    set(&endpoint, "newer");
    assert_eq!(rt.block_on(watch), Ok(()));
    // What nobody can mend is told.
    let tx = db.create_transaction();
    let watch = tx.watch("k");
    commit(&tx);
    endpoint.fail_watch(Code::PermissionDenied);
    assert_eq!(code(rt.block_on(watch)), 6000);
    drop(Arc::clone(&endpoint));
}
