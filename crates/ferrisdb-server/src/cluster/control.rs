//! The cluster controller's decisions: [`next_step`], from what is registered and how the log's group stands to the next step, one at a time.
//!
//! Each step may be taken again without harm, by another process too, after this one died in the middle of it.

use std::collections::BTreeSet;

use super::metadata::Registry;
use crate::log::replicated::{GroupView, Peer, ProcessId};

/// Voters that a cluster of enough processes has. More would make every commit dearer; fewer survive no loss.
pub(super) const VOTERS: usize = 3;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The log is to be sent to a process, or to where it is now.
    AddLearner(ProcessId, Peer),
    /// These are to be the voters.
    ChangeVoters(BTreeSet<ProcessId>),
}

/// The next step, if anything is to be done.
///
/// The number of voters rises from one to three with the third process that has all data, and never falls by itself: two voters survive no more losses
/// than one does, and fewer mishaps.
pub(super) fn next_step(registry: &Registry, group: &GroupView) -> Option<Step> {
    for (&number, process) in &registry.processes {
        if group.peers.get(&number) != Some(&process.peer) {
            return Some(Step::AddLearner(number, process.peer.clone()));
        }
    }
    let is_complete =
        |number: &ProcessId| registry.storage.values().any(|storage| storage.process == *number && storage.is_complete);
    let mut voters = group.voters.clone();
    for &number in registry.processes.keys().filter(|number| is_complete(number)) {
        if voters.len() < VOTERS {
            voters.insert(number);
        }
    }
    (voters.len() >= VOTERS && voters != group.voters).then_some(Step::ChangeVoters(voters))
}

#[cfg(test)]
mod tests {
    use super::super::metadata::{Process, Storage};
    use super::*;
    use crate::log::Tag;

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
        let all = BTreeSet::from([1, 2, 3]);
        assert_eq!(next_step(&three, &group(&three, 3, &[1])), Some(Step::ChangeVoters(all)));
        assert_eq!(next_step(&three, &group(&three, 3, &[1, 2, 3])), None);
        let four = complete(&[true, true, true, true]);
        assert!(matches!(next_step(&four, &group(&four, 3, &[1, 2, 3])), Some(Step::AddLearner(4, _))));
        assert_eq!(next_step(&four, &group(&four, 4, &[1, 2, 3])), None, "three voters are enough");
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
    }
}
