//! While a seed runs, nobody reads a clock, draws a random number or starts a thread past the doors.
//!
//! Clippy refuses such calls in our own code; what our dependencies do it cannot know. So this test program puts itself between them and the C library (`symbols.rs`):
//! a call from the thread of a seed ends the program. Each seed runs in a process of its own, which is this program.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod symbols;

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use ferrisdb_sim::run::{RunOptions, run};
use ferrisdb_sim::seeds::end_if_it_hangs;

const WHAT: &str = "FERRISDB_INTERPOSED";
/// `abort` ends a process so.
const SIGABRT: i32 = 6;

/// The process of a seed, or of a call that is to be caught.
#[test]
#[ignore = "a part of the others"]
#[expect(clippy::disallowed_methods, reason = "these are the calls that are to be caught")]
fn one_process() {
    let what = std::env::var(WHAT).expect("whoever starts it says what it is to do");
    end_if_it_hangs().expect("a thread");
    symbols::guarded(|| match what.as_str() {
        "nothing" => {}
        "monotonic clock" => drop(std::time::Instant::now()),
        "clock" => drop(std::time::SystemTime::now()),
        "randomness" => drop(std::hash::RandomState::new()),
        "thread" => drop(std::thread::Builder::new().spawn(|| {})),
        number => {
            let seed = number.parse().expect("a seed");
            let options =
                RunOptions { seed, workloads: Vec::new(), processes: None, faults: Vec::new(), is_traced: false };
            assert_eq!(run(&options).failures, Vec::<String>::new());
        }
    });
}

/// How its process ends, and what it says.
fn end_of(what: &str) -> (std::process::ExitStatus, String) {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["one_process", "--exact", "--ignored", "--nocapture"]).env(WHAT, what);
    let output = command.output().expect("it starts");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// `FERRISDB_SIM_SEED` and `FERRISDB_SIM_SEEDS` choose others.
#[test]
fn seeds_keep_to_the_doors() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let (first, count): (u64, u64) = (number("FERRISDB_SIM_SEED", 1), number("FERRISDB_SIM_SEEDS", 4));
    for seed in first..first + count {
        let (status, said) = end_of(&seed.to_string());
        assert!(status.success(), "seed {seed}: {status}: {said}");
    }
}

/// The traps are set: each kind of call is caught, and told with the way that led to it.
#[test]
fn a_call_past_the_doors_aborts() {
    let (status, said) = end_of("nothing");
    assert!(status.success(), "{status}: {said}");
    for (what, symbol) in [
        ("monotonic clock", "clock_gettime"),
        ("clock", "clock_gettime"),
        ("randomness", "getrandom"),
        ("thread", "pthread_create"),
    ] {
        let (status, said) = end_of(what);
        assert_eq!(status.signal(), Some(SIGABRT), "{what}: {status}: {said}");
        let is_told = said.contains(&format!("{symbol} was called past the doors")) && said.contains("one_process");
        assert!(is_told, "{what}: {said}");
    }
}
