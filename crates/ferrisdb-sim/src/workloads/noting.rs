//! [`Noting`]: a way to a database that remembers what became of the last commit that was sent there.
//!
//! A client resolves a commit whose answer was lost by itself, and tells its program only the end. A judge wants to know more: that the answer was lost, so that "not
//! committed" may be right without a conflict; and, when the client's process has died in the middle, by which id the outcome can be asked for.

use std::fmt;
use std::sync::{Arc, Mutex};

use ferrisdb_core::{Code, Error, Result, Version};
use ferrisdb_rpc::api::{CommitId, CommitRequest, Committed, Description, ResolveRequest};
use ferrisdb_rpc::{Answer, Endpoint, pass_on};

use super::lock;

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was sent, and nobody has said anything.
    Unknown,
    /// It was committed, at this version, as the transaction with this number.
    Committed(Version, u16),
    /// It was not, and will not be.
    NotCommitted,
}

impl Fate {
    fn of(committed: &Committed) -> Fate {
        match committed {
            Committed::At { version, batch_index } => Fate::Committed(*version, *batch_index),
            Committed::Conflict { .. } => Fate::NotCommitted,
        }
    }
}

/// A commit that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    id: CommitId,
    read_version: Version,
    /// The answer to the commit itself did not come.
    pub(super) is_lost: bool,
    /// What became of it, as far as anybody has said.
    pub(super) fate: Fate,
}

/// The last commit that was sent, for those who ask and those who note.
pub(super) type Last = Arc<Mutex<Option<Attempt>>>;

/// Finds out what became of a commit. After this nothing more becomes of it.
///
/// # Errors
/// Nobody could be asked; or nobody will ever know, which is `commit_unknown_result_fatal`.
pub(super) async fn fate_of(attempt: &Attempt, endpoint: &dyn Endpoint) -> Result<Fate> {
    if attempt.fate != Fate::Unknown {
        return Ok(attempt.fate);
    }
    let question = ResolveRequest { id: attempt.id, read_version: attempt.read_version };
    let committed = endpoint.resolve(question).await?;
    Ok(committed.as_ref().map_or(Fate::NotCommitted, Fate::of))
}

/// See the [module](self).
pub(super) struct Noting {
    to: Arc<dyn Endpoint>,
    last: Last,
}

impl Noting {
    /// Notes in `last` what is sent to `to`.
    pub(super) fn new(to: Arc<dyn Endpoint>, last: Last) -> Noting {
        Noting { to, last }
    }
}

fn note(last: &Last, note: impl FnOnce(&mut Attempt)) {
    if let Some(attempt) = &mut *lock(last) {
        note(attempt);
    }
}

impl Endpoint for Noting {
    fn description(&self) -> Description {
        self.to.description()
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        let id = request.id.expect("programs commit with ids");
        let read_version = request.read_version;
        *lock(&self.last) = Some(Attempt { id, read_version, is_lost: false, fate: Fate::Unknown });
        let (answer, last) = (self.to.commit(request), Arc::clone(&self.last));
        Answer::later(async move {
            let answer = answer.await;
            note(&last, |attempt| match &answer {
                Ok(committed) => attempt.fate = Fate::of(committed),
                Err(error) if is_lost(error) => attempt.is_lost = true,
                Err(_) => attempt.fate = Fate::NotCommitted,
            });
            answer
        })
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        let (answer, last) = (self.to.resolve(request), Arc::clone(&self.last));
        Answer::later(async move {
            let answer = answer.await;
            if let Ok(committed) = &answer {
                let fate = committed.as_ref().map_or(Fate::NotCommitted, Fate::of);
                note(&last, |attempt| attempt.fate = if attempt.id == request.id { fate } else { attempt.fate });
            }
            answer
        })
    }

    pass_on! { |self| self.to =>
        begin, get, get_key, get_range, watch, lease, estimated_size, split_points, addresses_for_key, locations,
        message, status
    }
}

/// The answer to a commit does not say what became of it.
fn is_lost(error: &Error) -> bool {
    matches!(error.code(), Code::CommitUnknownResult | Code::CommitUnknownResultFatal)
}

impl fmt::Debug for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noting").field("last", &self.last).finish_non_exhaustive()
    }
}
