//! The resolver's conflict window, and the structures that it was measured against.

use std::collections::{BTreeMap, HashMap, VecDeque};

use clap::ValueEnum;
use ferrisdb_core::{Bytes, KeyRange, Version};
use ferrisdb_server::resolver::{Checked, ConflictWindow};

use super::Mix;

/// What a structure must do.
pub(super) trait Structure {
    fn is_conflict(&self, read_version: Version, reads: &[KeyRange]) -> bool;
    fn add(&mut self, version: Version, writes: &[KeyRange]);
    fn forget_below(&mut self, version: Version);
    /// About the bytes that it takes; zero if it does not know.
    fn bytes(&self) -> usize;
}

/// Which structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StructureName {
    /// The resolver's: generations with a hash index and sorted runs each.
    Generations,
    /// One step function in a two-level B+tree with prefixes and a maximum for each leaf.
    Tree,
    /// One hash table for points, in the order of their coming deleted again; it knows no ranges.
    Hash,
    /// One step function in the standard library's B-tree: the obvious one.
    #[value(name = "btreemap")]
    BTreeMap,
}

impl StructureName {
    pub(super) fn make(self, floor: Version) -> Box<dyn Structure> {
        match self {
            StructureName::Generations => Box::new(ConflictWindow::new(floor)),
            StructureName::Tree => Box::new(Tree::new()),
            StructureName::Hash => Box::new(Hash::default()),
            StructureName::BTreeMap => Box::new(Obvious::new()),
        }
    }

    pub(super) fn has(self, mix: Mix) -> bool {
        self != StructureName::Hash || !matches!(mix, Mix::Ranges | Mix::Clears)
    }
}

impl Structure for ConflictWindow {
    fn is_conflict(&self, read_version: Version, reads: &[KeyRange]) -> bool {
        match self.check(read_version, reads) {
            Checked::Ok => false,
            Checked::Conflict(_) => true,
            Checked::TooOld => unreachable!("the transactions of the benchmark are in the window"),
        }
    }

    fn add(&mut self, version: Version, writes: &[KeyRange]) {
        ConflictWindow::add(self, version, writes);
    }

    fn forget_below(&mut self, version: Version) {
        ConflictWindow::forget_below(self, version);
    }

    fn bytes(&self) -> usize {
        ConflictWindow::bytes(self)
    }
}

/// Steps to sweep for each write: what was written is swept within a window.
const SWEPT_PER_WRITE: usize = 5;

/// From each boundary to the next, the newest version.
struct Obvious {
    floor: Version,
    steps: BTreeMap<Bytes, Version>,
    /// How far the sweep for old steps has come.
    swept: Bytes,
    /// Steps that the sweep owes.
    owed: usize,
}

impl Obvious {
    fn new() -> Obvious {
        let steps = BTreeMap::from([(Bytes::new(), Version::ZERO)]);
        Obvious { floor: Version::ZERO, steps, swept: Bytes::new(), owed: 0 }
    }

    fn at(&self, key: &Bytes) -> Version {
        self.steps.range::<Bytes, _>(..=key).next_back().map_or(Version::ZERO, |step| *step.1)
    }
}

impl Structure for Obvious {
    fn is_conflict(&self, read_version: Version, reads: &[KeyRange]) -> bool {
        reads.iter().any(|read| {
            self.at(&read.begin) > read_version
                || self.steps.range(read.begin.clone()..read.end.clone()).any(|step| *step.1 > read_version)
        })
    }

    fn add(&mut self, version: Version, writes: &[KeyRange]) {
        for write in writes {
            let after = self.at(&write.end);
            let inside = self.steps.range(write.begin.clone()..write.end.clone());
            let inside: Vec<Bytes> = inside.map(|step| step.0.clone()).collect();
            for key in inside {
                self.steps.remove(&key);
            }
            self.steps.insert(write.begin.clone(), version);
            self.steps.insert(write.end.clone(), after);
            self.owed += SWEPT_PER_WRITE;
        }
    }

