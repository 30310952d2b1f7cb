//! Which compaction comes next: [`pick`], [`compact_range_step`], [`pending_bytes`]. Pure functions of the levels, the options,
//! the running plans and a few hints.
//!
//! # Shape of the tree
//! Leveled, with targets computed from the bottom, as RocksDB's dynamic level bytes do: the deepest level is as large as the data
//! is; each level above it is a tenth, until that fits `base_bytes`; this is the *base level*, into which L0 is compacted. The levels
//! between L0 and the base stay empty, so about 1.1 × the live data is on disk, whatever its size. No level's target is below
//! `base_bytes`. Unlike RocksDB's, a target never grows with L0: what looks adaptive there makes the debt jump when L0 shrinks.
//!
//! # Order of picks
//! 1. Whole tables under a range tombstone that no reader needs: they cost one manifest edit.
//! 2. Ranges in which iterators had to skip many tombstones, unless L0 is far behind or another such pick runs. First, because a
//!    busy engine always has a level above its target, and a queue at the front of a busy engine must not become ever slower.
//! 3. The level with the highest score, and the next if it is blocked: L0 (sorted runs against `l0_runs`, bytes against
//!    `base_bytes`), levels above target, levels above the base that are to be emptied.
//!    L0 goes to the base level; while that is blocked, an L0 far above its trigger is merged within itself, and so are its newest
//!    runs where all of L0 is small against what it would have rewritten of the base level.
//! 4. Tables that consist largely of tombstones, if these are many in comparison with what they would be merged with: one level
//!    down, or rewritten where they are if nothing older is below and every
//!    tombstone in them can go (so that no table is rewritten twice for this).
//! 5. Tables that keep a blob file alive that is mostly garbage. With more garbage than values in all blob files together, this comes
//!    before 3, unless L0 is far behind: in a busy engine 3 always has something, and the space would never come back.
//!
//! # What keeps parallel compactions apart
//! - A table is the input of one plan at a time.
//! - Two plans with one output level (other than L0) have disjoint spans.
//! - The base level does not move below the output level of a running plan, so newer data never passes older data on its way down.
//! - A set of L0 tables goes down only with every older L0 table that it overlaps.
//!
//! All data that is older than a plan's inputs and overlaps them was, when it was picked, in `older` or an input; running plans move
//! such data only within its own keys and not above the inputs; and what is added later (flush, ingestion) is newer. So `older`,
//! once computed, stays a safe answer to "is this the bottom?".

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use super::plan::{Action, CompactionPlan, Grandparent, KeySpan, Reason, split_keys};
use super::retention::Retention;
use crate::levels::{LEVELS, Levels, TableLike};
use crate::manifest::{FileNumber, TableMeta};
use crate::tombstone::RangeTombstone;

const BOTTOM: usize = LEVELS - 1;

/// Scores are in thousandths: at this one a level is due.
const DUE: u64 = 1000;

/// What an L0 that is due only because it has many small runs may have rewritten of the base level, per byte of its own. Beyond,
/// its newest runs are merged within L0, which costs no more than their own bytes. RocksDB has no such bound: four flushes of a few
/// KiB rewrite the whole base level.
const BASE_BYTES_PER_L0_BYTE_MAX: u64 = 4;

/// What shapes the tree. `docs/decisions/0005-manifest-and-compaction.md` has the arithmetic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickerOptions {
    /// Sorted runs in L0 from which on it is compacted. More: writes cost less, reads look at more tables.
    pub l0_runs: u64,
    /// The smallest target of a level, in bytes, and the size of L0 at which it is due by size alone.
    pub base_bytes: u64,
    /// How many times larger each level is than the one above it.
    pub multiplier: u64,
    /// The size of an output table, in bytes.
    pub table_bytes: u64,
    /// The most that one compaction takes from the upper level, in bytes, where there is a choice.
    pub compaction_bytes_max: u64,
    /// The most that an intra-L0 compaction takes, in bytes. Bounded, so that data on its way down is rewritten in L0 once or twice
    /// and not again and again.
    pub intra_l0_bytes_max: u64,
    /// The fewest sorted runs that an intra-L0 compaction takes.
    pub intra_l0_runs_min: u64,
    /// An output overlaps at most this many bytes of the level below it.
    pub grandparent_bytes_max: u64,
    /// The share of tombstones among its entries, in percent, from which on a table is compacted because of them; and that of its
    /// tombstones in the number of entries that they would be merged with, which they must exceed.
    pub tombstone_percent: u64,
    /// Fewer tombstones than this do not make a table slow to scan.
    pub tombstones_min: u64,
    /// The most parts into which one compaction is divided.
    pub subcompactions_max: usize,
}

