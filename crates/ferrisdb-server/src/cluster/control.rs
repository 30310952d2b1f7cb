//! The cluster controller's decisions: [`next_step`], from what is registered, how the log's group stands and who is there, to the next step, one at a time.
//!
//! Each step may be taken again without harm, by another process too, after this one died in the middle of it.
//!
//! # What always holds
//! - The voters change one at a time, and only while a majority of those before and of those after is up.
//! - The number of voters rises to three with the third process whose storage server has begun. One leaves without another in its place only where that costs nothing: four voters survive
//!   no more losses than three do, and two no more than one.
//! - Storage that has failed for long counts as gone, though its process is there and votes.
//! - A tag is taken only if other processes that are up, and are to stay, have all shards that its storage server holds; from one that is excluded only when it holds none any more.
//! - A change of voters that somebody else began is ended before anything else is begun.

use std::collections::BTreeSet;

use ferrisdb_core::Version;
use ferrisdb_core::planted::{Bug, planted};

use super::members::Standing;
use super::metadata::Registry;
use crate::log::Tag;
use crate::log::replicated::{GroupView, Peer, ProcessId};
use crate::shards::{Holder, Shard, ShardMap};

/// Voters that a cluster of enough processes has. More would make every commit dearer; fewer survive no loss.
pub(super) const VOTERS: usize = 3;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The log is to be sent to a process, or to where it is now.
    AddLearner(ProcessId, Peer),
    /// The log is to be sent to a process no more.
    RemoveLearner(ProcessId),
    /// These are to be the voters.
    ChangeVoters(BTreeSet<ProcessId>),
    /// This voter is to lead.
    HandOver(ProcessId),
    /// A process's storage server counts no more: the log need keep nothing for it.
    DropTag(ProcessId),
    /// A process belongs to the cluster no more.
    Forget(ProcessId),
}

/// Who is there: what the leader hears of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) standing: Standing,
    /// Its storage server has everything and answers.
    pub(super) serves: bool,
    /// Its storage server has failed, and was not started again for so long that it counts as gone; its vote may be good.
    pub(super) has_lost_storage: bool,
}

/// Everything that decisions are made of.
#[derive(Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) registry: &'a Registry,
    pub(super) group: &'a GroupView,
    /// Who holds which keys.
    pub(super) map: &'a ShardMap,
    /// Below this version nobody reads any more.
    pub(super) past: Version,
    /// Who decides: the leader.
    pub(super) here: ProcessId,
    pub(super) health: &'a dyn Fn(ProcessId) -> Health,
}

