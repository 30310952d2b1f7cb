//! Options of transactions and databases: FoundationDB's names and numbers, and what they take.
//!
//! An option that FerrisDB has no use for (a hint about caches, say) is accepted and changes nothing, so that programs written for
//! FoundationDB run. An unknown number is [`Code::InvalidOption`], a value that an option cannot take [`Code::InvalidOptionValue`].

use ferrisdb_core::{Code, Error, Result};

/// What an option takes, for decoding it from bytes.
trait Parameter: Sized {
    fn decode(value: Option<&[u8]>) -> Option<Self>;
}

impl Parameter for i64 {
    fn decode(value: Option<&[u8]>) -> Option<i64> {
        Some(i64::from_le_bytes(value?.try_into().ok()?))
    }
}

impl Parameter for Vec<u8> {
    fn decode(value: Option<&[u8]>) -> Option<Vec<u8>> {
        value.map(<[u8]>::to_vec)
    }
}

impl Parameter for String {
    fn decode(value: Option<&[u8]>) -> Option<String> {
        String::from_utf8(value?.to_vec()).ok()
    }
}

macro_rules! options {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident $(($parameter:ty))? = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant $(($parameter))?,)*
        }

        impl $name {
            /// The option's number: FoundationDB's.
            pub const fn number(&self) -> i32 {
                match self {
                    $(options!(@pattern $variant $(($parameter))?) => $number,)*
                }
            }

            /// The option with this number and a value as FoundationDB's C interface takes it: nothing, eight bytes of a
            /// little-endian number, or text.
            ///
            /// # Errors
            /// [`Code::InvalidOption`] for an unknown number, [`Code::InvalidOptionValue`] for a value of another kind.
            pub fn from_number(number: i32, value: Option<&[u8]>) -> Result<$name> {
                match number {
                    $($number => options!(@decode $variant $(($parameter))?, number, value),)*
                    _ => Err(Error::with(
                        Code::InvalidOption,
                        format!("{number} is not an option here"),
                    )),
                }
            }
        }
    };
    (@pattern $variant:ident ($parameter:ty)) => { Self::$variant(_) };
    (@pattern $variant:ident) => { Self::$variant };
    (@decode $variant:ident ($parameter:ty), $code:ident, $value:ident) => {
        match <$parameter as Parameter>::decode($value) {
            Some(parameter) => Ok(Self::$variant(parameter)),
            None => Err(invalid_value($code, "the value is missing or of another kind")),
        }
    };
    (@decode $variant:ident, $code:ident, $value:ident) => {
        if $value.is_none_or(<[u8]>::is_empty) {
            Ok(Self::$variant)
        } else {
            Err(invalid_value($code, "it takes no value"))
        }
    };
}

pub(crate) fn invalid_value(number: i32, what: &str) -> Error {
    Error::with(Code::InvalidOptionValue, format!("option {number}: {what}"))
}

options! {
    /// An option of a transaction. Where the documentation says "accepted", it changes nothing.
    TransactionOption {
        /// Without a commit id: `commit_unknown_result` may be told while the commit is still under way. Otherwise no effect.
        CausalWriteRisky = 10,
        /// Accepted: read versions are always causally safe.
        CausalReadRisky = 20,
        /// Accepted.
        CausalReadDisable = 21,
        /// Accepted: addresses always have a port.
        IncludePortInAddress = 23,
        /// The next write adds no write conflict range.
        NextWriteNoWriteConflictRange = 30,
        /// Reads do not see the transaction's own writes. Only before anything is read or written.
        ReadYourWritesDisable = 51,
        /// Accepted.
        ReadAheadDisable = 52,
        /// Accepted.
        DurabilityDatacenter = 110,
        /// Accepted.
        DurabilityRisky = 120,
        /// Accepted.
        DurabilityDevNullIsWebScale = 130,
        /// Is never throttled: for administration.
        PrioritySystemImmediate = 200,
        /// Waits while the database is busy.
        PriorityBatch = 201,
        /// Accepted.
        InitializeNewDatabase = 300,
        /// System keys (`\xff`...) may be read and written.
        AccessSystemKeys = 301,
        /// System keys (`\xff`...) may be read.
        ReadSystemKeys = 302,
        /// Accepted: there are no tenants, so that every transaction sees all keys.
        RawAccess = 303,
        /// Accepted.
        BypassStorageQuota = 304,
        /// Accepted.
        DebugDump = 400,
        /// Accepted.
        DebugRetryLogging(String) = 401,
        /// Accepted.
        TransactionLoggingEnable(String) = 402,
        /// A name for the transaction in logs: 100 bytes at most.
        DebugTransactionIdentifier(String) = 403,
        /// Accepted, after [`DebugTransactionIdentifier`](Self::DebugTransactionIdentifier).
        LogTransaction = 404,
        /// Accepted.
        TransactionLoggingMaxFieldLength(i64) = 405,
        /// Accepted.
        ServerRequestTracing = 406,
        /// After so many milliseconds from the transaction's beginning everything about it fails with `transaction_timed_out`; 0:
        /// never. Survives `on_error`.
        Timeout(i64) = 500,
        /// So many errors are retried by `on_error`; -1: all. Survives `on_error`.
        RetryLimit(i64) = 501,
        /// The longest delay between retries, in milliseconds. Default: 1,000. Survives `on_error`.
        MaxRetryDelay(i64) = 502,
        /// Bytes that the transaction may have when it commits: 32 to 10,000,000, the default.
        SizeLimit(i64) = 503,
        /// Accepted (16 to 255 bytes): commits carry ids of the client library's making.
        IdempotencyId(Vec<u8>) = 504,
        /// The commit carries an id, so that after a lost answer the client asks for the outcome. On unless the database's options
        /// say otherwise.
        AutomaticIdempotency = 505,
        /// Accepted.
        ReadServerSideCacheEnable = 507,
        /// Accepted.
        ReadServerSideCacheDisable = 508,
        /// Accepted.
        ReadPriorityNormal = 509,
        /// Accepted.
        ReadPriorityLow = 510,
        /// Accepted.
        ReadPriorityHigh = 511,
        /// Counts one up: snapshot reads see the transaction's own writes while the count is above zero. It begins at 1.
        SnapshotRywEnable = 600,
        /// Counts one down: see [`SnapshotRywEnable`](Self::SnapshotRywEnable).
        SnapshotRywDisable = 601,
        /// May read and write a locked database: see [`Database::lock`](crate::Database::lock).
        LockAware = 700,
        /// An operation during a commit fails, but does not make the transaction unusable.
        UsedDuringCommitProtectionDisable = 701,
        /// May read a locked database, and cannot write (`transaction_read_only`), unless it is [`LockAware`](Self::LockAware) too.
        ReadLockAware = 702,
        /// Accepted.
        FirstInBatch = 710,
        /// Accepted.
        UseProvisionalProxies = 711,
        /// After a conflict `\xff\xff/transaction/conflicting_keys/` tells which ranges it was.
        ReportConflictingKeys = 712,
        /// Reads of special keys may cross modules, and may meet none.
        SpecialKeySpaceRelaxed = 713,
        /// Special keys may be written.
        SpecialKeySpaceEnableWrites = 714,
        /// Accepted: five tags at most, each of 255 bytes at most.
        Tag(String) = 800,
        /// Accepted: see [`Tag`](Self::Tag).
        AutoThrottleTag(String) = 801,
        /// Accepted (33 bytes).
        SpanParent(Vec<u8>) = 900,
        /// Accepted.
        ExpensiveClearCostEstimationEnable = 1000,
        /// Reads of keys that a versionstamp decides find what was there before.
        BypassUnreadable = 1100,
        /// Accepted.
        UseGrvCache = 1101,
        /// Accepted.
        SkipGrvCache = 1102,
        /// Accepted.
        MaxGrvQueueDelay(i64) = 1103,
        /// Accepted.
        AuthorizationToken(String) = 2000,
        /// Accepted.
        EnableReplicaConsistencyCheck = 4000,
        /// Accepted.
        ConsistencyCheckRequiredReplicas(i64) = 4001,
    }
}

