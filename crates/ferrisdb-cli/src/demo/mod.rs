//! `ferrisdb demo`: the storage engine at work, on real data, with a crash.
//!
//! Every step checks what it shows: values read are compared with the data set, a deleted range must be empty and still
//! whole in a snapshot taken before, and after each kill every acknowledged record must be there. A mismatch ends the demo
//! with exit code 1 and leaves its directory for examination; otherwise the directory is removed.
//!
//! # Keys
//! - `char/00E9` → category, tab, name: the characters (six hexadecimal digits, so that byte order is code point order);
//! - `category/Ll/0000E9` → nothing: the index by category;
//! - `log/…` and `last`: what the child process writes ([`child`]).

pub(crate) mod child;
mod crash;

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use ferrisdb_core::{Random, SplitMix64, Version};
use ferrisdb_storage::inspect::Sink;
use ferrisdb_storage::{Durability, Engine, IterOptions, Options, WriteBatch};

use crate::arguments::{DemoArguments, Output};
use crate::dataset::{Character, characters};
use crate::failure::Failure;
use crate::printer::Printer;

/// Characters in one write batch: some 50 KiB, enough to make the cost of a batch small beside that of its entries.
const BATCH_CHARACTERS: usize = 500;

/// Random reads; each takes about a microsecond.
const READS: u64 = 50_000;

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
    let done = Demo { directory: directory.path(), report, random: SplitMix64::new(SEED) }.run();
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
        printer.field("nothing_acknowledged_was_lost", ferrisdb_storage::inspect::Cell::Flag(true))?;
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

        let engine = Engine::open(self.directory, Options::default())?;
        self.load(&engine, &all)?;
        self.flush(&engine)?;
        self.read(&engine, &all)?;
        self.scan(&engine, &all)?;
        self.delete(&engine, &all)?;
        engine.close()?;

        crash::run(self.directory, &mut self.report)?;

        let engine = Engine::open(self.directory, Options::default())?;
        let left: Vec<Character> = all.iter().filter(|c| !DELETED.contains(&c.code_point)).copied().collect();
        self.check_everything(&engine, &left)?;
        engine.close()?;

        self.report.say(
            "\nNothing acknowledged was lost, and nothing else than what was written is there.\n\
             The times are those of this machine, this disk and this build; kill -9 ends a process, not the machine: what a\n\
             power failure may do is simulated in the tests.",
        )?;
        self.report.finish()
    }

    /// Everything in, in atomic batches: a character and its index entry are never seen apart.
    fn load(&mut self, engine: &Engine, all: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut batches = all.chunks(BATCH_CHARACTERS).peekable();
        while let Some(characters) = batches.next() {
            let mut batch = WriteBatch::new();
            for character in characters {
                batch.put(&character_key(character.code_point), &character_value(character));
                batch.put(&index_key(character.category, character.code_point), b"");
            }
            // One sync, at the end, makes all of them durable: the WAL is written in order.
            let durability = if batches.peek().is_none() { Durability::Sync } else { Durability::Buffered };
            engine.write(batch, durability)?;
        }
        let what = format!("{} Unicode characters and an index by category", thousands(all.len() as u64));
        self.report.add(Step {
            name: "load",
            what,
            count: 2 * all.len() as u64,
            unit: "entries",
            took: watch.elapsed(),
        })
    }

    fn flush(&mut self, engine: &Engine) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        engine.flush()?;
        let what = "the memtable into a sorted table on disk".to_string();
        self.report.add(Step { name: "flush", what, count: 1, unit: "", took: watch.elapsed() })
    }

    fn read(&mut self, engine: &Engine, all: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        for _ in 0..READS {
            let index = self.random.below(all.len() as u64);
            let character = &all[usize::try_from(index).expect("an index into a slice fits into usize")];
            let value = engine.get(&character_key(character.code_point))?;
            if value.as_deref() != Some(character_value(character).as_slice()) {
                return Err(mismatch(format_args!("U+{:04X} reads as {value:?}", character.code_point)));
            }
        }
        let what = format!("{} characters by code point, at random, each value compared", thousands(READS));
        self.report.add(Step { name: "read", what, count: READS, unit: "reads", took: watch.elapsed() })
    }

    /// Upper-case letters through the index, then everything in order.
    fn scan(&mut self, engine: &Engine, all: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let expected: Vec<Vec<u8>> =
            all.iter().filter(|c| c.category == "Lu").map(|c| index_key("Lu", c.code_point)).collect();
        let found = scan(engine, b"category/Lu/", b"category/Lu0", None)?;
        if !found.iter().map(|(key, _)| key).eq(&expected) {
            return Err(mismatch(format_args!("{} upper-case letters, not {}", found.len(), expected.len())));
        }
        let count = found.len() as u64;
        let what = format!("{} upper-case letters, through the index", thousands(count));
        self.report.add(Step { name: "scan", what, count, unit: "entries", took: watch.elapsed() })?;

        let watch = Stopwatch::start();
        expect_characters(engine, all, None)?;
        let count = all.len() as u64;
        let what = format!("all {} characters in order, each compared", thousands(count));
        self.report.add(Step { name: "scan", what, count, unit: "entries", took: watch.elapsed() })
    }

    /// One batch of four range deletes; a snapshot from before still sees everything.
    fn delete(&mut self, engine: &Engine, all: &[Character]) -> Result<(), Failure> {
        let snapshot = engine.snapshot();
        let watch = Stopwatch::start();
        let mut batch = WriteBatch::new();
        batch.delete_range(&character_key(DELETED.start), &character_key(DELETED.end));
        for category in DELETED_CATEGORIES {
            batch.delete_range(&index_key(category, DELETED.start), &index_key(category, DELETED.end));
        }
        engine.write(batch, Durability::Sync)?;
        let took = watch.elapsed();

        let left: Vec<Character> = all.iter().filter(|c| !DELETED.contains(&c.code_point)).copied().collect();
        expect_characters(engine, &left, None)?;
        expect_characters(engine, all, Some(snapshot.version()))?;
        let count = (all.len() - left.len()) as u64;
        let what = format!("{} Cuneiform signs by range; a snapshot from before still has them", thousands(count));
        self.report.add(Step { name: "delete", what, count, unit: "", took })
    }

    /// After all the crashes: the characters are as they were, and every checksum holds.
    fn check_everything(&mut self, engine: &Engine, left: &[Character]) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        expect_characters(engine, left, None)?;
        engine.verify()?;
        let what = format!("every checksum, and {} characters once more", thousands(left.len() as u64));
        self.report.add(Step { name: "verify", what, count: left.len() as u64, unit: "", took: watch.elapsed() })
    }
}

