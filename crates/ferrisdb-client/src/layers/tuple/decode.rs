//! Unpacking: bytes from a database are anyone's, so everything is checked.

use ferrisdb_core::{Bytes, Code, Error, Result, Versionstamp};

use super::element::{BigInt, Element, TupleVersionstamp};
use super::encode::{
    BYTES, DOUBLE, ESCAPE, FALSE, FLOAT, NEGATIVE_LONG, NESTED, NULL, POSITIVE_LONG, STRING, TRUE, UUID, VERSIONSTAMP,
    ZERO,
};
use super::{DEPTH_MAX, Tuple};

/// The smallest and the largest code of an integer of at most eight bytes.
const INTEGERS: std::ops::RangeInclusive<u8> = ZERO - 8..=ZERO + 8;

pub(super) fn elements(bytes: &[u8]) -> Result<Vec<Element>> {
    let mut reader = Reader { bytes, place: 0 };
    let mut elements = Vec::new();
    while let Some(code) = reader.peek() {
        elements.push(reader.element(code, 0)?);
    }
    Ok(elements)
}

pub(super) fn split(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut reader = Reader { bytes, place: 0 };
    let mut parts = Vec::new();
    while let Some(code) = reader.peek() {
        let begin = reader.place;
        reader.element(code, 0)?;
        parts.push(&bytes[begin..reader.place]);
    }
    Ok(parts)
}

struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::with(Code::InvalidTupleDataType, format!("not a packed tuple: {what} at byte {}", self.place))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.place).copied()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.place..];
        let taken = rest.get(..len).ok_or_else(|| self.error(format_args!("{} of {len} bytes", rest.len())))?;
        self.place += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take returned N bytes"))
    }

    /// The element that begins here with `code`. `depth` is the number of tuples around it.
    fn element(&mut self, code: u8, depth: usize) -> Result<Element> {
        let begin = self.place;
        self.place += 1;
        Ok(match code {
            NULL if depth == 0 => Element::Null,
            NULL => {
                // The caller saw that an escape follows; otherwise it would have been the end.
                self.place += 1;
                Element::Null
            }
            BYTES => Element::Bytes(Bytes::from(self.escaped()?)),
            STRING => {
                let bytes = self.escaped()?;
                let string = String::from_utf8(bytes).map_err(|_| {
                    self.place = begin;
                    self.error("a string that is not UTF-8")
                })?;
                Element::String(string)
            }
            NESTED => Element::Tuple(self.nested(depth + 1)?),
            NEGATIVE_LONG => {
                let len = !self.array::<1>()?[0];
                self.integer(true, usize::from(len))?
            }
            POSITIVE_LONG => {
                let len = self.array::<1>()?[0];
                self.integer(false, usize::from(len))?
            }
            _ if INTEGERS.contains(&code) => self.integer(code < ZERO, usize::from(code.abs_diff(ZERO)))?,
            FLOAT => {
                let ordered = u32::from_be_bytes(self.array()?);
                Element::Float(f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered }))
            }
            DOUBLE => {
                let ordered = u64::from_be_bytes(self.array()?);
                Element::Double(f64::from_bits(if ordered >> 63 == 1 { ordered & !(1 << 63) } else { !ordered }))
            }
            FALSE => Element::Bool(false),
            TRUE => Element::Bool(true),
            UUID => Element::Uuid(self.array()?),
            VERSIONSTAMP => {
                let commit: [u8; 10] = self.array()?;
                let user = u16::from_be_bytes(self.array()?);
                let commit = (commit != [0xFF; 10]).then(|| Versionstamp::from_bytes(commit));
                Element::Versionstamp(TupleVersionstamp { commit, user })
            }
            _ => {
                self.place = begin;
                return Err(self.error(format_args!("the unknown type code {code:#04x}")));
            }
        })
    }

    /// The bytes up to a `00` that is no escape.
    fn escaped(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let byte = self.array::<1>()?[0];
            if byte == 0 {
                if self.peek() != Some(ESCAPE) {
                    return Ok(bytes);
                }
                self.place += 1;
            }
            bytes.push(byte);
        }
    }

    fn nested(&mut self, depth: usize) -> Result<Tuple> {
        if depth > DEPTH_MAX {
            return Err(self.error(format_args!("a tuple nested more than {DEPTH_MAX} deep")));
        }
        let mut elements = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error("a nested tuple without an end")),
                Some(NULL) if self.bytes.get(self.place + 1) != Some(&ESCAPE) => {
                    self.place += 1;
                    return Ok(Tuple::from(elements));
                }
                Some(code) => elements.push(self.element(code, depth)?),
            }
        }
    }

    fn integer(&mut self, is_negative: bool, len: usize) -> Result<Element> {
        let digits = self.take(len)?;
        let magnitude: Vec<u8> = digits.iter().map(|&byte| if is_negative { !byte } else { byte }).collect();
        Ok(BigInt::element(is_negative, &magnitude))
    }
}
