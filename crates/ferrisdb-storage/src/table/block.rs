//! A data block in memory: searched in place, never decoded as a whole.
//!
//! Keys and values lie apart, so that a search touches the few cache lines that hold keys and then the one value that it
//! wants. The prefix that all keys of the block share is stored once; each group of entries begins at a restart point, whose
//! key head (four bytes after the common prefix) lies in an array that is searched before any entry is looked at.
//!
//! # Format
//!   varint  entries, at least 1
//!   varint  restarts, 1 to entries
//!   varint  length of the common prefix
//!   varint  base version: the smallest in the block
//!   varint  length of the key section
//!   u8      width of an offset: 2 or 4 bytes
//!   …       the common prefix
//!   u32 ×   restarts: heads, the four key bytes after the common prefix as a big-endian number (zero-padded), written
//!           little-endian so that they are compared as they lie
//!   uN ×    restarts: where the group begins in the key section
//!   uN ×    restarts: where the group's values begin in the value section
//!   …       key section
//!   …       value section: the rest
//!
//! An entry of the key section:
//!   u8      shared << 4 | unshared; 15 in either half means that a varint with the length minus 15 follows, shared first
//!   varint  (version − base) << 2 | kind
//!   varint  value length
//!   …       the unshared bytes of the key
//! The key is the common prefix, then `shared` bytes of the key before after the common prefix, then the unshared bytes.
//! Values follow each other without gaps in the order of the entries. The first entry of a group shares nothing.
//!
//! # Invariants
//! - Sharing is maximal within a group. The search relies on it: an entry that shares more with its predecessor than the
//!   target does sorts with the predecessor.
//!
//! # Bytes that lie
//! A checksum normally stands between the disk and this module. Should it not, [`Block::parse`] checks what the search indexes
//! by, and every entry is read through bounds-checked slices: the answer may then be wrong or an error, never a panic.

use std::cmp::Ordering;

use ferrisdb_core::Version;
use ferrisdb_core::codec::{DecodeError, Decoder, get_varint};

use crate::key::{InternalKey, Trailer, ValueKind};

/// The longest encoded block, in bytes: one entry with the longest key and value fits, and offsets fit 32 bits.
pub(crate) const BLOCK_BYTES_MAX: usize = 320 << 20;

const _: () = assert!(crate::key::KEY_BYTES_MAX + crate::key::VALUE_BYTES_MAX + (1 << 20) < BLOCK_BYTES_MAX);

/// The length nibble that says that a varint follows.
pub(super) const LENGTH_ESCAPE: usize = 15;

const BAD_ENTRY: DecodeError = DecodeError { what: "data block: entry" };
const BAD_VALUE: DecodeError = DecodeError { what: "data block: value past the end of the block" };

/// A parsed data block. The bytes stay as they were on disk (after decompression).
#[derive(Debug)]
pub struct Block {
    bytes: Box<[u8]>,
    base_version: u64,
    entries: u32,
    restarts: u32,
    prefix_start: u32,
    heads_start: u32,
    key_offsets_start: u32,
    value_offsets_start: u32,
    // Invariant: prefix ≤ heads ≤ offsets ≤ keys_start ≤ values_start ≤ bytes.len().
    keys_start: u32,
    values_start: u32,
    wide: bool,
}

/// An entry as it lies in the key section.
#[derive(Debug, Clone, Copy)]
struct RawEntry<'a> {
    shared: usize,
    suffix: &'a [u8],
    tag: u64,
    value_len: usize,
    /// Where the next entry begins.
    next: usize,
}

/// What [`Block::seek`] found: the first entry at or after the target.
#[derive(Debug, Clone)]
pub(super) struct Found<'a> {
    /// Where the entry begins in the key section.
    at: usize,
    next: usize,
    shared: usize,
    suffix: &'a [u8],
    value_start: usize,
    value_end: usize,
    pub(super) trailer: Trailer,
    pub(super) kind: ValueKind,
    /// True if the entry's user key is the target's.
    pub(super) same_user_key: bool,
}

impl Found<'_> {
    /// Where the value lies in the block's bytes.
    #[inline]
    pub(super) fn value_range(&self) -> (u32, u32) {
        (narrow(self.value_start), narrow(self.value_end))
    }
}

/// A place in a block: [`Block::parse`] bounds the length, so every offset into it fits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "offsets lie within a block, and BLOCK_BYTES_MAX < 2^32")]
fn narrow(offset: usize) -> u32 {
    offset as u32
}

