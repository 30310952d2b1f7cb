//! [`RangeWrites`]: writes of ranges, as step functions from keys to the newest version.
//!
//! A step function is a sorted list of boundaries, each with the version from it up to the next, zero where nothing was written. New writes
//! are pending, in a short list that is searched from end to end; full, it becomes a step function, and step functions of similar size are
//! merged into one. Where two overlap, the newer version stands.

use std::collections::VecDeque;

use ferrisdb_core::Version;

use super::prefix;

/// Writes that are pending at most.
const PENDING_MAX: usize = 16;
/// Step functions up to this many boundaries are merged whatever the window holds.
const BOUNDARIES_MIN: usize = 1 << 12;
/// Larger ones are merged up to this part of all: so much may stay longer than it must.
const PARTS: usize = 8;
/// For so many steps the greatest version is kept.
const BLOCK: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct RangeWrites {
    /// Oldest first. Invariant: versions grow from one to the next.
    steps: VecDeque<Steps>,
    pending: Vec<Pending>,
}

/// A write that is in no step function yet.
#[derive(Debug)]
struct Pending {
    begin: Box<[u8]>,
    end: Box<[u8]>,
    version: Version,
}

/// A step function.
#[derive(Debug, Default)]
struct Steps {
    keys: Vec<u8>,
    /// Where each boundary's key ends in `keys`.
    ends: Vec<usize>,
    prefixes: Vec<u64>,
    versions: Vec<Version>,
    block_max: Vec<Version>,
    newest: Version,
}

impl RangeWrites {
    pub(super) fn add(&mut self, version: Version, begin: &[u8], end: &[u8]) {
        self.pending.push(Pending { begin: begin.into(), end: end.into(), version });
        if self.pending.len() == PENDING_MAX {
            let mut merged: Vec<Steps> =
                self.pending.drain(..).map(|write| Steps::single(&write.begin, &write.end, write.version)).collect();
            while merged.len() > 1 {
                merged = merged.chunks(2).map(|pair| Steps::merged(&pair[0], &pair[pair.len() - 1])).collect();
            }
            self.steps.extend(merged);
            self.merge();
        }
    }

    fn merge(&mut self) {
        let all: usize = self.steps.iter().map(Steps::len).sum();
        let max = BOUNDARIES_MIN.max(all / PARTS);
        while let [.., older, newer] = self.steps.make_contiguous()
            && older.len() <= 2 * newer.len()
            && older.len() + newer.len() <= max
        {
            let merged = Steps::merged(older, newer);
            self.steps.truncate(self.steps.len() - 2);
            self.steps.push_back(merged);
        }
    }

    /// True if the key was written above `version`.
    pub(super) fn meets_key(&self, key: &[u8], version: Version) -> bool {
        let pending = self.pending.iter().rev().take_while(|write| write.version > version);
        let mut pending = pending.filter(|write| *write.begin <= *key && *key < *write.end);
        pending.next().is_some() || {
            let mut newer = self.steps.iter().rev().take_while(|steps| steps.newest > version);
            newer.any(|steps| steps.at(key) > version)
        }
    }

    /// True if a key from `begin` up to, not including, `end` was written above `version`.
    pub(super) fn meets(&self, begin: &[u8], end: &[u8], version: Version) -> bool {
        let pending = self.pending.iter().rev().take_while(|write| write.version > version);
        let mut pending = pending.filter(|write| *write.begin < *end && *begin < *write.end);
        pending.next().is_some() || {
            let mut newer = self.steps.iter().rev().take_while(|steps| steps.newest > version);
            newer.any(|steps| steps.has_above(begin, end, version))
        }
    }

