//! Reads that wait: for a version, for the disk; their bounds, and what is left of them when nobody wants the answer any more.

use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::{Code, KeyRange, KeySelector, Mutation};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{GetKeyRequest, GetRangeRequest, SplitPointsRequest};
use ferrisdb_storage::fs::sim::SimFileSystem;

use super::{Machine, batch, bytes, code, get, poll, set, tiny, v};
use crate::storage::{StorageOptions, StorageServer};

fn range(begin: &str, end: &str, version: u64) -> GetRangeRequest {
    GetRangeRequest {
        range: KeyRange::new(bytes(begin), bytes(end)),
        version: v(version),
        limit: 0,
        target_bytes: 0,
        reverse: false,
    }
}

/// A server with so much data that most of it is in no cache, at version 100.
fn cold(machine: &Machine, options: StorageOptions) -> StorageServer {
    let (storage, _) = machine.open(options).expect("a new one");
    for version in 1..=100 {
        let mutations = (0..20).map(|n| set(&format!("k{:05}", version * 20 + n), &"x".repeat(90))).collect();
        machine.block_on(storage.apply(batch(version, mutations))).expect("it can be applied");
    }
    machine.block_on(storage.flush()).expect("there is space");
    machine.spawner.run_for(Duration::from_secs(1));
    storage
}

/// A read above the applied version gets its answer when the version is applied, or `future_version` after the bound and not before.
#[test]
fn a_read_waits_for_its_version() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    let mut early = get(&storage, "a", 5);
    let mut late = get(&storage, "a", 7);
    assert!(poll(&mut early).is_pending() && poll(&mut late).is_pending());
    assert_eq!(storage.lag().waiting_reads, 2);
    machine.block_on(storage.apply(batch(6, vec![set("a", "1")]))).expect("it can be applied");
    assert_eq!(poll(&mut early), Poll::Ready(Ok(None)), "version 5 is before the batch");
    machine.spawner.run_for(Duration::from_millis(990));
    assert!(poll(&mut late).is_pending());
    machine.spawner.run_for(Duration::from_millis(20));
    assert_eq!(code(machine.block_on(late)), Code::FutureVersion);
    drop(early);
    assert_eq!(storage.lag().waiting_reads, 0);
}

/// What is dropped leaves every list; too many are refused with the retryable code.
#[test]
fn dropped_reads_leave_the_lists() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let (storage, _) = machine.open(StorageOptions { version_waiters: 3, ..tiny() }).expect("a new one");
    for _ in 0..10 {
        let waiting: Vec<Answer<_>> = (0..3).map(|n| get(&storage, "a", 5 + n)).collect();
        assert_eq!(code(machine.block_on(get(&storage, "a", 5))), Code::ProcessBehind);
        assert_eq!(storage.lag().waiting_reads, 3);
        drop(waiting);
        assert_eq!(storage.lag().waiting_reads, 0);
    }
    let mut flush = Box::pin(storage.next_flush(v(0)));
    assert!(Future::poll(flush.as_mut(), &mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
    assert_eq!(storage.shared.news.waiting(), 1);
    drop(flush);
    assert_eq!(storage.shared.news.waiting(), 0);
}

/// What is in memory is answered at once; what is not goes to the pool, over a bounded queue that dropped answers leave.
#[test]
fn reads_from_disk_queue() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let storage = cold(&machine, StorageOptions { read_queue: 3, ..tiny() });
    let keys = || (20..2000).map(|n| format!("k{n:05}"));
    assert!(storage.shared.pool.len() == 0);
    // Nothing runs between the calls, so that nothing leaves the queue.
    let mut queued = Vec::new();
    let mut is_refused = false;
    for key in keys() {
        match get(&storage, &key, 100).try_now() {
            Ok(Ok(value)) => assert!(value.is_some()),
            Ok(Err(error)) => {
                assert_eq!(error.code(), Code::ProcessBehind);
                is_refused = true;
                break;
            }
            Err(later) => queued.push(later),
        }
    }
    assert!(is_refused && queued.len() == 3);
    assert_eq!(storage.lag().queued_reads, 3);
    queued.pop();
    assert_eq!(storage.lag().queued_reads, 2, "a dropped answer leaves the queue");
    for answer in queued {
        assert!(machine.block_on(answer).expect("there is a disk").is_some());
    }
    assert_eq!(storage.lag().queued_reads, 0);
    let mut hot = get(&storage, "k02000", 100);
    machine.spawner.run_until_idle();
    drop(poll(&mut hot));
    assert!(matches!(get(&storage, "k02000", 100), Answer::Now(_)), "it has just been read");
}

