//! The simulator: seeds pass, a seed decides everything, and seeds differ.
//!
//! `FERRISDB_SIM_SEED` and `FERRISDB_SIM_SEEDS` choose other seeds, `FERRISDB_SIM_WORKLOADS` other workloads (with commas), `FERRISDB_SIM_PROCESSES` how many
//! processes the database has, `FERRISDB_SIM_FAULTS` the only kinds of faults (with commas). Each seed runs in a process of
//! its own, which is this test program.

#![expect(clippy::print_stdout, reason = "figures of a run, and what a child process says")]

use std::process::Command;

use ferrisdb_sim::run::{RunOptions, run};
use ferrisdb_sim::seeds::{SeedsOptions, end_if_it_hangs, run_in_process, run_seeds, told};

const SEED: &str = "FERRISDB_SIM_ONE_SEED";
const WORKLOADS: &str = "FERRISDB_SIM_WORKLOADS";
const PROCESSES: &str = "FERRISDB_SIM_PROCESSES";
const FAULTS: &str = "FERRISDB_SIM_FAULTS";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn workloads() -> String {
    std::env::var(WORKLOADS).unwrap_or_default()
}

fn names(list: &str) -> Vec<String> {
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The process of one seed.
#[test]
#[ignore = "a part of the others"]
fn one_seed() {
    end_if_it_hangs().expect("a thread");
    let seed = number(SEED, 1);
    let (workloads, faults) = (names(&workloads()), names(&std::env::var(FAULTS).unwrap_or_default()));
    let is_traced = std::env::var("FERRISDB_SIM_TRACE").is_ok();
    let processes = std::env::var(PROCESSES).ok().map(|text| text.parse().expect("a number"));
    let outcome = run(&RunOptions { seed, workloads, processes, faults, is_traced });
    println!("\n{}", told(&outcome));
}

fn command(seed: u64, workloads: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["one_seed", "--exact", "--ignored", "--nocapture"]);
    command.env(SEED, seed.to_string()).env(WORKLOADS, workloads).env_remove("RUST_BACKTRACE");
    command
}

/// Seeds of mixed workloads, or of those that were asked for, pass.
#[test]
fn seeds_pass() {
    let options = SeedsOptions {
        first: number("FERRISDB_SIM_SEED", 1),
        count: number("FERRISDB_SIM_SEEDS", 4),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        time_max: None,
        is_first_failure_the_last: std::env::var("FERRISDB_SIM_STOP").is_ok(),
    };
    let workloads = workloads();
    let replay = |seed| format!("FERRISDB_SIM_SEED={seed} FERRISDB_SIM_SEEDS=1 FERRISDB_SIM_WORKLOADS={workloads}");
    let mut report = Vec::new();
    let summary = run_seeds(&options, &|seed| command(seed, &workloads), &replay, &mut report).expect("a Vec");
    summary.write(&mut report).expect("a Vec");
    let report = String::from_utf8(report).expect("text");
    println!("{report}");
    assert!(summary.failed.is_empty(), "{} seeds failed: {:?}", summary.failed.len(), summary.failed);
}

/// The same seed in two processes is the same run, to the last line of its trace; another seed is another run.
#[test]
fn a_seed_decides_everything() {
    let told = |seed| run_in_process(seed, command(seed, ""));
    let once = told(11);
    assert_eq!(once.failures, Vec::<String>::new());
    assert_eq!(once, told(11));
    assert_ne!(once.hash, told(12).hash);
}

/// The same for clusters, where most of what is concurrent is.
#[test]
fn a_seed_decides_everything_of_a_cluster() {
    for processes in ["3", "5"] {
        let told = |seed| {
            let mut command = command(seed, "");
            command.env(PROCESSES, processes);
            run_in_process(seed, command)
        };
        let once = told(21);
        assert_eq!(once.failures, Vec::<String>::new());
        assert_eq!(once, told(21), "{processes} processes");
        assert_ne!(once.hash, told(22).hash);
    }
}
