//! What opening leaves behind, and what it says when it fails.

use std::path::Path;
use std::sync::Arc;

use super::{DIR, Machine, contents, put};
use crate::fs::FileSystem;
use crate::fs::sim::{CrashMode, DiskError, Injection, OpKind, SimFileSystem, Verdict};
use crate::manifest::log;
use crate::wal::{Wal, WalOptions};
use crate::{Durability, Engine, Error, Options, WriteBatch};

/// An open makes the directory and those above it, and fails before their names are durable; the next one finds them there. What it then
/// acknowledges is not lost with them.
#[test]
fn names_of_directories_are_durable_whoever_made_them() {
    for first_fails in [false, true] {
        let disk = SimFileSystem::new();
        let machine = Machine::new(disk.clone(), 1);
        let open = || Engine::open_in(machine.env.clone(), "/a/b/db", Options::tiny());
        if first_fails {
            disk.inject(Injection::new(&[OpKind::SyncDir], Verdict::Fail(DiskError::Io)));
            assert!(open().is_err());
            disk.clear_injections();
        }
        let engine = open().unwrap();
        let mut batch = WriteBatch::new();
        batch.put(b"key", b"value");
        engine.write(batch, Durability::Sync).unwrap();
        let crashed = Machine::new(disk.fork_crashed(CrashMode::UnsyncedLost), 1);
        let engine = Engine::open_in(crashed.env.clone(), "/a/b/db", Options::tiny()).unwrap();
        assert_eq!(engine.get(b"key").unwrap().unwrap(), b"value", "first open fails: {first_fails}");
    }
}

/// A record of the WAL that is no batch is corruption of the segment in which it lies.
#[test]
fn a_bad_record_names_its_segment() {
    let disk = SimFileSystem::new();
    let machine = Machine::new(disk.clone(), 1);
    let engine = machine.open(Options::tiny()).unwrap();
    put(&engine, "key", "value");
    engine.close().unwrap();
    let identity = log::read(&disk, Path::new(DIR)).unwrap().state.engine_id.wal_identity();
    let fs: Arc<dyn FileSystem> = Arc::new(disk.clone());
    let wal = Wal::open(fs, &Path::new(DIR).join("wal"), WalOptions { identity, ..WalOptions::default() }).unwrap().0;
    let position = wal.append(&[b"\x01"]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    match machine.open(Options::tiny()) {
        Err(Error::Corruption { file, offset, .. }) => {
            assert_eq!((file.as_path(), offset), (Path::new("/db/wal/0000000001.wal"), u64::from(position.offset())));
        }
        other => panic!("{other:?}"),
    }
}

/// A new engine knows nothing of its keys, and inserts are slow in a memtable without a prefix to skip: so the first memtable is a small one, and the next
/// knows, also when all of it comes from the WAL.
#[test]
fn the_first_memtable_only_looks_at_the_keys() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let options = || Options { write_buffer_bytes: 16 << 20, ..Options::tiny() };
    let prefix = |engine: &Engine| engine.core().view.read().active().entries.prefix().to_vec();
    let engine = machine.open(options()).unwrap();
    put(&engine, "table 17, row 000000", "value");
    assert_eq!(prefix(&engine), b"");
    // Far from sixteen megabytes.
    for row in 1..10_000 {
        put(&engine, &format!("table 17, row {row:06}"), "value");
    }
    assert_eq!(prefix(&engine), b"table 17, row 00");
    engine.close().unwrap();
    let engine = machine.open(options()).unwrap();
    assert_eq!(prefix(&engine), b"table 17, row 00");
    assert_eq!(contents(&engine).len(), 10_000);
}
