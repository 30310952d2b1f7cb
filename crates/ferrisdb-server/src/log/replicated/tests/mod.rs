//! The replicated log under the library's own suite, and in a simulated world of processes that crash, pause and are cut off.

mod store;
mod world;

use std::time::Duration;

fn seeds() -> (u64, u64) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    (number("FERRISDB_SIM_SEED", 1), number("FERRISDB_SIM_SEEDS", 4))
}

/// Twenty simulated seconds of faults for each seed. `FERRISDB_SIM_SEED` and `FERRISDB_SIM_SEEDS` choose others.
#[test]
fn a_group_of_three_keeps_its_promises_under_faults() {
    let (first, count) = seeds();
    let mut failed = Vec::new();
    for seed in first..first + count {
        let outcome = world::run(seed, Duration::from_secs(20));
        println!("seed {seed}: {outcome:?}");
        if !outcome.failures.is_empty() || outcome.acknowledged < 300 {
            failed.push((seed, outcome));
        }
    }
    assert!(failed.is_empty(), "FERRISDB_SIM_SEED={} FERRISDB_SIM_SEEDS=1 replays it: {failed:#?}", failed[0].0);
}

/// A snapshot that comes after the entries that it stands for: the library would stop over it (seen with this seed before `is_in_log` was there).
#[test]
fn a_late_snapshot_of_what_is_in_the_log_does_no_harm() {
    let outcome = world::run(145, Duration::from_secs(20));
    assert_eq!(outcome.failures, Vec::<String>::new());
}

/// The same seed is the same run, and another one another.
#[test]
fn a_seed_decides_everything() {
    let run = |seed| world::run(seed, Duration::from_secs(3));
    let first = run(11);
    assert_eq!(first, run(11));
    assert_ne!(first.trace, run(12).trace);
}
