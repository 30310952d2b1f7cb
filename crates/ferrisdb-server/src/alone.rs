//! A database in one process that becomes a cluster when another process asks to join it: [`Alone`].
//!
//! ```text
//! node on the local log ──a process asks to join──▶ turning ──▶ cluster of one on the replicated log ──▶ the join goes on
//! ```
//! Alone it has the local log, which costs less than a group of one ([decision 0021](../../../docs/decisions/0021-founded-when-joined.md)). The turn closes the node in order,
//! founds the cluster with its state in the same directory, and opens that, all in the same process behind the same port.
//!
//! # What clients see
//! A pause. What they ask meanwhile waits for the end of the turn, up to a bound. What the node was asked before, it answers: commits are done, and reads that wait for something end
//! with `connection_failed`, which says that nothing happened, so that their clients ask them again. Read versions of before are refused by the first epoch of the cluster, as
//! by any epoch that follows another: those transactions begin again.
//!
//! # Invariants
//! - A question is put to the node or to the cluster: the stage is locked while it is put, and the node is closed only in a later stage.
//! - The directory is one or the other at any moment, also if power is lost in the turn: `process` is written last, and what the node had is removed after that.
//!
//! # Failures
//! A turn that fails leaves a process that answers nothing, says why ([`Alone::failure`]), and is to be started again: nothing acknowledged is lost, since whatever the turn had come to, the
//! directory is that of a whole node or that of a whole cluster.

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use ferrisdb_core::{Bytes, Code, Error, Result, Version};
use ferrisdb_rpc::api::{Afterwards, BeginRequest, CommitRequest, Committed, Description, Priority};
use ferrisdb_rpc::{Answer, Endpoint, pass_on};

use crate::cluster::{ClusterNode, ClusterOptions, Doors, Peer, asks_to_join};
use crate::node::Node;
use crate::signal::{Latch, lock};

/// What a question that comes during the turn hears if that takes too long, and everything after a turn that failed.
fn turning(why: &str) -> Error {
    Error::with(Code::ProcessBehind, format!("this process turns from a database of its own into a cluster{why}"))
}

/// How a database in one process would become a cluster.
#[derive(Debug)]
pub struct Turn {
    /// What the process of the cluster stands on.
    pub doors: Doors,
    /// The directory, which is the node's.
    pub directory: PathBuf,
    /// How that process is opened.
    pub options: ClusterOptions,
    /// Where others reach it, or what whoever asks to join is told because they do not.
    pub here: Result<Peer>,
}

/// See the module's documentation. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Alone {
    inner: Arc<Inner>,
}

struct Inner {
    turn: Turn,
    /// How long a question waits for the end of a turn.
    patience: Duration,
    /// Of the node: the cluster is the same database.
    description: Description,
    stage: RwLock<Stage>,
    is_turned: Latch,
    notices: Mutex<Vec<String>>,
    /// Somebody was told that files of the database in one process are damaged.
    is_damage_told: AtomicBool,
}

#[derive(Clone)]
enum Stage {
    Node(Arc<Node>),
    Turning,
    Cluster(Arc<Cluster>),
    Failed(Error),
}

/// The process of a cluster, and what answers clients and other processes.
struct Cluster {
    node: ClusterNode,
    for_clients: Arc<dyn Endpoint>,
    for_peers: Arc<dyn Endpoint>,
}

impl Alone {
    /// Looks after `node`, which is open.
    pub fn new(node: Arc<Node>, turn: Turn) -> Alone {
        let inner = Inner {
            patience: turn.options.coordinator_wait,
            description: node.description(),
            turn,
            stage: RwLock::new(Stage::Node(node)),
            is_turned: Latch::default(),
            notices: Mutex::default(),
            is_damage_told: AtomicBool::new(false),
        };
        Alone { inner: Arc::new(inner) }
    }

    /// As what clients see it.
    pub fn endpoint(&self) -> Arc<dyn Endpoint> {
        Arc::new(Whole { inner: Arc::clone(&self.inner), is_for_peers: false })
    }

