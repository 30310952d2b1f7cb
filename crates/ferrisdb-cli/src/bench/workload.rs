//! What the transactions of each workload do.

use clap::ValueEnum;
use ferrisdb::{Database, Error, KeySelector, RangeOptions, StreamingMode, Transaction};
use ferrisdb_core::{Random, SplitMix64, Zipf};

use super::data::{Inserts, Rows};

/// What every account has at first.
pub(crate) const BALANCE: i64 = 1000;
/// Point reads of a transaction of `read-only`.
const READS: usize = 10;
/// Rows that a scan reads at most.
const SCAN_ROWS_MAX: u64 = 100;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Half reads, half updates, Zipf-distributed
    YcsbA,
    /// 95 % reads, 5 % updates, Zipf
    YcsbB,
    /// Reads, Zipf
    YcsbC,
    /// 95 % reads of what is newest, 5 % inserts
    YcsbD,
    /// 95 % scans of 1 to 100 rows, 5 % inserts
    YcsbE,
    /// Half reads, half read-modify-writes, Zipf
    YcsbF,
    /// Transfers between two random accounts; the total is proven at the end
    Bank,
    /// Read-modify-writes of one key by all clients; the count is proven at the end
    HotKey,
    /// One row written without being read, all rows alike likely
    CommitOnly,
    /// Ten point reads, all rows alike likely
    ReadOnly,
}

impl Workload {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no workload is skipped on the command line").get_name().to_owned()
    }

    /// Percent of reads, updates, inserts, scans; the rest are read-modify-writes.
    fn mix(self) -> [u64; 4] {
        match self {
            Workload::YcsbA => [50, 50, 0, 0],
            Workload::YcsbB => [95, 5, 0, 0],
            Workload::YcsbC => [100, 0, 0, 0],
            Workload::YcsbD => [95, 0, 5, 0],
            Workload::YcsbE => [0, 0, 5, 95],
            Workload::YcsbF => [50, 0, 0, 0],
            Workload::CommitOnly => [0, 100, 0, 0],
            Workload::Bank | Workload::HotKey | Workload::ReadOnly => [0; 4],
        }
    }
}

/// What one transaction does. Decided before it begins, so that each attempt does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    Read(Vec<u64>),
    /// An existing row, or a new one.
    Write {
        number: u64,
        value: Vec<u8>,
        is_insert: bool,
    },
    Scan {
        number: u64,
        rows: u64,
    },
    ReadModifyWrite {
        number: u64,
        value: Vec<u8>,
    },
    Transfer {
        from: u64,
        to: u64,
        amount: i64,
    },
    Increment,
}

impl Plan {
    /// True if doing it twice is doing it once: after an unknown outcome it is done again.
    pub(crate) fn is_idempotent(&self) -> bool {
        !matches!(self, Plan::Transfer { .. } | Plan::Increment)
    }
}

/// Why an attempt ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The database said so.
    Error(Error),
    /// A read gave something that cannot be.
    Wrong(String),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Error(error)
    }
}

/// A workload over its rows.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) workload: Workload,
    pub(crate) rows: Rows,
    /// Rows that were loaded.
    pub(crate) count: u64,
    pub(crate) zipf: Zipf,
}

impl Work {
    /// What the next transaction does.
    pub(crate) fn plan(&self, random: &mut SplitMix64, inserts: &mut Inserts) -> Plan {
        match self.workload {
            Workload::Bank => {
                let from = random.below(self.count);
                let to = (from + 1 + random.below(self.count - 1)) % self.count;
                return Plan::Transfer { from, to, amount: 1 + i64::from(random.one_in(2)) };
            }
            Workload::HotKey => return Plan::Increment,
            Workload::ReadOnly => return Plan::Read((0..READS).map(|_| random.below(self.count)).collect()),
            _ => {}
        }
        let number = match self.workload {
            Workload::CommitOnly => random.below(self.count),
            Workload::YcsbD => inserts.acknowledged() - 1 - self.zipf.sample(random),
            _ => self.zipf.sample(random),
        };
        let mut dice = random.below(100);
        for (choice, percent) in self.workload.mix().into_iter().enumerate() {
            if dice >= percent {
                dice -= percent;
                continue;
            }
            return match choice {
                0 => Plan::Read(vec![number]),
                1 => Plan::Write { number, value: self.rows.value(number, random), is_insert: false },
                2 => {
                    let number = inserts.begin();
                    Plan::Write { number, value: self.rows.value(number, random), is_insert: true }
                }
                _ => Plan::Scan { number, rows: 1 + random.below(SCAN_ROWS_MAX) },
            };
        }
        Plan::ReadModifyWrite { number, value: self.rows.value(number, random) }
    }

