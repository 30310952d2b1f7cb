//! Random programs of the whole API on the real client, compared with the model step by step: over a node in this process, in a simulation;
//! over a connection to a server; and over connections to the processes of a cluster.
//!
//! `FERRISDB_ORACLE_SEED` replays one seed of the simulation; `FERRISDB_ORACLE_STEPS`, `FERRISDB_ORACLE_SERVED_STEPS` and
//! `FERRISDB_ORACLE_CLUSTER_STEPS` set how many steps there are in all. A million steps served, in place of a tenth of that, are less than a minute:
//!
//! ```text
//! $ FERRISDB_ORACLE_SERVED_STEPS=1000000 cargo test -p ferrisdb-sim --test oracle the_served -- --nocapture
//! Report { steps: 1000000, commits: 31008, conflicts: 22034, errors: 168291, rows: 169032 }
//! test result: ok. 1 passed; ... finished in 43.12s
//! ```

#![expect(
    clippy::print_stdout,
    reason = "figures of a run, and where `cargo xtask planted-bugs` reads when a bug was found"
)]

mod served;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, ManualClock, Runtime};
use ferrisdb_server::{JobRuntime, Node, NodeOptions};
use ferrisdb_sim::oracle::{self, ClientSubject, Mismatch, Report};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::SimFileSystem;

/// One run: everything on this thread, on a simulated disk and clock, in an order that the seed decides.
fn run(seed: u64, steps: u64) -> Result<Report, Box<Mismatch>> {
    let clock = Arc::new(ManualClock::new());
    let spawner = Arc::new(StepSpawner::with_seed(Arc::clone(&clock), seed));
    let env = Env {
        fs: Arc::new(SimFileSystem::new()),
        clock,
        spawner: Arc::<StepSpawner>::clone(&spawner),
        entropy: Arc::new(SeededEntropy::new(seed)),
    };
    let runtime = Arc::new(JobRuntime::new(env.clone()));
    let node = Arc::new(Node::open(env.clone(), "/db", NodeOptions::tiny()).expect("it opens"));
    let db = Database::new(Arc::<Node>::clone(&node), Arc::<JobRuntime>::clone(&runtime), DatabaseOptions::default());
    let mut subject = ClientSubject::new(db, runtime).pausing(PAUSE);
    let mut report = None;
    {
        let mut program = pin!(async { report = Some(oracle::run(&mut subject, seed, steps).await) });
        env.spawner.block_on(program.as_mut());
    }
    let report = report.expect("the program ended");
    drop((subject, node));
    spawner.drop_jobs();
    report
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")))
}

/// Longer than a version is readable that no snapshot holds. On a clock that nobody waits for.
const PAUSE: Duration = Duration::from_secs(12);

const STEPS_OF_A_SEED: u64 = 5_000;

/// Programs of many seeds, one after the other.
fn run_all(steps: u64, mut run: impl FnMut(u64) -> Result<Report, Box<Mismatch>>) {
    let mut total = Report::default();
    for seed in 0..steps.div_ceil(STEPS_OF_A_SEED) {
        let report = run(seed).unwrap_or_else(|mismatch| {
            // `cargo xtask planted-bugs` reads this number.
            panic!("{mismatch}\nfound after {} steps", total.steps + mismatch.step + 1)
        });
        total.steps += report.steps;
        total.commits += report.commits;
        total.conflicts += report.conflicts;
        total.errors += report.errors;
        total.rows += report.rows;
    }
    println!("{total:?}");
    assert!(
        total.commits > total.steps / 100 && total.conflicts > total.steps / 1000,
        "programs that test little: {total:?}"
    );
}

#[test]
fn the_client_is_as_the_contract_says() {
    if let Some(seed) = number("FERRISDB_ORACLE_SEED") {
        let report = run(seed, STEPS_OF_A_SEED).unwrap_or_else(|mismatch| panic!("{mismatch}"));
        println!("seed {seed}: {report:?}");
        return;
    }
    let steps = number("FERRISDB_ORACLE_STEPS").unwrap_or(1_000_000);
    run_all(steps, |seed| run(seed, STEPS_OF_A_SEED));
}

#[test]
fn the_served_client_is_as_the_contract_says() {
    let steps = number("FERRISDB_ORACLE_SERVED_STEPS").unwrap_or(100_000);
    run_all(steps, |seed| {
        let node = served::node_in_memory();
        let report = served::served(&node, async |address| {
            let (endpoint, runtime) = served::connect(&address).await;
            let hasty = Arc::new(Hasty(Arc::clone(&runtime)));
            let db = Database::new(Arc::new(endpoint), hasty, DatabaseOptions::default());
            oracle::run(&mut ClientSubject::new(db, runtime), seed, STEPS_OF_A_SEED).await
        });
        node.close_blocking().expect("it closes");
        report
    });
}

/// Three processes, and a client of each in turn: two of three clients read what the leader has told another process.
#[test]
fn the_client_of_a_cluster_is_as_the_contract_says() {
    let steps = number("FERRISDB_ORACLE_CLUSTER_STEPS").unwrap_or(45_000);
    run_all(steps, |seed| {
        served::cluster::served_by_three(async |cluster| {
            let asked = usize::try_from(seed % 3).expect("it is below three");
            let (endpoint, runtime) = served::connect(&cluster.addresses[asked]).await;
            let hasty = Arc::new(Hasty(Arc::clone(&runtime)));
            let db = Database::new(Arc::new(endpoint), hasty, DatabaseOptions::default());
            oracle::run(&mut ClientSubject::new(db, runtime), seed, STEPS_OF_A_SEED).await
        })
    });
}

/// A runtime on which nobody waits long: what is tested is not the length of a pause.
struct Hasty(Arc<dyn Runtime>);

impl Clock for Hasty {
    fn now(&self) -> Duration {
        self.0.now()
    }
}

impl Runtime for Hasty {
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.0.sleep(duration / 100)
    }

    fn spawn(&self, name: &str, task: BoxFuture<()>) {
        self.0.spawn(name, task);
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}
