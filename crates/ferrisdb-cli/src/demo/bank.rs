//! Money moves between accounts, from many clients at once, and none is made or lost.
//!
//! Each client moves random amounts between random accounts, all in one small bank, so that transactions conflict and are retried; meanwhile an
//! auditor adds up all accounts in transactions of its own. Every sum that it sees must be the same: it may neither see money twice nor
//! on its way. In the end each transfer happened exactly once, by a counter in the same transactions.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use ferrisdb::{Bytes, KeyValue, MutationKind, RangeOptions, Transaction};
use ferrisdb_core::{Random, SplitMix64};
use futures_util::future::{join, try_join_all};

use super::{Report, SEED, Step, mismatch, thousands};
use crate::connect::Connected;
use crate::failure::Failure;
use crate::stopwatch::Stopwatch;

const ACCOUNTS: u64 = 20;
/// What each account has in the beginning.
const MONEY: u64 = 1_000;
/// What all have together, always.
pub(super) const TOTAL: u64 = ACCOUNTS * MONEY;
const CLIENTS: u64 = 16;
const TRANSFERS_EACH: u64 = 40;
/// Between two audits.
const AUDIT_PAUSE: Duration = Duration::from_millis(1);
/// Counts transfers, little-endian as atomic additions are.
pub(super) const COUNT_KEY: &[u8] = b"transfers";

/// Money that goes from one account to another.
pub(super) struct Transfer {
    from: u64,
    to: u64,
    amount: u64,
}

impl Transfer {
    /// Of any amount between any two accounts.
    pub(super) fn random(random: &mut SplitMix64) -> Transfer {
        let from = random.below(ACCOUNTS);
        Transfer { from, to: (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS, amount: 1 + random.below(100) }
    }

    /// Moves as much of it as is there, and counts it.
    pub(super) async fn make(&self, tx: &Transaction) -> ferrisdb::Result<()> {
        let (has, gets) = (balance(tx, self.from).await?, balance(tx, self.to).await?);
        let amount = self.amount.min(has);
        tx.set(account_key(self.from), (has - amount).to_be_bytes());
        tx.set(account_key(self.to), (gets + amount).to_be_bytes());
        tx.atomic_op(COUNT_KEY, 1u64.to_le_bytes(), MutationKind::Add);
        Ok(())
    }
}

/// Gives each account its money.
pub(super) async fn open_accounts(tx: Transaction) -> ferrisdb::Result<()> {
    for account in 0..ACCOUNTS {
        tx.set(account_key(account), MONEY.to_be_bytes());
    }
    Ok(())
}

/// Runs the bank.
pub(super) fn run(connected: &Connected, report: &mut Report<'_>) -> Result<(), Failure> {
    let database = &connected.database;
    let watch = Stopwatch::start();
    let (attempts, audits, is_open) = (Cell::new(0u64), Cell::new(0u64), Cell::new(true));
    let client = async |client: u64| {
        let random = RefCell::new(SplitMix64::new(SEED + client));
        for _ in 0..TRANSFERS_EACH {
            let transfer = Transfer::random(&mut random.borrow_mut());
            let transfer = async |tx: Transaction| {
                attempts.set(attempts.get() + 1);
                transfer.make(&tx).await
            };
            database.run(transfer).await?;
        }
        Ok::<(), ferrisdb::Error>(())
    };
    let auditor = async {
        while is_open.get() {
            let sum = database.run(total).await?;
            audits.set(audits.get() + 1);
            if sum != TOTAL {
                return Ok(Some(sum));
            }
            // All that it read was in memory, and nothing made it wait: let the clients have their turn.
            tokio::time::sleep(AUDIT_PAUSE).await;
        }
        Ok::<_, ferrisdb::Error>(None)
    };
    let (clients, audited) = connected.run(async {
        database.run(open_accounts).await?;
        let clients = async {
            let done = try_join_all((0..CLIENTS).map(&client)).await;
            is_open.set(false);
            done
        };
        Ok(join(clients, auditor).await)
    })?;
    clients?;
    if let Some(sum) = audited? {
        return Err(mismatch(format_args!("an auditor saw {sum} in the bank, not {TOTAL}")));
    }
    let took = watch.elapsed();
    check(connected)?;
    let count = CLIENTS * TRANSFERS_EACH;
    let retries = attempts.get().saturating_sub(count);
    let what = format!(
        "{count} transfers by {CLIENTS} clients, {} retried; {} audits: always {}",
        thousands(retries),
        thousands(audits.get()),
        thousands(TOTAL),
    );
    report.add(Step { name: "bank", what, count, unit: "commits", took })
}

/// The money is all there, and every transfer happened once.
pub(super) fn check(connected: &Connected) -> Result<(), Failure> {
    let (sum, count) = connected.run(async {
        let read = async |tx: Transaction| Ok((total(tx.clone()).await?, tx.get(COUNT_KEY).await?));
        Ok(connected.database.run(read).await?)
    })?;
    if sum != TOTAL {
        return Err(mismatch(format_args!("{sum} in the bank, not {TOTAL}")));
    }
    let expected = (CLIENTS * TRANSFERS_EACH).to_le_bytes();
    if count.as_deref() != Some(&expected[..]) {
        return Err(mismatch(format_args!("{count:?} transfers, not {expected:?}")));
    }
    Ok(())
}

async fn balance(tx: &Transaction, account: u64) -> ferrisdb::Result<u64> {
    Ok(money(tx.get(account_key(account)).await?))
}

/// What all accounts have together.
pub(super) async fn total(tx: Transaction) -> ferrisdb::Result<u64> {
    Ok(sum(&tx.get_ranges(RangeOptions::prefix(b"account/")).collect().await?))
}

/// The same, of rows of which some are accounts.
pub(super) fn sum(rows: &[KeyValue]) -> u64 {
    let accounts = rows.iter().filter(|row| row.key.starts_with(b"account/"));
    accounts.map(|row| money(Some(row.value.clone()))).sum()
}

/// An account's value. One that is not there, or is no amount, has nothing: the total tells.
fn money(value: Option<Bytes>) -> u64 {
    value.and_then(|value| value[..].try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn account_key(account: u64) -> Vec<u8> {
    format!("account/{account:02}").into_bytes()
}
