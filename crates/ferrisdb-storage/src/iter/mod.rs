//! Cursors over entries, and how they are stacked.
//!
//! Every sorted source (memtable, table, level) gives a [`PointIterator`] over its point entries in internal-key order.
//! The merging iterator makes one of many; the visible iterator picks, per user key, what a reader at one version sees.

pub(crate) mod cover;
pub(crate) mod merging;
pub(crate) mod visible;

use crate::error::Result;
use crate::key::InternalKey;

/// A cursor over point entries in internal-key order (user key ascending, newest version first).
///
/// A new cursor is not valid. Every moving call leaves it on an entry (`valid`) or past one of the ends (not valid). After an
/// error, [`WouldRead`](crate::Error::WouldRead) included, it is not valid and must be placed by a seek again.
pub trait PointIterator {
    /// True while the cursor is on an entry.
    fn valid(&self) -> bool;

    /// To the first entry.
    fn seek_to_first(&mut self) -> Result<()>;

    /// To the last entry.
    fn seek_to_last(&mut self) -> Result<()>;

    /// To the first entry at or after `target`.
    fn seek(&mut self, target: InternalKey<'_>) -> Result<()>;

    /// To the last entry before `target`.
    fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()>;

    /// To the next entry. Only while valid.
    fn next(&mut self) -> Result<()>;

    /// To the entry before. Only while valid.
    fn prev(&mut self) -> Result<()>;

    /// The entry's key. Only while valid.
    fn key(&self) -> InternalKey<'_>;

    /// The entry's value: a value, an encoded blob pointer, or nothing for a tombstone. Only while valid.
    fn value(&self) -> &[u8];
}
