//! Read versions without the library: [`Confirmer`] asks voters whether they still stand by this leader.
//!
//! A read version is confirmed if, after it was asked for, a majority of the voters had given no vote to anybody else: then nobody else can have been elected before, and
//! acknowledged what is not here (the read index of Raft, section 6.4 of Ongaro's thesis). The library can do that, with a round of heartbeats to all; each costs several
//! hand-overs between its tasks on both sides. Here a voter answers at the door, from the vote that its store was given last, and no more voters are asked than are needed.
//!
//! # Why the store's vote
//! The library has a vote saved before it answers whoever asked for it, and before it takes entries from whoever was elected by it. So a voter whose store has the leader's vote has
//! not helped to elect another one.
//!
//! # What is checked here
//! - The leader applied an entry of its own term: everything of earlier terms is applied before that. What it acknowledged itself it had applied.
//! - Its vote and the voters are the same after the round as before. While voters change, a majority of both configurations is needed.
//!
//! Whatever does not hold, or takes too long, is no error: the library is asked instead.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;

use super::ReplicatedLog;
use super::network::{confirm_message, is_confirmed};
use super::types::{Peer, ProcessId, Vote};

/// After so long the others are asked as well: many times what a voter takes that is not slow.
const PATIENCE: Duration = Duration::from_millis(20);
/// One that did not answer in that time is asked last for so long.
const SILENCE: Duration = Duration::from_secs(1);

/// What a leader stands on.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    vote: Vote,
    /// One configuration, or two while voters change.
    voters: Vec<BTreeSet<ProcessId>>,
}

impl Standing {
    fn is_majority(&self, of: &BTreeSet<ProcessId>) -> bool {
        self.voters.iter().all(|voters| 2 * voters.intersection(of).count() > voters.len())
    }
}

/// Asks the voters; one round at a time.
#[derive(Debug, Default)]
pub(super) struct Confirmer {
    /// Who is asked first takes turns.
    turn: usize,
    /// Who was slow lately, and until when that counts.
    silent: BTreeMap<ProcessId, Duration>,
    /// Of a planted bug: until then, by the machine's clock, nobody is asked.
    leased_until: Duration,
}

impl Confirmer {
    /// True if `log` leads, as of a moment after the call.
    pub(super) async fn round(&mut self, log: &ReplicatedLog) -> bool {
        let Some((standing, peers)) = log.standing() else { return false };
        let shared = &log.shared;
        let begun = shared.store.now();
        if planted(Bug::ReadLeaseByClock) && begun < self.leased_until {
            return true;
        }
        let mut confirmed = BTreeSet::from([shared.process]);
        let mut next = self.order(&standing, shared.process, shared.runtime.now()).into_iter();
        let mut asked = confirmed.clone();
        let mut running: Vec<(ProcessId, BoxFuture<bool>)> = Vec::new();
        let mut patience = shared.runtime.sleep(PATIENCE);
        let mut is_patient = true;
        let is_majority = poll_fn(|context| {
            loop {
                if standing.is_majority(&confirmed) {
                    return Poll::Ready(true);
                }
                // As many as would be enough if all of them said yes; then all.
                while !is_patient || !standing.is_majority(&asked) {
                    let Some(voter) = next.next() else { break };
                    asked.insert(voter);
                    match peers.get(&voter) {
                        Some(peer) => running.push((voter, log.ask_whether_confirmed(voter, peer, standing.vote))),
                        None => _ = asked.remove(&voter),
                    }
                }
                let mut has_changed = false;
                running.retain_mut(|(voter, answer)| match answer.as_mut().poll(context) {
                    Poll::Pending => true,
                    Poll::Ready(yes) => {
                        has_changed = true;
                        if yes {
                            self.silent.remove(voter);
                            confirmed.insert(*voter);
                        } else {
                            asked.remove(voter);
                        }
                        false
                    }
                });
                if has_changed {
                    continue;
                }
                if running.is_empty() {
                    return Poll::Ready(false);
                }
                if is_patient && patience.as_mut().poll(context).is_ready() {
                    let until = shared.runtime.now() + SILENCE;
                    self.silent.extend(running.iter().map(|&(voter, _)| (voter, until)));
                    is_patient = false;
                    continue;
                }
                return Poll::Pending;
            }
        });
        let is_confirmed = is_majority.await && log.standing().is_some_and(|(now, _)| now == standing);
        if is_confirmed {
            // If all clocks went alike: a voter waits so long for a leader that it hears nothing of.
            self.leased_until = begun + 3 * shared.options.election_timeout;
        }
        is_confirmed
    }

