//! [`Cover`]: what range tombstones of one source say about a key, remembered between neighbouring keys.
//!
//! A cursor asks for key after key in order, and the answer is the same over a whole fragment (or gap between fragments). The
//! cover keeps the last answer with the span of keys for which it holds, so that most questions cost two key comparisons, and none
//! at all in a source without range tombstones.

use std::sync::Arc;

use ferrisdb_core::Version;

use crate::tombstone::FragmentList;

/// Something that knows range tombstones: a list, or the tables of a level.
pub(crate) trait RangeCover: Send + Sync {
    /// The fragment list in charge of `key`, and the bounds (start inclusive, end exclusive; `None` = none) within which it is.
    fn list_for(&self, key: &[u8]) -> (Option<&FragmentList>, Option<&[u8]>, Option<&[u8]>);
}

impl RangeCover for FragmentList {
    fn list_for(&self, _key: &[u8]) -> (Option<&FragmentList>, Option<&[u8]>, Option<&[u8]>) {
        (Some(self), None, None)
    }
}

/// The keys over which an answer holds.
#[derive(Default, Debug, PartialEq, Eq, Clone)]
pub(crate) struct Span {
    /// Inclusive; `None` = from the beginning.
    pub(crate) start: Option<Vec<u8>>,
    /// Exclusive; `None` = to the end.
    pub(crate) end: Option<Vec<u8>>,
}

impl Span {
    fn contains(&self, key: &[u8]) -> bool {
        self.start.as_deref().is_none_or(|start| start <= key) && self.end.as_deref().is_none_or(|end| key < end)
    }
}

/// The range tombstones of one source, as seen by a reader at one version.
pub(crate) struct Cover {
    tombstones: Option<Arc<dyn RangeCover>>,
    at: Version,
    known: bool,
    span: Span,
    newest: Option<Version>,
}

impl Cover {
    /// `None` for a source without range tombstones.
    pub(crate) fn new(tombstones: Option<Arc<dyn RangeCover>>, at: Version) -> Cover {
        Cover { tombstones, at, known: false, span: Span::default(), newest: None }
    }

    /// False if no key is ever covered.
    #[inline]
    pub(crate) fn exists(&self) -> bool {
        self.tombstones.is_some()
    }

    /// The newest tombstone over `key` that the reader sees.
    #[inline]
    pub(crate) fn newest(&mut self, key: &[u8]) -> Option<Version> {
        let tombstones = self.tombstones.as_deref()?;
        if !(self.known && self.span.contains(key)) {
            (self.newest, self.span) = look_up(tombstones, key, self.at);
            self.known = true;
        }
        self.newest
    }

    /// The span of the last answer.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }
}

fn look_up(tombstones: &dyn RangeCover, key: &[u8], at: Version) -> (Option<Version>, Span) {
    let (list, mut start, mut end) = tombstones.list_for(key);
    let mut newest = None;
    if let Some(list) = list {
        let index = list.first_ending_after(key);
        let fragments = list.fragments();
        let later = |bound: Option<&'_ [u8]>, other: &'_ [u8]| bound.is_none_or(|bound| bound < other);
        let earlier = |bound: Option<&'_ [u8]>, other: &'_ [u8]| bound.is_none_or(|bound| bound > other);
        match fragments.get(index) {
            Some(fragment) if *fragment.start <= *key => {
                newest = fragment.newest_at(at);
                if later(start, &fragment.start) {
                    start = Some(&fragment.start);
                }
                if earlier(end, &fragment.end) {
                    end = Some(&fragment.end);
                }
            }
            next => {
                if let Some(next) = next
                    && earlier(end, &next.start)
                {
                    end = Some(&next.start);
                }
                if let Some(previous) = index.checked_sub(1).map(|index| &fragments[index])
                    && later(start, &previous.end)
                {
                    start = Some(&previous.end);
                }
            }
        }
    }
    (newest, Span { start: start.map(<[u8]>::to_vec), end: end.map(<[u8]>::to_vec) })
}
