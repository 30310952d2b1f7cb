//! The log of a cluster: [`ReplicatedLog`], a Raft group behind the trait [`Log`].
//!
//! ```text
//! coordinator ─append─▶ queue ─(one proposer, in order)─▶ consensus library ─▶ LogStore (our WAL), and the same on every voter
//!                                                              │ committed
//!                                                              ▼
//! storage server ◀─subscribe by tag─ Machine (state, hot batches), on every replica
//! ```
//!
//! The library (openraft, pinned) elects, replicates and counts; what it is given is ours: its tasks run on a [`Runtime`] (`runtime.rs`), its
//! votes and entries lie in the storage crate's WAL (`store.rs`), its entries are those of [`entry`](super::entry), its messages go
//! through [`Peers`] (`network.rs`), and its snapshots are the state as of the place before which nobody needs anything (`machine.rs`).
//!
//! # Settings of the library that matter
//! - Leaders are not restored after a restart: each start of a process that leads is a new term, and so a new epoch.
//! - Pre-vote is on: a process that was cut off does not depose a leader that works when it comes back.
//! - Snapshots and purges happen when we say so.
//! - Reads are confirmed by a round to a quorum (`confirm.rs`), never by a lease: in this library a restarted follower forgets the lease that it helped to grant.
//!
//! # Invariants
//! - Proposals are appended in the order of the calls, by one task.
//! - What an append's future tells as counted is on a quorum's disks, and applied here.
//! - An append that fails before the library took it was not appended; of any other nobody knows.
//!
//! # A full disk
//! The library waits for its store, and does nothing else meanwhile. So a replica whose disk is full does not lead, whatever the library said last; it refuses messages at the
//! door, which tells the others at once, and learns from them who leads instead. When there is space it goes on as one that was cut off.

mod channel;
mod confirm;
mod machine;
mod network;
mod runtime;
mod store;
mod types;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Code, Error, Result, Runtime, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::CommitId;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::{ChangeMembers, Config, Raft, ReadPolicy, SnapshotPolicy};

pub use network::Peers;
pub(crate) use store::verify as verify_replica;
pub use store::{LogExtent, LogStoreOptions, ReplicaReport};
pub use types::{Peer, Place, Position, ProcessId};

use self::confirm::Confirmer;
use self::machine::Machine;
use self::network::Network;
use self::runtime::scope;
use self::store::LogStore;
use self::types::{Proposal, Types};
use super::entry::{Entry, Pop, Tag};
use super::state::{Applied, Known, State};
use super::{Confirmed, Log, Recovered, Subscription};
use crate::failure::NotOpened;
use crate::runtime::JobRuntime;
use crate::signal::{Bell, Latch, Reply, lock, reply};

/// How a replicated log is set up. Times are by each process's own clock, and safety depends on none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicatedLogOptions {
    /// Where entries lie.
    pub store: LogStoreOptions,
    /// Bytes of batches kept in memory for storage servers; what does not fit is read from the store. Default: 32 MiB.
    pub hot_bytes: u64,
    /// A follower that hears nothing for three to four times so long stands for election: the lease of a leader is twice that, and the rest, between
    /// once and twice, is another one for each. A vote is given up after three quarters of it. At least five times the worst sync. Default: 1 s.
    pub election_timeout: Duration,
    /// How often a leader that has nothing to say is heard of. Default: 200 ms.
    pub heartbeat_interval: Duration,
    /// An append that is not done after so long is given up as unknown. Default: 5 s.
    pub append_timeout: Duration,
    /// The log is purged at most once in so long. Default: 1 s.
    pub purge_interval: Duration,
    /// The tags that a new log begins with.
    pub tags: Vec<Tag>,
    /// The replica takes no part, neither voting nor appending nor standing for election, until it is [introduced](ReplicatedLog::introduced): its disk may have
    /// gone back, and its peers can tell. Default: false.
    pub waits_for_introduction: bool,
}

