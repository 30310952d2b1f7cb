//! What reading a blob file must survive: any bytes. The bodies of fuzz targets and of the tests' loops over mutated input.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::format::{HEADER_BYTES, check_header, encode_header, open_record};
use super::{BlobPointer, BlobReader};
use crate::cache::BlockCache;
use crate::fs::sim::SimFileSystem;
use crate::manifest::{BlobMeta, EngineId, FileNumber};
use crate::table::{ReadMode, TableId, sealed_frame};
use crate::testing::decoders::Input;

const ENGINE: EngineId = EngineId(*b"sixteen bytes id");
const NUMBER: FileNumber = FileNumber(300);

/// A pointer: what is accepted has one encoding and can be followed without overflow.
pub(crate) fn pointer(bytes: &[u8]) -> Option<BlobPointer> {
    let pointer = BlobPointer::decode(bytes).ok()?;
    let mut again = Vec::new();
    pointer.encode(&mut again);
    assert_eq!(again, bytes, "one encoding");
    assert!(pointer.offset >= HEADER_BYTES && pointer.end() >= pointer.offset);
    Some(pointer)
}

/// A header, as it is and with the checksum set right.
pub(crate) fn header(bytes: &[u8]) {
    drop(check_header(bytes, Path::new("300.blob"), ENGINE, NUMBER));
    if let Some(body) = bytes.get(..40) {
        let sealed = [body, &xxh3_64(body).to_le_bytes()].concat();
        if check_header(&sealed, Path::new("300.blob"), ENGINE, NUMBER).is_ok() {
            let mut right = Vec::new();
            encode_header(ENGINE, NUMBER, &mut right);
            assert_eq!(sealed, right, "one header");
        }
    }
}

/// A record and a pointer to it that says anything of its value's length: two bytes, then the record.
pub(crate) fn record(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let value_bytes = input.length() as u64;
    let rest = input.rest();
    for record in [rest.to_vec(), sealed_frame(rest, TableId(NUMBER.0), HEADER_BYTES)] {
        let pointer =
            BlobPointer { number: NUMBER, offset: HEADER_BYTES, record_bytes: record.len() as u64, value_bytes };
        if let Ok(value) = open_record(&record, &pointer) {
            assert_eq!(value.len() as u64, value_bytes, "the pointer says how long the value is");
        }
    }
}

/// A whole file with a right header, and a pointer into it: 16 bytes of pointer fields, then the records.
pub(crate) fn file(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [offset, record_bytes, value_bytes] = std::array::from_fn(|_| input.length() as u64);
    let mut file = Vec::new();
    encode_header(ENGINE, NUMBER, &mut file);
    file.extend_from_slice(input.rest());
    let disk = SimFileSystem::new();
    let path = Path::new("/000300.blob");
    disk.write_raw(path, &file);
    let meta = BlobMeta { number: NUMBER, file_bytes: file.len() as u64 };
    let cache = Arc::new(BlockCache::new(1 << 20));
    let reader = BlobReader::open_cached(&disk, path, meta, ENGINE, (&cache, cache.new_id()));
    let reader = reader.expect("the header is right");
    let mut encoded = Vec::new();
    BlobPointer { number: NUMBER, offset, record_bytes, value_bytes }.encode(&mut encoded);
    if let Some(pointer) = pointer(&encoded) {
        drop(reader.read_value(&pointer, ReadMode::Blocking));
    }
}
