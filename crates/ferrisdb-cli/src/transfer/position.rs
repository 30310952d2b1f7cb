//! How far an import is, kept in the database beside the rows.
//!
//! A batch and the note that it is there are one transaction: after whatever end, of the process or the database, each batch is there with its
//! note or neither is. Another attempt reads the notes and does what is missing, so each row is written exactly once.
//!
//! # Format
//! ```text
//! \xff\x02/ferrisdb/import/ (JOB)         Head, JSON: what is imported and how it is cut into batches
//! \xff\x02/ferrisdb/import/ (JOB, SLOT)   Slot, JSON: the last batch of this slot, and where it ends
//! ```
//! with packed tuples. All of a job's keys are cleared by the last transaction of its import.
//!
//! # Invariants
//! - Batch n is noted in slot n mod `slots`, and begun only when batch n - `slots` + 1 and all before are there. So the first missing batch is the least of
//!   what comes next in each slot, and the batch before it is still noted.
//! - A transaction finds the batch before in its slot, and the head as it was: two imports of one job do not mix.

use ferrisdb::layers::Tuple;
use ferrisdb::{Database, KeyRange, RangeOptions, Result, StreamingMode, Transaction, TransactionOption};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Where all jobs are.
const PREFIX: &[u8] = b"\xff\x02/ferrisdb/import/";

/// A place in a file, between two rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Bytes before it.
    pub(crate) offset: u64,
    /// Line ends before it.
    pub(crate) lines: u64,
    /// Good rows before it.
    pub(crate) rows: u64,
    /// Rows before it that were left out.
    pub(crate) bad: u64,
    /// XXH3-128 of the bytes before it, in hexadecimal digits.
    pub(crate) digest: String,
}

/// What a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Of this format; 1.
    pub(crate) format_version: u32,
    /// Tells this import from others of the same name.
    pub(crate) instance: String,
    /// The options that decide what rows the file has.
    pub(crate) options: String,
    /// The names of the columns, where the file has some.
    pub(crate) columns: Vec<String>,
    pub(crate) batch_rows: u64,
    pub(crate) batch_bytes: u64,
    pub(crate) slots: u64,
}

/// The last batch of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) batch: u64,
    pub(crate) end: Mark,
}

/// Which batches are there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Done {
    /// The first batch that is missing.
    pub(crate) next: u64,
    /// Where it begins.
    pub(crate) start: Mark,
    /// Batches behind it that are there, in order, and where they end.
    pub(crate) later: Vec<Slot>,
}

impl Done {
    /// What the notes in the slots say.
    pub(crate) fn new(slots: u64, mut noted: Vec<Slot>) -> std::result::Result<Done, String> {
        let mut next: Vec<u64> = (0..slots).collect();
        for slot in &noted {
            let number = usize::try_from(slot.batch % slots).expect("slots are few");
            next[number] = slot.batch + slots;
        }
        let next = next.into_iter().min().unwrap_or(0);
        noted.sort_by_key(|slot| slot.batch);
        let start = match next.checked_sub(1) {
            None => Mark::default(),
            Some(last) => {
                let found = noted.iter().find(|slot| slot.batch == last);
                found.ok_or_else(|| format!("batch {last} is not noted"))?.end.clone()
            }
        };
        noted.retain(|slot| slot.batch > next);
        Ok(Done { next, start, later: noted })
    }
}

/// What came of a batch's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It may be committed.
    Fresh,
    /// An earlier attempt committed it.
    AlreadyThere,
    /// Somebody else imports the same job, or has taken it away.
    NotOurs,
}

/// A job's keys.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) name: String,
}

impl Job {
    fn head_key(&self) -> Vec<u8> {
        let mut key = PREFIX.to_vec();
        Tuple::new().with(self.name.as_str()).pack_into(&mut key);
        key
    }

    fn slot_key(&self, slot: u64) -> Vec<u8> {
        let mut key = PREFIX.to_vec();
        Tuple::new().with(self.name.as_str()).with(i64::try_from(slot).unwrap_or(i64::MAX)).pack_into(&mut key);
        key
    }

    fn range(&self) -> KeyRange {
        KeyRange::prefix(&self.head_key())
    }

