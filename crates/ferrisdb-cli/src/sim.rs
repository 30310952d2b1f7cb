//! `ferrisdb sim`: whole processes in a simulated world, where one number decides everything.
//!
//! Each seed runs in a process of its own, which is this program under a hidden command ([`child`]): two simulations in one process would leak into each
//! other. A failing seed prints the command that runs it again, alike to the last message.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use ferrisdb_sim::faults::Kind;
use ferrisdb_sim::run::{RunOptions, run as run_seed};
use ferrisdb_sim::seeds::{SEEDS_THAT_REACH_ALL, SeedsOptions, end_if_it_hangs, run_seeds, told};
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

    /// Let only faults of this kind happen, and to whoever leads more often than to others; may be given several times [default: those that each seed chooses]
    #[arg(long, value_name = "FAULT", value_parser = PossibleValuesParser::new(fault_names()))]
    pub(crate) fault: Vec<String>,

    /// Fail also if no seed has reached a fault, an event or a rare place of the code that 300 seeds reach; needs so many, of all workloads
    #[arg(long, conflicts_with_all = ["minutes", "workload", "processes", "fault"])]
    pub(crate) require_rare: bool,

    /// Seeds at once [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) jobs: Option<u64>,

    /// Print every message, disk operation, commit and fault of one seed
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "jobs", "require_rare"])]
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

    #[arg(long)]
    pub(crate) fault: Vec<String>,
}

fn fault_names() -> Vec<&'static str> {
    Kind::ALL.iter().map(|(_, name)| *name).collect()
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
    let seeds_min = SEEDS_THAT_REACH_ALL;
    if arguments.require_rare && arguments.seeds.unwrap_or(SEEDS_DEFAULT) < seeds_min {
        let what = format!("fewer than {seeds_min} seeds need not reach every rare place");
        return Err(Failure::usage(what, format!("Ask for more: ferrisdb sim --require-rare --seeds {seeds_min}")));
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
        let faults = arguments.fault.iter().flat_map(|name| ["--fault", name.as_str()]);
        workloads.chain(processes.iter().flat_map(|processes| ["--processes", processes.as_str()])).chain(faults)
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
    let missed = if arguments.require_rare { summary.missed() } else { Vec::new() };
    if summary.failed.is_empty() && !missed.is_empty() {
        let what = format!("no seed has reached: {}", missed.join(", "));
        let hint = "The simulation proves less than it did: see what keeps it from there, or, if it cannot be reached so often any more, name it with the reason in MAY_BE_MISSED of ferrisdb-sim's seeds.rs.";
        return Err(Failure::failed(what, hint));
    }
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
    let faults = arguments.fault.clone();
    let outcome = run_seed(&RunOptions { seed, workloads, processes, faults, is_traced: true });
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
    let options = RunOptions { seed, workloads, processes, faults: arguments.fault.clone(), is_traced: false };
    Ok(write!(output, "{}", told(&run_seed(&options)))?)
}
