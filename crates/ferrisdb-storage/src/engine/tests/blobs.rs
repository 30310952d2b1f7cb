//! Large values in blob files: that compaction leaves them alone, that their space comes back, and that no crash, old view or damaged
//! file makes a wrong answer of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ferrisdb_core::{Random, SplitMix64};

use super::{DIR, Machine, contents};
use crate::fs::sim::{CrashMode, OpKind, SimFileSystem, Verdict};
use crate::{Compression, Durability, Engine, Error, IterOptions, Options, Retention, WriteBatch};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Values from 1,000 bytes on in blob files; no cache, so that every read goes to the disk.
fn options() -> Options {
    Options {
        blob_value_bytes: Some(1000),
        block_cache_bytes: 0,
        write_buffer_bytes: 1 << 20,
        table_bytes: 64 << 10,
        base_level_bytes: 64 << 10,
        ..Options::tiny()
    }
}

fn key(n: u64) -> Vec<u8> {
    format!("key{n:05}").into_bytes()
}

/// Does not compress, so that bytes can be counted.
fn value(seed: u64, len: usize) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

fn put(engine: &Engine, n: u64, value: &[u8]) {
    let mut batch = WriteBatch::new();
    batch.put(&key(n), value);
    engine.write(batch, Durability::Buffered).unwrap();
}

fn put_all(engine: &Engine, keys: std::ops::Range<u64>, seed: u64) {
    keys.for_each(|n| put(engine, n, &value(seed + n, 2000)));
}

fn delete_all(engine: &Engine, keys: std::ops::Range<u64>) {
    let mut batch = WriteBatch::new();
    for n in keys {
        batch.delete(&key(n));
    }
    engine.write(batch, Durability::Buffered).unwrap();
}

fn check_all(engine: &Engine, keys: std::ops::Range<u64>, seed: u64) {
    for n in keys {
        assert_eq!(engine.get(&key(n)).unwrap().unwrap(), value(seed + n, 2000), "key {n}");
    }
}

fn check_verified(engine: &Engine) {
    let report = engine.verify().unwrap();
    assert!(report.is_ok(), "{:?}", report.problems);
}

fn blob_files(disk: &SimFileSystem) -> Vec<PathBuf> {
    let files = disk.files().into_iter().map(|(path, _)| path);
    files.filter(|path| path.extension().is_some_and(|suffix| suffix == "blob")).collect()
}

/// Lets the keeper remove what is obsolete.
fn settle(machine: &Machine, engine: &Engine) {
    put(engine, 99_999, b"wake the keeper");
    engine.flush().unwrap();
    machine.spawner.run_until_idle();
}

/// Compactions move pointers: however often a range is compacted, no byte is written to a blob file and hardly any to tables.
#[test]
fn compaction_does_not_rewrite_large_values() {
    let written_with = |blob_value_bytes| {
        let machine = Machine::new(SimFileSystem::new(), 1);
        let engine = machine.open(Options { blob_value_bytes, ..options() }).unwrap();
        for n in 0..300 {
            put(&engine, n, &value(n, 2000));
            if n % 50 == 49 {
                engine.flush().unwrap();
            }
        }
        let to_blobs = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&to_blobs);
        machine.disk.set_hook(move |_, op| {
            if op.kind == OpKind::Write && op.path.extension().is_some_and(|suffix| suffix == "blob") {
                seen.fetch_add(op.len, Ordering::Relaxed);
            }
            Verdict::Pass
        });
        (0..3).for_each(|_| engine.compact_range(None, None).unwrap());
        check_all(&engine, 0..300, 0);
        check_verified(&engine);
        assert_eq!(to_blobs.load(Ordering::Relaxed), 0);
        let statistics = engine.statistics();
        assert_eq!(statistics.blob_garbage_bytes, 0);
        assert_eq!(statistics.blob_bytes > 600_000, blob_value_bytes.is_some());
        statistics.compaction_written_bytes
    };
    let (with, without) = (written_with(Some(1000)), written_with(None));
    assert!(with < 60_000 && without > 1_000_000, "{with} bytes with blob files, {without} without");
}

