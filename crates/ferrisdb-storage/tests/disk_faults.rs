//! A disk that fails: every kind of operation, at every place, once or for ever, with every error that Linux gives.
//!
//! Whatever happens, one of three things follows: the call that needed the disk fails with an error that names the file, or the engine
//! stops taking writes and says why, or it goes on as if nothing had been. Never a wrong answer; and once the disk has healed and the
//! engine is opened again, everything that it has acknowledged as durable is there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "how many places were tried is a result")]
#![expect(clippy::cast_possible_truncation, reason = "tests cast small numbers")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ferrisdb_storage::fs::sim::{CrashMode, DiskError, Injection, OpKind, SimFileSystem, Verdict};
use ferrisdb_storage::testing::script::{Op, Script, check, key};
use ferrisdb_storage::testing::{DIR, Machine, contents};
use ferrisdb_storage::{Compression, Durability, Engine, Error, Options, WriteBatch};

use Durability::{Buffered, Sync};
use Op::{Delete, DeleteRange, Owner, Put};

fn options() -> Options {
    Options { wal_segment_bytes: 4096, table_bytes: 4096, l0_compaction_tables: 2, ..Options::tiny() }
}

/// An error that someone can act on: it names a file of the engine, or says why the engine has stopped.
fn is_clear(error: &Error) -> bool {
    match error {
        Error::Io { file, .. } | Error::NoSpace { file, .. } => file.starts_with(DIR) || file.as_os_str() == "/",
        Error::Poisoned { reason } => reason.contains(DIR),
        _ => false,
    }
}

/// True for the error of a call that may have taken effect nevertheless.
fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Poisoned { .. })
}

/// What one run with a fault came to.
#[derive(Default)]
struct Outcome {
    /// Calls that failed.
    failed: usize,
    poisoned: bool,
}

/// Writes, flushes, compacts and reopens on a disk that may fail, checking every answer. Panics on a wrong one.
fn life(script: &mut Script, place: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let note = |outcome: &mut Outcome, what: &str, error: Error| {
        assert!(is_clear(&error), "{place}: {what}: {error:?} names neither a file nor a reason");
        outcome.failed += 1;
        outcome.poisoned |= is_unknown(&error);
    };
    for round in 0..3 {
        if script.engine.is_none()
            && let Err(error) = script.open()
        {
            note(&mut outcome, "open", error);
            continue;
        }
        // A new process knows nothing of the old one's failure.
        let mut poisoned = false;
        for step in 0..4 {
            let number = round * 4 + step;
            let ops =
                [Put(number, 600), Put((number + 7) % 12, 40), if step == 2 { Owner } else { Delete(number + 1) }];
            let durability = if step % 2 == 0 { Buffered } else { Sync };
            match script.write(&ops, durability) {
                Ok(()) => assert!(!poisoned, "{place}: a poisoned engine took a write"),
                Err(error) => {
                    poisoned |= is_unknown(&error);
                    // The write of an engine that had stopped before, or that the WAL did not take, did not happen; after a
                    // failed sync it may have.
                    if !is_unknown(&error) {
                        script.forget_last();
                    }
                    note(&mut outcome, "write", error);
                    if poisoned {
                        break;
                    }
                }
            }
            read(script, place, &mut outcome);
        }
        if let Err(error) = script.flush() {
            note(&mut outcome, "flush", error);
        }
        if round == 1
            && let Err(error) = script.engine().compact_range(None, None)
        {
            note(&mut outcome, "compact", error);
        }
        read(script, place, &mut outcome);
        if let Err(error) = script.close() {
            note(&mut outcome, "close", error);
        }
    }
    outcome
}

/// Reads are right, or say why not. After a failed sync a reader may see the batch whose fate is unknown.
fn read(script: &Script, place: &str, outcome: &mut Outcome) {
    let engine = script.engine();
    let version = engine.visible_version();
    let Some(state) = script.states.iter().find(|state| state.version == version) else {
        panic!("{place}: visible is {version}, which no batch had");
    };
    match contents(engine) {
        Ok(found) => assert!(found == *state.map, "{place}: a scan is wrong at {version}"),
        Err(error) => {
            assert!(is_clear(&error), "{place}: scan: {error:?}");
            outcome.failed += 1;
        }
    }
    for number in [0, 5, 11, 23] {
        match engine.get(&key(number)) {
            Ok(found) => {
                assert_eq!(found.as_deref(), state.map.get(&key(number)).map(Vec::as_slice), "{place}: key {number}");
            }
            Err(error) => {
                assert!(is_clear(&error), "{place}: get: {error:?}");
                outcome.failed += 1;
            }
        }
    }
}