options! {
    /// An option of a database: mostly defaults for its transactions, which hold from their making, or from their next reset, on.
    DatabaseOption {
        /// Accepted.
        LocationCacheSize(i64) = 10,
        /// Watches that may be pending: up to 1,000,000. Default: 10,000.
        MaxWatches(i64) = 20,
        /// Accepted.
        MachineId(String) = 21,
        /// Accepted.
        DatacenterId(String) = 22,
        /// Counts one up: see [`TransactionOption::SnapshotRywEnable`].
        SnapshotRywEnable = 26,
        /// Counts one down: see [`TransactionOption::SnapshotRywEnable`].
        SnapshotRywDisable = 27,
        /// Accepted.
        TransactionLoggingMaxFieldLength(i64) = 405,
        /// See [`TransactionOption::Timeout`].
        TransactionTimeout(i64) = 500,
        /// See [`TransactionOption::RetryLimit`].
        TransactionRetryLimit(i64) = 501,
        /// See [`TransactionOption::MaxRetryDelay`].
        TransactionMaxRetryDelay(i64) = 502,
        /// See [`TransactionOption::SizeLimit`].
        TransactionSizeLimit(i64) = 503,
        /// Accepted.
        TransactionCausalReadRisky = 504,
        /// Accepted.
        TransactionIncludePortInAddress = 505,
        /// See [`TransactionOption::AutomaticIdempotency`].
        TransactionAutomaticIdempotency = 506,
        /// See [`TransactionOption::BypassUnreadable`].
        TransactionBypassUnreadable = 700,
        /// See [`TransactionOption::UsedDuringCommitProtectionDisable`].
        TransactionUsedDuringCommitProtectionDisable = 701,
        /// See [`TransactionOption::ReportConflictingKeys`].
        TransactionReportConflictingKeys = 702,
        /// Accepted.
        TestCausalReadRisky(i64) = 900,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_decoded_from_numbers_and_bytes() {
        use TransactionOption as T;
        assert_eq!(T::from_number(500, Some(&700i64.to_le_bytes())), Ok(T::Timeout(700)));
        assert_eq!(T::from_number(51, None), Ok(T::ReadYourWritesDisable));
        assert_eq!(T::from_number(403, Some(b"name")), Ok(T::DebugTransactionIdentifier("name".into())));
        assert_eq!(T::Timeout(1).number(), 500);
        let code = |number, value| T::from_number(number, value).map_err(|error| error.code());
        assert_eq!(code(9999, None), Err(Code::InvalidOption));
        assert_eq!(code(500, Some(&b"1234"[..])), Err(Code::InvalidOptionValue));
        assert_eq!(code(500, None), Err(Code::InvalidOptionValue));
        assert_eq!(code(51, Some(&b"x"[..])), Err(Code::InvalidOptionValue));
        assert_eq!(DatabaseOption::from_number(20, Some(&5i64.to_le_bytes())), Ok(DatabaseOption::MaxWatches(5)));
    }
}
