//! `ferrisdb import`: the rows of a file as keys and values, each exactly once.
//!
//! A thread reads the file and cuts it into batches (`source`); each batch is a transaction, some of them at once, which also notes that the batch is there
//! (`position`). An import that was interrupted, in whatever way, goes on when it is started again.
//!
//! # Invariants
//! - Two batches under way have no key in common, so that of two rows with one key the later one in the file remains.
//! - At most `slots` - 1 batches are under way, and none before the batch that is so many before it is there.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use clap::Args;
use ferrisdb::{Bytes, Code, Database, Limits, TransactionOption};
use ferrisdb_storage::inspect::Sink;
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use super::position::{Done, Head, Job, Mark, Noted, Slot};
use super::progress::Progress;
use super::source::{Batch, Cut, Event, Options, Source};
use super::template::{KeyTemplate, Template};
use super::{Format, TransferArguments};
use crate::connect::{self, Connected, Missing};
use crate::failure::Failure;

/// Bytes of keys and values after which a batch ends: a ninth of the default limit of a transaction, also with one more row of the
/// largest size, and little enough for many at once.
const BATCH_BYTES: u64 = 1 << 20;
const _: () = {
    let limits = Limits::DEFAULT;
    let row_bytes = (limits.system_key_bytes + limits.value_bytes) as u64;
    assert!(BATCH_BYTES + row_bytes < (limits.transaction_bytes as u64) / 4);
};
/// Batches that wait between reader and database.
const WAITING: usize = 2;
/// Attempts at a batch whose outcome is unknown. Each has a transaction's timeout.
const ATTEMPTS: u32 = 5;

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The file, or - for standard input
    file: String,

    /// The key of a row: text with names of columns in braces, such as 'people/{id}' [default: the file has the form of `export`]
    #[arg(long, value_name = "TEMPLATE", value_parser = KeyTemplate::parse, conflicts_with = "key_tuple")]
    key: Option<KeyTemplate>,

    /// The key of a row as a packed tuple: elements divided by commas, such as 'people,{id:int}'. Types: int, float, bool, bytes; without one, a string
    #[arg(long, value_name = "TEMPLATE", value_parser = KeyTemplate::parse_tuple)]
    key_tuple: Option<KeyTemplate>,

    /// The value of a row, such as '{name}' [default: the whole row as a JSON object]
    #[arg(long, value_name = "TEMPLATE", value_parser = Template::parse)]
    value: Option<Template>,

    /// What the file looks like [default: what its name ends in: .csv, .tsv, .ndjson, .jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// What divides the columns of CSV; \t is a tab [default: a comma, in a .tsv file a tab]
    #[arg(long, value_name = "LETTER", value_parser = parse_delimiter)]
    delimiter: Option<u8>,

    /// The first row of CSV is no header; the columns are named {1}, {2}, …
    #[arg(long)]
    no_header: bool,

    /// Leave out so many bad rows, and say each; one more ends the import
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad: u64,

    /// Under which name the position is kept in the database [default: the file's path; standard input has none]
    #[arg(long, value_name = "NAME", value_parser = parse_job)]
    job: Option<String>,

    /// Forget where an interrupted import of this name was, and begin at the beginning
    #[arg(long)]
    restart: bool,

    /// Rows of a transaction at most; it also ends with the row that reaches 1 MiB
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch_rows: u64,

    /// Transactions under way at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    in_flight: u64,

    #[command(flatten)]
    transfer: TransferArguments,
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [letter] if !matches!(letter, b'"' | b'\r' | b'\n') => Ok(*letter),
        _ => Err("a delimiter is one ASCII letter, and no quote; \\t is a tab".to_owned()),
    }
}

fn parse_job(text: &str) -> Result<String, String> {
    match text.len() {
        1..=1000 => Ok(text.to_owned()),
        length => Err(format!("a name has 1 to 1000 bytes; this has {length}")),
    }
}

