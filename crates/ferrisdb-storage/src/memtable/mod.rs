//! The memtable: the newest writes, sorted, in memory.
//!
//! A write goes to the WAL, then here; when the memtable is full it becomes immutable and is flushed to an L0 table. Point
//! entries live in a lock-free skip list in one arena (`skiplist.rs`, `arena.rs`), range tombstones beside it (`range_tombstones.rs`).
//! Why so, and how fast: `docs/decisions/0003-memtable.md`.
//!
//! # Writing a batch
//!
//! ```
//! use ferrisdb_core::Version;
//! use ferrisdb_storage::key::ValueKind;
//! use ferrisdb_storage::memtable::{Inserter, Memtable};
//!
//! let memtable = Memtable::new(1 << 20);
//! let mut inserter = Inserter::new(); // kept by the writer: it remembers where the last insert was
//! let batch = [(b"apple", b"red"), (b"grape", b"blu")];
//! let bytes = batch.iter().map(|(key, value)| Memtable::bytes_needed(key.len(), value.len())).sum();
//! assert!(memtable.try_reserve(bytes, &mut inserter)); // else: rotate
//! for (key, value) in batch {
//!     memtable.insert(key, Version::from_u64(7), ValueKind::Value, value, &mut inserter).expect("it was reserved");
//! }
//! memtable.release(&mut inserter);
//! assert_eq!(memtable.get(b"grape", Version::from_u64(9)).unwrap().value, b"blu");
//! assert!(memtable.get(b"grape", Version::from_u64(6)).is_none());
//! ```
//!
//! # Invariants
//! - What was inserted is never changed or removed; memory is freed only when the whole memtable is dropped.
//! - One (user key, version) occurs at most once among point entries.
//! - The height of a node, and so the shape of the list, follows from the order of calls alone: a simulation replays it.
//!
//! # Concurrency
//! Everything may be called from any thread at any time. Reads take no lock and wait for nobody. A reader sees what was inserted before it
//! asked, and may or may not see what is inserted meanwhile; which of it *counts* is decided above, by the version at which it reads:
//! the engine makes a version visible after all its entries are in.

mod arena;
#[cfg(any(loom, shuttle))]
mod arena_model;
mod cursor;
mod filter;
mod lanes;
mod range_tombstones;
mod skiplist;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::fmt;
use std::sync::Arc;

use ferrisdb_core::Version;

use crate::key::{InternalKey, Trailer, ValueKind};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::tombstone::{FragmentList, RangeTombstone};
pub use arena::MemoryPool;
use arena::{ALIGN, ARENA_BYTES_MAX, Reserved};
pub use cursor::{Cursor, MemtableIterator, OwnedMemtableIterator};
use filter::Filter;
use lanes::LANES;
use range_tombstones::RangeTombstones;
use skiplist::{Duplicate, HEIGHT_MAX, LINK_BYTES, LIST_BYTES_MIN, SkipList, Splice, node_bytes};

/// The smallest capacity of a memtable, in bytes: 4 KiB, of which the list itself takes about 200. Crash loops use it, so that a few
/// writes fill it.
pub const CAPACITY_BYTES_MIN: usize = 4 << 10;

/// The largest capacity of a memtable, in bytes: just below 4 GiB, because places in it are 32-bit offsets.
pub const CAPACITY_BYTES_MAX: usize = ARENA_BYTES_MAX;

/// The levels that every entry may claim: one more than the mean, so that a batch's low nodes pay for its tall ones.
const HEIGHT_ENTITLED: usize = 3;

/// How many entries of a run are looked for together: longer runs are cut into such.
pub const RUN_ENTRIES: usize = LANES;

/// Fewer entries than this are searched for one after the other.
const LANES_FROM: usize = if cfg!(any(loom, shuttle)) { 2 } else { 4 };

const _: () =
    assert!(CAPACITY_BYTES_MIN > LIST_BYTES_MIN + node_bytes(HEIGHT_MAX, 64, 1024), "the smallest holds something");

/// Why an entry was not inserted. The memtable is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// No space is left: rotate, and write to the next memtable. Never after enough was reserved.
    #[error("the memtable is full")]
    Full,
    /// This user key has an entry at this version: the batch was not canonical.
    #[error("the memtable has an entry of this key and version")]
    Duplicate,
}

