//! Atomic operations, computed with 128-bit numbers: another way than the database's own, which goes byte by byte.
//!
//! Operands of the programs have at most [`OPERAND_BYTES_MAX`] bytes, so that a number fits.

use ferrisdb_core::{Bytes, MutationKind};

/// A number of so many bytes fits a `u128`.
pub(super) const OPERAND_BYTES_MAX: usize = 16;

/// The value after the operation, as section 6 of the contract says.
pub(super) fn fold(kind: MutationKind, existing: Option<&Bytes>, operand: &Bytes) -> Option<Bytes> {
    let Some(existing) = existing else {
        return match kind {
            MutationKind::CompareAndClear => None,
            _ => Some(operand.clone()),
        };
    };
    let (e, p) = (number(existing, operand.len()), number(operand, operand.len()));
    let is_empty = existing.is_empty() || operand.is_empty();
    let as_wide_as_the_operand = |number: u128| Some(Bytes::copy_from_slice(&number.to_le_bytes()[..operand.len()]));
    match kind {
        MutationKind::Add | MutationKind::BitOr | MutationKind::BitXor | MutationKind::Max if is_empty => {
            Some(operand.clone())
        }
        MutationKind::Add => as_wide_as_the_operand(e.wrapping_add(p)),
        MutationKind::BitAnd => as_wide_as_the_operand(e & p),
        MutationKind::BitOr => as_wide_as_the_operand(e | p),
        MutationKind::BitXor => as_wide_as_the_operand(e ^ p),
        MutationKind::Max => as_wide_as_the_operand(e.max(p)),
        MutationKind::Min => as_wide_as_the_operand(e.min(p)),
        MutationKind::ByteMin => Some(if existing < operand { existing.clone() } else { operand.clone() }),
        MutationKind::ByteMax => Some(if existing > operand { existing.clone() } else { operand.clone() }),
        MutationKind::AppendIfFits => {
            let mut both = existing.to_vec();
            both.extend_from_slice(operand);
            Some(if both.len() > 100_000 { existing.clone() } else { Bytes::from(both) })
        }
        MutationKind::CompareAndClear => (existing != operand).then(|| existing.clone()),
        _ => panic!("{kind:?} is no atomic operation"),
    }
}

/// The first `width` bytes as a little-endian number.
fn number(bytes: &[u8], width: usize) -> u128 {
    assert!(width <= OPERAND_BYTES_MAX, "programs have shorter operands");
    bytes.iter().take(width).rev().fold(0, |number, &byte| number << 8 | u128::from(byte))
}
