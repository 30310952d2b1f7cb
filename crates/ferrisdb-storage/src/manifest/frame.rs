//! How edits lie in a manifest file: records of checksummed sectors.
//!
//! A disk tears writes at sectors of 512 bytes: after a crash a sector that was not synced is as it was written or as it was
//! before. Records are whole sectors, each with its own checksum, and sectors are written once in the life of a file. So a sector
//! that does not check out is one of two things, and they can be told apart:
//!
//! - **missing**: it was never completely written. It is zero, or the file ends within it. The guard or the kind is zero.
//! - **bad**: it was written, for guard and kind are there, and is not what was written. That is corruption, even at the very
//!   end of the file, where a log without sectors would take a flipped bit for a torn tail and silently lose the last edit.
//!
//! # Format
//! Sector 0, the header:
//!     0  8    magic
//!     8  u32  format version
//!    12  u64  manifest number, as in the file's name
//!    20  16   engine id
//!    36  …    zero
//!   507  u32  CRC-32C of bytes 0..507
//!   511  u8   guard, 0xA5
//!
//! Other sectors:
//!     0  u32  CRC-32C of the manifest number (u64), the sector's index in the file (u64), and bytes 4..512
//!     4  u16  payload bytes in this sector, 1..=504
//!     6  u8   kind: full 0x35, first 0x56, middle 0x6A, last 0x93
//!     7  …    payload, then zeros
//!   511  u8   guard, 0xA5
//!
//! A sector from another file or another place fails its checksum. Kinds differ in two bits or more from each other and from
//! zero, so one flipped bit cannot make a written sector look missing.
//!
//! # Torn tail or corruption
//! A record is appended only after the one before it was synced. So at most the last record can be incomplete after a crash.
//! - A missing sector in a record after which no other record begins: torn tail; the record was never acknowledged.
//! - A missing sector with the begin of a record after it, or a bad sector anywhere: corruption.

use super::edit::EngineId;

/// What a disk writes whole or not at all.
pub(crate) const SECTOR_BYTES: usize = 512;
/// "FERRISM" and a byte that no text file begins a line with, so that tools see a binary file.
pub(crate) const MAGIC: [u8; 8] = *b"FERRISM\xFA";
/// The format that this build writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

const PAYLOAD_AT: usize = 7;
const GUARD_AT: usize = SECTOR_BYTES - 1;
const PAYLOAD_BYTES_MAX: usize = GUARD_AT - PAYLOAD_AT;
const GUARD: u8 = 0xA5;
const HEADER_CHECKSUM_AT: usize = GUARD_AT - 4;

const FULL: u8 = 0x35;
const FIRST: u8 = 0x56;
const MIDDLE: u8 = 0x6A;
const LAST: u8 = 0x93;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// As in the file's name.
    pub manifest: u64,
    /// The engine that it belongs to.
    pub engine_id: EngineId,
}

/// Why a file's bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// At this offset.
    Corrupt(u64, &'static str),
    /// Written by a newer FerrisDB, in this format.
    TooNew(u32),
}

/// What a manifest file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frames {
    pub header: Header,
    /// The payloads of the complete records, with the offsets of their first sectors.
    pub records: Vec<(u64, Vec<u8>)>,
    /// Where the last complete record ends.
    pub end: u64,
    /// True if an incomplete record follows.
    pub torn: bool,
}

