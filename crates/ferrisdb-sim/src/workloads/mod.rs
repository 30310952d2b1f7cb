//! What clients do in a simulation, and how it is judged.
//!
//! A [`Workload`] keeps to keys of its own, so that several run beside each other. Its clients call [`step`](Workload::step) again and again while things go
//! wrong; what contradicts the contract they say at once ([`Client::violation`]). When nothing goes wrong any more, the workload
//! [winds up](Workload::wind_up), the clients end, and the [judge](Workload::judge) looks at what is there.
//!
//! ```text
//! ring       a ring of keys whose links are exchanged: it stays one ring      serializability
//! bank       transfers: the total stays                                       atomicity
//! counters   an addition and a mark for it in one commit: as many as marks    at most once, durability
//! stamps     keys that the commit makes: unique, ordered as acknowledged      versionstamps
//! watches    whoever waits for a change is told                               watches
//! snapshots  old versions, read again and again under a lease                 leases
//! sideband   one client tells another what it committed, past the database    real time
//! history    everything mixed, recorded, certified in version order           strict serializability
//! oracle     random programs of the whole API, compared with a model          every call of the API, under faults
//! ```
//!
//! The oracle's programs use all keys there are, and lock the database: it runs [alone](ALONE).

mod bank;
mod counters;
mod noting;
mod oracle;
mod recorded;
mod ring;
mod sideband;
pub(crate) mod snapshots;
mod stamps;
mod watches;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_client::{Database, Transaction};
use ferrisdb_core::{Bytes, Code, Error, Random, Result, Runtime, SplitMix64};
use ferrisdb_rpc::Endpoint;

use crate::world::trace::Trace;

/// What a judge finds wrong, in a sentence; nothing if all is well.
pub type Verdict = Option<String>;

/// Work that stays on the simulation's thread.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// Something that clients do, and a check of it.
pub trait Workload: fmt::Debug {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Puts there what it begins with. May be called again if it fails.
    fn prepare<'a>(&'a self, _db: &'a Database) -> Work<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Does a little of what it does. An error is nothing wrong by itself: the client pauses, and does something else.
    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()>;

    /// True if the workload has got something done when this client has. Not for those who only look on.
    fn is_driven_by(&self, _client: &Client) -> bool {
        true
    }

    /// Lets end what waits, when no client begins anything any more.
    fn wind_up<'a>(&'a self, _db: &'a Database) -> Work<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Finds out what clients that have died did not learn. Nobody does anything any more by then. May be called again if it fails.
    fn settle<'a>(&'a self, _endpoint: &'a Arc<dyn Endpoint>) -> Work<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Looks at what is there in the end.
    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict>;

    /// Commits that were acknowledged and that no [`Client`] counted.
    fn counted_apart(&self) -> u64 {
        0
    }
}

/// Makes a workload; the seed chooses how large it is.
pub type Make = fn(u64) -> Box<dyn Workload>;

/// Every workload, by name, with what makes it.
pub const ALL: &[(&str, Make)] = &[
    ("ring", |seed| Box::new(ring::Ring::new(seed))),
    ("bank", |seed| Box::new(bank::Bank::new(seed))),
    ("counters", |_| Box::<counters::Counters>::default()),
    ("stamps", |_| Box::<stamps::Stamps>::default()),
    ("watches", |_| Box::<watches::Watches>::default()),
    ("sideband", |_| Box::<sideband::Sideband>::default()),
    ("snapshots", |_| Box::<snapshots::Snapshots>::default()),
    ("history", |_| Box::<recorded::Recorded>::default()),
    (ALONE, |seed| Box::new(oracle::Oracle::new(seed))),
];

/// The workload that no other runs beside.
pub const ALONE: &str = "oracle";

/// What all clients of a run share.
#[derive(Debug)]
pub struct Shared {
    trace: Trace,
    is_over: AtomicBool,
    ids: AtomicU64,
    violations: Mutex<Vec<String>>,
    /// When each workload last finished a step.
    progress: Mutex<BTreeMap<&'static str, Duration>>,
    /// What clients are in the middle of.
    busy: Mutex<BTreeMap<(String, &'static str), u64>>,
}

impl Shared {
    /// For a run that writes this record.
    pub fn new(trace: Trace) -> Shared {
        Shared {
            trace,
            is_over: AtomicBool::new(false),
            ids: AtomicU64::new(0),
            violations: Mutex::default(),
            progress: Mutex::default(),
            busy: Mutex::default(),
        }
    }

    /// No client begins anything any more.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// True if no client begins anything any more.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Something contradicts the contract.
    pub fn violation(&self, what: String) {
        self.trace.note(format_args!("VIOLATION {what}"));
        lock(&self.violations).push(what);
    }

    /// What contradicted the contract so far.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// When a workload last finished a step.
    pub fn last_progress(&self, workload: &str) -> Duration {
        lock(&self.progress).get(workload).copied().unwrap_or_default()
    }

    /// Which clients are in the middle of which workload.
    pub fn busy(&self) -> Vec<String> {
        lock(&self.busy).keys().map(|(client, workload)| format!("{client}: {workload}")).collect()
    }

    /// What a client that was killed was in the middle of does not count.
    pub fn forget(&self, client: &str) {
        lock(&self.busy).retain(|(name, _), _| name != client);
    }

    pub(crate) fn begins(&self, client: &str, workload: &'static str) {
        *lock(&self.busy).entry((client.to_owned(), workload)).or_default() += 1;
    }

