//! One step from a map of shards to the next: [`Change`].
//!
//! The controller asks for a change; the coordinator's batcher makes it, on the map as of the batches that it has appended, or refuses it. So a
//! change names what it assumes (a shard's bounds, a move's id), and one that was decided on an older map, or that comes from a move
//! that is over, does nothing. That the asker is the controller of this very epoch is for the log to judge: the batch of another counts nothing.

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::key::{SYSTEM_END, key_after, printable};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, Mutation, Result, Version};

use super::holding::{Assignment, Span};
use super::{Holder, Move, Shard, ShardMap, key_of, set};
use crate::log::Tag;

/// A change that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Metadata without a map, of an older FerrisDB, gets one: these storage servers have everything.
    Begin {
        /// Which.
        holders: BTreeSet<Tag>,
    },
    /// A shard becomes two; the second one begins here.
    Split {
        /// A key inside.
        at: Bytes,
    },
    /// A shard and the next one become one. Both have the same holders.
    Merge {
        /// Where the first one begins.
        begin: Bytes,
    },
    /// A shard is to have another team. If nobody in it is new that happens at once.
    Move {
        /// Where it begins.
        begin: Bytes,
        /// And ends.
        end: Bytes,
        /// Who is to hold it.
        team: BTreeSet<Tag>,
    },
    /// A storage server has, durably, all that a move brings it.
    Arrived {
        /// Where the shard begins.
        begin: Bytes,
        /// Which move it is.
        id: Version,
        /// Which storage server.
        tag: Tag,
        /// From which version on.
        from: Version,
    },
    /// A move is given up.
    Cancel {
        /// Where the shard begins.
        begin: Bytes,
        /// Which move it is.
        id: Version,
    },
}

/// What a change comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// For the metadata.
    pub(crate) metadata: Vec<Mutation>,
    /// For storage servers.
    pub(crate) assignments: Vec<(Tag, Assignment)>,
}

/// The moment of a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment<'a> {
    /// Its version.
    pub(crate) version: Version,
    /// What is below this is not read any more, unless it is leased.
    pub(crate) horizon: Version,
    /// The leased versions, ascending.
    pub(crate) leased: &'a [Version],
}

impl Moment<'_> {
    /// Nobody can read below `version` any more.
    pub(crate) fn is_past(&self, version: Version) -> bool {
        version <= self.horizon && self.leased.first().is_none_or(|&leased| leased >= version)
    }
}

impl Change {
    /// Makes the change. `map` is `None` in metadata that has none.
    ///
    /// # Errors
    /// `client_invalid_operation`: it does not fit the map, which is as it was.
    pub(crate) fn make(self, map: &mut Option<ShardMap>, now: Moment<'_>) -> Result<Changed> {
        let (map, change) = match (map, self) {
            (map @ None, Change::Begin { holders }) if !holders.is_empty() => {
                // Below which version one of them has less it knows itself.
                let begun = map.insert(ShardMap::whole(holders.into_iter().map(|tag| (tag, Version::ZERO))));
                return Ok(Changed { metadata: begun.write(), assignments: Vec::new() });
            }
            (None, _) => return Err(unfit(b"", "the metadata has no map of them yet")),
            (Some(map), change) => (map, change),
        };
        let changed = match change {
            Change::Begin { .. } => Err(unfit(b"", "the metadata has a map of them")),
            Change::Split { at } => map.split(at),
            Change::Merge { begin } => map.merge(&begin, now),
            Change::Move { begin, end, team } => map.begin_move(&begin, &end, team, now),
            Change::Arrived { begin, id, tag, from } => map.arrived(&begin, id, tag, from, now),
            Change::Cancel { begin, id } => map.cancel(&begin, id),
        }?;
        map.look_for_uniformity();
        Ok(changed)
    }
}

impl ShardMap {
    fn split(&mut self, at: Bytes) -> Result<Changed> {
        let (range, shard) = self.of_key(&at);
        if at == range.begin || at >= SYSTEM_END || shard.moving.is_some() {
            return Err(unfit(&at, "no shard can be split there now"));
        }
        let shard = shard.clone();
        let metadata = vec![set(&at, &shard)];
        self.shards.insert(at, shard);
        Ok(Changed { metadata, assignments: Vec::new() })
    }

    fn merge(&mut self, begin: &Bytes, now: Moment<'_>) -> Result<Changed> {
        let is_old = |shard: &Shard| {
            let is_past = |holder: &Holder| holder.is_open() && now.is_past(holder.from);
            shard.moving.is_none() && shard.holders.iter().all(is_past)
        };
        let mut first = self.settled(begin)?.clone();
        let next = self.range_from(begin).end;
        let Some(second) = self.shards.get(&next) else { return Err(unfit(begin, "the last shard has no next one")) };
        first.forget_past(now);
        let mut other = second.clone();
        other.forget_past(now);
        if first != other && !(is_old(&first) && is_old(&other) && first.team() == other.team()) {
            return Err(unfit(begin, "the shard and its next one have different holders"));
        }
        // Nobody reads below either any more, so the later one is as good.
        for holder in &mut first.holders {
            let same = other.holders.iter().find(|other| other.tag == holder.tag);
            holder.from = holder.from.max(same.map_or(Version::ZERO, |other| other.from));
        }
        let gone = key_of(&next);
        let metadata = vec![set(begin, &first), Mutation::clear_range(gone.clone(), key_after(&gone))];
        self.shards.remove(&next);
        self.shards.insert(begin.clone(), first);
        Ok(Changed { metadata, assignments: Vec::new() })
    }

