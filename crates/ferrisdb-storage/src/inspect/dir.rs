//! An engine's directory: which file is what, whether the manifest names it, and the levels.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::manifest::state_fields;
use super::{Cell, Sink};
use crate::engine::files::{FileKind, LOCK, OPTIONS, WAL_DIR, blob_path, file_kind, noting_remains, table_path};
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::levels::LEVELS;
use crate::manifest::log::{self, is_manifest_name, parse_manifest_file_name};
use crate::manifest::{FileNumber, ManifestState, Recovered, TableMeta};
use crate::wal::inspect_segment;

/// What becomes of a file.
const LIVE: &str = "live";
/// Nothing names it: the next open for writing removes it.
const LEFTOVER: &str = "leftover";
/// A WAL segment that is prepared, or waits to be used again.
const SPARE: &str = "spare";
const MISSING: &str = "missing";
const WRONG_LENGTH: &str = "wrong length";

/// Tells what is in a directory. Without a readable manifest the files are told all the same, but not which of them are live.
///
/// # Errors
/// What is wrong with the manifest; [`Error::MissingFile`] or [`Error::Corruption`] for the first file that is not as the manifest
/// says; [`Error::Io`], and the sink's.
pub fn dir(fs: &dyn FileSystem, path: &Path, sink: &mut dyn Sink) -> Result<()> {
    let mut names = list(fs, path)?;
    let recovered = log::read(fs, path);
    let state = recovered.as_ref().ok().map(|recovered| &recovered.state);
    sink.field("directory", path.to_string_lossy().as_ref().into())?;
    if let Ok(recovered) = &recovered {
        sink.field("manifest", recovered.manifest.into())?;
        state_fields(&recovered.state, sink)?;
        names.extend(named(&recovered.state, path));
    }

    sink.table("files", &["file", "kind", "state", "file_bytes", "level", "entries", "smallest", "largest"])?;
    let mut damage = None;
    for name in names {
        if name == WAL_DIR {
            for segment in list(fs, &path.join(WAL_DIR))? {
                let segment = format!("{WAL_DIR}/{segment}");
                let row = Row { kind: "WAL segment", ..Row::of_segment(fs, &path.join(&segment), state) };
                row.tell(&segment, fs.len(&path.join(&segment)).ok(), sink)?;
            }
            continue;
        }
        let file = path.join(&name);
        let bytes = fs.len(&file).ok();
        let row = Row::of_file(&name, bytes, recovered.as_ref().ok());
        if damage.is_none() {
            damage = row.damage(&file, bytes);
        }
        row.tell(&name, bytes, sink)?;
    }

    if let Some(state) = state {
        levels(state, sink)?;
        blob_files(state, sink)?;
    }
    recovered.map_err(|error| noting_remains(fs, error))?;
    damage.map_or(Ok(()), Err)
}

/// The names in a directory, and so that they can be sorted with others.
fn list(fs: &dyn FileSystem, path: &Path) -> Result<BTreeSet<String>> {
    let names = fs.list(path).map_err(|error| Error::io("list", path, error))?;
    Ok(names.iter().map(|name| name.to_string_lossy().into_owned()).collect())
}

/// The names of the files that the manifest names: each must be there.
fn named(state: &ManifestState, path: &Path) -> Vec<String> {
    let tables = state.tables.keys().map(|number| table_path(path, *number));
    let blobs = state.blobs.keys().map(|number| blob_path(path, *number));
    let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    tables.chain(blobs).filter_map(name).collect()
}

/// What is told about a file. `None`: cannot be said, or does not apply.
#[derive(Default)]
struct Row<'a> {
    kind: &'static str,
    state: Option<&'static str>,
    live_bytes: Option<u64>,
    table: Option<(u8, &'a TableMeta)>,
}

