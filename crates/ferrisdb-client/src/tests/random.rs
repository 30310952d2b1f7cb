//! Random programs over few keys, on the client and on a model that is as simple as can be: a map, changed in the order of the calls.
//!
//! Three things are compared: what every read returned, what the commit left in the database, and whether everything conflicts that
//! must: for each key, if another's write to it would have changed what some read returned, a read conflict range must hold it.

use std::collections::BTreeMap;

use super::template;
use crate::testing::{TestRuntime, database};
use crate::{RangeOptions, StreamingMode, Transaction};
use ferrisdb_core::mutation::apply;
use ferrisdb_core::{
    Bytes, Error, KeyRange, KeySelector, KeyValue, Limits, Mutation, MutationKind, Random, SplitMix64,
};

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Debug, Clone)]
enum Op {
    Set(Bytes, Bytes),
    Clear(Bytes),
    ClearRange(Bytes, Bytes),
    Atomic(Bytes, Bytes, MutationKind),
    StampValue(Bytes),
    StampKey,
    Get(Bytes, bool),
    GetKey(KeySelector, bool),
    GetRange(RangeOptions, bool),
}

/// What a read returned; for a range without `more`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Value(Option<Bytes>),
    Key(Bytes),
    Rows(Vec<KeyValue>),
    Unreadable,
}

const END: &[u8] = b"\xff";

/// All keys of one to three letters out of three.
fn universe() -> Vec<Bytes> {
    let letters = [b'a', b'b', b'c'];
    let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
    let mut all = Vec::new();
    for _ in 0..3 {
        keys = keys.iter().flat_map(|key| letters.map(|letter| [&key[..], &[letter]].concat())).collect();
        all.extend(keys.iter().cloned().map(Bytes::from));
    }
    all.sort();
    all
}

struct Generator {
    random: SplitMix64,
    keys: Vec<Bytes>,
    stamps: bool,
}

impl Generator {
    fn key(&mut self) -> Bytes {
        let at = self.random.below(self.keys.len() as u64) as usize;
        self.keys[at].clone()
    }

    fn value(&mut self) -> Bytes {
        let bytes = self.random.below(4) as usize;
        (0..bytes).map(|_| b'0' + self.random.below(4) as u8).collect()
    }

    fn selector(&mut self) -> KeySelector {
        let key = match self.random.below(12) {
            0 => Bytes::new(),
            1 => Bytes::from_static(END),
            _ => self.key(),
        };
        let offset = if self.random.one_in(2) { 1 } else { self.random.below(9) as i32 - 4 };
        KeySelector { key, or_equal: self.random.one_in(2), offset }
    }

    fn op(&mut self) -> Op {
        const KINDS: [MutationKind; 6] = [
            MutationKind::Add,
            MutationKind::ByteMax,
            MutationKind::BitXor,
            MutationKind::AppendIfFits,
            MutationKind::CompareAndClear,
            MutationKind::Min,
        ];
        let is_snapshot = self.random.one_in(5);
        match self.random.below(20) {
            0..=3 => Op::Set(self.key(), self.value()),
            4 => Op::Clear(self.key()),
            5 => {
                let (first, second) = (self.key(), self.key());
                Op::ClearRange(first.clone().min(second.clone()), first.max(second))
            }
            6..=8 => {
                let kind = KINDS[self.random.below(KINDS.len() as u64) as usize];
                Op::Atomic(self.key(), self.value(), kind)
            }
            9 if self.stamps => Op::StampValue(self.key()),
            10 if self.stamps => Op::StampKey,
            11..=13 => Op::GetKey(self.selector(), is_snapshot),
            14..=16 => {
                let (begin, end) = (self.selector(), self.selector());
                let (begin, end) =
                    if begin.key <= end.key || self.random.one_in(4) { (begin, end) } else { (end, begin) };
                let mut options = RangeOptions::new(begin, end).mode(StreamingMode::WantAll);
                options = options.limit(self.random.below(5) as i32).reverse(self.random.one_in(2));
                if self.random.one_in(4) {
                    options = options.target_bytes(self.random.below(60) as i32);
                }
                Op::GetRange(options, is_snapshot)
            }
            _ => Op::Get(self.key(), is_snapshot),
        }
    }
}

/// The model: what is there, and where nobody knows.
struct Model {
    view: Map,
    unreadable: Vec<(Bytes, Bytes)>,
}

impl Model {
    fn clear(&mut self, begin: &Bytes, end: &Bytes) {
        self.view.retain(|key, _| key < begin || key >= end);
        let parts = std::mem::take(&mut self.unreadable).into_iter();
        let left_over =
            parts.flat_map(|(from, to)| [(from.clone(), to.clone().min(begin.clone())), (from.max(end.clone()), to)]);
        self.unreadable = left_over.filter(|(from, to)| from < to).collect();
    }

    fn touches(&self, begin: &[u8], end: &[u8]) -> bool {
        self.unreadable.iter().any(|(from, to)| **from < *end && begin < &to[..] && begin < end)
    }

