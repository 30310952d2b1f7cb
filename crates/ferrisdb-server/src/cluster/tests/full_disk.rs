//! Disks that are full: who asks the process whose disk it is, is answered by the others, and all goes on by itself when there is space.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::{Clock, Code, Error, MutationKind, Result};
use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, Verdict};

use super::SECOND;
use super::world::World;
use crate::log::replicated::ProcessId;
use crate::signal::lock;

/// What a client of a process waits for at most: until the disk is found full, which takes three attempts, the election that its replica asks for, and some rounds.
const BOUND: Duration = Duration::from_millis(1_500);
/// Commits of that client.
const COMMITS: u64 = 10;
/// The share of a value that fills memory for tables, and segments of the log.
const VALUE_BYTES: usize = 2_000;

impl World {
    /// A client of this process and no other reads and writes in transactions, some, one after the other: how long the longest of them took.
    pub(super) fn longest_at(&self, process: ProcessId) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..COMMITS {
            let (told, begun) = (Arc::new(Mutex::new(None)), self.now());
            let (tell, database) = (Arc::clone(&told), self.client_of(process));
            self.spawn_outside(Box::pin(async move {
                let body = async |tx: ferrisdb_client::Transaction| {
                    let before = tx.get(b"marks").await?.map_or(0, |value| value.len());
                    tx.atomic_op(b"marks", b"x", MutationKind::AppendIfFits);
                    tx.set(b"large", vec![b'v'; VALUE_BYTES]);
                    Ok::<_, Error>(before)
                };
                let result: Result<usize> = loop {
                    match database.run(body).await {
                        // The transport of this world does not ask again what only reads.
                        Err(error) if error.code() == Code::ConnectionFailed => {}
                        result => break result,
                    }
                };
                *lock(&tell) = Some(result);
            }));
            self.until("it is answered", || lock(&told).is_some());
            lock(&told).take().expect("it is there").expect("it commits");
            longest = longest.max(self.now() - begun);
        }
        longest
    }

    fn says_full(&self, at: ProcessId) -> bool {
        self.says(at, "disk_full")
    }
}

/// The disk of one of three is full, of the leader or of a follower. Its log takes no more, and it knows that: its clients go on, within a bound, as do all others, whose documents
/// say which disk it is. When there is space it goes on by itself.
#[test]
fn a_full_disk_holds_up_nobody() {
    for (seed, of_leader) in [(70, true), (71, false), (72, true)] {
        let world = World::new(seed);
        world.grow_to(3);
        let leader = world.leader();
        let full = if of_leader { leader } else { 1 + leader % 3 };
        let other = 1 + full % 3;
        let disk = world.present_disk(full);
        disk.set_capacity(0);
        // The log has some space that it took beforehand. All the time, and above all in the moment when that ends, clients of that process wait for no longer than the bound.
        let mut rounds = 0;
        while !world.log_waits(full) || rounds < 10 {
            let longest = world.longest_at(full);
            assert!(longest < BOUND, "seed {seed}: {longest:?} at the process with the full disk, round {rounds}");
            rounds += 1;
            assert!(rounds < 100, "seed {seed}: the disk is full");
        }
        assert_ne!(world.leader(), full, "seed {seed}");
        assert!(world.says_full(full), "seed {seed}");
        assert!(world.longest_at(other) < BOUND, "seed {seed}");
        let before = world.committed();
        world.run(5 * SECOND);
        assert!(world.committed() > before + 20, "seed {seed}");
        assert!(world.says_full(other), "seed {seed}: {:#}", world.status(other)["cluster"]["messages"]);
        disk.set_capacity(u64::MAX);
        world.until("it goes on", || !world.says_full(full) && !world.says_full(other));
        world.check_quiet();
    }
}

/// A process with a full disk closes: what waits for space gives up.
#[test]
fn a_process_with_a_full_disk_closes() {
    let world = World::new(73);
    world.grow_to(3);
    let full = world.leader();
    let disk = world.present_disk(full);
    disk.set_capacity(0);
    while !world.log_waits(full) {
        world.longest_at(full);
    }
    world.close_somehow(full);
    disk.set_capacity(u64::MAX);
    world.start(full);
    world.run(5 * SECOND);
    world.check_quiet();
}

