//! Three FerrisDB processes beside three of etcd on the same machine: commits, reads, a follower that hangs, a leader that is killed, a process
//! that comes new.
//!
//! ```text
//! members    processes: start, kill, how they stand        failover   pauses after kills
//! ```
//!
//! Both clusters run all the time, and one is asked at a time. Clients are tasks in this process; each cluster has a connection to each of its processes,
//! and clients take turns with them. So two of three questions reach a process that does not lead, in both. Not measured, because it is not built: how
//! load spreads over storage servers that have a part of the keys each.

mod failover;
mod members;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ferrisdb::Database;
use ferrisdb_core::{Random, SplitMix64};
use serde::Serialize;

use crate::engine::Result;
use crate::servers::peers::Client;
use crate::servers::{Done, Settings, Work, drive, load, middle};
use failover::Pauses;
use members::Cluster;

pub(crate) use members::serve;

/// What the command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rows that are loaded into each cluster.
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
    runs: u32,

    /// How often FerrisDB's leader is killed.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    kills: u32,

    /// How often etcd's leader is killed.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    etcd_kills: u32,

    /// MB of data that a new FerrisDB process catches up.
    #[arg(long, value_name = "MB", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    catch_up_mb: u32,

    /// Where the processes put their data, each time in a new directory [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,

    /// Measure only what contains this text in its name, such as `put, 64 in flight`, `killed` or `new process`; may be given several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Print one JSON object a line instead of tables.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn is_measured(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

/// What is measured on whole clusters, in this order.
const WHOLE: [(&str, Work, usize); 6] = [
    ("get, 64 in flight", Work::Get, 64),
    ("get, 1 in flight", Work::Get, 1),
    ("reads in transactions of 10, 64 in flight", Work::TransactionReads, 64),
    ("put, 1 in flight", Work::Put, 1),
    ("put, 64 in flight", Work::Put, 64),
    ("put, 512 in flight", Work::Put, 512),
];
const STOPPED: &str = "put, 64 in flight, one follower stopped";
const KILLED: &str = "leader killed: next commit of any client";
const KILLED_ALL: &str = "leader killed: every client has committed";
const NEW: &str = "a new process has everything";

