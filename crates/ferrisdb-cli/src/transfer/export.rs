//! `ferrisdb export`: the rows of a range, as they are at one moment, into a file.
//!
//! A snapshot with a lease is read, so that the rows are of one version however long it takes. The file is written under a name of its own and
//! gets the wanted one when it is whole and on the disk:
//!
//! ```text
//! FILE          the export, whole
//! FILE.part     what is written of it; after an interruption `--resume` goes on behind its last whole line
//! FILE.part.is  which snapshot of which database that is
//! ```
//!
//! # Invariants
//! - FILE is an export that ended, or what it was before.
//! - All rows of a file are of one version, unless --new-snapshot was given.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use ferrisdb::{Bytes, Code, KeyRange, KeyValue, RangeOptions, Snapshot, SnapshotOptions, StreamingMode, Version};
use ferrisdb_core::key::key_after;
use ferrisdb_storage::inspect::Sink;
use serde::{Deserialize, Serialize};

use super::{Format, TransferArguments};
use crate::arguments::typed;
use crate::connect::{self, Connected, Missing};
use crate::failure::Failure;
use crate::oneshot::{checked_range, prefix_range};
use crate::text::{Typed, escape, hex, unescape};

/// A line of the longest key and value, each byte as `\\xNN`, fits in this.
const TAIL_BYTES: u64 = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The file, or - for standard output
    #[arg(default_value = "-")]
    file: String,

    /// All keys from BEGIN up to END, END not included
    #[arg(long, num_args = 2, value_names = ["BEGIN", "END"], value_parser = typed(), conflicts_with = "prefix")]
    range: Option<Vec<Typed>>,

    /// All keys that begin so [default: all keys]
    #[arg(long, value_name = "PREFIX", value_parser = typed())]
    prefix: Option<Typed>,

    /// What the file looks like [default: what its name ends in; standard output: ndjson]
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Go on with an interrupted export into this file; if nothing is written yet, begin
    #[arg(long)]
    resume: bool,

    /// With --resume: if the snapshot is gone, take the rest from a new one; the file is then not of one moment
    #[arg(long, requires = "resume")]
    new_snapshot: bool,

    #[command(flatten)]
    transfer: TransferArguments,
}

/// What an unfinished file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    cluster_id: String,
    version: u64,
    format: Format,
    begin: String,
    end: String,
}

/// Runs the command.
pub(crate) fn export(arguments: &ExportArguments, out: impl Write) -> Result<(), Failure> {
    let is_stdout = arguments.file == "-";
    if is_stdout && arguments.resume {
        return Err(Failure::usage(
            "standard output cannot be resumed",
            "give the file of the export that was interrupted",
        ));
    }
    let format = match (arguments.format, is_stdout) {
        (None, true) => Format::Ndjson,
        (asked, _) => Format::of(asked, &arguments.file)?,
    };
    let range = match (&arguments.range, &arguments.prefix) {
        (Some(ends), _) if ends.len() == 2 => checked_range(ends[0].0.clone(), ends[1].0.clone())?,
        (_, Some(prefix)) => prefix_range(&prefix.0, arguments.transfer.system),
        _ => prefix_range(b"", arguments.transfer.system),
    };
    connect::with(&arguments.transfer.connect, Missing::Refuse, |connected| {
        let mut export = Export { arguments, connected, range: range.clone(), format, rows: 0, bytes: 0 };
        if is_stdout {
            let snapshot = export.snapshot(None)?;
            let mut out = BufWriter::new(out);
            export.header(&mut out)?;
            let exported = export.write(&snapshot, range, &mut out);
            out.flush()?;
            return exported.map(|_| ()).map_err(|stopped| match stopped {
                Stopped::Reading(failure) => failure.about("the export stopped"),
                Stopped::SnapshotLost(error) => Failure::failed(
                    format!("the export stopped: the snapshot was lost: {error}"),
                    "export again: what was printed is not all of it",
                ),
                Stopped::Writing(error) => error.into(),
            });
        }
        let (version, seconds) = export.write_file()?;
        arguments.transfer.print(out, seconds, |sink| export.tell(sink, version))
    })
}

struct Export<'a> {
    arguments: &'a ExportArguments,
    connected: &'a Connected,
    range: KeyRange,
    format: Format,
    rows: u64,
    bytes: u64,
}

