//! Section 8: when a transaction may be used, and what survives what.

use std::time::Duration;

use super::{code, range};
use crate::testing::database;
use crate::{DatabaseOption, Transaction, TransactionOption};
use ferrisdb_core::{Clock as _, Code};
use futures_executor::block_on;
use futures_util::FutureExt as _;

/// The code that every call that returns something fails with.
fn state_of(tx: &Transaction) -> u16 {
    let codes = [
        code(block_on(tx.get("k"))),
        code(block_on(tx.get_range(range("a", "b")))),
        code(block_on(tx.get_read_version())),
        code(tx.get_approximate_size()),
        code(block_on(tx.watch("k"))),
        code(block_on(tx.commit())),
    ];
    assert!(codes.iter().all(|one| *one == codes[0]), "{codes:?}");
    codes[0]
}

#[test]
fn cancel_ends_everything_until_reset() {
    let (db, endpoint, rt) = database();
    endpoint.set_stuck(true);
    let tx = db.create_transaction();
    let (get, all, watch, stamp) = (tx.get("k"), tx.get_range(range("a", "b")), tx.watch("k"), tx.get_versionstamp());
    tx.cancel();
    rt.block_on(async {
        assert_eq!([code(get.await), code(all.await), code(watch.await), code(stamp.await)], [1025; 4]);
    });
    assert_eq!(state_of(&tx), 1025);
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1025);
    tx.set("k", "");
    tx.reset();
    endpoint.set_stuck(false);
    assert_eq!(block_on(tx.get("k")), Ok(None));
    assert_eq!(db.inner.watch_count(), 0);
}

#[test]
fn reset_ends_what_is_under_way() {
    let (db, endpoint, rt) = database();
    endpoint.set_stuck(true);
    let tx = db.create_transaction();
    let (get, all, watch) = (tx.get("k"), tx.get_range(range("a", "b")), tx.watch("k"));
    tx.reset();
    endpoint.set_stuck(false);
    rt.block_on(async { assert_eq!([code(get.await), code(all.await), code(watch.await)], [1025; 3]) });
    tx.set("k", "");
    rt.block_on(tx.commit()).expect("the new epoch knows nothing of it");
    assert!(endpoint.log().commits[0].read_conflicts.is_empty());
}

/// Nothing may be done once the commit has begun; who does makes the transaction unusable, unless an option forbids that.
#[test]
fn use_during_a_commit() {
    for protected in [true, false] {
        let (db, endpoint, rt) = database();
        endpoint.set_stuck(true);
        let tx = db.create_transaction();
        if !protected {
            tx.set_option(&TransactionOption::UsedDuringCommitProtectionDisable);
        }
        tx.set("x", "");
        let commit = tx.commit();
        assert_eq!(code(block_on(tx.get("k"))), 2017);
        assert_eq!(code(block_on(tx.commit())), 2017);
        endpoint.set_stuck(false);
        assert_eq!(code(rt.block_on(commit)), if protected { 2017 } else { 0 });
        // After it has ended it is the same.
        assert_eq!(code(block_on(tx.get("k"))), 2017);
        tx.set("k", "");
        assert_eq!(code(block_on(tx.get_read_version())), 2017, "deferred");
        assert_eq!(code(rt.block_on(tx.on_error(Code::NotCommitted.into()))), if protected { 2017 } else { 0 });
        tx.reset();
        assert_eq!(code(block_on(tx.get("k"))), 0);
        // Also if the next call is one that ends the transaction by itself.
        tx.set_option(&TransactionOption::Timeout(300));
        block_on(tx.commit()).expect("it commits");
        rt.run_for(Duration::from_millis(300));
        tx.set("k", "v");
        assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1031);
    }
}

