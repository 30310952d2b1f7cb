//! Three processes of a cluster over sockets, all within this process: the third deployment of the same tests.
//!
//! Each is a [`ClusterNode`] on a disk of its own in memory, behind a server on loopback, as `ferrisdb serve` has it; they reach each other over the same
//! sockets that clients use. What differs from three processes: transport and consensus run on the test's one thread, and nobody stands for
//! election for as long as a test may be held up, so that no result depends on how busy the machine is.

use std::sync::Arc;
use std::time::Duration;

use ferrisdb_rpc::{ServeOptions, TokioRuntime, serve};
use ferrisdb_server::NodeOptions;
use ferrisdb_server::cluster::{Beginning, ClusterNode, ClusterOptions, Doors, Peer, RpcNetwork};
use ferrisdb_storage::Env;
use ferrisdb_storage::fs::sim::SimFileSystem;
use tokio::task::JoinHandle;

/// Longer than any test of these takes.
const NEVER: Duration = Duration::from_secs(300);

/// A process of the cluster.
struct Process {
    node: ClusterNode,
    server: JoinHandle<()>,
}

/// A cluster of three voters that all have everything.
pub(crate) struct Cluster {
    /// Where they listen; the first leads.
    pub(crate) addresses: Vec<String>,
    processes: Vec<Process>,
}

/// Runs `body` with three processes of a cluster, on one thread with them.
pub(crate) fn served_by_three<T>(body: impl AsyncFnOnce(&Cluster) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let cluster = Cluster::start().await;
        let output = body(&cluster).await;
        // All at once: whoever would be the last to close would wait for somebody to hand over to.
        let closing = cluster.processes.iter().map(|process| process.node.close());
        let closed = futures_util::future::join_all(closing).await;
        cluster.processes.iter().for_each(|process| process.server.abort());
        closed.into_iter().for_each(|closed| closed.expect("it closes"));
        output
    })
}

impl Cluster {
    async fn start() -> Cluster {
        let mut cluster = Cluster { addresses: Vec::new(), processes: Vec::new() };
        for seed in 0..3 {
            cluster.add(seed).await;
        }
        let whole = async {
            while !cluster.processes.iter().all(|process| process.node.is_complete() && process.voters() == 3) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(NEVER, whole).await.expect("three processes become three voters with all data");
        cluster
    }

    async fn add(&mut self, seed: u64) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has an address").to_string();
        let transport = Arc::new(TokioRuntime::new(tokio::runtime::Handle::current(), seed));
        let doors = Doors {
            env: Env { fs: Arc::new(SimFileSystem::new()), ..Env::real() },
            network: Arc::new(RpcNetwork::new(Arc::clone(&transport))),
            runtime: transport,
        };
        let beginning = match self.addresses.first() {
            None => Beginning::Found,
            Some(first) => Beginning::Join(vec![first.clone()]),
        };
        let here = Peer { address: address.clone(), zone: String::new() };
        let node = ClusterNode::open(doors, "/db".as_ref(), options(), here, beginning).await.expect("it opens");
        let server = tokio::spawn(serve(listener, node.endpoint(), ServeOptions::default(), std::future::pending()));
        self.addresses.push(address);
        self.processes.push(Process { node, server });
    }
}

impl Process {
    fn voters(&self) -> usize {
        self.node.group().voters.len()
    }
}

fn options() -> ClusterOptions {
    let tiny = NodeOptions::tiny();
    let mut options = ClusterOptions {
        storage: tiny.storage,
        coordinator: tiny.coordinator,
        coordinator_wait: NEVER,
        ..ClusterOptions::default()
    };
    options.log.election_timeout = NEVER;
    options.log.append_timeout = NEVER;
    options
}
