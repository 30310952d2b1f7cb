//! LMDB, through heed: a copy-on-write B-tree on a memory map, with one writer. Its cache is the kernel's page cache.

use std::ops::Bound;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions};

use crate::engine::{Batch, Durability, EngineConfig, KvEngine, Result};
use crate::keys::Key;

/// Address space for the map: far more than any suite needs, and free until pages are touched.
const MAP_BYTES: usize = 64 << 30;

/// See the head of the file.
pub(crate) struct Lmdb {
    environment: Env,
    database: heed::Database<'static, Bytes, Bytes>,
}

impl Lmdb {
    pub(crate) fn open(config: &EngineConfig) -> Result<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES);
        let mut flags = EnvFlags::empty();
        if !config.durable {
            flags |= EnvFlags::NO_SYNC;
        }
        if config.larger_than_memory {
            flags |= EnvFlags::NO_READ_AHEAD;
        }
        // SAFETY: the directory is this process's own and nobody else maps or changes the file; without NO_SYNC's
        // crash consistency the file is only ever read by the process that wrote it.
        let environment = unsafe { options.flags(flags).open(&config.directory)? };
        let transaction = environment.write_txn()?;
        let database = environment
            .create_databases_and_commit(transaction, |opener, transaction| {
                opener.create_database(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
            })?
            .unwrap_commit();
        Ok(Lmdb { environment, database })
    }
}

impl KvEngine for Lmdb {
    // LMDB knows the durability from open: a database with NO_SYNC is never asked for a synced write.

    fn write(&self, batch: &Batch, _durability: Durability) -> Result<()> {
        let mut transaction = self.environment.write_txn()?;
        for (key, value) in batch.iter() {
            match value {
                Some(value) => self.database.put(&mut transaction, key, value)?,
                None => drop(self.database.delete(&mut transaction, key)?),
            }
        }
        Ok(transaction.commit()?)
    }

    fn put(&self, key: &Key, value: &[u8], _durability: Durability) -> Result<()> {
        let mut transaction = self.environment.write_txn()?;
        self.database.put(&mut transaction, key, value)?;
        Ok(transaction.commit()?)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let mut transaction = self.environment.write_txn()?;
        self.database.delete(&mut transaction, key)?;
        Ok(transaction.commit()?)
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        let transaction = self.environment.read_txn()?;
        visit(self.database.get(&transaction, key)?);
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let transaction = self.environment.read_txn()?;
        let range = (Bound::Included(from.as_slice()), Bound::Unbounded);
        for entry in self.database.range(&transaction, &range)?.take(limit) {
            let (key, value) = entry?;
            visit(key, value);
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        // It has no background work; what it wrote goes to disk as an orderly shutdown would do it.
        Ok(self.environment.force_sync()?)
    }

    fn statistics(&self) -> String {
        format!("{:?}", self.environment.info())
    }
}
