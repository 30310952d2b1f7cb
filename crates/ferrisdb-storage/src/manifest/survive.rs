//! What reading a manifest must survive: any bytes. The bodies of fuzz targets and of the tests' loops over mutated input.

use std::path::Path;

use super::current::Current;
use super::edit::{EngineId, ManifestEdit};
use super::frame::{self, Header, SECTOR_BYTES};
use super::state::ManifestState;
use crate::testing::decoders::Input;

const ID: EngineId = EngineId(*b"sixteen bytes id");

/// One edit: what is accepted has exactly these bytes, unless it holds fields that are skipped; applied to an empty state, it
/// fits or is refused.
pub(crate) fn edit(bytes: &[u8]) {
    let Ok(edit) = ManifestEdit::decode(bytes) else { return };
    let again = edit.encode();
    assert!(again == bytes || again.len() < bytes.len(), "one encoding");
    apply(&mut ManifestState::new(ID), &edit);
}

fn apply(state: &mut ManifestState, edit: &ManifestEdit) {
    if state.apply(edit).is_ok() && state.problem().is_none() {
        state.check();
    }
}

/// A whole manifest file.
pub(crate) fn frames(bytes: &[u8]) {
    if let Ok(frames) = frame::decode(bytes) {
        assert!(frames.end <= bytes.len() as u64, "what was read lies in the file");
    }
    if let Ok((frames, _)) = frame::decode_prefix(bytes) {
        let mut state = ManifestState::new(frames.header.engine_id);
        for (_, record) in &frames.records {
            if let Ok(edit) = ManifestEdit::decode(record) {
                apply(&mut state, &edit);
            }
        }
    }
}

/// A manifest file whose sectors have right checksums and any content.
pub(crate) fn sealed_frames(bytes: &[u8]) {
    let mut file = frame::encode_header(&Header { manifest: 7, engine_id: ID });
    for part in bytes.chunks(SECTOR_BYTES - 4) {
        let mut sector = [&[0; 4], part].concat();
        sector.resize(SECTOR_BYTES, 1);
        let index = (file.len() / SECTOR_BYTES) as u64;
        let checksum = frame::sector_checksum(7, index, &sector);
        sector[..4].copy_from_slice(&checksum.to_le_bytes());
        file.extend(sector);
    }
    frames(&file);
}

/// A log of edits in right frames: a length of two bytes before each.
pub(crate) fn edits(bytes: &[u8]) {
    let mut file = frame::encode_header(&Header { manifest: 7, engine_id: ID });
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let len = input.length();
        let edit = input.take(len);
        if !edit.is_empty() {
            let record = frame::encode_record(7, file.len() as u64, edit);
            file.extend(record);
        }
    }
    frames(&file);
}

/// The bytes of CURRENT, as they are and with the checksum set right.
pub(crate) fn current(bytes: &[u8]) {
    let sealed = [bytes, format!("crc32c {:08x}\n", crc_fast::crc32_iscsi(bytes)).as_bytes()].concat();
    for bytes in [bytes, &sealed] {
        if let Ok(current) = Current::decode(Path::new("CURRENT"), bytes) {
            assert_eq!(current.encode(), bytes, "one form");
        }
    }
}

/// The edits of a well-formed manifest file, encoded.
pub(crate) fn records(file: &[u8]) -> Vec<Vec<u8>> {
    let frames = frame::decode(file).expect("the manifest is well formed");
    frames.records.into_iter().map(|(_, record)| record).collect()
}
