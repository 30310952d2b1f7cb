//! `ferrisdb demo`: a database at work, in a directory of its own.
//!
//! Every step proves what it did, not only does it: values that are read are compared with the data set, the money in the bank must stay the same
//! while many clients move it, a cleared range must be empty and still whole in a snapshot taken before, and after each kill every acknowledged
//! transaction must be there, whole. A mismatch ends the demo with exit code 1 and leaves its directory for examination; otherwise the directory is
//! removed, at a terminal after a shell on it.
//!
//! # Keys
//! - `char/0000E9` → category, tab, name: the characters (six hexadecimal digits, so that byte order is code point order);
//! - `category/Ll/0000E9` → nothing: the index by category;
//! - `account/07` → eight bytes, big-endian: what it has ([`bank`]);
//! - `log/…` and `last`: what the child process writes ([`child`]).
//!
//! With `--nodes` it is another demo, of several processes ([`cluster`]).

mod bank;
pub(crate) mod child;
mod cluster;
mod crash;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::time::Duration;

use ferrisdb::{Database, KeyRange, KeyValue, RangeOptions, Snapshot, SnapshotOptions, StreamingMode, Transaction};
use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::Env;
use ferrisdb_storage::inspect::{self, Cell, Sink};
use futures_util::future::try_join_all;

use crate::arguments::{DemoArguments, Output};
use crate::connect::Connected;
use crate::dataset::{Character, characters};
use crate::failure::Failure;
use crate::printer::Printer;
use crate::shell;
use crate::stopwatch::Stopwatch;

/// Characters in one transaction: some 50 KiB, enough to make the cost of a commit small beside that of its writes.
const BATCH_CHARACTERS: usize = 500;

/// Random reads; each takes some microseconds.
const READS: u64 = 50_000;

/// Reads of one transaction.
const READS_TOGETHER: u64 = 10;

/// What hangs for so long is broken.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Any number will do: it makes two runs read the same keys.
const SEED: u64 = 2;

/// The range that is deleted: the Cuneiform script.
const DELETED: std::ops::Range<u32> = 0x12000..0x12550;

/// The index ranges that go with it.
const DELETED_CATEGORIES: [&str; 3] = ["Lo", "Nl", "Po"];

/// Runs the demo in a directory of its own.
pub(crate) fn run(arguments: &DemoArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let mut builder = tempfile::Builder::new();
    let directory = builder.prefix("ferrisdb-demo-").tempdir_in(&parent).map_err(|error| {
        Failure::failed(
            format!("cannot make a temporary directory in {}: {}", parent.display(), error.kind()),
            "choose a directory that you may write to: ferrisdb demo --directory DIR",
        )
    })?;
    let report = Report { output: arguments.output.output, out, steps: Vec::new() };
    let done = match arguments.nodes {
        Some(nodes) => cluster::run(arguments, nodes.into(), directory.path(), report),
        None => Demo { directory: directory.path(), report, random: SplitMix64::new(SEED) }.run(),
    };
    if arguments.keep || done.is_err() {
        let kept = directory.keep();
        // Standard output may be what failed.
        eprintln!("The directory is left at {}", kept.display());
        return done;
    }
    directory.close().map_err(|error| Failure::failed(format!("cannot remove the temporary directory: {error}"), ""))
}

/// What was done, how much of it, and how long it took.
struct Step {
    name: &'static str,
    what: String,
    count: u64,
    unit: &'static str,
    took: Duration,
}

/// Prints the steps: at once for people, at the end as JSON.
struct Report<'a> {
    output: Output,
    out: &'a mut dyn Write,
    steps: Vec<Step>,
}

impl Report<'_> {
    /// A line for people only.
    fn say(&mut self, line: impl Display) -> Result<(), Failure> {
        if self.output == Output::Table {
            writeln!(self.out, "{line}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn add(&mut self, step: Step) -> Result<(), Failure> {
        let Step { name, what, count, unit, took } = &step;
        let took = took.as_secs_f64();
        let speed = match unit {
            &"" => String::new(),
            unit => format!("{:>11} {unit}/s", thousands(per_second(*count, took))),
        };
        let line = format!("  {name:<8} {what:<80} {:>9.1} ms {speed}", took * 1000.0);
        self.say(line.trim_end())?;
        self.steps.push(step);
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        if self.output == Output::Table {
            return Ok(());
        }
        let mut printer = Printer::new(Output::Json, self.out);
        printer.field("ferrisdb", env!("CARGO_PKG_VERSION").into())?;
        printer.field("nothing_acknowledged_was_lost", Cell::Flag(true))?;
        printer.table("steps", &["step", "what", "count", "unit", "microseconds"])?;
        for Step { name, what, count, unit, took } in &self.steps {
            let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            printer.row(&[
                (*name).into(),
                what.as_str().into(),
                (*count).into(),
                (*unit).into(),
                microseconds.into(),
            ])?;
        }
        Ok(printer.finish(None)?)
    }
}

/// The state of a run.
struct Demo<'a> {
    directory: &'a Path,
    report: Report<'a>,
    random: SplitMix64,
}

