//! Point reads.
//!
//! A read loads the view, then the visible version, and asks the sources from newest to oldest; the first that has an entry for
//! the key at or below the read version, or a range tombstone over it, ends the search: wherever sources overlap, newer ones hold newer
//! versions. Nothing is locked, nothing allocated, and the only shared memory written is the reader's own epoch counter.

use std::sync::Arc;

use ferrisdb_core::Version;

use super::Core;
use super::sources::reader_of;
use super::value::Value;
use super::view::{LiveMemtable, Table, View};
use crate::epoch::EpochGuard;
use crate::error::Result;
use crate::key::ValueKind;
use crate::levels::LEVELS;
use crate::planted::{Bug, planted};
use crate::table::{ReadMode, TableReader, filter};

impl Core {
    /// The value of `key` at `at`, or at the visible version.
    #[inline]
    pub(super) fn get(&self, key: &[u8], at: Option<Version>, mode: ReadMode) -> Result<Option<Value>> {
        let view = self.view.read();
        let at = self.read_version(at)?;
        let mut search = Search::default();
        let found = get_in(&view, key, at, mode, &mut search);
        drop(view);
        if search.has_opened {
            // To open a table, others may have been closed, under our own guard.
            self.view.reclaim();
        }
        found
    }

    /// Checks a version that a reader chose, or takes the visible one. Call it after loading the view.
    #[inline]
    pub(super) fn read_version(&self, at: Option<Version>) -> Result<Version> {
        self.check_open()?;
        let visible = self.visibility.visible();
        match at {
            None => Ok(visible),
            Some(at) => self.versions.check(at, visible).map(|()| at),
        }
    }
}

/// What the search of one key, or of several, carries from table to table.
#[derive(Default)]
pub(super) struct Search {
    /// The key's, once it was needed.
    hash: Option<u64>,
    /// A table had to be opened: others may be waiting to be closed until the guard is dropped.
    pub(super) has_opened: bool,
}

pub(super) fn get_in(
    view: &EpochGuard<'_, View>,
    key: &[u8],
    at: Version,
    mode: ReadMode,
    search: &mut Search,
) -> Result<Option<Value>> {
    for memtable in &view.memtables {
        if let Some(answer) = look_in_memtable(memtable, key, at) {
            return answer.into_value(view, mode);
        }
    }
    for table in view.levels.level(0).tables() {
        if *table.meta.smallest <= *key
            && !table.meta.ends_before(key)
            && let Some(answer) = look_in_table((table, view), key, search, at, mode)?
        {
            return answer.into_value(view, mode);
        }
    }
    for level in 1..LEVELS {
        if let Some(table) = view.levels.find(level, key)
            && let Some(answer) = look_in_table((table, view), key, search, at, mode)?
        {
            return answer.into_value(view, mode);
        }
    }
    Ok(None)
}

/// What ends a search.
pub(super) enum Answer {
    Deleted,
    Value(Value),
    /// An encoded pointer to a value in a blob file.
    Blob(Value),
}

impl Answer {
    #[inline]
    fn new(kind: ValueKind, value: Value) -> Answer {
        match kind {
            ValueKind::Value => Answer::Value(value),
            ValueKind::Tombstone | ValueKind::RangeTombstone => Answer::Deleted,
            ValueKind::BlobPointer => Answer::Blob(value),
        }
    }

    #[inline]
    pub(super) fn into_value(self, view: &View, mode: ReadMode) -> Result<Option<Value>> {
        match self {
            Answer::Deleted => Ok(None),
            Answer::Value(value) => Ok(Some(value)),
            Answer::Blob(pointer) => view.blobs.read(&pointer, mode).map(|value| Some(Value::owned(value))),
        }
    }
}

#[inline]
pub(super) fn look_in_memtable(memtable: &Arc<LiveMemtable>, key: &[u8], at: Version) -> Option<Answer> {
    let covering = memtable.entries.newest_covering(key, at);
    match memtable.entries.get(key, at) {
        Some(found)
            if covering.is_none_or(|covering| found.version >= covering && !planted(Bug::RangeTombstoneHidesNewer)) =>
        {
            Some(match found.kind {
                ValueKind::Tombstone => Answer::Deleted,
                // SAFETY: the value was found in this memtable's arena.
                kind => Answer::new(kind, unsafe { Value::in_memtable(found.value, Arc::clone(memtable)) }),
            })
        }
        Some(_) => Some(Answer::Deleted),
        None => covering.map(|_| Answer::Deleted),
    }
}

/// What a table says about a key.
pub(super) struct Found {
    pub(super) found: Option<crate::table::Found>,
    /// The newest range tombstone over it.
    pub(super) covering: Option<Version>,
}

impl Found {
    #[inline]
    pub(super) fn into_answer(self) -> Option<Answer> {
        let covering = self.covering;
        match self.found {
            Some(found) if covering.is_none_or(|covering| found.version >= covering) => {
                Some(Answer::new(found.kind, Value::in_table(found.value)))
            }
            Some(_) => Some(Answer::Deleted),
            None => covering.map(|_| Answer::Deleted),
        }
    }
}

#[inline]
fn look_in_table(
    table: (&Table, &EpochGuard<'_, View>),
    key: &[u8],
    search: &mut Search,
    at: Version,
    mode: ReadMode,
) -> Result<Option<Answer>> {
    let hash = *search.hash.get_or_insert_with(|| filter::hash(key));
    in_table(table, mode, search, |reader| {
        let covering = if table.0.meta.range_tombstones > 0 { reader.newest_covering(key, at) } else { None };
        Ok(Found { found: reader.get(key, hash, at, mode)?, covering }.into_answer())
    })
}

/// Runs `look` on a table's reader, which is opened if need be.
#[inline]
pub(super) fn in_table<T>(
    (table, guard): (&Table, &EpochGuard<'_, View>),
    mode: ReadMode,
    search: &mut Search,
    look: impl FnOnce(&TableReader) -> Result<T>,
) -> Result<T> {
    match table.borrow_reader(guard) {
        Some(reader) => look(reader),
        None => {
            let opened = reader_of(table, mode)?;
            search.has_opened = true;
            look(&opened)
        }
    }
}