/// When everything is overwritten and then deleted, every byte comes back, with a snapshot as soon as that is dropped.
#[test]
fn space_comes_back() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let engine = machine.open(options()).unwrap();
    for round in 0..5 {
        put_all(&engine, 0..200, round * 1000);
        engine.flush().unwrap();
        engine.wait_for_compactions().unwrap();
    }
    check_all(&engine, 0..200, 4000);
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    let one_copy = 200 * 2000;
    let bytes = engine.statistics().blob_bytes;
    assert!(bytes < one_copy + 20_000, "{bytes} bytes for {one_copy} of values");
    let snapshot = engine.snapshot();
    put_all(&engine, 0..200, 9000);
    engine.flush().unwrap();
    delete_all(&engine, 0..200);
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    check_verified(&engine);
    assert_eq!(contents(&engine), []);
    for n in 0..200 {
        assert_eq!(snapshot.get(&key(n)).unwrap().unwrap(), value(4000 + n, 2000));
    }
    let bytes = engine.statistics().blob_bytes;
    assert!((one_copy..one_copy + 20_000).contains(&bytes), "the snapshot's values and no others: {bytes}");
    drop(snapshot);
    engine.compact_range(None, None).unwrap();
    let statistics = engine.statistics();
    assert_eq!((statistics.blob_files, statistics.blob_bytes, statistics.blob_garbage_bytes), (0, 0, 0));
    settle(&machine, &engine);
    assert_eq!(blob_files(&machine.disk), [""; 0].map(PathBuf::from));
    check_verified(&engine);
}

/// A pinned version holds its values, and only those.
#[test]
fn pins_hold_their_values() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let engine = machine.open(Options { retention: Retention::FromFloor, ..options() }).unwrap();
    let mut versions = Vec::new();
    for round in 0..4 {
        put_all(&engine, 0..50, round * 1000);
        versions.push(engine.visible_version());
        engine.flush().unwrap();
    }
    // A compaction that runs now would keep what was readable when it began.
    engine.wait_for_compactions().unwrap();
    engine.pin(versions[1]).unwrap();
    engine.set_oldest_readable_version(versions[3]).unwrap();
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    let bytes = engine.statistics().blob_bytes;
    assert!((200_000..210_000).contains(&bytes), "two of four copies: {bytes}");
    for n in 0..50 {
        assert_eq!(engine.get_at(&key(n), versions[1]).unwrap().unwrap(), value(1000 + n, 2000));
    }
    check_all(&engine, 0..50, 3000);
    check_verified(&engine);
}

/// A file that is mostly garbage is emptied although nobody writes any more; each live value is copied once, and then there is rest.
#[test]
fn a_file_that_is_mostly_garbage_is_emptied() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..100, 0);
    engine.compact_range(None, None).unwrap();
    put_all(&engine, 0..60, 5000);
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    let statistics = engine.statistics();
    let relocated = statistics.blob_relocated_bytes;
    assert!((80_000..81_000).contains(&relocated), "forty values: {relocated}");
    assert!(statistics.blob_bytes < 202_000 && statistics.blob_garbage_bytes == 0, "{statistics:?}");
    machine.spawner.run_until_idle();
    assert_eq!(engine.statistics().compactions, statistics.compactions, "an idle engine rests");
    check_all(&engine, 0..60, 5000);
    check_all(&engine, 60..100, 0);
    check_verified(&engine);
}

/// Less than half garbage is left alone: collecting it would cost more than it gives.
#[test]
fn a_little_garbage_is_left() {
    let machine = Machine::new(SimFileSystem::new(), 5);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..100, 0);
    engine.compact_range(None, None).unwrap();
    put_all(&engine, 0..40, 5000);
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    let statistics = engine.statistics();
    assert_eq!(statistics.blob_relocated_bytes, 0);
    assert!((80_000..81_000).contains(&statistics.blob_garbage_bytes), "{statistics:?}");
    check_verified(&engine);
}

/// Tables that are dropped unread under a range tombstone take their values with them.
#[test]
fn tables_dropped_unread_free_their_values() {
    let machine = Machine::new(SimFileSystem::new(), 6);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..100, 0);
    engine.compact_range(None, None).unwrap();
    let mut batch = WriteBatch::new();
    batch.delete_range(b"key", b"kez");
    engine.write(batch, Durability::Buffered).unwrap();
    engine.flush().unwrap();
    engine.wait_for_compactions().unwrap();
    let statistics = engine.statistics();
    assert!(statistics.tables_dropped > 0);
    assert_eq!((statistics.blob_files, statistics.blob_bytes), (0, 0));
    check_verified(&engine);
}

