//! Compactions: taking plans from the picker and carrying them out.
//!
//! The picker ([`crate::compaction::picker`]) decides; a worker carries out. A plan that rewrites much is divided at its split keys into parts, and
//! whichever worker is free takes the next part; the one that finishes the last part installs the outputs of all, in one manifest edit.
//!
//! # Invariants
//! - A plan is made, and registered as busy, under one lock, from the levels as they are then; it is taken off the list after its edit has been
//!   published. So no two running plans touch the same tables or write overlapping ranges of one level.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Core;
use super::blobs::{Blobs, Dirty};
use super::events::{Compaction, Event};
use super::merge_run::{MergeRun, Target};
use super::pace::Writer;
use super::sources::{LevelIterator, Source};
use super::view::Table;
use crate::compaction::picker::{self, ManualRange, ManualStep, SkippedRange};
use crate::compaction::plan::Action;
use crate::compaction::{CompactionPlan, Hints, PickerOptions, Retention};
use crate::env::Step;
use crate::error::{Error, Result};
use crate::levels::{Level, Levels, TableLike};
use crate::manifest::{FileNumber, TableMeta};
use crate::options::Options;
use crate::table::{ReadMode, TableIterator};
use crate::tombstone::{FragmentList, RangeTombstone};

/// An iterator's single move that passes so many entries that it cannot show makes the range worth compacting: at 50 ns each, it cost as
/// much as a few reads from disk.
pub(super) const SKIPPED_ENTRIES_WORTH_COMPACTING: u64 = 256;

/// Ranges remembered for being slow to scan; the worst stay.
const SKIPPED_RANGES_MAX: usize = 16;

/// Range tombstones given to the picker at once, newest tables first: it looks at each for whole tables to drop.
const RANGE_TOMBSTONES_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Compactions {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Vec<Arc<Running>>,
    /// Invariant: the plans of `running`, in its order; the picker wants them as a slice.
    busy: Vec<CompactionPlan>,
    skipped: Vec<SkippedRange>,
    manual: Vec<(u64, ManualRange)>,
    next_manual: u64,
    /// Attempts that failed for want of space, and how the last one did: whoever waits for compactions must not wait for ever on a full disk.
    failed: (u64, Option<Error>),
}

/// A plan that is being carried out.
struct Running {
    plan: CompactionPlan,
    retention: Retention,
    /// Requests by hand with this id or a later one came after it was picked, so its outputs keep what they need not.
    first_manual_after: u64,
    /// When it was picked.
    began: Duration,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Parts that no worker has taken yet.
    waiting: Vec<MergeRun>,
    /// Parts that are not finished, taken or not.
    unfinished: usize,
    /// Finished parts; dropping one that is not installed removes its files.
    finished: Vec<MergeRun>,
    failed: bool,
}

impl Compactions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many plans are being carried out.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.state().running.len()
    }

    /// An iterator passed over many entries between two keys.
    pub(super) fn hint(&self, a: &[u8], b: &[u8], tombstones: u64) {
        let (start, end) = (a.min(b), a.max(b));
        let mut state = self.state();
        match state.skipped.iter_mut().find(|range| *range.start <= *end && *start <= *range.end) {
            Some(range) => {
                if *start < *range.start {
                    range.start = start.into();
                }
                if *end > *range.end {
                    range.end = end.into();
                }
                range.tombstones = range.tombstones.max(tombstones);
            }
            None => state.skipped.push(SkippedRange { start: start.into(), end: end.into(), tombstones }),
        }
        state.skipped.sort_by_key(|range| std::cmp::Reverse(range.tombstones));
        state.skipped.truncate(SKIPPED_RANGES_MAX);
    }
}

