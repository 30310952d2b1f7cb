//! The dice: which step comes next. What makes sense in the model's state, and now and then what does not.

use ferrisdb_core::{Bytes, Code, KeySelector, MutationKind, Random, SplitMix64};

use super::model::{Model, Phase};
use super::program::{Mode, RangeQuestion, SLOTS, SNAPSHOTS, Step};
use super::view::{METADATA_VERSION, SYSTEM_PREFIX};

/// Bytes that a default has to leave for a commit.
const SIZE_LIMIT_MAX: i64 = 10_000_000;

/// The next step.
pub fn next(random: &mut SplitMix64, model: &Model) -> Step {
    let slot = index(random, SLOTS);
    // Nobody gets far while it is locked: mostly it is not.
    if random.one_in(if model.is_locked() { 6 } else { 1_000 }) {
        return plain_default(model).unwrap_or(Step::SetLock { locked: !model.is_locked() });
    }
    if random.one_in(60) {
        return beside(random, model);
    }
    match model.phase(slot) {
        Phase::New => Step::Begin { slot },
        Phase::Failed(code) => after_failure(random, model, slot, code),
        Phase::Ended if random.one_in(100) => Step::Expire { slot, meanwhile: None },
        Phase::Ended => match random.below(7) {
            6 => Step::ConflictRanges { slot, of_writes: random.one_in(2) },
            0 => Step::Get { slot, key: key(random), snapshot: false },
            1 => Step::CommittedVersion { slot },
            2 => Step::Reset { slot },
            _ => Step::Begin { slot },
        },
        Phase::Open => {
            let step = of_open(random, model, slot);
            let is_moved = model.reads_system(slot) && random.one_in(2);
            if is_moved { among_system_keys(random, step) } else { step }
        }
    }
}

/// What makes defaults that hinder the database's own transactions (who locks it) what they were; `None` if there are none.
fn plain_default(model: &Model) -> Option<Step> {
    let (number, value) = model.hindering_default()?;
    Some(Step::DatabaseDefault { number, value: Some(value) })
}

/// What belongs to no transaction.
fn beside(random: &mut SplitMix64, model: &Model) -> Step {
    let held = index(random, SNAPSHOTS);
    match random.below(40) {
        0 if random.one_in(2) => Step::Pause,
        1 => plain_default(model).unwrap_or(Step::LockedBy),
        2..5 => default(random, model),
        5 => Step::DropSnapshot { held },
        6..28 if model.holds_snapshot(held) => {
            let read = match random.below(12) {
                0..3 => Step::Get { slot: 0, key: read_key(random), snapshot: false },
                3..6 => Step::GetKey { slot: 0, selector: selector(random), snapshot: false },
                6 => stream(random, 0),
                7 => {
                    let (begin, end) = range(random);
                    let (begin, end) = if begin <= end { (begin, end) } else { (end, begin) };
                    Step::EstimatedSize { slot: 0, begin, end }
                }
                _ => Step::GetRange { slot: 0, question: question(random), snapshot: false },
            };
            let is_moved = model.snapshot_reads_system(held) && random.one_in(2);
            let read = if is_moved { among_system_keys(random, read) } else { read };
            Step::SnapshotRead { held, read: Box::new(read) }
        }
        _ => {
            let recent = model.recent_versions();
            let version = (!recent.is_empty() && random.one_in(3)).then(|| recent[index(random, recent.len())]);
            Step::TakeSnapshot { held, version, system: random.one_in(3), lock_aware: random.one_in(2) }
        }
    }
}

/// Defaults of the database; mostly back to what they were.
fn default(random: &mut SplitMix64, model: &Model) -> Step {
    let (number, value) = match random.below(8) {
        0 => (26, None),
        1 => (27, None),
        2 => (501, Some(i64::from(small(random, 4) - 2))),
        3 => (503, Some(i64::from(31 + small(random, 200)))),
        4 => (500, Some(-1)),
        _ => return plain_default(model).unwrap_or(Step::DatabaseDefault { number: 503, value: Some(SIZE_LIMIT_MAX) }),
    };
    Step::DatabaseDefault { number, value }
}

/// Mostly what brings the transaction back; after a timeout everything that must not.
fn after_failure(random: &mut SplitMix64, model: &Model, slot: usize, code: Code) -> Step {
    if code == Code::NotCommitted && random.one_in(2) {
        return Step::ConflictingKeys { slot };
    }
    if code == Code::TransactionTimedOut {
        let watches = model.watches();
        return match random.below(12) {
            // Before anybody has called the transaction again, as a rule.
            8.. if watches > 0 => {
                let watch = watches - 1 - index(random, watches.min(SLOTS));
                Step::WatchFired { slot, watch, wait: model.must_fire(watch) }
            }
            0 => Step::Timeout { slot, millis: 0 },
            1 => Step::ReadVersion { slot },
            2 => Step::Commit { slot },
            3 => Step::OnError { slot, code: Code::NotCommitted },
            4 => Step::Set { slot, key: key(random), value: operand(random) },
            5 => Step::Get { slot, key: key(random), snapshot: random.one_in(2) },
            _ => Step::Reset { slot },
        };
    }
    match random.below(4) {
        0 => Step::Reset { slot },
        1 => Step::Get { slot, key: key(random), snapshot: false },
        _ => Step::OnError { slot, code },
    }
}

