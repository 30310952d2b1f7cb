//! What a transaction sees: worked out from the state that it reads and the list of what it did.

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::key::key_after;
use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, KeyValue, MutationKind};

use super::arithmetic;

/// The end of what an ordinary transaction reads.
pub(super) const END: &[u8] = b"\xff";
/// The end of what a transaction with system keys reads.
pub(super) const SYSTEM_END: &[u8] = b"\xff\xff";
/// The system keys that begin so are the programs' alone, and lie between their ordinary keys and everything that is not theirs.
pub(super) const SYSTEM_PREFIX: &[u8] = b"\xff\x00";
/// Behind this there are keys of the database's own, of which the model knows nothing: the **fog**. Whoever reads system keys may get into it.
pub(crate) const FOG: &[u8] = b"\xff\x02";
/// The key in the fog that the model knows: anybody reads it, and writes it in one way.
pub(crate) const METADATA_VERSION: &[u8] = b"\xff/metadataVersion";

/// One write of a transaction, as far as reading goes.
#[derive(Debug, Clone)]
pub(super) enum Own {
    Set(Bytes, Bytes),
    Clear(KeyRange),
    Atomic(MutationKind, Bytes, Bytes),
    /// The keys in it (one, or all that a versionstamped key may become) are unreadable from here on. One key has its template for a value, for those
    /// who read it all the same.
    Stamped(KeyRange, Option<Bytes>),
}

/// How a key stands within a transaction: section 2 of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unmodified,
    Cleared,
    Independent,
    Dependent,
}

/// A transaction's view of the database.
pub(super) struct View<'a> {
    pub(super) state: &'a BTreeMap<Bytes, Bytes>,
    pub(super) own: &'a [Own],
    /// Option 1100: what a versionstamp decides is as it was before.
    pub(super) bypasses_unreadable: bool,
    /// Where it ends.
    pub(super) end: &'static [u8],
}

/// What a walk over the key space meets.
#[derive(Debug, Clone)]
enum Item {
    Row(KeyValue),
    /// Keys that must not be touched, and where the walk meets them.
    Unreadable(Bytes),
}

impl Item {
    fn place(&self) -> &Bytes {
        match self {
            Item::Row(row) => &row.key,
            Item::Unreadable(place) => place,
        }
    }
}

/// Where a selector leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) key: Bytes,
    pub(super) ran_off_front: bool,
    pub(super) ran_off_end: bool,
}

/// The rows of a range, up to where it becomes unreadable.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) rows: Vec<KeyValue>,
    pub(super) is_cut_by_unreadable: bool,
}

