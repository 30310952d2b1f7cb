//! A history of writes that knows what must be read at each version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferrisdb_core::Version;
use ferrisdb_storage::fs::sim::SimFileSystem;
pub(crate) use ferrisdb_storage::testing::{DIR, Machine, scan};
use ferrisdb_storage::{Durability, Engine, Error, IterOptions, Options, Result, Retention, WriteBatch, WriteOptions};

pub(crate) fn v(number: u64) -> Version {
    Version::from_u64(number)
}

/// Small buffers, and every version readable.
pub(crate) fn small() -> Options {
    Options { retention: Retention::FromFloor, wal_segment_bytes: 4 << 10, ..Options::tiny() }
}

pub(crate) type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// What was written, version by version.
#[derive(Default, Clone)]
pub(crate) struct History {
    versions: Vec<(Version, Contents)>,
}

/// One change, as a test writes it down.
pub(crate) enum Change {
    Put(String, Vec<u8>),
    Delete(String),
    DeleteRange(String, String),
}

impl History {
    pub(crate) fn last(&self) -> Version {
        self.versions.last().map_or(Version::ZERO, |(version, _)| *version)
    }

    pub(crate) fn contents(&self) -> Contents {
        self.versions.last().map(|(_, contents)| contents.clone()).unwrap_or_default()
    }

    /// Adds a version to the history without writing it.
    pub(crate) fn note(&mut self, version: Version, changes: &[Change]) {
        let mut contents = self.contents();
        for change in changes {
            match change {
                Change::Put(key, value) => drop(contents.insert(key.clone().into_bytes(), value.clone())),
                Change::Delete(key) => drop(contents.remove(key.as_bytes())),
                Change::DeleteRange(start, end) => {
                    contents.retain(|key, _| !(start.as_bytes()..end.as_bytes()).contains(&&**key));
                }
            }
        }
        self.versions.push((version, contents));
    }

    pub(crate) fn write(&mut self, engine: &Engine, version: Version, changes: &[Change]) {
        engine
            .write(batch(changes), WriteOptions { durability: Durability::Buffered, version: Some(version) })
            .unwrap();
        self.note(version, changes);
    }

    /// Reads everything at every readable version of the history, by scans in both directions and by point reads. Fails as the
    /// engine does; panics at a wrong answer.
    pub(crate) fn check(&self, engine: &Engine) -> Result<()> {
        self.check_every(engine, 1)
    }

    /// The same at every n-th version and the newest.
    pub(crate) fn check_every(&self, engine: &Engine, n: usize) -> Result<()> {
        assert_eq!(engine.visible_version(), self.last(), "the newest version");
        for (version, contents) in self.versions.iter().rev().step_by(n) {
            if *version < engine.oldest_readable_version() {
                break;
            }
            let options = || IterOptions { version: Some(*version), ..IterOptions::default() };
            assert_eq!(&scan(engine, options())?, contents, "contents at version {version}");
            let mut iter = engine.iter(options())?;
            iter.seek_to_last()?;
            for (key, value) in contents.iter().rev() {
                assert!(iter.valid() && iter.key() == key && iter.value() == value, "backwards at {version}");
                iter.prev()?;
            }
            assert!(!iter.valid());
            for (key, value) in contents {
                assert_eq!(engine.get_at(key, *version)?.expect("a key that was written"), value, "at {version}");
            }
            for (key, _) in self.versions.iter().flat_map(|(_, contents)| contents) {
                if !contents.contains_key(key) {
                    assert_eq!(engine.get_at(key, *version)?, None, "a key that is not there at {version}");
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn batch(changes: &[Change]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for change in changes {
        match change {
            Change::Put(key, value) => batch.put(key.as_bytes(), value),
            Change::Delete(key) => batch.delete(key.as_bytes()),
            Change::DeleteRange(start, end) => batch.delete_range(start.as_bytes(), end.as_bytes()),
        };
    }
    batch
}

pub(crate) fn put_batch(key: &str, value: &str) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(key.as_bytes(), value.as_bytes());
    batch
}

pub(crate) fn put(engine: &Engine, key: &str, value: &str) {
    engine.write(put_batch(key, value), Durability::Buffered).unwrap();
}

/// The file that an error names.
pub(crate) fn file_of(error: &Error) -> Option<&Path> {
    match error {
        Error::Corruption { file, .. }
        | Error::Io { file, .. }
        | Error::NoSpace { file, .. }
        | Error::FormatTooNew { file, .. }
        | Error::MissingFile { file } => Some(file),
        Error::NotAnEngine { directory, .. } | Error::Locked { directory, .. } | Error::ReadOnly { directory } => {
            Some(directory)
        }
        _ => None,
    }
}

/// Bytes that do not compress, different for each number.
pub(crate) fn noise(number: u64, len: usize) -> Vec<u8> {
    use ferrisdb_core::Random as _;
    let mut random = ferrisdb_core::SplitMix64::new(number);
    std::iter::repeat_with(|| random.next_u64() as u8).take(len).collect()
}

/// A closed engine on a simulated disk: tables in L0 and below, range tombstones, deletes, old versions, and a WAL of several segments
/// that holds the newest versions.
pub(crate) fn closed_engine(per_table: u64, in_wal: u64, value_bytes: usize) -> (Machine, History) {
    closed_engine_with(small(), per_table, in_wal, value_bytes)
}

/// The same with other options.
pub(crate) fn closed_engine_with(
    options: Options,
    per_table: u64,
    in_wal: u64,
    value_bytes: usize,
) -> (Machine, History) {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let engine = machine.open(options).unwrap();
    let mut history = History::default();
    let mut next = 0;
    let mut write_some = |history: &mut History, count: u64| {
        for _ in 0..count {
            next += 1;
            let key = |n: u64| format!("key{:04}", n % 97);
            let changes = match next % 12 {
                5 => vec![Change::Delete(key(next * 7 - 14)), Change::Put(key(next + 40), noise(next, 20))],
                9 => vec![Change::DeleteRange(key(next * 7 - 30), key(next * 7 - 27))],
                _ => vec![Change::Put(key(next * 7), noise(next, value_bytes)), Change::Put(key(next), vec![7; 9])],
            };
            let ordered = |change: &Change| !matches!(change, Change::DeleteRange(start, end) if start > end);
            let changes: Vec<Change> = changes.into_iter().filter(ordered).collect();
            history.write(&engine, v(next * 10), &changes);
        }
    };
    write_some(&mut history, per_table);
    engine.compact_range(None, None).unwrap();
    write_some(&mut history, per_table);
    engine.flush().unwrap();
    write_some(&mut history, per_table);
    engine.flush().unwrap();
    write_some(&mut history, in_wal);
    history.check(&engine).unwrap();
    // Obsolete tables go.
    machine.spawner.run_for(std::time::Duration::from_secs(1));
    assert_eq!(engine.verify().unwrap().leftovers, Vec::<PathBuf>::new());
    engine.close().unwrap();
    (machine, history)
}
