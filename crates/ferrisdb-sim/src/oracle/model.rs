//! [`Model`]: what every call must return, from the contract.

mod mapped;
mod options;
mod others;
mod reads;
mod snapshots;
mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use ferrisdb_core::{Bytes, Code, KeyRange, Mutation, MutationKind};

use super::arithmetic;
use super::program::{Observed, SLOTS, SNAPSHOTS, Step};
use super::view::{END, Own, SYSTEM_END, View};
use options::Defaults;
use snapshots::Held;

/// Bytes of a versionstamp.
const STAMP_BYTES: usize = 10;
/// So many of the last commits can be read at: few, so that none of them is too old.
const RECENT: usize = 3;

/// Where a transaction stands, as far as the dice must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is none yet.
    New,
    /// It takes calls.
    Open,
    /// It failed, with this code: `on_error` or `reset` comes next.
    Failed(Code),
    /// It committed.
    Ended,
}

/// The database and all open transactions.
#[derive(Debug, Default)]
pub struct Model {
    state: BTreeMap<Bytes, Bytes>,
    newest: u64,
    commits: Vec<Ranges>,
    slots: [Option<Transaction>; SLOTS],
    watches: Vec<Watch>,
    is_locked: bool,
    refused: Vec<Refused>,
    /// What was there after the last few commits: at which version, what, and how many commits that contains.
    recent: VecDeque<(u64, BTreeMap<Bytes, Bytes>, usize)>,
    defaults: Defaults,
    snapshots: [Option<Held>; SNAPSHOTS],
}

/// What a commit would have written that was refused after it was checked. Those who began before the next commit may be told that it conflicts with them: the
/// resolver has it above what they read, and nothing takes it out again.
#[derive(Debug)]
struct Refused {
    written: Vec<KeyRange>,
    /// The next commit.
    until: Option<u64>,
}

/// Ranges by whether the contract demands or only allows them.
#[derive(Debug, Clone, Default)]
struct Ranges {
    must: Vec<KeyRange>,
    /// Contains `must`.
    may: Vec<KeyRange>,
}

impl Ranges {
    fn add(&mut self, range: &KeyRange) {
        self.must.push(range.clone());
        self.may.push(range.clone());
    }

    fn add_all(&mut self, must: Vec<KeyRange>, may: Vec<KeyRange>) {
        self.may.extend_from_slice(&must);
        self.must.extend(must);
        self.may.extend(may);
    }
}

fn any_meets(some: &[KeyRange], others: &[KeyRange]) -> bool {
    some.iter().any(|range| others.iter().any(|other| range.intersects(other)))
}

#[derive(Debug, Clone)]
struct Transaction {
    phase: Phase,
    /// The version that it reads at, the state there, and how many commits that contains.
    reads_at: Option<(u64, BTreeMap<Bytes, Bytes>, usize)>,
    own: Vec<Own>,
    mutations: Vec<Mutation>,
    read_conflicts: Ranges,
    write_conflicts: Ranges,
    /// Errors of calls that return nothing come with the next one that returns something.
    deferred: Option<Code>,
    poison: Option<Code>,
    /// What reads failed with: so will the commit, with one of them.
    failed_reads: Vec<Code>,
    /// What reads may have failed with that nobody has waited for: so may the commit.
    failed_unseen: Vec<Code>,
    /// Something was certainly read or written.
    is_used: bool,
    /// Something was asked for; whether that counts as reading or writing may be a matter of taste (an empty range, an error).
    is_touched: bool,
    ryw_disabled: bool,
    snapshot_ryw: i32,
    next_write_no_conflict: bool,
    committed: Option<i64>,
    size: u64,
    has_grown: bool,
    retry_limit: i32,
    retries: i32,
    /// Option 700 or 702.
    lock_aware: bool,
    /// Option 702 without 700.
    read_only: bool,
    /// It asked for a read version of a locked database.
    is_locked_out: bool,
    /// Option 701.
    is_unprotected: bool,
    /// Option 503.
    size_limit: Option<usize>,
    /// Option 712.
    reports_conflicts: bool,
    /// What a conflict may be reported to have been in, and whether something must be.
    conflicting: Option<(Ranges, bool)>,
    /// Option 1100.
    bypasses_unreadable: bool,
    /// Options 301 and 302.
    reads_system: bool,
    /// Option 301.
    writes_system: bool,
    /// It has read what is not the programs': others write there, so that it may conflict.
    has_read_fog: bool,
    /// Options 800 and 801.
    tags: u8,
    /// Option 403.
    has_identifier: bool,
}

