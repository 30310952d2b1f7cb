//! Section 7: versions, commits, and what they see of each other.

use ferrisdb_client::{ConflictRangeType, DatabaseOptions, TransactionOption};
use ferrisdb_core::{Bytes, Mutation, MutationKind, Version};
use futures_executor::block_on;

use super::{code, range, stamp_value, template};
use crate::deployment::Deployment;

fn number(version: Version) -> i64 {
    i64::try_from(version.get()).expect("a version has 56 bits")
}

/// A transaction reads at one version, whatever others commit meanwhile.
pub(crate) fn a_read_version_stays(here: &Deployment) {
    let first = here.write(vec![Mutation::set("k", "1")]);
    let tx = here.database().create_transaction();
    tx.set("own", "");
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from("1"))));
    let second = here.write(vec![Mutation::set("k", "2"), Mutation::set("l", "2")]);
    assert_eq!((block_on(tx.get("k")), block_on(tx.get("l"))), (Ok(Some(Bytes::from("1"))), Ok(None)));
    let version = block_on(tx.get_read_version()).expect("it answers");
    assert!(first <= version && version < second);
    assert_eq!(block_on(tx.get_read_version()), Ok(version));
}

pub(crate) fn a_read_version_can_be_set_once_before_it_is_asked_for(here: &Deployment) {
    let first = here.write(vec![Mutation::set("k", "1")]);
    let second = here.write(vec![Mutation::set("k", "2")]);
    let tx = here.database().create_transaction();
    for (version, expected) in [(first, "1"), (second, "2")] {
        tx.reset();
        tx.set_read_version(number(version));
        assert_eq!(block_on(tx.get_read_version()), Ok(version));
        assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from(expected))));
    }
    tx.set_read_version(number(second));
    assert_eq!(code(block_on(tx.get("k"))), 2010);
    for (version, expected) in [(0, 2011), (-1, 2011), (i64::MAX, 2011), (number(second) + 1_000_000_000, 1009)] {
        tx.reset();
        tx.set_read_version(version);
        assert_eq!(code(block_on(tx.get("k"))), expected, "{version}");
    }
    // What has only read does not ask; what writes conflicts with what was written since.
    tx.reset();
    tx.set_read_version(number(first));
    block_on(tx.commit()).expect("there is nothing to do");
    for (reads, expected) in [(true, 1020), (false, 0)] {
        tx.reset();
        tx.set_read_version(number(first));
        if reads {
            block_on(tx.get("k")).expect("it is young enough");
        }
        tx.set("k", "3");
        assert_eq!(code(block_on(tx.commit())), expected);
    }
}

/// Whoever reads, or says that it has read, sees what others were acknowledged before it began, or conflicts.
pub(crate) fn who_begins_sees_what_was_acknowledged(here: &Deployment) {
    let db = here.database();
    for round in 0..20u8 {
        // A blind write leaves the client with a version that the next write is above.
        let blind = db.create_transaction();
        blind.set("blind", [round]);
        block_on(blind.commit()).expect("it commits");
        let newest = here.write(vec![Mutation::set("k", vec![round])]);
        let reads = db.create_transaction();
        let read = if round % 2 == 0 { reads.get("k") } else { reads.snapshot().get("k") };
        assert_eq!(block_on(read), Ok(Some(Bytes::from(vec![round]))));
        assert!(block_on(db.create_transaction().get_read_version()).expect("it answers") >= newest);
        let says = db.create_transaction();
        says.add_conflict_range(range("k", "l"), ConflictRangeType::Read).expect("legal");
        says.set("k", "");
        block_on(says.commit()).expect("nobody has written since it asked");
        assert!(says.get_committed_version().expect("it wrote") > newest);
    }
}

/// Two that have read what the other writes: one of them commits. Who writes only never conflicts.
pub(crate) fn of_two_that_depend_on_each_other_one_commits(here: &Deployment) {
    let db = here.database();
    let (one, other, blind) = (db.create_transaction(), db.create_transaction(), db.create_transaction());
    for tx in [&one, &other] {
        block_on(tx.get_range(range("a", "c"))).expect("it reads");
    }
    block_on(blind.get_read_version()).expect("it answers");
    one.set("a", "1");
    other.set("b", "2");
    blind.set("a", "3");
    assert_eq!(
        [code(block_on(one.commit())), code(block_on(other.commit())), code(block_on(blind.commit()))],
        [0, 1020, 0]
    );
    assert_eq!(here.rows(), [("a".into(), "3".into())]);
}

