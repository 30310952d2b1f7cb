//! What one storage server holds: [`Holding`]; and how a shard comes to it, and goes.
//!
//! # A move
//! Of the range `[b, e)`, from the storage servers that have it to one, D, that has not:
//!
//! ```text
//! v1   metadata: D is in the move's team    above v1 the log has the range's mutations for D too
//! r    D fetches a chunk [k, l) at r = what it has applied; meanwhile it keeps the mutations of [k, e) in memory
//! b    with the next batch of the log, in one write at its version b: the chunk, what was kept of [k, l) above r, the batch itself;
//!      and `copied_to = l`. From b on mutations of [k, l) are applied as they come. And so on, chunk after chunk
//! w    the last chunk's b. D flushes until w is durable, and says so
//! v2   metadata: D holds the range from w on; those who leave held it until v2, and clear it at v2
//! ```
//!
//! **No write is lost.** A mutation of the range at a version u above v1 comes to D, in the order of versions. Let the chunk of its key be fetched at r and applied at b. D has
//! applied r when it fetches, so r is at or above v1. If u is at or below r the chunk has it; if above r and below b it was kept, because keeping begins in the same
//! moment in which r is chosen, and is applied on top; from b on it is applied as it comes. So at every version from w on D has what the others have.
//!
//! **Nothing is only in memory.** What is kept for a chunk is above r, and D has flushed r at the most: it has told the log that it needs nothing up to there, and not more. After a crash it goes on
//! from what it flushed: with `copied_to` as of that version, in the same manifest edit; the log brings again what is above, and the next chunk is fetched at a new r. So a
//! move goes on where it was, and what is kept has a bound: beyond it the chunk is fetched anew, in smaller pieces.
//!
//! **No read is lost.** Whoever leaves clears the range at v2 and not below, and the engine keeps old versions for as long as the horizon and the leases say: it answers below v2, D from w on, and w is
//! below v2. A storage server answers for a key at a version only if one of its spans has it. What it does not hold it refuses (`wrong_shard_server`).
//!
//! **A clear is not put off.** It is a write at v2 like any other; so nothing is pending that could hit the range when it comes back.
//!
//! # Invariants
//! - At the newest version there is nothing in the engine outside of what is held or has been copied.
//! - `spans` and incoming ranges change only with a batch of the log, and are flushed with it.
//! - A range that comes is not held at the same time.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::{Bytes, KeyRange, Mutation, MutationKind, Version};

use super::change::Moment;
use super::take_version;

/// The key of the mutations by which a storage server learns of its shards. No client can write it: it is above all keys.
const ASSIGNMENT_KEY: &[u8] = b"\xff\xff/shard";
const FORMAT_VERSION: u8 = 1;
/// Tells a holding from what else an owner may have kept.
const MAGIC: &[u8] = b"SHRD";

/// From when until when something is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// From this version on.
    pub(crate) from: Version,
    /// Below this version; `None`: it goes on.
    pub(crate) until: Option<Version>,
}

impl Span {
    fn has(&self, version: Version) -> bool {
        self.from <= version && self.until.is_none_or(|until| version < until)
    }
}

/// What a storage server is to have of a range from a version on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// The range: a whole shard.
    pub(crate) range: KeyRange,
    /// What it holds of it, and has held.
    pub(crate) spans: Vec<Span>,
    /// The move that brings it, if one does.
    pub(crate) incoming: Option<Version>,
}

impl Assignment {
    /// As a mutation in the log.
    pub(crate) fn to_mutation(&self) -> Mutation {
        let mut value = vec![FORMAT_VERSION];
        put_bytes(&mut value, &self.range.begin);
        put_bytes(&mut value, &self.range.end);
        put_spans(&mut value, &self.spans);
        put_varint(&mut value, self.incoming.map_or(0, Version::get));
        Mutation::set(ASSIGNMENT_KEY, value)
    }

