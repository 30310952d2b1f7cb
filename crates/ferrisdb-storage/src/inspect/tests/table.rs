//! Tables, whole and damaged.

use super::*;

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
            error: corruption in /db/000001.sst at offset 547: cannot decode block: checksum (wrong bytes, or a block of another place); restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
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
            error: corruption in /db/000001.sst at offset 1329: cannot decode block: checksum (wrong bytes, or a block of another place); restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
        "#]],
    );
    disk.flip_bit(path, disk.read_raw(path).unwrap().len() as u64 - 60, 0);
    check(
        &inspected(&disk, sst, path),
        &expect![[r#"
            file: /db/000001.sst
            file_bytes: 1622
            error: corruption in /db/000001.sst at offset 1510: footer: checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
        "#]],
    );

    let whole = self::disk();
    let other = files::table_path(Path::new(DIR), FileNumber(77));
    whole.write_raw(&other, &whole.read_raw(path).unwrap());
    let text = inspected(&whole, sst, &other);
    check(
        text.lines().last().unwrap(),
        &expect![
            "error: corruption in /db/000077.sst at offset 1622: this is table 1, not table 000077: the file was put in its place; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"
        ],
    );
}
