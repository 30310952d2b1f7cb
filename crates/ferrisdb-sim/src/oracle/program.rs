//! What programs are made of. Which step comes next the `dice` say.

use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, KeyValue, MutationKind};

pub use super::dice::next;

/// How many transactions are open at once.
pub const SLOTS: usize = 4;
/// How many snapshots of the database are held at once.
pub const SNAPSHOTS: usize = 2;

/// A streaming mode, by FoundationDB's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As much as a program that wants everything would like in one go.
    WantAll,
    /// Growing chunks: the n-th of an iteration.
    Iterator(i32),
    /// Exactly what the limits say.
    Exact,
    /// Small chunks.
    Small,
    /// Medium chunks.
    Medium,
    /// Large chunks.
    Large,
    /// The largest chunks.
    Serial,
}

/// What a range read asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeQuestion {
    /// Where it begins.
    pub begin: KeySelector,
    /// Where it ends.
    pub end: KeySelector,
    /// Rows; 0: no limit.
    pub limit: i32,
    /// Bytes; 0: no limit.
    pub target_bytes: i32,
    /// Streaming mode.
    pub mode: Mode,
    /// Descending.
    pub reverse: bool,
}

/// One call of a program. Each says in which slot its transaction is.
#[expect(missing_docs, reason = "the names are those of the client's methods")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A new transaction in place of the slot's old one, which is dropped.
    Begin {
        slot: usize,
    },
    /// Asks for the read version.
    ReadVersion {
        slot: usize,
    },
    Get {
        slot: usize,
        key: Bytes,
        snapshot: bool,
    },
    GetKey {
        slot: usize,
        selector: KeySelector,
        snapshot: bool,
    },
    GetRange {
        slot: usize,
        question: RangeQuestion,
        snapshot: bool,
    },
    Set {
        slot: usize,
        key: Bytes,
        value: Bytes,
    },
    Clear {
        slot: usize,
        key: Bytes,
    },
    ClearRange {
        slot: usize,
        begin: Bytes,
        end: Bytes,
    },
    /// Versionstamped ones too: then the operand or the key is a template.
    Atomic {
        slot: usize,
        kind: MutationKind,
        key: Bytes,
        operand: Bytes,
    },
    ReadConflict {
        slot: usize,
        begin: Bytes,
        end: Bytes,
    },
    WriteConflict {
        slot: usize,
        begin: Bytes,
        end: Bytes,
    },
    /// A chunk of a mapped range.
    GetMapped {
        slot: usize,
        question: RangeQuestion,
        mapper: Bytes,
        snapshot: bool,
    },
    /// Locks the database, or unlocks it, beside all transactions.
    SetLock {
        locked: bool,
    },
    /// Options 700, and 702 if `read_only`.
    LockAware {
        slot: usize,
        read_only: bool,
    },
    /// Option 30.
    NextWriteNoConflict {
        slot: usize,
    },
    /// Option 51.
    ReadYourWritesDisable {
        slot: usize,
    },
    /// Options 600 and 601.
    SnapshotReadYourWrites {
        slot: usize,
        enable: bool,
    },
    /// Option 501.
    RetryLimit {
        slot: usize,
        limit: i32,
    },
    /// Sets a watch; its future is kept by the subject.
    Watch {
        slot: usize,
        key: Bytes,
    },
    /// Has the watch set by this step number of `Watch` (counted from 0) fired? Waits for it if `wait`.
    WatchFired {
        slot: usize,
        watch: usize,
        wait: bool,
    },
    ApproximateSize {
        slot: usize,
    },
    SplitPoints {
        slot: usize,
        begin: Bytes,
        end: Bytes,
        part_bytes: u64,
    },
    /// Commits; the versionstamp is asked for before, the committed version after.
    Commit {
        slot: usize,
    },
    /// Commits with option 701, and reads before that has ended.
    CommitDuring {
        slot: usize,
        key: Bytes,
    },
    /// The version of the last commit, if the transaction has one.
    CommittedVersion {
        slot: usize,
    },
    SetReadVersion {
        slot: usize,
        version: i64,
    },
    /// Option 10.
    CausalWriteRisky {
        slot: usize,
    },
    /// Options 200 and 201.
    Priority {
        slot: usize,
        immediate: bool,
    },
    /// Option 503.
    SizeLimit {
        slot: usize,
        bytes: i32,
    },
    /// Option 712.
    ReportConflictingKeys {
        slot: usize,
    },
    /// Option 1100.
    BypassUnreadable {
        slot: usize,
    },
    /// Option 301, or 302 if it only `reads`.
    SystemKeys {
        slot: usize,
        reads: bool,
    },
    /// Any option, or what is none, with a value as FoundationDB's C interface takes it.
    OptionByNumber {
        slot: usize,
        number: i32,
        value: Option<Bytes>,
    },
    /// A default of the database for its transactions, by number, with a number or nothing.
    DatabaseDefault {
        number: i32,
        value: Option<i64>,
    },
    /// An atomic operation by a number that is none.
    AtomicByNumber {
        slot: usize,
        key: Bytes,
        operand: Bytes,
        number: i32,
    },
    /// All rows of a range, one by one.
    Stream {
        slot: usize,
        question: RangeQuestion,
        snapshot: bool,
    },
    /// How many errors the transaction has been given.
    Retries {
        slot: usize,
    },
    /// Where a key is.
    Addresses {
        slot: usize,
        key: Bytes,
    },
    /// Option 500 with a time that does not end, or with none.
    Timeout {
        slot: usize,
        millis: i64,
    },
    /// Option 500 with a short time, and then until it is over: nothing, a read that begins before, or an `on_error`.
    Expire {
        slot: usize,
        meanwhile: Option<Box<Step>>,
    },
    /// Under which id the database is locked.
    LockedBy,
    /// All transactions are dropped, and so much time passes that no version is readable which was, but for those of snapshots.
    Pause,
    /// Takes a snapshot of the database in place of the one that was held.
    TakeSnapshot {
        held: usize,
        version: Option<i64>,
        system: bool,
        lock_aware: bool,
    },
    /// A read of a snapshot of the database. The slot in it means nothing.
    SnapshotRead {
        held: usize,
        read: Box<Step>,
    },
    DropSnapshot {
        held: usize,
    },
    EstimatedSize {
        slot: usize,
        begin: Bytes,
        end: Bytes,
    },
    /// The special keys that tell what the transaction conflicts with so far.
    ConflictRanges {
        slot: usize,
        of_writes: bool,
    },
    /// The special keys that tell in which ranges its commit conflicted.
    ConflictingKeys {
        slot: usize,
    },
    /// Begins a read, and drops its future after so many polls.
    Dropped {
        slot: usize,
        read: Box<Step>,
        polls: u32,
    },
    /// Begins a read, writes, begins another read, and awaits that one first.
    Overlapping {
        slot: usize,
        first: Box<Step>,
        between: Box<Step>,
        second: Box<Step>,
    },
    OnError {
        slot: usize,
        code: Code,
    },
    Reset {
        slot: usize,
    },
    Cancel {
        slot: usize,
    },
}

