use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll, Wake};

use ferrisdb_core::ManualClock;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::{CrashMode, DiskError, Injection, OpKind, SimFileSystem, Verdict};

use super::*;
use crate::log::{Batch, EpochStart};

/// What a crash would leave of the log at the moment of the wake: with all that was written, and with only what was synced.
struct WhatWouldBeLeft {
    disk: SimFileSystem,
    left: Mutex<Option<[Version; 2]>>,
}

impl Wake for WhatWouldBeLeft {
    fn wake(self: Arc<Self>) {
        let left = [CrashMode::NothingLost, CrashMode::UnsyncedLost];
        *lock(&self.left) = Some(left.map(|mode| open(&self.disk.fork_crashed(mode)).last()));
    }
}

#[derive(Default)]
struct Counted(AtomicU32);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A log whose tasks do not run: what is durable, its callers have made so.
fn open(disk: &SimFileSystem) -> LocalLog {
    let clock = Arc::new(ManualClock::new());
    let spawner = Arc::new(StepSpawner::new(Arc::clone(&clock)));
    let env =
        ferrisdb_storage::Env { fs: Arc::new(disk.clone()), clock, spawner, entropy: Arc::new(SeededEntropy::new(1)) };
    LocalLog::open(JobRuntime::new(env), Path::new("/log"), LocalLogOptions::tiny(), [7; 16], None, Version::ZERO)
        .expect("it opens")
}

const OWNER: [u8; 16] = [1; 16];

fn first_epoch() -> Entry {
    Entry::EpochStart(EpochStart { epoch: 1, owner: OWNER, process: 0, first_version: Version::from_u64(100) })
}

fn batch(previous: u64, version: u64) -> Entry {
    Entry::Batch(Batch {
        epoch: 1,
        owner: OWNER,
        previous: Version::from_u64(previous),
        version: Version::from_u64(version),
        horizon: Version::ZERO,
        leased: Arc::default(),
        sections: Vec::new(),
        metadata: Vec::new(),
        ids: Vec::new(),
    })
}

fn poll<T>(future: &mut BoxFuture<T>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Who appends alone has it durable, counted and answered when the call returns, with whatever was appended before; the subscriber is not woken by it, but
/// by the caller. An ordinary append waits for the log's task.
#[test]
fn who_appends_alone_needs_no_task() {
    let disk = SimFileSystem::new();
    let log = open(&disk);
    let v = Version::from_u64;
    let start = first_epoch();
    let mut subscription = log.subscribe(Tag::FIRST, Version::ZERO).expect("it is there");
    let counted = Arc::new(Counted::default());
    let waker = Waker::from(Arc::clone(&counted));
    assert!(subscription.poll_next(&mut Context::from_waker(&waker)).is_pending());

    let mut first = log.append(vec![start]).expect("it is appended");
    assert!(poll(&mut first).is_pending());
    let (mut second, subscriber) =
        log.append_alone(vec![batch(100, 110)], &mut Afterwards::new()).expect("it is appended");
    assert_eq!(poll(&mut first), Poll::Ready(Ok(Applied::Counted)));
    assert_eq!(poll(&mut second), Poll::Ready(Ok(Applied::Counted)));
    assert_eq!((log.last(), counted.0.load(Ordering::SeqCst)), (v(110), 0));
    subscriber.expect("somebody waits").wake();
    assert_eq!(counted.0.load(Ordering::SeqCst), 1);

    let mut third = log.append(vec![batch(110, 120)]).expect("it is appended");
    assert!(poll(&mut third).is_pending());
    assert_eq!(log.last(), v(110));
    let after_a_crash = open(&disk.fork_crashed(CrashMode::UnsyncedLost));
    assert_eq!(after_a_crash.last(), v(110));
    assert!(log.sync_step());
    assert_eq!(poll(&mut third), Poll::Ready(Ok(Applied::Counted)));
    assert!(!log.sync_step());
}

/// Who is to work while the disk does is woken when the entries are written and not yet durable; if they are refused, not at all.
#[test]
fn who_works_meanwhile_is_woken_between_write_and_sync() {
    let disk = SimFileSystem::new();
    let log = open(&disk);
    let v = Version::from_u64;
    drop(log.append_alone(vec![first_epoch()], &mut Afterwards::new()).expect("it is appended"));
    let seen = Arc::new(WhatWouldBeLeft { disk: disk.clone(), left: Mutex::default() });
    let mut meanwhile = Afterwards::new();
    meanwhile.push(Waker::from(Arc::clone(&seen)));
    let (mut appended, _) = log.append_alone(vec![batch(100, 110)], &mut meanwhile).expect("it is appended");
    assert_eq!(poll(&mut appended), Poll::Ready(Ok(Applied::Counted)));
    assert_eq!(lock(&seen.left).take(), Some([v(110), v(100)]));

    disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path("/log").once());
    drop(log.append_alone(vec![batch(110, 120)], &mut Afterwards::new()).expect("it is appended"));
    let counted = Arc::new(Counted::default());
    let mut meanwhile = Afterwards::new();
    meanwhile.push(Waker::from(Arc::clone(&counted)));
    assert!(log.append_alone(vec![batch(120, 130)], &mut meanwhile).is_err(), "the log is broken");
    assert_eq!(counted.0.load(Ordering::SeqCst), 0, "its caller has it still");
    meanwhile.wake();
    assert_eq!(counted.0.load(Ordering::SeqCst), 1);
}

/// After a failed sync everybody is told the same, whoever came first: the one that synced, one that appends before that has said so, or who prepares the
/// next file; and at once, not with the next commit.
#[test]
fn a_failed_sync_has_one_reason_whoever_tells_it() {
    for first in ["sync", "append", "prepare"] {
        let disk = SimFileSystem::new();
        let log = open(&disk);
        let mut waits = log.append(vec![first_epoch()]).expect("it is appended");
        disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path("/log").once());
        match first {
            "sync" => assert!(log.sync_step()),
            "append" => drop(log.shared.wal.sync().expect_err("the disk refuses")),
            _ => {
                let mut preparing: BoxFuture<()> = Box::pin(maintain_until_closed(Arc::clone(&log.shared)));
                assert!(poll(&mut preparing).is_pending());
                assert!(log.failure().is_some(), "it is told at once");
            }
        }
        let refused = log.append(vec![first_epoch()]).err().expect("the log is broken");
        let Poll::Ready(Err(told)) = poll(&mut waits) else { panic!("who waited is told") };
        for error in [Some(refused), Some(told), log.failure()] {
            let error = error.expect("it has failed").to_string();
            assert!(error.contains(NOT_DURABLE), "{first}: {error}");
            assert!(error.contains("Input/output error"), "{first}: it names the cause: {error}");
        }
    }
}
