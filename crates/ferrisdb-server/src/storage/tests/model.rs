//! The storage server against a map for each version.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferrisdb_core::mutation::apply;
use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, Mutation, MutationKind, Random, SplitMix64, Version};
use ferrisdb_rpc::api::{GetKeyRequest, GetRangeRequest, GetRequest};

use super::{Machine, tiny, v};
use crate::storage::{ApplyBatch, StorageServer};
use ferrisdb_storage::fs::sim::SimFileSystem;

const KEYS: u64 = 60;
const WINDOW: u64 = 40;
const VALUE_BYTES: usize = 100;

type Contents = BTreeMap<Bytes, Bytes>;

/// The log, and what it says the contents are after each version.
struct Model {
    random: SplitMix64,
    log: Vec<ApplyBatch>,
    contents: BTreeMap<Version, Contents>,
}

fn key(number: u64) -> Bytes {
    // Of different lengths, and some a prefix of others.
    Bytes::from(format!("{:02}{}", number / 3, "x".repeat(usize::try_from(number % 3).expect("small"))))
}

impl Model {
    fn new(seed: u64) -> Model {
        let contents = BTreeMap::from([(Version::ZERO, Contents::new())]);
        Model { random: SplitMix64::new(seed), log: Vec::new(), contents }
    }

    fn key(&mut self) -> Bytes {
        key(self.random.below(KEYS))
    }

    fn last(&self) -> &ApplyBatch {
        self.log.last().expect("there is a batch")
    }

    fn value(&mut self) -> Bytes {
        let len = [0, 1, 3, 8, 60][usize::try_from(self.random.below(5)).expect("small")];
        (0..len).map(|_| u8::try_from(self.random.below(4)).expect("small")).collect()
    }

    fn mutation(&mut self) -> Mutation {
        use MutationKind::*;
        const ATOMIC: [MutationKind; 10] =
            [Add, BitAnd, BitOr, BitXor, AppendIfFits, Max, Min, ByteMin, ByteMax, CompareAndClear];
        let (one, other, value) = (self.key(), self.key(), self.value());
        match self.random.below(10) {
            0 => Mutation::clear_range(one.clone().min(other.clone()), one.max(other)),
            1 => {
                let KeyRange { begin, end } = KeyRange::single(&one);
                Mutation::clear_range(begin, end)
            }
            2..=5 => Mutation::set(one, value),
            _ => {
                let kind = ATOMIC[usize::try_from(self.random.below(10)).expect("small")];
                // A comparison that never matches tests little.
                let existing = self.contents.values().next_back().and_then(|contents| contents.get(&one)).cloned();
                let operand = if kind == CompareAndClear { existing.unwrap_or(value) } else { value };
                Mutation::new(kind, one, operand)
            }
        }
    }

    /// A new batch at the end of the log.
    fn extend(&mut self) {
        let (newest, mut contents) =
            self.contents.last_key_value().map(|(at, now)| (*at, now.clone())).expect("never empty");
        let version = v(newest.get() + 1 + self.random.below(4));
        let before = self.log.last().map_or((Version::ZERO, Vec::new()), |last| (last.horizon, last.leased.to_vec()));
        let horizon = before.0.max(v(version.get().saturating_sub(WINDOW))).min(newest);
        let mut leased = before.1;
        if self.random.one_in(12) {
            let readable: Vec<Version> = self.contents.range(before.0..).map(|(at, _)| *at).collect();
            leased.push(readable[usize::try_from(self.random.below(readable.len() as u64)).expect("small")]);
        }
        if leased.len() > 4 {
            leased.remove(usize::try_from(self.random.below(4)).expect("small"));
        }
        leased.sort();
        leased.dedup();
        let mutations: Vec<Mutation> = (0..self.random.below(30)).map(|_| self.mutation()).collect();
        for Mutation { kind, key, value } in &mutations {
            match kind {
                MutationKind::Set => drop(contents.insert(key.clone(), value.clone())),
                MutationKind::ClearRange => contents.retain(|other, _| other < key || other >= value),
                kind => match apply(*kind, contents.get(key), value, VALUE_BYTES) {
                    Some(result) => drop(contents.insert(key.clone(), result)),
                    None => drop(contents.remove(key)),
                },
            }
        }
        let owner_state = self.random.one_in(3).then(|| version.get().to_le_bytes().to_vec());
        let leased: Arc<[Version]> = match self.log.last() {
            Some(last) if *last.leased == *leased => Arc::clone(&last.leased),
            _ => leased.into(),
        };
        self.contents.insert(version, contents);
        self.log.push(ApplyBatch { version, horizon, leased, mutations, owner_state });
    }

