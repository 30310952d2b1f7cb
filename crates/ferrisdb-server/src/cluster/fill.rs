//! The way of data into the storage server: first all of it, if it has none, then batch after batch from the log.
//!
//! **Filling.** The tag is registered first, so the log keeps for it whatever is committed from then on. Then a read version is asked for and leased, and everything
//! is read at that version `w` from a process that has it, in chunks. The `k`-th chunk is applied at version `k`, far below `w`: a storage server that is being
//! filled answers nothing, so nobody sees the difference, and no chunk must fit anything. A last, empty batch at `w` makes `w` the oldest readable version.
//! When all that is flushed, the process writes down that it is complete; until then a crash makes it start over. From `w` on the log has the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Clock, Code, Error, KeyRange, Mutation, Result, Runtime, Version};
use ferrisdb_rpc::api::{BeginRequest, GetRangeRequest, Lease, LeaseRequest, Priority, Rows};

use super::identity::Identity;
use super::messages::Message;
use super::rejoin::Again;
use super::{LOOK, Shared};
use crate::feed::{Feed, pop_flushed};
use crate::log::Log;
use crate::signal::lock;
use crate::storage::ApplyBatch;

/// Bytes of rows that are asked for at once.
const CHUNK_BYTES: u32 = 1_000_000;
/// The wait after an attempt that did not go well.
const AGAIN: Duration = Duration::from_millis(500);

/// Fills the storage server if need be, then takes batches to it until the process stops. A failure of storage ends it, and says so.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut next_chunk = 1;
    while !shared.is_complete.load(Ordering::SeqCst) {
        // What failed on the way (a leader that went, a lease that ended) is begun again.
        match fill(&shared, &mut next_chunk).await {
            Ok(()) => break,
            Err(error) if shared.storage.failure().is_some() => return fail(&shared, &error),
            // Whoever asks for another tag begins again.
            Err(_) if shared.has_lost_its_tag() => return,
            Err(error) => {
                *lock(&shared.filling) = Some(error);
                shared.jobs.sleep(AGAIN).await;
            }
        }
    }
    *lock(&shared.filling) = None;
    loop {
        let from = shared.storage.applied_version();
        match shared.log.subscribe(shared.identity.tag, from) {
            Ok(subscription) => {
                let mut feed = Feed {
                    subscription,
                    storage: shared.storage.clone(),
                    progress: Arc::clone(&shared.progress),
                    counted_from: Version::ZERO,
                    readable_from: Version::from_u64(shared.readable_from.load(Ordering::SeqCst)),
                };
                match feed.run().await {
                    Ok(()) => return,
                    Err(error) if shared.storage.failure().is_some() => return fail(&shared, &error),
                    Err(_) if shared.has_lost_its_tag() => return shared.stop_serving(),
                    Err(_) => {}
                }
            }
            Err(_) if shared.has_lost_its_tag() => return shared.stop_serving(),
            // After a restart the replica has yet to come as far as storage is.
            Err(error) => {
                let (last, popped) = shared.log.with_state(|state| (state.last(), state.popped(shared.identity.tag)));
                if popped.is_some_and(|popped| popped > from && popped <= last) {
                    let detail = format!(
                        "{} holds data up to version {from} only, but had told the cluster that it holds version {}: its disk went back to an \
                         earlier state",
                        shared.dir.display(),
                        popped.unwrap_or_default(),
                    );
                    shared.stop_serving();
                    if shared.log.view().peers.len() > 1 {
                        return shared.begin_again(Again::AsNew(detail));
                    }
                    return fail(
                        &shared,
                        &Error::with(Code::IoError, format!("{detail}, and nobody else has it: {error}")),
                    );
                }
            }
        }
        shared.jobs.sleep(LOOK).await;
    }
}

/// How far a copy is.
#[derive(Debug, Default)]
pub(super) struct Copied {
    rows: AtomicU64,
    bytes: AtomicU64,
    of_bytes: AtomicU64,
}

impl Copied {
    fn begin(&self, of_bytes: u64) {
        self.rows.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.of_bytes.store(of_bytes, Ordering::Relaxed);
    }

    fn add(&self, rows: &Rows) {
        let bytes: usize = rows.rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        self.rows.fetch_add(rows.rows.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Rows, bytes, and of about how many bytes.
    pub(super) fn numbers(&self) -> (u64, u64, u64) {
        (self.rows.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed), self.of_bytes.load(Ordering::Relaxed))
    }
}

impl Shared {
    /// True if this replica of the log knows that the storage server's tag was taken.
    pub(super) fn has_lost_its_tag(&self) -> bool {
        !planted(Bug::DroppedTagServes) && self.registry().is_ok_and(|registry| registry.is_dropped(self.identity.tag))
    }

