//! Threads and a real disk.

use super::*;
use crate::fs::real::RealFileSystem;

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
    let (wal, _) = Wal::open(Arc::new(RealFileSystem::new()), &dir, options.clone()).unwrap();
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
    let (wal, recovery) = Wal::open(Arc::new(RealFileSystem::new()), &dir, options).unwrap();
    assert_eq!(recovery.torn, None);
    assert!(contents(&wal).unwrap().len() < appends);
}
