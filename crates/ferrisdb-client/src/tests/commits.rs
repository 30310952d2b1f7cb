//! Section 7: versions and commits; and that a transaction commits at most once whatever becomes of its answer.

use std::time::Duration;

use super::{code, range};
use crate::heard::HEARD_FOR;
use crate::testing::{Lost, database, database_with};
use crate::{ConflictRangeType, DatabaseOptions, TransactionOption};
use ferrisdb_core::{Bytes, Clock as _, Code, Mutation, MutationKind, Random, SplitMix64, Version, Versionstamp};
use ferrisdb_rpc::api::Priority;
use futures_executor::block_on;
use futures_util::FutureExt as _;
use futures_util::future::join_all;

#[test]
fn read_versions_are_asked_for_once_and_lazily() {
    let (db, endpoint, _) = database();
    endpoint.write(vec![Mutation::set("k", "1")]);
    let tx = db.create_transaction();
    tx.set("own", "");
    assert!(block_on(tx.get("own")).is_ok());
    assert!(endpoint.log().begins.is_empty(), "own writes need no version");
    block_on(tx.get("k")).expect("it reads");
    block_on(tx.get("l")).expect("it reads");
    assert_eq!(block_on(tx.get_read_version()), Ok(Version::from_u64(110)));
    assert_eq!(endpoint.log().begins, [1]);
    // Its version stays while others commit.
    endpoint.write(vec![Mutation::set("k", "2")]);
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from("1"))));
}

#[test]
fn a_read_version_can_be_set_once_before_it_is_asked_for() {
    let (db, endpoint, _) = database();
    endpoint.write(vec![Mutation::set("k", "1")]);
    endpoint.write(vec![Mutation::set("k", "2")]);
    let tx = db.create_transaction();
    tx.set_read_version(110);
    assert_eq!(block_on(tx.get("k")), Ok(Some(Bytes::from("1"))));
    tx.set_read_version(110);
    assert_eq!(code(block_on(tx.get("k"))), 2010);
    for (version, expected) in [(0, 2011), (-1, 2011), (i64::MAX, 2011), (5_000_000, 1009)] {
        tx.reset();
        tx.set_read_version(version);
        assert_eq!(code(block_on(tx.get("k"))), expected, "{version}");
    }
    tx.reset();
    endpoint.forget_below(Version::from_u64(115));
    tx.set_read_version(110);
    assert_eq!(code(block_on(tx.get("k"))), 1007);
    tx.reset();
    tx.set_read_version(110);
    block_on(tx.commit()).expect("what only reads does not ask");
    tx.reset();
    tx.set_read_version(110);
    tx.set("k", "3");
    assert_eq!(code(block_on(tx.commit())), 1007);
}

/// Many transactions that begin while a question is under way share the next one; none gets an answer to an earlier question.
#[test]
fn read_versions_are_asked_for_together() {
    let (db, endpoint, rt) = database();
    endpoint.set_stuck(true);
    let transactions: Vec<_> = (0..100).map(|_| db.create_transaction()).collect();
    let first = transactions[0].get_read_version();
    let rest: Vec<_> = transactions[1..].iter().map(|tx| tx.get_read_version()).collect();
    // It commits while the first question is under way: all but the first must see it.
    let version = endpoint.write(vec![Mutation::set("k", "1")]);
    let dropped = db.create_transaction().get_read_version();
    drop(dropped);
    endpoint.set_stuck(false);
    rt.block_on(async {
        let (first, rest) = futures_util::future::join(first, join_all(rest)).await;
        assert!(first.expect("it answers") < version);
        assert!(rest.into_iter().all(|found| found == Ok(version)));
    });
    assert_eq!(endpoint.log().begins, [1, 100]);
}

