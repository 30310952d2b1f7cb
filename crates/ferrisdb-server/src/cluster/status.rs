//! What a process says about the cluster: [`document`], from what it knows itself and what the leader told it last; and [`view`], what the leader tells.
//!
//! Only the leader hears all processes. It sends what it sees with the answer to every beat, so any process can show it, a second old; how old it is, is said.

use std::collections::BTreeSet;
use std::sync::Arc;

use ferrisdb_core::key::printable;
use ferrisdb_core::{Clock, Version};
use serde_json::{Map, Value, json};

use super::beat::VIEW_OLD;
use super::control::Step;
use super::metadata::Registry;
use super::{Shared, spread};
use crate::coordinator::rate::{Lag, LogQueue, Reason};
use crate::log::replicated::ProcessId;
use crate::log::{Log, State, Tag};
use crate::notice::Notice;
use crate::shards::ShardMap;
use crate::signal::lock;
use crate::storage::Damage;

/// What the leader sees of everybody.
pub(super) fn view(shared: &Arc<Shared>, registry: &Registry) -> String {
    let Some(coordinator) = shared.leading.coordinator() else { return String::new() };
    let statistics = coordinator.statistics();
    let (now, last, group) = (shared.jobs.now(), shared.log.last_known(), shared.log.view());
    let Ok(map) = shared.shards() else { return String::new() };
    let is_filled = |process| {
        registry.storage_of(process).is_some_and(|(tag, _)| {
            let moving = map.iter().filter_map(|(_, shard)| Some((shard.team(), shard.moving.as_ref()?)));
            moving.into_iter().any(|(team, moving)| moving.team.contains(&tag) && !team.contains(&tag))
        })
    };
    let outlook = lock(shared.leading.outlook()).clone();
    let tag_of = |process| registry.storage_of(process).map_or(Tag(u32::MAX), |(tag, _)| tag);
    let processes: Option<Map<String, Value>> = shared.leading.with_detector(|detector| {
        let of = |process| {
            let load = detector.load(process);
            let copied = load.filter(|_| is_filled(process));
            let document = json!({
                "state": detector.standing(now, process).name(),
                "heard_seconds_ago": detector.silent(now, process).map(|silent| silent.as_secs_f64()),
                "serves": load.map(|load| load.serves),
                "is_broken": load.map(|load| load.is_broken),
                "is_damaged": load.map(|load| load.is_damaged),
                "disk_is_full": load.map(|load| load.log_is_full || load.is_full),
                "lag_versions": load.filter(|load| load.serves).map(|load| last.get().saturating_sub(load.applied.get())),
                "lag_bytes": load.filter(|load| load.serves).map(|_| detector.backlog_bytes(process)),
                "lag_entries": load.map(|load| group.applied.unwrap_or(0).saturating_sub(load.log_applied)),
                "score": outlook.scores.get(&tag_of(process)),
                "load_bytes_per_second": outlook.loads.get(&tag_of(process)),
                "filling": copied.map(|load| json!({
                    "rows": load.filled_rows, "bytes": load.filled_bytes, "of_about_bytes": load.filling_bytes,
                })),
            });
            (process.to_string(), document)
        };
        registry.processes.keys().copied().map(of).collect()
    });
    let (lag, log) = (statistics.lag, statistics.log);
    let (limiting, description) = limited_by(statistics.reason, &lag, &log, kept_for(shared, registry));
    let document = json!({
        "processes": processes.unwrap_or_default(),
        "commits_held": coordinator.held().map(|error| error.detail().unwrap_or_default().to_owned()),
        "controller": shared.leading.step().map(|step| doing(&step)),
        "moves": {
            "shards_moving": outlook.moving,
            "shards_waiting": outlook.waiting,
            "bytes_to_go": outlook.bytes_to_go,
            "bytes_per_second_each": spread::fetch_rate(shared, &coordinator),
            "bytes_per_second_max": shared.options.shards.all_moves_bytes_per_second,
            "shards_max": shared.options.shards.moves,
        },
        "hot_keys": outlook.hot_keys.iter().map(|hot| {
            json!({ "key": printable(&hot.key), "load_bytes_per_second": hot.load })
        }).collect::<Vec<_>>(),
        "qos": {
            "performance_limited_by": {
                "name": statistics.reason.name(),
                "description": description,
                "process": limiting,
            },
            "begins_per_second": statistics.begins_per_second,
            "begins_waiting": statistics.begins_waiting,
            "queue_requests": statistics.queue_requests,
            "queue_bytes": statistics.queue_bytes,
            "worst_lag_bytes": lag.backlog_bytes,
            "log_bytes": log.bytes,
            "log_free_bytes": (log.free_bytes < u64::MAX).then_some(log.free_bytes),
        },
    });
    document.to_string()
}

