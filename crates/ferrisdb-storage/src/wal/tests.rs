//! What the WAL promises, one scenario at a time; `crash_tests` has the exhaustive loops.

#![expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};

use expect_test::expect;
use ferrisdb_core::{Random, SplitMix64};

use super::format::{Place, RecordHeader, SEGMENT_HEADER_LEN};
use super::testfs::{Crash, TestFs};
use super::*;
use crate::error::{Error, Result};

const DIR: &str = "/wal";
const FIRST: &str = "0000000001.wal";

fn options() -> WalOptions {
    WalOptions { segment_bytes: 4096, recycle_max: 2, reserve_bytes: 512, fill: false, ..WalOptions::default() }
}

fn open(fs: &TestFs) -> Wal {
    open_with(fs, options()).unwrap().0
}

fn open_with(fs: &TestFs, options: WalOptions) -> Result<(Wal, Recovery)> {
    Wal::open(fs.arc(), Path::new(DIR), options)
}

fn append(wal: &Wal, text: &str) -> WalPosition {
    wal.append(&[text.as_bytes()]).unwrap()
}

/// Records until the reader has no more, as text.
fn drain(reader: &mut WalReader) -> Result<Vec<String>> {
    let mut records = Vec::new();
    while let Some(record) = reader.next()? {
        records.push(String::from_utf8(record.payload.to_vec()).unwrap());
    }
    Ok(records)
}

fn contents(wal: &Wal) -> Result<Vec<String>> {
    drain(&mut wal.subscribe(wal.first_position(), ReadUpTo::Appended)?)
}

/// A waker that counts.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn counter() -> (Arc<Counter>, Waker) {
    let counter = Arc::new(Counter::default());
    (Arc::clone(&counter), Waker::from(counter))
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") + "\n";
    bytes.chunks(16).map(line).collect()
}

// ---- format ----

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

// ---- recovery ----

/// Zeros in the middle of what is known synced, as a lost sector leaves them, are corruption and not the end of the log.
#[test]
fn zeros_in_the_middle_are_corruption() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "one");
    let two = append(&wal, "two");
    wal.sync().unwrap();
    append(&wal, "three");
    fs.edit(FIRST, |bytes| bytes[two.offset() as usize..][..24].fill(0));
    let error = open_with(&fs, options()).unwrap_err();
    assert!(matches!(&error, Error::Corruption { offset, .. } if *offset == u64::from(two.offset())), "{error}");
}

/// The same bytes without a later record that knows of the sync: a torn tail, cut; the good record behind it is discarded.
#[test]
fn a_hole_in_what_was_not_synced_is_a_torn_tail() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "one");
    let two = append(&wal, "two");
    append(&wal, "three");
    fs.edit(FIRST, |bytes| bytes[two.offset() as usize + 24] ^= 1);
    let (wal, recovery) = open_with(&fs, options()).unwrap();
    let torn = recovery.torn.unwrap();
    assert_eq!((torn.offset, torn.headers_discarded, torn.what), (two.offset(), 2, "record payload checksum"));
    assert_eq!(contents(&wal).unwrap(), ["one"]);
    // As long as "two", so that "three" would join on.
    append(&wal, "TWO");
    drop(wal);
    assert_eq!(contents(&open(&fs)).unwrap(), ["one", "TWO"]);
}

/// A cut is final: a record that could not be read when the log was opened does not come back when it can be read again.
#[test]
fn a_cut_record_does_not_come_back() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "one");
    let two = append(&wal, "two");
    drop(wal);
    let flip = |bytes: &mut Vec<u8>| bytes[two.offset() as usize + 24] ^= 1;
    fs.edit(FIRST, flip);
    assert_eq!(contents(&open(&fs)).unwrap(), ["one"]);
    fs.edit(FIRST, flip);
    assert_eq!(contents(&open(&fs)).unwrap(), ["one"]);
}

/// After a mark, damage to the very last record is recognised too.
#[test]
fn a_mark_protects_the_last_record() {
    for mark in [false, true] {
        let fs = TestFs::new();
        let wal = open(&fs);
        let one = append(&wal, "one");
        let claim = wal.try_begin_sync().unwrap().unwrap();
        if mark { claim.sync_and_mark() } else { claim.sync() }.unwrap();
        fs.edit(FIRST, |bytes| bytes[one.offset() as usize + 25] ^= 1);
        assert_eq!(open_with(&fs, options()).map_err(|error| error.is_corruption()).err(), mark.then_some(true));
    }
}

