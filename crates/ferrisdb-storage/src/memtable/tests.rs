//! The memtable against a `BTreeMap`, its limits, and real threads. Interleavings that threads hardly ever meet are in `loom_tests.rs`
//! and `shuttle_tests.rs`.
//!
//! Under the address sanitizer (a nightly toolchain):
//!
//! ```sh
//! RUSTFLAGS="--cfg tokio_unstable -Zsanitizer=address" cargo +nightly test -p ferrisdb-storage --lib memtable:: \
//!     --target x86_64-unknown-linux-gnu --target-dir target/asan
//! ```
//!
//! The speed figures of `docs/decisions/0003-memtable.md`:
//!
//! ```sh
//! cargo test --release -p ferrisdb-storage --lib memtable::tests::speed -- --ignored --nocapture
//! ```

#![expect(clippy::cast_possible_truncation, reason = "numbers here are small")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use ferrisdb_core::{Random, SplitMix64};

use super::*;
use crate::iter::PointIterator;

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

type Model = BTreeMap<Place, (ValueKind, Vec<u8>)>;
type Place = (Vec<u8>, Reverse<u64>);

fn entry(cursor: &impl PointIterator) -> Option<(Vec<u8>, u64, Vec<u8>)> {
    cursor.valid().then(|| {
        let key = cursor.key();
        (key.user_key.to_vec(), key.trailer.version().get(), cursor.value().to_vec())
    })
}

fn model_entry(found: Option<(&Place, &(ValueKind, Vec<u8>))>) -> Option<(Vec<u8>, u64, Vec<u8>)> {
    found.map(|((key, Reverse(version)), (_, value))| (key.clone(), *version, value.clone()))
}

/// Keys that collide in every interesting way: short, prefixes of each other, equal heads, zeros at the end, long.
fn odd_key(random: &mut SplitMix64) -> Vec<u8> {
    let mut key = match random.below(4) {
        0 => Vec::new(),
        1 => b"prefix12".to_vec(),
        2 => vec![0; random.below(10) as usize],
        _ => vec![b'k'; 7 + random.below(3) as usize],
    };
    for _ in 0..random.below(4) {
        key.push(random.below(3) as u8);
    }
    key
}

/// Every call gives what a `BTreeMap` over (key, version descending) gives, forwards and backwards, for sorted and unsorted
/// insertion by several inserters.
#[test]
fn equals_a_btree_map() {
    for seed in 0..40 {
        let mut random = SplitMix64::new(seed);
        // Prefixes that most, some and no keys have: they must not show.
        let prefix: &[u8] = [&b""[..], b"prefix12", b"kkkkkkk", b"\0\0", b"\xFF\xFF"][seed as usize % 5];
        let memtable = Arc::new(Memtable::with_prefix(1 << 20, prefix));
        let mut model = Model::new();
        let mut inserters = [Inserter::new(), Inserter::new()];
        for step in 0..1_500 {
            let key = if seed % 4 == 0 { format!("{step:06}").into_bytes() } else { odd_key(&mut random) };
            let version = 1 + random.below(300);
            let kind = if random.one_in(5) { ValueKind::Tombstone } else { ValueKind::Value };
            let value = if kind == ValueKind::Value { vec![step as u8; random.below(20) as usize] } else { Vec::new() };
            let inserter = &mut inserters[random.below(2) as usize];
            let result = memtable.insert(&key, v(version), kind, &value, inserter);
            if model.contains_key(&(key.clone(), Reverse(version))) {
                assert_eq!(result, Err(InsertError::Duplicate), "seed {seed}");
            } else {
                assert_eq!(result, Ok(()), "seed {seed}");
                model.insert((key, Reverse(version)), (kind, value));
            }
        }
        memtable.check();
        assert_eq!(memtable.entry_count(), model.len() as u64);
        assert_eq!(memtable.smallest_version().map(Version::get), model.keys().map(|key| key.1.0).min());
        assert_eq!(memtable.largest_version().map(Version::get), model.keys().map(|key| key.1.0).max());

        let mut cursor = memtable.iter_owned();
        assert!(!cursor.valid(), "a new cursor is not on an entry");
        cursor.seek_to_first().unwrap();
        for expected in model.iter() {
            assert_eq!(entry(&cursor), model_entry(Some(expected)), "seed {seed}");
            cursor.next().unwrap();
        }
        assert!(!cursor.valid());
        cursor.seek_to_last().unwrap();
        for expected in model.iter().rev() {
            assert_eq!(entry(&cursor), model_entry(Some(expected)), "seed {seed}");
            cursor.prev().unwrap();
        }
        assert!(!cursor.valid());

        let mut cursor = memtable.iter();
        for _ in 0..1_500 {
            let (key, version) = (odd_key(&mut random), random.below(302));
            let place = (key.clone(), Reverse(version));
            cursor.seek(InternalKey::seek(&key, v(version))).unwrap();
            assert_eq!(entry(&cursor), model_entry(model.range(place.clone()..).next()), "seed {seed} {place:?}");
            cursor.seek_before(InternalKey::seek(&key, v(version))).unwrap();
            assert_eq!(entry(&cursor), model_entry(model.range(..place.clone()).next_back()), "seed {seed} {place:?}");

            let expected = model.range(place..).next().filter(|(found, _)| found.0 == key);
            let expected = expected.map(|((_, Reverse(version)), (kind, value))| (v(*version), *kind, &value[..]));
            let found = memtable.get(&key, v(version)).map(|found| (found.version, found.kind, found.value));
            assert_eq!(found, expected, "seed {seed}");
        }
    }
}

