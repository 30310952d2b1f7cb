//! Group commit, its claims, and what a failed sync does.

use super::*;

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
