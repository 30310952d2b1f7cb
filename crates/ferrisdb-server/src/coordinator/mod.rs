//! The transaction coordinator: read versions, the order of commits, conflicts, leases, and how many may begin.
//!
//! ```text
//! begin ────────────▶ rate ──▶ the log's last version                     (at once, when nothing is limited)
//! commit, resolve, ─▶ queue ──▶ Batcher ──▶ log ──▶ durable ──▶ answered
//! lease                         versions, conflicts, versionstamps, ids
//! ```
//!
//! [`Batcher`], [`Sequencer`](sequencer::Sequencer), [`Leases`](lease::Leases), [`Rate`], `Company` and `half` are the deterministic cores: they decide, and are told
//! what time it is. Around them stand three tasks, which share what [`Coordinator`] is a handle to:
//!
//! - the *driver* takes what has queued up, has the batcher decide, appends, and answers what is durable (`driver.rs`);
//! - the *begin gate* lets those begin who wait for their turn, while their rate is limited (`gate.rs`);
//! - the *time keeper* writes down which version there was at which time of day (`time_keeper.rs`).
//!
//! A caller that may block can take the place of the driver's task (`alone.rs`). This file has the handle, and the bounded queue between whoever asks and the driver.
//!
//! # Invariants
//! - Commits are answered in the order of their versions, once they are durable and counted.
//! - A read version is at or above every version that was acknowledged before it was asked for: it is read from the log's state machine, which
//!   is up to date before anybody is answered.
//! - After a group whose end is unknown nothing more is appended in this epoch.
//! - Queues are bounded in requests and bytes.

mod alone;
pub mod batcher;
mod company;
mod driver;
mod gate;
mod halves;
pub mod lease;
pub mod rate;
pub mod sequencer;
mod time_keeper;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Context;
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, Code, Error, KeyRange, Limits, Mutation, Result, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{BeginRequest, Begun, CommitRequest, Committed, Lease, LeaseRequest, Priority, ResolveRequest};

use crate::counters::Counters;
use crate::log::{Applied, Entry, Log, Owner};
use crate::runtime::JobRuntime;
use crate::shards::change::Change;
use crate::signal::{Bell, Latch, Reply, lock, reply};
use batcher::{Batcher, Request, Response};
use driver::Driver;
use gate::Gate;
use lease::LeaseOptions;
use rate::{Lag, LogQueue, Queues, Rate, RateOptions, Reason};

/// How a coordinator works.
#[derive(Debug, Clone, PartialEq)]
pub struct CoordinatorOptions {
    /// Limits of transactions.
    pub limits: Limits,
    /// Groups that may wait for the disk at once. Default: 4.
    pub groups_in_flight: usize,
    /// How much of the time that a group takes the next one may wait for those who were answered with it, from 0, not at all, to 1. Worth it where a group is dear: in a
    /// cluster. Default: 0.
    pub company: f64,
    /// While a sync takes no longer than this, a caller that may block for as long makes its commit durable on its own thread: see [`Coordinator::commit_alone`]. Default:
    /// 500 µs. Zero: never.
    pub alone_at_most: Duration,
    /// Transactions of one group, at most 65,535. Default: 4,096.
    pub group_transactions: usize,
    /// Bytes of one group's transactions; a single one may have more. Default: 4 MiB.
    pub group_bytes: u64,
    /// Requests that may be queued or wait for the disk; more are refused. Default: 100,000.
    pub queue_requests: u64,
    /// Their bytes; more are refused. Default: 256 MiB.
    pub queue_bytes: u64,
    /// Leases.
    pub leases: LeaseOptions,
    /// How many may begin.
    pub rate: RateOptions,
}

impl Default for CoordinatorOptions {
    fn default() -> CoordinatorOptions {
        CoordinatorOptions {
            limits: Limits::DEFAULT,
            groups_in_flight: 4,
            company: 0.0,
            alone_at_most: Duration::from_micros(500),
            group_transactions: 4096,
            group_bytes: 4 << 20,
            queue_requests: 100_000,
            queue_bytes: 256 << 20,
            leases: LeaseOptions::default(),
            rate: RateOptions::default(),
        }
    }
}

