//! [`Code`]: the numbers by which programs tell errors apart.
//!
//! Numbers, names and texts are FoundationDB's, so that a library with its ABI can be laid over ours without a translation
//! table. What to do about each is ours.

use std::fmt;

/// What a program may do after an error, beside giving up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Nothing.
    Fatal,
    /// Try again: it certainly did not commit.
    Retry,
    /// Try again, if committing twice does no harm: it may have committed.
    RetryUnknown,
    /// It may have committed; trying again is for the multi-version client to decide.
    Unknown,
}

macro_rules! codes {
    ($($variant:ident = $number:literal $name:literal $class:ident $message:literal $remedy:literal;)*) => {
        /// An error code. Stable: a number never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $message] $variant = $number,)*
        }

        impl Code {
            /// All codes, by number.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The code with this number.
            pub const fn from_number(number: u16) -> Option<Code> {
                match number {
                    $($number => Some(Code::$variant),)*
                    _ => None,
                }
            }

            /// Its name: FoundationDB's, in snake case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)*
                }
            }

            /// What happened, in one sentence: FoundationDB's text.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Code::$variant => $message,)*
                }
            }

            /// What to do about it, in one sentence.
            pub const fn remedy(self) -> &'static str {
                match self {
                    $(Code::$variant => $remedy,)*
                }
            }

            const fn class(self) -> Class {
                match self {
                    $(Code::$variant => Class::$class,)*
                }
            }
        }
    };
}

