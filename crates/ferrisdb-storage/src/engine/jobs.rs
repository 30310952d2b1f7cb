//! The background jobs: what each does, when it runs, and what happens when it fails.
//!
//! | job | does | woken by |
//! | --- | --- | --- |
//! | wal-sync | syncs the WAL for tickets | a ticket that waits |
//! | keeper | prepares WAL segments, purges the WAL, removes obsolete files | a segment taken, a flush, a dropped table |
//! | flush | oldest immutable memtable → L0 | a rotation |
//! | compact-N | what the picker says | a flush, a compaction, a request |
//!
//! # Failures
//! Without space a job waits and tries again: nothing is lost, and reads and deletes go on. Any other error poisons the engine: what a job
//! could not write now it could not write later either, and a failed sync must not be tried again. A panic poisons too.
//!
//! # Ending
//! A job that is told to stop ends at its next step. A run that was under way is dropped, and its files are queued for removal: the keeper removes
//! those that it comes to before it ends too, and the next open the rest.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use ferrisdb_core::Version;

use super::Core;
use super::compact::{CompactionJob, Compactions};
use super::events::Event;
use super::merge_run::{MergeRun, Target};
use super::pace::Writer;
use super::sources::Source;
use super::view::LiveMemtable;
use crate::compaction::{KeySpan, Retention};
use crate::env::{Job, Step};
use crate::error::{Error, Result};
use crate::manifest::ManifestEdit;
use crate::planted::{Bug, planted};
use crate::wal::{PrepareStep, WalPosition};

/// How long a job waits for space before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Passing over an entry costs some 50 ns, writing one to L0 some 500: readers have wasted what flushing 6,000 tombstones costs.
const PASSED_ENTRIES_WORTH_FLUSHING: u64 = 64 << 10;

/// With fewer tombstones in the active memtable, the runs that iterators meet are elsewhere.
const TOMBSTONES_WORTH_FLUSHING: u64 = 1 << 10;

/// How soon retired views are looked at again: a reader holds one for microseconds.
const RECLAIM_AFTER: Duration = Duration::from_millis(5);

/// What the engine knows of its jobs.
#[derive(Default)]
pub(super) struct Jobs {
    stopping: AtomicBool,
    running: AtomicUsize,
    wal: OnceLock<Waker>,
    keeper: OnceLock<Waker>,
    flush: OnceLock<Waker>,
    compactions: OnceLock<Vec<Waker>>,
    pub(super) compaction: Compactions,
    /// Attempts to flush that failed for want of space, and how the last one did: `flush()` must not wait for ever on a full disk.
    pub(super) failed_flushes: Mutex<(u64, Option<Error>)>,
    /// Entries that iterators passed over in long runs since the active memtable was last looked at for it.
    passed: AtomicU64,
    /// The listener knows that the engine is poisoned.
    told_poison: AtomicBool,
    /// Where the WAL may be purged up to.
    purge_below: Mutex<Option<WalPosition>>,
    /// How often the keeper has been woken for something, and how many of these it has dealt with.
    keeper_asked: AtomicU64,
    kept: AtomicU64,
}

fn wake(waker: &OnceLock<Waker>) {
    if let Some(waker) = waker.get() {
        waker.wake_by_ref();
    }
}

impl Jobs {
    pub(super) fn wake_wal(&self) {
        wake(&self.wal);
    }

    pub(super) fn wake_flush(&self) {
        wake(&self.flush);
    }

    /// Iterators passed over a long run. Once they have spent on this what a flush costs, the flush job looks whether the run
    /// is in the active memtable, where no compaction can do anything about it.
    pub(super) fn note_tombstones_passed(&self, entries: u64) {
        if self.passed.fetch_add(entries, Ordering::Relaxed) + entries >= PASSED_ENTRIES_WORTH_FLUSHING {
            self.wake_flush();
        }
    }

    /// Returns a number for [`Jobs::is_kept`].
    pub(super) fn wake_keeper(&self) -> u64 {
        let asked = self.keeper_asked.fetch_add(1, Ordering::SeqCst) + 1;
        wake(&self.keeper);
        asked
    }

