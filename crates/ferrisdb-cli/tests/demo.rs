//! Runs the demo as a user does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn demo(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferrisdb"))
        .args(["demo", "--directory"])
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    directory.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// The main job: it loads, reads, scans, runs a bank, clears, is killed three times, loses nothing, and cleans up.
#[test]
fn the_demo_loses_nothing_and_removes_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let starts: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    let starts: Vec<&str> = starts.into_iter().take_while(|start| *start != "ferrisdb").collect();
    let crash = ["kill", "recover"];
    let expected =
        [&["load", "read", "scan", "scan", "bank", "clear"][..], &crash, &crash, &crash, &["verify"]].concat();
    assert_eq!(starts, expected, "{text}");
    assert!(text.contains("34,888 Unicode characters"), "{text}");
    assert!(text.contains("Nothing acknowledged was lost") && text.contains("always 20,000"), "{text}");
    assert!(text.contains("Try next:\n  ferrisdb set hello world"), "{text}");
    assert_eq!(names(directory.path()).len(), 0, "the directory is removed");
}

/// The same as JSON, with the directory kept.
#[test]
fn the_demo_speaks_json_and_can_keep_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path(), &["--output", "json", "--keep"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["nothing_acknowledged_was_lost"], true, "{text}");
    assert_eq!(value["steps"].as_array().unwrap().len(), 13, "{text}");
    assert_eq!(names(directory.path()).len(), 1);

    // What is left is a sound database.
    let kept = directory.path().join(&names(directory.path())[0]);
    let verify = Command::new(env!("CARGO_BIN_EXE_ferrisdb")).arg("verify").arg(&kept).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    let get = ["get", "char/0000E9", "--data"];
    let get = Command::new(env!("CARGO_BIN_EXE_ferrisdb")).args(get).arg(&kept).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&get.stdout), "Ll\\x09LATIN SMALL LETTER E WITH ACUTE\n");
}

/// A cluster whose processes are killed loses nothing, and nothing of it is left.
#[test]
fn the_demo_of_a_cluster_survives_kills() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path(), &["--nodes", "3", "--chaos", "--seconds", "6"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("kill -9 process ") && text.contains("has what it missed"), "{text}");
    assert!(text.contains("the total was 20,000 in"), "{text}");
    assert!(text.contains("Nothing acknowledged was lost") && text.contains("All 3 processes have the same"), "{text}");
    assert_eq!(names(directory.path()).len(), 0, "the directory is removed");
    let addresses = addresses(text.lines().map(str::to_owned));
    assert_eq!(addresses.len(), 3, "{text}");
    for address in addresses {
        TcpStream::connect(&address).expect_err("no process is left");
    }
}

/// The proof as JSON, without kills.
#[test]
fn the_demo_of_a_cluster_speaks_json() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path(), &["--nodes", "3", "--seconds", "1", "--output", "json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["nothing_acknowledged_was_lost"], true, "{text}");
    assert!(value["transfers"].as_u64().unwrap() > 0 && value["kills"] == 0, "{text}");
}

/// However the demo ends, its processes end with it.
#[test]
fn a_demo_that_is_killed_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferrisdb"))
        .args(["demo", "--nodes", "3", "--seconds", "3600", "--directory"])
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let addresses = addresses(lines.take_while(|line| !line.contains(" s ")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(addresses.len(), 3);
    for address in addresses {
        let mut waited = Duration::ZERO;
        while TcpStream::connect(&address).is_ok() {
            assert!(waited < Duration::from_secs(120), "a process outlives the demo");
            #[expect(clippy::disallowed_methods, reason = "another process takes real time to end")]
            std::thread::sleep(Duration::from_millis(10));
            waited += Duration::from_millis(10);
        }
    }
}

/// Where the demo says that its processes listen.
fn addresses(lines: impl Iterator<Item = String>) -> Vec<String> {
    lines.filter_map(|line| Some(line.strip_prefix("  process ")?.split_once(" at ")?.1.to_owned())).collect()
}
