//! The command as its users and scripts see it: JSON lines, tables, a plot, and a file to resume from.

use std::path::Path;
use std::process::{Command, Output};

fn bench(directory: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferrisdb-bench"))
        .args(["engines", "--suite", "smoke", "--engines", "memory", "--seconds", "0.05", "--keys", "2000"])
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("cargo builds the binary before its tests")
}

/// One object a line, with the promised keys and no other, one line for each engine and workload.
#[test]
fn json_lines() {
    let directory = tempfile::tempdir().unwrap();
    let output = bench(directory.path(), "--json --runs 2 --workloads fillseq,readrandom,durable-put-1");
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let workloads: Vec<_> = lines.iter().map(|line| line["workload"].as_str().unwrap()).collect();
    assert_eq!(workloads, ["fillseq", "readrandom", "durable-put-1"]);
    for line in &lines {
        let mut keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let promised = [
            "cpu_us_per_op",
            "disk_mib",
            "engine",
            "ops_per_s",
            "p50_us",
            "p999_us",
            "p99_us",
            "rss_mib",
            "workload",
            "write_amp",
        ];
        assert_eq!(keys, promised);
    }
}

/// A second call with the same file measures nothing, prints the same table, and draws the plot.
#[test]
fn resuming_skips_what_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = "--resume results.jsonl --workloads fillrandom,seek10";
    let first = bench(directory.path(), arguments);
    let results = std::fs::read_to_string(directory.path().join("results.jsonl")).unwrap();
    assert_eq!(results.lines().count(), 2, "{first:?}");
    let second = bench(directory.path(), &format!("{arguments} --plot plot.svg"));
    assert_eq!(std::fs::read_to_string(directory.path().join("results.jsonl")).unwrap(), results);
    assert_eq!(String::from_utf8_lossy(&second.stderr), "");
    let table = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text[text.find("### Throughput").unwrap()..].to_owned()
    };
    assert_eq!(table(&first), table(&second));
    assert!(std::fs::read_to_string(directory.path().join("plot.svg")).unwrap().contains("seek10"));
}
