//! Shards: which storage servers hold which keys, at which versions.
//!
//! ```text
//! map      ShardMap: all keys, cut into shards, each with its holders      the log's metadata: the truth
//! change   one step from a map to the next                                 decided by the batcher, at a version
//! holding  what one storage server holds, and how a move goes              kept by its engine, with the data and in the same atomic step
//! keeper   what of a batch is applied, kept, or cleared
//! load     how much is read and written where, lately
//! ```
//!
//! A **shard** is a range of keys that the same storage servers hold. A **holder** is a storage server that has all of a shard from one version on,
//! and until another one if it has lost it. A **move** gives a shard another team of holders; `holding.rs` says how, and why nothing is lost by it.
//!
//! # Invariants
//! - The shards cover all keys, `''` to `\xff\xff`, without gaps and overlaps.
//! - At every version that may be read, each key has a holder whose interval has the version in it.
//! - A map governs the versions above the batch that made it: a batch's own mutations go to the holders before.
//! - The intervals of a storage server in the map are those that it keeps itself, but for those that have ended long ago.

pub mod change;
pub(crate) mod holding;
pub(crate) mod keeper;
pub(crate) mod load;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use ferrisdb_core::codec::{DecodeError, Decoder, put_varint};
use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, KeyRange, Mutation, MutationKind, Version};

use crate::log::{Section, Tag};

/// Begins the keys of the metadata that are the map: a shard's first key follows.
pub(crate) const SHARD_PREFIX: &[u8] = b"\xff/shard/";

const FORMAT_VERSION: u8 = 1;

/// A storage server that has, or had, all of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Which one.
    pub(crate) tag: Tag,
    /// From this version on.
    pub(crate) from: Version,
    /// Below this version; `None`: it goes on.
    pub(crate) until: Option<Version>,
}

impl Holder {
    /// It goes on to hold the shard.
    pub(crate) fn is_open(&self) -> bool {
        self.until.is_none()
    }

    /// What it shows at `version` is all that there was.
    pub(crate) fn has(&self, version: Version) -> bool {
        self.from <= version && self.until.is_none_or(|until| version < until)
    }
}

/// A shard on its way to another team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    /// The version at which it began: no other move of this shard has the same.
    pub(crate) id: Version,
    /// Who holds the shard afterwards.
    pub(crate) team: BTreeSet<Tag>,
    /// Which of those that did not hold it have it now, and from which version on.
    pub(crate) arrived: BTreeMap<Tag, Version>,
}

/// A range of keys that the same storage servers hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shard {
    /// In the order in which they came.
    pub(crate) holders: Vec<Holder>,
    pub(crate) moving: Option<Move>,
}

impl Shard {
    /// Those that go on to hold it.
    pub(crate) fn team(&self) -> BTreeSet<Tag> {
        self.holders.iter().filter(|holder| holder.is_open()).map(|holder| holder.tag).collect()
    }

    /// Who needs its mutations: the holders, and those that it moves to.
    pub(crate) fn tags(&self) -> BTreeSet<Tag> {
        let mut tags = self.team();
        tags.extend(self.moving.iter().flat_map(|moving| &moving.team));
        tags
    }

    /// Those that a move brings it to, and that do not have it yet.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = Tag> {
        let present = self.team();
        let of_move = self.moving.iter().flat_map(|moving| moving.team.iter().map(move |tag| (moving, *tag)));
        of_move
            .filter(move |(moving, tag)| !present.contains(tag) && !moving.arrived.contains_key(tag))
            .map(|(_, tag)| tag)
    }

    /// Where its mutations are sent.
    fn section_tags(&self) -> BTreeSet<Tag> {
        if planted(Bug::TagForgottenInMove) { self.team() } else { self.tags() }
    }

    /// Who can be asked for what there was at `version`.
    pub(crate) fn readable_at(&self, version: Version) -> impl Iterator<Item = Tag> {
        self.holders.iter().filter(move |holder| holder.has(version)).map(|holder| holder.tag)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT_VERSION];
        put_varint(&mut out, self.holders.len() as u64);
        for holder in &self.holders {
            put_varint(&mut out, u64::from(holder.tag.0));
            put_varint(&mut out, holder.from.get());
            put_varint(&mut out, holder.until.map_or(0, Version::get));
        }
        let Some(moving) = &self.moving else {
            out.push(0);
            return out;
        };
        out.push(1);
        put_varint(&mut out, moving.id.get());
        put_varint(&mut out, moving.team.len() as u64);
        moving.team.iter().for_each(|tag| put_varint(&mut out, u64::from(tag.0)));
        put_varint(&mut out, moving.arrived.len() as u64);
        for (tag, from) in &moving.arrived {
            put_varint(&mut out, u64::from(tag.0));
            put_varint(&mut out, from.get());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Shard, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u8("shard: format version")? != FORMAT_VERSION {
            return Err(DecodeError { what: "shard: a format that this build does not know" });
        }
        let mut holders = Vec::new();
        for _ in 0..decoder.varint("shard: holders")? {
            let (tag, from) = (take_tag(&mut decoder)?, take_version(&mut decoder)?);
            let until = take_version(&mut decoder)?;
            holders.push(Holder { tag, from, until: (until > Version::ZERO).then_some(until) });
        }
        let moving = match decoder.u8("shard: move")? {
            0 => None,
            1 => {
                let id = take_version(&mut decoder)?;
                let count = decoder.varint("shard: team")?;
                let team = (0..count).map(|_| take_tag(&mut decoder)).collect::<Result<_, _>>()?;
                let count = decoder.varint("shard: arrived")?;
                let arrived = (0..count).map(|_| Ok((take_tag(&mut decoder)?, take_version(&mut decoder)?)));
                let arrived = arrived.collect::<Result<_, _>>()?;
                Some(Move { id, team, arrived })
            }
            _ => return Err(DecodeError { what: "shard: move" }),
        };
        decoder.finish("shard: bytes behind its end")?;
        Ok(Shard { holders, moving })
    }
}

