//! [`Settings`]: what the options of a transaction come to.

use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Code, Error, Limits, Result};
use ferrisdb_rpc::api::Priority;

use crate::options::{DatabaseOption, TransactionOption, invalid_value};
use crate::retry::RetryOptions;

/// Tags that a transaction may have.
const TAGS_MAX: u8 = 5;
/// Bytes that a tag may have.
const TAG_BYTES_MAX: usize = 255;
/// Characters that a transaction's name in logs may have.
const IDENTIFIER_BYTES_MAX: usize = 100;
/// Bytes of a span's context.
const SPAN_BYTES: usize = 33;
/// The least limit of a transaction's bytes.
const SIZE_LIMIT_MIN: i64 = 32;
/// Watches that a database may be told to allow.
const WATCHES_MAX: i64 = 1_000_000;

/// The options of one transaction; in a database, the defaults for them.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) retry: RetryOptions,
    pub(crate) timeout: Option<Duration>,
    pub(crate) size_limit: usize,
    pub(crate) is_ryw_disabled: bool,
    /// Snapshot reads see own writes while it is above zero.
    pub(crate) snapshot_ryw: i32,
    pub(crate) reads_system: bool,
    pub(crate) writes_system: bool,
    pub(crate) next_write_no_conflict: bool,
    pub(crate) bypass_unreadable: bool,
    pub(crate) protection_disabled: bool,
    pub(crate) report_conflicting_keys: bool,
    pub(crate) special_relaxed: bool,
    pub(crate) special_writes: bool,
    pub(crate) is_idempotent: bool,
    pub(crate) is_read_only: bool,
    /// May begin, and unless it is read-only commit, while the database is locked.
    pub(crate) is_lock_aware: bool,
    pub(crate) causal_write_risky: bool,
    pub(crate) priority: Priority,
    has_identifier: bool,
    tags: u8,
}

impl Settings {
    pub(crate) fn new(limits: &Limits, is_idempotent: bool) -> Settings {
        Settings {
            retry: RetryOptions::default(),
            timeout: None,
            size_limit: limits.transaction_bytes,
            is_ryw_disabled: false,
            snapshot_ryw: 1,
            reads_system: false,
            writes_system: false,
            next_write_no_conflict: false,
            bypass_unreadable: false,
            protection_disabled: false,
            report_conflicting_keys: false,
            special_relaxed: false,
            special_writes: false,
            is_idempotent,
            is_read_only: false,
            is_lock_aware: false,
            causal_write_risky: false,
            priority: Priority::Default,
            has_identifier: false,
            tags: 0,
        }
    }

    /// The settings for the next attempt: timeout, retry limit and longest delay survive an error, all others go back to the
    /// database's defaults.
    pub(crate) fn after_error(&self, defaults: &Settings) -> Settings {
        Settings { retry: self.retry, timeout: self.timeout, ..defaults.clone() }
    }

