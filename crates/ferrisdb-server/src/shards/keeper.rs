//! Between the log and the storage server: [`Keeper`] makes of each batch what is to be applied, as [`holding`](super::holding) says.
//!
//! It takes the assignments out of a batch, keeps what belongs to a chunk that is being fetched, and puts a chunk that has come into the next batch.
//!
//! # Invariants
//! - Readers see that a range is lost before the version at which it is cleared can be read: nobody takes that clear for what clients did.
//! - A fetch begins at the version that has been applied at that moment; what is above it and belongs to the range is kept, or the fetch is given up.
//! - [`prepare`](Keeper::prepare) changes nothing that a second one for the same batch would see: only [`applied`](Keeper::applied) does.
//!
//! # Concurrency
//! One task prepares and applies; others fetch and read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ferrisdb_core::key::printable;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeyValue, Mutation, Result, Version};

use super::change::Moment;
use super::holding::{Assigned, Assignment, Holding, clipped};
use crate::log::Delivery;
use crate::signal::lock;
use crate::storage::ApplyBatch;

/// Bytes of mutations that are kept for a chunk that is being fetched. More: the fetch is given up.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// See the [module](self).
pub(crate) struct Keeper {
    /// What readers go by.
    shown: RwLock<Arc<Holding>>,
    state: Mutex<State>,
    /// What there was below this version the storage server has never seen, whatever the map says.
    floor: Version,
    /// Shards that have come by moves, since it was opened.
    arrived: AtomicU64,
}

struct State {
    /// As of `applied`.
    holding: Arc<Holding>,
    applied: Version,
    fetching: Option<Fetching>,
    /// What a planted bug clears later than it should.
    put_off: Vec<(KeyRange, Version)>,
}

/// What is to be fetched next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// Where the shard begins.
    pub(crate) begin: Bytes,
    /// The move.
    pub(crate) id: Version,
    /// What is still to come.
    pub(crate) range: KeyRange,
    /// As of when.
    pub(crate) since: Version,
}

/// A chunk on its way.
struct Fetching {
    fetch: Fetch,
    /// What is above `fetch.since` and belongs to the range.
    kept: Vec<(Version, Mutation)>,
    kept_bytes: usize,
    chunk: Option<Chunk>,
}

/// A chunk that has come, and waits for the next batch.
#[derive(Debug, Clone)]
struct Chunk {
    rows: Vec<KeyValue>,
    /// All rows of the range below this key.
    end: Bytes,
}

/// A range that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Where the shard begins.
    pub(crate) begin: Bytes,
    /// The move.
    pub(crate) id: Version,
    /// From this version on; to be told only when that is durable.
    pub(crate) from: Version,
}

/// What a prepared batch comes to once it is applied.
pub(crate) struct Next {
    version: Version,
    holding: Arc<Holding>,
    is_chunk_in: bool,
    coming: Vec<Mutation>,
    /// What is not held any more: watches there are told.
    pub(crate) lost: Vec<KeyRange>,
    arrived: u64,
    put_off: Vec<(KeyRange, Version)>,
}

impl Keeper {
    /// For a storage server that holds this, and has applied as much. `floor`: below this version it has nothing.
    pub(crate) fn new(holding: Holding, applied: Version, floor: Version) -> Keeper {
        let holding = Arc::new(holding);
        let state = State { holding: Arc::clone(&holding), applied, fetching: None, put_off: Vec::new() };
        Keeper { shown: RwLock::new(holding), state: Mutex::new(state), floor, arrived: AtomicU64::new(0) }
    }

    /// An empty storage server has begun at this version.
    pub(crate) fn begin(&self, version: Version) {
        lock(&self.state).applied = version;
    }

    /// What is held, for readers: as of every version that can be read, or later.
    pub(crate) fn holding(&self) -> Arc<Holding> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Nothing is held any more, whatever the log says: the storage server's tag was taken. To be called when nobody prepares batches any more.
    pub(crate) fn hold_nothing(&self) {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        lock(&self.state).fetching = None;
    }

    /// Begins the next fetch, of the oldest move that is not all here: from now on what belongs to it is kept. `None`: there is nothing to fetch.
    pub(crate) fn begin_fetch(&self) -> Option<Fetch> {
        let mut state = lock(&self.state);
        let waiting = state.holding.incoming().iter().filter(|(_, incoming)| incoming.arrived.is_none());
        let next = waiting.min_by_key(|(_, incoming)| incoming.id).map(|(begin, incoming)| Fetch {
            begin: begin.clone(),
            id: incoming.id,
            range: KeyRange { begin: incoming.copied_to.clone(), end: incoming.end.clone() },
            since: state.applied,
        });
        let fetching = |fetch| Fetching { fetch, kept: Vec::new(), kept_bytes: 0, chunk: None };
        state.fetching = next.clone().map(fetching);
        next
    }

    /// The fetched rows: all that `fetch.range` has below `end`, at `fetch.since`. They come in with the next batch, if the fetch is still wanted.
    pub(crate) fn put_chunk(&self, fetch: &Fetch, rows: Vec<KeyValue>, end: Bytes) {
        if let Some(fetching) = &mut lock(&self.state).fetching
            && fetching.fetch == *fetch
        {
            fetching.chunk = Some(Chunk { rows, end });
        }
    }

