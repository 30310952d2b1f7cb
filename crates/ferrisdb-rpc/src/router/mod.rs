//! [`Router`]: all servers of a database as one [`Endpoint`], each question put to the one that can answer it.
//!
//! ```text
//!              ┌─ knows who has the key ────▶ that process alone (the better one of those that have it)
//! question ────┤─ begins or decides, knows who ▶ the process with the coordinator alone
//!              └─ neither, or they cannot ──▶ home: one process after the other (`Client`), which forwards what it does not have
//! ```
//!
//! **Home** answers everything, whatever the router knows. What it knows are guesses, told by any process some time ago and kept in a `LocationCache`. Who is asked directly
//! answers by itself or refuses, and then home is asked; so a wrong guess costs a round trip, and never an answer that is wrong. A single server has no
//! others, and all questions go home.
//!
//! As FoundationDB's clients do; but those have no home, and must know before they can ask.
//!
//! # What is asked directly
//! Reads of a key, a key's place and a range; the beginning and the commit of transactions. The rest (watches, leases, sizes, outcomes, status) is rare, or must outlive the process
//! that is asked, and goes home. A range that begins in one shard and ends in another is asked up to the border, as a part of it.
//!
//! # When whoever is asked is slow, or gone
//! - A read that has no answer in the time that nearly all have one in is asked at home as well (`pace`), and the first answer wins.
//! - A lost connection ends what was asked on it. Reads and beginnings are asked again at home. A commit that may have been sent ends with `commit_unknown_result`, as ever.
//! - A connection from which nothing comes for [`SILENCE_MAX`] counts as lost: home is there, so that need not be the patience of one that has nobody else.
//!
//! # Which of those who have it
//! The one with fewer reads under way from here, and faster answers; but that is looked at once for a number of reads (`IN_A_ROW`), unless the one is slow. Each read by itself would go to another one, and nothing
//! would be left of what many questions in one write save on both sides.
//!
//! # What it costs
//! A connection to each process that is asked, opened when it is first wanted. Nothing at all for a program that asks a few questions and ends: the first [`UNROUTED`] go home, and until then nobody is
//! asked where things are.

mod cache;
mod scout;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::key::key_after;
use ferrisdb_core::{Clock, Code, KeyRange, Result, Runtime};
use tokio::sync::{Notify, oneshot};

use self::cache::LocationCache;
use self::scout::Scout;
use crate::answer::Answer;
use crate::api::{
    BeginRequest, Begun, CommitRequest, Committed, Description, Endpoint, GetKeyRequest, GetRangeRequest, GetRequest,
    Rows, is_undecided, may_know_elsewhere,
};
use crate::client::{Ask, Client, Connector, TcpConnector, addresses, split};
use crate::connection::Connection;
use crate::options::ClientOptions;
use crate::pace::Pace;
use crate::pass_on;
use crate::runtime::TokioRuntime;

/// So many questions go home before anybody is asked where things are.
pub const UNROUTED: u32 = 32;
/// How long a process that is asked directly may say nothing at all while questions wait: as long as the processes of a cluster grant each other.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);
/// So many reads in a row are put to one process before the better one is looked for again: reads that come together share a write, and its answers another.
const IN_A_ROW: u32 = 64;
/// Keys that wait to be asked for; more are asked for when they are wanted again.
const WANTED_MAX: usize = 16;

/// The servers of a database. Cheap to clone; when the last clone and the last answer are gone, its connections close.
#[derive(Clone)]
pub struct Router {
    handle: Arc<Handle>,
}

struct Handle {
    inner: Arc<Inner>,
    /// Dropped with the last router: the scout sees it and ends.
    _alive: oneshot::Sender<()>,
}

/// What a router has done, for tests and for whoever wants to know whether it helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouterStats {
    /// Questions put to the process that has the answer.
    pub direct: u64,
    /// Of those, put to home after all, because that one could not answer.
    pub again: u64,
    /// Reads put to home as well, because that one was slow.
    pub hedged: u64,
}

#[derive(Default)]
struct Counts {
    direct: AtomicU64,
    again: AtomicU64,
    hedged: AtomicU64,
}

/// A process that may be asked directly.
type WayId = u64;

struct Way {
    address: String,
    connection: Option<Connection>,
    is_opening: bool,
    /// Somebody wanted to use it since the scout last looked.
    is_wanted: bool,
    /// Looks since anybody did.
    unused: u32,
    /// Not to be opened before.
    retry_at: Duration,
}

