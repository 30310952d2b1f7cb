//! [`Tuple`]: typed elements as keys that sort as the elements do.
//!
//! The encoding is FoundationDB's published one, byte for byte. Its idea: each element begins with a code that orders the types, and each type's
//! bytes sort as its values do, so that comparing packed tuples is comparing bytes, and a packed prefix is a prefix of the packed whole.
//!
//! # Format
//! ```text
//!   00              null; within a nested tuple 00 FF
//!   01 bytes 00     byte string, each 00 in it written 00 FF
//!   02 bytes 00     UTF-8 string, likewise
//!   05 elements 00  nested tuple
//!   0B n^FF bytes   negative integer of n > 8 bytes, one's complement
//!   0C..13 bytes    negative integer of 8..1 bytes, one's complement
//!   14              zero
//!   15..1C bytes    positive integer of 1..8 bytes, big-endian
//!   1D n bytes      positive integer of n > 8 bytes
//!   20, 21 bytes    f32, f64: big-endian, all bits flipped if negative, otherwise the sign bit
//!   26, 27          false, true
//!   30 bytes        UUID, 16 bytes
//!   33 bytes        versionstamp: ten bytes of the commit and two of the user
//! ```
//!
//! # Limits
//! Tuples nest 100 deep, and an integer has 255 bytes. Decoding stops with an error beyond; encoding panics, because then the caller built it.

mod decode;
mod element;
mod encode;

#[cfg(test)]
mod tests;

use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result};

pub use element::{BigInt, Element, TupleVersionstamp};

/// How deep tuples nest.
pub const DEPTH_MAX: usize = 100;

/// An ordered list of elements. Equality and order are those of the packed bytes.
///
/// ```
/// use ferrisdb_client::layers::Tuple;
///
/// let tuple = Tuple::from(("orders", 7, 2.5));
/// assert_eq!(Tuple::unpack(&tuple.pack())?, tuple);
/// assert!(Tuple::from((-1,)) < Tuple::from((0,)) && Tuple::from((9,)) < Tuple::from((10,)));
/// # Ok::<(), ferrisdb_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tuple {
    elements: Vec<Element>,
}

impl Tuple {
    /// The empty tuple.
    pub const fn new() -> Tuple {
        Tuple { elements: Vec::new() }
    }

    /// With one more element at the end.
    #[must_use]
    pub fn with(mut self, element: impl Into<Element>) -> Tuple {
        self.elements.push(element.into());
        self
    }

    /// The elements.
    pub fn elements(&self) -> &[Element] {
        &self.elements
    }

    /// The elements.
    pub fn into_elements(self) -> Vec<Element> {
        self.elements
    }

    /// The element at `index`.
    ///
    /// # Errors
    /// `invalid_tuple_index`.
    pub fn get(&self, index: usize) -> Result<&Element> {
        self.elements.get(index).ok_or_else(|| {
            let len = self.elements.len();
            Error::with(Code::InvalidTupleIndex, format!("element {index} of a tuple that has {len}"))
        })
    }

    /// The packed bytes.
    ///
    /// # Panics
    /// If a versionstamp is incomplete: such a tuple has no bytes before its commit.
    pub fn pack(&self) -> Bytes {
        let mut bytes = Vec::new();
        self.pack_into(&mut bytes);
        Bytes::from(bytes)
    }

    /// Appends the packed bytes. Panics as [`pack`](Self::pack).
    pub fn pack_into(&self, out: &mut Vec<u8>) {
        let stamps = encode::elements(&self.elements, out);
        assert!(stamps.is_empty(), "a tuple with an incomplete versionstamp is packed by pack_with_versionstamp");
    }

    /// The template for `SetVersionstampedKey` (or value): `prefix`, the packed bytes with a hole where the one incomplete versionstamp
    /// goes, and the place of the hole.
    ///
    /// # Errors
    /// `client_invalid_operation` if there is not exactly one incomplete versionstamp.
    pub fn pack_with_versionstamp(&self, prefix: &[u8]) -> Result<Bytes> {
        let mut bytes = prefix.to_vec();
        let stamps = encode::elements(&self.elements, &mut bytes);
        let [offset] = stamps[..] else {
            let count = stamps.len();
            let detail = format!("a versionstamped tuple has one incomplete versionstamp, this one has {count}");
            return Err(Error::with(Code::ClientInvalidOperation, detail));
        };
        let offset = u32::try_from(offset).map_err(|_| Error::new(Code::KeyTooLarge))?;
        bytes.extend_from_slice(&offset.to_le_bytes());
        Ok(Bytes::from(bytes))
    }

    /// The tuple of packed bytes.
    ///
    /// # Errors
    /// `invalid_tuple_data_type`, saying what was found at which byte.
    pub fn unpack(bytes: &[u8]) -> Result<Tuple> {
        Ok(Tuple { elements: decode::elements(bytes)? })
    }

    /// All tuples that begin with this one and are longer.
    pub fn range(&self) -> KeyRange {
        super::Subspace::from_tuple(self.clone()).range()
    }
}

/// The packed bytes of each element of a packed tuple.
///
/// # Errors
/// `invalid_tuple_data_type`, as [`Tuple::unpack`].
pub(crate) fn split(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    decode::split(bytes)
}

impl FromIterator<Element> for Tuple {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Tuple {
        Tuple { elements: elements.into_iter().collect() }
    }
}

impl From<Vec<Element>> for Tuple {
    fn from(elements: Vec<Element>) -> Tuple {
        Tuple { elements }
    }
}

impl From<()> for Tuple {
    fn from((): ()) -> Tuple {
        Tuple::new()
    }
}

macro_rules! from_rust_tuples {
    ($($name:ident)+) => {
        impl<$($name: Into<Element>),+> From<($($name,)+)> for Tuple {
            #[expect(non_snake_case, reason = "the type parameters' names are the variables' too")]
            fn from(($($name,)+): ($($name,)+)) -> Tuple {
                Tuple { elements: vec![$($name.into()),+] }
            }
        }
    };
}

from_rust_tuples!(A);
from_rust_tuples!(A B);
from_rust_tuples!(A B C);
from_rust_tuples!(A B C D);
from_rust_tuples!(A B C D E);
from_rust_tuples!(A B C D E F);
from_rust_tuples!(A B C D E F G);
from_rust_tuples!(A B C D E F G H);
