//! What a commit promises while nothing goes wrong.

use super::*;
use crate::log::{Known, Outcome};
use ferrisdb_client::layers::{Element, Tuple};
use ferrisdb_core::key::{DATABASE_LOCK_KEY, key_after};
use ferrisdb_rpc::api::GetRangeRequest;

#[test]
fn what_is_committed_is_read() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    assert_eq!(machine.get(&node, "a"), None);
    let first = machine.set(&node, "a", "1").expect("it commits");
    let second = machine.set(&node, "a", "2").expect("it commits");
    assert!(second > first);
    assert_eq!(machine.get(&node, "a").as_deref(), Some("2"));
    assert_eq!(machine.get_at(&node, "a", first), Ok(Some("1".to_owned())));
    machine.wait(node.close()).expect("it closes");
    // The timers are the runtime's, which the node still has.
    assert_eq!(machine.spawner.jobs(), ["timers"], "every task has ended");
    drop(node);

    let node = machine.open().expect("it opens again");
    assert_eq!(machine.get(&node, "a").as_deref(), Some("2"));
    assert!(machine.begin(&node) > second, "versions never go back");
}

/// Dropped without a close, a node leaves no job either.
#[test]
fn a_dropped_node_ends_its_tasks() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let request = Transaction::at(machine.begin(&node)).set("a", "1").build();
    let answer = node.commit(request);
    drop(node);
    machine.spawner.run_until_idle();
    assert!(machine.spawner.jobs().is_empty(), "{:?}", machine.spawner.jobs());
    // It was under way: it has an end, and if that is success it is durable.
    let result = machine.wait(answer);
    let node = machine.open().expect("it opens again");
    match result {
        Ok(_) => assert_eq!(machine.get(&node, "a").as_deref(), Some("1")),
        Err(error) => assert!(matches!(error.code(), Code::OperationCancelled | Code::CommitUnknownResult), "{error}"),
    }
}

#[test]
fn a_transaction_conflicts_with_what_was_written_since_it_read() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let read_version = machine.begin(&node);
    let reader = Transaction::at(read_version).read("z").read("a").set("b", "from a");
    machine.set(&node, "a", "1").expect("it commits");
    let mut request = reader.clone().build();
    assert_eq!(machine.commit(&node, request.clone()), Ok(Committed::Conflict { ranges: vec![] }));
    request.report_conflicting_keys = true;
    assert_eq!(machine.commit(&node, request), Ok(Committed::Conflict { ranges: vec![1] }));
    assert_eq!(machine.get(&node, "b"), None);
    let blind = Transaction::at(read_version).set("a", "blind").build();
    assert!(
        matches!(machine.commit(&node, blind), Ok(Committed::At { .. })),
        "who reads nothing conflicts with nothing"
    );
    // In one batch: the first writes what the second has read.
    let now = machine.begin(&node);
    let first = node.commit(Transaction::at(now).set("c", "1").build());
    let second = node.commit(Transaction::at(now).read("c").set("d", "1").build());
    let third = node.commit(Transaction::at(now).read("d").set("e", "1").build());
    assert!(matches!(machine.wait(first), Ok(Committed::At { .. })));
    assert!(matches!(machine.wait(second), Ok(Committed::Conflict { .. })));
    assert!(matches!(machine.wait(third), Ok(Committed::At { .. })), "who lost has written nothing");
}