    /// Takes an option. What depends on more than settings ([`TransactionOption::ReadYourWritesDisable`]) is checked by the caller.
    pub(crate) fn set(&mut self, option: &TransactionOption) -> Result<()> {
        use TransactionOption as T;
        let number = option.number();
        match option {
            T::NextWriteNoWriteConflictRange => self.next_write_no_conflict = true,
            T::ReadYourWritesDisable => self.is_ryw_disabled = true,
            T::PrioritySystemImmediate => self.priority = Priority::Immediate,
            T::PriorityBatch => self.priority = Priority::Batch,
            T::AccessSystemKeys => (self.reads_system, self.writes_system) = (true, true),
            T::ReadSystemKeys => self.reads_system = true,
            T::DebugTransactionIdentifier(name) => {
                if name.len() > IDENTIFIER_BYTES_MAX {
                    return Err(invalid_value(number, "an identifier has 100 bytes at most"));
                }
                self.has_identifier = true;
            }
            T::LogTransaction if !self.has_identifier => {
                let detail = "log_transaction needs a debug_transaction_identifier before it";
                return Err(Error::with(Code::ClientInvalidOperation, detail));
            }
            T::Timeout(millis) => {
                let millis = in_range(number, *millis, 0, i32::MAX.into())?;
                self.timeout = (millis > 0).then(|| Duration::from_millis(millis.unsigned_abs()));
            }
            T::RetryLimit(limit) => {
                let limit = in_range(number, *limit, -1, i32::MAX.into())?;
                self.retry.retry_limit = u32::try_from(limit).ok();
            }
            T::MaxRetryDelay(millis) => {
                let millis = in_range(number, *millis, 0, i32::MAX.into())?;
                self.retry.max_retry_delay = Duration::from_millis(millis.unsigned_abs());
            }
            T::SizeLimit(bytes) => {
                let max = Limits::DEFAULT.transaction_bytes;
                let bytes = in_range(number, *bytes, SIZE_LIMIT_MIN, i64::try_from(max).unwrap_or(i64::MAX))?;
                self.size_limit = usize::try_from(bytes).unwrap_or(max);
            }
            T::IdempotencyId(id) if !(16..=255).contains(&id.len()) => {
                return Err(invalid_value(number, "an idempotency id has 16 to 255 bytes"));
            }
            T::IdempotencyId(_) | T::AutomaticIdempotency => self.is_idempotent = true,
            T::SnapshotRywEnable => self.snapshot_ryw += 1,
            T::SnapshotRywDisable => self.snapshot_ryw -= 1,
            T::CausalWriteRisky => self.causal_write_risky = true,
            T::LockAware => (self.is_lock_aware, self.is_read_only) = (true, false),
            // Whoever may write already need not be told that it may read.
            T::ReadLockAware if !self.is_lock_aware => (self.is_lock_aware, self.is_read_only) = (true, true),
            T::UsedDuringCommitProtectionDisable => self.protection_disabled = true,
            T::ReportConflictingKeys => self.report_conflicting_keys = true,
            T::SpecialKeySpaceRelaxed => self.special_relaxed = true,
            T::SpecialKeySpaceEnableWrites => self.special_writes = true,
            T::Tag(tag) | T::AutoThrottleTag(tag) => {
                if tag.len() > TAG_BYTES_MAX {
                    return Err(Code::TagTooLong.into());
                }
                if self.tags >= TAGS_MAX + u8::from(planted(Bug::SixthTag)) {
                    return Err(Code::TooManyTags.into());
                }
                self.tags += 1;
            }
            T::SpanParent(context) if context.len() != SPAN_BYTES => {
                return Err(invalid_value(number, "a span's context has 33 bytes"));
            }
            T::BypassUnreadable => self.bypass_unreadable = true,
            // The rest is accepted.
            _ => {}
        }
        Ok(())
    }

    /// Takes a database's option into the defaults. Returns a new limit for watches, if it is that.
    pub(crate) fn set_default(&mut self, option: &DatabaseOption) -> Result<Option<usize>> {
        use DatabaseOption as D;
        use TransactionOption as T;
        let number = option.number();
        let renumber = |result: Result<()>| result.map_err(|_| invalid_value(number, "it is out of range"));
        match option {
            D::MaxWatches(count) => {
                let count = in_range(number, *count, 0, WATCHES_MAX)?;
                return Ok(usize::try_from(count).ok());
            }
            D::SnapshotRywEnable => self.snapshot_ryw += 1,
            D::SnapshotRywDisable => self.snapshot_ryw -= 1,
            D::TransactionTimeout(millis) => renumber(self.set(&T::Timeout(*millis)))?,
            D::TransactionRetryLimit(limit) => renumber(self.set(&T::RetryLimit(*limit)))?,
            D::TransactionMaxRetryDelay(millis) => renumber(self.set(&T::MaxRetryDelay(*millis)))?,
            D::TransactionSizeLimit(bytes) => renumber(self.set(&T::SizeLimit(*bytes)))?,
            D::TransactionAutomaticIdempotency => self.is_idempotent = true,
            D::TransactionBypassUnreadable => self.bypass_unreadable = true,
            D::TransactionUsedDuringCommitProtectionDisable => self.protection_disabled = true,
            D::TransactionReportConflictingKeys => self.report_conflicting_keys = true,
            _ => {}
        }
        Ok(None)
    }
}

fn in_range(number: i32, value: i64, min: i64, max: i64) -> Result<i64> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(invalid_value(number, &format!("{value} is not between {min} and {max}")))
    }
}