/// No space for tables while the log has some: memory takes what it can, then the storage server stands still. Reads at its process go to others, it slows down nobody, and
/// afterwards it catches up.
#[test]
fn storage_without_space_holds_up_nobody() {
    for (seed, of_leader) in [(74, true), (75, false)] {
        let world = World::new(seed);
        world.grow_to(3);
        let leader = world.leader();
        let full = if of_leader { leader } else { 1 + leader % 3 };
        let disk = world.present_disk(full);
        disk.inject(Injection::new(&[OpKind::Create, OpKind::Write], Verdict::Fail(DiskError::NoSpace)).path(".sst"));
        let stands_still = || world.stands_still(full);
        for _ in 0..200 {
            if stands_still() {
                break;
            }
            world.longest_at(full);
        }
        assert!(stands_still(), "seed {seed}: memory is full");
        let longest = world.longest_at(full);
        assert!(longest < BOUND, "seed {seed}: {longest:?}");
        world.run(2 * SECOND);
        assert!(world.says_full(full) && world.says_full(1 + full % 3), "seed {seed}");
        disk.clear_injections();
        world.until("it goes on", || !world.says_full(full) && !stands_still());
        world.check_quiet();
    }
}

/// The disks of two of three are full, with the leader's or without. Nothing is committed, and whoever commits is told so within a second, with the disks that are meant: it has not happened. Reads go on; the status
/// of all says what to do. When one of them has space, commits go on by themselves, and nothing that was acknowledged is lost.
#[test]
fn without_a_majority_that_has_space_commits_are_refused_and_reads_go_on() {
    for (seed, with_leader) in [(76, true), (77, false)] {
        let world = World::new(seed);
        world.grow_to(3);
        let leader = world.leader();
        let (one, other) = if with_leader { (leader, 1 + leader % 3) } else { (1 + leader % 3, 1 + (leader + 1) % 3) };
        let marks = || world.client_of(leader);
        let commit = |key: &'static str| {
            let (database, begun) = (marks(), world.now());
            let clock = world.clock();
            let (result, at) = world.finish(async move {
                let transaction = database.create_transaction();
                transaction.set(key, "v");
                (transaction.commit().await.map(drop), clock.now())
            });
            (result, at - begun)
        };
        commit("before").0.expect("there is space");
        [one, other].into_iter().for_each(|process| world.present_disk(process).set_capacity(0));
        world.until("it is known", || world.says(leader, "commits_held"));
        let named = format!("voters {}, {} are full", one.min(other), one.max(other));
        for round in 0..20 {
            let (result, took) = commit("held");
            let error = result.expect_err("there is no space");
            assert_eq!(error.code(), Code::CommitProxyMemoryLimitExceeded, "seed {seed}: {error}");
            assert!(error.is_retryable_not_committed() && error.to_string().contains(&named), "seed {seed}: {error}");
            assert!(took < SECOND, "seed {seed}: {took:?}");
            let database = marks();
            let begun = world.now();
            let clock = world.clock();
            let (read, at) = world.finish(async move {
                let transaction = database.create_transaction();
                let read = async { Ok::<_, Error>((transaction.get("before").await?, transaction.get("held").await?)) };
                (read.await, clock.now())
            });
            assert_eq!(read, Ok((Some("v".into()), None)), "seed {seed}, round {round}");
            assert!(at - begun < SECOND, "seed {seed}: {:?}", at - begun);
            world.run(SECOND);
        }
        for process in 1..=3 {
            let messages = world.status(process)["cluster"]["messages"].clone();
            assert!(world.says(process, "commits_held") && messages.to_string().contains(&named), "{messages:#}");
            assert!(!world.log_waits(process), "seed {seed}: nobody is stuck");
        }
        assert_eq!(world.leader(), leader, "seed {seed}: the same epoch goes on");
        world.present_disk(one).set_capacity(u64::MAX);
        world.until("it goes on", || !world.says(leader, "commits_held"));
        let before = world.committed();
        world.until("commits go on", || world.committed() > before + 10);
        world.present_disk(other).set_capacity(u64::MAX);
        world.run(5 * SECOND);
        world.check_quiet();
    }
}
