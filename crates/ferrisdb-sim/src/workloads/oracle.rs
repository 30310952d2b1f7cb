//! The [API oracle](crate::oracle) under faults: random programs of every call, compared with the model step by step while things go wrong.
//!
//! # What is exact
//! One client runs the programs, in the whole key space, and nobody else writes: so the model knows what is stored at every moment, and what a call returns must be equal to
//! what it says, as without faults. What a fault may add is this, and nothing else:
//!
//! - **A call that asks the database fails with a code of [`PASSING`]** (nobody could be asked, the version is too old or too new by now). A read that failed so has no
//!   effect, and its transaction goes on only through `on_error` or a reset, of which the model says what they do. A commit that failed so has not happened: the model goes on as if it
//!   never had been tried, and the next read that sees it happened is a violation.
//! - **A commit that was refused** after it had been checked (a full disk) may cost those a conflict that began before the next one that happens.
//! - **A commit whose answer was lost** ends as the client was told when it asked again by its id. Then `not_committed` may come without a conflict, but only then, and the
//!   endpoint below the client ([`noting`](super::noting)) knows whether it was so. If nobody could be asked in time either (`commit_unknown_result`), the workload asks by the id until
//!   somebody says: the model takes the outcome, whichever it is, with the version and the stamp that the database names.
//! - **The client's process dies**, with its transactions and watches. What it was doing is written down outside of it: the next life asks for the outcome of the commit that
//!   was under way before it does anything, and the model has that or not.
//! - **A watch** may end with a code of [`PASSING`]. While it waits it has to survive everything, and must fire if its key has changed.
//!
//! So every commit is in the model or not, and none is in doubt. A read version is at or above the last acknowledged commit, conflicts are neither missed nor invented,
//! and versions ascend, over every change of the coordinator.
//!
//! The other clients read everything that there is, at read versions of theirs, through whichever process they are at. What they saw is judged at the end: the state at a version is that after
//! the last commit at or below it, and by then every commit is known.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_client::{Database, DatabaseOptions, Transaction, TransactionOption};
use ferrisdb_core::versionstamp::Versionstamp;
use ferrisdb_core::{Bytes, Code, KeyRange, KeyValue, Random, Result, SplitMix64};
use ferrisdb_rpc::Endpoint;
use xxhash_rust::xxh3::Xxh3;

use super::noting::{Attempt, Fate, Last, Noting, fate_of};
use super::{Client, Verdict, Work, Workload, lock};
use crate::oracle::client::{ClientSubject, LOCK};
use crate::oracle::{FOG, METADATA_VERSION, Model, Observed, Step, Subject as _, program};

/// What a fault may have a call end with that asks the database.
const PASSING: &[Code] = &[
    // It took so long that its version is gone, be it by an epoch that has ended.
    Code::TransactionTooOld,
    // Storage has not come as far in time.
    Code::FutureVersion,
    // Nobody leads whom it could ask.
    Code::ProcessBehind,
    // Nobody could be reached.
    Code::ConnectionFailed,
    // The disk of the one process that there is does not answer, or what it answers is not what was written.
    Code::IoError,
    // A majority's disks are full.
    Code::CommitProxyMemoryLimitExceeded,
];
/// The client of this number runs the programs.
const PROGRAMMER: u64 = 1;
/// A session begins new transactions, and has so many steps at most. What is open at its end is lost.
const SESSION_STEPS: u64 = 150;
/// And takes about so long at most: whoever waits for the workload to get something done sees it.
const SESSION_MAX: Duration = Duration::from_secs(2);
/// Instead of the next step of a transaction that has written something, it commits: one in so many. Under faults a step takes long, and a run is to have many commits.
const COMMITS_ONE_IN: u64 = 4;
/// Steps of a failure's report.
const TOLD_STEPS: usize = 60;

