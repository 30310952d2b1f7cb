//! Planted bugs: each must be caught by a test that passes without it.
//!
//! The storage crate's `planted.rs` says what the bugs are and where they sit. Here stands which test answers for which bug.
//! The tests are built once, with the feature `planted-bugs`; then each test runs in processes of its own: once with no
//! bug, and it must pass; once with each of its bugs, and it must fail by a failed assertion (a hang or a crash proves nothing).
//! As many processes run at once as the machine has processors.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Outcome, cargo, root};

/// Which test answers for which bug.
struct Planted {
    /// The bug's name in the storage crate.
    bug: &'static str,
    /// Where the test is: "lib" for unit tests, otherwise the name of a file in `tests/`.
    target: &'static str,
    /// The test's full name. It may also be the beginning of several; one of them must catch the bug.
    test: &'static str,
}

/// The table. A bug may have several lines; each must catch it.
const TABLE: &[Planted] = &[
    Planted { bug: "skip-wal-sync", target: "crash_loops", test: "mixed" },
    Planted { bug: "skip-directory-sync", target: "crash_loops", test: "mixed" },
    Planted { bug: "ignore-block-checksum", target: "lib", test: "table::tests::faults::misplaced_blocks_are_seen" },
    Planted {
        bug: "ignore-wal-checksum",
        target: "lib",
        test: "wal::tests::format::a_flipped_bit_gives_the_right_answer_or_corruption",
    },
    Planted { bug: "wrong-version-order", target: "lib", test: "key::tests::newest_first_within_a_key" },
    Planted { bug: "wrong-version-order", target: "lib", test: "engine::tests::model::the_engine_equals_the_model" },
    Planted {
        bug: "range-tombstone-hides-newer",
        target: "lib",
        test: "engine::tests::model::the_engine_equals_the_model",
    },
    Planted { bug: "recycled-record-accepted", target: "crash_loops", test: "recycling" },
    Planted {
        bug: "corruption-is-a-torn-tail",
        target: "lib",
        test: "wal::tests::recovery::zeros_in_the_middle_are_corruption",
    },
    Planted { bug: "ack-before-sync", target: "disk_faults", test: "a_failed_sync_fails_its_whole_group" },
    Planted { bug: "forget-to-sync-table", target: "crash_loops", test: "mixed" },
    Planted { bug: "manifest-not-synced", target: "crash_loops", test: "mixed" },
    Planted {
        bug: "drop-tombstone-above-bottom",
        target: "lib",
        test: "engine::tests::model::the_engine_equals_the_model",
    },
    Planted {
        bug: "compaction-drops-pinned",
        target: "lib",
        test: "engine::tests::model::the_engine_equals_the_model",
    },
    Planted {
        bug: "torn-tail-kept-after-hole",
        target: "lib",
        test: "wal::tests::recovery::a_hole_in_what_was_not_synced_is_a_torn_tail",
    },
    Planted { bug: "retry-failed-sync", target: "disk_faults", test: "a_failed_sync_that_then_lies" },
    Planted { bug: "flush-forgets-wal-end", target: "crash_loops", test: "recycling" },
    Planted { bug: "purge-before-flush", target: "crash_loops", test: "recycling" },
    Planted { bug: "switch-before-sync", target: "crash_loops", test: "manifest" },
    Planted { bug: "second-name-reused", target: "crash_loops", test: "mixed" },
    Planted { bug: "names-found-not-synced", target: "disk_faults", test: "every_operation_fails_at_every_place" },
    Planted { bug: "block-place-ignored", target: "lib", test: "table::tests::faults::misplaced_blocks_are_seen" },
    Planted { bug: "block-place-ignored", target: "disk_faults", test: "misdirected_reads_are_corruption" },
    Planted { bug: "tombstone-end-included", target: "lib", test: "tombstone::tests::lookups_equal_the_definition" },
    Planted { bug: "tombstone-end-included", target: "lib", test: "engine::tests::model::the_engine_equals_the_model" },
    Planted {
        bug: "deeper-tombstone-ignored",
        target: "lib",
        test: "engine::tests::model::the_engine_equals_the_model",
    },
    Planted {
        bug: "dropped-table-ignores-pin",
        target: "lib",
        test: "compaction::retention::tests::tables_under_a_range_tombstone",
    },
    Planted {
        bug: "compaction-ignores-floor",
        target: "lib",
        test: "engine::tests::model::the_engine_equals_the_model",
    },
    Planted {
        bug: "blob-removed-while-referenced",
        target: "lib",
        test: "blob::garbage::tests::a_blob_file_dies_with_its_last_reference",
    },
    Planted { bug: "ignore-blob-checksum", target: "lib", test: "engine::tests::blobs::damage_is_told" },
    Planted { bug: "ignore-blob-checksum", target: "robustness", test: "corruption::any_bit_of_a_blob_file" },
    Planted { bug: "forget-to-sync-blob", target: "lib", test: "engine::tests::blobs::crashes_lose_nothing" },
    Planted {
        bug: "checkpoint-ahead-of-flush",
        target: "lib",
        test: "engine::tests::checkpoint::an_ingestion_does_not_overtake_writes",
    },
    Planted {
        bug: "close-ignores-hold",
        target: "lib",
        test: "engine::tests::checkpoint::closing_waits_for_a_checkpoint",
    },
];

