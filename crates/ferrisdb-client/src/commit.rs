//! [`Commit`]: the end of a transaction.
//!
//! ```text
//! reads under way end ── nothing written? ── done, without asking anybody; without reads under way, when `commit` is called
//!                   └── request ── sent once ── answer
//!                                          └── lost: resolve, again and again ── outcome
//! ```
//!
//! # At most once
//! The request is never sent twice. It carries an id; if its answer is lost, the client asks by that id what became of it, and the
//! database answers with the outcome, or sees to it that there will be none. So `commit` returns what happened.
//!
//! Without an id nobody can say, and `commit_unknown_result` is told. But not before the request is out of the way, so that whoever looks afterwards sees
//! what will stay: the transaction conflicts with itself, if need be by a random system key that it claims to have read and written, and the client commits
//! a write of that key, a **fence**. Once that is there the request has been carried out, or will find a conflict.
//!
//! # If the future is dropped
//! The commit goes on, driven by a task of the database's runtime, and so does the transaction's state: it is "in commit" until the end.
//! The same holds if the transaction is cancelled, times out or is reset meanwhile, once the request is sent: the caller hears of that
//! at once, and cannot know whether the commit will happen.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result, Version, Versionstamp};
use ferrisdb_rpc::api::{CommitRequest, Committed, Priority, ResolveRequest};
use futures_util::future::join_all;

use crate::read::{Guarded, cancelled};
use crate::retry::fraction_of;
use crate::state::{CommitPhase, Inner, ReadVersion};

/// The first delay between two questions for an outcome.
const RESOLVE_DELAY_INITIAL: Duration = Duration::from_millis(5);
/// The longest one.
const RESOLVE_DELAY_MAX: Duration = Duration::from_secs(1);
/// For so long an outcome is asked for on behalf of nobody, so that watches and the transaction's state learn of it.
const ABANDONED_RESOLVE_MAX: Duration = Duration::from_secs(30);

/// Begins the keys by which transactions conflict with themselves. They are never written.
const SELF_CONFLICT_PREFIX: &[u8] = b"\xff/SC/";

/// A commit under way: ready when its outcome is known. Dropping it does not stop it: see the module's documentation.
#[must_use = "only its result says whether the transaction committed"]
pub struct Commit {
    steps: Steps,
}

enum Steps {
    /// It failed before it began, or had nothing to do.
    Ended(Result<()>),
    Running {
        guarded: Guarded<()>,
        is_abandoned: Arc<AtomicBool>,
    },
    Done,
}

/// What a commit comes to.
enum Outcome {
    /// There was nothing to commit.
    ReadOnly,
    Committed(Version, Versionstamp),
}

impl Commit {
    pub(crate) fn start(inner: &Arc<Inner>) -> Commit {
        let begun = inner.with(|state| {
            if let Err(error) = inner.enter(state) {
                // A commit under way decides about promises itself; one that cannot even begin has failed.
                if state.commit == CommitPhase::NotBegun {
                    state.fail_commit_promises(&error);
                }
                return Err(error);
            }
            if state.has_nothing_to_commit() {
                state.end_commit(None, Err(Code::NoCommitVersion.into()));
                return Ok(None);
            }
            state.commit = CommitPhase::Begun;
            Ok(Some(state.epoch))
        });
        let epoch = match begun {
            Err(error) => return Commit { steps: Steps::Ended(Err(error)) },
            Ok(None) => return Commit { steps: Steps::Ended(Ok(())) },
            Ok(Some(epoch)) => epoch,
        };
        let is_abandoned = Arc::new(AtomicBool::new(false));
        let steps = run(Arc::clone(inner), epoch, Arc::clone(&is_abandoned));
        let guarded = Guarded::new(Arc::clone(inner), epoch, Box::pin(steps));
        Commit { steps: Steps::Running { guarded, is_abandoned } }
    }

    /// Lets what is not finished go on in the background.
    fn detach(&mut self) {
        if let Steps::Running { guarded, is_abandoned } = &mut self.steps
            && let Some(steps) = guarded.take()
        {
            is_abandoned.store(true, Ordering::Relaxed);
            let task = Box::pin(async move {
                // Who wanted to know is gone; the transaction's state says what became of it.
                drop(steps.await);
            });
            guarded.inner().runtime().spawn("commit", task);
        }
    }
}

