//! Crashes at every I/O of a script, and at every I/O of some recoveries.
//!
//! The script runs once, on a disk that is forked before every operation that changes it. Each fork is crashed in several ways and opened again.
//! Each transaction of the script adds one to a key of its own, under an id: so a key shows whether its transaction is there, and
//! whether it is there twice. After each open every acknowledged commit is there, once; every id resolves to what the data shows, and what
//! is told to be absent stays absent; versions have not gone back; a lease that was granted still holds.
//!
//! A failure names the point; `FERRISDB_CRASH_POINT=<number>` runs that point alone.

use std::collections::HashSet;
use std::sync::Mutex;

use ferrisdb_storage::fs::sim::Verdict;

use super::*;

/// What was promised at some moment.
#[derive(Debug, Clone, Default)]
struct Promise {
    /// The read versions of the transactions that were submitted, by number.
    submitted: Vec<Version>,
    acknowledged: Vec<bool>,
    newest: Version,
    lease: Option<(Lease, Option<String>)>,
}

struct Fork {
    disk: SimFileSystem,
    what: String,
    promise: Promise,
}

fn record(disk: &SimFileSystem, promise: &Arc<Mutex<Promise>>) -> Arc<Mutex<Vec<Fork>>> {
    let forks = Arc::new(Mutex::new(Vec::new()));
    let (seen, promise) = (Arc::clone(&forks), Arc::clone(promise));
    disk.set_hook(move |disk, op| {
        if op.kind.is_mutating() {
            let what = format!("#{} {:?} {} {}+{}", op.number, op.kind, op.path.display(), op.offset, op.len);
            let promise = promise.lock().expect("no panic").clone();
            seen.lock().expect("no panic").push(Fork { disk: disk.fork(), what, promise });
        }
        Verdict::Pass
    });
    forks
}

fn modes(disk: &SimFileSystem, seed: u64) -> Vec<CrashMode> {
    let mut modes = vec![CrashMode::NothingLost];
    if disk.unsynced_changes() > 0 {
        modes.extend([CrashMode::UnsyncedLost, CrashMode::RandomSubset { seed }]);
    }
    modes
}

const CLIENT: u64 = 77;

fn id(number: usize) -> CommitId {
    CommitId { client: CLIENT, counter: number as u64 + 1 }
}

fn key(number: usize) -> String {
    format!("n{number:04}")
}

/// Small enough that memtables are flushed, WAL segments purged and used again, and owner states kept.
fn options() -> NodeOptions {
    let mut options = NodeOptions::tiny();
    options.storage.engine.compaction_jobs = 0;
    options
}

/// A life of the process: some transactions, alone and together.
fn live(machine: &Machine, promise: &Mutex<Promise>, groups: &[usize], with_lease: bool) -> Node {
    let node = machine.open_with(options()).expect("it opens");
    for (round, &group) in groups.iter().enumerate() {
        let read_version = machine.begin(&node);
        assert!(read_version >= promise.lock().expect("no panic").newest);
        let mut answers = Vec::new();
        for _ in 0..group {
            let number = {
                let mut promise = promise.lock().expect("no panic");
                promise.submitted.push(read_version);
                promise.acknowledged.push(false);
                promise.submitted.len() - 1
            };
            let filler = "f".repeat(200 + number % 7 * 90);
            let request = Transaction::at(read_version).add(&key(number), 1).set("filler", &filler);
            let request = request.id(CLIENT, number as u64 + 1, 1).build();
            // Who comes alone has its commit made durable by its own thread, every other time.
            let is_alone = group == 1 && round % 2 == 0;
            let answer =
                if is_alone { node.commit_alone(request, &mut Afterwards::new()) } else { node.commit(request) };
            answers.push((number, answer));
        }
        for (number, answer) in answers {
            let Committed::At { version, .. } = machine.wait(answer).expect("it commits") else {
                panic!("no conflict")
            };
            let mut promise = promise.lock().expect("no panic");
            promise.acknowledged[number] = true;
            promise.newest = promise.newest.max(version);
        }
        if with_lease && round == 2 {
            let lease = machine.lease(&node, LeaseRequest::Grant(None)).expect("it is granted");
            let value = machine.get_at(&node, "filler", lease.version).expect("it reads");
            promise.lock().expect("no panic").lease = Some((lease, value));
        }
        machine.spawner.run_for(Duration::from_millis(if round % 5 == 4 { 1500 } else { 20 }));
    }
    node
}

