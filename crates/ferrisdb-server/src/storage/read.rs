//! What reads do, in memory or on disk: one state machine each.
//!
//! A [`Query`] is run on the caller's thread first, in [`Mode::Memory`]. Where memory does not have what it needs it fails with
//! [`EngineError::WouldRead`] and keeps what it has done; a job then runs it again in [`Mode::Disk`], and it goes on from there.

use std::sync::Arc;

use ferrisdb_core::{Bytes, KeyRange};
use ferrisdb_rpc::api::{GetKeyRequest, GetRangeRequest, GetRequest, Rows, SplitPointsRequest};
use ferrisdb_storage::{Engine, Error as EngineError, Iter, IterOptions, Result as EngineResult};

use super::{Shared, row_bytes, rows_of};

/// A selector's offset is counted on the caller's thread as far as this: some tens of microseconds.
const STEPS_IN_MEMORY_MAX: u32 = 500;

/// Where a query may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Only in memory: it runs on a thread that must not wait.
    Memory,
    /// On disk too.
    Disk,
}

/// A question about one version.
pub(super) trait Query: Send + 'static {
    type Output: Send + Unpin + 'static;

    /// Answers it, or goes on with that.
    fn run(&mut self, engine: &Engine, mode: Mode) -> EngineResult<Self::Output>;
}

/// A key's value.
pub(super) struct Get(pub(super) GetRequest);

impl Query for Get {
    type Output = Option<Bytes>;

    fn run(&mut self, engine: &Engine, mode: Mode) -> EngineResult<Option<Bytes>> {
        let value = match mode {
            Mode::Memory => engine.try_get(&self.0.key, Some(self.0.version)),
            Mode::Disk => engine.get_at(&self.0.key, self.0.version),
        };
        Ok(value?.map(|value| Bytes::copy_from_slice(&value)))
    }
}

