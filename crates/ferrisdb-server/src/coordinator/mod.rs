//! The transaction coordinator: read versions, the order of commits, conflicts, leases, and how many may begin.
//!
//! ```text
//! begin ────────────▶ rate ──▶ the log's last version                     (at once, when nothing is limited)
//! commit, resolve, ─▶ queue ──▶ Batcher ──▶ log ──▶ durable ──▶ answered
//! lease                         versions, conflicts, versionstamps, ids
//! ```
//!
//! [`Batcher`], [`Sequencer`](sequencer::Sequencer), [`Leases`](lease::Leases) and [`Rate`] are the deterministic cores.
//! [`Coordinator`] drives them with one task: while fewer than a few groups wait for the disk, it takes what has queued up and makes
//! a group of it. So an idle database commits at once, and a busy one in groups as large as the disk is slow; there is no timer. A small group that has no
//! company is made durable by that same task, which would only wait otherwise; one with company by the log's, while the next is made.
//!
//! # Invariants
//! - Commits are answered in the order of their versions, once they are durable and counted.
//! - A read version is at or above every version that was acknowledged before it was asked for: it is read from the log's state machine, which
//!   is up to date before anybody is answered.
//! - After a group whose end is unknown nothing more is appended in this epoch.
//! - Queues are bounded in requests and bytes.

pub mod batcher;
pub mod lease;
pub mod rate;
pub mod sequencer;
mod time_keeper;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, Code, Error, KeyRange, Limits, Mutation, Result, Runtime, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{
    BeginRequest, Begun, CommitId, CommitRequest, Committed, Lease, LeaseRequest, Priority, ResolveRequest,
};

use crate::counters::Counters;
use crate::log::{Applied, Confirmed, Entry, Log, Owner};
use crate::runtime::JobRuntime;
use crate::shards::change::Change;
use crate::signal::{Bell, Latch, Reply, lock, reply};
use batcher::{Batcher, Decision, Request, Response};
use lease::LeaseOptions;
use rate::{Lag, Rate, RateOptions, Reason};

/// A last version that is older than this when a read version is asked for has an empty batch follow.
const STALE: Duration = Duration::from_secs(1);
/// How often waiting transactions are looked at while their rate is limited.
const RATE_TICK: Duration = Duration::from_millis(100);

/// A group of so few requests, with nothing behind it and nothing before it, is synced by the task that made it. A hand-over to the log's task and back
/// takes about 50 µs, what a request needs here about 2 µs: with more than that, it is better to make the next group meanwhile.
const ALONE_REQUESTS_MAX: usize = 16;

/// How a coordinator works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorOptions {
    /// Limits of transactions.
    pub limits: Limits,
    /// Groups that may wait for the disk at once. Default: 4.
    pub groups_in_flight: usize,
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
    /// When the last batch became durable.
    batch_at_nanos: AtomicU64,
    /// Bytes of mutations appended in this epoch.
    appended_bytes: AtomicU64,
    window_bytes: AtomicU64,
    leases: AtomicU64,
    lag: Box<dyn Fn(u64) -> Lag + Send + Sync>,
    is_limited: AtomicBool,
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
    wants_batch: bool,
    is_closed: bool,
    /// The epoch is over, because of this.
    failed: Option<Error>,
}

struct Item {
    request: Request,
    answer: AnswerTo,
    bytes: u64,
    at: Duration,
}

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
    /// Nothing is left in the queue.
    is_all: bool,
}

/// Beginning transactions that wait for their turn.
struct Gate {
    rate: Rate,
    waiting: VecDeque<(BeginRequest, Duration, Reply<Begun>)>,
    is_closed: bool,
}

/// A group that waits for the disk.
struct InFlight {
    appended: BoxFuture<Result<Applied>>,
    version: Option<Version>,
    answers: Vec<(Item0, Response)>,
    ids: Vec<CommitId>,
    transactions: u64,
}

/// What is left of an item once its request has been taken.
struct Item0 {
    answer: AnswerTo,
    bytes: u64,
    at: Duration,
}