/// The disk is healthy again: everything acknowledged is there, after the process dies and after power fails.
fn assert_recovers(script: &mut Script, place: &str) {
    script.engine = None;
    script.machine.spawner.drop_jobs();
    script.machine.disk.clear_injections();
    for mode in [CrashMode::NothingLost, CrashMode::UnsyncedLost, CrashMode::RandomSubset { seed: 5 }] {
        let promise = script.promise();
        let machine = Machine::new(script.machine.disk.fork_crashed(mode), 3);
        let engine =
            machine.open(script.options.clone()).unwrap_or_else(|error| panic!("{place}; then {mode:?}: {error}"));
        // Power that fails takes what was only buffered.
        let from = promise.after(mode);
        let last = script.states.len() - 1;
        let checked = check(&engine, &script.states, from.min(last), last);
        checked.unwrap_or_else(|problem| panic!("{place}; then {mode:?}: {problem}"));
        let mut batch = WriteBatch::new();
        batch.put(b"after", b"it");
        engine.write(batch, Sync).unwrap_or_else(|error| panic!("{place}; then {mode:?}: {error}"));
        engine.close().unwrap_or_else(|error| panic!("{place}; then {mode:?}: {error}"));
    }
}

/// Runs [`life`] with a fault at the n-th operation of the kinds, for n from zero until the fault never strikes. Returns how many
/// runs there were.
fn at_every_place(kinds: &[OpKind], verdict: &Verdict, times: u64) -> (usize, usize) {
    let (mut runs, mut failures) = (0, 0);
    let healthy = {
        let mut script = Script::new(SimFileSystem::new(), 1, options());
        let outcome = life(&mut script, "a healthy disk");
        assert_eq!(outcome.failed, 0);
        let counts = script.machine.disk.counts();
        let all = [
            (OpKind::Open, counts.opens),
            (OpKind::Create, counts.creates),
            (OpKind::Remove, counts.removes),
            (OpKind::Rename, counts.renames),
            (OpKind::CreateDir, counts.create_dirs),
            (OpKind::List, counts.lists),
            (OpKind::Stat, counts.stats),
            (OpKind::Read, counts.reads),
            (OpKind::Write, counts.writes),
            (OpKind::Sync, counts.syncs),
            (OpKind::SyncDir, counts.dir_syncs),
            (OpKind::Allocate, counts.allocates),
            (OpKind::SetLen, counts.set_lens),
            (OpKind::Lock, counts.locks),
        ];
        all.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, count)| count).sum::<u64>()
    };
    assert!(healthy > 0, "the life of a test has operations of kind {kinds:?}");
    for number in 0..healthy {
        let place = format!("operation {number} of {kinds:?}, {verdict:?} {times} times");
        let mut script = Script::new(SimFileSystem::new(), 1, options());
        script.machine.disk.inject(Injection::new(kinds, verdict.clone()).after(number).times(times));
        let outcome = life(&mut script, &place);
        failures += usize::from(outcome.failed > 0);
        assert_recovers(&mut script, &place);
        runs += 1;
    }
    (runs, failures)
}

