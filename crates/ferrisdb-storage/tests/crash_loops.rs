//! Crashes at every I/O, and again at every I/O of the recovery.
//!
//! Each script runs once, on a disk that is forked (copy-on-write) before every operation that changes it. Each fork is crashed in
//! several ways and opened again, while that disk too is forked before every operation of the recovery; each of those forks is crashed
//! and opened. After each open: everything that was acknowledged as durable is there, what is there is a prefix of what was
//! written, every way of reading agrees, `verify` finds nothing, and the engine takes writes.
//!
//! A crash point is a fork, a crash mode, and (on the second level) an operation of the recovery with another mode. Points that leave the
//! very same disk under the same promise are counted, but opened once. `--nocapture` shows the counts.
//!
//! A failure names the script and the point; `FERRISDB_CRASH_POINT=<number>` runs that first-level point alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "how many places were tried is a result")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem, Verdict};
use ferrisdb_storage::testing::Machine;
use ferrisdb_storage::testing::script::{Op, Promise, Script, State, check};
use ferrisdb_storage::{Durability, Options, Retention};

use Durability::{Buffered, Sync};
use Op::{Delete, DeleteRange, Owner, Put};

/// Each script and how many different disks it must open: the promise is a hundred thousand in all.
const DISKS_MIN: &[(&str, u64)] = &[
    ("mixed", 17_000),
    ("compaction", 26_000),
    ("manifest", 14_000),
    ("recycling", 22_000),
    ("reopens", 17_000),
    ("without WAL", 5_000),
];

const _: () = {
    let (mut sum, mut index) = (0, 0);
    while index < DISKS_MIN.len() {
        sum += DISKS_MIN[index].1;
        index += 1;
    }
    assert!(sum >= 100_000);
};

/// Points and opened disks of all scripts so far.
static TOTAL: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// The disk as it was before an operation.
struct Fork {
    disk: SimFileSystem,
    what: String,
    promise: Promise,
    /// Whether the engine was open (as opposed to: still opening).
    open: bool,
}

/// Forks `disk` before each operation that changes it.
fn record(disk: &SimFileSystem, promise: &Arc<Mutex<Promise>>, open: &Arc<Mutex<bool>>) -> Arc<Mutex<Vec<Fork>>> {
    let forks = Arc::new(Mutex::new(Vec::new()));
    let (seen, promise, open) = (Arc::clone(&forks), Arc::clone(promise), Arc::clone(open));
    disk.set_hook(move |disk, op| {
        if op.kind.is_mutating() {
            let what = format!("#{} {:?} {} {}+{}", op.number, op.kind, op.path.display(), op.offset, op.len);
            let (promise, open) = (*promise.lock().unwrap(), *open.lock().unwrap());
            seen.lock().unwrap().push(Fork { disk: disk.fork(), what, promise, open });
        }
        Verdict::Pass
    });
    forks
}

/// The ways in which to crash a fork. If nothing is unsynced they are all the same.
fn modes(disk: &SimFileSystem, seed: u64) -> Vec<CrashMode> {
    let mut modes = vec![CrashMode::NothingLost];
    if disk.unsynced_changes() > 0 {
        modes.push(CrashMode::UnsyncedLost);
        modes.extend((0..2).map(|index| CrashMode::RandomSubset { seed: seed * 2 + index }));
    }
    modes
}

/// What a loop has seen.
struct Loop<'a> {
    name: &'a str,
    options: &'a Options,
    states: &'a [State],
    points: u64,
    opened: u64,
    /// Disks that were opened already, with the promise that held: the same again would give the same.
    seen: HashSet<(u64, usize, usize, bool)>,
}

