//! More load than the database can take: what limits it is named, the queues stay within their bounds, and afterwards everything is as before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ferrisdb_core::{Code, Error, Random, SplitMix64};

use super::SECOND;
use super::world::World;
use crate::coordinator::rate::RateOptions;
use crate::log::replicated::ProcessId;

/// A transaction writes so much.
const VALUE_BYTES: usize = 1_000;
/// Clients that do nothing else.
const CLIENTS: u64 = 60;

/// So small that a slow disk reaches them in seconds, and larger than what comes in the second that a beat takes. The log has to hold what storage has in memory and what it is behind: less than where its own limit begins.
fn marks() -> RateOptions {
    RateOptions {
        backlog_low_bytes: 1 << 20,
        backlog_high_bytes: 4 << 20,
        log_low_bytes: 8 << 20,
        log_high_bytes: 16 << 20,
        free_low_bytes: 0,
        free_least_bytes: 0,
        ..RateOptions::default()
    }
}

/// So few that at ten transactions a second each has its turn before a question counts as lost in this world, three seconds.
const FEW: u64 = 20;
/// A step of a flush or a compaction takes so long while the disk is slow.
const STEP: Duration = Duration::from_millis(100);
/// What is begun before the limit is known, and what is under way, beyond a mark: a beat's worth of the full load.
const SLACK_BYTES: u64 = 1 << 20;

/// Clients that write as fast as they are let, until told to stop.
struct Writers {
    is_over: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
}

impl Writers {
    fn start(world: &Arc<World>, at: ProcessId, clients: u64) -> Writers {
        let writers = Writers { is_over: Arc::default(), written: Arc::default() };
        for client in 0..clients {
            let (is_over, written) = (Arc::clone(&writers.is_over), Arc::clone(&writers.written));
            let (database, mut random) = (world.client_of(at), SplitMix64::new(client));
            world.spawn_outside(Box::pin(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let key = format!("load/{:03}", random.below(100));
                    let key = key.as_str();
                    let body = async |tx: ferrisdb_client::Transaction| {
                        tx.get_read_version().await?;
                        tx.set(key, vec![b'v'; VALUE_BYTES]);
                        Ok::<_, Error>(())
                    };
                    match database.run(body).await {
                        Ok(()) => drop(written.fetch_add(VALUE_BYTES as u64, Ordering::SeqCst)),
                        Err(error) if error.code() == Code::ConnectionFailed => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }));
        }
        writers
    }

    fn stop(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// Bytes a second that are written in the next seconds; `look` is called ten times a second.
    fn rate(&self, world: &World, seconds: u32, mut look: impl FnMut()) -> u64 {
        let before = self.written.load(Ordering::SeqCst);
        for _ in 0..10 * seconds {
            world.run(SECOND / 10);
            look();
        }
        (self.written.load(Ordering::SeqCst) - before) / u64::from(seconds)
    }
}

impl World {
    fn qos(&self, at: ProcessId) -> serde_json::Value {
        self.status(at)["cluster"]["qos"].clone()
    }

    fn limited_by(&self, at: ProcessId) -> String {
        self.qos(at)["performance_limited_by"]["name"].as_str().unwrap_or_default().to_owned()
    }

    /// A disk has space for little more, of much: marks of a small one would be smaller.
    pub(super) fn leave_space(&self, process: ProcessId) {
        let disk = self.present_disk(process);
        disk.write_raw("/filler", &vec![0; 16 << 20]);
        disk.set_capacity(disk.used_bytes() + (400 << 10));
    }

