//! Benchmarks of FerrisDB against its peers. `docs/benchmarks/README.md` says how to read them.
//!
//! ```text
//! engines ──▶ schedule: engines take turns ──▶ one child process per engine and group
//!                                                 run ──▶ clients ──▶ engine adapter
//!             report, plot ◀── rows (JSON) ◀───────┘
//! ```

#![expect(clippy::disallowed_methods, reason = "a benchmark measures the real clock, disk and threads")]
#![expect(clippy::print_stdout, reason = "the results are this program's output")]

mod clients;
#[cfg(feature = "servers")]
mod cluster;
mod engine;
mod engines;
mod keys;
mod measure;
mod memory_limit;
mod plot;
mod report;
mod resolver;
mod run;
#[cfg(feature = "servers")]
mod scaling;
mod schedule;
#[cfg(feature = "servers")]
mod servers;
mod values;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::engine::Result;
use crate::engines::EngineName;
use crate::run::Job;
use crate::schedule::Plan;
use crate::values::{VALUE_BYTES_MIN, WrongRead};
use crate::workload::{SuiteName, Workload};

/// The one that `ferrisdb` has: this program is FerrisDB's server here, and the clients of all servers.
#[cfg(feature = "servers")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a child, and then of its parent, when an engine gave a wrong or no value.
const EXIT_WRONG_READ: i32 = 3;

/// Benchmarks of FerrisDB against its peers.
#[derive(Debug, Parser)]
#[command(name = "ferrisdb-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare embedded storage engines.
    ///
    /// Each engine runs in processes of its own, in turns with the others, with the same budgets; every value read is
    /// checked. Progress goes to standard error, the tables to standard output. Only ratios within one run count.
    #[command(after_long_help = EXAMPLES)]
    Engines(EnginesArguments),
    /// Measure the resolver's conflict window, and the structures that it was chosen from.
    #[command(after_long_help = RESOLVER_EXAMPLES)]
    Resolver(resolver::Arguments),
    /// Measure and model how far one log and one resolver go, and what several would bring.
    ///
    /// The key space is split between real resolvers; syncs of this disk are drawn for several log groups; a model of queues has both. The
    /// tables go to standard output: those of `docs/scaling.md`.
    #[cfg(feature = "servers")]
    Scaling(scaling::Arguments),
    /// Compare served databases: FerrisDB, etcd, Redis, PostgreSQL.
    ///
    /// Starts all that are installed, durable and on loopback, with their data in a temporary directory, and runs the same work on
    /// them in turns. Progress goes to standard error, the tables to standard output. Only ratios within one run count.
    #[cfg(feature = "servers")]
    #[command(after_long_help = SERVERS_EXAMPLES)]
    Servers(servers::Arguments),
    /// Compare clusters of three processes: FerrisDB and etcd.
    ///
    /// Starts both on loopback, durable, with their data in a temporary directory, and runs the same work on them in turns; then stops a
    /// follower, kills the leader again and again, has a process come back after much was written, and drains one to another. FerrisDB alone
    /// spreads reads over one to three storage servers. Progress goes to standard error, the tables to standard output. Only
    /// ratios within one run count.
    #[cfg(feature = "servers")]
    #[command(after_long_help = CLUSTER_EXAMPLES)]
    Cluster(cluster::Arguments),
    /// Serve a process of a cluster until standard input ends (`cluster` calls this).
    #[cfg(feature = "servers")]
    #[command(hide = true)]
    ServeMemberChild {
        /// The process's directory.
        directory: PathBuf,
        /// Where it listens.
        listen: String,
        /// A process of the cluster; none founds one.
        join: Option<String>,
        /// From how many bytes on a shard is split.
        #[arg(long)]
        split_bytes: Option<u64>,
    },
    /// Serve FerrisDB until interrupted (`servers` calls this).
    #[cfg(feature = "servers")]
    #[command(hide = true)]
    ServeChild {
        /// The database's directory.
        directory: PathBuf,
    },
    /// Measure one group with one engine (the parent process calls this).
    #[command(hide = true)]
    Child {
        /// The job, as JSON.
        job: String,
    },
}

const EXAMPLES: &str = "\
Examples:
  Everything once, in a few minutes:
    ferrisdb-bench engines --suite smoke
  The numbers for data set A, to be continued if interrupted:
    ferrisdb-bench engines --suite A --runs 3 --resume a.jsonl --plot a.svg > a.md
  One question, quickly:
    ferrisdb-bench engines --engines rocksdb,lmdb --workloads readrandom,seek10 --keys 200000 --seconds 3
  Does any put stall for a second within five minutes?
    ferrisdb-bench engines --workloads overwrite-stall --seconds 300";

const RESOLVER_EXAMPLES: &str = "\
Examples:
  The target of the resolver: points only, a window of 500,000 transactions:
    ferrisdb-bench resolver
  All structures, all mixes, as JSON lines:
    ferrisdb-bench resolver --structures all --mixes all --json";

#[cfg(feature = "servers")]
const SERVERS_EXAMPLES: &str = "\
Examples:
  Everything, in about five minutes:
    ferrisdb-bench servers > servers.md
  On another disk, as JSON lines:
    ferrisdb-bench servers --dir /mnt/disk --json";

#[cfg(feature = "servers")]
const CLUSTER_EXAMPLES: &str = "\
Examples:
  Everything, in about seven minutes:
    ferrisdb-bench cluster > cluster.md
  Only the pauses after kills of the leader:
    ferrisdb-bench cluster --only killed --kills 50";

