//! `ferrisdb serve`: one database, one port, until somebody says stop.
//!
//! The transport runs on this thread (a current-thread tokio runtime); the database's roles have threads of their own. Reads that are in memory
//! are answered on this thread, others by the read threads.
//!
//! A database that is served alone becomes a cluster when another process asks to join it (`ferrisdb_server::alone`): same process, same port.
//!
//! # Stopping
//! SIGTERM, SIGINT and SIGHUP (the terminal is gone) stop it gracefully: no more connections, what is under way is finished (`drain_timeout`), the database is closed. A second
//! signal ends the waiting for clients. A kill needs no stopping: what was acknowledged is in the log.
//!
//! # A database that is broken
//! After a failed sync nobody knows what the disk has, so the log takes nothing more: every commit fails, for good. Reads go on, from what is known to be
//! durable, and so does the server: log and status say `broken` and what to do. A later stop has exit code 1, and `--exit-on-failure` stops at once,
//! for those whose supervisor restarts it: the next start reads the log from the disk, and finds out what is there.
//!
//! # Who can reach it
//! Without TLS and users, whoever reaches the port can do everything. So it listens on loopback addresses only, unless `--insecure` says that the
//! network is trusted; that is warned of at every start and in the status.

pub(crate) mod config;
mod endpoint;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::ArgMatches;
use ferrisdb::alone::{Alone, Turn};
use ferrisdb::cluster::{Beginning, ClusterNode, ClusterOptions, Doors, MemberOptions, Peer, RpcNetwork, ShardOptions};
use ferrisdb::{Endpoint, Limits, Node, NodeOptions};
use ferrisdb_rpc::{ServeOptions, Server, TokioRuntime};
use ferrisdb_storage::Env;
use futures_util::future::{Either, select};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::arguments::{LogFormat, ServeArguments};
use crate::connect;
use crate::failure::Failure;
use config::Config;
use endpoint::Served;

/// How often the database is asked whether it still commits.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// A broken database is logged again after so many of them: once in a minute.
const REMINDER_INTERVALS: u32 = 60;

/// Serves until it is stopped.
pub(crate) fn run(arguments: ServeArguments, matches: &ArgMatches, out: &mut dyn Write) -> Result<(), Failure> {
    if arguments.tethered {
        end_with_standard_input()?;
    }
    let config = Config::new(arguments, matches)?;
    start_logging(&config)?;
    raise_file_limit(config.connections_max.value);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::failed(format!("cannot start the runtime: {error}"), "check the limits of this process")
    })?;
    // The port before the data: who is refused has not founded a database.
    let (listener, insecure) = runtime.block_on(listen(&config))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(&config, &error))?;

    let process = Process::open(&config, &runtime, address)?;
    let stop = runtime.block_on(async { Stop::install() });
    let stop = stop.map_err(|error| Failure::failed(format!("cannot listen to signals: {error}"), ""))?;
    writeln!(out, "FerrisDB {}\n{config}", env!("CARGO_PKG_VERSION"))?;
    if let Some(warning) = &insecure {
        writeln!(out, "  WARNING: {warning}\n")?;
        tracing::warn!(event = "server.insecure", %address, "{warning}");
    }
    let served = Arc::new(Served {
        endpoint: process.endpoint(),
        alone: process.alone(),
        address: address.to_string(),
        insecure,
        server: OnceLock::new(),
    });
    let server = Server::new(Arc::<Served>::clone(&served), serve_options(&config));
    served.server.set(Arc::downgrade(&server)).expect("it is set once, here");
    writeln!(out, "listening on {address}; stop with Ctrl-C or SIGTERM")?;
    out.flush()?;
    tracing::info!(event = "server.started", %address, data = %config.data.value.display(), "serving");

    let failure = || {
        process.log_notices();
        process.failure()
    };
    let failure = runtime.block_on(serve(&server, listener, &failure, stop, config.exit_on_failure.value));
    // Connections hold nothing any more; tasks of the transport end with their runtime.
    let closed = process.close(&runtime);
    runtime.shutdown_timeout(Duration::from_secs(1));
    match &closed {
        Ok(()) => tracing::info!(event = "server.stopped", "the database is closed"),
        Err(error) if connect::has_database(&config.data.value) => {
            tracing::error!(event = "server.close_failed", %error, "the database did not close well; nothing acknowledged is lost");
        }
        Err(error) => tracing::error!(
            event = "server.close_failed",
            %error,
            "the database did not close well, and its files are gone; what was in them is there only if somebody has moved them, or has a backup"
        ),
    }
    writeln!(out, "stopped")?;
    match failure {
        // More than what the closing says, which is its consequence.
        Some(error) => {
            Err(Failure::failed(format!("the database could not commit any more: {error}"), ferrisdb::BROKEN_REMEDY))
        }
        None => Ok(closed?),
    }
}

