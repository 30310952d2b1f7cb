//! The map and the storage servers' view of it, under random changes; and what a late message or a disk that went back does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::{Bytes, Code, KeyRange, Limits, Mutation, MutationKind, Random, SplitMix64, Version};
use ferrisdb_rpc::api::CommitRequest;

use super::change::{Change, Changed, Moment};
use super::holding::{Assigned, Assignment, Holding, Span};
use super::keeper::Keeper;
use super::*;
use crate::coordinator::batcher::{Batcher, Decision, Request};
use crate::coordinator::lease::LeaseOptions;
use crate::log::state::tag_key;
use crate::log::{Delivery, Entry, EpochStart, Known, Recovered};

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

fn at(version: u64) -> Moment<'static> {
    Moment { version: v(version), horizon: Version::ZERO, leased: &[] }
}

fn tags(tags: &[u32]) -> BTreeSet<Tag> {
    tags.iter().map(|&tag| Tag(tag)).collect()
}

fn whole() -> Option<ShardMap> {
    Some(ShardMap::whole([(Tag(0), Version::ZERO)]))
}

/// A log with so many storage servers, the first of which holds everything.
fn begun(servers: u32) -> Recovered {
    let metadata: BTreeMap<Bytes, Bytes> =
        whole().unwrap().write().into_iter().map(|set| (set.key, set.value)).collect();
    Recovered {
        epoch: 0,
        last: Version::ZERO,
        horizon: Version::ZERO,
        leases: BTreeMap::new(),
        next_lease: 1,
        popped: (0..servers).map(|tag| (Tag(tag), Version::ZERO)).collect(),
        metadata: Arc::new(metadata),
        lock: None,
    }
}

fn do_move(team: &[u32]) -> Change {
    Change::Move { begin: Bytes::new(), end: Bytes::from_static(SYSTEM_END), team: tags(team) }
}

fn arrived(id: u64, tag: u32, from: u64) -> Change {
    Change::Arrived { begin: Bytes::new(), id: v(id), tag: Tag(tag), from: v(from) }
}

/// What mutations of `key` go to, with `map`.
fn goes_to(map: &ShardMap, key: &'static str) -> Vec<u32> {
    let sections = map.sections(vec![Mutation::set(key, "x")]);
    sections[0].tags.iter().map(|tag| tag.0).collect()
}

/// The way of a shard from one storage server to another.
#[test]
fn a_shard_moves() {
    let mut map = whole();
    let begun = do_move(&[1]).make(&mut map, at(10)).unwrap();
    let moving = map.as_ref().unwrap();
    assert_eq!(goes_to(moving, "k"), [0, 1], "who gets it needs what is committed from now on");
    assert_eq!(moving.of_key(b"k").1.readable_at(v(15)).collect::<Vec<_>>(), [Tag(0)], "and is not asked yet");
    let all = KeyRange::new("", SYSTEM_END);
    let coming = Assignment { range: all.clone(), spans: Vec::new(), incoming: Some(v(10)) };
    assert_eq!(begun.assignments, [(Tag(1), coming)]);

    let done = arrived(10, 1, 20).make(&mut map, at(30)).unwrap();
    let moved = map.as_ref().unwrap();
    assert_eq!(goes_to(moved, "k"), [1]);
    let readable = |version| moved.of_key(b"k").1.readable_at(v(version)).collect::<Vec<_>>();
    assert_eq!((readable(19), readable(29), readable(30)), (vec![Tag(0)], vec![Tag(0), Tag(1)], vec![Tag(1)]));
    let left = Assignment { range: all.clone(), spans: vec![Span { from: v(0), until: Some(v(30)) }], incoming: None };
    let has = Assignment { range: all, spans: vec![Span { from: v(20), until: None }], incoming: None };
    assert_eq!(done.assignments, [(Tag(0), left), (Tag(1), has)]);
}

