//! [`Mutation`]: what a transaction changes, and how atomic operations compute.

use bytes::Bytes;

/// What a mutation does. The numbers are FoundationDB's and go over the wire and into the log.
///
/// `E` is the key's existing value, `P` the operand. Where a rule says "resized", `E` is cut or filled with zeros at its end to the
/// length of `P`, which is the length of the result; numbers are little-endian and unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MutationKind {
    /// The value becomes the operand.
    Set = 0,
    /// The keys from `key` up to, not including, `value` lose their values.
    ClearRange = 1,
    /// `E + P`, the carry dropped; `P` if either is absent or empty.
    Add = 2,
    /// `E & P`, resized; `P` if `E` is absent.
    BitAnd = 6,
    /// `E | P`, resized; `P` if either is absent or empty.
    BitOr = 7,
    /// `E ^ P`, resized; `P` if either is absent or empty.
    BitXor = 8,
    /// `E` followed by `P`, or `E` unchanged if that were longer than a value may be.
    AppendIfFits = 9,
    /// The greater of `E` and `P` as numbers, resized; `P` if either is absent or empty.
    Max = 12,
    /// The lesser of `E` and `P` as numbers, resized; `P` if `E` is absent.
    Min = 13,
    /// The key is a template into which the commit's versionstamp goes; the operand is the value.
    SetVersionstampedKey = 14,
    /// The operand is a template into which the commit's versionstamp goes.
    SetVersionstampedValue = 15,
    /// The lesser of `E` and `P` as byte strings, not resized; `P` if `E` is absent.
    ByteMin = 16,
    /// The greater of `E` and `P` as byte strings, not resized; `P` if `E` is absent.
    ByteMax = 17,
    /// No value if `E` equals `P`, otherwise unchanged.
    CompareAndClear = 20,
}

impl MutationKind {
    /// The kind with this number; 18 and 19 are FoundationDB's internal numbers for [`Min`](Self::Min) and
    /// [`BitAnd`](Self::BitAnd) as they are since API version 510, the only way they are here.
    pub const fn from_number(number: u8) -> Option<MutationKind> {
        Some(match number {
            0 => MutationKind::Set,
            1 => MutationKind::ClearRange,
            2 => MutationKind::Add,
            6 | 19 => MutationKind::BitAnd,
            7 => MutationKind::BitOr,
            8 => MutationKind::BitXor,
            9 => MutationKind::AppendIfFits,
            12 => MutationKind::Max,
            13 | 18 => MutationKind::Min,
            14 => MutationKind::SetVersionstampedKey,
            15 => MutationKind::SetVersionstampedValue,
            16 => MutationKind::ByteMin,
            17 => MutationKind::ByteMax,
            20 => MutationKind::CompareAndClear,
            _ => return None,
        })
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// True if the result depends on the existing value: everything that [`apply`] computes.
    pub const fn is_atomic(self) -> bool {
        !matches!(
            self,
            MutationKind::Set
                | MutationKind::ClearRange
                | MutationKind::SetVersionstampedKey
                | MutationKind::SetVersionstampedValue
        )
    }
}

/// One change. Order within a transaction matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mutation {
    /// What it does.
    pub kind: MutationKind,
    /// The key, the key template, or the begin of the range.
    pub key: Bytes,
    /// The value, the operand, the value template, or the end of the range.
    pub value: Bytes,
}

