//! What transactions tell of themselves, and steps that begin before another one has ended.

use ferrisdb_core::{Bytes, Code, KeyRange};

use super::{Checked, Model, Phase, Ranges, Transaction, due, equal, unexpected};
use crate::oracle::program::{Observed, Step};
use crate::oracle::view::{Own, SYSTEM_END};

/// Bytes that a commit may have beside what its program gave it: the key that makes it conflict with itself.
const EXTRA_BYTES: usize = 100;

/// What a commit that conflicts may report, and what it must: the parts of what was read that meet what was written since.
pub(super) fn conflicting(since: &[Ranges], read: &Ranges) -> Ranges {
    let meet = |ranges: &[KeyRange], written: fn(&Ranges) -> &Vec<KeyRange>| -> Vec<KeyRange> {
        let meets =
            |range: &&KeyRange| since.iter().any(|one| written(one).iter().any(|other| other.intersects(range)));
        ranges.iter().filter(meets).cloned().collect()
    };
    Ranges { must: meet(&read.must, |one| &one.must), may: meet(&read.may, |one| &one.may) }
}

/// True if each key of `range` is in one of `ranges`.
fn is_covered(range: &KeyRange, ranges: &[KeyRange]) -> bool {
    let mut from = range.begin.clone();
    while from < range.end {
        let Some(next) = ranges.iter().filter(|one| one.contains(&from)).map(|one| one.end.clone()).max() else {
            return false;
        };
        from = next;
    }
    true
}

impl Transaction {
    /// The ranges so far: at least what the contract demands, and nothing but what it allows. After the end what there was at the end, or an error.
    pub(super) fn conflict_ranges(&mut self, of_writes: bool, observed: &Observed) -> Checked {
        let ranges = match observed {
            Observed::Ranges(ranges) => ranges,
            // Special keys are answered at any time but while there is an error to tell, or after the transaction was ended by force.
            Observed::Failed(code) if self.failing().contains(code) => return Ok(()),
            _ => return unexpected(observed),
        };
        if !matches!(self.phase, Phase::Open | Phase::Ended) {
            return Ok(());
        }
        let known = if of_writes { &self.write_conflicts } else { &self.read_conflicts };
        if let Some(missing) = known.must.iter().find(|range| !range.is_empty() && !is_covered(range, ranges)) {
            return Err(format!("{missing:?} is not among the conflict ranges {ranges:?}"));
        }
        match ranges.iter().find(|range| range.is_empty() || !is_covered(range, &known.may)) {
            Some(invented) => {
                Err(format!("{invented:?} is among the conflict ranges, of which there may be {:?}", known.may))
            }
            None => Ok(()),
        }
    }

    /// After a conflict, and if that was asked for before, the ranges in which it was; otherwise none.
    pub(super) fn conflicting_keys(&mut self, observed: &Observed) -> Checked {
        let ranges = match observed {
            Observed::Ranges(ranges) => ranges,
            Observed::Failed(code) if self.failing().contains(code) => return Ok(()),
            _ => return unexpected(observed),
        };
        let Some((known, is_certain)) = self.conflicting.as_ref().filter(|_| self.reports_conflicts) else {
            return equal("conflicting keys", &ranges[..], &[]);
        };
        if let Some(missing) = known.must.iter().find(|range| !ranges.iter().any(|told| told.intersects(range))) {
            return Err(format!("the conflict in {missing:?} is not reported: {ranges:?}"));
        }
        let is_known = |told: &KeyRange| known.may.iter().any(|range| range.intersects(told));
        match ranges.iter().find(|told| *is_certain && !is_known(told)) {
            Some(invented) => Err(format!("a conflict in {invented:?} is reported, and may be in {:?}", known.may)),
            None if *is_certain && ranges.is_empty() => Err("a conflict is reported to be nowhere".to_owned()),
            None => Ok(()),
        }
    }

    /// Any number, of a range that is one.
    pub(super) fn estimated_size(&mut self, begin: &Bytes, end: &Bytes, observed: &Observed) -> Checked {
        let wrong = [(begin > end, Code::InvertedRange), (end.as_ref() > self.read_end(), Code::KeyOutsideLegalRange)];
        let mut due_here = wrong.into_iter().filter(|(is_wrong, _)| *is_wrong).map(|(_, code)| code);
        match observed {
            Observed::Failed(code) if due_here.clone().any(|wrong| wrong == *code) => Ok(()),
            Observed::Failed(code) if self.failing().contains(code) => {
                self.note_misuse(observed);
                Ok(())
            }
            Observed::Size(_) if due_here.next().is_none() && self.failing().is_empty() => Ok(()),
            _ => unexpected(observed),
        }
    }

