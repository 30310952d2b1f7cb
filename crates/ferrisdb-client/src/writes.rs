//! The writes of a transaction: what is refused, and what goes into the overlay. What is refused is told later: see "Deferred errors" in
//! the module `state`.

use ferrisdb_core::key::{SYSTEM_END, key_after};
use ferrisdb_core::versionstamp::{OFFSET_BYTES, VERSIONSTAMP_BYTES, stamp_offset};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, MutationKind, Result, Version};

use crate::reads::{inverted, outside};
use crate::special;
use crate::state::{Inner, METADATA_VERSION_KEY, State, cut_bound};

/// The only value that may be written to [`METADATA_VERSION_KEY`]: a template for a versionstamp and nothing else.
const METADATA_VERSION_VALUE: [u8; VERSIONSTAMP_BYTES + OFFSET_BYTES] = [0; VERSIONSTAMP_BYTES + OFFSET_BYTES];

impl Inner {
    /// `key` becomes `value`.
    pub(crate) fn set(&self, key: &[u8], value: &[u8]) {
        self.with(|state| {
            let result = self.try_set(state, key, value);
            state.defer(result);
        });
    }

    fn try_set(&self, state: &mut State, key: &[u8], value: &[u8]) -> Result<()> {
        if key.starts_with(SYSTEM_END) {
            return special::set(self, state, key, value);
        }
        let conflicts = state.take_write_conflict_wish();
        self.check_commit(state)?;
        if key == METADATA_VERSION_KEY {
            return Err(metadata_version());
        }
        if key >= state.write_end() {
            return Err(outside(key));
        }
        self.check_sizes(key, value)?;
        let (single, value) = (KeyRange::single(key), Bytes::copy_from_slice(value));
        state.count_mutation(key.len() + value.len());
        state.note_written(&single, Some(Some(&value)));
        state.overlay_mut().set(&single.begin, value);
        if conflicts {
            state.add_write_conflict(&single);
        }
        Ok(())
    }

    /// `key` loses its value.
    pub(crate) fn clear(&self, key: &[u8]) {
        self.with(|state| {
            let result = self.try_clear(state, key);
            state.defer(result);
        });
    }

    fn try_clear(&self, state: &mut State, key: &[u8]) -> Result<()> {
        if key.starts_with(SYSTEM_END) {
            return special::clear(self, state, &KeyRange::single(key));
        }
        let conflicts = state.take_write_conflict_wish();
        self.check_commit(state)?;
        if key >= state.write_end() {
            return Err(outside(key));
        }
        if key.len() > self.limits().key_bytes_for(key) {
            // No such key can exist.
            return Ok(());
        }
        clear(state, &KeyRange::single(key), conflicts);
        Ok(())
    }

    /// The keys of a range lose their values.
    pub(crate) fn clear_range(&self, range: KeyRange) {
        self.with(|state| {
            let result = self.try_clear_range(state, range);
            state.defer(result);
        });
    }

    fn try_clear_range(&self, state: &mut State, range: KeyRange) -> Result<()> {
        if range.begin > range.end {
            return Err(inverted(&range));
        }
        if range.begin.starts_with(SYSTEM_END) {
            return special::clear(self, state, &range);
        }
        let conflicts = state.take_write_conflict_wish();
        self.check_commit(state)?;
        if *range.end > *state.write_end() {
            return Err(outside(&range.end));
        }
        let range = self.cut_range(range);
        if !range.is_empty() {
            clear(state, &range, conflicts);
        }
        Ok(())
    }

    /// An atomic operation.
    pub(crate) fn atomic_op(&self, key: &[u8], operand: &[u8], kind: MutationKind) {
        self.with(|state| {
            let result = self.try_atomic_op(state, key, operand, kind);
            state.defer(result);
        });
    }

