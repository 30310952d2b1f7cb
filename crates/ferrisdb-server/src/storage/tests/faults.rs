//! Full and failing disks, closing at bad moments, and callers that do not keep the rules.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_core::{Code, Mutation, MutationKind};
use ferrisdb_storage::fs::sim::SimFileSystem;
use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, Verdict};

use super::{Machine, batch, bytes, code, get, set, tiny, v};
use crate::storage::StorageServer;

/// One batch of some four kilobytes.
fn large(version: u64) -> crate::storage::ApplyBatch {
    batch(version, (0..40).map(|n| set(&format!("k{:04}", (version * 40 + n) % 3000), &"x".repeat(99))).collect())
}

/// Applies until the engine takes no more for now; returns the first version that waits.
fn fill(machine: &Machine, storage: &StorageServer) -> u64 {
    for version in storage.applied_version().get() + 1.. {
        let mut applying = Box::pin(storage.apply(large(version)));
        for _ in 0..20 {
            machine.spawner.run_for(Duration::from_millis(50));
            match applying.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => {
                    result.expect("a full disk is no error");
                    break;
                }
                Poll::Pending => {}
            }
        }
        if storage.applied_version() < v(version) {
            assert!(storage.lag().is_stalled);
            // Dropped while it waited: it has not happened.
            drop(applying);
            assert!(!storage.lag().is_stalled);
            return version;
        }
    }
    unreachable!("the range has no end")
}

/// A full disk: reads go on, applying waits, and goes on when there is space again. What waited was not applied in part.
#[test]
fn a_full_disk_is_waited_for() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    machine.block_on(storage.apply(large(1))).expect("it can be applied");
    machine.block_on(storage.flush()).expect("there is space");
    machine.disk.set_capacity(machine.disk.used_bytes() + 10_000);
    let waiting = fill(&machine, &storage);
    assert!(waiting > 3);
    assert!(machine.block_on(get(&storage, "k0041", waiting - 1)).expect("reads go on").is_some());
    assert_eq!(code(machine.block_on(get(&storage, "k0041", waiting))), Code::FutureVersion);
    assert!(storage.failure().is_none());
    machine.disk.set_capacity(u64::MAX);
    machine.block_on(storage.apply(large(waiting))).expect("there is space again");
    assert_eq!(storage.applied_version(), v(waiting));
    let flushed = storage.flushed_version();
    assert_eq!(machine.block_on(storage.flush()), Ok(v(waiting)));
    assert_eq!(machine.block_on(storage.next_flush(flushed)), Ok(v(waiting)));
    machine.block_on(storage.close()).expect("it can be closed");
}

/// A sync that fails ends the role, which says why, to those who wait too; reads go on. Reopened, it goes on from what was flushed.
#[test]
fn a_failed_sync_ends_the_role() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    machine.block_on(storage.apply(large(1))).expect("it can be applied");
    machine.block_on(storage.flush()).expect("the disk is fine");
    let next_flush = storage.next_flush(storage.flushed_version());
    let future = get(&storage, "k0041", 100);
    machine.disk.inject(Injection::new(&[OpKind::Sync], Verdict::FailAndDrop(DiskError::Io)).path(".sst").once());
    machine.block_on(storage.apply(large(2))).expect("it is in memory");
    assert_eq!(code(machine.block_on(storage.flush())), Code::IoError);
    machine.spawner.run_for(Duration::from_millis(10));
    let failure = storage.failure().expect("it has failed");
    assert!(failure.detail().is_some_and(|detail| detail.contains(".sst") && detail.contains("sync")), "{failure}");
    assert_eq!(machine.block_on(next_flush), Err(failure.clone()));
    assert_eq!(machine.block_on(future), Err(failure.clone()), "it does not wait for its time");
    assert_eq!(machine.block_on(storage.apply(large(3))), Err(failure));
    assert!(machine.block_on(get(&storage, "k0090", 2)).expect("reads go on").is_some());
    assert_eq!(code(machine.block_on(storage.close())), Code::IoError);

    let machine = machine.crash(2);
    let (storage, recovery) = machine.open(tiny()).expect("it can be opened");
    assert_eq!(recovery.flushed, v(1));
    machine.block_on(storage.apply(large(2))).expect("from the log");
}

/// Closing while a batch waits for space ends the wait with an error, and everything that is asked later.
#[test]
fn closing_ends_what_waits() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    machine.disk.set_capacity(machine.disk.used_bytes() + 5_000);
    let waiting = fill(&machine, &storage);
    let mut applying = Box::pin(storage.apply(large(waiting)));
    assert!(applying.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let future = get(&storage, "a", waiting);
    assert_eq!(code(machine.block_on(storage.clone().close())), Code::IoError, "the last flush found no space");
    assert_eq!(code(machine.block_on(applying)), Code::ConnectionFailed);
    assert_eq!(code(machine.block_on(future)), Code::ConnectionFailed);
    assert_eq!(code(machine.block_on(get(&storage, "a", 1))), Code::ConnectionFailed);
    assert_eq!(code(machine.block_on(get(&storage, "a", 100_000))), Code::ConnectionFailed);
    assert_eq!(code(machine.block_on(storage.next_flush(v(1_000_000)))), Code::ConnectionFailed);
    assert_eq!(code(machine.block_on(storage.close())), Code::ConnectionFailed);
}