/// A long range comes in pieces of the server's bound that fit together; a large offset of a selector is counted on a job.
#[test]
fn long_reads_are_bounded() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    let storage = cold(&machine, StorageOptions { range_bytes: 5000, ..tiny() });
    let (mut begin, mut rows, mut parts) = ("k".to_owned(), 0, 0);
    loop {
        let part = machine.block_on(storage.get_range(range(&begin, "l", 100))).expect("it can be read");
        let bytes: usize = part.rows.iter().map(|row| 8 + row.key.len() + row.value.len()).sum();
        assert!(bytes < 5000 + 104 && (bytes >= 5000 || !part.more));
        rows += part.rows.len();
        parts += 1;
        let Some(last) = part.rows.last().filter(|_| part.more) else { break };
        begin = format!("{}\0", String::from_utf8_lossy(&last.key));
    }
    assert_eq!((rows, parts), (2000, 2000_usize.div_ceil(5000_usize.div_ceil(104))));
    let selector = KeySelector::first_greater_or_equal("k").offset_by(1999);
    let request = GetKeyRequest { selector, end: bytes("l"), version: v(100) };
    assert_eq!(machine.block_on(storage.get_key(request.clone())).expect("it can be read"), "k02019");
    let request = GetKeyRequest { selector: request.selector.offset_by(1), ..request };
    assert_eq!(machine.block_on(storage.get_key(request)).expect("it can be read"), "l");
}

/// A single row above the bound is sent all the same.
#[test]
fn one_row_is_always_sent() {
    let machine = Machine::new(SimFileSystem::new(), 5);
    let (storage, _) = machine.open(StorageOptions { range_bytes: 10, ..tiny() }).expect("a new one");
    let large = "x".repeat(1000);
    machine.block_on(storage.apply(batch(1, vec![set("a", &large), set("b", &large)]))).expect("it can be applied");
    let part = machine.block_on(storage.get_range(range("", "z", 1))).expect("it can be read");
    assert!(part.rows.len() == 1 && part.more && part.rows[0].value.len() == 1000);
}

/// Sizes count what is in tables and what is only in memory; split points cut what there is.
#[test]
fn sizes_count_what_is_not_flushed_yet() {
    let machine = Machine::new(SimFileSystem::new(), 6);
    let engine = ferrisdb_storage::Options { write_buffer_bytes: 8 << 20, ..ferrisdb_storage::Options::tiny() };
    let (storage, _) = machine.open(StorageOptions { engine, ..tiny() }).expect("a new one");
    let mutations =
        |from: u64| (from..from + 5000).map(|n| set(&format!("k{n:07}"), &format!("{:092}", n * n))).collect();
    let all = KeyRange::new(bytes("k"), bytes("l"));
    let size = || machine.block_on(storage.estimated_size(all.clone())).expect("it can be estimated");
    assert_eq!(size(), 0);
    machine.block_on(storage.apply(batch(1, mutations(0)))).expect("it can be applied");
    let in_memory = size();
    assert!((400_000..600_000).contains(&in_memory), "of 500,000: {in_memory}");
    machine.block_on(storage.flush()).expect("there is space");
    machine.block_on(storage.apply(batch(2, mutations(5000)))).expect("it can be applied");
    let on_disk = storage.shared.engine.approximate_size(None, None).expect("it can be read").disk_bytes;
    let both = size();
    assert!(on_disk > 50_000 && both.abs_diff(on_disk + 500_000) < 100_000, "{on_disk} and about 500,000: {both}");
    let clear = Mutation::clear_range(bytes("k"), bytes("l"));
    machine.block_on(storage.apply(batch(3, vec![clear]))).expect("it can be applied");
    assert_eq!(size(), on_disk, "cleared in memory; in tables it is there until a compaction");

    let split = |limit| {
        let request = SplitPointsRequest { range: all.clone(), part_bytes: both / 20, limit };
        machine.block_on(storage.split_points(request)).expect("it can be cut")
    };
    let points = split(0);
    assert!(points.len() > 8 && points.is_sorted() && points.iter().all(|point| all.contains(point)));
    assert_eq!(split(4).len(), 3);
}
