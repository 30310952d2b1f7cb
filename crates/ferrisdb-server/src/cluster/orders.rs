//! What somebody wants of the cluster: [`Order`]. The leader [checks](check) it, and refuses with the reason and what to do, before anything is written.
//!
//! An order is a wish, written into the metadata; the controller takes the steps (control.rs). Giving it twice does no harm.
//!
//! # Format (numbers are varints)
//! ```text
//! order   u8 1 if it is only to be checked, u8 kind, then
//!         1 exclude, 2 include   process
//!         3 configure            replicas of each shard
//!         4 transfer             process, 0: any voter
//! answer  u8 1 if it changes anything, otherwise 0; bytes: what it comes to, for people
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::{Bytes, Clock, Code, Error, Mutation, Result};
use ferrisdb_rpc::Endpoint;

use super::control::Situation;
use super::lead::no_coordinator;
use super::messages::{Message, invalid};
use super::{Shared, metadata};
use crate::log::State;
use crate::log::replicated::ProcessId;

/// Replicas of each shard that can be asked for.
pub const REPLICATION_MAX: u64 = 5;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The process is to hold nothing, so that it may be stopped for good.
    Exclude(ProcessId),
    /// An excluded process is to hold data again.
    Include(ProcessId),
    /// So many replicas each shard is to have.
    Replication(u64),
    /// This voter, or any other one, is to lead.
    Transfer(Option<ProcessId>),
}

/// What an order comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    /// False: it is so already.
    pub changes: bool,
    /// What happens now, in a sentence.
    pub says: String,
}

/// Gives an order to the cluster that `endpoint`, a connection as a peer, belongs to. `is_dry_run`: it is only checked.
///
/// # Errors
/// `client_invalid_operation` with the reason and what to do, if the cluster refuses; those of asking.
pub async fn order(endpoint: &dyn Endpoint, order: Order, is_dry_run: bool) -> Result<Ordered> {
    let asked = Asked { order, is_dry_run };
    let answer = endpoint.message(Message::Order { asked, is_sent_on: false }.encode()).await?;
    Ordered::decode(&answer)
}

/// An order, and whether it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) order: Order,
    pub(super) is_dry_run: bool,
}

impl Asked {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, number) = match self.order {
            Order::Exclude(process) => (1, process),
            Order::Include(process) => (2, process),
            Order::Replication(copies) => (3, copies),
            Order::Transfer(to) => (4, to.unwrap_or(0)),
        };
        out.extend_from_slice(&[u8::from(self.is_dry_run), kind]);
        put_varint(out, number);
    }

    pub(super) fn decode(decoder: &mut Decoder<'_>) -> std::result::Result<Asked, DecodeError> {
        let is_dry_run = decoder.u8("order: dry run")? == 1;
        let kind = decoder.u8("order: kind")?;
        let number = decoder.varint("order: number")?;
        let order = match kind {
            1 => Order::Exclude(number),
            2 => Order::Include(number),
            3 => Order::Replication(number),
            4 => Order::Transfer((number > 0).then_some(number)),
            _ => return Err(DecodeError { what: "order: an unknown kind" }),
        };
        Ok(Asked { order, is_dry_run })
    }
}

impl Ordered {
    fn encode(&self) -> Bytes {
        let mut out = vec![u8::from(self.changes)];
        put_bytes(&mut out, self.says.as_bytes());
        out.into()
    }

    fn decode(bytes: &[u8]) -> Result<Ordered> {
        let mut decoder = Decoder::new(bytes);
        let mut read = || {
            let changes = decoder.u8("order: changes")? == 1;
            let says = String::from_utf8_lossy(decoder.bytes("order: answer")?).into_owned();
            Ok(Ordered { changes, says })
        };
        read().map_err(invalid)
    }
}

/// What an order is, once it is allowed.
#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    Nothing(String),
    Write(Mutation, String),
    HandOver(ProcessId, String),
}