/// A file that should be there and is not, one of another WAL, and one of a later format are told apart and named.
#[test]
fn missing_foreign_and_newer_segments_are_errors() {
    let fill = |wal: &Wal| {
        for _ in 0..12 {
            wal.append(&[&[7; 1000]]).unwrap();
            wal.sync().unwrap();
        }
    };
    let fs = TestFs::new();
    let wal = open(&fs);
    fill(&wal);
    let disk = fs.disk();

    let fs = TestFs::on(disk.clone());
    fs.remove_behind_everyones_back("0000000002.wal");
    let error = open_with(&fs, options()).unwrap_err();
    assert!(matches!(&error, Error::MissingFile { file } if file.ends_with("0000000002.wal")), "{error}");

    let fs = TestFs::on(disk.clone());
    fs.remove_behind_everyones_back(FIRST);
    assert!(open_with(&fs, options()).is_ok(), "it may have been purged, for all that the WAL knows");
    let required_from = WalPosition::new(1, 64);
    let error = open_with(&fs, WalOptions { required_from, ..options() }).unwrap_err();
    assert!(matches!(&error, Error::MissingFile { file } if file.ends_with(FIRST)), "{error}");
    let required_from = WalPosition::new(9, 64);
    assert!(matches!(open_with(&fs, WalOptions { required_from, ..options() }), Err(Error::MissingFile { .. })));

    let fs = TestFs::on(disk.clone());
    fs.edit("0000000002.wal", |bytes| bytes[..64].fill(0));
    let error = open_with(&fs, options()).unwrap_err();
    assert!(matches!(&error, Error::Corruption { file, offset: 0, .. } if file.ends_with("0000000002.wal")), "{error}");

    // The head, whose header only its own records speak for.
    let fs = TestFs::on(disk.clone());
    fs.edit("0000000004.wal", |bytes| bytes[..64].fill(0));
    let error = open_with(&fs, options()).unwrap_err();
    assert!(matches!(&error, Error::Corruption { file, offset: 0, .. } if file.ends_with("0000000004.wal")), "{error}");

    let fs = TestFs::on(disk.clone());
    let error = open_with(&fs, WalOptions { identity: 5, ..options() }).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("belongs to WAL 0x0, not 0x5"), "{error}");

    let fs = TestFs::on(disk);
    fs.edit("0000000003.wal", |bytes| {
        bytes[8] = 2;
        let crc = crc_fast::crc32_iscsi(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
    });
    assert!(matches!(open_with(&fs, options()), Err(Error::FormatTooNew { found: 2, supported: 1, .. })));
}

/// The owner stored the end of the log as the place to replay from, having made the records durable elsewhere, and a crash took the
/// records: new ones must not lie below that place, or the next replay would pass them over.
#[test]
fn new_records_never_lie_below_the_position_that_is_replayed_from() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "synced");
    wal.sync().unwrap();
    append(&wal, "lost");
    let required_from = wal.last_position();
    drop(wal);
    let fs = TestFs::on(fs.disk().crash(Crash::LoseAll));
    let replay = |fs: &TestFs| {
        let (wal, recovery) = open_with(fs, WalOptions { required_from, ..options() }).unwrap();
        let records = drain(&mut wal.subscribe(recovery.replay_from, ReadUpTo::Appended).unwrap()).unwrap();
        (wal, records)
    };
    let (wal, records) = replay(&fs);
    assert_eq!(records, Vec::<String>::new());
    assert!(append(&wal, "new") >= required_from);
    wal.sync().unwrap();
    drop(wal);
    let (wal, records) = replay(&fs);
    assert_eq!(records, ["new"]);
    append(&wal, "newer");
    wal.purge(required_from).unwrap();
    drop(wal);
    assert_eq!(replay(&fs).1, ["new", "newer"], "the end of a purged segment means the next one");
}

/// A read error is not a torn tail.
#[test]
fn a_read_error_at_open_is_an_error() {
    let fs = TestFs::new();
    append(&open(&fs), "one");
    for skip in 0..20 {
        let mut reads = 0;
        fs.fail(move |op, _| {
            reads += usize::from(op == "read");
            (op == "read" && reads == skip + 1).then_some(ErrorKind::Other)
        });
        let before = fs.changes();
        match open_with(&fs, options()) {
            Ok(_) => {
                assert!(skip > 3, "the first reads decide");
                return;
            }
            Err(error) => assert!(matches!(error, Error::Io { op: "read", .. }), "{error}"),
        }
        assert!(fs.changes() == before || skip > 3);
    }
    panic!("opening reads less often than that");
}

/// Opening for reading sees what opening would recover and changes nothing.
#[test]
fn read_only_changes_nothing() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "one");
    wal.sync().unwrap();
    let two = append(&wal, "two");
    fs.edit(FIRST, |bytes| bytes[two.offset() as usize + 24] ^= 1);
    let (changes, before) = (fs.changes(), fs.bytes(FIRST));
    let (mut reader, recovery) = Wal::read_only(fs.arc(), Path::new(DIR), &options()).unwrap();
    assert_eq!(drain(&mut reader).unwrap(), ["one"]);
    assert_eq!(recovery.torn.as_ref().unwrap().offset, two.offset());
    assert!(fs.changes() == changes && fs.bytes(FIRST) == before);
    assert_eq!(open_with(&fs, options()).unwrap().1, recovery);
    // A directory that is empty is a log that is empty.
    let (mut reader, _) = Wal::read_only(TestFs::new().arc(), Path::new(DIR), &options()).unwrap();
    assert!(!reader.advance().unwrap());
}

