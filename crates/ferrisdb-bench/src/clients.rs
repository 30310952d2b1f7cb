//! What the client threads of each workload do, operation by operation.
//!
//! # Invariants
//! - A slot has one writer: thread `t` of `n` updates only ranks or positions that are `t` modulo `n`. So the order of a
//!   slot's generations is known without a lock around the engine's call. Reads of mixed workloads pick among the same
//!   `n` neighbours, so that what is read and what is updated stay equally popular.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrisdb_core::{Random, SplitMix64, Zipf};

use crate::engine::{Batch, Durability, KvEngine, Result};
use crate::keys::{KEY_BYTES, KeySpace};
use crate::values::{Generations, ScanCheck, WrongRead, fill};
use crate::workload::{Choice, Mix};

/// Operations of a load or of a mass delete that go into one batch.
pub(crate) const LOAD_BATCH: u64 = 100;

/// Puts of one batch of the durable batches.
pub(crate) const DURABLE_BATCH: u64 = 100;

/// Puts per second beside the reads of readwhilewriting: a rate that every engine can hold, so that all do the same
/// work.
pub(crate) const BACKGROUND_PUTS_PER_S: u64 = 10_000;

/// What one call of a client did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Operations to count.
    pub(crate) operations: u64,
    /// Bytes of keys and values written.
    pub(crate) user_bytes: u64,
}

impl Step {
    const READ: Step = Step { operations: 1, user_bytes: 0 };
}

/// One thread's work.
pub(crate) struct Client<'a> {
    /// Does one operation; `None` when there is nothing left to do.
    pub(crate) step: Box<dyn FnMut() -> Result<Option<Step>> + Send + 'a>,
    /// Only measured clients' operations and latencies count; a workload ends when the last of them has.
    pub(crate) measured: bool,
}

impl<'a> Client<'a> {
    fn new(step: impl FnMut() -> Result<Option<Step>> + Send + 'a) -> Client<'a> {
        Client { step: Box::new(step), measured: true }
    }
}

/// One data set in one engine: all that clients share.
pub(crate) struct Dataset<'a> {
    pub(crate) engine: &'a dyn KvEngine,
    pub(crate) space: KeySpace,
    pub(crate) generations: Generations,
    value_bytes: usize,
    zipf: Zipf,
    /// How many keys YCSB has inserted, or is inserting.
    inserted: AtomicU64,
    holes: Holes,
}

/// Dense ranges that were deleted: the first `dense` of each `period` positions. None if `dense` is zero.
#[derive(Debug, Clone, Copy)]
struct Holes {
    dense: u64,
    period: u64,
}

impl Holes {
    /// 1,024 deleted keys in a row and three times as many left, less in small data sets.
    fn of(count: u64) -> Holes {
        let period = (count / 4).clamp(4, 4096);
        Holes { dense: period / 4, period }
    }

    /// The first position at or after `position` that is not deleted.
    #[inline]
    fn live_from(self, position: u64) -> u64 {
        let offset = position % self.period;
        if offset < self.dense { position - offset + self.dense } else { position }
    }
}

