//! Planted bugs in transactions: the list of `ferrisdb-core`'s `planted.rs`, which the oracle, the history checker and the
//! simulators must catch.
//!
//! The oracle must do so within a stated number of steps, the others within a stated number of seeds; how many it took is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::planted::{Run, build_tests, names_in, output_of, verdict_of};
use crate::{Outcome, root};

/// Who must catch a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Catcher {
    /// Programs with so many steps at most.
    Oracle(u32),
    /// Histories of so many seeds at most.
    History(&'static str, u32),
    /// What is final and what holds, of so many seeds at most.
    Settled(&'static str, u32),
    /// Simulated groups of processes, of so many seeds at most.
    Group(&'static str, u32),
    /// The simulator of whole processes with this workload, so many seeds at most.
    World(&'static str, u32),
    /// The same, with clusters of three.
    Three(&'static str, u32),
    /// The same, while nothing goes wrong but faults of these kinds, and to whoever leads more often than to others.
    Focused(&'static str, &'static str, u32),
}

use Catcher::{Focused, Group, History, Oracle, Settled, Three, World};

impl Catcher {
    /// The test target.
    fn target(self) -> &'static str {
        match self {
            Oracle(_) => "oracle",
            History(..) => "history",
            Settled(..) => "settled",
            Group(..) => "lib",
            World(..) | Three(..) | Focused(..) => "simulation",
        }
    }
}

const LOG: &str = "log::replicated::tests::a_group_of_three_keeps_its_promises_under_faults";
const CLUSTER: &str = "cluster::tests::a_cluster_keeps_its_promises_under_faults";
const GONE: &str = "cluster::tests::membership::a_process_that_was_gone_copies_everything_anew";
const WENT_BACK: &str = "cluster::tests::membership::a_disk_that_went_back_does_not_vote";
const LAST_REPLICA: &str = "cluster::control::tests::the_last_replica_is_kept";
const BEGAN_LATER: &str = "cluster::tests::a_snapshot_is_readable_through_those_that_began_later";
const JOINED: &str = "alone::tests::a_database_that_is_joined_is_a_cluster";
const MOVES: &str = "cluster::tests::shards_move_under_faults";
const READABLE: &str = "cluster::tests::what_was_readable_stays_readable_in_the_next_epoch";
const EARLIER: &str = "cluster::tests::a_coordinator_of_an_earlier_epoch_tells_no_read_version";
const OWNER: &str = "log::state::tests::only_the_current_owner_in_order_counts";
const VOTE: &str = "log::replicated::tests::store::a_vote_outlives_a_power_cut";
const SHOWN: &str = "shards::tests::a_loss_is_shown_before_it_is_applied";
const CONFIRM: &str = "log::replicated::tests::a_voter_confirms_only_whom_it_has_voted_for";
const PRE_VOTE: &str = "log::replicated::tests::a_follower_that_comes_back_deposes_nobody";
/// What makes a leader that is deposed believe for longer that it cannot be.
const OLD_LEADERS: &str = "isolate,one-way-isolate,pause,clock-freeze,clock-rate,clock-jump";
const SILENT: &str = "log::state::tests::silent_clients_are_forgotten_by_work_and_not_by_jumps";
const CONCURRENT: &str = "concurrent_clients_are_strictly_serializable";
const LOST: &str = "lost_answers_are_found_again";
const FINAL: &str = "an_unknown_outcome_is_final";
const LOCK: &str = "a_lock_outlives_the_process";
const POWER: &str = "power_failures_lose_nothing_acknowledged";

/// The table. A bug may have several lines; each must catch it.
const TABLE: &[(&str, Catcher)] = &[
    ("byte-max-by-length", Oracle(200_000)),
    ("min-without-resize", Oracle(200_000)),
    ("backward-selector-off-by-one", Oracle(200_000)),
    ("no-more-after-bytes", Oracle(200_000)),
    ("conflict-not-shrunk", Oracle(200_000)),
    ("reverse-conflict-misses-last", Oracle(200_000)),
    ("off-the-end-no-conflict", Oracle(200_000)),
    ("off-the-front-no-conflict", Oracle(200_000)),
    ("get-key-conflict-misses-end", Oracle(200_000)),
    ("stamped-key-readable", Oracle(200_000)),
    ("atomic-sees-cleared", Oracle(200_000)),
    ("set-makes-readable", Oracle(200_000)),
    ("dependent-read-no-conflict", Oracle(200_000)),
    ("independent-read-conflicts", Oracle(200_000)),
    ("snapshot-read-conflicts", Oracle(200_000)),
    ("no-conflict-wish-stays", Oracle(200_000)),
    ("retry-limit-forgotten", Oracle(200_000)),
    ("clear-stays-unreadable", Oracle(200_000)),
    ("watch-armed-early", Oracle(200_000)),
    ("watch-survives-conflict", Oracle(200_000)),
    ("watch-outlives-timeout", Oracle(200_000)),
    ("sixth-tag", Oracle(200_000)),
    ("metadata-version-readable", Oracle(200_000)),
    ("metadata-version-old", Oracle(200_000)),
    ("deferred-error-told-once", Oracle(200_000)),
    ("range-clear-wakes-no-watch", Oracle(200_000)),
    ("resolver-ignores-range-writes", Oracle(200_000)),
    ("resolver-ignores-range-writes", History(CONCURRENT, 30)),
    ("resolver-ignores-phantoms", Oracle(200_000)),
    ("resolver-ignores-phantoms", History(CONCURRENT, 30)),
    ("read-version-not-newest", Oracle(200_000)),
    ("read-version-not-newest", History(CONCURRENT, 30)),
    ("clear-after-set", Oracle(200_000)),
    ("clear-after-set", History(CONCURRENT, 30)),
    ("readers-do-not-ask", History(CONCURRENT, 30)),
    ("lost-answer-is-no", History(LOST, 30)),
    ("resolve-writes-nothing", History(LOST, 30)),
    ("batch-mates-not-checked", History(CONCURRENT, 30)),
    ("batch-index-not-filled", History(CONCURRENT, 30)),
    ("answered-before-durable", History(POWER, 30)),
    ("log-skips-sync", History(POWER, 30)),
    ("read-above-applied", History(CONCURRENT, 30)),
    ("replica-skips-sync", Group(LOG, 100)),
    ("read-not-confirmed", Group(LOG, 100)),
    ("any-vote-confirms", Group(CONFIRM, 10)),
    ("read-lease-by-clock", Focused("sideband", OLD_LEADERS, 100)),
    ("pre-vote-off", Group(PRE_VOTE, 10)),
    ("cut-forgotten", Group(LOG, 100)),
    ("snapshot-too-new", Group(LOG, 100)),
    ("pop-before-flush", Group(CLUSTER, 100)),
    ("lock-not-checked-at-commit", Oracle(200_000)),
    ("lock-not-checked-at-commit", Settled(LOCK, 30)),
    ("lock-not-told-to-readers", Oracle(200_000)),
    ("lock-not-recovered", Settled(LOCK, 30)),
    ("unknown-not-fenced", Settled(FINAL, 30)),
    ("not-self-conflicting", Settled(FINAL, 30)),
    ("mapped-read-no-conflict", Oracle(200_000)),
    ("mapped-reads-own-writes", Oracle(200_000)),
    ("dropped-tag-serves", Group(GONE, 10)),
    ("went-back-votes", Group(WENT_BACK, 10)),
    ("removed-without-replica", Group(LAST_REPLICA, 10)),
    ("tag-forgotten-in-move", Group(MOVES, 100)),
    ("move-keeps-nothing", Group(MOVES, 100)),
    ("late-arrival", Group("shards::tests::a_late_arrival_does_nothing", 10)),
    ("clear-put-off", Group(MOVES, 100)),
    ("arrival-not-durable", Group(MOVES, 100)),
    ("stranger-answers", Group(MOVES, 100)),
    ("answered-before-durable", World("counters", 100)),
    ("log-skips-sync", World("counters", 100)),
    ("lost-answer-is-no", World("counters", 100)),
    ("resolve-writes-nothing", World("counters", 100)),
    ("readers-do-not-ask", World("sideband", 100)),
    ("read-version-not-newest", World("sideband", 100)),
    ("read-above-applied", World("sideband", 100)),
    ("batch-mates-not-checked", World("ring", 100)),
    ("batch-index-not-filled", World("stamps", 100)),
    ("resolver-ignores-phantoms", World("history", 100)),
    ("byte-max-by-length", World("oracle", 100)),
    ("lost-answer-is-no", World("oracle", 100)),
    ("no-more-after-bytes", World("oracle", 100)),
    ("answered-before-durable", Group(CLUSTER, 100)),
    ("read-above-applied", Group(CLUSTER, 100)),
    ("epoch-reused", Group(OWNER, 10)),
    ("two-owners", Group(OWNER, 10)),
    ("order-not-checked", Group(OWNER, 10)),
    ("ids-expire-by-raw-versions", Group(SILENT, 10)),
    ("horizon-jumps-with-epoch", Group(READABLE, 10)),
    ("read-version-from-memory", Group(EARLIER, 10)),
    ("vote-not-durable", Group(VOTE, 10)),
    ("purged-before-popped", Group(CLUSTER, 100)),
    ("unknown-told-as-no", Group(CLUSTER, 100)),
    ("floor-not-raised", Group(CLUSTER, 100)),
    ("commit-id-ignored", World("counters", 100)),
    ("lost-answer-is-retried", World("counters", 100)),
    ("ask-then-fence", Three("counters", 100)),
    ("holding-not-kept", Group(MOVES, 100)),
    ("loss-shown-late", Group(SHOWN, 10)),
    ("turn-before-applied", Group(JOINED, 10)),
    ("leases-not-recovered", World("snapshots", 100)),
    ("leases-not-recovered", Three("snapshots", 100)),
    ("began-later-says-too-old", Group(BEGAN_LATER, 10)),
    ("began-later-says-too-old", Three("snapshots", 100)),
    ("lost-is-kept", Group(MOVES, 100)),
    ("turn-before-applied", Three("counters", 100)),
];

/// Five bugs of the cluster that stand for the others when there is little time: a replica that forgets, a read version that is not the newest, a
/// move, a disk that went back, an epoch. All of them are caught by tests of one crate, so that little has to be built.
const QUICK: &[&str] =
    &["replica-skips-sync", "read-not-confirmed", "tag-forgotten-in-move", "went-back-votes", "two-owners"];

/// Where the bugs are named.
const SOURCE: &str = include_str!("../../ferrisdb-core/src/planted.rs");

/// The names of the bugs.
pub(crate) fn bug_names() -> Vec<&'static str> {
    names_in(SOURCE)
}

/// Runs the table, or only these bugs of it, prints it, and fails if a bug was missed or has no test.
pub(crate) fn run(only: &[String], quick: bool) -> Outcome {
    let is_asked =
        |bug: &str| (only.is_empty() || only.iter().any(|only| only == bug)) && (!quick || QUICK.contains(&bug));
    let lines = || TABLE.iter().filter(|(bug, catcher)| is_asked(bug) && (!quick || matches!(catcher, Group(..))));
    let targets: BTreeSet<&str> = lines().map(|(_, catcher)| catcher.target()).collect();
    let mut executables = BTreeMap::new();
    if targets.contains("lib") {
        executables.extend(build_tests("ferrisdb-server", &["--lib"])?);
    }
    let of_sim: Vec<&str> =
        targets.iter().filter(|target| **target != "lib").flat_map(|target| ["--test", target]).collect();
    if !of_sim.is_empty() {
        executables.extend(build_tests("ferrisdb-sim", &of_sim)?);
    }
    let mut clean: BTreeMap<Catcher, Run> = BTreeMap::new();
    let mut report = String::from("\n");
    let mut bad = 0;
    for bug in bug_names() {
        if !is_asked(bug) {
            continue;
        }
        let catchers: Vec<Catcher> = lines().filter(|(name, _)| *name == bug).map(|(_, catcher)| *catcher).collect();
        if catchers.is_empty() {
            bad += 1;
            add_row(&mut report, bug, "-", "MISSED: it has no test");
        }
        for catcher in catchers {
            let target = catcher.target();
            let executable: &PathBuf =
                executables.get(target).ok_or_else(|| format!("there is no test target {target}"))?;
            let without = clean.entry(catcher).or_insert_with(|| run_test(executable, catcher, None).0);
            let verdict = match without {
                Run::Passed => {
                    let (run, found) = run_test(executable, catcher, Some(bug));
                    verdict_of(&run).map(|caught| format!("{caught} after {found}"))
                }
                Run::Failed => Err("WRONG: the test fails without the bug".to_string()),
                Run::Other(what) => Err(format!("WRONG: without the bug, {what}")),
            };
            bad += usize::from(verdict.is_err());
            let verdict = verdict.unwrap_or_else(|wrong| wrong);
            let test = match catcher {
                Oracle(steps) => format!("oracle, {steps} steps at most"),
                Settled(test, seeds) => format!("settled::{test}, {seeds} seeds at most"),
                History(test, seeds) => format!("history::{test}, {seeds} seeds at most"),
                Group(test, seeds) => format!("{test}, {seeds} seeds at most"),
                World(workload, seeds) => format!("simulation of {workload}, {seeds} seeds at most"),
                Three(workload, seeds) => format!("simulation of {workload} in clusters, {seeds} seeds at most"),
                Focused(workload, faults, seeds) => {
                    format!("simulation of {workload} in clusters with {faults}, {seeds} seeds at most")
                }
            };
            eprintln!("{bug}: {test}: {verdict}");
            add_row(&mut report, bug, &test, &verdict);
        }
    }
    eprintln!("{report}");
    if bad == 0 { Ok(()) } else { Err(format!("{bad} of the lines above are not `caught`")) }
}

fn add_row(report: &mut String, bug: &str, test: &str, verdict: &str) {
    writeln!(report, "{bug:<30} {test:<72} {verdict}").expect("writing to a String cannot fail");
}

/// Runs the test, and says when it found what it found.
fn run_test(executable: &Path, catcher: Catcher, bug: Option<&str>) -> (Run, String) {
    let mut command = Command::new(executable);
    match catcher {
        Oracle(steps) => command.arg("the_client_is_as").env("FERRISDB_ORACLE_STEPS", steps.to_string()),
        History(test, seeds) | Settled(test, seeds) => {
            command.arg(test).env("FERRISDB_HISTORY_SEEDS", seeds.to_string())
        }
        // Without the bug a few seeds are enough to see that the test passes.
        Group(test, seeds) => {
            let seeds = if bug.is_some() { seeds } else { seeds / 10 };
            command.args([test, "--nocapture"]).env("FERRISDB_SIM_SEEDS", seeds.to_string())
        }
        World(workload, seeds) | Three(workload, seeds) | Focused(workload, _, seeds) => {
            let seeds = if bug.is_some() { seeds } else { seeds / 10 };
            if matches!(catcher, Three(..) | Focused(..)) {
                command.env("FERRISDB_SIM_PROCESSES", "3");
            }
            if let Focused(_, faults, _) = catcher {
                command.env("FERRISDB_SIM_FAULTS", faults);
            }
            command.args(["seeds_pass", "--exact", "--nocapture"]).env("FERRISDB_SIM_SEEDS", seeds.to_string());
            command.env("FERRISDB_SIM_WORKLOADS", workload).env("FERRISDB_SIM_STOP", "1")
        }
    };
    command.current_dir(root().join("crates/ferrisdb-sim"));
    command.env_remove("FERRISDB_PLANTED_BUG").envs(bug.map(|bug| ("FERRISDB_PLANTED_BUG", OsString::from(bug))));
    match output_of(command) {
        Ok((run, output)) => {
            let found = match catcher {
                Oracle(_) => {
                    output.lines().find_map(|line| line.strip_prefix("found after ")).unwrap_or_default().to_owned()
                }
                History(..) | Settled(..) => {
                    let seeds = output.lines().rev().find_map(|line| line.strip_prefix("history "));
                    seeds.map_or_else(String::new, |seeds| format!("{seeds} seeds"))
                }
                Group(..) | World(..) | Three(..) | Focused(..) => {
                    let seeds = output.lines().filter(|line| line.starts_with("seed ")).count();
                    format!("{seeds} seeds")
                }
            };
            (run, found)
        }
        Err(error) => (Run::Other(format!("cannot run {}: {error}", executable.display())), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bug has a line, and the table names only what is in the list.
    #[test]
    fn the_table_names_the_planted_bugs() {
        let names = bug_names();
        assert!(names.len() >= 20, "{names:?}");
        let in_table: BTreeSet<&str> = TABLE.iter().map(|(bug, _)| *bug).collect();
        assert_eq!(in_table, names.iter().copied().collect::<BTreeSet<_>>());
        let is_quick = |bug: &&str| TABLE.iter().any(|(name, catcher)| name == bug && matches!(catcher, Group(..)));
        assert!(QUICK.len() >= 5 && QUICK.iter().all(is_quick));
    }
}
