//! What the cluster's metadata says: its processes, and its storage servers.
//!
//! The metadata is a small map in the log's state, the same on every replica, changed only by batches of the coordinator's epoch.
//!
//! # Format (version 1; numbers are varints unless said otherwise)
//! ```text
//! \xff/process/ u64 process (big endian)   u8 format, bytes instance (16), bytes address, bytes zone, tag
//! \xff/storage/ u32 tag (big endian)       u8 format, process, u8 1 if it has begun, otherwise 0
//! \xff/excluded/ u64 process (big endian)  u8 format: the process is to hold nothing
//! \xff/conf/replication                    u8 format, how many replicas a shard is to have
//! \xff/used                                u8 format, process, tag: no number and no tag up to these is given (again)
//! \xff/shard/ ...                          who holds which keys: see `shards`
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};
use ferrisdb_core::{Bytes, Mutation};

use crate::log::Tag;
use crate::log::replicated::{Peer, ProcessId};
use crate::log::state::{TAG_PREFIX, tag_key};

const FORMAT_VERSION: u8 = 1;
const PROCESS_PREFIX: &[u8] = b"\xff/process/";
const EXCLUDED_PREFIX: &[u8] = b"\xff/excluded/";
const REPLICATION_KEY: &[u8] = b"\xff/conf/replication";
const USED_KEY: &[u8] = b"\xff/used";
/// How many replicas a shard has unless something else is configured.
pub(super) const REPLICAS: usize = 3;

/// A process that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// Sixteen random bytes of its directory: who asks twice to be taken in is the same.
    pub(super) instance: [u8; 16],
    /// Where it is.
    pub(super) peer: Peer,
    /// The tag of its storage server.
    pub(super) tag: Tag,
}

/// A storage server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage {
    /// Where it runs.
    pub(super) process: ProcessId,
    /// It has begun: it can be given shards. (In a cluster of an older FerrisDB: it has all data.)
    pub(super) is_complete: bool,
}

/// The metadata, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Registry {
    /// By number; no number is given twice.
    pub(super) processes: BTreeMap<ProcessId, Process>,
    /// By tag; no tag is given twice.
    pub(super) storage: BTreeMap<Tag, Storage>,
    /// These are to hold nothing.
    pub(super) excluded: BTreeSet<ProcessId>,
    /// How many replicas a shard is to have, if somebody said.
    pub(super) replication: Option<u64>,
    /// The highest number and the highest tag that were ever given.
    pub(super) used: (ProcessId, Tag),
}

impl Registry {
    /// What the metadata says. An error is a bug, or the metadata of a newer FerrisDB.
    pub(super) fn read(metadata: &BTreeMap<Bytes, Bytes>) -> Result<Registry, DecodeError> {
        let mut registry = Registry::default();
        for (key, value) in metadata {
            if let Some(number) = key.strip_prefix(PROCESS_PREFIX) {
                let number = number.try_into().map_err(|_| DecodeError { what: "metadata: number of a process" })?;
                registry.processes.insert(u64::from_be_bytes(number), Process::decode(value)?);
            } else if let Some(tag) = key.strip_prefix(TAG_PREFIX) {
                let tag = tag.try_into().map_err(|_| DecodeError { what: "metadata: tag" })?;
                registry.storage.insert(Tag(u32::from_be_bytes(tag)), Storage::decode(value)?);
            } else if let Some(number) = key.strip_prefix(EXCLUDED_PREFIX) {
                let number = number.try_into().map_err(|_| DecodeError { what: "metadata: excluded process" })?;
                let mut decoder = Decoder::new(value);
                check_format(&mut decoder)?;
                decoder.finish("metadata: bytes behind an exclusion")?;
                registry.excluded.insert(u64::from_be_bytes(number));
            } else if key == REPLICATION_KEY {
                let mut decoder = Decoder::new(value);
                check_format(&mut decoder)?;
                registry.replication = Some(decoder.varint("metadata: replication")?);
                decoder.finish("metadata: bytes behind the replication")?;
            } else if key == USED_KEY {
                let mut decoder = Decoder::new(value);
                check_format(&mut decoder)?;
                registry.used.0 = decoder.varint("metadata: used process")?;
                let tag = u32::try_from(decoder.varint("metadata: used tag")?);
                registry.used.1 = Tag(tag.map_err(|_| DecodeError { what: "metadata: used tag" })?);
                decoder.finish("metadata: bytes behind what is used")?;
            }
        }
        let (process, tag) = registry.used;
        registry.used.0 = process.max(registry.processes.last_key_value().map_or(0, |(&last, _)| last));
        registry.used.1 = tag.max(registry.storage.last_key_value().map_or(Tag::FIRST, |(&last, _)| last));
        Ok(registry)
    }

    /// The storage server of a process, unless it has lost its tag.
    pub(super) fn storage_of(&self, process: ProcessId) -> Option<(Tag, Storage)> {
        let tag = self.processes.get(&process)?.tag;
        self.storage.get(&tag).filter(|storage| storage.process == process).map(|&storage| (tag, storage))
    }

