//! Whole processes of a cluster in a simulated world: they join, die, come back, and are cut off, while clients transfer between accounts.
//!
//! `FERRISDB_SIM_SEED=7 cargo test -p ferrisdb-server cluster::tests` replays one seed; `FERRISDB_SIM_SEEDS=100` tries so many.

mod broken;
mod company;
mod damaged;
mod full_disk;
mod membership;
mod rate;
mod reads;
mod slow;
mod throttle;
mod world;

use std::time::Duration;

use ferrisdb_client::{Database, SnapshotOptions, Transaction};
use ferrisdb_core::{Code, KeyRange};
use ferrisdb_rpc::api::{BeginRequest, GetRequest, Priority};
use ferrisdb_storage::fs::sim::CrashMode;

use super::orders::Order;

fn seeds() -> (u64, u64) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    (number("FERRISDB_SIM_SEED", 1), number("FERRISDB_SIM_SEEDS", 3))
}

use super::ShardOptions;

const SECOND: Duration = Duration::from_secs(1);

/// A founder and two that join become a cluster of three voters and three storage servers.
#[test]
fn three_processes_become_a_cluster() {
    let world = world::World::new(1);
    world.grow_to(3);
    world.check_quiet();
    assert!(world.committed() > 0);
}

/// Any one of three may go: no acknowledged commit is lost, and commits go on.
#[test]
fn any_one_of_three_may_be_lost() {
    for lost in 1..=3 {
        let world = world::World::new(10 + lost);
        world.grow_to(3);
        let before = world.committed();
        world.kill(lost, CrashMode::UnsyncedLost);
        world.run(8 * SECOND);
        assert!(world.committed() > before, "commits go on without process {lost}");
        world.start(lost);
        world.run(5 * SECOND);
        world.check_quiet();
    }
}

/// All of them lose power at once.
#[test]
fn a_power_cut_of_all_loses_nothing() {
    let world = world::World::new(20);
    world.grow_to(3);
    for seed in 0..3 {
        for process in 1..=3 {
            world.kill(process, CrashMode::RandomSubset { seed });
        }
        world.run(SECOND);
        (1..=3).for_each(|process| world.start(process));
        let before = world.committed();
        world.run(8 * SECOND);
        assert!(world.committed() > before, "after power cut {seed}");
    }
    world.check_quiet();
}

/// The lock is the log's: whoever leads next keeps it, and so do all after a power cut.
#[test]
fn a_lock_outlives_its_leader() {
    const ID: [u8; 16] = [5; 16];
    let world = world::World::new(30);
    world.grow_to(3);
    world.ask(|db| async move { db.lock(ID).await }).expect("it is not locked");
    let before = world.committed();
    let leader = world.leader();
    world.kill(leader, CrashMode::UnsyncedLost);
    world.run(5 * SECOND);
    assert_eq!(world.ask(|db| async move { db.locked_by().await }), Ok(Some(ID)));
    world.start(leader);
    world.run(SECOND);
    for process in 1..=3 {
        world.kill(process, CrashMode::UnsyncedLost);
    }
    (1..=3).for_each(|process| world.start(process));
    world.run(5 * SECOND);
    assert_eq!(world.committed(), before, "nobody of those who do not know has committed");
    world.ask(|db| async move { db.unlock(ID).await }).expect("it is ours");
    world.run(5 * SECOND);
    assert!(world.committed() > before, "commits go on after the unlock");
    world.check_quiet();
}

/// What could be read when a leader dies can be read when the next one leads: its epoch begins with a jump of versions, which makes nothing old.
#[test]
fn what_was_readable_stays_readable_in_the_next_epoch() {
    let (first, count) = seeds();
    for seed in first..first + count {
        let world = world::World::new(80 + seed);
        world.grow_to(3);
        world.be_quiet();
        let version =
            world.ask(|db| async move { db.create_transaction().get_read_version().await }).expect("it is told");
        let before = world.epochs();
        let leader = world.leader();
        world.kill(leader, CrashMode::UnsyncedLost);
        world.until("another leads", || world.has_leader());
        assert!(world.epochs() > before, "another epoch has begun");
        let read = world.ask(move |db| async move {
            let transaction = db.create_transaction();
            transaction.set_read_version(version.get() as i64);
            transaction.get("account/1").await
        });
        assert!(read.is_ok(), "seed {seed}: {read:?} at {version}");
        world.start(leader);
        world.until_whole(3);
        world.check_quiet();
    }
}

