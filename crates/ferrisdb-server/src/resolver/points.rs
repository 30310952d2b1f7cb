//! [`Generation`]: writes of single keys, in the order of their versions.
//!
//! A write's number is its place in that order, so that "above version r" is "from number n on".
//!
//! ```text
//! keys      all keys, one behind another          ends, versions   by number
//! index     hash of the key → number of its newest write (open addressing, at most half full)
//! runs      sorted by key: (prefix, number); each followed by smaller ones, the last a tail that is not sorted
//! ```
//!
//! The tail is searched from end to end by its prefixes, which lie together. Full, it is sorted; runs of similar size are merged, until
//! a sealed generation has one.
//!
//! A prefix is eight bytes of the key, so that sorting seldom has to fetch keys: of the bytes behind what all keys of the run begin with ([`Lead`]), since
//! programs keep their data under prefixes (a directory's, a table's) that fill the first eight.

use std::cmp::Ordering;

use ferrisdb_core::Version;

use super::prefix;

/// Writes in the tail: a search through the prefixes of all takes about as long as one in the index.
const TAIL_MAX: usize = 512;
/// So many runs of one size are merged.
const MERGED_RUNS: usize = 8;
/// For so many entries of a run the greatest number is kept.
const BLOCK: usize = 64;
const EMPTY: u64 = u64::MAX;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Generation {
    capacity: usize,
    keys: Vec<u8>,
    /// Where each key ends in `keys`; it begins where the one before ends.
    ends: Vec<usize>,
    /// Invariant: ascending.
    versions: Vec<Version>,
    /// `EMPTY`, or the upper half of the hash and, below it, the number of the key's newest write.
    index: Vec<u64>,
    /// Largest first; together all writes but those of the tail, which are the newest.
    runs: Vec<Run>,
    /// The prefixes of the newest writes, not sorted.
    tail: Vec<u64>,
    /// What the tail's prefixes lie behind: the keys of the last run sorted from a tail began with it.
    tail_lead: Lead,
}

/// Some of the writes, sorted by key. Of a key that was written several times only the newest.
#[derive(Debug, Default)]
struct Run {
    /// How many tails it was made of.
    tails: usize,
    /// What all its keys begin with.
    lead: Lead,
    prefixes: Vec<u64>,
    numbers: Vec<u32>,
    /// The greatest number of each `BLOCK` entries.
    block_max: Vec<u32>,
    /// All numbers in it are from here up.
    first_number: u32,
}

/// What keys begin with. Of keys that begin with something else it says only on which side they are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Lead(Box<[u8]>);

impl Lead {
    /// What both keys, and so all between them, begin with.
    fn of(first: &[u8], last: &[u8]) -> Lead {
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        Lead(first[..shared].into())
    }

    /// As a number: unless they are equal, two numbers compare as their keys do.
    #[inline]
    fn prefix(&self, key: &[u8]) -> u64 {
        if self.0.is_empty() {
            return prefix(key);
        }
        match key.strip_prefix(&*self.0) {
            Some(rest) => prefix(rest),
            None if *key < *self.0 => 0,
            None => u64::MAX,
        }
    }
}