    /// True until it has become a process of a cluster.
    pub fn is_alone(&self) -> bool {
        !matches!(*self.inner.stage(), Stage::Cluster(_))
    }

    /// What somebody sees who looks at the process of a cluster that it has become, once that is so.
    pub fn look<T>(&self, look: impl FnOnce(&ClusterNode) -> T) -> Option<T> {
        match &*self.inner.stage() {
            Stage::Cluster(cluster) => Some(look(&cluster.node)),
            _ => None,
        }
    }

    /// The number of its process in the cluster, once there is one.
    pub fn process(&self) -> Option<u64> {
        self.look(ClusterNode::process)
    }

    /// What happened that whoever looks after the process should know, since the last call.
    pub fn take_notices(&self) -> Vec<String> {
        let mut notices = std::mem::take(&mut *lock(&self.inner.notices));
        match &*self.inner.stage() {
            Stage::Cluster(cluster) => notices.extend(cluster.node.take_notices()),
            Stage::Node(node) => {
                notices.extend(node.damaged().filter(|_| !self.inner.is_damage_told.swap(true, Ordering::SeqCst)));
            }
            Stage::Turning | Stage::Failed(_) => {}
        }
        notices
    }

    /// Why it does not work any more, if that is so.
    pub fn failure(&self) -> Option<Error> {
        match &*self.inner.stage() {
            Stage::Node(node) => node.failure(),
            Stage::Turning => None,
            Stage::Cluster(cluster) => cluster.node.failure(),
            Stage::Failed(error) => Some(error.clone()),
        }
    }

    /// Closes what there is, after a turn that is under way. To be awaited in a task of the turn's runtime.
    ///
    /// # Errors
    /// As those of what is closed.
    pub async fn close(&self) -> Result<()> {
        let stage = {
            let mut stage = self.inner.stage.write().unwrap_or_else(PoisonError::into_inner);
            match &*stage {
                Stage::Node(_) => std::mem::replace(&mut *stage, Stage::Failed(closed())),
                stage => stage.clone(),
            }
        };
        let stage = match stage {
            Stage::Turning => {
                self.inner.is_turned.unless_set(std::future::pending::<()>()).await;
                self.inner.stage().clone()
            }
            stage => stage,
        };
        match stage {
            Stage::Node(node) => node.close().await,
            Stage::Cluster(cluster) => cluster.node.close().await,
            Stage::Turning => Ok(()),
            Stage::Failed(error) => Err(error),
        }
    }
}

fn closed() -> Error {
    Error::with(Code::OperationCancelled, "the database was closed; open it again")
}

impl fmt::Debug for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alone").field("directory", &self.inner.turn.directory).finish_non_exhaustive()
    }
}

impl Inner {
    fn stage(&self) -> RwLockReadGuard<'_, Stage> {
        self.stage.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, next: Stage) {
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Begins the turn, unless it has begun.
    fn begin(self: &Arc<Inner>) {
        let node = {
            let mut stage = self.stage.write().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *stage, Stage::Turning) {
                Stage::Node(node) => node,
                other => return *stage = other,
            }
        };
        let inner = Arc::clone(self);
        let task = async move {
            // Who has joined may be gone again; the answer to it waits for this.
            let next = match inner.become_cluster(&node).await {
                Ok(node) => {
                    let for_clients = node.endpoint();
                    let for_peers = for_clients.for_peers().unwrap_or_else(|| Arc::clone(&for_clients));
                    let what = "another process asked to join: this database is a cluster now, and its directory that of a cluster's process";
                    lock(&inner.notices).push(what.to_owned());
                    Stage::Cluster(Arc::new(Cluster { node, for_clients, for_peers }))
                }
                Err(error) => {
                    let detail = format!(
                        "it could not become a cluster when another process asked to join: {error}; nothing acknowledged is lost, start it again"
                    );
                    Stage::Failed(Error::with(Code::IoError, detail))
                }
            };
            inner.set(next);
            inner.is_turned.set();
        };
        self.turn.doors.runtime.spawn("turn", Box::pin(task));
    }

    async fn become_cluster(&self, node: &Node) -> Result<ClusterNode> {
        let beginning = node.close_for_a_cluster().await?;
        let Turn { doors, directory, options, here } = &self.turn;
        let cluster = ClusterNode::open(doors.clone(), directory, options.clone(), here.clone()?, beginning).await?;
        // Once that is answered it leads, and can take somebody in. Whoever asks later is told if it does not.
        drop(cluster.endpoint().begin(BeginRequest { transactions: 1, priority: Priority::Immediate }).await);
        Ok(cluster)
    }

    /// Ready when the turn is over, or has taken too long.
    async fn turned(&self) -> Result<()> {
        let patience = self.turn.doors.runtime.sleep(self.patience);
        match self.is_turned.unless_set(patience).await {
            None => Ok(()),
            Some(()) => Err(turning(&format!(", which takes longer than {:?}", self.patience))),
        }
    }
}

