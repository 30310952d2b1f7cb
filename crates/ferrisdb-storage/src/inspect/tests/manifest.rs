//! Manifests, whole and damaged.

use super::*;

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
            error: corruption in /db/MANIFEST-000001 at offset 2048: manifest sector checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
        "#]],
    );
    disk.flip_bit(&path, 30, 0);
    check(
        &inspected(&disk, manifest, &path),
        &expect![[r#"
            file: /db/MANIFEST-000001
            file_bytes: 2560
            error: corruption in /db/MANIFEST-000001 at offset 0: manifest header: checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
        "#]],
    );
}
