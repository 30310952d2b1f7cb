//! Section 12: what clients answer of a database with many shards; and the leases of long snapshots.

use std::time::Duration;

use super::{code, range, text};
use crate::testing::database;
use crate::{RangeOptions, SnapshotOptions, TransactionOption};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, Mutation, Version};
use futures_executor::block_on;

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
