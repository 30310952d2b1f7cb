//! Storage that has failed on a process that is there.

use std::time::Duration;

use ferrisdb_storage::fs::sim::{CrashMode, DiskError, Injection, OpKind, Verdict};
use serde_json::json;

use super::SECOND;
use super::world::World;
use crate::log::replicated::ProcessId;

/// In these worlds a process that is silent for so long is gone, and so is storage that has failed.
const GONE: Duration = Duration::from_secs(5);

/// Storage that works is never so far behind in these worlds; what ten seconds bring is more.
const LAG_MAX: u64 = 5_000;

impl World {
    /// The storage server of a host fails, for good: a table is not made durable.
    fn break_storage(&self, host: ProcessId) {
        let failed = Injection::new(&[OpKind::Sync], Verdict::FailAndDrop(DiskError::Io)).path(".sst").once();
        self.present_disk(host).inject(failed);
        self.until("storage has failed", || self.node(host).is_some_and(|node| node.failure().is_some()));
    }
}

/// The storage server of one of four fails, of the leader or of a follower, while its process is there and votes. Commits go on; after a while its tag is taken, so that the log is
/// purged and others get its shards. The process keeps its vote and does not begin again on that disk, until somebody starts it again: then it copies everything anew.
#[test]
fn failed_storage_loses_its_tag_and_not_its_vote() {
    for (seed, of_leader) in [(80, true), (81, false)] {
        let world = World::with(seed, 4, GONE);
        world.grow_to(4);
        let holds = |host: ProcessId| {
            let process = &world.status(host)["cluster"]["processes"][host.to_string()];
            process["shards"].as_u64() > Some(0)
                && process["roles"].as_array().is_some_and(|roles| roles.contains(&json!("log")))
        };
        let leader = world.leader();
        let other = (1..=4).find(|&host| host != leader && holds(host)).expect("three of them have everything");
        let broken = if of_leader { leader } else { other };
        let witness = if of_leader { other } else { leader };
        world.break_storage(broken);
        let of_broken = || world.status(witness)["cluster"]["processes"][broken.to_string()].clone();
        world.until("it is told", || world.says(witness, "process_broken") && world.says(broken, "broken"));
        assert!(of_broken()["roles"].as_array().expect("a list").contains(&json!("storage")), "seed {seed}: so soon");
        let before = world.committed();
        world.run(2 * SECOND);
        assert!(world.committed() > before + 20, "seed {seed}: it holds up nobody");
        let has_tag = || of_broken()["roles"].as_array().is_some_and(|roles| roles.contains(&json!("storage")));
        world.until("its tag is taken", || !has_tag());
        let purged = || world.status(witness)["cluster"]["process"]["log"]["purged"].as_u64();
        let before = purged();
        world.until("the log is purged", || purged() > before);
        world.until("others have its shards", || world.status(witness)["cluster"]["shards"]["replicas_least"] == 3);
        world.run(2 * GONE);
        let lag = world.status(witness)["cluster"]["qos"]["worst_lag_bytes"].as_u64().expect("it is told");
        assert!(lag < LAG_MAX, "seed {seed}: nobody waits for it, not even where it leads: {lag} bytes");
        let roles = of_broken()["roles"].clone();
        assert!(roles.as_array().expect("a list").contains(&json!("log")), "seed {seed}: its log works: {roles}");
        assert!(!has_tag() && of_broken()["state"] == "up", "seed {seed}: {}", of_broken());
        assert!(world.says(witness, "process_broken") && world.says(broken, "broken"), "seed {seed}");
        world.kill(broken, CrashMode::UnsyncedLost);
        world.start(broken);
        world.until("it has begun again", || world.runs(broken) && has_tag() && world.is_complete(broken));
        assert_eq!(world.process_of(broken), broken, "seed {seed}");
        world.until_whole(3);
        world.check_quiet();
    }
}

/// With nobody else who has the data nothing is taken, whatever fails.
#[test]
fn the_last_replica_is_kept_though_it_has_failed() {
    let world = World::with(82, 1, GONE);
    world.grow_to(1);
    world.break_storage(1);
    world.run(3 * GONE);
    let roles = world.status(1)["cluster"]["processes"]["1"]["roles"].clone();
    assert!(roles.as_array().expect("a list").contains(&json!("storage")), "{roles}");
    assert!(world.says(1, "broken"));
}
