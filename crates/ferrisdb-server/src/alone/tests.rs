//! A database that is joined, on a simulated machine, and power cuts in the middle of its turn.

use std::path::Path;
use std::sync::Mutex;
use std::task::Poll;

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, ManualClock};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::env::wait;
use ferrisdb_storage::fs::sim::{CrashMode, DiskError, Injection, OpKind, SimFileSystem, Verdict};

use super::*;
use crate::cluster::{Beginning, Network, join_message};
use crate::node::NodeOptions;
use crate::runtime::JobRuntime;

const DIR: &str = "/db";
/// Commits before anybody joins.
const BEFORE: usize = 12;
/// Each joins at another point of what the clients do. In some, storage has not applied the last commits when the coordinator ends.
const SEEDS: u64 = 60;

struct Machine {
    disk: SimFileSystem,
    clock: Arc<ManualClock>,
    spawner: Arc<StepSpawner>,
    env: Env,
}

/// There is nobody else.
#[derive(Debug)]
struct Nobody;

impl Network for Nobody {
    fn connect(&self, address: &str, _: Option<[u8; 16]>) -> BoxFuture<Result<Arc<dyn Endpoint>>> {
        let error = Error::with(Code::ConnectionFailed, format!("nobody is at {address}"));
        Box::pin(async move { Err(error) })
    }
}

fn here() -> Peer {
    Peer { address: "here:1".to_owned(), zone: String::new() }
}

impl Machine {
    fn new(disk: SimFileSystem, seed: u64) -> Machine {
        let (env, spawner, clock) = Env::sim_with_seed(disk.clone(), seed);
        Machine { disk, clock, spawner, env }
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        wait(&*self.spawner, future)
    }

    fn doors(&self) -> Doors {
        let runtime = JobRuntime::new(self.env.clone());
        Doors { env: self.env.clone(), runtime: Arc::new(runtime), network: Arc::new(Nobody) }
    }

    fn options() -> ClusterOptions {
        ClusterOptions { storage: NodeOptions::tiny().storage, ..ClusterOptions::default() }
    }

    fn alone(&self, here: Result<Peer>) -> Alone {
        let node = Node::open(self.env.clone(), DIR, NodeOptions::tiny()).expect("it opens");
        let turn = Turn { doors: self.doors(), directory: DIR.into(), options: Machine::options(), here };
        Alone::new(Arc::new(node), turn)
    }

    fn client(&self, endpoint: Arc<dyn Endpoint>) -> Database {
        Database::new(endpoint, Arc::new(JobRuntime::new(self.env.clone())), DatabaseOptions::default())
    }

    /// The number of commits that are there.
    fn count(&self, database: &Database) -> usize {
        let counted = self.wait(database.run(async |tx| tx.get(b"count").await));
        counted.expect("it reads").map_or(0, |value| value.len())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.spawner.drop_jobs();
    }
}

async fn count_up(database: &Database) -> Result<()> {
    let body = async |tx: ferrisdb_client::Transaction| {
        let before = tx.get(b"count").await?.map_or(0, |value| value.len());
        tx.set(b"count", vec![b'1'; before + 1]);
        tx.set(format!("k{before}"), vec![b'v'; 200]);
        Ok(())
    };
    database.run(body).await
}

fn joining(alone: &Alone) -> Answer<Bytes> {
    let peer = Peer { address: "there:1".to_owned(), zone: String::new() };
    alone.endpoint().for_peers().expect("there is one").message(join_message([7; 16], peer))
}

/// Clients commit before, while and after a process joins: none of them hears an error, each commit happened once, the joiner gets its number, and the directory is a cluster's.
#[test]
fn a_database_that_is_joined_is_a_cluster() {
    for seed in 0..SEEDS {
        let machine = Machine::new(SimFileSystem::new(), seed);
        let alone = machine.alone(Ok(here()));
        let database = machine.client(alone.endpoint());
        let id = database.description().cluster_id;
        for _ in 0..BEFORE {
            machine.wait(count_up(&database)).expect("it commits");
        }
        let other = machine.client(alone.endpoint());
        let counting = async |database: &Database| {
            for _ in 0..BEFORE {
                count_up(database).await?;
            }
            Ok::<_, Error>(())
        };
        let joined = async {
            // In the middle of what they do, for which the simulated clock stands still.
            let mut looks = 0;
            let turns = std::future::poll_fn(|context| {
                looks += 1;
                context.waker().wake_by_ref();
                if looks > seed { Poll::Ready(()) } else { Poll::Pending }
            });
            turns.await;
            joining(&alone).await
        };
        assert!(alone.is_alone());
        let all = futures_util::future::join3(counting(&database), counting(&other), joined);
        let (one, two, joined) = machine.wait(all);
        assert_eq!((one, two), (Ok(()), Ok(())), "seed {seed}");
        joined.expect("it is taken in");
        assert!(!alone.is_alone() && alone.process() == Some(1) && alone.failure().is_none());
        assert_eq!(machine.count(&database), 3 * BEFORE, "seed {seed}");
        let status = machine.wait(database.status()).expect("it answers");
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        assert_eq!(status["cluster"]["processes"]["2"]["address"], "there:1", "{status:#}");
        assert_eq!(alone.endpoint().description().cluster_id, id);
        assert_eq!(alone.take_notices().len(), 1);
        machine.wait(alone.close()).expect("it closes");
        let error = Node::open(machine.env.clone(), DIR, NodeOptions::tiny()).expect_err("it is a cluster's");
        assert!(error.to_string().contains("belongs to a process of a cluster"), "{error}");
    }
}

