//! The way of data into the storage server: batch after batch from the log.
//!
//! A process that joins begins with nothing, at the version at which its tag was made: from there on the log keeps what it needs. What it is to hold comes to it by moves
//! (see [`holding`](crate::shards::holding)), which it fetches itself ([`moves`](super::moves)).
//!
//! **Beginning.** An empty batch at the tag's version makes that the oldest readable one. Until the process first tells the log that it has made something durable, a restart begins
//! there again, with an empty engine; before it tells that, it writes down that it has begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result, Runtime, Version};
use futures_util::future::{Either, select};

use super::identity::Identity;
use super::rejoin::Again;
use super::{LOOK, Shared};
use crate::feed::Feed;
use crate::log::Log;
use crate::shards::holding::Holding;
use crate::signal::lock;
use crate::storage::ApplyBatch;
use ferrisdb_core::planted::{Bug, planted};

/// A storage server that has little to write makes durable what it has at least so often: otherwise the log could not forget what others have long written.
const FLUSH: Duration = Duration::from_secs(10);

/// Begins the storage server if need be, then takes batches to it until the process stops. A failure of storage ends it, and says so.
pub(super) async fn run(shared: Arc<Shared>) {
    if let Err(error) = begin(&shared).await {
        // Whoever asks for another tag begins again.
        if !shared.has_lost_its_tag() {
            fail(&shared, &error);
        }
        return;
    }
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
                    load: Some(Arc::clone(&shared.load)),
                    keeper: Some(Arc::clone(&shared.keeper)),
                };
                match feed.run().await {
                    Ok(()) => return,
                    Err(error) if shared.storage.failure().is_some() => return fail(&shared, &error),
                    Err(_) if shared.has_lost_its_tag() => return shared.stop_serving(),
                    Err(error) if error.code() == Code::InternalError => return fail(&shared, &error),
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

/// What was fetched in this life.
#[derive(Debug, Default)]
pub(super) struct Copied {
    rows: AtomicU64,
    bytes: AtomicU64,
    of_bytes: AtomicU64,
}

impl Copied {
    /// A chunk has come.
    pub(super) fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// About so much more is to come.
    pub(super) fn expect(&self, bytes: u64) {
        self.of_bytes.fetch_add(bytes, Ordering::Relaxed);
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

    /// True while the storage server applies nothing because its disk has no space for what it has in memory.
    pub(super) fn storage_takes_nothing(&self) -> bool {
        self.storage.is_full() && self.storage.is_stalled()
    }

    /// True while nothing new comes into the storage server here, because the disk is full: others know more.
    pub(super) fn stands_still(&self) -> bool {
        self.log.waits_for_space() || self.storage_takes_nothing()
    }

    /// What is stored is worth nothing any more.
    pub(super) fn stop_serving(&self) {
        self.has_begun.store(false, Ordering::SeqCst);
        self.keeper.hold_nothing();
        self.fire_all_watches();
    }

    /// Whoever watches a key here hears nothing more of it here: they are to look, and to watch it elsewhere.
    fn fire_all_watches(&self) {
        let all = KeyRange::new(Bytes::new(), Bytes::from_static(SYSTEM_END));
        self.storage.fire_watches(&all, self.storage.applied_version());
    }
}

fn fail(shared: &Shared, error: &Error) {
    lock(&shared.failure).get_or_insert(error.clone());
    shared.fire_all_watches();
}

/// An empty storage server begins where its tag does.
async fn begin(shared: &Arc<Shared>) -> Result<()> {
    if shared.has_begun.load(Ordering::SeqCst) {
        return Ok(());
    }
    let version = loop {
        let version = shared.log.with_state(|state| state.popped(shared.identity.tag));
        if let Some(version) = version {
            break version;
        }
        if shared.has_lost_its_tag() {
            return Err(Error::with(Code::ProcessBehind, "the tag of this storage server was taken"));
        }
        shared.jobs.sleep(LOOK).await;
    };
    let owner_state = Some(Holding::default().encode());
    let batch = ApplyBatch { version, horizon: version, owner_state, ..ApplyBatch::default() };
    // First: whoever waits here for a version below is woken by the batch, and is to hear that others have it.
    shared.readable_from.store(version.get(), Ordering::SeqCst);
    shared.storage.apply(batch).await?;
    shared.keeper.begin(version);
    shared.has_begun.store(true, Ordering::SeqCst);
    Ok(())
}

/// Tells the log about every flush, and has one follow if there was none for long, until storage ends.
pub(super) async fn pop(shared: Arc<Shared>, is_settled: bool) {
    while !shared.has_begun.load(Ordering::SeqCst) {
        shared.jobs.sleep(LOOK).await;
    }
    let tag = shared.identity.tag;
    let mut flushed = shared.storage.flushed_version();
    // What was flushed in the last life the log may forget too, unless a power cut could still take that flush back: then the first flush of this life says so.
    if is_settled && shared.identity.is_complete {
        shared.log.pop(tag, flushed);
    }
    let mut is_written_down = shared.identity.is_complete;
    loop {
        let next = std::pin::pin!(shared.storage.next_flush(flushed));
        match select(next, shared.jobs.sleep(FLUSH)).await {
            Either::Left((Ok(version), _)) => flushed = version,
            Either::Left((Err(_), _)) => return,
            Either::Right(_) => {
                if shared.storage.applied_version() > flushed {
                    // Its failure is told by whoever waits for the next one.
                    drop(shared.storage.flush().await);
                }
                continue;
            }
        }
        if !is_written_down {
            let readable_from = Version::from_u64(shared.readable_from.load(Ordering::SeqCst));
            let identity = Identity { is_complete: true, readable_from, ..shared.identity };
            if let Err(error) = identity.write(shared.jobs.env().fs.as_ref(), &shared.dir) {
                return fail(&shared, &error);
            }
            is_written_down = true;
            shared.is_lasting.store(true, Ordering::SeqCst);
        }
        if planted(Bug::PopBeforeFlush) {
            flushed = shared.storage.applied_version();
        }
        shared.log.pop(tag, flushed);
    }
}
