//! Tools that prove things about a database by running it.
//!
//! [`history`] certifies that a recorded run was strictly serializable; [`oracle`] compares every call of the API with a simple model. The simulator runs
//! whole processes, the real code, in a [`world`] of simulated machines, where one number decides everything.
//!
//! ```text
//! seeds       many seeds, each in a process of its own      run         one seed, from foundation to verdict
//! faults      what goes wrong, and when                     workloads   what clients do, and how it is judged
//! programs    what runs on the servers                      world       machines: disk, clock, jobs, network, trace
//! members     how the processes of a cluster stand          cuts        which links of the network are cut
//! watcher     what holds of the log at every moment         replicas    whether they are the same in the end
//! ```

mod cuts;
pub mod faults;
pub mod history;
pub mod members;
pub mod oracle;
pub mod programs;
mod replicas;
pub mod run;
pub mod seeds;
mod watcher;
pub mod workloads;
pub mod world;

/// False if this program was built without `--cfg tokio_unstable`, which `.cargo/config.toml` says and a RUSTFLAGS variable takes away silently: tokio's own
/// choices cannot be seeded then, and no run is like another.
pub const fn is_reproducible() -> bool {
    cfg!(tokio_unstable)
}
