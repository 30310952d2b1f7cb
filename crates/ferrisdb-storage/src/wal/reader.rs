//! Reading the log from a position on: replay at open, subscriptions while the writer appends, read-only open.
//!
//! A reader holds no lock and copies no record: [`WalReader::advance`] steps onto a record, [`WalReader::record`] borrows it.
//! It never reads at or above the end of what is appended, so it never sees a record half written; below it, a bad record is
//! corruption. A segment that is purged or cut off is retired before its file is written to again; a reader that is still in
//! it gets an error, never other records.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::task::{Poll, Waker};

use super::format::{Place, RecordKind, SEGMENT_HEADER_LEN, WalPosition, framed_len};
use super::recover::ChainSegment;
use super::scan::{Probe, SegmentScan};
use super::{OPEN_END, Segment, Wal};
use crate::error::{Error, Result};
use crate::planted::{Bug, planted};

/// How far a reader may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadUpTo {
    /// Everything appended. After a crash, records that were read may not be there, and other ones in their place.
    Appended,
    /// Only what is durable.
    Synced,
}

/// A record under a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRecord<'a> {
    /// Where it lies.
    pub position: WalPosition,
    /// What was appended.
    pub payload: &'a [u8],
}

/// Reads records in order.
#[derive(Debug)]
pub struct WalReader {
    source: Source,
    identity: u64,
    segment: Option<Arc<Segment>>,
    scan: Option<SegmentScan>,
    /// Where the next record begins, in `segment`.
    offset: u32,
    /// The record that the last [`advance`](Self::advance) found.
    position: WalPosition,
    found: bool,
    generation: u16,
}

#[derive(Debug)]
enum Source {
    Live(Wal, ReadUpTo),
    /// The segments behind the current one, of a log that nobody writes to.
    Detached(VecDeque<Arc<Segment>>),
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("path", &self.path).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Wal {
    /// A reader from `from` on: a record's position, or the end of the log for what comes next.
    ///
    /// # Errors
    /// [`Error::PositionNotInWal`] below the first position or above the end; never an empty stream. If `from` lies in the log but
    /// is not where a record begins, the first read says so.
    pub fn subscribe(&self, from: WalPosition, up_to: ReadUpTo) -> Result<WalReader> {
        let (segment, first) = {
            let chain = self.inner.chain();
            let found = chain.iter().find(|segment| segment.number == from.segment()).map(Arc::clone);
            (found, chain.front().expect("the chain is never empty").start())
        };
        let end = self.last_position();
        let within = |segment: &Segment| {
            let closed = segment.end.load(SeqCst);
            from >= segment.start()
                && if closed == OPEN_END { from <= end.max(segment.start()) } else { from.offset() <= closed }
        };
        match segment.filter(|segment| within(segment)) {
            Some(segment) => {
                let mut reader = WalReader::new(Source::Live(self.clone(), up_to), self.inner.options.identity);
                reader.enter(segment, from.offset());
                Ok(reader)
            }
            None => Err(Error::PositionNotInWal { position: from, first, end }),
        }
    }
}

impl WalReader {
    /// The file of the record that the reader is on.
    pub(crate) fn segment_path(&self) -> Option<&Path> {
        self.segment.as_ref().map(|segment| segment.path.as_path())
    }

    fn new(source: Source, identity: u64) -> WalReader {
        WalReader {
            source,
            identity,
            segment: None,
            scan: None,
            offset: 0,
            position: WalPosition::ZERO,
            found: false,
            generation: 0,
        }
    }

    pub(super) fn detached(chain: Vec<ChainSegment>, identity: u64) -> WalReader {
        let into_segment = |kept: ChainSegment| {
            Arc::new(Segment {
                number: kept.header.number,
                path: kept.path,
                file: kept.file,
                capacity: kept.end,
                previous_end: kept.header.previous_end,
                end: AtomicU32::new(kept.end),
                header_durable: AtomicBool::new(true),
                retired: AtomicBool::new(false),
            })
        };
        let mut segments: VecDeque<Arc<Segment>> = chain.into_iter().map(into_segment).collect();
        let first = segments.pop_front();
        let mut reader = WalReader::new(Source::Detached(segments), identity);
        if let Some(first) = first {
            reader.enter(first, SEGMENT_HEADER_LEN);
        }
        reader
    }

