//! The visible iterator against the definition of what a reader sees, with sources that fail in the middle of a move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferrisdb_core::{Random, SplitMix64};

use super::*;
use crate::error::Error;
use crate::tombstone::FragmentList;

/// A sorted list that refuses one move in `refuse_one_in`.
struct ListSource {
    entries: Vec<(Vec<u8>, Trailer, Vec<u8>)>,
    at: Option<usize>,
    random: SplitMix64,
    refuse_one_in: u64,
}

impl ListSource {
    fn place(&mut self, at: Option<usize>) -> Result<()> {
        self.at = None;
        if self.refuse_one_in > 0 && self.random.one_in(self.refuse_one_in) {
            return Err(Error::WouldRead);
        }
        self.at = at.filter(|&at| at < self.entries.len());
        Ok(())
    }

    fn first_at_or_after(&self, target: InternalKey<'_>) -> usize {
        self.entries.partition_point(|(key, trailer, _)| InternalKey::new(key, *trailer) < target)
    }
}

impl PointIterator for ListSource {
    fn valid(&self) -> bool {
        self.at.is_some()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.place(Some(0))
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.place(self.entries.len().checked_sub(1))
    }
    fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.place(Some(self.first_at_or_after(target)))
    }
    fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.place(self.first_at_or_after(target).checked_sub(1))
    }
    fn next(&mut self) -> Result<()> {
        self.place(Some(self.at.unwrap() + 1))
    }
    fn prev(&mut self) -> Result<()> {
        self.place(self.at.unwrap().checked_sub(1))
    }
    fn key(&self) -> InternalKey<'_> {
        let (key, trailer, _) = &self.entries[self.at.unwrap()];
        InternalKey::new(key, *trailer)
    }
    fn value(&self) -> &[u8] {
        &self.entries[self.at.unwrap()].2
    }
}

struct World {
    sources: Vec<(Vec<(Vec<u8>, Trailer, Vec<u8>)>, FragmentList)>,
    history: Vec<(Version, BTreeMap<Vec<u8>, Vec<u8>>)>,
}

/// Random batches over a few sources, each later source newer, and the state after each batch.
fn world(random: &mut SplitMix64) -> World {
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut history = vec![(Version::ZERO, model.clone())];
    let mut sources = Vec::new();
    let mut version = 0;
    let key = |random: &mut SplitMix64| {
        vec![b'a'; random.below(3) as usize].into_iter().chain([b'a' + random.below(9) as u8]).collect()
    };
    for _ in 0..=random.below(5) {
        let mut entries = Vec::new();
        let mut ranges = Vec::new();
        for _ in 0..random.below(12) {
            version += 1 + random.below(3);
            let at = Version::from_u64(version);
            if random.one_in(4) {
                let (a, b): (Vec<u8>, Vec<u8>) = (key(random), key(random));
                let (start, end) = if a < b { (a, b) } else { (b, a) };
                model.retain(|key, _| !(start <= *key && *key < end));
                ranges.push((start, end, at));
            }
            let mut touched = BTreeSet::new();
            for _ in 0..random.below(4) {
                let key: Vec<u8> = key(random);
                if !touched.insert(key.clone()) {
                    continue;
                }
                if random.one_in(3) {
                    model.remove(&key);
                    entries.push((key, Trailer::new(at, ValueKind::Tombstone), Vec::new()));
                } else {
                    let value = format!("{version}").into_bytes();
                    model.insert(key.clone(), value.clone());
                    entries.push((key, Trailer::new(at, ValueKind::Value), value));
                }
            }
            history.push((at, model.clone()));
        }
        entries.sort_by(|a, b| InternalKey::new(&a.0, a.1).cmp(&InternalKey::new(&b.0, b.1)));
        let list = FragmentList::new(ranges.iter().map(|(s, e, v)| (&s[..], &e[..], *v)));
        sources.insert(0, (entries, list));
    }
    World { sources, history }
}