/// The page cache shows records that a lost sync has kept from the disk. Once they were recovered and built upon, they stay.
#[test]
fn what_recovery_shows_is_made_durable_even_after_a_lost_sync() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "one");
    fs.mark_clean();
    drop(wal);
    let wal = open(&fs);
    assert_eq!(contents(&wal).unwrap(), ["one"]);
    append(&wal, "two");
    wal.sync().unwrap();
    let fs = TestFs::on(fs.disk().crash(Crash::LoseAll));
    assert_eq!(contents(&open(&fs)).unwrap(), ["one", "two"]);
}

/// A recycled file is full of intact old records at the very offsets of the new ones: none of them is read, whether the
/// new segment is short, torn, or has lost its header.
#[test]
fn old_records_in_a_recycled_segment_are_never_read() {
    let fs = TestFs::new();
    let wal = open(&fs);
    // Fifteen records of 256 bytes fill a segment.
    for index in 0..16 {
        wal.append(&[format!("{index:>232}").as_bytes()]).unwrap();
    }
    wal.sync().unwrap();
    wal.purge(WalPosition::new(2, 64)).unwrap();
    assert_eq!(fs.names(), ["0000000002.wal", "0000000003.wal"], "1 became 3");
    for index in 100..116 {
        wal.append(&[format!("{index:>232}").as_bytes()]).unwrap();
    }
    assert_eq!(wal.last_position().segment(), 3);
    let old_record = &fs.bytes("0000000003.wal")[64 + 5 * 256..][..256];
    assert!(String::from_utf8_lossy(old_record).ends_with(" 5"), "old records lie behind the new ones");
    let expected = contents(&wal).unwrap();
    assert_eq!(expected.len(), 17);
    drop(wal);
    let disk = fs.disk();
    assert_eq!(contents(&open(&TestFs::on(disk.clone()))).unwrap(), expected);
    for header in [false, true] {
        let torn = TestFs::on(disk.clone());
        torn.edit("0000000003.wal", |bytes| {
            let at = if header { 0 } else { 64 };
            bytes[at..at + 8].fill(0xEE);
        });
        assert_eq!(contents(&open(&torn)).unwrap(), expected[..15]);
    }
}

// ---- appending ----

/// A failed write that left whole records behind: the next append takes its place, and a record of the failed batch that
/// would follow it to the byte is not read. A lower generation is the only thing that tells them apart.
#[test]
fn the_remains_of_a_failed_batch_do_not_join_on_to_a_later_record() {
    let fs = TestFs::new();
    fs.failed_writes_land();
    let wal = open(&fs);
    append(&wal, "before");
    fs.fail(|op, _| (op == "write").then_some(ErrorKind::Other));
    let mut failed_once = false;
    fs.fail(move |op, _| (op == "write" && !std::mem::replace(&mut failed_once, true)).then_some(ErrorKind::Other));
    let mut positions = Vec::new();
    let parts: [&[&[u8]]; 2] = [&[b"same length"], &[b"remains"]];
    let end = wal.last_position();
    let error = wal.append_many(&parts, Space::Ordinary, &mut positions).unwrap_err();
    assert!(matches!(error, Error::Io { op: "append to", .. }) && positions.is_empty(), "{error}");
    assert_eq!(wal.last_position(), end);
    // A crash before the next append finds no record there.
    assert_eq!(contents(&open(&TestFs::on(fs.disk().crash(Crash::KeepAll)))).unwrap(), ["before"]);
    append(&wal, "same length");
    wal.sync().unwrap();
    assert!(String::from_utf8_lossy(&fs.bytes(FIRST)).contains("remains"));
    assert_eq!(contents(&wal).unwrap(), ["before", "same length"]);
    let wal = open(&TestFs::on(fs.disk().crash(Crash::LoseAll)));
    assert_eq!(contents(&wal).unwrap(), ["before", "same length"]);
}

/// The first write to a new segment fails, and the next record needs a larger one: the log does not lead through the
/// segment that has no header.
#[test]
fn a_segment_whose_first_write_failed_is_left_out_of_the_chain() {
    let fs = TestFs::new();
    let wal = open(&fs);
    wal.append(&[&[1; 3000]]).unwrap();
    while wal.prepare_step().unwrap() == PrepareStep::Again {}
    let mut failed_once = false;
    fs.fail(move |op, _| (op == "write" && !std::mem::replace(&mut failed_once, true)).then_some(ErrorKind::Other));
    assert!(wal.append(&[&[2; 3000]]).is_err());
    let end = wal.last_position();
    assert_eq!(end.segment(), 1);
    assert_eq!(wal.append(&[&[3; 5000]]).unwrap().segment(), 3);
    wal.append(&[&[4; 5000]]).unwrap();
    wal.sync().unwrap();
    let lens = |wal: &Wal| contents(wal).unwrap().iter().map(String::len).collect::<Vec<usize>>();
    assert_eq!(lens(&wal), [3000, 5000, 5000]);
    drop(wal);
    let wal = open(&TestFs::on(fs.disk().crash(Crash::LoseAll)));
    assert_eq!(lens(&wal), [3000, 5000, 5000]);
    assert_eq!(wal.inner.chain()[1].previous_end, end);
}

