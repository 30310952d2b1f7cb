//! Who answers what: [`Cluster`] answers like the whole cluster, [`Direct`] for this process alone.
//!
//! What the coordinator decides goes to the process that runs it, wherever that is; reads are answered by this process's own storage server, unless it cannot. A process
//! that was asked by another one does not send the question on: two that take each other for the leader would send it around.
//!
//! # Invariants
//! - A commit is sent on once at most, unless it is known that it did not arrive or was refused without a trace.
//! - A question that found no coordinator waits for one, up to a bound.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ferrisdb_core::key::key_after;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Clock, Code, Error, KeyRange, Result, Runtime, Version};
use ferrisdb_rpc::api::{
    BeginRequest, Begun, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest, Lease,
    LeaseRequest, Location, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
    is_undecided,
};
use ferrisdb_rpc::{Answer, Endpoint, pass_on};
use futures_util::future::{Either, select};

use super::lead::{self, no_coordinator};
use super::lines::Line;
use super::locate::Own;
use super::{LOOK, Life, Shared, status};
use crate::coordinator::Coordinator;
use crate::log::Tag;
use crate::log::replicated::ProcessId;
use crate::shards::holding::Holding;
use crate::shards::load::Load;
use crate::signal::lock;
use crate::storage::StorageServer;

/// Locations in one answer at most: some 100 kB.
const LOCATIONS_MAX: usize = 1_000;

/// The way to the present leader.
#[derive(Default)]
pub(super) struct Route {
    to_leader: Mutex<Option<(ProcessId, Arc<dyn Endpoint>)>>,
}

impl Shared {
    /// Whoever runs the coordinator, as far as this process knows.
    async fn leader(self: &Arc<Shared>) -> Result<Arc<dyn Endpoint>> {
        let here = self.identity.process;
        let Some(leader) = self.log.view().leader else { return Err(no_coordinator(here)) };
        if leader == here {
            return Ok(Arc::new(self.direct()));
        }
        if let Some((process, endpoint)) = &*lock(&self.route.to_leader)
            && *process == leader
        {
            return Ok(Arc::clone(endpoint));
        }
        let address = self.registry()?.processes.get(&leader).map(|process| process.peer.address.clone());
        let address = address.or_else(|| self.log.view().peers.get(&leader).map(|peer| peer.address.clone()));
        let endpoint = self.lines.to(Line::Questions, &address.ok_or_else(|| no_coordinator(here))?).await?;
        *lock(&self.route.to_leader) = Some((leader, Arc::clone(&endpoint)));
        Ok(endpoint)
    }

    /// Asks whoever runs the coordinator, and asks again while there is none, up to a bound.
    pub(super) async fn at_coordinator<T: Unpin>(
        self: &Arc<Shared>,
        ask: impl Fn(&dyn Endpoint) -> Answer<T>,
    ) -> Result<T> {
        let until = self.jobs.now() + self.options.coordinator_wait;
        loop {
            let asked = async {
                let leader = self.leader().await?;
                ask(leader.as_ref()).await
            };
            let error = match asked.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // Both say that nothing has happened: there was no connection, or nobody who decides. Anything else, and above all that nobody
            // knows, is what the asker must hear.
            if !is_undecided(error.code()) {
                return Err(error);
            }
            if self.is_closed.load(Ordering::SeqCst) {
                return Err(self.closed());
            }
            if self.jobs.now() >= until {
                let wait = self.options.coordinator_wait;
                let detail = format!(
                    "no process has led the cluster for {wait:?}, as far as process {} can see; a majority of the log's voters must be up: {error}",
                    self.identity.process
                );
                return Err(Error::with(Code::ProcessBehind, detail));
            }
            self.jobs.sleep(LOOK).await;
        }
    }
}

/// This process alone.
pub(super) struct Direct {
    pub(super) shared: Arc<Shared>,
}