impl Export<'_> {
    fn tell(&self, sink: &mut dyn Sink, version: Version) -> ferrisdb_storage::Result<()> {
        sink.field("rows", self.rows.into())?;
        sink.field("bytes", self.bytes.into())?;
        sink.field("version", version.get().into())
    }

    fn snapshot(&self, version: Option<Version>) -> Result<Snapshot, Failure> {
        let options =
            SnapshotOptions { version, read_system_keys: self.arguments.transfer.system, ..SnapshotOptions::default() };
        self.connected.run(async { Ok(self.connected.database.snapshot(options).await?) })
    }

    fn write_file(&mut self) -> Result<(Version, f64), Failure> {
        let path = PathBuf::from(&self.arguments.file);
        let named = |ending: &str| PathBuf::from(format!("{}{ending}", self.arguments.file));
        let (part_path, is_path) = (named(".part"), named(".part.is"));
        let mut part_file = open_part(&part_path)?;
        let written = part_file.metadata().map_err(|error| unwritten(&part_path, &error))?.len();
        let (snapshot, begin) = if self.arguments.resume && written > 0 {
            self.resume(&mut part_file, &part_path, &is_path)?
        } else {
            // An interruption before the first row leaves nothing to go on with, and a script that always says --resume need not know.
            if self.arguments.resume {
                eprintln!("nothing is in {} yet: beginning from the start", part_path.display());
            }
            let snapshot = self.snapshot(None)?;
            part_file.set_len(0).map_err(|error| unwritten(&part_path, &error))?;
            (snapshot, self.range.begin.clone())
        };
        let part = self.part(snapshot.version());
        let text = serde_json::to_string(&part).expect("it has nothing that JSON has not");
        replace(&is_path, text.as_bytes()).map_err(|error| unwritten(&is_path, &error))?;

        let mut out = BufWriter::with_capacity(1 << 20, part_file);
        let unwritten_part = |error: io::Error| unwritten(&part_path, &error);
        let position = out.get_mut().seek(SeekFrom::End(0)).map_err(unwritten_part)?;
        if position == 0 {
            self.header(&mut out).map_err(unwritten_part)?;
        }
        self.bytes = position;
        let written = self.write(&snapshot, KeyRange { begin, end: self.range.end.clone() }, &mut out);
        let seconds = written.map_err(|stopped| match stopped {
            Stopped::Reading(failure) => failure.about("the export stopped").then(&format!(
                "what was written is in {}, and the same command with --resume goes on behind it",
                part_path.display()
            )),
            Stopped::SnapshotLost(error) => Failure::failed(
                format!("the export stopped: the snapshot was lost: {error}"),
                format!(
                    "export again; or go on behind what is in {} with --resume --new-snapshot: then the file is not of one moment",
                    part_path.display()
                ),
            ),
            Stopped::Writing(error) => unwritten(&part_path, &error),
        })?;
        let part_file = out.into_inner().map_err(|error| unwritten(&part_path, error.error()))?;
        self.bytes = part_file.metadata().map_err(unwritten_part)?.len();
        part_file.sync_all().map_err(unwritten_part)?;
        rename(&part_path, &path)?;
        remove(&is_path);
        Ok((snapshot.version(), seconds))
    }

    fn part(&self, version: Version) -> Part {
        Part {
            cluster_id: hex(&self.connected.database.description().cluster_id),
            version: version.get(),
            format: self.format,
            begin: escape(&self.range.begin),
            end: escape(&self.range.end),
        }
    }

    /// The snapshot that an unfinished file is of, and the first key that the file has not. Takes away what is not a whole line.
    fn resume(&self, file: &mut File, part_path: &Path, is_path: &Path) -> Result<(Snapshot, Bytes), Failure> {
        let start_over = "export again without --resume";
        let text = read_text(is_path).map_err(|error| {
            Failure::failed(
                format!("cannot read {}, which says what {} is: {error}", is_path.display(), part_path.display()),
                start_over,
            )
        })?;
        let found: Part = serde_json::from_str(&text).map_err(|error| {
            Failure::failed(
                format!("{} does not say what {} is: {error}", is_path.display(), part_path.display()),
                start_over,
            )
        })?;
        let version = Version::new(found.version).unwrap_or_default();
        let wanted = self.part(version);
        if found != wanted {
            let differs = if found.cluster_id == wanted.cluster_id {
                format!("a {:?} of the keys from {} to {}", found.format, found.begin, found.end)
            } else {
                "of another database".to_owned()
            };
            return Err(Failure::failed(
                format!("{} is {differs}", part_path.display()),
                "give the options of the export that was interrupted",
            ));
        }
        let begin = self.first_missing(file, part_path)?;
        match self.connected.run(async {
            Ok(self
                .connected
                .database
                .snapshot(SnapshotOptions {
                    version: Some(version),
                    read_system_keys: self.arguments.transfer.system,
                    ..SnapshotOptions::default()
                })
                .await)
        })? {
            Ok(snapshot) => Ok((snapshot, begin)),
            Err(error) if error.code() == Code::TransactionTooOld && self.arguments.new_snapshot => {
                Ok((self.snapshot(None)?, begin))
            }
            Err(error) if error.code() == Code::TransactionTooOld => Err(Failure::failed(
                format!(
                    "the snapshot that {} was made from, version {version}, is not readable any more",
                    part_path.display()
                ),
                format!(
                    "{start_over}, or take the rest from a new snapshot with --new-snapshot: then the file is not of one moment"
                ),
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn first_missing(&self, file: &mut File, path: &Path) -> Result<Bytes, Failure> {
        let failed = |error: io::Error| {
            Failure::failed(format!("cannot go on with {}: {error}", path.display()), "export again without --resume")
        };
        let length = file.metadata().map_err(failed)?.len();
        let tail_start = length.saturating_sub(TAIL_BYTES);
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(tail_start)).map_err(failed)?;
        file.read_to_end(&mut tail).map_err(failed)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let odd = || failed(io::Error::other("its last line is none that an export writes"));
        if whole == 0 && tail_start > 0 {
            return Err(odd());
        }
        file.set_len(tail_start + whole as u64).map_err(failed)?;
        let last = tail[..whole].trim_ascii_end();
        let last = &last[last.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)..];
        if last.is_empty() || (self.format == Format::Csv && last == b"key,value") {
            return Ok(self.range.begin.clone());
        }
        let text = match self.format {
            Format::Ndjson => {
                let row: Row<String> = serde_json::from_slice(last).map_err(|_| odd())?;
                row.key
            }
            Format::Csv => {
                let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(last);
                let record = reader.records().next().and_then(Result::ok).filter(|record| record.len() == 2);
                record.ok_or_else(odd)?[0].to_owned()
            }
        };
        let last_key = unescape(text.as_bytes()).map_err(|_| odd())?;
        if last_key < self.range.begin || last_key >= self.range.end {
            return Err(odd());
        }
        Ok(key_after(&last_key))
    }

    fn header(&self, out: &mut impl Write) -> io::Result<()> {
        if self.format == Format::Csv { out.write_all(b"key,value\n") } else { Ok(()) }
    }

    /// Writes all rows of a range; how long it took. What is written before an error is flushed.
    fn write(&mut self, snapshot: &Snapshot, range: KeyRange, out: &mut impl Write) -> Result<f64, Stopped> {
        let estimated = range.clone();
        let total = self.read(async { snapshot.get_estimated_range_size(estimated).await })?;
        let mut progress = self.arguments.transfer.start("export", Some(total));
        let mut next = Some(RangeOptions::from(range).mode(StreamingMode::WantAll));
        let mut read = 0;
        while let Some(options) = next {
            let chunk = match self.read(async { snapshot.get_range(options.clone()).await }) {
                Ok(chunk) => chunk,
                Err(stopped) => {
                    progress.end();
                    // What is there is kept for --resume.
                    out.flush()?;
                    return Err(stopped);
                }
            };
            for row in &chunk.rows {
                self.row(row, out)?;
                read += (row.key.len() + row.value.len()) as u64;
                self.rows += 1;
            }
            progress.at(self.rows, read);
            next = options.after(&chunk);
        }
        Ok(progress.end().as_secs_f64())
    }

    fn read<T>(&self, question: impl Future<Output = ferrisdb::Result<T>>) -> Result<T, Stopped> {
        match self.connected.run(async { Ok(question.await) }) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.code() == Code::TransactionTooOld => Err(Stopped::SnapshotLost(error)),
            Ok(Err(error)) => Err(Stopped::Reading(error.into())),
            Err(failure) => Err(Stopped::Reading(failure)),
        }
    }

    fn row(&self, row: &KeyValue, out: &mut impl Write) -> io::Result<()> {
        let (key, value) = (escape(&row.key), escape(&row.value));
        match self.format {
            Format::Ndjson => {
                serde_json::to_writer(&mut *out, &Row { key, value })?;
                out.write_all(b"\n")
            }
            Format::Csv => {
                let mut line = csv::WriterBuilder::new().from_writer(Vec::new());
                line.write_record([key, value])?;
                out.write_all(&line.into_inner().map_err(|error| error.into_error())?)
            }
        }
    }
}

