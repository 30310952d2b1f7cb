//! RocksDB: the yardstick.

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, Options, ReadOptions, WaitForCompactOptions,
    WriteBatch, WriteOptions,
};

use crate::engine::{Batch, Durability, EngineConfig, KvEngine, MEMTABLES, Result};
use crate::keys::Key;

/// See the head of the file.
pub(crate) struct Rocks {
    db: DB,
    read_options: ReadOptions,
    buffered: WriteOptions,
    sync: WriteOptions,
}

impl Rocks {
    pub(crate) fn open(config: &EngineConfig) -> Result<Rocks> {
        let mut table = BlockBasedOptions::default();
        // An estimated entry charge of zero selects the variant that sizes itself, RocksDB's own recommendation.
        table.set_block_cache(&Cache::new_hyper_clock_cache(usize::try_from(config.cache_bytes)?, 0));
        table.set_bloom_filter(10.0, false);

        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(usize::try_from(config.write_buffer_bytes)?);
        options.set_max_write_buffer_number(i32::try_from(MEMTABLES)?);
        options.increase_parallelism(i32::try_from(std::thread::available_parallelism()?.get())?);

        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        Ok(Rocks {
            db: DB::open(&options, &config.directory)?,
            read_options: ReadOptions::default(),
            buffered: WriteOptions::default(),
            sync,
        })
    }

    fn write_options(&self, durability: Durability) -> &WriteOptions {
        match durability {
            Durability::Buffered => &self.buffered,
            Durability::Sync => &self.sync,
        }
    }
}

impl KvEngine for Rocks {
    fn write(&self, batch: &Batch, durability: Durability) -> Result<()> {
        let mut write_batch = WriteBatch::default();
        for (key, value) in batch.iter() {
            match value {
                Some(value) => write_batch.put(key, value),
                None => write_batch.delete(key),
            }
        }
        Ok(self.db.write_opt(write_batch, self.write_options(durability))?)
    }

    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Result<()> {
        Ok(self.db.put_opt(key, value, self.write_options(durability))?)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        Ok(self.db.delete_opt(key, &self.buffered)?)
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        visit(self.db.get_pinned_opt(key, &self.read_options)?.as_deref());
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut iterator = self.db.raw_iterator();
        iterator.seek(from);
        for _ in 0..limit {
            let Some((key, value)) = iterator.item() else { break };
            visit(key, value);
            iterator.next();
        }
        Ok(iterator.status()?)
    }

    fn settle(&self) -> Result<()> {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.db.flush_opt(&flush)?;
        Ok(self.db.wait_for_compact(&WaitForCompactOptions::default())?)
    }

    fn statistics(&self) -> String {
        match self.db.property_value("rocksdb.stats") {
            Ok(statistics) => statistics.unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }
}
