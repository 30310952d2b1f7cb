//! Picker, plans, retention and levels together, against a model that remembers everything.
//!
//! A toy engine over 24 keys flushes, ingests, picks, runs several plans at once and finishes them in any order, while floor and pins
//! move. After each change of the levels, every key is read at every readable version, stopping at the first place that has an
//! answer, as the real engine does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferrisdb_core::{Random, SplitMix64, Version};

use super::picker::{ManualRange, ManualStep, PickerOptions, SkippedRange, compact_range_step, l0_runs, pick};
use super::plan::Action;
use super::retention::{Decision, Retention};
use super::{CompactionPlan, Hints};
use crate::key::ValueKind;
use crate::levels::{LEVELS, Levels, TableLike};
use crate::manifest::{FileNumber, ManifestEdit, TableMeta};
use crate::tombstone::{FragmentList, RangeTombstone};

const KEYS: u64 = 24;

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

/// A point entry: the identity of the value, or nothing for a tombstone.
type Point = (u8, Version, Option<u64>);

/// A range tombstone: start, end, version.
type RangeEntry = (Box<[u8]>, Box<[u8]>, Version);

#[derive(Debug)]
struct Table {
    meta: TableMeta,
    points: Vec<Point>,
    ranges: FragmentList,
}

impl TableLike for Table {
    fn meta(&self) -> &TableMeta {
        &self.meta
    }
}

impl Table {
    /// From at least one point or range.
    fn new(number: u64, rank: u64, points: Vec<Point>, ranges: FragmentList) -> Table {
        let versions = || points.iter().map(|point| point.1).chain(ranges.tombstones().map(|(.., version)| version));
        let mut meta = TableMeta {
            number: FileNumber(number),
            file_bytes: points.len() as u64 + 1,
            smallest_version: versions().min().unwrap(),
            largest_version: versions().max().unwrap(),
            entries: points.len() as u64,
            tombstones: points.iter().filter(|point| point.2.is_none()).count() as u64,
            range_tombstones: ranges.tombstones().count() as u64,
            l0_rank: rank,
            ..TableMeta::default()
        };
        let first =
            points.iter().map(|point| vec![point.0]).chain(ranges.fragments().first().map(|f| f.start.to_vec()));
        meta.smallest = first.min().unwrap().into();
        let point_end = points.iter().map(|point| point.0).max();
        let range_end = ranges.fragments().last().map(|fragment| fragment.end.clone());
        (meta.largest, meta.largest_exclusive) = match (point_end, range_end) {
            (Some(point), Some(range)) if *range <= [point][..] => ([point].into(), false),
            (_, Some(range)) => (range, true),
            (Some(point), None) => ([point].into(), false),
            (None, None) => unreachable!(),
        };
        Table { meta, points, ranges }
    }
}

#[derive(Debug, Clone, Default)]
struct History {
    /// In the order of writing; of one key and version there is one.
    points: Vec<Point>,
    ranges: Vec<(u8, u8, Version)>,
}

impl History {
    fn get(&self, key: u8, at: Version) -> Option<u64> {
        let point = self.points.iter().filter(|point| point.0 == key && point.1 <= at).max_by_key(|point| point.1)?;
        let hidden = self.ranges.iter().any(|r| r.0 <= key && key < r.1 && r.2 <= at && r.2 > point.1);
        point.2.filter(|_| !hidden)
    }

    fn newest(&self, from: u8, to: u8) -> Version {
        let points = self.points.iter().filter(|p| from <= p.0 && p.0 <= to).map(|p| p.1);
        let ranges = self.ranges.iter().filter(|r| r.0 <= to && from < r.1).map(|r| r.2);
        points.chain(ranges).max().unwrap_or(Version::ZERO)
    }
}

struct Engine {
    random: SplitMix64,
    options: PickerOptions,
    history: History,
    memtable: History,
    levels: Levels<Table>,
    running: Vec<(CompactionPlan, Vec<Table>)>,
    next_number: u64,
    version: u64,
    floor: u64,
    pins: BTreeSet<u64>,
    picked: BTreeMap<String, u64>,
}

