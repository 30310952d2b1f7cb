//! Opening a process: what it finds in its directory, or becomes; then its roles.
//!
//! ```text
//! the file `process` …    so the process …                                          and writes, in this order
//! says who it is          opens again                                               `process`, with one generation more
//! is not there, or says   joins: asks the cluster for a number and a tag            `process` (nobody), whom it knows, `process`
//! nobody                  founds: a log of one, which begins with a first state     the log, `process`
//! ```
//! One whose replica of the log, or whose storage server, is [damaged](super::damaged) so that it does not open joins too, once the cluster has forgotten what it was.
//!
//! From then on all are alike: storage is opened, thrown away first if it had not begun, and the roles run.
//!
//! # Invariants
//! - Whoever dies on the way does the same again: what says that it is done is written last. Who joins is the same one before and after a crash, because
//!   the number of its instance is written before it asks.
//! - If opening fails, the tasks that it had started end: none of them keeps the directory.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Clock, Code, Error, Result, Runtime, Version};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::FileSystem;

use super::damaged::{Lost, Part};
use super::fill::Copied;
use super::identity::Identity;
use super::known::{Known, Recorder};
use super::lead::Leading;
use super::lines::{Line, Lines, LogLines};
use super::messages::{Joined, Message};
use super::metadata::{Process, Storage};
use super::route::Route;
use super::{Beginning, ClusterOptions, Doors, LOOK, Peer, ProcessId, Shared, beat, fill, lead, moves};
use crate::failure::{NotOpened, from_storage};
use crate::lifetime::{SharedLock, ended, spawn};
use crate::log::replicated::{ReplicatedLog, ReplicatedLogOptions, RunBy};
use crate::log::{Applied, Entry, Log, State, Tag};
use crate::runtime::JobRuntime;
use crate::shards::ShardMap;
use crate::shards::holding::Holding;
use crate::shards::keeper::Keeper;
use crate::shards::load::Load;
use crate::signal::{Latch, Replied};
use crate::storage::{StorageOptions, StorageRecovery, StorageServer};

/// The number of the process that founds a cluster.
const FOUNDER: ProcessId = 1;

