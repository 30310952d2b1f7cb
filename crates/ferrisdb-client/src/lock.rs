//! The lock of a database, [`Database::lock`]: for operators and their tools, which want everybody else to keep still (a migration, a restore).
//!
//! The lock is a system key, `\xff/dbLocked`, written by an ordinary transaction, so that it is durable and has its place in the order of
//! commits. While it has a value only transactions with the option [`LockAware`](TransactionOption::LockAware) commit, and only they and those with
//! [`ReadLockAware`](TransactionOption::ReadLockAware) get a read version; all others fail with `database_locked`, which `run` and `on_error` retry:
//! programs wait for the unlock. A transaction that had its read version before may still read; whatever it has read counts as written by the lock, so
//! that it cannot commit after the unlock either.

use std::fmt::Write as _;

use ferrisdb_core::key::{DATABASE_LOCK_KEY, USER_END};
use ferrisdb_core::versionstamp::VERSIONSTAMP_BYTES;
use ferrisdb_core::{Bytes, Code, Error, KeyRange, MutationKind, Result};

use crate::database::Database;
use crate::options::TransactionOption;
use crate::transaction::{ConflictRangeType, Transaction};

/// By what a lock is known to those who may undo it: random bytes, as a rule.
pub type LockId = [u8; 16];

impl Database {
    /// Locks the database under `id`. If it is locked under this id already, that is fine.
    ///
    /// # Errors
    /// `database_locked` if it is locked under another id, which the error names; those of reading and committing that do not pass.
    pub async fn lock(&self, id: LockId) -> Result<()> {
        self.change_lock(|tx, now| match now {
            Some(now) if is_of(now, &id) => Ok(()),
            Some(now) => Err(locked(now)),
            None => {
                let (stamp, offset) = ([0; VERSIONSTAMP_BYTES], 0u32.to_le_bytes());
                let template = [&stamp[..], &id, &offset].concat();
                tx.atomic_op(DATABASE_LOCK_KEY, template, MutationKind::SetVersionstampedValue);
                // Who has read anything before the lock does not commit after it.
                tx.add_conflict_range(KeyRange::new("", USER_END), ConflictRangeType::Write)
            }
        })
        .await
    }

    /// Unlocks the database, which was locked under `id`. If it is not locked, that is fine.
    ///
    /// # Errors
    /// `database_locked` if it is locked under another id, which the error names; those of reading and committing that do not pass.
    pub async fn unlock(&self, id: LockId) -> Result<()> {
        self.change_lock(|tx, now| match now {
            None => Ok(()),
            Some(now) if is_of(now, &id) => {
                tx.clear(DATABASE_LOCK_KEY);
                Ok(())
            }
            Some(now) => Err(locked(now)),
        })
        .await
    }

    /// Under which id the database is locked; `None` if it is not. What is no lock of [`lock`](Self::lock) has an id of zeros.
    ///
    /// # Errors
    /// Those of reading that do not pass.
    pub async fn locked_by(&self) -> Result<Option<LockId>> {
        self.run(async |tx| {
            tx.set_option(&TransactionOption::ReadSystemKeys);
            tx.set_option(&TransactionOption::ReadLockAware);
            let now = tx.get(DATABASE_LOCK_KEY).await?;
            Ok(now.map(|now| id_of(&now).and_then(|id| id.try_into().ok()).unwrap_or_default()))
        })
        .await
    }

    /// `change` may be made several times: to lock or unlock twice is to do it once.
    async fn change_lock(&self, change: impl Fn(&Transaction, Option<&Bytes>) -> Result<()>) -> Result<()> {
        let tx = self.create_transaction();
        loop {
            tx.set_option(&TransactionOption::AccessSystemKeys);
            tx.set_option(&TransactionOption::LockAware);
            let changed = async {
                let now = tx.get(DATABASE_LOCK_KEY).await?;
                change(&tx, now.as_ref())?;
                tx.commit().await
            };
            match changed.await {
                Ok(()) => return Ok(()),
                // Not for want of the option: somebody else has locked it.
                Err(error) if error.code() == Code::DatabaseLocked => return Err(error),
                Err(error) => tx.on_error(error).await?,
            }
        }
    }
}

/// The id in a lock's value, behind the versionstamp.
fn id_of(value: &[u8]) -> Option<&[u8]> {
    value.get(VERSIONSTAMP_BYTES..)
}

fn is_of(value: &[u8], id: &LockId) -> bool {
    id_of(value) == Some(id)
}

fn locked(value: &[u8]) -> Error {
    let id = id_of(value).unwrap_or_default().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String");
        text
    });
    Error::with(Code::DatabaseLocked, format!("it is locked under the id {id}: whoever has that id may unlock it"))
}