impl<'a> Row<'a> {
    fn of_file(name: &str, bytes: Option<u64>, recovered: Option<&'a Recovered>) -> Row<'a> {
        let live_or_leftover = |live: bool| if live { LIVE } else { LEFTOVER };
        let state = recovered.map(|recovered| &recovered.state);
        match file_kind(Path::new(name)) {
            FileKind::Table(number) => {
                let table = state.and_then(|state| state.tables.get(&number)).map(|(level, meta)| (*level, &**meta));
                let live_bytes = table.map(|(_, meta)| meta.file_bytes);
                Row { kind: "table", state: state.map(|_| named_state(bytes, live_bytes)), live_bytes, table }
            }
            FileKind::Blob(number) => {
                let live_bytes = state.and_then(|state| blob_bytes(state, number));
                Row { kind: "blob file", state: state.map(|_| named_state(bytes, live_bytes)), live_bytes, table: None }
            }
            FileKind::Temporary => Row { kind: "temporary", state: Some(LEFTOVER), ..Row::default() },
            FileKind::Other => {
                let manifest = parse_manifest_file_name(name);
                let is_current = recovered.map(|recovered| live_or_leftover(manifest == Some(recovered.manifest)));
                match name {
                    LOCK => Row { kind: "lock", state: Some(LIVE), ..Row::default() },
                    OPTIONS => Row { kind: "options", state: Some(LIVE), ..Row::default() },
                    _ if manifest.is_some() => Row { kind: "manifest", state: is_current, ..Row::default() },
                    _ if is_manifest_name(name) => {
                        Row { kind: "names the manifest", state: Some(LIVE), ..Row::default() }
                    }
                    _ => Row { kind: "not ours", ..Row::default() },
                }
            }
        }
    }

    /// A segment is live if its own header says that it is used, and used by this engine.
    fn of_segment(fs: &dyn FileSystem, path: &Path, state: Option<&ManifestState>) -> Row<'a> {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".wal")?.parse::<u32>().ok());
        let header = inspect_segment(fs, path).ok().map(|segment| segment.header());
        let identity = state.map(|state| state.engine_id.wal_identity());
        let used = header.is_some_and(|header| {
            Some(header.number) == number && identity.is_none_or(|identity| identity == header.identity)
        });
        Row { state: Some(if used { LIVE } else { SPARE }), ..Row::default() }
    }

    fn damage(&self, file: &Path, bytes: Option<u64>) -> Option<Error> {
        match self.state? {
            MISSING => Some(Error::MissingFile { file: file.into() }),
            WRONG_LENGTH => {
                let (found, named) = (bytes?, self.live_bytes?);
                let what = format!("the file has {found} bytes, but the manifest says {named}");
                Some(Error::corruption(file, found.min(named), what))
            }
            _ => None,
        }
    }

    fn tell(&self, name: &str, bytes: Option<u64>, sink: &mut dyn Sink) -> Result<()> {
        let meta = self.table.map(|(_, meta)| meta);
        sink.row(&[
            name.into(),
            self.kind.into(),
            self.state.into(),
            bytes.into(),
            self.table.map(|(level, _)| u32::from(level)).into(),
            meta.map(|meta| meta.entries).into(),
            meta.map(|meta| meta.smallest.as_ref()).into(),
            meta.map(|meta| meta.largest.as_ref()).into(),
        ])
    }
}

/// The state of a file that the manifest may name, with its length as it is and as the manifest says.
fn named_state(bytes: Option<u64>, live_bytes: Option<u64>) -> &'static str {
    match (bytes, live_bytes) {
        (_, None) => LEFTOVER,
        (None, Some(_)) => MISSING,
        (Some(found), Some(named)) if found != named => WRONG_LENGTH,
        _ => LIVE,
    }
}

fn blob_bytes(state: &ManifestState, number: FileNumber) -> Option<u64> {
    state.blobs.get(&number).map(|blob| blob.meta.file_bytes)
}

fn levels(state: &ManifestState, sink: &mut dyn Sink) -> Result<()> {
    sink.table("levels", &["level", "tables", "file_bytes", "entries", "smallest", "largest"])?;
    let all = state.levels();
    for level in 0..LEVELS {
        let tables = all.level(level).tables();
        if tables.is_empty() {
            continue;
        }
        let smallest = tables.iter().map(|meta| meta.smallest.as_ref()).min();
        let largest = tables.iter().map(|meta| meta.largest.as_ref()).max();
        sink.row(&[
            level.into(),
            tables.len().into(),
            all.level(level).bytes().into(),
            Cell::Number(tables.iter().map(|meta| meta.entries).sum()),
            smallest.into(),
            largest.into(),
        ])?;
    }
    Ok(())
}

/// What is in each live blob file, if there are any.
fn blob_files(state: &ManifestState, sink: &mut dyn Sink) -> Result<()> {
    if state.blobs.is_empty() {
        return Ok(());
    }
    sink.table("blob_files", &["blob_file", "file_bytes", "referenced_bytes", "garbage_bytes", "tables"])?;
    for (number, blob) in &state.blobs {
        let references = || {
            let tables = state.tables.values().flat_map(|(_, meta)| &meta.blob_references);
            tables.filter(|(to, _)| to == number)
        };
        sink.row(&[
            number.0.into(),
            blob.meta.file_bytes.into(),
            references().map(|(_, bytes)| *bytes).sum::<u64>().into(),
            blob.garbage_bytes.into(),
            references().count().into(),
        ])?;
    }
    Ok(())
}