impl Future for Commit {
    type Output = Result<()>;

    /// # Panics
    /// If it is polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let result = match &mut self.steps {
            Steps::Ended(result) => std::mem::replace(result, Ok(())),
            Steps::Running { guarded, .. } => match Pin::new(guarded).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => result,
            },
            Steps::Done => panic!("a commit was polled after it was ready"),
        };
        // If the transaction ended it, it goes on.
        self.detach();
        self.steps = Steps::Done;
        Poll::Ready(result)
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.detach();
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.steps {
            Steps::Ended(_) => "Commit::Ended",
            Steps::Running { .. } => "Commit::Running",
            Steps::Done => "Commit::Done",
        })
    }
}

/// Commits, and tells the transaction and those that wait for its end.
async fn run(inner: Arc<Inner>, epoch: u64, is_abandoned: Arc<AtomicBool>) -> Result<()> {
    let outcome = steps(&inner, epoch, &is_abandoned).await;
    inner.with(|state| {
        if state.epoch != epoch {
            return;
        }
        let (version, stamp) = match &outcome {
            Ok(Outcome::ReadOnly) => (None, Err(Error::new(Code::NoCommitVersion))),
            Ok(Outcome::Committed(version, stamp)) => (Some(*version), Ok(*stamp)),
            Err(error) => {
                state.commit = CommitPhase::Failed;
                if planted(Bug::WatchSurvivesConflict) && error.code() == Code::NotCommitted {
                    let armed_at = state.known_version().unwrap_or(Version::ZERO);
                    for watch in std::mem::take(&mut state.watches) {
                        state.after(move || watch.arm(armed_at));
                    }
                }
                state.fail_commit_promises(error);
                return;
            }
        };
        state.end_commit(version, stamp);
    });
    outcome.map(|_| ())
}

async fn steps(inner: &Arc<Inner>, epoch: u64, is_abandoned: &AtomicBool) -> Result<Outcome> {
    // Nothing can be begun any more: these are all.
    let outstanding = inner.with(|state| if state.epoch == epoch { state.take_outstanding() } else { Vec::new() });
    join_all(outstanding.iter().filter_map(|read| read.wait())).await;

    let must_write = inner.with(|state| {
        still(inner, state, epoch)?;
        if let Some(error) = &state.read_error {
            return Err(error.clone());
        }
        let conflicts = state.overlay.write_conflicts();
        if !state.overlay.has_mutations() && conflicts.is_empty() {
            return Ok(false);
        }
        if state.settings.is_read_only {
            return Err(Code::TransactionReadOnly.into());
        }
        Ok(true)
    })?;
    if !must_write {
        return Ok(Outcome::ReadOnly);
    }
    // Blind writes need no version of their own: see `heard`.
    let database = &inner.database;
    let blind = inner.with(|state| {
        still(inner, state, epoch)?;
        let is_blind = matches!(state.version, ReadVersion::Unasked) && state.read_conflicts.ranges().is_empty();
        let Some(version) = is_blind.then(|| database.heard.recent(database.runtime.now())).flatten() else {
            return Ok(None);
        };
        let begins = Some(state.settings.priority);
        outgoing(inner, state, version, begins).map(Some)
    })?;
    if let Some(outgoing) = blind {
        let version = outgoing.request.read_version;
        match send(inner, outgoing, is_abandoned).await {
            // It did not happen and will not, for a reason that the program has no part in.
            Err(error) if matches!(error.code(), Code::TransactionTooOld | Code::FutureVersion) => {
                database.heard.forget(version);
            }
            result => return outcome(inner, epoch, result?, &[]),
        }
    }
    let read_version = inner.version(epoch).await?;
    let outgoing = inner.with(|state| {
        still(inner, state, epoch)?;
        outgoing(inner, state, read_version, None)
    })?;
    let request = &outgoing.request;
    let reported = if request.report_conflicting_keys { request.read_conflicts.clone() } else { Vec::new() };
    let committed = send(inner, outgoing, is_abandoned).await?;
    outcome(inner, epoch, committed, &reported)
}