/// Every error at every operation that changes the disk, once and for ever.
#[test]
fn every_operation_fails_at_every_place() {
    let errors = [
        DiskError::Io,
        DiskError::NoSpace,
        DiskError::Quota,
        DiskError::ReadOnly,
        DiskError::TooManyFiles,
        DiskError::Access,
        DiskError::Interrupted,
    ];
    let kinds: &[&[OpKind]] = &[
        &[OpKind::Create],
        &[OpKind::Remove],
        &[OpKind::Rename],
        &[OpKind::CreateDir],
        &[OpKind::List],
        &[OpKind::Stat],
        &[OpKind::Open],
        &[OpKind::Read],
        &[OpKind::Write],
        &[OpKind::Sync],
        &[OpKind::SyncDir],
        &[OpKind::Allocate],
        &[OpKind::SetLen],
        &[OpKind::Lock],
    ];
    let mut seen = BTreeSet::new();
    for kinds in kinds {
        for (index, error) in errors.into_iter().enumerate() {
            // For ever only with the two that the engine tells apart, and never EINTR, which is asked to be tried again.
            let forever = index < 2;
            let (runs, failures) = at_every_place(kinds, &Verdict::Fail(error), 1);
            println!("{kinds:?} {error:?} once: {runs} places, {failures} with failed calls");
            if forever {
                let (runs, failures) = at_every_place(kinds, &Verdict::Fail(error), u64::MAX);
                println!("{kinds:?} {error:?} for ever: {runs} places, {failures} with failed calls");
            }
            if failures > 0 {
                seen.insert(kinds[0]);
            }
        }
    }
    for kind in [OpKind::Create, OpKind::Write, OpKind::Sync, OpKind::SyncDir, OpKind::Read, OpKind::Open] {
        assert!(seen.contains(&kind), "a failing {kind:?} must fail some call");
    }
}

/// Interruptions, short writes and short reads are no failures at all.
#[test]
fn short_transfers_are_continued() {
    for verdict in [Verdict::Short(1), Verdict::Short(7)] {
        for kind in [OpKind::Read, OpKind::Write] {
            let (_, failures) = at_every_place(&[kind], &verdict, 1);
            assert_eq!(failures, 0, "{kind:?} {verdict:?}");
        }
    }
    for kind in [OpKind::Read, OpKind::Write] {
        let (_, failures) = at_every_place(&[kind], &Verdict::Fail(DiskError::Interrupted), 1);
        assert_eq!(failures, 0, "{kind:?} interrupted");
        let mut script = Script::new(SimFileSystem::new(), 1, options());
        script.machine.disk.inject(Injection::new(&[kind], Verdict::Short(100)));
        let outcome = life(&mut script, "every transfer is short");
        assert_eq!(outcome.failed, 0);
        assert_recovers(&mut script, "every transfer is short");
    }
}

/// A write that leaves a part of its bytes behind and fails.
#[test]
fn torn_writes() {
    for bytes in [1, 20, 512] {
        for error in [DiskError::Io, DiskError::NoSpace] {
            let (_, failures) = at_every_place(&[OpKind::Write], &Verdict::Torn(bytes, error), 1);
            assert!(failures > 0);
        }
    }
}

/// A sync fails once, what it should have written is forgotten, and later syncs succeed, as on Linux: the engine stops taking writes
/// and, opened again, has all that it acknowledged.
#[test]
fn a_failed_sync_that_then_lies() {
    for error in [DiskError::Io, DiskError::NoSpace] {
        let (_, failures) = at_every_place(&[OpKind::Sync], &Verdict::FailAndDrop(error), 1);
        assert!(failures > 0);
    }
}

/// The same under a group of writers: none of them is told that it is durable.
#[test]
fn a_failed_sync_fails_its_whole_group() {
    let disk = SimFileSystem::new();
    let mut script = Script::new(disk.clone(), 1, options());
    script.open().unwrap();
    script.write(&[Put(1, 20)], Sync).unwrap();
    disk.inject(Injection::new(&[OpKind::Sync], Verdict::FailAndDrop(DiskError::Io)).path("/wal/").once());
    let results = script.try_write_group(&[&[Put(2, 20)], &[Put(3, 20)], &[Delete(1)]]);
    for result in &results {
        assert!(matches!(result, Err(Error::Poisoned { reason }) if reason.contains("/db/wal/")), "{result:?}");
    }
    let refused = script.write(&[Put(4, 20)], Buffered).unwrap_err();
    assert!(matches!(refused, Error::Poisoned { .. }));
    script.forget_last();
    assert_eq!(script.engine().get(&key(9)).unwrap().as_deref(), None, "reads go on");
    assert_recovers(&mut script, "a failed sync of a group");
}