/// Runs the command.
pub(crate) fn import(arguments: &ImportArguments, out: impl Write) -> Result<(), Failure> {
    let is_stdin = arguments.file == "-";
    let format = Format::of(arguments.format, &arguments.file)?;
    let key = arguments.key.clone().or_else(|| arguments.key_tuple.clone());
    if key.is_none() && arguments.value.is_some() {
        return Err(Failure::usage(
            "--value needs --key or --key-tuple",
            "without them the file has a column `value` and a column `key`",
        ));
    }
    let tab = if arguments.file.ends_with(".tsv") { b'\t' } else { b',' };
    let options = Options {
        name: if is_stdin { "standard input".to_owned() } else { arguments.file.clone() },
        format,
        delimiter: arguments.delimiter.unwrap_or(tab),
        has_header: !arguments.no_header,
        key,
        value: arguments.value.clone(),
        skip_bad: arguments.skip_bad,
        system: arguments.transfer.system,
        limits: Limits::DEFAULT,
    };
    let (input, total_bytes) = open(&arguments.file)?;
    let job = match &arguments.job {
        Some(name) => Some(Job { name: name.clone() }),
        None if is_stdin => None,
        None => {
            let path = Path::new(&arguments.file).canonicalize().map_err(|error| unopened(&arguments.file, &error))?;
            let name = parse_job(&path.to_string_lossy());
            Some(Job {
                name: name.map_err(|error| {
                    Failure::usage(format!("the file's path is no name of a job: {error}"), "give --job NAME")
                })?,
            })
        }
    };
    connect::with(&arguments.transfer.connect, Missing::Found, |connected| {
        let options = Options { limits: connected.database.description().limits, ..options };
        let progress = arguments.transfer.start("import", total_bytes);
        let mut run = Run { arguments, progress, written: 0, reached: 0, end: Mark::default() };
        let imported = connected.wait(run.import(connected, job.as_ref(), input, options));
        let Run { progress, written, reached, end, .. } = run;
        let seconds = progress.end().as_secs_f64();
        let imported = imported.map_err(|failure| match failure {
            Failure::TimedOut { .. } => {
                let timeout = arguments.transfer.connect.timeout;
                connect::silent(&connected.place, timeout).about(&format!("the import stopped behind row {reached}"))
            }
            other => other,
        });
        imported.map_err(|failure| match job {
            Some(_) => failure.then("the same command goes on behind the last batch that is there"),
            None => failure,
        })?;
        arguments.transfer.print(out, seconds, |sink| tell(sink, written, &end))
    })
}

fn tell(sink: &mut dyn Sink, written: u64, end: &Mark) -> ferrisdb_storage::Result<()> {
    sink.field("rows", end.rows.into())?;
    sink.field("rows_of_earlier_attempts", (end.rows - written).into())?;
    sink.field("rows_left_out", end.bad.into())?;
    sink.field("bytes", end.offset.into())
}

#[expect(clippy::disallowed_methods, reason = "the file is the user's, and no part of a database")]
fn open(name: &str) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if name == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let file = File::open(name).map_err(|error| unopened(name, &error))?;
    let metadata = file.metadata().map_err(|error| unopened(name, &error))?;
    if metadata.is_dir() {
        return Err(unopened(name, &std::io::ErrorKind::IsADirectory.into()));
    }
    let total_bytes = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), total_bytes))
}

fn unopened(name: &str, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot open {name}: {error}"), "give a file that you may read, or - for standard input")
}

/// An import that runs.
struct Run<'a> {
    arguments: &'a ImportArguments,
    progress: Progress,
    /// Rows that this attempt wrote.
    written: u64,
    /// Rows up to the end of the last batch that is there, of all attempts.
    reached: u64,
    /// Where the file ended.
    end: Mark,
}

