//! Every decoder of bytes that come from a disk, as one function each that takes any bytes: [`DECODERS`].
//!
//! A fuzz target in `fuzz/` calls one of them; [`mutate_all`], which an ordinary test calls, calls all with a fixed number of mutated
//! examples. A function returns if the bytes were refused or accepted, and panics if a decoder did or broke a promise.
//!
//! OPTIONS is missing: it is written for people and never read.

use std::path::Path;

use ferrisdb_core::{Random, SplitMix64, Version};

use super::{DIR, Machine};
use crate::batch::BatchRecord;
use crate::fs::FileSystem;
use crate::fs::sim::SimFileSystem;
use crate::table::{TableId, put_together, survive as table, take_apart};
use crate::{Compression, Durability, Options, WriteBatch};
use crate::{blob::survive as blob, manifest::survive as manifest, wal::survive as wal};

/// Bytes that are taken apart into numbers and pieces; at their end, zeros and empty pieces.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Two bytes.
    pub(crate) fn length(&mut self) -> usize {
        usize::from(self.byte()) | usize::from(self.byte()) << 8
    }

    /// So many bytes, or those that are left.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A decoder.
pub struct Decoder {
    /// The name of its fuzz target.
    pub name: &'static str,
    /// Panics if the decoder does not survive these bytes.
    pub survive: fn(&[u8]),
    /// Well-formed bytes to begin with.
    examples: fn(&Examples) -> Vec<Vec<u8>>,
}

/// All of them, by name.
pub const DECODERS: &[Decoder] = &[
    Decoder { name: "batch", survive: batch, examples: |on| on.batches.clone() },
    Decoder {
        name: "blob_file",
        survive: blob::file,
        examples: |on| on.blobs.iter().map(|blob| pointed(blob)).collect(),
    },
    Decoder { name: "blob_header", survive: blob::header, examples: |on| on.blobs.clone() },
    Decoder {
        name: "blob_pointer",
        survive: |bytes| {
            blob::pointer(bytes);
        },
        examples: |_| vec![vec![1, 48, 109, 100], vec![0xAC, 2, 48, 10, 1]],
    },
    Decoder { name: "blob_record", survive: blob::record, examples: |_| vec![b"\x03\x00abc\x00".to_vec()] },
    Decoder { name: "lock_file", survive: lock_file, examples: |on| on.files("LOCK") },
    Decoder { name: "manifest_current", survive: manifest::current, examples: |on| on.files("CURRENT") },
    Decoder { name: "manifest_edit", survive: manifest::edit, examples: |on| on.edits() },
    Decoder {
        name: "manifest_edits",
        survive: manifest::edits,
        examples: |on| vec![on.edits().iter().flat_map(|edit| with_length(edit)).collect()],
    },
    Decoder { name: "manifest_frames", survive: manifest::frames, examples: |on| on.files("MANIFEST") },
    Decoder {
        name: "manifest_sealed",
        survive: manifest::sealed_frames,
        examples: |on| {
            let sectors = |file: &Vec<u8>| file[512..].chunks(512).flat_map(|sector| sector[4..].to_vec()).collect();
            on.files("MANIFEST").iter().map(sectors).collect()
        },
    },
    Decoder { name: "table", survive: table::table, examples: |on| vec![put_together(&on.parts())] },
    Decoder {
        name: "table_block",
        survive: |bytes| {
            table::block(bytes);
        },
        examples: |on| on.parts().blocks,
    },
    Decoder { name: "table_file", survive: table::file, examples: |on| on.files(".sst") },
    Decoder { name: "table_filter", survive: table::filter, examples: |on| vec![on.parts().filter] },
    Decoder { name: "table_footer", survive: table::footer, examples: |on| vec![on.parts().footer] },
    Decoder {
        name: "table_frame",
        survive: table::frame,
        examples: |on| on.parts().blocks.iter().map(|block| [&block[..], &[0]].concat()).collect(),
    },
    Decoder { name: "table_index", survive: table::index, examples: |on| vec![on.parts().index] },
    Decoder { name: "table_properties", survive: table::properties, examples: |on| vec![on.parts().properties] },
    Decoder { name: "table_tombstones", survive: table::range_tombstones, examples: |on| vec![on.parts().tombstones] },
    Decoder { name: "wal_headers", survive: wal::headers, examples: |on| on.files(".wal") },
    Decoder {
        name: "wal_sealed",
        survive: wal::sealed_segment,
        examples: |on| {
            vec![on.batches.iter().flat_map(|batch| framed(batch)).collect(), b"\x01\x00\x02\x03abc".to_vec()]
        },
    },
    Decoder { name: "wal_segment", survive: wal::segment, examples: |on| on.files(".wal") },
];

