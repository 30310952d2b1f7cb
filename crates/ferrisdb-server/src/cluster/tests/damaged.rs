//! Files of a process that are not what was written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_storage::Env;
use ferrisdb_storage::fs::FileSystem;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};
use ferrisdb_storage::wal::{inspect_segment, synced_records};

use super::super::ClusterNode;
use super::super::orders::Order;
use super::SECOND;
use super::world::World;
use crate::log::replicated::ProcessId;

/// What befalls a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// A bit of a record's payload.
    Payload,
    /// A bit of a record's header.
    Header,
    /// A bit of the header of a segment.
    Segment,
    /// A segment is not there.
    Missing,
}

const RAFT: &str = "/p/raft";

/// Damages a log where it was synced. Returns the bit that was flipped, if it was one.
fn damage(disk: &SimFileSystem, what: Damage) -> Option<(PathBuf, u64)> {
    let fs: Arc<dyn FileSystem> = Arc::new(disk.clone());
    let segments = disk.list(Path::new(RAFT)).expect("there is a log");
    let segment = segments.iter().find_map(|name| inspect_segment(disk, &Path::new(RAFT).join(name)).ok());
    let identity = segment.expect("one of them is in use").header().identity;
    let records = synced_records(&fs, Path::new(RAFT), identity).expect("it is whole");
    let (path, bytes) = records[records.len() / 2].clone();
    let offset = match what {
        Damage::Payload => bytes.end - 1,
        Damage::Header => bytes.start + 4,
        Damage::Segment => 8,
        Damage::Missing => {
            disk.remove_file(&path).expect("it is there");
            return None;
        }
    };
    disk.flip_bit(&path, offset, 3);
    Some((path, offset))
}

/// In the worlds in which tables are damaged, a process that is silent for so long is gone, and so is storage that is damaged.
const GONE: Duration = Duration::from_secs(5);

/// Damages the first block of each table.
fn damage_tables(disk: &SimFileSystem) {
    let tables = disk
        .files()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.extension().is_some_and(|name| name == "sst"));
    let mut damaged = 0;
    for path in tables {
        disk.flip_bit(&path, 10, 2);
        damaged += 1;
    }
    assert!(damaged > 0, "there are tables");
}

impl World {
    fn follower(&self) -> ProcessId {
        (1..=3).find(|&host| host != self.leader()).expect("there are three")
    }

    /// A process is killed, and its log damaged.
    fn kill_and_damage(&self, host: ProcessId, what: Damage) -> Option<(PathBuf, u64)> {
        self.kill(host, CrashMode::NothingLost);
        damage(&self.present_disk(host), what)
    }
}

/// A process whose log is damaged where it was synced does not know what it voted: it comes back as a new one, by itself, whichever it was and whatever is damaged. Nothing that was acknowledged
/// is lost, and what there was of the log is set aside.
#[test]
fn a_process_with_a_damaged_log_becomes_a_new_one() {
    let all = [
        (300, true, Damage::Payload),
        (301, false, Damage::Payload),
        (302, true, Damage::Header),
        (303, false, Damage::Segment),
        (304, false, Damage::Missing),
    ];
    for (seed, of_leader, what) in all {
        let world = World::new(seed);
        world.grow_to(3);
        world.run(2 * SECOND);
        let host = if of_leader { world.leader() } else { world.follower() };
        world.kill_and_damage(host, what);
        world.run(SECOND);
        world.start(host);
        world.until("it is a new one", || world.runs(host) && world.process_of(host) == 4);
        // Without its only segment the log is a new one to itself, and a disk that went back to its peers.
        if what != Damage::Missing {
            let notices = world.notices(host).join("; ");
            assert!(notices.contains("/p/raft") && notices.contains("process 4"), "{what:?}: {notices}");
            let aside = world.present_disk(host).list(Path::new("/p/raft.damaged")).expect("it was set aside");
            assert!(!aside.is_empty(), "{what:?}");
        }
        world.until_whole(3);
        world.check_quiet();
    }
}

/// A storage server that does not open because of damage is lost with its process, which comes back as a new one.
#[test]
fn a_process_with_a_damaged_manifest_becomes_a_new_one() {
    let world = World::new(305);
    world.grow_to(3);
    world.run(11 * SECOND);
    let host = world.follower();
    world.kill(host, CrashMode::NothingLost);
    world.present_disk(host).flip_bit("/p/storage/CURRENT", 3, 1);
    world.start(host);
    world.until("it is a new one", || world.runs(host) && world.process_of(host) == 4);
    let notices = world.notices(host).join("; ");
    assert!(notices.contains("/p/storage/CURRENT") && notices.contains("what it held"), "{notices}");
    world.until_whole(3);
    world.check_quiet();
}

