//! One SSTable: footer, properties, range tombstones, blocks, entries.

use std::path::Path;
use std::sync::Arc;

use super::{Cell, Sink, file_fields, shown};
use crate::cache::BlockCache;
use crate::engine::files::{FileKind, file_kind};
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::key::ValueKind;
use crate::table::{FORMAT_VERSION, TableReader};

/// Tells what is in an SSTable. A damaged data block is passed over; where the index is damaged, only the footer can be told.
///
/// # Errors
/// [`Error::Corruption`] for the first damage, and if the file is another table than its name says; [`Error::FormatTooNew`],
/// [`Error::Io`], and the sink's.
pub fn sst(fs: &dyn FileSystem, path: &Path, sink: &mut dyn Sink) -> Result<()> {
    let file_bytes = file_fields(fs, path, sink)?;
    let footer = TableReader::footer(fs, path)?;
    sink.field("table", footer.id.0.into())?;
    sink.field("format_version", FORMAT_VERSION.into())?;
    sink.field("index_levels", footer.index_levels.into())?;
    // Whatever the file's name is: the user may have copied it somewhere.
    let reader = TableReader::open(fs, path, footer.id, file_bytes, &Arc::new(BlockCache::new(1 << 20)));
    if let Ok(reader) = &reader {
        properties(reader, sink)?;
    }

    sink.table("parts", &["part", "offset", "bytes"])?;
    for (name, handle) in footer.parts {
        sink.row(&[name.into(), handle.offset.into(), handle.len.into()])?;
    }
    let reader = reader?;

    sink.table("range_tombstones", &["start", "end", "version"])?;
    for (start, end, version) in reader.range_tombstones().tombstones() {
        sink.row(&[start.into(), end.into(), version.into()])?;
    }

    sink.table(
        "blocks",
        &["offset", "bytes", "compression", "raw_bytes", "entries", "restarts", "separator", "separator_version"],
    )?;
    let blocks = reader.inspect(
        |block| {
            sink.row(&[
                block.handle.offset.into(),
                block.handle.len.into(),
                block.compression.into(),
                block.raw_bytes.into(),
                block.entries.into(),
                block.restarts.into(),
                block.separator.0.as_slice().into(),
                block.separator.1.version().into(),
            ])
        },
        |_| Ok(()),
    );
    // The entries of the blocks that could be read are worth showing; the damage is met again behind them.
    blocks.or_else(|error| if error.is_corruption() { Ok(()) } else { Err(error) })?;

    sink.table("entries", &["block", "key", "version", "kind", "value_bytes", "value"])?;
    reader.inspect(
        |_| Ok(()),
        |entry| {
            let kind = entry.key.trailer.kind();
            let name = match kind {
                Some(ValueKind::Value) => "value",
                Some(ValueKind::Tombstone) => "tombstone",
                Some(ValueKind::BlobPointer) => "blob pointer",
                Some(ValueKind::RangeTombstone) | None => "unknown",
            };
            let value = (kind != Some(ValueKind::Tombstone)).then_some(entry.value);
            sink.row(&[
                entry.handle.offset.into(),
                entry.key.user_key.into(),
                entry.key.trailer.version().into(),
                name.into(),
                value.map(<[u8]>::len).into(),
                value.map_or(Cell::Absent, shown),
            ])
        },
    )?;

    match file_kind(path) {
        FileKind::Table(named) if named.0 != footer.id.0 => {
            let what = format!("this is table {}, not table {named}: the file was put in its place", footer.id.0);
            Err(Error::corruption(path, file_bytes, what))
        }
        _ => Ok(()),
    }
}

fn properties(reader: &TableReader, sink: &mut dyn Sink) -> Result<()> {
    let properties = reader.properties();
    sink.field("created_by", properties.created_by.as_str().into())?;
    sink.field("entries", properties.entries.into())?;
    sink.field("tombstones", properties.tombstones.into())?;
    sink.field("blob_pointers", properties.blob_pointers.into())?;
    sink.field("range_tombstones", properties.range_tombstones.into())?;
    sink.field("user_keys", properties.user_keys.into())?;
    sink.field("key_bytes", properties.raw_key_bytes.into())?;
    sink.field("value_bytes", properties.raw_value_bytes.into())?;
    sink.field("data_blocks", properties.data_blocks.into())?;
    sink.field("data_bytes", properties.data_bytes.into())?;
    sink.field("smallest_version", properties.smallest_version.into())?;
    sink.field("largest_version", properties.largest_version.into())?;
    sink.field("first_key", properties.first_user_key.as_slice().into())?;
    sink.field("last_key", properties.last_user_key.as_slice().into())
}