    /// One attempt, up to the commit. Returns rows read.
    pub(crate) async fn attempt(&self, transaction: &Transaction, plan: &Plan) -> Result<u64, Ended> {
        match plan {
            Plan::Read(numbers) => {
                // All are asked before the first is awaited.
                let reads: Vec<_> = numbers.iter().map(|number| transaction.get(self.rows.key(*number))).collect();
                for (number, read) in numbers.iter().zip(reads) {
                    self.rows.check(*number, read.await?.as_deref()).map_err(Ended::Wrong)?;
                }
                Ok(numbers.len() as u64)
            }
            Plan::Write { number, value, .. } => {
                transaction.set(self.rows.key(*number), value);
                Ok(0)
            }
            Plan::Scan { number, rows } => self.scan(transaction, *number, *rows).await,
            Plan::ReadModifyWrite { number, value } => {
                let key = self.rows.key(*number);
                let before = transaction.get(&key).await?;
                self.rows.check(*number, before.as_deref()).map_err(Ended::Wrong)?;
                transaction.set(key, value);
                Ok(1)
            }
            Plan::Transfer { from, to, amount } => {
                let (from, to) = (self.rows.key(*from), self.rows.key(*to));
                let (from_read, to_read) = (transaction.get(&from), transaction.get(&to));
                let (from_balance, to_balance) = (number_of(from_read.await?)?, number_of(to_read.await?)?);
                transaction.set(from, (from_balance - amount).to_le_bytes());
                transaction.set(to, (to_balance + amount).to_le_bytes());
                Ok(2)
            }
            Plan::Increment => {
                let key = self.rows.key(0);
                let before = number_of(transaction.get(&key).await?)?;
                transaction.set(key, (before + 1).to_le_bytes());
                Ok(1)
            }
        }
    }

    async fn scan(&self, transaction: &Transaction, number: u64, rows: u64) -> Result<u64, Ended> {
        let end = KeySelector::first_greater_or_equal(self.rows.range().end);
        let begin = self.rows.key(number);
        let limit = i32::try_from(rows).expect("a scan reads a hundred rows at most");
        let mut next = Some(
            RangeOptions::new(KeySelector::first_greater_or_equal(begin.clone()), end)
                .limit(limit)
                .mode(StreamingMode::WantAll),
        );
        let (mut seen, mut last) = (0, None);
        while let Some(options) = next {
            let chunk = transaction.get_range(options.clone()).await?;
            for row in &chunk.rows {
                let is_in_order = match &last {
                    Some(last) => *last < row.key,
                    // The row that it begins at is there.
                    None => row.key == begin,
                };
                if !is_in_order {
                    return Err(Ended::Wrong("a scan skipped or repeated a row".to_owned()));
                }
                self.rows.check_row(&row.key, &row.value).map_err(Ended::Wrong)?;
                last = Some(row.key.clone());
                seen += 1;
            }
            next = options.after(&chunk);
        }
        if seen > rows {
            return Err(Ended::Wrong(format!("a scan of {rows} rows gave {seen}")));
        }
        Ok(seen)
    }

    /// What a row has before anything is measured.
    pub(crate) fn first_value(&self, number: u64, random: &mut SplitMix64) -> Vec<u8> {
        match self.workload {
            Workload::Bank => BALANCE.to_le_bytes().to_vec(),
            Workload::HotKey => 0_i64.to_le_bytes().to_vec(),
            _ => self.rows.value(number, random),
        }
    }

    /// Whether what is there afterwards is what `commits` transactions, and perhaps `unknown` more, make of it. Says what was proven, or
    /// what is wrong; `None` if there is nothing to prove.
    pub(crate) async fn prove(
        &self,
        database: &Database,
        commits: u64,
        unknown: u64,
    ) -> Result<Option<Result<String, String>>, Ended> {
        match self.workload {
            Workload::Bank => {
                let snapshot = database.snapshot(ferrisdb::SnapshotOptions::default()).await?;
                let mut next = Some(RangeOptions::from(self.rows.range()).mode(StreamingMode::WantAll));
                let (mut accounts, mut total) = (0_u64, 0_i64);
                while let Some(options) = next {
                    let chunk = snapshot.get_range(options.clone()).await?;
                    for row in &chunk.rows {
                        accounts += 1;
                        total += number_of(Some(row.value.clone()))?;
                    }
                    next = options.after(&chunk);
                }
                let expected = i64::try_from(self.count).unwrap_or(i64::MAX) * BALANCE;
                let is_right = accounts == self.count && total == expected;
                Ok(Some(if is_right {
                    Ok(format!("the total of {accounts} accounts is {total}, as before"))
                } else {
                    Err(format!("{accounts} accounts have {total}; {} had {expected} before", self.count))
                }))
            }
            Workload::HotKey => {
                let count = database.run(async |transaction| transaction.get(self.rows.key(0)).await).await?;
                let count = u64::try_from(number_of(count)?).unwrap_or(0);
                Ok(Some(if (commits..=commits + unknown).contains(&count) {
                    Ok(format!("the key counted to {count}, one for each of {commits} commits"))
                } else {
                    Err(format!("the key counted to {count} in {commits} commits (and {unknown} of unknown outcome)"))
                }))
            }
            _ => Ok(None),
        }
    }
}

