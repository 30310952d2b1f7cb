//! [`Transaction`]: what a program does to the database between one version and the next.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, MutationKind, Result, Version, Versionstamp};

use crate::commit::Commit;
use crate::database::{Database, DatabaseInner};
use crate::mapped::MappedChunk;
use crate::options::TransactionOption;
use crate::promise::Promise;
use crate::range::{RangeChunk, RangeOptions, RangeStream};
use crate::read::{Guarded, Promised, ReadFuture};
use crate::retry::Decision;
use crate::state::{CommitPhase, Inner, ReadVersion};
use crate::watch::{self, WatchFuture};

/// Which kind of conflict a range takes part in. The numbers are FoundationDB's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConflictRangeType {
    /// As if the range had been read.
    Read = 0,
    /// As if the range had been written.
    Write = 1,
}

/// A transaction: it reads at one version, sees its own writes, and commits all of them or none, if nothing that it has read was changed
/// meanwhile. Committed transactions are strictly serializable.
///
/// Cheap to clone; clones are the same transaction. All methods take `&self` and may be called from any thread. Calls that read begin at
/// once and return futures that need no particular runtime; a read sees what was written before it was called. Calls that write return
/// nothing: what is wrong with them is told by the next call that returns something (a *deferred error*).
///
/// Once `commit` has been called nothing else may be done (`used_during_commit`), until [`reset`](Self::reset). If a call fails,
/// [`on_error`](Self::on_error) says whether to try again; [`Database::run`] does all that.
#[derive(Clone)]
pub struct Transaction {
    pub(crate) inner: Arc<Inner>,
}

/// The reads of a transaction that do not conflict: see [`Transaction::snapshot`].
#[derive(Clone)]
pub struct SnapshotReads {
    inner: Arc<Inner>,
}

impl Transaction {
    pub(crate) fn new(database: &Arc<DatabaseInner>) -> Transaction {
        Transaction { inner: Arc::new(Inner::new(Arc::clone(database))) }
    }

    /// Its database.
    pub fn database(&self) -> Database {
        Database { inner: Arc::clone(&self.inner.database) }
    }

    // Reads.

    /// A key's value, or `None` if it has none.
    ///
    /// # Errors
    /// `key_outside_legal_range`; `accessed_unreadable` if a versionstamp decides what is there; `transaction_too_old`,
    /// `future_version` and other errors of asking.
    pub fn get(&self, key: impl AsRef<[u8]>) -> ReadFuture<Option<Bytes>> {
        self.inner.get(key.as_ref(), false, true)
    }

    /// The key at a place: `''` off the front, the end of the readable keys (`\xff`, or `\xff\xff` with system keys) off the end.
    ///
    /// # Errors
    /// As of [`get`](Self::get).
    pub fn get_key(&self, selector: KeySelector) -> ReadFuture<Bytes> {
        self.inner.get_key(selector, false)
    }

    /// A chunk of a range. [`RangeOptions::after`] makes of its options and the chunk those for the next one.
    ///
    /// # Errors
    /// As of [`get`](Self::get); `exact_mode_without_limits`, `range_limits_invalid`.
    pub fn get_range(&self, options: impl Into<RangeOptions>) -> ReadFuture<RangeChunk> {
        self.inner.get_range(options.into(), false)
    }

    /// A chunk of a mapped range: the entries of an index, and for each what `mapper` says that it leads to.
    ///
    /// ```
    /// # async fn example(tx: ferrisdb_client::Transaction) -> ferrisdb_core::Result<()> {
    /// use ferrisdb_client::layers::Tuple;
    ///
    /// // Of the entries ("city", <city>, <person>) those of one city, and with each all that is kept below ("person", <person>).
    /// let mapper = Tuple::from(("person", "{K[2]}", "{...}")).pack();
    /// let chunk = tx.get_mapped_range(Tuple::from(("city", "Oslo")).range(), mapper).await?;
    /// # let _ = chunk; Ok(())
    /// # }
    /// ```
    ///
    /// It reads and conflicts with both. [`MappedChunk::rest_of`] makes of its options and the chunk those for the next one.
    ///
    /// # Errors
    /// As of [`get_range`](Self::get_range); `mapper_not_tuple`, `mapper_bad_range_decriptor`, `mapper_bad_index`, `key_not_tuple`,
    /// `value_not_tuple`; `get_mapped_range_reads_your_writes` where the transaction itself has written; `quick_get_key_values_has_more` if one entry
    /// leads to more than 2,000 rows; `unsupported_operation` in reverse or without read-your-writes.
    pub fn get_mapped_range(
        &self,
        options: impl Into<RangeOptions>,
        mapper: impl AsRef<[u8]>,
    ) -> ReadFuture<MappedChunk> {
        self.inner.get_mapped_range(options.into(), mapper.as_ref(), false)
    }

