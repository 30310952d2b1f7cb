//! Deliberate bugs, to prove that the tests would notice them. Not an API.
//!
//! A promise is only as good as the test that fails when it is broken. A crate lists its bugs with [`planted_bugs!`](crate::planted_bugs); each is wrong in one place
//! (`if planted(Bug::X) { wrong } else { right }`), and `cargo xtask planted-bugs` requires of each that a test which passes without it fails
//! with it.
//!
//! Without the feature `planted-bugs` the answer is the constant `false`, so nothing is left in the binary. With it, the
//! environment variable `FERRISDB_PLANTED_BUG` names the one bug that is there; it is read once in a process.
//!
//! The list of this module is for what stands above the storage engine, the client library and the roles; it lies here because both know this
//! crate. The engine has its own.

/// Lists the bugs of a crate once: makes the enum `Bug`, and `planted`, which says whether a bug is there. The crate has the feature `planted-bugs`.
#[macro_export]
macro_rules! planted_bugs {
    ($visibility:vis, $($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// A defence that can be taken away.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum Bug {
            $($(#[$doc])* $bug,)*
        }

        /// Each bug and what the environment variable calls it.
        #[cfg(any(test, feature = "planted-bugs"))]
        const BUGS: &[(Bug, &str)] = &[$((Bug::$bug, $name),)*];

        /// True if `bug` is planted in this process.
        #[cfg(not(feature = "planted-bugs"))]
        #[inline(always)]
        $visibility const fn planted(_bug: Bug) -> bool {
            false
        }

        /// True if `bug` is planted in this process.
        #[cfg(feature = "planted-bugs")]
        $visibility fn planted(bug: Bug) -> bool {
            static PLANTED: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
            *PLANTED.get_or_init(|| $crate::planted::from_environment(BUGS)) == Some(bug)
        }

        /// A name means one bug, and the bug that was planted is the only one there.
        #[cfg(test)]
        #[test]
        fn one_name_one_bug() {
            for (index, (bug, name)) in BUGS.iter().enumerate() {
                assert!(BUGS[..index].iter().all(|(other, others)| other != bug && others != name), "{name} is there twice");
            }
            let planted_here = BUGS.iter().filter(|(bug, _)| planted(*bug)).count();
            assert!(planted_here <= usize::from(cfg!(feature = "planted-bugs")), "{planted_here} bugs are planted");
        }
    };
}

/// The bug that the environment variable names. Not an API: for [`planted_bugs!`](crate::planted_bugs).
#[doc(hidden)]
pub fn from_environment<B: Copy>(bugs: &[(B, &str)]) -> Option<B> {
    use std::io::Write as _;

    let value = std::env::var_os("FERRISDB_PLANTED_BUG")?;
    let bug = value.to_str().and_then(|name| bugs.iter().find(|(_, known)| *known == name));
    if bug.is_none() {
        // A misspelt name must not look like a bug that no test notices; a panic could be caught by one.
        let names: Vec<&str> = bugs.iter().map(|(_, name)| *name).collect();
        let message = format!("FERRISDB_PLANTED_BUG={} is not one of: {}\n", value.display(), names.join(", "));
        // Not eprintln!: the test harness would keep that back and lose it with the process.
        std::io::stderr().write_all(message.as_bytes()).ok();
        std::process::abort();
    }
    bug.map(|(bug, _)| *bug)
}

// `cargo xtask planted-bugs` reads the names from the lines below: one bug, one line.
planted_bugs! {
    pub,
    /// Own BYTE_MAX operations take the longer string for the greater one.
    ByteMaxByLength = "byte-max-by-length",
    /// Own MIN operations leave an existing smaller value as long as it was.
    MinWithoutResize = "min-without-resize",
    /// A selector that leads backwards over own writes stops one key too early.
    BackwardSelectorOffByOne = "backward-selector-off-by-one",
    /// A chunk that ended because of its bytes says that there is no more.
    NoMoreAfterBytes = "no-more-after-bytes",
    /// A range read that was cut short conflicts with what it did not reach.
    ConflictNotShrunk = "conflict-not-shrunk",
    /// A reversed range read that was cut short conflicts only with the rows above its last one.
    ReverseConflictMissesLast = "reverse-conflict-misses-last",
    /// A range read whose end selector led behind all keys does not conflict with keys behind the last one.
    OffTheEndNoConflict = "off-the-end-no-conflict",
    /// A range read whose begin selector led before all keys does not conflict with keys before the first one.
    OffTheFrontNoConflict = "off-the-front-no-conflict",
    /// The conflict range of a key that a selector found lacks the key itself.
    GetKeyConflictMissesEnd = "get-key-conflict-misses-end",
    /// What a versionstamped key may become can be read.
    StampedKeyReadable = "stamped-key-readable",
    /// An atomic operation on a key that the transaction has cleared sees the value before the clear.
    AtomicSeesCleared = "atomic-sees-cleared",
    /// A set makes a key readable on which a versionstamp decides.
    SetMakesReadable = "set-makes-readable",
    /// Reading a key that has own atomic operations cannot conflict.
    DependentReadNoConflict = "dependent-read-no-conflict",
    /// Reading a key that the transaction itself has set can conflict.
    IndependentReadConflicts = "independent-read-conflicts",
    /// Snapshot reads can conflict.
    SnapshotReadConflicts = "snapshot-read-conflicts",
    /// The wish that the next write adds no conflict range holds for all that follow.
    NoConflictWishStays = "no-conflict-wish-stays",
    /// The count of retries begins anew with each.
    RetryLimitForgotten = "retry-limit-forgotten",
    /// A clear does not make a key readable again on which a versionstamp decided.
    ClearStaysUnreadable = "clear-stays-unreadable",
    /// A watch is armed when its read ends, not when its transaction commits.
    WatchArmedEarly = "watch-armed-early",
    /// A commit that failed with a conflict leaves its watches armed.
    WatchSurvivesConflict = "watch-survives-conflict",
    /// A watch whose transaction's time is over, and that nobody has called since, waits on.
    WatchOutlivesTimeout = "watch-outlives-timeout",
    /// A transaction takes a sixth tag.
    SixthTag = "sixth-tag",
    /// The metadata version can be read in the transaction that has changed it.
    MetadataVersionReadable = "metadata-version-readable",
    /// The metadata version is written with the version of the commit before.
    MetadataVersionOld = "metadata-version-old",
    /// A deferred error is told once.
    DeferredErrorToldOnce = "deferred-error-told-once",
    /// Transactions that read take a version that their client heard of before, instead of asking.
    ReadersDoNotAsk = "readers-do-not-ask",
    /// A commit whose answer was lost is taken for one that did not happen.
    LostAnswerIsNo = "lost-answer-is-no",
    /// Clears of ranges wake no watch.
    RangeClearWakesNoWatch = "range-clear-wakes-no-watch",
    /// The resolver forgets writes of ranges.
    ResolverIgnoresRangeWrites = "resolver-ignores-range-writes",
    /// The resolver looks only at the first key of a range that was read.
    ResolverIgnoresPhantoms = "resolver-ignores-phantoms",
    /// Of the transactions of one batch, the second and all later ones are not checked.
    BatchMatesNotChecked = "batch-mates-not-checked",
    /// The versionstamps of one batch are all the same.
    BatchIndexNotFilled = "batch-index-not-filled",
    /// A resolved id that is not known is told to be aborted, but not written down.
    ResolveWritesNothing = "resolve-writes-nothing",
    /// Read versions are one below the newest.
    ReadVersionNotNewest = "read-version-not-newest",
    /// Commits are answered before they are durable.
    AnsweredBeforeDurable = "answered-before-durable",
    /// The log takes for durable what it has written, without a sync.
    LogSkipsSync = "log-skips-sync",
    /// A storage server tells the log that it has what it has applied, before that is durable.
    PopBeforeFlush = "pop-before-flush",
    /// Storage clears a range of a batch after it has set the batch's keys.
    ClearAfterSet = "clear-after-set",
    /// Storage answers from what it has, whatever version is asked for.
    ReadAboveApplied = "read-above-applied",
    /// A replica of the log takes for durable what it has written, without a sync.
    ReplicaSkipsSync = "replica-skips-sync",
    /// A replica that leads the log confirms read versions by itself.
    ReadNotConfirmed = "read-not-confirmed",
    /// A voter confirms read versions of whoever asks, whomever it has voted for.
    AnyVoteConfirms = "any-vote-confirms",
    /// A leader confirms read versions by itself for as long as no other can have been elected since voters last did, by its own clock.
    ReadLeaseByClock = "read-lease-by-clock",
    /// A follower that hears nobody stands for election without having asked whether anybody would vote for it.
    PreVoteOff = "pre-vote-off",
    /// A replica of the log forgets at a restart that it has cut off what another leader replaced.
    CutForgotten = "cut-forgotten",
    /// A locked database takes the commits of everybody.
    LockNotCheckedAtCommit = "lock-not-checked-at-commit",
    /// Transactions begin on a locked database as on any other.
    LockNotToldToReaders = "lock-not-told-to-readers",
    /// An epoch begins with an unlocked database, whatever it was.
    LockNotRecovered = "lock-not-recovered",
    /// An epoch begins without the leases of the one before.
    LeasesNotRecovered = "leases-not-recovered",
    /// A commit without an id, of which nobody knows whether it happened, is told so while it may still be under way.
    UnknownNotFenced = "unknown-not-fenced",
    /// Blind writes without an id do not conflict with themselves.
    NotSelfConflicting = "not-self-conflicting",
    /// A mapped range read does not conflict with what it was mapped to.
    MappedReadNoConflict = "mapped-read-no-conflict",
    /// A mapped range read does not look whether the transaction has written what it is mapped to.
    MappedReadsOwnWrites = "mapped-reads-own-writes",
    /// A snapshot of the log is newer than what all storage servers have.
    SnapshotTooNew = "snapshot-too-new",
    /// A storage server whose tag was taken goes on with what the log has for it: nothing.
    DroppedTagServes = "dropped-tag-serves",
    /// A process whose disk went back takes part in the log as before.
    WentBackVotes = "went-back-votes",
    /// A tag is taken though no other process has everything.
    RemovedWithoutReplica = "removed-without-replica",
    /// While a shard moves, its mutations do not go to where it moves.
    TagForgottenInMove = "tag-forgotten-in-move",
    /// While a chunk of a shard that moves is fetched, what changes in it is not kept.
    MoveKeepsNothing = "move-keeps-nothing",
    /// A storage server keeps what it has lost.
    LostIsKept = "lost-is-kept",
    /// A storage server that says that a move is done is believed, whichever move it was.
    LateArrival = "late-arrival",
    /// What a storage server has lost it clears later, when nobody can read it any more, though it may have come back by then.
    ClearPutOff = "clear-put-off",
    /// A storage server says that a move is done before what it brought is durable.
    ArrivalNotDurable = "arrival-not-durable",
    /// A storage server says of versions before it began that nobody has them any more.
    BeganLaterSaysTooOld = "began-later-says-too-old",
    /// A storage server answers for what it does not hold.
    StrangerAnswers = "stranger-answers",
    /// The log takes the start of an epoch that has the number of the one before.
    EpochReused = "epoch-reused",
    /// The log takes the batches of an epoch from whoever says that it is his.
    TwoOwners = "two-owners",
    /// The log takes batches that do not follow on the last one.
    OrderNotChecked = "order-not-checked",
    /// The ids of silent clients expire by versions, though an epoch begins with many that nobody used.
    IdsExpireByRawVersions = "ids-expire-by-raw-versions",
    /// The start of an epoch collects what the window still covers.
    HorizonJumpsWithEpoch = "horizon-jumps-with-epoch",
    /// A coordinator answers with the newest version that it remembers, whoever owns the epoch by now.
    ReadVersionFromMemory = "read-version-from-memory",
    /// A replica of the log tells its vote before that is durable.
    VoteNotDurable = "vote-not-durable",
    /// The log is purged up to its end, whatever storage servers have of it.
    PurgedBeforePopped = "purged-before-popped",
    /// A commit whose end a coordinator does not know is told as one that did not happen.
    UnknownToldAsNo = "unknown-told-as-no",
    /// Who read before an epoch commits in it, though nobody knows what was written meanwhile.
    FloorNotRaised = "floor-not-raised",
    /// A commit is carried out whatever has been decided about its id.
    CommitIdIgnored = "commit-id-ignored",
    /// A commit whose answer was lost is sent again as another one.
    LostAnswerIsRetried = "lost-answer-is-retried",
    /// What becomes of a commit is asked first, of what is durable, and decided in a second step.
    AskThenFence = "ask-then-fence",
    /// What a storage server holds is not made durable with the data.
    HoldingNotKept = "holding-not-kept",
    /// Readers see that a range is lost after it was cleared.
    LossShownLate = "loss-shown-late",
    /// A database that turns into a cluster does not wait until storage has applied what was committed.
    TurnBeforeApplied = "turn-before-applied",
}
