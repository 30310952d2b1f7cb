//! Section 8: when a transaction may be used, and what survives what.

use std::cell::Cell;

use super::{code, range};
use crate::deployment::Deployment;
use ferrisdb_client::{DatabaseOption, Transaction, TransactionOption};
use ferrisdb_core::{Code, Mutation, Result};
use futures_executor::block_on;

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

/// Cancelled or poisoned, a transaction fails with the same code whatever is asked of it, until it is reset.
pub(crate) fn what_has_failed_fails_until_a_reset(here: &Deployment) {
    let tx = here.database().create_transaction();
    tx.set("k", "never");
    tx.cancel();
    assert_eq!(state_of(&tx), 1025);
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1025);
    tx.set("k", "never");
    tx.reset();
    assert_eq!(block_on(tx.get("k")), Ok(None));
    block_on(tx.commit()).expect("it is as new");
    assert!(here.rows().is_empty());
}

/// After a commit nothing may be done but to reset; who does makes the transaction unusable, unless an option forbids that.
pub(crate) fn use_after_a_commit(here: &Deployment) {
    let db = here.database();
    for protected in [true, false] {
        let tx = db.create_transaction();
        if !protected {
            tx.set_option(&TransactionOption::UsedDuringCommitProtectionDisable);
        }
        tx.set("x", "");
        block_on(tx.commit()).expect("it commits");
        assert_eq!(code(block_on(tx.get("k"))), 2017);
        assert_eq!(code(block_on(tx.commit())), 2017);
        tx.set("k", "");
        assert_eq!(code(block_on(tx.get_read_version())), 2017, "deferred");
        assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), if protected { 2017 } else { 0 });
        tx.reset();
        assert_eq!(code(block_on(tx.get("k"))), 0);
    }
}

/// A timeout that has passed before it is set fires at once; zero, in time, takes it away; and defaults of the database are of its new transactions.
pub(crate) fn timeouts_and_defaults(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::Timeout(i64::from(i32::MAX)));
    assert_eq!(code(block_on(tx.get("k"))), 0);
    tx.set_option(&TransactionOption::Timeout(0));
    assert_eq!(code(block_on(tx.get("k"))), 0);
    tx.set_option(&TransactionOption::Timeout(1));
    // Whatever is asked until then may be answered in time, and nothing after it.
    while code(block_on(tx.get("k"))) != 1031 {}
    assert_eq!(state_of(&tx), 1031);
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1031);
    tx.reset();
    assert_eq!(code(block_on(tx.get("k"))), 0, "a reset takes it away");
    db.set_option(&DatabaseOption::TransactionRetryLimit(0)).expect("legal");
    let old = tx;
    let tx = db.create_transaction();
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1020);
    assert_eq!(code(block_on(old.on_error(Code::NotCommitted.into()))), 0, "it was there before");
    assert_eq!(code(db.set_option(&DatabaseOption::TransactionTimeout(-1))), 2006);
    assert_eq!(code(db.set_option(&DatabaseOption::MaxWatches(1_000_001))), 2006);
}

pub(crate) fn on_error_begins_again_or_gives_up(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    tx.set("k", "own");
    tx.set_option(&TransactionOption::AccessSystemKeys);
    tx.set_option(&TransactionOption::RetryLimit(3));
    tx.set_option(&TransactionOption::MaxRetryDelay(2));
    let late = tx.get("k");
    drop(late);
    block_on(tx.on_error(Code::NotCommitted.into())).expect("it passes");
    assert_eq!(block_on(tx.get("k")), Ok(None), "writes are gone");
    assert_eq!(code(block_on(tx.get(b"\xff/x"))), 2004, "options too");
    block_on(tx.on_error(Code::TransactionTooOld.into())).expect("it passes");
    block_on(tx.on_error(Code::FutureVersion.into())).expect("it passes");
    assert_eq!(tx.retries(), 3, "they are counted");
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1020, "and the retry limit");
    assert_eq!(state_of(&tx), 1025, "it is of no more use");
    assert_eq!(code(block_on(tx.on_error(Code::NotCommitted.into()))), 1025);
    tx.reset();
    assert_eq!(code(block_on(tx.on_error(Code::ClusterVersionChanged.into()))), 1039);
    assert_eq!(state_of(&tx), 1025);
    tx.reset();
    assert_eq!(code(block_on(tx.on_error(Code::KeyTooLarge.into()))), 2102);
    assert_eq!(state_of(&tx), 1025);
    tx.reset();
    assert_eq!((tx.retries(), code(block_on(tx.get("k")))), (0, 0));
    for _ in 0..2 {
        block_on(tx.on_error(Code::NotCommitted.into())).expect("a reset has taken the limit away");
    }
    assert!(here.rows().is_empty());
}

pub(crate) fn options_with_bad_values_are_deferred_and_unknown_ones_are_not(here: &Deployment) {
    let db = here.database();
    use TransactionOption as T;
    let cases = [
        (T::Timeout(-1), 2006),
        (T::RetryLimit(-2), 2006),
        (T::RetryLimit(-1), 0),
        (T::MaxRetryDelay(i64::MAX), 2006),
        (T::SizeLimit(31), 2006),
        (T::SizeLimit(10_000_001), 2006),
        (T::SpanParent(vec![0; 32]), 2006),
        (T::SpanParent(vec![0; 33]), 0),
        (T::IdempotencyId(vec![0; 15]), 2006),
        (T::LogTransaction, 2000),
        (T::DebugTransactionIdentifier("x".repeat(101)), 2006),
        (T::Tag("x".repeat(256)), 2110),
    ];
    for (option, expected) in cases {
        let tx = db.create_transaction();
        tx.set_option(&option);
        assert_eq!(code(tx.get_approximate_size()), expected, "{option:?}");
    }
    let tx = db.create_transaction();
    (0..6).for_each(|_| tx.set_option(&T::Tag("x".into())));
    assert_eq!(code(tx.get_approximate_size()), 2109);
    let tx = db.create_transaction();
    assert_eq!(code(tx.set_option_by_number(12_345, None)), 2007);
    assert_eq!(code(tx.get_approximate_size()), 0);
    assert_eq!(code(tx.set_option_by_number(500, Some(b"1"))), 0);
    assert_eq!(code(tx.get_approximate_size()), 2006);
}

pub(crate) fn run_retries_what_passes_and_nothing_else(here: &Deployment) {
    let db = here.database();
    let attempts = Cell::new(0);
    let result = block_on(db.run(async |tx| {
        attempts.set(attempts.get() + 1);
        tx.get("k").await?;
        if attempts.get() < 4 {
            here.writing(vec![Mutation::set("k", "other")]).await;
        }
        tx.set("k", "own");
        Ok(attempts.get())
    }));
    assert_eq!((result, here.rows()[0].1.as_ref()), (Ok(4), &b"own"[..]));
    let result: Result<()> = block_on(db.run(async |_| Err(Code::KeyTooLarge.into())));
    assert_eq!(code(result), 2102);
}
