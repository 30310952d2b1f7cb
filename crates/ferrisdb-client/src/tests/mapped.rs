//! Section 11: mapped range reads.

use ferrisdb_core::Mutation;

use crate::layers::tuple::Tuple;
use crate::testing::database;
use crate::{Mapped, RangeOptions, StreamingMode};

fn index() -> RangeOptions {
    Tuple::from(("i",)).range().into()
}

/// What the entries lead to counts: a chunk ends when it is full, conflicts with no more than it has, and the next one goes on behind it.
#[test]
fn chunks_are_full_of_what_the_entries_lead_to() {
    let (db, endpoint, rt) = database();
    let rows = 40;
    let mutations = (0..rows).flat_map(|number| {
        let record = Mutation::set(Tuple::from(("r", number)).pack(), vec![b'v'; 500]);
        [Mutation::set(Tuple::from(("i", number)).pack(), ""), record]
    });
    endpoint.write(mutations.collect());
    // Parts of three rows, a turn late, so that entries come in pieces and questions overlap.
    endpoint.limit_parts(3);
    endpoint.answer_late(2);
    let tx = db.create_transaction();
    let mapper = Tuple::from(("r", "{K[1]}")).pack();
    let mut options = Some(index().mode(StreamingMode::Large));
    let (mut chunks, mut seen) = (0, 0);
    while let Some(next) = options {
        let chunk = rt.block_on(tx.get_mapped_range(next.clone(), &mapper)).expect("it reads");
        for row in &chunk.rows {
            assert_eq!(row.entry.key, Tuple::from(("i", seen)).pack());
            assert!(matches!(&row.mapped, Mapped::Value { value: Some(value), .. } if value.len() == 500));
            seen += 1;
        }
        chunks += 1;
        if chunks == 1 {
            assert!(chunk.more && chunk.rows.len() < 10, "{} rows of 500 bytes in 4,096", chunk.rows.len());
            let other = db.create_transaction();
            rt.block_on(other.get_mapped_range(next.clone(), &mapper)).expect("it reads");
            endpoint.write(vec![Mutation::set(Tuple::from(("i", rows - 1)).pack(), "")]);
            other.set("k", "");
            rt.block_on(other.commit()).expect("it has not read that far");
        }
        options = chunk.rest_of(next);
    }
    assert_eq!(seen, rows);
    assert!(chunks >= 5, "{chunks}");
}