    /// The assignment that a mutation is; `None` if it is one of data.
    ///
    /// # Errors
    /// It is one that this build cannot read.
    pub(crate) fn of_mutation(mutation: &Mutation) -> Result<Option<Assignment>, DecodeError> {
        if mutation.key != ASSIGNMENT_KEY {
            return Ok(None);
        }
        let mut decoder = Decoder::new(&mutation.value);
        check_format(&mut decoder)?;
        let begin = Bytes::copy_from_slice(decoder.bytes("assignment: begin")?);
        let end = Bytes::copy_from_slice(decoder.bytes("assignment: end")?);
        let spans = take_spans(&mut decoder)?;
        let incoming = take_version(&mut decoder)?;
        decoder.finish("assignment: bytes behind its end")?;
        let incoming = (incoming > Version::ZERO).then_some(incoming);
        Ok(Some(Assignment { range: KeyRange { begin, end }, spans, incoming }))
    }
}

/// A range that is held, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    end: Bytes,
    spans: Vec<Span>,
}

/// A range that a move brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Incoming {
    /// Where it ends.
    pub(crate) end: Bytes,
    /// The move.
    pub(crate) id: Version,
    /// What is below this key is here.
    pub(crate) copied_to: Bytes,
    /// All of it is here, from this version on.
    pub(crate) arrived: Option<Version>,
}

/// What a storage server holds.
///
/// # Format (kept by the engine as its owner's state; version 1; numbers are varints unless said otherwise)
/// ```text
/// magic "SHRD", u8 format; segments: count, then of each: bytes begin, bytes end, spans
///            incoming: count, then of each: bytes begin, bytes end, id, bytes copied to, arrived (0: not yet)
/// spans: count, then of each: from, until (0: it goes on)
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    /// By begin. Invariant: no two overlap, none is empty.
    segments: BTreeMap<Bytes, Segment>,
    /// By begin. Invariant: no two overlap, and what comes is not held.
    incoming: BTreeMap<Bytes, Incoming>,
}

/// What an assignment changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Assigned {
    /// Nothing that the data must follow.
    Kept,
    /// What a move has brought is held now.
    Held,
    /// What there is of the range is not wanted any more, and is to be cleared at this version.
    Lost,
}

impl Holding {
    /// All keys, from a version on.
    pub(crate) fn everything(from: Version) -> Holding {
        let segment = Segment { end: Bytes::from_static(SYSTEM_END), spans: vec![Span { from, until: None }] };
        Holding { segments: BTreeMap::from([(Bytes::new(), segment)]), incoming: BTreeMap::new() }
    }

    /// All of a range is here at a version. An empty range is everywhere.
    pub(crate) fn covers(&self, range: &KeyRange, version: Version) -> bool {
        let mut begin = &range.begin;
        while *begin < range.end {
            match self.segment_of(begin) {
                Some(segment) if segment.spans.iter().any(|span| span.has(version)) => begin = &segment.end,
                _ => return false,
            }
        }
        true
    }

    /// A key is here at a version.
    pub(crate) fn has(&self, key: &[u8], version: Version) -> bool {
        self.segment_of(key).is_some_and(|segment| segment.spans.iter().any(|span| span.has(version)))
    }

    /// A key is here, and goes on to be.
    pub(crate) fn has_now(&self, key: &[u8]) -> bool {
        self.segment_of(key).is_some_and(|segment| segment.spans.iter().any(|span| span.until.is_none()))
    }

    fn segment_of(&self, key: &[u8]) -> Option<&Segment> {
        let (_, segment) = self.segments.range::<[u8], _>((Unbounded, Included(key))).next_back()?;
        (key < segment.end.as_ref()).then_some(segment)
    }

    /// The ranges that moves bring, by their begins.
    pub(crate) fn incoming(&self) -> &BTreeMap<Bytes, Incoming> {
        &self.incoming
    }

    /// The ranges that are held now.
    pub(crate) fn held(&self) -> impl Iterator<Item = KeyRange> {
        let is_open = |segment: &Segment| segment.spans.iter().any(|span| span.until.is_none());
        self.segments
            .iter()
            .filter(move |(_, segment)| is_open(segment))
            .map(|(begin, segment)| KeyRange { begin: begin.clone(), end: segment.end.clone() })
    }

