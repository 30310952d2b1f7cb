//! The end of a table file: what it is, and where everything lies.
//!
//! # Format, little-endian
//! ```text
//!   0  u64  table id
//!   8  u64  data end: the data blocks are in 0..data end
//!  16  u64 × 2  index: offset, length (the top index, if there are two levels)
//!  32  u64 × 2  filter; length 0: none
//!  48  u64 × 2  range tombstones; length 0: none
//!  64  u64 × 2  properties
//!  80  u32  index levels: 1 or 2
//!  84  u32  reserved, zero
//!  88  u32  length of the footer: 112
//!  92  u32  format version
//!  96  u64  checksum: XXH3-64 of everything above
//! 104  8 B  magic: 0x89, "FERRIST"
//! ```
//!
//! The last 24 bytes stay where they are in every later format version: an older reader finds the version, proves it by the
//! checksum over the length that stands there, and can say "too new" without taking a flipped bit for the future.

use ferrisdb_core::codec::{Decoder, put_u32, put_u64};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

use super::TableId;
use super::frame::BlockHandle;
use crate::error::{Error, Result};

/// The format version that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const FOOTER_BYTES: usize = 112;

/// The first byte is no text, so that nobody takes a table for text or the other way round.
pub(super) const MAGIC: [u8; 8] = *b"\x89FERRIST";

/// Length, version, checksum, magic.
const TAIL_BYTES: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) id: TableId,
    pub(super) data_end: u64,
    pub(super) index: BlockHandle,
    pub(super) filter: BlockHandle,
    pub(super) tombstones: BlockHandle,
    pub(super) properties: BlockHandle,
    pub(super) index_levels: u32,
}

impl Footer {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        put_u64(out, self.id.0);
        put_u64(out, self.data_end);
        for handle in [self.index, self.filter, self.tombstones, self.properties] {
            put_u64(out, handle.offset);
            put_u64(out, handle.len);
        }
        put_u32(out, self.index_levels);
        put_u32(out, 0);
        put_u32(out, u32::try_from(FOOTER_BYTES).expect("112 fits"));
        put_u32(out, FORMAT_VERSION);
        let checksum = xxh3_64(&out[start..]);
        put_u64(out, checksum);
        out.extend_from_slice(&MAGIC);
    }

    /// Reads the footer from the last bytes of a file of `file_bytes`.
    pub(super) fn decode(tail: &[u8], path: &Path, file_bytes: u64) -> Result<Footer> {
        let bad = |what: &str| Error::corruption(path, file_bytes.saturating_sub(FOOTER_BYTES as u64), what);
        let (body, end) = tail.split_last_chunk::<TAIL_BYTES>().ok_or_else(|| bad("footer: the file is too short"))?;
        let word = |at: usize| u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]);
        if end[16..] != MAGIC {
            return Err(bad("footer: magic; this is not a table, or its end is lost"));
        }
        let (len, version) = (word(0) as usize, word(4));
        let checksum = u64::from_le_bytes(end[8..16].try_into().expect("a slice of eight bytes"));
        let covered = len.checked_sub(16).and_then(|covered| {
            let all = &tail[..tail.len() - 16];
            all.len().checked_sub(covered).map(|start| &all[start..])
        });
        match covered {
            Some(covered) if len >= TAIL_BYTES && xxh3_64(covered) == checksum => {}
            _ => return Err(bad("footer: checksum")),
        }
        if version > FORMAT_VERSION {
            return Err(Error::FormatTooNew { file: path.into(), found: version, supported: FORMAT_VERSION });
        }
        if version == 0 || len != FOOTER_BYTES {
            return Err(bad("footer: format version or length"));
        }
        let fields = &body[body.len() - (FOOTER_BYTES - TAIL_BYTES)..];
        Footer::decode_fields(fields, file_bytes).map_err(|error| bad(error.what))
    }

    fn decode_fields(fields: &[u8], file_bytes: u64) -> std::result::Result<Footer, ferrisdb_core::codec::DecodeError> {
        let bad = |what| ferrisdb_core::codec::DecodeError { what };
        let mut decoder = Decoder::new(fields);
        let id = TableId(decoder.u64("footer: table id")?);
        let data_end = decoder.u64("footer: data end")?;
        let mut handle = || {
            let (offset, len) = (decoder.u64("footer: offset")?, decoder.u64("footer: length")?);
            let handle = BlockHandle { offset, len };
            let end = handle.end().filter(|&end| end <= file_bytes - FOOTER_BYTES as u64);
            end.filter(|_| len == 0 || offset >= data_end).map(|_| handle).ok_or(bad("footer: block handle"))
        };
        let (index, filter, tombstones, properties) = (handle()?, handle()?, handle()?, handle()?);
        let index_levels = decoder.u32("footer: index levels")?;
        if !(1..=2).contains(&index_levels) || index.len == 0 || properties.len == 0 {
            return Err(bad("footer: index levels or a missing block"));
        }
        Ok(Footer { id, data_end, index, filter, tombstones, properties, index_levels })
    }
}
