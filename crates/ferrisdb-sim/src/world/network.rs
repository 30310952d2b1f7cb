//! The door to the simulated network: [`Network`], with a [`Connector`] and a [`Listener`] over turmoil's streams.
//!
//! Every piece of bytes that a process hands to a stream is a line of the trace. Streams take fewer bytes than offered now and then, as sockets
//! do, and can be made to break in the middle of a frame.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_rpc::client::{Connector, Stream};
use ferrisdb_rpc::server::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};
use xxhash_rust::xxh3::xxh3_64;

use super::trace::Trace;

/// One host's way to the network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    host: String,
    trace: Trace,
    random: Mutex<SplitMix64>,
    /// Streams of an older count are broken.
    breaks: AtomicU64,
}

impl Network {
    pub(super) fn new(host: &str, trace: Trace, seed: u64) -> Network {
        let random = Mutex::new(SplitMix64::new(seed));
        let shared = Shared { host: host.to_owned(), trace, random, breaks: AtomicU64::new(0) };
        Network { shared: Arc::new(shared) }
    }

    /// What clients connect with.
    pub fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(self.clone())
    }

    /// Listens on this host, at `port`.
    ///
    /// # Errors
    /// If it is taken.
    pub async fn listen(&self, port: u16) -> io::Result<SimListener> {
        Ok(SimListener { network: self.clone(), listener: TcpListener::bind(("0.0.0.0", port)).await? })
    }

    /// All streams of this host that are open now fail when they are next used.
    pub fn break_streams(&self) {
        self.shared.breaks.fetch_add(1, Ordering::SeqCst);
    }

    fn stream(&self, stream: TcpStream, peer: &str) -> SimStream {
        let shared = Arc::clone(&self.shared);
        let breaks = shared.breaks.load(Ordering::SeqCst);
        SimStream { name: format!("{} > {peer}", shared.host), shared, stream, breaks }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("host", &self.shared.host).finish_non_exhaustive()
    }
}

impl Connector for Network {
    fn connect(&self, address: &str) -> BoxFuture<io::Result<Box<dyn Stream>>> {
        let (network, address) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let stream = TcpStream::connect(address.as_str()).await?;
            Ok(Box::new(network.stream(stream, &address)) as Box<dyn Stream>)
        })
    }
}

/// Accepts connections from the simulated network.
pub struct SimListener {
    network: Network,
    listener: TcpListener,
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimListener").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let (stream, peer) = self.listener.accept().await?;
        Ok((self.network.stream(stream, &peer.to_string()), peer))
    }
}

/// A stream whose bytes are traced.
pub struct SimStream {
    name: String,
    shared: Arc<Shared>,
    stream: TcpStream,
    breaks: u64,
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl SimStream {
    fn check(&self) -> io::Result<()> {
        let is_broken = self.breaks != self.shared.breaks.load(Ordering::SeqCst);
        if is_broken { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let taken = {
            let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            let is_short = bytes.len() > 1 && random.one_in(16);
            let len = if is_short { 1 + random.below(bytes.len() as u64 - 1) } else { bytes.len() as u64 };
            usize::try_from(len).expect("it is at most a length")
        };
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(context, &bytes[..taken]))?;
        let hash = xxh3_64(&bytes[..written]);
        self.shared.trace.note(format_args!("{} {written} bytes {hash:016x}", self.name));
        self.shared.trace.count("messages");
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