/// The stamp in the key, the stamp in the value and the answer are one; and the final key conflicts with who has read it.
#[test]
fn versionstamps_are_filled_in_and_conflict() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let now = machine.begin(&node);
    let template =
        |prefix: &str| -> Vec<u8> { [prefix.as_bytes(), &[0; 10], &u32::to_le_bytes(prefix.len() as u32)].concat() };
    let mut request = Transaction::at(now).build();
    request.mutations = vec![
        Mutation::new(MutationKind::SetVersionstampedKey, template("log/"), bytes("row")),
        Mutation::new(MutationKind::SetVersionstampedValue, bytes("last"), template("")),
    ];
    // Two in one batch have different stamps.
    let (one, two) = (node.commit(request.clone()), node.commit(request.clone()));
    let mut stamps = Vec::new();
    for answer in [one, two] {
        let stamp = machine.wait(answer).expect("it commits").versionstamp().expect("it has a stamp");
        let key = Bytes::from([b"log/".as_slice(), stamp.as_bytes()].concat());
        let version = machine.begin(&node);
        let row = machine.wait(node.get(GetRequest { key: key.clone(), version })).expect("it reads");
        assert_eq!(row, Some(bytes("row")));
        let mut late = Transaction::at(now).set("x", "1").build();
        late.read_conflicts = vec![KeyRange::single(&key)];
        assert!(matches!(machine.commit(&node, late), Ok(Committed::Conflict { .. })));
        stamps.push(stamp);
    }
    assert!(stamps[0] < stamps[1]);
    let version = machine.begin(&node);
    let last = machine.wait(node.get(GetRequest { key: bytes("last"), version })).expect("it reads");
    assert_eq!(last.as_deref(), Some(&stamps[1].as_bytes()[..]));
}

#[test]
fn a_commit_below_the_window_or_above_the_newest_version_is_refused() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let old = machine.begin(&node);
    for _ in 0..8 {
        machine.spawner.run_for(Duration::from_secs(1));
        machine.set(&node, "a", "1").expect("it commits");
    }
    let late = Transaction::at(old).set("b", "1");
    assert_eq!(code(machine.commit(&node, late.build())), Code::TransactionTooOld);
    assert_eq!(code(machine.get_at(&node, "a", old)), Code::TransactionTooOld);
    let early = Transaction::at(v(machine.begin(&node).get() + 1)).set("b", "1");
    assert_eq!(code(machine.commit(&node, early.build())), Code::FutureVersion);
    let ancient = Transaction::at(v(1)).set("b", "1");
    assert_eq!(code(machine.commit(&node, ancient.build())), Code::TransactionTooOld);
    assert_eq!(machine.get(&node, "b"), None);
}

/// After an idle hour a read version is at most a second older than the next: an empty batch follows the first question.
#[test]
fn an_idle_database_gives_young_read_versions() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    machine.set(&node, "a", "1").expect("it commits");
    // The time keeper writes an entry about that, and none about an idle hour.
    machine.spawner.run_for(Duration::from_secs(11));
    let before = node.log().last();
    machine.spawner.run_for(Duration::from_secs(3600));
    assert_eq!(machine.begin(&node), before, "nothing happens on an idle database");
    machine.spawner.run_until_idle();
    let young = machine.begin(&node);
    assert_eq!(young.get(), before.get() + 1_000_000);
    let request = Transaction::at(young).read("a").set("a", "2").build();
    assert!(matches!(machine.commit(&node, request), Ok(Committed::At { .. })));
}

