//! Any future may be dropped at any point: nothing is left behind, and the transaction goes on as if it had never been.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::{code, range};
use crate::testing::database;
use crate::{RangeOptions, StreamingMode, Transaction, TransactionOption};
use ferrisdb_core::{Code, KeySelector, Mutation};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
type Call = fn(&Transaction) -> Work;

/// Every call that returns a future.
fn works() -> Vec<(&'static str, Call)> {
    fn work<T>(future: impl Future<Output = T> + Send + 'static) -> Work {
        Box::pin(async move { drop(future.await) })
    }
    vec![
        ("get", |tx| work(tx.get("k3"))),
        ("get_key", |tx| work(tx.get_key(KeySelector::first_greater_than("k").offset_by(5)))),
        ("get_range", |tx| work(tx.get_range(range("k", "l")))),
        ("get_ranges", |tx| work(tx.get_ranges(RangeOptions::prefix(b"k").mode(StreamingMode::Small)).collect())),
        ("get_read_version", |tx| work(tx.get_read_version())),
        ("estimated size", |tx| work(tx.get_estimated_range_size(range("k", "l")))),
        ("watch", |tx| work(tx.watch("k3"))),
        ("on_error", |tx| work(tx.on_error(Code::FutureVersion.into()))),
        ("versionstamp", |tx| work(tx.get_versionstamp())),
        ("special", |tx| work(tx.get(b"\xff\xff/status/json"))),
    ]
}

#[test]
fn a_dropped_future_leaves_nothing_behind() {
    for (name, work) in works() {
        for polls in 0..12 {
            let (db, endpoint, rt) = database();
            endpoint.write((0..10).map(|number| Mutation::set(format!("k{number}"), vec![b'v'; 100])).collect());
            endpoint.limit_parts(2);
            endpoint.answer_late(1);
            let tx = db.create_transaction();
            tx.set_option(&TransactionOption::Timeout(10_000));
            tx.set("k5", "own");
            let mut future = work(&tx);
            let mut context = Context::from_waker(Waker::noop());
            let is_done = (0..polls).any(|_| future.as_mut().poll(&mut context).is_ready());
            drop(future);
            let what = format!("{name}, {polls} polls");
            assert_eq!(tx.inner.with(|state| state.waiting()), (0, 0), "{what}");
            assert_eq!((rt.timer_count(), rt.tasks().len(), db.inner.watch_count()), (0, 0, 0), "{what}");
            if !is_done {
                assert_eq!(tx.inner.with(|state| state.read_error.clone()), None, "{what}");
            }
            // It goes on, sees its writes, and commits.
            tx.set("k6", "own");
            let rows = rt.block_on(tx.get_range(range("k", "l"))).expect("it reads").rows;
            assert_eq!(rows.len(), 10, "{what}");
            assert_eq!(code(rt.block_on(tx.commit())), 0, "{what}");
            drop(tx);
            assert_eq!(Arc::strong_count(&db.inner), 1, "{what}");
        }
    }
}

/// A commit that is dropped after any number of polls happens once all the same, and so does `run` as far as it came.
#[test]
fn a_dropped_commit_happens_once() {
    for polls in 0..12 {
        let (db, endpoint, rt) = database();
        endpoint.answer_late(2);
        let tx = db.create_transaction();
        let read = tx.get("k");
        tx.atomic_op("counter", [1], ferrisdb_core::MutationKind::Add);
        let mut commit = tx.commit();
        let mut context = Context::from_waker(Waker::noop());
        let is_done = (0..polls).any(|_| Pin::new(&mut commit).poll(&mut context).is_ready());
        drop(commit);
        assert_eq!(rt.tasks().len(), usize::from(!is_done));
        rt.run_until_idle();
        assert_eq!((rt.tasks().len(), rt.timer_count()), (0, 0));
        assert_eq!(endpoint.rows()[0].1.as_ref(), [1], "{polls} polls");
        assert!(tx.get_committed_version().is_some());
        drop((tx, read));
        assert_eq!(Arc::strong_count(&db.inner), 1, "{polls} polls");

        let mut run = Box::pin(db.run(async |tx| {
            tx.get("k").await?;
            tx.atomic_op("counter", [1], ferrisdb_core::MutationKind::Add);
            Ok(())
        }));
        let _ = (0..polls).any(|_| run.as_mut().poll(&mut context).is_ready());
        drop(run);
        rt.run_until_idle();
        assert!(endpoint.rows()[0].1[0] <= 2);
        assert_eq!((Arc::strong_count(&db.inner), rt.tasks().len()), (1, 0), "{polls} polls");
    }
}
