//! Section 11: mapped range reads.

use ferrisdb_core::{Bytes, KeyRange, Mutation};
use futures_executor::block_on;

use super::{code, conflict_text, stamp_value};
use crate::deployment::Deployment;
use ferrisdb_client::layers::tuple::{Element, Tuple};
use ferrisdb_client::{Mapped, MappedChunk, RangeOptions, StreamingMode, TransactionOption};

fn index() -> RangeOptions {
    Tuple::from(("i",)).range().into()
}

/// Three entries `("i", n)` with value `(n + 10,)`, and records `("r", n, part)`.
fn fill(here: &Deployment) {
    let mut mutations = Vec::new();
    for number in 0..3 {
        mutations.push(Mutation::set(Tuple::from(("i", number)).pack(), Tuple::from((number + 10,)).pack()));
        for part in 0..number {
            mutations.push(Mutation::set(Tuple::from(("r", number, part)).pack(), format!("{number}.{part}")));
        }
        mutations.push(Mutation::set(Tuple::from(("v", number + 10)).pack(), format!("v{number}")));
    }
    here.write(mutations);
}

/// What the entries lead to, as text.
fn found(chunk: &MappedChunk) -> String {
    let mapped = |mapped: &Mapped| match mapped {
        Mapped::Value { value: None, .. } => "none".to_owned(),
        Mapped::Value { value: Some(value), .. } => String::from_utf8_lossy(value).into_owned(),
        Mapped::Range { rows, .. } => {
            let values: Vec<_> = rows.iter().map(|row| String::from_utf8_lossy(&row.value)).collect();
            format!("[{}]", values.join(" "))
        }
    };
    chunk.rows.iter().map(|row| mapped(&row.mapped)).collect::<Vec<_>>().join(" ")
}

pub(crate) fn entries_lead_to_values_or_to_ranges(here: &Deployment) {
    let db = here.database();
    fill(here);
    let read = |mapper: Tuple| {
        let tx = db.create_transaction();
        block_on(tx.get_mapped_range(index(), mapper.pack())).map(|chunk| found(&chunk))
    };
    assert_eq!(read(Tuple::from(("r", "{K[1]}", "{...}"))), Ok("[] [1.0] [2.0 2.1]".to_owned()));
    assert_eq!(read(Tuple::from(("v", "{V[0]}"))), Ok("v0 v1 v2".to_owned()));
    assert_eq!(read(Tuple::from(("r", "{K[1]}", 0))), Ok("none 1.0 2.0".to_owned()));
    assert_eq!(read(Tuple::from(("r", 2, "{...}"))), Ok("[2.0 2.1] [2.0 2.1] [2.0 2.1]".to_owned()));
    // A key begins with itself: each entry leads to itself here.
    assert_eq!(
        read(Tuple::from(("{K[0]}", "{K[1]}", "{...}"))),
        Ok("[\u{15}\n] [\u{15}\u{b}] [\u{15}\u{c}]".to_owned())
    );
    // Nothing is replaced in what looks like it and is not.
    assert_eq!(read(Tuple::from(("v", "{K1}", "{V}", "{K[]}", "x{K[0]}"))), Ok("none none none".to_owned()));
}

pub(crate) fn braces_are_escaped(here: &Deployment) {
    let db = here.database();
    fill(here);
    let literal = Tuple::new().with("r").with(Element::Bytes(Bytes::from("{K[1]}")));
    here.write(vec![Mutation::set(literal.pack(), "literal")]);
    let tx = db.create_transaction();
    let mapper = Tuple::from(("r", "{{K[1]}}")).pack();
    let chunk = block_on(tx.get_mapped_range(index().limit(1), mapper)).expect("it reads");
    assert_eq!(found(&chunk), "literal");
    let Mapped::Value { key, .. } = &chunk.rows[0].mapped else { panic!("one key") };
    assert_eq!(*key, literal.pack());
}

pub(crate) fn wrong_mappers_and_entries_have_their_codes(here: &Deployment) {
    let db = here.database();
    fill(here);
    let read = |options: RangeOptions, mapper: &[u8]| {
        code(block_on(db.create_transaction().get_mapped_range(options, mapper)))
    };
    let map = |mapper: Tuple| read(index(), &mapper.pack());
    assert_eq!(read(index(), b"\xfe"), 2043);
    assert_eq!(map(Tuple::from(("r", "{...}", 1))), 2032);
    assert_eq!(map(Tuple::from(("r", "{K[2]}"))), 2030);
    assert_eq!(map(Tuple::from(("r", "{V[1]}"))), 2030);
    assert_eq!(map(Tuple::from(("r", "{K[x]}"))), 2030);
    assert_eq!(map(Tuple::from(("r", "{K[-1]}"))), 2030);
    // What no entry asks for is not looked at.
    assert_eq!(read(KeyRange::new("x", "y").into(), &Tuple::from(("{K[9]}",)).pack()), 0);
    here.write(vec![Mutation::set("plain", "text"), Mutation::set(Tuple::from(("j", 1)).pack(), "text")]);
    let plain = || RangeOptions::from(KeyRange::single(b"plain"));
    assert_eq!(read(plain(), &Tuple::from(("{K[0]}",)).pack()), 2041);
    assert_eq!(read(Tuple::from(("j",)).range().into(), &Tuple::from(("{V[0]}",)).pack()), 2042);
    assert_eq!(
        read(Tuple::from(("j",)).range().into(), &Tuple::from(("{K[0]}",)).pack()),
        0,
        "the value is not asked for"
    );
    assert_eq!(read(index().mode(StreamingMode::Exact), &Tuple::from(("r",)).pack()), 2210);
    assert_eq!(read(KeyRange::new("a", b"\xff\x01".to_vec()).into(), &Tuple::from(("r",)).pack()), 2004);
    let special = KeyRange::prefix(b"\xff\xff/transaction/");
    assert_eq!(read(special.into(), &Tuple::from(("r",)).pack()), 2000);
}

