//! The limit on what background jobs write, on the simulated clock.

use std::time::Duration;

use super::{Machine, put};
use crate::fs::sim::SimFileSystem;
use crate::{Compression, Options};

const RATE: u64 = 20_000;

/// Writes and compacts some 100 KB; how long that took on the clock, the bytes that jobs wrote, and the time that writers waited.
fn run(options: Options) -> (Duration, u64, Duration) {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let options = Options { compression: [Compression::None; 7], ..options };
    let engine = machine.open(options).unwrap();
    let began = machine.env.clock.now();
    for n in 0..600 {
        put(&engine, &format!("key{:05}", n * 7919 % 10_000), &"value".repeat(20));
        if n % 100 == 99 {
            engine.flush().unwrap();
        }
    }
    engine.wait_for_compactions().unwrap();
    let statistics = engine.statistics();
    let written = statistics.flushed_bytes + statistics.compaction_written_bytes;
    assert!(engine.verify().unwrap().is_ok());
    (machine.env.clock.now() - began, written, statistics.stalled + statistics.delayed)
}

/// Without a limit no time passes; with one, as much as the bytes take, and not much more.
#[test]
fn jobs_write_at_the_given_rate() {
    let (took, written, _) = run(Options::tiny());
    assert!(took < Duration::from_millis(100) && written > 100_000, "{took:?} {written}");
    let (took, written, waited) = run(Options { background_bytes_per_second: Some(RATE), ..Options::tiny() });
    let expected = Duration::from_secs_f64(written as f64 / RATE as f64);
    assert!(
        took > expected.mul_f64(0.7) && took < expected.mul_f64(1.3) + Duration::from_secs(1),
        "{took:?} {expected:?}"
    );
    assert_eq!(waited, Duration::ZERO);
}

/// A limit that is far too low does not stop writers: once the next full memtable would, jobs go as fast as they can.
#[test]
fn a_limit_does_not_stop_writers() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let options = Options { background_bytes_per_second: Some(1024), write_buffers_max: 3, ..Options::tiny() };
    let engine = machine.open(options).unwrap();
    let began = machine.env.clock.now();
    for n in 0..5000 {
        put(&engine, &format!("key{:05}", n * 7919 % 10_000), &"value".repeat(20));
    }
    let took = machine.env.clock.now() - began;
    let statistics = engine.statistics();
    assert!(statistics.flushed_bytes > 50_000 && took < Duration::from_secs(10), "{took:?} {statistics:?}");
    assert!(statistics.longest_stall < Duration::from_secs(1), "{statistics:?}");
    engine.close().unwrap();
}
