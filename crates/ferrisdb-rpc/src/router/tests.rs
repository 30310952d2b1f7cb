//! A router among processes of a small make-believe cluster: whom it asks, and what becomes of questions when what it knows is wrong, or somebody slow or gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Error, KeySelector, KeyValue, Limits, Version};

use super::*;
use crate::api::{
    Lease, LeaseRequest, Location, Locations, LocationsRequest, Priority, ResolveRequest, SplitPointsRequest,
    WatchRequest,
};
use crate::client::Stream;
use crate::options::ServeOptions;
use crate::server::Server;
use crate::tests::{Hall, commit, get, run, settle};

/// The cluster: who has what and who decides.
#[derive(Default)]
struct Land {
    /// Where a shard begins, and who has it.
    shards: BTreeMap<&'static str, Vec<&'static str>>,
    leader: Option<&'static str>,
    /// These put off the answers to reads.
    slow: BTreeSet<&'static str>,
    /// Addresses where nobody can be reached.
    down: BTreeSet<&'static str>,
    /// What was asked of whom: `a` at `a` alone, `a*` at `a` for the cluster.
    asked: Vec<(String, &'static str)>,
    commits: usize,
}

type Shared = Arc<Mutex<Land>>;

/// A process. All keys `00` to `99` have themselves for a value.
struct Process {
    name: &'static str,
    land: Shared,
    /// It answers for the whole cluster.
    is_whole: bool,
}

const END: &str = "~";

fn keys() -> Vec<String> {
    (0..100).map(|number| format!("{number:02}")).collect()
}

impl Process {
    fn land(&self) -> MutexGuard<'_, Land> {
        self.land.lock().unwrap()
    }

    fn asked(&self, what: &'static str) {
        let who = format!("{}{}", self.name, if self.is_whole { "*" } else { "" });
        self.land().asked.push((who, what));
    }

    /// Whether it has a range.
    fn has(&self, begin: &[u8], end: &[u8]) -> bool {
        let land = self.land();
        let mut ends = land.shards.keys().skip(1).copied().chain([END]);
        let has = |(from, holders): (&&str, &Vec<&str>)| {
            let to = ends.next().unwrap();
            let is_touched = begin < to.as_bytes() && from.as_bytes() < end;
            !is_touched || holders.contains(&self.name)
        };
        self.is_whole || land.shards.iter().all(has)
    }

    fn answer<T: Send + Unpin + 'static>(&self, what: &'static str, has: bool, answer: T) -> Answer<T> {
        self.asked(what);
        if !has {
            return Error::new(Code::WrongShardServer).into();
        }
        let is_slow = !self.is_whole && self.land().slow.contains(self.name);
        Answer::later(async move {
            if is_slow {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(answer)
        })
    }

    fn decides<T>(&self, what: &'static str, answer: impl FnOnce(&mut Land) -> T) -> Answer<T> {
        self.asked(what);
        let mut land = self.land();
        match land.leader {
            Some(leader) if self.is_whole || leader == self.name => Answer::now(Ok(answer(&mut land))),
            _ => Error::new(Code::ProcessBehind).into(),
        }
    }
}

impl Endpoint for Process {
    fn description(&self) -> Description {
        Description { cluster_id: [7; 16], limits: Limits::DEFAULT, connection_string: String::new() }
    }

    fn begin(&self, _: BeginRequest) -> Answer<Begun> {
        self.decides("begin", |_| Begun { version: Version::from_u64(7), is_locked: false })
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        let has = self.has(&request.key, &key_after(&request.key));
        self.answer("get", has, Some(request.key))
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        let has = self.has(&request.selector.key, &key_after(&request.selector.key));
        self.answer("get_key", has, request.selector.key)
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        let has = self.has(&request.range.begin, &request.range.end);
        let inside = keys().into_iter().map(Bytes::from).filter(|key| request.range.contains(key));
        let mut rows: Vec<KeyValue> = inside.map(|key| KeyValue { key: key.clone(), value: key }).collect();
        if request.reverse {
            rows.reverse();
        }
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let more = rows.len() > limit;
        rows.truncate(limit);
        self.answer("get_range", has, Rows { rows, more })
    }

    fn commit(&self, _: CommitRequest) -> Answer<Committed> {
        self.decides("commit", |land| {
            land.commits += 1;
            Committed::At { version: Version::from_u64(8), batch_index: 0 }
        })
    }

    fn resolve(&self, _: ResolveRequest) -> Answer<Option<Committed>> {
        self.decides("resolve", |_| None)
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.answer("watch", true, request.version)
    }

