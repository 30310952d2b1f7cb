//! The door to the simulated network: [`Network`], with a [`Connector`] and a [`Listener`] over turmoil's streams.
//!
//! Every piece of bytes that a process hands to a stream is a line of the trace. Streams take fewer bytes than offered now and then, as sockets
//! do, and can be made to break in the middle of a frame, or to hold back what they were given until long after they were closed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_rpc::client::{Connector, Stream};
use ferrisdb_rpc::server::Listener;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::Handle;
use turmoil::net::{TcpListener, TcpStream};
use xxhash_rust::xxh3::xxh3_64;

use super::trace::Trace;

/// A commit that comes later than this is refused as too old anyway.
const HELD_MILLIS_MAX: u64 = 1_000;

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
    /// Streams of an older count hold back what they are given.
    delays: AtomicU64,
}

impl Network {
    pub(super) fn new(host: &str, trace: Trace, seed: u64) -> Network {
        let random = Mutex::new(SplitMix64::new(seed));
        let shared =
            Shared { host: host.to_owned(), trace, random, breaks: AtomicU64::new(0), delays: AtomicU64::new(0) };
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

    /// What is written to the streams of this host that are open now gets there only some time after they were given up: when their owner is asking,
    /// or has asked, on another one.
    pub fn delay_streams(&self) {
        self.shared.delays.fetch_add(1, Ordering::SeqCst);
    }

    fn stream(&self, stream: TcpStream, peer: &str) -> SimStream {
        let shared = Arc::clone(&self.shared);
        let breaks = shared.breaks.load(Ordering::SeqCst);
        let delays = shared.delays.load(Ordering::SeqCst);
        let name = format!("{} > {peer}", shared.host);
        SimStream { name, shared, stream: Some(stream), breaks, delays, held: Vec::new() }
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
    /// Taken when dropped.
    stream: Option<TcpStream>,
    breaks: u64,
    delays: u64,
    /// What was held back.
    held: Vec<u8>,
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

    fn inner(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("it is there until the drop"))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let (held, stream) = (std::mem::take(&mut self.held), self.stream.take());
        // Where there is no runtime the host is dead.
        let (Some(mut stream), false, Ok(runtime)) = (stream, held.is_empty(), Handle::try_current()) else { return };
        let delay = {
            let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            // Often while the owner is just asking for the outcome on another stream, sometimes long after that.
            let max = if random.one_in(4) { HELD_MILLIS_MAX } else { HELD_MILLIS_MAX / 10 };
            random.below(max)
        };
        let (name, trace) = (std::mem::take(&mut self.name), self.shared.trace.clone());
        // What the kernel does with a closed socket; nobody waits for it.
        drop(runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            trace.note(format_args!("{name} {} bytes, held back {delay} ms", held.len()));
            trace.count("messages that came late");
            // Whether they arrive is nobody's business any more.
            stream.write_all(&held).await.ok();
        }));
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        self.inner().poll_read(context, buffer)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        if self.delays != self.shared.delays.load(Ordering::SeqCst) {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let taken = {
            let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            let is_short = bytes.len() > 1 && random.one_in(16);
            let len = if is_short { 1 + random.below(bytes.len() as u64 - 1) } else { bytes.len() as u64 };
            usize::try_from(len).expect("it is at most a length")
        };
        let written = std::task::ready!(self.inner().poll_write(context, &bytes[..taken]))?;
        let hash = xxh3_64(&bytes[..written]);
        self.shared.trace.note(format_args!("{} {written} bytes {hash:016x}", self.name));
        self.shared.trace.count("messages");
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        self.inner().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(context)
    }
}
