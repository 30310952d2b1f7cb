//! FerrisDB's roles: the transaction coordinator, the transaction log, the storage server.
//!
//! Each role is a deterministic core, which knows no clock, disk or network, and a driver around it, written as plain futures. The drivers
//! run on a [`Runtime`](ferrisdb_core::Runtime); [`JobRuntime`] is the one over the storage engine's spawner: threads in a real process, one
//! thread in a simulation. [`Node`] is all roles of a database in one process, [`cluster::ClusterNode`] one of the processes of
//! a cluster.

#![forbid(unsafe_code)]
#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]

pub mod alone;
pub mod cluster;
pub mod coordinator;
pub mod counters;
mod failure;
mod feed;
mod lifetime;
#[cfg(test)]
mod links;
#[cfg(test)]
mod lives;
pub mod log;
pub mod node;
mod notice;
pub mod resolver;
pub mod runtime;
pub mod shards;
mod signal;
pub mod storage;

pub use failure::NotOpened;
pub use node::{Node, NodeOptions};
pub use runtime::JobRuntime;
