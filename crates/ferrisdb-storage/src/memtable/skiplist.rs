//! A lock-free skip list of internal keys in an arena (Pugh 1990; after LevelDB's skiplist.h, RocksDB's InlineSkipList and
//! Pebble's arenaskl). Entries are added and never changed or removed, which is what keeps this file short.
//!
//! # A node
//!
//! ```text
//!  0  u64        key head: the first eight bytes of the key, see `key_head`; most comparisons end here
//!  8  u64        trailer: version and kind
//! 16  u64        shape: value length (32 bits), key length (16), height (8), nothing (8)
//! 24  u32        before: a node before this one on level 0, usually its neighbour
//! 28  u32 × h    next: the next node on levels 0..h, 0 at the end
//!     bytes      key, then value; padded to 8
//! ```
//!
//! The first node, [`HEAD`], has all levels and no key; its `before` field belongs to the end of the list.
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
//! *Height* of the list is a hint: one that is too small costs time, one that is too large meets empty levels.

#![cfg_attr(
    not(test),
    expect(
        clippy::cast_possible_truncation,
        reason = "lengths, heights and offsets lie in an arena, whose size fits a u32"
    )
)]

use std::sync::atomic::AtomicU64 as StdAtomicU64;

use ferrisdb_core::Version;

use super::arena::{ALIGN, Arena, Reserved};
use crate::key::{InternalKey, KEY_BYTES_MAX, Trailer, key_head};
use crate::sync::atomic::{AtomicU32, Ordering};

/// Levels at most. One node in four goes up a level, so 16 levels serve 4^16 = 2^32 nodes, more than an arena can hold.
/// (Model checking pays for each level of the first node.)
pub(super) const HEIGHT_MAX: usize = if cfg!(any(loom, shuttle)) { 3 } else { 16 };

const TRAILER: u32 = 8;
const SHAPE: u32 = 16;
const BEFORE: u32 = 24;
const NEXT: u32 = 28;

/// A node of a list, by its offset in the arena.
///
/// Invariant: [`NULL`], or a node of the list with which it is used, reached by that list's links. It leaves `skiplist.rs` and
/// `cursor.rs` only inside a [`Splice`], which knows its list; all `unsafe` here rests on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(u32);

/// No node: the end of a level.
pub(super) const NULL: Node = Node(0);

/// The node before all others: the arena's first allocation.
pub(super) const HEAD: Node = Node(ALIGN as u32);

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
    prev: [Node; HEIGHT_MAX + 1],
    next: [Node; HEIGHT_MAX + 1],
}

impl Splice {
    /// Without a memory.
    pub(super) const fn new() -> Splice {
        Splice { list: 0, prev: [HEAD; HEIGHT_MAX + 1], next: [NULL; HEIGHT_MAX + 1] }
    }
}

/// A key to search for, with its head computed once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    head: u64,
    key: InternalKey<'a>,
}

impl<'a> Target<'a> {
    #[inline]
    pub(super) fn new(key: InternalKey<'a>) -> Target<'a> {
        Target { head: key_head(key.user_key), key }
    }
}

/// The bytes that a node takes in the arena.
#[inline]
pub(super) const fn node_bytes(height: usize, key_len: usize, value_len: usize) -> usize {
    (NEXT as usize + 4 * height).saturating_add(key_len).saturating_add(value_len).saturating_add(ALIGN - 1) / ALIGN
        * ALIGN
}

/// The least arena: the first node, and what is lost at offset 0.
pub(super) const LIST_BYTES_MIN: usize = ALIGN + node_bytes(HEIGHT_MAX, 0, 0);

/// Bugs to plant in a model-checked list: each must be found by a test.
#[cfg(any(loom, shuttle))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plant {
    Nothing,
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
    /// Differs from that of any other list of this process, so that a splice can never be used on the wrong one.
    id: u64,
    #[cfg(any(loom, shuttle))]
    pub(super) plant: Plant,
}

