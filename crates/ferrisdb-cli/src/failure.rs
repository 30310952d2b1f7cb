//! How a command fails: an exit code that scripts can rely on, and a message that says what to do.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | it failed: the message says why |
//! | 2 | the command line is wrong (mostly clap ends the process itself) |
//! | 3 | corruption was found: what is on disk is not what was written |
//! | 4 | `get` found no such key |
//! | 5 | `status` was answered by a database that is not available |

use std::fmt;
use std::io;
use std::process::ExitCode;

use ferrisdb::Code;
use serde_json::{Value, json};

use crate::arguments::Output;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed: what, with which value, and what to do about it.
    Failed {
        /// What went wrong.
        what: String,
        /// What to do, if that is not in `what`.
        remedy: String,
        /// The database's error, if it is one.
        code: Option<Code>,
    },
    /// A transaction took longer than it was given: what that was, and what to do about it.
    TimedOut {
        /// What went wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The command line, or the environment, does not say what to do.
    Usage {
        /// What is wrong with it.
        what: String,
        /// What would be right.
        remedy: String,
    },
    /// What is on disk is not what was written.
    Corrupt(String),
    /// The key asked for is not there.
    NotFound(String),
    /// The database answers, and says that it cannot be used: why.
    Unavailable(String),
    /// Whoever reads our output has heard enough (`ferrisdb inspect … | head`). That is no error of ours.
    OutputClosed,
}

impl Failure {
    /// A failure with its remedy.
    pub(crate) fn failed(what: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::Failed { what: what.into(), remedy: remedy.into(), code: None }
    }

    /// The same, with the database's error that it is.
    pub(crate) fn coded(self, code: Code) -> Failure {
        match self {
            Failure::Failed { what, remedy, .. } => Failure::Failed { what, remedy, code: Some(code) },
            other => other,
        }
    }

    /// A command line that does not say what to do.
    pub(crate) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::Usage { what: what.into(), remedy: remedy.into() }
    }

    /// The same, with what was to be done before it.
    pub(crate) fn about(self, doing: &str) -> Failure {
        match self {
            Failure::Failed { what, remedy, code } => {
                Failure::Failed { what: format!("{doing}: {what}"), remedy, code }
            }
            Failure::TimedOut { what, remedy } => {
                Failure::Failed { what: format!("{doing}: {what}"), remedy, code: Some(Code::TransactionTimedOut) }
            }
            other => other,
        }
    }

    /// The same, with one more thing to do, or to know, after what is to be done.
    pub(crate) fn then(self, next: &str) -> Failure {
        match self {
            Failure::Failed { what, remedy, code } if remedy.is_empty() => {
                Failure::Failed { what, remedy: next.to_owned(), code }
            }
            Failure::Failed { what, remedy, code } => {
                Failure::Failed { what, remedy: format!("{}; {next}", remedy.trim_end_matches('.')), code }
            }
            other => other,
        }
    }

    /// Says it on standard error, in the form of the results, and returns the exit code.
    pub(crate) fn report(&self, output: Output) -> ExitCode {
        let code = match self {
            Failure::OutputClosed => return ExitCode::SUCCESS,
            Failure::Failed { .. } | Failure::TimedOut { .. } => 1,
            Failure::Usage { .. } => 2,
            Failure::Corrupt(_) => 3,
            Failure::NotFound(_) => 4,
            Failure::Unavailable(_) => 5,
        };
        match output {
            Output::Table => eprintln!("{self}"),
            Output::Json => eprintln!("{}", self.json()),
        }
        ExitCode::from(code)
    }

    /// For programs.
    fn json(&self) -> Value {
        let (name, message, remedy, code) = match self {
            Failure::Failed { what, remedy, code } => ("failed", what.as_str(), remedy.as_str(), *code),
            Failure::TimedOut { what, remedy } => {
                ("failed", what.as_str(), remedy.as_str(), Some(Code::TransactionTimedOut))
            }
            Failure::Usage { what, remedy } => ("usage", what.as_str(), remedy.as_str(), None),
            Failure::Corrupt(what) => ("corruption", what.as_str(), "", None),
            Failure::NotFound(what) => ("not_found", what.as_str(), "", None),
            Failure::Unavailable(why) => ("not_available", why.as_str(), "", None),
            Failure::OutputClosed => ("output_closed", "the output was closed", "", None),
        };
        json!({"error": {
            "code": code.map(Code::number),
            "name": code.map_or(name, Code::name),
            "message": message,
            "remedy": Some(remedy).filter(|remedy| !remedy.is_empty()),
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed { what, remedy, .. } if remedy.is_empty() => write!(f, "error: {what}"),
            Failure::Failed { what, remedy, .. }
            | Failure::TimedOut { what, remedy }
            | Failure::Usage { what, remedy } => {
                write!(f, "error: {what}\n  help: {remedy}")
            }
            // The engine's own messages begin with the word, or name a missing file.
            Failure::Corrupt(what) if what.starts_with("corruption in ") => f.write_str(what),
            Failure::Corrupt(what) => write!(f, "corruption: {what}"),
            Failure::NotFound(what) => write!(f, "not found: {what}"),
            Failure::Unavailable(why) => write!(f, "not available: {why}"),
            Failure::OutputClosed => f.write_str("the output was closed"),
        }
    }
}

/// An error while printing: the only input or output that a command does without saying which file it was.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::OutputClosed
        } else {
            Failure::failed(format!("cannot write the output: {error}"), "check where standard output leads to")
        }
    }
}

