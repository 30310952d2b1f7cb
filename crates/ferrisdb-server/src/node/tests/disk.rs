//! Disks that fail, fill up, or are put together from different databases.

use ferrisdb_storage::fs::FileSystem;
use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, Verdict};

use super::*;

/// After a failed sync nobody knows what is durable: who waited is told so, later commits are refused with file and reason, reads go on; and
/// the next open shows all that was acknowledged.
#[test]
fn a_failed_sync_ends_writing_but_not_reading() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    machine.set(&node, "a", "1").expect("it commits");
    machine.spawner.run_until_idle();
    let fault = Verdict::FailAndDrop(DiskError::Io);
    machine.disk.inject(Injection::new(&[OpKind::Sync], fault).path("/db/log/").once());
    let now = machine.begin(&node);
    let unknown = machine.commit(&node, Transaction::at(now).set("a", "2").id(1, 1, 1).build());
    let error = unknown.expect_err("the sync failed");
    assert_eq!(error.code(), Code::CommitUnknownResult);
    assert!(error.to_string().contains("/db/log/"), "{error}");
    for _ in 0..2 {
        let error = machine.set(&node, "a", "3").expect_err("nothing is taken any more");
        assert_eq!(error.code(), Code::IoError);
        assert!(error.to_string().contains("/db/log/") && error.to_string().contains("sync"), "{error}");
    }
    let resolved = machine.resolve(&node, CommitId { client: 1, counter: 1 }, now);
    assert_eq!(code(resolved), Code::IoError, "nobody knows until it is opened again");
    assert_eq!(machine.get(&node, "a").as_deref(), Some("1"), "reads go on");
    let status: serde_json::Value =
        serde_json::from_str(&machine.wait(node.status()).expect("it has a status")).expect("it is JSON");
    assert_eq!(status["client"]["database_status"]["available"], false);
    assert!(status["cluster"]["failure"].as_str().is_some_and(|failure| failure.contains("/db/log/")));
    drop(node);
    let machine = machine.crash(CrashMode::UnsyncedLost, 2);
    let node = machine.open().expect("it opens again");
    assert_eq!(machine.get(&node, "a").as_deref(), Some("1"));
    assert_eq!(machine.resolve(&node, CommitId { client: 1, counter: 1 }, now), Ok(None), "now it is known");
    machine.set(&node, "a", "4").expect("it commits");
}

/// Commits fail with the reason while the disk is full, reads go on, and commits go on when there is space.
#[test]
fn a_full_disk_is_got_over() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    machine.set(&node, "a", "1").expect("it commits");
    machine.spawner.run_for(Duration::from_secs(2));
    machine.disk.set_capacity(machine.disk.used_bytes());
    let mut acknowledged = 0;
    let error = loop {
        match machine.set(&node, &format!("k{acknowledged:03}"), &"v".repeat(500)) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the disk is full");
    };
    assert_eq!(error.code(), Code::IoError);
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(machine.get(&node, "a").as_deref(), Some("1"), "reads go on");
    assert!(node.failure().is_none(), "it is not for good");
    machine.disk.set_capacity(1 << 30);
    // What was refused has not happened. It may be taken for a conflict once, by who read before it was known.
    let commits = || {
        let request = Transaction::at(machine.begin(&node)).read(&format!("k{acknowledged:03}")).set("b", "1").build();
        matches!(machine.commit(&node, request), Ok(Committed::At { .. }))
    };
    assert!(commits() || commits());
    assert_eq!(machine.get(&node, &format!("k{acknowledged:03}")), None);
    for number in 0..acknowledged {
        assert!(machine.get(&node, &format!("k{number:03}")).is_some(), "{number}");
    }
    machine.wait(node.close()).expect("it closes");
}

/// Much more than fits in memory buffers: storage reads from the WAL what memory no longer has, and the log is purged behind it.
#[test]
fn the_log_stays_small() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    for round in 0..60 {
        let now = machine.begin(&node);
        let answers: Vec<_> = (0..10)
            .map(|key| node.commit(Transaction::at(now).set(&format!("k{key}"), &format!("{round:0500}")).build()))
            .collect();
        for answer in answers {
            machine.wait(answer).expect("it commits");
        }
    }
    machine.spawner.run_for(Duration::from_secs(5));
    let log = node.log().statistics();
    assert!(log.counters.append_bytes > 250_000, "{log:?}");
    assert!(log.wal.disk_bytes < 120_000, "the log was purged: {log:?}");
    assert!(log.hot_bytes < 10_000);
    assert!(machine.get(&node, "k9").is_some_and(|value| value.ends_with("59")));
    machine.wait(node.close()).expect("it closes");
}

