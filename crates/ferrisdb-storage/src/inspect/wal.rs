//! One WAL segment: its records, and what they say if they are write batches.

use std::path::Path;

use super::{Cell, Sink, file_fields, shown};
use crate::batch::{BatchRecord, Operation};
use crate::error::{Error, Result};
use crate::fs::{FileSystem, OpenMode, read_exact_at};
use crate::wal::{RecordInfo, RecordKind, inspect_segment};

/// Tells what is in a WAL segment. Records behind damage are told too, as far as their headers are intact.
///
/// One file cannot say where the log ends: that a record is here does not mean that recovery keeps it.
///
/// # Errors
/// [`Error::Corruption`] if the segment header is damaged, or if a record is that the segment itself says was synced;
/// [`Error::FormatTooNew`], [`Error::Io`], and the sink's.
pub fn wal(fs: &dyn FileSystem, path: &Path, sink: &mut dyn Sink) -> Result<()> {
    file_fields(fs, path, sink)?;
    if is_unused(fs, path)? {
        return sink.field("state", "prepared and not used yet".into());
    }
    let segment = inspect_segment(fs, path)?;
    let header = segment.header();
    sink.field("identity", format!("{:016x}", header.identity).as_str().into())?;
    sink.field("segment", header.number.into())?;
    sink.field("previous_end", header.previous_end.to_string().as_str().into())?;
    sink.field("synced", header.synced.to_string().as_str().into())?;

    sink.table(
        "records",
        &["offset", "kind", "generation", "synced", "payload_bytes", "intact", "behind_gap", "version", "operations"],
    )?;
    let mut run_end = segment.run_end();
    let mut synced = header.synced;
    for_each_record(fs, path, |record, payload, end| {
        run_end = end;
        synced = synced.max(record.synced);
        let batch = batch(record, payload, path);
        let kind = match record.kind {
            RecordKind::Record => "record",
            RecordKind::Mark => "mark",
        };
        sink.row(&[
            record.position.offset().into(),
            kind.into(),
            u32::from(record.generation).into(),
            record.synced.to_string().as_str().into(),
            record.payload_bytes.into(),
            record.payload_ok.into(),
            record.behind_gap.into(),
            batch.map(|batch| batch.version).into(),
            batch.map(|batch| batch.operations().count()).into(),
        ])
    })?;

    sink.table("operations", &["offset", "version", "operation", "key", "end", "value_bytes", "value"])?;
    for_each_record(fs, path, |record, payload, _| {
        let Some(batch) = batch(record, payload, path) else { return Ok(()) };
        for operation in batch.operations() {
            let (name, key, end, value) = match operation {
                Operation::Put { key, value } => ("put", Some(key), None, Some(value)),
                Operation::Delete { key } => ("delete", Some(key), None, None),
                Operation::DeleteRange { start, end } => ("delete range", Some(start), Some(end), None),
                Operation::OwnerState { bytes } => ("owner state", None, None, Some(bytes)),
            };
            sink.row(&[
                record.position.offset().into(),
                batch.version.into(),
                name.into(),
                key.into(),
                end.into(),
                value.map(<[u8]>::len).into(),
                value.map_or(Cell::Absent, shown),
            ])?;
        }
        Ok(())
    })?;

    if synced > run_end {
        let what = format!("a record is damaged or missing here, though the WAL was synced up to {synced}");
        return Err(Error::corruption(path, u64::from(run_end.offset()), what));
    }
    Ok(())
}

/// Calls `each` with a record, its payload, and where the unbroken run of records ends so far.
fn for_each_record(
    fs: &dyn FileSystem,
    path: &Path,
    mut each: impl FnMut(&RecordInfo, &[u8], crate::wal::WalPosition) -> Result<()>,
) -> Result<()> {
    let mut segment = inspect_segment(fs, path)?;
    while let Some(record) = segment.next() {
        each(&record?, segment.payload(), segment.run_end())?;
    }
    Ok(())
}

/// The record as a write batch, if it is one. The WAL's other owners write other records.
fn batch<'a>(record: &RecordInfo, payload: &'a [u8], path: &Path) -> Option<BatchRecord<'a>> {
    let is_record = record.kind == RecordKind::Record && record.payload_ok;
    is_record.then(|| BatchRecord::decode(payload, path, u64::from(record.position.offset())).ok()).flatten()
}

/// True if there are only zeros where the segment header will be.
fn is_unused(fs: &dyn FileSystem, path: &Path) -> Result<bool> {
    let file = fs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
    let mut header = [0; 64];
    match read_exact_at(&*file, &mut header, 0) {
        Ok(()) => Ok(header == [0; 64]),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::io("read", path, error)),
    }
}
