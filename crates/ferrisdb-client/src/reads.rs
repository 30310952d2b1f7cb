//! The reads of a transaction: checks, then the view, then the conflicts.
//!
//! A read sees what the transaction had written when the call was made. Its conflict range is added when it has succeeded.

use std::sync::Arc;

use ferrisdb_core::key::{SYSTEM_END, USER_END};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, Result, Version};
use ferrisdb_rpc::api::{GetRequest, SplitPointsRequest};

use crate::begin::Begin;
use crate::overlay::{Entry, Found, Overlay};
use crate::range::{RangeChunk, RangeOptions, conflict_of_key};
use crate::read::ReadFuture;
use crate::special;
use crate::state::{Inner, METADATA_VERSION_KEY, State};
use crate::view::{At, Place, View, unreadable};

/// A read of one key that was begun.
enum Get {
    Done(Result<Option<Bytes>>),
    /// It needs nothing more, and no commit needs to know of it: memory had it, or it failed or is trivial in such a way.
    Told(Result<Option<Bytes>>),
    Special,
    Ask(Ask),
}

struct Ask {
    epoch: u64,
    version: Begin,
    key: Bytes,
    /// What it conflicts with.
    conflict: Option<KeyRange>,
    /// The operations to apply to what is found.
    entry: Option<Entry>,
}

impl Inner {
    /// A key's value. If `fails_commit` is false the commit waits for the read, but does not fail with it.
    pub(crate) fn get(
        self: &Arc<Self>,
        key: &[u8],
        is_snapshot: bool,
        fails_commit: bool,
    ) -> ReadFuture<Option<Bytes>> {
        let begun = self.with(|state| self.begin_get(state, key, is_snapshot));
        let ask = match begun {
            Get::Ask(ask) => ask,
            Get::Special => return special::get(self, key),
            Get::Told(result) => return ReadFuture::ready(result),
            Get::Done(result) => {
                if fails_commit && result.is_err() {
                    self.note_read(self.with(|state| state.epoch), &result);
                }
                return ReadFuture::ready(result);
            }
        };
        let Ask { epoch, version, key, conflict, entry } = ask;
        let endpoint = &self.database.endpoint;
        match version {
            Begin::Now(Ok(version)) => match endpoint.get(GetRequest { key, version }).try_now() {
                Ok(result) => {
                    if fails_commit {
                        self.note_read(epoch, &result);
                    }
                    ReadFuture::ready(result.map(|value| self.end_get(epoch, conflict, entry, value)))
                }
                Err(answer) => {
                    let inner = Arc::clone(self);
                    let rest = async move { Ok(inner.end_get(epoch, conflict, entry, answer.await?)) };
                    ReadFuture::start(self, epoch, fails_commit, Box::pin(rest))
                }
            },
            Begin::Now(Err(error)) => {
                let result = Err(error);
                if fails_commit {
                    self.note_read(epoch, &result);
                }
                ReadFuture::ready(result)
            }
            Begin::Later(_) => {
                let inner = Arc::clone(self);
                let rest = async move {
                    let version = inner.version(epoch).await?;
                    let value = inner.database.endpoint.get(GetRequest { key, version }).await?;
                    Ok(inner.end_get(epoch, conflict, entry, value))
                };
                ReadFuture::start(self, epoch, fails_commit, Box::pin(rest))
            }
        }
    }

    fn begin_get(&self, state: &mut State, key: &[u8], is_snapshot: bool) -> Get {
        if key.first() == Some(&0xFF) && special::answers(state, key) {
            return match state.check_deferred() {
                Ok(()) => Get::Special,
                Err(error) => Get::Told(Err(error)),
            };
        }
        if let Err(error) = self.enter(state) {
            return Get::Told(Err(error));
        }
        if key >= state.read_end() && key != METADATA_VERSION_KEY {
            return Get::Told(Err(outside(key)));
        }
        if key.len() > self.limits().key_bytes_for(key) {
            // No such key can exist.
            return Get::Told(Ok(None));
        }
        state.note_read_begun();
        let (mut conflicts, mut entry) = (!is_snapshot || planted(Bug::SnapshotReadConflicts), None);
        if state.sees_own_writes(is_snapshot) && !state.overlay.is_transparent() {
            conflicts &= state.overlay.conflicts_at(key);
            let is_shown = planted(Bug::MetadataVersionReadable) && key == METADATA_VERSION_KEY;
            match state.overlay.find(key, state.settings.bypass_unreadable || is_shown, self.limits().value_bytes) {
                Found::Unreadable => return Get::Done(Err(unreadable())),
                Found::Known(value) => {
                    if conflicts {
                        state.add_read_conflict_key(key);
                    }
                    return Get::Told(Ok(value));
                }
                Found::Dependent(dependent) => entry = Some(dependent.clone()),
                Found::Unmodified => {}
            }
        }
        let version = self.ask_version(state);
        // What memory has is read under the transaction's lock: to let it go and take it again for the conflict costs more than it gives to others.
        if let Begin::Now(Ok(version)) = version
            && entry.is_none()
            && let Some(value) = self.database.endpoint.get_here(key, version)
        {
            if conflicts {
                state.add_read_conflict_key(key);
            }
            return Get::Told(Ok(value));
        }
        let (key, conflict) = if conflicts {
            // One allocation for all three.
            let single = KeyRange::single(key);
            (single.begin.clone(), Some(single))
        } else {
            (Bytes::copy_from_slice(key), None)
        };
        Get::Ask(Ask { epoch: state.epoch, version, key, conflict, entry })
    }