/// If what a failed write left cannot be erased either, nobody can say where the log ends: poisoned.
#[test]
fn a_failed_write_that_cannot_be_undone_poisons() {
    let fs = TestFs::new();
    let wal = open(&fs);
    fs.fail(|op, _| (op == "write").then_some(ErrorKind::Other));
    assert!(matches!(wal.append(&[b"x"]), Err(Error::Poisoned { .. })));
    fs.heal();
    assert!(matches!(wal.append(&[b"x"]), Err(Error::Poisoned { .. })));
    assert!(matches!(wal.sync(), Err(Error::Poisoned { .. })));
}

/// A full disk fails ordinary records and lets records from the reserve through, until that is used up too; reading goes
/// on; and once there is space, so does everything.
#[test]
fn no_space_fails_writes_until_there_is_space_and_the_reserve_lets_deletes_through() {
    let fs = TestFs::new();
    let wal = open(&fs);
    fs.limit_space(4096);
    let mut appended = 0;
    let error = loop {
        match wal.append(&[&[1; 232]]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_no_space(), "{error}");
    assert_eq!(appended, 13, "(4096 - 64 - 512) / 256");
    assert_eq!(wal.append_from(&[b"delete"], Space::Reserve).unwrap().offset(), 64 + 13 * 256);
    assert!(wal.append(&[&[1; 232]]).unwrap_err().is_no_space());
    wal.sync().unwrap();
    assert!(wal.append_from(&[&[1; 700]], Space::Reserve).unwrap_err().is_no_space());
    assert!(wal.subscribe(wal.first_position(), ReadUpTo::Synced).and_then(|mut reader| reader.advance()).unwrap());
    // Reopened on a full disk it goes on where it was, reserve and all.
    drop(wal);
    let wal = open(&fs);
    assert!(wal.append(&[&[1; 232]]).unwrap_err().is_no_space());
    wal.append_from(&[b"delete"], Space::Reserve).unwrap();
    assert_eq!(fs.names(), [FIRST], "failed attempts leave no files");
    fs.heal();
    assert_eq!(wal.append(&[&[1; 232]]).unwrap().segment(), 1, "the successor exists, so the reserve may be used");
    assert_eq!(wal.state().ready, 1);
}

/// Records larger than a segment get one of their own; a record above the limit is refused before anything happens.
#[test]
fn large_records() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let large: Vec<u8> = (0..600_000u32).map(|index| index as u8).collect();
    append(&wal, "before");
    wal.append(&[&large[..10], &large[10..]]).unwrap();
    append(&wal, "after");
    wal.sync().unwrap();
    drop(wal);
    let wal = open(&fs);
    let mut reader = wal.subscribe(wal.first_position(), ReadUpTo::Appended).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().payload, b"before");
    assert_eq!(reader.next().unwrap().unwrap().payload, large);
    assert_eq!(reader.next().unwrap().unwrap().payload, b"after");
    let many = vec![&large[..500_000]; 2200];
    assert!(matches!(wal.append(&many), Err(Error::BatchTooLarge { len: 1_100_000_000, max: RECORD_PAYLOAD_MAX })));
}

/// With a segment prepared, a switch costs no more than any append: one write, and a sync that changes no length.
#[test]
fn a_prepared_switch_is_one_write() {
    for fill in [false, true] {
        let fs = TestFs::new();
        let (wal, _) = open_with(&fs, WalOptions { fill, ..options() }).unwrap();
        let (woken, waker) = counter();
        wal.set_prepare_waker(waker);
        while wal.prepare_step().unwrap() == PrepareStep::Again {}
        assert_eq!(wal.prepare_step().unwrap(), PrepareStep::Idle);
        wal.append(&[&[1; 3900]]).unwrap();
        let before = fs.changes();
        let position = wal.append(&[&[1; 300]]).unwrap();
        assert_eq!((position.segment(), fs.changes() - before), (2, 1));
        assert_eq!(woken.0.load(SeqCst), 1, "the preparer is told");
        assert_eq!(fs.bytes("0000000002.wal").len(), 4096);
    }
}

/// An option out of range is refused, by name.
#[test]
fn options_are_checked() {
    for options in [
        WalOptions { segment_bytes: 1000, ..options() },
        WalOptions { segment_bytes: (1 << 30) + 1, ..options() },
        WalOptions { reserve_bytes: 2049, ..options() },
    ] {
        let error = open_with(&TestFs::new(), options).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
    }
}

// ---- syncing ----

