//! How errors of the storage engine look to clients of the database.

use ferrisdb_core::{Code, Error};
use ferrisdb_storage::Error as StorageError;

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
