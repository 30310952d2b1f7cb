//! Moves of shards take no more of disk and network than they may, and are seen to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferrisdb_core::{Error, Random, SplitMix64};

use super::rate::marks_of_space;
use super::world::World;
use super::{SECOND, ShardOptions};
use crate::log::replicated::ProcessId;

/// What one storage server may fetch a second, and all together.
const EACH: u64 = 60_000;
const ALL: u64 = 80_000;
const ROW_BYTES: usize = 1_000;
const ROWS: usize = 1_200;
/// As long a time as a rate is looked at over.
const WINDOW: usize = 5;

/// One that does not get smaller on a disk.
fn value_of(row: usize) -> Vec<u8> {
    let mut random = SplitMix64::new(row as u64);
    (0..ROW_BYTES).map(|_| random.next_u64() as u8).collect()
}

impl World {
    /// Bytes that a host's process has fetched in this life.
    fn fetched(&self, host: ProcessId) -> u64 {
        self.node(host).map_or(0, |node| node.life.shared().copied.numbers().1)
    }

    fn write_rows(self: &Arc<World>) {
        let database = self.client_of(1);
        self.finish(async move {
            for from in (0..ROWS).step_by(50) {
                let body = async |tx: ferrisdb_client::Transaction| {
                    for row in from..from + 50 {
                        tx.set(format!("zrows/{row:05}").as_str(), value_of(row));
                    }
                    Ok::<_, Error>(())
                };
                while database.run(body).await.is_err() {}
            }
        });
    }
}

/// Two processes come to three that have data, and are given their part of it. In no five seconds one of them fetches more than it may, or both together more than all may, but for the chunk that is under way;
/// clients go on meanwhile, what is to go is told, and goes down to nothing.
#[test]
fn moves_keep_to_their_rate() {
    let world = World::of(95, 5);
    world.set_shards(ShardOptions {
        split_bytes: 150_000,
        move_bytes_per_second: EACH,
        all_moves_bytes_per_second: ALL,
        size_interval: SECOND,
        ..ShardOptions::default()
    });
    world.grow_to(3);
    world.write_rows();
    world.run(10 * SECOND);
    let before = world.committed();
    world.start(4);
    world.start(5);
    let mut samples: BTreeMap<ProcessId, Vec<u64>> = (1..=5).map(|host| (host, vec![world.fetched(host)])).collect();
    let mut to_go = Vec::new();
    for _ in 0..60 {
        world.run(SECOND);
        samples.iter_mut().for_each(|(&host, sums)| sums.push(world.fetched(host)));
        to_go.push(world.status(world.leader())["cluster"]["moves"]["bytes_to_go"].as_u64().unwrap_or_default());
    }
    let in_window = |sums: &[u64]| {
        let most = sums.windows(WINDOW + 1).map(|window| window[WINDOW] - window[0]).max();
        most.expect("there are so many")
    };
    let sums: Vec<u64> = (0..=60).map(|second| samples.values().map(|sums| sums[second]).sum()).collect();
    let chunk = EACH / 2 + ROW_BYTES as u64;
    for (host, sums) in &samples {
        let most = in_window(sums);
        assert!(most <= WINDOW as u64 * EACH + chunk, "process {host}: {most} bytes in {WINDOW} s");
    }
    let most = in_window(&sums);
    assert!(most <= WINDOW as u64 * ALL + 2 * chunk, "{most} bytes in {WINDOW} s");
    let all = sums[60] - sums[0];
    assert!(all > 400_000, "{all} bytes were moved");
    assert!(most > WINDOW as u64 * ALL / 2, "{most} bytes in {WINDOW} s: they have what they may");
    assert!(to_go.iter().max() > Some(&50_000) && to_go.last() == Some(&0), "{to_go:?}");
    assert!(world.committed() > before + 100);
    world.check_quiet();
}

/// While clients have to wait, moves have a quarter of that.
#[test]
fn moves_yield_to_clients_who_wait() {
    let world = World::new(96);
    world.set_rate(marks_of_space());
    world.grow_to(3);
    let rates =
        || [1, 2, 3].map(|host| world.node(host).expect("it runs").life.shared().fetch_rate.load(Ordering::Relaxed));
    let each = ShardOptions::default().move_bytes_per_second;
    world.run(3 * SECOND);
    assert_eq!(rates(), [each; 3]);
    [1, 2].into_iter().for_each(|host| world.leave_space(host));
    world.until("they yield", || rates() == [each / 4; 3]);
    [1, 2].into_iter().for_each(|host| world.present_disk(host).set_capacity(u64::MAX));
    world.until("they go on", || rates() == [each; 3]);
}