/// Serves until the first signal, or with `exit_on_failure` until the database is broken; lets clients finish until the second. Returns why the database is
/// broken, if it is.
async fn serve(
    server: &Arc<Server>,
    listener: TcpListener,
    failure: &dyn Fn() -> Option<ferrisdb::Error>,
    mut stop: Stop,
    exit_on_failure: bool,
) -> Option<ferrisdb::Error> {
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        // An error says that the other side is gone, and then there is nothing to serve for either.
        drop(told.await);
    };
    let broken = tokio::sync::Notify::new();
    let signals = async {
        let ended = async {
            broken.notified().await;
            "the database is broken"
        };
        let reason = {
            let (signal, ended) = (std::pin::pin!(stop.next()), std::pin::pin!(ended));
            select(signal, ended).await.factor_first().0
        };
        tracing::info!(event = "server.stopping", reason, "no more connections; what is under way is finished");
        // Nobody listens any more if the server has ended by itself.
        tell.send(()).unwrap_or_default();
        let second = stop.next().await;
        tracing::warn!(event = "server.stopping_now", signal = second, "not waiting for clients any longer");
    };
    let health = async {
        let (mut is_well, mut quiet) = (true, 0_u32);
        loop {
            if let Some(error) = failure().filter(|_| is_well) {
                is_well = false;
                tracing::error!(event = "server.broken", %error, "{}", ferrisdb::BROKEN_REMEDY);
                if exit_on_failure {
                    broken.notify_one();
                }
            } else if !is_well {
                // Whoever looks at the end of the log finds it.
                quiet += 1;
                if quiet % REMINDER_INTERVALS == 0 {
                    tracing::error!(
                        event = "server.still_broken",
                        "the database still commits nothing; see server.broken above, and the status"
                    );
                }
            }
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    };
    let ended = std::pin::pin!(select(Box::pin(signals), Box::pin(health)));
    let serving = std::pin::pin!(server.serve(listener, shutdown));
    select(serving, ended).await;
    failure()
}

/// The signals that stop a server.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if whoever started the process has it ignored (`nohup`).
    hangup: Option<Signal>,
}

impl Stop {
    /// From now on the signals do not end the process by themselves.
    fn install() -> io::Result<Stop> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    async fn next(&mut self) -> &'static str {
        let (terminate, interrupt) = (std::pin::pin!(self.terminate.recv()), std::pin::pin!(self.interrupt.recv()));
        let hangup = std::pin::pin!(async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        });
        match select(select(terminate, interrupt), hangup).await {
            Either::Left((Either::Left(_), _)) => "SIGTERM",
            Either::Left((Either::Right(_), _)) => "SIGINT",
            Either::Right(_) => "SIGHUP",
        }
    }
}

/// True if the process is to outlive its terminal. Where that cannot be found out, it is not.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is signal 1, and the first bit.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// From now on the process ends when its standard input does, like one that is killed: whoever held the other end is gone.
fn end_with_standard_input() -> Result<(), Failure> {
    let waiting = std::thread::Builder::new().name("tether".to_owned()).spawn(|| {
        // Nobody writes there; an error is an end too.
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        std::process::exit(0);
    });
    waiting.map(drop).map_err(|error| Failure::failed(format!("cannot start a thread: {error}"), ""))
}

/// Logs to standard error from now on.
fn start_logging(config: &Config) -> Result<(), Failure> {
    let registry = tracing_subscriber::registry().with(config.log_level.value.clone());
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    let begun = match config.log_format.value {
        LogFormat::Pretty => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    begun.map_err(|error| Failure::failed(format!("cannot start logging: {error}"), ""))
}

/// Files that the database has open beside the connections: tables, log, directories, with room.
const FILES_BESIDE_CONNECTIONS: u64 = 2048;

/// Each connection is an open file, and most systems let a process have 1024 unless it asks for more, which it may up to a second limit.
fn raise_file_limit(connections_max: usize) {
    let wanted = connections_max as u64 + FILES_BESIDE_CONNECTIONS;
    let limit = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum });
    if raised.is_err() || current < wanted {
        tracing::warn!(
            event = "server.file_limit",
            limit = if raised.is_err() { limit.current } else { Some(current) },
            wanted,
            "this process may open fewer files than its connections need; raise the limit (ulimit -n, LimitNOFILE) or lower connections_max"
        );
    }
}

fn cannot_listen(config: &Config, error: &io::Error) -> Failure {
    let listen = &config.listen;
    let what = format!("cannot listen on {} ({}): {error}", listen.value, listen.source);
    Failure::failed(what, "give --listen HOST:PORT with an address of this machine and a port that is free")
}

