//! Section 12: special keys; and long snapshots.

use super::{code, range, text};
use crate::deployment::Deployment;
use ferrisdb_client::{DatabaseOptions, RangeOptions, SnapshotOptions, Transaction, TransactionOption};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, Mutation};
use futures_executor::block_on;

fn get(tx: &Transaction, key: &str) -> Result<Option<String>, u16> {
    let value = block_on(tx.get([b"\xff\xff", key.as_bytes()].concat()));
    value.map(|value| value.map(|value| String::from_utf8_lossy(&value).into_owned())).map_err(|e| e.code().number())
}

fn scan(tx: &Transaction, begin: &str, end: &str) -> String {
    let key = |key: &str| [b"\xff\xff", key.as_bytes()].concat();
    match block_on(tx.get_range(KeyRange::new(key(begin), key(end)))) {
        Ok(chunk) => text(&chunk.rows).replace('\u{fffd}', ""),
        Err(error) => error.code().number().to_string(),
    }
}

pub(crate) fn the_client_answers_for_the_database(here: &Deployment) {
    let options = DatabaseOptions { cluster_file_path: "/etc/x".into(), ..DatabaseOptions::default() };
    let db = here.database_with(options);
    let connection = &db.description().connection_string;
    assert!(here.addresses().iter().all(|address| connection.contains(address)), "{connection}");
    let tx = db.create_transaction();
    let status = get(&tx, "/status/json").expect("it reads").expect("there is one").replace([' ', '\n'], "");
    assert!(status.contains("\"available\":true"), "{status}");
    assert_eq!(get(&tx, "/connection_string"), Ok(Some(connection.clone())));
    assert_eq!(get(&tx, "/cluster_file_path"), Ok(Some("/etc/x".into())));
    let expected = format!("/connection_string={connection}");
    assert_eq!(scan(&tx, "/connection_string", "/connection_string\0"), expected);
    assert_eq!(get(&tx, "/transaction/nothing"), Ok(None));
}

pub(crate) fn reads_stay_in_a_module(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    assert_eq!(get(&tx, "/nowhere"), Err(2113));
    assert_eq!(scan(&tx, "/nowhere", "/nowhere0"), "2113");
    assert_eq!(scan(&tx, "/connection_string", "/status/json"), "2112");
    assert_eq!(scan(&tx, "/transaction/", "/transaction0"), "");
    tx.set_option(&TransactionOption::SpecialKeySpaceRelaxed);
    assert_eq!(get(&tx, "/nowhere"), Ok(None));
    let found = scan(&tx, "", "/status/");
    assert_eq!(found, format!("/cluster_file_path= /connection_string={}", db.description().connection_string));
}

pub(crate) fn conflict_ranges_can_be_read(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    block_on(tx.get("a")).expect("it reads");
    block_on(tx.get_range(range("c", "d"))).expect("it reads");
    tx.set("w", "");
    let (read, write) = ("/transaction/read_conflict_range/", "/transaction/write_conflict_range/");
    assert_eq!(
        scan(&tx, read, "/transaction/read_conflict_range0"),
        format!("{read}a=1 {read}a\0=0 {read}c=1 {read}d=0")
    );
    assert_eq!(scan(&tx, write, "/transaction/write_conflict_range0"), format!("{write}w=1 {write}w\0=0"));
    assert_eq!(get(&tx, "/transaction/read_conflict_range/c"), Ok(Some("1".into())));
    // With limits, backwards, and between selectors.
    let prefix = [b"\xff\xff", read.as_bytes()].concat();
    let options = RangeOptions::prefix(&prefix).limit(2).reverse(true);
    let chunk = block_on(tx.get_range(options)).expect("it reads");
    assert!(chunk.more && chunk.rows[0].key.ends_with(b"/d") && chunk.rows.len() == 2);
    let begin = KeySelector::first_greater_than([&prefix[..], b"a"].concat());
    let end = KeySelector::first_greater_or_equal([&prefix[..], b"z"].concat());
    assert_eq!(block_on(tx.get_range((begin, end))).expect("it reads").rows.len(), 3);
    // They can be read after the end too.
    block_on(tx.commit()).expect("it commits");
    assert_eq!(get(&tx, "/transaction/read_conflict_range/c"), Ok(Some("1".into())));
}

