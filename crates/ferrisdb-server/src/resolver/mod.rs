//! The resolver: which of the transactions that want to commit have read something that was changed since.
//!
//! [`ConflictWindow`] remembers, for every place in the key space, the version of the newest write there, as far back as transactions
//! may reach. A transaction that read a range at version `r` conflicts if anything in the range was written above `r`.
//!
//! This is the plain version: a step function over the key space in an ordered map. Checking a range costs its boundaries,
//! adding one a few map operations.
//!
//! # Invariants
//! - `steps` holds, for a key that is a boundary, the version of the newest write to all keys from it up to the next boundary; keys before
//!   the first boundary were never written.
//! - A version at or below `floor` in it means the same as none: whoever read below the floor is refused anyway.

use std::collections::BTreeMap;
use std::ops::Bound;

use ferrisdb_core::{Bytes, KeyRange, Version};

/// Why a transaction may not commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It read below the window: nobody knows any more what has changed since.
    TooOld,
    /// What it read has changed since.
    Conflict {
        /// Which of its read ranges, by index, ascending.
        indices: Vec<u32>,
    },
}

/// The newest write to each part of the key space, as far as it matters.
#[derive(Debug, Clone)]
pub struct ConflictWindow {
    floor: Version,
    steps: BTreeMap<Bytes, Version>,
    /// Boundaries at which forgotten ones are swept out next: sweeping costs all of them, so it is done when there are twice as many.
    sweep_at: usize,
}

/// No sweep below so many boundaries.
const SWEEP_MIN: usize = 1024;

impl ConflictWindow {
    /// A window that knows of no write above `floor`, and nothing of those below.
    pub fn new(floor: Version) -> ConflictWindow {
        ConflictWindow { floor, steps: BTreeMap::new(), sweep_at: SWEEP_MIN }
    }

    /// Below this no read version is accepted.
    pub fn floor(&self) -> Version {
        self.floor
    }

    /// How many boundaries it keeps, for statistics.
    pub fn boundaries(&self) -> usize {
        self.steps.len()
    }

    /// Whether a transaction that read these ranges at `read_version` may still commit.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn check(&self, read_version: Version, reads: &[KeyRange]) -> Result<(), Refusal> {
        if read_version < self.floor {
            return Err(Refusal::TooOld);
        }
        let mut indices = Vec::new();
        for (index, range) in reads.iter().enumerate() {
            if self.newest_in(range).is_some_and(|newest| newest > read_version) {
                indices.push(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
        if indices.is_empty() { Ok(()) } else { Err(Refusal::Conflict { indices }) }
    }

    /// Remembers that these ranges were written at `version`, which is at or above every one before.
    pub fn add(&mut self, version: Version, writes: &[KeyRange]) {
        for range in writes.iter().filter(|range| !range.is_empty()) {
            // What holds at the end of the range goes on holding behind it.
            if !self.steps.contains_key(&range.end) {
                let behind = self.steps.range::<Bytes, _>(..&range.end).next_back().map(|(_, &version)| version);
                self.steps.insert(range.end.clone(), behind.unwrap_or(Version::ZERO));
            }
            let inside: Vec<Bytes> = self
                .steps
                .range::<Bytes, _>((Bound::Excluded(&range.begin), Bound::Excluded(&range.end)))
                .map(|(key, _)| key.clone())
                .collect();
            for key in inside {
                self.steps.remove(&key);
            }
            self.steps.insert(range.begin.clone(), version);
        }
    }

    /// Forgets what was written below `version`, and from now on refuses whoever read below it.
    pub fn forget_below(&mut self, version: Version) {
        self.floor = self.floor.max(version);
        if self.steps.len() < self.sweep_at {
            return;
        }
        let floor = self.floor;
        // A step that no longer matters, behind another that does not, says nothing.
        let mut before_matters = false;
        self.steps.retain(|_, version| {
            let matters = *version > floor;
            let keep = matters || before_matters;
            before_matters = matters;
            keep
        });
        self.sweep_at = (self.steps.len() * 2).max(SWEEP_MIN);
    }

    fn newest_in(&self, range: &KeyRange) -> Option<Version> {
        if range.is_empty() {
            return None;
        }
        let at_begin = self.steps.range::<Bytes, _>(..=&range.begin).next_back();
        let inside = self.steps.range::<Bytes, _>((Bound::Excluded(&range.begin), Bound::Excluded(&range.end)));
        at_begin.into_iter().chain(inside).map(|(_, &version)| version).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    fn range(begin: u8, end: u8) -> KeyRange {
        KeyRange::new(vec![begin], vec![end])
    }

    fn version(number: u64) -> Version {
        Version::from_u64(number)
    }

    #[test]
    fn a_write_conflicts_with_older_reads_of_its_keys_only() {
        let mut window = ConflictWindow::new(version(10));
        window.add(version(20), &[range(5, 8)]);
        assert_eq!(window.check(version(20), &[range(5, 8)]), Ok(()), "it saw the write");
        assert_eq!(window.check(version(19), &[range(0, 5), range(8, 9)]), Ok(()), "the ranges only touch");
        let conflict = Refusal::Conflict { indices: vec![1, 2] };
        assert_eq!(window.check(version(19), &[range(0, 5), range(7, 9), range(0, 6)]), Err(conflict));
        assert_eq!(window.check(version(9), &[]), Err(Refusal::TooOld), "a blind write has a read version too");
        window.forget_below(version(20));
        assert_eq!(window.check(version(19), &[]), Err(Refusal::TooOld));
    }

    /// Against a version for every single key.
    #[test]
    fn it_agrees_with_a_version_for_every_key() {
        for seed in 0..40 {
            let mut random = SplitMix64::new(seed);
            let mut window = ConflictWindow::new(version(1));
            window.sweep_at = 8;
            let mut newest = [0u64; 64];
            let mut floor = 1;
            for now in 2..400u64 {
                let any = |random: &mut SplitMix64| {
                    let (a, b) = (random.below(64) as u8, random.below(64) as u8);
                    range(a.min(b), a.max(b))
                };
                let reads: Vec<KeyRange> = (0..random.below(4)).map(|_| any(&mut random)).collect();
                let read_version = now.saturating_sub(random.below(30)).max(1);
                let hit =
                    |range: &KeyRange| (range.begin[0]..range.end[0]).any(|key| newest[key as usize] > read_version);
                let hits: Vec<u32> = (0..reads.len() as u32).filter(|&index| hit(&reads[index as usize])).collect();
                let expected = match () {
                    () if read_version < floor => Err(Refusal::TooOld),
                    () if hits.is_empty() => Ok(()),
                    () => Err(Refusal::Conflict { indices: hits }),
                };
                assert_eq!(window.check(version(read_version), &reads), expected, "seed {seed}, version {now}");
                let writes: Vec<KeyRange> = (0..random.below(3)).map(|_| any(&mut random)).collect();
                window.add(version(now), &writes);
                for write in writes {
                    (write.begin[0]..write.end[0]).for_each(|key| newest[key as usize] = now);
                }
                if random.one_in(5) {
                    floor = floor.max(now.saturating_sub(20)).max(1);
                    window.forget_below(version(floor));
                    window.sweep_at = 8;
                }
            }
        }
    }
}