    /// All rows of a range, one by one.
    pub fn get_ranges(&self, options: impl Into<RangeOptions>) -> RangeStream {
        let inner = Arc::clone(&self.inner);
        RangeStream::new(options.into(), move |options| inner.get_range(options, false))
    }

    /// The reads of this transaction that add no conflict ranges: another transaction that writes what they have read does not
    /// stop this one. They see the transaction's own writes, unless an option says otherwise.
    pub fn snapshot(&self) -> SnapshotReads {
        SnapshotReads { inner: Arc::clone(&self.inner) }
    }

    /// The version that it reads at. Asks for one if it has none yet.
    ///
    /// # Errors
    /// Those of asking.
    pub fn get_read_version(&self) -> ReadFuture<Version> {
        self.inner.get_read_version()
    }

    /// Reads at this version in place of asking for one. Deferred errors: `read_version_already_set` once it has one or has asked,
    /// `version_invalid` unless it is above zero.
    pub fn set_read_version(&self, version: i64) {
        self.inner.with(|state| {
            let version = u64::try_from(version).ok().filter(|version| *version > 0).and_then(Version::new);
            let result = match (&state.version, version) {
                (ReadVersion::Unasked, Some(version)) => {
                    state.version = ReadVersion::Known(version);
                    Ok(())
                }
                (ReadVersion::Unasked, None) => Err(Code::VersionInvalid.into()),
                _ => Err(Code::ReadVersionAlreadySet.into()),
            };
            state.defer(result);
        });
    }

    /// About how many bytes a range has, from samples. Small ranges may have none.
    ///
    /// # Errors
    /// `inverted_range`, `key_outside_legal_range`, and those of asking.
    pub fn get_estimated_range_size(&self, range: KeyRange) -> ReadFuture<u64> {
        self.inner.estimated_size(range)
    }

    /// Keys that cut a range into parts of about `part_bytes`, at most `limit` parts (0: no bound). The first is the range's begin, the
    /// last its end.
    ///
    /// # Errors
    /// As of [`get_estimated_range_size`](Self::get_estimated_range_size); `client_invalid_operation` if `part_bytes` is 0.
    pub fn get_range_split_points(&self, range: KeyRange, part_bytes: u64, limit: u32) -> ReadFuture<Vec<Bytes>> {
        self.inner.split_points(range, part_bytes, limit)
    }

    /// Addresses (`IP:PORT`) of the servers that hold a key; none in an embedded database.
    ///
    /// # Errors
    /// Those of asking.
    pub fn get_addresses_for_key(&self, key: impl AsRef<[u8]>) -> ReadFuture<Vec<String>> {
        self.inner.addresses_for_key(Bytes::copy_from_slice(key.as_ref()))
    }

    /// Ready once the key has another value than this transaction sees now. It begins to work when the transaction has committed (one
    /// that writes nothing too), and fails if it does not. Reads the key, with a conflict.
    ///
    /// # Errors
    /// `watches_disabled` without read-your-writes, `too_many_watches`, `key_too_large`, `key_outside_legal_range`, those of the read and of
    /// the commit, `transaction_cancelled` after a cancel or reset before the commit.
    pub fn watch(&self, key: impl AsRef<[u8]>) -> WatchFuture {
        match self.try_watch(key.as_ref()) {
            Ok(watch) => watch,
            Err(error) => WatchFuture::failed(error),
        }
    }

    fn try_watch(&self, key: &[u8]) -> Result<WatchFuture> {
        let inner = &self.inner;
        let epoch = inner.with(|state| {
            inner.enter(state)?;
            if state.settings.is_ryw_disabled {
                return Err(Code::WatchesDisabled.into());
            }
            if key >= state.read_end() && key != crate::state::METADATA_VERSION_KEY {
                return Err(crate::reads::outside(key));
            }
            if key.len() > inner.limits().key_bytes_for(key) {
                return Err(Code::KeyTooLarge.into());
            }
            Ok(state.epoch)
        })?;
        let permit = inner.database.watch_permit()?;
        let read = inner.get(key, false, false);
        Ok(watch::watch(inner, epoch, Bytes::copy_from_slice(key), permit, read))
    }

    // Writes.

    /// `key` becomes `value`. Deferred errors: `key_too_large`, `value_too_large`, `key_outside_legal_range`.
    pub fn set(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.inner.set(key.as_ref(), value.as_ref());
    }

    /// `key` loses its value, if it has one. Deferred error: `key_outside_legal_range`.
    pub fn clear(&self, key: impl AsRef<[u8]>) {
        self.inner.clear(key.as_ref());
    }

