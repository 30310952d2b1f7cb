//! What a verification finds, and what it leaves alone.

use super::*;

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
              L0: corruption in /db/000001.sst at offset 0: cannot decode block: checksum (wrong bytes, or a block of another place); restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
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
              corruption in /db/000001.sst at offset 0: cannot decode block: checksum (wrong bytes, or a block of another place); restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
              /db/000002.sst is missing, though it is needed; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
              corruption in /db/wal/0000000001.wal at offset 200: record payload checksum, though the WAL was synced beyond it; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
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
              corruption in /db/CURRENT at offset 0: CURRENT: checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
              corruption in /db/000001.sst at offset 0: cannot decode block: checksum (wrong bytes, or a block of another place); restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
              corruption in /db/wal/0000000001.wal at offset 200: record payload checksum, though the WAL was synced beyond it; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
            leftovers (file)
        "#]],
    );
    assert_eq!(problems, 3);
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