/// An iterator that remembers whether a move of it was interrupted for want of a block in memory.
#[derive(Default)]
struct Cursor {
    iter: Option<Iter>,
    is_interrupted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move<'a> {
    First,
    Last,
    AtOrAfter(&'a [u8]),
    Before(&'a [u8]),
    Next,
    Previous,
}

impl Cursor {
    /// Makes the move, or finishes it if it was interrupted. The iterator is made with the first move.
    fn go(
        &mut self,
        engine: &Engine,
        mode: Mode,
        options: impl FnOnce() -> IterOptions,
        to: Move<'_>,
    ) -> EngineResult<&Iter> {
        let iter = match &mut self.iter {
            Some(iter) => iter,
            none => none.insert(match mode {
                Mode::Memory => engine.try_iter(options())?,
                Mode::Disk => engine.iter(options())?,
            }),
        };
        let moved = match (mode, to) {
            // The engine's rule: either of the blocking moves finishes an interrupted one, whichever that was.
            (Mode::Disk, _) if self.is_interrupted => iter.next(),
            (Mode::Memory, Move::First) => iter.try_seek_to_first(),
            (Mode::Memory, Move::Last) => iter.try_seek_to_last(),
            (Mode::Memory, Move::AtOrAfter(key)) => iter.try_seek(key),
            (Mode::Memory, Move::Before(key)) => iter.try_seek_before(key),
            (Mode::Memory, Move::Next) => iter.try_next(),
            (Mode::Memory, Move::Previous) => iter.try_prev(),
            (Mode::Disk, Move::First) => iter.seek_to_first(),
            (Mode::Disk, Move::Last) => iter.seek_to_last(),
            (Mode::Disk, Move::AtOrAfter(key)) => iter.seek(key),
            (Mode::Disk, Move::Before(key)) => iter.seek_before(key),
            (Mode::Disk, Move::Next) => iter.next(),
            (Mode::Disk, Move::Previous) => iter.prev(),
        };
        self.is_interrupted = matches!(moved, Err(EngineError::WouldRead));
        moved?;
        Ok(iter)
    }
}

/// Rows of a range.
pub(super) struct GetRange {
    request: GetRangeRequest,
    /// No further row once there are so many bytes.
    bytes_max: usize,
    cursor: Cursor,
    /// Keys and values of all rows, one behind another.
    buffer: Vec<u8>,
    lengths: Vec<(usize, usize)>,
    bytes: usize,
}

impl GetRange {
    pub(super) fn new(request: GetRangeRequest, range_bytes: usize) -> GetRange {
        let bytes_max = match request.target_bytes as usize {
            0 => range_bytes,
            target => target.min(range_bytes),
        };
        GetRange { request, bytes_max, cursor: Cursor::default(), buffer: Vec::new(), lengths: Vec::new(), bytes: 0 }
    }
}

impl Query for GetRange {
    type Output = Rows;

    fn run(&mut self, engine: &Engine, mode: Mode) -> EngineResult<Rows> {
        let GetRangeRequest { range, version, limit, reverse, .. } = &self.request;
        let options = || IterOptions { version: Some(*version), ..IterOptions::range(&range.begin, &range.end) };
        let more = loop {
            // A row is taken as soon as the cursor stands on it, so with no row it has not been placed yet.
            let to = match (self.lengths.is_empty(), reverse) {
                (true, false) => Move::First,
                (true, true) => Move::Last,
                (false, false) => Move::Next,
                (false, true) => Move::Previous,
            };
            let iter = self.cursor.go(engine, mode, options, to)?;
            if !iter.valid() {
                break false;
            }
            let (key, value) = (iter.key(), iter.value());
            self.buffer.extend_from_slice(key);
            self.buffer.extend_from_slice(value);
            self.lengths.push((key.len(), value.len()));
            self.bytes += row_bytes(key, value);
            // Whether there is more is not looked up: a reader that stops here must not pay for it, or conflict with it.
            if self.bytes >= self.bytes_max || (*limit > 0 && self.lengths.len() >= *limit as usize) {
                break true;
            }
        };
        let rows = rows_of(std::mem::take(&mut self.buffer), &self.lengths);
        Ok(Rows { rows, more })
    }
}

/// The key at a place.
pub(super) struct GetKey {
    /// Without `or_equal`.
    key: Bytes,
    end: Bytes,
    version: ferrisdb_core::Version,
    is_forward: bool,
    /// Keys still to go, from the one that the seek finds.
    steps: u32,
    is_placed: bool,
    cursor: Cursor,
}

impl GetKey {
    pub(super) fn new(request: GetKeyRequest) -> GetKey {
        let GetKeyRequest { selector, end, version } = request;
        let selector = selector.without_or_equal();
        let is_forward = selector.offset > 0;
        let steps = if is_forward { selector.offset.unsigned_abs() - 1 } else { selector.offset.unsigned_abs() };
        GetKey { key: selector.key, end, version, is_forward, steps, is_placed: false, cursor: Cursor::default() }
    }
}

impl Query for GetKey {
    type Output = Bytes;

    fn run(&mut self, engine: &Engine, mode: Mode) -> EngineResult<Bytes> {
        let options = || IterOptions { lower: None, upper: Some(self.end.to_vec()), version: Some(self.version) };
        let mut counted = 0;
        loop {
            let to = match (self.is_placed, self.is_forward) {
                // At the end of what may be read there is nothing at or after, and everything is before.
                (false, true) => Move::AtOrAfter(self.key.as_ref().min(self.end.as_ref())),
                (false, false) => Move::Before(self.key.as_ref().min(self.end.as_ref())),
                (true, true) => Move::Next,
                (true, false) => Move::Previous,
            };
            let iter = self.cursor.go(engine, mode, options, to)?;
            self.is_placed = true;
            if !iter.valid() {
                return Ok(if self.is_forward { self.end.clone() } else { Bytes::new() });
            }
            if self.steps == 0 {
                return Ok(Bytes::copy_from_slice(iter.key()));
            }
            self.steps -= 1;
            counted += 1;
            if counted >= STEPS_IN_MEMORY_MAX && mode == Mode::Memory {
                return Err(EngineError::WouldRead);
            }
        }
    }
}

/// About how many bytes a range takes.
pub(super) struct EstimatedSize {
    pub(super) range: KeyRange,
    pub(super) shared: Arc<Shared>,
}

impl Query for EstimatedSize {
    type Output = u64;

    fn run(&mut self, engine: &Engine, _mode: Mode) -> EngineResult<u64> {
        if self.range.is_empty() {
            return Ok(0);
        }
        let on_disk = engine.approximate_disk_bytes(Some(&self.range.begin), Some(&self.range.end))?;
        Ok(on_disk + self.shared.sample().bytes(&self.range))
    }
}

/// Where to cut a range.
pub(super) struct SplitPoints(pub(super) SplitPointsRequest);

impl Query for SplitPoints {
    type Output = Vec<Bytes>;

    fn run(&mut self, engine: &Engine, _mode: Mode) -> EngineResult<Vec<Bytes>> {
        let SplitPointsRequest { range, part_bytes, limit } = &self.0;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let points = engine.split_points(Some(&range.begin), Some(&range.end), (*part_bytes).max(1))?;
        Ok(thin(points, *limit as usize).into_iter().map(Bytes::from).collect())
    }
}

/// As many of the points as make `parts` parts (0: all), evenly chosen.
fn thin(points: Vec<Vec<u8>>, parts: usize) -> Vec<Vec<u8>> {
    let all = points.len() + 1;
    if parts == 0 || all <= parts {
        return points;
    }
    // The i-th of the chosen points ends the part that is i/parts of all.
    let chosen: std::collections::BTreeSet<usize> = (1..parts).map(|part| part * all / parts - 1).collect();
    points.into_iter().enumerate().filter(|(index, _)| chosen.contains(index)).map(|(_, point)| point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nine points make ten parts; fewer are wanted, and they are spread.
    #[test]
    fn split_points_are_thinned_evenly() {
        let points: Vec<Vec<u8>> = (1..10u8).map(|point| vec![point]).collect();
        let thinned = |parts| thin(points.clone(), parts).concat();
        assert_eq!(thinned(0), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(thinned(10), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(thinned(5), [2, 4, 6, 8]);
        assert_eq!(thinned(3), [3, 6]);
        assert_eq!(thinned(1), [0u8; 0]);
    }
}
