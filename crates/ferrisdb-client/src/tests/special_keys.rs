//! Section 12: special keys; and long snapshots.

use std::time::Duration;

use super::{code, range, text};
use crate::testing::{database, database_with};
use crate::{DatabaseOptions, RangeOptions, SnapshotOptions, Transaction, TransactionOption};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, Mutation, Version};
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

#[test]
fn the_client_answers_for_the_database() {
    let options = DatabaseOptions { cluster_file_path: "/etc/x".into(), ..DatabaseOptions::default() };
    let (db, _, _) = database_with(options);
    let tx = db.create_transaction();
    assert_eq!(get(&tx, "/status/json"), Ok(Some("{\"client\":{}}".into())));
    assert_eq!(get(&tx, "/connection_string"), Ok(Some("memory".into())));
    assert_eq!(get(&tx, "/cluster_file_path"), Ok(Some("/etc/x".into())));
    assert_eq!(scan(&tx, "/connection_string", "/connection_string\0"), "/connection_string=memory");
    assert_eq!(get(&tx, "/transaction/nothing"), Ok(None));
}

#[test]
fn reads_stay_in_a_module() {
    let (db, _, _) = database();
    let tx = db.create_transaction();
    assert_eq!(get(&tx, "/nowhere"), Err(2113));
    assert_eq!(scan(&tx, "/nowhere", "/nowhere0"), "2113");
    assert_eq!(scan(&tx, "/connection_string", "/status/json"), "2112");
    assert_eq!(scan(&tx, "/transaction/", "/transaction0"), "");
    tx.set_option(&TransactionOption::SpecialKeySpaceRelaxed);
    assert_eq!(get(&tx, "/nowhere"), Ok(None));
    let found = scan(&tx, "", "/t");
    assert_eq!(found, "/cluster_file_path= /connection_string=memory /status/json={\"client\":{}}");
}

