//! The skip list under loom: every interleaving, and every value that the memory model lets a load return, within small scenarios.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p ferrisdb-storage --lib memtable::loom_tests --target-dir target/loom
//! ```
//!
//! A missing Release shows only when one thread builds on what another published: with one writer and one reader loom did not find
//! it. So every scenario has two inserting threads, and most have a reader beside them. loom explores all schedules with at most
//! [`PREEMPTIONS`] preemptions; most bugs need two or fewer (Musuvathi and Qadeer, 2007).
//!
//! The second half plants bugs and demands that they are found, so that a green first half means something.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ferrisdb_core::Version;

use super::arena::{Arena, Reserved};
use super::skiplist::{HEAD, HEIGHT_MAX, LIST_BYTES_MIN, NULL, Plant, SkipList, Splice, node_bytes};
use crate::key::{InternalKey, Trailer, ValueKind};
use crate::sync::{Arc, thread};

const PREEMPTIONS: usize = 3;

/// Runs a scenario under all schedules.
fn explore(plant: Plant, scenario: fn(Plant)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || scenario(plant));
}

fn list(plant: Plant) -> Arc<SkipList> {
    let mut list = SkipList::new(LIST_BYTES_MIN + 4 * node_bytes(HEIGHT_MAX, 1, 1), b"", None);
    list.plant = plant;
    Arc::new(list)
}

/// Inserts (key, version) with that many levels; the value is the key.
fn insert(list: &SkipList, splice: &mut Splice, key: u8, version: u64, height: usize) {
    let mut reserved = reserve(list, height);
    let trailer = Trailer::new(Version::from_u64(version), ValueKind::Value);
    list.insert(InternalKey::new(&[key], trailer), &[key], height, &mut reserved, splice).expect("no duplicates");
}

fn reserve(list: &SkipList, height: usize) -> Reserved {
    list.arena().try_reserve(node_bytes(height, 1, 1)).expect("the arena is large enough")
}

/// The list from first to last; reads every field of every entry.
fn forward(list: &SkipList, level: usize) -> Vec<(u8, u64)> {
    let mut found = Vec::new();
    let mut node = list.next(HEAD, level);
    while node != NULL {
        let key = list.key(node);
        assert_eq!(list.value(node), key.user_key, "a node is whole when it can be reached");
        found.push((key.user_key[0], key.trailer.version().get()));
        node = list.next(node, level);
    }
    found
}

fn backward(list: &SkipList) -> Vec<(u8, u64)> {
    let mut found = Vec::new();
    let mut node = list.prev(NULL);
    while node != HEAD {
        let key = list.key(node);
        assert_eq!(list.value(node), key.user_key, "a node is whole when it can be reached");
        found.push((key.user_key[0], key.trailer.version().get()));
        node = list.prev(node);
    }
    found
}

fn get(list: &SkipList, key: u8, at: u64) -> Option<u64> {
    list.newest(&[key], Version::from_u64(at)).map(|node| {
        assert_eq!(list.value(node), [key], "a node is whole when it can be reached");
        list.key(node).trailer.version().get()
    })
}

/// Two inserts at the same place, and a reader that goes forward: it sees a sorted subset, and in the end both are in.
fn same_place(plant: Plant) {
    let list = list(plant);
    let (one, two) = (Arc::clone(&list), Arc::clone(&list));
    let one = thread::spawn(move || insert(&one, &mut Splice::new(), b'a', 1, 1));
    let two = thread::spawn(move || insert(&two, &mut Splice::new(), b'b', 1, 1));
    let seen = forward(&list, 0);
    assert!(seen.is_sorted(), "{seen:?}");
    one.join().unwrap();
    two.join().unwrap();
    assert_eq!(forward(&list, 0), [(b'a', 1), (b'b', 1)]);
    list.check();
}