/// A point entry to add: see [`Memtable::insert_run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointEntry<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// What it says.
    pub kind: ValueKind,
    /// The value; an encoded blob pointer; nothing for a tombstone.
    pub value: &'a [u8],
}

impl<'a> PointEntry<'a> {
    fn internal_key(&self, version: Version) -> InternalKey<'a> {
        InternalKey::new(self.key, Trailer::new(version, self.kind))
    }
}

/// What a lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// The version at which it was written.
    pub version: Version,
    /// What it says.
    pub kind: ValueKind,
    /// The value; an encoded blob pointer; nothing for a tombstone.
    pub value: &'a [u8],
}

/// A writer's memory between inserts: where the last one was, which makes sorted and sequential writes cheap, and what it has
/// reserved. One per writer. It may be used with one memtable after another; on a change it forgets, so take care to
/// [`Memtable::release`] first.
#[derive(Debug)]
pub struct Inserter {
    splice: Splice,
    /// Which memtable `reserved` is of; 0 for none.
    reserved_of: u64,
    reserved: Reserved,
    /// The part of `reserved` that no further entry of the batch is entitled to, because entries so far had low towers.
    /// Invariant: surplus_bytes <= reserved.bytes().
    surplus_bytes: usize,
    /// Where the entries of a run belong.
    lanes: [Splice; LANES],
}

impl Inserter {
    /// Without a memory.
    pub const fn new() -> Inserter {
        Inserter {
            splice: Splice::new(),
            reserved_of: 0,
            reserved: Reserved::NONE,
            surplus_bytes: 0,
            lanes: [const { Splice::new() }; LANES],
        }
    }
}

impl Default for Inserter {
    fn default() -> Inserter {
        Inserter::new()
    }
}

/// Sorted writes in memory. See the module.
pub struct Memtable {
    list: SkipList,
    /// Invariant: holds the user keys of all entries of `list`.
    filter: Filter,
    range_tombstones: RangeTombstones,
    entry_count: AtomicU64,
    tombstone_count: AtomicU64,
    // Of points and range tombstones. Nothing was inserted while smallest > largest.
    smallest_version: AtomicU64,
    largest_version: AtomicU64,
}

impl Memtable {
    /// As [`Self::with_prefix`] when nothing is known about the keys to come.
    pub fn new(capacity_bytes: usize) -> Memtable {
        Memtable::with_prefix(capacity_bytes, b"")
    }

    /// An empty memtable whose point entries take up to `capacity_bytes`, brought between [`CAPACITY_BYTES_MIN`] and
    /// [`CAPACITY_BYTES_MAX`]. Memory is used as it fills. Operations are faster if most keys begin with `prefix`; take
    /// [`Self::common_prefix`] of the memtable before. Any other key is as welcome.
    pub fn with_prefix(capacity_bytes: usize, prefix: &[u8]) -> Memtable {
        Memtable::make(capacity_bytes, prefix, None)
    }

    /// As [`Self::with_prefix`], in memory that another memtable left in `pool`, if there is a piece of this size; when it is dropped the
    /// memory goes there.
    pub fn in_pool(capacity_bytes: usize, prefix: &[u8], pool: &Arc<MemoryPool>) -> Memtable {
        Memtable::make(capacity_bytes, prefix, Some(Arc::clone(pool)))
    }

    fn make(capacity_bytes: usize, prefix: &[u8], pool: Option<Arc<MemoryPool>>) -> Memtable {
        let capacity = capacity_bytes.clamp(CAPACITY_BYTES_MIN, CAPACITY_BYTES_MAX) / ALIGN * ALIGN;
        Memtable {
            list: SkipList::new(capacity, prefix, pool),
            filter: Filter::new(capacity),
            range_tombstones: RangeTombstones::new(),
            entry_count: AtomicU64::new(0),
            tombstone_count: AtomicU64::new(0),
            smallest_version: AtomicU64::new(u64::MAX),
            largest_version: AtomicU64::new(0),
        }
    }

    /// What most keys of this memtable begin with; nothing while it has few.
    pub fn common_prefix(&self) -> &[u8] {
        self.list.common_prefix()
    }

    /// What this memtable was told that most keys begin with.
    #[cfg(test)]
    pub(crate) fn prefix(&self) -> &[u8] {
        self.list.prefix()
    }

