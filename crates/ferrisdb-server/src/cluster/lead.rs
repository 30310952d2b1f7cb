//! The coordinator and the controller, which run where the log's leader is: one **epoch** after the other.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Bytes, Clock, Code, Error, Result, Runtime};
use futures_util::future::select;

use super::beat;
use super::control::{Situation, Step};
use super::members::Detector;
use super::messages::{Joined, Message, heard, left_answer};
use super::metadata::{Process, Storage};
use super::spread::Outlook;
use super::{LOOK, Shared, loads, orders, spread};
use crate::coordinator::Coordinator;
use crate::coordinator::rate::{Lag, Queues};
use crate::lifetime::{SharedLock, ended, spawn};
use crate::log::replicated::{Peer, ProcessId};
use crate::log::{Applied, Log, State, Tag};
use crate::shards::change::Change;
use crate::signal::{Replied, lock};

/// How often the controller looks for something to do.
const CONTROL: Duration = Duration::from_millis(200);
/// How often a batch follows, if nobody commits, while a process is drained.
const ADVANCE: Duration = Duration::from_secs(1);
/// A step of the controller that takes longer is looked at again: the process that it is about may be gone.
const STEP: Duration = Duration::from_secs(10);

/// The coordinator, while it runs here.
#[derive(Default)]
pub(super) struct Leading {
    coordinator: Mutex<Option<Coordinator>>,
    tasks: Mutex<Vec<Replied<()>>>,
    /// Held by whoever changes who belongs to the cluster.
    registration: futures_util::lock::Mutex<()>,
    /// Who was heard when, in this epoch.
    detector: Arc<Mutex<Option<Detector>>>,
    /// Those that limit nobody, whatever they have yet to apply.
    excluded: Arc<Mutex<BTreeSet<ProcessId>>>,
    /// The step that the controller takes, if it takes one.
    step: Mutex<Option<Step>>,
    /// What there is to do with the shards.
    outlook: Mutex<Outlook>,
}

impl Leading {
    /// To be held by whoever changes who belongs to the cluster.
    pub(super) fn registration(&self) -> &futures_util::lock::Mutex<()> {
        &self.registration
    }

    /// Looks at the detector of this epoch, if one has begun here.
    pub(super) fn with_detector<T>(&self, look: impl FnOnce(&mut Detector) -> T) -> Option<T> {
        lock(&self.detector).as_mut().map(look)
    }

    /// What the controller is doing.
    pub(super) fn step(&self) -> Option<Step> {
        lock(&self.step).clone()
    }

    /// What there is to do with the shards, as the controller of this epoch saw it last.
    pub(super) fn outlook(&self) -> &Mutex<Outlook> {
        &self.outlook
    }

    /// The coordinator, if it runs here.
    pub(super) fn coordinator(&self) -> Option<Coordinator> {
        lock(&self.coordinator).clone()
    }
}

