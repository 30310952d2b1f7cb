//! Cursors over a memtable's entries.
//!
//! A cursor sees every entry that was inserted before it moved, and perhaps some that are inserted while it does. It reads at
//! no version: the visible iterator above it picks. Once on an entry it stays valid, because entries never go away.

use std::ops::Deref;
use std::sync::Arc;

use super::Memtable;
use super::skiplist::{HEAD, NULL, Node};
use crate::error::Result;
use crate::iter::PointIterator;
use crate::key::InternalKey;

/// A cursor that borrows its memtable.
pub type MemtableIterator<'a> = Cursor<&'a Memtable>;

/// A cursor that keeps its memtable alive.
pub type OwnedMemtableIterator = Cursor<Arc<Memtable>>;

/// See [`MemtableIterator`] and [`OwnedMemtableIterator`]: the two that can be made.
#[derive(Debug)]
pub struct Cursor<M> {
    memtable: M,
    /// Invariant: of `memtable`'s list; never `HEAD`, so that `NULL` alone means not valid.
    node: Node,
}

impl<M: Deref<Target = Memtable>> Cursor<M> {
    // Not public: `M` must lead to the same memtable every time, as a reference and an `Arc` do.
    pub(super) fn new(memtable: M) -> Cursor<M> {
        Cursor { memtable, node: NULL }
    }

    fn place(&mut self, node: Node) {
        self.node = if node == HEAD { NULL } else { node };
    }
}

impl<M: Deref<Target = Memtable>> PointIterator for Cursor<M> {
    #[inline]
    fn valid(&self) -> bool {
        self.node != NULL
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.node = self.memtable.list.first();
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.place(self.memtable.list.prev(NULL));
        Ok(())
    }

    fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.node = self.memtable.list.seek(target).1;
        Ok(())
    }

    fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.place(self.memtable.list.seek(target).0);
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        assert!(self.valid(), "next is for a cursor that is on an entry");
        self.node = self.memtable.list.next(self.node, 0);
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        assert!(self.valid(), "prev is for a cursor that is on an entry");
        self.place(self.memtable.list.prev(self.node));
        Ok(())
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        assert!(self.valid(), "only an entry has a key");
        self.memtable.list.key(self.node)
    }

    #[inline]
    fn value(&self) -> &[u8] {
        assert!(self.valid(), "only an entry has a value");
        self.memtable.list.value(self.node)
    }
}
