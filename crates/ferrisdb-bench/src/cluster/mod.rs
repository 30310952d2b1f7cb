//! Three FerrisDB processes beside three of etcd on the same machine: commits, reads, a follower that hangs, a leader that is killed, a process
//! that comes back, one that comes new; and FerrisDB alone with one to three storage servers that have a part of the data each.
//!
//! ```text
//! members    processes: start, kill, how they stand        failover   pauses after kills
//! growth     until a process has what the others have      spread     reads over storage servers
//! ```
//!
//! One cluster is measured at a time, and the processes of the other one stand still meanwhile. Clients are tasks in this process; each cluster has a connection to each of its processes,
//! and clients take turns with them. So two of three questions reach a process that does not lead, in both.

mod failover;
mod growth;
mod members;
mod spread;

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::engine::Result;
use crate::servers::arguments::{Common, load_average};
use crate::servers::peers::Client;
use crate::servers::process::Process;
use crate::servers::{Done, Settings, Still, Work, beside, drive, each, load, middle, settle};
use failover::Pauses;
use growth::Caught;
use members::Cluster;
use spread::Spread;

pub(crate) use members::serve;

/// What the command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,

    /// How often FerrisDB's leader is killed.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    kills: u32,

    /// How often etcd's leader is killed.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    etcd_kills: u32,

    /// MB of data that are written while a process is down, and that one process gets from the others when another one is drained.
    #[arg(long, value_name = "MB", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    catch_up_mb: u32,

    /// Measure only what contains this text in its name, such as `put, 64 in flight`, `killed`, `catches up` or `storage servers`; may be given several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
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
const DOWN: &str = "catches up with what was written while it was down";
const DRAINED: &str = "a new process catches up: another one is drained";
const SPREAD: &str = "reads in transactions of 10, 64 in flight, over storage servers that have a part each";