#[test]
fn on_error_begins_again_or_gives_up() {
    let (db, endpoint, rt) = database();
    let tx = db.create_transaction();
    tx.set("k", "own");
    tx.set_option(&TransactionOption::AccessSystemKeys);
    tx.set_option(&TransactionOption::RetryLimit(3));
    tx.set_option(&TransactionOption::MaxRetryDelay(2));
    let late = tx.get("k");
    drop(late);
    rt.block_on(tx.on_error(Code::NotCommitted.into())).expect("it passes");
    assert_eq!(rt.block_on(tx.get("k")), Ok(None), "writes are gone");
    assert_eq!(code(rt.block_on(tx.get(b"\xff/x"))), 2004, "options too");
    let before = rt.now();
    rt.block_on(tx.on_error(Code::TransactionTooOld.into())).expect("it passes");
    assert_eq!(rt.now() - before, Duration::from_millis(2), "but for the longest delay");
    rt.block_on(tx.on_error(Code::FutureVersion.into())).expect("it passes");
    assert_eq!(tx.retries(), 3);
    assert_eq!(code(rt.block_on(tx.on_error(Code::NotCommitted.into()))), 1020, "and the retry limit");
    assert_eq!(state_of(&tx), 1025, "it is of no more use");
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1025);
    tx.reset();
    assert_eq!(code(rt.block_on(tx.on_error(Code::ClusterVersionChanged.into()))), 1039);
    assert_eq!(state_of(&tx), 1025);
    tx.reset();
    assert_eq!(code(rt.block_on(tx.on_error(Code::KeyTooLarge.into()))), 2102);
    assert_eq!(state_of(&tx), 1025);
    tx.reset();
    assert_eq!((tx.retries(), code(block_on(tx.get("k")))), (0, 0));
    for _ in 0..5 {
        rt.block_on(tx.on_error(Code::NotCommitted.into())).expect("a reset has taken the limit away");
    }
    assert!(endpoint.rows().is_empty());
}

/// A dropped on_error has counted the error and done nothing else.
#[test]
fn a_dropped_on_error_leaves_the_transaction_as_it_was() {
    let (db, _, rt) = database();
    let tx = db.create_transaction();
    tx.set("k", "own");
    let mut retry = Box::pin(tx.on_error(Code::NotCommitted.into()));
    assert!((&mut retry).now_or_never().is_none());
    drop(retry);
    assert_eq!(rt.timer_count(), 0);
    assert!(block_on(tx.get("k")).expect("it reads").is_some());
    // Cancelling ends one under way.
    let mut retry = Box::pin(tx.on_error(Code::NotCommitted.into()));
    assert!((&mut retry).now_or_never().is_none());
    tx.cancel();
    assert_eq!(code(block_on(retry)), 1025);
}

#[test]
fn a_timeout_counts_from_the_beginning() {
    let (db, endpoint, rt) = database();
    endpoint.set_stuck(true);
    let tx = db.create_transaction();
    rt.run_for(Duration::from_millis(60));
    tx.set_option(&TransactionOption::Timeout(100));
    let (get, watch) = (tx.get("k"), tx.watch("k"));
    assert_eq!(code(rt.block_on(get)), 1031);
    assert_eq!(rt.now(), Duration::from_millis(100));
    assert_eq!(code(rt.block_on(watch)), 1031);
    assert_eq!(state_of(&tx), 1031);
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1031);
    tx.set_option(&TransactionOption::Timeout(0));
    assert_eq!(state_of(&tx), 1031, "too late");
    tx.reset();
    endpoint.set_stuck(false);
    rt.run_for(Duration::from_millis(500));
    assert_eq!(code(block_on(tx.get("k"))), 0, "a reset takes it away");
    // Set to what is past already, it fires at once; set to zero in time, never.
    tx.set_option(&TransactionOption::Timeout(400));
    assert_eq!(state_of(&tx), 1031);
    tx.reset();
    tx.set_option(&TransactionOption::Timeout(400));
    tx.set_option(&TransactionOption::Timeout(0));
    rt.run_for(Duration::from_millis(500));
    assert_eq!(code(block_on(tx.get("k"))), 0);
    assert_eq!(rt.timer_count(), 0);
}

/// A timeout that is over has fired, although nobody had called anything since: neither zero nor a later one brings the transaction back.
#[test]
fn a_timeout_fires_unseen() {
    for later in [0, 10_000] {
        let (db, _, rt) = database();
        let tx = db.create_transaction();
        tx.set_option(&TransactionOption::Timeout(100));
        rt.run_for(Duration::from_millis(100));
        tx.set_option(&TransactionOption::Timeout(later));
        assert_eq!(code(block_on(tx.get("k"))), 1031);
        assert_eq!(state_of(&tx), 1031);
        tx.reset();
        assert_eq!(code(block_on(tx.get("k"))), 0);
        // Also if the next call is one that ends the transaction by itself.
        tx.set_option(&TransactionOption::Timeout(300));
        block_on(tx.commit()).expect("it commits");
        rt.run_for(Duration::from_millis(300));
        tx.set("k", "v");
        assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1031);
        // Or one that would fire a watch.
        tx.reset();
        let watch = tx.watch("w");
        tx.set_option(&TransactionOption::Timeout(100));
        rt.run_for(Duration::from_millis(100));
        tx.set("w", "v");
        assert_eq!(code(block_on(watch)), 1031);
    }
}

