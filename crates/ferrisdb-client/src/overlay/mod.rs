//! [`Overlay`]: what a transaction has written and not committed, laid over what it reads.
//!
//! A key of the key space is in one of four states, which decide what a read finds there and whether a read of it can conflict:
//!
//! ```text
//! unmodified    as in the snapshot                                     a read conflicts
//! cleared       absent, whatever the snapshot says                     does not
//! independent   its first operation is a value or a versionstamp       does not
//! dependent     its first operation is atomic: the snapshot's value    a read conflicts
//!               with the operations applied
//! ```
//!
//! Any of them may be **unreadable** on top: a versionstamp that only the commit knows decides what is there. A clear makes it readable.
//!
//! # The order of mutations
//! What is sent has the effect of the calls in their order. Clears go first and then each key's operations, because an
//! operation that a later clear covers is dropped when the clear is made. A versionstamped key is the exception, for nobody knows yet
//! which key it is: what was written before in the range where it can end up is *sealed* into a list before it, and whatever comes after
//! it goes behind that list.
//!
//! # Concurrency
//! A plain structure. A transaction shares it with its reads under way as it was when they began (copy on write).

mod entry;
mod range_set;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ferrisdb_core::key::key_after;
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, KeyRange, Mutation, MutationKind};

pub(crate) use entry::Entry;
pub(crate) use range_set::RangeSet;

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overlay {
    entries: BTreeMap<Bytes, Entry>,
    /// Keys in here that have no entry are absent.
    cleared: RangeSet,
    /// Invariant: a subset of `cleared`: what no sealed mutation has cleared yet.
    unsealed_clears: RangeSet,
    unreadable: RangeSet,
    write_conflicts: RangeSet,
    sealed: Vec<Mutation>,
}

/// What a read of one key finds.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A versionstamp decides.
    Unreadable,
    /// Known without the snapshot, which cannot make the read conflict.
    Known(Option<Bytes>),
    /// To be computed from the snapshot's value.
    Dependent(&'a Entry),
    /// The snapshot's.
    Unmodified,
}

/// How the key space goes on from a key, in one direction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stretch {
    /// Here a versionstamp decides.
    Unreadable,
    /// Up to there nothing exists but what has an entry.
    Cleared(Bytes),
    /// Up to there the snapshot decides, where there is no entry and the key is not [cleared](Overlay::is_cleared).
    Snapshot(Bytes),
}

