//! The state of a transaction, and the rules about when it may be used.
//!
//! # Epochs
//! `reset` and a successful `on_error` begin a new epoch: everything of the old one (reads under way, watches that are not armed, a
//! promised versionstamp) ends with `transaction_cancelled`, and whatever finishes late finds another epoch and changes nothing.
//!
//! # Poison
//! A transaction is poisoned by the first of: `cancel`, its timeout, an operation while it commits, an `on_error` that gives up. From
//! then on every call fails with that error, until `reset`. What was under way fails at once.
//!
//! # Deferred errors
//! Calls that change something return nothing. What is wrong with one is told by the next call that returns something, and by
//! every one after it, until `reset` or `on_error`.
//!
//! # Concurrency
//! One lock, held for the time of a few map operations or of one read of what is in memory, never while a waker or a future runs: what has to be woken or told is
//! collected and done behind it.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use ferrisdb_core::key::{SYSTEM_END, USER_END};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Limits, Result, Runtime, Version, Versionstamp};
use futures_util::FutureExt as _;
use futures_util::future::Shared;

use crate::begin::Begin;
use crate::conflicts::ConflictSet;
use crate::database::DatabaseInner;
use crate::overlay::Overlay;
use crate::promise::{Promise, WakerSet};
use crate::read::{Outstanding, cancelled};
use crate::retry::RetryState;
use crate::settings::Settings;
use crate::special::tracing::Tracing;
use crate::watch::PendingWatch;

/// The key that every client may read to notice that some metadata changed.
pub(crate) const METADATA_VERSION_KEY: &[u8] = b"\xff/metadataVersion";

/// What all handles and futures of a transaction share.
pub(crate) struct Inner {
    pub(crate) database: Arc<DatabaseInner>,
    state: Mutex<State>,
}

/// The read version.
pub(crate) enum ReadVersion {
    Unasked,
    Asked(Shared<BoxFuture<Result<Version>>>),
    Known(Version),
    Failed(Error),
}

/// How far the commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitPhase {
    NotBegun,
    /// `commit` was called: nothing else may be done, ever, until a reset.
    Begun,
    Succeeded(Option<Version>),
    Failed,
}

pub(crate) struct State {
    pub(crate) epoch: u64,
    poison: Option<Error>,
    deferred: Option<Error>,
    pub(crate) commit: CommitPhase,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) read_conflicts: ConflictSet,
    pub(crate) version: ReadVersion,
    pub(crate) settings: Settings,
    pub(crate) retry: RetryState,
    /// When the transaction was made or reset: its timeout counts from here.
    begun: Duration,
    pub(crate) watches: Vec<PendingWatch>,
    pub(crate) stamp: Option<Promise<Versionstamp>>,
    outstanding: Vec<Box<dyn Outstanding>>,
    /// Reads that nobody awaits are looked for when there are so many.
    outstanding_sweep: usize,
    /// A read was begun, whatever became of it.
    has_read: bool,
    /// The first read that failed: the commit fails with it.
    pub(crate) read_error: Option<Error>,
    wakers: WakerSet,
    /// An estimate of what the commit will have.
    pub(crate) size: u64,
    /// What the last commit conflicted with, if that was asked for.
    pub(crate) conflicting: Vec<KeyRange>,
    /// What `\xff\xff/error_message` says.
    pub(crate) error_message: Option<String>,
    pub(crate) tracing: Tracing,
    /// To be done when the lock is not held any more.
    after: Vec<Box<dyn FnOnce() + Send>>,
}

/// So many reads under way are not worth sweeping.
const OUTSTANDING_SWEEP_MIN: usize = 32;
/// Counted in the approximate size for each mutation and conflict range, beside their bytes.
const OVERHEAD_BYTES: u64 = 16;

impl Inner {
    pub(crate) fn new(database: Arc<DatabaseInner>) -> Inner {
        let settings = database.defaults();
        let begun = database.runtime.now();
        let state = State {
            epoch: 0,
            poison: None,
            deferred: None,
            commit: CommitPhase::NotBegun,
            overlay: Arc::clone(&database.empty_overlay),
            read_conflicts: ConflictSet::default(),
            version: ReadVersion::Unasked,
            settings,
            retry: RetryState::default(),
            begun,
            watches: Vec::new(),
            stamp: None,
            outstanding: Vec::new(),
            outstanding_sweep: OUTSTANDING_SWEEP_MIN,
            has_read: false,
            read_error: None,
            wakers: WakerSet::default(),
            size: 0,
            conflicting: Vec::new(),
            error_message: None,
            tracing: Tracing::default(),
            after: Vec::new(),
        };
        Inner { database, state: Mutex::new(state) }
    }

