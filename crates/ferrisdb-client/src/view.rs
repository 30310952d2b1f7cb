//! [`View`]: the key space as a read sees it, the snapshot under the overlay, walked in either direction.
//!
//! A walk goes from stretch to stretch of the overlay: where all is cleared only the transaction's own keys count, where a versionstamp
//! decides it fails, and everywhere else rows come from the database in parts and are merged with the transaction's own.

use std::sync::Arc;

use ferrisdb_core::key::key_after;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, KeyValue, Result, Version};
use ferrisdb_rpc::Endpoint;
use ferrisdb_rpc::api::{GetKeyRequest, GetRangeRequest, Rows};

use crate::overlay::{Overlay, Stretch};
use crate::state::Inner;

/// Bytes that a row counts for beside its key and value.
pub(crate) const ROW_OVERHEAD_BYTES: u64 = 8;
/// A walk that got nothing out of the rows that it asked for asks for twice as many, so often at most.
const DOUBLINGS_MAX: u32 = 10;

/// As of when a view reads.
pub(crate) enum At {
    Version(Version),
    /// At the transaction's read version, which is asked for when it is needed.
    Transaction {
        inner: Arc<Inner>,
        epoch: u64,
    },
}

/// See the module's documentation.
pub(crate) struct View {
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) at: At,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) bypass_unreadable: bool,
    pub(crate) value_bytes_max: usize,
    /// The end of what may be read.
    pub(crate) end: Bytes,
}

/// How much a walk may return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Rows; `None`: all.
    pub(crate) rows: Option<u32>,
    /// Bytes, of which the last row may exceed what is left; `None`: all.
    pub(crate) bytes: Option<u64>,
}

impl Budget {
    fn rows(rows: u32) -> Budget {
        Budget { rows: Some(rows), bytes: None }
    }

    /// Takes a row out, and says whether that was the last that may be returned.
    fn spend(&mut self, row: &KeyValue) -> bool {
        let cost = ROW_OVERHEAD_BYTES + (row.key.len() + row.value.len()) as u64;
        self.rows = self.rows.map(|rows| rows.saturating_sub(1));
        self.bytes = self.bytes.map(|bytes| bytes.saturating_sub(cost));
        self.rows == Some(0) || self.bytes == Some(0)
    }
}

/// Where a selector leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before all keys.
    Front,
    Key(Bytes),
    /// Behind all keys that may be read.
    End,
}

impl View {
    /// Up to `budget`'s rows of `begin..end`, ascending, or descending if `reverse`. True: the budget is spent, and there may be more.
    pub(crate) async fn walk(
        &self,
        range: KeyRange,
        reverse: bool,
        mut budget: Budget,
        rows: &mut Vec<KeyValue>,
    ) -> Result<bool> {
        let KeyRange { mut begin, mut end } = range;
        let mut doublings = 0;
        while begin < end {
            let stretch = if reverse {
                self.overlay.stretch_before(&end, &begin, self.bypass_unreadable)
            } else {
                self.overlay.stretch_after(&begin, &end, self.bypass_unreadable)
            };
            let (bound, is_cleared) = match stretch {
                Stretch::Unreadable => return Err(unreadable()),
                Stretch::Cleared(bound) => (bound, true),
                Stretch::Snapshot(bound) => (bound, false),
            };
            // The stretch, which is then replaced by the part of it that is known.
            let (mut from, mut to) = if reverse { (bound, end.clone()) } else { (begin.clone(), bound) };
            let mut found = Vec::new();
            if !is_cleared {
                let asked = KeyRange { begin: from.clone(), end: to.clone() };
                let part = self.ask(asked, reverse, &budget, doublings).await?;
                if part.more {
                    match part.rows.last() {
                        Some(last) if reverse => from = last.key.clone(),
                        Some(last) => to = key_after(&last.key),
                        None => return Err(Error::with(Code::InternalError, "a part of a range had no rows but more")),
                    }
                }
                found = part.rows;
            }
            let rows_before = rows.len();
            if self.merge(found, &from, &to, reverse, &mut budget, rows) {
                return Ok(true);
            }
            doublings = if rows.len() > rows_before { 0 } else { (doublings + 1).min(DOUBLINGS_MAX) };
            if reverse {
                end = from;
            } else {
                begin = to;
            }
        }
        Ok(false)
    }

