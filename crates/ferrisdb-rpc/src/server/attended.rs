//! [`Attended`]: a connection that has said hello, from the server's side.
//!
//! Its task is one poll function. A turn reads once, asks the endpoint, encodes what is answered at once straight into the bytes to be written,
//! collects the waiting answers that have come, and writes: one write for the answers of all requests that one read brought. It is not several tasks
//! because a hand-over between tasks costs as much as answering.
//!
//! # Bounds
//! The one means is not to read: the connection's window fills, and the client waits. Invariant: a connection that is not read from has a
//! reason that ends without the client's help (an answer that comes, memory that another gives back) or a timer that closes it.
//!
//! - Too many questions in flight, or too many bytes of them: until answers come.
//! - Too many bytes of replies not taken: until the client takes them ([`ServeOptions::write_timeout`](crate::ServeOptions::write_timeout)).
//!   Answers are not collected either.
//! - The memory that all share is used up: until somebody gives some back. Half messages count, and have their timer.
//!
//! Meanwhile the client's pings are not read; the server sends signs of life of its own accord.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use ferrisdb_core::{Code, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::{Control, Server, lock};
use crate::answer::Answer;
use crate::api::{Afterwards, Endpoint};
use crate::frame::{Inbox, MESSAGE_BYTES_MAX, Outbox, ProtocolError, Writer, decode};
use crate::hello::Visitor;
use crate::later::{Later, Pending};
use crate::limits::{ALLOWANCE_BYTES, Budget, Share};
use crate::stats::{Method, Rejection, TurnStats};
use crate::wire::{self, Answered, Body, Question, error_out, proto, result_out};

/// How a connection ended.
pub(super) enum End {
    /// As it should: the client left, or the server stopped.
    Closed,
    Lost(io::Error),
    Rejected(Rejection, String),
}

impl From<ProtocolError> for End {
    fn from(error: ProtocolError) -> End {
        End::Rejected(Rejection::Protocol, error.to_string())
    }
}

#[derive(Clone, Copy)]
enum Stopping {
    No,
    Until(Instant),
}

/// Why nothing more is read at the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Yes,
    /// Its own bounds.
    No,
    /// The memory that all share.
    ShortOfMemory,
}

