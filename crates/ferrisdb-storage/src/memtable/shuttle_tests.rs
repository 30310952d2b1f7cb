//! The memtable under shuttle: random schedules of more threads and more steps than loom can exhaust.
//!
//! ```sh
//! RUSTFLAGS="--cfg shuttle" cargo test -p ferrisdb-storage --lib memtable::shuttle_tests --target-dir target/shuttle
//! ```
//!
//! All atomics are sequentially consistent here, so this says nothing about Acquire and Release; `loom_tests.rs` does. A failure
//! prints the schedule, which `shuttle::replay` takes.

use std::panic::catch_unwind;

use ferrisdb_core::{Random, SplitMix64, Version};

use super::skiplist::{HEAD, HEIGHT_MAX, LIST_BYTES_MIN, NULL, Plant, SkipList, Splice, node_bytes};
use crate::key::{InternalKey, Trailer, ValueKind};
use crate::sync::{Arc, thread};

const SCHEDULES: usize = 4_000;
const WRITERS: u64 = 3;
const INSERTS: u64 = 4;

fn internal_key(key: &[u8; 1], version: u64) -> InternalKey<'_> {
    InternalKey::new(key, Trailer::new(Version::from_u64(version), ValueKind::Value))
}

fn insert(list: &SkipList, splice: &mut Splice, key: u8, version: u64, height: usize) {
    let mut reserved = list.arena().try_reserve(node_bytes(height, 1, 8)).expect("the arena is large enough");
    list.insert(internal_key(&[key], version), &version.to_le_bytes(), height, &mut reserved, splice)
        .expect("no duplicates");
}

/// Key and version of all entries from first to last, or from last to first.
fn scan(list: &SkipList, forward: bool) -> Vec<(u8, std::cmp::Reverse<u64>)> {
    let mut found = Vec::new();
    let mut node = if forward { list.first() } else { list.prev(NULL) };
    while node != HEAD && node != NULL {
        let key = list.key(node);
        assert_eq!(
            list.value(node),
            key.trailer.version().get().to_le_bytes(),
            "a node is whole when it can be reached"
        );
        found.push((key.user_key[0], std::cmp::Reverse(key.trailer.version().get())));
        node = if forward { list.next(node, 0) } else { list.prev(node) };
    }
    if !forward {
        found.reverse();
    }
    found
}

/// Writers insert few keys in many versions, each with a splice that remembers or with what the lanes found for two keys at once; two readers scan, one in each direction. Scans are sorted and grow; an entry
/// whose insertion a thread has seen end is found; nothing is missing in the end.
fn writers_and_readers(plant: Plant, seed: u64) {
    let mut list =
        SkipList::new(LIST_BYTES_MIN + (WRITERS * INSERTS) as usize * node_bytes(HEIGHT_MAX, 1, 8), b"", None);
    list.plant = plant;
    let list = Arc::new(list);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let list = Arc::clone(&list);
            thread::spawn(move || {
                let mut random = SplitMix64::new(seed * WRITERS + writer);
                let mut splice = Splice::new();
                let mut lanes = [Splice::new(), Splice::new()];
                let in_lanes = (seed + writer).is_multiple_of(2);
                let mut keys = [0; 2];
                for number in 0..INSERTS {
                    let version = 1 + number * WRITERS + writer;
                    if number % 2 == 0 {
                        keys = [random.below(3) as u8, random.below(3) as u8];
                        let [first, second] = keys.map(|key| [key]);
                        let targets = [internal_key(&first, version), internal_key(&second, version + WRITERS)];
                        if in_lanes {
                            list.locate_all(&targets.map(|key| list.target(key)), &mut lanes);
                        }
                    }
                    let key = keys[number as usize % 2];
                    let splice = if in_lanes { &mut lanes[number as usize % 2] } else { &mut splice };
                    insert(&list, splice, key, version, 1 + random.below(HEIGHT_MAX as u64) as usize);
                    let found = list.newest(&[key], Version::from_u64(version)).expect("it was just inserted");
                    assert_eq!(list.key(found).trailer.version().get(), version, "a version is found at itself");
                }
            })
        })
        .collect();
    let readers: Vec<_> = [true, false]
        .map(|forward| {
            let list = Arc::clone(&list);
            thread::spawn(move || {
                let (first, second) = (scan(&list, forward), scan(&list, forward));
                for scan in [&first, &second] {
                    assert!(scan.is_sorted_by(|a, b| a < b), "a scan is sorted: {scan:?}");
                }
                assert!(first.iter().all(|entry| second.contains(entry)), "{second:?} lost something of {first:?}");
            })
        })
        .into();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(scan(&list, true).len() as u64, WRITERS * INSERTS, "nothing is missing");
    list.check();
}

/// A different set of keys and heights on each schedule.
fn explore(plant: Plant) {
    let seed = std::sync::atomic::AtomicU64::new(0);
    shuttle::check_random(
        move || writers_and_readers(plant, seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
        SCHEDULES,
    );
}

#[test]
fn three_writers_and_two_readers() {
    explore(Plant::Nothing);
}

/// The same with the scheduler that aims at bugs of a given depth (Burckhardt and others, 2010).
#[test]
fn three_writers_and_two_readers_by_priorities() {
    let seed = std::sync::atomic::AtomicU64::new(0);
    shuttle::check_pct(
        move || {
            writers_and_readers(Plant::Nothing, seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        },
        SCHEDULES,
        3,
    );
}

#[test]
fn a_store_in_place_of_the_swap_is_found() {
    assert!(catch_unwind(|| explore(Plant::StoreInsteadOfSwap)).is_err());
}

#[test]
fn trusting_the_way_back_is_found() {
    assert!(catch_unwind(|| explore(Plant::TrustBefore)).is_err());
}
