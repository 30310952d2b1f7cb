//! Section 10: watches.

use super::{code, stamp_value};
use crate::deployment::Deployment;
use ferrisdb_client::{DatabaseOption, Transaction};
use ferrisdb_core::{Mutation, MutationKind};
use futures_executor::block_on;
use futures_util::FutureExt as _;

fn set(here: &Deployment, value: &str) {
    here.write(vec![Mutation::set("k", value.to_owned())]);
}

fn commit(tx: &Transaction) {
    block_on(tx.commit()).expect("it commits");
}

pub(crate) fn a_watch_fires_when_another_changes_the_value_after_the_commit(here: &Deployment) {
    for writes in [false, true] {
        let db = here.database();
        set(here, "old");
        let tx = db.create_transaction();
        let mut watch = tx.watch("k");
        if writes {
            tx.set("x", "");
        }
        commit(&tx);
        drop(tx);
        assert!((&mut watch).now_or_never().is_none());
        set(here, "old");
        assert!((&mut watch).now_or_never().is_none(), "it is the same value");
        set(here, "new");
        assert_eq!(block_on(watch), Ok(()));
    }
}

/// Before the commit the changes of others do not fire it, and make the commit conflict.
pub(crate) fn a_watch_reads_with_a_conflict(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    block_on(tx.get_read_version()).expect("it answers");
    let mut watch = tx.watch("k");
    set(here, "new");
    assert!((&mut watch).now_or_never().is_none());
    tx.set("x", "");
    assert_eq!(code(block_on(tx.commit())), 1020);
    assert_eq!(code(block_on(watch)), 1020, "it fails with the commit");
}

/// A commit that a deferred error refuses has failed, as any other: nobody waits for what depends on it.
pub(crate) fn a_refused_commit_ends_its_watches(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    let (watch, stamp) = (tx.watch("k"), tx.get_versionstamp());
    tx.set([0xFF, b'x'], "");
    assert_eq!(code(block_on(tx.commit())), 2004);
    assert_eq!((code(block_on(watch)), code(block_on(stamp))), (2004, 2020));
}

/// What the transaction saw counts, and what it writes afterwards fires at once if it differs.
pub(crate) fn own_writes_count(here: &Deployment) {
    let db = here.database();
    set(here, "old");
    let tx = db.create_transaction();
    tx.set("k", "own");
    let mut watch = tx.watch("k");
    tx.set("k", "own");
    assert!((&mut watch).now_or_never().is_none(), "the same again");
    commit(&tx);
    assert!((&mut watch).now_or_never().is_none());
    set(here, "new");
    assert_eq!(block_on(watch), Ok(()));

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

pub(crate) fn a_watch_ends_with_a_transaction_that_does_not_commit(here: &Deployment) {
    let db = here.database();
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
}

pub(crate) fn watches_are_counted_and_checked(here: &Deployment) {
    let db = here.database();
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