impl Overlay {
    /// Nothing was written, and no write conflict range added.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_transparent() && self.write_conflicts.is_empty() && self.sealed.is_empty()
    }

    /// Nothing in it changes what a read finds.
    pub(crate) fn is_transparent(&self) -> bool {
        self.entries.is_empty() && self.cleared.is_empty() && self.unreadable.is_empty()
    }

    /// `key` becomes `value`.
    pub(crate) fn set(&mut self, key: &Bytes, value: Bytes) {
        if planted(Bug::SetMakesReadable) {
            self.unreadable.remove(&KeyRange::single(key));
        }
        match self.entries.get_mut(key) {
            Some(entry) if self.unreadable.contains(key) => entry.push_value(value),
            _ => {
                self.entries.insert(key.clone(), Entry::value(Some(value)));
            }
        }
    }

    /// The keys of `range` lose their values, and what is unreadable there becomes readable.
    pub(crate) fn clear(&mut self, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        while let Some((key, _)) = self.entries.range::<Bytes, _>(&range.begin..&range.end).next() {
            let key = key.clone();
            self.entries.remove(&key);
        }
        self.cleared.insert(range);
        self.unsealed_clears.insert(range);
        if !planted(Bug::ClearStaysUnreadable) {
            self.unreadable.remove(range);
        }
    }

    /// An atomic operation.
    pub(crate) fn atomic(&mut self, key: &Bytes, kind: MutationKind, operand: Bytes, value_bytes_max: usize) {
        let is_unreadable = self.unreadable.contains(key);
        match self.entries.get_mut(key) {
            Some(entry) if is_unreadable => entry.push_atomic(kind, operand),
            Some(entry) => entry.fold_atomic(kind, operand, value_bytes_max),
            None => {
                // A cleared key that can be read has a value that is known: none.
                let entry = if self.cleared.contains(key) && !is_unreadable && !planted(Bug::AtomicSeesCleared) {
                    let mut entry = Entry::value(None);
                    entry.fold_atomic(kind, operand, value_bytes_max);
                    entry
                } else {
                    Entry::atomic(kind, operand)
                };
                self.entries.insert(key.clone(), entry);
            }
        }
    }

    /// `key` becomes `template` with the commit's versionstamp in it: until then it is unreadable.
    pub(crate) fn set_stamped_value(&mut self, key: &Bytes, template: Bytes) {
        match self.entries.get_mut(key) {
            Some(entry) if self.unreadable.contains(key) => entry.push_stamped(template),
            _ => {
                self.entries.insert(key.clone(), Entry::stamped(template));
            }
        }
        self.unreadable.insert(&KeyRange::single(key));
    }

    /// The key that `template` becomes with the commit's versionstamp gets `value`. It will lie in `possible`, which is unreadable
    /// from now on.
    pub(crate) fn set_stamped_key(&mut self, template: Bytes, value: Bytes, possible: &KeyRange) {
        for part in self.unsealed_clears.parts_in(possible) {
            self.unsealed_clears.remove(&part);
            self.sealed.push(Mutation::clear_range(part.begin, part.end));
        }
        if !possible.is_empty() {
            for (key, entry) in self.entries.range_mut::<Bytes, _>(&possible.begin..&possible.end) {
                entry.seal(key, &mut self.sealed);
            }
        }
        self.sealed.push(Mutation::new(MutationKind::SetVersionstampedKey, template, value));
        if !planted(Bug::StampedKeyReadable) {
            self.unreadable.insert(possible);
        }
    }

    /// Others that have read something in `range` conflict.
    pub(crate) fn add_write_conflict(&mut self, range: &KeyRange) {
        self.write_conflicts.insert(range);
    }

    /// What was added to the write conflicts.
    pub(crate) fn write_conflicts(&self) -> Vec<KeyRange> {
        self.write_conflicts.iter().map(|(begin, end)| KeyRange { begin: begin.clone(), end: end.clone() }).collect()
    }

    /// Everything written, in an order that has the effect of the calls in theirs.
    pub(crate) fn mutations(&self) -> Vec<Mutation> {
        let mut mutations = Vec::with_capacity(self.sealed.len() + self.entries.len());
        mutations.extend_from_slice(&self.sealed);
        let clears = self.unsealed_clears.iter();
        mutations.extend(clears.map(|(begin, end)| Mutation::clear_range(begin.clone(), end.clone())));
        for (key, entry) in &self.entries {
            entry.mutations(key, &mut mutations);
        }
        mutations
    }

    /// True if it holds a change, not only a conflict range.
    pub(crate) fn has_mutations(&self) -> bool {
        !self.entries.is_empty() || !self.cleared.is_empty() || !self.sealed.is_empty()
    }

    /// What a read of `key` finds; `bypass_unreadable`: where a versionstamp decides it finds what was written before.
    pub(crate) fn find(&self, key: &[u8], bypass_unreadable: bool, value_bytes_max: usize) -> Found<'_> {
        if !bypass_unreadable && self.unreadable.contains(key) {
            return Found::Unreadable;
        }
        match self.entries.get(key) {
            Some(entry) if entry.is_independent() => Found::Known(entry.fold(None, value_bytes_max)),
            Some(entry) if self.cleared.contains(key) && !planted(Bug::AtomicSeesCleared) => {
                Found::Known(entry.fold(None, value_bytes_max))
            }
            Some(entry) => Found::Dependent(entry),
            None if self.cleared.contains(key) => Found::Known(None),
            None => Found::Unmodified,
        }
    }

    /// True if what the snapshot says about `key` does not count.
    pub(crate) fn is_cleared(&self, key: &[u8]) -> bool {
        self.cleared.contains(key)
    }

    /// The keys in `begin..end` with operations of their own, ascending.
    pub(crate) fn entries_in<'a>(
        &'a self,
        begin: &'a Bytes,
        end: &'a Bytes,
    ) -> impl DoubleEndedIterator<Item = (&'a Bytes, &'a Entry)> {
        // An inverted range would make the map panic.
        self.entries.range::<Bytes, _>(begin..end.max(begin))
    }

    /// How the key space goes on from `at` (the first key asked about) towards `end`.
    pub(crate) fn stretch_after(&self, at: &Bytes, end: &Bytes, bypass_unreadable: bool) -> Stretch {
        let mut until = end;
        if !bypass_unreadable && !self.unreadable.is_empty() {
            if self.unreadable.contains(at) {
                return Stretch::Unreadable;
            }
            if let Some((begin, _)) = self.unreadable.beginning_after(at).next() {
                until = until.min(begin);
            }
        }
        if let Some((_, cleared_until)) = self.cleared.containing(at) {
            return Stretch::Cleared(until.min(cleared_until).clone());
        }
        // Single cleared keys are read over: going round each would cost a question.
        let mut cleared = self.cleared.beginning_after(at).take_while(|(begin, _)| *begin < until);
        let next = cleared.find(|(begin, end)| !is_single(begin, end)).map(|(begin, _)| begin);
        Stretch::Snapshot(next.unwrap_or(until).clone())
    }

    /// How the key space goes on from just before `at` back towards `begin`.
    pub(crate) fn stretch_before(&self, at: &Bytes, begin: &Bytes, bypass_unreadable: bool) -> Stretch {
        let mut from = begin;
        if !bypass_unreadable && let Some((_, end)) = self.unreadable.beginning_before(at).next() {
            if end >= at {
                return Stretch::Unreadable;
            }
            from = from.max(end);
        }
        let mut cleared = self.cleared.beginning_before(at).peekable();
        if let Some((cleared_from, end)) = cleared.peek()
            && *end >= at
        {
            return Stretch::Cleared(from.max(cleared_from).clone());
        }
        let mut cleared = cleared.take_while(|(_, end)| *end > from);
        let next = cleared.find(|(begin, end)| !is_single(begin, end)).map(|(_, end)| end);
        Stretch::Snapshot(next.unwrap_or(from).clone())
    }

    /// The parts of `range` whose reading can conflict: those that are unmodified or dependent.
    pub(crate) fn conflicting_parts(&self, range: &KeyRange, mut add: impl FnMut(KeyRange)) {
        if range.is_empty() {
            return;
        }
        if self.entries.is_empty() && self.cleared.is_empty() {
            return add(range.clone());
        }
        // Cut at the cleared ranges and the independent keys, which come in order from both.
        let mut gaps = RangeSet::default();
        gaps.insert(range);
        for part in self.cleared.parts_in(range) {
            gaps.remove(&part);
        }
        for (key, entry) in self.entries_in(&range.begin, &range.end) {
            let single = KeyRange { begin: key.clone(), end: key_after(key) };
            let single = KeyRange { end: single.end.min(range.end.clone()), ..single };
            if entry.is_independent() {
                gaps.remove(&single);
            } else if self.cleared.contains(key) {
                gaps.insert(&single);
            }
        }
        for (begin, end) in gaps.iter() {
            add(KeyRange { begin: begin.clone(), end: end.clone() });
        }
    }

    /// True if anything in `range` was written, or may turn out to have been.
    pub(crate) fn has_writes_in(&self, range: &KeyRange) -> bool {
        let is_in = |set: &RangeSet| !set.parts_in(range).is_empty();
        self.entries_in(&range.begin, &range.end).next().is_some() || is_in(&self.cleared) || is_in(&self.unreadable)
    }

    /// True if a read of `key` can conflict.
    pub(crate) fn conflicts_at(&self, key: &[u8]) -> bool {
        match self.entries.get(key) {
            Some(_) if planted(Bug::DependentReadNoConflict) => false,
            Some(_) if planted(Bug::IndependentReadConflicts) => true,
            Some(entry) => !entry.is_independent(),
            None => !self.cleared.contains(key),
        }
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for set in [&self.cleared, &self.unsealed_clears, &self.unreadable, &self.write_conflicts] {
            set.check();
        }
        for (begin, end) in self.unsealed_clears.iter() {
            let whole = self.cleared.containing(begin).expect("what is to be cleared is cleared");
            assert!(end <= whole.1);
        }
        for (key, entry) in &self.entries {
            entry.check();
            let is_folded = entry.is_independent() || !self.cleared.contains(key) || self.unreadable.contains(key);
            assert!(is_folded, "an operation on a cleared key that can be read is computed at once: {key:?}");
        }
    }
}

fn is_single(begin: &[u8], end: &[u8]) -> bool {
    end.len() == begin.len() + 1 && end.starts_with(begin) && end.last() == Some(&0)
}
