//! The arena: one piece of memory of fixed size from which a memtable takes its nodes.
//!
//! A place in it is a `u32` offset, half the size of a pointer, and needs no lifetime: nothing is freed until the whole arena is.
//! Offset 0 is never handed out and means "none". The memory is not cleared and the operating system gives its pages when
//! they are first touched, so a large arena costs nothing until it is used.
//!
//! Space is **reserved** first ([`Arena::try_reserve`]) and then taken out of the reservation ([`Arena::allocate`]), which
//! cannot fail. So a whole write batch either fits or is refused before its first entry goes in. (Pebble's engine panicked with
//! "arena is full" during WAL replay when the two steps disagreed, pebble issues 36 and 2516; here the second takes its right from the
//! first in the form of a [`Reserved`].)
//!
//! # Invariants
//! - allocated <= reserved <= capacity <= [`ARENA_BYTES_MAX`]. So an offset plus the size of its allocation fits a `u32`.
//! - Allocations are disjoint, in bounds and aligned to [`ALIGN`].
//!
//! # Concurrency
//! Any number of threads reserve, allocate and access. The arena orders nothing between them: whoever publishes an offset does it
//! with Release, whoever follows it with Acquire. Under a model checker `arena_model.rs` takes the place of the raw accesses and
//! checks exactly that.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sync::atomic::{AtomicU64, Ordering};

/// The alignment of every allocation, in bytes: that of the widest field that is read in place, a `u64`.
pub(super) const ALIGN: usize = 8;

/// The largest arena, in bytes: every offset, and the end of every allocation, fits a `u32`.
pub(super) const ARENA_BYTES_MAX: usize = u32::MAX as usize / ALIGN * ALIGN;

/// What the processor maps with one entry of its translation cache, where it is asked to.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Arenas from here on ask for huge pages: a search touches some ten places all over the arena, and with 4 KiB pages each is a miss of the
/// translation cache too. Below, whole huge pages would waste too much of the arena.
const HUGE_PAGES_FROM: usize = 4 * HUGE_PAGE_BYTES;

/// The right to allocate so many bytes of one arena. Only [`Arena::try_reserve`] makes one.
#[derive(Debug)]
pub(super) struct Reserved {
    bytes: usize,
}

impl Reserved {
    /// The right to nothing.
    pub(super) const NONE: Reserved = Reserved { bytes: 0 };

    /// Bytes left.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes over the right of `other`, which is left with none. Both must be of the same arena.
    pub(super) fn absorb(&mut self, other: Reserved) {
        self.bytes += other.bytes;
    }
}

/// A piece of memory of fixed size.
#[derive(Debug)]
struct Memory {
    /// Invariant: the start of an allocation of `capacity` bytes that lives as long as this value.
    base: NonNull<u8>,
    capacity: usize,
}

// SAFETY: it owns its memory and nothing in it is tied to a thread.
unsafe impl Send for Memory {}

