//! [`Source`]: the cursors that the engine merges, and the tables of a level as one of them.

use std::sync::Arc;

use ferrisdb_core::Version;

use super::view::{Table, View};
use crate::error::{Error, Result};
use crate::iter::PointIterator;
use crate::iter::cover::{Cover, RangeCover, Span, look_up_within};
use crate::key::InternalKey;
use crate::levels::{LEVELS, Level};
use crate::memtable::OwnedMemtableIterator;
use crate::planted::{Bug, planted};
use crate::table::{ReadMode, TableIterator, TableReader};
use crate::tombstone::FragmentList;

/// One sorted source of point entries. An enum, because a call through a table costs more than a predicted branch.
pub(crate) enum Source {
    Memtable(OwnedMemtableIterator),
    Table(TableIterator),
    Level(LevelIterator),
}

impl Source {
    pub(crate) fn set_mode(&mut self, mode: ReadMode) {
        match self {
            Source::Memtable(_) => {}
            Source::Table(table) => table.set_mode(mode),
            Source::Level(level) => level.set_mode(mode),
        }
    }
}

macro_rules! each {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            Source::Memtable($inner) => $call,
            Source::Table($inner) => $call,
            Source::Level($inner) => $call,
        }
    };
}

impl PointIterator for Source {
    #[inline]
    fn valid(&self) -> bool {
        each!(self, inner => inner.valid())
    }
    fn seek_to_first(&mut self) -> Result<()> {
        each!(self, inner => inner.seek_to_first())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        each!(self, inner => inner.seek_to_last())
    }
    #[inline]
    fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        each!(self, inner => inner.seek(target))
    }
    fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        each!(self, inner => inner.seek_before(target))
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        each!(self, inner => inner.next())
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        each!(self, inner => inner.prev())
    }
    #[inline]
    fn key(&self) -> InternalKey<'_> {
        each!(self, inner => inner.key())
    }
    #[inline]
    fn value(&self) -> &[u8] {
        each!(self, inner => inner.value())
    }
}

/// Everything in a view, newest first, for a reader at `at`. Opens the tables that have range tombstones.
pub(crate) fn sources_of(view: &View, at: Version, mode: ReadMode) -> Result<Vec<(Source, Cover)>> {
    let mut sources = Vec::with_capacity(view.memtables.len() + LEVELS);
    for memtable in &view.memtables {
        if memtable.entries.is_empty() {
            continue;
        }
        let runs = memtable.entries.range_tombstone_runs();
        let cover = (!runs.is_empty()).then(|| Arc::new(runs) as Arc<dyn RangeCover>);
        sources.push((Source::Memtable(memtable.entries.iter_owned()), Cover::new(cover, at)));
    }
    for table in view.levels.level(0).tables() {
        let reader = reader_of(table, mode)?;
        let cover = (!reader.range_tombstones().is_empty())
            .then(|| Arc::new(TableCover(Arc::clone(reader.range_tombstones()))) as Arc<dyn RangeCover>);
        sources.push((Source::Table(TableIterator::new(reader, mode)), Cover::new(cover, at)));
    }
    for level in 1..LEVELS {
        let tables = view.levels.level_handle(level);
        if tables.tables().is_empty() {
            continue;
        }
        let cover = if view.range_tombstones[level] && !planted(Bug::DeeperTombstoneIgnored) {
            // The cover answers without I/O, so its range tombstones are read here.
            for table in tables.tables().iter().filter(|table| table.meta.range_tombstones > 0) {
                table.range_tombstones(mode)?;
            }
            Some(Arc::new(LevelCover(Arc::clone(tables))) as Arc<dyn RangeCover>)
        } else {
            None
        };
        sources.push((Source::Level(LevelIterator::new(Arc::clone(tables), mode)), Cover::new(cover, at)));
    }
    Ok(sources)
}

/// A table's reader; with [`ReadMode::MemoryOnly`] only if it is open.
pub(crate) fn reader_of(table: &Table, mode: ReadMode) -> Result<Arc<TableReader>> {
    match mode {
        ReadMode::MemoryOnly => table.open_reader().ok_or(Error::WouldRead),
        _ => table.reader(),
    }
}

/// The range tombstones of one table.
struct TableCover(Arc<FragmentList>);

impl RangeCover for TableCover {
    fn look_up(&self, key: &[u8], at: Version) -> (Option<Version>, Span) {
        self.0.look_up(key, at)
    }
}

/// The range tombstones of all tables of a sorted level. Those that have any were open.
struct LevelCover(Arc<Level<Table>>);