/// The endpoint, for clients or for other processes.
struct Whole {
    inner: Arc<Inner>,
    is_for_peers: bool,
}

impl Whole {
    fn of<'a>(&self, cluster: &'a Cluster) -> &'a Arc<dyn Endpoint> {
        if self.is_for_peers { &cluster.for_peers } else { &cluster.for_clients }
    }

    /// Puts a question to what there is, at once or when the turn is over.
    fn ask<T: Send + Unpin + 'static>(
        &self,
        question: impl FnOnce(&dyn Endpoint) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        match &*self.inner.stage() {
            Stage::Node(node) => return question(node.as_ref()),
            Stage::Cluster(cluster) => return question(self.of(cluster).as_ref()),
            Stage::Failed(error) => return error.clone().into(),
            Stage::Turning => {}
        }
        let again = Whole { inner: Arc::clone(&self.inner), is_for_peers: self.is_for_peers };
        Answer::later(async move {
            again.inner.turned().await?;
            let cluster = match &*again.inner.stage() {
                Stage::Cluster(cluster) => Arc::clone(again.of(cluster)),
                Stage::Failed(error) => return Err(error.clone()),
                Stage::Node(_) | Stage::Turning => return Err(turning("")),
            };
            question(cluster.as_ref()).await
        })
    }
}

impl Endpoint for Whole {
    fn description(&self) -> Description {
        match &*self.inner.stage() {
            Stage::Node(node) => node.description(),
            Stage::Cluster(cluster) => self.of(cluster).description(),
            Stage::Turning | Stage::Failed(_) => self.inner.description.clone(),
        }
    }

    fn get_here(&self, key: &[u8], version: Version) -> Option<Option<Bytes>> {
        match &*self.inner.stage() {
            Stage::Node(node) => node.get_here(key, version),
            Stage::Cluster(cluster) => self.of(cluster).get_here(key, version),
            Stage::Turning | Stage::Failed(_) => None,
        }
    }

    fn commit_alone(&self, request: CommitRequest, afterwards: &mut Afterwards) -> Answer<Committed> {
        if let Stage::Node(node) = &*self.inner.stage() {
            return node.commit_alone(request, afterwards);
        }
        self.commit(request)
    }

    pass_on! { |self, question| self.ask(question) =>
        begin, get, get_key, get_range, commit, resolve, watch, lease, estimated_size, split_points,
        addresses_for_key, locations, status
    }

    fn message(&self, message: Bytes) -> Answer<Bytes> {
        if asks_to_join(&message) && matches!(*self.inner.stage(), Stage::Node(_)) {
            if let Err(error) = &self.inner.turn.here {
                return error.clone().into();
            }
            self.inner.begin();
        }
        self.ask(move |endpoint| endpoint.message(message))
    }

    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        Some(Arc::new(Whole { inner: Arc::clone(&self.inner), is_for_peers: true }))
    }
}
