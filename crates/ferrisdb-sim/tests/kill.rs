//! `kill -9` in a loop on a served database under load: what was acknowledged is there, and nothing is there twice.
//!
//! The server is this test program itself, started as another process. Clients go on over every kill: the connection is made again, and a
//! commit whose answer died with the server is resolved with the next one. In the end the whole history is certified across all lives,
//! and the counters, to which every acknowledged transaction added exactly once, say the same in another way.
//!
//! `FERRISDB_KILLS` sets how often the server is killed.

#![expect(clippy::disallowed_methods, reason = "processes live in real time")]
#![expect(clippy::print_stdout, reason = "figures of a run")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrisdb_client::{Database, DatabaseOptions};
use ferrisdb_core::{MutationKind, Random, Runtime as _, SplitMix64};
use ferrisdb_rpc::{Client, ClientOptions, ServeOptions, TokioRuntime, serve};
use ferrisdb_server::{Node, NodeOptions};
use ferrisdb_sim::history::workload::{Recorder, certified, client, everything};
use ferrisdb_storage::Env;

/// Where the other process has its data, and where it listens.
const DIRECTORY: &str = "FERRISDB_KILL_TEST_DIRECTORY";
const ADDRESS: &str = "FERRISDB_KILL_TEST_ADDRESS";
const CLIENTS: u64 = 6;
const COUNTERS: u64 = 2;

/// Not a test by itself: the process that is killed.
#[test]
fn serves_until_it_is_killed() {
    let (Ok(directory), Ok(address)) = (std::env::var(DIRECTORY), std::env::var(ADDRESS)) else { return };
    let node = Arc::new(Node::open(Env::real(), directory, NodeOptions::tiny()).expect("it opens"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.expect("the port is free");
        serve(listener, node, ServeOptions::default(), std::future::pending()).await;
    });
}

/// Ends with the test, however that ends.
struct Server(Child);

impl Server {
    fn start(directory: &Path, address: &str) -> Server {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(["--exact", "serves_until_it_is_killed", "--nocapture"]);
        command.env(DIRECTORY, directory).env(ADDRESS, address).stdin(Stdio::null()).stdout(Stdio::null());
        Server(command.spawn().expect("it starts"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("it can be killed");
        let status = self.0.wait().expect("it has ended");
        assert!(status.code().is_none(), "the server ended by itself: {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Adds one to a counter, once for each time it says so; counts what was acknowledged.
async fn count(db: Database, runtime: Arc<TokioRuntime>, number: u64, is_over: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let key = format!("zz-kill/{}", number % COUNTERS);
    while !is_over.load(Ordering::SeqCst) {
        let tx = db.create_transaction();
        loop {
            tx.atomic_op(&key, 1u64.to_le_bytes(), MutationKind::Add);
            match tx.commit().await {
                Ok(()) => {
                    done.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                // The answer was lost and no server could be asked for too long: nothing of the kind is expected here.
                Err(error) if error.is_maybe_committed() => panic!("the outcome stayed unknown: {error}"),
                // It did not happen: again, as another transaction if this one may not.
                Err(error) => {
                    if tx.on_error(error).await.is_err() {
                        runtime.sleep(Duration::from_millis(10)).await;
                        tx.reset();
                    }
                }
            }
        }
    }
}

#[test]
fn killed_again_and_again_it_loses_and_repeats_nothing() {
    let kills: u32 = std::env::var("FERRISDB_KILLS").map_or(12, |text| text.parse().expect("a number"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = {
        // An address of this process's own on loopback: nobody else takes the port while no server has it.
        let [_, b, c, d] = std::process::id().to_be_bytes();
        let free = std::net::TcpListener::bind((Ipv4Addr::new(127, 64 + b % 64, c, d), 0)).expect("a port");
        free.local_addr().expect("it has an address").to_string()
    };
    let mut server = Server::start(directory.path(), &address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (recorder, done) = (Arc::new(Recorder::default()), Arc::new(AtomicU64::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let mut random = SplitMix64::new(11);
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let (db, runtime) = database(&address).await;
            let (is_over, recorder) = (Arc::clone(&is_over), Arc::clone(&recorder));
            let mut seed = random.next_u64();
            let of = Arc::clone(&runtime);
            let recording = db.clone();
            clients.push(tokio::spawn({
                let is_over = Arc::clone(&is_over);
                async move {
                    while !is_over.load(Ordering::SeqCst) {
                        client(recording.clone(), Arc::<TokioRuntime>::clone(&of), Arc::clone(&recorder), seed, 5)
                            .await;
                        seed = seed.wrapping_add(1);
                    }
                }
            }));
            clients.push(tokio::spawn(count(db, runtime, number, is_over, Arc::clone(&done))));
        }
        let mut acknowledged = 0;
        for round in 0..kills {
            // Not before something was done in this life, so that a slow machine kills no server that is still starting.
            let begun = Instant::now();
            while done.load(Ordering::SeqCst) < acknowledged + 20 {
                assert!(begun.elapsed() < Duration::from_secs(300), "nothing commits in life {round}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
            server.kill();
            acknowledged = done.load(Ordering::SeqCst);
            server = Server::start(directory.path(), &address);
        }
        is_over.store(true, Ordering::SeqCst);
        for client in clients {
            client.await.expect("a client does not panic");
        }
        let (db, _) = database(&address).await;
        let end = everything(&db).await.expect("it reads");
        let (counters, history): (Vec<_>, Vec<_>) = end.into_iter().partition(|row| row.key.starts_with(b"zz-kill/"));
        let counted: u64 = counters
            .iter()
            .map(|row| u64::from_le_bytes(row.value.as_ref().try_into().expect("a counter has eight bytes")))
            .sum();
        assert_eq!(counted, done.load(Ordering::SeqCst), "acknowledged additions and those that are there");
        let certificate = certified("across kills", &recorder, &history);
        println!("{kills} kills, {counted} additions acknowledged; {certificate:?}");
    });
}

/// A client with a connection of its own, which may have to wait for the server to start.
async fn database(address: &str) -> (Database, Arc<TokioRuntime>) {
    let begun = Instant::now();
    // However long a slow machine needs to start the next server.
    let options = ClientOptions { outage_max: Duration::from_secs(120), ..ClientOptions::default() };
    let endpoint = loop {
        match Client::connect(address, options.clone()).await {
            Ok(endpoint) => break endpoint,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(300), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let runtime = Arc::new(TokioRuntime::current().expect("within a runtime"));
    (Database::new(Arc::new(endpoint), Arc::<TokioRuntime>::clone(&runtime), DatabaseOptions::default()), runtime)
}
