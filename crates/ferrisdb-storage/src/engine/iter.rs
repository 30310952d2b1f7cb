//! [`Iter`]: an ordered cursor over what a reader at one version sees.

use std::sync::Arc;

use ferrisdb_core::Version;

use super::Core;
use super::blobs::Blobs;
use super::sources::{Source, sources_of};
use crate::error::{Error, Result};
use crate::iter::visible::VisibleIterator;
use crate::key::ValueKind;
use crate::table::ReadMode;

/// Which keys an iterator shows, and as of when.
#[derive(Debug, Clone, Default)]
pub struct IterOptions {
    /// The first key, inclusive; `None` starts at the beginning.
    pub lower: Option<Vec<u8>>,
    /// The end, exclusive; `None` goes to the end.
    pub upper: Option<Vec<u8>>,
    /// The version to read at; `None` reads at the visible version.
    pub version: Option<Version>,
}

impl IterOptions {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> IterOptions {
        // The end of a prefix is the prefix with its last byte that is not 0xFF increased; all 0xFF has no end.
        let upper = prefix.iter().rposition(|&byte| byte != 0xFF).map(|last| {
            let mut upper = prefix[..=last].to_vec();
            upper[last] += 1;
            upper
        });
        IterOptions { lower: Some(prefix.to_vec()), upper, version: None }
    }

    /// Keys in `[lower, upper)`.
    pub fn range(lower: &[u8], upper: &[u8]) -> IterOptions {
        IterOptions { lower: Some(lower.to_vec()), upper: Some(upper.to_vec()), version: None }
    }
}

/// A cursor over keys in order, as seen at one version, whatever is written meanwhile.
///
/// A new iterator is not valid: place it with a seek. It keeps the memtables and tables that it reads from being dropped, so don't keep one
/// for long without need; to read an old version for long, pin it and open iterators as needed.
///
/// A value in a blob file is read when the iterator arrives at its key.
///
/// # Non-blocking use
/// The `try_` forms return [`Error::WouldRead`] where memory does not have what they need, and leave the iterator not valid. Call the
/// blocking form of `next` or `prev` (either) on a thread that may wait: it finishes the interrupted move. Then go on with `try_`.
///
/// # Errors
/// Every move may fail with [`Error::Io`] or [`Error::Corruption`]; it may be repeated.
pub struct Iter {
    visible: VisibleIterator<Source>,
    mode: ReadMode,
    version: Version,
    core: Arc<Core>,
    /// The blob files of its view.
    blobs: Arc<Blobs>,
    /// The current value, if it lies in a blob file.
    blob: BlobValue,
}

/// Where the current value is.
enum BlobValue {
    /// With the key.
    None,
    /// Here: it was read from a blob file.
    Here(Arc<[u8]>),
    /// In a blob file that could not be read yet: the move that leads here is interrupted.
    Missing,
}

impl Iter {
    pub(super) fn new(core: &Arc<Core>, options: IterOptions, mode: ReadMode) -> Result<Iter> {
        if let (Some(lower), Some(upper)) = (&options.lower, &options.upper)
            && lower > upper
        {
            return Err(Error::InvertedRange { start: lower.clone(), end: upper.clone() });
        }
        // The view outlives the guard through what its sources hold: memtables, tables and levels.
        let view = core.view.read();
        let version = core.read_version(options.version)?;
        let sources = sources_of(&view, version, mode)?;
        let blobs = Arc::clone(&view.blobs);
        drop(view);
        let bound = |key: Option<Vec<u8>>| key.map(Vec::into_boxed_slice);
        let visible = VisibleIterator::new(sources, version, bound(options.lower), bound(options.upper));
        Ok(Iter { visible, mode, version, core: Arc::clone(core), blobs, blob: BlobValue::None })
    }

    /// The version that it reads at.
    pub fn version(&self) -> Version {
        self.version
    }

    /// True while it is on a key.
    #[inline]
    pub fn valid(&self) -> bool {
        self.visible.valid() && !matches!(self.blob, BlobValue::Missing)
    }