/// A handle to a coordinator; clones share it. Its tasks hold one too, and end after [`Coordinator::close`].
#[derive(Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: JobRuntime,
    log: Arc<dyn Log>,
    options: CoordinatorOptions,
    owner: Owner,
    epoch: u64,
    counters: Arc<Counters>,
    queue: Mutex<Queue>,
    bell: Bell,
    /// The driver belongs to its task; others may have it work for them meanwhile.
    driver: OnceLock<Weak<Mutex<Driver>>>,
    /// Syncs are so short at the moment that others may.
    is_quick: AtomicBool,
    /// When the last batch became durable.
    batch_at_nanos: AtomicU64,
    /// Bytes of mutations appended in this epoch.
    appended_bytes: AtomicU64,
    window_bytes: AtomicU64,
    leases: AtomicU64,
    queues: Box<dyn Fn(u64) -> Queues + Send + Sync>,
    is_limited: AtomicBool,
    /// Why no commit that writes is taken, for as long as that is so. The flag is looked at first.
    held: Mutex<Option<Error>>,
    is_held: AtomicBool,
    gate: Mutex<Gate>,
    gate_bell: Bell,
    /// Nothing more is to be begun.
    closing: Latch,
    /// What a planted bug remembers.
    remembered: AtomicU64,
}

/// What waits for the batcher.
#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Queued, or in a group that waits for the disk.
    requests: u64,
    bytes: u64,
    /// An item rings only if it makes at least so many: the driver waits for company.
    rings_from: usize,
    wants_batch: bool,
    is_closed: bool,
    /// The epoch is over, because of this.
    failed: Option<Error>,
}

/// A request in the queue.
struct Item {
    request: Request,
    answer: AnswerTo,
    bytes: u64,
    at: Duration,
}

/// Who asked.
enum AnswerTo {
    Commit(Reply<Committed>),
    Resolve(Reply<Option<Committed>>),
    Lease(Reply<Lease>),
    Metadata(Reply<Version>),
}

impl AnswerTo {
    fn send(self, result: Result<Response>) {
        match (self, result) {
            (AnswerTo::Commit(reply), Ok(Response::Commit(committed))) => reply.send(Ok(committed)),
            (AnswerTo::Resolve(reply), Ok(Response::Resolve(outcome))) => reply.send(Ok(outcome)),
            (AnswerTo::Lease(reply), Ok(Response::Lease(lease))) => reply.send(Ok(lease)),
            (AnswerTo::Metadata(reply), Ok(Response::Metadata(version))) => reply.send(Ok(version)),
            (AnswerTo::Commit(reply), Err(error)) => reply.send(Err(error)),
            (AnswerTo::Resolve(reply), Err(error)) => reply.send(Err(error)),
            (AnswerTo::Lease(reply), Err(error)) => reply.send(Err(error)),
            (AnswerTo::Metadata(reply), Err(error)) => reply.send(Err(error)),
            _ => unreachable!("the batcher answers a request with a response of its kind"),
        }
    }
}

/// What makes a group.
struct Work {
    items: Vec<Item>,
    wants_batch: bool,
    /// It has as much as a group may have, and more is left in the queue.
    is_full: bool,
}

impl Coordinator {
    /// A coordinator that begins an epoch with [`start`](Self::start). `queues` says how far storage is behind and how the log is, given the bytes that were appended.
    pub fn new(
        runtime: JobRuntime,
        log: Arc<dyn Log>,
        options: CoordinatorOptions,
        counters: Arc<Counters>,
        queues: Box<dyn Fn(u64) -> Queues + Send + Sync>,
    ) -> (Coordinator, Starting) {
        let now = runtime.now();
        let recovered = log.recover();
        let owner = runtime.env().entropy.unique_bytes();
        let (start, batcher) = Batcher::begin_epoch(&recovered, owner, options.limits, options.leases.clone(), now);
        let rate = Rate::new(options.rate.clone(), now);
        let shared = Shared {
            owner,
            epoch: batcher.epoch(),
            counters,
            queue: Mutex::default(),
            bell: Bell::default(),
            driver: OnceLock::new(),
            is_quick: AtomicBool::new(false),
            batch_at_nanos: AtomicU64::new(nanos(now)),
            appended_bytes: AtomicU64::new(0),
            window_bytes: AtomicU64::new(0),
            leases: AtomicU64::new(batcher.leases().len() as u64),
            queues,
            is_limited: AtomicBool::new(false),
            held: Mutex::default(),
            is_held: AtomicBool::new(false),
            gate: Mutex::new(Gate::new(rate)),
            gate_bell: Bell::default(),
            closing: Latch::default(),
            remembered: AtomicU64::new(0),
            runtime,
            log,
            options,
        };
        (Coordinator { shared: Arc::new(shared) }, Starting { start, batcher })
    }

