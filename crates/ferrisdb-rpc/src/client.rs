//! [`Client`]: a database's servers as an [`Endpoint`], whatever becomes of the connection to one of them.
//!
//! A **supervisor** task keeps one [`Connection`] open: it connects, runs the connection's driver, and when that ends it connects again, at once at first and
//! then with growing waits. It runs on the tokio runtime from which the client was made or, where there was none, on a thread of
//! its own; the answers may be awaited anywhere.
//!
//! # What happens to questions when the connection goes
//! - One that only reads is asked again on the next connection, [`ATTEMPTS_MAX`] times at most: one that kills every server that it meets must
//!   not be carried to all of them.
//! - A commit is never sent twice. If it may have been sent, it ends with `commit_unknown_result`; if not, it waits for the next connection
//!   as others do.
//! - A message between processes of a cluster is not sent twice either. It ends with `connection_failed`, which does not say whether it arrived.
//! - A question that finds no connection waits for one. Once there has been none for [`ClientOptions::outage_max`], questions fail at once with the
//!   reason of the last attempt, until there is one again.
//!
//! # Which server
//! Any of those whose addresses were given answers everything, and one at a time is asked. A **round** tries each address once, beginning behind that of
//! the last connection, the very first at one that the seed chooses, so that many clients spread over the servers. The next attempt begins when the one
//! before has failed, or beside it after half a second (`race.rs`): an address that swallows everything costs that much once. Waits are between
//! rounds, and so is the judgement that there is no connection.
//!
//! Every connection must lead to the cluster that the first one led to: an address may have come to belong to another, or never have belonged there.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Code, Error, KeyRange, Random, Result, SplitMix64, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::api::{
    BeginRequest, Begun, CommitRequest, Committed, Description, Endpoint, GetKeyRequest, GetRangeRequest, GetRequest,
    Lease, LeaseRequest, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use crate::connection::Connection;
use crate::options::ClientOptions;
use crate::race::first_of;
use crate::runtime::{any_seed, run_somewhere};

/// How often a question that only reads is asked, on as many connections.
pub const ATTEMPTS_MAX: u32 = 4;
/// The wait after the first attempt to connect that failed.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// A stream of bytes to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Makes streams to servers: over TCP, or in a simulated network.
pub trait Connector: Send + Sync + 'static {
    /// A fresh stream to `address`.
    fn connect(&self, address: &str) -> BoxFuture<io::Result<Box<dyn Stream>>>;
}

/// Connects over TCP to `HOST:PORT`: a name, an IPv4 address, or an IPv6 address in brackets. All addresses of a name are tried in the
/// order in which the system gives them, each half a second after the one before or when that has failed.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, address: &str) -> BoxFuture<io::Result<Box<dyn Stream>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
            let connected = first_of(addresses.len(), |number| Box::pin(TcpStream::connect(addresses[number])));
            let (_, stream) = connected.await.map_err(|mut errors| {
                errors.pop().unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
            })?;
            // Requests are written when there are no more to come: to wait for others would only delay them.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Checks that an address is `HOST:PORT`.
///
/// # Errors
/// `connection_string_invalid`, with what is wrong with it.
pub fn check_address(address: &str) -> Result<()> {
    let invalid = |what: &str| {
        let detail =
            format!("`{address}` is not an address: {what}; write HOST:PORT, such as localhost:4700 or [::1]:4700");
        Err(Error::with(Code::ConnectionStringInvalid, detail))
    };
    let Some((host, port)) = address.rsplit_once(':') else { return invalid("it has no port") };
    match port.parse::<u16>() {
        Ok(1..) => {}
        _ => return invalid("its port is not a number from 1 to 65535"),
    }
    match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        None if host.is_empty() => invalid("it has no host"),
        None if host.contains(':') => invalid("an IPv6 address stands in brackets"),
        None if host.contains(|letter: char| letter.is_whitespace() || "/[]@".contains(letter)) => {
            invalid("its host has letters that no host has")
        }
        Some(Some(host)) if host.parse::<std::net::Ipv6Addr>().is_ok() => Ok(()),
        Some(_) => invalid("what stands in brackets is not an IPv6 address"),
        None => Ok(()),
    }
}

