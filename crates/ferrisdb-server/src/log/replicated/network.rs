//! What the replicas of a log say to each other: messages of bytes over [`Peers`].
//!
//! A question is answered by one message, or not at all: the transport may lose, delay and repeat both. It must not be asked twice by the transport.
//!
//! # Format (version 1; the parts are in types.rs)
//! ```text
//! u8 format version, u8 kind, then
//! 1 append     vote, option of log id (before the first), entries: count, each; option of log id (committed)
//! 2 vote       vote, option of log id (last), u8 leadership transfer
//! 3 pre-vote   the same
//! 4 snapshot   vote, option of log id (last), members, bytes state
//! 5 transfer   vote, to, option of log id (last)
//! 6 pop        tag, version (its answer is itself)
//! 7 confirm    vote
//! answers: u8 format version, u8 kind of the question, then
//! append       u8: 0 all, 1 then option of log id (up to there), 2 conflict, 3 then vote (a higher one)
//! vote         vote, u8 granted, option of log id (last)
//! snapshot     vote
//! transfer     u8: 0 done, 1 refused
//! confirm      u8: 1 if that is this voter's vote
//! ```

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Code, Error, Result, Version};
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{Snapshot, SnapshotMeta};
use openraft::{OptionalSend, Raft};

use super::super::entry::{Tag, count};
use super::machine::Machine;
use super::types::{
    LogId, Peer, ProcessId, Types, Vote, put_entry, put_log_id, put_members, put_option, put_vote, take_bool,
    take_entry, take_log_id, take_members, take_option, take_vote,
};

const FORMAT_VERSION: u8 = 1;

const KIND_APPEND: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_PRE_VOTE: u8 = 3;
const KIND_SNAPSHOT: u8 = 4;
const KIND_TRANSFER: u8 = 5;
const KIND_POP: u8 = 6;
const KIND_CONFIRM: u8 = 7;

/// The slowest way that entries are sent over: the time that heartbeats have is not enough for many bytes of them, and what is given up is sent again as a whole.
const BYTES_PER_SECOND_MIN: u64 = 4 << 20;

/// How long to wait for the answer to so many bytes, if `short` is enough for few.
fn patience(short: Duration, bytes: usize) -> Duration {
    short + Duration::from_secs(1).mul_f64(bytes as f64 / BYTES_PER_SECOND_MIN as f64)
}

/// Carries messages to the other processes.
pub trait Peers: fmt::Debug + Send + Sync + 'static {
    /// Asks process `to`, at `peer`, and gives its answer. Fails after `deadline` at the latest, and sooner if it knows sooner.
    fn ask(&self, to: ProcessId, peer: &Peer, message: Bytes, deadline: Duration) -> BoxFuture<Result<Bytes>>;
}

/// Makes the library's connections.
pub(super) struct Network {
    pub(super) peers: Arc<dyn Peers>,
}

/// The way to one process.
pub(super) struct Line {
    peers: Arc<dyn Peers>,
    to: ProcessId,
    peer: Peer,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Line;

    async fn new_client(&mut self, to: ProcessId, peer: &Peer) -> Line {
        Line { peers: Arc::clone(&self.peers), to, peer: peer.clone() }
    }
}

fn head(kind: u8) -> Vec<u8> {
    vec![FORMAT_VERSION, kind]
}

fn take_head(decoder: &mut Decoder<'_>) -> std::result::Result<u8, DecodeError> {
    if decoder.u8("message: format version")? != FORMAT_VERSION {
        return Err(DecodeError { what: "message: a format that this build does not know" });
    }
    decoder.u8("message: kind")
}

