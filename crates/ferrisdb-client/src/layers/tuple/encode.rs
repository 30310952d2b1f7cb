//! Packing.

use super::element::{BigInt, Element};
use super::{DEPTH_MAX, Tuple};

pub(super) const NULL: u8 = 0x00;
pub(super) const BYTES: u8 = 0x01;
pub(super) const STRING: u8 = 0x02;
pub(super) const NESTED: u8 = 0x05;
pub(super) const NEGATIVE_LONG: u8 = 0x0B;
pub(super) const ZERO: u8 = 0x14;
pub(super) const POSITIVE_LONG: u8 = 0x1D;
pub(super) const FLOAT: u8 = 0x20;
pub(super) const DOUBLE: u8 = 0x21;
pub(super) const FALSE: u8 = 0x26;
pub(super) const TRUE: u8 = 0x27;
pub(super) const UUID: u8 = 0x30;
pub(super) const VERSIONSTAMP: u8 = 0x33;
/// After a `00` that does not end what it stands in.
pub(super) const ESCAPE: u8 = 0xFF;

/// Appends packed elements; returns where in `out` the ten bytes of each incomplete versionstamp are.
pub(super) fn elements(elements: &[Element], out: &mut Vec<u8>) -> Vec<usize> {
    let mut stamps = Vec::new();
    elements.iter().for_each(|each| element(each, 0, out, &mut stamps));
    stamps
}

fn element(element: &Element, depth: usize, out: &mut Vec<u8>, stamps: &mut Vec<usize>) {
    match element {
        Element::Null if depth > 0 => out.extend([NULL, ESCAPE]),
        Element::Null => out.push(NULL),
        Element::Bytes(bytes) => escaped(BYTES, bytes, out),
        Element::String(string) => escaped(STRING, string.as_bytes(), out),
        Element::Tuple(tuple) => nested(tuple, depth + 1, out, stamps),
        Element::Int(number) => integer(*number < 0, &number.unsigned_abs().to_be_bytes(), out),
        Element::BigInt(number) => big_integer(number, out),
        Element::Float(number) => {
            out.push(FLOAT);
            let bits = number.to_bits();
            let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            out.extend(ordered.to_be_bytes());
        }
        Element::Double(number) => {
            out.push(DOUBLE);
            let bits = number.to_bits();
            let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            out.extend(ordered.to_be_bytes());
        }
        Element::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Element::Uuid(bytes) => {
            out.push(UUID);
            out.extend(bytes);
        }
        Element::Versionstamp(stamp) => {
            out.push(VERSIONSTAMP);
            match &stamp.commit {
                Some(commit) => out.extend(commit.as_bytes()),
                None => {
                    stamps.push(out.len());
                    out.extend([0xFF; 10]);
                }
            }
            out.extend(stamp.user.to_be_bytes());
        }
    }
}

fn escaped(code: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(code);
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(ESCAPE);
        }
    }
    out.push(0);
}

fn nested(tuple: &Tuple, depth: usize, out: &mut Vec<u8>, stamps: &mut Vec<usize>) {
    assert!(depth <= DEPTH_MAX, "tuples nest at most {DEPTH_MAX} deep");
    out.push(NESTED);
    tuple.elements().iter().for_each(|each| element(each, depth, out, stamps));
    out.push(0);
}

/// An integer of at most eight bytes.
fn integer(is_negative: bool, magnitude: &[u8], out: &mut Vec<u8>) {
    let zeros = magnitude.iter().take_while(|&&byte| byte == 0).count();
    let magnitude = &magnitude[zeros..];
    let len = u8::try_from(magnitude.len()).expect("an integer of at most eight bytes");
    out.push(if is_negative { ZERO - len } else { ZERO + len });
    digits(is_negative, magnitude, out);
}

fn big_integer(number: &BigInt, out: &mut Vec<u8>) {
    let magnitude = number.magnitude();
    if magnitude.len() <= 8 {
        return integer(number.is_negative(), magnitude, out);
    }
    let len = u8::try_from(magnitude.len()).expect("BigInt has at most 255 bytes");
    out.extend(if number.is_negative() { [NEGATIVE_LONG, !len] } else { [POSITIVE_LONG, len] });
    digits(number.is_negative(), magnitude, out);
}

/// One's complement puts the larger magnitude first among negative numbers.
fn digits(is_negative: bool, magnitude: &[u8], out: &mut Vec<u8>) {
    out.extend(magnitude.iter().map(|&byte| if is_negative { !byte } else { byte }));
}
