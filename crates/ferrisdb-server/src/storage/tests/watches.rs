//! Watches: what fires them and what does not.

use std::task::Poll;

use ferrisdb_core::{Code, Mutation, MutationKind};
use ferrisdb_storage::fs::sim::SimFileSystem;

use super::{Machine, batch, bytes, code, poll, set, tiny, v, watch};
use crate::storage::StorageOptions;

/// A change of any kind fires at its version; an equal value, a change taken back within the batch and a neighbour do not.
#[test]
fn a_watch_fires_when_the_value_changes() {
    let atomic = |kind, key: &str, operand: &str| Mutation::new(kind, bytes(key), bytes(operand));
    let clear = |begin: &str, end: &str| Mutation::clear_range(bytes(begin), bytes(end));
    let quiet = [
        vec![set("b", "1")],
        vec![set("b", "2"), set("b", "1")],
        vec![clear("a", "c"), set("b", "1")],
        vec![clear("c", "d"), set("b\0", "2"), clear("a", "b")],
        vec![atomic(MutationKind::ByteMax, "b", "0")],
        vec![atomic(MutationKind::CompareAndClear, "b", "2")],
    ];
    let loud = [
        vec![set("b", "2")],
        vec![clear("a", "c")],
        vec![clear("b", "b\0")],
        vec![set("b", "1"), clear("", "\u{7f}")],
        vec![atomic(MutationKind::Add, "b", "1")],
        vec![atomic(MutationKind::CompareAndClear, "b", "1")],
    ];
    let machine = Machine::new(SimFileSystem::new(), 1);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    let mut version = 0;
    let mut apply = |mutations| {
        version += 1;
        machine.block_on(storage.apply(batch(version, mutations))).expect("it can be applied");
        version
    };
    for change in loud {
        let at = apply(vec![set("b", "1")]);
        let mut answer = watch(&storage, "b", Some("1"), at);
        assert!(poll(&mut answer).is_pending());
        for quiet in quiet.clone() {
            apply(quiet.clone());
            assert!(poll(&mut answer).is_pending(), "{quiet:?}");
        }
        let fired = apply(change.clone());
        assert_eq!(poll(&mut answer), Poll::Ready(Ok(v(fired))), "{change:?}");
    }
    // A key that is absent.
    let at = apply(vec![clear("b", "c")]);
    let mut answer = watch(&storage, "b", None, at);
    assert!(poll(&mut answer).is_pending());
    apply(vec![clear("a", "c")]);
    assert!(poll(&mut answer).is_pending());
    let fired = apply(vec![set("b", "")]);
    assert_eq!(poll(&mut answer), Poll::Ready(Ok(v(fired))));
}

/// It is compared as of its version or later: what differs then fires at once, and nothing before its version does.
#[test]
fn a_watch_waits_for_its_version() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let (storage, _) = machine.open(tiny()).expect("a new one");
    let apply = |version, value| {
        machine.block_on(storage.apply(batch(version, vec![set("a", value)]))).expect("it can be applied");
    };
    apply(1, "old");
    let mut same = watch(&storage, "a", Some("new"), 3);
    let mut different = watch(&storage, "a", Some("other"), 3);
    assert!(poll(&mut same).is_pending() && poll(&mut different).is_pending());
    apply(2, "older");
    assert!(poll(&mut same).is_pending() && poll(&mut different).is_pending());
    apply(3, "new");
    assert!(poll(&mut same).is_pending());
    assert_eq!(poll(&mut different), Poll::Ready(Ok(v(3))));
    apply(4, "newer");
    assert_eq!(poll(&mut same), Poll::Ready(Ok(v(4))));
    let mut late = watch(&storage, "a", Some("old"), 1);
    assert_eq!(poll(&mut late), Poll::Ready(Ok(v(4))), "it has changed since");
    let never = watch(&storage, "a", None, 1000);
    assert_eq!(code(machine.block_on(never)), Code::FutureVersion);
}

/// Their number is bounded, and a dropped one counts no more, whether it was polled or not.
#[test]
fn dropped_watches_are_forgotten() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let (storage, _) = machine.open(StorageOptions { watches: 4, ..tiny() }).expect("a new one");
    for _ in 0..3 {
        let mut watches: Vec<_> = (0..4).map(|n| watch(&storage, &format!("k{}", n / 2), None, 0)).collect();
        assert!(watches.iter_mut().take(2).all(|watch| poll(watch).is_pending()));
        assert_eq!(storage.shared.watches.len(), 4);
        assert_eq!(code(machine.block_on(watch(&storage, "k", None, 0))), Code::TooManyWatches);
        drop(watches.remove(0));
        assert_eq!(storage.shared.watches.len(), 3);
        drop(watches);
        assert_eq!(storage.shared.watches.len(), 0);
    }
    let mut fired = watch(&storage, "k", Some("1"), 0);
    assert!(poll(&mut fired).is_ready());
    drop(fired);
    assert_eq!(storage.shared.watches.len(), 0);
}

/// Closing, and dropping the last handle, end every watch.
#[test]
fn watches_end_with_the_server() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    for close in [true, false] {
        let (storage, _) = machine.open(tiny()).expect("it can be opened");
        let mut pending = watch(&storage, "a", None, 0);
        assert!(poll(&mut pending).is_pending());
        if close {
            machine.block_on(storage.close()).expect("it can be closed");
        } else {
            drop(storage);
        }
        assert_eq!(code(machine.block_on(pending)), Code::ConnectionFailed);
    }
}
