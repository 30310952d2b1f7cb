//! How large a range is, and where to cut it: answers from indexes, without reading data.
//!
//! A table that lies wholly in the range counts whole; one that reaches beyond it counts from the data block in which the range begins to
//! the one in which it ends. Obsolete versions and tombstones count until a compaction removes them: it is about space, not about content.

use std::ops::Bound;

use ferrisdb_core::Version;

use super::view::{LiveMemtable, Table, View};
use super::{Core, Engine};
use crate::error::{Error, Result};
use crate::iter::PointIterator;
use crate::key::InternalKey;
use crate::levels::LEVELS;
use crate::table::ReadMode;

/// From this many tables on, those wholly in the range are not divided: at 64 MiB each, a split point is then at most half a percent off.
const UNDIVIDED_TABLES_MIN: usize = 256;

/// About how many bytes a range takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RangeSize {
    /// In tables, compressed, and in the blob files that they refer to.
    pub disk_bytes: u64,
    /// In memtables: keys and values.
    pub memory_bytes: u64,
}

impl Engine {
    /// About how many bytes the keys from `start` up to but without `end` take (`None`: no bound), exact to a data block for each
    /// table that reaches beyond the range. It opens those tables and walks through what memtables hold of the range.
    ///
    /// # Errors
    /// [`Error::InvertedRange`], and those of opening tables.
    pub fn approximate_size(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> Result<RangeSize> {
        let mut size = RangeSize::default();
        self.core().visit_range(start, end, |part| {
            match part {
                Part::Table { table, share_bytes } => size.disk_bytes += share_bytes + blob_bytes(table, share_bytes),
                Part::Entry { bytes, .. } => size.memory_bytes += bytes,
            }
            Ok(())
        })?;
        Ok(size)
    }

    /// The part of [`Engine::approximate_size`] that lies on disk, without a walk through memtables.
    ///
    /// # Errors
    /// As [`Engine::approximate_size`].
    pub fn approximate_disk_bytes(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> Result<u64> {
        let mut bytes = 0;
        self.core().visit_tables(&self.core().view.load(), start, end, &mut |part| {
            if let Part::Table { table, share_bytes } = part {
                bytes += share_bytes + blob_bytes(table, share_bytes);
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Keys that cut the range into parts of about `part_bytes` each: ascending, above `start` and below `end`, none if the range is not larger
    /// than that. They need not be keys that exist. For a number of parts, divide [`Engine::approximate_size`] by it.
    ///
    /// # Errors
    /// As [`Engine::approximate_size`].
    pub fn split_points(&self, start: Option<&[u8]>, end: Option<&[u8]>, part_bytes: u64) -> Result<Vec<Vec<u8>>> {
        let mut anchors: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut tables = 0;
        self.core().visit_range(start, end, |part| {
            match part {
                Part::Entry { key, bytes } => anchors.push((key.to_vec(), bytes)),
                Part::Table { table, share_bytes } => {
                    tables += 1;
                    let bytes = share_bytes + blob_bytes(table, share_bytes);
                    if tables > UNDIVIDED_TABLES_MIN && share_bytes == table.meta.file_bytes {
                        anchors.push((table.meta.largest.to_vec(), bytes));
                        return Ok(());
                    }
                    let first = anchors.len();
                    table.reader()?.for_each_separator(ReadMode::Blocking, |key, len| {
                        let inside = start.is_none_or(|start| key >= start) && end.is_none_or(|end| key < end);
                        if inside {
                            anchors.push((key.to_vec(), len));
                        }
                    })?;
                    // Blocks are of about one size; what else the table takes is spread over them.
                    let blocks: u64 = anchors[first..].iter().map(|anchor| anchor.1).sum();
                    for anchor in &mut anchors[first..] {
                        anchor.1 = scaled(anchor.1, bytes, blocks);
                    }
                }
            }
            Ok(())
        })?;
        anchors.sort_unstable();
        let mut points: Vec<Vec<u8>> = Vec::new();
        let mut left: u64 = anchors.iter().map(|anchor| anchor.1).sum();
        let mut part = 0;
        for (key, bytes) in anchors {
            part += bytes;
            left -= bytes;
            // A last part of less than half goes to the one before it.
            let cuts = part >= part_bytes.max(1) && left >= part_bytes / 2 && left > 0;
            if cuts && points.last() != Some(&key) && start.is_none_or(|start| *start < *key) {
                points.push(key);
                part = 0;
            }
        }
        Ok(points)
    }
}

/// Something that lies in a range.
enum Part<'a> {
    /// A table, with the bytes of its file that belong to the range.
    Table { table: &'a Table, share_bytes: u64 },
    /// An entry of a memtable.
    Entry { key: &'a [u8], bytes: u64 },
}

impl Core {
    fn visit_range(
        &self,
        start: Option<&[u8]>,
        end: Option<&[u8]>,
        mut visit: impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        let view = self.view.load();
        self.visit_tables(&view, start, end, &mut visit)?;
        for memtable in &view.memtables {
            visit_memtable(memtable, start, end, &mut visit)?;
        }
        Ok(())
    }

    fn visit_tables(
        &self,
        view: &View,
        start: Option<&[u8]>,
        end: Option<&[u8]>,
        visit: &mut impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        if let (Some(start), Some(end)) = (start, end)
            && start > end
        {
            return Err(Error::InvertedRange { start: start.to_vec(), end: end.to_vec() });
        }
        let from = start.map_or(Bound::Unbounded, Bound::Included);
        let to = end.map_or(Bound::Unbounded, Bound::Excluded);
        for level in 0..LEVELS {
            for table in view.levels.overlapping(level, from, to) {
                let share_bytes = share_bytes(table, start, end)?;
                visit(Part::Table { table, share_bytes })?;
            }
        }
        Ok(())
    }
}

fn visit_memtable(
    memtable: &LiveMemtable,
    start: Option<&[u8]>,
    end: Option<&[u8]>,
    visit: &mut impl FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let mut iter = memtable.entries.iter_owned();
    match start {
        Some(start) => iter.seek(InternalKey::seek(start, Version::MAX))?,
        None => iter.seek_to_first()?,
    }
    while iter.valid() && end.is_none_or(|end| iter.key().user_key < end) {
        let key = iter.key().user_key;
        visit(Part::Entry { key, bytes: (key.len() + iter.value().len()) as u64 })?;
        iter.next()?;
    }
    Ok(())
}

/// The bytes of a table's file that belong to the range.
fn share_bytes(table: &Table, start: Option<&[u8]>, end: Option<&[u8]>) -> Result<u64> {
    let meta = &table.meta;
    let begins_inside = start.is_none_or(|start| *start <= *meta.smallest);
    let ends_inside = end.is_none_or(|end| meta.ends_before(end));
    if begins_inside && ends_inside {
        return Ok(meta.file_bytes);
    }
    let reader = table.reader()?;
    let data_bytes = reader.properties().data_bytes;
    let from = if begins_inside { 0 } else { offset(table, start)? };
    let to = if ends_inside { data_bytes } else { offset(table, end)? };
    // Index, filter and the rest belong to the data.
    Ok(scaled(to.saturating_sub(from), meta.file_bytes, data_bytes))
}

fn offset(table: &Table, key: Option<&[u8]>) -> Result<u64> {
    let key = key.expect("a table reaches beyond a bound only where there is one");
    table.reader()?.approximate_offset_of(key, ReadMode::Blocking)
}

/// The bytes in blob files that belong to such a share of a table.
fn blob_bytes(table: &Table, share_bytes: u64) -> u64 {
    let all = table.meta.blob_references.iter().map(|(_, bytes)| bytes).sum();
    scaled(share_bytes, all, table.meta.file_bytes)
}

/// `part * of / whole`; nothing of an empty whole.
fn scaled(part: u64, of: u64, whole: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(of) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