/// For a transaction that takes calls.
fn of_open(random: &mut SplitMix64, model: &Model, slot: usize) -> Step {
    if model.has_waiting_watch(slot) && random.one_in(40) {
        return Step::Expire { slot, meanwhile: None };
    }
    if model.is_tagged(slot) && random.one_in(2) {
        return Step::OptionByNumber { slot, number: 800, value: Some(Bytes::from_static(b"again")) };
    }
    let watches = model.watches();
    if watches > 0 && random.one_in(40) {
        // Mostly one whose transaction may still be open.
        let watch =
            if random.one_in(3) { index(random, watches) } else { watches - 1 - index(random, watches.min(SLOTS)) };
        return Step::WatchFired { slot, watch, wait: model.must_fire(watch) };
    }
    if random.one_in(15) {
        let step = option(random, slot);
        let asks = match &step {
            Step::Expire { meanwhile: Some(meanwhile), .. } => meanwhile.as_ref(),
            step => step,
        };
        let reads = matches!(asks, Step::Get { .. } | Step::GetRange { .. } | Step::Stream { .. });
        return if reads && !model.has_read_version(slot) { Step::ReadVersion { slot } } else { step };
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
        // With system keys a reader of an index may run into what is not the programs'.
        24..27 if !model.reads_system(slot) => mapped(random, slot),
        24 => stream(random, slot),
        25..46 => Step::GetRange { slot, question: question(random), snapshot: random.one_in(4) },
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
    match random.below(20) {
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
        8 | 9 => Step::SystemKeys { slot, reads: random.one_in(3) },
        10 => stream(random, slot),
        11 => by_number(random, slot),
        12 => match random.below(12) {
            0 => Step::Timeout { slot, millis: -1 },
            1..4 => Step::Timeout { slot, millis: 0 },
            _ => Step::Timeout { slot, millis: NEVER_MILLIS },
        },
        13 => Step::Retries { slot },
        14 => match random.below(6) {
            0 => {
                let number = [0, 1, 3, 5, 10, 11, 21, 255, 256, -1][index(random, 10)];
                Step::AtomicByNumber { slot, key: key(random), operand: operand(random), number }
            }
            1 | 2 => Step::Addresses { slot, key: key(random) },
            _ => {
                let kind = MutationKind::SetVersionstampedValue;
                // A template of another length is one all the same, but not for this key.
                let zeros = if random.one_in(4) { 16 } else { 14 };
                let operand = Bytes::from(vec![0; zeros]);
                Step::Atomic { slot, kind, key: Bytes::from_static(METADATA_VERSION), operand }
            }
        },
        15 if random.one_in(2) => Step::Expire { slot, meanwhile: meanwhile(random, slot) },
        15 => Step::Get { slot, key: Bytes::from_static(METADATA_VERSION), snapshot: random.one_in(2) },
        _ => Step::ConflictRanges { slot, of_writes: random.one_in(3) },
    }
}

/// A timeout that no program sees the end of, in milliseconds.
const NEVER_MILLIS: i64 = 36_000_000;

/// What a transaction does while its time runs out.
fn meanwhile(random: &mut SplitMix64, slot: usize) -> Option<Box<Step>> {
    Some(Box::new(match random.below(6) {
        0 | 1 => Step::Get { slot, key: key(random), snapshot: random.one_in(4) },
        2 => Step::GetRange { slot, question: question(random), snapshot: random.one_in(4) },
        3 | 4 => Step::OnError { slot, code: [Code::NotCommitted, Code::FutureVersion][index(random, 2)] },
        _ => return None,
    }))
}

/// Options that nothing comes of, in every kind of value; and now and then one that is wrong.
fn by_number(random: &mut SplitMix64, slot: usize) -> Step {
    const FLAGS: [i32; 24] = [
        20, 21, 23, 52, 110, 120, 130, 300, 303, 304, 400, 406, 505, 507, 508, 509, 510, 511, 710, 711, 1000, 1101,
        1102, 4000,
    ];
    let number_of = |value: i64| Some(Bytes::copy_from_slice(&value.to_le_bytes()));
    let text = |len: usize| Some(Bytes::from(vec![b't'; len]));
    let (number, value) = match random.below(12) {
        0..3 => (FLAGS[index(random, FLAGS.len())], None),
        3 => ([405, 1103, 4001][index(random, 3)], number_of(7)),
        4 => (502, number_of(i64::from(small(random, 20)) - 1)),
        5 => ([401, 402, 2000][index(random, 3)], text(5)),
        6 => (403, text([1, 100, 101][index(random, 3)])),
        7 => (404, None),
        8 => ([800, 801][index(random, 2)], text([1, 16, 255, 256][index(random, 4)])),
        9 => (504, text([15, 16, 255, 256][index(random, 4)])),
        10 => (900, text([32, 33, 33][index(random, 3)])),
        _ => {
            let wrong = [(7, None), (9999, None), (500, text(4)), (501, None), (51, text(1)), (20, text(1))];
            wrong[index(random, wrong.len())].clone()
        }
    };
    Step::OptionByNumber { slot, number, value }
}

/// All rows of a range between plain bounds.
fn stream(random: &mut SplitMix64, slot: usize) -> Step {
    let mut question = question(random);
    question.begin = KeySelector::first_greater_or_equal(question.begin.key);
    question.end = KeySelector::first_greater_or_equal(question.end.key);
    // Of a stream this says, as the target of bytes does, how large its chunks are.
    question.mode = [Mode::WantAll, Mode::Iterator(1), Mode::Small, Mode::Serial][index(random, 4)];
    Step::Stream { slot, question, snapshot: random.one_in(4) }
}

/// The same step, with some of its keys among those system keys that are the programs' own.
fn among_system_keys(random: &mut SplitMix64, step: Step) -> Step {
    let moved = |key: Bytes| match key.first() {
        Some(0xFF) => key,
        // Longer than an ordinary one may be, and as long as a system key may be, or longer.
        _ if key.len() == 10_001 => Bytes::from([SYSTEM_PREFIX, &[b'k'; 29_999]].concat()),
        _ => Bytes::from([SYSTEM_PREFIX, &key[..]].concat()),
    };
    let is_begin_moved = random.one_in(2);
    let bounds = |begin: Bytes, end: Bytes| (if is_begin_moved { moved(begin) } else { begin }, moved(end));
    let question_moved = |mut question: RangeQuestion| {
        (question.begin.key, question.end.key) = bounds(question.begin.key, question.end.key);
        question
    };
    match step {
        Step::Get { slot, key, snapshot } => Step::Get { slot, key: moved(key), snapshot },
        Step::GetKey { slot, selector, snapshot } => {
            Step::GetKey { slot, selector: KeySelector { key: moved(selector.key), ..selector }, snapshot }
        }
        Step::GetRange { slot, question, snapshot } => {
            Step::GetRange { slot, question: question_moved(question), snapshot }
        }
        Step::Stream { slot, question, snapshot } => {
            Step::Stream { slot, question: question_moved(question), snapshot }
        }
        Step::Set { slot, key, value } => Step::Set { slot, key: moved(key), value },
        Step::Clear { slot, key } => Step::Clear { slot, key: moved(key) },
        Step::Watch { slot, key } => Step::Watch { slot, key: moved(key) },
        Step::Addresses { slot, key } => Step::Addresses { slot, key: moved(key) },
        Step::ClearRange { slot, begin, end } => {
            let (begin, end) = bounds(begin, end);
            Step::ClearRange { slot, begin, end }
        }
        Step::ReadConflict { slot, begin, end } => {
            let (begin, end) = bounds(begin, end);
            Step::ReadConflict { slot, begin, end }
        }
        Step::WriteConflict { slot, begin, end } => {
            let (begin, end) = bounds(begin, end);
            Step::WriteConflict { slot, begin, end }
        }
        Step::SplitPoints { slot, begin, end, part_bytes } => {
            let (begin, end) = bounds(begin, end);
            Step::SplitPoints { slot, begin: begin.min(end.clone()), end, part_bytes }
        }
        Step::EstimatedSize { slot, begin, end } => {
            let (begin, end) = bounds(begin, end);
            Step::EstimatedSize { slot, begin, end }
        }
        Step::Atomic { slot, kind: MutationKind::SetVersionstampedKey, key, operand } => {
            let (body, offset) = key.split_last_chunk::<4>().expect("a template has four bytes behind it");
            let offset = i32::from_le_bytes(*offset) + offset_of(SYSTEM_PREFIX.len());
            let key = Bytes::from([SYSTEM_PREFIX, body, &offset.to_le_bytes()].concat());
            Step::Atomic { slot, kind: MutationKind::SetVersionstampedKey, key, operand }
        }
        Step::Atomic { slot, kind, key, operand } => Step::Atomic { slot, kind, key: moved(key), operand },
        Step::Dropped { slot, read, polls } => {
            Step::Dropped { slot, read: Box::new(among_system_keys(random, *read)), polls }
        }
        Step::Overlapping { slot, first, between, second } => {
            let mut each = |step: Box<Step>| Box::new(among_system_keys(random, *step));
            Step::Overlapping { slot, first: each(first), between: each(between), second: each(second) }
        }
        other => other,
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
    if random.one_in(200) { Bytes::from_static(b"\xff\x00system") } else { key(random) }
}

/// Now and then one that may not be written, or is too long.
fn write_key(random: &mut SplitMix64) -> Bytes {
    match random.below(300) {
        0 => Bytes::from_static(b"\xff\x00x"),
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