/// A blind write begins with its commit if its client has heard of a version within the last second, and asks if it has not.
#[test]
fn a_blind_write_asks_for_no_version_while_the_client_knows_a_young_one() {
    let (db, endpoint, rt) = database();
    endpoint.answer_late(1);
    let write = || {
        rt.block_on(db.run(async |tx| {
            tx.set("k", "1");
            Ok(())
        }))
        .expect("it commits");
        let log = endpoint.log();
        let last = log.commits.last().expect("it committed").clone();
        (log.begins.len(), last.read_version, last.begins)
    };
    assert_eq!(write(), (1, Version::from_u64(100), None));
    // What its own commit was told is the newest that it knows; what others write it does not hear of.
    endpoint.write(vec![Mutation::set("other", "")]);
    assert_eq!(write(), (1, Version::from_u64(110), Some(Priority::Default)));
    rt.run_for(HEARD_FOR / 2);
    assert_eq!(write(), (1, Version::from_u64(130), Some(Priority::Default)));
    // An idle client asks.
    rt.run_for(HEARD_FOR);
    assert_eq!(write(), (2, Version::from_u64(140), None));
    // A read version counts as heard, and the transaction's priority goes with the commit.
    rt.run_for(HEARD_FOR);
    let version = rt.block_on(db.create_transaction().get_read_version()).expect("it answers");
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::PriorityBatch);
    tx.clear("k");
    rt.block_on(tx.commit()).expect("it commits");
    let last = endpoint.log().commits.last().expect("it committed").clone();
    assert_eq!((last.read_version, last.begins), (version, Some(Priority::Batch)));
    // After a reset it is a transaction like any other: its read version is the newest.
    tx.reset();
    assert_eq!(rt.block_on(tx.get_read_version()), Ok(endpoint.version()));
}

/// Whoever reads, or says that it has read, asks: what others were acknowledged is seen, or conflicts.
#[test]
fn who_reads_asks_whatever_the_client_knows() {
    let (db, endpoint, rt) = database();
    endpoint.answer_late(1);
    rt.block_on(db.run(async |tx| {
        tx.set("k", "1");
        Ok(())
    }))
    .expect("it commits");
    let newest = endpoint.write(vec![Mutation::set("k", "2")]);
    let tx = db.create_transaction();
    assert_eq!(rt.block_on(tx.get("k")), Ok(Some(Bytes::from("2"))));
    let tx = db.create_transaction();
    assert_eq!(rt.block_on(tx.get_read_version()), Ok(newest));
    let tx = db.create_transaction();
    assert_eq!(rt.block_on(tx.snapshot().get("k")), Ok(Some(Bytes::from("2"))));
    let tx = db.create_transaction();
    tx.add_conflict_range(range("k", "l"), ConflictRangeType::Read).expect("it is valid");
    tx.set("k", "3");
    rt.block_on(tx.commit()).expect("nobody has written since it asked");
    let last = endpoint.log().commits.last().expect("it committed").clone();
    assert_eq!((last.read_version, last.begins), (newest, None));
    let tx = db.create_transaction();
    tx.set_read_version(i64::try_from(newest.get()).expect("small"));
    tx.set("k", "4");
    rt.block_on(tx.commit()).expect("it commits");
    assert_eq!(endpoint.log().commits.last().map(|last| (last.read_version, last.begins)), Some((newest, None)));
}

/// The database takes no version from before its restart. The client knows only such ones, asks, and commits, once; nobody hears of it.
#[test]
fn a_remembered_version_that_is_too_old_is_asked_for_anew() {
    let (db, endpoint, rt) = database();
    endpoint.answer_late(1);
    let write = |value: &'static str| {
        rt.block_on(async {
            let tx = db.create_transaction();
            tx.atomic_op("k", value, MutationKind::AppendIfFits);
            tx.commit().await
        })
    };
    write("a").expect("it commits");
    // The epoch begins above everything that was told.
    let first = endpoint.write(vec![Mutation::set("epoch", "2")]);
    endpoint.forget_below(first);
    write("b").expect("it commits");
    let log = endpoint.log();
    assert_eq!(log.begins.len(), 2);
    let [.., refused, taken] = &log.commits[..] else { panic!("two were sent") };
    assert_eq!((refused.begins, taken.begins), (Some(Priority::Default), None));
    assert!(refused.read_version < first && taken.read_version == first);
    assert_ne!(refused.id, taken.id, "an id is for one sending");
    assert_eq!(endpoint.rows()[1].1, Bytes::from("ab"));
    // A lost answer is settled as ever.
    endpoint.lose_commit(Some(Lost::Done));
    write("c").expect("it is found out");
    endpoint.lose_commit(Some(Lost::Late));
    assert_eq!(code(write("d")), 1020);
    endpoint.deliver_late();
    assert_eq!(endpoint.rows()[1].1, Bytes::from("abc"), "the late one finds its id taken");
    assert_eq!(endpoint.log().begins.len(), 2);
}

