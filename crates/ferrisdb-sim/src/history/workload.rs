//! [`client`]: one of many clients that run transactions against each other, and record what they see.
//!
//! The mix is chosen so that every kind of anomaly has its chance: transfers between accounts (lost updates, write skew), inserts into ranges
//! that others scan and count (phantoms), rows taken from either end of such ranges (range reads that are cut short), whole ranges
//! cleared, blind atomic operations, keys that only the commit knows, scans of everything, own writes read back. Some attempts are given up
//! before they commit, and some commits are not waited for.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ferrisdb_client::{Database, RangeOptions, Transaction};
use ferrisdb_core::key::key_after;
use ferrisdb_core::{
    Bytes, Code, Error, KeyRange, KeyValue, Mutation, MutationKind, Random, Result, Runtime, SplitMix64, Version,
};

use super::{Attempt, Outcome, Read, ReadWhat, marker};

const ACCOUNTS: u64 = 6;
const BUCKETS: u64 = 3;
const COUNTERS: u64 = 3;
/// What an account has before anybody wrote to it.
const OPENING_BALANCE: u64 = 100;
/// How long a client waits after an error that is not retried.
const PAUSE: Duration = Duration::from_millis(5);

/// What all clients of a run record, in the order of one clock.
#[derive(Debug, Default)]
pub struct Recorder {
    clock: AtomicU64,
    ids: AtomicU64,
    attempts: Mutex<BTreeMap<u64, Attempt>>,
}

impl Recorder {
    /// The attempts so far. One whose client has ended during its commit is unknown.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.lock().values().cloned().collect()
    }

    /// How many attempts were acknowledged so far.
    pub fn committed(&self) -> u64 {
        self.lock().values().filter(|attempt| matches!(attempt.outcome, Outcome::Committed { .. })).count() as u64
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn put(&self, attempt: Attempt) {
        self.lock().insert(attempt.id, attempt);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `transactions` random transactions, each until it has ended in one way or another.
pub async fn client(db: Database, runtime: Arc<dyn Runtime>, recorder: Arc<Recorder>, seed: u64, transactions: u32) {
    let mut random = SplitMix64::new(seed);
    for _ in 0..transactions {
        let kind = random.below(100);
        let mut tx = db.create_transaction();
        loop {
            let Err(error) = attempt(&tx, &recorder, &mut random, kind).await else { break };
            let retried = tx.on_error(error).await;
            if retried.is_err() {
                // Not to be retried by this transaction: the database may be away for a while.
                runtime.sleep(PAUSE).await;
                tx = db.create_transaction();
            }
        }
    }
}

/// Everything in the database, as of one version.
///
/// # Errors
/// Those of a read.
pub async fn everything(db: &Database) -> Result<Vec<KeyValue>> {
    let all = KeyRange::new(Bytes::new(), Bytes::from_static(b"\xff"));
    db.run(async |tx| tx.get_ranges(all.clone()).collect().await).await
}

/// An attempt under way.
struct Draft<'a> {
    tx: &'a Transaction,
    attempt: Attempt,
}

/// One attempt. An error is one after which it may be tried again; whatever happened is recorded.
async fn attempt(tx: &Transaction, recorder: &Recorder, random: &mut SplitMix64, kind: u64) -> Result<()> {
    let began = recorder.tick();
    let read_version = tx.get_read_version().await?;
    let attempt = Attempt {
        id: recorder.ids.fetch_add(1, Ordering::SeqCst),
        began,
        sent: 0,
        ended: 0,
        read_version,
        reads: Vec::new(),
        mutations: Vec::new(),
        outcome: Outcome::ReadOnly,
    };
    let mut draft = Draft { tx, attempt };
    let body = draft.body(random, kind).await;
    let Draft { mut attempt, .. } = draft;
    attempt.sent = recorder.tick();
    attempt.ended = attempt.sent;
    let is_read_only = attempt.mutations.is_empty();
    let gives_up = random.one_in(25);
    if body.is_err() || gives_up {
        if !is_read_only {
            attempt.outcome = Outcome::Aborted;
        }
        recorder.put(attempt);
        if body.is_ok() {
            tx.cancel();
        }
        return body;
    }
    let stamp = tx.get_versionstamp();
    // As long as nobody says otherwise.
    if !is_read_only {
        attempt.outcome = Outcome::Unknown;
    }
    recorder.put(attempt.clone());
    let mut commit = tx.commit();
    if random.one_in(20) {
        // It goes on by itself.
        poll_once(&mut commit);
        return Ok(());
    }
    let committed = commit.await;
    attempt.outcome = match &committed {
        _ if is_read_only => Outcome::ReadOnly,
        Ok(()) => {
            let stamp = stamp.await?;
            let (version, batch_index) =
                stamp.as_bytes().split_last_chunk::<2>().expect("a versionstamp has ten bytes");
            let version = u64::from_be_bytes(version.try_into().expect("and eight of them are a version"));
            let batch_index = u16::from_be_bytes(*batch_index);
            Outcome::Committed { version: Version::from_u64(version), batch_index }
        }
        Err(error) if is_unknown(error) => Outcome::Unknown,
        Err(_) => Outcome::Aborted,
    };
    attempt.ended = recorder.tick();
    recorder.put(attempt);
    match committed {
        // To do it again might do it twice; it would be another attempt, but then nothing would test that it is not.
        Err(error) if is_unknown(&error) => Ok(()),
        committed => committed,
    }
}

fn is_unknown(error: &Error) -> bool {
    error.is_maybe_committed() || error.code() == Code::CommitUnknownResultFatal
}

fn poll_once(future: impl Future) {
    // Whatever it says, nobody waits for it.
    if let Poll::Ready(output) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        drop(output);
    }
}

