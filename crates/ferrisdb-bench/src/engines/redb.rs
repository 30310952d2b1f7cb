//! redb: a copy-on-write B-tree in Rust, with its own page cache and one writer.

use redb::{Builder, Database, ReadableDatabase, TableDefinition};

use crate::engine::{Batch, Durability, EngineConfig, KvEngine, Result};
use crate::keys::Key;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench");

/// See the head of the file.
pub(crate) struct Redb {
    database: Database,
}

impl Redb {
    pub(crate) fn open(config: &EngineConfig) -> Result<Redb> {
        // It has no memtable: the write-buffer budget goes to its cache, which also holds dirty pages.
        let cache_bytes = config.cache_bytes + config.write_buffer_budget_bytes();
        let database =
            Builder::new().set_cache_size(usize::try_from(cache_bytes)?).create(config.directory.join("bench.redb"))?;
        let redb = Redb { database };
        redb.transact(Durability::Sync, |_| Ok(()))?;
        Ok(redb)
    }

    fn transact(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<()>,
    ) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(match durability {
            Durability::Buffered => redb::Durability::None,
            Durability::Sync => redb::Durability::Immediate,
        })?;
        change(&mut transaction.open_table(TABLE)?)?;
        Ok(transaction.commit()?)
    }
}

impl KvEngine for Redb {
    fn write(&self, batch: &Batch, durability: Durability) -> Result<()> {
        self.transact(durability, |table| {
            for (key, value) in batch.iter() {
                match value {
                    Some(value) => drop(table.insert(key.as_slice(), value)?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            Ok(())
        })
    }

    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Result<()> {
        self.transact(durability, |table| {
            table.insert(key.as_slice(), value)?;
            Ok(())
        })
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.transact(Durability::Buffered, |table| {
            table.remove(key.as_slice())?;
            Ok(())
        })
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        let value = table.get(key.as_slice())?;
        visit(value.as_ref().map(|guard| guard.value()));
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        for entry in table.range::<&[u8]>(from.as_slice()..)?.take(limit) {
            let (key, value) = entry?;
            visit(key.value(), value.value());
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        // A durable commit makes the earlier ones durable too and frees the pages that they replaced.
        self.transact(Durability::Sync, |_| Ok(()))
    }

    fn statistics(&self) -> String {
        format!("{:?}", self.database.cache_stats())
    }
}