fn take_tag(decoder: &mut Decoder<'_>) -> Result<Tag, DecodeError> {
    u32::try_from(decoder.varint("shard: tag")?).map(Tag).map_err(|_| DecodeError { what: "shard: tag" })
}

fn take_version(decoder: &mut Decoder<'_>) -> Result<Version, DecodeError> {
    Version::new(decoder.varint("shard: version")?).ok_or(DecodeError { what: "shard: version" })
}

/// All shards, by their first keys; each ends where the next one begins.
///
/// # Format (in the metadata; version 1; numbers are varints unless said otherwise)
/// ```text
/// \xff/shard/ first key   u8 format, holders: count, then of each: tag, from, until (0: it goes on),
///                         u8 1 if it moves, then: id, team: count, each; arrived: count, then of each: tag, from
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardMap {
    /// Invariant: the first one begins at `''`.
    shards: BTreeMap<Bytes, Shard>,
    /// The tags of all shards, if all have the same: then a batch needs no cutting.
    uniform: Option<Vec<Tag>>,
}

impl ShardMap {
    /// One shard, held by these from these versions on.
    pub(crate) fn whole(holders: impl IntoIterator<Item = (Tag, Version)>) -> ShardMap {
        let holders = holders.into_iter().map(|(tag, from)| Holder { tag, from, until: None }).collect();
        ShardMap::new(BTreeMap::from([(Bytes::new(), Shard { holders, moving: None })]))
    }

    /// One shard.
    #[cfg(test)]
    pub(crate) fn of_one(shard: Shard) -> ShardMap {
        ShardMap::new(BTreeMap::from([(Bytes::new(), shard)]))
    }

    fn new(shards: BTreeMap<Bytes, Shard>) -> ShardMap {
        let mut map = ShardMap { shards, uniform: None };
        map.look_for_uniformity();
        map
    }

    fn look_for_uniformity(&mut self) {
        let mut tags = self.shards.values().map(Shard::section_tags);
        let first = tags.next().expect("a map has a first shard");
        self.uniform = tags.all(|tags| tags == first).then(|| first.into_iter().collect());
    }

    /// The map in the metadata; `None` if it has none: an older FerrisDB wrote it, and every storage server has everything.
    ///
    /// # Errors
    /// What is wrong with it: a bug, or the metadata of a newer FerrisDB.
    pub(crate) fn read(metadata: &BTreeMap<Bytes, Bytes>) -> Result<Option<ShardMap>, DecodeError> {
        let mut shards = BTreeMap::new();
        for (key, value) in metadata.range(Bytes::from_static(SHARD_PREFIX)..) {
            let Some(begin) = key.strip_prefix(SHARD_PREFIX) else { break };
            shards.insert(key.slice_ref(begin), Shard::decode(value)?);
        }
        match shards.first_key_value() {
            None => Ok(None),
            Some((first, _)) if !first.is_empty() => {
                Err(DecodeError { what: "shards: the first one does not begin with the first key" })
            }
            Some(_) => Ok(Some(ShardMap::new(shards))),
        }
    }

    /// What makes metadata without a map have this one.
    pub(crate) fn write(&self) -> Vec<Mutation> {
        self.shards.iter().map(|(begin, shard)| set(begin, shard)).collect()
    }

    /// All shards, in order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (KeyRange, &Shard)> {
        self.shards.iter().map(|(begin, shard)| (self.range_from(begin), shard))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    fn range_from(&self, begin: &Bytes) -> KeyRange {
        let next = self.shards.range::<Bytes, _>((Excluded(begin), Unbounded)).next();
        let end = next.map_or(Bytes::from_static(SYSTEM_END), |(next, _)| next.clone());
        KeyRange { begin: begin.clone(), end }
    }

