//! Histories of many concurrent clients on a node, certified strictly serializable: in a simulation, where a seed decides every order, with lost
//! answers and power failures; and on real threads and a real disk.
//!
//! `FERRISDB_HISTORY_SEED` replays one seed; `FERRISDB_HISTORY_SEEDS` sets how many each test runs.

#![expect(
    clippy::print_stdout,
    reason = "figures of a run, and where `cargo xtask planted-bugs` reads when a bug was found"
)]

mod served;

use std::cell::RefCell;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::{ManualClock, Random, Runtime as _, SplitMix64};
use ferrisdb_rpc::Endpoint;
use ferrisdb_server::log::LocalLogOptions;
use ferrisdb_server::{JobRuntime, Node, NodeOptions};
use ferrisdb_sim::history::Certificate;
use ferrisdb_sim::history::unreliable::Unreliable;
use ferrisdb_sim::history::workload::{Recorder, certified, client, everything};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};

/// What a run does to the database.
#[derive(Debug, Clone, Copy)]
struct Plan {
    clients: u64,
    transactions: u32,
    /// One commit in so many loses its answer; 0: none.
    loses_one_in: u64,
    /// So often the power fails.
    crashes: u32,
}

/// A simulated machine with everything on one thread.
struct Simulation {
    env: Env,
    spawner: Arc<StepSpawner>,
    runtime: Arc<JobRuntime>,
    disk: RefCell<SimFileSystem>,
    options: NodeOptions,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let clock = Arc::new(ManualClock::new());
        let spawner = Arc::new(StepSpawner::with_seed(Arc::clone(&clock), seed));
        let disk = SimFileSystem::new();
        let env = Env {
            fs: Arc::new(disk.clone()),
            clock,
            spawner: Arc::<StepSpawner>::clone(&spawner),
            entropy: Arc::new(SeededEntropy::new(seed)),
        };
        let runtime = Arc::new(JobRuntime::new(env.clone()));
        // An engine that flushes all the time, or one that has everything from the log after a crash.
        let options = if seed.is_multiple_of(2) {
            NodeOptions::tiny()
        } else {
            NodeOptions { log: LocalLogOptions::tiny(), ..NodeOptions::default() }
        };
        Simulation { env, spawner, runtime, disk: RefCell::new(disk), options }
    }

    fn open(&self) -> Arc<Node> {
        let env = Env { fs: Arc::new(self.disk.borrow().clone()), ..self.env.clone() };
        Arc::new(Node::open(env, "/db", self.options.clone()).expect("it opens"))
    }

    /// The power fails: what was not synced may be lost, and the old process touches nothing any more.
    fn crash(&self, mode: CrashMode) {
        let after = self.disk.borrow().fork_crashed(mode);
        self.disk.replace(after).halt();
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut output = None;
        let waiting = std::future::poll_fn(|context| future.as_mut().poll(context).map(|ready| output = Some(ready)));
        self.env.spawner.block_on(pin!(waiting));
        output.expect("it is ready")
    }

    /// Up to so many steps; where nothing can run, time goes on.
    fn steps(&self, steps: u64, mut is_over: impl FnMut() -> bool) {
        for _ in 0..steps {
            if is_over() {
                return;
            }
            if !self.spawner.step_one() {
                self.wait(self.runtime.sleep(Duration::from_millis(1)));
            }
        }
    }
}