    /// Steps onto the next record. False: there is none yet, or none at all in a log that nobody writes to; ask again later.
    ///
    /// # Errors
    /// [`Error::Corruption`] for a record that is damaged; [`Error::PositionNotInWal`] if what comes next was purged or truncated away
    /// meanwhile. The reader stays where it was.
    pub fn advance(&mut self) -> Result<bool> {
        self.found = false;
        loop {
            let Some(segment) = self.segment.clone() else { return Ok(false) };
            if segment.retired.load(SeqCst) {
                return Err(self.gone());
            }
            // First the limit, then the end: a segment is closed before the limit moves beyond it.
            let limit = self.limit();
            let end = segment.end.load(SeqCst);
            if self.offset > end {
                return Err(self.gone());
            }
            if self.offset == end {
                match self.next_segment(&segment, limit) {
                    Some(next) => {
                        self.enter(next, SEGMENT_HEADER_LEN);
                        continue;
                    }
                    None => return Ok(false),
                }
            }
            let stop = if limit.segment() > segment.number {
                end
            } else if limit.segment() == segment.number {
                limit.offset().min(end)
            } else {
                self.offset
            };
            if self.offset >= stop || stop == OPEN_END {
                return Ok(false);
            }
            let scan = self.scan.as_mut().expect("a reader in a segment has a scan of it");
            let probe = scan.probe(self.offset, u64::from(stop))?;
            match probe {
                Probe::Record(header) if header.generation >= self.generation => {
                    self.position = WalPosition::new(segment.number, self.offset);
                    self.offset += framed_len(header.payload_len);
                    self.generation = header.generation;
                    if header.kind == RecordKind::Record {
                        self.found = true;
                        return Ok(true);
                    }
                }
                Probe::Bad { .. }
                    if planted(Bug::TornTailKeptAfterHole) && scan.next_intact(self.offset)?.is_some() =>
                {
                    self.offset = scan.next_intact(self.offset)?.unwrap_or(self.offset);
                }
                bad => {
                    scan.forget();
                    let at = u64::from(self.offset);
                    // Retired meanwhile, the file may have been written to again.
                    if segment.retired.load(SeqCst) || segment.end.load(SeqCst) < self.offset {
                        return Err(self.gone());
                    }
                    let what = match bad {
                        Probe::Bad { what, .. } => what,
                        Probe::Record(_) => "a record of an older generation",
                    };
                    return Err(Error::corruption(&segment.path, at, what));
                }
            }
        }
    }

    /// The record that the last [`advance`](Self::advance) stepped onto.
    ///
    /// # Panics
    /// If it returned anything but `Ok(true)`.
    pub fn record(&self) -> WalRecord<'_> {
        assert!(self.found, "the reader is on a record");
        let scan = self.scan.as_ref().expect("a reader on a record has a scan of its segment");
        WalRecord { position: self.position, payload: scan.payload() }
    }

    /// [`advance`](Self::advance) and [`record`](Self::record) in one.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend")]
    pub fn next(&mut self) -> Result<Option<WalRecord<'_>>> {
        Ok(if self.advance()? { Some(self.record()) } else { None })
    }

    /// [`advance`](Self::advance), or `waker` is woken when there may be more. Once the WAL is poisoned and all is read, the error:
    /// nothing will come any more.
    pub fn poll_advance(&mut self, waker: &Waker) -> Poll<Result<()>> {
        if self.advance()? {
            return Poll::Ready(Ok(()));
        }
        let Source::Live(wal, _) = &self.source else { return Poll::Pending };
        let wal = wal.clone();
        {
            let mut readers = wal.inner.readers.lock().unwrap_or_else(|poison| poison.into_inner());
            if !readers.iter().any(|other| other.will_wake(waker)) {
                readers.push(waker.clone());
            }
            wal.inner.readers_wait.store(true, SeqCst);
        }
        // Registered first, looked again afterwards: what was appended in between is seen here or has woken the waker.
        if self.advance()? {
            return Poll::Ready(Ok(()));
        }
        wal.inner.check_poisoned()?;
        Poll::Pending
    }

    /// Where the next record begins or will begin, or the end of the segment before it.
    pub fn next_position(&self) -> WalPosition {
        self.segment.as_ref().map_or(WalPosition::ZERO, |segment| WalPosition::new(segment.number, self.offset))
    }

    fn limit(&self) -> WalPosition {
        match &self.source {
            Source::Live(wal, ReadUpTo::Appended) => wal.last_position(),
            // A truncation may have moved the end below what was synced.
            Source::Live(wal, ReadUpTo::Synced) => wal.synced_position().min(wal.last_position()),
            Source::Detached(_) => WalPosition::new(u32::MAX, 0),
        }
    }

    fn next_segment(&mut self, segment: &Segment, limit: WalPosition) -> Option<Arc<Segment>> {
        match &mut self.source {
            Source::Detached(segments) => segments.pop_front(),
            Source::Live(wal, _) => {
                let chain = wal.inner.chain();
                let next = chain.iter().find(|next| next.number > segment.number)?;
                (next.number <= limit.segment()).then(|| Arc::clone(next))
            }
        }
    }

    fn enter(&mut self, segment: Arc<Segment>, offset: u32) {
        let place = Place { identity: self.identity, segment: segment.number };
        self.scan = Some(SegmentScan::new(Arc::clone(&segment.file), segment.path.clone(), place));
        self.segment = Some(segment);
        self.offset = offset;
        self.generation = 0;
    }

    fn gone(&self) -> Error {
        let (first, end) = match &self.source {
            Source::Live(wal, _) => (wal.first_position(), wal.last_position()),
            Source::Detached(_) => (WalPosition::ZERO, WalPosition::ZERO),
        };
        Error::PositionNotInWal { position: self.next_position(), first, end }
    }
}
