//! `ferrisdb sim`: whole processes in a simulated world, where one number decides everything.
//!
//! Each seed runs in a process of its own, which is this program under a hidden command ([`child`]): two simulations in one process would leak into each
//! other. A failing seed prints the command that runs it again, alike to the last message.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use ferrisdb_sim::run::{RunOptions, run as run_seed};
use ferrisdb_sim::seeds::{SeedsOptions, end_if_it_hangs, run_seeds, told};
use ferrisdb_sim::workloads;

use crate::failure::Failure;

/// How many seeds there are if nothing else is said.
const SEEDS_DEFAULT: u64 = 100;

#[derive(Debug, Args)]
pub(crate) struct SimArguments {
    /// How many seeds; with --minutes, at most so many [default: 100, or as many as there is time for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seeds: Option<u64>,

    /// The first seed; the others follow it
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Begin no seed after so many minutes
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) minutes: Option<u64>,

    /// Run this workload; may be given several times [default: those that each seed chooses]
    #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(workload_names()))]
    pub(crate) workload: Vec<String>,

    /// How many processes the database has: 1, or a cluster of so many [default: 1, 3 or 5, as each seed chooses]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=7))]
    pub(crate) processes: Option<u64>,

    /// Seeds at once [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) jobs: Option<u64>,

    /// Print every message, disk operation, commit and fault of one seed
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "jobs"])]
    pub(crate) trace: bool,
}

/// One seed, in this process.
#[derive(Debug, Args)]
pub(crate) struct SimSeedArguments {
    #[arg(long)]
    pub(crate) seed: u64,

    #[arg(long)]
    pub(crate) workload: Vec<String>,

    #[arg(long)]
    pub(crate) processes: Option<u64>,
}

fn workload_names() -> Vec<&'static str> {
    workloads::ALL.iter().map(|(name, _)| *name).collect()
}

/// Runs seeds and tells what became of them. The last line is `N passed, M failed`.
pub(crate) fn run(arguments: &SimArguments, output: &mut (impl Write + Send)) -> Result<(), Failure> {
    if !ferrisdb_sim::is_reproducible() {
        let what = "this program was built without `--cfg tokio_unstable`: no run would be like another";
        return Err(Failure::failed(
            what,
            "Build it in the repository, whose .cargo/config.toml has it, without a RUSTFLAGS variable.",
        ));
    }
    let is_other = |name: &String| name != workloads::ALONE;
    if arguments.workload.iter().any(is_other) && !arguments.workload.iter().all(is_other) {
        let what = format!("the workload {} uses all keys there are, and runs beside no other", workloads::ALONE);
        return Err(Failure::usage(what, "Leave the others out, or run them in a command of their own."));
    }
    if arguments.trace {
        return trace(arguments, output);
    }
    let program =
        std::env::current_exe().map_err(|error| Failure::failed(format!("this program is gone: {error}"), ""))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.map_or(processors, |jobs| usize::try_from(jobs).unwrap_or(processors));
    let count = arguments.seeds.unwrap_or(if arguments.minutes.is_some() { u64::MAX } else { SEEDS_DEFAULT });
    let options = SeedsOptions {
        first: arguments.seed,
        count: count.min(u64::MAX - arguments.seed),
        jobs,
        time_max: arguments.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        is_first_failure_the_last: false,
    };
    let processes = arguments.processes.map(|processes| processes.to_string());
    let chosen = || {
        let workloads = arguments.workload.iter().flat_map(|name| ["--workload", name.as_str()]);
        workloads.chain(processes.iter().flat_map(|processes| ["--processes", processes.as_str()]))
    };
    let command = |seed: u64| {
        let mut command = Command::new(&program);
        command.args(["__sim-seed", "--seed", &seed.to_string()]).args(chosen());
        command
    };
    let replay = |seed: u64| {
        let words: Vec<&str> = chosen().collect();
        let space = if words.is_empty() { "" } else { " " };
        format!("ferrisdb sim --seeds 1 --seed {seed}{space}{}", words.join(" "))
    };
    let summary = run_seeds(&options, &command, &replay, output)?;
    summary.write(output)?;
    if summary.failed.is_empty() {
        return Ok(());
    }
    let what = format!("{} seeds failed", summary.failed.len());
    Err(Failure::failed(
        what,
        "Each printed the command that runs it again; with --trace in place of --seeds 1 it prints all that happened.",
    ))
}

/// Runs one seed here and prints its trace.
fn trace(arguments: &SimArguments, output: &mut impl Write) -> Result<(), Failure> {
    let (seed, workloads, processes) = (arguments.seed, arguments.workload.clone(), arguments.processes);
    let outcome = run_seed(&RunOptions { seed, workloads, processes, is_traced: true });
    write!(output, "{}", told(&outcome))?;
    match outcome.failures.first() {
        None => Ok(()),
        Some(failure) => Err(Failure::failed(failure.clone(), "The trace says how it came to that.")),
    }
}

/// The process of one seed.
pub(crate) fn child(arguments: &SimSeedArguments, output: &mut impl Write) -> Result<(), Failure> {
    end_if_it_hangs().map_err(|error| Failure::failed(format!("cannot start a thread: {error}"), ""))?;
    let (seed, workloads, processes) = (arguments.seed, arguments.workload.clone(), arguments.processes);
    let options = RunOptions { seed, workloads, processes, is_traced: false };
    Ok(write!(output, "{}", told(&run_seed(&options)))?)
}