    /// Looks at the state or changes it, then does what that entails.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut state);
        if !state.after.is_empty() {
            let after = std::mem::take(&mut state.after);
            drop(state);
            after.into_iter().for_each(|action| action());
        }
        result
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.database.runtime
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.database.limits
    }

    /// May a call that returns something begin? In this order: deferred errors, use during a commit, poison.
    #[inline]
    pub(crate) fn enter(&self, state: &mut State) -> Result<()> {
        if planted(Bug::DeferredErrorToldOnce)
            && let Some(error) = state.deferred.take()
        {
            return Err(error);
        }
        state.check_deferred()?;
        self.check_commit(state)?;
        self.check_poison(state)
    }

    /// Fails once the commit has begun, and poisons the transaction unless an option forbids it. A timeout that is over by now came first.
    pub(crate) fn check_commit(&self, state: &mut State) -> Result<()> {
        self.check_time(state);
        state.check_commit()
    }

    /// Fails if the transaction is poisoned, or its time over.
    #[inline]
    pub(crate) fn check_poison(&self, state: &mut State) -> Result<()> {
        self.check_time(state);
        match &state.poison {
            None => Ok(()),
            Some(poison) => Err(poison.clone()),
        }
    }

    fn check_time(&self, state: &mut State) {
        if let Some(deadline) = state.deadline()
            && state.poison.is_none()
            && self.database.runtime.now() >= deadline
        {
            state.poison(Code::TransactionTimedOut.into());
        }
    }

    /// For a future of epoch `epoch`: fails if the transaction has ended for it. Otherwise the waker will be woken when it does, and
    /// the deadline is returned, if there is one.
    pub(crate) fn guard(&self, epoch: u64, slot: &mut Option<u64>, waker: &Waker) -> Result<Option<Duration>> {
        self.with(|state| {
            if state.epoch != epoch {
                return Err(cancelled());
            }
            self.check_poison(state)?;
            state.wakers.register(slot, waker);
            Ok(state.deadline())
        })
    }

    pub(crate) fn forget_waker(&self, slot: u64) {
        self.with(|state| state.wakers.forget(slot));
    }

    /// Asks for the read version, once.
    pub(crate) fn ask_version(&self, state: &mut State) -> Begin {
        if planted(Bug::ReadersDoNotAsk)
            && matches!(state.version, ReadVersion::Unasked)
            && let Some(version) = self.database.heard.recent(self.database.runtime.now())
        {
            state.version = ReadVersion::Known(version);
        }
        if matches!(state.version, ReadVersion::Unasked) {
            let begun = self.database.beginnings.begin(state.settings.priority);
            state.version = match begun.admitted(state.settings.is_lock_aware) {
                Begin::Now(Ok(version)) => ReadVersion::Known(version),
                Begin::Now(Err(error)) => ReadVersion::Failed(error),
                Begin::Later(answer) => ReadVersion::Asked(answer.shared()),
            };
        }
        match &state.version {
            ReadVersion::Known(version) => Begin::Now(Ok(*version)),
            ReadVersion::Failed(error) => Begin::Now(Err(error.clone())),
            ReadVersion::Asked(question) => Begin::Later(question.clone().boxed()),
            ReadVersion::Unasked => unreachable!("it was asked for just now"),
        }
    }

    /// The read version.
    pub(crate) async fn version(&self, epoch: u64) -> Result<Version> {
        let asked = self.with(|state| {
            if state.epoch != epoch {
                return Begin::Now(Err(cancelled()));
            }
            self.ask_version(state)
        });
        let result = match asked {
            Begin::Now(result) => return result,
            Begin::Later(answer) => answer.await,
        };
        self.with(|state| {
            if state.epoch == epoch && matches!(state.version, ReadVersion::Asked(_)) {
                state.version = match &result {
                    Ok(version) => ReadVersion::Known(*version),
                    Err(error) => ReadVersion::Failed(error.clone()),
                };
            }
        });
        result
    }

    /// A read has ended.
    pub(crate) fn note_read<T>(&self, epoch: u64, result: &Result<T>) {
        if let Err(error) = result {
            self.with(|state| {
                if state.epoch == epoch && state.read_error.is_none() {
                    state.read_error = Some(error.clone());
                }
            });
        }
    }

    pub(crate) fn add_outstanding(&self, epoch: u64, read: Box<dyn Outstanding>) {
        let swept = self.with(|state| {
            if state.epoch != epoch {
                return Vec::new();
            }
            let mut swept = Vec::new();
            if state.outstanding.len() >= state.outstanding_sweep {
                let all = std::mem::take(&mut state.outstanding);
                let (awaited, gone): (Vec<_>, _) = all.into_iter().partition(|read| read.is_awaited());
                state.outstanding = awaited;
                swept = gone;
                state.outstanding_sweep = OUTSTANDING_SWEEP_MIN.max(2 * state.outstanding.len());
            }
            state.outstanding.push(read);
            swept
        });
        // Not under the lock: the last reference to a future may go here.
        drop(swept);
    }

    /// Adds what a read of `range` can conflict with, as it was when the read began.
    pub(crate) fn add_read_conflicts(&self, epoch: u64, overlay: &Overlay, range: &KeyRange) {
        self.with(|state| {
            if state.epoch == epoch {
                overlay.conflicting_parts(range, |part| state.add_read_conflict(part));
            }
        });
    }

    /// Begins anew, as after `on_error`: what survives an error stays.
    pub(crate) fn reset_after_error(&self, epoch: u64) {
        let defaults = self.database.defaults();
        self.with(|state| {
            if state.epoch == epoch {
                let settings = state.settings.after_error(&defaults);
                if planted(Bug::RetryLimitForgotten) {
                    state.retry = RetryState::default();
                }
                state.begin_epoch(&self.database, settings);
            }
        });
    }

    /// Begins anew, as if just made.
    pub(crate) fn reset(&self) {
        let defaults = self.database.defaults();
        let now = self.database.runtime.now();
        self.with(|state| {
            state.retry = RetryState::default();
            state.begun = now;
            state.begin_epoch(&self.database, defaults);
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // No future of a read is left, but watches and versionstamps outlive their transaction, and must hear of its end.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.has_promises() {
            state.end_promises(&cancelled());
            std::mem::take(&mut state.after).into_iter().for_each(|action| action());
        }
    }
}