/// Eight writers append and wait; one of them gets the claim, syncs once, and all are told.
#[test]
fn one_sync_serves_a_group_of_eight() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let before = fs.count("sync_data");
    let mut turns: Vec<SyncTurn> = (0..8).map(|index| wal.sync_turn(append(&wal, &index.to_string()))).collect();
    let (woken, waker) = counter();
    let Poll::Ready(Ok(Turn::Claimed(claim))) = turns[0].poll(&waker) else { panic!("nobody syncs yet") };
    for turn in &mut turns[1..] {
        assert!(turn.poll(&waker).is_pending());
    }
    assert_eq!(woken.0.load(SeqCst), 0);
    assert_eq!(claim.sync().unwrap(), wal.last_position());
    assert_eq!(woken.0.load(SeqCst), 7);
    for turn in &mut turns {
        assert!(matches!(turn.poll(&waker), Poll::Ready(Ok(Turn::Synced))));
    }
    assert_eq!(fs.count("sync_data") - before, 1);
    // With nothing new there is nothing to sync.
    wal.sync().unwrap();
    assert_eq!(fs.count("sync_data") - before, 1);
}

/// While a sync runs, appends go on, and are not covered by it: the next group forms.
#[test]
fn the_next_group_forms_while_a_sync_runs() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let one = append(&wal, "one");
    let (other, late) = (wal.clone(), Arc::new(OnceLock::new()));
    let slot = Arc::clone(&late);
    fs.during_next_sync(move || {
        assert!(other.state().syncing && other.sync().unwrap().is_none());
        slot.set(append(&other, "late")).unwrap();
    });
    let synced = wal.sync().unwrap().unwrap();
    let late = *late.get().unwrap();
    assert!(wal.is_synced(one) && !wal.is_synced(late));
    assert_eq!((synced, wal.synced_position()), (late, late));
    wal.sync().unwrap();
    assert!(wal.is_synced(late));
    assert_eq!(fs.count("sync_data"), 2);
}

/// A sync across a switch syncs the older segment first.
#[test]
fn segments_are_synced_in_order() {
    let fs = TestFs::new();
    let wal = open(&fs);
    wal.append(&[&[1; 3000]]).unwrap();
    wal.append(&[&[1; 3000]]).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&order);
    fs.fail(move |op, path| {
        if op == "sync_data" {
            log.lock().unwrap().push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        None
    });
    wal.sync().unwrap();
    assert_eq!(*order.lock().unwrap(), [FIRST, "0000000002.wal"]);
}

/// When a sync ends, one of the writers that it did not cover is called to run the next; if that one has gone away, another.
#[test]
fn a_claim_never_gets_lost() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let one = append(&wal, "one");
    let claim = wal.try_begin_sync().unwrap().unwrap();
    assert!(wal.try_begin_sync().unwrap().is_none() && wal.sync().unwrap().is_none());
    let (first_woken, first_waker) = counter();
    let (second_woken, second_waker) = counter();
    let mut first = wal.sync_turn(one);
    let mut second = wal.sync_turn(one);
    assert!(first.poll(&first_waker).is_pending() && second.poll(&second_waker).is_pending());
    drop(claim);
    assert_eq!((first_woken.0.load(SeqCst), second_woken.0.load(SeqCst)), (1, 0), "the first in line is called");
    drop(first);
    assert_eq!(second_woken.0.load(SeqCst), 1, "and passes it on when it goes away");
    let Poll::Ready(Ok(Turn::Claimed(claim))) = second.poll(&second_waker) else { panic!("it was called") };
    claim.sync().unwrap();

    // Tickets cannot sync: the job is called.
    let (job_woken, job) = counter();
    wal.set_sync_waker(job);
    let mut ticket = wal.sync_ticket(append(&wal, "two"));
    assert!(!wal.has_sync_waiters());
    assert!(ticket.poll(&second_waker).is_pending() && wal.has_sync_waiters());
    assert_eq!(job_woken.0.load(SeqCst), 1);
    let claim = wal.try_begin_sync().unwrap().unwrap();
    drop(claim);
    assert_eq!(job_woken.0.load(SeqCst), 2);
    wal.sync().unwrap();
    assert!(matches!(ticket.poll(&second_waker), Poll::Ready(Ok(()))));
    assert_eq!(wal.state().waiters, 0);
}