impl Direct {
    /// Has the coordinator answer, if it runs here.
    fn coordinator<T: Send + Unpin + 'static>(&self, ask: impl FnOnce(&Coordinator) -> Answer<T>) -> Answer<T> {
        let process = self.shared.identity.process;
        let Some(coordinator) = self.shared.leading.coordinator() else { return no_coordinator(process).into() };
        let asked = ask(&coordinator);
        Answer::later(async move {
            asked.await.map_err(|error| match error.code() {
                // Its epoch is over, or its replica does not lead any more. Others may decide.
                Code::OperationCancelled | Code::ConnectionFailed => no_coordinator(process),
                _ => error,
            })
        })
    }

    /// Has storage answer, and lets the answer pass if storage holds what it rests on. Looked at only then: an answer at a version is there when that version is applied,
    /// and what is held is known as of every version that is.
    fn storage<T: Send + Unpin + 'static>(
        &self,
        ask: impl FnOnce(&StorageServer) -> Answer<T>,
        is_held: impl FnOnce(&Holding, &T) -> bool + Send + 'static,
    ) -> Answer<T> {
        self.storage_counted(Version::MAX, ask, is_held, |_, _| ())
    }

    /// The same at a version, and `count` notes what that was.
    fn storage_counted<T: Send + Unpin + 'static>(
        &self,
        version: Version,
        ask: impl FnOnce(&StorageServer) -> Answer<T>,
        is_held: impl FnOnce(&Holding, &T) -> bool + Send + 'static,
        count: impl FnOnce(&Load, &T) + Send + 'static,
    ) -> Answer<T> {
        let shared = Arc::clone(&self.shared);
        let pass = move |result: Result<T>| match result {
            Ok(answer) if is_held(&shared.keeper.holding(), &answer) || planted(Bug::StrangerAnswers) => {
                count(&shared.load, &answer);
                Ok(answer)
            }
            Ok(_) => Err(shared.not_held()),
            // Too old for this storage server, which began later: others may have it, under a lease.
            Err(error)
                if error.code() == Code::TransactionTooOld
                    && version.get() < shared.readable_from.load(Ordering::SeqCst)
                    && !planted(Bug::BeganLaterSaysTooOld) =>
            {
                Err(shared.not_held())
            }
            Err(error) => Err(error),
        };
        match ask(&self.shared.storage).try_now() {
            Ok(result) => Answer::now(pass(result)),
            Err(later) => Answer::later(async move { pass(later.await) }),
        }
    }
}

impl Shared {
    fn not_held(&self) -> Error {
        reached(Rare::WrongShard);
        let detail = format!("process {} does not hold these keys at that version", self.identity.process);
        Error::with(Code::WrongShardServer, detail)
    }

    fn description(&self) -> Description {
        let addresses = self.registry().map(|registry| registry.addresses()).unwrap_or_default();
        Description { cluster_id: self.identity.cluster_id, limits: self.limits, connection_string: addresses }
    }
}

impl Endpoint for Direct {
    fn description(&self) -> Description {
        self.shared.description()
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.coordinator(|coordinator| coordinator.begin(request))
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        self.shared.counters.gets.fetch_add(1, Ordering::Relaxed);
        let (key, version) = (request.key.clone(), request.version);
        let of = key.clone();
        self.storage_counted(
            version,
            |storage| storage.get(request),
            move |held, _| held.has(&key, version),
            move |load, value| load.read(&of, of.len() + value.as_ref().map_or(0, Bytes::len)),
        )
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.shared.counters.get_keys.fetch_add(1, Ordering::Relaxed);
        let GetKeyRequest { selector, end, version } = request.clone();
        let from = selector.without_or_equal();
        // What was walked over, to there or, in the other direction, from there.
        let is_held = move |held: &Holding, found: &Bytes| {
            let key = from.key.min(end);
            let range = match from.offset > 0 {
                true => KeyRange { begin: key, end: found.clone() },
                false => KeyRange { begin: found.clone(), end: key },
            };
            held.covers(&range, version)
        };
        let count = |load: &Load, found: &Bytes| load.read(found, found.len());
        self.storage_counted(version, |storage| storage.get_key(request), is_held, count)
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.shared.counters.get_ranges.fetch_add(1, Ordering::Relaxed);
        let (mut range, version, reverse) = (request.range.clone(), request.version, request.reverse);
        let begin = range.begin.clone();
        let is_held = move |held: &Holding, answer: &Rows| {
            if let (true, Some(last)) = (answer.more, answer.rows.last()) {
                if reverse { range.begin = last.key.clone() } else { range.end = key_after(&last.key) }
            }
            held.covers(&range, version)
        };
        // All of it counts where it begins: a row is cheaper than a question.
        let count = move |load: &Load, answer: &Rows| {
            let first = answer.rows.iter().map(|row| &row.key).min().unwrap_or(&begin);
            load.read(first, answer.rows.iter().map(|row| row.key.len() + row.value.len()).sum());
        };
        self.storage_counted(version, |storage| storage.get_range(request), is_held, count)
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.shared.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.coordinator(|coordinator| coordinator.commit(request))
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.shared.counters.resolves.fetch_add(1, Ordering::Relaxed);
        self.coordinator(|coordinator| coordinator.resolve(request))
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.shared.counters.watches.fetch_add(1, Ordering::Relaxed);
        // First the watch has its place: if the key is lost from then on, it fires.
        let key = request.key.clone();
        let watching = self.shared.storage.watch(request);
        if !self.shared.keeper.holding().has_now(&key) {
            return self.shared.not_held().into();
        }
        watching
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.shared.counters.leases.fetch_add(1, Ordering::Relaxed);
        self.coordinator(|coordinator| coordinator.lease(request))
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        let of = range.clone();
        self.storage(|storage| storage.estimated_size(range), move |held, _| held.covers(&of, Version::MAX))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        let of = request.range.clone();
        self.storage(|storage| storage.split_points(request), move |held, _| held.covers(&of, Version::MAX))
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        let found = || {
            let (registry, map) = (self.shared.registry()?, self.shared.shards()?);
            let team = map.of_key(&key).1.team();
            let processes = registry.processes.values().filter(|process| team.contains(&process.tag));
            Ok(processes.map(|process| process.peer.address.clone()).collect())
        };
        Answer::now(found())
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        let found = || {
            let (registry, map) = (self.shared.registry()?, self.shared.shards()?);
            let addresses = |team: BTreeSet<Tag>| {
                let processes = registry.processes.values().filter(|process| team.contains(&process.tag));
                processes.map(|process| process.peer.address.clone()).collect()
            };
            let mut inside = map.shards_from(&request.range.begin).take_while(|(begin, _)| **begin < request.range.end);
            let bound =
                if request.limit == 0 { LOCATIONS_MAX } else { (request.limit as usize).clamp(2, LOCATIONS_MAX) };
            let first = inside.by_ref().take(bound);
            let locations =
                first.map(|(begin, shard)| Location { begin: begin.clone(), addresses: addresses(shard.team()) });
            let locations = locations.collect();
            let leader = self.shared.log.view().leader.and_then(|leader| registry.processes.get(&leader));
            let coordinator = leader.map(|process| process.peer.address.clone());
            Ok(Locations { locations, more: inside.next().is_some(), coordinator })
        };
        Answer::now(found())
    }