/// What `--quick` takes: lines whose tests are unit tests of a few seconds, so that little has to be built; of every kind one. (For
/// the first, the exhaustive loops of the WAL alone stand in for those of the engine.)
const QUICK: &[Planted] = &[
    Planted {
        bug: "skip-wal-sync",
        target: "lib",
        test: "wal::crash_tests::crashes_at_every_operation_leave_a_prefix_with_all_that_was_synced",
    },
    Planted { bug: "block-place-ignored", target: "lib", test: "table::tests::faults::misplaced_blocks_are_seen" },
    Planted {
        bug: "ignore-wal-checksum",
        target: "lib",
        test: "wal::tests::format::a_flipped_bit_gives_the_right_answer_or_corruption",
    },
    Planted { bug: "tombstone-end-included", target: "lib", test: "tombstone::tests::lookups_equal_the_definition" },
    Planted { bug: "forget-to-sync-blob", target: "lib", test: "engine::tests::blobs::crashes_lose_nothing" },
    Planted {
        bug: "checkpoint-ahead-of-flush",
        target: "lib",
        test: "engine::tests::checkpoint::an_ingestion_does_not_overtake_writes",
    },
];

/// Where the bugs are named.
const SOURCE: &str = include_str!("../../ferrisdb-storage/src/planted.rs");

/// Ten times what the slowest of our tests takes on a slow machine: only a hang is longer.
const DEADLINE: Duration = Duration::from_secs(300);

/// What a run of a test came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Passed,
    Failed,
    /// No such test, a crash, a hang: what happened.
    Other(String),
}

/// Runs the table, prints it, and fails if a bug was missed or has no test.
pub(crate) fn run(only: &[String], quick: bool) -> Outcome {
    let names = bug_names();
    let table: &[Planted] = if quick { QUICK } else { TABLE };
    let asked = |bug: &str| only.is_empty() || only.iter().any(|only| only == bug);
    let mut lines: Vec<&Planted> = table.iter().filter(|line| asked(line.bug)).collect();
    // In the order of the list of bugs, so that the report reads like it.
    lines.sort_by_key(|line| names.iter().position(|name| *name == line.bug));
    let untested: Vec<&str> = match quick {
        true => Vec::new(),
        false => names.iter().copied().filter(|bug| asked(bug) && !lines.iter().any(|line| line.bug == *bug)).collect(),
    };
    let executables = build(&lines.iter().map(|line| line.target).collect())?;
    let tests: BTreeSet<(&str, &str)> = lines.iter().map(|line| (line.target, line.test)).collect();
    let runs: Vec<(&str, &str, Option<&str>)> = tests
        .iter()
        .map(|&(target, test)| (target, test, None))
        .chain(lines.iter().map(|line| (line.target, line.test, Some(line.bug))))
        .collect();
    let results = run_all(&executables, &runs)?;
    let mut report = String::from("\n");
    for bug in &untested {
        add_row(&mut report, bug, "-", "MISSED: it has no test");
    }
    let mut bad = untested.len();
    for Planted { bug, target, test } in lines {
        let (without, _) = &results[&(*target, *test, None)];
        let (with, took) = &results[&(*target, *test, Some(*bug))];
        let verdict = match without {
            Run::Passed => verdict_of(with),
            Run::Failed => Err("WRONG: the test fails without the bug".to_string()),
            Run::Other(what) => Err(format!("WRONG: without the bug, {what}")),
        };
        bad += usize::from(verdict.is_err());
        let verdict = verdict.unwrap_or_else(|wrong| wrong);
        add_row(&mut report, bug, &format!("{target}::{test}"), &format!("{verdict} ({:.1} s)", took.as_secs_f64()));
    }
    eprintln!("{report}");
    if bad == 0 { Ok(()) } else { Err(format!("{bad} of the lines above are not `caught`")) }
}

