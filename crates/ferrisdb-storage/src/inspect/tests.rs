//! What inspections tell of a small engine, whole and damaged. Everything about it is fixed: the disk and the jobs are simulated,
//! and the engine's id comes from a seed.

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

/// A key of any bytes can be printed on one line, and two different keys never look the same.
#[test]
fn bytes_are_printed_without_loss() {
    let shown = |bytes: &[u8]| Cell::from(bytes).to_string();
    assert_eq!(shown(b"user/1\x00\xff\n"), r"user/1\x00\xff\n");
    assert_eq!(shown(br"\x00"), r"\\x00");
}

/// The directory: every file with its kind and state, and the levels.
#[test]
fn a_directory() {
    let disk = disk();
    disk.write_raw("/db/000099.sst", b"a crash left this");
    disk.write_raw("/db/CURRENT.tmp", b"and this");
    disk.write_raw("/db/notes.txt", b"and a person this");
    check(
        &inspected(&disk, dir, DIR),
        &expect![[r#"
            directory: /db
            manifest: 1
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            tables: 2
            blob_files: 0
            next_file_number: 3
            flushed_version: 13
            last_version: 13
            oldest_readable: 13
            wal_start: 1:1760
            wal_synced: 1:2912
            owner_bytes: 0
            files (file, kind, state, file_bytes, level, entries, smallest, largest)
              000001.sst | table | live | 1622 | 0 | 12 | key00 | key11
              000002.sst | table | live | 340 | 0 | 2 | key01 | key08
              000099.sst | table | leftover | 17 | - | - | - | -
              CURRENT | names the manifest | live | 91 | - | - | - | -
              CURRENT.tmp | temporary | leftover | 8 | - | - | - | -
              LOCK | lock | live | 9 | - | - | - | -
              MANIFEST-000001 | manifest | live | 2560 | - | - | - | -
              OPTIONS | options | live | 10 | - | - | - | -
              notes.txt | not ours | - | 17 | - | - | - | -
              wal/0000000001.wal | WAL segment | live | 16384 | - | - | - | -
            levels (level, tables, file_bytes, entries, smallest, largest)
              0 | 2 | 1962 | 14 | key00 | key11
        "#]],
    );
}

/// A directory whose files are not as the manifest says, and one without a manifest.
#[test]
fn a_damaged_directory() {
    let disk = disk();
    let [cut, gone] = &tables(&disk)[..] else { panic!("two tables") };
    disk.truncate_raw(cut, 100);
    disk.remove_raw(gone);
    check(
        &inspected(&disk, dir, DIR),
        &expect![[r#"
            directory: /db
            manifest: 1
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            tables: 2
            blob_files: 0
            next_file_number: 3
            flushed_version: 13
            last_version: 13
            oldest_readable: 13
            wal_start: 1:1760
            wal_synced: 1:2912
            owner_bytes: 0
            files (file, kind, state, file_bytes, level, entries, smallest, largest)
              000001.sst | table | wrong length | 100 | 0 | 12 | key00 | key11
              000002.sst | table | missing | - | 0 | 2 | key01 | key08
              CURRENT | names the manifest | live | 91 | - | - | - | -
              LOCK | lock | live | 9 | - | - | - | -
              MANIFEST-000001 | manifest | live | 2560 | - | - | - | -
              OPTIONS | options | live | 10 | - | - | - | -
              wal/0000000001.wal | WAL segment | live | 16384 | - | - | - | -
            levels (level, tables, file_bytes, entries, smallest, largest)
              0 | 2 | 1962 | 14 | key00 | key11
            error: corruption in /db/000001.sst at offset 100: the file has 100 bytes, but the manifest says 1622; restore this file from a replica or a backup
        "#]],
    );
    disk.flip_bit("/db/CURRENT", 20, 0);
    check(
        &inspected(&disk, dir, DIR),
        &expect![[r#"
            directory: /db
            files (file, kind, state, file_bytes, level, entries, smallest, largest)
              000001.sst | table | - | 100 | - | - | - | -
              CURRENT | names the manifest | live | 91 | - | - | - | -
              LOCK | lock | live | 9 | - | - | - | -
              MANIFEST-000001 | manifest | - | 2560 | - | - | - | -
              OPTIONS | options | live | 10 | - | - | - | -
              wal/0000000001.wal | WAL segment | live | 16384 | - | - | - | -
            error: corruption in /db/CURRENT at offset 0: CURRENT: checksum; restore this file from a replica or a backup
        "#]],
    );
    check(
        &inspected(&disk, dir, "/db/nowhere"),
        &expect![[r#"
        error: list /db/nowhere failed: No such file or directory (os error 2)
    "#]],
    );
}

/// A table: footer, properties, tombstones, blocks, entries.
#[test]
fn a_table() {
    let disk = disk();
    for (path, expected) in tables(&disk).iter().zip([
        expect![[r#"
            file: /db/000001.sst
            file_bytes: 1622
            table: 1
            format_version: 1
            index_levels: 1
            created_by: ferrisdb 0.1.0
            entries: 12
            tombstones: 0
            blob_pointers: 0
            range_tombstones: 0
            user_keys: 12
            key_bytes: 60
            value_bytes: 1200
            data_blocks: 3
            data_bytes: 1329
            smallest_version: 0
            largest_version: 0
            first_key: key00
            last_key: key11
            parts (part, offset, bytes)
              data blocks | 0 | 1329
              index | 1329 | 33
              filter | 1362 | 74
              range tombstones | 0 | 0
              properties | 1436 | 74
            range_tombstones (start, end, version)
            blocks (offset, bytes, compression, raw_bytes, entries, restarts, separator, separator_version)
              0 | 547 | none | 538 | 5 | 1 | key04 | 0
              547 | 547 | none | 538 | 5 | 1 | key1 | 0
              1094 | 235 | none | 226 | 2 | 1 | key11 | 0
            entries (block, key, version, kind, value_bytes, value)
              0 | key00 | 0 | value | 100 | 0000000000000000000000000000000000000000000000000000000000000000
              0 | key01 | 0 | value | 100 | 1111111111111111111111111111111111111111111111111111111111111111
              0 | key02 | 0 | value | 100 | 2222222222222222222222222222222222222222222222222222222222222222
              0 | key03 | 0 | value | 100 | 3333333333333333333333333333333333333333333333333333333333333333
              0 | key04 | 0 | value | 100 | 4444444444444444444444444444444444444444444444444444444444444444
              547 | key05 | 0 | value | 100 | 5555555555555555555555555555555555555555555555555555555555555555
              547 | key06 | 0 | value | 100 | 6666666666666666666666666666666666666666666666666666666666666666
              547 | key07 | 0 | value | 100 | 7777777777777777777777777777777777777777777777777777777777777777
              547 | key08 | 0 | value | 100 | 8888888888888888888888888888888888888888888888888888888888888888
              547 | key09 | 0 | value | 100 | 9999999999999999999999999999999999999999999999999999999999999999
              1094 | key10 | 0 | value | 100 | ::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::
              1094 | key11 | 0 | value | 100 | ;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;
        "#]],
        expect![[r#"
        file: /db/000002.sst
        file_bytes: 340
        table: 2
        format_version: 1
        index_levels: 1
        created_by: ferrisdb 0.1.0
        entries: 2
        tombstones: 1
        blob_pointers: 0
        range_tombstones: 1
        user_keys: 2
        key_bytes: 10
        value_bytes: 3
        data_blocks: 1
        data_bytes: 38
        smallest_version: 13
        largest_version: 13
        first_key: key01
        last_key: key07
        parts (part, offset, bytes)
          data blocks | 0 | 38
          index | 38 | 20
          filter | 58 | 74
          range tombstones | 132 | 24
          properties | 156 | 72
        range_tombstones (start, end, version)
          key05 | key08 | 13
        blocks (offset, bytes, compression, raw_bytes, entries, restarts, separator, separator_version)
          0 | 38 | none | 29 | 2 | 1 | key07 | 0
        entries (block, key, version, kind, value_bytes, value)
          0 | key01 | 13 | tombstone | - | -
          0 | key07 | 13 | value | 3 | new
    "#]],
    ]) {
        check(&inspected(&disk, sst, path), &expected);
    }
}

/// A damaged data block is passed over; with a damaged index only the footer is told; a swapped file says whose it is.
#[test]
fn a_damaged_table() {
    let disk = disk();
    let path = &tables(&disk)[0];
    disk.flip_bit(path, 700, 3);
    check(
        &inspected(&disk, sst, path),
        &expect![[r#"
            file: /db/000001.sst
            file_bytes: 1622
            table: 1
            format_version: 1
            index_levels: 1
            created_by: ferrisdb 0.1.0
            entries: 12
            tombstones: 0
            blob_pointers: 0
            range_tombstones: 0
            user_keys: 12
            key_bytes: 60
            value_bytes: 1200
            data_blocks: 3
            data_bytes: 1329
            smallest_version: 0
            largest_version: 0
            first_key: key00
            last_key: key11
            parts (part, offset, bytes)
              data blocks | 0 | 1329
              index | 1329 | 33
              filter | 1362 | 74
              range tombstones | 0 | 0
              properties | 1436 | 74
            range_tombstones (start, end, version)
            blocks (offset, bytes, compression, raw_bytes, entries, restarts, separator, separator_version)
              0 | 547 | none | 538 | 5 | 1 | key04 | 0
              1094 | 235 | none | 226 | 2 | 1 | key11 | 0
            entries (block, key, version, kind, value_bytes, value)
              0 | key00 | 0 | value | 100 | 0000000000000000000000000000000000000000000000000000000000000000
              0 | key01 | 0 | value | 100 | 1111111111111111111111111111111111111111111111111111111111111111
              0 | key02 | 0 | value | 100 | 2222222222222222222222222222222222222222222222222222222222222222
              0 | key03 | 0 | value | 100 | 3333333333333333333333333333333333333333333333333333333333333333
              0 | key04 | 0 | value | 100 | 4444444444444444444444444444444444444444444444444444444444444444
              1094 | key10 | 0 | value | 100 | ::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::
              1094 | key11 | 0 | value | 100 | ;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;
            error: corruption in /db/000001.sst at offset 547: cannot decode block: checksum (wrong bytes, or a block of another place); restore this file from a replica or a backup
        "#]],
    );
    let index_offset = crate::table::TableReader::footer(&disk, path).unwrap().parts[1].1.offset;
    disk.flip_bit(path, index_offset, 0);
    check(
        &inspected(&disk, sst, path),
        &expect![[r#"
            file: /db/000001.sst
            file_bytes: 1622
            table: 1
            format_version: 1
            index_levels: 1
            parts (part, offset, bytes)
              data blocks | 0 | 1329
              index | 1329 | 33
              filter | 1362 | 74
              range tombstones | 0 | 0
              properties | 1436 | 74
            error: corruption in /db/000001.sst at offset 1329: cannot decode block: checksum (wrong bytes, or a block of another place); restore this file from a replica or a backup
        "#]],
    );
    disk.flip_bit(path, disk.read_raw(path).unwrap().len() as u64 - 60, 0);
    check(
        &inspected(&disk, sst, path),
        &expect![[r#"
            file: /db/000001.sst
            file_bytes: 1622
            error: corruption in /db/000001.sst at offset 1510: footer: checksum; restore this file from a replica or a backup
        "#]],
    );

    let whole = self::disk();
    let other = files::table_path(Path::new(DIR), FileNumber(77));
    whole.write_raw(&other, &whole.read_raw(path).unwrap());
    let text = inspected(&whole, sst, &other);
    check(
        text.lines().last().unwrap(),
        &expect![
            "error: corruption in /db/000077.sst at offset 1622: this is table 1, not table 000077: the file was put in its place; restore this file from a replica or a backup"
        ],
    );
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

/// A blob file: its header, and its values with the entries that they belong to; whole, damaged, copied elsewhere and swapped.
#[test]
fn a_blob_file() {
    let disk = disk_with_blobs();
    let path = file_named(&disk, ".blob");
    check(
        &inspected(&disk, blob, &path),
        &expect![[r#"
            file: /db/000001.blob
            file_bytes: 212
            blob_file: 1
            format_version: 1
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            state: live
            garbage_bytes: 47
            records (offset, bytes, compression, intact, table, key, version, value_bytes, value)
              48 | 47 | lz4 | yes | 4 | key0 | 0 | 70 | ahovcjqxelszgnubipwdkryfmtahovcjqxelszgnubipwdkryfmtahovcjqxelsz
              142 | 23 | lz4 | yes | 4 | key2 | 0 | 400 | zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz
              165 | 47 | lz4 | yes | 4 | key3 | 0 | 70 | dkryfmtahovcjqxelszgnubipwdkryfmtahovcjqxelszgnubipwdkryfmtahovc
        "#]],
    );
    let table = inspected(&disk, dir, DIR);
    check(
        &table[table.find("levels (").unwrap()..],
        &expect![[r#"
            levels (level, tables, file_bytes, entries, smallest, largest)
              6 | 1 | 350 | 4 | key0 | small
            blob_files (blob_file, file_bytes, referenced_bytes, garbage_bytes, tables)
              1 | 212 | 117 | 47 | 1
        "#]],
    );

    let copy = Path::new("/elsewhere.blob");
    disk.write_raw(copy, &disk.read_raw(&path).unwrap());
    check(
        &inspected(&disk, blob, copy),
        &expect![[r#"
            file: /elsewhere.blob
            file_bytes: 212
            blob_file: 1
            format_version: 1
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            state: -
            garbage_bytes: -
            records (offset, bytes, compression, intact, table, key, version, value_bytes, value)
        "#]],
    );

    let swapped = files::blob_path(Path::new(DIR), FileNumber(77));
    disk.write_raw(&swapped, &disk.read_raw(&path).unwrap());
    check(
        inspected(&disk, blob, &swapped).lines().last().unwrap(),
        &expect![
            "error: corruption in /db/000077.blob at offset 0: this is blob file 1, not 000077: the file was put in its place; restore this file from a replica or a backup"
        ],
    );

    disk.flip_bit(&path, 60, 1);
    check(
        &inspected(&disk, blob, &path),
        &expect![[r#"
            file: /db/000001.blob
            file_bytes: 212
            blob_file: 1
            format_version: 1
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            state: live
            garbage_bytes: 47
            records (offset, bytes, compression, intact, table, key, version, value_bytes, value)
              48 | 47 | lz4 | no | 4 | key0 | 0 | 70 | -
              142 | 23 | lz4 | yes | 4 | key2 | 0 | 400 | zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz
              165 | 47 | lz4 | yes | 4 | key3 | 0 | 70 | dkryfmtahovcjqxelszgnubipwdkryfmtahovcjqxelszgnubipwdkryfmtahovc
            error: corruption in /db/000001.blob at offset 48: cannot decode block: checksum (wrong bytes, or a block of another place); restore this file from a replica or a backup
        "#]],
    );
    disk.flip_bit(&path, 20, 1);
    check(
        inspected(&disk, blob, &path).lines().last().unwrap(),
        &expect![
            "error: corruption in /db/000001.blob at offset 0: blob file header: checksum; restore this file from a replica or a backup"
        ],
    );
}

/// A table that cannot be read hides from the engine that the end of the WAL is gone too; verification finds both.
#[test]
fn the_missing_end_of_a_wal_is_found_beside_other_damage() {
    let disk = disk();
    disk.truncate_raw(&tables(&disk)[0], 100);
    for (path, _) in disk.files() {
        if path.extension().is_some_and(|suffix| suffix == "wal") {
            // The records behind the flushed version, and all that say that they were synced.
            let bytes = disk.read_raw(&path).unwrap();
            disk.write_raw(&path, &bytes[..bytes.len().min(1760)]);
        }
    }
    let (problems, text) = verified(&disk);
    assert!(text.contains("its end is missing") && text.contains("000001.sst"), "{problems}: {text}");
}

/// A segment: its records, and the operations in them; and one that is not used yet.
#[test]
fn a_wal_segment() {
    let disk = disk();
    let path = file_named(&disk, ".wal");
    check(
        &inspected(&disk, wal, &path),
        &expect![[r#"
        file: /db/wal/0000000001.wal
        file_bytes: 16384
        identity: e220a8397b1dcdaf
        segment: 1
        previous_end: 0:0
        synced: 0:0
        records (offset, kind, generation, synced, payload_bytes, intact, behind_gap, version, operations)
          64 | record | 0 | 1:64 | 110 | yes | no | 1 | 1
          200 | record | 0 | 1:200 | 110 | yes | no | 2 | 1
          336 | record | 0 | 1:336 | 110 | yes | no | 3 | 1
          472 | record | 0 | 1:472 | 110 | yes | no | 4 | 1
          608 | record | 0 | 1:608 | 110 | yes | no | 5 | 1
          744 | record | 0 | 1:744 | 110 | yes | no | 6 | 1
          880 | record | 0 | 1:880 | 110 | yes | no | 7 | 1
          1016 | record | 0 | 1:1016 | 110 | yes | no | 8 | 1
          1152 | record | 0 | 1:1152 | 110 | yes | no | 9 | 1
          1288 | record | 0 | 1:1288 | 110 | yes | no | 10 | 1
          1424 | record | 0 | 1:1424 | 110 | yes | no | 11 | 1
          1560 | record | 0 | 1:1560 | 110 | yes | no | 12 | 1
          1696 | record | 0 | 1:1696 | 33 | yes | no | 13 | 3
          1760 | record | 0 | 1:1760 | 17 | yes | no | 14 | 2
          1808 | record | 0 | 1:1808 | 15 | yes | no | 15 | 2
          1848 | record | 0 | 1:1848 | 1010 | yes | no | 16 | 1
          2888 | mark | 0 | 1:2888 | 0 | yes | no | - | -
        operations (offset, version, operation, key, end, value_bytes, value)
          64 | 1 | put | key00 | - | 100 | 0000000000000000000000000000000000000000000000000000000000000000
          200 | 2 | put | key01 | - | 100 | 1111111111111111111111111111111111111111111111111111111111111111
          336 | 3 | put | key02 | - | 100 | 2222222222222222222222222222222222222222222222222222222222222222
          472 | 4 | put | key03 | - | 100 | 3333333333333333333333333333333333333333333333333333333333333333
          608 | 5 | put | key04 | - | 100 | 4444444444444444444444444444444444444444444444444444444444444444
          744 | 6 | put | key05 | - | 100 | 5555555555555555555555555555555555555555555555555555555555555555
          880 | 7 | put | key06 | - | 100 | 6666666666666666666666666666666666666666666666666666666666666666
          1016 | 8 | put | key07 | - | 100 | 7777777777777777777777777777777777777777777777777777777777777777
          1152 | 9 | put | key08 | - | 100 | 8888888888888888888888888888888888888888888888888888888888888888
          1288 | 10 | put | key09 | - | 100 | 9999999999999999999999999999999999999999999999999999999999999999
          1424 | 11 | put | key10 | - | 100 | ::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::
          1560 | 12 | put | key11 | - | 100 | ;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;
          1696 | 13 | delete range | key05 | key08 | - | -
          1696 | 13 | delete | key01 | - | - | -
          1696 | 13 | put | key07 | - | 3 | new
          1760 | 14 | owner state | - | - | 4 | mine
          1760 | 14 | put | key20 | - | 1 | a
          1808 | 15 | delete range | a\x00 | b | - | -
          1808 | 15 | delete | key20 | - | - | -
          1848 | 16 | put | long | - | 1000 | xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    "#]],
    );
    disk.write_raw("/db/wal/0000000099.wal", &[0; 4096]);
    check(
        &inspected(&disk, wal, "/db/wal/0000000099.wal"),
        &expect![[r#"
        file: /db/wal/0000000099.wal
        file_bytes: 4096
        state: prepared and not used yet
    "#]],
    );
}

/// A flipped bit hides one record; those behind it are told, and that it was synced.
#[test]
fn a_damaged_wal_segment() {
    let disk = disk();
    let path = file_named(&disk, ".wal");
    disk.flip_bit(&path, 300, 3);
    check(
        &inspected(&disk, wal, &path),
        &expect![[r#"
        file: /db/wal/0000000001.wal
        file_bytes: 16384
        identity: e220a8397b1dcdaf
        segment: 1
        previous_end: 0:0
        synced: 0:0
        records (offset, kind, generation, synced, payload_bytes, intact, behind_gap, version, operations)
          64 | record | 0 | 1:64 | 110 | yes | no | 1 | 1
          200 | record | 0 | 1:200 | 110 | no | yes | - | -
          336 | record | 0 | 1:336 | 110 | yes | yes | 3 | 1
          472 | record | 0 | 1:472 | 110 | yes | yes | 4 | 1
          608 | record | 0 | 1:608 | 110 | yes | yes | 5 | 1
          744 | record | 0 | 1:744 | 110 | yes | yes | 6 | 1
          880 | record | 0 | 1:880 | 110 | yes | yes | 7 | 1
          1016 | record | 0 | 1:1016 | 110 | yes | yes | 8 | 1
          1152 | record | 0 | 1:1152 | 110 | yes | yes | 9 | 1
          1288 | record | 0 | 1:1288 | 110 | yes | yes | 10 | 1
          1424 | record | 0 | 1:1424 | 110 | yes | yes | 11 | 1
          1560 | record | 0 | 1:1560 | 110 | yes | yes | 12 | 1
          1696 | record | 0 | 1:1696 | 33 | yes | yes | 13 | 3
          1760 | record | 0 | 1:1760 | 17 | yes | yes | 14 | 2
          1808 | record | 0 | 1:1808 | 15 | yes | yes | 15 | 2
          1848 | record | 0 | 1:1848 | 1010 | yes | yes | 16 | 1
          2888 | mark | 0 | 1:2888 | 0 | yes | yes | - | -
        operations (offset, version, operation, key, end, value_bytes, value)
          64 | 1 | put | key00 | - | 100 | 0000000000000000000000000000000000000000000000000000000000000000
          336 | 3 | put | key02 | - | 100 | 2222222222222222222222222222222222222222222222222222222222222222
          472 | 4 | put | key03 | - | 100 | 3333333333333333333333333333333333333333333333333333333333333333
          608 | 5 | put | key04 | - | 100 | 4444444444444444444444444444444444444444444444444444444444444444
          744 | 6 | put | key05 | - | 100 | 5555555555555555555555555555555555555555555555555555555555555555
          880 | 7 | put | key06 | - | 100 | 6666666666666666666666666666666666666666666666666666666666666666
          1016 | 8 | put | key07 | - | 100 | 7777777777777777777777777777777777777777777777777777777777777777
          1152 | 9 | put | key08 | - | 100 | 8888888888888888888888888888888888888888888888888888888888888888
          1288 | 10 | put | key09 | - | 100 | 9999999999999999999999999999999999999999999999999999999999999999
          1424 | 11 | put | key10 | - | 100 | ::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::
          1560 | 12 | put | key11 | - | 100 | ;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;
          1696 | 13 | delete range | key05 | key08 | - | -
          1696 | 13 | delete | key01 | - | - | -
          1696 | 13 | put | key07 | - | 3 | new
          1760 | 14 | owner state | - | - | 4 | mine
          1760 | 14 | put | key20 | - | 1 | a
          1808 | 15 | delete range | a\x00 | b | - | -
          1808 | 15 | delete | key20 | - | - | -
          1848 | 16 | put | long | - | 1000 | xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
        error: corruption in /db/wal/0000000001.wal at offset 200: a record is damaged or missing here, though the WAL was synced up to 1:2888; restore this file from a replica or a backup
    "#]],
    );
    disk.flip_bit(&path, 20, 0);
    check(
        &inspected(&disk, wal, &path),
        &expect![[r#"
        file: /db/wal/0000000001.wal
        file_bytes: 16384
        error: corruption in /db/wal/0000000001.wal at offset 0: segment header checksum, or an unused segment; restore this file from a replica or a backup
    "#]],
    );
}

/// A manifest: its edits, what they change, and what is live in the end.
#[test]
fn a_manifest() {
    let disk = disk();
    let path = file_named(&disk, "MANIFEST");
    check(
        &inspected(&disk, manifest, &path),
        &expect![[r#"
            file: /db/MANIFEST-000001
            file_bytes: 2560
            manifest: 1
            edits: 4
            end: 2560
            torn: no
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            tables: 2
            blob_files: 0
            next_file_number: 3
            flushed_version: 13
            last_version: 13
            oldest_readable: 13
            wal_start: 1:1760
            wal_synced: 1:2912
            owner_bytes: 0
            edits (offset, added, removed, next_file_number, flushed_version, wal_start, wal_synced, last_version, oldest_readable, owner_bytes, blob_changes)
              512 | 0 | 0 | 1 | 0 | - | - | 0 | 0 | - | 0
              1024 | 1 | 0 | 2 | 12 | 1:1696 | - | 12 | 12 | - | 0
              1536 | 1 | 0 | 3 | 13 | 1:1760 | - | 13 | 13 | - | 0
              2048 | 0 | 0 | - | - | - | 1:2912 | - | - | - | 0
            changes (offset, change, level, table, file_bytes, entries, smallest, largest)
              1024 | added | 0 | 1 | 1622 | 12 | key00 | key11
              1536 | added | 0 | 2 | 340 | 2 | key01 | key08
            tables (level, table, file_bytes, entries, tombstones, range_tombstones, smallest_version, largest_version, smallest, largest, largest_exclusive)
              0 | 2 | 340 | 2 | 1 | 1 | 13 | 13 | key01 | key08 | yes
              0 | 1 | 1622 | 12 | 0 | 0 | 0 | 0 | key00 | key11 | no
        "#]],
    );
}

/// The edits before the damage are told.
#[test]
fn a_damaged_manifest() {
    let disk = disk();
    let path = file_named(&disk, "MANIFEST");
    let end = disk.read_raw(&path).unwrap().len() as u64;
    disk.flip_bit(&path, end - 400, 3);
    check(
        &inspected(&disk, manifest, &path),
        &expect![[r#"
            file: /db/MANIFEST-000001
            file_bytes: 2560
            manifest: 1
            edits: 3
            end: 2048
            torn: no
            engine: afcd1d7b39a820e2f465b9a16a9e786e
            tables: 2
            blob_files: 0
            next_file_number: 3
            flushed_version: 13
            last_version: 13
            oldest_readable: 13
            wal_start: 1:1760
            wal_synced: -
            owner_bytes: 0
            edits (offset, added, removed, next_file_number, flushed_version, wal_start, wal_synced, last_version, oldest_readable, owner_bytes, blob_changes)
              512 | 0 | 0 | 1 | 0 | - | - | 0 | 0 | - | 0
              1024 | 1 | 0 | 2 | 12 | 1:1696 | - | 12 | 12 | - | 0
              1536 | 1 | 0 | 3 | 13 | 1:1760 | - | 13 | 13 | - | 0
            changes (offset, change, level, table, file_bytes, entries, smallest, largest)
              1024 | added | 0 | 1 | 1622 | 12 | key00 | key11
              1536 | added | 0 | 2 | 340 | 2 | key01 | key08
            tables (level, table, file_bytes, entries, tombstones, range_tombstones, smallest_version, largest_version, smallest, largest, largest_exclusive)
              0 | 2 | 340 | 2 | 1 | 1 | 13 | 13 | key01 | key08 | yes
              0 | 1 | 1622 | 12 | 0 | 0 | 0 | 0 | key00 | key11 | no
            error: corruption in /db/MANIFEST-000001 at offset 2048: manifest sector checksum; restore this file from a replica or a backup
        "#]],
    );
    disk.flip_bit(&path, 30, 0);
    check(
        &inspected(&disk, manifest, &path),
        &expect![[r#"
            file: /db/MANIFEST-000001
            file_bytes: 2560
            error: corruption in /db/MANIFEST-000001 at offset 0: manifest header: checksum; restore this file from a replica or a backup
        "#]],
    );
}

/// A sound engine has no problem; leftovers are none.
#[test]
fn a_sound_engine_is_verified() {
    let disk = disk();
    disk.write_raw("/db/000000.sst", b"a crash left this");
    let (problems, text) = verified(&disk);
    check(
        &text,
        &expect![[r#"
            directory: /db
            tables: 2
            table_bytes: 1962
            entries: 14
            wal_records: 16
            wal_torn: -
            problems_found: 0
            problems (problem)
            leftovers (file)
              /db/000000.sst
        "#]],
    );
    assert_eq!(problems, 0);
}

/// Several damaged files are each named, although the first one alone keeps the engine from opening.
#[test]
fn every_damaged_file_is_named() {
    let disk = disk();
    let [first, second] = &tables(&disk)[..] else { panic!("two tables") };
    disk.flip_bit(first, 200, 3);
    let (problems, text) = verified(&disk);
    check(
        &text,
        &expect![[r#"
            directory: /db
            tables: 2
            table_bytes: 1962
            entries: 2
            wal_records: 16
            wal_torn: -
            problems_found: 1
            problems (problem)
              L0: corruption in /db/000001.sst at offset 0: cannot decode block: checksum (wrong bytes, or a block of another place); restore this file from a replica or a backup
            leftovers (file)
        "#]],
    );
    assert_eq!(problems, 1);

    disk.remove_raw(second);
    disk.flip_bit(file_named(&disk, ".wal"), 300, 3);
    let (problems, text) = verified(&disk);
    check(
        &text,
        &expect![[r#"
            directory: /db
            tables: 2
            table_bytes: 1962
            entries: 0
            wal_records: 0
            wal_torn: -
            problems_found: 3
            problems (problem)
              corruption in /db/000001.sst at offset 0: cannot decode block: checksum (wrong bytes, or a block of another place); restore this file from a replica or a backup
              /db/000002.sst is missing, but the manifest names it; restore it from a replica or a backup
              corruption in /db/wal/0000000001.wal at offset 200: record payload checksum, though the WAL was synced beyond it; restore this file from a replica or a backup
            leftovers (file)
        "#]],
    );
    assert_eq!(problems, 3);

    disk.flip_bit("/db/CURRENT", 20, 0);
    let (problems, text) = verified(&disk);
    check(
        &text,
        &expect![[r#"
            directory: /db
            tables: 1
            table_bytes: 1622
            entries: 0
            wal_records: 0
            wal_torn: -
            problems_found: 3
            problems (problem)
              corruption in /db/CURRENT at offset 0: CURRENT: checksum; restore this file from a replica or a backup
              corruption in /db/000001.sst at offset 0: cannot decode block: checksum (wrong bytes, or a block of another place); restore this file from a replica or a backup
              corruption in /db/wal/0000000001.wal at offset 200: record payload checksum, though the WAL was synced beyond it; restore this file from a replica or a backup
            leftovers (file)
        "#]],
    );
    assert_eq!(problems, 3);
}

/// A directory that is not ours is refused, and not a file is made in it.
#[test]
fn verify_leaves_other_directories_alone() {
    let disk = SimFileSystem::new();
    check(
        &verified(&disk).1,
        &expect![[r#"
        error: /db is not a FerrisDB engine directory: there is no engine in it
    "#]],
    );
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.write_raw("/db/holiday.jpg", b"");
    check(
        &verified(&disk).1,
        &expect![[r#"
        error: /db is not a FerrisDB engine directory: CURRENT is missing, but there is holiday.jpg
    "#]],
    );
    assert_eq!(disk.files().len(), 1);
}

/// Whatever single bit is flipped in whatever file, nothing panics, and verification finds it or the answers are right.
#[test]
fn flipped_bits_are_found_or_harmless() {
    let disk = disk();
    let mut flips = 0;
    for (path, len) in disk.files() {
        let inspection: Inspection = match path.to_str().unwrap() {
            name if name.ends_with(".sst") => sst,
            name if name.ends_with(".wal") => wal,
            name if name.contains("MANIFEST") => manifest,
            _ => dir,
        };
        let step = (len / 60).max(1);
        for offset in (0..len).step_by(usize::try_from(step).unwrap()) {
            let damaged = disk.fork();
            damaged.flip_bit(&path, offset, (offset % 8) as u8);
            let whole = if inspection as usize == dir as Inspection as usize { Path::new(DIR) } else { &path };
            told(|sink| inspection(&damaged, whole, sink));
            let (problems, text) = verified(&damaged);
            flips += 1;
            // The rest are the lock, the options, which are for people, and what lies behind the end of the WAL.
            let must_be_found = path != Path::new("/db/LOCK")
                && path != Path::new("/db/OPTIONS")
                && !path.to_str().unwrap().ends_with(".wal");
            let found = problems > 0 || text.contains("error: ");
            assert!(found || !must_be_found, "{} at {offset}: {text}", path.display());
        }
    }
    assert!(flips > 200, "{flips}");
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