codes! {
    WrongShardServer = 1001 "wrong_shard_server" Fatal
        "Shard is not available from this server"
        "Nothing: it is for the processes of a cluster among themselves. Whoever is asked by a client asks the right one.";
    TransactionTooOld = 1007 "transaction_too_old" Retry
        "Transaction is too old to perform reads or be committed"
        "Retry it. If it keeps happening the transaction lives longer than 5 s: make it smaller, or read through a long snapshot.";
    FutureVersion = 1009 "future_version" Retry
        "Request for future version"
        "Retry it. A storage server is behind; `ferrisdb status` names it.";
    NotCommitted = 1020 "not_committed" Retry
        "Transaction not committed due to conflict with another transaction"
        "Retry it. `report_conflicting_keys` shows which keys; atomic operations and snapshot reads conflict less.";
    CommitUnknownResult = 1021 "commit_unknown_result" RetryUnknown
        "Transaction may or may not have committed"
        "Retry it only if doing it twice does no harm, or leave automatic idempotency on, which asks for the outcome.";
    CommitUnknownResultFatal = 1022 "commit_unknown_result_fatal" Fatal
        "Idempotency id for transaction may have expired, so the commit status of the transaction cannot be determined"
        "Read what the transaction would have written, and decide.";
    TransactionCancelled = 1025 "transaction_cancelled" Fatal
        "Operation aborted because the transaction was cancelled"
        "It was cancelled, reset or dropped while the call was under way; begin a new one.";
    ConnectionFailed = 1026 "connection_failed" Fatal
        "Network connection failed"
        "Check that the server runs, and the address.";
    TransactionTimedOut = 1031 "transaction_timed_out" Fatal
        "Operation aborted because the transaction timed out"
        "Raise the `timeout` option, or make the transaction smaller. A commit under way may still happen.";
    TooManyWatches = 1032 "too_many_watches" Fatal
        "Too many watches currently set"
        "Drop watches that are no longer needed, or raise `max_watches`.";
    WatchesDisabled = 1034 "watches_disabled" Fatal
        "Watches cannot be set if read your writes is disabled"
        "Set the watch in another transaction, without `read_your_writes_disable`.";
    AccessedUnreadable = 1036 "accessed_unreadable" Fatal
        "Read or wrote an unreadable key"
        "What a versionstamp decides is known only after the commit; read it in the next transaction, or set `bypass_unreadable`.";
    ProcessBehind = 1037 "process_behind" Retry
        "Storage process does not have recent mutations"
        "Retry it. A storage server is behind; `ferrisdb status` names it.";
    DatabaseLocked = 1038 "database_locked" Retry
        "Database is locked"
        "Wait for who locked it, or set `lock_aware`.";
    ClusterVersionChanged = 1039 "cluster_version_changed" Unknown
        "The protocol version of the cluster has changed"
        "Retry it with a client of the cluster's version.";
    ExternalClientAlreadyLoaded = 1040 "external_client_already_loaded" Fatal
        "External client has already been loaded"
        "Load each external client once.";
    CommitProxyMemoryLimitExceeded = 1042 "commit_proxy_memory_limit_exceeded" Retry
        "CommitProxy commit memory limit exceeded"
        "Retry it, more slowly: too many commits are under way.";
    BatchTransactionThrottled = 1051 "batch_transaction_throttled" Retry
        "Batch GRV request rate limit exceeded"
        "Retry it later: the cluster is busy and batch priority waits.";
    GrvProxyMemoryLimitExceeded = 1078 "grv_proxy_memory_limit_exceeded" Retry
        "GetReadVersion proxy memory limit exceeded"
        "Retry it, more slowly: too many transactions are beginning.";
    OperationCancelled = 1101 "operation_cancelled" Fatal
        "Asynchronous operation cancelled"
        "The future was cancelled by its owner.";
    FutureReleased = 1102 "future_released" Fatal
        "Future has been released"
        "Take the result before releasing the future.";
    TagThrottled = 1213 "tag_throttled" Retry
        "Transaction tag is being throttled"
        "Retry it later: transactions with this tag exceed their share.";
    TransactionThrottledHotShard = 1235 "transaction_throttled_hot_shard" Retry
        "Transaction throttled due to hot shard"
        "Retry it later, and spread the writes over more keys.";
    TransactionRejectedRangeLocked = 1242 "transaction_rejected_range_locked" Retry
        "Transaction rejected due to range locked"
        "Retry it once the range is unlocked.";
    TransactionGrvQueueRejected = 1251 "transaction_grv_queue_rejected" Fatal
        "Transaction GRV queue rejected"
        "The wait for a read version would exceed `max_grv_queue_delay`: try later.";
    PlatformError = 1500 "platform_error" Fatal
        "Platform error"
        "The operating system refused something; the detail says what.";
    IoError = 1510 "io_error" Fatal
        "Disk i/o operation failed"
        "See the detail and the server's log; a disk may be failing.";
    FileNotFound = 1511 "file_not_found" Fatal
        "File not found"
        "Check the path.";
    BindFailed = 1512 "bind_failed" Fatal
        "Unable to bind to network"
        "Another program has the address, or it is not this machine's: choose another with `--listen`.";
    FileNotReadable = 1513 "file_not_readable" Fatal
        "File could not be read"
        "Check the path and its permissions.";
    FileNotWritable = 1514 "file_not_writable" Fatal
        "File could not be written"
        "Check the path, its permissions and the space on the disk.";
    NoClusterFileFound = 1515 "no_cluster_file_found" Fatal
        "No cluster file found in current directory or default location"
        "Say where the database is: `--connect HOST:PORT` or `--data DIR`.";
    FileTooLarge = 1516 "file_too_large" Fatal
        "File too large to be read"
        "Check that it is the right file.";
    ClientInvalidOperation = 2000 "client_invalid_operation" Fatal
        "Invalid API call"
        "The detail says which rule the call broke.";
    CommitReadIncomplete = 2002 "commit_read_incomplete" Fatal
        "Commit with incomplete read"
        "Wait for the transaction's reads before committing it.";
    KeyOutsideLegalRange = 2004 "key_outside_legal_range" Fatal
        "Key outside legal range"
        "User keys lie below `\\xff`; set `read_system_keys` or `access_system_keys` for those above.";
    InvertedRange = 2005 "inverted_range" Fatal
        "Range begin key larger than end key"
        "Swap begin and end.";
    InvalidOptionValue = 2006 "invalid_option_value" Fatal
        "Option set with an invalid value"
        "See the option's documentation for what it takes.";
    InvalidOption = 2007 "invalid_option" Fatal
        "Option not valid in this context"
        "Check the option's number, and whether it belongs to the database or the transaction.";
    NetworkNotSetup = 2008 "network_not_setup" Fatal
        "Action not possible before the network is configured"
        "Set up the network first.";
    NetworkAlreadySetup = 2009 "network_already_setup" Fatal
        "Network can be configured only once"
        "Set up the network once a process.";
    ReadVersionAlreadySet = 2010 "read_version_already_set" Fatal
        "Transaction already has a read version set"
        "Set the read version before anything is read, once.";
    VersionInvalid = 2011 "version_invalid" Fatal
        "Version not valid"
        "A read version is above zero.";
    RangeLimitsInvalid = 2012 "range_limits_invalid" Fatal
        "Range limits not valid"
        "Limits are zero (none) or positive.";
    InvalidDatabaseName = 2013 "invalid_database_name" Fatal
        "Database name must be 'DB'"
        "Use the name `DB`.";
    FutureNotSet = 2015 "future_not_set" Fatal
        "Future not ready"
        "Wait for the future first.";
    FutureNotError = 2016 "future_not_error" Fatal
        "Future not an error"
        "The future succeeded: take its value.";
    UsedDuringCommit = 2017 "used_during_commit" Fatal
        "Operation issued while a commit was outstanding"
        "After `commit` begins, use a new transaction, or reset this one once it has ended.";
    InvalidMutationType = 2018 "invalid_mutation_type" Fatal
        "Unrecognized atomic mutation type"
        "See the list of atomic operations.";
    TransactionInvalidVersion = 2020 "transaction_invalid_version" Fatal
        "Transaction does not have a valid commit version"
        "The transaction did not commit, so that it has no version.";
    NoCommitVersion = 2021 "no_commit_version" Fatal
        "Transaction is read-only and therefore does not have a commit version"
        "Only a transaction that writes gets a version.";
    EnvironmentVariableNetworkOptionFailed = 2022 "environment_variable_network_option_failed" Fatal
        "Environment variable network option could not be set"
        "Check the FDB_NETWORK_OPTION_ variables.";
    TransactionReadOnly = 2023 "transaction_read_only" Fatal
        "Attempted to commit a transaction specified as read-only"
        "Begin one that may write: without `read_lock_aware`, and not through a snapshot.";
    NetworkCannotBeRestarted = 2025 "network_cannot_be_restarted" Fatal
        "Network can only be started once"
        "Start the network once a process.";
    BlockedFromNetworkThread = 2026 "blocked_from_network_thread" Fatal
        "Detected a deadlock in a callback called from the network thread"
        "Do not block in a callback.";
    MapperBadIndex = 2030 "mapper_bad_index" Fatal
        "The index in K[] or V[] is not a valid number or out of range"
        "The detail names the element of the mapper and how many elements the row's tuple has.";
    MapperNoSuchKey = 2031 "mapper_no_such_key" Fatal
        "A mapped key is not set in database"
        "FerrisDB does not tell it: a mapped key that is not set has no value in the result.";
    MapperBadRangeDescriptor = 2032 "mapper_bad_range_decriptor" Fatal
        "\"{...}\" must be the last element of the mapper tuple"
        "`{...}` may only be the last element of a mapper.";
    QuickGetKeyValuesHasMore = 2033 "quick_get_key_values_has_more" Fatal
        "One of the mapped range queries is too large"
        "Map to ranges of fewer rows, or read them one by one.";
    GetMappedRangeReadsYourWrites = 2039 "get_mapped_range_reads_your_writes" Fatal
        "getMappedRange tries to read data that were previously written in the transaction"
        "Read in a transaction that has not written there, or commit first.";
    KeyNotTuple = 2041 "key_not_tuple" Fatal
        "The key cannot be parsed as a tuple"
        "A mapper with `{K[...]}` reads only keys that are tuples.";
    ValueNotTuple = 2042 "value_not_tuple" Fatal
        "The value cannot be parsed as a tuple"
        "A mapper with `{V[...]}` reads only values that are tuples.";
    MapperNotTuple = 2043 "mapper_not_tuple" Fatal
        "The mapper cannot be parsed as a tuple"
        "A mapper is a packed tuple.";
    IncompatibleProtocolVersion = 2100 "incompatible_protocol_version" Fatal
        "Incompatible protocol version"
        "Use a client and a server of versions that fit together; the detail names both.";
    TransactionTooLarge = 2101 "transaction_too_large" Fatal
        "Transaction exceeds byte limit"
        "Split it: a transaction has 10,000,000 bytes of keys, values and conflict ranges at most.";
    KeyTooLarge = 2102 "key_too_large" Fatal
        "Key length exceeds limit"
        "A key has 10,000 bytes at most.";
    ValueTooLarge = 2103 "value_too_large" Fatal
        "Value length exceeds limit"
        "A value has 100,000 bytes at most: split it over several keys.";
    ConnectionStringInvalid = 2104 "connection_string_invalid" Fatal
        "Connection string invalid"
        "An address is HOST:PORT.";
    UnsupportedOperation = 2108 "unsupported_operation" Fatal
        "Operation is not supported"
        "The detail says what is not supported here.";
    TooManyTags = 2109 "too_many_tags" Fatal
        "Too many tags set on transaction"
        "A transaction has at most five tags.";
    TagTooLong = 2110 "tag_too_long" Fatal
        "Tag set on transaction is too long"
        "A tag has at most 255 bytes.";
    SpecialKeysCrossModuleRead = 2112 "special_keys_cross_module_read" Fatal
        "Special key space range read crosses modules. Refer to the `special_key_space_relaxed' transaction option for more details."
        "Read one module at a time, or set `special_key_space_relaxed`.";
    SpecialKeysNoModuleFound = 2113 "special_keys_no_module_found" Fatal
        "Special key space range read does not intersect a module. Refer to the `special_key_space_relaxed' transaction option for more details."
        "See the documentation for the special keys that exist.";
    SpecialKeysWriteDisabled = 2114 "special_keys_write_disabled" Fatal
        "Special Key space is not allowed to write by default. Refer to the `special_key_space_enable_writes` transaction option for more details."
        "Set `special_key_space_enable_writes` if you mean it.";
    SpecialKeysNoWriteModuleFound = 2115 "special_keys_no_write_module_found" Fatal
        "Special key space key or range set does not intersect a module"
        "See the documentation for the special keys that may be written.";
    SpecialKeysCrossModuleClear = 2116 "special_keys_cross_module_clear" Fatal
        "Special key space clear crosses modules"
        "Clear one module at a time.";
    SpecialKeysApiFailure = 2117 "special_keys_api_failure" Fatal
        "Api call through special keys failed. For more information, call get on special key 0xff0xff/error_message to get a json string of the error message."
        "Read `\\xff\\xff/error_message`.";
    ApiVersionUnset = 2200 "api_version_unset" Fatal
        "API version is not set"
        "Select an API version first.";
    ApiVersionAlreadySet = 2201 "api_version_already_set" Fatal
        "API version may be set only once"
        "Select the API version once a process.";
    ApiVersionInvalid = 2202 "api_version_invalid" Fatal
        "API version not valid"
        "Select a version that the header knows.";
    ApiVersionNotSupported = 2203 "api_version_not_supported" Fatal
        "API version not supported"
        "Select a version from 630 to 800.";
    ApiFunctionMissing = 2204 "api_function_missing" Fatal
        "Failed to load a required FDB API function."
        "Install a library of the right version.";
    ExactModeWithoutLimits = 2210 "exact_mode_without_limits" Fatal
        "EXACT streaming mode requires limits, but none were given"
        "Give a limit of rows or bytes, or choose another mode.";
    InvalidTupleDataType = 2250 "invalid_tuple_data_type" Fatal
        "Unrecognized data type in packed tuple"
        "The bytes are not a packed tuple.";
    InvalidTupleIndex = 2251 "invalid_tuple_index" Fatal
        "Tuple does not have element at specified index"
        "Check the tuple's length.";
    KeyNotInSubspace = 2252 "key_not_in_subspace" Fatal
        "Cannot unpack key that is not in subspace"
        "Check that the key begins with the subspace's prefix.";
    ManualPrefixesNotEnabled = 2253 "manual_prefixes_not_enabled" Fatal
        "Cannot specify a prefix unless manual prefixes are enabled"
        "Enable manual prefixes in the directory layer.";
    PrefixInPartition = 2254 "prefix_in_partition" Fatal
        "Cannot specify a prefix in a partition"
        "Leave the prefix to the partition.";
    CannotOpenRootDirectory = 2255 "cannot_open_root_directory" Fatal
        "Root directory cannot be opened"
        "Open a directory below it.";
    DirectoryAlreadyExists = 2256 "directory_already_exists" Fatal
        "Directory already exists"
        "Open it, or choose another name.";
    DirectoryDoesNotExist = 2257 "directory_does_not_exist" Fatal
        "Directory does not exist"
        "Create it, or check the path.";
    ParentDirectoryDoesNotExist = 2258 "parent_directory_does_not_exist" Fatal
        "Directory's parent does not exist"
        "Create the parent first.";
    MismatchedLayer = 2259 "mismatched_layer" Fatal
        "Directory has already been created with a different layer string"
        "Open it with the layer that it was created with.";
    InvalidDirectoryLayerMetadata = 2260 "invalid_directory_layer_metadata" Fatal
        "Invalid directory layer metadata"
        "The directory's own keys were overwritten.";
    CannotMoveDirectoryBetweenPartitions = 2261 "cannot_move_directory_between_partitions" Fatal
        "Directory cannot be moved between partitions"
        "Copy its contents instead.";
    CannotUsePartitionAsSubspace = 2262 "cannot_use_partition_as_subspace" Fatal
        "Directory partition cannot be used as subspace"
        "Create a directory in the partition and use that.";
    IncompatibleDirectoryVersion = 2263 "incompatible_directory_version" Fatal
        "Directory layer was created with an incompatible version"
        "Use a newer client.";
    DirectoryPrefixNotEmpty = 2264 "directory_prefix_not_empty" Fatal
        "Database has keys stored at the prefix chosen by the automatic prefix allocator"
        "Some program writes outside its directories: find it, or move its data.";
    DirectoryPrefixInUse = 2265 "directory_prefix_in_use" Fatal
        "Directory layer already has a conflicting prefix"
        "Choose another prefix.";
    InvalidDestinationDirectory = 2266 "invalid_destination_directory" Fatal
        "Target directory is invalid"
        "A directory cannot be moved into itself.";
    CannotModifyRootDirectory = 2267 "cannot_modify_root_directory" Fatal
        "Root directory cannot be modified"
        "Modify a directory below it.";
    InvalidUuidSize = 2268 "invalid_uuid_size" Fatal
        "UUID is not sixteen bytes"
        "Give sixteen bytes.";
    InvalidVersionstampSize = 2269 "invalid_versionstamp_size" Fatal
        "Versionstamp is not exactly twelve bytes"
        "Give twelve bytes.";
    UnknownError = 4000 "unknown_error" Fatal
        "An unknown error occurred"
        "See the server's log, and report it.";
    InternalError = 4100 "internal_error" Fatal
        "An internal error occurred"
        "See the server's log, and report it.";
    PermissionDenied = 6000 "permission_denied" Fatal
        "Client tried to access unauthorized data"
        "Ask for a grant on the keys.";
}

