//! Counters with retries that never apply twice. Each transaction adds one to a counter and sets a mark of its own; neither reads anything,
//! so that only the commit id keeps a lost answer from being done twice. In the end the counters say as much as there are marks, each
//! acknowledged mark is there, and none that was refused.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ferrisdb_client::Database;
use ferrisdb_core::{Bytes, KeyRange, MutationKind};

use super::{Client, Verdict, Work, Workload, is_unknown, key, lock, number};

const COUNTERS: &str = "}count/";
const MARKS: &str = "}count-mark/";
const COUNT: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Committed,
    NotCommitted,
    /// As long as nobody says otherwise.
    Unknown,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Counters {
    told: Mutex<BTreeMap<Bytes, Told>>,
}

impl Workload for Counters {
    fn name(&self) -> &'static str {
        "counters"
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            let mark = key(MARKS, client.fresh_id());
            let counter = key(COUNTERS, client.below(COUNT));
            let tx = client.db.create_transaction();
            loop {
                lock(&self.told).insert(mark.clone(), Told::Unknown);
                tx.atomic_op(&counter, 1u64.to_le_bytes(), MutationKind::Add);
                tx.set(&mark, "");
                let Err(error) = client.commit(&tx).await else {
                    lock(&self.told).insert(mark, Told::Committed);
                    return Ok(());
                };
                if is_unknown(&error) {
                    return Err(error);
                }
                lock(&self.told).insert(mark.clone(), Told::NotCommitted);
                tx.on_error(error).await?;
            }
        })
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(async move {
            let (counters, marks) = db
                .run(async |tx| {
                    let counters = tx.get_ranges(KeyRange::new(COUNTERS, "}count0")).collect().await?;
                    let marks = tx.get_ranges(KeyRange::new(MARKS, "}count-mark0")).collect().await?;
                    Ok((counters, marks))
                })
                .await?;
            let sum: u64 = counters.iter().filter_map(|row| number(&row.value)).sum();
            if sum != marks.len() as u64 {
                return Ok(Some(format!("the counters say {sum}, and there are {} marks", marks.len())));
            }
            let told = lock(&self.told);
            let is_there = |mark: &Bytes| marks.binary_search_by(|row| row.key.cmp(mark)).is_ok();
            let wrong = told.iter().find(|(mark, told)| match told {
                Told::Committed => !is_there(mark),
                Told::NotCommitted => is_there(mark),
                Told::Unknown => false,
            });
            Ok(wrong.map(|(mark, told)| format!("{mark:?} was {told:?}, and it is the other way round")))
        })
    }
}
