//! Reads where the data is: a question about keys goes to a storage server that holds them at that version, and one about a range to one after the other.
//!
//! Who holds what this process knows from its replica of the log, which may be behind, or ahead of the version that is read. Neither can make an answer wrong: the
//! one who is asked refuses what it does not hold. Then the map is looked at again, up to a bound of time.
//!
//! # When nobody has a version any more
//! Whoever is asked and does not answer may come back, so that never decides. The map does, if it names nobody who is not gone for good, and if it is of the version that is asked for or a later
//! one: from there on a version only loses holders. An earlier map may name nobody because it has heard of nobody yet, as that of a process which has just joined.
//!
//! # Invariants
//! - An answer is of one version, whoever has which part of it.
//! - A part of a range that says that there is more has at least one row, and the parts come in order: nothing is between two of them.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::codec::DecodeError;
use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Bytes, Clock, Code, Error, KeyRange, KeySelector, KeyValue, Result, Runtime, Version};
use ferrisdb_rpc::api::{GetKeyRequest, GetRangeRequest, Rows, SplitPointsRequest, may_know_elsewhere};
use ferrisdb_rpc::pace::Hedge;
use ferrisdb_rpc::{Answer, Endpoint};

use super::lines::Line;
use super::metadata::Registry;
use super::{LOOK, Layout, Shared};
use crate::log::Tag;
use crate::shards::{Shard, ShardMap};
use crate::signal::lock;

/// So long is waited after the last of those who can answer was asked.
const LAST_PATIENCE: Duration = Duration::from_secs(4);

/// Whether this process's own storage server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// Before the others; after them, if it stands still and has not come so far.
    First,
    /// It has been, and has not answered yet.
    Not,
}

/// A read that a replica is asked.
struct Asked {
    shared: Arc<Shared>,
    tag: Tag,
    begun: Duration,
    is_answered: bool,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let now = self.shared.jobs.now();
        self.shared.pace.end(now, self.tag, now.saturating_sub(self.begun), self.is_answered);
    }
}

/// What a replica of the log knows at one moment.
struct Seen {
    layout: Layout,
    /// Up to which version it has come.
    last: Version,
}

impl Seen {
    fn map(&self) -> &ShardMap {
        &self.layout.shards
    }

    /// Those who have a shard at `version`. Who has lost its tag has nothing, and never will again.
    fn readable_at(&self, shard: &Shard, version: Version) -> Vec<Tag> {
        shard.readable_at(version).filter(|&tag| !self.layout.registry.is_dropped(tag)).collect()
    }

    /// What is to be said of a version that the map names nobody for.
    fn nobody_has(&self, version: Version) -> Error {
        if self.last < version {
            let last = self.last;
            let detail = format!(
                "this process has come to version {last} of the log, and does not know yet who has version {version} of these keys"
            );
            return Error::with(Code::ProcessBehind, detail);
        }
        Error::with(Code::TransactionTooOld, format!("no storage server has version {version} of these keys any more"))
    }
}

impl Shared {
    /// The metadata, as this process's replica of the log has it. Read anew when it has changed.
    pub(super) fn layout(&self) -> Result<Layout> {
        Ok(self.seen()?.layout)
    }

    fn seen(&self) -> Result<Seen> {
        // At one moment: a map that is older than what it is said to be would take away what somebody has.
        let (last, metadata) = self.log.with_state(|state| (state.last(), Arc::clone(state.metadata())));
        Ok(Seen { layout: self.layout_of(metadata)?, last })
    }

    fn layout_of(&self, metadata: Arc<BTreeMap<Bytes, Bytes>>) -> Result<Layout> {
        if let Some(layout) = &*lock(&self.layout)
            && Arc::ptr_eq(&layout.metadata, &metadata)
        {
            return Ok(layout.clone());
        }
        let unreadable = |error: DecodeError| {
            let detail = format!("the metadata of the cluster cannot be read: {}; use a newer FerrisDB", error.what);
            Error::with(Code::InternalError, detail)
        };
        let registry = Registry::read(&metadata).map_err(unreadable)?;
        let shards = ShardMap::read(&metadata).map_err(unreadable)?.unwrap_or_else(|| {
            let complete = registry.storage.iter().filter(|(_, storage)| storage.is_complete);
            ShardMap::whole(complete.map(|(&tag, _)| (tag, Version::ZERO)))
        });
        let layout = Layout { metadata, registry: Arc::new(registry), shards: Arc::new(shards) };
        *lock(&self.layout) = Some(layout.clone());
        Ok(layout)
    }

