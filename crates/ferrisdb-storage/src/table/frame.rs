//! How a block lies in the file: compressed or not, with a checksum that knows its place.
//!
//! # Format
//!   …    payload; if compressed, a varint with the uncompressed length comes first
//!   u8   compression: 0 none, 1 LZ4 block, 2 Zstandard frame
//!   u64  checksum: XXH3-64 of all of the above, XOR the mixed place
//!
//! The place is the table's id and the offset of the block in its file. A block that the disk returns from a wrong offset or
//! a wrong file has a right hash and a wrong place, and is told from the right one by that (misdirected reads and
//! writes are a fault of real disks).
//!
//! A block is stored compressed only if that saves an eighth (12.5 %): otherwise every later read would pay for nothing.

use std::cell::RefCell;
use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, get_varint, put_varint};
use xxhash_rust::xxh3::xxh3_64;

use super::block::BLOCK_BYTES_MAX;
use super::lz4;
use super::{Compression, TableId};
use crate::planted::{Bug, planted};

/// Bytes after the payload: compression and checksum.
pub(crate) const FRAME_TRAILER_BYTES: usize = 1 + 8;

const NONE: u8 = 0;
const LZ4: u8 = 1;
const ZSTD: u8 = 2;

/// Where a framed block lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockHandle {
    /// In bytes from the start of the file.
    pub offset: u64,
    /// In bytes, compression byte and checksum included. Zero: there is no such block.
    pub len: u64,
}

