//! Subscriptions, and taking away from either end.

use super::*;

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