pub(crate) fn writing_needs_an_option_and_a_module(here: &Deployment) {
    let db = here.database();
    let failure = |is_enabled: bool, write: &dyn Fn(&Transaction)| {
        let tx = db.create_transaction();
        if is_enabled {
            tx.set_option(&TransactionOption::SpecialKeySpaceEnableWrites);
        }
        write(&tx);
        (code(tx.get_approximate_size()), tx)
    };
    assert_eq!(failure(false, &|tx| tx.set(b"\xff\xff/tracing/token", "true")).0, 2114);
    assert_eq!(failure(false, &|tx| tx.clear(b"\xff\xff/tracing/token")).0, 2114);
    assert_eq!(failure(true, &|tx| tx.set(b"\xff\xff/status/json", "")).0, 2115);
    assert_eq!(failure(true, &|tx| tx.clear(b"\xff\xff/nowhere")).0, 2115);
    assert_eq!(failure(true, &|tx| tx.clear_range(b"\xff\xff/tracing/", b"\xff\xff/z")).0, 2116);
    assert_eq!(failure(true, &|tx| tx.set(b"\xff\xff/tracing/token", "maybe")).0, 2117);
    assert_eq!(failure(true, &|tx| tx.clear(b"\xff\xff/tracing/token")).0, 2117);
    assert_eq!(
        failure(true, &|tx| tx.atomic_op(b"\xff\xff/tracing/token", "", ferrisdb_core::MutationKind::Add)).0,
        2004
    );
}

pub(crate) fn tracing_can_be_set(here: &Deployment) {
    let db = here.database();
    let tx = db.create_transaction();
    let token = get(&tx, "/tracing/token").expect("it reads").expect("there is one");
    assert_ne!(token, "0");
    assert_eq!(get(&tx, "/tracing/token"), Ok(Some(token)), "it stays");
    tx.set_option(&TransactionOption::SpecialKeySpaceEnableWrites);
    tx.set(b"\xff\xff/tracing/token", "false");
    tx.set(b"\xff\xff/tracing/transaction_id", "77");
    assert_eq!(scan(&tx, "/tracing/", "/tracing0"), "/tracing/token=0 /tracing/transaction_id=77");
    block_on(tx.commit()).expect("it commits nothing");
}

/// It reads at its version while others write.
pub(crate) fn a_snapshot_stays_as_it_was(here: &Deployment) {
    let db = here.database();
    let version = here.write(vec![Mutation::set("a", "1"), Mutation::set("b", "2")]);
    let snapshot = block_on(db.snapshot(SnapshotOptions::default())).expect("it is granted");
    assert!(snapshot.version() >= version);
    here.write(vec![Mutation::set("a", "3"), Mutation::clear_range("b", "c")]);
    assert_eq!(block_on(snapshot.get("a")), Ok(Some(Bytes::from("1"))));
    assert_eq!(code(block_on(snapshot.get(b"\xff"))), 2004);
    assert_eq!(block_on(snapshot.get_key(KeySelector::last_less_than("b"))), Ok(Bytes::from("a")));
    let chunk = block_on(snapshot.get_range(RangeOptions::from(range("a", "z")))).expect("it reads");
    assert_eq!(text(&chunk.rows), "a=1 b=2");
    let rows = block_on(snapshot.get_ranges(RangeOptions::from(range("a", "z")).reverse(true)).collect());
    assert_eq!(text(&rows.expect("it reads")), "b=2 a=1");
    let again = SnapshotOptions { version: Some(snapshot.version()), ..SnapshotOptions::default() };
    let again = block_on(db.snapshot(again)).expect("it is held, and so it is there");
    drop(snapshot);
    assert_eq!(block_on(again.get("b")), Ok(Some(Bytes::from("2"))));
}

/// Where FoundationDB's clients look: how the database is reached, and where keys are.
pub(crate) fn some_system_keys_are_answered_by_the_client(here: &Deployment) {
    let db = here.database();
    here.write(vec![Mutation::set(&b"\xff/stored"[..], "1")]);
    let tx = db.create_transaction();
    assert_eq!(code(block_on(tx.get(b"\xff/coordinators"))), 2004, "a system key like any other");
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::ReadSystemKeys);
    let connection = Bytes::from(db.description().connection_string.clone());
    assert_eq!(block_on(tx.get(b"\xff/coordinators")), Ok(Some(connection)));
    let boundaries = |begin: &str, end: &str| {
        let key = |key: &str| [b"\xff/keyServers/", key.as_bytes()].concat();
        let chunk = block_on(tx.snapshot().get_range(KeyRange::new(key(begin), key(end)))).expect("it reads");
        chunk.rows.into_iter().map(|row| row.key.slice(13..)).collect::<Vec<_>>()
    };
    assert_eq!(boundaries("", "z")[0], "", "the first shard begins where keys begin");
    assert_eq!(boundaries("", "").len(), 0);
    // What is stored is read as ever, and beside them.
    assert_eq!(block_on(tx.get(b"\xff/stored")), Ok(Some("1".into())));
    let all = block_on(tx.get_range(KeyRange::new(&b"\xff/"[..], &b"\xff0"[..]))).expect("it reads");
    assert_eq!(all.rows.len(), 1);
    // Over: they are reads like others.
    block_on(tx.commit()).expect("it has only read");
    assert_eq!(code(block_on(tx.get(b"\xff/coordinators"))), 2017);
}