    /// What is noted.
    pub(crate) async fn read(&self, database: &Database) -> std::result::Result<Option<(Head, Done)>, Failure> {
        let rows = database
            .run(async |tx| {
                tx.set_option(&TransactionOption::ReadSystemKeys);
                Ok(tx.get_range(RangeOptions::from(self.range()).mode(StreamingMode::WantAll)).await?.rows)
            })
            .await?;
        let broken = |what: String| {
            let remedy = "--restart forgets it and imports from the beginning";
            Failure::failed(format!("what is noted about the import `{}` makes no sense: {what}", self.name), remedy)
        };
        let Some((head, slots)) = rows.split_first() else { return Ok(None) };
        let head: Head = serde_json::from_slice(&head.value).map_err(|error| broken(error.to_string()))?;
        let slots = slots.iter().map(|row| serde_json::from_slice(&row.value)).collect::<std::result::Result<_, _>>();
        if head.format_version != 1 || !(2..=1000).contains(&head.slots) {
            return Err(broken(format!("format version {}, {} slots", head.format_version, head.slots)));
        }
        let done = Done::new(head.slots, slots.map_err(|error| broken(error.to_string()))?).map_err(broken)?;
        Ok(Some((head, done)))
    }

    /// Notes that the import begins; false if it has begun already.
    pub(crate) async fn begin(&self, database: &Database, head: &Head) -> Result<bool> {
        let text = json(head);
        database
            .run(async |tx| {
                tx.set_option(&TransactionOption::AccessSystemKeys);
                // Found by another attempt after a lost answer: then it is ours.
                match tx.get(self.head_key()).await? {
                    Some(found) => Ok(*found == *text.as_bytes()),
                    None => {
                        tx.set(self.head_key(), &text);
                        Ok(true)
                    }
                }
            })
            .await
    }

    /// Notes a batch in the transaction that writes it.
    pub(crate) async fn note(&self, tx: &Transaction, head: &Head, slot: &Slot) -> Result<Noted> {
        tx.set_option(&TransactionOption::AccessSystemKeys);
        let key = self.slot_key(slot.batch % head.slots);
        let (found_head, found_slot) = (tx.get(self.head_key()), tx.get(&key));
        let (found_head, found_slot) = (found_head.await?, found_slot.await?);
        if found_head.as_deref() != Some(json(head).as_bytes()) {
            return Ok(Noted::NotOurs);
        }
        let found: Option<Slot> = found_slot.and_then(|text| serde_json::from_slice(&text).ok());
        if found.as_ref() == Some(slot) {
            return Ok(Noted::AlreadyThere);
        }
        if found.map(|found| found.batch) != slot.batch.checked_sub(head.slots) {
            return Ok(Noted::NotOurs);
        }
        tx.set(&key, json(slot));
        Ok(Noted::Fresh)
    }

    /// Forgets the job.
    pub(crate) async fn clear(&self, database: &Database) -> Result<()> {
        let range = self.range();
        database
            .run(async |tx| {
                tx.set_option(&TransactionOption::AccessSystemKeys);
                tx.clear_range(&range.begin, &range.end);
                Ok(())
            })
            .await
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has nothing that JSON has not")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(batch: u64) -> Slot {
        Slot { batch, end: Mark { offset: 10 * (batch + 1), ..Mark::default() } }
    }

    /// Whatever batches of a window are there when it ends, the first missing one is found, and where it begins.
    #[test]
    fn the_first_missing_batch_is_found() {
        let slots = 4;
        for next in 0..12u64 {
            // Of the two batches behind the missing one each may be there.
            for later in 0..4u64 {
                let there: Vec<u64> =
                    (0..next).chain((1..=2).filter(|n| later & (1 << (n - 1)) != 0).map(|n| next + n)).collect();
                let noted =
                    (0..slots).filter_map(|s| there.iter().rev().find(|n| *n % slots == s)).map(|n| slot(*n)).collect();
                let done = Done::new(slots, noted).unwrap();
                assert_eq!((done.next, done.start.offset), (next, 10 * next), "{there:?}");
                assert_eq!(
                    done.later.iter().map(|slot| slot.batch).collect::<Vec<_>>(),
                    there[usize::try_from(next).unwrap()..]
                );
            }
        }
        assert!(Done::new(4, vec![slot(4), slot(5), slot(6)]).is_err(), "batch 3 is needed");
    }
}
