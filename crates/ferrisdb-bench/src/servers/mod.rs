//! FerrisDB served, beside etcd, Redis and PostgreSQL: the same work on loopback, in alternation.
//!
//! ```text
//! process    other programs: start, CPU, stop        peers      the servers and a client for each
//! embedded   FerrisDB without a network, fsync       arguments  what this command and `cluster` take
//! ```
//!
//! All servers run all the time; one is asked at a time. Clients are tasks on one current-thread runtime, in this process. CPU time is that of this
//! process and the server's processes together: on a busy machine it says more than rates do.

pub(crate) mod arguments;
mod embedded;
pub(crate) mod peers;
pub(crate) mod process;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferrisdb_core::{Random, SplitMix64};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::engine::Result;
use crate::measure::Usage;
use arguments::{Common, load_average};
use embedded::Embedded;
use peers::Client;
use process::Process;

/// Point reads of a transaction.
const READS: usize = 10;
/// Clients of the load.
const LOADERS: usize = 256;

/// What the command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,

    /// Measure only what contains this text in `WORKLOAD: SERVER`, such as `put, 64 in flight: FerrisDB`; may be given several times.
    /// Servers that nothing is measured on are not loaded.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
}

impl Arguments {
    fn is_measured(&self, workload: &str, server: &str) -> bool {
        let name = format!("{workload}: {server}");
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

/// How something is measured.
pub(crate) struct Settings {
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    pub(crate) measured: Duration,
}

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Get,
    Put,
    /// Ten point reads in a transaction; an operation is a read.
    TransactionReads,
}

/// What is measured on servers, in this order.
const SERVED: [(&str, Work, usize); 6] = [
    ("get, 64 in flight", Work::Get, 64),
    ("get, 1 in flight", Work::Get, 1),
    ("put, 64 in flight", Work::Put, 64),
    ("put, 1 in flight", Work::Put, 1),
    ("reads in transactions of 10, 64 in flight", Work::TransactionReads, 64),
    ("reads in transactions of 10, 1 in flight", Work::TransactionReads, 1),
];

/// One measurement.
pub(crate) struct Done {
    pub(crate) operations: u64,
    elapsed: Duration,
    /// Of client and servers.
    pub(crate) cpu: Duration,
    /// Of the servers alone.
    pub(crate) server_cpu: Duration,
    /// Nanoseconds; of a transaction where an operation is a part of one.
    pub(crate) latencies: Histogram<u64>,
}

impl Done {
    fn new() -> Done {
        let latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are valid");
        Done { operations: 0, elapsed: Duration::ZERO, cpu: Duration::ZERO, server_cpu: Duration::ZERO, latencies }
    }