/// A snapshot that was taken before other storage servers began stays readable by whoever is asked: those that began later have not its version, and do not say that nobody has.
#[test]
fn a_snapshot_is_readable_through_those_that_began_later() {
    let world = world::World::new(95);
    world.grow_to(1);
    let snapshot = world.ask(|db| async move { db.snapshot(SnapshotOptions::default()).await }).expect("it is taken");
    let version = snapshot.version().get() as i64;
    for process in 2..=3 {
        world.start(process);
        world.run(SECOND);
    }
    world.until_whole(3);
    // Beyond what is readable without the lease.
    world.run(10 * SECOND);
    for process in 1..=3 {
        let client = world.client_of(process);
        let read = async move {
            let transaction = client.create_transaction();
            transaction.set_read_version(version);
            let one = transaction.get("account/1").await?;
            let all = transaction.get_range(KeyRange::new(&b"account/"[..], &b"account0"[..])).await?;
            Ok::<_, ferrisdb_core::Error>((one, all.rows))
        };
        let read = world.finish(read);
        assert!(read.is_ok(), "through process {process}: {read:?}");
    }
    drop(snapshot);
    world.check_quiet();
}

/// A process that has just joined knows nothing of the log yet, and so of nobody who has a version. It says that it is behind, and not that a leased version is gone; once it knows who has it,
/// it answers. (A database that was alone, is joined, and goes down before the others have heard more than that they are taken in, looks like that to their clients.)
#[test]
fn who_has_just_joined_does_not_say_that_a_leased_version_is_gone() {
    let world = world::World::new(96);
    world.grow_to(1);
    let snapshot = world.ask(|db| async move { db.snapshot(SnapshotOptions::default()).await }).expect("it is taken");
    let version = snapshot.version();
    // Beyond what is readable without the lease.
    world.run(10 * SECOND);
    world.start(2);
    while world.node(2).is_none() {
        world.run(Duration::from_millis(1));
    }
    world.cut(1, 2, true);
    let process = world.node(2).expect("it lives");
    let read = || process.endpoint().get(GetRequest { key: "account/1".into(), version });
    let refused = world.finish(read()).expect_err("nobody who has it can be reached");
    let last = process.life.shared().log.with_state(|state| state.last());
    assert!(last < version, "it has not heard of the version: {last}, {version}");
    assert_eq!(refused.code(), Code::ProcessBehind, "{refused}");
    world.cut(1, 2, false);
    let read = world.finish(read());
    assert!(read.is_ok(), "{read:?}");
    world.start(3);
    world.until_whole(3);
    drop(snapshot);
    world.check_quiet();
}

/// Who still asks a coordinator whose epoch is over, because it was held up, hears nothing that is not so any more: also if the same process leads again.
#[test]
fn a_coordinator_of_an_earlier_epoch_tells_no_read_version() {
    let (first, count) = seeds();
    for seed in first..first + count {
        let world = world::World::new(90 + seed);
        world.grow_to(3);
        let leader = world.leader();
        let other = 1 + leader % 3;
        let earlier = world.coordinator(leader);
        for to in [other, leader] {
            world.order(leader, Order::Transfer(Some(to)), false).expect("it can lead");
            world.until("it leads", || world.has_leader() && world.leader() == to);
            world.run(SECOND);
        }
        let acknowledged = world.acknowledged();
        let told = world
            .finish(async move { earlier.begin(BeginRequest { transactions: 1, priority: Priority::Default }).await });
        let is_right = told.as_ref().map_or(true, |begun| begun.version >= acknowledged);
        assert!(is_right, "seed {seed}: {told:?}, and {acknowledged} was acknowledged before");
        world.check_quiet();
    }
}

/// A leader that closes hands over: nobody waits for an election.
#[test]
fn a_leader_that_closes_hands_over() {
    for seed in 30..34 {
        let world = world::World::new(seed);
        world.grow_to(3);
        let leader = world.leader();
        world.close(leader);
        assert!(
            world.leading().is_some_and(|leads| leads != leader),
            "seed {seed}: another leads, without an election"
        );
        // Clients that were refused meanwhile come again after a second at most.
        let before = world.committed();
        world.run(Duration::from_millis(1_500));
        assert!(world.committed() > before, "seed {seed}: clients commit");
        world.start(leader);
        world.run(3 * SECOND);
        world.check_quiet();
    }
}

/// Whoever asks through a process that is closing hears what the coordinator said if that is that nobody knows, and not that nothing happened.
#[test]
fn a_closing_process_does_not_make_the_unknown_undone() {
    let world = world::World::new(50);
    world.grow_to(1);
    assert_eq!(world.told_while_closing(1, Code::CommitUnknownResult), Code::CommitUnknownResult);
    assert_eq!(world.told_while_closing(1, Code::ProcessBehind), Code::ProcessBehind);
}

/// Six shards, each at one process only: ranges, selectors and watches that go over their borders are answered as if there were one.
#[test]
fn shards_read_like_one() {
    let world = world::World::new(60);
    world.grow_to(3);
    world.reads_across_shards();
}

