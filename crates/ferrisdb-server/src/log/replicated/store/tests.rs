use std::task::{Context, Poll, Waker};

use ferrisdb_core::ManualClock;
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, SimFileSystem, Verdict};
use openraft::storage::{IOFlushed, RaftLogStorage as _};

use super::super::types::{Members, log_id, take_vote};
use super::memory::{KIND_COMMITTED, KIND_CUT, KIND_VOTE};
use super::*;

/// A store whose tasks do not run: what is durable, the test has made so.
fn open(disk: &SimFileSystem) -> LogStore {
    let clock = Arc::new(ManualClock::new());
    let spawner = Arc::new(StepSpawner::new(Arc::clone(&clock)));
    let env = Env { fs: Arc::new(disk.clone()), clock, spawner, entropy: Arc::new(SeededEntropy::new(1)) };
    LogStore::open(JobRuntime::new(env), Path::new("/log"), LogStoreOptions::tiny(), [7; 16]).expect("it opens")
}

fn poll<T>(future: &mut BoxFuture<T>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Has the store keep a record of that kind; the error is what the library or the caller is told.
fn keep(store: &LogStore, kind: u8) -> BoxFuture<std::result::Result<(), String>> {
    let mut store = store.clone();
    Box::pin(async move {
        let told = match kind {
            KIND_ENTRY => store.append([RaftLogEntry::new_blank(log_id(3, 0))], IOFlushed::noop()).await,
            KIND_VOTE => {
                let vote = take_vote(&mut Decoder::new(&[3, 2, 0])).expect("term 3, for process 2, not yet a leader");
                store.save_vote(&vote).await
            }
            KIND_COMMITTED => store.save_committed(Some(log_id(3, 1))).await,
            KIND_CUT => store.truncate_after(None).await,
            KIND_SNAPSHOT => {
                let nothing = StoredSnapshot { last: None, members: Members::default(), state: Bytes::new() };
                return store.save_snapshot(nothing).await.map_err(|error| error.to_string());
            }
            other => unreachable!("there are no records of kind {other}"),
        };
        told.map_err(|error| error.to_string())
    })
}

/// After a failed sync everybody is told the same, whoever came first: the one that synced, one that has another record kept before that has said so, or who
/// prepares the next file; and at once, not with the next record.
#[test]
fn a_failed_sync_has_one_reason_whoever_tells_it() {
    let records = [KIND_ENTRY, KIND_VOTE, KIND_COMMITTED, KIND_CUT, KIND_SNAPSHOT];
    for first in ["sync", "prepare"].into_iter().map(Err).chain(records.map(Ok)) {
        let disk = SimFileSystem::new();
        let store = open(&disk);
        let mut waits = keep(&store, KIND_VOTE);
        assert!(poll(&mut waits).is_pending(), "nobody makes it durable");
        disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path("/log").once());
        let mut refused = None;
        match first {
            Err("sync") => assert!(store.sync_step()),
            Err(_) => {
                let mut preparing: BoxFuture<()> = Box::pin(maintain_until_closed(Arc::clone(&store.shared)));
                assert!(poll(&mut preparing).is_pending());
            }
            Ok(kind) => {
                store.shared.wal.sync().expect_err("the disk refuses");
                refused = Some(poll(&mut keep(&store, kind)));
            }
        }
        let Poll::Ready(Err(reason)) = poll(&mut waits) else { panic!("{first:?}: who waited is told at once") };
        assert!(reason.contains(NOT_DURABLE), "{first:?}: {reason}");
        assert!(reason.contains("Input/output error"), "{first:?}: it names the cause: {reason}");
        if let Some(refused) = refused {
            assert_eq!(refused, Poll::Ready(Err(reason.clone())), "{first:?}: who came first is told the same");
        }
        for later in records {
            assert_eq!(poll(&mut keep(&store, later)), Poll::Ready(Err(reason.clone())), "{first:?}, then {later}");
        }
    }
}