impl Mutation {
    /// A mutation of any kind.
    pub fn new(kind: MutationKind, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Mutation {
        Mutation { kind, key: key.into(), value: value.into() }
    }

    /// `key` becomes `value`.
    pub fn set(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Mutation {
        Mutation::new(MutationKind::Set, key, value)
    }

    /// The keys in `begin..end` lose their values.
    pub fn clear_range(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> Mutation {
        Mutation::new(MutationKind::ClearRange, begin, end)
    }

    /// Bytes that it counts for in a transaction's size.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// The value after an atomic operation: `existing` with `operand` applied, or `None` for no value. No result is longer than
/// the longer of `value_bytes_max` (for [`MutationKind::AppendIfFits`]) and the inputs.
///
/// # Panics
/// If `kind` is not atomic: what a set, a clear or a versionstamp does depends on no existing value.
pub fn apply(kind: MutationKind, existing: Option<&Bytes>, operand: &Bytes, value_bytes_max: usize) -> Option<Bytes> {
    assert!(kind.is_atomic(), "{kind:?} is not computed from an existing value");
    let Some(existing) = existing else {
        // Nothing to compute with: the operand is the value, but comparing with it finds nothing to clear.
        return (kind != MutationKind::CompareAndClear).then(|| operand.clone());
    };
    Some(match kind {
        MutationKind::CompareAndClear if existing == operand => return None,
        MutationKind::CompareAndClear => existing.clone(),
        MutationKind::AppendIfFits if existing.len() + operand.len() > value_bytes_max => existing.clone(),
        MutationKind::AppendIfFits => Bytes::from([existing.as_ref(), operand.as_ref()].concat()),
        MutationKind::ByteMin => existing.min(operand).clone(),
        MutationKind::ByteMax => existing.max(operand).clone(),
        MutationKind::BitAnd => combine(existing, operand, |e, p| e & p),
        MutationKind::Min => pick(existing, operand, |existing, operand| existing < operand),
        // The operations that take the operand for an absent value take it for an empty one too.
        _ if existing.is_empty() => operand.clone(),
        MutationKind::BitOr => combine(existing, operand, |e, p| e | p),
        MutationKind::BitXor => combine(existing, operand, |e, p| e ^ p),
        MutationKind::Max => pick(existing, operand, |existing, operand| existing > operand),
        MutationKind::Add => {
            let mut carry = false;
            combine(existing, operand, |e, p| {
                let (sum, first) = e.overflowing_add(p);
                let (sum, second) = sum.overflowing_add(u8::from(carry));
                carry = first || second;
                sum
            })
        }
        _ => unreachable!("is_atomic() let it through"),
    })
}

/// Byte by byte, least significant first; the result has the operand's length.
fn combine(existing: &[u8], operand: &[u8], mut f: impl FnMut(u8, u8) -> u8) -> Bytes {
    let existing = existing.iter().copied().chain(std::iter::repeat(0));
    operand.iter().zip(existing).map(|(&p, e)| f(e, p)).collect()
}

/// The resized existing value if `prefer` says so of the two numbers (most significant byte first), otherwise the operand.
fn pick(existing: &[u8], operand: &Bytes, prefer: fn(&[u8], &[u8]) -> bool) -> Bytes {
    let resized = combine(existing, operand, |e, _| e);
    let big_endian = |number: &[u8]| -> Vec<u8> { number.iter().rev().copied().collect() };
    if prefer(&big_endian(&resized), &big_endian(operand)) { resized } else { operand.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MutationKind::*;

    /// The table of the contract, section 6, case by case: kind, existing, operand, result.
    #[test]
    fn atomic_operations_compute_what_the_contract_says() {
        type Case = (MutationKind, Option<&'static [u8]>, &'static [u8], Option<&'static [u8]>);
        let cases: &[Case] = &[
            (Add, None, b"\x05", Some(b"\x05")),
            (Add, Some(b""), b"\x05", Some(b"\x05")),
            (Add, Some(b"\xff"), b"\x01", Some(b"\x00")),
            (Add, Some(b"\xff\xff\xff"), b"\x01\x00", Some(b"\x00\x00")),
            (Add, Some(b"\xff"), b"\x01\x00", Some(b"\x00\x01")),
            (Add, Some(b"\x07"), b"", Some(b"")),
            (BitAnd, None, b"\x0f", Some(b"\x0f")),
            (BitAnd, Some(b""), b"\x0f\x01", Some(b"\x00\x00")),
            (BitAnd, Some(b"\xff"), b"\x0f\x01", Some(b"\x0f\x00")),
            (BitOr, Some(b"\xf0\x01\x02"), b"\x0f\x10", Some(b"\xff\x11")),
            (BitOr, Some(b""), b"\x0f", Some(b"\x0f")),
            (BitXor, Some(b"\xff"), b"\x0f\x01", Some(b"\xf0\x01")),
            (BitXor, None, b"\x0f", Some(b"\x0f")),
            (AppendIfFits, None, b"ab", Some(b"ab")),
            (AppendIfFits, Some(b"ab"), b"cd", Some(b"abcd")),
            (AppendIfFits, Some(b"abcdefgh"), b"ijk", Some(b"abcdefgh")),
            (Max, None, b"\x01", Some(b"\x01")),
            (Max, Some(b"\x01\x02"), b"\x02\x01", Some(b"\x01\x02")),
            (Max, Some(b"\x01\x02\x03"), b"\x02\x01", Some(b"\x01\x02")),
            (Max, Some(b"\x05"), b"\x04\x00", Some(b"\x05\x00")),
            (Max, Some(b""), b"\x00", Some(b"\x00")),
            (Max, Some(b"\x05"), b"", Some(b"")),
            (Min, None, b"\x09", Some(b"\x09")),
            (Min, Some(b""), b"\x09", Some(b"\x00")),
            (Min, Some(b"\x01\x02"), b"\x02\x01", Some(b"\x02\x01")),
            (Min, Some(b"\x05\x00\x01"), b"\x06\x00", Some(b"\x05\x00")),
            (Min, Some(b"\x05"), b"", Some(b"")),
            (ByteMin, Some(b"abc"), b"abd", Some(b"abc")),
            (ByteMin, Some(b""), b"a", Some(b"")),
            (ByteMin, None, b"a", Some(b"a")),
            (ByteMax, Some(b"abc"), b"ab", Some(b"abc")),
            (ByteMax, None, b"", Some(b"")),
            (CompareAndClear, None, b"", None),
            (CompareAndClear, Some(b"x"), b"x", None),
            (CompareAndClear, Some(b"x"), b"y", Some(b"x")),
        ];
        for &(kind, existing, operand, result) in cases {
            let existing_bytes = existing.map(Bytes::from_static);
            let found = apply(kind, existing_bytes.as_ref(), &Bytes::from_static(operand), 10);
            assert_eq!(found.as_deref(), result, "{kind:?} of {existing:?} and {operand:?}");
        }
    }

    #[test]
    fn every_number_is_found_again() {
        let known: Vec<u8> = (0..=255).filter(|&number| MutationKind::from_number(number).is_some()).collect();
        assert_eq!(known, [0, 1, 2, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
        for number in [0, 1, 2, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 20] {
            assert_eq!(MutationKind::from_number(number).map(MutationKind::number), Some(number));
        }
    }
}
