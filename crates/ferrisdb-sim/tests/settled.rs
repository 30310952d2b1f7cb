//! What nobody knows and what nobody may do, over time: an outcome that is told to be unknown is final, and a lock holds until it is undone, whatever dies
//! meanwhile. In a simulation, where a seed decides every order.
//!
//! `FERRISDB_HISTORY_SEEDS` sets how many seeds each test runs.

#![expect(clippy::print_stdout, reason = "where `cargo xtask planted-bugs` reads when a bug was found")]

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_client::{Database, DatabaseOptions, TransactionOption};
use ferrisdb_core::{Code, ManualClock, MutationKind, Random, Runtime as _, SplitMix64};
use ferrisdb_rpc::Endpoint;
use ferrisdb_server::{JobRuntime, Node, NodeOptions};
use ferrisdb_sim::history::unreliable::Unreliable;
use ferrisdb_storage::Env;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::env::{SeededEntropy, Spawner as _};
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};

/// A simulated machine with everything on one thread.
struct Machine {
    disk: SimFileSystem,
    env: Env,
    spawner: Arc<StepSpawner>,
    runtime: Arc<JobRuntime>,
}

impl Machine {
    fn new(disk: SimFileSystem, seed: u64) -> Machine {
        let clock = Arc::new(ManualClock::new());
        let spawner = Arc::new(StepSpawner::with_seed(Arc::clone(&clock), seed));
        let env = Env {
            fs: Arc::new(disk.clone()),
            clock,
            spawner: Arc::<StepSpawner>::clone(&spawner),
            entropy: Arc::new(SeededEntropy::new(seed)),
        };
        let runtime = Arc::new(JobRuntime::new(env.clone()));
        Machine { disk, env, spawner, runtime }
    }

    fn open(&self) -> Arc<Node> {
        Arc::new(Node::open(self.env.clone(), "/db", NodeOptions::tiny()).expect("it opens"))
    }

    fn database(&self, way: Arc<dyn Endpoint>, options: DatabaseOptions) -> Database {
        Database::new(way, Arc::<JobRuntime>::clone(&self.runtime), options)
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut output = None;
        let waiting = std::future::poll_fn(|context| future.as_mut().poll(context).map(|ready| output = Some(ready)));
        self.spawner.block_on(pin!(waiting));
        output.expect("it is ready")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.spawner.drop_jobs();
    }
}

fn each_seed(seeds: u64, run: impl Fn(u64)) {
    let seeds = std::env::var("FERRISDB_HISTORY_SEEDS").map_or(seeds, |text| text.parse().expect("a number of seeds"));
    for seed in 0..seeds {
        // `cargo xtask planted-bugs` reads this number.
        println!("history {}", seed + 1);
        run(seed);
    }
}

/// Without commit ids, and with answers that are lost: whoever is told that nobody knows looks, and what he sees is how it stays.
#[test]
fn an_unknown_outcome_is_final() {
    const TRANSACTIONS: u64 = 40;
    each_seed(60, |seed| {
        let mut random = SplitMix64::new(seed);
        let machine = Machine::new(SimFileSystem::new(), random.next_u64());
        let node = machine.open();
        let runtime = Arc::<JobRuntime>::clone(&machine.runtime);
        let way = Unreliable::new(Arc::<Node>::clone(&node), runtime, random.next_u64(), 3);
        let db = machine
            .database(Arc::new(way), DatabaseOptions { automatic_idempotency: false, ..DatabaseOptions::default() });
        let direct = machine.database(Arc::<Node>::clone(&node), DatabaseOptions::default());
        let (mut seen, mut unknown) = (Vec::new(), 0);
        machine.wait(async {
            for number in 0..TRANSACTIONS {
                let key = format!("attempt {number}");
                let tx = db.create_transaction();
                match random.below(3) {
                    // Blind, or with a conflict that it has anyway, or with one elsewhere.
                    0 => {}
                    1 => drop(tx.get(&key).await.expect("it reads")),
                    _ => drop(tx.get("elsewhere").await.expect("it reads")),
                }
                tx.atomic_op(&key, 1u64.to_le_bytes(), MutationKind::Add);
                let result = tx.commit().await;
                let look = async || direct.run(async |tx| tx.get(&key).await).await.expect("it reads");
                let found = look().await;
                match result.map_err(|error| error.code()) {
                    Ok(()) => assert!(found.is_some(), "seed {seed}: {key} was acknowledged"),
                    Err(Code::CommitUnknownResult) => unknown += 1,
                    Err(code) => panic!("seed {seed}: {key}: {code}"),
                }
                seen.push((key, found));
            }
            // Longer than any message is under way.
            machine.runtime.sleep(Duration::from_secs(2)).await;
            for (key, found) in &seen {
                let now = direct.run(async |tx| tx.get(key).await).await.expect("it reads");
                assert_eq!(now, *found, "seed {seed}: {key} changed after its outcome was told");
            }
        });
        assert!(unknown > 0, "seed {seed}: nobody was in doubt");
    });
}

/// A database is locked when that was acknowledged, and until the unlock was, through crashes of all kinds.
#[test]
fn a_lock_outlives_the_process() {
    const ID: [u8; 16] = [7; 16];
    each_seed(40, |seed| {
        let mut random = SplitMix64::new(seed);
        let mut machine = Machine::new(SimFileSystem::new(), random.next_u64());
        let mut is_locked = false;
        for life in 0..8 {
            let node = machine.open();
            let db = machine.database(Arc::<Node>::clone(&node), DatabaseOptions::default());
            machine.wait(async {
                let told = db.locked_by().await.expect("it reads");
                assert_eq!(told, is_locked.then_some(ID), "seed {seed}, life {life}: what the key says");
                for _ in 0..random.below(4) {
                    let tx = db.create_transaction();
                    let begun = tx.get_read_version().await.map(drop).map_err(|error| error.code());
                    let expected = if is_locked { Err(Code::DatabaseLocked) } else { Ok(()) };
                    assert_eq!(begun, expected, "seed {seed}, life {life}: who begins");
                    let blind = db.create_transaction();
                    blind.set("k", "v");
                    let committed = blind.commit().await.map_err(|error| error.code());
                    assert_eq!(committed, expected, "seed {seed}, life {life}: who commits");
                    let aware = db.create_transaction();
                    aware.set_option(&TransactionOption::LockAware);
                    // Enough for tables, so that the log forgets its beginning.
                    (0..random.below(50)).for_each(|number| aware.set(format!("row {number}"), [7; 300]));
                    aware.commit().await.expect("it knows");
                    is_locked = random.one_in(2);
                    if is_locked { db.lock(ID).await } else { db.unlock(ID).await }.expect("it is nobody else's");
                }
            });
            drop(db);
            if random.one_in(3) {
                machine.wait(node.close()).expect("it closes");
            }
            drop(node);
            let mode = match random.below(3) {
                0 => CrashMode::NothingLost,
                1 => CrashMode::UnsyncedLost,
                _ => CrashMode::RandomSubset { seed: random.next_u64() },
            };
            let disk = machine.disk.fork_crashed(mode);
            machine = Machine::new(disk, random.next_u64());
        }
    });
}