impl SkipList {
    /// An empty list in an arena of `capacity` bytes, at least [`LIST_BYTES_MIN`].
    pub(super) fn new(capacity: usize) -> SkipList {
        // An identity, not a decision: its value shows nowhere, so the standard library's atomic does even under a model checker.
        static NEXT_ID: StdAtomicU64 = StdAtomicU64::new(1);
        let arena = Arena::new(capacity);
        let mut reserved = arena.try_reserve(node_bytes(HEIGHT_MAX, 0, 0)).expect("the capacity covers the first node");
        let head = arena.allocate(&mut reserved, node_bytes(HEIGHT_MAX, 0, 0));
        assert_eq!(head, HEAD.0, "the first allocation is the first node");
        // SAFETY: the node was just allocated and nobody else knows it.
        unsafe {
            arena.init_link(head + BEFORE, HEAD.0);
            for level in 0..HEIGHT_MAX as u32 {
                arena.init_link(head + NEXT + 4 * level, NULL.0);
            }
        }
        SkipList {
            arena,
            height: AtomicU32::new(1),
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
            *splice = Splice { list: self.id, ..Splice::new() };
        }
        let target = Target::new(key);
        let list_height = self.raise_height(height);
        self.locate(&target, list_height, splice);
        if self.holds(splice.prev[0], key) || self.holds(splice.next[0], key) {
            return Err(Duplicate);
        }
        let node = self.new_node(&target, value, height, reserved);
        for level in 0..height {
            loop {
                let (prev, next) = (splice.prev[level], splice.next[level]);
                // SAFETY: the fields lie in the new node, which has this level. Nobody accesses `before` until the node is linked on
                // level 0, nor a link of level l until it is linked on level l, which is what follows.
                unsafe {
                    if level == 0 {
                        self.arena.init_link(node.0 + BEFORE, prev.0);
                    }
                    self.arena.init_link(node.0 + NEXT + 4 * level as u32, next.0);
                }
                if self.publish(self.next_link(prev, level), next, node) {
                    if level == 0 {
                        self.before_link(next).store(node.0, self.before_ordering());
                    }
                    break;
                }
                // Somebody else linked a node here. Both neighbours are still on either side of ours, so look between them.
                (splice.prev[level], splice.next[level]) = self.walk(&target, level, prev, splice.next[level + 1]);
                if level == 0 && (self.holds(splice.prev[0], key) || self.holds(splice.next[0], key)) {
                    // The node is not linked anywhere: its bytes are lost to the arena, no more.
                    return Err(Duplicate);
                }
            }
        }
        // Ascending inserts find their place right behind this node.
        splice.prev[..height].fill(node);
        Ok(())
    }

    /// Makes the list at least `height` levels high and returns its height.
    fn raise_height(&self, height: usize) -> usize {
        let mut known = self.height.load(Ordering::Relaxed);
        if height > known as usize {
            known = self.height.fetch_max(height as u32, Ordering::Relaxed).max(height as u32);
        }
        known as usize
    }

    /// Moves the splice around `target` on all levels, starting from what it remembers.
    fn locate(&self, target: &Target<'_>, list_height: usize, splice: &mut Splice) {
        // The lowest level whose remembered neighbours are still neighbours and have the target between them. The cost is
        // logarithmic in the distance from the last insert (RocksDB pull request 1561).
        let mut level = 0;
        while level < list_height {
            let (prev, next) = (splice.prev[level], splice.next[level]);
            if self.next(prev, level) == next
                && (prev == HEAD || self.is_before(prev, target))
                && (next == NULL || !self.is_before(next, target))
            {
                break;
            }
            level += 1;
        }
        if level == list_height {
            // No insert has written on this level of the splice; say so again rather than rely on it.
            (splice.prev[level], splice.next[level]) = (HEAD, NULL);
        }
        while level > 0 {
            level -= 1;
            (splice.prev[level], splice.next[level]) =
                self.walk(target, level, splice.prev[level + 1], splice.next[level + 1]);
        }
    }

