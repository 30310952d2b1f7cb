//! The task that makes groups of what is queued, appends them to the log, and answers.
//!
//! ```text
//! queue ──▶ append_group ──▶ in flight: group, group, … ──▶ finish_durable ──▶ acknowledge   counted: answered, in order
//!             │ the batcher decides                                     ╰────▶ end_epoch     unknown, or another coordinator's time
//!             ╰ answer: what needs no disk is answered at once
//! ```
//!
//! While fewer than a few groups wait for the disk, the driver takes what has queued up and makes a group of it. So an idle database commits at once, and a
//! busy one in groups as large as the disk is slow. Where a group is dear, because it goes to several processes, it may wait a little for those who have just been
//! answered ([`Company`]). A small group that has no company is made durable by this same task, which would
//! only wait otherwise; one with company by the log's task, while the next is made. Who asks again as soon as it is answered has two such groups take turns (`halves.rs`), and those whom
//! a group has answered are woken when the next one is written: what they do then, the disk does not wait for.
//!
//! # Invariants
//! - Groups are in flight in the order of their versions, and are answered in it.
//! - Each request is answered once. Its room in the queue is given back at the same moment, not when it is taken: what waits for the disk counts.
//! - After a group whose end is unknown the queue has failed, and nothing more is appended: later groups build on versions that may not exist.
//!
//! # Concurrency
//! One task, woken by the queue's bell, by the log for its oldest group, by the end of a wait for company, and by the next expiry of a lease. It polls by hand, since it waits for
//! all of them at once, and a group that it makes durable itself must not keep it from the next.
//! It holds the driver while it polls; a caller that may block can take its place for one group (`alone.rs`), and rings the bell if anything is left.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, Code, Error, Result, Runtime, Version};
use ferrisdb_rpc::api::{Afterwards, CommitId, Committed};

use super::batcher::{Batcher, Decision, Response};
use super::company::Company;
use super::{AnswerTo, Item, Shared, Work, closed, nanos};
use crate::log::Applied;
use crate::signal::lock;

/// A group of so few requests, with nothing before it, is synced by the task that made it. A hand-over to the log's task and back
/// takes about 50 µs, what a request needs here less than 1 µs: with more than that, it is better to make the next group meanwhile.
pub(super) const ALONE_REQUESTS_MAX: usize = 64;

/// The task that drives the batcher.
pub(super) struct Driver {
    shared: Arc<Shared>,
    batcher: Batcher,
    /// Groups that wait for the disk, in order.
    in_flight: VecDeque<InFlight>,
    company: Company,
    /// Set while the next group waits for company.
    wait: Option<BoxFuture<()>>,
    /// Set while there are leases.
    timer: Option<BoxFuture<()>>,
    /// Transactions were refused by the log, but their writes are in the conflict window: an empty batch above them, small enough for the
    /// log's reserve, has whoever begins from then on not take them for conflicts.
    wants_batch: bool,
    /// The log's subscriber, to be woken when the answers are given.
    subscriber: Option<Waker>,
    /// Who has been answered, and is woken once the next group is written. Nobody while nobody holds the driver.
    held: Afterwards,
    /// Requests that the last group answered.
    answered: usize,
    /// How long a group takes that is synced here: of the last ones, the newest counting most. `None`: none was yet.
    alone_takes: Option<Duration>,
}

/// A group that waits for the disk.
struct InFlight {
    appended: BoxFuture<Result<Applied>>,
    version: Option<Version>,
    answers: Vec<(Unanswered, Response)>,
    ids: Vec<CommitId>,
    transactions: u64,
    since: Duration,
    /// Synced here, not by the log's task.
    is_alone: bool,
}

