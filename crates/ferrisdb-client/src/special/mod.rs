//! The special key space, `\xff\xff`...: keys that are stored nowhere and answered by the client.
//!
//! It is divided into modules. A read stays within one module (`special_keys_cross_module_read`) and must meet one
//! (`special_keys_no_module_found`), unless the option `special_key_space_relaxed` is set. Writing needs `special_key_space_enable_writes`
//! and a module that can be written.
//!
//! ```text
//! \xff\xff/cluster_file_path                              where this client learned of the database
//! \xff\xff/connection_string                              how the database is reached
//! \xff\xff/error_message                                  what was wrong with the last write of a special key, JSON
//! \xff\xff/status/json                                    the status document
//! \xff\xff/tracing/token, transaction_id                  may be written
//! \xff\xff/transaction/conflicting_keys/<key>             "1": a conflict of the last commit begins here, "0": it ends
//! \xff\xff/transaction/read_conflict_range/<key>          likewise the read conflict ranges so far
//! \xff\xff/transaction/write_conflict_range/<key>         likewise the write conflict ranges so far
//! ```
//!
//! Two modules lie below `\xff`, where FoundationDB keeps such keys: see [`system`].
//!
//! Reads of special keys are allowed at any time, also while the transaction commits and after it failed, when the conflicts are of
//! interest.

mod system;
pub(crate) mod tracing;

use std::sync::Arc;

use ferrisdb_core::key::{SYSTEM_END, printable};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, KeyValue, Result};

use self::system::{Part, SystemModule};
use crate::range::{RangeChunk, RangeOptions};
use crate::read::ReadFuture;
use crate::state::{Inner, State};
use crate::view::{Budget, ROW_OVERHEAD_BYTES};

const CLUSTER_FILE_PATH: &[u8] = b"\xff\xff/cluster_file_path";
const CONNECTION_STRING: &[u8] = b"\xff\xff/connection_string";
const ERROR_MESSAGE: &[u8] = b"\xff\xff/error_message";
const STATUS_JSON: &[u8] = b"\xff\xff/status/json";
const TRACING: &[u8] = b"\xff\xff/tracing/";
const TRANSACTION: &[u8] = b"\xff\xff/transaction/";
const CONFLICTING_KEYS: &[u8] = b"\xff\xff/transaction/conflicting_keys/";
const READ_CONFLICT_RANGE: &[u8] = b"\xff\xff/transaction/read_conflict_range/";
const WRITE_CONFLICT_RANGE: &[u8] = b"\xff\xff/transaction/write_conflict_range/";

/// True if the client answers what is read at a key, and the transaction may read there.
pub(crate) fn answers(state: &State, key: &[u8]) -> bool {
    key.starts_with(SYSTEM_END) || state.settings.reads_system && SystemModule::of(key).is_some()
}

/// The same for a range.
pub(crate) fn answers_range(state: &State, options: &RangeOptions) -> bool {
    let (begin, end) = (&options.begin.key, &options.end.key);
    begin.starts_with(SYSTEM_END) && end.starts_with(SYSTEM_END)
        || state.settings.reads_system && SystemModule::of(begin).is_some_and(|module| module.has_end(end))
}

/// A part of the special key space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    ClusterFilePath,
    ConnectionString,
    ErrorMessage,
    StatusJson,
    Tracing,
    Transaction,
}

impl Module {
    /// All of them, in the order of their keys.
    const ALL: [Module; 6] = [
        Module::ClusterFilePath,
        Module::ConnectionString,
        Module::ErrorMessage,
        Module::StatusJson,
        Module::Tracing,
        Module::Transaction,
    ];

    fn range(self) -> KeyRange {
        match self {
            Module::ClusterFilePath => KeyRange::single(CLUSTER_FILE_PATH),
            Module::ConnectionString => KeyRange::single(CONNECTION_STRING),
            Module::ErrorMessage => KeyRange::single(ERROR_MESSAGE),
            Module::StatusJson => KeyRange::single(STATUS_JSON),
            Module::Tracing => KeyRange::prefix(TRACING),
            Module::Transaction => KeyRange::prefix(TRANSACTION),
        }
    }

    fn of(key: &[u8]) -> Option<Module> {
        Module::ALL.into_iter().find(|module| module.range().contains(key))
    }

    fn can_be_written(self) -> bool {
        self == Module::Tracing
    }