/// The addresses in a list: `HOST:PORT,HOST:PORT`. One that is there twice counts once.
///
/// # Errors
/// `connection_string_invalid`, with what is wrong with which.
pub fn addresses(list: &str) -> Result<Vec<String>> {
    let addresses = split(list);
    addresses.iter().try_for_each(|address| check_address(address))?;
    Ok(addresses)
}

/// The addresses in a list of which the connector knows what they are.
pub(crate) fn split(list: &str) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for address in list.split(',').map(str::trim) {
        if !addresses.iter().any(|other| other == address) {
            addresses.push(address.to_owned());
        }
    }
    addresses
}

/// A database's servers as an endpoint. Cheap to clone; when the last clone and the last answer are gone, the connection closes.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    /// Dropped with the last client: the supervisor sees it and ends.
    _alive: oneshot::Sender<()>,
}

struct Shared {
    addresses: Vec<String>,
    /// Where the supervisor runs.
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
}

struct State {
    connection: Option<Connection>,
    description: Description,
    /// Why there is no connection, once that has lasted too long, or for good.
    failed: Option<Error>,
    /// Who waits for a connection.
    waiting: BTreeMap<u64, Waker>,
    next_ticket: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes who waits for that.
    fn set(&self, connection: Option<Connection>, failed: Option<Error>) {
        let (waiting, before) = {
            let mut state = self.lock();
            if let Some(connection) = &connection {
                state.description = connection.description();
            }
            state.failed = failed;
            let before = std::mem::replace(&mut state.connection, connection);
            (std::mem::take(&mut state.waiting), before)
        };
        // Outside of the lock: it may be the last handle, whose end wakes its driver.
        drop(before);
        waiting.into_values().for_each(Waker::wake);
    }
}

impl Client {
    /// Connects to one of the servers of a database: `HOST:PORT`, or several of them with commas between. May be called and awaited inside or outside of a
    /// tokio runtime.
    ///
    /// # Errors
    /// `connection_string_invalid`, `connection_failed`, `incompatible_protocol_version`: the first round decides.
    pub async fn connect(list: &str, options: ClientOptions) -> Result<Client> {
        Client::connect_to(Arc::new(TcpConnector), addresses(list)?, options).await
    }

    /// The same over another network.
    ///
    /// # Errors
    /// The same, except for what an address is, which is the connector's business.
    pub async fn connect_with(connector: Arc<dyn Connector>, list: &str, options: ClientOptions) -> Result<Client> {
        Client::connect_to(connector, split(list), options).await
    }

    pub(crate) async fn connect_to(
        connector: Arc<dyn Connector>,
        addresses: Vec<String>,
        options: ClientOptions,
    ) -> Result<Client> {
        let (tell, told) = oneshot::channel();
        let (alive, is_alive) = oneshot::channel();
        let mut random = SplitMix64::new(options.seed.unwrap_or_else(any_seed));
        let next = below(&mut random, addresses.len());
        let supervisor = Supervisor { connector, addresses, next, options, random };
        run_somewhere("ferrisdb-client", supervisor.run(tell, is_alive))?;
        let gone = |_| Error::with(Code::ConnectionFailed, "the runtime that was to connect has ended");
        let shared = told.await.map_err(gone)??;
        Ok(Client { handle: Arc::new(Handle { shared, _alive: alive }) })
    }

    /// Where its connections run.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.handle.shared.runtime
    }

    pub(crate) fn ask<Q: Ask>(&self, question: Q) -> Answer<Q::Answer> {
        let mut asking = Asking {
            client: self.clone(),
            question: Some(question),
            sent: None,
            ticket: None,
            attempts: 0,
            rejected: None,
        };
        // Now and not with the first poll: questions that come close together share a write.
        asking.send(None);
        Answer::Later(Box::pin(asking))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.handle.shared.addresses).finish_non_exhaustive()
    }
}

