//! [`Error`]: a code that programs act on, and a sentence for people.

use std::fmt;
use std::sync::Arc;

use crate::code::Code;

/// What a call on the database returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. The code says what a program may do about it; the detail, where there is one, names the key, value, limit
/// or address concerned. Cheap to clone: one failure may end many futures.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    code: Code,
    detail: Option<Arc<str>>,
}

impl Error {
    /// An error that its code explains.
    pub const fn new(code: Code) -> Error {
        Error { code, detail: None }
    }

    /// An error with a sentence about this very case: what was wrong with which value, and what to do.
    pub fn with(code: Code, detail: impl Into<String>) -> Error {
        Error { code, detail: Some(Arc::from(detail.into())) }
    }

    /// The code.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The sentence about this case.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// See [`Code::is_retryable`].
    pub const fn is_retryable(&self) -> bool {
        self.code.is_retryable()
    }

    /// See [`Code::is_maybe_committed`].
    pub const fn is_maybe_committed(&self) -> bool {
        self.code.is_maybe_committed()
    }

    /// See [`Code::is_retryable_not_committed`].
    pub const fn is_retryable_not_committed(&self) -> bool {
        self.code.is_retryable_not_committed()
    }
}

impl From<Code> for Error {
    fn from(code: Code) -> Error {
        Error::new(code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): ", self.code.name(), self.code.number())?;
        match &self.detail {
            Some(detail) => f.write_str(detail),
            None => f.write_str(self.code.message()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {}