/// An iterator reads the values of its own view to the end although their file is no longer in the manifest; the file goes after it.
#[test]
fn an_old_view_keeps_its_blob_files() {
    let machine = Machine::new(SimFileSystem::new(), 7);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..100, 0);
    engine.compact_range(None, None).unwrap();
    let mut iter = engine.iter(IterOptions::default()).unwrap();
    iter.seek_to_first().unwrap();
    delete_all(&engine, 0..100);
    engine.compact_range(None, None).unwrap();
    assert_eq!(engine.statistics().blob_files, 0);
    settle(&machine, &engine);
    assert!(!blob_files(&machine.disk).is_empty());
    for n in 0..100 {
        assert_eq!((iter.key(), iter.value()), (&key(n)[..], &value(n, 2000)[..]));
        iter.next().unwrap();
    }
    iter.seek_to_last().unwrap();
    for n in (0..100).rev() {
        assert_eq!((iter.key(), iter.value()), (&key(n)[..], &value(n, 2000)[..]));
        iter.prev().unwrap();
    }
    drop(iter);
    settle(&machine, &engine);
    assert_eq!(blob_files(&machine.disk), [""; 0].map(PathBuf::from));
}

/// Without waiting, a value that is not in memory is `WouldRead`; the blocking form finishes the move, and no key is passed over.
#[test]
fn non_blocking_reads_say_would_read() {
    let machine = Machine::new(SimFileSystem::new(), 8);
    let options = Options { block_cache_bytes: 1 << 20, ..options() };
    let engine = machine.open(options.clone()).unwrap();
    for n in [1, 3] {
        put(&engine, n, b"small");
    }
    put(&engine, 2, &value(2, 2000));
    put(&engine, 4, &value(4, 300_000));
    engine.flush().unwrap();
    engine.close().unwrap();
    let engine = machine.open(options).unwrap();
    let mut iter = engine.iter(IterOptions::default()).unwrap();
    iter.seek_to_first().unwrap();
    assert_eq!(iter.value(), b"small");
    for forward in [true, false] {
        let moved = if forward { iter.try_next() } else { iter.try_prev() };
        if forward {
            assert!(matches!(moved, Err(Error::WouldRead)) && !iter.valid());
            assert!(matches!(iter.try_next(), Err(Error::WouldRead)) && !iter.valid());
            iter.next().unwrap();
        } else {
            // By now it is in the block cache.
            moved.unwrap();
        }
        assert_eq!((iter.key(), iter.value()), (&key(2)[..], &value(2, 2000)[..]));
        iter.try_next().unwrap();
        assert_eq!((iter.key(), iter.value()), (&key(3)[..], &b"small"[..]));
    }
    assert_eq!(engine.try_get(&key(2), None).unwrap().unwrap(), value(2, 2000));
    // Too large for the cache: it is always a read.
    assert_eq!(engine.get(&key(4)).unwrap().unwrap(), value(4, 300_000));
    assert!(matches!(engine.try_get(&key(4), None), Err(Error::WouldRead)));
    let all = engine.multi_get(&[key(1), key(2), key(4)], None).unwrap();
    assert_eq!(all.iter().map(|value| value.as_ref().unwrap().len()).collect::<Vec<_>>(), [5, 2000, 300_000]);
}

/// The threshold may change with every open. Without one, values come back into tables as their files are emptied.
#[test]
fn the_threshold_may_change() {
    let machine = Machine::new(SimFileSystem::new(), 9);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..100, 0);
    engine.flush().unwrap();
    engine.close().unwrap();
    let engine = machine.open(Options { blob_value_bytes: None, ..options() }).unwrap();
    check_all(&engine, 0..100, 0);
    put_all(&engine, 0..60, 5000);
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    assert_eq!(engine.statistics().blob_files, 0);
    check_all(&engine, 0..60, 5000);
    check_all(&engine, 60..100, 0);
    check_verified(&engine);
    let bad = machine.open(Options { blob_value_bytes: Some(10), ..options() });
    assert!(matches!(bad, Err(Error::InvalidOption { option: "blob_value_bytes", .. })));
}

