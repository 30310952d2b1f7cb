//! Keys, ranges of keys, and the three key spaces.
//!
//! A key is a byte string; keys are ordered bytewise, a prefix before what it is a prefix of. Three spaces, one order:
//!
//! ```text
//! ''       ..  '\xff'       the user's
//! '\xff'   ..  '\xff\xff'   the system's: ordinary data, so that metadata is transactional too
//! '\xff\xff' ..             special: answered by the client, stored nowhere
//! ```

use bytes::Bytes;

/// Where the user's keys end and the system's begin.
pub const USER_END: &[u8] = b"\xff";
/// While this system key has a value the database is locked: only transactions that say that they know of it may begin or commit. Its
/// value is the versionstamp of the commit that locked it, then whatever that chose to be known by.
pub const DATABASE_LOCK_KEY: &[u8] = b"\xff/dbLocked";
/// Where stored keys end and special ones begin.
pub const SYSTEM_END: &[u8] = b"\xff\xff";

/// The keys `k` with `begin <= k < end`. Empty if `begin >= end`; whether an inverted one is an error is for its user to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyRange {
    /// The first key.
    pub begin: Bytes,
    /// The first key that is not in the range any more.
    pub end: Bytes,
}

impl KeyRange {
    /// `begin..end`.
    pub fn new(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> KeyRange {
        KeyRange { begin: begin.into(), end: end.into() }
    }

    /// Only `key`: `key..key\0`.
    pub fn single(key: &[u8]) -> KeyRange {
        // One allocation for both ends: the begin is a slice of the end.
        let end = key_after(key);
        KeyRange { begin: end.slice(..key.len()), end }
    }

    /// All keys that begin with `prefix`. With a prefix of nothing but `0xFF`, or none at all, there is no last such
    /// key, and the range goes to the end of the system key space.
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        let end = prefix_end(prefix).unwrap_or_else(|| Bytes::from_static(SYSTEM_END));
        KeyRange { begin: Bytes::copy_from_slice(prefix), end }
    }

    /// True if no key is in it.
    pub fn is_empty(&self) -> bool {
        self.begin >= self.end
    }

    /// True if `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.begin <= key && key < self.end
    }

    /// True if some key is in both.
    pub fn intersects(&self, other: &KeyRange) -> bool {
        self.begin < other.end && other.begin < self.end && !self.is_empty() && !other.is_empty()
    }
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// The first key after `key`: `key\0`.
pub fn key_after(key: &[u8]) -> Bytes {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    Bytes::from(after)
}

/// The first key after all keys that begin with `prefix`, or `None` if there is none, because the prefix consists of
/// `0xFF` alone or is empty. (FoundationDB's bindings call it `strinc`.)
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(Bytes::from(end))
}

/// `bytes` as text for people: printable ASCII as it is, everything else as `\xNN`, a backslash doubled; long ones are cut.
pub fn printable(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 64;
    let mut text = String::with_capacity(bytes.len().min(SHOWN_MAX) + 8);
    for &byte in bytes.iter().take(SHOWN_MAX) {
        match byte {
            b'\\' => text.push_str("\\\\"),
            0x20..=0x7E => text.push(char::from(byte)),
            _ => {
                use std::fmt::Write as _;
                write!(text, "\\x{byte:02x}").expect("writing to a String cannot fail");
            }
        }
    }
    if bytes.len() > SHOWN_MAX {
        use std::fmt::Write as _;
        write!(text, "... ({} bytes)", bytes.len()).expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_behind_it() {
        assert_eq!(prefix_end(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(prefix_end(b"a\xff\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn ranges_are_half_open() {
        let range = KeyRange::new(&b"b"[..], &b"d"[..]);
        assert!(range.contains(b"b") && range.contains(b"c\xff") && !range.contains(b"d") && !range.contains(b"a"));
        assert!(range.intersects(&KeyRange::single(b"c")));
        assert!(!range.intersects(&KeyRange::new(&b"d"[..], &b"e"[..])), "they only touch");
        assert!(!range.intersects(&KeyRange::new(&b"c"[..], &b"c"[..])), "an empty range meets nothing");
        assert!(KeyRange::single(b"").contains(b"") && !KeyRange::single(b"").contains(b"\0"));
    }

    #[test]
    fn keys_are_shown_as_text_and_cut() {
        assert_eq!(printable(b"a\\\x00\xff"), "a\\\\\\x00\\xff");
        assert!(printable(&[b'x'; 100]).ends_with("... (100 bytes)"));
    }
}
