//! [`Connection`]: one connection to a server, and many questions on it at once.
//!
//! A question is encoded where it is asked, into a buffer that all askers share; the connection's task, its **driver**, writes what has gathered there
//! since its last turn with one write, reads replies in whatever order they come, and wakes who waits for them. So the cost of system calls and of
//! waking the driver is shared by all questions that come close together.
//!
//! # What an answer may be, beside the server's own
//! - Lost connection: `connection_failed`, or `commit_unknown_result` for a commit that may have been sent.
//! - No answer in time ([`ClientOptions::question_timeout`], [`ClientOptions::commit_timeout`]): the same two.
//! - Dropping an answer tells the server that it is not wanted any more, but for a commit, which goes on.
//! - To a message between processes of a cluster `connection_failed` does not say whether it arrived, and nobody asks again.
//!
//! # Invariants
//! - An id is `number of use << SLOT_BITS | slot`. A slot is used again as soon as its answer is taken or dropped; a late reply to an earlier use
//!   has another number and is dropped.
//! - A question is answered exactly once: by a reply, by its deadline, or by the end of the connection, after which no more are asked.
//!
//! # Concurrency
//! Everything is under one lock, held for the encoding of one question or the delivery of one read's replies, never during a system call. Wakers are
//! called outside of it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::{Code, Error, KeyRange, Result, Version};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::answer::Answer;
use crate::api::{
    BeginRequest, Begun, CommitRequest, Committed, Description, Endpoint, GetKeyRequest, GetRangeRequest, GetRequest,
    Lease, LeaseRequest, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use crate::frame::{Inbox, MESSAGE_BYTES_MAX, Outbox, ProtocolError, Writer, decode};
use crate::hello::{Greeting, greet_server};
use crate::options::ClientOptions;
use crate::wire::{self, Answered, Body, Question, proto, result_in};

/// Slots: questions under way, watches and those in the queue included.
const SLOT_BITS: u32 = 20;
/// The longest reply that is taken: a range read has a bound at the server, far below.
const REPLY_BYTES_MAX: usize = 256 << 20;

/// What kind of question, as far as its end differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// May be asked again.
    Read,
    /// Waits for as long as it takes, and does not count as in flight.
    Watch,
    /// Its loss leaves the outcome unknown.
    Commit,
    /// Like a read, but a [`Client`](crate::Client) does not ask it again: the other process may have acted on it.
    Message,
}

/// An open connection. Cheap to clone; when all clones and all answers are gone, it closes.
#[derive(Clone)]
pub struct Connection {
    handle: Arc<Handle>,
}

/// All clones of a [`Connection`].
struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    peer: String,
    greeting: Greeting,
    in_flight_max: usize,
    question_timeout: Duration,
    commit_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outbox: Outbox,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Questions other than watches that have been asked and not been answered.
    in_flight: usize,
    /// Watches likewise.
    watches: usize,
    /// Askers for whom there was no room, by the order of their coming.
    queue: BTreeMap<u64, Waker>,
    next_ticket: u64,
    /// The driver's, while it waits.
    driver: Option<Waker>,
    /// How often the driver has looked at the deadlines. Their unit of time: an asker, who may be outside of any tokio runtime, reads no clock.
    looks: u64,
    /// Why there are no more questions: lost, or the server said goodbye.
    closed: Option<Error>,
    /// No handle is left: close once everything is answered.
    is_unused: bool,
    /// The server said goodbye and is to be answered.
    owes_goodbye: bool,
    /// The driver has ended.
    is_over: bool,
    /// Who waits for `closed`.
    until_closed: Option<Waker>,
}

#[derive(Default)]
struct Slot {
    /// The number of its present use.
    used: u64,
    content: Content,
}

#[derive(Default)]
enum Content {
    #[default]
    Free,
    Waiting {
        kind: Kind,
        /// Which look at the deadlines was the last one before it was asked.
        since: u64,
        waker: Option<Waker>,
    },
    Done(Result<Body>),
}

