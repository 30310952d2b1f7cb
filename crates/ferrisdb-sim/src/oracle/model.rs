//! [`Model`]: what every call must return, from the contract.

use std::collections::BTreeMap;
use std::fmt::Debug;

use ferrisdb_core::key::key_after;
use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, KeyValue, Mutation, MutationKind};

use super::arithmetic;
use super::program::{Mode, Observed, RangeQuestion, SLOTS, Step};
use super::view::{END, Own, Resolved, View};

const KEY_BYTES_MAX: usize = 10_000;
const VALUE_BYTES_MAX: usize = 100_000;
const ROW_OVERHEAD: usize = 8;
const STAMP_BYTES: usize = 10;

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
    /// What a read failed with: so will the commit.
    failed_read: Option<Code>,
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
    fn new() -> Transaction {
        Transaction {
            phase: Phase::Open,
            reads_at: None,
            own: Vec::new(),
            mutations: Vec::new(),
            read_conflicts: Ranges::default(),
            write_conflicts: Ranges::default(),
            deferred: None,
            poison: None,
            failed_read: None,
            is_used: false,
            is_touched: false,
            ryw_disabled: false,
            snapshot_ryw: 1,
            next_write_no_conflict: false,
            committed: None,
            size: 0,
            has_grown: false,
            retry_limit: -1,
            retries: 0,
        }
    }

    /// What a read sees.
    fn view(&self, snapshot: bool) -> View<'_> {
        let sees_own = !self.ryw_disabled && (!snapshot || self.snapshot_ryw > 0);
        let (_, state, _) = self.reads_at.as_ref().expect("programs ask for a read version before they read");
        View { state, own: if sees_own { &self.own } else { &[] } }
    }

    /// The codes with which any call that returns something must fail now, whatever it asks. Empty: none.
    fn failing(&self) -> Vec<Code> {
        match (self.phase, self.poison, self.deferred) {
            (Phase::Ended, poison, _) => poison.into_iter().chain([Code::UsedDuringCommit]).collect(),
            // Which of them is told first is not the contract's.
            (_, Some(poison), deferred) => [poison, Code::UsedDuringCommit].into_iter().chain(deferred).collect(),
            // A commit that a deferred error refused may count as not begun.
            (Phase::Failed(_), None, deferred) => deferred.into_iter().chain([Code::UsedDuringCommit]).collect(),
            (_, None, deferred) => deferred.into_iter().collect(),
        }
    }

    /// A call came after the commit: it failed, and so will all others until the reset.
    fn note_misuse(&mut self, observed: &Observed) {
        let is_misuse = !matches!(observed, Observed::Failed(code) if Some(*code) == self.deferred);
        if is_misuse && matches!(self.phase, Phase::Ended | Phase::Failed(_)) && self.poison.is_none() {
            self.poison = Some(Code::UsedDuringCommit);
            self.phase = Phase::Failed(Code::UsedDuringCommit);
        }
    }

    /// A read that went to the database, or to what is unreadable, and failed.
    fn note_failed_read(&mut self, observed: &Observed) {
        if let Observed::Failed(code) = observed {
            self.failed_read.get_or_insert(*code);
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

    /// Watches that were set.
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// True if this watch was armed and its key has changed.
    pub fn must_fire(&self, watch: usize) -> bool {
        let watch = &self.watches[watch];
        watch.state == WatchState::Armed && self.state.get(&watch.key) != watch.value.as_ref()
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
                    | Step::SnapshotReadYourWrites { .. }
                    | Step::RetryLimit { .. }
                    | Step::WatchFired { .. }
                    | Step::ApproximateSize { .. }
                    | Step::Reset { .. }
                    | Step::OnError { .. }
            );
            transaction.is_touched |= !is_neutral;
        }
        checked
    }

    fn check_step(&mut self, step: &Step, observed: &Observed) -> Checked {
        match step {
            Step::Begin { slot } => {
                self.end_watches(*slot, WatchState::Dead);
                self.slots[*slot] = Some(Transaction::new());
                equal("begin", observed, &Observed::Done)
            }
            Step::Reset { slot } => {
                self.end_watches(*slot, WatchState::Dead);
                self.slots[*slot] = Some(Transaction::new());
                equal("reset", observed, &Observed::Done)
            }
            Step::Cancel { slot } => {
                self.end_watches(*slot, WatchState::Dead);
                let transaction = self.of(*slot);
                transaction.poison.get_or_insert(Code::TransactionCancelled);
                transaction.phase = Phase::Failed(Code::TransactionCancelled);
                equal("cancel", observed, &Observed::Done)
            }
            Step::Commit { slot } => self.commit(*slot, observed),
            Step::OnError { slot, code } => self.on_error(*slot, *code, observed),
            Step::WatchFired { watch, wait, .. } => self.watches[*watch].check(*wait, observed),
            Step::ReadVersion { slot } => self.read_version(*slot, observed),
            Step::Get { slot, key, snapshot } => self.of(*slot).get(key, *snapshot, observed),
            Step::GetKey { slot, selector, snapshot } => self.of(*slot).get_key(selector, *snapshot, observed),
            Step::GetRange { slot, question, snapshot } => self.of(*slot).get_range(question, *snapshot, observed),
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
                match observed {
                    Observed::Keys(keys) => {
                        let is_ascending = keys.windows(2).all(|pair| pair[0] <= pair[1]);
                        let has_ends = keys.first() == Some(begin) && keys.last() == Some(end);
                        if is_ascending && has_ends { Ok(()) } else { unexpected(observed) }
                    }
                    Observed::Failed(code) if failing.contains(code) => Ok(()),
                    Observed::Failed(Code::KeyOutsideLegalRange) if end.as_ref() > END => Ok(()),
                    _ => unexpected(observed),
                }
            }
            _ => self.of(step.slot()).write(step, observed),
        }
    }

    fn read_version(&mut self, slot: usize, observed: &Observed) -> Checked {
        let (newest, state, commits) = (self.newest, self.state.clone(), self.commits.len());
        let transaction = self.of(slot);
        let version = match observed {
            Observed::Failed(code) if transaction.failing().contains(code) => return Ok(()),
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
            failing.extend(transaction.failed_read);
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
        // A transaction that never asked for a version reads at one that contains everything.
        let seen = transaction.reads_at.as_ref().map_or(self.commits.len(), |(_, _, seen)| *seen);
        let since = &self.commits[seen..];
        match observed {
            Observed::Failed(Code::NotCommitted) => {
                if !since.iter().any(|commit| any_meets(&commit.may, &read_conflicts.may)) {
                    return Err(format!("a conflict with nothing: it read {:?}", read_conflicts.may));
                }
                self.end_watches(slot, WatchState::Dead);
                self.of(slot).phase = Phase::Failed(Code::NotCommitted);
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
        self.commits.push(writes);
        self.end_watches(slot, WatchState::Armed);
        let of = self.of(slot);
        of.phase = Phase::Ended;
        of.committed = Some(i64::try_from(version).expect("a version has 56 bits"));
        Ok(())
    }

    fn on_error(&mut self, slot: usize, code: Code, observed: &Observed) -> Checked {
        self.end_watches(slot, WatchState::Dead);
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
        *transaction = Transaction { retry_limit, retries, ..Transaction::new() };
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

/// Reading.
impl Transaction {
    fn get(&mut self, key: &Bytes, snapshot: bool, observed: &Observed) -> Checked {
        let failing = self.failing();
        if matches!(observed, Observed::Failed(Code::KeyOutsideLegalRange)) && key.as_ref() >= END {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if key.as_ref() >= END {
            return equal("get", observed, &Observed::Failed(Code::KeyOutsideLegalRange));
        }
        let expected = match self.view(snapshot).get(key) {
            Ok(value) => Observed::Value(value),
            Err(code) => Observed::Failed(code),
        };
        equal("get", observed, &expected)?;
        self.is_used |= matches!(expected, Observed::Value(_));
        self.note_failed_read(observed);
        if matches!(expected, Observed::Value(_)) && !snapshot {
            let conflicts = self.view(false).depends_on(&KeyRange::single(key));
            self.read_conflicts.add_all(conflicts, Vec::new());
        }
        Ok(())
    }

    fn get_key(&mut self, selector: &KeySelector, snapshot: bool, observed: &Observed) -> Checked {
        let failing = self.failing();
        if matches!(observed, Observed::Failed(Code::KeyOutsideLegalRange)) && selector.key.as_ref() > END {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if selector.key.as_ref() > END {
            return equal("get_key", observed, &Observed::Failed(Code::KeyOutsideLegalRange));
        }
        let key = match self.view(snapshot).resolve(selector) {
            Err(code) => {
                self.note_failed_read(observed);
                return equal("get_key", observed, &Observed::Failed(code));
            }
            Ok(Resolved { key, .. }) => key,
        };
        equal("get_key", observed, &Observed::Key(key.clone()))?;
        self.is_used = true;
        if !snapshot {
            let start = if selector.or_equal { key_after(&selector.key) } else { selector.key.clone() };
            let range =
                if selector.offset <= 0 { KeyRange::new(key, start) } else { KeyRange::new(start, key_after(&key)) };
            let conflicts = self.view(false).depends_on(&range);
            self.read_conflicts.add_all(conflicts, Vec::new());
        }
        Ok(())
    }

    fn get_range(&mut self, question: &RangeQuestion, snapshot: bool, observed: &Observed) -> Checked {
        let failing = self.failing();
        let invalid = question_errors(question);
        if let Observed::Failed(code) = observed
            && invalid.contains(code)
        {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if !invalid.is_empty() {
            return Err(format!("found {observed:?}, expected one of {invalid:?}"));
        }
        self.note_failed_read(observed);
        let begin = question.begin.clone().without_or_equal();
        let end = question.end.clone().without_or_equal();
        if begin.offset >= end.offset && begin.key >= end.key {
            return equal("inverted range", observed, &Observed::Rows { rows: Vec::new(), more: false });
        }
        let view = self.view(snapshot);
        let resolve = |selector: &KeySelector| match selector.offset {
            // A plain bound: nothing is touched to find it.
            1 => Ok(Resolved { key: selector.key.clone(), ran_off_front: false, ran_off_end: false }),
            _ => view.resolve(selector),
        };
        let (from, to) = (resolve(&begin), resolve(&end));
        let (rows, more) = match observed {
            Observed::Rows { rows, more } => (rows, *more),
            Observed::Failed(Code::AccessedUnreadable) => {
                let (Ok(from), Ok(to)) = (&from, &to) else { return Ok(()) };
                let scan = view.scan(&from.key, &to.key, question.reverse);
                let is_reached = scan.is_cut_by_unreadable && !is_full(&scan.rows, question);
                return if is_reached { Ok(()) } else { Err("nothing unreadable was reached".to_owned()) };
            }
            _ => return unexpected(observed),
        };
        let (Ok(from), Ok(to)) = (from, to) else {
            // Where an end is hidden behind something unreadable, rows may have been found before it mattered.
            return if rows.is_empty() && !more { Err("a bound is unreadable".to_owned()) } else { Ok(()) };
        };
        let scan = view.scan(&from.key, &to.key, question.reverse);
        check_chunk(rows, more, &scan.rows, scan.is_cut_by_unreadable, question)?;
        self.is_used |= !rows.is_empty();
        if !snapshot {
            self.add_range_conflicts(&begin, &end, (&from, &to), rows, more, question.reverse);
        }
        Ok(())
    }

    /// Section 5: what a range read adds.
    fn add_range_conflicts(
        &mut self,
        begin: &KeySelector,
        end: &KeySelector,
        (from, to): (&Resolved, &Resolved),
        rows: &[KeyValue],
        more: bool,
        reverse: bool,
    ) {
        let in_order = begin.key < end.key;
        let (mut low, mut high) =
            if in_order { (begin.key.clone(), end.key.clone()) } else { (end.key.clone(), begin.key.clone()) };
        if in_order && more && !reverse && end.offset > 0 {
            high = low.clone();
        }
        if in_order && more && reverse && begin.offset <= 0 {
            low = high.clone();
        }
        if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
            let (least, greatest) = if reverse { (last, first) } else { (first, last) };
            if reverse || begin.offset <= 0 {
                low = low.min(least.key.clone());
            }
            if (!reverse || end.offset > 0) && high <= greatest.key {
                high = key_after(&greatest.key);
            }
            if more && reverse && begin.offset <= 1 && in_order {
                // Nothing below the last row was looked at.
                low = low.max(least.key.clone());
            }
        }
        // Who ran off an end has seen that nothing is there, unless the chunk ended before that mattered.
        let off_front = from.ran_off_front || to.ran_off_front;
        let off_end = from.ran_off_end || to.ran_off_end;
        if off_front && begin.offset <= 0 && !(reverse && more) {
            low = Bytes::new();
        }
        if off_end && end.offset > 0 && (reverse || !more) {
            high = Bytes::from_static(END);
        }
        let must = KeyRange::new(low.clone(), high.clone());
        // A selector was found by looking at everything up to the key that it found, or up to the end that it ran off.
        let (least, greatest) = ((&from.key).min(&to.key), (&from.key).max(&to.key));
        let low = if off_front { Bytes::new() } else { low.min(least.clone()) };
        let high = if off_end { Bytes::from_static(END) } else { high.max(key_after(greatest)) };
        let is_plain = begin.offset == 1 && end.offset == 1;
        let may = if is_plain { must.clone() } else { KeyRange::new(low, high) };
        let view = self.view(false);
        let (must, may) = (view.depends_on(&must), view.depends_on(&may));
        self.read_conflicts.add_all(must, may);
    }
}

/// Errors of a question that is wrong in itself.
fn question_errors(question: &RangeQuestion) -> Vec<Code> {
    let mut errors = Vec::new();
    if question.begin.key.as_ref() > END || question.end.key.as_ref() > END {
        errors.push(Code::KeyOutsideLegalRange);
    }
    if question.mode == Mode::Exact && question.limit == 0 && question.target_bytes == 0 {
        errors.push(Code::ExactModeWithoutLimits);
    }
    if matches!(question.mode, Mode::Iterator(iteration) if iteration <= 0) {
        errors.push(Code::ClientInvalidOperation);
    }
    errors
}

/// Bytes after which a chunk ends: section 4.
fn target_bytes(question: &RangeQuestion) -> Option<usize> {
    const ITERATOR: [usize; 10] = [4096, 6144, 9216, 13_824, 20_736, 31_104, 46_656, 69_984, 80_000, 120_000];
    let of_mode = match question.mode {
        Mode::Exact => None,
        Mode::Small => Some(256),
        Mode::Medium => Some(1000),
        Mode::Large => Some(4096),
        Mode::Serial | Mode::WantAll => Some(120_000),
        Mode::Iterator(iteration) => {
            let index = usize::try_from(iteration - 1).expect("checked to be positive");
            Some(ITERATOR[index.min(ITERATOR.len() - 1)])
        }
    };
    let given = usize::try_from(question.target_bytes).ok().filter(|&bytes| bytes > 0);
    of_mode.into_iter().chain(given).min()
}

fn cost(row: &KeyValue) -> usize {
    ROW_OVERHEAD + row.key.len() + row.value.len()
}

/// True if a chunk of these rows is complete by its limits.
fn is_full(rows: &[KeyValue], question: &RangeQuestion) -> bool {
    let limit = usize::try_from(question.limit).expect("programs have no negative limits");
    let bytes: usize = rows.iter().map(cost).sum();
    (limit > 0 && rows.len() >= limit)
        || target_bytes(question).is_some_and(|target| !rows.is_empty() && bytes >= target)
}

/// A chunk is the beginning of what there is; it ends at a limit or early, never late; `more` is false only at the end.
fn check_chunk(
    rows: &[KeyValue],
    more: bool,
    all: &[KeyValue],
    is_cut_by_unreadable: bool,
    question: &RangeQuestion,
) -> Checked {
    let show = |rows: &[KeyValue]| {
        let rows: Vec<_> = rows.iter().map(|row| (&row.key, &row.value[..row.value.len().min(12)])).collect();
        format!("{rows:?}")
    };
    if all.get(..rows.len()) != Some(rows) {
        return Err(format!("rows {} are not the beginning of {}", show(rows), show(all)));
    }
    if let Some((_, before)) = rows.split_last()
        && is_full(before, question)
    {
        return Err(format!("{} rows, although fewer had reached the limit", rows.len()));
    }
    if rows.is_empty() && !all.is_empty() {
        return Err("no row, although there is one".to_owned());
    }
    if !more && (rows.len() < all.len() || is_cut_by_unreadable) {
        return Err(format!("no more rows, after {} of {}", rows.len(), show(all)));
    }
    Ok(())
}

/// Writing.
impl Transaction {
    fn write(&mut self, step: &Step, observed: &Observed) -> Checked {
        // Calls that return nothing return nothing also after the end; whoever says so at once may.
        // A deferred error stops no later call of this kind.
        let is_over = self.phase != Phase::Open || self.poison.is_some();
        if is_over {
            self.note_misuse(observed);
            return match observed {
                Observed::Done | Observed::Failed(_) => Ok(()),
                _ => unexpected(observed),
            };
        }
        match (self.effect(step), observed) {
            (Ok(()), Observed::Done) => Ok(()),
            (Err(code), Observed::Done) => {
                self.defer(code);
                Ok(())
            }
            (Err(code), Observed::Failed(found)) => equal("the error", found, &code),
            (Ok(()), _) => unexpected(observed),
            (Err(code), _) => Err(format!("found {observed:?}, expected {code:?}")),
        }
    }

    fn effect(&mut self, step: &Step) -> Result<(), Code> {
        match step {
            Step::Set { key, value, .. } => {
                check_write(key, value)?;
                self.own.push(Own::Set(key.clone(), value.clone()));
                self.change(Mutation::set(key.clone(), value.clone()), &KeyRange::single(key));
            }
            Step::Clear { key, .. } => {
                if key.as_ref() >= END {
                    return Err(Code::KeyOutsideLegalRange);
                }
                if key.len() > KEY_BYTES_MAX {
                    self.next_write_no_conflict = false;
                    return Ok(());
                }
                self.clear(KeyRange::single(key));
            }
            Step::ClearRange { begin, end, .. } => {
                if begin.as_ref() > END || end.as_ref() > END {
                    return Err(Code::KeyOutsideLegalRange);
                }
                if begin > end {
                    return Err(Code::InvertedRange);
                }
                if begin < end {
                    self.clear(KeyRange::new(begin.clone(), end.clone()));
                } else {
                    // A write all the same, as far as option 30 goes.
                    self.next_write_no_conflict = false;
                }
            }
            Step::Atomic { kind, key, operand, .. } => self.atomic(*kind, key, operand)?,
            Step::ReadConflict { begin, end, .. } => {
                let range = check_conflict_range(begin, end)?;
                // What is covered by own writes, or was there before, need not be stored again.
                let is_new = self.own.is_empty() && !any_meets(&self.read_conflicts.may, std::slice::from_ref(&range));
                self.has_grown |= is_new && !range.is_empty();
                let must = if self.ryw_disabled { vec![range.clone()] } else { self.own_view().depends_on(&range) };
                self.read_conflicts.add_all(must, vec![range]);
            }
            Step::WriteConflict { begin, end, .. } => {
                let range = check_conflict_range(begin, end)?;
                self.has_grown |=
                    !range.is_empty() && !any_meets(&self.write_conflicts.may, std::slice::from_ref(&range));
                if !range.is_empty() {
                    self.write_conflicts.add(&range);
                }
            }
            Step::NextWriteNoConflict { .. } => self.next_write_no_conflict = true,
            Step::ReadYourWritesDisable { .. } => {
                if self.is_used {
                    return Err(Code::ClientInvalidOperation);
                }
                self.ryw_disabled = true;
            }
            Step::SnapshotReadYourWrites { enable, .. } => self.snapshot_ryw += if *enable { 1 } else { -1 },
            Step::RetryLimit { limit, .. } => self.retry_limit = *limit,
            _ => unreachable!("the other steps are checked elsewhere"),
        }
        Ok(())
    }

    /// Own writes over nothing: enough to tell which parts they cover.
    fn own_view(&self) -> View<'_> {
        static NOTHING: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        View { state: &NOTHING, own: &self.own }
    }

    fn change(&mut self, mutation: Mutation, conflict: &KeyRange) {
        self.mutations.push(mutation);
        self.add_write_conflict(conflict);
        self.has_grown = true;
        self.is_used = true;
    }

    fn clear(&mut self, range: KeyRange) {
        self.own.push(Own::Clear(range.clone()));
        self.change(Mutation::clear_range(range.begin.clone(), range.end.clone()), &range);
    }

    fn atomic(&mut self, kind: MutationKind, key: &Bytes, operand: &Bytes) -> Result<(), Code> {
        match kind {
            MutationKind::SetVersionstampedKey => {
                let (body, offset) = stamp_place(key).ok_or(Code::ClientInvalidOperation)?;
                check_write(body, operand)?;
                let stamped = |stamp: &[u8], behind: &[u8]| {
                    Bytes::from([&body[..offset], stamp, &body[offset + STAMP_BYTES..], behind].concat())
                };
                let least = self.reads_at.as_ref().map_or(0, |(version, ..)| version + 1);
                let least = [least.to_be_bytes().as_slice(), &[0, 0]].concat();
                let range = KeyRange::new(stamped(&least, &[]), stamped(&[0xFF; STAMP_BYTES], &[0]));
                let range = KeyRange::new(range.begin, range.end.min(Bytes::from_static(END)));
                self.own.push(Own::Stamped(range));
                self.next_write_no_conflict = false;
                self.mutations.push(Mutation::new(kind, key.clone(), operand.clone()));
                (self.has_grown, self.is_used) = (true, true);
                // Its conflict range is known only with the commit, but it makes the transaction one that writes.
            }
            MutationKind::SetVersionstampedValue => {
                stamp_place(operand).ok_or(Code::ClientInvalidOperation)?;
                check_write(key, operand)?;
                self.own.push(Own::Stamped(KeyRange::single(key)));
                self.change(Mutation::new(kind, key.clone(), operand.clone()), &KeyRange::single(key));
            }
            _ => {
                check_write(key, operand)?;
                self.own.push(Own::Atomic(kind, key.clone(), operand.clone()));
                self.change(Mutation::new(kind, key.clone(), operand.clone()), &KeyRange::single(key));
            }
        }
        Ok(())
    }
}

fn check_write(key: &[u8], value: &[u8]) -> Result<(), Code> {
    if key >= END {
        Err(Code::KeyOutsideLegalRange)
    } else if key.len() > KEY_BYTES_MAX {
        Err(Code::KeyTooLarge)
    } else if value.len() > VALUE_BYTES_MAX {
        Err(Code::ValueTooLarge)
    } else {
        Ok(())
    }
}

fn check_conflict_range(begin: &Bytes, end: &Bytes) -> Result<KeyRange, Code> {
    if begin > end {
        Err(Code::InvertedRange)
    } else if end.as_ref() > END {
        Err(Code::KeyOutsideLegalRange)
    } else {
        Ok(KeyRange::new(begin.clone(), end.clone()))
    }
}
