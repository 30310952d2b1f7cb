//! A process that begins again, in the same directory and without being started again: [`Again`].
//!
//! | what happened | who says so | what it does |
//! | --- | --- | --- |
//! | It lost its tag: it was gone for long, or excluded and is taken back, or files of its storage server were damaged. | the log, and the leader | Keeps number, log and vote; empties its storage, and is given shards for the new tag. |
//! | It was forgotten, or its disk went back. | the leader, or any voter | Empties everything and joins as a new process. |
//!
//! # Invariants
//! - The life before has ended, with all its tasks, before the next one begins.
//! - What is to be emptied is written down before: a crash in the middle does not bring the old process back.

use std::sync::Arc;

use ferrisdb_core::Runtime;
use ferrisdb_core::rare::{Rare, reached};

use super::identity::Identity;
use super::messages::Message;
use super::{Beginning, LOOK, Life, Shared};
use crate::lifetime::SharedLock;
use crate::log::Tag;
use crate::signal::lock;

/// As what a process begins again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Again {
    /// As itself, with a new tag and nothing stored.
    WithTag(Tag),
    /// As a new process, because of this.
    AsNew(String),
}

impl Shared {
    /// This life is to end. What was said first holds.
    pub(super) fn begin_again(&self, again: Again) {
        lock(&self.again).get_or_insert(again);
        self.ends.set();
    }
}

/// Waits for a life's end, and begins the next one, until the process stops.
pub(super) async fn supervise(life: Arc<Life>, directory: SharedLock) {
    loop {
        let shared = life.shared();
        let stopped = life.stop.unless_set(shared.ends.unless_set(std::future::pending::<()>())).await;
        let again = lock(&shared.again).clone();
        let (Some(_), Some(again)) = (stopped, again) else { return };
        let before = shared.identity;
        let addresses = shared.recorder.addresses();
        let damage = shared.storage.damage();
        life.notice(match &again {
            Again::WithTag(tag) if let Some(damage) = damage => format!(
                "process {} had damaged files: {}. Its data was given up; it keeps its number and copies everything anew, with tag {}",
                before.process, damage.first, tag.0
            ),
            Again::WithTag(tag) => format!(
                "process {} was gone for too long, or excluded: its data was given up; it keeps its number and copies everything anew, with tag {}",
                before.process, tag.0
            ),
            Again::AsNew(why) => format!("{why}. Its directory is emptied, and it joins the cluster as a new process"),
        });
        reached(match &again {
            Again::WithTag(_) => Rare::RejoinedWithTag,
            Again::AsNew(_) => Rare::RejoinedAsNew,
        });
        shared.close().await.ok();
        // What peers said in the last seconds holds in the next life too. Unwritten, it is a little less.
        shared.recorder.known().write(life.doors.env.fs.as_ref(), &life.dir).ok();
        let next = match again {
            Again::WithTag(tag) => {
                Identity { tag, is_complete: false, readable_from: ferrisdb_core::Version::ZERO, ..before }
            }
            Again::AsNew(_) => Identity::nobody(life.doors.env.entropy.unique_bytes()),
        };
        let mut is_written = false;
        loop {
            let begun = async {
                if !is_written {
                    next.write(life.doors.env.fs.as_ref(), &life.dir)?;
                    is_written = true;
                }
                life.begin(Beginning::Join(addresses.clone()), &directory).await
            };
            match begun.await {
                Ok(()) => break,
                // For the status.
                Err(error) => *lock(&shared.moving) = Some(error),
            }
            if life.is_stopped() {
                return;
            }
            shared.jobs.sleep(25 * LOOK).await;
        }
        let now = life.shared();
        if now.identity.process != before.process {
            life.notice(format!("process {} is process {} from now on", before.process, now.identity.process));
            // So that nobody waits for the old one. Unheard, it is gone after a while.
            let left = Message::Left { process: before.process, instance: before.instance }.encode();
            drop(now.at_coordinator(|endpoint| endpoint.message(left.clone())).await);
        }
    }
}