/// Calls the decoder of that name.
///
/// # Panics
/// If it does not survive, or if there is none.
pub fn survive(name: &str, bytes: &[u8]) {
    let decoder = DECODERS.iter().find(|decoder| decoder.name == name).expect("a target has the name of a decoder");
    (decoder.survive)(bytes);
}

/// What a batch is in the WAL.
pub(crate) fn batch(bytes: &[u8]) {
    if let Ok(record) = BatchRecord::decode(bytes, Path::new("wal"), 0) {
        assert!(record.operations().count() <= bytes.len(), "an operation takes bytes");
    }
}

/// Who holds a directory, as the holder wrote it.
fn lock_file(bytes: &[u8]) {
    let disk = SimFileSystem::new();
    disk.write_raw("/LOCK", bytes);
    let holder = disk.lock_holder(Path::new("/LOCK")).expect("the file is there");
    assert!(holder.len() <= 3 * 1024, "a message of some lines at most");
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("the examples are small");
    [&len.to_le_bytes(), bytes].concat()
}

/// A record for `sealed_segment`.
fn framed(payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).expect("the examples are small");
    [&[0, len], payload].concat()
}

/// The records of a blob file, with a pointer to the first.
fn pointed(file: &[u8]) -> Vec<u8> {
    let fields = [48, u16::try_from(file.len() - 48).expect("the examples are small"), 100].map(u16::to_le_bytes);
    [&fields.concat(), &file[48..]].concat()
}

/// The files of a small engine, to begin with.
struct Examples {
    disk: SimFileSystem,
    blobs: Vec<Vec<u8>>,
    batches: Vec<Vec<u8>>,
}

impl Examples {
    /// An engine that has tables with range tombstones, a blob file, and a WAL with records.
    fn new() -> Examples {
        const WORKS: &str = "nothing is wrong with this disk";
        let machine = Machine::new(SimFileSystem::new(), 1);
        let options = Options {
            blob_value_bytes: Some(100),
            compression: [Compression::None; 7],
            block_bytes: 4096,
            wal_segment_bytes: 4096,
            ..Options::tiny()
        };
        let engine = machine.open(options).expect(WORKS);
        let mut batches = Vec::new();
        for round in 0..3u8 {
            let mut batch = WriteBatch::new();
            batch.delete_range(&[b'k', round], b"key005").put(b"large", &[round; 100]).delete(b"z");
            batch.set_owner_state(b"owner");
            for n in 0..20 {
                batch.put(format!("key{n:03}").as_bytes(), format!("value {n} of {round}").as_bytes());
            }
            // Short enough for a length of one byte, as some examples want it.
            let mut short = Vec::new();
            BatchRecord::encode_header(Version::from_u64(1 << 40), &mut short);
            short.extend_from_slice(WriteBatch::new().delete_range(b"a", b"c").put(b"key", b"value").data());
            batches.push(short);
            engine.write(batch, Durability::Sync).expect(WORKS);
            if round < 2 {
                engine.flush().expect(WORKS);
            }
        }
        engine.close().expect(WORKS);
        let disk = machine.disk.fork();
        let blobs = named(&disk, ".blob");
        Examples { disk, blobs, batches }
    }

    fn files(&self, part: &str) -> Vec<Vec<u8>> {
        named(&self.disk, part)
    }

