//! Any future may be dropped at any point: the transaction goes on as if it had never been.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use ferrisdb_client::{RangeOptions, StreamingMode, Transaction};
use ferrisdb_core::{Code, KeySelector, Mutation, MutationKind};
use futures_executor::block_on;

use super::{conflict_text, range};
use crate::deployment::Deployment;

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
        ("split points", |tx| work(tx.get_range_split_points(range("k", "l"), 100, 0))),
        ("addresses", |tx| work(tx.get_addresses_for_key("k"))),
        ("watch", |tx| work(tx.watch("k3"))),
        ("on_error", |tx| work(tx.on_error(Code::FutureVersion.into()))),
        ("versionstamp", |tx| work(tx.get_versionstamp())),
        ("special", |tx| work(tx.get(b"\xff\xff/status/json"))),
    ]
}

pub(crate) fn a_dropped_future_leaves_nothing_behind(here: &Deployment) {
    here.write((0..10).map(|number| Mutation::set(format!("k{number}"), vec![b'v'; 100])).collect());
    let db = here.database();
    for (name, work) in works() {
        for polls in [0, 1, 2, 5] {
            let tx = db.create_transaction();
            tx.set("k5", "own");
            let mut future = work(&tx);
            let mut context = Context::from_waker(Waker::noop());
            let is_done = (0..polls).any(|_| future.as_mut().poll(&mut context).is_ready());
            drop(future);
            // It goes on, sees its writes, and commits.
            tx.set("k6", "own");
            let rows = block_on(tx.get_range(range("k5", "k7"))).expect("it reads").rows;
            assert_eq!(rows.len(), 2, "{name}, {polls} polls");
            // What was answered at once has been read, whether anybody looked or not; what comes after it is told as ever.
            let conflicts = conflict_text(&tx, "read");
            assert!(
                ["k5\\x00..k6 k6\\x00..k7", "k5\\x00..l"].iter().any(|end| conflicts.ends_with(end)),
                "{name}: {conflicts}"
            );
            block_on(tx.commit()).unwrap_or_else(|error| panic!("{name}, {polls} polls, done: {is_done}: {error}"));
        }
    }
}

/// A commit that is dropped after any number of polls happens once all the same.
pub(crate) fn a_dropped_commit_happens_once(here: &Deployment) {
    let db = here.database();
    for polls in 0..6u8 {
        let tx = db.create_transaction();
        let read = tx.get("k");
        tx.atomic_op("counter", [1], MutationKind::Add);
        let stamp = tx.get_versionstamp();
        let mut commit = tx.commit();
        let mut context = Context::from_waker(Waker::noop());
        let _ = (0..polls).any(|_| Pin::new(&mut commit).poll(&mut context).is_ready());
        drop(commit);
        block_on(stamp).expect("it commits");
        assert_eq!(here.rows(), [("counter".into(), vec![polls + 1].into())]);
        drop(read);
    }
}
