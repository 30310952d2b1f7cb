//! Several keys at once.
//!
//! The keys are looked for in their order, so that those that lie near each other share the work: all keys that a table may hold are asked of it one
//! after another, and neither its reader, nor an index partition, nor a block that answered for the key before is looked up again. The places are
//! asked from newest to oldest, as by [`get_in`](super::read::get_in); a key whose answer was found is not looked for in older ones.

use ferrisdb_core::Version;

use super::Core;
use super::read::{Answer, Found, Search, in_table, look_in_memtable};
use super::value::Value;
use super::view::{Table, View};
use crate::epoch::EpochGuard;
use crate::error::Result;
use crate::levels::LEVELS;
use crate::table::{LastBlock, ReadMode, filter};

/// A key that is looked for.
struct Wanted<'a> {
    key: &'a [u8],
    /// Its place among the caller's keys.
    place: usize,
    /// The key's, once it was needed.
    hash: Option<u64>,
}

impl Core {
    pub(super) fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K], at: Option<Version>) -> Result<Vec<Option<Value>>> {
        let view = self.view.read();
        let at = self.read_version(at)?;
        let mut has_opened = false;
        let found = find_all(&view, keys, at, &mut has_opened);
        drop(view);
        if has_opened {
            // To open a table, others may have been closed, under our own guard.
            self.view.reclaim();
        }
        found
    }
}

fn find_all<K: AsRef<[u8]>>(
    view: &EpochGuard<'_, View>,
    keys: &[K],
    at: Version,
    has_opened: &mut bool,
) -> Result<Vec<Option<Value>>> {
    let mut answers: Vec<Option<Answer>> = keys.iter().map(|_| None).collect();
    let mut wanted: Vec<Wanted<'_>> =
        keys.iter().enumerate().map(|(place, key)| Wanted { key: key.as_ref(), place, hash: None }).collect();
    wanted.sort_by_key(|wanted| wanted.key);

    for memtable in &view.memtables {
        wanted.retain(|wanted| {
            answers[wanted.place] = look_in_memtable(memtable, wanted.key, at);
            answers[wanted.place].is_none()
        });
    }
    for table in view.levels.level(0).tables() {
        let first = wanted.partition_point(|wanted| *wanted.key < *table.meta.smallest);
        let count = wanted[first..].partition_point(|wanted| !table.meta.ends_before(wanted.key));
        look_in_table((table, view), &mut wanted[first..first + count], at, &mut answers, has_opened)?;
        wanted.retain(|wanted| answers[wanted.place].is_none());
    }
    for level in 1..LEVELS {
        let mut next = 0;
        while let Some(first) = wanted.get(next) {
            let Some(table) = view.levels.find(level, first.key) else {
                next += 1;
                continue;
            };
            let count = wanted[next..].partition_point(|wanted| !table.meta.ends_before(wanted.key));
            look_in_table((table, view), &mut wanted[next..next + count], at, &mut answers, has_opened)?;
            next += count;
        }
        wanted.retain(|wanted| answers[wanted.place].is_none());
    }
    let into_value = |answer: Option<Answer>| match answer {
        Some(answer) => answer.into_value(view, ReadMode::Blocking),
        None => Ok(None),
    };
    answers.into_iter().map(into_value).collect()
}

/// Asks a table for keys within its bounds, in ascending order.
fn look_in_table(
    table: (&Table, &EpochGuard<'_, View>),
    wanted: &mut [Wanted<'_>],
    at: Version,
    answers: &mut [Option<Answer>],
    has_opened: &mut bool,
) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut search = Search::default();
    let answered = in_table(table, ReadMode::Blocking, &mut search, |reader| {
        let has_range_tombstones = table.0.meta.range_tombstones > 0;
        let mut last = LastBlock::default();
        for wanted in wanted {
            let hash = *wanted.hash.get_or_insert_with(|| filter::hash(wanted.key));
            let covering = if has_range_tombstones { reader.newest_covering(wanted.key, at) } else { None };
            let found = reader.get_in_order(wanted.key, hash, at, ReadMode::Blocking, &mut last)?;
            answers[wanted.place] = Found { found, covering }.into_answer();
        }
        Ok(())
    });
    *has_opened |= search.has_opened;
    answered
}