impl Generation {
    pub(super) fn new(capacity: usize) -> Generation {
        debug_assert!(capacity < u32::MAX as usize / 2);
        Generation {
            capacity,
            keys: Vec::new(),
            ends: Vec::new(),
            versions: Vec::new(),
            index: vec![EMPTY; (2 * capacity).next_power_of_two()],
            runs: Vec::new(),
            tail: Vec::with_capacity(TAIL_MAX),
            tail_lead: Lead::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// The version of the newest write; zero if there is none.
    pub(super) fn newest(&self) -> Version {
        self.versions.last().copied().unwrap_or(Version::ZERO)
    }

    pub(super) fn oldest(&self) -> Version {
        self.versions.first().copied().unwrap_or(Version::ZERO)
    }

    fn key(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let begin = if number == 0 { 0 } else { self.ends[number - 1] };
        &self.keys[begin..self.ends[number]]
    }

    /// The place in the index that has the key, or the empty one where it belongs.
    fn place(&self, key: &[u8], hash: u64) -> usize {
        let mask = self.index.len() - 1;
        let tag = tag(hash);
        let mut place = low_bits(hash) & mask;
        loop {
            let slot = self.index[place];
            if slot == EMPTY || (slot & !u64::from(u32::MAX) == tag && self.key(number_of(slot)) == key) {
                return place;
            }
            place = (place + 1) & mask;
        }
    }

    /// The version of the newest write of the key.
    pub(super) fn newest_of(&self, key: &[u8], hash: u64) -> Option<Version> {
        match self.index[self.place(key, hash)] {
            EMPTY => None,
            slot => Some(self.versions[number_of(slot) as usize]),
        }
    }

    /// Adds a write, at or above all that are there. False if it is there already.
    pub(super) fn add(&mut self, version: Version, key: &[u8]) -> bool {
        let hash = hash(key);
        let place = self.place(key, hash);
        let slot = self.index[place];
        if slot != EMPTY && self.versions[number_of(slot) as usize] == version {
            return false;
        }
        let number = u32::try_from(self.len()).expect("a generation's capacity is below 2^31");
        self.index[place] = tag(hash) | u64::from(number);
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.versions.push(version);
        self.tail.push(self.tail_lead.prefix(key));
        if self.tail.len() == TAIL_MAX {
            self.sort_tail();
            while let Some(first) = self.mergeable() {
                self.merge_from(first);
            }
        }
        true
    }

    /// No write will be added any more: makes one run of all.
    pub(super) fn seal(&mut self) {
        self.sort_tail();
        if self.runs.len() > 1 {
            self.merge_from(0);
        }
        self.tail = Vec::new();
        self.keys.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.versions.shrink_to_fit();
    }

    fn sort_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let first = self.len() - self.tail.len();
        let first_number = u32::try_from(first).expect("a generation's capacity is below 2^31");
        let mut entries: Vec<(u64, u32)> = self.tail.iter().copied().zip(first_number..).collect();
        entries.sort_unstable_by(|a, b| self.order(*a, *b));
        let lead = self.lead_of(entries[0].1, entries[entries.len() - 1].1);
        if lead != self.tail_lead {
            self.tell_apart(&mut entries, &lead);
            self.tail_lead = lead.clone();
        }
        let run = self.run(1, first_number, lead, entries);
        self.runs.push(run);
        self.tail.clear();
    }

    fn lead_of(&self, first: u32, last: u32) -> Lead {
        Lead::of(self.key(first), self.key(last))
    }

    /// Has the entries' prefixes lie behind `lead`.
    fn tell_apart(&self, entries: &mut [(u64, u32)], lead: &Lead) {
        for (prefix, number) in entries {
            *prefix = lead.prefix(self.key(*number));
        }
    }

    /// Where the last runs begin that are as many of one size as are merged.
    fn mergeable(&self) -> Option<usize> {
        let first = self.runs.len().checked_sub(MERGED_RUNS)?;
        (self.runs[first].tails == self.runs.last()?.tails).then_some(first)
    }

    fn merge_from(&mut self, first: usize) {
        let merged = self.runs.split_off(first);
        let ends = || merged.iter().flat_map(|run| [run.numbers.first(), run.numbers.last()]).flatten().copied();
        let by_key = |a: &u32, b: &u32| self.key(*a).cmp(self.key(*b));
        let (least, greatest) = (ends().min_by(by_key), ends().max_by(by_key));
        let lead = least.zip(greatest).map(|(least, greatest)| self.lead_of(least, greatest)).unwrap_or_default();
        let mut entries = Vec::with_capacity(merged.iter().map(|run| run.numbers.len()).sum());
        for run in &merged {
            let begin = entries.len();
            entries.extend(run.prefixes.iter().copied().zip(run.numbers.iter().copied()));
            if run.lead != lead {
                self.tell_apart(&mut entries[begin..], &lead);
            }
        }
        // The stable sort finds the runs and merges them.
        entries.sort_by(|a, b| self.order(*a, *b));
        let run = self.run(merged.iter().map(|run| run.tails).sum(), merged[0].first_number, lead, entries);
        self.runs.push(run);
    }

    /// By key, the newest write of each first.
    #[inline]
    fn order(&self, a: (u64, u32), b: (u64, u32)) -> Ordering {
        a.0.cmp(&b.0).then_with(|| self.key(a.1).cmp(self.key(b.1)).then(b.1.cmp(&a.1)))
    }

    fn run(&self, tails: usize, first_number: u32, lead: Lead, mut entries: Vec<(u64, u32)>) -> Run {
        entries.dedup_by(|older, newer| older.0 == newer.0 && self.key(older.1) == self.key(newer.1));
        let numbers: Vec<u32> = entries.iter().map(|entry| entry.1).collect();
        let block_max = numbers.chunks(BLOCK).map(|block| block.iter().copied().max().unwrap_or(0)).collect();
        let prefixes = entries.into_iter().map(|entry| entry.0).collect();
        Run { tails, lead, prefixes, numbers, block_max, first_number }
    }

    /// True if a key from `begin` up to, not including, `end` was written above `version`.
    pub(super) fn meets(&self, begin: &[u8], end: &[u8], version: Version) -> bool {
        let from =
            if self.oldest() > version { 0 } else { self.versions.partition_point(|&written| written <= version) };
        let (begin_prefix, end_prefix) = (self.tail_lead.prefix(begin), self.tail_lead.prefix(end));
        let tail_first = self.len() - self.tail.len();
        let skipped = from.saturating_sub(tail_first).min(self.tail.len());
        // Without a branch for each: the prefixes are compared many at a time.
        let near = |&prefix: &u64| (prefix >= begin_prefix) & (prefix <= end_prefix);
        let in_tail = self.tail[skipped..].chunks(64).zip(0..).any(|(prefixes, chunk)| {
            prefixes.iter().fold(false, |found, prefix| found | near(prefix))
                && prefixes.iter().zip(0usize..).filter(|(prefix, _)| near(prefix)).any(|(_, index)| {
                    let number = tail_first + skipped + chunk * 64 + index;
                    let key = self.key(u32::try_from(number).expect("a generation's capacity is below 2^31"));
                    begin <= key && key < end
                })
        });
        if in_tail {
            return true;
        }
        let from = u32::try_from(from).expect("a generation's capacity is below 2^31");
        self.runs.iter().rev().any(|run| {
            let (begin_prefix, end_prefix) = (run.lead.prefix(begin), run.lead.prefix(end));
            let first = run.lower_bound(self, begin, begin_prefix);
            // Most ranges are short: the end is looked for from the beginning.
            let is_empty = first == run.numbers.len()
                || match run.prefixes[first].cmp(&end_prefix) {
                    Ordering::Less => false,
                    Ordering::Greater => true,
                    Ordering::Equal => self.key(run.numbers[first]) >= end,
                };
            if is_empty {
                return false;
            }
            run.first_number >= from || run.has_number(first, run.lower_bound(self, end, end_prefix), from)
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let runs: usize = self
            .runs
            .iter()
            .map(|run| {
                8 * run.prefixes.capacity() + 4 * (run.numbers.capacity() + run.block_max.capacity()) + run.lead.0.len()
            })
            .sum();
        self.keys.capacity()
            + 8 * (self.ends.capacity() + self.versions.capacity() + self.index.capacity() + self.tail.capacity())
            + runs
    }

    pub(super) fn check(&self) {
        assert!(self.versions.is_sorted() && self.len() <= self.capacity);
        assert!(self.index.iter().filter(|slot| **slot != EMPTY).count() <= self.len());
        let mut number = 0;
        for run in &self.runs {
            assert_eq!(run.first_number, number, "runs follow one another");
            number = run.numbers.iter().max().map_or(number, |max| max + 1);
            let keys: Vec<&[u8]> = run.numbers.iter().map(|&number| self.key(number)).collect();
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(keys.iter().all(|key| key.starts_with(&run.lead.0)));
            assert!(run.prefixes.iter().zip(&keys).all(|(found, key)| *found == run.lead.prefix(key)));
        }
        assert_eq!(number as usize + self.tail.len(), self.len());
    }
}

impl Run {
    /// The first entry at or after the key.
    fn lower_bound(&self, generation: &Generation, key: &[u8], key_prefix: u64) -> usize {
        let first = self.prefixes.partition_point(|&prefix| prefix < key_prefix);
        let equal = self.prefixes[first..].iter().take_while(|&&prefix| prefix == key_prefix).take(8).count();
        if equal == 0 {
            return first;
        }
        let last =
            if equal < 8 { first + equal } else { self.prefixes.partition_point(|&prefix| prefix <= key_prefix) };
        first + self.numbers[first..last].partition_point(|&number| generation.key(number) < key)
    }

    /// True if the entries from `first` up to, not including, `last` have a number from `from` up.
    fn has_number(&self, first: usize, last: usize, from: u32) -> bool {
        let is_from = |&number: &u32| number >= from;
        let (first_block, last_block) = (first.div_ceil(BLOCK), last / BLOCK);
        if first_block >= last_block {
            return self.numbers[first..last].iter().any(is_from);
        }
        self.numbers[first..first_block * BLOCK].iter().any(is_from)
            || self.block_max[first_block..last_block].iter().any(is_from)
            || self.numbers[last_block * BLOCK..last].iter().any(is_from)
    }
}

fn tag(hash: u64) -> u64 {
    // Never all ones together with a number, which is below 2^31: no slot equals `EMPTY`.
    hash & !u64::from(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
fn number_of(slot: u64) -> u32 {
    slot as u32
}

#[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
fn low_bits(hash: u64) -> usize {
    hash as usize
}

/// A hash of sixteen bytes a step, by 128-bit products (the idea of wyhash). Whoever chooses keys that collide makes searches of the
/// index longer, and no answer wrong.
#[inline]
pub(super) fn hash(key: &[u8]) -> u64 {
    const K: [u64; 3] = [0xA076_1D64_78BD_642F, 0xE703_7ED1_A0B4_28DB, 0x8EBC_6AF0_9C88_C6E3];
    let product = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are folded into one")]
        let folded = product as u64 ^ (product >> 64) as u64;
        folded
    };
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mut state = K[0] ^ key.len() as u64;
    let mut chunks = key.chunks_exact(16);
    for chunk in &mut chunks {
        state = product(word(&chunk[..8]) ^ K[1], word(&chunk[8..]) ^ state);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let (low, high) = rest.split_at(rest.len().min(8));
        state = product(word(low) ^ K[2], word(high) ^ state);
    }
    product(state ^ K[1], K[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys whose hashes are equal, which no test meets by chance, are told apart by their bytes.
    #[test]
    fn equal_hashes_are_told_apart() {
        let version = Version::from_u64(1);
        let mut generation = Generation::new(16);
        assert!(generation.add(version, b"a"));
        assert!(!generation.add(version, b"a"), "it is there already");
        assert_eq!(generation.newest_of(b"a", hash(b"a")), Some(version));
        assert_eq!(generation.newest_of(b"b", hash(b"a")), None);
    }
}
