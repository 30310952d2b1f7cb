//! A script of writes that remembers what the engine has promised at every moment.
//!
//! [`Script`] writes to an engine and keeps, beside it, the state that the store has after each batch. What the engine owes is then
//! two numbers: the newest state that it has acknowledged as durable, and the newest that it was given. Whatever a crash leaves
//! must be one of the states between the two, whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ferrisdb_core::{Random, SplitMix64, Version};

use super::{Machine, contents};
use crate::env::Spawner;
use crate::fs::sim::{CrashMode, SimFileSystem};
use crate::{Durability, Engine, Options, Result, Submitted, WriteBatch, WriteOptions};

const LOCK: &str = "no test panics with the lock";
const WORKS: &str = "no fault is planted in this step";

/// Keys of a script are numbers below this.
pub const KEYS: u32 = 24;

/// Keys and values.
pub type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a batch does.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    /// Puts a value of so many bytes.
    Put(u32, usize),
    /// Deletes a key.
    Delete(u32),
    /// Deletes from the first key up to, and without, the second.
    DeleteRange(u32, u32),
    /// Sets the owner's bytes.
    Owner,
}

/// The key of that number.
pub fn key(number: u32) -> Vec<u8> {
    format!("key{number:03}").into_bytes()
}

/// A value that tells which version wrote it, and does not compress.
fn value(version: Version, key: u32, len: usize) -> Vec<u8> {
    let mut random = SplitMix64::new(version.get() << 16 | u64::from(key));
    (0..len).map(|_| (random.next_u64() & 0xff) as u8).collect()
}

/// The store after a batch.
#[derive(Debug, Clone)]
pub struct State {
    /// The batch's version.
    pub version: Version,
    /// All keys and values.
    pub map: Arc<Map>,
    /// The owner's bytes.
    pub owner: Option<Vec<u8>>,
}

/// What the engine was given, and what it has promised. Indexes of states.
#[derive(Debug, Clone, Copy, Default)]
pub struct Promise {
    /// The newest state that was given to the engine.
    pub submitted: usize,
    /// The newest state whose call has returned: it survives the death of the process.
    pub returned: usize,
    /// The newest state that was acknowledged as durable.
    pub durable: usize,
}

impl Promise {
    /// The oldest state that the engine may be in after such a crash.
    pub fn after(&self, mode: CrashMode) -> usize {
        if mode == CrashMode::NothingLost { self.returned } else { self.durable }
    }
}

/// A run of an engine with a record of what it promised.
pub struct Script {
    /// Where it runs.
    pub machine: Machine,
    /// What the engine is opened with.
    pub options: Options,
    /// The engine, while it is open.
    pub engine: Option<Engine>,
    /// The state after each batch; the first is the empty store.
    pub states: Vec<State>,
    /// Shared with the hook that forks the disk.
    pub promise: Arc<Mutex<Promise>>,
}

impl Script {
    /// A script that has done nothing yet.
    pub fn new(disk: SimFileSystem, seed: u64, options: Options) -> Script {
        let empty = State { version: Version::ZERO, map: Arc::default(), owner: None };
        Script {
            machine: Machine::new(disk, seed),
            options,
            engine: None,
            states: vec![empty],
            promise: Arc::default(),
        }
    }

    /// Opens the engine.
    pub fn open(&mut self) -> Result<()> {
        self.engine = Some(self.machine.open(self.options.clone())?);
        Ok(())
    }