/// A failed sync is final: those who wait get the error, and no later sync or append succeeds although the disk is well again.
#[test]
fn a_failed_sync_poisons_for_good() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let synced = append(&wal, "synced");
    wal.sync().unwrap();
    let lost = append(&wal, "lost");
    let (woken, waker) = counter();
    let claim = wal.try_begin_sync().unwrap().unwrap();
    let (mut turn, mut ticket) = (wal.sync_turn(lost), wal.sync_ticket(lost));
    let mut reader = wal.subscribe(wal.first_position(), ReadUpTo::Synced).unwrap();
    assert!(turn.poll(&waker).is_pending() && ticket.poll(&waker).is_pending());
    assert!(reader.poll_advance(&waker).is_ready() && reader.poll_advance(&waker).is_pending());
    fs.fail(|op, _| (op == "sync_data").then_some(ErrorKind::Other));
    let error = claim.sync().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the engine takes no more writes since an earlier failure: sync /wal/0000000001.wal failed: injected; reopen it"
    );
    assert_eq!(woken.0.load(SeqCst), 3);
    fs.heal();
    assert!(matches!(turn.poll(&waker), Poll::Ready(Err(Error::Poisoned { .. }))));
    assert!(matches!(ticket.poll(&waker), Poll::Ready(Err(Error::Poisoned { .. }))));
    assert!(matches!(reader.poll_advance(&waker), Poll::Ready(Err(Error::Poisoned { .. }))));
    assert!(matches!(wal.append(&[b"x"]), Err(Error::Poisoned { .. })));
    assert!(matches!(wal.sync(), Err(Error::Poisoned { .. })));
    assert!(matches!(wal.purge(lost), Err(Error::Poisoned { .. })));
    assert!(matches!(wal.prepare_step(), Err(Error::Poisoned { .. })));
    assert!(matches!(wal.sync_turn(lost).poll(&waker), Poll::Ready(Err(_))), "and whoever comes later");
    assert!(matches!(wal.sync_turn(synced).poll(&waker), Poll::Ready(Ok(Turn::Synced))), "what was durable still is");
    assert_eq!(fs.count("sync_data"), 2);
    assert!(wal.is_synced(synced) && !wal.is_synced(lost) && !wal.state().syncing);
}

/// A panic inside the disk while a sync runs: nobody can say what is durable, so the WAL is poisoned and nobody waits on.
#[test]
fn a_panic_in_a_sync_poisons_and_wakes() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let position = append(&wal, "one");
    let claim = wal.try_begin_sync().unwrap().unwrap();
    let (woken, waker) = counter();
    let mut turn = wal.sync_turn(position);
    assert!(turn.poll(&waker).is_pending());
    wal.inner.writer().unsynced[0] = Arc::new(panicking_segment());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim.sync()));
    assert!(panic.is_err());
    assert_eq!(woken.0.load(SeqCst), 1);
    let Poll::Ready(Err(error)) = turn.poll(&waker) else { panic!("it was told") };
    assert!(error.to_string().contains("a sync was interrupted by a panic"), "{error}");
    assert!(!wal.state().syncing);
}

fn panicking_segment() -> Segment {
    #[derive(Debug)]
    struct Panics;
    impl File for Panics {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            panic!("a bug in the disk")
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            panic!("a bug in the disk")
        }
        fn sync_data(&self) -> io::Result<()> {
            panic!("a bug in the disk")
        }
        fn sync_all(&self) -> io::Result<()> {
            panic!("a bug in the disk")
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            panic!("a bug in the disk")
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            panic!("a bug in the disk")
        }
        fn len(&self) -> io::Result<u64> {
            panic!("a bug in the disk")
        }
    }
    let ready = Ready { number: 1, path: FIRST.into(), file: Arc::new(Panics), capacity: 4096 };
    ready.into_segment(WalPosition::ZERO, OPEN_END)
}

// ---- reading, purging, truncating ----

/// A subscription follows the writer, over switches, and stops at what is synced if asked to.
#[test]
fn a_subscription_follows_the_writer() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let (woken, waker) = counter();
    let mut all = wal.subscribe(wal.last_position(), ReadUpTo::Appended).unwrap();
    let mut synced = wal.subscribe(wal.last_position(), ReadUpTo::Synced).unwrap();
    assert!(all.poll_advance(&waker).is_pending());
    for round in 0..40 {
        let text = format!("{round:>200}");
        let position = append(&wal, &text);
        assert_eq!(woken.0.load(SeqCst), round + 1, "woken by the append");
        assert!(all.poll_advance(&waker).is_ready());
        assert_eq!(all.record(), WalRecord { position, payload: text.as_bytes() });
        assert!(!synced.advance().unwrap(), "not synced");
        wal.sync().unwrap();
        assert!(all.poll_advance(&waker).is_pending());
        assert_eq!(synced.next().unwrap().unwrap().position, position);
        assert!(
            matches!(wal.subscribe(position, ReadUpTo::Appended).unwrap().next(), Ok(Some(r)) if r.position == position)
        );
    }
    assert_eq!(wal.last_position().segment(), 3);
    let unknown = WalPosition::new(1, 72);
    assert!(wal.subscribe(unknown, ReadUpTo::Appended).unwrap().advance().unwrap_err().is_corruption());
    assert!(matches!(wal.subscribe(WalPosition::new(4, 64), ReadUpTo::Appended), Err(Error::PositionNotInWal { .. })));
}