type Results<'a> = BTreeMap<(&'a str, &'a str, Option<&'a str>), (Run, Duration)>;

/// Carries out runs (target, test, bug) beside each other, as many at once as there are processors.
#[expect(clippy::disallowed_methods, reason = "how long a test took is part of the report")]
fn run_all<'a>(
    executables: &BTreeMap<String, PathBuf>,
    runs: &[(&'a str, &'a str, Option<&'a str>)],
) -> Result<Results<'a>, String> {
    if let Some((target, ..)) = runs.iter().find(|(target, ..)| !executables.contains_key(*target)) {
        return Err(format!("ferrisdb-storage has no test target {target}"));
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Results::new());
    let work = || {
        while let Some(&(target, test, bug)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let run = run_test(&executables[target], test, bug);
            let took = start.elapsed();
            eprintln!("{}: {target}::{test}: {run:?} ({:.1} s)", bug.unwrap_or("no bug"), took.as_secs_f64());
            results.lock().expect("no worker panics with the lock").insert((target, test, bug), (run, took));
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (1..workers).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    Ok(results.into_inner().expect("no worker panicked"))
}

/// What a run with the bug says: caught, or why not.
pub(crate) fn verdict_of(run: &Run) -> Result<String, String> {
    match run {
        Run::Failed => Ok("caught".to_string()),
        Run::Passed => Err("MISSED: the test passes with the bug".to_string()),
        Run::Other(what) => Err(format!("WRONG: with the bug, {what}")),
    }
}

fn add_row(report: &mut String, bug: &str, test: &str, verdict: &str) {
    writeln!(report, "{bug:<28} {test:<72} {verdict}").expect("writing to a String cannot fail");
}

/// The names in the storage crate's list: one `Bug = "name",` on a line.
pub(crate) fn bug_names() -> Vec<&'static str> {
    names_in(SOURCE)
}

/// The names in a list of bugs.
pub(crate) fn names_in(source: &str) -> Vec<&str> {
    source
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.strip_suffix("\",")?.split_once(" = \""))
        .map(|(_, name)| name)
        .collect()
}

/// Builds these test targets of the storage crate with the bugs in and returns the executable of each.
fn build(targets: &BTreeSet<&str>) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut arguments = Vec::new();
    for &target in targets {
        match target {
            "lib" => arguments.push("--lib"),
            other => arguments.extend(["--test", other]),
        }
    }
    build_tests("ferrisdb-storage", &arguments)
}

/// Builds tests of a package with its bugs in and returns the executable of each target.
pub(crate) fn build_tests(package: &str, targets: &[&str]) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut command = cargo();
    command.args(["test", "--package", package, "--features", &format!("{package}/planted-bugs"), "--no-run"]);
    command.args(targets).args(["--target-dir", "target/planted", "--message-format", "json-render-diagnostics"]);
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?} ended with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| executable(&serde_json::from_str(line).ok()?)).collect())
}

/// The test target and its executable, if that is what a message of cargo is about.
fn executable(message: &Value) -> Option<(String, PathBuf)> {
    let path = PathBuf::from(message["executable"].as_str()?);
    let target = &message["target"];
    let is_lib = target["kind"].as_array()?.iter().any(|kind| kind == "lib");
    let name = if is_lib { "lib" } else { target["name"].as_str()? };
    Some((name.to_string(), path))
}

