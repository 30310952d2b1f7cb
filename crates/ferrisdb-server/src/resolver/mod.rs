//! The resolver: [`ConflictWindow`] says whether what a transaction read was changed since.
//!
//! It holds the write conflict ranges of the last seconds' commits with their versions. A transaction that read at version r conflicts if one
//! of its read conflict ranges meets a write above r. FoundationDB keeps one ordered step function (a skip list of boundaries with the newest
//! version between them and maxima per level) and pays two inserts and a deletion in it for each write of a point. Here writes are kept in the
//! order in which they came, which is the order of their versions, in *generations*:
//!
//! ```text
//!                 oldest                              newest
//! points   [ hash index · sorted run ] … [ hash index · sorted runs · tail ]     one key
//! ranges   [ step function ] … [ step function ] [ pending ]                      everything else
//! ```
//!
//! - A check looks only at generations with writes above r. Transactions are short, so that is mostly the newest one, and that is small
//!   enough for the processor's cache.
//! - A read of a point asks the hash index, a read of a range the sorted runs.
//! - Nothing is ever deleted by itself: a generation goes as a whole once the window has left it. What stays a little longer than it must
//!   is harmless, since a check compares versions anyway.
//!
//! Measurements of this and of other structures are in `docs/decisions/0011-resolver.md`.
//!
//! # Invariants
//! - Exact: [`ConflictWindow::check`] finds a conflict if and only if a write above r meets the read. The hash index only says where to look;
//!   keys are compared.
//! - No call's work grows with the window: it is amortised over the writes of one generation, and dropping one frees a few large pieces.
//!
//! # Concurrency
//! None: the batcher's alone. It reads no clock and no randomness, so that equal calls give equal answers.

mod points;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{KeyRange, Version};

use points::Generation;
use ranges::RangeWrites;

/// Point writes of the smallest generation: an index of 128 KiB.
const GENERATION_POINTS_MIN: usize = 1 << 13;
/// Point writes of the largest generation: sorting it when it is full takes some three milliseconds, the longest pause that there is.
const GENERATION_POINTS_MAX: usize = 1 << 16;
/// A generation holds this part of the window: a check at the window's far end asks about so many, and so much stays longer than it must.
const GENERATIONS: usize = 8;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Nothing that was read was changed since.
    Ok,
    /// What was read has been changed: these read conflict ranges, by index, ascending.
    Conflict(Vec<u32>),
    /// The read version is below the window: whether it was changed is not known any more.
    TooOld,
}

/// The writes of the last commits. See the [module](self).
#[derive(Debug)]
pub struct ConflictWindow {
    floor: Version,
    /// The newest version that was added.
    newest: Version,
    /// Oldest first; the last takes new writes. Never empty. Invariant: versions grow from one to the next.
    generations: VecDeque<Generation>,
    /// Point writes in all of them.
    points: usize,
    ranges: RangeWrites,
}

impl ConflictWindow {
    /// An empty window: transactions that read below `floor` are too old for it.
    pub fn new(floor: Version) -> ConflictWindow {
        ConflictWindow {
            floor,
            newest: floor,
            generations: VecDeque::from([Generation::new(GENERATION_POINTS_MIN)]),
            points: 0,
            ranges: RangeWrites::default(),
        }
    }

    /// Checks a transaction that read these ranges at `read_version`. Empty ranges meet nothing.
    pub fn check(&self, read_version: Version, reads: &[KeyRange]) -> Checked {
        if read_version < self.floor {
            return Checked::TooOld;
        }
        if read_version >= self.newest {
            return Checked::Ok;
        }
        let mut conflicts = Vec::new();
        for (index, read) in (0u32..).zip(reads) {
            if self.is_changed(read_version, read) {
                conflicts.push(index);
            }
        }
        if conflicts.is_empty() { Checked::Ok } else { Checked::Conflict(conflicts) }
    }

    fn is_changed(&self, read_version: Version, read: &KeyRange) -> bool {
        let newer = || self.generations.iter().rev().take_while(|generation| generation.newest() > read_version);
        match single_key(read) {
            Some(key) => {
                let hash = points::hash(key);
                // The newest write of the key is in the newest generation that has one.
                let found = newer().find_map(|generation| generation.newest_of(key, hash));
                found.is_some_and(|version| version > read_version) || self.ranges.meets_key(key, read_version)
            }
            None if read.is_empty() => false,
            None if planted(Bug::ResolverIgnoresPhantoms) => {
                self.is_changed(read_version, &KeyRange::single(&read.begin))
            }
            None => {
                newer().any(|generation| generation.meets(&read.begin, &read.end, read_version))
                    || self.ranges.meets(&read.begin, &read.end, read_version)
            }
        }
    }

    /// Adds the writes of a transaction that commits at `version`.
    ///
    /// # Panics
    /// If `version` is below one that was added before, or not above the floor that the window began with.
    pub fn add(&mut self, version: Version, writes: &[KeyRange]) {
        assert!(
            version >= self.newest && version > self.floor,
            "commit versions grow, and are above the window's floor"
        );
        self.newest = version;
        for write in writes {
            match single_key(write) {
                Some(key) => self.add_point(version, key),
                None if write.is_empty() => {}
                None if planted(Bug::ResolverIgnoresRangeWrites) => {}
                None => self.ranges.add(version, &write.begin, &write.end),
            }
        }
    }

    fn add_point(&mut self, version: Version, key: &[u8]) {
        let last = self.generations.back_mut().expect("there is always one");
        let last = if last.is_full() {
            last.seal();
            let capacity = (self.points / GENERATIONS).clamp(GENERATION_POINTS_MIN, GENERATION_POINTS_MAX);
            self.generations.push_back(Generation::new(capacity));
            self.generations.back_mut().expect("just pushed")
        } else {
            last
        };
        self.points += usize::from(last.add(version, key));
    }

    /// Forgets writes that no transaction can conflict with that read at `version` or above, and refuses those that read below. Never goes
    /// back.
    pub fn forget_below(&mut self, version: Version) {
        self.floor = self.floor.max(version);
        while self.generations.len() > 1 && self.generations[0].newest() <= self.floor {
            let gone = self.generations.pop_front().expect("there are two");
            self.points -= gone.len();
        }
        self.ranges.forget(self.floor);
    }

    /// The lowest version that transactions may have read at.
    pub fn floor(&self) -> Version {
        self.floor
    }

    /// Bytes of memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.generations.iter().map(Generation::bytes).sum::<usize>() + self.ranges.bytes()
    }

    /// Panics if an invariant does not hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.points, self.generations.iter().map(Generation::len).sum::<usize>());
        let mut newest = Version::ZERO;
        for generation in self.generations.iter().filter(|generation| generation.len() > 0) {
            assert!(generation.oldest() >= newest, "generations are in the order of their versions");
            newest = generation.newest();
            generation.check();
        }
        assert!(newest <= self.newest);
        self.ranges.check();
    }
}

/// The key, if the range is just one.
#[inline]
fn single_key(range: &KeyRange) -> Option<&[u8]> {
    let (begin, end) = (range.begin.as_ref(), range.end.as_ref());
    match end.split_last() {
        Some((0, rest)) if rest == begin => Some(begin),
        _ => None,
    }
}

/// The first eight bytes of a key as a number: unless they are equal, two numbers compare as their keys do.
#[inline]
fn prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(head)
        }
    }
}