/// An item whose request the batcher has: somebody still waits for its answer.
struct Unanswered {
    answer: AnswerTo,
    bytes: u64,
    at: Duration,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, batcher: Batcher) -> Driver {
        let company = Company::new(shared.options.company);
        Driver {
            shared,
            batcher,
            in_flight: VecDeque::new(),
            company,
            wait: None,
            timer: None,
            wants_batch: false,
            subscriber: None,
            held: Afterwards::new(),
            answered: 0,
            alone_takes: None,
        }
    }

    /// Does what there is to do. Ready when the coordinator is closed, or its epoch over, and nobody waits any more.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut has_worked = self.finish_durable(context);
            // Behind those who were answered: it is in less of a hurry.
            self.subscriber.take().into_iter().for_each(|subscriber| self.held.push(subscriber));
            if self.in_flight.len() < self.shared.options.groups_in_flight && !self.waits_for_company(context) {
                has_worked |= self.append_group();
            }
            // If no group was synced here: that woke them sooner.
            self.held.wake();
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

    /// True if nothing waits for the disk, nor for company.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.wait.is_none()
    }

    /// Makes one group of what is queued, and answers it if it is durable by then: for somebody else than the driver's task, which is to be woken if anything is left.
    pub(super) fn work_once(&mut self, afterwards: &mut Afterwards) {
        self.append_group();
        self.finish_durable(&mut Context::from_waker(Waker::noop()));
        self.subscriber.take().into_iter().for_each(|subscriber| self.held.push(subscriber));
        afterwards.append(&mut self.held);
    }

    /// Requests whose groups wait for the disk.
    fn requests_in_flight(&self) -> usize {
        self.in_flight.iter().map(|group| group.answers.len()).sum()
    }

    /// True while what is queued waits for those who were answered a moment ago. Wakes when they are all there, or have been waited for long enough.
    fn waits_for_company(&mut self, context: &mut Context<'_>) -> bool {
        let in_flight = self.requests_in_flight();
        let wait = {
            let mut queue = lock(&self.shared.queue);
            let is_over = queue.is_closed || queue.failed.is_some();
            let wait = self.company.wait(queue.items.len(), in_flight).filter(|_| !is_over);
            queue.rings_from = if wait.is_some() { self.company.complete(in_flight) } else { 0 };
            wait
        };
        let Some(wait) = wait else {
            self.wait = None;
            return false;
        };
        let runtime = &self.shared.runtime;
        let timer = self.wait.get_or_insert_with(|| runtime.sleep(wait));
        let is_over = timer.as_mut().poll(context).is_ready();
        if is_over {
            self.wait = None;
        }
        !is_over
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
                    reached(Rare::EpochGivenUp);
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
        let others = self.requests_in_flight() + lock(&shared.queue).items.len();
        if group.is_alone {
            self.note_alone(now.saturating_sub(group.since));
        }
        let shared = &self.shared;
        self.company.answered(now.saturating_sub(group.since), group.answers.len(), others);
        if let Some(version) = group.version {
            shared.batch_at_nanos.store(nanos(now), Ordering::Relaxed);
            if planted(Bug::ReadVersionFromMemory) {
                shared.remembered.store(version.get(), Ordering::Relaxed);
            }
        }
        let counters = &shared.counters;
        counters.committed.fetch_add(group.transactions, Ordering::Relaxed);
        self.answered = group.answers.len();
        let mut bytes = 0;
        self.held.hold(|| {
            for (item, response) in group.answers {
                bytes += item.bytes;
                counters.commit_latency.record(now.saturating_sub(item.at));
                item.answer.send(Ok(response));
            }
        });
        shared.release(self.answered as u64, bytes);
    }

    /// A group that was synced here took so long.
    fn note_alone(&mut self, took: Duration) {
        let takes = self.alone_takes.map_or(took, |before| (before * 7 + took) / 8);
        self.alone_takes = Some(takes);
        let options = &self.shared.options;
        self.shared.is_quick.store(takes < options.alone_at_most, Ordering::Relaxed);
    }

    /// Nobody knows what became of this group: nor of the later ones, which build on it.
    fn end_epoch(&mut self, group: InFlight, error: &Error) {
        lock(&self.shared.queue).failed.get_or_insert(error.clone());
        let groups = std::iter::once(group).chain(std::mem::take(&mut self.in_flight));
        let detail = format!("nobody knows whether it happened: {error}");
        for (item, _) in groups.flat_map(|group| group.answers) {
            self.shared.release(1, item.bytes);
            let code = match item.answer {
                AnswerTo::Commit(reply) if planted(Bug::UnknownToldAsNo) => {
                    reply.send(Ok(Committed::Conflict { ranges: Vec::new() }));
                    continue;
                }
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
        let may_halve = self.in_flight.is_empty() && shared.is_quick.load(Ordering::Relaxed);
        let answered = may_halve.then_some(self.answered);
        let Some(work) = shared.take_work(is_due, wants_batch, answered) else { return false };
        let Work { items, wants_batch, is_full } = work;
        // Nothing else to do until this group is durable: this task makes it so. The planted bug answers before, and needs that there is a before.
        let is_small = items.len() <= ALONE_REQUESTS_MAX && !planted(Bug::AnsweredBeforeDurable);
        let is_alone = !is_full && self.in_flight.is_empty() && is_small;
        self.company.goes(items.len(), self.requests_in_flight());
        let durable = shared.log.last_known();
        let (mut requests, mut rest) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for Item { request, answer, bytes, at } in items {
            requests.push(request);
            rest.push(Unanswered { answer, bytes, at });
        }
        let log = Arc::clone(&shared.log);
        let mut group = self.batcher.form(requests, wants_batch, now, durable, &|id| log.known(id));
        let decisions = std::mem::take(&mut group.decisions);
        let entries = std::mem::take(&mut group.entries);
        let appended = (!entries.is_empty()).then(|| {
            if is_alone {
                let (appended, subscriber) = shared.log.append_alone(entries, &mut self.held)?;
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
                let in_flight =
                    InFlight { appended, version, answers: Vec::new(), ids, transactions, since: now, is_alone };
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
    fn answer(
        &mut self,
        rest: Vec<Unanswered>,
        decisions: Vec<Decision>,
        own: Option<Version>,
        refused: Option<&Error>,
    ) {
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
