//! What a compaction is to do: [`CompactionPlan`].
//!
//! A plan names its inputs and holds everything that the job needs to know about the tables around them, so that the job never looks
//! at the levels again: they may change while it runs, but not in a way that makes the plan wrong (see [`super::picker`]).

use std::fmt;
use std::ops::Bound;

use crate::levels::{Levels, TableLike};
use crate::manifest::{FileNumber, ManifestEdit, TableMeta};

/// A range of user keys with the bounds of a table.
///
/// Invariant: it holds at least one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpan {
    /// The smallest key, inclusive.
    pub smallest: Box<[u8]>,
    /// The largest key.
    pub largest: Box<[u8]>,
    /// True if `largest` itself is outside.
    pub largest_exclusive: bool,
}

impl KeySpan {
    /// The bounds of a table.
    pub fn of(meta: &TableMeta) -> KeySpan {
        KeySpan {
            smallest: meta.smallest.clone(),
            largest: meta.largest.clone(),
            largest_exclusive: meta.largest_exclusive,
        }
    }

    /// The smallest span that holds all tables; `None` without a table.
    pub fn around<'a>(metas: impl IntoIterator<Item = &'a TableMeta>) -> Option<KeySpan> {
        let mut metas = metas.into_iter();
        let mut span = KeySpan::of(metas.next()?);
        metas.for_each(|meta| span.extend(&KeySpan::of(meta)));
        Some(span)
    }

    /// Makes the span hold `other` too.
    pub fn extend(&mut self, other: &KeySpan) {
        if other.smallest < self.smallest {
            self.smallest.clone_from(&other.smallest);
        }
        // Of two equal bounds the inclusive one reaches further.
        if (&other.largest, !other.largest_exclusive) > (&self.largest, !self.largest_exclusive) {
            self.largest.clone_from(&other.largest);
            self.largest_exclusive = other.largest_exclusive;
        }
    }

    /// True if the span ends before `key`.
    pub fn ends_before(&self, key: &[u8]) -> bool {
        if self.largest_exclusive { *self.largest <= *key } else { *self.largest < *key }
    }

    /// True if some key is in both.
    pub fn overlaps(&self, other: &KeySpan) -> bool {
        !self.ends_before(&other.smallest) && !other.ends_before(&self.smallest)
    }

    /// The start, as a bound.
    pub fn start(&self) -> Bound<&[u8]> {
        Bound::Included(&self.smallest)
    }

    /// The end, as a bound.
    pub fn end(&self) -> Bound<&[u8]> {
        if self.largest_exclusive { Bound::Excluded(&self.largest) } else { Bound::Included(&self.largest) }
    }
}

/// Why a compaction was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// L0 has too many sorted runs or bytes.
    L0,
    /// L0 has too many sorted runs while the way down is taken: they are merged among themselves.
    IntraL0,
    /// A level is above its target.
    LevelSize,
    /// A level that the dynamic targets have no use for is emptied.
    Drain,
    /// Iterators had to skip many tombstones in a range.
    SkippedTombstones,
    /// A table consists largely of tombstones.
    TombstoneDensity,
    /// A range tombstone hides whole tables.
    RangeTombstone,
    /// The table keeps a blob file alive that is mostly garbage.
    BlobGarbage,
    /// The caller asked for it.
    Manual,
}

/// What is done with the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They are merged into new tables in the output level.
    Rewrite,
    /// They are named in the output level instead; no byte is copied.
    Move,
    /// They are removed unread: no reader can see anything in them.
    DropUnread,
}

/// A table of the level below the outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grandparent {
    /// Its largest key.
    pub largest: Box<[u8]>,
    /// Its length in bytes.
    pub bytes: u64,
}

/// One compaction, ready to be carried out.
///
/// # Invariants
/// - Inputs are named by level from newer to older; in L0 newest first, elsewhere in key order.
/// - Every table of the output level that overlaps `span` is an input, unless the output level is L0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactionPlan {
    /// Why.
    pub reason: Reason,
    /// What.
    pub action: Action,
    /// The tables, by level.
    pub inputs: Vec<(u8, Vec<FileNumber>)>,
    /// Where the outputs go.
    pub output_level: u8,
    /// The [`TableMeta::l0_rank`] of the outputs: the greatest among the inputs in L0.
    pub output_rank: u64,
    /// The keys of all inputs.
    pub span: KeySpan,
    /// Bytes of all inputs.
    pub input_bytes: u64,
    /// An output is closed when it has this many bytes.
    pub output_file_bytes: u64,
    /// Where older data lies that is not an input: sorted, disjoint. Outside of these, the output is the bottom.
    pub older: Vec<KeySpan>,
    /// The tables under the outputs, in key order.
    pub grandparents: Vec<Grandparent>,
    /// An output is closed before it overlaps more grandparent bytes than this, so that compacting it later stays cheap.
    pub grandparent_bytes_max: u64,
    /// The most parts into which the job may be divided to run at once.
    pub parts_max: usize,
    /// Where to divide it, as far as table bounds tell: sorted, all inside `span`, none equal to its start, fewer than `parts_max`. A
    /// job that knows index keys can do better with [`split_keys`].
    pub split_keys: Vec<Box<[u8]>>,
}

