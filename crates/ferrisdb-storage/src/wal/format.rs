//! The bytes of a WAL segment: its header, and the header of each record. Golden tests hold them.
//!
//! # Format (version 1; all numbers little-endian)
//! ```text
//! segment header, 64 bytes, in one disk sector so that it cannot be torn
//!   0  8    magic "FERRISW" and 0xA5
//!   8  u32  format version
//!  12  u32  zero
//!  16  u64  identity of the WAL, as given at open
//!  24  u32  segment number
//!  28  u32  number of the segment before it in the log; 0 = none, this is the first
//!  32  u32  offset at which the log leaves the segment before it
//!  36  u32  zero
//!  40  u64  position up to which the WAL was known synced when this was written
//!  48  12   zero
//!  60  u32  CRC-32C of bytes 0..60
//!
//! record, at a multiple of 8
//!   0  u32  CRC-32C of identity, segment number, offset (none of them stored) and bytes 4..24
//!   4  u32  CRC-32C of the payload
//!   8  u32  payload length
//!  12  u16  generation: never decreases within a segment
//!  14  u8   kind: 1 record, 2 mark (no payload; says only how far the WAL is synced)
//!  15  u8   zero
//!  16  u64  position up to which the WAL was known synced when this was written
//!  24  …    payload, then zeros up to a multiple of 8
//! ```
//! The header has a checksum of its own so that its length can be trusted before a gigabyte is read for it, and so that
//! a search for later headers behind a bad record costs 36 bytes of CRC for each plausible place. The payload is bound to
//! its place through the header, which covers the payload's checksum.

use std::fmt;

use crate::planted::{Bug, planted};
use ferrisdb_core::codec::Decoder;

/// The first bytes of every segment.
pub(super) const MAGIC: [u8; 8] = *b"FERRISW\xA5";
/// What this build writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u32 = 1;
/// The segment header's length in bytes; the first record begins here.
pub(super) const SEGMENT_HEADER_LEN: u32 = 64;
/// A record header's length in bytes.
pub(super) const RECORD_HEADER_LEN: u32 = 24;
/// Records begin at multiples of this, so that the search for later headers tries one place in eight.
pub(super) const ALIGNMENT: u32 = 8;

/// The longest payload of one record: 1 GiB. With its header and a segment header it stays far below the 4 GiB that an
/// offset can name.
pub const RECORD_PAYLOAD_MAX: usize = 1 << 30;

const _: () =
    assert!(RECORD_PAYLOAD_MAX as u64 + (SEGMENT_HEADER_LEN + RECORD_HEADER_LEN) as u64 <= u32::MAX as u64 / 2);
const _: () = assert!(SEGMENT_HEADER_LEN.is_multiple_of(ALIGNMENT) && RECORD_HEADER_LEN.is_multiple_of(ALIGNMENT));

/// A place in the WAL: a segment number and an offset in that segment. The position of a record is where its header
/// begins. Positions of later records are greater; they stay the same across restarts; one that was acknowledged as
/// synced never names another record, not even after a truncation. They are ordered, not dense: do no arithmetic on them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WalPosition(u64);

impl WalPosition {
    /// Before every record.
    pub const ZERO: WalPosition = WalPosition(0);

    pub(super) const fn new(segment: u32, offset: u32) -> WalPosition {
        WalPosition((segment as u64) << 32 | offset as u64)
    }

    /// The number of the segment that holds it.
    pub const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The offset in that segment, in bytes.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the offset")]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// As a number that sorts alike, to be stored.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// From a number that [`to_u64`](Self::to_u64) gave.
    pub const fn from_u64(number: u64) -> WalPosition {
        WalPosition(number)
    }
}

impl fmt::Debug for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The identity of the WAL it belongs to.
    pub identity: u64,
    /// Its number.
    pub number: u32,
    /// Where the log leaves the segment before it, or [`WalPosition::ZERO`] for the first segment.
    pub previous_end: WalPosition,
    /// Up to where the WAL was known synced when the header was written.
    pub synced: WalPosition,
}