/// Carries out an order here, or sends it on to the leader.
pub(super) async fn carry_out(shared: &Arc<Shared>, asked: Asked, is_sent_on: bool) -> Result<Bytes> {
    let Some(coordinator) = shared.leading.coordinator() else {
        if is_sent_on {
            return Err(no_coordinator(shared.identity.process));
        }
        let message = Message::Order { asked, is_sent_on: true }.encode();
        return shared.at_coordinator(|endpoint| endpoint.message(message.clone())).await;
    };
    let _alone = shared.leading.registration().lock().await;
    let (registry, map, group, now) = (shared.registry()?, shared.shards()?, shared.log.view(), shared.jobs.now());
    let allowed = shared.leading.with_detector(|detector| {
        let health = |process| detector.health(now, process);
        check(
            &Situation {
                registry: &registry,
                group: &group,
                map: &map,
                past: shared.log.with_state(State::past),
                here: shared.identity.process,
                health: &health,
            },
            asked.order,
        )
    });
    let allowed = allowed
        .ok_or_else(|| no_coordinator(shared.identity.process))?
        .map_err(|reason| Error::with(Code::ClientInvalidOperation, reason))?;
    let (changes, says) = match allowed {
        Allowed::Nothing(says) => (false, says),
        Allowed::Write(mutation, says) => {
            if !asked.is_dry_run {
                coordinator.change_metadata(vec![mutation]).await?;
            }
            (true, says)
        }
        Allowed::HandOver(to, says) => {
            if !asked.is_dry_run {
                shared.log.transfer_leader(to).await?;
            }
            (true, says)
        }
    };
    Ok(Ordered { changes, says }.encode())
}

