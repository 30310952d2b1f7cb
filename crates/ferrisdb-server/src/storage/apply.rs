//! Applying a batch: from the mutations of one version to one write of the engine.
//!
//! 1. Folding: mutations in order become at most one value for each key and a set of cleared ranges that do not overlap. An atomic operation
//!    needs the value before it: from the mutations so far, or from the engine. Clears of single keys become tombstones of keys:
//!    range tombstones cost every reader something.
//! 2. The write, at the batch's version, with leases and owner's state if they changed. Here the engine may be full; then it waits.
//! 3. Leases, floor, watches, waiters. Nothing can fail or wait any more, so that a version is applied completely or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::Poll;

use ferrisdb_core::key::printable;
use ferrisdb_core::mutation::apply as apply_operation;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, Mutation, MutationKind, Result, Runtime, Version};
use ferrisdb_storage::{Durability, Engine, Error as EngineError, Submitted, WriteBatch, WriteOptions};

use super::failure::engine_error;
use super::state::KeptState;
use super::{ApplyBatch, Shared};

/// What whoever applies remembers from batch to batch.
pub(super) struct ApplyState {
    /// What was there when the role was opened.
    recovered: Version,
    /// What was last given to the engine to keep.
    kept: KeptState,
    /// The list that `pinned` was last made from, to see at once that it is the same.
    leased: Arc<[Version]>,
    /// Leased versions that are pinned in the engine.
    pinned: BTreeSet<Version>,
    /// The flush that the sample has been told of.
    flushed: Version,
}

impl ApplyState {
    pub(super) fn new(recovered: Version, kept: KeptState) -> ApplyState {
        let pinned = kept.leased.iter().copied().collect();
        ApplyState { recovered, leased: kept.leased.clone().into(), kept, pinned, flushed: recovered }
    }
}

/// The right to apply, until dropped.
struct Turn<'a> {
    is_applying: &'a AtomicBool,
    is_stalled: &'a AtomicBool,
}

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared) -> Result<Turn<'a>> {
        if shared.is_applying.swap(true, Ordering::Acquire) {
            return Err(Error::with(Code::InternalError, "two callers apply batches to one storage server"));
        }
        Ok(Turn { is_applying: &shared.is_applying, is_stalled: &shared.is_stalled })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.is_stalled.store(false, Ordering::Relaxed);
        self.is_applying.store(false, Ordering::Release);
    }
}

impl Shared {
    fn apply_state(&self) -> MutexGuard<'_, ApplyState> {
        self.apply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn apply(&self, batch: ApplyBatch) -> Result<()> {
        self.check()?;
        let turn = Turn::take(self)?;
        let applied = self.applied();
        if batch.version <= applied {
            if batch.version <= self.apply_state().recovered {
                return Ok(());
            }
            let detail = format!("version {} was given to a storage server that has applied {applied}", batch.version);
            return Err(Error::with(Code::InternalError, detail));
        }
        let mut fold = Fold::default();
        for mutation in &batch.mutations {
            fold.add(mutation, |key| self.value_before(key), self.options.value_bytes)?;
        }
        let mut write = WriteBatch::with_capacity(batch.mutations.iter().map(|mutation| mutation.bytes() + 16).sum());
        let kept = self.apply_state().changed(&batch);
        if let Some(kept) = &kept {
            write.set_owner_state(&kept.encode()?);
        }
        fold.write_to(&mut write);
        self.write(write, batch.version, &turn).await?;

        // No wait and no failure from here on.
        let flushed = {
            let mut state = self.apply_state();
            state.move_window(&self.engine, batch.horizon, &batch.leased);
            if let Some(kept) = kept {
                state.kept = kept;
            }
            let flushed = self.news.flushed();
            (std::mem::replace(&mut state.flushed, flushed) != flushed).then_some(flushed)
        };
        self.take_sample(&fold, batch.version, flushed);
        self.applied.store(batch.version.get(), Ordering::Release);
        // With the one in `Place::arm`: either the watch's read sees this batch, or it is seen here.
        fence(Ordering::SeqCst);
        if !self.watches.is_empty() {
            let writes = fold.points.iter().map(|(key, value)| (key, value.as_ref()));
            let cleared = if planted(Bug::RangeClearWakesNoWatch) { &BTreeMap::new() } else { &fold.cleared };
            self.watches.applied(batch.version, writes, cleared.iter(), |key| fold.points.contains_key(key));
        }
        self.waiters.advance(batch.version);
        Ok(())
    }