    /// A chunk of an incoming range is here, at `version`.
    pub(crate) fn copied(&mut self, begin: &Bytes, to: &Bytes, version: Version) {
        let incoming = self.incoming.get_mut(begin).expect("whoever brings a chunk has looked for the move");
        incoming.copied_to = to.clone();
        if incoming.copied_to >= incoming.end {
            incoming.arrived.get_or_insert(version);
        }
    }

    /// The parts of a mutation that are to be applied, and those that belong to what is not here yet.
    pub(crate) fn cut(&self, mutation: Mutation) -> (Vec<Mutation>, Vec<Mutation>) {
        if self.incoming.is_empty() {
            return (vec![mutation], Vec::new());
        }
        let (mut here, mut coming) = (Vec::new(), Vec::new());
        if mutation.kind != MutationKind::ClearRange {
            let before = self.incoming.range::<Bytes, _>(..=&mutation.key).next_back();
            let is_coming =
                before.is_some_and(|(_, incoming)| mutation.key < incoming.end && mutation.key >= incoming.copied_to);
            if is_coming {
                coming.push(mutation)
            } else {
                here.push(mutation)
            }
            return (here, coming);
        }
        let (mut begin, end) = (mutation.key, mutation.value);
        for incoming in self.incoming.values() {
            let (from, to) = (incoming.copied_to.clone().max(begin.clone()), incoming.end.clone().min(end.clone()));
            if from >= to {
                continue;
            }
            if begin < from {
                here.push(Mutation::clear_range(begin, from.clone()));
            }
            coming.push(Mutation::clear_range(from, to.clone()));
            begin = to;
        }
        if begin < end {
            here.push(Mutation::clear_range(begin, end));
        }
        (here, coming)
    }

    /// Does what the metadata says.
    ///
    /// # Errors
    /// It says that something is held which is not here: then it is better to stop than to answer.
    pub(crate) fn assign(&mut self, assignment: &Assignment, now: Moment<'_>) -> Result<Assigned, &'static str> {
        let KeyRange { begin, end } = &assignment.range;
        let held_before = self.held().any(|held| held.intersects(&assignment.range));
        let is_held = assignment.spans.iter().any(|span| span.until.is_none());
        let has_arrived = self.incoming.get(begin).is_some_and(|incoming| incoming.arrived.is_some());
        if is_held && !held_before && !has_arrived {
            return Err("it is told to hold what has not come to it");
        }
        self.cut_at(begin);
        self.cut_at(end);
        let inside = (Included(begin.clone()), Excluded(end.clone()));
        let gone: Vec<Bytes> = self.segments.range(inside).map(|(begin, _)| begin.clone()).collect();
        gone.iter().for_each(|begin| drop(self.segments.remove(begin)));
        let mut spans = assignment.spans.clone();
        spans.retain(|span| span.until.is_none_or(|until| !now.is_past(until)));
        if !spans.is_empty() {
            self.segments.insert(begin.clone(), Segment { end: end.clone(), spans });
        }
        let came_before = match self.incoming.get(begin) {
            Some(incoming) if assignment.incoming == Some(incoming.id) => return Ok(Assigned::Kept),
            came => came.is_some(),
        };
        self.incoming.remove(begin);
        if let Some(id) = assignment.incoming {
            let incoming = Incoming { end: end.clone(), id, copied_to: begin.clone(), arrived: None };
            self.incoming.insert(begin.clone(), incoming);
        }
        self.forget_past(now);
        Ok(match (is_held, held_before || came_before) {
            (false, true) => Assigned::Lost,
            (true, _) if has_arrived => Assigned::Held,
            _ => Assigned::Kept,
        })
    }

    /// A segment that has the key inside becomes two.
    fn cut_at(&mut self, key: &Bytes) {
        let below = (Unbounded, Excluded(key.clone()));
        let Some((_, segment)) = self.segments.range_mut(below).next_back() else { return };
        if segment.end <= *key {
            return;
        }
        let second = segment.clone();
        segment.end = key.clone();
        self.segments.insert(key.clone(), second);
    }

    /// Spans that have ended, and that nobody can ask for any more, go.
    fn forget_past(&mut self, now: Moment<'_>) {
        self.segments.retain(|_, segment| {
            segment.spans.retain(|span| span.until.is_none_or(|until| !now.is_past(until)));
            !segment.spans.is_empty()
        });
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(FORMAT_VERSION);
        put_varint(&mut out, self.segments.len() as u64);
        for (begin, segment) in &self.segments {
            put_bytes(&mut out, begin);
            put_bytes(&mut out, &segment.end);
            put_spans(&mut out, &segment.spans);
        }
        put_varint(&mut out, self.incoming.len() as u64);
        for (begin, incoming) in &self.incoming {
            put_bytes(&mut out, begin);
            put_bytes(&mut out, &incoming.end);
            put_varint(&mut out, incoming.id.get());
            put_bytes(&mut out, &incoming.copied_to);
            put_varint(&mut out, incoming.arrived.map_or(0, Version::get));
        }
        out
    }

    /// The holding in these bytes; `None` if they are something else: a FerrisDB that knew of no shards kept nothing here, or the state of its log.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Holding>, DecodeError> {
        let Some(bytes) = bytes.strip_prefix(MAGIC) else { return Ok(None) };
        Holding::decode_body(bytes).map(Some)
    }