    fn end_get(
        &self,
        epoch: u64,
        conflict: Option<KeyRange>,
        entry: Option<Entry>,
        found: Option<Bytes>,
    ) -> Option<Bytes> {
        if let Some(conflict) = conflict {
            self.with(|state| {
                if state.epoch == epoch {
                    state.add_read_conflict(conflict);
                }
            });
        }
        match entry {
            None => found,
            Some(entry) => entry.fold(found, self.limits().value_bytes),
        }
    }

    /// The key at a place.
    pub(crate) fn get_key(self: &Arc<Self>, selector: KeySelector, is_snapshot: bool) -> ReadFuture<Bytes> {
        let begun = self.with(|state| {
            self.enter(state)?;
            if *selector.key > *state.read_end() {
                return Err(outside(&selector.key));
            }
            Ok(self.begin_view(state, is_snapshot))
        });
        let (view, epoch) = match begun {
            Ok(begun) => begun,
            Err(error) => return ReadFuture::ready(Err(error)),
        };
        let inner = Arc::clone(self);
        let rest = async move {
            let key = match view.resolve(&selector.clone().without_or_equal()).await? {
                Place::Front => Bytes::new(),
                Place::Key(key) => key,
                Place::End => view.end.clone(),
            };
            if !is_snapshot {
                inner.add_read_conflicts(epoch, &view.overlay, &conflict_of_key(&selector, &key));
            }
            Ok(key)
        };
        ReadFuture::start(self, epoch, true, Box::pin(rest))
    }

    /// A chunk of a range.
    pub(crate) fn get_range(self: &Arc<Self>, options: RangeOptions, is_snapshot: bool) -> ReadFuture<RangeChunk> {
        let budget = match options.budget() {
            Ok(budget) => budget,
            Err(error) => return ReadFuture::ready(Err(error)),
        };
        if options.begin.key.first() == Some(&0xFF) && self.with(|state| special::answers_range(state, &options)) {
            let checked = self.with(|state| state.check_deferred());
            return match checked {
                Ok(()) => special::get_range(self, options, budget),
                Err(error) => ReadFuture::ready(Err(error)),
            };
        }
        let begun = self.with(|state| {
            self.enter(state)?;
            let end = state.read_end();
            for selector in [&options.begin, &options.end] {
                if *selector.key > *end {
                    return Err(outside(&selector.key));
                }
            }
            options.check_limits()?;
            let begin = options.begin.clone().without_or_equal();
            let end = options.end.clone().without_or_equal();
            let options = RangeOptions { begin, end, ..options.clone() };
            if options.is_inverted() {
                return Ok(None);
            }
            let (view, epoch) = self.begin_view(state, is_snapshot);
            Ok(Some((view, epoch, options)))
        });
        let (view, epoch, options) = match begun {
            Ok(Some(begun)) => begun,
            Ok(None) => return ReadFuture::ready(Ok(RangeChunk::default())),
            Err(error) => return ReadFuture::ready(Err(error)),
        };
        let inner = Arc::clone(self);
        let rest = async move {
            let (chunk, conflict) = view.chunk(&options, budget).await?;
            if !is_snapshot {
                inner.add_read_conflicts(epoch, &view.overlay, &conflict);
            }
            Ok(chunk)
        };
        ReadFuture::start(self, epoch, true, Box::pin(rest))
    }