/// The commit drives reads that nobody else does, and fails with theirs.
#[test]
fn a_commit_waits_for_the_reads_under_way() {
    let (db, endpoint, rt) = database();
    endpoint.answer_late(3);
    let tx = db.create_transaction();
    let (first, second, dropped) = (tx.get("a"), tx.get_range(range("b", "c")), tx.get("dropped"));
    drop(dropped);
    tx.set("x", "");
    rt.block_on(tx.commit()).expect("it commits");
    assert!(first.now_or_never().is_some() && second.now_or_never().is_some());
    let commit = &endpoint.log().commits[0];
    assert_eq!(super::ranges_text(&commit.read_conflicts), "a..a\\x00 b..c", "one that was dropped never was");

    let tx = db.create_transaction();
    endpoint.fail_read(Code::ProcessBehind);
    let failing = tx.get("a");
    tx.set("x", "");
    assert_eq!(code(rt.block_on(tx.commit())), 1037);
    drop(failing);
    assert_eq!(endpoint.log().commits.len(), 1);
    // Also one that nobody looked at and that is long over.
    tx.reset();
    endpoint.answer_late(0);
    endpoint.fail_read(Code::ProcessBehind);
    drop(tx.get("a"));
    tx.set("x", "");
    assert_eq!(code(rt.block_on(tx.commit())), 1037);
}

/// The answer is lost; the client asks until it knows, and tells the first outcome.
#[test]
fn a_lost_answer_is_asked_for() {
    for (lost, expected) in [(Lost::Done, 0), (Lost::Never, 1020), (Lost::Late, 1020)] {
        let (db, endpoint, rt) = database();
        endpoint.write(vec![Mutation::set("counter", vec![0])]);
        endpoint.lose_commit(Some(lost));
        endpoint.fail_resolve(Code::ProcessBehind);
        endpoint.fail_resolve(Code::ConnectionFailed);
        let tx = db.create_transaction();
        let stamp = tx.get_versionstamp();
        tx.atomic_op("counter", [1], MutationKind::Add);
        assert_eq!(code(rt.block_on(tx.commit())), expected, "{lost:?}");
        let committed = tx.get_committed_version();
        assert_eq!(committed.is_some(), expected == 0);
        let stamp = block_on(stamp);
        assert_eq!(stamp.ok(), committed.map(|version| Versionstamp::new(version, 7)));
        // A request that comes after its outcome was asked for does nothing.
        endpoint.deliver_late();
        assert_eq!(endpoint.rows()[0].1.as_ref(), [u8::from(expected == 0)]);
        assert_eq!((endpoint.log().commits.len(), endpoint.log().resolves), (1, 3), "sent once, asked three times");
        assert_eq!(db.inner.commit_ids.lowest_open(), 2, "the id is closed");
    }
}

/// Three hundred increments through `run`, half of the answers lost in one way or another: each happens exactly once.
#[test]
fn a_transaction_commits_at_most_once() {
    let (db, endpoint, rt) = database();
    let mut random = SplitMix64::new(42);
    for _ in 0..1000 {
        endpoint.lose_commit(match random.below(6) {
            0 => Some(Lost::Done),
            1 => Some(Lost::Never),
            2 => Some(Lost::Late),
            _ => None,
        });
        if random.one_in(4) {
            endpoint.fail_resolve(Code::ConnectionFailed);
        }
    }
    for number in 0..300u32 {
        rt.block_on(db.run(async |tx| {
            tx.atomic_op("counter", 1u32.to_le_bytes(), MutationKind::Add);
            Ok(())
        }))
        .expect("it commits in the end");
        endpoint.deliver_late();
        assert_eq!(endpoint.rows()[0].1.as_ref(), (number + 1).to_le_bytes());
    }
    let commits = endpoint.log().commits;
    assert!(commits.len() > 350);
    let ids: std::collections::BTreeSet<_> = commits.iter().map(|commit| commit.id).collect();
    assert_eq!(ids.len(), commits.len(), "each attempt has an id of its own");
    assert!(commits.windows(2).all(|pair| pair[0].lowest_unanswered < pair[1].lowest_unanswered));
}

/// Without ids the program is told that nobody knows, and `run` does not do it again.
#[test]
fn without_idempotency_an_unknown_outcome_is_told() {
    let options = DatabaseOptions { automatic_idempotency: false, ..DatabaseOptions::default() };
    let (db, endpoint, rt) = database_with(options);
    endpoint.lose_commit(Some(Lost::Done));
    let result = rt.block_on(db.run(async |tx| {
        tx.atomic_op("counter", [1], MutationKind::Add);
        Ok(())
    }));
    assert_eq!(code(result), 1021);
    assert_eq!(endpoint.log().commits[0].id, None);
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::AutomaticIdempotency);
    endpoint.lose_commit(Some(Lost::Done));
    tx.set("x", "");
    assert_eq!(code(rt.block_on(tx.commit())), 0, "the option brings them back");
    // on_error does retry it, if a program wants that.
    let tx = db.create_transaction();
    assert_eq!(code(rt.block_on(tx.on_error(Code::CommitUnknownResult.into()))), 0);
}

