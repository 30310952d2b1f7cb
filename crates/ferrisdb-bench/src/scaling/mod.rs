//! How far one log and one resolver go, and what several would bring: the figures of `docs/scaling.md`.
//!
//! ```text
//! resolvers   real conflict windows, the key space split between them      groups   measured syncs, drawn for N log groups
//! pipeline    a model of queues over both, with what a commit costs
//! ```
//!
//! One commit is measured whole, with all roles and its client in one process and in memory: an upper bound of what it costs the coordinator's processor.

mod groups;
mod pipeline;
mod resolvers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrisdb_core::{Random, SplitMix64};

use self::groups::{Groups, quantile};
use self::pipeline::Pipeline;
use self::resolvers::Load;
use crate::engine::Result;
use crate::measure::Usage;

/// Clients that commit at the same time where a commit's cost is measured.
const CLIENTS: u64 = 64;
/// Bytes of keys and values of a commit, and what the log adds to them: two writes of 16 and 100 bytes.
const COMMIT_BYTES: f64 = 290.0;

const LOADS: [Load; 3] = [
    Load { name: "1 read, 1 write, 10 M keys", reads: 1, writes: 1, keys: 10_000_000, is_skewed: false },
    Load { name: "5 reads, 2 writes, 1 M keys", reads: 5, writes: 2, keys: 1_000_000, is_skewed: false },
    Load { name: "5 reads, 2 writes, 1 M keys, Zipf", reads: 5, writes: 2, keys: 1_000_000, is_skewed: true },
];

/// What the command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Batches of 64 transactions that each number of resolvers is given, after as many to fill the window.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    batches: u64,

    /// Syncs that are measured.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    syncs: u64,

    /// Microseconds of a round trip between two machines.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100.0)]
    round_trip_us: f64,

    /// Megabytes a second that one machine can send: 1,250 are 10 Gbit/s.
    #[arg(long, value_name = "MEGABYTES", default_value_t = 1250.0)]
    network_mb: f64,

    /// Seconds for which a commit's cost is measured.
    #[arg(long, default_value = "2", value_parser = crate::parse_seconds)]
    seconds: f64,

    /// Where syncs are measured [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    println!("## Resolvers that do not wait for each other\n");
    println!(
        "| transactions | resolvers | refused | of all, in vain | busiest, CPU µs a transaction | it alone allows |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    let mut resolver_us = Vec::new();
    for load in LOADS {
        let mut exact = None;
        for resolvers in [1, 2, 4, 8, 16] {
            let outcome = resolvers::run(load, resolvers, arguments.batches);
            let part = |count: u64| 100.0 * count as f64 / outcome.transactions as f64;
            let in_vain = outcome.refused.saturating_sub(*exact.get_or_insert(outcome.refused));
            println!(
                "| {} | {resolvers} | {:.2} % | {:.2} % | {:.2} | {:.1} M/s |",
                load.name,
                part(outcome.refused),
                part(in_vain),
                outcome.busiest_us,
                1.0 / outcome.busiest_us
            );
            if load.reads == 5 && !load.is_skewed {
                resolver_us.push((resolvers, outcome.busiest_us));
            }
        }
    }

    let directory = tempfile::tempdir_in(arguments.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let syncs_us = groups::measure_syncs(directory.path(), arguments.syncs)?;
    let with = |groups| Groups { syncs_us: syncs_us.clone(), round_trip_us: arguments.round_trip_us, groups };
    println!("\n## A batch that all log groups must have, in µs, drawn from {} syncs of this disk\n", arguments.syncs);
    println!("| log groups | p50 | p99 | p99.9 |");
    println!("|--:|--:|--:|--:|");
    for groups in [1, 2, 4, 8, 16, 32] {
        let sorted = with(groups).sorted(100_000);
        let of = |part| quantile(&sorted, part);
        println!("| {groups} | {:.0} | {:.0} | {:.0} |", of(0.5), of(0.99), of(0.999));
    }

    let coordinator_us = commit_us(Duration::from_secs_f64(arguments.seconds))?;
    println!("\n## The pipeline: a commit costs {coordinator_us:.2} µs of CPU, all roles and the client together\n");
    println!(
        "| coordinator's CPU | resolvers | log groups | commits/s that it keeps up with | p50 at half of that, µs | p99 |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    for (share, resolvers, groups) in [(1, 1, 1), (1, 2, 1), (1, 1, 2), (4, 2, 2), (4, 4, 4), (16, 8, 8), (16, 16, 16)]
    {
        let found = resolver_us.iter().find(|&&(count, _)| count == resolvers);
        let pipeline = Pipeline {
            coordinator_us: coordinator_us / f64::from(share),
            resolver_us: found.expect("it was measured above").1,
            commit_bytes: COMMIT_BYTES,
            bytes_per_us: arguments.network_mb,
            groups: with(groups),
        };
        let capacity = pipeline.capacity();
        let half = pipeline.run(capacity / 2.0);
        let share = if share == 1 { "1".to_owned() } else { format!("1/{share}") };
        println!("| {share} | {resolvers} | {groups} | {capacity:.0} | {:.0} | {:.0} |", half.p50_us, half.p99_us);
    }
    Ok(ExitCode::SUCCESS)
}

/// CPU of a commit of two keys, everything included that is not the network or the disk.
fn commit_us(measured: Duration) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let database = ferrisdb::Database::open_in_memory()?;
    let commits = Arc::new(AtomicU64::new(0));
    let cpu = runtime.block_on(async {
        let end = Instant::now() + measured;
        let before = Usage::now()?;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (database, commits) = (database.clone(), Arc::clone(&commits));
                tokio::spawn(async move {
                    let mut random = SplitMix64::new(number);
                    while Instant::now() < end {
                        // Blind writes: nobody is refused.
                        let transaction = database.create_transaction();
                        for _ in 0..2 {
                            let key = [number.to_be_bytes(), random.next_u64().to_be_bytes()].concat();
                            transaction.set(key, [b'v'; 100]);
                        }
                        transaction.commit().await?;
                        commits.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), ferrisdb::Error>(())
                })
            })
            .collect();
        for client in clients {
            client.await??;
        }
        Result::Ok(Usage::now()?.cpu - before.cpu)
    })?;
    Ok(cpu.as_secs_f64() * 1e6 / commits.load(Ordering::Relaxed) as f64)
}
