//! The command line: every command, its options, its help.
//!
//! The help texts are a part of the interface; `tests/help.rs` keeps a copy of each.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::bench::BenchArguments;

/// Exit codes, at the end of each help text.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the message says why
  2  the command line is wrong
  3  corruption was found: what is on disk is not what was written";

/// FerrisDB: an ordered, transactional key-value database.
#[derive(Debug, Parser)]
#[command(name = "ferrisdb", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the storage engine at work: load, read, scan, delete, kill -9, recover
    ///
    /// Opens an engine in a temporary directory, loads the names of 34,888 Unicode characters with an index, reads,
    /// scans, deletes a range, starts a child process that writes durably, kills it in the middle of a write, reopens and
    /// checks that nothing acknowledged was lost. Takes a few seconds and removes its directory.
    #[command(after_help = example(
        "ferrisdb demo\n  ferrisdb demo --directory /mnt/disk --keep && ferrisdb inspect dir /mnt/disk/ferrisdb-demo-*"
    ))]
    Demo(DemoArguments),

    /// The writing process of `demo`, which `demo` kills
    #[command(name = "__child", hide = true)]
    DemoChild(DemoChildArguments),

    /// Measure a database: transactions a second, latencies, conflicts
    ///
    /// Loads rows, runs transactions of the chosen kind, checks every value that it reads and, where there is something to
    /// prove, proves it at the end. Without --connect or --data it makes a database in a temporary directory.
    #[command(after_help = example(
        "ferrisdb bench read-only\n  \
         ferrisdb bench ycsb-a --connect 127.0.0.1:4500 --clients 64 --seconds 30\n  \
         ferrisdb bench bank --data db --rate 2000 --output json"
    ))]
    Bench(BenchArguments),

    /// Print what is inside a file of a database
    #[command(after_help = example(
        "ferrisdb inspect sst db/000123.sst\n  ferrisdb inspect wal db/000007.wal --output json"
    ))]
    Inspect(InspectArguments),

    /// Check every checksum, the order of keys, the levels, and the manifest against the directory
    ///
    /// Reads everything and changes nothing. The database must not be open elsewhere.
    #[command(after_help = example("ferrisdb verify db && echo sound"))]
    Verify(VerifyArguments),

    /// Print a completion script for a shell
    #[command(after_help = example("ferrisdb completions bash > ~/.local/share/bash-completion/completions/ferrisdb"))]
    Completions(CompletionsArguments),

    /// Print the manual page, or write a page for each command
    #[command(after_help = example("ferrisdb man | man -l -\n  ferrisdb man --directory ~/.local/share/man/man1"))]
    Man(ManArguments),
}

/// Examples and exit codes.
fn example(lines: &str) -> String {
    format!("Example:\n  {lines}\n\n{EXIT_CODES}")
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs: one JSON object
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct OutputArguments {
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Where to make the temporary directory [default: the system's]. Durable writes wait for its disk
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Leave the temporary directory there
    #[arg(long)]
    pub(crate) keep: bool,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DemoChildArguments {
    /// The engine's directory
    pub(crate) directory: PathBuf,

    /// The first number to write
    pub(crate) first: u64,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// What it is
    #[arg(value_enum)]
    pub(crate) what: Inspected,

    /// The file, or the database's directory
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// What `inspect` can look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Inspected {
    /// A segment of the write-ahead log: its records
    Wal,
    /// An SSTable: footer, properties, blocks, entries
    Sst,
    /// A manifest: its edits
    Manifest,
    /// A directory: which file is what, and whether the manifest names it
    Dir,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// The database's directory
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Write one page for each command into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// clap's own consistency checks (no option twice, no default out of range, …).
    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