/// A question as a client holds it.
pub(crate) trait Ask: Clone + Send + Unpin + 'static {
    type Answer: Send + Unpin + 'static;
    /// On how many connections it may be asked at most. A commit has as many because it ends with another error than `connection_failed` if it may have
    /// been sent.
    const ATTEMPTS_MAX: u32 = ATTEMPTS_MAX;

    fn put(self, connection: &Connection) -> Answer<Self::Answer>;
}

macro_rules! asks {
    ($($question:ty => $method:ident -> $answer:ty;)*) => {
        $(impl Ask for $question {
            type Answer = $answer;

            fn put(self, connection: &Connection) -> Answer<$answer> {
                connection.$method(self)
            }
        })*
    };
}

asks! {
    BeginRequest => begin -> Begun;
    GetRequest => get -> Option<Bytes>;
    GetKeyRequest => get_key -> Bytes;
    GetRangeRequest => get_range -> Rows;
    CommitRequest => commit -> Committed;
    ResolveRequest => resolve -> Option<Committed>;
    WatchRequest => watch -> Version;
    LeaseRequest => lease -> Lease;
    KeyRange => estimated_size -> u64;
    SplitPointsRequest => split_points -> Vec<Bytes>;
    LocationsRequest => locations -> Locations;
}

#[derive(Clone)]
struct AddressesFor(Bytes);

impl Ask for AddressesFor {
    type Answer = Vec<String>;

    fn put(self, connection: &Connection) -> Answer<Vec<String>> {
        connection.addresses_for_key(self.0)
    }
}

#[derive(Clone)]
struct Message(Bytes);

impl Ask for Message {
    type Answer = Bytes;
    const ATTEMPTS_MAX: u32 = 1;

    fn put(self, connection: &Connection) -> Answer<Bytes> {
        connection.message(self.0)
    }
}

#[derive(Clone)]
struct Status;

impl Ask for Status {
    type Answer = String;

    fn put(self, connection: &Connection) -> Answer<String> {
        connection.status()
    }
}

/// A question on its way through as many connections as it takes.
struct Asking<Q: Ask> {
    client: Client,
    /// `None` once it has been sent for the last time.
    question: Option<Q>,
    sent: Option<Answer<Q::Answer>>,
    /// Its place among those that wait for a connection.
    ticket: Option<u64>,
    attempts: u32,
    /// Why it was not sent and will not be.
    rejected: Option<Error>,
}

impl<Q: Ask> Asking<Q> {
    /// Sends the question, or (with a waker) waits for a connection.
    fn send(&mut self, waker: Option<&Waker>) {
        let shared = &self.client.handle.shared;
        let connection = {
            let mut state = shared.lock();
            // A connection that takes no more is about to be replaced.
            match state.connection.as_ref().filter(|connection| connection.closed().is_none()) {
                Some(connection) => connection.clone(),
                None => {
                    self.rejected = state.failed.clone();
                    if let (None, Some(waker)) = (&self.rejected, waker) {
                        let ticket = *self.ticket.get_or_insert_with(|| {
                            state.next_ticket += 1;
                            state.next_ticket
                        });
                        state.waiting.insert(ticket, waker.clone());
                    }
                    return;
                }
            }
        };
        self.attempts += 1;
        let question = if self.attempts == Q::ATTEMPTS_MAX { self.question.take() } else { self.question.clone() };
        self.sent = Some(question.expect("it is taken with the last attempt only").put(&connection));
    }
}

impl<Q: Ask> Future for Asking<Q> {
    type Output = Result<Q::Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Q::Answer>> {
        let asking = &mut *self;
        loop {
            if let Some(sent) = &mut asking.sent {
                let Poll::Ready(result) = Pin::new(sent).poll(context) else { return Poll::Pending };
                asking.sent = None;
                match result {
                    // Also a commit: one that may have been sent ends with another error.
                    Err(error) if error.code() == Code::ConnectionFailed && asking.question.is_some() => {}
                    result => return Poll::Ready(result),
                }
            }
            asking.send(Some(context.waker()));
            if let Some(error) = asking.rejected.take() {
                return Poll::Ready(Err(error));
            }
            if asking.sent.is_none() {
                return Poll::Pending;
            }
        }
    }
}