/// A run of entries is what the same entries one by one are: whatever is in already, whether they are sorted, alike or far apart, and next to one
/// another; other inserters come between.
#[test]
fn a_run_is_its_entries_one_by_one() {
    for seed in 0..60 {
        let mut random = SplitMix64::new(seed);
        let prefix: &[u8] = [&b""[..], b"prefix12", b"\xFF\xFF"][seed as usize % 3];
        let (runs, singles) = (Memtable::with_prefix(4 << 20, prefix), Memtable::with_prefix(4 << 20, prefix));
        let (mut inserter, mut other) = (Inserter::new(), Inserter::new());
        for version in 1..150 {
            let count = random.below(3 * LANES as u64);
            let mut keys: BTreeSet<_> =
                (0..count)
                    .map(|number| {
                        if seed % 4 == 0 {
                            (version * 100 + number).to_be_bytes().to_vec()
                        } else {
                            odd_key(&mut random)
                        }
                    })
                    .collect();
            let last = if random.one_in(3) { keys.pop_last() } else { None };
            let mut keys: Vec<_> = keys.into_iter().collect();
            if random.one_in(2) {
                keys.sort_by_key(|key| key.iter().rev().copied().collect::<Vec<_>>());
            }
            let kind = if random.one_in(5) { ValueKind::Tombstone } else { ValueKind::Value };
            let entries: Vec<_> = keys.iter().map(|key| PointEntry { key, kind, value: key }).collect();
            assert_eq!(runs.insert_run(&entries, v(version), &mut inserter), Ok(()), "seed {seed}");
            for key in &keys {
                singles.insert(key, v(version), kind, key, &mut other).expect("it is not there");
            }
            // Two that are there already: what comes before them is in, what comes after is not.
            if let Some(last) = last
                && let Some(first) = keys.first()
            {
                let twice = [&last, first, first].map(|key| PointEntry { key, kind, value: key });
                assert_eq!(runs.insert_run(&twice, v(version), &mut inserter), Err(InsertError::Duplicate));
                singles.insert(&last, v(version), kind, &last, &mut other).expect("it is not there");
            }
        }
        runs.check();
        let all = |memtable: &Memtable| {
            let mut cursor = memtable.iter();
            cursor.seek_to_first().unwrap();
            let mut found = Vec::new();
            while let Some(here) = entry(&cursor) {
                found.push(here);
                cursor.next().unwrap();
            }
            found
        };
        assert_eq!(all(&runs), all(&singles), "seed {seed}");
        assert_eq!(runs.entry_count(), singles.entry_count());
    }
}