    /// The key at a place. `selector` has no `or_equal`.
    pub(crate) async fn resolve(&self, selector: &KeySelector) -> Result<Place> {
        debug_assert!(!selector.or_equal);
        if self.overlay.is_transparent() {
            let version = self.version().await?;
            let request = GetKeyRequest { selector: selector.clone(), end: self.end.clone(), version };
            let key = self.endpoint.get_key(request).await?;
            return Ok(if selector.offset <= 0 && key.is_empty() {
                Place::Front
            } else if selector.offset > 0 && key >= self.end {
                Place::End
            } else {
                // Backwards it can lead beyond what may be read only if the selector does.
                Place::Key(key.min(self.end.clone()))
            });
        }
        let reverse = selector.offset <= 0;
        let steps =
            if reverse { selector.offset.unsigned_abs().saturating_add(1) } else { selector.offset.unsigned_abs() };
        let steps = if reverse && planted(Bug::BackwardSelectorOffByOne) { (steps - 1).max(1) } else { steps };
        let range = if reverse {
            KeyRange { begin: Bytes::new(), end: selector.key.clone() }
        } else {
            KeyRange { begin: selector.key.clone(), end: self.end.clone() }
        };
        let mut rows = Vec::new();
        self.walk(range, reverse, Budget::rows(steps), &mut rows).await?;
        Ok(match rows.pop() {
            Some(row) if rows.len() + 1 == steps as usize => Place::Key(row.key),
            _ if reverse => Place::Front,
            _ => Place::End,
        })
    }

    /// Merges rows of the snapshot, all there are in `from..to`, with the transaction's own. True once the budget is spent.
    fn merge(
        &self,
        found: Vec<KeyValue>,
        from: &Bytes,
        to: &Bytes,
        reverse: bool,
        budget: &mut Budget,
        rows: &mut Vec<KeyValue>,
    ) -> bool {
        if self.overlay.is_transparent() {
            for row in found {
                let is_last = budget.spend(&row);
                rows.push(row);
                if is_last {
                    return true;
                }
            }
            return false;
        }
        let mut own: Box<dyn Iterator<Item = _>> = if reverse {
            Box::new(self.overlay.entries_in(from, to).rev())
        } else {
            Box::new(self.overlay.entries_in(from, to))
        };
        let mut found = found.into_iter().filter(|row| !self.overlay.is_cleared(&row.key));
        let (mut next_own, mut next_found) = (own.next(), found.next());
        loop {
            let row = match (next_own, next_found.take()) {
                (None, None) => return false,
                (Some((key, entry)), row) => {
                    let is_behind = |row: &KeyValue| if reverse { row.key < *key } else { row.key > *key };
                    match row {
                        Some(row) if !is_behind(&row) && row.key != *key => {
                            next_own = Some((key, entry));
                            next_found = found.next();
                            Some(row)
                        }
                        other => {
                            let (below, rest) = match other {
                                Some(row) if row.key == *key => (Some(row.value), found.next()),
                                other => (None, other),
                            };
                            let value = entry.fold(below, self.value_bytes_max);
                            next_own = own.next();
                            next_found = rest;
                            // A key that its own operations made disappear is skipped.
                            value.map(|value| KeyValue { key: key.clone(), value })
                        }
                    }
                }
                (None, Some(row)) => {
                    next_own = None;
                    next_found = found.next();
                    Some(row)
                }
            };
            if let Some(row) = row {
                let is_last = budget.spend(&row);
                rows.push(row);
                if is_last {
                    return true;
                }
            }
        }
    }

    /// Rows of the snapshot.
    async fn ask(&self, range: KeyRange, reverse: bool, budget: &Budget, doublings: u32) -> Result<Rows> {
        let version = self.version().await?;
        let request = GetRangeRequest {
            range,
            version,
            limit: budget.rows.map_or(0, |rows| rows.saturating_mul(1 << doublings)),
            target_bytes: budget.bytes.map_or(0, |bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
            reverse,
        };
        self.endpoint.get_range(request).await
    }

    pub(crate) async fn version(&self) -> Result<Version> {
        match &self.at {
            At::Version(version) => Ok(*version),
            At::Transaction { inner, epoch } => inner.version(*epoch).await,
        }
    }
}

pub(crate) fn unreadable() -> Error {
    Error::new(Code::AccessedUnreadable)
}
