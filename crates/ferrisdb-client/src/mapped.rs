//! Mapped range reads, [`Transaction::get_mapped_range`]: the entries of an index and what each of them leads to, in one call.
//!
//! A **mapper** is a packed tuple that says how the key to read next is made of an entry. Its elements are copied, but for these strings:
//!
//! ```text
//! {K[2]}   the element at place 2 of the entry's key, which must be a tuple
//! {V[0]}   likewise of the entry's value
//! {...}    only as the last element: not one key is read, but all keys that begin with the tuple so far
//! {{  }}   mean { and }, in a string that is copied
//! ```
//!
//! So with entries `("index", city, person)` and the mapper `("person", "{K[2]}", "{...}")`, a read of `("index", "Oslo")` returns whatever is kept of the
//! people in Oslo.
//!
//! # Rules
//! - It reads as others wrote, and never what the transaction itself has written: where it comes upon that, it fails with
//!   `get_mapped_range_reads_your_writes`.
//! - It conflicts with what it has read, of the index and behind it; there is no snapshot form, none without read-your-writes, and none in reverse
//!   (`unsupported_operation`).
//! - The client puts the questions for what is behind the entries, some at once: a program saves the calls, and waits for two answers one after the other.

use std::sync::Arc;

use ferrisdb_core::key::{SYSTEM_END, printable};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeyValue, Result};
use ferrisdb_rpc::api::GetRequest;
use futures_util::stream::{FuturesOrdered, StreamExt as _};

use crate::layers::tuple::{Element, Tuple, split};
use crate::overlay::Overlay;
use crate::range::RangeOptions;
use crate::read::ReadFuture;
use crate::reads::outside;
use crate::state::Inner;
use crate::view::{Budget, ROW_OVERHEAD_BYTES, View};

/// So many questions for what is behind the entries are under way at once.
const QUESTIONS_AT_ONCE: usize = 32;
/// Rows that one entry may lead to.
const RANGE_ROWS_MAX: u32 = 2_000;
/// Their bytes.
const RANGE_BYTES_MAX: u64 = 10_000_000;

/// An entry of an index, and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRow {
    /// The entry.
    pub entry: KeyValue,
    /// What it leads to.
    pub mapped: Mapped,
}

/// What an entry leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapped {
    /// One key.
    Value {
        /// The key.
        key: Bytes,
        /// Its value, if it has one.
        value: Option<Bytes>,
    },
    /// All keys that begin with a tuple.
    Range {
        /// From where to where they may lie.
        range: KeyRange,
        /// Those that there are.
        rows: Vec<KeyValue>,
    },
}

/// A part of a mapped range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MappedChunk {
    /// In the order of the entries.
    pub rows: Vec<MappedRow>,
    /// There may be more entries behind the last one. False only if there are not.
    pub more: bool,
}

impl MappedChunk {
    /// Of the options that this chunk was asked with, those for the next one; `None` if there is none.
    pub fn rest_of(&self, options: RangeOptions) -> Option<RangeOptions> {
        let last = self.rows.last().filter(|_| self.more)?;
        options.after_row(&last.entry.key, self.rows.len())
    }
}

/// A mapper, understood.
#[derive(Debug)]
struct Mapper {
    elements: Vec<Part>,
    /// It ends in `{...}`.
    is_range: bool,
}

#[derive(Debug)]
enum Part {
    /// These bytes of a packed tuple.
    Fixed(Bytes),
    /// An element of the entry's key, or of its value: at which place, if that is a number.
    Of(Source, Option<usize>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Key,
    Value,
}

impl Mapper {
    fn parse(mapper: &[u8]) -> Result<Mapper> {
        let not_a_tuple = |error: Error| Error::with(Code::MapperNotTuple, error.to_string());
        let parts = split(mapper).map_err(not_a_tuple)?;
        let tuple = Tuple::unpack(mapper).map_err(not_a_tuple)?;
        let (count, mut is_range) = (parts.len(), false);
        let mut elements = Vec::with_capacity(count);
        for (place, (element, part)) in tuple.elements().iter().zip(parts).enumerate() {
            let text = match element {
                Element::Bytes(bytes) => &bytes[..],
                Element::String(string) => string.as_bytes(),
                _ => {
                    elements.push(Part::Fixed(Bytes::copy_from_slice(part)));
                    continue;
                }
            };
            if let Some(unescaped) = unescaped(text) {
                // Also of a string: that is how FoundationDB does it, and a mapped key must be the same key.
                elements.push(Part::Fixed(Tuple::new().with(Element::Bytes(unescaped)).pack()));
            } else if let Some((source, index)) = reference(text) {
                elements.push(Part::Of(source, index));
            } else if text == b"{...}" {
                if place + 1 < count {
                    let detail = format!("it is element {place} of {count}");
                    return Err(Error::with(Code::MapperBadRangeDescriptor, detail));
                }
                is_range = true;
            } else {
                elements.push(Part::Fixed(Bytes::copy_from_slice(part)));
            }
        }
        Ok(Mapper { elements, is_range })
    }

