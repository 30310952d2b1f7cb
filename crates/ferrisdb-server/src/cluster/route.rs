//! Who answers what: [`Cluster`] answers like the whole cluster, [`Direct`] for this process alone.
//!
//! What the coordinator decides goes to the process that runs it, wherever that is; reads are answered by this process's own storage server, unless it cannot. A process
//! that was asked by another one does not send the question on: two that take each other for the leader would send it around.
//!
//! # Invariants
//! - A commit is sent on once at most, unless it is known that it did not arrive or was refused without a trace.
//! - A question that found no coordinator waits for one, up to a bound.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ferrisdb_core::{Bytes, Clock, Code, Error, KeyRange, Result, Runtime, Version};
use ferrisdb_rpc::api::{
    BeginRequest, Begun, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest, Lease,
    LeaseRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use ferrisdb_rpc::{Answer, Endpoint};

use super::lead::{self, no_coordinator};
use super::lines::Line;
use super::{LOOK, Life, Shared, status};
use crate::coordinator::Coordinator;
use crate::log::replicated::ProcessId;
use crate::signal::lock;
use crate::storage::StorageServer;

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
            if !matches!(error.code(), Code::ConnectionFailed | Code::ProcessBehind) {
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

    /// Has storage answer, if it has everything that there is at `version`.
    fn storage<T>(&self, version: Version, ask: impl FnOnce(&StorageServer) -> Answer<T>) -> Answer<T> {
        if self.shared.reads_at(version) {
            return ask(&self.shared.storage);
        }
        let detail = format!("process {} does not have all data at version {version}", self.shared.identity.process);
        Error::with(Code::ProcessBehind, detail).into()
    }
}

impl Shared {
    /// True if storage here has everything that there is at `version`.
    pub(super) fn reads_at(&self, version: Version) -> bool {
        self.is_complete.load(Ordering::Acquire) && version.get() >= self.readable_from.load(Ordering::Acquire)
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
        self.storage(request.version, |storage| storage.get(request))
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.shared.counters.get_keys.fetch_add(1, Ordering::Relaxed);
        self.storage(request.version, |storage| storage.get_key(request))
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.shared.counters.get_ranges.fetch_add(1, Ordering::Relaxed);
        self.storage(request.version, |storage| storage.get_range(request))
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
        self.storage(request.version, |storage| storage.watch(request))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.shared.counters.leases.fetch_add(1, Ordering::Relaxed);
        self.coordinator(|coordinator| coordinator.lease(request))
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.storage(Version::MAX, |storage| storage.estimated_size(range))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.storage(Version::MAX, |storage| storage.split_points(request))
    }

    fn addresses_for_key(&self, _key: Bytes) -> Answer<Vec<String>> {
        let registry = self.shared.registry();
        Answer::now(registry.map(|registry| {
            let has_all = |tag| registry.storage.get(tag).is_some_and(|storage| storage.is_complete);
            let processes = registry.processes.values().filter(|process| has_all(&process.tag));
            processes.map(|process| process.peer.address.clone()).collect()
        }))
    }

    fn status(&self) -> Answer<String> {
        Answer::now(Ok(status::document(&self.shared)))
    }

    fn message(&self, message: Bytes) -> Answer<Bytes> {
        Answer::later(lead::answer(Arc::clone(&self.shared), message))
    }
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

    /// Storage here answers, or the leader's does.
    fn read<T: Unpin + Send + 'static>(
        &self,
        version: Version,
        ask: impl Fn(&dyn Endpoint) -> Answer<T> + Send + Sync + 'static,
    ) -> Answer<T> {
        let shared = self.life.shared();
        if shared.reads_at(version) {
            return ask(&shared.direct());
        }
        self.at_coordinator(ask)
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
        self.read(request.version, move |endpoint| endpoint.get(request.clone()))
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.read(request.version, move |endpoint| endpoint.get_key(request.clone()))
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.read(request.version, move |endpoint| endpoint.get_range(request.clone()))
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        // A read version of an earlier epoch is refused by the next one anyway: it is for the client to begin again.
        self.at_coordinator(move |endpoint| endpoint.commit(request.clone()))
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.at_coordinator(move |endpoint| endpoint.resolve(request))
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.read(request.version, move |endpoint| endpoint.watch(request.clone()))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.at_coordinator(move |endpoint| endpoint.lease(request))
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.read(Version::MAX, move |endpoint| endpoint.estimated_size(range.clone()))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.read(Version::MAX, move |endpoint| endpoint.split_points(request.clone()))
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        self.life.shared().direct().addresses_for_key(key)
    }

    fn status(&self) -> Answer<String> {
        self.life.shared().direct().status()
    }

    fn message(&self, message: Bytes) -> Answer<Bytes> {
        self.life.shared().direct().message(message)
    }

    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        Some(Arc::new(ForPeers { life: Arc::clone(&self.life) }))
    }
}

/// This process alone, in whichever life of it: connections of peers outlive a life.
struct ForPeers {
    life: Arc<Life>,
}

macro_rules! in_this_life {
    ($($method:ident($request:ty) -> $answer:ty;)*) => {
        $(fn $method(&self, request: $request) -> Answer<$answer> {
            self.life.shared().direct().$method(request)
        })*
    };
}

impl Endpoint for ForPeers {
    fn description(&self) -> Description {
        self.life.shared().description()
    }

    in_this_life! {
        begin(BeginRequest) -> Begun;
        get(GetRequest) -> Option<Bytes>;
        get_key(GetKeyRequest) -> Bytes;
        get_range(GetRangeRequest) -> Rows;
        commit(CommitRequest) -> Committed;
        resolve(ResolveRequest) -> Option<Committed>;
        watch(WatchRequest) -> Version;
        lease(LeaseRequest) -> Lease;
        estimated_size(KeyRange) -> u64;
        split_points(SplitPointsRequest) -> Vec<Bytes>;
        addresses_for_key(Bytes) -> Vec<String>;
        message(Bytes) -> Bytes;
    }

    fn status(&self) -> Answer<String> {
        self.life.shared().direct().status()
    }
}
