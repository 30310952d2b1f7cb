//! The controller's task for the shards: looks at how large they are and how much load they have, and has [`distribute`](super::distribute) say what to do, one step
//! after the other.
//!
//! It remembers nothing that matters: moves stand in the map, and those who fetch go on whoever leads. What it has seen goes into the status document ([`Outlook`]), and how
//! fast a storage server may fetch it is told with each answer to its beat ([`fetch_rate`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Bytes, Clock, KeyRange, Result, Runtime, Version};
use ferrisdb_rpc::api::SplitPointsRequest;
use futures_util::future::{Either, select};

use super::distribute::{HotKey, Server, Step, View, hot_keys, merge_load, next_step, wanting};
use super::loads::{self, ShardLoad};
use super::metadata::Registry;
use super::{ShardOptions, Shared};
use crate::coordinator::Coordinator;
use crate::coordinator::rate::Reason;
use crate::log::{State, Tag};
use crate::shards::ShardMap;
use crate::shards::change::Change;
use crate::signal::lock;

/// How often something to do is looked for.
const SPREAD: Duration = Duration::from_millis(200);
/// Shards whose size is asked for at once: the others have their turn next.
const SIZES_AT_ONCE: usize = 8;
/// A size that is not told within this time is asked for again later.
const PATIENCE: Duration = Duration::from_secs(2);
/// A move may take so long, and twice what its bytes take at the slowest rate that it may have: then others are tried.
const MOVE_MAX: Duration = Duration::from_secs(60);
/// For so long who has not got done with a move gets no other one.
const SLOW: Duration = Duration::from_secs(60);
/// For so long a shard that has been moved stays, unless it must go: by then its load is known where it is.
const SETTLE: Duration = Duration::from_secs(30);
/// While storage is behind, so small a part of the rate is left for moves.
const LIMITED_DIVISOR: u64 = 4;
/// Hot keys that are told at the most.
const HOT_KEYS_MAX: usize = 5;

/// What the controller has seen.
#[derive(Default)]
struct Seen {
    /// By where shards begin: their bytes, and when that was asked.
    sizes: BTreeMap<Bytes, (Option<u64>, Duration)>,
    /// By where shards begin: their moves, and since when they are known.
    moves: BTreeMap<Bytes, (Version, Duration)>,
    /// Who did not get done with a move, and until when that counts.
    slow: BTreeMap<Tag, Duration>,
    /// By where shards begin: until when they stay, as they have just been moved.
    fresh: BTreeMap<Bytes, Duration>,
    /// By where shards begin: their loads, as of `looked`.
    loads: BTreeMap<Bytes, ShardLoad>,
    looked: Option<Duration>,
    /// By where shards begin: since when they have little load, as far as is known.
    calm: BTreeMap<Bytes, Duration>,
}

/// What the controller has to do yet, and sees, for the status document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outlook {
    /// Shards that move, and shards that are to and wait for their turn.
    pub(super) moving: u64,
    pub(super) waiting: u64,
    /// Bytes that are to be fetched for both, at the most: what of a shard has come already is not known here.
    pub(super) bytes_to_go: u64,
    /// What each storage server has, in thousandths of a full shard.
    pub(super) scores: BTreeMap<Tag, u64>,
    /// Load of each storage server, in bytes a second.
    pub(super) loads: BTreeMap<Tag, u64>,
    /// Keys that have too much load, the worst first.
    pub(super) hot_keys: Vec<HotKey>,
}

/// Until the epoch ends.
pub(super) async fn run(shared: &Arc<Shared>, coordinator: &Coordinator) {
    let mut seen = Seen::default();
    *lock(shared.leading.outlook()) = Outlook::default();
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
    look_at_loads(shared, &map, seen).await;
    let now = shared.jobs.now();
    look_at_moves(&shared.options.shards, &map, seen, now);
    let servers = servers(shared, &registry, seen);
    let bytes = seen.sizes.iter().filter_map(|(begin, (bytes, _))| Some((begin.clone(), (*bytes)?))).collect();
    let options = &shared.options.shards;
    let is_cold = |since: Duration| now.saturating_sub(since) >= options.merge_after;
    let cold = seen.calm.iter().filter(|(_, since)| is_cold(**since)).map(|(begin, _)| begin.clone()).collect();
    let past = shared.log.with_state(State::past);
    let view = View {
        map: &map,
        bytes: &bytes,
        loads: &seen.loads,
        cold: &cold,
        fresh: &seen.fresh.keys().cloned().collect(),
        servers: &servers,
        replicas: registry.replicas(),
        past,
        split_bytes: options.split_bytes,
        split_load: options.split_load,
        moves: options.moves,
        moves_to_one: options.moves_to_one,
    };
    *lock(shared.leading.outlook()) = outlook(&view);
    match next_step(&view) {
        None => {}
        Some(Step::Change(change)) => {
            count(&change, &map);
            coordinator.change_shards(change).await.map(drop)?;
        }
        Some(Step::Split(range, part_bytes)) => {
            // Looked at again only after a while: there may be no place to cut it yet.
            seen.sizes.insert(range.begin.clone(), (None, now));
            if let Some(at) = cut(shared, &range, part_bytes).await? {
                reached(Rare::Split);
                coordinator.change_shards(Change::Split { at }).await?;
            }
        }
        Some(Step::SplitAt { begin, at }) => {
            // What each part has is to be seen.
            seen.loads.remove(&begin);
            seen.calm.remove(&begin);
            reached(Rare::Split);
            coordinator.change_shards(Change::Split { at }).await?;
        }
    }
    Ok(())
}