impl Run<'_> {
    async fn import(
        &mut self,
        connected: &Connected,
        job: Option<&Job>,
        input: Box<dyn Read + Send>,
        options: Options,
    ) -> Result<(), Failure> {
        let database = &connected.database;
        if let (Some(job), true) = (job, self.arguments.restart) {
            job.clear(database).await?;
        }
        let wanted = self.describe(&options);
        let found = match job {
            Some(job) => job.read(database).await?,
            None => None,
        };
        if let (Some((head, _)), Some(job)) = (&found, job)
            && head.options != wanted
        {
            return Err(Failure::failed(
                format!("the import `{}` was interrupted, and had other options: {}", job.name, head.options),
                format!("these are {wanted}; give those again, or --restart to import all of it with these"),
            ));
        }
        let (found_head, done) = found.unzip();
        let done: Done = done.unwrap_or_default();
        self.reached = done.start.rows;
        let columns = found_head.as_ref().map(|head: &Head| head.columns.clone()).filter(|_| done.start.offset > 0);
        let source = Source::new(input, options, &done.start, columns.unwrap_or_default())?;
        let head = match found_head {
            Some(head) => head,
            None => self.begin(database, job, &source, wanted).await?,
        };
        if done.next > 0 || !done.later.is_empty() {
            self.progress.say(&format!("going on behind row {}", done.start.rows + done.start.bad));
        }

        let (events, mut arriving) = tokio::sync::mpsc::channel(WAITING);
        let cut = Cut { rows: head.batch_rows, bytes: head.batch_bytes };
        let reading = done.clone();
        // Detached: while it waits for a terminal or a pipe nothing ends it but the process.
        #[expect(clippy::disallowed_methods, reason = "a command's own thread; no database depends on it")]
        drop(std::thread::spawn(move || {
            let outcome = source.read(&reading, cut, |event| events.blocking_send(Ok(event)).is_ok());
            if let Err(failure) = outcome {
                drop(events.blocking_send(Err(failure)));
            }
        }));

        let mut flight = Flight {
            next: done.next,
            under_way: BTreeMap::new(),
            ahead: done.later.iter().map(|slot| slot.batch).collect(),
        };
        let mut committing = FuturesUnordered::new();
        let mut waiting: Option<Batch> = None;
        let mut end: Option<Result<Mark, Failure>> = None;
        let mut ended = (0, 0);
        loop {
            if let Some(batch) = waiting.take_if(|batch| flight.has_room(batch, head.slots)) {
                flight.begin(&batch);
                committing.push(commit(database, job, &head, batch, self.arguments.transfer.system));
                continue;
            }
            if committing.is_empty() && waiting.is_none() && end.is_some() {
                break;
            }
            let event = if waiting.is_some() || end.is_some() {
                Either::Right(committing.next().await)
            } else if committing.is_empty() {
                Either::Left(arriving.recv().await)
            } else {
                let receiving = std::pin::pin!(arriving.recv());
                match select(committing.next(), receiving).await {
                    Either::Left((committed, _)) => Either::Right(committed),
                    Either::Right((event, _)) => Either::Left(event),
                }
            };
            match event {
                Either::Left(Some(Ok(Event::Batch(batch)))) => waiting = Some(batch),
                Either::Left(Some(Ok(Event::LeftOut(told)))) => self.progress.say(&format!("left out: {told}")),
                Either::Left(Some(Ok(Event::End(mark)))) => end = Some(Ok(mark)),
                // What is under way is still waited for: it is there, or the next attempt makes it.
                Either::Left(Some(Err(failure))) => end = Some(Err(failure)),
                Either::Left(None) => end = Some(Err(Failure::failed("the reading of the file ended early", ""))),
                Either::Right(committed) => {
                    let (slot, rows) = committed.expect("something is under way")?;
                    self.written += rows;
                    ended = ended.max((slot.end.rows, slot.end.offset));
                    flight.end(slot.batch);
                    self.reached = self.reached.max(ended.0);
                    self.progress.at(ended.0, ended.1);
                }
            }
        }
        self.end = end.expect("the loop ends with it")?;
        if let Some(job) = job {
            job.clear(database).await?;
        }
        Ok(())
    }

    /// The options that decide what rows the file has, for people and for comparing.
    fn describe(&self, options: &Options) -> String {
        let mut text = format!("--format {}", if options.format == Format::Csv { "csv" } else { "ndjson" });
        if let Some(key) = &options.key {
            text += &format!(" {}", key.option());
        }
        if let Some(value) = &options.value {
            text += &format!(" --value '{}'", value.text);
        }
        if options.format == Format::Csv {
            text += &format!(" --delimiter {:?}", char::from(options.delimiter));
            text += if options.has_header { "" } else { " --no-header" };
        }
        text
    }

    async fn begin(
        &self,
        database: &Database,
        job: Option<&Job>,
        source: &Source,
        options: String,
    ) -> Result<Head, Failure> {
        let version = database.create_transaction().get_read_version().await?;
        let head = Head {
            format_version: 1,
            instance: format!("{}-{}", version.get(), std::process::id()),
            options,
            columns: source.columns().to_vec(),
            batch_rows: self.arguments.batch_rows,
            batch_bytes: BATCH_BYTES,
            slots: self.arguments.in_flight + 1,
        };
        if let Some(job) = job
            && !job.begin(database, &head).await?
        {
            return Err(not_ours(job));
        }
        Ok(head)
    }
}

