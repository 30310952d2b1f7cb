//! What the benchmark asks of an engine, and nothing an engine could be clever about apart from that.
//!
//! Reads hand the value to a callback where the engine has it (a pinned block, a mapped page, a copy): the harness
//! checks every byte there and keeps nothing, so an engine pays for a copy only if its own interface makes one.
//!
//! # Concurrency
//! All calls may come from several threads at once, except [`KvEngine::settle`], which comes alone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::keys::{KEY_BYTES, Key};

/// Any error of an engine or of the harness; the benchmark stops at the first.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of anything here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Survives the death of the process (where the engine promises that much), not of the machine.
    Buffered,
    /// Survives the death of the machine.
    Sync,
}

/// The budget that every engine gets alike.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct EngineConfig {
    /// An empty directory of its own.
    pub(crate) directory: PathBuf,
    /// Bytes for cached data.
    pub(crate) cache_bytes: u64,
    /// Bytes of one memtable. Engines may keep [`MEMTABLES`] of them.
    pub(crate) write_buffer_bytes: u64,
    /// The workload syncs its writes. Only LMDB has to know at open: without it, it runs with `NO_SYNC`.
    pub(crate) durable: bool,
    /// The data does not fit into memory: reading ahead would evict what is useful.
    pub(crate) larger_than_memory: bool,
}

/// How many memtables make the write-buffer budget: one that fills, one that is flushed, and one to spare.
pub(crate) const MEMTABLES: u64 = 3;

impl EngineConfig {
    /// The bytes of all memtables together.
    #[cfg_attr(not(feature = "peers"), expect(dead_code, reason = "only engines without a memtable ask for the sum"))]
    pub(crate) fn write_buffer_budget_bytes(&self) -> u64 {
        MEMTABLES * self.write_buffer_bytes
    }
}

/// Writes that go in together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    operations: Vec<(Key, Option<usize>)>,
    values: Vec<u8>,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.operations.clear();
        self.values.clear();
    }

    /// Adds a put; `fill` writes the value's `value_bytes` bytes.
    pub(crate) fn put(&mut self, key: Key, value_bytes: usize, fill: impl FnOnce(&mut [u8])) {
        let start = self.values.len();
        self.values.resize(start + value_bytes, 0);
        fill(&mut self.values[start..]);
        self.operations.push((key, Some(self.values.len())));
    }

    /// Adds a delete.
    pub(crate) fn delete(&mut self, key: Key) {
        self.operations.push((key, None));
    }

    /// How many operations it has.
    pub(crate) fn len(&self) -> usize {
        self.operations.len()
    }

    /// The operations in the order they were added; `None` deletes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, Option<&[u8]>)> {
        let mut start = 0;
        self.operations.iter().map(move |(key, end)| {
            let value = end.map(|end| &self.values[std::mem::replace(&mut start, end)..end]);
            (key, value)
        })
    }

    /// Bytes that the caller asked to have written: keys and values.
    pub(crate) fn user_bytes(&self) -> u64 {
        (self.operations.len() * KEY_BYTES + self.values.len()) as u64
    }
}

/// An ordered key-value store under test.
pub(crate) trait KvEngine: Send + Sync {
    /// Applies all of `batch` atomically.
    fn write(&self, batch: &Batch, durability: Durability) -> Result<()>;

    /// Stores one value.
    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Result<()>;

    /// Deletes one key, which exists.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Calls `visit` once with the value of `key`, or with `None`.
    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()>;

    /// Calls `visit` with the first `limit` entries at or after `from`, in order, from one consistent state.
    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;

    /// Brings all data out of memtables and waits until the engine has no background work left.
    fn settle(&self) -> Result<()>;

    /// What the engine says about itself, for `--verbose`.
    fn statistics(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch gives back what was put in, deletes between puts included, and counts its bytes.
    #[test]
    fn a_batch_keeps_its_operations() {
        let mut batch = Batch::default();
        batch.put([b'a'; 16], 2, |value| value.copy_from_slice(b"xy"));
        batch.delete([b'b'; 16]);
        batch.put([b'c'; 16], 1, |value| value.copy_from_slice(b"z"));
        let operations: Vec<_> = batch.iter().map(|(key, value)| (key[0], value.map(<[u8]>::to_vec))).collect();
        assert_eq!(operations, [(b'a', Some(b"xy".to_vec())), (b'b', None), (b'c', Some(b"z".to_vec()))]);
        assert_eq!(batch.user_bytes(), 3 * 16 + 3);
    }
}
