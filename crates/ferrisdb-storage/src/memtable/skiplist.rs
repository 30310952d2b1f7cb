//! A lock-free skip list of internal keys in an arena (Pugh 1990; after LevelDB's skiplist.h, RocksDB's InlineSkipList and
//! Pebble's arenaskl). Entries are added and never changed or removed, which is what keeps this file short.
//!
//! # A node
//!
//! ```text
//!  0  u64        trailer: version and kind
//!  8  u64        shape: value length (32 bits), key length (16), height (8), nothing (8)
//! 16  link       before: a node before this one on level 0, usually its neighbour
//! 24  link × h   next: the next node on levels 0..h
//!     bytes      key, then value; padded to 8
//! ```
//!
//! The first node, [`HEAD`], has all levels and no key; its `before` field belongs to the end of the list.
//!
//! # Links and hints
//! A search is a chain of cache misses, so what counts is how many nodes it touches. A link therefore carries, beside the offset of a node, a
//! **hint**: 32 bits of that node's key. Most comparisons end there, and only nodes that the search passes *through* are touched,
//! and of those only the cache line with the links. With that, low branching is best: at 1 in 2 a search goes through half a node per level,
//! log₂(n) / 2 in all, where 1 in 4 makes it 3/4 log₂(n).
//!
//! Keys of one memtable often begin alike ("table 17, row …"), and then their first four bytes say nothing. So a list is told a prefix to skip, a
//! guess from the keys of the memtable before. The hint of a key is the four bytes after the prefix; 0 for a key below all that have
//! the prefix; all ones for one above. That never contradicts the order of keys, so a wrong guess costs time only.
//!
//! # Invariants
//! - Each level is sorted by internal key, and is a subset of the level below it.
//! - A node reached over a link of level l has more than l levels.
//! - The node in a `before` field is on level 0 and is less than the node that has the field.
//! - No two nodes have the same user key and version.
//!
//! # Concurrency
//! Any number of inserting and reading threads; no locks; readers never retry, an insert retries a level only when another insert
//! succeeded there.
//!
//! *Publication.* An inserter writes the whole node, then links it on level 0 by a compare-and-swap with Release, then on level
//! 1, and so on upwards. Whoever follows a link loads it with Acquire. So whoever can reach a node sees its content and
//! all its levels below the one it came over; what the inserter itself had reached comes along (happens-before is transitive).
//!
//! *Nothing is skipped.* A compare-and-swap succeeds only if the neighbour is still the one that the new node was put before, so two
//! inserts at one place cannot lose one another. A thread that knows p and a later node n (in key order) cannot read a link of p
//! on level 0 that jumps over n: if n was linked after p, knowing n means having synchronised, perhaps through those that
//! lie between, with the stores that put it there; if p was linked after n, the link that p was published with already stops at n or before.
//!
//! *Backwards.* A `before` field may lag, because it is set after the link. It always names a node on level 0 that is less, so a
//! reader walks forward from there until it meets the node that it came from; what it found it writes back, so that the next need
//! not. (Finding the predecessor from the top, as LevelDB does, costs a whole search per step.)
//!
//! *Height* of the list is advice: one that is too small costs time, one that is too large meets empty levels.

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as StdAtomicU64;

use ferrisdb_core::Version;

use super::arena::{ALIGN, Arena, MemoryPool, Reserved};
use crate::key::{InternalKey, KEY_BYTES_MAX, Trailer, key_head};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Levels at most. One node in two goes up a level, so 20 levels serve 2^20 nodes in the best way, and a full 4 GiB arena of small
/// entries, 2^26 nodes, with some 30 steps more. (Model checking pays for each level of the first node.)
pub(super) const HEIGHT_MAX: usize = if cfg!(any(loom, shuttle)) { 3 } else { 20 };

const TRAILER: u32 = 0;
const SHAPE: u32 = 8;
const BEFORE: u32 = 16;
const NEXT: u32 = 24;
const LINK: u32 = 8;

/// What a level costs a node.
pub(super) const LINK_BYTES: usize = LINK as usize;

/// A node of a list, by its offset in the arena.
///
/// Invariant: [`NULL`], or a node of the list with which it is used, reached by that list's links. It leaves `skiplist.rs` and
/// `cursor.rs` only inside a [`Splice`], which knows its list; all `unsafe` here rests on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(u32);