    /// What a key has before the batch that is being applied: nobody else writes, so that is the newest visible version.
    fn value_before(&self, key: &Bytes) -> Result<Option<Bytes>> {
        let value = self.engine.get(key).map_err(|error| {
            self.news.note(&error);
            engine_error(&error)
        })?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Writes the batch, as soon as the engine takes it.
    async fn write(&self, mut write: WriteBatch, version: Version, turn: &Turn<'_>) -> Result<()> {
        let options = WriteOptions { durability: Durability::Buffered, version: Some(version) };
        loop {
            self.check()?;
            match self.engine.submit(write, options) {
                Ok(Submitted::Written(ticket)) => {
                    // Nobody else writes, so that nobody is before it.
                    debug_assert!(self.engine.visible_version() >= version);
                    drop(ticket);
                    turn.is_stalled.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(Submitted::Stalled { batch, retry_after }) => {
                    write = batch;
                    turn.is_stalled.store(true, Ordering::Relaxed);
                    match retry_after {
                        Some(delay) => self.runtime.sleep(delay).await,
                        None => self.writable().await,
                    }
                }
                Err(error) => {
                    if matches!(error, EngineError::Poisoned { .. }) {
                        self.news.fail(engine_error(&error));
                    }
                    return Err(engine_error(&error));
                }
            }
        }
    }

    /// Ready when the engine may have room, or has ended.
    async fn writable(&self) {
        std::future::poll_fn(|context| {
            let is_over = self.engine.poll_writable(context.waker());
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn take_sample(&self, fold: &Fold, version: Version, flushed: Option<Version>) {
        let mut sample = self.sample();
        if let Some(flushed) = flushed {
            sample.forget_flushed(flushed);
        }
        fold.cleared.iter().for_each(|(begin, end)| sample.clear_range(begin, end));
        for (key, value) in &fold.points {
            match value {
                Some(value) => sample.set(key, value.len(), version),
                None => sample.clear(key),
            }
        }
    }
}

impl ApplyState {
    /// What is to be kept from the batch on, if that differs from what is kept.
    fn changed(&self, batch: &ApplyBatch) -> Option<KeptState> {
        if batch.owner_state.is_none() && *batch.leased == *self.kept.leased {
            return None;
        }
        let owner = batch.owner_state.clone().or_else(|| self.kept.owner.clone());
        Some(KeptState { leased: batch.leased.to_vec(), owner })
    }

    /// Pins what is leased now, moves the floor, and only then gives up what was leased: no version between is lost.
    fn move_window(&mut self, engine: &Engine, horizon: Version, leased: &Arc<[Version]>) {
        let is_same = Arc::ptr_eq(&self.leased, leased) && self.pinned.len() == leased.len();
        if !is_same {
            for &version in leased.iter() {
                // One that cannot be pinned was granted too late, and is not readable: its reader is told so.
                if !self.pinned.contains(&version) && engine.pin(version).is_ok() {
                    self.pinned.insert(version);
                }
            }
        }
        // It costs an atomic operation, so each batch does it. It fails only on a closed engine.
        if engine.set_oldest_readable_version(horizon).is_err() {
            return;
        }
        if !is_same {
            let wanted: BTreeSet<Version> = leased.iter().copied().collect();
            self.pinned.retain(|version| wanted.contains(version) || !engine.unpin(*version));
            self.leased = Arc::clone(leased);
        }
    }
}

/// Mutations of one version, as far as they have been folded.
///
/// Invariants: no two cleared ranges overlap or touch; a key in `points` without a value is in no cleared range.
#[derive(Debug, Default)]
struct Fold {
    /// The keys that were written or cleared, with what they have now.
    points: BTreeMap<Bytes, Option<Bytes>>,
    /// Begin and end. Cleared before everything in `points`.
    cleared: BTreeMap<Bytes, Bytes>,
}

impl Fold {
    /// `stored` says what a key has in the engine, where that is needed.
    fn add(
        &mut self,
        mutation: &Mutation,
        stored: impl Fn(&Bytes) -> Result<Option<Bytes>>,
        value_bytes: usize,
    ) -> Result<()> {
        let Mutation { kind, key, value } = mutation;
        match kind {
            MutationKind::Set => self.set(key, Some(value.clone())),
            MutationKind::ClearRange => self.clear(key, value),
            MutationKind::SetVersionstampedKey | MutationKind::SetVersionstampedValue => {
                let detail =
                    format!("a versionstamp of key {} was not filled in before it was applied", printable(key));
                return Err(Error::with(Code::InternalError, detail));
            }
            kind => {
                let existing = self.get(key, stored)?;
                let result = apply_operation(*kind, existing.as_ref(), value, value_bytes);
                if result != existing {
                    self.set(key, result);
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &Bytes, value: Option<Bytes>) {
        if value.is_none() && self.is_cleared(key) {
            self.points.remove(key);
        } else {
            self.points.insert(key.clone(), value);
        }
    }

    /// An empty or inverted range has no keys.
    fn clear(&mut self, begin: &Bytes, end: &Bytes) {
        if begin >= end {
            return;
        }
        if end.len() == begin.len() + 1 && end.last() == Some(&0) && end.starts_with(begin) {
            return self.set(begin, None);
        }
        while let Some((key, _)) = self.points.range(begin.clone()..end.clone()).next() {
            let key = key.clone();
            self.points.remove(&key);
        }
        let (mut begin, mut end) = (begin.clone(), end.clone());
        // From the last that begins at or before the new one's end, back to the first that touches it.
        while let Some((first, last)) = self.cleared.range(..=end.clone()).next_back()
            && *last >= begin
        {
            let first = first.clone();
            let last = self.cleared.remove(&first).expect("it was found a moment ago");
            begin = begin.min(first);
            end = end.max(last);
        }
        self.cleared.insert(begin, end);
    }

    fn is_cleared(&self, key: &Bytes) -> bool {
        self.cleared.range::<Bytes, _>(..=key).next_back().is_some_and(|(_, end)| key < end)
    }

    /// The value after the mutations so far.
    fn get(&self, key: &Bytes, stored: impl Fn(&Bytes) -> Result<Option<Bytes>>) -> Result<Option<Bytes>> {
        if let Some(value) = self.points.get(key) {
            return Ok(value.clone());
        }
        if self.is_cleared(key) {
            return Ok(None);
        }
        stored(key)
    }

    /// In the engine's canonical order, so that it needs no sorting there.
    fn write_to(&self, write: &mut WriteBatch) {
        for (begin, end) in &self.cleared {
            write.delete_range(begin, end);
        }
        for (key, value) in &self.points {
            if planted(Bug::ClearAfterSet) && self.is_cleared(key) {
                continue;
            }
            match value {
                Some(value) => write.put(key, value),
                None => write.delete(key),
            };
        }
    }
}
