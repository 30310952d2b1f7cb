//! The bytes of a blob file, and of the pointers into it.
//!
//! # Format, little-endian
//! ```text
//! header     0  8 B   magic: 0x89, "FERRISB"
//!            8  u32   format version: 1
//!           12  u32   reserved, zero
//!           16  16 B  engine id
//!           32  u64   file number
//!           40  u64   checksum: XXH3-64 of everything above
//! records   48  …     back to back until the end of the file
//! ```
//! A record is framed like a block of a table (`table/frame.rs`): the value, compressed where that pays, and a checksum that knows the file
//! number and the offset, so that a record read from a wrong file or place is told from the right one. Tables and blob files share
//! one sequence of numbers.
//!
//! There is no footer: a record is reached through pointers only, and the manifest knows the length of the file. A record does not
//! name its key: what is live is decided by the tables, never by reading a blob file.
//!
//! The header keeps its length and its checksum in all later versions: an older reader can prove it and say "too new".
//!
//! A pointer is the value of an entry of kind [`ValueKind::BlobPointer`](crate::key::ValueKind::BlobPointer), four varints: file number, offset
//! of the record, its length in the file, the length of the value.

use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, Decoder, put_u32, put_u64, put_varint};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::key::VALUE_BYTES_MAX;
use crate::manifest::{EngineId, FileNumber};
use crate::table::{Compressor, FRAME_TRAILER_BYTES, TableId, open_frame_shared};

/// The format version that this build writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The length of the header.
pub(crate) const HEADER_BYTES: u64 = 48;

/// The first byte is no text, so that nobody takes a blob file for text or the other way round.
const MAGIC: [u8; 8] = *b"\x89FERRISB";

/// Bytes of the header that its checksum covers.
const COVERED_BYTES: usize = 40;

pub(crate) fn encode_header(engine: EngineId, number: FileNumber, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    put_u32(out, FORMAT_VERSION);
    put_u32(out, 0);
    out.extend_from_slice(&engine.0);
    put_u64(out, number.0);
    let checksum = xxh3_64(&out[start..]);
    put_u64(out, checksum);
}

/// Whose file it is, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) engine: EngineId,
    pub(crate) number: FileNumber,
}

/// Proves and reads a header.
pub(crate) fn decode_header(header: &[u8], path: &Path) -> Result<Header> {
    let bad = |what: &str| Err(Error::corruption(path, 0, what));
    let decode = || -> std::result::Result<_, DecodeError> {
        let mut decoder = Decoder::new(header);
        let covered = decoder.take(COVERED_BYTES, "blob file header")?;
        let checksum = decoder.u64("blob file header: checksum")?;
        decoder.finish("blob file header: length")?;
        let mut decoder = Decoder::new(covered);
        let magic = decoder.take(MAGIC.len(), "blob file header: magic")?;
        let version = decoder.u32("blob file header: format version")?;
        let reserved = decoder.u32("blob file header: reserved")?;
        let mut engine = [0; 16];
        engine.copy_from_slice(decoder.take(16, "blob file header: engine id")?);
        let number = FileNumber(decoder.u64("blob file header: number")?);
        let header = Header { engine: EngineId(engine), number };
        Ok((magic, xxh3_64(covered) == checksum, version, reserved, header))
    };
    let (magic, proven, version, reserved, header) = decode().map_err(|error| Error::decode(path, 0, error))?;
    if magic != MAGIC {
        return bad("blob file header: magic; this is not a blob file, or its beginning is lost");
    }
    if !proven {
        return bad("blob file header: checksum");
    }
    if version > FORMAT_VERSION {
        return Err(Error::FormatTooNew { file: path.into(), found: version, supported: FORMAT_VERSION });
    }
    if version == 0 || reserved != 0 {
        return bad("blob file header: format version or reserved bytes");
    }
    Ok(header)
}

/// Checks that `header` begins blob file `number` of this engine.
pub(crate) fn check_header(header: &[u8], path: &Path, engine: EngineId, number: FileNumber) -> Result<()> {
    let found = decode_header(header, path)?;
    if found.engine != engine {
        return Err(Error::corruption(path, 0, "blob file header: this is another engine's file"));
    }
    if found.number != number {
        let what = format!("this is blob file {}, not {}: the file was put in its place", found.number.0, number.0);
        return Err(Error::corruption(path, 0, what));
    }
    Ok(())
}

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlobPointer {
    pub(crate) number: FileNumber,
    /// Of the record, in bytes from the start of the file.
    pub(crate) offset: u64,
    /// The record's length in the file.
    pub(crate) record_bytes: u64,
    /// The value's length.
    pub(crate) value_bytes: u64,
}

impl BlobPointer {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.number.0, self.offset, self.record_bytes, self.value_bytes] {
            put_varint(out, number);
        }
    }

    /// Reads a pointer from exactly `bytes`. What it returns can be followed without overflow; whether it points anywhere, the file
    /// says.
    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<BlobPointer, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let pointer = BlobPointer {
            number: FileNumber(decoder.varint("blob pointer: file number")?),
            offset: decoder.varint("blob pointer: offset")?,
            record_bytes: decoder.varint("blob pointer: record length")?,
            value_bytes: decoder.varint("blob pointer: value length")?,
        };
        decoder.finish("blob pointer: bytes after its end")?;
        let what = pointer.problem();
        what.map_or(Ok(pointer), |what| Err(DecodeError { what }))
    }

    fn problem(&self) -> Option<&'static str> {
        if self.offset < HEADER_BYTES || self.offset.checked_add(self.record_bytes).is_none() {
            return Some("blob pointer: offset");
        }
        if self.value_bytes > VALUE_BYTES_MAX as u64 {
            return Some("blob pointer: value length");
        }
        // What does not shrink is stored as it is.
        let longest = self.value_bytes + FRAME_TRAILER_BYTES as u64;
        if !(FRAME_TRAILER_BYTES as u64..=longest).contains(&self.record_bytes) {
            return Some("blob pointer: record length");
        }
        None
    }

    /// Where the record ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.record_bytes
    }
}

/// Appends the record of `value`, which will lie at `offset` of file `number`.
pub(crate) fn append_record(
    compressor: &mut Compressor,
    value: &[u8],
    number: FileNumber,
    offset: u64,
    out: &mut Vec<u8>,
) -> BlobPointer {
    let handle = compressor.frame(value, TableId(number.0), offset, out);
    BlobPointer { number, offset, record_bytes: handle.len, value_bytes: value.len() as u64 }
}

/// Takes the value out of the record that `pointer` points to.
pub(crate) fn open_record(record: &[u8], pointer: &BlobPointer) -> std::result::Result<Arc<[u8]>, DecodeError> {
    let value = open_frame_shared(record, TableId(pointer.number.0), pointer.offset)?;
    if value.len() as u64 == pointer.value_bytes {
        Ok(value)
    } else {
        Err(DecodeError { what: "blob record: the value's length is not what the pointer says" })
    }
}
