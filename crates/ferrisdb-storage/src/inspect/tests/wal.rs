//! Segments of the WAL, whole and damaged.

use super::*;

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
        error: corruption in /db/wal/0000000001.wal at offset 200: a record is damaged or missing here, though the WAL was synced up to 1:2888; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
    "#]],
    );
    disk.flip_bit(&path, 20, 0);
    check(
        &inspected(&disk, wal, &path),
        &expect![[r#"
        file: /db/wal/0000000001.wal
        file_bytes: 16384
        error: corruption in /db/wal/0000000001.wal at offset 0: segment header checksum, or an unused segment; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
    "#]],
    );
}
