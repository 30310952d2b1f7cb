//! Builds one data block; the format is in [`block`](super::block).
//!
//! The common prefix and the base version are known only when the block is full, so keys and values are gathered in two
//! buffers first. The buffers are kept from block to block: adding an entry allocates nothing once they have grown.

use ferrisdb_core::codec::put_varint;

use super::block::{LENGTH_ESCAPE, head4};
use crate::key::{InternalKey, Trailer};

#[derive(Debug, Clone, Copy)]
struct Pending {
    key_end: u32,
    shared: u32,
    value_len: u32,
    trailer: u64,
}

#[derive(Debug, Clone, Copy)]
struct Restart {
    head: u32,
    key_offset: u32,
    value_offset: u32,
}

/// Gathers the entries of one block.
#[derive(Debug)]
pub(super) struct BlockBuilder {
    restart_interval: usize,
    keys: Vec<u8>,
    entries: Vec<Pending>,
    values: Vec<u8>,
    unshared_bytes: usize,
    /// Invariant: the length of the prefix that all keys share.
    prefix_len: usize,
    /// The key section and the restart points of the block being encoded; kept for their memory.
    section: Vec<u8>,
    restarts: Vec<Restart>,
}

/// What an entry costs beside its key and value: token, tag, value length. Each may be longer; most are not.
const ENTRY_OVERHEAD_BYTES: usize = 3;

/// A head and two short offsets.
const RESTART_BYTES: usize = 8;

/// Five varints and the width.
const HEADER_BYTES: usize = 12;

impl BlockBuilder {
    pub(super) fn new(restart_interval: usize) -> BlockBuilder {
        assert!(restart_interval > 0, "a group holds at least one entry");
        BlockBuilder {
            restart_interval,
            keys: Vec::new(),
            entries: Vec::new(),
            values: Vec::new(),
            unshared_bytes: 0,
            prefix_len: 0,
            section: Vec::new(),
            restarts: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// About how long the encoded block would be if it ended here.
    #[inline]
    pub(super) fn estimated_bytes(&self) -> usize {
        let restarts = self.entries.len().div_ceil(self.restart_interval);
        // The first entry of a group shares nothing but the block's prefix, which is stored once.
        let saved = self.prefix_len * restarts.saturating_sub(1);
        let overhead = self.entries.len() * ENTRY_OVERHEAD_BYTES + restarts * RESTART_BYTES + HEADER_BYTES;
        self.values.len() + self.unshared_bytes - saved + overhead
    }

    /// About how much longer it would be with this entry.
    #[inline]
    pub(super) fn estimated_bytes_with(&self, unshared: usize, value: &[u8]) -> usize {
        self.estimated_bytes() + unshared + value.len() + ENTRY_OVERHEAD_BYTES
    }

    /// The last user key; empty without an entry.
    #[inline]
    pub(super) fn last_user_key(&self) -> &[u8] {
        let start = self.entries.len().checked_sub(2).map_or(0, |before| self.entries[before].key_end as usize);
        &self.keys[start..]
    }

    /// The last entry's version and kind; zero without an entry.
    #[inline]
    pub(super) fn last_trailer(&self) -> Trailer {
        Trailer(self.entries.last().map_or(0, |entry| entry.trailer))
    }

    /// Adds an entry that follows the last one in order and shares `shared` bytes of its user key with it.
    #[inline]
    pub(super) fn add(&mut self, key: InternalKey<'_>, shared: usize, value: &[u8]) {
        self.keys.extend_from_slice(key.user_key);
        self.values.extend_from_slice(value);
        // What neighbours share at least, all share.
        self.prefix_len = if self.entries.is_empty() { key.user_key.len() } else { self.prefix_len.min(shared) };
        let first_of_group = self.entries.len().is_multiple_of(self.restart_interval);
        self.unshared_bytes += key.user_key.len() - if first_of_group { 0 } else { shared };
        self.entries.push(Pending {
            key_end: narrow(self.keys.len()),
            shared: narrow(shared),
            value_len: narrow(value.len()),
            trailer: key.trailer.0,
        });
    }

    /// Appends the encoded block to `out` and starts the next one.
    ///
    /// # Panics
    /// Without an entry.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let base = self.entries.iter().map(|entry| entry.trailer >> 8).min().expect("an empty block is not written");
        let prefix_len = self.prefix_len;
        self.encode_entries(prefix_len, base);

        let wide = self.section.len().max(self.values.len()) > usize::from(u16::MAX);
        put_varint(out, self.entries.len() as u64);
        put_varint(out, self.restarts.len() as u64);
        put_varint(out, prefix_len as u64);
        put_varint(out, base);
        put_varint(out, self.section.len() as u64);
        out.push(if wide { 4 } else { 2 });
        out.extend_from_slice(&self.keys[..prefix_len]);
        for restart in &self.restarts {
            out.extend_from_slice(&restart.head.to_le_bytes());
        }
        let width = if wide { 4 } else { 2 };
        for restart in &self.restarts {
            out.extend_from_slice(&restart.key_offset.to_le_bytes()[..width]);
        }
        for restart in &self.restarts {
            out.extend_from_slice(&restart.value_offset.to_le_bytes()[..width]);
        }
        out.extend_from_slice(&self.section);
        out.extend_from_slice(&self.values);
        self.keys.clear();
        self.entries.clear();
        self.values.clear();
        self.unshared_bytes = 0;
    }

    /// Fills the key section and the restart points.
    fn encode_entries(&mut self, prefix_len: usize, base: u64) {
        self.section.clear();
        self.restarts.clear();
        let (mut key_start, mut value_offset, mut in_group) = (prefix_len, 0, 0);
        for entry in &self.entries {
            let key_end = entry.key_end as usize;
            let rest = &self.keys[key_start..key_end];
            let mut shared = entry.shared as usize;
            if in_group == 0 {
                shared = prefix_len;
                in_group = self.restart_interval;
                let key_offset = narrow(self.section.len());
                self.restarts.push(Restart { head: head4(rest), key_offset, value_offset });
            }
            in_group -= 1;
            let shared = shared - prefix_len;
            let suffix = &rest[shared..];
            let tag = ((entry.trailer >> 8) - base) << 2 | entry.trailer & 3;
            let (low, high) = (nibble(shared), nibble(suffix.len()));
            self.section.push(low << 4 | high);
            for (length, nibble) in [(shared, low), (suffix.len(), high)] {
                if usize::from(nibble) == LENGTH_ESCAPE {
                    put_varint(&mut self.section, (length - LENGTH_ESCAPE) as u64);
                }
            }
            put_varint(&mut self.section, tag);
            put_varint(&mut self.section, u64::from(entry.value_len));
            self.section.extend_from_slice(suffix);
            value_offset += entry.value_len;
            key_start = key_end + prefix_len;
        }
    }
}

#[inline]
fn narrow(length: usize) -> u32 {
    u32::try_from(length).expect("a block is far below 4 GiB")
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the minimum with 15 fits a byte")]
fn nibble(length: usize) -> u8 {
    length.min(LENGTH_ESCAPE) as u8
}