impl BlockHandle {
    /// Where the block ends; `None` if that is past 2^64.
    pub(super) fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// Mixes a place into 64 bits; for one table a bijection of the offset (the finaliser of SplitMix64, twice).
pub(super) fn place(id: TableId, offset: u64) -> u64 {
    fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    if planted(Bug::BlockPlaceIgnored) {
        return 0;
    }
    mix(mix(id.0.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_add(offset))
}

/// Compresses blocks, keeping its working memory.
pub(crate) struct Compressor {
    compression: Compression,
    lz4: Option<lz4::Positions>,
    /// For blocks that are too long for ours.
    lz4_long: Option<lz4_flex::block::CompressTable>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Compressor {
    pub(crate) fn new(compression: Compression) -> Compressor {
        Compressor { compression, lz4: None, lz4_long: None, zstd: None, scratch: Vec::new() }
    }

    /// Compresses `raw` into the scratch buffer: the kind and the length there, or `None` where it does not pay.
    fn compress(&mut self, raw: &[u8]) -> Option<(u8, usize)> {
        let worth = raw.len() - raw.len() / 8;
        let (kind, len) = match self.compression {
            Compression::None => return None,
            Compression::Lz4 if raw.len() <= lz4::INPUT_BYTES_MAX => {
                self.scratch.clear();
                lz4::compress(raw, self.lz4.get_or_insert_default(), &mut self.scratch);
                (LZ4, self.scratch.len())
            }
            Compression::Lz4 => {
                let bound = lz4_flex::block::get_maximum_output_size(raw.len());
                if self.scratch.len() < bound {
                    self.scratch.resize(bound, 0);
                }
                let table = self.lz4_long.get_or_insert_default();
                let len = lz4_flex::block::compress_into_with_table(raw, &mut self.scratch, table);
                (LZ4, len.expect("the buffer has the length that the library asks for"))
            }
            Compression::Zstd { level } => {
                // What does not fit into `worth` bytes is not wanted, so a buffer that is too short is an answer, too.
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(level).ok();
                }
                self.scratch.resize(worth.max(self.scratch.len()), 0);
                let len = self.zstd.as_mut()?.compress_to_buffer(raw, &mut self.scratch[..worth]).ok()?;
                (ZSTD, len)
            }
        };
        (len <= worth).then_some((kind, len))
    }

    /// Appends the framed block that will lie at `offset` of table `id`.
    pub(crate) fn frame(&mut self, raw: &[u8], id: TableId, offset: u64, out: &mut Vec<u8>) -> BlockHandle {
        let start = out.len();
        match self.compress(raw) {
            Some((kind, len)) => {
                put_varint(out, raw.len() as u64);
                out.extend_from_slice(&self.scratch[..len]);
                out.push(kind);
            }
            None => {
                out.extend_from_slice(raw);
                out.push(NONE);
            }
        }
        let checksum = xxh3_64(&out[start..]) ^ place(id, offset);
        out.extend_from_slice(&checksum.to_le_bytes());
        BlockHandle { offset, len: (out.len() - start) as u64 }
    }
}

/// The compression of a framed block, for inspection.
pub(crate) fn compression_name(frame: &[u8]) -> &'static str {
    match frame.len().checked_sub(FRAME_TRAILER_BYTES).map(|at| frame[at]) {
        Some(NONE) => "none",
        Some(LZ4) => "lz4",
        Some(ZSTD) => "zstd",
        _ => "unknown",
    }
}

/// Checks a framed block and takes the payload out of it.
pub(super) fn open_frame(frame: &[u8], id: TableId, offset: u64) -> Result<Box<[u8]>, DecodeError> {
    let (kind, payload) = check_frame(frame, id, offset, Bug::IgnoreBlockChecksum)?;
    unpack(kind, payload)
}

/// As [`open_frame`], for a payload that will be shared.
pub(crate) fn open_frame_shared(frame: &[u8], id: TableId, offset: u64) -> Result<Arc<[u8]>, DecodeError> {
    match check_frame(frame, id, offset, Bug::IgnoreBlobChecksum)? {
        (NONE, payload) => Ok(payload.into()),
        (kind, payload) => unpack(kind, payload).map(Arc::from),
    }
}

/// Checks a framed block; its kind of compression and the payload as it is stored. `ignored_by` is the planted bug that takes the check away.
fn check_frame(frame: &[u8], id: TableId, offset: u64, ignored_by: Bug) -> Result<(u8, &[u8]), DecodeError> {
    let (body, stored) = frame.split_last_chunk::<8>().ok_or(DecodeError { what: "block: checksum" })?;
    if xxh3_64(body) ^ place(id, offset) != u64::from_le_bytes(*stored) && !planted(ignored_by) {
        return Err(DecodeError { what: "block: checksum (wrong bytes, or a block of another place)" });
    }
    let (&kind, payload) = body.split_last().ok_or(DecodeError { what: "block: compression kind" })?;
    Ok((kind, payload))
}

const BAD_LENGTH: DecodeError = DecodeError { what: "block: uncompressed length" };

/// Decompresses a payload.
pub(super) fn unpack(kind: u8, payload: &[u8]) -> Result<Box<[u8]>, DecodeError> {
    const BAD_DATA: DecodeError = DecodeError { what: "block: compressed data" };
    if kind == NONE {
        return Ok(payload.into());
    }
    let (len, data) = uncompressed_len(kind, payload)?;
    let mut out = vec![0; len];
    let written = match kind {
        LZ4 => lz4_flex::block::decompress_into(data, &mut out).map_err(|_| BAD_DATA)?,
        _ => zstd_decompress(data, &mut out).ok_or(BAD_DATA)?,
    };
    if written == len { Ok(out.into_boxed_slice()) } else { Err(BAD_LENGTH) }
}

/// The length that a payload claims, and the compressed data. The claim is held against what the data can expand to before
/// anyone allocates by it.
pub(super) fn uncompressed_len(kind: u8, payload: &[u8]) -> Result<(usize, &[u8]), DecodeError> {
    let (len, used) = get_varint(payload).ok_or(BAD_LENGTH)?;
    let len = usize::try_from(len).ok().filter(|&len| len <= BLOCK_BYTES_MAX).ok_or(BAD_LENGTH)?;
    let data = &payload[used..];
    // One byte of LZ4 stands for at most 255 bytes; four of Zstandard (a run-length block) for 128 KiB.
    let expansion_max = match kind {
        LZ4 => 255,
        ZSTD => 32 << 10,
        _ => return Err(DecodeError { what: "block: compression kind" }),
    };
    if len <= data.len().saturating_mul(expansion_max) { Ok((len, data)) } else { Err(BAD_LENGTH) }
}

fn zstd_decompress(data: &[u8], out: &mut [u8]) -> Option<usize> {
    // A context is some hundred kilobytes, so a thread keeps the one that it made.
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = zstd::bulk::Decompressor::new().ok();
        }
        context.as_mut()?.decompress_to_buffer(data, out).ok()
    })
}