    fn status(&self) -> Answer<String> {
        Answer::now(Ok(status::document(&self.shared)))
    }

    fn message(&self, message: Bytes) -> Answer<Bytes> {
        Answer::later(lead::answer(Arc::clone(&self.shared), message))
    }
}

impl Shared {
    /// A read that storage here is asked and has not answered in time is asked of others who have it: the first answer wins. An error of the others counts only if storage here has one, too.
    async fn hedged<T: Unpin>(
        self: &Arc<Shared>,
        key: &Bytes,
        version: Version,
        here: Answer<T>,
        elsewhere: &impl Fn(Arc<Shared>, Own) -> BoxFuture<Result<T>>,
    ) -> Result<T> {
        let has_others =
            self.shards().is_ok_and(|map| map.of_key(key).1.readable_at(version).any(|tag| tag != self.identity.tag));
        let Some(_hedge) = has_others.then(|| self.pace.hedge()).flatten() else { return here.await };
        self.counters.hedges.fetch_add(1, Ordering::Relaxed);
        match select(here, elsewhere(Arc::clone(self), Own::Not)).await {
            Either::Left((Ok(answer), _)) => Ok(answer),
            Either::Left((Err(error), there)) => there.await.map_err(|_| error),
            Either::Right((Ok(answer), _)) => {
                self.counters.hedges_won.fetch_add(1, Ordering::Relaxed);
                Ok(answer)
            }
            Either::Right((Err(_), here)) => here.await,
        }
    }
}

/// Storage here does not hold it, or its disk has failed.
fn is_for_others(code: Code) -> bool {
    matches!(code, Code::WrongShardServer | Code::IoError)
}

/// The cluster, as seen from this process, in whichever life of it.
pub(super) struct Cluster {
    pub(super) life: Arc<Life>,
}