    /// Bytes that it has at least when it commits, and at most. What is written over may be sent or not; what own writes hide of reads may be cut out.
    fn bytes(&self) -> (usize, usize) {
        let mut least = 0;
        for (place, own) in self.own.iter().enumerate() {
            let Own::Set(key, value) = own else { continue };
            let is_kept = |later: &Own| match later {
                Own::Set(other, _) | Own::Atomic(_, other, _) => other != key,
                Own::Clear(range) | Own::Stamped(range, _) => !range.contains(key),
            };
            if self.own[place + 1..].iter().all(is_kept) {
                least += key.len() + value.len();
            }
        }
        let mutations: usize = self.mutations.iter().map(|mutation| mutation.key.len() + mutation.value.len()).sum();
        let ranges = [&self.read_conflicts, &self.write_conflicts].into_iter().flat_map(|ranges| &ranges.may);
        let conflicts: usize = ranges.map(|range| range.begin.len() + range.end.len()).sum();
        // Each write may cut what was read in two; and what stands before a stamp is sent, and once more what was made of it after.
        let cuts: usize = self
            .own
            .iter()
            .map(|own| match own {
                Own::Set(key, _) | Own::Atomic(_, key, _) => 2 * key.len() + 1,
                Own::Clear(range) | Own::Stamped(range, _) => range.begin.len() + range.end.len(),
            })
            .sum();
        let stamps = self.own.iter().filter(|own| matches!(own, Own::Stamped(..))).count();
        (least, mutations * (1 + stamps) + conflicts + cuts + EXTRA_BYTES)
    }
}

impl Model {
    /// Option 503: true if the commit was refused for its size, as it should, or may.
    pub(super) fn is_too_large(&mut self, slot: usize, observed: &Observed) -> Result<bool, String> {
        let Some(limit) = self.of(slot).size_limit else { return Ok(false) };
        let (least, most) = self.of(slot).bytes();
        match observed {
            Observed::Failed(Code::TransactionTooLarge) if most > limit => Ok(true),
            Observed::Failed(Code::TransactionTooLarge) => {
                Err(format!("{most} bytes at most are no more than {limit}"))
            }
            // Nobody asks how large it is that may not be at all.
            Observed::Failed(Code::TransactionReadOnly | Code::DatabaseLocked) => Ok(false),
            _ if least > limit => {
                Err(format!("found {observed:?} for {least} bytes at least, of which {limit} are allowed"))
            }
            _ => Ok(false),
        }
    }

    pub(super) fn set_read_version(&mut self, slot: usize, version: i64, observed: &Observed) -> Checked {
        let recent = self.recent.iter().find(|(at, ..)| i64::try_from(*at) == Ok(version)).cloned();
        let transaction = self.of(slot);
        if transaction.poison.is_none() {
            match recent {
                _ if transaction.reads_at.is_some() => transaction.defer(Code::ReadVersionAlreadySet),
                Some(recent) => transaction.reads_at = Some(recent),
                None => transaction.defer(Code::VersionInvalid),
            }
        }
        equal("set_read_version", observed, &Observed::Done)
    }

    /// A commit, as any other. What is asked meanwhile fails, and with option 701 does no harm.
    pub(super) fn commit_during(&mut self, slot: usize, observed: &Observed) -> Checked {
        let Observed::During { read, commit } = observed else { return unexpected(observed) };
        let transaction = self.of(slot);
        transaction.is_unprotected = true;
        let mut expected = transaction.failing();
        expected.push(Code::UsedDuringCommit);
        due(&expected, read)?;
        self.commit(slot, commit)
    }

    /// What was told is as of any read. What was not may have been read all the same.
    pub(super) fn dropped(&mut self, slot: usize, read: &Step, observed: &Observed) -> Checked {
        match observed {
            Observed::Dropped(Some(told)) => return self.check_step(read, told),
            Observed::Dropped(None) => {}
            _ => return unexpected(observed),
        }
        let transaction = self.of(slot);
        if !transaction.failing().is_empty() {
            return Ok(());
        }
        // Which part of it was read, and what it met there, nobody knows.
        transaction.failed_unseen.push(Code::AccessedUnreadable);
        let is_snapshot = matches!(
            read,
            Step::Get { snapshot: true, .. }
                | Step::GetKey { snapshot: true, .. }
                | Step::GetRange { snapshot: true, .. }
        );
        if !is_snapshot {
            let may = match read {
                Step::Get { key, .. } => KeyRange::single(key),
                _ => KeyRange::new("", SYSTEM_END),
            };
            transaction.read_conflicts.may.push(may);
            transaction.has_read_fog |= transaction.reads_system;
        }
        Ok(())
    }

    /// Each read sees what was written before it began.
    pub(super) fn overlapping(&mut self, steps: [&Step; 3], observed: &Observed) -> Checked {
        let [first, between, second] = steps;
        let Observed::Two(of_first, of_second) = observed else { return unexpected(observed) };
        self.check_step(first, of_first)?;
        self.check_step(between, &Observed::Done)?;
        self.check_step(second, of_second)
    }
}
