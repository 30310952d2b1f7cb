//! The tuple layer in a database: keys sort as tuples do, wherever they are kept.

use ferrisdb_client::RangeOptions;
use ferrisdb_client::layers::Subspace;
use ferrisdb_client::layers::tuple::{Element, Tuple, TupleVersionstamp};
use ferrisdb_core::MutationKind;
use futures_executor::block_on;

use crate::deployment::Deployment;

/// Elements of all types are read back in their order, and from a range of a prefix nothing else.
pub(crate) fn tuples_are_read_back_in_order(here: &Deployment) {
    let space = Subspace::from_tuple(("tuples",));
    let elements = || -> Vec<Element> {
        vec![
            Element::Null,
            b"".as_slice().into(),
            b"\x00\xff".as_slice().into(),
            "text".into(),
            Tuple::from((1, "nested")).into(),
            (-70_000).into(),
            0.into(),
            255.into(),
            256.into(),
            (-1.5f64).into(),
            1.5f64.into(),
            false.into(),
            true.into(),
            Element::Uuid([7; 16]),
        ]
    };
    let db = here.database();
    let written = block_on(db.run(async |tx| {
        // From the last to the first: the order is the database's doing.
        for (number, element) in elements().into_iter().enumerate().rev() {
            tx.set(space.pack((element,)), [number as u8]);
        }
        tx.set(Tuple::from(("tuplet", 1)).pack(), "");
        Ok(())
    }));
    written.expect("it commits");
    let rows = block_on(db.run(async |tx| tx.get_ranges(RangeOptions::from(space.range())).collect().await));
    let rows = rows.expect("it reads");
    assert_eq!(rows.len(), elements().len());
    for ((number, row), element) in rows.iter().enumerate().zip(elements()) {
        assert_eq!(row.value.as_ref(), [number as u8]);
        assert_eq!(space.unpack(&row.key).expect("it was packed"), Tuple::from((element,)));
    }
}

/// A log: each entry's key has the stamp of its commit, and the number that its program gave it within that.
pub(crate) fn a_stamped_tuple_is_the_commits(here: &Deployment) {
    let log = Subspace::from_tuple(("log",));
    let db = here.database();
    let mut stamps = Vec::new();
    for _ in 0..3 {
        let tx = db.create_transaction();
        for user in 0..2 {
            let key = log.pack_with_versionstamp((TupleVersionstamp::incomplete(user),)).expect("it has one");
            tx.atomic_op(key, "", MutationKind::SetVersionstampedKey);
        }
        let stamp = tx.get_versionstamp();
        block_on(tx.commit()).expect("it commits");
        let stamp = block_on(stamp).expect("it has one");
        stamps.extend((0..2).map(|user| TupleVersionstamp { commit: Some(stamp), user }));
    }
    let rows = block_on(db.create_transaction().get_ranges(RangeOptions::from(log.range())).collect());
    let keys: Vec<Tuple> = rows.expect("it reads").iter().map(|row| log.unpack(&row.key).expect("a tuple")).collect();
    let expected: Vec<Tuple> = stamps.into_iter().map(|stamp| Tuple::from((Element::Versionstamp(stamp),))).collect();
    assert_eq!(keys, expected);
}