impl Situation<'_> {
    pub(super) fn is_up(&self, process: ProcessId) -> bool {
        (self.health)(process).standing == Standing::Up
    }

    fn is_gone(&self, process: ProcessId) -> bool {
        (self.health)(process).standing == Standing::Gone
    }

    /// It is gone, or its storage server is.
    fn is_gone_for_storage(&self, process: ProcessId) -> bool {
        self.is_gone(process) || (self.health)(process).has_lost_storage
    }

    /// It is there, is to stay, and holds what it is given.
    fn is_whole(&self, process: ProcessId) -> bool {
        let health = (self.health)(process);
        self.registry.is_complete(process)
            && !self.registry.excluded.contains(&process)
            && health.standing == Standing::Up
            && health.serves
    }

    /// True if a process other than `process` is there, is to stay, and can hold what that one has.
    pub(super) fn has_another_whole(&self, process: ProcessId) -> bool {
        self.registry.processes.keys().any(|&other| other != process && self.is_whole(other))
    }

    /// True if of each shard that the storage server `tag` holds another one has it, on a process that is there and is to stay.
    fn is_spared(&self, tag: Tag) -> bool {
        let is_kept = |&other: &Tag| {
            let storage = self.registry.storage.get(&other);
            other != tag && storage.is_some_and(|storage| self.is_whole(storage.process))
        };
        planted(Bug::RemovedWithoutReplica)
            || self.map.iter().all(|(_, shard)| {
                let team = shard.team();
                !team.contains(&tag) || team.iter().any(is_kept)
            })
    }

    /// True if the storage server `tag` holds nothing, nothing comes to it, and what it held before the others can be asked of them or of nobody.
    fn is_empty(&self, tag: Tag) -> bool {
        let is_coming = |shard: &Shard| shard.moving.as_ref().is_some_and(|moving| moving.team.contains(&tag));
        let is_alone_with = |shard: &Shard, of: &Holder| {
            let is_read = of.until.is_some_and(|until| until > self.past);
            let has_it_too = |other: &Holder| other.tag != tag && other.is_open() && other.from <= of.from;
            of.tag == tag && is_read && !shard.holders.iter().any(has_it_too)
        };
        let is_needed = |shard: &Shard| {
            shard.team().contains(&tag) || is_coming(shard) || shard.holders.iter().any(|of| is_alone_with(shard, of))
        };
        !self.map.iter().any(|(_, shard)| is_needed(shard))
    }

    /// A voter that should not be one.
    fn is_unwanted(&self, voter: ProcessId) -> bool {
        !self.registry.processes.contains_key(&voter) || self.registry.excluded.contains(&voter) || self.is_gone(voter)
    }

    fn is_majority_up(&self, voters: &BTreeSet<ProcessId>) -> bool {
        voters.iter().filter(|&&voter| self.is_up(voter)).count() > voters.len() / 2
    }

    /// Who could take a vote: of those in a zone without a voter the first, if there is one.
    fn candidates(&self, without: &BTreeSet<ProcessId>) -> Vec<ProcessId> {
        let zone = |process: &ProcessId| self.registry.processes.get(process).map_or("", |known| &known.peer.zone);
        let taken: BTreeSet<&str> = without
            .iter()
            .filter(|&&voter| !self.is_unwanted(voter))
            .map(zone)
            .filter(|zone| !zone.is_empty())
            .collect();
        let all = self.registry.processes.keys().copied();
        let mut candidates: Vec<ProcessId> =
            all.filter(|process| !without.contains(process) && self.is_whole(*process)).collect();
        candidates.sort_by_key(|process| (taken.contains(zone(process)), *process));
        candidates
    }

    /// The voters after the next change, if there is one to make.
    pub(super) fn next_voters(&self) -> Option<BTreeSet<ProcessId>> {
        let voters = &self.group.voters;
        let candidates = self.candidates(voters);
        let mut next = voters.clone();
        // Those that are no more first, those that only should not be last.
        let mut unwanted: Vec<ProcessId> = voters.iter().copied().filter(|&voter| self.is_unwanted(voter)).collect();
        unwanted.sort_by_key(|&voter| (self.registry.excluded.contains(&voter), voter));
        let leaves = unwanted.into_iter().find(|&voter| voter != self.here);
        match (leaves, candidates.first()) {
            (Some(leaves), Some(&comes)) => {
                next.remove(&leaves);
                next.insert(comes);
            }
            (Some(leaves), None) if voters.len().is_multiple_of(2) => {
                next.remove(&leaves);
            }
            // The leader itself, alone: another must be able to lead before it goes.
            (None, Some(&comes)) if voters.len() == 1 && self.is_unwanted(self.here) => {
                next.insert(comes);
            }
            _ => {
                if voters.len() + candidates.len() >= VOTERS {
                    next.extend(candidates.into_iter().take(VOTERS.saturating_sub(voters.len())));
                }
            }
        }
        let is_safe = next != *voters && self.is_majority_up(voters) && self.is_majority_up(&next);
        is_safe.then_some(next)
    }

    /// Who is to lead in the place of a leader that is to hold nothing.
    pub(super) fn successor(&self) -> Option<ProcessId> {
        let is_fit = |&voter: &ProcessId| !self.is_unwanted(voter) && self.is_up(voter);
        let is_unwanted = self.registry.excluded.contains(&self.here);
        self.group.voters.iter().copied().find(is_fit).filter(|_| is_unwanted)
    }

    /// The next step, if anything is to be done.
    pub(super) fn next_step(&self) -> Option<Step> {
        let Situation { registry, group, .. } = *self;
        if let Some(half_done) = &group.changing_to {
            // Until it is done a commit needs a majority of both configurations. Whether it may be done was decided before.
            return Some(Step::ChangeVoters(half_done.clone()));
        }
        let learners = group.learners.iter().copied();
        if let Some(left) = learners.clone().find(|learner| !registry.processes.contains_key(learner)) {
            return Some(Step::RemoveLearner(left));
        }
        for (&number, process) in &registry.processes {
            if group.peers.get(&number) != Some(&process.peer) && !self.is_gone(number) {
                return Some(Step::AddLearner(number, process.peer.clone()));
            }
        }
        if let Some(other) = self.successor() {
            return Some(Step::HandOver(other));
        }
        if let Some(voters) = self.next_voters() {
            return Some(Step::ChangeVoters(voters));
        }
        let loses_tag = |process: &ProcessId| {
            let is_drained = registry.excluded.contains(process) && !group.voters.contains(process);
            registry.storage_of(*process).is_some_and(|(tag, _)| {
                self.is_gone_for_storage(*process) && self.is_spared(tag) || is_drained && self.is_empty(tag)
            })
        };
        if let Some(process) = registry.processes.keys().copied().find(loses_tag) {
            return Some(Step::DropTag(process));
        }
        let is_nobody = |process: &ProcessId| {
            registry.storage_of(*process).is_none() && !group.voters.contains(process) && self.is_gone(*process)
        };
        registry.processes.keys().copied().find(is_nobody).map(Step::Forget)
    }
}