impl<'a> Dataset<'a> {
    pub(crate) fn new(engine: &'a dyn KvEngine, keys: u64, value_bytes: usize) -> Dataset<'a> {
        let space = KeySpace::new(keys, 0xFE55_15DB);
        Dataset {
            engine,
            space,
            generations: Generations::new(&space, value_bytes),
            value_bytes,
            zipf: Zipf::new(keys, Zipf::YCSB_THETA),
            inserted: AtomicU64::new(0),
            holes: Holes { dense: 0, period: 1 },
        }
    }

    fn clients<'b>(threads: usize, client: impl Fn(u64, SplitMix64) -> Client<'b>) -> Vec<Client<'b>> {
        (0..threads as u64).map(|thread| client(thread, SplitMix64::new(thread + 1))).collect()
    }

    /// Loads every base key, in batches that the threads take in turn.
    pub(crate) fn load(&self, threads: usize, in_order: bool) -> Vec<Client<'_>> {
        let next = std::sync::Arc::new(AtomicU64::new(0));
        Self::clients(threads, |_, _| {
            let next = next.clone();
            let mut batch = Batch::default();
            Client::new(move || {
                let start = next.fetch_add(LOAD_BATCH, Ordering::Relaxed);
                let items = start.min(self.space.count())..(start + LOAD_BATCH).min(self.space.count());
                let slots = items.clone().map(|item| if in_order { item } else { self.space.slot_of_item(item) });
                self.put_all(&mut batch, slots, Durability::Buffered)
            })
        })
    }

    /// Deletes the dense ranges, in batches. [`Dataset::dig`] has come before.
    pub(crate) fn mass_delete(&self, threads: usize) -> Vec<Client<'_>> {
        let next = std::sync::Arc::new(AtomicU64::new(0));
        Self::clients(threads, |_, _| {
            let next = next.clone();
            let mut batch = Batch::default();
            Client::new(move || {
                let start = next.fetch_add(LOAD_BATCH, Ordering::Relaxed);
                if start >= self.space.count() {
                    return Ok(None);
                }
                batch.clear();
                let positions = start..(start + LOAD_BATCH).min(self.space.count());
                let doomed = positions.filter(|&position| self.holes.live_from(position) != position);
                doomed.clone().for_each(|position| batch.delete(self.space.key(position)));
                if batch.len() > 0 {
                    self.engine.write(&batch, Durability::Buffered)?;
                }
                doomed.for_each(|position| self.generations.acknowledge(position, 0));
                Ok(Some(Step { operations: batch.len() as u64, user_bytes: batch.user_bytes() }))
            })
        })
    }

    /// Decides which ranges are to be deleted.
    pub(crate) fn dig(&mut self) {
        self.holes = Holes::of(self.space.count());
    }

    pub(crate) fn read_random(&self, threads: usize) -> Vec<Client<'_>> {
        Self::clients(threads, |_, mut random| Client::new(move || self.read(random.below(self.space.count()))))
    }

    pub(crate) fn read_zipf(&self, threads: usize) -> Vec<Client<'_>> {
        Self::clients(threads, |_, mut random| {
            Client::new(move || self.read(self.space.slot_of_item(self.zipf.sample(&mut random))))
        })
    }

    pub(crate) fn read_missing(&self, threads: usize) -> Vec<Client<'_>> {
        Self::clients(threads, |_, mut random| {
            Client::new(move || {
                let key = self.space.missing_key(random.below(self.space.count()));
                let mut found = false;
                self.engine.get(&key, &mut |value| found = value.is_some())?;
                if found {
                    return Err(WrongRead(format!("{} was never written", String::from_utf8_lossy(&key))).into());
                }
                Ok(Some(Step::READ))
            })
        })
    }

    /// Random reads on `threads` threads, and one more thread that puts at a fixed rate.
    pub(crate) fn read_while_writing(&self, threads: usize) -> Vec<Client<'_>> {
        let mut clients = self.read_random(threads);
        let mut random = SplitMix64::new(99);
        let mut value = vec![0; self.value_bytes];
        let start = Instant::now();
        let mut put = 0;
        clients.push(Client {
            measured: false,
            step: Box::new(move || {
                let due = Duration::from_micros(put * 1_000_000 / BACKGROUND_PUTS_PER_S);
                let ahead = due.saturating_sub(start.elapsed());
                // Sleeping for each put would cost more than the put: catch up in bursts of a millisecond.
                if ahead > Duration::ZERO {
                    std::thread::sleep(ahead.max(Duration::from_millis(1)));
                    return Ok(Some(Step { operations: 0, user_bytes: 0 }));
                }
                put += 1;
                self.put(random.below(self.space.count()), &mut value, Durability::Buffered)
            }),
        });
        clients
    }

    /// Scans of `limit` entries from random base keys.
    pub(crate) fn seek(&self, threads: usize, limit: usize) -> Vec<Client<'_>> {
        Self::clients(threads, |_, mut random| Client::new(move || self.scan(random.below(self.space.count()), limit)))
    }

    /// Scans of `limit` entries from random deleted keys.
    pub(crate) fn seek_into_holes(&self, threads: usize, limit: usize) -> Vec<Client<'_>> {
        let Holes { dense, period } = self.holes;
        Self::clients(threads, |_, mut random| {
            Client::new(move || {
                let hole = random.below(self.space.count() / period);
                self.scan(hole * period + random.below(dense), limit)
            })
        })
    }

    /// A YCSB mix.
    pub(crate) fn ycsb(&self, threads: usize, mix: Mix) -> Vec<Client<'_>> {
        Self::clients(threads, |thread, mut random| {
            let mut value = vec![0; self.value_bytes];
            let threads = threads as u64;
            Client::new(move || match mix.choose(&mut random) {
                Choice::Read => self.read(self.popular_slot(&mut random, &mix, threads)),
                Choice::Scan => {
                    let position = self.popular_slot(&mut random, &mix, threads) % self.space.count();
                    let limit = 1 + usize::try_from(random.below(100)).expect("at most 100");
                    self.scan(position, limit)
                }
                Choice::Update => {
                    let slot = self.own_popular_slot(&mut random, thread, threads);
                    self.put(slot, &mut value, Durability::Buffered)
                }
                Choice::ReadModifyWrite => {
                    let slot = self.own_popular_slot(&mut random, thread, threads);
                    self.read(slot)?;
                    self.put(slot, &mut value, Durability::Buffered)
                }
                Choice::Insert => {
                    let index = self.inserted.fetch_add(1, Ordering::Relaxed);
                    if index >= self.space.count() {
                        // There is no room for more: go on as if this had been a read.
                        self.inserted.store(self.space.count(), Ordering::Relaxed);
                        return self.read(self.popular_slot(&mut random, &mix, threads));
                    }
                    self.put(self.space.slot_of_item(self.space.count() + index), &mut value, Durability::Buffered)
                }
            })
        })
    }

    /// Single puts of random base keys.
    pub(crate) fn overwrite(&self, threads: usize, durability: Durability) -> Vec<Client<'_>> {
        Self::clients(threads, |thread, mut random| {
            let mut value = vec![0; self.value_bytes];
            Client::new(move || {
                let slot = own(random.below(self.space.count()), thread, threads as u64, self.space.count());
                self.put(slot, &mut value, durability)
            })
        })
    }

    /// Batches of puts of random base keys.
    pub(crate) fn overwrite_batches(&self, threads: usize, durability: Durability) -> Vec<Client<'_>> {
        Self::clients(threads, |thread, mut random| {
            let mut batch = Batch::default();
            let mut slots = Vec::new();
            Client::new(move || {
                slots.clear();
                // A slot twice in a batch would get the same generation twice.
                let count = self.space.count();
                while slots.len() < usize::try_from(DURABLE_BATCH).expect("100 fits") {
                    let slot = own(random.below(count), thread, threads as u64, count);
                    if !slots.contains(&slot) {
                        slots.push(slot);
                    }
                }
                let step = self.put_all(&mut batch, slots.iter().copied(), durability)?;
                Ok(step.map(|step| Step { operations: 1, ..step }))
            })
        })
    }

    /// Single deletes of base keys in random order, until half of them are gone.
    pub(crate) fn delete_half(&self, threads: usize) -> Vec<Client<'_>> {
        let next = std::sync::Arc::new(AtomicU64::new(0));
        Self::clients(threads, |_, _| {
            let next = next.clone();
            Client::new(move || {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= self.space.count() / 2 {
                    return Ok(None);
                }
                let slot = self.space.slot_of_item(item);
                self.engine.delete(&self.space.key(slot))?;
                self.generations.acknowledge(slot, 0);
                Ok(Some(Step { operations: 1, user_bytes: KEY_BYTES as u64 }))
            })
        })
    }

    /// Checks slots against what was acknowledged, while nobody writes: a lost write of any workload shows here.
    pub(crate) fn audit(&self, reads: u64) -> Result<()> {
        let mut random = SplitMix64::new(0xA0D1);
        for _ in 0..reads {
            let slot = random.below(self.space.slot_count());
            let acknowledged = self.generations.get(slot);
            let mut verdict = Ok(());
            self.engine.get(&self.space.key(slot), &mut |value| {
                verdict = match (acknowledged, value) {
                    (0, Some(_)) => Err(WrongRead(format!("slot {slot} is there though nobody wrote it, or deleted"))),
                    // Room for a generation in flight is right while measuring, but nothing is in flight now.
                    (_, Some(value)) if value.get(..2) != Some(&acknowledged.to_le_bytes()) => {
                        Err(WrongRead(format!("slot {slot} does not hold generation {acknowledged}")))
                    }
                    (_, value) => self.generations.check(slot, acknowledged, value),
                };
            })?;
            verdict?;
        }
        Ok(())
    }

    /// The slot of a popular item. Of the `threads` neighbouring ranks that have one writer each, any.
    fn popular_slot(&self, random: &mut SplitMix64, mix: &Mix, threads: u64) -> u64 {
        let rank = self.zipf.sample(random);
        if mix.latest {
            let items = self.space.count() + self.inserted.load(Ordering::Relaxed).min(self.space.count());
            return self.space.slot_of_item(items - 1 - rank);
        }
        let any = random.below(threads);
        self.space.slot_of_item(own(rank, any, threads, self.space.count()))
    }

    fn own_popular_slot(&self, random: &mut SplitMix64, thread: u64, threads: u64) -> u64 {
        self.space.slot_of_item(own(self.zipf.sample(random), thread, threads, self.space.count()))
    }

    #[inline]
    fn read(&self, slot: u64) -> Result<Option<Step>> {
        let key = self.space.key(slot);
        let before = self.generations.get(slot);
        let mut verdict = Ok(());
        self.engine.get(&key, &mut |value| verdict = self.generations.check(slot, before, value))?;
        verdict?;
        Ok(Some(Step::READ))
    }

    #[inline]
    fn scan(&self, position: u64, limit: usize) -> Result<Option<Step>> {
        let count = self.space.count();
        let live_from = |position: u64| self.holes.live_from(position).min(count);
        let mut check = ScanCheck::new(&self.space, &self.generations, position, &live_from);
        self.engine.scan(&self.space.key(position), limit, &mut |key, value| check.visit(key, value))?;
        check.finish(limit)?;
        Ok(Some(Step::READ))
    }

    #[inline]
    fn put(&self, slot: u64, value: &mut [u8], durability: Durability) -> Result<Option<Step>> {
        let generation = self.generations.next(slot);
        fill(slot, generation, value);
        self.engine.put(&self.space.key(slot), value, durability)?;
        self.generations.acknowledge(slot, generation);
        Ok(Some(Step { operations: 1, user_bytes: (KEY_BYTES + value.len()) as u64 }))
    }

    fn put_all(
        &self,
        batch: &mut Batch,
        slots: impl Iterator<Item = u64> + Clone,
        durability: Durability,
    ) -> Result<Option<Step>> {
        batch.clear();
        for slot in slots.clone() {
            let generation = self.generations.next(slot);
            batch.put(self.space.key(slot), self.value_bytes, |value| fill(slot, generation, value));
        }
        if batch.len() == 0 {
            return Ok(None);
        }
        self.engine.write(batch, durability)?;
        for slot in slots {
            self.generations.acknowledge(slot, self.generations.next(slot));
        }
        Ok(Some(Step { operations: batch.len() as u64, user_bytes: batch.user_bytes() }))
    }
}

/// The neighbour of `number` that belongs to `thread`, in `0..count`.
#[inline]
fn own(number: u64, thread: u64, threads: u64, count: u64) -> u64 {
    let owned = number - number % threads + thread;
    if owned < count { owned } else { owned - threads }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads never own the same slot, and every owner stays inside the range.
    #[test]
    fn owners_do_not_overlap() {
        for number in 0..103 {
            for thread in 0..8 {
                let owned = own(number, thread, 8, 103);
                assert!(owned < 103 && owned % 8 == thread && owned.abs_diff(number) <= 8);
            }
        }
    }

    /// The deleted ranges are dense, and what follows each is where a scan out of it lands.
    #[test]
    fn scans_out_of_a_hole_land_behind_it() {
        let holes = Holes::of(2_000_000);
        assert_eq!((holes.dense, holes.period), (1024, 4096));
        assert_eq!(holes.live_from(4096), 4096 + 1024);
        assert_eq!(holes.live_from(4096 + 1023), 4096 + 1024);
        assert_eq!(holes.live_from(4096 + 1024), 4096 + 1024);
    }
}
