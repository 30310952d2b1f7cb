//! What must hold of all replicas of a cluster's log at every moment: [`Watcher`].
//!
//! It is told ten times a second what each replica has come to, and says what contradicts what it was told before:
//!
//! - *Nothing goes back.* In one life of a process, epoch, last version, horizon, what storage servers have told, and the applied entry never go down. (A life that begins may have forgotten what it had
//!   applied; it applies the same again.)
//! - *An epoch has one owner*, whoever is asked.
//! - *Replicas agree.* The state after an entry is the same wherever it is applied, also in a later life, also after a snapshot: epochs, versions, commit ids and their outcomes, leases, metadata, and through them which
//!   batches counted and which were void. Two that had applied different entries, or the same in another order, would differ here.

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_server::cluster::{LogStanding, Standing};
use ferrisdb_server::log::Tag;
use xxhash_rust::xxh3::xxh3_64;

/// What replicas of a log were seen to have.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    /// Of each life, what it had last.
    lives: BTreeMap<u64, LogStanding>,
    /// By applied entry, a hash of the state after it, and who had it first.
    states: BTreeMap<u64, (u64, String)>,
    /// By epoch, its owner.
    owners: BTreeMap<u64, [u8; 16]>,
    /// Storage servers that were seen to be gone with what they had.
    dropped: BTreeSet<Tag>,
}

impl Watcher {
    /// How many storage servers were seen to be given up.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// A host's process stands like this. An error is what contradicts something that was seen before.
    pub(crate) fn see(&mut self, host: &str, standing: &Standing) -> Result<(), String> {
        let log = &standing.log;
        if let Some(before) = self.lives.get(&standing.life) {
            went_back(before, log).map_err(|what| format!("{host}: {what}"))?;
            self.dropped.extend(before.popped.keys().filter(|tag| !log.popped.contains_key(tag)));
        }
        self.lives.insert(standing.life, LogStanding { state: Vec::new(), ..log.clone() });
        let (epoch, owner) = log.epoch;
        let of_epoch = self.owners.entry(epoch).or_insert(owner);
        if *of_epoch != owner {
            return Err(format!("{host}: epoch {epoch} has two owners, {of_epoch:02x?} and {owner:02x?}"));
        }
        let Some(applied) = log.applied else { return Ok(()) };
        let hash = xxh3_64(&log.state);
        let (known, first) = self.states.entry(applied).or_insert_with(|| (hash, host.to_owned()));
        if *known != hash {
            return Err(format!("after entry {applied} the log's state at {host} is not what it was at {first}"));
        }
        Ok(())
    }
}

/// What was more before than it is now, if anything was.
fn went_back(before: &LogStanding, now: &LogStanding) -> Result<(), String> {
    let check = |what: &str, before: u64, now: u64| {
        if now < before { Err(format!("{what} went back from {before} to {now}")) } else { Ok(()) }
    };
    check("the applied entry", before.applied.unwrap_or_default(), now.applied.unwrap_or_default())?;
    check("the epoch", before.epoch.0, now.epoch.0)?;
    check("the last version", before.last.get(), now.last.get())?;
    check("the horizon", before.horizon.get(), now.horizon.get())?;
    for (tag, popped) in &before.popped {
        if let Some(now) = now.popped.get(tag) {
            check(&format!("what tag {} has told", tag.0), popped.get(), now.get())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::Version;

    use super::*;

    fn standing(life: u64, applied: u64, state: u8) -> Standing {
        let version = Version::from_u64;
        Standing {
            process: 1,
            life,
            is_complete: true,
            leads: false,
            group: Default::default(),
            processes: Default::default(),
            excluded: Default::default(),
            replicas: 3,
            log: LogStanding {
                applied: Some(applied),
                state: vec![state],
                epoch: (2, [7; 16]),
                last: version(100),
                horizon: version(50),
                popped: [(Tag(1), version(40))].into(),
            },
        }
    }

    type Change = fn(&mut LogStanding);

    /// Each thing that may not go down in a life, one at a time.
    #[test]
    fn nothing_goes_back_in_a_life() {
        let changes: [(Change, &str); 5] = [
            (|log| log.applied = Some(9), "the applied entry went back from 10 to 9"),
            (|log| log.epoch = (1, [6; 16]), "the epoch went back from 2 to 1"),
            (|log| log.last = Version::from_u64(99), "the last version went back from 100 to 99"),
            (|log| log.horizon = Version::from_u64(49), "the horizon went back from 50 to 49"),
            (
                |log| log.popped = [(Tag(1), Version::from_u64(39))].into(),
                "what tag 1 has told went back from 40 to 39",
            ),
        ];
        for (change, what) in changes {
            let mut watcher = Watcher::default();
            watcher.see("a", &standing(1, 10, 0)).expect("it is the first");
            let mut other = standing(1, 11, 1);
            change(&mut other.log);
            assert_eq!(watcher.see("a", &other), Err(format!("a: {what}")));
            other.life = 2;
            other.log.applied = Some(5);
            assert_eq!(watcher.see("a", &other), Ok(()), "in another life it applies the same again");
        }
    }

    #[test]
    fn replicas_agree() {
        let mut watcher = Watcher::default();
        watcher.see("a", &standing(1, 10, 0)).expect("it is the first");
        assert_eq!(watcher.see("b", &standing(2, 10, 0)), Ok(()));
        assert_eq!(watcher.see("b", &standing(2, 11, 1)), Ok(()));
        let differs = "after entry 10 the log's state at c is not what it was at a";
        assert_eq!(watcher.see("c", &standing(3, 10, 1)), Err(differs.to_owned()));
        let mut other = standing(4, 12, 0);
        other.log.epoch.1 = [8; 16];
        assert!(watcher.see("d", &other).is_err_and(|what| what.contains("epoch 2 has two owners")));
    }
}