impl Default for ReplicatedLogOptions {
    fn default() -> ReplicatedLogOptions {
        ReplicatedLogOptions {
            store: LogStoreOptions::default(),
            hot_bytes: 32 << 20,
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(200),
            append_timeout: Duration::from_secs(5),
            purge_interval: Duration::from_secs(1),
            tags: vec![Tag::FIRST],
            waits_for_introduction: false,
        }
    }
}

impl ReplicatedLogOptions {
    fn config(&self) -> Result<Config> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "ferrisdb".to_owned(),
            election_timeout_min: millis(self.election_timeout),
            election_timeout_max: millis(self.election_timeout * 2),
            heartbeat_interval: millis(self.heartbeat_interval),
            // It is as large as the log's state, and has nothing to do with how soon a silent leader is missed.
            install_snapshot_timeout: millis(self.append_timeout),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(!planted(Bug::PreVoteOff)),
            enable_leader_restore: Some(false),
            // A follower that lost entries without anybody's having known is sent them again; the library's other choice is that the leader panics.
            allow_log_reversion: Some(true),
            enable_elect: !self.waits_for_introduction,
            ..Config::default()
        };
        config.validate().map_err(|error| {
            Error::with(Code::InvalidOptionValue, format!("the options of the replicated log do not fit: {error}"))
        })
    }
}

/// What runs a task of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunBy {
    /// The jobs: it blocks on the disk.
    Jobs,
    /// What runs the library's tasks: it never blocks, and talks with these all the time. With threads between them every word would wake one.
    Runtime,
}

/// A handle to one replica of the log; clones share it. The tasks that drive it hold one too: they end with [`ReplicatedLog::close`].
#[derive(Clone)]
pub struct ReplicatedLog {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    process: ProcessId,
    raft: Raft<Types, Machine>,
    machine: Machine,
    store: LogStore,
    peers: Arc<dyn Peers>,
    options: ReplicatedLogOptions,
    queue: Mutex<Queue>,
    /// Rung for the proposer.
    proposal_bell: Bell,
    /// Rung for the task that confirms reads.
    read_bell: Bell,
    is_closed: AtomicBool,
    closed: Latch,
    /// It may take part.
    is_introduced: AtomicBool,
    /// Who said that it leads in which term, while the disk was full.
    heard: Mutex<Option<(u64, ProcessId)>>,
    /// Set, and replaced, when what was asked of the library is not waited for any more.
    abandoned: Mutex<Arc<Latch>>,
}

impl Shared {
    /// The pops that are not applied yet; the others are forgotten.
    fn pending_pops(&self, queue: &mut Queue) -> Vec<Pop> {
        queue.pops.retain(|&tag, &mut version| self.machine.popped(tag).is_some_and(|popped| popped < version));
        queue.pops.iter().map(|(&tag, &version)| Pop { tag, version }).collect()
    }
}

type Written = openraft::raft::ClientWriteResult<Types>;

#[derive(Default)]
struct Queue {
    proposals: VecDeque<(Proposal, ProgressResponder<Types, Written>)>,
    /// Popped, and not known to be applied: they ride with the next entries, again and again, because a proposal may be lost. Twice does no harm.
    pops: BTreeMap<Tag, Version>,
    /// Who waits for the next round of confirmation.
    reads: Vec<Reply<Confirmed>>,
}

/// What a replica knows of its group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupView {
    /// The leader, as far as is known here.
    pub leader: Option<ProcessId>,
    /// The term.
    pub term: u64,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Index of the last entry that is in the newest snapshot.
    pub snapshot: Option<u64>,
    /// Index of the last purged entry.
    pub purged: Option<u64>,
    /// The voters: of both configurations, while they change.
    pub voters: BTreeSet<ProcessId>,
    /// While the voters change: who they are to be. The change is two entries, and who writes the second may die before it; then whoever leads has to.
    pub changing_to: Option<BTreeSet<ProcessId>>,
    /// The learners.
    pub learners: BTreeSet<ProcessId>,
    /// Where all of them are.
    pub peers: BTreeMap<ProcessId, Peer>,
    /// Why it has stopped, if it has.
    pub failure: Option<String>,
}

