//! The engine against a `BTreeMap`: random batches, range deletes, snapshots, old versions, flushes, compactions, reopens and
//! crashes that lose nothing, under many sets of options.

use std::collections::BTreeMap;

use ferrisdb_core::{Random, SplitMix64, Version};

use super::Machine;
use crate::fs::sim::SimFileSystem;
use crate::table::Compression;
use crate::{Durability, Engine, IterOptions, Options, Retention, WriteBatch};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Sets of options that take different paths through the engine.
fn option_sets() -> Vec<(&'static str, Options)> {
    let tiny = Options::tiny();
    vec![
        ("tiny", tiny.clone()),
        ("no compaction", Options { compaction_jobs: 0, ..tiny.clone() }),
        (
            "eager compaction",
            Options {
                l0_compaction_tables: 1,
                base_level_bytes: 4096,
                table_bytes: 4096,
                level_multiplier: 2,
                ..tiny.clone()
            },
        ),
        ("two workers", Options { compaction_jobs: 2, table_bytes: 4096, ..tiny.clone() }),
        ("single steps", Options { job_step_entries: 1, ..tiny.clone() }),
        (
            "no cache, no filter, no compression",
            Options {
                block_cache_bytes: 0,
                filter_bits_per_key: 0,
                compression: [Compression::None; 7],
                ..tiny.clone()
            },
        ),
        ("three open files", Options { max_open_files: 3, blob_value_bytes: Some(64), ..tiny.clone() }),
        ("paced", Options { background_bytes_per_second: Some(64 << 10), compaction_jobs: 2, ..tiny.clone() }),
        ("zstd", Options { compression: [Compression::Zstd { level: 1 }; 7], ..tiny.clone() }),
        ("from floor", Options { retention: Retention::FromFloor, ..tiny.clone() }),
        ("blob files", Options { blob_value_bytes: Some(64), ..tiny.clone() }),
        (
            "blob files, eager compaction, from floor",
            Options {
                blob_value_bytes: Some(64),
                retention: Retention::FromFloor,
                l0_compaction_tables: 1,
                base_level_bytes: 4096,
                table_bytes: 4096,
                level_multiplier: 2,
                compaction_jobs: 2,
                ..tiny
            },
        ),
    ]
}

struct Run {
    random: SplitMix64,
    engine: Engine,
    model: Map,
    /// States of the past that must be readable: (version, state, how it is held).
    history: Vec<(Version, Map)>,
    from_floor: bool,
}

fn random_key(random: &mut SplitMix64) -> Vec<u8> {
    // A shared prefix, so that heads tie, and keys that are prefixes of others.
    let mut key = b"shared/prefix/".to_vec();
    let len = 1 + random.below(3);
    key.extend((0..len).map(|_| b'a' + random.below(6) as u8));
    key
}

impl Run {
    fn write(&mut self) {
        let mut batch = WriteBatch::new();
        for _ in 0..1 + self.random.below(8) {
            let key = random_key(&mut self.random);
            match self.random.below(12) {
                0 => {
                    let other = random_key(&mut self.random);
                    let (start, end) = if key < other { (key, other) } else { (other, key) };
                    batch.delete_range(&start, &end);
                    self.model.retain(|key, _| !(start <= *key && *key < end));
                }
                1..=3 => {
                    batch.delete(&key);
                    self.model.remove(&key);
                }
                _ => {
                    let len = if self.random.one_in(40) { 3000 } else { self.random.below(90) as usize };
                    let value: Vec<u8> = (0..len).map(|_| self.random.next_u64() as u8).collect();
                    batch.put(&key, &value);
                    self.model.insert(key, value);
                }
            }
        }
        let version = self.engine.write(batch, Durability::Buffered).unwrap();
        if self.from_floor {
            self.history.push((version, self.model.clone()));
        }
    }