    fn try_atomic_op(&self, state: &mut State, key: &[u8], operand: &[u8], kind: MutationKind) -> Result<()> {
        let conflicts = state.take_write_conflict_wish();
        self.check_commit(state)?;
        if key == METADATA_VERSION_KEY {
            if kind != MutationKind::SetVersionstampedValue || operand != METADATA_VERSION_VALUE {
                return Err(metadata_version());
            }
        } else if key >= state.write_end() {
            return Err(outside(key));
        }
        if matches!(kind, MutationKind::Set | MutationKind::ClearRange) {
            let detail = format!("{} is not an atomic operation", kind.number());
            return Err(Error::with(Code::InvalidMutationType, detail));
        }
        self.check_sizes(key, operand)?;
        let value_bytes_max = self.limits().value_bytes;
        let (key, operand) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(operand));
        if kind == MutationKind::SetVersionstampedKey {
            let range = possible_keys(&key, state.known_version(), state.read_end())?;
            state.count_mutation(key.len() + operand.len());
            state.overlay_mut().set_stamped_key(key, operand, &range);
            state.note_written(&range, None);
            // The final key is added to the write conflicts by who knows it.
            return Ok(());
        }
        let single = KeyRange::single(&key);
        if kind == MutationKind::SetVersionstampedValue {
            if stamp_offset(&operand).is_none() {
                return Err(bad_template("value"));
            }
            state.count_mutation(key.len() + operand.len());
            state.overlay_mut().set_stamped_value(&single.begin, operand);
        } else {
            state.count_mutation(key.len() + operand.len());
            state.overlay_mut().atomic(&single.begin, kind, operand, value_bytes_max);
        }
        if conflicts {
            state.add_write_conflict(&single);
        }
        state.note_written(&single, None);
        Ok(())
    }

    /// Whoever writes in `range` from the read version on makes this transaction conflict. What the transaction itself has written
    /// there is left out.
    pub(crate) fn add_read_conflict_range(&self, range: KeyRange) {
        self.with(|state| {
            let result = self.try_add_read_conflict(state, range);
            state.defer(result);
        });
    }

    fn try_add_read_conflict(&self, state: &mut State, range: KeyRange) -> Result<()> {
        self.check_commit(state)?;
        if *range.end > *state.read_end() {
            return Err(outside(&range.end));
        }
        let range = self.cut_range(range);
        if state.settings.is_ryw_disabled {
            if !range.is_empty() {
                state.add_read_conflict(range);
            }
            return Ok(());
        }
        let overlay = std::sync::Arc::clone(&state.overlay);
        overlay.conflicting_parts(&range, |part| state.add_read_conflict(part));
        Ok(())
    }

    /// This transaction makes others conflict that have read something in `range`.
    pub(crate) fn add_write_conflict_range(&self, range: KeyRange) {
        self.with(|state| {
            let result = self.try_add_write_conflict(state, range);
            state.defer(result);
        });
    }

    fn try_add_write_conflict(&self, state: &mut State, range: KeyRange) -> Result<()> {
        self.check_commit(state)?;
        if *range.end > *state.write_end() {
            return Err(outside(&range.end));
        }
        let range = self.cut_range(range);
        if !range.is_empty() {
            state.add_write_conflict(&range);
        }
        Ok(())
    }

    fn cut_range(&self, range: KeyRange) -> KeyRange {
        let limits = self.limits();
        KeyRange { begin: cut_bound(limits, range.begin), end: cut_bound(limits, range.end) }
    }

    fn check_sizes(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let limits = self.limits();
        let key_bytes_max = limits.key_bytes_for(key);
        if key.len() > key_bytes_max {
            let detail = format!("a key of {} bytes: {key_bytes_max} are allowed", key.len());
            return Err(Error::with(Code::KeyTooLarge, detail));
        }
        if value.len() > limits.value_bytes {
            let detail = format!("a value of {} bytes: {} are allowed", value.len(), limits.value_bytes);
            return Err(Error::with(Code::ValueTooLarge, detail));
        }
        Ok(())
    }
}

fn clear(state: &mut State, range: &KeyRange, conflicts: bool) {
    state.count_mutation(range.begin.len() + range.end.len());
    state.overlay_mut().clear(range);
    if conflicts {
        state.add_write_conflict(range);
    }
    state.note_written(range, Some(None));
}

/// The keys that a template can become: from the first stamp after the read version on, up to the last there is.
fn possible_keys(template: &[u8], version: Option<Version>, end: &[u8]) -> Result<KeyRange> {
    let offset = stamp_offset(template).ok_or_else(|| bad_template("key"))?;
    let with_stamp = |stamp: [u8; VERSIONSTAMP_BYTES]| {
        let mut key = template[..template.len() - OFFSET_BYTES].to_vec();
        key[offset..offset + VERSIONSTAMP_BYTES].copy_from_slice(&stamp);
        key
    };
    let mut first = [0; VERSIONSTAMP_BYTES];
    let after = version.map_or(0, |version| version.get() + 1);
    first[..8].copy_from_slice(&after.to_be_bytes());
    let (begin, last) = (with_stamp(first), with_stamp([0xFF; VERSIONSTAMP_BYTES]));
    let end = key_after(&last).min(Bytes::copy_from_slice(end));
    Ok(KeyRange { begin: Bytes::from(begin), end })
}

fn bad_template(what: &str) -> Error {
    let detail = format!(
        "the {what} ends with four bytes that say, little-endian, where its versionstamp goes, and ten bytes must have room there"
    );
    Error::with(Code::ClientInvalidOperation, detail)
}

fn metadata_version() -> Error {
    let detail = "\\xff/metadataVersion takes only set_versionstamped_value with fourteen zero bytes";
    Error::with(Code::ClientInvalidOperation, detail)
}