pub(crate) fn what_is_not_supported_says_so(here: &Deployment) {
    let db = here.database();
    fill(here);
    let mapper = Tuple::from(("r", "{K[1]}", "{...}")).pack();
    let tx = db.create_transaction();
    assert_eq!(code(block_on(tx.get_mapped_range(index().reverse(true), &mapper))), 2108);
    assert_eq!(code(block_on(tx.snapshot().get_mapped_range(index(), &mapper))), 2108);
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::ReadYourWritesDisable);
    assert_eq!(code(block_on(tx.get_mapped_range(index(), &mapper))), 2108);
}

/// 2039: own writes in the index, behind it, cleared or stamped; but not beside it.
pub(crate) fn own_writes_are_not_read(here: &Deployment) {
    let db = here.database();
    fill(here);
    let mapper = Tuple::from(("r", "{K[1]}", "{...}")).pack();
    let read = |write: &dyn Fn(&ferrisdb_client::Transaction)| {
        let tx = db.create_transaction();
        write(&tx);
        code(block_on(tx.get_mapped_range(index(), &mapper)))
    };
    assert_eq!(read(&|tx| tx.set(Tuple::from(("i", 1)).pack(), "")), 2039);
    assert_eq!(read(&|tx| tx.set(Tuple::from(("i", 77)).pack(), "")), 2039);
    assert_eq!(read(&|tx| tx.set(Tuple::from(("r", 2, 9)).pack(), "")), 2039);
    assert_eq!(read(&|tx| tx.clear(Tuple::from(("r", 0, 0)).pack())), 2039);
    assert_eq!(read(&|tx| stamp_value(tx, "\u{2}r\u{0}\u{15}\u{2}\u{15}\u{1}")), 2039);
    assert_eq!(read(&|tx| tx.set(Tuple::from(("r", 3, 0)).pack(), "")), 0);
    assert_eq!(read(&|tx| tx.set(Tuple::from(("j",)).pack(), "")), 0);
    let tx = db.create_transaction();
    tx.set(Tuple::from(("i", 1)).pack(), "");
    assert_eq!(code(block_on(tx.get_mapped_range(index(), &mapper))), 2039);
    assert_eq!(code(block_on(tx.commit())), 2039, "as after any read that failed");
}

/// It conflicts with the part of the index that it has read, and with what that led to, whether it exists or not.
pub(crate) fn it_conflicts_with_what_it_has_read(here: &Deployment) {
    let db = here.database();
    fill(here);
    let conflicts = |options: RangeOptions, mapper: Tuple| {
        let tx = db.create_transaction();
        block_on(tx.get_mapped_range(options, mapper.pack())).expect("it reads");
        tx.set("k", "");
        let conflicts = conflict_text(&tx, "read");
        block_on(tx.commit()).expect("nobody has written");
        conflicts
    };
    let values = conflicts(index().limit(2), Tuple::from(("v", "{V[0]}")));
    let key = |tuple: Tuple| format!("{}", tuple.pack().escape_ascii());
    let single = |tuple: Tuple| format!("{0}..{0}\\x00", key(tuple));
    let entries = format!("{}\\x00..{}\\x00", key(Tuple::from(("i",))), key(Tuple::from(("i", 1))));
    assert_eq!(values, format!("{entries} {} {}", single(Tuple::from(("v", 10))), single(Tuple::from(("v", 11)))));
    let below = |number: i64| {
        let KeyRange { begin, end } = KeyRange::prefix(&Tuple::from(("r", number)).pack());
        format!("{}..{}", begin.escape_ascii(), end.escape_ascii())
    };
    let ranges = conflicts(index().limit(1), Tuple::from(("r", "{K[1]}", "{...}")));
    assert_eq!(ranges, format!("{}\\x00..{}\\x00 {}", key(Tuple::from(("i",))), key(Tuple::from(("i", 0))), below(0)));
}

pub(crate) fn an_entry_that_leads_to_too_much_is_an_error(here: &Deployment) {
    let db = here.database();
    here.write((0..2_001).map(|number| Mutation::set(Tuple::from(("r", number)).pack(), "")).collect());
    here.write(vec![Mutation::set(Tuple::from(("i",)).pack(), "")]);
    let tx = db.create_transaction();
    let entry = || RangeOptions::from(KeyRange::single(&Tuple::from(("i",)).pack()));
    let mapper = Tuple::from(("r", "{...}")).pack();
    assert_eq!(code(block_on(tx.get_mapped_range(entry(), &mapper))), 2033);
    here.write(vec![Mutation::clear_range(Tuple::from(("r", 0)).pack(), Tuple::from(("r", 1)).pack())]);
    let tx = db.create_transaction();
    let chunk = block_on(tx.get_mapped_range(entry(), &mapper)).expect("2,000 are enough");
    assert!(matches!(&chunk.rows[0].mapped, Mapped::Range { rows, .. } if rows.len() == 2_000));
}
