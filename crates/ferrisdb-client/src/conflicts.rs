//! [`ConflictSet`]: the ranges that a transaction has read.

use ferrisdb_core::KeyRange;

/// A set of ranges to which adding is cheap, since every read adds one, and which is put in order when somebody looks, or when it is
/// large and has doubled, so that reading the same keys again and again does not fill the memory.
#[derive(Debug, Default)]
pub(crate) struct ConflictSet {
    ranges: Vec<KeyRange>,
    /// Invariant: so many, from the first on, are sorted, and no two of them overlap or touch.
    sorted: usize,
}

/// Fewer are not put in order before somebody looks: at about 130 bytes each they are 2 MB, and most transactions that read so much write
/// nothing, so that nobody ever looks.
const COMPACT_MIN: usize = 1 << 14;

impl ConflictSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a range. An empty one adds nothing.
    #[inline]
    pub(crate) fn add(&mut self, range: KeyRange) {
        if range.is_empty() {
            return;
        }
        if self.ranges.last() == Some(&range) {
            return;
        }
        if self.ranges.len() >= COMPACT_MIN.max(2 * self.sorted) {
            self.compact();
        }
        self.ranges.push(range);
    }

    /// The ranges, sorted, without overlaps.
    pub(crate) fn ranges(&mut self) -> &[KeyRange] {
        self.compact();
        &self.ranges
    }

    fn compact(&mut self) {
        if self.sorted == self.ranges.len() {
            return;
        }
        // The stable sort makes use of what is in order already.
        self.ranges.sort();
        self.ranges.dedup_by(|later, earlier| {
            let touches = later.begin <= earlier.end;
            if touches && later.end > earlier.end {
                earlier.end = std::mem::take(&mut later.end);
            }
            touches
        });
        self.sorted = self.ranges.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::RangeSet;
    use ferrisdb_core::{Random, SplitMix64};

    /// It is the set that a [`RangeSet`] is, and does not grow with repetitions.
    #[test]
    fn ranges_are_sorted_and_merged() {
        let mut random = SplitMix64::new(3);
        let (mut conflicts, mut model) = (ConflictSet::default(), RangeSet::default());
        for _ in 0..100_000 {
            let begin = random.below(200) as u8;
            let range = KeyRange::new(vec![begin], vec![begin.saturating_add(random.below(3) as u8)]);
            model.insert(&range);
            conflicts.add(range);
        }
        assert!(conflicts.ranges.len() <= COMPACT_MIN);
        let expected: Vec<_> = model.iter().map(|(b, e)| KeyRange { begin: b.clone(), end: e.clone() }).collect();
        assert_eq!(conflicts.ranges(), expected);
    }
}