/// What an answer comes to. `reported`: the ranges that a conflict counts.
fn outcome(inner: &Inner, epoch: u64, committed: Committed, reported: &[KeyRange]) -> Result<Outcome> {
    match committed {
        Committed::At { version, batch_index } => {
            inner.database.heard.note(version, inner.runtime().now());
            Ok(Outcome::Committed(version, Versionstamp::new(version, batch_index)))
        }
        Committed::Conflict { ranges } => {
            let range_at = |index: u32| usize::try_from(index).ok().and_then(|index| reported.get(index).cloned());
            let conflicting: Vec<KeyRange> = ranges.into_iter().filter_map(range_at).collect();
            inner.with(|state| {
                if state.epoch == epoch {
                    state.conflicting = conflicting;
                }
            });
            Err(Code::NotCommitted.into())
        }
    }
}

/// Fails if the transaction has been reset, cancelled or timed out: then nothing is sent.
fn still(inner: &Inner, state: &mut crate::state::State, epoch: u64) -> Result<()> {
    if state.epoch != epoch {
        return Err(cancelled());
    }
    inner.check_poison(state)
}

/// A request, and what it takes to have it out of the way.
struct Outgoing {
    request: CommitRequest,
    /// A key that it reads and writes; `None` if it has an id, or may be left under way.
    fence: Option<Bytes>,
}

fn outgoing(
    inner: &Inner,
    state: &mut crate::state::State,
    read_version: Version,
    begins: Option<Priority>,
) -> Result<Outgoing> {
    let mutations = state.overlay.mutations();
    let mut write_conflicts = state.overlay.write_conflicts();
    let mut read_conflicts = state.read_conflicts.ranges().to_vec();
    let mut fence = None;
    if !state.settings.is_idempotent && !state.settings.causal_write_risky {
        fence = first_in_both(&read_conflicts, &write_conflicts);
        if fence.is_none() && !planted(Bug::NotSelfConflicting) {
            let (high, low) = (inner.runtime().random(), inner.runtime().random());
            let key = [SELF_CONFLICT_PREFIX, &high.to_be_bytes(), &low.to_be_bytes()].concat();
            for ranges in [&mut read_conflicts, &mut write_conflicts] {
                // Unless a range of the list covers it already.
                let at = ranges.partition_point(|range| *range.begin <= *key);
                if at == 0 || *ranges[at - 1].end <= *key {
                    ranges.insert(at, KeyRange::single(&key));
                }
            }
            fence = Some(key.into());
        }
    }
    let mutation_bytes: usize = mutations.iter().map(ferrisdb_core::Mutation::bytes).sum();
    let conflicts = read_conflicts.iter().chain(&write_conflicts);
    let conflict_bytes: usize = conflicts.map(|range| range.begin.len() + range.end.len()).sum();
    let (bytes, bytes_max) = (mutation_bytes + conflict_bytes, state.settings.size_limit);
    if bytes > bytes_max {
        let detail = format!(
            "the transaction has {bytes} bytes, {mutation_bytes} of mutations and {conflict_bytes} of conflict ranges, and may \
             have {bytes_max}: split it"
        );
        return Err(Error::with(Code::TransactionTooLarge, detail));
    }
    let ids = &inner.database.commit_ids;
    let id = state.settings.is_idempotent.then(|| ids.open());
    let request = CommitRequest {
        read_version,
        read_conflicts,
        write_conflicts,
        mutations,
        id,
        lowest_unanswered: ids.lowest_open(),
        report_conflicting_keys: state.settings.report_conflicting_keys,
        begins,
        lock_aware: state.settings.is_lock_aware,
    };
    Ok(Outgoing { request, fence })
}

/// The first key that lies in a range of both. The ranges of each are sorted and do not overlap.
fn first_in_both(some: &[KeyRange], others: &[KeyRange]) -> Option<Bytes> {
    let (mut some, mut others) = (some.iter().peekable(), others.iter().peekable());
    loop {
        let (one, other) = (some.peek()?, others.peek()?);
        if one.intersects(other) {
            return Some(one.begin.clone().max(other.begin.clone()));
        }
        let behind = if one.end <= other.end { &mut some } else { &mut others };
        behind.next();
    }
}