fn open(
    world: &World,
    at: Version,
    bounds: (Option<Box<[u8]>>, Option<Box<[u8]>>),
    refuse_one_in: u64,
    seed: u64,
) -> VisibleIterator<ListSource> {
    let sources = world.sources.iter().map(|(entries, list)| {
        let source = ListSource { entries: entries.clone(), at: None, random: SplitMix64::new(seed), refuse_one_in };
        let tombstones = (!list.is_empty()).then(|| Arc::new(list.clone()) as Arc<dyn crate::iter::cover::RangeCover>);
        (source, Cover::new(tombstones, at))
    });
    VisibleIterator::new(sources.collect(), at, bounds.0, bounds.1)
}

/// Every move equals the model, at every version, with and without interruptions that are retried.
#[test]
fn moves_equal_the_model() {
    let first = std::env::var("FERRISDB_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in first.map_or(0..3_000, |seed: u64| seed..seed + 1) {
        let mut random = SplitMix64::new(seed);
        let world = world(&mut random);
        let (at, model) = &world.history[random.below(world.history.len() as u64) as usize];
        let refuse_one_in = if random.one_in(2) { 4 + random.below(10) } else { 0 };
        let bound = |random: &mut SplitMix64| random.one_in(3).then(|| Box::from([b'a' + random.below(9) as u8]));
        let (lower, upper): (Option<Box<[u8]>>, Option<Box<[u8]>>) = (bound(&mut random), bound(&mut random));
        let keys: Vec<(&Vec<u8>, &Vec<u8>)> = model
            .iter()
            .filter(|(key, _)| {
                lower.as_ref().is_none_or(|l| **l <= ***key) && upper.as_ref().is_none_or(|u| ***key < **u)
            })
            .collect();
        let mut iter = open(&world, *at, (lower, upper), refuse_one_in, seed);
        let mut place: Option<usize> = None;
        for step in 0..60 {
            let target = vec![b'a' + random.below(10) as u8; 1 + random.below(2) as usize];
            let choice = random.below(if place.is_some() { 10 } else { 4 });
            let mut result = match choice {
                0 => iter.seek_to_first(),
                1 => iter.seek_to_last(),
                2 => iter.seek(&target),
                3 => iter.seek_before(&target),
                4..=7 => iter.next(),
                _ => iter.prev(),
            };
            let first_at = keys.partition_point(|(key, _)| **key < target);
            place = match choice {
                0 => Some(0),
                1 => keys.len().checked_sub(1),
                2 => Some(first_at),
                3 => first_at.checked_sub(1),
                4..=7 => place.map(|place| place + 1),
                _ => place.and_then(|place| place.checked_sub(1)),
            }
            .filter(|&place| place < keys.len());
            let mut tries = 0;
            while let Err(error) = result {
                assert!(matches!(error, Error::WouldRead) && !iter.valid());
                tries += 1;
                assert!(tries < 10_000, "an interrupted move makes progress");
                result = if random.one_in(2) { iter.next() } else { iter.prev() };
            }
            let got = iter.valid().then(|| (iter.key().to_vec(), iter.value().to_vec()));
            let want = place.map(|place| (keys[place].0.clone(), keys[place].1.clone()));
            assert_eq!(got, want, "FERRISDB_TEST_SEED={seed} step {step} choice {choice} target {target:?}");
        }
    }
}

/// A range tombstone over many older entries costs one seek, not one step per entry.
#[test]
fn a_covered_run_is_jumped_over() {
    let older = (0..10_000u32)
        .map(|n| (n.to_be_bytes().to_vec(), Trailer::new(Version::from_u64(1), ValueKind::Value), vec![1]));
    let list = FragmentList::new([(&0u32.to_be_bytes()[..], &9_999u32.to_be_bytes()[..], Version::from_u64(2))]);
    let world =
        World { sources: vec![(Vec::new(), list), (older.collect(), FragmentList::default())], history: Vec::new() };
    let mut iter = open(&world, Version::from_u64(5), (None, None), 0, 0);
    iter.seek_to_first().unwrap();
    assert_eq!(iter.key(), 9_999u32.to_be_bytes());
    assert_eq!(iter.take_skipped(), 1);
    iter.prev().unwrap();
    assert!(!iter.valid());
    assert_eq!(iter.take_skipped(), 1);
}