#[test]
fn an_outcome_that_nobody_can_tell_is_an_error() {
    for (failure, expected) in [(Code::CommitUnknownResultFatal, 1022), (Code::IoError, 1021)] {
        let (db, endpoint, rt) = database();
        endpoint.lose_commit(Some(Lost::Done));
        endpoint.fail_resolve(failure);
        let result = rt.block_on(db.run(async |tx| {
            tx.set("x", "");
            Ok(())
        }));
        assert_eq!(code(result), expected);
        assert_eq!(endpoint.log().commits.len(), 1);
    }
}

/// Asking for the outcome ends with the transaction's timeout, for the caller; the client goes on asking for a while, and then stops.
#[test]
fn asking_for_an_outcome_is_bounded() {
    let (db, endpoint, rt) = database();
    endpoint.lose_commit(Some(Lost::Done));
    for _ in 0..100 {
        endpoint.fail_resolve(Code::ConnectionFailed);
    }
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::Timeout(2000));
    tx.set("x", "");
    assert_eq!(code(rt.block_on(tx.commit())), 1031);
    assert_eq!(rt.now(), Duration::from_secs(2));
    assert_eq!(rt.tasks(), ["commit"]);
    rt.run_for(Duration::from_secs(40));
    assert!(rt.tasks().is_empty());
    assert_eq!((rt.timer_count(), db.inner.commit_ids.lowest_open()), (0, 2));
}

/// Dropping the future of a commit does not stop it: the state follows.
#[test]
fn a_dropped_commit_goes_on() {
    let (db, endpoint, rt) = database();
    endpoint.answer_late(2);
    let tx = db.create_transaction();
    tx.set("x", "");
    let stamp = tx.get_versionstamp();
    drop(tx.commit());
    assert_eq!(code(tx.get_approximate_size()), 2017, "it is in commit");
    assert_eq!(rt.tasks(), ["commit"]);
    assert_eq!(code(block_on(stamp)), 2017, "who used it has poisoned it");
    rt.run_until_idle();
    assert!(endpoint.rows().is_empty(), "it was of no more use before anything was sent");

    let tx = db.create_transaction();
    tx.set("x", "");
    let stamp = tx.get_versionstamp();
    drop(tx.commit());
    rt.run_until_idle();
    assert!(rt.tasks().is_empty());
    assert_eq!(endpoint.rows().len(), 1);
    assert_eq!(tx.get_committed_version(), Some(endpoint.version()));
    assert!(block_on(stamp).is_ok());
}

/// A reset while the request is under way: the caller hears of it, the commit happens, and the new epoch knows nothing of it.
#[test]
fn a_commit_that_ends_after_a_reset_changes_nothing() {
    let (db, endpoint, rt) = database();
    let tx = db.create_transaction();
    block_on(tx.get_read_version()).expect("it answers");
    tx.set("x", "");
    endpoint.set_stuck(true);
    let mut commit = tx.commit();
    assert!((&mut commit).now_or_never().is_none(), "the request is under way");
    tx.reset();
    assert_eq!(code(rt.block_on(commit)), 1025);
    assert_eq!(rt.tasks(), ["commit"]);
    endpoint.set_stuck(false);
    rt.run_until_idle();
    assert_eq!((endpoint.rows().len(), tx.get_committed_version()), (1, None));
    tx.set("y", "");
    rt.block_on(tx.commit()).expect("the transaction is as new");
    assert_eq!(endpoint.rows().len(), 2);
}