    /// About how many bytes a range has.
    pub(crate) fn estimated_size(self: &Arc<Self>, range: KeyRange) -> ReadFuture<u64> {
        let epoch = match self.begin_metadata(&range) {
            Ok(epoch) => epoch,
            Err(error) => return ReadFuture::ready(Err(error)),
        };
        ReadFuture::start(self, epoch, true, Box::pin(self.database.endpoint.estimated_size(range)))
    }

    /// Where to cut a range.
    pub(crate) fn split_points(
        self: &Arc<Self>,
        range: KeyRange,
        part_bytes: u64,
        limit: u32,
    ) -> ReadFuture<Vec<Bytes>> {
        let epoch = match self.begin_metadata(&range) {
            Ok(epoch) => epoch,
            Err(error) => return ReadFuture::ready(Err(error)),
        };
        if part_bytes == 0 {
            let detail = "a part has at least one byte";
            return ReadFuture::ready(Err(Error::with(Code::ClientInvalidOperation, detail)));
        }
        let request = SplitPointsRequest { range: range.clone(), part_bytes, limit };
        let answer = self.database.endpoint.split_points(request);
        let rest = async move {
            let inside = answer.await?;
            let mut points = Vec::with_capacity(inside.len() + 2);
            points.push(range.begin.clone());
            points.extend(inside.into_iter().filter(|point| range.begin < *point && *point < range.end));
            points.push(range.end);
            Ok(points)
        };
        ReadFuture::start(self, epoch, true, Box::pin(rest))
    }

    /// Where a key is.
    pub(crate) fn addresses_for_key(self: &Arc<Self>, key: Bytes) -> ReadFuture<Vec<String>> {
        let begun = self.with(|state| self.enter(state).map(|()| state.epoch));
        match begun {
            Err(error) => ReadFuture::ready(Err(error)),
            Ok(epoch) => ReadFuture::start(self, epoch, true, Box::pin(self.database.endpoint.addresses_for_key(key))),
        }
    }

    fn begin_metadata(&self, range: &KeyRange) -> Result<u64> {
        self.with(|state| {
            self.enter(state)?;
            if range.begin > range.end {
                return Err(inverted(range));
            }
            if *range.end > *state.read_end() {
                return Err(outside(&range.end));
            }
            Ok(state.epoch)
        })
    }

    pub(crate) fn begin_view(self: &Arc<Self>, state: &mut State, is_snapshot: bool) -> (View, u64) {
        state.note_read_begun();
        let overlay: &Arc<Overlay> =
            if state.sees_own_writes(is_snapshot) { &state.overlay } else { &self.database.empty_overlay };
        // A version that is known saves asking for it again under the lock.
        let at = match state.known_version() {
            Some(version) => At::Version(version),
            None => At::Transaction { inner: Arc::clone(self), epoch: state.epoch },
        };
        let view = View {
            endpoint: Arc::clone(&self.database.endpoint),
            at,
            overlay: Arc::clone(overlay),
            bypass_unreadable: state.settings.bypass_unreadable,
            value_bytes_max: self.limits().value_bytes,
            end: Bytes::from_static(state.read_end()),
        };
        (view, state.epoch)
    }

    /// The read version, asked for if need be.
    pub(crate) fn get_read_version(self: &Arc<Self>) -> ReadFuture<Version> {
        let begun = self.with(|state| {
            state.check_deferred()?;
            self.check_poison(state)?;
            Ok((self.ask_version(state), state.epoch))
        });
        match begun {
            Err(error) => ReadFuture::ready(Err(error)),
            Ok((Begin::Now(result), _)) => ReadFuture::ready(result),
            Ok((Begin::Later(_), epoch)) => {
                let inner = Arc::clone(self);
                ReadFuture::start(self, epoch, false, Box::pin(async move { inner.version(epoch).await }))
            }
        }
    }
}

/// `key_outside_legal_range`, with the key.
pub(crate) fn outside(key: &[u8]) -> Error {
    let space = match key {
        key if key.starts_with(SYSTEM_END) => "a special key",
        key if key.starts_with(USER_END) => "a system key: the option access_system_keys or read_system_keys allows it",
        _ => "not a key that may be used here",
    };
    let key = ferrisdb_core::key::printable(key);
    Error::with(Code::KeyOutsideLegalRange, format!("{key} is {space}"))
}

/// `inverted_range`, with the range.
pub(crate) fn inverted(range: &KeyRange) -> Error {
    let (begin, end) = (ferrisdb_core::key::printable(&range.begin), ferrisdb_core::key::printable(&range.end));
    Error::with(Code::InvertedRange, format!("{begin} is behind {end}"))
}
