//! Range reads: what is asked for ([`RangeOptions`], [`StreamingMode`]), how it is cut into chunks, and what it conflicts with.
//!
//! A chunk is read in two steps. First the bounds become keys: one that is "first at or above" is its own key, whatever exists; any other
//! is looked for from its key, over the transaction's own writes. Then rows are walked from one bound towards the other, until limits
//! are reached. Either step fails if it comes to something unreadable; what lies behind the last row of a chunk that is full is never
//! looked at.
//!
//! A chunk conflicts with what it has looked at: the range between the keys of its selectors, widened to where they led, and cut
//! short behind the last row if it is full.

use std::cmp::Ordering;
use std::fmt;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use ferrisdb_core::key::key_after;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, KeyValue, Result};
use futures_util::stream::Stream;

use crate::read::ReadFuture;
use crate::view::{Budget, Place, View};

/// How large the chunks of a range read are. The numbers are FoundationDB's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(i32)]
pub enum StreamingMode {
    /// All of it, as fast as possible.
    WantAll = -2,
    /// For a consumer that may stop any time: small chunks first, larger ones with each iteration.
    #[default]
    Iterator = -1,
    /// As many rows or bytes as the limits say, at once.
    Exact = 0,
    /// About 256 bytes a chunk.
    Small = 1,
    /// About 1,000 bytes a chunk.
    Medium = 2,
    /// About 4,096 bytes a chunk.
    Large = 3,
    /// About 120,000 bytes a chunk.
    Serial = 4,
}

/// Bytes of the chunks of [`StreamingMode::Iterator`], by iteration: half as many again each time, between one page and the most that
/// a reply should have.
const ITERATOR_BYTES: [u64; 10] = [4096, 6144, 9216, 13_824, 20_736, 31_104, 46_656, 69_984, 80_000, 120_000];

impl StreamingMode {
    /// The mode with this number.
    pub const fn from_number(number: i32) -> Option<StreamingMode> {
        Some(match number {
            -2 => StreamingMode::WantAll,
            -1 => StreamingMode::Iterator,
            0 => StreamingMode::Exact,
            1 => StreamingMode::Small,
            2 => StreamingMode::Medium,
            3 => StreamingMode::Large,
            4 => StreamingMode::Serial,
            _ => return None,
        })
    }

    /// Bytes of a chunk; `None`: no bound.
    fn chunk_bytes(self, iteration: i32) -> Result<Option<u64>> {
        Ok(match self {
            StreamingMode::Exact => None,
            StreamingMode::Small => Some(256),
            StreamingMode::Medium => Some(1000),
            StreamingMode::Large => Some(4096),
            StreamingMode::Serial | StreamingMode::WantAll => Some(120_000),
            StreamingMode::Iterator => match usize::try_from(iteration) {
                Ok(iteration @ 1..) => Some(ITERATOR_BYTES[iteration.min(ITERATOR_BYTES.len()) - 1]),
                _ => {
                    let detail = format!("iteration {iteration}: iterations are counted from 1");
                    return Err(Error::with(Code::ClientInvalidOperation, detail));
                }
            },
        })
    }
}

/// A range to read, and how. Made from a pair of selectors or a [`KeyRange`], and then adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeOptions {
    /// The first key of the range is the one here.
    pub begin: KeySelector,
    /// The range ends before the key here.
    pub end: KeySelector,
    /// Rows at most; 0: no bound.
    pub limit: i32,
    /// Bytes (of keys, values, and 8 a row) after which the chunk ends; 0: what the mode says. At least one row is returned.
    pub target_bytes: i32,
    /// How large the chunks are.
    pub mode: StreamingMode,
    /// Which chunk of a read in [`StreamingMode::Iterator`] this is, from 1 on.
    pub iteration: i32,
    /// From the end, descending.
    pub reverse: bool,
}

