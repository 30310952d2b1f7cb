//! Errors of the engine in the words of the contract. The detail is the engine's sentence: it names the file and the reason.

use ferrisdb_core::{Code, Error};
use ferrisdb_storage::Error as EngineError;

use crate::failure::NotOpened;

/// What every wait ends with when the role is closed.
pub(super) fn closed() -> Error {
    Error::with(Code::ConnectionFailed, "the storage server was closed")
}

/// The error of a read or a write.
pub(super) fn engine_error(error: &EngineError) -> Error {
    match error {
        EngineError::Closed => closed(),
        EngineError::VersionNotReadable { version, oldest, newest } if version < newest => Error::with(
            Code::TransactionTooOld,
            format!("version {version} is not readable any more: those from {oldest} on are"),
        ),
        EngineError::Io { .. }
        | EngineError::NoSpace { .. }
        | EngineError::Corruption { .. }
        | EngineError::MissingFile { .. }
        | EngineError::Poisoned { .. } => Error::with(Code::IoError, error.to_string()),
        // The others are about arguments that this role chose, or about opening.
        _ => Error::with(
            Code::InternalError,
            format!("the storage engine refused what the storage server asked: {error}"),
        ),
    }
}

/// The error of opening.
pub(super) fn engine_error_at_open(error: &EngineError) -> NotOpened {
    if let Some(damage) = error.damage() {
        return NotOpened::Damaged(damage);
    }
    let code = match error {
        EngineError::InvalidOption { .. } => Code::InvalidOptionValue,
        EngineError::Locked { .. } => Code::FileNotWritable,
        _ => Code::IoError,
    };
    NotOpened::Failed(Error::with(code, error.to_string()))
}