impl Loop<'_> {
    fn first_level(&mut self, forks: &[Fork]) {
        let only = std::env::var("FERRISDB_CRASH_POINT").ok().map(|point| point.parse::<usize>().unwrap());
        for (number, fork) in forks.iter().enumerate() {
            if only.is_some_and(|only| only != number) {
                continue;
            }
            for mode in modes(&fork.disk, number as u64) {
                self.points += 1;
                let place = format!("{}, FERRISDB_CRASH_POINT={number}: {mode:?} before {}", self.name, fork.what);
                self.crash_and_recover(&fork.disk.fork_crashed(mode), mode, fork.promise, &place, number as u64);
            }
        }
    }

    fn is_new(&mut self, disk: &SimFileSystem, from: usize, to: usize, first: bool) -> bool {
        self.seen.insert((disk.state_hash(), from, to, first))
    }

    /// Opens a crashed disk, checks it, and crashes it again at each operation of this recovery.
    fn crash_and_recover(&mut self, disk: &SimFileSystem, mode: CrashMode, promise: Promise, place: &str, seed: u64) {
        let (from, to) = (promise.after(mode), promise.submitted);
        let is_new = self.is_new(disk, from, to, true);
        let open = Arc::new(Mutex::new(false));
        let forks = record(disk, &Arc::default(), &open);
        let machine = Machine::new(disk.clone(), seed);
        self.opened += u64::from(is_new);
        let engine = machine.open(self.options.clone()).unwrap_or_else(|error| panic!("{place}: {error}"));
        *open.lock().unwrap() = true;
        let index = check(&engine, self.states, from, to).unwrap_or_else(|problem| panic!("{place}: {problem}"));
        machine.spawner.run_until_idle();
        disk.clear_hook();
        if is_new {
            self.goes_on(&machine, engine, index, place);
        } else {
            drop(engine);
        }
        let forks = std::mem::take(&mut *forks.lock().unwrap());
        for (number, fork) in forks.iter().enumerate() {
            for second in modes(&fork.disk, seed * 1000 + number as u64) {
                self.points += 1;
                // While it opens it has promised nothing new; once open, what it has shown stays. Power that fails after a process
                // has died takes what only the process's death would have spared.
                let spared = if mode == CrashMode::NothingLost { second } else { mode };
                let from = if fork.open { index } else { promise.after(spared) };
                let place = format!("{place}; and in the recovery {second:?} before {}", fork.what);
                self.open_again(&fork.disk.fork_crashed(second), from, index, &place);
            }
        }
    }

    fn open_again(&mut self, disk: &SimFileSystem, from: usize, to: usize, place: &str) {
        if !self.is_new(disk, from, to, false) {
            return;
        }
        self.opened += 1;
        let machine = Machine::new(disk.clone(), 1);
        let engine = machine.open(self.options.clone()).unwrap_or_else(|error| panic!("{place}: {error}"));
        let index = check(&engine, self.states, from, to).unwrap_or_else(|problem| panic!("{place}: {problem}"));
        if self.opened.is_multiple_of(16) {
            self.goes_on(&machine, engine, index, place);
        }
    }

    /// The engine takes durable writes, and neither a loss of power nor closing and opening it changes anything.
    fn goes_on(&self, machine: &Machine, engine: ferrisdb_storage::Engine, index: usize, place: &str) {
        let mut script = Script::new(SimFileSystem::new(), 0, self.options.clone());
        script.states = self.states[..=index].to_vec();
        script.machine = Machine::new(machine.disk.clone(), 2);
        script.engine = Some(engine);
        let went =
            |result: ferrisdb_storage::Result<()>| result.unwrap_or_else(|error| panic!("{place}; then: {error}"));
        went(script.write(&[Put(1, 30), Delete(2), Owner], Sync));
        let last = script.states.len() - 1;
        // Power may fail at once: what is durable now does not rest on anything that is not.
        let after = Machine::new(machine.disk.fork_crashed(CrashMode::UnsyncedLost), 3);
        let engine = after
            .open(self.options.clone())
            .unwrap_or_else(|error| panic!("{place}; then a write and a crash: {error}"));
        if self.options.wal {
            let checked = check(&engine, &script.states, last, last);
            checked.unwrap_or_else(|problem| panic!("{place}; then, after a write and a crash: {problem}"));
        }
        drop(engine);
        went(script.close());
        went(script.open());
        let checked = check(script.engine(), &script.states, last, last);
        checked.unwrap_or_else(|problem| panic!("{place}; then, after a write, close and open: {problem}"));
    }
}