/// A sync that says that it succeeded and did nothing: nobody can notice before power fails. Afterwards what is there is a prefix, or
/// the engine says what is damaged; never a wrong answer.
#[test]
fn lying_syncs() {
    let (mut opened, mut refused) = (0, 0);
    for kind in [OpKind::Sync, OpKind::SyncDir] {
        for number in 0..60 {
            for times in [1, u64::MAX] {
                let place = format!("{kind:?} {number} lies {times} times");
                let mut script = Script::new(SimFileSystem::new(), 1, options());
                script.machine.disk.inject(Injection::new(&[kind], Verdict::Lie).after(number).times(times));
                assert_eq!(life(&mut script, &place).failed, 0, "{place}");
                for mode in [CrashMode::UnsyncedLost, CrashMode::RandomSubset { seed: number }] {
                    let machine = Machine::new(script.machine.disk.fork_crashed(mode), 3);
                    match machine.open(script.options.clone()) {
                        Ok(engine) => {
                            opened += 1;
                            match contents(&engine) {
                                Ok(found) => {
                                    let version = engine.visible_version();
                                    let state = script.states.iter().find(|state| state.version == version);
                                    let right = state.is_some_and(|state| *state.map == found);
                                    assert!(right, "{place}; then {mode:?}: a wrong answer at {version}");
                                }
                                Err(error) => assert!(error.is_corruption(), "{place}; then {mode:?}: {error:?}"),
                            }
                        }
                        Err(error) => {
                            refused += 1;
                            let is_told = error.is_corruption() || matches!(error, Error::NotAnEngine { .. });
                            assert!(is_told, "{place}; then {mode:?}: {error:?}");
                        }
                    }
                }
            }
        }
    }
    println!("after lying syncs {opened} engines opened with a prefix, {refused} said what is damaged");
    assert!(opened > 0 && refused > 0);
}

/// An engine with data in tables and nothing in memory.
fn with_tables(options: Options) -> Script {
    let mut script = Script::new(SimFileSystem::new(), 1, options);
    script.open().unwrap();
    for round in 0..4 {
        script.write(&[Put(round, 700), Put(round + 4, 700), Put(round + 8, 700)], Buffered).unwrap();
        script.flush().unwrap();
    }
    script.settle();
    script.close().unwrap();
    script.open().unwrap();
    script
}

/// A read that fails fails the call alone; the next one is right.
#[test]
fn a_failed_read_fails_one_call() {
    let script = with_tables(Options { block_cache_bytes: 0, ..options() });
    let disk = script.machine.disk.clone();
    let map = &script.states.last().unwrap().map;
    for kind in [OpKind::Read, OpKind::Open, OpKind::Stat] {
        for number in 0..12 {
            disk.inject(Injection::new(&[kind], Verdict::Fail(DiskError::Io)).path(".sst").once());
            let first = script.engine().get(&key(number));
            match first {
                Ok(found) => assert_eq!(found.as_deref(), map.get(&key(number)).map(Vec::as_slice)),
                Err(error) => assert!(is_clear(&error), "{error:?}"),
            }
            disk.clear_injections();
            let found = script.engine().get(&key(number)).unwrap();
            assert_eq!(found.as_deref(), map.get(&key(number)).map(Vec::as_slice));
        }
    }
    let mut batch = WriteBatch::new();
    batch.put(b"x", b"y");
    script.engine().write(batch, Sync).unwrap();
}