/// A process writes a flush into the storage engine's manifest, cannot sync it, and dies. The next one reads the flush, from the page cache, and has no
/// space to make it durable. Then the power goes, and with it the flush: the log must still have what that had made superfluous.
#[test]
fn the_log_keeps_what_a_flush_that_may_go_has_made_superfluous() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open().expect("it opens");
    let unsynced = Verdict::FailAndDrop(DiskError::Io);
    machine.disk.inject(Injection::new(&[OpKind::Sync], unsynced).path("/db/storage/MANIFEST").once());
    let mut acknowledged = 0;
    while node.storage().failure().is_none() {
        if machine.set(&node, &format!("{acknowledged:04}"), &"v".repeat(500)).is_ok() {
            acknowledged += 1;
        }
        machine.spawner.run_until_idle();
        assert!(acknowledged < 1000, "a flush comes");
    }
    let disk = machine.disk.clone();
    drop((node, machine));

    let machine = Machine::new(disk, 2);
    machine.disk.set_capacity(machine.disk.used_bytes());
    let node = machine.open().expect("it opens on a full disk");
    assert!(node.storage().flushed_version() > Version::ZERO, "it sees the flush");
    let first = node.log().statistics().wal.first;
    machine.spawner.run_for(Duration::from_secs(10));
    assert_eq!(node.log().statistics().wal.first, first, "nothing was purged");
    drop(node);

    let machine = machine.crash(CrashMode::UnsyncedLost, 3);
    machine.disk.set_capacity(1 << 30);
    let node = machine.open().expect("what the flush had is in the log");
    for number in 0..acknowledged {
        assert!(machine.get(&node, &format!("{number:04}")).is_some(), "{number} was acknowledged");
    }
    machine.spawner.run_for(Duration::from_secs(10));
    for number in 0..acknowledged {
        machine.set(&node, &format!("{number:04}"), &"w".repeat(500)).expect("it commits");
    }
    machine.spawner.run_for(Duration::from_secs(10));
    assert!(node.log().statistics().wal.first > first, "what the next flush has made superfluous is purged");
}

fn copy(from: &SimFileSystem, to: &SimFileSystem, dir: &str) {
    let dir = Path::new(dir);
    for name in to.list(dir).expect("it lists") {
        to.remove_file(&dir.join(name)).expect("it removes");
    }
    for name in from.list(dir).expect("it lists") {
        let path = dir.join(name);
        let file = from.open(&path, ferrisdb_storage::fs::OpenMode::Read).expect("it opens");
        let mut content = vec![0; usize::try_from(file.len().expect("it has a length")).expect("it fits")];
        ferrisdb_storage::fs::read_exact_at(file.as_ref(), &mut content, 0).expect("it reads");
        let file = to.open(&path, ferrisdb_storage::fs::OpenMode::CreateNew).expect("it creates");
        ferrisdb_storage::fs::write_all_at(file.as_ref(), &content, 0).expect("it writes");
    }
}

/// A life with so much data that log and storage have moved on; returns the disk as it was before, and after.
fn two_times(seed: u64) -> (SimFileSystem, SimFileSystem) {
    let machine = Machine::new(SimFileSystem::new(), seed);
    let mut before = None;
    for life in 0..2 {
        let node = machine.open().expect("it opens");
        for number in 0..60 {
            machine.set(&node, &format!("{number}"), &"v".repeat(900)).expect("it commits");
        }
        machine.spawner.run_for(Duration::from_secs(2));
        machine.wait(node.close()).expect("it closes");
        drop(node);
        if life == 0 {
            before = Some(machine.disk.fork());
        }
    }
    (before.expect("two lives"), machine.disk.fork())
}

