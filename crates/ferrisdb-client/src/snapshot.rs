//! [`Snapshot`]: the database as it was at one version, readable for as long as it is held.
//!
//! A transaction's versions are gone after seconds; a snapshot leases its version, so that storage keeps it. A task in the background
//! renews the lease at a third of its term, and ends it when the snapshot is dropped. If it cannot be renewed in time (the database was
//! away for longer than the term), reads fail with `transaction_too_old`.

use std::fmt;
use std::sync::{Arc, Weak};

use ferrisdb_core::key::{SYSTEM_END, USER_END};
use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, Result, Version};
use ferrisdb_rpc::api::{GetRequest, Lease, LeaseRequest, Priority};
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};

use crate::database::DatabaseInner;
use crate::promise::Promise;
use crate::range::{RangeChunk, RangeOptions, RangeStream};
use crate::read::ReadFuture;
use crate::reads::outside;
use crate::view::{At, Place, View};

/// How to take a snapshot.
#[derive(Debug, Clone, Default)]
pub struct SnapshotOptions {
    /// At which version; `None`: the newest.
    pub version: Option<Version>,
    /// System keys (`\xff`...) may be read.
    pub read_system_keys: bool,
    /// Is taken also while the database is locked; otherwise that is `database_locked`.
    pub lock_aware: bool,
}

/// See the module's documentation. Cheap to clone; the lease ends with the last clone.
#[derive(Clone)]
pub struct Snapshot {
    inner: Arc<SnapshotInner>,
}

struct SnapshotInner {
    database: Arc<DatabaseInner>,
    lease: Lease,
    end: &'static [u8],
    dropped: Promise<()>,
}

impl Drop for SnapshotInner {
    fn drop(&mut self) {
        self.dropped.set(Ok(()));
    }
}

impl Snapshot {
    pub(crate) async fn take(database: &Arc<DatabaseInner>, options: SnapshotOptions) -> Result<Snapshot> {
        if !options.lock_aware {
            database.beginnings.begin(Priority::Default).admitted(false).wait().await?;
        }
        let grant = Grant { database: Arc::clone(database), answer: None };
        let lease = grant.take(options.version).await?;
        let dropped = Promise::new();
        let end = if options.read_system_keys { SYSTEM_END } else { USER_END };
        let inner = Arc::new(SnapshotInner { database: Arc::clone(database), lease, end, dropped: dropped.clone() });
        let renewing = renew(Arc::clone(database), lease, Arc::downgrade(&inner), dropped);
        database.runtime.spawn("lease", renewing.boxed());
        Ok(Snapshot { inner })
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        self.inner.lease.version
    }

    /// A key's value.
    ///
    /// # Errors
    /// `key_outside_legal_range`, `transaction_too_old` if the lease was lost, and those of asking.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let key = key.as_ref();
        if key >= self.inner.end {
            return Err(outside(key));
        }
        if key.len() > self.inner.database.limits.key_bytes_for(key) {
            return Ok(None);
        }
        let request = GetRequest { key: Bytes::copy_from_slice(key), version: self.version() };
        self.inner.database.endpoint.get(request).await
    }

    /// The key at a place: `''` off the front, the end of the readable keys off the end.
    ///
    /// # Errors
    /// As of [`get`](Self::get).
    pub async fn get_key(&self, selector: KeySelector) -> Result<Bytes> {
        if *selector.key > *self.inner.end {
            return Err(outside(&selector.key));
        }
        let view = self.view();
        Ok(match view.resolve(&selector.without_or_equal()).await? {
            Place::Front => Bytes::new(),
            Place::Key(key) => key,
            Place::End => view.end,
        })
    }

    /// A chunk of a range: as [`Transaction::get_range`](crate::Transaction::get_range).
    ///
    /// # Errors
    /// As of [`get`](Self::get), and those of the range's options.
    pub async fn get_range(&self, options: impl Into<RangeOptions>) -> Result<RangeChunk> {
        let options = options.into();
        let budget = options.budget()?;
        for selector in [&options.begin, &options.end] {
            if *selector.key > *self.inner.end {
                return Err(outside(&selector.key));
            }
        }
        options.check_limits()?;
        let begin = options.begin.clone().without_or_equal();
        let end = options.end.clone().without_or_equal();
        let options = RangeOptions { begin, end, ..options };
        if options.is_inverted() {
            return Ok(RangeChunk::default());
        }
        let (chunk, _) = self.view().chunk(&options, budget).await?;
        Ok(chunk)
    }

    /// All rows of a range, one by one.
    pub fn get_ranges(&self, options: impl Into<RangeOptions>) -> RangeStream {
        let snapshot = self.clone();
        let ask = move |options: RangeOptions| {
            let snapshot = snapshot.clone();
            ReadFuture::alone(async move { snapshot.get_range(options).await }.boxed())
        };
        RangeStream::new(options.into(), ask)
    }

    /// About how many bytes a range has, from samples; now, not at the snapshot's version.
    ///
    /// # Errors
    /// Those of asking.
    pub async fn get_estimated_range_size(&self, range: KeyRange) -> Result<u64> {
        self.inner.database.endpoint.estimated_size(range).await
    }

    fn view(&self) -> View {
        let database = &self.inner.database;
        View {
            endpoint: Arc::clone(&database.endpoint),
            at: At::Version(self.version()),
            overlay: Arc::clone(&database.empty_overlay),
            bypass_unreadable: false,
            value_bytes_max: database.limits.value_bytes,
            end: Bytes::from_static(self.inner.end),
        }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("version", &self.version()).finish_non_exhaustive()
    }
}

/// A question for a lease. If the future that asks is dropped before the answer, the lease, if it is granted, would run its term
/// unused: so the answer is awaited in the background, and the lease ended.
struct Grant {
    database: Arc<DatabaseInner>,
    answer: Option<ferrisdb_core::runtime::BoxFuture<Result<Lease>>>,
}

impl Grant {
    async fn take(mut self, version: Option<Version>) -> Result<Lease> {
        self.answer = Some(self.database.endpoint.lease(LeaseRequest::Grant(version)).boxed());
        let lease = self.answer.as_mut().expect("it was put there just now").await;
        self.answer = None;
        lease
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let database = Arc::clone(&self.database);
        let end = async move {
            if let Ok(lease) = answer.await {
                drop(database.endpoint.lease(LeaseRequest::End(lease.id)).await);
            }
        };
        self.database.runtime.spawn("lease", end.boxed());
    }
}

/// Renews a lease for as long as its snapshot is held, then ends it.
async fn renew(database: Arc<DatabaseInner>, lease: Lease, held: Weak<SnapshotInner>, dropped: Promise<()>) {
    let mut term_ms = lease.term_ms;
    // A third of the term, so that two failures in a row do no harm; a tenth after a failure.
    let mut delay_ms = term_ms / 3;
    while held.strong_count() > 0 {
        let sleep = database.runtime.sleep(std::time::Duration::from_millis(delay_ms.max(1)));
        if let Either::Left(_) = select(dropped.wait(), sleep).await {
            break;
        }
        match database.endpoint.lease(LeaseRequest::Renew(lease.id)).await {
            Ok(renewed) => {
                term_ms = renewed.term_ms;
                delay_ms = term_ms / 3;
            }
            // It has expired: reads say so.
            Err(error) if error.code() == Code::TransactionTooOld => return,
            Err(_) => delay_ms = term_ms / 10,
        }
    }
    // If this is lost the lease ends by itself, only later.
    drop(database.endpoint.lease(LeaseRequest::End(lease.id)).await);
}
