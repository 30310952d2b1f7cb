//! What FerrisDB's layers cost without a network: reads of an embedded database beside the engine's own, and commits beside an fsync.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ferrisdb::Database;
use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::{Durability, Engine, Options, WriteBatch};
use futures_executor::block_on;

use super::{Done, READS, Settings, key_of};
use crate::engine::Result;
use crate::measure::Usage;

/// What is written before each sync: about what a commit of one key adds to a log.
const SYNCED_BYTES: usize = 256;
/// The file that is written to. It has its length from the beginning, as a segment of the log has: a sync that has to store a new length too
/// would take longer, and what is compared with it would seem faster than it is.
const SYNCED_FILE_BYTES: u64 = 16 << 20;
/// Operations between two looks at the clock.
const STEP: u64 = 64;

/// Syncs one after another.
pub(crate) fn fsync(directory: &Path, settings: &Settings) -> Result<Done> {
    let mut file = File::create(directory.join("fsync"))?;
    std::io::copy(&mut std::io::repeat(0).take(SYNCED_FILE_BYTES), &mut file)?;
    file.sync_all()?;
    let mut at = 0;
    repeat(settings, 1, |_| {
        file.write_all_at(&[7; SYNCED_BYTES], at)?;
        file.sync_data()?;
        at = (at + SYNCED_BYTES as u64) % SYNCED_FILE_BYTES;
        Ok(())
    })
}

/// Two stores with the same rows, in tables.
pub(crate) struct Embedded {
    database: Database,
    engine: Engine,
    /// What each row has.
    value: Vec<u8>,
}

impl Embedded {
    /// Loads both, closes them, so that no memtable is left, and opens them again.
    pub(crate) fn load(directory: &Path, settings: &Settings) -> Result<Embedded> {
        let (database_directory, engine_directory) = (directory.join("embedded"), directory.join("engine"));
        let value = vec![b'v'; settings.value_bytes];
        {
            let database = Database::open(&database_directory)?;
            let engine = Engine::open(&engine_directory, Options::default())?;
            for first in (0..settings.keys).step_by(500) {
                let numbers = first..(first + 500).min(settings.keys);
                block_on(database.run(async |transaction| {
                    numbers.clone().for_each(|number| transaction.set(key_of(number), &value));
                    Ok(())
                }))?;
                let mut batch = WriteBatch::new();
                for number in numbers {
                    batch.put(&key_of(number), &value);
                }
                engine.write(batch, Durability::Buffered)?;
            }
            engine.flush()?;
            engine.wait_for_compactions()?;
            block_on(database.close())?;
        }
        let embedded = Embedded {
            database: Database::open(&database_directory)?,
            engine: Engine::open(&engine_directory, Options::default())?,
            value,
        };
        Ok(embedded)
    }

    /// Looks at a value, as who reads does: its bytes have to come from memory for that, which is a part of what a read costs.
    fn verify(&self, value: Option<&[u8]>) -> Result<()> {
        if value.ok_or("a row that was loaded is missing")? == self.value {
            return Ok(());
        }
        Err("a row has another value than was loaded".into())
    }

    /// Point reads in transactions of ten; an operation is a read.
    pub(crate) fn transaction_reads(&self, settings: &Settings) -> Result<Done> {
        let mut random = SplitMix64::new(1);
        repeat(settings, STEP * READS as u64, |count| {
            for _ in 0..count / READS as u64 {
                // One wait for a transaction, as a program has: each `block_on` costs what a thread's waker does.
                block_on(async {
                    let transaction = self.database.create_transaction();
                    for _ in 0..READS {
                        let value = transaction.get(key_of(random.below(settings.keys))).await?;
                        self.verify(value.as_deref())?;
                    }
                    transaction.commit().await?;
                    Result::Ok(())
                })?;
            }
            Ok(())
        })
    }

    /// The same rows through the engine.
    pub(crate) fn engine_reads(&self, settings: &Settings) -> Result<Done> {
        let mut random = SplitMix64::new(1);
        repeat(settings, STEP * READS as u64, |count| {
            for _ in 0..count {
                let value = self.engine.get(&key_of(random.below(settings.keys)))?;
                self.verify(value.as_deref())?;
            }
            Ok(())
        })
    }

    /// Commits of one key, one after another.
    pub(crate) fn commits(&self, settings: &Settings) -> Result<Done> {
        let mut random = SplitMix64::new(2);
        let value = vec![b'w'; settings.value_bytes];
        repeat(settings, 1, |_| {
            let number = random.below(settings.keys);
            block_on(self.database.run(async |transaction| {
                transaction.set(key_of(number), &value);
                Ok(())
            }))?;
            Ok(())
        })
    }
}

/// Calls `step` for as long as is measured; it does `count` operations each time.
fn repeat(settings: &Settings, count: u64, mut step: impl FnMut(u64) -> Result<()>) -> Result<Done> {
    let mut done = Done::new();
    let before = Usage::now()?;
    let began = Instant::now();
    let mut now = began;
    while now - began < settings.measured {
        step(count)?;
        let end = Instant::now();
        done.record((end - now) / u32::try_from(count)?, count);
        now = end;
    }
    done.elapsed = now - began;
    done.cpu = Usage::now()?.cpu - before.cpu;
    Ok(done)
}

/// The median latency.
pub(crate) fn median(done: &Done) -> Duration {
    Duration::from_nanos(done.latencies.value_at_quantile(0.5))
}