impl Code {
    /// The number.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// FoundationDB's predicate `retryable`: `on_error` may make the next attempt possible. The union of the other two.
    pub const fn is_retryable(self) -> bool {
        !matches!(self.class(), Class::Fatal)
    }

    /// FoundationDB's predicate `maybe_committed`: the transaction may have committed, or may yet.
    pub const fn is_maybe_committed(self) -> bool {
        matches!(self.class(), Class::RetryUnknown | Class::Unknown)
    }

    /// FoundationDB's predicate `retryable_not_committed`: it can be tried again, and certainly did not commit.
    pub const fn is_retryable_not_committed(self) -> bool {
        matches!(self.class(), Class::Retry)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sets of section 9 of the contract, written out.
    #[test]
    fn the_predicates_are_foundationdbs() {
        let set = |predicate: fn(Code) -> bool| -> Vec<u16> {
            Code::ALL.iter().filter(|code| predicate(**code)).map(|code| code.number()).collect()
        };
        assert_eq!(set(Code::is_maybe_committed), [1021, 1039]);
        assert_eq!(
            set(Code::is_retryable_not_committed),
            [1007, 1009, 1020, 1037, 1038, 1042, 1051, 1078, 1213, 1235, 1242]
        );
        assert_eq!(set(Code::is_retryable).len(), 13);
    }

    /// Numbers are found again, are in order, and names are not repeated.
    #[test]
    fn numbers_and_names_are_unique() {
        for pair in Code::ALL.windows(2) {
            assert!(pair[0].number() < pair[1].number());
        }
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        for &code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(code));
            assert!(code.remedy().ends_with('.') && !code.message().is_empty());
        }
        assert_eq!(Code::from_number(1), None);
    }

    /// The page of the book is this table. `UPDATE_EXPECT=1` writes it anew.
    #[test]
    fn the_page_of_error_codes_is_true() {
        use std::fmt::Write as _;
        let mut page = String::from(
            "# Error codes\n\n\
             Numbers, names and texts are FoundationDB's; what to do is ours. `ferrisdb explain 1020` prints one.\n\n\
             *Retry* says what `on_error`, and with it `run`, does: `yes` means that the transaction certainly did not commit and may be tried again; `unknown` means \
             that it may have committed. Where nothing stands there, trying the same again gives the same.\n\n\
             | code | name | what happened | retry | what to do |\n| ---: | --- | --- | --- | --- |\n",
        );
        for code in Code::ALL {
            let retry = match code.class() {
                Class::Fatal => "",
                Class::Retry => "yes",
                Class::RetryUnknown | Class::Unknown => "unknown",
            };
            let (number, name, message, remedy) = (code.number(), code.name(), code.message(), code.remedy());
            writeln!(page, "| {number} | `{name}` | {message} | {retry} | {remedy} |").expect("writing to a String");
        }
        expect_test::expect_file!["../../../docs/errors.md"].assert_eq(&page);
    }
}