impl ReplicatedLog {
    /// Opens process `process`'s replica in `dir`, or makes a new one, which belongs to no group until it is
    /// [founded](Self::found) or a group takes it in.
    ///
    /// `jobs` runs what blocks on the disk, `runtime` the library's tasks, which never do; the log's own tasks are given to `spawn`, with a name, and which
    /// of the two is to run them.
    ///
    /// # Errors
    /// What the disk says, damage apart from the rest; options that do not fit together.
    #[expect(clippy::too_many_arguments, reason = "all of them are doors and identities")]
    pub async fn open(
        jobs: JobRuntime,
        runtime: Arc<dyn Runtime>,
        dir: &Path,
        options: ReplicatedLogOptions,
        cluster_id: [u8; 16],
        process: ProcessId,
        peers: Arc<dyn Peers>,
        mut spawn: impl FnMut(RunBy, &str, BoxFuture<()>),
    ) -> std::result::Result<ReplicatedLog, NotOpened> {
        let config = Arc::new(options.config()?);
        let store = LogStore::open(jobs, dir, options.store.clone(), cluster_id)?;
        // From here on it must be driven: the library writes before it answers.
        store.spawn(|name, task| spawn(RunBy::Jobs, name, task));
        let machine = Machine::new(store.clone(), &options.tags, options.hot_bytes);
        let network = Network { peers: Arc::clone(&peers) };
        let raft = Raft::new(process, config, network, store.clone(), machine.clone());
        let raft = scope(Arc::clone(&runtime), raft).await.map_err(|error| {
            store.close();
            Error::with(Code::IoError, format!("cannot start the replicated log in {}: {error}", dir.display()))
        })?;
        let is_introduced = AtomicBool::new(!options.waits_for_introduction);
        let shared = Shared {
            runtime,
            process,
            raft,
            machine,
            store,
            peers,
            options,
            queue: Mutex::default(),
            proposal_bell: Bell::default(),
            read_bell: Bell::default(),
            is_closed: AtomicBool::new(false),
            closed: Latch::default(),
            is_introduced,
            heard: Mutex::default(),
            abandoned: Mutex::default(),
        };
        let log = ReplicatedLog { shared: Arc::new(shared) };
        let task = log.clone();
        spawn(RunBy::Runtime, "raft-propose", task.clone().scoped(async move { task.propose_until_closed().await }));
        let task = log.clone();
        spawn(RunBy::Runtime, "raft-read", task.clone().scoped(async move { task.read_until_closed().await }));
        let task = log.clone();
        spawn(RunBy::Jobs, "raft-purge", task.clone().scoped(async move { task.purge_until_closed().await }));
        Ok(log)
    }

