//! The first things that a program does.

use std::thread;

use ferrisdb_client::{RangeOptions, StreamingMode};
use ferrisdb_core::{KeyRange, KeySelector, Mutation, MutationKind};
use futures_executor::block_on;

use crate::deployment::Deployment;

/// A transaction is committed, and others see it, on no runtime at all.
pub(crate) fn a_transaction_reads_writes_and_commits(here: &Deployment) {
    let db = here.database();
    let before = block_on(db.run(async |tx| {
        let before = tx.get(b"hello").await?;
        tx.set(b"hello", b"world");
        assert_eq!(tx.get(b"hello").await?.as_deref(), Some(&b"world"[..]));
        Ok(before)
    }));
    assert_eq!(before, Ok(None));
    assert_eq!(block_on(db.create_transaction().get("hello")), Ok(Some("world".into())));
    assert_eq!(here.rows(), [("hello".into(), "world".into())], "somebody else sees it too");
}

/// Many clients' transactions at once, with conflicts and without: each happens once.
pub(crate) fn transactions_of_many_threads_happen_once(here: &Deployment) {
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let db = here.database();
                for _ in 0..10 {
                    let counted = block_on(db.run(async |tx| {
                        tx.atomic_op("blind", 1u32.to_le_bytes(), MutationKind::Add);
                        let read = tx.get("read").await?.map_or(0, |value| value[0]);
                        tx.set("read", [read + 1]);
                        Ok(())
                    }));
                    counted.expect("it commits in the end");
                }
            });
        }
    });
    assert_eq!(here.rows(), [("blind".into(), 60u32.to_le_bytes().to_vec().into()), ("read".into(), vec![60].into())]);
}

/// One transaction, used by many threads at once.
pub(crate) fn a_transaction_is_shared_between_threads(here: &Deployment) {
    let tx = here.database().create_transaction();
    thread::scope(|scope| {
        for thread in 0..6u8 {
            let tx = tx.clone();
            scope.spawn(move || {
                for number in 0..20u8 {
                    let absent = tx.get([b'r', thread, number]);
                    tx.set([b'w', thread, number], [number]);
                    let own = block_on(tx.get_range(KeyRange::single(&[b'w', thread, number]))).expect("it reads");
                    assert_eq!((own.rows.len(), block_on(absent)), (1, Ok(None)));
                }
            });
        }
    });
    block_on(tx.commit()).expect("it commits");
    assert_eq!(here.rows().len(), 120);
}

/// Range reads, both directions, in chunks and streamed.
pub(crate) fn ranges_are_read_in_chunks(here: &Deployment) {
    here.write((0..10u8).map(|number| Mutation::set(vec![b'k', number], vec![number; 10])).collect());
    let tx = here.database().create_transaction();
    tx.clear([b'k', 4]);
    tx.set([b'k', 4, 4], b"new");
    for reverse in [false, true] {
        let range = RangeOptions::prefix(b"k").mode(StreamingMode::Small).reverse(reverse);
        let rows = block_on(tx.get_ranges(range).collect()).expect("it reads");
        let mut keys: Vec<u8> = rows.iter().map(|row| row.key[1]).collect();
        if reverse {
            keys.reverse();
        }
        assert_eq!(keys, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
    let chunk = block_on(tx.get_range(RangeOptions::prefix(b"k").limit(2))).expect("it reads");
    assert!(chunk.rows.len() == 2 && chunk.more);
    let key = block_on(tx.get_key(KeySelector::first_greater_than([b'k', 3].to_vec()))).expect("it reads");
    assert_eq!(key.as_ref(), [b'k', 4, 4]);
}