/// One line of `--json`: a rate.
#[derive(Debug, Clone, Serialize)]
struct Rate {
    cluster: &'static str,
    workload: &'static str,
    ops_per_s: f64,
    /// The same of each run, in their order.
    each_ops_per_s: Vec<f64>,
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
    /// Of all runs in their order; `None` if there is none.
    fn new(cluster: &'static str, workload: &'static str, dones: &[Done]) -> Option<Rate> {
        let each_ops_per_s = each(dones);
        let done = middle(dones)?;
        let micros = |quantile| done.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let one = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.operations.max(1) as f64;
        Some(Rate {
            cluster,
            workload,
            ops_per_s: done.per_second(),
            each_ops_per_s,
            cpu_us_per_op: one(done.cpu),
            server_cpu_us_per_op: one(done.server_cpu),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
        })
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
    let directory = arguments.common.directory("cluster")?;
    let load_before = load_average();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let measured = runtime.block_on(local.run_until(measure(directory.path(), arguments)))?;
    if arguments.common.json {
        for line in measured.lines() {
            println!("{}", line?);
        }
    } else {
        print!("{}", report(&measured, arguments, &load_before));
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that was measured.
#[derive(Default)]
struct Measured {
    rates: Vec<Rate>,
    times: Vec<Times>,
    caught: Vec<Caught>,
    spread: Vec<Spread>,
}

impl Measured {
    /// As JSON.
    fn lines(&self) -> impl Iterator<Item = serde_json::Result<String>> {
        let rates = self.rates.iter().map(serde_json::to_string);
        let times = self.times.iter().map(serde_json::to_string);
        let caught = self.caught.iter().map(serde_json::to_string);
        rates.chain(times).chain(caught).chain(self.spread.iter().map(serde_json::to_string))
    }
}

/// What was measured last, or, on standard error, why it was not: what was measured before is not lost with it.
fn told<T>(what: &str, cluster: &str, measured: Result<T>) -> Option<T> {
    measured.inspect_err(|error| eprintln!("{what}: {cluster}: not measured: {error}")).ok()
}

async fn measure(directory: &std::path::Path, arguments: &Arguments) -> Result<Measured> {
    let settings = arguments.common.settings()?;
    let mut measured = Measured::default();
    if arguments.is_measured(SPREAD) {
        measured.spread = spread::measure(directory, &settings, arguments.common.runs).await?;
    }
    let others = WHOLE.iter().map(|(workload, ..)| *workload).chain([STOPPED, KILLED, DOWN, DRAINED]);
    if !others.clone().any(|workload| arguments.is_measured(workload)) {
        return Ok(measured);
    }
    let mut clusters = vec![Cluster::ferris(directory, 3, &[]).await?];
    match Cluster::etcd(directory).await? {
        Some(etcd) => clusters.push(etcd),
        None => eprintln!("etcd is not installed (package etcd-server) and is left out"),
    }
    for cluster in &clusters {
        eprintln!("loading {}", cluster.name);
        load(&cluster.clients(), &settings).await.map_err(|error| format!("{}: {error}", cluster.name))?;
    }
    let rates = &mut measured.rates;
    rates.extend(whole(&mut clusters, &settings, arguments).await?);
    if arguments.is_measured(STOPPED) {
        for at in 0..clusters.len() {
            let (cluster, others) = apart(&mut clusters, at);
            eprintln!("{STOPPED}: {}", cluster.name);
            let done = with_one_stopped(cluster, others, &settings).await;
            let done = told(STOPPED, cluster.name, done);
            rates.extend(done.and_then(|done| Rate::new(cluster.name, STOPPED, &[done])));
        }
    }
    if arguments.is_measured(KILLED) {
        for (at, kills) in (0..clusters.len()).zip([arguments.kills, arguments.etcd_kills]) {
            let (cluster, others) = apart(&mut clusters, at);
            eprintln!("{kills} kills of the leader: {}", cluster.name);
            let name = cluster.name;
            let pauses = async {
                let _still = alone(cluster, others).await?;
                failover::measure(cluster, kills).await
            };
            let Some(Pauses { first, all }) = told(KILLED, name, pauses.await) else { continue };
            measured.times.extend(Times::new(name, KILLED, first));
            measured.times.extend(Times::new(name, KILLED_ALL, all));
        }
    }
    if arguments.is_measured(DOWN) {
        for at in 0..clusters.len() {
            let (cluster, others) = apart(&mut clusters, at);
            eprintln!("{DOWN}: {}", cluster.name);
            let name = cluster.name;
            let caught = async {
                let _still = alone(cluster, others).await?;
                growth::while_down(cluster, arguments.catch_up_mb).await
            };
            measured.caught.extend(told(DOWN, name, caught.await));
        }
    }
    if arguments.is_measured(DRAINED) {
        // What is measured last needs etcd no more.
        clusters.truncate(1);
        eprintln!("{DRAINED}");
        let caught = growth::drained(&mut clusters[0], arguments.catch_up_mb).await;
        measured.caught.extend(told(DRAINED, clusters[0].name, caught));
    }
    Ok(measured)
}

/// One of the clusters, and the processes of the others.
fn apart(clusters: &mut [Cluster], at: usize) -> (&mut Cluster, Vec<&Process>) {
    let (mut one, mut others) = (None, Vec::new());
    for (index, cluster) in clusters.iter_mut().enumerate() {
        if index == at {
            one = Some(cluster);
        } else {
            others.extend(cluster.processes());
        }
    }
    (one.expect("the number is one of theirs"), others)
}

/// Has the others stand still, and waits until this one is as it is meant to be: it stood still itself a moment ago, and may have another leader since.
async fn alone<'a>(cluster: &mut Cluster, others: Vec<&'a Process>) -> Result<Still<'a>> {
    let still = settle(others).await?;
    for number in 0..cluster.members.len() {
        cluster.caught_up(number).await?;
    }
    Ok(still)
}

/// Everything that is measured on clusters as they are meant to be.
async fn whole(clusters: &mut [Cluster], settings: &Settings, arguments: &Arguments) -> Result<Vec<Rate>> {
    let mut measured: Vec<Vec<Vec<Done>>> =
        WHOLE.iter().map(|_| clusters.iter().map(|_| Vec::new()).collect()).collect();
    for run in 0..arguments.common.runs {
        for (index, &(workload, work, in_flight)) in WHOLE.iter().enumerate() {
            for turn in 0..clusters.len() {
                // Another one goes first each time.
                let at = (turn + usize::try_from(run)? + index) % clusters.len();
                let (cluster, others) = apart(clusters, at);
                let is_ferris = matches!(cluster.members[0].client, Client::Ferris(_));
                if !arguments.is_measured(workload) || work == Work::TransactionReads && !is_ferris {
                    continue;
                }
                let _still = alone(cluster, others).await?;
                eprintln!("{workload}: {}", cluster.name);
                let (clients, processes) = (cluster.clients(), cluster.processes());
                let done = drive(&clients, &processes, work, in_flight, settings, u64::from(run)).await;
                measured[index][at].push(done.map_err(|error| format!("{workload}, {}: {error}", cluster.name))?);
            }
        }
    }
    let mut rates = Vec::new();
    for (&(workload, ..), of_workload) in WHOLE.iter().zip(measured) {
        for (cluster, dones) in clusters.iter().zip(of_workload) {
            rates.extend(Rate::new(cluster.name, workload, &dones));
        }
    }
    Ok(rates)
}

/// One follower takes part no more, as if its disk or machine hung. Its own clients would hang with it, so there are none.
async fn with_one_stopped(cluster: &mut Cluster, others: Vec<&Process>, settings: &Settings) -> Result<Done> {
    let _still = alone(cluster, others).await?;
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

/// A table for each kind of work, and what was aimed at.
fn report(measured: &Measured, arguments: &Arguments, load_before: &str) -> String {
    use std::fmt::Write;
    let Measured { rates, times, caught, spread } = measured;
    let mut text = String::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes everything");
    line("# Three FerrisDB processes, beside three of etcd\n".to_owned());
    line(arguments.common.command() + "\n");
    line(format!(
        "{}; {cores} cores, which clients and all processes share; load average {load_before} before and {} after.",
        arguments.common.describe(),
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
        line("\n## Kills\n\n| | | times | median ms | p90 ms | max ms |\n|---|---|---:|---:|---:|---:|".to_owned());
    }
    for Times { cluster, event, count, median_ms, p90_ms, max_ms } in times {
        line(format!("| {event} | {cluster} | {count} | {median_ms:.0} | {p90_ms:.0} | {max_ms:.0} |"));
    }
    if !caught.is_empty() {
        line("\n## Catching up\n\n| a process | | MB | seconds | MB/s |\n|---|---|---:|---:|---:|".to_owned());
    }
    for Caught { cluster, event, megabytes, seconds, mb_per_s } in caught {
        line(format!("| {event} | {cluster} | {megabytes:.0} | {seconds:.1} | {mb_per_s:.1} |"));
    }
    if !spread.is_empty() {
        line(format!(
            "\n## {SPREAD}\n\nOne replica of each shard. A client has a connection to each process and asks the one that has the row.\n\n\
             | storage servers | reads/s | CPU µs/read | of them servers | p50 µs | p99 µs | shards of each | part of the reads of each | part of the servers' CPU |\n\
             |---:|---:|---:|---:|---:|---:|---|---|---|"
        ));
    }
    for row in spread {
        let percent =
            |parts: &[f64]| parts.iter().map(|part| format!("{:.0} %", part * 100.0)).collect::<Vec<_>>().join(", ");
        let shards = row.shards.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        line(format!(
            "| {} | {:.0} | {:.1} | {:.1} | {:.0} | {:.0} | {shards} | {} | {} |",
            row.servers,
            row.reads_per_s,
            row.cpu_us_per_read,
            row.server_cpu_us_per_read,
            row.p50_us,
            row.p99_us,
            percent(&row.reads),
            percent(&row.cpu)
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
        let rate = rates.iter().find(|rate| rate.cluster == cluster && rate.workload == workload);
        rate.map(|rate| rate.each_ops_per_s.as_slice())
    };
    let beside = |workload| beside(of("FerrisDB", workload)?, of("etcd", workload)?);
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
            each_ops_per_s: vec![ops_per_s],
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
        assert_eq!(measured, ["1.50 × (1.50 to 1.50)", "0.90 s", "1.50 s"]);
    }
}
