//! [`Entry`]: what a transaction has done to one key, in order.

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Mutation, MutationKind, mutation};

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    /// The key has this value, or none.
    Value(Option<Bytes>),
    /// An atomic operation with its operand.
    Atomic(MutationKind, Bytes),
    /// The value is a template into which the commit's versionstamp goes.
    Stamped(Bytes),
}

/// What an operation makes of a value.
fn apply(kind: MutationKind, existing: Option<&Bytes>, operand: &Bytes, value_bytes_max: usize) -> Option<Bytes> {
    let result = mutation::apply(kind, existing, operand, value_bytes_max);
    match (kind, existing) {
        (MutationKind::ByteMax, Some(existing)) if planted(Bug::ByteMaxByLength) => {
            Some(if existing.len() > operand.len() { existing.clone() } else { operand.clone() })
        }
        (MutationKind::Min, Some(existing))
            if planted(Bug::MinWithoutResize) && result.as_ref() != Some(operand) && !existing.is_empty() =>
        {
            Some(existing.clone())
        }
        _ => result,
    }
}

/// The operations on one key since it was last cleared. Their order is kept; what a value makes superfluous is dropped, and what can
/// be computed is computed, unless the key is unreadable: then nothing is known about what lies below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Invariant: not empty.
    stack: Vec<Op>,
    /// So many of them, from the first on, are in the overlay's sealed mutations already.
    sealed: usize,
}

impl Entry {
    pub(crate) fn value(value: Option<Bytes>) -> Entry {
        Entry { stack: vec![Op::Value(value)], sealed: 0 }
    }

    pub(crate) fn atomic(kind: MutationKind, operand: Bytes) -> Entry {
        Entry { stack: vec![Op::Atomic(kind, operand)], sealed: 0 }
    }

    pub(crate) fn stamped(template: Bytes) -> Entry {
        Entry { stack: vec![Op::Stamped(template)], sealed: 0 }
    }

    pub(crate) fn push_value(&mut self, value: Bytes) {
        self.stack.push(Op::Value(Some(value)));
    }

    pub(crate) fn push_stamped(&mut self, template: Bytes) {
        self.stack.push(Op::Stamped(template));
    }

    pub(crate) fn push_atomic(&mut self, kind: MutationKind, operand: Bytes) {
        self.stack.push(Op::Atomic(kind, operand));
    }

    /// An atomic operation on a key that can be read: computed at once if it meets a value.
    pub(crate) fn fold_atomic(&mut self, kind: MutationKind, operand: Bytes, value_bytes_max: usize) {
        if let Some(Op::Value(value)) = self.stack.last_mut() {
            *value = apply(kind, value.as_ref(), &operand, value_bytes_max);
            // If the old value is sealed already, the new one follows it.
            self.sealed = self.sealed.min(self.stack.len() - 1);
        } else {
            self.push_atomic(kind, operand);
        }
    }

    /// True if what lies below does not matter: the first operation is a value.
    pub(crate) fn is_independent(&self) -> bool {
        !matches!(self.stack.first(), Some(Op::Atomic(..)))
    }

    /// The key's value over `below`. A template is its own value: whoever reads it has asked to.
    pub(crate) fn fold(&self, below: Option<Bytes>, value_bytes_max: usize) -> Option<Bytes> {
        self.stack.iter().fold(below, |value, op| match op {
            Op::Value(value) => value.clone(),
            Op::Atomic(kind, operand) => apply(*kind, value.as_ref(), operand, value_bytes_max),
            Op::Stamped(template) => Some(template.clone()),
        })
    }

    /// Appends what is not sealed yet to `mutations`.
    pub(crate) fn mutations(&self, key: &Bytes, mutations: &mut Vec<Mutation>) {
        for op in &self.stack[self.sealed..] {
            mutations.push(match op {
                Op::Value(Some(value)) => Mutation::set(key.clone(), value.clone()),
                Op::Value(None) => {
                    let single = ferrisdb_core::KeyRange::single(key);
                    Mutation::clear_range(single.begin, single.end)
                }
                Op::Atomic(kind, operand) => Mutation::new(*kind, key.clone(), operand.clone()),
                Op::Stamped(template) => {
                    Mutation::new(MutationKind::SetVersionstampedValue, key.clone(), template.clone())
                }
            });
        }
    }

    /// As [`mutations`](Self::mutations), once and for all.
    pub(crate) fn seal(&mut self, key: &Bytes, mutations: &mut Vec<Mutation>) {
        self.mutations(key, mutations);
        self.sealed = self.stack.len();
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(!self.stack.is_empty());
        assert!(self.sealed <= self.stack.len());
    }
}
