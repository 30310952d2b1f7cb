use std::collections::BTreeSet;

use ferrisdb_core::{Random, SplitMix64};

use super::*;

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

/// Everything about one key in a naive model: point entries (version, is a value) and range tombstones over the key.
#[derive(Debug, Clone, Default)]
struct Key {
    points: Vec<(u64, bool, u64)>, // version as stored, is a value, identity of the write
    tombstones: Vec<u64>,
}

impl Key {
    /// What a reader at `at` sees: the identity of the write, or nothing.
    fn get(&self, at: u64) -> Option<u64> {
        let &(version, is_value, id) = self.points.iter().filter(|point| point.0 <= at).max_by_key(|point| point.0)?;
        let hidden = self.tombstones.iter().any(|&tombstone| version < tombstone && tombstone <= at);
        (is_value && !hidden).then_some(id)
    }
}

/// The key after a compaction of `inputs`. `fragment_bottom` may be false where the key's own `bottom` is true: a fragment may reach
/// beyond the bottom.
fn compact(retention: &Retention, inputs: &Key, bottom: bool, fragment_bottom: bool) -> Key {
    let mut tombstones: Vec<Version> = inputs.tombstones.iter().map(|&t| v(t)).collect();
    tombstones.sort_unstable_by(|a, b| b.cmp(a));
    let mut points = inputs.points.clone();
    points.sort_unstable_by(|a, b| b.cmp(a));
    let mut out = Key::default();
    let mut filter = retention.key(&tombstones, bottom);
    for (version, is_value, id) in points {
        let kind = if is_value { ValueKind::Value } else { ValueKind::Tombstone };
        match filter.decide(v(version), kind) {
            Decision::Keep => out.points.push((version, is_value, id)),
            Decision::KeepAtZero => out.points.push((0, is_value, id)),
            Decision::Drop => {}
        }
    }
    let mut kept = Vec::new();
    retention.fragment(&tombstones, fragment_bottom, &mut kept);
    out.tombstones = kept.iter().map(|version| version.get()).collect();
    out
}

fn merged(parts: [&Key; 3]) -> Key {
    let mut all = Key::default();
    for part in parts {
        all.points.extend(&part.points);
        all.tombstones.extend(&part.tombstones);
    }
    all
}

/// Every read at every readable version gives the same answer before and after, whatever is older below the inputs (unless they
/// are the bottom) and newer above them.
#[track_caller]
fn assert_equivalent(retention: &Retention, older: &Key, inputs: &Key, newer: &Key, fragment_bottom: bool, max: u64) {
    let bottom = older.points.is_empty() && older.tombstones.is_empty();
    let after = compact(retention, inputs, bottom, bottom && fragment_bottom);
    let whole_before = merged([older, inputs, newer]);
    let whole_after = merged([older, &after, newer]);
    for at in (0..=max + 1).filter(|&at| retention.is_readable(v(at))) {
        assert_eq!(
            whole_before.get(at),
            whole_after.get(at),
            "at {at} with {retention:?}: older {older:?}, inputs {inputs:?}, newer {newer:?}, after {after:?}"
        );
    }
}

/// One key, every arrangement of up to six versions, each of which is nothing, a value, a tombstone, a range tombstone, or a
/// value and a range tombstone at once; every set of boundaries; every split into older and inputs.
#[test]
fn every_small_history_reads_the_same() {
    const VERSIONS: u64 = 5;
    let mut cases = 0u64;
    for history in 0..5u64.pow(u32::try_from(VERSIONS).unwrap()) {
        for split in 0..=VERSIONS {
            let (mut older, mut inputs) = (Key::default(), Key::default());
            let mut digits = history;
            for version in 1..=VERSIONS {
                let key = if version <= split { &mut older } else { &mut inputs };
                match digits % 5 {
                    1 => key.points.push((version, true, version)),
                    2 => key.points.push((version, false, version)),
                    3 => key.tombstones.push(version),
                    4 => {
                        key.points.push((version, true, version));
                        key.tombstones.push(version);
                    }
                    _ => {}
                }
                digits /= 5;
            }
            for floor in 0..=VERSIONS + 1 {
                for pins in 0..1u64 << floor {
                    let retention = Retention::new(v(floor), (0..floor).filter(|pin| pins >> pin & 1 == 1).map(v));
                    for fragment_bottom in [false, true] {
                        assert_equivalent(&retention, &older, &inputs, &Key::default(), fragment_bottom, VERSIONS);
                        cases += 1;
                    }
                }
            }
        }
    }
    assert!(cases > 2_000_000, "{cases}");
}

