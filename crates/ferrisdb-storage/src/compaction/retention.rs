//! Which versions must stay: [`Retention`].
//!
//! Readable are all versions from a floor up, and a set of pinned versions below it. A *boundary* is a pin or the floor. A reader at
//! r sees, of a key, the newest operation at or below r, where a range tombstone that covers the key is an operation too.
//! So an operation at version x may go if every readable r >= x already sees a newer one:
//!
//! ```text
//!  version   3    5    8    9   12   15        pins {4, 10}, floor 13
//!            A    B    C    D    E    F        4 sees A, 10 sees D, 13 sees E, 15 and above see F
//!            keep ──   ──  keep keep keep      B and C may go: no boundary lies in 5..8 or 8..9
//! ```
//!
//! With n the next newer operation on the key (point or range tombstone over it):
//! - **above the floor** everything stays: x itself is readable;
//! - **at or below it**, x stays if and only if the smallest boundary b >= x lies below n.
//!
//! Between two pins however far apart there is at most one operation per key, so an old pin costs one version of each key, not all
//! since.
//!
//! At the bottom (no older data for the key anywhere outside the inputs) more is possible at or below the *lowest* boundary:
//! - a tombstone hides nothing any more: it goes, once what it hides in the inputs goes, which the rule above sees to;
//! - a value's version may become zero, which compresses better: every reader sees it anyway. Not if a range tombstone at or below
//!   its version covers it: should that tombstone stay (its range may reach beyond the bottom), it would hide the value.
//!
//! # Invariants
//! - Boundaries are ascending and distinct; the greatest is the floor.
//!
//! The lowest boundary never goes down (a new pin is at or above the floor or equals a pin), so what was decided with an older
//! `Retention` is never too little.

use ferrisdb_core::Version;

use crate::key::ValueKind;
use crate::planted::{Bug, planted};

/// The readable versions, as of the start of a compaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The pins below the floor, ascending, then the floor.
    boundaries: Box<[Version]>,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stays as it is.
    Keep,
    /// It stays, and may be written with version zero.
    KeepAtZero,
    /// No reader can tell whether it is there.
    Drop,
}

impl Retention {
    /// All versions from `floor` on are readable, and `pins`, in any order; pins at or above the floor change nothing.
    pub fn new(floor: Version, pins: impl IntoIterator<Item = Version>) -> Retention {
        let kept = |pin: &Version| *pin < floor && !planted(Bug::CompactionDropsPinned);
        let mut boundaries: Vec<Version> = pins.into_iter().filter(kept).collect();
        boundaries.push(floor);
        boundaries.sort_unstable();
        boundaries.dedup();
        Retention { boundaries: boundaries.into() }
    }

    /// Every version from here on is readable.
    #[inline]
    pub fn floor(&self) -> Version {
        *self.boundaries.last().expect("the floor is a boundary")
    }

    /// The lowest readable version.
    #[inline]
    pub fn lowest(&self) -> Version {
        self.boundaries[0]
    }

    /// The pins below the floor, ascending.
    pub fn pins(&self) -> &[Version] {
        &self.boundaries[..self.boundaries.len() - 1]
    }

    /// True if a reader may read at `version`.
    pub fn is_readable(&self, version: Version) -> bool {
        version >= self.floor() || self.boundaries.binary_search(&version).is_ok()
    }

    /// True if a readable version lies in `from..to`.
    #[inline]
    pub fn any_readable_in(&self, from: Version, to: Version) -> bool {
        // Above the floor every version is readable.
        to > from
            && (to > self.floor().max(from) || self.first_boundary_from(from).is_some_and(|boundary| boundary < to))
    }

    #[inline]
    fn first_boundary_from(&self, version: Version) -> Option<Version> {
        if version <= self.boundaries[0] {
            return Some(self.boundaries[0]);
        }
        self.boundaries.get(self.boundaries.partition_point(|&boundary| boundary < version)).copied()
    }

