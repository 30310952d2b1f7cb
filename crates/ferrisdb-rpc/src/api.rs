//! The questions that a client asks, and [`Endpoint`], which answers them.
//!
//! They are few and plain on purpose. Whatever a client can work out for itself (its own writes, key selectors over them,
//! streaming modes, retries, the special keys) it does; a server sees ranges of keys between two plain bounds, versions, and finished
//! transactions. All keys here are stored keys: below `\xff\xff`.
//!
//! # Which errors
//! Those of the contract: `transaction_too_old`, `future_version`, `process_behind`, `not_committed` (as [`Committed::Conflict`]),
//! `commit_unknown_result`, `database_locked` (of a commit; who begins is told by [`Begun`]), the throttling ones, and `io_error`, `internal_error`, `connection_failed` with a detail. Read-only
//! questions may be asked again after any of them; for a commit see [`Endpoint::commit`].

use std::sync::Arc;

use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, KeyValue, Limits, Mutation, Version, Versionstamp};

pub use crate::afterwards::Afterwards;
use crate::answer::Answer;

/// How urgent the beginning of a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Waits while the database is busy.
    Batch,
    /// What transactions are unless they say otherwise.
    #[default]
    Default,
    /// Never throttled: for administration.
    Immediate,
}

/// Asks for read versions for `transactions` transactions that begin now: all get the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BeginRequest {
    /// How many, for rate control. At least 1.
    pub transactions: u32,
    /// How urgent.
    pub priority: Priority,
}

/// What a transaction that begins gets to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// At or above every version that was acknowledged before the question was asked.
    pub version: Version,
    /// The database is locked as of that version: only a transaction that says that it knows of it may go on.
    pub is_locked: bool,
}

/// Asks for one key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetRequest {
    /// The key.
    pub key: Bytes,
    /// As of when.
    pub version: Version,
}

/// Asks for the key at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetKeyRequest {
    /// The place. Its offset is counted among the keys below `end`.
    pub selector: KeySelector,
    /// The end of what may be read: past it the answer is this key.
    pub end: Bytes,
    /// As of when.
    pub version: Version,
}

/// Asks for the keys and values in a range, in order, up to a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetRangeRequest {
    /// The range. An empty or inverted one has no rows.
    pub range: KeyRange,
    /// As of when.
    pub version: Version,
    /// Rows at most; 0: no bound.
    pub limit: u32,
    /// Bytes (of keys, values, and 8 a row) after which no further row is sent; 0: the server's own bound. One row is
    /// always sent. The server may send less.
    pub target_bytes: u32,
    /// From the end, descending.
    pub reverse: bool,
}

/// A part of a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// In the order asked for.
    pub rows: Vec<KeyValue>,
    /// There may be more behind the last row (before it, if reversed). False only if there is not.
    pub more: bool,
}

/// Which attempt to commit this is: the same in every retry of it, and in no other. See "Commit ids" in the documentation of
/// transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId {
    /// A client instance: eight random bytes.
    pub client: u64,
    /// Counts the client's commits, from 1.
    pub counter: u64,
}

/// A finished transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRequest {
    /// The version at which it read. Also a transaction that read nothing has one: a commit that arrives
    /// very late must be refused.
    pub read_version: Version,
    /// What it read. Sorted, without overlaps.
    pub read_conflicts: Vec<KeyRange>,
    /// What it writes, for the conflicts of others. Sorted, without overlaps. The final keys of versionstamped keys are added
    /// when they are known.
    pub write_conflicts: Vec<KeyRange>,
    /// Its changes, in order.
    pub mutations: Vec<Mutation>,
    /// Its id; `None` gives up "at most once".
    pub id: Option<CommitId>,
    /// The client's lowest counter whose outcome it does not know yet; the outcomes of lower ones may be forgotten.
    pub lowest_unanswered: u64,
    /// In a conflict say which of `read_conflicts` it was.
    pub report_conflicting_keys: bool,
    /// Set if no read version was asked for on behalf of this transaction: `read_version` is one that the client had heard of before. The
    /// transaction begins with its commit then, and counts as one that begins, with this priority. Only for one that has read nothing.
    pub begins: Option<Priority>,
    /// Commits also while the database is locked.
    pub lock_aware: bool,
}

