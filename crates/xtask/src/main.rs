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
        /// Only this bug; may be given several times
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// A handful of storage's and five of the cluster's, in two minutes once built
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
    /// Kills, stops, cuts off and fills up real processes of a cluster under load, and certifies what clients saw
    Chaos {
        /// Minutes; a scenario that has begun is ended
        #[arg(long, default_value_t = 10)]
        minutes: u32,
        /// Seconds instead of minutes; faults are shorter then
        #[arg(long, conflicts_with = "minutes")]
        seconds: Option<u32>,
        /// Every scenario so often, however long that takes; faults are short then, and those that take long are left out
        #[arg(long, conflicts_with_all = ["minutes", "seconds"])]
        rounds: Option<u32>,
        /// Only scenarios whose name contains this; may be given several times
        #[arg(long, value_name = "TEXT")]
        only: Vec<String>,
        /// Decides who is hit, and for how long
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Checks that no dependency is banned or has a licence that we have not agreed to
    Deps,
}

/// What a task says when it fails.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::PlantedBugs { only, quick } => planted_bugs(&only, quick),
        Task::Loom { filter } => checks::loom(filter.as_deref()),
        Task::Shuttle { filter } => checks::shuttle(filter.as_deref()),
        Task::Asan { filter } => checks::asan(&filter),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Chaos { minutes, seconds, rounds, only, seed } => {
            let time = match (rounds, seconds) {
                (Some(rounds), _) => ["--rounds".to_owned(), rounds.to_string()],
                (None, Some(seconds)) => ["--seconds".to_owned(), seconds.to_string()],
                (None, None) => ["--minutes".to_owned(), minutes.to_string()],
            };
            chaos(&time, &only, seed)
        }
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

/// Both lists, storage's and that of transactions and the cluster, or these bugs of them; quick: a handful of each.
fn planted_bugs(only: &[String], quick: bool) -> Outcome {
    let (of_storage, of_others) = (planted::bug_names(), planted_transactions::bug_names());
    if let Some(unknown) =
        only.iter().find(|bug| !of_storage.contains(&bug.as_str()) && !of_others.contains(&bug.as_str()))
    {
        return Err(format!(
            "{unknown} is not a planted bug; they are: {}, {}",
            of_storage.join(", "),
            of_others.join(", ")
        ));
    }
    let asked = |names: &[&str]| only.is_empty() || only.iter().any(|bug| names.contains(&bug.as_str()));
    let mut outcome = Ok(());
    if asked(&of_storage) {
        outcome = planted::run(only, quick);
    }
    if asked(&of_others) {
        outcome = outcome.and(planted_transactions::run(only, quick));
    }
    outcome
}

/// The program is a test target of the command's crate, so that it is built with the command that it starts.
fn chaos(time: &[String], only: &[String], seed: u64) -> Outcome {
    let mut command = cargo();
    command.args(["test", "--package", "ferrisdb-cli", "--test", "chaos", "--"]);
    command.args(time);
    for text in only {
        command.args(["--only", text]);
    }
    must_succeed(command.args(["--seed", &seed.to_string()]))
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
