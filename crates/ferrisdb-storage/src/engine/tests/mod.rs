//! Tests of the engine as a whole, on the simulated disk and the deterministic spawner.

mod blobs;
mod checkpoint;
mod compact_range;
mod events;
mod ingest;
mod model;
mod multi_get;
mod open;
mod open_files;
mod pace;
mod sizes;

use crate::fs::sim::SimFileSystem;
pub(super) use crate::testing::{DIR, Machine};
use crate::{Durability, Engine, Options, WriteBatch};

pub(super) fn put(engine: &Engine, key: &str, value: &str) {
    let mut batch = WriteBatch::new();
    batch.put(key.as_bytes(), value.as_bytes());
    engine.write(batch, Durability::Buffered).unwrap();
}

pub(super) fn contents(engine: &Engine) -> Vec<(Vec<u8>, Vec<u8>)> {
    crate::testing::contents(engine).unwrap().into_iter().collect()
}

/// The shortest life of an engine: what is written is read, before and after a flush, a compaction and a reopen.
#[test]
fn what_is_written_is_read() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(Options::tiny()).unwrap();
    for n in 0..500 {
        put(&engine, &format!("key{n:05}"), &format!("value{n}"));
    }
    let check = |engine: &Engine| {
        for n in 0..500 {
            let value = engine.get(format!("key{n:05}").as_bytes()).unwrap();
            assert_eq!(value.unwrap(), format!("value{n}").as_bytes());
        }
        assert_eq!(engine.get(b"key").unwrap(), None);
        assert_eq!(contents(engine).len(), 500);
    };
    check(&engine);
    assert_eq!(engine.flush().unwrap(), engine.visible_version());
    check(&engine);
    engine.compact_range(None, None).unwrap();
    check(&engine);
    let report = engine.verify().unwrap();
    assert!(report.is_ok() && report.entries == 500, "{report:?}");
    engine.close().unwrap();
    let engine = machine.open(Options::tiny()).unwrap();
    check(&engine);
    put(&engine, "key00000", "new");
    assert_eq!(engine.get(b"key00000").unwrap().unwrap(), b"new");
}

/// The same on the real disk with real threads.
#[test]
fn the_real_machine_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path().join("db"), Options::tiny()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let engine = engine.clone();
            scope.spawn(move || {
                for n in 0..2000 {
                    let mut batch = WriteBatch::new();
                    batch.put(format!("{thread}-{n:05}").as_bytes(), &[thread; 50]);
                    let durability = if n % 100 == 0 { Durability::Sync } else { Durability::Buffered };
                    engine.write(batch, durability).unwrap();
                    assert_eq!(engine.get(format!("{thread}-{n:05}").as_bytes()).unwrap().unwrap(), [thread; 50]);
                }
            });
        }
    });
    assert_eq!(contents(&engine).len(), 8000);
    engine.wait_for_compactions().unwrap();
    assert_eq!(contents(&engine).len(), 8000);
    assert!(engine.verify().unwrap().is_ok());
    assert!(matches!(
        Engine::open(dir.path().join("db"), Options::tiny()),
        Err(crate::Error::Locked { ref holder, .. }) if holder.contains("process")
    ));
    drop(engine);
    let engine = Engine::open(dir.path().join("db"), Options::tiny()).unwrap();
    assert_eq!(contents(&engine).len(), 8000);
}

/// Once everything is in tables, the WAL keeps the segment in use and one more, whatever the load had needed.
#[test]
fn an_idle_engine_gives_wal_segments_back() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(Options::tiny()).unwrap();
    for n in 0..3000 {
        put(&engine, &format!("key{n:05}"), &format!("value{n}"));
    }
    engine.flush().unwrap();
    machine.spawner.run_until_idle();
    let segments = machine.disk.files().into_iter().filter(|(path, _)| path.starts_with("/db/wal")).count();
    assert!(segments <= 2, "{segments} segments");
}

