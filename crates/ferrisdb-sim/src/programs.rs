//! What runs on the hosts of a simulation: a [database](one_process) in one process, or [one of the processes](one_of_many) of a cluster.

use std::fmt;
use std::future::{pending, poll_fn};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Code, Error, Runtime};
use ferrisdb_rpc::{Client, ClientOptions, Endpoint, ServeOptions, TokioRuntime};
use ferrisdb_server::alone::{Alone, Turn};
use ferrisdb_server::cluster::{self, Beginning, ClusterNode, ClusterOptions, Peer};
use ferrisdb_server::{Node, NodeOptions};
use ferrisdb_storage::fs::FileSystem;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};
use ferrisdb_storage::inspect::{Cell, Sink};
use ferrisdb_storage::wal::{self, inspect_segment};
use ferrisdb_storage::{Env, inspect};
use tokio::runtime::Handle;

use crate::members::Members;
use crate::world::network::Network;
use crate::world::trace::Trace;
use crate::world::{DIRECTORY, Doors, Ended, Process};

/// Where servers listen.
pub const PORT: u16 = 4500;
/// How often somebody looks whether the database still commits.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A whole database in one process, which ends when it commits nothing any more: whoever runs it has to look at the disk then, and start it again.
pub fn one_process(options: NodeOptions) -> impl Process {
    move |doors: Doors| serve_node(doors, options.clone())
}

async fn serve_node(doors: Doors, options: NodeOptions) -> Ended {
    let said = |error: Error| error.to_string();
    let node = Arc::new(Node::open(doors.env.clone(), &doors.directory, options).map_err(said)?);
    doors.catch_up().await;
    serve_until(&doors, Arc::<Node>::clone(&node), || node.failure()).await
}

