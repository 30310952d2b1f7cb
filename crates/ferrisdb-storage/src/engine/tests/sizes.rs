//! Sizes and split points against what was written.

use ferrisdb_core::{Random, SplitMix64};

use super::Machine;
use crate::fs::sim::SimFileSystem;
use crate::table::Compression;
use crate::{Durability, Engine, Error, Options, RangeSize, WriteBatch};

const KEYS: u64 = 4000;
const ENTRY_BYTES: u64 = 8 + 100;

fn key(n: u64) -> Vec<u8> {
    format!("key{n:05}").into_bytes()
}

fn filled(machine: &Machine) -> Engine {
    // As many bytes on disk as were written.
    let options = Options { compression: [Compression::None; 7], filter_bits_per_key: 0, ..Options::tiny() };
    let engine = machine.open(options).unwrap();
    let mut random = SplitMix64::new(1);
    for n in 0..KEYS {
        let mut batch = WriteBatch::new();
        let value: Vec<u8> = (0..100).map(|_| random.next_u64() as u8).collect();
        batch.put(&key(n), &value);
        engine.write(batch, Durability::Buffered).unwrap();
    }
    engine
}

/// Of every part, in tables and in memory together: within a quarter and a few blocks of what was written.
#[test]
fn sizes_are_about_right() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let engine = filled(&machine);
    let mut random = SplitMix64::new(2);
    for round in 0..3 {
        for _ in 0..50 {
            let (a, b) = (random.below(KEYS), random.below(KEYS));
            let (from, to) = (a.min(b), a.max(b));
            let RangeSize { disk_bytes, memory_bytes } =
                engine.approximate_size(Some(&key(from)), Some(&key(to))).unwrap();
            let (is, expected) = (disk_bytes + memory_bytes, (to - from) * ENTRY_BYTES);
            assert!(is.abs_diff(expected) < expected / 4 + 4096, "{is} for {expected} in round {round}");
        }
        match round {
            0 => drop(engine.flush().unwrap()),
            _ => engine.compact_range(None, None).unwrap(),
        }
    }
    assert_eq!(engine.approximate_size(None, None).unwrap().memory_bytes, 0);
    assert_eq!(engine.approximate_size(Some(b"z"), None).unwrap(), RangeSize::default());
    assert!(matches!(engine.approximate_size(Some(b"b"), Some(b"a")), Err(Error::InvertedRange { .. })));
}

/// Split points are ascending, inside the range, and cut it into parts of about the size asked for.
#[test]
fn split_points_cut_evenly() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let engine = filled(&machine);
    for round in 0..3 {
        let (start, end) = (key(500), key(3500));
        let whole = 3000 * ENTRY_BYTES;
        for parts in [2, 5, 10] {
            let points = engine.split_points(Some(&start), Some(&end), whole / parts).unwrap();
            assert!(
                points.len() as u64 + 1 >= parts - 1 && points.len() as u64 <= parts + 1,
                "{} of {parts}",
                points.len()
            );
            let all: Vec<&[u8]> =
                [&start[..]].into_iter().chain(points.iter().map(|p| &p[..])).chain([&end[..]]).collect();
            for pair in all.windows(2) {
                assert!(pair[0] < pair[1]);
                let size = engine.approximate_size(Some(pair[0]), Some(pair[1])).unwrap();
                let is = size.disk_bytes + size.memory_bytes;
                assert!(
                    is < 2 * whole / parts + 4096 && is + 4096 > whole / parts / 3,
                    "{is} for {} in round {round}",
                    whole / parts
                );
            }
        }
        assert!(engine.split_points(Some(&start), Some(&end), 2 * whole).unwrap().is_empty());
        match round {
            0 => drop(engine.flush().unwrap()),
            _ => engine.compact_range(None, None).unwrap(),
        }
    }
}
