//! The non-blocking layer: tickets, stalls as answers, reads that say `WouldRead`, and a whole engine on one thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ferrisdb_core::{ManualClock, Random, SplitMix64};
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::env::{Job, SeededEntropy, Spawner};
use ferrisdb_storage::fs::sim::SimFileSystem;
use ferrisdb_storage::{Durability, Engine, Env, Error, IterOptions, Options, Submitted, Ticket, WriteBatch};

use crate::support::{Change, Contents, DIR, History, Machine, closed_engine, noise, put, put_batch, scan, small, v};

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counting_waker() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (Arc::clone(&count), Waker::from(count))
}

fn written(submitted: Submitted) -> Ticket {
    match submitted {
        Submitted::Written(ticket) => ticket,
        Submitted::Stalled { .. } => panic!("stalled"),
    }
}

fn poll(ticket: &mut Ticket, waker: &Waker) -> Poll<Result<ferrisdb_storage::Version, Error>> {
    Pin::new(ticket).poll(&mut Context::from_waker(waker))
}

/// A buffered ticket is ready at once. A synced one is pending until the WAL job has run, wakes its waker then, and its write is durable; one
/// sync serves all that wait. A dropped ticket changes nothing about its write.
#[test]
fn tickets() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    machine.spawner.run_until_idle();
    let (count, waker) = counting_waker();
    let mut buffered = written(engine.submit(put_batch("a", "1"), Durability::Buffered).unwrap());
    assert_eq!(buffered.version(), v(1));
    assert!(matches!(poll(&mut buffered, &waker), Poll::Ready(Ok(version)) if version == v(1)));

    let syncs = machine.disk.counts().syncs;
    let mut tickets: Vec<Ticket> =
        (0..5).map(|n| written(engine.submit(put_batch("b", &n.to_string()), Durability::Sync).unwrap())).collect();
    drop(written(engine.submit(put_batch("c", "dropped"), Durability::Sync).unwrap()));
    assert_eq!(engine.get(b"b").unwrap().unwrap(), b"4", "visible before it is durable");
    assert!(tickets.iter_mut().all(|ticket| poll(ticket, &waker).is_pending()));
    assert_eq!(machine.disk.counts().syncs, syncs, "polling does no I/O");
    machine.spawner.run_until_idle();
    assert!(count.0.load(Ordering::SeqCst) > 0, "woken");
    for (n, ticket) in tickets.iter_mut().enumerate() {
        assert!(matches!(poll(ticket, &waker), Poll::Ready(Ok(version)) if version == v(n as u64 + 2)));
    }
    assert_eq!(machine.disk.counts().syncs, syncs + 1, "one sync for all");

    let after_power_loss = machine.disk.fork_crashed(ferrisdb_storage::fs::sim::CrashMode::UnsyncedLost);
    let reopened = Machine::new(after_power_loss, 0);
    let reopened_engine = reopened.open(small()).unwrap();
    let all = scan(&reopened_engine, IterOptions::default()).unwrap();
    assert_eq!(all.len(), 3, "{all:?}");
}

/// Tickets that nobody polls any more do not keep the engine from closing, and a pending one is ready, or fails, after the close.
#[test]
fn a_ticket_outlives_the_engine() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    let mut ticket = written(engine.submit(put_batch("a", "1"), Durability::Sync).unwrap());
    let dropped = written(engine.submit(put_batch("b", "1"), Durability::Sync).unwrap());
    engine.close().unwrap();
    // The close made it durable.
    assert!(matches!(poll(&mut ticket, Waker::noop()), Poll::Ready(Ok(version)) if version == v(1)));
    drop(ticket);
    drop(dropped);
    assert_eq!(scan(&machine.open(small()).unwrap(), IterOptions::default()).unwrap().len(), 2);
}