impl Coordinator {
    /// A coordinator that begins an epoch with [`start`](Self::start). `lag` says how far storage is behind, given the bytes that were appended.
    pub fn new(
        runtime: JobRuntime,
        log: Arc<dyn Log>,
        options: CoordinatorOptions,
        counters: Arc<Counters>,
        lag: Box<dyn Fn(u64) -> Lag + Send + Sync>,
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
            batch_at_nanos: AtomicU64::new(nanos(now)),
            appended_bytes: AtomicU64::new(0),
            window_bytes: AtomicU64::new(0),
            leases: AtomicU64::new(batcher.leases().len() as u64),
            lag,
            is_limited: AtomicBool::new(false),
            gate: Mutex::new(Gate { rate, waiting: VecDeque::new(), is_closed: false }),
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
        let mut driver = Driver {
            shared: Arc::clone(&self.shared),
            batcher: starting.batcher,
            in_flight: VecDeque::new(),
            timer: None,
            wants_batch: false,
            subscriber: None,
        };
        spawn("coordinator", Box::pin(std::future::poll_fn(move |context| driver.poll(context))));
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
        let waiting = {
            let mut gate = lock(&self.shared.gate);
            gate.is_closed = true;
            std::mem::take(&mut gate.waiting)
        };
        self.shared.gate_bell.ring();
        for (_, _, reply) in waiting {
            reply.send(Err(error.clone()));
        }
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
        CoordinatorStatistics {
            queue_requests: requests,
            queue_bytes: bytes,
            begins_waiting: gate.waiting.len() as u64,
            reason: gate.rate.reason(),
            begins_per_second: gate.rate.limit(),
            lag: (shared.lag)(shared.appended_bytes.load(Ordering::Relaxed)),
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
        drop(queue);
        shared.bell.ring();
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
    /// Bytes of the conflict window.
    pub window_bytes: u64,
    /// Leases.
    pub leases: u64,
}

impl Shared {
    fn begin_now(&self) -> Answer<Begun> {
        if self.is_stale() {
            let mut queue = lock(&self.queue);
            if !queue.wants_batch && queue.failed.is_none() {
                queue.wants_batch = true;
                drop(queue);
                self.bell.ring();
            }
        }
        let owner = self.owner;
        // Below the first commit of an epoch nothing can be read.
        let has_committed = planted(Bug::ReadVersionNotNewest) && self.counters.committed.load(Ordering::Relaxed) > 0;
        let remembered = self.remembered.load(Ordering::Relaxed);
        let begun = move |confirmed: Result<Confirmed>| match confirmed {
            Ok(Confirmed { owner: now, version, is_locked }) if now == owner => {
                let version = Version::from_u64(version.get().saturating_sub(u64::from(has_committed)));
                Ok(Begun { version, is_locked })
            }
            Ok(_) if remembered > 0 => Ok(Begun { version: Version::from_u64(remembered), is_locked: false }),
            Ok(_) => Err(Error::with(Code::ProcessBehind, "another coordinator has taken over")),
            Err(error) => Err(error),
        };
        match self.log.read_index().try_now() {
            Ok(confirmed) => Answer::now(begun(confirmed)),
            Err(later) => Answer::later(async move { begun(later.await) }),
        }
    }

    fn is_stale(&self) -> bool {
        let at = Duration::from_nanos(self.batch_at_nanos.load(Ordering::Relaxed));
        self.runtime.now().saturating_sub(at) >= STALE
    }

    fn begin_later(&self, request: BeginRequest) -> Answer<Begun> {
        let now = self.runtime.now();
        let mut gate = lock(&self.gate);
        if gate.is_closed {
            return Answer::from(closed());
        }
        // Behind those who wait already, but for a higher priority.
        let goes_first = gate.waiting.iter().all(|(other, ..)| other.priority < request.priority);
        if goes_first && gate.rate.admit(request.transactions, request.priority) {
            drop(gate);
            return self.begin_now();
        }
        if gate.waiting.len() >= self.options.rate.waiting {
            let waiting = gate.waiting.len();
            let detail = format!("{waiting} transactions wait to begin: {}", gate.rate.reason().message());
            return Answer::from(Error::with(Code::GrvProxyMemoryLimitExceeded, detail));
        }
        let (answer, answered) = reply(Code::OperationCancelled);
        gate.waiting.push_back((request, now, answer));
        drop(gate);
        self.gate_bell.ring();
        Answer::Later(Box::pin(answered))
    }

    fn update_rate(&self) {
        let lag = (self.lag)(self.appended_bytes.load(Ordering::Relaxed));
        let begun = self.counters.begins.load(Ordering::Relaxed);
        let is_limited = {
            let mut gate = lock(&self.gate);
            gate.rate.update(self.runtime.now(), lag, begun);
            gate.rate.reason() != Reason::Nothing
        };
        let was_limited = self.is_limited.swap(is_limited, Ordering::AcqRel);
        if is_limited && !was_limited {
            self.gate_bell.ring();
        }
    }

    /// While the rate is limited, lets those begin who may.
    async fn run_gate(&self) {
        loop {
            {
                let gate = lock(&self.gate);
                if gate.is_closed {
                    return;
                }
            }
            if !self.is_limited.load(Ordering::Acquire) && lock(&self.gate).waiting.is_empty() {
                self.gate_bell.rung().await;
                continue;
            }
            self.update_rate();
            let (admitted, refused) = self.open_gate();
            for (_, _, reply) in admitted {
                match self.begin_now().try_now() {
                    Ok(begun) => reply.send(begun),
                    Err(later) => reply.send(later.await),
                }
            }
            for (_, _, reply) in refused {
                reply.send(Err(Error::new(Code::BatchTransactionThrottled)));
            }
            self.runtime.sleep(RATE_TICK).await;
        }
    }

    #[expect(clippy::type_complexity, reason = "two lists of what the gate holds")]
    fn open_gate(&self) -> (Vec<(BeginRequest, Duration, Reply<Begun>)>, Vec<(BeginRequest, Duration, Reply<Begun>)>) {
        let now = self.runtime.now();
        let mut gate = lock(&self.gate);
        let Gate { rate, waiting, .. } = &mut *gate;
        let (mut admitted, mut refused, mut left) = (Vec::new(), Vec::new(), VecDeque::new());
        for (request, since, reply) in waiting.drain(..) {
            if rate.admit(request.transactions, request.priority) {
                admitted.push((request, since, reply));
            } else if request.priority == Priority::Batch && now.saturating_sub(since) >= self.options.rate.batch_wait {
                refused.push((request, since, reply));
            } else {
                left.push_back((request, since, reply));
            }
        }
        *waiting = left;
        (admitted, refused)
    }

    /// Takes what makes the next group, or `None` if there is nothing to do.
    fn take_work(&self, leases_are_due: bool, wants_batch: bool) -> Option<Work> {
        let mut queue = lock(&self.queue);
        if queue.failed.is_some() {
            return None;
        }
        let wants_batch = std::mem::take(&mut queue.wants_batch) || wants_batch;
        if queue.items.is_empty() && !wants_batch && !leases_are_due {
            return None;
        }
        let mut items = Vec::new();
        let mut bytes = 0;
        while let Some(item) = queue.items.front()
            && items.len() < self.options.group_transactions
            && (items.is_empty() || bytes + item.bytes <= self.options.group_bytes)
        {
            bytes += item.bytes;
            items.extend(queue.items.pop_front());
        }
        Some(Work { items, wants_batch, is_all: queue.items.is_empty() })
    }

    fn release(&self, requests: u64, bytes: u64) {
        let mut queue = lock(&self.queue);
        queue.requests -= requests;
        queue.bytes -= bytes;
    }
}

/// The task that drives the batcher.
struct Driver {
    shared: Arc<Shared>,
    batcher: Batcher,
    /// Groups that wait for the disk, in order.
    in_flight: VecDeque<InFlight>,
    /// Set while there are leases.
    timer: Option<BoxFuture<()>>,
    /// Transactions were refused by the log, but their writes are in the conflict window: an empty batch above them, small enough for the
    /// log's reserve, has whoever begins from then on not take them for conflicts.
    wants_batch: bool,
    /// The log's subscriber, to be woken when the answers are given.
    subscriber: Option<Waker>,
}

impl Driver {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut has_worked = self.finish_durable(context);
            if let Some(subscriber) = self.subscriber.take() {
                subscriber.wake();
            }
            if self.in_flight.len() < self.shared.options.groups_in_flight {
                has_worked |= self.append_group();
            }
            if has_worked {
                continue;
            }
            let (is_over, failed) = {
                let queue = lock(&self.shared.queue);
                (queue.is_closed && queue.items.is_empty(), queue.failed.clone())
            };
            if let Some(failed) = &failed {
                self.refuse_queued(failed);
            }
            if (is_over || failed.is_some() && lock(&self.shared.queue).is_closed) && self.in_flight.is_empty() {
                return Poll::Ready(());
            }
            if self.shared.bell.poll_rung(context) || self.poll_timer(context) {
                continue;
            }
            return Poll::Pending;
        }
    }

