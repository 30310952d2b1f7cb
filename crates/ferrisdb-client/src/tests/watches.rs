//! Section 10: watches.

use std::sync::Arc;
use std::time::Duration;

use super::code;
use crate::Transaction;
use crate::testing::{MemoryEndpoint, database};
use ferrisdb_core::{Code, Mutation};
use futures_executor::block_on;
use futures_util::FutureExt as _;

fn set(endpoint: &MemoryEndpoint, value: &str) {
    endpoint.write(vec![Mutation::set("k", value.to_owned())]);
}

fn commit(tx: &Transaction) {
    block_on(tx.commit()).expect("it commits");
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

/// A watch that is armed hears of changes also while the database is locked, and also if it has to ask again.
#[test]
fn a_watch_outlives_a_lock() {
    let (db, endpoint, rt) = database();
    let tx = db.create_transaction();
    let watch = tx.watch("k");
    rt.block_on(tx.commit()).expect("it commits");
    rt.block_on(db.lock([0xA1; 16])).expect("it is not locked");
    endpoint.fail_watch(Code::ConnectionFailed);
    endpoint.write(vec![Mutation::set("k", "1")]);
    assert_eq!(rt.block_on(watch), Ok(()));
}
