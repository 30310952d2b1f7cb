//! What a storage server does for the moves that bring it shards: it fetches them, and says when they are there. [`holding`](crate::shards::holding) has the protocol.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Clock, Code, Error, Result, Runtime, Version};
use ferrisdb_rpc::api::GetRangeRequest;
use futures_util::future::{Either, join, select};

use super::locate::Own;
use super::messages::Message;
use super::{LOOK, Shared};
use crate::shards::keeper::{Arrival, Fetch};
use crate::signal::lock;

/// Bytes of rows that are asked for at once.
const CHUNK_BYTES: u32 = 1_000_000;
/// The least, after chunks that were given up because too much changed in them meanwhile.
const CHUNK_BYTES_MIN: u32 = 10_000;
/// The wait after an attempt that did not go well.
const AGAIN: Duration = Duration::from_millis(500);
/// A chunk that is there and has not come in with a batch after so long has a batch asked for.
const BATCH: Duration = Duration::from_millis(20);

/// Until the process stops.
pub(super) async fn run(shared: Arc<Shared>) {
    join(fetch_all(&shared), tell_all(&shared)).await;
}

/// Fetches one chunk after the other.
async fn fetch_all(shared: &Arc<Shared>) {
    let mut chunk_bytes = CHUNK_BYTES;
    let mut last = None;
    loop {
        let Some(fetch) = shared.keeper.begin_fetch() else {
            shared.jobs.sleep(LOOK).await;
            continue;
        };
        let this = Some((fetch.begin.clone(), fetch.id));
        if last != this {
            last = this;
            // Only for people.
            let sizing = std::pin::pin!(shared.read_size(fetch.range.clone()));
            if let Either::Left((Ok(bytes), _)) = select(sizing, shared.jobs.sleep(AGAIN)).await {
                shared.copied.expect(bytes);
            }
        }
        let begun = shared.jobs.now();
        let rate = shared.fetch_rate.load(Ordering::Relaxed).max(1);
        let asked = chunk_bytes.min(chunk_bytes_at(rate));
        match fetch_chunk(shared, &fetch, asked).await {
            Ok(Fetched { bytes, has_come_in }) => {
                if has_come_in {
                    *lock(&shared.moving) = None;
                    chunk_bytes = CHUNK_BYTES;
                } else {
                    reached(Rare::ChunkAgain);
                    chunk_bytes = (asked / 2).max(CHUNK_BYTES_MIN);
                }
                // So that clients have the rest of disk and network. What was given up has cost as much.
                let due = begun + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
                shared.jobs.sleep(due.saturating_sub(shared.jobs.now())).await;
            }
            Err(error) => {
                *lock(&shared.moving) = Some(error);
                shared.jobs.sleep(AGAIN).await;
            }
        }
    }
}

/// A chunk at so many bytes a second takes half a second, unless that makes it very small: what is fetched at once is fetched at the disk's and the network's speed.
fn chunk_bytes_at(rate: u64) -> u32 {
    u32::try_from(rate / 2).unwrap_or(CHUNK_BYTES).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES)
}

/// What was fetched.
struct Fetched {
    bytes: u64,
    /// It is in the storage server; otherwise it was given up.
    has_come_in: bool,
}

/// Fetches a chunk and waits until it has come in, or was given up.
async fn fetch_chunk(shared: &Arc<Shared>, fetch: &Fetch, bytes_max: u32) -> Result<Fetched> {
    let request = GetRangeRequest {
        range: fetch.range.clone(),
        version: fetch.since,
        limit: 0,
        target_bytes: bytes_max,
        reverse: false,
    };
    let rows = shared.read_range(request, Own::First).await?;
    let (count, bytes) =
        (rows.rows.len() as u64, rows.rows.iter().map(|row| (row.key.len() + row.value.len()) as u64).sum());
    let end = match rows.rows.last() {
        Some(last) if rows.more => ferrisdb_core::key::key_after(&last.key),
        None if rows.more => {
            return Err(Error::with(Code::InternalError, "an answer without rows says that there are more"));
        }
        _ => fetch.range.end.clone(),
    };
    if !shared.keeper.is_fetching(fetch) {
        return Ok(Fetched { bytes, has_come_in: false });
    }
    shared.keeper.put_chunk(fetch, rows.rows, end);
    while shared.keeper.is_fetching(fetch) {
        shared.jobs.sleep(BATCH).await;
        if shared.keeper.is_fetching(fetch) {
            // Nothing is going on: the chunk has to be asked a batch for.
            drop(shared.at_coordinator(|endpoint| endpoint.message(Message::Advance.encode())).await);
        }
    }
    shared.copied.add(count, bytes);
    Ok(Fetched { bytes, has_come_in: true })
}

/// Says of what has arrived that it is there, once that is durable, until the metadata knows.
async fn tell_all(shared: &Arc<Shared>) {
    loop {
        for arrival in shared.keeper.arrivals() {
            let told = std::pin::pin!(tell(shared, arrival));
            // Whoever leads may have gone: it is said again.
            drop(select(told, shared.jobs.sleep(10 * AGAIN)).await);
        }
        shared.jobs.sleep(5 * LOOK).await;
    }
}

async fn tell(shared: &Arc<Shared>, arrival: Arrival) -> Result<()> {
    let Arrival { begin, id, from } = arrival;
    if shared.storage.flushed_version() < from && !planted(Bug::ArrivalNotDurable) {
        let flushed: Version = shared.storage.flush().await?;
        if flushed < from {
            return Err(Error::with(Code::InternalError, format!("a flush ended at {flushed}, below {from}")));
        }
    }
    // Until that is written down a restart throws away what is there, and begins anew.
    while !shared.is_lasting.load(Ordering::SeqCst) {
        shared.jobs.sleep(LOOK).await;
    }
    let message = Message::Arrived { begin, id, tag: shared.identity.tag, from }.encode();
    shared.at_coordinator(|endpoint| endpoint.message(message.clone())).await.map(drop)
}
