//! [`LargeValues`]: where the values of a flush or a compaction go, the table or a blob file.
//!
//! A value at or above the threshold is appended to the run's blob file. A pointer that comes from an input stays as it is, unless its
//! file is among those to be emptied: then the value is read and treated like a new one, so it may also end up in the table, if the threshold was
//! raised since.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::Core;
use super::blobs::Blobs;
use super::files;
use crate::blob::BlobWriter;
use crate::error::{Error, Result};
use crate::fs::OpenMode;
use crate::key::ValueKind;
use crate::manifest::{BlobMeta, FileNumber};
use crate::table::{Compression, ReadMode};

/// Bytes of a value that cost a step as much as an entry does.
const BYTES_PER_ENTRY: u64 = 1 << 10;

pub(super) struct LargeValues {
    /// Shorter values stay in the table.
    threshold: usize,
    compression: Compression,
    /// A blob file is finished once it has this many bytes.
    file_bytes: u64,
    /// Where the pointers of the inputs lead.
    inputs: Arc<Blobs>,
    /// Files to empty, ascending.
    relocate: Vec<FileNumber>,
    writer: Option<BlobWriter>,
    finished: Vec<BlobMeta>,
    /// Bytes of records, by file, that the table being written refers to.
    references: BTreeMap<FileNumber, u64>,
    /// Bytes of values read and written since they were last asked for.
    moved_bytes: u64,
    relocated_bytes: u64,
    /// The value relocated last, and the pointer written last.
    value: Option<Arc<[u8]>>,
    pointer: Vec<u8>,
}

impl LargeValues {
    /// For a run whose inputs are tables of the current view.
    pub(super) fn new(core: &Core, level: usize, mut relocate: Vec<FileNumber>) -> LargeValues {
        relocate.sort_unstable();
        LargeValues {
            threshold: core.options.blob_value_bytes.unwrap_or(usize::MAX),
            compression: core.options.compression[level],
            file_bytes: core.options.blob_file_bytes(),
            inputs: Arc::clone(&core.view.read().blobs),
            relocate,
            writer: None,
            finished: Vec::new(),
            references: BTreeMap::new(),
            moved_bytes: 0,
            relocated_bytes: 0,
            value: None,
            pointer: Vec::new(),
        }
    }

    /// What the table is to hold for an entry: its own value, or a pointer.
    #[inline]
    pub(super) fn place<'a>(
        &'a mut self,
        core: &Core,
        written: &mut Vec<PathBuf>,
        kind: ValueKind,
        value: &'a [u8],
    ) -> Result<(ValueKind, &'a [u8])> {
        match kind {
            ValueKind::Value if value.len() >= self.threshold => self.append(core, written, value),
            ValueKind::BlobPointer => self.keep_or_relocate(core, written, value),
            _ => Ok((kind, value)),
        }
    }

    fn append<'a>(
        &'a mut self,
        core: &Core,
        written: &mut Vec<PathBuf>,
        value: &[u8],
    ) -> Result<(ValueKind, &'a [u8])> {
        if self.writer.as_ref().is_some_and(|writer| writer.file_bytes() >= self.file_bytes) {
            self.finish_file()?;
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let number = core.allocate_file_number();
                let path = files::blob_path(&core.dir, number);
                let file =
                    core.env.fs.open(&path, OpenMode::CreateNew).map_err(|error| Error::io("create", &path, error))?;
                written.push(path.clone());
                none.insert(BlobWriter::new(file, &path, core.tables.engine_id, number, self.compression))
            }
        };
        let pointer = writer.append(value)?;
        *self.references.entry(pointer.number).or_default() += pointer.record_bytes;
        self.moved_bytes += pointer.value_bytes;
        self.pointer.clear();
        pointer.encode(&mut self.pointer);
        Ok((ValueKind::BlobPointer, &self.pointer))
    }

    fn keep_or_relocate<'a>(
        &'a mut self,
        core: &Core,
        written: &mut Vec<PathBuf>,
        encoded: &'a [u8],
    ) -> Result<(ValueKind, &'a [u8])> {
        let pointer = self.inputs.decode(encoded)?;
        if self.relocate.binary_search(&pointer.number).is_err() {
            *self.references.entry(pointer.number).or_default() += pointer.record_bytes;
            return Ok((ValueKind::BlobPointer, encoded));
        }
        let value = self.inputs.read(encoded, ReadMode::Compaction)?;
        self.moved_bytes += pointer.value_bytes;
        self.relocated_bytes += pointer.record_bytes;
        if value.len() >= self.threshold {
            return self.append(core, written, &value);
        }
        Ok((ValueKind::Value, self.value.insert(value)))
    }

    /// The files and bytes that the entries since the last call refer to: of a table that was just finished.
    pub(super) fn take_references(&mut self) -> Vec<(FileNumber, u64)> {
        std::mem::take(&mut self.references).into_iter().collect()
    }

    /// What handling values has cost since the last call, in entries.
    #[inline]
    pub(super) fn take_cost(&mut self) -> usize {
        let cost = std::mem::take(&mut self.moved_bytes) / BYTES_PER_ENTRY;
        usize::try_from(cost).unwrap_or(usize::MAX)
    }

    fn finish_file(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            self.finished.push(writer.finish()?);
        }
        Ok(())
    }

    /// Writes and syncs everything; the caller syncs the directory.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.finish_file()
    }

    /// The files written, once it is finished.
    pub(super) fn outputs(&self) -> &[BlobMeta] {
        &self.finished
    }

    /// Bytes of the file that is being written.
    pub(super) fn unfinished_bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, BlobWriter::file_bytes)
    }

    /// Bytes of the records that were written anew because their file is to be emptied.
    pub(super) fn relocated_bytes(&self) -> u64 {
        self.relocated_bytes
    }
}