/// Runs the tests whose names begin with `test`.
fn run_test(executable: &Path, test: &str, bug: Option<&str>) -> Run {
    match try_run_test(executable, test, bug) {
        Ok(run) => run,
        Err(error) => Run::Other(format!("cannot run {}: {error}", executable.display())),
    }
}

fn try_run_test(executable: &Path, test: &str, bug: Option<&str>) -> std::io::Result<Run> {
    let package = root().join("crates/ferrisdb-storage");
    let mut command = Command::new(executable);
    command.arg(test).current_dir(&package).env("CARGO_MANIFEST_DIR", &package);
    command.env_remove("FERRISDB_PLANTED_BUG").envs(bug.map(|bug| ("FERRISDB_PLANTED_BUG", OsString::from(bug))));
    output_of(command).map(|(run, _)| run)
}

/// Runs a test, and returns what it came to and what it printed.
pub(crate) fn output_of(mut command: Command) -> std::io::Result<(Run, String)> {
    let (mut reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stderr(writer.try_clone()?).stdout(writer);
    let mut child = command.spawn()?;
    // The command holds the pipe's other ends; without this the reader would never see the end.
    drop(command);
    let reading = std::thread::Builder::new().name("test output".to_string()).spawn(move || {
        let mut output = Vec::new();
        reader.read_to_end(&mut output).map(|_| output)
    })?;
    let status = wait(&mut child)?;
    let output = reading.join().expect("reading a pipe does not panic")?;
    let output = String::from_utf8_lossy(&output).into_owned();
    Ok((judge(status, &output), output))
}

/// Waits for the end, or ends it at the deadline (`None`).
#[expect(clippy::disallowed_methods, reason = "a test that hangs can only be told from a slow one by a real clock")]
fn wait(child: &mut std::process::Child) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > DEADLINE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The test harness's exit code for a failed test.
const TESTS_FAILED: i32 = 101;

/// What a run of the test harness came to.
fn judge(status: Option<ExitStatus>, output: &str) -> Run {
    let Some(status) = status else {
        return Run::Other(format!("it hung for {} s", DEADLINE.as_secs()));
    };
    if !output.lines().any(|line| line.starts_with("running ") && !line.starts_with("running 0 ")) {
        let last = output.lines().rev().find(|line| !line.is_empty()).unwrap_or("no output");
        return Run::Other(format!("no test of that name ran ({status}; {last})"));
    }
    match status.code() {
        Some(0) => Run::Passed,
        Some(TESTS_FAILED) => Run::Failed,
        _ => {
            let last = output.lines().rev().find(|line| !line.is_empty()).unwrap_or("no output");
            Run::Other(format!("it ended with {status}: {last}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list in the storage crate can be read, and the table names only what is in it.
    #[test]
    fn the_table_names_only_planted_bugs() {
        let names = bug_names();
        assert!(names.len() >= 12, "{names:?}");
        assert!(names.contains(&"skip-wal-sync"), "{names:?}");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name occurs twice: {names:?}");
        for entry in TABLE.iter().chain(QUICK) {
            assert!(names.contains(&entry.bug), "{} is not a planted bug", entry.bug);
        }
        for name in names {
            assert!(TABLE.iter().any(|entry| entry.bug == name), "{name} has no test");
        }
        assert!(QUICK.len() >= 5 && QUICK.iter().all(|entry| entry.target == "lib"));
    }

    /// Only a failed assertion is a catch: no test, a crash or a hang are not.
    #[test]
    fn a_crash_or_a_missing_test_is_not_a_catch() {
        use std::os::unix::process::ExitStatusExt;

        let exit = |code: i32| Some(ExitStatus::from_raw(code << 8));
        let killed = Some(ExitStatus::from_raw(6));
        assert_eq!(judge(exit(0), "\nrunning 1 test\n"), Run::Passed);
        assert_eq!(judge(exit(101), "\nrunning 1 test\n"), Run::Failed);
        assert!(matches!(judge(exit(0), "\nrunning 0 tests\n"), Run::Other(_)));
        assert!(matches!(judge(killed, "\nrunning 1 test\nabort\n"), Run::Other(_)));
        assert!(matches!(judge(None, ""), Run::Other(_)));
        assert!(verdict_of(&Run::Failed).is_ok());
        assert!(verdict_of(&Run::Passed).is_err());
    }
}
