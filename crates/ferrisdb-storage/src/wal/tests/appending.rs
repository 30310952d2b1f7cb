//! Writing records, also on a disk that fails or is full.

use super::*;

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
        let full = wal.append(&[&[1; 3900]]).unwrap().segment();
        assert_eq!(full, if fill { 2 } else { 1 }, "a filled log begins with a smaller segment");
        while wal.prepare_step().unwrap() == PrepareStep::Again {}
        let (before, told) = (fs.changes(), woken.0.load(SeqCst));
        let position = wal.append(&[&[1; 300]]).unwrap();
        assert_eq!((position.segment(), fs.changes() - before), (full + 1, 1));
        assert_eq!(woken.0.load(SeqCst) - told, 1, "the preparer is told");
        assert_eq!(fs.bytes(&format!("{:010}.wal", full + 1)).len(), 4096);
    }
}

/// Every byte of a filled log's segments is written before a record is, the first segment's too: a sync never finds a block that the file system has yet to
/// note as written. Opening waits for a quarter of a segment only.
#[test]
fn a_filled_log_never_writes_to_fresh_blocks() {
    let fs = TestFs::new();
    let (wal, _) = open_with(&fs, WalOptions { fill: true, ..options() }).unwrap();
    assert_eq!((fs.bytes(FIRST).len(), fs.written(FIRST)), (1024, 1024 + SEGMENT_HEADER_LEN as usize));
    while wal.prepare_step().unwrap() == PrepareStep::Again {}
    assert_eq!(fs.written("0000000002.wal"), 4096);
    let texts: Vec<_> =
        (0..60).map(|index| format!("record {index}, long enough that they go through three segments")).collect();
    for text in &texts {
        append(&wal, text);
        while wal.prepare_step().unwrap() == PrepareStep::Again {}
    }
    wal.sync().unwrap();
    assert!(wal.last_position().segment() >= 3);
    drop(wal);
    let (wal, _) = open_with(&fs, WalOptions { fill: true, ..options() }).unwrap();
    assert_eq!(contents(&wal).unwrap(), texts);
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