    /// What is stored is worth nothing any more.
    pub(super) fn stop_serving(&self) {
        self.is_complete.store(false, Ordering::SeqCst);
    }
}

fn fail(shared: &Shared, error: &Error) {
    lock(&shared.failure).get_or_insert(error.clone());
}

/// Tells the log about every flush, once everything is there.
pub(super) async fn pop(shared: Arc<Shared>, is_settled: bool) {
    while !shared.is_complete.load(Ordering::SeqCst) {
        shared.jobs.sleep(LOOK).await;
    }
    let log: Arc<dyn Log> = Arc::new(shared.log.clone());
    pop_flushed(shared.storage.clone(), log, shared.identity.tag, is_settled).await;
}

/// One attempt. `next_chunk` is the version of the next chunk: what earlier attempts wrote lies below it.
async fn fill(shared: &Arc<Shared>, next_chunk: &mut u64) -> Result<()> {
    // Whatever is committed once this replica knows of the tag is kept for it; so must be all above the version that is read below.
    while shared.log.with_state(|state| state.popped(shared.identity.tag)).is_none() {
        if shared.has_lost_its_tag() {
            return Err(Error::with(Code::ProcessBehind, "the tag of this storage server was taken"));
        }
        shared.jobs.sleep(LOOK).await;
    }
    let request = BeginRequest { transactions: 1, priority: Priority::Immediate };
    let version = shared.at_coordinator(|endpoint| endpoint.begin(request)).await?.version;
    let grant = LeaseRequest::Grant(Some(version));
    let lease = shared.at_coordinator(|endpoint| endpoint.lease(grant)).await?;
    let filled = copy(shared, lease, next_chunk).await;
    // Otherwise it ends by itself.
    drop(shared.at_coordinator(|endpoint| endpoint.lease(LeaseRequest::End(lease.id))).await);
    filled?;
    let flushed = shared.storage.flush().await?;
    if flushed < version {
        return Err(Error::with(Code::InternalError, format!("a flush ended at {flushed}, below {version}")));
    }
    let fs = shared.jobs.env().fs.as_ref();
    Identity { is_complete: true, readable_from: version, ..shared.identity }.write(fs, &shared.dir)?;
    let complete = Message::Complete { process: shared.identity.process, tag: shared.identity.tag }.encode();
    while shared.at_coordinator(|endpoint| endpoint.message(complete.clone())).await.is_err() {
        shared.jobs.sleep(AGAIN).await;
    }
    shared.readable_from.store(version.get(), Ordering::SeqCst);
    shared.is_complete.store(true, Ordering::SeqCst);
    Ok(())
}

async fn copy(shared: &Arc<Shared>, lease: Lease, next_chunk: &mut u64) -> Result<()> {
    let version = lease.version;
    let third = Duration::from_millis(lease.term_ms / 3);
    let mut renewed = shared.jobs.now();
    // What an earlier attempt left.
    let all = Mutation::clear_range(Bytes::new(), Bytes::from_static(SYSTEM_END));
    apply_chunk(shared, vec![all], version, next_chunk).await?;
    let mut begin = Bytes::new();
    // Only for people: how much there is to copy, about.
    let everything = KeyRange { begin: Bytes::new(), end: Bytes::from_static(SYSTEM_END) };
    let estimate = shared.at_coordinator(|endpoint| endpoint.estimated_size(everything.clone())).await;
    shared.copied.begin(estimate.unwrap_or_default());
    loop {
        if shared.jobs.now().saturating_sub(renewed) >= third {
            shared.at_coordinator(|endpoint| endpoint.lease(LeaseRequest::Renew(lease.id))).await?;
            renewed = shared.jobs.now();
        }
        let range = KeyRange { begin: begin.clone(), end: Bytes::from_static(SYSTEM_END) };
        let request = GetRangeRequest { range, version, limit: 0, target_bytes: CHUNK_BYTES, reverse: false };
        let rows = shared.at_coordinator(|endpoint| endpoint.get_range(request.clone())).await?;
        shared.copied.add(&rows);
        if let Some(last) = rows.rows.last() {
            begin = [&last.key[..], b"\0"].concat().into();
        }
        let chunk = rows.rows.into_iter().map(|row| Mutation::set(row.key, row.value)).collect();
        apply_chunk(shared, chunk, version, next_chunk).await?;
        if !rows.more {
            break;
        }
    }
    let end = ApplyBatch { version, horizon: version, ..ApplyBatch::default() };
    shared.storage.apply(end).await
}

async fn apply_chunk(shared: &Shared, mutations: Vec<Mutation>, below: Version, next_chunk: &mut u64) -> Result<()> {
    let version = Version::from_u64(*next_chunk);
    if version >= below {
        return Err(Error::with(Code::InternalError, format!("{next_chunk} chunks do not fit below version {below}")));
    }
    *next_chunk += 1;
    shared.storage.apply(ApplyBatch { version, mutations, ..ApplyBatch::default() }).await
}