    /// What an entry with these lengths, in bytes, may claim of the capacity. On average it takes 8 bytes less; taller nodes live on
    /// what low ones leave over, and near the end of the capacity towers stay low. [`Self::release`] gives back what is left.
    pub const fn bytes_needed(key_len: usize, value_len: usize) -> usize {
        node_bytes(HEIGHT_ENTITLED, key_len, value_len)
    }

    /// The capacity, in bytes, that a memtable must have for a batch that needs `bytes`, were it the only one.
    pub const fn capacity_for(bytes: usize) -> usize {
        let capacity = LIST_BYTES_MIN.saturating_add(bytes).saturating_add(ALIGN);
        if capacity < CAPACITY_BYTES_MIN { CAPACITY_BYTES_MIN } else { capacity }
    }

    /// Sees to it that `inserter` has `bytes` of this memtable to itself, so that inserting a batch whose [`Self::bytes_needed`] add up
    /// to it cannot fail half-way. False, and nothing reserved, if that does not fit, or if range tombstones have filled the memtable.
    pub fn try_reserve(&self, bytes: usize, inserter: &mut Inserter) -> bool {
        self.attach(inserter);
        let tombstones = self.range_tombstones.memory_bytes();
        // An empty memtable takes any batch that fits: there would be no better one to rotate to.
        if tombstones > 0 && tombstones.saturating_add(bytes) > self.list.arena().unreserved_bytes() {
            return false;
        }
        self.reserve(bytes, inserter)
    }

    fn reserve(&self, bytes: usize, inserter: &mut Inserter) -> bool {
        // The surplus is left alone: it is what lets tall nodes be.
        let missing = bytes.saturating_sub(inserter.reserved.bytes() - inserter.surplus_bytes);
        if missing == 0 {
            return true;
        }
        if let Some(reserved) = self.list.arena().try_reserve(missing) {
            inserter.reserved.absorb(reserved);
            return true;
        }
        // The arena is nearly full: entries go before tall towers.
        let from_surplus = missing.min(inserter.surplus_bytes);
        let Some(reserved) = self.list.arena().try_reserve(missing - from_surplus) else { return false };
        inserter.reserved.absorb(reserved);
        inserter.surplus_bytes -= from_surplus;
        true
    }

    /// Gives back what `inserter` has reserved and not used. A writer that keeps its inserter may leave it: the next
    /// reservation starts from it.
    pub fn release(&self, inserter: &mut Inserter) {
        if inserter.reserved_of == self.list.id() {
            self.list.arena().unreserve(std::mem::replace(&mut inserter.reserved, Reserved::NONE));
            inserter.surplus_bytes = 0;
        }
    }

    /// Makes the inserter this memtable's. What it had reserved elsewhere stays reserved there, which only wastes it.
    #[inline]
    fn attach(&self, inserter: &mut Inserter) {
        if inserter.reserved_of != self.list.id() {
            inserter.reserved_of = self.list.id();
            inserter.reserved = Reserved::NONE;
            inserter.surplus_bytes = 0;
        }
    }

    /// The height that an entry gets which would like `wish` levels, with its claim reserved: what goes beyond the claim comes from the
    /// surplus, or else from the arena, or else is not had.
    #[inline]
    fn affordable_height(&self, wish: usize, inserter: &mut Inserter) -> usize {
        if wish <= HEIGHT_ENTITLED {
            inserter.surplus_bytes += (HEIGHT_ENTITLED - wish) * LINK_BYTES;
            return wish;
        }
        let extra = (wish - HEIGHT_ENTITLED) * LINK_BYTES;
        if inserter.surplus_bytes < extra
            && let Some(reserved) = self.list.arena().try_reserve(extra - inserter.surplus_bytes)
        {
            inserter.reserved.absorb(reserved);
            inserter.surplus_bytes = extra;
        }
        let extra = extra.min(inserter.surplus_bytes / LINK_BYTES * LINK_BYTES);
        inserter.surplus_bytes -= extra;
        HEIGHT_ENTITLED + extra / LINK_BYTES
    }

    /// Adds a point entry. Takes from what `inserter` has reserved, and reserves what is missing.
    ///
    /// # Panics
    /// If `kind` is a range tombstone, the key is longer than [`KEY_BYTES_MAX`](crate::key::KEY_BYTES_MAX) or the value 4 GiB
    /// long: the engine refuses these.
    pub fn insert(
        &self,
        user_key: &[u8],
        version: Version,
        kind: ValueKind,
        value: &[u8],
        inserter: &mut Inserter,
    ) -> Result<(), InsertError> {
        self.insert_at(PointEntry { key: user_key, kind, value }, version, None, inserter)
    }