    /// The keys in `begin..end` lose their values. Deferred errors: `inverted_range`, `key_outside_legal_range`.
    pub fn clear_range(&self, begin: impl AsRef<[u8]>, end: impl AsRef<[u8]>) {
        let (begin, end) = (Bytes::copy_from_slice(begin.as_ref()), Bytes::copy_from_slice(end.as_ref()));
        self.inner.clear_range(KeyRange { begin, end });
    }

    /// Changes a value without reading it: the database computes when it commits, so that two transactions that do it do not
    /// conflict. See [`MutationKind`] for what there is; the two for versionstamps take templates, which [`ferrisdb_core::versionstamp`]
    /// describes. Deferred errors: those of [`set`](Self::set), `client_invalid_operation` for a bad template, `invalid_mutation_type` for
    /// a kind that is not atomic.
    pub fn atomic_op(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>, kind: MutationKind) {
        self.inner.atomic_op(key.as_ref(), operand.as_ref(), kind);
    }

    /// [`atomic_op`](Self::atomic_op) by FoundationDB's number. Deferred error: `invalid_mutation_type` for an unknown one.
    pub fn atomic_op_by_number(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>, number: i32) {
        // Sets and clears have numbers too; they are refused further on.
        match u8::try_from(number).ok().and_then(MutationKind::from_number) {
            Some(kind) => self.atomic_op(key, operand, kind),
            None => self.inner.with(|state| {
                let detail = format!("{number} is not an atomic operation");
                state.defer(Err(Error::with(Code::InvalidMutationType, detail)));
            }),
        }
    }

    /// Makes a range conflict as if it had been read or written. Deferred error: `key_outside_legal_range`.
    ///
    /// # Errors
    /// `inverted_range`.
    pub fn add_conflict_range(&self, range: KeyRange, kind: ConflictRangeType) -> Result<()> {
        if range.begin > range.end {
            return Err(crate::reads::inverted(&range));
        }
        match kind {
            ConflictRangeType::Read => self.inner.add_read_conflict_range(range),
            ConflictRangeType::Write => self.inner.add_write_conflict_range(range),
        }
        Ok(())
    }

    /// An estimate of the bytes that a commit would have. It grows with every write and conflict range.
    ///
    /// # Errors
    /// Deferred errors, and those of a transaction that is of no more use.
    pub fn get_approximate_size(&self) -> Result<u64> {
        self.inner.with(|state| {
            self.inner.enter(state)?;
            Ok(state.size)
        })
    }

    // The end.

    /// Commits. Waits for reads under way first, and fails with the error of any read that failed. A transaction that has written
    /// nothing commits without asking anybody, and cannot conflict.
    ///
    /// If the future is dropped the commit goes on, and its outcome is unknown to whoever dropped it.
    ///
    /// # Errors
    /// `not_committed`: a conflict. `transaction_too_large`. `commit_unknown_result` and `commit_unknown_result_fatal`: it may have happened,
    /// and nobody can say; with automatic idempotency, the default, only if the database cannot be asked. `transaction_timed_out` and
    /// `transaction_cancelled`: it may happen yet. Deferred errors, and others that say that it did not happen.
    pub fn commit(&self) -> Commit {
        Commit::start(&self.inner)
    }

    /// A random number, for layers that spread what they write.
    pub(crate) fn random(&self) -> u64 {
        self.inner.runtime().random()
    }

    /// The version of a commit that succeeded and wrote something; otherwise `None`.
    pub fn get_committed_version(&self) -> Option<Version> {
        self.inner.with(|state| match state.commit {
            CommitPhase::Succeeded(version) => version,
            CommitPhase::NotBegun | CommitPhase::Begun | CommitPhase::Failed => None,
        })
    }

