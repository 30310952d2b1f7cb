//! Chores of the workspace that need more than one cargo command: `cargo xtask --help`.
//!
//! Each prints what it does and fails loudly. Every build that uses other flags has a target directory of its own under
//! `target/`, so that it never spoils the cache of an ordinary build.

mod checks;
mod deps;
mod fuzz;
mod planted;
mod planted_transactions;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Chores of the FerrisDB workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Plants each deliberate bug and requires that its tests notice
    PlantedBugs {
        /// Only this bug
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        /// A handful of them, in a few seconds once built
        #[arg(long)]
        quick: bool,
    },
    /// Runs the loom tests: every interleaving of small concurrent scenarios
    Loom {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Runs the shuttle tests: random interleavings of larger concurrent scenarios
    Shuttle {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Runs tests of the storage engine under the address sanitizer
    Asan {
        /// Only tests whose name contains this
        #[arg(default_value = "memtable")]
        filter: String,
    },
    /// Fuzzes every decoder, and the engine against a model, each for a while
    Fuzz {
        /// Only this target
        target: Option<String>,
        /// Seconds for each target
        #[arg(long, default_value_t = 20)]
        seconds: u32,
    },
    /// Checks that no dependency is banned or has a licence that we have not agreed to
    Deps,
}

/// What a task says when it fails.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::PlantedBugs { only, quick } => planted_bugs(only.as_deref(), quick),
        Task::Loom { filter } => checks::loom(filter.as_deref()),
        Task::Shuttle { filter } => checks::shuttle(filter.as_deref()),
        Task::Asan { filter } => checks::asan(&filter),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Deps => deps::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Both lists, storage's and that of transactions, or the one bug of either; quick: a handful of storage's, which need one build only.
fn planted_bugs(only: Option<&str>, quick: bool) -> Outcome {
    match only {
        _ if quick => planted::run(only, true),
        Some(bug) if planted_transactions::bug_names().contains(&bug) => planted_transactions::run(only, false),
        Some(_) => planted::run(only, false),
        None => planted::run(None, false).and(planted_transactions::run(None, false)),
    }
}

/// The workspace's root directory.
fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.ancestors().nth(2).expect("xtask lies in crates/ of the workspace").to_path_buf()
}

/// The cargo that runs us, at the workspace's root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end with our output as its output.
fn must_succeed(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}")) }
}