/// Why 64 bytes are not the header of a segment of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoHeader {
    /// Anything but an intact header: zeros, an old life of a recycled file with an unknown layout, a flipped bit.
    Bad,
    /// An intact header of a format that this build does not know.
    TooNew(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_LEN as usize] {
        let mut out = [0; SEGMENT_HEADER_LEN as usize];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.identity.to_le_bytes());
        out[24..28].copy_from_slice(&self.number.to_le_bytes());
        out[28..32].copy_from_slice(&self.previous_end.segment().to_le_bytes());
        out[32..36].copy_from_slice(&self.previous_end.offset().to_le_bytes());
        out[40..48].copy_from_slice(&self.synced.to_u64().to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The magic, the version, the length and the checksum stay where they are in every later version, so that a newer file is
    /// recognised as such and a damaged one is not mistaken for it.
    pub(super) fn decode(bytes: &[u8]) -> Result<SegmentHeader, NoHeader> {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_LEN as usize) else { return Err(NoHeader::Bad) };
        let (body, crc) = bytes.split_at(60);
        if body[..8] != MAGIC || crc != crc_fast::crc32_iscsi(body).to_le_bytes() {
            return Err(NoHeader::Bad);
        }
        Self::decode_body(&body[8..]).map_err(|_| NoHeader::Bad)?
    }

    fn decode_body(body: &[u8]) -> Result<Result<SegmentHeader, NoHeader>, ferrisdb_core::codec::DecodeError> {
        let mut decoder = Decoder::new(body);
        let version = decoder.u32("segment header: version")?;
        if version > FORMAT_VERSION {
            return Ok(Err(NoHeader::TooNew(version)));
        }
        decoder.take(4, "segment header: reserved")?;
        let identity = decoder.u64("segment header: identity")?;
        let number = decoder.u32("segment header: number")?;
        let previous_number = decoder.u32("segment header: previous segment")?;
        let previous_offset = decoder.u32("segment header: previous end")?;
        decoder.take(4, "segment header: reserved")?;
        let synced = WalPosition::from_u64(decoder.u64("segment header: synced")?);
        let previous_end = WalPosition::new(previous_number, previous_offset);
        // A header that passes its checksum and still contradicts itself was not written by this code.
        let sane = version > 0 && number > 0 && previous_number < number && synced.segment() < number;
        let sane = sane && (previous_number == 0) == (previous_offset == 0);
        Ok(if sane { Ok(SegmentHeader { identity, number, previous_end, synced }) } else { Err(NoHeader::Bad) })
    }
}

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Carries a payload of the WAL's owner.
    Record,
    /// Says how far the WAL is synced; readers pass over it.
    Mark,
}

/// What stands before each payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: RecordKind,
    pub(super) generation: u16,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
    pub(super) synced: WalPosition,
}

/// The bytes that a record with this payload takes, with its header and padding. Callers have checked the length.
pub(super) const fn framed_len(payload_len: u32) -> u32 {
    RECORD_HEADER_LEN + payload_len.next_multiple_of(ALIGNMENT)
}

/// What a record's checksum binds it to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) identity: u64,
    pub(super) segment: u32,
}

impl RecordHeader {
    pub(super) fn encode(&self, place: Place, offset: u32) -> [u8; RECORD_HEADER_LEN as usize] {
        let mut out = [0; RECORD_HEADER_LEN as usize];
        out[4..8].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..14].copy_from_slice(&self.generation.to_le_bytes());
        out[14] = match self.kind {
            RecordKind::Record => 1,
            RecordKind::Mark => 2,
        };
        out[16..24].copy_from_slice(&self.synced.to_u64().to_le_bytes());
        let crc = header_crc(place, offset, &out);
        out[0..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at `offset` of segment `place`, or `None` if these bytes are not one that was written for exactly there.
    pub(super) fn decode(bytes: &[u8], place: Place, offset: u32) -> Option<RecordHeader> {
        let bytes: &[u8; RECORD_HEADER_LEN as usize] = bytes.get(..RECORD_HEADER_LEN as usize)?.try_into().ok()?;
        if !is_plausible(bytes) || bytes[0..4] != header_crc(place, offset, bytes).to_le_bytes() {
            return None;
        }
        let mut decoder = Decoder::new(&bytes[4..]);
        let payload_crc = decoder.u32("record: payload checksum").ok()?;
        let payload_len = decoder.u32("record: length").ok()?;
        let generation = decoder.take(2, "record: generation").ok()?;
        let kind = if decoder.u8("record: kind").ok()? == 1 { RecordKind::Record } else { RecordKind::Mark };
        decoder.u8("record: reserved").ok()?;
        let synced = WalPosition::from_u64(decoder.u64("record: synced").ok()?);
        let generation = u16::from_le_bytes([generation[0], generation[1]]);
        // A record cannot know of syncs beyond itself: checked so that no search can be led astray by one that claims to.
        let header = RecordHeader { kind, generation, payload_len, payload_crc, synced };
        (synced <= WalPosition::new(place.segment, offset)).then_some(header)
    }
}

/// A cheap test that nearly all places that hold no header fail.
#[inline]
pub(super) fn is_plausible(header: &[u8; RECORD_HEADER_LEN as usize]) -> bool {
    // Kind and the zero byte first: in one comparison they turn away zeros and nearly all payload.
    let kind = u16::from_le_bytes([header[14], header[15]]);
    let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    (kind == 1 || kind == 2) && len as usize <= RECORD_PAYLOAD_MAX
}

fn header_crc(place: Place, offset: u32, header: &[u8; RECORD_HEADER_LEN as usize]) -> u32 {
    let mut bytes = [0; 36];
    bytes[0..8].copy_from_slice(&place.identity.to_le_bytes());
    if !planted(Bug::RecycledRecordAccepted) {
        bytes[8..12].copy_from_slice(&place.segment.to_le_bytes());
    }
    bytes[12..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..36].copy_from_slice(&header[4..24]);
    crc_fast::crc32_iscsi(&bytes)
}

/// The file name of a segment.
pub(crate) fn segment_file_name(number: u32) -> String {
    format!("{number:010}.wal")
}

/// The number in a segment's file name, or `None` for a file that is not a segment.
pub(super) fn parse_segment_file_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".wal")?;
    let number: u32 = digits.parse().ok()?;
    // Only the one spelling that we write: two names must never mean one segment.
    (number > 0 && segment_file_name(number) == name).then_some(number)
}