    /// All its keys and values, in order.
    async fn rows(self, inner: &Inner) -> Result<Vec<KeyValue>> {
        let one = |key: &'static [u8], value: String| vec![row(key.to_vec(), value)];
        Ok(match self {
            Module::ClusterFilePath => one(CLUSTER_FILE_PATH, inner.database.cluster_file_path.clone()),
            Module::ConnectionString => one(CONNECTION_STRING, inner.database.description.connection_string.clone()),
            Module::ErrorMessage => match inner.with(|state| state.error_message.clone()) {
                Some(message) => one(ERROR_MESSAGE, message),
                None => Vec::new(),
            },
            Module::StatusJson => one(STATUS_JSON, inner.database.endpoint.status().await?),
            Module::Tracing => inner.with(|state| tracing::rows(inner, state)),
            Module::Transaction => inner.with(|state| {
                let mut rows = boundaries(CONFLICTING_KEYS, &state.conflicting);
                rows.extend(boundaries(READ_CONFLICT_RANGE, state.read_conflicts.ranges()));
                rows.extend(boundaries(WRITE_CONFLICT_RANGE, &state.overlay.write_conflicts()));
                rows
            }),
        })
    }
}

/// A special key's value.
pub(crate) fn get(inner: &Arc<Inner>, key: &[u8]) -> ReadFuture<Option<Bytes>> {
    if let Some(module) = SystemModule::of(key) {
        let entered = inner.with(|state| inner.enter(state).map(|()| state.epoch));
        let (key, of_rows) = (Bytes::copy_from_slice(key), Arc::clone(inner));
        let rest = async move {
            let rows = module.rows(&of_rows, &Part::of_key(&key)).await?;
            Ok(rows.into_iter().find(|row| row.key == key).map(|row| row.value))
        };
        return match entered {
            Ok(epoch) => ReadFuture::start(inner, epoch, true, Box::pin(rest)),
            Err(error) => ReadFuture::ready(Err(error)),
        };
    }
    let (epoch, is_relaxed) = inner.with(|state| (state.epoch, state.settings.special_relaxed));
    let module = match Module::of(key) {
        Some(module) => module,
        None if is_relaxed => return ReadFuture::ready(Ok(None)),
        None => return ReadFuture::ready(Err(no_module(key))),
    };
    let (key, of_rows) = (Bytes::copy_from_slice(key), Arc::clone(inner));
    let rest = async move {
        let rows = module.rows(&of_rows).await?;
        Ok(rows.into_iter().find(|row| row.key == key).map(|row| row.value))
    };
    ReadFuture::start(inner, epoch, false, Box::pin(rest))
}

/// Special keys in a range.
pub(crate) fn get_range(inner: &Arc<Inner>, options: RangeOptions, budget: Budget) -> ReadFuture<RangeChunk> {
    if let Some(module) = SystemModule::of(&options.begin.key) {
        let entered = inner.with(|state| {
            inner.enter(state)?;
            options.check_limits().map(|()| state.epoch)
        });
        let of_rows = Arc::clone(inner);
        let rest = async move {
            let part = Part::of_range(&options, &budget);
            Ok(cut(module.rows(&of_rows, &part).await?, &options, budget))
        };
        return match entered {
            Ok(epoch) => ReadFuture::start(inner, epoch, true, Box::pin(rest)),
            Err(error) => ReadFuture::ready(Err(error)),
        };
    }
    let begun = inner.with(|state| {
        options.check_limits()?;
        modules_of(&options, state.settings.special_relaxed).map(|modules| (state.epoch, modules))
    });
    let (epoch, modules) = match begun {
        Ok(begun) => begun,
        Err(error) => return ReadFuture::ready(Err(error)),
    };
    let of_rows = Arc::clone(inner);
    let rest = async move {
        let mut rows = Vec::new();
        for module in modules {
            rows.extend(module.rows(&of_rows).await?);
        }
        Ok(cut(rows, &options, budget))
    };
    ReadFuture::start(inner, epoch, false, Box::pin(rest))
}

