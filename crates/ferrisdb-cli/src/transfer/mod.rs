//! `ferrisdb import` and `ferrisdb export`: rows from files and into files.
//!
//! ```text
//! source     a file as rows, cut into batches        template   keys and values made of columns
//! import     batches as transactions, some at once   position   how far an import is, kept in the database
//! export     a snapshot as a file                    progress   how far it is, for whoever watches
//! ```
//!
//! # The form of `export`
//! Each row is a key and a value in the display encoding of the command line (`text`): `\xNN` for a byte that is no printable text, `\\` for a
//! backslash. So every byte string survives: NDJSON has an object `{"key":…,"value":…}` on each line, CSV a header `key,value`. `import` without
//! `--key` takes this form, so that `ferrisdb export | ferrisdb import - --format ndjson` copies a database byte for byte.

pub(crate) mod export;
pub(crate) mod import;
mod position;
mod progress;
mod source;
mod template;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ferrisdb_storage::inspect::Sink;

use crate::arguments::{ConnectArguments, OutputArguments, parse_interval};
use crate::failure::Failure;
use crate::printer::Printer;
use progress::Progress;

/// What a file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Rows of columns, divided by commas (or --delimiter), quoted with "
    Csv,
    /// One JSON object on each line
    Ndjson,
}

impl Format {
    /// What was asked for, or else what the file's name says.
    fn of(asked: Option<Format>, path: &str) -> Result<Format, Failure> {
        let extension = Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match (asked, extension.to_ascii_lowercase().as_str()) {
            (Some(format), _) => Ok(format),
            (None, "csv" | "tsv") => Ok(Format::Csv),
            (None, "ndjson" | "jsonl") => Ok(Format::Ndjson),
            (None, _) => Err(Failure::usage(
                format!("the name `{path}` does not say whether it is CSV or NDJSON"),
                "give --format csv or --format ndjson, or a name that ends in .csv, .tsv, .ndjson or .jsonl",
            )),
        }
    }
}

/// What both commands take, behind their own options.
#[derive(Debug, Args)]
pub(crate) struct TransferArguments {
    /// Allow system keys, which begin with \xff
    #[arg(long)]
    pub(crate) system: bool,

    /// How often to say how far it is, where standard error is no terminal (`0`: at every step); a terminal has a bar
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    pub(crate) progress: Duration,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

impl TransferArguments {
    /// Begins to tell how far it is.
    fn start(&self, what: &'static str, total_bytes: Option<u64>) -> Progress {
        Progress::start(what, total_bytes, self.output.output, self.progress)
    }

    /// Prints what came of it, and how long it took.
    fn print(
        &self,
        out: impl Write,
        seconds: f64,
        tell: impl FnOnce(&mut dyn Sink) -> ferrisdb_storage::Result<()>,
    ) -> Result<(), Failure> {
        let mut printer = Printer::new(self.output.output, out);
        let told = tell(&mut printer).and_then(|()| printer.seconds("seconds", seconds));
        printer.finish(None)?;
        Ok(told?)
    }
}
