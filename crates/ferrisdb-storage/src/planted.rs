//! Deliberate bugs, to prove that the tests would notice them.
//!
//! A promise is only as good as the test that fails when it is broken. Each [`Bug`] removes one defence of the engine at
//! the place where it stands (`if !planted(Bug::SkipWalSync) { file.sync_data()?; }`), and `cargo xtask planted-bugs`
//! requires of each a test that passes without it and fails with it.
//!
//! Without the feature `planted-bugs` the answer is the constant `false`, so nothing is left in the binary. With it, the
//! environment variable `FERRISDB_PLANTED_BUG` names the one bug that is there; it is read once in a process.

/// Lists the bugs once, for the enum and for the names.
macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// A defence that can be taken away.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug {
            $($(#[$doc])* $bug,)*
        }

        /// Each bug and what the environment variable calls it.
        #[cfg(any(test, feature = "planted-bugs"))]
        const BUGS: &[(Bug, &str)] = &[$((Bug::$bug, $name),)*];
    };
}

// `cargo xtask planted-bugs` reads the names from the lines below: one bug, one line.
bugs! {
    /// A durable write is acknowledged without syncing the WAL.
    SkipWalSync = "skip-wal-sync",
    /// The names of new files are not made durable.
    SkipDirectorySync = "skip-directory-sync",
    /// A data block is used whatever its checksum says.
    IgnoreBlockChecksum = "ignore-block-checksum",
    /// A WAL record is used whatever its checksum says.
    IgnoreWalChecksum = "ignore-wal-checksum",
    /// Versions of one key are ordered oldest first.
    WrongVersionOrder = "wrong-version-order",
    /// A range tombstone also hides what was written after it.
    RangeTombstoneHidesNewer = "range-tombstone-hides-newer",
    /// A record left over in a recycled WAL segment is read as a new one.
    RecycledRecordAccepted = "recycled-record-accepted",
    /// A durable write is acknowledged while its sync is still under way.
    AckBeforeSync = "ack-before-sync",
    /// The manifest names a table that has not been synced.
    ForgetToSyncTable = "forget-to-sync-table",
    /// A manifest edit takes effect before it is durable.
    ManifestNotSynced = "manifest-not-synced",
    /// A compaction drops a tombstone while older entries of its key lie in deeper levels.
    DropTombstoneAboveBottom = "drop-tombstone-above-bottom",
    /// A compaction drops the entry that a pinned version reads.
    CompactionDropsPinned = "compaction-drops-pinned",
    /// After a torn record, WAL replay goes on with the records that follow it.
    TornTailKeptAfterHole = "torn-tail-kept-after-hole",
    /// A failed sync is tried again, and the second answer is believed.
    RetryFailedSync = "retry-failed-sync",
    /// A flush lets the WAL be replayed from its end, and not from where the next memtable begins.
    FlushForgetsWalEnd = "flush-forgets-wal-end",
    /// The WAL is purged before the manifest says that it is no longer needed.
    PurgeBeforeFlush = "purge-before-flush",
    /// CURRENT names a manifest that has not been synced.
    SwitchBeforeSync = "switch-before-sync",
    /// A spare WAL segment is used again although it may be another file's second name.
    SecondNameReused = "second-name-reused",
    /// Names in the WAL's directory that an earlier process may have left unsynced are relied upon.
    NamesFoundNotSynced = "names-found-not-synced",
    /// A block's checksum does not know the block's place.
    BlockPlaceIgnored = "block-place-ignored",
    /// The last key of a range tombstone's fragment, which it does not cover, is hidden too.
    TombstoneEndIncluded = "tombstone-end-included",
    /// An iterator does not see the range tombstones of the levels below L0.
    DeeperTombstoneIgnored = "deeper-tombstone-ignored",
    /// A table under a range tombstone is dropped unread although a pinned version reads it.
    DroppedTableIgnoresPin = "dropped-table-ignores-pin",
    /// A compaction takes the visible version for the floor.
    CompactionIgnoresFloor = "compaction-ignores-floor",
    /// A blob file goes as soon as something in it is garbage.
    BlobRemovedWhileReferenced = "blob-removed-while-referenced",
    /// A value in a blob file is used whatever its checksum says.
    IgnoreBlobChecksum = "ignore-blob-checksum",
    /// The manifest names a blob file that has not been synced.
    ForgetToSyncBlob = "forget-to-sync-blob",
    /// A checkpoint holds an ingestion and lacks writes that came before it.
    CheckpointAheadOfFlush = "checkpoint-ahead-of-flush",
    /// Closing the engine does not wait for a call that works in its directory.
    CloseIgnoresHold = "close-ignores-hold",
}

/// True if `bug` is planted in this process.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

/// True if `bug` is planted in this process.
#[cfg(feature = "planted-bugs")]
pub(crate) fn planted(bug: Bug) -> bool {
    use std::io::Write as _;
    use std::sync::OnceLock;

    static PLANTED: OnceLock<Option<Bug>> = OnceLock::new();
    *PLANTED.get_or_init(|| {
        let value = std::env::var_os("FERRISDB_PLANTED_BUG")?;
        let bug = value.to_str().and_then(named);
        if bug.is_none() {
            // A misspelt name must not look like a bug that no test notices; a panic could be caught by one.
            let names: Vec<&str> = BUGS.iter().map(|(_, name)| *name).collect();
            let message = format!("FERRISDB_PLANTED_BUG={} is not one of: {}\n", value.display(), names.join(", "));
            // Not eprintln!: the test harness would keep that back and lose it with the process.
            std::io::stderr().write_all(message.as_bytes()).ok();
            std::process::abort();
        }
        bug
    }) == Some(bug)
}

/// The bug of that name.
#[cfg(any(test, feature = "planted-bugs"))]
fn named(name: &str) -> Option<Bug> {
    BUGS.iter().find(|(_, known)| *known == name).map(|(bug, _)| *bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name means one bug, and the bug that was planted is the only one there.
    #[test]
    fn one_name_one_bug() {
        for (index, (bug, name)) in BUGS.iter().enumerate() {
            assert_eq!(named(name), Some(*bug));
            assert!(BUGS[..index].iter().all(|(other, _)| other != bug));
        }
        assert_eq!(named("no-such-bug"), None);
        let planted_here = BUGS.iter().filter(|(bug, _)| planted(*bug)).count();
        assert!(planted_here <= 1, "{planted_here} bugs are planted at once");
        if cfg!(not(feature = "planted-bugs")) {
            assert_eq!(planted_here, 0);
        }
    }
}
