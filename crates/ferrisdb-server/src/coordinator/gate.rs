//! How a transaction begins: with a read version, at once or in its turn.
//!
//! A read version is the log's last one, and the log says itself that it still is: nobody is told one that another coordinator has left behind. While
//! [`Rate`] limits how many may begin, all but the most urgent wait at the gate, in the order in which they came within a priority; a task opens it a few
//! times a second. A transaction of the lowest priority that has waited for long is told to come again.
//!
//! # Invariants
//! - A read version is at or above every version that was acknowledged before it was asked for.
//! - Only a higher priority passes those who wait already: newcomers starve nobody of their own.
//! - The gate holds a bounded number; more are refused, and say why.
//!
//! # Concurrency
//! Any thread begins; only the task takes out. Without a limit nobody comes here: one atomic load decides.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Clock, Code, Error, Result, Runtime, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{BeginRequest, Begun, Priority};

use super::rate::{Rate, Reason};
use super::{Shared, closed};
use crate::log::Confirmed;
use crate::signal::{Reply, lock, reply};

/// A last version that is older than this when a read version is asked for has an empty batch follow.
const STALE: Duration = Duration::from_secs(1);
/// How often waiting transactions are looked at while their rate is limited.
const RATE_TICK: Duration = Duration::from_millis(100);

/// Beginning transactions that wait for their turn.
pub(super) struct Gate {
    pub(super) rate: Rate,
    /// In the order in which they came.
    pub(super) waiting: VecDeque<Waiting>,
    is_closed: bool,
}

/// Somebody who waits to begin.
pub(super) struct Waiting {
    request: BeginRequest,
    since: Duration,
    reply: Reply<Begun>,
}

/// Those who wait no longer.
struct Called {
    /// They may begin.
    admitted: Vec<Waiting>,
    /// They are to come again.
    refused: Vec<Waiting>,
}

impl Gate {
    pub(super) fn new(rate: Rate) -> Gate {
        Gate { rate, waiting: VecDeque::new(), is_closed: false }
    }
}

impl Shared {
    /// A read version, whatever the rate.
    pub(super) fn begin_now(&self) -> Answer<Begun> {
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

    /// A read version in its turn, while the rate is limited.
    pub(super) fn begin_later(&self, request: BeginRequest) -> Answer<Begun> {
        let now = self.runtime.now();
        let mut gate = lock(&self.gate);
        if gate.is_closed {
            return Answer::from(closed());
        }
        // Behind those who wait already, but for a higher priority.
        let goes_first = gate.waiting.iter().all(|other| other.request.priority < request.priority);
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
        gate.waiting.push_back(Waiting { request, since: now, reply: answer });
        drop(gate);
        self.gate_bell.ring();
        Answer::Later(Box::pin(answered))
    }

    /// Looks anew at how many may begin.
    pub(super) fn update_rate(&self) {
        let queues = (self.queues)(self.appended_bytes.load(Ordering::Relaxed));
        let begun = self.counters.begins.load(Ordering::Relaxed);
        let is_limited = {
            let mut gate = lock(&self.gate);
            gate.rate.update(self.runtime.now(), &queues, begun);
            gate.rate.reason() != Reason::Nothing
        };
        let was_limited = self.is_limited.swap(is_limited, Ordering::AcqRel);
        if is_limited && !was_limited {
            self.gate_bell.ring();
        }
    }

    /// While the rate is limited, lets those begin who may.
    pub(super) async fn run_gate(&self) {
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
            let Called { admitted, refused } = self.open_gate();
            for Waiting { reply, .. } in admitted {
                match self.begin_now().try_now() {
                    Ok(begun) => reply.send(begun),
                    Err(later) => reply.send(later.await),
                }
            }
            for Waiting { reply, .. } in refused {
                reply.send(Err(Error::new(Code::BatchTransactionThrottled)));
            }
            self.runtime.sleep(RATE_TICK).await;
        }
    }

    /// Calls those who may begin, and those who have waited too long.
    fn open_gate(&self) -> Called {
        let now = self.runtime.now();
        let mut gate = lock(&self.gate);
        let Gate { rate, waiting, .. } = &mut *gate;
        let (mut admitted, mut refused, mut left) = (Vec::new(), Vec::new(), VecDeque::new());
        for one in waiting.drain(..) {
            // Whoever has given up takes nobody's turn: otherwise, with clients that try again, the turns of a long queue are all nobody's.
            if one.reply.is_abandoned() {
                continue;
            }
            let Waiting { request, since, .. } = &one;
            if rate.admit(request.transactions, request.priority) {
                admitted.push(one);
            } else if request.priority == Priority::Batch && now.saturating_sub(*since) >= self.options.rate.batch_wait
            {
                refused.push(one);
            } else {
                left.push_back(one);
            }
        }
        *waiting = left;
        Called { admitted, refused }
    }

    /// Lets nobody begin any more. Those who wait hear this.
    pub(super) fn close_gate(&self, error: &Error) {
        let waiting = {
            let mut gate = lock(&self.gate);
            gate.is_closed = true;
            std::mem::take(&mut gate.waiting)
        };
        self.gate_bell.ring();
        for Waiting { reply, .. } in waiting {
            reply.send(Err(error.clone()));
        }
    }
}
