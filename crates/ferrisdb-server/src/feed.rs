//! From the log to storage, and back: [`Feed`] takes batches to the storage server, [`pop_flushed`] tells the log what it may forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Code, Result, Version};

use crate::log::{Delivery, Log, Subscription, Tag};
use crate::shards::keeper::Keeper;
use crate::shards::load::Load;
use crate::storage::{ApplyBatch, StorageServer};

/// How many bytes of mutations the batches have that storage has applied in this epoch, whoever needs them.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) bytes: AtomicU64,
}

/// Takes batches from the log to storage.
pub(crate) struct Feed {
    pub(crate) subscription: Box<dyn Subscription>,
    pub(crate) storage: StorageServer,
    pub(crate) progress: Arc<Progress>,
    /// Only what is above this counts as progress.
    pub(crate) counted_from: Version,
    /// What there was below this version storage has never seen: leases of such versions are not for it to keep, or what it would answer at them were wrong.
    pub(crate) readable_from: Version,
    /// Where it is noted how much is written to which keys, if anybody wants to know.
    pub(crate) load: Option<Arc<Load>>,
    /// What is between the log and storage, if storage may hold less than everything.
    pub(crate) keeper: Option<Arc<Keeper>>,
}

impl Feed {
    async fn next(&mut self) -> Result<Delivery> {
        std::future::poll_fn(|context| self.subscription.poll_next(context)).await
    }

    pub(crate) async fn catch_up(&mut self, last: Version) -> Result<()> {
        while self.storage.applied_version() < last {
            let delivery = self.next().await?;
            self.apply(delivery).await?;
        }
        Ok(())
    }

    /// Until the log or storage ends. An error is storage's: a log that ends has told its own clients.
    pub(crate) async fn run(&mut self) -> Result<()> {
        loop {
            match self.next().await {
                Ok(delivery) => match self.apply(delivery).await {
                    Err(error) if error.code() == Code::ConnectionFailed => return Ok(()),
                    applied => applied?,
                },
                Err(error) if error.code() == Code::OperationCancelled => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn apply(&mut self, mut delivery: Delivery) -> Result<()> {
        let leased = &mut delivery.leased;
        if leased.first().is_some_and(|&first| first < self.readable_from) {
            *leased = leased.iter().copied().filter(|&version| version >= self.readable_from).collect();
        }
        let (version, bytes) = (delivery.version, delivery.batch_bytes);
        if let Some(load) = &self.load {
            load.written(&delivery.mutations);
        }
        match &self.keeper {
            None => {
                let Delivery { horizon, leased, mutations, owner_state, .. } = delivery;
                self.storage.apply(ApplyBatch { version, horizon, leased, mutations, owner_state }).await?;
            }
            Some(keeper) => {
                let (batch, next) = keeper.prepare(delivery)?;
                self.storage.apply(batch).await?;
                next.lost.iter().for_each(|range| self.storage.fire_watches(range, version));
                keeper.applied(next);
            }
        }
        if version > self.counted_from {
            self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Tells the log about every flush, until storage ends.
pub(crate) async fn pop_flushed(storage: StorageServer, log: Arc<dyn Log>, tag: Tag, is_settled: bool) {
    let mut flushed = storage.flushed_version();
    // Whatever was flushed in the last life the log may forget too, unless a power cut could still take that flush back. In that case the first
    // flush of this life says so: it has written all that the manifest holds anew.
    if is_settled {
        log.pop(tag, flushed);
    }
    while let Ok(version) = storage.next_flush(flushed).await {
        flushed = version;
        if planted(Bug::PopBeforeFlush) {
            flushed = storage.applied_version();
        }
        log.pop(tag, flushed);
    }
}