/// Opens a crashed disk and checks all promises.
fn check(machine: &Machine, promise: &Promise, place: &str, goes_on: bool) {
    let node = machine.open_with(options()).unwrap_or_else(|error| panic!("{place}: {error}"));
    let now = machine.begin(&node);
    assert!(now >= promise.newest, "{place}: the read version {now} is below {}", promise.newest);
    let is_there = |number: usize| {
        let value = machine.wait(node.get(GetRequest { key: bytes(&key(number)), version: now }));
        match value.unwrap_or_else(|error| panic!("{place}: {error}")) {
            None => false,
            Some(value) if value.as_ref() == 1u64.to_le_bytes() => true,
            Some(value) => panic!("{place}: transaction {number} happened more than once: {value:?}"),
        }
    };
    let there: Vec<bool> = (0..promise.submitted.len()).map(is_there).collect();
    for (number, (&there, &acknowledged)) in there.iter().zip(&promise.acknowledged).enumerate() {
        assert!(there || !acknowledged, "{place}: transaction {number} was acknowledged and is lost");
    }
    assert!(!is_there(there.len()), "{place}: a transaction that nobody sent");
    if goes_on {
        for (number, (&there, &read_version)) in there.iter().zip(&promise.submitted).enumerate() {
            let resolved = machine.resolve(&node, id(number), read_version);
            let resolved = resolved.unwrap_or_else(|error| panic!("{place}: transaction {number}: {error}"));
            assert_eq!(resolved.is_some(), there, "{place}: transaction {number} resolves wrongly");
        }
        // Late messages change nothing; new ones do.
        for (number, &read_version) in promise.submitted.iter().enumerate().rev().take(3) {
            let again = Transaction::at(read_version).add(&key(number), 1).id(CLIENT, number as u64 + 1, 1);
            drop(machine.commit(&node, again.build()));
        }
        let version = machine.set(&node, "new", "1").unwrap_or_else(|error| panic!("{place}; then: {error}"));
        assert!(version > now && version > promise.newest, "{place}: versions went back");
        if let Some((lease, value)) = &promise.lease {
            for _ in 0..7 {
                machine.spawner.run_for(Duration::from_secs(1));
                machine.set(&node, "filler", "newer").unwrap_or_else(|error| panic!("{place}; then: {error}"));
            }
            let found = machine.get_at(&node, "filler", lease.version);
            assert_eq!(found.as_ref(), Ok(value), "{place}: lease {} does not hold", lease.id);
        }
        machine.wait(node.close()).unwrap_or_else(|error| panic!("{place}; then: {error}"));
        drop(node);
        let node = machine.open_with(options()).unwrap_or_else(|error| panic!("{place}; then again: {error}"));
        let now = machine.begin(&node);
        for (number, &there) in there.iter().enumerate() {
            let value =
                machine.wait(node.get(GetRequest { key: bytes(&key(number)), version: now })).expect("it reads");
            assert_eq!(value.is_some_and(|value| value.as_ref() == 1u64.to_le_bytes()), there, "{place}: {number}");
        }
    }
}

