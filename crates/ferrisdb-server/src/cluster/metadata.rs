//! What the cluster's metadata says: its processes, and its storage servers.
//!
//! The metadata is a small map in the log's state, the same on every replica, changed only by batches of the coordinator's epoch.
//!
//! # Format (version 1; numbers are varints unless said otherwise)
//! ```text
//! \xff/process/ u64 process (big endian)   u8 format, bytes instance (16), bytes address, bytes zone, tag
//! \xff/storage/ u32 tag (big endian)       u8 format, process, u8 1 if it has begun, otherwise 0
//! \xff/shard/ ...                          who holds which keys: see `shards`
//! \xff/conf/replication                    how many replicas a shard is to have, in decimal digits
//! \xff/excluded/ u64 process (big endian)  the process is to hold nothing; whatever the value
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
    /// Processes that are to hold nothing.
    pub(super) excluded: BTreeSet<ProcessId>,
    /// How many replicas a shard is to have, if that is configured.
    pub(super) replication: Option<usize>,
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
                let number = number.try_into().map_err(|_| DecodeError { what: "metadata: an excluded process" })?;
                registry.excluded.insert(u64::from_be_bytes(number));
            } else if key == REPLICATION_KEY {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let number = number.filter(|&replicas: &usize| replicas > 0);
                registry.replication = Some(number.ok_or(DecodeError { what: "metadata: replication" })?);
            }
        }
        Ok(registry)
    }

    /// The process that a directory belongs to.
    pub(super) fn of_instance(&self, instance: [u8; 16]) -> Option<(ProcessId, &Process)> {
        let mut all = self.processes.iter().map(|(&number, process)| (number, process));
        all.find(|(_, process)| process.instance == instance)
    }

    /// How many replicas a shard is to have, if there are processes enough.
    pub(super) fn replicas(&self) -> usize {
        self.replication.unwrap_or(REPLICAS)
    }

    /// Where the processes are, comma-separated.
    pub(super) fn addresses(&self) -> String {
        let addresses: Vec<&str> = self.processes.values().map(|process| process.peer.address.as_str()).collect();
        addresses.join(",")
    }
}

impl Process {
    /// Writes it down.
    pub(super) fn set(&self, number: ProcessId) -> Mutation {
        let mut value = vec![FORMAT_VERSION];
        put_bytes(&mut value, &self.instance);
        put_bytes(&mut value, self.peer.address.as_bytes());
        put_bytes(&mut value, self.peer.zone.as_bytes());
        put_varint(&mut value, u64::from(self.tag.0));
        Mutation::set([PROCESS_PREFIX, &number.to_be_bytes()].concat(), value)
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
            ..Registry::default()
        }
    }

    fn written(registry: &Registry) -> BTreeMap<Bytes, Bytes> {
        let processes = registry.processes.iter().map(|(&number, process)| process.set(number));
        let storage = registry.storage.iter().map(|(&tag, storage)| storage.set(tag));
        processes.chain(storage).map(|mutation| (mutation.key, mutation.value)).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let registry = example();
        assert_eq!(Registry::read(&written(&registry)), Ok(registry.clone()));
        assert_eq!(registry.of_instance([8; 16]).map(|(number, _)| number), Some(300));
        assert_eq!(registry.of_instance([9; 16]), None);
        assert_eq!(registry.addresses(), "h:1,h:2");
    }

    /// If this fails, the format has changed: that is a new format version, and the old one is still to be read.
    #[test]
    fn the_bytes_are_these() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found: Vec<_> = written(&example()).iter().map(|(key, value)| (hex(key), hex(value))).collect();
        let process = |number: &str| format!("ff2f70726f636573732f{number}");
        let storage = |tag: &str| format!("ff2f73746f726167652f{tag}");
        let expected = [
            (process("0000000000000001"), format!("0110{}03683a31016100", "07".repeat(16))),
            (process("000000000000012c"), format!("0110{}03683a32016103", "08".repeat(16))),
            (storage("00000000"), "010101".to_owned()),
            (storage("00000003"), "01ac0200".to_owned()),
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
