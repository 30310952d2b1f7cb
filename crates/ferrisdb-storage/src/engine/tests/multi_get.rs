//! Several keys at once: the answers of as many single reads, for less work.

use ferrisdb_core::{Random, SplitMix64};

use super::Machine;
use crate::fs::sim::SimFileSystem;
use crate::{Durability, Engine, Options, WriteBatch};

const KEYS: u64 = 3000;

fn key(n: u64) -> Vec<u8> {
    format!("key{n:05}").into_bytes()
}

/// Values in memtables, in L0 and below, some in blob files, and point and range tombstones over them.
fn filled(machine: &Machine) -> Engine {
    let options = Options { blob_value_bytes: Some(64), block_cache_bytes: 8 << 20, ..Options::tiny() };
    let engine = machine.open(options).unwrap();
    let mut random = SplitMix64::new(7);
    for n in 0..4 * KEYS {
        let mut batch = WriteBatch::new();
        match random.below(50) {
            0 => {
                let start = random.below(KEYS);
                batch.delete_range(&key(start), &key(start + random.below(20)));
            }
            1..=5 => {
                batch.delete(&key(random.below(KEYS)));
            }
            _ => {
                batch.put(&key(random.below(KEYS)), n.to_string().repeat(random.below(20) as usize).as_bytes());
            }
        }
        engine.write(batch, Durability::Buffered).unwrap();
    }
    engine
}

/// In any order, with repetitions and absent keys, at the newest version and at an older one.
#[test]
fn it_equals_single_reads() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let engine = filled(&machine);
    let snapshot = engine.snapshot();
    for n in 0..KEYS / 2 {
        let mut batch = WriteBatch::new();
        batch.put(&key(2 * n), b"newer");
        engine.write(batch, Durability::Buffered).unwrap();
    }
    let mut random = SplitMix64::new(2);
    for version in [None, Some(snapshot.version())] {
        for round in 0..200 {
            let keys: Vec<Vec<u8>> = (0..random.below(60)).map(|_| key(random.below(KEYS + 100))).collect();
            let all = engine.multi_get(&keys, version).unwrap();
            let each: Vec<_> = keys
                .iter()
                .map(|key| match version {
                    Some(version) => engine.get_at(key, version).unwrap(),
                    None => engine.get(key).unwrap(),
                })
                .collect();
            assert_eq!(all, each, "round {round} at {version:?}");
        }
    }
    assert!(engine.statistics().levels[1..].iter().any(|level| level.tables > 0), "not all is in memory or in L0");
    assert_eq!(engine.multi_get::<&[u8]>(&[], None).unwrap(), []);
}

/// Keys that share a block cost one lookup in the block cache, not one each.
#[test]
fn neighbours_share_a_block() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let engine = filled(&machine);
    engine.compact_range(None, None).unwrap();
    // Without blob values, which are looked up one by one either way.
    let is_small = |key: &Vec<u8>| engine.get(key).unwrap().is_some_and(|value| value.len() < 64);
    let keys: Vec<Vec<u8>> = (0..KEYS).rev().map(key).filter(is_small).collect();
    let lookups = |read: &dyn Fn()| {
        let count = || {
            let cache = engine.statistics().cache;
            cache.hits + cache.misses
        };
        let before = count();
        read();
        count() - before
    };
    let single = lookups(&|| keys.iter().for_each(|key| assert!(engine.get(key).unwrap().is_some())));
    let together = lookups(&|| assert!(engine.multi_get(&keys, None).unwrap().iter().all(Option::is_some)));
    assert!(together * 3 < single, "{together} lookups in place of {single}");
}
