//! What happens next to the shards: [`next_step`], a function from the map, sizes, loads, storage servers and the wanted number of replicas to one step.
//!
//! In this order: a move that cannot end is given up; a shard that lacks replicas, or has one that is to go, gets another team; one that is too large is split, or has too much
//! load; two neighbours that are small and have long had little load become one; and the storage server with the most gives a shard to the one with the least. A team has replicas in different
//! zones as far as there are zones, then those that have the shard already, then those with the least to hold. One that is not there at the moment is never all that is left of a team
//! in which others are: it may never come back.
//!
//! # The score
//! What a shard means to a storage server is one number, in thousandths of a full shard: its bytes as a part of those with which a shard is split, and its load
//! as a part of that with which one is. So a shard with half of the bytes and half of the load is as much as a large one that nobody asks for. [Load](crate::shards::load) is bytes that one
//! replica writes and reads a second.
//!
//! # Why it comes to rest
//! Each step leaves a state from which the next one follows, whoever decides it: what is under way stands in the map. Splits and merges have a factor of four between them, in
//! bytes and in load, and load must have been little for a while. A shard is moved for balance only if that leaves the two less far apart, only if they are far apart for what
//! they have (loads are never quite the same), and not again for a while. One key cannot be split: a shard with too much load that no cut halves stays, and is [told](hot_keys).

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::{Bytes, KeyRange, Version};

use super::loads::ShardLoad;
use crate::log::Tag;
use crate::shards::change::Change;
use crate::shards::{Holder, Shard, ShardMap};

/// A split shard's parts are this many times what a merged one may have at the most.
const MERGE_DIVISOR: u64 = 4;
/// The score of a shard that has as many bytes as one may, or as much load.
const FULL: u64 = 1_000;
/// Two storage servers that are no further apart than one part in so many of what the fuller one has are close enough.
const CLOSE_DIVISOR: u64 = 8;

/// A storage server that may hold shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Server {
    /// Which machine, rack or building; empty: nobody has said, and it is one of its own.
    pub(super) zone: String,
    /// It is to hold nothing.
    pub(super) is_excluded: bool,
    /// It did not get done with a move lately: another one is better.
    pub(super) is_slow: bool,
}

/// All that a decision rests on.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) map: &'a ShardMap,
    /// Bytes of shards by where they begin, as far as they are known.
    pub(super) bytes: &'a BTreeMap<Bytes, u64>,
    /// Their loads, as far as they are known.
    pub(super) loads: &'a BTreeMap<Bytes, ShardLoad>,
    /// Those of them that have had so little load for so long that they may be merged.
    pub(super) cold: &'a BTreeSet<Bytes>,
    /// Those of them that have come where they are so lately that they are to stay.
    pub(super) fresh: &'a BTreeSet<Bytes>,
    /// The storage servers that belong to the cluster.
    pub(super) servers: &'a BTreeMap<Tag, Server>,
    /// How many replicas a shard is to have.
    pub(super) replicas: usize,
    /// Nobody reads below this version any more.
    pub(super) past: Version,
    /// A shard with more bytes is split.
    pub(super) split_bytes: u64,
    /// A shard with more load is split, if it can be.
    pub(super) split_load: u64,
    /// Moves that may be under way at once.
    pub(super) moves: usize,
    /// And to one storage server.
    pub(super) moves_to_one: usize,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Change the map.
    Change(Change),
    /// Look where this shard can be cut into parts of about so many bytes, and cut it.
    Split(KeyRange, u64),
    /// Cut the shard that begins there at this key: that halves its load.
    SplitAt {
        /// Where it begins.
        begin: Bytes,
        /// Where the second one is to begin.
        at: Bytes,
    },
}

/// The next step, if anything is to be done.
pub(super) fn next_step(view: &View<'_>) -> Option<Step> {
    let healed = give_up(view).or_else(|| heal(view)).map(Step::Change);
    healed.or_else(|| split(view)).or_else(|| merge(view).or_else(|| balance(view)).map(Step::Change))
}