/// A damaged, swapped, cut or missing blob file: the right answer or an error that names it, and `verify` finds it.
#[test]
fn damage_is_told() {
    let machine = Machine::new(SimFileSystem::new(), 10);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..20, 0);
    engine.flush().unwrap();
    put_all(&engine, 20..40, 0);
    engine.flush().unwrap();
    engine.close().unwrap();
    let files = blob_files(&machine.disk);
    let [one, two] = &files[..] else { panic!("{files:?}") };
    let reopened = |damage: &dyn Fn(&SimFileSystem)| {
        let disk = machine.disk.fork();
        damage(&disk);
        let machine = Machine::new(disk, 0);
        let engine = machine.open(options());
        (machine, engine)
    };
    let (_machine, engine) = reopened(&|disk| disk.flip_bit(one, 5000, 3));
    let engine = engine.unwrap();
    let errors: Vec<Error> = (0..40).filter_map(|n| engine.get(&key(n)).err()).collect();
    assert!(matches!(&errors[..], [Error::Corruption { file, .. }] if file == one), "{errors:?}");
    let report = engine.verify().unwrap();
    assert!(matches!(&report.problems[..], [problem] if problem.contains("key0000")), "{:?}", report.problems);
    assert!(engine.compact_range(None, None).is_ok(), "a compaction does not read values that stay");
    check_all(&engine, 20..40, 0);

    let (_machine, engine) = reopened(&|disk| disk.swap_raw(one, two));
    let error = engine.and_then(|engine| engine.get(&key(0)).map(|_| ())).unwrap_err();
    assert!(matches!(&error, Error::Corruption { file, what, .. } if file == one && what.contains("put in its place")));
    let (_machine, engine) = reopened(&|disk| disk.truncate_raw(two, 1000));
    assert!(matches!(engine, Err(Error::Corruption { file, offset: 1000, .. }) if file == *two));
    let (_machine, engine) = reopened(&|disk| disk.remove_raw(two));
    assert!(matches!(engine, Err(Error::MissingFile { file }) if file == *two));
}

/// Power fails between any two I/Os of flushes with large values and of a collection: what was synced is there, what is there is a prefix of the
/// writes, everything verifies, and nothing is left over.
#[test]
fn crashes_lose_nothing() {
    let options = Options { write_buffer_bytes: 256 << 10, ..options() };
    let machine = Machine::new(SimFileSystem::new(), 11);
    let engine = machine.open(options.clone()).unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let forks: Arc<Mutex<Vec<(usize, SimFileSystem)>>> = Arc::default();
    let (seen, at) = (Arc::clone(&forks), Arc::clone(&acknowledged));
    machine.disk.set_hook(move |disk, op| {
        if op.kind.is_mutating() {
            seen.lock().unwrap().push((at.load(Ordering::Relaxed), disk.fork()));
        }
        Verdict::Pass
    });
    let mut states: Vec<Map> = vec![Map::new()];
    let mut write = |engine: &Engine, keys: std::ops::Range<u64>, seed: u64| {
        let mut batch = WriteBatch::new();
        let mut state = states.last().unwrap().clone();
        for n in keys {
            let value = value(seed + n, if n % 4 == 0 { 50 } else { 1500 });
            batch.put(&key(n), &value);
            state.insert(key(n), value);
        }
        states.push(state);
        engine.write(batch, Durability::Sync).unwrap();
        acknowledged.store(states.len() - 1, Ordering::Relaxed);
    };
    for round in 0..3 {
        write(&engine, 0..8, round * 1000);
        write(&engine, 8..16, round * 1000);
        engine.flush().unwrap();
        write(&engine, 4..14, round * 1000 + 500);
        engine.compact_range(None, None).unwrap();
        engine.wait_for_compactions().unwrap();
        machine.spawner.run_until_idle();
    }
    machine.disk.clear_hook();
    assert!(engine.statistics().blob_relocated_bytes > 0, "the script collects garbage");
    engine.close().unwrap();
    let mut points = 0;
    for (index, (acknowledged, disk)) in std::mem::take(&mut *forks.lock().unwrap()).into_iter().enumerate() {
        let seed = index as u64;
        for mode in [
            CrashMode::NothingLost,
            CrashMode::UnsyncedLost,
            CrashMode::RandomSubset { seed },
            CrashMode::RandomSubset { seed: !seed },
        ] {
            let crashed = Machine::new(disk.fork_crashed(mode), seed);
            let engine = crashed.open(options.clone()).unwrap_or_else(|error| panic!("{index} {mode:?}: {error}"));
            let found: Map = contents(&engine).into_iter().collect();
            let upper = (acknowledged + 1).min(states.len() - 1);
            assert!(
                states[acknowledged..=upper].contains(&found),
                "crash {index} {mode:?}: {acknowledged} writes were acknowledged, something else is there"
            );
            crashed.spawner.run_until_idle();
            let report = engine.verify().unwrap();
            assert!(report.is_ok(), "crash {index} {mode:?}: {:?}", report.problems);
            assert_eq!(report.leftovers, [""; 0].map(PathBuf::from), "crash {index} {mode:?}");
            assert_eq!(report.blob_files, blob_files(&crashed.disk).len(), "crash {index} {mode:?}");
            points += 1;
        }
    }
    eprintln!("{points} crash points");
    assert!(points > 400, "{points}");
}