    /// Adds entries at one version, as [`insert`](Self::insert) would one after the other, and faster unless they are sorted and belong close together: their
    /// places are looked for at the same time. After an error those before the one that it is about are in.
    ///
    /// # Panics
    /// As [`insert`](Self::insert).
    pub fn insert_run(
        &self,
        entries: &[PointEntry<'_>],
        version: Version,
        inserter: &mut Inserter,
    ) -> Result<(), InsertError> {
        for chunk in entries.chunks(LANES) {
            let first = self.list.target(chunk[0].internal_key(version));
            let is_short = chunk.len() < LANES_FROM || self.list.is_near(&first, &inserter.splice);
            if !is_short {
                let mut targets = [first; LANES];
                for (target, entry) in targets.iter_mut().zip(chunk) {
                    *target = self.list.target(entry.internal_key(version));
                }
                self.list.locate_all(&targets[..chunk.len()], &mut inserter.lanes);
            }
            for (lane, entry) in chunk.iter().enumerate() {
                self.insert_at(*entry, version, (!is_short).then_some(lane), inserter)?;
            }
            if !is_short {
                inserter.splice = inserter.lanes[chunk.len() - 1].clone();
            }
        }
        Ok(())
    }

    /// Adds an entry, beginning where a lane says, or else where the last one was.
    #[inline]
    fn insert_at(
        &self,
        entry: PointEntry<'_>,
        version: Version,
        lane: Option<usize>,
        inserter: &mut Inserter,
    ) -> Result<(), InsertError> {
        let PointEntry { key: user_key, kind, value } = entry;
        assert!(kind != ValueKind::RangeTombstone, "range tombstones are kept beside the list");
        self.attach(inserter);
        if !self.reserve(Memtable::bytes_needed(user_key.len(), value.len()), inserter) {
            return Err(InsertError::Full);
        }
        // The number of this entry among all; Relaxed, because it only has to be counted once.
        let ordinal = self.entry_count.fetch_add(1, Ordering::Relaxed);
        let key = InternalKey::new(user_key, Trailer::new(version, kind));
        let height = self.affordable_height(height_of(ordinal), inserter);
        self.filter.add(user_key);
        let Inserter { splice, reserved, lanes, .. } = inserter;
        let splice = lane.map_or(splice, |lane| &mut lanes[lane]);
        match self.list.insert(key, value, height, reserved, splice) {
            Ok(()) => {
                if kind == ValueKind::Tombstone {
                    self.tombstone_count.fetch_add(1, Ordering::Relaxed);
                }
                self.note_version(version);
                Ok(())
            }
            Err(Duplicate) => {
                self.entry_count.fetch_sub(1, Ordering::Relaxed);
                Err(InsertError::Duplicate)
            }
        }
    }

    /// Adds a range tombstone over `[start, end)`; one without keys does nothing. Never fails: it lives outside the capacity,
    /// but counts in [`Self::memory_bytes`] and makes [`Self::try_reserve`] refuse when it fills the memtable. Amortised O(log n)
    /// and more where many tombstones overlap.
    pub fn insert_range_tombstone(&self, start: &[u8], end: &[u8], version: Version) {
        if start < end {
            self.range_tombstones.insert(&RangeTombstone::new(start, end, version));
            self.note_version(version);
        }
    }

    #[inline]
    fn note_version(&self, version: Version) {
        // Statistics of their own, so Relaxed. The loads save most of the read-modify-writes.
        let version = version.get();
        if version > self.largest_version.load(Ordering::Relaxed) {
            self.largest_version.fetch_max(version, Ordering::Relaxed);
        }
        if version < self.smallest_version.load(Ordering::Relaxed) {
            self.smallest_version.fetch_min(version, Ordering::Relaxed);
        }
    }

    /// The newest point entry of `user_key` with a version of at most `at`, whether or not a range tombstone hides it.
    #[inline]
    pub fn get(&self, user_key: &[u8], at: Version) -> Option<Found<'_>> {
        if !self.filter.may_hold(user_key) {
            return None;
        }
        let node = self.list.newest(user_key, at)?;
        let trailer = self.list.key(node).trailer;
        let kind = trailer.kind().expect("entries are inserted with a kind");
        Some(Found { version: trailer.version(), kind, value: self.list.value(node) })
    }

