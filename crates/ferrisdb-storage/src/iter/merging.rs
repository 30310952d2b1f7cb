//! [`MergingIterator`]: one sorted cursor over many.
//!
//! The sources' current entries stand in a binary heap with the heads of their keys beside them, so that most comparisons are of
//! two numbers. Sources are given newest first; a source's place in that order is its rank, and the layer above uses ranks to
//! skip what a newer source's range tombstone hides in older ones.
//!
//! A merging iterator goes one way at a time: forward after `seek_to_first` and `seek`, backward after `seek_to_last` and
//! `seek_before`. Turning round is a new seek, which the layer above does.

use std::cmp::Ordering;

use super::PointIterator;
use crate::error::Result;
use crate::key::{InternalKey, key_head};

pub(crate) struct MergingIterator<I> {
    sources: Vec<I>,
    /// Invariant: exactly the valid sources, in heap order for the direction, each head that of its source's current key.
    heap: Vec<Entry>,
    forward: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    head: u64,
    rank: usize,
}

impl<I: PointIterator> MergingIterator<I> {
    /// Over `sources`, newest first. Not valid until a seek.
    pub(crate) fn new(sources: Vec<I>) -> MergingIterator<I> {
        let heap = Vec::with_capacity(sources.len());
        MergingIterator { sources, heap, forward: true }
    }

    pub(crate) fn sources_mut(&mut self) -> impl Iterator<Item = &mut I> {
        self.sources.iter_mut()
    }

    /// The rank of the source that holds the current entry.
    #[inline]
    pub(crate) fn rank(&self) -> Option<usize> {
        self.heap.first().map(|entry| entry.rank)
    }

    #[inline]
    pub(crate) fn valid(&self) -> bool {
        !self.heap.is_empty()
    }

    #[inline]
    pub(crate) fn key(&self) -> InternalKey<'_> {
        self.sources[self.heap[0].rank].key()
    }

    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        self.sources[self.heap[0].rank].value()
    }

    pub(crate) fn seek_to_first(&mut self) -> Result<()> {
        self.place_all(true, |source| source.seek_to_first())
    }

    pub(crate) fn seek_to_last(&mut self) -> Result<()> {
        self.place_all(false, |source| source.seek_to_last())
    }

    pub(crate) fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.place_all(true, |source| source.seek(target))
    }

    pub(crate) fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.place_all(false, |source| source.seek_before(target))
    }

    /// To the next entry; only while valid and going forward.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<()> {
        debug_assert!(self.forward, "turning round is a seek");
        let rank = self.heap[0].rank;
        let moved = self.sources[rank].next();
        self.settle_top(moved)
    }

    /// To the entry before; only while valid and going backward.
    #[inline]
    pub(crate) fn prev(&mut self) -> Result<()> {
        debug_assert!(!self.forward, "turning round is a seek");
        let rank = self.heap[0].rank;
        let moved = self.sources[rank].prev();
        self.settle_top(moved)
    }

    /// Moves every source of rank above `rank` that stands before `target` to it: those entries are known to be hidden.
    pub(crate) fn skip_older_to(&mut self, rank: usize, target: InternalKey<'_>) -> Result<()> {
        debug_assert!(self.forward, "only going forward");
        self.move_older(rank, |source| if source.key() < target { source.seek(target) } else { Ok(()) })
    }

    /// Moves every source of rank above `rank` that stands at or after `target` to the last entry before it.
    pub(crate) fn skip_older_before(&mut self, rank: usize, target: InternalKey<'_>) -> Result<()> {
        debug_assert!(!self.forward, "only going backward");
        self.move_older(rank, |source| if source.key() >= target { source.seek_before(target) } else { Ok(()) })
    }

    fn move_older(&mut self, rank: usize, mut go: impl FnMut(&mut I) -> Result<()>) -> Result<()> {
        let result = self.sources.iter_mut().skip(rank + 1).filter(|source| source.valid()).try_for_each(&mut go);
        self.rebuild(result)
    }

    fn place_all(&mut self, forward: bool, go: impl FnMut(&mut I) -> Result<()>) -> Result<()> {
        self.forward = forward;
        let result = self.sources.iter_mut().try_for_each(go);
        self.rebuild(result)
    }

    fn rebuild(&mut self, result: Result<()>) -> Result<()> {
        self.heap.clear();
        result?;
        for (rank, source) in self.sources.iter().enumerate() {
            if source.valid() {
                self.heap.push(Entry { head: key_head(source.key().user_key), rank });
            }
        }
        for index in (0..self.heap.len() / 2).rev() {
            self.sift_down(index);
        }
        Ok(())
    }

    #[inline]
    fn settle_top(&mut self, moved: Result<()>) -> Result<()> {
        if let Err(error) = moved {
            // An error leaves no half-placed cursor behind: everything needs a seek.
            self.heap.clear();
            return Err(error);
        }
        let source = &self.sources[self.heap[0].rank];
        if source.valid() {
            self.heap[0].head = key_head(source.key().user_key);
        } else {
            let last = self.heap.pop().expect("the top entry is in the heap");
            match self.heap.first_mut() {
                Some(top) => *top = last,
                None => return Ok(()),
            }
        }
        self.sift_down(0);
        Ok(())
    }

    #[inline]
    fn sift_down(&mut self, mut index: usize) {
        loop {
            let left = 2 * index + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let child = if right < self.heap.len() && self.before(right, left) { right } else { left };
            if !self.before(child, index) {
                return;
            }
            self.heap.swap(child, index);
            index = child;
        }
    }

    /// True if heap place `a` comes out before heap place `b`.
    #[inline]
    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.heap[a], self.heap[b]);
        let order = a.head.cmp(&b.head).then_with(|| self.sources[a.rank].key().cmp(&self.sources[b.rank].key()));
        order == if self.forward { Ordering::Less } else { Ordering::Greater }
    }
}