pub(super) fn picker_options(options: &Options) -> PickerOptions {
    PickerOptions {
        l0_runs: options.l0_compaction_tables as u64,
        base_bytes: options.base_level_bytes,
        multiplier: options.level_multiplier,
        table_bytes: options.table_bytes,
        compaction_bytes_max: 25 * options.table_bytes,
        intra_l0_bytes_max: 4 * options.write_buffer_bytes as u64,
        grandparent_bytes_max: 10 * options.table_bytes,
        // A block's worth of tombstones is what a scan does not notice.
        tombstones_min: (options.table_bytes / 1024).max(64),
        subcompactions_max: options.compaction_jobs.max(1),
        ..PickerOptions::default()
    }
}

impl Core {
    /// The levels changed: what depends on them is brought up to date.
    pub(super) fn levels_changed(&self) {
        let levels = self.levels();
        let pending = picker::pending_bytes(&levels, &picker_options(&self.options));
        // The tables of one ingestion are disjoint: a read asks one of them, so they count once.
        let l0 = usize::try_from(picker::l0_runs(&levels)).expect("as many as tables at most");
        self.counters.set_pending(pending);
        if self.options.compaction_jobs > 0 {
            self.stall.update(&self.options, l0, pending);
        }
        self.jobs.wake_compactions();
        self.jobs.wake_keeper();
        self.progress.notify();
    }

    pub(super) fn compact_range(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> Result<()> {
        if let (Some(start), Some(end)) = (start, end)
            && start > end
        {
            return Err(Error::InvertedRange { start: start.to_vec(), end: end.to_vec() });
        }
        self.check_open()?;
        if self.options.compaction_jobs == 0 {
            let reason = "compact_range needs a compaction job to carry it out".to_owned();
            return Err(Error::InvalidOption { option: "compaction_jobs", value: "0".into(), reason });
        }
        self.flush()?;
        let mut state = self.jobs.compaction.state();
        let id = state.next_manual;
        state.next_manual += 1;
        let bound = |key: Option<&[u8]>| key.map(Box::from);
        let began = self.next_file_number();
        let range = ManualRange { start: bound(start), end: bound(end), began, stale: BTreeSet::new() };
        state.manual.push((id, range));
        drop(state);
        self.jobs.wake_compactions();
        let result =
            self.wait_for_jobs(|core| !core.jobs.compaction.state().manual.iter().any(|(other, _)| *other == id));
        if result.is_err() {
            self.jobs.compaction.state().manual.retain(|(other, _)| *other != id);
        }
        result
    }

    pub(super) fn wait_for_compactions(&self) -> Result<()> {
        self.check_open()?;
        if self.read_only {
            return Ok(());
        }
        // Without a job that could carry one out no compaction is due, whatever the picker would say.
        if self.options.compaction_jobs > 0 {
            self.wait_for_jobs(|core| {
                let mut state = core.jobs.compaction.state();
                state.running.is_empty()
                    && state.manual.is_empty()
                    && state.pick(core).is_ok_and(|picked| picked.is_none())
            })?;
        }
        let asked = self.jobs.wake_keeper();
        self.wait_for_jobs(|core| core.jobs.is_kept(asked))
    }

    /// Waits until `done`, or until a compaction failed.
    fn wait_for_jobs(&self, done: impl Fn(&Core) -> bool) -> Result<()> {
        let failed_before = self.jobs.compaction.state().failed.0;
        self.progress.wait(&*self.env.spawner, || {
            if done(self) {
                return Some(Ok(()));
            }
            if self.jobs.stopping() {
                return Some(Err(Error::Closed));
            }
            if let Err(error) = self.check_poison() {
                return Some(Err(error));
            }
            match &self.jobs.compaction.state().failed {
                (count, Some(error)) if *count > failed_before => Some(Err(error.clone())),
                _ => None,
            }
        })
    }
}

impl State {
    /// The next plan, with the retention that it was made for and the blob files that it is to empty.
    fn pick(&mut self, core: &Core) -> Result<Option<(CompactionPlan, Retention, Vec<FileNumber>)>> {
        let options = picker_options(&core.options);
        let (floor, pins) = core.versions.boundaries(|| core.visibility.visible());
        let retention = Retention::new(floor, pins);
        let (levels, dirty) = {
            let view = core.view.read();
            (view.levels.clone(), dirty_blobs(&view.blobs, options.compaction_bytes_max))
        };
        while let Some((_, range)) = self.manual.first() {
            match picker::compact_range_step(&levels, &options, &retention, &self.busy, range) {
                ManualStep::Plan(plan) => return Ok(Some((*plan, retention, dirty.files))),
                ManualStep::Blocked => break,
                ManualStep::Done => {
                    self.manual.remove(0);
                    core.progress.notify();
                }
            }
        }
        let range_tombstones = range_tombstones(&levels)?;
        let hints = Hints {
            range_tombstones: &range_tombstones,
            skipped: &self.skipped,
            dirty_blobs: &dirty.files,
            dirty_blobs_urgent: dirty.urgent,
        };
        let plan = picker::pick(&levels, &options, &retention, &self.busy, hints);
        if plan.is_none() && self.busy.is_empty() {
            // Nothing can be done about what is left of them.
            self.skipped.clear();
        }
        Ok(plan.map(|plan| (plan, retention, dirty.files)))
    }