/// The time of day is written down beside the version, while something happens, also while the database is locked; and what is old is forgotten.
#[test]
fn times_of_versions_are_kept() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let entries = |node: &Node| {
        let range = KeyRange::prefix(b"\xff\x02/timeKeeper/map/");
        let version = node.log().last();
        let request = GetRangeRequest { range, version, limit: 0, target_bytes: 0, reverse: false };
        let number = |bytes: &[u8]| match Tuple::unpack(bytes).expect("a tuple").elements() {
            [Element::Int(number)] => u64::try_from(*number).expect("not below zero"),
            other => panic!("{other:?}"),
        };
        let rows = machine.wait(node.get_range(request)).expect("it reads").rows;
        rows.iter()
            .map(|row| (number(&row.key[b"\xff\x02/timeKeeper/map/".len()..]), v(number(&row.value))))
            .collect::<Vec<_>>()
    };
    let ten = Duration::from_secs(10);
    let begun = machine.clock.unix_time().as_secs();
    machine.spawner.run_for(6 * ten);
    assert_eq!(entries(&node), [], "nothing has happened");
    let first = machine.set(&node, "a", "1").expect("it commits");
    machine.spawner.run_for(3 * ten);
    let once = entries(&node);
    assert_eq!(once, [(begun + 70, first)], "once, though time went on");

    let lock = Transaction::at(machine.begin(&node)).mutate(Mutation::set(DATABASE_LOCK_KEY, &b"mine"[..]));
    let lock = lock.lock_aware().build();
    let Ok(Committed::At { version: locked, .. }) = machine.commit(&node, lock) else { panic!("it locks") };
    machine.spawner.run_for(2 * ten);
    let twice = entries(&node);
    assert_eq!(twice, [once[0], (begun + 100, locked)]);

    // Thirty days and a little later the first entry of another life takes what is too old.
    machine.spawner.run_for(Duration::from_secs(30 * 24 * 3600 + 20));
    machine.wait(node.close()).expect("it closes");
    let node = machine.open().expect("it opens");
    assert_eq!(entries(&node), twice);
    let unlock = Mutation::clear_range(DATABASE_LOCK_KEY, key_after(DATABASE_LOCK_KEY));
    let unlock = Transaction::at(machine.begin(&node)).mutate(unlock).lock_aware().build();
    machine.commit(&node, unlock).expect("it unlocks");
    machine.spawner.run_for(2 * ten);
    let after = entries(&node);
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(after[0].0 > begun + 30 * 24 * 3600 && after[0].1 > locked);
}

#[test]
fn what_breaks_the_rules_is_refused_alone() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let now = machine.begin(&node);
    let long = "x".repeat(100_001);
    let template = |at: i32| [&[0; 12][..], &at.to_le_bytes()].concat();
    let stamped = |at| Mutation::new(MutationKind::SetVersionstampedValue, bytes("k"), template(at));
    let cases = [
        (Transaction::at(now).set("\u{7f}", &long), Code::ValueTooLarge),
        (Transaction::at(now).set(&long[..10_001], ""), Code::KeyTooLarge),
        (Transaction::at(now).mutate(Mutation::set(&b"\xff\xffx"[..], bytes(""))), Code::KeyOutsideLegalRange),
        (Transaction::at(now).mutate(Mutation::clear_range(bytes("b"), bytes("a"))), Code::InvertedRange),
        (
            Transaction::at(now).mutate(Mutation::clear_range(bytes("b"), &b"\xff\xff\0"[..])),
            Code::KeyOutsideLegalRange,
        ),
        (Transaction::at(now).mutate(stamped(3)), Code::ClientInvalidOperation),
        ((0..101).fold(Transaction::at(now), |tx, _| tx.set("k", &long[1..])), Code::TransactionTooLarge),
    ];
    for (transaction, expected) in cases {
        let good = node.commit(Transaction::at(now).set("good", "1").build());
        let bad = machine.commit(&node, transaction.build());
        assert_eq!(code(bad), expected);
        assert!(matches!(machine.wait(good), Ok(Committed::At { .. })));
    }
    machine.commit(&node, Transaction::at(now).mutate(stamped(2)).build()).expect("the stamp fits exactly");
}