/// Answers whoever asks, until the process has failed.
async fn serve_until(doors: &Doors, endpoint: Arc<dyn Endpoint>, mut failed: impl FnMut() -> Option<Error>) -> Ended {
    let listener = doors.network.listen(PORT).await.map_err(|error| error.to_string())?;
    let mut serving = pin!(ferrisdb_rpc::serve(listener, endpoint, ServeOptions::default(), pending()));
    let mut failing = pin!(async {
        loop {
            if let Some(failure) = failed() {
                break failure;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    poll_fn(|context| match failing.as_mut().poll(context) {
        Poll::Ready(failure) => Poll::Ready(Err(failure.to_string())),
        Poll::Pending => serving.as_mut().poll(context).map(Ok),
    })
    .await
}

/// How a process comes to be one of a cluster.
#[derive(Debug, Clone)]
pub enum Start {
    /// It founds the cluster, as `ferrisdb serve --cluster` does.
    Founds,
    /// It joins the others, from the moment on at which this is true.
    Joins(Rc<std::cell::Cell<bool>>),
    /// It is a database in one process, as of plain `ferrisdb serve`, and turns into the first one of a cluster when another one joins it.
    Alone(Box<NodeOptions>),
}

/// What a process of a cluster is started with.
#[derive(Debug, Clone)]
pub struct OfMany {
    /// How it is opened.
    pub options: ClusterOptions,
    /// How it begins.
    pub start: Start,
    /// The zone that it says it is in; empty: it says nothing.
    pub zone: String,
    /// The hosts of the others.
    pub others: Vec<String>,
    /// Where it says how it stands.
    pub members: Members,
    /// The shards that come to it are counted there, and what becomes of orders.
    pub trace: Trace,
}

/// One of the processes of a cluster. It ends when it has failed, as [`one_process`] does.
pub fn one_of_many(of_many: OfMany) -> impl Process {
    let is_founded = Rc::new(std::cell::Cell::new(matches!(of_many.start, Start::Joins(_))));
    let of_many = Rc::new(of_many);
    move |doors: Doors| serve_one_of_many(doors, Rc::clone(&of_many), Rc::clone(&is_founded))
}

async fn serve_one_of_many(doors: Doors, of_many: Rc<OfMany>, is_founded: Rc<std::cell::Cell<bool>>) -> Ended {
    let OfMany { options, start, zone, others, members, trace } = &*of_many;
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::new(Handle::current(), doors.seed));
    let network = Arc::new(PeerNetwork { doors_network: doors.network.clone(), seed: AtomicU64::new(doors.seed) });
    let of_node = cluster::Doors { env: doors.env.clone(), runtime, network };
    let here = Peer { address: format!("{}:{PORT}", doors.address), zone: zone.clone() };
    let mut arrived = 0;
    let mut look = |node: &ClusterNode| {
        members.note(&doors.address, node, trace);
        let before = std::mem::replace(&mut arrived, node.shards_arrived());
        // A process that became a new one begins to count anew.
        trace.add("shards that arrived", if arrived < before { arrived } else { arrived - before });
    };
    if let Start::Alone(of_alone) = start {
        // The directory says what it is. If that is gone with the disk, whoever starts it again says whom it is to join.
        let is_member =
            ClusterNode::is_in(doors.env.fs.as_ref(), &doors.directory).map_err(|error| error.to_string())?;
        is_founded.set(is_founded.get() || is_member);
        if !is_founded.get() {
            let node = Node::open(doors.env.clone(), &doors.directory, NodeOptions::clone(of_alone));
            let node = Arc::new(node.map_err(|error| error.to_string())?);
            doors.catch_up().await;
            let directory = doors.directory.clone();
            let turn = Turn { doors: of_node, directory, options: options.clone(), here: Ok(here) };
            let alone = Alone::new(node, turn);
            let looking = || {
                if alone.look(&mut look).is_some() && !is_founded.replace(true) {
                    trace.count("databases that were joined");
                }
                alone.failure()
            };
            return serve_until(&doors, alone.endpoint(), looking).await;
        }
    }
    if let Start::Joins(may_join) = start {
        while !may_join.get() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let addresses = || others.iter().map(|other| format!("{other}:{PORT}")).collect();
    let node = loop {
        let beginning = if !is_founded.get() { Beginning::Found } else { Beginning::Join(addresses()) };
        let opening = ClusterNode::open(of_node.clone(), &doors.directory, options.clone(), here.clone(), beginning);
        match opening.await {
            Ok(node) => {
                is_founded.set(true);
                break node;
            }
            // Nobody to join is there yet.
            Err(error) if error.code() == Code::ConnectionFailed => {}
            Err(error) => return Err(error.to_string()),
        }
    };
    doors.catch_up().await;
    let looking = || {
        look(&node);
        node.failure()
    };
    serve_until(&doors, node.endpoint(), looking).await
}

/// The way to other processes of the cluster, over the simulated network.
struct PeerNetwork {
    doors_network: Network,
    seed: AtomicU64,
}

impl fmt::Debug for PeerNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.doors_network.fmt(f)
    }
}

impl cluster::Network for PeerNetwork {
    fn connect(&self, address: &str, cluster_id: Option<[u8; 16]>) -> BoxFuture<Result<Arc<dyn Endpoint>, Error>> {
        let (connector, address) = (self.doors_network.connector(), address.to_owned());
        let seed = Some(self.seed.fetch_add(1, Ordering::Relaxed));
        let options = ClientOptions { seed, ..cluster::line_options(cluster_id) };
        let (answer, answered) = tokio::sync::oneshot::channel();
        // Its connection lives on the host's runtime, whoever asks.
        let connecting = async move {
            let connected = Client::connect_with(connector, &address, options).await;
            drop(answer.send(connected.map(|client| Arc::new(client) as Arc<dyn Endpoint>)));
        };
        drop(tokio::spawn(connecting));
        Box::pin(async move {
            let gone = |_| Error::with(Code::ConnectionFailed, "the host has died");
            answered.await.map_err(gone)?
        })
    }
}

/// The records of a process's replica of the log, where its disk says that they were synced: none, if it has no log that can be read.
pub(crate) fn synced_records(files: &SimFileSystem) -> Vec<(PathBuf, Range<u64>)> {
    let raft = Path::new(DIRECTORY).join("raft");
    let mut segments = files.files().into_iter().map(|(path, _)| path).filter(|path| path.parent() == Some(&raft));
    let header = segments.find_map(|path| inspect_segment(files, &path).ok()).map(|segment| segment.header());
    let Some(identity) = header.map(|header| header.identity) else { return Vec::new() };
    // A copy: who reads could otherwise meet what is injected.
    let copy: Arc<dyn FileSystem> = Arc::new(files.fork_crashed(CrashMode::NothingLost));
    wal::synced_records(&copy, &raft, identity).unwrap_or_default()
}

/// Checks what one of the processes of a cluster has on its disk, as `ferrisdb verify` does: who it is, its replica of the log, its tables.
///
/// # Errors
/// The first problem.
pub fn verify_process(files: &SimFileSystem) -> Result<(), String> {
    let copy = Env::sim(files.fork_crashed(CrashMode::NothingLost));
    let report = ClusterNode::verify(&copy, Path::new(DIRECTORY)).map_err(|error| error.to_string())?;
    let of_log = report.log.map(|log| log.problems).unwrap_or_default();
    if let Some(problem) = report.problems.iter().chain(&of_log).next() {
        return Err(problem.clone());
    }
    verify_tables(files)
}

/// Checks the tables of one of the processes of a cluster. One that has begun anew, and has not been let in yet when the run ends, has none.
///
/// # Errors
/// The first problem.
fn verify_tables(files: &SimFileSystem) -> Result<(), String> {
    let copy = Env::sim(files.fork_crashed(CrashMode::NothingLost));
    let storage = Path::new(DIRECTORY).join("storage");
    let files = copy.fs.list(&storage);
    if files.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, Vec::is_empty) {
        return Ok(());
    }
    let mut rows = Rows::default();
    let problems = inspect::verify(&copy, &storage, &mut rows);
    match problems {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("the tables: {}", rows.0.join("; "))),
        Err(error) => Err(format!("the tables: {error}")),
    }
}

/// Checks what [`one_process`] has on its disk, as `ferrisdb verify` does: every checksum, the order of keys, the manifest, the log.
///
/// # Errors
/// The first problem.
pub fn verify(files: &SimFileSystem) -> Result<(), String> {
    let copy = || Env::sim(files.fork_crashed(CrashMode::NothingLost));
    let report = Node::verify_log(copy(), DIRECTORY).map_err(|error| format!("the log: {error}"))?;
    if let Some(problem) = report.problems.first() {
        return Err(format!("the log: {problem}"));
    }
    verify_tables(files)
}

/// Keeps the rows of an inspection.
#[derive(Default)]
struct Rows(Vec<String>);

impl Sink for Rows {
    fn field(&mut self, _name: &'static str, _value: Cell<'_>) -> ferrisdb_storage::Result<()> {
        Ok(())
    }

    fn table(&mut self, _name: &'static str, _columns: &'static [&'static str]) -> ferrisdb_storage::Result<()> {
        Ok(())
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> ferrisdb_storage::Result<()> {
        let words: Vec<String> = cells.iter().map(ToString::to_string).collect();
        self.0.push(words.join(" "));
        Ok(())
    }
}
