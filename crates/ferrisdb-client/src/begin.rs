//! [`Beginnings`]: read versions, asked for many transactions at once.
//!
//! A read version must be at or above every version that was acknowledged before its transaction asked. So a transaction may share
//! the answer to a question that was put after it asked, and no earlier one. While a question is under way, those that come wait for its
//! end, and the first to notice puts the next for all of them: on an idle client nobody waits, on a busy one each question serves many.
//!
//! # Concurrency
//! The futures that wait drive the question; there is no task behind it. If all of them are dropped, the next that comes drives it on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Code, Result, Runtime, Version};
use ferrisdb_rpc::Endpoint;
use ferrisdb_rpc::api::{BeginRequest, Begun, Priority};
use futures_util::FutureExt as _;
use futures_util::future::Shared;

use crate::heard::Heard;

type Question = Shared<BoxFuture<Result<Begun>>>;

/// A read version, now or later: as the database tells it, or for a transaction that may have it.
pub(crate) enum Begin<T = Version> {
    Now(Result<T>),
    Later(BoxFuture<Result<T>>),
}

impl Begin<Begun> {
    /// The read version for a transaction that is `lock_aware` or is not: then a locked database has none for it.
    pub(crate) fn admitted(self, lock_aware: bool) -> Begin {
        let admit = move |begun: Result<Begun>| match begun? {
            Begun { is_locked: true, .. } if !lock_aware && !planted(Bug::LockNotToldToReaders) => {
                Err(Code::DatabaseLocked.into())
            }
            Begun { version, .. } => Ok(version),
        };
        match self {
            Begin::Now(begun) => Begin::Now(admit(begun)),
            Begin::Later(begun) => Begin::Later(begun.map(admit).boxed()),
        }
    }
}

impl<T> Begin<T> {
    /// Waits for it.
    pub(crate) async fn wait(self) -> Result<T> {
        match self {
            Begin::Now(result) => result,
            Begin::Later(answer) => answer.await,
        }
    }
}

/// See the module's documentation.
pub(crate) struct Beginnings {
    endpoint: Arc<dyn Endpoint>,
    runtime: Arc<dyn Runtime>,
    heard: Arc<Heard>,
    /// One for each priority.
    lanes: [Mutex<Lane>; 3],
}

#[derive(Default)]
struct Lane {
    /// So many questions have been put.
    asked: u64,
    /// So many transactions came since the last was.
    waiting: u32,
    /// The number of the question that is under way, and its answer to come.
    under_way: Option<(u64, Question)>,
    /// The number of the last question that was answered, and its answer.
    answered: Option<(u64, Result<Begun>)>,
}

enum Step {
    Done(Result<Begun>),
    Wait(u64, Question),
}

impl Beginnings {
    pub(crate) fn new(endpoint: Arc<dyn Endpoint>, runtime: Arc<dyn Runtime>, heard: Arc<Heard>) -> Beginnings {
        Beginnings { endpoint, runtime, heard, lanes: Default::default() }
    }

    /// A read version for a transaction that asks for it now.
    pub(crate) fn begin(self: &Arc<Self>, priority: Priority) -> Begin<Begun> {
        let mut lane = self.lane(priority);
        // Questions with greater numbers than this one were put after now.
        let asked_before = lane.asked;
        lane.waiting = lane.waiting.saturating_add(1);
        if lane.under_way.is_none()
            && let Step::Done(result) = self.ask(&mut lane, priority)
        {
            return Begin::Now(result);
        }
        drop(lane);
        Begin::Later(Arc::clone(self).wait(priority, asked_before).boxed())
    }

    async fn wait(self: Arc<Self>, priority: Priority, asked_before: u64) -> Result<Begun> {
        loop {
            let (number, question) = match self.step(priority, asked_before) {
                Step::Done(result) => return result,
                Step::Wait(number, question) => (number, question),
            };
            let result = question.await;
            let mut lane = self.lane(priority);
            if lane.under_way.as_ref().is_some_and(|(under_way, _)| *under_way == number) {
                lane.under_way = None;
                lane.answered = Some((number, result.clone()));
                // One that is answered at once is not worth being remembered: asking costs nothing there.
                if let Ok(begun) = result {
                    self.heard.note(begun.version, self.runtime.now());
                }
            }
            if number > asked_before {
                return result;
            }
        }
    }

    fn step(&self, priority: Priority, asked_before: u64) -> Step {
        let mut lane = self.lane(priority);
        match (&lane.under_way, &lane.answered) {
            (_, Some((number, result))) if *number > asked_before => Step::Done(result.clone()),
            (Some((number, question)), _) => Step::Wait(*number, question.clone()),
            (None, _) => self.ask(&mut lane, priority),
        }
    }

    /// Puts a question for all that wait.
    fn ask(&self, lane: &mut Lane, priority: Priority) -> Step {
        lane.asked += 1;
        let number = lane.asked;
        let transactions = std::mem::take(&mut lane.waiting).max(1);
        match self.endpoint.begin(BeginRequest { transactions, priority }).try_now() {
            Ok(result) => {
                lane.answered = Some((number, result.clone()));
                Step::Done(result)
            }
            Err(answer) => {
                let question = answer.boxed().shared();
                lane.under_way = Some((number, question.clone()));
                Step::Wait(number, question)
            }
        }
    }

    fn lane(&self, priority: Priority) -> MutexGuard<'_, Lane> {
        let lane = match priority {
            Priority::Batch => 0,
            Priority::Default => 1,
            Priority::Immediate => 2,
        };
        self.lanes[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