/// 1021 without a commit id: not before the commit is out of the way, by a fence that it would conflict with.
#[test]
fn an_unknown_outcome_is_final_when_it_is_told() {
    for lost in [Lost::Done, Lost::Never, Lost::Late] {
        for reads in [false, true] {
            let (db, endpoint, rt) =
                database_with(DatabaseOptions { automatic_idempotency: false, ..Default::default() });
            let tx = db.create_transaction();
            if reads {
                rt.block_on(tx.get("k")).expect("it reads");
            }
            tx.set("k", "1");
            endpoint.lose_commit(Some(lost));
            // Of the first fence nobody knows either what became of it, and it never arrived.
            endpoint.lose_commit(Some(Lost::Never));
            let error = rt.block_on(tx.commit()).expect_err("the answer was lost");
            assert_eq!(error.code(), Code::CommitUnknownResult);
            assert!(error.to_string().contains("it has happened, or never will"), "{error}");
            let told = endpoint.rows();
            assert_eq!(told.len(), usize::from(lost == Lost::Done), "the fence writes nothing");
            endpoint.deliver_late();
            assert_eq!(endpoint.rows(), told, "{lost:?}, {reads}: what is told to be unknown does not happen any more");
            assert_eq!(endpoint.log().commits.len(), 3);
            assert_eq!(endpoint.log().resolves, 0, "there is no id to ask by");
        }
    }
}

/// What has neither an id nor a key that it both reads and writes gets one, of the system's and at random; whoever calls that risky does not.
#[test]
fn a_commit_without_an_id_conflicts_with_itself() {
    let (db, endpoint, rt) = database_with(DatabaseOptions { automatic_idempotency: false, ..Default::default() });
    let commit = |prepare: &dyn Fn(&crate::Transaction)| {
        let tx = db.create_transaction();
        prepare(&tx);
        rt.block_on(tx.commit()).expect("nobody has written");
        let request = endpoint.log().commits.last().expect("it committed").clone();
        let is_own = |range: &&ferrisdb_core::KeyRange| range.begin.starts_with(b"\xff/SC/");
        let own: Vec<_> = request.read_conflicts.iter().filter(is_own).cloned().collect();
        assert_eq!(own, request.write_conflicts.iter().filter(is_own).cloned().collect::<Vec<_>>());
        for ranges in [&request.read_conflicts, &request.write_conflicts] {
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].begin), "{ranges:?}");
        }
        (own.len(), own.first().map(|range| range.begin.clone()))
    };
    let (count, first) = commit(&|tx| tx.set("k", "1"));
    let (_, second) = commit(&|tx| tx.set("k", "1"));
    assert_eq!(count, 1);
    assert!(first != second, "{first:?} twice");
    assert_eq!(
        commit(&|tx| {
            rt.block_on(tx.get("l")).expect("it reads");
            tx.set_option(&TransactionOption::AccessSystemKeys);
            tx.set("k", "1");
            tx.set(b"\xff/z", "");
        })
        .0,
        1,
        "it reads one key and writes others"
    );
    assert_eq!(
        commit(&|tx| {
            rt.block_on(tx.get_range(range("a", "z"))).expect("it reads");
            tx.set("k", "1");
        })
        .0,
        0,
        "it reads what it writes"
    );
    assert_eq!(
        commit(&|tx| {
            tx.set_option(&TransactionOption::CausalWriteRisky);
            tx.set("k", "1");
        })
        .0,
        0
    );
    assert_eq!(
        commit(&|tx| {
            tx.set_option(&TransactionOption::AutomaticIdempotency);
            tx.set("k", "1");
        })
        .0,
        0,
        "its id does better"
    );
    // And then its outcome is told at once, while it is still under way.
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::CausalWriteRisky);
    tx.set("late", "");
    endpoint.lose_commit(Some(Lost::Late));
    assert_eq!(code(rt.block_on(tx.commit())), 1021);
    endpoint.deliver_late();
    assert!(endpoint.rows().iter().any(|(key, _)| key == "late"));
}

/// The fence is put up also while the database cannot be asked for some time, and a timeout ends the wait for it.
#[test]
fn a_fence_waits_for_the_database() {
    let (db, endpoint, rt) = database_with(DatabaseOptions { automatic_idempotency: false, ..Default::default() });
    let tx = db.create_transaction();
    tx.set("k", "1");
    endpoint.lose_commit(Some(Lost::Late));
    for code in [Code::ConnectionFailed, Code::ProcessBehind, Code::CommitUnknownResult] {
        endpoint.fail_commit(code);
    }
    assert_eq!(code(rt.block_on(tx.commit())), 1021);
    endpoint.deliver_late();
    assert!(endpoint.rows().is_empty());
    // What does not pass is told.
    let tx = db.create_transaction();
    tx.set("k", "1");
    endpoint.lose_commit(Some(Lost::Late));
    endpoint.fail_commit(Code::IoError);
    let error = rt.block_on(tx.commit()).expect_err("the answer was lost");
    assert_eq!(error.code(), Code::CommitUnknownResult);
    assert!(error.to_string().contains("it may happen yet"), "{error}");
}