/// What became of a commit that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It is durable.
    At {
        /// At which version.
        version: Version,
        /// As which transaction of that version.
        batch_index: u16,
    },
    /// It did not happen: something that it read was changed since.
    Conflict {
        /// Which of `read_conflicts`, by index, if that was asked for.
        ranges: Vec<u32>,
    },
}

impl Committed {
    /// The stamp of a commit that happened.
    pub fn versionstamp(&self) -> Option<Versionstamp> {
        match *self {
            Committed::At { version, batch_index } => Some(Versionstamp::new(version, batch_index)),
            Committed::Conflict { .. } => None,
        }
    }
}

/// Asks for the outcome of a commit whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolveRequest {
    /// Which commit.
    pub id: CommitId,
    /// The read version that it carried.
    pub read_version: Version,
}

/// Waits for a key to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// The key.
    pub key: Bytes,
    /// What it was when the watch was set.
    pub value: Option<Bytes>,
    /// As of when: the commit version of the transaction that set the watch, or its read version.
    pub version: Version,
}

/// Keeps a version readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseRequest {
    /// Begins a lease, at this version or (`None`) at the newest.
    Grant(Option<Version>),
    /// Lets it run its full term again.
    Renew(u64),
    /// Ends it. Ending one that has expired is not an error.
    End(u64),
}

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: u64,
    /// The version that it keeps readable.
    pub version: Version,
    /// For how long from the answer on, in milliseconds, unless renewed.
    pub term_ms: u64,
}

/// Asks where to cut a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitPointsRequest {
    /// The range.
    pub range: KeyRange,
    /// About how many bytes each part should have. At least 1.
    pub part_bytes: u64,
    /// Parts at most; 0: no bound.
    pub limit: u32,
}

/// Asks who holds which part of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocationsRequest {
    /// The range.
    pub range: KeyRange,
    /// Locations at most, at least two; 0: the server's own bound.
    pub limit: u32,
}

/// Where keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// From this key on, up to where the next one begins: the first one may begin before the range that was asked for.
    pub begin: Bytes,
    /// Addresses (`IP:PORT`) of the servers that hold it; none in an embedded database.
    pub addresses: Vec<String>,
}

/// Who holds which part of a range, in order, as the one who answers knows it at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Locations {
    /// Without gaps.
    pub locations: Vec<Location>,
    /// More of the range is held elsewhere, behind the last of these. At least two are there then: whoever asks again, from behind where the last one begins,
    /// gets on.
    pub more: bool,
    /// The address of the process that gives read versions and decides commits, as far as the one who answers knows. `None`: it does not know at this moment,
    /// or there is one process only.
    pub coordinator: Option<String>,
}

impl Locations {
    /// Of a range that one server has all of.
    pub fn whole(addresses: Vec<String>) -> Locations {
        Locations { locations: vec![Location { begin: Bytes::new(), addresses }], more: false, coordinator: None }
    }
}

/// Whether another server may know better than the one that answered a read with this, or did not answer.
pub fn may_know_elsewhere(code: Code) -> bool {
    matches!(
        code,
        Code::WrongShardServer
            | Code::ConnectionFailed
            | Code::ProcessBehind
            | Code::FutureVersion
            | Code::OperationCancelled
            | Code::IoError
    )
}

/// Whether an answer like this means that nobody has decided: there was no connection, or the one who was asked does not decide. For a commit too, which
/// certainly has not happened then.
pub fn is_undecided(code: Code) -> bool {
    matches!(code, Code::ConnectionFailed | Code::ProcessBehind)
}

/// What a database is, as far as its clients must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Sixteen random bytes minted when it was founded: the same after any restart.
    pub cluster_id: [u8; 16],
    /// Its limits.
    pub limits: Limits,
    /// How to reach it, in words: a directory, or addresses.
    pub connection_string: String,
}