fn slot_of(id: u64) -> usize {
    (id & ((1 << SLOT_BITS) - 1)) as usize
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, what: &str) -> Error {
        Error::with(Code::ConnectionFailed, format!("the connection to {} was lost: {what}", self.peer))
    }

    fn timeout(&self, kind: Kind) -> Option<Duration> {
        match kind {
            Kind::Read | Kind::Message => Some(self.question_timeout),
            Kind::Watch => None,
            Kind::Commit => Some(self.commit_timeout),
        }
    }
}

impl State {
    /// Encodes a question, if there is room: its id.
    #[expect(
        clippy::result_large_err,
        reason = "the question goes back to its asker; a box would cost every commit an allocation"
    )]
    fn send(&mut self, shared: &Shared, kind: Kind, question: Question) -> std::result::Result<u64, Question> {
        let has_room = match kind {
            // The server refuses those above the database's limit, in words.
            Kind::Watch => self.watches < 1 << (SLOT_BITS - 1),
            Kind::Read | Kind::Commit | Kind::Message => self.in_flight < shared.in_flight_max,
        };
        if !has_room {
            return Err(question);
        }
        let number = match self.free.pop() {
            Some(number) => number as usize,
            None => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
        };
        *self.count(kind) += 1;
        let slot = &mut self.slots[number];
        slot.used += 1;
        let id = slot.used << SLOT_BITS | number as u64;
        slot.content = Content::Waiting { kind, since: self.looks, waker: None };
        self.outbox.put(&proto::Request { id, question: Some(question) });
        Ok(id)
    }

    fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Watch => &mut self.watches,
            Kind::Read | Kind::Commit | Kind::Message => &mut self.in_flight,
        }
    }

    /// The slot of a question that still is what its id says.
    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(slot_of(id)).filter(|slot| slot.used == id >> SLOT_BITS)
    }

    /// Answers a question, if it still waits. Who is to be woken is added to `wakers`.
    fn answer(&mut self, id: u64, result: Result<Body>, wakers: &mut Vec<Waker>) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let Content::Waiting { kind, waker, .. } = &mut slot.content else { return false };
        let (kind, waker) = (*kind, waker.take());
        slot.content = Content::Done(result);
        wakers.extend(waker);
        self.answered(kind, wakers);
        true
    }

    /// Counts an answer, and lets the next in the queue ask.
    fn answered(&mut self, kind: Kind, wakers: &mut Vec<Waker>) {
        *self.count(kind) -= 1;
        if let Some((_, waker)) = self.queue.pop_first() {
            wakers.push(waker);
        }
    }

    fn free(&mut self, id: u64) {
        let number = u32::try_from(slot_of(id)).expect("a slot's number has SLOT_BITS bits");
        self.slots[slot_of(id)].content = Content::Free;
        self.free.push(number);
    }

    /// Ends every question, and allows no more.
    fn close(&mut self, error: &Error, wakers: &mut Vec<Waker>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        self.driver = None;
        self.closed = Some(error.clone());
        for number in 0..self.slots.len() {
            let Slot { used, content: Content::Waiting { kind, .. } } = &self.slots[number] else { continue };
            let (id, kind) = (*used << SLOT_BITS | number as u64, *kind);
            self.answer(id, Err(error_for(kind, error)), wakers);
        }
        self.outbox = Outbox::default();
        self.wake_for_closed(wakers);
    }

    /// Those who wait for a change that `closed` is.
    fn wake_for_closed(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(std::mem::take(&mut self.queue).into_values());
        wakers.extend(self.until_closed.take());
    }
}

/// What the loss of a connection, or of a reply, means for a question.
fn error_for(kind: Kind, error: &Error) -> Error {
    match kind {
        Kind::Read | Kind::Watch | Kind::Message => error.clone(),
        Kind::Commit => {
            let detail = error.detail().unwrap_or(error.code().message());
            Error::with(Code::CommitUnknownResult, format!("the commit may or may not have happened: {detail}"))
        }
    }
}

