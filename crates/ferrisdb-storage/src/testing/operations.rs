//! An engine's life told by bytes, against a `BTreeMap`: the body of the fuzz target `operations`.

use std::collections::BTreeMap;

use super::decoders::Input;
use super::{Machine, contents, scan};
use crate::fs::sim::{CrashMode, SimFileSystem};
use crate::{Durability, Engine, IterOptions, Options, Snapshot, WriteBatch};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

const WORKS: &str = "nothing is wrong with this disk";

/// Operations that a test is worth; a longer input is cut.
const OPERATIONS_MAX: usize = 2000;

fn options(shape: u8) -> Options {
    let tiny = Options { write_buffer_bytes: 16 << 10, ..Options::tiny() };
    let eager = Options {
        l0_compaction_tables: 1,
        base_level_bytes: 4096,
        table_bytes: 4096,
        level_multiplier: 2,
        ..tiny.clone()
    };
    match shape % 4 {
        0 => tiny,
        1 => eager,
        2 => Options { blob_value_bytes: Some(64), ..eager },
        _ => Options { compaction_jobs: 2, job_step_entries: 1, block_cache_bytes: 0, filter_bits_per_key: 0, ..eager },
    }
}

fn key(input: &mut Input<'_>) -> Vec<u8> {
    let byte = input.byte();
    // Keys that are prefixes of others, and that are neighbours.
    let mut key = b"key".to_vec();
    key.push(b'a' + byte % 8);
    key.extend(std::iter::repeat_n(b'0', usize::from(byte >> 6)));
    if byte & 8 != 0 {
        key.push(b'a' + (byte >> 4) % 4);
    }
    key
}

struct Life {
    machine: Machine,
    options: Options,
    /// Taken only while it is opened again.
    engine: Option<Engine>,
    model: Map,
    /// What a loss of power leaves at least: everything up to the last durable write.
    snapshots: Vec<(Snapshot, Map)>,
}

impl Life {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it is open between operations")
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let shape = input.byte();
        let mut batch = WriteBatch::new();
        for _ in 0..1 + shape % 4 {
            let key = key(input);
            match input.byte() {
                0..=40 => {
                    let other = self::key(input);
                    let (start, end) = if key < other { (key, other) } else { (other, key) };
                    batch.delete_range(&start, &end);
                    self.model.retain(|key, _| !(start <= *key && *key < end));
                }
                41..=90 => {
                    batch.delete(&key);
                    self.model.remove(&key);
                }
                shape => {
                    let len = if shape == 255 { 3000 } else { usize::from(shape) };
                    let value = vec![input.byte(); len];
                    batch.put(&key, &value);
                    self.model.insert(key, value);
                }
            }
        }
        let durability = if shape & 128 == 0 { Durability::Buffered } else { Durability::Sync };
        self.engine().write(batch, durability).expect(WORKS);
    }

    fn check(&self) {
        assert!(contents(self.engine()).expect(WORKS) == self.model, "a scan differs from the model");
    }

    fn look(&self, input: &mut Input<'_>) {
        let (a, b) = (key(input), key(input));
        let (a, b) = if a < b { (a, b) } else { (b, a) };
        assert_eq!(self.engine().get(&a).expect(WORKS).as_deref(), self.model.get(&a).map(Vec::as_slice));
        let bounds = || IterOptions { lower: Some(a.clone()), upper: Some(b.clone()), version: None };
        let expected: Map = self.model.range(a.clone()..b.clone()).map(|(k, v)| (k.clone(), v.clone())).collect();
        assert!(scan(self.engine(), bounds()).expect(WORKS) == expected, "a bounded scan differs from the model");
        let mut iter = self.engine().iter(bounds()).expect(WORKS);
        iter.seek_to_last().expect(WORKS);
        for (key, value) in expected.iter().rev() {
            assert!(iter.valid() && iter.key() == key && iter.value() == value, "backwards, at {}", key.escape_ascii());
            iter.prev().expect(WORKS);
        }
        assert!(!iter.valid());
    }

    fn reopen(&mut self, shape: u8) {
        self.snapshots.clear();
        let engine = self.engine.take().expect("it is open between operations");
        match shape % 3 {
            0 => engine.close().expect(WORKS),
            1 => {
                // The process dies; what was written is there.
                let disk = self.machine.disk.fork();
                drop(engine);
                self.machine = Machine::new(disk, 3);
            }
            _ => {
                // The power fails, but for the last write nothing is owed.
                engine.write(WriteBatch::new(), Durability::Sync).expect(WORKS);
                engine.flush().expect(WORKS);
                let disk = self.machine.disk.fork_crashed(CrashMode::UnsyncedLost);
                drop(engine);
                self.machine = Machine::new(disk, 4);
            }
        }
        self.engine = Some(self.machine.open(self.options.clone()).expect(WORKS));
        self.check();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..=7 => drop(self.engine().flush().expect(WORKS)),
            8..=11 => {
                let (a, b) = (key(input), key(input));
                self.engine().compact_range(Some((&a).min(&b)), Some((&a).max(&b))).expect(WORKS);
            }
            12..=15 => self.engine().wait_for_compactions().expect(WORKS),
            16..=19 => self.reopen(input.byte()),
            20..=27 => {
                if self.snapshots.len() > 3 {
                    self.snapshots.remove(usize::from(input.byte() % 4));
                }
                self.snapshots.push((self.engine().snapshot(), self.model.clone()));
            }
            28..=35 => {
                for (snapshot, model) in &self.snapshots {
                    let options = IterOptions { version: Some(snapshot.version()), ..IterOptions::default() };
                    assert!(scan(self.engine(), options).expect(WORKS) == *model, "a snapshot differs from the model");
                }
            }
            36..=60 => self.look(input),
            _ => self.write(input),
        }
    }
}

/// Does what the bytes say with an engine and with a map. Panics where they differ.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let options = options(input.byte());
    let machine = Machine::new(SimFileSystem::new(), u64::from(input.byte()));
    let engine = Some(machine.open(options.clone()).expect(WORKS));
    let mut life = Life { machine, options, engine, model: Map::new(), snapshots: Vec::new() };
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        life.step(&mut input);
    }
    life.check();
    let report = life.engine().verify().expect(WORKS);
    assert!(report.is_ok(), "{:?}", report.problems);
    life.reopen(0);
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::{Random, SplitMix64};

    /// The fuzz target's body with random bytes: it finds nothing here, and so is known to work.
    #[test]
    fn random_lives_equal_the_model() {
        let only = std::env::var("FERRISDB_TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
        for seed in only.map_or(0..120, |seed| seed..seed + 1) {
            let mut random = SplitMix64::new(seed);
            let bytes: Vec<u8> = (0..3000).map(|_| random.next_u64() as u8).collect();
            let result = std::panic::catch_unwind(|| super::run(&bytes));
            if let Err(panic) = result {
                eprintln!("replay with FERRISDB_TEST_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