/// Whoever says that a move is done is believed only about the move that is under way.
#[test]
fn a_late_arrival_does_nothing() {
    let mut map = whole();
    do_move(&[1]).make(&mut map, at(10)).unwrap();
    Change::Cancel { begin: Bytes::new(), id: v(10) }.make(&mut map, at(20)).unwrap();
    assert_eq!(arrived(10, 1, 15).make(&mut map, at(25)).unwrap_err().code(), Code::ClientInvalidOperation);
    do_move(&[1]).make(&mut map, at(30)).unwrap();
    let before = map.clone();
    assert!(arrived(10, 1, 15).make(&mut map, at(40)).is_err(), "it means the move before");
    assert!(arrived(30, 1, 15).make(&mut map, at(40)).is_err(), "nothing of this move can have been there by then");
    assert!(arrived(30, 2, 35).make(&mut map, at(40)).is_err(), "nobody has asked that one");
    assert!(arrived(30, 0, 35).make(&mut map, at(40)).is_err(), "it has the shard");
    assert!(Change::Cancel { begin: Bytes::new(), id: v(10) }.make(&mut map, at(40)).is_err());
    assert_eq!(map, before);
    arrived(30, 1, 35).make(&mut map, at(40)).unwrap();
    assert!(arrived(30, 1, 35).make(&mut map, at(50)).is_err(), "told twice");
}

/// Metadata of an older FerrisDB has no map; what is written is read; damage is found.
#[test]
fn the_map_survives_its_bytes() {
    assert_eq!(ShardMap::read(&BTreeMap::from([(Bytes::from("\u{ff}"), Bytes::new())])), Ok(None));
    let mut map = None;
    Change::Begin { holders: tags(&[0, 300]) }.make(&mut map, at(5)).unwrap();
    Change::Split { at: "m".into() }.make(&mut map, at(6)).unwrap();
    Change::Move { begin: "m".into(), end: Bytes::from_static(SYSTEM_END), team: tags(&[0, 1, 2]) }
        .make(&mut map, at(7))
        .unwrap();
    Change::Arrived { begin: "m".into(), id: v(7), tag: Tag(2), from: v(8) }.make(&mut map, at(9)).unwrap();
    let map = map.unwrap();
    map.check();
    let written: BTreeMap<Bytes, Bytes> = map.write().into_iter().map(|set| (set.key, set.value)).collect();
    assert_eq!(ShardMap::read(&written), Ok(Some(map)));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found: Vec<_> = written.iter().map(|(key, value)| (hex(key), hex(value))).collect();
    // If this fails, the format has changed: that is a new format version, and the old one is still to be read.
    let expected = [
        ("ff2f73686172642f", "01020000 00ac020000 00"),
        ("ff2f73686172642f6d", "01020000 00ac020000 010703000102010208"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.replace(' ', "")));
    assert_eq!(found, expected);
    for (key, value) in &written {
        for len in 0..value.len() {
            let damaged = BTreeMap::from([(key.clone(), value.slice(..len))]);
            assert!(ShardMap::read(&damaged).is_err(), "{len} bytes of {key:?}");
        }
    }
}

