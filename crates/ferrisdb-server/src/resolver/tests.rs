//! The window against the obvious one: an ordered map from boundaries to versions.

use std::collections::BTreeMap;

use ferrisdb_core::{Bytes, KeyRange, Random, SplitMix64, Version};

use super::{Checked, ConflictWindow};

/// From each boundary up to the next, the newest version at which a key there was written.
struct Model {
    floor: Version,
    steps: BTreeMap<Bytes, Version>,
}

impl Model {
    fn new(floor: Version) -> Model {
        Model { floor, steps: BTreeMap::from([(Bytes::new(), Version::ZERO)]) }
    }

    fn at(&self, key: &Bytes) -> Version {
        *self.steps.range(..=key.clone()).next_back().expect("the empty key is a boundary").1
    }

    fn add(&mut self, version: Version, writes: &[KeyRange]) {
        for write in writes.iter().filter(|write| !write.is_empty()) {
            let after = self.at(&write.end);
            let inside: Vec<Bytes> =
                self.steps.range(write.begin.clone()..write.end.clone()).map(|step| step.0.clone()).collect();
            for key in inside {
                self.steps.remove(&key);
            }
            self.steps.insert(write.begin.clone(), version);
            self.steps.insert(write.end.clone(), after);
        }
    }

    fn check(&self, read_version: Version, reads: &[KeyRange]) -> Checked {
        if read_version < self.floor {
            return Checked::TooOld;
        }
        let is_changed = |read: &KeyRange| {
            !read.is_empty()
                && (self.at(&read.begin) > read_version
                    || self.steps.range(read.begin.clone()..read.end.clone()).any(|step| *step.1 > read_version))
        };
        let changed: Vec<u32> = (0..).zip(reads).filter(|(_, read)| is_changed(read)).map(|(index, _)| index).collect();
        if changed.is_empty() { Checked::Ok } else { Checked::Conflict(changed) }
    }

    fn forget_below(&mut self, version: Version) {
        self.floor = self.floor.max(version);
    }

    /// Gives memory back: what is at or below the floor cannot conflict.
    fn prune(&mut self) {
        let floor = self.floor;
        self.steps.values_mut().filter(|written| **written <= floor).for_each(|written| *written = Version::ZERO);
        let mut before = None;
        self.steps.retain(|_, version| before.replace(*version) != Some(*version));
    }
}

/// How a run chooses keys and ranges.
struct Shape {
    keys: u64,
    /// Bytes before the part that differs: with eight, all prefixes are equal.
    common: usize,
    /// One in so many ranges is longer than a key.
    ranges: u64,
    /// And covers at most so many keys of the key space.
    length: u64,
    /// Versions between two transactions, at most.
    step: u64,
    window: u64,
    /// The upper half of the keys begins with something else, and is longer; for a while only keys of one half are chosen, then of the other, then of both.
    halves: bool,
}

struct Chooser {
    random: SplitMix64,
    shape: Shape,
    /// Which half of the keys is chosen now; 2: both.
    halves_turn: u64,
}

impl Chooser {
    fn key(&self, number: u64) -> Bytes {
        // In the order of the numbers; each odd one's predecessor is a prefix of it.
        let odd = if number % 2 == 1 { "0" } else { "" };
        let is_upper = self.shape.halves && number >= self.shape.keys / 2;
        let (letter, longer) = if is_upper { ("d", 9) } else { ("c", 0) };
        Bytes::from(format!("{}{:05x}{odd}", letter.repeat(self.shape.common + longer), number / 2))
    }

    fn range(&mut self) -> KeyRange {
        let keys = self.shape.keys;
        let first = match self.halves_turn {
            0 if self.shape.halves => self.random.below(keys / 2),
            1 if self.shape.halves => keys / 2 + self.random.below(keys / 2),
            _ => self.random.below(keys),
        };
        if !self.random.one_in(self.shape.ranges) {
            return KeyRange::single(&self.key(first));
        }
        let second = first + self.random.below(self.shape.length);
        let (begin, end) = (self.key(first), self.key(second));
        match self.random.below(20) {
            // Empty, inverted, from the beginning, to beyond every key.
            0 => KeyRange::new(begin.clone(), begin),
            1 if self.shape.keys < 1000 => KeyRange::new(Bytes::new(), end),
            2 if self.shape.keys < 1000 => KeyRange::new(begin, Bytes::from_static(b"\xff")),
            3 => KeyRange::single(b""),
            4 => KeyRange::new(begin, end),
            _ => KeyRange::new(begin.clone().min(end.clone()), begin.max(end)),
        }
    }
}

/// Runs transactions through both and compares every answer. Returns how many ended how: ok, conflict, too old.
fn compare(seed: u64, transactions: u64, shape: Shape) -> [u64; 3] {
    let mut chooser = Chooser { random: SplitMix64::new(seed), shape, halves_turn: 2 };
    let mut version = 1000;
    let (mut window, mut model) =
        (ConflictWindow::new(Version::from_u64(version)), Model::new(Version::from_u64(version)));
    let mut counts = [0; 3];
    for number in 0..transactions {
        chooser.halves_turn = number / 3000 % 3;
        version += chooser.random.below(chooser.shape.step + 1) + u64::from(number == 0);
        // Mostly short transactions.
        let lag = match chooser.random.below(4) {
            0 => chooser.random.below(chooser.shape.window * 9 / 8),
            _ => chooser.random.below(chooser.shape.window / 50 + 2),
        };
        let read_version = Version::from_u64(version.saturating_sub(lag));
        let mut ranges = |count: u64| (0..count).map(|_| chooser.range()).collect::<Vec<KeyRange>>();
        let (reads, writes) = (ranges(number % 4), ranges(number % 3));
        let found = window.check(read_version, &reads);
        assert_eq!(
            found,
            model.check(read_version, &reads),
            "seed {seed}, transaction {number}: {reads:?} at {read_version}"
        );
        counts[match found {
            Checked::Ok => {
                window.add(Version::from_u64(version), &writes);
                model.add(Version::from_u64(version), &writes);
                0
            }
            Checked::Conflict(_) => 1,
            Checked::TooOld => 2,
        }] += 1;
        if number % 64 == 0 {
            let floor = Version::from_u64(version.saturating_sub(chooser.shape.window));
            window.forget_below(floor);
            model.forget_below(floor);
        }
        if number % 20_000 == 0 {
            window.check_invariants();
            model.prune();
        }
    }
    window.check_invariants();
    counts
}