/// The same insertions make the same list: heights, and with them the memory used, do not depend on chance.
#[test]
fn is_deterministic() {
    let fill = || {
        let memtable = Memtable::new(1 << 20);
        let mut inserter = Inserter::new();
        for key in 0..1_000u32 {
            let key = key.wrapping_mul(2_654_435_761).to_be_bytes();
            memtable.insert(&key, v(1), ValueKind::Value, b"value", &mut inserter).unwrap();
        }
        memtable.memory_bytes()
    };
    assert_eq!(fill(), fill());
}

/// One node in two goes up a level.
#[test]
fn heights_are_geometric() {
    let mut counts = [0u32; HEIGHT_MAX + 1];
    (0..1 << 20).for_each(|ordinal| counts[height_of(ordinal)] += 1);
    for (height, &count) in counts.iter().enumerate().take(7).skip(1) {
        let expected = f64::from(1u32 << (20 - height));
        let off = (f64::from(count) - expected).abs() / expected;
        assert!(off < 0.1, "{count} nodes of height {height}, expected {expected}");
    }
}

/// A memtable of any size fills to the end, says so, loses nothing, and has wasted less than one entry.
#[test]
fn fills_up_and_says_so() {
    for capacity in [0, 4 << 10, (4 << 10) + 8, 5_000, 64 << 10] {
        let memtable = Memtable::new(capacity);
        let mut inserter = Inserter::new();
        let mut count = 0u32;
        let full = loop {
            match memtable.insert(&count.to_be_bytes(), v(1), ValueKind::Value, &[7; 100], &mut inserter) {
                Ok(()) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full, InsertError::Full);
        assert_eq!(memtable.entry_count(), u64::from(count));
        memtable.check();
        let left = memtable.capacity_bytes() - memtable.list.arena().allocated_bytes();
        assert!(left < Memtable::bytes_needed(4, 100), "{left} bytes of {capacity} are left");
        for key in 0..count {
            assert_eq!(memtable.get(&key.to_be_bytes(), v(1)).unwrap().value, [7; 100]);
        }
    }
}

/// The filter lets a search be saved in all but a few lookups of absent keys.
#[test]
fn the_filter_knows_most_absent_keys() {
    let memtable = Memtable::new(1 << 20);
    let mut inserter = Inserter::new();
    let mut count = 0u64;
    while memtable.insert(&count.to_be_bytes(), v(1), ValueKind::Value, &[7; 100], &mut inserter).is_ok() {
        count += 1;
    }
    let wrong = (count..count + 10_000).filter(|key| memtable.filter.may_hold(&key.to_be_bytes())).count();
    assert!(wrong < 200, "{wrong} of 10,000 absent keys pass the filter");
}

/// The prefix that a memtable suggests is that of most keys, whatever lies at the ends; it comes with enough keys only.
#[test]
fn suggests_a_prefix() {
    let memtable = Memtable::new(1 << 20);
    let mut inserter = Inserter::new();
    memtable.insert(b"", v(1), ValueKind::Value, b"", &mut inserter).unwrap();
    memtable.insert(b"\xFFsystem", v(1), ValueKind::Value, b"", &mut inserter).unwrap();
    assert_eq!(memtable.common_prefix(), b"");
    for row in 0..2_000 {
        memtable
            .insert(format!("table 17, row {row:04}").as_bytes(), v(1), ValueKind::Value, b"", &mut inserter)
            .unwrap();
    }
    assert_eq!(memtable.common_prefix(), b"table 17, row ");
}

/// A batch whose need was reserved never fails half-way, whatever others insert meanwhile; what it does not use comes back.
#[test]
fn a_reserved_batch_is_all_or_nothing() {
    let memtable = Memtable::new(CAPACITY_BYTES_MIN);
    let need = 8 * Memtable::bytes_needed(8, 100);
    let (mut batch, mut other) = (Inserter::new(), Inserter::new());
    assert!(memtable.try_reserve(need, &mut batch));
    assert!(!memtable.try_reserve(CAPACITY_BYTES_MIN, &mut other), "more than there is");
    let mut others = 0u64;
    while memtable.insert(&others.to_be_bytes(), v(1), ValueKind::Value, b"other", &mut other).is_ok() {
        others += 1;
    }
    assert!(others > 0);
    for key in 0..8u64 {
        memtable.insert(&key.to_be_bytes(), v(2), ValueKind::Value, &[1; 100], &mut batch).expect("it was reserved");
    }
    let before = memtable.list.arena().unreserved_bytes();
    memtable.release(&mut batch);
    assert!(memtable.list.arena().unreserved_bytes() > before, "towers are mostly lower than the reservation assumes");
    memtable.check();
}

/// A batch larger than any usual memtable has one that it fits.
#[test]
fn capacity_for_a_large_batch() {
    for bytes in [0, 1, 4_000, 4_096, 1 << 20] {
        let memtable = Memtable::new(Memtable::capacity_for(bytes));
        assert!(memtable.try_reserve(bytes, &mut Inserter::new()), "{bytes}");
    }
}

/// An inserter that comes from another memtable brings neither places nor reservations of that one.
#[test]
fn an_inserter_may_change_memtables() {
    let mut inserter = Inserter::new();
    let tables: Vec<Memtable> = (0..3).map(|_| Memtable::new(CAPACITY_BYTES_MIN)).collect();
    assert!(tables[0].try_reserve(3_000, &mut inserter));
    assert!(!tables[1].try_reserve(CAPACITY_BYTES_MIN, &mut inserter), "the reservation was of another memtable");
    for key in 0..30u8 {
        tables[usize::from(key) % 3].insert(&[key], v(1), ValueKind::Value, &[key], &mut inserter).unwrap();
    }
    for (index, table) in tables.iter().enumerate() {
        table.check();
        assert_eq!(table.entry_count(), 10);
        assert!((0..30u8).all(|key| table.get(&[key], v(1)).is_some() == (usize::from(key) % 3 == index)));
    }
}

/// The longest key and a value of some megabytes.
#[test]
fn long_keys_and_values() {
    let memtable = Memtable::new(8 << 20);
    let mut inserter = Inserter::new();
    let (key, value) = (vec![b'x'; crate::key::KEY_BYTES_MAX], vec![b'y'; 5 << 20]);
    memtable.insert(&key, v(1), ValueKind::Value, &value, &mut inserter).unwrap();
    memtable.insert(&key[1..], v(1), ValueKind::BlobPointer, b"", &mut inserter).unwrap();
    assert_eq!(memtable.get(&key, v(1)).unwrap().value, value);
    assert_eq!(memtable.get(&key[1..], v(1)).unwrap().kind, ValueKind::BlobPointer);
    assert_eq!(memtable.insert(b"z", v(1), ValueKind::Value, &value, &mut inserter), Err(InsertError::Full));
    memtable.check();
}

/// Lookups over range tombstones equal the definition after every insertion, by runs and merged; the empty one costs nothing.
#[test]
fn range_tombstones_equal_the_definition() {
    for seed in 0..30 {
        let mut random = SplitMix64::new(seed);
        let memtable = Memtable::new(CAPACITY_BYTES_MIN);
        assert!(
            memtable.is_empty() && memtable.range_tombstones().is_none() && memtable.range_tombstone_runs().is_empty()
        );
        let mut inserted: Vec<(u8, u8, u64)> = Vec::new();
        for _ in 0..40 {
            let (a, b, version) = (random.below(16) as u8, random.below(16) as u8, random.below(20));
            memtable.insert_range_tombstone(&[a], &[b], v(version));
            if a < b {
                inserted.push((a, b, version));
            }
            memtable.check();
            assert_eq!(memtable.range_tombstone_count(), inserted.len());
            let (merged, runs) = (memtable.range_tombstones().unwrap_or_default(), memtable.range_tombstone_runs());
            assert!(runs.len() <= inserted.len().max(1).ilog2() as usize + 1, "{} runs", runs.len());
            for (key, at) in (0..17u8).flat_map(|key| (0..21).map(move |at| (key, at))) {
                let covers = |&(start, end, version): &(u8, u8, u64)| start <= key && key < end && version <= at;
                let expected = inserted.iter().filter(|t| covers(t)).map(|t| v(t.2)).max();
                assert_eq!(memtable.newest_covering(&[key], v(at)), expected, "seed {seed}");
                assert_eq!(merged.newest_covering(&[key], v(at)), expected, "seed {seed}");
                let of_runs = runs.iter().filter_map(|run| run.newest_covering(&[key], v(at))).max();
                assert_eq!(of_runs, expected, "seed {seed}");
            }
        }
        assert_eq!(memtable.is_empty(), inserted.is_empty());
    }
}

/// A queue that is trimmed from the left thousands of times makes quadratically many fragments: they are counted, and the memtable refuses
/// further batches long before they take a multiple of its capacity.
#[test]
fn overlapping_range_tombstones_fill_the_memtable() {
    let memtable = Memtable::new(1 << 20);
    let mut inserter = Inserter::new();
    let mut deletes = 0u64;
    while memtable.try_reserve(Memtable::bytes_needed(8, 0), &mut inserter) {
        deletes += 1;
        memtable.insert_range_tombstone(b"", &deletes.to_be_bytes(), v(deletes));
        assert!(deletes < 10_000, "{} bytes and no end", memtable.memory_bytes());
    }
    assert!(deletes > 100);
    assert!(memtable.memory_bytes() < 5 << 20, "{} bytes after {deletes} deletes", memtable.memory_bytes());
    assert_eq!(memtable.newest_covering(&1u64.to_be_bytes(), v(deletes)), Some(v(deletes)));
}

/// Real threads insert, others read at the same time: what a reader once saw it sees again, in order, forwards and backwards, and what a
/// writer says is in is found. At the end nothing is missing.
#[test]
fn threads_insert_while_others_read() {
    const WRITERS: u64 = 3;
    const KEYS: u64 = 6_000;
    for seed in 0..3 {
        let memtable = Memtable::new(64 << 20);
        let done = AtomicBool::new(false);
        let inserted = [const { AtomicU64::new(0) }; WRITERS as usize];
        // Writers share user keys and differ in the version, so that they meet at the same places.
        let key_of = |number: u64| (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 50).to_be_bytes();
        let version_of = |writer: u64, number: u64| v(1 + number * WRITERS + writer);
        std::thread::scope(|scope| {
            let (memtable, done, inserted) = (&memtable, &done, &inserted);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    scope.spawn(move || {
                        let mut inserter = Inserter::new();
                        for number in 0..KEYS {
                            let key = if seed == 0 { number.to_be_bytes() } else { key_of(number) };
                            let value = [key, key].concat();
                            let version = version_of(writer, number);
                            if seed == 2 {
                                // In a run with keys that no reader looks for, below and above.
                                let values: Vec<_> = (0..8u8)
                                    .map(|step| [&[if step % 2 == 0 { 0 } else { 9 }, step][..], &key].concat())
                                    .map(|other| [&other[..], &other].concat())
                                    .collect();
                                let kind = ValueKind::Value;
                                let mut run: Vec<_> = values
                                    .iter()
                                    .map(|value| PointEntry { key: &value[..value.len() / 2], kind, value })
                                    .collect();
                                run.insert(4, PointEntry { key: &key, kind: ValueKind::Value, value: &value });
                                memtable.insert_run(&run, version, &mut inserter).unwrap();
                            } else {
                                memtable.insert(&key, version, ValueKind::Value, &value, &mut inserter).unwrap();
                            }
                            if number % 100 == 0 {
                                let end = (number + 1).to_be_bytes();
                                memtable.insert_range_tombstone(&number.to_be_bytes(), &end, version);
                            }
                            inserted[writer as usize].store(number + 1, Ordering::Release);
                        }
                    })
                })
                .collect();
            for reader in 0..2 {
                scope.spawn(move || {
                    let mut random = SplitMix64::new(seed * 10 + reader);
                    let mut seen_before = 0;
                    while !done.load(Ordering::Acquire) {
                        let mut cursor = memtable.iter();
                        let (mut seen, mut last) = (0, None::<(Vec<u8>, Reverse<u64>)>);
                        if reader == 0 {
                            cursor.seek_to_first().unwrap()
                        } else {
                            cursor.seek_to_last().unwrap()
                        };
                        while let Some((key, version, value)) = entry(&cursor) {
                            assert_eq!(value, [&key[..], &key[..]].concat(), "an entry is whole when it can be seen");
                            let here = (key, Reverse(version));
                            let ordered = last.is_none_or(|last| if reader == 0 { last < here } else { here < last });
                            assert!(ordered, "a scan is sorted");
                            last = Some(here);
                            seen += 1;
                            if reader == 0 {
                                cursor.next().unwrap()
                            } else {
                                cursor.prev().unwrap()
                            };
                        }
                        assert!(seen >= seen_before, "a scan sees all that an earlier one saw");
                        seen_before = seen;
                        for _ in 0..200 {
                            let writer = random.below(WRITERS);
                            let count = inserted[writer as usize].load(Ordering::Acquire);
                            if count == 0 {
                                continue;
                            }
                            let number = random.below(count);
                            let key = if seed == 0 { number.to_be_bytes() } else { key_of(number) };
                            let version = version_of(writer, number);
                            assert_eq!(memtable.get(&key, version).expect("it was inserted").version, version);
                            if number % 100 == 0 {
                                assert!(memtable.newest_covering(&number.to_be_bytes(), version) >= Some(version));
                            }
                        }
                    }
                });
            }
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            done.store(true, Ordering::Release);
        });
        memtable.check();
        assert_eq!(memtable.entry_count(), WRITERS * KEYS * if seed == 2 { 9 } else { 1 });
        let mut cursor = memtable.iter();
        cursor.seek_to_first().unwrap();
        let mut found = BTreeSet::new();
        while let Some((_, version, _)) = entry(&cursor) {
            found.insert(version);
            cursor.next().unwrap();
        }
        assert_eq!(found.len() as u64, WRITERS * KEYS, "seed {seed}");
    }
}