/// The power fails on the way, as often as one likes: it is the old one, or nobody yet, or the new one, and in the end a whole one.
#[test]
fn it_becomes_a_new_one_through_power_cuts() {
    let world = World::new(310);
    world.grow_to(3);
    for (cut, millis) in [5, 20, 60, 150, 400, 1_000].into_iter().enumerate() {
        let host = world.follower();
        let before = world.process_of(host);
        world.run(SECOND);
        world.kill_and_damage(host, Damage::Payload);
        world.start(host);
        for again in 0..3 {
            world.run(SECOND / 1_000 * (millis + 7 * again));
            world.kill(host, CrashMode::RandomSubset { seed: cut as u64 });
            world.start(host);
        }
        world.until("it is a new one", || world.runs(host) && world.process_of(host) != before);
        world.until_whole(3);
    }
    world.check_quiet();
}

/// The only voter of two: the other one cannot go on without it, so it refuses to start, and throws nothing away. The bit mended, it is what it was.
#[test]
fn the_only_voter_does_not_become_another() {
    let world = World::of(320, 2);
    world.grow_to(1);
    world.start(2);
    world.until("both have everything", || world.is_complete(1) && world.is_complete(2));
    world.be_quiet();
    let bit = world.kill_and_damage(1, Damage::Payload);
    world.start(1);
    world.run(20 * SECOND);
    assert!(!world.runs(1), "it is not there");
    world.kill(1, CrashMode::UnsyncedLost);
    let (path, offset) = bit.expect("one was flipped");
    world.present_disk(1).flip_bit(&path, offset, 3);
    world.start(1);
    world.until("it is there", || world.runs(1) && world.has_leader());
    assert_eq!(world.process_of(1), 1);
    world.check_quiet();
}

/// Alone it says which file is damaged where, and what to do.
#[test]
fn alone_it_refuses() {
    let world = World::new(330);
    world.grow_to(1);
    world.run(SECOND);
    world.be_quiet();
    let (path, offset) = world.kill_and_damage(1, Damage::Payload).expect("one was flipped");
    world.start(1);
    world.run(10 * SECOND);
    let refused = world.take_failures().join("; ");
    assert!(refused.contains("corruption in /p/raft/") && refused.contains("at offset"), "{refused}");
    assert!(refused.contains("Nothing was changed") && refused.contains("restore a backup"), "{refused}");
    world.kill(1, CrashMode::UnsyncedLost);
    world.present_disk(1).flip_bit(&path, offset, 3);
    world.start(1);
    world.until("it is there", || world.runs(1) && world.has_leader());
    world.check_quiet();
}

/// One that alone holds keys stays who it is, and refuses to start, rather than that they are lost with it.
#[test]
fn the_last_holder_does_not_become_another() {
    let world = World::new(340);
    world.grow_to(3);
    world.order(1, Order::Replication(1), false).expect("one is enough");
    world.until("there is one replica", || world.status(1)["cluster"]["shards"]["replicas_least"] == 1);
    world.be_quiet();
    let holds = |host: &ProcessId| {
        let process = &world.status(1)["cluster"]["processes"][host.to_string()];
        process["shards_held_alone"].as_u64() > Some(0)
    };
    let host = (1..=3).find(holds).expect("somebody holds the data");
    let (path, offset) = world.kill_and_damage(host, Damage::Payload).expect("one was flipped");
    world.start(host);
    world.run(20 * SECOND);
    assert!(!world.runs(host) && world.has_leader(), "the others go on without it");
    world.kill(host, CrashMode::UnsyncedLost);
    world.present_disk(host).flip_bit(&path, offset, 3);
    world.start(host);
    world.until("it is there", || world.runs(host) && world.is_complete(host));
    assert_eq!(world.process_of(host), host);
    world.check_quiet();
}

/// A damaged list of peers is set aside, and the process is who it was.
#[test]
fn a_damaged_list_of_peers_is_set_aside() {
    let world = World::new(350);
    world.grow_to(3);
    world.run(6 * SECOND);
    let host = world.follower();
    world.kill(host, CrashMode::NothingLost);
    world.present_disk(host).flip_bit("/p/peers", 20, 1);
    world.start(host);
    world.until("it is there", || world.runs(host));
    assert_eq!(world.process_of(host), host);
    assert!(world.notices(host).join("; ").contains("/p/peers.damaged"));
    assert!(world.present_disk(host).exists(Path::new("/p/peers.damaged")).expect("it answers"));
    world.until_whole(3);
    world.check_quiet();
}

/// Tables of one process are damaged: whatever it cannot read others answer, so clients notice nothing; everybody is told; and after a while its storage is given up and comes again from the
/// others by itself. It keeps its number and its vote.
#[test]
fn a_storage_server_with_damaged_tables_begins_anew() {
    for (seed, of_leader) in [(360, true), (361, false)] {
        let world = World::with(seed, 3, GONE);
        world.grow_to(3);
        world.run(11 * SECOND);
        let host = if of_leader { world.leader() } else { world.follower() };
        let witness = 1 + host % 3;
        if of_leader {
            damage_tables(&world.present_disk(host));
        } else {
            world.kill(host, CrashMode::NothingLost);
            damage_tables(&world.present_disk(host));
            world.start(host);
        }
        world.until("it is told", || {
            world.runs(host) && world.says(host, "storage_damaged") && world.says(witness, "storage_damaged")
        });
        let process = &world.status(witness)["cluster"]["processes"][host.to_string()];
        assert!(process["is_broken"] == true && process["is_damaged"] == true, "seed {seed}: {process}");
        let notices = world.notices(host).join("; ");
        assert!(notices.contains("corruption in /p/storage/") && notices.contains(".sst"), "seed {seed}: {notices}");
        let before = world.committed();
        world.run(2 * SECOND);
        assert!(world.committed() > before + 20, "seed {seed}: it holds up nobody");
        world.until("it begins anew", || world.notices(host).join("; ").contains("copies everything anew"));
        world.until("nothing is wrong any more", || {
            world.is_complete(host) && !world.says(host, "storage_damaged") && !world.says(witness, "storage_damaged")
        });
        assert_eq!(world.process_of(host), host, "seed {seed}");
        world.until_whole(3);
        world.check_quiet();
    }
}

