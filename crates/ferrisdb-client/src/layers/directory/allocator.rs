//! Short prefixes, given out to many at once without meeting: FoundationDB's high-contention allocator.
//!
//! Numbers are taken at random from a window that is less than half full, so that two transactions seldom choose the same. A counter says how full
//! the window is; it is only added to and read as a snapshot, so that it never conflicts. When the window is half full the next one
//! begins, and what was remembered of the old one is cleared. Windows grow, so that the first prefixes are the shortest.
//!
//! # Keys, below the allocator's subspace
//!   (0, start) → how many were taken from the window that begins at `start`, i64, little-endian
//!   (1, number) → '': taken

use ferrisdb_core::{Bytes, Code, Error, KeyRange, MutationKind, Random, Result, SplitMix64};

use crate::layers::Subspace;
use crate::layers::tuple::{Element, Tuple};
use crate::transaction::ConflictRangeType;
use crate::{RangeOptions, Transaction, TransactionOption};

pub(super) struct Allocator {
    counters: Subspace,
    recent: Subspace,
}

impl Allocator {
    pub(super) fn new(subspace: &Subspace) -> Allocator {
        Allocator { counters: subspace.subspace((0,)), recent: subspace.subspace((1,)) }
    }

    /// A byte string that nobody else gets, and that is nearly as short as can be.
    pub(super) async fn allocate(&self, tx: &Transaction) -> Result<Bytes> {
        let mut random = SplitMix64::new(tx.random());
        loop {
            let start = self.window_with_room(tx).await?;
            let window = window_size(start);
            loop {
                let number = start + i64::try_from(random.below(window.unsigned_abs())).expect("a window is small");
                let key = self.recent.pack((number,));
                // Both reads are asked before the write, and see nothing of it.
                let newest = self.newest_window(tx).await?;
                let taken = tx.get(&key).await?;
                tx.set_option(&TransactionOption::NextWriteNoWriteConflictRange);
                tx.set(&key, b"");
                if newest.is_some_and(|newest| newest > start) {
                    // The window has moved on meanwhile, and what was remembered of this one may be cleared.
                    break;
                }
                if taken.is_none() {
                    tx.add_conflict_range(KeyRange::single(&key), ConflictRangeType::Write)?;
                    return Ok(Tuple::from((number,)).pack());
                }
            }
        }
    }

    async fn window_with_room(&self, tx: &Transaction) -> Result<i64> {
        let mut start = self.newest_window(tx).await?.unwrap_or(0);
        let mut has_advanced = false;
        loop {
            let counter = self.counters.pack((start,));
            if has_advanced {
                tx.clear_range(self.counters.prefix(), &counter);
                tx.set_option(&TransactionOption::NextWriteNoWriteConflictRange);
                tx.clear_range(self.recent.prefix(), self.recent.pack((start,)));
            }
            tx.atomic_op(&counter, 1i64.to_le_bytes(), MutationKind::Add);
            let count = tx.snapshot().get(&counter).await?;
            let count = match count.as_deref().map(<[u8; 8]>::try_from) {
                None => 0,
                Some(Ok(bytes)) => i64::from_le_bytes(bytes),
                Some(Err(_)) => return Err(damaged("a counter of the prefix allocator has not eight bytes")),
            };
            let window = window_size(start);
            if count.saturating_mul(2) < window {
                return Ok(start);
            }
            start += window;
            has_advanced = true;
        }
    }

    async fn newest_window(&self, tx: &Transaction) -> Result<Option<i64>> {
        let newest = RangeOptions::from(self.counters.range()).limit(1).reverse(true);
        let rows = tx.snapshot().get_range(newest).await?.rows;
        let Some(row) = rows.first() else { return Ok(None) };
        match self.counters.unpack(&row.key)?.elements() {
            [Element::Int(start)] if *start >= 0 => Ok(Some(*start)),
            _ => Err(damaged("a key of the prefix allocator is not one number")),
        }
    }
}

fn damaged(what: &str) -> Error {
    Error::with(Code::InvalidDirectoryLayerMetadata, what)
}

/// Larger windows are better for many at once, smaller ones keep the first prefixes short.
fn window_size(start: i64) -> i64 {
    match start {
        ..255 => 64,
        255..65_535 => 1024,
        _ => 8192,
    }
}