/// A stall is an answer: the batch comes back whole, the waker is woken when there is room, and then it is taken.
#[test]
fn a_stall_gives_the_batch_back() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    machine.spawner.run_until_idle();
    let (count, waker) = counting_waker();
    assert!(engine.poll_writable(&waker));
    let mut history = History::default();
    let mut stalls = 0;
    for n in 1..400_u64 {
        let changes = [Change::Put(format!("k{n:03}"), noise(n, 300))];
        let mut batch = crate::support::batch(&changes);
        loop {
            match engine.submit(batch, Durability::Buffered).unwrap() {
                Submitted::Written(ticket) => {
                    history.note(ticket.version(), &changes);
                    break;
                }
                Submitted::Stalled { batch: back, retry_after } => {
                    stalls += 1;
                    assert_eq!(back.len(), 1);
                    assert_eq!(engine.visible_version(), history.last(), "nothing was written");
                    match retry_after {
                        Some(delay) => machine.spawner.run_for(delay),
                        None => {
                            assert!(!engine.poll_writable(&waker));
                            let before = count.0.load(Ordering::SeqCst);
                            while !engine.poll_writable(&waker) {
                                assert!(machine.spawner.step_one(), "nothing runs, and there is no room");
                            }
                            assert!(count.0.load(Ordering::SeqCst) > before, "woken when there was room");
                        }
                    }
                    batch = back;
                }
            }
        }
    }
    assert!(stalls > 3, "{stalls}");
    history.check_every(&engine, 50).unwrap();
}