/// The modules that a range reads.
fn modules_of(options: &RangeOptions, is_relaxed: bool) -> Result<Vec<Module>> {
    let (begin, end) = (&options.begin.key, &options.end.key);
    if is_relaxed {
        let range = KeyRange { begin: begin.clone(), end: end.clone() };
        return Ok(Module::ALL.into_iter().filter(|module| module.range().intersects(&range)).collect());
    }
    let module = Module::of(begin).ok_or_else(|| no_module(begin))?;
    let whole = module.range();
    if *end < whole.begin || *end > whole.end {
        let detail = format!("{} and {} are not of one module", printable(begin), printable(end));
        return Err(Error::with(Code::SpecialKeysCrossModuleRead, detail));
    }
    Ok(vec![module])
}

/// The rows between two selectors, as far as the budget goes.
fn cut(rows: Vec<KeyValue>, options: &RangeOptions, mut budget: Budget) -> RangeChunk {
    let place = |selector: &KeySelector| {
        let selector = selector.clone().without_or_equal();
        let at = rows.partition_point(|row| row.key < selector.key);
        let at = i64::try_from(at).unwrap_or(i64::MAX).saturating_add(i64::from(selector.offset) - 1);
        usize::try_from(at).unwrap_or(0).min(rows.len())
    };
    let (begin, end) = (place(&options.begin), place(&options.end));
    let mut chunk = RangeChunk::default();
    let inside = rows.get(begin..end).unwrap_or(&[]);
    let mut forward = inside.iter();
    let mut backward = inside.iter().rev();
    let next = || if options.reverse { backward.next() } else { forward.next() };
    for row in std::iter::from_fn(next) {
        chunk.rows.push(row.clone());
        let cost = ROW_OVERHEAD_BYTES + (row.key.len() + row.value.len()) as u64;
        budget.rows = budget.rows.map(|rows| rows - 1);
        budget.bytes = budget.bytes.map(|bytes| bytes.saturating_sub(cost));
        if budget.rows == Some(0) || budget.bytes == Some(0) {
            break;
        }
    }
    chunk.more = chunk.rows.len() < inside.len();
    chunk
}

/// A write of a special key.
pub(crate) fn set(inner: &Inner, state: &mut State, key: &[u8], value: &[u8]) -> Result<()> {
    check_writable(state)?;
    match Module::of(key) {
        Some(Module::Tracing) => tracing::set(inner, state, &key[TRACING.len()..], value),
        _ => Err(no_write_module(key)),
    }
}

/// A clear of special keys.
pub(crate) fn clear(_inner: &Inner, state: &mut State, range: &KeyRange) -> Result<()> {
    check_writable(state)?;
    let module = Module::of(&range.begin).filter(|module| module.can_be_written());
    let ends_in = |module: Module| range.end <= module.range().end;
    match module {
        None => Err(no_write_module(&range.begin)),
        Some(module) if !ends_in(module) => {
            let detail = format!("{} and {} are not of one module", printable(&range.begin), printable(&range.end));
            Err(Error::with(Code::SpecialKeysCrossModuleClear, detail))
        }
        Some(_) => Err(failure(state, "clear", "tracing options cannot be cleared")),
    }
}

/// `special_keys_api_failure`, with the message that `\xff\xff/error_message` says from now on.
fn failure(state: &mut State, command: &str, message: &str) -> Error {
    state.error_message = Some(format!("{{\"retriable\":false,\"command\":\"{command}\",\"message\":\"{message}\"}}"));
    Error::with(Code::SpecialKeysApiFailure, message)
}

fn check_writable(state: &State) -> Result<()> {
    if state.settings.special_writes { Ok(()) } else { Err(Code::SpecialKeysWriteDisabled.into()) }
}

/// Where ranges begin ("1") and end ("0").
fn boundaries(prefix: &[u8], ranges: &[KeyRange]) -> Vec<KeyValue> {
    let boundary = |key: &Bytes, value: &str| row([prefix, key.as_ref()].concat(), value);
    ranges.iter().flat_map(|range| [boundary(&range.begin, "1"), boundary(&range.end, "0")]).collect()
}

fn row(key: Vec<u8>, value: impl Into<String>) -> KeyValue {
    KeyValue { key: Bytes::from(key), value: Bytes::from(value.into()) }
}

fn no_module(key: &[u8]) -> Error {
    Error::with(Code::SpecialKeysNoModuleFound, format!("there is no module of special keys at {}", printable(key)))
}

fn no_write_module(key: &[u8]) -> Error {
    let detail = format!("there is no module of special keys at {} that can be written", printable(key));
    Error::with(Code::SpecialKeysNoWriteModuleFound, detail)
}
