//! What is left of a range after `compact_range`.

use super::{Machine, put};
use crate::fs::sim::SimFileSystem;
use crate::options::Retention;
use crate::{Durability, Options, WriteBatch};

/// A compaction that runs already, with an older floor, when the range is to be compacted: what it keeps for that floor is gone in the end as well, and so are
/// all tombstones. At whatever step of the running compaction the request comes, with one worker and with two.
#[test]
fn what_a_running_compaction_kept_is_rewritten() {
    const KEYS: u64 = 150;
    for jobs in [1, 2] {
        for steps in 0..12 {
            let machine = Machine::new(SimFileSystem::new(), steps);
            let options = Options {
                retention: Retention::FromFloor,
                compaction_jobs: jobs,
                job_step_entries: 40,
                ..Options::tiny()
            };
            let engine = machine.open(options.clone()).unwrap();
            for round in 0..options.l0_compaction_tables {
                for n in 0..KEYS {
                    put(&engine, &format!("key{n:05}"), &format!("{round}"));
                }
                let mut batch = WriteBatch::new();
                batch.delete(b"key00003").delete_range(b"key00020", b"key00030");
                engine.write(batch, Durability::Buffered).unwrap();
                // The last flush makes L0 due. It is driven by hand, or the compaction would be over when it returns.
                if round + 1 < options.l0_compaction_tables {
                    engine.flush().unwrap();
                }
            }
            let core = engine.core();
            core.seal(&mut core.write_state(), 0);
            while core.jobs.compaction.running() == 0 {
                assert!(machine.spawner.step_one(), "a compaction begins");
            }
            for _ in 0..steps {
                machine.spawner.step_one();
            }
            engine.set_oldest_readable_version(engine.visible_version()).unwrap();
            engine.compact_range(None, None).unwrap();
            let levels = engine.statistics().levels;
            let (entries, tombstones) =
                levels.iter().fold((0, 0), |sum, level| (sum.0 + level.entries, sum.1 + level.tombstones));
            let range_tombstones: u64 = core.levels().tables().map(|(_, table)| table.meta.range_tombstones).sum();
            assert_eq!((entries, tombstones, range_tombstones), (KEYS - 11, 0, 0), "{jobs} jobs, {steps} steps");
            assert!(engine.verify().unwrap().is_ok());
        }
    }
}