/// One line of `--json`: a rate.
#[derive(Debug, Clone, Serialize)]
struct Rate {
    cluster: &'static str,
    workload: &'static str,
    ops_per_s: f64,
    /// CPU time of client and all processes, user and system.
    cpu_us_per_op: f64,
    /// Of the processes alone.
    server_cpu_us_per_op: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// One line of `--json`: times of something that happened several times.
#[derive(Debug, Clone, Serialize)]
struct Times {
    cluster: &'static str,
    event: &'static str,
    count: usize,
    median_ms: f64,
    p90_ms: f64,
    max_ms: f64,
}

impl Rate {
    fn new(cluster: &'static str, workload: &'static str, done: &Done) -> Rate {
        let micros = |quantile| done.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.operations.max(1) as f64;
        Rate {
            cluster,
            workload,
            ops_per_s: done.per_second(),
            cpu_us_per_op: each(done.cpu),
            server_cpu_us_per_op: each(done.server_cpu),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
        }
    }
}

impl Times {
    /// `None` if it did not happen.
    fn new(cluster: &'static str, event: &'static str, mut times: Vec<Duration>) -> Option<Times> {
        times.sort_unstable();
        let at = |share: f64| {
            // The smallest time that this share of them does not exceed.
            let rank = (times.len() as f64 * share).ceil().max(1.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of times")]
            let index = rank as usize - 1;
            times.get(index).map(|time| time.as_secs_f64() * 1000.0)
        };
        Some(Times { cluster, event, count: times.len(), median_ms: at(0.5)?, p90_ms: at(0.9)?, max_ms: at(1.0)? })
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("ferrisdb-bench-cluster-");
    let directory = match &arguments.dir {
        Some(parent) => {
            std::fs::create_dir_all(parent)?;
            builder.tempdir_in(parent)?
        }
        None => builder.tempdir()?,
    };
    let load_before = load_average();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let (rates, times) = runtime.block_on(local.run_until(measure(directory.path(), arguments)))?;
    if arguments.json {
        for rate in &rates {
            println!("{}", serde_json::to_string(rate)?);
        }
        for time in &times {
            println!("{}", serde_json::to_string(time)?);
        }
    } else {
        print!("{}", report(&rates, &times, arguments, &load_before));
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(directory: &std::path::Path, arguments: &Arguments) -> Result<(Vec<Rate>, Vec<Times>)> {
    let settings = Settings {
        keys: arguments.keys,
        value_bytes: usize::try_from(arguments.value_size)?,
        measured: Duration::from_secs_f64(arguments.seconds),
    };
    let mut clusters = vec![Cluster::ferris(directory).await?];
    match Cluster::etcd(directory).await? {
        Some(etcd) => clusters.push(etcd),
        None => eprintln!("etcd is not installed (package etcd-server) and is left out"),
    }
    for cluster in &clusters {
        eprintln!("loading {}", cluster.name);
        load(&cluster.clients(), &settings).await.map_err(|error| format!("{}: {error}", cluster.name))?;
    }
    let mut rates = whole(&clusters, &settings, arguments).await?;
    if arguments.is_measured(STOPPED) {
        for cluster in &mut clusters {
            eprintln!("{STOPPED}: {}", cluster.name);
            let done = with_one_stopped(cluster, &settings).await;
            rates.push(Rate::new(cluster.name, STOPPED, &done.map_err(|error| format!("{}: {error}", cluster.name))?));
        }
    }
    let mut times = Vec::new();
    if arguments.is_measured(KILLED) {
        for (cluster, kills) in clusters.iter_mut().zip([arguments.kills, arguments.etcd_kills]) {
            eprintln!("{kills} kills of the leader: {}", cluster.name);
            let Pauses { first, all } = failover::measure(cluster, kills).await?;
            times.extend(Times::new(cluster.name, KILLED, first));
            times.extend(Times::new(cluster.name, KILLED_ALL, all));
        }
    }
    if arguments.is_measured(NEW) && arguments.catch_up_mb > 0 {
        // What is measured last needs etcd no more.
        clusters.truncate(1);
        eprintln!("{NEW}: loading {} MB", arguments.catch_up_mb);
        let took = catch_up(&mut clusters[0], arguments.catch_up_mb).await?;
        times.extend(Times::new(clusters[0].name, NEW, vec![took]));
    }
    Ok((rates, times))
}

/// Everything that is measured on clusters as they are meant to be.
async fn whole(clusters: &[Cluster], settings: &Settings, arguments: &Arguments) -> Result<Vec<Rate>> {
    let mut measured: Vec<Vec<Vec<Done>>> =
        WHOLE.iter().map(|_| clusters.iter().map(|_| Vec::new()).collect()).collect();
    for run in 0..arguments.runs {
        for (index, &(workload, work, in_flight)) in WHOLE.iter().enumerate() {
            for turn in 0..clusters.len() {
                // Another one goes first each time.
                let at = (turn + usize::try_from(run)? + index) % clusters.len();
                let cluster = &clusters[at];
                let is_ferris = matches!(cluster.members[0].client, Client::Ferris(_));
                if !arguments.is_measured(workload) || work == Work::TransactionReads && !is_ferris {
                    continue;
                }
                eprintln!("{workload}: {}", cluster.name);
                let (clients, processes) = (cluster.clients(), cluster.processes());
                let done = drive(&clients, &processes, work, in_flight, settings, u64::from(run)).await;
                measured[index][at].push(done.map_err(|error| format!("{workload}, {}: {error}", cluster.name))?);
            }
        }
    }
    let mut rates = Vec::new();
    for (&(workload, ..), of_workload) in WHOLE.iter().zip(measured) {
        for (cluster, mut dones) in clusters.iter().zip(of_workload) {
            rates.extend(middle(&mut dones).map(|done| Rate::new(cluster.name, workload, done)));
        }
    }
    Ok(rates)
}

/// One follower takes part no more, as if its disk or machine hung. Its own clients would hang with it, so there are none.
async fn with_one_stopped(cluster: &mut Cluster, settings: &Settings) -> Result<Done> {
    let leader = cluster.leader().await?;
    let stopped = (leader + 1) % cluster.members.len();
    let mut clients = cluster.clients();
    clients.remove(stopped);
    cluster.signal(stopped, rustix::process::Signal::STOP)?;
    let done = drive(&clients, &cluster.processes(), Work::Put, 64, settings, 0).await;
    cluster.signal(stopped, rustix::process::Signal::CONT)?;
    cluster.caught_up(stopped).await?;
    done
}

/// Bytes of a value of the data that is caught up, which no compression makes smaller.
const BIG_VALUE_BYTES: usize = 10_000;
/// Of which so many are written in a transaction.
const BIG_VALUES: u64 = 20;
/// Transactions under way while it is loaded.
const BIG_IN_FLIGHT: u64 = 16;

/// Loads so much data, then starts a new process, and measures until it has everything.
async fn catch_up(cluster: &mut Cluster, megabytes: u32) -> Result<Duration> {
    let Client::Ferris(database) = cluster.members[0].client.clone() else {
        return Err("the first cluster is FerrisDB's".into());
    };
    let transactions = u64::from(megabytes) * 1_000_000 / BIG_VALUE_BYTES as u64 / BIG_VALUES;
    let loaders: Vec<_> = (0..BIG_IN_FLIGHT)
        .map(|loader| {
            let database = database.clone();
            tokio::task::spawn_local(async move {
                for transaction in (loader..transactions).step_by(usize::try_from(BIG_IN_FLIGHT)?) {
                    write_big(&database, transaction).await?;
                }
                Ok::<_, crate::engine::Error>(())
            })
        })
        .collect();
    for loader in loaders {
        loader.await??;
    }
    let number = cluster.members.len();
    let began = Instant::now();
    cluster.add_ferris().await?;
    cluster.caught_up(number).await?;
    Ok(began.elapsed())
}

async fn write_big(database: &Database, transaction: u64) -> Result<()> {
    let mut random = SplitMix64::new(transaction);
    let rows: Vec<(String, Vec<u8>)> = (0..BIG_VALUES)
        .map(|row| {
            let words = (0..BIG_VALUE_BYTES / 8).flat_map(|_| random.next_u64().to_be_bytes());
            (format!("big/{:012}", transaction * BIG_VALUES + row), words.collect())
        })
        .collect();
    let write = async |transaction: ferrisdb::Transaction| {
        for (key, value) in &rows {
            transaction.set(key, value);
        }
        Ok(())
    };
    Ok(database.run(write).await?)
}

fn load_average() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or("?").to_owned()
}

/// A table for each kind of work, and what was aimed at.
fn report(rates: &[Rate], times: &[Times], arguments: &Arguments, load_before: &str) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let typed: Vec<String> = std::env::args().skip(1).collect();
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes everything");
    line("# Three FerrisDB processes, beside three of etcd\n".to_owned());
    line(format!("`cargo run --release -p ferrisdb-bench --features servers -- {}`\n", typed.join(" ")));
    line(format!(
        "{} rows of {} bytes under keys of 16; {} s each, median of {} runs in turns; {cores} cores, which clients and all processes share; load \
         average {load_before} before and {} after.",
        arguments.keys,
        arguments.value_size,
        arguments.seconds,
        arguments.runs,
        load_average()
    ));
    let mut workload = "";
    for rate in rates {
        if rate.workload != workload {
            workload = rate.workload;
            line(format!(
                "\n## {workload}\n\n| | ops/s | CPU µs/op | of them servers | p50 µs | p99 µs | p99.9 µs |\n|---|---:|---:|---:|---:|---:|---:|"
            ));
        }
        line(format!(
            "| {} | {:.0} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} |",
            rate.cluster,
            rate.ops_per_s,
            rate.cpu_us_per_op,
            rate.server_cpu_us_per_op,
            rate.p50_us,
            rate.p99_us,
            rate.p999_us
        ));
    }
    if !times.is_empty() {
        line(
            "\n## Kills and growth\n\n| | | times | median ms | p90 ms | max ms |\n|---|---|---:|---:|---:|---:|"
                .to_owned(),
        );
    }
    for time in times {
        let event = match time.event {
            NEW => format!("{NEW}, {} MB", arguments.catch_up_mb),
            event => event.to_owned(),
        };
        line(format!(
            "| {event} | {} | {} | {:.0} | {:.0} | {:.0} |",
            time.cluster, time.count, time.median_ms, time.p90_ms, time.max_ms
        ));
    }
    line("\n## Targets\n\n| | aimed at | measured |\n|---|---:|---:|".to_owned());
    for (target, aimed, measured) in targets(rates, times) {
        line(format!("| {target} | {aimed} | {measured} |"));
    }
    text
}

/// What is aimed at, and what was reached, of what was measured.
fn targets(rates: &[Rate], times: &[Times]) -> Vec<(&'static str, &'static str, String)> {
    let of = |cluster: &str, workload: &str| {
        rates.iter().find(|rate| rate.cluster == cluster && rate.workload == workload).map(|rate| rate.ops_per_s)
    };
    let beside = |workload| Some(format!("{:.2} ×", of("FerrisDB", workload)? / of("etcd", workload)?));
    let killed = times.iter().find(|time| time.cluster == "FerrisDB" && time.event == KILLED);
    let found = [
        ("commits beside etcd's, 64 in flight", "≥ 5 ×", beside("put, 64 in flight")),
        ("reads beside etcd's, 64 in flight", "≥ 10 ×", beside("get, 64 in flight")),
        (
            "leader killed until the next commit, median",
            "≤ 1 s",
            killed.map(|time| format!("{:.2} s", time.median_ms / 1e3)),
        ),
        (
            "leader killed until the next commit, maximum",
            "≤ 3 s",
            killed.map(|time| format!("{:.2} s", time.max_ms / 1e3)),
        ),
    ];
    found.into_iter().filter_map(|(target, aimed, measured)| Some((target, aimed, measured?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks are of the sorted times, and the largest is the maximum; of nothing there is nothing.
    #[test]
    fn times_are_ranked() {
        let times = [40, 10, 30, 20].map(Duration::from_millis).to_vec();
        let times = Times::new("FerrisDB", KILLED, times).unwrap();
        assert_eq!((times.count, times.median_ms, times.p90_ms, times.max_ms), (4, 20.0, 40.0, 40.0));
        assert!(Times::new("FerrisDB", KILLED, Vec::new()).is_none());
    }

    /// Ratios are FerrisDB's beside etcd's, and what was not measured is not there.
    #[test]
    fn targets_are_of_what_was_measured() {
        let rate = |cluster, ops_per_s| Rate {
            cluster,
            workload: "put, 64 in flight",
            ops_per_s,
            cpu_us_per_op: 0.0,
            server_cpu_us_per_op: 0.0,
            p50_us: 0.0,
            p99_us: 0.0,
            p999_us: 0.0,
        };
        let rates = [rate("FerrisDB", 300.0), rate("etcd", 200.0)];
        let times = Times::new("FerrisDB", KILLED, vec![Duration::from_millis(900), Duration::from_millis(1500)]);
        let measured: Vec<String> = targets(&rates, &times.into_iter().collect::<Vec<_>>())
            .into_iter()
            .map(|(.., measured)| measured)
            .collect();
        assert_eq!(measured, ["1.50 ×", "0.90 s", "1.50 s"]);
    }
}