/// Nanoseconds that this thread has been on a processor: a measure that other work on the machine disturbs least.
fn cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has scheduler statistics");
    stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("the first number is the time on a processor")
}

/// The figures in the decision file. Prints nanoseconds of processor time per operation.
#[test]
#[ignore = "a measurement: run it in release"]
#[expect(clippy::print_stdout, reason = "it is there to print")]
fn speed() {
    const COUNT: u64 = 480_000;
    let value = [0x5Au8; 100];
    let key_of = |number: u64| {
        let mut key = [0u8; 16];
        let mixed = SplitMix64::new(number).next_u64();
        key[..8].copy_from_slice(&mixed.to_be_bytes());
        key[8..].copy_from_slice(&number.to_be_bytes());
        key
    };
    let ascending = |number: u64| {
        let mut key = *b"user0000--------";
        key[8..].copy_from_slice(&number.to_be_bytes());
        key
    };
    let measure = |what: &str, count: u64, work: &mut dyn FnMut()| {
        let start = cpu_nanos();
        work();
        println!("{what:<44}{:>8.0} ns", (cpu_nanos() - start) as f64 / count as f64);
    };
    let mut inserter = Inserter::new();
    for (what, prefix) in
        [("", &b""[..]), (", alike and prefix unknown", b""), (", alike and prefix known", b"user0000")]
    {
        let key_of = |number: u64| {
            if what.is_empty() { key_of(number) } else { ascending(SplitMix64::new(number).next_u64()) }
        };
        let table = Memtable::with_prefix(128 << 20, prefix);
        measure(&format!("insert, random{what}"), COUNT, &mut || {
            for number in 0..COUNT {
                table.insert(&key_of(number), v(number), ValueKind::Value, &value, &mut inserter).unwrap();
            }
        });
        println!("{} bytes per entry", table.memory_bytes() as u64 / COUNT);
        measure(&format!("get, random{what}, hit"), COUNT, &mut || {
            for number in 0..COUNT {
                let number = number * 7_919 % COUNT;
                assert!(table.get(&key_of(number), Version::MAX).is_some());
            }
        });
        measure(&format!("get, random{what}, miss"), COUNT, &mut || {
            for number in 0..COUNT {
                assert!(table.get(&key_of(number + COUNT), Version::MAX).is_none());
            }
        });
    }
    let random = Memtable::new(128 << 20);
    for number in 0..COUNT {
        random.insert(&key_of(number), v(number), ValueKind::Value, &value, &mut inserter).unwrap();
    }
    let mut cursor = random.iter();
    measure("next, per entry", COUNT, &mut || {
        cursor.seek_to_first().unwrap();
        while cursor.valid() {
            cursor.next().unwrap();
        }
    });
    measure("prev, per entry", COUNT, &mut || {
        cursor.seek_to_last().unwrap();
        while cursor.valid() {
            cursor.prev().unwrap();
        }
    });
    for (what, hint) in [("insert, ascending", true), ("insert, ascending, no hint", false)] {
        let table = Memtable::new(128 << 20);
        let mut inserter = Inserter::new();
        measure(what, COUNT, &mut || {
            for number in 0..COUNT {
                if !hint {
                    inserter = Inserter::new();
                }
                table.insert(&ascending(number), v(number), ValueKind::Value, &value, &mut inserter).unwrap();
            }
        });
    }
    let table = Memtable::new(128 << 20);
    let mut inserter = Inserter::new();
    measure("insert, sorted batches of 100 random keys", COUNT, &mut || {
        for batch in 0..COUNT / 100 {
            let mut keys: Vec<_> = (0..100).map(|number| key_of(batch * 100 + number)).collect();
            keys.sort_unstable();
            for key in keys {
                table.insert(&key, v(batch), ValueKind::Value, &value, &mut inserter).unwrap();
            }
        }
    });
    for count in [4, 16, 64] {
        let table = Memtable::new(128 << 20);
        let mut inserter = Inserter::new();
        measure(&format!("insert_run, {count} random keys"), COUNT, &mut || {
            for batch in 0..COUNT / count {
                let keys: Vec<_> = (0..count).map(|number| key_of(batch * count + number)).collect();
                let entry = |key| PointEntry { key, kind: ValueKind::Value, value: &value };
                let entries: Vec<_> = keys.iter().map(|key| entry(&key[..])).collect();
                table.insert_run(&entries, v(batch), &mut inserter).unwrap();
            }
        });
    }
    for run in [1, 16, 64] {
        let table = Memtable::with_prefix(128 << 20, b"user0000");
        let mut inserter = Inserter::new();
        measure(&format!("insert_run of {run}, 20,000 keys over and over"), COUNT, &mut || {
            for batch in 0..COUNT / run {
                let key = |number: u64| ascending(SplitMix64::new((batch * run + number) * 7_919 % 20_000).next_u64());
                let keys: Vec<_> = (0..run).map(key).collect();
                let entry = |key| PointEntry { key, kind: ValueKind::Value, value: &value };
                let entries: Vec<_> = keys.iter().map(|key| entry(&key[..])).collect();
                table.insert_run(&entries, v(batch), &mut inserter).unwrap();
            }
        });
    }
    let table = Memtable::new(128 << 20);
    let mut inserter = Inserter::new();
    measure("insert, same 1000 keys over and over", COUNT, &mut || {
        for number in 0..COUNT {
            table
                .insert(&ascending(number * 7_919 % 1_000), v(number), ValueKind::Value, &value, &mut inserter)
                .unwrap();
        }
    });
    let mut keys: BTreeMap<[u8; 16], [u8; 100]> = BTreeMap::new();
    measure("for comparison: BTreeMap, random", COUNT, &mut || {
        for number in 0..COUNT {
            keys.insert(key_of(number), value);
        }
    });
    let tombstones = Memtable::new(128 << 20);
    measure("insert_range_tombstone, disjoint", 20_000, &mut || {
        for number in 0..20_000u64 {
            tombstones.insert_range_tombstone(&key_of(number), &[&key_of(number)[..], b"\xFF"].concat(), v(number));
        }
    });
    measure("newest_covering, 20,000 tombstones", COUNT, &mut || {
        for number in 0..COUNT {
            std::hint::black_box(tombstones.newest_covering(&key_of(number), Version::MAX));
        }
    });
}