/// No node: the end of a level.
pub(super) const NULL: Node = Node(0);

/// The node before all others: the arena's first allocation.
pub(super) const HEAD: Node = Node(8);

const _: () = assert!(HEAD.0 as usize == ALIGN, "the arena begins to hand out here");

/// A node and a hint of its key, as stored in a link. Order of hints: see the module.
///
/// Invariant: the hint is that of the node's key; for [`HEAD`] and [`NULL`] it means nothing and is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(u64);

impl Link {
    pub(super) const TO_HEAD: Link = Link::new(HEAD, 0);
    pub(super) const TO_NULL: Link = Link::new(NULL, 0);

    #[inline]
    const fn new(node: Node, hint: u32) -> Link {
        Link((hint as u64) << 32 | node.0 as u64)
    }

    #[inline]
    pub(super) const fn node(self) -> Node {
        Node((self.0 & 0xFFFF_FFFF) as u32)
    }

    #[inline]
    pub(super) const fn hint(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// An entry of the same user key and version is in the list already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Duplicate;

/// Where an insert took place, per level: the hint for the next one.
///
/// Invariant: on each level, `prev` is less than the key last inserted or equal, and `next` is greater. A level on
/// which `prev` is no longer followed by `next` is out of date but still true.
#[derive(Debug, Clone)]
pub(super) struct Splice {
    /// The list that the nodes belong to; 0 for none.
    list: u64,
    // One more than there are levels, so that the level above the highest can be asked too: it spans everything.
    prev: [Link; HEIGHT_MAX + 1],
    next: [Link; HEIGHT_MAX + 1],
}

impl Splice {
    /// Without a memory.
    pub(super) const fn new() -> Splice {
        Splice { list: 0, prev: [Link::TO_HEAD; HEIGHT_MAX + 1], next: [Link::TO_NULL; HEIGHT_MAX + 1] }
    }

    /// Around everything, in the list with this id.
    pub(super) const fn of(list: u64) -> Splice {
        Splice { list, ..Splice::new() }
    }

    /// What is on either side of the key on a level.
    #[inline]
    pub(super) fn set(&mut self, level: usize, prev: Link, next: Link) {
        (self.prev[level], self.next[level]) = (prev, next);
    }
}

/// A key to search for, with its hint computed once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) hint: u32,
    key: InternalKey<'a>,
}

/// The bytes that a node takes in the arena.
#[inline]
pub(super) const fn node_bytes(height: usize, key_len: usize, value_len: usize) -> usize {
    (NEXT as usize + LINK as usize * height).saturating_add(key_len).saturating_add(value_len).saturating_add(ALIGN - 1)
        / ALIGN
        * ALIGN
}

/// Where a node's link on `level` lies; for its height in place of a level, where its bytes begin.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a level is at most HEIGHT_MAX")]
const fn next_offset(node: Node, level: usize) -> u32 {
    node.0 + NEXT + LINK * level as u32
}

const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize, "a key length takes 16 bits of the shape");

/// The least arena: the first node, and what is lost at offset 0.
pub(super) const LIST_BYTES_MIN: usize = ALIGN + node_bytes(HEIGHT_MAX, 0, 0);

