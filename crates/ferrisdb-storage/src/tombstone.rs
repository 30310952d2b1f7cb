//! Range tombstones, cut into fragments.
//!
//! A range tombstone `[start, end) @ v` hides every point entry in the range whose version is below v. Tombstones may
//! overlap in any way; a [`FragmentList`] cuts them at each other's ends, so that its fragments are sorted and disjoint and each
//! carries the versions of all tombstones that cover it. Looking up a key is then one binary search (the idea is RocksDB's,
//! "DeleteRange: a new native RocksDB operation", 2018).
//!
//! # Invariants
//! - Fragments are sorted, disjoint and not empty; two that touch have different version lists.
//! - A fragment's versions are distinct, newest first, and never empty.

use std::collections::BTreeSet;

use ferrisdb_core::Version;

use crate::planted::{Bug, planted};

/// One range delete as it was written: `[start, end)` at `version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeTombstone {
    /// The first user key that it covers.
    pub start: Box<[u8]>,
    /// The first user key after `start` that it does not cover; greater than `start`.
    pub end: Box<[u8]>,
    /// It hides what is older than this.
    pub version: Version,
}

impl RangeTombstone {
    /// A tombstone over `[start, end)`.
    pub fn new(start: &[u8], end: &[u8], version: Version) -> RangeTombstone {
        debug_assert!(start < end, "a range tombstone covers something");
        RangeTombstone { start: start.into(), end: end.into(), version }
    }
}

/// A range of keys and the versions of all tombstones that cover it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// The first user key.
    pub start: Box<[u8]>,
    /// The first user key that is no longer covered.
    pub end: Box<[u8]>,
    /// Newest first, distinct, at least one.
    pub versions: Box<[Version]>,
}

impl Fragment {
    /// The newest tombstone here that a reader at `at` sees.
    #[inline]
    pub fn newest_at(&self, at: Version) -> Option<Version> {
        if self.versions[0] <= at {
            return Some(self.versions[0]);
        }
        let index = self.versions.partition_point(|&version| version > at);
        self.versions.get(index).copied()
    }
}

/// Sorted, disjoint fragments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FragmentList {
    fragments: Vec<Fragment>,
}