/// Two versions of one key, while a reader gets it: the answer at version 2 never goes back, and a newer version than asked for is
/// never given.
fn same_key(plant: Plant) {
    let list = list(plant);
    let (one, two) = (Arc::clone(&list), Arc::clone(&list));
    let one = thread::spawn(move || insert(&one, &mut Splice::new(), b'k', 1, 1));
    let two = thread::spawn(move || insert(&two, &mut Splice::new(), b'k', 2, 1));
    let first = get(&list, b'k', 2);
    let second = get(&list, b'k', 2);
    assert!(first <= second, "{first:?} and then {second:?}");
    assert!(get(&list, b'k', 1).is_none_or(|version| version == 1));
    one.join().unwrap();
    two.join().unwrap();
    assert_eq!((get(&list, b'k', 2), get(&list, b'k', 1)), (Some(2), Some(1)));
    list.check();
}

/// Two towers grow at the same time. A reader that comes over the upper level meets only whole nodes, and finds on the level below
/// everything that it saw above.
fn towers(plant: Plant) {
    let list = list(plant);
    let (one, two) = (Arc::clone(&list), Arc::clone(&list));
    let one = thread::spawn(move || insert(&one, &mut Splice::new(), b'a', 1, 2));
    let two = thread::spawn(move || insert(&two, &mut Splice::new(), b'b', 1, 2));
    let above = forward(&list, 1);
    let below = forward(&list, 0);
    assert!(above.iter().all(|entry| below.contains(entry)), "{above:?} above {below:?}");
    one.join().unwrap();
    two.join().unwrap();
    assert_eq!((forward(&list, 1), forward(&list, 0)), (vec![(b'a', 1), (b'b', 1)], vec![(b'a', 1), (b'b', 1)]));
    list.check();
}

/// The second of two inserts builds on the first, found over an upper level, and the reader on the second: what the reader must see
/// has come through two threads.
fn through_two_threads(plant: Plant) {
    let list = list(plant);
    let (one, two) = (Arc::clone(&list), Arc::clone(&list));
    let one = thread::spawn(move || insert(&one, &mut Splice::new(), b'b', 1, 2));
    let two = thread::spawn(move || {
        let seen = get(&two, b'b', 1).is_some();
        insert(&two, &mut Splice::new(), b'c', 1, 1);
        seen
    });
    let (node_before_end, seen) = (list.prev(NULL), forward(&list, 0));
    if node_before_end != HEAD {
        assert!(seen.contains(&(list.key(node_before_end).user_key[0], 1)), "a known node is on level 0");
    }
    assert!(seen.is_sorted(), "{seen:?}");
    one.join().unwrap();
    two.join().unwrap();
    assert_eq!(forward(&list, 0), [(b'b', 1), (b'c', 1)]);
    list.check();
}

/// Backwards while two inserts run before an entry that is there: sorted, never without that entry, and complete in the end.
fn backwards(plant: Plant) {
    let list = list(plant);
    insert(&list, &mut Splice::new(), b'z', 1, 1);
    let (one, two) = (Arc::clone(&list), Arc::clone(&list));
    let one = thread::spawn(move || insert(&one, &mut Splice::new(), b'a', 1, 1));
    let two = thread::spawn(move || insert(&two, &mut Splice::new(), b'b', 1, 1));
    let seen = backward(&list);
    assert!(seen.iter().rev().is_sorted() && seen.first() == Some(&(b'z', 1)), "{seen:?}");
    one.join().unwrap();
    two.join().unwrap();
    assert_eq!(backward(&list), [(b'z', 1), (b'b', 1), (b'a', 1)]);
    list.check();
}

/// Two inserts of the same key and version: one is refused.
fn duplicates(plant: Plant) {
    let list = list(plant);
    let twice = |list: &SkipList| {
        let key = InternalKey::new(b"k", Trailer::new(Version::from_u64(1), ValueKind::Value));
        list.insert(key, b"k", 1, &mut reserve(list, 1), &mut Splice::new()).is_ok()
    };
    let other = Arc::clone(&list);
    let other = thread::spawn(move || twice(&other));
    let here = twice(&list);
    assert!(here ^ other.join().unwrap(), "exactly one is in");
    list.check();
}

