//! A process's directory that nobody has open, checked: [`ClusterNode::verify`].

use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::Result;
use ferrisdb_storage::Env;

use super::ClusterNode;
use super::identity::Identity;
use super::known::Known;
use crate::lifetime::take_directory;
use crate::log::replicated::{ProcessId, ReplicaReport, verify_replica};

/// What was found in the directory of a process, beside its tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessReport {
    /// The id of its cluster, in hexadecimal digits; empty if it has not joined one yet.
    pub cluster_id: String,
    /// Its number; 0 if it has none yet.
    pub process: ProcessId,
    /// The tag of its storage server.
    pub tag: u32,
    /// How often it was started.
    pub generation: u64,
    /// Its storage server has told the log of something durable: what it has counts.
    pub has_begun: bool,
    /// Of how many peers it knows how far they were.
    pub peers: usize,
    /// Its replica of the log, if it has joined a cluster.
    pub log: Option<ReplicaReport>,
    /// What is wrong with the files `process` and `peers`.
    pub problems: Vec<String>,
}

impl ClusterNode {
    /// Checks the directory of a process that nobody has open: who it is, whom it knows, and every record of its replica of the log. Changes nothing but the lock file. The tables, in `storage`,
    /// are for [`ferrisdb_storage::inspect::verify`].
    ///
    /// # Errors
    /// What the disk says; `file_not_writable` if it is open. Damage is no error but a problem in the report.
    pub fn verify(env: &Env, dir: &Path) -> Result<ProcessReport> {
        let fs = &env.fs;
        let _lock = take_directory(fs.as_ref(), dir)?;
        let mut report = ProcessReport::default();
        match Known::read(fs.as_ref(), dir) {
            Ok(known) => report.peers = known.peers(),
            Err(error) => report.problems.push(error.detail().unwrap_or_default().to_owned()),
        }
        let identity = match Identity::read(fs.as_ref(), dir) {
            Ok(identity) => identity,
            Err(error) => {
                // Which log would be its own nobody knows.
                report.problems.push(error.detail().unwrap_or_default().to_owned());
                return Ok(report);
            }
        };
        if let Some(identity) = identity.filter(|identity| identity.process > 0) {
            report.cluster_id = identity.cluster_id.iter().map(|byte| format!("{byte:02x}")).collect();
            (report.process, report.tag, report.generation) = (identity.process, identity.tag.0, identity.generation);
            report.has_begun = identity.is_complete;
            report.log = Some(verify_replica(&Arc::clone(fs), &dir.join("raft"), identity.cluster_id)?);
        }
        Ok(report)
    }
}