    fn scoped<T: Send + 'static>(self, future: impl Future<Output = T> + Send + 'static) -> BoxFuture<T> {
        Box::pin(scope(Arc::clone(&self.shared.runtime), future))
    }

    /// Makes this replica a group of one. Only once in the life of a cluster.
    ///
    /// # Errors
    /// It belongs to a group already.
    pub async fn found(&self, peer: Peer) -> Result<()> {
        let members = BTreeMap::from([(self.shared.process, peer)]);
        self.found_with(members).await
    }

    /// Makes the replicas of `members`, all of them new, a group. Only once in the life of a cluster, and at one of them.
    ///
    /// # Errors
    /// It belongs to a group already.
    pub async fn found_with(&self, members: BTreeMap<ProcessId, Peer>) -> Result<()> {
        let founding = scope(Arc::clone(&self.shared.runtime), self.shared.raft.initialize(members));
        founding.await.map_err(|error| {
            Error::with(Code::ClientInvalidOperation, format!("cannot found the group of the log: {error}"))
        })
    }

    /// Answers a message of another replica. Dropping the future may leave the question unanswered, but never half done.
    pub fn answer(&self, message: Bytes) -> BoxFuture<Result<Bytes>> {
        let log = self.clone();
        self.clone().scoped(async move {
            if let Some((tag, version)) = network::pop_in(&message) {
                log.pop(tag, version);
                return Ok(message);
            }
            if !log.shared.is_introduced.load(Ordering::SeqCst) {
                let detail = format!(
                    "process {} waits until its peers have said that its disk did not go back",
                    log.shared.process
                );
                return Err(Error::with(Code::ConnectionFailed, detail));
            }
            if log.waits_for_space() {
                let mut heard = lock(&log.shared.heard);
                *heard = (*heard).max(network::leader_in(&message));
                return Err(Error::with(Code::ConnectionFailed, log.no_space()));
            }
            if let Some(vote) = network::confirm_in(&message) {
                let is_ours = log.shared.store.vote().is_some_and(|ours| ours.leader_id == vote.leader_id);
                return Ok(network::confirm_answer(is_ours || planted(Bug::AnyVoteConfirms)));
            }
            network::answer(&log.shared.raft, message).await
        })
    }

    /// True while this replica takes no part because its disk has no space for more of the log. It goes on by itself when there is some.
    pub fn waits_for_space(&self) -> bool {
        self.shared.store.is_full()
    }

    fn no_space(&self) -> String {
        let (process, dir) = (self.shared.process, self.shared.store.dir().display());
        format!(
            "the disk of process {process} is full: its replica of the log in {dir} takes nothing until there is space"
        )
    }

    /// A replica whose disk is full waits for nothing that it asked of the library before: what it appended is unknown, and no read is confirmed.
    pub fn abandon(&self) {
        if self.waits_for_space() {
            let before = std::mem::take(&mut *lock(&self.shared.abandoned));
            before.set();
        }
    }

    fn abandoned(&self) -> Arc<Latch> {
        Arc::clone(&lock(&self.shared.abandoned))
    }

    /// A replica whose disk is full asks another voter to lead, if it led and has not heard of another leader since: otherwise the others would have to notice that it is silent.
    /// The library waits for the disk, so this is said in its place, in its words; it costs nothing but an election if it comes late, and who is elected
    /// has everything that is committed. `attempt` chooses the voter.
    pub async fn leave_the_lead(&self, attempt: usize) {
        let shared = &self.shared;
        let view = self.view();
        if !self.waits_for_space() || !shared.raft.is_leader() || view.leader.is_some() {
            return;
        }
        let others: Vec<_> = view.voters.iter().filter(|&&voter| voter != shared.process).collect();
        let Some(&&other) = others.get(attempt % others.len().max(1)) else { return };
        let Some(peer) = view.peers.get(&other) else { return };
        let vote = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&shared.raft.metrics()).vote;
        let message = network::transfer_message(&vote, other, shared.store.committed().as_ref());
        // Unheard, the next attempt asks another one.
        drop(shared.peers.ask(other, peer, message, shared.options.election_timeout).await);
    }

    /// What this replica knows of its group.
    pub fn view(&self) -> GroupView {
        let metrics = self.shared.raft.metrics();
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        let membership = metrics.membership_config.membership();
        let leader = if self.waits_for_space() {
            // The library has stopped listening: what was heard at the door is newer.
            let heard = lock(&self.shared.heard).filter(|&(term, _)| term >= metrics.current_term);
            heard.map(|(_, leader)| leader).or(metrics.current_leader).filter(|&leader| leader != self.shared.process)
        } else {
            metrics.current_leader
        };
        GroupView {
            leader,
            term: metrics.current_term,
            applied: metrics.last_applied.map(|last| last.index),
            snapshot: metrics.snapshot.map(|last| last.index),
            purged: metrics.purged.map(|last| last.index),
            voters: membership.voter_ids().collect(),
            changing_to: match membership.get_joint_config().as_slice() {
                [_, .., last] => Some(last.clone()),
                _ => None,
            },
            learners: membership.learner_ids().collect(),
            peers: membership.nodes().map(|(&process, peer)| (process, peer.clone())).collect(),
            failure: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// The voters, and where all members are, by this replica's newest configuration, applied or not; by the last one that is known, if the library waits for its disk.
    ///
    /// # Errors
    /// The log has stopped.
    pub async fn members(&self) -> Result<(BTreeSet<ProcessId>, BTreeMap<ProcessId, Peer>)> {
        let look = self.shared.raft.with_raft_state(|state| {
            let membership = state.membership_state.effective().membership();
            let peers = membership.nodes().map(|(&process, peer)| (process, peer.clone())).collect();
            (membership.voter_ids().collect(), peers)
        });
        let looking = std::pin::pin!(scope(Arc::clone(&self.shared.runtime), look));
        match futures_util::future::select(looking, self.shared.runtime.sleep(self.shared.options.election_timeout))
            .await
        {
            futures_util::future::Either::Left((members, _)) => {
                members.map_err(|error| self.refused(&error.to_string()))
            }
            futures_util::future::Either::Right(_) => {
                let view = self.view();
                Ok((view.voters, view.peers))
            }
        }
    }

    /// What of the log this replica has.
    pub fn position(&self) -> Position {
        self.shared.store.position()
    }

    /// How much of the log is here, and for how much more there is space. Asks the disk.
    pub fn extent(&self) -> LogExtent {
        self.shared.store.extent()
    }

    /// Enough peers have said that this replica's disk did not go back: it may take part.
    pub fn introduced(&self) {
        if !self.shared.is_introduced.swap(true, Ordering::SeqCst) {
            self.shared.raft.runtime_config().elect(true);
        }
    }

    /// True if this replica takes part.
    pub fn is_introduced(&self) -> bool {
        self.shared.is_introduced.load(Ordering::SeqCst)
    }

    /// True if this replica believes that it leads, and can.
    pub fn is_leader(&self) -> bool {
        self.shared.raft.is_leader() && !self.waits_for_space()
    }

    /// Looks at the state that this replica has come to.
    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.shared.machine.with_state(look)
    }

    /// Index of the last applied entry, and the bytes of the state after it: equal on all replicas that have applied as much.
    pub fn fingerprint(&self) -> (Option<u64>, Vec<u8>) {
        self.shared.machine.fingerprint()
    }

    /// Takes a process in as a learner, or says anew where it is, and waits until it has caught up. Only the leader can.
    ///
    /// # Errors
    /// This replica does not lead (any more), or another change is under way.
    pub async fn add_learner(&self, process: ProcessId, peer: Peer) -> Result<()> {
        if self.view().peers.contains_key(&process) {
            // The library does not take a known process's new address from a call to add it.
            let change = ChangeMembers::SetNodes(BTreeMap::from([(process, peer)]));
            return self.change_members(change, true, &format!("say where process {process} is")).await;
        }
        let added = scope(Arc::clone(&self.shared.runtime), self.shared.raft.add_learner(process, peer, true));
        added
            .await
            .map(drop)
            .map_err(|error| self.refused(&format!("cannot take process {process} into the log: {error}")))
    }

    /// Makes exactly these processes, all of them learners or voters, the voters; former voters stay as learners, or leave, as `keep` says.
    /// Goes through a joint configuration. Only the leader can.
    ///
    /// # Errors
    /// This replica does not lead (any more), or another change is under way.
    pub async fn change_voters(&self, voters: BTreeSet<ProcessId>, keep: bool) -> Result<()> {
        self.change_members(ChangeMembers::ReplaceAllVoters(voters), keep, "change the voters of the log").await
    }

    /// Sends a process, which is no voter, the log no more. Only the leader can.
    ///
    /// # Errors
    /// As [`change_voters`](Self::change_voters).
    pub async fn remove_learner(&self, process: ProcessId) -> Result<()> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([process]));
        self.change_members(change, true, &format!("remove process {process} from the log")).await
    }

    async fn change_members(&self, change: ChangeMembers<ProcessId, Peer>, keep: bool, what: &str) -> Result<()> {
        let changed = scope(Arc::clone(&self.shared.runtime), self.shared.raft.change_membership(change, keep));
        changed.await.map(drop).map_err(|error| self.refused(&format!("cannot {what}: {error}")))
    }

    /// Asks process `to`, a voter, to lead. Whether it does shows in [`view`](Self::view).
    ///
    /// # Errors
    /// The log has stopped.
    pub async fn transfer_leader(&self, to: ProcessId) -> Result<()> {
        let asked =
            scope(Arc::clone(&self.shared.runtime), async { self.shared.raft.trigger().transfer_leader(to).await });
        asked.await.map_err(|error| self.refused(&error.to_string()))
    }

    /// Refuses everything from now on; the tasks make durable what was appended, and end.
    pub async fn close(&self) {
        self.stop();
        self.shared.store.give_up_waiting();
        let shut = scope(Arc::clone(&self.shared.runtime), self.shared.raft.shutdown());
        drop(shut.await);
        self.shared.store.close();
    }

    fn stop(&self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        self.shared.closed.set();
        self.shared.machine.close(Error::with(Code::OperationCancelled, "the log of the cluster was closed"));
        let queue = std::mem::take(&mut *lock(&self.shared.queue));
        drop(queue);
    }

    fn refused(&self, why: &str) -> Error {
        Error::with(Code::ConnectionFailed, format!("process {} does not lead the log: {why}", self.shared.process))
    }

    /// Hands the queue to the library, in order.
    async fn propose_until_closed(self) {
        let shared = &self.shared;
        while !shared.is_closed.load(Ordering::SeqCst) {
            let next = lock(&shared.queue).proposals.pop_front();
            if let Some((proposal, responder)) = next {
                if shared.raft.client_write_ff(proposal, Some(responder)).await.is_err() {
                    // It has stopped for good; the responders were dropped, which tells whoever waits.
                    self.stop();
                }
                continue;
            }
            let rung = shared.closed.unless_set(shared.proposal_bell.rung());
            let second = std::pin::pin!(shared.runtime.sleep(Duration::from_secs(1)));
            let rung = std::pin::pin!(rung);
            if let futures_util::future::Either::Right(_) = futures_util::future::select(rung, second).await {
                self.send_pops().await;
            }
        }
    }

    /// Pops that found nothing to ride with: into the log, or to whoever leads.
    async fn send_pops(&self) {
        let shared = &self.shared;
        let pops = shared.pending_pops(&mut lock(&shared.queue));
        if pops.is_empty() {
            return;
        }
        if self.is_leader() {
            drop(self.append(Vec::new()));
            return;
        }
        let view = self.view();
        let Some(leader) = view.leader.filter(|&leader| leader != shared.process) else { return };
        let peer = {
            let metrics = shared.raft.metrics();
            let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
            metrics.membership_config.membership().get_node(&leader).cloned()
        };
        let Some(peer) = peer else { return };
        for Pop { tag, version } in pops {
            let message = network::pop_message(tag, version);
            // Unanswered, it is sent again.
            drop(shared.peers.ask(leader, &peer, message, shared.options.election_timeout).await);
        }
    }

    /// Confirms, one round for all who asked before it began.
    async fn read_until_closed(self) {
        let shared = &self.shared;
        let mut confirmer = Confirmer::default();
        while !shared.is_closed.load(Ordering::SeqCst) {
            let reads = std::mem::take(&mut lock(&shared.queue).reads);
            if reads.is_empty() {
                shared.closed.unless_set(shared.read_bell.rung()).await;
                continue;
            }
            if self.waits_for_space() {
                let error = self.refused(&self.no_space());
                reads.into_iter().for_each(|read| read.send(Err(error.clone())));
                continue;
            }
            let by_voters = std::pin::pin!(confirmer.round(&self));
            if self.abandoned().unless_set(by_voters).await == Some(true) {
                let newest = shared.machine.newest();
                reads.into_iter().for_each(|read| read.send(Ok(newest)));
                continue;
            }
            reached(Rare::ReadNotConfirmed);
            let confirmed = std::pin::pin!(shared.raft.ensure_linearizable(ReadPolicy::ReadIndex));
            let timeout = shared.runtime.sleep(shared.options.append_timeout);
            let confirmed = futures_util::future::select(confirmed, timeout);
            let result = match self.abandoned().unless_set(confirmed).await {
                Some(futures_util::future::Either::Left((Ok(_), _))) => Ok(shared.machine.newest()),
                Some(futures_util::future::Either::Left((Err(error), _))) => Err(self.refused(&error.to_string())),
                Some(futures_util::future::Either::Right(_)) => {
                    Err(self.refused("a quorum did not confirm it in time"))
                }
                None => Err(self.refused(&self.no_space())),
            };
            for read in reads {
                read.send(result.clone());
            }
        }
    }

    /// Takes snapshots at P, and purges up to there.
    async fn purge_until_closed(self) {
        let shared = &self.shared;
        while let Ok(to) = shared.machine.purgeable().await {
            if shared.machine.trail_to(to).is_ok() && shared.raft.trigger().snapshot().await.is_ok() {
                let wait = shared.raft.wait(Some(shared.options.append_timeout));
                let is_taken =
                    wait.metrics(|metrics| metrics.snapshot.is_some_and(|last| last.index >= to), "snapshot at P");
                if is_taken.await.is_ok() {
                    drop(shared.raft.trigger().purge_log(to).await);
                }
            }
            let pause = shared.runtime.sleep(shared.options.purge_interval);
            shared.closed.unless_set(pause).await;
        }
    }
}