impl Memory {
    fn new(capacity: usize) -> Memory {
        let layout = Memory::layout(capacity);
        // Not `alloc_zeroed`: every byte is written before it is published, and clearing would touch every page when the allocator
        // hands out memory that it had before.
        // SAFETY: the layout has a size above zero, as `Arena::new` asserts.
        let base = unsafe { alloc(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        ask_for_huge_pages(base, capacity);
        Memory { base, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        let align = if capacity >= HUGE_PAGES_FROM { HUGE_PAGE_BYTES } else { ALIGN };
        Layout::from_size_align(capacity, align).expect("a capacity below 4 GiB is a valid size")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc` with this layout, and nobody can hold a reference into it any more.
        unsafe { dealloc(self.base.as_ptr(), Memory::layout(self.capacity)) }
    }
}

/// The memory of the last dropped memtable, for the next one: the operating system clears every page that it gives, which costs
/// a sequential load a seventh of its processor time. At most one piece is kept, so memtables and this together never take more than the
/// memtables alone have taken. Share it by `Arc` among the memtables of one engine.
#[derive(Debug, Default)]
pub struct MemoryPool {
    spare: Mutex<Option<Memory>>,
}

impl MemoryPool {
    /// Gives what is kept back to the operating system.
    pub fn clear(&self) {
        drop(self.lock().take());
    }

    /// Bytes kept.
    pub fn spare_bytes(&self) -> usize {
        self.lock().as_ref().map_or(0, |memory| memory.capacity)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Memory>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, capacity: usize) -> Option<Memory> {
        let mut spare = self.lock();
        spare.take_if(|memory| memory.capacity == capacity)
    }

    fn give(&self, memory: Memory) {
        // What was there is freed outside the lock: a system call for many pages.
        let replaced = self.lock().replace(memory);
        drop(replaced);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Arena {
    /// `None` only while it is being dropped.
    memory: Option<Memory>,
    /// Invariant: that of `memory`.
    base: NonNull<u8>,
    capacity: usize,
    /// Where the memory goes in the end.
    pool: Option<Arc<MemoryPool>>,
    // Both are u64 so that no number of refused attempts could make them wrap.
    reserved: AtomicU64,
    allocated: AtomicU64,
    #[cfg(any(loom, shuttle))]
    model: super::arena_model::Model,
}

/// A wish: without it, or where it is refused, everything works as well and a little slower.
fn ask_for_huge_pages(base: NonNull<u8>, capacity: usize) {
    #[cfg(target_os = "linux")]
    if capacity >= HUGE_PAGES_FROM {
        // SAFETY: the range is ours, and the advice changes no content.
        let asked = unsafe {
            rustix::mm::madvise(
                base.as_ptr().cast(),
                capacity / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES,
                rustix::mm::Advice::LinuxHugepage,
            )
        };
        // A kernel built without them says so; nothing depends on the answer.
        let _refused = asked.is_err();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (base, capacity);
}

/// Lets the operating system take the whole pages between two offsets of the memory at `base`. Nobody may use them meanwhile, and their content is lost.
/// Small memory is left alone: it may share its pages with whatever else is allocated.
fn give_back(base: NonNull<u8>, from: usize, to: usize) {
    #[cfg(target_os = "linux")]
    if to >= HUGE_PAGES_FROM {
        // Its base is aligned to a huge page, and so to whatever a page is.
        let page = rustix::param::page_size();
        let (from, to) = (from.next_multiple_of(page), to / page * page);
        if from < to {
            // SAFETY: the range is ours, aligned, and used by nobody, as the caller promises; arenas promise nothing of a place's content before it is
            // written.
            let given = unsafe {
                rustix::mm::madvise(
                    base.as_ptr().wrapping_add(from).cast(),
                    to - from,
                    rustix::mm::Advice::LinuxDontNeed,
                )
            };
            // Refused, the memory stays: nothing else depends on it.
            let _refused = given.is_err();
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (base, from, to);
}

// SAFETY: the arena owns its memory and nothing in it is tied to a thread.
unsafe impl Send for Arena {}
// SAFETY: the counters are atomic. All accesses to the memory are `unsafe` methods whose callers promise that no plain write
// runs at the same time as another access to the same bytes; links are atomics.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of `capacity` bytes, in memory from `pool` and back to it, if there is one.
    ///
    /// # Panics
    /// If `capacity` is not a multiple of [`ALIGN`], is zero, or is above [`ARENA_BYTES_MAX`]. Aborts like `Vec` if the
    /// operating system refuses the address space.
    pub(super) fn new(capacity: usize, pool: Option<Arc<MemoryPool>>) -> Arena {
        assert!(
            (ALIGN..=ARENA_BYTES_MAX).contains(&capacity) && capacity.is_multiple_of(ALIGN),
            "an arena of {capacity} bytes is outside its limits"
        );
        let spare = pool.as_ref().and_then(|pool| pool.take(capacity));
        let memory = spare.unwrap_or_else(|| Memory::new(capacity));
        Arena {
            base: memory.base,
            memory: Some(memory),
            capacity,
            pool,
            // The first bytes are never handed out, so that offset 0 is free to mean "none".
            reserved: AtomicU64::new(ALIGN as u64),
            allocated: AtomicU64::new(ALIGN as u64),
            #[cfg(any(loom, shuttle))]
            model: super::arena_model::Model::new(capacity),
        }
    }

    /// Bytes in all.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes handed out so far, and so about the memory that the operating system has given.
    pub(super) fn allocated_bytes(&self) -> usize {
        // A statistic: Relaxed, because nothing is read on the strength of it.
        usize::try_from(self.allocated.load(Ordering::Relaxed)).expect("at most the capacity, which is a usize")
    }

    /// Bytes that are neither handed out nor promised.
    pub(super) fn unreserved_bytes(&self) -> usize {
        self.capacity - usize::try_from(self.reserved.load(Ordering::Relaxed)).expect("at most the capacity")
    }

    /// Sets `bytes` aside, or says that so many are not left. All or nothing.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Reserved> {
        // Relaxed throughout: the counter protects a number, not memory.
        let mut reserved = self.reserved.load(Ordering::Relaxed);
        loop {
            let after = reserved.checked_add(bytes as u64).filter(|&after| after <= self.capacity as u64)?;
            match self.reserved.compare_exchange(reserved, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(Reserved { bytes }),
                Err(actual) => reserved = actual,
            }
        }
    }

    /// Gives back what was reserved on this arena and is not needed.
    pub(super) fn unreserve(&self, reserved: Reserved) {
        if reserved.bytes > 0 {
            self.reserved.fetch_sub(reserved.bytes as u64, Ordering::Relaxed);
        }
    }

    /// Gives the pages that nobody has reserved back to the operating system. Memory that was another arena's before has them all.
    pub(super) fn release_unused(&self) {
        // All of the rest is reserved first. What others have reserved and not taken yet lies below: places are handed out from the bottom, and never
        // more than are reserved. So nobody touches what lies behind until it is unreserved.
        let rest = self.unreserved_bytes();
        let Some(held) = self.try_reserve(rest) else { return };
        give_back(self.base, self.capacity - rest, self.capacity);
        self.unreserve(held);
    }

    /// Takes `size` bytes, a multiple of [`ALIGN`], out of a reservation on this arena and returns their offset. Their content is
    /// not defined.
    ///
    /// # Panics
    /// If the reservation has fewer bytes left, or is of another arena and this one is full: our bug.
    #[inline]
    pub(super) fn allocate(&self, reserved: &mut Reserved, size: usize) -> u32 {
        debug_assert!(size.is_multiple_of(ALIGN), "sizes keep the alignment of what comes after");
        reserved.bytes = reserved.bytes.checked_sub(size).expect("a node never needs more than was reserved for it");
        // Relaxed: a read-modify-write hands out each place once whatever the order.
        let start = self.allocated.fetch_add(size as u64, Ordering::Relaxed);
        assert!(start + size as u64 <= self.capacity as u64, "a reservation is spent on the arena that gave it");
        u32::try_from(start).expect("the capacity fits a u32")
    }

    /// The address of an offset, without a promise about what lies there.
    #[inline]
    fn at(&self, offset: u32) -> *mut u8 {
        debug_assert!((offset as usize) < self.capacity, "offsets come from allocate");
        self.base.as_ptr().wrapping_add(offset as usize)
    }

    /// Asks the processor to fetch the cache line at `offset`; never faults, whatever the offset is.
    #[cfg(not(any(loom, shuttle)))]
    #[inline]
    pub(super) fn prefetch(&self, offset: u32) {
        let address = self.base.as_ptr().wrapping_add(offset as usize);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a prefetch is a hint that reads nothing and faults on no address; SSE is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast::<i8>());
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = address;
    }

    /// Writes a number that is not published yet.
    ///
    /// # Safety
    /// `offset` is aligned for `T` and `offset..offset + size_of::<T>()` lies in an allocation that no other thread has been told
    /// about; `T` is an integer.
    #[inline]
    pub(super) unsafe fn write<T: Copy>(&self, offset: u32, value: T) {
        #[cfg(any(loom, shuttle))]
        self.model.plain_write(offset, size_of::<T>());
        // SAFETY: in bounds, aligned and not shared, as the caller promises.
        unsafe { self.at(offset).cast::<T>().write(value) }
    }

    /// Copies bytes to a place that is not published yet.
    ///
    /// # Safety
    /// `offset..offset + bytes.len()` lies in an allocation that no other thread has been told about.
    #[inline]
    pub(super) unsafe fn write_bytes(&self, offset: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        #[cfg(any(loom, shuttle))]
        self.model.plain_write(offset, bytes.len());
        // SAFETY: in bounds and not shared, as the caller promises; `bytes` cannot overlap it, because no slice of an unpublished
        // allocation exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset), bytes.len()) }
    }

    /// Reads a number that was written before the offset was published.
    ///
    /// # Safety
    /// A `T` was written at `offset` by [`Self::write`], that write happens before this call, and no write follows.
    #[inline]
    pub(super) unsafe fn read<T: Copy>(&self, offset: u32) -> T {
        #[cfg(any(loom, shuttle))]
        self.model.plain_read(offset, size_of::<T>());
        // SAFETY: initialised, aligned and immutable, as the caller promises.
        unsafe { self.at(offset).cast::<T>().read() }
    }

    /// The bytes that were written before the offset was published.
    ///
    /// # Safety
    /// Every byte of `offset..offset + len` was written, those writes happen before this call, and no write follows.
    #[inline]
    pub(super) unsafe fn bytes(&self, offset: u32, len: usize) -> &[u8] {
        if len == 0 {
            return &[];
        }
        #[cfg(any(loom, shuttle))]
        self.model.plain_read(offset, len);
        // SAFETY: initialised and immutable for as long as the arena lives, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.at(offset), len) }
    }

    /// Gives a link its first value, before it can be reached.
    ///
    /// # Safety
    /// `offset` is aligned to 8 and `offset..offset + 8` lies in an allocation; no other thread accesses these bytes until a
    /// publication that follows.
    #[inline]
    pub(super) unsafe fn init_link(&self, offset: u32, value: u64) {
        #[cfg(any(loom, shuttle))]
        self.model.link(offset).store(value, Ordering::Relaxed);
        #[cfg(not(any(loom, shuttle)))]
        // SAFETY: the caller's promise.
        unsafe {
            self.write(offset, value);
        }
    }

    /// A link: a `u64` that may change after publication.
    ///
    /// # Safety
    /// [`Self::init_link`] was called at `offset`, that happens before this call, and nothing else accesses these eight bytes other
    /// than through this method.
    #[inline]
    pub(super) unsafe fn link(&self, offset: u32) -> &AtomicU64 {
        #[cfg(any(loom, shuttle))]
        return self.model.link(offset);
        #[cfg(not(any(loom, shuttle)))]
        // SAFETY: initialised, aligned, alive as long as the arena, and accessed as an atomic only, as the caller promises.
        unsafe {
            AtomicU64::from_ptr(self.at(offset).cast::<u64>())
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let (Some(pool), Some(memory)) = (&self.pool, self.memory.take()) {
            pool.give(memory);
        }
    }
}
