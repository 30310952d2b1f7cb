//! One manifest: its edits, and what they add up to.

use std::path::Path;

use super::{Cell, Sink, file_fields};
use crate::error::Result;
use crate::fs::FileSystem;
use crate::manifest::log::{parse_manifest_file_name, read_prefix};
use crate::manifest::{ManifestEdit, ManifestState, TableMeta};
use crate::wal::WalPosition;

/// Tells what is in a manifest. Of a damaged one, the edits before the damage and what they add up to.
///
/// # Errors
/// [`Error::Corruption`](crate::Error::Corruption), [`Error::MissingFile`](crate::Error::MissingFile),
/// [`Error::FormatTooNew`](crate::Error::FormatTooNew), [`Error::Io`](crate::Error::Io), and the sink's.
pub fn manifest(fs: &dyn FileSystem, path: &Path, sink: &mut dyn Sink) -> Result<()> {
    file_fields(fs, path, sink)?;
    let number = path.file_name().and_then(|name| parse_manifest_file_name(name.to_str()?));
    let (recovered, damage) = read_prefix(fs, path, number)?;
    sink.field("manifest", recovered.manifest.into())?;
    sink.field("edits", recovered.edits.len().into())?;
    sink.field("end", recovered.end.into())?;
    sink.field("torn", recovered.torn.into())?;
    state_fields(&recovered.state, sink)?;

    sink.table(
        "edits",
        &[
            "offset",
            "added",
            "removed",
            "next_file_number",
            "flushed_version",
            "wal_start",
            "wal_synced",
            "last_version",
            "oldest_readable",
            "owner_bytes",
            "blob_changes",
        ],
    )?;
    for (offset, edit) in &recovered.edits {
        sink.row(&[
            (*offset).into(),
            edit.added.len().into(),
            edit.removed.len().into(),
            edit.next_file_number.map(|number| number.0).into(),
            edit.flushed.into(),
            wal_position(edit.wal_start).as_deref().into(),
            wal_position(edit.wal_synced).as_deref().into(),
            edit.last_version.into(),
            edit.oldest_readable.into(),
            edit.owner.as_ref().map(|owner| owner.len()).into(),
            blob_changes(edit).into(),
        ])?;
    }

    sink.table("changes", &["offset", "change", "level", "table", "file_bytes", "entries", "smallest", "largest"])?;
    for (offset, edit) in &recovered.edits {
        for (level, number) in &edit.removed {
            let (none, level) = (Cell::Absent, u32::from(*level));
            sink.row(&[(*offset).into(), "removed".into(), level.into(), number.0.into(), none, none, none, none])?;
        }
        for (level, meta) in &edit.added {
            sink.row(&[
                (*offset).into(),
                "added".into(),
                u32::from(*level).into(),
                meta.number.0.into(),
                meta.file_bytes.into(),
                meta.entries.into(),
                meta.smallest.as_ref().into(),
                meta.largest.as_ref().into(),
            ])?;
        }
    }

    sink.table("tables", &TABLE_COLUMNS)?;
    for (level, meta) in recovered.state.levels().tables() {
        table_row(level, meta, sink)?;
    }
    damage.map_or(Ok(()), Err)
}

/// What a manifest's edits add up to, apart from the tables.
pub(super) fn state_fields(state: &ManifestState, sink: &mut dyn Sink) -> Result<()> {
    sink.field("engine", state.engine_id.to_string().as_str().into())?;
    sink.field("tables", state.tables.len().into())?;
    sink.field("blob_files", state.blobs.len().into())?;
    sink.field("next_file_number", state.next_file_number.0.into())?;
    sink.field("flushed_version", state.flushed.into())?;
    sink.field("last_version", state.last_version.into())?;
    sink.field("oldest_readable", state.oldest_readable.into())?;
    sink.field("wal_start", wal_position(state.wal_start).as_deref().into())?;
    sink.field("wal_synced", wal_position(state.wal_synced).as_deref().into())?;
    sink.field("owner_bytes", state.owner.len().into())
}

const TABLE_COLUMNS: [&str; 11] = [
    "level",
    "table",
    "file_bytes",
    "entries",
    "tombstones",
    "range_tombstones",
    "smallest_version",
    "largest_version",
    "smallest",
    "largest",
    "largest_exclusive",
];

fn table_row(level: usize, meta: &TableMeta, sink: &mut dyn Sink) -> Result<()> {
    sink.row(&[
        level.into(),
        meta.number.0.into(),
        meta.file_bytes.into(),
        meta.entries.into(),
        meta.tombstones.into(),
        meta.range_tombstones.into(),
        meta.smallest_version.into(),
        meta.largest_version.into(),
        meta.smallest.as_ref().into(),
        meta.largest.as_ref().into(),
        meta.largest_exclusive.into(),
    ])
}

fn wal_position(position: Option<u64>) -> Option<String> {
    position.map(|position| WalPosition::from_u64(position).to_string())
}

fn blob_changes(edit: &ManifestEdit) -> usize {
    edit.added_blobs.len() + edit.removed_blobs.len() + edit.blob_garbage.len()
}