    /// To be called before the outputs of a plan can be seen: requests that came while it ran rewrite them.
    fn mark_stale(&mut self, first_manual_after: u64, outputs: &[TableMeta]) {
        for (_, range) in self.manual.iter_mut().filter(|(id, _)| *id >= first_manual_after) {
            range.stale.extend(outputs.iter().map(|meta| meta.number));
        }
    }

    fn remove(&mut self, running: &Arc<Running>) {
        let index = self.running.iter().position(|other| Arc::ptr_eq(other, running));
        if let Some(index) = index {
            self.running.remove(index);
            self.busy.remove(index);
        }
    }
}

/// The blob files to empty now, worst first: as many as hold `bytes_max` live bytes, or one. The bound keeps a compaction that meets
/// values of many of them from becoming as large as all.
fn dirty_blobs(blobs: &Blobs, bytes_max: u64) -> Dirty {
    let mut dirty = blobs.dirty();
    let mut bytes = 0u64;
    let fits = |number: &&FileNumber| {
        bytes = bytes.saturating_add(blobs.live_bytes(**number));
        bytes <= bytes_max
    };
    let count = dirty.files.iter().take_while(fits).count().max(1);
    dirty.files.truncate(count);
    dirty
}

/// Range tombstones of live tables, from the newest level on.
fn range_tombstones(levels: &Levels<Table>) -> Result<Vec<RangeTombstone>> {
    let mut found = Vec::new();
    for (_, table) in levels.tables().filter(|(_, table)| table.meta.range_tombstones > 0) {
        let list = table.range_tombstones(ReadMode::Blocking)?;
        found.extend(list.tombstones().map(|(start, end, version)| RangeTombstone::new(start, end, version)));
        if found.len() >= RANGE_TOMBSTONES_MAX {
            break;
        }
    }
    Ok(found)
}

/// A worker: at most one part of one plan at a time.
pub(super) struct CompactionJob {
    part: Option<(Arc<Running>, MergeRun)>,
}

impl CompactionJob {
    pub(super) fn new() -> CompactionJob {
        CompactionJob { part: None }
    }

    pub(super) fn step(&mut self, core: &Arc<Core>) -> Result<Step> {
        let result = self.step_part(core);
        if let Err(error) = &result {
            let mut state = core.jobs.compaction.state();
            state.failed = (state.failed.0 + 1, Some(error.clone()));
            drop(state);
            core.progress.notify();
        }
        result
    }