fn simulate(seed: u64, plan: Plan) -> Certificate {
    let mut random = SplitMix64::new(seed);
    let simulation = Simulation::new(random.next_u64());
    let runtime = Arc::clone(&simulation.runtime);
    let mut node = simulation.open();
    let way = Unreliable::new(Arc::<Node>::clone(&node), Arc::<JobRuntime>::clone(&runtime), seed, plan.loses_one_in);
    let way = Arc::new(way);
    let recorder = Arc::new(Recorder::default());
    let running = Arc::new(AtomicUsize::new(0));
    for _ in 0..plan.clients {
        let options = DatabaseOptions::default();
        let db = Database::new(Arc::<Unreliable>::clone(&way), Arc::<JobRuntime>::clone(&runtime), options);
        running.fetch_add(1, Ordering::SeqCst);
        let (running, recorder) = (Arc::clone(&running), Arc::clone(&recorder));
        let (of, seed) = (Arc::<JobRuntime>::clone(&runtime), random.next_u64());
        let task = async move {
            client(db, of, recorder, seed, plan.transactions).await;
            running.fetch_sub(1, Ordering::SeqCst);
        };
        runtime.spawn("client", Box::pin(task));
    }
    let is_over = || running.load(Ordering::SeqCst) == 0;
    for _ in 0..plan.crashes {
        simulation.steps(100 + random.below(4_000), is_over);
        let mode = match random.below(4) {
            0 => CrashMode::NothingLost,
            1 => CrashMode::UnsyncedLost,
            2 => CrashMode::RandomSubset { seed: random.next_u64() },
            _ => CrashMode::OldestFirst { seed: random.next_u64() },
        };
        simulation.crash(mode);
        way.lead_to(None);
        drop(node);
        // Clients notice that it is gone.
        simulation.steps(random.below(300), is_over);
        node = simulation.open();
        way.lead_to(Some(Arc::<Node>::clone(&node)));
    }
    simulation.steps(u64::MAX, is_over);
    let direct: Arc<dyn Endpoint> = Arc::<Node>::clone(&node);
    let db = Database::new(direct, runtime, DatabaseOptions::default());
    let end = simulation.wait(everything(&db)).expect("it reads");
    let certificate = certified(&format!("seed {seed} of {plan:?}"), &recorder, &end);
    drop((db, way));
    drop(node);
    simulation.spawner.drop_jobs();
    certificate
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")))
}

fn add(total: &mut Certificate, one: Certificate) {
    total.committed += one.committed;
    total.committed_unknown += one.committed_unknown;
    total.aborted += one.aborted;
    total.read_only += one.read_only;
    total.reads += one.reads;
    total.rows += one.rows;
}

fn simulate_all(seeds: u64, plan: Plan) -> Certificate {
    let mut total = Certificate::default();
    if let Some(seed) = number("FERRISDB_HISTORY_SEED") {
        println!("seed {seed}: {:?}", simulate(seed, plan));
        return total;
    }
    let seeds = number("FERRISDB_HISTORY_SEEDS").unwrap_or(seeds);
    for seed in 0..seeds {
        // `cargo xtask planted-bugs` reads this number.
        println!("history {}", seed + 1);
        add(&mut total, simulate(seed, plan));
    }
    println!("{seeds} seeds of {plan:?}: {total:?}");
    assert!(
        total.committed as u64 > 20 * seeds && total.aborted as u64 > seeds,
        "histories that test little: {total:?}"
    );
    total
}

#[test]
fn concurrent_clients_are_strictly_serializable() {
    simulate_all(300, Plan { clients: 12, transactions: 12, loses_one_in: 0, crashes: 0 });
}

/// A transaction whose answer is lost has happened once or not at all, and its client learns which.
#[test]
fn lost_answers_are_found_again() {
    simulate_all(300, Plan { clients: 8, transactions: 12, loses_one_in: 3, crashes: 0 });
}

/// What was acknowledged before a power failure is there after it, and what was under way is there as a whole or not at all.
#[test]
fn power_failures_lose_nothing_acknowledged() {
    let total = simulate_all(300, Plan { clients: 8, transactions: 25, loses_one_in: 10, crashes: 2 });
    if number("FERRISDB_HISTORY_SEED").is_none() {
        assert!(total.committed_unknown > 0, "nobody was in doubt: {total:?}");
    }
}

/// The same seed gives the same history.
#[test]
fn a_seed_replays() {
    let plan = Plan { clients: 6, transactions: 10, loses_one_in: 5, crashes: 1 };
    assert_eq!(simulate(7, plan), simulate(7, plan));
}

