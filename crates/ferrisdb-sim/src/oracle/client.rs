//! [`ClientSubject`]: the client library as the oracle's subject, whatever its database is.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_client::{
    ConflictRangeType, Database, DatabaseOption, Mapped, RangeOptions, Snapshot, SnapshotOptions, StreamingMode,
    Transaction, TransactionOption, WatchFuture,
};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Code, Error, KeyRange, KeyValue, MutationKind, Result, Runtime, Version};
use futures_util::future::{Either, select};

use super::Subject;
use super::program::{MappedRow, Mode, Observed, RangeQuestion, SLOTS, SNAPSHOTS, Step};
use super::view::SYSTEM_END;

/// How long a watch whose key has changed may take to fire.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);

/// A timeout that a program sees the end of.
const SHORT: Duration = Duration::from_millis(5);

/// By what programs lock the database.
pub const LOCK: [u8; 16] = *b"the oracle's one";

/// Runs programs on a [`Database`].
pub struct ClientSubject {
    db: Database,
    runtime: Arc<dyn Runtime>,
    transactions: [Transaction; SLOTS],
    watches: Vec<Watch>,
    snapshots: [Option<Snapshot>; SNAPSHOTS],
    pause: Duration,
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
        let snapshots = std::array::from_fn(|_| None);
        ClientSubject { db, runtime, transactions, watches: Vec::new(), snapshots, pause: Duration::ZERO }
    }

    /// Between a program's transactions so much time passes now and then, and only snapshots stay readable.
    pub fn pausing(mut self, pause: Duration) -> ClientSubject {
        self.pause = pause;
        self
    }

    async fn take(&mut self, step: &Step) -> Result<Observed> {
        let tx = self.transactions[step.slot()].clone();
        Ok(match step {
            Step::Begin { slot } => {
                self.transactions[*slot] = tx.database().create_transaction();
                Observed::Done
            }
            Step::ReadVersion { .. } => {
                let version = tx.get_read_version().await?;
                Observed::Version(i64::try_from(version.get()).expect("a version has 56 bits"))
            }
            Step::Get { .. } | Step::GetKey { .. } | Step::GetRange { .. } | Step::Stream { .. } => {
                read(&tx, step).await?
            }
            Step::Set { .. } | Step::Clear { .. } => {
                write(&tx, step);
                Observed::Done
            }
            Step::Dropped { read: dropped, polls, .. } => {
                let mut reading = read(&tx, dropped);
                let told = (0..*polls).find_map(|_| poll_once(&mut reading));
                Observed::Dropped(told.map(|told| Box::new(told_of(told))))
            }
            Step::Overlapping { first, between, second, .. } => {
                let reading_first = read(&tx, first);
                write(&tx, between);
                let reading_second = read(&tx, second);
                let second = Box::new(told_of(reading_second.await));
                Observed::Two(Box::new(told_of(reading_first.await)), second)
            }
            Step::ClearRange { begin, end, .. } => {
                tx.clear_range(begin, end);
                Observed::Done
            }
            Step::Atomic { kind, key, operand, .. } => {
                match number_of(*kind) {
                    Some(number) => tx.atomic_op_by_number(key, operand, number),
                    None => tx.atomic_op(key, operand, *kind),
                }
                Observed::Done
            }
            Step::AtomicByNumber { key, operand, number, .. } => {
                tx.atomic_op_by_number(key, operand, *number);
                Observed::Done
            }
            Step::SystemKeys { reads, .. } => {
                tx.set_option(if *reads {
                    &TransactionOption::ReadSystemKeys
                } else {
                    &TransactionOption::AccessSystemKeys
                });
                Observed::Done
            }
            Step::OptionByNumber { number, value, .. } => {
                tx.set_option_by_number(*number, value.as_deref())?;
                Observed::Done
            }
            Step::DatabaseDefault { number, value } => {
                let value = value.map(i64::to_le_bytes);
                let value = value.as_ref().map(|value| &value[..]);
                self.db.set_option(&DatabaseOption::from_number(*number, value)?)?;
                Observed::Done
            }
            Step::Retries { .. } => Observed::Size(tx.retries().into()),
            Step::Addresses { key, .. } => {
                // Which they are nobody knows here.
                drop(tx.get_addresses_for_key(key).await?);
                Observed::Done
            }
            Step::Timeout { millis, .. } => {
                tx.set_option(&TransactionOption::Timeout(*millis));
                Observed::Done
            }
            Step::Expire { meanwhile, .. } => self.expire(&tx, meanwhile.as_deref()).await,
            Step::LockedBy => Observed::Locked(match self.db.locked_by().await? {
                None => false,
                Some(LOCK) => true,
                Some(_) => return Err(Code::InternalError.into()),
            }),
            Step::Pause => {
                self.transactions = std::array::from_fn(|_| self.db.create_transaction());
                self.runtime.sleep(self.pause).await;
                Observed::Done
            }
            Step::TakeSnapshot { held, version, system, lock_aware } => {
                // The old one goes first, and with it its lease.
                self.snapshots[*held] = None;
                let version = version.and_then(|version| Version::new(u64::try_from(version).ok()?));
                let options = SnapshotOptions { version, read_system_keys: *system, lock_aware: *lock_aware };
                let snapshot = self.db.snapshot(options).await?;
                let version = i64::try_from(snapshot.version().get()).expect("a version has 56 bits");
                self.snapshots[*held] = Some(snapshot);
                Observed::Version(version)
            }
            Step::SnapshotRead { held, read } => {
                let snapshot = self.snapshots[*held].as_ref().expect("programs read snapshots that they hold");
                snapshot_read(snapshot, read).await?
            }
            Step::DropSnapshot { held } => {
                self.snapshots[*held] = None;
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
                let version = tx.get_committed_version().map(Version::get);
                let stamp = stamp.await.map(|stamp| *stamp.as_bytes()).map_err(|error| error.code());
                Observed::Committed { version, stamp }
            }
            Step::CommitDuring { key, .. } => {
                tx.set_option(&TransactionOption::UsedDuringCommitProtectionDisable);
                let stamp = tx.get_versionstamp();
                let committing = tx.commit();
                let read = Box::new(told_of(tx.get(key).await.map(Observed::Value)));
                let commit = match committing.await {
                    Ok(()) => {
                        let version = tx.get_committed_version().map(Version::get);
                        let stamp = stamp.await.map(|stamp| *stamp.as_bytes()).map_err(|error| error.code());
                        Observed::Committed { version, stamp }
                    }
                    Err(error) => Observed::Failed(error.code()),
                };
                Observed::During { read, commit: Box::new(commit) }
            }
            Step::SetReadVersion { version, .. } => {
                tx.set_read_version(*version);
                Observed::Done
            }
            Step::CausalWriteRisky { .. }
            | Step::Priority { .. }
            | Step::SizeLimit { .. }
            | Step::ReportConflictingKeys { .. }
            | Step::BypassUnreadable { .. } => {
                tx.set_option(&match step {
                    Step::CausalWriteRisky { .. } => TransactionOption::CausalWriteRisky,
                    Step::Priority { immediate: true, .. } => TransactionOption::PrioritySystemImmediate,
                    Step::Priority { .. } => TransactionOption::PriorityBatch,
                    Step::SizeLimit { bytes, .. } => TransactionOption::SizeLimit(i64::from(*bytes)),
                    Step::ReportConflictingKeys { .. } => TransactionOption::ReportConflictingKeys,
                    _ => TransactionOption::BypassUnreadable,
                });
                Observed::Done
            }
            Step::EstimatedSize { begin, end, .. } => {
                Observed::Size(tx.get_estimated_range_size(KeyRange::new(begin.clone(), end.clone())).await?)
            }
            Step::ConflictRanges { of_writes: false, .. } => told_ranges(&tx, "read_conflict_range").await?,
            Step::ConflictRanges { .. } => told_ranges(&tx, "write_conflict_range").await?,
            Step::ConflictingKeys { .. } => told_ranges(&tx, "conflicting_keys").await?,
            Step::CommittedVersion { .. } => {
                let version = tx.get_committed_version().map(Version::get);
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

    /// Gives it a short time, and waits until that is over.
    async fn expire(&self, tx: &Transaction, meanwhile: Option<&Step>) -> Observed {
        tx.set_option(&TransactionOption::Timeout(i64::try_from(SHORT.as_millis()).expect("it is short")));
        let mut told = None;
        let mut reading = None;
        match meanwhile {
            Some(Step::OnError { code, .. }) => {
                let retried = tx.on_error(Error::new(*code)).await.map(|()| Observed::Done);
                told = Some(told_of(retried));
            }
            Some(step) => reading = Some(read(tx, step)),
            None => {}
        }
        self.runtime.sleep(SHORT + Duration::from_millis(1)).await;
        if let Some(reading) = reading {
            told = Some(told_of(reading.await));
        }
        Observed::Expired(told.map(Box::new))
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

/// Begins a read.
fn read(tx: &Transaction, step: &Step) -> BoxFuture<Result<Observed>> {
    match step {
        Step::Get { key, snapshot, .. } => {
            let reading = if *snapshot { tx.snapshot().get(key) } else { tx.get(key) };
            Box::pin(async move { reading.await.map(Observed::Value) })
        }
        Step::GetKey { selector, snapshot, .. } => {
            let selector = selector.clone();
            let reading = if *snapshot { tx.snapshot().get_key(selector) } else { tx.get_key(selector) };
            Box::pin(async move { reading.await.map(Observed::Key) })
        }
        Step::GetRange { question, snapshot, .. } => {
            let options = range_options(question);
            let reading = if *snapshot { tx.snapshot().get_range(options) } else { tx.get_range(options) };
            Box::pin(async move { reading.await.map(|chunk| Observed::Rows { rows: chunk.rows, more: chunk.more }) })
        }
        Step::Stream { question, snapshot, .. } => {
            let options = range_options(question);
            let rows = if *snapshot { tx.snapshot().get_ranges(options) } else { tx.get_ranges(options) };
            Box::pin(async move { rows.collect().await.map(|rows| Observed::Rows { rows, more: false }) })
        }
        _ => unreachable!("{step:?} is no read"),
    }
}

async fn snapshot_read(snapshot: &Snapshot, step: &Step) -> Result<Observed> {
    Ok(match step {
        Step::Get { key, .. } => Observed::Value(snapshot.get(key).await?),
        Step::GetKey { selector, .. } => Observed::Key(snapshot.get_key(selector.clone()).await?),
        Step::GetRange { question, .. } => {
            let chunk = snapshot.get_range(range_options(question)).await?;
            Observed::Rows { rows: chunk.rows, more: chunk.more }
        }
        Step::Stream { question, .. } => {
            Observed::Rows { rows: snapshot.get_ranges(range_options(question)).collect().await?, more: false }
        }
        Step::EstimatedSize { begin, end, .. } => {
            Observed::Size(snapshot.get_estimated_range_size(KeyRange::new(begin.clone(), end.clone())).await?)
        }
        _ => unreachable!("{step:?} is no read of a snapshot"),
    })
}

/// An operation's number, as section 4 of the C interface has it; `None` for those that programs ask for by their kind.
fn number_of(kind: MutationKind) -> Option<i32> {
    Some(match kind {
        MutationKind::Add => 2,
        MutationKind::BitAnd => 6,
        MutationKind::BitOr => 7,
        MutationKind::BitXor => 8,
        MutationKind::AppendIfFits => 9,
        MutationKind::Max => 12,
        MutationKind::Min => 13,
        MutationKind::SetVersionstampedKey => 14,
        MutationKind::SetVersionstampedValue => 15,
        MutationKind::ByteMin => 16,
        MutationKind::ByteMax => 17,
        _ => return None,
    })
}

fn write(tx: &Transaction, step: &Step) {
    match step {
        Step::Set { key, value, .. } => tx.set(key, value),
        Step::Clear { key, .. } => tx.clear(key),
        _ => unreachable!("{step:?} is no plain write"),
    }
}

fn told_of(result: Result<Observed>) -> Observed {
    result.unwrap_or_else(|error| Observed::Failed(error.code()))
}

/// The ranges that a module of special keys tells: "1" where one begins, "0" where it ends.
async fn told_ranges(tx: &Transaction, module: &str) -> Result<Observed> {
    let prefix = [b"\xff\xff/transaction/", module.as_bytes(), b"/"].concat();
    let range = KeyRange::new(prefix.clone(), [&prefix[..], b"\xff\xff"].concat());
    let rows = tx.get_range(RangeOptions::from(range).mode(StreamingMode::WantAll)).await?.rows;
    let borders: Vec<_> = rows.iter().map(|row| (row.key.slice(prefix.len()..), &row.value)).collect();
    let ranges = borders.chunks(2).map(|pair| match pair {
        [(begin, one), (end, zero)] if *one == "1" && *zero == "0" => KeyRange::new(begin.clone(), end.clone()),
        // The module ends where the system keys do: a range up to there has no row that says where it ends.
        [(begin, one)] if *one == "1" => KeyRange::new(begin.clone(), SYSTEM_END),
        // A range that no program reads: the model takes it for wrong.
        _ => KeyRange::new(&b"\xff\xff"[..], &b"\xff\xff\xff"[..]),
    });
    Ok(Observed::Ranges(ranges.collect()))
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