/// Runs a script, and crashes it everywhere.
///
/// `reaches` are beginnings of operations that must be among the script's, so that it keeps doing what its name says.
fn run(name: &str, options: Options, reaches: &[&str], body: impl FnOnce(&mut Script)) {
    let disk = SimFileSystem::new();
    let mut script = Script::new(disk.clone(), 7, options.clone());
    let forks = record(&disk, &script.promise, &Arc::default());
    script.open().unwrap();
    body(&mut script);
    if script.engine.is_some() {
        script.close().unwrap();
    }
    disk.clear_hook();
    let forks = std::mem::take(&mut *forks.lock().unwrap());
    for operation in reaches {
        let reached =
            forks.iter().any(|fork| fork.what.split_once(' ').is_some_and(|(_, what)| what.starts_with(operation)));
        assert!(reached, "the script {name} no longer reaches {operation}");
    }
    let mut run = Loop { name, options: &options, states: &script.states, points: 0, opened: 0, seen: HashSet::new() };
    run.first_level(&forks);
    let Loop { points, opened, .. } = run;
    let (all_points, all_opened) = (&TOTAL.0, &TOTAL.1);
    let all_points = all_points.fetch_add(points, Ordering::Relaxed) + points;
    let all_opened = all_opened.fetch_add(opened, Ordering::Relaxed) + opened;
    println!(
        "{name}: {} operations, {points} crash points, {opened} different disks opened; \
         so far {all_points} points, {all_opened} disks",
        forks.len()
    );
    let least = DISKS_MIN.iter().find(|(other, _)| *other == name).expect("each script has its line").1;
    if std::env::var_os("FERRISDB_CRASH_POINT").is_none() {
        assert!(opened >= least, "{name} opened {opened} disks, and must open {least}");
    }
}

/// Small enough that everything happens soon.
fn options() -> Options {
    Options { wal_segment_bytes: 4096, block_cache_bytes: 16 << 10, ..Options::tiny() }
}

/// Durable and buffered writes of every kind, alone and in groups, around flushes.
#[test]
fn mixed() {
    run("mixed", options(), &["Write /db/000001.sst", "Sync /db/wal/"], |script| {
        script.write(&[Put(1, 20), Put(2, 40), Owner], Buffered).unwrap();
        script.write(&[Put(3, 20), Put(1, 10)], Sync).unwrap();
        script.write(&[Delete(2)], Buffered).unwrap();
        script.write_group(&[&[Put(4, 100)], &[Put(5, 10), Delete(1)], &[DeleteRange(3, 5)]]);
        script.write(&[Put(6, 700)], Buffered).unwrap();
        script.flush().unwrap();
        script.write(&[Put(3, 20), Owner], Buffered).unwrap();
        script.write(&[DeleteRange(0, 20), Put(4, 50)], Sync).unwrap();
        script.write(&[Put(9, 20)], Buffered).unwrap();
        script.flush().unwrap();
        script.write_group(&[&[Put(1, 300)], &[Owner]]);
        script.write(&[Delete(4), Put(11, 1000), Put(12, 1000)], Sync).unwrap();
        script.compact();
        script.write_group(&[&[DeleteRange(1, 12)], &[Put(7, 7)], &[Put(8, 8)], &[Delete(7)]]);
        script.flush().unwrap();
        script.write(&[Put(2, 1)], Buffered).unwrap();
        // A full memtable is flushed while the next one has durable writes already.
        script.write(&[Put(13, 6000)], Buffered).unwrap();
        script.write(&[Put(14, 6000)], Buffered).unwrap();
        script.write(&[Put(15, 6000)], Sync).unwrap();
        script.machine.spawner.run_until_idle();
        script.write(&[Put(16, 10)], Sync).unwrap();
    });
}