impl Log for ReplicatedLog {
    fn append(&self, mut entries: Vec<Entry>) -> Result<BoxFuture<Result<Applied>>> {
        let shared = &self.shared;
        if !self.is_leader() {
            return Err(self.refused("another process may"));
        }
        let (responder, written) = ProgressResponder::complete_only();
        {
            let mut queue = lock(&shared.queue);
            if shared.is_closed.load(Ordering::SeqCst) {
                return Err(Error::with(Code::OperationCancelled, "the log of the cluster was closed"));
            }
            entries.extend(shared.pending_pops(&mut queue).into_iter().map(Entry::Pop));
            queue.proposals.push_back((Proposal(Arc::new(entries)), responder));
        }
        shared.proposal_bell.ring();
        let timeout = shared.runtime.sleep(shared.options.append_timeout);
        let abandoned = self.abandoned();
        let log = self.clone();
        Ok(Box::pin(async move {
            let unknown =
                |why: &str| Error::with(Code::CommitUnknownResult, format!("nobody knows what became of it: {why}"));
            match abandoned.unless_set(futures_util::future::select(written, timeout)).await {
                Some(futures_util::future::Either::Left((Ok(Ok(response)), _))) => Ok(response.data.0),
                Some(futures_util::future::Either::Left((Ok(Err(ClientWriteError::ForwardToLeader(_))), _))) => {
                    Err(log.refused("it was not appended"))
                }
                Some(futures_util::future::Either::Left((Ok(Err(error)), _))) => Err(unknown(&error.to_string())),
                Some(futures_util::future::Either::Left((Err(_), _))) => Err(unknown("the log has stopped")),
                Some(futures_util::future::Either::Right(_)) => Err(unknown("a quorum did not take it in time")),
                None => Err(unknown(&log.no_space())),
            }
        }))
    }

