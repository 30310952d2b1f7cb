//! Writes a blob file: [`BlobWriter`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BlobPointer;
use super::format::{append_record, encode_header};
use crate::error::{Error, Result};
use crate::fs::{File, write_all_at};
use crate::manifest::{BlobMeta, EngineId, FileNumber};
use crate::planted::{Bug, planted};
use crate::table::{Compression, Compressor};

/// Records are collected up to this many bytes before they are written: large enough that a call costs little beside the copy.
const WRITE_BYTES: usize = 256 << 10;

/// A blob file that is being written. Dropping it leaves a file that no manifest names.
pub(crate) struct BlobWriter {
    file: Arc<dyn File>,
    path: PathBuf,
    number: FileNumber,
    compressor: Compressor,
    /// Records that are not written yet.
    out: Vec<u8>,
    /// Bytes written to the file.
    written: u64,
}

impl BlobWriter {
    /// For a new, empty file.
    pub(crate) fn new(
        file: Arc<dyn File>,
        path: &Path,
        engine: EngineId,
        number: FileNumber,
        compression: Compression,
    ) -> BlobWriter {
        let mut out = Vec::new();
        encode_header(engine, number, &mut out);
        BlobWriter { file, path: path.to_path_buf(), number, compressor: Compressor::new(compression), out, written: 0 }
    }

    /// The length of the file if it were finished now.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    /// Adds a value. After an error the writer is of no use.
    pub(crate) fn append(&mut self, value: &[u8]) -> Result<BlobPointer> {
        let offset = self.file_bytes();
        let pointer = append_record(&mut self.compressor, value, self.number, offset, &mut self.out);
        if self.out.len() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(pointer)
    }

    fn write(&mut self) -> Result<()> {
        write_all_at(&*self.file, &self.out, self.written).map_err(|error| Error::io("write", &self.path, error))?;
        self.written += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    /// Writes the rest and syncs the file. The caller syncs the directory.
    pub(crate) fn finish(mut self) -> Result<BlobMeta> {
        self.write()?;
        if !planted(Bug::ForgetToSyncBlob) {
            self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))?;
        }
        Ok(BlobMeta { number: self.number, file_bytes: self.written })
    }
}
