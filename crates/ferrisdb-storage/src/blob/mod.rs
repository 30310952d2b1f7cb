//! Blob files: where large values lie, so that compaction does not rewrite them.
//!
//! A flush or a compaction that meets a value at or above [`Options::blob_value_bytes`](crate::Options::blob_value_bytes) appends it
//! to a blob file and gives the table a [`BlobPointer`] in its place. From then on compactions move the pointer, some ten bytes,
//! and the value stays where it is. `docs/decisions/0006-blob-files.md` says why it is done this way.
//!
//! | file | what |
//! | --- | --- |
//! | `format` | the bytes: header, record, pointer |
//! | `writer` | one new blob file |
//! | `reader` | one open blob file |
//! | `garbage` | what a manifest edit makes of the space in blob files |
//!
//! The handles of live files are in `engine/blobs.rs`, what a flush or compaction does with values in `engine/large_values.rs`.
//!
//! # Space
//! Each record belongs to exactly one entry of one live table, or to none: then it is garbage. Tables say in their
//! [`TableMeta`](crate::manifest::TableMeta) how many bytes of which file they refer to, so what an edit turns into garbage follows
//! from the tables that it removes and adds, whatever the reason (`garbage`).
//! - A file in which nothing is referred to is removed by the same edit.
//! - A file with at least [`GARBAGE_PERCENT_MAX`] percent garbage is emptied: compactions that meet its values write them anew, and
//!   the picker sees to it that one comes by. One live byte at most is copied for each byte that this frees, so collection can never
//!   cost more than the writes that made the garbage.
//!
//! # Invariants
//! - A blob file never changes once a manifest names it. It is synced, and so is its name, before the edit that adds it, which is
//!   the edit that adds the first tables with pointers into it.
//! - For each live file: bytes after the header = garbage in the manifest + references of live tables.

pub(crate) mod format;
pub(crate) mod garbage;
pub(crate) mod reader;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod survive;
pub(crate) mod writer;

#[cfg(test)]
mod tests;

pub(crate) use format::BlobPointer;
pub(crate) use reader::{BlobReader, cached_value};
pub(crate) use writer::BlobWriter;

use crate::manifest::BlobMeta;

/// The share of garbage, in percent of the records' bytes, from which on a file is emptied. At one half, emptying copies at most as
/// many bytes as it frees, and blob files are at most twice as large as what is referred to once collection has caught up.
pub(crate) const GARBAGE_PERCENT_MAX: u64 = 50;

/// The bytes of a blob file that are records.
pub(crate) fn record_bytes(meta: &BlobMeta) -> u64 {
    meta.file_bytes.saturating_sub(format::HEADER_BYTES)
}
