//! What is inside a file, said row by row: [`wal`], [`sst`], [`blob`], [`manifest`], [`dir`]; and whether all of it holds: [`verify`].
//!
//! An inspection walks one file (or a directory) and tells a [`Sink`] what it finds: first some fields about the whole,
//! then rows of named tables. Entries and records are told as they are read, so that a WAL or table of any size can be looked at.
//! How it looks (text, JSON) is the sink's affair.
//!
//! Nothing is created or changed. A damaged file is told as far as it can be read, and what is wrong with it comes as the error at the end.
//! The inspections of files take no lock: of an engine that is open they show files at slightly different moments.

mod blob;
mod dir;
mod manifest;
mod sst;
mod verify;
mod wal;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use ferrisdb_core::Version;

pub use blob::blob;
pub use dir::dir;
pub use manifest::manifest;
pub use sst::sst;
pub use verify::verify;
pub use wal::wal;

use crate::error::{Error, Result};
use crate::fs::FileSystem;

/// Of a long value only so many bytes are shown.
const VALUE_BYTES_SHOWN: usize = 64;

/// Takes what an inspection finds.
///
/// The order of calls is: any number of [`Sink::field`], then any number of tables, each begun by [`Sink::table`] and
/// followed by its rows.
pub trait Sink {
    /// A fact about the whole file, such as its format version.
    fn field(&mut self, name: &'static str, value: Cell<'_>) -> Result<()>;

    /// Begins a table, which ends the one before.
    fn table(&mut self, name: &'static str, columns: &'static [&'static str]) -> Result<()>;

    /// A row of the current table: as many cells as it has columns.
    fn row(&mut self, cells: &[Cell<'_>]) -> Result<()>;
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

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Absent, Into::into)
    }
}

impl From<u32> for Cell<'_> {
    fn from(number: u32) -> Self {
        Cell::Number(u64::from(number))
    }
}

impl From<usize> for Cell<'_> {
    fn from(number: usize) -> Self {
        Cell::Number(number as u64)
    }
}

impl From<bool> for Cell<'_> {
    fn from(flag: bool) -> Self {
        Cell::Flag(flag)
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

/// The beginning of a value.
fn shown(value: &[u8]) -> Cell<'_> {
    Cell::Bytes(&value[..value.len().min(VALUE_BYTES_SHOWN)])
}

/// Tells a file's name and length, which every inspection of a file begins with.
fn file_fields(fs: &dyn FileSystem, path: &Path, sink: &mut dyn Sink) -> Result<u64> {
    let bytes = fs.len(path).map_err(|error| Error::io("open", path, error))?;
    sink.field("file", path.to_string_lossy().as_ref().into())?;
    sink.field("file_bytes", bytes.into())?;
    Ok(bytes)
}
