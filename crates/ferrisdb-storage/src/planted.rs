//! Deliberate bugs in the engine, to prove that the tests would notice them: see `ferrisdb_core::planted`. Each [`Bug`] removes one defence at the
//! place where it stands (`if !planted(Bug::SkipWalSync) { file.sync_data()?; }`).

// `cargo xtask planted-bugs` reads the names from the lines below: one bug, one line.
ferrisdb_core::planted_bugs! {
    pub(crate),
    /// A durable write is acknowledged without syncing the WAL.
    SkipWalSync = "skip-wal-sync",
    /// The names of new files are not made durable.
    SkipDirectorySync = "skip-directory-sync",
    /// A data block is used whatever its checksum says.
    IgnoreBlockChecksum = "ignore-block-checksum",
    /// A WAL record is used whatever its checksum says.
    IgnoreWalChecksum = "ignore-wal-checksum",
    /// A damaged record is taken for the torn end of the WAL, though the WAL says that it was synced beyond it.
    CorruptionIsATornTail = "corruption-is-a-torn-tail",
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
