//! The simulated network: a question goes to a process and its answer comes back, late, or never; or the question comes twice. What becomes of each says [`Links`].

use std::fmt;

use ferrisdb_rpc::api::{CommitRequest, Committed, Description};
use ferrisdb_rpc::pass_on;
use futures_util::future::{Either, select};

use super::super::super::Network;
use super::*;

/// A question without an answer for so long is given up.
const DEADLINE: Duration = Duration::from_secs(3);
/// The clients are at 0.
pub(super) const OUTSIDE: ProcessId = 0;

pub(super) fn address(process: ProcessId) -> String {
    format!("host{process}:1")
}

fn process_at(address: &str) -> Option<ProcessId> {
    address.strip_prefix("host")?.split_once(':')?.0.parse().ok()
}

/// One process's way to the others.
pub(super) struct SimNetwork {
    pub(super) world: Weak<World>,
    pub(super) from: ProcessId,
    pub(super) runtime: JobRuntime,
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the network of process {}", self.from)
    }
}

impl Network for SimNetwork {
    fn connect(&self, address: &str, _: Option<[u8; 16]>) -> BoxFuture<Result<Arc<dyn Endpoint>>> {
        let to = process_at(address).expect("an address of this world");
        let line = Line { world: self.world.clone(), from: self.from, to, runtime: self.runtime.clone() };
        Box::pin(async move { Ok(Arc::new(line) as Arc<dyn Endpoint>) })
    }
}

/// The way to one process.
pub(super) struct Line {
    pub(super) world: Weak<World>,
    pub(super) from: ProcessId,
    pub(super) to: ProcessId,
    pub(super) runtime: JobRuntime,
}

impl Line {
    /// Has the other side answer, if it is reached, in a task of its own. `lost` is what the asker hears if the question may have arrived.
    fn ask<T: Send + Unpin + 'static>(
        &self,
        lost: Code,
        ask: impl FnOnce(&dyn Endpoint) -> Answer<T> + Clone + Send + Sync + 'static,
    ) -> Answer<T> {
        let (world, from, to, runtime) = (self.world.clone(), self.from, self.to, self.runtime.clone());
        Answer::later(async move {
            let failed = |code| Error::with(code, "lost on the way");
            let world = world.upgrade().ok_or_else(|| failed(Code::ConnectionFailed))?;
            let asking = std::pin::pin!(async {
                let there = world.passes(from, to)?;
                let (sender, receiver) = futures_channel::oneshot::channel();
                if lost != Code::CommitUnknownResult
                    && let Some(again) = world.comes_twice()
                {
                    let ask = ask.clone();
                    world.deliver(from, to, there + again, move |endpoint| {
                        let answer = ask(endpoint);
                        Box::pin(async move { drop(answer.await) })
                    });
                }
                let late = world.comes_late();
                world.deliver(from, to, there + late, move |endpoint| {
                    let answer = ask(endpoint);
                    Box::pin(async move { drop(sender.send(answer.await)) })
                });
                let answer = receiver.await.ok()?;
                runtime.sleep(world.passes(to, from)?).await;
                Some(answer)
            });
            match select(asking, runtime.sleep(DEADLINE)).await {
                Either::Left((Some(answer), _)) => answer,
                // Nobody is told at once that a message was lost.
                Either::Left((None, timer)) => {
                    let wait = world.random(100);
                    drop(timer);
                    runtime.sleep(wait as u32 * MILLISECOND).await;
                    Err(failed(lost))
                }
                Either::Right(_) => Err(failed(lost)),
            }
        })
    }
}

impl Endpoint for Line {
    fn description(&self) -> Description {
        let limits = ferrisdb_core::Limits::DEFAULT;
        Description { cluster_id: [0; 16], limits, connection_string: address(self.to) }
    }

    pass_on! { |self, question| self.ask(Code::ConnectionFailed, question) =>
        begin, get, get_key, get_range, resolve, watch, lease, estimated_size, split_points, addresses_for_key,
        locations, message, status
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.ask(Code::CommitUnknownResult, move |endpoint| endpoint.commit(request))
    }
}

/// A client's way into the cluster: to any process, another one each time.
pub(super) struct Anywhere {
    pub(super) world: Weak<World>,
    pub(super) runtime: JobRuntime,
}

impl Anywhere {
    fn line(&self) -> Line {
        let world = self.world.upgrade().expect("clients end before their world");
        let hosts: Vec<ProcessId> = lock(&world.state).hosts.keys().copied().collect();
        let to = hosts[world.random(hosts.len() as u64) as usize];
        Line { world: self.world.clone(), from: OUTSIDE, to, runtime: self.runtime.clone() }
    }
}

impl Endpoint for Anywhere {
    fn description(&self) -> Description {
        self.line().description()
    }

    pass_on! { |self| self.line() =>
        begin, get, get_key, get_range, commit, resolve, watch, lease, estimated_size, split_points,
        addresses_for_key, locations, message, status
    }
}

impl World {
    fn passes(&self, from: ProcessId, to: ProcessId) -> Option<Duration> {
        let State { links, random, .. } = &mut *lock(&self.state);
        links.passes(random, from, to)
    }

    /// Takes a question to a process, which answers it in a task of its own. Nobody there: it is lost.
    fn deliver(
        &self,
        from: ProcessId,
        to: ProcessId,
        after: Duration,
        ask: impl FnOnce(&dyn Endpoint) -> BoxFuture<()> + Send + 'static,
    ) {
        let (world, outside) = (self.me.clone(), self.outside.clone());
        let delivering = async move {
            outside.sleep(after).await;
            let Some((endpoint, on)) = world.upgrade().and_then(|world| world.endpoint(from, to)) else { return };
            let asking = async move { ask(endpoint.as_ref()).await };
            on.spawn("rpc", Box::pin(asking));
        };
        self.outside.spawn("message", Box::pin(delivering));
    }

    /// If a question comes a second time: how long after the first.
    fn comes_twice(&self) -> Option<Duration> {
        let State { links, random, .. } = &mut *lock(&self.state);
        links.comes_twice(random)
    }

    /// How late a question is.
    fn comes_late(&self) -> Duration {
        let State { links, random, .. } = &mut *lock(&self.state);
        links.comes_late(random)
    }

    fn endpoint(&self, from: ProcessId, to: ProcessId) -> Option<(Arc<dyn Endpoint>, JobRuntime)> {
        let (node, runtime) = {
            let state = lock(&self.state);
            let host = state.hosts.get(&to)?;
            (host.node.clone()?, host.runtime.clone()?)
        };
        let endpoint = node.endpoint();
        let endpoint = if from == OUTSIDE { endpoint } else { endpoint.for_peers().expect("a process has one") };
        Some((endpoint, runtime))
    }
}
