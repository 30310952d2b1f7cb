//! FerrisDB's own engine, with the options that a user gets by default apart from the budgets.

use ferrisdb_storage::{Durability as FerrisDurability, Engine, IterOptions, Options, WriteBatch};

use crate::engine::{Batch, Durability, EngineConfig, KvEngine, MEMTABLES, Result};
use crate::keys::Key;

/// See the head of the file.
pub(crate) struct Ferris {
    engine: Engine,
}

impl Ferris {
    pub(crate) fn open(config: &EngineConfig) -> Result<Ferris> {
        let options = Options {
            write_buffer_bytes: usize::try_from(config.write_buffer_bytes)?,
            write_buffers_max: usize::try_from(MEMTABLES)?,
            block_cache_bytes: usize::try_from(config.cache_bytes)?,
            ..Options::default()
        };
        Ok(Ferris { engine: Engine::open(&config.directory, options)? })
    }
}

fn durability_of(durability: Durability) -> FerrisDurability {
    match durability {
        Durability::Buffered => FerrisDurability::Buffered,
        Durability::Sync => FerrisDurability::Sync,
    }
}

impl KvEngine for Ferris {
    fn write(&self, batch: &Batch, durability: Durability) -> Result<()> {
        let mut write_batch = WriteBatch::new();
        for (key, value) in batch.iter() {
            match value {
                Some(value) => write_batch.put(key, value),
                None => write_batch.delete(key),
            };
        }
        self.engine.write(write_batch, durability_of(durability))?;
        Ok(())
    }

    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Result<()> {
        let mut write_batch = WriteBatch::new();
        write_batch.put(key, value);
        self.engine.write(write_batch, durability_of(durability))?;
        Ok(())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let mut write_batch = WriteBatch::new();
        write_batch.delete(key);
        self.engine.write(write_batch, FerrisDurability::Buffered)?;
        Ok(())
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        visit(self.engine.get(key)?.as_deref());
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut iterator = self.engine.iter(IterOptions::default())?;
        iterator.seek(from)?;
        for _ in 0..limit {
            if !iterator.valid() {
                break;
            }
            visit(iterator.key(), iterator.value());
            iterator.next()?;
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.engine.flush()?;
        self.engine.wait_for_compactions()?;
        Ok(())
    }

    fn statistics(&self) -> String {
        format!("{:?}", self.engine.statistics())
    }
}
