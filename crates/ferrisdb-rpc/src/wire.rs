//! Between the types of [`api`](crate::api) and the messages of `proto/ferrisdb.proto`.
//!
//! Out: infallible, and byte strings are moved, not copied. In: everything is checked, because it comes from a network: a field that
//! must be there and is not, a version above 56 bits, an unknown kind of mutation become a [`ProtocolError`], never a panic.

use bytes::Bytes;
use ferrisdb_core::{Code, Error, KeyRange, KeySelector, KeyValue, Limits, Mutation, MutationKind, Result, Version};

use crate::api::{
    BeginRequest, Begun, CommitId, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest,
    Lease, LeaseRequest, Location, Locations, LocationsRequest, Priority, ResolveRequest, Rows, SplitPointsRequest,
    WatchRequest,
};
use crate::frame::ProtocolError;

/// The messages as prost makes them.
#[expect(unreachable_pub, reason = "generated; the documentation is in proto/ferrisdb.proto")]
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/ferrisdb.rs"));
}

pub(crate) use proto::reply::Answer as Body;
pub(crate) use proto::request::Question;

/// A message that can carry a piece of a long one of its own kind.
pub(crate) trait Envelope: prost::Message + Default {
    fn from_part(part: proto::Part) -> Self;
}

impl Envelope for proto::Request {
    fn from_part(part: proto::Part) -> Self {
        proto::Request { id: 0, question: Some(Question::Part(part)) }
    }
}

impl Envelope for proto::Reply {
    fn from_part(part: proto::Part) -> Self {
        proto::Reply { id: 0, answer: Some(Body::Part(part)) }
    }
}

type Checked<T> = std::result::Result<T, ProtocolError>;

fn version(number: u64) -> Checked<Version> {
    Version::new(number).ok_or(ProtocolError::Field("a version above 2^56 - 1"))
}

fn required<T>(field: Option<T>, what: &'static str) -> Checked<T> {
    field.ok_or(ProtocolError::Field(what))
}

fn range_out(range: KeyRange) -> proto::KeyRange {
    proto::KeyRange { begin: range.begin, end: range.end }
}

fn range_in(range: proto::KeyRange) -> KeyRange {
    KeyRange { begin: range.begin, end: range.end }
}

// ---- questions -------------------------------------------------------------------------------------------------------

fn priority_out(priority: Priority) -> i32 {
    let priority = match priority {
        Priority::Batch => proto::Priority::Batch,
        Priority::Default => proto::Priority::Default,
        Priority::Immediate => proto::Priority::Immediate,
    };
    priority.into()
}

fn priority_in(priority: i32, what: &'static str) -> Checked<Priority> {
    match proto::Priority::try_from(priority) {
        Ok(proto::Priority::Batch) => Ok(Priority::Batch),
        Ok(proto::Priority::Default) => Ok(Priority::Default),
        Ok(proto::Priority::Immediate) => Ok(Priority::Immediate),
        Err(_) => Err(ProtocolError::Field(what)),
    }
}

pub(crate) fn begin_out(request: BeginRequest) -> Question {
    let priority = priority_out(request.priority);
    Question::Begin(proto::Begin { transactions: request.transactions, priority })
}

pub(crate) fn begin_in(begin: proto::Begin) -> Checked<BeginRequest> {
    let priority = priority_in(begin.priority, "begin: an unknown priority")?;
    if begin.transactions == 0 {
        return Err(ProtocolError::Field("begin: no transactions"));
    }
    Ok(BeginRequest { transactions: begin.transactions, priority })
}

pub(crate) fn get_out(request: GetRequest) -> Question {
    Question::Get(proto::Get { key: request.key, version: request.version.get() })
}

pub(crate) fn get_in(get: proto::Get) -> Checked<GetRequest> {
    Ok(GetRequest { key: get.key, version: version(get.version)? })
}

pub(crate) fn get_key_out(request: GetKeyRequest) -> Question {
    let GetKeyRequest { selector, end, version } = request;
    Question::GetKey(proto::GetKey {
        key: selector.key,
        or_equal: selector.or_equal,
        offset: selector.offset,
        end,
        version: version.get(),
    })
}

