//! Tests of transactions over a double of the endpoint: what needs a database that answers late, loses answers or fails on demand; what is asked of it; and
//! random programs against a model. What any database must do, wherever it is, is said in the suite of the API (`ferrisdb-sim/tests/api`).

mod basics;
mod commits;
mod dropping;
mod mapped;
mod questions;
mod random;
mod special_keys;
mod state_machine;
mod watches;

use ferrisdb_core::{KeyRange, Result, versionstamp};

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