/// A read that gets a well-formed block of the same length from another place, in the same table or in another one, is corruption, never
/// that block's contents.
#[test]
fn misdirected_reads_are_corruption() {
    // Blocks of equal lengths: one value each, all of one length, stored as they are. Two generations of the same keys, so that another
    // table has blocks with the same keys and older values.
    let options =
        Options { block_cache_bytes: 0, compaction_jobs: 0, compression: [Compression::None; 7], ..options() };
    let mut script = Script::new(SimFileSystem::new(), 1, options);
    script.open().unwrap();
    for _ in 0..2 {
        script
            .write(&[Put(1, 500), Put(2, 500), Put(3, 500), Put(4, 500), Put(5, 500), Put(6, 500)], Buffered)
            .unwrap();
        script.flush().unwrap();
    }
    script.close().unwrap();
    script.open().unwrap();
    let disk = script.machine.disk.clone();
    // The blocks, as reads ask for them: scans read them all, a get reads its own.
    let reads: Arc<Mutex<Vec<(PathBuf, u64, u64)>>> = Arc::default();
    let watched = |read: &dyn Fn()| {
        let seen = Arc::clone(&reads);
        disk.set_hook(move |_, op| {
            if op.kind == OpKind::Read && op.path.extension().is_some_and(|suffix| suffix == "sst") {
                seen.lock().unwrap().push((op.path.to_path_buf(), op.offset, op.len));
            }
            Verdict::Pass
        });
        read();
        disk.clear_hook();
        std::mem::take(&mut *reads.lock().unwrap())
    };
    let engine = script.engine();
    drop(contents(engine).unwrap());
    // A scan reads ahead: several blocks at once, all of the length of one.
    let unit = watched(&|| drop(engine.get(&key(1)).unwrap()))[0].2;
    let read = watched(&|| drop(contents(engine).unwrap()));
    let blocks: BTreeSet<_> = read
        .into_iter()
        .flat_map(|(path, offset, len)| (0..len / unit).map(move |at| (path.clone(), offset + at * unit, unit)))
        .collect();
    let map = &script.states.last().unwrap().map;
    let (mut same_file, mut other_file) = (0, 0);
    for number in 1..=6 {
        let own = watched(&|| drop(engine.get(&key(number)).unwrap()));
        let [(file, offset, len)] = &own[..] else { panic!("a get reads one block: {own:?}") };
        for (other, elsewhere, _) in blocks.iter().filter(|block| block.2 == *len) {
            if (other, elsewhere) == (file, offset) {
                continue;
            }
            let verdict = Verdict::Misdirect { path: other.clone(), offset: *elsewhere };
            disk.inject(Injection::new(&[OpKind::Read], verdict).path(".sst").once());
            match engine.get(&key(number)) {
                Err(Error::Corruption { file: named, offset: at, .. }) => assert_eq!((&named, at), (file, *offset)),
                other => panic!("key {number} from {elsewhere} instead of {offset}: {other:?}"),
            }
            *(if other == file { &mut same_file } else { &mut other_file }) += 1;
            disk.clear_injections();
            assert_eq!(engine.get(&key(number)).unwrap().as_deref(), map.get(&key(number)).map(Vec::as_slice));
        }
    }
    println!("{same_file} reads of a neighbour, {other_file} of another table");
    assert!(same_file >= 20 && other_file >= 20, "{same_file} and {other_file} of {blocks:?}");
}

/// A stale read of a table, from before its bytes were written, is corruption or the right answer; also at open.
#[test]
fn stale_and_lost_bytes_are_not_believed() {
    for number in 0..40 {
        for (kind, verdict) in [(OpKind::Read, Verdict::Stale), (OpKind::Write, Verdict::Lose)] {
            let place = format!("{kind:?} {number} {verdict:?}");
            let mut script = Script::new(SimFileSystem::new(), 1, options());
            let disk = script.machine.disk.clone();
            disk.inject(Injection::new(&[kind], verdict).path(".sst").after(number).once());
            script.open().unwrap();
            for round in 0..4 {
                // A compaction that reads what is not there fails, and stops the engine.
                if let Err(error) = script.write(&[Put(round, 700), Put(round + 4, 700)], Buffered) {
                    assert!(is_clear(&error), "{place}: {error:?}");
                    script.forget_last();
                    break;
                }
                if script.flush().is_err() {
                    break;
                }
            }
            let engine = script.engine();
            let version = engine.visible_version();
            let state = script.states.iter().find(|state| state.version == version).unwrap();
            match contents(engine) {
                Ok(found) => assert!(found == *state.map, "{place}: a wrong answer"),
                Err(error) => assert!(error.is_corruption() || is_clear(&error), "{place}: {error:?}"),
            }
        }
    }
}