impl Shared {
    /// Opens the directory, or makes it what `beginning` says. `notices` is told what somebody should know.
    #[expect(clippy::too_many_arguments, reason = "all of them are doors and identities")]
    pub(super) async fn open(
        doors: &Doors,
        jobs: &JobRuntime,
        dir: &Path,
        options: &ClusterOptions,
        here: &Peer,
        beginning: Beginning,
        lock: &SharedLock,
        notices: &Mutex<Vec<String>>,
    ) -> Result<Arc<Shared>> {
        let (fs, jobs, here) = (Arc::clone(&doors.env.fs), jobs.clone(), here.clone());
        let (mut tasks, opened) = (Vec::new(), Identity::read(fs.as_ref(), dir)?);
        let mut known = Known::read_or_set_aside(fs.as_ref(), dir, notices)?;
        let opener = Opener { doors, jobs: &jobs, dir, options, here: &here, lock, notices };
        let addresses = opener.whom_to_ask(&beginning, &known);
        let (identity, log, lines) = match opened {
            Some(identity) if identity.process > 0 => match opener.restart(identity, &mut tasks).await {
                Ok(opened) => opened,
                Err(NotOpened::Failed(error)) => return Err(error),
                Err(NotOpened::Damaged(damage)) => {
                    let lost = Lost { part: Part::Log, damage };
                    opener.begin_as_new(identity, &lost, &addresses, &mut known, &mut tasks).await?
                }
            },
            _ => match beginning {
                Beginning::Join(_) => opener.join(opened, addresses.clone(), &mut known, &mut tasks).await?,
                Beginning::Found => {
                    let cluster_id = doors.env.entropy.unique_bytes();
                    opener.found(cluster_id, State::new(&[Tag::FIRST]), &mut tasks).await?
                }
                Beginning::GoOn { cluster_id, state } => opener.found(cluster_id, *state, &mut tasks).await?,
            },
        };
        let limits = options.coordinator.limits;
        let open_storage = |identity: &Identity| {
            if !identity.is_complete {
                remove_files(fs.as_ref(), &dir.join("storage"))?;
            }
            remove_one_process_database(fs.as_ref(), dir)?;
            let storage_options = StorageOptions { value_bytes: limits.value_bytes, ..options.storage.clone() };
            StorageServer::open(jobs.clone(), &dir.join("storage"), storage_options)
        };
        let (identity, log, lines, opened) = match open_storage(&identity) {
            Err(NotOpened::Damaged(damage)) => {
                log.close().await;
                ended(std::mem::take(&mut tasks)).await;
                let lost = Lost { part: Part::Storage, damage };
                let (identity, log, lines) =
                    opener.begin_as_new(identity, &lost, &addresses, &mut known, &mut tasks).await?;
                let opened = open_storage(&identity);
                (identity, log, lines, opened)
            }
            opened => (identity, log, lines, opened),
        };
        let found = log.position();
        let (storage, recovery) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Its tasks would go on, and keep the directory.
                log.close().await;
                return Err(error.into());
            }
        };
        let holding = match holding_in(&identity, &recovery, dir) {
            Ok(holding) => holding,
            Err(error) => {
                log.close().await;
                return Err(error);
            }
        };
        let load = Arc::new(Load::new(Arc::clone(&doors.env.clock)));
        // Each of them may fetch at once.
        let known_processes = known.addresses.len() + 1;
        let shared = Arc::new(Shared {
            life: u64::from_le_bytes(doors.env.entropy.unique_bytes()[..8].try_into().expect("eight of sixteen bytes")),
            jobs,
            dir: dir.to_path_buf(),
            has_begun: AtomicBool::new(identity.is_complete),
            is_lasting: AtomicBool::new(identity.is_complete),
            readable_from: AtomicU64::new(identity.readable_from.get()),
            identity,
            here,
            limits,
            options: options.clone(),
            log,
            storage,
            progress: Arc::default(),
            counters: Arc::default(),
            pace: Arc::default(),
            timers: Arc::clone(&doors.runtime),
            lines,
            leading: Leading::default(),
            route: Route::default(),
            is_closed: AtomicBool::new(false),
            stop: Latch::default(),
            tasks: Mutex::default(),
            found,
            recorder: Arc::new(Recorder::new(dir, known)),
            view: Mutex::default(),
            copied: Copied::default(),
            again: Mutex::default(),
            ends: Latch::default(),
            failure: Mutex::default(),
            is_damage_told: AtomicBool::new(false),
            keeper: Arc::new(Keeper::new(holding, recovery.flushed, identity.readable_from)),
            layout: Mutex::default(),
            moving: Mutex::default(),
            load,
            fetch_rate: AtomicU64::new(options.shards.fetch_rate(known_processes)),
        });
        let recording = Arc::clone(&shared.recorder).run(shared.jobs.clone());
        let roles: [(&str, BoxFuture<()>); 7] = [
            ("apply", Box::pin(fill::run(Arc::clone(&shared)))),
            ("pop", Box::pin(fill::pop(Arc::clone(&shared), recovery.is_settled))),
            ("moves", Box::pin(moves::run(Arc::clone(&shared)))),
            ("lead", Box::pin(lead::run(Arc::clone(&shared), Arc::clone(lock)))),
            ("register", Box::pin(register(Arc::clone(&shared)))),
            ("peers", Box::pin(recording)),
            ("beat", Box::pin(beat::run(Arc::clone(&shared)))),
        ];
        for (name, task) in roles {
            let stopping = Arc::clone(&shared);
            let task = Box::pin(async move { stopping.stop.unless_set(task).await.unwrap_or_default() });
            tasks.push(spawn(&shared.jobs, name, task, Arc::clone(lock)));
        }
        crate::signal::lock(&shared.tasks).append(&mut tasks);
        Ok(shared)
    }
}

/// What opening needs on its way.
pub(super) struct Opener<'a> {
    pub(super) doors: &'a Doors,
    jobs: &'a JobRuntime,
    pub(super) dir: &'a Path,
    options: &'a ClusterOptions,
    here: &'a Peer,
    lock: &'a SharedLock,
    pub(super) notices: &'a Mutex<Vec<String>>,
}

pub(super) type Opened = (Identity, ReplicatedLog, Arc<Lines>);