    fn forget_below(&mut self, version: Version) {
        self.floor = version;
        while self.owed > 64 {
            let part: Vec<(Bytes, Version)> =
                self.steps.range(self.swept.clone()..).take(64).map(|step| (step.0.clone(), *step.1)).collect();
            self.owed -= 64;
            let Some((last, _)) = part.last() else {
                self.swept = Bytes::new();
                continue;
            };
            self.swept = [last, &b"\0"[..]].concat().into();
            // An old step behind another old one says nothing new. The first of the part stays: what is before it is not known.
            for pair in part.windows(2) {
                if pair[0].1 <= self.floor && pair[1].1 <= self.floor {
                    self.steps.remove(&pair[1].0);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        0
    }
}

/// A point's newest version, and the points in the order of their writes.
#[derive(Default)]
struct Hash {
    versions: HashMap<Bytes, Version>,
    order: VecDeque<(Version, Bytes)>,
}

impl Structure for Hash {
    fn is_conflict(&self, read_version: Version, reads: &[KeyRange]) -> bool {
        reads.iter().any(|read| self.versions.get(&read.begin).is_some_and(|version| *version > read_version))
    }

    fn add(&mut self, version: Version, writes: &[KeyRange]) {
        for write in writes {
            self.versions.insert(write.begin.clone(), version);
            self.order.push_back((version, write.begin.clone()));
        }
    }

    fn forget_below(&mut self, version: Version) {
        while self.order.front().is_some_and(|write| write.0 <= version) {
            let (written, key) = self.order.pop_front().expect("looked at a moment ago");
            if self.versions.get(&key) == Some(&written) {
                self.versions.remove(&key);
            }
        }
    }

    fn bytes(&self) -> usize {
        0
    }
}

/// Steps in a leaf at most.
const LEAF_MAX: usize = 64;

/// A step function in leaves, with an array of their first keys above them. Keys are compared by their first eight bytes first.
struct Tree {
    floor: Version,
    firsts: Vec<u64>,
    leaves: Vec<Leaf>,
    swept: usize,
    owed: usize,
}

struct Leaf {
    prefixes: Vec<u64>,
    keys: Vec<Box<[u8]>>,
    versions: Vec<Version>,
    newest: Version,
}

fn prefix(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(8);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

impl Leaf {
    /// How many steps begin at or below the key (below it, unless `or_equal`).
    fn count_to(&self, key: &[u8], or_equal: bool) -> usize {
        let head = prefix(key);
        let mut place = self.prefixes.partition_point(|&other| other < head);
        while place < self.keys.len()
            && self.prefixes[place] == head
            && (&*self.keys[place] < key || (or_equal && &*self.keys[place] == key))
        {
            place += 1;
        }
        place
    }

    fn insert(&mut self, place: usize, key: &[u8], version: Version) {
        self.prefixes.insert(place, prefix(key));
        self.keys.insert(place, key.into());
        self.versions.insert(place, version);
        self.newest = self.newest.max(version);
    }

    fn split_off(&mut self, place: usize) -> Leaf {
        let mut right = Leaf {
            prefixes: self.prefixes.split_off(place),
            keys: self.keys.split_off(place),
            versions: self.versions.split_off(place),
            newest: Version::ZERO,
        };
        for leaf in [self, &mut right] {
            leaf.newest = leaf.versions.iter().copied().max().unwrap_or(Version::ZERO);
        }
        right
    }
}

impl Tree {
    fn new() -> Tree {
        let mut first = Leaf { prefixes: Vec::new(), keys: Vec::new(), versions: Vec::new(), newest: Version::ZERO };
        first.insert(0, b"", Version::ZERO);
        Tree { floor: Version::ZERO, firsts: vec![0], leaves: vec![first], swept: 0, owed: 0 }
    }

    /// The leaf of the last step at or below the key, and how many of its steps are.
    fn find(&self, key: &[u8]) -> (usize, usize) {
        let head = prefix(key);
        let mut leaf = self.firsts.partition_point(|&first| first <= head) - 1;
        while leaf > 0 && &*self.leaves[leaf].keys[0] > key {
            leaf -= 1;
        }
        (leaf, self.leaves[leaf].count_to(key, true))
    }

    fn at(&self, key: &[u8]) -> Version {
        let (leaf, count) = self.find(key);
        self.leaves[leaf].versions[count - 1]
    }

    /// Makes the key a boundary, with the version that is there.
    fn cut(&mut self, key: &[u8]) {
        let (leaf, count) = self.find(key);
        if &*self.leaves[leaf].keys[count - 1] == key {
            return;
        }
        let version = self.leaves[leaf].versions[count - 1];
        self.leaves[leaf].insert(count, key, version);
        if self.leaves[leaf].keys.len() > LEAF_MAX {
            let right = self.leaves[leaf].split_off(LEAF_MAX / 2);
            self.firsts.insert(leaf + 1, right.prefixes[0]);
            self.leaves.insert(leaf + 1, right);
        }
    }

    fn remove_empty(&mut self, leaf: usize) {
        if self.leaves[leaf].keys.is_empty() {
            self.leaves.remove(leaf);
            self.firsts.remove(leaf);
        } else {
            self.firsts[leaf] = self.leaves[leaf].prefixes[0];
        }
    }
}

impl Structure for Tree {
    fn is_conflict(&self, read_version: Version, reads: &[KeyRange]) -> bool {
        reads.iter().any(|read| {
            let (first, count) = self.find(&read.begin);
            let mut from = count - 1;
            for leaf in &self.leaves[first..] {
                let to = leaf.count_to(&read.end, false);
                if leaf.newest > read_version
                    && leaf.versions[from.min(to)..to].iter().any(|&version| version > read_version)
                {
                    return true;
                }
                if to < leaf.keys.len() {
                    return false;
                }
                from = 0;
            }
            false
        })
    }

    fn add(&mut self, version: Version, writes: &[KeyRange]) {
        for write in writes {
            debug_assert!(self.at(&write.begin) <= version);
            self.cut(&write.end);
            self.cut(&write.begin);
            let (first, count) = self.find(&write.begin);
            let leaf = &mut self.leaves[first];
            leaf.versions[count - 1] = version;
            leaf.newest = version;
            // What lies between goes.
            let (mut leaf, mut from) = (first, count);
            while leaf < self.leaves.len() {
                let here = &mut self.leaves[leaf];
                let to = here.count_to(&write.end, false);
                let is_last = to < here.keys.len();
                here.prefixes.drain(from.min(to)..to);
                here.keys.drain(from.min(to)..to);
                here.versions.drain(from.min(to)..to);
                let before = self.leaves.len();
                self.remove_empty(leaf);
                if is_last {
                    break;
                }
                leaf += usize::from(self.leaves.len() == before);
                from = 0;
            }
            self.owed += SWEPT_PER_WRITE;
        }
    }

    fn forget_below(&mut self, version: Version) {
        self.floor = version;
        while self.owed > LEAF_MAX {
            self.swept = if self.swept >= self.leaves.len() { 0 } else { self.swept };
            let floor = self.floor;
            let leaf = &mut self.leaves[self.swept];
            self.owed -= leaf.keys.len();
            let mut kept = 1;
            for index in 1..leaf.keys.len() {
                if leaf.versions[index] <= floor && leaf.versions[kept - 1] <= floor {
                    continue;
                }
                leaf.keys.swap(kept, index);
                leaf.prefixes.swap(kept, index);
                leaf.versions.swap(kept, index);
                kept += 1;
            }
            leaf.keys.truncate(kept);
            leaf.prefixes.truncate(kept);
            leaf.versions.truncate(kept);
            leaf.newest = leaf.versions.iter().copied().max().unwrap_or(Version::ZERO);
            // Two small neighbours become one.
            let next = self.swept + 1;
            if next < self.leaves.len() && self.leaves[next].keys.len() + kept <= LEAF_MAX / 2 {
                let right = self.leaves.remove(next);
                self.firsts.remove(next);
                let leaf = &mut self.leaves[self.swept];
                leaf.prefixes.extend(right.prefixes);
                leaf.keys.extend(right.keys);
                leaf.versions.extend(right.versions);
                leaf.newest = leaf.newest.max(right.newest);
            } else {
                self.swept = next;
            }
        }
    }

    fn bytes(&self) -> usize {
        let leaf = |leaf: &Leaf| {
            leaf.keys.iter().map(|key| key.len()).sum::<usize>()
                + 16 * leaf.keys.capacity()
                + 8 * (leaf.prefixes.capacity() + leaf.versions.capacity())
        };
        self.leaves.iter().map(leaf).sum::<usize>() + size_of::<Leaf>() * self.leaves.len() + 8 * self.firsts.len()
    }
}
