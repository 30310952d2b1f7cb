//! The bytes of a small table, readable: a change here is a change of the format.

use super::*;
use expect_test::expect;
use std::fmt::Write;

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (row, line) in bytes.chunks(16).enumerate() {
        let codes: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            line.iter().map(|&byte| if (32..127).contains(&byte) { byte as char } else { '.' }).collect();
        writeln!(out, "{:04x}  {:47}  {text}", row * 16, codes.join(" ")).unwrap();
    }
    out
}

fn golden_model() -> Model {
    let entry = |key: &str, version, kind, value: &str| {
        ((key.as_bytes().to_vec(), std::cmp::Reverse(version)), (kind, value.as_bytes().to_vec()))
    };
    Model::from([
        entry("crab/claws", 9, ValueKind::Value, "two"),
        entry("crab/claws", 5, ValueKind::Tombstone, ""),
        entry("crab/eyes", 6, ValueKind::Value, "on stalks"),
        entry("crab/legs", 300, ValueKind::Value, "eight, and claws"),
        entry("crab/shell, with a name so long that it needs two lengths", 7, ValueKind::BlobPointer, "pointer"),
    ])
}

/// A whole uncompressed table, byte by byte: one data block, index, filter, range tombstones, properties, footer.
#[test]
fn golden_table() {
    let fs = MemoryFs::default();
    let options = TableOptions { restart_interval: 2, compression: Compression::None, ..TableOptions::DEFAULT };
    let tombstones = FragmentList::new([(&b"crab/a"[..], &b"crab/f"[..], v(4)), (b"crab/d", b"crab/z", v(8))]);
    let summary = build(&fs, 7, &options, &golden_model(), &tombstones);
    let bytes = fs.file(&path(7)).bytes.lock().unwrap().clone();
    expect![[r#"
        0000  05 03 05 05 52 02 63 72 61 62 2f 77 61 6c 63 73  ....R.crab/walcs
        0010  65 79 65 6c 65 68 73 00 00 0b 00 1a 00 00 00 03  eyelehs.........
        0020  00 1c 00 05 11 03 63 6c 61 77 73 50 00 00 04 05  ......clawsP....
        0030  09 65 79 65 73 04 9d 09 10 6c 65 67 73 0f 25 0a  .eyes....legs.%.
        0040  07 73 68 65 6c 6c 2c 20 77 69 74 68 20 61 20 6e  .shell, with a n
        0050  61 6d 65 20 73 6f 20 6c 6f 6e 67 20 74 68 61 74  ame so long that
        0060  20 69 74 20 6e 65 65 64 73 20 74 77 6f 20 6c 65   it needs two le
        0070  6e 67 74 68 73 74 77 6f 6f 6e 20 73 74 61 6c 6b  ngthstwoon stalk
        0080  73 65 69 67 68 74 2c 20 61 6e 64 20 63 6c 61 77  seight, and claw
        0090  73 70 6f 69 6e 74 65 72 00 3f eb 8c 15 65 c9 fc  spointer.?...e..
        00a0  f3 01 00 00 39 63 72 61 62 2f 73 68 65 6c 6c 2c  ....9crab/shell,
        00b0  20 77 69 74 68 20 61 20 6e 61 6d 65 20 73 6f 20   with a name so 
        00c0  6c 6f 6e 67 20 74 68 61 74 20 69 74 20 6e 65 65  long that it nee
        00d0  64 73 20 74 77 6f 20 6c 65 6e 67 74 68 73 00 a1  ds two lengths..
        00e0  01 00 1a 3b b7 34 0d 79 d7 f6 06 00 00 00 00 00  ...;.4.y........
        00f0  00 40 00 00 00 01 04 00 10 00 00 00 00 08 02 00  .@..............
        0100  00 10 00 00 08 02 01 01 20 08 20 20 20 00 00 00  ........ .   ...
        0110  00 82 00 01 00 40 00 00 00 00 10 00 00 02 00 80  .....@..........
        0120  00 00 20 00 00 00 00 00 00 00 00 00 93 15 df c0  .. .............
        0130  87 f7 e2 6c 03 06 63 72 61 62 2f 61 06 63 72 61  ...l..crab/a.cra
        0140  62 2f 64 01 04 06 63 72 61 62 2f 64 06 63 72 61  b/d...crab/d.cra
        0150  62 2f 66 02 08 04 06 63 72 61 62 2f 66 06 63 72  b/f....crab/f.cr
        0160  61 62 2f 7a 01 08 00 5f 79 79 7f 3b 46 3e 32 01  ab/z..._yy.;F>2.
        0170  01 05 02 01 01 03 01 01 04 01 03 05 01 04 06 01  ................
        0180  5f 07 01 23 08 01 01 09 02 a1 01 0a 01 04 0b 02  _..#............
        0190  ac 02 0c 0a 63 72 61 62 2f 63 6c 61 77 73 0d 39  ....crab/claws.9
        01a0  63 72 61 62 2f 73 68 65 6c 6c 2c 20 77 69 74 68  crab/shell, with
        01b0  20 61 20 6e 61 6d 65 20 73 6f 20 6c 6f 6e 67 20   a name so long 
        01c0  74 68 61 74 20 69 74 20 6e 65 65 64 73 20 74 77  that it needs tw
        01d0  6f 20 6c 65 6e 67 74 68 73 0e 0e 66 65 72 72 69  o lengths..ferri
        01e0  73 64 62 20 30 2e 30 2e 30 00 4d 7a b5 ef b7 db  sdb 0.0.0.Mz....
        01f0  e0 ad 07 00 00 00 00 00 00 00 a1 00 00 00 00 00  ................
        0200  00 00 a1 00 00 00 00 00 00 00 49 00 00 00 00 00  ..........I.....
        0210  00 00 ea 00 00 00 00 00 00 00 4a 00 00 00 00 00  ..........J.....
        0220  00 00 34 01 00 00 00 00 00 00 3b 00 00 00 00 00  ..4.......;.....
        0230  00 00 6f 01 00 00 00 00 00 00 83 00 00 00 00 00  ..o.............
        0240  00 00 01 00 00 00 00 00 00 00 70 00 00 00 01 00  ..........p.....
        0250  00 00 f9 2c ff 0f b1 08 1c ce 89 46 45 52 52 49  ...,.......FERRI
        0260  53 54                                            ST
    "#]]
    .assert_eq(&hex(&bytes));
    let reader = open(&fs, &summary);
    reader.verify().unwrap();
    let without_keys =
        Properties { first_user_key: Vec::new(), last_user_key: Vec::new(), ..reader.properties().clone() };
    let mut shown = format!("{without_keys:#?}\n");
    let mut entries = String::new();
    reader
        .inspect(
            |block| {
                let separator = String::from_utf8_lossy(&block.separator.0);
                writeln!(shown, "{:?} {} {} up to {separator}", block.handle, block.compression, block.raw_bytes)
                    .unwrap();
                Ok(())
            },
            |entry| {
                let (key, value) = (String::from_utf8_lossy(entry.key.user_key), String::from_utf8_lossy(entry.value));
                writeln!(entries, "{key} @{} {:?} {value:?}", entry.key.trailer.version(), entry.key.trailer.kind())
                    .unwrap();
                Ok(())
            },
        )
        .unwrap();
    expect![[r#"
        Properties {
            entries: 5,
            tombstones: 1,
            blob_pointers: 1,
            range_tombstones: 3,
            user_keys: 4,
            raw_key_bytes: 95,
            raw_value_bytes: 35,
            data_blocks: 1,
            data_bytes: 161,
            smallest_version: v4,
            largest_version: v300,
            first_user_key: [],
            last_user_key: [],
            created_by: "ferrisdb 0.0.0",
        }
        BlockHandle { offset: 0, len: 161 } none 152 up to crab/shell, with a name so long that it needs two lengths
        crab/claws @9 Some(Value) "two"
        crab/claws @5 Some(Tombstone) ""
        crab/eyes @6 Some(Value) "on stalks"
        crab/legs @300 Some(Value) "eight, and claws"
        crab/shell, with a name so long that it needs two lengths @7 Some(BlobPointer) "pointer"
    "#]]
    .assert_eq(&(shown + &entries));
}

/// Tables with every option that changes bytes, by the hash of the file: compressed, partitioned, many blocks. Another rule for where blocks end, or
/// another choice of the compressor, changes hashes and no format; the golden directories show that what was written before is read.
#[test]
fn golden_hashes() {
    let mut report = String::new();
    let model = small_model();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd { level: 3 }] {
        for (name, index_flat_bytes_max) in [("flat", usize::MAX), ("partitioned", 0)] {
            let fs = MemoryFs::default();
            let options =
                TableOptions { compression, index_flat_bytes_max, index_partition_bytes: 16, ..small_options() };
            let summary = build(&fs, 1, &options, &model, &small_tombstones());
            assert_eq!(open(&fs, &summary).is_partitioned(), name == "partitioned");
            let hash = filter::hash(&fs.file(&path(1)).bytes.lock().unwrap());
            writeln!(report, "{compression:?} {name}: {} bytes, {hash:016x}", summary.file_bytes).unwrap();
        }
    }
    expect![[r#"
        None flat: 1991 bytes, 0e4855e768a3c57f
        None partitioned: 2031 bytes, 94de8a26c9fcf2ed
        Lz4 flat: 1186 bytes, 4bd600354ad33bf1
        Lz4 partitioned: 1226 bytes, 8f7572fd562c9bb9
        Zstd { level: 3 } flat: 992 bytes, 04a53c56e73ac5ca
        Zstd { level: 3 } partitioned: 1032 bytes, 2784f7bfaa7c1ae0
    "#]]
    .assert_eq(&report);
}
