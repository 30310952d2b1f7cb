//! Rare branches, counted: places in the code that a test under faults must reach to have tested them. Not an API.
//!
//! A simulation is worth what it reaches. Each such place is named in the list below and says [`reached`] when it is; `ferrisdb sim` adds up what its seeds have reached, and ends with the names of those that
//! none has. To mark another place, add a line here and one call there.
//!
//! A count is one relaxed addition at a place that is rarely reached: nothing to a server. It decides nothing. The counts are those of the process, which in the simulator
//! is one seed.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! rare_places {
    ($($(#[$doc:meta])* $place:ident = $name:literal,)*) => {
        /// A place that is rarely reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Rare {
            $($(#[$doc])* $place,)*
        }

        /// What reports call each of them, in the order of the list.
        pub const NAMES: &[&str] = &[$($name,)*];
    };
}

rare_places! {
    /// An entry of the log counted for nothing.
    VoidEntry = "log: a void entry",
    /// A replica of the log was given a snapshot, as it was too far behind.
    SnapshotInstalled = "log: a snapshot installed",
    /// A snapshot came for what was in the log already.
    SnapshotNotNeeded = "log: a snapshot of what is there already",
    /// Voters did not confirm a read version at the first try.
    ReadNotConfirmed = "log: voters that do not confirm a read version",
    /// A replica was asked for batches that it does not have (yet, or any more).
    SubscriptionRefused = "log: a subscription out of its reach",
    /// The log had to read old batches from disk for a subscriber.
    ColdBatches = "log: batches read from disk for a subscriber",
    /// The end of a WAL was torn.
    TornTail = "wal: a torn tail",
    /// The engine stopped because of its disk.
    Poisoned = "engine: it takes no more writes",
    /// What a coordinator proposed was void: another one has begun an epoch, and it gives up its own.
    EpochGivenUp = "coordinator: an epoch given up as void",
    /// A commit came again.
    CommitAgain = "coordinator: a commit that came before",
    /// A commit came whose id is too old for anybody to know.
    IdForgotten = "coordinator: an id nobody knows any more",
    /// Somebody asked for an outcome that was not there, and is now that it did not happen.
    ResolvedAsNever = "coordinator: an outcome made never",
    /// Somebody asked for the outcome of a commit that was under way.
    ResolvedInFlight = "coordinator: an outcome asked for under way",
    /// Somebody asked for an outcome that is known.
    ResolvedKnown = "coordinator: an outcome that is known",
    /// Somebody asked too late for an outcome.
    ResolvedTooLate = "coordinator: an outcome asked for below the floor",
    /// A lease ran out.
    LeaseExpired = "coordinator: a lease that expired",
    /// A lease was asked for at a version that is gone, or renewed after its end.
    LeaseRefused = "coordinator: a lease refused",
    /// A process counts as gone, and its storage server lost its tag.
    TagDropped = "controller: a tag dropped",
    /// A process belongs to the cluster no more.
    ProcessForgotten = "controller: a process forgotten",
    /// The voters of the log were changed.
    VotersChanged = "controller: a change of voters",
    /// A change of voters that another leader began was ended.
    HalfDoneChange = "controller: a half-done change of voters ended",
    /// A leader that is to go handed over.
    HandOver = "controller: an excluded leader hands over",
    /// A move of a shard was given up.
    MoveGivenUp = "shards: a move given up",
    /// A shard has another team that is not larger.
    Shrunk = "shards: replicas taken away",
    /// A chunk was fetched anew, because too much changed in it meanwhile or the move was given up.
    ChunkAgain = "shards: a chunk that is not wanted any more",
    /// A shard was split.
    Split = "shards: a split",
    /// Two shards became one.
    Merge = "shards: a merge",
    /// A storage server was told to answer for a key that it does not hold.
    WrongShard = "shards: a question to who does not hold the key",
    /// A process began again with another tag.
    RejoinedWithTag = "process: it begins again with another tag",
    /// A process began again as another one.
    RejoinedAsNew = "process: it begins again as a new one",
    /// A process that leads asked another one to lead when it closed or its disk was full.
    HandedOverByItself = "process: a leader that asks another one to lead",
    /// A read was asked for at a second process because the first one was slow.
    Hedged = "reads: a hedge",
}

static COUNTS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// This place was reached.
#[inline]
pub fn reached(place: Rare) {
    COUNTS[place as usize].fetch_add(1, Ordering::Relaxed);
}

/// How often each place was reached in this process, in the order of the list.
pub fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    NAMES.iter().copied().zip(COUNTS.iter().map(|count| count.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is reached is counted under its own name; names are told apart.
    #[test]
    fn places_are_counted() {
        let count = |name| counts().find(|(other, _)| *other == name).expect("it is in the list").1;
        let before = count("reads: a hedge");
        reached(Rare::Hedged);
        assert_eq!(count("reads: a hedge"), before + 1);
        let distinct: std::collections::BTreeSet<_> = NAMES.iter().collect();
        assert_eq!(distinct.len(), NAMES.len());
    }
}
