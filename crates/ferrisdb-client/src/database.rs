//! [`Database`]: what transactions are made of, and the loop that retries them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrisdb_core::{Code, Error, Limits, Result, Runtime};
use ferrisdb_rpc::Endpoint;
use ferrisdb_rpc::api::{CommitId, Description};

use crate::begin::Beginnings;
use crate::heard::Heard;
use crate::options::DatabaseOption;
use crate::overlay::Overlay;
use crate::settings::Settings;
use crate::snapshot::{Snapshot, SnapshotOptions};
use crate::transaction::Transaction;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    /// Commits carry an id, so that after a lost answer the client asks for the outcome: a transaction commits at most once, and
    /// `commit` says whether it did. Without, `commit_unknown_result` reaches the program. Default: true.
    pub automatic_idempotency: bool,
    /// What `\xff\xff/cluster_file_path` says: where this client learned of the database. Default: empty.
    pub cluster_file_path: String,
}

impl Default for DatabaseOptions {
    fn default() -> DatabaseOptions {
        DatabaseOptions { automatic_idempotency: true, cluster_file_path: String::new() }
    }
}

/// A database, embedded or far away. Cheap to clone; clones are the same client.
///
/// # Concurrency
/// Everything may be called from any thread. No runtime is needed to await its futures; timers and the few tasks in the background
/// (commits whose futures were dropped, the leases of [snapshots](Database::snapshot)) run on the [`Runtime`] that it was made with.
#[derive(Clone)]
pub struct Database {
    pub(crate) inner: Arc<DatabaseInner>,
}

/// What the clones of a database, and its transactions, share.
pub(crate) struct DatabaseInner {
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) description: Description,
    pub(crate) limits: Limits,
    pub(crate) cluster_file_path: String,
    pub(crate) beginnings: Arc<Beginnings>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) empty_overlay: Arc<Overlay>,
    pub(crate) commit_ids: CommitIds,
    defaults: Mutex<Settings>,
    watches: AtomicUsize,
    watches_max: AtomicUsize,
}

impl Database {
    /// A client of what `endpoint` leads to.
    pub fn new(endpoint: Arc<dyn Endpoint>, runtime: Arc<dyn Runtime>, options: DatabaseOptions) -> Database {
        let description = endpoint.description();
        let limits = description.limits;
        let heard = Arc::<Heard>::default();
        let beginnings = Beginnings::new(Arc::clone(&endpoint), Arc::clone(&runtime), Arc::clone(&heard));
        let inner = DatabaseInner {
            beginnings: Arc::new(beginnings),
            heard,
            commit_ids: CommitIds::new(runtime.random()),
            endpoint,
            runtime,
            description,
            limits,
            cluster_file_path: options.cluster_file_path,
            empty_overlay: Arc::default(),
            defaults: Mutex::new(Settings::new(&limits, options.automatic_idempotency)),
            watches: AtomicUsize::new(0),
            watches_max: AtomicUsize::new(limits.watches),
        };
        Database { inner: Arc::new(inner) }
    }

    /// A new transaction. Nothing is asked until it reads or commits.
    pub fn create_transaction(&self) -> Transaction {
        Transaction::new(&self.inner)
    }