/// Compactions of several tables into several, moves, drops of tables under a range tombstone.
#[test]
fn compaction() {
    let options = Options {
        l0_compaction_tables: 2,
        table_bytes: 4096,
        base_level_bytes: 4096,
        level_multiplier: 2,
        wal_segment_bytes: 16 << 10,
        ..options()
    };
    run(
        "compaction",
        options,
        &["Create /db/000005.sst", "Create /db/000006.sst", "Remove /db/000001.sst"],
        |script| {
            for round in 0..5 {
                script.write(&[Put(round, 1500), Put(round + 6, 1500), Put(23, 10)], Buffered).unwrap();
                script.write(&[Put(round + 12, 1200), Delete(round + 5)], Sync).unwrap();
                script.flush().unwrap();
            }
            script.settle();
            script.write(&[DeleteRange(0, 16)], Sync).unwrap();
            script.flush().unwrap();
            script.settle();
            script.write(&[Put(3, 30), Owner], Buffered).unwrap();
            script.compact();
            script.settle();
        },
    );
}

/// Many small flushes, so that the manifest is switched while the engine runs.
#[test]
fn manifest() {
    run(
        "manifest",
        Options { manifest_bytes_max: 1024, compaction_jobs: 0, ..options() },
        &["Rename /db/CURRENT.tmp", "Remove /db/MANIFEST-000001", "Create /db/MANIFEST-000003"],
        |script| {
            for round in 0..11 {
                script.write(&[Put(round, 10), Owner], if round % 3 == 0 { Sync } else { Buffered }).unwrap();
                script.flush().unwrap();
            }
        },
    );
}

/// Enough records to go round the WAL's segments several times.
#[test]
fn recycling() {
    run(
        "recycling",
        Options { compaction_jobs: 0, ..options() },
        &["Rename /db/wal/0000000001.wal", "Rename /db/wal/0000000003.wal"],
        |script| {
            for round in 0..48 {
                let durability = if round % 4 == 0 { Sync } else { Buffered };
                // Memtables rotate because they are full, so that the WAL is purged while it is being written to: behind a flush with
                // nothing after it an idle engine would give its segments back instead of using them again.
                script.write(&[Put(round % 5, 900), Put(round % 7, 100)], durability).unwrap();
                if round % 8 == 7 {
                    script.settle();
                }
            }
        },
    );
}

/// Lives that end in a clean close, and lives that end in the middle.
#[test]
fn reopens() {
    run(
        "reopens",
        Options { retention: Retention::FromFloor, ..options() },
        &["Create /db/MANIFEST-000004"],
        |script| {
            for round in 0..7 {
                script.write(&[Put(round, 60), Delete(round + 1)], Buffered).unwrap();
                script.write(&[Put(round + 2, 60)], Sync).unwrap();
                script.write(&[Put(round + 3, 60), DeleteRange(0, 2)], Buffered).unwrap();
                if round == 1 {
                    script.flush().unwrap();
                    script.write(&[Owner, Put(20, 5)], Buffered).unwrap();
                }
                if round == 2 {
                    script.close().unwrap();
                    script.open().unwrap();
                } else {
                    script.die_and_reopen();
                }
            }
        },
    );
}

/// Without a WAL a flush alone makes durable, and what it leaves is a prefix.
#[test]
fn without_wal() {
    run("without WAL", Options { wal: false, ..options() }, &["Create /db/000003.sst"], |script| {
        for round in 0..12 {
            script.write(&[Put(round, 60), Owner], Buffered).unwrap();
            script.write(&[Put(round + 1, 60), Delete(round)], Buffered).unwrap();
            if round % 2 == 1 {
                script.flush().unwrap();
            }
        }
        script.settle();
        script.close().unwrap();
        script.open().unwrap();
        script.write(&[DeleteRange(2, 5)], Buffered).unwrap();
        script.flush().unwrap();
    });
}