/// The first four bytes of `key` as a big-endian number, padded with zeros.
#[inline]
pub(super) fn head4(key: &[u8]) -> u32 {
    match key.first_chunk::<4>() {
        Some(head) => u32::from_be_bytes(*head),
        None => {
            let mut head = [0u8; 4];
            head[..key.len()].copy_from_slice(key);
            u32::from_be_bytes(head)
        }
    }
}

/// The length of the common prefix of two keys.
#[inline]
pub(super) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    let mut len = 0;
    let (mut x, mut y) = (a, b);
    while let (Some((left, left_rest)), Some((right, right_rest))) =
        (x.split_first_chunk::<8>(), y.split_first_chunk::<8>())
    {
        let differ = u64::from_le_bytes(*left) ^ u64::from_le_bytes(*right);
        if differ != 0 {
            return len + (differ.trailing_zeros() / 8) as usize;
        }
        len += 8;
        (x, y) = (left_rest, right_rest);
    }
    len + x.iter().zip(y).take_while(|(left, right)| left == right).count()
}

impl Block {
    /// Takes a decompressed payload and checks its header and restart array. O(restarts).
    pub(super) fn parse(bytes: Box<[u8]>) -> Result<Block, DecodeError> {
        let bad = |what| DecodeError { what };
        if bytes.len() > BLOCK_BYTES_MAX {
            return Err(bad("data block: longer than a block may be"));
        }
        let mut decoder = Decoder::new(&bytes);
        let entries = decoder.varint_usize("data block: entry count")?;
        let restarts = decoder.varint_usize("data block: restart count")?;
        let prefix_len = decoder.varint_usize("data block: prefix length")?;
        let base_version = decoder.varint("data block: base version")?;
        let keys_len = decoder.varint_usize("data block: key section length")?;
        let width = usize::from(decoder.u8("data block: offset width")?);
        if restarts == 0 || restarts > entries {
            return Err(bad("data block: restart count"));
        }
        if width != 2 && width != 4 {
            return Err(bad("data block: offset width"));
        }
        if base_version > Version::MAX.get() {
            return Err(bad("data block: base version"));
        }
        let prefix_start = bytes.len() - decoder.rest().len();
        decoder.take(prefix_len, "data block: common prefix")?;
        let heads_start = prefix_start + prefix_len;
        // Each restart costs at least eight bytes, so the products below cannot overflow once this holds.
        if restarts > decoder.rest().len() / 4 {
            return Err(bad("data block: restart heads"));
        }
        decoder.take(restarts * 4, "data block: restart heads")?;
        let key_offsets_start = heads_start + restarts * 4;
        let value_offsets_start = key_offsets_start + restarts * width;
        decoder.take(restarts * width * 2, "data block: restart offsets")?;
        decoder.take(keys_len, "data block: key section")?;
        let keys_start = value_offsets_start + restarts * width;
        let values_start = keys_start + keys_len;
        // An entry takes at least three bytes.
        if entries > keys_len / 3 {
            return Err(bad("data block: entry count"));
        }
        let block = Block {
            base_version,
            entries: narrow(entries),
            restarts: narrow(restarts),
            prefix_start: narrow(prefix_start),
            heads_start: narrow(heads_start),
            key_offsets_start: narrow(key_offsets_start),
            value_offsets_start: narrow(value_offsets_start),
            keys_start: narrow(keys_start),
            values_start: narrow(values_start),
            wide: width == 4,
            bytes,
        };
        block.check_restarts(keys_len)?;
        Ok(block)
    }

    fn check_restarts(&self, keys_len: usize) -> Result<(), DecodeError> {
        let values_len = self.bytes.len() - self.values_start as usize;
        let mut last_value = 0;
        for restart in 0..self.restarts as usize {
            let (key, value) = (self.key_offset(restart), self.value_offset(restart));
            let rises = if restart == 0 { key == 0 && value == 0 } else { key > self.key_offset(restart - 1) };
            if !rises || key >= keys_len || value < last_value || value > values_len {
                return Err(DecodeError { what: "data block: restart offsets" });
            }
            last_value = value;
        }
        Ok(())
    }

    /// Entries in the block.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Restart points in the block.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The encoded block.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The length of the value section.
    pub(super) fn value_section_bytes(&self) -> usize {
        self.bytes.len() - self.values_start as usize
    }