/// Crashes every fork; every `second`-th recovery is itself crashed everywhere.
fn crash_everywhere(forks: &[Fork], second: usize) -> (usize, usize) {
    let only = std::env::var("FERRISDB_CRASH_POINT").ok().map(|point| point.parse::<usize>().expect("a number"));
    let mut seen = HashSet::new();
    let (mut points, mut opened) = (0, 0);
    for (number, fork) in forks.iter().enumerate() {
        if only.is_some_and(|only| only != number) {
            continue;
        }
        for mode in modes(&fork.disk, number as u64) {
            points += 1;
            let disk = fork.disk.fork_crashed(mode);
            let promised = fork.promise.acknowledged.iter().filter(|&&acknowledged| acknowledged).count();
            if !seen.insert((disk.state_hash(), promised, fork.promise.submitted.len())) {
                continue;
            }
            opened += 1;
            let place = format!("FERRISDB_CRASH_POINT={number}: {mode:?} before {}", fork.what);
            let recovery = (number % second == 0).then(|| record(&disk, &Arc::default()));
            let machine = Machine::new(disk.clone(), number as u64);
            check(&machine, &fork.promise, &place, recovery.is_none() && opened % 3 == 0);
            disk.clear_hook();
            let again = recovery.map(|forks| std::mem::take(&mut *forks.lock().expect("no panic")));
            for (step, again) in again.into_iter().flatten().enumerate() {
                for mode in modes(&again.disk, step as u64) {
                    points += 1;
                    let disk = again.disk.fork_crashed(mode);
                    if seen.insert((disk.state_hash(), promised, usize::MAX)) {
                        opened += 1;
                        let place = format!("{place}; and in the recovery {mode:?} before {}", again.what);
                        check(&Machine::new(disk, step as u64), &fork.promise, &place, opened % 5 == 0);
                    }
                }
            }
        }
    }
    (points, opened)
}

/// One life, with flushes and purges, and a lease.
#[test]
fn acknowledged_commits_survive_a_crash_anywhere() {
    let promise = Arc::new(Mutex::new(Promise::default()));
    let machine = Machine::new(SimFileSystem::new(), 5);
    let forks = record(&machine.disk, &promise);
    let groups = [1, 1, 2, 5, 1, 3, 1, 1, 4, 2, 6, 1, 1, 3, 2, 1, 5, 1, 1, 8, 1, 2, 1, 4, 1, 1];
    let node = live(&machine, &promise, &groups, true);
    let log = node.log().statistics();
    assert!(log.counters.owner_states > 3, "owner states were delivered: {log:?}");
    machine.wait(node.close()).expect("it closes");
    machine.disk.clear_hook();
    let forks = std::mem::take(&mut *forks.lock().expect("no panic"));
    let reaches = |what: &str| forks.iter().any(|fork| fork.what.contains(what));
    assert!(
        reaches("Remove /db/log/0000000001.wal"),
        "the script purges the log's first segment, which is a small one"
    );
    assert!(reaches("Rename /db/log/0000000002.wal"), "and uses the next one again");
    assert!(reaches("Write /db/storage/000002.sst"), "the script flushes");
    let (points, opened) = crash_everywhere(&forks, 29);
    eprintln!("{} operations, {points} crash points, {opened} different disks opened", forks.len());
    assert!(opened > 300 || std::env::var_os("FERRISDB_CRASH_POINT").is_some());
}

/// Several lives, that end cleanly, by the death of the process, and by a loss of power.
#[test]
fn acknowledged_commits_survive_restarts_and_crashes() {
    let promise = Arc::new(Mutex::new(Promise::default()));
    let mut machine = Machine::new(SimFileSystem::new(), 9);
    let mut all = Vec::new();
    for life in 0..6 {
        let forks = record(&machine.disk, &promise);
        let node = live(&machine, &promise, &[1, 3, 1, 2], life == 1);
        assert_eq!(node.coordinator().epoch(), life + 1);
        if life % 3 == 0 {
            machine.wait(node.close()).expect("it closes");
        }
        drop(node);
        machine.disk.clear_hook();
        all.extend(std::mem::take(&mut *forks.lock().expect("no panic")));
        let mode = if life % 3 == 1 { CrashMode::UnsyncedLost } else { CrashMode::NothingLost };
        machine = machine.crash(mode, life);
    }
    crash_everywhere(&all, 41);
}
