//! Tests that need another build of the storage engine: loom, shuttle, the address sanitizer.

use crate::{Outcome, cargo, must_succeed};

/// The flag of `.cargo/config.toml`, which a `RUSTFLAGS` variable replaces rather than extends.
const WORKSPACE_FLAGS: &str = "--cfg tokio_unstable";

/// Every interleaving. The test profile is optimised, without which loom is some ten times slower.
pub(crate) fn loom(filter: Option<&str>) -> Outcome {
    must_succeed(
        cargo()
            .args(["test", "--package", "ferrisdb-storage", "--lib", "--target-dir", "target/loom"])
            .arg(filter.unwrap_or("loom_tests"))
            .env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} --cfg loom")),
    )
}

/// Random interleavings; a failing one prints the schedule that replays it.
pub(crate) fn shuttle(filter: Option<&str>) -> Outcome {
    must_succeed(
        cargo()
            .args(["test", "--package", "ferrisdb-storage", "--lib", "--target-dir", "target/shuttle"])
            .arg(filter.unwrap_or("shuttle_tests"))
            .env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} --cfg shuttle")),
    )
}

/// The sanitizer is an unstable flag; `RUSTC_BOOTSTRAP` lets the stable compiler take it. It wants an explicit target,
/// so that build scripts and procedural macros are built without it.
pub(crate) fn asan(filter: &str) -> Outcome {
    let target = env!("XTASK_HOST");
    must_succeed(
        cargo()
            .args(["test", "--package", "ferrisdb-storage", "--lib", "--target-dir", "target/asan", "--target", target])
            .arg(filter)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", format!("{WORKSPACE_FLAGS} -Zsanitizer=address")),
    )
}
