//! Crashes the WAL at every operation of a script, and again at every operation of the recovery.
//!
//! Judged by a model: after a crash the log must be a prefix of one of the lists of records that were possible at that moment, must
//! hold at least what was acknowledged as synced, and may have lost at its front only what purging was told to let go.

#![expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::{Random, SplitMix64};

use super::testfs::{Crash, Disk, TestFs};
use super::{ReadUpTo, Space, Wal, WalOptions, WalPosition};
use crate::error::{Error, Result};

const DIR: &str = "/wal";

fn options() -> WalOptions {
    WalOptions { segment_bytes: 1024, recycle_max: 2, reserve_bytes: 128, fill: false, ..WalOptions::default() }
}

/// What may be there after a crash.
#[derive(Debug, Clone, Default)]
struct Expect {
    /// The whole log; the second one while a truncation is under way.
    lists: Vec<Vec<u64>>,
    /// The first so many of the list are synced.
    synced: usize,
    /// The first so many may have been purged.
    purged: usize,
}

fn payload(id: u64, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len.max(8)];
    payload[..8].copy_from_slice(&id.to_le_bytes());
    for (index, byte) in payload[8..].iter_mut().enumerate() {
        *byte = (id as usize + index) as u8;
    }
    payload
}

fn ids(wal: &Wal) -> Result<Vec<u64>> {
    let mut reader = wal.subscribe(wal.first_position(), ReadUpTo::Appended)?;
    let mut ids = Vec::new();
    let mut last = WalPosition::ZERO;
    while let Some(record) = reader.next()? {
        let id = u64::from_le_bytes(record.payload[..8].try_into().unwrap());
        assert_eq!(record.payload, payload(id, record.payload.len()), "a record is whole");
        assert!(record.position > last);
        last = record.position;
        ids.push(id);
    }
    Ok(ids)
}

impl Expect {
    fn check(&self, found: &[u64], what: &dyn Fn() -> String) {
        let fits = |list: &[u64]| {
            let Some(first) = found.first() else { return self.synced <= self.purged };
            let Some(start) = list.iter().position(|id| id == first) else { return false };
            let end = start + found.len();
            start <= self.purged && end >= self.synced && list.get(start..end) == Some(found)
        };
        assert!(self.lists.iter().any(|list| fits(list)), "{}: found {found:?}, expected {self:?}", what());
    }
}

/// Runs a script against a disk that records, keeping the model in step.
struct Script {
    fs: TestFs,
    wal: Wal,
    expects: Vec<Expect>,
    now: Expect,
    positions: BTreeMap<u64, WalPosition>,
    next_id: u64,
}

impl Script {
    fn new(fs: TestFs) -> Script {
        fs.record();
        let (wal, _) = Wal::open(fs.arc(), Path::new(DIR), options()).unwrap();
        let now = Expect { lists: vec![Vec::new()], ..Expect::default() };
        let mut script = Script { fs, wal, expects: vec![now.clone()], now, positions: BTreeMap::new(), next_id: 1 };
        script.noted();
        script
    }

    fn noted(&mut self) {
        self.expects.push(self.now.clone());
        self.fs.note(self.expects.len() - 1);
    }

    fn append(&mut self, lens: &[usize]) {
        let payloads: Vec<Vec<u8>> =
            lens.iter().enumerate().map(|(index, &len)| payload(self.next_id + index as u64, len)).collect();
        // From the first byte written any prefix of the batch may be there.
        let before = self.now.lists[0].len();
        self.now.lists[0].extend((0..lens.len() as u64).map(|index| self.next_id + index));
        self.noted();
        let parts: Vec<[&[u8]; 1]> = payloads.iter().map(|payload| [&payload[..]]).collect();
        let records: Vec<&[&[u8]]> = parts.iter().map(|parts| &parts[..]).collect();
        let mut positions = Vec::new();
        match self.wal.append_many(&records, Space::Ordinary, &mut positions) {
            Ok(()) => {
                for (index, position) in positions.into_iter().enumerate() {
                    self.positions.insert(self.next_id + index as u64, position);
                }
            }
            Err(error) => {
                assert!(!matches!(error, Error::Poisoned { .. }), "{error}");
                self.now.lists[0].truncate(before);
            }
        }
        self.next_id += lens.len() as u64;
        self.noted();
    }

