//! The block cache: decoded blocks of all tables and values from blob files, within one budget of memory.
//!
//! The work is done by `quick_cache` (a concurrent S3-FIFO cache, weighted by bytes). What is added here is the accounting of
//! memory that cannot be evicted: the index, filter and range tombstones of an open table are pinned, and what they take is
//! taken from the room for data blocks, so that the whole stays within the capacity that the user gave.
//!
//! # Invariants
//! - Room for data blocks = capacity − pinned bytes, but never below a sixteenth of the capacity: an engine whose
//!   pinned part has outgrown its budget would otherwise read every block from the disk.
//! - A (table, offset) names the same bytes for ever: cache ids are never used twice within a cache.
//!
//! # Concurrency
//! Any thread. A lookup takes a shard's read lock for some tens of nanoseconds. No lock is held across I/O: two threads that miss the
//! same block both read it.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::table::{Block, Index};

/// Names an open table or blob file within a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheId(u64);

/// A block in the cache. Cloning shares it.
#[derive(Debug, Clone)]
pub enum CachedBlock {
    /// A data block.
    Data(Arc<Block>),
    /// A partition of an index.
    Index(Arc<Index>),
    /// A value from a blob file.
    Blob(Arc<[u8]>),
}

/// What the cache did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStatistics {
    /// Lookups that found their block.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Bytes of cached blocks, overhead included.
    pub cached_bytes: u64,
    /// Bytes pinned by open tables.
    pub pinned_bytes: u64,
    /// Bytes in all that the cache may hold.
    pub capacity_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct BlockKey {
    table: u64,
    offset: u64,
}

/// Hashes a [`BlockKey`]. Fixed, so that which block is evicted follows from what was read and not from the process.
#[derive(Debug, Clone, Copy, Default)]
struct PlaceHasher(u64);

impl BuildHasher for PlaceHasher {
    type Hasher = PlaceHasher;

    #[inline]
    fn build_hasher(&self) -> PlaceHasher {
        PlaceHasher(0x9E37_79B9_7F4A_7C15)
    }
}

