//! [`Unreliable`]: a way to a database on which answers are lost, and which can be led to another life of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::{Code, Error, Random, Runtime, SplitMix64};
use ferrisdb_rpc::api::{CommitRequest, Committed, Description};
use ferrisdb_rpc::{Answer, Endpoint, pass_on};

/// The longest time that a commit is under way before it arrives when its answer was given up.
const LATE_MAX: u64 = 50;

/// An endpoint that leads to another one, or for the time being to none. Of some commits it loses the answer: they were carried out, or
/// did not get there, or get there after the client has asked for their outcome.
pub struct Unreliable {
    description: Description,
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
    /// One in so many commits; 0: none.
    loses_one_in: u64,
}

struct State {
    to: Option<Arc<dyn Endpoint>>,
    random: SplitMix64,
}

impl Unreliable {
    /// Leads to `to`.
    pub fn new(to: Arc<dyn Endpoint>, runtime: Arc<dyn Runtime>, seed: u64, loses_one_in: u64) -> Unreliable {
        let description = to.description();
        let state = Mutex::new(State { to: Some(to), random: SplitMix64::new(seed) });
        Unreliable { description, runtime, state, loses_one_in }
    }

    /// Leads there from now on.
    pub fn lead_to(&self, to: Option<Arc<dyn Endpoint>>) {
        let before = std::mem::replace(&mut self.lock().to, to);
        // Not under the lock: it may be the last reference.
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T>(&self, question: impl FnOnce(&dyn Endpoint) -> Answer<T>) -> Answer<T> {
        let to = self.lock().to.clone();
        match to {
            Some(to) => question(to.as_ref()),
            None => Answer::from(Error::new(Code::ConnectionFailed)),
        }
    }
}

impl Endpoint for Unreliable {
    fn description(&self) -> Description {
        self.description.clone()
    }

    pass_on! { |self, question| self.ask(question) =>
        begin, get, get_key, get_range, resolve, watch, lease, estimated_size, split_points, addresses_for_key,
        locations, status
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        let (to, how, late) = {
            let mut state = self.lock();
            let is_lost = self.loses_one_in > 0 && state.random.one_in(self.loses_one_in);
            let how = if is_lost { state.random.below(4) } else { u64::MAX };
            (state.to.clone(), how, Duration::from_millis(state.random.below(LATE_MAX)))
        };
        let Some(to) = to else { return Answer::from(Error::new(Code::ConnectionFailed)) };
        let lost = || Error::new(Code::CommitUnknownResult);
        match how {
            // It never gets there.
            0 => Answer::from(lost()),
            // It happens, and then its answer is lost.
            1 => {
                let answer = to.commit(request);
                Answer::later(async move {
                    drop(answer.await);
                    Err(lost())
                })
            }
            // The answer is given up at once.
            2 => {
                let answer = to.commit(request);
                let waiting = Box::pin(async move { drop(answer.await) });
                self.runtime.spawn("lost answer", waiting);
                Answer::from(lost())
            }
            // It gets there when the client has asked for its outcome.
            3 => {
                let sleep = self.runtime.sleep(late);
                let sending = Box::pin(async move {
                    sleep.await;
                    drop(to.commit(request).await);
                });
                self.runtime.spawn("late commit", sending);
                Answer::from(lost())
            }
            _ => to.commit(request),
        }
    }
}