    /// A future for the versionstamp that the commit will put in. It is to be asked for before the commit.
    ///
    /// # Errors
    /// `no_commit_version` if nothing was written, `transaction_invalid_version` if the commit fails, `used_during_commit` if it has begun.
    pub fn get_versionstamp(&self) -> impl Future<Output = Result<Versionstamp>> + Send + 'static {
        let promised: Result<Promised<Versionstamp>> = self.inner.with(|state| {
            self.inner.check_commit(state)?;
            self.inner.check_poison(state)?;
            let promise = state.stamp.get_or_insert_with(Promise::new);
            Ok(Promised::new(&self.inner, state.epoch, promise))
        });
        async move { promised?.await }
    }

    /// What to do after an error: if it passes, waits a little, makes the transaction as new (options other than timeout, retry limit and
    /// longest delay go back to the database's defaults) and returns `Ok`: try again. Otherwise returns the error, and the transaction is
    /// of no more use until it is reset.
    ///
    /// # Errors
    /// `error`, if it does not pass or the retry limit is reached; the reason why the transaction is of no more use.
    pub fn on_error(&self, error: Error) -> impl Future<Output = Result<()>> + Send + 'static {
        let inner = Arc::clone(&self.inner);
        let random = inner.runtime().random();
        let decided = inner.with(|state| {
            inner.check_poison(state)?;
            match state.retry.decide(&error, &state.settings.retry, random) {
                Decision::RetryAfter(delay) => Ok((delay, state.epoch)),
                Decision::GiveUp => {
                    state.poison(Code::TransactionCancelled.into());
                    Err(error)
                }
            }
        });
        async move {
            let (delay, epoch) = decided?;
            if !delay.is_zero() {
                let sleep = inner.runtime().sleep(delay);
                let wait = Box::pin(async move {
                    sleep.await;
                    Ok(())
                });
                Guarded::new(Arc::clone(&inner), epoch, wait).await?;
            }
            inner.reset_after_error(epoch);
            Ok(())
        }
    }

    /// Ends it: everything fails with `transaction_cancelled`, until [`reset`](Self::reset). A commit whose request was sent goes on.
    pub fn cancel(&self) {
        self.inner.with(|state| state.poison(Code::TransactionCancelled.into()));
    }

    /// Makes it as new, with the database's default options. What is under way fails with `transaction_cancelled`.
    pub fn reset(&self) {
        self.inner.reset();
    }

    /// Errors that `on_error` has been given since the transaction was made or reset.
    pub fn retries(&self) -> u32 {
        self.inner.with(|state| state.retry.retries())
    }

    // Options.

    /// Sets an option. Deferred errors: `invalid_option_value`, and `client_invalid_operation` for `read_your_writes_disable` after a
    /// read or write.
    pub fn set_option(&self, option: &TransactionOption) {
        self.inner.with(|state| {
            if matches!(option, TransactionOption::Timeout(_)) {
                // A timeout that is over has fired, whether or not anybody has looked since: a new one does not undo that.
                self.inner.check_poison(state).unwrap_or_default();
            }
            let is_late = *option == TransactionOption::ReadYourWritesDisable && !state.is_untouched();
            let result = if is_late {
                let detail = "read_your_writes_disable is to be set before anything is read or written";
                Err(Error::with(Code::ClientInvalidOperation, detail))
            } else {
                state.settings.set(option)
            };
            state.defer(result);
            if matches!(option, TransactionOption::Timeout(_)) {
                // Futures under way look at the new deadline.
                state.wake_all();
            }
        });
    }

    /// Sets an option by FoundationDB's number, with a value as its C interface takes it. Deferred errors as of
    /// [`set_option`](Self::set_option).
    ///
    /// # Errors
    /// `invalid_option` for an unknown number.
    pub fn set_option_by_number(&self, number: i32, value: Option<&[u8]>) -> Result<()> {
        match TransactionOption::from_number(number, value) {
            Ok(option) => self.set_option(&option),
            Err(error) if error.code() == Code::InvalidOption => return Err(error),
            Err(error) => self.inner.with(|state| state.defer(Err(error))),
        }
        Ok(())
    }

    /// Whether its commit carries an id: see [`DatabaseOptions::automatic_idempotency`](crate::DatabaseOptions::automatic_idempotency).
    /// Goes back to the database's default after an error.
    pub fn set_automatic_idempotency(&self, is_on: bool) {
        self.inner.with(|state| state.settings.is_idempotent = is_on);
    }
}

impl SnapshotReads {
    /// See [`Transaction::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> ReadFuture<Option<Bytes>> {
        self.inner.get(key.as_ref(), true, true)
    }

    /// See [`Transaction::get_key`].
    pub fn get_key(&self, selector: KeySelector) -> ReadFuture<Bytes> {
        self.inner.get_key(selector, true)
    }

    /// See [`Transaction::get_range`].
    pub fn get_range(&self, options: impl Into<RangeOptions>) -> ReadFuture<RangeChunk> {
        self.inner.get_range(options.into(), true)
    }

    /// There is no such read without conflicts.
    ///
    /// # Errors
    /// `unsupported_operation`, unless the call is wrong in another way.
    pub fn get_mapped_range(
        &self,
        options: impl Into<RangeOptions>,
        mapper: impl AsRef<[u8]>,
    ) -> ReadFuture<MappedChunk> {
        self.inner.get_mapped_range(options.into(), mapper.as_ref(), true)
    }

    /// See [`Transaction::get_ranges`].
    pub fn get_ranges(&self, options: impl Into<RangeOptions>) -> RangeStream {
        let inner = Arc::clone(&self.inner);
        RangeStream::new(options.into(), move |options| inner.get_range(options, true))
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (commit, size) = self.inner.with(|state| (state.commit, state.size));
        f.debug_struct("Transaction").field("commit", &commit).field("size", &size).finish_non_exhaustive()
    }
}

impl fmt::Debug for SnapshotReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotReads")
    }
}
