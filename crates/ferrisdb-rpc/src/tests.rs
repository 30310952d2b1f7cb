//! The transport as a whole: real clients and servers over streams in memory, on a clock that stands still until nothing else can happen.

mod client;
mod golden;
mod hostile;
mod peers;
mod server;
mod servers;
mod simulated;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::{Code, Error, KeyRange, KeyValue, Limits, Result, Version};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use crate::answer::Answer;
use crate::api::*;
use crate::client::{Connector, Stream};
use crate::connection::Connection;
use crate::options::{ClientOptions, ServeOptions};
use crate::server::{Listener, Server};

/// An endpoint that does what the key says: see [`Puppet::get`].
#[derive(Default)]
struct Puppet {
    /// Questions that came.
    asked: AtomicUsize,
    /// Waiting answers that were dropped.
    dropped: Arc<AtomicUsize>,
    /// Who waits for a `hold` to be answered.
    held: Mutex<Vec<oneshot::Sender<()>>>,
    /// Commits of callers that have nothing else to do.
    alone: AtomicUsize,
    /// Those of them that have passed their answer on.
    afterwards: Arc<Woken>,
    /// It belongs to another cluster.
    is_elsewhere: bool,
}

/// Counts its wakes.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts its drop.
struct DropCount(Arc<AtomicUsize>);

impl Drop for DropCount {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Puppet {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Answers everything that is held.
    fn release(&self) {
        for held in self.held.lock().unwrap().drain(..) {
            // Its answer may have been dropped.
            held.send(()).unwrap_or_default();
        }
    }

    /// `result`, once it is released.
    fn hold<T: Send + Unpin + 'static>(&self, result: Result<T>) -> Answer<T> {
        let (tell, told) = oneshot::channel();
        self.held.lock().unwrap().push(tell);
        let dropped = DropCount(Arc::clone(&self.dropped));
        Answer::later(async move {
            let told = told.await;
            // It was not dropped before its end.
            dropped.0.fetch_sub(1, Ordering::SeqCst);
            drop(dropped);
            told.map_err(|_| Error::new(Code::OperationCancelled))?;
            result
        })
    }

    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }
}

impl Endpoint for Puppet {
    fn description(&self) -> Description {
        let connection_string = "puppet".to_owned();
        Description {
            cluster_id: if self.is_elsewhere { *b"another cluster!" } else { *b"0123456789abcdef" },
            limits: Limits { watches: 3, ..Limits::DEFAULT },
            connection_string,
        }
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.ask();
        Answer::now(Ok(Begun { version: Version::from_u64(100 + u64::from(request.transactions)), is_locked: false }))
    }

    /// `hold…` waits to be released, `none` has no value, `big N` has `N` bytes, anything else its key for a value.
    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        self.ask();
        let key = request.key;
        if key.starts_with(b"hold") {
            self.hold(Ok(Some(key)))
        } else if key == "none" {
            Answer::now(Ok(None))
        } else if let Some(len) = key.strip_prefix(b"big ") {
            let len = std::str::from_utf8(len).unwrap().parse().unwrap();
            Answer::now(Ok(Some(Bytes::from(vec![b'b'; len]))))
        } else {
            Answer::now(Ok(Some(key)))
        }
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.ask();
        let selector = request.selector;
        let text = format!("{}/{}/{}", String::from_utf8_lossy(&selector.key), selector.or_equal, selector.offset);
        Answer::now(Ok(Bytes::from(text)))
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.ask();
        let row = KeyValue { key: request.range.begin, value: request.range.end };
        Answer::later(async move { Ok(Rows { rows: vec![row; request.limit as usize], more: request.reverse }) })
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.ask();
        let version = Version::from_u64(request.read_version.get() + 1);
        let committed = Committed::At { version, batch_index: request.mutations.len() as u16 };
        match request.mutations.first() {
            Some(mutation) if mutation.key.starts_with(b"hold") => self.hold(Ok(committed)),
            Some(_) => Answer::now(Ok(committed)),
            None => Answer::now(Ok(Committed::Conflict { ranges: vec![0, 300] })),
        }
    }

    fn commit_alone(&self, request: CommitRequest, afterwards: &mut Afterwards) -> Answer<Committed> {
        self.alone.fetch_add(1, Ordering::SeqCst);
        afterwards.push(Waker::from(Arc::clone(&self.afterwards)));
        self.commit(request)
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.ask();
        Answer::now(match request.id.counter {
            1 => Ok(None),
            2 => Ok(Some(Committed::Conflict { ranges: Vec::new() })),
            3 => Ok(Some(Committed::At { version: request.read_version, batch_index: 9 })),
            _ => Err(Error::new(Code::CommitUnknownResultFatal)),
        })
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.ask();
        self.hold(Ok(request.version))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.ask();
        Answer::now(match request {
            LeaseRequest::Grant(Some(version)) => Ok(Lease { id: 1, version, term_ms: 2 }),
            LeaseRequest::Grant(None) => Ok(Lease { id: 2, version: Version::MAX, term_ms: 0 }),
            LeaseRequest::Renew(id) => Ok(Lease { id, version: Version::ZERO, term_ms: u64::MAX }),
            LeaseRequest::End(id) => Err(Error::with(Code::TransactionTooOld, format!("lease {id} has expired"))),
        })
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.ask();
        Answer::now(Ok((range.begin.len() + range.end.len()) as u64))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.ask();
        Answer::now(Ok(vec![request.range.begin; request.limit as usize]))
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        self.ask();
        Answer::now(Ok(vec![String::from_utf8_lossy(&key).into_owned()]))
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        self.ask();
        let KeyRange { begin, end } = request.range;
        let count = begin.len();
        let location = Location { begin, addresses: vec![String::from_utf8_lossy(&end).into_owned()] };
        let coordinator = (request.limit > 0).then(|| String::from_utf8_lossy(&location.begin).into_owned());
        Answer::now(Ok(Locations { locations: vec![location; count], more: true, coordinator }))
    }

    fn status(&self) -> Answer<String> {
        self.ask();
        Answer::now(Ok("{}".to_owned()))
    }
}