/// Takes the port. With the warning, if it can be reached from elsewhere.
async fn listen(config: &Config) -> Result<(TcpListener, Option<String>), Failure> {
    let listen = &config.listen.value;
    let found = tokio::net::lookup_host(listen.as_str()).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| cannot_listen(config, &error))?.collect();
    let open = addresses.iter().find(|address| !address.ip().is_loopback());
    let insecure = match open {
        None => None,
        Some(address) if config.insecure.value => Some(format!(
            "{address} can be reached from other machines, and without TLS anybody there can read and write everything (--insecure)"
        )),
        Some(address) => {
            return Err(Failure::usage(
                format!(
                    "will not listen on {listen} ({}): {address} can be reached from other machines, and without TLS anybody there could \
                     read and write everything",
                    config.listen.source
                ),
                "listen on 127.0.0.1 or [::1], or add --insecure if you trust everybody on that network",
            ));
        }
    };
    let listener = TcpListener::bind(&addresses[..]).await.map_err(|error| cannot_listen(config, &error))?;
    Ok((listener, insecure))
}

/// What is served: a database that is in this process alone, for as long as nobody joins it, or this process of a cluster.
enum Process {
    Alone(Alone),
    OfMany(ClusterNode),
}

impl Process {
    fn open(config: &Config, runtime: &tokio::runtime::Runtime, address: SocketAddr) -> Result<Process, Failure> {
        let directory = &config.data.value;
        let cannot = |error| connect::cannot_open(directory, error);
        let mut options = NodeOptions::default();
        options.storage.engine.block_cache_bytes = config.block_cache.value;
        options.storage.read_jobs = config.read_threads.value;
        let env = Env::real();
        let is_member = ClusterNode::is_in(env.fs.as_ref(), directory).map_err(cannot)?;
        let addresses = &config.join.value;
        let here = advertised(config, address);
        let members = MemberOptions { gone_after: config.gone_after.value, ..MemberOptions::default() };
        let shards =
            ShardOptions { all_moves_bytes_per_second: config.move_rate.value as u64, ..ShardOptions::default() };
        let cluster_options =
            ClusterOptions { storage: options.storage.clone(), members, shards, ..ClusterOptions::default() };
        let seed = u64::from_le_bytes(env.entropy.unique_bytes()[..8].try_into().expect("eight of sixteen bytes"));
        let transport = Arc::new(TokioRuntime::new(runtime.handle().clone(), seed));
        let network = Arc::new(RpcNetwork::new(Arc::clone(&transport)));
        let doors = Doors { env: env.clone(), runtime: transport, network };
        if !is_member && !config.cluster.value && addresses.is_empty() {
            let node = Arc::new(Node::open(env, directory, options).map_err(cannot)?);
            let turn = Turn { doors, directory: directory.clone(), options: cluster_options, here };
            return Ok(Process::Alone(Alone::new(node, turn)));
        }
        let beginning = if is_member || !addresses.is_empty() {
            if !is_member && Node::is_in(env.fs.as_ref(), directory).map_err(cannot)? {
                return Err(Failure::usage(
                    format!("{} holds a database of its own, which cannot join another", directory.display()),
                    "give a new directory with --data, or export the one and import it into the other",
                ));
            }
            Beginning::Join(addresses.clone())
        } else {
            let before = Node::for_a_cluster(env, directory, options).map_err(cannot)?;
            before.unwrap_or(Beginning::Found)
        };
        let here = here.map_err(|error| {
            Failure::usage(error.detail().unwrap_or_default().to_owned(), "add --advertise HOST:PORT")
        })?;
        let opening = ClusterNode::open(doors, directory, cluster_options, here, beginning);
        Ok(Process::OfMany(runtime.block_on(opening).map_err(cannot)?))
    }

    fn endpoint(&self) -> Arc<dyn Endpoint> {
        match self {
            Process::Alone(alone) => alone.endpoint(),
            Process::OfMany(node) => node.endpoint(),
        }
    }

    fn alone(&self) -> Option<Alone> {
        match self {
            Process::Alone(alone) => Some(alone.clone()),
            Process::OfMany(_) => None,
        }
    }

    fn failure(&self) -> Option<ferrisdb::Error> {
        match self {
            Process::Alone(alone) => alone.failure(),
            Process::OfMany(node) => node.failure(),
        }
    }

    /// What happened to a process of a cluster, or to one that became it, that whoever runs it should know.
    fn log_notices(&self) {
        match self {
            Process::Alone(alone) => {
                for notice in alone.take_notices() {
                    tracing::warn!(event = "cluster.changed", process = alone.process(), "{notice}");
                }
            }
            Process::OfMany(node) => {
                for notice in node.take_notices() {
                    tracing::warn!(event = "cluster.began_again", process = node.process(), "{notice}");
                }
            }
        }
    }

