//! Little-endian numbers, varints and length-prefixed bytes, with a checked decoder.
//!
//! Bytes that come from a disk or a network are read only through [`Decoder`]: it returns [`DecodeError`] and never
//! panics, never reads past the end and never allocates by a length that it has not checked.
//!
//! # Format
//!   varint   7 bits a byte, least significant first, high bit = more follows; at most 10 bytes; the shortest form is
//!            the only legal one, so that equal values have equal bytes
//!   bytes    varint length, then the bytes

use std::fmt;

/// The longest varint: ⌈64 / 7⌉ bytes.
pub const VARINT_BYTES_MAX: usize = 10;

/// What was wrong with the bytes, in words that go into a corruption error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeError {
    /// What was being read, such as "table meta: smallest key".
    pub what: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot decode {}", self.what)
    }
}

impl std::error::Error for DecodeError {}

/// Appends a varint.
#[inline]
#[cfg_attr(not(test), expect(clippy::cast_possible_truncation, reason = "each byte takes the lowest seven bits"))]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The number of bytes that [`put_varint`] appends for `value`.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends a `u32`, little-endian.
#[inline]
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a `u64`, little-endian.
#[inline]
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a varint length and the bytes.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads one varint from the front of `bytes`: the value and its length, or `None` if it is cut short, longer than it
/// need be, or above 64 bits.
#[inline]
pub fn get_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    match bytes.first() {
        Some(&byte) if byte < 0x80 => Some((u64::from(byte), 1)),
        _ => get_varint_slow(bytes),
    }
}

fn get_varint_slow(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7F);
        // The tenth byte holds only bit 63.
        if index == VARINT_BYTES_MAX - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte < 0x80 {
            // A last byte of zero means that a shorter form exists.
            return if byte == 0 && index > 0 { None } else { Some((value, index + 1)) };
        }
    }
    None
}

/// Reads numbers and byte strings from the front of a slice, checking every length.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// A decoder over `bytes`.
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { rest: bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// True when everything has been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Fails unless everything has been read: trailing bytes are corruption, not something to skip.
    pub fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError { what }) }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(DecodeError { what })?;
        self.rest = tail;
        Ok(head)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    /// A little-endian `u32`.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("take returned four bytes")))
    }

    /// A little-endian `u64`.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("take returned eight bytes")))
    }

    /// A varint.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let (value, len) = get_varint(self.rest).ok_or(DecodeError { what })?;
        self.rest = &self.rest[len..];
        Ok(value)
    }

    /// A varint that fits a `usize`.
    pub fn varint_usize(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        usize::try_from(self.varint(what)?).map_err(|_| DecodeError { what })
    }

    /// A varint length and that many bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.varint_usize(what)?;
        self.take(len, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, SplitMix64};

    /// Every boundary length of a varint survives the round trip and has the length that `varint_len` says.
    #[test]
    fn varints_round_trip() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                assert_eq!(get_varint(&out), Some((value, out.len())));
                assert_eq!(get_varint(&out[..out.len() - 1]), None, "cut short: {value}");
            }
        }
    }

    /// A padded or overlong varint is refused: equal values have equal bytes.
    #[test]
    fn only_the_shortest_varint_is_legal() {
        assert_eq!(get_varint(&[0x80, 0x00]), None);
        assert_eq!(get_varint(&[0xFF; 10]), None);
        assert_eq!(get_varint(&[0x80; 11]), None);
        let max = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
        assert_eq!(get_varint(&max), Some((u64::MAX, 10)));
    }

    /// Random bytes never make the decoder panic or read past the end.
    #[test]
    fn the_decoder_survives_random_bytes() {
        let mut random = SplitMix64::new(7);
        for _ in 0..20_000 {
            let len = random.below(24) as usize;
            let bytes: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
            let mut decoder = Decoder::new(&bytes);
            while !decoder.is_empty() {
                let before = decoder.rest().len();
                let result = match random.below(5) {
                    0 => decoder.u8("x").map(|_| ()),
                    1 => decoder.u32("x").map(|_| ()),
                    2 => decoder.u64("x").map(|_| ()),
                    3 => decoder.varint("x").map(|_| ()),
                    _ => decoder.bytes("x").map(|_| ()),
                };
                if result.is_err() || decoder.rest().len() == before {
                    break;
                }
            }
        }
    }
}
