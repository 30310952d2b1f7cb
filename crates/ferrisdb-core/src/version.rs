//! [`Version`]: the one number that orders writes.
//!
//! In the storage engine it is the sequence number of a write; in the database it is the commit version (and the read
//! version, where it is read at). It is one idea and therefore one type. Gaps are legal everywhere.

use std::fmt;

/// The multi-version number of a write. Larger is newer; gaps are legal; at most [`Version::MAX`] = 2^56 − 1, so that a
/// version and a one-byte kind share a `u64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

impl Version {
    /// Before every write. An entry at version zero is visible at every version.
    pub const ZERO: Version = Version(0);
    /// The greatest version: 56 bits. At a million a second it is reached after 2,283 years.
    pub const MAX: Version = Version((1 << 56) - 1);

    /// A version, or `None` above [`Version::MAX`].
    #[inline]
    pub const fn new(number: u64) -> Option<Version> {
        if number <= Version::MAX.0 { Some(Version(number)) } else { None }
    }

    /// A version from a number that is known to fit, such as a literal.
    ///
    /// # Panics
    /// Above [`Version::MAX`]. For numbers from outside use [`Version::new`].
    #[inline]
    pub const fn from_u64(number: u64) -> Version {
        assert!(number <= Version::MAX.0, "a version has 56 bits");
        Version(number)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next greater version.
    ///
    /// # Panics
    /// At [`Version::MAX`]: the number space is used up, which no running system reaches.
    #[inline]
    pub const fn next(self) -> Version {
        Version::from_u64(self.0 + 1)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit is exactly 2^56 − 1, and the checked constructor is the only one that refuses quietly.
    #[test]
    fn a_version_has_56_bits() {
        assert_eq!(Version::new((1 << 56) - 1), Some(Version::MAX));
        assert_eq!(Version::new(1 << 56), None);
        assert!(std::panic::catch_unwind(|| Version::MAX.next()).is_err());
    }
}
