//! Many seeds, each in a process of its own: [`run_seeds`].
//!
//! A child process runs one seed and says what became of it in lines that begin with a word (`outcome`, `count`, `failure`); a child that
//! ends without them has panicked or was killed, and its seed has failed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrisdb_core::rare;

use crate::faults::Kind;
use crate::run::Outcome;

/// What is counted by events that are rare: a report says which of them no seed has reached.
pub const RARE: &[&str] = &[
    "conflicts",
    "too old",
    "unknown results",
    "refused commits",
    "power lost at an operation",
    "processes that gave up",
    "databases that were joined",
    "power losses at the end",
    "watches that fired",
    "steps that failed",
    "messages that came late",
    "orders that were carried out",
    "orders that were refused",
    "snapshots: held to the end",
    "oracle: steps that a fault ended",
    "oracle: outcomes asked for",
];

/// So many seeds of all workloads, whichever, reach every fault, event and rare place but those that [may be missed](MAY_BE_MISSED).
pub const SEEDS_THAT_REACH_ALL: u64 = 300;

/// What so many seeds may miss, and why. Fewer than one in twenty seeds has reached it: any change of the program draws other runs, and one that draws none of these is not wrong.
pub const MAY_BE_MISSED: &[(&str, &str)] = &[
    (
        "controller: an excluded leader hands over",
        "the order to exclude must meet the process that leads, and be carried out",
    ),
    ("controller: a half-done change of voters ended", "a leader must die between the two entries of a change"),
    ("coordinator: a commit that came before", "a commit that was given up must arrive after it was asked for again"),
    ("coordinator: a lease refused", "within a run only a clock that jumps ends the lease of a client that is there"),
    ("coordinator: a lease that expired", "its term is longer than most runs, but for clocks that jump"),
    (
        "coordinator: an epoch given up as void",
        "a leader must be deposed with a batch on the way, and lead again before it arrives",
    ),
    (
        "coordinator: an id nobody knows any more",
        "a commit must arrive seconds after its client has given it up and gone on",
    ),
    (
        "coordinator: an outcome asked for below the floor",
        "a client must ask for an outcome over a change of epochs, and late",
    ),
    ("log: a snapshot of what is there already", "a snapshot must be overtaken by the entries that it stands for"),
    (
        "log: a subscription out of its reach",
        "a storage server must ask a replica that has just purged, or has yet to catch up",
    ),
    ("log: a void entry", "as an epoch given up as void"),
    ("process: a leader that asks another one to lead", "the full disk, or the order to close, must be the leader's"),
    ("shards: a chunk that is not wanted any more", "a move must be given up while a chunk of it is fetched"),
    ("fault went-back", "an image must be old enough, and all processes have everything, when it is drawn"),
    ("oracle: outcomes asked for", "one seed in six has the oracle, and an answer of it must be lost"),
];

/// Before the names of faults.
pub const FAULT_PREFIX: &str = "fault ";
/// Before the names of the [places in the code](ferrisdb_core::rare) that are rarely reached.
pub const RARE_PREFIX: &str = "rare ";

/// A hundred times what a seed takes on a slow machine.
const SEED_TIME_MAX: Duration = Duration::from_secs(600);

/// Which seeds to run.
#[derive(Debug, Clone)]
pub struct SeedsOptions {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// How many processes at once.
    pub jobs: usize,
    /// No seed begins after this time.
    pub time_max: Option<Duration>,
    /// End with the first seed that fails.
    pub is_first_failure_the_last: bool,
}

/// What became of all of them.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds that passed.
    pub passed: u64,
    /// Seeds that failed, ascending.
    pub failed: Vec<u64>,
    millis: u64,
    counts: BTreeMap<String, u64>,
}

/// Tells an [`Outcome`], for [`parse`].
pub fn told(outcome: &Outcome) -> String {
    let Outcome { seed, failures, hash, millis, counts } = outcome;
    let mut text = String::new();
    for (name, count) in counts {
        writeln!(text, "count {count} {name}").expect("writing to a String cannot fail");
    }
    for failure in failures {
        writeln!(text, "failure {}", failure.replace('\n', " ")).expect("writing to a String cannot fail");
    }
    writeln!(text, "outcome {seed} {millis} {hash:016x}").expect("writing to a String cannot fail");
    text
}