    /// The current key.
    ///
    /// # Panics
    /// If it is not [`valid`](Iter::valid).
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.visible.key()
    }

    /// The current value.
    ///
    /// # Panics
    /// If it is not [`valid`](Iter::valid).
    #[inline]
    pub fn value(&self) -> &[u8] {
        match &self.blob {
            BlobValue::Here(value) => value,
            _ => self.visible.value(),
        }
    }

    /// To the first key.
    pub fn seek_to_first(&mut self) -> Result<()> {
        self.go(ReadMode::Blocking, VisibleIterator::seek_to_first)
    }

    /// To the last key.
    pub fn seek_to_last(&mut self) -> Result<()> {
        self.go(ReadMode::Blocking, VisibleIterator::seek_to_last)
    }

    /// To the first key at or after `key`.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.go(ReadMode::Blocking, |visible| visible.seek(key))
    }

    /// To the last key before `key`.
    pub fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.go(ReadMode::Blocking, |visible| visible.seek_before(key))
    }

    /// To the next key; or finishes an interrupted move.
    ///
    /// # Panics
    /// If it is not valid and no move was interrupted.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "a step can fail and lends what it finds, which std's cannot")]
    pub fn next(&mut self) -> Result<()> {
        self.step(ReadMode::Blocking, VisibleIterator::next)
    }

    /// To the key before; or finishes an interrupted move.
    ///
    /// # Panics
    /// If it is not valid and no move was interrupted.
    pub fn prev(&mut self) -> Result<()> {
        self.step(ReadMode::Blocking, VisibleIterator::prev)
    }

    /// [`Iter::seek_to_first`] without waiting for the disk.
    pub fn try_seek_to_first(&mut self) -> Result<()> {
        self.go(ReadMode::MemoryOnly, VisibleIterator::seek_to_first)
    }

    /// [`Iter::seek_to_last`] without waiting for the disk.
    pub fn try_seek_to_last(&mut self) -> Result<()> {
        self.go(ReadMode::MemoryOnly, VisibleIterator::seek_to_last)
    }

    /// [`Iter::seek`] without waiting for the disk.
    pub fn try_seek(&mut self, key: &[u8]) -> Result<()> {
        self.go(ReadMode::MemoryOnly, |visible| visible.seek(key))
    }

    /// [`Iter::seek_before`] without waiting for the disk.
    pub fn try_seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.go(ReadMode::MemoryOnly, |visible| visible.seek_before(key))
    }

    /// [`Iter::next`] without waiting for the disk.
    #[inline]
    pub fn try_next(&mut self) -> Result<()> {
        self.step(ReadMode::MemoryOnly, VisibleIterator::next)
    }

    /// [`Iter::prev`] without waiting for the disk.
    pub fn try_prev(&mut self) -> Result<()> {
        self.step(ReadMode::MemoryOnly, VisibleIterator::prev)
    }

    /// As [`Iter::go`], for a move from where it is: one that was interrupted at a blob file has arrived already.
    #[inline]
    fn step(&mut self, mode: ReadMode, go: impl FnOnce(&mut VisibleIterator<Source>) -> Result<()>) -> Result<()> {
        if matches!(self.blob, BlobValue::Missing) {
            return self.fetch(mode);
        }
        self.go(mode, go)
    }

    /// Reads the current value from its blob file.
    #[cold]
    fn fetch(&mut self, mode: ReadMode) -> Result<()> {
        self.blob = BlobValue::Missing;
        self.blob = BlobValue::Here(self.blobs.read(self.visible.value(), mode)?);
        Ok(())
    }

    #[inline]
    fn go(&mut self, mode: ReadMode, go: impl FnOnce(&mut VisibleIterator<Source>) -> Result<()>) -> Result<()> {
        if self.mode != mode {
            self.mode = mode;
            self.visible.sources_mut().for_each(|source| source.set_mode(mode));
        }
        self.blob = BlobValue::None;
        let moved = go(&mut self.visible);
        let skipped = self.visible.take_skipped();
        if skipped > 0 {
            self.core.note_skipped(&self.visible, skipped);
        }
        if moved.is_ok() && self.visible.valid() && self.visible.kind() == ValueKind::BlobPointer {
            return self.fetch(mode);
        }
        moved
    }
}
