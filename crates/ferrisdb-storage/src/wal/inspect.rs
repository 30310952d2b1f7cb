//! Looking into one segment file, for `inspect`: read-only, needs no other file, and goes on behind damage.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{
    FORMAT_VERSION, NoHeader, Place, RECORD_HEADER_LEN, RecordKind, SEGMENT_HEADER_LEN, SegmentHeader, WalPosition,
    framed_len, segment_file_name,
};
use super::recover::read_segment_header;
use super::scan::{Probe, SegmentScan};
use super::{Wal, WalOptions};
use crate::error::{Error, Result};
use crate::fs::{FileSystem, OpenMode};

/// What one record of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordInfo {
    /// Where it lies.
    pub position: WalPosition,
    /// What it is for.
    pub kind: RecordKind,
    /// Bytes of its payload.
    pub payload_bytes: u32,
    /// Its generation.
    pub generation: u16,
    /// Up to where the WAL was known synced when it was written.
    pub synced: WalPosition,
    /// The payload's checksum holds. (The header's does, or there would be nothing to show.)
    pub payload_ok: bool,
    /// It does not follow on the record before it: there is damage in between, or it is the remainder of a discarded tail.
    pub behind_gap: bool,
}

/// The records of one segment file, in order. What is called the end of the log is for recovery to say, which sees all segments;
/// here everything that has an intact header is shown, that behind a gap too.
#[derive(Debug)]
pub struct SegmentInspection {
    header: SegmentHeader,
    file_bytes: u64,
    scan: SegmentScan,
    offset: u32,
    generation: u16,
    /// Set at the first gap: intact headers behind it, last first.
    behind: Option<Vec<RecordInfo>>,
}

/// Opens a segment file to look into it.
///
/// # Errors
/// [`Error::Corruption`] if it has no intact segment header, such as one that was prepared and never used.
pub fn inspect_segment(fs: &dyn FileSystem, path: &Path) -> Result<SegmentInspection> {
    let file = fs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
    let header = match read_segment_header(file.as_ref(), path)? {
        Ok(header) => header,
        Err(NoHeader::Bad) => return Err(Error::corruption(path, 0, "segment header checksum, or an unused segment")),
        Err(NoHeader::TooNew(found)) => {
            return Err(Error::FormatTooNew { file: path.to_path_buf(), found, supported: FORMAT_VERSION });
        }
    };
    let file_bytes = file.len().map_err(|error| Error::io("read the length of", path, error))?;
    let place = Place { identity: header.identity, segment: header.number };
    let scan = SegmentScan::new(Arc::clone(&file), path.to_path_buf(), place);
    Ok(SegmentInspection { header, file_bytes, scan, offset: SEGMENT_HEADER_LEN, generation: 0, behind: None })
}

/// The records of a log that nobody has open of which the log itself proves that they were synced, each with its file and the bytes there that its checksums cover: a
/// flipped bit in one of them is corruption, and never a torn tail. For whoever injects that.
///
/// # Errors
/// As those of [`Wal::read_only`].
pub fn synced_records(fs: &Arc<dyn FileSystem>, dir: &Path, identity: u64) -> Result<Vec<(PathBuf, Range<u64>)>> {
    let options = WalOptions { identity, ..WalOptions::default() };
    let (mut reader, recovery) = Wal::read_only(Arc::clone(fs), dir, &options)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next()? {
        let start = u64::from(record.position.offset());
        let end = start + u64::from(RECORD_HEADER_LEN) + record.payload.len() as u64;
        records.push((record.position, start..end));
    }
    let path = |position: WalPosition| dir.join(segment_file_name(position.segment()));
    // The last segment has the highest mark, in its header or in one of its records.
    let mut synced = recovery.known_synced;
    if let Some(&(last, _)) = records.last() {
        for record in inspect_segment(fs.as_ref(), &path(last))? {
            let record = record?;
            synced = if record.behind_gap { synced } else { synced.max(record.synced) };
        }
    }
    let is_synced = |&(position, _): &(WalPosition, Range<u64>)| position < synced;
    Ok(records.into_iter().filter(is_synced).map(|(position, bytes)| (path(position), bytes)).collect())
}

impl SegmentInspection {
    /// What the segment says about itself.
    pub fn header(&self) -> SegmentHeader {
        self.header
    }

    /// The file's length in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Where the unbroken run of records ends, as far as it has been read.
    pub fn run_end(&self) -> WalPosition {
        WalPosition::new(self.header.number, self.offset)
    }

    /// The payload of the record that was returned last; of no meaning unless its [`RecordInfo::payload_ok`] is true.
    pub fn payload(&self) -> &[u8] {
        self.scan.payload()
    }

    fn step(&mut self) -> Result<Option<RecordInfo>> {
        if self.behind.is_none() {
            if let Probe::Record(header) = self.scan.probe(self.offset, u64::from(u32::MAX))?
                && header.generation >= self.generation
            {
                let position = self.run_end();
                self.offset += framed_len(header.payload_len);
                self.generation = header.generation;
                return Ok(Some(RecordInfo {
                    position,
                    kind: header.kind,
                    payload_bytes: header.payload_len,
                    generation: header.generation,
                    synced: header.synced,
                    payload_ok: true,
                    behind_gap: false,
                }));
            }
            let mut behind = Vec::new();
            self.scan.search_each(self.offset, u64::MAX, |offset, header| {
                behind.push(RecordInfo {
                    position: WalPosition::new(self.header.number, offset),
                    kind: header.kind,
                    payload_bytes: header.payload_len,
                    generation: header.generation,
                    synced: header.synced,
                    payload_ok: false,
                    behind_gap: true,
                });
            })?;
            behind.reverse();
            self.behind = Some(behind);
        }
        let Some(mut record) = self.behind.as_mut().and_then(Vec::pop) else { return Ok(None) };
        record.payload_ok = matches!(self.scan.probe(record.position.offset(), u64::from(u32::MAX))?, Probe::Record(_));
        Ok(Some(record))
    }
}

impl Iterator for SegmentInspection {
    type Item = Result<RecordInfo>;

    fn next(&mut self) -> Option<Result<RecordInfo>> {
        self.step().transpose()
    }
}