    /// The greatest backlog that a storage server has, and the longest log that a voter keeps, both as they are, not as anybody was told.
    fn queues(&self) -> (u64, u64) {
        let leader = self.coordinator(self.leader()).statistics();
        let nodes = (1..=3).filter_map(|process| self.node(process));
        (leader.lag.backlog_bytes, nodes.map(|node| node.life.shared().log.extent().bytes).max().unwrap_or_default())
    }
}

/// Ten times as much is to be written as the storage servers' disks take, for a minute. What is begun follows what they take; queues stay within their bounds; status says everywhere what limits the
/// database; transactions of who knows that it is urgent go on. When the load falls, everything is as before within ten seconds.
#[test]
fn ten_times_what_storage_takes() {
    let world = World::new(90);
    world.set_rate(marks());
    world.grow_to(3);
    let leader = world.leader();
    let writers = Writers::start(&world, leader, CLIENTS);
    let offered = writers.rate(&world, 5, || {});
    assert_eq!(world.limited_by(leader), "workload");
    (1..=3).for_each(|process| world.slow_tables(process, STEP));
    // Memory takes some of it before anything is felt.
    writers.rate(&world, 10, || {});
    let (mut backlog, mut kept, mut reasons) = (0, 0, std::collections::BTreeSet::new());
    let taken = writers.rate(&world, 60, || {
        let queues = world.queues();
        backlog = queues.0.max(backlog);
        kept = queues.1.max(kept);
        reasons.insert(world.limited_by(leader));
    });
    assert!(offered >= 10 * taken, "{offered} bytes a second are wanted, and {taken} written");
    assert!(backlog <= marks().backlog_high_bytes + SLACK_BYTES, "a backlog of {backlog} bytes");
    assert!(kept <= marks().log_low_bytes + SLACK_BYTES, "a log of {kept} bytes");
    assert!(reasons.iter().all(|reason| reason.starts_with("storage_")), "{reasons:?}");
    (1..=3).for_each(|process| assert_eq!(world.limited_by(process), world.limited_by(leader)));
    let qos = world.qos(leader);
    assert!(qos["performance_limited_by"]["process"].as_u64().is_some_and(|process| process <= 3), "{qos:#}");
    // The load falls, and the disks are what they were.
    writers.stop();
    (1..=3).for_each(|process| world.slow_tables(process, Duration::ZERO));
    world.run(10 * SECOND);
    assert_eq!(world.limited_by(leader), "workload", "{:#}", world.qos(leader));
    assert!(world.queues().0 < marks().backlog_low_bytes);
    let writers = Writers::start(&world, leader, CLIENTS);
    let after = writers.rate(&world, 10, || {});
    writers.stop();
    assert!(after * 10 >= offered * 8, "{after} bytes a second, and {offered} before");
    world.check_quiet();
}

/// A storage server stands still for less than the time after which it is gone, and so nobody knows how far it is behind; but the log keeps everything for it. That limits, and is told.
#[test]
fn the_log_does_not_grow_without_bound() {
    let world = World::new(91);
    world.set_rate(RateOptions { log_low_bytes: 1 << 20, log_high_bytes: 2 << 20, ..marks() });
    world.grow_to(3);
    let leader = world.leader();
    let silent = 1 + leader % 3;
    let writers = Writers::start(&world, leader, FEW);
    let offered = writers.rate(&world, 5, || {});
    assert_eq!(world.limited_by(leader), "workload");
    world.pause(silent, true);
    let (mut kept, mut taken) = (0, 0);
    for _ in 0..4 {
        taken = writers.rate(&world, 10, || kept = world.queues().1.max(kept));
    }
    assert!(kept <= (2 << 20) + SLACK_BYTES, "a log of {kept} bytes");
    assert!(taken * 10 <= offered, "{offered} bytes a second are wanted, and {taken} written");
    assert_eq!(world.limited_by(leader), "log_queue");
    let qos = world.qos(leader)["performance_limited_by"].clone();
    assert_eq!(qos["process"].as_u64(), Some(silent), "{qos:#}");
    assert!(qos["description"].as_str().is_some_and(|text| text.contains(&format!("process {silent}"))), "{qos:#}");
    world.pause(silent, false);
    world.until("nothing is limited", || world.leading().is_some_and(|leader| world.limited_by(leader) == "workload"));
    writers.stop();
    world.check_quiet();
}

/// Limits begin at a megabyte of free space, and at nothing else that there is.
pub(super) fn marks_of_space() -> RateOptions {
    RateOptions { free_low_bytes: 1 << 20, free_least_bytes: 256 << 10, ..marks() }
}

/// Little space on one disk limits nobody, on two of three it does: commits go on with a majority, and not without.
#[test]
fn little_space_for_a_majority_limits() {
    let world = World::new(92);
    world.set_rate(marks_of_space());
    world.grow_to(3);
    let leader = world.leader();
    let (one, other) = (1 + leader % 3, leader);
    world.leave_space(one);
    world.run(3 * SECOND);
    assert_eq!(world.limited_by(leader), "workload", "{:#}", world.qos(leader));
    world.leave_space(other);
    world.run(3 * SECOND);
    let qos = world.qos(leader);
    assert_eq!(world.limited_by(leader), "log_free_space", "{qos:#}");
    let named = qos["performance_limited_by"]["process"].as_u64();
    assert!(named == Some(one) || named == Some(other), "{qos:#}");
    assert!(qos["begins_per_second"].as_f64().is_some(), "{qos:#}");
    let before = world.committed();
    world.run(3 * SECOND);
    assert!(world.committed() > before, "fewer, not none");
    world.present_disk(one).set_capacity(u64::MAX);
    world.until("nothing is limited", || world.limited_by(leader) == "workload");
    world.present_disk(other).set_capacity(u64::MAX);
    world.check_quiet();
}