    fn decode_body(bytes: &[u8]) -> Result<Holding, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        check_format(&mut decoder)?;
        let mut holding = Holding::default();
        let take_key = |decoder: &mut Decoder<'_>| decoder.bytes("holding: key").map(Bytes::copy_from_slice);
        for _ in 0..decoder.varint("holding: segments")? {
            let begin = take_key(&mut decoder)?;
            let segment = Segment { end: take_key(&mut decoder)?, spans: take_spans(&mut decoder)? };
            let last = holding.segments.last_key_value();
            if begin >= segment.end || last.is_some_and(|(_, last)| last.end > begin) {
                return Err(DecodeError { what: "holding: segments that are not in order" });
            }
            holding.segments.insert(begin, segment);
        }
        for _ in 0..decoder.varint("holding: incoming")? {
            let (begin, end) = (take_key(&mut decoder)?, take_key(&mut decoder)?);
            let id = take_version(&mut decoder)?;
            let copied_to = take_key(&mut decoder)?;
            let arrived = take_version(&mut decoder)?;
            let arrived = (arrived > Version::ZERO).then_some(arrived);
            let last = holding.incoming.last_key_value();
            if begin >= end || copied_to < begin || last.is_some_and(|(_, last)| last.end > begin) {
                return Err(DecodeError { what: "holding: incoming ranges that are not in order" });
            }
            holding.incoming.insert(begin, Incoming { end, id, copied_to, arrived });
        }
        decoder.finish("holding: bytes behind its end")?;
        Ok(holding)
    }
}

/// The part of a mutation that is in a range, if any is.
pub(crate) fn clipped(mutation: &Mutation, range: &KeyRange) -> Option<Mutation> {
    if mutation.kind != MutationKind::ClearRange {
        return range.contains(&mutation.key).then(|| mutation.clone());
    }
    let (begin, end) = (mutation.key.clone().max(range.begin.clone()), mutation.value.clone().min(range.end.clone()));
    (begin < end).then(|| Mutation::clear_range(begin, end))
}

fn put_spans(out: &mut Vec<u8>, spans: &[Span]) {
    put_varint(out, spans.len() as u64);
    for span in spans {
        put_varint(out, span.from.get());
        put_varint(out, span.until.map_or(0, Version::get));
    }
}

fn take_spans(decoder: &mut Decoder<'_>) -> Result<Vec<Span>, DecodeError> {
    let mut spans = Vec::new();
    for _ in 0..decoder.varint("spans: count")? {
        let (from, until) = (take_version(decoder)?, take_version(decoder)?);
        spans.push(Span { from, until: (until > Version::ZERO).then_some(until) });
    }
    Ok(spans)
}

fn check_format(decoder: &mut Decoder<'_>) -> Result<(), DecodeError> {
    if decoder.u8("holding: format version")? == FORMAT_VERSION {
        return Ok(());
    }
    Err(DecodeError { what: "holding: a format that this build does not know" })
}
