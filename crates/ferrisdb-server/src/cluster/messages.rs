//! What the processes of a cluster ask each other, beside what clients ask.
//!
//! # Format (version 1; numbers are varints)
//! ```text
//! u8 format version, u8 kind, then
//! 1 raft      process that is asked, bytes to the end: a message of the replicated log (its answer: the log's)
//! 2 join      bytes instance (16), bytes address, bytes zone
//!             answer: u8 format version, u8 2, bytes cluster id (16), process, tag
//! 3 complete  process, tag: the storage server has begun
//!             answer: u8 format version, u8 3
//! 16 arrived  bytes begin of a shard, move, tag, version: the storage server has durably, from that version on, what the move brings
//!             answer: u8 format version, u8 3
//! 17 advance  somebody waits for the next batch
//!             answer: u8 format version, u8 3
//! 4 beat      see beat.rs
//! 5 left      process, bytes instance (16): the process will never come back under this number
//!             answer: u8 format version, u8 5
//! 18 loads    tag that is asked, ranges: count, then of each: bytes begin, bytes end
//!             answer: see loads.rs
//! 6 order     u8 1 if it was sent on, then see orders.rs
//! ```

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result, Version};

use super::beat::Beat;
use super::orders::Asked;
use crate::log::Tag;
use crate::log::replicated::{Peer, ProcessId};

const FORMAT_VERSION: u8 = 1;
const KIND_RAFT: u8 = 1;
const KIND_JOIN: u8 = 2;
const KIND_COMPLETE: u8 = 3;
const KIND_BEAT: u8 = 4;
const KIND_LEFT: u8 = 5;
const KIND_ORDER: u8 = 6;
const KIND_ARRIVED: u8 = 16;
const KIND_ADVANCE: u8 = 17;
const KIND_LOADS: u8 = 18;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// For the replica of the log at process `to`: an address may have come to belong to another.
    Raft { to: ProcessId, message: Bytes },
    /// Whoever has this directory wants to belong to the cluster, or to say that it is elsewhere now.
    Join { instance: [u8; 16], peer: Peer },
    /// The storage server has begun: it can be given shards.
    Complete { process: ProcessId, tag: Tag },
    /// A process is there, and how it is.
    Beat(Beat),
    /// A process will never come back under this number.
    Left { process: ProcessId, instance: [u8; 16] },
    /// What somebody wants of the cluster. `is_sent_on`: by the process that was asked first.
    Order { asked: Asked, is_sent_on: bool },
    /// What a move brings is there.
    Arrived { begin: Bytes, id: Version, tag: Tag, from: Version },
    /// Somebody waits for the next batch.
    Advance,
    /// How much the storage server with a tag reads and writes of these ranges.
    Loads { tag: Tag, ranges: Vec<KeyRange> },
}

/// Who was taken in, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) cluster_id: [u8; 16],
    pub(super) process: ProcessId,
    pub(super) tag: Tag,
}

/// True if another process wants to join whoever is asked `message`.
pub fn asks_to_join(message: &Bytes) -> bool {
    matches!(Message::decode(message), Ok(Message::Join { .. }))
}

/// What a process with this directory asks that wants to join.
#[cfg(test)]
pub(crate) fn join_message(instance: [u8; 16], peer: Peer) -> Bytes {
    Message::Join { instance, peer }.encode()
}

