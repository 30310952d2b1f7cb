//! [`MemoryEndpoint`]: a database in a map, with every version of every key.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use ferrisdb_core::key::DATABASE_LOCK_KEY;
use ferrisdb_core::mutation::apply;
use ferrisdb_core::{
    Bytes, Code, KeyRange, KeyValue, Limits, Mutation, MutationKind, Result, Version, Versionstamp, versionstamp,
};
use ferrisdb_rpc::api::{
    BeginRequest, Begun, CommitId, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest,
    Lease, LeaseRequest, Location, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use ferrisdb_rpc::{Answer, Endpoint};

/// What becomes of a commit whose answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It happened.
    Done,
    /// It did not arrive.
    Never,
    /// It arrives when its outcome is asked for, or when a test says so.
    Late,
}

pub(crate) struct MemoryEndpoint {
    state: Arc<Mutex<State>>,
}

type Row = BTreeMap<Version, Option<Bytes>>;

struct State {
    rows: BTreeMap<Bytes, Row>,
    /// What was written at each version, for conflicts.
    writes: Vec<(Version, KeyRange)>,
    version: Version,
    oldest: Version,
    outcomes: BTreeMap<CommitId, Option<Committed>>,
    late: Vec<CommitRequest>,
    /// What happens to the next commits.
    lost: VecDeque<Option<Lost>>,
    /// Errors that the next resolves return.
    resolve_errors: VecDeque<Code>,
    /// Errors with which the next commits that are not lost fail.
    commit_errors: VecDeque<Code>,
    /// Errors that the next reads return.
    read_errors: VecDeque<Code>,
    watch_errors: VecDeque<Code>,
    watch_wakers: Vec<Waker>,
    leases: BTreeMap<u64, Version>,
    log: Log,
    /// Answers come so many turns late.
    delay: u32,
    /// Rows that a part of a range has at most.
    part_rows: usize,
    /// Answers are not given while this is set.
    is_stuck: bool,
    stuck_wakers: Vec<Waker>,
    /// Values are there without a question.
    is_here: bool,
    /// Where shards begin.
    boundaries: Vec<Bytes>,
}

/// What was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// How many transactions each question for a read version was for.
    pub(crate) begins: Vec<u32>,
    pub(crate) gets: usize,
    /// Values that were there without a question.
    pub(crate) gets_here: usize,
    pub(crate) get_keys: usize,
    pub(crate) ranges: Vec<(KeyRange, u32)>,
    pub(crate) commits: Vec<CommitRequest>,
    pub(crate) resolves: usize,
    pub(crate) renewals: usize,
}

impl MemoryEndpoint {
    pub(crate) fn new() -> MemoryEndpoint {
        let state = State {
            rows: BTreeMap::new(),
            writes: Vec::new(),
            version: Version::from_u64(100),
            oldest: Version::ZERO,
            outcomes: BTreeMap::new(),
            late: Vec::new(),
            lost: VecDeque::new(),
            resolve_errors: VecDeque::new(),
            commit_errors: VecDeque::new(),
            read_errors: VecDeque::new(),
            watch_errors: VecDeque::new(),
            watch_wakers: Vec::new(),
            leases: BTreeMap::new(),
            log: Log::default(),
            delay: 0,
            part_rows: usize::MAX,
            is_stuck: false,
            stuck_wakers: Vec::new(),
            is_here: false,
            boundaries: vec![Bytes::new()],
        };
        MemoryEndpoint { state: Arc::new(Mutex::new(state)) }
    }