/// Who cannot say where it is reached is not joined, says why, and goes on as it was; so does one that is asked anything else.
#[test]
fn one_that_cannot_be_reached_is_not_joined() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let alone = machine.alone(Err(Error::with(Code::ClientInvalidOperation, "say --advertise")));
    let refused = machine.wait(joining(&alone)).expect_err("it is refused");
    assert!(refused.to_string().contains("--advertise"), "{refused}");
    let refused = machine.wait(alone.endpoint().message(Bytes::from_static(b"hello"))).expect_err("it is refused");
    assert_eq!(refused.code(), Code::ClientInvalidOperation);
    let database = machine.client(alone.endpoint());
    machine.wait(count_up(&database)).expect("it commits");
    assert!(alone.is_alone());
    machine.wait(alone.close()).expect("it closes");
}

/// A turn that finds no space ends: everything is refused with the reason, and started again with space the database is whole.
#[test]
fn a_turn_that_fails_says_so() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let alone = machine.alone(Ok(here()));
    let database = machine.client(alone.endpoint());
    machine.wait(count_up(&database)).expect("it commits");
    machine.disk.inject(Injection::new(&[OpKind::Create], Verdict::Fail(DiskError::NoSpace)).path("raft"));
    let failed = machine.wait(joining(&alone)).expect_err("it fails");
    assert!(failed.to_string().contains("nothing acknowledged is lost, start it again"), "{failed}");
    assert_eq!(alone.failure(), Some(failed));
    assert!(machine.wait(alone.close()).is_err());
    machine.disk.clear_injections();
    let alone = machine.alone(Ok(here()));
    assert_eq!(machine.count(&machine.client(alone.endpoint())), 1);
    machine.wait(alone.close()).expect("it closes");
}

/// The power goes before any change that the turn makes to the disk. What is found there is a database, or a process of a cluster, that has every acknowledged commit once; and either opens.
#[test]
fn a_power_cut_in_the_turn_loses_nothing() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let alone = machine.alone(Ok(here()));
    let database = machine.client(alone.endpoint());
    for _ in 0..BEFORE {
        machine.wait(count_up(&database)).expect("it commits");
    }
    let forks: Arc<Mutex<Vec<(String, SimFileSystem)>>> = Arc::default();
    let seen = Arc::clone(&forks);
    machine.disk.set_hook(move |disk, op| {
        if op.kind.is_mutating() {
            let what = format!("#{} {:?} {} {}+{}", op.number, op.kind, op.path.display(), op.offset, op.len);
            seen.lock().expect("no panic").push((what, disk.fork()));
        }
        Verdict::Pass
    });
    machine.wait(joining(&alone)).expect("it is taken in");
    machine.disk.clear_hook();
    let forks = std::mem::take(&mut *forks.lock().expect("no panic"));
    let (mut nodes, mut clusters) = (0, 0);
    for (number, (what, disk)) in forks.iter().enumerate() {
        for mode in [CrashMode::NothingLost, CrashMode::UnsyncedLost, CrashMode::RandomSubset { seed: number as u64 }] {
            let what = format!("{what}, {mode:?}");
            let machine = Machine::new(disk.fork_crashed(mode), 9);
            if ClusterNode::is_in(&machine.disk, Path::new(DIR)).expect("it can be looked at") {
                clusters += 1;
                let beginning = Beginning::Join(Vec::new());
                let opening = ClusterNode::open(machine.doors(), Path::new(DIR), Machine::options(), here(), beginning);
                let node = machine.wait(opening).unwrap_or_else(|error| panic!("{what}: {error}"));
                let database = machine.client(node.endpoint());
                let counting = std::pin::pin!(database.run(async |tx| tx.get(b"count").await));
                let bound = machine.doors().runtime.sleep(Duration::from_secs(60));
                match machine.wait(futures_util::future::select(counting, bound)) {
                    futures_util::future::Either::Left((count, _)) => {
                        assert_eq!(count.expect("it reads").map(|value| value.len()), Some(BEFORE), "{what}");
                    }
                    futures_util::future::Either::Right(_) => {
                        let status = node.endpoint().status().try_now();
                        panic!("{what}: {:?}, {status:?}, {:?}", node.failure(), node.take_notices());
                    }
                }
            } else {
                nodes += 1;
                let node = Node::open(machine.env.clone(), DIR, NodeOptions::tiny());
                let node = node.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(machine.count(&machine.client(Arc::new(node))), BEFORE, "{what}");
            }
        }
    }
    assert!(nodes > 20 && clusters > 5, "{nodes} times a database, {clusters} times a cluster");
    assert!(machine.clock.now() > Duration::ZERO);
}