    fn parts(&self) -> crate::table::Parts {
        let (path, _) = tables(&self.disk).into_iter().next().expect("a table was flushed");
        let number = path.strip_suffix(".sst").and_then(|name| name.rsplit('/').next()?.parse().ok());
        let bytes = self.disk.read_raw(&path).expect("it was just listed");
        take_apart(&bytes, TableId(number.expect("tables are numbered")))
    }

    fn edits(&self) -> Vec<Vec<u8>> {
        let file = self.files("MANIFEST").pop().expect("there is one");
        manifest::records(&file)
    }
}

fn tables(disk: &SimFileSystem) -> Vec<(String, u64)> {
    let files = disk.files().into_iter().map(|(path, len)| (path.to_string_lossy().into_owned(), len));
    files.filter(|(path, _)| path.starts_with(DIR) && path.ends_with(".sst")).collect()
}

fn named(disk: &SimFileSystem, part: &str) -> Vec<Vec<u8>> {
    let paths = disk.files().into_iter().map(|(path, _)| path);
    let paths = paths.filter(|path| path.to_string_lossy().contains(part));
    paths.map(|path| disk.read_raw(path).expect("it was just listed")).collect()
}

/// Well-formed inputs of each decoder: where a fuzzer begins.
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let examples = Examples::new();
    DECODERS.iter().map(|decoder| (decoder.name, (decoder.examples)(&examples))).collect()
}

/// Changes some bytes, cuts, repeats or doubles pieces.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut SplitMix64) {
    let below = |random: &mut SplitMix64, limit: usize| {
        usize::try_from(random.below(limit as u64)).expect("it is below a usize")
    };
    for _ in 0..1 + random.below(4) {
        let at = below(random, bytes.len() + 1);
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next_u64().to_le_bytes()[0]),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            4 if at < bytes.len() => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][below(random, 5)],
            5 => {
                let len = below(random, (bytes.len() - at).min(40) + 1);
                bytes.extend_from_within(at..at + len);
            }
            _ if at < bytes.len() => bytes[at] = random.next_u64().to_le_bytes()[0],
            _ => {}
        }
    }
}

/// Calls every decoder with its examples, with `rounds` mutations of them, and with noise. Says at a panic which decoder and seed.
pub fn mutate_all(rounds: u64, seed: u64) {
    let examples = Examples::new();
    for decoder in DECODERS {
        let examples = (decoder.examples)(&examples);
        assert!(!examples.is_empty(), "{} has no example", decoder.name);
        examples.iter().for_each(|example| (decoder.survive)(example));
        for round in 0..rounds {
            let seed = seed.wrapping_add(round);
            let mut random = SplitMix64::new(seed);
            let place = format!("{} did not survive: replay with FERRISDB_TEST_SEED={seed}", decoder.name);
            let told = Told(&place);
            let mut bytes = if random.one_in(8) {
                (0..random.below(200)).map(|_| random.next_u64().to_le_bytes()[0]).collect()
            } else {
                let which = random.below(examples.len() as u64);
                examples[usize::try_from(which).expect("it is an index")].clone()
            };
            mutate(&mut bytes, &mut random);
            (decoder.survive)(&bytes);
            drop(told);
        }
    }
}

/// Says where a panic happened.
struct Told<'a>(&'a str);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a disk returns, no decoder panics, loops or takes what it should refuse: a fixed number of mutated inputs each.
    #[test]
    fn every_decoder_survives_mutated_bytes() {
        let seed = std::env::var("FERRISDB_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
        mutate_all(seed.map_or(4000, |_| 1), seed.unwrap_or(1));
    }

    /// The names are those of the fuzz targets, and every target has its decoder.
    #[test]
    fn every_decoder_has_a_fuzz_target() {
        let manifest = include_str!("../../../../fuzz/Cargo.toml");
        let targets: Vec<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
            .filter(|name| *name != "operations")
            .collect();
        let names: Vec<&str> = DECODERS.iter().map(|decoder| decoder.name).collect();
        assert_eq!(targets, names);
    }
}