impl State {
    pub(crate) fn check_deferred(&self) -> Result<()> {
        match &self.deferred {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    fn check_commit(&mut self) -> Result<()> {
        if self.commit == CommitPhase::NotBegun {
            return Ok(());
        }
        if !self.settings.protection_disabled {
            self.poison(Code::UsedDuringCommit.into());
        }
        Err(Code::UsedDuringCommit.into())
    }

    /// Makes the transaction fail with `error` from now on. The first such error stays.
    pub(crate) fn poison(&mut self, error: Error) {
        if self.poison.is_none() {
            self.end_promises(&error);
            self.poison = Some(error);
            self.wake_all();
        }
    }

    /// Remembers the error of a call that returns nothing.
    pub(crate) fn defer(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.deferred.get_or_insert(error);
        }
    }

    /// Futures look at the state again.
    pub(crate) fn wake_all(&mut self) {
        let wakers = self.wakers.take();
        if !wakers.is_empty() {
            self.after(move || wakers.into_iter().for_each(Waker::wake));
        }
    }

    /// Does something when the lock is not held any more.
    pub(crate) fn after(&mut self, action: impl FnOnce() + Send + 'static) {
        self.after.push(Box::new(action));
    }

    fn deadline(&self) -> Option<Duration> {
        Some(self.begun.saturating_add(self.settings.timeout?))
    }

    /// Reading may go up to here.
    pub(crate) fn read_end(&self) -> &'static [u8] {
        if self.settings.reads_system { SYSTEM_END } else { USER_END }
    }