    fn sync(&mut self) {
        self.wal.sync().unwrap().unwrap();
        self.now.synced = self.now.lists[0].len();
        self.noted();
    }

    fn purge_to(&mut self, index: usize) {
        let index = index.min(self.now.lists[0].len() - 1);
        self.now.purged = self.now.purged.max(index);
        self.noted();
        self.wal.purge(self.positions[&self.now.lists[0][index]]).unwrap();
    }

    fn truncate_to(&mut self, keep: usize) {
        let keep = keep.max(self.now.purged + 1);
        if keep >= self.now.lists[0].len() {
            return;
        }
        let position = self.positions[&self.now.lists[0][keep]];
        let new = self.now.lists[0][..keep].to_vec();
        self.now.lists.push(new.clone());
        self.now.synced = self.now.synced.min(keep);
        self.noted();
        let claim = self.wal.try_begin_sync().unwrap().unwrap();
        self.wal.truncate_from(claim, position).unwrap();
        self.now.lists = vec![new];
        self.now.synced = keep;
        self.noted();
    }

    fn prepare(&mut self) {
        for _ in 0..3 {
            self.wal.prepare_step().unwrap();
        }
    }

    fn reopen(&mut self) {
        let (wal, recovery) = Wal::open(self.fs.arc(), Path::new(DIR), options()).unwrap();
        assert_eq!(recovery.torn, None);
        self.wal = wal;
        // Opening syncs what it finds.
        self.now.synced = self.now.lists[0].len();
        self.noted();
    }
}

/// Appends of many sizes (one larger than a segment), group syncs, switches, purges with recycling, truncations, and reopening.
fn script(fs: TestFs, seed: u64, steps: usize) -> Script {
    let mut random = SplitMix64::new(seed);
    let mut script = Script::new(fs);
    for _ in 0..steps {
        match random.below(13) {
            0..=3 => script.append(&[8 + random.below(300) as usize]),
            4 => script.append(&[100, 9, 60]),
            5..=7 => script.sync(),
            8 if script.now.lists[0].len() > 4 => {
                script.purge_to(random.below(script.now.lists[0].len() as u64) as usize)
            }
            9 if script.now.lists[0].len() > 4 => script.truncate_to(script.now.lists[0].len() - 3),
            10 => script.prepare(),
            11 => script.reopen(),
            12 if random.one_in(3) => script.append(&[1500]),
            _ => script.append(&[40]),
        }
    }
    script
}

const MODES: usize = 5;

fn mode(index: usize, seed: u64) -> Crash {
    match index {
        0 => Crash::KeepAll,
        1 => Crash::LoseAll,
        _ => Crash::Subset(seed * 1000 + index as u64),
    }
}

/// Opens a crashed disk, checks what is there, goes on writing, and checks that nothing discarded came back.
fn recover(disk: Disk, expect: &Expect, what: &dyn Fn() -> String, record: bool) -> (TestFs, Vec<u64>) {
    let fs = TestFs::on(disk);
    if record {
        fs.record();
    }
    let opened = Wal::open(fs.arc(), Path::new(DIR), options());
    let (wal, recovery) = opened.unwrap_or_else(|error| panic!("{}: {error}", what()));
    let found = ids(&wal).unwrap_or_else(|error| panic!("{}: {error}, {recovery:?}", what()));
    expect.check(&found, what);
    (fs, found)
}