    /// Bytes of memory held.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of::<Block>()
    }

    /// The prefix that all keys of the block share.
    #[inline]
    pub fn prefix(&self) -> &[u8] {
        &self.bytes[self.prefix_start as usize..self.heads_start as usize]
    }

    #[inline]
    fn keys(&self) -> &[u8] {
        &self.bytes[self.keys_start as usize..self.values_start as usize]
    }

    #[inline]
    fn heads(&self) -> &[[u8; 4]] {
        self.bytes[self.heads_start as usize..self.key_offsets_start as usize].as_chunks::<4>().0
    }

    #[inline]
    fn offset(&self, array_start: u32, restart: usize) -> usize {
        let start = array_start as usize;
        if self.wide {
            let at = start + restart * 4;
            let bytes: [u8; 4] = self.bytes[at..at + 4].try_into().expect("a slice of four bytes");
            u32::from_le_bytes(bytes) as usize
        } else {
            let at = start + restart * 2;
            usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
        }
    }

    #[inline]
    fn key_offset(&self, restart: usize) -> usize {
        self.offset(self.key_offsets_start, restart)
    }

    #[inline]
    fn value_offset(&self, restart: usize) -> usize {
        self.offset(self.value_offsets_start, restart)
    }

    #[inline]
    fn entry(&self, at: usize) -> Result<RawEntry<'_>, DecodeError> {
        let keys = self.keys();
        let rest = keys.get(at..).ok_or(BAD_ENTRY)?;
        if let Some((&[token, tag, value_len], after)) = rest.split_first_chunk::<3>() {
            let (shared, unshared) = (usize::from(token >> 4), usize::from(token & 0xF));
            let short = shared < LENGTH_ESCAPE && unshared < LENGTH_ESCAPE && (tag | value_len) < 0x80;
            if short && let Some(suffix) = after.get(..unshared) {
                let (tag, value_len) = (u64::from(tag), usize::from(value_len));
                return Ok(RawEntry { shared, suffix, tag, value_len, next: at + 3 + unshared });
            }
        }
        Block::long_entry(rest, at)
    }

    /// An entry with a length that its short form cannot hold.
    fn long_entry(rest: &[u8], at: usize) -> Result<RawEntry<'_>, DecodeError> {
        let mut used = 1;
        let token = *rest.first().ok_or(BAD_ENTRY)?;
        let mut varint = || {
            let (value, len) = get_varint(rest.get(used..).ok_or(BAD_ENTRY)?).ok_or(BAD_ENTRY)?;
            used += len;
            Ok::<u64, DecodeError>(value)
        };
        let mut length = |nibble: usize| {
            if nibble < LENGTH_ESCAPE {
                return Ok(nibble);
            }
            let more = usize::try_from(varint()?).map_err(|_| BAD_ENTRY)?;
            more.checked_add(LENGTH_ESCAPE).filter(|&len| len <= BLOCK_BYTES_MAX).ok_or(BAD_ENTRY)
        };
        let shared = length(usize::from(token >> 4))?;
        let unshared = length(usize::from(token & 0xF))?;
        let tag = varint()?;
        let value_len = usize::try_from(varint()?).map_err(|_| BAD_ENTRY)?;
        if value_len > BLOCK_BYTES_MAX {
            return Err(BAD_ENTRY);
        }
        let suffix = rest.get(used..used + unshared).ok_or(BAD_ENTRY)?;
        Ok(RawEntry { shared, suffix, tag, value_len, next: at + used + unshared })
    }

    #[inline]
    fn trailer(&self, tag: u64) -> Result<(Trailer, ValueKind), DecodeError> {
        let number = self.base_version.saturating_add(tag >> 2);
        let version = Version::new(number).ok_or(DecodeError { what: "data block: version" })?;
        let kind = match tag & 3 {
            0 => ValueKind::Tombstone,
            1 => ValueKind::Value,
            2 => ValueKind::BlobPointer,
            _ => return Err(DecodeError { what: "data block: value kind" }),
        };
        Ok((Trailer::new(version, kind), kind))
    }

    /// The first entry at or after `target`; `None` if all lie before it.
    #[inline]
    pub(super) fn seek(&self, target: InternalKey<'_>) -> Result<Option<Found<'_>>, DecodeError> {
        let prefix = self.prefix();
        let Some(rest) = target.user_key.strip_prefix(prefix) else {
            // The target differs from every key within the common prefix, or ends there.
            return if *target.user_key < *prefix { self.found(0, 0, None).map(Some) } else { Ok(None) };
        };
        let restart = self.first_restart_not_before(rest, target)?;
        self.seek_in_group(restart, rest, target)
    }

    /// Goes on from the number of restart points that lie before the target.
    #[inline]
    fn seek_in_group(
        &self,
        restart: usize,
        rest: &[u8],
        target: InternalKey<'_>,
    ) -> Result<Option<Found<'_>>, DecodeError> {
        let Some(group) = restart.checked_sub(1) else {
            return self.found(0, 0, Some(rest)).map(Some);
        };
        // The group's first entry lies before the target; `matched` is how far the last entry seen agrees with it.
        let mut at = self.key_offset(group);
        let mut value = self.value_offset(group);
        let end = if restart < self.restarts as usize { self.key_offset(restart) } else { self.keys().len() };
        let mut matched = 0;
        let mut first = true;
        while at < end {
            let entry = self.entry(at)?;
            if first || entry.shared == matched {
                let (agree, order) = compare_rest(entry.suffix, rest.get(matched..).unwrap_or(b""));
                let order = match order {
                    Ordering::Equal => target.trailer.cmp(&self.trailer(entry.tag)?.0),
                    other => other,
                };
                if order != Ordering::Less && !first {
                    return self
                        .found_entry(at, &entry, value, matched + agree == rest.len() && entry.suffix.len() == agree)
                        .map(Some);
                }
                matched += agree;
                first = false;
            } else if entry.shared < matched {
                return self.found_entry(at, &entry, value, false).map(Some);
            }
            value += entry.value_len;
            at = entry.next;
        }
        if restart < self.restarts as usize {
            return self.found(end, self.value_offset(restart), Some(rest)).map(Some);
        }
        Ok(None)
    }

    /// The entry at a restart point, as the answer to a search for a key whose part after the common prefix is `rest`; `None` if
    /// the key does not begin with that prefix.
    fn found(&self, at: usize, value: usize, rest: Option<&[u8]>) -> Result<Found<'_>, DecodeError> {
        let entry = self.entry(at)?;
        if entry.shared != 0 {
            return Err(BAD_ENTRY);
        }
        self.found_entry(at, &entry, value, rest == Some(entry.suffix))
    }

    #[inline]
    fn found_entry<'a>(
        &'a self,
        at: usize,
        entry: &RawEntry<'a>,
        value: usize,
        same_user_key: bool,
    ) -> Result<Found<'a>, DecodeError> {
        let (trailer, kind) = self.trailer(entry.tag)?;
        let value_start = self.values_start as usize + value;
        let value_end = value_start + entry.value_len;
        if value_end > self.bytes.len() {
            return Err(BAD_VALUE);
        }
        let (next, shared, suffix) = (entry.next, entry.shared, entry.suffix);
        Ok(Found { at, next, shared, suffix, value_start, value_end, trailer, kind, same_user_key })
    }

    /// What a search costs that compares keys at the restart points: for the decision file.
    #[cfg(test)]
    pub(super) fn seek_without_heads(&self, target: InternalKey<'_>) -> Result<Option<Found<'_>>, DecodeError> {
        let rest = target.user_key.strip_prefix(self.prefix()).expect("the benchmark asks for keys of the block");
        let restart = self.bisect_restarts(0, self.restarts as usize, rest, target)?;
        self.seek_in_group(restart, rest, target)
    }

    /// The number of restart points whose key lies before the target.
    #[inline]
    fn first_restart_not_before(&self, rest: &[u8], target: InternalKey<'_>) -> Result<usize, DecodeError> {
        let heads = self.heads();
        let head = head4(rest);
        let low = heads.partition_point(|other| u32::from_le_bytes(*other) < head);
        // Equal heads decide nothing: compare the keys there. One step in most blocks, a binary search in any.
        let mut high = low;
        while high < heads.len() && u32::from_le_bytes(heads[high]) == head {
            high += 1;
        }
        if low == high { Ok(low) } else { self.bisect_restarts(low, high, rest, target) }
    }

    /// A binary search that compares whole keys, among the restart points in `low..high`.
    fn bisect_restarts(
        &self,
        mut low: usize,
        mut high: usize,
        rest: &[u8],
        target: InternalKey<'_>,
    ) -> Result<usize, DecodeError> {
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(self.key_offset(middle))?;
            let order = entry.suffix.cmp(rest);
            let before = match order {
                Ordering::Equal => self.trailer(entry.tag)?.0 > target.trailer,
                other => other == Ordering::Less,
            };
            if before { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }
}

/// How far two key rests agree, and how they are ordered.
#[inline]
fn compare_rest(entry: &[u8], target: &[u8]) -> (usize, Ordering) {
    let agree = common_prefix_len(entry, target);
    let order = match (entry.get(agree), target.get(agree)) {
        (Some(left), Some(right)) => left.cmp(right),
        (left, right) => left.is_some().cmp(&right.is_some()),
    };
    (agree, order)
}

/// A cursor within one block. It does not hold the block, so that its key buffer outlives it: every call is given the
/// block that the cursor was placed in.
#[derive(Debug, Default)]
pub(super) struct BlockCursor {
    /// Invariant while valid: the whole user key of the entry.
    key: Vec<u8>,
    trailer: u64,
    at: usize,
    next: usize,
    value_start: usize,
    value_end: usize,
    valid: bool,
}

impl BlockCursor {
    #[inline]
    pub(super) fn valid(&self) -> bool {
        self.valid
    }

    #[inline]
    pub(super) fn key(&self) -> InternalKey<'_> {
        InternalKey::new(&self.key, Trailer(self.trailer))
    }

    #[inline]
    pub(super) fn value<'a>(&self, block: &'a Block) -> &'a [u8] {
        &block.bytes[self.value_start..self.value_end]
    }

    pub(super) fn invalidate(&mut self) {
        self.valid = false;
    }

    /// To the first entry at or after `target`, or past the end.
    pub(super) fn seek(&mut self, block: &Block, target: InternalKey<'_>) -> Result<(), DecodeError> {
        self.valid = false;
        let Some(found) = block.seek(target)? else { return Ok(()) };
        // Whatever the entry shares with its predecessor it shares with the target, too: that is how it was found.
        let prefix = block.prefix();
        self.key.clear();
        self.key.extend_from_slice(prefix);
        if found.shared > 0 {
            let shared = target.user_key.get(prefix.len()..prefix.len() + found.shared).ok_or(BAD_ENTRY)?;
            self.key.extend_from_slice(shared);
        }
        self.key.extend_from_slice(found.suffix);
        self.trailer = found.trailer.0;
        (self.at, self.next) = (found.at, found.next);
        (self.value_start, self.value_end) = (found.value_start, found.value_end);
        self.valid = true;
        Ok(())
    }

    pub(super) fn seek_to_first(&mut self, block: &Block) -> Result<(), DecodeError> {
        self.enter_group(block, 0);
        self.step(block)
    }

    pub(super) fn seek_to_last(&mut self, block: &Block) -> Result<(), DecodeError> {
        self.enter_group(block, block.restarts as usize - 1);
        self.scan_to(block, block.keys().len())
    }

    /// To the next entry, or past the end.
    #[inline]
    pub(super) fn next(&mut self, block: &Block) -> Result<(), DecodeError> {
        debug_assert!(self.valid, "next is called on an entry");
        if self.next >= block.keys().len() {
            self.valid = false;
            return Ok(());
        }
        self.step(block)
    }

    /// To the entry before, or past the front.
    pub(super) fn prev(&mut self, block: &Block) -> Result<(), DecodeError> {
        debug_assert!(self.valid, "prev is called on an entry");
        let here = self.at;
        self.valid = false;
        if here == 0 {
            return Ok(());
        }
        // The last group that begins before this entry holds its predecessor.
        let (mut low, mut high) = (0, block.restarts as usize);
        while low < high {
            let middle = low + (high - low) / 2;
            if block.key_offset(middle) < here { low = middle + 1 } else { high = middle }
        }
        self.enter_group(block, low - 1);
        self.scan_to(block, here)
    }

    /// Stands before the first entry of a group.
    fn enter_group(&mut self, block: &Block, restart: usize) {
        self.valid = false;
        self.key.clear();
        self.key.extend_from_slice(block.prefix());
        self.next = block.key_offset(restart);
        self.value_end = block.values_start as usize + block.value_offset(restart);
    }

    /// Steps until the next entry is the one at `end`.
    fn scan_to(&mut self, block: &Block, end: usize) -> Result<(), DecodeError> {
        while self.next < end {
            self.step(block)?;
        }
        if self.next == end {
            return Ok(());
        }
        self.valid = false;
        Err(BAD_ENTRY)
    }

    #[inline]
    fn step(&mut self, block: &Block) -> Result<(), DecodeError> {
        self.valid = false;
        let entry = block.entry(self.next)?;
        let shared = block.prefix().len() + entry.shared;
        let value_end = self.value_end + entry.value_len;
        if shared > self.key.len() || value_end > block.bytes.len() {
            return Err(BAD_ENTRY);
        }
        let (trailer, _) = block.trailer(entry.tag)?;
        self.key.truncate(shared);
        self.key.extend_from_slice(entry.suffix);
        self.trailer = trailer.0;
        (self.at, self.next) = (self.next, entry.next);
        (self.value_start, self.value_end) = (self.value_end, value_end);
        self.valid = true;
        Ok(())
    }
}
