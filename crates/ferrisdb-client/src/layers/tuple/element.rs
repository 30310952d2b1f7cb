//! [`Element`]: what a tuple is made of.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

use ferrisdb_core::{Bytes, Versionstamp};

use super::{Tuple, encode};

/// An element of a tuple. Types sort in the order in which they stand here; equality and order are those of the packed bytes, so that `-0.0`
/// comes before `0.0` and a NaN equals itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Element {
    /// No value.
    Null,
    /// A byte string.
    Bytes(Bytes),
    /// A string.
    String(String),
    /// A nested tuple.
    Tuple(Tuple),
    /// An integer that fits an `i64`.
    Int(i64),
    /// An integer that does not.
    BigInt(BigInt),
    /// A 32-bit floating-point number.
    Float(f32),
    /// A 64-bit floating-point number.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// A UUID.
    Uuid([u8; 16]),
    /// A versionstamp, perhaps of a commit to come.
    Versionstamp(TupleVersionstamp),
}

/// An integer beyond 64 bits, up to 255 bytes. Made only of numbers that do not fit an [`i64`], so that each number has one [`Element`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BigInt {
    is_negative: bool,
    /// Big-endian, without leading zeros.
    magnitude: Vec<u8>,
}

impl BigInt {
    /// The element of the number with this sign and big-endian magnitude.
    ///
    /// # Panics
    /// Above 255 bytes: the encoding has no more.
    pub fn element(is_negative: bool, magnitude: &[u8]) -> Element {
        let zeros = magnitude.iter().take_while(|&&byte| byte == 0).count();
        let magnitude = &magnitude[zeros..];
        assert!(magnitude.len() <= 255, "an integer in a tuple has at most 255 bytes");
        if magnitude.len() <= 8 {
            let mut bytes = [0; 8];
            bytes[8 - magnitude.len()..].copy_from_slice(magnitude);
            let number = u64::from_be_bytes(bytes);
            let small = if is_negative { 0i64.checked_sub_unsigned(number) } else { i64::try_from(number).ok() };
            if let Some(small) = small {
                return Element::Int(small);
            }
        }
        Element::BigInt(BigInt { is_negative, magnitude: magnitude.to_vec() })
    }

    /// True below zero.
    pub fn is_negative(&self) -> bool {
        self.is_negative
    }

    /// The absolute value, big-endian, without leading zeros.
    pub fn magnitude(&self) -> &[u8] {
        &self.magnitude
    }
}

/// A versionstamp in a tuple: that of a commit, and two bytes by which a transaction orders its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TupleVersionstamp {
    /// The commit's; `None` for the commit that the tuple will be written in.
    pub commit: Option<Versionstamp>,
    /// The user's.
    pub user: u16,
}

impl TupleVersionstamp {
    /// The stamp that the commit fills in.
    pub const fn incomplete(user: u16) -> TupleVersionstamp {
        TupleVersionstamp { commit: None, user }
    }
}

impl Element {
    fn packed(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode::elements(std::slice::from_ref(self), &mut bytes);
        bytes
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Element) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Element {}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Element) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Element) -> Ordering {
        self.packed().cmp(&other.packed())
    }
}

impl Hash for Element {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.packed().hash(state);
    }
}

macro_rules! from {
    ($($from:ty => |$value:ident| $element:expr;)*) => {
        $(impl From<$from> for Element {
            fn from($value: $from) -> Element {
                $element
            }
        })*
    };
}

from! {
    &[u8] => |value| Element::Bytes(Bytes::copy_from_slice(value));
    Vec<u8> => |value| Element::Bytes(Bytes::from(value));
    Bytes => |value| Element::Bytes(value);
    &str => |value| Element::String(value.to_owned());
    String => |value| Element::String(value);
    Tuple => |value| Element::Tuple(value);
    i8 => |value| Element::Int(i64::from(value));
    i16 => |value| Element::Int(i64::from(value));
    i32 => |value| Element::Int(i64::from(value));
    i64 => |value| Element::Int(value);
    i128 => |value| BigInt::element(value < 0, &value.unsigned_abs().to_be_bytes());
    u8 => |value| Element::Int(i64::from(value));
    u16 => |value| Element::Int(i64::from(value));
    u32 => |value| Element::Int(i64::from(value));
    u64 => |value| BigInt::element(false, &value.to_be_bytes());
    u128 => |value| BigInt::element(false, &value.to_be_bytes());
    f32 => |value| Element::Float(value);
    f64 => |value| Element::Double(value);
    bool => |value| Element::Bool(value);
    TupleVersionstamp => |value| Element::Versionstamp(value);
}

impl<const N: usize> From<&[u8; N]> for Element {
    fn from(value: &[u8; N]) -> Element {
        Element::Bytes(Bytes::copy_from_slice(value))
    }
}

impl<T: Into<Element>> From<Option<T>> for Element {
    fn from(value: Option<T>) -> Element {
        value.map_or(Element::Null, Into::into)
    }
}