impl Default for PickerOptions {
    fn default() -> PickerOptions {
        const MIB: u64 = 1 << 20;
        PickerOptions {
            l0_runs: 4,
            base_bytes: 256 * MIB,
            multiplier: 10,
            table_bytes: 64 * MIB,
            compaction_bytes_max: 25 * 64 * MIB,
            intra_l0_bytes_max: 256 * MIB,
            intra_l0_runs_min: 4,
            grandparent_bytes_max: 10 * 64 * MIB,
            tombstone_percent: 50,
            tombstones_min: 4096,
            subcompactions_max: 2,
        }
    }
}

/// Keys between which an iterator had to skip many tombstones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedRange {
    /// The first key skipped.
    pub start: Box<[u8]>,
    /// The last key skipped.
    pub end: Box<[u8]>,
    /// How many tombstones were skipped.
    pub tombstones: u64,
}

/// What the levels do not show.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints<'a> {
    /// Range tombstones in live tables, or some of them. Each must be durable.
    pub range_tombstones: &'a [RangeTombstone],
    /// Where iterators suffered, worst first. The owner forgets one when [`pick`] has nothing to do for it any more.
    pub skipped: &'a [SkippedRange],
    /// Blob files that hold too much garbage, worst first. The compaction that is picked for one must write its values anew, or it will
    /// be picked again.
    pub dirty_blobs: &'a [FileNumber],
    /// True if they must not wait until nothing else is due.
    pub dirty_blobs_urgent: bool,
}

/// The level into which L0 is compacted, and each level's target in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// The base level.
    pub base: usize,
    /// Zero for levels that are to be empty; `u64::MAX` for the deepest. Index 0 means nothing.
    pub bytes: [u64; LEVELS],
}

/// The targets of these levels.
pub fn targets<T: TableLike>(levels: &Levels<T>, options: &PickerOptions, busy: &[CompactionPlan]) -> Targets {
    let largest = (1..LEVELS).map(|level| levels.level(level).bytes()).max().unwrap_or(0);
    let mut bytes = [0; LEVELS];
    bytes[BOTTOM] = u64::MAX;
    let mut level = BOTTOM;
    let mut size = largest;
    while level > 1 && size > options.base_bytes {
        level -= 1;
        size /= options.multiplier;
        bytes[level] = size.max(options.base_bytes);
    }
    // Newer data must not pass what is in a level above, or will be when a running plan is done.
    let filled = (1..LEVELS).find(|&level| !levels.level(level).tables().is_empty());
    let filling = busy.iter().map(|plan| usize::from(plan.output_level)).filter(|&level| level > 0).min();
    let base = [Some(level), filled, filling].into_iter().flatten().min().expect("the computed level is there");
    Targets { base, bytes }
}

/// An estimate of the bytes that compactions must still write until every level is at its target: the debt by which writers are
/// slowed down. Changes smoothly as levels change.
pub fn pending_bytes<T: TableLike>(levels: &Levels<T>, options: &PickerOptions) -> u64 {
    let targets = targets(levels, options, &[]);
    let mut pending = 0u64;
    let mut carried = 0u64;
    let l0 = levels.level(0).bytes();
    if l0_runs(levels) >= options.l0_runs || l0 >= options.base_bytes {
        pending += l0 + levels.level(targets.base).bytes();
        carried = l0;
    }
    for level in targets.base..BOTTOM {
        let bytes = levels.level(level).bytes() + carried;
        carried = bytes.saturating_sub(targets.bytes[level]);
        if carried > 0 {
            // Each byte that goes down takes its share of the next level with it.
            let below = u128::from(levels.level(level + 1).bytes()) * u128::from(carried) / u128::from(bytes);
            pending += carried + u64::try_from(below).expect("a share of a u64");
        }
    }
    pending
}

