//! `ferrisdb bench`: how fast a database is, and whether it stays right meanwhile.
//!
//! ```text
//! data      keys, values, which rows are popular       workload   what a transaction does, what is proven at the end
//! drive     clients, closed and open loop, counts
//! ```
//!
//! All rows lie below one prefix, which is cleared before and afterwards: nothing else in the database is touched.

mod data;
mod drive;
mod workload;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use ferrisdb::{Code, Database, Error, Limits};
use ferrisdb_core::{SplitMix64, Zipf};
use ferrisdb_storage::inspect::Sink;

use crate::arguments::{ConnectArguments, OutputArguments};
use crate::connect::{self, Missing};
use crate::failure::Failure;
use crate::printer::Printer;
use data::{Rows, VALUE_BYTES_MIN};
use drive::{Counts, Load, drive};
use workload::{Ended, Work, Workload};

/// Rows that are loaded in one transaction, and about how many bytes it has at most.
const LOAD_ROWS: u64 = 500;
const LOAD_BYTES: usize = 1 << 20;
/// Transactions of the load that are under way at once.
const LOADERS: u64 = 8;

#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// What the transactions do
    #[arg(value_enum)]
    workload: Workload,

    #[command(flatten)]
    connect: ConnectArguments,

    /// Transactions in flight: of a closed loop always, of an open one at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,

    /// Transactions due each second (open loop) [default: the next when one has ended (closed loop)]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,

    /// How long it is measured, after a warm-up of a fifth of that
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    seconds: f64,

    /// Rows that are loaded before; accounts of `bank`
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(2..=1_000_000_000))]
    keys: u64,

    /// Bytes of a value; those of `bank` and `hot-key` have 8
    #[arg(long, value_name = "BYTES", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(VALUE_BYTES_MIN as i64..=Limits::DEFAULT.value_bytes as i64))]
    value_size: u32,

    /// Where the rows are. Everything that begins with this is cleared
    #[arg(long, default_value = "ferrisdb-bench/", value_parser = parse_prefix)]
    prefix: String,

    /// Leave the rows there
    #[arg(long)]
    keep: bool,

    /// Decides which rows are touched
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    output: OutputArguments,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0.01 to 86400".to_owned()),
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    // An empty one would clear the whole database.
    if text.is_empty() { Err("a prefix has one character at least".to_owned()) } else { Ok(text.to_owned()) }
}

/// Runs the command.
pub(crate) fn run(arguments: &BenchArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start a runtime: {error}"), ""))?;
    runtime.block_on(async {
        // Kept until the database in it is closed.
        let mut temporary = None;
        let (database, place) = match connect::open_if_named(&arguments.connect, Missing::Found).await? {
            Some(opened) => opened,
            None => {
                let directory = tempfile::Builder::new().prefix("ferrisdb-bench-").tempdir().map_err(|error| {
                    Failure::failed(format!("cannot make a temporary directory: {error}"), "choose one with --data DIR")
                })?;
                let database =
                    Database::open(directory.path()).map_err(|error| failed("open a temporary database", &error))?;
                temporary = Some(directory);
                (database, "a temporary directory".to_owned())
            }
        };
        let report = measure(arguments, &database).await.map_err(|failure| match failure {
            Failure::TimedOut { what, .. } => connect::silent(&place, arguments.connect.timeout).about(&what),
            other => other,
        })?;
        database.close().await.map_err(|error| failed("close the database", &error))?;
        drop(temporary);
        report.print(arguments, &place, out)
    })
}

/// What was found.
struct Report {
    counts: Counts,
    proven: Option<String>,
}

async fn measure(arguments: &BenchArguments, database: &Database) -> Result<Report, Failure> {
    let count = if arguments.workload == Workload::HotKey { 1 } else { arguments.keys };
    let value_bytes = usize::try_from(arguments.value_size).expect("it is below the limit of a value");
    let work = Work {
        workload: arguments.workload,
        rows: Rows::new(arguments.prefix.as_bytes(), value_bytes, arguments.seed),
        count,
        zipf: Zipf::new(arguments.keys, Zipf::YCSB_THETA),
    };
    let measured = Duration::from_secs_f64(arguments.seconds);
    let load = Load {
        clients: arguments.clients,
        rate: arguments.rate,
        warm_up: measured / 5,
        measured,
        seed: arguments.seed,
    };
    tell(&format!("loading {count} rows"));
    fill(&work, database, arguments.seed).await.map_err(|error| failed("load the rows", &error))?;
    tell("measuring");
    let (work, counts) = drive(work, database, load).await.map_err(|ended| stopped(&ended))?;
    let proven = match work.prove(database, counts.commits, counts.unknown).await.map_err(|ended| stopped(&ended))? {
        Some(Ok(proven)) => Some(proven),
        Some(Err(wrong)) => return Err(stopped(&Ended::Wrong(wrong))),
        None => None,
    };
    if !arguments.keep {
        clear(&work, database).await.map_err(|error| failed("clear the rows", &error))?;
    }
    Ok(Report { counts, proven })
}

