//! [`ConflictSet`]: the ranges that a transaction has read.

use std::ops::Range;

use ferrisdb_core::{Bytes, KeyRange};

/// A set of ranges to which adding is cheap, since every read adds one, and which is put in order when somebody looks, or when it is
/// large and has doubled, so that reading the same keys again and again does not fill the memory.
///
/// Single keys, which are most of what is read, lie one behind another in one buffer until then: adding one allocates nothing, and a transaction that
/// writes nothing never makes ranges of them.
#[derive(Debug, Default)]
pub(crate) struct ConflictSet {
    /// Each key as its length in a u32 and its bytes, followed by the zero byte that makes it the end of its own range.
    keys: Vec<u8>,
    key_count: usize,
    /// Where in `keys` the last one is, with its zero byte.
    last_key: Range<usize>,
    ranges: Vec<KeyRange>,
    /// Invariant: so many, from the first on, are sorted, and no two of them overlap or touch.
    sorted: usize,
}

/// Fewer are not put in order before somebody looks: at 64 bytes and two keys each ranges are 2 MB, and most transactions that read so much write
/// nothing, so that nobody ever looks.
const COMPACT_MIN: usize = 1 << 14;
/// Room for about ten keys, made with the first.
const KEYS_BYTES_INITIAL: usize = 256;

impl ConflictSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.keys.is_empty()
    }

    /// Adds a single key.
    #[inline]
    pub(crate) fn add_key(&mut self, key: &[u8]) {
        let last = &self.keys[self.last_key.clone()];
        if last.len() == key.len() + 1 && last.starts_with(key) {
            return;
        }
        self.make_room();
        if self.keys.capacity() == 0 {
            self.keys.reserve(KEYS_BYTES_INITIAL);
        }
        let length = u32::try_from(key.len()).expect("a key that may be read is shorter than 4 GiB");
        self.keys.reserve(size_of::<u32>() + key.len() + 1);
        self.keys.extend_from_slice(&length.to_le_bytes());
        let begin = self.keys.len();
        self.keys.extend_from_slice(key);
        self.keys.push(0);
        self.last_key = begin..self.keys.len();
        self.key_count += 1;
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
        self.make_room();
        self.ranges.push(range);
    }

    #[inline]
    fn make_room(&mut self) {
        if self.ranges.len() + self.key_count >= COMPACT_MIN.max(2 * self.sorted) {
            self.compact();
        }
    }

    /// The ranges, sorted, without overlaps.
    pub(crate) fn ranges(&mut self) -> &[KeyRange] {
        self.compact();
        &self.ranges
    }

    /// Makes ranges of the single keys that lie in none yet.
    fn keys_to_ranges(&mut self) {
        let mut keys: Vec<&[u8]> = Vec::with_capacity(self.key_count);
        let mut rest = &self.keys[..];
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let (key, behind) = behind.split_at(u32::from_le_bytes(*length) as usize + 1);
            keys.push(key);
            rest = behind;
        }
        // A zero byte behind both does not change which of two keys is less.
        keys.sort_unstable();
        keys.dedup();
        let sorted = &self.ranges[..self.sorted];
        keys.retain(|key| {
            let before = sorted.partition_point(|range| range.begin[..] <= key[..key.len() - 1]);
            before == 0 || sorted[before - 1].end[..] < **key
        });
        // One buffer of just their bytes: ranges that stay must not keep alive what went.
        let buffer = Bytes::from(keys.concat());
        let lengths: Vec<usize> = keys.iter().map(|key| key.len()).collect();
        let mut begin = 0;
        self.ranges.extend(lengths.into_iter().map(|length| {
            let end = begin + length;
            let range = KeyRange { begin: buffer.slice(begin..end - 1), end: buffer.slice(begin..end) };
            begin = end;
            range
        }));
        self.keys = Vec::new();
        self.key_count = 0;
        self.last_key = 0..0;
    }

    fn compact(&mut self) {
        if self.key_count > 0 {
            self.keys_to_ranges();
        }
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
            if random.below(2) == 0 {
                let key = vec![begin; random.below(3) as usize];
                model.insert(&KeyRange::single(&key));
                conflicts.add_key(&key);
            } else {
                let range = KeyRange::new(vec![begin], vec![begin.saturating_add(random.below(3) as u8)]);
                model.insert(&range);
                conflicts.add(range);
            }
            assert!(conflicts.ranges.len() + conflicts.key_count <= COMPACT_MIN);
            if random.below(10_000) == 0 {
                assert!(!conflicts.ranges().is_empty());
            }
        }
        let expected: Vec<_> = model.iter().map(|(b, e)| KeyRange { begin: b.clone(), end: e.clone() }).collect();
        assert_eq!(conflicts.ranges(), expected);
    }
    /// Keys that are read again and again leave nothing behind: neither ranges nor, with one new key in between, the buffer of them all.
    #[test]
    fn repeated_keys_do_not_fill_the_memory() {
        let mut conflicts = ConflictSet::default();
        for round in 0..20usize {
            conflicts.add_key(format!("new {round:02}").as_bytes());
            (0..1000).for_each(|number| conflicts.add_key(format!("old {number:03}").as_bytes()));
            let before = conflicts.ranges.len();
            conflicts.keys_to_ranges();
            assert_eq!(conflicts.ranges.len() - before, if round == 0 { 1001 } else { 1 });
            conflicts.compact();
            assert_eq!(conflicts.ranges.len(), 1001 + round);
        }
        assert_eq!(conflicts.keys.capacity(), 0);
    }
}
