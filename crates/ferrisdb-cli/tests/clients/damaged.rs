//! The directory of a process of a cluster, whole and damaged, as somebody sees it who looks after it.

use std::path::Path;

use serde_json::Value;

use super::{Server, command, ok, run, told};

fn json(arguments: &[&str]) -> (i32, Value) {
    let (code, out, error) = run(&[arguments, &["--output", "json"]].concat());
    (code, serde_json::from_str(&out).unwrap_or_else(|problem| panic!("{problem}: {out}{error}")))
}

/// Flips a bit in the middle of a value that is all `x`.
#[expect(clippy::disallowed_methods, reason = "it damages a file as no database would")]
fn flip_in_value(directory: &Path) -> String {
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(place) = bytes.windows(500).position(|window| window == [b'x'; 500]) {
            bytes[place + 250] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return path.to_str().unwrap().to_owned();
        }
    }
    panic!("the value is in no file of {}", directory.display());
}

/// `verify` and `inspect dir` know the parts of a process's directory. With its log damaged, and nobody else to go on, it does not start, says what is damaged where and what to do, and changes
/// nothing: the bit mended, it is what it was.
#[test]
fn a_process_of_a_cluster_is_verified() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let server = Server::start(directory.path(), &["--cluster"]);
    server.ok(&["set", "large", &"x".repeat(1000)]);
    server.ok(&["set", "small", "1"]);
    let (code, _, error) = run(&["verify", data]);
    assert!(code == 1 && error.contains("is in use by"), "{code} {error}");
    server.stop();

    let (code, value) = json(&["verify", data]);
    assert_eq!((code, &value["process"], &value["problems_found"]), (0, &1.into(), &0.into()), "{value}");
    assert!(value["raft_records"].as_u64() > Some(2) && value["raft_voted_in_term"].as_u64() > Some(0), "{value}");
    assert!(value["raft_problems"].as_array().is_some_and(Vec::is_empty) && value["tables"].is_u64(), "{value}");
    let (code, value) = json(&["inspect", "dir", data]);
    let parts: Vec<_> = value["parts"].as_array().unwrap().iter().filter_map(|part| part["part"].as_str()).collect();
    assert!(code == 0 && parts == ["process", "raft", "storage"] && value["files"].is_array(), "{value}");

    let damaged = flip_in_value(&directory.path().join("raft"));
    let (code, value) = json(&["verify", data]);
    let problem = value["raft_problems"][0]["problem"].as_str().unwrap_or_default();
    assert!(code == 3 && problem.contains(&damaged) && problem.contains("offset"), "{value}");
    let output = command(&["serve", "--data", data, "--listen", "127.0.0.1:0"]).output().unwrap();
    let (code, _, error) = told(&output);
    assert!(code == 1 && error.contains(&damaged) && error.contains("Nothing was changed"), "{code} {error}");

    // Back to what it was.
    let bytes = flip_back(&damaged);
    assert!(bytes.windows(1000).any(|window| window == [b'x'; 1000]));
    let server = Server::start(directory.path(), &[]);
    assert_eq!(ok(&["get", "small", "--connect", &server.address]), "1\n");
    server.stop();
}

/// The one byte between the `x` that is none.
#[expect(clippy::disallowed_methods, reason = "it mends a file as no database would")]
fn flip_back(path: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    let place = bytes.windows(200).position(|window| window == [b'x'; 200]).unwrap();
    let wrong = place + bytes[place..].iter().position(|&byte| byte != b'x').unwrap();
    bytes[wrong] ^= 1;
    std::fs::write(path, &bytes).unwrap();
    bytes
}