/// Points and ranges, few keys and many, equal prefixes, small windows and large ones: every answer is the model's, over a million transactions with 2.5 million ranges.
#[test]
fn answers_equal_the_model() {
    let shapes = [
        (150_000, Shape { keys: 300, common: 0, ranges: 3, length: 10, step: 3, window: 3000, halves: false }),
        (250_000, Shape { keys: 200_000, common: 0, ranges: 40, length: 20, step: 2, window: 100_000, halves: false }),
        (
            250_000,
            Shape { keys: 1_000_000, common: 12, ranges: 20, length: 200, step: 2, window: 200_000, halves: false },
        ),
        (100_000, Shape { keys: 5000, common: 7, ranges: 2, length: 50, step: 10, window: 50_000, halves: false }),
        (
            200_000,
            Shape { keys: 100_000, common: 8, ranges: 1_000_000, length: 1, step: 1, window: 150_000, halves: false },
        ),
        (100_000, Shape { keys: 60, common: 3, ranges: 5, length: 4, step: 1, window: 60, halves: false }),
        (200_000, Shape { keys: 400_000, common: 11, ranges: 8, length: 300, step: 2, window: 60_000, halves: true }),
    ];
    let mut totals = [0; 3];
    for (seed, (transactions, shape)) in (1..).zip(shapes) {
        let counts = compare(seed, transactions, shape);
        eprintln!("shape {seed}: ok, conflict, too old: {counts:?}");
        totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
    }
    assert!(totals.iter().all(|&total| total > 20_000), "every outcome is common enough to be tested: {totals:?}");
}

/// The window does not grow with time, and is given back when nothing is written any more.
#[test]
fn old_writes_are_forgotten() {
    let mut window = ConflictWindow::new(Version::ZERO);
    let mut random = SplitMix64::new(1);
    let mut peak = 0;
    for version in 1..=400_000u64 {
        let key = random.next_u64().to_be_bytes();
        let mut writes = vec![KeyRange::single(&key)];
        if version % 10 == 0 {
            writes.push(KeyRange::new(key.to_vec(), [key.as_slice(), b"\xff"].concat()));
        }
        window.add(Version::from_u64(version), &writes);
        window.forget_below(Version::from_u64(version.saturating_sub(50_000)));
        if version == 150_000 {
            peak = window.bytes();
        }
        if version > 150_000 && version % 1000 == 0 {
            assert!(window.bytes() < peak * 3 / 2, "{} bytes at version {version}, {peak} before", window.bytes());
        }
    }
    assert!(peak < 50_000 * 200, "{peak} bytes for 50,000 writes");
    assert_eq!(window.check(Version::from_u64(1), &[]), Checked::TooOld);
    window.forget_below(Version::from_u64(400_000));
    assert!(window.bytes() < peak / 4, "{} of {peak} bytes are left", window.bytes());
    assert_eq!(window.floor(), Version::from_u64(400_000));
    window.forget_below(Version::from_u64(5));
    assert_eq!(window.floor(), Version::from_u64(400_000), "it never goes back");
}

/// The edges: a write at the read version is no conflict, one above it is; neighbours do not meet; nothing meets an empty range.
#[test]
fn edges() {
    let v = Version::from_u64;
    let mut window = ConflictWindow::new(v(10));
    let range = |begin: &'static str, end: &'static str| KeyRange::new(begin, end);
    window.add(v(20), &[KeyRange::single(b"b"), range("m", "p")]);
    let check = |at: u64, read: KeyRange| window.check(v(at), &[read]) != Checked::Ok;
    assert!(check(19, KeyRange::single(b"b")) && !check(20, KeyRange::single(b"b")));
    assert!(!check(19, KeyRange::single(b"a")) && !check(19, KeyRange::single(b"b\0")));
    assert!(check(19, range("a", "b\0")) && !check(19, range("a", "b")) && !check(19, range("b\0", "c")));
    assert!(
        check(19, KeyRange::single(b"m"))
            && check(19, KeyRange::single(b"o\xff"))
            && !check(19, KeyRange::single(b"p"))
    );
    assert!(check(19, range("a", "z")) && check(19, range("o", "z")) && !check(19, range("p", "z")));
    assert!(!check(19, range("b", "b")) && !check(19, range("n", "n")) && !check(19, range("z", "a")));
    assert_eq!(window.check(v(9), &[]), Checked::TooOld);
    let reads = [KeyRange::single(b"a"), KeyRange::single(b"b"), range("p", "q"), range("a", "n")];
    assert_eq!(window.check(v(10), &reads), Checked::Conflict(vec![1, 3]));
}
