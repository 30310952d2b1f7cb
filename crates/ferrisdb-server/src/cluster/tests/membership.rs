//! Processes that are gone, leave, and come back wrong.

use std::time::Duration;

use ferrisdb_core::Code;
use ferrisdb_storage::fs::sim::CrashMode;

use super::super::ShardOptions;
use super::super::orders::Order;
use super::SECOND;
use super::world::World;

/// In these worlds a process that is silent for so long is gone.
const GONE: Duration = Duration::from_secs(5);

/// A process that was gone for too long has lost its data to the others' log, keeps its number and its vote, and copies everything anew.
#[test]
fn a_process_that_was_gone_copies_everything_anew() {
    let world = World::with(60, 3, GONE);
    world.grow_to(3);
    let lost = (1..=3).find(|&host| host != world.leader()).expect("there are three");
    let host = world.leader();
    world.kill(lost, CrashMode::UnsyncedLost);
    let of_lost = || world.status(host)["cluster"]["processes"][lost.to_string()].clone();
    world.until("it is suspected", || of_lost()["state"] == "suspected");
    assert_eq!(of_lost()["roles"], serde_json::json!(["storage", "log"]), "nothing is taken from it yet");
    world.until("its data is given up, and its vote is not", || of_lost()["roles"] == serde_json::json!(["log"]));
    // What the leader sees is told once a second.
    world.until("it is told so", || of_lost()["state"] == "gone");
    let purged = || world.status(host)["cluster"]["process"]["log"]["purged"].as_u64();
    let before = purged();
    world.until("the log is purged without it", || purged() > before);
    world.start(lost);
    world.until("it says so", || {
        world.runs(lost) && world.notices(lost).iter().any(|said| said.contains("copies everything anew"))
    });
    world.until_whole(3);
    assert_eq!(world.process_of(lost), lost);
    world.check_quiet();
}

/// A fourth process takes the vote of one that is gone, which is then forgotten; when it comes back after all, it is a new one.
#[test]
fn a_new_process_takes_the_place_of_one_that_is_gone() {
    let world = World::with(61, 4, GONE);
    world.grow_to(4);
    let lost = (1..=3).find(|&host| host != world.leader()).expect("there are three");
    let host = world.leader();
    world.kill(lost, CrashMode::UnsyncedLost);
    world.until("it is forgotten", || {
        let cluster = &world.status(host)["cluster"];
        cluster["processes"][lost.to_string()].is_null()
            && cluster["voters"].as_array().is_some_and(|voters| voters.len() == 3)
    });
    let learners = || world.status(host)["cluster"]["process"]["log"]["learners"].clone();
    world.until("the log is not sent to it", || learners() == serde_json::json!([]));
    world.start(lost);
    world.until("it is a new one", || world.runs(lost) && world.process_of(lost) == 5);
    world.until("it has everything", || world.is_complete(lost));
    world.check_quiet();
}

/// One that is cut off, and starts again meanwhile, is forgotten, and somebody leads whom it does not know as a voter. Its replica of the log stands for election, and so knows that it knows no leader; it hears of
/// its end from any other, and is a new one.
#[test]
fn one_that_was_cut_off_hears_that_it_is_forgotten() {
    let world = World::with(61, 4, GONE);
    world.grow_to(4);
    let lost = (1..=3).find(|&host| host != world.leader()).expect("there are three");
    let host = world.leader();
    for other in (1..=4).filter(|&other| other != lost) {
        world.cut(lost, other, true);
    }
    world.kill(lost, CrashMode::UnsyncedLost);
    world.start(lost);
    world.until("it is forgotten", || {
        let cluster = &world.status(host)["cluster"];
        cluster["processes"][lost.to_string()].is_null()
            && cluster["voters"].as_array().is_some_and(|voters| voters.len() == 3)
    });
    world.order(host, Order::Transfer(Some(4)), false).expect("it can lead");
    world.until("the fourth one leads", || world.has_leader() && world.leader() == 4);
    assert_eq!(world.process_of(lost), lost, "nobody has told it");
    for other in (1..=4).filter(|&other| other != lost) {
        world.cut(lost, other, false);
    }
    world.until("it is a new one", || world.runs(lost) && world.process_of(lost) == 5);
    world.until("it has everything", || world.is_complete(lost));
    world.check_quiet();
}

/// A cluster of five: one, a learner, was cut off and forgotten while another one, which it does not know as a voter, took the lead.
struct Forgotten {
    lost: u64,
    /// Who leads now.
    leader: u64,
    /// Whom it knows as voters. The one that led, as its replica of the log goes on to say, is there, and leads no more.
    known: Vec<u64>,
    /// The one of those whose vote the leader has now.
    excluded: u64,
}