/// What a transaction has promised for after its commit ends with its time, although nobody calls it any more; what has left it does not.
#[test]
fn a_timeout_ends_promises_unseen() {
    let (db, _, rt) = database();
    let tx = db.create_transaction();
    let armed = tx.watch("k");
    block_on(tx.commit()).expect("it commits");
    let (pending, stamp) = (db.create_transaction(), db.create_transaction());
    let (mut watch, mut stamped) = (pending.watch("k"), Box::pin(stamp.get_versionstamp()));
    // Before the time is known, and after.
    assert!((&mut watch).now_or_never().is_none() && stamped.as_mut().now_or_never().is_none());
    for tx in [&tx, &pending, &stamp] {
        tx.set_option(&TransactionOption::Timeout(100));
    }
    assert_eq!((code(rt.block_on(watch)), code(rt.block_on(stamped))), (1031, 1031));
    assert_eq!(rt.now(), Duration::from_millis(100));
    block_on(db.run(async |tx| {
        tx.set("k", "w");
        Ok(())
    }))
    .expect("it commits");
    assert_eq!(rt.block_on(armed), Ok(()));
    drop((pending, stamp, tx));
    assert_eq!((rt.timer_count(), db.inner.watch_count()), (0, 0));
}

/// It survives an error, whose delay counts, and futures under way notice when it is set.
#[test]
fn a_timeout_goes_on_through_retries() {
    let (db, endpoint, rt) = database();
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::Timeout(100));
    rt.run_for(Duration::from_millis(55));
    let result = rt.block_on(async {
        for _ in 0..20 {
            tx.on_error(Code::TransactionTooOld.into()).await?;
        }
        Ok(())
    });
    assert_eq!((code(result), tx.retries()), (1031, 5), "four resets did not take it away");
    assert_eq!(rt.now(), Duration::from_millis(100));

    tx.reset();
    endpoint.set_stuck(true);
    let mut get = tx.get("k");
    assert!((&mut get).now_or_never().is_none());
    tx.set_option(&TransactionOption::Timeout(10));
    assert_eq!(code(rt.block_on(get)), 1031);
    assert_eq!(rt.now(), Duration::from_millis(110));
}

#[test]
fn a_databases_defaults_hold_for_new_and_reset_transactions() {
    let (db, _, rt) = database();
    let old = db.create_transaction();
    db.set_option(&DatabaseOption::TransactionTimeout(50)).expect("legal");
    db.set_option(&DatabaseOption::TransactionRetryLimit(0)).expect("legal");
    let tx = db.create_transaction();
    rt.run_for(Duration::from_millis(50));
    assert_eq!((state_of(&tx), code(block_on(old.get("k")))), (1031, 0));
    old.reset();
    assert_eq!(code(rt.block_on(old.on_error(Code::NotCommitted.into()))), 1020);
    assert_eq!(code(db.set_option(&DatabaseOption::TransactionTimeout(-1))), 2006);
    assert_eq!(code(db.set_option(&DatabaseOption::MaxWatches(1_000_001))), 2006);
}

/// A transaction that goes leaves nothing behind, whatever was under way.
#[test]
fn nothing_leaks() {
    let (db, endpoint, rt) = database();
    let holders = |db: &crate::Database| std::sync::Arc::strong_count(&db.inner);
    assert_eq!(holders(&db), 1);
    endpoint.set_stuck(true);
    for _ in 0..3 {
        let tx = db.create_transaction();
        tx.set_option(&TransactionOption::Timeout(1000));
        let mut futures = (tx.get("a"), tx.get_range(range("a", "b")), tx.watch("c"), tx.commit());
        assert!((&mut futures.0).now_or_never().is_none());
        assert!((&mut futures.1).now_or_never().is_none());
        assert!((&mut futures.2).now_or_never().is_none());
        assert!((&mut futures.3).now_or_never().is_none());
        drop(tx);
        drop(futures);
    }
    endpoint.set_stuck(false);
    rt.run_until_idle();
    assert!(rt.tasks().is_empty());
    assert_eq!((holders(&db), rt.timer_count(), db.inner.watch_count()), (1, 0, 0));
}