/// Every bit of every file, one flipped at a time (sampled): the right answer, an older whole state never, or `Corruption`.
#[test]
fn flipped_bits_are_corruption_or_harmless() {
    let mut script = with_tables(options());
    script.write(&[DeleteRange(2, 4), Put(20, 30), Owner], Sync).unwrap();
    script.write(&[Put(21, 30)], Sync).unwrap();
    script.close().unwrap();
    let disk = script.machine.disk.clone();
    let last = script.states.last().unwrap();
    let (mut harmless, mut corrupt) = (0, 0);
    for (path, len) in disk.files() {
        if len == 0 {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if ["LOCK", "OPTIONS"].contains(&name.as_str()) {
            continue;
        }
        for at in (0..len).step_by(37) {
            let fork = disk.fork();
            fork.flip_bit(&path, at, (at % 8) as u8);
            let machine = Machine::new(fork, 3);
            let answer = machine.open(script.options.clone()).and_then(|engine| {
                let found = contents(&engine)?;
                Ok((engine.visible_version(), found))
            });
            match answer {
                Ok((version, found)) => {
                    harmless += 1;
                    assert!(version == last.version && found == *last.map, "bit at {at} of {name}: a wrong answer");
                }
                Err(error) => {
                    corrupt += 1;
                    let told = error.is_corruption()
                        || matches!(error, Error::FormatTooNew { .. } | Error::NotAnEngine { .. });
                    assert!(told, "bit at {at} of {name}: {error:?}");
                }
            }
        }
    }
    println!("{corrupt} flipped bits were recognised, {harmless} did no harm");
    assert!(corrupt > 100, "{corrupt}");
}

fn put(engine: &Engine, number: u32, len: usize) -> Result<(), Error> {
    let mut batch = WriteBatch::new();
    batch.put(&key(number), &vec![number as u8; len]);
    engine.write(batch, Sync).map(|_| ())
}

/// On a full disk writes fail with `NoSpace`, reads and deletes go on, and everything works again once there is space.
#[test]
fn a_full_disk() {
    let options = Options { compression: [Compression::None; 7], ..options() };
    let script = with_tables(options.clone());
    let disk = script.machine.disk.clone();
    let engine = script.engine().clone();
    disk.set_capacity(disk.used_bytes() + 4 * 4096);
    let mut written = 0;
    let error = loop {
        match put(&engine, 12 + written % 4, 500) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "the disk never gets full");
    };
    assert!(error.is_no_space(), "{error:?}");
    // Reads go on, and so do deletes, from the reserve.
    let map = &script.states.last().unwrap().map;
    assert_eq!(engine.get(&key(1)).unwrap().as_deref(), map.get(&key(1)).map(Vec::as_slice));
    let mut batch = WriteBatch::new();
    batch.delete(&key(1));
    engine.write(batch, Sync).expect("the reserve lets deletes through");
    assert_eq!(engine.get(&key(1)).unwrap(), None);
    let full = put(&engine, 13, 500).unwrap_err();
    assert!(full.is_no_space(), "{full:?}");
    let flush = engine.flush();
    assert!(flush.as_ref().is_ok() || flush.as_ref().is_err_and(Error::is_no_space), "{flush:?}");

    // Somebody made space: without reopening, all goes on.
    disk.set_capacity(1 << 30);
    script.machine.spawner.run_for(std::time::Duration::from_secs(1));
    put(&engine, 14, 500).expect("there is space again");
    engine.flush().expect("there is space again");
    engine.compact_range(None, None).expect("there is space again");
    assert!(engine.verify().unwrap().is_ok());
    let before = contents(&engine).unwrap();
    drop(script.engine);
    engine.close().unwrap();
    let machine = Machine::new(disk.fork_crashed(CrashMode::UnsyncedLost), 4);
    let engine = machine.open(options.clone()).unwrap();
    assert_eq!(contents(&engine).unwrap(), before);
    assert_eq!(engine.get(&key(1)).unwrap(), None);
}

/// The same, closed while it is full: close works, and so does an open on the full disk.
#[test]
fn closing_and_opening_a_full_disk() {
    let script = with_tables(options());
    let disk = script.machine.disk.clone();
    let engine = script.engine().clone();
    put(&engine, 12, 300).unwrap();
    disk.set_capacity(disk.used_bytes());
    let mut written = 0;
    while put(&engine, 13, 500).is_ok() {
        written += 1;
        assert!(written < 1000, "the disk never gets full");
    }
    let before = contents(&engine).unwrap();
    drop(script.engine);
    engine.close().expect("a full disk can be closed");
    let machine = Machine::new(disk.fork(), 4);
    match machine.open(options()) {
        Ok(engine) => assert_eq!(contents(&engine).unwrap(), before),
        Err(error) => assert!(error.is_no_space(), "{error:?}"),
    }
    disk.set_capacity(1 << 30);
    let machine = Machine::new(disk.fork(), 4);
    let engine = machine.open(options()).unwrap();
    assert_eq!(contents(&engine).unwrap(), before);
    put(&engine, 14, 300).unwrap();
}