    /// A version to read at, and the contents there if it is readable.
    fn version(&mut self) -> (Version, Option<Contents>) {
        let (horizon, leased, newest) = (self.last().horizon, Arc::clone(&self.last().leased), self.last().version);
        let version = match self.random.below(8) {
            0 if horizon > Version::ZERO => v(self.random.below(horizon.get())),
            1 | 2 if !leased.is_empty() => {
                leased[usize::try_from(self.random.below(leased.len() as u64)).expect("small")]
            }
            3 => newest,
            _ => v(horizon.get() + self.random.below(newest.get() - horizon.get() + 1)),
        };
        let is_readable = version >= horizon || leased.contains(&version);
        // Between two batches a reader sees the earlier one.
        let contents = self.contents.range(..=version).next_back().map(|(_, contents)| contents.clone());
        (version, contents.filter(|_| is_readable))
    }

    fn read(&mut self, machine: &Machine, storage: &StorageServer) {
        let (version, contents) = self.version();
        match self.random.below(3) {
            0 => {
                let key = self.key();
                let expected = contents.map(|contents| contents.get(&key).cloned());
                let found = machine.block_on(storage.get(GetRequest { key: key.clone(), version }));
                check(found, expected, || format!("get {key:?} at {version}"));
            }
            1 => {
                let selector = KeySelector {
                    key: self.key(),
                    or_equal: self.random.one_in(2),
                    offset: i32::try_from(self.random.below(20)).expect("small") - 10,
                };
                let end = if self.random.one_in(2) { Bytes::from_static(b"\xff") } else { self.key() };
                let expected = contents.map(|contents| resolve(&contents, &selector, &end));
                let request = GetKeyRequest { selector, end, version };
                let found = machine.block_on(storage.get_key(request.clone()));
                check(found, expected, || format!("{request:?}"));
            }
            _ => {
                let request = GetRangeRequest {
                    range: KeyRange { begin: self.key(), end: self.key() },
                    version,
                    limit: u32::try_from(self.random.below(2) * self.random.below(8)).expect("small"),
                    target_bytes: u32::try_from(self.random.below(2) * self.random.below(300)).expect("small"),
                    reverse: self.random.one_in(2),
                };
                // An empty range is answered without a look at its version.
                let contents = if request.range.is_empty() { Some(Contents::new()) } else { contents };
                let expected = contents.map(|contents| rows(&contents, &request));
                let found = machine.block_on(storage.get_range(request.clone()));
                let found =
                    found.map(|rows| (rows.rows.into_iter().map(|row| (row.key, row.value)).collect(), rows.more));
                check(found, expected, || format!("{request:?}"));
            }
        }
    }

    /// Opens what a crash left, and applies the log again from there.
    fn recover(&mut self, machine: &Machine) -> StorageServer {
        let (storage, recovery) = machine.open(tiny()).expect("what a crash leaves can be opened");
        let known = |batch: &&ApplyBatch| batch.version <= recovery.flushed;
        let owner_state = self.log.iter().take_while(known).filter_map(|batch| batch.owner_state.clone()).last();
        assert_eq!(recovery.owner_state, owner_state, "as of {}", recovery.flushed);
        assert_eq!(storage.applied_version(), recovery.flushed);
        // From a little before what was flushed, as a log does that is purged in pieces.
        let from = self.log.iter().take_while(known).count().saturating_sub(2);
        for batch in &self.log[from..] {
            machine.block_on(storage.apply(batch.clone())).expect("it can be applied");
        }
        storage
    }
}