pub(crate) fn get_key_in(get: proto::GetKey) -> Checked<GetKeyRequest> {
    Ok(GetKeyRequest {
        selector: KeySelector { key: get.key, or_equal: get.or_equal, offset: get.offset },
        end: get.end,
        version: version(get.version)?,
    })
}

pub(crate) fn get_range_out(request: GetRangeRequest) -> Question {
    Question::GetRange(proto::GetRange {
        begin: request.range.begin,
        end: request.range.end,
        version: request.version.get(),
        limit: request.limit,
        target_bytes: request.target_bytes,
        reverse: request.reverse,
    })
}

pub(crate) fn get_range_in(get: proto::GetRange) -> Checked<GetRangeRequest> {
    Ok(GetRangeRequest {
        range: KeyRange { begin: get.begin, end: get.end },
        version: version(get.version)?,
        limit: get.limit,
        target_bytes: get.target_bytes,
        reverse: get.reverse,
    })
}

fn commit_id_out(id: CommitId) -> proto::CommitId {
    proto::CommitId { client: id.client, counter: id.counter }
}

fn commit_id_in(id: proto::CommitId) -> CommitId {
    CommitId { client: id.client, counter: id.counter }
}

pub(crate) fn commit_out(request: CommitRequest) -> Question {
    let mutation = |mutation: Mutation| proto::Mutation {
        kind: mutation.kind.number().into(),
        key: mutation.key,
        value: mutation.value,
    };
    Question::Commit(proto::Commit {
        read_version: request.read_version.get(),
        read_conflicts: request.read_conflicts.into_iter().map(range_out).collect(),
        write_conflicts: request.write_conflicts.into_iter().map(range_out).collect(),
        mutations: request.mutations.into_iter().map(mutation).collect(),
        commit_id: request.id.map(commit_id_out),
        lowest_unanswered: request.lowest_unanswered,
        report_conflicting_keys: request.report_conflicting_keys,
        begins: request.begins.map(priority_out),
        lock_aware: request.lock_aware,
    })
}

pub(crate) fn commit_in(commit: proto::Commit) -> Checked<CommitRequest> {
    let mutation = |mutation: proto::Mutation| {
        let kind = u8::try_from(mutation.kind).ok().and_then(MutationKind::from_number);
        let kind = required(kind, "commit: an unknown kind of mutation")?;
        Ok(Mutation { kind, key: mutation.key, value: mutation.value })
    };
    Ok(CommitRequest {
        read_version: version(commit.read_version)?,
        read_conflicts: ranges_in(commit.read_conflicts)?,
        write_conflicts: ranges_in(commit.write_conflicts)?,
        mutations: commit.mutations.into_iter().map(mutation).collect::<Checked<_>>()?,
        id: commit.commit_id.map(commit_id_in),
        lowest_unanswered: commit.lowest_unanswered,
        report_conflicting_keys: commit.report_conflicting_keys,
        begins: commit.begins.map(|priority| priority_in(priority, "commit: an unknown priority")).transpose()?,
        lock_aware: commit.lock_aware,
    })
}

/// Conflict ranges. The resolver counts on their order, so that it is checked where they come in.
fn ranges_in(ranges: Vec<proto::KeyRange>) -> Checked<Vec<KeyRange>> {
    let ranges: Vec<KeyRange> = ranges.into_iter().map(range_in).collect();
    if ranges.iter().any(|range| range.begin > range.end) {
        return Err(ProtocolError::Field("commit: an inverted conflict range"));
    }
    if ranges.windows(2).any(|pair| pair[0].end > pair[1].begin) {
        return Err(ProtocolError::Field("commit: conflict ranges that are not sorted or overlap"));
    }
    Ok(ranges)
}

pub(crate) fn resolve_out(request: ResolveRequest) -> Question {
    Question::Resolve(proto::Resolve {
        commit_id: Some(commit_id_out(request.id)),
        read_version: request.read_version.get(),
    })
}

pub(crate) fn resolve_in(resolve: proto::Resolve) -> Checked<ResolveRequest> {
    Ok(ResolveRequest {
        id: commit_id_in(required(resolve.commit_id, "resolve: no commit id")?),
        read_version: version(resolve.read_version)?,
    })
}