impl Step {
    /// True if it may change the value of `key`. Which key a versionstamped one is nobody knows.
    pub(super) fn may_write(&self, key: &Bytes) -> bool {
        match self {
            Step::Atomic { kind: MutationKind::SetVersionstampedKey, .. } => true,
            Step::Set { key: written, .. } | Step::Clear { key: written, .. } | Step::Atomic { key: written, .. } => {
                written == key
            }
            Step::ClearRange { begin, end, .. } => begin <= key && key < end,
            Step::Overlapping { between, .. } => between.may_write(key),
            _ => false,
        }
    }

    /// The slot.
    pub fn slot(&self) -> usize {
        match *self {
            Step::Begin { slot }
            | Step::ReadVersion { slot }
            | Step::Get { slot, .. }
            | Step::GetKey { slot, .. }
            | Step::GetRange { slot, .. }
            | Step::Set { slot, .. }
            | Step::Clear { slot, .. }
            | Step::ClearRange { slot, .. }
            | Step::Atomic { slot, .. }
            | Step::ReadConflict { slot, .. }
            | Step::WriteConflict { slot, .. }
            | Step::GetMapped { slot, .. }
            | Step::LockAware { slot, .. }
            | Step::NextWriteNoConflict { slot }
            | Step::ReadYourWritesDisable { slot }
            | Step::SnapshotReadYourWrites { slot, .. }
            | Step::RetryLimit { slot, .. }
            | Step::Watch { slot, .. }
            | Step::WatchFired { slot, .. }
            | Step::ApproximateSize { slot }
            | Step::SplitPoints { slot, .. }
            | Step::Commit { slot }
            | Step::CommitDuring { slot, .. }
            | Step::SetReadVersion { slot, .. }
            | Step::CausalWriteRisky { slot }
            | Step::Priority { slot, .. }
            | Step::SizeLimit { slot, .. }
            | Step::ReportConflictingKeys { slot }
            | Step::BypassUnreadable { slot }
            | Step::EstimatedSize { slot, .. }
            | Step::ConflictRanges { slot, .. }
            | Step::ConflictingKeys { slot }
            | Step::Dropped { slot, .. }
            | Step::Overlapping { slot, .. }
            | Step::CommittedVersion { slot }
            | Step::OnError { slot, .. }
            | Step::Reset { slot }
            | Step::SystemKeys { slot, .. }
            | Step::OptionByNumber { slot, .. }
            | Step::AtomicByNumber { slot, .. }
            | Step::Stream { slot, .. }
            | Step::Retries { slot }
            | Step::Addresses { slot, .. }
            | Step::Timeout { slot, .. }
            | Step::Expire { slot, .. }
            | Step::Cancel { slot } => slot,
            // They are nobody's.
            Step::SetLock { .. }
            | Step::LockedBy
            | Step::DatabaseDefault { .. }
            | Step::Pause
            | Step::TakeSnapshot { .. }
            | Step::SnapshotRead { .. }
            | Step::DropSnapshot { .. } => 0,
        }
    }
}

