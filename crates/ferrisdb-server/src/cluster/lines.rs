//! The ways to the other processes: [`Network`] is the door, [`Lines`] keeps what it opened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Code, Error, Result, Runtime};
use ferrisdb_rpc::{Client, ClientOptions, Endpoint, TokioRuntime};
use futures_util::future::{Either, select};

use super::messages::Message;
use crate::log::replicated::{Peer, Peers, ProcessId};
use crate::signal::{lock, reply};

/// A process from which nothing comes for twice so long is taken for gone, whether or not somebody waits for it.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// One that says nothing for so long is not waited for: about as long as an election takes.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Nor one that takes a connection and says no hello.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// One that is gone is tried again after so long at most.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// For so long a question waits for a line that was lost. One that is up again is back in less; whoever asks one that is not looks for another process, or
/// asks again.
const OUTAGE_MAX: Duration = Duration::from_millis(100);

/// Opens ways to other processes: over sockets, or in a simulated network.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// The process at `address` (`HOST:PORT`) as an endpoint that takes this one for a peer. It lives through losses of the connection by itself;
    /// only the first attempt may fail. `cluster_id`: the only cluster that is wanted.
    fn connect(&self, address: &str, cluster_id: Option<[u8; 16]>) -> BoxFuture<Result<Arc<dyn Endpoint>>>;
}

/// How a connection to another process is.
pub fn line_options(cluster_id: Option<[u8; 16]>) -> ClientOptions {
    ClientOptions {
        is_peer: true,
        cluster_id,
        keep_alive: KEEP_ALIVE,
        silence_max: SILENCE_MAX,
        connect_timeout: CONNECT_TIMEOUT,
        outage_max: OUTAGE_MAX,
        backoff_max: BACKOFF_MAX,
        ..ClientOptions::default()
    }
}

/// Ways over TCP.
#[derive(Debug)]
pub struct RpcNetwork {
    runtime: Arc<TokioRuntime>,
}

impl RpcNetwork {
    /// The connections live on `runtime`.
    pub fn new(runtime: Arc<TokioRuntime>) -> RpcNetwork {
        RpcNetwork { runtime }
    }
}

impl Network for RpcNetwork {
    fn connect(&self, address: &str, cluster_id: Option<[u8; 16]>) -> BoxFuture<Result<Arc<dyn Endpoint>>> {
        let (answer, answered) = reply(Code::ConnectionFailed);
        let address = address.to_owned();
        let connecting = async move {
            let connected = Client::connect(&address, line_options(cluster_id)).await;
            answer.send(connected.map(|client| Arc::new(client) as Arc<dyn Endpoint>));
        };
        self.runtime.spawn("connect", Box::pin(connecting));
        Box::pin(answered)
    }
}

/// What a way is for: what fills one does not hold up the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// Messages of the log.
    Log,
    /// Questions of clients, and all else.
    Questions,
}

/// Open ways, by purpose and address.
#[derive(Debug)]
pub(super) struct Lines {
    network: Arc<dyn Network>,
    cluster_id: Option<[u8; 16]>,
    open: Mutex<BTreeMap<(Line, String), OpenLine>>,
}

struct OpenLine(Arc<dyn Endpoint>);

impl fmt::Debug for OpenLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("open")
    }
}

impl Lines {
    pub(super) fn new(network: Arc<dyn Network>, cluster_id: Option<[u8; 16]>) -> Lines {
        Lines { network, cluster_id, open: Mutex::default() }
    }

    /// The way to `address`, opened if there is none.
    pub(super) async fn to(&self, line: Line, address: &str) -> Result<Arc<dyn Endpoint>> {
        let key = (line, address.to_owned());
        if let Some(open) = lock(&self.open).get(&key) {
            return Ok(Arc::clone(&open.0));
        }
        let opened = self.network.connect(address, self.cluster_id).await?;
        // Two may have opened it at once: either will do.
        lock(&self.open).insert(key, OpenLine(Arc::clone(&opened)));
        Ok(opened)
    }
}

/// Carries the log's messages.
pub(super) struct LogLines {
    pub(super) lines: Arc<Lines>,
    pub(super) runtime: Arc<dyn Runtime>,
}

impl fmt::Debug for LogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLines").field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl Peers for LogLines {
    fn ask(&self, to: ProcessId, peer: &Peer, message: Bytes, deadline: Duration) -> BoxFuture<Result<Bytes>> {
        let (lines, address) = (Arc::clone(&self.lines), peer.address.clone());
        let deadline = self.runtime.sleep(deadline);
        Box::pin(async move {
            let asking = async {
                let endpoint = lines.to(Line::Log, &address).await?;
                endpoint.message(Message::Raft { to, message }.encode()).await
            };
            match select(std::pin::pin!(asking), deadline).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => Err(Error::with(
                    Code::ConnectionFailed,
                    format!("process {to} at {address} did not answer in time"),
                )),
            }
        })
    }
}