    /// Who holds what, as this process's replica of the log knows it.
    pub(super) fn shards(&self) -> Result<Arc<ShardMap>> {
        Ok(self.layout()?.shards)
    }

    /// The way to a storage server.
    pub(super) async fn to_storage(self: &Arc<Shared>, tag: Tag) -> Result<Arc<dyn Endpoint>> {
        if tag == self.identity.tag {
            return Ok(Arc::new(self.direct()));
        }
        let registry = self.registry()?;
        let process = registry.storage.get(&tag).and_then(|storage| registry.processes.get(&storage.process));
        let Some(process) = process else {
            let detail = format!("the storage server with tag {} does not belong to the cluster any more", tag.0);
            return Err(Error::with(Code::ConnectionFailed, detail));
        };
        self.lines.to(Line::Questions, &process.peer.address).await
    }

    /// Those who have a shard at `version`, in the order in which they are asked: this process as `own` says, then who is less busy and faster. Each process begins with another one if that is
    /// the same, so that all of them have something to do.
    fn holders(&self, seen: &Seen, shard: &Shard, version: Version, own: Own) -> Vec<Tag> {
        let mut tags = seen.readable_at(shard, version);
        tags.sort_unstable();
        tags.dedup();
        let first = self.identity.process % (tags.len().max(1) as u64);
        tags.rotate_left(usize::try_from(first).expect("it is below a length"));
        let is_behind = own == Own::First && version > self.storage.applied_version() && self.stands_still();
        let now = self.jobs.now();
        let costs: Vec<u64> = tags.iter().map(|&tag| self.pace.cost(now, tag)).collect();
        let mut order: Vec<(u8, u64, Tag)> = tags
            .into_iter()
            .zip(costs)
            .map(
                |(tag, cost)| if tag == self.identity.tag { (2 * u8::from(is_behind), 0, tag) } else { (1, cost, tag) },
            )
            .collect();
        order.sort_by_key(|&(class, cost, _)| (class, cost));
        let tags = order.into_iter().map(|(_, _, tag)| tag);
        tags.filter(|&tag| own == Own::First || tag != self.identity.tag).collect()
    }

    /// Asks one replica of a shard. What that takes is remembered, also if nobody waits for the answer any more.
    async fn ask_holder<T: Unpin>(
        self: &Arc<Shared>,
        tag: Tag,
        ask: &impl Fn(&dyn Endpoint) -> Answer<T>,
    ) -> Result<T> {
        let mut asked = Asked { shared: Arc::clone(self), tag, begun: self.jobs.now(), is_answered: false };
        self.pace.begin(tag);
        let answer = ask(self.to_storage(tag).await?.as_ref()).await;
        asked.is_answered = answer.as_ref().err().is_none_or(|error| !may_know_elsewhere(error.code()));
        answer
    }

