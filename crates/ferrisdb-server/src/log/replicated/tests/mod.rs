//! The replicated log under the library's own suite, and in a simulated world of processes that crash, pause and are cut off.

mod store;
mod world;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_storage::fs::sim::CrashMode;

use super::confirm::Confirmer;
use super::{Peer, network};
use crate::log::{Log, Tag};
use crate::signal::lock;

fn seeds() -> (u64, u64) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    (number("FERRISDB_SIM_SEED", 1), number("FERRISDB_SIM_SEEDS", 4))
}

/// Twenty simulated seconds of faults for each seed. `FERRISDB_SIM_SEED` and `FERRISDB_SIM_SEEDS` choose others.
#[test]
fn a_group_of_three_keeps_its_promises_under_faults() {
    let (first, count) = seeds();
    for seed in first..first + count {
        let outcome = world::run(seed, Duration::from_secs(20));
        eprintln!("seed {seed}: {outcome:?}");
        let is_well = outcome.failures.is_empty() && outcome.acknowledged >= 300;
        assert!(is_well, "FERRISDB_SIM_SEED={seed} FERRISDB_SIM_SEEDS=1 replays it: {outcome:#?}");
    }
}

/// A snapshot that comes after the entries that it stands for: the library would stop over it (seen with this seed before `is_in_log` was there).
#[test]
fn a_late_snapshot_of_what_is_in_the_log_does_no_harm() {
    let outcome = world::run(145, Duration::from_secs(20));
    assert_eq!(outcome.failures, Vec::<String>::new());
}

/// The same seed is the same run, and another one another.
#[test]
fn a_seed_decides_everything() {
    let run = |seed| world::run(seed, Duration::from_secs(3));
    let first = run(11);
    assert_eq!(first, run(11));
    assert_ne!(first.trace, run(12).trace);
}

/// From one process to three, then the lead goes to another, then one of them leaves; commits go on all the time.
#[test]
fn a_group_grows_hands_over_and_shrinks() {
    let world = world::World::new(5, 3);
    (1..=3).for_each(|process| world.start(process));
    world.found(1);
    world.run(Duration::from_secs(3));
    assert!(world.acknowledged() > 0, "a group of one commits");
    world.on(1, |log| async move {
        for process in [2, 3] {
            log.add_learner(process, Peer::default()).await.expect("it is reachable");
        }
        log.change_voters(BTreeSet::from([1, 2, 3]), true).await.expect("all of them are learners");
        log.transfer_leader(2).await.expect("it runs");
    });
    world.run(Duration::from_secs(3));
    for process in 1..=3 {
        let view = world.view(process);
        assert_eq!((view.leader, view.voters.len()), (Some(2), 3), "as process {process} sees it");
    }
    let before = world.acknowledged();
    world.on(2, |log| async move {
        log.change_voters(BTreeSet::from([2, 3]), false).await.expect("two remain");
    });
    world.run(Duration::from_secs(2));
    assert_eq!(world.view(3).voters, BTreeSet::from([2, 3]));
    assert!(world.acknowledged() > before, "commits go on");
    // Two voters: without one of them there is no quorum, and with it again there is one.
    world.kill(3, CrashMode::UnsyncedLost);
    world.run(Duration::from_secs(5));
    let stuck = world.acknowledged();
    world.run(Duration::from_secs(5));
    assert_eq!(world.acknowledged(), stuck, "one of two is no quorum");
    world.start(3);
    world.run(Duration::from_secs(8));
    assert!(world.acknowledged() > stuck);
}