    fn lease(&self, _: LeaseRequest) -> Answer<Lease> {
        self.decides("lease", |_| Lease { id: 1, version: Version::ZERO, term_ms: 1 })
    }

    fn estimated_size(&self, _: KeyRange) -> Answer<u64> {
        self.answer("size", true, 1)
    }

    fn split_points(&self, _: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.answer("split", true, Vec::new())
    }

    fn addresses_for_key(&self, _: Bytes) -> Answer<Vec<String>> {
        self.answer("addresses", true, Vec::new())
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        self.asked("locations");
        let land = self.land();
        let begins: Vec<_> = land.shards.keys().copied().collect();
        let first = begins.partition_point(|begin| begin.as_bytes() <= &request.range.begin[..]).saturating_sub(1);
        let bound = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let location = |begin: &&'static str| Location {
            begin: Bytes::from_static(begin.as_bytes()),
            addresses: land.shards[begin].iter().map(|&holder| holder.to_owned()).collect(),
        };
        let locations = begins[first..].iter().take(bound).map(location).collect();
        let more = begins.len() - first > bound;
        Answer::now(Ok(Locations { locations, more, coordinator: land.leader.map(str::to_owned) }))
    }

    fn status(&self) -> Answer<String> {
        self.answer("status", true, String::new())
    }

    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        Some(Arc::new(Process { name: self.name, land: Arc::clone(&self.land), is_whole: false }))
    }
}

/// The processes `a`, `b` and `c`, behind the network.
struct Stage {
    land: Shared,
    network: Arc<Network>,
}

struct Network {
    land: Shared,
    halls: BTreeMap<&'static str, Arc<Hall>>,
}

impl Connector for Network {
    fn connect(&self, address: &str) -> BoxFuture<io::Result<Box<dyn Stream>>> {
        if self.land.lock().unwrap().down.contains(address) {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        }
        self.halls[address].connect(address)
    }
}

impl Stage {
    fn open(shards: &[(&'static str, &[&'static str])], leader: Option<&'static str>) -> Stage {
        let shards = shards.iter().map(|&(begin, holders)| (begin, holders.to_vec())).collect();
        let land: Shared = Arc::new(Mutex::new(Land { shards, leader, ..Land::default() }));
        let mut halls = BTreeMap::new();
        for name in ["a", "b", "c"] {
            let endpoint = Process { name, land: Arc::clone(&land), is_whole: true };
            let (hall, listener) = Hall::open(1 << 16);
            let server = Server::new(Arc::new(endpoint), ServeOptions::default());
            drop(tokio::spawn(async move { server.serve(listener, std::future::pending()).await }));
            halls.insert(name, hall);
        }
        Stage { network: Arc::new(Network { land: Arc::clone(&land), halls }), land }
    }

    fn land(&self) -> MutexGuard<'_, Land> {
        self.land.lock().unwrap()
    }

    async fn connect(&self, list: &str) -> Router {
        self.connect_with(list, ClientOptions { seed: Some(1), ..ClientOptions::default() }).await
    }

    async fn connect_with(&self, list: &str, options: ClientOptions) -> Router {
        Router::connect_with(Arc::clone(&self.network) as _, list, options).await.unwrap()
    }

    /// Who was asked what since the last call, how often.
    fn asked(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (who, what) in std::mem::take(&mut self.land().asked) {
            *counts.entry(format!("{who} {what}")).or_default() += 1;
        }
        counts
    }
}

fn counted(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|&(what, count)| (what.to_owned(), count)).collect()
}

const BEGIN: BeginRequest = BeginRequest { transactions: 1, priority: Priority::Default };