/// Until the process stops.
pub(super) async fn run(shared: Arc<Shared>, directory: SharedLock) {
    let mut attempt = 0;
    loop {
        if shared.log.is_leader() && !shared.is_closed.load(Ordering::SeqCst) {
            // Why an epoch ended is told to its clients, and the next one begins anew.
            drop(lead_one_epoch(&shared, &directory).await);
            shared.log.abandon();
            step_down(&shared).await;
        }
        if shared.log.waits_for_space() {
            shared.log.leave_the_lead(attempt).await;
            attempt += 1;
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
    *lock(&shared.leading.detector) = Some(Detector::new(shared.options.members.clone(), shared.identity.process));
    let (detector, jobs, here) = (Arc::clone(&shared.leading.detector), shared.jobs.clone(), shared.identity.process);
    let excluded = Arc::clone(&shared.leading.excluded);
    let queues = Box::new(move |appended: u64| {
        let applied = progress.bytes.load(Ordering::Relaxed).saturating_sub(applied_before);
        let backlog_bytes = appended.saturating_sub(applied);
        let own = Lag { backlog_bytes, is_stalled: backlog_bytes > low && storage.is_stalled(), process: here };
        let counts = |process| process != here && !lock(&excluded).contains(&process);
        let detector = lock(&detector);
        let worst = detector.as_ref().and_then(|detector| detector.worst(jobs.now(), counts));
        let is_spared = || detector.as_ref().is_some_and(|detector| detector.is_spared(jobs.now(), here));
        // What has failed waits for nothing: it is started again, or its tag is taken.
        let has_failed = || storage.failure().is_some() || storage.damage().is_some();
        let is_exempt = || has_failed() || storage.is_full() && storage.is_stalled() && is_spared();
        let own = match is_exempt() {
            true => Lag { process: here, ..Lag::default() },
            false => own,
        };
        let storage = worst.filter(|worst| worst.backlog_bytes > own.backlog_bytes).unwrap_or(own);
        let log = detector.as_ref().map(|detector| detector.log_queue(jobs.now())).unwrap_or_default();
        Queues { storage, log }
    });
    let (coordinator, starting) = Coordinator::new(
        shared.jobs.clone(),
        Arc::new(shared.log.clone()),
        shared.options.coordinator.clone(),
        Arc::clone(&shared.counters),
        queues,
    );
    let starting = starting.at(shared.identity.process);
    if coordinator.start(&starting)?.await? == Applied::Void {
        return Err(no_coordinator(shared.identity.process));
    }
    {
        // Under the lock: whoever closes the process finds the coordinator, or is seen here.
        let mut leading = lock(&shared.leading.coordinator);
        if shared.is_closed.load(Ordering::SeqCst) {
            return Err(shared.closed());
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
    let mut advanced = shared.jobs.now();
    while coordinator.failure().is_none() {
        let step = next_step(shared, coordinator);
        lock(&shared.leading.step).clone_from(&step);
        if step.is_none() && is_draining(shared) && shared.jobs.now().saturating_sub(advanced) >= ADVANCE {
            // What is drained may wait until old versions are past, and they pass with new ones only.
            coordinator.advance();
            advanced = shared.jobs.now();
        }
        if let Some(step) = step {
            count(&step, shared.log.view().changing_to.is_some());
            let taking = std::pin::pin!(async {
                match step {
                    Step::AddLearner(process, peer) => shared.log.add_learner(process, peer).await,
                    Step::RemoveLearner(process) => shared.log.remove_learner(process).await,
                    Step::ChangeVoters(voters) => shared.log.change_voters(voters, true).await,
                    Step::HandOver(to) => shared.log.transfer_leader(to).await,
                    Step::DropTag(_) | Step::Forget(_) => take_away(shared, coordinator, &step).await,
                }
            });
            // What did not go well is looked at again.
            drop(select(taking, shared.jobs.sleep(STEP)).await);
        }
        shared.jobs.sleep(CONTROL).await;
    }
}

/// Counts what a step is, if it is a rare one.
fn count(step: &Step, is_half_done: bool) {
    match step {
        Step::ChangeVoters(_) if is_half_done => reached(Rare::HalfDoneChange),
        Step::ChangeVoters(_) => reached(Rare::VotersChanged),
        Step::HandOver(_) => reached(Rare::HandOver),
        Step::DropTag(_) => reached(Rare::TagDropped),
        Step::Forget(_) => reached(Rare::ProcessForgotten),
        Step::AddLearner(..) | Step::RemoveLearner(_) => {}
    }
}

/// True if a process that is to hold nothing has its tag still.
fn is_draining(shared: &Shared) -> bool {
    let has_tag = |registry: &super::metadata::Registry| {
        registry.excluded.iter().any(|&process| registry.storage_of(process).is_some())
    };
    shared.registry().is_ok_and(|registry| has_tag(&registry))
}

/// What the controller does next. Also has the detector take note of the time.
fn next_step(shared: &Shared, coordinator: &Coordinator) -> Option<Step> {
    let (registry, map) = (shared.registry().ok()?, shared.shards().ok()?);
    let (group, now) = (shared.log.view(), shared.jobs.now());
    lock(&shared.leading.excluded).clone_from(&registry.excluded);
    let next = shared.leading.with_detector(|detector| {
        detector.observe(now, registry.processes.keys().copied());
        detector.set_voters(group.voters.clone());
        detector.mark(shared.log.last_known(), coordinator.appended_bytes());
        coordinator.hold_commits(without_space(&detector.low_on_space(now)));
        let health = |process| detector.health(now, process);
        let here = shared.identity.process;
        let past = shared.log.with_state(State::past);
        Situation { registry: &registry, group: &group, map: &map, past, here, health: &health }.next_step()
    });
    next.flatten()
}

/// Why nothing may be committed, if so many of the log's voters are low on space that no majority is left.
fn without_space(low: &[ProcessId]) -> Option<Error> {
    let numbers: Vec<String> = low.iter().map(ToString::to_string).collect();
    (!low.is_empty()).then(|| {
        let detail = format!(
            "nothing is committed: the disks of the log's voters {} are full, and no majority is without them; free space there, and it goes on by itself",
            numbers.join(", ")
        );
        Error::with(Code::CommitProxyMemoryLimitExceeded, detail)
    })
}

/// Takes a tag or a number from a process, if that is still the next step once nobody else changes anything.
async fn take_away(shared: &Arc<Shared>, coordinator: &Coordinator, step: &Step) -> Result<()> {
    let _alone = shared.leading.registration.lock().await;
    if next_step(shared, coordinator).as_ref() != Some(step) {
        return Ok(());
    }
    let registry = shared.registry()?;
    let mutations = match *step {
        Step::DropTag(process) => registry.storage_of(process).map(|(tag, _)| registry.drop_tag(tag)),
        Step::Forget(process) => Some(registry.forget(process)),
        _ => None,
    };
    match mutations {
        Some(mutations) => coordinator.change_metadata(mutations).await.map(drop),
        None => Ok(()),
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
        Message::Loads { tag, ranges } => loads::answer(&shared, tag, &ranges),
        Message::Beat(beat) => beat::answer(&shared, beat).await,
        Message::Left { process, instance } => {
            note_left(&shared, process, instance).await?;
            Ok(left_answer())
        }
        Message::Order { asked, is_sent_on } => orders::carry_out(&shared, asked, is_sent_on).await,
    }
}

/// Takes a directory's process in, or notes where it is now.
async fn take_in(shared: &Arc<Shared>, instance: [u8; 16], peer: Peer) -> Result<Joined> {
    let coordinator = shared.leading.coordinator().ok_or_else(|| no_coordinator(shared.identity.process))?;
    let _alone = shared.leading.registration.lock().await;
    let registry = shared.registry()?;
    let joined = |process, tag| Joined { cluster_id: shared.identity.cluster_id, process, tag };
    let (last_number, last_tag) = registry.used;
    let new_tag = Tag(last_tag.0 + 1);
    if let Some((number, process)) = registry.of_instance(instance) {
        // Its data was given up meanwhile: it begins with none.
        let is_without = registry.storage_of(number).is_none() && !registry.excluded.contains(&number);
        let tag = if is_without { new_tag } else { process.tag };
        let now = Process { peer, tag, ..process.clone() };
        let mut mutations = Vec::new();
        if now != *process {
            mutations.push(now.set(number));
        }
        if is_without {
            mutations.push(Storage { process: number, is_complete: false }.set(tag));
            mutations.push(registry.set_used((last_number, tag)));
        }
        if !mutations.is_empty() {
            coordinator.change_metadata(mutations).await?;
        }
        return Ok(joined(number, tag));
    }
    let number = last_number + 1;
    let process = Process { instance, peer, tag: new_tag };
    let storage = Storage { process: number, is_complete: false };
    let used = registry.set_used((number, new_tag));
    coordinator.change_metadata(vec![process.set(number), storage.set(new_tag), used]).await?;
    Ok(joined(number, new_tag))
}

/// A process will never come back under its old number. Refused if nobody else holds what it held.
async fn note_left(shared: &Arc<Shared>, process: ProcessId, instance: [u8; 16]) -> Result<()> {
    let coordinator = shared.leading.coordinator().ok_or_else(|| no_coordinator(shared.identity.process))?;
    let _alone = shared.leading.registration.lock().await;
    let registry = shared.registry()?;
    if registry.processes.get(&process).is_none_or(|known| known.instance != instance) {
        return Ok(());
    }
    coordinator.change_metadata(registry.forget(process)).await.map(drop)
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