/// Which batches are under way.
struct Flight {
    /// All batches before this one are there.
    next: u64,
    under_way: BTreeMap<u64, HashSet<Bytes>>,
    /// Batches behind `next` that are there.
    ahead: HashSet<u64>,
}

impl Flight {
    fn has_room(&self, batch: &Batch, slots: u64) -> bool {
        let is_in_window = batch.number < self.next + slots - 1;
        is_in_window && !self.under_way.values().any(|keys| batch.rows.iter().any(|(key, _)| keys.contains(key)))
    }

    fn begin(&mut self, batch: &Batch) {
        self.under_way.insert(batch.number, batch.rows.iter().map(|(key, _)| key.clone()).collect());
    }

    fn end(&mut self, number: u64) {
        self.under_way.remove(&number);
        self.ahead.insert(number);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
    }
}

/// Commits a batch, exactly once if the job notes it.
async fn commit(
    database: &Database,
    job: Option<&Job>,
    head: &Head,
    batch: Batch,
    system: bool,
) -> Result<(Slot, u64), Failure> {
    let slot = Slot { batch: batch.number, end: batch.end };
    let mut attempts = 0;
    loop {
        let outcome = database
            .run(async |tx| {
                if system {
                    tx.set_option(&TransactionOption::AccessSystemKeys);
                }
                let noted = match job {
                    Some(job) => job.note(&tx, head, &slot).await?,
                    None => Noted::Fresh,
                };
                if noted == Noted::Fresh {
                    for (key, value) in &batch.rows {
                        tx.set(key, value);
                    }
                }
                Ok(noted)
            })
            .await;
        match (outcome, job) {
            (Ok(Noted::NotOurs), Some(job)) => return Err(not_ours(job)),
            (Ok(_), _) => return Ok((slot, batch.rows.len() as u64)),
            // The note says whether the batch is there; without a job it is written again, with the same rows.
            (Err(error), _) if error.is_maybe_committed() && attempts < ATTEMPTS => attempts += 1,
            (Err(error), _) => return Err(failed(&error)),
        }
    }
}

fn failed(error: &ferrisdb::Error) -> Failure {
    match error.code() {
        // Whoever knows who was asked says who was silent.
        Code::TransactionTimedOut => Failure::from(error.clone()),
        _ => Failure::from(error.clone()).about("the import stopped"),
    }
}

fn not_ours(job: &Job) -> Failure {
    Failure::failed(
        format!("the import `{}` is run by somebody else at the same time", job.name),
        "wait until that has ended, or give another --job NAME",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64, key: &'static str) -> Batch {
        Batch { number, rows: vec![(Bytes::from_static(key.as_bytes()), Bytes::new())], end: Mark::default() }
    }

    /// A batch waits for one before it that has a key in common, and for the one that is a whole window before it.
    #[test]
    fn batches_wait_for_each_other() {
        let mut flight = Flight { next: 4, under_way: BTreeMap::new(), ahead: HashSet::from([5]) };
        flight.begin(&batch(4, "a"));
        assert!(!flight.has_room(&batch(6, "a"), 4), "the later row has to remain");
        assert!(flight.has_room(&batch(6, "b"), 4));
        assert!(!flight.has_room(&batch(7, "b"), 4), "its slot's neighbour is not there yet");
        flight.end(4);
        assert!(flight.has_room(&batch(6, "a"), 4) && flight.has_room(&batch(8, "a"), 4), "5 was there already");
    }
}