fn key(space: &str, number: u64) -> Bytes {
    Bytes::from(format!("{space}/{number}"))
}

fn bucket(random: &mut SplitMix64) -> KeyRange {
    let bucket = random.below(BUCKETS);
    KeyRange::new(format!("bucket/{bucket}/").into_bytes(), format!("bucket/{bucket}0").into_bytes())
}

fn number(value: Option<&Bytes>) -> Option<u64> {
    Some(u64::from_le_bytes(value?.as_ref().try_into().ok()?))
}

impl Draft<'_> {
    async fn body(&mut self, random: &mut SplitMix64, kind: u64) -> Result<()> {
        match kind {
            0..30 => self.transfer(random).await,
            30..48 => {
                let range = bucket(random);
                let rows = self.range(range.clone(), 0, random.one_in(2), false).await?;
                let name = format!("{:03}-{}", rows.len(), random.below(10));
                let key = [range.begin.as_ref(), name.as_bytes()].concat();
                self.write(Mutation::set(key, vec![b'v'; 1 + rows.len() % 7]));
                Ok(())
            }
            48..60 => {
                let limit = 1 + i32::try_from(random.below(2)).expect("it is below two");
                let rows = self.range(bucket(random), limit, random.one_in(2), false).await?;
                if let Some(row) = rows.first() {
                    let taken = KeyRange::single(&row.key);
                    self.write(Mutation::clear_range(taken.begin, taken.end));
                    self.write(add(key("counter", 0), 1));
                }
                Ok(())
            }
            60..64 => {
                self.get(key("account", random.below(ACCOUNTS)), false).await?;
                let range = bucket(random);
                self.write(Mutation::clear_range(range.begin.clone(), range.end));
                // A set after a clear stays.
                self.write(Mutation::set([range.begin.as_ref(), b"anew"].concat(), "1"));
                Ok(())
            }
            64..76 => {
                self.write(add(key("counter", random.below(COUNTERS)), 1 + random.below(5)));
                Ok(())
            }
            76..82 => {
                let from = key("counter", random.below(COUNTERS));
                let value = self.get(from, false).await?;
                let to = key("copy", random.below(COUNTERS));
                self.write(Mutation::set(to, value.unwrap_or_default()));
                Ok(())
            }
            82..88 => {
                let template = [b"log/".as_slice(), &[0; 10], &4u32.to_le_bytes()].concat();
                self.write(Mutation::new(MutationKind::SetVersionstampedKey, template, "entry"));
                Ok(())
            }
            88..92 => {
                let log = KeyRange::new(&b"log/"[..], &b"log0"[..]);
                let rows = self.range(log, 3, random.one_in(2), false).await?;
                self.write(Mutation::set(key("copy", 0), rows.last().map(|row| row.key.clone()).unwrap_or_default()));
                Ok(())
            }
            _ => {
                let all = KeyRange::new(&b"a"[..], &b"z"[..]);
                self.range(all, 0, random.one_in(2), random.one_in(2)).await?;
                self.get(key("account", random.below(ACCOUNTS)), random.one_in(2)).await?;
                Ok(())
            }
        }
    }

    async fn transfer(&mut self, random: &mut SplitMix64) -> Result<()> {
        let from = random.below(ACCOUNTS);
        let to = (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let (from, to) = (key("account", from), key("account", to));
        let have = number(self.get(from.clone(), false).await?.as_ref()).unwrap_or(OPENING_BALANCE);
        let other = number(self.get(to.clone(), false).await?.as_ref()).unwrap_or(OPENING_BALANCE);
        let amount = random.below(20).min(have);
        self.write(Mutation::set(from.clone(), (have - amount).to_le_bytes().to_vec()));
        self.write(Mutation::set(to, (other + amount).to_le_bytes().to_vec()));
        if random.one_in(3) {
            // What was just written; a snapshot read, so that it counts as no read of what others have.
            self.get(from, true).await?;
            self.range(KeyRange::new(&b"account/"[..], &b"account0"[..]), 0, random.one_in(2), true).await?;
        }
        Ok(())
    }

    async fn get(&mut self, key: Bytes, is_snapshot: bool) -> Result<Option<Bytes>> {
        let value = if is_snapshot { self.tx.snapshot().get(&key) } else { self.tx.get(&key) }.await?;
        self.note(is_snapshot, ReadWhat::Key { key, value: value.clone() });
        Ok(value)
    }

    /// Rows in the order in which they were read.
    async fn range(&mut self, range: KeyRange, limit: i32, reverse: bool, is_snapshot: bool) -> Result<Vec<KeyValue>> {
        let options = RangeOptions::from(range.clone()).limit(limit).reverse(reverse);
        let tx = self.tx;
        let chunk = if is_snapshot { tx.snapshot().get_range(options) } else { tx.get_range(options) }.await?;
        // What was not reached was not read.
        let read = match chunk.rows.last().filter(|_| chunk.more) {
            Some(last) if reverse => KeyRange::new(last.key.clone(), range.end),
            Some(last) => KeyRange::new(range.begin, key_after(&last.key)),
            None => range,
        };
        let mut rows = chunk.rows.clone();
        if reverse {
            rows.reverse();
        }
        self.note(is_snapshot, ReadWhat::Range { range: read, rows });
        Ok(chunk.rows)
    }

    fn note(&mut self, is_snapshot: bool, what: ReadWhat) {
        let after = self.attempt.mutations.len();
        self.attempt.reads.push(Read { after, is_snapshot, what });
    }

    fn write(&mut self, mutation: Mutation) {
        if self.attempt.mutations.is_empty() {
            let marker = marker(self.attempt.id);
            self.tx.atomic_op(&marker.key, &marker.value, marker.kind);
            self.attempt.mutations.push(marker);
        }
        match mutation.kind {
            MutationKind::Set => self.tx.set(&mutation.key, &mutation.value),
            MutationKind::ClearRange => self.tx.clear_range(&mutation.key, &mutation.value),
            kind => self.tx.atomic_op(&mutation.key, &mutation.value, kind),
        }
        self.attempt.mutations.push(mutation);
    }
}

fn add(key: Bytes, number: u64) -> Mutation {
    Mutation::new(MutationKind::Add, key, number.to_le_bytes().to_vec())
}

/// What a run is judged by: a history that certifies, and enough in it.
///
/// # Panics
/// If it does not certify, naming `what`.
pub fn certified(what: &str, recorder: &Recorder, end: &[KeyValue]) -> super::Certificate {
    let attempts = recorder.attempts();
    // Kept in the message: which order it was is all that helps.
    super::certify(&[], &attempts, end).unwrap_or_else(|violation| {
        let newest = attempts.iter().map(|attempt| attempt.read_version).max().unwrap_or(Version::ZERO);
        panic!("{what}: {violation}\n({} attempts, read versions up to {newest})", attempts.len())
    })
}
