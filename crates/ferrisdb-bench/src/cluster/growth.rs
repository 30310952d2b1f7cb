//! How long a process takes until it has what the others have: one that was down while much was written, and one that comes new, when another one is drained.
//!
//! What was written meanwhile reaches one that was down as the log, if the others still have it, or as its state: in FerrisDB, where a process that is away for longer than a minute
//! gives up its data, as shards that move. What reaches a new process are shards that move. Those are throttled, for the sake of clients: the rate says more about
//! `move_bytes_per_second` than about the machine, unless the machine is slower.

use std::time::{Duration, Instant};

use ferrisdb::Database;
use ferrisdb::cluster::Order;
use ferrisdb_core::{Random, SplitMix64};
use serde::Serialize;

use super::members::{Cluster, until_within};
use super::{DOWN, DRAINED};
use crate::engine::Result;
use crate::servers::peers::Client;

/// Bytes of a value of the data that is caught up, which no compression makes smaller.
const VALUE_BYTES: usize = 10_000;
/// Values that are written by one client, one after the other; in FerrisDB in one transaction.
const VALUES: u64 = 20;
/// Clients that write.
const IN_FLIGHT: u64 = 16;
/// What takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// One line of `--json`: how long a process took to have everything.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Caught {
    pub(super) cluster: &'static str,
    pub(super) event: &'static str,
    pub(super) megabytes: f64,
    pub(super) seconds: f64,
    pub(super) mb_per_s: f64,
}

impl Caught {
    fn new(cluster: &'static str, event: &'static str, megabytes: u32, took: Duration) -> Caught {
        let (megabytes, seconds) = (f64::from(megabytes), took.as_secs_f64());
        Caught { cluster, event, megabytes, seconds, mb_per_s: megabytes / seconds }
    }
}

/// Kills a follower, writes so much, starts the follower again, and measures until it has all of it.
pub(super) async fn while_down(cluster: &mut Cluster, megabytes: u32) -> Result<Caught> {
    let leader = cluster.leader().await?;
    let down = (leader + 1) % cluster.members.len();
    cluster.kill(down)?;
    let mut clients = cluster.clients();
    clients.remove(down);
    write(cluster, clients, megabytes).await?;
    let began = Instant::now();
    cluster.start(down)?;
    cluster.caught_up_within(down, PATIENCE).await?;
    Ok(Caught::new(cluster.name, DOWN, megabytes, began.elapsed()))
}

/// Has a new process take the place of a follower, with so much data, and measures until it has all of it and the follower nothing.
pub(super) async fn drained(cluster: &mut Cluster, megabytes: u32) -> Result<Caught> {
    write(cluster, cluster.clients(), megabytes).await?;
    let new = cluster.members.len();
    cluster.add_ferris().await?;
    cluster.caught_up(new).await?;
    let leader = cluster.leader().await?;
    let (old, members) = ((leader + 1) % new, [leader, new]);
    let old_process = cluster.process_number(old).await?;
    let new_process = cluster.process_number(new).await?;
    let before = cluster.shards_of(leader, new_process).await?;
    if before > 0 {
        return Err(format!("process {new_process} is new and has {before} shards already").into());
    }
    let began = Instant::now();
    // Refused until whoever leads has heard that the new process has all that it is to have.
    let accepted = async || cluster.order(members[0], Order::Exclude(old_process)).await.map(|()| true);
    until_within(PATIENCE, "the order to exclude a process to be accepted", accepted).await?;
    until_within(PATIENCE, "a process that is drained, and another one that has its data", async || {
        let left = cluster.shards_of(leader, old_process).await?;
        let come = cluster.shards_of(leader, new_process).await?;
        Ok(left == 0 && come > 0)
    })
    .await?;
    cluster.caught_up(new).await?;
    Ok(Caught::new(cluster.name, DRAINED, megabytes, began.elapsed()))
}

/// Writes so much, unless it was written already: the same each time.
async fn write(cluster: &Cluster, clients: Vec<Client>, megabytes: u32) -> Result<()> {
    let transactions = u64::from(megabytes) * 1_000_000 / VALUE_BYTES as u64 / VALUES;
    let mut any = clients.first().ok_or("a cluster has processes")?.clone();
    let last = key_of(transactions.max(1) * VALUES - 1);
    if any.get(0, last.as_bytes()).await?.is_some() {
        return Ok(());
    }
    eprintln!("writing {megabytes} MB: {}", cluster.name);
    let writers: Vec<_> = (0..IN_FLIGHT)
        .map(|number| {
            let mut client = clients[usize::try_from(number).expect("it is small") % clients.len()].clone();
            tokio::task::spawn_local(async move {
                for transaction in (number..transactions.max(1)).step_by(usize::try_from(IN_FLIGHT)?) {
                    let rows = rows_of(transaction);
                    match &mut client {
                        Client::Ferris(database) => write_together(database, &rows).await?,
                        other => {
                            for (key, value) in &rows {
                                other.put(0, key.as_bytes(), value).await?;
                            }
                        }
                    }
                }
                Ok::<_, crate::engine::Error>(())
            })
        })
        .collect();
    for writer in writers {
        writer.await??;
    }
    Ok(())
}

fn key_of(row: u64) -> String {
    format!("big/{row:012}")
}

fn rows_of(transaction: u64) -> Vec<(String, Vec<u8>)> {
    let mut random = SplitMix64::new(transaction);
    let mut value = || (0..VALUE_BYTES / 8).flat_map(|_| random.next_u64().to_be_bytes()).collect();
    (0..VALUES).map(|row| (key_of(transaction * VALUES + row), value())).collect()
}

async fn write_together(database: &Database, rows: &[(String, Vec<u8>)]) -> Result<()> {
    let write = async |transaction: ferrisdb::Transaction| {
        for (key, value) in rows {
            transaction.set(key, value);
        }
        Ok(())
    };
    Ok(database.run(write).await?)
}
