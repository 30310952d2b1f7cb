//! A directory that an engine of format version 1 wrote, committed as it was. Every later version must open it.
//!
//! `FERRISDB_UPDATE_GOLDEN=1 cargo test -p ferrisdb-storage --test robustness golden` writes it anew; do that only when the formats have not
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

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
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

fn generate(to: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let engine = Engine::open(&path, Options { create_if_missing: true, ..options() }).unwrap();
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

/// The golden directory holds what it is meant to hold: several levels, all compressions, and a WAL with records above the flushed version.
/// It opens, gives every version's contents, and can be written, compacted and reopened.
#[test]
fn golden_v1() {
    if std::env::var_os("FERRISDB_UPDATE_GOLDEN").is_some() {
        generate(&directory());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    copy(&directory(), &path);
    let mut history = history();

    let reader = Engine::open_read_only(Env::real(), &path, options()).unwrap();
    history.check_every(&reader, 7).unwrap();
    let statistics = reader.statistics();
    let levels: Vec<usize> = (0..7).filter(|&level| statistics.levels[level].tables > 0).collect();
    assert!(levels.len() >= 3 && levels.contains(&0) && levels.contains(&6), "levels {levels:?}");
    assert_eq!(reader.flushed_version(), v(FLUSHED * 100 + 1));
    assert_eq!(reader.owner_state().unwrap(), b"the owner's bytes");
    let report = reader.verify().unwrap();
    assert!(report.is_ok() && report.leftovers.is_empty(), "{report:?}");
    drop(reader);

    let engine = Engine::open(&path, options()).unwrap();
    history.check(&engine).unwrap();
    history.write(&engine, v(LAST * 100 + 100), &[Change::DeleteRange("city/010".into(), "city/020".into())]);
    engine.compact_range(None, None).unwrap();
    history.check_every(&engine, 7).unwrap();
    engine.close().unwrap();
    let engine = Engine::open(&path, options()).unwrap();
    history.check_every(&engine, 7).unwrap();
    let report = engine.verify().unwrap();
    assert!(report.is_ok(), "{report:?}");
}