impl View<'_> {
    fn is_usable(&self, tag: Tag) -> bool {
        self.servers.get(&tag).is_some_and(|server| !server.is_excluded)
    }

    fn is_welcome(&self, tag: Tag) -> bool {
        self.servers.get(&tag).is_some_and(|server| !server.is_excluded && !server.is_slow)
    }

    fn moves_under_way(&self) -> usize {
        self.map.iter().filter(|(_, shard)| shard.moving.is_some()).count()
    }

    /// How many moves bring each storage server something.
    fn coming(&self) -> BTreeMap<Tag, usize> {
        let mut coming = BTreeMap::new();
        for tag in self.map.iter().flat_map(|(_, shard)| shard.awaited()) {
            *coming.entry(tag).or_default() += 1;
        }
        coming
    }

    /// The load of each replica of a shard, if it is known.
    fn load_of(&self, range: &KeyRange) -> Option<u64> {
        self.loads.get(&range.begin).filter(|load| load.end == range.end).map(|load| load.each)
    }

    /// What a shard means to a storage server that has it; `None`: its size is not known. A load that is not known counts nothing.
    fn score_of(&self, range: &KeyRange) -> Option<u64> {
        let part = |of: u64, full: u64| {
            u64::try_from(u128::from(of) * u128::from(FULL) / u128::from(full.max(1))).unwrap_or(u64::MAX / 1_000_000)
        };
        let bytes = part(*self.bytes.get(&range.begin)?, self.split_bytes);
        Some(bytes + part(self.load_of(range).unwrap_or_default(), self.split_load))
    }

    /// What each storage server has or is to get: the sum of its shards' scores.
    pub(super) fn scores(&self) -> BTreeMap<Tag, u64> {
        let mut scores: BTreeMap<Tag, u64> = self.servers.keys().map(|&tag| (tag, 0)).collect();
        for (range, shard) in self.map.iter() {
            let score = self.score_of(&range).unwrap_or_default();
            for tag in shard.moving.as_ref().map_or_else(|| shard.team(), |moving| moving.team.clone()) {
                *scores.entry(tag).or_default() += score;
            }
        }
        scores
    }

    /// True if somebody of these is there now.
    fn has_source(&self, present: &BTreeSet<Tag>) -> bool {
        present.iter().any(|tag| self.servers.get(tag).is_some_and(|server| !server.is_slow))
    }

    /// Those who should hold a shard that these hold.
    fn team_for(&self, present: &BTreeSet<Tag>, scores: &BTreeMap<Tag, u64>) -> BTreeSet<Tag> {
        let usable: Vec<Tag> = self.servers.keys().copied().filter(|&tag| self.is_usable(tag)).collect();
        let wanted = self.replicas.min(usable.len());
        let has_source = self.has_source(present);
        let (mut team, mut zones) = (BTreeSet::new(), BTreeSet::new());
        while team.len() < wanted {
            let best = usable.iter().filter(|tag| !team.contains(*tag)).min_by_key(|tag| {
                let server = &self.servers[tag];
                let is_zone_taken = !server.zone.is_empty() && zones.contains(&server.zone);
                let rank = match (present.contains(tag), server.is_slow) {
                    (true, false) => 0,
                    // A replica of which nobody knows whether it is there must not be the only one that is left.
                    (true, true) if has_source && team.is_empty() => 3,
                    (true, true) => 1,
                    (false, false) => 2,
                    (false, true) => 4,
                };
                (is_zone_taken, rank, scores.get(tag).copied().unwrap_or_default(), **tag)
            });
            let &best = best.expect("there are more usable ones than the team has");
            zones.insert(self.servers[&best].zone.clone());
            team.insert(best);
        }
        // Who is gone or to go stays for as long as nobody else could hold it.
        if team.is_empty() { present.clone() } else { team }
    }
}

