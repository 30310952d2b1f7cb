//! What programs are made of, and the dice.

use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, KeyValue, MutationKind, Random, SplitMix64};

use super::model::{Model, Phase};

/// How many transactions are open at once.
pub const SLOTS: usize = 4;

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
            | Step::Cancel { slot } => slot,
            // It is nobody's.
            Step::SetLock { .. } => 0,
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
    /// A size.
    Size(u64),
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
            Observed::Dropped(Some(read)) => read.failure(),
            Observed::Two(first, second) => first.failure().or(second.failure()),
            Observed::During { commit, .. } => commit.failure(),
            _ => None,
        }
    }
}

/// The next step: what makes sense in the model's state, and now and then what does not.
pub fn next(random: &mut SplitMix64, model: &Model) -> Step {
    let slot = index(random, SLOTS);
    // Nobody gets far while it is locked: mostly it is not.
    if random.one_in(if model.is_locked() { 6 } else { 1_000 }) {
        return Step::SetLock { locked: !model.is_locked() };
    }
    match model.phase(slot) {
        Phase::New => return Step::Begin { slot },
        Phase::Failed(code) => {
            if code == Code::NotCommitted && random.one_in(2) {
                return Step::ConflictingKeys { slot };
            }
            return match random.below(4) {
                0 => Step::Reset { slot },
                1 => Step::Get { slot, key: key(random), snapshot: false },
                _ => Step::OnError { slot, code },
            };
        }
        Phase::Ended => {
            return match random.below(7) {
                6 => Step::ConflictRanges { slot, of_writes: random.one_in(2) },
                0 => Step::Get { slot, key: key(random), snapshot: false },
                1 => Step::CommittedVersion { slot },
                2 => Step::Reset { slot },
                _ => Step::Begin { slot },
            };
        }
        Phase::Open => {}
    }
    let watches = model.watches();
    if watches > 0 && random.one_in(40) {
        // Mostly one whose transaction may still be open.
        let watch =
            if random.one_in(3) { index(random, watches) } else { watches - 1 - index(random, watches.min(SLOTS)) };
        return Step::WatchFired { slot, watch, wait: model.must_fire(watch) };
    }
    if random.one_in(15) {
        return option(random, slot);
    }
    if !model.has_read_version(slot) && random.one_in(2) {
        let recent = model.recent_versions();
        return match random.below(30) {
            0 => Step::SetReadVersion { slot, version: -i64::from(small(random, 2)) },
            1..5 if !recent.is_empty() => Step::SetReadVersion { slot, version: recent[index(random, recent.len())] },
            _ => Step::ReadVersion { slot },
        };
    }
    let needs_version = !model.has_read_version(slot);
    if !needs_version && random.one_in(12) {
        return compound(random, model, slot);
    }
    match random.below(100) {
        // Reads come after a read version was asked for: when exactly one is taken by itself is not the contract's.
        0..48 if needs_version => Step::ReadVersion { slot },
        0..14 => Step::Get { slot, key: read_key(random), snapshot: random.one_in(4) },
        14..24 => Step::GetKey { slot, selector: selector(random), snapshot: random.one_in(4) },
        24..27 => mapped(random, slot),
        27..46 => Step::GetRange { slot, question: question(random), snapshot: random.one_in(4) },
        46..48 => Step::Watch { slot, key: key(random) },
        48..60 => Step::Set { slot, key: write_key(random), value: value(random) },
        60..64 => Step::Clear { slot, key: write_key(random) },
        64..69 => {
            let (begin, end) = range(random);
            Step::ClearRange { slot, begin, end }
        }
        69..81 => atomic(random, slot),
        81 => {
            let (begin, end) = range(random);
            Step::ReadConflict { slot, begin, end }
        }
        82 => {
            let (begin, end) = range(random);
            Step::WriteConflict { slot, begin, end }
        }
        83 if random.one_in(3) => Step::LockAware { slot, read_only: random.one_in(3) },
        83 => match random.below(5) {
            0 if model.is_use_certain(slot) => Step::ReadYourWritesDisable { slot },
            1 => Step::RetryLimit { slot, limit: small(random, 4) - 1 },
            2 | 3 => Step::SnapshotReadYourWrites { slot, enable: random.one_in(2) },
            _ => Step::NextWriteNoConflict { slot },
        },
        84 => Step::NextWriteNoConflict { slot },
        85 => Step::ApproximateSize { slot },
        86 => match random.below(8) {
            0 => Step::Cancel { slot },
            1 => Step::Reset { slot },
            2 => Step::CommittedVersion { slot },
            3 => Step::OnError { slot, code: [Code::NotCommitted, Code::IoError][index(random, 2)] },
            _ => {
                let (begin, end) = range(random);
                let (begin, end) = if begin <= end { (begin, end) } else { (end, begin) };
                Step::SplitPoints { slot, begin, end, part_bytes: 1 + random.below(100) }
            }
        },
        _ => Step::Commit { slot },
    }
}