/// Why an export ended before its end.
enum Stopped {
    /// Nobody can read at its version any more.
    SnapshotLost(ferrisdb::Error),
    Reading(Failure),
    Writing(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Stopped {
        Stopped::Writing(error)
    }
}

#[derive(Serialize, Deserialize)]
struct Row<T> {
    key: T,
    value: T,
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(
        format!("cannot write {}: {error}", path.display()),
        "choose a file that you may write, on a disk with space",
    )
}

#[expect(clippy::disallowed_methods, reason = "the file is the user's, and no part of a database")]
fn open_part(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(|error| unwritten(path, &error))?;
    file.try_lock().map_err(|_| {
        Failure::failed(
            format!("{} is being written by another export", path.display()),
            "wait for it, or choose another file",
        )
    })?;
    Ok(file)
}

#[expect(clippy::disallowed_methods, reason = "the file is the user's, and no part of a database")]
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[expect(clippy::disallowed_methods, reason = "the file is the user's, and no part of a database")]
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

#[expect(clippy::disallowed_methods, reason = "the file is the user's, and no part of a database")]
fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::rename(from, to).map_err(|error| unwritten(to, &error))?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| unwritten(directory, &error))
}

#[expect(clippy::disallowed_methods, reason = "the file is the user's, and no part of a database")]
fn remove(path: &Path) {
    // Nothing reads it any more.
    drop(std::fs::remove_file(path));
}