/// Nothing is left of a server whose last handle went without a close, not even its jobs, though one of them read from disk.
#[test]
fn a_dropped_server_leaves_nothing() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    for version in 1..40 {
        machine.block_on(storage.apply(large(version))).expect("it can be applied");
    }
    let range = ferrisdb_core::KeyRange::new(bytes("k"), bytes("l"));
    machine.block_on(storage.estimated_size(range.clone())).expect("a job has counted");
    let shared = std::sync::Arc::downgrade(&storage.shared);
    let unasked = storage.estimated_size(range);
    drop(storage);
    assert!(shared.upgrade().is_some(), "an answer under way keeps it");
    drop(unasked);
    assert!(shared.upgrade().is_none());
    machine.spawner.run_for(Duration::from_secs(2));
    // Timers are the runtime's.
    assert!(machine.spawner.jobs().iter().all(|job| job == "timers"), "{:?}", machine.spawner.jobs());
}

/// Batches that are none are refused, and nothing of them is applied.
#[test]
fn bad_batches_are_refused() {
    let machine = Machine::new(SimFileSystem::new(), 5);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    machine.block_on(storage.apply(batch(5, vec![set("a", "1")]))).expect("it can be applied");
    for version in [0, 4, 5] {
        let result = machine.block_on(storage.apply(batch(version, vec![set("a", "2")])));
        // Version 0 is what was recovered.
        assert_eq!(result.map_err(|error| error.code()), if version == 0 { Ok(()) } else { Err(Code::InternalError) });
    }
    let stamped = Mutation::new(MutationKind::SetVersionstampedValue, bytes("b"), bytes("x"));
    let bad = [vec![set("a", "2"), stamped], vec![set("a", "2"), Mutation::set(vec![b'k'; 70_000], bytes("1"))]];
    for mutations in bad {
        assert_eq!(code(machine.block_on(storage.apply(batch(6, mutations)))), Code::InternalError);
        let owner =
            crate::storage::ApplyBatch { owner_state: Some(vec![0; 5_000_000]), ..batch(6, vec![set("a", "2")]) };
        assert_eq!(code(machine.block_on(storage.apply(owner))), Code::InternalError);
        assert_eq!(storage.applied_version(), v(5));
        assert_eq!(machine.block_on(get(&storage, "a", 5)), Ok(Some(bytes("1"))));
    }
    // An inverted range clears nothing.
    let inverted = Mutation::clear_range(bytes("z"), bytes("a"));
    machine.block_on(storage.apply(batch(6, vec![inverted]))).expect("it can be applied");
    assert_eq!(machine.block_on(get(&storage, "a", 6)), Ok(Some(bytes("1"))));
}

/// A lease that was granted after the last flush survives a crash, also if that flush already collected by a later horizon.
#[test]
fn a_lease_is_applied_again() {
    let machine = Machine::new(SimFileSystem::new(), 6);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    // Enough for the memtable to be sealed; then the lease, and the horizon passes it before the flush runs.
    let mut log: Vec<_> = (1..=5).map(large).collect();
    let leased: std::sync::Arc<[ferrisdb_core::Version]> = [v(100)].into();
    for (version, horizon) in [(100, 0), (101, 50), (200, 150)] {
        let mutations = vec![set("a", &version.to_string())];
        let leased = if version == 100 { [].into() } else { std::sync::Arc::clone(&leased) };
        log.push(crate::storage::ApplyBatch { horizon: v(horizon), leased, ..batch(version, mutations) });
    }
    for batch in &log {
        // Ready at once: no job runs meanwhile.
        let mut applying = Box::pin(storage.apply(batch.clone()));
        assert!(applying.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
    machine.spawner.run_for(Duration::from_secs(1));
    let flushed = storage.flushed_version();
    assert!(v(0) < flushed && flushed < v(100), "the sealed memtable is flushed, the lease is not: {flushed}");
    drop(storage);
    let machine = machine.crash(6);
    let (storage, recovery) = machine.open(tiny()).expect("it can be opened");
    assert_eq!(recovery.flushed, flushed);
    for batch in &log {
        machine.block_on(storage.apply(batch.clone())).expect("from the log");
    }
    assert_eq!(machine.block_on(get(&storage, "a", 100)), Ok(Some(bytes("100"))));
    assert_eq!(code(machine.block_on(get(&storage, "a", 101))), Code::TransactionTooOld);
}