impl RangeCover for LevelCover {
    fn look_up(&self, key: &[u8], at: Version) -> (Option<Version>, Span) {
        let tables = self.0.tables();
        let index = self.0.first_reaching(key);
        let table = tables.get(index);
        if let Some(table) = table.filter(|table| *table.meta.smallest <= *key) {
            // An inclusive end is a point entry's key, over which this table has no tombstone: leaving it out of the span is right.
            let (start, end) = (&*table.meta.smallest, &*table.meta.largest);
            return match table.known_range_tombstones() {
                Some(list) => look_up_within(list, key, at, Some(start), Some(end)),
                None => (None, Span { start: Some(start.to_vec()), end: Some(end.to_vec()) }),
            };
        }
        // In a gap: from the end of the table before (which, if inclusive, is that table's, but never asked again going on).
        let start = index.checked_sub(1).map(|index| tables[index].meta.largest.to_vec());
        let end = table.map(|table| table.meta.smallest.to_vec());
        (None, Span { start, end })
    }
}

/// The tables of a sorted level, one after another.
pub(crate) struct LevelIterator {
    level: Arc<Level<Table>>,
    index: usize,
    current: Option<TableIterator>,
    mode: ReadMode,
}

impl LevelIterator {
    pub(crate) fn new(level: Arc<Level<Table>>, mode: ReadMode) -> LevelIterator {
        LevelIterator { level, index: usize::MAX, current: None, mode }
    }

    fn set_mode(&mut self, mode: ReadMode) {
        self.mode = mode;
        if let Some(current) = &mut self.current {
            current.set_mode(mode);
        }
    }

    /// Makes table `index` the current one; false past the ends.
    fn open(&mut self, index: usize) -> Result<bool> {
        if self.index == index && self.current.is_some() {
            return Ok(true);
        }
        self.current = None;
        let Some(table) = self.level.tables().get(index) else { return Ok(false) };
        let reader = reader_of(table, self.mode)?;
        self.current = Some(TableIterator::new(reader, self.mode));
        self.index = index;
        Ok(true)
    }

    /// Runs a move on the current table; an error leaves nothing placed.
    #[inline]
    fn run(&mut self, go: impl FnOnce(&mut TableIterator) -> Result<()>) -> Result<()> {
        let current = self.current.as_mut().expect("a table was opened");
        let moved = go(current);
        if moved.is_err() {
            self.current = None;
        }
        moved
    }

    fn on_entry(&self) -> bool {
        self.current.as_ref().is_some_and(PointIterator::valid)
    }

    /// A table may have no point entries (only range tombstones): go on to one that has.
    fn settle_forward(&mut self) -> Result<()> {
        while !self.on_entry() {
            if self.current.is_none() || !self.open(self.index + 1)? {
                self.current = None;
                return Ok(());
            }
            self.run(PointIterator::seek_to_first)?;
        }
        Ok(())
    }

    fn settle_backward(&mut self) -> Result<()> {
        while !self.on_entry() {
            let before = self.current.as_ref().and_then(|_| self.index.checked_sub(1));
            let Some(before) = before else {
                self.current = None;
                return Ok(());
            };
            self.open(before)?;
            self.run(PointIterator::seek_to_last)?;
        }
        Ok(())
    }
}

impl PointIterator for LevelIterator {
    #[inline]
    fn valid(&self) -> bool {
        self.on_entry()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        if self.open(0)? {
            self.run(PointIterator::seek_to_first)?;
        }
        self.settle_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        match self.level.tables().len().checked_sub(1) {
            Some(last) => {
                self.open(last)?;
                self.run(PointIterator::seek_to_last)?;
            }
            None => self.current = None,
        }
        self.settle_backward()
    }

    fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        if self.open(self.level.first_reaching(target.user_key))? {
            self.run(|table| table.seek(target))?;
        }
        self.settle_forward()
    }

    fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        let tables = self.level.tables().len();
        // The table that reaches the target may begin after it; then the one before has the answer.
        match self.level.first_reaching(target.user_key).min(tables.wrapping_sub(1)) {
            index if index < tables => {
                self.open(index)?;
                self.run(|table| table.seek_before(target))?;
            }
            _ => self.current = None,
        }
        self.settle_backward()
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        self.run(PointIterator::next)?;
        if self.on_entry() { Ok(()) } else { self.settle_forward() }
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.run(PointIterator::prev)?;
        if self.on_entry() { Ok(()) } else { self.settle_backward() }
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        self.current.as_ref().expect("only while valid").key()
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.current.as_ref().expect("only while valid").value()
    }
}