impl Message {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT_VERSION];
        match self {
            Message::Raft { to, message } => {
                out.push(KIND_RAFT);
                put_varint(&mut out, *to);
                out.extend_from_slice(message);
            }
            Message::Join { instance, peer } => {
                out.push(KIND_JOIN);
                put_bytes(&mut out, instance);
                put_bytes(&mut out, peer.address.as_bytes());
                put_bytes(&mut out, peer.zone.as_bytes());
            }
            Message::Complete { process, tag } => {
                out.push(KIND_COMPLETE);
                put_varint(&mut out, *process);
                put_varint(&mut out, u64::from(tag.0));
            }
            Message::Beat(beat) => {
                out.push(KIND_BEAT);
                beat.encode(&mut out);
            }
            Message::Left { process, instance } => {
                out.push(KIND_LEFT);
                put_varint(&mut out, *process);
                put_bytes(&mut out, instance);
            }
            Message::Order { asked, is_sent_on } => {
                out.extend_from_slice(&[KIND_ORDER, u8::from(*is_sent_on)]);
                asked.encode(&mut out);
            }
            Message::Arrived { begin, id, tag, from } => {
                out.push(KIND_ARRIVED);
                put_bytes(&mut out, begin);
                put_varint(&mut out, id.get());
                put_varint(&mut out, u64::from(tag.0));
                put_varint(&mut out, from.get());
            }
            Message::Advance => out.push(KIND_ADVANCE),
            Message::Loads { tag, ranges } => {
                out.push(KIND_LOADS);
                put_varint(&mut out, u64::from(tag.0));
                put_varint(&mut out, ranges.len() as u64);
                for range in ranges {
                    put_bytes(&mut out, &range.begin);
                    put_bytes(&mut out, &range.end);
                }
            }
        }
        out.into()
    }

    /// The question in `bytes`.
    ///
    /// # Errors
    /// `client_invalid_operation`: it is none that this build knows.
    pub(super) fn decode(bytes: &Bytes) -> Result<Message> {
        let mut decoder = Decoder::new(bytes);
        let message = match take_head(&mut decoder).map_err(invalid)? {
            KIND_RAFT => {
                let to = decoder.varint("message: process").map_err(invalid)?;
                return Ok(Message::Raft { to, message: bytes.slice_ref(decoder.rest()) });
            }
            KIND_JOIN => {
                let instance = take_id(&mut decoder).map_err(invalid)?;
                let mut text = |what| {
                    let bytes = decoder.bytes(what)?;
                    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError { what })
                };
                let address = text("message: address").map_err(invalid)?;
                Message::Join { instance, peer: Peer { address, zone: text("message: zone").map_err(invalid)? } }
            }
            KIND_COMPLETE => {
                let process = decoder.varint("message: process").map_err(invalid)?;
                Message::Complete { process, tag: take_tag(&mut decoder).map_err(invalid)? }
            }
            KIND_BEAT => Message::Beat(Beat::decode(&mut decoder).map_err(invalid)?),
            KIND_LEFT => {
                let process = decoder.varint("message: process").map_err(invalid)?;
                Message::Left { process, instance: take_id(&mut decoder).map_err(invalid)? }
            }
            KIND_ORDER => {
                let is_sent_on = decoder.u8("message: sent on").map_err(invalid)? == 1;
                Message::Order { asked: Asked::decode(&mut decoder).map_err(invalid)?, is_sent_on }
            }
            KIND_ARRIVED => {
                let begin = Bytes::copy_from_slice(decoder.bytes("message: begin").map_err(invalid)?);
                let id = take_version(&mut decoder).map_err(invalid)?;
                let tag = take_tag(&mut decoder).map_err(invalid)?;
                Message::Arrived { begin, id, tag, from: take_version(&mut decoder).map_err(invalid)? }
            }
            KIND_ADVANCE => Message::Advance,
            KIND_LOADS => {
                let tag = take_tag(&mut decoder).map_err(invalid)?;
                let mut ranges = Vec::new();
                for _ in 0..decoder.varint("message: ranges").map_err(invalid)? {
                    let mut key = |what| decoder.bytes(what).map(Bytes::copy_from_slice).map_err(invalid);
                    ranges.push(KeyRange { begin: key("message: begin")?, end: key("message: end")? });
                }
                Message::Loads { tag, ranges }
            }
            _ => return Err(invalid(DecodeError { what: "message: an unknown kind" })),
        };
        decoder.finish("message: bytes behind its end").map_err(invalid)?;
        Ok(message)
    }
}

impl Joined {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT_VERSION, KIND_JOIN];
        put_bytes(&mut out, &self.cluster_id);
        put_varint(&mut out, self.process);
        put_varint(&mut out, u64::from(self.tag.0));
        out.into()
    }

    /// The answer in `bytes`.
    ///
    /// # Errors
    /// `client_invalid_operation`: it is none that this build knows.
    pub(super) fn decode(bytes: &[u8]) -> Result<Joined> {
        let mut decoder = Decoder::new(bytes);
        let read = || {
            if take_head(&mut decoder)? != KIND_JOIN {
                return Err(DecodeError { what: "message: an answer to another question" });
            }
            let cluster_id = take_id(&mut decoder)?;
            let process = decoder.varint("message: process")?;
            let joined = Joined { cluster_id, process, tag: take_tag(&mut decoder)? };
            decoder.finish("message: bytes behind its end")?;
            Ok(joined)
        };
        read().map_err(invalid)
    }
}