impl Cluster {
    fn at_coordinator<T: Unpin + Send + 'static>(
        &self,
        ask: impl Fn(&dyn Endpoint) -> Answer<T> + Send + Sync + 'static,
    ) -> Answer<T> {
        let shared = self.life.shared();
        Answer::later(async move { shared.at_coordinator(ask).await })
    }

    /// Storage here answers if it holds the key and has, or is about to have, that version; otherwise, or if it cannot, somebody who can. If it is slow, somebody else is asked as well.
    fn read<T: Unpin + Send + 'static>(
        &self,
        key: &Bytes,
        version: Version,
        ask: impl FnOnce(&dyn Endpoint) -> Answer<T>,
        elsewhere: impl Fn(Arc<Shared>, Own) -> BoxFuture<Result<T>> + Send + Sync + 'static,
    ) -> Answer<T> {
        let shared = self.life.shared();
        let is_behind = || version > shared.storage.applied_version() && shared.stands_still();
        if !shared.keeper.holding().has_now(key) || is_behind() {
            return Answer::later(elsewhere(shared, Own::First));
        }
        let later = match ask(&shared.direct()).try_now() {
            Ok(Err(error)) if is_for_others(error.code()) => return Answer::later(elsewhere(shared, Own::First)),
            Ok(result) => return Answer::now(result),
            Err(later) => later,
        };
        let key = key.clone();
        Answer::later(async move {
            let begun = shared.jobs.now();
            let patience = shared.timers.sleep(shared.pace.patience());
            let answered = match select(later, patience).await {
                Either::Left((answered, _)) => {
                    shared.pace.answered(shared.jobs.now().saturating_sub(begun));
                    answered
                }
                Either::Right((_, later)) => shared.hedged(&key, version, later, &elsewhere).await,
            };
            match answered {
                Err(error) if is_for_others(error.code()) => elsewhere(shared, Own::First).await,
                answered => answered,
            }
        })
    }

    /// A watch is set where the key is, and waits there.
    fn wait<T: Unpin + Send + 'static>(
        &self,
        key: &Bytes,
        ask: impl FnOnce(&dyn Endpoint) -> Answer<T>,
        elsewhere: impl FnOnce(Arc<Shared>) -> BoxFuture<Result<T>> + Send + 'static,
    ) -> Answer<T> {
        let shared = self.life.shared();
        if !shared.keeper.holding().has_now(key) || shared.stands_still() {
            return Answer::later(elsewhere(shared));
        }
        match ask(&shared.direct()).try_now() {
            Ok(Err(error)) if is_for_others(error.code()) => Answer::later(elsewhere(shared)),
            Ok(result) => Answer::now(result),
            Err(later) => Answer::later(async move {
                match later.await {
                    Err(error) if is_for_others(error.code()) => elsewhere(shared).await,
                    result => result,
                }
            }),
        }
    }
}

impl Endpoint for Cluster {
    fn description(&self) -> Description {
        self.life.shared().description()
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.at_coordinator(move |endpoint| endpoint.begin(request))
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        let GetRequest { key, version } = request.clone();
        let elsewhere = request.clone();
        self.read(
            &key,
            version,
            |endpoint| endpoint.get(request),
            move |shared, own| {
                let request = elsewhere.clone();
                Box::pin(async move {
                    shared.read_key(request.key.clone(), version, own, |at| at.get(request.clone())).await
                })
            },
        )
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        let (key, elsewhere) = (request.selector.key.clone(), request.clone());
        self.read(
            &key,
            request.version,
            |endpoint| endpoint.get_key(request),
            move |shared, own| {
                let request = elsewhere.clone();
                Box::pin(async move { shared.read_key_at(request, own).await })
            },
        )
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        let (key, elsewhere) = (request.range.begin.clone(), request.clone());
        self.read(
            &key,
            request.version,
            |endpoint| endpoint.get_range(request),
            move |shared, own| {
                let request = elsewhere.clone();
                Box::pin(async move { shared.read_range(request, own).await })
            },
        )
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        // A read version of an earlier epoch is refused by the next one anyway: it is for the client to begin again.
        self.at_coordinator(move |endpoint| endpoint.commit(request.clone()))
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.at_coordinator(move |endpoint| endpoint.resolve(request))
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        let elsewhere = request.clone();
        self.wait(
            &request.key.clone(),
            |endpoint| endpoint.watch(request),
            move |shared| {
                let key = elsewhere.key.clone();
                // Whoever holds the key now: there it is waited for.
                Box::pin(async move { shared.wait_for_key(key, |at| at.watch(elsewhere.clone())).await })
            },
        )
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.at_coordinator(move |endpoint| endpoint.lease(request))
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        let shared = self.life.shared();
        Answer::later(async move { shared.read_size(range).await })
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        let shared = self.life.shared();
        Answer::later(async move { shared.read_split_points(request).await })
    }

    pass_on! { |self| self.life.shared().direct() => addresses_for_key, locations, message, status }

    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        Some(Arc::new(ForPeers { life: Arc::clone(&self.life) }))
    }
}

/// This process alone, in whichever life of it: connections of peers outlive a life.
struct ForPeers {
    life: Arc<Life>,
}

impl Endpoint for ForPeers {
    fn description(&self) -> Description {
        self.life.shared().description()
    }

    pass_on! { |self| self.life.shared().direct() =>
        begin, get, get_key, get_range, commit, resolve, watch, lease, estimated_size, split_points,
        addresses_for_key, locations, message, status
    }
}
