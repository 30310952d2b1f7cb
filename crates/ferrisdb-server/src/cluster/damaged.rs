//! Files of a process that are not what was written: what it still is without them.
//!
//! | damaged | so the process does not know | what it does |
//! | --- | --- | --- |
//! | `raft/`, where it was synced | what it voted, and what it acknowledged | It must never take part under its number again. Once the cluster has forgotten that, it joins as a new one. |
//! | `peers` | what its peers had | Goes on, and learns it again from their beats. |
//! | `process` | who it is | Does not start. |
//!
//! In `storage/`, tables that are damaged are told of by [`StorageServer::damage`](crate::storage::StorageServer::damage) when they are met: that process goes on. If what says which
//! tables there are is damaged, so that the storage server does not open, it joins as a new one, too: which vote it has is known, but not what it is to fetch.
//!
//! # Why another number
//! A voter that forgot a vote may vote twice in a term, and one that forgot an entry may help to elect a leader who lacks it. The entries could be fetched again; the vote is
//! in no other replica's log. So the number goes, as that of a disk that went back does, and the group of the log takes the new one in as it takes in any other.
//!
//! # Invariants
//! - Nothing here is changed before a leader has made it durable that the cluster goes on without the old process. It refuses that if the old one alone holds something;
//!   without a majority of the others nobody leads. In both cases the process does not start, and its directory is what it was.
//! - What nobody else has is set aside, not thrown away: the files of the last damaged log are in `raft.damaged`, the last damaged list of peers is `peers.damaged`. (What the storage server held
//!   others have, or the leader had refused.)

use std::path::Path;

use ferrisdb_core::{Code, Error, Result};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::FileSystem;

use super::identity::Identity;
use super::known::Known;
use super::messages::Message;
use super::open::{Opened, Opener, remove_files};
use crate::failure::from_storage;
use crate::log::replicated::ProcessId;
use crate::signal::{Replied, lock};

/// Where the files of a damaged log go.
const RAFT_DAMAGED: &str = "raft.damaged";

/// What a process cannot open any more.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) part: Part,
    /// Where, and what did not hold.
    pub(super) damage: String,
}

/// A part of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Its replica of the log.
    Log,
    /// Its storage server.
    Storage,
}

impl Lost {
    fn told(&self, number: ProcessId) -> String {
        let what = match self.part {
            Part::Log => "what it voted and acknowledged",
            Part::Storage => "what it held",
        };
        format!("{}. This was durable: process {number} does not know any more {what}", self.damage)
    }
}

impl Opener<'_> {
    /// The process cannot be `before` any more, because of what is lost: the cluster is to forget that one, and takes this directory in as a new process.
    ///
    /// # Errors
    /// It knows nobody to ask, or nobody leads, or nobody else holds what it holds. Nothing was changed.
    pub(super) async fn begin_as_new(
        &self,
        before: Identity,
        lost: &Lost,
        addresses: &[String],
        known: &mut Known,
        tasks: &mut Vec<Replied<()>>,
    ) -> Result<Opened> {
        let number = before.process;
        let forgot = lost.told(number);
        if addresses.is_empty() {
            let detail = format!(
                "{forgot}, and knows no other process of the cluster. Nothing was changed. If memory, cable or controller may be at fault rather than the disk, copy {dir} and \
                 try again elsewhere; if there are others, say where with --join HOST:PORT; otherwise restore a backup into a new directory",
                dir = self.dir.display()
            );
            return Err(Error::with(Code::IoError, detail));
        }
        let left = Message::Left { process: number, instance: before.instance }.encode();
        self.ask_leader(Some(before.cluster_id), left, addresses).await.map_err(|error| {
            let detail = format!(
                "{forgot}, so it can only join as a new one, and that the cluster goes on without process {number} nobody has confirmed: {}. Nothing was changed. Start the \
                 others, of which a majority of the log's voters must be up, then this one again. If it alone voted, or alone held some keys, restore a backup",
                error.detail().unwrap_or_default()
            );
            Error::with(error.code(), detail)
        })?;
        let nobody = Identity::nobody(self.doors.env.entropy.unique_bytes());
        nobody.write(self.fs(), self.dir)?;
        let mut aside = String::new();
        if lost.part == Part::Log {
            set_aside(self.fs(), self.dir)?;
            aside = format!(". What there was of its log is in {}", self.dir.join(RAFT_DAMAGED).display());
        }
        let opened = self.join(Some(nobody), addresses.to_vec(), known, tasks).await?;
        lock(self.notices).push(format!(
            "{forgot}. It has joined the cluster as process {}, and copies everything anew{aside}. Look at the disk",
            opened.0.process,
        ));
        Ok(opened)
    }
}

/// Moves the log's files away, in the place of those that were moved away before.
fn set_aside(fs: &dyn FileSystem, dir: &Path) -> Result<()> {
    let (from, to) = (dir.join("raft"), dir.join(RAFT_DAMAGED));
    let failed = |op, path: &Path, error| from_storage("cannot set aside", &StorageError::io(op, path, error));
    remove_files(fs, &to)?;
    for name in fs.list(&from).map_err(|error| failed("list", &from, error))? {
        let path = from.join(&name);
        fs.rename(&path, &to.join(&name)).map_err(|error| failed("rename", &path, error))?;
    }
    fs.sync_dir(&to).map_err(|error| failed("sync", &to, error))?;
    fs.sync_dir(&from).map_err(|error| failed("sync", &from, error))?;
    fs.sync_dir(dir).map_err(|error| failed("sync", dir, error))
}