pub(crate) fn a_commit_tells_its_version_and_stamp(here: &Deployment) {
    let tx = here.database().create_transaction();
    assert_eq!(tx.get_committed_version(), None);
    let stamp = tx.get_versionstamp();
    tx.atomic_op(template("k", "z"), "v", MutationKind::SetVersionstampedKey);
    stamp_value(&tx, "value");
    block_on(tx.commit()).expect("it commits");
    let version = tx.get_committed_version().expect("it has one");
    let stamp = block_on(stamp).expect("it has one");
    assert_eq!(stamp.as_bytes()[..8], version.get().to_be_bytes());
    let rows = here.rows();
    assert_eq!(rows[0].0.as_ref(), [b"k", &stamp.as_bytes()[..], b"z"].concat());
    assert_eq!(rows[1].1.as_ref(), stamp.as_bytes());

    // It is too late to ask once the commit has begun.
    assert_eq!(code(block_on(tx.get_versionstamp())), 2017);
    tx.reset();
    let stamp = tx.get_versionstamp();
    block_on(tx.commit()).expect("there is nothing to do");
    assert_eq!((code(block_on(stamp)), tx.get_committed_version()), (2021, None));
    tx.reset();
    let stamp = tx.get_versionstamp();
    block_on(tx.get("k")).expect("it reads");
    here.write(vec![Mutation::set("k", "")]);
    tx.set("x", "");
    assert_eq!(code(block_on(tx.commit())), 1020);
    assert_eq!(code(block_on(stamp)), 2020);
    tx.reset();
    let stamp = tx.get_versionstamp();
    drop(tx);
    assert_eq!(code(block_on(stamp)), 1025);
}

/// Stamps grow from commit to commit, whoever commits.
pub(crate) fn stamps_grow(here: &Deployment) {
    let db = here.database();
    let mut last = Vec::new();
    for round in 0..10 {
        let template = template("s", "");
        if round % 2 == 0 {
            let tx = db.create_transaction();
            tx.atomic_op(&template, [round], MutationKind::SetVersionstampedKey);
            block_on(tx.commit()).expect("it commits");
        } else {
            let stamped =
                Mutation { kind: MutationKind::SetVersionstampedKey, key: template.into(), value: vec![round].into() };
            here.write(vec![stamped]);
        }
        last.push(round);
        let values: Vec<u8> = here.rows().iter().map(|(_, value)| value[0]).collect();
        assert_eq!(values, last);
    }
}

/// A commit waits for the reads before it, and conflicts with what they read, whether anybody looked at them or not; one that was dropped never was.
pub(crate) fn a_commit_waits_for_the_reads_under_way(here: &Deployment) {
    let db = here.database();
    for (written, expected) in [("a", 1020), ("b7", 1020), ("z", 0)] {
        let tx = db.create_transaction();
        block_on(tx.get_read_version()).expect("it answers");
        let (first, second) = (tx.get("a"), tx.get_range(range("b", "c")));
        here.write(vec![Mutation::set(written, "")]);
        tx.set("x", "");
        assert_eq!(code(block_on(tx.commit())), expected, "{written}");
        drop((first, second));
    }
}

pub(crate) fn a_read_only_transaction_says_so(here: &Deployment) {
    let tx = here.database().create_transaction();
    tx.set_option(&TransactionOption::ReadLockAware);
    tx.set("x", "");
    assert_eq!(code(block_on(tx.commit())), 2023);
}

/// Dropping the future of a commit does not stop it: it happens, and the transaction says so.
pub(crate) fn a_dropped_commit_goes_on(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    tx.set("x", "1");
    let stamp = tx.get_versionstamp();
    drop(tx.commit());
    let stamp = block_on(stamp).expect("it commits all the same");
    let version = tx.get_committed_version().expect("it has");
    assert_eq!(stamp.as_bytes()[..8], version.get().to_be_bytes());
    assert_eq!(here.rows(), [("x".into(), "1".into())]);
}

/// With commit ids or without, with what conflicts with itself and with what does not: where nothing fails nobody sees a difference.
pub(crate) fn commits_without_ids_are_commits(here: &Deployment) {
    let db = here.database_with(DatabaseOptions { automatic_idempotency: false, ..DatabaseOptions::default() });
    for (round, risky) in [(0u8, false), (1, true)] {
        let tx = db.create_transaction();
        if risky {
            tx.set_option(&TransactionOption::CausalWriteRisky);
        }
        tx.set("k", [round]);
        block_on(tx.commit()).expect("a blind write");
        let tx = db.create_transaction();
        assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from(vec![round]))));
        tx.set("l", [round]);
        block_on(tx.commit()).expect("nobody has written");
    }
    assert_eq!(here.rows().len(), 2, "a key of the client's own is written nowhere");
}

/// Priorities say who waits while the database is busy; while it is not, all begin.
pub(crate) fn all_priorities_begin(here: &Deployment) {
    let db = here.database();
    for option in [TransactionOption::PriorityBatch, TransactionOption::PrioritySystemImmediate] {
        let tx = db.create_transaction();
        tx.set_option(&option);
        block_on(tx.get("k")).expect("it begins");
        tx.set("k", "");
        block_on(tx.commit()).expect("it commits");
        let blind = db.create_transaction();
        blind.set_option(&option);
        blind.set("k", "");
        block_on(blind.commit()).expect("it commits");
    }
}