pub(crate) fn watch_out(request: WatchRequest) -> Question {
    Question::Watch(proto::Watch { key: request.key, value: request.value, version: request.version.get() })
}

/// Its byte strings are copied: a watch may wait for hours, and must not keep the whole read in memory that it came with.
pub(crate) fn watch_in(watch: proto::Watch) -> Checked<WatchRequest> {
    Ok(WatchRequest {
        key: Bytes::copy_from_slice(&watch.key),
        value: watch.value.map(|value| Bytes::copy_from_slice(&value)),
        version: version(watch.version)?,
    })
}

pub(crate) fn lease_out(request: LeaseRequest) -> Question {
    use proto::lease_question::Question as Lease;
    let question = match request {
        LeaseRequest::Grant(version) => Lease::Grant(proto::GrantLease { version: version.map(Version::get) }),
        LeaseRequest::Renew(id) => Lease::Renew(id),
        LeaseRequest::End(id) => Lease::End(id),
    };
    Question::Lease(proto::LeaseQuestion { question: Some(question) })
}

pub(crate) fn lease_in(lease: proto::LeaseQuestion) -> Checked<LeaseRequest> {
    use proto::lease_question::Question as Lease;
    Ok(match required(lease.question, "lease: neither grant nor renew nor end")? {
        Lease::Grant(grant) => LeaseRequest::Grant(grant.version.map(version).transpose()?),
        Lease::Renew(id) => LeaseRequest::Renew(id),
        Lease::End(id) => LeaseRequest::End(id),
    })
}

pub(crate) fn estimated_size_out(range: KeyRange) -> Question {
    Question::EstimatedSize(range_out(range))
}

pub(crate) fn estimated_size_in(range: proto::KeyRange) -> KeyRange {
    range_in(range)
}

pub(crate) fn split_points_out(request: SplitPointsRequest) -> Question {
    Question::SplitPoints(proto::SplitPoints {
        begin: request.range.begin,
        end: request.range.end,
        part_bytes: request.part_bytes,
        limit: request.limit,
    })
}

pub(crate) fn split_points_in(split: proto::SplitPoints) -> Checked<SplitPointsRequest> {
    if split.part_bytes == 0 {
        return Err(ProtocolError::Field("split points: parts of no bytes"));
    }
    Ok(SplitPointsRequest {
        range: KeyRange { begin: split.begin, end: split.end },
        part_bytes: split.part_bytes,
        limit: split.limit,
    })
}

pub(crate) fn locations_out(request: LocationsRequest) -> Question {
    Question::Locations(proto::LocationsOf { begin: request.range.begin, end: request.range.end, limit: request.limit })
}

pub(crate) fn locations_in(of: proto::LocationsOf) -> LocationsRequest {
    LocationsRequest { range: KeyRange { begin: of.begin, end: of.end }, limit: of.limit }
}

// ---- answers ---------------------------------------------------------------------------------------------------------

/// What an answer's type looks like in a reply. Errors are a [`Body`] of their own.
pub(crate) trait Answered: Sized + Send + Unpin + 'static {
    fn out(self) -> Body;

    /// `Err(None)`: the reply is of another kind.
    fn from_body(body: Body) -> Checked<Self>;
}

const OTHER_KIND: ProtocolError = ProtocolError::Field("an answer of another kind than its question");

/// The reply to a question.
pub(crate) fn result_out<T: Answered>(result: Result<T>) -> Body {
    match result {
        Ok(answer) => answer.out(),
        Err(error) => Body::Error(error_out(&error)),
    }
}

/// What a reply says.
pub(crate) fn result_in<T: Answered>(body: Body) -> Checked<Result<T>> {
    match body {
        Body::Error(error) => Ok(Err(error_in(error)?)),
        body => T::from_body(body).map(Ok),
    }
}

pub(crate) fn error_out(error: &Error) -> proto::Error {
    proto::Error { code: error.code().number().into(), detail: error.detail().map(str::to_owned) }
}