fn check<T: PartialEq + std::fmt::Debug>(
    found: ferrisdb_core::Result<T>,
    expected: Option<T>,
    what: impl FnOnce() -> String,
) {
    match (found, expected) {
        (Ok(found), Some(expected)) if found == expected => {}
        (Err(error), None) if error.code() == Code::TransactionTooOld => {}
        (found, expected) => panic!("{}: found {found:?}, expected {expected:?}", what()),
    }
}

/// The contract's rule, by counting.
fn resolve(contents: &Contents, selector: &KeySelector, end: &Bytes) -> Bytes {
    let keys: Vec<&Bytes> = contents.keys().filter(|key| *key < end).collect();
    let before =
        keys.iter().filter(|key| **key < &selector.key || (selector.or_equal && **key == &selector.key)).count();
    let place = i64::try_from(before).expect("small") + i64::from(selector.offset) - 1;
    match usize::try_from(place) {
        Ok(place) => keys.get(place).map_or_else(|| end.clone(), |key| (*key).clone()),
        Err(_) => Bytes::new(),
    }
}

fn rows(contents: &Contents, request: &GetRangeRequest) -> (Vec<(Bytes, Bytes)>, bool) {
    let mut all: Vec<_> = contents.iter().filter(|(key, _)| request.range.contains(key)).collect();
    if request.reverse {
        all.reverse();
    }
    let (mut found, mut bytes) = (Vec::new(), 0);
    for (key, value) in all {
        found.push((key.clone(), value.clone()));
        bytes += 8 + key.len() + value.len();
        let is_full = request.limit > 0 && found.len() == request.limit as usize;
        if is_full || (request.target_bytes > 0 && bytes >= request.target_bytes as usize) {
            return (found, true);
        }
    }
    (found, false)
}

/// Random mutations of all kinds, reads of all kinds at versions in the window, below it, and leased; crashes and clean ends between. Every
/// answer is the model's.
#[test]
fn reads_equal_the_model() {
    let seeds: Vec<u64> = match std::env::var("FERRISDB_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=40).collect(),
    };
    let mut flushes = 0;
    for seed in seeds {
        eprintln!("FERRISDB_SEED={seed}");
        let mut model = Model::new(seed);
        let mut machine = Machine::new(SimFileSystem::new(), seed);
        let (mut storage, recovery) = machine.open(tiny()).expect("a new one");
        assert!(recovery.is_new && recovery.flushed == Version::ZERO && recovery.owner_state.is_none());
        model.extend();
        machine.block_on(storage.apply(model.last().clone())).expect("it can be applied");
        for _ in 0..600 {
            match model.random.below(100) {
                0 => {
                    flushes += u64::from(storage.flushed_version() > Version::ZERO);
                    if model.random.one_in(3) {
                        machine.block_on(storage.close()).expect("it can be closed");
                    } else {
                        drop(storage);
                    }
                    machine = machine.crash(model.random.next_u64());
                    storage = model.recover(&machine);
                }
                1..=40 => {
                    model.extend();
                    machine.block_on(storage.apply(model.last().clone())).expect("it can be applied");
                }
                _ => model.read(&machine, &storage),
            }
        }
        assert_eq!(storage.applied_version(), model.last().version);
        machine.block_on(storage.close()).expect("it can be closed");
        let machine = Machine::new(machine.disk.clone(), seed);
        let (storage, recovery) = machine.open(tiny()).expect("it can be opened");
        assert_eq!(recovery.flushed, model.last().version, "closing flushes");
        assert!(!recovery.is_new);
        drop(storage);
    }
    assert!(flushes > 20, "{flushes} restarts found something flushed");
}

/// The same seed gives the same run, step for step.
#[test]
fn a_run_can_be_repeated() {
    let run = || {
        let mut model = Model::new(77);
        let machine = Machine::new(SimFileSystem::new(), 77);
        let (storage, _) = machine.open(tiny()).expect("a new one");
        for _ in 0..200 {
            model.extend();
            machine.block_on(storage.apply(model.last().clone())).expect("it can be applied");
            model.read(&machine, &storage);
        }
        drop(storage);
        (machine.spawner.steps(), machine.disk.state_hash())
    };
    assert_eq!(run(), run());
}