#[cfg(test)]
mod tests {
    use super::super::metadata::{Process, Storage};
    use super::*;
    use Standing::{Gone, Suspected, Up};

    fn registry(complete: &[bool]) -> Registry {
        let mut registry = Registry::default();
        for (number, &is_complete) in (1..).zip(complete) {
            let tag = Tag(number as u32);
            let peer = Peer { address: format!("h:{number}"), zone: String::new() };
            registry.processes.insert(number, Process { instance: [number as u8; 16], peer, tag });
            registry.storage.insert(tag, Storage { process: number, is_complete });
        }
        registry
    }

    fn group(registry: &Registry, members: u64, voters: &[ProcessId]) -> GroupView {
        let voters: BTreeSet<ProcessId> = voters.iter().copied().collect();
        let known = registry.processes.iter().filter(|&(&number, _)| number <= members);
        GroupView {
            peers: known.map(|(&number, process)| (number, process.peer.clone())).collect(),
            learners: (1..=members).filter(|number| !voters.contains(number)).collect(),
            voters,
            ..GroupView::default()
        }
    }

    const WELL: Health = Health { standing: Up, serves: true, has_lost_storage: false };

    fn voters(voters: &[ProcessId]) -> Option<Step> {
        Some(Step::ChangeVoters(voters.iter().copied().collect()))
    }

    /// All complete processes that are to stay have everything.
    fn everywhere(registry: &Registry) -> ShardMap {
        let stays = |storage: &Storage| storage.is_complete && !registry.excluded.contains(&storage.process);
        let tags = registry.storage.iter().filter(|(_, storage)| stays(storage));
        ShardMap::whole(tags.map(|(&tag, _)| (tag, Version::ZERO)))
    }

    /// The next step if process 1 leads, and those of `not_up` are so.
    fn step(registry: &Registry, group: &GroupView, not_up: &[(ProcessId, Standing)]) -> Option<Step> {
        let health = |process| {
            let found = not_up.iter().find(|(of, _)| *of == process);
            Health { standing: found.map_or(Up, |(_, standing)| *standing), ..WELL }
        };
        let map = everywhere(registry);
        Situation { registry, group, map: &map, past: Version::ZERO, here: 1, health: &health }.next_step()
    }

    fn next_step(registry: &Registry, group: &GroupView) -> Option<Step> {
        step(registry, group, &[])
    }

    #[test]
    fn a_cluster_grows() {
        let complete = |complete: &[bool]| registry(complete);
        let alone = complete(&[true]);
        assert_eq!(next_step(&alone, &group(&alone, 1, &[1])), None);
        let two = complete(&[true, false]);
        assert!(matches!(next_step(&two, &group(&two, 1, &[1])), Some(Step::AddLearner(2, _))));
        let two = complete(&[true, true]);
        assert_eq!(next_step(&two, &group(&two, 2, &[1])), None, "two voters are worse than one");
        let three = complete(&[true, true, false]);
        assert_eq!(next_step(&three, &group(&three, 3, &[1])), None, "it has not everything yet");
        let three = complete(&[true, true, true]);
        assert_eq!(next_step(&three, &group(&three, 3, &[1])), voters(&[1, 2, 3]));
        assert_eq!(next_step(&three, &group(&three, 3, &[1, 2, 3])), None);
        let four = complete(&[true, true, true, true]);
        assert!(matches!(next_step(&four, &group(&four, 3, &[1, 2, 3])), Some(Step::AddLearner(4, _))));
        assert_eq!(next_step(&four, &group(&four, 4, &[1, 2, 3])), None, "three voters are enough");
        assert_eq!(step(&three, &group(&three, 3, &[1]), &[(3, Suspected)]), None, "nothing is built on a silent one");
    }

