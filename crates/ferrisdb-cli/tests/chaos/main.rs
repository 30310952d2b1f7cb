//! Three real processes of a cluster under load while they are killed, stopped, cut off from each other and left without space: `cargo xtask chaos`.
//!
//! ```text
//! scenarios   what goes wrong, and what must go on meanwhile     load      clients that record what they see
//! processes   three servers: start, kill, stop, how they stand   network   namespaces of their own, and cuts between them
//! ```
//!
//! Each scenario has a new cluster. Clients run random transactions all the time; at the end their history is certified strictly serializable with the rows
//! of every process, which says too that nothing acknowledged was lost and nothing happened twice. While a majority is whole commits must go on, and
//! once all is whole again they must.
//!
//! Where the system allows it the program runs itself anew in a network and a table of mounts of its own: there each process gets a namespace with an address
//! of its own, so that links can be cut one way, and a small file system to fill. What is not allowed is not run, and said.
//!
//! Not an ordinary test: it takes time, and what it meets depends on the machine.

#![expect(clippy::disallowed_methods, reason = "processes live in real time, on real disks")]
#![expect(clippy::print_stdout, reason = "what happened is this program's output")]

mod load;
mod network;
mod processes;
mod scenarios;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ferrisdb_core::{Random, SplitMix64};

use network::Network;
use scenarios::{Fault, Settings};

/// How long a fault lasts where there is little time: longer than a process that says nothing is waited for (3 s).
const BRIEF: Duration = Duration::from_secs(4);

/// What went wrong, for people.
type Outcome<T> = Result<T, String>;

/// Real processes of a cluster under load, while everything goes wrong.
#[derive(Parser)]
#[command(bin_name = "cargo xtask chaos")]
struct Arguments {
    /// Minutes; a scenario that has begun is ended.
    #[arg(long, default_value_t = 10)]
    minutes: u64,

    /// Seconds instead of minutes; faults are shorter then.
    #[arg(long, conflicts_with = "minutes")]
    seconds: Option<u64>,

    /// Every scenario so often, however long that takes; faults are short then, and those that take long by themselves are left out.
    #[arg(long, conflicts_with_all = ["minutes", "seconds"])]
    rounds: Option<usize>,

    /// Only scenarios whose name contains this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Decides who is hit, and for how long.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let isolation = network::isolate();
    let (network, why_not) = match isolation {
        // This process has ended: the one in namespaces of its own has done the work.
        network::Isolation::Done(code) => return code,
        network::Isolation::Inside => match Network::new(3) {
            Ok(network) => (Some(network), None),
            Err(error) => (None, Some(error)),
        },
        network::Isolation::Refused(why) => (None, Some(why)),
    };
    if let Some(why) = &why_not {
        println!("no networks or file systems of our own here, so no partitions and no full disks: {why}");
    }
    run(&arguments, network.as_ref())
}

fn run(arguments: &Arguments, network: Option<&Network>) -> ExitCode {
    let begun = Instant::now();
    let is_brief = arguments.seconds.is_some() || arguments.rounds.is_some();
    let time = arguments.seconds.map_or(Duration::from_secs(60 * arguments.minutes), Duration::from_secs);
    let wanted = |fault: &Fault| {
        (network.is_some() || !fault.needs_namespaces())
            && !(is_brief && fault.is_long())
            && (arguments.only.is_empty() || arguments.only.iter().any(|text| fault.name().contains(text.as_str())))
    };
    let faults: Vec<Fault> = Fault::ALL.into_iter().filter(wanted).collect();
    if faults.is_empty() {
        eprintln!("no scenario has a name like that; there are: {}", Fault::ALL.map(|fault| fault.name()).join(", "));
        return ExitCode::FAILURE;
    }
    let mut random = SplitMix64::new(arguments.seed);
    let (mut passed, mut failed, mut next) = (0, 0, 0);
    let is_enough = |next: usize| match arguments.rounds {
        Some(rounds) => next >= rounds * faults.len(),
        None => begun.elapsed() >= time,
    };
    while !is_enough(next) {
        let fault = faults[next % faults.len()];
        next += 1;
        let some = if is_brief { BRIEF } else { Duration::from_millis(500 + random.below(29_500)) };
        let settings = Settings {
            seed: random.next_u64(),
            hold: fault.lasts(some),
            rounds: if is_brief || fault.is_long() { 1 } else { 3 },
        };
        let clock = Instant::now();
        match scenarios::run(fault, &settings, network) {
            Ok(told) => {
                passed += 1;
                println!("{}: passed in {:.1} s: {told}", fault.name(), clock.elapsed().as_secs_f64());
            }
            Err(why) => {
                failed += 1;
                println!("{}: FAILED after {:.1} s: {why}", fault.name(), clock.elapsed().as_secs_f64());
            }
        }
    }
    let left: Vec<&str> = faults.iter().skip(next).map(Fault::name).collect();
    if !left.is_empty() {
        println!("no time was left for: {}", left.join(", "));
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
