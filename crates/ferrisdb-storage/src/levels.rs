//! The immutable set of live tables: [`Levels`].
//!
//! L0 holds tables as they were flushed; they may overlap. L1 to L6 are sorted runs. Each change makes a new `Levels` that
//! shares every untouched level with the old one, so readers keep the set that they started with for as long as they like.
//!
//! It is generic over the table handle, so that the manifest keeps plain [`TableMeta`]s and the engine puts open readers in.
//!
//! # Invariants ([`Levels::check`])
//! - In L1 and deeper, tables are sorted by key and no user key lies in the bounds of two tables of one level.
//! - In L0, tables are sorted by [`TableMeta::l0_rank`], greatest first, and two whose bounds overlap have different ranks.
//! - A file number occurs once.
//!
//! And one that bounds cannot show, for `verify`, which reads the keys: **for one user key, whatever is in a newer place is newer.**
//! Places from newest to oldest are L0 by rank, then L1, L2, … L6; range tombstones count for every key that they cover. It is
//! why a point read may stop at the first place that has an answer. (Bounds cannot show it because a table ingested at an old
//! version, over a range that holds nothing newer, may lie above a table whose bounds reach around it with newer keys.)
//!
//! # Finding a table
//! A point read asks each level for the one table that may have its key. A level keeps, side by side in one array, the first
//! eight bytes of each table's largest key *after the prefix that all bounds of the level share*; a binary search over 64-bit
//! numbers finds the table without following a pointer, and full keys are compared only where heads tie.

use std::ops::{Bound, Range};
use std::sync::Arc;

use crate::key::key_head;
use crate::manifest::{FileNumber, ManifestEdit, TableMeta};

/// The number of levels, L0 included. With a multiplier of 10 and a base of 256 MiB, six sorted runs hold 25 TB.
pub const LEVELS: usize = 7;

/// Something that stands for a table: its meta alone, or with an open reader.
pub trait TableLike {
    /// What is known about the table without opening it.
    fn meta(&self) -> &TableMeta;
}

impl TableLike for TableMeta {
    #[inline]
    fn meta(&self) -> &TableMeta {
        self
    }
}

/// The live tables. Cheap to clone.
#[derive(Debug)]
pub struct Levels<T> {
    levels: [Arc<Level<T>>; LEVELS],
}

/// The tables of one level.
#[derive(Debug)]
pub struct Level<T> {
    /// Newest first in L0; in key order elsewhere.
    tables: Vec<Arc<T>>,
    /// The number of leading bytes that all bounds of the level share; zero in L0.
    prefix_len: usize,
    /// `key_head` of each table's largest key after the shared prefix. Empty in L0.
    largest_heads: Vec<u64>,
    bytes: u64,
}

impl<T> Clone for Levels<T> {
    fn clone(&self) -> Levels<T> {
        Levels { levels: self.levels.clone() }
    }
}

impl<T: TableLike> Default for Levels<T> {
    fn default() -> Levels<T> {
        Levels { levels: std::array::from_fn(|level| Arc::new(Level::new(level, Vec::new()))) }
    }
}

impl<T: TableLike> Levels<T> {
    /// From tables in any order, with their levels.
    pub fn new(tables: impl IntoIterator<Item = (u8, Arc<T>)>) -> Levels<T> {
        let mut lists: [Vec<Arc<T>>; LEVELS] = Default::default();
        for (level, table) in tables {
            lists[usize::from(level)].push(table);
        }
        let mut index = 0;
        Levels {
            levels: lists.map(|list| {
                index += 1;
                Arc::new(Level::new(index - 1, list))
            }),
        }
    }

