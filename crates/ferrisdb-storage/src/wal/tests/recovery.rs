//! What opening a log finds, cuts and refuses.

use super::*;

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

/// Opening discards nothing before the position that the owner says it needs: on a full disk that position itself may not be durable
/// yet, and after a power cut an older one is asked for. Only a purge lets it go.
#[test]
fn an_open_keeps_what_an_older_position_needs() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let record = |number: usize| format!("{number:0>700}");
    let positions: Vec<WalPosition> = (0..20).map(|number| append(&wal, &record(number))).collect();
    wal.sync().unwrap();
    drop(wal);
    let needed = WalOptions { required_from: positions[15], ..options() };
    let (wal, recovery) = open_with(&fs, needed.clone()).unwrap();
    assert_eq!(recovery.replay_from, positions[15]);
    for number in 20..30 {
        append(&wal, &record(number));
        while wal.prepare_step().unwrap() == PrepareStep::Again {}
    }
    wal.sync().unwrap();
    drop(wal);
    let fs = TestFs::on(fs.disk().crash(Crash::LoseAll));
    assert_eq!(contents(&open(&fs)).unwrap(), (0..30).map(record).collect::<Vec<_>>());
    let (wal, _) = open_with(&fs, needed.clone()).unwrap();
    assert!(wal.purge_stored(positions[15]).unwrap() > positions[9]);
    assert!(open_with(&fs, options()).unwrap().1.purged);
}

/// What was let go without a sync, and came back in tatters after a crash, is neither the end of the log nor replayed.
#[test]
fn tatters_before_the_needed_position_do_not_count() {
    let fs = TestFs::new();
    let wal = open(&fs);
    let record = |number: usize| format!("{number:0>700}");
    let positions: Vec<WalPosition> = (0..20).map(|number| append(&wal, &record(number))).collect();
    wal.sync().unwrap();
    drop(wal);
    fs.edit(FIRST, |bytes| bytes[2000..].fill(0));
    let needed = WalOptions { required_from: positions[12], ..options() };
    let (mut reader, _) = Wal::read_only(fs.arc(), Path::new(DIR), &needed).unwrap();
    let seen = drain(&mut reader).unwrap();
    assert!(seen.ends_with(&(12..20).map(record).collect::<Vec<_>>()), "{}", seen.len());
    let (wal, recovery) = open_with(&fs, needed).unwrap();
    assert_eq!((recovery.torn, recovery.replay_from), (None, positions[12]));
    let mut reader = wal.subscribe(positions[12], ReadUpTo::Appended).unwrap();
    assert_eq!(drain(&mut reader).unwrap(), (12..20).map(record).collect::<Vec<_>>());
}