    fn record(&mut self, latency: Duration, operations: u64) {
        self.operations += operations;
        self.latencies.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }
}

/// One line of `--json`.
#[derive(Debug, Clone, Serialize)]
struct Row {
    server: &'static str,
    workload: &'static str,
    ops_per_s: f64,
    /// The same of each run, in their order.
    each_ops_per_s: Vec<f64>,
    /// CPU time of client and server, user and system.
    cpu_us_per_op: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

impl Row {
    /// Of all runs in their order; `None` if there is none.
    fn new(server: &'static str, workload: &'static str, dones: &[Done]) -> Option<Row> {
        let each_ops_per_s = each(dones);
        let done = middle(dones)?;
        let micros = |quantile| done.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Row {
            server,
            workload,
            ops_per_s: done.per_second(),
            each_ops_per_s,
            cpu_us_per_op: done.cpu.as_secs_f64() * 1e6 / done.operations.max(1) as f64,
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
        })
    }
}

/// The rates of runs.
pub(crate) fn each(dones: &[Done]) -> Vec<f64> {
    dones.iter().map(Done::per_second).collect()
}

/// How many times the rate of one the other has. Compared are rates of the same run, which were measured soon after each other: a disk that others use as well has good minutes and bad
/// ones, and both had the same. Told is the median of these ratios, with the least and the most.
pub(crate) fn beside(one: &[f64], other: &[f64]) -> Option<String> {
    let mut ratios: Vec<f64> = one.iter().zip(other).map(|(one, other)| one / other).collect();
    ratios.sort_by(f64::total_cmp);
    let (least, middle, most) = (ratios.first()?, ratios.get(ratios.len() / 2)?, ratios.last()?);
    Some(format!("{middle:.2} × ({least:.2} to {most:.2})"))
}

/// The key of row `number`: 16 bytes.
pub(crate) fn key_of(number: u64) -> Vec<u8> {
    format!("key-{number:012}").into_bytes()
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let settings = arguments.common.settings()?;
    let directory = arguments.common.directory("servers")?;
    // PostgreSQL's user has to get to its directory in there.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), permissions)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows =
        runtime.block_on(tokio::task::LocalSet::new().run_until(served(directory.path(), &settings, arguments)))?;
    drop(runtime);
    rows.extend(without_network(directory.path(), &settings, arguments)?);
    if arguments.common.json {
        for row in &rows {
            println!("{}", serde_json::to_string(row)?);
        }
    } else {
        print!("{}", report(&rows, arguments));
    }
    Ok(ExitCode::SUCCESS)
}

/// The child process that serves FerrisDB.
pub(crate) fn serve(directory: &Path) -> Result<ExitCode> {
    peers::serve(directory)?;
    Ok(ExitCode::SUCCESS)
}

async fn served(directory: &Path, settings: &Settings, arguments: &Arguments) -> Result<Vec<Row>> {
    let mut servers = peers::ferris(directory).await?;
    for (name, package, more) in [
        ("etcd", "etcd-server", peers::etcd(directory).await?),
        ("Redis", "redis-server", peers::redis(directory).await?),
        ("PostgreSQL", "postgresql", peers::postgres(directory).await?),
    ] {
        if more.is_empty() {
            eprintln!("{name} is not installed (package {package}) and is left out");
        }
        servers.extend(more);
    }
    servers.retain(|peer| SERVED.iter().any(|&(workload, ..)| arguments.is_measured(workload, peer.name)));
    let mut loaded: Vec<*const Process> = Vec::new();
    for peer in &servers {
        // Two peers may be one server.
        if !loaded.contains(&Arc::as_ptr(&peer.process)) {
            eprintln!("loading {}", peer.name);
            load(&peer.clients(), settings).await.map_err(|error| format!("{}: {error}", peer.name))?;
            loaded.push(Arc::as_ptr(&peer.process));
        }
    }
    let mut measured: Vec<Vec<Vec<Done>>> =
        SERVED.iter().map(|_| servers.iter().map(|_| Vec::new()).collect()).collect();
    for run in 0..arguments.common.runs {
        for (index, &(workload, work, in_flight)) in SERVED.iter().enumerate() {
            for turn in 0..servers.len() {
                // Another one goes first each time.
                let peer_index = (turn + usize::try_from(run)? + index) % servers.len();
                let peer = &servers[peer_index];
                if work == Work::TransactionReads && !matches!(peer.client, Client::Ferris(_))
                    || !arguments.is_measured(workload, peer.name)
                {
                    continue;
                }
                let others = servers.iter().filter(|other| !Arc::ptr_eq(&other.process, &peer.process));
                let still = settle(others.map(|other| &*other.process).collect()).await?;
                eprintln!("{workload}: {}", peer.name);
                let (clients, processes) = (peer.clients(), [&*peer.process]);
                let done = drive(&clients, &processes, work, in_flight, settings, u64::from(run));
                let done = done.await.map_err(|error| format!("{workload}, {}: {error}", peer.name))?;
                drop(still);
                measured[index][peer_index].push(done);
            }
        }
    }
    let mut rows = Vec::new();
    for (&(workload, ..), of_workload) in SERVED.iter().zip(measured) {
        for (peer, dones) in servers.iter().zip(of_workload) {
            rows.extend(Row::new(peer.name, workload, &dones));
        }
    }
    Ok(rows)
}

/// Waits until these have done what they still had to do after their turn (checkpoints, rewrites of their logs), and the disk has what they wrote: it is not the next one's to
/// bear. Ends after a few seconds in any case. From then on they stand still, until what is returned is dropped.
pub(crate) async fn settle(others: Vec<&Process>) -> Result<Still<'_>> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let of_all = || others.iter().map(|process| process.cpu()).sum::<Result<Duration>>();
    let mut before = of_all()?;
    for _ in 0..50 {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = of_all()?;
        // Two ticks of the system's clock: an idle server's own.
        if now - before <= Duration::from_millis(20) {
            break;
        }
        before = now;
    }
    rustix::fs::sync();
    let still = Still(others);
    still.0.iter().try_for_each(|other| other.stand_still(true))?;
    Ok(still)
}