/// What changes how a transaction is, or asks how it is.
fn option(random: &mut SplitMix64, slot: usize) -> Step {
    match random.below(12) {
        0 => Step::CausalWriteRisky { slot },
        1 => Step::Priority { slot, immediate: random.one_in(2) },
        2 => Step::SizeLimit { slot, bytes: if random.one_in(4) { 31 } else { 32 + small(random, 200) } },
        3 | 4 => Step::ReportConflictingKeys { slot },
        5 => Step::BypassUnreadable { slot },
        6 => {
            let (begin, end) = range(random);
            Step::EstimatedSize { slot, begin, end }
        }
        7 => Step::ConflictingKeys { slot },
        _ => Step::ConflictRanges { slot, of_writes: random.one_in(3) },
    }
}

/// What begins before something else has ended.
fn compound(random: &mut SplitMix64, model: &Model, slot: usize) -> Step {
    let read = |random: &mut SplitMix64| {
        Box::new(match random.below(4) {
            0 => Step::GetKey { slot, selector: selector(random), snapshot: random.one_in(4) },
            1 => Step::GetRange { slot, question: question(random), snapshot: random.one_in(4) },
            _ => Step::Get { slot, key: key(random), snapshot: random.one_in(4) },
        })
    };
    match random.below(8) {
        0 => Step::CommitDuring { slot, key: key(random) },
        // One that fails while nobody looks fails the commit or not: whether it had been asked is nobody's business.
        1..4 => Step::Dropped { slot, read: read(random), polls: u32::from(random.one_in(2)) * 3 },
        // What was set to be unreadable in between is as if it had been before or after: a plain write is enough.
        _ => Step::Overlapping {
            slot,
            first: read(random),
            between: Box::new(if model.has_deferred(slot) || random.one_in(4) {
                Step::Clear { slot, key: key(random) }
            } else {
                Step::Set { slot, key: key(random), value: operand(random) }
            }),
            second: read(random),
        },
    }
}

/// An index below `count`.
fn index(random: &mut SplitMix64, count: usize) -> usize {
    usize::try_from(random.below(count as u64)).expect("it is below a usize")
}

/// A number below `bound`.
fn small(random: &mut SplitMix64, bound: u8) -> i32 {
    i32::try_from(random.below(u64::from(bound))).expect("it is below a u8")
}

fn offset_of(place: usize) -> i32 {
    i32::try_from(place).expect("templates are short")
}

/// Few different keys, so that programs meet: up to three bytes, with the bytes that make trouble among them.
fn key(random: &mut SplitMix64) -> Bytes {
    if random.one_in(8) {
        return tuple_key(random);
    }
    let len = [0, 1, 1, 2, 2, 3][index(random, 6)];
    (0..len).map(|_| [0, b'a', b'b', b'c', 0xFE][index(random, 5)]).collect()
}

/// A packed tuple `("t", n...)` with one or two small numbers: what mapped reads find and lead to.
fn tuple_key(random: &mut SplitMix64) -> Bytes {
    let mut key = vec![0x02, b't', 0x00];
    for _ in 0..=index(random, 2) {
        key.extend([0x15, 1 + [0, 1, 2][index(random, 3)]]);
    }
    key.into()
}

/// A read of an index, which is mostly one: the tuples that begin with "t".
fn mapped(random: &mut SplitMix64, slot: usize) -> Step {
    let mut question = question(random);
    question.reverse = random.one_in(20);
    if !random.one_in(4) {
        question.begin = KeySelector::first_greater_or_equal(Bytes::from_static(b"\x02t\x00"));
        question.end = KeySelector::first_greater_or_equal(Bytes::from_static(b"\x02t\x01"));
    }
    let mut mapper = Vec::new();
    if !random.one_in(4) {
        mapper.extend_from_slice(b"\x02t\x00");
    }
    for _ in 0..index(random, 4) {
        let elements: [&[u8]; 10] = [
            b"\x02{K[1]}\x00",
            b"\x02{K[1]}\x00",
            b"\x01{K[0]}\x00",
            b"\x02{K[2]}\x00",
            b"\x02{V[0]}\x00",
            b"\x15\x01",
            b"\x00",
            b"\x02{{a}}\x00",
            b"\x02{K[x]}\x00",
            b"\x02{...}\x00",
        ];
        // The last two are wrong, where they stand.
        let last = if random.one_in(10) { 10 } else { 8 };
        mapper.extend_from_slice(elements[index(random, last)]);
    }
    if random.one_in(2) {
        mapper.extend_from_slice(b"\x02{...}\x00");
    }
    if random.one_in(40) {
        mapper.push(0xFE);
    }
    Step::GetMapped { slot, question, mapper: mapper.into(), snapshot: random.one_in(20) }
}

