//! [`VisibleIterator`]: the user keys and values that a reader at one version sees.
//!
//! Per user key the newest entry at or below the version counts; it is shown if it is a value and no visible range tombstone is
//! newer than it. Everything else is skipped: newer versions, older ones, tombstones, and what range tombstones hide.
//!
//! # Skipping
//! Sources are stacked newest first, and wherever two overlap, all of the newer one's entries are newer (the invariant of
//! `Levels`). So when an entry of one source lies under a range tombstone of a *newer* source, everything in the
//! tombstone's fragment is hidden in this source and all older ones: they jump to the fragment's end. Clearing a million keys costs a scan one seek
//! per source, whatever the tombstone hides.
//!
//! # Interrupted moves
//! A move that fails ([`WouldRead`](crate::Error::WouldRead), or the disk) leaves the iterator not valid but knowing where it was going. Calling any
//! moving method again finishes that move; what was skipped already stays skipped.

use ferrisdb_core::Version;

use super::PointIterator;
use super::cover::Cover;
use super::merging::MergingIterator;
use crate::error::Result;
use crate::key::{InternalKey, Trailer, ValueKind};

/// Newer-than-visible or older-than-shown versions of one key that are passed one by one before seeking past them.
const STEPS_BEFORE_SEEK: u32 = 8;

/// The greatest trailer: the place before every entry of a key.
const FIRST_OF_KEY: Trailer = Trailer(u64::MAX);
/// The least trailer: the place after every entry of a key but one of version zero and kind zero, which is stepped over.
const LAST_OF_KEY: Trailer = Trailer(0);

pub(crate) struct VisibleIterator<I> {
    merging: MergingIterator<I>,
    covers: Vec<Cover>,
    any_cover: bool,
    at: Version,
    /// Inclusive.
    lower: Option<Box<[u8]>>,
    /// Exclusive.
    upper: Option<Box<[u8]>>,
    state: State,
    /// Going forward: the last user key that was shown or hidden, to be skipped in all its versions. Going backward: the current key.
    key: Vec<u8>,
    /// Backward only: the current value.
    value: Vec<u8>,
    kind: ValueKind,
    /// Where an interrupted seek was going.
    target: Vec<u8>,
    /// Backward only: the key whose versions are being looked at.
    candidate: Vec<u8>,
    /// Tombstones and hidden entries passed since they were last taken, and the key of the first of them.
    skipped: u64,
    first_skipped: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// On no entry, and not going anywhere.
    Unplaced,
    /// On the merging iterator's current entry.
    Forward,
    /// On `key` and `value`; the merging iterator stands before every entry of that key.
    Backward,
    /// A move failed.
    Interrupted(Going),
}

/// Where a move was going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    ToFirst,
    ToLast,
    /// To the first key at or after `target`.
    ToTarget,
    /// To the last key before `target`.
    BeforeTarget,
    /// To the first key after `key`.
    AfterKey,
    /// To the last key before `key`.
    BeforeKey,
}

impl<I: PointIterator> VisibleIterator<I> {
    /// Over sources and their covers, newest first, as seen at `at`, within `[lower, upper)`.
    pub(crate) fn new(
        sources: Vec<(I, Cover)>,
        at: Version,
        lower: Option<Box<[u8]>>,
        upper: Option<Box<[u8]>>,
    ) -> VisibleIterator<I> {
        let (sources, covers): (Vec<I>, Vec<Cover>) = sources.into_iter().unzip();
        let any_cover = covers.iter().any(Cover::exists);
        VisibleIterator {
            merging: MergingIterator::new(sources),
            covers,
            any_cover,
            at,
            lower,
            upper,
            state: State::Unplaced,
            key: Vec::new(),
            value: Vec::new(),
            kind: ValueKind::Value,
            target: Vec::new(),
            candidate: Vec::new(),
            skipped: 0,
            first_skipped: Vec::new(),
        }
    }

    pub(crate) fn sources_mut(&mut self) -> impl Iterator<Item = &mut I> {
        self.merging.sources_mut()
    }

    #[inline]
    pub(crate) fn valid(&self) -> bool {
        matches!(self.state, State::Forward | State::Backward)
    }