/// The memory of a dropped memtable goes to the next one of its size, which starts empty; one piece is kept, and can be given back.
#[test]
fn memory_is_used_again() {
    const BYTES: usize = 1 << 20;
    let pool = Arc::<MemoryPool>::default();
    let make = |bytes| Memtable::in_pool(bytes, b"", &pool);
    let fill = |memtable: &Memtable| {
        let mut inserter = Inserter::new();
        let mut count = 0;
        while memtable
            .insert(format!("{count:08}").as_bytes(), v(1), ValueKind::Value, &[7; 100], &mut inserter)
            .is_ok()
        {
            count += 1;
        }
        memtable.check();
        count
    };
    let (first, second) = (make(BYTES), make(BYTES));
    let count = fill(&first);
    drop(first);
    drop(second);
    assert_eq!(pool.spare_bytes(), BYTES, "one piece of the two");
    let other_size = make(BYTES / 2);
    assert_eq!(pool.spare_bytes(), BYTES, "it is not for memtables of other sizes");
    let third = make(BYTES);
    assert_eq!(pool.spare_bytes(), 0, "it is in use");
    assert!(third.is_empty() && third.get(b"00000000", v(9)).is_none());
    assert_eq!(fill(&third), count);
    drop((third, other_size));
    assert_eq!(pool.spare_bytes(), BYTES / 2, "the last dropped stays");
    pool.clear();
    assert_eq!(pool.spare_bytes(), 0);
}