    /// The set after `edit`. Untouched levels are shared with `self`; `open` makes the handle of an added table, and is given the
    /// handle that a removed table of the same number had, so that a table that only changes its level stays open.
    ///
    /// # Panics
    /// If the edit removes a table that is not there: the caller has applied it to the manifest's state before.
    pub fn apply<E>(
        &self,
        edit: &ManifestEdit,
        mut open: impl FnMut(&TableMeta, Option<Arc<T>>) -> Result<Arc<T>, E>,
    ) -> Result<Levels<T>, E> {
        let mut lists: [Option<Vec<Arc<T>>>; LEVELS] = Default::default();
        let mut taken: Vec<Arc<T>> = Vec::new();
        for (level, list) in lists.iter_mut().enumerate() {
            let here = |changed: u8| usize::from(changed) == level;
            let mut removed: Vec<FileNumber> =
                edit.removed.iter().filter(|(changed, _)| here(*changed)).map(|(_, number)| *number).collect();
            if removed.is_empty() && !edit.added.iter().any(|(changed, _)| here(*changed)) {
                continue;
            }
            removed.sort_unstable();
            let (gone, stay): (Vec<_>, Vec<_>) = self.levels[level]
                .tables
                .iter()
                .cloned()
                .partition(|table| removed.binary_search(&table.meta().number).is_ok());
            assert_eq!(gone.len(), removed.len(), "an edit removes tables that are in its level");
            taken.extend(gone);
            *list = Some(stay);
        }
        for (level, meta) in &edit.added {
            let before = taken.iter().find(|table| table.meta().number == meta.number).cloned();
            let list = lists[usize::from(*level)].as_mut().expect("levels with additions were copied above");
            list.push(open(meta, before)?);
        }
        let mut next = self.clone();
        for (level, list) in lists.into_iter().enumerate() {
            if let Some(list) = list {
                next.levels[level] = Arc::new(Level::new(level, list));
            }
        }
        if cfg!(debug_assertions) {
            next.check();
        }
        Ok(next)
    }

    /// One level.
    #[inline]
    pub fn level(&self, level: usize) -> &Level<T> {
        &self.levels[level]
    }

    /// Every table with its level, from L0 down.
    pub fn tables(&self) -> impl Iterator<Item = (usize, &Arc<T>)> {
        self.levels.iter().enumerate().flat_map(|(level, list)| list.tables.iter().map(move |table| (level, table)))
    }

    /// Bytes of all tables.
    pub fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.bytes).sum()
    }

    /// In L1 and deeper: the table whose bounds hold `key`.
    #[inline]
    pub fn find(&self, level: usize, key: &[u8]) -> Option<&Arc<T>> {
        let list = &self.levels[level];
        let table = list.tables.get(list.first_reaching(key))?;
        (*table.meta().smallest <= *key).then_some(table)
    }

    /// The tables of a level whose bounds overlap the range, in the level's order.
    pub fn overlapping(
        &self,
        level: usize,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
    ) -> impl Iterator<Item = &Arc<T>> + use<'_, T> {
        let list = &self.levels[level];
        let mut inside = Vec::new();
        if level == 0 {
            inside.extend(
                list.tables.iter().filter(|table| reaches(table.meta(), start) && begins_within(table.meta(), end)),
            );
        } else {
            inside.extend(&list.tables[list.overlapping(start, end)]);
        }
        inside.into_iter()
    }

    /// What does not hold, if anything.
    pub fn problem(&self) -> Option<String> {
        for (index, level) in self.levels.iter().enumerate() {
            if let Some(problem) = level.problem(index) {
                return Some(format!("L{index}: {problem}"));
            }
        }
        let mut numbers: Vec<FileNumber> = self.tables().map(|(_, table)| table.meta().number).collect();
        numbers.sort_unstable();
        let twice = numbers.windows(2).find(|pair| pair[0] == pair[1])?;
        Some(format!("table {} is there twice", twice[0]))
    }

    /// Panics if an invariant does not hold.
    pub fn check(&self) {
        if let Some(problem) = self.problem() {
            panic!("the levels hold their invariants: {problem}");
        }
    }
}

impl<T: TableLike> Level<T> {
    fn new(level: usize, mut tables: Vec<Arc<T>>) -> Level<T> {
        let bytes = tables.iter().map(|table| table.meta().file_bytes).sum();
        if level == 0 {
            // Equal ranks are the disjoint outputs of one compaction; the number only makes their order one and the same.
            tables.sort_by_key(|table| std::cmp::Reverse((table.meta().l0_rank, table.meta().number)));
            return Level { tables, prefix_len: 0, largest_heads: Vec::new(), bytes };
        }
        tables.sort_by(|a, b| a.meta().smallest.cmp(&b.meta().smallest));
        let prefix_len = match (tables.first(), tables.last()) {
            // In a sorted list, what the first and the last share, all share.
            (Some(first), Some(last)) => {
                first.meta().smallest.iter().zip(&last.meta().largest).take_while(|(a, b)| a == b).count()
            }
            _ => 0,
        };
        // A level that breaks the order (bytes from outside, refused by `problem`) may hold a shorter key; never cut beyond its end.
        let head = |table: &Arc<T>| key_head(table.meta().largest.get(prefix_len..).unwrap_or(&[]));
        let largest_heads = tables.iter().map(head).collect();
        Level { tables, prefix_len, largest_heads, bytes }
    }

