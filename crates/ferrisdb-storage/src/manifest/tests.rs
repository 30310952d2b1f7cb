//! Bytes, damage and what a directory may hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use expect_test::expect;
use ferrisdb_core::codec::{put_bytes, put_varint};
use ferrisdb_core::{Random, SplitMix64, Version};

use super::disk::{Disk, Loss};
use super::edit::EditError;
use super::frame::{self, FrameError, Header, SECTOR_BYTES};
use super::log::{Found, manifest_file_name, parse_manifest_file_name, read};
use super::*;
use crate::Error;

const DIR: &str = "/db";
const ID: EngineId = EngineId([0xA0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect()
}

/// An edit with every field.
fn full_edit() -> ManifestEdit {
    let meta = TableMeta {
        number: FileNumber(12),
        file_bytes: 4096,
        smallest: (*b"apple").into(),
        largest: (*b"pear").into(),
        largest_exclusive: true,
        smallest_version: v(3),
        largest_version: v(300),
        entries: 50,
        tombstones: 5,
        range_tombstones: 2,
        key_bytes: 500,
        value_bytes: 5000,
        l0_rank: 12,
        blob_references: vec![(FileNumber(10), 1000), (FileNumber(11), 70)],
    };
    ManifestEdit {
        added: vec![(0, meta)],
        removed: vec![(6, FileNumber(9))],
        next_file_number: Some(FileNumber(14)),
        flushed: Some(v(300)),
        wal_start: Some(1 << 33),
        wal_synced: None,
        last_version: Some(v(301)),
        owner: Some((*b"own").into()),
        oldest_readable: Some(v(7)),
        engine_id: Some(ID),
        added_blobs: vec![BlobMeta { number: FileNumber(11), file_bytes: 777 }],
        removed_blobs: vec![FileNumber(8)],
        blob_garbage: vec![(FileNumber(10), 33)],
    }
}

/// A small engine directory: one manifest with three edits after its snapshot.
fn small_engine() -> (Disk, PathBuf) {
    let disk = Disk::new();
    let mut manifest = Manifest::create(Arc::new(disk.clone()), Path::new(DIR), ID).unwrap();
    for step in 1..=3u64 {
        let meta = TableMeta {
            number: FileNumber(step),
            smallest: (*b"a").into(),
            largest: vec![b'b'; 300].into(),
            l0_rank: step,
            ..TableMeta::default()
        };
        let edit = ManifestEdit {
            added: vec![(0, meta)],
            next_file_number: Some(FileNumber(step + 1)),
            ..ManifestEdit::default()
        };
        manifest.apply(&edit).unwrap();
    }
    let path = Path::new(DIR).join(manifest_file_name(manifest.number()));
    (disk, path)
}

/// The bytes of an edit are fixed: every later version must read them. If this fails, the format has changed.
#[test]
fn golden_edit() {
    let bytes = full_edit().encode();
    expect![[r#"
        010221000c8020056170706c65047065
        61720103ac02320502f40388270c020a
        e8070b460402060906010e0802ac020a
        0580808080200c02ad020e036f776e10
        01071210a00102030405060708090a0b
        0c0d0e0f14030b890616010818020a21
    "#]]
    .assert_eq(&hex(&bytes));
    assert_eq!(ManifestEdit::decode(&bytes).unwrap(), full_edit());
    assert_eq!(ManifestEdit::decode(&ManifestEdit::default().encode()).unwrap(), ManifestEdit::default());
}

/// So are those of the files around it.
#[test]
fn golden_files() {
    let header = frame::encode_header(&Header { manifest: 7, engine_id: ID });
    let record = frame::encode_record(7, 512, b"payload");
    expect![[r#"
        4645525249534dfa0100000007000000
        00000000a00102030405060708090a0b
        0c0d0e0f000000000000000000000000
    "#]]
    .assert_eq(&hex(&header[..48]));
    expect![[r#"
        00000000000000000000001c403086a5
    "#]]
    .assert_eq(&hex(&header[496..]));
    expect![[r#"
        ce7daa570700357061796c6f61640000
    "#]]
    .assert_eq(&hex(&record[..16]));
    expect![[r#"
        000000000000000000000000000000a5
    "#]]
    .assert_eq(&hex(&record[496..]));
    let current = current::Current { manifest: 7, engine_id: ID }.encode();
    expect![[r#"
        FERRISDB CURRENT 1
        manifest 000007
        engine a00102030405060708090a0b0c0d0e0f
        crc32c 166aeeb0
    "#]]
    .assert_eq(std::str::from_utf8(&current).unwrap());
}

/// How far the WAL reached comes back from the bytes and from a snapshot, and later edits without it keep it.
#[test]
fn the_end_of_the_wal_is_remembered() {
    let edit = ManifestEdit { wal_synced: Some((7 << 32) | 64), ..ManifestEdit::default() };
    assert_eq!(ManifestEdit::decode(&edit.encode()).unwrap(), edit);
    let mut state = ManifestState::new(ID);
    state.apply(&edit).unwrap();
    state.apply(&ManifestEdit { wal_start: Some(1), ..ManifestEdit::default() }).unwrap();
    assert_eq!(state.snapshot().wal_synced, edit.wal_synced);
}

/// A field with an odd tag is skipped by a reader that does not know it; one with an even tag is refused, as are a newer layout and
/// an unknown flag.
#[test]
fn unknown_fields() {
    let with_field = |tag: u64| {
        let mut bytes = full_edit().encode();
        put_varint(&mut bytes, tag);
        put_bytes(&mut bytes, b"later");
        ManifestEdit::decode(&bytes)
    };
    assert_eq!(with_field(1001), Ok(full_edit()));
    assert_eq!(with_field(1002), Err(EditError::TooNew));
    assert_eq!(with_field(3), Err(EditError::Corrupt("manifest edit: fields out of order")));
    let mut newer = full_edit().encode();
    newer[0] = 2;
    assert_eq!(ManifestEdit::decode(&newer), Err(EditError::TooNew));
    assert_eq!(ManifestEdit::decode(&[]), Err(EditError::Corrupt("manifest edit: layout")));
}

/// A meta that contradicts itself is corruption, not something to work with.
#[test]
fn impossible_metas_are_refused() {
    let refused = |change: &dyn Fn(&mut TableMeta)| {
        let mut edit = full_edit();
        change(&mut edit.added[0].1);
        ManifestEdit::decode(&edit.encode()).unwrap_err()
    };
    assert_eq!(
        refused(&|meta| meta.smallest = meta.largest.clone()),
        EditError::Corrupt("table meta: the largest key lies before the smallest")
    );
    assert_eq!(refused(&|meta| meta.tombstones = 51), EditError::Corrupt("table meta: more tombstones than entries"));
    assert_eq!(
        refused(&|meta| meta.smallest_version = v(301)),
        EditError::Corrupt("table meta: the largest version lies before the smallest")
    );
    assert_eq!(
        refused(&|meta| meta.blob_references.reverse()),
        EditError::Corrupt("table meta: blob references out of order")
    );
    let mut edit = full_edit();
    edit.added[0].0 = 7;
    assert_eq!(ManifestEdit::decode(&edit.encode()), Err(EditError::Corrupt("manifest edit: level out of range")));
}

/// Random and mutated bytes never panic any decoder, and whatever is accepted as an edit has exactly those bytes (unless it holds
/// fields that are skipped).
#[test]
fn decoders_survive_random_and_mutated_bytes() {
    let golden = full_edit().encode();
    let mut file = frame::encode_header(&Header { manifest: 7, engine_id: ID });
    for _ in 0..3 {
        let record = frame::encode_record(7, file.len() as u64, &golden.repeat(4));
        file.extend(record);
    }
    let current = current::Current { manifest: 7, engine_id: ID }.encode();
    for seed in 0..30_000 {
        let mut random = SplitMix64::new(seed);
        let mutate = |random: &mut SplitMix64, golden: &[u8]| {
            let mut bytes = golden.to_vec();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() as u64 + 1) as usize;
                match random.below(4) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, random.next_u64() as u8),
                    2 if at < bytes.len() => drop(bytes.remove(at)),
                    _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                    _ => {}
                }
            }
            bytes
        };
        let bytes = if random.one_in(4) {
            (0..random.below(64)).map(|_| random.next_u64() as u8).collect()
        } else {
            mutate(&mut random, &golden)
        };
        survive::edit(&bytes);
        survive::frames(&mutate(&mut random, &file));
        survive::current(&mutate(&mut random, &current));
    }
}

/// Every single flipped bit in CURRENT and in the manifest is reported as corruption of that file: even in the last record, which a
/// log without sectors would take for a torn tail, and which was acknowledged.
#[test]
fn every_flipped_bit_is_corruption() {
    let (disk, path) = small_engine();
    for path in [path, Path::new(DIR).join("CURRENT")] {
        let bytes = disk.bytes(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            disk.put(&path, &flipped);
            match read(&disk, Path::new(DIR)) {
                Err(Error::Corruption { file, .. }) => assert_eq!(file, path, "bit {bit}"),
                other => panic!("bit {bit} of {}: {other:?}", path.display()),
            }
        }
        disk.put(&path, &bytes);
    }
    assert_eq!(read(&disk, Path::new(DIR)).unwrap().state.tables.len(), 3);
}

/// A missing sector in the last record is a torn tail, in an earlier one corruption; and never does a record appear from a sector
/// of another place or file.
#[test]
fn torn_tails_and_corruption() {
    let (disk, path) = small_engine();
    let bytes = disk.bytes(&path).unwrap();
    let sectors = bytes.len() / SECTOR_BYTES;
    assert_eq!(sectors, 5, "header, snapshot, three edits of a sector each");
    let tables = |bytes: &[u8]| {
        disk.put(&path, bytes);
        read(&disk, Path::new(DIR)).map(|recovered| (recovered.state.tables.len(), recovered.torn))
    };
    let without = |sector: usize| {
        let mut bytes = bytes.clone();
        bytes[sector * SECTOR_BYTES..][..SECTOR_BYTES].fill(0);
        bytes
    };
    assert_eq!(tables(&without(4)).unwrap(), (2, true));
    for sector in 0..4 {
        let error = tables(&without(sector)).unwrap_err();
        assert!(
            matches!(error, Error::Corruption { offset, .. } if offset == sector as u64 * 512),
            "{sector}: {error}"
        );
    }
    // Cut anywhere in the last record; extended with zeros.
    for len in [4 * 512 + 1, 5 * 512 - 1] {
        assert_eq!(tables(&bytes[..len]).unwrap(), (2, true));
    }
    assert_eq!(tables(&bytes[..4 * 512]).unwrap(), (2, false));
    assert_eq!(tables(&[&bytes[..], &[0; 700]].concat()).unwrap(), (3, true));
    assert!(tables(&bytes[..2 * 512 - 1]).unwrap_err().is_corruption(), "a manifest that CURRENT names has a snapshot");
    // The last record again behind itself, and in place of the one before.
    let last = &bytes[4 * 512..];
    assert!(tables(&[&bytes, last].concat()).unwrap_err().is_corruption());
    assert!(tables(&[&bytes[..3 * 512], last].concat()).unwrap_err().is_corruption());
    // A valid record of another manifest.
    let foreign = frame::encode_record(99, 5 * 512, &full_edit().encode());
    assert!(tables(&[bytes, foreign].concat()).unwrap_err().is_corruption());
}

/// A format of the future is told from corruption.
#[test]
fn newer_formats_are_told() {
    let mut header = frame::encode_header(&Header { manifest: 7, engine_id: ID });
    header[8] = 9;
    let checksum = crc_fast::crc32_iscsi(&header[..507]);
    header[507..511].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(frame::decode(&header), Err(FrameError::TooNew(9)));
    let body = "FERRISDB CURRENT 3\nanything\n";
    let text = format!("{body}crc32c {:08x}\n", crc_fast::crc32_iscsi(body.as_bytes()));
    let error = current::Current::decode(Path::new("CURRENT"), text.as_bytes()).unwrap_err();
    assert!(matches!(error, Error::FormatTooNew { found: 3, supported: 1, .. }), "{error}");
}

/// Which directories hold an engine, which are free for one, and which are neither.
#[test]
fn what_a_directory_holds() {
    let (engine, path) = small_engine();
    let dir = Path::new(DIR);
    let find = |disk: &Disk| Manifest::find(disk, dir, &["LOCK"]);
    let refused = |disk: &Disk| match find(disk) {
        Err(Error::NotAnEngine { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(find(&engine).unwrap(), Found::Engine);
    let disk = Disk::new();
    assert_eq!(find(&disk).unwrap(), Found::Nothing);
    disk.put(&dir.join("LOCK"), b"");
    // A creation cut short leaves these; creating goes on.
    disk.put(&dir.join("CURRENT.tmp"), b"half");
    disk.put(&dir.join("MANIFEST-000001"), &[0; 40]);
    assert_eq!(find(&disk).unwrap(), Found::Nothing);
    let manifest = Manifest::create(Arc::new(disk.clone()), dir, ID).unwrap();
    assert_eq!(manifest.number(), 2, "a number above every name in the directory");
    assert!(disk.bytes(&dir.join("MANIFEST-000001")).is_none() && disk.bytes(&dir.join("CURRENT.tmp")).is_none());
    // CURRENT lost, with data or the description of data left.
    disk.delete(&dir.join("CURRENT"));
    disk.put(&dir.join("000005.sst"), b"table");
    expect!["CURRENT is missing, but there is 000005.sst"].assert_eq(&refused(&disk));
    engine.delete(&dir.join("CURRENT"));
    expect!["CURRENT is missing, but MANIFEST-000001 describes an engine with data"].assert_eq(&refused(&engine));
    let bytes = engine.bytes(&path).unwrap();
    // CURRENT empty; naming a manifest that is not there; naming that of another engine.
    let (disk, path) = small_engine();
    disk.put(&dir.join("CURRENT"), b"");
    expect!["corruption in /db/CURRENT at offset 0: CURRENT: the file is empty; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"].assert_eq(&read(&disk, dir).unwrap_err().to_string());
    let (disk, _) = small_engine();
    disk.delete(&path);
    expect!["/db/MANIFEST-000001 is missing, though it is needed; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"]
        .assert_eq(&read(&disk, dir).unwrap_err().to_string());
    disk.put(&path, &bytes);
    disk.put(&dir.join("CURRENT"), &current::Current { manifest: 1, engine_id: EngineId([1; 16]) }.encode());
    expect!["corruption in /db/MANIFEST-000001 at offset 20: manifest header: of another engine than CURRENT says; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"].assert_eq(&read(&disk, dir).unwrap_err().to_string());
    // A manifest under another one's name.
    disk.put(&dir.join("MANIFEST-000042"), &bytes);
    disk.put(&dir.join("CURRENT"), &current::Current { manifest: 42, engine_id: ID }.encode());
    expect!["corruption in /db/MANIFEST-000042 at offset 12: manifest header: of another manifest; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"].assert_eq(&read(&disk, dir).unwrap_err().to_string());
}

/// Reading and looking change nothing on the disk.
#[test]
fn reading_modifies_nothing() {
    let (disk, _) = small_engine();
    let before = disk.modifications();
    read(&disk, Path::new(DIR)).unwrap();
    Manifest::find(&disk, Path::new(DIR), &[]).unwrap();
    assert_eq!(disk.modifications(), before);
}

/// After a failed sync the process may read back bytes that are in memory only. Opening writes them anew before anyone acts on them.
#[test]
fn opening_makes_durable_what_it_read() {
    let (disk, path) = small_engine();
    // The last record is in the page cache, and not on the disk.
    let torn = disk.bytes(&path).unwrap()[..4 * 512].to_vec();
    let whole = disk.bytes(&path).unwrap();
    let disk = disk.after_crash(Loss::Nothing);
    disk.put(&path, &torn);
    let fs: Arc<dyn crate::fs::FileSystem> = Arc::new(disk.clone());
    let file = fs.open(&path, crate::fs::OpenMode::ReadWrite).unwrap();
    crate::fs::write_all_at(&*file, &whole[4 * 512..], 4 * 512).unwrap();
    let manifest = Manifest::open(fs, Path::new(DIR)).unwrap();
    assert!(manifest.is_settled());
    assert_eq!(manifest.state().tables.len(), 3);
    let after = disk.after_crash(Loss::Everything);
    assert_eq!(read(&after, Path::new(DIR)).unwrap().state, *manifest.state());
}

/// Edits that do not fit the state before them are refused.
#[test]
fn edits_that_do_not_fit() {
    let (disk, _) = small_engine();
    let state = read(&disk, Path::new(DIR)).unwrap().state;
    let refused = |edit: ManifestEdit| state.clone().apply(&edit).unwrap_err();
    let meta = |number| TableMeta { number: FileNumber(number), ..TableMeta::default() };
    let edit = ManifestEdit::default;
    assert_eq!(
        refused(ManifestEdit { removed: vec![(1, FileNumber(1))], ..edit() }),
        "manifest edit: removes a table that is not in its level"
    );
    assert_eq!(
        refused(ManifestEdit { added: vec![(1, meta(1))], ..edit() }),
        "manifest edit: adds a table that is already there"
    );
    assert_eq!(
        refused(ManifestEdit { added: vec![(1, meta(4))], ..edit() }),
        "manifest edit: adds a table whose number is not below the next file number"
    );
    assert_eq!(
        refused(ManifestEdit { next_file_number: Some(FileNumber(1)), ..edit() }),
        "manifest edit: the next file number goes back"
    );
    assert_eq!(
        refused(ManifestEdit { removed_blobs: vec![FileNumber(1)], ..edit() }),
        "manifest edit: removes a blob file that is not there"
    );
    assert_eq!(
        refused(ManifestEdit { engine_id: Some(EngineId([9; 16])), ..edit() }),
        "manifest edit: of another engine"
    );
    let mut dangling = state.clone();
    let blob = TableMeta {
        number: FileNumber(3),
        blob_references: vec![(FileNumber(2), 1)],
        l0_rank: 3,
        ..TableMeta::default()
    };
    dangling.apply(&ManifestEdit { removed: vec![(0, FileNumber(3))], added: vec![(6, blob)], ..edit() }).unwrap();
    assert_eq!(dangling.problem().unwrap(), "table 000003 refers to blob file 000002, which is not there");
}

/// A snapshot is the state.
#[test]
fn a_snapshot_makes_the_same_state() {
    let mut state = ManifestState::new(ID);
    let before = ManifestEdit {
        added: vec![(6, TableMeta { number: FileNumber(9), ..TableMeta::default() })],
        next_file_number: Some(FileNumber(12)),
        added_blobs: vec![FileNumber(8), FileNumber(10)]
            .into_iter()
            .map(|number| BlobMeta { number, file_bytes: 5 })
            .collect(),
        ..ManifestEdit::default()
    };
    state.apply(&before).unwrap();
    state.apply(&full_edit()).unwrap();
    state.check();
    let mut again = ManifestState::new(ID);
    again.apply(&ManifestEdit::decode(&state.snapshot().encode()).unwrap()).unwrap();
    assert_eq!(again, state);
}

/// Names have one form.
#[test]
fn manifest_names() {
    assert_eq!(manifest_file_name(7), "MANIFEST-000007");
    assert_eq!(parse_manifest_file_name("MANIFEST-1234567"), Some(1_234_567));
    for name in ["MANIFEST-7", "MANIFEST-0000007", "MANIFEST-+00007", "MANIFEST-", "CURRENT"] {
        assert_eq!(parse_manifest_file_name(name), None, "{name}");
    }
}
