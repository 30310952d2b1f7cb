//! A sorted map behind a lock: what a correct engine answers, to test the harness with.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::engine::{Batch, Durability, EngineConfig, KvEngine, Result};
use crate::keys::Key;

type Map = BTreeMap<Key, Vec<u8>>;

/// See the head of the file.
#[derive(Default)]
pub(crate) struct Memory {
    map: RwLock<Map>,
}

impl Memory {
    pub(crate) fn open(_config: &EngineConfig) -> Result<Memory> {
        Ok(Memory::default())
    }

    fn read(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvEngine for Memory {
    fn write(&self, batch: &Batch, _durability: Durability) -> Result<()> {
        let mut map = self.write_lock();
        for (key, value) in batch.iter() {
            match value {
                Some(value) => drop(map.insert(*key, value.to_vec())),
                None => drop(map.remove(key)),
            }
        }
        Ok(())
    }

    fn put(&self, key: &Key, value: &[u8], _durability: Durability) -> Result<()> {
        self.write_lock().insert(*key, value.to_vec());
        Ok(())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.write_lock().remove(key);
        Ok(())
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        visit(self.read().get(key).map(Vec::as_slice));
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for (key, value) in self.read().range(*from..).take(limit) {
            visit(key, value);
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn statistics(&self) -> String {
        format!("{} entries", self.read().len())
    }
}