    /// The current user key. Only while valid.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        match self.state {
            State::Forward => self.merging.key().user_key,
            State::Backward => &self.key,
            State::Unplaced | State::Interrupted(_) => panic!("key() of an iterator that is not valid"),
        }
    }

    /// The current value as stored. Only while valid.
    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        match self.state {
            State::Forward => self.merging.value(),
            State::Backward => &self.value,
            State::Unplaced | State::Interrupted(_) => panic!("value() of an iterator that is not valid"),
        }
    }

    /// Value or blob pointer. Only while valid.
    #[inline]
    pub(crate) fn kind(&self) -> ValueKind {
        self.kind
    }

    /// How many entries were passed because they were tombstones or hidden, since the last call.
    pub(crate) fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    /// The key of the first entry that [`VisibleIterator::take_skipped`] counted last.
    pub(crate) fn first_skipped(&self) -> &[u8] {
        &self.first_skipped
    }

    /// The key of the last entry that was passed, or one near it.
    pub(crate) fn last_skipped(&self) -> &[u8] {
        &self.key
    }

    /// Counts `self.key` as passed over.
    #[inline]
    fn note_skipped(&mut self) {
        if self.skipped == 0 {
            self.first_skipped.clone_from(&self.key);
        }
        self.skipped += 1;
    }

    pub(crate) fn seek_to_first(&mut self) -> Result<()> {
        self.go(Going::ToFirst)
    }

    pub(crate) fn seek_to_last(&mut self) -> Result<()> {
        self.go(Going::ToLast)
    }

    /// To the first key at or after `target`.
    pub(crate) fn seek(&mut self, target: &[u8]) -> Result<()> {
        self.set_target(target);
        self.go(Going::ToTarget)
    }

    /// To the last key before `target`.
    pub(crate) fn seek_before(&mut self, target: &[u8]) -> Result<()> {
        self.set_target(target);
        self.go(Going::BeforeTarget)
    }

    /// To the next key. While valid, or to finish an interrupted move.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<()> {
        match self.state {
            State::Forward => {
                self.remember_current_key();
                let moved = self.merging.next().and_then(|()| self.find_forward(true));
                self.note(moved, Going::AfterKey)
            }
            State::Backward => self.go(Going::AfterKey),
            State::Interrupted(going) => self.go(going),
            State::Unplaced => panic!("next() of an iterator that is not valid"),
        }
    }

    /// To the key before. While valid, or to finish an interrupted move.
    pub(crate) fn prev(&mut self) -> Result<()> {
        match self.state {
            State::Forward => {
                self.remember_current_key();
                self.go(Going::BeforeKey)
            }
            State::Backward => {
                let moved = self.find_backward();
                self.note(moved, Going::BeforeKey)
            }
            State::Interrupted(going) => self.go(going),
            State::Unplaced => panic!("prev() of an iterator that is not valid"),
        }
    }

    fn set_target(&mut self, target: &[u8]) {
        self.target.clear();
        self.target.extend_from_slice(target);
    }

    #[inline]
    fn remember_current_key(&mut self) {
        self.key.clear();
        self.key.extend_from_slice(self.merging.key().user_key);
    }

    fn go(&mut self, going: Going) -> Result<()> {
        self.state = State::Unplaced;
        let moved = match going {
            Going::ToFirst | Going::ToTarget => {
                let from = match (going, self.lower.as_deref()) {
                    (Going::ToTarget, Some(lower)) => Some(lower.max(&self.target)),
                    (Going::ToTarget, None) => Some(&*self.target),
                    (_, lower) => lower,
                };
                match from {
                    Some(from) => self.merging.seek(InternalKey::seek(from, self.at)),
                    None => self.merging.seek_to_first(),
                }
                .and_then(|()| self.find_forward(false))
            }
            Going::AfterKey => {
                self.merging.seek(InternalKey::new(&self.key, LAST_OF_KEY)).and_then(|()| self.find_forward(true))
            }
            Going::ToLast | Going::BeforeTarget | Going::BeforeKey => {
                let limit = match going {
                    Going::BeforeTarget => Some(&*self.target),
                    Going::BeforeKey => Some(&*self.key),
                    _ => None,
                };
                let limit = match (limit, self.upper.as_deref()) {
                    (Some(limit), Some(upper)) => Some(limit.min(upper)),
                    (limit, upper) => limit.or(upper),
                };
                match limit {
                    Some(limit) => self.merging.seek_before(InternalKey::new(limit, FIRST_OF_KEY)),
                    None => self.merging.seek_to_last(),
                }
                .and_then(|()| self.find_backward())
            }
        };
        self.note(moved, going)
    }

    /// Keeps where an interrupted move was going. `find_forward` and `find_backward` have noted progress themselves.
    #[inline]
    fn note(&mut self, moved: Result<()>, going: Going) -> Result<()> {
        if moved.is_err() && !matches!(self.state, State::Interrupted(_)) {
            self.state = State::Interrupted(going);
        }
        moved
    }

    /// From the merging iterator's place on, the first entry to show. With `skip`, entries of `self.key` are passed over.
    fn find_forward(&mut self, mut skip: bool) -> Result<()> {
        self.state = State::Unplaced;
        let mut steps = 0;
        // Where to go on after an interruption; `None` leaves it to the caller, who knows where it started.
        let mut resume = skip.then_some(Going::AfterKey);
        let result = loop {
            let Some(rank) = self.merging.rank() else { break Ok(()) };
            let entry = self.merging.key();
            if self.upper.as_deref().is_some_and(|upper| entry.user_key >= upper) {
                break Ok(());
            }
            let moved = if skip && entry.user_key == self.key {
                steps += 1;
                if steps > STEPS_BEFORE_SEEK {
                    steps = 0;
                    self.merging.seek(InternalKey::new(&self.key, LAST_OF_KEY))
                } else {
                    self.merging.next()
                }
            } else if entry.trailer.version() > self.at {
                steps += 1;
                self.target.clear();
                self.target.extend_from_slice(entry.user_key);
                resume = Some(Going::ToTarget);
                if steps > STEPS_BEFORE_SEEK {
                    steps = 0;
                    self.merging.seek(InternalKey::seek(&self.target, self.at))
                } else {
                    self.merging.next()
                }
            } else {
                steps = 0;
                let trailer = entry.trailer;
                match if self.any_cover { self.covering(rank, trailer.version()) } else { None } {
                    Some(by) => {
                        self.remember_current_key();
                        self.note_skipped();
                        skip = true;
                        resume = Some(Going::AfterKey);
                        let merging = &mut self.merging;
                        match (by < rank, &self.covers[by].span().end) {
                            // An entry of a newer source may still be at this very key, but then it was considered before this one.
                            (true, Some(end)) => merging.skip_older_to(by, InternalKey::new(end, FIRST_OF_KEY)),
                            _ => merging.next(),
                        }
                    }
                    None => match trailer.kind() {
                        Some(kind @ (ValueKind::Value | ValueKind::BlobPointer)) => {
                            self.kind = kind;
                            self.state = State::Forward;
                            return Ok(());
                        }
                        _ => {
                            self.remember_current_key();
                            self.note_skipped();
                            skip = true;
                            resume = Some(Going::AfterKey);
                            self.merging.next()
                        }
                    },
                }
            };
            if moved.is_err() {
                break moved;
            }
        };
        if let (Err(_), Some(going)) = (&result, resume) {
            self.state = State::Interrupted(going);
        }
        result
    }

    /// From the merging iterator's place backward, the first key to show.
    fn find_backward(&mut self) -> Result<()> {
        self.state = State::Unplaced;
        loop {
            let Some(mut rank) = self.merging.rank() else { return Ok(()) };
            let entry = self.merging.key();
            if self.lower.as_deref().is_some_and(|lower| entry.user_key < lower) {
                return Ok(());
            }
            // Going backward a key's versions come oldest first: the last one at or below `at` counts. The key is not noted
            // as passed before all its versions were seen, so an interruption starts it again.
            self.candidate.clear();
            self.candidate.extend_from_slice(entry.user_key);
            let mut found: Option<(Version, Option<ValueKind>)> = None;
            let mut result = Ok(());
            while let Some(current) = self.merging.rank() {
                let entry = self.merging.key();
                if entry.user_key != self.candidate {
                    break;
                }
                if entry.trailer.version() <= self.at {
                    found = Some((entry.trailer.version(), entry.trailer.kind()));
                    rank = current;
                    self.value.clear();
                    self.value.extend_from_slice(self.merging.value());
                }
                result = self.merging.prev();
                if result.is_err() {
                    break;
                }
            }
            if let Err(error) = result {
                self.target.clear();
                self.target.extend_from_slice(&self.candidate);
                // Keys before target + '\0' are those up to and including the key itself.
                self.target.push(0);
                self.state = State::Interrupted(Going::BeforeTarget);
                return Err(error);
            }
            std::mem::swap(&mut self.key, &mut self.candidate);
            let Some((version, kind)) = found else { continue };
            match if self.any_cover { self.covering_key(rank, version) } else { None } {
                Some(by) => {
                    self.note_skipped();
                    if let (true, Some(start)) = (by < rank, &self.covers[by].span().start) {
                        let target = InternalKey::new(start, FIRST_OF_KEY);
                        if let Err(error) = self.merging.skip_older_before(by, target) {
                            self.state = State::Interrupted(Going::BeforeKey);
                            return Err(error);
                        }
                    }
                }
                None => match kind {
                    Some(kind @ (ValueKind::Value | ValueKind::BlobPointer)) => {
                        self.kind = kind;
                        self.state = State::Backward;
                        return Ok(());
                    }
                    _ => self.note_skipped(),
                },
            }
        }
    }

    /// The rank of the newest source whose range tombstone hides the merging iterator's current entry.
    #[inline]
    fn covering(&mut self, rank: usize, version: Version) -> Option<usize> {
        let key = self.merging.key().user_key;
        (0..=rank).find(|&by| self.covers[by].newest(key).is_some_and(|tombstone| tombstone > version))
    }

    /// As [`VisibleIterator::covering`], for `self.key`.
    fn covering_key(&mut self, rank: usize, version: Version) -> Option<usize> {
        let key = &self.key;
        (0..=rank).find(|&by| self.covers[by].newest(key).is_some_and(|tombstone| tombstone > version))
    }
}

#[cfg(test)]
#[path = "visible_tests.rs"]
mod tests;