    /// Up to `limit` rows or `bytes` of a range; `None` if something unreadable is met before.
    fn rows(&self, begin: &[u8], end: &[u8], reverse: bool, limit: usize, bytes: usize) -> Option<Vec<KeyValue>> {
        if begin >= end {
            return Some(Vec::new());
        }
        let inside = self.view.iter().filter(|(key, _)| begin <= &key[..] && **key < *end);
        let all: Vec<_> = inside.map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect();
        let mut rows = Vec::new();
        let mut cost = 0;
        let ordered: Box<dyn Iterator<Item = KeyValue>> =
            if reverse { Box::new(all.into_iter().rev()) } else { Box::new(all.into_iter()) };
        for row in ordered {
            cost += 8 + row.key.len() + row.value.len();
            let key = row.key.clone();
            rows.push(row);
            if rows.len() == limit || cost >= bytes {
                let met =
                    if reverse { self.touches(&key, end) } else { self.touches(begin, &[&key[..], b"\0"].concat()) };
                return (!met).then_some(rows);
            }
        }
        (!self.touches(begin, end)).then_some(rows)
    }

    fn place(&self, selector: &KeySelector) -> Option<Bytes> {
        let mut key = selector.key.to_vec();
        if selector.or_equal {
            key.push(0);
        }
        if selector.offset > 0 {
            let steps = selector.offset as usize;
            let rows = self.rows(&key, END, false, steps, usize::MAX)?;
            Some(rows.get(steps - 1).map_or(Bytes::from_static(END), |row| row.key.clone()))
        } else {
            let steps = 1 + selector.offset.unsigned_abs() as usize;
            let rows = self.rows(b"", &key, true, steps, usize::MAX)?;
            Some(rows.get(steps - 1).map_or(Bytes::new(), |row| row.key.clone()))
        }
    }

    fn read_range(&self, options: &RangeOptions) -> Option<Vec<KeyValue>> {
        let (begin, end) = (options.begin.clone().without_or_equal(), options.end.clone().without_or_equal());
        if begin.offset >= end.offset && begin.key >= end.key {
            return Some(Vec::new());
        }
        // A plain bound is not looked for: nothing is touched there.
        let place = |selector: &KeySelector| match selector.offset {
            1 => Some(selector.key.clone()),
            _ => self.place(selector),
        };
        let (begin, end) = (place(&begin)?, place(&end)?.min(Bytes::from_static(END)));
        let limit = if options.limit == 0 { usize::MAX } else { options.limit as usize };
        let bytes = if options.target_bytes == 0 { usize::MAX } else { options.target_bytes as usize };
        self.rows(&begin, &end, options.reverse, limit, bytes)
    }

    fn run(base: &Map, program: &[Op]) -> (Vec<Option<Outcome>>, Model) {
        let mut model = Model { view: base.clone(), unreadable: Vec::new() };
        let outcomes = program.iter().map(|op| model.step(op)).collect();
        (outcomes, model)
    }

    fn step(&mut self, op: &Op) -> Option<Outcome> {
        match op {
            Op::Set(key, value) => drop(self.view.insert(key.clone(), value.clone())),
            Op::Clear(key) => self.clear(key, &KeyRange::single(key).end),
            Op::ClearRange(begin, end) => self.clear(begin, end),
            Op::Atomic(key, operand, kind) => {
                match apply(*kind, self.view.get(key), operand, Limits::DEFAULT.value_bytes) {
                    Some(value) => drop(self.view.insert(key.clone(), value)),
                    None => drop(self.view.remove(key)),
                }
            }
            Op::StampValue(key) => {
                let single = KeyRange::single(key);
                self.unreadable.push((single.begin, single.end));
            }
            Op::StampKey => {
                let bounds = [[0; 10], [0xFF; 10]].map(|stamp| [b"b", &stamp[..]].concat());
                self.unreadable.push((bounds[0].clone().into(), [&bounds[1][..], b"\0"].concat().into()));
            }
            Op::Get(key, _) => {
                let single = KeyRange::single(key);
                return Some(if self.touches(&single.begin, &single.end) {
                    Outcome::Unreadable
                } else {
                    Outcome::Value(self.view.get(key).cloned())
                });
            }
            Op::GetKey(selector, _) => return Some(self.place(selector).map_or(Outcome::Unreadable, Outcome::Key)),
            Op::GetRange(options, _) => {
                return Some(self.read_range(options).map_or(Outcome::Unreadable, Outcome::Rows));
            }
        }
        None
    }
}

fn outcome<T>(result: Result<T, Error>, outcome: impl FnOnce(T) -> Outcome) -> Option<Outcome> {
    Some(match result {
        Ok(found) => outcome(found),
        Err(error) if error.code().number() == 1036 => Outcome::Unreadable,
        Err(error) => panic!("{error}"),
    })
}