    fn step_part(&mut self, core: &Arc<Core>) -> Result<Step> {
        if core.poison.get().is_some() {
            return Ok(Step::Wait);
        }
        let Some((running, run)) = &mut self.part else { return self.take_work(core) };
        if running.progress().failed {
            self.part = None;
            return Ok(Step::Again);
        }
        if let Some(wait) = core.wait_for_pace(Writer::Compaction) {
            return Ok(wait);
        }
        let stepped = run.step(core.options.job_step_entries);
        core.pay_for_pace(Writer::Compaction, run.take_progress());
        match stepped {
            Ok(false) => Ok(Step::Again),
            Ok(true) => {
                let (running, run) = self.part.take().expect("the part was just stepped");
                running.finish_part(core, run)
            }
            Err(error) => {
                let (running, run) = self.part.take().expect("the part was just stepped");
                drop(run);
                running.fail(core);
                Err(error)
            }
        }
    }

    fn take_work(&mut self, core: &Arc<Core>) -> Result<Step> {
        let mut state = core.jobs.compaction.state();
        let waiting = state.running.iter().find_map(|running| {
            let run = running.progress().waiting.pop()?;
            Some((Arc::clone(running), run))
        });
        if waiting.is_some() {
            self.part = waiting;
            return Ok(Step::Again);
        }
        let Some((plan, retention, relocate)) = state.pick(core)? else { return Ok(Step::Wait) };
        let levels = core.levels();
        let parts = match plan.action {
            Action::Rewrite => parts_of(core, &plan, &retention, &levels, &relocate)?,
            Action::Move | Action::DropUnread => Vec::new(),
        };
        let divided = parts.len() > 1;
        let progress = Progress { unfinished: parts.len(), waiting: parts, ..Progress::default() };
        let began = core.env.clock.now();
        let first_manual_after = state.next_manual;
        let running = Arc::new(Running { plan, retention, first_manual_after, began, progress: Mutex::new(progress) });
        state.busy.push(running.plan.clone());
        state.running.push(Arc::clone(&running));
        let part = running.progress().waiting.pop();
        drop(state);
        core.tell(|| Event::CompactionBegun { compaction: Compaction::of(&running.plan) });
        match part {
            Some(run) => self.part = Some((running, run)),
            None => running.install(core)?,
        }
        if divided {
            core.jobs.wake_compactions();
        }
        Ok(Step::Again)
    }
}

impl Drop for CompactionJob {
    /// A worker that ends in the middle takes its plan with it: the engine stops, or the worker panicked and poisoned it.
    fn drop(&mut self) {
        if let Some((running, _)) = &self.part {
            running.progress().failed = true;
        }
    }
}

impl Running {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish_part(self: &Arc<Running>, core: &Arc<Core>, run: MergeRun) -> Result<Step> {
        let mut progress = self.progress();
        if progress.failed {
            return Ok(Step::Again);
        }
        progress.finished.push(run);
        progress.unfinished -= 1;
        let last = progress.unfinished == 0;
        drop(progress);
        if last {
            self.install(core)?;
        }
        Ok(Step::Again)
    }

    fn install(self: &Arc<Running>, core: &Arc<Core>) -> Result<()> {
        let mut finished = std::mem::take(&mut self.progress().finished);
        let outputs: Vec<TableMeta> = finished.iter().flat_map(|run| run.outputs().iter().cloned()).collect();
        let written: u64 = finished.iter().map(MergeRun::written_bytes).sum();
        let relocated: u64 = finished.iter().map(MergeRun::relocated_bytes).sum();
        core.jobs.compaction.state().mark_stale(self.first_manual_after, &outputs);
        let mut edit = self.plan.edit(&core.levels(), outputs);
        edit.added_blobs = finished.iter().flat_map(|run| run.blob_outputs().iter().copied()).collect();
        if self.plan.action != Action::Move {
            edit.oldest_readable = Some(self.retention.floor());
        }
        if let Err(error) = core.install(edit, &[]) {
            // Not in the manifest (or the manifest is poisoned, and so is the engine): the outputs go, the inputs stay.
            self.fail(core);
            return Err(error);
        }
        finished.iter_mut().for_each(MergeRun::set_installed);
        match self.plan.action {
            Action::Rewrite => {
                core.counters.compacted(self.plan.input_bytes + relocated, written);
                core.counters.relocated(relocated);
            }
            Action::Move => core.counters.moved(self.plan.files().count() as u64),
            Action::DropUnread => core.counters.dropped(self.plan.files().count() as u64),
        }
        // The handles of the inputs go before anybody is told, so that who waits for this finds their files gone.
        drop(finished);
        core.jobs.compaction.state().remove(self);
        core.levels_changed();
        core.tell(|| Event::CompactionDone {
            compaction: Compaction::of(&self.plan),
            written_bytes: written,
            took: core.env.clock.now().saturating_sub(self.began),
        });
        Ok(())
    }