/// Purging lets whole segments go, recycles a bounded number, and leaves readers with an error, not with silence.
#[test]
fn purging() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let positions: Vec<WalPosition> = (0..6).map(|_| wal.append(&[&[1; 3000]]).unwrap()).collect();
    let mut reader = wal.subscribe(positions[0], ReadUpTo::Appended).unwrap();
    assert!(reader.advance().unwrap());
    wal.purge(positions[3]).unwrap();
    assert_eq!(wal.first_position(), positions[0], "the header of the second segment is not durable yet");
    wal.sync().unwrap();
    assert_eq!(wal.purge(positions[3]).unwrap(), positions[3]);
    assert_eq!(wal.purge(positions[2]).unwrap(), positions[3], "purging does not go back");
    assert!(matches!(reader.advance(), Err(Error::PositionNotInWal { .. })));
    assert!(matches!(wal.subscribe(positions[2], ReadUpTo::Appended), Err(Error::PositionNotInWal { .. })));
    let state = wal.state();
    assert_eq!((state.segments, state.ready, state.disk_bytes), (3, 2, 5 * 4096));
    assert_eq!(state.log_bytes, 3 * 3024);
    assert_eq!(fs.names(), ["0000000004.wal", "0000000005.wal", "0000000006.wal", "0000000007.wal", "0000000008.wal"]);
    let required_from = positions[3];
    drop(wal);
    let (wal, recovery) = open_with(&fs, WalOptions { required_from, ..options() }).unwrap();
    assert_eq!(recovery.first, positions[3]);
    assert_eq!(wal.purge(wal.last_position()).unwrap(), positions[5], "the current segment stays");
}

/// A truncation is durable when it returns; later records replace the dropped ones at higher positions; a reader behind the cut is told.
#[test]
fn truncating() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let positions: Vec<WalPosition> = ["a", "b", "c", "d"].iter().map(|text| append(&wal, text)).collect();
    wal.append(&[&[b'x'; 4000]]).unwrap();
    wal.append(&[&[b'x'; 4000]]).unwrap();
    wal.sync().unwrap();
    let claim = || wal.try_begin_sync().unwrap().unwrap();
    let mut at_c = wal.subscribe(positions[2], ReadUpTo::Appended).unwrap();
    let mut at_d = wal.subscribe(positions[3], ReadUpTo::Appended).unwrap();
    wal.truncate_after(claim(), positions[1]).unwrap();
    for lost in [Crash::LoseAll, Crash::KeepAll] {
        assert_eq!(contents(&open(&TestFs::on(fs.disk().crash(lost)))).unwrap(), ["a", "b"]);
    }
    assert!(matches!(at_d.advance(), Err(Error::PositionNotInWal { .. })));
    let replacement = append(&wal, "C");
    assert!(replacement > positions[3] && replacement.segment() == 4);
    assert_eq!(drain(&mut at_c).unwrap(), ["C"], "a reader at the cut goes on behind it");
    assert!(matches!(wal.truncate_from(claim(), positions[2]), Ok(())), "the end of a segment means what follows");
    assert_eq!(contents(&wal).unwrap(), ["a", "b"]);
    assert!(matches!(wal.truncate_from(claim(), positions[3]), Err(Error::PositionNotInWal { .. })));
    assert!(matches!(wal.truncate_after(claim(), positions[2]), Err(Error::PositionNotInWal { .. })));
    wal.truncate_from(claim(), wal.last_position()).unwrap();
    append(&wal, "c");
    wal.truncate_from(claim(), wal.first_position()).unwrap();
    assert_eq!(contents(&wal).unwrap(), Vec::<String>::new());
    append(&wal, "A");
    wal.sync().unwrap();
    assert_eq!(contents(&open(&TestFs::on(fs.disk().crash(Crash::LoseAll)))).unwrap(), ["A"]);
    assert!(!wal.state().syncing);
}