    /// Runs a transaction: calls `body` with one, commits it, and tries again from the beginning after a conflict or another error that
    /// passes. What `body` does beside the transaction it may do several times.
    ///
    /// The future is `Send` where `body` and its futures are, so a runtime with several threads may run it; what `body` takes from around it, it borrows
    /// (`async |tx|`, not `async move |tx|`, which the compiler refuses here).
    ///
    /// ```
    /// # async fn example(db: ferrisdb_client::Database) -> ferrisdb_core::Result<()> {
    /// let before = db
    ///     .run(async |tx| {
    ///         let before = tx.get(b"hello").await?;
    ///         tx.set(b"hello", b"world");
    ///         Ok(before)
    ///     })
    ///     .await?;
    /// # let _ = before; Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `body` and of the commit that `on_error` does not retry. `commit_unknown_result` is one of them: doing it again might
    /// do it twice. With automatic idempotency, the default, a lost answer is asked for until it comes, however long the database is away: only the option
    /// [`TransactionTimeout`](crate::DatabaseOption::TransactionTimeout) ends that, with `transaction_timed_out`.
    // With `AsyncFn`, which says the same, the compiler cannot prove that the future of a body which borrows is `Send`.
    pub async fn run<T, F, Fut>(&self, body: F) -> Result<T>
    where
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let transaction = self.create_transaction();
        loop {
            let error = match body(transaction.clone()).await {
                Err(error) => error,
                Ok(value) => match transaction.commit().await {
                    Ok(()) => return Ok(value),
                    Err(error) => error,
                },
            };
            if error.is_maybe_committed() {
                return Err(error);
            }
            transaction.on_error(error).await?;
        }
    }

    /// A snapshot that stays readable for as long as it is held, for long reads: see [`Snapshot`].
    ///
    /// # Errors
    /// `transaction_too_old` if the version asked for is not readable any more; those of asking.
    pub async fn snapshot(&self, options: SnapshotOptions) -> Result<Snapshot> {
        Snapshot::take(&self.inner, options).await
    }

    /// Sets an option: mostly a default for transactions that are made, or reset, from now on.
    ///
    /// # Errors
    /// `invalid_option_value`.
    pub fn set_option(&self, option: &DatabaseOption) -> Result<()> {
        let watches_max = self.inner.lock_defaults().set_default(option)?;
        if let Some(watches_max) = watches_max {
            self.inner.watches_max.store(watches_max, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What database this is.
    pub fn description(&self) -> &Description {
        &self.inner.description
    }

    /// The status document, JSON.
    ///
    /// # Errors
    /// Those of asking.
    pub async fn status(&self) -> Result<String> {
        self.inner.endpoint.status().await
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("connection", &self.inner.description.connection_string)
            .finish_non_exhaustive()
    }
}

impl DatabaseInner {
    /// The settings of a new transaction.
    pub(crate) fn defaults(&self) -> Settings {
        self.lock_defaults().clone()
    }

    /// A place among the watches.
    ///
    /// # Errors
    /// `too_many_watches`.
    pub(crate) fn watch_permit(self: &Arc<Self>) -> Result<WatchPermit> {
        let max = self.watches_max.load(Ordering::Relaxed);
        let add = |count| (count < max).then_some(count + 1);
        match self.watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(WatchPermit { database: Arc::clone(self) }),
            Err(count) => {
                Err(Error::with(Code::TooManyWatches, format!("{count} watches are pending, and {max} may be")))
            }
        }
    }

    fn lock_defaults(&self) -> MutexGuard<'_, Settings> {
        self.defaults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn watch_count(&self) -> usize {
        self.watches.load(Ordering::Relaxed)
    }
}

/// A place among the watches that a client may have; given back when dropped.
pub(crate) struct WatchPermit {
    pub(crate) database: Arc<DatabaseInner>,
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.database.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The ids of this client's commits. An id is open from the commit's sending until its outcome is known or given up.
pub(crate) struct CommitIds {
    client: u64,
    counters: Mutex<Counters>,
}

struct Counters {
    next: u64,
    open: BTreeSet<u64>,
}

impl CommitIds {
    fn new(client: u64) -> CommitIds {
        CommitIds { client, counters: Mutex::new(Counters { next: 1, open: BTreeSet::new() }) }
    }

    /// A new id, which is open until [`close`](Self::close) is called with it.
    pub(crate) fn open(&self) -> CommitId {
        let mut counters = self.lock();
        let counter = counters.next;
        counters.next += 1;
        counters.open.insert(counter);
        CommitId { client: self.client, counter }
    }

    pub(crate) fn close(&self, id: CommitId) {
        self.lock().open.remove(&id.counter);
    }

    /// The lowest counter that is open, or the next one if none is.
    pub(crate) fn lowest_open(&self) -> u64 {
        let counters = self.lock();
        counters.open.first().copied().unwrap_or(counters.next)
    }

    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