/// A memtable that has given its unused memory back is as it was, and takes as much as before; what is reserved and not used yet stays.
#[test]
fn unused_memory_is_given_back_and_comes_again() {
    const BYTES: usize = 16 << 20;
    let pool = Arc::<MemoryPool>::default();
    let value = [7; 1000];
    let fill = |memtable: &Memtable, from: u32| {
        let mut inserter = Inserter::new();
        let inserted = |count: u32, inserter: &mut Inserter| {
            memtable.insert(format!("{count:08}").as_bytes(), v(1), ValueKind::Value, &value, inserter).is_ok()
        };
        (from..).find(|&count| !inserted(count, &mut inserter)).expect("it is full some time") - from
    };
    let full = Memtable::in_pool(BYTES, b"", &pool);
    let count = fill(&full, 0);
    drop(full);
    let memtable = Memtable::in_pool(BYTES, b"", &pool);
    let mut inserter = Inserter::new();
    memtable.insert(b"00000000", v(1), ValueKind::Value, &value, &mut inserter).expect("it has room");
    // What the memtable before left behind; the operating system's pages begin as zeros.
    let left_behind = || {
        let places = (BYTES / 2..BYTES - 4096).step_by(4096);
        // SAFETY: in bounds, and nobody writes there meanwhile.
        places.filter(|&place| unsafe { memtable.list.arena().bytes(place as u32, 2000) }.contains(&7)).count()
    };
    let before = left_behind();
    memtable.release_unused();
    if cfg!(target_os = "linux") {
        assert!(before > 1000 && left_behind() == 0, "{before} pages before, {} now", left_behind());
    }
    // The inserter may still hold a reservation from before.
    memtable.insert(b"00000001", v(1), ValueKind::Value, &value, &mut inserter).expect("it has room");
    let filled = fill(&memtable, 2) + 2;
    assert!(filled.abs_diff(count) < 100, "{filled} entries where {count} fitted before");
    memtable.check();
    for number in 0..filled {
        let found = memtable.get(format!("{number:08}").as_bytes(), v(9));
        assert!(found.is_some_and(|found| found.value == value), "entry {number}");
    }
}
