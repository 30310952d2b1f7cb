//! What can be measured, in which groups, and the suites.
//!
//! A group is what one process does with one fresh directory: its preparation, then its workloads in their order here.
//! Workloads that leave out others still see the same preparation, so a group can be resumed or cut short.

use clap::ValueEnum;
use ferrisdb_core::{Random, SplitMix64};
use serde::{Deserialize, Serialize};

/// One measured row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Load every key in key order, in batches.
    Fillseq,
    /// Load every key in random order, in batches.
    Fillrandom,
    /// Get keys, all alike likely.
    Readrandom,
    /// Get keys, Zipf-distributed.
    Readzipf,
    /// Get keys that do not exist and lie between those that do.
    Readmissing,
    /// Seek to a random key and read 10 entries.
    Seek10,
    /// Seek to a random key and read 100 entries.
    Seek100,
    /// Readrandom while one more thread puts 10,000 values a second.
    Readwhilewriting,
    /// YCSB A: 50 % reads, 50 % updates, Zipf.
    YcsbA,
    /// YCSB B: 95 % reads, 5 % updates, Zipf.
    YcsbB,
    /// YCSB C: reads, Zipf.
    YcsbC,
    /// YCSB F: 50 % reads, 50 % read-modify-writes, Zipf.
    YcsbF,
    /// YCSB D: 95 % reads of what is newest, 5 % inserts.
    YcsbD,
    /// YCSB E: 95 % scans of 1 to 100 entries, 5 % inserts.
    YcsbE,
    /// Put new values of existing random keys, one at a time.
    Overwrite,
    /// Delete existing random keys, one at a time, up to half of them.
    Deletes,
    /// Seek10 into ranges of which every key was just deleted.
    #[value(name = "seek10-tombstones")]
    #[serde(rename = "seek10-tombstones")]
    Seek10Tombstones,
    /// Synced single puts from one thread.
    #[value(name = "durable-put-1")]
    #[serde(rename = "durable-put-1")]
    DurablePut1,
    /// Synced single puts from eight threads.
    #[value(name = "durable-put-8")]
    #[serde(rename = "durable-put-8")]
    DurablePut8,
    /// Synced batches of 100 puts from eight threads; an operation is a batch.
    #[value(name = "durable-batch-8")]
    #[serde(rename = "durable-batch-8")]
    DurableBatch8,
    /// Overwrite with every latency taken: the longest put of each second. In no suite; give `--seconds 300`.
    OverwriteStall,
}

impl Workload {
    /// The name in tables and JSON lines.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no workload is skipped on the command line").get_name().to_owned()
    }

    /// The group that measures it.
    pub(crate) fn group(self) -> Group {
        match self {
            Workload::Fillseq => Group::Fillseq,
            Workload::Fillrandom
            | Workload::Readrandom
            | Workload::Readzipf
            | Workload::Readmissing
            | Workload::Seek10
            | Workload::Seek100
            | Workload::Readwhilewriting => Group::Read,
            Workload::YcsbA
            | Workload::YcsbB
            | Workload::YcsbC
            | Workload::YcsbD
            | Workload::YcsbE
            | Workload::YcsbF => Group::Ycsb,
            Workload::Overwrite | Workload::Deletes => Group::Write,
            Workload::Seek10Tombstones => Group::Tombstones,
            Workload::DurablePut1 | Workload::DurablePut8 | Workload::DurableBatch8 => Group::Durable,
            Workload::OverwriteStall => Group::Stall,
        }
    }

    /// True if it changes nothing: it is then warmed up first and has no write amplification.
    pub(crate) fn is_read_only(self) -> bool {
        matches!(
            self,
            Workload::Readrandom
                | Workload::Readzipf
                | Workload::Readmissing
                | Workload::Seek10
                | Workload::Seek100
                | Workload::YcsbC
                | Workload::Seek10Tombstones
        )
    }

    /// The YCSB mix, for those that have one.
    pub(crate) fn mix(self) -> Option<Mix> {
        Some(match self {
            Workload::YcsbA => Mix { read: 50, update: 50, ..Mix::NONE },
            Workload::YcsbB => Mix { read: 95, update: 5, ..Mix::NONE },
            Workload::YcsbC => Mix { read: 100, ..Mix::NONE },
            Workload::YcsbD => Mix { read: 95, insert: 5, latest: true, ..Mix::NONE },
            Workload::YcsbE => Mix { scan: 95, insert: 5, ..Mix::NONE },
            Workload::YcsbF => Mix { read: 50, read_modify_write: 50, ..Mix::NONE },
            _ => return None,
        })
    }
}

/// What one process measures on one fresh directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// The directory starts empty.
    Fillseq,
    /// The directory starts empty; fillrandom is the preparation of the rest, whether it is asked for or not.
    Read,
    /// The directory is loaded in random order.
    Ycsb,
    /// The directory is loaded in random order.
    Write,
    /// The directory is loaded in random order and settled; then dense ranges are deleted.
    Tombstones,
    /// The directory starts empty and writes are synced.
    Durable,
    /// The directory is loaded in random order.
    Stall,
}

