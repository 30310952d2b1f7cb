//! Bytes of a segment: golden, mutated, damaged.

use super::*;

/// The bytes of format version 1. If this fails, old logs can no longer be read: raise the version.
#[test]
fn golden_bytes() {
    let fs = TestFs::new();
    let (wal, _) = open_with(&fs, WalOptions { identity: 0x1122_3344_5566_7788, ..options() }).unwrap();
    append(&wal, "one");
    wal.sync().unwrap();
    wal.append(&[b"two", b"", b"parts"]).unwrap();
    wal.try_begin_sync().unwrap().unwrap().sync_and_mark().unwrap();
    let claim = wal.try_begin_sync().unwrap().unwrap();
    wal.truncate_from(claim, WalPosition::new(1, 96)).unwrap();
    append(&wal, "x");
    expect![[r#"
        46 45 52 52 49 53 57 a5 01 00 00 00 00 00 00 00
        88 77 66 55 44 33 22 11 01 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 eb 2e 87 f5
    "#]]
    .assert_eq(&hex(&fs.bytes(FIRST)[..64]));
    expect![[r#"
        55 d9 86 81 e9 b2 94 2a 03 00 00 00 00 00 01 00
        40 00 00 00 01 00 00 00 6f 6e 65 00 00 00 00 00
        12 58 f6 33 d2 e9 44 1d 08 00 00 00 00 00 01 00
        60 00 00 00 01 00 00 00 74 77 6f 70 61 72 74 73
        22 e4 20 5c 00 00 00 00 00 00 00 00 00 00 02 00
        80 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00
    "#]]
    .assert_eq(&hex(&fs.bytes(FIRST)[64..168]));
    expect![[r#"
        46 45 52 52 49 53 57 a5 01 00 00 00 00 00 00 00
        88 77 66 55 44 33 22 11 02 00 00 00 01 00 00 00
        60 00 00 00 00 00 00 00 98 00 00 00 01 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 37 ff a3 69
        07 04 35 5c 93 5f 3c a9 01 00 00 00 00 00 01 00
        40 00 00 00 02 00 00 00 78 00 00 00 00 00 00 00
    "#]]
    .assert_eq(&hex(&fs.bytes("0000000002.wal")[..96]));
}

/// Random and mutated bytes never make a decoder panic, and a mutated header is never accepted.
#[test]
fn decoders_survive_random_and_mutated_headers() {
    let mut random = SplitMix64::new(11);
    let place = Place { identity: 3, segment: 9 };
    let synced = WalPosition::new(8, 64);
    let segment =
        SegmentHeader { identity: 3, number: 9, previous_end: WalPosition::new(8, 640), synced }.encode().to_vec();
    let record = RecordHeader { kind: RecordKind::Record, generation: 1, payload_len: 5, payload_crc: 77, synced }
        .encode(place, 128)
        .to_vec();
    assert!(SegmentHeader::decode(&segment).is_ok() && RecordHeader::decode(&record, place, 128).is_some());
    assert!(RecordHeader::decode(&record, place, 136).is_none(), "at another offset");
    assert!(RecordHeader::decode(&record, Place { identity: 3, segment: 10 }, 128).is_none(), "in another segment");
    assert!(RecordHeader::decode(&record, Place { identity: 4, segment: 9 }, 128).is_none(), "in another WAL");
    for _ in 0..20_000 {
        let mut bytes = if random.one_in(2) { segment.clone() } else { record.clone() };
        let original = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        bytes.truncate(random.below(bytes.len() as u64 + 20) as usize);
        if bytes != original {
            assert!(SegmentHeader::decode(&bytes).is_err());
            assert!(RecordHeader::decode(&bytes, place, 128).is_none());
        }
        let noise: Vec<u8> = (0..random.below(80)).map(|_| random.next_u64() as u8).collect();
        assert!(SegmentHeader::decode(&noise).is_err() && RecordHeader::decode(&noise, place, 128).is_none());
    }
}

/// A log of two segments whose first group is synced, for damage.
fn damaged_log() -> (TestFs, Vec<String>, usize) {
    let fs = TestFs::new();
    let (wal, _) = open_with(&fs, WalOptions { segment_bytes: 1024, ..options() }).unwrap();
    let mut records = Vec::new();
    let mut synced = 0;
    for index in 0..16 {
        let text = format!("record {index} {}", "x".repeat(30 + index));
        append(&wal, &text);
        records.push(text);
        // The last sync that a later record knows of is the one after record 11.
        if index % 4 == 3 {
            wal.sync().unwrap();
        }
        if index % 4 == 0 {
            synced = index;
        }
    }
    (fs, records, synced)
}

/// Any single flipped bit: the log up to a place that was not known synced, or corruption; and corruption changes nothing.
#[test]
fn a_flipped_bit_gives_the_right_answer_or_corruption() {
    let (fs, records, synced) = damaged_log();
    let files: Vec<String> = fs.names();
    let (mut corruptions, mut torn) = (0, 0);
    for name in &files {
        for at in 0..fs.bytes(name).len() {
            let damaged = TestFs::on(fs.disk().crash(Crash::KeepAll));
            damaged.edit(name, |bytes| bytes[at] ^= 1 << (at % 8));
            let options = WalOptions { segment_bytes: 1024, ..options() };
            let before: Vec<Vec<u8>> = files.iter().map(|name| damaged.bytes(name)).collect();
            match open_with(&damaged, options.clone()) {
                Ok((wal, recovery)) => {
                    torn += usize::from(recovery.torn.is_some());
                    match contents(&wal) {
                        Ok(found) => {
                            assert!(records.starts_with(&found), "{name} {at}");
                            assert!(found.len() >= synced, "{name} {at}: {} of {synced} known synced", found.len());
                        }
                        Err(error) => assert!(error.is_corruption(), "{name} {at}: {error}"),
                    }
                }
                Err(error) => {
                    assert!(error.is_corruption(), "{name} {at}: {error}");
                    let after: Vec<Vec<u8>> = files.iter().map(|name| damaged.bytes(name)).collect();
                    assert!(before == after && damaged.changes() == 0, "{name} {at}: nothing is cut");
                    corruptions += 1;
                }
            }
        }
    }
    assert!(corruptions > 500 && torn > 100, "{corruptions} corruptions, {torn} torn tails");
}

/// Whole logs, cut, zeroed, overwritten with noise or with parts of themselves: no panic, and whatever is read without an
/// error is a prefix.
#[test]
fn recovery_survives_mutated_logs() {
    let (fs, records, _) = damaged_log();
    let files = fs.names();
    let mut random = SplitMix64::new(5);
    for round in 0..20_000 {
        let damaged = TestFs::on(fs.disk());
        for _ in 0..=random.below(2) {
            let name = &files[random.below(files.len() as u64) as usize];
            damaged.edit(name, |bytes| {
                let at = random.below(bytes.len() as u64) as usize;
                let len = (random.below(600) as usize).min(bytes.len() - at);
                let from = random.below((bytes.len() - len) as u64 + 1) as usize;
                match random.below(4) {
                    0 => bytes[at..at + len].fill(0),
                    1 => bytes[at..at + len].iter_mut().for_each(|byte| *byte = random.next_u64() as u8),
                    2 => bytes.copy_within(from..from + len, at),
                    _ => bytes.truncate(at.max(1)),
                }
            });
        }
        let read_only = Wal::read_only(damaged.arc(), Path::new(DIR), &options());
        let Ok((mut reader, _)) = read_only else { continue };
        let mut found = Vec::new();
        while let Ok(Some(record)) = reader.next() {
            found.push(String::from_utf8(record.payload.to_vec()).unwrap());
        }
        assert!(records.starts_with(&found), "round {round}");
    }
}