#[derive(Debug, clap::Args)]
struct EnginesArguments {
    /// The data set, its budgets and workloads.
    #[arg(long, value_enum, default_value = "A")]
    suite: SuiteName,

    /// Which engines, separated by commas [default: all in this build].
    #[arg(long, value_enum, value_delimiter = ',')]
    engines: Vec<EngineName>,

    /// Which workloads, separated by commas [default: those of the suite].
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,

    /// How many keys are loaded [default: the suite's].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    keys: Option<u64>,

    /// Bytes of each value [default: the suite's].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(VALUE_BYTES_MIN as i64..=1 << 20))]
    value_size: Option<u32>,

    /// MiB of cache for each engine [default: the suite's].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    cache_mb: Option<u64>,

    /// Client threads, except in the durable workloads, which have their number in their name.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,

    /// Seconds of each timed workload; loads take as long as they take [default: the suite's].
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<f64>,

    /// How many times everything is measured; the results are medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,

    /// Append each result to this file, and skip what it already holds under the same settings.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    /// Where the engines put their files: on the disk to be measured, with room for several times the data.
    #[arg(long, default_value = "target/ferrisdb-bench")]
    dir: PathBuf,

    /// Print one JSON object a line instead of tables.
    #[arg(long)]
    json: bool,

    /// Also draw the ratios into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Print what each engine says about itself after each group.
    #[arg(long)]
    verbose: bool,
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0.01 to 86400".to_owned()),
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Engines(arguments) => compare(&arguments),
        Command::Resolver(arguments) => resolver::run(&arguments),
        #[cfg(feature = "servers")]
        Command::Scaling(arguments) => scaling::run(&arguments),
        #[cfg(feature = "servers")]
        Command::Servers(arguments) => servers::run(&arguments),
        #[cfg(feature = "servers")]
        Command::Cluster(arguments) => cluster::run(&arguments),
        #[cfg(feature = "servers")]
        Command::ServeMemberChild { directory, listen, join, split_bytes } => {
            cluster::serve(&directory, &listen, join.as_deref(), split_bytes)
        }
        #[cfg(feature = "servers")]
        Command::ServeChild { directory } => servers::serve(&directory),
        Command::Child { job } => child(&job),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ferrisdb-bench: {error}");
            if error.downcast_ref::<WrongRead>().is_some() {
                return ExitCode::from(u8::try_from(EXIT_WRONG_READ).expect("the code is a byte"));
            }
            ExitCode::FAILURE
        }
    }
}

fn child(job: &str) -> Result<ExitCode> {
    let job: Job = serde_json::from_str(job)?;
    run::run(&job, &mut |measured| {
        println!("{}", serde_json::to_string(&measured)?);
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn compare(arguments: &EnginesArguments) -> Result<ExitCode> {
    let plan = plan(arguments)?;
    std::fs::create_dir_all(&plan.directory).map_err(|error| format!("{}: {error}", plan.directory.display()))?;
    let (records, failures) = plan.measure()?;
    let rows = schedule::medians(&records, &plan);
    if arguments.json {
        for row in &rows {
            println!("{}", serde_json::to_string(row)?);
        }
    } else {
        print!("{}", report::markdown(&rows, &plan.settings(), &command_line(), plan.runs, plan.memory_bound_bytes()));
        let longest = schedule::longest_puts(&records);
        if !longest.is_empty() {
            print!("{}", report::longest_puts(&longest));
        }
    }
    if let Some(file) = &arguments.plot {
        std::fs::write(file, plot::svg(&rows, &plan.settings()))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    for failure in &failures {
        eprintln!("ferrisdb-bench: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(arguments: &EnginesArguments) -> Result<Plan> {
    let engines = if arguments.engines.is_empty() { EngineName::defaults() } else { arguments.engines.clone() };
    if engines.is_empty() {
        return Err(
            "this build contains no engine: build with --features peers (after scripts/install-bench-deps.sh) \
                    or --features ferris"
                .into(),
        );
    }
    let mut suite = arguments.suite.suite();
    suite.keys = arguments.keys.unwrap_or(suite.keys);
    suite.value_bytes = arguments.value_size.map_or(Ok(suite.value_bytes), usize::try_from)?;
    suite.cache_bytes = arguments.cache_mb.map_or(suite.cache_bytes, |mib| mib << 20);
    suite.seconds = arguments.seconds.unwrap_or(suite.seconds);
    if !arguments.workloads.is_empty() {
        suite.workloads.clone_from(&arguments.workloads);
    }
    Ok(Plan {
        suite,
        engines,
        threads: usize::from(arguments.threads),
        runs: arguments.runs,
        resume: arguments.resume.clone(),
        directory: arguments.dir.clone(),
        verbose: arguments.verbose,
    })
}

/// The command as a reader can repeat it.
fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo run --release -p ferrisdb-bench --features peers -- {}", arguments.join(" "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// What is typed replaces what the suite says, and nothing else changes.
    #[test]
    fn arguments_change_the_suite() {
        let typed = "ferrisdb-bench engines --suite B --engines memory --workloads seek10,durable-put-8 --keys 5000 \
                     --value-size 200 --cache-mb 3 --seconds 0.5 --threads 4";
        let Command::Engines(arguments) = Arguments::parse_from(typed.split_whitespace()).command else {
            panic!("this is the engines command")
        };
        let plan = plan(&arguments).unwrap();
        assert_eq!(plan.settings(), "suite B: 5000 keys × 200 B, cache 3 MiB, memtables 64 MiB, 4 threads, 0.5 s");
        assert_eq!(plan.suite.workloads, [Workload::Seek10, Workload::DurablePut8]);
    }
}
