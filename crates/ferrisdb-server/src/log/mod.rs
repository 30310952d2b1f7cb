//! The log: the one order of all commits, and the only place where a commit is made durable.
//!
//! ```text
//! coordinator ──append──▶ log ──subscribe──▶ storage server
//!      ▲ recover           │  ◀────pop──────────────┘  "all up to here is durable with me"
//!      └───────────────────┘ purges what nobody needs any more
//! ```
//!
//! [`Log`] is what the roles see of it. [`LocalLog`] keeps it in the write-ahead log of one process,
//! [`ReplicatedLog`](replicated::ReplicatedLog) on several. [`entry`] has the bytes of an entry, [`state`] what the entries amount to.
//!
//! # Invariants
//! - What an append acknowledged is durable, and was counted by the state machine, in the order of the appends.
//! - No subscriber sees what is not durable.
//! - Nothing is purged that a tag has not popped, or that the kept state does not cover.

mod appending;
pub mod entry;
pub mod local;
pub mod replicated;
pub mod state;
pub(crate) mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Mutation, Result, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{Afterwards, CommitId};

pub use entry::{Batch, Entry, EpochStart, IdOutcome, LeaseChange, Outcome, Owner, Pop, Section, Tag};
pub use local::{LocalLog, LocalLogOptions};
pub use state::{Applied, Known, State};
pub use verify::LogReport;

/// What a coordinator must know to begin an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The last epoch that began.
    pub epoch: u64,
    /// The last version.
    pub last: Version,
    /// Below this only leased versions are readable.
    pub horizon: Version,
    /// The leases, by number.
    pub leases: BTreeMap<u64, Version>,
    /// A number above that of every lease there was.
    pub next_lease: u64,
    /// How far every tag has come.
    pub popped: BTreeMap<Tag, Version>,
    /// What the database is locked with, if it is.
    pub lock: Option<Bytes>,
    /// The cluster's own data.
    pub metadata: Arc<BTreeMap<Bytes, Bytes>>,
}

/// Where the log's state machine stands, confirmed: see [`Log::read_index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// The coordinator of the current epoch.
    pub owner: Owner,
    /// The last version.
    pub version: Version,
    /// The database is locked as of that version.
    pub is_locked: bool,
}

/// A batch as one subscriber gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The version that the subscriber got before this one.
    pub previous: Version,
    /// Its version. The subscriber has now everything up to it.
    pub version: Version,
    /// Versions below this, but for the leased ones, need not be readable any more.
    pub horizon: Version,
    /// Versions that are kept readable, ascending.
    pub leased: Arc<[Version]>,
    /// The tag's mutations, in order. Often none.
    pub mutations: Vec<Mutation>,
    /// Bytes of the mutations of the whole batch, whoever needs them.
    pub batch_bytes: u64,
    /// What the subscriber keeps for the log, with the data and in the same atomic step: the log's state as of this version.
    pub owner_state: Option<Vec<u8>>,
}

impl Delivery {
    /// About the bytes that it holds in memory.
    pub fn bytes(&self) -> u64 {
        let mutations = self.mutations.iter().map(|mutation| mutation.bytes() + size_of::<Mutation>());
        (mutations.sum::<usize>() + size_of::<Delivery>()) as u64
    }
}

/// A stream of batches, complete and in order.
pub trait Subscription: Send {
    /// The next batch, when it is there. May read from a disk.
    ///
    /// # Errors
    /// The log was closed or has failed, or what comes next cannot be read. There is no next one after that.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery>>;
}

/// The log, as the roles see it.
pub trait Log: Send + Sync + 'static {
    /// Appends entries, in order and to be durable together. The future says whether all of them counted, once they are durable; dropping it
    /// takes nothing back. Only one task proposes: entries that are appended concurrently would void each other.
    ///
    /// # Errors
    /// From the call: nothing was appended, and nothing will be. From the future: nobody knows whether it was.
    fn append(&self, entries: Vec<Entry>) -> Result<BoxFuture<Result<Applied>>>;

    /// The same for a caller that has nothing else to do until they are durable, and may block: what the log would have done on a task of its own
    /// it does on the caller's, if it can, and two hand-overs between threads are spared. Who is in `meanwhile` is woken once the entries are written, so that they work while
    /// the disk does. What comes with the future is to be woken once the caller has answered: the subscriber, who is in less of a hurry.
    ///
    /// # Errors
    /// As [`append`](Self::append). Who is in `meanwhile` is left in it.
    fn append_alone(
        &self,
        entries: Vec<Entry>,
        meanwhile: &mut Afterwards,
    ) -> Result<(BoxFuture<Result<Applied>>, Option<Waker>)> {
        let appended = self.append(entries)?;
        meanwhile.wake();
        Ok((appended, None))
    }

    /// The batches above `above` with the mutations of `tag`. May be called again after an error, which ends the stream before.
    ///
    /// # Errors
    /// An unknown tag, a version below what it has popped or above the last one: never an empty stream.
    fn subscribe(&self, tag: Tag, above: Version) -> Result<Box<dyn Subscription>>;

    /// All of the tag's mutations up to `version`, and the newest owner state that came with them, are durable at its storage server.
    fn pop(&self, tag: Tag, version: Version);

    /// What a new coordinator must know.
    fn recover(&self) -> Recovered;

    /// The last version that this process knows to be durable and counted; of a newer one it may not have heard yet.
    fn last_known(&self) -> Version;

    /// Confirms that no newer epoch has begun, and tells owner, last version and lock as the log's state machine has them after that: the read version
    /// for whoever asked before. No coordinator may answer from its own memory.
    fn read_index(&self) -> Answer<Confirmed>;

    /// What is known of a commit id, and the id floor: below that, nothing known says nothing.
    fn known(&self, id: CommitId) -> (Known, Version);
}
