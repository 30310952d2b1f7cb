//! What a manifest edit makes of the space in blob files: [`settle`].
//!
//! Whoever makes an edit (flush, compaction, trivial move, whole tables dropped) says which tables go and which come, and which blob
//! files it wrote. What became garbage follows, in one place for all of them:
//!
//! ```text
//! garbage of a live file += references of removed tables − references of added tables
//! garbage of a new file   = its records − references of added tables = 0
//! ```

use std::collections::BTreeMap;

use super::record_bytes;
use crate::manifest::{FileNumber, ManifestEdit, ManifestState, TableMeta};
use crate::planted::{Bug, planted};

/// Completes `edit` with the garbage that it makes, and with the removal of blob files in which nothing is referred to afterwards.
/// `state` is what the edit will be applied to: the caller holds the manifest.
///
/// # Panics
/// If the added tables refer to more of a file than the removed ones did, which would be a pointer to a record that may be gone; or if
/// they do not refer to all records of a new file.
pub(crate) fn settle(state: &ManifestState, edit: &mut ManifestEdit) {
    let mut freed: BTreeMap<FileNumber, u64> =
        edit.added_blobs.iter().map(|blob| (blob.number, record_bytes(blob))).collect();
    for (_, number) in &edit.removed {
        let references = state.tables.get(number).map_or(&[][..], |(_, meta)| &meta.blob_references);
        for (blob, bytes) in references {
            *freed.entry(*blob).or_default() += bytes;
        }
    }
    let taken = |meta: &TableMeta, freed: &mut BTreeMap<FileNumber, u64>| {
        for (blob, bytes) in &meta.blob_references {
            let left = freed.get_mut(blob).and_then(|freed| freed.checked_sub(*bytes).map(|left| *freed = left));
            left.expect("a run refers only to what its inputs referred to and to what it wrote itself");
        }
    };
    edit.added.iter().for_each(|(_, meta)| taken(meta, &mut freed));
    for (number, bytes) in freed.into_iter().filter(|(_, bytes)| *bytes > 0) {
        let live =
            state.blobs.get(&number).expect("what a table refers to is live, and a run refers to all that it wrote");
        if live.garbage_bytes + bytes >= record_bytes(&live.meta) || planted(Bug::BlobRemovedWhileReferenced) {
            edit.removed_blobs.push(number);
        } else {
            edit.blob_garbage.push((number, bytes));
        }
    }
}

/// What does not hold in the accounts of a whole state, a sentence each: for every live file, records = garbage + references.
pub(crate) fn problems(state: &ManifestState) -> Vec<String> {
    let mut references: BTreeMap<FileNumber, u64> = BTreeMap::new();
    for (_, meta) in state.tables.values() {
        for (blob, bytes) in &meta.blob_references {
            let sum = references.entry(*blob).or_default();
            *sum = sum.saturating_add(*bytes);
        }
    }
    let unbalanced = state.blobs.values().filter_map(|blob| {
        let referred = references.get(&blob.meta.number).copied().unwrap_or(0);
        let records = record_bytes(&blob.meta);
        (referred.checked_add(blob.garbage_bytes) != Some(records)).then(|| {
            format!(
                "blob file {}: {records} bytes of records, but {} of garbage and {referred} that tables refer to",
                blob.meta.number, blob.garbage_bytes
            )
        })
    });
    unbalanced.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::format::HEADER_BYTES;
    use crate::manifest::{BlobMeta, EngineId};

    fn table(number: u64, references: &[(u64, u64)]) -> (u8, TableMeta) {
        let key = |end: &str| format!("{number:06}{end}").into_bytes().into();
        let meta = TableMeta {
            number: FileNumber(number),
            smallest: key("a"),
            largest: key("z"),
            l0_rank: number,
            blob_references: references.iter().map(|&(blob, bytes)| (FileNumber(blob), bytes)).collect(),
            ..TableMeta::default()
        };
        (0, meta)
    }

    fn blob(number: u64, records: u64) -> BlobMeta {
        BlobMeta { number: FileNumber(number), file_bytes: HEADER_BYTES + records }
    }

    fn apply(state: &mut ManifestState, mut edit: ManifestEdit) -> ManifestEdit {
        edit.next_file_number = Some(FileNumber(100));
        settle(state, &mut edit);
        state.apply(&edit).unwrap();
        assert_eq!(problems(state), [""; 0]);
        state.check();
        edit
    }

    /// A file's life: written, moved, shared by two tables, thinned out, gone with its last reference in the same edit.
    #[test]
    fn a_blob_file_dies_with_its_last_reference() {
        let mut state = ManifestState::new(EngineId([1; 16]));
        let garbage = |state: &ManifestState| state.blobs.get(&FileNumber(1)).map(|blob| blob.garbage_bytes);
        let added = vec![table(2, &[(1, 60)]), table(3, &[(1, 40)])];
        apply(&mut state, ManifestEdit { added, added_blobs: vec![blob(1, 100)], ..ManifestEdit::default() });
        assert_eq!(garbage(&state), Some(0));
        // A move: the same references go and come.
        let (removed, added) = (vec![(0, FileNumber(2))], vec![(1, table(2, &[(1, 60)]).1)]);
        let edit = apply(&mut state, ManifestEdit { removed, added, ..ManifestEdit::default() });
        assert!(edit.blob_garbage.is_empty() && garbage(&state) == Some(0));
        // A rewrite that drops half of the values, and relocates a few into a file of its own.
        let (removed, added) = (vec![(1, FileNumber(2))], vec![table(5, &[(1, 30), (4, 7)])]);
        apply(&mut state, ManifestEdit { removed, added, added_blobs: vec![blob(4, 7)], ..ManifestEdit::default() });
        assert_eq!(garbage(&state), Some(30));
        // Tables dropped unread.
        apply(&mut state, ManifestEdit { removed: vec![(0, FileNumber(3))], ..ManifestEdit::default() });
        assert_eq!(garbage(&state), Some(70));
        let edit = apply(&mut state, ManifestEdit { removed: vec![(0, FileNumber(5))], ..ManifestEdit::default() });
        assert_eq!(edit.removed_blobs, [FileNumber(1), FileNumber(4)]);
        assert!(state.blobs.is_empty());
    }

    /// A pointer that appears from nowhere is a bug of ours, and found before the edit is written.
    #[test]
    #[should_panic(expected = "a run refers only to what its inputs referred to")]
    fn a_reference_from_nowhere_is_refused() {
        let mut state = ManifestState::new(EngineId([1; 16]));
        let added = vec![table(2, &[(1, 100)])];
        apply(&mut state, ManifestEdit { added, added_blobs: vec![blob(1, 100)], ..ManifestEdit::default() });
        let (removed, added) = (vec![(0, FileNumber(2))], vec![table(3, &[(1, 101)])]);
        apply(&mut state, ManifestEdit { removed, added, ..ManifestEdit::default() });
    }
}