#[derive(Debug)]
struct Watch {
    slot: usize,
    key: Bytes,
    value: Option<Bytes>,
    state: WatchState,
    /// Its own transaction wrote the key after it was set: it may have fired for that.
    is_overwritten: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchState {
    /// Its transaction has not committed.
    Pending,
    Armed,
    Dead,
}

type Checked = Result<(), String>;

impl Watch {
    /// Section 10: armed only after a successful commit, failed if there is none. A change by its own transaction fires it at once.
    fn check(&self, must_fire: bool, observed: &Observed) -> Checked {
        match (self.state, observed) {
            (_, Observed::Fired(true)) if self.is_overwritten => Ok(()),
            (WatchState::Pending, Observed::Fired(true)) => {
                Err("a watch fired before its transaction committed".to_owned())
            }
            (WatchState::Armed, Observed::Fired(false)) if must_fire => {
                Err("a watch did not fire although its key changed".to_owned())
            }
            (WatchState::Dead, Observed::Failed(_)) | (WatchState::Pending | WatchState::Armed, Observed::Fired(_)) => {
                Ok(())
            }
            (WatchState::Dead, _) => Err(format!("the watch of a transaction that did not commit: {observed:?}")),
            _ => unexpected(observed),
        }
    }
}

impl Transaction {
    fn new(defaults: &Defaults) -> Transaction {
        Transaction {
            phase: Phase::Open,
            reads_at: None,
            own: Vec::new(),
            mutations: Vec::new(),
            read_conflicts: Ranges::default(),
            write_conflicts: Ranges::default(),
            deferred: None,
            poison: None,
            failed_reads: Vec::new(),
            failed_unseen: Vec::new(),
            is_used: false,
            is_touched: false,
            ryw_disabled: false,
            snapshot_ryw: defaults.snapshot_ryw,
            next_write_no_conflict: false,
            committed: None,
            size: 0,
            has_grown: false,
            retry_limit: defaults.retry_limit,
            retries: 0,
            lock_aware: false,
            read_only: false,
            is_locked_out: false,
            is_unprotected: false,
            size_limit: defaults.size_limit,
            reports_conflicts: false,
            conflicting: None,
            bypasses_unreadable: false,
            reads_system: false,
            writes_system: false,
            has_read_fog: false,
            tags: 0,
            has_identifier: false,
        }
    }

    /// Reading goes up to here.
    fn read_end(&self) -> &'static [u8] {
        if self.reads_system { SYSTEM_END } else { END }
    }