    /// Appends the start of the epoch. Once the returned future says that it counted, [`spawn`](Self::spawn) may follow.
    ///
    /// # Errors
    /// Those of the log.
    pub fn start(&self, starting: &Starting) -> Result<BoxFuture<Result<Applied>>> {
        self.shared.log.append(vec![starting.start.clone()])
    }

    /// The tasks that drive it. `spawn` is given a name and a future.
    pub fn spawn(&self, mut starting: Starting, mut spawn: impl FnMut(&str, BoxFuture<()>)) {
        let shared = &self.shared;
        starting.batcher.epoch_began(&shared.log.recover(), shared.options.leases.clone(), shared.runtime.now());
        let driver = Arc::new(Mutex::new(Driver::new(Arc::clone(shared), starting.batcher)));
        shared.driver.set(Arc::downgrade(&driver)).expect("it is spawned once");
        // If it panicked on another's thread, it does so here: then it is dropped, and everybody is told.
        let drive = move |context: &mut Context<'_>| driver.lock().expect("it has not panicked").poll(context);
        spawn("coordinator", Box::pin(std::future::poll_fn(drive)));
        let shared = Arc::clone(&self.shared);
        spawn("begin-gate", Box::pin(async move { shared.run_gate().await }));
        spawn("time-keeper", Box::pin(time_keeper::run(self.clone())));
    }

    /// Bytes of mutations appended in this epoch.
    pub fn appended_bytes(&self) -> u64 {
        self.shared.appended_bytes.load(Ordering::Relaxed)
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// A read version for transactions that begin now: at once, when nothing is limited.
    pub fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        let shared = &self.shared;
        shared.counters.begins.fetch_add(u64::from(request.transactions.max(1)), Ordering::Relaxed);
        if shared.is_limited.load(Ordering::Acquire) && request.priority != Priority::Immediate {
            return shared.begin_later(request);
        }
        shared.begin_now()
    }

    /// Commits. A transaction that begins with its commit waits for its turn as one that begins.
    pub fn commit(&self, mut request: CommitRequest) -> Answer<Committed> {
        let Some(priority) = request.begins.take() else { return self.commit_begun(request) };
        let shared = &self.shared;
        shared.counters.begins.fetch_add(1, Ordering::Relaxed);
        if !shared.is_limited.load(Ordering::Acquire) || priority == Priority::Immediate {
            return self.commit_begun(request);
        }
        let begun = shared.begin_later(BeginRequest { transactions: 1, priority });
        let coordinator = self.clone();
        // Dropped meanwhile, it has not happened, and whoever asks for its outcome is told so: nothing was written about it yet.
        Answer::later(async move {
            begun.await?;
            coordinator.commit_begun(request).await
        })
    }

    fn commit_begun(&self, request: CommitRequest) -> Answer<Committed> {
        if let Some(why) = self.held().filter(|_| !request.mutations.is_empty()) {
            return Answer::from(why);
        }
        let range_bytes = |range: &KeyRange| range.begin.len() + range.end.len() + size_of::<KeyRange>();
        let ranges = request.read_conflicts.iter().chain(&request.write_conflicts).map(range_bytes);
        let mutations = request.mutations.iter().map(|mutation| mutation.bytes() + size_of::<Mutation>());
        let bytes = ranges.sum::<usize>() + mutations.sum::<usize>() + size_of::<Item>();
        let (answer, answered) = reply(Code::CommitUnknownResult);
        match self.enqueue(Request::Commit(request), AnswerTo::Commit(answer), bytes as u64) {
            Ok(()) => Answer::Later(Box::pin(answered)),
            Err(error) => Answer::from(error),
        }
    }