    /// True once the keeper has done all that it could, in a step that began after that wake.
    pub(super) fn is_kept(&self, asked: u64) -> bool {
        self.kept.load(Ordering::SeqCst) >= asked
    }

    pub(super) fn wake_compactions(&self) {
        self.compactions.get().into_iter().flatten().for_each(Waker::wake_by_ref);
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn purge_wal_below(&self, position: WalPosition) {
        let mut below = self.purge_below.lock().unwrap_or_else(PoisonError::into_inner);
        *below = (*below).max(Some(position));
        drop(below);
        self.wake_keeper();
    }
}

impl Core {
    /// Starts the jobs of a writable engine.
    pub(super) fn start_jobs(core: &Arc<Core>) {
        let spawn = |name: &str, work: Box<dyn Work>| {
            core.jobs.running.fetch_add(1, Ordering::AcqRel);
            core.env.spawner.spawn(name, Box::new(Guarded { core: Arc::clone(core), work: Some(work) }))
        };
        if let Some(wal) = &core.wal {
            let waker = spawn("wal-sync", Box::new(WalSync));
            wal.set_sync_waker(waker.clone());
            core.jobs.wal.set(waker).expect("jobs are started once");
        }
        let keeper = spawn("keeper", Box::new(Keeper));
        core.obsolete.set_remover(keeper.clone());
        if let Some(wal) = &core.wal {
            wal.set_prepare_waker(keeper.clone());
        }
        core.jobs.keeper.set(keeper).expect("jobs are started once");
        core.jobs.flush.set(spawn("flush", Box::new(Flush { run: None }))).expect("jobs are started once");
        let compactions = (0..core.options.compaction_jobs)
            .map(|index| spawn(&format!("compact-{index}"), Box::new(CompactionJob::new())))
            .collect();
        core.jobs.compactions.set(compactions).expect("jobs are started once");
    }

    /// Tells the jobs to stop and waits until they have. Where the caller must not wait, the last of them gives the directory free.
    pub(super) fn stop_jobs(&self) {
        self.tell_jobs_to_stop();
        if !self.have_jobs_stopped() && self.env.spawner.may_block() {
            self.progress.wait(&*self.env.spawner, || self.have_jobs_stopped().then_some(()));
        }
    }

    fn tell_jobs_to_stop(&self) {
        self.closed.store(true, Ordering::Release);
        self.jobs.stopping.store(true, Ordering::Release);
        // Against the one in `Hold::new`: either it sees that we close, or we see that it holds.
        fence(Ordering::SeqCst);
        self.jobs.wake_wal();
        self.jobs.wake_keeper();
        self.jobs.wake_flush();
        self.jobs.wake_compactions();
        self.progress.notify();
    }