impl<Q: Ask> Drop for Asking<Q> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.client.handle.shared.lock().waiting.remove(&ticket);
        }
    }
}

impl Endpoint for Client {
    fn description(&self) -> Description {
        self.handle.shared.lock().description.clone()
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.ask(request)
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        self.ask(request)
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.ask(request)
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.ask(request)
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.ask(request)
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.ask(request)
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.ask(request)
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.ask(request)
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.ask(range)
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.ask(request)
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        self.ask(AddressesFor(key))
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        self.ask(request)
    }

    fn status(&self) -> Answer<String> {
        self.ask(Status)
    }

    fn is_reachable(&self) -> bool {
        let state = self.handle.shared.lock();
        state.connection.as_ref().is_some_and(|connection| connection.closed().is_none())
    }

    fn message(&self, message: Bytes) -> Answer<Bytes> {
        self.ask(Message(message))
    }
}

/// The task that keeps a connection open.
struct Supervisor {
    connector: Arc<dyn Connector>,
    addresses: Vec<String>,
    /// At which of them the next round begins.
    next: usize,
    options: ClientOptions,
    random: SplitMix64,
}

/// What runs a connection.
pub(crate) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Supervisor {
    /// Connects once and says whether that went well; then until the last client is dropped.
    async fn run(mut self, tell: oneshot::Sender<Result<Arc<Shared>>>, mut is_alive: oneshot::Receiver<()>) {
        let (connection, mut driver) = match self.round().await {
            Ok(connected) => connected,
            Err(error) => {
                // Whoever asked may have gone meanwhile.
                drop(tell.send(Err(error)));
                return;
            }
        };
        let description = connection.description();
        // From here on no other cluster will do.
        self.options.cluster_id = Some(description.cluster_id);
        let state =
            State { connection: Some(connection), description, failed: None, waiting: BTreeMap::new(), next_ticket: 0 };
        let runtime = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared { addresses: self.addresses.clone(), runtime, state: Mutex::new(state) });
        let end = EndOfSupervisor(Arc::clone(&shared));
        drop(tell.send(Ok(Arc::clone(&shared))));
        loop {
            // A connection on which the server has said goodbye takes no more questions, but those under way are answered: its driver goes
            // on beside the next connection.
            let is_draining = tokio::select! {
                biased;
                _ = &mut is_alive => {
                    end.0.set(None, None);
                    // What was sent last, such as a commit whose answer nobody waits for, is still written.
                    let bound = self.options.connect_timeout;
                    drop(tokio::time::timeout(bound, driver).await);
                    return;
                }
                () = &mut driver => false,
                () = closed(&shared) => true,
            };
            if is_draining {
                drop(tokio::spawn(driver));
            }
            shared.set(None, None);
            let connected = tokio::select! {
                biased;
                _ = &mut is_alive => return,
                connected = self.reconnect(&shared) => connected,
            };
            let (connection, next) = connected;
            driver = next;
            shared.set(Some(connection), None);
        }
    }

    /// Tries each address once: the connection to the first that has said hello.
    async fn round(&mut self) -> Result<(Connection, Driver)> {
        let (count, first) = (self.addresses.len(), self.next);
        let begin = |number: usize| -> BoxFuture<Result<(Connection, Driver)>> {
            let address = self.addresses[(first + number) % count].clone();
            Box::pin(attempt(Arc::clone(&self.connector), address, self.options.clone()))
        };
        let won = first_of(count, begin).await;
        match won {
            Ok((number, connected)) => {
                self.next = (first + number + 1) % count;
                Ok(connected)
            }
            Err(mut errors) => {
                // In the order in which the addresses were given.
                errors.rotate_right(first);
                Err(all_failed(errors))
            }
        }
    }

    /// Connects, however long it takes.
    async fn reconnect(&mut self, shared: &Shared) -> (Connection, Driver) {
        let began = Instant::now();
        let outage_max = self.options.outage_max;
        let mut outage = std::pin::pin!(tokio::time::sleep(outage_max));
        // Questions fail.
        let mut is_out = false;
        let mut backoff = BACKOFF_MIN;
        loop {
            let round = {
                let mut round = std::pin::pin!(self.round());
                tokio::select! {
                    biased;
                    ended = &mut round => ended,
                    // A server that takes connections and says nothing holds up the round, and must not hold up questions.
                    () = &mut outage, if !is_out => {
                        is_out = true;
                        shared.set(None, Some(no_connection_for(&shared.addresses, outage_max)));
                        round.await
                    }
                }
            };
            match round {
                Ok(connected) => {
                    tracing::info!(event = "rpc.reconnected", address = connected.0.peer(), "connected again");
                    return connected;
                }
                Err(error) => {
                    tracing::debug!(event = "rpc.connect_failed", error = %error, "cannot connect");
                    // What will not pass by itself, such as another protocol version, need not be waited for.
                    if began.elapsed() >= outage_max || error.code() != Code::ConnectionFailed {
                        is_out = true;
                        shared.set(None, Some(error));
                    }
                }
            }
            let nanos = u64::try_from(backoff.as_nanos()).unwrap_or(u64::MAX).max(2);
            tokio::time::sleep(backoff - Duration::from_nanos(self.random.below(nanos / 2))).await;
            backoff = (backoff * 2).min(self.options.backoff_max.max(BACKOFF_MIN));
        }
    }
}

