//! Runs `ferrisdb bench` as a user does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod served;

use std::process::{Command, Output, Stdio};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferrisdb"))
        .arg("bench")
        .args(arguments)
        .env_remove("FERRISDB_CONNECT")
        .env_remove("FERRISDB_DATA")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn measured(arguments: &[&str]) -> serde_json::Value {
    let output = bench(&[arguments, &["--output", "json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A short measurement, or a longer one if the machine was busy with other things and nothing came to its end in that.
fn measured_briefly(arguments: &[&str]) -> serde_json::Value {
    for seconds in ["0.3", "3", "30"] {
        let report = measured(&[arguments, &["--seconds", seconds]].concat());
        if report["transactions"] != 0 {
            return report;
        }
    }
    measured(&[arguments, &["--seconds", "300"]].concat())
}

/// Every workload runs, does what its name says, and finds every value as it was written.
#[test]
fn every_workload_runs() {
    let workloads =
        ["ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f", "bank", "hot-key", "commit-only", "read-only"];
    for workload in workloads {
        let report = measured_briefly(&[workload, "--keys", "500", "--clients", "8"]);
        let number = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("{workload}: {field} in {report}"));
        assert_eq!(report["workload"], workload);
        assert!(number("transactions") > 0 && number("transactions_per_second") > 0, "{report}");
        assert!(number("p50_us") <= number("p99_us") && number("p99_us") <= number("max_us"), "{report}");
        assert_eq!(number("unknown_outcomes"), 0, "{report}");
        match workload {
            // Both are rounded.
            "read-only" => {
                assert!(number("reads_per_second").abs_diff(10 * number("transactions_per_second")) <= 5, "{report}")
            }
            "commit-only" => assert_eq!((number("reads_per_second"), number("conflicts")), (0, 0), "{report}"),
            "bank" => assert_eq!(report["proven"], "the total of 500 accounts is 500000, as before"),
            // Conflicts there may be none: on a busy machine a commit can be over before its client's thread goes on.
            "hot-key" => assert!(report["proven"].as_str().unwrap().contains("one for each of"), "{report}"),
            _ => assert!(number("reads_per_second") > 0, "{report}"),
        }
    }
}

/// A server is measured over one connection, and what is proven of it is proven too.
#[test]
fn a_served_database_is_measured() {
    let database = ferrisdb::Database::open_in_memory().unwrap();
    served::served(&database, |address| {
        for workload in ["ycsb-e", "bank", "hot-key", "read-only"] {
            let report = measured_briefly(&[workload, "--keys", "500", "--clients", "16", "--connect", address]);
            assert!(report["transactions"].as_u64().unwrap() > 0, "{report}");
            assert_eq!(report["proven"].is_string(), ["bank", "hot-key"].contains(&workload), "{report}");
        }
        // An option beats the environment.
        let output = Command::new(env!("CARGO_BIN_EXE_ferrisdb"))
            .args(["bench", "read-only", "--seconds", "0.1", "--keys", "100", "--connect", address])
            .env("FERRISDB_DATA", "/nonexistent")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(&format!("database                  {address}\n")), "{text}");
    });
}

/// A database of the user's: rows are left there if they are to be, and otherwise nothing is; what is beside them is not touched.
#[test]
fn it_leaves_a_database_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let rows = || {
        let database = ferrisdb::Database::open(directory.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let all = ferrisdb::KeyRange::new(&b""[..], &b"\xff"[..]);
            let rows = database.run(async |transaction| transaction.get_ranges(all.clone()).collect().await).await;
            database
                .run(async |transaction| {
                    transaction.set(b"mine", b"1");
                    Ok(())
                })
                .await
                .unwrap();
            database.close().await.unwrap();
            rows.unwrap().len()
        })
    };
    assert_eq!(rows(), 0);
    measured(&["ycsb-a", "--seconds", "0.1", "--keys", "300", "--data", path, "--prefix", "m"]);
    // "mine" begins with "m" too: whoever chooses a prefix chooses what is cleared.
    assert_eq!(rows(), 0);
    measured(&["ycsb-a", "--seconds", "0.1", "--keys", "300", "--data", path, "--keep"]);
    assert_eq!(rows(), 301);
    measured(&["ycsb-a", "--seconds", "0.1", "--keys", "300", "--data", path]);
    assert_eq!(rows(), 1);
}

/// An open loop says what it was asked and what it could not begin; the table has the same as the JSON.
#[test]
fn an_open_loop_and_the_table() {
    let report = measured(&["commit-only", "--rate", "200", "--seconds", "0.5", "--keys", "100"]);
    assert_eq!(report["rate_per_second"], 200, "{report}");
    // So many are due in half a second and in the warm-up before it.
    assert!(report["not_begun"].is_number() && report["transactions"].as_u64().unwrap() <= 120, "{report}");
    let output = bench(&["read-only", "--seconds", "0.1", "--keys", "100"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("workload                  read-only\ndatabase                  a temporary directory\n"),
        "{text}"
    );
}

/// Who is not there is named, and so is what to do.
#[test]
fn a_server_that_is_not_there() {
    let output = bench(&["read-only", "--connect", "127.0.0.1:1"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot connect to 127.0.0.1:1") && message.contains("help: "), "{message}");
    let output = bench(&["read-only", "--prefix", ""]);
    assert_eq!(output.status.code(), Some(2), "an empty prefix would clear everything");
}