/// Now and then one that may not be read.
fn read_key(random: &mut SplitMix64) -> Bytes {
    if random.one_in(200) { Bytes::from_static(b"\xff/system") } else { key(random) }
}

/// Now and then one that may not be written, or is too long.
fn write_key(random: &mut SplitMix64) -> Bytes {
    match random.below(300) {
        0 => Bytes::from_static(b"\xffx"),
        1 => Bytes::from(vec![b'k'; 10_001]),
        2 => Bytes::from(vec![b'k'; 10_000]),
        _ => key(random),
    }
}

fn value(random: &mut SplitMix64) -> Bytes {
    if random.one_in(400) {
        return Bytes::from(vec![b'v'; 99_999 + index(random, 3)]);
    }
    operand(random)
}

fn operand(random: &mut SplitMix64) -> Bytes {
    if random.one_in(8) {
        return vec![0x15, 1 + [0, 1, 2][index(random, 3)]].into();
    }
    let len = index(random, 5);
    (0..len).map(|_| [0, 1, 0x7F, 0xFF][index(random, 4)]).collect()
}

/// Mostly in order; now and then inverted, empty, or past the end.
fn range(random: &mut SplitMix64) -> (Bytes, Bytes) {
    let (begin, end) = (key(random), key(random));
    match random.below(60) {
        0 => (begin, end),
        1 => (begin.clone(), begin),
        2 => (begin, Bytes::from_static(b"\xff")),
        3 if random.one_in(3) => (begin, Bytes::from_static(b"\xff\x01")),
        _ if begin <= end => (begin, end),
        _ => (end, begin),
    }
}

fn selector(random: &mut SplitMix64) -> KeySelector {
    let key = match random.below(80) {
        0 => Bytes::from_static(b"\xff"),
        1 => Bytes::from_static(b"\xff\x01"),
        _ => key(random),
    };
    let offset = if random.one_in(2) { small(random, 2) } else { small(random, 13) - 6 };
    KeySelector { key, or_equal: random.one_in(2), offset }
}

fn question(random: &mut SplitMix64) -> RangeQuestion {
    let (begin, end) = if random.one_in(3) {
        (selector(random), selector(random))
    } else {
        let (begin, end) = (key(random), key(random));
        let (begin, end) = if begin <= end || random.one_in(10) { (begin, end) } else { (end, begin) };
        let end = if random.one_in(6) { Bytes::from_static(b"\xff") } else { end };
        (KeySelector::first_greater_or_equal(begin), KeySelector::first_greater_or_equal(end))
    };
    let mode = match random.below(60) {
        0..20 => Mode::WantAll,
        20..30 => Mode::Iterator(1 + small(random, 3)),
        30 => Mode::Iterator(0),
        31..40 => Mode::Exact,
        40..46 => Mode::Small,
        46..50 => Mode::Medium,
        50..55 => Mode::Large,
        _ => Mode::Serial,
    };
    RangeQuestion {
        begin,
        end,
        limit: if random.one_in(2) { small(random, 6) } else { 0 },
        target_bytes: if random.one_in(4) { small(random, 60) } else { 0 },
        mode,
        reverse: random.one_in(2),
    }
}

fn atomic(random: &mut SplitMix64, slot: usize) -> Step {
    use MutationKind::*;
    const KINDS: [MutationKind; 12] = [
        Add,
        BitAnd,
        BitOr,
        BitXor,
        AppendIfFits,
        Max,
        Min,
        ByteMin,
        ByteMax,
        CompareAndClear,
        SetVersionstampedKey,
        SetVersionstampedValue,
    ];
    let kind = KINDS[index(random, KINDS.len())];
    let (key, operand) = match kind {
        SetVersionstampedKey => (template(random), operand(random)),
        SetVersionstampedValue => (key(random), template(random)),
        _ => (write_key(random), operand(random)),
    };
    Step::Atomic { slot, kind, key, operand }
}

/// A template with a hole for a versionstamp; now and then one where it does not fit.
fn template(random: &mut SplitMix64) -> Bytes {
    let (before, after) = (key(random), key(random));
    let mut template = [before.as_ref(), &[0; 10], after.as_ref()].concat();
    let offset = match random.below(40) {
        0 => offset_of(template.len()) - 9,
        1 => -1,
        _ => offset_of(before.len()),
    };
    template.extend(offset.to_le_bytes());
    Bytes::from(template)
}