/// The sorted runs in L0: the outputs of one intra-L0 compaction count once.
pub fn l0_runs<T: TableLike>(levels: &Levels<T>) -> u64 {
    levels.level(0).tables().chunk_by(|a, b| a.meta().l0_rank == b.meta().l0_rank).count() as u64
}

/// The next compaction, or nothing if all that is due is blocked by `busy`, the plans that are running.
pub fn pick<T: TableLike>(
    levels: &Levels<T>,
    options: &PickerOptions,
    retention: &Retention,
    busy: &[CompactionPlan],
    hints: Hints<'_>,
) -> Option<CompactionPlan> {
    let picker = Picker::new(levels, options, retention, busy);
    let scores = picker.scores();
    let l0_score = scores.iter().find(|score| score.1 == 0).map_or(0, |score| score.0);
    let tombstones_running = busy.iter().any(|plan| plan.reason == Reason::SkippedTombstones);
    picker
        .drop_unread(hints.range_tombstones)
        .or_else(|| {
            let patient = l0_score < 2 * DUE && !tombstones_running;
            patient.then(|| hints.skipped.iter().find_map(|range| picker.skipped(range))).flatten()
        })
        .or_else(|| {
            (hints.dirty_blobs_urgent && l0_score < 2 * DUE).then(|| picker.empty_blobs(hints.dirty_blobs)).flatten()
        })
        .or_else(|| scores.iter().find_map(|&(_, level)| picker.level(level)))
        .or_else(|| picker.dense())
        .or_else(|| picker.empty_blobs(hints.dirty_blobs))
}

/// A range that is compacted because its owner asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManualRange {
    /// The first key; `None` from the beginning.
    pub start: Option<Box<[u8]>>,
    /// The first key after the range; `None` to the end.
    pub end: Option<Box<[u8]>>,
    /// The next file number when it was asked for: tables from this one on need not be rewritten again at the bottom.
    pub began: FileNumber,
    /// But for these: outputs of plans that ran already, and decided by an older floor what had to stay.
    pub stale: BTreeSet<FileNumber>,
}

/// What [`compact_range_step`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManualStep {
    /// Carry this out and ask again.
    Plan(Box<CompactionPlan>),
    /// A running plan is in the way: ask again when one is done.
    Blocked,
    /// The range is compacted.
    Done,
}

/// The next step on the way to a range whose data lies in one level, with everything gone that no reader can see.
pub fn compact_range_step<T: TableLike>(
    levels: &Levels<T>,
    options: &PickerOptions,
    retention: &Retention,
    busy: &[CompactionPlan],
    range: &ManualRange,
) -> ManualStep {
    let picker = Picker::new(levels, options, retention, busy);
    let start = range.start.as_deref().map_or(Bound::Unbounded, Bound::Included);
    let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let inside = |level: usize| levels.overlapping(level, start, end).collect::<Vec<_>>();
    let deepest = (1..LEVELS).rev().find(|&level| !levels.level(level).tables().is_empty());
    let last = deepest.unwrap_or(0).max(picker.targets.base);
    let step = |plan: Option<CompactionPlan>| plan.map_or(ManualStep::Blocked, |plan| ManualStep::Plan(Box::new(plan)));
    for level in 0..last {
        let tables = inside(level);
        if tables.is_empty() {
            continue;
        }
        if level == 0 {
            let plan = tables.iter().rev().find_map(|table| picker.l0_down(table, Reason::Manual));
            return step(plan);
        }
        // Tables in turn, so that each step is of a bounded size and other work finds gaps.
        return step(tables.iter().find_map(|table| picker.down(level, table, Reason::Manual)));
    }
    let is_old = |number: FileNumber| number < range.began || range.stale.contains(&number);
    let old: Vec<&Arc<T>> = inside(last).into_iter().filter(|table| is_old(table.meta().number)).collect();
    if old.is_empty() {
        return ManualStep::Done;
    }
    step(old.iter().find_map(|table| picker.in_place(last, table, Reason::Manual)))
}

struct Picker<'a, T> {
    levels: &'a Levels<T>,
    options: &'a PickerOptions,
    retention: &'a Retention,
    busy: &'a [CompactionPlan],
    busy_files: BTreeSet<FileNumber>,
    targets: Targets,
}