/// What an entry of a mapped range leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRow {
    /// The entry.
    pub entry: KeyValue,
    /// Where what it leads to may be: one key, or all that begin with one.
    pub range: KeyRange,
    /// What is there.
    pub rows: Vec<KeyValue>,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Nothing to tell.
    Done,
    /// A value.
    Value(Option<Bytes>),
    /// A key.
    Key(Bytes),
    /// Rows of one chunk.
    Rows {
        /// In the order asked for.
        rows: Vec<KeyValue>,
        /// The flag.
        more: bool,
    },
    /// Rows of one chunk of a mapped range.
    Mapped {
        /// In order.
        rows: Vec<MappedRow>,
        /// The flag.
        more: bool,
    },
    /// A read version or a committed version (-1: none).
    Version(i64),
    /// A commit that happened: its version (`None` if it only read), and the versionstamp or the code of the error that the future
    /// of the versionstamp ended with.
    Committed {
        /// The version.
        version: Option<u64>,
        /// The stamp.
        stamp: Result<[u8; 10], Code>,
    },
    /// A size, or a count.
    Size(u64),
    /// Whether the database is locked.
    Locked(bool),
    /// Keys.
    Keys(Vec<Bytes>),
    /// Ranges.
    Ranges(Vec<KeyRange>),
    /// Whether a watch has fired.
    Fired(bool),
    /// Of a read whose future was dropped: what it had told by then, if anything.
    Dropped(Option<Box<Observed>>),
    /// Of two reads, in the order in which they began.
    Two(Box<Observed>, Box<Observed>),
    /// Of a time that is over: of what was done meanwhile.
    Expired(Option<Box<Observed>>),
    /// Of a commit, and of a read that was begun during it.
    During {
        /// The read's.
        read: Box<Observed>,
        /// The commit's.
        commit: Box<Observed>,
    },
    /// An error. For calls that return nothing, an error that they returned at once.
    Failed(Code),
}

impl Observed {
    /// The error that a step ended with, or the first of them if it is made of several.
    pub fn failure(&self) -> Option<Code> {
        match self {
            Observed::Failed(code) => Some(*code),
            Observed::Dropped(Some(read)) | Observed::Expired(Some(read)) => read.failure(),
            Observed::Two(first, second) => first.failure().or(second.failure()),
            Observed::During { commit, .. } => commit.failure(),
            _ => None,
        }
    }
}