#[test]
fn conflict_ranges_can_be_read() {
    let (db, _, _) = database();
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

#[test]
fn writing_needs_an_option_and_a_module() {
    let (db, _, _) = database();
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

#[test]
fn tracing_can_be_set() {
    let (db, _, _) = database();
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

/// It reads at its version while others write, renews its lease, and ends it.
#[test]
fn a_snapshot_stays_readable_for_as_long_as_it_is_held() {
    let (db, endpoint, rt) = database();
    let version = endpoint.write(vec![Mutation::set("a", "1"), Mutation::set("b", "2")]);
    let snapshot = rt.block_on(db.snapshot(SnapshotOptions::default())).expect("it is granted");
    assert_eq!(snapshot.version(), version);
    endpoint.write(vec![Mutation::set("a", "3"), Mutation::clear_range("b", "c")]);
    endpoint.forget_below(Version::from_u64(version.get() + 5));
    rt.run_for(Duration::from_secs(60));
    assert!(endpoint.log().renewals >= 59, "{}", endpoint.log().renewals);
    rt.block_on(async {
        assert_eq!(snapshot.get("a").await, Ok(Some(Bytes::from("1"))));
        assert_eq!(code(snapshot.get(b"\xff").await), 2004);
        assert_eq!(snapshot.get_key(KeySelector::last_less_than("b")).await, Ok(Bytes::from("a")));
        let chunk = snapshot.get_range(RangeOptions::from(range("a", "z"))).await.expect("it reads");
        assert_eq!(text(&chunk.rows), "a=1 b=2");
        let rows = snapshot.get_ranges(RangeOptions::from(range("a", "z")).reverse(true)).collect().await;
        let rows = rows.expect("it reads");
        assert_eq!(text(&rows), "b=2 a=1");
    });
    let clone = snapshot.clone();
    drop(snapshot);
    rt.run_until_idle();
    assert_eq!(endpoint.leases(), 1);
    drop(clone);
    rt.run_until_idle();
    assert_eq!((endpoint.leases(), rt.tasks().len(), rt.timer_count()), (0, 0, 0));
}

/// A snapshot whose taking is given up leaves no lease.
#[test]
fn a_dropped_question_for_a_snapshot_leaves_no_lease() {
    let (db, endpoint, rt) = database();
    endpoint.set_stuck(true);
    // Without the question whether the database is locked, which comes before.
    let options = SnapshotOptions { lock_aware: true, ..SnapshotOptions::default() };
    let mut asked = Box::pin(db.snapshot(options));
    assert!(futures_util::FutureExt::now_or_never(&mut asked).is_none());
    drop(asked);
    assert_eq!(endpoint.leases(), 1);
    endpoint.set_stuck(false);
    rt.run_until_idle();
    assert_eq!((endpoint.leases(), rt.tasks().len()), (0, 0));
}

/// Where FoundationDB's clients look: how the database is reached, and where keys are.
#[test]
fn some_system_keys_are_answered_by_the_client() {
    let (db, endpoint, _) = database();
    endpoint.write(vec![Mutation::set(&b"\xff/stored"[..], "1")]);
    let tx = db.create_transaction();
    assert_eq!(code(block_on(tx.get(b"\xff/coordinators"))), 2004, "a system key like any other");
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::ReadSystemKeys);
    assert_eq!(block_on(tx.get(b"\xff/coordinators")), Ok(Some("memory".into())));
    let boundaries = |begin: &str, end: &str| {
        let key = |key: &str| [b"\xff/keyServers/", key.as_bytes()].concat();
        let chunk = block_on(tx.snapshot().get_range(KeyRange::new(key(begin), key(end)))).expect("it reads");
        chunk.rows.into_iter().map(|row| row.key.slice(13..)).collect::<Vec<_>>()
    };
    assert_eq!(boundaries("", "z"), [""]);
    assert!(boundaries("a", "z").is_empty());
    assert_eq!(boundaries("", "").len(), 0);
    // What is stored is read as ever, and beside them.
    assert_eq!(block_on(tx.get(b"\xff/stored")), Ok(Some("1".into())));
    let all = block_on(tx.get_range(KeyRange::new(&b"\xff"[..], &b"\xff\xff"[..]))).expect("it reads");
    assert_eq!(all.rows.len(), 1);
    // Over: they are reads like others.
    block_on(tx.commit()).expect("it has only read");
    assert_eq!(code(block_on(tx.get(b"\xff/coordinators"))), 2017);
}

/// Each shard has a key that says where it begins, as many as there are, whatever part of them is asked for, and however few come with one answer.
#[test]
fn shards_are_among_the_system_keys() {
    let (db, endpoint, _) = database();
    endpoint.set_boundaries(&["", "b", "d", "f", "h", "j", "l"]);
    let tx = db.create_transaction();
    tx.set_option(&TransactionOption::ReadSystemKeys);
    let key = |key: &str| [b"\xff/keyServers/", key.as_bytes()].concat();
    let chunk = |options: RangeOptions| {
        let chunk = block_on(tx.snapshot().get_range(options)).expect("it reads");
        let keys: Vec<String> =
            chunk.rows.iter().map(|row| String::from_utf8_lossy(&row.key[13..]).into_owned()).collect();
        (keys.join(" "), chunk.more)
    };
    let between = |begin: &str, end: &str| RangeOptions::from(KeyRange::new(key(begin), key(end)));
    let text = |text: &str, more| (text.to_owned(), more);
    assert_eq!(chunk(between("", "z")), text(" b d f h j l", false));
    assert_eq!(chunk(between("b", "h")), text("b d f", false));
    assert_eq!(chunk(between("c", "g")), text("d f", false));
    assert_eq!(chunk(between("b", "z").limit(3)), text("b d f", true));
    assert_eq!(chunk(between("b", "h").limit(3)), text("b d f", false));
    assert_eq!(chunk(between("b", "z").limit(2).reverse(true)), text("l j", true));
    let places = |begin: KeySelector, end: KeySelector| RangeOptions::new(begin, end);
    let at = |text: &str| KeySelector::first_greater_or_equal(key(text));
    assert_eq!(chunk(places(at("c").offset_by(1), at("e").offset_by(2))), text("f h", false));
    assert_eq!(chunk(places(KeySelector::last_less_than(key("e")), at("e"))), text("d", false));
    // As every binding's locality reads them: the rest from behind the last one.
    assert_eq!(chunk(between("f\0", "z").limit(2)), text("h j", true));
    assert_eq!(block_on(tx.get(key("d"))), Ok(Some("127.0.0.1:4500".into())));
    assert_eq!(block_on(tx.get(key("e"))), Ok(None));
}

#[test]
fn a_client_says_how_it_is() {
    let (db, _, _) = database();
    assert_eq!(
        db.get_client_status(),
        format!("{{\"Healthy\":true,\"ClusterID\":\"{}\",\"ProtocolVersion\":1}}", "07".repeat(16))
    );
    assert_eq!(db.get_server_protocol(), 1);
    let tx = db.create_transaction();
    assert!(tx.get_tag_throttled_duration().is_zero());
    assert_eq!(code(tx.get_total_cost()), 2108);
}