/// Has the router learn where everything is.
async fn warm(router: &Router) {
    for _ in 0..UNROUTED {
        router.get(get("10")).await.unwrap();
    }
    for _ in 0..3 {
        for key in ["10", "40", "70"] {
            router.get(get(key)).await.unwrap();
        }
        router.begin(BEGIN).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const THREE: &[(&str, &[&str])] = &[("", &["a"]), ("30", &["b"]), ("60", &["c"])];

/// A program of a few questions costs nothing but them; then each question is put to the process that has the answer, and to it alone.
#[test]
fn questions_go_where_the_answer_is() {
    run(async {
        let stage = Stage::open(THREE, Some("b"));
        let router = stage.connect("a").await;
        for _ in 0..UNROUTED {
            router.get(get("40")).await.unwrap();
        }
        settle().await;
        assert_eq!(stage.asked(), counted(&[("a* get", UNROUTED as usize)]));
        warm(&router).await;
        stage.asked();
        let before = router.stats();
        for key in ["10", "40", "70"] {
            assert_eq!(router.get(get(key)).await.unwrap().unwrap(), key);
        }
        let selector = KeySelector::first_greater_or_equal("70");
        let request = GetKeyRequest { selector, end: END.into(), version: Version::from_u64(5) };
        assert_eq!(router.get_key(request).await.unwrap(), "70");
        assert_eq!(router.begin(BEGIN).await.unwrap().version, Version::from_u64(7));
        router.commit(commit("k")).await.unwrap();
        router.status().await.unwrap();
        let all = [("a get", 1), ("b get", 1), ("c get", 1), ("c get_key", 1), ("b begin", 1), ("b commit", 1)];
        assert_eq!(stage.asked(), counted(&[&all[..], &[("a* status", 1)]].concat()));
        assert_eq!(router.stats(), RouterStats { direct: before.direct + 6, ..before });
    });
}

/// A range that crosses a border is asked up to there, in either direction, and the parts make the whole; also where a part is empty.
#[test]
fn ranges_are_asked_in_parts() {
    run(async {
        let stage = Stage::open(&[("", &["a"]), ("30", &["b"]), ("991", &["c"])], Some("b"));
        let router = stage.connect("a,b,c").await;
        warm(&router).await;
        router.get(get("995")).await.unwrap();
        settle().await;
        for reverse in [false, true] {
            for limit in [0, 7] {
                for (begin, end) in [("", END), ("25", "35"), ("295", "31"), ("99", "999"), ("992", "995"), ("5", "4")]
                {
                    let mut rest = KeyRange::new(begin, end);
                    let mut found: Vec<KeyValue> = Vec::new();
                    loop {
                        let range = rest.clone();
                        let version = Version::from_u64(5);
                        let request = GetRangeRequest { range, version, limit, target_bytes: 0, reverse };
                        let part = router.get_range(request).await.unwrap();
                        found.extend(part.rows);
                        if !part.more {
                            break;
                        }
                        let last = found.last().unwrap().key.clone();
                        match reverse {
                            false => rest.begin = key_after(&last),
                            true => rest.end = last,
                        }
                    }
                    let mut expected: Vec<_> =
                        keys().into_iter().filter(|key| &key[..] >= begin && &key[..] < end).collect();
                    if reverse {
                        expected.reverse();
                    }
                    let found: Vec<_> = found.into_iter().map(|row| row.key).collect();
                    assert_eq!(found, expected, "{begin} to {end}, reverse {reverse}, limit {limit}");
                }
            }
        }
        let asked = stage.asked();
        assert!(asked["a get_range"] > 0 && asked["b get_range"] > 0 && asked["c get_range"] > 0, "{asked:?}");
    });
}

/// A shard has moved, and another process leads: who is asked refuses, home answers, and the next question goes to the right one.
#[test]
fn what_has_become_wrong_is_put_right() {
    run(async {
        let stage = Stage::open(THREE, Some("b"));
        let router = stage.connect("a").await;
        warm(&router).await;
        stage.land().shards.insert("30", vec!["c"]);
        stage.land().leader = Some("c");
        stage.asked();
        let (got, committed) = (router.get(get("40")), router.commit(commit("k")));
        assert_eq!(got.await.unwrap().unwrap(), "40");
        committed.await.unwrap();
        let asked = stage.asked();
        assert_eq!((asked.get("b get"), asked.get("a* get")), (Some(&1), Some(&1)), "{asked:?}");
        assert_eq!((asked.get("b commit"), asked.get("a* commit")), (Some(&1), Some(&1)), "{asked:?}");
        assert_eq!(stage.land().commits, 1, "the one that does not decide has done nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage.asked();
        router.get(get("40")).await.unwrap();
        router.commit(commit("k")).await.unwrap();
        assert_eq!(stage.asked(), counted(&[("c get", 1), ("c commit", 1)]));
        // Nobody leads, for a while.
        stage.land().leader = None;
        assert_eq!(router.begin(BEGIN).await.unwrap_err().code(), Code::ProcessBehind);
        settle().await;
        stage.land().leader = Some("a");
        tokio::time::sleep(Duration::from_millis(300)).await;
        router.begin(BEGIN).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage.asked();
        router.begin(BEGIN).await.unwrap();
        assert_eq!(stage.asked(), counted(&[("a begin", 1)]));
    });
}

/// One that is slow does not hold up its readers, and is asked less.
#[test]
fn a_slow_process_is_not_waited_for() {
    run(async {
        let stage = Stage::open(&[("", &["b", "c"])], Some("b"));
        let router = stage.connect("a").await;
        warm(&router).await;
        stage.land().slow.insert("b");
        stage.asked();
        for _ in 0..20 {
            let begun = tokio::time::Instant::now();
            router.get(get("40")).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
        }
        let asked = stage.asked();
        assert!(asked.get("b get").is_none_or(|&asked| asked <= 3), "{asked:?}");
        assert_eq!(router.stats().hedged, asked.get("b get").map_or(0, |&asked| asked as u64));
        // With one that has it, the slow one is asked, and home as well.
        stage.land().shards.insert("", vec!["b"]);
        tokio::time::sleep(scout::LOCATIONS_LIVE).await;
        warm(&router).await;
        let hedged = router.stats().hedged;
        router.get(get("40")).await.unwrap();
        assert_eq!(router.stats().hedged, hedged + 1);
    });
}

/// Reads that come together go to one process for a while, so that they share writes; then the choice is made anew.
#[test]
fn reads_that_come_together_go_to_one() {
    run(async {
        let stage = Stage::open(&[("", &["b", "c"])], Some("b"));
        let router = stage.connect("a").await;
        warm(&router).await;
        stage.asked();
        let mut split = 0;
        for _ in 0..8 {
            let reads: Vec<_> = (0..IN_A_ROW / 4).map(|_| router.get(get("40"))).collect();
            for read in reads {
                read.await.unwrap();
            }
            split += usize::from(stage.asked().len() == 2);
        }
        assert!(split <= 3, "of eight times {split} went to both");
    });
}

/// A process that cannot be reached is asked at home, and directly again once it is back.
#[test]
fn who_is_gone_is_not_missed() {
    run(async {
        let stage = Stage::open(THREE, Some("b"));
        stage.land().down.insert("c");
        let router = stage.connect("a").await;
        warm(&router).await;
        stage.asked();
        assert_eq!(router.get(get("70")).await.unwrap().unwrap(), "70");
        assert_eq!(stage.asked(), counted(&[("a* get", 1)]));
        stage.land().down.remove("c");
        tokio::time::sleep(Duration::from_secs(2)).await;
        router.get(get("70")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.asked();
        router.get(get("70")).await.unwrap();
        assert_eq!(stage.asked(), counted(&[("c get", 1)]), "it is back");
    });
}

/// Connections that nobody uses are closed, as are all with the router; a replica that has come is heard of.
#[test]
fn what_is_not_used_is_closed() {
    run(async {
        let stage = Stage::open(THREE, Some("b"));
        let router = stage.connect("a").await;
        warm(&router).await;
        assert_eq!(router.inner().state().ways.len(), 3);
        stage.land().shards.insert("30", vec!["a", "b"]);
        for _ in 0..12 {
            tokio::time::sleep(scout::REFRESH).await;
            router.get(get("10")).await.unwrap();
        }
        let open = |router: &Router| {
            let state = router.inner().state();
            let open = state.ways.values().filter(|way| way.connection.is_some());
            open.map(|way| way.address.clone()).collect::<BTreeSet<_>>()
        };
        assert_eq!(open(&router), ["a", "b"].map(String::from).into(), "the coordinator stays, c was not used");
        warm(&router).await;
        let holders = router.inner().state().locations.of_key(b"40", router.inner().timers.now()).unwrap().1.len();
        assert_eq!(holders, 2);
        let inner = Arc::downgrade(&router.handle.inner);
        drop(router);
        settle().await;
        assert!(inner.upgrade().is_none(), "its task has ended");
    });
}

/// A single server: whoever has no others to ask asks nobody where they are, but now and then.
#[test]
fn a_single_server_is_just_asked() {
    run(async {
        let stage = Stage::open(&[("", &[])], None);
        let router = stage.connect("a").await;
        for _ in 0..100 {
            router.get(get("10")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let asked = stage.asked();
        assert!(asked.len() == 2 && asked["a* get"] == 100 && asked["a* locations"] <= 3, "{asked:?}");
        assert_eq!(router.stats(), RouterStats::default());
        let off = ClientOptions { asks_holders: false, ..ClientOptions::default() };
        let stage = Stage::open(THREE, Some("b"));
        let router = stage.connect_with("a", off).await;
        for _ in 0..100 {
            router.get(get("40")).await.unwrap();
        }
        settle().await;
        assert_eq!(stage.asked(), counted(&[("a* get", 100)]));
    });
}
