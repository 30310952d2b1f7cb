//! A ring that must stay one ring (FoundationDB's *Cycle*): each key names the next one, and a transaction exchanges two links.

use ferrisdb_client::{Database, RangeOptions, Transaction};
use ferrisdb_core::{Error, KeyRange, Result};

use super::{Client, Verdict, Work, Workload, key, number};

const SPACE: &str = "}ring/";

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ring {
    len: u64,
}

impl Ring {
    /// Short rings have more conflicts.
    pub(super) fn new(seed: u64) -> Ring {
        Ring { len: [5, 20, 100][usize::try_from(seed % 3).expect("below three")] }
    }

    /// What is wrong with the ring, if anything is.
    async fn look(&self, tx: &Transaction) -> Result<Verdict> {
        let all = KeyRange::new(SPACE, "}ring0");
        let mut options = RangeOptions::from(all);
        options = options.limit(0);
        let rows = tx.get_ranges(options).collect().await?;
        let mut next = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            match number(&row.value) {
                Some(to) if row.key == key(SPACE, index as u64) && to < self.len => next.push(to),
                _ => return Ok(Some(format!("the ring's row {index} is {row:?}"))),
            }
        }
        if next.len() as u64 != self.len {
            return Ok(Some(format!("the ring has {} rows of {}", next.len(), self.len)));
        }
        let (mut at, mut steps) = (0, 0);
        loop {
            at = usize::try_from(next[at]).expect("it is below the ring's length");
            steps += 1;
            if at == 0 || steps > next.len() {
                break;
            }
        }
        Ok((steps != next.len()).then(|| format!("the ring closes after {steps} of {} links: {next:?}", next.len())))
    }
}

impl Workload for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn prepare<'a>(&'a self, db: &'a Database) -> Work<'a, ()> {
        Box::pin(db.run(async |tx| {
            for index in 0..self.len {
                tx.set(key(SPACE, index), ((index + 1) % self.len).to_le_bytes());
            }
            Ok(())
        }))
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            if client.below(8) == 0 {
                if let Some(wrong) = client.run(async |tx| self.look(&tx).await).await? {
                    client.violation(wrong);
                }
                return Ok(());
            }
            let first = client.below(self.len);
            client
                .run(async |tx| {
                    let follow = async |from: u64| {
                        let value = tx.get(key(SPACE, from)).await?;
                        let to = value.as_deref().and_then(number).filter(|to| *to < self.len);
                        Ok::<_, Error>(to.unwrap_or_else(|| {
                            client.violation(format!("the ring's key {from} is {value:?}"));
                            0
                        }))
                    };
                    let second = follow(first).await?;
                    let third = follow(second).await?;
                    let fourth = follow(third).await?;
                    tx.set(key(SPACE, first), third.to_le_bytes());
                    tx.set(key(SPACE, third), second.to_le_bytes());
                    tx.set(key(SPACE, second), fourth.to_le_bytes());
                    Ok(())
                })
                .await
        })
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(db.run(async |tx| self.look(&tx).await))
    }
}