impl View<'_> {
    fn cell(&self, key: &Bytes) -> (Kind, Option<Bytes>) {
        let mut kind = Kind::Unmodified;
        let mut value = self.state.get(key).cloned();
        for own in self.own {
            match own {
                Own::Set(other, new) if other == key => (kind, value) = (Kind::Independent, Some(new.clone())),
                Own::Clear(range) if range.contains(key) => (kind, value) = (Kind::Cleared, None),
                Own::Atomic(operation, other, operand) if other == key => {
                    value = arithmetic::fold(*operation, value.as_ref(), operand);
                    kind = match kind {
                        Kind::Unmodified | Kind::Dependent => Kind::Dependent,
                        Kind::Cleared | Kind::Independent => Kind::Independent,
                    };
                }
                // A versionstamped key says nothing about any one key.
                Own::Stamped(range, Some(template)) if *range == KeyRange::single(key) => {
                    (kind, value) = (Kind::Independent, Some(template.clone()));
                }
                _ => {}
            }
        }
        (kind, value)
    }

    fn unreadable(&self) -> Vec<KeyRange> {
        let mut ranges: Vec<KeyRange> = Vec::new();
        if self.bypasses_unreadable {
            return ranges;
        }
        for own in self.own {
            match own {
                Own::Stamped(range, _) => ranges.push(range.clone()),
                Own::Clear(cleared) if !cleared.is_empty() => {
                    ranges = ranges
                        .into_iter()
                        .flat_map(|range| {
                            let before =
                                KeyRange::new(range.begin.clone(), range.end.clone().min(cleared.begin.clone()));
                            let behind = KeyRange::new(range.begin.max(cleared.end.clone()), range.end);
                            [before, behind]
                        })
                        .filter(|range| !range.is_empty())
                        .collect();
                }
                _ => {}
            }
        }
        ranges
    }

    fn is_unreadable(&self, key: &[u8]) -> bool {
        self.unreadable().iter().any(|range| range.contains(key))
    }

    /// True if a versionstamp decides anything.
    pub(super) fn has_unreadable(&self) -> bool {
        !self.unreadable().is_empty()
    }

    /// One key's value.
    pub(super) fn get(&self, key: &Bytes) -> Result<Option<Bytes>, Code> {
        if self.is_unreadable(key) { Err(Code::AccessedUnreadable) } else { Ok(self.cell(key).1) }
    }

    /// Everything in `begin..end` before the fog, in ascending order of place. Met from above, an unreadable range lies at its end.
    fn items(&self, begin: &Bytes, end: &Bytes, reverse: bool) -> Vec<Item> {
        let end = end.min(&Bytes::from_static(FOG)).clone();
        if *begin >= end {
            return Vec::new();
        }
        let own_keys = self.own.iter().filter_map(|own| match own {
            Own::Set(key, _) | Own::Atomic(_, key, _) => Some(key.clone()),
            Own::Stamped(range, Some(_)) => Some(range.begin.clone()),
            Own::Clear(_) | Own::Stamped(_, None) => None,
        });
        let keys: BTreeSet<Bytes> = self.state.keys().cloned().chain(own_keys).collect();
        let mut items: Vec<Item> = keys
            .into_iter()
            .filter(|key| begin <= key && *key < end && !self.is_unreadable(key))
            .filter_map(|key| self.cell(&key).1.map(|value| Item::Row(KeyValue { key, value })))
            .collect();
        for range in self.unreadable() {
            if range.intersects(&KeyRange::new(begin.clone(), end.clone())) {
                let place = if reverse { range.end.min(end.clone()) } else { range.begin.max(begin.clone()) };
                items.push(Item::Unreadable(place));
            }
        }
        // Of two at one place: going up, the unreadable range begins with that key; going down, it ends before it.
        items.sort_by(|a, b| {
            let is_row = |item: &Item| matches!(item, Item::Row(_));
            a.place().cmp(b.place()).then(is_row(a).cmp(&is_row(b)))
        });
        if reverse {
            items.reverse();
        }
        items
    }

    /// The rows of a range in the order asked for.
    pub(super) fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool) -> Scan {
        let mut rows = Vec::new();
        if begin < end {
            for item in self.items(begin, end, reverse) {
                match item {
                    Item::Row(row) => rows.push(row),
                    Item::Unreadable(_) => return Scan { rows, is_cut_by_unreadable: true },
                }
            }
        }
        Scan { rows, is_cut_by_unreadable: false }
    }

    /// Where a selector leads: section 3.
    pub(super) fn resolve(&self, selector: &KeySelector) -> Result<Resolved, Code> {
        let start = if selector.or_equal { key_after(&selector.key) } else { selector.key.clone() };
        let forward = selector.offset >= 1;
        let (begin, end, nth) = if forward {
            (start, Bytes::from_static(self.end), selector.offset)
        } else {
            (Bytes::new(), start.min(Bytes::from_static(self.end)), 1 - selector.offset)
        };
        let mut left = nth;
        let scan = if begin < end { self.items(&begin, &end, !forward) } else { Vec::new() };
        for item in scan {
            match item {
                Item::Unreadable(_) => return Err(Code::AccessedUnreadable),
                Item::Row(row) => {
                    left -= 1;
                    if left == 0 {
                        return Ok(Resolved { key: row.key, ran_off_front: false, ran_off_end: false });
                    }
                }
            }
        }
        // With system keys that is behind the fog: somewhere in it, that is.
        let key = if forward { Bytes::from_static(self.end) } else { Bytes::new() };
        Ok(Resolved { key, ran_off_front: !forward, ran_off_end: forward })
    }

    /// The parts of `range` whose reading depends on what others write: those that are unmodified or dependent.
    pub(super) fn depends_on(&self, range: &KeyRange) -> Vec<KeyRange> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut borders = BTreeSet::from([range.begin.clone(), range.end.clone()]);
        for own in self.own {
            match own {
                Own::Set(key, _) | Own::Atomic(_, key, _) => borders.extend([key.clone(), key_after(key)]),
                Own::Clear(range) | Own::Stamped(range, _) => borders.extend([range.begin.clone(), range.end.clone()]),
            }
        }
        let borders: Vec<Bytes> = borders.range(range.begin.clone()..=range.end.clone()).cloned().collect();
        borders
            .windows(2)
            .filter(|pair| matches!(self.cell(&pair[0]).0, Kind::Unmodified | Kind::Dependent))
            .map(|pair| KeyRange::new(pair[0].clone(), pair[1].clone()))
            .collect()
    }
}