/// The tables that the disk has, and those of them that are live.
fn tables_on_disk_and_live(machine: &Machine, engine: &Engine) -> (usize, u64) {
    let is_table = |path: &std::path::Path| path.extension().is_some_and(|suffix| suffix == "sst");
    let on_disk = machine.disk.files().into_iter().filter(|(path, _)| is_table(path)).count();
    (on_disk, engine.statistics().levels.iter().map(|level| level.tables as u64).sum())
}

/// When the wait for compactions is over, what they and the flushes left behind is gone too: nothing has to run for it any more. That is so without a
/// compaction job as well, where no compaction is ever due.
#[test]
fn who_waits_for_compactions_finds_the_leftovers_gone() {
    for (seed, compaction_jobs) in (0..20).flat_map(|seed| [(seed, 0), (seed, 1)]) {
        let machine = Machine::new(SimFileSystem::new(), seed);
        let engine = machine.open(Options { compaction_jobs, ..Options::tiny() }).unwrap();
        for n in 0..3000 {
            put(&engine, &format!("key{:05}", n * 7919 % 1000), &format!("value{n}"));
        }
        engine.flush().unwrap();
        engine.wait_for_compactions().unwrap();
        let (on_disk, live) = tables_on_disk_and_live(&machine, &engine);
        assert_eq!(on_disk as u64, live, "seed {seed}, {compaction_jobs} jobs");
        let segments = machine.disk.files().into_iter().filter(|(path, _)| path.starts_with("/db/wal")).count();
        assert!(segments <= 2, "{segments} segments, seed {seed}, {compaction_jobs} jobs");
    }
}

/// A table that a compaction replaced goes when the last iterator over it goes, although nothing else happens in the engine then.
#[test]
fn a_table_goes_with_its_last_reader() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(Options::tiny()).unwrap();
    let write_all = |value: &str| {
        (0..300).for_each(|n| put(&engine, &format!("key{n:05}"), value));
        engine.compact_range(None, None).unwrap();
    };
    write_all("old");
    // A run of tables is held by its handles; a single table of L0 by its open file only.
    let mut iterator = engine.iter(crate::IterOptions::default()).unwrap();
    iterator.seek_to_first().unwrap();
    write_all("new");
    engine.wait_for_compactions().unwrap();
    machine.spawner.run_until_idle();
    let (on_disk, live) = tables_on_disk_and_live(&machine, &engine);
    assert!(on_disk as u64 > live, "the iterator keeps its tables: {on_disk}, {live}");
    assert_eq!(iterator.value(), b"old");
    drop(iterator);
    machine.spawner.run_until_idle();
    let (on_disk, live) = tables_on_disk_and_live(&machine, &engine);
    assert_eq!(on_disk as u64, live);
}

/// Deleting a dense range makes scans over it slow only for a while: what readers pass over is flushed and compacted away because of them.
#[test]
fn scans_get_rid_of_the_tombstones_that_slow_them() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(Options { write_buffer_bytes: 1 << 20, ..Options::tiny() }).unwrap();
    let key = |n: u32| format!("key{n:06}");
    (0..3000).for_each(|n| put(&engine, &key(n), "value"));
    engine.flush().unwrap();
    engine.compact_range(None, None).unwrap();
    for n in 100..2900 {
        let mut batch = WriteBatch::new();
        batch.delete(key(n).as_bytes());
        engine.write(batch, Durability::Buffered).unwrap();
    }
    let skipped_by_a_scan = || {
        let before = engine.statistics().skipped_entries;
        assert_eq!(contents(&engine).len(), 200);
        machine.spawner.run_until_idle();
        engine.statistics().skipped_entries - before
    };
    assert_eq!(skipped_by_a_scan(), 2800);
    let passed: u64 = (0..60).map(|_| skipped_by_a_scan()).sum();
    assert!(passed < 100_000, "{passed}");
    assert_eq!(skipped_by_a_scan(), 0);
}