impl Engine {
    fn new(seed: u64) -> Engine {
        let mut random = SplitMix64::new(seed);
        let options = PickerOptions {
            l0_runs: 1 + random.below(4),
            base_bytes: 4 + random.below(30),
            multiplier: 2 + random.below(3),
            table_bytes: 2 + random.below(8),
            compaction_bytes_max: 10 + random.below(100),
            intra_l0_bytes_max: 10 + random.below(60),
            intra_l0_runs_min: 2 + random.below(3),
            grandparent_bytes_max: 4 + random.below(30),
            tombstone_percent: 50,
            tombstones_min: 1 + random.below(5),
            subcompactions_max: 1 + random.below(3) as usize,
        };
        Engine {
            random,
            options,
            history: History::default(),
            memtable: History::default(),
            levels: Levels::default(),
            running: Vec::new(),
            next_number: 1,
            version: 0,
            floor: 0,
            pins: BTreeSet::new(),
            picked: BTreeMap::new(),
        }
    }

    fn key(&mut self) -> u8 {
        self.random.below(KEYS) as u8
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn retention(&self) -> Retention {
        Retention::new(v(self.floor), self.pins.iter().map(|&pin| v(pin)))
    }

    fn write(&mut self) {
        self.version += 1 + self.random.below(2);
        let version = v(self.version);
        if self.random.one_in(12) {
            let (a, b) = (self.key(), self.key());
            let range = (a.min(b), a.max(b) + 1, version);
            self.history.ranges.push(range);
            self.memtable.ranges.push(range);
        }
        let mut keys = BTreeSet::new();
        // Sometimes a front that moves on, with tombstones behind it, as a queue has.
        for _ in 0..1 + self.random.below(4) {
            keys.insert(self.key());
        }
        for key in keys {
            let value = (!self.random.one_in(3)).then_some(self.version);
            self.history.points.push((key, version, value));
            self.memtable.points.push((key, version, value));
        }
    }

    fn flush(&mut self) {
        let memtable = std::mem::take(&mut self.memtable);
        if memtable.points.is_empty() && memtable.ranges.is_empty() {
            return;
        }
        let mut points = memtable.points;
        points.sort_by_key(|point| (point.0, std::cmp::Reverse(point.1)));
        let ranges: Vec<([u8; 1], [u8; 1], Version)> = memtable.ranges.iter().map(|r| ([r.0], [r.1], r.2)).collect();
        let number = self.number();
        let table =
            Table::new(number, number, points, FragmentList::new(ranges.iter().map(|r| (&r.0[..], &r.1[..], r.2))));
        self.change(&ManifestEdit { added: vec![(0, table.meta.clone())], ..ManifestEdit::default() }, vec![table]);
    }

    /// Data built outside, at an old version, over a range that holds nothing newer.
    fn ingest(&mut self) {
        let (a, b) = (self.key(), self.key());
        let (from, to) = (a.min(b), a.max(b));
        let newest = self.history.newest(from, to);
        if newest.get() >= self.version {
            return;
        }
        // An overlapping memtable would be older and yet in a newer place.
        if self.memtable.newest(from, to) > Version::ZERO {
            self.flush();
        }
        let version = v(newest.get() + 1 + self.random.below(self.version - newest.get()));
        let id = version.get() + 1_000_000;
        let points: Vec<Point> =
            (from..=to).filter(|_| self.random.one_in(2)).map(|key| (key, version, Some(id))).collect();
        if points.is_empty() {
            return;
        }
        self.history.points.extend(&points);
        let number = self.number();
        let table = Table::new(number, number, points, FragmentList::default());
        self.change(&ManifestEdit { added: vec![(0, table.meta.clone())], ..ManifestEdit::default() }, vec![table]);
    }

    fn change(&mut self, edit: &ManifestEdit, tables: Vec<Table>) {
        let mut tables: BTreeMap<FileNumber, Arc<Table>> =
            tables.into_iter().map(|table| (table.meta.number, Arc::new(table))).collect();
        let open = |meta: &TableMeta, before: Option<Arc<Table>>| {
            Ok::<_, ()>(before.or_else(|| tables.remove(&meta.number)).expect("an added table is new or was moved"))
        };
        self.levels = self.levels.apply(edit, open).unwrap();
        self.check();
    }

    fn start(&mut self, plan: CompactionPlan) {
        *self.picked.entry(format!("{:?} {:?}", plan.reason, plan.action)).or_default() += 1;
        let outputs = if plan.action == Action::Rewrite { self.run(&plan) } else { Vec::new() };
        self.running.push((plan, outputs));
    }

    fn pick(&mut self) -> bool {
        let tombstones: Vec<RangeTombstone> = self
            .levels
            .tables()
            .flat_map(|(_, table)| {
                table.ranges.tombstones().map(|(s, e, v)| RangeTombstone::new(s, e, v)).collect::<Vec<_>>()
            })
            .collect();
        let skipped: Vec<SkippedRange> = (0..self.random.below(2))
            .map(|_| {
                let (a, b) = (self.key(), self.key());
                SkippedRange { start: [a.min(b)].into(), end: [a.max(b)].into(), tombstones: self.random.below(20) }
            })
            .collect();
        let busy: Vec<CompactionPlan> = self.running.iter().map(|(plan, _)| plan.clone()).collect();
        let hints = Hints { range_tombstones: &tombstones, skipped: &skipped, ..Hints::default() };
        match pick(&self.levels, &self.options, &self.retention(), &busy, hints) {
            Some(plan) => {
                self.start(plan);
                true
            }
            None => false,
        }
    }

    fn compact_by_hand(&mut self) {
        let (a, b) = (self.key(), self.key());
        let range = ManualRange {
            start: Some([a.min(b)].into()),
            end: Some([a.max(b) + 1].into()),
            began: FileNumber(self.next_number),
            // What runs already has the same retention.
            stale: BTreeSet::new(),
        };
        for _ in 0..200 {
            let busy: Vec<CompactionPlan> = self.running.iter().map(|(plan, _)| plan.clone()).collect();
            match compact_range_step(&self.levels, &self.options, &self.retention(), &busy, &range) {
                ManualStep::Plan(plan) => self.start(*plan),
                ManualStep::Blocked => self.finish(),
                ManualStep::Done => return,
            }
        }
        panic!("a range is compacted in few steps");
    }

    fn finish(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let which = self.random.below(self.running.len() as u64) as usize;
        let (plan, outputs) = self.running.swap_remove(which);
        let edit = plan.edit(&self.levels, outputs.iter().map(|table| table.meta.clone()).collect());
        self.change(&edit, outputs);
    }

    /// What a compaction job does, on entries in memory.
    fn run(&mut self, plan: &CompactionPlan) -> Vec<Table> {
        let inputs: Vec<Arc<Table>> = plan
            .files()
            .map(|file| self.levels.tables().find(|(_, table)| table.meta.number == file).unwrap().1.clone())
            .collect();
        let retention = self.retention();
        let fragments = FragmentList::new(inputs.iter().flat_map(|table| table.ranges.tombstones()));
        let mut kept: Vec<Point> = Vec::new();
        for key in 0..KEYS as u8 {
            let mut points: Vec<Point> =
                inputs.iter().flat_map(|table| table.points.iter().filter(|point| point.0 == key).copied()).collect();
            points.sort_by_key(|point| std::cmp::Reverse(point.1));
            let covering = fragments.covering(&[key]).map_or(&[][..], |fragment| &fragment.versions);
            let mut filter = retention.key(covering, plan.is_bottom_key(&[key]));
            for point in points {
                let kind = if point.2.is_some() { ValueKind::Value } else { ValueKind::Tombstone };
                match filter.decide(point.1, kind) {
                    Decision::Keep => kept.push(point),
                    Decision::KeepAtZero => kept.push((point.0, Version::ZERO, point.2)),
                    Decision::Drop => {}
                }
            }
        }
        let mut versions = Vec::new();
        let mut tombstones: Vec<RangeEntry> = Vec::new();
        for fragment in fragments.fragments() {
            versions.clear();
            let bottom = plan.is_bottom_range(&fragment.start, &fragment.end);
            retention.fragment(&fragment.versions, bottom, &mut versions);
            tombstones.extend(versions.iter().map(|&version| (fragment.start.clone(), fragment.end.clone(), version)));
        }
        let ranges = FragmentList::new(tombstones.iter().map(|(s, e, version)| (&**s, &**e, *version)));
        // Cut where the output is full, or at the keys of the plan.
        let mut cuts: Vec<u8> = plan.split_keys.iter().map(|key| key[0]).collect();
        let mut bytes = 0;
        for pair in kept.windows(2) {
            bytes += 1;
            if bytes >= plan.output_file_bytes && pair[0].0 != pair[1].0 {
                cuts.push(pair[1].0);
                bytes = 0;
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut outputs = Vec::new();
        for index in 0..=cuts.len() {
            let from = index.checked_sub(1).map(|before| cuts[before]);
            let to = cuts.get(index).copied();
            let inside = |key: u8| from.is_none_or(|from| from <= key) && to.is_none_or(|to| key < to);
            let points: Vec<Point> = kept.iter().filter(|point| inside(point.0)).copied().collect();
            let part = ranges.clipped(from.as_ref().map(std::slice::from_ref), to.as_ref().map(std::slice::from_ref));
            if !points.is_empty() || !part.is_empty() {
                outputs.push(Table::new(self.number(), plan.output_rank, points, part));
            }
        }
        outputs
    }

    /// The places from newest to oldest.
    fn places(&self) -> Vec<&Arc<Table>> {
        (0..LEVELS).flat_map(|level| self.levels.level(level).tables()).collect()
    }

    fn get(&self, key: u8, at: Version) -> Option<u64> {
        let memtable_points = self.memtable.points.iter().filter(|p| p.0 == key && p.1 <= at).max_by_key(|p| p.1);
        let memtable_range =
            self.memtable.ranges.iter().filter(|r| r.0 <= key && key < r.1 && r.2 <= at).map(|r| r.2).max();
        let answer = |point: Option<&Point>, range: Option<Version>| match (point, range) {
            (Some(point), Some(range)) if range > point.1 => Some(None),
            (Some(point), _) => Some(point.2),
            (None, Some(_)) => Some(None),
            (None, None) => None,
        };
        if let Some(found) = answer(memtable_points, memtable_range) {
            return found;
        }
        let mut tables: Vec<&Arc<Table>> =
            self.levels.level(0).tables().iter().filter(|table| table.meta.covers(&[key])).collect();
        tables.extend((1..LEVELS).filter_map(|level| self.levels.find(level, &[key])));
        for table in tables {
            let point = table.points.iter().filter(|p| p.0 == key && p.1 <= at).max_by_key(|p| p.1);
            if let Some(found) = answer(point, table.ranges.newest_covering(&[key], at)) {
                return found;
            }
        }
        None
    }

    fn check(&self) {
        self.levels.check();
        for key in 0..KEYS as u8 {
            let mut newer = Version::MAX;
            for table in self.places() {
                let points = table.points.iter().filter(|point| point.0 == key).map(|point| point.1);
                let ranges =
                    table.ranges.covering(&[key]).into_iter().flat_map(|fragment| fragment.versions.iter().copied());
                let versions: Vec<Version> = points.chain(ranges).collect();
                if let (Some(&min), Some(&max)) = (versions.iter().min(), versions.iter().max()) {
                    assert!(max < newer, "key {key}: {max} in an older place than {newer}");
                    newer = min;
                }
            }
            // Around the floor and at the newest all, in between some: reading everything after each change takes minutes.
            let between =
                (self.floor..=self.version).filter(|at| at - self.floor < 4 || self.version - at < 2 || at % 7 == 0);
            for at in self.pins.iter().copied().chain(between).map(v) {
                assert_eq!(self.get(key, at), self.history.get(key, at), "key {key} at {at}");
            }
        }
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..18 => self.write(),
            18..22 => self.flush(),
            22..28 => drop(self.pick()),
            28..33 => self.finish(),
            33..35 => self.floor += self.random.below(self.version - self.floor + 1).min(12),
            35 | 36 => {
                let at = self.floor + self.random.below(self.version - self.floor + 1);
                self.pins.insert(at);
            }
            37 => {
                if let Some(&pin) = self.pins.iter().nth(self.random.below(3) as usize) {
                    self.pins.remove(&pin);
                }
            }
            38 => self.ingest(),
            _ if self.random.one_in(4) => self.compact_by_hand(),
            _ => {}
        }
    }
}

/// Any interleaving of writes, flushes, ingestions, picks and finished plans keeps every readable answer, and the picker comes to
/// rest with L0 below its trigger and no debt by size left undone.
#[test]
fn nothing_readable_changes_in_any_interleaving() {
    let mut picked: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..80 {
        let result = std::panic::catch_unwind(|| {
            let mut engine = Engine::new(seed);
            for _ in 0..300 {
                engine.step();
            }
            engine.flush();
            let mut rounds = 0;
            while engine.pick() || !engine.running.is_empty() {
                if engine.random.one_in(2) {
                    engine.finish();
                }
                rounds += 1;
                assert!(rounds < 2_000, "the picker comes to rest");
            }
            assert!(l0_runs(&engine.levels) < engine.options.l0_runs.max(1));
            engine.picked
        });
        let Ok(counts) = result else { panic!("failed with seed {seed}") };
        for (what, count) in counts {
            *picked.entry(what).or_default() += count;
        }
    }
    for what in [
        "L0 Rewrite",
        "L0 Move",
        "IntraL0 Rewrite",
        "LevelSize Rewrite",
        "LevelSize Move",
        "Drain",
        "SkippedTombstones Rewrite",
        "TombstoneDensity Rewrite",
        "RangeTombstone DropUnread",
        "Manual Rewrite",
    ] {
        assert!(picked.keys().any(|key| key.starts_with(what)), "{what} was never picked: {picked:?}");
    }
}
