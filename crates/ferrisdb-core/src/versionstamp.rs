//! [`Versionstamp`]: ten bytes, unique and ordered, that a commit fills in.
//!
//! # Format
//!   commit version   u64, big-endian
//!   batch index      u16, big-endian: which transaction of the batch that was given this version
//!
//! A template (the key of a `SetVersionstampedKey`, the value of a `SetVersionstampedValue`) ends with four bytes that say,
//! little-endian, where the ten bytes go; [`fill`] removes the four and writes the ten.

use std::fmt;

use bytes::Bytes;

use crate::version::Version;

/// Bytes of a versionstamp.
pub const VERSIONSTAMP_BYTES: usize = 10;
/// Bytes at the end of a template that say where the versionstamp goes.
pub const OFFSET_BYTES: usize = 4;

/// Where a transaction stands in the order of all commits. Ordered as commits are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versionstamp([u8; VERSIONSTAMP_BYTES]);

impl Versionstamp {
    /// The stamp of the `batch_index`-th transaction committed at `version`.
    pub fn new(version: Version, batch_index: u16) -> Versionstamp {
        let mut bytes = [0; VERSIONSTAMP_BYTES];
        bytes[..8].copy_from_slice(&version.get().to_be_bytes());
        bytes[8..].copy_from_slice(&batch_index.to_be_bytes());
        Versionstamp(bytes)
    }

    /// A stamp from its bytes.
    pub fn from_bytes(bytes: [u8; VERSIONSTAMP_BYTES]) -> Versionstamp {
        Versionstamp(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; VERSIONSTAMP_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Versionstamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Versionstamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where a template's stamp goes, or `None` if the template is too short or the stamp would not fit.
pub fn stamp_offset(template: &[u8]) -> Option<usize> {
    let body = template.len().checked_sub(OFFSET_BYTES)?;
    let offset: [u8; OFFSET_BYTES] = template[body..].try_into().expect("four bytes were split off");
    // The number is signed in FoundationDB's clients, and a negative one is refused there too.
    let offset = usize::try_from(i32::from_le_bytes(offset)).ok()?;
    (offset.checked_add(VERSIONSTAMP_BYTES)? <= body).then_some(offset)
}

/// The template without its last four bytes and with `stamp` in its place, or `None` if [`stamp_offset`] has none.
pub fn fill(template: &[u8], stamp: Versionstamp) -> Option<Bytes> {
    let offset = stamp_offset(template)?;
    let mut bytes = template[..template.len() - OFFSET_BYTES].to_vec();
    bytes[offset..offset + VERSIONSTAMP_BYTES].copy_from_slice(&stamp.0);
    Some(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_goes_where_the_template_says() {
        let stamp = Versionstamp::new(Version::from_u64(0x0102), 0x0304);
        let template = [b"ab__________c".as_slice(), &2i32.to_le_bytes()].concat();
        let filled = fill(&template, stamp).expect("it fits");
        assert_eq!(filled.as_ref(), b"ab\0\0\0\0\0\0\x01\x02\x03\x04c");
    }

    /// One byte too far, a negative offset, and a template without room for the offset itself.
    #[test]
    fn a_stamp_that_does_not_fit_is_refused() {
        for (body, offset) in [(12, 3), (9, 0), (20, -1), (20, i32::MAX)] {
            let template = [vec![0; body].as_slice(), &i32::to_le_bytes(offset)].concat();
            assert_eq!(stamp_offset(&template), None, "{body} bytes, offset {offset}");
        }
        assert_eq!(stamp_offset(b"abc"), None);
        assert_eq!(stamp_offset(&[vec![0; 12].as_slice(), &2i32.to_le_bytes()].concat()), Some(2));
    }
}