/// Something that answers a client's questions: a database in the same process, a connection to a server, or a router over many.
///
/// # Concurrency
/// Everything may be called from any thread at once. No call blocks, but for [`commit_alone`](Self::commit_alone): what needs a wait is [`Answer::Later`],
/// whose wakers may be called from any thread.
pub trait Endpoint: Send + Sync + 'static {
    /// What database this is. Known from the moment of connecting.
    fn description(&self) -> Description;

    /// The version to read at for transactions that begin now.
    fn begin(&self, request: BeginRequest) -> Answer<Begun>;

    /// A key's value, if memory has it here and now: what [`get`](Self::get) would answer, without what a question costs. `None`: put the question.
    /// It waits for nothing and wakes nobody, so that it may be called with a lock held. What is far away has nothing here.
    fn get_here(&self, _key: &[u8], _version: Version) -> Option<Option<Bytes>> {
        None
    }

    /// A key's value.
    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>>;

    /// The key at a place: `''` off the front, `end` off the end.
    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes>;

    /// Keys and values in a range.
    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows>;

    /// Commits. Never sent twice by anything below the client library.
    ///
    /// # Errors
    /// `commit_unknown_result`: it may have happened or may yet; [`resolve`](Self::resolve) tells. Every other error: it
    /// did not happen and will not.
    fn commit(&self, request: CommitRequest) -> Answer<Committed>;

    /// The same, for a caller whose thread has nothing else to do until the answer comes, and may block for about half a millisecond: what would be done on another
    /// thread may be done on the caller's, and two hand-overs between threads are spared. Who is in less of a hurry than the caller is left in `afterwards`.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    fn commit_alone(&self, request: CommitRequest, _afterwards: &mut Afterwards) -> Answer<Committed> {
        self.commit(request)
    }

    /// The outcome of an earlier commit: `Some`, or `None` if it did not happen, and from now on will not.
    ///
    /// # Errors
    /// `commit_unknown_result_fatal`: it is too long ago. Others: ask again.
    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>>;

    /// Ready once the key's value differs from the one given, with a version at which it does. It may be ready without a
    /// change (the client reads again), and misses a change that was taken back at once.
    fn watch(&self, request: WatchRequest) -> Answer<Version>;

    /// Begins, renews or ends a lease on a version.
    ///
    /// # Errors
    /// `transaction_too_old`: the version is not readable any more, or the lease has expired.
    fn lease(&self, request: LeaseRequest) -> Answer<Lease>;

    /// About how many bytes the range has, from samples.
    fn estimated_size(&self, range: KeyRange) -> Answer<u64>;

    /// Keys between which parts of about the wanted size lie: ascending, strictly inside the range.
    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>>;

    /// Addresses (`IP:PORT`) of the servers that hold a key; none in an embedded database.
    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>>;

    /// Who holds which part of a range. Of the moment: data moves, and two answers about neighbouring ranges need not fit.
    fn locations(&self, request: LocationsRequest) -> Answer<Locations>;

    /// The status document, JSON.
    fn status(&self) -> Answer<String>;

    /// True if there is a way to the database at this moment, as far as is known here without asking.
    fn is_reachable(&self) -> bool {
        true
    }

    /// What one process of a cluster asks another: bytes that only the two of them understand. It is never sent twice, so that its end with
    /// `connection_failed` leaves open whether it arrived. Only peers may ask it: see [`for_peers`](Self::for_peers).
    ///
    /// # Errors
    /// `client_invalid_operation`: this is not a process of a cluster.
    fn message(&self, _message: Bytes) -> Answer<Bytes> {
        Error::with(Code::ClientInvalidOperation, "this is not a process of a cluster").into()
    }

    /// What answers the other processes of the cluster, and clients that know whom they ask ([`ClientOptions::asks_one`](crate::ClientOptions::asks_one)), in
    /// place of this endpoint; `None`: this endpoint does. Asked once for each of their connections. A process of a cluster that forwards what it cannot answer
    /// itself gives here an endpoint that does not, so that no question goes in circles.
    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        None
    }
}