async fn execute(tx: &Transaction, op: &Op) -> Option<Outcome> {
    match op {
        Op::Set(key, value) => tx.set(key, value),
        Op::Clear(key) => tx.clear(key),
        Op::ClearRange(begin, end) => tx.clear_range(begin, end),
        Op::Atomic(key, operand, kind) => tx.atomic_op(key, operand, *kind),
        Op::StampValue(key) => tx.atomic_op(key, template("", ""), MutationKind::SetVersionstampedValue),
        Op::StampKey => tx.atomic_op(template("b", ""), "", MutationKind::SetVersionstampedKey),
        Op::Get(key, true) => return outcome(tx.snapshot().get(key).await, Outcome::Value),
        Op::Get(key, false) => return outcome(tx.get(key).await, Outcome::Value),
        Op::GetKey(selector, true) => return outcome(tx.snapshot().get_key(selector.clone()).await, Outcome::Key),
        Op::GetKey(selector, false) => return outcome(tx.get_key(selector.clone()).await, Outcome::Key),
        Op::GetRange(options, is_snapshot) => {
            let read =
                if *is_snapshot { tx.snapshot().get_range(options.clone()) } else { tx.get_range(options.clone()) };
            let chunk = read.await;
            if let Ok(chunk) = &chunk
                && !chunk.more
            {
                let is_cut = options.limit > 0 && chunk.rows.len() >= options.limit as usize;
                assert!(!is_cut, "a full chunk may have more behind it");
            }
            return outcome(chunk, |chunk| Outcome::Rows(chunk.rows));
        }
    }
    None
}

/// One random program.
fn check(seed: u64, rt: &TestRuntime) {
    let mut generator = Generator { random: SplitMix64::new(seed), keys: universe(), stamps: seed.is_multiple_of(3) };
    let (db, endpoint, _) = database();
    let mut base = Map::new();
    for _ in 0..generator.random.below(25) {
        base.insert(generator.key(), generator.value());
    }
    endpoint.write(base.iter().map(|(key, value)| Mutation::set(key.clone(), value.clone())).collect());
    endpoint.limit_parts([1, 2, 3, usize::MAX][(seed % 4) as usize]);
    endpoint.answer_late(u32::from(generator.random.one_in(3)));
    if seed.is_multiple_of(2) {
        endpoint.have_values_here();
    }
    let ops = 1 + generator.random.below(24);
    let program: Vec<Op> = (0..ops).map(|_| generator.op()).collect();
    let (expected, model) = Model::run(&base, &program);

    let tx = db.create_transaction();
    rt.block_on(async {
        for (number, (op, expected)) in program.iter().zip(&expected).enumerate() {
            let found = execute(&tx, op).await;
            tx.inner.with(|state| state.overlay.check());
            assert_eq!(found, *expected, "seed {seed}, op {number}: {op:?}\nbase {base:?}\nprogram {program:#?}");
        }
    });
    tx.set("\x01", "");
    let result = rt.block_on(tx.commit());
    if expected.contains(&Some(Outcome::Unreadable)) {
        assert_eq!(super::code(result), 1036, "seed {seed}");
        return;
    }
    result.expect("nothing conflicts");

    // What the database holds.
    let keys = universe();
    let known = |key: &Bytes| keys.contains(key) && !model.touches(key, &KeyRange::single(key).end);
    let left: Map = endpoint.rows().into_iter().filter(|(key, _)| known(key)).collect();
    let expected_left: Map =
        model.view.iter().filter(|(key, _)| known(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(left, expected_left, "seed {seed}\nbase {base:?}\nprogram {program:#?}");

    // What conflicts.
    let conflicts = endpoint.log().commits.pop().expect("one").read_conflicts;
    let serializable = |outcomes: Vec<Option<Outcome>>| -> Vec<Option<Outcome>> {
        let is_snapshot = |op: &Op| matches!(op, Op::Get(_, true) | Op::GetKey(_, true) | Op::GetRange(_, true));
        outcomes.into_iter().zip(&program).filter(|(_, op)| !is_snapshot(op)).map(|(outcome, _)| outcome).collect()
    };
    let before = serializable(expected);
    for key in &keys {
        for value in [None, Some(Bytes::from_static(b"other"))] {
            let mut changed = base.clone();
            match value {
                None => drop(changed.remove(key)),
                Some(value) => drop(changed.insert(key.clone(), value)),
            }
            let after = serializable(Model::run(&changed, &program).0);
            // A bound that leads to a versionstamp only then fails, and tells nothing wrong.
            if after != before && !after.contains(&Some(Outcome::Unreadable)) {
                assert!(
                    conflicts.iter().any(|range| range.contains(key)),
                    "seed {seed}: a change of {key:?} changes a read, and does not conflict\nconflicts {}\nbase {base:?}\n\
                     program {program:#?}",
                    super::ranges_text(&conflicts)
                );
            }
        }
    }
}

#[test]
fn random_programs_do_what_the_model_does() {
    let rt = TestRuntime::new(1);
    for seed in 0..3000 {
        check(seed, &rt);
    }
}
