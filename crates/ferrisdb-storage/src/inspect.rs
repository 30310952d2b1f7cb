//! What is inside a file, said row by row.
//!
//! An inspection walks one file (or a directory) and tells a [`Sink`] what it finds: first some fields about the whole,
//! then rows of named tables. It never holds more than one row, so that a WAL of any length can be looked at, and what was
//! found before a corruption has already been told when the error comes. How it looks (text, JSON) is the sink's affair.

use std::fmt;

use ferrisdb_core::Version;

/// Takes what an inspection finds.
///
/// The order of calls is: any number of [`Sink::field`], then any number of tables, each begun by [`Sink::table`] and
/// followed by its rows.
pub trait Sink {
    /// A fact about the whole file, such as its format version.
    fn field(&mut self, name: &'static str, value: Cell<'_>) -> crate::Result<()>;

    /// Begins a table, which ends the one before.
    fn table(&mut self, name: &'static str, columns: &'static [&'static str]) -> crate::Result<()>;

    /// A row of the current table: as many cells as it has columns.
    fn row(&mut self, cells: &[Cell<'_>]) -> crate::Result<()>;
}

/// One value in an inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// Nothing to say here.
    Absent,
    /// Yes or no.
    Flag(bool),
    /// A number; its unit is in the name of the field or column.
    Number(u64),
    /// Words of ours.
    Text(&'a str),
    /// Bytes of the user's: a key or a value.
    Bytes(&'a [u8]),
}

impl From<u64> for Cell<'_> {
    fn from(number: u64) -> Self {
        Cell::Number(number)
    }
}

impl From<Version> for Cell<'_> {
    fn from(version: Version) -> Self {
        Cell::Number(version.get())
    }
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Cell::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Cell<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Cell::Bytes(bytes)
    }
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Absent => f.write_str("-"),
            Cell::Flag(true) => f.write_str("yes"),
            Cell::Flag(false) => f.write_str("no"),
            Cell::Number(number) => write!(f, "{number}"),
            Cell::Text(text) => f.write_str(text),
            Cell::Bytes(bytes) => write!(f, "{}", bytes.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key of any bytes can be printed on one line, and two different keys never look the same.
    #[test]
    fn bytes_are_printed_without_loss() {
        let shown = |bytes: &[u8]| Cell::from(bytes).to_string();
        assert_eq!(shown(b"user/1\x00\xff\n"), r"user/1\x00\xff\n");
        assert_eq!(shown(br"\x00"), r"\\x00");
    }
}