/// `inspect` shows each record, and what lies behind damage.
#[test]
fn inspecting_a_segment() {
    let fs = TestFs::new();
    let wal = open(&fs);
    append(&wal, "one");
    wal.sync().unwrap();
    let two = append(&wal, "two");
    append(&wal, "three");
    wal.try_begin_sync().unwrap().unwrap().sync_and_mark().unwrap();
    let show = || {
        let path = Path::new(DIR).join(FIRST);
        let mut text = String::new();
        for record in inspect_segment(&fs, &path).unwrap() {
            let RecordInfo { position, kind, payload_bytes, generation, synced, payload_ok, behind_gap } =
                record.unwrap();
            let (ok, gap) = (if payload_ok { "ok" } else { "BAD" }, if behind_gap { " behind a gap" } else { "" });
            text += &format!(
                "{position} {kind:?} {payload_bytes} bytes, generation {generation}, synced {synced}, {ok}{gap}\n"
            );
        }
        text
    };
    expect![[r#"
        1:64 Record 3 bytes, generation 0, synced 1:64, ok
        1:96 Record 3 bytes, generation 0, synced 1:96, ok
        1:128 Record 5 bytes, generation 0, synced 1:96, ok
        1:160 Mark 0 bytes, generation 0, synced 1:160, ok
    "#]]
    .assert_eq(&show());
    fs.edit(FIRST, |bytes| bytes[two.offset() as usize + 24] ^= 1);
    expect![[r#"
        1:64 Record 3 bytes, generation 0, synced 1:64, ok
        1:96 Record 3 bytes, generation 0, synced 1:96, BAD behind a gap
        1:128 Record 5 bytes, generation 0, synced 1:96, ok behind a gap
        1:160 Mark 0 bytes, generation 0, synced 1:160, ok behind a gap
    "#]]
    .assert_eq(&show());
    fs.edit(FIRST, |bytes| bytes[0] = 0);
    assert!(inspect_segment(&fs, &Path::new(DIR).join(FIRST)).unwrap_err().is_corruption());
    assert_eq!(SEGMENT_HEADER_LEN, 64);
}

// ---- threads and a real disk ----

mod real {
    #![expect(clippy::disallowed_methods, reason = "a stand-in for the real file system")]

    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use super::*;
    use crate::fs::{FileLock, OpenMode};

    #[derive(Debug)]
    pub(super) struct RealFs;

    #[derive(Debug)]
    struct RealFile(std::fs::File);

    impl FileSystem for RealFs {
        fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew);
            Ok(Arc::new(RealFile(options.open(path)?)))
        }
        fn remove_file(&self, path: &Path) -> io::Result<()> {
            std::fs::remove_file(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            std::fs::rename(from, to)
        }
        fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
            std::fs::hard_link(from, to)
        }
        fn create_dir_all(&self, path: &Path) -> io::Result<()> {
            std::fs::create_dir_all(path)
        }
        fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
            std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
        }
        fn len(&self, path: &Path) -> io::Result<u64> {
            Ok(std::fs::metadata(path)?.len())
        }
        fn exists(&self, path: &Path) -> io::Result<bool> {
            path.try_exists()
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            std::fs::File::open(path)?.sync_all()
        }
        fn lock(&self, _: &Path, _: &str) -> io::Result<Box<dyn FileLock>> {
            Err(ErrorKind::Unsupported.into())
        }
        fn available_space(&self, _: &Path) -> io::Result<u64> {
            Ok(u64::MAX)
        }
    }

    impl File for RealFile {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buffer, offset)
        }
        fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
            self.0.write_at(data, offset)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn sync_all(&self) -> io::Result<()> {
            self.0.sync_all()
        }
        fn allocate(&self, len: u64) -> io::Result<()> {
            rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len).map_err(io::Error::from)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.metadata()?.len())
        }
    }
}

/// Wakes a thread that waits for a future.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[expect(clippy::disallowed_methods, reason = "stands in for the spawner's block_on")]
fn block_on_turn(mut turn: SyncTurn) -> Result<Turn> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match turn.poll(&waker) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Eight writers on a real file wait for durability, while one thread prepares and purges and one follows: all get through, with fewer
/// syncs than appends, and the follower sees every record once and in order.
#[test]
fn threads_on_a_real_file() {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("wal");
    let options = WalOptions { segment_bytes: 16 << 10, ..options() };
    let (wal, _) = Wal::open(Arc::new(real::RealFs), &dir, options.clone()).unwrap();
    let syncs = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (wal, syncs, done) = (&wal, &syncs, &done);
            scope.spawn(move || {
                for index in 0..EACH {
                    let position = append(wal, &format!("{writer} {index} {}", "x".repeat(index * 7)));
                    loop {
                        match block_on_turn(wal.sync_turn(position)).unwrap() {
                            Turn::Synced => break,
                            Turn::Claimed(claim) => {
                                syncs.fetch_add(1, SeqCst);
                                claim.sync().unwrap();
                            }
                        }
                    }
                    assert!(wal.is_synced(position));
                }
                done.fetch_add(1, SeqCst);
            });
        }
        scope.spawn(|| {
            while done.load(SeqCst) < WRITERS {
                wal.prepare_step().unwrap();
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let mut reader = wal.subscribe(wal.first_position(), ReadUpTo::Synced).unwrap();
            let mut next = [0; WRITERS];
            for _ in 0..WRITERS * EACH {
                while reader.poll_advance(&waker).map(|result| result.unwrap()).is_pending() {
                    std::thread::yield_now();
                }
                let text = std::str::from_utf8(reader.record().payload).unwrap();
                let mut words = text.split(' ').map(|word| word.parse::<usize>());
                let (writer, index) = (words.next().unwrap().unwrap(), words.next().unwrap().unwrap());
                assert_eq!(index, next[writer]);
                next[writer] += 1;
                wal.purge(reader.record().position).unwrap();
            }
        });
    });
    let (syncs, appends) = (syncs.load(SeqCst), WRITERS * EACH);
    assert!(syncs < appends, "{syncs} syncs for {appends} appends");
    drop(wal);
    let (wal, recovery) = Wal::open(Arc::new(real::RealFs), &dir, options).unwrap();
    assert_eq!(recovery.torn, None);
    assert!(contents(&wal).unwrap().len() < appends);
}