impl Line {
    /// Asks, and has `take` read the answer.
    async fn ask<T>(
        &self,
        kind: u8,
        message: impl Into<Bytes>,
        deadline: Duration,
        take: impl FnOnce(&mut Decoder<'_>) -> std::result::Result<T, DecodeError>,
    ) -> std::result::Result<T, Unreachable<Types>> {
        let answer = self.peers.ask(self.to, &self.peer, message.into(), deadline).await;
        let answer = answer.map_err(|error| Unreachable::new(&error))?;
        let mut decoder = Decoder::new(&answer);
        let taken = take_head(&mut decoder).and_then(|answered| {
            if answered != kind {
                return Err(DecodeError { what: "message: an answer to another question" });
            }
            let taken = take(&mut decoder)?;
            decoder.finish("message: bytes behind its end")?;
            Ok(taken)
        });
        taken.map_err(|error| Unreachable::from_string(error.what))
    }
}

fn put_vote_request(kind: u8, request: &VoteRequest<Types>) -> Vec<u8> {
    let mut out = head(kind);
    put_vote(&mut out, &request.vote);
    put_option(&mut out, request.last_log_id.as_ref(), put_log_id);
    out.push(u8::from(request.leadership_transfer));
    out
}

fn take_vote_request(decoder: &mut Decoder<'_>) -> std::result::Result<VoteRequest<Types>, DecodeError> {
    let mut request = VoteRequest::new(take_vote(decoder)?, take_option(decoder, take_log_id)?);
    request.leadership_transfer = take_bool(decoder, "vote: leadership transfer")?;
    Ok(request)
}

fn put_vote_response(kind: u8, response: &VoteResponse<Types>) -> Vec<u8> {
    let mut out = head(kind);
    put_vote(&mut out, &response.vote);
    out.push(u8::from(response.vote_granted));
    put_option(&mut out, response.last_log_id.as_ref(), put_log_id);
    out
}

fn take_vote_response(decoder: &mut Decoder<'_>) -> std::result::Result<VoteResponse<Types>, DecodeError> {
    let vote = take_vote(decoder)?;
    let is_granted = take_bool(decoder, "vote: granted")?;
    Ok(VoteResponse::new(vote, take_option(decoder, take_log_id)?, is_granted))
}

impl openraft::network::v2::RaftNetworkV2<Types> for Line {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> std::result::Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let mut out = head(KIND_APPEND);
        put_vote(&mut out, &request.vote);
        put_option(&mut out, request.prev_log_id.as_ref(), put_log_id);
        put_varint(&mut out, request.entries.len() as u64);
        request.entries.iter().for_each(|entry| put_entry(&mut out, entry));
        put_option(&mut out, request.leader_commit.as_ref(), put_log_id);
        let patience = patience(option.soft_ttl(), out.len());
        let answered = self
            .ask(KIND_APPEND, out, patience, |decoder| {
                Ok(match decoder.u8("append: answer")? {
                    0 => AppendEntriesResponse::Success,
                    1 => AppendEntriesResponse::PartialSuccess(take_option(decoder, take_log_id)?),
                    2 => AppendEntriesResponse::Conflict,
                    3 => AppendEntriesResponse::HigherVote(take_vote(decoder)?),
                    _ => return Err(DecodeError { what: "append: an unknown answer" }),
                })
            })
            .await?;
        Ok(answered)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> std::result::Result<VoteResponse<Types>, RPCError<Types>> {
        let out = put_vote_request(KIND_VOTE, &request);
        Ok(self.ask(KIND_VOTE, out, option.soft_ttl(), take_vote_response).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> std::result::Result<VoteResponse<Types>, RPCError<Types>> {
        let out = put_vote_request(KIND_PRE_VOTE, &request);
        Ok(self.ask(KIND_PRE_VOTE, out, option.soft_ttl(), take_vote_response).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> std::result::Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut out = head(KIND_SNAPSHOT);
        put_vote(&mut out, &vote);
        put_option(&mut out, snapshot.meta.last_log_id.as_ref(), put_log_id);
        put_members(&mut out, &snapshot.meta.last_membership);
        put_bytes(&mut out, &snapshot.snapshot);
        let sending = std::pin::pin!(self.ask(KIND_SNAPSHOT, out, option.hard_ttl(), take_vote));
        match futures_util::future::select(sending, std::pin::pin!(cancel)).await {
            futures_util::future::Either::Left((answered, _)) => Ok(SnapshotResponse::new(answered?)),
            futures_util::future::Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> std::result::Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let out = transfer_message(request.from_leader(), *request.to_node_id(), request.last_log_id());
        let is_done = self
            .ask(KIND_TRANSFER, out, option.soft_ttl(), |decoder| take_bool(decoder, "transfer: answer"))
            .await
            .map(|is_refused| !is_refused)?;
        let vote = *request.from_leader();
        Ok(if is_done { Ok(()) } else { Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote }) })
    }
}

/// Who leads in which term, if a message says so: a leader's own word.
pub(super) fn leader_in(message: &[u8]) -> Option<(u64, ProcessId)> {
    let mut decoder = Decoder::new(message);
    if take_head(&mut decoder).ok()? != KIND_APPEND {
        return None;
    }
    let vote = take_vote(&mut decoder).ok()?;
    vote.committed.then_some((vote.leader_id.term, vote.leader_id.voted_for))
}

/// Has `raft` answer a message of another process. The caller is within a scope of the library's runtime.
pub(super) async fn answer(raft: &Raft<Types, Machine>, message: Bytes) -> Result<Bytes> {
    let bad = |error: DecodeError| {
        Error::with(
            Code::IncompatibleProtocolVersion,
            format!("a message of another replica cannot be read: {}", error.what),
        )
    };
    let stopped =
        |error: &dyn fmt::Display| Error::with(Code::ConnectionFailed, format!("the log has stopped: {error}"));
    let mut decoder = Decoder::new(&message);
    let kind = take_head(&mut decoder).map_err(bad)?;
    let mut out = head(kind);
    match kind {
        KIND_APPEND => {
            let request = (|| {
                let vote = take_vote(&mut decoder)?;
                let prev_log_id = take_option(&mut decoder, take_log_id)?;
                let count = count(&mut decoder, "append: entries")?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push(take_entry(&message, &mut decoder)?);
                }
                let leader_commit = take_option(&mut decoder, take_log_id)?;
                Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
            })()
            .map_err(bad)?;
            decoder.finish("message: bytes behind its end").map_err(bad)?;
            match raft.append_entries(request).await.map_err(|error| stopped(&error))? {
                AppendEntriesResponse::Success => out.push(0),
                AppendEntriesResponse::PartialSuccess(last) => {
                    out.push(1);
                    put_option(&mut out, last.as_ref(), put_log_id);
                }
                AppendEntriesResponse::Conflict => out.push(2),
                AppendEntriesResponse::HigherVote(vote) => {
                    out.push(3);
                    put_vote(&mut out, &vote);
                }
            }
        }
        KIND_VOTE | KIND_PRE_VOTE => {
            let request = take_vote_request(&mut decoder).map_err(bad)?;
            decoder.finish("message: bytes behind its end").map_err(bad)?;
            let response = if kind == KIND_VOTE { raft.vote(request).await } else { raft.pre_vote(request).await };
            out = put_vote_response(kind, &response.map_err(|error| stopped(&error))?);
        }
        KIND_SNAPSHOT => {
            let (vote, snapshot) = (|| {
                let vote = take_vote(&mut decoder)?;
                let last_log_id = take_option(&mut decoder, take_log_id)?;
                let last_membership = take_members(&mut decoder)?;
                let state = message.slice_ref(decoder.bytes("snapshot: state")?);
                Ok((vote, Snapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: state }))
            })()
            .map_err(bad)?;
            decoder.finish("message: bytes behind its end").map_err(bad)?;
            let vote = match is_in_log(raft, vote, snapshot.meta.last_log_id).await.map_err(|error| stopped(&error))? {
                Some(vote) => vote,
                None => raft.install_full_snapshot(vote, snapshot).await.map_err(|error| stopped(&error))?.vote,
            };
            put_vote(&mut out, &vote);
        }
        KIND_TRANSFER => {
            let request = (|| {
                let vote = take_vote(&mut decoder)?;
                let to = decoder.varint("transfer: to")?;
                Ok(TransferLeaderRequest::new(vote, to, take_option(&mut decoder, take_log_id)?))
            })()
            .map_err(bad)?;
            decoder.finish("message: bytes behind its end").map_err(bad)?;
            let done = raft.handle_transfer_leader(request).await.map_err(|error| stopped(&error))?;
            out.push(u8::from(done.is_err()));
        }
        _ => return Err(bad(DecodeError { what: "message: an unknown kind" })),
    }
    Ok(out.into())
}

/// A snapshot that arrives late may be of what has come as entries meanwhile. The library installs it all the same if it does not know yet that these are
/// committed, and takes its own progress back by that (with debug assertions it stops there). So they are told as committed instead, if they are
/// in the log: then what to answer. `None`: the snapshot is needed.
async fn is_in_log(
    raft: &Raft<Types, Machine>,
    vote: Vote,
    last: Option<LogId>,
) -> std::result::Result<Option<Vote>, openraft::errors::RaftError<Types>> {
    let has_index =
        |metrics: &openraft::RaftMetrics<Types>| last.is_some_and(|last| metrics.last_log_index >= Some(last.index));
    if !has_index(&openraft::async_runtime::watch::WatchReceiver::borrow_watched(&raft.metrics())) {
        return Ok(None);
    }
    let told = AppendEntriesRequest { vote, prev_log_id: last, entries: Vec::new(), leader_commit: last };
    Ok(match raft.append_entries(told).await? {
        AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
            reached(Rare::SnapshotNotNeeded);
            Some(vote)
        }
        AppendEntriesResponse::HigherVote(vote) => Some(vote),
        AppendEntriesResponse::Conflict => None,
    })
}