    /// The tables: newest first in L0, in key order elsewhere.
    #[inline]
    pub fn tables(&self) -> &[Arc<T>] {
        &self.tables
    }

    /// Bytes of all tables.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// In L1 and deeper: the index of the first table that does not end before `key`.
    #[inline]
    pub fn first_reaching(&self, key: &[u8]) -> usize {
        let Some(first) = self.tables.first() else { return 0 };
        if self.prefix_len > 0 {
            let prefix = &first.meta().smallest[..self.prefix_len];
            let here = &key[..key.len().min(self.prefix_len)];
            // A key that is a proper prefix of the shared prefix sorts before it, as `cmp` on slices says.
            match here.cmp(prefix) {
                std::cmp::Ordering::Less => return 0,
                std::cmp::Ordering::Greater => return self.tables.len(),
                std::cmp::Ordering::Equal => {}
            }
        }
        let head = key_head(&key[self.prefix_len..]);
        let from = self.largest_heads.partition_point(|&largest| largest < head);
        // Almost always no table, or one, ties with the key's head.
        if self.largest_heads.get(from) != Some(&head) {
            return from;
        }
        let ties = self.largest_heads[from..].partition_point(|&largest| largest == head);
        from + self.tables[from..from + ties].partition_point(|table| table.meta().ends_before(key))
    }

    /// In L1 and deeper: the indexes of the tables that overlap the range.
    pub fn overlapping(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<usize> {
        let from = match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.first_reaching(key),
            Bound::Excluded(key) => {
                let from = self.first_reaching(key);
                // Only a table that ends exactly at `key` reaches it without reaching beyond it.
                let ends_there =
                    self.tables.get(from).is_some_and(|table| !reaches(table.meta(), Bound::Excluded(key)));
                from + usize::from(ends_there)
            }
        };
        let to = self.tables.partition_point(|table| begins_within(table.meta(), end));
        from..to.max(from)
    }

    fn problem(&self, level: usize) -> Option<String> {
        if let Some((table, problem)) =
            self.tables.iter().find_map(|table| table.meta().problem().map(|problem| (table, problem)))
        {
            return Some(format!("table {}: {problem}", table.meta().number));
        }
        let touch = |a: &Arc<T>, b: &Arc<T>| format!("tables {} and {} overlap", a.meta().number, b.meta().number);
        if level == 0 {
            // Sorted by rank, so only runs of equal ranks need a look.
            let mut runs = self.tables.chunk_by(|a, b| a.meta().l0_rank == b.meta().l0_rank);
            return runs.find_map(|run| {
                run.iter().enumerate().find_map(|(index, a)| {
                    let other = run[index + 1..].iter().find(|b| a.meta().overlaps(b.meta()))?;
                    Some(format!("{} and have the same rank", touch(a, other)))
                })
            });
        }
        let pair = self.tables.windows(2).find(|pair| !pair[0].meta().ends_before(&pair[1].meta().smallest))?;
        Some(touch(&pair[0], &pair[1]))
    }
}

/// True if the table holds, by its bounds, keys at or after the start of a range.
fn reaches(meta: &TableMeta, start: Bound<&[u8]>) -> bool {
    match start {
        Bound::Unbounded => true,
        Bound::Included(key) => !meta.ends_before(key),
        // An exclusive bound that equals the start, or an inclusive one, leaves nothing behind it.
        Bound::Excluded(key) => *meta.largest > *key,
    }
}

/// True if the table begins before the end of a range.
fn begins_within(meta: &TableMeta, end: Bound<&[u8]>) -> bool {
    match end {
        Bound::Unbounded => true,
        Bound::Included(key) => *meta.smallest <= *key,
        Bound::Excluded(key) => *meta.smallest < *key,
    }
}

#[cfg(test)]
mod tests;