/// Bugs to plant in a model-checked list: each must be found by a test.
#[cfg(any(loom, shuttle))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests plant"))]
pub(super) enum Plant {
    Nothing,
    #[cfg_attr(shuttle, expect(dead_code, reason = "shuttle cannot find it"))]
    /// Link with Relaxed: a reader may reach a node whose content it does not see.
    RelaxedPublish,
    /// Follow links with Relaxed: the same from the other side.
    RelaxedFollow,
    /// Link by a store: of two inserts at one place one is lost.
    StoreInsteadOfSwap,
    /// Set the field `before` with Relaxed.
    RelaxedBefore,
    /// Take the field `before` for the neighbour: a backward reader skips entries.
    TrustBefore,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SkipList {
    arena: Arena,
    /// Invariant: 1..=HEIGHT_MAX; only grows.
    height: AtomicU32,
    /// What hints leave out.
    prefix: Box<[u8]>,
    /// Differs from that of any other list of this process, so that a splice can never be used on the wrong one.
    id: u64,
    #[cfg(any(loom, shuttle))]
    pub(super) plant: Plant,
}

impl SkipList {
    /// An empty list in an arena of `capacity` bytes, at least [`LIST_BYTES_MIN`]. Fastest if most keys begin with `prefix` and
    /// differ soon after.
    pub(super) fn new(capacity: usize, prefix: &[u8], pool: Option<Arc<MemoryPool>>) -> SkipList {
        // An identity, not a decision: its value shows nowhere, so the standard library's atomic does even under a model checker.
        static NEXT_ID: StdAtomicU64 = StdAtomicU64::new(1);
        let arena = Arena::new(capacity, pool);
        let mut reserved = arena.try_reserve(node_bytes(HEIGHT_MAX, 0, 0)).expect("the capacity covers the first node");
        let head = arena.allocate(&mut reserved, node_bytes(HEIGHT_MAX, 0, 0));
        assert_eq!(head, HEAD.0, "the first allocation is the first node");
        // SAFETY: the node was just allocated and nobody else knows it.
        unsafe {
            arena.init_link(head + BEFORE, Link::TO_HEAD.0);
            for level in 0..HEIGHT_MAX {
                arena.init_link(next_offset(HEAD, level), Link::TO_NULL.0);
            }
        }
        SkipList {
            arena,
            height: AtomicU32::new(1),
            prefix: prefix.into(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            #[cfg(any(loom, shuttle))]
            plant: Plant::Nothing,
        }
    }

    /// The memory behind the list.
    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// See the field.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// See the field.
    #[cfg(test)]
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Adds an entry with `height` levels. `reserved` must be of this list's arena and cover [`node_bytes`].
    ///
    /// # Panics
    /// If the reservation does not cover it, or a length is above its limit: our bugs, since the engine checks both.
    pub(super) fn insert(
        &self,
        key: InternalKey<'_>,
        value: &[u8],
        height: usize,
        reserved: &mut Reserved,
        splice: &mut Splice,
    ) -> Result<(), Duplicate> {
        assert!((1..=HEIGHT_MAX).contains(&height), "a node has a level and the first node has all of them");
        if splice.list != self.id {
            *splice = Splice::of(self.id);
        }
        let target = self.target(key);
        let list_height = self.raise_height(height);
        self.locate(&target, list_height, splice);
        if self.holds(splice.prev[0], &target) || self.holds(splice.next[0], &target) {
            return Err(Duplicate);
        }
        let node = self.new_node(key, value, height, reserved);
        let link = Link::new(node, target.hint);
        for level in 0..height {
            loop {
                let (prev, next) = (splice.prev[level], splice.next[level]);
                // SAFETY: the fields lie in the new node, which has this level. Nobody accesses `before` until the node is linked on
                // level 0, nor a link of level l until it is linked on level l, which is what follows.
                unsafe {
                    if level == 0 {
                        self.arena.init_link(node.0 + BEFORE, prev.0);
                    }
                    self.arena.init_link(next_offset(node, level), next.0);
                }
                if self.publish(self.next_link(prev.node(), level), next, link) {
                    if level == 0 {
                        self.before_link(next.node()).store(link.0, self.before_ordering());
                    }
                    break;
                }
                // Somebody else linked a node here. Both neighbours are still on either side of ours, so look between them.
                (splice.prev[level], splice.next[level]) = self.walk(&target, level, prev, splice.next[level + 1]);
                if level == 0 && (self.holds(splice.prev[0], &target) || self.holds(splice.next[0], &target)) {
                    // The node is not linked anywhere: its bytes are lost to the arena, no more.
                    return Err(Duplicate);
                }
            }
        }
        // Ascending inserts find their place right behind this node.
        splice.prev[..height].fill(link);
        Ok(())
    }

    #[inline]
    pub(super) fn target<'a>(&self, key: InternalKey<'a>) -> Target<'a> {
        Target { hint: self.hint(key.user_key), key }
    }

    /// Never falls as keys rise.
    #[inline]
    fn hint(&self, key: &[u8]) -> u32 {
        match key.strip_prefix(&*self.prefix) {
            Some(rest) => (key_head(rest) >> 32) as u32,
            None if *key < *self.prefix => 0,
            None => u32::MAX,
        }
    }

    /// Makes the list at least `height` levels high and returns its height.
    fn raise_height(&self, height: usize) -> usize {
        let mut known = self.height.load(Ordering::Relaxed);
        if height > known as usize {
            let height = u32::try_from(height).expect("at most HEIGHT_MAX");
            known = self.height.fetch_max(height, Ordering::Relaxed).max(height);
        }
        known as usize
    }