/// A listener of streams in memory, and a connector to it.
pub(crate) struct Hall {
    door: mpsc::UnboundedSender<Box<dyn Stream>>,
    /// Bytes that fit between the two ends.
    room: usize,
}

pub(crate) struct HallListener(tokio::sync::Mutex<mpsc::UnboundedReceiver<Box<dyn Stream>>>);

impl Hall {
    pub(crate) fn open(room: usize) -> (Arc<Hall>, HallListener) {
        let (door, listener) = mpsc::unbounded_channel();
        (Arc::new(Hall { door, room }), HallListener(tokio::sync::Mutex::new(listener)))
    }

    fn enter(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(self.room);
        self.door.send(Box::new(theirs)).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(ours)
    }
}

impl Connector for Hall {
    fn connect(&self, _: &str) -> ferrisdb_core::runtime::BoxFuture<io::Result<Box<dyn Stream>>> {
        let entered = self.enter();
        Box::pin(async move { Ok(Box::new(entered?) as Box<dyn Stream>) })
    }
}

impl Listener for HallListener {
    type Stream = Box<dyn Stream>;

    async fn accept(&self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        match self.0.lock().await.recv().await {
            Some(stream) => Ok((stream, SocketAddr::from(([127, 0, 0, 1], 1)))),
            None => std::future::pending().await,
        }
    }
}

/// A stream that takes and gives one byte at a time.
struct ByteByByte<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for ByteByByte<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(&mut self.0).poll_read(context, &mut one))?;
        buffer.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ByteByByte<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, &bytes[..bytes.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A server with a puppet behind it, and how to stop it.
struct Stage {
    puppet: Arc<Puppet>,
    server: Arc<Server>,
    hall: Arc<Hall>,
    stop: Option<oneshot::Sender<()>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn open(options: ServeOptions) -> Stage {
        Stage::with_room(options, 1 << 16)
    }

    fn with_room(options: ServeOptions, room: usize) -> Stage {
        let puppet = Arc::new(Puppet::default());
        let endpoint: Arc<dyn Endpoint> = Arc::clone(&puppet) as _;
        Stage::with_endpoint(puppet, endpoint, options, room)
    }

    /// The same with something between server and puppet.
    fn with_endpoint(puppet: Arc<Puppet>, endpoint: Arc<dyn Endpoint>, options: ServeOptions, room: usize) -> Stage {
        let server = Server::new(endpoint, options);
        let (hall, listener) = Hall::open(room);
        let (stop, stopped) = oneshot::channel();
        let serving = {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                server.serve(listener, async move { drop(stopped.await) }).await;
            })
        };
        Stage { puppet, server, hall, stop: Some(stop), serving }
    }

    async fn connect(&self) -> Connection {
        self.connect_with(&ClientOptions::default()).await
    }

    async fn connect_with(&self, options: &ClientOptions) -> Connection {
        let stream = self.hall.enter().unwrap();
        let (connection, driver) = Connection::open(stream, "test", options).await.unwrap();
        drop(tokio::spawn(driver));
        connection
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }
}

pub(crate) fn get(key: impl Into<Bytes>) -> GetRequest {
    GetRequest { key: key.into(), version: Version::from_u64(5) }
}

pub(crate) fn commit(key: &'static str) -> CommitRequest {
    CommitRequest {
        read_version: Version::from_u64(41),
        read_conflicts: vec![KeyRange::single(b"r")],
        write_conflicts: vec![KeyRange::single(key.as_bytes())],
        mutations: vec![ferrisdb_core::Mutation::set(key, "value")],
        id: Some(CommitId { client: u64::MAX, counter: 1 }),
        lowest_unanswered: 1,
        report_conflicting_keys: true,
        begins: None,
        lock_aware: false,
    }
}

/// A runtime whose clock jumps to the next timer when there is nothing else to do.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(test)
}

/// Lets everything happen that can without time passing, and a little more.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    result.expect_err("an error was expected").code()
}