/// A balance or count.
fn number_of(value: Option<ferrisdb::Bytes>) -> Result<i64, Ended> {
    let number = value.as_deref().and_then(|value| value.try_into().ok()).map(i64::from_le_bytes);
    number.ok_or_else(|| Ended::Wrong("a number that was written is not there".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The YCSB core workloads as Cooper et al. (2010) define them.
    #[test]
    fn the_mixes_are_those_of_ycsb() {
        let expected = [
            (Workload::YcsbA, [50, 50, 0, 0, 0]),
            (Workload::YcsbB, [95, 5, 0, 0, 0]),
            (Workload::YcsbC, [100, 0, 0, 0, 0]),
            (Workload::YcsbD, [95, 0, 5, 0, 0]),
            (Workload::YcsbE, [0, 0, 5, 95, 0]),
            (Workload::YcsbF, [50, 0, 0, 0, 50]),
        ];
        for (workload, percents) in expected {
            let work =
                Work { workload, rows: Rows::new(b"", 8, 1), count: 1000, zipf: Zipf::new(1000, Zipf::YCSB_THETA) };
            let (mut random, mut inserts) = (SplitMix64::new(9), Inserts::new(1000));
            let mut counts = [0_u32; 5];
            for _ in 0..100_000 {
                counts[match work.plan(&mut random, &mut inserts) {
                    Plan::Read(_) => 0,
                    Plan::Write { is_insert: false, .. } => 1,
                    Plan::Write { is_insert: true, .. } => 2,
                    Plan::Scan { .. } => 3,
                    Plan::ReadModifyWrite { .. } => 4,
                    plan => panic!("{plan:?} is none of YCSB's"),
                }] += 1;
            }
            // Half a percentage point is three standard deviations at the worst.
            for (count, percent) in counts.into_iter().zip(percents) {
                assert!((f64::from(count) / 1000.0 - f64::from(percent)).abs() < 0.5, "{workload:?}: {counts:?}");
            }
        }
    }

    /// A total that is off by one is noticed, and so are a missing account and a count that no number of commits explains.
    #[test]
    fn proofs_can_fail() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let database = Database::open_in_memory().unwrap();
            let of = |workload| Work {
                workload,
                rows: Rows::new(b"p/", 8, 1),
                count: 3,
                zipf: Zipf::new(3, Zipf::YCSB_THETA),
            };
            let bank = of(Workload::Bank);
            let write = async |number, balance: i64| {
                let key = bank.rows.key(number);
                let set = async |tx: Transaction| {
                    tx.set(&key, balance.to_le_bytes());
                    Ok(())
                };
                database.run(set).await.unwrap();
            };
            write(0, BALANCE - 7).await;
            write(1, BALANCE).await;
            assert!(bank.prove(&database, 1, 0).await.unwrap().unwrap().is_err(), "an account is missing");
            write(2, BALANCE + 7).await;
            assert!(bank.prove(&database, 1, 0).await.unwrap().unwrap().is_ok());
            write(2, BALANCE + 8).await;
            assert!(bank.prove(&database, 1, 0).await.unwrap().unwrap().is_err(), "money out of nothing");

            let hot = of(Workload::HotKey);
            write(0, 5).await;
            for (commits, unknown, is_right) in [(5, 0, true), (4, 1, true), (4, 0, false), (6, 0, false)] {
                let proven = hot.prove(&database, commits, unknown).await.unwrap().unwrap();
                assert_eq!(proven.is_ok(), is_right, "{commits} commits and {unknown} unknown count to 5");
            }
        });
    }

    /// A transfer from an account to itself would prove nothing.
    #[test]
    fn transfers_have_two_ends() {
        let work = Work {
            workload: Workload::Bank,
            rows: Rows::new(b"", 8, 1),
            count: 2,
            zipf: Zipf::new(2, Zipf::YCSB_THETA),
        };
        let (mut random, mut inserts) = (SplitMix64::new(1), Inserts::new(2));
        for _ in 0..100 {
            let Plan::Transfer { from, to, amount } = work.plan(&mut random, &mut inserts) else {
                panic!("a transfer")
            };
            assert!(from != to && from < 2 && to < 2 && amount > 0);
        }
    }
}