/// Servers that stand still, so that their timers are in nobody's way; dropped, they go on.
pub(crate) struct Still<'a>(Vec<&'a Process>);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        for other in &self.0 {
            // One that is gone is missed in its own turn.
            drop(other.stand_still(false));
        }
    }
}

/// The measurement with the median rate.
pub(crate) fn middle(dones: &[Done]) -> Option<&Done> {
    let mut sorted: Vec<&Done> = dones.iter().collect();
    sorted.sort_by(|a, b| a.per_second().total_cmp(&b.per_second()));
    sorted.get(sorted.len() / 2).copied()
}

/// Writes every row once. Clients of the same server take turns.
pub(crate) async fn load(clients: &[Client], settings: &Settings) -> Result<()> {
    let next = Arc::new(Mutex::new(0..settings.keys));
    let clients: Vec<_> = (0..LOADERS)
        .map(|number| {
            let (mut client, next) = (clients[number % clients.len()].clone(), Arc::clone(&next));
            let value = vec![b'v'; settings.value_bytes];
            tokio::task::spawn_local(async move {
                loop {
                    let row = next.lock().expect("nothing panics while it is held").next();
                    let Some(row) = row else { return Ok(()) };
                    client.put(number, &key_of(row), &value).await?;
                }
            })
        })
        .collect();
    for client in clients {
        let ended: Result<()> = client.await?;
        ended?;
    }
    Ok(())
}