    pub(crate) fn ends(&self, client: &str, workload: &'static str, is_done: bool) {
        lock(&self.busy).remove(&(client.to_owned(), workload));
        if is_done {
            lock(&self.progress).insert(workload, self.trace.now());
        }
    }
}

/// A client of the database, at work for one workload.
pub struct Client {
    /// The database.
    pub db: Database,
    /// The way to it.
    pub endpoint: Arc<dyn Endpoint>,
    /// Its host.
    pub name: String,
    /// Which of the clients it is, from 1.
    pub number: u64,
    runtime: Arc<dyn RuntimeOfClient>,
    random: Mutex<SplitMix64>,
    shared: Arc<Shared>,
    ways: Ways,
}

/// What connects to one server, by address and seed.
pub type ConnectTo = Box<dyn Fn(String, u64) -> Work<'static, Database>>;

/// The ways to single servers, each opened when it is first wanted.
pub struct Ways {
    servers: Vec<String>,
    connect: ConnectTo,
    open: Mutex<BTreeMap<usize, Database>>,
}

impl Ways {
    /// To these addresses.
    pub fn new(servers: Vec<String>, connect: ConnectTo) -> Ways {
        Ways { servers, connect, open: Mutex::default() }
    }
}

/// A [`Runtime`] that can be shown.
pub trait RuntimeOfClient: Runtime + fmt::Debug {}

impl<R: Runtime + fmt::Debug> RuntimeOfClient for R {}

impl Client {
    /// A client that chooses by `seed`.
    pub fn new(
        (db, endpoint): (Database, Arc<dyn Endpoint>),
        number: u64,
        runtime: Arc<dyn RuntimeOfClient>,
        seed: u64,
        shared: Arc<Shared>,
        ways: Ways,
    ) -> Client {
        let name = client_name(number);
        Client { db, endpoint, name, number, runtime, random: Mutex::new(SplitMix64::new(seed)), shared, ways }
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.ways.servers.len()
    }

    /// The database through this server alone, whoever else could answer.
    ///
    /// # Errors
    /// Those of connecting to it, if that has not been done yet.
    pub async fn db_of(&self, server: usize) -> Result<Database> {
        if let Some(db) = lock(&self.ways.open).get(&server) {
            return Ok(db.clone());
        }
        let db = (self.ways.connect)(self.ways.servers[server].clone(), self.random()).await?;
        Ok(lock(&self.ways.open).entry(server).or_insert(db).clone())
    }

    /// True if no client begins anything any more.
    pub fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    /// A number below `bound`.
    pub fn below(&self, bound: u64) -> u64 {
        lock(&self.random).below(bound)
    }

    /// 64 random bits.
    pub fn random(&self) -> u64 {
        lock(&self.random).next_u64()
    }

    /// A number that nobody else in this run has got.
    pub fn fresh_id(&self) -> u64 {
        self.shared.ids.fetch_add(1, Ordering::SeqCst)
    }

    /// Something contradicts the contract.
    pub fn violation(&self, what: String) {
        self.shared.violation(what);
    }

    /// Counts something for the report.
    pub fn count(&self, what: &'static str) {
        self.shared.trace.count(what);
    }

    /// How often something was counted for the report so far, by anybody.
    pub(crate) fn counted(&self, what: &'static str) -> u64 {
        self.shared.trace.counted(what)
    }

    /// Lets time pass.
    pub async fn sleep(&self, duration: Duration) {
        self.runtime.sleep(duration).await;
    }

    /// What the client's futures run on.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.runtime) as Arc<dyn Runtime>
    }

    /// The time of the simulation, rounded down to its ticks.
    pub fn now(&self) -> Duration {
        self.shared.trace.now()
    }

    /// Runs a transaction to its end, as [`Database::run`] does, and counts what becomes of it.
    ///
    /// # Errors
    /// As those of [`Database::run`].
    pub async fn run<T>(&self, body: impl AsyncFn(Transaction) -> Result<T>) -> Result<T> {
        let tx = self.db.create_transaction();
        loop {
            let error = match body(tx.clone()).await {
                Err(error) => error,
                Ok(value) => match self.commit(&tx).await {
                    Ok(()) => return Ok(value),
                    Err(error) => error,
                },
            };
            if is_unknown(&error) {
                return Err(error);
            }
            tx.on_error(error).await?;
        }
    }

    /// Commits, and counts what becomes of it.
    ///
    /// # Errors
    /// Those of [`Transaction::commit`].
    pub async fn commit(&self, tx: &Transaction) -> Result<()> {
        let committed = tx.commit().await;
        let trace = &self.shared.trace;
        match &committed {
            Ok(()) => {
                let version = tx.get_committed_version();
                trace.note(format_args!("{} committed at {version:?}", self.name));
                trace.count(if version.is_some() { "commits" } else { "reads" });
            }
            Err(error) => {
                trace.note(format_args!("{} did not commit: {}", self.name, error.code().name()));
                trace.count(match error.code() {
                    Code::NotCommitted => "conflicts",
                    Code::TransactionTooOld => "too old",
                    _ if is_unknown(error) => "unknown results",
                    _ => "refused commits",
                });
            }
        }
        committed
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The host of a client.
pub fn client_name(number: u64) -> String {
    format!("client-{number}")
}

/// Nobody knows whether it happened.
pub(crate) fn is_unknown(error: &Error) -> bool {
    error.is_maybe_committed() || error.code() == Code::CommitUnknownResultFatal
}

/// A number as the atomic operations take it.
fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

/// A number below a name, in the order of numbers.
fn key(space: &str, number: u64) -> Bytes {
    Bytes::from(format!("{space}{number:08}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
