//! The first things that a program does.

use std::sync::Arc;

use ferrisdb_core::{KeyRange, MutationKind};

use crate::testing::{TestRuntime, database};
use crate::{Database, DatabaseOptions, RangeOptions};

/// A transaction is committed, another sees it, on no runtime at all.
#[test]
fn a_transaction_reads_writes_and_commits() {
    let (db, endpoint, _) = database();
    futures_executor::block_on(async {
        let before = db
            .run(async |tx| {
                let before = tx.get(b"hello").await?;
                tx.set(b"hello", b"world");
                assert_eq!(tx.get(b"hello").await?.as_deref(), Some(&b"world"[..]));
                Ok(before)
            })
            .await;
        assert_eq!(before, Ok(None));
        let tx = db.create_transaction();
        assert_eq!(tx.get("hello").await.expect("it is there").as_deref(), Some(&b"world"[..]));
        let commit = &endpoint.log().commits[0];
        assert_eq!(commit.read_conflicts, [KeyRange::single(b"hello")]);
        assert_eq!(commit.write_conflicts, [KeyRange::single(b"hello")]);
        assert!(commit.id.is_some());
    });
}

/// A body may borrow what is around it, and the whole still be a task of a runtime with several threads. (With `AsyncFn` in the place of `Fn` this does
/// not compile.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_may_borrow_in_its_transaction() {
    let (db, _, _) = database();
    let keys = [b"a".to_vec(), b"b".to_vec()];
    let task = tokio::spawn(async move {
        db.run(async |tx| {
            keys.iter().for_each(|key| tx.set(key, b"v"));
            tx.get(&keys[1]).await
        })
        .await
    });
    assert_eq!(task.await.expect("it does not panic").expect("it commits").as_deref(), Some(&b"v"[..]));
}

/// The same under tokio, with futures that move between threads, and answers that come late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_run_as_tokio_tasks() {
    let (db, endpoint, _) = database();
    endpoint.answer_late(3);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    // Without conflicts: a retry would wait for a clock that nobody moves.
                    db.run(async |tx| {
                        tx.atomic_op(b"counter", 1u32.to_le_bytes(), MutationKind::Add);
                        tx.snapshot().get(b"counter").await
                    })
                    .await
                    .expect("nothing fails");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    assert_eq!(endpoint.rows()[0].1.as_ref(), 160u32.to_le_bytes());
}

/// One transaction, used by many tasks on several threads at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_transaction_is_shared_between_threads() {
    let (db, endpoint, _) = database();
    endpoint.answer_late(2);
    let tx = db.create_transaction();
    let tasks: Vec<_> = (0..8u8)
        .map(|task| {
            let tx = tx.clone();
            tokio::spawn(async move {
                for number in 0..50u8 {
                    let absent = tx.get([b'r', task, number]);
                    tx.set([b'w', task, number], [number]);
                    let own = tx.get_range(KeyRange::single(&[b'w', task, number])).await.expect("it reads");
                    assert_eq!((own.rows.len(), absent.await), (1, Ok(None)));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    tx.commit().await.expect("it commits");
    assert_eq!(endpoint.rows().len(), 400);
    let commit = &endpoint.log().commits[0];
    assert_eq!((commit.read_conflicts.len(), commit.mutations.len()), (400, 400));
}

/// Handles can be shared and sent.
#[test]
fn handles_are_send_and_sync() {
    fn check<T: Send + Sync + 'static>(_: &T) {}
    fn check_send<T: Send + 'static>(_: &T) {}
    let (db, _, _) = database();
    let tx = db.create_transaction();
    check(&db);
    check(&tx);
    check(&tx.snapshot());
    check_send(&tx.get(b"k"));
    check_send(&tx.watch(b"k"));
    check_send(&tx.get_ranges(RangeOptions::prefix(b"")));
    check_send(&tx.commit());
    let runtime = Arc::new(TestRuntime::new(2));
    drop(Database::new(Arc::new(crate::testing::MemoryEndpoint::new()), runtime, DatabaseOptions::default()));
}
