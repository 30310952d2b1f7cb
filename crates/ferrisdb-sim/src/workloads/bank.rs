//! Transfers between accounts: nobody ever sees another total.

use ferrisdb_client::{Database, Transaction};
use ferrisdb_core::{KeyRange, Result};

use super::{Client, Verdict, Work, Workload, key, number};

const SPACE: &str = "}bank/";
const OPENING_BALANCE: u64 = 1_000;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Bank {
    accounts: u64,
}

impl Bank {
    /// With few accounts there are more conflicts.
    pub(super) fn new(seed: u64) -> Bank {
        Bank { accounts: 3 + seed % 40 }
    }

    async fn look(&self, tx: &Transaction) -> Result<Verdict> {
        let rows = tx.get_ranges(KeyRange::new(SPACE, "}bank0")).collect().await?;
        let total: u64 = rows.iter().filter_map(|row| number(&row.value)).sum();
        let right = self.accounts * OPENING_BALANCE;
        let is_right = total == right && rows.len() as u64 == self.accounts;
        Ok((!is_right).then(|| format!("the bank's {} accounts hold {total} and not {right}", rows.len())))
    }
}

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn prepare<'a>(&'a self, db: &'a Database) -> Work<'a, ()> {
        Box::pin(db.run(async |tx| {
            (0..self.accounts).for_each(|account| tx.set(key(SPACE, account), OPENING_BALANCE.to_le_bytes()));
            Ok(())
        }))
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            if client.below(5) == 0 {
                if let Some(wrong) = client.run(async |tx| self.look(&tx).await).await? {
                    client.violation(wrong);
                }
                return Ok(());
            }
            let from = client.below(self.accounts);
            let to = (from + 1 + client.below(self.accounts - 1)) % self.accounts;
            let wanted = client.below(100);
            client
                .run(async |tx| {
                    let (from, to) = (key(SPACE, from), key(SPACE, to));
                    let has = tx.get(&from).await?.as_deref().and_then(number).unwrap_or(0);
                    let other = tx.get(&to).await?.as_deref().and_then(number).unwrap_or(0);
                    let amount = wanted.min(has);
                    tx.set(&from, (has - amount).to_le_bytes());
                    tx.set(&to, (other + amount).to_le_bytes());
                    Ok(())
                })
                .await
        })
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(db.run(async |tx| self.look(&tx).await))
    }
}