    /// The levels in use: advice, see the module.
    #[inline]
    pub(super) fn height(&self) -> usize {
        self.height.load(Ordering::Relaxed) as usize
    }

    /// Asks the processor for what a comparison with a node's key reads.
    #[inline]
    pub(super) fn prefetch_key(&self, node: Node) {
        #[cfg(not(any(loom, shuttle)))]
        {
            self.arena.prefetch(node.0);
            self.arena.prefetch(next_offset(node, 5));
        }
        #[cfg(any(loom, shuttle))]
        let _ = node;
    }

    /// Asks the processor for a node's link on a level.
    #[inline]
    pub(super) fn prefetch_link(&self, node: Node, level: usize) {
        #[cfg(not(any(loom, shuttle)))]
        self.arena.prefetch(next_offset(node, level));
        #[cfg(any(loom, shuttle))]
        let _ = (node, level);
    }

    /// Whether `target` belongs right beside where the splice was: its own search would be short.
    pub(super) fn is_near(&self, target: &Target<'_>, splice: &Splice) -> bool {
        // A level up of three has one node in eight: a few steps.
        const LEVELS: usize = 3;
        splice.list == self.id
            && (0..LEVELS.min(self.height())).any(|level| {
                let (prev, next) = (splice.prev[level], splice.next[level]);
                (prev == Link::TO_HEAD || self.is_before(prev, target))
                    && (next == Link::TO_NULL || !self.is_before(next, target))
            })
    }

    /// Moves the splice around `target` on all levels, starting from what it remembers.
    fn locate(&self, target: &Target<'_>, list_height: usize, splice: &mut Splice) {
        // The lowest level whose remembered neighbours are still neighbours and have the target between them. The cost is
        // logarithmic in the distance from the last insert (RocksDB pull request 1561).
        let mut level = 0;
        while level < list_height {
            let (prev, next) = (splice.prev[level], splice.next[level]);
            if (prev == Link::TO_HEAD || self.is_before(prev, target))
                && (next == Link::TO_NULL || !self.is_before(next, target))
                && self.next_of(prev.node(), level) == next
            {
                break;
            }
            level += 1;
        }
        if level == list_height {
            // No insert has written on this level of the splice; say so again rather than rely on it.
            (splice.prev[level], splice.next[level]) = (Link::TO_HEAD, Link::TO_NULL);
        }
        while level > 0 {
            level -= 1;
            (splice.prev[level], splice.next[level]) =
                self.walk(target, level, splice.prev[level + 1], splice.next[level + 1]);
        }
    }

    /// Writes a node that nobody knows yet.
    fn new_node(&self, key: InternalKey<'_>, value: &[u8], height: usize, reserved: &mut Reserved) -> Node {
        let InternalKey { user_key: key, trailer } = key;
        let key_len = u16::try_from(key.len()).expect("the engine refuses longer keys");
        let value_len = u32::try_from(value.len()).expect("the engine refuses values of 4 GiB");
        let node = self.arena.allocate(reserved, node_bytes(height, key.len(), value.len()));
        let shape = u64::from(value_len) | u64::from(key_len) << 32 | (height as u64) << 48;
        let bytes = next_offset(Node(node), height);
        // SAFETY: all of it lies in the node that was just allocated (`node_bytes` is the sum of these parts) and nobody else
        // knows it. Allocations are aligned to 8, and so are the two numbers in them.
        unsafe {
            self.arena.write(node + TRAILER, trailer.0);
            self.arena.write(node + SHAPE, shape);
            self.arena.write_bytes(bytes, key);
            self.arena.write_bytes(bytes + u32::from(key_len), value);
        }
        Node(node)
    }

