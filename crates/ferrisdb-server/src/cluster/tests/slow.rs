//! Processes that are slow, or stand still while their connections stay open: what is asked of others does not wait for them.

use std::time::Duration;

use ferrisdb_core::{Bytes, Clock};
use ferrisdb_rpc::api::{BeginRequest, GetRequest, Priority};
use ferrisdb_rpc::pace::SOONEST;

use super::SECOND;
use super::world::World;

/// What a client of a follower waits for at most when the leader stands still: what its process had asked of it counts as lost after three seconds in this world; with the election timeout of one
/// second that it has, another one leads after three to four, or two to three later if votes were split.
const BOUND: Duration = Duration::from_secs(7);

/// The leader stands still: nothing is closed, nothing answers. Clients of the others commit again within the bound, also in the moment when it goes on and believes that it leads.
#[test]
fn a_leader_that_stands_still_is_left() {
    for seed in [80, 81, 82] {
        let world = World::new(seed);
        world.grow_to(3);
        let leader = world.leader();
        world.pause(leader, true);
        for other in (1..=3).filter(|&other| other != leader) {
            let longest = world.longest_at(other);
            assert!(longest < BOUND, "seed {seed}: {longest:?} at {other}");
        }
        world.run(3 * SECOND);
        world.pause(leader, false);
        for process in 1..=3 {
            let longest = world.longest_at(process);
            assert!(longest < BOUND, "seed {seed}: {longest:?} at {process} afterwards");
        }
        world.check_quiet();
    }
}

/// A storage server has not come as far as a read version, because nothing of the leader's reaches it; others have. A read at its process is answered by one of them soon, and counted.
#[test]
fn a_read_is_hedged() {
    let world = World::new(83);
    world.grow_to(3);
    let leader = world.leader();
    let slow = 1 + leader % 3;
    world.cut(leader, slow, true);
    world.run(SECOND);
    assert_eq!(world.leader(), leader, "the third hears it");
    let (fast, behind) = (world.node(leader).expect("it runs"), world.node(slow).expect("it runs"));
    let request = BeginRequest { transactions: 1, priority: Priority::Default };
    let version = world.finish(async move { fast.endpoint().begin(request).await }).expect("it begins").version;
    assert!(behind.storage().applied_version() < version);
    let (clock, endpoint) = (world.clock(), behind.endpoint());
    let took = world.finish(async move {
        let mut longest = Duration::ZERO;
        for account in 0..4 {
            let begun = clock.now();
            let key = Bytes::from(format!("account/{account}"));
            endpoint.get(GetRequest { key, version }).await.expect("it is answered");
            longest = longest.max(clock.now() - begun);
        }
        longest
    });
    // A message takes a tenth of a second at most, and there are two.
    assert!((SOONEST..SOONEST + Duration::from_millis(250)).contains(&took), "{took:?}");
    let workload = || world.status(slow)["cluster"]["workload"].clone();
    assert!(workload()["hedged_reads_won"].as_u64() >= Some(4), "{:#}", workload());
    world.cut(leader, slow, false);
    world.check_quiet();
}

/// The only voter stands still for longer than the time after which a silent process is gone. When it goes on it takes nothing from the others, though it hears them only a moment later: they were there.
#[test]
fn who_stood_still_takes_nothing_from_the_others() {
    let world = World::with(84, 2, 10 * SECOND);
    world.grow_to(1);
    world.start(2);
    world.until("the other one has everything", || world.runs(2) && world.is_complete(2));
    let leader = world.leader();
    let other = 3 - leader;
    let tag = |world: &World| world.node(other).expect("it runs").life.shared().identity.tag;
    let before = tag(&world);
    world.pause(leader, true);
    world.run(30 * SECOND);
    // What the other one said meanwhile is not there at once.
    world.cut(leader, other, true);
    world.pause(leader, false);
    world.run(2 * SECOND);
    world.cut(leader, other, false);
    world.run(10 * SECOND);
    assert_eq!(tag(&world), before, "it has what it had");
    assert!(world.status(leader)["cluster"]["processes"][other.to_string()]["is_complete"] == true);
    world.check_quiet();
}
