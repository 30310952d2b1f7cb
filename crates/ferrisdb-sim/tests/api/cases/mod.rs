//! The cases, by what they are about, and what they are written with.

pub(crate) mod basics;
pub(crate) mod commits;
pub(crate) mod conflicts;
pub(crate) mod directories;
pub(crate) mod dropping;
pub(crate) mod limits;
pub(crate) mod locks;
pub(crate) mod mapped;
pub(crate) mod own_writes;
pub(crate) mod ranges;
pub(crate) mod special_keys;
pub(crate) mod state_machine;
pub(crate) mod tuples;
pub(crate) mod watches;

use ferrisdb_client::{RangeOptions, Transaction};
use ferrisdb_core::{KeyRange, KeyValue, MutationKind, Result, versionstamp};
use futures_executor::block_on;

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
fn text(rows: &[KeyValue]) -> String {
    let row = |row: &KeyValue| format!("{}={}", String::from_utf8_lossy(&row.key), String::from_utf8_lossy(&row.value));
    rows.iter().map(row).collect::<Vec<_>>().join(" ")
}

/// What the transaction says that it conflicts with, `"read"` or `"write"`, as text: `a..b c..d`.
fn conflict_text(tx: &Transaction, kind: &str) -> String {
    let ranges = conflict_ranges(tx, kind);
    let range = |range: &KeyRange| format!("{}..{}", range.begin.escape_ascii(), range.end.escape_ascii());
    ranges.iter().map(range).collect::<Vec<_>>().join(" ")
}

/// What the transaction says that it conflicts with: the special keys have a 1 where a range begins, and a 0 where it ends.
fn conflict_ranges(tx: &Transaction, kind: &str) -> Vec<KeyRange> {
    let prefix = format!("\u{0}\u{0}/transaction/{kind}_conflict_range/").into_bytes();
    let prefix = [b"\xff\xff", &prefix[2..]].concat();
    let module = KeyRange::new(prefix.clone(), [&prefix[..], b"\xff\xff"].concat());
    let rows = block_on(tx.get_range(RangeOptions::from(module))).expect("the client answers").rows;
    let borders: Vec<_> = rows.iter().map(|row| (row.key.slice(prefix.len()..), row.value.as_ref())).collect();
    assert!(borders.chunks(2).all(|pair| pair[0].1 == b"1" && pair[1].1 == b"0"), "{borders:?}");
    borders.chunks(2).map(|pair| KeyRange::new(pair[0].0.clone(), pair[1].0.clone())).collect()
}