    /// The open engine.
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("the script has opened the engine")
    }

    /// What the engine has promised so far.
    pub fn promise(&self) -> Promise {
        *self.promise.lock().expect(LOCK)
    }

    /// The batch, and the state that the store has after it, which is noted as given to the engine.
    fn prepare(&mut self, ops: &[Op], durability: Durability) -> (WriteBatch, WriteOptions) {
        let last = self.states.last().expect("there is always one");
        // Versions with gaps, as an owner gives them.
        let version = Version::new(last.version.get() + 1 + last.version.get() % 3).expect("scripts are short");
        let mut map = (*last.map).clone();
        let mut owner = last.owner.clone();
        let mut batch = WriteBatch::new();
        for op in ops {
            match *op {
                Op::Put(number, len) => {
                    let value = value(version, number, len);
                    batch.put(&key(number), &value);
                    map.insert(key(number), value);
                }
                Op::Delete(number) => {
                    batch.delete(&key(number));
                    map.remove(&key(number));
                }
                Op::DeleteRange(start, end) => {
                    batch.delete_range(&key(start), &key(end));
                    map.retain(|found, _| !(key(start) <= *found && *found < key(end)));
                }
                Op::Owner => {
                    let bytes = format!("owner at {}", version.get()).into_bytes();
                    batch.set_owner_state(&bytes);
                    owner = Some(bytes);
                }
            }
        }
        self.states.push(State { version, map: Arc::new(map), owner });
        self.promise.lock().expect(LOCK).submitted = self.states.len() - 1;
        (batch, WriteOptions { durability, version: Some(version) })
    }

    /// Writes a batch and notes what its return promises. After an error the state stays: the batch may or may not be there.
    pub fn write(&mut self, ops: &[Op], durability: Durability) -> Result<()> {
        let (batch, options) = self.prepare(ops, durability);
        let result = self.engine().write(batch, options);
        match result {
            Ok(version) => {
                assert_eq!(Some(version), options.version);
                self.acknowledge(self.states.len() - 1, durability);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The last batch did not happen, and the engine said so: it must never appear.
    pub fn forget_last(&mut self) {
        self.states.pop();
        self.promise.lock().expect(LOCK).submitted = self.states.len() - 1;
    }

    fn acknowledge(&self, index: usize, durability: Durability) {
        if self.options.wal {
            let mut promise = self.promise.lock().expect(LOCK);
            promise.returned = promise.returned.max(index);
            if durability == Durability::Sync {
                promise.durable = promise.durable.max(index);
            }
        }
    }

    /// Submits several batches before waiting for the first of them, last one first.
    pub fn write_group(&mut self, groups: &[&[Op]]) {
        self.try_write_group(groups).into_iter().for_each(|result| result.expect(WORKS));
    }

    /// As [`Script::write_group`]; what each wait came to.
    pub fn try_write_group(&mut self, groups: &[&[Op]]) -> Vec<Result<()>> {
        let mut tickets = Vec::new();
        for ops in groups {
            let (batch, options) = self.prepare(ops, Durability::Sync);
            match self.engine().submit(batch, options).expect(WORKS) {
                Submitted::Written(ticket) => tickets.push((self.states.len() - 1, ticket)),
                Submitted::Stalled { .. } => panic!("a script leaves room for its batches"),
            }
        }
        let mut results = Vec::new();
        for (index, ticket) in tickets.into_iter().rev() {
            let mut result = None;
            let mut ticket = Box::pin(ticket);
            let waiting = std::future::poll_fn(|context| ticket.as_mut().poll(context).map(|done| result = Some(done)));
            self.machine.spawner.block_on(std::pin::pin!(waiting));
            let result = result.expect("block_on waits until it is ready");
            if result.is_ok() {
                self.acknowledge(index, Durability::Sync);
            }
            results.push(result.map(|_| ()));
        }
        results
    }

    /// Flushes, and notes what that promises.
    pub fn flush(&mut self) -> Result<()> {
        let version = self.engine().flush()?;
        let index = self.states.iter().rposition(|state| state.version <= version).expect("the first is at zero");
        let mut promise = self.promise.lock().expect(LOCK);
        promise.returned = promise.returned.max(index);
        promise.durable = promise.durable.max(index);
        Ok(())
    }

    /// Compacts everything into the last level.
    pub fn compact(&mut self) {
        self.engine().compact_range(None, None).expect(WORKS);
        self.flush().expect(WORKS);
    }

    /// Lets the background jobs do all that they can do now.
    pub fn settle(&self) {
        self.engine().wait_for_compactions().expect(WORKS);
        self.machine.spawner.run_for(std::time::Duration::from_millis(20));
    }

    /// Closes the engine, and notes what that promises.
    pub fn close(&mut self) -> Result<()> {
        let engine = self.engine.take().expect("the script has opened the engine");
        let result = engine.close();
        if result.is_ok() {
            let mut promise = self.promise.lock().expect(LOCK);
            (promise.returned, promise.durable) = (promise.submitted, promise.submitted);
        }
        result
    }

    /// The process dies, and another opens the engine.
    pub fn die_and_reopen(&mut self) {
        self.engine = None;
        self.machine.spawner.drop_jobs();
        self.open().expect(WORKS);
    }
}

/// Checks everything that one can ask of an engine that came back: it shows one of the states `from..=to`, whole, through every way
/// of reading, and its files are in order. Returns which state it is.
pub fn check(engine: &Engine, states: &[State], from: usize, to: usize) -> std::result::Result<usize, String> {
    let version = engine.visible_version();
    let index = states.iter().position(|state| state.version == version);
    let Some(index) = index.filter(|index| (from..=to).contains(index)) else {
        let (from, to) = (states[from].version, states[to].version);
        return Err(format!(
            "it is at version {version} (state {index:?}), but was promised to be from {from} to {to}"
        ));
    };
    let map = &*states[index].map;
    let found = contents(engine).map_err(|error| format!("scan: {error}"))?;
    if found != *map {
        let wrong = found.iter().find(|(key, value)| map.get(*key) != Some(value)).map(|(key, _)| key);
        let wrong = wrong.or_else(|| map.keys().find(|key| !found.contains_key(*key)));
        let wrong = wrong.map(|key| key.escape_ascii().to_string());
        return Err(format!("at version {version}, a scan is wrong first at {wrong:?}"));
    }
    for number in 0..KEYS {
        let found = engine.get(&key(number)).map_err(|error| format!("get: {error}"))?;
        if found.as_deref() != map.get(&key(number)).map(Vec::as_slice) {
            return Err(format!("at version {version}, get of key {number} is wrong"));
        }
    }
    let flushed = engine.flushed_version();
    let at_flush = states.iter().find(|state| state.version == flushed);
    match at_flush {
        None => return Err(format!("flushed up to {flushed}, which no batch had")),
        Some(state) if state.owner != engine.owner_state() => {
            return Err(format!("the owner's state is {:?}, at flushed version {flushed}", engine.owner_state()));
        }
        Some(_) => {}
    }
    let report = engine.verify().map_err(|error| format!("verify: {error}"))?;
    if !report.is_ok() {
        return Err(format!("verify: {:?}", report.problems));
    }
    Ok(index)
}