/// A leader's question whether a voter's vote is still this one.
pub(super) fn confirm_message(vote: &Vote) -> Bytes {
    let mut out = head(KIND_CONFIRM);
    put_vote(&mut out, vote);
    out.into()
}

/// The vote in what [`confirm_message`] made, if it is that.
pub(super) fn confirm_in(message: &[u8]) -> Option<Vote> {
    let mut decoder = Decoder::new(message);
    if take_head(&mut decoder).ok()? != KIND_CONFIRM {
        return None;
    }
    let vote = take_vote(&mut decoder).ok()?;
    decoder.is_empty().then_some(vote)
}

/// The answer to it.
pub(super) fn confirm_answer(is_confirmed: bool) -> Bytes {
    let mut out = head(KIND_CONFIRM);
    out.push(u8::from(is_confirmed));
    out.into()
}

/// Whether an answer says yes; anything unknown does not.
pub(super) fn is_confirmed(answer: &[u8]) -> bool {
    answer == &confirm_answer(true)[..]
}

/// Asks a voter to lead in the place of the leader with `vote`, if it has the log up to `last`.
pub(super) fn transfer_message(vote: &Vote, to: ProcessId, last: Option<&LogId>) -> Bytes {
    let mut out = head(KIND_TRANSFER);
    put_vote(&mut out, vote);
    put_varint(&mut out, to);
    put_option(&mut out, last, put_log_id);
    out.into()
}

/// A storage server's pop, on its way to the leader.
pub(super) fn pop_message(tag: Tag, version: Version) -> Bytes {
    let mut out = head(KIND_POP);
    put_varint(&mut out, u64::from(tag.0));
    put_varint(&mut out, version.get());
    out.into()
}

/// What [`pop_message`] made, if it is that.
pub(super) fn pop_in(message: &[u8]) -> Option<(Tag, Version)> {
    let mut decoder = Decoder::new(message);
    if take_head(&mut decoder).ok()? != KIND_POP {
        return None;
    }
    let tag = u32::try_from(decoder.varint("pop: tag").ok()?).ok()?;
    let version = Version::new(decoder.varint("pop: version").ok()?)?;
    decoder.is_empty().then_some((Tag(tag), version))
}