impl<'a, T: TableLike> Picker<'a, T> {
    fn new(
        levels: &'a Levels<T>,
        options: &'a PickerOptions,
        retention: &'a Retention,
        busy: &'a [CompactionPlan],
    ) -> Picker<'a, T> {
        let busy_files = busy.iter().flat_map(CompactionPlan::files).collect();
        Picker { levels, options, retention, busy, busy_files, targets: targets(levels, options, busy) }
    }

    fn is_idle(&self, table: &Arc<T>) -> bool {
        !self.busy_files.contains(&table.meta().number)
    }

    fn idle_bytes(&self, level: usize) -> u64 {
        let tables = self.levels.level(level).tables();
        tables.iter().filter(|table| self.is_idle(table)).map(|table| table.meta().file_bytes).sum()
    }

    /// The levels that are due, most urgent first.
    fn scores(&self) -> Vec<(u64, usize)> {
        let per_mille = |bytes: u64, of: u64| {
            u64::try_from(u128::from(bytes) * u128::from(DUE) / u128::from(of.max(1))).unwrap_or(u64::MAX)
        };
        let l0 = self.levels.level(0).tables();
        let idle_runs = l0
            .chunk_by(|a, b| a.meta().l0_rank == b.meta().l0_rank)
            .filter(|run| run.iter().any(|table| self.is_idle(table)))
            .count() as u64;
        let by_runs = per_mille(idle_runs, self.options.l0_runs);
        let by_bytes = per_mille(self.idle_bytes(0), self.options.base_bytes);
        let mut scores = vec![(by_runs.max(by_bytes), 0)];
        for level in 1..BOTTOM {
            let bytes = self.idle_bytes(level);
            let score = match self.targets.bytes[level] {
                0 if bytes > 0 => DUE + per_mille(bytes, self.options.base_bytes),
                0 => 0,
                // At its target a level is where it should be; above it, it is due.
                target if bytes > target => per_mille(bytes, target).max(DUE),
                _ => 0,
            };
            scores.push((score, level));
        }
        scores.retain(|score| score.0 >= DUE);
        // Of equal scores, the upper level: it holds up more.
        scores.sort_by_key(|&(score, level)| (std::cmp::Reverse(score), level));
        scores
    }

    /// A compaction that makes a level smaller.
    fn level(&self, level: usize) -> Option<CompactionPlan> {
        if level == 0 {
            // A few small flushes are no reason to rewrite a large base: merged with each other they are one run again.
            if !self.l0_is_worth_going_down()
                && let Some(plan) = self.intra_l0(0, 2)
            {
                return Some(plan);
            }
            let tables = self.levels.level(0).tables();
            let down = tables.iter().rev().filter(|table| self.is_idle(table));
            return down.into_iter().find_map(|table| self.l0_down(table, Reason::L0)).or_else(|| {
                // Two runs of slack, so that a short wait for the base level does not cost a rewrite.
                self.intra_l0(2, self.options.intra_l0_runs_min)
            });
        }
        let reason = if self.targets.bytes[level] == 0 { Reason::Drain } else { Reason::LevelSize };
        let mut candidates: Vec<(u128, FileNumber, &Arc<T>)> = self
            .levels
            .level(level)
            .tables()
            .iter()
            .filter(|table| self.is_idle(table))
            .map(|table| (self.cost(level, table.meta()), table.meta().number, table))
            .collect();
        candidates.sort_by_key(|candidate| (candidate.0, candidate.1));
        candidates.into_iter().find_map(|(_, _, table)| self.down(level, table, reason))
    }

    /// What moving a table down costs in bytes of the next level, for each of its own (times 1024): RocksDB's "minimum overlapping
    /// ratio". Tombstones count thrice, since they take away below as well.
    fn cost(&self, level: usize, meta: &TableMeta) -> u128 {
        let below = self.levels.overlapping(level + 1, Bound::Included(&meta.smallest), KeySpan::of(meta).end());
        let overlap: u64 = below.map(|table| table.meta().file_bytes).sum();
        let entries = u128::from(meta.entries.max(1));
        let range_tombstones = if meta.range_tombstones > 0 { entries } else { 0 };
        let worth = u128::from(meta.file_bytes.max(1)) * (entries + 2 * u128::from(meta.tombstones) + range_tombstones);
        u128::from(overlap) * 1024 * entries / worth
    }

    /// L0 to the base level, with `seed` among the inputs: all that overlaps it, directly or through others, or the oldest of that.
    fn l0_down(&self, seed: &Arc<T>, reason: Reason) -> Option<CompactionPlan> {
        let mut tables: Vec<&Arc<T>> = vec![seed];
        let mut span = KeySpan::of(seed.meta());
        loop {
            let overlapping: Vec<&Arc<T>> = self.levels.overlapping(0, span.start(), span.end()).collect();
            if overlapping.len() == tables.len() {
                break;
            }
            overlapping.iter().for_each(|table| span.extend(&KeySpan::of(table.meta())));
            tables = overlapping;
        }
        // Oldest first, the oldest alone are a legal set: whatever is older and overlaps one of them is among them.
        let mut bytes = 0;
        let fits = |table: &&&Arc<T>| {
            bytes += table.meta().file_bytes;
            self.is_idle(table) && bytes <= self.options.compaction_bytes_max.max(seed.meta().file_bytes)
        };
        let mut chosen: Vec<&Arc<T>> = tables.iter().rev().take_while(fits).copied().collect();
        chosen.reverse();
        // Cut short by a running plan, it would write the base level again for little: better wait.
        let cut_short = chosen.len() < tables.len() && !tables.iter().all(|table| self.is_idle(table));
        if chosen.is_empty() || (cut_short && (chosen.len() as u64) < self.options.l0_runs) {
            return None;
        }
        self.plan(reason, vec![(0, chosen)], self.targets.base)
    }

    /// False if L0 is due by the number of its runs alone, and a byte of it would have more than
    /// [`BASE_BYTES_PER_L0_BYTE_MAX`] of the base level rewritten.
    fn l0_is_worth_going_down(&self) -> bool {
        let bytes = self.idle_bytes(0);
        if bytes >= self.options.base_bytes {
            return true;
        }
        let idle = self.levels.level(0).tables().iter().filter(|table| self.is_idle(table));
        let Some(span) = KeySpan::around(idle.map(|table| table.meta())) else { return true };
        let base = self.levels.overlapping(self.targets.base, span.start(), span.end());
        // A table of the base between two of L0 is not rewritten.
        let rewritten = base.filter(|table| {
            let span = KeySpan::of(table.meta());
            self.levels.overlapping(0, span.start(), span.end()).next().is_some()
        });
        rewritten.map(|table| table.meta().file_bytes).sum::<u64>() <= bytes.saturating_mul(BASE_BYTES_PER_L0_BYTE_MAX)
    }

    /// The newest idle sorted runs of L0 into one: at least `runs_min`, and if there are `slack` more than make L0 due.
    fn intra_l0(&self, slack: u64, runs_min: u64) -> Option<CompactionPlan> {
        if l0_runs(self.levels) < self.options.l0_runs + slack {
            return None;
        }
        let runs: Vec<&[Arc<T>]> =
            self.levels.level(0).tables().chunk_by(|a, b| a.meta().l0_rank == b.meta().l0_rank).collect();
        let is_idle = |run: &&&[Arc<T>]| run.iter().all(|table| self.is_idle(table));
        // After the newest busy ones, if any, the longest stretch that pays: as long as the bytes written for each run removed
        // do not rise. A large old run at the end of the stretch would be rewritten for little.
        let idle: Vec<&[Arc<T>]> =
            runs.into_iter().skip_while(|run| !is_idle(&run)).take_while(|run| is_idle(&run)).collect();
        let run_bytes = |run: &[Arc<T>]| run.iter().map(|table| table.meta().file_bytes).sum::<u64>();
        let mut bytes = 0;
        let mut per_removed = u64::MAX;
        let mut count = 0;
        for (index, run) in idle.iter().enumerate() {
            let next = bytes + run_bytes(run);
            let next_per_removed = if index == 0 { u64::MAX } else { next / index as u64 };
            if next > self.options.intra_l0_bytes_max || next_per_removed > per_removed {
                break;
            }
            (bytes, per_removed, count) = (next, next_per_removed, index + 1);
        }
        if (count as u64) < runs_min {
            return None;
        }
        self.plan(Reason::IntraL0, vec![(0, idle[..count].iter().copied().flatten().collect())], 0)
    }

    /// A table of L1 or deeper to the next level, with neighbours that come for free.
    fn down(&self, level: usize, table: &Arc<T>, reason: Reason) -> Option<CompactionPlan> {
        if level >= BOTTOM || !self.is_idle(table) {
            return None;
        }
        let mut span = KeySpan::of(table.meta());
        let below: Vec<&Arc<T>> = self.levels.overlapping(level + 1, span.start(), span.end()).collect();
        below.iter().for_each(|table| span.extend(&KeySpan::of(table.meta())));
        let alone: Vec<&Arc<T>> = self
            .levels
            .level(level)
            .tables()
            .iter()
            .filter(|other| other.meta().number == table.meta().number)
            .collect();
        if !below.is_empty() {
            // Neighbours that lie over the same tables of the next level are rewritten at no cost but their own.
            let wide: Vec<&Arc<T>> = self.levels.overlapping(level, span.start(), span.end()).collect();
            let mut wide_span = span.clone();
            wide.iter().for_each(|table| wide_span.extend(&KeySpan::of(table.meta())));
            let bytes: u64 = wide.iter().chain(&below).map(|table| table.meta().file_bytes).sum();
            let same_below =
                self.levels.overlapping(level + 1, wide_span.start(), wide_span.end()).count() == below.len();
            if same_below && wide.len() > 1 && bytes <= self.options.compaction_bytes_max {
                let plan = self.plan(reason, vec![(level, wide)], level + 1);
                if plan.is_some() {
                    return plan;
                }
            }
        }
        self.plan(reason, vec![(level, alone)], level + 1)
    }

    /// A table rewritten where it is, because nothing older is below it and all its tombstones can go.
    fn in_place(&self, level: usize, table: &Arc<T>, reason: Reason) -> Option<CompactionPlan> {
        let tables = self.levels.level(level).tables();
        let inputs = tables.iter().filter(|other| other.meta().number == table.meta().number).collect();
        self.plan(reason, vec![(level, inputs)], level)
    }

    /// A compaction that gets rid of a table's tombstones, or brings them closer to what they hide.
    fn tombstones_down(&self, level: usize, table: &Arc<T>, reason: Reason) -> Option<CompactionPlan> {
        if level == 0 {
            return self.l0_down(table, reason);
        }
        let span = KeySpan::of(table.meta());
        let older_below = (level + 1..LEVELS)
            .any(|deeper| self.levels.overlapping(deeper, span.start(), span.end()).next().is_some());
        if older_below {
            return self.down(level, table, reason);
        }
        // Otherwise rewriting would leave some, and the table would be picked again.
        let all_go = table.meta().largest_version <= self.retention.lowest();
        all_go.then(|| self.in_place(level, table, reason)).flatten()
    }

    fn skipped(&self, range: &SkippedRange) -> Option<CompactionPlan> {
        let enough = self.options.tombstones_min.min(range.tombstones / 4).max(1);
        (0..LEVELS).find_map(|level| {
            let (start, end) = (Bound::Included(&*range.start), Bound::Included(&*range.end));
            let mut tables: Vec<&Arc<T>> = self
                .levels
                .overlapping(level, start, end)
                .filter(|table| self.is_idle(table))
                .filter(|table| table.meta().tombstones >= enough || table.meta().range_tombstones > 0)
                .collect();
            tables.sort_by_key(|table| (std::cmp::Reverse(table.meta().tombstones), table.meta().number));
            tables.into_iter().find_map(|table| self.tombstones_down(level, table, Reason::SkippedTombstones))
        })
    }

    fn dense(&self) -> Option<CompactionPlan> {
        let is_dense = |meta: &TableMeta| {
            meta.tombstones >= self.options.tombstones_min
                && u128::from(meta.tombstones) * 100
                    >= u128::from(meta.entries) * u128::from(self.options.tombstone_percent)
        };
        // What they would be merged with must be of their size: a memtable of deletes all over the data is all tombstones, too, but its way
        // down rewrites everything to remove a little.
        let is_worth_it = |level: usize, meta: &TableMeta| {
            let output = if level == 0 { self.targets.base } else { (level + 1).min(BOTTOM) };
            let span = KeySpan::of(meta);
            let below = self.levels.overlapping(output, span.start(), span.end());
            let entries: u64 =
                below.filter(|table| table.meta().number != meta.number).map(|it| it.meta().entries).sum();
            entries == 0
                || u128::from(meta.tombstones) * 100 > u128::from(entries) * u128::from(self.options.tombstone_percent)
        };
        let mut tables: Vec<(usize, &Arc<T>)> = self
            .levels
            .tables()
            .filter(|(_, table)| self.is_idle(table) && is_dense(table.meta()))
            .filter(|(level, table)| is_worth_it(*level, table.meta()))
            .collect();
        tables.sort_by_key(|(_, table)| (std::cmp::Reverse(table.meta().tombstones), table.meta().number));
        tables.into_iter().find_map(|(level, table)| self.tombstones_down(level, table, Reason::TombstoneDensity))
    }

    /// A table that refers to a blob file that is to be emptied, rewritten where it is: one at a time, so that collecting takes no more
    /// than one worker. The deepest table first: the others are compacted sooner anyway.
    fn empty_blobs(&self, blobs: &[FileNumber]) -> Option<CompactionPlan> {
        if self.busy.iter().any(|plan| plan.reason == Reason::BlobGarbage) {
            return None;
        }
        let refers = |meta: &TableMeta, blob| meta.blob_references.binary_search_by_key(&blob, |entry| entry.0).is_ok();
        blobs.iter().find_map(|&blob| {
            (0..LEVELS).rev().find_map(|level| {
                let mut tables = self.levels.level(level).tables().iter().filter(|table| refers(table.meta(), blob));
                tables.find_map(|table| self.in_place(level, table, Reason::BlobGarbage))
            })
        })
    }

    /// Whole tables that lie under a range tombstone, in one level at a time.
    fn drop_unread(&self, tombstones: &[RangeTombstone]) -> Option<CompactionPlan> {
        tombstones.iter().find_map(|tombstone| {
            (0..LEVELS).find_map(|level| {
                let (start, end) = (Bound::Included(&*tombstone.start), Bound::Excluded(&*tombstone.end));
                let hidden = |meta: &TableMeta| {
                    let ends_inside = if meta.largest_exclusive {
                        meta.largest <= tombstone.end
                    } else {
                        meta.largest < tombstone.end
                    };
                    ends_inside
                        && tombstone.start <= meta.smallest
                        && self.retention.hides_table(tombstone.version, meta.smallest_version, meta.largest_version)
                };
                let tables: Vec<&Arc<T>> = self
                    .levels
                    .overlapping(level, start, end)
                    .filter(|table| self.is_idle(table) && hidden(table.meta()))
                    .collect();
                let span = KeySpan::around(tables.iter().map(|table| table.meta()))?;
                Some(CompactionPlan {
                    reason: Reason::RangeTombstone,
                    action: Action::DropUnread,
                    inputs: vec![(level_number(level), tables.iter().map(|table| table.meta().number).collect())],
                    output_level: level_number(level),
                    output_rank: 0,
                    span,
                    input_bytes: tables.iter().map(|table| table.meta().file_bytes).sum(),
                    output_file_bytes: 0,
                    older: Vec::new(),
                    grandparents: Vec::new(),
                    grandparent_bytes_max: 0,
                    parts_max: 1,
                    split_keys: Vec::new(),
                })
            })
        })
    }

    /// The plan with these inputs and those tables of the output level that they overlap, unless a running plan is in the way.
    fn plan(&self, reason: Reason, upper: Vec<(usize, Vec<&'a Arc<T>>)>, output: usize) -> Option<CompactionPlan> {
        let mut inputs = upper;
        let mut span = KeySpan::around(inputs.iter().flat_map(|(_, tables)| tables).map(|table| table.meta()))?;
        let input_level = inputs[0].0;
        if output > input_level {
            let below: Vec<&Arc<T>> = self.levels.overlapping(output, span.start(), span.end()).collect();
            below.iter().for_each(|table| span.extend(&KeySpan::of(table.meta())));
            if !below.is_empty() {
                inputs.push((output, below));
            }
        }
        let tables: Vec<&Arc<T>> = inputs.iter().flat_map(|(_, tables)| tables).copied().collect();
        let collides =
            |plan: &CompactionPlan| output > 0 && usize::from(plan.output_level) == output && plan.span.overlaps(&span);
        if !tables.iter().all(|table| self.is_idle(table)) || self.busy.iter().any(collides) {
            return None;
        }
        let files: BTreeSet<FileNumber> = tables.iter().map(|table| table.meta().number).collect();
        let output_rank = tables.iter().map(|table| table.meta().l0_rank).max().unwrap_or(0);
        let older = self.older_spans(&span, &files, input_level, output, output_rank);
        let next = if output > 0 && output < BOTTOM {
            self.levels.overlapping(output + 1, span.start(), span.end()).collect()
        } else {
            Vec::new()
        };
        let next_bytes: u64 = next.iter().map(|table| table.meta().file_bytes).sum();
        let input_bytes: u64 = tables.iter().map(|table| table.meta().file_bytes).sum();
        let movable = inputs.len() == 1
            && output > input_level
            && (input_level > 0 || tables.len() == 1)
            && next_bytes <= self.options.grandparent_bytes_max
            && !tables.iter().any(|table| self.would_shed(table.meta(), &older));
        let parts = usize::try_from(input_bytes / self.options.table_bytes.max(1)).unwrap_or(usize::MAX);
        // The bounds of sorted tables say where the bytes are; those of L0 tables, which all begin near the first key, do not.
        let sorted = inputs.iter().filter(|(level, _)| *level > 0).flat_map(|(_, tables)| tables);
        let anchors = sorted.map(|table| (&*table.meta().smallest, table.meta().file_bytes)).collect();
        // A move copies nothing, and an output of an intra-L0 compaction is to be one sorted run.
        let parts = if movable || output == 0 { 1 } else { parts.min(self.options.subcompactions_max) };
        let name = |(level, tables): &(usize, Vec<&Arc<T>>)| {
            (level_number(*level), tables.iter().map(|table| table.meta().number).collect())
        };
        Some(CompactionPlan {
            reason,
            action: if movable { Action::Move } else { Action::Rewrite },
            inputs: inputs.iter().map(name).collect(),
            output_level: level_number(output),
            output_rank,
            input_bytes,
            output_file_bytes: if output == 0 { u64::MAX } else { self.options.table_bytes },
            older,
            grandparents: next
                .iter()
                .map(|table| Grandparent { largest: table.meta().largest.clone(), bytes: table.meta().file_bytes })
                .collect(),
            grandparent_bytes_max: self.options.grandparent_bytes_max,
            parts_max: parts.max(1),
            split_keys: split_keys(anchors, parts),
            span,
        })
    }

    /// Where data lies that is older than the inputs, overlaps them and is not among them.
    fn older_spans(
        &self,
        span: &KeySpan,
        inputs: &BTreeSet<FileNumber>,
        input_level: usize,
        output: usize,
        newest_rank: u64,
    ) -> Vec<KeySpan> {
        let mut spans: Vec<KeySpan> = Vec::new();
        for level in input_level..LEVELS {
            // Between an L0 that goes down and the base, and in the output level, there is nothing besides the inputs.
            if level > 0 && level <= output {
                continue;
            }
            let tables = self.levels.overlapping(level, span.start(), span.end()).filter(|table| {
                !inputs.contains(&table.meta().number) && (level > 0 || table.meta().l0_rank <= newest_rank)
            });
            spans.extend(tables.map(|table| KeySpan::of(table.meta())));
        }
        spans.sort_by(|a, b| a.smallest.cmp(&b.smallest));
        let mut merged: Vec<KeySpan> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if last.overlaps(&span) => last.extend(&span),
                _ => merged.push(span),
            }
        }
        merged
    }

    /// True if rewriting the table over `older` would drop tombstones that a move would carry along.
    fn would_shed(&self, meta: &TableMeta, older: &[KeySpan]) -> bool {
        let has_some = meta.tombstones + meta.range_tombstones > 0 && meta.smallest_version <= self.retention.lowest();
        let span = KeySpan::of(meta);
        has_some && !older.iter().any(|older| older.overlaps(&span))
    }
}

fn level_number(level: usize) -> u8 {
    u8::try_from(level).expect("there are seven levels")
}

#[cfg(test)]
mod tests;
