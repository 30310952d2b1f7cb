//! What writes must do to the transaction's own view, and what they must refuse.

use std::collections::BTreeMap;

use ferrisdb_core::{Bytes, Code, KeyRange, Mutation, MutationKind};

use super::{Checked, Phase, STAMP_BYTES, Transaction, any_meets, equal, stamp_place, unexpected};
use crate::oracle::program::{Observed, Step};
use crate::oracle::view::{METADATA_VERSION, Own, View};

const KEY_BYTES_MAX: usize = 10_000;
const SYSTEM_KEY_BYTES_MAX: usize = 30_000;
const VALUE_BYTES_MAX: usize = 100_000;
pub(super) const SIZE_LIMIT_MIN: usize = 32;

impl Transaction {
    pub(super) fn write(&mut self, step: &Step, observed: &Observed) -> Checked {
        // Calls that return nothing return nothing also after the end; whoever says so at once may.
        // A deferred error stops no later call of this kind.
        let is_over = self.phase != Phase::Open || self.poison.is_some();
        if is_over {
            self.note_misuse(observed);
            return match observed {
                Observed::Done | Observed::Failed(_) => Ok(()),
                _ => unexpected(observed),
            };
        }
        match (self.effect(step), observed) {
            (Ok(()), Observed::Done) => Ok(()),
            (Err(code), Observed::Done) => {
                self.defer(code);
                Ok(())
            }
            (Err(code), Observed::Failed(found)) => equal("the error", found, &code),
            (Ok(()), _) => unexpected(observed),
            (Err(code), _) => Err(format!("found {observed:?}, expected {code:?}")),
        }
    }

    fn effect(&mut self, step: &Step) -> Result<(), Code> {
        match step {
            Step::Set { key, value, .. } => {
                self.check_write(key, value)?;
                self.own.push(Own::Set(key.clone(), value.clone()));
                self.change(Mutation::set(key.clone(), value.clone()), &KeyRange::single(key));
            }
            Step::Clear { key, .. } => {
                if key.as_ref() >= self.write_end() {
                    return Err(Code::KeyOutsideLegalRange);
                }
                if key.len() > key_bytes_max(key) {
                    self.next_write_no_conflict = false;
                    return Ok(());
                }
                self.clear(KeyRange::single(key));
            }
            Step::ClearRange { begin, end, .. } => {
                // A range that is none is told before where it is.
                if begin > end {
                    return Err(Code::InvertedRange);
                }
                if end.as_ref() > self.write_end() {
                    return Err(Code::KeyOutsideLegalRange);
                }
                if begin < end {
                    self.clear(KeyRange::new(begin.clone(), end.clone()));
                } else {
                    // A write all the same, as far as option 30 goes.
                    self.next_write_no_conflict = false;
                }
            }
            Step::Atomic { kind, key, operand, .. } => self.atomic(*kind, key, operand)?,
            Step::AtomicByNumber { .. } => return Err(Code::InvalidMutationType),
            Step::SystemKeys { reads, .. } => {
                self.reads_system = true;
                self.writes_system |= !reads;
            }
            Step::Timeout { millis, .. } if *millis < 0 => return Err(Code::InvalidOptionValue),
            // One that does not end.
            Step::Timeout { .. } => {}
            Step::ReadConflict { begin, end, .. } => {
                let range = check_conflict_range(begin, end, self.read_end())?;
                // What is covered by own writes, or was there before, need not be stored again.
                let is_new = self.own.is_empty() && !any_meets(&self.read_conflicts.may, std::slice::from_ref(&range));
                self.has_grown |= is_new && !range.is_empty();
                let must = if self.ryw_disabled { vec![range.clone()] } else { self.own_view().depends_on(&range) };
                self.read_conflicts.add_all(must, vec![range]);
            }
            Step::WriteConflict { begin, end, .. } => {
                let range = check_conflict_range(begin, end, self.write_end())?;
                self.has_grown |=
                    !range.is_empty() && !any_meets(&self.write_conflicts.may, std::slice::from_ref(&range));
                if !range.is_empty() {
                    self.write_conflicts.add(&range);
                }
            }
            Step::NextWriteNoConflict { .. } => self.next_write_no_conflict = true,
            Step::ReadYourWritesDisable { .. } => {
                if self.is_used {
                    return Err(Code::ClientInvalidOperation);
                }
                self.ryw_disabled = true;
            }
            Step::SnapshotReadYourWrites { enable, .. } => self.snapshot_ryw += if *enable { 1 } else { -1 },
            Step::RetryLimit { limit, .. } => self.retry_limit = *limit,
            // Who waits while the database is busy, and how a lost answer ends: nothing that is seen here.
            Step::Priority { .. } | Step::CausalWriteRisky { .. } => {}
            Step::SizeLimit { bytes, .. } => {
                let bytes = usize::try_from(*bytes).ok().filter(|bytes| *bytes >= SIZE_LIMIT_MIN);
                self.size_limit = Some(bytes.ok_or(Code::InvalidOptionValue)?);
            }
            Step::ReportConflictingKeys { .. } => self.reports_conflicts = true,
            Step::BypassUnreadable { .. } => self.bypasses_unreadable = true,
            Step::LockAware { read_only: false, .. } => (self.lock_aware, self.read_only) = (true, false),
            // Section 4 of the C API: 702 after 700 takes nothing away.
            Step::LockAware { .. } => {
                self.read_only |= !self.lock_aware;
                self.lock_aware = true;
            }
            _ => unreachable!("the other steps are checked elsewhere"),
        }
        Ok(())
    }