/// A leader that is cut off proposes a pop, which the next leader's log does not have. It arrives all the same.
#[test]
fn a_pop_whose_proposal_is_lost_arrives() {
    let world = world::World::new(6, 3);
    (1..=3).for_each(|process| world.start(process));
    world.found(3);
    world.run(Duration::from_secs(3));
    let leader = world.view(1).leader.expect("there is one");
    world.hush();
    world.run(Duration::from_secs(2));
    let (last, popped) = world.last_and_popped(leader);
    assert!(popped < last, "there is something to pop");
    world.cut_off(leader);
    world.on(leader, move |log| async move {
        log.pop(Tag::FIRST, last);
        drop(log.append(Vec::new()).expect("it does not know yet"));
    });
    world.run(Duration::from_secs(6));
    world.heal();
    world.run(Duration::from_secs(6));
    for process in 1..=3 {
        assert!(world.last_and_popped(process).1 >= last, "at process {process}");
    }
    assert_ne!(world.view(leader).leader, Some(leader), "another leads");
}

/// A follower that is cut off stands for election again and again, and nobody hears it. It asks first whether anybody would vote for it (pre-vote), so that its term does not rise: when it comes back,
/// the leader still leads, in the same term and the same epoch. Commits go on before, meanwhile and afterwards.
#[test]
fn a_follower_that_comes_back_deposes_nobody() {
    let (first, count) = seeds();
    for seed in first..first + count {
        let world = world::World::new(seed, 3);
        (1..=3).for_each(|process| world.start(process));
        world.found(3);
        world.run(Duration::from_secs(3));
        let leader = world.view(1).leader.expect("there is one");
        let (term, epochs) = (world.view(leader).term, world.epochs());
        for follower in (1..=3).filter(|&process| process != leader) {
            let what = format!("seed {seed}: process {follower} of {leader}");
            let commits_go_on = |when: &str| {
                let before = world.acknowledged();
                world.run(Duration::from_secs(1));
                assert!(world.acknowledged() > before, "{what}: no commit within a second {when} the cut");
            };
            world.cut_off(follower);
            // Ten times what a follower waits at most.
            (0..40).for_each(|_| commits_go_on("during"));
            assert_eq!(world.view(follower).term, term, "{what}: it asks first");
            world.heal();
            (0..10).for_each(|_| commits_go_on("after"));
            for process in 1..=3 {
                let view = world.view(process);
                assert_eq!((view.leader, view.term), (Some(leader), term), "{what}, as {process} sees it");
            }
            assert_eq!(world.epochs(), epochs, "{what}");
        }
        eprintln!("seed {seed}: {} commits", world.acknowledged());
    }
}

/// Read versions are confirmed by voters that stand by the leader, and by no others: after another was elected nobody says yes to the one before, who may not have heard of it.
#[test]
fn a_voter_confirms_only_whom_it_has_voted_for() {
    let world = world::World::new(7, 3);
    (1..=3).for_each(|process| world.start(process));
    world.found(3);
    world.run(Duration::from_secs(3));
    let leader = world.view(1).leader.expect("there is one");
    let vote = |process| {
        let found = Arc::new(Mutex::new(None));
        let told = Arc::clone(&found);
        world.on(process, move |log| async move { *lock(&told) = log.shared.store.vote() });
        let vote = *lock(&found);
        vote.expect("it has voted")
    };
    let confirms = |process, vote| {
        let found = Arc::new(Mutex::new(None));
        let told = Arc::clone(&found);
        world.on(process, move |log| async move {
            let answer = log.answer(network::confirm_message(&vote)).await.expect("it takes part");
            *lock(&told) = Some(network::is_confirmed(&answer));
        });
        let is_confirmed = *lock(&found);
        is_confirmed.expect("it has answered")
    };
    let before = vote(leader);
    assert!((1..=3).all(|process| confirms(process, before)));
    world.cut_off(leader);
    world.run(Duration::from_secs(6));
    let others = || (1..=3).filter(|&process| process != leader);
    let next = world.view(others().next().expect("there are two")).leader.expect("there is one");
    assert_ne!(next, leader);
    for process in others() {
        assert!(!confirms(process, before) && confirms(process, vote(next)), "process {process}");
    }
    assert!(confirms(leader, before), "it has not heard of that");
    // It has itself, and that is no majority.
    world.on(leader, |log| async move { assert!(!Confirmer::default().round(&log).await) });
}