/// A writer whose splice is out of date, because another inserted where it points.
fn stale_splice(plant: Plant) {
    let list = list(plant);
    let mut splice = Splice::new();
    insert(&list, &mut splice, b'b', 1, 2);
    let other = Arc::clone(&list);
    let other = thread::spawn(move || {
        let mut splice = Splice::new();
        insert(&other, &mut splice, b'c', 1, 1);
        insert(&other, &mut splice, b'e', 1, 1);
    });
    insert(&list, &mut splice, b'd', 1, 2);
    let seen = forward(&list, 0);
    assert!(seen.is_sorted() && seen.contains(&(b'd', 1)), "{seen:?}");
    other.join().unwrap();
    assert_eq!(forward(&list, 0), [(b'b', 1), (b'c', 1), (b'd', 1), (b'e', 1)]);
    list.check();
}

/// Reservations never exceed the arena and never overlap.
#[test]
fn reservations_are_exclusive() {
    loom::model(|| {
        let arena = Arc::new(Arena::new(32, None));
        let other = Arc::clone(&arena);
        let take = |arena: &Arena| arena.try_reserve(16).map(|mut reserved| arena.allocate(&mut reserved, 16));
        let other = thread::spawn(move || take(&other));
        let (here, other) = (take(&arena), other.join().unwrap());
        assert!(here.is_some() ^ other.is_some(), "there is space for one: {here:?} {other:?}");
        assert_eq!(here.or(other), Some(8));
    });
}

#[test]
fn two_inserts_at_the_same_place() {
    explore(Plant::Nothing, same_place);
}

#[test]
fn two_versions_of_one_key() {
    explore(Plant::Nothing, same_key);
}

#[test]
fn two_towers() {
    explore(Plant::Nothing, towers);
}

#[test]
fn knowledge_through_two_threads() {
    explore(Plant::Nothing, through_two_threads);
}

#[test]
fn backwards_during_inserts() {
    explore(Plant::Nothing, backwards);
}

#[test]
fn one_of_two_duplicates_is_refused() {
    explore(Plant::Nothing, duplicates);
}

#[test]
fn a_stale_splice_does_no_harm() {
    explore(Plant::Nothing, stale_splice);
}

/// The scenarios that find the bug, of those given.
fn finders(plant: Plant, scenarios: &[(&'static str, fn(Plant))]) -> Vec<&'static str> {
    let finds = |scenario: fn(Plant)| catch_unwind(AssertUnwindSafe(|| explore(plant, scenario))).is_err();
    scenarios.iter().filter(|(_, scenario)| finds(*scenario)).map(|(name, _)| *name).collect()
}

const SCENARIOS: [(&str, fn(Plant)); 6] = [
    ("same_place", same_place),
    ("same_key", same_key),
    ("towers", towers),
    ("through_two_threads", through_two_threads),
    ("backwards", backwards),
    ("stale_splice", stale_splice),
];

#[test]
fn a_relaxed_publication_is_found() {
    assert!(finders(Plant::RelaxedPublish, &SCENARIOS).len() >= 4);
}

#[test]
fn following_a_link_with_relaxed_is_found() {
    assert!(finders(Plant::RelaxedFollow, &SCENARIOS).len() >= 4);
}

#[test]
fn a_store_in_place_of_the_swap_is_found() {
    assert!(finders(Plant::StoreInsteadOfSwap, &SCENARIOS).len() >= 4);
}

#[test]
fn a_relaxed_way_back_is_found() {
    assert!(finders(Plant::RelaxedBefore, &SCENARIOS).contains(&"backwards"));
}

#[test]
fn trusting_the_way_back_is_found() {
    assert!(finders(Plant::TrustBefore, &SCENARIOS).contains(&"backwards"));
}
