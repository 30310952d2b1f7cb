//! Tests that need another build of the storage engine: loom, shuttle, the address sanitizer.

use std::process::{Command, Stdio};

use crate::{Outcome, cargo, must_succeed};

/// The flag of `.cargo/config.toml`, which a `RUSTFLAGS` variable replaces rather than extends.
pub(crate) const WORKSPACE_FLAGS: &str = "--cfg tokio_unstable";

/// Every interleaving. The test profile is optimised, without which loom is some ten times slower.
pub(crate) fn loom(filter: Option<&str>) -> Outcome {
    run(&|| {
        let mut command = unit_tests("target/loom", filter.unwrap_or("loom_tests"));
        command.env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} --cfg loom"));
        command
    })
}

/// Random interleavings; a failing one prints the schedule that replays it.
pub(crate) fn shuttle(filter: Option<&str>) -> Outcome {
    run(&|| {
        let mut command = unit_tests("target/shuttle", filter.unwrap_or("shuttle_tests"));
        command.env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} --cfg shuttle"));
        command
    })
}

/// The sanitizer is an unstable flag; `RUSTC_BOOTSTRAP` lets the stable compiler take it. It wants an explicit target,
/// so that build scripts and procedural macros are built without it.
pub(crate) fn asan(filter: &str) -> Outcome {
    run(&|| {
        let mut command = unit_tests("target/asan", filter);
        command.args(["--target", env!("XTASK_HOST")]);
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} -Zsanitizer=address"));
        command
    })
}

/// The storage crate's unit tests of that name, in a target directory of their own.
fn unit_tests(target_directory: &str, filter: &str) -> Command {
    let mut command = cargo();
    command.args(["test", "--package", "ferrisdb-storage", "--lib", "--target-dir", target_directory, filter]);
    command
}

/// Runs the tests. That none of that name exists is a failure: a check that checks nothing must not pass.
fn run(command: &dyn Fn() -> Command) -> Outcome {
    let mut list = command();
    list.args(["--", "--list"]).stderr(Stdio::inherit());
    let output = list.output().map_err(|error| format!("cannot start {list:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{list:?} ended with {}", output.status));
    }
    if !String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")) {
        return Err(format!("{list:?} finds no test"));
    }
    must_succeed(&mut command())
}