impl RangeOptions {
    /// Everything between two places.
    pub fn new(begin: KeySelector, end: KeySelector) -> RangeOptions {
        let mode = StreamingMode::default();
        RangeOptions { begin, end, limit: 0, target_bytes: 0, mode, iteration: 1, reverse: false }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> RangeOptions {
        KeyRange::prefix(prefix).into()
    }

    /// The same with at most so many rows (0: no bound).
    #[must_use]
    pub fn limit(mut self, limit: i32) -> RangeOptions {
        self.limit = limit;
        self
    }

    /// The same with chunks of this kind.
    #[must_use]
    pub fn mode(mut self, mode: StreamingMode) -> RangeOptions {
        self.mode = mode;
        self
    }

    /// The same with a bound of bytes.
    #[must_use]
    pub fn target_bytes(mut self, target_bytes: i32) -> RangeOptions {
        self.target_bytes = target_bytes;
        self
    }

    /// The same from the end, descending.
    #[must_use]
    pub fn reverse(mut self, reverse: bool) -> RangeOptions {
        self.reverse = reverse;
        self
    }

    /// How much a chunk may have.
    ///
    /// # Errors
    /// `exact_mode_without_limits`, `client_invalid_operation`.
    pub(crate) fn budget(&self) -> Result<Budget> {
        let is_bounded = |limit: i32| limit != 0 && limit != -1;
        if self.mode == StreamingMode::Exact && !is_bounded(self.limit) && !is_bounded(self.target_bytes) {
            return Err(Code::ExactModeWithoutLimits.into());
        }
        let chunk_bytes = self.mode.chunk_bytes(self.iteration)?;
        let target_bytes = u64::try_from(self.target_bytes).ok().filter(|bytes| *bytes > 0);
        let bytes = match (target_bytes, chunk_bytes) {
            (Some(target), Some(chunk)) => Some(target.min(chunk)),
            (target, chunk) => target.or(chunk),
        };
        Ok(Budget { rows: u32::try_from(self.limit).ok().filter(|rows| *rows > 0), bytes })
    }

    /// Fails if a limit is not one.
    pub(crate) fn check_limits(&self) -> Result<()> {
        if self.limit < -1 || self.target_bytes < -1 {
            let detail = format!("limit {} and target_bytes {}: both are at least 0", self.limit, self.target_bytes);
            return Err(Error::with(Code::RangeLimitsInvalid, detail));
        }
        Ok(())
    }

    /// True if it says by itself that it is empty. The selectors have no `or_equal`.
    pub(crate) fn is_inverted(&self) -> bool {
        self.begin.offset >= self.end.offset && self.begin.key >= self.end.key
    }

    /// The rest of the read after `chunk`; `None` if there is none.
    pub fn after(self, chunk: &RangeChunk) -> Option<RangeOptions> {
        let last = chunk.rows.last().filter(|_| chunk.more)?;
        self.after_row(&last.key, chunk.rows.len())
    }

    /// The rest of the read after `rows` rows, the last of which has the key `last`.
    pub(crate) fn after_row(mut self, last: &Bytes, rows: usize) -> Option<RangeOptions> {
        if self.reverse {
            self.end = KeySelector::first_greater_or_equal(last.clone());
        } else {
            self.begin = KeySelector::first_greater_than(last.clone());
        }
        self.iteration = self.iteration.saturating_add(1);
        if self.limit > 0 {
            self.limit -= i32::try_from(rows).unwrap_or(self.limit).min(self.limit);
            if self.limit == 0 {
                return None;
            }
        }
        Some(self)
    }
}

impl From<KeyRange> for RangeOptions {
    fn from(range: KeyRange) -> RangeOptions {
        let (begin, end) = (range.begin, range.end);
        RangeOptions::new(KeySelector::first_greater_or_equal(begin), KeySelector::first_greater_or_equal(end))
    }
}

impl From<(KeySelector, KeySelector)> for RangeOptions {
    fn from((begin, end): (KeySelector, KeySelector)) -> RangeOptions {
        RangeOptions::new(begin, end)
    }
}

/// A part of a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeChunk {
    /// In the order asked for.
    pub rows: Vec<KeyValue>,
    /// There may be more behind the last row. False only if there is not.
    pub more: bool,
}

impl View {
    /// A chunk of a range, and the range that it conflicts with. The selectors have no `or_equal`, and the range is not inverted.
    pub(crate) async fn chunk(&self, options: &RangeOptions, budget: Budget) -> Result<(RangeChunk, KeyRange)> {
        let begin = self.place(&options.begin).await?;
        let end = self.place(&options.end).await?;
        let mut chunk = RangeChunk::default();
        if let Some(range) = self.between(&begin, &end) {
            chunk.more = self.walk(range, options.reverse, budget, &mut chunk.rows).await?;
            if planted(Bug::NoMoreAfterBytes) && budget.rows.is_none() {
                chunk.more = false;
            }
        }
        let read_to_begin = begin == Place::Front || end == Place::Front;
        let read_through_end = begin == Place::End || end == Place::End;
        let conflict = self.conflict_of(options, &chunk, read_to_begin, read_through_end);
        Ok((chunk, conflict))
    }

    /// The place of a bound. One that is a plain key needs no looking.
    async fn place(&self, selector: &KeySelector) -> Result<Place> {
        if selector.is_first_greater_or_equal() {
            return Ok(Place::Key(selector.key.clone()));
        }
        self.resolve(selector).await
    }