/// The answer to what is only said: that it was heard.
pub(super) fn heard() -> Bytes {
    vec![FORMAT_VERSION, KIND_COMPLETE].into()
}

/// The answer to [`Message::Left`].
pub(super) fn left_answer() -> Bytes {
    vec![FORMAT_VERSION, KIND_LEFT].into()
}

fn take_head(decoder: &mut Decoder<'_>) -> std::result::Result<u8, DecodeError> {
    if decoder.u8("message: format version")? != FORMAT_VERSION {
        return Err(DecodeError {
            what: "message: a format that this build does not know; all processes of a cluster run the same FerrisDB",
        });
    }
    decoder.u8("message: kind")
}

pub(super) fn take_id(decoder: &mut Decoder<'_>) -> std::result::Result<[u8; 16], DecodeError> {
    decoder.bytes("message: id")?.try_into().map_err(|_| DecodeError { what: "message: id" })
}

pub(super) fn take_tag(decoder: &mut Decoder<'_>) -> std::result::Result<Tag, DecodeError> {
    u32::try_from(decoder.varint("message: tag")?).map(Tag).map_err(|_| DecodeError { what: "message: tag" })
}

fn take_version(decoder: &mut Decoder<'_>) -> std::result::Result<Version, DecodeError> {
    Version::new(decoder.varint("message: version")?).ok_or(DecodeError { what: "message: version" })
}

pub(super) fn invalid(error: DecodeError) -> Error {
    Error::with(
        Code::ClientInvalidOperation,
        format!("a process of the cluster said what this one does not understand: {}", error.what),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    fn examples() -> Vec<Message> {
        vec![
            Message::Raft { to: 300, message: Bytes::from_static(b"vote") },
            Message::Join { instance: [3; 16], peer: Peer { address: "h:1".to_owned(), zone: String::new() } },
            Message::Complete { process: 2, tag: Tag(9) },
            Message::Beat(super::super::beat::tests::example()),
            Message::Left { process: 2, instance: [3; 16] },
            Message::Order { asked: super::super::orders::tests::example(), is_sent_on: true },
            Message::Arrived {
                begin: "k".into(),
                id: Version::from_u64(300),
                tag: Tag(9),
                from: Version::from_u64(301),
            },
            Message::Advance,
            Message::Loads { tag: Tag(9), ranges: vec![KeyRange::new("", "k"), KeyRange::new("k", "z")] },
        ]
    }

    /// If this fails, the format has changed: that is a new format version.
    #[test]
    fn the_bytes_are_these() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found: Vec<_> = examples().iter().map(|message| hex(&message.encode())).collect();
        let join = format!("010210{}03683a3100", "03".repeat(16));
        let beat = format!("010402{}0309050000000000000001020304050607080a640b0c0d0e0f0d", "03".repeat(16));
        let left = format!("01050210{}", "03".repeat(16));
        assert_eq!(
            found,
            [
                "0101ac02766f7465",
                &join,
                "01030209",
                &beat,
                &left,
                "010601010103",
                "0110016bac0209ad02",
                "0111",
                "0112090200016b016b017a"
            ]
        );
        let joined = Joined { cluster_id: [4; 16], process: 2, tag: Tag(9) };
        assert_eq!(hex(&joined.encode()), format!("010210{}0209", "04".repeat(16)));
        assert_eq!(Joined::decode(&joined.encode()), Ok(joined));
    }

    #[test]
    fn what_is_written_is_read_and_damage_never_panics() {
        let mut random = SplitMix64::new(5);
        for message in examples() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Ok(message));
            for _ in 0..2_000 {
                let mut damaged = bytes.to_vec();
                let at = random.below(damaged.len() as u64) as usize;
                damaged[at] = random.next_u64() as u8;
                damaged.truncate(1 + random.below(damaged.len() as u64) as usize);
                let damaged = Bytes::from(damaged);
                if let Ok(other) = Message::decode(&damaged) {
                    assert_eq!(Message::decode(&other.encode()), Ok(other));
                }
                drop(Joined::decode(&damaged));
            }
        }
    }
}
