//! How much is read and written of each shard: every storage server [knows](crate::shards::load) it of its own, and the controller asks them all.
//!
//! # Format (the answer to a message `loads`; numbers are varints)
//! ```text
//! u8 format, count, then of each range that was asked for, in order:
//!     written, read (bytes a second), u8 flags: 1 a cut, 2 a hottest key; bytes cut; bytes hottest key, its bytes a second
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result, Runtime};
use futures_util::future::{Either, join_all, select};

use super::Shared;
use super::messages::{Message, invalid};
use crate::log::Tag;
use crate::shards::ShardMap;
use crate::shards::load::{Load, RangeLoad};

const FORMAT_VERSION: u8 = 1;
/// Ranges in one message, at the most.
const RANGES_AT_ONCE: usize = 500;
/// A storage server that does not answer in this time is asked again with the next look: what is known of the others will do.
const PATIENCE: Duration = Duration::from_secs(1);

/// The load of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ShardLoad {
    /// Where it ended when it was looked at.
    pub(super) end: Bytes,
    /// What each of its storage servers has of it: bytes a second.
    pub(super) each: u64,
    /// A key that halves it, if one does.
    pub(super) cut: Option<Bytes>,
    /// The key with the most of it, and how much that is.
    pub(super) hottest: Option<(Bytes, u64)>,
}

/// Answers for the storage server of this process.
pub(super) fn answer(shared: &Shared, tag: Tag, ranges: &[KeyRange]) -> Result<Bytes> {
    if tag != shared.identity.tag {
        let detail = format!("process {} has no storage server with tag {}", shared.identity.process, tag.0);
        return Err(Error::with(Code::ClientInvalidOperation, detail));
    }
    Ok(encode(&of_ranges(&shared.load, ranges)))
}

fn of_ranges(load: &Load, ranges: &[KeyRange]) -> Vec<RangeLoad> {
    ranges.iter().map(|range| load.of(range)).collect()
}

/// Asks everybody who holds something, all at once: loads by where shards begin. Of a shard of which nobody has told there is none.
pub(super) async fn look(shared: &Arc<Shared>, map: &ShardMap) -> BTreeMap<Bytes, ShardLoad> {
    let mut held: BTreeMap<Tag, Vec<KeyRange>> = BTreeMap::new();
    for (range, shard) in map.iter() {
        for tag in shard.team() {
            held.entry(tag).or_default().push(range.clone());
        }
    }
    let asking = held.into_iter().flat_map(|(tag, ranges)| {
        let parts: Vec<Vec<KeyRange>> = ranges.chunks(RANGES_AT_ONCE).map(<[KeyRange]>::to_vec).collect();
        parts.into_iter().map(move |part| ask(shared, tag, part))
    });
    let told = join_all(asking).await.into_iter().flatten().flatten();
    let mut teams: BTreeMap<Bytes, Vec<(KeyRange, RangeLoad)>> = BTreeMap::new();
    for (range, load) in told {
        teams.entry(range.begin.clone()).or_default().push((range, load));
    }
    teams.into_iter().map(|(begin, team)| (begin, together(team))).collect()
}

/// What those who hold a shard say of it: all of them write everything, and share what is read.
fn together(mut team: Vec<(KeyRange, RangeLoad)>) -> ShardLoad {
    let written = team.iter().map(|(_, load)| load.written).max().unwrap_or_default();
    let read = team.iter().map(|(_, load)| load.read).sum::<u64>() / team.len().max(1) as u64;
    // Whoever has the most of it has seen the most.
    team.sort_by_key(|(_, load)| load.written + load.read);
    let (range, most) = team.pop().unwrap_or_default();
    ShardLoad { end: range.end, each: written + read, cut: most.cut, hottest: most.hottest }
}

async fn ask(shared: &Arc<Shared>, tag: Tag, ranges: Vec<KeyRange>) -> Option<Vec<(KeyRange, RangeLoad)>> {
    let loads = if tag == shared.identity.tag {
        of_ranges(&shared.load, &ranges)
    } else {
        let message = Message::Loads { tag, ranges: ranges.clone() }.encode();
        let asking = std::pin::pin!(async { decode(&shared.to_storage(tag).await?.message(message).await?) });
        match select(asking, shared.jobs.sleep(PATIENCE)).await {
            Either::Left((Ok(loads), _)) if loads.len() == ranges.len() => loads,
            _ => return None,
        }
    };
    Some(ranges.into_iter().zip(loads).collect())
}

fn encode(loads: &[RangeLoad]) -> Bytes {
    let mut out = vec![FORMAT_VERSION];
    put_varint(&mut out, loads.len() as u64);
    for RangeLoad { written, read, cut, hottest } in loads {
        put_varint(&mut out, *written);
        put_varint(&mut out, *read);
        out.push(u8::from(cut.is_some()) | u8::from(hottest.is_some()) << 1);
        if let Some(cut) = cut {
            put_bytes(&mut out, cut);
        }
        if let Some((key, load)) = hottest {
            put_bytes(&mut out, key);
            put_varint(&mut out, *load);
        }
    }
    out.into()
}

fn decode(bytes: &[u8]) -> Result<Vec<RangeLoad>> {
    let mut decoder = Decoder::new(bytes);
    let read = || {
        if decoder.u8("loads: format")? != FORMAT_VERSION {
            return Err(DecodeError { what: "loads: a format that this build does not know" });
        }
        let mut loads = Vec::new();
        for _ in 0..decoder.varint("loads: count")? {
            let (written, read) = (decoder.varint("loads: written")?, decoder.varint("loads: read")?);
            let flags = decoder.u8("loads: flags")?;
            let mut load = RangeLoad { written, read, cut: None, hottest: None };
            if flags & 1 > 0 {
                load.cut = Some(Bytes::copy_from_slice(decoder.bytes("loads: cut")?));
            }
            if flags & 2 > 0 {
                let key = Bytes::copy_from_slice(decoder.bytes("loads: hottest key")?);
                load.hottest = Some((key, decoder.varint("loads: of the hottest key")?));
            }
            loads.push(load);
        }
        decoder.finish("loads: bytes behind their end")?;
        Ok(loads)
    };
    read().map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<RangeLoad> {
        let some = RangeLoad { written: 300, read: 7, cut: Some("c".into()), hottest: Some(("h".into(), 200)) };
        vec![
            RangeLoad::default(),
            some.clone(),
            RangeLoad { cut: None, ..some.clone() },
            RangeLoad { hottest: None, ..some },
        ]
    }

    /// What is written is read; if the bytes differ, the format has changed; damage is an error.
    #[test]
    fn the_bytes_are_these() {
        let bytes = encode(&example());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0104000000ac02070301630168c801ac0207020168c801ac0207010163");
        assert_eq!(decode(&bytes), Ok(example()));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
    }

    /// Writes are everybody's, reads are shared; cut and hottest key are from whoever has seen the most.
    #[test]
    fn a_team_is_summed_up() {
        let range = KeyRange::new("a", "z");
        let load = |written, read, cut: &'static str| RangeLoad { written, read, cut: Some(cut.into()), hottest: None };
        let team = [load(100, 30, "b"), load(90, 60, "c"), load(80, 0, "d")].map(|load| (range.clone(), load)).to_vec();
        let expected = ShardLoad { end: "z".into(), each: 130, cut: Some("c".into()), hottest: None };
        assert_eq!(together(team), expected);
    }
}
