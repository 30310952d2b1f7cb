use std::sync::Mutex;

use clap::ValueEnum;

use super::*;
use crate::engine::{Batch, KvEngine};
use crate::keys::Key;
use crate::values::WrongRead;

fn job(group: Group, directory: PathBuf) -> Job {
    Job {
        engine: EngineName::Memory,
        config: EngineConfig {
            directory,
            cache_bytes: 1 << 20,
            write_buffer_bytes: 1 << 20,
            durable: group == Group::Durable,
            larger_than_memory: false,
        },
        group,
        workloads: Workload::value_variants().iter().copied().filter(|workload| workload.group() == group).collect(),
        keys: 3000,
        value_bytes: 100,
        threads: 2,
        seconds: 0.05,
        verbose: false,
        memory_limit: None,
    }
}

/// Every workload of every group runs against a correct engine, finds nothing wrong, and gives one row.
#[test]
fn every_workload_accepts_a_correct_engine() {
    let directory = tempfile::tempdir().unwrap();
    for group in
        [Group::Fillseq, Group::Read, Group::Ycsb, Group::Write, Group::Tombstones, Group::Durable, Group::Stall]
    {
        let job = job(group, directory.path().to_path_buf());
        let mut names = Vec::new();
        run(&job, &mut |measured| {
            assert!(measured.row.ops_per_s > 0.0 && measured.row.cpu_us_per_op > 0.0, "{measured:?}");
            assert!(measured.row.p50_us <= measured.row.p99_us && measured.row.p99_us <= measured.row.p999_us);
            let seconds = measured.longest_put_ms.map_or(0, |seconds| seconds.len());
            assert_eq!(seconds > 0, group == Group::Stall);
            names.push(measured.row.workload);
            Ok(())
        })
        .unwrap();
        let expected: Vec<String> = job.workloads.iter().map(|workload| workload.name()).collect();
        assert_eq!(names, expected);
    }
}

/// How an engine may be wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    LosesBatchTail,
    LosesPut,
    LosesDelete,
    FlipsBit,
    FindsMissing,
    SkipsInScan,
    ShowsDeletedInScan,
}

/// A correct engine apart from one fault.
struct Faulty {
    inner: Box<dyn KvEngine>,
    fault: Fault,
    deleted: Mutex<Vec<Key>>,
}

impl KvEngine for Faulty {
    fn write(&self, batch: &Batch, durability: Durability) -> Result<()> {
        let mut kept = Batch::default();
        let end = batch.len() - usize::from(self.fault == Fault::LosesBatchTail);
        for (key, value) in batch.iter().take(end) {
            match value {
                Some(value) => kept.put(*key, value.len(), |copy| copy.copy_from_slice(value)),
                None if self.fault == Fault::ShowsDeletedInScan => self.deleted.lock().unwrap().push(*key),
                None => kept.delete(*key),
            }
        }
        self.inner.write(&kept, durability)
    }

    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Result<()> {
        if self.fault == Fault::LosesPut { Ok(()) } else { self.inner.put(key, value, durability) }
    }

    fn delete(&self, key: &Key) -> Result<()> {
        if self.fault == Fault::LosesDelete { Ok(()) } else { self.inner.delete(key) }
    }

    fn get(&self, key: &Key, visit: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        self.inner.get(key, &mut |value| match (self.fault, value) {
            (Fault::FlipsBit, Some(value)) => {
                let mut value = value.to_vec();
                value[20] ^= 4;
                visit(Some(&value));
            }
            (Fault::FindsMissing, None) => visit(Some(b"surprise")),
            (_, value) => visit(value),
        })
    }

    fn scan(&self, from: &Key, limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut index = 0;
        self.inner.scan(from, limit + 1, &mut |key, value| {
            if !(self.fault == Fault::SkipsInScan && index == 3) && index < limit {
                visit(key, value);
            }
            index += 1;
        })
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn statistics(&self) -> String {
        String::new()
    }
}

/// Each way of being wrong stops the workload that meets it, as a wrong read.
#[test]
fn a_wrong_engine_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    for (fault, workload) in [
        (Fault::LosesBatchTail, Workload::Fillseq),
        (Fault::LosesBatchTail, Workload::DurableBatch8),
        (Fault::LosesPut, Workload::Overwrite),
        (Fault::LosesPut, Workload::YcsbA),
        (Fault::LosesPut, Workload::YcsbD),
        (Fault::LosesDelete, Workload::Deletes),
        (Fault::FlipsBit, Workload::Readrandom),
        (Fault::FlipsBit, Workload::Readzipf),
        (Fault::FindsMissing, Workload::Readmissing),
        (Fault::SkipsInScan, Workload::Seek10),
        (Fault::SkipsInScan, Workload::YcsbE),
        (Fault::ShowsDeletedInScan, Workload::Seek10Tombstones),
    ] {
        let mut job = job(workload.group(), directory.path().to_path_buf());
        job.workloads = vec![workload];
        let engine = Faulty { inner: job.engine.open(&job.config).unwrap(), fault, deleted: Mutex::default() };
        let dataset = Dataset::new(&engine, job.keys, job.value_bytes);
        let mut report = |_| Ok(());
        let mut runner = Runner { job: &job, dataset, report: &mut report };
        let result = runner.prepare().and_then(|()| runner.measure(workload));
        let error = result.expect_err(&format!("{fault:?} passed {workload:?}"));
        assert!(error.downcast_ref::<WrongRead>().is_some(), "{fault:?} in {workload:?}: {error}");
    }
}