    /// Refuses commits that write with this error, or does so no more. What was asked before goes on, and so do reads, and what the log needs to become less full.
    pub(crate) fn hold_commits(&self, why: Option<Error>) {
        let shared = &self.shared;
        shared.is_held.store(why.is_some(), Ordering::Release);
        *lock(&shared.held) = why;
    }

    /// Why commits that write are refused, if they are.
    pub(crate) fn held(&self) -> Option<Error> {
        if self.shared.is_held.load(Ordering::Acquire) { lock(&self.shared.held).clone() } else { None }
    }

    /// The outcome of an earlier commit.
    pub fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        let (answer, answered) = reply(Code::OperationCancelled);
        match self.enqueue(Request::Resolve(request), AnswerTo::Resolve(answer), size_of::<Item>() as u64) {
            Ok(()) => Answer::Later(Box::pin(answered)),
            Err(error) => Answer::from(error),
        }
    }

    /// Begins, renews or ends a lease.
    pub fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        let (answer, answered) = reply(Code::OperationCancelled);
        match self.enqueue(Request::Lease(request), AnswerTo::Lease(answer), size_of::<Item>() as u64) {
            Ok(()) => Answer::Later(Box::pin(answered)),
            Err(error) => Answer::from(error),
        }
    }

    /// Changes the cluster's metadata. The answer is the version at which it is there. For the controller, which runs within this epoch.
    pub fn change_metadata(&self, mutations: Vec<Mutation>) -> Answer<Version> {
        let bytes = mutations.iter().map(Mutation::bytes).sum::<usize>() + size_of::<Item>();
        let (answer, answered) = reply(Code::CommitUnknownResult);
        match self.enqueue(Request::Metadata(mutations), AnswerTo::Metadata(answer), bytes as u64) {
            Ok(()) => Answer::Later(Box::pin(answered)),
            Err(error) => Answer::from(error),
        }
    }

    /// Refuses everything new. What was asked before is still done; then the tasks end.
    pub fn close(&self) {
        self.close_saying(&closed());
    }

    /// The same; those that wait to begin hear this.
    pub(crate) fn close_saying(&self, error: &Error) {
        lock(&self.shared.queue).is_closed = true;
        self.shared.closing.set();
        self.shared.bell.ring();
        self.shared.close_gate(error);
    }

    /// Refuses every commit from now on, with this error: storage cannot take them.
    pub fn fail(&self, error: &Error) {
        lock(&self.shared.queue).failed.get_or_insert(error.clone());
        self.shared.bell.ring();
    }

    /// Why nothing commits any more, if that is so.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.shared.queue).failed.clone()
    }

    /// What it looks like.
    pub fn statistics(&self) -> CoordinatorStatistics {
        let shared = &self.shared;
        let (requests, bytes) = {
            let queue = lock(&shared.queue);
            (queue.requests, queue.bytes)
        };
        let gate = lock(&shared.gate);
        let queues = (shared.queues)(shared.appended_bytes.load(Ordering::Relaxed));
        CoordinatorStatistics {
            queue_requests: requests,
            queue_bytes: bytes,
            begins_waiting: gate.waiting.len() as u64,
            reason: gate.rate.reason(),
            begins_per_second: gate.rate.limit(),
            lag: queues.storage,
            log: queues.log,
            window_bytes: shared.window_bytes.load(Ordering::Relaxed),
            leases: shared.leases.load(Ordering::Relaxed),
        }
    }

    /// Changes who holds which keys, if that fits the map as it is by then. The answer is the version above which it is so. For the controller.
    pub(crate) fn change_shards(&self, change: Change) -> Answer<Version> {
        let (answer, answered) = reply(Code::CommitUnknownResult);
        match self.enqueue(Request::Shards(change), AnswerTo::Metadata(answer), size_of::<Item>() as u64) {
            Ok(()) => Answer::Later(Box::pin(answered)),
            Err(error) => Answer::from(error),
        }
    }

    /// Has a batch follow, whether anything commits or not: somebody waits for a newer version.
    pub(crate) fn advance(&self) {
        lock(&self.shared.queue).wants_batch = true;
        self.shared.bell.ring();
    }

    fn enqueue(&self, request: Request, answer: AnswerTo, bytes: u64) -> Result<()> {
        let shared = &self.shared;
        let at = shared.runtime.now();
        let mut queue = lock(&shared.queue);
        if queue.is_closed {
            // Sent as an error, not by dropping: nothing was begun.
            drop(queue);
            answer.send(Err(closed()));
            return Err(closed());
        }
        let options = &shared.options;
        let refused = if let Some(failed) = &queue.failed {
            Some(failed.clone())
        } else if queue.requests >= options.queue_requests || queue.bytes >= options.queue_bytes {
            let (requests, bytes) = (queue.requests, queue.bytes);
            let detail = format!("{requests} requests of {bytes} bytes wait to commit; try again more slowly");
            Some(Error::with(Code::CommitProxyMemoryLimitExceeded, detail))
        } else {
            None
        };
        if let Some(error) = refused {
            drop(queue);
            answer.send(Err(error.clone()));
            return Err(error);
        }
        queue.requests += 1;
        queue.bytes += bytes;
        queue.items.push_back(Item { request, answer, bytes, at });
        let rings = queue.items.len() >= queue.rings_from;
        drop(queue);
        if rings {
            shared.bell.ring();
        }
        Ok(())
    }
}

