//! How a process and its cluster stand, as that process sees them: for whoever looks after processes and checks that they keep their promises.
//!
//! Everything here is what the process knows, and no more: one that is cut off believes what was true before. It reads what is in memory and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::{KeyRange, Version};

use super::{ClusterNode, Shared};
use crate::log::replicated::{GroupView, ProcessId};
use crate::log::{Owner, Tag};

/// What a process knows of itself and its cluster at one moment.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Which process.
    pub process: ProcessId,
    /// Another number in each of its lives: what follows begins anew with each.
    pub life: u64,
    /// As [`ClusterNode::is_complete`].
    pub is_complete: bool,
    /// The coordinator runs here, as far as it knows.
    pub leads: bool,
    /// The log's group.
    pub group: GroupView,
    /// Who belongs to the cluster.
    pub processes: BTreeSet<ProcessId>,
    /// Those of them that are to hold nothing.
    pub excluded: BTreeSet<ProcessId>,
    /// How many replicas each shard is to have.
    pub replicas: usize,
    /// What the log has come to here.
    pub log: LogStanding,
}

/// What a replica of the log has come to.
#[derive(Debug, Clone)]
pub struct LogStanding {
    /// The last entry that was applied.
    pub applied: Option<u64>,
    /// The bytes of the state after it: equal on all replicas that have applied as much.
    pub state: Vec<u8>,
    /// The newest epoch, and whose it is.
    pub epoch: (u64, Owner),
    /// The version of the last batch.
    pub last: Version,
    /// Below this nothing need be readable.
    pub horizon: Version,
    /// Up to where each storage server has told that it needs nothing any more.
    pub popped: BTreeMap<Tag, Version>,
}

/// How a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStanding {
    /// Its keys.
    pub range: KeyRange,
    /// The processes that go on to hold it, with the zones that they say they are in.
    pub team: BTreeMap<ProcessId, String>,
    /// Since this version these hold it, and nobody else does.
    pub since: Version,
    /// It is on its way to other processes.
    pub is_moving: bool,
    /// This process's storage server has it, and goes on to.
    pub is_here: bool,
}

impl ClusterNode {
    /// What this process knows now; `None` before it has seen the cluster's metadata.
    pub fn standing(&self) -> Option<Standing> {
        let shared = self.life.shared();
        let registry = shared.registry().ok()?;
        Some(Standing {
            process: shared.identity.process,
            life: shared.life,
            is_complete: shared.has_its_share(shared.identity.tag),
            leads: shared.leading.coordinator().is_some(),
            group: shared.log.view(),
            processes: registry.processes.keys().copied().collect(),
            excluded: registry.excluded.clone(),
            replicas: registry.replicas(),
            log: shared.log_standing(),
        })
    }

    /// All shards, in the order of their keys, as this process knows them; none before it has seen the cluster's metadata.
    pub fn shard_standings(&self) -> Vec<ShardStanding> {
        let shared = self.life.shared();
        let (Ok(registry), Ok(map)) = (shared.registry(), shared.shards()) else { return Vec::new() };
        let holding = shared.keeper.holding();
        let zone_of = |process: ProcessId| registry.processes.get(&process).map(|known| known.peer.zone.clone());
        let stands = map.iter().map(|(range, shard)| {
            let team = shard.team().into_iter().filter_map(|tag| registry.storage.get(&tag));
            let changes = shard.holders.iter().map(|holder| holder.until.unwrap_or(holder.from));
            ShardStanding {
                since: changes.max().unwrap_or_default(),
                team: team.map(|at| (at.process, zone_of(at.process).unwrap_or_default())).collect(),
                is_moving: shard.moving.is_some(),
                is_here: holding.covers(&range, Version::MAX),
                range,
            }
        });
        stands.collect()
    }
}

impl Shared {
    fn log_standing(&self) -> LogStanding {
        // In one look each: between the two more may be applied, which is why the state's bytes come with the entry that they follow.
        let (applied, state) = self.log.fingerprint();
        self.log.with_state(|now| LogStanding {
            applied,
            state,
            epoch: (now.epoch(), now.owner()),
            last: now.last(),
            horizon: now.horizon(),
            popped: now.tags().clone(),
        })
    }
}