    /// Begins the decisions for one user key. `covering` are the versions of the range tombstones in the inputs that cover the key,
    /// newest first (a [`Fragment`](crate::tombstone::Fragment)'s versions); `bottom` says that no older data for the key exists
    /// outside the inputs.
    #[inline]
    pub fn key<'a>(&'a self, covering: &'a [Version], bottom: bool) -> KeyFilter<'a> {
        debug_assert!(covering.is_sorted_by(|a, b| a > b), "range tombstones come newest first");
        KeyFilter { retention: self, covering, newer_tombstones: 0, newer_point: None, bottom }
    }

    /// The versions of a range-tombstone fragment that stay, newest first, appended to `out`. `versions` are newest first; `bottom`
    /// says that no older data for any key of the fragment exists outside the inputs.
    ///
    /// Point entries are not looked at: a range tombstone may be needed for any key of its range.
    pub fn fragment(&self, versions: &[Version], bottom: bool, out: &mut Vec<Version>) {
        debug_assert!(versions.is_sorted_by(|a, b| a > b), "a fragment's versions come newest first");
        let mut newer = None;
        for &version in versions {
            let idle = bottom && version <= self.lowest();
            if !idle && self.needed(version, newer) {
                out.push(version);
            }
            newer = Some(version);
        }
    }

    /// True if the contents of a table (versions `smallest..=largest`) that lies wholly under a range tombstone at `tombstone` are
    /// invisible at every readable version, so that the file may go unread.
    pub fn hides_table(&self, tombstone: Version, smallest: Version, largest: Version) -> bool {
        // From the tombstone on, everything in the table is hidden, and whatever the table itself hides. Before the table's oldest
        // version none of it is seen. In between a reader could tell.
        if planted(Bug::DroppedTableIgnoresPin) {
            return tombstone > largest && tombstone <= self.floor();
        }
        tombstone > largest && !self.any_readable_in(smallest, tombstone)
    }

    /// True if some readable version sees an operation at `version` whose next newer one is `newer`.
    #[inline]
    fn needed(&self, version: Version, newer: Option<Version>) -> bool {
        let boundary = if planted(Bug::CompactionDropsPinned) && version <= self.floor() {
            Some(self.floor())
        } else {
            self.first_boundary_from(version)
        };
        match (boundary, newer) {
            // Above the floor, or the newest operation of all.
            (None, _) | (_, None) => true,
            (Some(boundary), Some(newer)) => boundary < newer,
        }
    }
}

/// Decides the fate of one user key's entries, newest first. Constant memory: a key may have millions of versions.
#[derive(Debug, Clone)]
pub struct KeyFilter<'a> {
    retention: &'a Retention,
    covering: &'a [Version],
    /// How many of `covering` are newer than the last entry.
    newer_tombstones: usize,
    newer_point: Option<Version>,
    bottom: bool,
}

impl KeyFilter<'_> {
    /// The fate of the next entry.
    ///
    /// # Panics
    /// In debug builds, if entries do not come newest first.
    #[inline]
    pub fn decide(&mut self, version: Version, kind: ValueKind) -> Decision {
        debug_assert!(self.newer_point.is_none_or(|newer| newer > version), "entries come newest first");
        debug_assert!(kind != ValueKind::RangeTombstone, "range tombstones are decided by fragment");
        // A range tombstone at the entry's own version does not hide it.
        while self.covering.get(self.newer_tombstones).is_some_and(|&tombstone| tombstone > version) {
            self.newer_tombstones += 1;
        }
        let newer_tombstone = self.newer_tombstones.checked_sub(1).map(|last| self.covering[last]);
        let newer = match (self.newer_point, newer_tombstone) {
            (Some(point), Some(tombstone)) => Some(point.min(tombstone)),
            (one, other) => one.or(other),
        };
        self.newer_point = Some(version);
        if !self.retention.needed(version, newer) {
            return Decision::Drop;
        }
        let bottom = self.bottom || (planted(Bug::DropTombstoneAboveBottom) && kind == ValueKind::Tombstone);
        if !bottom || version > self.retention.lowest() {
            return Decision::Keep;
        }
        match kind {
            ValueKind::Tombstone => Decision::Drop,
            // Covered by an older range tombstone that may stay.
            _ if self.newer_tombstones < self.covering.len() => Decision::Keep,
            _ => Decision::KeepAtZero,
        }
    }
}

#[cfg(test)]
mod tests;
