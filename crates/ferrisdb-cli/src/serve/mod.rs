//! `ferrisdb serve`: one database, one port, until somebody says stop.
//!
//! The transport runs on this thread (a current-thread tokio runtime); the database's roles have threads of their own. Reads that are in memory
//! are answered on this thread, others by the read threads.
//!
//! # Stopping
//! SIGTERM and SIGINT stop it gracefully: no more connections, what is under way is finished (`drain_timeout`), the database is closed. A second
//! signal ends the waiting for clients. A kill needs no stopping: what was acknowledged is in the log.
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
use ferrisdb::{Database, Limits, Node, NodeOptions};
use ferrisdb_rpc::{ServeOptions, Server};
use ferrisdb_storage::Env;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::arguments::{LogFormat, ServeArguments};
use crate::failure::Failure;
use config::Config;
use endpoint::Served;

/// How often the database is asked whether it still commits.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until it is stopped.
pub(crate) fn run(arguments: ServeArguments, matches: &ArgMatches, out: &mut dyn Write) -> Result<(), Failure> {
    let config = Config::new(arguments, matches)?;
    start_logging(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::failed(format!("cannot start the runtime: {error}"), "check the limits of this process")
    })?;
    // The port before the data: who is refused has not founded a database.
    let (listener, insecure) = runtime.block_on(listen(&config))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(&config, &error))?;

    let database = open(&config)?;
    let stop = runtime.block_on(async { Stop::install() });
    let stop = stop.map_err(|error| Failure::failed(format!("cannot listen to signals: {error}"), ""))?;
    let node = Arc::clone(database.node().expect("a database that was opened has its node here"));
    writeln!(out, "FerrisDB {}\n{config}", env!("CARGO_PKG_VERSION"))?;
    if let Some(warning) = &insecure {
        writeln!(out, "  WARNING: {warning}\n")?;
        tracing::warn!(event = "server.insecure", %address, "{warning}");
    }
    let served =
        Arc::new(Served { node: Arc::clone(&node), address: address.to_string(), insecure, server: OnceLock::new() });
    let server = Server::new(Arc::<Served>::clone(&served), serve_options(&config));
    served.server.set(Arc::downgrade(&server)).expect("it is set once, here");
    writeln!(out, "listening on {address}; stop with Ctrl-C or SIGTERM")?;
    out.flush()?;
    tracing::info!(event = "server.started", %address, data = %config.data.value.display(), "serving");

    runtime.block_on(serve(&server, listener, &node, stop));
    // Connections hold nothing any more; tasks of the transport end with their runtime.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let closed = Arc::clone(&node).close_blocking();
    match &closed {
        Ok(()) => tracing::info!(event = "server.stopped", "the database is closed"),
        Err(error) => {
            tracing::error!(event = "server.close_failed", %error, "the database did not close well; nothing acknowledged is lost")
        }
    }
    writeln!(out, "stopped")?;
    Ok(closed?)
}

/// Serves until the first signal, lets clients finish until the second.
async fn serve(server: &Arc<Server>, listener: TcpListener, node: &Node, mut stop: Stop) {
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        // An error says that the other side is gone, and then there is nothing to serve for either.
        drop(told.await);
    };
    let signals = async {
        let first = stop.next().await;
        tracing::info!(event = "server.stopping", signal = first, "no more connections; what is under way is finished");
        // Nobody listens any more if the server has ended by itself.
        tell.send(()).unwrap_or_default();
        let second = stop.next().await;
        tracing::warn!(event = "server.stopping_now", signal = second, "not waiting for clients any longer");
    };
    let health = async {
        let mut is_well = true;
        loop {
            if let Some(error) = node.failure().filter(|_| is_well) {
                is_well = false;
                tracing::error!(event = "server.failed", %error, "the database does not commit any more; restart it once the cause is gone");
            }
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    };
    let ended = std::pin::pin!(futures_util::future::select(Box::pin(signals), Box::pin(health)));
    let serving = std::pin::pin!(server.serve(listener, shutdown));
    futures_util::future::select(serving, ended).await;
}

/// The signals that stop a server.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From now on the signals do not end the process by themselves.
    fn install() -> io::Result<Stop> {
        Ok(Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        let (terminate, interrupt) = (std::pin::pin!(self.terminate.recv()), std::pin::pin!(self.interrupt.recv()));
        match futures_util::future::select(terminate, interrupt).await {
            futures_util::future::Either::Left(_) => "SIGTERM",
            futures_util::future::Either::Right(_) => "SIGINT",
        }
    }
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
            return Err(Failure::failed(
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

fn open(config: &Config) -> Result<Database, Failure> {
    let mut options = NodeOptions::default();
    options.storage.engine.block_cache_bytes = config.block_cache.value;
    options.storage.read_jobs = config.read_threads.value;
    let directory = &config.data.value;
    Database::open_with(Env::real(), directory, options)
        .map_err(|error| Failure::from(error).about(&format!("cannot open {}", directory.display())))
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