/// Sends a request, once, and finds out what became of it, or sees to it that nothing more will.
async fn send(inner: &Inner, outgoing: Outgoing, is_abandoned: &AtomicBool) -> Result<Committed> {
    let database = &inner.database;
    let Outgoing { request, fence } = outgoing;
    let mut pauses = Pauses { inner, is_abandoned, delay: RESOLVE_DELAY_INITIAL, since: None };
    let Some(id) = request.id else {
        let lost = match database.endpoint.commit(request).await {
            Err(error) if error.code() == Code::CommitUnknownResult => error,
            known => return known,
        };
        let Some(key) = fence.filter(|_| !planted(Bug::UnknownNotFenced)) else { return Err(lost) };
        let detail = match put_fence(inner, key, &mut pauses).await {
            Ok(()) => "the answer to the commit was lost; it has happened, or never will".to_owned(),
            Err(error) => format!("the answer to the commit was lost, and it may happen yet: {error}"),
        };
        return Err(Error::with(Code::CommitUnknownResult, detail));
    };
    let question = ResolveRequest { id, read_version: request.read_version };
    // The id is closed however this ends, be it that the future is dropped with its runtime.
    let _open = OpenId { inner, id };
    let another = || CommitRequest { id: Some(database.commit_ids.open()), ..request.clone() };
    let again = planted(Bug::LostAnswerIsRetried).then(another);
    let lost = match database.endpoint.commit(request).await {
        Err(error) if error.code() == Code::CommitUnknownResult => error,
        known => return known,
    };
    if let Some(again) = again {
        return database.endpoint.commit(again).await;
    }
    if planted(Bug::LostAnswerIsNo) {
        return Err(Code::NotCommitted.into());
    }
    loop {
        match database.endpoint.resolve(question).await {
            Ok(Some(committed)) => return Ok(committed),
            Ok(None) => {
                let detail =
                    "the answer to the commit was lost; the database says that it did not happen, and it will not";
                return Err(Error::with(Code::NotCommitted, detail));
            }
            Err(error) if error.is_retryable() || error.code() == Code::ConnectionFailed => {
                if !pauses.next().await {
                    return Err(lost);
                }
            }
            Err(error) if error.code() == Code::CommitUnknownResultFatal => return Err(error),
            Err(error) => {
                let detail = format!("the answer to the commit was lost, and asking for the outcome failed: {error}");
                return Err(Error::with(Code::CommitUnknownResult, detail));
            }
        }
    }
}

/// Commits a write of `key`: whatever had read it before, and has not committed by then, never will.
async fn put_fence(inner: &Inner, key: Bytes, pauses: &mut Pauses<'_>) -> Result<()> {
    let database = &inner.database;
    let range = KeyRange::single(&key);
    loop {
        let put = async {
            let read_version = database.beginnings.begin(Priority::Default).wait().await?.version;
            let request = CommitRequest {
                read_version,
                read_conflicts: Vec::new(),
                write_conflicts: vec![range.clone()],
                mutations: Vec::new(),
                id: None,
                lowest_unanswered: database.commit_ids.lowest_open(),
                report_conflicting_keys: false,
                begins: None,
                lock_aware: true,
            };
            database.endpoint.commit(request).await
        };
        match put.await {
            Ok(_) => return Ok(()),
            // Whether this one has happened nobody knows either: another one will tell.
            Err(error) if error.is_retryable() || error.code() == Code::ConnectionFailed => {
                if !pauses.next().await {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// The pauses between two attempts to learn what became of a commit.
struct Pauses<'a> {
    inner: &'a Inner,
    is_abandoned: &'a AtomicBool,
    delay: Duration,
    /// When the first began.
    since: Option<Duration>,
}

impl Pauses<'_> {
    /// Pauses, about twice as long each time. False at once if nobody wants to know any more and it has been long.
    async fn next(&mut self) -> bool {
        let runtime = &self.inner.database.runtime;
        let waited = runtime.now().saturating_sub(*self.since.get_or_insert_with(|| runtime.now()));
        if self.is_abandoned.load(Ordering::Relaxed) && waited > ABANDONED_RESOLVE_MAX {
            return false;
        }
        let jitter = fraction_of(self.delay / 2, runtime.random());
        runtime.sleep(self.delay / 2 + jitter).await;
        self.delay = (self.delay * 2).min(RESOLVE_DELAY_MAX);
        true
    }
}

struct OpenId<'a> {
    inner: &'a Inner,
    id: ferrisdb_rpc::api::CommitId,
}

impl Drop for OpenId<'_> {
    fn drop(&mut self) {
        self.inner.database.commit_ids.close(self.id);
    }
}
