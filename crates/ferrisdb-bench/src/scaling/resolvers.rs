//! The key space split between several resolvers: what it saves, and what it costs.
//!
//! Each has a real [`ConflictWindow`] for its part. As in FoundationDB they do not wait for each other: a resolver adds the writes of a transaction that
//! *it* found nothing against, also if another refuses it. Those writes never happen, and others are refused because of them. How many is
//! what is measured here, beside the processor time of the busiest resolver.

use ferrisdb_core::{Bytes, KeyRange, Random, SplitMix64, Version, Zipf};
use ferrisdb_server::resolver::{Checked, ConflictWindow};

use crate::resolver::cpu_seconds;

/// Transactions of a batch; each batch has a version.
const BATCH: usize = 64;
/// How many batches ago a transaction may have read: about 10 ms at 100,000 transactions/s.
const LAG_BATCHES: u64 = 16;
/// Batches in the window: five seconds at that rate.
const WINDOW_BATCHES: u64 = 8000;

/// What transactions are like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) reads: usize,
    pub(super) writes: usize,
    pub(super) keys: u64,
    /// Some keys are more popular than others, as in YCSB.
    pub(super) is_skewed: bool,
}

/// What came of one load with so many resolvers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    pub(super) transactions: u64,
    pub(super) refused: u64,
    /// Processor time per transaction of the resolver that had most to do.
    pub(super) busiest_us: f64,
}

/// The resolvers. The first eight bytes of a key choose one; keys are spread evenly over them.
struct Split {
    parts: Vec<ConflictWindow>,
}

impl Split {
    fn of(&self, key: &[u8]) -> usize {
        let head = u64::from_be_bytes(*key.first_chunk().expect("these keys have sixteen bytes"));
        usize::try_from((u128::from(head) * self.parts.len() as u128) >> 64).expect("below their number")
    }
}

struct Transaction {
    read_version: Version,
    reads: Vec<Bytes>,
    writes: Vec<Bytes>,
}

struct Source {
    load: Load,
    random: SplitMix64,
    zipf: Zipf,
}

impl Source {
    fn key(&mut self) -> Bytes {
        let number =
            if self.load.is_skewed { self.zipf.sample(&mut self.random) } else { self.random.below(self.load.keys) };
        let mut spread = SplitMix64::new(number);
        [spread.next_u64().to_be_bytes(), number.to_be_bytes()].concat().into()
    }

    fn batch(&mut self, version: u64) -> Vec<Transaction> {
        let mut transactions = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            let lag = 1 + self.random.below(LAG_BATCHES);
            transactions.push(Transaction {
                read_version: Version::from_u64(version - lag),
                reads: (0..self.load.reads).map(|_| self.key()).collect(),
                writes: (0..self.load.writes).map(|_| self.key()).collect(),
            });
        }
        transactions
    }
}

/// Runs `batches` batches after a window full of them.
pub(super) fn run(load: Load, resolvers: usize, batches: u64) -> Outcome {
    let first = WINDOW_BATCHES + LAG_BATCHES;
    let mut split =
        Split { parts: (0..resolvers).map(|_| ConflictWindow::new(Version::from_u64(first - LAG_BATCHES))).collect() };
    let mut source = Source { load, random: SplitMix64::new(11), zipf: Zipf::new(load.keys, Zipf::YCSB_THETA) };
    let mut busy = vec![0.0; resolvers];
    let mut outcome = Outcome { transactions: 0, refused: 0, busiest_us: 0.0 };
    // With fewer batches than a window has it is not full before they end: then all are measured.
    let measured_from = first + WINDOW_BATCHES.min(batches);
    for version in first + 1..=measured_from + batches {
        let batch = source.batch(version);
        let is_measured = version > measured_from;
        let mut is_refused = [false; BATCH];
        for (part, seconds) in busy.iter_mut().enumerate() {
            // What the resolver is sent: made by the coordinator, so not timed.
            let of_part = |keys: &[Bytes]| -> Vec<KeyRange> {
                keys.iter().filter(|key| split.of(key) == part).map(|key| KeyRange::single(key)).collect()
            };
            let sent: Vec<_> =
                batch.iter().map(|sent| (sent.read_version, of_part(&sent.reads), of_part(&sent.writes))).collect();
            let window = &mut split.parts[part];
            let begin = cpu_seconds();
            for ((read_version, reads, writes), is_refused) in sent.iter().zip(&mut is_refused) {
                if window.check(*read_version, reads) == Checked::Ok {
                    window.add(Version::from_u64(version), writes);
                } else {
                    *is_refused = true;
                }
            }
            window.forget_below(Version::from_u64(version.saturating_sub(WINDOW_BATCHES)));
            if is_measured {
                *seconds += cpu_seconds() - begin;
            }
        }
        if is_measured {
            outcome.transactions += BATCH as u64;
            outcome.refused += is_refused.iter().filter(|&&is_refused| is_refused).count() as u64;
        }
    }
    let busiest = busy.iter().copied().fold(0.0, f64::max);
    outcome.busiest_us = busiest * 1e6 / outcome.transactions as f64;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOT: Load = Load { name: "hot", reads: 5, writes: 2, keys: 2000, is_skewed: true };

    /// With one resolver nothing is refused in vain; with several some is, and never less in all.
    #[test]
    fn splitting_refuses_more() {
        let refused: Vec<u64> = [1, 2, 8].map(|resolvers| run(HOT, resolvers, 40).refused).to_vec();
        assert!(refused[0] > 0 && refused[0] < refused[1] && refused[1] < refused[2], "{refused:?}");
    }

    /// Transactions of one read and one write of the same part cannot be refused elsewhere: splitting changes nothing where nothing is shared.
    #[test]
    fn blind_writes_are_never_refused() {
        let blind = Load { reads: 0, ..HOT };
        assert_eq!(run(blind, 8, 20).refused, 0);
    }
}