    fn begin_move(&mut self, begin: &Bytes, end: &Bytes, team: BTreeSet<Tag>, now: Moment<'_>) -> Result<Changed> {
        let before = self.settled(begin)?.clone();
        if self.range_from(begin).end != *end || team.is_empty() {
            return Err(unfit(begin, "the shard has other bounds"));
        }
        let mut after = before.clone();
        after.moving = Some(Move { id: now.version, team, arrived: BTreeMap::new() });
        after.finish_if_all_are_there(now);
        Ok(self.replace(begin, &before, after))
    }

    fn arrived(&mut self, begin: &Bytes, id: Version, tag: Tag, from: Version, now: Moment<'_>) -> Result<Changed> {
        let before = self.moving(begin, id)?.clone();
        let mut after = before.clone();
        let moving = after.moving.as_mut().expect("it was looked up");
        let is_new = moving.team.contains(&tag) && !before.team().contains(&tag);
        let is_late = from <= moving.id && !planted(Bug::LateArrival);
        if !is_new || is_late || from >= now.version {
            return Err(unfit(begin, "the move does not wait for that storage server"));
        }
        moving.arrived.entry(tag).or_insert(from);
        after.finish_if_all_are_there(now);
        Ok(self.replace(begin, &before, after))
    }

    fn cancel(&mut self, begin: &Bytes, id: Version) -> Result<Changed> {
        let before = self.moving(begin, id)?.clone();
        let after = Shard { moving: None, ..before.clone() };
        Ok(self.replace(begin, &before, after))
    }

    /// The shard that begins there, if it does not move.
    fn settled(&self, begin: &Bytes) -> Result<&Shard> {
        let shard = self.shards.get(begin).filter(|shard| shard.moving.is_none());
        shard.ok_or_else(|| unfit(begin, "no shard begins there that does not move"))
    }

    /// The shard that begins there, if it is in this move.
    fn moving(&self, begin: &Bytes, id: Version) -> Result<&Shard> {
        let is_it = |moving: &Move| moving.id == id || planted(Bug::LateArrival);
        let shard = self.shards.get(begin).filter(|shard| shard.moving.as_ref().is_some_and(is_it));
        shard.ok_or_else(|| unfit(begin, "that move is over"))
    }

    /// Puts a shard in the place of what it was, and tells those for whom something changes.
    fn replace(&mut self, begin: &Bytes, before: &Shard, after: Shard) -> Changed {
        let range = self.range_from(begin);
        let tags = before.tags().into_iter().chain(after.tags()).collect::<BTreeSet<_>>();
        let assignments = tags.into_iter().filter_map(|tag| {
            let (was, is) = (before.role_of(tag), after.role_of(tag));
            let (spans, incoming) = is.clone();
            (was != is).then_some((tag, Assignment { range: range.clone(), spans, incoming }))
        });
        let assignments = assignments.collect();
        let metadata = vec![set(begin, &after)];
        self.shards.insert(begin.clone(), after);
        Changed { metadata, assignments }
    }
}

impl Shard {
    /// What a storage server has of it, and which move brings it to it.
    fn role_of(&self, tag: Tag) -> (Vec<Span>, Option<Version>) {
        let holders = self.holders.iter().filter(|holder| holder.tag == tag);
        let spans: Vec<Span> = holders.map(|holder| Span { from: holder.from, until: holder.until }).collect();
        let is_open = spans.iter().any(|span| span.until.is_none());
        let moving = self.moving.as_ref().filter(|moving| !is_open && moving.team.contains(&tag));
        (spans, moving.map(|moving| moving.id))
    }

    /// Once all that are new in the team have arrived: the others go, from this version on.
    fn finish_if_all_are_there(&mut self, now: Moment<'_>) {
        let team_before = self.team();
        let is_there =
            |moving: &Move| moving.team.iter().all(|tag| team_before.contains(tag) || moving.arrived.contains_key(tag));
        let Some(moving) = self.moving.take_if(|moving| is_there(moving)) else { return };
        for holder in &mut self.holders {
            if holder.is_open() && !moving.team.contains(&holder.tag) {
                holder.until = Some(now.version);
            }
        }
        let new = moving.arrived.into_iter().map(|(tag, from)| Holder { tag, from, until: None });
        self.holders.extend(new);
        self.forget_past(now);
    }

    /// Forgets holders whose time is over and nobody can ask for.
    fn forget_past(&mut self, now: Moment<'_>) {
        self.holders.retain(|holder| holder.until.is_none_or(|until| !now.is_past(until)));
    }
}

fn unfit(key: &[u8], what: &str) -> Error {
    Error::with(Code::ClientInvalidOperation, format!("the shards are not changed at {}: {what}", printable(key)))
}