/// `try_get` finds memtables at once, says `WouldRead` for a table that is not in memory, and finds the answer after a blocking read. It never
/// touches the disk.
#[test]
fn try_get_reads_memory_only() {
    let (machine, history) = closed_engine(30, 5, 100);
    let engine = machine.open(Options { block_cache_bytes: 4 << 20, ..small() }).unwrap();
    machine.spawner.run_until_idle();
    let would_read = |machine: &Machine| {
        let before = machine.disk.counts();
        let mut missing = 0;
        for (key, value) in &history.contents() {
            match engine.try_get(key, None) {
                Ok(found) => assert_eq!(found.unwrap(), value),
                Err(Error::WouldRead) => missing += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(machine.disk.counts(), before, "no I/O");
        missing
    };
    put(&engine, "fresh", "in the memtable");
    assert_eq!(engine.try_get(b"fresh", None).unwrap().unwrap(), b"in the memtable");
    assert!(would_read(&machine) > 0);
    assert!(matches!(engine.try_iter(IterOptions::default()).err(), None | Some(Error::WouldRead)));
    for key in history.contents().keys() {
        engine.get(key).unwrap();
    }
    assert_eq!(would_read(&machine), 0, "a blocking read brings it into memory");
    assert!(
        engine.try_get(b"key0000x", None).is_ok() || matches!(engine.try_get(b"key0000x", None), Err(Error::WouldRead))
    );
}

/// An iterator that stopped with `WouldRead` is finished by a blocking move in either direction and goes on where it was, with no key left
/// out or seen twice.
#[test]
fn an_interrupted_iterator_resumes() {
    let (machine, history) = closed_engine(30, 5, 100);
    let expected: Vec<(Vec<u8>, Vec<u8>)> = history.contents().into_iter().collect();
    for backward in [false, true] {
        // A cache so small that blocks must be read again and again.
        let engine = machine.open(Options { block_cache_bytes: 2 << 10, ..small() }).unwrap();
        let mut interrupted = 0;
        let mut iter = loop {
            match engine.try_iter(IterOptions::default()) {
                Ok(iter) => break iter,
                Err(Error::WouldRead) => {
                    interrupted += 1;
                    drop(scan(&engine, IterOptions::default()).unwrap());
                }
                Err(error) => panic!("{error}"),
            }
            assert!(interrupted < 10);
        };
        let mut seen = Vec::new();
        let mut moved = if backward { iter.try_seek_to_last() } else { iter.try_seek_to_first() };
        loop {
            if let Err(error) = moved {
                assert!(matches!(error, Error::WouldRead), "{error}");
                assert!(!iter.valid());
                interrupted += 1;
                // Either direction finishes what was begun.
                if interrupted % 2 == 0 { iter.next().unwrap() } else { iter.prev().unwrap() }
            }
            if !iter.valid() {
                break;
            }
            seen.push((iter.key().to_vec(), iter.value().to_vec()));
            moved = if backward { iter.try_prev() } else { iter.try_next() };
        }
        if backward {
            seen.reverse();
        }
        assert_eq!(seen, expected);
        assert!(interrupted > 2, "{interrupted}");
        drop(iter);
        engine.close().unwrap();
    }
}

/// A spawner on which nobody may wait.
#[derive(Debug)]
struct NobodyWaits {
    steps: Arc<StepSpawner>,
    may_wait: AtomicBool,
}

impl Spawner for NobodyWaits {
    fn spawn(&self, name: &str, job: Box<dyn Job>) -> Waker {
        self.steps.spawn(name, job)
    }

    fn block_on(&self, future: Pin<&mut dyn Future<Output = ()>>) {
        assert!(self.may_wait.load(Ordering::SeqCst), "a call waited");
        self.steps.block_on(future);
    }

    fn sleep(&self, duration: Duration) {
        assert!(self.may_wait.load(Ordering::SeqCst), "a call slept");
        self.steps.sleep(duration);
    }
}

/// An engine driven by submit, poll, `try_` calls and single steps, on a spawner that forbids waiting. Returns what tells two runs apart.
fn run_on_one_thread(seed: u64) -> (u64, u64, u64) {
    let disk = SimFileSystem::new();
    let clock = Arc::new(ManualClock::new());
    let steps = Arc::new(StepSpawner::with_seed(Arc::clone(&clock), seed));
    let spawner = Arc::new(NobodyWaits { steps: Arc::clone(&steps), may_wait: AtomicBool::new(false) });
    let env = Env {
        fs: Arc::new(disk.clone()),
        clock,
        spawner: Arc::clone(&spawner) as _,
        entropy: Arc::new(SeededEntropy::new(seed)),
    };
    let engine = Engine::open_in(env, DIR, Options { compaction_jobs: 2, ..Options::tiny() }).unwrap();
    let mut random = SplitMix64::new(seed);
    let mut model = Contents::new();
    let mut pending: Vec<Ticket> = Vec::new();
    let mut next: Option<WriteBatch> = None;
    let (mut operations, mut synced) = (0, 0);
    while operations < 600 {
        for _ in 0..random.next_u64() % 4 {
            steps.step_one();
        }
        let key = format!("k{:03}", random.next_u64() % 300).into_bytes();
        match engine.try_get(&key, None) {
            Ok(found) => assert_eq!(found.as_deref(), model.get(&key).map(Vec::as_slice), "seed {seed}"),
            Err(Error::WouldRead) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
        pending.retain_mut(|ticket| match poll(ticket, Waker::noop()) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                synced += 1;
                result.unwrap();
                false
            }
        });
        let batch = match next.take() {
            Some(batch) => batch,
            None => {
                let value = noise(random.next_u64(), 200);
                let mut batch = WriteBatch::new();
                if random.next_u64().is_multiple_of(5) {
                    batch.delete(&key)
                } else {
                    batch.put(&key, &value)
                };
                batch
            }
        };
        match engine.submit(batch.clone(), if operations % 7 == 0 { Durability::Sync } else { Durability::Buffered }) {
            Ok(Submitted::Written(ticket)) => {
                for operation in batch.operations() {
                    match operation {
                        ferrisdb_storage::Operation::Put { key, value } => {
                            drop(model.insert(key.to_vec(), value.to_vec()));
                        }
                        ferrisdb_storage::Operation::Delete { key } => drop(model.remove(key)),
                        _ => {}
                    }
                }
                operations += 1;
                pending.push(ticket);
            }
            Ok(Submitted::Stalled { batch, retry_after }) => {
                next = Some(batch);
                // The server's own timer would do this.
                if let Some(delay) = retry_after {
                    steps.run_for(delay);
                }
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    steps.run_for(Duration::from_secs(2));
    assert!(pending.iter_mut().all(|ticket| poll(ticket, Waker::noop()).is_ready()), "seed {seed}");
    assert!(synced > 0 && engine.statistics().flushes > 0 && engine.statistics().compactions > 0);
    assert_eq!(scan(&engine, IterOptions::default()).unwrap(), model, "seed {seed}");
    spawner.may_wait.store(true, Ordering::SeqCst);
    engine.close().unwrap();
    let result = (disk.state_hash(), steps.steps(), disk.mutations());
    steps.drop_jobs();
    result
}

/// One thread drives everything without ever waiting, and a seed decides everything: the same seed gives the same disk, step for step, and
/// another seed another.
#[test]
fn one_thread_drives_everything_deterministically() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..4 {
        let first = run_on_one_thread(seed);
        assert_eq!(first, run_on_one_thread(seed), "seed {seed}");
        hashes.insert(first.0);
    }
    assert_eq!(hashes.len(), 4);
}

/// A batch that is given back with a time to wait is taken at the next attempt, however large it is for the rate: it is delayed once.
#[test]
fn a_batch_is_delayed_once() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let options =
        Options { l0_compaction_tables: 1, l0_slowdown_tables: 1, l0_stop_tables: 100, compaction_jobs: 0, ..small() };
    let engine = machine.open(options.clone()).unwrap();
    for n in 0..20 {
        put(&engine, "k", &n.to_string());
        engine.flush().unwrap();
    }
    engine.close().unwrap();
    let engine = machine.open(Options { compaction_jobs: 1, ..options }).unwrap();
    let large = "x".repeat(1 << 20);
    // No job runs meanwhile: the pressure stays.
    let Submitted::Stalled { batch, retry_after: Some(_) } =
        engine.submit(put_batch("large", &large), Durability::Buffered).unwrap()
    else {
        panic!("it should be delayed")
    };
    drop(written(engine.submit(batch, Durability::Buffered).unwrap()));
    assert_eq!(engine.get(b"large").unwrap().unwrap(), large.as_bytes());
}

/// Flush and close as futures do what the calls do, and may be polled where nothing may block: in a job's step. So may the last handle be
/// dropped there: the jobs end by themselves, and the last gives the directory free.
#[test]
fn flush_and_close_in_a_step() {
    struct Caller<F>(Pin<Box<F>>, Arc<AtomicBool>, Waker);
    impl<F: Future<Output = ()> + Send + 'static> Job for Caller<F> {
        fn step(&mut self) -> ferrisdb_storage::env::Step {
            if self.0.as_mut().poll(&mut Context::from_waker(&self.2)).is_ready() {
                self.1.store(true, Ordering::SeqCst);
                return ferrisdb_storage::env::Step::Done;
            }
            // Looks again and again: the test has no waker of its own for it.
            ferrisdb_storage::env::Step::WaitFor(Duration::from_millis(1))
        }
    }
    let machine = Machine::new(SimFileSystem::new(), 0);
    let run = |future: Pin<Box<dyn Future<Output = ()> + Send>>| {
        let done = Arc::new(AtomicBool::new(false));
        machine.spawner.spawn("caller", Box::new(Caller(Box::pin(future), Arc::clone(&done), Waker::noop().clone())));
        machine.spawner.run_for(Duration::from_secs(1));
        assert!(done.load(Ordering::SeqCst));
    };
    let options = Options { wal: false, ..small() };
    let engine = machine.open(options.clone()).unwrap();
    let clone = engine.clone();
    run(Box::pin(async move {
        for n in 0..50 {
            drop(written(clone.submit(put_batch(&format!("k{n}"), "1"), Durability::Buffered).unwrap()));
        }
        assert_eq!(clone.flush_later().await.unwrap(), v(50));
        drop(written(clone.submit(put_batch("last", "1"), Durability::Buffered).unwrap()));
        clone.clone().close_later().await.unwrap();
        assert!(matches!(clone.close_later().await, Err(Error::Closed)));
    }));
    drop(engine);
    let engine = machine.open(options.clone()).unwrap();
    assert_eq!(engine.flushed_version(), v(51), "closing flushes");
    run(Box::pin(async move { drop(engine) }));
    let engine = machine.open(options).unwrap();
    assert_eq!(engine.get(b"last").unwrap().unwrap(), b"1");
}