/// A few accounts that are written all the time are split by their load, though they are a few bytes; when it is calm they become one shard again. What is hot, and how fast moves may be,
/// everybody hears from the leader.
#[test]
fn load_splits_what_is_small() {
    let world = world::World::new(65);
    let shards = ShardOptions {
        split_load: 2_000,
        merge_after: 20 * SECOND,
        all_moves_bytes_per_second: 3_000,
        ..ShardOptions::default()
    };
    world.set_shards(shards);
    world.grow_to(3);
    let shards = || world.node(2).expect("it lives").life.shared().shards().expect("readable").len();
    world.run(40 * SECOND);
    let busy = shards();
    assert!(busy > 2, "{busy} shards");
    for process in 1..=3 {
        let shared = world.node(process).expect("it lives").life.shared();
        assert_eq!(shared.fetch_rate.load(std::sync::atomic::Ordering::Relaxed), 3_000, "process {process}");
    }
    let status = world.ask(|db| async move { db.status().await }).expect("it is told");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let cluster = &status["cluster"];
    assert_eq!((&cluster["moves"]["shards_moving"], &cluster["moves"]["bytes_to_go"]), (&0.into(), &0.into()));
    for process in 1..=3 {
        let of = &cluster["processes"][process.to_string()];
        assert!(of["load_bytes_per_second"].as_u64().is_some_and(|load| load > 2_000), "{of}");
        assert!(of["score"].as_u64().is_some_and(|score| score > 1_000), "{of}");
    }
    world.be_quiet();
    world.run(15 * SECOND);
    assert!(shards() >= busy, "it was busy a moment ago");
    world.run(120 * SECOND);
    assert_eq!(shards(), 1);
    world.check_quiet();
}

/// One key that has nearly all of the load is named, and nothing is split.
#[test]
fn a_hot_key_is_named() {
    let world = world::World::new(66);
    world.set_shards(ShardOptions { split_load: 2_000, ..ShardOptions::default() });
    world.start(1);
    world.run(2 * SECOND);
    for _ in 0..6 {
        let write = |db: Database| async move {
            for number in 0..300 {
                let write = async |tx: Transaction| {
                    tx.set(b"the counter", format!("{number}").as_bytes());
                    Ok(())
                };
                db.run(write).await?;
            }
            Ok(())
        };
        world.ask(write).expect("it writes");
    }
    let status = world.ask(|db| async move { db.status().await }).expect("it is told");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["cluster"]["hot_keys"][0]["key"], "the counter", "{status}");
    let messages = status["cluster"]["messages"].as_array().expect("a list");
    assert!(messages.iter().any(|message| message["name"] == "hot_key"), "{messages:?}");
    assert_eq!(status["cluster"]["shards"]["count"], 1);
}

/// A cluster of an older FerrisDB has no map of shards: it gets one, and loses nothing by it.
#[test]
fn a_cluster_without_a_map_gets_one() {
    let world = world::World::of(70, 3);
    world.grow_to(1);
    world.forget_map();
    world.kill(1, CrashMode::UnsyncedLost);
    world.start(1);
    world.run(5 * SECOND);
    let before = world.committed();
    for process in 2..=3 {
        world.start(process);
        world.run(5 * SECOND);
    }
    assert!(world.committed() > before);
    world.check_quiet();
}

/// Seconds full of faults, for some seeds; then quiet, and everything is checked.
#[test]
#[expect(clippy::print_stdout, reason = "figures of a run")]
fn a_cluster_keeps_its_promises_under_faults() {
    let (first, count) = seeds();
    for seed in first..first + count {
        let outcome = world::live(seed, 3, false, 20 * SECOND);
        assert!(
            outcome.failures.is_empty(),
            "seed {seed}: {:#?}\nreplay: FERRISDB_SIM_SEED={seed} FERRISDB_SIM_SEEDS=1 cargo test -p ferrisdb-server cluster::tests::a_cluster",
            outcome.failures
        );
        let (lost, back) = outcome.losses;
        println!(
            "seed {seed}: {} commits, {} epochs, {lost} lost for good, {back} went back, {} questions twice, {} late, trace {:016x}",
            outcome.committed, outcome.epochs, outcome.counts.twice, outcome.counts.late, outcome.trace
        );
    }
}

/// The same while shards are split, merged and moved all the time, for no reason, among three to five processes.
#[test]
#[expect(clippy::print_stdout, reason = "figures of a run")]
fn shards_move_under_faults() {
    let (first, count) = seeds();
    for seed in first..first + count {
        let outcome = world::live(seed, 3 + seed % 3, true, 20 * SECOND);
        assert!(
            outcome.failures.is_empty(),
            "seed {seed}: {:#?}\nreplay: FERRISDB_SIM_SEED={seed} FERRISDB_SIM_SEEDS=1 cargo test -p ferrisdb-server cluster::tests::shards_move",
            outcome.failures
        );
        println!(
            "seed {seed}: {} commits, {} epochs, {} moves, {} questions twice, {} late, trace {:016x}",
            outcome.committed, outcome.epochs, outcome.moves, outcome.counts.twice, outcome.counts.late, outcome.trace
        );
    }
}

/// The same seed gives the same life, to the last message.
#[test]
fn a_seed_decides_everything() {
    let once = world::live(77, 3, true, 5 * SECOND);
    assert_eq!(once, world::live(77, 3, true, 5 * SECOND));
    assert_ne!(once.trace, world::live(78, 3, true, 5 * SECOND).trace);
}