/// What a learner's replica of the log says of a leader never changes once nobody sends it the log.
fn forget_a_learner(world: &World) -> Forgotten {
    world.grow_to(5);
    let led = world.leader();
    let voters = || world.node(led).expect("it runs").standing().expect("it has begun").group.voters;
    let known: Vec<u64> = voters().into_iter().collect();
    let learners: Vec<u64> = (1..=5).filter(|host| !known.contains(host)).collect();
    let &[leader, lost] = learners.as_slice() else { panic!("of five processes three vote: {known:?}") };
    // So that all have said that they have everything.
    world.run(2 * SECOND);
    for other in (1..=5).filter(|&other| other != lost) {
        world.cut(lost, other, true);
    }
    world.until("it is forgotten", || world.status(led)["cluster"]["processes"][lost.to_string()].is_null());
    let excluded = known.iter().copied().find(|&voter| voter != led).expect("there are three");
    world.order(led, Order::Exclude(excluded), false).expect("another one can take its vote");
    world.until("the other learner votes", || voters().contains(&leader));
    world.order(led, Order::Transfer(Some(leader)), false).expect("it can lead");
    world.until("it leads", || world.has_leader() && world.leader() == leader);
    world.run(2 * GONE);
    let standing = world.node(lost).and_then(|node| node.standing()).expect("it goes on");
    assert_eq!(standing.process, lost, "nobody has told it");
    assert!(standing.group.leader == Some(led) && !standing.group.voters.contains(&leader), "{:?}", standing.group);
    Forgotten { lost, leader, known, excluded }
}

impl World {
    fn until_it_begins_anew(&self, lost: u64) {
        self.until("it knows that it is forgotten", || {
            self.runs(lost) && self.notices(lost).iter().any(|said| said.contains("and forgotten"))
        });
    }

    fn until_all_are_back(&self, Forgotten { lost, leader, excluded, .. }: &Forgotten) {
        (1..=5).filter(|other| other != lost).for_each(|other| self.cut(*lost, other, false));
        self.until("it is a new one", || self.runs(*lost) && self.process_of(*lost) == 6);
        self.order(*leader, Order::Include(*excluded), false).expect("it is excluded");
        self.until("all have everything", || (1..=5).all(|host| self.runs(host) && self.is_complete(host)));
    }
}

/// One that was forgotten reaches only processes that do not lead: they can tell it too.
#[test]
fn who_does_not_lead_tells_who_is_forgotten() {
    let world = World::with(68, 5, GONE);
    let forgotten = forget_a_learner(&world);
    forgotten.known.iter().for_each(|&voter| world.cut(forgotten.lost, voter, false));
    world.until_it_begins_anew(forgotten.lost);
    world.until_all_are_back(&forgotten);
    world.check_quiet();
}

/// One that was forgotten reaches nobody whom it knows as a voter, only somebody else: it asks everybody it knows of as long as nobody who leads answers.
#[test]
fn one_that_hears_no_leader_asks_everybody() {
    let world = World::with(69, 5, GONE);
    let forgotten = forget_a_learner(&world);
    world.cut(forgotten.lost, forgotten.leader, false);
    world.until_it_begins_anew(forgotten.lost);
    world.until_all_are_back(&forgotten);
    world.check_quiet();
}

/// The leader is excluded: it hands over, gives up vote and data, may be stopped for good, and is forgotten. Commits go on all the time.
#[test]
fn an_excluded_process_is_drained() {
    let world = World::with(62, 4, GONE);
    world.grow_to(4);
    // So that the fourth one has said that it has everything.
    world.run(2 * SECOND);
    let leader = world.leader();
    let other = (1..=4).find(|&host| host != leader).expect("there are four");
    let of_leader = || world.status(other)["cluster"]["processes"][leader.to_string()].clone();
    let checked = world.order(other, Order::Exclude(leader), true).expect("it may be excluded");
    assert!(checked.changes && of_leader()["excluded"] == false, "{checked:?}");
    world.order(other, Order::Exclude(leader), false).expect("it may be excluded");
    world.until("it is drained", || of_leader()["excluded"] == true && of_leader()["roles"] == serde_json::json!([]));
    let again = world.order(other, Order::Exclude(leader), false).expect("it is so already");
    assert!(!again.changes, "{again:?}");
    let before = world.committed();
    world.run(SECOND);
    assert!(world.committed() > before);
    world.remove(leader);
    world.until("it is forgotten", || of_leader().is_null());
    world.until_whole(3);
    world.check_quiet();
}

