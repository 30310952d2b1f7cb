//! One blob file: its header, what the manifest says about it, and the values in it.
//!
//! A blob file has no index: a record is reached through a pointer in a table only. So the records are told from the tables that the manifest of
//! the file's directory names, and what none of them points to is garbage. Of a file that was copied elsewhere, or that the manifest does not name,
//! there is only the header to tell.

use std::path::Path;
use std::sync::Arc;

use super::{Cell, Sink, file_fields, shown};
use crate::blob::BlobPointer;
use crate::blob::format::{FORMAT_VERSION, HEADER_BYTES, Header, decode_header, open_record};
use crate::cache::BlockCache;
use crate::engine::files::{FileKind, file_kind, table_path};
use crate::error::{Error, Result};
use crate::fs::{File, FileSystem, OpenMode, read_exact_at};
use crate::key::ValueKind;
use crate::manifest::current::CURRENT;
use crate::manifest::{FileNumber, ManifestState, log};
use crate::table::{TableId, TableReader, compression_name};

/// A record, and the entry that it belongs to.
struct Record {
    pointer: BlobPointer,
    table: FileNumber,
    key: Vec<u8>,
    version: ferrisdb_core::Version,
}

/// Tells what is in a blob file. Damaged records are told as such, and the rest is told all the same.
///
/// # Errors
/// [`Error::Corruption`] for the first damage in this file, in the tables that point into it, or in the manifest beside it, and if the file is another blob file than
/// its name says; [`Error::FormatTooNew`], [`Error::Io`], and the sink's.
pub fn blob(fs: &dyn FileSystem, path: &Path, sink: &mut dyn Sink) -> Result<()> {
    let file_bytes = file_fields(fs, path, sink)?;
    let file = fs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
    let header = decode_header(&read(&*file, path, 0, HEADER_BYTES.min(file_bytes))?, path)?;
    sink.field("blob_file", header.number.0.into())?;
    sink.field("format_version", FORMAT_VERSION.into())?;
    let engine: String = header.engine.0.iter().map(|byte| format!("{byte:02x}")).collect();
    sink.field("engine", engine.as_str().into())?;

    let dir = path.parent().unwrap_or(Path::new(""));
    let state = state_beside(fs, dir, header);
    let live = state.as_ref().ok().and_then(|state| state.as_ref()?.blobs.get(&header.number).copied());
    let name = match (&state, live) {
        (Ok(Some(_)), Some(_)) => Some("live"),
        (Ok(Some(_)), None) => Some("leftover"),
        _ => None,
    };
    sink.field("state", name.into())?;
    sink.field("garbage_bytes", live.map(|live| live.garbage_bytes).into())?;

    sink.table(
        "records",
        &["offset", "bytes", "compression", "intact", "table", "key", "version", "value_bytes", "value"],
    )?;
    let mut damage = None;
    if let (Ok(Some(state)), Some(_)) = (&state, live) {
        let (mut records, tables) = records_of(fs, dir, state, header.number)?;
        records.sort_by_key(|record| record.pointer);
        for record in records {
            let told = tell(&*file, path, file_bytes, &record, sink)?;
            damage = damage.or(told);
        }
        damage = damage.or(tables);
    }
    state?;
    if let FileKind::Blob(named) = file_kind(path)
        && named != header.number
    {
        let what = format!("this is blob file {}, not {named}: the file was put in its place", header.number.0);
        return Err(Error::corruption(path, 0, what));
    }
    damage.map_or(Ok(()), Err)
}

/// What the manifest in the file's directory says, if there is one and it is the same engine's.
fn state_beside(fs: &dyn FileSystem, dir: &Path, header: Header) -> Result<Option<ManifestState>> {
    let current = dir.join(CURRENT);
    if !fs.exists(&current).map_err(|error| Error::io("open", &current, error))? {
        return Ok(None);
    }
    Ok(Some(log::read(fs, dir)?.state).filter(|state| state.engine_id == header.engine))
}

/// The pointers into blob file `number`, and the first damage of a table that has some.
fn records_of(
    fs: &dyn FileSystem,
    dir: &Path,
    state: &ManifestState,
    number: FileNumber,
) -> Result<(Vec<Record>, Option<Error>)> {
    let cache = Arc::new(BlockCache::new(1 << 20));
    let mut records = Vec::new();
    let mut damage = None;
    let refers = state.tables.iter().filter(|(_, (_, meta))| meta.blob_references.iter().any(|(to, _)| *to == number));
    for (table, (_, meta)) in refers {
        let path = table_path(dir, *table);
        let read = TableReader::open(fs, &path, TableId(table.0), meta.file_bytes, &cache).and_then(|reader| {
            reader.inspect(
                |_| Ok(()),
                |entry| {
                    if entry.key.trailer.kind() == Some(ValueKind::BlobPointer) {
                        let pointer = BlobPointer::decode(entry.value)
                            .map_err(|error| Error::decode(&path, entry.handle.offset, error))?;
                        if pointer.number == number {
                            let (key, version) = (entry.key.user_key.to_vec(), entry.key.trailer.version());
                            records.push(Record { pointer, table: *table, key, version });
                        }
                    }
                    Ok(())
                },
            )
        });
        match read {
            Err(error) if error.is_corruption() => drop(damage.get_or_insert(error)),
            read => read?,
        }
    }
    Ok((records, damage))
}

/// Tells a record, and says what is wrong with it.
fn tell(file: &dyn File, path: &Path, file_bytes: u64, record: &Record, sink: &mut dyn Sink) -> Result<Option<Error>> {
    let pointer = &record.pointer;
    let framed = if pointer.end() <= file_bytes {
        read(file, path, pointer.offset, pointer.record_bytes)
    } else {
        Err(Error::corruption(path, pointer.offset, "a blob pointer leads past the end of the file"))
    };
    let compression = framed.as_ref().ok().map(|framed| compression_name(framed));
    let value = framed
        .and_then(|framed| open_record(&framed, pointer).map_err(|error| Error::decode(path, pointer.offset, error)));
    sink.row(&[
        pointer.offset.into(),
        pointer.record_bytes.into(),
        compression.into(),
        value.is_ok().into(),
        record.table.0.into(),
        record.key.as_slice().into(),
        record.version.into(),
        pointer.value_bytes.into(),
        value.as_ref().map_or(Cell::Absent, |value| shown(value)),
    ])?;
    match value {
        Ok(_) => Ok(None),
        Err(error) if error.is_corruption() => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

fn read(file: &dyn File, path: &Path, offset: u64, len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| Error::corruption(path, offset, "blob record: length"))?;
    let mut bytes = vec![0; len];
    read_exact_at(file, &mut bytes, offset).map_err(|error| Error::io("read", path, error))?;
    Ok(bytes)
}