/// A flush that runs out of space in the middle of a blob file leaves nothing behind and succeeds later.
#[test]
fn no_space_for_a_blob_file() {
    let machine = Machine::new(SimFileSystem::new(), 12);
    let engine = machine.open(options()).unwrap();
    put_all(&engine, 0..100, 0);
    machine.disk.set_capacity(machine.disk.used_bytes() + 100_000);
    assert!(engine.flush().unwrap_err().is_no_space());
    check_all(&engine, 0..100, 0);
    machine.disk.set_capacity(1 << 30);
    engine.flush().unwrap();
    machine.spawner.run_until_idle();
    assert_eq!(blob_files(&machine.disk).len(), 1);
    check_all(&engine, 0..100, 0);
    check_verified(&engine);
    assert!(machine.disk.files().iter().all(|(path, _)| path.starts_with(Path::new(DIR))));
}

/// Not a test: the numbers in `docs/decisions/0006-blob-files.md`. Bytes are counted, not time, so that they are the same everywhere.
#[test]
#[ignore = "prints a measurement"]
fn measure_write_and_space_amplification() {
    eprintln!("| value bytes | tables: written, space | blob files: written, space, relocated |");
    for len in [256usize, 1024, 4096, 16384] {
        let mut cells = Vec::new();
        for blob_value_bytes in [None, Some(64)] {
            let machine = Machine::new(SimFileSystem::new(), 1);
            let options = Options {
                blob_value_bytes,
                write_buffer_bytes: 1 << 20,
                table_bytes: 1 << 20,
                base_level_bytes: 4 << 20,
                level_multiplier: 10,
                wal: false,
                compression: [Compression::None; 7],
                job_step_entries: 4096,
                ..Options::tiny()
            };
            let engine = machine.open(options).unwrap();
            let keys = (32 << 20) / len as u64;
            let mut random = SplitMix64::new(1);
            let bytes = value(1, len);
            for _ in 0..4 * keys {
                put(&engine, random.below(keys), &bytes);
            }
            engine.flush().unwrap();
            engine.wait_for_compactions().unwrap();
            machine.spawner.run_until_idle();
            let statistics = engine.statistics();
            let user = 4.0 * keys as f64 * len as f64;
            let live = contents(&engine).len() as f64 * len as f64;
            let written = (statistics.flushed_bytes + statistics.compaction_written_bytes) as f64 / user;
            let tables: u64 = statistics.levels.iter().map(|level| level.bytes).sum();
            let space = (tables + statistics.blob_bytes) as f64 / live;
            let relocated = statistics.blob_relocated_bytes as f64 / user;
            cells.push(format!("{written:.1}, {space:.2}, {relocated:.2}"));
        }
        eprintln!("| {len} | {} | {} |", cells[0], cells[1]);
    }
}
