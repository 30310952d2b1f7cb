//! The searches for several keys at once: while one waits for memory, the others go on.
//!
//! A search is a chain of cache misses (`skiplist.rs`), and a processor that follows one chain waits for most of that time. It can have some ten misses
//! under way. So the keys of a batch are searched for in *lanes* that take turns: each goes on until it needs a node that it has just asked
//! for, and comes again when the others have had their turn. (Kocberber, Falsafi and Grot: "Asynchronous Memory Access Chaining", VLDB 2015; without
//! their ring of states, since a lane's state is a level and two links.)
//!
//! What a lane finds is a [`Splice`], and the insert that follows takes it as it takes any: as a memory that may be out of date, and is checked. So the entries of
//! one batch may become neighbours of one another, and other threads may insert at the same time.

use super::skiplist::{Link, NULL, SkipList, Splice, Target};

/// Searches at once: more than a processor has misses under way gains nothing. (Model checking pays for each.)
pub(super) const LANES: usize = if cfg!(any(loom, shuttle)) { 2 } else { 12 };

/// One search, between its turns.
#[derive(Debug, Clone, Copy)]
struct Lane<'a> {
    target: Target<'a>,
    level: usize,
    /// The last node known to be before the target.
    prev: Link,
    /// A node on this level that is known not to be before it, or the end.
    limit: Link,
    /// The node whose key was asked for on the last turn.
    awaited: Link,
}

impl SkipList {
    /// Puts each of `splices` around the target with its number. At most [`LANES`].
    pub(super) fn locate_all(&self, targets: &[Target<'_>], splices: &mut [Splice]) {
        let height = self.height();
        let Some(first) = targets.first() else { return };
        let start =
            Lane { target: *first, level: height, prev: Link::TO_HEAD, limit: Link::TO_NULL, awaited: Link::TO_NULL };
        let mut lanes = [start; LANES];
        let mut under_way = [0; LANES];
        for (number, (target, splice)) in targets.iter().zip(&mut *splices).enumerate() {
            lanes[number].target = *target;
            under_way[number] = number;
            *splice = Splice::of(self.id());
        }
        let mut count = targets.len();
        while count > 0 {
            let mut turn = 0;
            while turn < count {
                let number = under_way[turn];
                if self.take_turn(&mut lanes[number], &mut splices[number]) {
                    count -= 1;
                    under_way[turn] = under_way[count];
                } else {
                    turn += 1;
                }
            }
        }
    }

    /// Goes on until the lane needs what it has to ask memory for (false), or its search is over.
    #[inline]
    fn take_turn(&self, lane: &mut Lane<'_>, splice: &mut Splice) -> bool {
        while lane.level > 0 {
            let level = lane.level - 1;
            let next = self.next_of(lane.prev.node(), level);
            let is_known = next == lane.limit || next.node() == NULL;
            if !is_known && next != lane.awaited && next.hint() == lane.target.hint {
                lane.awaited = next;
                self.prefetch_key(next.node());
                return false;
            }
            if !is_known && self.is_before(next, &lane.target) {
                lane.prev = next;
                self.prefetch_link(next.node(), level);
                return false;
            }
            splice.set(level, lane.prev, next);
            lane.limit = next;
            lane.level = level;
        }
        true
    }
}