    /// The key that an entry is mapped to.
    fn key(&self, entry: &KeyValue) -> Result<Bytes> {
        let (mut of_key, mut of_value) = (None, None);
        let mut mapped = Vec::new();
        for element in &self.elements {
            let (source, index) = match element {
                Part::Fixed(bytes) => {
                    mapped.extend_from_slice(bytes);
                    continue;
                }
                Part::Of(source, index) => (*source, *index),
            };
            let (parts, bytes, code) = match source {
                Source::Key => (&mut of_key, &entry.key, Code::KeyNotTuple),
                Source::Value => (&mut of_value, &entry.value, Code::ValueNotTuple),
            };
            let parts = match parts {
                Some(parts) => parts,
                None => {
                    let not_a_tuple =
                        |error| Error::with(code, format!("of the entry {}: {error}", printable(&entry.key)));
                    parts.insert(split(bytes).map_err(not_a_tuple)?)
                }
            };
            let Some(part) = index.and_then(|index| parts.get(index)) else {
                let (name, count, key) =
                    (if source == Source::Key { 'K' } else { 'V' }, parts.len(), printable(&entry.key));
                let which = index.map_or_else(|| "not a number".to_owned(), |index| index.to_string());
                let detail = format!("{name}[{which}] of the entry {key}, which has {count} elements there");
                return Err(Error::with(Code::MapperBadIndex, detail));
            };
            mapped.extend_from_slice(part);
        }
        Ok(mapped.into())
    }
}

/// With `{{` and `}}` made single; `None` if there are none.
fn unescaped(text: &[u8]) -> Option<Bytes> {
    let mut found = false;
    let mut single = |text: &[u8], brace: u8| {
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((&byte, behind)) = rest.split_first() {
            out.push(byte);
            let is_double = byte == brace && behind.first() == Some(&brace);
            found |= is_double;
            rest = if is_double { &behind[1..] } else { behind };
        }
        out
    };
    let text = single(text, b'{');
    let text = single(&text, b'}');
    found.then(|| text.into())
}

/// `{K[1]}` or `{V[1]}`, and the number in it if it is one.
fn reference(text: &[u8]) -> Option<(Source, Option<usize>)> {
    let source = match text.get(1)? {
        b'K' => Source::Key,
        b'V' => Source::Value,
        _ => return None,
    };
    let number = text.strip_prefix(b"{").and_then(|text| text[1..].strip_prefix(b"["))?.strip_suffix(b"]}")?;
    let number = std::str::from_utf8(number).ok().filter(|number| !number.is_empty())?;
    Some((source, number.parse().ok()))
}

impl Inner {
    /// A chunk of a mapped range.
    pub(crate) fn get_mapped_range(
        self: &Arc<Self>,
        options: RangeOptions,
        mapper: &[u8],
        is_snapshot: bool,
    ) -> ReadFuture<MappedChunk> {
        let begun = self.with(|state| {
            self.enter(state)?;
            let budget = options.budget()?;
            if options.begin.key.starts_with(SYSTEM_END) {
                let detail = "special keys are not mapped";
                return Err(Error::with(Code::ClientInvalidOperation, detail));
            }
            for selector in [&options.begin, &options.end] {
                if *selector.key > *state.read_end() {
                    return Err(outside(&selector.key));
                }
            }
            options.check_limits()?;
            let unsupported =
                |what: &str| Err(Error::with(Code::UnsupportedOperation, format!("get_mapped_range {what}")));
            if is_snapshot {
                return unsupported("as a snapshot read");
            }
            if state.settings.is_ryw_disabled {
                return unsupported("without read-your-writes");
            }
            if options.reverse {
                return unsupported("in reverse");
            }
            let mapper = Mapper::parse(mapper)?;
            let begin = options.begin.clone().without_or_equal();
            let end = options.end.clone().without_or_equal();
            let options = RangeOptions { begin, end, ..options.clone() };
            if options.is_inverted() {
                return Ok(None);
            }
            let (mut view, epoch) = self.begin_view(state, is_snapshot);
            // It reads what others wrote; that nothing of the transaction's own lies there is seen afterwards.
            let own = std::mem::replace(&mut view.overlay, Arc::clone(&self.database.empty_overlay));
            let key_bytes_max = self.limits().key_bytes;
            Ok(Some((Reading { view, own, options, budget, mapper, key_bytes_max }, epoch)))
        });
        let (reading, epoch) = match begun {
            Ok(Some(begun)) => begun,
            Ok(None) => return ReadFuture::ready(Ok(MappedChunk::default())),
            Err(error) => return ReadFuture::ready(Err(error)),
        };
        let inner = Arc::clone(self);
        let rest = async move {
            let (chunk, conflicts) = reading.read().await?;
            for conflict in &conflicts {
                inner.add_read_conflicts(epoch, &reading.own, conflict);
            }
            Ok(chunk)
        };
        ReadFuture::start(self, epoch, true, Box::pin(rest))
    }
}

/// A mapped range read that has begun.
struct Reading {
    /// What others wrote.
    view: View,
    /// What the transaction itself has written.
    own: Arc<Overlay>,
    options: RangeOptions,
    budget: Budget,
    mapper: Mapper,
    /// No longer key has a value.
    key_bytes_max: usize,
}

impl Reading {
    /// The chunk, and what it conflicts with.
    async fn read(&self) -> Result<(MappedChunk, Vec<KeyRange>)> {
        let (entries, mut conflict) = self.view.chunk(&self.options, self.budget).await?;
        let (count, mut more) = (entries.rows.len(), entries.more);
        let bytes_max = self.budget.bytes.unwrap_or(RANGE_BYTES_MAX);
        let (mut entries, mut questions) = (entries.rows.into_iter(), FuturesOrdered::new());
        let (mut rows, mut bytes) = (Vec::with_capacity(count), 0);
        while bytes < bytes_max {
            while questions.len() < QUESTIONS_AT_ONCE
                && let Some(entry) = entries.next()
            {
                questions.push_back(self.follow(entry));
            }
            let Some(row) = questions.next().await else { break };
            let row = row?;
            bytes += row.cost();
            rows.push(row);
        }
        if rows.len() < count {
            // What the entries lead to has filled the chunk: the entries behind were not looked at, as far as anybody is told.
            let budget = Budget { rows: u32::try_from(rows.len()).ok(), bytes: None };
            (_, conflict) = self.view.chunk(&self.options, budget).await?;
            more = true;
        }
        let mut conflicts = vec![conflict];
        if !planted(Bug::MappedReadNoConflict) {
            conflicts.extend(rows.iter().map(|row| row.mapped.range()));
        }
        let is_own = |range: &&KeyRange| self.own.has_writes_in(range);
        if let Some(range) = conflicts.iter().find(is_own)
            && !planted(Bug::MappedReadsOwnWrites)
        {
            let detail = format!("between {} and {}", printable(&range.begin), printable(&range.end));
            return Err(Error::with(Code::GetMappedRangeReadsYourWrites, detail));
        }
        Ok((MappedChunk { rows, more }, conflicts))
    }

