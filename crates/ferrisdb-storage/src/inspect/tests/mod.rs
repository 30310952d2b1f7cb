//! What inspections tell of a small engine, whole and damaged. Everything about it is fixed: the disk and the jobs are simulated,
//! and the engine's id comes from a seed.

mod blob;
mod directory;
mod manifest;
mod table;
mod verify;
mod wal;

use std::fmt::Write as _;
use std::path::PathBuf;

use expect_test::{Expect, expect};

use super::*;
use crate::engine::files;
use crate::env::Env;
use crate::fs::sim::SimFileSystem;
use crate::manifest::FileNumber;
use crate::{Compression, Durability, Engine, Options, WriteBatch};

const DIR: &str = "/db";

/// Tells into a text, a line for each call.
#[derive(Default)]
struct Text {
    text: String,
    columns: usize,
}

impl Sink for Text {
    fn field(&mut self, name: &'static str, value: Cell<'_>) -> Result<()> {
        assert_eq!(self.columns, 0, "fields come before tables");
        writeln!(self.text, "{name}: {value}").unwrap();
        Ok(())
    }

    fn table(&mut self, name: &'static str, columns: &'static [&'static str]) -> Result<()> {
        self.columns = columns.len();
        writeln!(self.text, "{name} ({})", columns.join(", ")).unwrap();
        Ok(())
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        assert_eq!(cells.len(), self.columns, "a cell for each column");
        let cells: Vec<String> = cells.iter().map(Cell::to_string).collect();
        writeln!(self.text, "  {}", cells.join(" | ")).unwrap();
        Ok(())
    }
}

/// What is told, and the error at the end.
fn told(tell: impl FnOnce(&mut dyn Sink) -> Result<()>) -> String {
    let mut text = Text::default();
    if let Err(error) = tell(&mut text) {
        writeln!(text.text, "error: {error}").unwrap();
    }
    text.text
}

type Inspection = fn(&dyn FileSystem, &Path, &mut dyn Sink) -> Result<()>;

fn inspected(disk: &SimFileSystem, inspection: Inspection, path: impl AsRef<Path>) -> String {
    let before = disk.state_hash();
    let text = told(|sink| inspection(disk, path.as_ref(), sink));
    assert_eq!(disk.state_hash(), before, "nothing is changed");
    text
}

fn verified(disk: &SimFileSystem) -> (u64, String) {
    let mut problems = 0;
    let text = told(|sink| {
        problems = verify(&Env::sim(disk.clone()), Path::new(DIR), sink)?;
        Ok(())
    });
    (problems, text)
}

/// A disk with an engine: a table in L6, one in L0 with a range tombstone, and three batches in the WAL.
fn disk() -> SimFileSystem {
    let disk = SimFileSystem::new();
    let options =
        Options { compression: [Compression::None; crate::levels::LEVELS], compaction_jobs: 0, ..Options::tiny() };
    let engine = Engine::open_in(Env::sim(disk.clone()), DIR, options).unwrap();
    let write = |fill: &dyn for<'a> Fn(&'a mut WriteBatch) -> &'a mut WriteBatch| {
        let mut batch = WriteBatch::new();
        fill(&mut batch);
        engine.write(batch, Durability::Sync).unwrap();
    };
    for n in 0..12 {
        write(&|batch| batch.put(format!("key{n:02}").as_bytes(), &[b'0' + n; 100]));
    }
    engine.flush().unwrap();
    write(&|batch| batch.delete(b"key01").delete_range(b"key05", b"key08").put(b"key07", b"new"));
    engine.flush().unwrap();
    write(&|batch| batch.put(b"key20", b"a").set_owner_state(b"mine"));
    write(&|batch| batch.delete(b"key20").delete_range(b"a\x00", b"b"));
    write(&|batch| batch.put(b"long", &[b'x'; 1000]));
    engine.close().unwrap();
    // Their lengths depend on the process id and on what options there are.
    disk.write_raw("/db/LOCK", b"process 1");
    disk.write_raw("/db/OPTIONS", b"for people");
    disk.sync_everything();
    disk
}

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(actual);
}

fn tables(disk: &SimFileSystem) -> Vec<PathBuf> {
    let is_table = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "sst");
    disk.files().into_iter().map(|(path, _)| path).filter(is_table).collect()
}

fn file_named(disk: &SimFileSystem, part: &str) -> PathBuf {
    let mut files = disk.files().into_iter().map(|(path, _)| path);
    files.find(|path| path.to_str().unwrap().contains(part)).unwrap()
}

/// A disk with an engine whose values of 64 bytes or more lie in a blob file: three live ones and one that is garbage.
fn disk_with_blobs() -> SimFileSystem {
    let disk = SimFileSystem::new();
    let options = Options { blob_value_bytes: Some(64), ..Options::tiny() };
    let engine = Engine::open_in(Env::sim(disk.clone()), DIR, options).unwrap();
    for (n, key) in [b"key0", b"key1", b"key2", b"key3"].into_iter().enumerate() {
        let mut batch = WriteBatch::new();
        batch.put(
            key,
            &if n == 2 { vec![b'z'; 400] } else { (0..70).map(|at| b'a' + (at % 26 * 7 + n as u8) % 26).collect() },
        );
        engine.write(batch, Durability::Sync).unwrap();
    }
    engine.flush().unwrap();
    let mut batch = WriteBatch::new();
    batch.delete(b"key1").put(b"small", b"in the table");
    engine.write(batch, Durability::Sync).unwrap();
    engine.compact_range(None, None).unwrap();
    engine.close().unwrap();
    disk.write_raw("/db/LOCK", b"process 1");
    disk.write_raw("/db/OPTIONS", b"for people");
    disk.sync_everything();
    disk
}

/// A key of any bytes can be printed on one line, and two different keys never look the same.
#[test]
fn bytes_are_printed_without_loss() {
    let shown = |bytes: &[u8]| Cell::from(bytes).to_string();
    assert_eq!(shown(b"user/1\x00\xff\n"), r"user/1\x00\xff\n");
    assert_eq!(shown(br"\x00"), r"\\x00");
}

/// When the sink takes no more, the inspection ends at once.
#[test]
fn a_sink_that_fails_ends_the_inspection() {
    struct Full(usize);
    impl Full {
        fn take(&mut self) -> Result<()> {
            self.0 = self
                .0
                .checked_sub(1)
                .ok_or_else(|| Error::io("write", "out", std::io::ErrorKind::BrokenPipe.into()))?;
            Ok(())
        }
    }
    impl Sink for Full {
        fn field(&mut self, _: &'static str, _: Cell<'_>) -> Result<()> {
            self.take()
        }
        fn table(&mut self, _: &'static str, _: &'static [&'static str]) -> Result<()> {
            self.take()
        }
        fn row(&mut self, _: &[Cell<'_>]) -> Result<()> {
            self.take()
        }
    }
    let disk = disk();
    let table = tables(&disk).remove(0);
    let (segment, log) = (file_named(&disk, ".wal"), file_named(&disk, "MANIFEST"));
    let all: [(Inspection, &Path); 4] = [(sst, &table), (wal, &segment), (manifest, &log), (dir, Path::new(DIR))];
    for (inspection, path) in all {
        let mut taken = 0;
        while let Err(error) = inspection(&disk, path, &mut Full(taken)) {
            assert!(matches!(error, Error::Io { ref file, .. } if file == Path::new("out")), "{error}");
            taken += 1;
        }
        assert!(taken > 10);
    }
}