/// Scans all characters and their index and compares both with what is expected.
fn expect_characters(engine: &Engine, expected: &[Character], version: Option<Version>) -> Result<(), Failure> {
    let rows = scan(engine, b"char/", b"char0", version)?;
    let as_expected = |((key, value), c): (&(Vec<u8>, Vec<u8>), &Character)| {
        *key == character_key(c.code_point) && *value == character_value(c)
    };
    if rows.len() != expected.len() || !rows.iter().zip(expected).all(as_expected) {
        return Err(mismatch(format_args!(
            "{} characters, or others than the {} expected",
            rows.len(),
            expected.len()
        )));
    }
    let index = scan(engine, b"category/", b"category0", version)?;
    let mut expected: Vec<Vec<u8>> = expected.iter().map(|c| index_key(c.category, c.code_point)).collect();
    expected.sort_unstable();
    if !index.iter().map(|(key, _)| key).eq(&expected) {
        return Err(mismatch(format_args!(
            "{} index entries, or others than the {} expected",
            index.len(),
            expected.len()
        )));
    }
    Ok(())
}

/// A key and its value.
type Row = (Vec<u8>, Vec<u8>);

/// The entries from `lower` up to, not including, `upper`.
fn scan(engine: &Engine, lower: &[u8], upper: &[u8], version: Option<Version>) -> Result<Vec<Row>, Failure> {
    let bounds = IterOptions { version, ..IterOptions::range(lower, upper) };
    let mut iter = engine.iter(bounds)?;
    let mut rows = Vec::new();
    iter.seek_to_first()?;
    while iter.valid() {
        rows.push((iter.key().to_vec(), iter.value().to_vec()));
        iter.next()?;
    }
    Ok(rows)
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

/// The engine answered, and wrongly.
fn mismatch(what: impl Display) -> Failure {
    Failure::failed(
        format!("the engine does not hold what was written: {what}"),
        "this is a bug in FerrisDB: report it, with the directory that is left",
    )
}

/// Measures how long something takes.
struct Stopwatch(Instant);

#[expect(
    clippy::disallowed_methods,
    reason = "the demo tells people how long it took on their clock; nothing depends on it"
)]
impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
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