    /// The shard that `key` is in.
    pub(crate) fn of_key(&self, key: &[u8]) -> (KeyRange, &Shard) {
        let (begin, shard) =
            self.shards.range::<[u8], _>((Unbounded, Included(key))).next_back().expect("the first shard begins at ''");
        (self.range_from(begin), shard)
    }

    /// The shards from the one that `key` is in on, by their first keys.
    pub(crate) fn shards_from(&self, key: &[u8]) -> impl Iterator<Item = (&Bytes, &Shard)> {
        let (first, _) = self.of_key(key);
        self.shards.range(first.begin..)
    }

    /// The shard of the keys right below `end`.
    pub(crate) fn below(&self, end: &[u8]) -> (KeyRange, &Shard) {
        let (begin, shard) = self
            .shards
            .range::<[u8], _>((Unbounded, Excluded(end)))
            .next_back()
            .unwrap_or_else(|| self.shards.first_key_value().expect("a map has a first shard"));
        (self.range_from(begin), shard)
    }

    /// The shard that begins there.
    pub(crate) fn at(&self, begin: &[u8]) -> Option<&Shard> {
        self.shards.get(begin)
    }

    /// The ranges that nobody but these goes on to hold: without them they would be lost.
    pub(crate) fn only_in(&self, tags: &BTreeSet<Tag>) -> Vec<KeyRange> {
        self.iter().filter(|(_, shard)| shard.team().is_subset(tags)).map(|(range, _)| range).collect()
    }

    /// A storage server has every shard that it is needed for, with `replicas` replicas of each, and waits for none.
    pub(crate) fn has_its_share(&self, tag: Tag, replicas: usize) -> bool {
        self.shards.values().all(|shard| {
            let team = shard.team();
            let is_coming = shard.moving.as_ref().is_some_and(|moving| moving.team.contains(&tag));
            team.contains(&tag) || (team.len() >= replicas && !is_coming)
        })
    }

    /// Mutations, in order, by who needs them. Those of one key stay in order; a clear is cut where shards meet.
    pub(crate) fn sections(&self, mutations: Vec<Mutation>) -> Vec<Section> {
        if mutations.is_empty() {
            return Vec::new();
        }
        if let Some(tags) = &self.uniform {
            return vec![Section { tags: tags.clone(), mutations }];
        }
        let mut sections: Vec<Section> = Vec::new();
        // A key's shard is one, and so is its section: what comes later for the same key is behind what came before.
        let mut places: BTreeMap<Vec<Tag>, usize> = BTreeMap::new();
        let mut put = |shard: &Shard, mutation: Mutation| {
            let tags: Vec<Tag> = shard.section_tags().into_iter().collect();
            let place = *places.entry(tags).or_insert_with_key(|tags| {
                sections.push(Section { tags: tags.clone(), mutations: Vec::new() });
                sections.len() - 1
            });
            sections[place].mutations.push(mutation);
        };
        for mutation in mutations {
            if mutation.kind != MutationKind::ClearRange {
                put(self.of_key(&mutation.key).1, mutation);
                continue;
            }
            let (mut begin, end) = (mutation.key, mutation.value);
            while begin < end {
                let (range, shard) = self.of_key(&begin);
                // The last shard reaches as far as a clear may.
                let piece_end = if range.end == SYSTEM_END { end.clone() } else { range.end.min(end.clone()) };
                put(shard, Mutation::clear_range(begin, piece_end.clone()));
                begin = piece_end;
            }
        }
        sections
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.shards.contains_key(&Bytes::new()), "the first shard begins at ''");
        for (range, shard) in self.iter() {
            assert!(!range.is_empty(), "{range:?}");
            assert!(!shard.team().is_empty(), "{range:?} has no holder: {shard:?}");
            let open = shard.holders.iter().filter(|holder| holder.is_open()).count();
            assert_eq!(open, shard.team().len(), "a holder is there twice: {shard:?}");
            for holder in &shard.holders {
                assert!(holder.until.is_none_or(|until| holder.from < until), "{holder:?}");
            }
            if let Some(Move { team, arrived, .. }) = &shard.moving {
                assert!(!team.is_empty() && arrived.keys().all(|tag| team.contains(tag)), "{shard:?}");
                assert!(team.iter().any(|tag| !shard.team().contains(tag) && !arrived.contains_key(tag)), "it is over");
            }
        }
        let mut same = self.clone();
        same.look_for_uniformity();
        assert_eq!(same, *self);
    }
}

fn key_of(begin: &[u8]) -> Bytes {
    [SHARD_PREFIX, begin].concat().into()
}

fn set(begin: &[u8], shard: &Shard) -> Mutation {
    Mutation::set(key_of(begin), shard.encode())
}
