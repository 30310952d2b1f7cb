//! Random programs of the whole API on the real client over a node in this process, compared with the model step by step.
//!
//! `FERRISDB_ORACLE_SEED` replays one seed; `FERRISDB_ORACLE_STEPS` sets how many steps there are in all.

use std::pin::pin;
use std::sync::Arc;

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::ManualClock;
use ferrisdb_rpc::Endpoint as _;
use ferrisdb_server::{JobRuntime, Node, NodeOptions};
use ferrisdb_sim::oracle::{self, ClientSubject, Report};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::SeededEntropy;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::fs::sim::SimFileSystem;

/// One run: everything on this thread, on a simulated disk and clock, in an order that the seed decides.
fn run(seed: u64, steps: u64) -> Report {
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
    let mut subject = ClientSubject::new(db, runtime);
    let mut report = None;
    {
        let mut program = pin!(async { report = Some(oracle::run(&mut subject, seed, steps).await) });
        env.spawner.block_on(program.as_mut());
    }
    report.expect("the program ended").unwrap_or_else(|mismatch| {
        let status = node.status().try_now().expect("the status is there at once");
        panic!("{mismatch}\nstatus: {status:?}\njobs: {:?}", spawner.jobs())
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")))
}

#[test]
fn the_client_is_as_the_contract_says() {
    const STEPS_OF_A_SEED: u64 = 5_000;
    let steps = number("FERRISDB_ORACLE_STEPS").unwrap_or(1_000_000);
    if let Some(seed) = number("FERRISDB_ORACLE_SEED") {
        println!("seed {seed}: {:?}", run(seed, STEPS_OF_A_SEED));
        return;
    }
    let mut total = Report::default();
    for seed in 0..steps.div_ceil(STEPS_OF_A_SEED) {
        let report = run(seed, STEPS_OF_A_SEED);
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