/// Runs clients, which take turns with the `clients` given, on what these `processes` are, for as long as is measured.
pub(crate) async fn drive(
    clients: &[Client],
    processes: &[&Process],
    work: Work,
    in_flight: usize,
    settings: &Settings,
    seed: u64,
) -> Result<Done> {
    let done = Arc::new(Mutex::new(Done::new()));
    let begin = Instant::now() + settings.measured / 5;
    let end = begin + settings.measured;
    let clients: Vec<_> = (0..in_flight)
        .map(|number| {
            let (mut client, done) = (clients[number % clients.len()].clone(), Arc::clone(&done));
            let mut random = SplitMix64::new((seed << 32) + number as u64);
            let (keys, value_bytes) = (settings.keys, settings.value_bytes);
            tokio::task::spawn_local(async move {
                let value = vec![b'w'; value_bytes];
                loop {
                    let began = Instant::now();
                    if began >= end {
                        return Ok(());
                    }
                    let key = key_of(random.below(keys));
                    let operations = match (work, &client) {
                        (Work::Put, _) => {
                            client.put(number, &key, &value).await?;
                            1
                        }
                        (Work::TransactionReads, Client::Ferris(database)) => {
                            let numbers: Vec<u64> = (0..READS).map(|_| random.below(keys)).collect();
                            read_in_transaction(database, &numbers, value_bytes).await?;
                            READS as u64
                        }
                        (Work::Get | Work::TransactionReads, _) => {
                            check(client.get(number, &key).await?.as_deref(), value_bytes)?;
                            1
                        }
                    };
                    let ended = Instant::now();
                    // What ends while it is measured counts.
                    if ended >= begin && ended <= end {
                        done.lock().expect("nothing panics while it is held").record(ended - began, operations);
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep_until(begin.into()).await;
    let of_servers = || processes.iter().map(|process| process.cpu()).sum::<Result<Duration>>();
    let (client_before, servers_before) = (Usage::now()?.cpu, of_servers()?);
    let began = Instant::now();
    for client in clients {
        let ended: Result<()> = client.await?;
        ended?;
    }
    let (client_cpu, server_cpu) = (Usage::now()?.cpu - client_before, of_servers()? - servers_before);
    let mut done = Arc::try_unwrap(done).map_err(|_| "the clients have ended")?.into_inner()?;
    // The rate is over the time in which operations counted, CPU over that in which it was looked at: both nearly the same.
    done.elapsed = settings.measured;
    let share = settings.measured.as_secs_f64() / began.elapsed().as_secs_f64();
    done.server_cpu = server_cpu.mul_f64(share);
    done.cpu = done.server_cpu + client_cpu.mul_f64(share);
    Ok(done)
}

async fn read_in_transaction(database: &ferrisdb::Database, numbers: &[u64], value_bytes: usize) -> Result<()> {
    let transaction = database.create_transaction();
    // All are asked before the first is awaited.
    let reads: Vec<_> = numbers.iter().map(|number| transaction.get(key_of(*number))).collect();
    for read in reads {
        check(read.await?.as_deref(), value_bytes)?;
    }
    transaction.commit().await?;
    Ok(())
}

fn check(value: Option<&[u8]>, value_bytes: usize) -> Result<()> {
    match value {
        Some(value) if value.len() == value_bytes => Ok(()),
        Some(_) => Err("a value has the wrong length".into()),
        None => Err("a row that was loaded is missing".into()),
    }
}

const EMBEDDED: &str = "FerrisDB embedded";
const ENGINE: &str = "engine";
const DISK: &str = "disk";

fn without_network(directory: &Path, settings: &Settings, arguments: &Arguments) -> Result<Vec<Row>> {
    let mut measured: [(&'static str, &'static str, Vec<Done>); 4] = [
        (EMBEDDED, "reads in transactions of 10, embedded", Vec::new()),
        (ENGINE, "reads in transactions of 10, embedded", Vec::new()),
        (EMBEDDED, "put, 1 in flight, embedded", Vec::new()),
        (DISK, "256 bytes written and synced", Vec::new()),
    ];
    let wanted = measured.each_ref().map(|(server, workload, _)| arguments.is_measured(workload, server));
    let embedded = if wanted[..3].contains(&true) {
        eprintln!("loading the embedded database and the engine");
        Some(Embedded::load(directory, settings)?)
    } else {
        None
    };
    // Writes come after the reads, so that those find everything in tables.
    for works in [0..2, 2..4] {
        for _ in 0..arguments.common.runs {
            for work in works.clone().filter(|work| wanted[*work]) {
                let done = match (work, &embedded) {
                    (0, Some(embedded)) => embedded.transaction_reads(settings)?,
                    (1, Some(embedded)) => embedded.engine_reads(settings)?,
                    (2, Some(embedded)) => embedded.commits(settings)?,
                    _ => embedded::fsync(directory, settings)?,
                };
                measured[work].2.push(done);
            }
        }
    }
    for (server, workload, dones) in &measured {
        if let Some(done) = middle(dones) {
            eprintln!("{workload}: {server}: {:?} in the median", embedded::median(done));
        }
    }
    let rows = measured.iter().filter_map(|(server, workload, dones)| Row::new(server, workload, dones));
    Ok(rows.collect())
}

/// A table for each kind of work, and what was aimed at.
fn report(rows: &[Row], arguments: &Arguments) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes everything");
    line("# FerrisDB served, beside other servers\n".to_owned());
    line(arguments.common.command() + "\n");
    line(format!(
        "{}; {cores} cores, which clients and servers share; load average at the end {}.",
        arguments.common.describe(),
        load_average()
    ));
    let mut workload = "";
    for row in rows {
        if row.workload != workload {
            workload = row.workload;
            line(format!(
                "\n## {workload}\n\n| | ops/s | CPU µs/op | p50 µs | p99 µs | p99.9 µs |\n|---|---:|---:|---:|---:|---:|"
            ));
        }
        line(format!(
            "| {} | {:.0} | {:.2} | {:.1} | {:.1} | {:.1} |",
            row.server, row.ops_per_s, row.cpu_us_per_op, row.p50_us, row.p99_us, row.p999_us
        ));
    }
    line("\n## Targets\n\n| | aimed at | measured |\n|---|---:|---:|".to_owned());
    for (target, aimed, measured) in targets(rows) {
        line(format!("| {target} | {aimed} | {measured} |"));
    }
    text
}

/// What is aimed at, and what was reached, of what was measured.
fn targets(rows: &[Row]) -> Vec<(&'static str, &'static str, String)> {
    let of = |server: &str, workload: &str| {
        let rows = rows.iter().filter(|row| row.server.starts_with(server) && row.workload == workload);
        rows.max_by(|a, b| a.ops_per_s.total_cmp(&b.ops_per_s))
    };
    let p50 = |server: &str, workload: &str| {
        rows.iter().find(|row| row.server == server && row.workload == workload).map(|row| row.p50_us)
    };
    let cpu = |server: &str, workload: &str| {
        rows.iter().find(|row| row.server == server && row.workload == workload).map(|row| row.cpu_us_per_op)
    };
    let ratio = |one: Option<f64>, other: Option<f64>| Some(format!("{:.2} ×", one? / other?));
    let beside =
        |server, workload| beside(&of("FerrisDB", workload)?.each_ops_per_s, &of(server, workload)?.each_ops_per_s);
    let fsync = p50(DISK, "256 bytes written and synced");
    let embedded = "reads in transactions of 10, embedded";
    let found = [
        (
            "point reads/s inside transactions, 64 in flight",
            "150,000",
            of("FerrisDB", "reads in transactions of 10, 64 in flight").map(|row| format!("{:.0}", row.ops_per_s)),
        ),
        ("gets beside etcd's, 64 in flight", "10 ×", beside("etcd", SERVED[0].0)),
        ("puts beside etcd's, 64 in flight", "5 ×", beside("etcd", SERVED[2].0)),
        ("puts beside PostgreSQL's, 64 in flight", "1 ×", beside("PostgreSQL", SERVED[2].0)),
        ("a put at one in flight, in fsyncs (p50)", "≤ 2 ×", ratio(p50("FerrisDB", SERVED[3].0), fsync)),
        ("an embedded put, in fsyncs (p50)", "≤ 2 ×", ratio(p50(EMBEDDED, "put, 1 in flight, embedded"), fsync)),
        ("CPU of an embedded read, in the engine's", "≤ 1.5 ×", ratio(cpu(EMBEDDED, embedded), cpu(ENGINE, embedded))),
    ];
    found.into_iter().filter_map(|(target, aimed, measured)| Some((target, aimed, measured?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: &'static str, workload: &'static str, ops_per_s: f64) -> Row {
        let each_ops_per_s = vec![ops_per_s / 2.0, ops_per_s, ops_per_s];
        let p50_us = 1e6 / ops_per_s;
        Row { server, workload, ops_per_s, each_ops_per_s, cpu_us_per_op: 2.0, p50_us, p99_us: 0.0, p999_us: 0.0 }
    }

    /// Targets compare with the better of two ways to use a server, and leave out what was not measured.
    #[test]
    fn targets_are_ratios_of_what_was_measured() {
        let rows = [
            row("FerrisDB", SERVED[2].0, 3000.0),
            row("PostgreSQL, 64 connections", SERVED[2].0, 2000.0),
            row("PostgreSQL, 8 connections", SERVED[2].0, 1000.0),
            row("FerrisDB", SERVED[3].0, 500.0),
            row(DISK, "256 bytes written and synced", 1000.0),
        ];
        let measured: Vec<(&str, String)> =
            targets(&rows).into_iter().map(|(target, _, measured)| (target, measured)).collect();
        let expected = [
            ("puts beside PostgreSQL's, 64 in flight", "1.50 × (1.50 to 1.50)".to_owned()),
            ("a put at one in flight, in fsyncs (p50)", "2.00 ×".to_owned()),
        ];
        assert_eq!(measured, expected);
    }

    /// A bad minute that both had is in no ratio, one that one of them had is not in the median.
    #[test]
    fn rates_of_the_same_run_are_compared() {
        let told = beside(&[100.0, 50.0, 10.0], &[20.0, 10.0, 10.0]);
        assert_eq!(told.as_deref(), Some("5.00 × (1.00 to 5.00)"));
        assert_eq!(beside(&[], &[1.0]), None);
    }

    /// The middle of three, not the first.
    #[test]
    fn the_median_is_the_middle() {
        let done = |operations| Done { operations, elapsed: Duration::from_secs(1), ..Done::new() };
        let dones = [done(30), done(10), done(20)];
        assert_eq!(middle(&dones).map(|done| done.operations), Some(20));
        assert!(middle(&[]).is_none());
    }
}
