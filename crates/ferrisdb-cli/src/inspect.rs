//! `ferrisdb inspect` and `ferrisdb verify`: the storage crate looks, [`Printer`] prints.

use std::io::Write;
use std::path::{Path, PathBuf};

use ferrisdb::{LogReport, Node};
use ferrisdb_storage::fs::real::RealFileSystem;
use ferrisdb_storage::inspect::{self, Sink};
use ferrisdb_storage::{Env, Error};

use crate::arguments::{InspectArguments, Inspected, OutputArguments, VerifyArguments};
use crate::failure::Failure;
use crate::printer::Printer;

/// Prints what is inside a file or directory.
pub(crate) fn inspect(arguments: &InspectArguments, out: impl Write) -> Result<(), Failure> {
    let look = match arguments.what {
        Inspected::Wal => inspect::wal,
        Inspected::Sst => inspect::sst,
        Inspected::Blob => inspect::blob,
        Inspected::Manifest => inspect::manifest,
        Inspected::Dir => inspect::dir,
    };
    check_path(&arguments.path, arguments.what == Inspected::Dir)?;
    let path = match arguments.what {
        Inspected::Dir => tables(&arguments.path),
        Inspected::Wal | Inspected::Sst | Inspected::Blob | Inspected::Manifest => arguments.path.clone(),
    };
    print(&arguments.output, out, |sink| look(&RealFileSystem::new(), &path, sink))
}

/// Checks a whole database and prints what is wrong with it.
pub(crate) fn verify(arguments: &VerifyArguments, out: impl Write) -> Result<(), Failure> {
    let mut problems = 0;
    check_path(&arguments.path, true)?;
    let path = tables(&arguments.path);
    let mut failure = None;
    print(&arguments.output, out, |sink| {
        problems = inspect::verify(&Env::real(), &path, sink)?;
        if path != arguments.path {
            match Node::verify_log(Env::real(), &arguments.path) {
                Ok(report) => {
                    problems += report.problems.len() as u64;
                    tell_log(&report, sink)?;
                }
                Err(error) => failure = Some(Failure::from(error)),
            }
        }
        Ok(())
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    match problems {
        0 => Ok(()),
        problems => Err(Failure::Corrupt(format!(
            "{problems} {} in {}; restore the files named above from a replica or a backup",
            if problems == 1 { "problem" } else { "problems" },
            arguments.path.display()
        ))),
    }
}

/// Fails if there is nothing at a path, or a file where a directory is meant, or the other way round.
fn check_path(path: &Path, wants_directory: bool) -> Result<(), Failure> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() == wants_directory => Ok(()),
        Ok(_) if wants_directory => {
            Err(Failure::failed(format!("{shown} is a file, and no directory"), "give the directory of a database"))
        }
        Ok(_) => Err(Failure::failed(
            format!("{shown} is a directory, and no file"),
            "give a file in it: tables, blob files and manifests are in DIR/storage, segments of the log in DIR/log",
        )),
        Err(error) => {
            let wanted = if wants_directory { "a database's directory" } else { "a file" };
            Err(Failure::failed(
                format!("cannot look at {shown}: {error}"),
                format!("give {wanted} that exists and that you may read"),
            ))
        }
    }
}

/// What was found in a database's log.
fn tell_log(report: &LogReport, sink: &mut dyn Sink) -> ferrisdb_storage::Result<()> {
    sink.field("log_records", report.records.into())?;
    sink.field("log_entries_void", report.void.into())?;
    sink.field("log_last_version", report.last.get().into())?;
    sink.field("log_torn", report.torn.as_deref().into())?;
    sink.table("log_problems", &["problem"])?;
    report.problems.iter().try_for_each(|problem| sink.row(&[problem.as_str().into()]))
}

/// Where the tables are: of a database in its directory `storage`, of a bare engine in the directory itself.
fn tables(directory: &Path) -> PathBuf {
    let is_database = directory.join("cluster").exists();
    if is_database { directory.join("storage") } else { directory.to_path_buf() }
}

/// Prints what `look` tells. What was told before an error is printed whole, and the error comes last.
fn print(
    arguments: &OutputArguments,
    out: impl Write,
    look: impl FnOnce(&mut dyn Sink) -> ferrisdb_storage::Result<()>,
) -> Result<(), Failure> {
    let mut printer = Printer::new(arguments.output, out);
    let looked = look(&mut printer);
    let doubt = looked.as_ref().err().and_then(doubted);
    let error = doubt.clone().or_else(|| looked.as_ref().err().map(ToString::to_string));
    printer.finish(error.as_deref())?;
    match doubt {
        Some(doubt) => Err(Failure::Corrupt(doubt)),
        None => Ok(looked?),
    }
}

/// What is said of a file that does not begin, or end, as its kind does: it is rather the wrong file than a damaged one.
fn doubted(error: &Error) -> Option<String> {
    match error {
        Error::Corruption { file, offset, what } if what.contains(": magic") => Some(format!(
            "corruption in {} at offset {offset}: {what}; is it the right file, and of this kind? `ferrisdb inspect dir DIR` says what each \
             file of a database is. If it is, restore it from a replica or a backup",
            file.display()
        )),
        _ => None,
    }
}