impl Opener<'_> {
    pub(super) fn fs(&self) -> &dyn FileSystem {
        self.doors.env.fs.as_ref()
    }

    async fn open_log(
        &self,
        identity: &Identity,
        lines: &Arc<Lines>,
        tasks: &mut Vec<Replied<()>>,
    ) -> std::result::Result<ReplicatedLog, NotOpened> {
        let peers = LogLines { lines: Arc::clone(lines), runtime: Arc::clone(&self.doors.runtime) };
        // All replicas begin with the same empty state; what the cluster begins with is the log's first entry.
        let options = ReplicatedLogOptions {
            tags: Vec::new(),
            // A directory that was there before may have gone back.
            waits_for_introduction: identity.generation > 1,
            ..self.options.log.clone()
        };
        ReplicatedLog::open(
            self.jobs.clone(),
            Arc::clone(&self.doors.runtime),
            &self.dir.join("raft"),
            options,
            identity.cluster_id,
            identity.process,
            Arc::new(peers),
            |by, name, task| {
                let runtime: &dyn Runtime = match by {
                    RunBy::Jobs => self.jobs,
                    RunBy::Runtime => self.doors.runtime.as_ref(),
                };
                tasks.push(spawn(runtime, name, task, Arc::clone(self.lock)));
            },
        )
        .await
    }

    fn lines(&self, cluster_id: Option<[u8; 16]>) -> Arc<Lines> {
        Arc::new(Lines::new(Arc::clone(&self.doors.network), cluster_id))
    }

    async fn restart(&self, before: Identity, tasks: &mut Vec<Replied<()>>) -> std::result::Result<Opened, NotOpened> {
        let identity = Identity { generation: before.generation + 1, ..before };
        identity.write(self.fs(), self.dir)?;
        let lines = self.lines(Some(identity.cluster_id));
        let log = self.open_log(&identity, &lines, tasks).await?;
        Ok((identity, log, lines))
    }

    /// The group of one, with a log that begins with `state`.
    async fn found(&self, cluster_id: [u8; 16], mut state: State, tasks: &mut Vec<Replied<()>>) -> Result<Opened> {
        let instance = self.doors.env.entropy.unique_bytes();
        let tag = Tag::FIRST;
        let identity = Identity {
            cluster_id,
            instance,
            process: FOUNDER,
            tag,
            generation: 1,
            readable_from: Version::ZERO,
            is_complete: true,
        };
        // Whoever died in the middle of founding begins again: the identity is written last.
        remove_files(self.fs(), &self.dir.join("raft"))?;
        let lines = self.lines(Some(cluster_id));
        let log = self.open_log(&identity, &lines, tasks).await.map_err(new_log)?;
        let founded = async {
            log.found(self.here.clone()).await?;
            let process = Process { instance, peer: self.here.clone(), tag };
            state.set_metadata(&[process.set(FOUNDER), Storage { process: FOUNDER, is_complete: true }.set(tag)]);
            state.set_metadata(&ShardMap::whole([(tag, Version::ZERO)]).write());
            while !log.is_leader() {
                self.jobs.sleep(LOOK).await;
            }
            log.read_index().await?;
            match log.append(vec![Entry::Foundation(Box::new(state))])?.await? {
                Applied::Counted => {}
                Applied::Void => return Err(Error::with(Code::InternalError, "a new log has been founded already")),
            }
            identity.write(self.fs(), self.dir)
        };
        match founded.await {
            Ok(()) => Ok((identity, log, lines)),
            Err(error) => {
                log.close().await;
                Err(error)
            }
        }
    }

    /// Whom to ask for the cluster: who joins again also knows whom it knew.
    pub(super) fn whom_to_ask(&self, beginning: &Beginning, known: &Known) -> Vec<String> {
        let mut addresses = match beginning {
            Beginning::Join(addresses) => addresses.clone(),
            Beginning::Found | Beginning::GoOn { .. } => Vec::new(),
        };
        for address in &known.addresses {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses.retain(|address| *address != self.here.address);
        addresses
    }

    pub(super) async fn join(
        &self,
        before: Option<Identity>,
        addresses: Vec<String>,
        known: &mut Known,
        tasks: &mut Vec<Replied<()>>,
    ) -> Result<Opened> {
        if addresses.is_empty() {
            let detail = format!(
                "{} is to join a cluster and has not joined yet: say whom to ask with --join HOST:PORT",
                self.dir.display()
            );
            return Err(Error::with(Code::ClientInvalidOperation, detail));
        }
        // Written down first: whoever asks again after a crash is the same.
        let asking = match before {
            Some(identity) => identity,
            None => {
                let nobody = Identity::nobody(self.doors.env.entropy.unique_bytes());
                nobody.write(self.fs(), self.dir)?;
                nobody
            }
        };
        let message = Message::Join { instance: asking.instance, peer: self.here.clone() }.encode();
        let answer = self.ask_leader(None, message, &addresses).await.map_err(|error| {
            let detail = format!(
                "cannot join the cluster: {} (a process that can be joined is one that `ferrisdb serve` runs, and that this one reaches there)",
                error.detail().unwrap_or_default()
            );
            Error::with(error.code(), detail)
        })?;
        let joined = Joined::decode(&answer)?;
        let identity = Identity {
            cluster_id: joined.cluster_id,
            process: joined.process,
            tag: joined.tag,
            generation: 1,
            ..asking
        };
        known.addresses = addresses;
        known.write(self.fs(), self.dir)?;
        remove_files(self.fs(), &self.dir.join("raft"))?;
        identity.write(self.fs(), self.dir)?;
        let lines = self.lines(Some(identity.cluster_id));
        let log = self.open_log(&identity, &lines, tasks).await.map_err(new_log)?;
        Ok((identity, log, lines))
    }

    /// Asks every address in turn, for as long as questions wait for a coordinator. Who leads answers; one that does not says, as to any client, where the others are.
    ///
    /// # Errors
    /// What each of them said at last.
    pub(super) async fn ask_leader(
        &self,
        cluster_id: Option<[u8; 16]>,
        message: Bytes,
        addresses: &[String],
    ) -> Result<Bytes> {
        let lines = self.lines(cluster_id);
        let mut addresses = addresses.to_vec();
        let until = self.jobs.now() + self.options.coordinator_wait;
        loop {
            let (mut failed, mut others) = (Vec::new(), Vec::new());
            for address in &addresses {
                let asked = async {
                    let line = lines.to(Line::Questions, address).await?;
                    let answer = line.message(message.clone()).await;
                    let told = line.description().connection_string;
                    others.extend(told.split(',').filter(|other| !other.is_empty()).map(str::to_owned));
                    answer
                };
                match asked.await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => failed.push(format!("{address}: {error}")),
                }
            }
            let before = addresses.len();
            for other in others {
                if other != self.here.address && !addresses.contains(&other) {
                    addresses.push(other);
                }
            }
            if addresses.len() > before {
                continue;
            }
            if self.jobs.now() >= until {
                return Err(Error::with(Code::ConnectionFailed, failed.join("; ")));
            }
            self.jobs.sleep(10 * LOOK).await;
        }
    }
}

