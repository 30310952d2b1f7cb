//! The coordinator and the controller, which run where the log's leader is: one **epoch** after the other.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::{Bytes, Code, Error, Result, Runtime};
use futures_util::future::select;

use super::control::{Step, next_step};
use super::messages::{Joined, Message, heard};
use super::metadata::{Process, Storage};
use super::{LOOK, Shared, spread};
use crate::coordinator::Coordinator;
use crate::coordinator::rate::Lag;
use crate::lifetime::{SharedLock, ended, spawn};
use crate::log::replicated::{Peer, ProcessId};
use crate::log::{Applied, Log, Tag};
use crate::shards::change::Change;
use crate::signal::{Replied, lock};

/// How often the controller looks for something to do.
const CONTROL: Duration = Duration::from_millis(200);
/// A step of the controller that takes longer is looked at again: the process that it is about may be gone.
const STEP: Duration = Duration::from_secs(10);

/// The coordinator, while it runs here.
#[derive(Default)]
pub(super) struct Leading {
    coordinator: Mutex<Option<Coordinator>>,
    tasks: Mutex<Vec<Replied<()>>>,
    /// Held by whoever changes who belongs to the cluster.
    registration: async_lock::Mutex<()>,
}

impl Leading {
    /// The coordinator, if it runs here.
    pub(super) fn coordinator(&self) -> Option<Coordinator> {
        lock(&self.coordinator).clone()
    }
}

/// Until the process stops.
pub(super) async fn run(shared: Arc<Shared>, directory: SharedLock) {
    loop {
        if shared.log.is_leader() && !shared.is_closed.load(Ordering::SeqCst) {
            // Why an epoch ended is told to its clients, and the next one begins anew.
            drop(lead_one_epoch(&shared, &directory).await);
            step_down(&shared).await;
        }
        shared.jobs.sleep(LOOK).await;
    }
}

/// Ends the epoch: what it was asked and has not decided is refused, and what it proposed and does not know the end of is unknown.
pub(super) async fn step_down(shared: &Shared) {
    give_up(shared);
    let tasks = std::mem::take(&mut *lock(&shared.leading.tasks));
    ended(tasks).await;
}

/// The same, without waiting for the tasks of the epoch to end.
pub(super) fn give_up(shared: &Shared) {
    let coordinator = lock(&shared.leading.coordinator).take();
    if let Some(coordinator) = coordinator {
        coordinator.fail(&no_coordinator(shared.identity.process));
        coordinator.close();
    }
}

/// This process is not the one to ask: ask another, or later.
pub(super) fn no_coordinator(process: ProcessId) -> Error {
    Error::with(Code::ProcessBehind, format!("process {process} does not lead the cluster"))
}

async fn lead_one_epoch(shared: &Arc<Shared>, directory: &SharedLock) -> Result<()> {
    // Whatever was committed under earlier leaders is applied here after this: what `recover` says is not older.
    shared.log.read_index().await?;
    let applied_before = shared.progress.bytes.load(Ordering::Relaxed);
    let (progress, storage) = (Arc::clone(&shared.progress), shared.storage.clone());
    let low = shared.options.coordinator.rate.backlog_low_bytes;
    let lag = Box::new(move |appended: u64| {
        let applied = progress.bytes.load(Ordering::Relaxed).saturating_sub(applied_before);
        let backlog_bytes = appended.saturating_sub(applied);
        Lag { backlog_bytes, is_stalled: backlog_bytes > low && storage.lag().is_stalled }
    });
    let (coordinator, starting) = Coordinator::new(
        shared.jobs.clone(),
        Arc::new(shared.log.clone()),
        shared.options.coordinator.clone(),
        Arc::clone(&shared.counters),
        lag,
    );
    let starting = starting.at(shared.identity.process);
    if coordinator.start(&starting)?.await? == Applied::Void {
        return Err(no_coordinator(shared.identity.process));
    }
    {
        // Under the lock: whoever closes the process finds the coordinator, or is seen here.
        let mut leading = lock(&shared.leading.coordinator);
        if shared.is_closed.load(Ordering::SeqCst) {
            return Err(Shared::closed());
        }
        let mut tasks = lock(&shared.leading.tasks);
        let spawn = |name: &str, task| tasks.push(spawn(&shared.jobs, name, task, Arc::clone(directory)));
        coordinator.spawn(starting, spawn);
        *leading = Some(coordinator.clone());
    }
    let controlling = std::pin::pin!(control(shared, &coordinator));
    let over = std::pin::pin!(async {
        while coordinator.failure().is_none() && shared.log.is_leader() && !shared.is_closed.load(Ordering::SeqCst) {
            shared.jobs.sleep(LOOK).await;
        }
    });
    let spreading = std::pin::pin!(spread::run(shared, &coordinator));
    select(select(controlling, spreading), over).await;
    Ok(())
}