/// One choice of a YCSB client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Read,
    Update,
    Insert,
    Scan,
    ReadModifyWrite,
}

/// How often a YCSB client chooses what, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) read: u64,
    pub(crate) update: u64,
    pub(crate) insert: u64,
    pub(crate) scan: u64,
    pub(crate) read_modify_write: u64,
    /// Popular is what was inserted last, not a fixed random set.
    pub(crate) latest: bool,
}

impl Mix {
    const NONE: Mix = Mix { read: 0, update: 0, insert: 0, scan: 0, read_modify_write: 0, latest: false };

    #[inline]
    pub(crate) fn choose(&self, random: &mut SplitMix64) -> Choice {
        let mut dice = random.below(100);
        for (percent, choice) in [
            (self.read, Choice::Read),
            (self.update, Choice::Update),
            (self.insert, Choice::Insert),
            (self.scan, Choice::Scan),
        ] {
            if dice < percent {
                return choice;
            }
            dice -= percent;
        }
        Choice::ReadModifyWrite
    }
}

/// A data set with its budgets and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SuiteName {
    /// 2 M × 100 B with a cache of 256 MiB: everything fits.
    #[value(name = "A", alias = "a")]
    A,
    /// 1 M × 1 KiB with a cache of 64 MiB: files in the page cache.
    #[value(name = "B", alias = "b")]
    B,
    /// 600 k × 1 KiB with 400 MiB of memory for everything, the page cache included.
    LargerThanMemory,
    /// Every row in seconds, to see that everything works; its numbers mean nothing.
    Smoke,
}

/// The settings of a suite, before the command line changes some.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    pub(crate) cache_bytes: u64,
    pub(crate) write_buffer_bytes: u64,
    /// The limit of the child's cgroup.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Per timed workload.
    pub(crate) seconds: f64,
    pub(crate) workloads: Vec<Workload>,
}

const MIB: u64 = 1 << 20;

impl SuiteName {
    pub(crate) fn suite(self) -> Suite {
        let all = || Workload::value_variants().iter().copied().filter(|&w| w != Workload::OverwriteStall).collect();
        let name = self.to_possible_value().expect("no suite is skipped").get_name().to_owned();
        let a = Suite {
            name,
            keys: 2_000_000,
            value_bytes: 100,
            cache_bytes: 256 * MIB,
            write_buffer_bytes: 64 * MIB,
            memory_limit_bytes: None,
            seconds: 10.0,
            workloads: all(),
        };
        match self {
            SuiteName::A => a,
            SuiteName::B => Suite { keys: 1_000_000, value_bytes: 1024, cache_bytes: 64 * MIB, ..a },
            SuiteName::LargerThanMemory => Suite {
                keys: 600_000,
                value_bytes: 1024,
                cache_bytes: 64 * MIB,
                memory_limit_bytes: Some(400 * MIB),
                seconds: 20.0,
                workloads: vec![
                    Workload::Fillrandom,
                    Workload::Readrandom,
                    Workload::Readzipf,
                    Workload::Readmissing,
                    Workload::Seek10,
                    Workload::YcsbA,
                    Workload::YcsbB,
                ],
                ..a
            },
            SuiteName::Smoke => {
                Suite { keys: 20_000, cache_bytes: 8 * MIB, write_buffer_bytes: 2 * MIB, seconds: 0.2, ..a }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The YCSB core workloads as Cooper et al. (2010) define them, and choices that follow them.
    #[test]
    fn the_mixes_are_those_of_ycsb() {
        let expected = [
            (Workload::YcsbA, [50, 50, 0, 0, 0], false),
            (Workload::YcsbB, [95, 5, 0, 0, 0], false),
            (Workload::YcsbC, [100, 0, 0, 0, 0], false),
            (Workload::YcsbD, [95, 0, 5, 0, 0], true),
            (Workload::YcsbE, [0, 0, 5, 95, 0], false),
            (Workload::YcsbF, [50, 0, 0, 0, 50], false),
        ];
        for (workload, percents, latest) in expected {
            let mix = workload.mix().unwrap();
            assert_eq!(mix.latest, latest, "{workload:?}");
            let mut random = SplitMix64::new(9);
            let mut counts = [0_u32; 5];
            for _ in 0..100_000 {
                counts[mix.choose(&mut random) as usize] += 1;
            }
            // In the order of `Choice`; 0.5 percentage points are three standard deviations at the worst.
            for (count, percent) in counts.iter().zip(percents) {
                assert!((f64::from(*count) / 1000.0 - f64::from(percent)).abs() < 0.5, "{workload:?}: {counts:?}");
            }
        }
    }

    /// A name typed on the command line, in a JSON line and in a child's job is the same.
    #[test]
    fn names_agree_everywhere() {
        for workload in Workload::value_variants() {
            assert_eq!(serde_json::to_value(workload).unwrap(), workload.name());
        }
        assert_eq!(Workload::YcsbA.name(), "ycsb-a");
        assert_eq!(Workload::DurablePut8.name(), "durable-put-8");
    }
}
