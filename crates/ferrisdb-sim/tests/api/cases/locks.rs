//! 1038 `database_locked`, and who is told it.

use ferrisdb_core::key::DATABASE_LOCK_KEY;
use ferrisdb_core::{Bytes, Code, Mutation, Version};
use futures_executor::block_on;

use super::code;
use crate::deployment::Deployment;
use ferrisdb_client::{SnapshotOptions, TransactionOption};

const MINE: [u8; 16] = [0xA1; 16];
const OTHERS: [u8; 16] = [0xB2; 16];

/// Locked, nobody gets a read version or commits but those who say that they know; unlocked, everybody does again.
pub(crate) fn a_locked_database_serves_those_who_know(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("k", "1")]);
    block_on(db.lock(MINE)).expect("it is not locked");
    assert_eq!(block_on(db.locked_by()), Ok(Some(MINE)));

    let tx = db.create_transaction();
    assert_eq!(code(block_on(tx.get_read_version())), 1038);
    assert_eq!(code(block_on(tx.get("k"))), 1038, "it stays so until the transaction begins anew");
    let tx = db.create_transaction();
    assert_eq!(code(block_on(tx.get("k"))), 1038);
    assert_eq!(code(block_on(tx.commit())), 1038, "a read has failed");
    let blind = db.create_transaction();
    blind.set("k", "2");
    assert_eq!(code(block_on(blind.commit())), 1038);
    assert_eq!(code(block_on(db.snapshot(SnapshotOptions::default())).map(|_| ())), 1038);

    let aware = db.create_transaction();
    aware.set_option(&TransactionOption::LockAware);
    assert_eq!(block_on(aware.get("k")), Ok(Some(Bytes::from("1"))));
    aware.set("k", "3");
    block_on(aware.commit()).expect("it knows");
    let options = SnapshotOptions { lock_aware: true, ..SnapshotOptions::default() };
    assert!(block_on(db.snapshot(options)).is_ok());

    block_on(db.unlock(MINE)).expect("it is mine");
    block_on(db.unlock(MINE)).expect("once more changes nothing");
    assert_eq!(block_on(db.locked_by()), Ok(None));
    assert_eq!(block_on(db.create_transaction().get("k")), Ok(Some(Bytes::from("3"))));
}

/// Options 700 and 702, in every order: who is told that it may read cannot write, unless it also says that it may do both.
pub(crate) fn read_lock_aware_reads_and_does_not_write(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set("k", "1")]);
    block_on(db.lock(MINE)).expect("it is not locked");
    let run = |options: &[TransactionOption]| {
        let tx = db.create_transaction();
        options.iter().for_each(|option| tx.set_option(option));
        let read = code(block_on(tx.get("k")));
        tx.set("k", "2");
        (read, code(block_on(tx.commit())))
    };
    use TransactionOption::{LockAware, ReadLockAware};
    assert_eq!(run(&[ReadLockAware]), (0, 2023));
    assert_eq!(run(&[ReadLockAware, ReadLockAware]), (0, 2023));
    assert_eq!(run(&[ReadLockAware, LockAware]), (0, 0));
    assert_eq!(run(&[LockAware, ReadLockAware]), (0, 0));
    // It has no effect on a transaction that only reads.
    let tx = db.create_transaction();
    tx.set_option(&ReadLockAware);
    block_on(tx.get("k")).expect("it knows");
    block_on(tx.commit()).expect("it has written nothing");
    // Lost with the other options.
    block_on(tx.on_error(Code::NotCommitted.into())).expect("it passes");
    assert_eq!(code(block_on(tx.get("k"))), 1038);
}

/// The lock is somebody's: only who has its id undoes it.
pub(crate) fn a_lock_is_known_by_its_id(here: &Deployment) {
    let db = here.database();
    block_on(db.lock(MINE)).expect("it is not locked");
    block_on(db.lock(MINE)).expect("it is mine already");
    let error = block_on(db.lock(OTHERS)).expect_err("it is somebody else's");
    assert_eq!(error.code(), Code::DatabaseLocked);
    assert!(error.to_string().contains(&"a1".repeat(16)), "{error}");
    assert_eq!(code(block_on(db.unlock(OTHERS))), 1038);
    assert_eq!(block_on(db.locked_by()), Ok(Some(MINE)));
}

/// What was read before the lock cannot be built on after it.
pub(crate) fn a_transaction_from_before_the_lock_does_not_commit_after_it(here: &Deployment) {
    let db = here.database();
    let (reader, blind) = (db.create_transaction(), db.create_transaction());
    block_on(reader.get("k")).expect("it reads");
    reader.set("l", "");
    blind.set("m", "");
    block_on(db.lock(MINE)).expect("it is not locked");
    assert_eq!(block_on(reader.get("other")), Ok(None), "it had its version before");
    block_on(db.unlock(MINE)).expect("it is mine");
    assert_eq!(code(block_on(reader.commit())), 1020);
    block_on(blind.commit()).expect("it has read nothing");
}

/// With a version that it was told by somebody else a transaction reads, as it would if it had asked before; but it does not commit.
pub(crate) fn a_set_read_version_is_not_asked_for(here: &Deployment) {
    let db = here.database();
    let version = here.write(vec![Mutation::set("k", "1")]);
    block_on(db.lock(MINE)).expect("it is not locked");
    let tx = db.create_transaction();
    tx.set_read_version(i64::try_from(version.get()).expect("a version has 56 bits"));
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from("1"))));
    tx.set("k", "2");
    assert_eq!(code(block_on(tx.commit())), 1038);
}

/// The lock is a key like any other: set by hand it locks, whatever the value, and cleared with others it unlocks.
pub(crate) fn the_lock_is_a_system_key(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set(DATABASE_LOCK_KEY, "by hand")]);
    assert_eq!(block_on(db.locked_by()), Ok(Some([0; 16])));
    assert_eq!(code(block_on(db.unlock(MINE))), 1038);
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::AccessSystemKeys);
    tx.set_option(&TransactionOption::LockAware);
    tx.clear_range("\u{0}", b"\xff\xff");
    block_on(tx.commit()).expect("it knows");
    assert!(block_on(db.create_transaction().get_read_version()).expect("it is unlocked") > Version::ZERO);
}