/// Parts of different databases, or of different times, are not taken for one; and refusing changes nothing.
#[test]
fn what_does_not_belong_together_is_refused() {
    let (before, after) = two_times(1);
    let (_, other) = two_times(2);
    let refused = |disk: &SimFileSystem, words: &str| {
        // Twice on one disk: a refusal changes nothing by which the next open would be fooled.
        let disk = disk.fork();
        for _ in 0..2 {
            let machine = Machine::new(disk.clone(), 3);
            let error = machine.open().expect_err("it is refused");
            assert_eq!(error.code(), Code::IoError, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    };
    let disk = after.fork();
    copy(&before, &disk, "/db/storage");
    refused(&disk, "storage");
    let disk = after.fork();
    copy(&before, &disk, "/db/log");
    refused(&disk, "/db/log");
    let disk = after.fork();
    copy(&other, &disk, "/db/storage");
    refused(&disk, "another database");
    let disk = after.fork();
    for name in disk.list(Path::new("/db/log")).expect("it lists") {
        disk.remove_file(&Path::new("/db/log").join(name)).expect("it removes");
    }
    refused(&disk, "/db/log");
    let disk = after.fork();
    disk.remove_file(Path::new("/db/cluster")).expect("it removes");
    refused(&disk, "/db/cluster");
    let disk = after.fork();
    for offset in 0..32 {
        disk.flip_bit(Path::new("/db/cluster"), offset, 3);
        refused(&disk, "/db/cluster");
        disk.flip_bit(Path::new("/db/cluster"), offset, 3);
    }
    let machine = Machine::new(after, 4);
    machine.open().expect("untouched, it opens");
}

/// The log still has all that an older copy of the storage directory lacks, but says that it was stored: somebody put the copy there.
#[test]
fn storage_that_went_back_is_noticed() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let node = machine.open_with(NodeOptions::default()).expect("it opens");
    let mut copies = Vec::new();
    for number in 0..3 {
        machine.set(&node, "a", &format!("{number}")).expect("it commits");
        machine.spawner.run_until_idle();
        machine.wait(node.storage().flush()).expect("it flushes");
        machine.spawner.run_until_idle();
        copies.push(machine.disk.fork());
    }
    machine.set(&node, "a", "last").expect("it commits");
    drop(node);
    let disk = machine.disk.fork();
    copy(&copies[0], &disk, "/db/storage");
    let machine = Machine::new(disk, 2);
    let error = machine.open_with(NodeOptions::default()).expect_err("it is refused");
    assert!(error.to_string().contains("went back in time"), "{error}");
}

/// Storage waits for a disk that takes no more tables, while the log still has space: what begins is limited, by priority, and the status
/// says why; once storage has caught up nothing is limited.
#[test]
fn a_backlog_slows_down_what_begins() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let mut options = NodeOptions::tiny();
    options.coordinator.rate.backlog_low_bytes = 4_000;
    options.coordinator.rate.backlog_high_bytes = 20_000;
    options.coordinator.rate.waiting = 30;
    let node = machine.open_with(options).expect("it opens");
    let now = machine.begin(&node);
    let full = Verdict::Fail(DiskError::NoSpace);
    machine.disk.inject(Injection::new(&[OpKind::Create, OpKind::Write], full).path(".sst"));
    let mut committed = 0;
    while node.coordinator().statistics().begins_per_second.is_none_or(|limit| limit > 10.0) {
        let value = "v".repeat(2_000);
        let request = Transaction::at(now).set(&format!("k{committed}"), &value).build();
        machine.commit(&node, request).expect("the log has space");
        committed += 1;
        assert!(committed < 200, "the backlog grows: {:?}", node.coordinator().statistics());
    }
    assert!(committed > 20, "memory takes some of it");
    let begin = |priority| node.begin(BeginRequest { transactions: 1, priority });
    assert!(begin(Priority::Immediate).try_now().is_ok());
    let since = machine.clock.now();
    assert_eq!(code(machine.wait(begin(Priority::Batch))), Code::BatchTransactionThrottled);
    let waited = machine.clock.now() - since;
    assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&waited), "{waited:?}");
    let since = machine.clock.now();
    for _ in 0..30 {
        machine.begin(&node);
    }
    let waited = machine.clock.now() - since;
    assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&waited), "ten a second: {waited:?}");
    // Those who give up take nobody's turn.
    (0..29).for_each(|_| drop(begin(Priority::Default)));
    let since = machine.clock.now();
    machine.begin(&node);
    let waited = machine.clock.now() - since;
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    // One that begins with its commit waits as well, and may be refused as well.
    let blind = |priority| node.commit(Transaction::at(machine.begin_now(&node)).set("b", "").begins(priority).build());
    assert_eq!(code(machine.wait(blind(Priority::Batch))), Code::BatchTransactionThrottled);
    let since = machine.clock.now();
    for _ in 0..30 {
        machine.wait(blind(Priority::Default)).expect("it commits");
    }
    let waited = machine.clock.now() - since;
    assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&waited), "ten a second: {waited:?}");
    let since = machine.clock.now();
    machine.wait(blind(Priority::Immediate)).expect("it commits");
    assert_eq!(machine.clock.now(), since);
    let status: serde_json::Value =
        serde_json::from_str(&machine.wait(node.status()).expect("it has a status")).expect("it is JSON");
    assert_eq!(status["cluster"]["qos"]["performance_limited_by"]["name"], "storage_write_stall");
    // More than may wait are refused; waiting costs nobody anything who gives up.
    let waiting: Vec<_> = (0..31).map(|_| begin(Priority::Batch)).collect();
    let refused = waiting.into_iter().filter(|answer| matches!(answer, Answer::Now(_))).count();
    assert_eq!(refused, 1);

    machine.disk.clear_injections();
    machine.spawner.run_for(Duration::from_secs(20));
    assert!(begin(Priority::Batch).try_now().is_ok(), "{:?}", node.coordinator().statistics());
    assert_eq!(machine.get(&node, "k0").map(|value| value.len()), Some(2_000));
    machine.wait(node.close()).expect("it closes");
}