/// An error of the database while `what` was done.
fn failed(what: &str, error: &Error) -> Failure {
    match error.code() {
        Code::TransactionTimedOut => Failure::TimedOut { what: format!("cannot {what}"), remedy: String::new() },
        _ => Failure::from(error.clone()).about(&format!("cannot {what}")),
    }
}

/// Progress, for whoever watches.
fn tell(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{what} …");
    }
}

fn stopped(ended: &Ended) -> Failure {
    match ended {
        Ended::Error(error) => failed("go on", error),
        Ended::Wrong(what) => Failure::failed(
            format!("the database gave a wrong answer: {what}"),
            "unless something else wrote below the prefix, this is a bug: please report it with the command line",
        ),
    }
}

async fn clear(work: &Work, database: &Database) -> Result<(), Error> {
    let range = work.rows.range();
    database
        .run(async |transaction| {
            transaction.clear_range(&range.begin, &range.end);
            Ok(())
        })
        .await
}

/// Writes every row once, and nothing else below the prefix.
async fn fill(work: &Work, database: &Database, seed: u64) -> Result<(), Error> {
    clear(work, database).await?;
    let value_bytes = work.first_value(0, &mut SplitMix64::new(0)).len();
    let rows = LOAD_ROWS.min(u64::try_from(LOAD_BYTES / value_bytes).unwrap_or(1)).max(1);
    let mut under_way = std::collections::VecDeque::new();
    for first in (0..work.count).step_by(usize::try_from(rows).expect("it is small")) {
        let mut random = SplitMix64::new(seed ^ first);
        let transaction = database.create_transaction();
        for number in first..(first + rows).min(work.count) {
            transaction.set(work.rows.key(number), work.first_value(number, &mut random));
        }
        // Nobody else writes these rows, and writing them twice is writing them once: another attempt is the same again.
        let commit = transaction.commit();
        under_way.push_back((first, transaction, commit));
        if under_way.len() as u64 >= LOADERS {
            finish(work, seed, rows, under_way.pop_front()).await?;
        }
    }
    while let Some(oldest) = under_way.pop_front() {
        finish(work, seed, rows, Some(oldest)).await?;
    }
    Ok(())
}

/// Waits for one transaction of the load, and makes it again if it has to be.
async fn finish(
    work: &Work,
    seed: u64,
    rows: u64,
    load: Option<(u64, ferrisdb::Transaction, ferrisdb::Commit)>,
) -> Result<(), Error> {
    let Some((first, transaction, commit)) = load else { return Ok(()) };
    let mut ended = commit.await;
    while let Err(error) = ended {
        transaction.on_error(error).await?;
        let mut random = SplitMix64::new(seed ^ first);
        for number in first..(first + rows).min(work.count) {
            transaction.set(work.rows.key(number), work.first_value(number, &mut random));
        }
        ended = transaction.commit().await;
    }
    Ok(())
}

impl Report {
    fn print(&self, arguments: &BenchArguments, place: &str, out: &mut dyn Write) -> Result<(), Failure> {
        let mut printer = Printer::new(arguments.output.output, out);
        // An error is the output's, which `finish` returns.
        let told = self.tell(arguments, place, &mut printer);
        debug_assert!(told.is_ok() || printer.has_failed(), "only the output can fail");
        Ok(printer.finish(None)?)
    }

    fn tell(&self, arguments: &BenchArguments, place: &str, sink: &mut dyn Sink) -> ferrisdb_storage::Result<()> {
        let Report { counts, proven } = self;
        let per_second = |count: u64| rounded(count as f64 / arguments.seconds);
        sink.field("workload", arguments.workload.name().as_str().into())?;
        sink.field("database", place.into())?;
        sink.field("clients", arguments.clients.into())?;
        sink.field("rate_per_second", arguments.rate.into())?;
        sink.field("transactions", counts.transactions.into())?;
        sink.field("transactions_per_second", per_second(counts.transactions).into())?;
        sink.field("reads_per_second", per_second(counts.reads).into())?;
        sink.field("conflicts", counts.conflicts.into())?;
        sink.field("retries", counts.retries.into())?;
        sink.field("unknown_outcomes", counts.unknown.into())?;
        if arguments.rate.is_some() {
            sink.field("not_begun", counts.not_begun.into())?;
        }
        sink.field("mean_us", rounded(counts.latencies.mean()).into())?;
        sink.field("p50_us", counts.latencies.value_at_quantile(0.5).into())?;
        sink.field("p99_us", counts.latencies.value_at_quantile(0.99).into())?;
        sink.field("p999_us", counts.latencies.value_at_quantile(0.999).into())?;
        sink.field("max_us", counts.latencies.max().into())?;
        if let Some(proven) = proven {
            sink.field("proven", proven.as_str().into())?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rates and latencies are small and positive")]
fn rounded(number: f64) -> u64 {
    number.round() as u64
}