impl Demo<'_> {
    fn run(mut self) -> Result<(), Failure> {
        self.report.say(format_args!("FerrisDB {} in {}\n", env!("CARGO_PKG_VERSION"), self.directory.display()))?;
        let all: Vec<Character> = characters().collect();
        let left: Vec<Character> = all.iter().filter(|c| !DELETED.contains(&c.code_point)).copied().collect();

        let connected = open(self.directory)?;
        self.load(&connected, &all)?;
        self.read(&connected, &all)?;
        self.scan(&connected, &all)?;
        bank::run(&connected, &mut self.report)?;
        self.clear(&connected, &all, &left)?;
        connected.close()?;

        crash::run(self.directory, &mut self.report)?;
        self.check_everything(&left)?;

        self.report.say(
            "\nNothing acknowledged was lost, and nothing else than what was written is there.\n\
             The times are those of this machine, this disk and this build; kill -9 ends a process, not the machine: what a\n\
             power failure may do is simulated in the tests.\n",
        )?;
        if self.report.output == Output::Table && io::stdin().is_terminal() {
            self.report.say(
                "The database is yours until you leave this shell. Try:\n  \
                 getrange category/Lu/ category/Lu0 5\n  begin\n  set char/01F600 \"So\\x09A FACE OF MINE\"\n  \
                 get char/01F600\n  rollback\n  status\n",
            )?;
            let connected = open(self.directory)?;
            shell::on(&connected, self.report.out)?;
            return connected.close();
        }
        self.report.say(
            "Try next:\n  ferrisdb set hello world --data my-database\n  ferrisdb shell --data my-database\n  \
             ferrisdb serve --data my-database &\n  ferrisdb get hello --connect 127.0.0.1:4700",
        )?;
        self.report.finish()
    }

    /// Everything in, in transactions: a character and its index entry are never seen apart.
    fn load(&mut self, connected: &Connected, all: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let transactions = all.chunks(BATCH_CHARACTERS).map(async |characters| {
            let write = async |tx: Transaction| {
                for character in characters {
                    tx.set(character_key(character.code_point), character_value(character));
                    tx.set(index_key(character.category, character.code_point), b"");
                }
                Ok(())
            };
            connected.database.run(write).await
        });
        let count = connected.run(async { Ok(try_join_all(transactions).await?.len()) })?;
        let what = format!(
            "{} Unicode characters and an index by category, {count} transactions",
            thousands(all.len() as u64)
        );
        self.report.add(Step { name: "load", what, count: 2 * all.len() as u64, unit: "keys", took: watch.elapsed() })
    }

    fn read(&mut self, connected: &Connected, all: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        for _ in 0..READS / READS_TOGETHER {
            let wanted: Vec<&Character> = (0..READS_TOGETHER)
                .map(|_| {
                    let index = self.random.below(all.len() as u64);
                    &all[usize::try_from(index).expect("an index into a slice fits into usize")]
                })
                .collect();
            let reads = async |tx: Transaction| {
                try_join_all(wanted.iter().map(|character| tx.get(character_key(character.code_point)))).await
            };
            let values = connected.run(async { Ok(connected.database.run(reads).await?) })?;
            for (character, value) in wanted.iter().zip(values) {
                if value.as_deref() != Some(character_value(character).as_slice()) {
                    return Err(mismatch(format_args!("U+{:04X} reads as {value:?}", character.code_point)));
                }
            }
        }
        let what =
            format!("{} characters at random, {READS_TOGETHER} a transaction, each value compared", thousands(READS));
        self.report.add(Step { name: "read", what, count: READS, unit: "reads", took: watch.elapsed() })
    }

    /// Upper-case letters through the index, then everything in order.
    fn scan(&mut self, connected: &Connected, all: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let expected: Vec<Vec<u8>> =
            all.iter().filter(|c| c.category == "Lu").map(|c| index_key("Lu", c.code_point)).collect();
        let snapshot = snapshot(connected)?;
        let found = scan(connected, &snapshot, b"category/Lu/", b"category/Lu0")?;
        if !found.iter().map(|row| &row.key).eq(&expected) {
            return Err(mismatch(format_args!("{} upper-case letters, not {}", found.len(), expected.len())));
        }
        let count = found.len() as u64;
        let what = format!("{} upper-case letters, through the index", thousands(count));
        self.report.add(Step { name: "scan", what, count, unit: "keys", took: watch.elapsed() })?;

        let watch = Stopwatch::start();
        expect_characters(connected, &snapshot, all)?;
        let count = 2 * all.len() as u64;
        let what = format!("all {} characters and their index in order, each compared", thousands(all.len() as u64));
        self.report.add(Step { name: "scan", what, count, unit: "keys", took: watch.elapsed() })
    }

    /// One transaction of four range clears; a snapshot from before still sees everything.
    fn clear(&mut self, connected: &Connected, all: &[Character], left: &[Character]) -> Result<(), Failure> {
        let before = snapshot(connected)?;
        let watch = Stopwatch::start();
        let clear = async |tx: Transaction| {
            tx.clear_range(character_key(DELETED.start), character_key(DELETED.end));
            for category in DELETED_CATEGORIES {
                tx.clear_range(index_key(category, DELETED.start), index_key(category, DELETED.end));
            }
            Ok(())
        };
        connected.run(async { Ok(connected.database.run(clear).await?) })?;
        let took = watch.elapsed();

        expect_characters(connected, &snapshot(connected)?, left)?;
        expect_characters(connected, &before, all)?;
        let count = (all.len() - left.len()) as u64;
        let what = format!("{} Cuneiform signs by range; a snapshot from before still has them", thousands(count));
        self.report.add(Step { name: "clear", what, count, unit: "", took })
    }

    /// After all the crashes: the characters and the money are as they were, and every checksum holds.
    fn check_everything(&mut self, left: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let connected = open(self.directory)?;
        expect_characters(&connected, &snapshot(&connected)?, left)?;
        bank::check(&connected)?;
        connected.close()?;
        // The files are checked by who did not write them, and nobody reads the words.
        let mut nowhere = Printer::new(Output::Table, io::sink());
        let problems = inspect::verify(&Env::real(), &self.directory.join("storage"), &mut nowhere)?;
        if problems > 0 {
            return Err(mismatch(format_args!("{problems} problems in the files; see `ferrisdb verify`")));
        }
        let what = format!("every checksum, the money, and {} characters once more", thousands(left.len() as u64));
        self.report.add(Step { name: "verify", what, count: left.len() as u64, unit: "", took: watch.elapsed() })
    }
}

