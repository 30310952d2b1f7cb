//! fjall: a log-structured engine in Rust, with one journal behind one lock.

use std::time::{Duration, Instant};

use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::engine::{Batch, Durability, EngineConfig, KvEngine, Result};
use crate::keys::Key;

/// How long fjall must show no work before it counts as settled: it has no call that waits for compactions, and a
/// worker that has finished one looks for the next within milliseconds.
const QUIET: Duration = Duration::from_millis(500);

/// See the head of the file.
pub(crate) struct Fjall {
    database: Database,
    keyspace: Keyspace,
}

impl Fjall {
    pub(crate) fn open(config: &EngineConfig) -> Result<Fjall> {
        let database = Database::builder(&config.directory).cache_size(config.cache_bytes).open()?;
        let keyspace = database.keyspace("bench", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(config.write_buffer_bytes)
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        })?;
        Ok(Fjall { database, keyspace })
    }
}

fn persist_mode(durability: Durability) -> PersistMode {
    match durability {
        Durability::Buffered => PersistMode::Buffer,
        Durability::Sync => PersistMode::SyncData,
    }
}

impl KvEngine for Fjall {
    fn write(&self, batch: &Batch, durability: Durability) -> Result<()> {
        let mut write_batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len())
            .durability(Some(persist_mode(durability)));
        for (key, value) in batch.iter() {
            match value {
                Some(value) => write_batch.insert(&self.keyspace, key.as_slice(), value),
                None => write_batch.remove(&self.keyspace, key.as_slice()),
            }
        }
        Ok(write_batch.commit()?)
    }

    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Result<()> {
        if durability == Durability::Buffered {
            return Ok(self.keyspace.insert(key.as_slice(), value)?);
        }
        // Only a batch can be written and synced under one hold of the journal's lock.
        let mut write_batch = self.database.batch().durability(Some(persist_mode(durability)));
        write_batch.insert(&self.keyspace, key.as_slice(), value);
        Ok(write_batch.commit()?)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        Ok(self.keyspace.remove(key.as_slice())?)
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        visit(self.keyspace.get(key)?.as_deref());
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for guard in self.keyspace.range(from.as_slice()..).take(limit) {
            let (key, value) = guard.into_inner()?;
            visit(&key, &value);
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait()?;
        let mut quiet_since = Instant::now();
        let mut tables = self.keyspace.table_count();
        while quiet_since.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(20));
            let tables_now = self.keyspace.table_count();
            if self.database.outstanding_flushes() > 0 || self.database.active_compactions() > 0 || tables != tables_now
            {
                tables = tables_now;
                quiet_since = Instant::now();
            }
        }
        Ok(())
    }

    fn statistics(&self) -> String {
        format!(
            "tables {}, in L0 {}, compactions {}, compacting {:?}, journals {}",
            self.keyspace.table_count(),
            self.keyspace.l0_table_count(),
            self.database.compactions_completed(),
            self.database.time_compacting(),
            self.database.journal_count(),
        )
    }
}
