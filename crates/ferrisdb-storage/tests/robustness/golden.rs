//! Directories that an engine of format version 1 wrote, committed as they were: `v1`, and `v1-blobs` with large values in blob files. Every
//! later version must open them.
//!
//! `FERRISDB_UPDATE_GOLDEN=v1-blobs cargo test -p ferrisdb-storage --test robustness golden` writes that one anew; do that only when the formats have not
//! been released yet. A new format version gets a directory of its own, and the old one stays.

use std::path::{Path, PathBuf};

use ferrisdb_storage::{Compression, Durability, Engine, Env, Options, Retention, WriteBatch};

use crate::support::{Change, History, noise, v};

fn options() -> Options {
    let zstd = Compression::Zstd { level: 3 };
    let lz4 = Compression::Lz4;
    Options {
        create_if_missing: false,
        retention: Retention::FromFloor,
        wal_segment_bytes: 4 << 10,
        block_bytes: 1 << 10,
        base_level_bytes: 4 << 10,
        table_bytes: 4 << 10,
        level_multiplier: 3,
        compression: [Compression::None, lz4, lz4, lz4, lz4, lz4, zstd],
        ..Options::tiny()
    }
}

/// The same with values from 64 bytes on in blob files.
fn with_blobs() -> Options {
    Options { blob_value_bytes: Some(64), ..options() }
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Versions that are written, in this order; what they say is part of the golden data and never changes.
fn changes(n: u64) -> Vec<Change> {
    let key = |n: u64| format!("city/{:03}", n * 13 % 60);
    let mut changes = vec![
        Change::Put(key(n), [noise(n, 30), vec![b'.'; 60]].concat()),
        Change::Put(key(n + 5), format!("version {n} of key {}", key(n + 5)).into_bytes()),
    ];
    match n % 10 {
        3 => changes.push(Change::Delete(key(n + 2))),
        7 => changes.push(Change::DeleteRange(format!("city/{:03}", n % 50), format!("city/{:03}", n % 50 + 4))),
        9 => changes.push(Change::Put(String::new(), b"the empty key".to_vec())),
        _ => {}
    }
    // Per key the last operation of a batch wins, and `Change::DeleteRange` stands last.
    changes
}

const FLUSHED: u64 = 130;
const LAST: u64 = 150;

fn history() -> History {
    let mut history = History::default();
    (1..=LAST).for_each(|n| history.note(v(n * 100), &changes(n)));
    history
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn generate(to: &Path, options: &Options) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let engine = Engine::open(&path, Options { create_if_missing: true, ..options.clone() }).unwrap();
    let mut history = History::default();
    for n in 1..=LAST {
        history.write(&engine, v(n * 100), &changes(n));
        if n < FLUSHED && n % 20 == 0 {
            engine.flush().unwrap();
            engine.wait_for_compactions().unwrap();
        }
        if n == FLUSHED {
            let mut owner = WriteBatch::new();
            owner.set_owner_state(b"the owner's bytes");
            // The owner's bytes belong to the flushed version: the next one up carries them.
            let options =
                ferrisdb_storage::WriteOptions { durability: Durability::Sync, version: Some(v(n * 100 + 1)) };
            engine.write(owner, options).unwrap();
            engine.flush().unwrap();
            engine.wait_for_compactions().unwrap();
        }
    }
    history.check(&engine).unwrap();
    engine.close().unwrap();
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    std::fs::remove_file(path.join("LOCK")).unwrap();
    copy(&path, to);
}

/// A golden directory holds what it is meant to hold: several levels, all compressions, and a WAL with records above the flushed version.
/// It opens, gives every version's contents, and can be written, compacted and reopened.
fn check_golden(name: &str, options: &Options) {
    if std::env::var("FERRISDB_UPDATE_GOLDEN").is_ok_and(|which| which == name) {
        generate(&directory(name), options);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    copy(&directory(name), &path);
    let mut history = history();

    let reader = Engine::open_read_only(Env::real(), &path, options.clone()).unwrap();
    history.check_every(&reader, 7).unwrap();
    let statistics = reader.statistics();
    let levels: Vec<usize> = (0..7).filter(|&level| statistics.levels[level].tables > 0).collect();
    // With large values elsewhere the tables fill fewer levels.
    let least = if options.blob_value_bytes.is_some() { 2 } else { 3 };
    assert!(levels.len() >= least && levels.contains(&0) && levels.contains(&6), "levels {levels:?}");
    assert_eq!(statistics.blob_files > 0, options.blob_value_bytes.is_some());
    assert_eq!(reader.flushed_version(), v(FLUSHED * 100 + 1));
    assert_eq!(reader.owner_state().unwrap(), b"the owner's bytes");
    let report = reader.verify().unwrap();
    assert!(report.is_ok() && report.leftovers.is_empty(), "{report:?}");
    drop(reader);

    let engine = Engine::open(&path, options.clone()).unwrap();
    history.check(&engine).unwrap();
    history.write(&engine, v(LAST * 100 + 100), &[Change::DeleteRange("city/010".into(), "city/020".into())]);
    engine.compact_range(None, None).unwrap();
    history.check_every(&engine, 7).unwrap();
    engine.close().unwrap();
    let engine = Engine::open(&path, options.clone()).unwrap();
    history.check_every(&engine, 7).unwrap();
    let report = engine.verify().unwrap();
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn golden_v1() {
    check_golden("v1", &options());
}

#[test]
fn golden_v1_with_blob_files() {
    check_golden("v1-blobs", &with_blobs());
}
