//! The server's side: accepts connections and puts their questions to an [`Endpoint`].
//!
//! One task per connection: see `server/`. A client gets no more than its share, whatever it sends or does not send: see [`ServeOptions`].
//!
//! # Stopping
//! The server says goodbye on each connection, goes on reading until the client's goodbye (what it had sent before gets its answer), finishes what
//! is in flight but for watches, and closes: each connection when it is done, the last after [`ServeOptions::drain_timeout`].
//!
//! # Logging
//! Events have stable names in the field `event`; no keys and values. Those that a stranger can cause are at most ten a second, and say how
//! many were left out.

mod attended;
mod lone;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_core::{Code, Error};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use self::attended::{Attended, End};
use self::lone::Lone;
use crate::api::Endpoint;
use crate::frame::Inbox;
use crate::hello::{Refusal, Visitor, greet_client, refusing_hello};
use crate::limits::Budget;
use crate::options::ServeOptions;
use crate::stats::{Rejection, ServerStats};

/// Where connections come from: a TCP listener, or a simulated one.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and where it comes from.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Replies are written when there are no more to come: to wait for others would only delay them.
        stream.set_nodelay(true)?;
        Ok((stream, peer))
    }
}

/// Serves `endpoint` on one listener until `shutdown` is ready: [`Server::serve`] of a server of its own.
pub async fn serve(
    listener: impl Listener,
    endpoint: Arc<dyn Endpoint>,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    Server::new(endpoint, options).serve(listener, shutdown).await;
}

/// An endpoint with what its connections share: bounds and counters. Several listeners may serve one, each on a thread with a
/// current-thread runtime of its own.
pub struct Server {
    endpoint: Arc<dyn Endpoint>,
    options: ServeOptions,
    stats: ServerStats,
    request_memory: Arc<Budget>,
    peer_memory: Arc<Budget>,
    reply_memory: Budget,
    /// Connections that wait for request memory.
    short_of_memory: Mutex<VecDeque<Weak<Control>>>,
    is_short_of_memory: AtomicBool,
    per_address: Mutex<BTreeMap<IpAddr, usize>>,
    log_gate: Mutex<LogGate>,
    lone: Lone,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("options", &self.options).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets ten events through each second.
#[derive(Default)]
struct LogGate {
    second_began: Option<Instant>,
    in_second: u32,
    left_out: u64,
}

impl LogGate {
    const EVENTS_PER_SECOND: u32 = 10;

    /// `Some(left out since the last one)` if an event may be logged.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.second_began.is_none_or(|began| now - began >= Duration::from_secs(1)) {
            self.second_began = Some(now);
            self.in_second = 0;
        }
        if self.in_second < LogGate::EVENTS_PER_SECOND {
            self.in_second += 1;
            Some(std::mem::take(&mut self.left_out))
        } else {
            self.left_out += 1;
            None
        }
    }
}

/// What others tell a connection's task.
#[derive(Default)]
struct Control {
    state: Mutex<ControlState>,
}

#[derive(Default)]
struct ControlState {
    waker: Option<Waker>,
    is_stopping: bool,
}

impl Control {
    fn wake(&self) {
        let waker = lock(&self.state).waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.wake();
    }
}

/// The connections of one listener.
#[derive(Default)]
struct Connections {
    open: Mutex<BTreeMap<u64, Arc<Control>>>,
    /// Told when one closes.
    closed: tokio::sync::Notify,
}

/// One of an address's connections.
struct Seat {
    server: Arc<Server>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut per_address = lock(&self.server.per_address);
        if let Some(count) = per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.address);
            }
        }
        self.server.stats.count_closed();
    }
}

/// Removes a connection from its listener's list when its task ends, however that ends.
struct Listed {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.number);
        self.connections.closed.notify_one();
    }
}

impl Server {
    /// A server that has no listener yet.
    pub fn new(endpoint: Arc<dyn Endpoint>, options: ServeOptions) -> Arc<Server> {
        let options = options.resolved();
        Arc::new(Server {
            endpoint,
            stats: ServerStats::default(),
            request_memory: Arc::new(Budget::new(options.request_memory_bytes_max)),
            peer_memory: Arc::new(Budget::new(options.peer_memory_bytes_max)),
            reply_memory: Budget::new(options.reply_memory_bytes_max),
            short_of_memory: Mutex::default(),
            is_short_of_memory: AtomicBool::new(false),
            per_address: Mutex::default(),
            log_gate: Mutex::default(),
            lone: Lone::default(),
            options,
        })
    }

    /// What it has counted.
    pub fn stats(&self) -> &ServerStats {
        &self.stats
    }

    /// Its options, as they are used.
    pub fn options(&self) -> &ServeOptions {
        &self.options
    }

    /// Bytes that requests and replies have reserved now, beyond each connection's allowance.
    pub fn memory_reserved(&self) -> (usize, usize) {
        (self.request_memory.used() + self.peer_memory.used(), self.reply_memory.used())
    }