/// Damage that only a read has met counts as well, while the engine works: it is told, and the storage begins anew.
#[test]
fn damage_that_a_read_meets_counts() {
    let world = World::with(365, 3, GONE);
    world.grow_to(3);
    world.run(11 * SECOND);
    world.be_quiet();
    // Until all is in tables, and nothing has to be read from memory.
    world.run(12 * SECOND);
    let host = world.follower();
    world.kill(host, CrashMode::NothingLost);
    damage_tables(&world.present_disk(host));
    world.start(host);
    world.until("it is there", || world.runs(host) && world.has_leader());
    let database = world.client_of(host);
    world.spawn_outside(Box::pin(async move {
        let transaction = database.create_transaction();
        for account in 0..8 {
            transaction.get(format!("account/{account}")).await.expect("others have it");
        }
    }));
    world.until("it is told", || world.says(host, "storage_damaged"));
    let node = world.node(host).expect("it runs");
    let is_read = node.storage().damage().is_some() && node.failure().is_none();
    drop(node);
    assert!(is_read, "no compaction has met it");
    let witness = 1 + host % 3;
    let process = || world.status(witness)["cluster"]["processes"][host.to_string()].clone();
    world.until("the others know", || process()["is_broken"] == true && process()["is_damaged"] == true);
    world.until("it begins anew", || world.notices(host).join("; ").contains("copies everything anew"));
    world.until_whole(3);
    world.check_quiet();
}

/// Two of three at once: one after the other begins anew, as long as a third has everything.
#[test]
fn two_with_damaged_tables_begin_anew() {
    let world = World::with(370, 3, GONE);
    world.grow_to(3);
    world.run(11 * SECOND);
    let well = world.leader();
    for host in (1..=3).filter(|&host| host != well) {
        damage_tables(&world.present_disk(host));
    }
    world.until("both are told", || {
        (1..=3).filter(|&host| host != well).all(|host| world.says(host, "storage_damaged"))
    });
    world.until("nothing is wrong any more", || (1..=3).all(|host| !world.says(host, "storage_damaged")));
    world.until_whole(3);
    world.check_quiet();
}

/// Nobody takes the tag of the last holder, however damaged: part of what it has is more than nothing.
#[test]
fn the_last_holder_keeps_its_damaged_tables() {
    let world = World::with(380, 1, GONE);
    world.grow_to(1);
    world.run(11 * SECOND);
    damage_tables(&world.present_disk(1));
    world.until("it is told", || world.says(1, "storage_damaged"));
    world.run(3 * GONE);
    let status = world.status(1);
    let roles = status["cluster"]["processes"]["1"]["roles"].clone();
    assert!(roles.as_array().expect("a list").iter().any(|role| role == "storage"), "{roles}");
    let messages = status["cluster"]["messages"].to_string();
    assert!(messages.contains("Nobody else has 1 of its shards"), "{messages}");
}

/// `verify` says who a process is and what its log came to, finds nothing wrong with what a kill leaves, and names every file that is damaged.
#[test]
fn verify_finds_what_is_damaged() {
    let world = World::new(390);
    world.grow_to(3);
    world.run(6 * SECOND);
    let host = world.follower();
    world.kill(host, CrashMode::RandomSubset { seed: 1 });
    let verify = || {
        let env = Env::sim(world.present_disk(host).fork_crashed(CrashMode::NothingLost));
        ClusterNode::verify(&env, Path::new("/p")).expect("it can be read")
    };
    let sound = verify();
    assert_eq!((sound.process, sound.problems, sound.peers > 0), (host, Vec::<String>::new(), true));
    let log = sound.log.expect("it has one");
    assert!(log.problems.is_empty() && log.voted > Some(0) && log.committed <= log.last && log.records > 10, "{log:?}");
    let (path, offset) = damage(&world.present_disk(host), Damage::Payload).expect("a bit");
    let problems = verify().log.expect("it has one").problems.join("; ");
    assert!(problems.contains(path.to_str().expect("it is text")), "{problems} and not byte {offset} of {path:?}");
    world.present_disk(host).flip_bit("/p/peers", 20, 1);
    world.present_disk(host).flip_bit("/p/process", 30, 1);
    let problems = verify().problems.join("; ");
    assert!(problems.contains("/p/peers") && problems.contains("/p/process"), "{problems}");
}