/// The answer is lost; asked again, the outcome is the first one, whatever happened in between; and what never came never will.
#[test]
fn a_lost_answer_is_found_again() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let now = machine.begin(&node);
    let id = |counter| CommitId { client: 7, counter };
    // Dropped answers: in flight when asked for, and durable when asked for.
    let request = Transaction::at(now).add("n", 1).id(7, 1, 1).build();
    drop(node.commit(request.clone()));
    let asked = node.resolve(ResolveRequest { id: id(1), read_version: now });
    let Ok(Some(first @ Committed::At { .. })) = machine.wait(asked) else { panic!("it was in flight") };
    assert_eq!(machine.resolve(&node, id(1), now), Ok(Some(first.clone())));
    assert_eq!(machine.commit(&node, request.clone()), Ok(first), "the same commit again");
    // One that never came.
    assert_eq!(machine.resolve(&node, id(2), now), Ok(None));
    let late = Transaction::at(now).add("n", 1).id(7, 2, 1).build();
    assert_eq!(machine.commit(&node, late), Ok(Committed::Conflict { ranges: vec![] }));
    assert_eq!(machine.resolve(&node, id(2), now), Ok(None), "the answer stays");
    let (known, _) = crate::log::Log::known(node.log(), id(2));
    assert!(matches!(known, Known::Outcome(_, Outcome::Aborted)), "it is written down: {known:?}");
    // Twice in one batch.
    let twice = Transaction::at(now).add("n", 1).id(7, 3, 1).build();
    let (one, two) = (node.commit(twice.clone()), node.commit(twice));
    assert_eq!(machine.wait(one), machine.wait(two));
    let version = machine.begin(&node);
    let count =
        machine.wait(node.get(GetRequest { key: bytes("n"), version })).expect("it reads").expect("it is there");
    assert_eq!(count.as_ref(), 2u64.to_le_bytes(), "two commits, each once");
    // Once the client says that it knows, the outcome is gone; to ask then is an error, never a wrong answer.
    machine.commit(&node, Transaction::at(now).add("n", 1).id(7, 4, 4).build()).expect("it commits");
    assert_eq!(code(machine.resolve(&node, id(1), now)), Code::CommitUnknownResultFatal);
    assert_eq!(code(machine.commit(&node, request)), Code::CommitUnknownResultFatal);
}

#[test]
fn a_lease_keeps_its_version_readable() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    machine.set(&node, "a", "old").expect("it commits");
    let lease = machine.lease(&node, LeaseRequest::Grant(None)).expect("it is granted");
    let write = |seconds: u64| {
        for number in 0..seconds {
            machine.spawner.run_for(Duration::from_secs(1));
            machine.set(&node, "a", &format!("new {number}")).expect("it commits");
        }
    };
    write(40);
    let lease = machine.lease(&node, LeaseRequest::Renew(lease.id)).expect("it is renewed");
    assert_eq!(lease.term_ms, 60_000);
    write(40);
    assert_eq!(machine.get_at(&node, "a", lease.version), Ok(Some("old".to_owned())));
    write(30);
    assert_eq!(code(machine.lease(&node, LeaseRequest::Renew(lease.id))), Code::TransactionTooOld, "it has expired");
    assert_eq!(code(machine.get_at(&node, "a", lease.version)), Code::TransactionTooOld);
    let gone = LeaseRequest::Grant(Some(lease.version));
    assert_eq!(code(machine.lease(&node, gone)), Code::TransactionTooOld);
    machine.lease(&node, LeaseRequest::End(lease.id)).expect("ending it again is no error");
}

#[test]
fn the_status_is_a_document() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    machine.set(&node, "a", "1").expect("it commits");
    let status = machine.wait(node.status()).expect("it has a status");
    let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
    assert_eq!(status["client"]["database_status"]["available"], true);
    assert_eq!(status["cluster"]["generation"], 1);
    assert_eq!(status["cluster"]["workload"]["committed"], 1);
    assert!(status["cluster"]["processes"]["0"]["address"].is_string());
    machine.wait(node.close()).expect("it closes");
    let status = machine.wait(node.status()).expect("it has a status");
    let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
    assert_eq!(status["client"]["database_status"]["available"], false);
}

/// A bounded queue says so, and takes more when it has become shorter.
#[test]
fn a_full_queue_refuses() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let mut options = NodeOptions::tiny();
    options.coordinator.queue_requests = 10;
    let node = machine.open_with(options).expect("it opens");
    let now = machine.begin(&node);
    let commit = || node.commit(Transaction::at(now).set("a", "1").build());
    let answers: Vec<Answer<Committed>> = (0..12).map(|_| commit()).collect();
    let results: Vec<Result<Committed>> = answers.into_iter().map(|answer| machine.wait(answer)).collect();
    assert!(results[..10].iter().all(Result::is_ok));
    for refused in &results[10..] {
        assert_eq!(code(refused.clone()), Code::CommitProxyMemoryLimitExceeded);
    }
    assert!(machine.wait(commit()).is_ok());
}

