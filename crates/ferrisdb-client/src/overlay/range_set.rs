//! [`RangeSet`]: a set of keys made of ranges.

use std::collections::BTreeMap;
use std::ops::Bound;

use ferrisdb_core::{Bytes, KeyRange};

/// A set of keys, kept as ranges.
///
/// Invariant: the ranges are not empty, and no two of them overlap or touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Begin to end.
    ranges: BTreeMap<Bytes, Bytes>,
}

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.ranges.iter()
    }

    /// Adds a range. An empty or inverted one adds nothing.
    pub(crate) fn insert(&mut self, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let (mut begin, mut end) = (range.begin.clone(), range.end.clone());
        if let Some((earlier_begin, earlier_end)) = self.ranges.range::<Bytes, _>(..=&begin).next_back() {
            if *earlier_end >= end {
                return;
            }
            if *earlier_end >= begin {
                begin = earlier_begin.clone();
            }
        }
        while let Some((covered_begin, covered_end)) = self.ranges.range::<Bytes, _>(&begin..=&end).next() {
            if *covered_end > end {
                end = covered_end.clone();
            }
            let covered_begin = covered_begin.clone();
            self.ranges.remove(&covered_begin);
        }
        self.ranges.insert(begin, end);
    }

    /// Takes a range out; what it cuts in two stays as two.
    pub(crate) fn remove(&mut self, range: &KeyRange) {
        if range.is_empty() || self.ranges.is_empty() {
            return;
        }
        if let Some((begin, end)) = self.containing(&range.begin).map(|(b, e)| (b.clone(), e.clone())) {
            self.ranges.remove(&begin);
            if begin < range.begin {
                self.ranges.insert(begin, range.begin.clone());
            }
            if end > range.end {
                self.ranges.insert(range.end.clone(), end);
                return;
            }
        }
        while let Some((begin, end)) =
            self.ranges.range::<Bytes, _>(&range.begin..&range.end).next().map(|(b, e)| (b.clone(), e.clone()))
        {
            self.ranges.remove(&begin);
            if end > range.end {
                self.ranges.insert(range.end.clone(), end);
            }
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.containing(key).is_some()
    }

    /// The range that holds `key`.
    pub(crate) fn containing(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        let (begin, end) = self.up_to(Bound::Included(key)).next_back()?;
        (key < end).then_some((begin, end))
    }

    /// The ranges that begin behind `key`, ascending.
    pub(crate) fn beginning_after(&self, key: &[u8]) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.ranges.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded))
    }

    /// The ranges that begin before `key`, descending.
    pub(crate) fn beginning_before(&self, key: &[u8]) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.up_to(Bound::Excluded(key)).rev()
    }

    /// The parts of the set that lie in `range`, ascending.
    pub(crate) fn parts_in(&self, range: &KeyRange) -> Vec<KeyRange> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.containing(&range.begin);
        first
            .into_iter()
            .chain(self.beginning_after(&range.begin))
            .take_while(|(begin, _)| **begin < range.end)
            .map(|(begin, end)| KeyRange { begin: begin.max(&range.begin).clone(), end: end.min(&range.end).clone() })
            .collect()
    }

    fn up_to(&self, end: Bound<&[u8]>) -> std::collections::btree_map::Range<'_, Bytes, Bytes> {
        self.ranges.range::<[u8], _>((Bound::Unbounded, end))
    }

    /// Checks the invariant.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let mut last_end: Option<&Bytes> = None;
        for (begin, end) in &self.ranges {
            assert!(begin < end, "{begin:?}..{end:?} is empty");
            assert!(last_end.is_none_or(|last| last < begin), "{begin:?} touches the range before it");
            last_end = Some(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    /// Against one flag a key: 5,000 random insertions and removals over 40 keys.
    #[test]
    fn a_range_set_is_a_set_of_keys() {
        let seed = 7;
        let mut random = SplitMix64::new(seed);
        let key = |number: u64| Bytes::from(vec![u8::try_from(number).expect("below 40")]);
        let mut set = RangeSet::default();
        let mut model = [false; 40];
        for step in 0..5000 {
            let (begin, end) = (random.below(40), random.below(40));
            let range = KeyRange { begin: key(begin), end: key(end) };
            let insert = random.one_in(2);
            if insert {
                set.insert(&range)
            } else {
                set.remove(&range)
            }
            for number in begin..end {
                model[number as usize] = insert;
            }
            set.check();
            for number in 0..40 {
                let found = set.contains(&key(number));
                assert_eq!(found, model[number as usize], "seed {seed}, step {step}, key {number}");
            }
            let whole = KeyRange { begin: key(10), end: key(30) };
            let covered: u64 = set.parts_in(&whole).iter().map(|part| u64::from(part.end[0] - part.begin[0])).sum();
            assert_eq!(covered, model[10..30].iter().filter(|flag| **flag).count() as u64, "seed {seed}, step {step}");
        }
    }
}
