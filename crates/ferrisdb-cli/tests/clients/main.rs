//! `serve`, the one-shot commands and the shell, as people and scripts use them: over a real port, and on a directory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod cluster;
mod damaged;
mod held;
mod hostile;
mod interrupted;
mod locked;
#[path = "../served/mod.rs"]
mod served;
mod silent;
mod terminal;
mod transfer;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than anything that a test waits for takes on any machine.
const NEVER: Duration = Duration::from_secs(120);

const VARIABLES: [&str; 3] = ["FERRISDB_CONNECT", "FERRISDB_DATA", "FERRISDB_TIMEOUT"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output, standard error.
fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    // A kill has no code.
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    told(&command(arguments).output().unwrap())
}

/// What it prints, if it succeeds.
fn ok(arguments: &[&str]) -> String {
    let (code, out, error) = run(arguments);
    assert_eq!((code, without_founding(&error)), (0, ""), "{arguments:?}");
    out
}

/// What it says on standard error but that it has made a new database.
fn without_founding(error: &str) -> &str {
    match error.split_once('\n') {
        Some((first, rest)) if first.starts_with("a new database in ") => rest,
        _ => error,
    }
}

fn shell(place: &[&str], input: &str) -> (i32, String, String) {
    let mut child = command(&[&["shell"], place].concat()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    told(&child.wait_with_output().unwrap())
}

/// Waits for a condition, for as long as no machine needs.
#[expect(clippy::disallowed_methods, reason = "a test that waits for other processes")]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let pause = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    while !is_so() {
        assert!(waited < NEVER, "it never was so: {what}");
        std::thread::sleep(pause);
        waited += pause;
    }
}

/// Waits for what a process writes, and kills the process if that takes for ever: then what it writes has an end, and so has the wait.
fn bounded<T>(process: Pid, what: &str, wait: impl FnOnce() -> T) -> T {
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(NEVER) == Err(RecvTimeoutError::Timeout) {
                eprintln!("killed after {NEVER:?}, for it never was so: {what}");
                kill_process(process, Signal::KILL).unwrap();
            }
        });
        // Gone at the end of this wait, also if it ends by a panic.
        let _done = done;
        wait()
    })
}

/// An address of this test program's own on loopback, for servers that are started again at the same port: nobody else takes it meanwhile.
fn own_address() -> String {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    format!("127.{}.{c}.{d}:0", 64 + b % 64)
}

/// A server in a process of its own, which dies with it.
struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    head: String,
    address: String,
    data: String,
}

impl Server {
    fn start(directory: &Path, arguments: &[&str]) -> Server {
        let data = directory.to_str().unwrap();
        let mut command = command(&[&["serve", "--data", data], arguments].concat());
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.env("FERRISDB_DRAIN_TIMEOUT", "3s");
        Server::started(&mut command, directory)
    }

    fn started(command: &mut Command, directory: &Path) -> Server {
        let data = directory.to_str().unwrap();
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut head = String::new();
        let address = bounded(Pid::from_child(&child), "a server starts", || {
            loop {
                let start = head.len();
                if out.read_line(&mut head).unwrap() == 0 {
                    let mut error = String::new();
                    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                    panic!("it did not start: {head}{error}");
                }
                if let Some(rest) = head[start..].strip_prefix("listening on ") {
                    return rest.split(';').next().unwrap().to_owned();
                }
            }
        });
        Server { child, out, head, address, data: data.to_owned() }
    }

    fn place(&self) -> [&str; 2] {
        ["--connect", &self.address]
    }

