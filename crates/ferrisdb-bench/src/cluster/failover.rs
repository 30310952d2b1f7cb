//! How long a cluster pauses when the process that leads it is killed.
//!
//! Some clients commit one after the other all the time. The leader is killed with SIGKILL; the pause ends with the first acknowledgement of a commit
//! that was *begun* after the kill, for whoever gets one first and for the last of the clients. What was under way at the kill does not count: its answer may have
//! been on the way already. Then the process is started again and caught up, before the next kill.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ferrisdb_core::{Random, SplitMix64};
use tokio::sync::mpsc;

use super::members::Cluster;
use crate::engine::Result;
use crate::servers::key_of;

/// Clients that commit all the time.
const CLIENTS: usize = 8;
/// An attempt at one of several ways takes so long at most.
const ATTEMPT: Duration = Duration::from_secs(1);
/// What takes longer than this will not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pauses of all kills.
#[derive(Default)]
pub(super) struct Pauses {
    /// Until any of the clients has committed.
    pub(super) first: Vec<Duration>,
    /// Until all of them have.
    pub(super) all: Vec<Duration>,
}

struct Acknowledged {
    client: usize,
    began: Instant,
    ended: Instant,
}

/// Kills the leader again and again.
pub(super) async fn measure(cluster: &mut Cluster, kills: u32) -> Result<Pauses> {
    let (sender, mut acknowledged) = mpsc::unbounded_channel();
    let is_over = Rc::new(Cell::new(false));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let mut ways = cluster.ways(client).await?;
        let (sender, is_over) = (sender.clone(), Rc::clone(&is_over));
        clients.push(tokio::task::spawn_local(async move {
            let key = key_of(client as u64);
            // A client that has one way only looks for another process by itself.
            let patience = if ways.len() > 1 { ATTEMPT } else { PATIENCE };
            let mut at = 0;
            while !is_over.get() {
                let began = Instant::now();
                match tokio::time::timeout(patience, ways[at].put(client, &key, b"beat")).await {
                    Ok(Ok(())) => {
                        let beat = Acknowledged { client, began, ended: Instant::now() };
                        // Nobody listens at the end.
                        drop(sender.send(beat));
                    }
                    Ok(Err(_)) | Err(_) => {
                        at = (at + 1) % ways.len();
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
        }));
    }
    let mut random = SplitMix64::new(7);
    let mut pauses = Pauses::default();
    for number in 0..kills {
        // Not in step with heartbeats.
        tokio::time::sleep(Duration::from_millis(300 + random.below(300))).await;
        let leader = cluster.leader().await?;
        let (before, after) = cluster.kill(leader)?;
        let mut seen = [false; CLIENTS];
        while seen.contains(&false) {
            let next = tokio::time::timeout(PATIENCE, acknowledged.recv()).await;
            let next = next.map_err(|_| format!("{}: no commit for {PATIENCE:?} after kill {number}", cluster.name))?;
            let beat = next.ok_or("the clients run")?;
            if beat.began <= after || seen[beat.client] {
                continue;
            }
            let pause = beat.ended - before;
            if !seen.contains(&true) {
                pauses.first.push(pause);
            }
            seen[beat.client] = true;
            if !seen.contains(&false) {
                pauses.all.push(pause);
            }
        }
        cluster.start(leader)?;
        cluster.caught_up(leader).await?;
    }
    is_over.set(true);
    for client in clients {
        client.await?;
    }
    Ok(pauses)
}