    /// A change of voters is two entries, and whoever wrote the first may have died before the second: until that is there, a majority of the voters of before is
    /// needed as well, whoever of them is gone for good.
    #[test]
    fn a_half_done_change_is_ended_first() {
        let three = registry(&[true, true, true]);
        let mut joint = group(&three, 3, &[1, 2, 3]);
        joint.changing_to = Some([1, 2, 3].into());
        assert_eq!(next_step(&three, &joint), voters(&[1, 2, 3]));
        assert_eq!(step(&three, &joint, &[(2, Gone)]), voters(&[1, 2, 3]), "without it nothing else can be done");
        joint.changing_to = None;
        assert_eq!(next_step(&three, &joint), None);
    }

    /// What is drained goes only when nobody reads any more what it alone held before.
    #[test]
    fn the_only_holder_of_old_versions_stays_for_them() {
        let mut two = registry(&[true, true]);
        two.excluded.insert(2);
        let group = group(&two, 2, &[1]);
        let version = Version::from_u64;
        let holder =
            |tag, from, until: Option<u64>| Holder { tag: Tag(tag), from: version(from), until: until.map(version) };
        let health = |_| WELL;
        let next = |holders: Vec<Holder>, past| {
            let map = ShardMap::of_one(Shard { holders, moving: None });
            Situation { registry: &two, group: &group, map: &map, past: version(past), here: 1, health: &health }
                .next_step()
        };
        let moved = || vec![holder(2, 1, Some(50)), holder(1, 50, None)];
        assert_eq!(next(moved(), 49), None);
        assert_eq!(next(moved(), 50), Some(Step::DropTag(2)));
        assert_eq!(
            next(vec![holder(2, 1, Some(50)), holder(1, 1, None)], 49),
            Some(Step::DropTag(2)),
            "the other has it too"
        );
    }

    /// A process that is elsewhere now is found again.
    #[test]
    fn a_new_address_is_told() {
        let mut moved = registry(&[true, true, true]);
        let group = group(&moved, 3, &[1, 2, 3]);
        let process = moved.processes.get_mut(&2).unwrap();
        process.peer.address = "elsewhere:1".to_owned();
        let peer = process.peer.clone();
        assert_eq!(next_step(&moved, &group), Some(Step::AddLearner(2, peer)));
        assert_eq!(step(&moved, &group, &[(2, Gone)]), Some(Step::DropTag(2)), "it would not hear of it");
    }

    /// With three processes and one gone the vote stays, and the log may be purged.
    #[test]
    fn one_of_three_is_gone() {
        let mut three = registry(&[true, true, true]);
        let group = group(&three, 3, &[1, 2, 3]);
        assert_eq!(step(&three, &group, &[(3, Suspected)]), None, "it may be slow");
        assert_eq!(step(&three, &group, &[(3, Gone)]), Some(Step::DropTag(3)));
        three.storage.remove(&Tag(3));
        assert_eq!(step(&three, &group, &[(3, Gone)]), None, "nobody could take its vote, so it is not forgotten");
    }

    /// Storage that has failed for good loses its tag, also that of the leader, if others have what it held; its process keeps its vote and its number.
    #[test]
    fn failed_storage_loses_its_tag() {
        let mut three = registry(&[true, true, true]);
        let group = group(&three, 3, &[1, 2, 3]);
        let next = |registry: &Registry, broken: &[ProcessId]| {
            let health = |process| match broken.contains(&process) {
                true => Health { serves: false, has_lost_storage: true, ..WELL },
                false => WELL,
            };
            let map = everywhere(registry);
            Situation { registry, group: &group, map: &map, past: Version::ZERO, here: 1, health: &health }.next_step()
        };
        assert_eq!(next(&three, &[1]), Some(Step::DropTag(1)));
        assert_eq!(next(&three, &[3]), Some(Step::DropTag(3)));
        assert_eq!(next(&three, &[1, 2, 3]), None, "nobody else has it");
        three.storage.remove(&Tag(3));
        assert_eq!(next(&three, &[3]), None, "its log works");
    }