    /// Writing may go up to here.
    pub(crate) fn write_end(&self) -> &'static [u8] {
        if self.settings.writes_system { SYSTEM_END } else { USER_END }
    }

    /// True if reads of this kind see the transaction's own writes.
    pub(crate) fn sees_own_writes(&self, is_snapshot: bool) -> bool {
        !self.settings.is_ryw_disabled && (!is_snapshot || self.settings.snapshot_ryw > 0)
    }

    pub(crate) fn note_read_begun(&mut self) {
        self.has_read = true;
    }

    /// True before anything was read or written.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.has_read && self.overlay.is_empty() && self.read_conflicts.is_empty()
    }

    /// The overlay, to be changed: a copy of its own if reads under way still look at the old one.
    pub(crate) fn overlay_mut(&mut self) -> &mut Overlay {
        Arc::make_mut(&mut self.overlay)
    }

    pub(crate) fn add_read_conflict(&mut self, range: KeyRange) {
        self.size += (range.begin.len() + range.end.len()) as u64 + OVERHEAD_BYTES;
        self.read_conflicts.add(range);
    }

    pub(crate) fn add_read_conflict_key(&mut self, key: &[u8]) {
        self.size += (2 * key.len() + 1) as u64 + OVERHEAD_BYTES;
        self.read_conflicts.add_key(key);
    }

    pub(crate) fn add_write_conflict(&mut self, range: &KeyRange) {
        self.size += (range.begin.len() + range.end.len()) as u64 + OVERHEAD_BYTES;
        self.overlay_mut().add_write_conflict(range);
    }

    pub(crate) fn count_mutation(&mut self, bytes: usize) {
        self.size += bytes as u64 + OVERHEAD_BYTES;
    }

    /// Whether the write that is being made adds a conflict range: asked once for each.
    pub(crate) fn take_write_conflict_wish(&mut self) -> bool {
        if planted(Bug::NoConflictWishStays) {
            return !self.settings.next_write_no_conflict;
        }
        !std::mem::take(&mut self.settings.next_write_no_conflict)
    }

    /// The reads that a commit waits for.
    pub(crate) fn take_outstanding(&mut self) -> Vec<Box<dyn Outstanding>> {
        std::mem::take(&mut self.outstanding)
    }

    /// The read version, if it is known.
    pub(crate) fn known_version(&self) -> Option<Version> {
        match &self.version {
            ReadVersion::Known(version) => Some(*version),
            ReadVersion::Asked(question) => question.peek().and_then(|result| result.clone().ok()),
            ReadVersion::Unasked | ReadVersion::Failed(_) => None,
        }
    }

    fn begin_epoch(&mut self, database: &Arc<DatabaseInner>, settings: Settings) {
        self.end_promises(&cancelled());
        self.epoch += 1;
        self.poison = None;
        self.deferred = None;
        self.commit = CommitPhase::NotBegun;
        self.overlay = Arc::clone(&database.empty_overlay);
        self.read_conflicts = ConflictSet::default();
        self.settings = settings;
        self.has_read = false;
        self.read_error = None;
        self.size = 0;
        self.conflicting = Vec::new();
        self.error_message = None;
        self.outstanding_sweep = OUTSTANDING_SWEEP_MIN;
        // Futures may go with these; they take the lock when they do.
        let version = std::mem::replace(&mut self.version, ReadVersion::Unasked);
        let outstanding = std::mem::take(&mut self.outstanding);
        self.after(move || drop((version, outstanding)));
        self.wake_all();
    }

    /// Futures that would be woken, and reads that a commit would wait for.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.wakers.len(), self.outstanding.iter().filter(|read| read.is_awaited()).count())
    }

    /// No read is under way or has failed, and nothing is to be written: a commit has nothing to wait for and nobody to ask.
    pub(crate) fn has_nothing_to_commit(&self) -> bool {
        self.outstanding.is_empty() && self.read_error.is_none() && self.overlay.is_empty()
    }

    /// The commit has succeeded, at this version if it wrote: arms the watches, and tells what the versionstamp is.
    pub(crate) fn end_commit(&mut self, version: Option<Version>, stamp: Result<Versionstamp>) {
        self.commit = CommitPhase::Succeeded(version);
        if let Some(promise) = self.stamp.take() {
            self.after(move || promise.set(stamp));
        }
        let armed_at = version.or(self.known_version()).unwrap_or(Version::ZERO);
        for watch in std::mem::take(&mut self.watches) {
            self.after(move || watch.arm(armed_at));
        }
    }

    /// The commit has failed with `error`: so have the watches, and there will be no versionstamp.
    pub(crate) fn fail_commit_promises(&mut self, error: &Error) {
        if let Some(promise) = self.stamp.take() {
            self.after(move || promise.set(Err(Code::TransactionInvalidVersion.into())));
        }
        self.end_promises(error);
    }

    /// Watches wait to be armed, or a versionstamp was promised.
    fn has_promises(&self) -> bool {
        !self.watches.is_empty() || self.stamp.is_some()
    }

    /// Watches that are not armed and a versionstamp that is not known end with `error`.
    pub(crate) fn end_promises(&mut self, error: &Error) {
        if !self.has_promises() {
            return;
        }
        let watches = std::mem::take(&mut self.watches);
        let stamp = self.stamp.take();
        let error = error.clone();
        self.after(move || {
            for watch in watches {
                watch.fail(error.clone());
            }
            if let Some(stamp) = stamp {
                stamp.set(Err(error));
            }
        });
    }
}

/// Cuts a bound that is longer than a key can be: no key lies between it and what is left.
pub(crate) fn cut_bound(limits: &Limits, mut bound: Bytes) -> Bytes {
    let bytes_max = limits.key_bytes_for(&bound);
    if bound.len() > bytes_max {
        bound.truncate(bytes_max + 1);
    }
    bound
}
