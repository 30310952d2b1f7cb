//! Internal keys: what a user key becomes when many versions of it live side by side.
//!
//! An internal key is (user key, version, kind). The version and the kind share one `u64`, the [`Trailer`]:
//! `version << 8 | kind`. Order: user key ascending bytewise, then trailer **descending**, so that a reader at version v
//! seeks to (key, v, greatest kind) and the first entry it meets is the newest that it may see.
//!
//! # Invariants
//! - One (user key, version) occurs at most once among point entries: a write batch is canonical before it is written.
//! - A range tombstone at version v hides only point entries whose version is below v.

use std::cmp::Ordering;

use crate::planted::{Bug, planted};
use ferrisdb_core::Version;

/// The longest user key, in bytes. The client's limit is 10,000; system keys wrap user keys and add a little. 64 KiB − 1
/// keeps a key length in two bytes wherever that helps.
pub const KEY_BYTES_MAX: usize = 65_535;

/// The longest value, in bytes: 256 MiB, so that a record, a block and a blob length fit 32 bits with room to spare.
pub const VALUE_BYTES_MAX: usize = 256 << 20;

/// What an entry says about its key. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ValueKind {
    /// The key has no value from this version on.
    Tombstone = 0,
    /// The key has this value from this version on.
    Value = 1,
    /// The value is in a blob file; the entry's value is an encoded pointer to it.
    BlobPointer = 2,
    /// The keys from this one up to the one in the entry's value have no value from this version on. Never stored among
    /// point entries: memtables and tables keep range tombstones beside them.
    RangeTombstone = 3,
}

impl ValueKind {
    /// The kind with this number.
    #[inline]
    pub const fn from_u8(number: u8) -> Option<ValueKind> {
        match number {
            0 => Some(ValueKind::Tombstone),
            1 => Some(ValueKind::Value),
            2 => Some(ValueKind::BlobPointer),
            3 => Some(ValueKind::RangeTombstone),
            _ => None,
        }
    }
}

/// A version and a kind in one `u64`: `version << 8 | kind`. Greater is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trailer(pub u64);

impl Trailer {
    /// Of an entry.
    #[inline]
    pub const fn new(version: Version, kind: ValueKind) -> Trailer {
        Trailer((version.get() << 8) | kind as u64)
    }

    /// Where a reader at `version` starts within a key: at or before every entry that it may see.
    #[inline]
    pub const fn seek(version: Version) -> Trailer {
        Trailer((version.get() << 8) | 0xFF)
    }

    /// The version.
    #[inline]
    pub const fn version(self) -> Version {
        Version::from_u64(self.0 >> 8)
    }

    /// The kind, or `None` if the number is not one of ours (bytes from outside).
    #[inline]
    pub const fn kind(self) -> Option<ValueKind> {
        ValueKind::from_u8((self.0 & 0xFF) as u8)
    }
}

/// A borrowed internal key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalKey<'a> {
    /// The client's bytes.
    pub user_key: &'a [u8],
    /// Version and kind.
    pub trailer: Trailer,
}

impl<'a> InternalKey<'a> {
    /// From its parts.
    #[inline]
    pub const fn new(user_key: &'a [u8], trailer: Trailer) -> InternalKey<'a> {
        InternalKey { user_key, trailer }
    }

    /// The place from which a reader at `version` reads `user_key`.
    #[inline]
    pub const fn seek(user_key: &'a [u8], version: Version) -> InternalKey<'a> {
        InternalKey { user_key, trailer: Trailer::seek(version) }
    }
}

impl Ord for InternalKey<'_> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let newest_first = other.trailer.cmp(&self.trailer);
        let versions = if planted(Bug::WrongVersionOrder) { newest_first.reverse() } else { newest_first };
        self.user_key.cmp(other.user_key).then(versions)
    }
}

impl PartialOrd for InternalKey<'_> {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The first eight bytes of a key as a big-endian number, padded with zeros: comparing two heads orders two keys unless the
/// heads are equal. Saves following a pointer to the key in most comparisons (the "poor man's normalized key" of Graefe and
/// Larson, 2001).
#[inline]
pub fn key_head(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0u8; 8];
            head[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(head)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newer versions of a key come first; other keys keep their order.
    #[test]
    fn newest_first_within_a_key() {
        let key = |user_key, version, kind| InternalKey::new(user_key, Trailer::new(Version::from_u64(version), kind));
        let ordered = [
            key(b"a", 9, ValueKind::Tombstone),
            key(b"a", 2, ValueKind::Value),
            key(b"aa", 5, ValueKind::Value),
            key(b"b", 1, ValueKind::Value),
        ];
        assert!(ordered.is_sorted());
        assert!(InternalKey::seek(b"a", Version::from_u64(9)) < ordered[0]);
        assert!(InternalKey::seek(b"a", Version::from_u64(8)) > ordered[0]);
    }

    /// Heads order keys that differ within eight bytes and tie otherwise.
    #[test]
    fn heads_order_keys() {
        assert!(key_head(b"a") < key_head(b"b"));
        assert!(key_head(b"abcdefgh") == key_head(b"abcdefghi"));
        assert!(key_head(b"a") == key_head(b"a\0"));
    }
}