    /// The other voters, in the order in which they are asked: those that answer, beginning with another one each time.
    fn order(&mut self, standing: &Standing, process: ProcessId, now: Duration) -> Vec<ProcessId> {
        let others: BTreeSet<ProcessId> =
            standing.voters.iter().flatten().copied().filter(|&it| it != process).collect();
        let mut others: Vec<ProcessId> = others.into_iter().collect();
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn % others.len().max(1);
        others.rotate_left(first);
        self.silent.retain(|_, until| *until > now);
        others.sort_by_key(|other| self.silent.contains_key(other));
        others
    }
}

impl ReplicatedLog {
    /// What this replica stands on, if it leads and has applied what went before.
    fn standing(&self) -> Option<(Standing, BTreeMap<ProcessId, Peer>)> {
        let vote = self.shared.store.vote()?;
        if !vote.committed || vote.leader_id.voted_for != self.shared.process || !self.is_leader() {
            return None;
        }
        let metrics = self.shared.raft.metrics();
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        if metrics.last_applied.as_ref()?.leader_id.term != vote.leader_id.term {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let peers = membership.nodes().map(|(&process, peer)| (process, peer.clone())).collect();
        Some((Standing { vote, voters: membership.get_joint_config().clone() }, peers))
    }

    fn ask_whether_confirmed(&self, voter: ProcessId, peer: &Peer, vote: Vote) -> BoxFuture<bool> {
        let shared = &self.shared;
        let answer = shared.peers.ask(voter, peer, confirm_message(&vote), shared.options.election_timeout);
        Box::pin(async move { answer.await.is_ok_and(|answer| is_confirmed(&answer)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::vote::leader_id_std::LeaderId;

    fn standing(voters: &[&[ProcessId]]) -> Standing {
        let vote = Vote { leader_id: LeaderId { term: 3, voted_for: 1 }, committed: true };
        Standing { vote, voters: voters.iter().map(|voters| voters.iter().copied().collect()).collect() }
    }

    #[test]
    fn majorities_of_both_configurations() {
        let is_majority =
            |voters: &[&[ProcessId]], of: &[ProcessId]| standing(voters).is_majority(&of.iter().copied().collect());
        assert!(is_majority(&[&[1]], &[1]));
        assert!(!is_majority(&[&[1, 2]], &[1]));
        assert!(is_majority(&[&[1, 2, 3]], &[1, 3]));
        assert!(!is_majority(&[&[1, 2, 3, 4]], &[1, 3]));
        assert!(!is_majority(&[&[1], &[1, 2, 3]], &[1]), "the new voters count already");
        assert!(!is_majority(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 4]));
        assert!(is_majority(&[&[1, 2, 3], &[3, 4, 5]], &[1, 3, 4]));
        assert!(!is_majority(&[&[2, 3, 4]], &[1, 2]), "a leader that is no voter any more does not count");
    }

    #[test]
    fn who_is_asked_first_takes_turns_and_the_silent_come_last() {
        let (mut confirmer, standing) = (Confirmer::default(), standing(&[&[1, 2, 3], &[1, 3, 4]]));
        let second = Duration::from_secs;
        assert_eq!(confirmer.order(&standing, 1, second(0)), [3, 4, 2]);
        assert_eq!(confirmer.order(&standing, 1, second(0)), [4, 2, 3]);
        confirmer.silent.insert(2, second(5));
        assert_eq!(confirmer.order(&standing, 1, second(4)), [3, 4, 2]);
        assert_eq!(confirmer.order(&standing, 1, second(4)), [3, 4, 2], "it was its turn");
        assert_eq!(confirmer.order(&standing, 1, second(5)), [4, 2, 3]);
    }
}
