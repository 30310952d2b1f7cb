//! Fuzzing without a tool to install: builds the targets of `fuzz/` as `cargo fuzz` does, and runs each for a while.
//!
//! Coverage feedback and the address sanitizer are unstable flags; `RUSTC_BOOTSTRAP` lets the stable compiler take them. The bodies of
//! the targets are called by ordinary tests too (`testing/decoders.rs` of the storage crate), so this only adds time and guidance.

use std::path::Path;
use std::process::Command;

use crate::checks::WORKSPACE_FLAGS;
use crate::{Outcome, cargo, must_succeed, root};

/// What libFuzzer wants to know of the code: every edge, and the operands of comparisons.
const COVERAGE_FLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The list of targets.
const MANIFEST: &str = include_str!("../../../fuzz/Cargo.toml");

/// The largest input, in bytes: two WAL segments of the examples.
const INPUT_BYTES_MAX: u32 = 10_000;

pub(crate) fn run(only: Option<&str>, seconds: u32) -> Outcome {
    let targets: Vec<&str> = targets().into_iter().filter(|target| only.is_none_or(|only| only == *target)).collect();
    if targets.is_empty() {
        return Err(format!("no such target; there are: {}", self::targets().join(", ")));
    }
    let fuzz = root().join("fuzz");
    must_succeed(command("run").args(["--bin", "seeds"]))?;
    let mut build = command("build");
    build.args(["--release", "--bins", "--target", env!("XTASK_HOST")]);
    build.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} {COVERAGE_FLAGS}"));
    must_succeed(&mut build)?;
    let binaries = root().join("target/fuzz").join(env!("XTASK_HOST")).join("release");
    for target in targets {
        let directory = |kind: &str| {
            let path = fuzz.join(kind).join(target);
            make(&path).map(|()| path)
        };
        let (corpus, artifacts) = (directory("corpus")?, directory("artifacts")?);
        eprintln!("== {target}");
        let mut run = Command::new(binaries.join(target));
        run.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={INPUT_BYTES_MAX}"));
        run.arg(format!("-artifact_prefix={}/", artifacts.display())).args(["-timeout=20", "-verbosity=0"]);
        run.args(["-print_final_stats=1"]).arg(corpus);
        must_succeed(&mut run)?;
    }
    Ok(())
}

/// The targets, by name.
fn targets() -> Vec<&'static str> {
    let path = |line: &'static str| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\"");
    MANIFEST.lines().filter_map(path).collect()
}

/// Cargo on the fuzz crate, with a target directory of its own.
fn command(what: &str) -> Command {
    let mut command = cargo();
    command.args([what, "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target/fuzz"]);
    command
}

#[expect(clippy::disallowed_methods, reason = "a chore's own directory; the door is for the engine")]
fn make(path: &Path) -> Outcome {
    std::fs::create_dir_all(path).map_err(|error| format!("cannot create {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manifest of the fuzz crate can be read, and every target has its file.
    #[test]
    fn every_target_has_its_file() {
        let targets = targets();
        assert!(targets.len() > 20 && targets.contains(&"operations"), "{targets:?}");
        for target in targets {
            assert!(root().join(format!("fuzz/fuzz_targets/{target}.rs")).is_file(), "{target}");
        }
    }
}
