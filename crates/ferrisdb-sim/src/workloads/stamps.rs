//! Keys that only the commit knows: each stamp is there once, and stands behind all that were acknowledged before its commit was sent.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ferrisdb_client::Database;
use ferrisdb_core::versionstamp::VERSIONSTAMP_BYTES;
use ferrisdb_core::{Bytes, KeyRange, MutationKind, Versionstamp};

use super::{Client, Verdict, Work, Workload, lock};

const SPACE: &str = "}stamp/";

#[derive(Debug, Default)]
struct Told {
    /// What was written at each stamp that was acknowledged.
    at: BTreeMap<Versionstamp, u64>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Stamps {
    told: Mutex<Told>,
}

impl Workload for Stamps {
    fn name(&self) -> &'static str {
        "stamps"
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            let id = client.fresh_id();
            let place = u32::try_from(SPACE.len()).expect("it is short");
            let template = [SPACE.as_bytes(), &[0; VERSIONSTAMP_BYTES], &place.to_le_bytes()].concat();
            let newest = lock(&self.told).at.last_key_value().map(|(stamp, _)| *stamp);
            let tx = client.db.create_transaction();
            tx.atomic_op(&template, id.to_be_bytes(), MutationKind::SetVersionstampedKey);
            let stamp = tx.get_versionstamp();
            client.commit(&tx).await?;
            let stamp = stamp.await?;
            if newest.is_some_and(|newest| stamp <= newest) {
                client.violation(format!("stamp {stamp} of a commit that was sent after {newest:?} was acknowledged"));
            }
            if let Some(other) = lock(&self.told).at.insert(stamp, id) {
                client.violation(format!("{other} and {id} have the stamp {stamp}"));
            }
            Ok(())
        })
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(async move {
            let rows = db.run(async |tx| tx.get_ranges(KeyRange::new(SPACE, "}stamp0")).collect().await).await?;
            let mut seen = BTreeMap::<Bytes, Bytes>::new();
            for row in &rows {
                if let Some(before) = seen.insert(row.value.clone(), row.key.clone()) {
                    return Ok(Some(format!("{:?} was written at {before:?} and {:?}", row.value, row.key)));
                }
            }
            let told = lock(&self.told);
            let is_there = |stamp: &Versionstamp, id: u64| {
                let key = [SPACE.as_bytes(), stamp.as_bytes()].concat();
                seen.get(id.to_be_bytes().as_slice()).is_some_and(|at| *at == key)
            };
            let lost = told.at.iter().find(|(stamp, id)| !is_there(stamp, **id));
            Ok(lost.map(|(stamp, id)| format!("{id}, acknowledged at {stamp}, is not there")))
        })
    }
}