/// A move to somebody who does not belong to the cluster any more, or is to hold nothing, or does not get done.
fn give_up(view: &View<'_>) -> Option<Change> {
    view.map.iter().find_map(|(range, shard)| {
        let moving = shard.moving.as_ref()?;
        let is_lost = moving.team.iter().any(|tag| !view.servers.contains_key(tag));
        let is_in_vain = is_lost || shard.awaited().any(|tag| !view.is_welcome(tag));
        is_in_vain.then_some(Change::Cancel { begin: range.begin, id: moving.id })
    })
}

/// A shard with too few replicas, too many, or one at somebody who is to go. Those with the fewest that are there come first.
fn heal(view: &View<'_>) -> Option<Change> {
    if view.moves_under_way() >= view.moves {
        return None;
    }
    let coming = view.coming();
    let has_room = |tag: &Tag| coming.get(tag).is_none_or(|&moves| moves < view.moves_to_one);
    let wanting = wanting(view).into_iter().filter(|wanting| {
        let present = wanting.shard.team();
        wanting.team.iter().filter(|tag| !present.contains(tag)).all(has_room)
    });
    let Wanting { range, team, .. } = wanting.min_by_key(|wanting| wanting.left)?;
    Some(Change::Move { begin: range.begin, end: range.end, team })
}

/// A shard that is to have another team.
pub(super) struct Wanting<'a> {
    pub(super) range: KeyRange,
    pub(super) shard: &'a Shard,
    /// Who is to hold it.
    pub(super) team: BTreeSet<Tag>,
    /// How many of those who hold it are to stay with the cluster.
    left: usize,
}

/// All shards that are to have another team, and do not move yet.
pub(super) fn wanting<'a>(view: &View<'a>) -> Vec<Wanting<'a>> {
    let scores = view.scores();
    let settled = view.map.iter().filter(|(_, shard)| shard.moving.is_none());
    let wanting = settled.filter_map(|(range, shard)| {
        let present = shard.team();
        let team = view.team_for(&present, &scores);
        let left = present.iter().filter(|&&tag| view.is_usable(tag)).count();
        (team != present && is_possible(view, &present, &team)).then_some(Wanting { range, shard, team, left })
    });
    wanting.collect()
}

/// Somebody who has the shard is there, or nobody new needs it.
fn is_possible(view: &View<'_>, present: &BTreeSet<Tag>, team: &BTreeSet<Tag>) -> bool {
    let is_new = |tag: &&Tag| !present.contains(tag);
    let has_source = present.iter().any(|tag| view.servers.contains_key(tag));
    // Whoever is there must not go while of those who stay or come nobody is.
    let is_kept = !view.has_source(present) || team.iter().any(|&tag| view.is_welcome(tag));
    // With a slow one it would be begun and given up, again and again.
    has_source && is_kept && team.iter().filter(is_new).all(|&tag| view.is_welcome(tag)) && !team.is_empty()
}

fn split(view: &View<'_>) -> Option<Step> {
    let settled = || view.map.iter().filter(|(_, shard)| shard.moving.is_none()).map(|(range, _)| range);
    let large = settled().filter_map(|range| {
        let bytes = view.bytes.get(&range.begin).copied()?;
        (bytes > view.split_bytes).then_some((bytes, range))
    });
    if let Some((bytes, range)) = large.max_by_key(|(bytes, _)| *bytes) {
        return Some(Step::Split(range, bytes / 2));
    }
    let busy = settled().filter_map(|range| {
        let load = view.load_of(&range).filter(|&load| load > view.split_load)?;
        let at = view.loads.get(&range.begin)?.cut.clone()?;
        (range.begin < at && at < range.end).then_some((load, range.begin, at))
    });
    busy.max_by_key(|(load, ..)| *load).map(|(_, begin, at)| Step::SplitAt { begin, at })
}

/// A key that has more load than a shard is to have, or nearly all of a shard that has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HotKey {
    pub(super) key: Bytes,
    /// Of the key, at each of its storage servers: bytes a second.
    pub(super) load: u64,
}

