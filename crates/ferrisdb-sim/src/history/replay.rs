//! [`Replay`]: the state at every version, from all commits in order.

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::{
    Bytes, KeyRange, KeyValue, Limits, Mutation, MutationKind, Version, Versionstamp, mutation, versionstamp,
};

/// Every value that every key ever had.
pub(super) struct Replay {
    /// By key: (version from which on, value), ascending. Of several in one version the last counts.
    keys: BTreeMap<Bytes, Vec<(Version, Option<Bytes>)>>,
    /// Keys that have a value after the last commit: what a clear has to touch.
    live: BTreeSet<Bytes>,
}

impl Replay {
    pub(super) fn new(initial: &[KeyValue]) -> Replay {
        let keys =
            initial.iter().map(|row| (row.key.clone(), vec![(Version::ZERO, Some(row.value.clone()))])).collect();
        Replay { keys, live: initial.iter().map(|row| row.key.clone()).collect() }
    }

    /// The next commit.
    pub(super) fn apply(&mut self, mutations: &[Mutation], version: Version, batch_index: u16) {
        let stamp = Versionstamp::new(version, batch_index);
        for mutation in mutations {
            match mutation.kind {
                MutationKind::ClearRange => {
                    let cleared: Vec<Bytes> = self
                        .live
                        .range(mutation.key.clone()..)
                        .take_while(|key| **key < mutation.value)
                        .cloned()
                        .collect();
                    cleared.into_iter().for_each(|key| self.set(key, version, None));
                }
                MutationKind::Set => self.set(mutation.key.clone(), version, Some(mutation.value.clone())),
                MutationKind::SetVersionstampedKey => {
                    let key = versionstamp::fill(&mutation.key, stamp).expect("the client checked the template");
                    self.set(key, version, Some(mutation.value.clone()));
                }
                MutationKind::SetVersionstampedValue => {
                    let value = versionstamp::fill(&mutation.value, stamp).expect("the client checked the template");
                    self.set(mutation.key.clone(), version, Some(value));
                }
                _ => {
                    let value = self.at(&mutation.key, version);
                    let value = fold(mutation, value.as_ref());
                    self.set(mutation.key.clone(), version, value);
                }
            }
        }
    }

    fn set(&mut self, key: Bytes, version: Version, value: Option<Bytes>) {
        if value.is_some() {
            self.live.insert(key.clone());
        } else {
            self.live.remove(&key);
        }
        self.keys.entry(key).or_default().push((version, value));
    }

    fn at(&self, key: &[u8], version: Version) -> Option<Bytes> {
        let values = self.keys.get(key)?;
        let count = values.partition_point(|(from, _)| *from <= version);
        values[..count].last().and_then(|(_, value)| value.clone())
    }

    /// What a transaction that reads at `version` and has made `own` mutations sees in a range.
    pub(super) fn range(&self, range: &KeyRange, version: Version, own: &[Mutation]) -> Vec<KeyValue> {
        if range.is_empty() {
            return Vec::new();
        }
        let stored = self.keys.range(range.begin.clone()..range.end.clone());
        let mut rows: BTreeMap<Bytes, Bytes> =
            stored.filter_map(|(key, _)| Some((key.clone(), self.at(key, version)?))).collect();
        for mutation in own {
            let key = &mutation.key;
            let value = match mutation.kind {
                MutationKind::ClearRange => {
                    rows.retain(|row, _| row < key || *row >= mutation.value);
                    continue;
                }
                // Unreadable until the commit: a recorded read that shows one is an error of its recorder.
                MutationKind::SetVersionstampedKey | MutationKind::SetVersionstampedValue => continue,
                MutationKind::Set => Some(mutation.value.clone()),
                _ => fold(mutation, rows.get(key)),
            };
            match value {
                Some(value) if range.contains(key) => drop(rows.insert(key.clone(), value)),
                _ => drop(rows.remove(key)),
            }
        }
        rows.into_iter().map(|(key, value)| KeyValue { key, value }).collect()
    }
}

fn fold(of: &Mutation, existing: Option<&Bytes>) -> Option<Bytes> {
    mutation::apply(of.kind, existing, &of.value, Limits::DEFAULT.value_bytes)
}
