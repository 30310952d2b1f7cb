//! What the commands that measure servers all take: how much, how long, where, and in which form it is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Settings;
use crate::engine::Result;

/// See the [module](self).
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Rows that are loaded into each of those that are compared.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    keys: u64,

    /// Bytes of a value; keys have 16.
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    value_size: u32,

    /// Seconds of each measurement, after a warm-up of a fifth of that.
    #[arg(long, default_value = "3", value_parser = crate::parse_seconds)]
    seconds: f64,

    /// How many times each is measured, in turns; the result is the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) runs: u32,

    /// Where the servers put their data, each time in a new directory [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,

    /// Print one JSON object a line instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Common {
    /// How it is measured.
    pub(crate) fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            keys: self.keys,
            value_bytes: usize::try_from(self.value_size)?,
            measured: Duration::from_secs_f64(self.seconds),
        })
    }

    /// A new directory, which goes when it is dropped. `of` is a part of its name.
    pub(crate) fn directory(&self, of: &str) -> Result<tempfile::TempDir> {
        let mut builder = tempfile::Builder::new();
        let prefix = format!("ferrisdb-bench-{of}-");
        builder.prefix(&prefix);
        Ok(match &self.dir {
            Some(parent) => {
                std::fs::create_dir_all(parent)?;
                builder.tempdir_in(parent)?
            }
            None => builder.tempdir()?,
        })
    }

    /// The command as it was typed.
    pub(crate) fn command(&self) -> String {
        let typed: Vec<String> = std::env::args().skip(1).collect();
        format!("`cargo run --release -p ferrisdb-bench --features servers -- {}`", typed.join(" "))
    }

    /// How it was measured, for the report.
    pub(crate) fn describe(&self) -> String {
        let Common { keys, value_size, seconds, runs, .. } = self;
        format!("{keys} rows of {value_size} bytes under keys of 16; {seconds} s each, median of {runs} runs in turns")
    }
}

/// The load average of the last minute.
pub(crate) fn load_average() -> String {
    let load = std::fs::read_to_string(Path::new("/proc/loadavg")).unwrap_or_default();
    load.split_whitespace().next().unwrap_or("?").to_owned()
}