#[derive(Default)]
struct State {
    locations: LocationCache<WayId>,
    ways: BTreeMap<WayId, Way>,
    by_address: BTreeMap<String, WayId>,
    next_way: WayId,
    /// Whom the next few reads are put to, if they have what is read.
    favourite: Option<(WayId, u32)>,
    /// Where read versions are given.
    coordinator: Option<WayId>,
    /// Keys of which it is to be asked where they are.
    wanted: VecDeque<Bytes>,
    /// Where the coordinator is is to be asked.
    wants_coordinator: bool,
    /// There has been a coordinator: this is a cluster.
    is_cluster: bool,
    /// There is nobody to be asked but home: nothing is wanted before.
    quiet_until: Duration,
}

struct Inner {
    home: Client,
    state: Mutex<State>,
    pace: Pace<WayId>,
    timers: TokioRuntime,
    questions: AtomicU32,
    counts: Counts,
    /// There is something for the scout to do.
    bell: Notify,
}

impl State {
    /// The way to an address.
    fn way(&mut self, address: &str) -> WayId {
        if let Some(&id) = self.by_address.get(address) {
            return id;
        }
        let id = self.next_way;
        self.next_way += 1;
        let way = Way {
            address: address.to_owned(),
            connection: None,
            is_opening: false,
            is_wanted: false,
            unused: 0,
            retry_at: Duration::ZERO,
        };
        self.ways.insert(id, way);
        self.by_address.insert(address.to_owned(), id);
        id
    }
}

/// A question is to be put to this process.
struct Chosen {
    way: WayId,
    connection: Connection,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False for the first few questions.
    fn is_active(&self) -> bool {
        if self.questions.load(Ordering::Relaxed) >= UNROUTED {
            return true;
        }
        self.questions.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Who is asked for what a part of the keys has. `find` finds the part.
    fn holder<'a>(
        &self,
        state: &'a mut State,
        now: Duration,
        key: &Bytes,
        find: impl FnOnce(&'a LocationCache<WayId>) -> Option<(KeyRange, &'a Arc<[WayId]>)>,
    ) -> Option<(KeyRange, Chosen)> {
        let State { locations, ways, wanted, quiet_until, favourite, .. } = state;
        let Some((range, holders)) = find(locations) else {
            if now >= *quiet_until && wanted.len() < WANTED_MAX && !wanted.contains(key) {
                wanted.push_back(key.clone());
                self.bell.notify_one();
            }
            return None;
        };
        let mut is_any_shut = false;
        for id in holders.iter() {
            if let Some(way) = ways.get_mut(id) {
                way.is_wanted = true;
                is_any_shut |= way.connection.is_none() && !way.is_opening && now >= way.retry_at;
            }
        }
        if is_any_shut {
            self.bell.notify_one();
        }
        let is_open = |id: &WayId| ways.get(id).is_some_and(|way| way.connection.is_some());
        let way = match favourite {
            Some((way, left)) if *left > 0 && holders.contains(way) && is_open(way) => {
                *left -= 1;
                self.pace.begin(*way);
                *way
            }
            _ => {
                let way = self.pace.choose(now, holders.iter().copied().filter(is_open))?;
                *favourite = Some((way, IN_A_ROW));
                way
            }
        };
        let connection = ways[&way].connection.clone().expect("only open ones were looked at");
        Some((range, Chosen { way, connection }))
    }

    /// The process with the coordinator.
    fn coordinator(&self) -> Option<Chosen> {
        if !self.is_active() {
            return None;
        }
        let now = self.timers.now();
        let mut state = self.state();
        let Some(id) = state.coordinator else {
            if now >= state.quiet_until && !state.wants_coordinator {
                state.wants_coordinator = true;
                self.bell.notify_one();
            }
            return None;
        };
        let way = state.ways.get_mut(&id)?;
        way.is_wanted = true;
        match &way.connection {
            Some(connection) => Some(Chosen { way: id, connection: connection.clone() }),
            None => {
                if !way.is_opening && now >= way.retry_at {
                    self.bell.notify_one();
                }
                None
            }
        }
    }

    /// The one that was asked does not decide, or is gone.
    fn not_the_coordinator(&self, way: WayId, code: Code) {
        let mut state = self.state();
        if state.coordinator == Some(way) {
            state.coordinator = None;
            state.wants_coordinator = true;
            self.bell.notify_one();
        }
        if code == Code::ConnectionFailed {
            state.shut(way);
        }
    }

