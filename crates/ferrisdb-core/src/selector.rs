//! [`KeySelector`]: a place in the key space, said relative to a key.

use bytes::Bytes;

use crate::key::key_after;

/// A place in the ordered sequence of existing keys: FoundationDB's triple.
///
/// With `or_equal` the reference point is just behind `key`, otherwise just before it. An `offset` of 1 or more names the
/// `offset`-th existing key at or after that point; 0 or less names the `(1 - offset)`-th one before it. Off the front it
/// resolves to the empty key, off the end to the end of the readable key space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySelector {
    /// The key that it is relative to; it need not exist.
    pub key: Bytes,
    /// The reference point is behind `key` rather than before it.
    pub or_equal: bool,
    /// How many existing keys to go.
    pub offset: i32,
}

impl KeySelector {
    /// The last key below `key`.
    pub fn last_less_than(key: impl Into<Bytes>) -> KeySelector {
        KeySelector { key: key.into(), or_equal: false, offset: 0 }
    }

    /// The last key at or below `key`.
    pub fn last_less_or_equal(key: impl Into<Bytes>) -> KeySelector {
        KeySelector { key: key.into(), or_equal: true, offset: 0 }
    }

    /// The first key above `key`.
    pub fn first_greater_than(key: impl Into<Bytes>) -> KeySelector {
        KeySelector { key: key.into(), or_equal: true, offset: 1 }
    }

    /// The first key at or above `key`.
    pub fn first_greater_or_equal(key: impl Into<Bytes>) -> KeySelector {
        KeySelector { key: key.into(), or_equal: false, offset: 1 }
    }

    /// The same place, `by` existing keys further (or back). Saturates.
    #[must_use]
    pub fn offset_by(mut self, by: i32) -> KeySelector {
        self.offset = self.offset.saturating_add(by);
        self
    }

    /// The same place with `or_equal` false: `key` becomes `key\0` where it was true.
    #[must_use]
    pub fn without_or_equal(self) -> KeySelector {
        if self.or_equal {
            KeySelector { key: key_after(&self.key), or_equal: false, offset: self.offset }
        } else {
            self
        }
    }

    /// True if it names its own key whatever exists: "first at or above", the way to say a plain bound.
    pub fn is_first_greater_or_equal(&self) -> bool {
        self.offset == 1 && !self.or_equal
    }
}