impl FragmentList {
    /// Cuts tombstones, in any order and overlapping in any way, into fragments. O(n log n + output).
    pub fn new<'a>(tombstones: impl IntoIterator<Item = (&'a [u8], &'a [u8], Version)>) -> FragmentList {
        // A sweep over all ends, keeping the set of versions that cover the place where it stands.
        let mut events: Vec<(&[u8], bool, Version)> = Vec::new();
        for (start, end, version) in tombstones {
            if start < end {
                events.push((start, true, version));
                events.push((end, false, version));
            }
        }
        events.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let mut fragments: Vec<Fragment> = Vec::new();
        // Several tombstones may carry the same version (one batch), so the set counts them.
        let mut active: BTreeSet<(Version, usize)> = BTreeSet::new();
        let mut counts: std::collections::BTreeMap<Version, usize> = std::collections::BTreeMap::new();
        let mut index = 0;
        while index < events.len() {
            let here = events[index].0;
            while index < events.len() && events[index].0 == here {
                let (_, opens, version) = events[index];
                let count = counts.entry(version).or_insert(0);
                if opens {
                    active.insert((version, *count));
                    *count += 1;
                } else if *count > 0 && active.contains(&(version, *count - 1)) {
                    *count -= 1;
                    active.remove(&(version, *count));
                } else {
                    // The closing event was sorted before the opening one at the same key: only an empty range could.
                    debug_assert!(false, "a tombstone closes that was not open");
                }
                index += 1;
            }
            if let (false, Some(&(next, ..))) = (active.is_empty(), events.get(index)) {
                let mut versions: Vec<Version> = active.iter().rev().map(|&(version, _)| version).collect();
                versions.dedup();
                FragmentList::push(&mut fragments, here, next, versions);
            }
        }
        FragmentList { fragments }
    }

    /// From fragments that already hold the invariants, as read from a table; `None` if they do not.
    pub fn from_fragments(fragments: Vec<Fragment>) -> Option<FragmentList> {
        let list = FragmentList { fragments };
        list.is_well_formed().then_some(list)
    }

    fn push(fragments: &mut Vec<Fragment>, start: &[u8], end: &[u8], versions: Vec<Version>) {
        if let Some(last) = fragments.last_mut()
            && *last.end == *start
            && *last.versions == *versions
        {
            last.end = end.into();
            return;
        }
        fragments.push(Fragment { start: start.into(), end: end.into(), versions: versions.into() });
    }

    fn is_well_formed(&self) -> bool {
        self.fragments
            .iter()
            .all(|f| f.start < f.end && !f.versions.is_empty() && f.versions.windows(2).all(|pair| pair[0] > pair[1]))
            && self.fragments.windows(2).all(|pair| pair[0].end <= pair[1].start)
    }

    /// Panics if an invariant does not hold.
    pub fn check(&self) {
        assert!(self.is_well_formed(), "fragments are sorted, disjoint and not empty: {self:?}");
    }

    /// The fragments in key order.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// True without a fragment.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// The index of the first fragment whose end lies after `key`: the one that covers it, or else the next one.
    #[inline]
    pub fn first_ending_after(&self, key: &[u8]) -> usize {
        self.fragments.partition_point(|fragment| {
            *fragment.end < *key || (*fragment.end == *key && !planted(Bug::TombstoneEndIncluded))
        })
    }

    /// The fragment that covers `key`.
    #[inline]
    pub fn covering(&self, key: &[u8]) -> Option<&Fragment> {
        self.fragments.get(self.first_ending_after(key)).filter(|fragment| *fragment.start <= *key)
    }

    /// The newest tombstone over `key` that a reader at `at` sees.
    #[inline]
    pub fn newest_covering(&self, key: &[u8], at: Version) -> Option<Version> {
        if self.fragments.is_empty() {
            return None;
        }
        self.covering(key).and_then(|fragment| fragment.newest_at(at))
    }

    /// Every (start, end, version), so that lists can be merged by building a new one.
    pub fn tombstones(&self) -> impl Iterator<Item = (&[u8], &[u8], Version)> {
        self.fragments.iter().flat_map(|f| f.versions.iter().map(move |&version| (&*f.start, &*f.end, version)))
    }

    /// Only what lies within `[start, end)`; `None` means no bound.
    pub fn clipped(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> FragmentList {
        let fragments = self
            .fragments
            .iter()
            .filter_map(|fragment| {
                let from = start.map_or(&*fragment.start, |start| start.max(&fragment.start));
                let to = end.map_or(&*fragment.end, |end| end.min(&fragment.end));
                (from < to).then(|| Fragment {
                    start: from.into(),
                    end: to.into(),
                    versions: fragment.versions.clone(),
                })
            })
            .collect();
        FragmentList { fragments }
    }

    /// Bytes of memory held.
    pub fn memory_bytes(&self) -> usize {
        self.fragments
            .iter()
            .map(|f| size_of::<Fragment>() + f.start.len() + f.end.len() + f.versions.len() * size_of::<Version>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    fn show(list: &FragmentList) -> String {
        list.check();
        list.fragments()
            .iter()
            .map(|f| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                format!("{}-{}@{:?} ", text(&f.start), text(&f.end), f.versions)
            })
            .collect()
    }

    fn list(tombstones: &[(&str, &str, u64)]) -> FragmentList {
        FragmentList::new(tombstones.iter().map(|&(s, e, v)| (s.as_bytes(), e.as_bytes(), Version::from_u64(v))))
    }

    /// Overlaps are cut at each end, touching equals are joined, empty ranges vanish.
    #[test]
    fn overlapping_tombstones_are_cut() {
        assert_eq!(show(&list(&[("a", "f", 1), ("c", "h", 2)])), "a-c@[v1] c-f@[v2, v1] f-h@[v2] ");
        assert_eq!(show(&list(&[("a", "c", 1), ("c", "e", 1)])), "a-e@[v1] ");
        assert_eq!(show(&list(&[("a", "c", 1), ("a", "c", 1)])), "a-c@[v1] ");
        assert_eq!(show(&list(&[("b", "b", 1), ("c", "a", 1)])), "");
    }

    /// Against the obvious definition, at every key and version of a small universe.
    #[test]
    fn lookups_equal_the_definition() {
        let mut random = SplitMix64::new(11);
        for _ in 0..500 {
            let count = random.below(8);
            let tombstones: Vec<(Vec<u8>, Vec<u8>, Version)> = (0..count)
                .map(|_| {
                    let (a, b) = (random.below(12) as u8, random.below(12) as u8);
                    (vec![a.min(b)], vec![a.max(b)], Version::from_u64(random.below(6)))
                })
                .collect();
            let list = FragmentList::new(tombstones.iter().map(|(s, e, v)| (&s[..], &e[..], *v)));
            list.check();
            for key in 0..13u8 {
                for at in 0..7 {
                    let at = Version::from_u64(at);
                    let expected = tombstones
                        .iter()
                        .filter(|(s, e, v)| s[0] <= key && key < e[0] && *v <= at)
                        .map(|(.., v)| *v)
                        .max();
                    assert_eq!(list.newest_covering(&[key], at), expected, "{tombstones:?} {key} {at}");
                }
            }
        }
    }
}