    /// The one that was asked could not answer.
    fn not_the_holder(&self, way: WayId, key: &Bytes, code: Code) {
        let mut state = self.state();
        match code {
            Code::WrongShardServer => {
                let of_key = KeyRange { begin: key.clone(), end: key_after(key) };
                state.locations.forget(&of_key);
                if state.wanted.len() < WANTED_MAX && !state.wanted.contains(key) {
                    state.wanted.push_back(key.clone());
                    self.bell.notify_one();
                }
            }
            Code::ConnectionFailed => state.shut(way),
            _ => {}
        }
    }
}

impl State {
    /// Nothing more is asked there until it is open again.
    fn shut(&mut self, way: WayId) {
        if let Some(way) = self.ways.get_mut(&way)
            && way.connection.as_ref().is_some_and(|connection| connection.closed().is_some())
        {
            way.connection = None;
        }
    }
}

impl Router {
    /// Connects to one of the servers of a database: `HOST:PORT`, or several of them with commas between, and to the others when they are wanted. May be called and awaited inside or
    /// outside of a tokio runtime.
    ///
    /// # Errors
    /// As those of [`Client::connect`].
    pub async fn connect(list: &str, options: ClientOptions) -> Result<Router> {
        Router::connect_to(Arc::new(TcpConnector), addresses(list)?, options).await
    }

    /// The same over another network.
    ///
    /// # Errors
    /// As those of [`Client::connect_with`].
    pub async fn connect_with(connector: Arc<dyn Connector>, list: &str, options: ClientOptions) -> Result<Router> {
        Router::connect_to(connector, split(list), options).await
    }

    async fn connect_to(
        connector: Arc<dyn Connector>,
        addresses: Vec<String>,
        options: ClientOptions,
    ) -> Result<Router> {
        let home = Client::connect_to(Arc::clone(&connector), addresses, options.clone()).await?;
        let runtime = home.runtime().clone();
        let inner = Arc::new(Inner {
            timers: TokioRuntime::new(runtime.clone(), options.seed.unwrap_or_default()),
            state: Mutex::default(),
            pace: Pace::default(),
            questions: AtomicU32::new(if options.asks_holders { 0 } else { u32::MAX }),
            counts: Counts::default(),
            bell: Notify::new(),
            home,
        });
        let (alive, is_alive) = oneshot::channel();
        if options.asks_holders {
            let of_one = ClientOptions {
                cluster_id: Some(inner.home.description().cluster_id),
                asks_one: true,
                silence_max: options.silence_max.min(SILENCE_MAX),
                ..options
            };
            let scout = Scout { inner: Arc::clone(&inner), connector, options: of_one };
            drop(runtime.spawn(scout.run(is_alive)));
        }
        Ok(Router { handle: Arc::new(Handle { inner, _alive: alive }) })
    }

    /// What it has done so far.
    pub fn stats(&self) -> RouterStats {
        let Counts { direct, again, hedged } = &self.inner().counts;
        let [direct, again, hedged] = [direct, again, hedged].map(|count| count.load(Ordering::Relaxed));
        RouterStats { direct, again, hedged }
    }

    fn inner(&self) -> &Inner {
        &self.handle.inner
    }

    /// Who is asked for a key.
    fn of_key(&self, key: &Bytes) -> Option<Chosen> {
        let inner = self.inner();
        if !inner.is_active() {
            return None;
        }
        let now = inner.timers.now();
        inner.holder(&mut inner.state(), now, key, |locations| locations.of_key(key, now)).map(|(_, chosen)| chosen)
    }

    /// Puts a read to one process, and home if that does not answer. `key`: where it begins.
    fn read<Q: Ask>(&self, Chosen { way, connection }: Chosen, key: Bytes, question: Q) -> Answer<Q::Answer> {
        let begun = self.inner().timers.now();
        self.inner().counts.direct.fetch_add(1, Ordering::Relaxed);
        // Now and not with the first poll: questions that come close together share a write.
        let sent = question.clone().put(&connection);
        drop(connection);
        let asked = Asked { router: self.clone(), way, begun, is_answered: false };
        Answer::later(asked.answered(sent, key, question))
    }
}

/// A read that one process was asked. What that takes is remembered, also if nobody waits for the answer any more.
struct Asked {
    router: Router,
    way: WayId,
    begun: Duration,
    is_answered: bool,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let inner = self.router.inner();
        let now = inner.timers.now();
        inner.pace.end(now, self.way, now.saturating_sub(self.begun), self.is_answered);
    }
}