/// The process for whose storage server the oldest of the log is kept.
fn kept_for(shared: &Shared, registry: &Registry) -> Option<ProcessId> {
    let least =
        shared.log.with_state(|state| state.tags().iter().min_by_key(|(_, popped)| **popped).map(|(&tag, _)| tag));
    registry.storage.get(&least?).map(|storage| storage.process)
}

/// Which process limits how many transactions begin, and why, in a sentence or two.
fn limited_by(reason: Reason, lag: &Lag, log: &LogQueue, kept_for: Option<ProcessId>) -> (Option<ProcessId>, String) {
    let (process, more) = match reason {
        Reason::Nothing => (None, String::new()),
        Reason::StorageLag | Reason::StorageStalled => {
            let (process, megabytes) = (lag.process, lag.backlog_bytes / 1_000_000);
            (Some(process), format!(" It is process {process}, which has {megabytes} MB to apply."))
        }
        Reason::LogQueue => {
            let whose = kept_for.map(|process| format!(", the oldest of them for process {process}"));
            let megabytes = log.bytes / 1_000_000;
            (kept_for, format!(" It keeps {megabytes} MB{}.", whose.unwrap_or_default()))
        }
        Reason::LogSpace => {
            let (process, megabytes) = (log.fullest, log.free_bytes / 1_000_000);
            (Some(process), format!(" Process {process} has space for {megabytes} MB more of the log."))
        }
    };
    (process, format!("{}{more}", reason.message()))
}

fn doing(step: &Step) -> String {
    match step {
        Step::AddLearner(process, peer) => format!("sends process {process} at {} the log", peer.address),
        Step::RemoveLearner(process) => format!("sends process {process} the log no more"),
        Step::ChangeVoters(voters) => format!("changes the voters to {voters:?}"),
        Step::HandOver(process) => format!("hands the lead over to process {process}"),
        Step::DropTag(process) => format!("gives up the data of process {process}"),
        Step::Forget(process) => format!("forgets process {process}"),
    }
}

/// The document.
pub(super) fn document(shared: &Arc<Shared>) -> String {
    let group = shared.log.view();
    let registry = shared.registry().unwrap_or_default();
    let map = shared.shards().unwrap_or_else(|_| Arc::new(ShardMap::whole([])));
    let failure = shared.failure().map(|error| error.to_string());
    let (epoch, last) = shared.log.with_state(|state| (state.epoch(), state.last()));
    let again = lock(&shared.again).is_some();
    let available = failure.is_none() && group.leader.is_some() && !again;
    let state = match (&failure, group.leader) {
        _ if again => "joins_again",
        (Some(_), _) => "broken",
        (None, None) => "without_leader",
        (None, Some(_)) => "available",
    };
    let id: String = shared.identity.cluster_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let seen = lock(&shared.view).clone();
    let seen_seconds_ago = seen.as_ref().map(|(at, _)| shared.jobs.now().saturating_sub(*at));
    let seen: Value = seen.and_then(|(_, text)| serde_json::from_str(&text).ok()).unwrap_or_default();
    let processes: Map<String, Value> = registry
        .processes
        .iter()
        .map(|(&number, process)| {
            let mut roles = Vec::new();
            if registry.storage_of(number).is_some() {
                roles.push("storage");
            }
            if group.voters.contains(&number) {
                roles.push("log");
            }
            if group.leader == Some(number) {
                roles.push("coordinator");
            }
            let mut document = json!({
                "address": process.peer.address,
                "zone": process.peer.zone,
                "roles": roles,
                "is_complete": shared.has_its_share(process.tag),
                "shards": map.iter().filter(|(_, shard)| shard.team().contains(&process.tag)).count(),
                "shards_held_alone": map.only_in(&BTreeSet::from([process.tag])).len(),
                "excluded": registry.excluded.contains(&number),
                "popped_version": shared.log.with_state(|state| state.popped(process.tag)).map(Version::get),
            });
            if let (Some(members), Some(more)) =
                (document.as_object_mut(), seen["processes"][number.to_string()].as_object())
            {
                members.extend(more.clone());
            }
            (number.to_string(), document)
        })
        .collect();
    let mut messages = messages(shared, failure.as_deref(), &registry, &processes, seen_seconds_ago);
    messages.extend(
        seen["commits_held"]
            .as_str()
            .map(|why| Notice::CommitsHeld.document(format!("Commits are refused, while reads go on: {why}."))),
    );
    messages.extend(seen["hot_keys"].as_array().into_iter().flatten().map(hot_key_message));
    json!({
        "client": { "database_status": { "available": available, "healthy": available && messages.is_empty() } },
        "cluster": {
            "generation": epoch,
            "cluster_id": id,
            "state": state,
            "failure": failure,
            "messages": messages,
            "database_lock_state": shared.log.with_state(State::lock_document),
            "leader": group.leader,
            "voters": group.voters,
            "processes": processes,
            "excluded": registry.excluded,
            "replication": registry.replication,
            "shards": {
                "count": map.len(),
                "moving": map.iter().filter(|(_, shard)| shard.moving.is_some()).count(),
                "replicas": registry.replicas(),
                "replicas_least": map.iter().map(|(_, shard)| shard.team().len()).min(),
            },
            "commits_held": seen["commits_held"],
            "controller": seen["controller"],
            "moves": seen["moves"],
            "hot_keys": seen["hot_keys"],
            "seen_seconds_ago": seen_seconds_ago.map(|age| age.as_secs_f64()),
            "qos": seen["qos"],
            "versions": {
                "last": last.get(),
                "applied": shared.storage.applied_version().get(),
                "flushed": shared.storage.flushed_version().get(),
            },
            "workload": shared.counters.document(),
            "process": {
                "number": shared.identity.process,
                "generation": shared.identity.generation,
                "directory": shared.dir.display().to_string(),
                "is_complete": shared.has_its_share(shared.identity.tag),
                "shards_arrived": shared.keeper.arrived(),
                "leads": shared.leading.coordinator().is_some(),
                "is_introduced": shared.log.is_introduced(),
                "log": { "term": group.term, "applied": group.applied, "snapshot": group.snapshot, "purged": group.purged,
                         "voters": group.voters, "learners": group.learners },
            },
        },
    })
    .to_string()
}