    /// Asks those who have a shard at `version`: one after the other if they cannot answer, and the next one beside them if they are slow. The first answer wins.
    async fn ask_holders<T: Unpin>(
        self: &Arc<Shared>,
        seen: &Seen,
        shard: &Shard,
        version: Version,
        own: Own,
        ask: impl Fn(&dyn Endpoint) -> Answer<T>,
    ) -> Result<T> {
        let tags = self.holders(seen, shard, version, own);
        let ask = &ask;
        let begin = |tag| Box::pin(async move { self.ask_holder(tag, ask).await });
        let (mut running, mut next, mut last) = (Vec::new(), 0, None);
        let mut timer = self.timers.sleep(self.pace.patience());
        let won = poll_fn(|context| {
            loop {
                if running.is_empty() {
                    let Some(&tag) = tags.get(next) else { return Poll::Ready(Err(last.take())) };
                    running.push((begin(tag), None));
                    next += 1;
                    timer = self.timers.sleep(if next == tags.len() { LAST_PATIENCE } else { self.pace.patience() });
                }
                let mut at = 0;
                while at < running.len() {
                    let (asking, hedge): &mut (_, Option<Hedge>) = &mut running[at];
                    match asking.as_mut().poll(context) {
                        Poll::Pending => at += 1,
                        Poll::Ready(Err(error)) if may_know_elsewhere(error.code()) => {
                            last = Some(error);
                            drop(running.remove(at));
                        }
                        Poll::Ready(result) => {
                            self.counters.hedges_won.fetch_add(u64::from(hedge.is_some()), Ordering::Relaxed);
                            return Poll::Ready(Ok(result));
                        }
                    }
                }
                if running.is_empty() {
                    continue;
                }
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                let Some(&tag) = tags.get(next) else {
                    let detail =
                        format!("none of {} storage servers has answered within {LAST_PATIENCE:?}", tags.len());
                    return Poll::Ready(Err(Some(Error::with(Code::ConnectionFailed, detail))));
                };
                timer = self.timers.sleep(self.pace.patience());
                if let Some(hedge) = self.pace.hedge() {
                    reached(Rare::Hedged);
                    self.counters.hedges.fetch_add(1, Ordering::Relaxed);
                    running.push((begin(tag), Some(hedge)));
                    next += 1;
                    if next == tags.len() {
                        timer = self.timers.sleep(LAST_PATIENCE);
                    }
                }
            }
        });
        won.await.unwrap_or_else(|last| Err(last.unwrap_or_else(|| seen.nobody_has(version))))
    }

    /// Asks those who have a shard at `version` one after the other, and waits for an answer however long it takes.
    async fn wait_for_holders<T: Unpin>(
        self: &Arc<Shared>,
        seen: &Seen,
        shard: &Shard,
        version: Version,
        ask: impl Fn(&dyn Endpoint) -> Answer<T>,
    ) -> Result<T> {
        let mut last = None;
        for tag in self.holders(seen, shard, version, Own::First) {
            let asking = async { ask(self.to_storage(tag).await?.as_ref()).await };
            match asking.await {
                Err(error) if may_know_elsewhere(error.code()) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| seen.nobody_has(version)))
    }

    /// Tries again for as long as questions wait for a coordinator: the map may be behind, or nobody there for the moment.
    async fn until_found<T, F: Future<Output = Result<T>>>(
        self: &Arc<Shared>,
        attempt: impl Fn(Seen) -> F,
    ) -> Result<T> {
        let until = self.jobs.now() + self.options.coordinator_wait;
        loop {
            let error = match attempt(self.seen()?).await {
                // Storage has waited for the version already, as long as that may take. Whoever reads begins again with one that is here.
                Err(error) if error.code() == Code::FutureVersion => return Err(error),
                Err(error) if may_know_elsewhere(error.code()) => error,
                result => return result,
            };
            if self.is_closed.load(Ordering::SeqCst) {
                return Err(self.closed());
            }
            if self.jobs.now() >= until {
                let detail = format!("nobody who has the keys could be asked; the last one said: {error}");
                return Err(Error::with(Code::ProcessBehind, detail));
            }
            self.jobs.sleep(LOOK).await;
        }
    }

    /// Has somebody answer who has `key` at `version`.
    pub(super) async fn read_key<T: Unpin>(
        self: &Arc<Shared>,
        key: Bytes,
        version: Version,
        own: Own,
        ask: impl Fn(&dyn Endpoint) -> Answer<T>,
    ) -> Result<T> {
        let (key, ask) = (&key, &ask);
        let attempt =
            |seen: Seen| async move { self.ask_holders(&seen, seen.map().of_key(key).1, version, own, ask).await };
        self.until_found(attempt).await
    }

    /// Has somebody answer who holds `key` now, however long that takes.
    pub(super) async fn wait_for_key<T: Unpin>(
        self: &Arc<Shared>,
        key: Bytes,
        ask: impl Fn(&dyn Endpoint) -> Answer<T>,
    ) -> Result<T> {
        let (key, ask) = (&key, &ask);
        let attempt =
            |seen: Seen| async move { self.wait_for_holders(&seen, seen.map().of_key(key).1, Version::MAX, ask).await };
        self.until_found(attempt).await
    }