/// What a storage server keeps survives its bytes, and what else was kept there is told apart.
#[test]
fn a_holding_survives_its_bytes() {
    let mut holding = Holding::everything(v(300));
    let range = KeyRange::new("m", SYSTEM_END);
    let gone = Assignment { range, spans: vec![Span { from: v(300), until: Some(v(400)) }], incoming: None };
    assert_eq!(holding.assign(&gone, at(400)), Ok(Assigned::Lost));
    let coming = Assignment { incoming: Some(v(500)), ..gone };
    assert_eq!(holding.assign(&coming, at(500)), Ok(Assigned::Kept));
    holding.copied(&"m".into(), &"p".into(), v(510));
    let bytes = holding.encode();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // If this fails, the format has changed: that is a new format version, and the old one is still to be read.
    assert_eq!(hex(&bytes), "534852440102 00016d01ac0200 016d02ffff01ac029003 01016d02fffff403017000".replace(' ', ""));
    assert_eq!(Holding::decode(&bytes), Ok(Some(holding)));
    assert_eq!(Holding::decode(b"\x01\x02"), Ok(None), "another owner's");
    for len in 4..bytes.len() {
        assert!(Holding::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mutation = coming.to_mutation();
    assert_eq!(Assignment::of_mutation(&mutation), Ok(Some(coming)));
    assert_eq!(Assignment::of_mutation(&Mutation::set("k", "v")), Ok(None));
    let cut = Mutation { value: mutation.value.slice(..5), ..mutation };
    assert!(Assignment::of_mutation(&cut).is_err());
}

/// A storage server that is told to hold what never came to it stops: its disk went back, or somebody has believed a late message.
#[test]
fn what_has_not_come_is_not_held() {
    let mut holding = Holding::default();
    let range = KeyRange::new("a", "b");
    let coming = Assignment { range, spans: Vec::new(), incoming: Some(v(10)) };
    holding.assign(&coming, at(10)).unwrap();
    let has = Assignment { spans: vec![Span { from: v(15), until: None }], incoming: None, ..coming };
    assert!(holding.assign(&has, at(20)).is_err());
    holding.copied(&"a".into(), &"b".into(), v(15));
    assert_eq!(holding.assign(&has, at(20)), Ok(Assigned::Held));
    assert!(!holding.has(b"a", v(14)) && holding.has(b"a", v(15)) && !holding.has(b"b", v(15)));
}

/// Readers see that a shard has gone before storage clears it: whoever looked afterwards would take it for an empty one.
#[test]
fn a_loss_is_shown_before_it_is_applied() {
    let keeper = Keeper::new(Holding::everything(v(0)), v(100), v(0));
    let range = KeyRange::new("", SYSTEM_END);
    let gone = Assignment { range, spans: vec![Span { from: v(0), until: Some(v(400)) }], incoming: None };
    let delivery = Delivery {
        previous: v(100),
        version: v(500),
        horizon: v(450),
        leased: Arc::new([]),
        mutations: vec![gone.to_mutation()],
        batch_bytes: 0,
        owner_state: None,
    };
    assert!(keeper.holding().has(b"k", v(399)));
    let (batch, next) = keeper.prepare(delivery).unwrap();
    assert_eq!(batch.mutations, [Mutation::clear_range("", SYSTEM_END)]);
    assert!(!keeper.holding().has(b"k", v(399)), "before the clear is applied");
    keeper.applied(next);
    assert!(!keeper.holding().has(b"k", v(399)));
}

/// Mutations of what is still to come are kept apart, and a clear is cut.
#[test]
fn mutations_are_cut_where_the_copy_ends() {
    let mut holding = Holding::default();
    let coming = Assignment { range: KeyRange::new("c", "g"), spans: Vec::new(), incoming: Some(v(10)) };
    holding.assign(&coming, at(10)).unwrap();
    holding.copied(&"c".into(), &"e".into(), v(11));
    let set = |key: &'static str| Mutation::set(key, "x");
    for (key, is_coming) in [("b", false), ("c", false), ("d", false), ("e", true), ("f", true), ("g", false)] {
        let (here, coming) = holding.cut(set(key));
        assert_eq!((here.len(), coming.len()), if is_coming { (0, 1) } else { (1, 0) }, "{key}");
    }
    let clear = |begin: &'static str, end: &'static str| Mutation::clear_range(begin, end);
    assert_eq!(holding.cut(clear("a", "z")), (vec![clear("a", "e"), clear("g", "z")], vec![clear("e", "g")]));
    assert_eq!(holding.cut(clear("e", "f")), (vec![], vec![clear("e", "f")]));
    assert_eq!(holding.cut(clear("a", "e")), (vec![clear("a", "e")], vec![]));
}

/// All that a cluster of storage servers knows of its shards, without any data.
struct Model {
    map: Option<ShardMap>,
    holdings: BTreeMap<Tag, Holding>,
    version: u64,
    horizon: u64,
    leased: Vec<Version>,
    random: SplitMix64,
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut holdings: BTreeMap<Tag, Holding> = (1..5).map(|tag| (Tag(tag), Holding::default())).collect();
        holdings.insert(Tag(0), Holding::everything(Version::ZERO));
        let random = SplitMix64::new(seed);
        Model { map: whole(), holdings, version: 1, horizon: 0, leased: Vec::new(), random }
    }

    fn key(&mut self) -> Bytes {
        format!("{}", self.random.below(6)).into()
    }

    fn change(&mut self) -> Change {
        let shards: Vec<_> =
            self.map.iter().flat_map(ShardMap::iter).map(|(range, shard)| (range, shard.clone())).collect();
        let (range, shard) = shards[self.random.below(shards.len() as u64) as usize].clone();
        match (self.random.below(8), shard.moving) {
            (0, _) => Change::Split { at: self.key() },
            (1, _) => Change::Merge { begin: range.begin },
            (2, Some(moving)) => Change::Cancel { begin: range.begin, id: moving.id },
            (3..6, Some(moving)) => {
                // Somebody who has it all says so, now or long ago.
                let tag = Tag(self.random.below(5) as u32);
                let incoming = self.holdings[&tag].incoming().get(&range.begin).cloned();
                let from = incoming.and_then(|incoming| incoming.arrived).unwrap_or(v(self.random.below(self.version)));
                Change::Arrived { begin: range.begin, id: moving.id, tag, from }
            }
            _ => {
                let size = 1 + self.random.below(3);
                let team = (0..size).map(|_| Tag(self.random.below(5) as u32)).collect();
                Change::Move { begin: range.begin, end: range.end, team }
            }
        }
    }

    /// A change that fits is made, and those whom it concerns are told.
    fn step(&mut self) {
        self.version += 1 + self.random.below(5);
        let version = v(self.version);
        if self.random.one_in(4) {
            self.horizon = self.horizon.max(self.version.saturating_sub(30));
            let horizon = self.horizon;
            self.leased.retain(|leased| leased.get() >= horizon || self.random.one_in(2));
            if self.leased.len() < 3 {
                self.leased.push(v(horizon + (self.version - horizon) / 2));
                self.leased.sort_unstable();
                self.leased.dedup();
            }
        }
        // Copies go on.
        for holding in self.holdings.values_mut() {
            let coming: Vec<_> =
                holding.incoming().iter().map(|(begin, coming)| (begin.clone(), coming.clone())).collect();
            for (begin, coming) in coming {
                if coming.arrived.is_none() && self.random.one_in(2) {
                    holding.copied(&begin, &coming.end, version);
                }
            }
        }
        self.version += 1;
        let change = self.change();
        if let Change::Arrived { begin, tag, .. } = &change {
            // A storage server says what is so.
            let incoming = self.holdings[tag].incoming().get(begin);
            if incoming.is_some_and(|incoming| incoming.arrived.is_none()) {
                return;
            }
        }
        let leased = self.leased.clone();
        let now = Moment { version: v(self.version), horizon: v(self.horizon), leased: &leased };
        let before = self.map.clone();
        match change.make(&mut self.map, now) {
            Err(_) => assert_eq!(self.map, before, "what does not fit changes nothing"),
            Ok(Changed { metadata, assignments }) => {
                let mut written: BTreeMap<Bytes, Bytes> =
                    before.iter().flat_map(ShardMap::write).map(|set| (set.key, set.value)).collect();
                for mutation in metadata {
                    match mutation.kind {
                        MutationKind::Set => drop(written.insert(mutation.key, mutation.value)),
                        _ => written.retain(|key, _| *key < mutation.key || *key >= mutation.value),
                    }
                }
                assert_eq!(ShardMap::read(&written), Ok(self.map.clone()), "the metadata is the map");
                for (tag, assignment) in assignments {
                    let holding = self.holdings.get_mut(&tag).unwrap();
                    holding.assign(&assignment, now).expect("nobody is told to hold what has not come");
                    assert_eq!(Holding::decode(&holding.encode()), Ok(Some(holding.clone())));
                }
            }
        }
    }

    /// At every version that may be read each key has somebody who has it and says so; and nobody says so of what the map does not say.
    fn check(&self) {
        let map = self.map.as_ref().unwrap();
        map.check();
        let readable = (self.horizon..=self.version).map(v).chain(self.leased.iter().copied());
        for version in readable {
            for key in ["", "0", "2x", "3", "5"] {
                let (_, shard) = map.of_key(key.as_bytes());
                let named: BTreeSet<Tag> = shard.readable_at(version).collect();
                assert!(!named.is_empty(), "nobody has {key} at {version}: {map:?}");
                let have = self.holdings.iter().filter(|(_, holding)| holding.has(key.as_bytes(), version));
                assert_eq!(named, have.map(|(&tag, _)| tag).collect(), "{key} at {version}: {map:?}");
            }
        }
        for (range, shard) in map.iter() {
            let coming = shard.moving.iter().flat_map(|moving| &moving.team).filter(|tag| !shard.team().contains(tag));
            let told = self.holdings.iter().filter(|(_, holding)| holding.incoming().contains_key(&range.begin));
            assert_eq!(coming.copied().collect::<BTreeSet<_>>(), told.map(|(&tag, _)| tag).collect(), "{range:?}");
        }
    }
}

/// Invariant 7 of the cluster's protocols, over random changes.
#[test]
fn every_key_has_a_readable_owner_at_every_version() {
    for seed in 0..200 {
        let mut model = Model::new(seed);
        for step in 0..120 {
            model.step();
            if step % 7 == 0 {
                model.check();
            }
        }
        model.check();
    }
}

/// Every mutation goes to those who hold its key, or get it; those of one key in their order.
#[test]
fn mutations_go_where_their_keys_are() {
    for seed in 0..50 {
        let mut model = Model::new(seed);
        (0..60).for_each(|_| model.step());
        let map = model.map.clone().unwrap();
        let mutations: Vec<Mutation> = (0..40)
            .map(|number: u32| match model.random.one_in(3) {
                true => {
                    let (one, other) = (model.key(), model.key());
                    Mutation::clear_range(one.clone().min(other.clone()), one.max(other))
                }
                false => Mutation::set(model.key(), number.to_le_bytes().to_vec()),
            })
            .collect();
        let sections = map.sections(mutations.clone());
        for tag in (0..5).map(Tag) {
            for key in (0..6).map(|key| Bytes::from(key.to_string())) {
                let of_key = |mutation: &&Mutation| match mutation.kind {
                    MutationKind::ClearRange => mutation.key <= key && key < mutation.value,
                    _ => mutation.key == key,
                };
                let what = |mutation: &Mutation| {
                    (mutation.kind, (mutation.kind == MutationKind::Set).then(|| mutation.value.clone()))
                };
                let sent: Vec<_> = sections
                    .iter()
                    .filter(|section| section.tags.contains(&tag))
                    .flat_map(|section| &section.mutations)
                    .filter(of_key)
                    .map(what)
                    .collect();
                let is_for = map.of_key(&key).1.tags().contains(&tag);
                let wanted: Vec<_> = mutations.iter().filter(|_| is_for).filter(of_key).map(what).collect();
                assert_eq!(sent, wanted, "seed {seed}: {tag:?} and {key:?}");
            }
        }
    }
}

/// A batch that changes the map goes where the map before it says; what comes next, where the new one does; and a change that the log refused has not happened.
#[test]
fn a_map_governs_what_is_above_it() {
    let recovered = begun(2);
    let leases = LeaseOptions::default();
    let (start, mut batcher) = Batcher::begin_epoch(&recovered, [1; 16], Limits::DEFAULT, leases, Duration::ZERO);
    let Entry::EpochStart(EpochStart { first_version, .. }) = start else { panic!("an epoch starts") };
    let commit = || {
        Request::Commit(CommitRequest {
            read_version: first_version,
            read_conflicts: Vec::new(),
            write_conflicts: Vec::new(),
            mutations: vec![Mutation::set("k", "v")],
            id: None,
            lowest_unanswered: 0,
            report_conflicting_keys: false,
            begins: None,
            lock_aware: false,
        })
    };
    let mut now = Duration::ZERO;
    let mut form = |batcher: &mut Batcher, requests: Vec<Request>| {
        now += Duration::from_secs(1);
        let group = batcher.form(requests, false, now, first_version, &|_| (Known::Nothing, Version::ZERO));
        let Some(Entry::Batch(batch)) = group.entries.last() else { panic!("a batch") };
        let sections: Vec<(Vec<u32>, bool)> = batch
            .sections
            .iter()
            .map(|section| {
                let is_assignment = Assignment::of_mutation(&section.mutations[0]).unwrap().is_some();
                (section.tags.iter().map(|tag| tag.0).collect(), is_assignment)
            })
            .collect();
        (group, sections)
    };
    let (group, sections) = form(&mut batcher, vec![commit(), Request::Shards(do_move(&[1])), commit()]);
    assert_eq!(sections, [(vec![0], false), (vec![1], true)]);
    batcher.appended(&group);
    let id = group.version.expect("it has one");
    let (group, sections) = form(&mut batcher, vec![commit()]);
    assert_eq!(sections, [(vec![0, 1], false)]);
    batcher.appended(&group);
    let cancel = || Request::Shards(Change::Cancel { begin: Bytes::new(), id });
    let (group, sections) = form(&mut batcher, vec![commit(), cancel()]);
    assert_eq!(sections, [(vec![0, 1], false), (vec![1], true)]);
    batcher.refused(group);
    let (group, sections) = form(&mut batcher, vec![commit(), cancel(), cancel()]);
    assert_eq!(sections, [(vec![0, 1], false), (vec![1], true)], "of two the second does not fit any more");
    batcher.appended(&group);
    assert_eq!(form(&mut batcher, vec![commit()]).1, [(vec![0], false)]);
}

/// No tag goes with which a shard would, and nothing moves to a tag that has gone: whoever decided either may not have seen the other.
#[test]
fn the_last_holder_keeps_its_tag() {
    let recovered = begun(3);
    let leases = LeaseOptions::default();
    let (_, mut batcher) = Batcher::begin_epoch(&recovered, [1; 16], Limits::DEFAULT, leases, Duration::ZERO);
    let drop_tag = |tag| {
        let KeyRange { begin, end } = KeyRange::single(&tag_key(Tag(tag)));
        Request::Metadata(vec![Mutation::clear_range(begin, end)])
    };
    let mut now = Duration::ZERO;
    let mut form = |batcher: &mut Batcher, requests: Vec<Request>| {
        now += Duration::from_secs(1);
        let group = batcher.form(requests, false, now, Version::ZERO, &|_| (Known::Nothing, Version::ZERO));
        let refused = |decision: &Decision| matches!(decision, Decision::Now(Err(_)));
        let decided: Vec<bool> = group.decisions.iter().map(|decision| !refused(decision)).collect();
        batcher.appended(&group);
        decided
    };
    assert_eq!(form(&mut batcher, vec![drop_tag(0)]), [false], "it alone holds everything");
    assert_eq!(form(&mut batcher, vec![drop_tag(2), Request::Shards(do_move(&[2]))]), [true, false]);
    assert_eq!(form(&mut batcher, vec![Request::Shards(do_move(&[2]))]), [false]);
    assert_eq!(form(&mut batcher, vec![Request::Shards(do_move(&[0, 1])), drop_tag(0)]), [true, false], "it moves yet");
}