    /// Wakes at the next expiry of a lease, at most once a second.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> bool {
        let Some(expiry) = self.batcher.leases().next_expiry() else {
            self.timer = None;
            return false;
        };
        let runtime = &self.shared.runtime;
        let timer = self.timer.get_or_insert_with(|| {
            let wait = expiry.saturating_sub(runtime.now()).max(Duration::from_secs(1));
            runtime.sleep(wait)
        });
        if timer.as_mut().poll(context).is_pending() {
            return false;
        }
        self.timer = None;
        true
    }

    /// Answers for the groups that are durable, in order.
    fn finish_durable(&mut self, context: &mut Context<'_>) -> bool {
        let mut has_worked = false;
        while let Some(front) = self.in_flight.front_mut() {
            let Poll::Ready(result) = Pin::new(&mut front.appended).poll(context) else { break };
            let group = self.in_flight.pop_front().expect("there is a first one");
            has_worked = true;
            match result {
                Ok(Applied::Counted) => self.acknowledge(group),
                Ok(Applied::Void) => {
                    self.end_epoch(group, &Error::with(Code::ProcessBehind, "another coordinator has taken over"));
                }
                Err(error) => self.end_epoch(group, &error),
            }
        }
        has_worked
    }

    fn acknowledge(&mut self, group: InFlight) {
        self.batcher.durable(&group.ids);
        let shared = &self.shared;
        let now = shared.runtime.now();
        if let Some(version) = group.version {
            shared.batch_at_nanos.store(nanos(now), Ordering::Relaxed);
            if planted(Bug::ReadVersionFromMemory) {
                shared.remembered.store(version.get(), Ordering::Relaxed);
            }
        }
        let counters = &shared.counters;
        counters.committed.fetch_add(group.transactions, Ordering::Relaxed);
        let requests = group.answers.len() as u64;
        let mut bytes = 0;
        for (item, response) in group.answers {
            bytes += item.bytes;
            counters.commit_latency.record(now.saturating_sub(item.at));
            item.answer.send(Ok(response));
        }
        shared.release(requests, bytes);
    }

    /// Nobody knows what became of this group: nor of the later ones, which build on it.
    fn end_epoch(&mut self, group: InFlight, error: &Error) {
        lock(&self.shared.queue).failed.get_or_insert(error.clone());
        let groups = std::iter::once(group).chain(std::mem::take(&mut self.in_flight));
        let detail = format!("nobody knows whether it happened: {error}");
        for (item, _) in groups.flat_map(|group| group.answers) {
            self.shared.release(1, item.bytes);
            let code = match item.answer {
                AnswerTo::Commit(_) if planted(Bug::UnknownToldAsNo) => Code::ProcessBehind,
                AnswerTo::Commit(_) | AnswerTo::Metadata(_) => Code::CommitUnknownResult,
                AnswerTo::Resolve(_) | AnswerTo::Lease(_) => error.code(),
            };
            item.answer.send(Err(Error::with(code, detail.clone())));
        }
    }

    fn refuse_queued(&self, error: &Error) {
        let items = std::mem::take(&mut lock(&self.shared.queue).items);
        for item in items {
            self.shared.release(1, item.bytes);
            item.answer.send(Err(error.clone()));
        }
    }

    /// Makes a group of what is queued, and appends it. False if there was nothing to do.
    fn append_group(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let now = shared.runtime.now();
        // Tried once: if the log has no space for that either, the next one who asks for anything tries again.
        let wants_batch = std::mem::take(&mut self.wants_batch);
        let is_due = self.batcher.leases().next_expiry().is_some_and(|expiry| expiry <= now);
        let Some(Work { items, wants_batch, is_all }) = shared.take_work(is_due, wants_batch) else { return false };
        // Nothing else to do until this group is durable: this task makes it so.
        let is_alone = is_all && self.in_flight.is_empty() && items.len() <= ALONE_REQUESTS_MAX;
        let durable = shared.log.last_known();
        let (mut requests, mut rest) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for Item { request, answer, bytes, at } in items {
            requests.push(request);
            rest.push(Item0 { answer, bytes, at });
        }
        let log = Arc::clone(&shared.log);
        let mut group = self.batcher.form(requests, wants_batch, now, durable, &|id| log.known(id));
        let decisions = std::mem::take(&mut group.decisions);
        let entries = std::mem::take(&mut group.entries);
        let appended = (!entries.is_empty()).then(|| {
            if is_alone {
                let (appended, subscriber) = shared.log.append_alone(entries)?;
                self.subscriber = subscriber;
                return Ok(appended);
            }
            shared.log.append(entries)
        });
        match appended {
            None => self.answer(rest, decisions, None, None),
            Some(Err(error)) => {
                self.wants_batch = group.transactions > 0;
                self.batcher.refused(group);
                self.answer(rest, decisions, None, Some(&error));
            }
            Some(Ok(appended)) => {
                self.batcher.appended(&group);
                shared.appended_bytes.fetch_add(group.bytes, Ordering::Relaxed);
                let ids = Batcher::take_ids(&mut group);
                let (version, transactions) = (group.version, group.transactions);
                let in_flight = InFlight { appended, version, answers: Vec::new(), ids, transactions };
                self.in_flight.push_back(in_flight);
                self.answer(rest, decisions, version, None);
            }
        }
        let leases = self.batcher.leases().len() as u64;
        shared.leases.store(leases, Ordering::Relaxed);
        shared.window_bytes.store(self.batcher.window().bytes() as u64, Ordering::Relaxed);
        shared.update_rate();
        true
    }

    /// Answers now, or has the group answer that the decision rests on. `refused`: this group's entries were not appended.
    fn answer(&mut self, rest: Vec<Item0>, decisions: Vec<Decision>, own: Option<Version>, refused: Option<&Error>) {
        let shared = Arc::clone(&self.shared);
        let counters = &shared.counters;
        for (item, decision) in rest.into_iter().zip(decisions) {
            let response = match decision {
                Decision::Now(result) => {
                    counters.count_decision(&result);
                    shared.release(1, item.bytes);
                    item.answer.send(result);
                    continue;
                }
                Decision::WhenAppended(response) => match refused {
                    Some(error) => {
                        shared.release(1, item.bytes);
                        item.answer.send(Err(error.clone()));
                        continue;
                    }
                    None => {
                        let last = self.in_flight.back_mut().expect("the group was just put there");
                        last.answers.push((item, response));
                        continue;
                    }
                },
                Decision::WhenDurable(_, response) if planted(Bug::AnsweredBeforeDurable) && refused.is_none() => {
                    response
                }
                Decision::WhenDurable(version, response) => {
                    let group = self.in_flight.iter_mut().find(|group| group.version == Some(version));
                    if let Some(group) = group {
                        group.answers.push((item, response));
                        continue;
                    }
                    debug_assert!(own != Some(version), "its own group is in flight");
                    response
                }
            };
            shared.release(1, item.bytes);
            match refused {
                // Not in flight any more, or refused with this group.
                Some(error) => item.answer.send(Err(error.clone())),
                None => item.answer.send(Ok(response)),
            }
        }
    }
}

impl Drop for Driver {
    /// Whoever still waits is told, also after a panic: what is in flight goes with its replies.
    fn drop(&mut self) {
        let error = closed();
        lock(&self.shared.queue).failed.get_or_insert(error.clone());
        self.refuse_queued(&error);
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