/// Says where this process is, and that its storage server has begun, if the cluster does not know that.
async fn register(shared: Arc<Shared>) {
    loop {
        let known = shared.registry().ok().and_then(|registry| {
            // A replica that has not come so far still knows the tag of an earlier life, which had begun.
            let (_, process) = registry.of_instance(shared.identity.instance)?;
            let has_begun = registry.storage.get(&shared.identity.tag).is_some_and(|storage| storage.is_complete);
            Some((process.peer == shared.here, has_begun))
        });
        let message = match known {
            Some((true, true)) => return,
            Some((true, false)) if shared.has_begun.load(Ordering::SeqCst) => {
                Some(Message::Complete { process: shared.identity.process, tag: shared.identity.tag })
            }
            Some((false, _)) => Some(Message::Join { instance: shared.identity.instance, peer: shared.here.clone() }),
            // The replica may not have come so far.
            _ => None,
        };
        if let Some(message) = message.map(|message| message.encode()) {
            drop(shared.at_coordinator(|endpoint| endpoint.message(message.clone())).await);
        }
        shared.jobs.sleep(5 * LOOK).await;
    }
}

/// What a storage server holds that was opened: what it kept, or all that there is, if it knew of no shards.
fn holding_in(identity: &Identity, found: &StorageRecovery, dir: &Path) -> Result<Holding> {
    if !identity.is_complete {
        return Ok(Holding::default());
    }
    let kept = found.owner_state.as_deref().map(Holding::decode).transpose().map_err(|error| {
        let path = dir.join("storage");
        from_storage("cannot open the process", &StorageError::corruption(&path, 0, error.what))
    })?;
    Ok(kept.flatten().unwrap_or_else(|| Holding::everything(identity.readable_from)))
}

/// What a database in one process had beside its tables: the cluster's log goes on where its log ended.
fn remove_one_process_database(fs: &dyn FileSystem, dir: &Path) -> Result<()> {
    let path = dir.join("cluster");
    let failed = |op, error| from_storage("cannot remove", &StorageError::io(op, &path, error));
    if !fs.exists(&path).map_err(|error| failed("look for", error))? {
        return Ok(());
    }
    remove_files(fs, &dir.join("log"))?;
    fs.remove_file(&path).map_err(|error| failed("remove", error))?;
    fs.sync_dir(dir).map_err(|error| failed("sync", error))
}

/// A log that was made a moment ago holds nothing that could be damaged; if the disk says otherwise, it is that which is broken.
fn new_log(error: NotOpened) -> Error {
    match error {
        NotOpened::Failed(error) => error,
        NotOpened::Damaged(damage) => Error::with(Code::IoError, format!("cannot open a new log: {damage}")),
    }
}

/// Removes all files in a directory that is made if it is not there.
pub(super) fn remove_files(fs: &dyn FileSystem, dir: &Path) -> Result<()> {
    let failed = |op, path: &Path, error| from_storage("cannot begin anew", &StorageError::io(op, path, error));
    fs.create_dir_all(dir).map_err(|error| failed("create", dir, error))?;
    for name in fs.list(dir).map_err(|error| failed("list", dir, error))? {
        let path = dir.join(name);
        fs.remove_file(&path).map_err(|error| failed("remove", &path, error))?;
    }
    fs.sync_dir(dir).map_err(|error| failed("sync", dir, error))
}