/// A process that was excluded is taken back, with nothing, and copies everything.
#[test]
fn an_excluded_process_is_taken_back() {
    let world = World::with(63, 4, GONE);
    world.grow_to(4);
    world.order(1, Order::Exclude(4), false).expect("it has no vote");
    world.until("it is drained", || !world.is_complete(4));
    world.run(2 * GONE);
    assert_eq!(world.status(1)["cluster"]["processes"]["4"]["state"], "up", "it is there, and holds nothing");
    world.order(4, Order::Include(4), false).expect("it is excluded");
    world.until("it has everything", || world.is_complete(4));
    assert_eq!(world.process_of(4), 4);
    world.check_quiet();
}

/// The number of replicas is changed under load, up and down, from one to as many as there can be: each shard's team follows, and commits go on all the time.
#[test]
fn teams_follow_what_is_configured() {
    let world = World::of(67, 5);
    world.set_shards(ShardOptions { split_load: 2_000, ..ShardOptions::default() });
    world.grow_to(5);
    for replicas in [1, 3, 5, 2] {
        let before = world.committed();
        world.order(1, Order::Replication(replicas), false).expect("there are processes enough");
        world.until("each shard has so many replicas", || {
            let shards = world.node(world.leader()).expect("it leads").shard_standings();
            shards.iter().all(|shard| !shard.is_moving && shard.team.len() as u64 == replicas)
        });
        world.run(SECOND);
        assert!(world.committed() > before, "with {replicas} replicas");
    }
    world.check_quiet();
}

/// What would cost data or a vote is refused, with the reason; what is written shows.
#[test]
fn orders_are_refused_with_the_reason() {
    let world = World::new(64);
    world.grow_to(3);
    let refused = world.order(1, Order::Exclude(2), false).expect_err("nobody could take its vote");
    assert_eq!(refused.code(), Code::ClientInvalidOperation);
    assert!(refused.to_string().contains("could take its vote"), "{refused}");
    world.order(3, Order::Replication(2), false).expect("two are enough");
    world.until("it is written", || world.status(2)["cluster"]["replication"] == 2);
    let to = (1..=3).find(|&host| host != world.leader()).expect("there are three");
    world.order(1, Order::Transfer(Some(to)), false).expect("it can lead");
    world.until("it leads", || world.has_leader() && world.leader() == to);
    world.check_quiet();
}

/// A voter whose disk went back would elect a process that lacks acknowledged commits. It is recognised by a peer that only heard of them, takes no part, and
/// becomes a new process.
#[test]
fn a_disk_that_went_back_does_not_vote() {
    let world = World::new(65);
    world.grow_to(3);
    let leader = world.leader();
    let others: Vec<_> = (1..=3).filter(|&host| host != leader).collect();
    let (back, behind) = (others[0], others[1]);
    world.run(3 * SECOND);
    let earlier = world.disk(back);
    world.cut(leader, behind, true);
    let before = world.committed();
    world.run(12 * SECOND);
    assert!(world.committed() > before, "two of three commit");
    world.kill(leader, CrashMode::NothingLost);
    world.kill(back, CrashMode::NothingLost);
    world.put_disk(back, earlier);
    world.cut(leader, behind, false);
    let before = world.committed();
    world.start(back);
    world.run(10 * SECOND);
    assert_eq!(world.committed(), before, "neither of the two has everything, so nobody decides");
    world.start(leader);
    world.until_whole(3);
    assert_eq!(world.process_of(back), 4);
    assert!(world.committed() > before);
    world.check_quiet();
}

/// A process with an earlier disk, while all others are there, is a new one within seconds.
#[test]
fn a_disk_that_went_back_is_recognised() {
    let world = World::new(66);
    world.grow_to(3);
    let follower = (1..=3).find(|&host| host != world.leader()).expect("there are three");
    let earlier = world.disk(follower);
    world.run(10 * SECOND);
    world.kill(follower, CrashMode::NothingLost);
    world.put_disk(follower, earlier);
    world.start(follower);
    world.until("it is a new one", || world.runs(follower) && world.process_of(follower) == 4);
    assert!(world.notices(follower).iter().any(|said| said.contains("went back")));
    world.until_whole(3);
    world.check_quiet();
}

/// A process that comes back under another address is sent the log there.
#[test]
fn a_process_that_moved_is_found() {
    let world = World::new(67);
    world.grow_to(3);
    let follower = (1..=3).find(|&host| host != world.leader()).expect("there are three");
    world.kill(follower, CrashMode::UnsyncedLost);
    let elsewhere = world.move_elsewhere(follower);
    world.start(follower);
    world.until("the log knows", || world.has_leader() && world.log_address(follower) == Some(elsewhere.clone()));
    world.until_whole(3);
    world.check_quiet();
}