    fn check_at(&mut self, version: Option<Version>, model: &Map) {
        let engine = &self.engine;
        for _ in 0..4 {
            let key = random_key(&mut self.random);
            let got = match version {
                Some(version) => engine.get_at(&key, version),
                None => engine.get(&key),
            };
            assert_eq!(got.unwrap().map(|value| value.to_vec()), model.get(&key).cloned(), "{key:?} at {version:?}");
        }
        let keys: Vec<Vec<u8>> = (0..self.random.below(12)).map(|_| random_key(&mut self.random)).collect();
        for (key, got) in keys.iter().zip(engine.multi_get(&keys, version).unwrap()) {
            assert_eq!(got.as_deref(), model.get(key).map(Vec::as_slice), "{key:?} among {keys:?} at {version:?}");
        }
        let (a, b) = (random_key(&mut self.random), random_key(&mut self.random));
        let (lower, upper) = if a < b { (a, b) } else { (b, a) };
        let whole = self.random.one_in(2);
        let bounds = |key: &Vec<u8>| (!whole).then(|| key.clone());
        let options = IterOptions { lower: bounds(&lower), upper: bounds(&upper), version };
        let expected: Vec<(&Vec<u8>, &Vec<u8>)> =
            model.iter().filter(|(key, _)| whole || (lower <= **key && **key < upper)).collect();
        let mut iter = engine.iter(options).unwrap();
        if self.random.one_in(2) {
            iter.seek_to_first().unwrap();
            for (key, value) in &expected {
                assert!(iter.valid(), "{key:?} is missing at {version:?}");
                assert_eq!((iter.key(), iter.value()), (&key[..], &value[..]), "at {version:?}");
                iter.next().unwrap();
            }
        } else {
            iter.seek_to_last().unwrap();
            for (key, value) in expected.iter().rev() {
                assert!(iter.valid(), "{key:?} is missing at {version:?}");
                assert_eq!((iter.key(), iter.value()), (&key[..], &value[..]), "at {version:?}");
                iter.prev().unwrap();
            }
        }
        assert!(!iter.valid(), "{:?} should not be there", iter.key());
    }
}

fn run(seed: u64, options: &Options, steps: usize) {
    let mut machine = Machine::new(SimFileSystem::new(), seed);
    let from_floor = options.retention == Retention::FromFloor;
    let engine = machine.open(options.clone()).unwrap();
    let mut run = Run { random: SplitMix64::new(seed), engine, model: Map::new(), history: Vec::new(), from_floor };
    let mut snapshots = Vec::new();
    for _ in 0..steps {
        match run.random.below(60) {
            0 => drop(run.engine.flush().unwrap()),
            1 if options.compaction_jobs > 0 => {
                let (a, b) = (random_key(&mut run.random), random_key(&mut run.random));
                run.engine.compact_range(Some((&a).min(&b)), Some((&a).max(&b))).unwrap();
            }
            2 if options.compaction_jobs > 0 => run.engine.wait_for_compactions().unwrap(),
            3 => {
                let model = run.model.clone();
                run.check_at(None, &model);
            }
            4 | 5 if !from_floor => {
                if snapshots.len() > 3 {
                    snapshots.remove(run.random.below(4) as usize);
                }
                snapshots.push((run.engine.snapshot(), run.model.clone()));
            }
            6 => {
                for (snapshot, model) in &snapshots {
                    run.check_at(Some(snapshot.version()), model);
                }
            }
            7 | 8 if from_floor && !run.history.is_empty() => {
                let index = run.random.below(run.history.len() as u64) as usize;
                let (version, model) = run.history[index].clone();
                run.check_at(Some(version), &model);
            }
            9 if from_floor && run.history.len() > 20 => {
                // Old states go, except a few that are pinned.
                let pins: Vec<usize> = (0..2).map(|_| run.random.below(10) as usize).collect();
                for &pin in &pins {
                    run.engine.pin(run.history[pin].0).unwrap();
                }
                let floor = run.history[10].0;
                run.engine.set_oldest_readable_version(floor).unwrap();
                let kept = run.history.iter().enumerate().filter(|(index, _)| *index >= 10 || pins.contains(index));
                run.history = kept.map(|(_, state)| state.clone()).collect();
            }
            10 if run.random.one_in(3) => {
                snapshots.clear();
                let report = run.engine.verify().unwrap();
                assert!(report.is_ok(), "{:?}", report.problems);
                let pinned_versions = if from_floor {
                    run.history
                        .iter()
                        .map(|(version, _)| *version)
                        .filter(|version| *version < run.engine.oldest_readable_version())
                        .collect()
                } else {
                    Vec::new()
                };
                let crash = run.random.one_in(2);
                if crash {
                    // The process dies; the disk keeps what was written, synced or not.
                    let disk = machine.disk.fork();
                    machine = Machine::new(disk, run.random.next_u64());
                } else {
                    run.engine.clone().close().unwrap();
                }
                run.engine = machine.open(Options { pinned_versions, ..options.clone() }).unwrap();
            }
            _ => run.write(),
        }
    }
    let model = run.model.clone();
    run.check_at(None, &model);
    let report = run.engine.verify().unwrap();
    assert!(report.is_ok(), "{:?}", report.problems);
}

/// Equal to the model, whatever the options.
#[test]
fn the_engine_equals_the_model() {
    let only = std::env::var("FERRISDB_TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for (name, options) in option_sets() {
        for seed in only.map_or(0..25, |seed| seed..seed + 1) {
            let result = std::panic::catch_unwind(|| run(seed, &options, 1000));
            if let Err(panic) = result {
                eprintln!("options \"{name}\"; replay with FERRISDB_TEST_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
