//! Reads over one, two and three storage servers that have a part of the data each: what a read costs, and how even the work is.
//!
//! FerrisDB alone, with one replica of each shard, and shards so small that there are some dozens. The data is loaded once; then a process comes, is given its part, and it is
//! measured again. That all processes and clients share this machine's cores says nothing against it: what counts is CPU per read, and whose it is.

use std::path::Path;
use std::time::Duration;

use ferrisdb::cluster::Order;
use ferrisdb_core::{Random, SplitMix64};
use serde::Serialize;

use super::members::{Cluster, until_within};
use crate::engine::Result;
use crate::servers::peers::Client;
use crate::servers::{Settings, Work, drive, key_of, middle};

/// About so many shards there are to be.
const SHARDS: u64 = 24;
/// Rows in a transaction of the load.
const ROWS: u64 = 100;
/// Clients that read.
const IN_FLIGHT: usize = 64;
/// What takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(300);

/// One line of `--json`: reads over so many storage servers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Spread {
    pub(super) servers: usize,
    pub(super) reads_per_s: f64,
    /// CPU time of client and all processes, user and system.
    pub(super) cpu_us_per_read: f64,
    /// Of the processes alone.
    pub(super) server_cpu_us_per_read: f64,
    /// Of a transaction of ten reads.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Of each process.
    pub(super) shards: Vec<u64>,
    /// The part of the reads that each process's storage server answered.
    pub(super) reads: Vec<f64>,
    /// The part of the processes' CPU time that was each one's: reads, and answering for others.
    pub(super) cpu: Vec<f64>,
}

/// Measures with one, two and three.
pub(super) async fn measure(directory: &Path, settings: &Settings, runs: u32) -> Result<Vec<Spread>> {
    let directory = directory.join("spread");
    std::fs::create_dir_all(&directory)?;
    let bytes = settings.keys * (16 + settings.value_bytes as u64);
    let mut cluster =
        Cluster::ferris(&directory, 1, &["--split-bytes", &(bytes / SHARDS).max(4_096).to_string()]).await?;
    cluster.order(0, Order::Replication(1)).await?;
    eprintln!("loading FerrisDB");
    load(&cluster.members[0].client, settings).await?;
    let mut rows = Vec::new();
    for servers in 1..=3 {
        if servers > 1 {
            cluster.add_ferris().await?;
        }
        let shards = evenly(&mut cluster).await?;
        let mut dones = Vec::new();
        // Of all runs together: each of them alone is too short.
        let (mut reads, mut cpu) = (vec![0.0; servers], vec![0.0; servers]);
        for run in 0..runs {
            eprintln!("reads over {servers} storage servers, run {run}");
            let before = counted(&mut cluster).await?;
            let (clients, processes) = (cluster.clients(), cluster.processes());
            let done = drive(&clients, &processes, Work::TransactionReads, IN_FLIGHT, settings, u64::from(run)).await?;
            dones.push(done);
            let after = counted(&mut cluster).await?;
            for (at, (before, after)) in before.iter().zip(&after).enumerate() {
                reads[at] += (after.0 - before.0) as f64;
                cpu[at] += (after.1 - before.1).as_secs_f64();
            }
        }
        let done = middle(&dones).ok_or("there is at least one run")?;
        let micros = |quantile| done.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.operations.max(1) as f64;
        rows.push(Spread {
            servers,
            reads_per_s: done.per_second(),
            cpu_us_per_read: each(done.cpu),
            server_cpu_us_per_read: each(done.server_cpu),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            shards,
            reads: parts(&reads),
            cpu: parts(&cpu),
        });
    }
    Ok(rows)
}

/// As parts of their sum.
fn parts(of: &[f64]) -> Vec<f64> {
    let all: f64 = of.iter().sum();
    of.iter().map(|one| one / all.max(f64::MIN_POSITIVE)).collect()
}

/// Values that no compression makes smaller, so that bytes are bytes.
async fn load(client: &Client, settings: &Settings) -> Result<()> {
    let Client::Ferris(database) = client else { return Err("it is FerrisDB's".into()) };
    let mut random = SplitMix64::new(1);
    for first in (0..settings.keys).step_by(usize::try_from(ROWS)?) {
        let rows: Vec<(Vec<u8>, Vec<u8>)> = (first..settings.keys.min(first + ROWS))
            .map(|row| {
                let words = (0..settings.value_bytes.div_ceil(8)).flat_map(|_| random.next_u64().to_be_bytes());
                (key_of(row), words.take(settings.value_bytes).collect())
            })
            .collect();
        let write = async |transaction: ferrisdb::Transaction| {
            for (key, value) in &rows {
                transaction.set(key, value);
            }
            Ok(())
        };
        database.run(write).await?;
    }
    Ok(())
}

/// Waits until there are enough shards, nothing moves, and each storage server has about as many as any other; how many each has.
async fn evenly(cluster: &mut Cluster) -> Result<Vec<u64>> {
    let leader = cluster.leader().await?;
    let mut numbers = Vec::new();
    for at in 0..cluster.members.len() {
        numbers.push(cluster.process_number(at).await?);
    }
    let mut shards = Vec::new();
    until_within(PATIENCE, "shards that are spread evenly", async || {
        let status = cluster.status(leader).await?;
        let moves = &status["cluster"]["moves"];
        let of = |number: &u64| status["cluster"]["processes"][number.to_string()]["shards"].as_u64();
        let now = numbers.iter().map(of).collect::<Option<Vec<u64>>>().ok_or("the status has no shards")?;
        let (least, most) = (now.iter().min().copied().unwrap_or(0), now.iter().max().copied().unwrap_or(0));
        let is_calm = moves["shards_moving"] == 0 && moves["shards_waiting"] == 0 && now == shards;
        // The last shard but one that is split may be of another size.
        let is_even = now.iter().sum::<u64>() > SHARDS / 2 && most - least <= 2 + most / 4;
        shards = now;
        Ok(is_calm && is_even)
    })
    .await?;
    Ok(shards)
}

/// Reads that each process's storage server has answered, and its CPU time.
async fn counted(cluster: &mut Cluster) -> Result<Vec<(u64, Duration)>> {
    let mut counted = Vec::new();
    for at in 0..cluster.members.len() {
        let status = cluster.status(at).await?;
        let gets = status["cluster"]["workload"]["gets"].as_u64().ok_or("the status counts no reads")?;
        counted.push((gets, cluster.processes()[at].cpu()?));
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_sum() {
        assert_eq!(parts(&[1.0, 3.0]), [0.25, 0.75]);
        assert_eq!(parts(&[0.0]), [0.0]);
    }
}
