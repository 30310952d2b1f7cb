//! What happens next to the shards: [`next_step`], a function from the map, sizes, storage servers and the wanted number of replicas to one step.
//!
//! In this order: a move that cannot end is given up; a shard that lacks replicas, or has one that is to go, gets another team; one that is too large is split; two small
//! neighbours become one; and the fullest storage server gives a shard to the emptiest. A team has replicas in different zones as far as there are zones, then those that
//! have the shard already, then those with the least to hold.
//!
//! Each step leaves a state from which the next one follows, whoever decides it: what is under way stands in the map. Splits and merges have a factor of four between them, and a shard is moved for
//! balance only if that leaves the two less far apart, so that nothing goes back and forth.

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::{Bytes, KeyRange, Version};

use crate::log::Tag;
use crate::shards::change::Change;
use crate::shards::{Holder, Shard, ShardMap};

/// A split shard's parts are this many times what a merged one may have at the most.
const MERGE_DIVISOR: u64 = 4;

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
    /// The storage servers that belong to the cluster.
    pub(super) servers: &'a BTreeMap<Tag, Server>,
    /// How many replicas a shard is to have.
    pub(super) replicas: usize,
    /// Nobody reads below this version any more.
    pub(super) past: Version,
    /// A shard with more bytes is split.
    pub(super) split_bytes: u64,
    /// Moves that may be under way at once.
    pub(super) moves: usize,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Change the map.
    Change(Change),
    /// Look where this shard can be cut into parts of about so many bytes, and cut it.
    Split(KeyRange, u64),
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

    /// Bytes that each storage server has or is to get.
    fn loads(&self) -> BTreeMap<Tag, u64> {
        let mut loads: BTreeMap<Tag, u64> = self.servers.keys().map(|&tag| (tag, 0)).collect();
        for (range, shard) in self.map.iter() {
            let bytes = self.bytes.get(&range.begin).copied().unwrap_or_default();
            for tag in shard.moving.as_ref().map_or_else(|| shard.team(), |moving| moving.team.clone()) {
                *loads.entry(tag).or_default() += bytes;
            }
        }
        loads
    }

    /// Those who should hold a shard that these hold.
    fn team_for(&self, present: &BTreeSet<Tag>, loads: &BTreeMap<Tag, u64>) -> BTreeSet<Tag> {
        let usable: Vec<Tag> = self.servers.keys().copied().filter(|&tag| self.is_usable(tag)).collect();
        let wanted = self.replicas.min(usable.len());
        let (mut team, mut zones) = (BTreeSet::new(), BTreeSet::new());
        while team.len() < wanted {
            let best = usable.iter().filter(|tag| !team.contains(*tag)).min_by_key(|tag| {
                let server = &self.servers[tag];
                let is_zone_taken = !server.zone.is_empty() && zones.contains(&server.zone);
                let is_present = present.contains(tag);
                (
                    is_zone_taken,
                    !is_present,
                    server.is_slow && !is_present,
                    loads.get(tag).copied().unwrap_or_default(),
                    **tag,
                )
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
        let team = shard.team();
        let waits_for = |tag: &&Tag| !team.contains(tag) && !moving.arrived.contains_key(tag);
        let is_lost = moving.team.iter().any(|tag| !view.servers.contains_key(tag));
        let is_in_vain = is_lost || moving.team.iter().filter(waits_for).any(|&tag| !view.is_welcome(tag));
        is_in_vain.then_some(Change::Cancel { begin: range.begin, id: moving.id })
    })
}

/// A shard with too few replicas, too many, or one at somebody who is to go. Those with the fewest that are there come first.
fn heal(view: &View<'_>) -> Option<Change> {
    if view.moves_under_way() >= view.moves {
        return None;
    }
    let loads = view.loads();
    let settled = view.map.iter().filter(|(_, shard)| shard.moving.is_none());
    let wanting = settled.filter_map(|(range, shard)| {
        let present = shard.team();
        let team = view.team_for(&present, &loads);
        let left = present.iter().filter(|&&tag| view.is_usable(tag)).count();
        (team != present && is_possible(view, &present, &team)).then_some((left, range, team))
    });
    let (_, range, team) = wanting.min_by(|(one, ..), (other, ..)| one.cmp(other))?;
    Some(Change::Move { begin: range.begin, end: range.end, team })
}

/// Somebody who has the shard is there, or nobody new needs it.
fn is_possible(view: &View<'_>, present: &BTreeSet<Tag>, team: &BTreeSet<Tag>) -> bool {
    let is_new = |tag: &&Tag| !present.contains(tag);
    let has_source = present.iter().any(|tag| view.servers.contains_key(tag));
    // With a slow one it would be begun and given up, again and again.
    has_source && team.iter().filter(is_new).all(|&tag| view.is_welcome(tag)) && !team.is_empty()
}

fn split(view: &View<'_>) -> Option<Step> {
    let large = view.map.iter().filter(|(_, shard)| shard.moving.is_none()).filter_map(|(range, _)| {
        let bytes = view.bytes.get(&range.begin).copied()?;
        (bytes > view.split_bytes).then_some((bytes, range))
    });
    let (bytes, range) = large.max_by_key(|(bytes, _)| *bytes)?;
    Some(Step::Split(range, bytes / 2))
}

/// Two neighbours with the same holders that are small together; nobody reads them any more at versions at which they had others.
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
        let is_small = bytes <= view.split_bytes / MERGE_DIVISOR;
        (is_small && is_alike(one, other)).then(|| Change::Merge { begin: range.begin.clone() })
    })
}