/// Takes one step after the other.
async fn control(shared: &Arc<Shared>, coordinator: &Coordinator) {
    while coordinator.failure().is_none() {
        let step = shared.registry().ok().and_then(|registry| next_step(&registry, &shared.log.view()));
        if let Some(step) = step {
            let taking = std::pin::pin!(async {
                match step {
                    Step::AddLearner(process, peer) => shared.log.add_learner(process, peer).await,
                    Step::ChangeVoters(voters) => shared.log.change_voters(voters, true).await,
                }
            });
            // What did not go well is looked at again.
            drop(select(taking, shared.jobs.sleep(STEP)).await);
        }
        shared.jobs.sleep(CONTROL).await;
    }
}

/// Answers a message of another process, or of this one.
pub(super) async fn answer(shared: Arc<Shared>, message: Bytes) -> Result<Bytes> {
    match Message::decode(&message)? {
        Message::Raft { to, message } if to == shared.identity.process => shared.log.answer(message).await,
        Message::Raft { to, .. } => {
            let detail = format!("this is process {}, not process {to}", shared.identity.process);
            Err(Error::with(Code::ClientInvalidOperation, detail))
        }
        Message::Join { instance, peer } => Ok(take_in(&shared, instance, peer).await?.encode()),
        Message::Complete { process, tag } => {
            note_complete(&shared, process, tag).await?;
            Ok(heard())
        }
        Message::Arrived { begin, id, tag, from } => {
            let coordinator = shared.leading.coordinator().ok_or_else(|| no_coordinator(shared.identity.process))?;
            coordinator.change_shards(Change::Arrived { begin, id, tag, from }).await?;
            Ok(heard())
        }
        Message::Advance => {
            let coordinator = shared.leading.coordinator().ok_or_else(|| no_coordinator(shared.identity.process))?;
            coordinator.advance();
            Ok(heard())
        }
    }
}

/// Takes a directory's process in, or notes where it is now.
async fn take_in(shared: &Arc<Shared>, instance: [u8; 16], peer: Peer) -> Result<Joined> {
    let coordinator = shared.leading.coordinator().ok_or_else(|| no_coordinator(shared.identity.process))?;
    let _alone = shared.leading.registration.lock().await;
    let registry = shared.registry()?;
    let joined = |process, tag| Joined { cluster_id: shared.identity.cluster_id, process, tag };
    if let Some((number, process)) = registry.of_instance(instance) {
        if process.peer != peer {
            let moved = Process { peer, ..process.clone() };
            coordinator.change_metadata(vec![moved.set(number)]).await?;
        }
        return Ok(joined(number, process.tag));
    }
    let number = registry.processes.last_key_value().map_or(0, |(&last, _)| last) + 1;
    let tag = Tag(registry.storage.last_key_value().map_or(0, |(last, _)| last.0) + 1);
    let process = Process { instance, peer, tag };
    let storage = Storage { process: number, is_complete: false };
    coordinator.change_metadata(vec![process.set(number), storage.set(tag)]).await?;
    Ok(joined(number, tag))
}

async fn note_complete(shared: &Arc<Shared>, process: ProcessId, tag: Tag) -> Result<()> {
    let coordinator = shared.leading.coordinator().ok_or_else(|| no_coordinator(shared.identity.process))?;
    let _alone = shared.leading.registration.lock().await;
    match shared.registry()?.storage.get(&tag) {
        Some(storage) if storage.process == process && storage.is_complete => Ok(()),
        Some(storage) if storage.process == process => {
            let complete = Storage { process, is_complete: true };
            coordinator.change_metadata(vec![complete.set(tag)]).await.map(drop)
        }
        _ => {
            let detail = format!("process {process} has no storage server with tag {}", tag.0);
            Err(Error::with(Code::ClientInvalidOperation, detail))
        }
    }
}