    /// Shards begin at these keys from now on, the first of which is `''`.
    pub(crate) fn set_boundaries(&self, boundaries: &[&'static str]) {
        self.lock().boundaries = boundaries.iter().map(|&begin| Bytes::from(begin)).collect();
    }

    /// Answers come so many turns late from now on.
    pub(crate) fn answer_late(&self, turns: u32) {
        self.lock().delay = turns;
    }

    /// Parts of ranges have so many rows at most from now on.
    pub(crate) fn limit_parts(&self, rows: usize) {
        self.lock().part_rows = rows;
    }

    /// No answer is given, until it is set back.
    pub(crate) fn set_stuck(&self, is_stuck: bool) {
        let wakers = {
            let mut state = self.lock();
            state.is_stuck = is_stuck;
            std::mem::take(&mut state.stuck_wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Values are there without a question from now on, as in an embedded database.
    pub(crate) fn have_values_here(&self) {
        self.lock().is_here = true;
    }

    /// The answer to the commit after those already said is lost (`None`: is not).
    pub(crate) fn lose_commit(&self, lost: Option<Lost>) {
        self.lock().lost.push_back(lost);
    }

    /// A commit after those that are lost fails, and does not happen.
    pub(crate) fn fail_commit(&self, code: Code) {
        self.lock().commit_errors.push_back(code);
    }

    pub(crate) fn fail_resolve(&self, code: Code) {
        self.lock().resolve_errors.push_back(code);
    }

    pub(crate) fn fail_read(&self, code: Code) {
        self.lock().read_errors.push_back(code);
    }

    pub(crate) fn fail_watch(&self, code: Code) {
        self.lock().watch_errors.push_back(code);
    }

    /// Versions below this one cannot be read, nor be committed with.
    pub(crate) fn forget_below(&self, version: Version) {
        self.lock().oldest = version;
    }

    /// Commits that were held back arrive.
    pub(crate) fn deliver_late(&self) {
        let mut state = self.lock();
        for request in std::mem::take(&mut state.late) {
            drop(state.decide(request));
        }
        let wakers = std::mem::take(&mut state.watch_wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn log(&self) -> Log {
        self.lock().log.clone()
    }

    pub(crate) fn leases(&self) -> usize {
        self.lock().leases.len()
    }

    pub(crate) fn version(&self) -> Version {
        self.lock().version
    }

    /// All rows as they are now.
    pub(crate) fn rows(&self) -> Vec<(Bytes, Bytes)> {
        let state = self.lock();
        let rows = state.rows.iter();
        rows.filter_map(|(key, row)| Some((key.clone(), at(row, state.version)?))).collect()
    }

    /// Writes beside all transactions, in a commit of its own.
    pub(crate) fn write(&self, mutations: Vec<Mutation>) -> Version {
        let request = CommitRequest {
            read_version: self.version(),
            read_conflicts: Vec::new(),
            write_conflicts: mutations
                .iter()
                .map(|mutation| match mutation.kind {
                    MutationKind::ClearRange => KeyRange::new(mutation.key.clone(), mutation.value.clone()),
                    _ => KeyRange::single(&mutation.key),
                })
                .collect(),
            mutations,
            id: None,
            lowest_unanswered: 0,
            report_conflicting_keys: false,
            begins: None,
            lock_aware: true,
        };
        let committed = self.lock().decide(request).expect("it is new enough");
        let wakers = std::mem::take(&mut self.lock().watch_wakers);
        wakers.into_iter().for_each(Waker::wake);
        match committed {
            Committed::At { version, .. } => version,
            Committed::Conflict { .. } => unreachable!("it has read nothing"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// An answer, now or later.
    fn answer<T: Send + Unpin + 'static>(&self, result: Result<T>) -> Answer<T> {
        let (delay, is_stuck) = {
            let state = self.lock();
            (state.delay, state.is_stuck)
        };
        if delay == 0 && !is_stuck {
            return Answer::now(result);
        }
        Answer::later(Delayed { state: Arc::clone(&self.state), turns: delay, result: Some(result) })
    }

    fn read_error(&self) -> Option<Code> {
        self.lock().read_errors.pop_front()
    }
}

/// An answer after some turns, and not while the database is stuck.
struct Delayed<T> {
    state: Arc<Mutex<State>>,
    turns: u32,
    result: Option<Result<T>>,
}

impl<T: Unpin> Future for Delayed<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let is_stuck = {
            let mut state = self.state.lock().expect("no test panics with it");
            if state.is_stuck {
                state.stuck_wakers.push(context.waker().clone());
            }
            state.is_stuck
        };
        if is_stuck {
            return Poll::Pending;
        }
        if self.turns > 0 {
            self.turns -= 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.result.take().expect("polled once after it was ready"))
    }
}

fn at(row: &Row, version: Version) -> Option<Bytes> {
    row.range(..=version).next_back().and_then(|(_, value)| value.clone())
}

impl State {
    fn check(&self, version: Version) -> Result<()> {
        if version < self.oldest && !self.leases.values().any(|leased| *leased == version) {
            return Err(Code::TransactionTooOld.into());
        }
        if version > self.version { Err(Code::FutureVersion.into()) } else { Ok(()) }
    }

    fn write(&mut self, version: Version, key: Bytes, value: Option<Bytes>) {
        self.rows.entry(key).or_default().insert(version, value);
    }

    /// Commits or not.
    fn decide(&mut self, request: CommitRequest) -> Result<Committed> {
        if let Some(id) = request.id
            && let Some(outcome) = self.outcomes.get(&id)
        {
            return outcome.clone().ok_or(Code::NotCommitted.into());
        }
        if request.read_version < self.oldest {
            return Err(Code::TransactionTooOld.into());
        }
        if self.is_locked() && !request.lock_aware {
            return Err(Code::DatabaseLocked.into());
        }
        let conflicting: Vec<u32> = (0..)
            .zip(&request.read_conflicts)
            .filter(|(_, range)| {
                self.writes.iter().any(|(version, write)| *version > request.read_version && write.intersects(range))
            })
            .map(|(index, _)| index)
            .collect();
        let outcome = if conflicting.is_empty() {
            self.version = Version::from_u64(self.version.get() + 10);
            let version = self.version;
            let stamp = Versionstamp::new(version, 7);
            for range in &request.write_conflicts {
                self.writes.push((version, range.clone()));
            }
            for mutation in request.mutations {
                self.apply(version, stamp, mutation);
            }
            Committed::At { version, batch_index: 7 }
        } else {
            let ranges = if request.report_conflicting_keys { conflicting } else { Vec::new() };
            Committed::Conflict { ranges }
        };
        if let Some(id) = request.id {
            self.outcomes.insert(id, Some(outcome.clone()));
        }
        Ok(outcome)
    }

    fn apply(&mut self, version: Version, stamp: Versionstamp, mutation: Mutation) {
        let Mutation { kind, key, value } = mutation;
        match kind {
            MutationKind::Set => self.write(version, key, Some(value)),
            MutationKind::ClearRange => {
                let keys: Vec<Bytes> = self.rows.range(key..value).map(|(key, _)| key.clone()).collect();
                for key in keys {
                    self.write(version, key, None);
                }
            }
            MutationKind::SetVersionstampedKey => {
                let key = versionstamp::fill(&key, stamp).expect("the client has checked it");
                self.writes.push((version, KeyRange::single(&key)));
                self.write(version, key, Some(value));
            }
            MutationKind::SetVersionstampedValue => {
                let value = versionstamp::fill(&value, stamp).expect("the client has checked it");
                self.write(version, key, Some(value));
            }
            _ => {
                let existing = self.rows.get(&key).and_then(|row| at(row, version));
                let value = apply(kind, existing.as_ref(), &value, Limits::DEFAULT.value_bytes);
                self.write(version, key, value);
            }
        }
    }

    fn is_locked(&self) -> bool {
        self.rows.get(DATABASE_LOCK_KEY).is_some_and(|row| at(row, self.version).is_some())
    }

    fn keys(&self, version: Version) -> Vec<Bytes> {
        self.rows.iter().filter(|(_, row)| at(row, version).is_some()).map(|(key, _)| key.clone()).collect()
    }
}

impl Endpoint for MemoryEndpoint {
    fn description(&self) -> Description {
        Description { cluster_id: [7; 16], limits: Limits::DEFAULT, connection_string: "memory".to_owned() }
    }

    fn begin(&self, request: BeginRequest) -> Answer<Begun> {
        let begun = {
            let mut state = self.lock();
            state.log.begins.push(request.transactions);
            Begun { version: state.version, is_locked: state.is_locked() }
        };
        self.answer(Ok(begun))
    }

    fn get_here(&self, key: &[u8], version: Version) -> Option<Option<Bytes>> {
        let mut state = self.lock();
        let is_here = state.is_here && !state.is_stuck && state.delay == 0 && state.read_errors.is_empty();
        if !is_here || state.check(version).is_err() {
            return None;
        }
        state.log.gets_here += 1;
        Some(state.rows.get(key).and_then(|row| at(row, version)))
    }

    fn get(&self, request: GetRequest) -> Answer<Option<Bytes>> {
        if let Some(code) = self.read_error() {
            return self.answer(Err(code.into()));
        }
        let result = {
            let mut state = self.lock();
            state.log.gets += 1;
            let value = state.rows.get(&request.key).and_then(|row| at(row, request.version));
            state.check(request.version).map(|()| value)
        };
        self.answer(result)
    }

    fn get_key(&self, request: GetKeyRequest) -> Answer<Bytes> {
        let result = {
            let mut state = self.lock();
            state.log.get_keys += 1;
            let selector = request.selector.without_or_equal();
            let keys: Vec<Bytes> = state.keys(request.version).into_iter().filter(|key| *key < request.end).collect();
            let place = keys.partition_point(|key| *key < selector.key) as i64 + i64::from(selector.offset) - 1;
            let key = match usize::try_from(place) {
                Err(_) => Bytes::new(),
                Ok(place) => keys.get(place).cloned().unwrap_or(request.end),
            };
            state.check(request.version).map(|()| key)
        };
        self.answer(result)
    }

    fn get_range(&self, request: GetRangeRequest) -> Answer<Rows> {
        if let Some(code) = self.read_error() {
            return self.answer(Err(code.into()));
        }
        let result = {
            let mut state = self.lock();
            state.log.ranges.push((request.range.clone(), request.limit));
            let inside = |key: &Bytes| request.range.contains(key);
            let all = state.rows.iter().filter(|(key, _)| inside(key));
            let mut rows: Vec<KeyValue> = all
                .filter_map(|(key, row)| Some(KeyValue { key: key.clone(), value: at(row, request.version)? }))
                .collect();
            if request.reverse {
                rows.reverse();
            }
            let whole = rows.len();
            if request.limit > 0 {
                rows.truncate(request.limit as usize);
            }
            rows.truncate(state.part_rows);
            if request.target_bytes > 0 {
                let mut bytes = 0;
                let fits = rows.iter().take_while(|row| {
                    let is_before = bytes < request.target_bytes as usize;
                    bytes += 8 + row.key.len() + row.value.len();
                    is_before
                });
                let fitting = fits.count();
                rows.truncate(fitting);
            }
            let more = rows.len() < whole;
            state.check(request.version).map(|()| Rows { rows, more })
        };
        self.answer(result)
    }

    fn commit(&self, request: CommitRequest) -> Answer<Committed> {
        let result = {
            let mut state = self.lock();
            state.log.commits.push(request.clone());
            match state.lost.pop_front().flatten() {
                None => match state.commit_errors.pop_front() {
                    Some(code) => Err(code.into()),
                    None => state.decide(request),
                },
                Some(lost) => {
                    match lost {
                        Lost::Done => drop(state.decide(request)),
                        Lost::Late => state.late.push(request),
                        Lost::Never => {}
                    }
                    Err(Code::CommitUnknownResult.into())
                }
            }
        };
        let wakers = std::mem::take(&mut self.lock().watch_wakers);
        wakers.into_iter().for_each(Waker::wake);
        self.answer(result)
    }

    fn resolve(&self, request: ResolveRequest) -> Answer<Option<Committed>> {
        let result = {
            let mut state = self.lock();
            state.log.resolves += 1;
            match state.resolve_errors.pop_front() {
                Some(code) => Err(code.into()),
                // What is not known now never will be.
                None => Ok(state.outcomes.entry(request.id).or_insert(None).clone()),
            }
        };
        self.answer(result)
    }

    fn watch(&self, request: WatchRequest) -> Answer<Version> {
        if let Some(code) = self.lock().watch_errors.pop_front() {
            return Answer::now(Err(code.into()));
        }
        let state = Arc::clone(&self.state);
        Answer::later(std::future::poll_fn(move |context| {
            let mut state = state.lock().expect("no test panics with it");
            let now = state.rows.get(&request.key).and_then(|row| at(row, state.version));
            if now != request.value {
                return Poll::Ready(Ok(state.version));
            }
            state.watch_wakers.push(context.waker().clone());
            Poll::Pending
        }))
    }

    fn lease(&self, request: LeaseRequest) -> Answer<Lease> {
        let result = {
            let mut state = self.lock();
            let (id, version) = match request {
                LeaseRequest::Grant(version) => {
                    let id = state.leases.keys().next_back().map_or(1, |last| last + 1);
                    let version = version.unwrap_or(state.version);
                    state.leases.insert(id, version);
                    (id, Some(version))
                }
                LeaseRequest::Renew(id) => {
                    state.log.renewals += 1;
                    (id, state.leases.get(&id).copied())
                }
                LeaseRequest::End(id) => (id, Some(state.leases.remove(&id).unwrap_or_default())),
            };
            version.map(|version| Lease { id, version, term_ms: 3000 }).ok_or(Code::TransactionTooOld.into())
        };
        self.answer(result)
    }

    fn estimated_size(&self, range: KeyRange) -> Answer<u64> {
        let bytes =
            self.rows().into_iter().filter(|(key, _)| range.contains(key)).map(|(key, value)| key.len() + value.len());
        let bytes = bytes.sum::<usize>() as u64;
        self.answer(Ok(bytes))
    }

    fn split_points(&self, request: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        let keys = self.rows().into_iter().map(|(key, _)| key);
        let inside: Vec<Bytes> = keys.filter(|key| *key > request.range.begin && *key < request.range.end).collect();
        self.answer(Ok(inside))
    }

    fn addresses_for_key(&self, _key: Bytes) -> Answer<Vec<String>> {
        self.answer(Ok(vec!["127.0.0.1:4500".to_owned()]))
    }

    /// Shards as a test has set them, at most two in an answer.
    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        let LocationsRequest { range, .. } = request;
        let boundaries = self.lock().boundaries.clone();
        let first = boundaries.partition_point(|begin| *begin <= range.begin).saturating_sub(1);
        let inside: Vec<&Bytes> = boundaries[first..].iter().take_while(|begin| **begin < range.end).collect();
        let location =
            |begin: &&Bytes| Location { begin: (*begin).clone(), addresses: vec!["127.0.0.1:4500".to_owned()] };
        let locations = inside.iter().take(2).map(location).collect();
        self.answer(Ok(Locations { locations, more: inside.len() > 2, coordinator: None }))
    }

    fn status(&self) -> Answer<String> {
        self.answer(Ok("{\"client\":{}}".to_owned()))
    }
}
