//! [`Unreliable`]: a way to a database on which answers are lost, and which can be led to another life of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::{Bytes, Code, Error, KeyRange, Random, Runtime, SplitMix64, Version};
use ferrisdb_rpc::api::{
    BeginRequest, Begun, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest, Lease,
    LeaseRequest, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use ferrisdb_rpc::{Answer, Endpoint};

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

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.ask(|to| to.begin(request))
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        self.ask(|to| to.get(request))
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.ask(|to| to.get_key(request))
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.ask(|to| to.get_range(request))
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

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.ask(|to| to.resolve(request))
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.ask(|to| to.watch(request))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.ask(|to| to.lease(request))
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.ask(|to| to.estimated_size(range))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.ask(|to| to.split_points(request))
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        self.ask(|to| to.addresses_for_key(key))
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        self.ask(|to| to.locations(request))
    }

    fn status(&self) -> Answer<String> {
        self.ask(|to| to.status())
    }
}