    /// Own writes over nothing: enough to tell which parts they cover.
    pub(super) fn own_view(&self) -> View<'_> {
        static NOTHING: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let (bypasses_unreadable, end) = (self.bypasses_unreadable, self.read_end());
        View { state: &NOTHING, own: &self.own, bypasses_unreadable, end }
    }

    fn check_write(&self, key: &[u8], value: &[u8]) -> Result<(), Code> {
        if key >= self.write_end() {
            Err(Code::KeyOutsideLegalRange)
        } else if key.len() > key_bytes_max(key) {
            Err(Code::KeyTooLarge)
        } else if value.len() > VALUE_BYTES_MAX {
            Err(Code::ValueTooLarge)
        } else {
            Ok(())
        }
    }

    fn change(&mut self, mutation: Mutation, conflict: &KeyRange) {
        self.mutations.push(mutation);
        self.add_write_conflict(conflict);
        self.has_grown = true;
        self.is_used = true;
    }

    fn clear(&mut self, range: KeyRange) {
        self.own.push(Own::Clear(range.clone()));
        self.change(Mutation::clear_range(range.begin.clone(), range.end.clone()), &range);
    }

    fn atomic(&mut self, kind: MutationKind, key: &Bytes, operand: &Bytes) -> Result<(), Code> {
        // Where a key is comes before what is wrong with it.
        if key.as_ref() >= self.write_end() && key != METADATA_VERSION {
            return Err(Code::KeyOutsideLegalRange);
        }
        match kind {
            MutationKind::SetVersionstampedKey => {
                let (body, offset) = stamp_place(key).ok_or(Code::ClientInvalidOperation)?;
                self.check_write(body, operand)?;
                let stamped = |stamp: &[u8], behind: &[u8]| {
                    Bytes::from([&body[..offset], stamp, &body[offset + STAMP_BYTES..], behind].concat())
                };
                let least = self.reads_at.as_ref().map_or(0, |(version, ..)| version + 1);
                let least = [least.to_be_bytes().as_slice(), &[0, 0]].concat();
                let range = KeyRange::new(stamped(&least, &[]), stamped(&[0xFF; STAMP_BYTES], &[0]));
                let range = KeyRange::new(range.begin, range.end.min(Bytes::from_static(self.read_end())));
                self.own.push(Own::Stamped(range, None));
                self.next_write_no_conflict = false;
                self.mutations.push(Mutation::new(kind, key.clone(), operand.clone()));
                (self.has_grown, self.is_used) = (true, true);
                // Its conflict range is known only with the commit, but it makes the transaction one that writes.
            }
            MutationKind::SetVersionstampedValue => {
                stamp_place(operand).ok_or(Code::ClientInvalidOperation)?;
                // Section 1: anybody may write that one in this way, and nobody in another.
                if key != METADATA_VERSION {
                    self.check_write(key, operand)?;
                } else if *operand != [0; 14][..] {
                    return Err(Code::ClientInvalidOperation);
                }
                self.own.push(Own::Stamped(KeyRange::single(key), Some(operand.clone())));
                self.change(Mutation::new(kind, key.clone(), operand.clone()), &KeyRange::single(key));
            }
            _ => {
                self.check_write(key, operand)?;
                self.own.push(Own::Atomic(kind, key.clone(), operand.clone()));
                self.change(Mutation::new(kind, key.clone(), operand.clone()), &KeyRange::single(key));
            }
        }
        Ok(())
    }
}

fn key_bytes_max(key: &[u8]) -> usize {
    if key.starts_with(&[0xFF]) { SYSTEM_KEY_BYTES_MAX } else { KEY_BYTES_MAX }
}

fn check_conflict_range(begin: &Bytes, end: &Bytes, legal_end: &[u8]) -> Result<KeyRange, Code> {
    if begin > end {
        Err(Code::InvertedRange)
    } else if end.as_ref() > legal_end {
        Err(Code::KeyOutsideLegalRange)
    } else {
        Ok(KeyRange::new(begin.clone(), end.clone()))
    }
}
