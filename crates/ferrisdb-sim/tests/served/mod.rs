//! A node served over a socket, all within this process: the second deployment of the same tests.

pub(crate) mod cluster;

use std::sync::Arc;

use ferrisdb_core::Runtime;
use ferrisdb_rpc::{Client, ClientOptions, ServeOptions, TokioRuntime, serve};
use ferrisdb_server::{Node, NodeOptions};
use ferrisdb_storage::Env;
use ferrisdb_storage::fs::sim::SimFileSystem;

/// A database in memory, on real threads.
pub(crate) fn node_in_memory() -> Arc<Node> {
    let env = Env { fs: Arc::new(SimFileSystem::new()), ..Env::real() };
    Arc::new(Node::open(env, "/db", NodeOptions::tiny()).expect("it opens"))
}

/// Runs `body` with the address of a server of `node`, on one thread with the server.
pub(crate) fn served<T>(node: &Arc<Node>, body: impl AsyncFnOnce(String) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has an address").to_string();
        let endpoint = Arc::<Node>::clone(node);
        let server = tokio::spawn(serve(listener, endpoint, ServeOptions::default(), std::future::pending()));
        let output = body(address).await;
        server.abort();
        output
    })
}

/// A connection, and the runtime for the database over it.
pub(crate) async fn connect(address: &str) -> (Client, Arc<dyn Runtime>) {
    let client = Client::connect(address, ClientOptions::default()).await.expect("it connects");
    (client, Arc::new(TokioRuntime::current().expect("within a runtime")))
}