    /// The version of the newest range tombstone over `user_key` of at most `at`: it hides entries that are older than that.
    #[inline]
    pub fn newest_covering(&self, user_key: &[u8], at: Version) -> Option<Version> {
        self.range_tombstones.newest_covering(user_key, at)
    }

    /// All range tombstones as one list, for a flush; `None` without any. It is made on the first call after an insertion, in O(n log n),
    /// and shared by later ones.
    pub fn range_tombstones(&self) -> Option<Arc<FragmentList>> {
        self.range_tombstones.merged()
    }

    /// All range tombstones as O(log n) lists that may overlap, at no cost: for an iterator over an active memtable.
    pub fn range_tombstone_runs(&self) -> Vec<Arc<FragmentList>> {
        self.range_tombstones.runs()
    }

    /// How many range tombstones were inserted.
    pub fn range_tombstone_count(&self) -> usize {
        self.range_tombstones.count()
    }

    /// A cursor over the point entries that borrows the memtable.
    pub fn iter(&self) -> MemtableIterator<'_> {
        Cursor::new(self)
    }

    /// A cursor over the point entries that keeps the memtable alive.
    pub fn iter_owned(self: &Arc<Self>) -> OwnedMemtableIterator {
        Cursor::new(Arc::clone(self))
    }

    /// True before the first insertion of either sort.
    pub fn is_empty(&self) -> bool {
        self.entry_count() == 0 && self.range_tombstones.is_empty()
    }

    /// How many point entries were inserted. While inserts run, those that are under way count too.
    pub fn entry_count(&self) -> u64 {
        self.entry_count.load(Ordering::Relaxed)
    }

    /// How many of them are tombstones.
    pub fn tombstone_count(&self) -> u64 {
        self.tombstone_count.load(Ordering::Relaxed)
    }

    /// The oldest version that was inserted.
    pub fn smallest_version(&self) -> Option<Version> {
        Version::new(self.smallest_version.load(Ordering::Relaxed))
    }

    /// The newest version that was inserted.
    pub fn largest_version(&self) -> Option<Version> {
        self.smallest_version()?;
        Version::new(self.largest_version.load(Ordering::Relaxed))
    }

    /// Bytes of memory in use: what is taken of the arena, the filter (1/64 of the capacity), and range tombstones.
    pub fn memory_bytes(&self) -> usize {
        self.list.arena().allocated_bytes() + self.filter.memory_bytes() + self.range_tombstones.memory_bytes()
    }

    /// Gives the pages of its unused memory back to the operating system; they come again when they are used. Meanwhile it looks full.
    pub fn release_unused(&self) {
        self.list.arena().release_unused();
    }

    /// Bytes that point entries can take in all.
    pub fn capacity_bytes(&self) -> usize {
        self.list.arena().capacity()
    }

    /// Panics if an invariant does not hold. Only while nobody inserts; O(n).
    pub fn check(&self) {
        self.list.check();
        let mut node = self.list.first();
        while node != skiplist::NULL {
            assert!(self.filter.may_hold(self.list.key(node).user_key), "the filter holds the keys of all entries");
            node = self.list.next(node, 0);
        }
        self.range_tombstones.check();
        let (smallest, largest) = (self.smallest_version(), self.largest_version());
        assert_eq!(smallest.is_none(), self.is_empty(), "versions are known once something was inserted");
        assert!(smallest <= largest, "the smallest version is not above the largest: {smallest:?} {largest:?}");
    }
}

impl fmt::Debug for Memtable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memtable")
            .field("entries", &self.entry_count())
            .field("range_tombstones", &self.range_tombstone_count())
            .field("smallest_version", &self.smallest_version())
            .field("largest_version", &self.largest_version())
            .field("memory_bytes", &self.memory_bytes())
            .finish_non_exhaustive()
    }
}

/// How many levels the `ordinal`-th entry has: one in two has a second, one in four a third, … Mixed from the number (the finalizer of
/// SplitMix64) rather than drawn from a generator, so that concurrent writers share no state; and not from the key, so that nobody can
/// choose keys that make the list flat.
#[inline]
fn height_of(ordinal: u64) -> usize {
    let mut mixed = ordinal.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    (1 + mixed.trailing_zeros() as usize).min(HEIGHT_MAX)
}