    /// Gives the plan up; its inputs are free for another.
    fn fail(self: &Arc<Running>, core: &Arc<Core>) {
        let mut progress = self.progress();
        progress.failed = true;
        let dropped = (std::mem::take(&mut progress.waiting), std::mem::take(&mut progress.finished));
        drop(progress);
        drop(dropped);
        core.jobs.compaction.state().remove(self);
        core.progress.notify();
        core.jobs.wake_keeper();
    }
}

/// The runs that carry out a plan: one, or one for each part between split keys.
fn parts_of(
    core: &Arc<Core>,
    plan: &CompactionPlan,
    retention: &Retention,
    levels: &Levels<Table>,
    relocate: &[FileNumber],
) -> Result<Vec<MergeRun>> {
    let inputs: Vec<(usize, Vec<Arc<Table>>)> = plan
        .inputs
        .iter()
        .map(|(level, numbers)| (usize::from(*level), tables_of(levels, usize::from(*level), numbers)))
        .collect();
    let mut lists: Vec<&FragmentList> = Vec::new();
    for (_, tables) in &inputs {
        for table in tables.iter().filter(|table| table.meta.range_tombstones > 0) {
            lists.push(table.range_tombstones(ReadMode::Blocking)?);
        }
    }
    let tombstones = FragmentList::new(lists.into_iter().flat_map(FragmentList::tombstones));
    let mut parts = Vec::with_capacity(plan.split_keys.len() + 1);
    let mut start = None;
    for end in plan.split_keys.iter().cloned().map(Some).chain([None]) {
        let mut sources = Vec::new();
        for (level, tables) in &inputs {
            if *level == 0 {
                for table in tables {
                    sources.push(Source::Table(TableIterator::new(table.reader()?, ReadMode::Compaction)));
                }
            } else {
                let run = Arc::new(Level::sorted_run(tables.clone()));
                sources.push(Source::Level(LevelIterator::new(run, ReadMode::Compaction)));
            }
        }
        let target = Target {
            level: usize::from(plan.output_level),
            table_bytes: plan.output_file_bytes,
            start: std::mem::replace(&mut start, end.clone()),
            end,
            older: plan.older.clone(),
            grandparents: plan.grandparents.clone(),
            grandparent_bytes_max: plan.grandparent_bytes_max,
            l0_rank: (plan.output_level == 0).then_some(plan.output_rank),
            relocate: relocate.to_vec(),
        };
        parts.push(MergeRun::new(core, sources, tombstones.clone(), retention.clone(), target));
    }
    // Workers take from the end; the first part first.
    parts.reverse();
    Ok(parts)
}

fn tables_of(levels: &Levels<Table>, level: usize, numbers: &[FileNumber]) -> Vec<Arc<Table>> {
    let find = |number: &FileNumber| {
        let table = levels.level(level).tables().iter().find(|table| table.meta().number == *number);
        Arc::clone(table.expect("a plan was made from these levels"))
    };
    numbers.iter().map(find).collect()
}
