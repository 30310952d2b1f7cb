//! [`Subspace`]: all keys with one prefix, as tuples behind it.

use ferrisdb_core::key::printable;
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result};

use super::tuple::Tuple;

/// A part of the key space: a prefix, and packed tuples behind it.
///
/// ```
/// use ferrisdb_client::layers::Subspace;
///
/// let users = Subspace::from_tuple(("users",));
/// let key = users.pack((42, "name"));
/// assert!(users.contains(&key));
/// assert_eq!(users.unpack(&key)?, (42, "name").into());
/// # Ok::<(), ferrisdb_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Subspace {
    prefix: Bytes,
}

impl Subspace {
    /// The subspace of all keys that begin with these bytes.
    pub fn from_bytes(prefix: impl Into<Bytes>) -> Subspace {
        Subspace { prefix: prefix.into() }
    }

    /// The subspace of all keys that begin with this tuple.
    pub fn from_tuple(tuple: impl Into<Tuple>) -> Subspace {
        Subspace { prefix: tuple.into().pack() }
    }

    /// The subspace within this one of all keys that go on with this tuple.
    #[must_use]
    pub fn subspace(&self, tuple: impl Into<Tuple>) -> Subspace {
        Subspace { prefix: self.pack(tuple) }
    }

    /// The prefix.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// The key of a tuple.
    ///
    /// # Panics
    /// If the tuple has an incomplete versionstamp; see [`pack_with_versionstamp`](Self::pack_with_versionstamp).
    pub fn pack(&self, tuple: impl Into<Tuple>) -> Bytes {
        let mut key = self.prefix.to_vec();
        tuple.into().pack_into(&mut key);
        Bytes::from(key)
    }

    /// The template, for `SetVersionstampedKey`, of the key of a tuple with one incomplete versionstamp.
    ///
    /// # Errors
    /// `client_invalid_operation` if there is none, or more than one.
    pub fn pack_with_versionstamp(&self, tuple: impl Into<Tuple>) -> Result<Bytes> {
        tuple.into().pack_with_versionstamp(&self.prefix)
    }

    /// The tuple of a key.
    ///
    /// # Errors
    /// `key_not_in_subspace`, `invalid_tuple_data_type`.
    pub fn unpack(&self, key: &[u8]) -> Result<Tuple> {
        let rest = key.strip_prefix(self.prefix.as_ref()).ok_or_else(|| {
            let (key, prefix) = (printable(key), printable(&self.prefix));
            Error::with(Code::KeyNotInSubspace, format!("the key '{key}' does not begin with '{prefix}'"))
        })?;
        Tuple::unpack(rest)
    }

    /// All keys of tuples in it: not the bare prefix, nor what no tuple begins with.
    pub fn range(&self) -> KeyRange {
        let with = |byte: u8| Bytes::from([self.prefix.as_ref(), &[byte]].concat());
        KeyRange::new(with(0x00), with(0xFF))
    }

    /// True if the key begins with the prefix.
    pub fn contains(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subspace_nests_and_refuses_foreign_keys() {
        let outer = Subspace::from_bytes(&b"\xfeapp"[..]);
        let inner = outer.subspace((1, "x"));
        let key = inner.pack((true,));
        assert_eq!(outer.unpack(&key).expect("it is within"), (1, "x", true).into());
        assert!(outer.range().contains(&key) && inner.range().contains(&key));
        assert!(!inner.range().contains(inner.prefix()), "the prefix itself is no tuple");
        let error = inner.unpack(b"other").expect_err("it is elsewhere");
        assert_eq!(error.code(), Code::KeyNotInSubspace);
        assert!(error.to_string().contains("'other'"), "{error}");
    }
}
