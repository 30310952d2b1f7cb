//! Commits of callers that have nothing else to do: made durable on the caller's own thread, as long as syncs are short.

use std::collections::BTreeMap;

use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, Verdict};

use super::*;

/// A node that has seen one short sync, and so takes the next for short.
fn quick(machine: &Machine, options: NodeOptions) -> Node {
    let node = machine.open_with(options).expect("it opens");
    machine.set(&node, "first", "1").expect("it commits");
    node
}

fn add(machine: &Machine, node: &Node) -> CommitRequest {
    Transaction::at(machine.begin(node)).add("n", 1).build()
}

/// The answer is there when the call returns, and durable; nobody else had to do anything. Who is in less of a hurry is woken when the caller says so, or gives up:
/// storage then has it.
#[test]
fn who_may_block_has_its_commit_when_the_call_returns() {
    for gives_up in [false, true] {
        let machine = Machine::new(SimFileSystem::new(), 1);
        let node = quick(&machine, NodeOptions::tiny());
        machine.spawner.run_until_idle();
        let request = add(&machine, &node);
        let mut afterwards = Afterwards::new();
        let answer = node.commit_alone(request, &mut afterwards).try_now().expect("it is there at once");
        let Committed::At { version, .. } = answer.expect("it commits") else { panic!("no conflict") };
        let crashed = Machine::new(machine.disk.fork_crashed(CrashMode::UnsyncedLost), 2);
        let other = crashed.open().expect("it opens");
        assert!(crashed.get(&other, "n").is_some(), "it is durable");
        assert!(node.begin(BeginRequest::default()).try_now().expect("at once").expect("it begins").version >= version);
        if gives_up {
            drop(afterwards);
        } else {
            afterwards.wake();
        }
        machine.spawner.run_until_idle();
        let request = GetRequest { key: bytes("n"), version };
        assert!(node.get(request).try_now().expect("storage has it").expect("it reads").is_some());
    }
}

/// The caller's thread is not taken where it would be for long: before anybody knows how long a sync takes, with syncs that are slow, and never if so wished. Once syncs are short
/// again, it is.
#[test]
fn who_may_block_is_not_kept_by_a_slow_disk() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let is_at_once = |node: &Node| match node.commit_alone(add(&machine, node), &mut Afterwards::new()).try_now() {
        Ok(result) => result.map(|_| true),
        Err(later) => machine.wait(later).map(|_| false),
    };
    assert_eq!(is_at_once(&node), Ok(false), "nobody knows yet");
    assert_eq!(is_at_once(&node), Ok(true));
    let clock = Arc::clone(&machine.clock);
    machine.disk.set_hook(move |_, op| {
        if op.kind == OpKind::Sync && op.path.starts_with("/db/log") {
            clock.advance(Duration::from_millis(10));
        }
        Verdict::Pass
    });
    assert_eq!(is_at_once(&node), Ok(true), "it is not known before");
    for _ in 0..10 {
        assert_eq!(is_at_once(&node), Ok(false));
    }
    machine.disk.clear_hook();
    let until_quick = (0..100).position(|_| is_at_once(&node) == Ok(true));
    assert!(until_quick.is_some_and(|commits| commits > 1), "{until_quick:?}");
    drop(node);

    machine.spawner.run_until_idle();
    let mut never = NodeOptions::tiny();
    never.coordinator.alone_at_most = Duration::ZERO;
    let node = quick(&machine, never);
    assert_eq!(is_at_once(&node), Ok(false));
}

/// Whoever is queued already is in the same group, and what does not fit into it is left to the driver's task.
#[test]
fn who_may_block_does_the_work_of_others_too() {
    for group_transactions in [1, 2, 100] {
        let machine = Machine::new(SimFileSystem::new(), 1);
        let mut options = NodeOptions::tiny();
        options.coordinator.group_transactions = group_transactions;
        let node = quick(&machine, options);
        let before = machine.begin(&node);
        let request = || Transaction::at(before).add("n", 1).build();
        let mut answers: Vec<_> = (0..40).map(|_| node.commit(request())).collect();
        answers.push(node.commit_alone(request(), &mut Afterwards::new()));
        for answer in answers {
            machine.wait(answer).expect("it commits");
        }
        let version = machine.begin(&node);
        let number = machine.wait(node.get(GetRequest { key: bytes("n"), version })).expect("it reads");
        assert_eq!(number.as_deref(), Some(&41u64.to_le_bytes()[..]));
    }
}

/// Clients that ask again as soon as they are answered go in halves, so that the disk works while one of them is on its way; not where a group goes to the log's task anyway, because it is
/// large or because syncs are slow.
#[test]
fn those_who_wait_go_in_halves() {
    for (waiting, is_slow, groups) in [(64, false, 2), (30, false, 1), (200, false, 1), (64, true, 1)] {
        let machine = Machine::new(SimFileSystem::new(), 1);
        let mut options = NodeOptions::tiny();
        options.coordinator.group_transactions = 1000;
        if is_slow {
            options.coordinator.alone_at_most = Duration::ZERO;
        }
        let node = quick(&machine, options);
        machine.spawner.run_until_idle();
        let before = machine.begin(&node);
        let answers: Vec<_> = (0..waiting).map(|_| node.commit(Transaction::at(before).add("n", 1).build())).collect();
        let mut sizes = BTreeMap::new();
        for answer in answers {
            let Committed::At { version, .. } = machine.wait(answer).expect("it commits") else {
                panic!("no conflict")
            };
            *sizes.entry(version).or_insert(0) += 1;
        }
        let sizes: Vec<i32> = sizes.into_values().collect();
        assert_eq!(sizes.len(), groups, "{waiting} that wait: {sizes:?}");
        assert!(sizes.iter().all(|size| (size * groups as i32 - waiting).abs() <= 2), "{waiting} that wait: {sizes:?}");
        // What is left of a group goes as one, and nobody is forgotten.
        let version = machine.begin(&node);
        let number = machine.wait(node.get(GetRequest { key: bytes("n"), version })).expect("it reads");
        assert_eq!(number.as_deref(), Some(&(waiting as u64).to_le_bytes()[..]));
    }
}

/// A sync that fails on the caller's thread is told as on any other: nobody knows whether the commit happened, and nothing more is taken.
#[test]
fn a_sync_that_fails_on_the_callers_thread_ends_the_epoch() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = quick(&machine, NodeOptions::tiny());
    machine.spawner.run_until_idle();
    let request = add(&machine, &node);
    machine.disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path("/db/log").once());
    let answer = node.commit_alone(request, &mut Afterwards::new());
    assert_eq!(code(machine.wait(answer)), Code::CommitUnknownResult);
    let refused = node.commit_alone(Transaction::at(v(1)).add("n", 1).build(), &mut Afterwards::new());
    assert_eq!(code(machine.wait(refused)), Code::IoError);
    assert!(node.failure().is_some());
}
