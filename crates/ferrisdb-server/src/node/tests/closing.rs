//! When the directory is free again.

use ferrisdb_storage::fs::FileSystem;

use super::*;

/// The tasks of a node, and what they write to.
const TASKS: [&str; 6] = ["log", "log-files", "coordinator", "begin-gate", "apply", "pop"];

/// A node that is dropped in the middle of its work: as long as one of its tasks is there, nobody gets the directory, and from the moment when somebody
/// can, its log does not change any more.
#[test]
fn a_dropped_node_keeps_the_directory_until_its_last_task_has_ended() {
    for seed in 0..20 {
        let machine = Machine::new(SimFileSystem::new(), seed);
        let node = machine.open().expect("it opens");
        machine.set(&node, "a", "1").expect("it commits");
        let now = machine.begin(&node);
        let under_way: Vec<_> = (0..5u64)
            .map(|number| node.commit(Transaction::at(now).set(&format!("k{number}"), &"v".repeat(500)).build()))
            .collect();
        drop(node);
        let log = || {
            let files = machine.disk.files().into_iter().filter(|(path, _)| path.starts_with("/db/log"));
            files.map(|(path, _)| machine.disk.read_raw(path)).collect::<Vec<_>>()
        };
        let lock = Path::new(DIR).join("LOCK");
        let mut refused = 0;
        let held = loop {
            match machine.disk.lock(&lock, "a test") {
                Ok(held) => break held,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
            }
            refused += 1;
            assert!(machine.spawner.step_one(), "seed {seed}: everything has ended, and the directory is still in use");
        };
        assert!(refused > 0, "seed {seed}: the tasks had not ended when the node was dropped");
        let left: Vec<_> = machine.spawner.jobs().into_iter().filter(|job| TASKS.contains(&job.as_str())).collect();
        assert!(left.is_empty(), "seed {seed}: the directory is free, but there are {left:?}");
        let before = log();
        machine.spawner.run_for(Duration::from_secs(2));
        assert!(log() == before, "seed {seed}: the log was written to after the directory was free");
        drop(held);
        let node = machine.open().expect("it opens again");
        assert_eq!(machine.get(&node, "a").as_deref(), Some("1"));
        for (number, answer) in under_way.into_iter().enumerate() {
            if matches!(machine.wait(answer), Ok(Committed::At { .. })) {
                assert!(machine.get(&node, &format!("k{number}")).is_some(), "seed {seed}: {number} was acknowledged");
            }
        }
    }
}

/// Until then another open is refused, in the words and with the code that an application looks for; after a close it succeeds at once, while the
/// closed node is still there.
#[test]
fn a_closed_directory_opens_at_once() {
    for seed in 0..10 {
        let machine = Machine::new(SimFileSystem::new(), seed);
        let mut closed = Vec::new();
        for round in 0..3u8 {
            let node = machine.open().expect("it opens");
            assert_eq!(machine.get(&node, "round"), round.checked_sub(1).map(|before| before.to_string()));
            machine.set(&node, "round", &round.to_string()).expect("it commits");
            let error = machine.open().expect_err("it is open");
            assert_eq!(error.code(), Code::FileNotWritable, "{error}");
            assert!(error.to_string().contains("in use"), "{error}");
            machine.wait(node.close()).expect("it closes");
            closed.push(node);
        }
    }
}

/// The storage engine has a lock of its own, for whoever opens it without a node: the code is the same.
#[test]
fn a_storage_directory_in_use_is_told_as_such() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    machine.wait(node.close()).expect("it closes");
    let held = machine.disk.lock(&Path::new(DIR).join("storage").join("LOCK"), "another").expect("it is free");
    let error = machine.open().expect_err("the storage engine is open elsewhere");
    assert_eq!(error.code(), Code::FileNotWritable, "{error}");
    drop(held);
    machine.open().expect("it opens");
}