/// Opens the demo's database.
fn open(directory: &Path) -> Result<Connected, Failure> {
    Connected::embedded(Database::open(directory)?, directory.display().to_string(), TIMEOUT)
}

/// The database as it is now, for as long as somebody looks.
fn snapshot(connected: &Connected) -> Result<Snapshot, Failure> {
    connected.run(async { Ok(connected.database.snapshot(SnapshotOptions::default()).await?) })
}

/// Scans all characters and their index and compares both with what is expected.
fn expect_characters(connected: &Connected, snapshot: &Snapshot, expected: &[Character]) -> Result<(), Failure> {
    let rows = scan(connected, snapshot, b"char/", b"char0")?;
    let as_expected =
        |(row, c): (&KeyValue, &Character)| row.key == character_key(c.code_point) && row.value == character_value(c);
    if rows.len() != expected.len() || !rows.iter().zip(expected).all(as_expected) {
        return Err(mismatch(format_args!(
            "{} characters, or others than the {} expected",
            rows.len(),
            expected.len()
        )));
    }
    let index = scan(connected, snapshot, b"category/", b"category0")?;
    let mut expected: Vec<Vec<u8>> = expected.iter().map(|c| index_key(c.category, c.code_point)).collect();
    expected.sort_unstable();
    if !index.iter().map(|row| &row.key).eq(&expected) {
        return Err(mismatch(format_args!(
            "{} index entries, or others than the {} expected",
            index.len(),
            expected.len()
        )));
    }
    Ok(())
}

/// The rows from `begin` up to, not including, `end`.
fn scan(
    connected: &Connected,
    snapshot: &Snapshot,
    begin: &'static [u8],
    end: &'static [u8],
) -> Result<Vec<KeyValue>, Failure> {
    let options = RangeOptions::from(KeyRange::new(begin, end)).mode(StreamingMode::WantAll);
    connected.run(async { Ok(snapshot.get_ranges(options).collect().await?) })
}

fn character_key(code_point: u32) -> Vec<u8> {
    format!("char/{code_point:06X}").into_bytes()
}

fn character_value(character: &Character) -> Vec<u8> {
    format!("{}\t{}", character.category, character.name).into_bytes()
}

fn index_key(category: &str, code_point: u32) -> Vec<u8> {
    format!("category/{category}/{code_point:06X}").into_bytes()
}

/// The database answered, and wrongly.
fn mismatch(what: impl Display) -> Failure {
    Failure::failed(
        format!("the database does not hold what was written: {what}"),
        "this is a bug in FerrisDB: report it, with the directory that is left",
    )
}

/// How many a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a speed is positive and far below 2^64")]
fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds.max(1e-9)) as u64
}

/// 34888 as 34,888.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers are shown in groups of three from the right.
    #[test]
    fn thousands_are_grouped_from_the_right() {
        assert_eq!([0, 999, 1000, 34_888, 1_234_567].map(thousands), ["0", "999", "1,000", "34,888", "1,234,567"]);
    }

    /// The deleted script lies in the three categories whose index entries are deleted with it.
    #[test]
    fn the_deleted_range_is_in_the_deleted_categories() {
        let deleted: Vec<Character> = characters().filter(|c| DELETED.contains(&c.code_point)).collect();
        assert!(deleted.len() > 1000);
        assert!(deleted.iter().all(|c| c.name.starts_with("CUNEIFORM") && DELETED_CATEGORIES.contains(&c.category)));
    }
}