/// Longer random histories with data above the inputs too.
#[test]
fn random_histories_read_the_same() {
    for seed in 0..30_000 {
        let mut random = SplitMix64::new(seed);
        let max = 1 + random.below(30);
        let mut cuts = [random.below(max + 1), random.below(max + 1)];
        cuts.sort_unstable();
        let mut keys = [Key::default(), Key::default(), Key::default()];
        for version in 1..=max {
            let place = usize::from(version > cuts[0]) + usize::from(version > cuts[1]);
            match random.below(6) {
                0 | 1 => keys[place].points.push((version, true, version)),
                2 => keys[place].points.push((version, false, version)),
                3 => keys[place].tombstones.push(version),
                _ => {}
            }
        }
        let floor = random.below(max + 2);
        let pins: BTreeSet<u64> = (0..random.below(5)).map(|_| random.below(max + 2)).collect();
        let retention = Retention::new(v(floor), pins.into_iter().map(v));
        let [older, inputs, newer] = keys;
        let result = std::panic::catch_unwind(|| {
            assert_equivalent(&retention, &older, &inputs, &newer, random.clone().one_in(2), max);
        });
        assert!(result.is_ok(), "seed {seed}");
    }
}

/// Nothing more than needed stays: per key at most one operation at or below the floor for each boundary.
#[test]
fn an_old_pin_does_not_keep_what_came_after_it() {
    let retention = Retention::new(v(1_000), [v(10)]);
    let inputs = Key { points: (1..=2_000).map(|version| (version, true, version)).collect(), tombstones: vec![] };
    let after = compact(&retention, &inputs, false, false);
    let mut kept: Vec<u64> = after.points.iter().map(|point| point.0).collect();
    kept.sort_unstable();
    let expected: Vec<u64> = [10].into_iter().chain(1_000..=2_000).collect();
    assert_eq!(kept, expected);
}

/// At the bottom, below the lowest boundary, tombstones vanish, and the remaining value has version zero unless a range tombstone
/// older than it covers it; a pin prevents both.
#[test]
fn the_bottom_forgets() {
    let uncovered = Key { points: vec![(3, true, 3), (5, false, 5), (7, true, 7)], tombstones: vec![] };
    let after = compact(&Retention::new(v(9), []), &uncovered, true, true);
    assert_eq!(after.points, [(0, true, 7)]);
    let deleted = Key { points: vec![(3, true, 3), (5, false, 5)], tombstones: vec![] };
    assert_eq!(compact(&Retention::new(v(9), []), &deleted, true, true).points, []);
    assert_eq!(compact(&Retention::new(v(9), []), &deleted, false, false).points, [(5, false, 5)]);
    let key = Key { tombstones: vec![6], ..uncovered };
    let after = compact(&Retention::new(v(9), []), &key, true, true);
    assert_eq!((after.points, after.tombstones), (vec![(7, true, 7)], vec![]));
    let after = compact(&Retention::new(v(9), [v(5)]), &key, true, true);
    // The tombstone at 5 goes; at 5 nothing is seen with or without it.
    assert_eq!((after.points, after.tombstones), (vec![(7, true, 7)], vec![6]));
    // The fragment reaches beyond the bottom and stays: then the value keeps a version above it.
    let after = compact(&Retention::new(v(9), []), &key, true, false);
    assert_eq!((after.points, after.tombstones), (vec![(7, true, 7)], vec![6]));
}

/// A whole table goes unread only if no reader between its oldest version and the tombstone is left.
#[test]
fn tables_under_a_range_tombstone() {
    let hides =
        |floor, pins: &[u64]| Retention::new(v(floor), pins.iter().map(|&p| v(p))).hides_table(v(20), v(10), v(15));
    assert!(hides(20, &[]));
    assert!(hides(25, &[9, 20]));
    assert!(!hides(19, &[]), "a reader at 19 sees the table");
    assert!(!hides(25, &[10]), "so does the pin at 10");
    assert!(!hides(25, &[17]), "and that at 17");
    assert!(!Retention::new(v(25), []).hides_table(v(15), v(10), v(15)), "a tombstone does not hide its own version");
}

/// `any_readable_in` is what it says, against the definition.
#[test]
fn readable_ranges_equal_the_definition() {
    for floor in 0..6 {
        for pins in 0..1u64 << floor {
            let retention = Retention::new(v(floor), (0..floor).filter(|pin| pins >> pin & 1 == 1).map(v));
            for from in 0..8 {
                for to in 0..9 {
                    let expected = (from..to).any(|version| retention.is_readable(v(version)));
                    assert_eq!(retention.any_readable_in(v(from), v(to)), expected, "{retention:?} {from}..{to}");
                }
            }
        }
    }
}