    fn subscribe(&self, tag: Tag, above: Version) -> Result<Box<dyn Subscription>> {
        self.shared.machine.subscribe(tag, above)
    }

    fn pop(&self, tag: Tag, version: Version) {
        // One of what is not applied here yet comes again; one of what never was written is nobody's.
        let is_known = version <= self.last_known();
        if !is_known || self.shared.machine.popped(tag).is_none_or(|popped| popped >= version) {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        let popped = queue.pops.entry(tag).or_default();
        *popped = version.max(*popped);
    }

    fn recover(&self) -> Recovered {
        self.shared.machine.recover()
    }

    fn last_known(&self) -> Version {
        self.shared.machine.newest().version
    }

    fn read_index(&self) -> Answer<Confirmed> {
        if planted(Bug::ReadNotConfirmed) {
            return Answer::now(Ok(self.shared.machine.newest()));
        }
        let (answer, answered) = reply(Code::ConnectionFailed);
        lock(&self.shared.queue).reads.push(answer);
        self.shared.read_bell.ring();
        Answer::later(answered)
    }

    fn known(&self, id: CommitId) -> (Known, Version) {
        self.shared.machine.known(id)
    }
}

impl fmt::Debug for ReplicatedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedLog").field("process", &self.shared.process).finish_non_exhaustive()
    }
}