/// Shards with too much load that no cut halves, because one key has most of it: nothing can be done for them here.
pub(super) fn hot_keys(view: &View<'_>) -> Vec<HotKey> {
    let hot = view.map.iter().filter_map(|(range, _)| {
        let load = view.load_of(&range).filter(|&load| load > view.split_load)?;
        let ShardLoad { cut, hottest, .. } = view.loads.get(&range.begin)?;
        let (key, of_key) = hottest.clone()?;
        (cut.is_none() && of_key * 2 > load).then_some(HotKey { key, load: of_key })
    });
    hot.collect()
}

/// Two neighbours with the same holders that are small together, and have long had little load; nobody reads them any more at versions at which they had others.
fn merge(view: &View<'_>) -> Option<Change> {
    let is_settled = |shard: &Shard| {
        let is_old = |holder: &Holder| holder.is_open() && holder.from <= view.past;
        shard.moving.is_none() && shard.holders.iter().all(is_old)
    };
    let is_alike = |one: &Shard, other: &Shard| is_settled(one) && is_settled(other) && one.team() == other.team();
    let shards: Vec<(KeyRange, &Shard)> = view.map.iter().collect();
    shards.windows(2).find_map(|pair| {
        let [(range, one), (next, other)] = pair else { return None };
        let bytes = view.bytes.get(&range.begin)? + view.bytes.get(&next.begin)?;
        let load = view.load_of(range)? + view.load_of(next)?;
        let is_cold = [range, next].iter().all(|range| view.cold.contains(&range.begin));
        let is_small = bytes <= view.split_bytes / MERGE_DIVISOR && is_cold && load <= merge_load(view.split_load);
        (is_small && is_alike(one, other)).then(|| Change::Merge { begin: range.begin.clone() })
    })
}

/// The most load that two shards may have together which become one.
pub(super) fn merge_load(split_load: u64) -> u64 {
    split_load / MERGE_DIVISOR
}

/// From the one with the most to the one with the least.
fn balance(view: &View<'_>) -> Option<Change> {
    if view.moves_under_way() > 0 {
        return None;
    }
    let scores = view.scores();
    let welcome = || scores.iter().filter(|(tag, _)| view.is_welcome(**tag)).map(|(&tag, &score)| (tag, score));
    let (full, most) = welcome().max_by_key(|&(tag, score)| (score, tag))?;
    let (empty, least) = welcome().min_by_key(|&(tag, score)| (score, tag))?;
    // Half of a shard is not worth a move; and loads are never quite the same.
    let gap = most.saturating_sub(least);
    if gap <= FULL / 2 || gap <= most / CLOSE_DIVISOR {
        return None;
    }
    let movable = view.map.iter().filter_map(|(range, shard)| {
        let present = shard.team();
        let score = view.score_of(&range)?;
        // The two come closer only if it is less than what is between them.
        let helps = score > 0 && score < gap && present.contains(&full) && !present.contains(&empty);
        let team: BTreeSet<Tag> = present.iter().copied().filter(|&tag| tag != full).chain([empty]).collect();
        let may = helps && !view.fresh.contains(&range.begin) && zones(view, &team) >= zones(view, &present);
        may.then_some((score, view.bytes.get(&range.begin).copied(), range, team))
    });
    // What brings them closest together is about half of the gap; of those that do, the one with the fewest bytes.
    let (_, _, range, team) = movable.min_by_key(|(score, bytes, ..)| (score.abs_diff(gap / 2), *bytes))?;
    Some(Change::Move { begin: range.begin, end: range.end, team })
}