/// A code that this program does not know comes from a newer one: it stays an error, and its number is told.
pub(crate) fn error_in(error: proto::Error) -> Checked<Error> {
    if error.code == 0 {
        return Err(ProtocolError::Field("an error without a code"));
    }
    let known = u16::try_from(error.code).ok().and_then(Code::from_number);
    Ok(match (known, error.detail) {
        (Some(code), None) => Error::new(code),
        (Some(code), Some(detail)) => Error::with(code, detail),
        (None, detail) => {
            let detail = detail.unwrap_or_else(|| "no detail".to_owned());
            Error::with(Code::UnknownError, format!("error {}, which this program does not know: {detail}", error.code))
        }
    })
}

impl Answered for Begun {
    fn out(self) -> Body {
        Body::Version(proto::Version { version: self.version.get(), is_locked: self.is_locked })
    }

    fn from_body(body: Body) -> Checked<Begun> {
        let Body::Version(begun) = body else { return Err(OTHER_KIND) };
        Ok(Begun { version: version(begun.version)?, is_locked: begun.is_locked })
    }
}

impl Answered for Version {
    fn out(self) -> Body {
        Body::Version(proto::Version { version: self.get(), is_locked: false })
    }

    fn from_body(body: Body) -> Checked<Version> {
        let Body::Version(changed) = body else { return Err(OTHER_KIND) };
        version(changed.version)
    }
}

impl Answered for Option<Bytes> {
    fn out(self) -> Body {
        Body::Value(proto::Value { value: self })
    }

    fn from_body(body: Body) -> Checked<Option<Bytes>> {
        let Body::Value(value) = body else { return Err(OTHER_KIND) };
        Ok(value.value)
    }
}

impl Answered for Bytes {
    fn out(self) -> Body {
        Body::Key(self)
    }

    fn from_body(body: Body) -> Checked<Bytes> {
        let Body::Key(key) = body else { return Err(OTHER_KIND) };
        Ok(key)
    }
}

impl Answered for Rows {
    fn out(self) -> Body {
        let row = |row: KeyValue| proto::KeyValue { key: row.key, value: row.value };
        Body::Rows(proto::Rows { rows: self.rows.into_iter().map(row).collect(), more: self.more })
    }

    fn from_body(body: Body) -> Checked<Rows> {
        let Body::Rows(rows) = body else { return Err(OTHER_KIND) };
        let row = |row: proto::KeyValue| KeyValue { key: row.key, value: row.value };
        Ok(Rows { rows: rows.rows.into_iter().map(row).collect(), more: rows.more })
    }
}

fn committed_out(committed: Committed) -> proto::outcome::Outcome {
    match committed {
        Committed::At { version, batch_index } => proto::outcome::Outcome::Committed(proto::Committed {
            version: version.get(),
            batch_index: batch_index.into(),
        }),
        Committed::Conflict { ranges } => proto::outcome::Outcome::Conflict(proto::Conflict { ranges }),
    }
}

impl Answered for Option<Committed> {
    fn out(self) -> Body {
        let outcome = self.map_or(proto::outcome::Outcome::Never(proto::Empty {}), committed_out);
        Body::Outcome(proto::Outcome { outcome: Some(outcome) })
    }

    fn from_body(body: Body) -> Checked<Option<Committed>> {
        let Body::Outcome(outcome) = body else { return Err(OTHER_KIND) };
        Ok(match required(outcome.outcome, "an outcome that is none")? {
            proto::outcome::Outcome::Never(_) => None,
            proto::outcome::Outcome::Conflict(conflict) => Some(Committed::Conflict { ranges: conflict.ranges }),
            proto::outcome::Outcome::Committed(committed) => Some(Committed::At {
                version: version(committed.version)?,
                batch_index: u16::try_from(committed.batch_index)
                    .map_err(|_| ProtocolError::Field("a batch index above 65,535"))?,
            }),
        })
    }
}

impl Answered for Committed {
    fn out(self) -> Body {
        Body::Outcome(proto::Outcome { outcome: Some(committed_out(self)) })
    }

    fn from_body(body: Body) -> Checked<Committed> {
        required(Option::from_body(body)?, "the outcome `never` of a commit")
    }
}

