//! What can go wrong, said so that someone can act on it at three in the morning.
//!
//! A variant exists only if a caller would do something else because of it. Every variant names the file, option, key
//! or version concerned. Errors are cheap to clone because one failed sync is told to every writer that waited for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrisdb_core::Version;
use ferrisdb_core::codec::DecodeError;

use crate::wal::WalPosition;

/// What helps against damage. Never another copy's file: those of two engines, or of two processes of a cluster, are not exchangeable, whatever their names.
pub const DAMAGE_REMEDY: &str =
    "restore the database from a backup; in a cluster the other processes replace what one has lost, see its status";

/// The result of every fallible call of the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the storage engine.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes on disk are not what was written. Reads of other data go on.
    #[error("corruption in {} at offset {offset}: {what}; {}", file.display(), DAMAGE_REMEDY)]
    Corruption {
        /// The file.
        file: PathBuf,
        /// Where in the file the bad unit (record, block, footer) begins, in bytes.
        offset: u64,
        /// What did not hold, such as "data block checksum".
        what: String,
    },

    /// The operating system refused an operation. Nothing of it took effect, unless the engine says that it is poisoned.
    #[error("{op} {} failed: {source}", file.display())]
    Io {
        /// The operation: "open", "read", "write", "sync", …
        op: &'static str,
        /// The file or directory.
        file: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },

    /// No space is left, or a quota is used up. The write took no effect; writes work again once there is space.
    #[error("no space left to {op} {}: free some space or raise the quota; reads and deletes go on", file.display())]
    NoSpace {
        /// The operation.
        op: &'static str,
        /// The file.
        file: PathBuf,
    },

    /// An earlier failure made it impossible to say what is durable, so no write is accepted any more. Reads go on.
    /// Reopening the engine recovers everything that was acknowledged as durable.
    #[error("the engine takes no more writes since an earlier failure: {reason}; reopen it")]
    Poisoned {
        /// The failure.
        reason: Arc<str>,
    },

    /// Another handle or process has the directory open.
    #[error("{} is in use by {holder}; close that first", directory.display())]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// Who holds it, as far as the lock file tells, such as "process 4711".
        holder: String,
    },

    /// An option, or a combination of options, is out of range. Nothing was opened.
    #[error("option {option} = {value} is not valid: {reason}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value it was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A key is longer than the format allows.
    #[error("a key of {len} bytes is longer than the limit of {max} bytes")]
    KeyTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },

    /// A value is longer than the format allows.
    #[error("a value of {len} bytes is longer than the limit of {max} bytes")]
    ValueTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },

    /// A write batch is larger than what one WAL record may hold.
    #[error("a write batch of {len} bytes is larger than the limit of {max} bytes; split it")]
    BatchTooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },

    /// The end of a range lies before its start.
    #[error("the range is inverted: its end {end:?} lies before its start {start:?}")]
    InvertedRange {
        /// The start.
        start: Vec<u8>,
        /// The end.
        end: Vec<u8>,
    },

    /// The version given for a write is not greater than the last one.
    #[error("version {given} is not above {last}, the last version written; versions must increase")]
    VersionNotIncreasing {
        /// The version given.
        given: Version,
        /// The last version written.
        last: Version,
    },

    /// A read at a version that is no longer, or was never, kept.
    #[error("version {version} is not readable: versions from {oldest} to {newest} are, and those that are pinned")]
    VersionNotReadable {
        /// The version asked for.
        version: Version,
        /// The oldest readable version.
        oldest: Version,
        /// The newest visible version.
        newest: Version,
    },

    /// The data given to an ingestion is not fit to be added: out of order, or older than what its range holds.
    #[error("cannot ingest: {reason}")]
    InvalidIngestion {
        /// What is wrong.
        reason: String,
    },

    /// The directory holds no FerrisDB engine, and creating one was not asked for, or it holds something else.
    #[error("{} is not a FerrisDB engine directory: {reason}", directory.display())]
    NotAnEngine {
        /// The directory.
        directory: PathBuf,
        /// Why.
        reason: String,
        /// Files of an engine are there all the same: the one that holds them together was lost, or never written by a copy that was cut short.
        has_remains: bool,
    },

    /// A file was written by a newer FerrisDB.
    #[error("{} has format version {found}, but this build reads up to {supported}; use a newer FerrisDB", file.display())]
    FormatTooNew {
        /// The file.
        file: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest that this build reads.
        supported: u32,
    },

    /// A file that the manifest names, or that the log goes on from, is not there.
    #[error("{} is missing, though it is needed; {}", file.display(), DAMAGE_REMEDY)]
    MissingFile {
        /// The file.
        file: PathBuf,
    },

    /// A write to an engine that was opened read-only.
    #[error("{} was opened read-only", directory.display())]
    ReadOnly {
        /// The directory.
        directory: PathBuf,
    },

    /// The engine was closed.
    #[error("the engine was closed")]
    Closed,

    /// A position of the WAL that holds no record: purged, truncated away, or never given out.
    #[error("the WAL has no record at position {position}: it reaches from {first} to {end}")]
    PositionNotInWal {
        /// The position asked for.
        position: WalPosition,
        /// The first position that is kept.
        first: WalPosition,
        /// The end of the log.
        end: WalPosition,
    },

    /// Only from calls whose name starts with `try_`: the answer is not in memory. Call the blocking form on a thread
    /// that may wait for the disk.
    #[error("the answer is not in memory")]
    WouldRead,
}

impl Error {
    /// A [`Error::Corruption`].
    pub fn corruption(file: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Error {
        Error::Corruption { file: file.into(), offset, what: what.into() }
    }

    /// A failed [`Decoder`](ferrisdb_core::codec::Decoder) call, placed in a file.
    pub fn decode(file: impl Into<PathBuf>, offset: u64, error: DecodeError) -> Error {
        Error::corruption(file, offset, error.to_string())
    }

    /// What the file system said, with the operation and the file; running out of space becomes [`Error::NoSpace`].
    pub fn io(op: &'static str, file: impl AsRef<Path>, error: io::Error) -> Error {
        let file = file.as_ref().to_path_buf();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { op, file },
            _ => Error::Io { op, file, source: Arc::new(error) },
        }
    }

    /// True where the same call may succeed once someone has made space.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::NoSpace { .. })
    }

    /// What is damaged, and where, without the advice that goes with it: for whoever knows better what is to be done. `None` if it is another error.
    pub fn damage(&self) -> Option<String> {
        match self {
            Error::Corruption { file, offset, what } => {
                Some(format!("corruption in {} at offset {offset}: {what}", file.display()))
            }
            Error::MissingFile { file } => Some(format!("{} is missing, though it is needed", file.display())),
            _ => None,
        }
    }

    /// True for [`Error::Corruption`] and its relatives: what is on disk is not what was written.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Error::Corruption { .. } | Error::MissingFile { .. })
    }
}