/// A connection that has been greeted.
pub(super) struct Attended<S> {
    server: Arc<Server>,
    /// Its number among the server's.
    number: u64,
    /// The question that is being put is a lone client's: see [`Lone`](super::lone::Lone).
    is_alone: bool,
    /// Who is to be woken once the answers are written.
    afterwards: Afterwards,
    /// What answers: another one for peers than for clients.
    endpoint: Arc<dyn Endpoint>,
    is_peer: bool,
    /// Bytes of one request.
    request_bytes_max: usize,
    /// What requests are counted against: another one for peers than for clients.
    request_memory: Arc<Budget>,
    control: Arc<Control>,
    stream: S,
    inbox: Inbox,
    outbox: Outbox,
    writer: Writer,
    later: Later,
    /// The first piece of a long request that has no memory yet, and its announced length.
    held_piece: Option<(proto::Part, usize)>,
    watches_max: usize,
    request_share: Share,
    reply_share: Share,
    turn: TurnStats,
    stopping: Stopping,
    is_client_done: bool,
    last_read: Instant,
    /// When the client last took something, or there was nothing to take.
    last_write: Instant,
    /// Since when a frame is incomplete.
    frame_began: Option<Instant>,
    /// When the long request that is under way must be complete.
    long_deadline: Option<Instant>,
    /// When the client, whose pings are not read, is to be told that the server lives.
    sign_due: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// A client takes a server for lost whose pongs do not come; one that does not read pings sends pongs of its own accord. A client waits at
/// least twice as long.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(2);

impl<S> Drop for Attended<S> {
    fn drop(&mut self) {
        self.turn.pour_into(&self.server.stats);
        self.reply_share.fit(&self.server.reply_memory, 0);
        if self.request_share.reserved() > 0 {
            self.request_share.fit(&self.request_memory, 0);
            self.server.wake_short_of_memory();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Attended<S> {
    /// A connection after the hello; `inbox` may have read further than that.
    pub(super) fn new(
        server: Arc<Server>,
        control: Arc<Control>,
        stream: S,
        inbox: Inbox,
        watches_max: usize,
        Visitor { is_peer, asks_one, .. }: Visitor,
    ) -> Self {
        let now = Instant::now();
        let (request_bytes_max, request_memory) = if is_peer {
            (server.options.peer_request_bytes_max, Arc::clone(&server.peer_memory))
        } else {
            (server.options.request_bytes_max, Arc::clone(&server.request_memory))
        };
        let for_peers = if is_peer || asks_one { server.endpoint.for_peers() } else { None };
        Attended {
            number: server.lone.connection(),
            is_alone: false,
            afterwards: Afterwards::new(),
            endpoint: for_peers.unwrap_or_else(|| Arc::clone(&server.endpoint)),
            is_peer,
            request_bytes_max,
            request_memory,
            control,
            stream,
            inbox,
            outbox: Outbox::default(),
            writer: Writer::default(),
            later: Later::default(),
            held_piece: None,
            watches_max,
            request_share: Share::default(),
            reply_share: Share::default(),
            turn: TurnStats::default(),
            stopping: Stopping::No,
            is_client_done: false,
            last_read: now,
            last_write: now,
            frame_began: None,
            long_deadline: None,
            sign_due: None,
            timer: Box::pin(tokio::time::sleep(server.options.idle_timeout)),
            server,
        }
    }

    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Rounds of read, ask and write before other connections get their turn.
    const ROUNDS_PER_TURN: usize = 16;
    /// So many requests end a turn too, about a millisecond: rounds of small ones have thousands each, and sixteen such rounds of each of a few connections are what everybody else would
    /// wait for.
    const REQUESTS_PER_TURN: usize = 512;

    /// Ready when the connection is to be closed.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        {
            let mut state = lock(&self.control.state);
            state.waker = Some(context.waker().clone());
            if state.is_stopping && matches!(self.stopping, Stopping::No) {
                self.stopping = Stopping::Until(Instant::now() + self.server.options.drain_timeout);
                self.outbox.put(&proto::Reply { id: 0, answer: Some(Body::Goodbye(proto::Empty {})) });
            }
        }
        let now = Instant::now();
        let turned = self.turn(context, now);
        self.turn.pour_into(&self.server.stats);
        let end = match turned {
            Ok(Poll::Pending) => match self.check_timers(context, now) {
                Ok(()) => return Poll::Pending,
                Err(end) => end,
            },
            Ok(Poll::Ready(())) => End::Closed,
            Err(end) => end,
        };
        Poll::Ready(end)
    }

    /// Does all that can be done now.
    fn turn(&mut self, context: &mut Context<'_>, now: Instant) -> Result<Poll<()>, End> {
        let mut asked = 0;
        for _ in 0..Self::ROUNDS_PER_TURN {
            let mut has_moved = false;
            // The requests that one read brought, as far as there is room; what is left stays in the inbox.
            let mut room = self.room();
            if room == Room::Yes && !self.is_client_done {
                let taken = self.take_requests(now, Self::REQUESTS_PER_TURN - asked)?;
                asked += taken;
                has_moved |= taken > 0;
                room = self.room();
            }
            while self.reply_bytes() < self.reply_bytes_max() {
                let Poll::Ready(ready) = self.later.poll_next(context) else { break };
                self.server.stats.count_later(ready.method, now - ready.since);
                if let Some(code) = ready.error {
                    self.server.stats.count_error(ready.method, code);
                }
                self.outbox.put(&proto::Reply { id: ready.id, answer: Some(ready.body) });
                has_moved = true;
            }
            has_moved |= self.write(context, now)?;
            self.afterwards.wake();
            if self.is_done() {
                return Ok(Poll::Ready(()));
            }
            if asked >= Self::REQUESTS_PER_TURN {
                // Others have their turn. What is left in the inbox comes with the next one, and nothing is read on top of it.
                break;
            }
            if room == Room::ShortOfMemory {
                room = self.wait_for_memory();
            }
            if room == Room::Yes && !self.is_client_done {
                self.sign_due = None;
                match self.inbox.poll_read(&mut self.stream, context) {
                    Poll::Ready(Ok(0)) => return Ok(Poll::Ready(())),
                    Poll::Ready(Ok(len)) => {
                        self.turn.count_received(len);
                        self.last_read = now;
                        has_moved = true;
                    }
                    Poll::Ready(Err(error)) => return Err(End::Lost(error)),
                    Poll::Pending => {}
                }
            } else {
                // That nothing comes is our doing. A half frame's time goes on only if it is memory that lacks: it holds some.
                self.last_read = now;
                self.sign_due.get_or_insert(now + SIGN_OF_LIFE_EVERY);
                if room == Room::No {
                    self.frame_began = None;
                }
            }
            if !has_moved {
                return Ok(Poll::Pending);
            }
        }
        context.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn is_done(&self) -> bool {
        let is_answered = self.later.len() == self.later.watches() && self.reply_bytes() == 0;
        self.is_client_done && is_answered
    }

    // ---- bounds

    /// Bytes of replies that the client has not taken.
    fn reply_bytes(&self) -> usize {
        self.outbox.len() + self.writer.len()
    }

    fn reply_bytes_max(&self) -> usize {
        if self.server.reply_memory.is_exceeded() { ALLOWANCE_BYTES } else { self.server.options.reply_bytes_max }
    }

    /// Bytes of requests that this connection makes the server hold.
    fn request_bytes(&self) -> usize {
        let long = self.inbox.long_bytes().or(self.held_piece.as_ref().map(|(_, total)| *total)).unwrap_or(0);
        self.later.bytes() + long + self.inbox.bytes_wanted()
    }

    fn room(&mut self) -> Room {
        let options = &self.server.options;
        let in_flight = self.later.len() - self.later.watches();
        let is_full = in_flight >= options.in_flight_max
            || self.reply_bytes() >= self.reply_bytes_max()
            || self.later.bytes() > self.request_bytes_max + MESSAGE_BYTES_MAX;
        if is_full {
            return Room::No;
        }
        let (before, wanted) = (self.request_share.reserved(), self.request_bytes());
        if !self.request_share.fit(&self.request_memory, wanted) {
            return Room::ShortOfMemory;
        }
        if self.request_share.reserved() < before {
            self.server.wake_short_of_memory();
        }
        Room::Yes
    }

    /// Puts this connection among those that wait for memory. There may be some again.
    fn wait_for_memory(&mut self) -> Room {
        lock(&self.server.short_of_memory).push_back(Arc::downgrade(&self.control));
        self.server.is_short_of_memory.store(true, Ordering::SeqCst);
        // Somebody may have given some back before the flag was set.
        self.room()
    }

    // ---- requests

    /// Takes so many at most, and a long one that the last of them completes. How many there were.
    fn take_requests(&mut self, now: Instant, most: usize) -> Result<usize, End> {
        let mut taken = 0;
        let endpoint = Arc::clone(&self.endpoint);
        let endpoint = endpoint.as_ref();
        loop {
            if let Some((part, _)) = self.held_piece.take() {
                // `room` has found memory for all of it.
                self.take_piece(endpoint, &part, now)?;
                taken += 1;
            }
            if taken >= most || taken > 0 && (self.room() != Room::Yes || self.is_client_done) {
                break;
            }
            let Some(frame) = self.inbox.next_frame(MESSAGE_BYTES_MAX)? else {
                // A frame that is incomplete now must be complete in time.
                self.frame_began = match self.inbox.buffered() {
                    [] => None,
                    _ if taken > 0 => Some(now),
                    _ => self.frame_began.or(Some(now)),
                };
                break;
            };
            taken += 1;
            self.frame_began = None;
            let bytes = frame.len();
            let request: proto::Request = decode(frame)?;
            let is_one = taken == 1 && self.inbox.buffered().is_empty() && self.later.len() == self.later.watches();
            self.is_alone = if is_one { self.server.lone.asks_one(self.number) } else { false };
            if !is_one {
                self.server.lone.asks_many();
            }
            match request.question {
                Some(Question::Part(part)) => {
                    match self.inbox.announced(&part, self.request_bytes_max)? {
                        Some(total) => self.held_piece = Some((part, total)),
                        None => self.take_piece(endpoint, &part, now)?,
                    }
                    if self.held_piece.is_some() && self.room() != Room::Yes {
                        break;
                    }
                }
                question => self.ask(endpoint, request.id, question, bytes, now)?,
            }
        }
        Ok(taken)
    }

    fn take_piece(&mut self, endpoint: &dyn Endpoint, part: &proto::Part, now: Instant) -> Result<(), End> {
        /// The slowest that a long request may come.
        const BYTES_PER_SECOND_MIN: u64 = 256 << 10;
        let message = self.inbox.add_piece(part)?;
        if part.total_bytes > 0 {
            let seconds = part.total_bytes / BYTES_PER_SECOND_MIN;
            self.long_deadline = Some(now + self.server.options.frame_timeout + Duration::from_secs(seconds));
        }
        let Some(message) = message else { return Ok(()) };
        self.long_deadline = None;
        let bytes = message.len();
        let request: proto::Request = decode(message)?;
        match request.question {
            Some(Question::Part(_)) => Err(ProtocolError::Pieces("a piece in pieces").into()),
            question => self.ask(endpoint, request.id, question, bytes, now),
        }
    }

    /// Puts one question to the endpoint.
    fn ask(
        &mut self,
        endpoint: &dyn Endpoint,
        id: u64,
        question: Option<Question>,
        bytes: usize,
        now: Instant,
    ) -> Result<(), End> {
        let Some(question) = question else {
            // One that a newer client knows: its fields were skipped.
            let error = Error::with(Code::UnsupportedOperation, "the server does not know this question");
            self.outbox.put(&proto::Reply { id, answer: Some(Body::Error(error_out(&error))) });
            return Ok(());
        };
        match question {
            Question::Cancel(_) => {
                if self.later.cancel(id) {
                    self.server.stats.count_cancelled();
                }
                return Ok(());
            }
            Question::Ping(_) => {
                self.outbox.put(&proto::Reply { id, answer: Some(Body::Pong(proto::Empty {})) });
                return Ok(());
            }
            Question::Goodbye(_) => {
                self.is_client_done = true;
                return Ok(());
            }
            _ => {}
        }
        if self.later.contains(id) {
            return Err(ProtocolError::Field("two questions under way with one id").into());
        }
        let at = Asked { id, bytes, now };
        match question {
            Question::Begin(begin) => self.put(at, Method::Begin, wire::begin_in(begin), |q| endpoint.begin(q)),
            Question::Get(get) => self.put(at, Method::Get, wire::get_in(get), |q| endpoint.get(q)),
            Question::GetKey(get) => self.put(at, Method::GetKey, wire::get_key_in(get), |q| endpoint.get_key(q)),
            Question::GetRange(get) => {
                self.put(at, Method::GetRange, wire::get_range_in(get), |q| endpoint.get_range(q))
            }
            Question::Commit(commit) => {
                let is_alone = self.is_alone;
                let mut afterwards = std::mem::take(&mut self.afterwards);
                self.put(at, Method::Commit, wire::commit_in(commit), |q| match is_alone {
                    true => endpoint.commit_alone(q, &mut afterwards),
                    false => endpoint.commit(q),
                });
                self.afterwards = afterwards;
            }
            Question::Resolve(resolve) => {
                self.put(at, Method::Resolve, wire::resolve_in(resolve), |q| endpoint.resolve(q));
            }
            Question::Watch(watch) => {
                let max = self.watches_max;
                let has_room = self.later.watches() < max;
                self.put(at, Method::Watch, wire::watch_in(watch), |q| match has_room {
                    true => endpoint.watch(q),
                    false => {
                        let detail =
                            format!("this connection has {max} watches pending, the most that the database takes");
                        Error::with(Code::TooManyWatches, detail).into()
                    }
                });
            }
            Question::Lease(lease) => self.put(at, Method::Lease, wire::lease_in(lease), |q| endpoint.lease(q)),
            Question::EstimatedSize(range) => {
                let range = Ok(wire::estimated_size_in(range));
                self.put(at, Method::EstimatedSize, range, |q| endpoint.estimated_size(q));
            }
            Question::SplitPoints(split) => {
                self.put(at, Method::SplitPoints, wire::split_points_in(split), |q| endpoint.split_points(q));
            }
            Question::AddressesForKey(of) => {
                self.put(at, Method::AddressesForKey, Ok(of.key), |key| endpoint.addresses_for_key(key));
            }
            Question::Locations(of) => {
                self.put(at, Method::Locations, Ok(wire::locations_in(of)), |q| endpoint.locations(q));
            }
            Question::Status(_) => self.put(at, Method::Status, Ok(()), |()| endpoint.status()),
            Question::Message(message) => {
                let is_peer = self.is_peer;
                self.put(at, Method::Message, Ok(message), |message| match is_peer {
                    true => endpoint.message(message),
                    false => {
                        let detail = "only the processes of a cluster send each other messages, and this connection is a client's";
                        Error::with(Code::ClientInvalidOperation, detail).into()
                    }
                });
            }
            Question::Cancel(_) | Question::Ping(_) | Question::Goodbye(_) | Question::Part(_) => {
                unreachable!("they have been dealt with above")
            }
        }
        Ok(())
    }

    /// Asks, and writes the answer if it is there. A question that is not valid gets an error: its frame was whole, so that the connection
    /// can go on.
    fn put<Q, T: Answered>(
        &mut self,
        asked: Asked,
        method: Method,
        question: Result<Q, ProtocolError>,
        ask: impl FnOnce(Q) -> Answer<T>,
    ) where
        Pending: From<Answer<T>>,
    {
        let answer = match question {
            Ok(question) => ask(question),
            Err(error) => Error::with(Code::ClientInvalidOperation, error.to_string()).into(),
        };
        match answer.try_now() {
            Ok(result) => {
                self.turn.count_inline(method);
                if let Err(error) = &result {
                    self.server.stats.count_error(method, error.code());
                }
                self.outbox.put(&proto::Reply { id: asked.id, answer: Some(result_out(result)) });
            }
            Err(later) => self.later.push(asked.id, method, later.into(), asked.bytes, asked.now),
        }
    }

    // ---- replies and time

    /// Writes what there is: true if the client took any.
    fn write(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let mut written = 0;
        loop {
            if self.writer.is_empty() {
                if self.outbox.is_empty() {
                    self.last_write = now;
                    break;
                }
                self.writer.take_from::<proto::Reply>(&mut self.outbox);
            }
            match self.writer.poll_write(&mut self.stream, context, &mut written) {
                // A long reply goes piece by piece; between them, others may have come.
                Poll::Ready(Ok(())) if self.outbox.is_empty() => {}
                Poll::Ready(Ok(())) => {
                    self.last_write = now;
                    self.turn.count_sent(std::mem::take(&mut written));
                    self.count_replies();
                    return Ok(true);
                }
                Poll::Ready(Err(error)) => return Err(End::Lost(error)),
                Poll::Pending => break,
            }
        }
        if written > 0 {
            self.last_write = now;
            self.turn.count_sent(written);
        }
        self.count_replies();
        Ok(written > 0)
    }

    fn count_replies(&mut self) {
        let bytes = self.reply_bytes();
        self.reply_share.fit_by_force(&self.server.reply_memory, bytes);
    }

    /// Closes a connection whose time is up, and sets the timer for the next such moment.
    fn check_timers(&mut self, context: &mut Context<'_>, now: Instant) -> Result<(), End> {
        let options = &self.server.options;
        let idle = (self.last_read + options.idle_timeout, Rejection::Idle);
        let frame = self.frame_began.map(|began| (began + options.frame_timeout, Rejection::FrameTimeout));
        let long = self.long_deadline.map(|deadline| (deadline, Rejection::FrameTimeout));
        let write =
            (self.reply_bytes() > 0).then(|| (self.last_write + options.write_timeout, Rejection::WriteTimeout));
        let deadlines = [Some(idle), frame, long, write];
        if let Some((_, rejection)) = deadlines.iter().flatten().find(|(deadline, _)| *deadline <= now) {
            let detail = match rejection {
                Rejection::Idle => format!("nothing came from it for {:?}", options.idle_timeout),
                Rejection::WriteTimeout => format!("it took none of its replies for {:?}", options.write_timeout),
                _ => format!("a message that it began did not end within {:?}", options.frame_timeout),
            };
            return Err(End::Rejected(*rejection, detail));
        }
        let mut next = deadlines.iter().flatten().map(|(deadline, _)| *deadline).min().unwrap_or(idle.0);
        if let Stopping::Until(until) = self.stopping {
            if until <= now {
                return Err(End::Closed);
            }
            next = next.min(until);
        }
        if let Some(due) = self.sign_due {
            if due <= now {
                // Replies that wait to be taken are sign enough.
                if self.reply_bytes() == 0 {
                    self.outbox.put(&proto::Reply { id: 0, answer: Some(Body::Pong(proto::Empty {})) });
                    context.waker().wake_by_ref();
                }
                self.sign_due = Some(now + SIGN_OF_LIFE_EVERY);
            }
            next = self.sign_due.map_or(next, |due| next.min(due));
        }
        if self.timer.is_elapsed() {
            self.release_memory();
        }
        // A timer that rings too early is cheap, and most deadlines move before they come; only one that would ring too late is set again.
        if self.timer.is_elapsed() || next < self.timer.deadline() {
            self.timer.as_mut().reset(next);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            self.release_memory();
            self.timer.as_mut().reset(next.max(now + Duration::from_millis(1)));
        }
        Ok(())
    }

    fn release_memory(&mut self) {
        self.inbox.release_memory();
        self.outbox.release_memory();
        self.writer.release_memory();
        self.later.release_memory();
    }
}

/// Where a question stands.
#[derive(Clone, Copy)]
struct Asked {
    id: u64,
    bytes: usize,
    now: Instant,
}