impl Answered for Lease {
    fn out(self) -> Body {
        Body::Lease(proto::Lease { id: self.id, version: self.version.get(), term_ms: self.term_ms })
    }

    fn from_body(body: Body) -> Checked<Lease> {
        let Body::Lease(lease) = body else { return Err(OTHER_KIND) };
        Ok(Lease { id: lease.id, version: version(lease.version)?, term_ms: lease.term_ms })
    }
}

impl Answered for u64 {
    fn out(self) -> Body {
        Body::Size(self)
    }

    fn from_body(body: Body) -> Checked<u64> {
        let Body::Size(size) = body else { return Err(OTHER_KIND) };
        Ok(size)
    }
}

impl Answered for Vec<Bytes> {
    fn out(self) -> Body {
        Body::Keys(proto::Keys { keys: self })
    }

    fn from_body(body: Body) -> Checked<Vec<Bytes>> {
        let Body::Keys(keys) = body else { return Err(OTHER_KIND) };
        Ok(keys.keys)
    }
}

impl Answered for Vec<String> {
    fn out(self) -> Body {
        Body::Addresses(proto::Addresses { addresses: self })
    }

    fn from_body(body: Body) -> Checked<Vec<String>> {
        let Body::Addresses(addresses) = body else { return Err(OTHER_KIND) };
        Ok(addresses.addresses)
    }
}

impl Answered for Locations {
    fn out(self) -> Body {
        let location = |of: Location| proto::Location { begin: of.begin, addresses: of.addresses };
        Body::Locations(proto::Locations {
            locations: self.locations.into_iter().map(location).collect(),
            more: self.more,
            coordinator: self.coordinator.unwrap_or_default(),
        })
    }

    fn from_body(body: Body) -> Checked<Locations> {
        let Body::Locations(found) = body else { return Err(OTHER_KIND) };
        if found.more && found.locations.len() < 2 {
            return Err(ProtocolError::Field("locations: more of them, but fewer than two"));
        }
        let location = |of: proto::Location| Location { begin: of.begin, addresses: of.addresses };
        Ok(Locations {
            locations: found.locations.into_iter().map(location).collect(),
            more: found.more,
            coordinator: Some(found.coordinator).filter(|address| !address.is_empty()),
        })
    }
}

impl Answered for String {
    fn out(self) -> Body {
        Body::Text(self)
    }

    fn from_body(body: Body) -> Checked<String> {
        let Body::Text(text) = body else { return Err(OTHER_KIND) };
        Ok(text)
    }
}

// ---- description -----------------------------------------------------------------------------------------------------

pub(crate) fn description_out(description: &Description) -> proto::Description {
    let limits = description.limits;
    proto::Description {
        cluster_id: Bytes::copy_from_slice(&description.cluster_id),
        limits: Some(proto::Limits {
            key_bytes: limits.key_bytes as u64,
            system_key_bytes: limits.system_key_bytes as u64,
            value_bytes: limits.value_bytes as u64,
            transaction_bytes: limits.transaction_bytes as u64,
            window_versions: limits.window_versions,
            watches: limits.watches as u64,
        }),
        connection_string: description.connection_string.clone(),
    }
}

pub(crate) fn description_in(description: proto::Description) -> Checked<Description> {
    let limits = required(description.limits, "a description without limits")?;
    let size =
        |number: u64| usize::try_from(number).map_err(|_| ProtocolError::Field("a limit above the address space"));
    Ok(Description {
        cluster_id: cluster_id_in(&description.cluster_id)?,
        limits: Limits {
            key_bytes: size(limits.key_bytes)?,
            system_key_bytes: size(limits.system_key_bytes)?,
            value_bytes: size(limits.value_bytes)?,
            transaction_bytes: size(limits.transaction_bytes)?,
            window_versions: limits.window_versions,
            watches: size(limits.watches)?,
        },
        connection_string: description.connection_string,
    })
}

pub(crate) fn cluster_id_in(bytes: &[u8]) -> Checked<[u8; 16]> {
    bytes.try_into().map_err(|_| ProtocolError::Field("a cluster id that is not sixteen bytes"))
}