/// Understands what [`told`] said; `None` if it was not said to the end.
pub fn parse(text: &str) -> Option<Outcome> {
    let mut outcome = Outcome { seed: 0, failures: Vec::new(), hash: 0, millis: 0, counts: BTreeMap::new() };
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("count ") {
            let (count, name) = rest.split_once(' ')?;
            outcome.counts.insert(name.to_owned(), count.parse().ok()?);
        } else if let Some(failure) = line.strip_prefix("failure ") {
            outcome.failures.push(failure.to_owned());
        } else if let Some(rest) = line.strip_prefix("outcome ") {
            let mut words = rest.split(' ');
            outcome.seed = words.next()?.parse().ok()?;
            outcome.millis = words.next()?.parse().ok()?;
            outcome.hash = u64::from_str_radix(words.next()?, 16).ok()?;
            return Some(outcome);
        }
    }
    None
}

/// Runs the process of one seed, and returns what became of it.
pub fn run_in_process(seed: u64, mut command: Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output();
    let failed = |what: String| Outcome { seed, failures: vec![what], hash: 0, millis: 0, counts: BTreeMap::new() };
    match output {
        Err(error) => failed(format!("its process does not start: {error}")),
        Ok(output) => parse(&String::from_utf8_lossy(&output.stdout)).unwrap_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("note: ")).collect();
            failed(format!("its process ended with {}: {}", output.status, lines.join(" ").trim()))
        }),
    }
}