fn go_on(fs: &TestFs, mut found: Vec<u64>, lens: &[usize], what: &dyn Fn() -> String) {
    let (wal, _) = Wal::open(fs.arc(), Path::new(DIR), options()).unwrap();
    for (index, &len) in lens.iter().enumerate() {
        let id = 1_000_000 + index as u64;
        wal.append(&[&payload(id, len)]).unwrap();
        found.push(id);
        // One group synced, the rest not: the second open sees both kinds.
        if index == 0 {
            wal.sync().unwrap();
        }
    }
    drop(wal);
    let (wal, _) = Wal::open(TestFs::on(fs.disk().crash(Crash::KeepAll)).arc(), Path::new(DIR), options()).unwrap();
    assert_eq!(ids(&wal).unwrap(), found, "{}: after going on", what());
    let (wal, _) = Wal::open(TestFs::on(fs.disk().crash(Crash::LoseAll)).arc(), Path::new(DIR), options()).unwrap();
    found.truncate(found.len() - (lens.len() - 1));
    assert_eq!(ids(&wal).unwrap(), found, "{}: after going on and losing all that was not synced", what());
}

/// Every operation × what the crash keeps, and again for every operation of the recovery. Nothing synced is lost, what
/// is there is a prefix, nothing discarded comes back.
#[test]
#[expect(clippy::print_stdout, reason = "the number of crash points is a result")]
fn crashes_at_every_operation_leave_a_prefix_with_all_that_was_synced() {
    let (mut points, mut second_points) = (0, 0);
    let seeds = std::env::var("FERRISDB_WAL_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = seeds.map_or((1..=8).collect(), |seed| vec![seed]);
    for seed in seeds {
        let run = script(TestFs::new(), seed, 40);
        let expects = Arc::new(run.expects);
        for (op, (disk, note)) in run.fs.snapshots().into_iter().enumerate() {
            for index in 0..MODES {
                points += 1;
                let what = || format!("FERRISDB_WAL_SEED={seed}: crash at operation {op}, mode {index}");
                let (fs, found) =
                    recover(disk.crash(mode(index, seed + op as u64)), &expects[note], &what, op % 4 == index % 4);
                let snapshots = fs.snapshots();
                go_on(&fs, found.clone(), &[40 + (op * 8) % 200, 24, 64], &what);
                // Once the first recovery has shown records, they may not vanish; before, any prefix may be there.
                let last = snapshots.len() - 1;
                for (second_op, (disk, _)) in snapshots.into_iter().enumerate() {
                    for second in 0..MODES {
                        second_points += 1;
                        let what = || format!("{}, again at {second_op} of recovery, mode {second}", what());
                        let disk = disk.crash(mode(second, seed + second_op as u64));
                        let expect = if second_op == last {
                            Expect { lists: vec![found.clone()], synced: found.len(), purged: 0 }
                        } else {
                            expects[note].clone()
                        };
                        let (fs, found) = recover(disk, &expect, &what, false);
                        if second_op % 3 == second % 3 {
                            go_on(&fs, found, &[72, 24], &what);
                        }
                    }
                }
            }
        }
    }
    println!("wal crash points: {points}, and {second_points} in recovery");
}

/// Writes fail now and then, leaving all of their bytes behind, and the script goes on: a failed append's bytes are never taken
/// for a record, and what comes later is reached, at every crash.
#[test]
fn failed_writes_leave_nothing_that_is_read() {
    for seed in 1..=12 {
        let fs = TestFs::new();
        fs.failed_writes_land();
        let mut script = Script::new(fs.clone());
        let mut random = SplitMix64::new(seed);
        for _ in 0..30 {
            // The write itself fails, and the write that erases what is left of it does not.
            let fails = random.one_in(3);
            let mut writes = 0;
            fs.fail(move |op, _| {
                writes += usize::from(op == "write");
                (fails && op == "write" && writes == 1).then_some(std::io::ErrorKind::Other)
            });
            match random.below(3) {
                0 => script.append(&[100, 40, 40]),
                _ => script.append(&[100]),
            }
            fs.heal();
            // Without this sync the failed record's bytes could outlive the zeros over them: nothing is promised then.
            script.sync();
        }
        let expects = script.expects.clone();
        let expected = script.now.lists[0].clone();
        assert_eq!(ids(&script.wal).unwrap(), expected);
        for (op, (disk, note)) in fs.snapshots().into_iter().enumerate() {
            for index in 0..2 {
                let what = || format!("seed {seed}: crash at operation {op}, mode {index}");
                // Between a failed write and the next sync the failed one may be there: it is in the list at that point.
                let mut expect = expects[note].clone();
                let next = expects.get(note.saturating_sub(1)).cloned().unwrap_or_default();
                expect.lists.extend(next.lists);
                recover(disk.crash(mode(index, op as u64)), &expect, &what, false);
            }
        }
    }
}

/// An owner that stores the position from which it needs records, and only then has the rest purged, synced or not: at every crash the
/// log opens, and what is there from that position on is a prefix with all that was synced. What is appended afterwards stays.
#[test]
fn crashes_while_unsynced_segments_are_purged() {
    let open = |fs: &TestFs, required_from| {
        let options = WalOptions { required_from, recycle_max: 3, ..options() };
        let (wal, recovery) = Wal::open(fs.arc(), Path::new(DIR), options)?;
        let mut reader = wal.subscribe(recovery.replay_from, ReadUpTo::Appended)?;
        let mut found = Vec::new();
        while let Some(record) = reader.next()? {
            found.push(u64::from_le_bytes(record.payload[..8].try_into().unwrap()));
        }
        Ok::<_, Error>((wal, found))
    };
    let mut purges_of_unsynced = 0;
    for seed in 1..=12 {
        let mut random = SplitMix64::new(seed);
        let mut script = Script::new(TestFs::new());
        let mut required = vec![(0, WalPosition::ZERO); script.expects.len()];
        for _ in 0..50 {
            let mut needed = *required.last().unwrap();
            match random.below(12) {
                0 => script.sync(),
                1 => script.prepare(),
                2..=3 if script.now.lists[0].len() > needed.0 as usize + 6 => {
                    let list = &script.now.lists[0];
                    let index = needed.0 + random.below(list.len() as u64 - needed.0);
                    needed = (index, script.positions[&list[index as usize]]);
                    // Stored from here on.
                    script.noted();
                    required.resize(script.expects.len(), needed);
                    purges_of_unsynced += u64::from(script.now.synced < index as usize);
                    assert!(script.wal.purge_stored(needed.1).unwrap() <= needed.1);
                }
                _ => script.append(&[8 + random.below(300) as usize]),
            }
            required.resize(script.expects.len(), needed);
        }
        for (op, (disk, note)) in script.fs.snapshots().into_iter().enumerate() {
            let (expect, (first, from)) = (&script.expects[note], required[note]);
            for index in 0..MODES {
                let what = format!("seed {seed}: crash at operation {op}, mode {index}");
                let fs = TestFs::on(disk.crash(mode(index, seed + op as u64)));
                let (wal, mut found) = open(&fs, from).unwrap_or_else(|error| panic!("{what}: {error}"));
                let first = first as usize;
                let end = first + found.len();
                let fits = |list: &Vec<u64>| list.get(first..end) == Some(&found[..]) && end >= expect.synced;
                let lost_all = found.is_empty() && expect.synced <= first;
                assert!(
                    lost_all || expect.lists.iter().any(fits),
                    "{what}: found {found:?}, expected {expect:?} from {first}"
                );
                for id in 2_000_000..2_000_008 {
                    wal.append(&[&payload(id, 200)]).unwrap();
                    found.push(id);
                }
                wal.sync().unwrap();
                drop(wal);
                let (_, again) = open(&TestFs::on(fs.disk().crash(Crash::LoseAll)), from).unwrap();
                assert_eq!(again, found, "{what}: after going on");
            }
        }
    }
    assert!(purges_of_unsynced > 25, "only {purges_of_unsynced} purges met segments that were not synced");
}