fn no_connection_for(addresses: &[String], outage_max: Duration) -> Error {
    let detail =
        format!("no connection to {} for {outage_max:?}, and none of them has said no yet", addresses.join(", "));
    Error::with(Code::ConnectionFailed, detail)
}

/// One attempt to connect to one address.
pub(crate) async fn attempt(
    connector: Arc<dyn Connector>,
    address: String,
    options: ClientOptions,
) -> Result<(Connection, Driver)> {
    let failed = |what: String| Error::with(Code::ConnectionFailed, format!("cannot connect to {address}: {what}"));
    let stream = tokio::time::timeout(options.connect_timeout, connector.connect(&address)).await;
    let stream = stream
        .map_err(|_| failed(format!("no answer within {:?}", options.connect_timeout)))?
        .map_err(|error| failed(error.to_string()))?;
    let opened = Connection::open(stream, address.as_str(), &options).await;
    let (connection, driver) = opened.inspect_err(|error| {
        // Others may be connected to instead: without this nobody would hear that one belongs to another cluster, or has another protocol.
        if error.code() != Code::ConnectionFailed {
            tracing::warn!(event = "rpc.connect_refused", address = address.as_str(), error = %error, "cannot be used");
        }
    })?;
    Ok((connection, Box::pin(driver)))
}

/// Why a round has failed: each address names itself in its reason. What may pass by itself at one of them is worth another round.
fn all_failed(mut errors: Vec<Error>) -> Error {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let may_pass = errors.iter().find(|error| error.code() == Code::ConnectionFailed);
    let code = may_pass.or(errors.first()).map_or(Code::ConnectionFailed, Error::code);
    let reasons: Vec<&str> = errors.iter().map(|error| error.detail().unwrap_or(error.code().message())).collect();
    Error::with(code, format!("none of {} addresses can be used: {}", reasons.len(), reasons.join("; ")))
}

/// A random number below `count`; 0 if there is only one, without taking one.
fn below(random: &mut SplitMix64, count: usize) -> usize {
    if count < 2 { 0 } else { usize::try_from(random.below(count as u64)).expect("it is below a usize") }
}

/// Ready when the present connection takes no more questions.
async fn closed(shared: &Shared) {
    let connection = shared.lock().connection.clone();
    if let Some(connection) = connection {
        connection.until_closed().await;
    }
}

/// Tells who waits when the supervisor ends with its runtime.
struct EndOfSupervisor(Arc<Shared>);

impl Drop for EndOfSupervisor {
    fn drop(&mut self) {
        let what = "the runtime that the client was made on has ended";
        self.0.set(None, Some(Error::with(Code::ConnectionFailed, what)));
    }
}
