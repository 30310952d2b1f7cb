//! Reads over the borders of shards, compared with a map.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::key::{SYSTEM_END, prefix_end};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, Mutation, Random, SplitMix64, Version};
use ferrisdb_rpc::Endpoint;
use ferrisdb_rpc::api::{
    BeginRequest, CommitRequest, GetKeyRequest, GetRangeRequest, GetRequest, Priority, WatchRequest,
};

use super::super::ClusterNode;
use super::super::metadata::set_replication;
use super::world::World;
use crate::shards::SHARD_PREFIX;
use crate::shards::change::Change;
use crate::signal::lock;

const KEYS: u64 = 30;

fn key(number: u64) -> Bytes {
    format!("k{number:02}").into()
}

impl World {
    /// Runs `task` to its end.
    pub(super) fn finish<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let done = Arc::new(Mutex::new(None));
        let put = Arc::clone(&done);
        self.spawn_outside(Box::pin(async move {
            let output = task.await;
            *lock(&put) = Some(output);
        }));
        for _ in 0..200 {
            self.run(Duration::from_millis(500));
            if let Some(output) = lock(&done).take() {
                return output;
            }
        }
        panic!("it does not end");
    }

    /// Takes the map of shards out of the metadata of a cluster of one, as an older FerrisDB would have left it.
    pub(super) fn forget_map(&self) {
        let node = self.leading_node();
        let coordinator = node.life.shared().leading.coordinator().expect("it leads");
        let end = prefix_end(SHARD_PREFIX).expect("it does not end with 0xFF only");
        let forgetting = async move {
            coordinator.change_metadata(vec![Mutation::clear_range(SHARD_PREFIX, end)]).await.expect("changed");
            assert!(!node.life.shared().has_map());
        };
        self.finish(forgetting);
    }

    /// See the test.
    pub(super) fn reads_across_shards(&self) {
        self.be_quiet();
        let nodes = self.nodes();
        let leader = self.leading_node();
        let coordinator = leader.life.shared().leading.coordinator().expect("it leads");
        let tags: Vec<_> = leader.life.shared().registry().expect("readable").storage.keys().copied().collect();
        let (shared, endpoint) = (leader.life.shared(), leader.endpoint());
        let borders: Vec<Bytes> = [5, 10, 15, 20, 25].map(key).to_vec();
        let shaped = async move {
            let begin = BeginRequest { transactions: 1, priority: Priority::Default };
            let version = endpoint.begin(begin).await.expect("begun").version;
            let mutations = (0..KEYS).map(|number| Mutation::set(key(number), number.to_be_bytes().to_vec()));
            endpoint.commit(blind(version, mutations.collect())).await.expect("committed");
            coordinator.change_metadata(vec![set_replication(1)]).await.expect("changed");
            for at in borders {
                coordinator.change_shards(Change::Split { at }).await.expect("split");
            }
            let map = shared.shards().expect("readable");
            for (index, (range, _)) in map.iter().enumerate() {
                let team = BTreeSet::from([tags[index % tags.len()]]);
                coordinator
                    .change_shards(Change::Move { begin: range.begin, end: range.end, team })
                    .await
                    .expect("everybody has it already");
            }
        };
        self.finish(shaped);
        self.run(Duration::from_secs(2));
        for node in &nodes {
            let held = node.life.shared().keeper.holding().held().count();
            assert_eq!(held, 2, "each holds two of six shards");
        }
        let endpoints: Vec<Arc<dyn Endpoint>> = nodes.iter().map(|node| node.endpoint()).collect();
        self.finish(compare(endpoints));
    }
}

fn blind(read_version: Version, mutations: Vec<Mutation>) -> CommitRequest {
    CommitRequest {
        read_version,
        read_conflicts: Vec::new(),
        write_conflicts: Vec::new(),
        mutations,
        id: None,
        lowest_unanswered: 0,
        report_conflicting_keys: false,
        begins: None,
        lock_aware: false,
    }
}