/// In how many zones a team is.
fn zones(view: &View<'_>, team: &BTreeSet<Tag>) -> usize {
    let known = team.iter().filter_map(|tag| view.servers.get(tag));
    let (named, unnamed): (Vec<&Server>, Vec<&Server>) = known.partition(|server| !server.zone.is_empty());
    named.iter().map(|server| &server.zone).collect::<BTreeSet<_>>().len() + unnamed.len()
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::key::SYSTEM_END;
    use ferrisdb_core::{Random, SplitMix64};

    use super::*;
    use crate::shards::change::Moment;

    /// A cluster as the controller sees it: moves end at once, or when the test says so.
    struct Cluster {
        map: Option<ShardMap>,
        bytes: BTreeMap<Bytes, u64>,
        servers: BTreeMap<Tag, Server>,
        replicas: usize,
        version: u64,
        /// By first keys: load, and whether a cut halves it.
        loads: BTreeMap<Bytes, (u64, bool)>,
        is_warm: bool,
    }

    impl Cluster {
        fn new(bytes: u64) -> Cluster {
            Cluster {
                map: Some(ShardMap::whole([(Tag(0), Version::ZERO)])),
                bytes: BTreeMap::from([(Bytes::new(), bytes)]),
                servers: BTreeMap::from([(Tag(0), Server::default())]),
                replicas: 3,
                version: 1,
                loads: BTreeMap::new(),
                is_warm: false,
            }
        }

        fn add(&mut self, tag: u32, zone: &str) {
            self.servers.insert(Tag(tag), Server { zone: zone.to_owned(), ..Server::default() });
        }

        fn map(&self) -> &ShardMap {
            self.map.as_ref().expect("it has one")
        }

        fn next(&self) -> Option<Step> {
            self.look(next_step)
        }

        fn look<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
            let loads = self.map().iter().map(|(range, _)| {
                let (each, can_be_cut) = self.loads.get(&range.begin).copied().unwrap_or_default();
                let cut = can_be_cut.then(|| middle(&range));
                let hottest = Some((range.begin.clone(), each));
                (range.begin, ShardLoad { end: range.end, each, cut, hottest })
            });
            let cold = if self.is_warm { BTreeSet::new() } else { self.bytes.keys().cloned().collect() };
            look(&View {
                map: self.map(),
                bytes: &self.bytes,
                loads: &loads.collect(),
                cold: &cold,
                fresh: &BTreeSet::new(),
                servers: &self.servers,
                replicas: self.replicas,
                past: Version::from_u64(self.version),
                split_bytes: 100,
                split_load: 100,
                moves: 2,
                moves_to_one: 1,
            })
        }

        fn change(&mut self, change: Change) {
            self.version += 10;
            let version = Version::from_u64(self.version);
            change.make(&mut self.map, Moment { version, horizon: version, leased: &[] }).expect("it fits");
            self.map().check();
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Change(Change::Merge { begin }) => {
                    let end = self.map().of_key(&begin).0.end;
                    let more = self.bytes.remove(&end).expect("a size");
                    *self.bytes.get_mut(&begin).expect("a size") += more;
                    let (more, _) = self.loads.remove(&end).unwrap_or_default();
                    self.loads.entry(begin.clone()).or_insert((0, true)).0 += more;
                    self.change(Change::Merge { begin });
                }
                Step::Change(change) => self.change(change),
                Step::Split(range, part) => {
                    let at = middle(&range);
                    let all = self.bytes.insert(range.begin.clone(), part).expect("a size");
                    self.bytes.insert(at.clone(), all - part);
                    self.halve_load(&range.begin, &at);
                    self.change(Change::Split { at });
                }
                Step::SplitAt { begin, at } => {
                    let all = self.bytes[&begin];
                    self.bytes.insert(begin.clone(), all / 2);
                    self.bytes.insert(at.clone(), all - all / 2);
                    self.halve_load(&begin, &at);
                    self.change(Change::Split { at });
                }
            }
        }

        fn halve_load(&mut self, begin: &Bytes, at: &Bytes) {
            if let Some((load, can_be_cut)) = self.loads.get(begin).copied() {
                self.loads.insert(begin.clone(), (load / 2, can_be_cut));
                self.loads.insert(at.clone(), (load - load / 2, can_be_cut));
            }
        }

        /// Whatever moves has come.
        fn finish_moves(&mut self) {
            let moves: Vec<_> = self.map().iter().map(|(range, shard)| (range.begin, shard.clone())).collect();
            for (begin, shard) in moves {
                let Some(moving) = &shard.moving else { continue };
                for &tag in moving.team.iter().filter(|tag| !shard.team().contains(tag)) {
                    let from = Version::from_u64(self.version + 1);
                    self.version += 10;
                    self.change(Change::Arrived { begin: begin.clone(), id: moving.id, tag, from });
                }
            }
        }

        /// Until nothing is to be done. Returns how many steps that took.
        fn settle(&mut self) -> usize {
            for steps in 0..2_000 {
                let Some(step) = self.next() else { return steps };
                self.take(step);
                self.finish_moves();
            }
            panic!("it goes on and on: {:?} {:?}", self.map(), self.next());
        }

        fn loads(&self) -> Vec<u64> {
            let load = |tag| {
                let shards = self.map().iter().filter(move |(_, shard)| shard.team().contains(tag));
                shards.map(|(range, _)| self.bytes[&range.begin]).sum()
            };
            self.servers.iter().filter(|(_, server)| !server.is_excluded).map(|(tag, _)| load(tag)).collect()
        }
    }

    /// Keys are made up: numbers, the last of them far below the end.
    fn middle(range: &KeyRange) -> Bytes {
        let number = |key: &[u8]| key.try_into().map_or(0, u64::from_be_bytes);
        let end = if range.end == SYSTEM_END { 1 << 60 } else { number(&range.end) };
        Bytes::copy_from_slice(&u64::midpoint(number(&range.begin), end).to_be_bytes())
    }

    /// With each process a replica more, up to three; a fourth one takes its part.
    #[test]
    fn a_cluster_grows() {
        let mut cluster = Cluster::new(1_000);
        cluster.settle();
        assert!(cluster.map().len() >= 10, "{:?}", cluster.map());
        for (tag, replicas) in [(1, 2), (2, 3), (3, 3), (4, 3)] {
            cluster.add(tag, "");
            cluster.settle();
            assert!(cluster.map().iter().all(|(_, shard)| shard.team().len() == replicas), "{:?}", cluster.map());
            let loads = cluster.loads();
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(most - least <= 150, "{loads:?}");
        }
    }

    /// A storage server that is gone is replaced; one that is excluded holds nothing in the end, and was a source until then.
    #[test]
    fn who_is_gone_or_to_go_is_replaced() {
        let mut cluster = Cluster::new(400);
        (1..5).for_each(|tag| cluster.add(tag, ""));
        cluster.settle();
        cluster.servers.remove(&Tag(1));
        cluster.settle();
        let lives = |cluster: &Cluster| {
            cluster.map().iter().all(|(_, shard)| {
                let team = shard.team();
                team.len() == 3
                    && team.iter().all(|tag| cluster.servers.get(tag).is_some_and(|server| !server.is_excluded))
            })
        };
        assert!(lives(&cluster), "{:?}", cluster.map());
        cluster.servers.get_mut(&Tag(2)).unwrap().is_excluded = true;
        let step = cluster.next().expect("something is to be done");
        cluster.take(step);
        assert!(
            cluster.map().iter().all(|(_, shard)| shard.team().len() == 3),
            "nobody is dropped before another one is there"
        );
        cluster.settle();
        assert!(lives(&cluster), "{:?}", cluster.map());
        cluster.servers.values_mut().for_each(|server| server.is_excluded = true);
        assert_eq!(cluster.settle(), 0, "the last ones stay");
    }

    /// When replicas are to be fewer, or one is to go, the one that stays is there: one that is silent may be lost with what it has.
    #[test]
    fn the_last_replica_is_one_that_is_there() {
        for silent in 0..2 {
            let mut cluster = Cluster::new(10);
            cluster.replicas = 2;
            cluster.add(1, "");
            cluster.settle();
            cluster.servers.get_mut(&Tag(silent)).unwrap().is_slow = true;
            let there = Tag(1 - silent);
            cluster.replicas = 1;
            let mut other = cluster.look(heal);
            assert!(
                matches!(&other, Some(Change::Move { team, .. }) if *team == BTreeSet::from([there])),
                "{silent} is silent: {other:?}"
            );
            // If that one is to hold nothing, it goes only when another one has come.
            cluster.servers.get_mut(&there).unwrap().is_excluded = true;
            assert_eq!(cluster.look(heal), None, "nobody else is there");
            cluster.add(2, "");
            other = cluster.look(heal);
            assert!(
                matches!(&other, Some(Change::Move { team, .. }) if *team == BTreeSet::from([Tag(2)])),
                "{silent} is silent: {other:?}"
            );
        }
    }

    /// A move to somebody who is gone, or does not get done, is given up; another one follows.
    #[test]
    fn a_move_in_vain_is_given_up() {
        let mut cluster = Cluster::new(10);
        cluster.add(1, "");
        let begun = cluster.next().expect("a replica is wanted");
        cluster.take(begun);
        assert_eq!(cluster.next(), None, "it is under way");
        let id = cluster.map().at(b"").unwrap().moving.as_ref().unwrap().id;
        let given_up = Some(Step::Change(Change::Cancel { begin: Bytes::new(), id }));
        for spoil in [|server: &mut Server| server.is_slow = true, |server: &mut Server| server.is_excluded = true] {
            let before = cluster.servers[&Tag(1)].clone();
            spoil(cluster.servers.get_mut(&Tag(1)).unwrap());
            assert_eq!(cluster.next(), given_up);
            cluster.servers.insert(Tag(1), before);
        }
        cluster.servers.remove(&Tag(1));
        assert_eq!(cluster.next(), given_up);
        cluster.add(2, "");
        cluster.settle();
        assert_eq!(cluster.map().at(b"").unwrap().team(), BTreeSet::from([Tag(0), Tag(2)]));
    }

    /// Replicas are in different zones as far as there are zones, also if that takes a move.
    #[test]
    fn replicas_are_in_different_zones() {
        let mut cluster = Cluster::new(1_000);
        cluster.add(0, "a");
        (1..4).for_each(|tag| cluster.add(tag, "a"));
        cluster.settle();
        cluster.add(4, "b");
        cluster.add(5, "c");
        cluster.settle();
        for (range, shard) in cluster.map().iter() {
            let zones: BTreeSet<&str> = shard.team().iter().map(|tag| cluster.servers[tag].zone.as_str()).collect();
            assert_eq!(zones.len(), 3, "{range:?} {shard:?}");
        }
    }

    /// What has become small is merged again, and then there is peace.
    #[test]
    fn small_neighbours_are_merged() {
        let mut cluster = Cluster::new(800);
        (1..3).for_each(|tag| cluster.add(tag, ""));
        cluster.settle();
        let before = cluster.map().len();
        cluster.bytes.values_mut().for_each(|bytes| *bytes = 1);
        cluster.settle();
        assert!(before >= 8 && cluster.map().len() == 1, "{before} and {:?}", cluster.map());
    }

    /// A small shard with much load is split until no part has too much, and each storage server gets its part of that, not of the bytes. When it is calm the parts stay for
    /// a while, and then become one.
    #[test]
    fn load_is_split_and_spread() {
        let mut cluster = Cluster::new(4);
        cluster.replicas = 1;
        (1..4).for_each(|tag| cluster.add(tag, ""));
        cluster.is_warm = true;
        cluster.loads.insert(Bytes::new(), (1_000, true));
        cluster.settle();
        assert!(cluster.map().len() >= 10, "{:?}", cluster.map());
        let scores: Vec<u64> = cluster.look(|view| view.scores()).into_values().collect();
        let (least, most) = (scores.iter().min().unwrap(), scores.iter().max().unwrap());
        assert!(most - least <= 500 && *most < 4_000, "{scores:?}");
        // A tenth more or less here and there is no reason to move anything.
        for (at, (load, _)) in cluster.loads.values_mut().enumerate() {
            *load = if at % 2 == 0 { *load * 11 / 10 } else { *load * 9 / 10 };
        }
        assert_eq!(cluster.settle(), 0);

        cluster.loads.values_mut().for_each(|(load, _)| *load = 0);
        assert_eq!(cluster.next(), None, "it was busy a moment ago");
        cluster.is_warm = false;
        cluster.loads.values_mut().for_each(|(load, _)| *load = 30);
        assert_eq!(cluster.next(), None, "two of them have more than a quarter of what is too much");
        cluster.loads.values_mut().for_each(|(load, _)| *load = 1);
        // Neighbours are at different storage servers, and are merged only where they are not.
        let before = cluster.map().len();
        cluster.settle();
        assert!(cluster.map().len() < before, "{:?}", cluster.map());
    }

    /// One key cannot be split: it is told, and nothing is tried.
    #[test]
    fn a_hot_key_is_told() {
        let mut cluster = Cluster::new(4);
        cluster.loads.insert(Bytes::new(), (500, false));
        assert_eq!(cluster.settle(), 0);
        assert_eq!(cluster.look(hot_keys), [HotKey { key: Bytes::new(), load: 500 }]);
        cluster.loads.insert(Bytes::new(), (90, false));
        assert_eq!(cluster.look(hot_keys), []);
    }

    /// What has just come is not moved on for balance, and one storage server is not given more than it may fetch at once.
    #[test]
    fn moves_have_bounds() {
        let mut cluster = Cluster::new(1_000);
        cluster.settle();
        cluster.replicas = 1;
        cluster.add(1, "");
        let all: BTreeSet<Bytes> = cluster.bytes.keys().cloned().collect();
        let balanced = cluster.look(|view| (balance(view).is_some(), balance(&View { fresh: &all, ..view.clone() })));
        assert_eq!(balanced, (true, None));
        cluster.replicas = 2;
        let step = cluster.next().expect("a replica is wanted");
        cluster.take(step);
        assert_eq!(cluster.look(heal), None, "one comes already");
        assert!(cluster.look(|view| heal(&View { moves_to_one: 2, ..view.clone() })).is_some());
        assert!(cluster.look(|view| heal(&View { moves_to_one: 2, moves: 1, ..view.clone() })).is_none());
    }

    /// From any state the steps lead to one in which each shard has its replicas, at those who may hold it; and they end.
    #[test]
    fn any_state_settles() {
        for seed in 0..300 {
            let mut random = SplitMix64::new(seed);
            let mut cluster = Cluster::new(random.below(2_000));
            for _ in 0..6 {
                let tag = random.below(7) as u32;
                match random.below(5) {
                    0 if cluster.servers.len() > 3 => {
                        let alone = cluster.map().only_in(&BTreeSet::from([Tag(tag)]));
                        if alone.is_empty() {
                            cluster.servers.remove(&Tag(tag));
                        }
                    }
                    1 if cluster.servers.len() > 4 => {
                        cluster.servers.values_mut().for_each(|server| server.is_excluded = false);
                        cluster.servers.entry(Tag(tag)).and_modify(|server| server.is_excluded = true);
                    }
                    2 => cluster.replicas = 1 + random.below(5) as usize,
                    3 => {
                        let scale = random.below(5);
                        cluster.bytes.values_mut().for_each(|bytes| *bytes = (*bytes * scale / 2).min(500));
                        let (load, can_be_cut) = (random.below(400), random.one_in(2));
                        cluster.loads.insert(Bytes::new(), (load, can_be_cut));
                    }
                    _ => cluster.add(tag, ["", "a", "b"][random.below(3) as usize]),
                }
                for _ in 0..random.below(20) {
                    if let Some(step) = cluster.next() {
                        cluster.take(step);
                    }
                    if random.one_in(3) {
                        cluster.finish_moves();
                    }
                }
            }
            cluster.finish_moves();
            cluster.settle();
            let usable = cluster.servers.values().filter(|server| !server.is_excluded).count();
            for (range, shard) in cluster.map().iter() {
                let team = shard.team();
                assert!(shard.moving.is_none());
                assert_eq!(team.len(), cluster.replicas.min(usable), "seed {seed}: {range:?} {shard:?}");
                assert!(
                    team.iter().all(|tag| cluster.servers.get(tag).is_some_and(|server| !server.is_excluded)),
                    "seed {seed}"
                );
            }
        }
    }
}
