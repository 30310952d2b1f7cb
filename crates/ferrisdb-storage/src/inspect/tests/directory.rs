//! Directories: their files, whole and damaged.

use super::*;

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
            error: corruption in /db/000001.sst at offset 100: the file has 100 bytes, but the manifest says 1622; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
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
            error: corruption in /db/CURRENT at offset 0: CURRENT: checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
        "#]],
    );
    check(
        &inspected(&disk, dir, "/db/nowhere"),
        &expect![[r#"
        error: list /db/nowhere failed: No such file or directory (os error 2)
    "#]],
    );
}
