//! Clients that run random transactions all the time, and record what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrisdb::{ClientOptions, Database, KeyValue, Transaction};
use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_rpc::TokioRuntime;
use ferrisdb_sim::history::workload::{Recorder, client, everything};
use ferrisdb_sim::history::{Certificate, certify};
use tokio::task::JoinHandle;

use crate::Outcome;
use crate::processes::{Cluster, PATIENCE};

const CLIENTS: usize = 9;
/// Transactions of a client between two looks at whether it is over.
const TRANSACTIONS: u32 = 5;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// What [`Load::write_much`] writes is no part of the history.
const BULK: &[u8] = b"zz-bulk/";
const BULK_VALUE_BYTES: usize = 90_000;
const BULK_KEYS: usize = 10;
const BULK_IN_FLIGHT: usize = 4;
/// Whatever happens to the process that a client is connected to, the client goes on within so long: five times what is promised (3 s), for a machine that has other things to do.
const BOUND: Duration = Duration::from_secs(15);

/// Clients under way.
pub(crate) struct Load {
    recorder: Arc<Recorder>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    databases: Vec<Database>,
    /// How often each client has run its transactions.
    runs: Arc<[AtomicU64; CLIENTS]>,
}

impl Load {
    /// Clients that each know all processes, and begin with another one.
    pub(crate) async fn start(cluster: &Cluster<'_>, seed: u64) -> Outcome<Load> {
        let mut load = Load {
            recorder: Arc::default(),
            is_over: Arc::default(),
            tasks: Vec::new(),
            databases: Vec::new(),
            runs: Arc::default(),
        };
        for number in 0..CLIENTS {
            let mut addresses: Vec<&str> = cluster.processes.iter().map(|process| process.address.as_str()).collect();
            let first = number % addresses.len();
            addresses.rotate_left(first);
            // Whoever waits for a cluster that is away waits for as long as it is.
            let options = ClientOptions { seed: Some(0), outage_max: 4 * PATIENCE, ..ClientOptions::default() };
            let database = Database::connect_with(&addresses.join(","), options).await;
            let database = database.map_err(|error| error.to_string())?;
            load.databases.push(database.clone());
            let runtime = Arc::new(TokioRuntime::current().ok_or("within a runtime")?);
            let (recorder, is_over) = (Arc::clone(&load.recorder), Arc::clone(&load.is_over));
            let runs = Arc::clone(&load.runs);
            let mut seed = seed.wrapping_add((number as u64) << 32);
            load.tasks.push(tokio::spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let (runtime, recorder) = (Arc::<TokioRuntime>::clone(&runtime), Arc::clone(&recorder));
                    client(database.client().clone(), runtime, recorder, seed, TRANSACTIONS).await;
                    runs[number].fetch_add(1, Ordering::SeqCst);
                    seed = seed.wrapping_add(1);
                }
            }));
        }
        Ok(load)
    }

    /// Writes so many bytes beside all that: more than logs and tables have room for without asking the disk for more. Each writer stays with its client, and so with a process
    /// that takes its connection.
    pub(crate) async fn write_much(&self, bytes: usize) -> Outcome<()> {
        let each = bytes / BULK_VALUE_BYTES / BULK_IN_FLIGHT;
        let writers = (0..BULK_IN_FLIGHT).map(async |writer| {
            for number in 0..each {
                let key = [BULK, format!("{writer}/{}", number % BULK_KEYS).as_bytes()].concat();
                let value = noise((writer * each + number) as u64);
                let written = async {
                    let set = async |tx: Transaction| {
                        tx.set(&key, &value);
                        Ok(())
                    };
                    // Twice does no harm here.
                    while let Err(error) = self.databases[writer].run(set).await {
                        if !error.is_maybe_committed() {
                            return Err(format!("client {writer} cannot write a large value: {error}"));
                        }
                    }
                    Ok(())
                };
                let written = tokio::time::timeout(BOUND, written).await;
                written
                    .map_err(|_| format!("a large value of client {writer} is not committed within {BOUND:?}"))??;
            }
            Ok(())
        });
        futures_util::future::try_join_all(writers).await.map(drop)
    }

    /// Waits for so many more commits, for as long as anything may take that comes.
    pub(crate) async fn goes_on(&self, when: &str) -> Outcome<Duration> {
        self.goes_on_within(PATIENCE, when).await
    }

    /// The same with the bound of what is promised while a majority is whole.
    pub(crate) async fn goes_on_soon(&self, when: &str) -> Outcome<Duration> {
        self.goes_on_within(BOUND, when).await
    }

    async fn goes_on_within(&self, bound: Duration, when: &str) -> Outcome<Duration> {
        const MORE: u64 = 20;
        let (begun, before) = (Instant::now(), self.recorder.committed());
        while self.recorder.committed() < before + MORE {
            if begun.elapsed() > bound {
                return Err(format!("no {MORE} commits within {bound:?} {when}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(begun.elapsed())
    }

    /// Waits until every client, whichever process it is connected to, has run its transactions once more from beginning to end.
    pub(crate) async fn all_go_on(&self, when: &str) -> Outcome<()> {
        let look = || self.runs.each_ref().map(|runs| runs.load(Ordering::SeqCst));
        let (begun, before) = (Instant::now(), look());
        loop {
            let stuck: Vec<usize> = look()
                .iter()
                .zip(before)
                .enumerate()
                .filter(|(_, (now, before))| **now < before + 2)
                .map(|of| of.0)
                .collect();
            if stuck.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > BOUND {
                return Err(format!("clients {stuck:?} do not go on within {BOUND:?} {when}"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends all clients, and certifies what they saw and what each process has in the end.
    pub(crate) async fn certify(self, cluster: &mut Cluster<'_>) -> Outcome<Certificate> {
        self.is_over.store(true, Ordering::SeqCst);
        for task in self.tasks {
            let ended = tokio::time::timeout(4 * PATIENCE, task).await;
            ended.map_err(|_| "a client does not end")?.map_err(|error| format!("a client panicked: {error}"))?;
        }
        cluster.whole().await?;
        let attempts = self.recorder.attempts();
        let mut certificate = None;
        for process in &mut cluster.processes {
            let database = process.database().await?;
            let end = everything(database.client()).await;
            let end = end.map_err(|error| format!("process {} cannot be read: {error}", process.number))?;
            let end: Vec<KeyValue> = end.into_iter().filter(|row| !row.key.starts_with(BULK)).collect();
            let certified = certify(&[], &attempts, &end);
            certificate = Some(certified.map_err(|violation| format!("at process {}: {violation}", process.number))?);
        }
        certificate.ok_or_else(|| "there are processes".to_owned())
    }
}

/// A large value that no compression makes small.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    (0..BULK_VALUE_BYTES / 8).flat_map(|_| random.next_u64().to_be_bytes()).collect()
}