/// An epoch that is about to begin.
#[derive(Debug)]
pub struct Starting {
    start: Entry,
    batcher: Batcher,
}

impl Starting {
    /// Says which process it is. Without it, 0: the only one.
    pub(crate) fn at(mut self, process: u64) -> Starting {
        if let Entry::EpochStart(start) = &mut self.start {
            start.process = process;
        }
        self
    }
}

/// What a coordinator looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct CoordinatorStatistics {
    /// Requests queued, or waiting for the disk.
    pub queue_requests: u64,
    /// Their bytes.
    pub queue_bytes: u64,
    /// Beginning transactions that wait.
    pub begins_waiting: u64,
    /// Why.
    pub reason: Reason,
    /// How many may begin a second, if that is limited.
    pub begins_per_second: Option<f64>,
    /// How far storage is behind.
    pub lag: Lag,
    /// How the log is.
    pub log: LogQueue,
    /// Bytes of the conflict window.
    pub window_bytes: u64,
    /// Leases.
    pub leases: u64,
}

impl Shared {
    /// Takes what makes the next group, or `None` if there is nothing to do. `answered`: so many have just been answered, and may ask again while it is synced.
    fn take_work(&self, leases_are_due: bool, wants_batch: bool, answered: Option<usize>) -> Option<Work> {
        let mut queue = lock(&self.queue);
        queue.rings_from = 0;
        if queue.failed.is_some() {
            return None;
        }
        let wants_batch = std::mem::take(&mut queue.wants_batch) || wants_batch;
        if queue.items.is_empty() && !wants_batch && !leases_are_due {
            return None;
        }
        let half = answered.map_or(usize::MAX, |answered| halves::half(queue.items.len(), answered));
        let mut items = Vec::new();
        let mut bytes = 0;
        while let Some(item) = queue.items.front()
            && items.len() < self.options.group_transactions.min(half)
            && (items.is_empty() || bytes + item.bytes <= self.options.group_bytes)
        {
            bytes += item.bytes;
            items.extend(queue.items.pop_front());
        }
        let is_full = !queue.items.is_empty() && items.len() < half;
        Some(Work { items, wants_batch, is_full })
    }

    fn release(&self, requests: u64, bytes: u64) {
        let mut queue = lock(&self.queue);
        queue.requests -= requests;
        queue.bytes -= bytes;
    }
}

fn closed() -> Error {
    Error::with(Code::OperationCancelled, "the database was closed; open it again")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("epoch", &self.shared.epoch).finish_non_exhaustive()
    }
}
