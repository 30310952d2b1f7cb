//! What reading a WAL must survive: any bytes in a segment. The bodies of fuzz targets and of the tests' loops over mutated input.

use std::path::Path;
use std::sync::Arc;

use super::format::{ALIGNMENT, Place, RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN, SegmentHeader, framed_len};
use super::{RecordKind, Wal, WalOptions, WalPosition, inspect_segment};
use crate::fs::FileSystem;
use crate::fs::sim::SimFileSystem;
use crate::testing::decoders::Input;

const DIR: &str = "/wal";
const FILE: &str = "/wal/0000000001.wal";

/// A segment header and a record header in any bytes.
pub(crate) fn headers(bytes: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(bytes) {
        // What is reserved is not kept.
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
    let place = Place { identity: 3, segment: 9 };
    if let Some(header) = RecordHeader::decode(bytes, place, 128) {
        assert!(RecordHeader::decode(&header.encode(place, 128), place, 128).is_some());
    }
}

/// The bytes of the only segment of a log; read, recovered, looked into.
pub(crate) fn segment(bytes: &[u8]) {
    let disk = SimFileSystem::new();
    disk.create_dir_all(Path::new(DIR)).expect("the disk is empty");
    disk.write_raw(FILE, bytes);
    let options = WalOptions::default();
    let mut shown = 0u64;
    if let Ok((mut reader, _)) = Wal::read_only(Arc::new(disk.clone()), Path::new(DIR), &options) {
        while let Ok(Some(record)) = reader.next() {
            shown += record.payload.len() as u64 + 1;
            assert!(shown <= bytes.len() as u64, "records lie one behind the other");
        }
    }
    if let Ok(inspection) = inspect_segment(&disk, Path::new(FILE)) {
        assert!(inspection.take(bytes.len() + 1).count() <= bytes.len(), "it comes to an end");
    }
}

/// A segment with right checksums, whose headers say anything: per record a byte of length, the generation, the mark, the payload.
pub(crate) fn sealed_segment(bytes: &[u8]) {
    let place = Place { identity: WalOptions::default().identity, segment: 1 };
    let header = SegmentHeader {
        identity: place.identity,
        number: place.segment,
        previous_end: WalPosition::ZERO,
        synced: WalPosition::ZERO,
    };
    let mut file = header.encode().to_vec();
    debug_assert_eq!(file.len(), SEGMENT_HEADER_LEN as usize);
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let offset = u32::try_from(file.len()).expect("an input is small");
        let (shape, len) = (input.byte(), u32::from(input.byte()));
        let kind = if shape & 1 == 0 { RecordKind::Record } else { RecordKind::Mark };
        let generation = u16::from(shape >> 5);
        let synced = match shape >> 1 & 3 {
            0 => WalPosition::ZERO,
            1 => WalPosition::new(1, offset),
            _ => WalPosition::new(u32::from(input.byte() & 3), u32::from(input.byte()) * ALIGNMENT),
        };
        let payload = input.take(len as usize);
        let payload_crc = crc_fast::crc32_iscsi(payload).wrapping_add(u32::from(shape >> 3 & 3 == 3));
        // The length may be more than there is.
        let header = RecordHeader { kind, generation, payload_len: len, payload_crc, synced };
        file.extend(header.encode(place, offset));
        file.extend_from_slice(payload);
        let end = offset + framed_len(u32::try_from(payload.len()).expect("at most a byte's worth"));
        debug_assert!(end >= offset + RECORD_HEADER_LEN);
        file.resize(end as usize, 0);
    }
    segment(&file);
}
