//! Blob files, whole and damaged.

use super::*;

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
            "error: corruption in /db/000077.blob at offset 0: this is blob file 1, not 000077: the file was put in its place; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"
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
            error: corruption in /db/000001.blob at offset 48: cannot decode block: checksum (wrong bytes, or a block of another place); restore the database from a backup; in a cluster the other processes replace what one has lost, see its status
        "#]],
    );
    disk.flip_bit(&path, 20, 1);
    check(
        inspected(&disk, blob, &path).lines().last().unwrap(),
        &expect![
            "error: corruption in /db/000001.blob at offset 0: blob file header: checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"
        ],
    );
}