    /// True once none runs; then the directory is free.
    fn have_jobs_stopped(&self) -> bool {
        let stopped = self.jobs.running.load(Ordering::Acquire) == 0 || planted(Bug::CloseIgnoresHold);
        if stopped {
            self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        stopped
    }

    /// One job, or one call that works beside them, is over.
    fn job_ended(&self) {
        if self.jobs.running.fetch_sub(1, Ordering::AcqRel) == 1 && self.jobs.stopping() {
            self.have_jobs_stopped();
        }
        self.progress.notify();
    }

    /// Writes everything that is visible now into tables and waits for it.
    pub(super) fn flush(&self) -> Result<Version> {
        let mut flush = FlushWait::new(self, false);
        self.progress.wait(&*self.env.spawner, || flush.look(self))
    }

    /// The same as a future.
    pub(super) async fn flush_later(&self, is_closing: bool) -> Result<Version> {
        let mut flush = FlushWait::new(self, is_closing);
        poll_fn(|context| {
            self.progress.register(context.waker());
            flush.look(self).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    pub(super) fn failed_flushes(&self) -> u64 {
        self.jobs.failed_flushes.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until `done`, or until a flush failed after `failed_before`.
    pub(super) fn wait_for_flush(&self, failed_before: u64, done: impl Fn(&Core) -> bool) -> Result<()> {
        self.progress.wait(&*self.env.spawner, || self.look_for_flush(failed_before, &done))
    }

    /// Something if the wait for a flush is over.
    fn look_for_flush(&self, failed_before: u64, done: impl Fn(&Core) -> bool) -> Option<Result<()>> {
        if done(self) {
            return Some(Ok(()));
        }
        if let Err(error) = self.check_poison() {
            return Some(Err(error));
        }
        if self.jobs.stopping() {
            return Some(Err(Error::Closed));
        }
        let failed = self.jobs.failed_flushes.lock().unwrap_or_else(PoisonError::into_inner);
        match &*failed {
            (count, Some(error)) if *count > failed_before => Some(Err(error.clone())),
            _ => None,
        }
    }

    /// As [`Core::close`], without occupying the caller's thread while the engine flushes and its jobs end.
    pub(super) async fn close_later(&self) -> Result<()> {
        if self.wal.is_some() || self.read_only {
            // A sync and an edit: nothing that a future could wait for.
            return self.close();
        }
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(Error::Closed);
        }
        let flushed = self.flush_later(true).await.map(|_| ());
        self.tell_jobs_to_stop();
        poll_fn(|context| {
            self.progress.register(context.waker());
            if self.have_jobs_stopped() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        flushed
    }

    pub(super) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(Error::Closed);
        }
        let result = match (&self.wal, self.read_only) {
            (_, true) => Ok(()),
            (None, false) => {
                let mut flush = FlushWait::new(self, true);
                self.progress.wait(&*self.env.spawner, || flush.look(self)).map(|_| ())
            }
            (Some(wal), false) => self.check_poison().and_then(|()| {
                let (position, version) = {
                    let state = self.write_state();
                    (state.last_record, state.last_version)
                };
                self.sync_wal(wal, position)?;
                // The mark makes damage to the last group recognisable as such. Best effort: the data is durable already.
                let best_effort = |error: Error| if error.is_no_space() { Ok(()) } else { Err(error) };
                if let Some(claim) = wal.try_begin_sync()? {
                    claim.sync_and_mark().map(|_| ()).or_else(best_effort)?;
                }
                self.note_wal_synced(wal.synced_position(), version).or_else(best_effort)
            }),
        };
        self.stop_jobs();
        result
    }
}

impl Core {
    /// Leaves in the manifest how far the WAL reaches, so that the next open can tell that its end is missing.
    fn note_wal_synced(&self, position: WalPosition, version: Version) -> Result<()> {
        let mut manifest = self.manifest();
        if manifest.state().flushed >= version {
            return Ok(());
        }
        manifest.apply(&ManifestEdit { wal_synced: Some(position.to_u64()), ..ManifestEdit::default() })
    }
}

/// Somebody who waits until everything that was visible when the wait began is in tables.
struct FlushWait {
    failed_before: u64,
    /// The version that the newest memtable concerned was sealed at; `None` until it is.
    target: Option<Version>,
    /// It is the engine's own last flush: nobody else may begin one any more.
    is_closing: bool,
}

impl FlushWait {
    fn new(core: &Core, is_closing: bool) -> FlushWait {
        FlushWait { failed_before: core.failed_flushes(), target: None, is_closing }
    }

    /// Something if the wait is over.
    fn look(&mut self, core: &Core) -> Option<Result<Version>> {
        if self.target.is_none() {
            match self.seal(core) {
                Err(error) => return Some(Err(error)),
                Ok(target) => self.target = target,
            }
        }
        let is_done = |core: &Core| match self.target {
            Some(target) => core.flushed_version() >= target,
            // Looked at a moment ago: no memtable may be added yet.
            None => false,
        };
        let over = core.look_for_flush(self.failed_before, is_done)?;
        Some(over.map(|()| core.flushed_version()))
    }

    /// Seals the active memtable if it holds something. `None` if there is no room for another one yet.
    fn seal(&self, core: &Core) -> Result<Option<Version>> {
        if core.read_only {
            return Err(Error::ReadOnly { directory: core.dir.clone() });
        }
        if !self.is_closing {
            core.check_open()?;
        }
        core.check_poison()?;
        let mut state = core.write_state();
        let target = state.last_version;
        let view = core.view.read();
        let idle = view.memtables.len() == 1 && view.active().is_idle();
        if idle && core.flushed_version() >= target {
            return Ok(Some(target));
        }
        if view.active().is_idle() && view.memtables.len() > 1 && view.memtables[1].sealed_at.get() == Some(&target) {
            return Ok(Some(target));
        }
        if view.memtables.len() >= core.options.write_buffers_max {
            return Ok(None);
        }
        drop(view);
        core.seal(&mut state, 0);
        Ok(Some(target))
    }
}

/// A call that works in the directory beside the jobs. The directory is not given free before it is dropped.
pub(super) struct Hold<'a> {
    core: &'a Core,
}

impl<'a> Hold<'a> {
    pub(super) fn new(core: &'a Core) -> Result<Hold<'a>> {
        core.jobs.running.fetch_add(1, Ordering::AcqRel);
        let hold = Hold { core };
        fence(Ordering::SeqCst);
        core.check_open()?;
        Ok(hold)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.core.job_ended();
    }
}

/// What a job does in a step, before errors and panics are dealt with.
trait Work: Send {
    fn step(&mut self, core: &Arc<Core>) -> Result<Step>;
}

impl Work for CompactionJob {
    fn step(&mut self, core: &Arc<Core>) -> Result<Step> {
        CompactionJob::step(self, core)
    }
}

/// A job with the engine's rules for errors, panics and stopping around it.
struct Guarded {
    core: Arc<Core>,
    /// `None` once it has ended.
    work: Option<Box<dyn Work>>,
}

impl Job for Guarded {
    fn step(&mut self) -> Step {
        if self.core.jobs.stopping() {
            self.work = None;
            return Step::Done;
        }
        let Some(work) = &mut self.work else { return Step::Done };
        match catch_unwind(AssertUnwindSafe(|| work.step(&self.core))) {
            Ok(Ok(step)) => step,
            Ok(Err(error)) if error.is_no_space() => {
                self.core.counters.retried();
                self.core.tell(|| Event::BackgroundError { error: &error, is_retried: true });
                Step::WaitFor(RETRY_AFTER)
            }
            Ok(Err(error)) => {
                self.core.poison(&error);
                self.core.tell(|| Event::BackgroundError { error: &error, is_retried: false });
                // It stays, doing nothing: reads go on, and the engine can be closed.
                self.work = Some(Box::new(Idle));
                Step::Wait
            }
            Err(panic) => {
                let what = panic.downcast_ref::<String>().map(String::as_str);
                let what = what.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                self.core.poison(format_args!("a background job panicked: {what}"));
                self.work = Some(Box::new(Idle));
                Step::Wait
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Runs and their files first: whoever waits for the jobs may remove the directory next.
        self.work = None;
        self.core.job_ended();
    }
}

struct Idle;

impl Work for Idle {
    fn step(&mut self, core: &Arc<Core>) -> Result<Step> {
        // It may stand in for the keeper.
        core.tell_poison();
        Ok(Step::Wait)
    }
}

struct WalSync;

impl Work for WalSync {
    fn step(&mut self, core: &Arc<Core>) -> Result<Step> {
        let wal = core.wal.as_ref().expect("the job exists only with a WAL");
        if !wal.has_sync_waiters() {
            return Ok(Step::Wait);
        }
        match wal.try_begin_sync()? {
            Some(claim) => claim.sync().map(|_| Step::Again),
            None => Ok(Step::Wait),
        }
    }
}

struct Keeper;

impl Work for Keeper {
    fn step(&mut self, core: &Arc<Core>) -> Result<Step> {
        let asked = core.jobs.keeper_asked.load(Ordering::SeqCst);
        let result = self.step_once(core);
        // A failure too: what it could not do it tries again later, and nobody waits for that.
        let is_over = matches!(result, Ok(Step::Wait | Step::Done) | Err(_));
        if is_over && core.jobs.kept.fetch_max(asked, Ordering::SeqCst) < asked {
            core.progress.notify();
        }
        result
    }
}

impl Keeper {
    fn step_once(&mut self, core: &Arc<Core>) -> Result<Step> {
        core.tell_poison();
        if let Some(wal) = &core.wal {
            if wal.prepare_step()? == PrepareStep::Again {
                return Ok(Step::Again);
            }
            let below = core.jobs.purge_below.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(below) = below {
                // The manifest names this position, durably. Without space it is tried again.
                wal.purge_stored(below).inspect_err(|_| core.jobs.purge_wal_below(below))?;
                if below >= wal.last_position() {
                    // Everything is in tables and nobody writes: give the space back.
                    wal.trim(0)?;
                }
                return Ok(Step::Again);
            }
        }
        let retired = core.view.reclaim();
        core.rest_memory();
        if core.may_remove_files()?
            && let Some(path) = core.obsolete.pop()
        {
            remove(core, &path);
            return Ok(Step::Again);
        }
        Ok(if retired > 0 { Step::WaitFor(RECLAIM_AFTER) } else { Step::Wait })
    }
}

/// Removes a file that nothing names. A failure costs space only, and the next open tries again.
fn remove(core: &Core, path: &std::path::Path) {
    if core.env.fs.remove_file(path).is_err() {
        core.counters.unremoved();
    } else {
        core.tell(|| Event::FileRemoved { path });
    }
}

impl Core {
    /// Tells the listener, once, that the engine is poisoned, if it is.
    fn tell_poison(&self) {
        if let Some(reason) = self.poison.get().filter(|_| !self.jobs.told_poison.swap(true, Ordering::AcqRel)) {
            self.tell(|| Event::Poisoned { reason });
        }
    }

    /// With everything in tables, memory of memtables is given back to the operating system: the spare piece, and the pages that the empty memtable
    /// has from the one before it.
    fn rest_memory(&self) {
        let active = {
            let view = self.view.read();
            if view.memtables.len() > 1 || !view.active().entries.is_empty() {
                return;
            }
            Arc::clone(view.active())
        };
        self.memtable_memory.clear();
        if !active.has_rested.swap(true, Ordering::Relaxed) {
            // Meanwhile the memtable looks full: nobody must ask.
            let _state = self.write_state();
            active.entries.release_unused();
        }
    }

    /// False while an older manifest could still be what a crash leaves, which then names files that look obsolete now.
    fn may_remove_files(&self) -> Result<bool> {
        let mut manifest = self.manifest();
        if !manifest.is_settled() {
            manifest.settle_if_space()?;
        }
        // A failed edit may be there after all: then the next open needs the files that it adds, which nobody here knows.
        Ok(manifest.is_settled() && manifest.poisoned().is_none())
    }
}

/// Writes the oldest immutable memtable into L0, one after another in the order in which they were filled.
struct Flush {
    /// The run, its memtable, and when it began.
    run: Option<(MergeRun, Arc<LiveMemtable>, Duration)>,
}

impl Work for Flush {
    fn step(&mut self, core: &Arc<Core>) -> Result<Step> {
        let result = self.step_run(core);
        if let Err(error) = &result {
            // The files of the failed attempt go, and the next attempt starts afresh.
            self.run = None;
            let mut failed = core.jobs.failed_flushes.lock().unwrap_or_else(PoisonError::into_inner);
            *failed = (failed.0 + 1, Some(error.clone()));
            drop(failed);
            core.progress.notify();
        }
        result
    }
}

impl Flush {
    fn step_run(&mut self, core: &Arc<Core>) -> Result<Step> {
        if core.poison.get().is_some() {
            return Ok(Step::Wait);
        }
        let Some((run, memtable, began)) = &mut self.run else {
            core.seal_for_tombstones();
            let Some(memtable) = core.view.read().immutables().last().cloned() else { return Ok(Step::Wait) };
            let sealed_at = *memtable.sealed_at.get().expect("an immutable memtable was sealed");
            // Its last writers may still be inserting.
            let ready = core.jobs.flush.get().is_none_or(|waker| core.visibility.poll_visible(sealed_at, waker));
            if !ready {
                return Ok(Step::Wait);
            }
            let memtable_bytes = memtable.entries.memory_bytes() as u64;
            core.tell(|| Event::FlushBegun { memtable_bytes });
            self.run = Some((flush_run(core, &memtable), memtable, core.env.clock.now()));
            return Ok(Step::Again);
        };
        if let Some(wait) = core.wait_for_pace(Writer::Flush) {
            return Ok(wait);
        }
        let done = run.step(core.options.job_step_entries)?;
        core.pay_for_pace(Writer::Flush, run.take_progress());
        if !done {
            return Ok(Step::Again);
        }
        let mut edit = flush_edit(run, memtable);
        if planted(Bug::FlushForgetsWalEnd) {
            edit.wal_start = core.wal.as_ref().map(|wal| wal.last_position().to_u64());
        }
        if planted(Bug::PurgeBeforeFlush)
            && let (Some(wal), Some(start)) = (&core.wal, edit.wal_start)
        {
            wal.purge(WalPosition::from_u64(start))?;
        }
        core.install(edit, std::slice::from_ref(memtable))?;
        run.set_installed();
        let bytes = run.written_bytes();
        core.counters.flushed(bytes);
        let took = core.env.clock.now().saturating_sub(*began);
        self.run = None;
        core.levels_changed();
        core.tell(|| Event::FlushDone { bytes, flushed: core.flushed_version(), took });
        Ok(Step::Again)
    }
}

impl Core {
    /// Seals the active memtable if iterators lose much time to tombstones in it: flushed, they can be compacted away.
    fn seal_for_tombstones(&self) {
        if self.jobs.passed.load(Ordering::Relaxed) < PASSED_ENTRIES_WORTH_FLUSHING {
            return;
        }
        self.jobs.passed.store(0, Ordering::Relaxed);
        let mut state = self.write_state();
        let view = self.view.read();
        let worth = view.active().entries.tombstone_count() >= TOMBSTONES_WORTH_FLUSHING;
        let room = view.memtables.len() < self.options.write_buffers_max;
        drop(view);
        if worth && room && self.options.compaction_jobs > 0 {
            self.seal(&mut state, 0);
        }
    }
}

fn flush_run(core: &Arc<Core>, memtable: &Arc<LiveMemtable>) -> MergeRun {
    let (floor, pins) = core.versions.boundaries(|| core.visibility.visible());
    let view = core.view.read();
    // What may hold older data: older memtables were flushed before, so only tables.
    let mut spans: Vec<KeySpan> = view.levels.tables().map(|(_, table)| KeySpan::of(&table.meta)).collect();
    spans.sort_by(|a, b| a.smallest.cmp(&b.smallest));
    let mut older: Vec<KeySpan> = Vec::new();
    for span in spans {
        match older.last_mut() {
            Some(last) if last.overlaps(&span) => last.extend(&span),
            _ => older.push(span),
        }
    }
    let target = Target {
        level: 0,
        table_bytes: u64::MAX,
        start: None,
        end: None,
        older,
        grandparents: Vec::new(),
        grandparent_bytes_max: u64::MAX,
        l0_rank: None,
        relocate: Vec::new(),
    };
    let sources = vec![Source::Memtable(memtable.entries.iter_owned())];
    let tombstones = memtable.entries.range_tombstones().map(|list| (*list).clone()).unwrap_or_default();
    MergeRun::new(core, sources, tombstones, Retention::new(floor, pins), target)
}

fn flush_edit(run: &MergeRun, memtable: &LiveMemtable) -> ManifestEdit {
    let sealed_at = *memtable.sealed_at.get().expect("an immutable memtable was sealed");
    // Replay begins where the next memtable does.
    let wal_start = memtable.wal_end.get().copied().flatten().map(WalPosition::to_u64);
    let owner = memtable.owner_state.lock().unwrap_or_else(PoisonError::into_inner);
    ManifestEdit {
        added: run.outputs().iter().map(|meta| (0, meta.clone())).collect(),
        flushed: Some(sealed_at),
        last_version: Some(sealed_at),
        wal_start,
        owner: owner.as_ref().map(|(_, bytes)| bytes.as_slice().into()),
        oldest_readable: Some(run.floor()),
        added_blobs: run.blob_outputs().to_vec(),
        ..ManifestEdit::default()
    }
}