    /// No tag is taken if nobody else who is there has everything.
    #[test]
    fn the_last_replica_is_kept() {
        let two = registry(&[false, true]);
        let of_two = group(&two, 2, &[1]);
        assert_eq!(step(&two, &of_two, &[(2, Gone)]), None);
        let three = registry(&[false, true, true]);
        let of_three = group(&three, 3, &[1, 2, 3]);
        assert_eq!(step(&three, &of_three, &[(2, Gone), (3, Suspected)]), None, "the other one may never come back");
        let mut excluded = registry(&[false, true, true]);
        excluded.excluded.insert(3);
        assert_eq!(step(&excluded, &of_three, &[(2, Gone)]), None, "the other one is to go");
    }

    /// A fourth process takes the vote of one that is gone, which is then forgotten.
    #[test]
    fn a_new_process_takes_the_place_of_one_that_is_gone() {
        let mut four = registry(&[true, true, true, true]);
        let before = group(&four, 4, &[1, 2, 3]);
        assert_eq!(step(&four, &before, &[(3, Gone)]), voters(&[1, 2, 4]));
        assert_eq!(step(&four, &before, &[(3, Gone), (2, Suspected)]), Some(Step::DropTag(3)), "a majority must be up");
        let after = group(&four, 4, &[1, 2, 4]);
        assert_eq!(step(&four, &after, &[(3, Gone)]), Some(Step::DropTag(3)));
        four.storage.remove(&Tag(3));
        assert_eq!(step(&four, &after, &[(3, Gone)]), Some(Step::Forget(3)));
        four.processes.remove(&3);
        assert_eq!(step(&four, &after, &[(3, Gone)]), Some(Step::RemoveLearner(3)));
        // One that said that it will never come back is replaced at once.
        assert_eq!(next_step(&four, &before), voters(&[1, 2, 4]));
    }

    /// An excluded process gives up its vote, then its data; the leader the lead before.
    #[test]
    fn an_excluded_process_is_drained() {
        let mut four = registry(&[true, true, true, true]);
        four.excluded.insert(3);
        assert_eq!(next_step(&four, &group(&four, 4, &[1, 2, 3])), voters(&[1, 2, 4]));
        assert_eq!(next_step(&four, &group(&four, 4, &[1, 2, 4])), Some(Step::DropTag(3)));
        four.storage.remove(&Tag(3));
        assert_eq!(next_step(&four, &group(&four, 4, &[1, 2, 4])), None, "it may be taken back, until it is gone");
        assert_eq!(step(&four, &group(&four, 4, &[1, 2, 4]), &[(3, Gone)]), Some(Step::Forget(3)));

        let mut leader = registry(&[true, true, true, true]);
        leader.excluded.insert(1);
        assert_eq!(next_step(&leader, &group(&leader, 4, &[1, 2, 3])), Some(Step::HandOver(2)));
        let mut alone = registry(&[true, true]);
        alone.excluded.insert(1);
        assert_eq!(next_step(&alone, &group(&alone, 2, &[1])), voters(&[1, 2]));
        assert_eq!(next_step(&alone, &group(&alone, 2, &[1, 2])), Some(Step::HandOver(2)));
        let mut other = registry(&[true, true]);
        other.excluded.insert(2);
        assert_eq!(next_step(&other, &group(&other, 2, &[1, 2])), voters(&[1]), "two survive no more than one");
        let mut three = registry(&[true, true, true]);
        three.excluded.insert(3);
        assert_eq!(next_step(&three, &group(&three, 3, &[1, 2, 3])), None, "the vote stays until another takes it");
    }

    /// Of several that could vote, one in a zone of its own does.
    #[test]
    fn votes_go_to_different_zones() {
        let mut five = registry(&[true, true, true, true, true]);
        for (number, zone) in [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "c")] {
            five.processes.get_mut(&number).unwrap().peer.zone = zone.to_owned();
        }
        assert_eq!(step(&five, &group(&five, 5, &[1, 2, 3]), &[(3, Gone)]), voters(&[1, 2, 5]));
    }
}
