//! Tests of a whole node on a simulated disk, with all jobs on one thread in an order that a seed decides; and some on real threads.

mod alone;
mod closing;
mod commits;
mod crashes;
mod disk;
mod threads;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::{Bytes, Clock, Code, KeyRange, ManualClock, Mutation, MutationKind, Result, Version};
use ferrisdb_rpc::api::{
    Afterwards, BeginRequest, CommitId, CommitRequest, Committed, GetRequest, Lease, LeaseRequest, Priority,
    ResolveRequest,
};
use ferrisdb_rpc::{Answer, Endpoint};
use ferrisdb_storage::Env;
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::env::wait;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};

use super::{Node, NodeOptions};

const DIR: &str = "/db";

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A simulated process on a simulated machine: it dies when it is dropped.
struct Machine {
    disk: SimFileSystem,
    clock: Arc<ManualClock>,
    spawner: Arc<StepSpawner>,
    env: Env,
}

impl Machine {
    fn new(disk: SimFileSystem, seed: u64) -> Machine {
        let (env, spawner, clock) = Env::sim_with_seed(disk.clone(), seed);
        Machine { disk, clock, spawner, env }
    }

    fn open(&self) -> Result<Node> {
        self.open_with(NodeOptions::tiny())
    }

    fn open_with(&self, options: NodeOptions) -> Result<Node> {
        Node::open(self.env.clone(), Path::new(DIR), options)
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        wait(&*self.spawner, future)
    }

    /// The process dies, and the machine with it; what is left is another machine's.
    fn crash(self, mode: CrashMode, seed: u64) -> Machine {
        Machine::new(self.disk.fork_crashed(mode), seed)
    }

    fn begin(&self, node: &Node) -> Version {
        self.wait(node.begin(BeginRequest { transactions: 1, priority: Priority::Default })).expect("it begins").version
    }

    /// The same, whatever limits the others.
    fn begin_now(&self, node: &Node) -> Version {
        self.wait(node.begin(BeginRequest { transactions: 1, priority: Priority::Immediate }))
            .expect("it begins")
            .version
    }

    fn get(&self, node: &Node, key: &str) -> Option<String> {
        let version = self.begin(node);
        self.get_at(node, key, version).expect("it reads")
    }

    fn get_at(&self, node: &Node, key: &str, version: Version) -> Result<Option<String>> {
        let value = self.wait(node.get(GetRequest { key: bytes(key), version }))?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    fn commit(&self, node: &Node, request: CommitRequest) -> Result<Committed> {
        self.wait(node.commit(request))
    }

    /// Sets one key, blindly.
    fn set(&self, node: &Node, key: &str, value: &str) -> Result<Version> {
        let request = Transaction::at(self.begin(node)).set(key, value).build();
        match self.commit(node, request)? {
            Committed::At { version, .. } => Ok(version),
            Committed::Conflict { .. } => panic!("a blind write does not conflict"),
        }
    }

    fn lease(&self, node: &Node, request: LeaseRequest) -> Result<Lease> {
        self.wait(node.lease(request))
    }

    fn resolve(&self, node: &Node, id: CommitId, read_version: Version) -> Result<Option<Committed>> {
        self.wait(node.resolve(ResolveRequest { id, read_version }))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.spawner.drop_jobs();
    }
}

/// Builds a commit request.
#[derive(Debug, Clone)]
struct Transaction(CommitRequest);

impl Transaction {
    fn at(read_version: Version) -> Transaction {
        Transaction(CommitRequest {
            read_version,
            read_conflicts: Vec::new(),
            write_conflicts: Vec::new(),
            mutations: Vec::new(),
            id: None,
            lowest_unanswered: 0,
            report_conflicting_keys: false,
            begins: None,
            lock_aware: false,
        })
    }

    fn read(mut self, key: &str) -> Transaction {
        self.0.read_conflicts.push(KeyRange::single(key.as_bytes()));
        self
    }

    fn set(self, key: &str, value: &str) -> Transaction {
        self.mutate(Mutation::set(bytes(key), bytes(value)))
    }

    fn add(self, key: &str, number: u64) -> Transaction {
        self.mutate(Mutation::new(MutationKind::Add, bytes(key), number.to_le_bytes().to_vec()))
    }

    fn mutate(mut self, mutation: Mutation) -> Transaction {
        self.0.write_conflicts.push(KeyRange::single(&mutation.key));
        self.0.mutations.push(mutation);
        self
    }

    fn lock_aware(mut self) -> Transaction {
        self.0.lock_aware = true;
        self
    }

    fn begins(mut self, priority: Priority) -> Transaction {
        self.0.begins = Some(priority);
        self
    }

    fn id(mut self, client: u64, counter: u64, lowest_unanswered: u64) -> Transaction {
        self.0.id = Some(CommitId { client, counter });
        self.0.lowest_unanswered = lowest_unanswered;
        self
    }

    fn build(self) -> CommitRequest {
        self.0
    }
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    result.expect_err("it fails").code()
}
