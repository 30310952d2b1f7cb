//! [`ClientSubject`]: the client library as the oracle's subject, whatever its database is.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_client::{
    ConflictRangeType, Database, Mapped, RangeOptions, StreamingMode, Transaction, TransactionOption, WatchFuture,
};
use ferrisdb_core::{Code, Error, KeyRange, KeyValue, Result, Runtime};
use futures_util::future::{Either, select};

use super::Subject;
use super::program::{MappedRow, Mode, Observed, RangeQuestion, SLOTS, Step};

/// How long a watch whose key has changed may take to fire.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);

/// By what programs lock the database.
pub const LOCK: [u8; 16] = *b"the oracle's one";

/// Runs programs on a [`Database`].
pub struct ClientSubject {
    db: Database,
    runtime: Arc<dyn Runtime>,
    transactions: [Transaction; SLOTS],
    watches: Vec<Watch>,
}

enum Watch {
    Waiting(WatchFuture),
    Fired,
    Failed(Code),
}

impl ClientSubject {
    /// A subject over `db`, whose timers are `runtime`'s.
    pub fn new(db: Database, runtime: Arc<dyn Runtime>) -> ClientSubject {
        let transactions = std::array::from_fn(|_| db.create_transaction());
        ClientSubject { db, runtime, transactions, watches: Vec::new() }
    }

    async fn take(&mut self, step: &Step) -> Result<Observed> {
        let tx = self.transactions[step.slot()].clone();
        Ok(match step {
            Step::Begin { slot } => {
                self.transactions[*slot] = self.db.create_transaction();
                Observed::Done
            }
            Step::ReadVersion { .. } => {
                let version = tx.get_read_version().await?;
                Observed::Version(i64::try_from(version.get()).expect("a version has 56 bits"))
            }
            Step::Get { key, snapshot: false, .. } => Observed::Value(tx.get(key).await?),
            Step::Get { key, .. } => Observed::Value(tx.snapshot().get(key).await?),
            Step::GetKey { selector, snapshot: false, .. } => Observed::Key(tx.get_key(selector.clone()).await?),
            Step::GetKey { selector, .. } => Observed::Key(tx.snapshot().get_key(selector.clone()).await?),
            Step::GetRange { question, snapshot, .. } => {
                let options = range_options(question);
                let chunk = if *snapshot { tx.snapshot().get_range(options) } else { tx.get_range(options) }.await?;
                Observed::Rows { rows: chunk.rows, more: chunk.more }
            }
            Step::Set { key, value, .. } => {
                tx.set(key, value);
                Observed::Done
            }
            Step::Clear { key, .. } => {
                tx.clear(key);
                Observed::Done
            }
            Step::ClearRange { begin, end, .. } => {
                tx.clear_range(begin, end);
                Observed::Done
            }
            Step::Atomic { kind, key, operand, .. } => {
                tx.atomic_op(key, operand, *kind);
                Observed::Done
            }
            Step::ReadConflict { begin, end, .. } => {
                let range = KeyRange::new(begin.clone(), end.clone());
                {
                    tx.add_conflict_range(range, ConflictRangeType::Read)?;
                    Observed::Done
                }
            }
            Step::WriteConflict { begin, end, .. } => {
                let range = KeyRange::new(begin.clone(), end.clone());
                {
                    tx.add_conflict_range(range, ConflictRangeType::Write)?;
                    Observed::Done
                }
            }
            Step::GetMapped { question, mapper, snapshot, .. } => {
                let options = range_options(question);
                let reading = if *snapshot {
                    tx.snapshot().get_mapped_range(options, mapper)
                } else {
                    tx.get_mapped_range(options, mapper)
                };
                let chunk = reading.await?;
                Observed::Mapped { rows: chunk.rows.into_iter().map(mapped_row).collect(), more: chunk.more }
            }
            Step::SetLock { locked } => {
                if *locked { self.db.lock(LOCK).await } else { self.db.unlock(LOCK).await }?;
                Observed::Done
            }
            Step::LockAware { read_only, .. } => {
                tx.set_option(if *read_only {
                    &TransactionOption::ReadLockAware
                } else {
                    &TransactionOption::LockAware
                });
                Observed::Done
            }
            Step::NextWriteNoConflict { .. } => {
                tx.set_option(&TransactionOption::NextWriteNoWriteConflictRange);
                Observed::Done
            }
            Step::ReadYourWritesDisable { .. } => {
                tx.set_option(&TransactionOption::ReadYourWritesDisable);
                Observed::Done
            }
            Step::SnapshotReadYourWrites { enable: true, .. } => {
                tx.set_option(&TransactionOption::SnapshotRywEnable);
                Observed::Done
            }
            Step::SnapshotReadYourWrites { .. } => {
                tx.set_option(&TransactionOption::SnapshotRywDisable);
                Observed::Done
            }
            Step::RetryLimit { limit, .. } => {
                tx.set_option(&TransactionOption::RetryLimit(i64::from(*limit)));
                Observed::Done
            }
            Step::Watch { key, .. } => {
                let mut watch = tx.watch(key);
                let mut result = poll_once(&mut watch);
                let mut read = Ok(None);
                if result.is_none() {
                    // Over a connection the value that the watch saw comes later. A read of the same key adds no other conflict and is
                    // answered after it.
                    read = tx.get(key).await;
                    result = poll_once(&mut watch);
                }
                let (watch, observed) = match (result, read) {
                    (Some(Err(error)), _) | (None, Err(error)) => (Watch::Failed(error.code()), Err(error)),
                    (Some(Ok(())), _) => (Watch::Fired, Ok(Observed::Done)),
                    (None, Ok(_)) => (Watch::Waiting(watch), Ok(Observed::Done)),
                };
                self.watches.push(watch);
                return observed;
            }
            Step::WatchFired { watch, wait, .. } => self.watch_fired(*watch, *wait).await,
            Step::ApproximateSize { .. } => Observed::Size(tx.get_approximate_size()?),
            Step::SplitPoints { begin, end, part_bytes, .. } => {
                let range = KeyRange::new(begin.clone(), end.clone());
                Observed::Keys(tx.get_range_split_points(range, *part_bytes, 0).await?)
            }
            Step::Commit { .. } => {
                let stamp = tx.get_versionstamp();
                tx.commit().await?;
                let version = tx.get_committed_version().map(ferrisdb_core::Version::get);
                let stamp = stamp.await.map(|stamp| *stamp.as_bytes()).map_err(|error| error.code());
                Observed::Committed { version, stamp }
            }
            Step::CommittedVersion { .. } => {
                let version = tx.get_committed_version().map(ferrisdb_core::Version::get);
                Observed::Version(version.map_or(-1, |version| i64::try_from(version).expect("a version has 56 bits")))
            }
            Step::OnError { code, .. } => {
                tx.on_error(Error::new(*code)).await?;
                Observed::Done
            }
            Step::Reset { .. } => {
                tx.reset();
                Observed::Done
            }
            Step::Cancel { .. } => {
                tx.cancel();
                Observed::Done
            }
        })
    }

