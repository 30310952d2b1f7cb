//! The controller's task for the shards: looks at how large they are and has [`distribute`](super::distribute) say what to do, one step after the other.
//!
//! It remembers nothing that matters: moves stand in the map, and those who fetch go on whoever leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::{Bytes, Clock, KeyRange, Result, Runtime, Version};
use ferrisdb_rpc::api::SplitPointsRequest;
use futures_util::future::{Either, select};

use super::Shared;
use super::distribute::{Server, Step, View, next_step};
use super::members::Standing;
use super::metadata::Registry;
use crate::coordinator::Coordinator;
use crate::log::Tag;
use crate::shards::ShardMap;
use crate::shards::change::Change;

/// How often something to do is looked for.
const SPREAD: Duration = Duration::from_millis(200);
/// Shards whose size is asked for at once: the others have their turn next.
const SIZES_AT_ONCE: usize = 8;
/// A size that is not told within this time is asked for again later.
const PATIENCE: Duration = Duration::from_secs(2);
/// A move may take so long, and what its bytes take at a quarter of the rate: then others are tried.
const MOVE_MAX: Duration = Duration::from_secs(60);
/// For so long who has not got done with a move gets no other one.
const SLOW: Duration = Duration::from_secs(60);

/// What the controller has seen.
#[derive(Default)]
struct Seen {
    /// By where shards begin: their bytes, and when that was asked.
    sizes: BTreeMap<Bytes, (Option<u64>, Duration)>,
    /// By where shards begin: their moves, and since when they are known.
    moves: BTreeMap<Bytes, (Version, Duration)>,
    /// Who did not get done with a move, and until when that counts.
    slow: BTreeMap<Tag, Duration>,
}

/// Until the epoch ends.
pub(super) async fn run(shared: &Arc<Shared>, coordinator: &Coordinator) {
    let mut seen = Seen::default();
    while coordinator.failure().is_none() {
        // What did not go well is looked at again.
        drop(step(shared, coordinator, &mut seen).await);
        shared.jobs.sleep(SPREAD).await;
    }
}

async fn step(shared: &Arc<Shared>, coordinator: &Coordinator, seen: &mut Seen) -> Result<()> {
    let registry = shared.registry()?;
    if !shared.has_map() {
        let complete = registry.storage.iter().filter(|(_, storage)| storage.is_complete);
        let holders = complete.map(|(&tag, _)| tag).collect();
        return coordinator.change_shards(Change::Begin { holders }).await.map(drop);
    }
    let map = shared.shards()?;
    look_at_sizes(shared, &map, seen).await;
    let now = shared.jobs.now();
    look_at_moves(shared, &map, seen, now);
    let servers = servers(shared, &registry, seen);
    let bytes = seen.sizes.iter().filter_map(|(begin, (bytes, _))| Some((begin.clone(), (*bytes)?))).collect();
    let options = &shared.options.shards;
    let past = shared.log.with_state(|state| {
        let leased = state.leases().values().copied().min();
        leased.map_or(state.horizon(), |leased| leased.min(state.horizon()))
    });
    let view = View {
        map: &map,
        bytes: &bytes,
        servers: &servers,
        replicas: registry.replicas(),
        past,
        split_bytes: options.split_bytes,
        moves: options.moves,
    };
    match next_step(&view) {
        None => {}
        Some(Step::Change(change)) => coordinator.change_shards(change).await.map(drop)?,
        Some(Step::Split(range, part_bytes)) => {
            // Looked at again only after a while: there may be no place to cut it yet.
            seen.sizes.insert(range.begin.clone(), (None, now));
            if let Some(at) = cut(shared, &range, part_bytes).await? {
                coordinator.change_shards(Change::Split { at }).await?;
            }
        }
    }
    Ok(())
}

/// Those who can be given shards. Whoever has not been heard for a while is given none; whether its shards go elsewhere, its being gone decides.
fn servers(shared: &Shared, registry: &Registry, seen: &Seen) -> BTreeMap<Tag, Server> {
    let now = shared.jobs.now();
    let is_silent = |process| {
        let standing = shared.leading.with_detector(|detector| detector.standing(now, process));
        standing.is_some_and(|standing| standing != Standing::Up)
    };
    let begun = registry.storage.iter().filter(|(_, storage)| storage.is_complete);
    let servers = begun.filter_map(|(&tag, storage)| {
        let process = registry.processes.get(&storage.process)?;
        let server = Server {
            zone: process.peer.zone.clone(),
            is_excluded: registry.excluded.contains(&storage.process),
            is_slow: seen.slow.contains_key(&tag) || is_silent(storage.process),
        };
        Some((tag, server))
    });
    servers.collect()
}

/// Asks for the sizes that have not been asked for the longest.
async fn look_at_sizes(shared: &Arc<Shared>, map: &ShardMap, seen: &mut Seen) {
    seen.sizes.retain(|begin, _| map.at(begin).is_some());
    let now = shared.jobs.now();
    let interval = shared.options.shards.size_interval;
    let mut due: Vec<(Duration, KeyRange)> = map
        .iter()
        .filter_map(|(range, _)| match seen.sizes.get(&range.begin) {
            None => Some((Duration::ZERO, range)),
            Some((_, at)) => (now.saturating_sub(*at) >= interval).then_some((*at, range)),
        })
        .collect();
    due.sort_by_key(|(at, _)| *at);
    for (_, range) in due.into_iter().take(SIZES_AT_ONCE) {
        let begin = range.begin.clone();
        let asking = std::pin::pin!(shared.read_size(range));
        let bytes = match select(asking, shared.jobs.sleep(PATIENCE)).await {
            Either::Left((Ok(bytes), _)) => Some(bytes),
            _ => seen.sizes.get(&begin).and_then(|(bytes, _)| *bytes),
        };
        seen.sizes.insert(begin, (bytes, shared.jobs.now()));
    }
}

/// Notes who does not get done with a move.
fn look_at_moves(shared: &Shared, map: &ShardMap, seen: &mut Seen, now: Duration) {
    seen.slow.retain(|_, until| *until > now);
    let mut moves = BTreeMap::new();
    for (range, shard) in map.iter() {
        let Some(moving) = &shard.moving else { continue };
        let since = match seen.moves.get(&range.begin) {
            Some(&(id, since)) if id == moving.id => since,
            _ => now,
        };
        let bytes = seen.sizes.get(&range.begin).and_then(|(bytes, _)| *bytes).unwrap_or_default();
        let rate = shared.options.shards.move_bytes_per_second.max(1);
        let allowed = MOVE_MAX + Duration::from_secs(bytes.saturating_mul(4) / rate);
        if now.saturating_sub(since) > allowed {
            let team = shard.team();
            let late = moving.team.iter().filter(|tag| !team.contains(tag) && !moving.arrived.contains_key(tag));
            seen.slow.extend(late.map(|&tag| (tag, now + SLOW)));
        }
        moves.insert(range.begin, (moving.id, since));
    }
    seen.moves = moves;
}

/// Where to cut a shard, if that is known: in the middle, about.
async fn cut(shared: &Arc<Shared>, range: &KeyRange, part_bytes: u64) -> Result<Option<Bytes>> {
    let request = SplitPointsRequest { range: range.clone(), part_bytes: part_bytes.max(1), limit: 2 };
    let points = shared.read_split_points(request).await?;
    Ok(points.into_iter().find(|point| range.begin < *point && *point < range.end))
}