    /// Writing goes up to here.
    fn write_end(&self) -> &'static [u8] {
        if self.writes_system { SYSTEM_END } else { END }
    }

    /// A read that may have been anywhere in the fog, where nobody knows what it met.
    fn note_fog(&mut self, snapshot: bool) {
        if !snapshot {
            self.has_read_fog = true;
            self.read_conflicts.may.push(KeyRange::new("", SYSTEM_END));
        }
    }

    /// What a read sees.
    fn view(&self, snapshot: bool) -> View<'_> {
        let sees_own = !self.ryw_disabled && (!snapshot || self.snapshot_ryw > 0);
        let (_, state, _) = self.reads_at.as_ref().expect("programs ask for a read version before they read");
        View {
            state,
            own: if sees_own { &self.own } else { &[] },
            bypasses_unreadable: self.bypasses_unreadable,
            end: self.read_end(),
        }
    }

    /// The codes with which any call that returns something must fail now, whatever it asks. Empty: none.
    fn failing(&self) -> Vec<Code> {
        match (self.phase, self.poison, self.deferred) {
            (Phase::Ended, poison, _) => poison.into_iter().chain([Code::UsedDuringCommit]).collect(),
            // Which of them is told first is not the contract's.
            (_, Some(poison), deferred) => [poison, Code::UsedDuringCommit].into_iter().chain(deferred).collect(),
            (Phase::Failed(_), None, deferred) if self.is_locked_out => {
                deferred.into_iter().chain([Code::DatabaseLocked]).collect()
            }
            // A commit that a deferred error refused may count as not begun.
            (Phase::Failed(_), None, deferred) => deferred.into_iter().chain([Code::UsedDuringCommit]).collect(),
            (_, None, deferred) => deferred.into_iter().collect(),
        }
    }

    /// A call came after the commit: it failed, and so will all others until the reset.
    fn note_misuse(&mut self, observed: &Observed) {
        let is_told = matches!(observed, Observed::Failed(code) if Some(*code) == self.deferred);
        let is_misuse = !is_told && !self.is_locked_out && !self.is_unprotected;
        if is_misuse && matches!(self.phase, Phase::Ended | Phase::Failed(_)) && self.poison.is_none() {
            self.poison = Some(Code::UsedDuringCommit);
            self.phase = Phase::Failed(Code::UsedDuringCommit);
        }
    }

    /// A read that went to the database, or to what is unreadable, and failed.
    fn note_failed_read(&mut self, observed: &Observed) {
        if let Observed::Failed(code) = observed {
            self.failed_reads.push(*code);
        }
    }

    fn defer(&mut self, code: Code) {
        self.deferred.get_or_insert(code);
    }

    fn add_write_conflict(&mut self, range: &KeyRange) {
        if std::mem::take(&mut self.next_write_no_conflict) {
            return;
        }
        self.write_conflicts.add(range);
    }
}

/// `observed` must be `expected`.
fn equal<T: PartialEq + Debug + ?Sized>(what: &str, observed: &T, expected: &T) -> Checked {
    if observed == expected { Ok(()) } else { Err(format!("{what}: found {observed:?}, expected {expected:?}")) }
}

/// If one of these errors is due, it must be what was observed.
fn due(errors: &[Code], observed: &Observed) -> Result<bool, String> {
    match observed {
        _ if errors.is_empty() => Ok(false),
        Observed::Failed(code) if errors.contains(code) => Ok(true),
        _ => Err(format!("found {observed:?}, expected an error: one of {errors:?}")),
    }
}

fn unexpected(observed: &Observed) -> Checked {
    Err(format!("found {observed:?}"))
}

impl Model {
    /// An empty database.
    pub fn new() -> Model {
        Model::default()
    }

    /// Where the slot's transaction stands.
    pub fn phase(&self, slot: usize) -> Phase {
        self.slots[slot].as_ref().map_or(Phase::New, |transaction| transaction.phase)
    }