/// Real threads, a real disk, and twice a close and a reopen.
#[test]
fn threads_are_strictly_serializable() {
    const CLIENTS: u64 = 8;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let recorder = Arc::new(Recorder::default());
    for life in 0..3 {
        let env = Env::real();
        let runtime = Arc::new(JobRuntime::new(env.clone()));
        let node = Arc::new(Node::open(env, dir.path(), NodeOptions::tiny()).expect("it opens"));
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (of, recorder) = (Arc::<JobRuntime>::clone(&runtime), Arc::clone(&recorder));
                let way: Arc<dyn Endpoint> = Arc::<Node>::clone(&node);
                let way = Unreliable::new(way, Arc::<JobRuntime>::clone(&runtime), number, 20);
                scope.spawn(move || {
                    let db = Database::new(Arc::new(way), Arc::<JobRuntime>::clone(&of), DatabaseOptions::default());
                    futures_executor::block_on(client(db, of, recorder, life * CLIENTS + number, 60));
                });
            }
        });
        let db = Database::new(Arc::<Node>::clone(&node), runtime, DatabaseOptions::default());
        let end = futures_executor::block_on(everything(&db)).expect("it reads");
        let certificate = certified(&format!("threads, life {life}"), &recorder, &end);
        println!("{certificate:?}");
        drop(db);
        // Commits that nobody waits for may still hold the node.
        node.close_blocking().expect("it closes");
    }
}

/// The same clients over connections to a server.
#[test]
fn served_clients_are_strictly_serializable() {
    const CLIENTS: u64 = 8;
    let node = served::node_in_memory();
    let recorder = Arc::new(Recorder::default());
    let certificate = served::served(&node, async |address| {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let (endpoint, runtime) = served::connect(&address).await;
            let way = Unreliable::new(Arc::new(endpoint), Arc::clone(&runtime), number, 20);
            let db = Database::new(Arc::new(way), Arc::clone(&runtime), DatabaseOptions::default());
            clients.push(tokio::spawn(client(db, runtime, Arc::clone(&recorder), number, 100)));
        }
        for client in clients {
            client.await.expect("a client does not panic");
        }
        let (endpoint, runtime) = served::connect(&address).await;
        let end = everything(&Database::new(Arc::new(endpoint), runtime, DatabaseOptions::default())).await;
        certified("served", &recorder, &end.expect("it reads"))
    });
    println!("{certificate:?}");
    assert!(certificate.committed > 100, "a history that tests little: {certificate:?}");
    node.close_blocking().expect("it closes");
}

/// The same clients, each of one of three processes of a cluster.
#[test]
fn clients_of_a_cluster_are_strictly_serializable() {
    const CLIENTS: u64 = 9;
    let recorder = Arc::new(Recorder::default());
    let certificate = served::cluster::served_by_three(async |cluster| {
        let mut clients = Vec::new();
        for (number, address) in (0..CLIENTS).zip(cluster.addresses.iter().cycle()) {
            let (endpoint, runtime) = served::connect(address).await;
            let way = Unreliable::new(Arc::new(endpoint), Arc::clone(&runtime), number, 20);
            let db = Database::new(Arc::new(way), Arc::clone(&runtime), DatabaseOptions::default());
            clients.push(tokio::spawn(client(db, runtime, Arc::clone(&recorder), number, 100)));
        }
        for client in clients {
            client.await.expect("a client does not panic");
        }
        let mut certificate = None;
        for address in &cluster.addresses {
            let (endpoint, runtime) = served::connect(address).await;
            let end = everything(&Database::new(Arc::new(endpoint), runtime, DatabaseOptions::default())).await;
            certificate = Some(certified(&format!("a cluster, at {address}"), &recorder, &end.expect("it reads")));
        }
        certificate.expect("there are three")
    });
    println!("{certificate:?}");
    assert!(certificate.committed > 100, "a history that tests little: {certificate:?}");
}