/// The first sector of a manifest.
pub(crate) fn encode_header(header: &Header) -> Vec<u8> {
    let mut sector = vec![0; SECTOR_BYTES];
    sector[..8].copy_from_slice(&MAGIC);
    sector[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    sector[12..20].copy_from_slice(&header.manifest.to_le_bytes());
    sector[20..36].copy_from_slice(&header.engine_id.0);
    let checksum = crc_fast::crc32_iscsi(&sector[..HEADER_CHECKSUM_AT]);
    sector[HEADER_CHECKSUM_AT..GUARD_AT].copy_from_slice(&checksum.to_le_bytes());
    sector[GUARD_AT] = GUARD;
    sector
}

/// The sectors of a record that begins at `offset`, a multiple of the sector size.
pub(crate) fn encode_record(manifest: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    debug_assert!(!payload.is_empty(), "an edit has a layout byte at least");
    debug_assert!(offset.is_multiple_of(SECTOR_BYTES as u64), "records begin at sectors");
    let count = payload.len().div_ceil(PAYLOAD_BYTES_MAX);
    let mut out = vec![0; count * SECTOR_BYTES];
    let parts = payload.chunks(PAYLOAD_BYTES_MAX).zip(out.chunks_mut(SECTOR_BYTES));
    for (position, (part, sector)) in parts.enumerate() {
        let kind = match (position == 0, position == count - 1) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        let len = u16::try_from(part.len()).expect("a part is at most 504 bytes long");
        sector[4..6].copy_from_slice(&len.to_le_bytes());
        sector[6] = kind;
        sector[PAYLOAD_AT..PAYLOAD_AT + part.len()].copy_from_slice(part);
        sector[GUARD_AT] = GUARD;
        let checksum = sector_checksum(manifest, offset / SECTOR_BYTES as u64 + position as u64, sector);
        sector[..4].copy_from_slice(&checksum.to_le_bytes());
    }
    out
}

/// Reads all that a manifest file holds.
pub(crate) fn decode(bytes: &[u8]) -> Result<Frames, FrameError> {
    let header = decode_header(bytes)?;
    let sectors: Vec<Sector<'_>> = bytes
        .chunks(SECTOR_BYTES)
        .enumerate()
        .skip(1)
        .map(|(index, sector)| decode_sector(header.manifest, index as u64, sector))
        .collect();
    let offset = |position: usize| ((position + 1) * SECTOR_BYTES) as u64;
    if let Some(position) = sectors.iter().position(|sector| matches!(sector, Sector::Bad)) {
        return Err(FrameError::Corrupt(offset(position), "manifest sector checksum"));
    }
    let mut frames = Frames { header, records: Vec::new(), end: SECTOR_BYTES as u64, torn: false };
    let mut at = 0;
    while at < sectors.len() {
        let mut payload = Vec::new();
        let mut position = at;
        let complete = loop {
            let (kind, part) = match sectors.get(position) {
                Some(Sector::Good(kind, part)) => (*kind, *part),
                Some(Sector::Missing | Sector::Bad) | None => break false,
            };
            let begins = matches!(kind, FULL | FIRST);
            if begins != (position == at) {
                return Err(FrameError::Corrupt(offset(position), "manifest sectors out of order"));
            }
            payload.extend_from_slice(part);
            position += 1;
            if matches!(kind, FULL | LAST) {
                break true;
            }
        };
        if !complete {
            let begins = |sector: &Sector<'_>| matches!(sector, Sector::Good(FULL | FIRST, _));
            if sectors.get(position..).is_some_and(|rest| rest.iter().any(begins)) {
                return Err(FrameError::Corrupt(offset(position), "manifest sector missing before a later record"));
            }
            frames.torn = true;
            return Ok(frames);
        }
        frames.records.push((offset(at), payload));
        at = position;
        frames.end = offset(at);
    }
    Ok(frames)
}

/// Reads the complete records before the first damage, and says what that is. An error only if there is not even a header.
pub(crate) fn decode_prefix(bytes: &[u8]) -> Result<(Frames, Option<FrameError>), FrameError> {
    let mut damage = None;
    let mut bytes = bytes;
    loop {
        match decode(bytes) {
            Err(FrameError::Corrupt(offset, what)) if offset >= SECTOR_BYTES as u64 => {
                // The damage lies in the bytes, so they get fewer each time.
                bytes = &bytes[..usize::try_from(offset).expect("an offset in a slice")];
                damage = Some(FrameError::Corrupt(offset, what));
            }
            decoded => return Ok((decoded?, damage)),
        }
    }
}

enum Sector<'a> {
    Good(u8, &'a [u8]),
    Missing,
    Bad,
}

fn decode_header(bytes: &[u8]) -> Result<Header, FrameError> {
    let sector = bytes.get(..SECTOR_BYTES).ok_or(FrameError::Corrupt(0, "manifest header: cut short"))?;
    if sector[..8] != MAGIC {
        return Err(FrameError::Corrupt(0, "manifest header: magic"));
    }
    let checksum = crc_fast::crc32_iscsi(&sector[..HEADER_CHECKSUM_AT]);
    if sector[HEADER_CHECKSUM_AT..GUARD_AT] != checksum.to_le_bytes() || sector[GUARD_AT] != GUARD {
        return Err(FrameError::Corrupt(0, "manifest header: checksum"));
    }
    let format = u32::from_le_bytes(sector[8..12].try_into().expect("the range has four bytes"));
    match format {
        FORMAT => {}
        0 => return Err(FrameError::Corrupt(8, "manifest header: format version")),
        _ => return Err(FrameError::TooNew(format)),
    }
    Ok(Header {
        manifest: u64::from_le_bytes(sector[12..20].try_into().expect("the range has eight bytes")),
        engine_id: EngineId(sector[20..36].try_into().expect("the range has sixteen bytes")),
    })
}

fn decode_sector(manifest: u64, index: u64, sector: &[u8]) -> Sector<'_> {
    if sector.len() < SECTOR_BYTES || sector[6] == 0 || sector[GUARD_AT] == 0 {
        return Sector::Missing;
    }
    if sector[..4] != sector_checksum(manifest, index, sector).to_le_bytes() {
        return Sector::Bad;
    }
    let kind = sector[6];
    let len = usize::from(u16::from_le_bytes([sector[4], sector[5]]));
    let known = matches!(kind, FULL | FIRST | MIDDLE | LAST) && (1..=PAYLOAD_BYTES_MAX).contains(&len);
    if known { Sector::Good(kind, &sector[PAYLOAD_AT..PAYLOAD_AT + len]) } else { Sector::Bad }
}

pub(super) fn sector_checksum(manifest: u64, index: u64, sector: &[u8]) -> u32 {
    let mut place = [0; 16 + SECTOR_BYTES - 4];
    place[..8].copy_from_slice(&manifest.to_le_bytes());
    place[8..16].copy_from_slice(&index.to_le_bytes());
    place[16..].copy_from_slice(&sector[4..SECTOR_BYTES]);
    crc_fast::crc32_iscsi(&place)
}