/// From the fullest to the emptiest.
fn balance(view: &View<'_>) -> Option<Change> {
    if view.moves_under_way() > 0 {
        return None;
    }
    let loads = view.loads();
    let welcome = || loads.iter().filter(|(tag, _)| view.is_welcome(**tag)).map(|(&tag, &load)| (tag, load));
    let (full, most) = welcome().max_by_key(|&(tag, load)| (load, tag))?;
    let (empty, least) = welcome().min_by_key(|&(tag, load)| (load, tag))?;
    // Less than a shard apart is close enough.
    let gap = most.saturating_sub(least);
    if gap <= view.split_bytes / 2 {
        return None;
    }
    let movable = view.map.iter().filter_map(|(range, shard)| {
        let present = shard.team();
        let bytes = view.bytes.get(&range.begin).copied()?;
        // The two come closer only if it is less than what is between them.
        let helps = bytes > 0 && bytes < gap && present.contains(&full) && !present.contains(&empty);
        let team: BTreeSet<Tag> = present.iter().copied().filter(|&tag| tag != full).chain([empty]).collect();
        (helps && zones(view, &team) >= zones(view, &present)).then_some((bytes, range, team))
    });
    // What brings them closest together is about half of the gap.
    let (_, range, team) = movable.min_by_key(|(bytes, ..)| bytes.abs_diff(gap / 2))?;
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
    }

    impl Cluster {
        fn new(bytes: u64) -> Cluster {
            Cluster {
                map: Some(ShardMap::whole([(Tag(0), Version::ZERO)])),
                bytes: BTreeMap::from([(Bytes::new(), bytes)]),
                servers: BTreeMap::from([(Tag(0), Server::default())]),
                replicas: 3,
                version: 1,
            }
        }

        fn add(&mut self, tag: u32, zone: &str) {
            self.servers.insert(Tag(tag), Server { zone: zone.to_owned(), ..Server::default() });
        }

        fn map(&self) -> &ShardMap {
            self.map.as_ref().expect("it has one")
        }

        fn next(&self) -> Option<Step> {
            next_step(&View {
                map: self.map(),
                bytes: &self.bytes,
                servers: &self.servers,
                replicas: self.replicas,
                past: Version::from_u64(self.version),
                split_bytes: 100,
                moves: 2,
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
                    self.change(Change::Merge { begin });
                }
                Step::Change(change) => self.change(change),
                Step::Split(range, part) => {
                    // Keys are made up: numbers, the last of them far below the end.
                    let number = |key: &[u8]| key.try_into().map_or(0, u64::from_be_bytes);
                    let end = if range.end == SYSTEM_END { 1 << 60 } else { number(&range.end) };
                    let at = Bytes::copy_from_slice(&u64::midpoint(number(&range.begin), end).to_be_bytes());
                    let all = self.bytes.insert(range.begin.clone(), part).expect("a size");
                    self.bytes.insert(at.clone(), all - part);
                    self.change(Change::Split { at });
                }
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
