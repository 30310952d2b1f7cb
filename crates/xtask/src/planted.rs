//! Planted bugs: each must be caught by a test that passes without it.
//!
//! The storage crate's `planted.rs` says what the bugs are and where they sit. Here stands which test answers for which bug.
//! The tests are built once, with the feature `planted-bugs`; then each test runs twice in a process of its own: with no
//! bug, and it must pass; with the bug, and it must fail by a failed assertion (a hang or a crash proves nothing).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
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
        test: "wal::tests::a_flipped_bit_gives_the_right_answer_or_corruption",
    },
    Planted { bug: "wrong-version-order", target: "lib", test: "key::tests::newest_first_within_a_key" },
    Planted { bug: "wrong-version-order", target: "lib", test: "engine::tests::model::the_engine_equals_the_model" },
    Planted {
        bug: "range-tombstone-hides-newer",
        target: "lib",
        test: "engine::tests::model::the_engine_equals_the_model",
    },
    Planted { bug: "recycled-record-accepted", target: "crash_loops", test: "recycling" },
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
        test: "wal::tests::a_hole_in_what_was_not_synced_is_a_torn_tail",
    },
    Planted { bug: "retry-failed-sync", target: "disk_faults", test: "a_failed_sync_that_then_lies" },
    Planted { bug: "flush-forgets-wal-end", target: "crash_loops", test: "recycling" },
    Planted { bug: "purge-before-flush", target: "crash_loops", test: "recycling" },
    Planted { bug: "switch-before-sync", target: "crash_loops", test: "manifest" },
    Planted { bug: "second-name-reused", target: "crash_loops", test: "mixed" },
    Planted { bug: "names-found-not-synced", target: "disk_faults", test: "every_operation_fails_at_every_place" },
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
pub(crate) fn run(only: Option<&str>) -> Outcome {
    let names = bug_names();
    if let Some(only) = only.filter(|only| !names.contains(only)) {
        return Err(format!("{only} is not a planted bug; they are: {}", names.join(", ")));
    }
    if TABLE.is_empty() {
        eprintln!("{} bugs can be planted; none has a test in crates/xtask/src/planted.rs yet", names.len());
        return Ok(());
    }
    let executables = build()?;
    let mut clean: BTreeMap<(&str, &str), Run> = BTreeMap::new();
    let mut report = String::from("\n");
    let mut bad = 0;
    for bug in names.iter().filter(|bug| only.is_none_or(|only| only == **bug)) {
        let entries: Vec<&Planted> = TABLE.iter().filter(|entry| entry.bug == *bug).collect();
        if entries.is_empty() {
            bad += 1;
            add_row(&mut report, bug, "-", "MISSED: it has no test");
        }
        for entry in entries {
            let Planted { target, test, .. } = *entry;
            let executable =
                executables.get(target).ok_or_else(|| format!("ferrisdb-storage has no test target {target}"))?;
            let without = clean.entry((target, test)).or_insert_with(|| run_test(executable, test, None));
            let verdict = match without {
                Run::Passed => verdict_of(&run_test(executable, test, Some(bug))),
                Run::Failed => Err("WRONG: the test fails without the bug".to_string()),
                Run::Other(what) => Err(format!("WRONG: without the bug, {what}")),
            };
            bad += usize::from(verdict.is_err());
            let verdict = verdict.unwrap_or_else(|wrong| wrong);
            eprintln!("{bug}: {target}::{test}: {verdict}");
            add_row(&mut report, bug, &format!("{target}::{test}"), &verdict);
        }
    }
    eprintln!("{report}");
    if bad == 0 { Ok(()) } else { Err(format!("{bad} of the lines above are not `caught`")) }
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

/// Builds the storage crate's tests with the bugs in and returns the executable of each target.
fn build() -> Result<BTreeMap<String, PathBuf>, String> {
    build_tests("ferrisdb-storage", &["--lib", "--tests"])
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
    use std::collections::BTreeSet;

    use super::*;

    /// The list in the storage crate can be read, and the table names only what is in it.
    #[test]
    fn the_table_names_only_planted_bugs() {
        let names = bug_names();
        assert!(names.len() >= 12, "{names:?}");
        assert!(names.contains(&"skip-wal-sync"), "{names:?}");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name occurs twice: {names:?}");
        for entry in TABLE {
            assert!(names.contains(&entry.bug), "{} is not a planted bug", entry.bug);
        }
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