    /// Accepts and serves connections until `shutdown` is ready, then lets them finish. Runs on the caller's tokio runtime; its
    /// connections stay on it.
    pub async fn serve(self: &Arc<Server>, listener: impl Listener, shutdown: impl Future<Output = ()> + Send) {
        let connections = Arc::new(Connections::default());
        let mut shutdown = pin!(shutdown);
        let mut next_number = 0u64;
        loop {
            let accepted = {
                let mut accept = pin!(listener.accept());
                poll_fn(|context| match shutdown.as_mut().poll(context) {
                    Poll::Ready(()) => Poll::Ready(None),
                    Poll::Pending => accept.as_mut().poll(context).map(Some),
                })
                .await
            };
            match accepted {
                None => break,
                Some(Ok((stream, peer))) => {
                    next_number += 1;
                    self.admit(&connections, next_number, stream, peer);
                }
                Some(Err(error)) => {
                    // No file descriptors left, most likely: to try again at once would only burn the processor.
                    tracing::error!(event = "rpc.accept_failed", error = %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        self.drain(&connections).await;
    }

    async fn drain(&self, connections: &Connections) {
        let open: Vec<Arc<Control>> = lock(&connections.open).values().cloned().collect();
        tracing::info!(event = "rpc.stopping", connections = open.len(), "no more connections are accepted");
        open.iter().for_each(|control| control.stop());
        // Connections close by themselves within the drain time; the task that is in the middle of a hello within that of a hello.
        let all_closed = async {
            while !lock(&connections.open).is_empty() {
                connections.closed.notified().await;
            }
        };
        let bound = self.options.drain_timeout + self.options.hello_timeout;
        if tokio::time::timeout(bound, all_closed).await.is_err() {
            let left = lock(&connections.open).len();
            tracing::warn!(event = "rpc.stopped_hard", connections = left, "connections were still open");
        } else {
            tracing::info!(event = "rpc.stopped", "all connections are closed");
        }
    }

    /// Starts a connection's task, or refuses the connection.
    fn admit<S>(self: &Arc<Server>, connections: &Arc<Connections>, number: u64, mut stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let seat = match self.seat(peer.ip()) {
            Ok(seat) => seat,
            Err((rejection, detail)) => {
                let answer = refusing_hello(&Error::with(Code::ConnectionFailed, detail.clone()));
                // A fresh connection has room for a line; one that has not is not waited for.
                let mut context = Context::from_waker(Waker::noop());
                drop(Pin::new(&mut stream).poll_write(&mut context, &answer));
                self.reject(peer, Some(rejection), &detail);
                return;
            }
        };
        let control = Arc::new(Control::default());
        lock(&connections.open).insert(number, Arc::clone(&control));
        let listed = Listed { connections: Arc::clone(connections), number };
        let server = Arc::clone(self);
        drop(tokio::spawn(async move {
            let _listed = listed;
            let _seat = seat;
            server.attend(stream, peer, control).await;
        }));
    }

    fn seat(self: &Arc<Server>, address: IpAddr) -> Result<Seat, (Rejection, String)> {
        let options = &self.options;
        let mut per_address = lock(&self.per_address);
        let open = usize::try_from(self.stats.connections_open()).unwrap_or(usize::MAX);
        if open >= options.connections_max {
            let detail = format!("the server has as many connections as it takes ({})", options.connections_max);
            return Err((Rejection::TooManyConnections, detail));
        }
        let count = per_address.entry(address).or_default();
        if *count >= options.connections_per_address_max {
            let max = options.connections_per_address_max;
            let detail =
                format!("the server has as many connections from {address} as it takes from one address ({max})");
            return Err((Rejection::TooManyFromAddress, detail));
        }
        *count += 1;
        self.stats.count_opened();
        drop(per_address);
        Ok(Seat { server: Arc::clone(self), address })
    }

    fn reject(&self, peer: SocketAddr, rejection: Option<Rejection>, detail: &str) {
        let Some(rejection) = rejection else {
            tracing::debug!(event = "rpc.closed", %peer, detail, "connection closed");
            return;
        };
        self.stats.count_rejection(rejection);
        if let Some(left_out) = lock(&self.log_gate).pass(Instant::now()) {
            let reason = rejection.name();
            tracing::warn!(event = "rpc.rejected", %peer, reason, detail, left_out, "connection refused or closed");
        }
    }

    /// A connection's life.
    async fn attend<S>(self: &Arc<Server>, mut stream: S, peer: SocketAddr, control: Arc<Control>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut inbox = Inbox::new();
        let description = self.endpoint.description();
        let greeted = greet_client(&mut stream, &mut inbox, &description, &self.options).await;
        let refusal = match greeted {
            Ok(visitor) => {
                let Visitor { protocol, is_peer, asks_one } = visitor;
                tracing::debug!(event = "rpc.connected", %peer, protocol, is_peer, asks_one, "connection open");
                let watches_max = description.limits.watches;
                let mut connection = Attended::new(Arc::clone(self), control, stream, inbox, watches_max, visitor);
                let end = poll_fn(|context| connection.poll(context)).await;
                // Says that nothing more comes; what the other side makes of it does not matter any more.
                let shutdown = connection.stream_mut().shutdown();
                drop(tokio::time::timeout(self.options.hello_timeout, shutdown).await);
                match end {
                    End::Closed => Refusal { rejection: None, detail: "closed".to_owned(), answer: Vec::new() },
                    End::Lost(error) => Refusal { rejection: None, detail: error.to_string(), answer: Vec::new() },
                    End::Rejected(rejection, detail) => {
                        Refusal { rejection: Some(rejection), detail, answer: Vec::new() }
                    }
                }
            }
            Err(refusal) => {
                if !refusal.answer.is_empty() {
                    let tell = async {
                        stream.write_all(&refusal.answer).await?;
                        stream.shutdown().await
                    };
                    drop(tokio::time::timeout(self.options.hello_timeout, tell).await);
                }
                refusal
            }
        };
        self.reject(peer, refusal.rejection, &refusal.detail);
    }

    /// Wakes the connections that wait for memory.
    fn wake_short_of_memory(&self) {
        if self.is_short_of_memory.load(Ordering::SeqCst) {
            let waiting = {
                let mut waiting = lock(&self.short_of_memory);
                self.is_short_of_memory.store(false, Ordering::SeqCst);
                std::mem::take(&mut *waiting)
            };
            waiting.iter().filter_map(Weak::upgrade).for_each(|control| control.wake());
        }
    }
}