    /// Writes a node that nobody knows yet.
    fn new_node(&self, target: &Target<'_>, value: &[u8], height: usize, reserved: &mut Reserved) -> Node {
        let key = target.key.user_key;
        assert!(key.len() <= KEY_BYTES_MAX, "the engine refuses longer keys");
        let value_len = u32::try_from(value.len()).expect("the engine refuses values of 4 GiB");
        let node = self.arena.allocate(reserved, node_bytes(height, key.len(), value.len()));
        let shape = u64::from(value_len) | (key.len() as u64) << 32 | (height as u64) << 48;
        let bytes = node + NEXT + 4 * height as u32;
        // SAFETY: all of it lies in the node that was just allocated (`node_bytes` is the sum of these parts) and nobody else
        // knows it. Allocations are aligned to 8, and so are the three numbers in them.
        unsafe {
            self.arena.write(node, target.head);
            self.arena.write(node + TRAILER, target.key.trailer.0);
            self.arena.write(node + SHAPE, shape);
            self.arena.write_bytes(bytes, key);
            self.arena.write_bytes(bytes + key.len() as u32, value);
        }
        Node(node)
    }

    /// Puts `node` in the place of `expected`, unless that is no longer there.
    #[inline]
    fn publish(&self, link: &AtomicU32, expected: Node, node: Node) -> bool {
        #[cfg(any(loom, shuttle))]
        match self.plant {
            Plant::RelaxedPublish => {
                return link.compare_exchange(expected.0, node.0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            }
            Plant::StoreInsteadOfSwap => {
                link.store(node.0, Ordering::Release);
                return true;
            }
            _ => {}
        }
        // Release: the node's content goes before. Failure may be Relaxed because the level is then walked again with Acquire.
        link.compare_exchange(expected.0, node.0, Ordering::Release, Ordering::Relaxed).is_ok()
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
    fn next_link(&self, node: Node, level: usize) -> &AtomicU32 {
        // SAFETY: a node that is reached on this level has it, and was initialised before it was published (see the invariants).
        unsafe { self.arena.link(node.0 + NEXT + 4 * level as u32) }
    }

    /// The field `before` of a node; for `NULL` that of the end, which the first node keeps.
    #[inline]
    fn before_link(&self, node: Node) -> &AtomicU32 {
        let holder = if node == NULL { HEAD } else { node };
        // SAFETY: every node has the field and was initialised before it was published.
        unsafe { self.arena.link(holder.0 + BEFORE) }
    }

    /// The node after `node` on a level that it has.
    #[inline]
    pub(super) fn next(&self, node: Node, level: usize) -> Node {
        Node(self.next_link(node, level).load(self.follow_ordering()))
    }

    /// The first node.
    pub(super) fn first(&self) -> Node {
        self.next(HEAD, 0)
    }

    /// The node before `node` ([`NULL`]: before the end), or [`HEAD`].
    pub(super) fn prev(&self, node: Node) -> Node {
        let link = self.before_link(node);
        let hint = Node(link.load(Ordering::Acquire));
        #[cfg(any(loom, shuttle))]
        if self.plant == Plant::TrustBefore {
            return hint;
        }
        let mut prev = hint;
        loop {
            let next = self.next(prev, 0);
            if next == node {
                break;
            }
            debug_assert!(next != NULL, "a node is on level 0 before anyone can reach it");
            prev = next;
        }
        if prev != hint {
            // Another thread may set it to a different node at the same time; either is less than `node`. Release, because the
            // next reader reaches `prev` by it.
            link.store(prev.0, self.before_ordering());
        }
        prev
    }

    /// The last node before `target` (or [`HEAD`]) and the first at or after it (or [`NULL`]).
    #[inline]
    pub(super) fn seek(&self, target: &Target<'_>) -> (Node, Node) {
        let mut level = self.height.load(Ordering::Relaxed) as usize;
        let (mut prev, mut next) = (HEAD, NULL);
        while level > 0 {
            level -= 1;
            (prev, next) = self.walk(target, level, prev, next);
        }
        (prev, next)
    }

    /// Goes right on one level, from `prev`, which is before `target`, to the last node before it and the one after that. `limit` is known
    /// not to be before it, so that it need not be compared again.
    #[inline]
    fn walk(&self, target: &Target<'_>, level: usize, mut prev: Node, limit: Node) -> (Node, Node) {
        loop {
            let next = self.next(prev, level);
            if next == limit || next == NULL {
                return (prev, next);
            }
            #[cfg(not(any(loom, shuttle)))]
            if level > 0 {
                // Where the search goes if it does not go right. Both nodes then come from memory at the same time.
                self.arena.prefetch(self.next_link(prev, level - 1).load(Ordering::Relaxed));
            }
            if !self.is_before(next, target) {
                return (prev, next);
            }
            prev = next;
        }
    }

    /// True if `node`, a real one, is less than `target`.
    #[inline]
    fn is_before(&self, node: Node, target: &Target<'_>) -> bool {
        // SAFETY: a published node is initialised and its numbers never change.
        let head = unsafe { self.arena.read::<u64>(node.0) };
        if head == target.head { self.is_before_in_full(node, target) } else { head < target.head }
    }

    fn is_before_in_full(&self, node: Node, target: &Target<'_>) -> bool {
        let key = self.user_key(node);
        // The first eight bytes, padded with zeros, are equal. If the rest is too, the shorter key is a prefix of the longer.
        let rest = |key: &[u8]| key.len().min(8);
        match key[rest(key)..].cmp(&target.key.user_key[rest(target.key.user_key)..]) {
            std::cmp::Ordering::Equal => {}
            order => return order.is_lt(),
        }
        match key.len().cmp(&target.key.user_key.len()) {
            std::cmp::Ordering::Equal => self.trailer(node) > target.key.trailer,
            order => order.is_lt(),
        }
    }

    /// True if `node` is an entry of this user key and version.
    fn holds(&self, node: Node, key: InternalKey<'_>) -> bool {
        node != HEAD
            && node != NULL
            && self.trailer(node).version() == key.trailer.version()
            && self.user_key(node) == key.user_key
    }

    #[inline]
    fn trailer(&self, node: Node) -> Trailer {
        // SAFETY: a published node, and not `HEAD` or `NULL`, as all callers check: initialised and unchanging.
        Trailer(unsafe { self.arena.read::<u64>(node.0 + TRAILER) })
    }

    /// Where the key begins, its length, and the length of the value, which follows it.
    #[inline]
    fn shape(&self, node: Node) -> (u32, usize, usize) {
        debug_assert!(node != HEAD && node != NULL, "the first node and the end have no key");
        // SAFETY: as for `trailer`.
        let shape = unsafe { self.arena.read::<u64>(node.0 + SHAPE) };
        let height = (shape >> 48) as u32;
        (node.0 + NEXT + 4 * height, (shape >> 32 & 0xFFFF) as usize, (shape & 0xFFFF_FFFF) as usize)
    }

    #[inline]
    fn user_key(&self, node: Node) -> &[u8] {
        let (start, key_len, _) = self.shape(node);
        // SAFETY: the node was published with a key of this length here.
        unsafe { self.arena.bytes(start, key_len) }
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
        unsafe { self.arena.bytes(start + key_len as u32, value_len) }
    }

    /// The newest entry of `user_key` that a reader at `at` sees.
    #[inline]
    pub(super) fn newest(&self, user_key: &[u8], at: Version) -> Option<Node> {
        let (_, node) = self.seek(&Target::new(InternalKey::seek(user_key, at)));
        (node != NULL && self.user_key(node) == user_key).then_some(node)
    }

    /// Panics if an invariant does not hold. Only while nobody inserts.
    pub(super) fn check(&self) {
        let mut below: Option<Vec<u32>> = None;
        for level in 0..HEIGHT_MAX {
            let mut nodes = Vec::new();
            let mut node = self.next(HEAD, level);
            while node != NULL {
                if let Some(&last) = nodes.last() {
                    let (last, key) = (self.key(Node(last)), self.key(node));
                    assert!(last < key, "each level is sorted: {last:?} before {key:?} on level {level}");
                    let twice = last.user_key == key.user_key && last.trailer.version() == key.trailer.version();
                    assert!(!twice, "one user key and version occurs at most once: {key:?}");
                }
                nodes.push(node.0);
                node = self.next(node, level);
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
            assert!(
                nodes.is_empty() || level < self.height.load(Ordering::Relaxed) as usize,
                "the height covers all levels"
            );
            below = Some(nodes);
        }
    }
}
