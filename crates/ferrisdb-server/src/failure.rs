//! How errors of the storage engine look to clients of the database.

use ferrisdb_core::{Code, Error};
use ferrisdb_storage::{DAMAGE_REMEDY, Error as StorageError};

/// Why what is on a disk was not opened.
#[derive(Debug)]
pub enum NotOpened {
    /// What was durable cannot be read any more. Where, and what did not hold.
    Damaged(String),
    /// Anything else. Nobody knows of any damage.
    Failed(Error),
}

impl From<Error> for NotOpened {
    fn from(error: Error) -> NotOpened {
        NotOpened::Failed(error)
    }
}

impl From<NotOpened> for Error {
    fn from(error: NotOpened) -> Error {
        match error {
            NotOpened::Failed(error) => error,
            NotOpened::Damaged(damage) => Error::with(Code::IoError, format!("{damage}; {DAMAGE_REMEDY}")),
        }
    }
}

/// The error to give to a client: the engine's own words, which name file and reason, behind what the database wanted to do.
pub(crate) fn from_storage(wanted: &str, error: &StorageError) -> Error {
    let code = match error {
        StorageError::InvalidOption { .. } => Code::InvalidOptionValue,
        StorageError::Locked { .. } => Code::FileNotWritable,
        StorageError::Closed => Code::OperationCancelled,
        _ => Code::IoError,
    };
    Error::with(code, format!("{wanted}: {error}"))
}