    fn close(self, runtime: &tokio::runtime::Runtime) -> ferrisdb::Result<()> {
        match self {
            Process::Alone(alone) => runtime.block_on(alone.close()),
            Process::OfMany(node) => runtime.block_on(node.close()),
        }
    }
}

/// Where others reach this process; an error for whoever asks, if it cannot know.
fn advertised(config: &Config, address: SocketAddr) -> ferrisdb::Result<Peer> {
    let address = match &config.advertise {
        Some(advertise) => advertise.value.clone(),
        None if address.ip().is_unspecified() => {
            let detail = format!(
                "the process listens on {address}, on all addresses of its machine, and cannot know at which of them others reach it: start it with --advertise HOST:PORT"
            );
            return Err(ferrisdb::Error::with(ferrisdb::Code::ClientInvalidOperation, detail));
        }
        None => address.to_string(),
    };
    Ok(Peer { address, zone: config.zone.value.clone() })
}

fn serve_options(config: &Config) -> ServeOptions {
    ServeOptions {
        connections_max: config.connections_max.value,
        connections_per_address_max: config.connections_per_address_max.value,
        request_memory_bytes_max: config.request_memory.value,
        reply_memory_bytes_max: config.reply_memory.value,
        drain_timeout: config.drain_timeout.value,
        ..ServeOptions::for_limits(&Limits::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, SimFileSystem, Verdict};
    use serde_json::Value;

    use super::*;
    use ferrisdb::Database;

    /// After a failed sync of the log nothing is committed any more; reads and the status are answered, which says so and what to do; and the server ends
    /// only if it was asked to.
    #[test]
    fn a_broken_database_answers_reads_and_says_that_it_is_broken() {
        for exit_on_failure in [false, true] {
            let disk = Arc::new(SimFileSystem::new());
            let env = Env { fs: Arc::<SimFileSystem>::clone(&disk), ..Env::real() };
            let database = Database::open_with(env, "/db", NodeOptions::default()).unwrap();
            let node = Arc::clone(database.node().unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let failure = || node.failure();
            let failure = runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap().to_string();
                let served = Arc::new(Served {
                    endpoint: Arc::<Node>::clone(&node),
                    alone: None,
                    address: address.clone(),
                    insecure: Some("anyone".to_owned()),
                    server: OnceLock::new(),
                });
                let server = Server::new(served, ServeOptions::default());
                let serving = serve(&server, listener, &failure, Stop::install().unwrap(), exit_on_failure);
                let using = async {
                    let client = Database::connect(&address).await.unwrap();
                    let set = async |value: &[u8]| {
                        client
                            .run(async |tx| {
                                tx.set(b"a", value);
                                Ok(())
                            })
                            .await
                    };
                    set(b"1").await.unwrap();
                    // The file that is in use: the next one is being prepared meanwhile.
                    let in_use = "/db/log/0000000001.wal";
                    disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path(in_use).once());
                    set(b"2").await.unwrap_err();
                    let refused = set(b"3").await.unwrap_err();
                    assert!(refused.to_string().contains("the log cannot be made durable any more"), "{refused}");
                    let snapshot = client.snapshot(ferrisdb::SnapshotOptions::default()).await;
                    drop(snapshot);
                    let status: Value = serde_json::from_str(&client.status().await.unwrap()).unwrap();
                    let cluster = &status["cluster"];
                    assert_eq!(
                        (&cluster["state"], &status["client"]["database_status"]["available"]),
                        (&"broken".into(), &false.into())
                    );
                    let messages: Vec<_> =
                        cluster["messages"].as_array().unwrap().iter().map(|message| &message["name"]).collect();
                    assert_eq!(messages, ["broken", "insecure"], "{cluster}");
                    assert!(cluster["messages"][0]["description"].as_str().unwrap().contains("restart the process"));
                    let read = client.run(async |tx| tx.get(b"a").await).await;
                    assert_eq!(read.unwrap().as_deref(), Some(&b"1"[..]), "reads go on");
                    drop(client);
                };
                if exit_on_failure {
                    futures_util::future::join(serving, using).await.0
                } else {
                    // Longer than it takes to notice; it serves on.
                    let later = async {
                        using.await;
                        tokio::time::sleep(2 * HEALTH_INTERVAL).await;
                    };
                    match select(Box::pin(serving), Box::pin(later)).await {
                        Either::Left(_) => panic!("it was not asked to end"),
                        Either::Right(_) => node.failure(),
                    }
                }
            });
            assert!(failure.unwrap().to_string().contains("the log cannot be made durable any more"));
        }
    }
}
