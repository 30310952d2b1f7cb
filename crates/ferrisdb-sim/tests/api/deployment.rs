//! Where a case runs: [`Deployment`], and how each kind of it is brought up.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};

use ferrisdb_client::{Database, DatabaseOptions, RangeOptions, TransactionOption};
use ferrisdb_core::{Bytes, KeyRange, Mutation, MutationKind, Runtime, Version};
use ferrisdb_rpc::{ClientOptions, Endpoint, Router, TokioRuntime};
use ferrisdb_server::{Node, NodeOptions};
use ferrisdb_storage::Env;
use futures_executor::block_on;
use tokio::runtime::Handle;

use crate::servers;

/// An empty database for one case: ways to it, and nothing of where it is.
pub(crate) struct Deployment {
    endpoint: Arc<dyn Endpoint>,
    runtime: Arc<dyn Runtime>,
    other: Database,
    addresses: Vec<String>,
}

/// What a case is.
pub(crate) type Case = fn(&Deployment);

impl Deployment {
    fn new((endpoint, runtime): Way, other: Way, addresses: &[String]) -> Deployment {
        let other = Database::new(other.0, other.1, DatabaseOptions::default());
        Deployment { endpoint, runtime, other, addresses: addresses.to_vec() }
    }

    /// A client of the database.
    pub(crate) fn database(&self) -> Database {
        self.database_with(DatabaseOptions::default())
    }

    pub(crate) fn database_with(&self, options: DatabaseOptions) -> Database {
        Database::new(Arc::clone(&self.endpoint), Arc::clone(&self.runtime), options)
    }

    /// Where the database says that it is: the processes of a cluster. A node does not know who serves it (`ferrisdb serve` tells its clients).
    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Somebody else commits this, whatever is locked; of a cluster, a client of another process.
    pub(crate) fn write(&self, mutations: Vec<Mutation>) -> Version {
        block_on(self.writing(mutations))
    }

    /// [`write`](Self::write) within a future.
    pub(crate) async fn writing(&self, mutations: Vec<Mutation>) -> Version {
        let tx = self.other.create_transaction();
        tx.set_option(&TransactionOption::AccessSystemKeys);
        tx.set_option(&TransactionOption::LockAware);
        for mutation in mutations {
            match mutation.kind {
                MutationKind::Set => tx.set(mutation.key, mutation.value),
                MutationKind::ClearRange => tx.clear_range(mutation.key, mutation.value),
                kind => tx.atomic_op(mutation.key, mutation.value, kind),
            }
        }
        tx.commit().await.expect("a blind write has nothing to conflict with");
        tx.get_committed_version().expect("it wrote something")
    }

    /// All rows that are not the system's, as somebody else sees them.
    pub(crate) fn rows(&self) -> Vec<(Bytes, Bytes)> {
        let rows = block_on(self.other.run(async |tx| {
            tx.set_option(&TransactionOption::ReadLockAware);
            tx.get_ranges(RangeOptions::from(KeyRange::new("", &b"\xff"[..]))).collect().await
        }));
        rows.expect("it reads").into_iter().map(|row| (row.key, row.value)).collect()
    }

    /// Nothing is there, and nobody has it locked. The system's own keys (`\xff\x02`...) stay.
    fn clear(&self) {
        self.write(vec![
            Mutation::clear_range("", &b"\xff\x02"[..]),
            Mutation::clear_range(&b"\xff\x03"[..], &b"\xff\xff"[..]),
        ]);
    }
}

/// What a client is made from.
type Way = (Arc<dyn Endpoint>, Arc<dyn Runtime>);

fn embedded(node: &Arc<Node>, case: Case) {
    let way = || -> Way { (Arc::<Node>::clone(node), Arc::new(node.runtime().clone())) };
    case(&Deployment::new(way(), way(), &[]));
}

pub(crate) fn in_memory(case: Case) {
    let node = servers::node_in_memory();
    embedded(&node, case);
    node.close_blocking().expect("it closes");
}

pub(crate) fn in_a_directory(case: Case) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let open = || Arc::new(Node::open(Env::real(), directory.path(), NodeOptions::tiny()).expect("it opens"));
    let rows = |node: &Arc<Node>| {
        let way = || -> Way { (Arc::<Node>::clone(node), Arc::new(node.runtime().clone())) };
        Deployment::new(way(), way(), &[]).rows()
    };
    let node = open();
    embedded(&node, case);
    let left = rows(&node);
    node.close_blocking().expect("it closes");
    drop(node);
    let node = open();
    assert_eq!(rows(&node), left, "what the case has left is there after a reopen");
    node.close_blocking().expect("it closes");
}

/// Servers in this process that outlive a case.
struct Servers {
    addresses: Vec<String>,
    /// The thread on which they are, and on which connections to them are too.
    thread: Handle,
}

impl Servers {
    /// Starts them on a thread of their own, which ends with the process: there is no last test to end it.
    fn start(serve: impl FnOnce(Started) + Send + 'static) -> Mutex<Servers> {
        let (started, servers) = mpsc::channel();
        #[expect(clippy::disallowed_methods, reason = "servers in real time, beside the threads of the tests")]
        std::thread::spawn(move || serve(Started(started)));
        Mutex::new(servers.recv().expect("they start"))
    }

    /// Runs a case, alone, on a database that holds nothing.
    fn run(servers: &Mutex<Servers>, case: Case) {
        // A case that failed leaves nothing that the next one would not clear.
        let servers = servers.lock().unwrap_or_else(PoisonError::into_inner);
        let list = servers.addresses.join(",");
        // Of several, another process than the one that leads.
        let last = servers.addresses.last().expect("there is one").clone();
        let connecting = servers.thread.spawn(async move {
            let router = Router::connect(&list, ClientOptions::default()).await.expect("it connects");
            let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::current().expect("within a runtime"));
            let (client, others_runtime) = servers::connect(&last).await;
            ((Arc::new(router) as Arc<dyn Endpoint>, runtime), (Arc::new(client) as Arc<dyn Endpoint>, others_runtime))
        });
        let (way, other) = block_on(connecting).expect("it does not panic");
        let is_cluster = servers.addresses.len() > 1;
        let deployment = Deployment::new(way, other, if is_cluster { &servers.addresses } else { &[] });
        deployment.clear();
        case(&deployment);
    }
}

/// Tells the tests that servers are there.
struct Started(mpsc::Sender<Servers>);

impl Started {
    /// Called on the servers' thread; they serve for as long as this is awaited.
    async fn at(self, addresses: Vec<String>) {
        self.0.send(Servers { addresses, thread: Handle::current() }).expect("a test waits for it");
        std::future::pending().await
    }
}

pub(crate) fn served(case: Case) {
    static SERVER: OnceLock<Mutex<Servers>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        Servers::start(|started| {
            let node = servers::node_in_memory();
            servers::served(&node, async |address| started.at(vec![address]).await);
        })
    });
    Servers::run(server, case);
}

pub(crate) fn cluster(case: Case) {
    static PROCESSES: OnceLock<Mutex<Servers>> = OnceLock::new();
    let processes = PROCESSES.get_or_init(|| {
        Servers::start(|started| {
            servers::cluster::served_by_three(async |cluster| started.at(cluster.addresses.clone()).await);
        })
    });
    Servers::run(processes, case);
}