async fn compare(endpoints: Vec<Arc<dyn Endpoint>>) {
    let mut random = SplitMix64::new(3);
    let begin = BeginRequest { transactions: 1, priority: Priority::Default };
    let version = endpoints[0].begin(begin).await.expect("begun").version;
    let range = KeyRange::new("", SYSTEM_END);
    let all = GetRangeRequest { range, version, limit: 0, target_bytes: 0, reverse: false };
    let all = endpoints[0].get_range(all).await.expect("read");
    assert!(!all.more);
    let all: Vec<Bytes> = all.rows.into_iter().map(|row| row.key).collect();
    assert!((0..KEYS).all(|number| all.contains(&key(number))));
    assert!(all.is_sorted_by(|one, next| one < next));

    for _ in 0..400 {
        let endpoint = &endpoints[random.below(3) as usize];
        let (one, other) = (random.below(KEYS + 3), random.below(KEYS + 3));
        let range = KeyRange::new(key(one.min(other)), key(one.max(other)));
        let limit = [0, 1, 7][random.below(3) as usize];
        let target_bytes = [0, 1, 100][random.below(3) as usize];
        let reverse = random.one_in(2);
        let request = GetRangeRequest { range: range.clone(), version, limit, target_bytes, reverse };
        let rows = endpoint.get_range(request.clone()).await.expect("read");
        let mut wanted: Vec<&Bytes> = all.iter().filter(|key| range.contains(key)).collect();
        if reverse {
            wanted.reverse();
        }
        let found: Vec<&Bytes> = rows.rows.iter().map(|row| &row.key).collect();
        assert!(wanted.starts_with(&found), "{request:?}: {found:?}");
        assert!(rows.more || found.len() == wanted.len(), "{request:?}: {found:?} of {wanted:?}");
        assert!(!rows.more || !found.is_empty(), "{request:?}");
        assert!(limit == 0 || found.len() <= limit as usize);
        if limit == 0 && target_bytes == 0 {
            assert_eq!(found, wanted, "{request:?}: nothing bounds it");
        }

        let or_equal = random.one_in(2);
        let selector = KeySelector { key: key(one), or_equal, offset: random.below(25) as i32 - 12 };
        let end = key(other.max(20));
        let request = GetKeyRequest { selector: selector.clone(), end: end.clone(), version };
        let found = endpoint.get_key(request.clone()).await.expect("read");
        let below: Vec<&Bytes> = all.iter().filter(|key| **key < end).collect();
        let first = below.partition_point(|key| if or_equal { **key <= selector.key } else { **key < selector.key });
        let place = first as i64 + i64::from(selector.offset) - 1;
        let wanted = match usize::try_from(place) {
            Err(_) => Bytes::new(),
            Ok(place) => below.get(place).map_or(end, |key| Bytes::clone(key)),
        };
        assert_eq!(found, wanted, "{request:?}");

        let got = endpoint.get(GetRequest { key: key(one), version }).await.expect("read");
        assert_eq!(got.is_some(), one < KEYS);
    }

    // A watch at whoever does not hold the key.
    for number in [2, 7, 12] {
        let key = key(number);
        let value = Some(Bytes::copy_from_slice(&number.to_be_bytes()));
        let watches: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint.watch(WatchRequest { key: key.clone(), value: value.clone(), version }))
            .collect();
        endpoints[0].commit(blind(version, vec![Mutation::set(key, "new")])).await.expect("committed");
        for watch in watches {
            watch.await.expect("it fires");
        }
    }
}

impl World {
    /// All processes that are there.
    fn nodes(&self) -> Vec<Arc<ClusterNode>> {
        (1..=3).map(|process| self.node(process).expect("it is there")).collect()
    }

    fn leading_node(&self) -> Arc<ClusterNode> {
        self.node(self.leader()).expect("it is there")
    }
}