    /// True if a process's storage server has everything.
    pub(super) fn is_complete(&self, process: ProcessId) -> bool {
        self.storage_of(process).is_some_and(|(_, storage)| storage.is_complete)
    }

    /// True if `tag` was given once, and is there no more. Without any process it is the registry of a replica that has not come so far, and knows nothing: the first tag is zero.
    pub(super) fn is_dropped(&self, tag: Tag) -> bool {
        self.used.0 > 0 && tag <= self.used.1 && !self.storage.contains_key(&tag)
    }

    /// Takes a process's tag; who holds it serves nothing from then on.
    pub(super) fn drop_tag(&self, tag: Tag) -> Vec<Mutation> {
        vec![self.set_used(self.used), clear(tag_key(tag))]
    }

    /// Takes everything from a process: its number means nobody from then on.
    pub(super) fn forget(&self, process: ProcessId) -> Vec<Mutation> {
        let mut mutations = vec![self.set_used(self.used)];
        mutations.extend(self.storage_of(process).map(|(tag, _)| clear(tag_key(tag))));
        mutations.push(clear(key_of(PROCESS_PREFIX, process)));
        mutations.push(clear(key_of(EXCLUDED_PREFIX, process)));
        mutations
    }

    /// Notes the highest number and tag that were given.
    pub(super) fn set_used(&self, (process, tag): (ProcessId, Tag)) -> Mutation {
        let mut value = vec![FORMAT_VERSION];
        put_varint(&mut value, process);
        put_varint(&mut value, u64::from(tag.0));
        Mutation::set(USED_KEY, value)
    }

    /// The process that a directory belongs to.
    pub(super) fn of_instance(&self, instance: [u8; 16]) -> Option<(ProcessId, &Process)> {
        let mut all = self.processes.iter().map(|(&number, process)| (number, process));
        all.find(|(_, process)| process.instance == instance)
    }

    /// How many replicas a shard is to have, if there are processes enough.
    pub(super) fn replicas(&self) -> usize {
        self.replication.map_or(REPLICAS, |replicas| usize::try_from(replicas).unwrap_or(REPLICAS))
    }

    /// Where the processes are, comma-separated.
    pub(super) fn addresses(&self) -> String {
        let addresses: Vec<&str> = self.processes.values().map(|process| process.peer.address.as_str()).collect();
        addresses.join(",")
    }
}

/// Has a process hold nothing.
pub(super) fn exclude(process: ProcessId) -> Mutation {
    Mutation::set(key_of(EXCLUDED_PREFIX, process), vec![FORMAT_VERSION])
}

/// Takes an excluded process back.
pub(super) fn include(process: ProcessId) -> Mutation {
    clear(key_of(EXCLUDED_PREFIX, process))
}

/// Says how many replicas a shard is to have.
pub(super) fn set_replication(copies: u64) -> Mutation {
    let mut value = vec![FORMAT_VERSION];
    put_varint(&mut value, copies);
    Mutation::set(REPLICATION_KEY, value)
}

fn key_of(prefix: &[u8], process: ProcessId) -> Bytes {
    [prefix, &process.to_be_bytes()].concat().into()
}

/// Takes one key.
fn clear(key: Bytes) -> Mutation {
    let end = [&key[..], b"\0"].concat();
    Mutation::clear_range(key, end)
}

impl Process {
    /// Writes it down.
    pub(super) fn set(&self, number: ProcessId) -> Mutation {
        let mut value = vec![FORMAT_VERSION];
        put_bytes(&mut value, &self.instance);
        put_bytes(&mut value, self.peer.address.as_bytes());
        put_bytes(&mut value, self.peer.zone.as_bytes());
        put_varint(&mut value, u64::from(self.tag.0));
        Mutation::set(key_of(PROCESS_PREFIX, number), value)
    }

    fn decode(value: &[u8]) -> Result<Process, DecodeError> {
        let mut decoder = Decoder::new(value);
        check_format(&mut decoder)?;
        let instance = decoder.bytes("metadata: instance")?;
        let instance = instance.try_into().map_err(|_| DecodeError { what: "metadata: instance" })?;
        let mut text = |what| {
            let bytes = decoder.bytes(what)?;
            String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError { what })
        };
        let peer = Peer { address: text("metadata: address")?, zone: text("metadata: zone")? };
        let tag = u32::try_from(decoder.varint("metadata: tag")?).map_err(|_| DecodeError { what: "metadata: tag" })?;
        decoder.finish("metadata: bytes behind a process")?;
        Ok(Process { instance, peer, tag: Tag(tag) })
    }
}

impl Storage {
    /// Writes it down.
    pub(super) fn set(&self, tag: Tag) -> Mutation {
        let mut value = vec![FORMAT_VERSION];
        put_varint(&mut value, self.process);
        value.push(u8::from(self.is_complete));
        Mutation::set(tag_key(tag), value)
    }