    /// Rows of a range, shard after shard until there are enough.
    pub(super) async fn read_range(self: &Arc<Shared>, request: GetRangeRequest, own: Own) -> Result<Rows> {
        let GetRangeRequest { range, version, limit, target_bytes, reverse } = request;
        let bytes_max = match target_bytes as usize {
            0 => self.options.storage.range_bytes,
            target => target,
        };
        let (mut rest, mut rows, mut bytes) = (range, Vec::<KeyValue>::new(), 0);
        while !rest.is_empty() {
            let (limit_left, bytes_left) = (limit.saturating_sub(count(&rows)), bytes_max - bytes);
            let (piece, part) = {
                let rest = &rest;
                self.until_found(|seen| async move {
                    let map = seen.map();
                    let (of, shard) = if reverse { map.below(&rest.end) } else { map.of_key(&rest.begin) };
                    let piece = part_in(rest, &of);
                    let request = GetRangeRequest {
                        range: piece.clone(),
                        version,
                        limit: if limit == 0 { 0 } else { limit_left },
                        target_bytes: u32::try_from(bytes_left).unwrap_or(u32::MAX),
                        reverse,
                    };
                    let ask = |endpoint: &dyn Endpoint| endpoint.get_range(request.clone());
                    let rows = self.ask_holders(&seen, shard, version, own, ask).await?;
                    Ok((piece, rows))
                })
                .await?
            };
            bytes += part.rows.iter().map(|row| 8 + row.key.len() + row.value.len()).sum::<usize>();
            rows.extend(part.rows);
            if part.more {
                return Ok(Rows { rows, more: true });
            }
            if reverse {
                rest.end = piece.begin
            } else {
                rest.begin = piece.end
            }
            if bytes >= bytes_max || (limit > 0 && count(&rows) >= limit) {
                return Ok(Rows { rows, more: !rest.is_empty() });
            }
        }
        Ok(Rows { rows, more: false })
    }

    /// The key at a place. If that leads out of the shard where it begins, the keys on the way are counted.
    pub(super) async fn read_key_at(self: &Arc<Shared>, request: GetKeyRequest, own: Own) -> Result<Bytes> {
        let KeySelector { key, offset, .. } = request.selector.clone().without_or_equal();
        let (is_forward, steps) = (offset > 0, offset.unsigned_abs());
        let key = key.min(request.end.clone());
        let at_once = {
            let (seen, request) = (self.seen()?, request.clone());
            let (_, shard) = if is_forward { seen.map().of_key(&key) } else { seen.map().below(&key) };
            self.ask_holders(&seen, shard, request.version, own, |endpoint| endpoint.get_key(request.clone())).await
        };
        match at_once {
            Err(error) if may_know_elsewhere(error.code()) => {}
            answer => return answer,
        }
        let (mut rest, mut left, off) = match is_forward {
            true => (KeyRange { begin: key, end: request.end.clone() }, steps, request.end.clone()),
            false => (KeyRange { begin: Bytes::new(), end: key }, steps + 1, Bytes::new()),
        };
        while !rest.is_empty() {
            let (version, reverse) = (request.version, !is_forward);
            let part = GetRangeRequest { range: rest.clone(), version, limit: left, target_bytes: 0, reverse };
            let rows = self.read_range(part, own).await?;
            left -= count(&rows.rows);
            match rows.rows.last() {
                Some(last) if left == 0 => return Ok(last.key.clone()),
                Some(last) if rows.more && is_forward => rest.begin = ferrisdb_core::key::key_after(&last.key),
                Some(last) if rows.more => rest.end = last.key.clone(),
                _ => break,
            }
        }
        Ok(off)
    }

