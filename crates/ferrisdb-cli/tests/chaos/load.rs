//! Clients that run random transactions all the time, and record what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferrisdb::{ClientOptions, Database, KeyValue};
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
/// What [`Load::also_write_much`] writes is no part of the history.
const BULK: &[u8] = b"zz-bulk/";
const BULK_VALUE_BYTES: usize = 90_000;
const BULK_KEYS: u64 = 40;

/// Clients under way.
pub(crate) struct Load {
    recorder: Arc<Recorder>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    databases: Vec<Database>,
}

impl Load {
    /// Clients that each know all processes, and begin with another one.
    pub(crate) async fn start(cluster: &Cluster<'_>, seed: u64) -> Outcome<Load> {
        let mut load =
            Load { recorder: Arc::default(), is_over: Arc::default(), tasks: Vec::new(), databases: Vec::new() };
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
            let mut seed = seed.wrapping_add((number as u64) << 32);
            load.tasks.push(tokio::spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let (runtime, recorder) = (Arc::<TokioRuntime>::clone(&runtime), Arc::clone(&recorder));
                    client(database.client().clone(), runtime, recorder, seed, TRANSACTIONS).await;
                    seed = seed.wrapping_add(1);
                }
            }));
        }
        Ok(load)
    }

    /// Beside all that, so much that disks fill.
    pub(crate) fn also_write_much(&mut self) {
        let (database, is_over) = (self.databases[0].clone(), Arc::clone(&self.is_over));
        self.tasks.push(tokio::spawn(async move {
            let mut number = 0_u64;
            while !is_over.load(Ordering::SeqCst) {
                let key = [BULK, (number % BULK_KEYS).to_string().as_bytes()].concat();
                number += 1;
                // Bytes that no compression makes few.
                let mut word = number;
                let bytes = std::iter::repeat_with(|| {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    word.to_be_bytes()[0]
                });
                let value: Vec<u8> = bytes.take(BULK_VALUE_BYTES).collect();
                let tx = database.create_transaction();
                tx.set(&key, &value);
                // What fails is written again soon, under the same key.
                if tx.commit().await.is_err() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }));
    }

    /// Waits for so many more commits.
    pub(crate) async fn goes_on(&self, when: &str) -> Outcome<Duration> {
        const MORE: u64 = 20;
        let (begun, before) = (Instant::now(), self.recorder.committed());
        while self.recorder.committed() < before + MORE {
            if begun.elapsed() > PATIENCE {
                return Err(format!("no {MORE} commits within {PATIENCE:?} {when}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(begun.elapsed())
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