    /// Puts `new` in the place of `expected`, unless that is no longer there.
    #[inline]
    fn publish(&self, link: &AtomicU64, expected: Link, new: Link) -> bool {
        #[cfg(any(loom, shuttle))]
        match self.plant {
            Plant::RelaxedPublish => {
                return link.compare_exchange(expected.0, new.0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            }
            Plant::StoreInsteadOfSwap => {
                link.store(new.0, Ordering::Release);
                return true;
            }
            _ => {}
        }
        // Release: the node's content goes before. Failure may be Relaxed because the level is then walked again with Acquire.
        link.compare_exchange(expected.0, new.0, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn before_ordering(&self) -> Ordering {
        #[cfg(any(loom, shuttle))]
        if self.plant == Plant::RelaxedBefore {
            return Ordering::Relaxed;
        }
        // A reader goes to the node by this field alone.
        Ordering::Release
    }

    #[inline]
    fn follow_ordering(&self) -> Ordering {
        #[cfg(any(loom, shuttle))]
        if self.plant == Plant::RelaxedFollow {
            return Ordering::Relaxed;
        }
        Ordering::Acquire
    }

    #[inline]
    fn next_link(&self, node: Node, level: usize) -> &AtomicU64 {
        // SAFETY: a node that is reached on this level has it, and was initialised before it was published (see the invariants).
        unsafe { self.arena.link(next_offset(node, level)) }
    }

    /// The field `before` of a node; for `NULL` that of the end, which the first node keeps.
    #[inline]
    fn before_link(&self, node: Node) -> &AtomicU64 {
        let holder = if node == NULL { HEAD } else { node };
        // SAFETY: every node has the field and was initialised before it was published.
        unsafe { self.arena.link(holder.0 + BEFORE) }
    }

    #[inline]
    pub(super) fn next_of(&self, node: Node, level: usize) -> Link {
        Link(self.next_link(node, level).load(self.follow_ordering()))
    }

    /// The node after `node` on a level that it has.
    #[inline]
    pub(super) fn next(&self, node: Node, level: usize) -> Node {
        self.next_of(node, level).node()
    }

    /// The first node.
    pub(super) fn first(&self) -> Node {
        self.next(HEAD, 0)
    }

    /// The node before `node` ([`NULL`]: before the end), or [`HEAD`].
    pub(super) fn prev(&self, node: Node) -> Node {
        let before = self.before_link(node);
        let advised = Link(before.load(Ordering::Acquire));
        #[cfg(any(loom, shuttle))]
        if self.plant == Plant::TrustBefore {
            return advised.node();
        }
        let mut prev = advised;
        loop {
            let next = self.next_of(prev.node(), 0);
            if next.node() == node {
                break;
            }
            assert!(next != Link::TO_NULL, "a node is on level 0 before anyone can reach it");
            prev = next;
        }
        if prev != advised {
            // Another thread may set it to a different node at the same time; either is less than `node`. Release, because the
            // next reader reaches `prev` by it.
            before.store(prev.0, self.before_ordering());
        }
        prev.node()
    }

    /// The last node before `key` (or [`HEAD`]) and the first at or after it (or [`NULL`]).
    #[inline]
    pub(super) fn seek(&self, key: InternalKey<'_>) -> (Node, Node) {
        let target = self.target(key);
        let mut level = self.height();
        let (mut prev, mut next) = (Link::TO_HEAD, Link::TO_NULL);
        while level > 0 {
            level -= 1;
            (prev, next) = self.walk(&target, level, prev, next);
        }
        (prev.node(), next.node())
    }

    /// Goes right on one level, from `prev`, which is before `target`, to the last node before it and the one after that. `limit` is known
    /// not to be before it, so that it need not be compared again.
    #[inline]
    fn walk(&self, target: &Target<'_>, level: usize, mut prev: Link, limit: Link) -> (Link, Link) {
        loop {
            let next = self.next_of(prev.node(), level);
            if next == limit || next == Link::TO_NULL {
                return (prev, next);
            }
            #[cfg(not(any(loom, shuttle)))]
            if level > 0 && next.hint() == target.hint {
                // The hint does not tell, so the node itself must come from memory. Where the search goes if it does not go right
                // comes at the same time.
                self.arena.prefetch(Link(self.next_link(prev.node(), level - 1).load(Ordering::Relaxed)).node().0);
            }
            if !self.is_before(next, target) {
                return (prev, next);
            }
            prev = next;
        }
    }

    /// True if the node, a real one, is less than `target`.
    #[inline]
    pub(super) fn is_before(&self, link: Link, target: &Target<'_>) -> bool {
        if link.hint() == target.hint { self.key(link.node()) < target.key } else { link.hint() < target.hint }
    }

    /// True if the node is an entry of the target's user key and version.
    fn holds(&self, link: Link, target: &Target<'_>) -> bool {
        link.hint() == target.hint
            && link != Link::TO_HEAD
            && link != Link::TO_NULL
            && self.trailer(link.node()).version() == target.key.trailer.version()
            && self.user_key(link.node()) == target.key.user_key
    }

    #[inline]
    fn trailer(&self, node: Node) -> Trailer {
        // SAFETY: a published node, and not `HEAD` or `NULL`, as all callers check: initialised and unchanging.
        Trailer(unsafe { self.arena.read::<u64>(node.0 + TRAILER) })
    }

    /// Where the key begins, its length, and the length of the value, which follows it.
    #[inline]
    fn shape(&self, node: Node) -> (u32, u32, usize) {
        debug_assert!(node != HEAD && node != NULL, "the first node and the end have no key");
        // SAFETY: as for `trailer`.
        let shape = unsafe { self.arena.read::<u64>(node.0 + SHAPE) };
        let height = (shape >> 48) as u32;
        (node.0 + NEXT + LINK * height, (shape >> 32 & 0xFFFF) as u32, (shape & 0xFFFF_FFFF) as usize)
    }

    #[inline]
    fn user_key(&self, node: Node) -> &[u8] {
        let (start, key_len, _) = self.shape(node);
        // SAFETY: the node was published with a key of this length here.
        unsafe { self.arena.bytes(start, key_len as usize) }
    }

    /// The key of an entry: of a node that is neither [`HEAD`] nor [`NULL`].
    #[inline]
    pub(super) fn key(&self, node: Node) -> InternalKey<'_> {
        InternalKey::new(self.user_key(node), self.trailer(node))
    }

    /// The value of an entry.
    #[inline]
    pub(super) fn value(&self, node: Node) -> &[u8] {
        let (start, key_len, value_len) = self.shape(node);
        // SAFETY: the node was published with a value of this length behind its key.
        unsafe { self.arena.bytes(start + key_len, value_len) }
    }

    /// The newest entry of `user_key` that a reader at `at` sees.
    #[inline]
    pub(super) fn newest(&self, user_key: &[u8], at: Version) -> Option<Node> {
        let (_, node) = self.seek(InternalKey::seek(user_key, at));
        (node != NULL && self.user_key(node) == user_key).then_some(node)
    }

    /// What most keys begin with: the prefix to give to the next list.
    pub(super) fn common_prefix(&self) -> &[u8] {
        // A level on which there are few nodes is a sample. Of that the middle, because system keys at either end share nothing
        // with the rest.
        for level in (0..self.height()).rev() {
            let mut sample = Vec::new();
            let mut node = self.next(HEAD, level);
            while node != NULL {
                sample.push(self.user_key(node));
                node = self.next(node, level);
            }
            if sample.len() >= 16 {
                let (first, last) = (sample[sample.len() / 8], sample[sample.len() - 1 - sample.len() / 8]);
                let len = first.iter().zip(last).take_while(|(a, b)| a == b).count();
                return &first[..len];
            }
        }
        &[]
    }

    /// Panics if an invariant does not hold. Only while nobody inserts.
    pub(super) fn check(&self) {
        let mut below: Option<Vec<u32>> = None;
        for level in 0..HEIGHT_MAX {
            let mut nodes = Vec::new();
            let mut link = self.next_of(HEAD, level);
            while link != Link::TO_NULL {
                let node = link.node();
                assert_eq!(link.hint(), self.hint(self.user_key(node)), "a link carries the hint of its node");
                if let Some(&last) = nodes.last() {
                    let (last, key) = (self.key(Node(last)), self.key(node));
                    assert!(last < key, "each level is sorted: {last:?} before {key:?} on level {level}");
                    let twice = last.user_key == key.user_key && last.trailer.version() == key.trailer.version();
                    assert!(!twice, "one user key and version occurs at most once: {key:?}");
                }
                nodes.push(node.0);
                link = self.next_of(node, level);
            }
            match &below {
                None => {
                    let mut before = HEAD.0;
                    for &node in &nodes {
                        assert_eq!(self.prev(Node(node)).0, before, "backwards is forwards reversed");
                        before = node;
                    }
                    assert_eq!(self.prev(NULL).0, before, "the end comes after the last node");
                }
                Some(below) => {
                    let mut below = below.iter();
                    assert!(
                        nodes.iter().all(|node| below.any(|n| n == node)),
                        "each level is a subset of the one below"
                    );
                }
            }
            assert!(nodes.is_empty() || level < self.height(), "the height covers all levels");
            below = Some(nodes);
        }
    }
}