    fn decode(value: &[u8]) -> Result<Storage, DecodeError> {
        let mut decoder = Decoder::new(value);
        check_format(&mut decoder)?;
        let process = decoder.varint("metadata: process")?;
        let is_complete = decoder.u8("metadata: mark of completeness")? == 1;
        decoder.finish("metadata: bytes behind a storage server")?;
        Ok(Storage { process, is_complete })
    }
}

fn check_format(decoder: &mut Decoder<'_>) -> Result<(), DecodeError> {
    if decoder.u8("metadata: format version")? == FORMAT_VERSION {
        return Ok(());
    }
    Err(DecodeError { what: "metadata: a format that this build does not know" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Registry {
        let process = |instance, address: &str, tag| Process {
            instance: [instance; 16],
            peer: Peer { address: address.to_owned(), zone: "a".to_owned() },
            tag: Tag(tag),
        };
        Registry {
            processes: BTreeMap::from([(1, process(7, "h:1", 0)), (300, process(8, "h:2", 3))]),
            storage: BTreeMap::from([
                (Tag(0), Storage { process: 1, is_complete: true }),
                (Tag(3), Storage { process: 300, is_complete: false }),
            ]),
            excluded: BTreeSet::from([300]),
            replication: Some(3),
            used: (400, Tag(5)),
        }
    }

    fn written(registry: &Registry) -> BTreeMap<Bytes, Bytes> {
        let processes = registry.processes.iter().map(|(&number, process)| process.set(number));
        let storage = registry.storage.iter().map(|(&tag, storage)| storage.set(tag));
        let excluded = registry.excluded.iter().map(|&number| exclude(number));
        let replication = registry.replication.map(set_replication);
        let all = processes.chain(storage).chain(excluded).chain(replication).chain([registry.set_used(registry.used)]);
        all.map(|mutation| (mutation.key, mutation.value)).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let registry = example();
        assert_eq!(Registry::read(&written(&registry)), Ok(registry.clone()));
        assert_eq!(registry.of_instance([8; 16]).map(|(number, _)| number), Some(300));
        assert_eq!(registry.of_instance([9; 16]), None);
        assert_eq!(registry.addresses(), "h:1,h:2");
    }

    /// What is taken is gone, and neither number nor tag is given again.
    #[test]
    fn what_is_taken_is_not_given_again() {
        assert!(!Registry::default().is_dropped(Tag::FIRST), "nothing is known yet");
        let registry = Registry { used: (0, Tag(0)), ..example() };
        let mut state = crate::log::State::new(&[]);
        let metadata: Vec<_> = written(&registry).into_iter().map(|(key, value)| Mutation::set(key, value)).collect();
        state.set_metadata(&metadata);
        let read = |state: &crate::log::State| Registry::read(state.metadata()).unwrap();
        let registry = read(&state);
        assert_eq!(registry.used, (300, Tag(3)));
        assert!(!registry.is_dropped(Tag(3)) && !registry.is_dropped(Tag(4)), "it is there, and it is yet to come");
        state.set_metadata(&registry.drop_tag(Tag(3)));
        let registry = read(&state);
        assert!(registry.is_dropped(Tag(3)) && state.popped(Tag(3)).is_none());
        assert_eq!((registry.storage_of(300), registry.processes.len()), (None, 2));
        state.set_metadata(&registry.forget(300));
        let registry = read(&state);
        assert_eq!((registry.processes.len(), registry.excluded.len(), registry.used), (1, 0, (300, Tag(3))));
        state.set_metadata(&[set_replication(2), exclude(1)]);
        assert_eq!((read(&state).replication, read(&state).excluded), (Some(2), BTreeSet::from([1])));
        state.set_metadata(&[include(1)]);
        assert_eq!(read(&state).excluded, BTreeSet::new());
    }

    /// If this fails, the format has changed: that is a new format version, and the old one is still to be read.
    #[test]
    fn the_bytes_are_these() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found: Vec<_> = written(&example()).iter().map(|(key, value)| (hex(key), hex(value))).collect();
        let process = |number: &str| format!("ff2f70726f636573732f{number}");
        let storage = |tag: &str| format!("ff2f73746f726167652f{tag}");
        let expected = [
            ("ff2f636f6e662f7265706c69636174696f6e".to_owned(), "0103".to_owned()),
            ("ff2f6578636c756465642f000000000000012c".to_owned(), "01".to_owned()),
            (process("0000000000000001"), format!("0110{}03683a31016100", "07".repeat(16))),
            (process("000000000000012c"), format!("0110{}03683a32016103", "08".repeat(16))),
            (storage("00000000"), "010101".to_owned()),
            (storage("00000003"), "01ac0200".to_owned()),
            ("ff2f75736564".to_owned(), "01900305".to_owned()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn damaged_bytes_are_refused() {
        for (key, value) in written(&example()) {
            for len in 0..value.len() {
                let damaged = BTreeMap::from([(key.clone(), value.slice(..len))]);
                assert!(Registry::read(&damaged).is_err(), "{len} bytes of {key:?}");
            }
            let longer = [&value[..], b"x"].concat();
            assert!(Registry::read(&BTreeMap::from([(key, longer.into())])).is_err());
        }
    }
}