    async fn watch_fired(&mut self, watch: usize, wait: bool) -> Observed {
        let watch = &mut self.watches[watch];
        if let Watch::Waiting(future) = watch {
            let result = if wait {
                match select(future, self.runtime.sleep(WATCH_PATIENCE)).await {
                    Either::Left((result, _)) => Some(result),
                    Either::Right(_) => None,
                }
            } else {
                poll_once(future)
            };
            match result {
                None => {}
                Some(Ok(())) => *watch = Watch::Fired,
                Some(Err(error)) => *watch = Watch::Failed(error.code()),
            }
        }
        match watch {
            Watch::Waiting(_) => Observed::Fired(false),
            Watch::Fired => Observed::Fired(true),
            Watch::Failed(code) => Observed::Failed(*code),
        }
    }
}

impl Subject for ClientSubject {
    async fn step(&mut self, step: &Step) -> Observed {
        self.take(step).await.unwrap_or_else(|error| Observed::Failed(error.code()))
    }
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn mapped_row(row: ferrisdb_client::MappedRow) -> MappedRow {
    let (range, rows) = match row.mapped {
        Mapped::Value { key, value } => {
            let rows = value.into_iter().map(|value| KeyValue { key: key.clone(), value }).collect();
            (KeyRange::single(&key), rows)
        }
        Mapped::Range { range, rows } => (range, rows),
    };
    MappedRow { entry: row.entry, range, rows }
}

fn range_options(question: &RangeQuestion) -> RangeOptions {
    let (mode, iteration) = match question.mode {
        Mode::WantAll => (StreamingMode::WantAll, 1),
        Mode::Iterator(iteration) => (StreamingMode::Iterator, iteration),
        Mode::Exact => (StreamingMode::Exact, 1),
        Mode::Small => (StreamingMode::Small, 1),
        Mode::Medium => (StreamingMode::Medium, 1),
        Mode::Large => (StreamingMode::Large, 1),
        Mode::Serial => (StreamingMode::Serial, 1),
    };
    RangeOptions {
        limit: question.limit,
        target_bytes: question.target_bytes,
        mode,
        iteration,
        reverse: question.reverse,
        ..RangeOptions::new(question.begin.clone(), question.end.clone())
    }
}