/// Counts a change of the map, if it is a rare one.
fn count(change: &Change, map: &ShardMap) {
    match change {
        Change::Cancel { .. } => reached(Rare::MoveGivenUp),
        Change::Merge { .. } => reached(Rare::Merge),
        Change::Move { begin, team, .. } if map.at(begin).is_some_and(|shard| shard.team().is_superset(team)) => {
            reached(Rare::Shrunk);
        }
        _ => {}
    }
}

/// What there is to do yet.
fn outlook(view: &View<'_>) -> Outlook {
    let bytes_of = |range: &KeyRange| view.bytes.get(&range.begin).copied().unwrap_or_default();
    let mut outlook = Outlook { scores: view.scores(), hot_keys: hot_keys(view), ..Outlook::default() };
    outlook.hot_keys.sort_by_key(|hot| std::cmp::Reverse(hot.load));
    outlook.hot_keys.truncate(HOT_KEYS_MAX);
    for (range, shard) in view.map.iter() {
        outlook.moving += u64::from(shard.moving.is_some());
        outlook.bytes_to_go += shard.awaited().count() as u64 * bytes_of(&range);
        let load = view.loads.get(&range.begin).map_or(0, |load| load.each);
        shard.team().into_iter().for_each(|tag| *outlook.loads.entry(tag).or_default() += load);
    }
    for wanting in wanting(view) {
        let present = wanting.shard.team();
        outlook.waiting += 1;
        outlook.bytes_to_go += wanting.team.difference(&present).count() as u64 * bytes_of(&wanting.range);
    }
    outlook
}

/// How many bytes a second each storage server that shards move to may fetch: they share what all may. While storage is behind, they get less, for clients wait then.
pub(super) fn fetch_rate(shared: &Shared, coordinator: &Coordinator) -> u64 {
    let Ok(map) = shared.shards() else { return 0 };
    let fetching: BTreeSet<Tag> = map.iter().flat_map(|(_, shard)| shard.awaited()).collect();
    let rate = shared.options.shards.fetch_rate(fetching.len());
    if coordinator.statistics().reason == Reason::Nothing { rate } else { (rate / LIMITED_DIVISOR).max(1) }
}

/// Asks for all loads, if that was a while ago.
async fn look_at_loads(shared: &Arc<Shared>, map: &ShardMap, seen: &mut Seen) {
    let options = &shared.options.shards;
    let now = shared.jobs.now();
    if seen.looked.is_some_and(|looked| now.saturating_sub(looked) < options.size_interval / 2) {
        return;
    }
    seen.loads = loads::look(shared, map).await;
    let now = shared.jobs.now();
    seen.looked = Some(now);
    let little = merge_load(options.split_load);
    let calm = seen.loads.iter().filter(|(_, load)| load.each <= little);
    let since = |begin: &Bytes| seen.calm.get(begin).copied().unwrap_or(now);
    seen.calm = calm.map(|(begin, _)| (begin.clone(), since(begin))).collect();
}

/// Those who can be given shards. Whoever has not been heard for a while, or says that its storage has failed, is given none; whether its shards go elsewhere, its being gone decides.
fn servers(shared: &Shared, registry: &Registry, seen: &Seen) -> BTreeMap<Tag, Server> {
    let now = shared.jobs.now();
    let is_unfit =
        |process| shared.leading.with_detector(|detector| detector.can_take_shards(now, process)) == Some(false);
    let begun = registry.storage.iter().filter(|(_, storage)| storage.is_complete);
    let servers = begun.filter_map(|(&tag, storage)| {
        let process = registry.processes.get(&storage.process)?;
        let server = Server {
            zone: process.peer.zone.clone(),
            is_excluded: registry.excluded.contains(&storage.process),
            is_slow: seen.slow.contains_key(&tag) || is_unfit(storage.process),
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
fn look_at_moves(options: &ShardOptions, map: &ShardMap, seen: &mut Seen, now: Duration) {
    // As if all that may move did, and storage were behind all the time.
    let slowest = (options.fetch_rate(options.moves) / LIMITED_DIVISOR).max(1);
    seen.slow.retain(|_, until| *until > now);
    let mut moves = BTreeMap::new();
    for (range, shard) in map.iter() {
        let Some(moving) = &shard.moving else { continue };
        let since = match seen.moves.get(&range.begin) {
            Some(&(id, since)) if id == moving.id => since,
            _ => now,
        };
        let bytes = seen.sizes.get(&range.begin).and_then(|(bytes, _)| *bytes).unwrap_or_default();
        let allowed = MOVE_MAX + Duration::from_secs(bytes.saturating_mul(2) / slowest);
        if now.saturating_sub(since) > allowed {
            seen.slow.extend(shard.awaited().map(|tag| (tag, now + SLOW)));
        }
        moves.insert(range.begin, (moving.id, since));
    }
    seen.fresh.retain(|_, until| *until > now);
    let over = seen.moves.keys().filter(|begin| !moves.contains_key(*begin));
    seen.fresh.extend(over.map(|begin| (begin.clone(), now + SETTLE)));
    seen.moves = moves;
}

/// Where to cut a shard, if that is known: in the middle, about.
async fn cut(shared: &Arc<Shared>, range: &KeyRange, part_bytes: u64) -> Result<Option<Bytes>> {
    let request = SplitPointsRequest { range: range.clone(), part_bytes: part_bytes.max(1), limit: 2 };
    let points = shared.read_split_points(request).await?;
    Ok(points.into_iter().find(|point| range.begin < *point && *point < range.end))
}