    /// Reads what an entry leads to.
    async fn follow(&self, entry: KeyValue) -> Result<MappedRow> {
        let key = self.mapper.key(&entry)?;
        if !self.mapper.is_range {
            let value = if key.len() > self.key_bytes_max {
                None
            } else {
                let version = self.view.version().await?;
                self.view.endpoint.get(GetRequest { key: key.clone(), version }).await?
            };
            return Ok(MappedRow { entry, mapped: Mapped::Value { key, value } });
        }
        let KeyRange { begin, end } = KeyRange::prefix(&key);
        let range = KeyRange { begin, end: end.min(self.view.end.clone()) };
        let budget = Budget { rows: Some(RANGE_ROWS_MAX + 1), bytes: Some(RANGE_BYTES_MAX) };
        let mut rows = Vec::new();
        if self.view.walk(range.clone(), false, budget, &mut rows).await? {
            let detail = format!(
                "the entry {} leads to more than {RANGE_ROWS_MAX} rows, or {RANGE_BYTES_MAX} bytes of them",
                printable(&entry.key)
            );
            return Err(Error::with(Code::QuickGetKeyValuesHasMore, detail));
        }
        Ok(MappedRow { entry, mapped: Mapped::Range { range, rows } })
    }
}

impl Mapped {
    /// What was looked at.
    fn range(&self) -> KeyRange {
        match self {
            Mapped::Value { key, .. } => KeyRange::single(key),
            Mapped::Range { range, .. } => range.clone(),
        }
    }
}

impl MappedRow {
    /// Bytes that it counts for in a chunk.
    fn cost(&self) -> u64 {
        let row = |key: &Bytes, value: &Bytes| ROW_OVERHEAD_BYTES + (key.len() + value.len()) as u64;
        let mapped = match &self.mapped {
            Mapped::Value { value: None, .. } => 0,
            Mapped::Value { key, value: Some(value) } => row(key, value),
            Mapped::Range { rows, .. } => rows.iter().map(|found| row(&found.key, &found.value)).sum(),
        };
        row(&self.entry.key, &self.entry.value) + mapped
    }
}