/// The same seed gives the same run, step by step.
#[test]
fn a_run_is_decided_by_its_seed() {
    let run = |seed| {
        let machine = Machine::new(SimFileSystem::new(), seed);
        let node = machine.open().expect("it opens");
        let mut versions = Vec::new();
        for number in 0..30 {
            let now = machine.begin(&node);
            let answers: Vec<_> = (0..3)
                .map(|key| node.commit(Transaction::at(now).set(&format!("{key}"), &"v".repeat(number * 7)).build()))
                .collect();
            versions.extend(answers.into_iter().map(|answer| machine.wait(answer).expect("it commits")));
        }
        machine.wait(node.close()).expect("it closes");
        (versions, machine.spawner.steps(), machine.disk.state_hash(), machine.clock.now())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).1, run(4).1);
}

/// What locks, what unlocks, and what does neither: in the order of the commits, within a group too, and kept over restarts.
#[test]
fn a_lock_holds_from_its_commit_on() {
    let lock = || Mutation::set(DATABASE_LOCK_KEY, &b"mine"[..]);
    let cleared = |begin: &'static str, end: &[u8]| Mutation::clear_range(begin, end.to_vec());
    let at = DATABASE_LOCK_KEY;
    let stamped = [&[0; 10][..], b"mine", &0u32.to_le_bytes()].concat();
    let changes: Vec<(Mutation, bool)> = vec![
        (Mutation::set([DATABASE_LOCK_KEY, b"x"].concat(), &b"beside"[..]), false),
        (lock(), true),
        (cleared("a", at), true),
        (cleared("a", b"\xff/e"), false),
        (Mutation::new(MutationKind::SetVersionstampedValue, at, stamped), true),
        (Mutation::new(MutationKind::CompareAndClear, at, &b"other"[..]), true),
        (Mutation::new(MutationKind::ByteMin, at, &b""[..]), true),
        (Mutation::new(MutationKind::CompareAndClear, at, &b""[..]), false),
        (Mutation::new(MutationKind::CompareAndClear, at, &b""[..]), false),
        (Mutation::new(MutationKind::Add, at, &b"1"[..]), true),
    ];
    let mut machine = Machine::new(SimFileSystem::new(), 1);
    let mut node = machine.open().expect("it opens");
    for (number, (mutation, is_locked)) in changes.into_iter().enumerate() {
        // All in the queue before anything is decided: the second is checked against the first.
        let version = machine.begin(&node);
        let changed = node.commit(Transaction::at(version).mutate(mutation.clone()).lock_aware().build());
        let other = node.commit(Transaction::at(version).set("k", "1").build());
        assert!(matches!(machine.wait(changed), Ok(Committed::At { .. })), "{mutation:?}");
        let refused = machine.wait(other).map_err(|error| error.code());
        let expected = if is_locked { Err(Code::DatabaseLocked) } else { refused.clone() };
        assert_eq!(refused, expected, "{mutation:?}");
        assert_eq!(refused.is_err(), is_locked, "{mutation:?}");
        for crash in [false, true] {
            if crash {
                drop(node);
                machine = machine.crash(CrashMode::UnsyncedLost, number as u64);
                node = machine.open().expect("it opens again");
            }
            let begun = machine.wait(node.begin(BeginRequest::default())).expect("it is told, not refused");
            assert_eq!(begun.is_locked, is_locked, "{mutation:?}, after a crash: {crash}");
            let blind = Transaction::at(begun.version).set("k", "2");
            assert_eq!(machine.commit(&node, blind.clone().build()).is_err(), is_locked, "{mutation:?}");
            assert!(machine.commit(&node, blind.lock_aware().build()).is_ok(), "who knows commits");
        }
        if number % 3 == 0 {
            // Everything is in tables, and the log is purged: the lock is in the state that is kept with the tables.
            machine.wait(node.close()).expect("it closes");
            node = machine.open().expect("it opens again");
            assert_eq!(machine.wait(node.begin(BeginRequest::default())).expect("it begins").is_locked, is_locked);
        }
    }
}