    /// The fetch is under way, or its chunk waits for a batch. Otherwise it is in, or was given up.
    pub(crate) fn is_fetching(&self, fetch: &Fetch) -> bool {
        lock(&self.state).fetching.as_ref().is_some_and(|fetching| fetching.fetch == *fetch)
    }

    /// How many shards have come by moves, since it was opened.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// What is all here, and not yet held.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        let state = lock(&self.state);
        let arrived = state.holding.incoming().iter();
        let arrived = arrived.filter_map(|(begin, incoming)| {
            Some(Arrival { begin: begin.clone(), id: incoming.id, from: incoming.arrived? })
        });
        arrived.collect()
    }

    /// What is to be applied for a batch, and what it comes to then. To be called by the one who applies, who calls [`applied`](Self::applied) next.
    ///
    /// # Errors
    /// `internal_error`: the batch has an assignment that cannot be read; a newer FerrisDB wrote it.
    pub(crate) fn prepare(&self, delivery: Delivery) -> Result<(ApplyBatch, Next)> {
        let Delivery { version, horizon, leased, mutations, .. } = delivery;
        let state = lock(&self.state);
        let now = Moment { version, horizon, leased: &leased };
        let mut holding = Arc::clone(&state.holding);
        let mut out = Vec::with_capacity(mutations.len());
        let mut put_off = state.put_off.clone();
        put_off.retain(|(range, lost)| {
            let is_due = now.is_past(*lost);
            if is_due {
                out.push(Mutation::clear_range(range.begin.clone(), range.end.clone()));
            }
            !is_due
        });

        let mut is_chunk_in = false;
        if let Some(Fetching { fetch, kept, chunk: Some(chunk), .. }) = &state.fetching {
            is_chunk_in = true;
            let range = KeyRange { begin: fetch.range.begin.clone(), end: chunk.end.clone() };
            out.push(Mutation::clear_range(range.begin.clone(), range.end.clone()));
            out.extend(chunk.rows.iter().map(|row| Mutation::set(row.key.clone(), row.value.clone())));
            out.extend(kept.iter().filter_map(|(_, mutation)| clipped(mutation, &range)));
            Arc::make_mut(&mut holding).copied(&fetch.begin, &chunk.end, version);
        }
        let (mut coming, mut assignments) = (Vec::new(), Vec::new());
        for mutation in mutations {
            match Assignment::of_mutation(&mutation) {
                Ok(None) => {
                    let (here, rest) = holding.cut(mutation);
                    out.extend(here);
                    coming.extend(rest);
                }
                Ok(Some(assignment)) => assignments.push(assignment),
                Err(error) => {
                    let detail = format!("what the log assigns to this storage server cannot be read: {}", error.what);
                    return Err(Error::with(Code::InternalError, detail));
                }
            }
        }
        let (mut lost, mut arrived) = (Vec::new(), 0);
        for mut assignment in assignments {
            assignment.spans.iter_mut().for_each(|span| span.from = span.from.max(self.floor));
            assignment.spans.retain(|span| span.until.is_none_or(|until| span.from < until));
            let assigned = Arc::make_mut(&mut holding).assign(&assignment, now).map_err(|what| {
                let range = &assignment.range;
                let (begin, end) = (printable(&range.begin), printable(&range.end));
                Error::with(
                    Code::InternalError,
                    format!("at {version} the keys from {begin} to {end} are assigned to this storage server: {what}"),
                )
            })?;
            arrived += u64::from(assigned == Assigned::Held);
            if assigned == Assigned::Lost {
                let range = assignment.range;
                if planted(Bug::ClearPutOff) {
                    put_off.push((range.clone(), version));
                } else if !planted(Bug::LostIsKept) {
                    out.push(Mutation::clear_range(range.begin.clone(), range.end.clone()));
                }
                lost.push(range);
            }
        }
        let is_same = Arc::ptr_eq(&holding, &state.holding);
        drop(state);
        let owner_state = (!is_same && !planted(Bug::HoldingNotKept)).then(|| holding.encode());
        if !is_same && !planted(Bug::LossShownLate) {
            *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&holding);
        }
        let batch = ApplyBatch { version, horizon, leased, mutations: out, owner_state };
        Ok((batch, Next { version, holding, is_chunk_in, coming, lost, arrived, put_off }))
    }

    /// The batch is applied.
    pub(crate) fn applied(&self, next: Next) {
        let state = &mut *lock(&self.state);
        if planted(Bug::LossShownLate) {
            *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next.holding);
        }
        state.holding = next.holding;
        state.applied = next.version;
        state.put_off = next.put_off;
        self.arrived.fetch_add(next.arrived, Ordering::Relaxed);
        let Some(fetching) = &mut state.fetching else { return };
        // The move may have been given up, too.
        let is_wanted = state
            .holding
            .incoming()
            .get(&fetching.fetch.begin)
            .is_some_and(|incoming| incoming.id == fetching.fetch.id);
        if next.is_chunk_in || !is_wanted {
            state.fetching = None;
            return;
        }
        if planted(Bug::MoveKeepsNothing) {
            return;
        }
        for mutation in next.coming {
            if let Some(mutation) = clipped(&mutation, &fetching.fetch.range) {
                fetching.kept_bytes += mutation.bytes() + size_of::<Mutation>();
                fetching.kept.push((next.version, mutation));
            }
        }
        if fetching.kept_bytes > KEPT_BYTES_MAX {
            reached(Rare::ChunkAgain);
            state.fetching = None;
        }
    }
}