    pub(super) fn forget(&mut self, floor: Version) {
        while self.steps.front().is_some_and(|steps| steps.newest <= floor) {
            self.steps.pop_front();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let pending: usize =
            self.pending.iter().map(|write| write.begin.len() + write.end.len() + size_of::<Pending>()).sum();
        self.steps.iter().map(Steps::bytes).sum::<usize>() + pending
    }

    pub(super) fn check(&self) {
        let mut newest = Version::ZERO;
        for steps in &self.steps {
            assert!(steps.newest >= newest && steps.versions.iter().max() == Some(&steps.newest));
            newest = steps.newest;
            assert!((1..steps.len()).all(|index| steps.key(index - 1) < steps.key(index)));
            assert!(steps.versions.windows(2).all(|pair| pair[0] != pair[1]), "a boundary is where it changes");
            assert_eq!(steps.versions.last(), Some(&Version::ZERO), "nothing was written up to the end of all keys");
        }
        assert!(self.pending.iter().all(|write| write.version >= newest));
    }
}

impl Steps {
    fn single(begin: &[u8], end: &[u8], version: Version) -> Steps {
        let mut steps = Steps::default();
        steps.push(begin, version);
        steps.push(end, Version::ZERO);
        steps.finished()
    }

    /// A boundary behind the last one. One that changes nothing is left out.
    fn push(&mut self, key: &[u8], version: Version) {
        if self.versions.last().copied().unwrap_or(Version::ZERO) == version {
            return;
        }
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.prefixes.push(prefix(key));
        self.versions.push(version);
    }

    fn finished(mut self) -> Steps {
        let max = |versions: &[Version]| versions.iter().copied().max().unwrap_or(Version::ZERO);
        self.block_max = self.versions.chunks(BLOCK).map(max).collect();
        self.newest = max(&self.block_max);
        self
    }

    /// At each key the newer version of the two.
    fn merged(older: &Steps, newer: &Steps) -> Steps {
        if std::ptr::eq(older, newer) {
            // The odd one of a round.
            return Steps {
                keys: older.keys.clone(),
                ends: older.ends.clone(),
                prefixes: older.prefixes.clone(),
                versions: older.versions.clone(),
                block_max: older.block_max.clone(),
                newest: older.newest,
            };
        }
        let mut merged = Steps::default();
        let (mut i, mut j) = (0, 0);
        let (mut a, mut b) = (Version::ZERO, Version::ZERO);
        while i < older.len() || j < newer.len() {
            let order = match (i < older.len(), j < newer.len()) {
                (true, true) => {
                    let by_prefix = older.prefixes[i].cmp(&newer.prefixes[j]);
                    by_prefix.then_with(|| older.key(i).cmp(newer.key(j)))
                }
                (true, false) => std::cmp::Ordering::Less,
                (false, _) => std::cmp::Ordering::Greater,
            };
            let key = if order.is_le() { older.key(i) } else { newer.key(j) };
            if order.is_le() {
                a = older.versions[i];
                i += 1;
            }
            if order.is_ge() {
                b = newer.versions[j];
                j += 1;
            }
            merged.push(key, a.max(b));
        }
        merged.finished()
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.keys[begin..self.ends[index]]
    }

    /// How many boundaries are at or below the key (below it, unless `or_equal`).
    fn count_to(&self, key: &[u8], or_equal: bool) -> usize {
        let key_prefix = prefix(key);
        let first = self.prefixes.partition_point(|&prefix| prefix < key_prefix);
        let last = first + self.prefixes[first..].partition_point(|&prefix| prefix == key_prefix);
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle) < key || (or_equal && self.key(middle) == key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn at(&self, key: &[u8]) -> Version {
        match self.count_to(key, true) {
            0 => Version::ZERO,
            count => self.versions[count - 1],
        }
    }

    fn has_above(&self, begin: &[u8], end: &[u8], version: Version) -> bool {
        // From the step in which the range begins to the last that begins before its end.
        let (first, last) = (self.count_to(begin, true).saturating_sub(1), self.count_to(end, false));
        let is_above = |written: &Version| *written > version;
        if first >= last {
            return false;
        }
        let (first_block, last_block) = (first.div_ceil(BLOCK), last / BLOCK);
        if first_block >= last_block {
            return self.versions[first..last].iter().any(is_above);
        }
        self.versions[first..first_block * BLOCK].iter().any(is_above)
            || self.block_max[first_block..last_block].iter().any(is_above)
            || self.versions[last_block * BLOCK..last].iter().any(is_above)
    }

    fn bytes(&self) -> usize {
        self.keys.capacity()
            + 8 * (self.ends.capacity()
                + self.prefixes.capacity()
                + self.versions.capacity()
                + self.block_max.capacity())
    }
}