/// Everything there is, in one number.
fn digest<'a>(rows: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> u64 {
    let mut hasher = Xxh3::new();
    for (key, value) in rows {
        for part in [key, value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.digest()
}

fn digest_of(rows: &[KeyValue]) -> u64 {
    digest(rows.iter().map(|row| (&row.key, &row.value)))
}

/// Where the program is.
#[derive(Debug)]
struct Program {
    model: Model,
    random: SplitMix64,
    /// Steps so far.
    steps: u64,
    /// The step that somebody takes, or took when its process died.
    open: Option<Step>,
    /// What has to come next.
    next: Option<Step>,
    /// The newest steps.
    told: VecDeque<String>,
    /// After each commit, at its version: all that is there. Ascending.
    states: Vec<(u64, u64)>,
    /// What readers saw, at which version.
    seen: Vec<(u64, u64)>,
    /// What is wrong, if something is.
    wrong: Option<String>,
}

/// See the [module](self).
pub(super) struct Oracle {
    program: Mutex<Program>,
    last: Last,
}

/// What comes of a step.
enum Then {
    /// The next one.
    Next,
    /// The outcome of the commit has to be asked for.
    Settle,
}

impl Oracle {
    pub(super) fn new(seed: u64) -> Oracle {
        let program = Program {
            model: Model::new(),
            random: SplitMix64::new(seed),
            steps: 0,
            open: None,
            next: None,
            told: VecDeque::new(),
            states: vec![(0, digest_of(&[]))],
            seen: Vec::new(),
            wrong: None,
        };
        Oracle { program: Mutex::new(program), last: Last::default() }
    }

    /// Some steps, with transactions of their own.
    async fn session(&self, client: &Client) -> Result<()> {
        self.settle_with(client.endpoint.as_ref()).await?;
        self.tell(client)?;
        let noting = Noting::new(Arc::clone(&client.endpoint), Arc::clone(&self.last));
        let db = Database::new(Arc::new(noting), client.runtime(), DatabaseOptions::default());
        let mut subject = ClientSubject::new(db, client.runtime());
        let until = client.now() + SESSION_MAX;
        for _ in 0..SESSION_STEPS {
            if client.is_over() || client.now() > until {
                break;
            }
            let step = lock(&self.program).begin();
            let observed = subject.step(&step).await;
            let attempt = lock(&self.last).take();
            count(client, &observed);
            let then = lock(&self.program).take_in(&step, &observed, attempt.as_ref());
            self.tell(client)?;
            if let Then::Settle = then {
                client.count("oracle: outcomes asked for");
                *lock(&self.last) = attempt;
                // What the transaction itself knows is that it does not know: it ends.
                self.settle_with(client.endpoint.as_ref()).await?;
                return self.tell(client);
            }
        }
        lock(&self.program).forget_client();
        Ok(())
    }

    /// Tells what is wrong, if something is.
    fn tell(&self, client: &Client) -> Result<()> {
        let program = lock(&self.program);
        let Some(wrong) = &program.wrong else { return Ok(()) };
        let told: Vec<&str> = program.told.iter().map(String::as_str).collect();
        client.violation(format!("the oracle: {wrong}; the last steps: {}", told.join(" | ")));
        Err(Code::InternalError.into())
    }

    /// Ends what a client has left open: after this the model knows what is stored.
    async fn settle_with(&self, endpoint: &dyn Endpoint) -> Result<()> {
        let open = lock(&self.program).open.clone();
        let attempt = *lock(&self.last);
        let fate = match (&open, &attempt) {
            (Some(Step::Commit { .. } | Step::CommitDuring { .. } | Step::SetLock { .. }), Some(attempt)) => {
                fate_of(attempt, endpoint).await
            }
            // It was not sent.
            _ => Ok(Fate::NotCommitted),
        };
        let mut program = lock(&self.program);
        match fate {
            Ok(fate) => program.settle(fate),
            Err(error) if error.code() == Code::CommitUnknownResultFatal => {
                program.wrong = Some(format!("nobody can tell what became of {attempt:?}: {error}"));
            }
            // Nobody could be asked yet.
            Err(error) => return Err(error),
        }
        drop(program);
        // Nobody else is in a step.
        lock(&self.last).take();
        Ok(())
    }

    /// Reads everything, to be judged later.
    async fn look(&self, client: &Client) -> Result<()> {
        let acknowledged = lock(&self.program).model.newest();
        let tx = client.db.create_transaction();
        let (version, rows) = everything(&tx).await?;
        if version < acknowledged {
            client.violation(format!("it read at {version} after {acknowledged} was acknowledged"));
        }
        lock(&self.program).seen.push((version, digest_of(&rows)));
        client.count("oracle: looks at everything");
        Ok(())
    }
}

/// All that programs may write, and as of when, whether the database is locked or not.
async fn everything(tx: &Transaction) -> Result<(u64, Vec<KeyValue>)> {
    tx.set_option(&TransactionOption::ReadLockAware);
    let version = tx.get_read_version().await?.get();
    tx.set_option(&TransactionOption::ReadSystemKeys);
    let mut rows = tx.get_ranges(KeyRange::new("", FOG)).collect().await?;
    if let Some(value) = tx.get(METADATA_VERSION).await? {
        rows.push(KeyValue { key: Bytes::from_static(METADATA_VERSION), value });
    }
    Ok((version, rows))
}

fn count(client: &Client, observed: &Observed) {
    client.count("oracle: steps");
    let told = match observed {
        Observed::During { commit, .. } => commit,
        other => other,
    };
    match told {
        Observed::Committed { version: Some(_), .. } => client.count("commits"),
        Observed::Committed { version: None, .. } => client.count("reads"),
        Observed::Failed(Code::NotCommitted) => client.count("conflicts"),
        Observed::Failed(Code::TransactionTooOld) => client.count("too old"),
        Observed::Failed(code) if PASSING.contains(code) => client.count("oracle: steps that a fault ended"),
        _ => {}
    }
}

impl Program {
    /// The next step, which is open from here on.
    fn begin(&mut self) -> Step {
        let step = self.next.take().unwrap_or_else(|| self.roll());
        self.open = Some(step.clone());
        step
    }

    fn roll(&mut self) -> Step {
        let step = program::next(&mut self.random, &self.model);
        let slot = step.slot();
        if self.model.has_written(slot) && self.random.one_in(COMMITS_ONE_IN) { Step::Commit { slot } } else { step }
    }

    /// What was observed.
    fn take_in(&mut self, step: &Step, observed: &Observed, attempt: Option<&Attempt>) -> Then {
        self.steps += 1;
        if self.told.len() == TOLD_STEPS {
            self.told.pop_front();
        }
        self.told.push_back(format!("{}: {step:?} -> {observed:?}", self.steps));
        if let Some(code) = observed.failure()
            && let Some(then) = self.take_fault(step, code, attempt)
        {
            return then;
        }
        self.open = None;
        let checked = self.model.check(step, observed);
        self.note(checked);
        Then::Next
    }

    /// If a fault may have ended the step so: what comes of it.
    fn take_fault(&mut self, step: &Step, code: Code, attempt: Option<&Attempt>) -> Option<Then> {
        let is_passing = PASSING.contains(&code);
        let is_lost = attempt.is_some_and(|attempt| attempt.is_lost);
        match step {
            Step::Commit { .. } | Step::CommitDuring { .. } | Step::SetLock { .. }
                if matches!(code, Code::CommitUnknownResult | Code::CommitUnknownResultFatal) =>
            {
                return Some(Then::Settle);
            }
            // Again, until it is so: twice is once.
            Step::SetLock { .. } if is_passing => {
                self.model.fail(step, code);
                self.next = Some(step.clone());
            }
            Step::Commit { .. } | Step::CommitDuring { .. } if is_passing || is_lost && code == Code::NotCommitted => {
                self.model.fail(step, code);
            }
            // Its time is over all the same.
            Step::Expire { .. } if is_passing => self.model.fail(step, code),
            // Nobody may know whether there is a lease: then nobody renews it.
            Step::LockedBy | Step::TakeSnapshot { .. } if is_passing || code == Code::CommitUnknownResult => {
                self.model.fail(step, code);
            }
            // Its lease may be gone.
            Step::SnapshotRead { held, .. } if is_passing => self.next = Some(Step::DropSnapshot { held: *held }),
            Step::WatchFired { watch, .. } if is_passing && self.model.is_armed(*watch) => self.model.fail(step, code),
            Step::ReadVersion { slot }
            | Step::Get { slot, .. }
            | Step::GetKey { slot, .. }
            | Step::GetRange { slot, .. }
            | Step::GetMapped { slot, .. }
            | Step::Watch { slot, .. }
            | Step::SplitPoints { slot, .. }
            | Step::EstimatedSize { slot, .. }
            | Step::Stream { slot, .. }
            | Step::Addresses { slot, .. }
            | Step::Dropped { slot, .. }
            | Step::Overlapping { slot, .. }
                if is_passing =>
            {
                self.model.fail(step, code);
                let slot = *slot;
                let is_retried = self.random.one_in(2);
                self.next = Some(if is_retried { Step::OnError { slot, code } } else { Step::Reset { slot } });
            }
            _ => return None,
        }
        self.open = None;
        Some(Then::Next)
    }

    /// The open step has ended so, and its client has gone.
    fn settle(&mut self, fate: Fate) {
        let open = self.open.take();
        let is_set = |step: &Step| matches!(step, Step::SetLock { .. });
        // Who locks or unlocks does it again.
        self.next = open.clone().or(self.next.take()).filter(is_set);
        let settled = match (open, fate) {
            (Some(Step::Commit { slot } | Step::CommitDuring { slot, .. }), Fate::Committed(version, batch_index)) => {
                let stamp = *Versionstamp::new(version, batch_index).as_bytes();
                self.told.push_back(format!("{}: it had committed at {version}", self.steps));
                self.model.settle(slot, Some((version.get(), stamp)))
            }
            (Some(Step::Commit { slot } | Step::CommitDuring { slot, .. }), _) => self.model.settle(slot, None),
            _ => Ok(()),
        };
        self.note(settled);
        self.forget_client();
    }

    fn forget_client(&mut self) {
        self.model.forget_client();
        self.next = self.next.take().filter(|step| matches!(step, Step::SetLock { .. }));
    }

    /// What the model says to the last step.
    fn note(&mut self, checked: Result<(), String>) {
        if let Err(wrong) = checked {
            self.wrong.get_or_insert(wrong);
        }
        let newest = self.model.newest();
        if self.states.last().is_none_or(|(version, _)| *version < newest) {
            self.states.push((newest, digest(self.model.state().iter())));
        }
    }

    /// The first of what readers saw that never was.
    fn judge(&self) -> Verdict {
        if self.wrong.is_some() {
            return self.wrong.clone();
        }
        let is_wrong = |(version, seen): &&(u64, u64)| {
            let before = self.states.partition_point(|(at, _)| at <= version);
            self.states[before - 1].1 != *seen
        };
        let wrong = self.seen.iter().find(is_wrong);
        wrong.map(|(version, _)| format!("somebody read another state at version {version} than the programs had made"))
    }
}

impl Workload for Oracle {
    fn name(&self) -> &'static str {
        super::ALONE
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            if client.number == PROGRAMMER {
                return self.session(client).await;
            }
            self.look(client).await
        })
    }

    fn is_driven_by(&self, client: &Client) -> bool {
        client.number == PROGRAMMER
    }

    fn settle<'a>(&'a self, endpoint: &'a Arc<dyn Endpoint>) -> Work<'a, ()> {
        Box::pin(self.settle_with(endpoint.as_ref()))
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(async move {
            db.unlock(LOCK).await?;
            let (_, rows) = everything(&db.create_transaction()).await?;
            let program = lock(&self.program);
            let made = digest(program.model.state().iter());
            if digest_of(&rows) != made {
                let expected = program.model.state().len();
                return Ok(Some(format!(
                    "{} rows are there in the end, and not the {expected} of the model",
                    rows.len()
                )));
            }
            Ok(program.judge())
        })
    }
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle").finish_non_exhaustive()
    }
}