/// Ends this process if it is still there after ten minutes of real time: a seed takes seconds, and one in which simulated time stands still would
/// take for ever. To be called by the process of a seed.
///
/// # Errors
/// If the operating system has no thread for it.
#[expect(clippy::disallowed_methods, reason = "only real time goes on where simulated time stands still")]
pub fn end_if_it_hangs() -> io::Result<()> {
    let watching = || {
        std::thread::sleep(SEED_TIME_MAX);
        // Not eprintln!: a test harness would keep it back.
        writeln!(io::stderr(), "the seed still runs after {SEED_TIME_MAX:?}: simulated time stands still").ok();
        std::process::exit(1);
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(watching).map(drop)
}

/// Runs seeds, as many at once as the options say, and tells `report` of each. `command` makes the process of a seed, `replay` the words with which a person
/// runs it again.
///
/// # Errors
/// If `report` cannot be written to.
///
/// # Panics
/// If writing to `report` panics.
#[expect(clippy::disallowed_methods, reason = "how long a person lets seeds run is real time")]
pub fn run_seeds(
    options: &SeedsOptions,
    command: &(impl Fn(u64) -> Command + Sync),
    replay: &(impl Fn(u64) -> String + Sync),
    report: &mut (impl Write + Send),
) -> io::Result<Summary> {
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let state = Mutex::new((Summary::default(), report, Ok(())));
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::SeqCst);
            let is_late = options.time_max.is_some_and(|max| begin.elapsed() > max);
            // At least one, however little time there is.
            if index >= options.count || (is_late && index > 0) {
                break;
            }
            let seed = options.first + index;
            let outcome = run_in_process(seed, command(seed));
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let (summary, report, result) = &mut *state;
            if !outcome.failures.is_empty() && options.is_first_failure_the_last {
                next.store(options.count, Ordering::SeqCst);
            }
            let told = tell(&outcome, replay, *report);
            summary.add(&outcome);
            if told.is_err() {
                *result = told;
                next.store(options.count, Ordering::SeqCst);
            }
        }
    };
    std::thread::scope(|scope| {
        (1..options.jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let (mut summary, _, result) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failed.sort_unstable();
    result.map(|()| summary)
}

fn tell(outcome: &Outcome, replay: &impl Fn(u64) -> String, report: &mut impl Write) -> io::Result<()> {
    let Outcome { seed, failures, hash, millis, counts } = outcome;
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    let faults: u64 = counts.iter().filter(|(name, _)| name.starts_with(FAULT_PREFIX)).map(|(_, count)| count).sum();
    let verdict = if failures.is_empty() { "passed" } else { "FAILED" };
    writeln!(
        report,
        "seed {seed} {verdict}: {}.{:03} s, {} commits, {faults} faults, trace {hash:016x}",
        millis / 1000,
        millis % 1000,
        count("commits"),
    )?;
    for failure in failures {
        writeln!(report, "  {failure}")?;
    }
    if !failures.is_empty() {
        writeln!(report, "  replay: {}", replay(*seed))?;
    }
    report.flush()
}

/// The names under which faults, and events that are rare, are counted.
fn events() -> Vec<String> {
    let kinds = Kind::ALL.iter().map(|(_, name)| format!("{FAULT_PREFIX}{name}"));
    kinds.chain(RARE.iter().map(ToString::to_string)).collect()
}

/// The names under which rare places of the code are.
fn rare_places() -> Vec<String> {
    rare::NAMES.iter().map(|name| format!("{RARE_PREFIX}{name}")).collect()
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        if outcome.failures.is_empty() {
            self.passed += 1;
        } else {
            self.failed.push(outcome.seed);
        }
        self.millis += outcome.millis;
        for (name, count) in &outcome.counts {
            *self.counts.entry(name.clone()).or_default() += count;
        }
    }

    /// Which of these were never counted, without what says that they are places.
    fn missed_of(&self, names: &[String]) -> Vec<String> {
        let is_missed = |name: &&String| self.counts.get(*name).is_none_or(|count| *count == 0);
        names.iter().filter(is_missed).map(|name| name.strip_prefix(RARE_PREFIX).unwrap_or(name).to_owned()).collect()
    }

    /// The faults, events and rare places that none of these seeds has reached, though [so many](SEEDS_THAT_REACH_ALL) do.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = self.missed_of(&events());
        missed.extend(self.missed_of(&rare_places()));
        missed.retain(|name| MAY_BE_MISSED.iter().all(|(may_be, _)| may_be != name));
        missed
    }

    /// Tells the totals; the last line is `N passed, M failed`.
    ///
    /// # Errors
    /// If `report` cannot be written to.
    pub fn write(&self, report: &mut impl Write) -> io::Result<()> {
        writeln!(report, "simulated seconds: {}", self.millis / 1000)?;
        let (faults, others): (Vec<_>, Vec<_>) =
            self.counts.iter().partition(|(name, _)| name.starts_with(FAULT_PREFIX));
        let (places, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(name, _)| name.starts_with(RARE_PREFIX));
        let list = |counts: Vec<(&String, &u64)>| {
            let told = counts.into_iter().filter(|(_, count)| **count > 0);
            let bare = |name: &str| {
                [FAULT_PREFIX, RARE_PREFIX].iter().find_map(|prefix| name.strip_prefix(prefix).map(str::to_owned))
            };
            let words = told.map(|(name, count)| format!("{} {count}", bare(name).unwrap_or_else(|| name.clone())));
            words.collect::<Vec<_>>().join(", ")
        };
        writeln!(report, "faults: {}", list(faults))?;
        writeln!(report, "rare places: {}", list(places))?;
        writeln!(report, "counts: {}", list(others))?;
        for (what, missed) in [
            ("never reached", self.missed_of(&events())),
            ("rare places never reached", self.missed_of(&rare_places())),
        ] {
            if !missed.is_empty() {
                writeln!(report, "{what}: {}", missed.join(", "))?;
            }
        }
        if !self.failed.is_empty() {
            let seeds: Vec<String> = self.failed.iter().map(u64::to_string).collect();
            writeln!(report, "failed: {}", seeds.join(", "))?;
        }
        writeln!(report, "{} passed, {} failed", self.passed, self.failed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(seed: u64, failures: &[&str]) -> Outcome {
        let counts = [("commits".to_owned(), 300), ("fault kill".to_owned(), 4)].into();
        Outcome {
            seed,
            failures: failures.iter().map(ToString::to_string).collect(),
            hash: 0xAB,
            millis: 20_001,
            counts,
        }
    }

    /// What one process says, another understands; what was cut short it does not.
    #[test]
    fn what_is_told_is_understood() {
        for outcome in [outcome(1, &[]), outcome(2, &["a total is wrong", "and something else"])] {
            let text = told(&outcome);
            assert_eq!(parse(&text), Some(outcome));
            assert_eq!(parse(text.trim_end().rsplit_once('\n').expect("several lines").0), None);
        }
    }

    /// Seeds pass, fail, and panic; each is told, and those that did not pass with the command that runs them again.
    #[test]
    fn every_seed_is_told() {
        let options = SeedsOptions { first: 7, count: 3, jobs: 1, time_max: None, is_first_failure_the_last: false };
        let command = |seed: u64| {
            let mut shell = Command::new("sh");
            let text = match seed {
                7 => told(&outcome(7, &[])),
                8 => told(&outcome(8, &["the ring is two rings"])),
                _ => String::new(),
            };
            shell.arg("-c").arg("printf %s \"$1\"; [ -n \"$1\" ] || { echo 'panicked somewhere' >&2; exit 101; }");
            shell.arg("sh").arg(text);
            shell
        };
        let mut report = Vec::new();
        let summary = run_seeds(&options, &command, &|seed| format!("sim --seed {seed}"), &mut report).expect("a Vec");
        summary.write(&mut report).expect("a Vec");
        let report = String::from_utf8(report).expect("text");
        expect_test::expect![[r#"
            seed 7 passed: 20.001 s, 300 commits, 4 faults, trace 00000000000000ab
            seed 8 FAILED: 20.001 s, 300 commits, 4 faults, trace 00000000000000ab
              the ring is two rings
              replay: sim --seed 8
            seed 9 FAILED: 0.000 s, 0 commits, 0 faults, trace 0000000000000000
              its process ended with exit status: 101: panicked somewhere
              replay: sim --seed 9
            simulated seconds: 40
            faults: kill 8
            rare places: 
            counts: commits 600
            never reached: fault power-loss, fault power-loss-at-io, fault power-loss-in-recovery, fault client-kill, fault pause, fault partition, fault one-way-partition, fault slow-network, fault broken-streams, fault late-messages, fault failed-sync, fault disk-errors, fault slow-disk, fault busy-processor, fault full-disk, fault bit-flip, fault clock-jump, fault wall-clock-jump, fault clock-freeze, fault clock-rate, fault lost-for-good, fault went-back, fault isolate, fault one-way-isolate, fault transfer, fault exclude, fault configure, conflicts, too old, unknown results, refused commits, power lost at an operation, processes that gave up, databases that were joined, power losses at the end, watches that fired, steps that failed, messages that came late, orders that were carried out, orders that were refused, snapshots: held to the end, oracle: steps that a fault ended, oracle: outcomes asked for
            rare places never reached: log: a void entry, log: a snapshot installed, log: a snapshot of what is there already, log: voters that do not confirm a read version, log: a subscription out of its reach, log: batches read from disk for a subscriber, wal: a torn tail, engine: it takes no more writes, coordinator: an epoch given up as void, coordinator: a commit that came before, coordinator: an id nobody knows any more, coordinator: an outcome made never, coordinator: an outcome asked for under way, coordinator: an outcome that is known, coordinator: an outcome asked for below the floor, coordinator: a lease that expired, coordinator: a lease refused, controller: a tag dropped, controller: a process forgotten, controller: a change of voters, controller: a half-done change of voters ended, controller: an excluded leader hands over, shards: a move given up, shards: replicas taken away, shards: a chunk that is not wanted any more, shards: a split, shards: a merge, shards: a question to who does not hold the key, process: it begins again with another tag, process: it begins again as a new one, process: a leader that asks another one to lead, reads: a hedge
            failed: 8, 9
            1 passed, 2 failed
        "#]]
        .assert_eq(&report);
    }

    /// What no seed has reached is named, but for what may be missed; and that is named rightly, with a reason.
    #[test]
    fn what_was_missed_is_named() {
        let all = || events().into_iter().chain(rare_places());
        let missing = |name: &str| Summary {
            counts: all().filter(|other| other != name).map(|name| (name, 1)).collect(),
            ..Summary::default()
        };
        assert_eq!(missing("").missed(), Vec::<String>::new());
        assert_eq!(missing("fault kill").missed(), ["fault kill"]);
        assert_eq!(missing("conflicts").missed(), ["conflicts"]);
        assert_eq!(missing("rare wal: a torn tail").missed(), ["wal: a torn tail"]);
        for (name, reason) in MAY_BE_MISSED {
            let known = all().find(|other| other == name || other.strip_prefix(RARE_PREFIX) == Some(name));
            assert_eq!(missing(&known.expect(name)).missed(), Vec::<String>::new());
            assert!(reason.len() > 20, "{name}: {reason}");
        }
    }

    /// With no time left one seed is run all the same, so that a run is never empty; and the first failure can be the last.
    #[test]
    fn time_and_failures_end_it() {
        let options = SeedsOptions {
            first: 1,
            count: 50,
            jobs: 1,
            time_max: Some(Duration::ZERO),
            is_first_failure_the_last: false,
        };
        let fails = |_: u64| Command::new("false");
        let replay = |_: u64| String::new();
        let summary = run_seeds(&options, &fails, &replay, &mut Vec::new()).expect("a Vec");
        assert_eq!((summary.passed, summary.failed), (0, vec![1]));
        let options = SeedsOptions { time_max: None, is_first_failure_the_last: true, ..options };
        let summary = run_seeds(&options, &fails, &replay, &mut Vec::new()).expect("a Vec");
        assert_eq!(summary.failed, [1]);
    }
}
