//! Tests of transactions as programs see them: the rules of the contract, section by section, and random programs against a model.

mod basics;
mod commits;
mod conflicts;
mod dropping;
mod limits;
mod locks;
mod mapped;
mod own_writes;
mod random;
mod ranges;
mod special_keys;
mod state_machine;
mod watches;

use ferrisdb_core::{KeyRange, MutationKind, Result, versionstamp};

use crate::Transaction;

/// The number of a result's error; 0: none.
fn code<T>(result: Result<T>) -> u16 {
    result.map_or_else(|error| error.code().number(), |_| 0)
}

/// A range between two texts.
fn range(begin: &str, end: &str) -> KeyRange {
    KeyRange::new(begin.as_bytes().to_vec(), end.as_bytes().to_vec())
}

/// A template: `before`, ten bytes for the stamp, `after`, and where the stamp goes.
fn template(before: &str, after: &str) -> Vec<u8> {
    let offset = u32::try_from(before.len()).expect("short");
    [before.as_bytes(), &[0; versionstamp::VERSIONSTAMP_BYTES], after.as_bytes(), &offset.to_le_bytes()].concat()
}

/// Makes `key` unreadable.
fn stamp_value(tx: &Transaction, key: &str) {
    tx.atomic_op(key, template("", ""), MutationKind::SetVersionstampedValue);
}

/// Keys and values as text, for assertions.
fn text(rows: &[ferrisdb_core::KeyValue]) -> String {
    let row = |row: &ferrisdb_core::KeyValue| {
        format!("{}={}", String::from_utf8_lossy(&row.key), String::from_utf8_lossy(&row.value))
    };
    rows.iter().map(row).collect::<Vec<_>>().join(" ")
}

/// Conflict ranges as text.
fn ranges_text(ranges: &[KeyRange]) -> String {
    let range = |range: &KeyRange| format!("{}..{}", range.begin.escape_ascii(), range.end.escape_ascii());
    ranges.iter().map(range).collect::<Vec<_>>().join(" ")
}