impl CompactionPlan {
    /// True if no older data for `key` exists outside the inputs.
    pub fn is_bottom_key(&self, key: &[u8]) -> bool {
        let at = self.older.partition_point(|span| span.ends_before(key));
        self.older.get(at).is_none_or(|span| *key < *span.smallest)
    }

    /// True if no older data for any key of `[start, end)` exists outside the inputs.
    pub fn is_bottom_range(&self, start: &[u8], end: &[u8]) -> bool {
        let at = self.older.partition_point(|span| span.ends_before(start));
        self.older.get(at).is_none_or(|span| *end <= *span.smallest)
    }

    /// All inputs.
    pub fn files(&self) -> impl Iterator<Item = FileNumber> {
        self.inputs.iter().flat_map(|(_, numbers)| numbers.iter().copied())
    }

    /// The edit that takes the inputs away and adds what the action leaves: `outputs` for a rewrite, the inputs themselves for a
    /// move, nothing for a drop. `levels` are those that the plan was made from, or later ones.
    ///
    /// # Panics
    /// If the inputs are not where the plan says: whoever removed them did not look at the running plans.
    pub fn edit<T: TableLike>(&self, levels: &Levels<T>, outputs: Vec<TableMeta>) -> ManifestEdit {
        let removed = self.inputs.iter().flat_map(|(level, files)| files.iter().map(|file| (*level, *file)));
        let added = match self.action {
            Action::Rewrite => outputs,
            Action::DropUnread => Vec::new(),
            Action::Move => self
                .inputs
                .iter()
                .flat_map(|(level, files)| {
                    files.iter().map(|file| {
                        let tables = levels.level(usize::from(*level)).tables();
                        let table = tables.iter().find(|table| table.meta().number == *file);
                        table.expect("the inputs of a running plan stay where they are").meta().clone()
                    })
                })
                .collect(),
        };
        ManifestEdit {
            added: added.into_iter().map(|meta| (self.output_level, meta)).collect(),
            removed: removed.collect(),
            ..ManifestEdit::default()
        }
    }
}

/// Keys that cut weighted anchors (a key and the bytes from it to the next) into at most `parts` parts of similar size. Anchors
/// may come in any order; the finer they are (keys of the index blocks), the more even the parts.
pub fn split_keys(mut anchors: Vec<(&[u8], u64)>, parts: usize) -> Vec<Box<[u8]>> {
    anchors.sort_unstable();
    let total: u64 = anchors.iter().map(|anchor| anchor.1).sum();
    let mut keys: Vec<Box<[u8]>> = Vec::new();
    if parts < 2 || total == 0 {
        return keys;
    }
    let first = anchors[0].0;
    let mut before = 0u64;
    for (key, bytes) in &anchors {
        let due = u128::from(before) * parts as u128 >= u128::from(total) * (keys.len() as u128 + 1);
        if due && *key > first && keys.last().is_none_or(|last| **last < **key) {
            keys.push((*key).into());
        }
        before += bytes;
    }
    keys.truncate(parts - 1);
    keys
}

/// One line, as it goes into a log: `level size: move L1 [4] → L2`.
impl fmt::Display for CompactionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            Reason::L0 => "L0",
            Reason::IntraL0 => "intra-L0",
            Reason::LevelSize => "level size",
            Reason::Drain => "drain",
            Reason::SkippedTombstones => "skipped tombstones",
            Reason::TombstoneDensity => "tombstone density",
            Reason::RangeTombstone => "range tombstone",
            Reason::BlobGarbage => "blob garbage",
            Reason::Manual => "manual",
        };
        let action = match self.action {
            Action::Rewrite => "rewrite",
            Action::Move => "move",
            Action::DropUnread => "drop",
        };
        write!(f, "{reason}: {action}")?;
        for (position, (level, files)) in self.inputs.iter().enumerate() {
            let numbers: Vec<String> = files.iter().map(|file| file.0.to_string()).collect();
            write!(f, "{} L{level} [{}]", if position > 0 { " +" } else { "" }, numbers.join(" "))?;
        }
        if self.action != Action::DropUnread {
            write!(f, " → L{}", self.output_level)?;
        }
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        if self.action == Action::Rewrite {
            if self.older.is_empty() {
                write!(f, ", bottom")?;
            }
            if self.parts_max > 1 {
                write!(f, ", {} parts", self.parts_max)?;
            }
            if !self.split_keys.is_empty() {
                let keys: Vec<String> = self.split_keys.iter().map(|key| text(key)).collect();
                write!(f, ", split at {}", keys.join(" "))?;
            }
        }
        Ok(())
    }
}