/// One key has more load than a storage server should have of a whole shard.
fn hot_key_message(hot: &Value) -> Value {
    let load = hot["load_bytes_per_second"].as_u64().unwrap_or_default();
    let description = format!(
        "Key {} alone has a load of {}.{} MB/s at each of its replicas. A shard cannot be cut within a key, so nothing can be moved away from it: have programs spread what they \
         read and write there over several keys.",
        hot["key"].as_str().unwrap_or_default(),
        load / 1_000_000,
        load / 100_000 % 10,
    );
    Notice::HotKey.document(description)
}

/// What a full disk of this process means.
fn full_here(shared: &Shared) -> Option<String> {
    let (number, dir) = (shared.identity.process, shared.dir.display());
    if shared.log.waits_for_space() {
        return Some(format!(
            "The disk of this process, {number}, is full: its replica of the log takes nothing, so it does not lead and has no vote. Others answer what it is asked. Free \
             space for {dir}: it goes on by itself."
        ));
    }
    shared.storage.is_full().then(|| {
        format!(
            "The disk of this process, {number}, is full: its storage server makes nothing durable, and the log keeps what it has not taken. Free space for {dir}: it \
             goes on by itself."
        )
    })
}

/// What that of another one means.
fn full_there(number: &str, gone_after: std::time::Duration) -> String {
    format!(
        "The disk of process {number} is full: free space there, and it goes on by itself. If its replica of the log takes nothing for {gone_after:?}, it is gone, and copies everything \
         anew when it comes back."
    )
}

/// What it means that storage has failed, of this process or of another one, and what to do.
fn broken(has_tag: bool, gone_after: std::time::Duration) -> String {
    let what = match has_tag {
        true => format!("after {gone_after:?} its data is given up, if others have it"),
        false => "its data was given up".to_owned(),
    };
    let then = if has_tag { "" } else { ", and it copies everything anew" };
    format!(
        "Its storage server takes nothing, and others answer for it; {what}. Its replica of the log votes on. Look at its disk and the system's log, mend the cause, then start \
         the process again{then}."
    )
}

/// What it means that files of the storage server of this process are damaged, and what to do.
pub(super) fn damaged(shared: &Shared, damage: &Damage) -> String {
    let (number, tag) = (shared.identity.process, shared.identity.tag);
    let held_alone = shared.shards().map_or(0, |map| map.only_in(&BTreeSet::from([tag])).len());
    let then = match held_alone {
        0 => format!(
            "After {:?} its data is given up, if others that are well have all of it, and it copies everything anew by itself: nothing need be done, but look at the disk.",
            shared.options.members.gone_after
        ),
        shards => format!(
            "Nobody else has {shards} of its shards, so it keeps what it has: export what can be read, and restore the rest from a backup. More processes, and `ferrisdb cluster \
             configure replication=3`, keep this from happening."
        ),
    };
    format!(
        "Files of the storage server of this process, {number}, are damaged: {}. Met {} time(s) so far. What cannot be read here is answered by others that have it. {then}",
        damage.first, damage.met
    )
}

/// What it means for another one.
fn damaged_there(number: &str, has_tag: bool, gone_after: std::time::Duration) -> String {
    let then = match has_tag {
        true => format!(
            "after {gone_after:?} its data is given up, if others that are well have all of it, and it copies everything anew"
        ),
        false => "its data was given up, and it copies everything anew".to_owned(),
    };
    format!(
        "Files of the storage server of process {number} are damaged, its own status and log say which: one replica fewer can be relied on. By itself {then}; look at its disk."
    )
}

