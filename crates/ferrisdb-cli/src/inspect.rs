//! `ferrisdb inspect` and `ferrisdb verify`: the storage crate looks, [`Printer`] prints.

use std::io::Write;
use std::path::{Path, PathBuf};

use ferrisdb::cluster::ClusterNode;
use ferrisdb::{LogReport, Node};
use ferrisdb_storage::fs::FileSystem;
use ferrisdb_storage::fs::real::RealFileSystem;
use ferrisdb_storage::inspect::{self, Sink};
use ferrisdb_storage::{DAMAGE_REMEDY, Env, Error};

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
    let kind = match arguments.what {
        Inspected::Dir => Kind::of(&arguments.path),
        Inspected::Wal | Inspected::Sst | Inspected::Blob | Inspected::Manifest => Kind::Engine,
    };
    print(&arguments.output, out, |sink| {
        let fs = RealFileSystem::new();
        tell_parts(&fs, kind, &arguments.path, sink)?;
        look(&fs, &kind.tables(&arguments.path), sink)
    })
}

/// Checks a whole database and prints what is wrong with it.
pub(crate) fn verify(arguments: &VerifyArguments, out: impl Write) -> Result<(), Failure> {
    let mut problems = 0;
    check_path(&arguments.path, true)?;
    let kind = Kind::of(&arguments.path);
    let mut failure = None;
    print(&arguments.output, out, |sink| {
        let found = match kind {
            Kind::Engine => inspect::verify(&Env::real(), &arguments.path, sink).map(Ok)?,
            Kind::Database => verify_database(&arguments.path, sink)?,
            Kind::Process => verify_process(&arguments.path, sink)?,
        };
        match found {
            Ok(found) => problems = found,
            Err(error) => failure = Some(Failure::from(error)),
        }
        Ok(())
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    match problems {
        0 => Ok(()),
        problems => Err(Failure::Corrupt(format!(
            "{problems} {} in {}; {DAMAGE_REMEDY}",
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
            "give a file in it: tables, blob files and manifests are in DIR/storage, segments of the log in DIR/log, or in DIR/raft of a process of a cluster",
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

/// What a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A bare engine.
    Engine,
    /// A database in one process.
    Database,
    /// A process of a cluster.
    Process,
}

impl Kind {
    fn of(directory: &Path) -> Kind {
        // In the middle of its turn into a process of a cluster it has both files: then it is one already.
        if directory.join("process").exists() {
            Kind::Process
        } else if directory.join("cluster").exists() {
            Kind::Database
        } else {
            Kind::Engine
        }
    }

    /// Where the tables are.
    fn tables(self, directory: &Path) -> PathBuf {
        match self {
            Kind::Engine => directory.to_path_buf(),
            Kind::Database | Kind::Process => directory.join("storage"),
        }
    }

    /// What is in the directory, beside the tables.
    fn parts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Kind::Engine => &[],
            Kind::Database => &[
                ("cluster", "the id of the database"),
                ("log", "the log: segments, for `inspect wal`"),
                ("storage", "the tables, which follow"),
            ],
            Kind::Process => &[
                ("process", "which process of which cluster this is"),
                ("peers", "how far the other processes were, as they said"),
                ("raft", "its replica of the log: segments, for `inspect wal`"),
                ("raft.damaged", "what there was of a damaged log: look at the disk, then remove it"),
                ("peers.damaged", "what there was of a damaged list of peers: look at the disk, then remove it"),
                ("storage", "the tables, which follow"),
            ],
        }
    }
}

/// What is in a directory that has more than tables.
fn tell_parts(fs: &dyn FileSystem, kind: Kind, path: &Path, sink: &mut dyn Sink) -> ferrisdb_storage::Result<()> {
    if kind == Kind::Engine {
        return Ok(());
    }
    sink.table("parts", &["part", "what", "bytes"])?;
    for (name, what) in kind.parts() {
        let part = path.join(name);
        if part.exists() {
            let inside = fs.list(&part).unwrap_or_default();
            let inside = inside.iter().filter_map(|name| fs.len(&part.join(name)).ok());
            let bytes = if part.is_dir() { inside.sum() } else { fs.len(&part).unwrap_or_default() };
            sink.row(&[(*name).into(), (*what).into(), bytes.into()])?;
        }
    }
    Ok(())
}

/// The number of problems, or why they cannot all be found.
type Verified = Result<u64, ferrisdb::Error>;

fn verify_database(path: &Path, sink: &mut dyn Sink) -> ferrisdb_storage::Result<Verified> {
    let problems = inspect::verify(&Env::real(), &path.join("storage"), sink)?;
    match Node::verify_log(Env::real(), path) {
        Ok(report) => {
            tell_log(&report, sink)?;
            Ok(Ok(problems + report.problems.len() as u64))
        }
        Err(error) => Ok(Err(error)),
    }
}

fn verify_process(path: &Path, sink: &mut dyn Sink) -> ferrisdb_storage::Result<Verified> {
    let report = match ClusterNode::verify(&Env::real(), path) {
        Ok(report) => report,
        Err(error) => return Ok(Err(error)),
    };
    sink.field("cluster_id", report.cluster_id.as_str().into())?;
    sink.field("process", report.process.into())?;
    sink.field("process_tag", report.tag.into())?;
    sink.field("process_started_times", report.generation.into())?;
    sink.field("process_peers_known", report.peers.into())?;
    let mut problems = report.problems.len() as u64;
    let storage = path.join("storage");
    let has_tables = storage.read_dir().is_ok_and(|mut inside| inside.next().is_some());
    if has_tables || report.has_begun {
        problems += inspect::verify(&Env::real(), &storage, sink)?;
    }
    if let Some(log) = &report.log {
        problems += log.problems.len() as u64;
        sink.field("raft_records", log.records.into())?;
        sink.field("raft_last_entry", log.last.into())?;
        sink.field("raft_committed_entry", log.committed.into())?;
        sink.field("raft_snapshot_entry", log.snapshot.into())?;
        sink.field("raft_voted_in_term", log.voted.into())?;
        sink.field("raft_torn", log.torn.as_deref().into())?;
        sink.table("raft_problems", &["problem"])?;
        log.problems.iter().try_for_each(|problem| sink.row(&[problem.as_str().into()]))?;
    }
    sink.table("process_problems", &["problem"])?;
    report.problems.iter().try_for_each(|problem| sink.row(&[problem.as_str().into()]))?;
    Ok(Ok(problems))
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
             file of a database is. If it is: {DAMAGE_REMEDY}",
            file.display()
        )),
        _ => None,
    }
}