impl Hasher for PlaceHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the product are taken apart")]
    fn write_u64(&mut self, number: u64) {
        // Both halves of a 128-bit product, so that every input bit reaches the high and the low bits.
        let product = u128::from(self.0 ^ number) * 0xD6E8_FEB8_6659_FD93;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

/// What an entry takes beside the block: the cache's own slot and hash table, the allocation's head, the counter.
const ENTRY_OVERHEAD_BYTES: usize = 96;

#[derive(Debug, Clone, Copy)]
struct BytesWeighter;

impl Weighter<BlockKey, CachedBlock> for BytesWeighter {
    #[inline]
    fn weight(&self, _: &BlockKey, block: &CachedBlock) -> u64 {
        let bytes = match block {
            CachedBlock::Data(block) => block.memory_bytes(),
            CachedBlock::Index(index) => index.memory_bytes(),
            CachedBlock::Blob(value) => value.len(),
        };
        (bytes + ENTRY_OVERHEAD_BYTES) as u64
    }
}

/// A pair of counters in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Counters are chosen by block: two threads share one only where they share the block's reference count as well.
const COUNTER_STRIPES: usize = 64;

/// A guess for sizing hash tables: a block of 4 KiB with its overhead.
const TYPICAL_BLOCK_BYTES: u64 = 4200;

/// A shard should hold a good number of blocks, or large ones would find no room in it.
const SHARD_BYTES_MIN: u64 = 1 << 20;

const SHARDS_MAX: u64 = 64;

/// The block cache. Shared by all tables of an engine, or of several engines.
#[derive(Debug)]
pub struct BlockCache {
    blocks: Cache<BlockKey, CachedBlock, BytesWeighter, PlaceHasher>,
    capacity_bytes: u64,
    pinned_bytes: AtomicU64,
    next_id: AtomicU64,
    counters: Box<[Counters; COUNTER_STRIPES]>,
}

impl BlockCache {
    /// A cache for `capacity_bytes` of memory, pinned blocks and overhead included. Zero is legal: nearly nothing is cached.
    pub fn new(capacity_bytes: u64) -> BlockCache {
        let shards = (capacity_bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).expect("at most 64"))
            .estimated_items_capacity(
                usize::try_from(capacity_bytes / TYPICAL_BLOCK_BYTES).unwrap_or(usize::MAX).max(32),
            )
            .weight_capacity(capacity_bytes.max(1))
            .build()
            .expect("both capacities are given");
        let blocks = Cache::with_options(options, BytesWeighter, PlaceHasher::default(), DefaultLifecycle::default());
        BlockCache {
            blocks,
            capacity_bytes,
            pinned_bytes: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            counters: Box::new(std::array::from_fn(|_| Counters::default())),
        }
    }

    /// An id for a table that is being opened; never given twice.
    pub fn new_id(&self) -> CacheId {
        CacheId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    #[inline]
    fn counters(&self, key: BlockKey) -> &Counters {
        let mixed = (key.offset ^ key.table.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.counters[(mixed >> 58) as usize]
    }

    /// The block at `offset`, and counts a hit or a miss.
    #[inline]
    pub fn get(&self, table: CacheId, offset: u64) -> Option<CachedBlock> {
        let key = BlockKey { table: table.0, offset };
        let block = self.blocks.get(&key);
        let counters = self.counters(key);
        let counter = if block.is_some() { &counters.hits } else { &counters.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        block
    }

    /// Adds a block that was just read. It may be dropped at once if it is larger than a shard.
    pub fn insert(&self, table: CacheId, offset: u64, block: CachedBlock) {
        self.blocks.insert(BlockKey { table: table.0, offset }, block);
    }

    /// True if the block is cached. Counts nothing and makes the block no younger.
    pub fn contains(&self, table: CacheId, offset: u64) -> bool {
        self.blocks.contains_key(&BlockKey { table: table.0, offset })
    }

    /// Takes `bytes` from the room for data blocks until the reservation is dropped.
    pub fn reserve(self: &Arc<BlockCache>, bytes: usize) -> CacheReservation {
        self.pinned_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
        self.apply_pinned();
        CacheReservation { cache: Arc::clone(self), bytes: bytes as u64 }
    }

    fn apply_pinned(&self) {
        loop {
            let pinned = self.pinned_bytes.load(Ordering::SeqCst);
            let room = self.capacity_bytes.saturating_sub(pinned).max(self.capacity_bytes / 16).max(1);
            self.blocks.set_capacity(room);
            // Two tables that open at once may apply in the wrong order: the one that sees the last number applies it.
            if self.pinned_bytes.load(Ordering::SeqCst) == pinned {
                return;
            }
        }
    }

    /// Hits, misses and sizes. The counters are read one after another, not at one instant.
    pub fn statistics(&self) -> CacheStatistics {
        let sum = |of: fn(&Counters) -> &AtomicU64| {
            self.counters.iter().map(|counters| of(counters).load(Ordering::Relaxed)).sum::<u64>()
        };
        CacheStatistics {
            hits: sum(|counters| &counters.hits),
            misses: sum(|counters| &counters.misses),
            cached_bytes: self.blocks.weight(),
            pinned_bytes: self.pinned_bytes.load(Ordering::SeqCst),
            capacity_bytes: self.capacity_bytes,
        }
    }
}

/// Memory of an open table that the cache makes room for; given back when dropped.
#[derive(Debug)]
pub struct CacheReservation {
    cache: Arc<BlockCache>,
    bytes: u64,
}

impl Drop for CacheReservation {
    fn drop(&mut self) {
        self.cache.pinned_bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.cache.apply_pinned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index_block() -> CachedBlock {
        // An empty index: two varints.
        CachedBlock::Index(Arc::new(Index::decode(&[0, 0], 0).unwrap()))
    }

    /// Pinned bytes make room smaller, evict what no longer fits, and are given back; the floor holds.
    #[test]
    fn pinned_bytes_count_as_cache() {
        let cache = Arc::new(BlockCache::new(64 << 10));
        let table = cache.new_id();
        (0..1000).for_each(|offset| cache.insert(table, offset, index_block()));
        let full = cache.statistics().cached_bytes;
        assert!((48 << 10..=64 << 10).contains(&full), "{full}");
        let pinned = cache.reserve(32 << 10);
        assert!(cache.statistics().cached_bytes <= 32 << 10);
        let more = cache.reserve(1 << 20);
        assert!((1..=4 << 10).contains(&cache.statistics().cached_bytes), "a sixteenth is left");
        drop((pinned, more));
        assert_eq!(cache.statistics().pinned_bytes, 0);
        (0..1000).for_each(|offset| cache.insert(table, offset, index_block()));
        assert!(cache.statistics().cached_bytes > 48 << 10);
    }

    /// Lookups are counted, `contains` is not, and two tables do not see each other's blocks.
    #[test]
    fn lookups_are_counted() {
        let cache = BlockCache::new(1 << 20);
        let (one, two) = (cache.new_id(), cache.new_id());
        cache.insert(one, 7, index_block());
        assert!(cache.get(one, 7).is_some() && cache.get(two, 7).is_none() && cache.get(one, 8).is_none());
        assert!(cache.contains(one, 7) && !cache.contains(two, 7));
        let statistics = cache.statistics();
        assert_eq!((statistics.hits, statistics.misses), (1, 2));
    }
}