/// What is wrong, and what to do.
fn messages(
    shared: &Shared,
    failure: Option<&str>,
    registry: &Registry,
    processes: &Map<String, Value>,
    seen: Option<std::time::Duration>,
) -> Vec<Value> {
    let mut messages = Vec::new();
    let mut say = |notice: Notice, description: String| messages.push(notice.document(description));
    let gone_after = shared.options.members.gone_after;
    let has_tag = |number| registry.storage_of(number).is_some();
    if let Some(failure) = failure {
        let has_others = registry.processes.len() > 1 && shared.log.view().failure.is_none();
        say(
            Notice::Broken,
            match has_others {
                true => format!("{failure}. {}", broken(has_tag(shared.identity.process), gone_after)),
                false => failure.to_owned(),
            },
        );
    }
    if let Some(damage) = shared.storage.damage() {
        say(Notice::StorageDamaged, damaged(shared, &damage));
    }
    if lock(&shared.again).is_some() {
        say(
            Notice::JoinsAgain,
            "This process begins again as a new one, with an empty storage server; its log says why.".to_owned(),
        );
    }
    if let Some(error) = lock(&shared.moving).as_ref() {
        say(
            Notice::Moving,
            format!(
                "This process fetches data that it is to hold, and tries again; the last attempt ended so: {error}"
            ),
        );
    }
    if let Some(what) = full_here(shared) {
        say(Notice::DiskFull, what);
    }
    let group = shared.log.view();
    if group.leader.is_none() {
        say(
            Notice::WithoutLeader,
            "No process leads the cluster, as far as this one can see. A majority of the log's voters must be up and reach each other.".to_owned(),
        );
    }
    if !shared.log.is_introduced() {
        say(
            Notice::NotIntroduced,
            "This process waits until so many of the log's voters have answered that they are a majority with it: they know whether its disk went back. Start the others."
                .to_owned(),
        );
    }
    if group.leader.is_some() && seen.is_none_or(|seen| seen > VIEW_OLD) {
        say(
            Notice::NotSeen,
            "What the leader sees of the processes has not arrived here for more than 5 s: states and lags are old, or missing.".to_owned(),
        );
    }
    for (number, process) in processes {
        let is_excluded = process["excluded"] == true;
        let has_vote = process["roles"].as_array().is_some_and(|roles| roles.iter().any(|role| role == "log"));
        match process["state"].as_str() {
            // It has said so itself, above.
            _ if process["disk_is_full"] == true && *number == shared.identity.process.to_string() => {}
            _ if process["disk_is_full"] == true => {
                say(Notice::DiskFull, full_there(number, gone_after));
            }
            Some("suspected") => say(
                Notice::Suspected,
                format!(
                    "Process {number} has not been heard for {:.0} s. See whether it runs and can be reached.",
                    process["heard_seconds_ago"].as_f64().unwrap_or_default()
                ),
            ),
            Some("gone") if has_vote => say(
                Notice::Gone,
                format!(
                    "Process {number} is gone, and its vote in the log is missing: one more loss may stop the database. Start it again, or start a new process with --join, which \
                     takes its place."
                ),
            ),
            Some("gone") => {
                say(Notice::Gone, format!("Process {number} is gone. Started again, it copies everything anew."))
            }
            // It has said so itself, above.
            _ if process["is_broken"] == true && *number == shared.identity.process.to_string() => {}
            _ if process["is_damaged"] == true => {
                say(Notice::StorageDamaged, damaged_there(number, number.parse().is_ok_and(has_tag), gone_after));
            }
            _ if process["is_broken"] == true => {
                let has_tag = number.parse().is_ok_and(has_tag);
                let what = broken(has_tag, gone_after);
                say(
                    Notice::ProcessBroken,
                    format!("Process {number} has failed: its own status and log say why. {what}"),
                );
            }
            _ if is_excluded && (has_vote || process["roles"].as_array().is_some_and(|roles| !roles.is_empty())) => {
                say(
                    Notice::Draining,
                    format!("Process {number} is excluded, and still gives up what it has. Do not stop it yet."),
                );
            }
            _ if is_excluded => say(
                Notice::Excluded,
                format!(
                    "Process {number} is excluded and holds nothing: stop it for good, or take it back with `ferrisdb cluster include {number}`."
                ),
            ),
            _ => {}
        }
    }
    if registry.processes.len() > 1 && group.voters.len() < super::control::VOTERS && failure.is_none() {
        say(
            Notice::FewVoters,
            format!(
                "The log has {} voter(s): the database does not survive the loss of one. It gets three by itself with the third process.",
                group.voters.len()
            ),
        );
    }
    messages
}