fn list(processes: impl IntoIterator<Item = ProcessId>) -> String {
    let all: Vec<String> = processes.into_iter().map(|process| process.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// Whether an order may be carried out. An error is the reason why not, and what to do.
fn check(situation: &Situation<'_>, order: Order) -> std::result::Result<Allowed, String> {
    let Situation { registry, group, here, .. } = *situation;
    let known = |process: ProcessId| match registry.processes.contains_key(&process) {
        true => Ok(()),
        false => Err(format!(
            "the cluster has no process {process}; its processes are {}",
            list(registry.processes.keys().copied())
        )),
    };
    match order {
        Order::Exclude(process) => {
            known(process)?;
            if registry.excluded.contains(&process) {
                let holds = registry.storage_of(process).is_some() || group.voters.contains(&process);
                let then =
                    if holds { "still gives up what it has: do not stop it yet" } else { "holds nothing any more" };
                return Ok(Allowed::Nothing(format!("process {process} is excluded already, and {then}")));
            }
            check_exclusion(situation, process)?;
            let says = format!(
                "process {process} gives up its vote, if it has one, and its data; then it may be stopped for good"
            );
            Ok(Allowed::Write(metadata::exclude(process), says))
        }
        Order::Include(process) => {
            known(process)?;
            if !registry.excluded.contains(&process) {
                return Ok(Allowed::Nothing(format!("process {process} is not excluded")));
            }
            let says = format!("process {process} is given data again, and may get a vote");
            Ok(Allowed::Write(metadata::include(process), says))
        }
        Order::Replication(copies) if copies == 0 || copies > REPLICATION_MAX => {
            Err(format!("replication={copies}: there can be 1 to {REPLICATION_MAX} copies"))
        }
        Order::Replication(copies) if registry.replicas() as u64 == copies => {
            Ok(Allowed::Nothing(format!("replication is {copies} already")))
        }
        Order::Replication(copies) => {
            let there = registry.processes.keys().filter(|process| !registry.excluded.contains(process)).count();
            let mut says = format!("each shard is to have {copies} replicas");
            if (there as u64) < copies {
                says.push_str(&format!("; the cluster has {there} processes for them, so start more"));
            }
            Ok(Allowed::Write(metadata::set_replication(copies), says))
        }
        Order::Transfer(Some(to)) => {
            known(to)?;
            if to == here {
                return Ok(Allowed::Nothing(format!("process {to} leads already")));
            }
            if !group.voters.contains(&to) {
                let voters = list(group.voters.iter().copied());
                return Err(format!("process {to} has no vote in the log, so it cannot lead; the voters are {voters}"));
            }
            if (situation.health)(to).standing != super::members::Standing::Up {
                return Err(format!("process {to} does not answer; wait until it is up, or choose another"));
            }
            Ok(Allowed::HandOver(to, format!("process {to} takes over the lead from process {here}")))
        }
        Order::Transfer(None) => {
            let is_up = |voter: &ProcessId| (situation.health)(*voter).standing == super::members::Standing::Up;
            let others = group.voters.iter().copied().filter(|&voter| voter != here);
            let stays = |voter: &ProcessId| !registry.excluded.contains(voter);
            match others.filter(is_up).find(stays) {
                Some(to) => Ok(Allowed::HandOver(to, format!("process {to} takes over the lead from process {here}"))),
                None => Err(format!(
                    "no other voter is up that could lead; the voters are {}",
                    list(group.voters.iter().copied())
                )),
            }
        }
    }
}

/// Whether a process may be excluded: nothing is lost, and the log survives as much as before.
fn check_exclusion(situation: &Situation<'_>, process: ProcessId) -> std::result::Result<(), String> {
    let Situation { registry, group, .. } = *situation;
    if registry.storage_of(process).is_some() && !situation.has_another_whole(process) {
        return Err(format!(
            "no other process is up that could hold the data of process {process}, so excluding it would lose them; start another one with --join, wait until \
             `ferrisdb cluster members` shows it as complete, and exclude process {process} then"
        ));
    }
    if !group.voters.contains(&process) {
        return Ok(());
    }
    let mut without = registry.clone();
    without.excluded.insert(process);
    let after = Situation { registry: &without, ..*situation };
    let others_up: BTreeSet<ProcessId> =
        group.voters.iter().copied().filter(|&voter| voter != process && after.is_up(voter)).collect();
    if group.voters.len() > 1 && others_up.len() * 2 < group.voters.len() {
        return Err(format!(
            "without process {process} no majority of the log's voters ({}) is up; start the others first",
            list(group.voters.iter().copied())
        ));
    }
    // A leader hands over first; what the next one does is what counts.
    let after = Situation { here: after.successor().unwrap_or(after.here), ..after };
    if after.next_voters().is_some() {
        return Ok(());
    }
    Err(format!(
        "process {process} is one of the log's {} voters ({}), and no other process that is up could take its vote; with fewer voters the \
         cluster would survive fewer losses. Start another process with --join, wait until `ferrisdb cluster members` shows it as complete, and exclude \
         process {process} then",
        group.voters.len(),
        list(group.voters.iter().copied())
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::control::Health;
    use super::super::members::Standing;
    use super::super::metadata::{Process, Registry, Storage};
    use super::*;
    use crate::log::Tag;
    use crate::log::replicated::{GroupView, Peer};
    use crate::shards::ShardMap;
    use ferrisdb_core::Version;

    pub(in super::super) fn example() -> Asked {
        Asked { order: Order::Exclude(3), is_dry_run: true }
    }

    /// A cluster of complete processes, of which the first ones vote; process 1 leads.
    fn told(processes: u64, voters: u64, not_up: &[ProcessId], excluded: &[ProcessId], order: Order) -> String {
        let mut registry = Registry { excluded: excluded.iter().copied().collect(), ..Registry::default() };
        for number in 1..=processes {
            let tag = Tag(u32::try_from(number).unwrap());
            let peer = Peer { address: format!("h:{number}"), zone: String::new() };
            registry.processes.insert(number, Process { instance: [0; 16], peer, tag });
            registry.storage.insert(tag, Storage { process: number, is_complete: true });
        }
        let group = GroupView { voters: (1..=voters).collect(), ..GroupView::default() };
        let health = |process| {
            let is_up = !not_up.contains(&process);
            let standing = if is_up { Standing::Up } else { Standing::Gone };
            Health { standing, serves: is_up, has_lost_storage: false }
        };
        let map = ShardMap::whole(registry.storage.keys().map(|&tag| (tag, Version::ZERO)));
        let situation =
            Situation { registry: &registry, group: &group, map: &map, past: Version::ZERO, here: 1, health: &health };
        match check(&situation, order) {
            Ok(Allowed::Nothing(says)) => format!("nothing: {says}"),
            Ok(Allowed::Write(_, says) | Allowed::HandOver(_, says)) => format!("yes: {says}"),
            Err(reason) => format!("no: {reason}"),
        }
    }

    fn exclude(processes: u64, voters: u64, not_up: &[ProcessId], process: ProcessId) -> String {
        told(processes, voters, not_up, &[], Order::Exclude(process))
    }

    #[test]
    fn what_would_lose_something_is_refused() {
        assert!(exclude(4, 3, &[], 3).starts_with("yes: process 3 gives up its vote"));
        assert!(exclude(4, 3, &[], 4).starts_with("yes"), "it has no vote");
        assert!(exclude(4, 3, &[], 1).starts_with("yes"), "it leads: it hands over");
        assert!(exclude(4, 3, &[3], 3).starts_with("yes"), "it is dead, and another takes its place");
        let three = exclude(3, 3, &[], 3);
        assert!(
            three.starts_with("no: ") && three.contains("could take its vote") && three.contains("--join"),
            "{three}"
        );
        let alone = exclude(1, 1, &[], 1);
        assert!(alone.starts_with("no: ") && alone.contains("would lose them"), "{alone}");
        let quorum = exclude(4, 3, &[2], 3);
        assert!(quorum.starts_with("no: ") && quorum.contains("no majority"), "{quorum}");
        let other = exclude(3, 3, &[], 7);
        assert!(other.contains("its processes are 1, 2, 3"), "{other}");
        assert!(exclude(2, 1, &[], 1).starts_with("yes"), "the vote moves");
        assert!(exclude(2, 1, &[2], 1).starts_with("no"), "the other one is dead");
    }

    #[test]
    fn orders_are_checked() {
        let again = told(4, 3, &[], &[3], Order::Exclude(3));
        assert_eq!(again, "nothing: process 3 is excluded already, and still gives up what it has: do not stop it yet");
        assert!(told(3, 3, &[], &[3], Order::Include(3)).starts_with("yes"));
        assert_eq!(told(3, 3, &[], &[], Order::Include(3)), "nothing: process 3 is not excluded");
        // Three is what it is as long as nobody has said anything.
        assert_eq!(told(3, 3, &[], &[], Order::Replication(3)), "nothing: replication is 3 already");
        assert_eq!(told(1, 1, &[], &[], Order::Replication(3)), "nothing: replication is 3 already");
        assert!(told(3, 3, &[], &[], Order::Replication(2)).starts_with("yes"));
        assert!(told(3, 3, &[], &[], Order::Replication(5)).contains("start more"));
        assert!(told(3, 3, &[], &[], Order::Replication(6)).starts_with("no"));
        assert!(told(3, 3, &[], &[], Order::Transfer(Some(2))).starts_with("yes"));
        assert!(told(3, 3, &[], &[], Order::Transfer(None)).starts_with("yes: process 2"));
        assert!(told(3, 3, &[2], &[], Order::Transfer(None)).starts_with("yes: process 3"));
        assert!(told(3, 3, &[2], &[], Order::Transfer(Some(2))).starts_with("no"));
        assert!(told(4, 3, &[], &[], Order::Transfer(Some(4))).contains("has no vote"));
        assert!(told(1, 1, &[], &[], Order::Transfer(None)).starts_with("no"));
        assert_eq!(told(3, 3, &[], &[], Order::Transfer(Some(1))), "nothing: process 1 leads already");
    }

    #[test]
    fn what_is_written_is_read() {
        for order in [
            Order::Exclude(300),
            Order::Include(2),
            Order::Replication(3),
            Order::Transfer(None),
            Order::Transfer(Some(2)),
        ] {
            let asked = Asked { order, is_dry_run: false };
            let mut bytes = Vec::new();
            asked.encode(&mut bytes);
            assert_eq!(Asked::decode(&mut Decoder::new(&bytes)), Ok(asked));
        }
        let ordered = Ordered { changes: true, says: "so it is".to_owned() };
        assert_eq!(Ordered::decode(&ordered.encode()), Ok(ordered));
    }
}