/// The engine's errors name the file; what to do is said here where they do not.
impl From<ferrisdb_storage::Error> for Failure {
    fn from(error: ferrisdb_storage::Error) -> Failure {
        use ferrisdb_storage::{DAMAGE_REMEDY, Error};
        let remedy = match &error {
            error if error.is_corruption() => return Failure::Corrupt(error.to_string()),
            // It is one whose head is gone, or a copy of one that was cut short: nothing in it can be read.
            Error::NotAnEngine { has_remains: true, .. } => {
                return Failure::Corrupt(format!("{error}; {DAMAGE_REMEDY}"));
            }
            Error::Locked { .. } => "a server that runs is asked with `ferrisdb status --connect HOST:PORT`",
            Error::NotAnEngine { .. } => "check the path: give the directory of a database, as --data takes it",
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "give a path that you may read and write, or run the command as the user who owns the database"
            }
            _ => "",
        };
        Failure::failed(error.to_string(), remedy)
    }
}

/// The database's errors have a number, by which `ferrisdb explain` finds them, and a remedy.
impl From<ferrisdb::Error> for Failure {
    fn from(error: ferrisdb::Error) -> Failure {
        let (what, remedy) = (error.to_string(), remedy(error.code()));
        match error.code() {
            Code::TransactionTimedOut => Failure::TimedOut { what, remedy: remedy.to_owned() },
            code => Failure::failed(what, remedy).coded(code),
        }
    }
}

/// What to do about an error, on a command line. The library's own remedies name its options, which are set by programs.
pub(crate) fn remedy(code: Code) -> &'static str {
    match code {
        Code::DatabaseLocked => {
            "wait for whoever locked it, or end that with `ferrisdb cluster unlock ID`; the commands with --system work meanwhile"
        }
        Code::KeyOutsideLegalRange => {
            "user keys lie below \\xff; get, set, clear, range, import and export take those above with --system"
        }
        Code::SpecialKeysCrossModuleRead | Code::SpecialKeysNoModuleFound => {
            "what begins with \\xff\\xff is read a module at a time, such as \\xff\\xff/transaction/; `ferrisdb status` shows the state of the database"
        }
        Code::SpecialKeysWriteDisabled | Code::SpecialKeysNoWriteModuleFound => {
            "the command line writes nothing that begins with \\xff\\xff; `ferrisdb cluster` changes and locks a database"
        }
        other => other.remedy(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use ferrisdb_storage::Error;

    /// Scripts tell damaged data (3) from everything else that failed (1), and the message has the file and the remedy.
    #[test]
    fn corruption_has_an_exit_code_of_its_own() {
        let corrupt = Failure::from(Error::corruption("db/000123.sst", 8192, "data block checksum"));
        assert_eq!(format!("{:?}", corrupt.report(Output::Table)), format!("{:?}", ExitCode::from(3)));
        expect!["corruption in db/000123.sst at offset 8192: data block checksum; restore the database from a backup; in a cluster the other processes replace what one has lost, see its status"]
            .assert_eq(&corrupt.to_string());

        let refused = Failure::from(Error::io("open", "db/CURRENT", io::ErrorKind::PermissionDenied.into()));
        assert_eq!(format!("{:?}", refused.report(Output::Table)), format!("{:?}", ExitCode::from(1)));
        expect![[r#"
            error: open db/CURRENT failed: permission denied
              help: give a path that you may read and write, or run the command as the user who owns the database"#]]
        .assert_eq(&refused.to_string());
    }

    /// Programs get the number and name of a database's error, and of another one its kind.
    #[test]
    fn errors_are_json_for_programs() {
        let failure = Failure::from(ferrisdb::Error::new(Code::DatabaseLocked)).about("cannot do it");
        let error = &failure.json()["error"];
        assert_eq!((&error["code"], &error["name"]), (&1038.into(), &"database_locked".into()));
        assert!(error["message"].as_str().unwrap().starts_with("cannot do it: "), "{error}");
        assert_eq!(error["remedy"], remedy(Code::DatabaseLocked));
        expect![[r#"{"error":{"code":null,"message":"a has no value","name":"not_found","remedy":null}}"#]]
            .assert_eq(&Failure::NotFound("a has no value".to_owned()).json().to_string());
    }

    /// No remedy names what only a program can set, where the command line has something else for it.
    #[test]
    fn remedies_are_those_of_a_command_line() {
        let told = |code: Code| Failure::from(ferrisdb::Error::new(code)).to_string();
        assert!(told(Code::DatabaseLocked).contains("`ferrisdb cluster unlock ID`"));
        assert!(told(Code::KeyOutsideLegalRange).contains("--system"));
        for code in [
            Code::DatabaseLocked,
            Code::KeyOutsideLegalRange,
            Code::SpecialKeysCrossModuleRead,
            Code::SpecialKeysNoModuleFound,
            Code::SpecialKeysWriteDisabled,
            Code::SpecialKeysNoWriteModuleFound,
        ] {
            assert!(!remedy(code).contains('_') && !remedy(code).contains("documentation"), "{}", remedy(code));
        }
    }

    /// `ferrisdb inspect … | head` ends quietly and well; a full disk behind the output does not.
    #[test]
    fn a_reader_that_stops_reading_is_no_failure() {
        let closed = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(format!("{:?}", closed.report(Output::Table)), format!("{:?}", ExitCode::SUCCESS));
        assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::StorageFull)), Failure::Failed { .. }));
    }
}