    /// About how many bytes a range has.
    pub(super) async fn read_size(self: &Arc<Shared>, range: KeyRange) -> Result<u64> {
        let mut bytes = 0;
        let mut rest = range;
        while !rest.is_empty() {
            let at = &rest;
            let (piece, part) = self
                .until_found(|seen| async move {
                    let (of, shard) = seen.map().of_key(&at.begin);
                    let piece = part_in(at, &of);
                    let ask = |endpoint: &dyn Endpoint| endpoint.estimated_size(piece.clone());
                    let bytes = self.ask_holders(&seen, shard, Version::MAX, Own::First, ask).await?;
                    Ok((piece, bytes))
                })
                .await?;
            bytes += part;
            rest.begin = piece.end;
        }
        Ok(bytes)
    }

    /// Where to cut a range.
    pub(super) async fn read_split_points(self: &Arc<Shared>, request: SplitPointsRequest) -> Result<Vec<Bytes>> {
        let SplitPointsRequest { range, part_bytes, limit } = request;
        let mut points = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let at = &rest;
            let (piece, part) = self
                .until_found(|seen| async move {
                    let (of, shard) = seen.map().of_key(&at.begin);
                    let range = part_in(at, &of);
                    let request = SplitPointsRequest { range: range.clone(), part_bytes, limit: 0 };
                    let ask = |endpoint: &dyn Endpoint| endpoint.split_points(request.clone());
                    let points = self.ask_holders(&seen, shard, Version::MAX, Own::First, ask).await?;
                    Ok((range, points))
                })
                .await?;
            points.extend(part);
            rest.begin = piece.end;
        }
        Ok(thin(points, limit as usize))
    }
}

fn count(rows: &[KeyValue]) -> u32 {
    u32::try_from(rows.len()).unwrap_or(u32::MAX)
}

/// The part of a range that a shard has; the last shard has all that is above it, too.
fn part_in(range: &KeyRange, shard: &KeyRange) -> KeyRange {
    let begin = range.begin.clone().max(shard.begin.clone());
    let end = if shard.end == ferrisdb_core::key::SYSTEM_END {
        range.end.clone()
    } else {
        range.end.clone().min(shard.end.clone())
    };
    KeyRange { begin, end }
}

/// As many points as make `parts` parts (0: all), evenly chosen.
fn thin(points: Vec<Bytes>, parts: usize) -> Vec<Bytes> {
    let all = points.len() + 1;
    if parts == 0 || all <= parts {
        return points;
    }
    (1..parts).map(|part| points[part * all / parts - 1].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::Holder;

    fn version(number: u64) -> Version {
        Version::from_u64(number)
    }

    /// A version that the map names nobody for is gone if the map is of that version or a later one; a map of before may not have heard of who has it. Who can only not be reached is named, and who
    /// has lost its tag is not.
    #[test]
    fn the_map_decides_when_nobody_has_a_version_any_more() {
        let said = |shard: &Shard, last: u64, dropped: bool| {
            let mut registry = Registry { used: (2, Tag(1)), ..Registry::default() };
            if !dropped {
                let storage = super::super::metadata::Storage { process: 1, is_complete: true };
                registry.storage.insert(Tag(1), storage);
            }
            let shards = Arc::new(ShardMap::of_one(shard.clone()));
            let layout = Layout { metadata: Arc::default(), registry: Arc::new(registry), shards };
            let seen = Seen { layout, last: version(last) };
            let readable = seen.readable_at(seen.map().of_key(b"k").1, version(10));
            (readable, seen.nobody_has(version(10)).code())
        };
        let nobody = Shard::default();
        assert_eq!(said(&nobody, 9, false), (vec![], Code::ProcessBehind));
        assert_eq!(said(&nobody, 10, false), (vec![], Code::TransactionTooOld));
        let held = |from, until: Option<u64>| Shard {
            holders: vec![Holder { tag: Tag(1), from: version(from), until: until.map(version) }],
            moving: None,
        };
        assert_eq!(said(&held(11, None), 20, false), (vec![], Code::TransactionTooOld), "it began later");
        assert_eq!(said(&held(5, Some(10)), 20, false), (vec![], Code::TransactionTooOld), "it had ended before");
        assert_eq!(said(&held(5, Some(11)), 20, false).0, [Tag(1)], "it ended later, and keeps what it had");
        assert_eq!(said(&held(5, Some(11)), 20, true), (vec![], Code::TransactionTooOld), "it is gone for good");
    }
}