impl Asked {
    async fn answered<Q: Ask>(mut self, mut sent: Answer<Q::Answer>, key: Bytes, question: Q) -> Result<Q::Answer> {
        let router = self.router.clone();
        let inner = router.inner();
        let patience = inner.timers.sleep(inner.pace.patience());
        let in_time = tokio::select! {
            biased;
            answer = &mut sent => Some(answer),
            () = patience => None,
        };
        if in_time.is_none() {
            inner.state().favourite.take_if(|(way, _)| *way == self.way);
        }
        let hedge = if in_time.is_none() { inner.pace.hedge() } else { None };
        let answer = match (in_time, hedge) {
            (Some(answer), _) => answer,
            (None, None) => sent.await,
            (None, Some(_hedge)) => {
                inner.counts.hedged.fetch_add(1, Ordering::Relaxed);
                let mut at_home = inner.home.ask(question.clone());
                tokio::select! {
                    biased;
                    answer = &mut sent => match answer {
                        Err(error) if may_know_elsewhere(error.code()) => {
                            inner.not_the_holder(self.way, &key, error.code());
                            return at_home.await;
                        }
                        answer => answer,
                    },
                    // An error of home's counts only if the one that was asked first has one, too.
                    answer = &mut at_home => match answer {
                        Ok(answer) => return Ok(answer),
                        Err(error) => sent.await.map_err(|_| error),
                    },
                }
            }
        };
        match answer {
            Err(error) if may_know_elsewhere(error.code()) => {
                inner.not_the_holder(self.way, &key, error.code());
                inner.counts.again.fetch_add(1, Ordering::Relaxed);
                inner.home.ask(question).await
            }
            answer => {
                self.is_answered = true;
                answer
            }
        }
    }
}

impl Router {
    /// Puts what the coordinator decides to the process that has it, and home if it does not, or is gone.
    fn decide<Q: Ask>(&self, question: Q) -> Answer<Q::Answer> {
        let Some(Chosen { way, connection }) = self.inner().coordinator() else {
            return self.inner().home.ask(question);
        };
        self.inner().counts.direct.fetch_add(1, Ordering::Relaxed);
        let sent = question.clone().put(&connection);
        drop(connection);
        let router = self.clone();
        Answer::later(async move {
            match sent.await {
                Err(error) if is_undecided(error.code()) => {
                    let inner = router.inner();
                    inner.not_the_coordinator(way, error.code());
                    inner.counts.again.fetch_add(1, Ordering::Relaxed);
                    inner.home.ask(question).await
                }
                answer => answer,
            }
        })
    }
}

impl Endpoint for Router {
    fn description(&self) -> Description {
        self.inner().home.description()
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        self.decide(request)
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        match self.of_key(&request.key) {
            Some(chosen) => self.read(chosen, request.key.clone(), request),
            None => self.inner().home.get(request),
        }
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        match self.of_key(&request.selector.key) {
            Some(chosen) => self.read(chosen, request.selector.key.clone(), request),
            None => self.inner().home.get_key(request),
        }
    }

    fn get_range(&self, mut request: GetRangeRequest) -> Answer<Rows> {
        let inner = self.inner();
        let KeyRange { begin, end } = &request.range;
        if begin >= end || !inner.is_active() {
            return inner.home.get_range(request);
        }
        let now = inner.timers.now();
        let found = match request.reverse {
            false => inner.holder(&mut inner.state(), now, begin, |locations| locations.of_key(begin, now)),
            true => inner.holder(&mut inner.state(), now, begin, |locations| locations.below(end, now)),
        };
        let Some((part, chosen)) = found else { return inner.home.get_range(request) };
        // The part of it that this process has, and what is left of it behind that.
        let (asked, rest) = match request.reverse {
            false if *end > part.end => {
                (KeyRange::new(begin.clone(), part.end.clone()), KeyRange::new(part.end, end.clone()))
            }
            true if *begin < part.begin => {
                (KeyRange::new(part.begin.clone(), end.clone()), KeyRange::new(begin.clone(), part.begin))
            }
            _ => {
                let key = begin.clone();
                return self.read(chosen, key, request);
            }
        };
        let key = asked.begin.clone();
        request.range = asked;
        let answer = self.read(chosen, key, request.clone());
        let router = self.clone();
        Answer::later(async move {
            let mut rows = answer.await?;
            if rows.more {
                return Ok(rows);
            }
            if rows.rows.is_empty() {
                // Nothing to go on from: whoever asked would not get on.
                return router.inner().home.get_range(GetRangeRequest { range: rest, ..request }).await;
            }
            rows.more = true;
            Ok(rows)
        })
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        self.decide(request)
    }

    pass_on! {
        |self| self.inner().home => resolve, watch, lease, estimated_size, split_points, addresses_for_key, locations, status, message
    }

    fn is_reachable(&self) -> bool {
        self.inner().home.is_reachable()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("home", &self.inner().home).finish_non_exhaustive()
    }
}