/// The reply to one question, when it comes.
struct Call<T> {
    shared: Arc<Shared>,
    kind: Kind,
    stage: Stage,
    answer: PhantomData<fn() -> T>,
}

enum Stage {
    /// There was no room yet. The ticket is its place in the queue.
    Queued(Option<Question>, u64),
    Sent(u64),
    Over,
}

impl<T: Answered> Future for Call<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let call = &mut *self;
        let shared = Arc::clone(&call.shared);
        let mut state = shared.lock();
        let mut driver = None;
        if let Stage::Queued(question, ticket) = &mut call.stage {
            if let Some(error) = state.closed.clone() {
                call.stage = Stage::Over;
                // It was never sent: also a commit has certainly not happened.
                return Poll::Ready(Err(error));
            }
            let asked = question.take().expect("a queued question is there until it is sent");
            match state.send(&shared, call.kind, asked) {
                Ok(id) => {
                    state.queue.remove(ticket);
                    call.stage = Stage::Sent(id);
                    driver = state.driver.take();
                }
                Err(asked) => {
                    state.queue.insert(*ticket, context.waker().clone());
                    *question = Some(asked);
                    return Poll::Pending;
                }
            }
        }
        let Stage::Sent(id) = call.stage else { panic!("an answer is taken once") };
        let slot = state.slot(id).expect("a slot is used again only after its answer was taken");
        match &mut slot.content {
            Content::Waiting { waker, .. } => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                drop(state);
                if let Some(driver) = driver {
                    driver.wake();
                }
                Poll::Pending
            }
            Content::Done(_) => {
                let Content::Done(result) = std::mem::take(&mut slot.content) else { unreachable!("matched above") };
                state.free(id);
                drop(state);
                call.stage = Stage::Over;
                let kind = call.kind;
                Poll::Ready(result.and_then(|body| {
                    result_in(body).unwrap_or_else(|error| {
                        let error = Error::with(Code::InternalError, format!("the reply of {}: {error}", shared.peer));
                        Err(error_for(kind, &error))
                    })
                }))
            }
            Content::Free => unreachable!("a slot is freed when its answer is taken or dropped"),
        }
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        {
            let mut state = self.shared.lock();
            match self.stage {
                Stage::Over => return,
                Stage::Queued(_, ticket) => {
                    // If it had been woken to ask and is gone now, the next one asks in its place.
                    if state.queue.remove(&ticket).is_none()
                        && let Some((_, waker)) = state.queue.pop_first()
                    {
                        wakers.push(waker);
                    }
                }
                Stage::Sent(id) => {
                    let Some(slot) = state.slot(id) else { return };
                    let is_waiting = matches!(slot.content, Content::Waiting { .. });
                    slot.content = Content::Free;
                    state.free(id);
                    if is_waiting {
                        state.answered(self.kind, &mut wakers);
                        if self.kind != Kind::Commit && state.closed.is_none() {
                            state.outbox.put(&proto::Request { id, question: Some(Question::Cancel(proto::Empty {})) });
                        }
                        wakers.extend(state.driver.take());
                    }
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Connection {
    /// Says hello on a fresh stream. Returns the connection and its driver, which must be run (spawned) for anything to happen; dropping the driver loses
    /// the connection. `peer` names the other side in errors.
    ///
    /// # Errors
    /// `connection_failed`, `incompatible_protocol_version`, or what the server refuses the connection for.
    pub async fn open<S>(
        mut stream: S,
        peer: impl Into<String>,
        options: &ClientOptions,
    ) -> Result<(Connection, impl Future<Output = ()> + Send + 'static)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = peer.into();
        let mut inbox = Inbox::new();
        let greeted = greet_server(&mut stream, &mut inbox, &peer, options);
        let greeting = tokio::time::timeout(options.connect_timeout, greeted).await.map_err(|_| {
            let what = format!("cannot connect to {peer}: it sent no hello within {:?}", options.connect_timeout);
            Error::with(Code::ConnectionFailed, what)
        })??;
        let keep_alive = options.keep_alive.min(greeting.idle_timeout / 3).max(Duration::from_millis(1));
        let shortest = [options.question_timeout / 4, options.commit_timeout / 4, options.silence_max / 6];
        let shortest = shortest.into_iter().fold(keep_alive, Duration::min);
        let look = shortest.max(Duration::from_millis(1));
        let shared = Arc::new(Shared {
            peer,
            greeting,
            in_flight_max: options.in_flight_max.clamp(1, 1 << (SLOT_BITS - 1)),
            question_timeout: options.question_timeout,
            commit_timeout: options.commit_timeout,
            state: Mutex::default(),
        });
        let now = Instant::now();
        let mut driver = Driver {
            shared: Arc::clone(&shared),
            stream,
            inbox,
            writer: Writer::default(),
            wakers: Vec::new(),
            replies: Vec::new(),
            keep_alive,
            silence_max: options.silence_max,
            waits_since: None,
            last_read: now,
            last_sent: now,
            pinged: None,
            look,
            timer: Box::pin(tokio::time::sleep(look)),
        };
        let run = async move { poll_fn(|context| driver.poll(context)).await };
        Ok((Connection { handle: Arc::new(Handle { shared }) }, run))
    }

    /// Why the connection takes no more questions, if it does not.
    pub fn closed(&self) -> Option<Error> {
        self.handle.shared.lock().closed.clone()
    }

    /// Ready once the connection takes no more questions. One may wait at a time.
    pub(crate) async fn until_closed(&self) {
        poll_fn(|context| {
            let mut state = self.handle.shared.lock();
            if state.closed.is_some() {
                return Poll::Ready(());
            }
            state.until_closed = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The other side, as it was named.
    pub fn peer(&self) -> &str {
        &self.handle.shared.peer
    }

    /// Sends a question, or puts it into the queue. `Err`: it has certainly not been sent.
    fn ask<T: Answered>(&self, kind: Kind, question: Question) -> Result<Call<T>> {
        let shared = &self.handle.shared;
        let driver;
        let stage = {
            let mut state = shared.lock();
            if let Some(error) = &state.closed {
                return Err(error.clone());
            }
            match state.send(shared, kind, question) {
                Ok(id) => {
                    driver = state.driver.take();
                    Stage::Sent(id)
                }
                Err(question) => {
                    driver = None;
                    let ticket = state.next_ticket;
                    state.next_ticket += 1;
                    Stage::Queued(Some(question), ticket)
                }
            }
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(Call { shared: Arc::clone(shared), kind, stage, answer: PhantomData })
    }

    fn answer<T: Answered>(&self, kind: Kind, question: Question) -> Answer<T> {
        match self.ask(kind, question) {
            Ok(call) => Answer::Later(Box::pin(call)),
            Err(error) => error.into(),
        }
    }

    /// The same for one that may be longer than the server takes.
    fn answer_long<T: Answered>(&self, kind: Kind, question: Question) -> Answer<T> {
        let question = proto::Request { id: u64::MAX, question: Some(question) };
        let (bytes, max) = (question.encoded_len(), self.handle.shared.greeting.request_bytes_max);
        if bytes > max {
            let code = if kind == Kind::Commit { Code::TransactionTooLarge } else { Code::ClientInvalidOperation };
            return Error::with(code, format!("the request has {bytes} bytes; the server takes {max}")).into();
        }
        self.answer(kind, question.question.expect("put there above"))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let driver = {
            let mut state = self.shared.lock();
            state.is_unused = true;
            state.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Endpoint for Connection {
    fn description(&self) -> Description {
        self.handle.shared.greeting.description.clone()
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.answer(Kind::Read, wire::begin_out(request))
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        self.answer(Kind::Read, wire::get_out(request))
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        self.answer(Kind::Read, wire::get_key_out(request))
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        self.answer(Kind::Read, wire::get_range_out(request))
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.answer_long(Kind::Commit, wire::commit_out(request))
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        self.answer(Kind::Read, wire::resolve_out(request))
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        self.answer(Kind::Watch, wire::watch_out(request))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        self.answer(Kind::Read, wire::lease_out(request))
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        self.answer(Kind::Read, wire::estimated_size_out(range))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        self.answer(Kind::Read, wire::split_points_out(request))
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        self.answer(Kind::Read, Question::AddressesForKey(proto::AddressesForKey { key }))
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        self.answer(Kind::Read, wire::locations_out(request))
    }

    fn status(&self) -> Answer<String> {
        self.answer(Kind::Read, Question::Status(proto::Empty {}))
    }

    fn message(&self, message: Bytes) -> Answer<Bytes> {
        self.answer_long(Kind::Message, Question::Message(message))
    }
}

/// The connection's task.
struct Driver<S> {
    shared: Arc<Shared>,
    stream: S,
    inbox: Inbox,
    writer: Writer,
    /// Kept for their memory.
    wakers: Vec<Waker>,
    replies: Vec<proto::Reply>,
    keep_alive: Duration,
    silence_max: Duration,
    /// Since when a question has been seen to wait without a pause.
    waits_since: Option<Instant>,
    last_read: Instant,
    last_sent: Instant,
    /// When the ping was sent after which nothing has come yet.
    pinged: Option<Instant>,
    /// How often it looks at deadlines and pings: a few times within the shortest of them. Exact deadlines would cost a timer for each question.
    look: Duration,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Rounds of write, read and deliver before others on this thread get their turn.
    const ROUNDS_PER_TURN: usize = 16;

    /// Ready when the connection has ended and everything that waited for it has been told.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let lost = match self.turn(context, now) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => "it is not used any more".to_owned(),
            Err(what) => {
                let peer = self.shared.peer.as_str();
                tracing::info!(event = "rpc.connection_lost", peer, reason = what.as_str(), "connection lost");
                what
            }
        };
        self.close(&lost);
        Poll::Ready(())
    }

    fn turn(&mut self, context: &mut Context<'_>, now: Instant) -> Result<Poll<()>, String> {
        self.watch_time(context, now)?;
        for _ in 0..Self::ROUNDS_PER_TURN {
            let mut has_moved = self.write(context, now)?;
            match self.inbox.poll_read(&mut self.stream, context) {
                Poll::Ready(Ok(0)) => return Err("the server closed it".to_owned()),
                Poll::Ready(Ok(_)) => {
                    self.last_read = now;
                    self.take_replies().map_err(|error| error.to_string())?;
                    has_moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => {}
            }
            if has_moved {
                continue;
            }
            let mut state = self.shared.lock();
            if self.writer.is_empty() && !state.outbox.is_empty() {
                continue;
            }
            if state.is_unused && state.in_flight == 0 && state.watches == 0 && self.writer.is_empty() {
                return Ok(Poll::Ready(()));
            }
            // Under the lock: whoever asks from now on wakes us.
            state.driver = Some(context.waker().clone());
            return Ok(Poll::Pending);
        }
        context.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// Writes what has gathered: true if any of it went.
    fn write(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, String> {
        let mut written = 0;
        loop {
            if self.writer.is_empty() {
                let mut state = self.shared.lock();
                if std::mem::take(&mut state.owes_goodbye) {
                    let goodbye = Some(Question::Goodbye(proto::Empty {}));
                    state.outbox.put(&proto::Request { id: 0, question: goodbye });
                }
                if state.outbox.is_empty() {
                    break;
                }
                self.writer.take_from::<proto::Request>(&mut state.outbox);
            }
            match self.writer.poll_write(&mut self.stream, context, &mut written) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => break,
            }
        }
        if written > 0 {
            self.last_sent = now;
        }
        Ok(written > 0)
    }

    /// Delivers the replies that one read brought.
    fn take_replies(&mut self) -> Result<(), ProtocolError> {
        while let Some(frame) = self.inbox.next_frame(MESSAGE_BYTES_MAX)? {
            let reply: proto::Reply = decode(frame)?;
            let Some(Body::Part(part)) = reply.answer else {
                self.replies.push(reply);
                continue;
            };
            self.inbox.announced(&part, REPLY_BYTES_MAX)?;
            if let Some(message) = self.inbox.add_piece(&part)? {
                self.replies.push(decode(message)?);
            }
        }
        if self.replies.is_empty() {
            return Ok(());
        }
        let mut state = self.shared.lock();
        for reply in self.replies.drain(..) {
            match reply.answer {
                Some(Body::Pong(_) | Body::Part(_)) => {}
                Some(Body::Goodbye(_)) => {
                    // What has been asked is still answered.
                    let what = format!("{} is about to stop", self.shared.peer);
                    state.closed = Some(Error::with(Code::ConnectionFailed, what));
                    state.owes_goodbye = true;
                    state.wake_for_closed(&mut self.wakers);
                }
                Some(body) => {
                    state.answer(reply.id, Ok(body), &mut self.wakers);
                }
                None => {
                    let what = "the server's reply is of a kind that this program does not know";
                    let error = Error::with(Code::InternalError, what);
                    state.answer(reply.id, Err(error), &mut self.wakers);
                }
            }
        }
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
        Ok(())
    }

    /// Deadlines and pings.
    fn watch_time(&mut self, context: &mut Context<'_>, now: Instant) -> Result<(), String> {
        while self.timer.as_mut().poll(context).is_ready() {
            self.timer.as_mut().reset(now + self.look);
            let is_quiet = |since: Instant| now - since >= self.keep_alive;
            let is_waiting = self.shared.lock().in_flight > 0;
            self.waits_since = is_waiting.then(|| self.waits_since.unwrap_or(now));
            // Silence of the server counts from when it had something to say.
            let silence = self.waits_since.map_or(Duration::ZERO, |since| now - since.max(self.last_read));
            match self.pinged {
                Some(pinged) if self.last_read >= pinged => self.pinged = None,
                // Of the silence two thirds are the ping's.
                Some(pinged)
                    if is_quiet(pinged) || silence >= self.silence_max && now - pinged >= self.silence_max / 2 =>
                {
                    return Err(format!("nothing came back for {:?}", now - self.last_read));
                }
                Some(_) => {}
                None if is_quiet(self.last_read) || is_quiet(self.last_sent) || silence >= self.silence_max / 3 => {
                    self.pinged = Some(now);
                    let ping = proto::Request { id: 0, question: Some(Question::Ping(proto::Empty {})) };
                    self.shared.lock().outbox.put(&ping);
                }
                None => {}
            }
            if self.writer.is_empty() {
                self.inbox.release_memory();
                self.writer.release_memory();
            }
            self.end_overdue();
        }
        Ok(())
    }

    /// Ends the questions that have waited too long.
    fn end_overdue(&mut self) {
        let shared = Arc::clone(&self.shared);
        // One more than fits, because the first look may come at once after the question.
        let looks_max = |timeout: Duration| {
            1 + u64::try_from(timeout.as_nanos().div_ceil(self.look.as_nanos())).unwrap_or(u64::MAX - 1)
        };
        let mut state = shared.lock();
        state.looks += 1;
        for number in 0..state.slots.len() {
            let Slot { used, content: Content::Waiting { kind, since, .. } } = &state.slots[number] else { continue };
            let (id, kind, waited) = (*used << SLOT_BITS | number as u64, *kind, state.looks - *since);
            let Some(timeout) = shared.timeout(kind).filter(|timeout| waited > looks_max(*timeout)) else { continue };
            let what = format!("{} did not answer within {timeout:?}", shared.peer);
            let error = error_for(kind, &Error::with(Code::ConnectionFailed, what));
            state.answer(id, Err(error), &mut self.wakers);
            if kind != Kind::Commit {
                state.outbox.put(&proto::Request { id, question: Some(Question::Cancel(proto::Empty {})) });
            }
        }
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl<S> Driver<S> {
    fn close(&mut self, what: &str) {
        let error = self.shared.lost(what);
        self.shared.lock().close(&error, &mut self.wakers);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        // If it had not ended before, its runtime has gone.
        self.close("the runtime that it ran on has ended");
    }
}