    fn between(&self, begin: &Place, end: &Place) -> Option<KeyRange> {
        let begin = match begin {
            Place::Front => Bytes::new(),
            Place::Key(key) => key.clone(),
            Place::End => return None,
        };
        let end = match end {
            Place::Front => return None,
            Place::Key(key) => key.min(&self.end).clone(),
            Place::End => self.end.clone(),
        };
        Some(KeyRange { begin, end })
    }

    /// What a chunk has looked at: from the selectors' keys, less what was not reached, and more where a selector led beyond them.
    fn conflict_of(&self, options: &RangeOptions, chunk: &RangeChunk, to_begin: bool, through_end: bool) -> KeyRange {
        let (begin, end) = (&options.begin, &options.end);
        let (mut from, mut to) = match begin.key.cmp(&end.key) {
            Ordering::Less if !options.reverse && end.offset > 0 && chunk.more && !planted(Bug::ConflictNotShrunk) => {
                (&begin.key, begin.key.clone())
            }
            Ordering::Less if options.reverse && begin.offset <= 1 && chunk.more => (&end.key, end.key.clone()),
            Ordering::Less => (&begin.key, end.key.clone()),
            _ => (&end.key, begin.key.clone()),
        };
        let empty = Bytes::new();
        let (to_begin, through_end) =
            (to_begin && !planted(Bug::OffTheFrontNoConflict), through_end && !planted(Bug::OffTheEndNoConflict));
        if to_begin && begin.offset <= 0 && !(options.reverse && chunk.more) {
            from = &empty;
        }
        if through_end && end.offset > 0 && (options.reverse || !chunk.more) {
            to = self.end.clone();
        }
        if let (Some(first), Some(last)) = (chunk.rows.first(), chunk.rows.last()) {
            let (lowest, highest) = if options.reverse { (&last.key, &first.key) } else { (&first.key, &last.key) };
            if planted(Bug::ReverseConflictMissesLast) && options.reverse && chunk.more {
                from = highest;
            } else if options.reverse || begin.offset <= 0 {
                from = from.min(lowest);
            }
            if (!options.reverse || end.offset > 0) && to <= *highest {
                to = key_after(highest);
            }
        }
        KeyRange { begin: from.clone(), end: to }
    }
}

/// What a read of one key's place conflicts with.
pub(crate) fn conflict_of_key(selector: &KeySelector, found: &Bytes) -> KeyRange {
    let key = selector.clone().without_or_equal().key;
    if selector.offset <= 0 {
        KeyRange { begin: found.clone(), end: key }
    } else if planted(Bug::GetKeyConflictMissesEnd) {
        KeyRange { begin: key, end: found.clone() }
    } else {
        KeyRange { begin: key, end: key_after(found) }
    }
}

/// All rows of a range, one after the other. The next chunk is asked for when the last is used up, so that what a consumer does not
/// look at does not conflict.
#[must_use = "a stream does nothing unless polled"]
pub struct RangeStream {
    ask: Box<dyn Fn(RangeOptions) -> ReadFuture<RangeChunk> + Send>,
    rows: std::vec::IntoIter<KeyValue>,
    /// What the chunk under way was asked with, and its answer.
    under_way: Option<(RangeOptions, ReadFuture<RangeChunk>)>,
    /// What is to be asked next.
    rest: Option<RangeOptions>,
}

impl RangeStream {
    pub(crate) fn new(
        options: RangeOptions,
        ask: impl Fn(RangeOptions) -> ReadFuture<RangeChunk> + Send + 'static,
    ) -> RangeStream {
        let first = ask(options.clone());
        let under_way = Some((options, first));
        RangeStream { ask: Box::new(ask), rows: Vec::new().into_iter(), under_way, rest: None }
    }

    /// The next row; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<KeyValue>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// All rows that are left.
    ///
    /// # Errors
    /// Those of a range read.
    pub async fn collect(mut self) -> Result<Vec<KeyValue>> {
        let mut rows = Vec::new();
        while let Some(row) = self.next().await {
            rows.push(row?);
        }
        Ok(rows)
    }
}

impl Stream for RangeStream {
    type Item = Result<KeyValue>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<KeyValue>>> {
        let this = &mut *self;
        loop {
            if let Some(row) = this.rows.next() {
                return Poll::Ready(Some(Ok(row)));
            }
            if let Some(options) = this.rest.take() {
                let answer = (this.ask)(options.clone());
                this.under_way = Some((options, answer));
            }
            let Some((options, mut answer)) = this.under_way.take() else { return Poll::Ready(None) };
            match Pin::new(&mut answer).poll(context) {
                Poll::Pending => {
                    this.under_way = Some((options, answer));
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(chunk)) => {
                    this.rest = options.after(&chunk);
                    this.rows = chunk.rows.into_iter();
                }
            }
        }
    }
}

impl fmt::Debug for RangeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeStream").field("buffered", &self.rows.len()).finish_non_exhaustive()
    }
}