    fn ok(&self, arguments: &[&str]) -> String {
        ok(&[arguments, &self.place()].concat())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM; what it said on standard output since its start, and its log.
    fn stop(self) -> (String, String) {
        self.stop_with(Signal::TERM)
    }

    fn stop_with(mut self, signal: Signal) -> (String, String) {
        self.signal(signal);
        let (mut said, mut log) = (String::new(), String::new());
        bounded(Pid::from_child(&self.child), &format!("a server stops by {signal:?}"), || {
            self.out.read_to_string(&mut said).unwrap();
            self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        });
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {log}");
        (said, log)
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGKILL, and another process with the same database at the same address, which is to be this program's own.
    fn kill_and_start_again(self, directory: &Path) -> Server {
        let address = self.address.clone();
        self.kill();
        Server::start(directory, &["--listen", &address])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` and `kill` there is nothing left to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Of several addresses one that answers is enough, from an option or from the environment; if none does, the error has every reason.
#[test]
fn several_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    // Nobody listens on port 1, so that whichever is tried first, one in two runs finds it.
    let list = format!("127.0.0.1:1,{}", server.address);
    ok(&["set", "a", "1", "--connect", &list]);
    for _ in 0..4 {
        assert_eq!(ok(&["get", "a", "--connect", &list]), "1\n");
    }
    let output = command(&["get", "a"]).env("FERRISDB_CONNECT", &list).output().unwrap();
    assert_eq!(told(&output), (0, "1\n".to_owned(), String::new()));
    server.stop();
    let (code, _, error) = run(&["get", "a", "--connect", &list]);
    assert_eq!(code, 1);
    assert!(error.contains("none of 2 addresses can be used: cannot connect to 127.0.0.1:1: "), "{error}");
    let (code, _, error) = run(&["get", "a", "--connect", "127.0.0.1:1,localhost"]);
    assert_eq!(code, 2);
    assert!(error.contains("--connect: ") && error.contains("`localhost` is not an address"), "{error}");
}

/// Everything that the one-shot commands can do, on a directory.
#[test]
fn one_shots_on_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let data = ["--data", path.to_str().unwrap()];
    let ok = |arguments: &[&str]| ok(&[arguments, &data].concat());
    assert_eq!(run(&[&["get", "a"], &data[..]].concat()).0, 1, "reading founds no database");

    let (code, out, error) = run(&[&["set", "a", "1"], &data[..]].concat());
    assert!(code == 0 && out.starts_with("committed at version "), "{out}{error}");
    assert_eq!(error, format!("a new database in {}\n", path.display()), "a name may be mistyped");
    assert_eq!(run(&[&["set", "a", "1"], &data[..]].concat()).2, "");
    assert_eq!(ok(&["get", "a"]), "1\n");
    ok(&["set", r"b\x00\\", r"\xff\x0a"]);
    assert_eq!(ok(&["get", r"b\x00\\"]), "\\xff\\x0a\n");
    assert_eq!(ok(&["range", "--prefix", ""]), "rows\n  key      value\n  a        1\n  b\\x00\\\\  \\xff\\x0a\n");
    let json: Value =
        serde_json::from_str(&ok(&["range", "a", "c", "--reverse", "--limit", "1", "--output", "json"])).unwrap();
    assert_eq!(json["rows"], serde_json::json!([{"key": r"b\x00\\", "value": r"\xff\x0a"}]));
    let json: Value = serde_json::from_str(&ok(&["set", "c", "-3", "--output", "json"])).unwrap();
    assert!(json["committed_version"].as_u64().unwrap() > 0);

    let (code, out, error) = run(&[&["get", "nothing"], &data[..]].concat());
    assert_eq!((code, out.as_str(), error.as_str()), (4, "", "not found: nothing has no value\n"));
    let (code, out, error) = run(&[&["get", "nothing", "--output", "json"], &data[..]].concat());
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["error"]["name"], "not_found", "{error}");
    assert_eq!((code, out.as_str()), (4, "{\n\"key\":\"nothing\",\n\"value\":null\n}\n"));

    ok(&["clear", "a"]);
    let long = "x".repeat(10_001);
    assert_eq!(ok(&["clear", &long]), "nothing to do: no key is as long as this one, 10001 bytes\n");
    assert_eq!(ok(&["clear", &long, "--output", "json"]), "{\"committed_version\":null}\n");
    ok(&["clear", "--range", "b", "c"]);
    assert_eq!(ok(&["range", "--prefix", ""]), "rows\n  key  value\n  c    -3\n");
    for whole in [&["--prefix", ""][..], &["--range", "", r"\xff"]] {
        let (code, out, error) = run(&[&["clear"], whole, &data[..]].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{error}");
        assert!(error.contains("--all"), "{error}");
    }
    assert_eq!(ok(&["get", "c"]), "-3\n");
    ok(&["clear", "--all"]);
    assert_eq!(ok(&["range", "", "z"]), "rows\n  key  value\n");

    // Raw bytes in and out, and a value that is longer than any line.
    let bytes: Vec<u8> = (0..=255).cycle().take(90_000).collect();
    let mut child = command(&[&["set", "raw", "--stdin"], &data[..]].concat()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(command(&[&["get", "raw", "--raw"], &data[..]].concat()).output().unwrap().stdout, bytes);

    let (code, _, error) = run(&[&["set", r"\xff/x", "1"], &data[..]].concat());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("key_outside_legal_range (2004)") && error.contains("--system"), "{error}");
    let (code, out, error) = run(&[&["range", "", r"\xff\xff"], &data[..]].concat());
    assert_eq!((code, out.as_str()), (1, ""), "no table before an error: {error}");
    ok(&["set", r"\xff/x", "1", "--system"]);
    assert_eq!(ok(&["get", r"\xff/x", "--system"]), "1\n");

    // The environment names the directory; an option beats it.
    let output = command(&["get", "raw", "--output", "json"]).env("FERRISDB_DATA", &path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = command(&["get", "raw", "--connect", "127.0.0.1:1"]).env("FERRISDB_DATA", &path).output().unwrap();
    let (code, _, error) = told(&output);
    assert_eq!(code, 1);
    assert!(error.starts_with("error: cannot connect to 127.0.0.1:1: ") && error.contains("ferrisdb serve"), "{error}");

    assert!(ok(&["status"]).starts_with("database                  available\n"));
    let status: Value = serde_json::from_str(&ok(&["status", "--json"])).unwrap();
    assert_eq!(status["client"]["database_status"]["available"], true);
    let verify = run(&["verify", path.to_str().unwrap()]);
    assert_eq!(verify.0, 0, "{verify:?}");
}

/// A server answers, says how it is, stops gracefully on SIGTERM, and what was set is there again.
#[test]
fn a_server_is_used_stopped_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--log-format", "json", "--connections-max", "100"]);
    assert!(
        server.head.contains("connections_max              100                          command line"),
        "{}",
        server.head
    );
    assert!(server.head.contains("drain_timeout                3 s                          environment"));
    assert!(!server.head.contains("WARNING"), "{}", server.head);
    server.ok(&["set", "hello", "world"]);
    assert_eq!(server.ok(&["get", "hello"]), "world\n");

    let held = run(&["get", "hello", "--data", directory.path().to_str().unwrap()]);
    assert_eq!(held.0, 1);
    assert!(held.2.contains("in use by process"), "{}", held.2);

    let status: Value = serde_json::from_str(&server.ok(&["status", "--json"])).unwrap();
    let cluster = &status["cluster"];
    assert_eq!(cluster["processes"]["0"]["address"], server.address.as_str());
    assert_eq!((&cluster["insecure"], &cluster["messages"]), (&false.into(), &Value::Array(Vec::new())));
    let requests = |method: &str| {
        let method = &cluster["rpc"]["methods"][method];
        method["inline"].as_u64().unwrap() + method["later"].as_u64().unwrap()
    };
    assert_eq!((requests("commit"), requests("get")), (1, 1), "{cluster}");
    assert_eq!(cluster["rpc"]["connections_total"], 3);
    // The server may not have noticed yet that the earlier ones are gone.
    wait_until("who asks is alone", || {
        let status: Value = serde_json::from_str(&server.ok(&["status", "--json"])).unwrap();
        status["cluster"]["rpc"]["connections_open"] == 1
    });
    let table = server.ok(&["status"]);
    assert!(table.contains("connections total  ") && table.contains("requests\n  method"), "{table}");

    let (said, log) = server.stop();
    assert_eq!(said, "stopped\n");
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    for name in ["server.started", "server.stopping", "server.stopped"] {
        assert!(names.contains(&name), "{log}");
    }
    assert!(!log.contains("hello") && !log.contains("world"), "no keys and values in the log");

    let server = Server::start(directory.path(), &[]);
    assert_eq!(server.ok(&["get", "hello"]), "world\n");
}

/// A server whose directory was removed under it does not say at its end that nothing is lost.
#[test]
fn a_removed_directory_is_told_at_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let mut server = Server::start(&path, &[]);
    server.ok(&["set", "a", "1"]);
    std::fs::remove_dir_all(&path).unwrap();
    server.signal(Signal::TERM);
    let mut log = String::new();
    server.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(1), "{log}");
    assert!(log.contains("its files are gone") && !log.contains("nothing acknowledged is lost"), "{log}");
}

/// A terminal that is closed stops a server as SIGTERM does; one that was started with `nohup` it does not. What this test itself was started
/// with does not count: a process has from its parent which signals it ignores, so each server is told.
#[test]
fn a_hangup_stops_a_server_unless_it_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let start = |launcher: &[&str]| {
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(env!("CARGO_BIN_EXE_ferrisdb"));
        command.args(["serve", "--data", directory.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Server::started(&mut command, directory.path())
    };

    let with_default = ["env", "--default-signal=HUP"];
    if Command::new(with_default[0]).args([with_default[1], "true"]).output().is_ok_and(|tried| tried.status.success())
    {
        let (said, log) = start(&with_default).stop_with(Signal::HUP);
        assert!(said == "stopped\n" && log.contains("SIGHUP"), "{log}");
    } else {
        eprintln!(
            "not tried that a hangup stops a server: `env` of this machine has no --default-signal (GNU coreutils 8.31 and later)"
        );
    }

    let server = start(&["nohup"]);
    server.signal(Signal::HUP);
    server.ok(&["set", "a", "1"]);
    let (_, log) = server.stop();
    assert!(log.contains("SIGTERM") && !log.contains("SIGHUP"), "{log}");
}

/// What was acknowledged before kill -9 is there after it, every time.
#[test]
fn a_killed_server_has_lost_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let server = Server::start(directory.path(), &[]);
        for earlier in 0..round {
            assert_eq!(server.ok(&["get", &format!("round/{earlier}")]), format!("{earlier}\n"));
        }
        server.ok(&["set", &format!("round/{round}"), &round.to_string()]);
        server.kill();
    }
}

/// `status --watch` prints again and again: tables, or a JSON document on each line, also while the server is away.
#[test]
fn a_status_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--listen", &own_address()]);
    let mut child = command(&[&["status", "--watch", "50ms"], &server.place()[..]].concat()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut states = lines.filter(|line| line.starts_with("database ")).take(3);
    assert!(states.all(|line| line.ends_with(" available")));
    child.kill().unwrap();
    child.wait().unwrap();

    let arguments = ["status", "--json", "--watch", "10ms", "--timeout", "5s"];
    let mut child = command(&[&arguments[..], &server.place()].concat()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut documents = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    for _ in 0..3 {
        let document = documents.find(|document| document["cluster"].is_object()).unwrap();
        let engine = &document["cluster"]["storage"]["engine"];
        assert!(engine["memtables"].as_u64().unwrap() >= 1 && engine["block_cache"]["capacity_bytes"].is_number());
        assert_eq!(engine["levels"].as_array().unwrap().len(), 7);
    }
    let address = server.address.clone();
    server.kill();
    assert!(
        documents.find(|document| document["error"].is_string()).unwrap()["error"].as_str().unwrap().contains("help")
    );
    let server = Server::start(directory.path(), &["--listen", &address]);
    assert!(documents.any(|document| document["cluster"]["state"] == "available"), "it is there again");
    server.stop();
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Without --insecure nothing but loopback; with it, a warning at the start, in the log and in the status.
#[test]
fn who_listens_to_everybody_is_warned() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let data = path.to_str().unwrap();
    let mut refused = command(&["serve", "--data", data, "--listen", "0.0.0.0:0"]).spawn().unwrap();
    // One that does start would not end by itself.
    let mut head = String::new();
    BufReader::new(refused.stdout.take().unwrap()).read_line(&mut head).unwrap();
    if !head.is_empty() {
        refused.kill().unwrap();
    }
    let (code, _, error) = told(&refused.wait_with_output().unwrap());
    assert_eq!(head, "");
    assert_eq!(code, 2);
    assert!(error.contains("0.0.0.0:0") && error.contains("--insecure"), "{error}");
    assert!(!path.exists(), "a refused start founds no database");

    let server = Server::start(&path, &["--listen", "0.0.0.0:0", "--insecure"]);
    assert!(server.head.contains("WARNING: 0.0.0.0:"), "{}", server.head);
    let port = server.address.rsplit(':').next().unwrap();
    let connect = format!("127.0.0.1:{port}");
    assert!(ok(&["status", "--connect", &connect]).contains("WARNING"));
    let status: Value = serde_json::from_str(&ok(&["status", "--json", "--connect", &connect])).unwrap();
    assert_eq!(status["cluster"]["insecure"], true);
    let (_, log) = server.stop();
    assert!(log.contains("WARN") && log.contains("server.insecure"), "{log}");
}

/// A script of all commands, and what it prints.
#[test]
fn a_shell_runs_commands_from_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let data = ["--data", directory.path().to_str().unwrap()];
    let (code, out, error) = shell(
        &data,
        r#"
# Comments and empty lines are nothing.
begin
set a 1
set "b c" \x00
get a
commit
get b
begin
clear a
get a
rollback
begin
set a 2
reset
commit
getrange "" z
set ("user", 42) ("Ada", true, 1.5)
mode tuple
getrange ("user",)
mode hex
get a
mode json
get a
getrange a b
clear a
 \mode table
clearrange "b c" z
getrange "" z
\timing on
get a
\exit
get never
"#,
    );
    assert_eq!((code, without_founding(&error)), (0, ""), "{out}");
    let mut lines: Vec<&str> = out.lines().collect();
    let time = lines.pop().unwrap();
    assert!(time.ends_with(" ms"), "{out}");
    let shown: Vec<String> = lines
        .iter()
        .map(|line| match line.split_once("committed at version ") {
            Some(_) => "committed at version N".to_owned(),
            None if line.contains("committed_version") => "{committed_version}".to_owned(),
            None => (*line).to_owned(),
        })
        .collect();
    let expected = r#"1
committed at version N
not found
not found
committed; it wrote nothing
a = 1
b c = \x00
2 rows
committed at version N
("user", 42) = ("Ada", true, 1.5)
1 row
31
{"key":"a","value":"1"}
{"rows":[{"key":"a","value":"1"}]}
{committed_version}
committed at version N
\x02user\x00\x15* = \x02Ada\x00'!\xbf\xf8\x00\x00\x00\x00\x00\x00
1 row
not found"#;
    assert_eq!(shown.join("\n"), expected);
}

/// The first command that fails ends a script with exit code 1, the line and the remedy; nothing after it is done.
#[test]
fn a_script_ends_at_its_first_error() {
    let directory = tempfile::tempdir().unwrap();
    let data = ["--data", directory.path().to_str().unwrap()];
    for (script, what) in [
        ("set a 1\nnonsense\nset a 2\n", "line 2: `nonsense` is no command"),
        ("set a\n", "set: VALUE is missing\n  help: set KEY VALUE"),
        ("set\n", "set: KEY is missing"),
        ("set a b c d\n", "set: `c` is one argument too many\n  help: set KEY VALUE"),
        ("getrange\n", "getrange: BEGIN is missing"),
        (
            "getrange a z limit 1\n",
            "getrange: `limit` is no number of rows\n  help: getrange BEGIN [END] [LIMIT] [reverse]",
        ),
        ("getrange a z 1 2 reverse\n", "getrange: `2` is one argument too many"),
        ("\\timing\n", "timing: on|off is missing"),
        ("\\timing maybe\n", "timing: `maybe` is not what it takes\n  help: timing on|off"),
        ("commit now\n", "commit: `now` is one argument too many"),
        ("commit\n", "no transaction is under way"),
        ("begin\nbegin\n", "line 2: a transaction is under way"),
        ("get a\\n\n", "is no escape"),
        ("set \\xff/a 1\n", "key_outside_legal_range (2004)"),
        ("begin\nset \\xff/a 1\n", "line 2: key_outside_legal_range (2004)"),
        ("begin\nset a 3\n", "ended within a transaction"),
        ("mode wide\n", "there is no mode `wide`"),
        ("getrange a b many\n", "`many` is no number of rows"),
    ] {
        let (code, _, error) = shell(&data, script);
        assert_eq!(code, 1, "{script}");
        assert!(without_founding(&error).starts_with("error: ") && error.contains(what), "{script}{error}");
    }
    assert_eq!(ok(&[&["get", "a"], &data[..]].concat()), "1\n");
}

/// Two shells on one server: the second's write makes the first's commit a conflict, told with the key; a watch sees a write.
#[test]
fn shells_meet_on_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    server.ok(&["set", "a", "1"]);

    let mut first = command(&[&["shell"], &server.place()[..]].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = first.stdin.take().unwrap();
    let mut output = BufReader::new(first.stdout.take().unwrap());
    input.write_all(b"begin\nget a\nset b 1\n").unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "1\n");
    server.ok(&["set", "a", "2"]);
    input.write_all(b"commit\n").unwrap();
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    let (code, _, error) = told(&first.wait_with_output().unwrap());
    assert_eq!((code, rest.as_str()), (1, "conflict in a .. a\\x00\n"));
    assert!(error.contains("line 4: the transaction is over: not_committed (1020)"), "{error}");

    let mut watcher = command(&[&["shell"], &server.place()[..]].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = watcher.stdin.take().unwrap();
    input.write_all(b"get a\nwatch a\n").unwrap();
    drop(input);
    let mut output = BufReader::new(watcher.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "2\n");
    // The watch may be set only after the first of these; one of them it sees.
    let mut value = 3;
    while watcher.try_wait().unwrap().is_none() {
        server.ok(&["set", "a", &value.to_string()]);
        value += 1;
        assert!(value < 10_000, "the watch is not told");
    }
    let mut seen = String::new();
    output.read_to_string(&mut seen).unwrap();
    assert!(seen.trim().parse::<i32>().unwrap() > 2, "{seen}");
}