    /// True once the slot's transaction reads at a version.
    pub fn has_read_version(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|transaction| transaction.reads_at.is_some())
    }

    /// True if it is beyond doubt whether the slot's transaction has been used.
    pub fn is_use_certain(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|transaction| transaction.is_used == transaction.is_touched)
    }

    /// True if the slot's transaction is open and has written something.
    pub fn has_written(&self, slot: usize) -> bool {
        let transaction = self.slots[slot].as_ref();
        transaction.is_some_and(|transaction| transaction.phase == Phase::Open && !transaction.mutations.is_empty())
    }

    /// True if the slot's transaction may read system keys.
    pub fn reads_system(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|transaction| transaction.reads_system)
    }

    /// True if a watch waits for the slot's transaction to commit.
    pub fn has_waiting_watch(&self, slot: usize) -> bool {
        self.watches.iter().any(|watch| watch.slot == slot && watch.state == WatchState::Pending)
    }

    /// True if the slot's transaction has tags, and no error to tell.
    pub fn is_tagged(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|transaction| transaction.tags > 0 && transaction.deferred.is_none())
    }

    /// True while the database is locked.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// Versions that are young enough to be read at.
    pub fn recent_versions(&self) -> Vec<i64> {
        self.recent.iter().map(|(version, ..)| i64::try_from(*version).expect("a version has 56 bits")).collect()
    }

    /// True if the slot's transaction has an error to tell with the next call that tells any.
    pub fn has_deferred(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|transaction| transaction.deferred.is_some())
    }

    /// What is stored.
    pub fn state(&self) -> &BTreeMap<Bytes, Bytes> {
        &self.state
    }

    /// The version of the last commit.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Watches that were set.
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// True if this watch was armed and its key has changed.
    pub fn must_fire(&self, watch: usize) -> bool {
        let watch = &self.watches[watch];
        watch.state == WatchState::Armed && self.state.get(&watch.key) != watch.value.as_ref()
    }

    /// True if this watch was armed, and nothing is known of its end.
    pub fn is_armed(&self, watch: usize) -> bool {
        self.watches[watch].state == WatchState::Armed
    }

    /// A step that asked the database was told that it could not be done now, for reasons that no model knows. After a commit its transaction has
    /// failed; after anything else it takes only `on_error` or a reset.
    pub fn fail(&mut self, step: &Step, code: Code) {
        match step {
            Step::Commit { slot } | Step::CommitDuring { slot, .. } => {
                self.note_refused(*slot);
                self.end_watches(*slot, WatchState::Dead);
                let of = self.of(*slot);
                of.phase = Phase::Failed(code);
                // It had switched the protection off before it committed.
                of.is_unprotected |= matches!(step, Step::CommitDuring { .. });
            }
            Step::SetLock { .. } => {
                self.refused.push(Refused { written: vec![KeyRange::new("", END)], until: None });
            }
            Step::Expire { slot, .. } => self.time_is_over(*slot),
            Step::TakeSnapshot { held, .. } => self.snapshots[*held] = None,
            Step::Watch { slot, key } => self.watches.push(Watch {
                slot: *slot,
                key: key.clone(),
                value: None,
                state: WatchState::Dead,
                is_overwritten: false,
            }),
            Step::WatchFired { watch, .. } => self.watches[*watch].state = WatchState::Dead,
            _ => {}
        }
    }

    /// The client did not learn what became of a commit, and now somebody has: its version and stamp, or that it never will.
    ///
    /// # Errors
    /// It should not have committed, or not there.
    pub fn settle(&mut self, slot: usize, outcome: Option<(u64, [u8; STAMP_BYTES])>) -> Result<(), String> {
        self.end_watches(slot, WatchState::Dead);
        match outcome {
            Some((version, stamp)) => {
                self.commit(slot, &Observed::Committed { version: Some(version), stamp: Ok(stamp) })
            }
            None => {
                self.note_refused(slot);
                Ok(())
            }
        }
    }

    fn note_refused(&mut self, slot: usize) {
        let transaction = self.of(slot);
        let stamped = transaction.own.iter().filter_map(|own| match own {
            Own::Stamped(range, _) => Some(range.clone()),
            _ => None,
        });
        let written = transaction.write_conflicts.may.iter().cloned().chain(stamped).collect();
        self.refused.push(Refused { written, until: None });
    }

    /// The client is gone, with its transactions and watches.
    pub fn forget_client(&mut self) {
        self.slots = Default::default();
        self.watches.clear();
        self.snapshots = Default::default();
        self.defaults = Defaults::default();
    }

    fn of(&mut self, slot: usize) -> &mut Transaction {
        self.slots[slot].as_mut().expect("programs begin a transaction before they use it")
    }

    fn end_watches(&mut self, slot: usize, state: WatchState) {
        for watch in &mut self.watches {
            if watch.slot == slot && watch.state == WatchState::Pending {
                watch.state = state;
            }
        }
    }

    /// Compares what was observed with the contract, and takes the step.
    pub fn check(&mut self, step: &Step, observed: &Observed) -> Checked {
        let checked = self.check_step(step, observed);
        for watch in &mut self.watches {
            let may_write = watch.slot == step.slot() && watch.state == WatchState::Pending;
            watch.is_overwritten |= may_write && step.may_write(&watch.key);
        }
        if let Some(transaction) = &mut self.slots[step.slot()] {
            let is_neutral = matches!(
                step,
                Step::Begin { .. }
                    | Step::ReadVersion { .. }
                    | Step::NextWriteNoConflict { .. }
                    | Step::ReadYourWritesDisable { .. }
                    | Step::SetLock { .. }
                    | Step::LockAware { .. }
                    | Step::SnapshotReadYourWrites { .. }
                    | Step::RetryLimit { .. }
                    | Step::SetReadVersion { .. }
                    | Step::CausalWriteRisky { .. }
                    | Step::Priority { .. }
                    | Step::SizeLimit { .. }
                    | Step::ReportConflictingKeys { .. }
                    | Step::BypassUnreadable { .. }
                    | Step::WatchFired { .. }
                    | Step::ApproximateSize { .. }
                    | Step::Reset { .. }
                    | Step::OnError { .. }
                    | Step::SystemKeys { .. }
                    | Step::OptionByNumber { .. }
                    | Step::DatabaseDefault { .. }
                    | Step::Retries { .. }
                    | Step::Timeout { .. }
                    | Step::LockedBy
                    | Step::TakeSnapshot { .. }
                    | Step::SnapshotRead { .. }
                    | Step::DropSnapshot { .. }
            );
            transaction.is_touched |= !is_neutral;
        }
        checked
    }

    fn check_step(&mut self, step: &Step, observed: &Observed) -> Checked {
        match step {
            Step::Begin { slot } => {
                self.end_watches(*slot, WatchState::Dead);
                self.slots[*slot] = Some(Transaction::new(&self.defaults));
                equal("begin", observed, &Observed::Done)
            }
            Step::Reset { slot } => {
                self.end_watches(*slot, WatchState::Dead);
                self.slots[*slot] = Some(Transaction::new(&self.defaults));
                equal("reset", observed, &Observed::Done)
            }
            Step::Cancel { slot } => {
                self.end_watches(*slot, WatchState::Dead);
                let transaction = self.of(*slot);
                transaction.poison.get_or_insert(Code::TransactionCancelled);
                transaction.phase = Phase::Failed(Code::TransactionCancelled);
                equal("cancel", observed, &Observed::Done)
            }
            Step::Pause => {
                self.slots = Default::default();
                self.recent.clear();
                for watch in &mut self.watches {
                    if watch.state == WatchState::Pending {
                        watch.state = WatchState::Dead;
                    }
                }
                equal("a pause", observed, &Observed::Done)
            }
            Step::DatabaseDefault { number, value } => self.defaults.set(*number, *value, observed),
            Step::Expire { slot, meanwhile } => self.expire(*slot, meanwhile.as_deref(), observed),
            Step::TakeSnapshot { held, version, system, lock_aware } => {
                self.take_snapshot(*held, *version, *system, *lock_aware, observed)
            }
            Step::SnapshotRead { held, read } => self.snapshot_read(*held, read, observed),
            Step::DropSnapshot { held } => {
                self.snapshots[*held] = None;
                equal("the end of a snapshot", observed, &Observed::Done)
            }
            Step::LockedBy => equal("by whom it is locked", observed, &Observed::Locked(self.is_locked)),
            Step::Retries { slot } => {
                let retries = u64::try_from(self.of(*slot).retries).expect("it counts from zero");
                equal("errors so far", observed, &Observed::Size(retries))
            }
            Step::Addresses { slot, .. } => {
                let failing = self.of(*slot).failing();
                match observed {
                    Observed::Done if failing.is_empty() => Ok(()),
                    Observed::Failed(code) if failing.contains(code) => Ok(()),
                    _ => unexpected(observed),
                }
            }
            Step::OptionByNumber { slot, number, value } => {
                self.of(*slot).option_by_number(*number, value.as_deref(), observed)
            }
            Step::Stream { slot, question, snapshot } => self.of(*slot).stream(question, *snapshot, observed),
            Step::Commit { slot } => self.commit(*slot, observed),
            Step::CommitDuring { slot, .. } => self.commit_during(*slot, observed),
            Step::SetReadVersion { slot, version } => self.set_read_version(*slot, *version, observed),
            Step::ConflictRanges { slot, of_writes } => self.of(*slot).conflict_ranges(*of_writes, observed),
            Step::ConflictingKeys { slot } => self.of(*slot).conflicting_keys(observed),
            Step::EstimatedSize { slot, begin, end } => self.of(*slot).estimated_size(begin, end, observed),
            Step::Dropped { slot, read, .. } => self.dropped(*slot, read, observed),
            Step::Overlapping { first, between, second, .. } => self.overlapping([first, between, second], observed),
            Step::OnError { slot, code } => self.on_error(*slot, *code, observed),
            Step::WatchFired { watch, wait, .. } => self.watches[*watch].check(*wait, observed),
            Step::ReadVersion { slot } => self.read_version(*slot, observed),
            Step::Get { slot, key, snapshot } => self.of(*slot).get(key, *snapshot, observed),
            Step::GetKey { slot, selector, snapshot } => self.of(*slot).get_key(selector, *snapshot, observed),
            Step::GetRange { slot, question, snapshot } => self.of(*slot).get_range(question, *snapshot, observed),
            Step::GetMapped { slot, question, mapper, snapshot } => {
                self.of(*slot).get_mapped(question, mapper, *snapshot, observed)
            }
            Step::SetLock { locked } => {
                self.is_locked = *locked;
                if *locked {
                    // Nobody who has read anything before commits after.
                    let mut all = Ranges::default();
                    all.add(&KeyRange::new("", END));
                    self.commits.push(all);
                }
                equal("lock", observed, &Observed::Done)
            }
            Step::Watch { slot, key } => self.watch(*slot, key, observed),
            Step::CommittedVersion { slot } => match (self.of(*slot).committed, observed) {
                (Some(version), Observed::Version(found)) => equal("committed version", found, &version),
                (None, Observed::Version(-1) | Observed::Failed(_)) => Ok(()),
                _ => unexpected(observed),
            },
            Step::ApproximateSize { slot } => {
                let transaction = self.of(*slot);
                let failing = transaction.failing();
                match observed {
                    Observed::Size(size) => {
                        let grown = std::mem::take(&mut transaction.has_grown);
                        let before = std::mem::replace(&mut transaction.size, *size);
                        let is_right = if grown { *size > before } else { *size >= before };
                        if is_right { Ok(()) } else { Err(format!("the size was {before} and is {size}")) }
                    }
                    Observed::Failed(code) if failing.contains(code) => Ok(()),
                    _ => unexpected(observed),
                }
            }
            Step::SplitPoints { slot, begin, end, .. } => {
                let failing = self.of(*slot).failing();
                let read_end = self.of(*slot).read_end();
                match observed {
                    Observed::Keys(keys) => {
                        let is_ascending = keys.windows(2).all(|pair| pair[0] <= pair[1]);
                        let has_ends = keys.first() == Some(begin) && keys.last() == Some(end);
                        if is_ascending && has_ends { Ok(()) } else { unexpected(observed) }
                    }
                    Observed::Failed(code) if failing.contains(code) => Ok(()),
                    Observed::Failed(Code::KeyOutsideLegalRange) if end.as_ref() > read_end => Ok(()),
                    _ => unexpected(observed),
                }
            }
            _ => self.of(step.slot()).write(step, observed),
        }
    }

    fn read_version(&mut self, slot: usize, observed: &Observed) -> Checked {
        let (newest, state, commits) = (self.newest, self.state.clone(), self.commits.len());
        let is_locked = self.is_locked;
        let transaction = self.of(slot);
        let version = match observed {
            Observed::Failed(code) if transaction.failing().contains(code) => return Ok(()),
            _ if is_locked && transaction.reads_at.is_none() && !transaction.lock_aware => {
                transaction.is_locked_out = true;
                transaction.phase = Phase::Failed(Code::DatabaseLocked);
                return equal("read version of a locked database", observed, &Observed::Failed(Code::DatabaseLocked));
            }
            Observed::Version(version) => u64::try_from(*version).map_err(|_| format!("found version {version}"))?,
            _ => return unexpected(observed),
        };
        match transaction.reads_at {
            Some((before, ..)) => equal("read version, asked for again", &version, &before),
            None if version < newest => Err(format!("read version {version} is below the last commit's, {newest}")),
            None => {
                transaction.reads_at = Some((version, state, commits));
                Ok(())
            }
        }
    }

    fn watch(&mut self, slot: usize, key: &Bytes, observed: &Observed) -> Checked {
        let transaction = self.of(slot);
        let failing = transaction.failing();
        if !failing.is_empty() {
            transaction.note_misuse(observed);
            // It may also say so only through its future.
            self.watches.push(Watch {
                slot,
                key: key.clone(),
                value: None,
                state: WatchState::Dead,
                is_overwritten: false,
            });
            return match observed {
                Observed::Done | Observed::Failed(_) => Ok(()),
                _ => unexpected(observed),
            };
        }
        let seen = if transaction.ryw_disabled { Err(Code::WatchesDisabled) } else { transaction.view(false).get(key) };
        match (seen, observed) {
            (Ok(value), Observed::Done) => {
                let conflicts = transaction.view(false).depends_on(&KeyRange::single(key));
                transaction.read_conflicts.add_all(conflicts, Vec::new());
                transaction.is_used = true;
                self.watches.push(Watch {
                    slot,
                    key: key.clone(),
                    value,
                    state: WatchState::Pending,
                    is_overwritten: false,
                });
                Ok(())
            }
            (Err(code), Observed::Failed(found)) => {
                self.watches.push(Watch {
                    slot,
                    key: key.clone(),
                    value: None,
                    state: WatchState::Dead,
                    is_overwritten: false,
                });
                equal("watch", found, &code)
            }
            (seen, _) => Err(format!("found {observed:?}, expected {seen:?}")),
        }
    }

    fn commit(&mut self, slot: usize, observed: &Observed) -> Checked {
        let transaction = self.slots[slot].clone().expect("programs begin a transaction before they use it");
        let mut failing = transaction.failing();
        if transaction.phase == Phase::Open && transaction.poison.is_none() {
            failing.extend(&transaction.failed_reads);
            if let Observed::Failed(code) = observed
                && transaction.failed_unseen.contains(code)
            {
                failing.push(*code);
            }
        }
        if due(&failing, observed)? {
            self.end_watches(slot, WatchState::Dead);
            let of = self.of(slot);
            of.note_misuse(observed);
            if of.phase == Phase::Open {
                of.phase = Phase::Failed(failing[0]);
            }
            return Ok(());
        }
        let Transaction { read_conflicts, write_conflicts, mutations, .. } = &transaction;
        if mutations.is_empty() && write_conflicts.may.is_empty() {
            let expected = Observed::Committed { version: None, stamp: Err(Code::NoCommitVersion) };
            self.end_watches(slot, WatchState::Armed);
            self.of(slot).phase = Phase::Ended;
            self.of(slot).committed = Some(-1);
            return equal("commit of a transaction that wrote nothing", observed, &expected);
        }
        if self.is_too_large(slot, observed)? {
            self.end_watches(slot, WatchState::Dead);
            self.of(slot).phase = Phase::Failed(Code::TransactionTooLarge);
            return Ok(());
        }
        let refusal = match transaction {
            Transaction { read_only: true, .. } => Some(Code::TransactionReadOnly),
            Transaction { lock_aware: false, .. } if self.is_locked => Some(Code::DatabaseLocked),
            _ => None,
        };
        if let Some(code) = refusal {
            self.end_watches(slot, WatchState::Dead);
            self.of(slot).phase = Phase::Failed(code);
            return equal("commit", observed, &Observed::Failed(code));
        }
        // A transaction that never asked for a version reads at one that contains everything.
        let seen = transaction.reads_at.as_ref().map_or(self.commits.len(), |(_, _, seen)| *seen);
        let since = &self.commits[seen..];
        match observed {
            Observed::Failed(Code::NotCommitted) => {
                let read_version = transaction.reads_at.as_ref().map_or(self.newest, |(version, ..)| *version);
                let mut refused = self.refused.iter();
                let is_refused = refused.any(|refused| {
                    refused.until.is_none_or(|until| read_version < until)
                        && any_meets(&refused.written, &read_conflicts.may)
                });
                let is_certain = !is_refused && !transaction.has_read_fog;
                if is_certain && !since.iter().any(|commit| any_meets(&commit.may, &read_conflicts.may)) {
                    return Err(format!("a conflict with nothing: it read {:?}", read_conflicts.may));
                }
                let conflicting = others::conflicting(since, read_conflicts);
                self.end_watches(slot, WatchState::Dead);
                let of = self.of(slot);
                of.phase = Phase::Failed(Code::NotCommitted);
                of.conflicting = Some((conflicting, is_certain));
                Ok(())
            }
            Observed::Committed { version: Some(version), stamp: Ok(stamp) } => {
                if since.iter().any(|commit| any_meets(&commit.must, &read_conflicts.must)) {
                    return Err(format!("it committed, although it had read {:?}", read_conflicts.must));
                }
                self.apply(slot, &transaction, *version, *stamp)
            }
            _ => unexpected(observed),
        }
    }

    fn apply(&mut self, slot: usize, transaction: &Transaction, version: u64, stamp: [u8; STAMP_BYTES]) -> Checked {
        equal("the version in the versionstamp", &stamp[..8], &version.to_be_bytes()[..])?;
        let read_version = transaction.reads_at.as_ref().map_or(0, |(version, ..)| *version);
        if version <= self.newest || version <= read_version {
            return Err(format!("version {version} is not above {} and {read_version}", self.newest));
        }
        let mut writes = transaction.write_conflicts.clone();
        for mutation in &transaction.mutations {
            let (mut key, mut value) = (mutation.key.clone(), Some(mutation.value.clone()));
            match mutation.kind {
                MutationKind::ClearRange => {
                    self.state.retain(|row, _| *row < mutation.key || *row >= mutation.value);
                    continue;
                }
                MutationKind::Set => {}
                MutationKind::SetVersionstampedKey => {
                    key = fill(&mutation.key, stamp);
                    writes.add(&KeyRange::single(&key));
                }
                MutationKind::SetVersionstampedValue => value = Some(fill(&mutation.value, stamp)),
                kind => value = arithmetic::fold(kind, self.state.get(&key), &mutation.value),
            }
            match value {
                Some(value) => self.state.insert(key, value),
                None => self.state.remove(&key),
            };
        }
        self.newest = version;
        for refused in &mut self.refused {
            refused.until.get_or_insert(version);
        }
        self.commits.push(writes);
        self.recent.push_back((version, self.state.clone(), self.commits.len()));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.end_watches(slot, WatchState::Armed);
        let of = self.of(slot);
        of.phase = Phase::Ended;
        of.committed = Some(i64::try_from(version).expect("a version has 56 bits"));
        Ok(())
    }

    fn on_error(&mut self, slot: usize, code: Code, observed: &Observed) -> Checked {
        self.end_watches(slot, WatchState::Dead);
        let defaults = self.defaults;
        let transaction = self.of(slot);
        if let Some(poison) = transaction.poison {
            return equal("on_error of a poisoned transaction", observed, &Observed::Failed(poison));
        }
        let is_over_limit = transaction.retry_limit != -1 && transaction.retries >= transaction.retry_limit;
        transaction.retries += 1;
        if is_over_limit || !code.is_retryable_not_committed() {
            transaction.poison = Some(Code::TransactionCancelled);
            transaction.phase = Phase::Failed(Code::TransactionCancelled);
            return equal("on_error without a retry", observed, &Observed::Failed(code));
        }
        let (retry_limit, retries) = (transaction.retry_limit, transaction.retries);
        *transaction = Transaction { retry_limit, retries, ..Transaction::new(&defaults) };
        equal("on_error", observed, &Observed::Done)
    }
}

fn fill(template: &Bytes, stamp: [u8; STAMP_BYTES]) -> Bytes {
    let (body, offset) = stamp_place(template).expect("a template that does not fit was refused");
    Bytes::from([&body[..offset], &stamp, &body[offset + STAMP_BYTES..]].concat())
}

/// The template without its last four bytes, and the place of the stamp.
fn stamp_place(template: &Bytes) -> Option<(&[u8], usize)> {
    let (body, offset) = template.split_last_chunk::<4>()?;
    let offset = usize::try_from(i32::from_le_bytes(*offset)).ok()?;
    (offset + STAMP_BYTES <= body.len()).then_some((body, offset))
}
