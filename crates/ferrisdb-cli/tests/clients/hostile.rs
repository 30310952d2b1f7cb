//! Clients that mean harm, or are broken, at a real server over real TCP. Each kind is a process of its own: this test program, started again.
//!
//! # The budget
//! The server's memory (RssAnon) grows by no more than 32 KiB for each connection and what `--request-memory` and `--reply-memory` say (`ServeOptions`), and
//! by what the database itself holds for the honest client's rows, for which [`DATABASE_BYTES`] are allowed.
//!
//! What others wait for beside them is shown where nothing depends on the machine: in the transport's tests, on one thread, counted in questions.

use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ferrisdb_core::{Random as _, SplitMix64};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use super::{Server, ok, run, wait_until};

/// Connections that say nothing, where a process may have so many open files.
const IDLE_MAX: u64 = 10_000;
/// Fewer tell nothing.
const IDLE_MIN: u64 = 1_000;
/// Open files of a process beside those connections, with room.
const FILES: u64 = 1_100;
const PIPELINED: u64 = 1_000_000;
/// Connections of other kinds, with room.
const OTHERS: u64 = 100;
const REQUEST_BYTES: u64 = 32 << 20;
const REPLY_BYTES: u64 = 32 << 20;
const DATABASE_BYTES: u64 = 96 << 20;
/// What they are closed for, and how often.
const REASONS: [(&str, u64); 5] =
    [("frame_timeout", 5), ("protocol_error", 9), ("not_ferrisdb", 3), ("http", 1), ("write_timeout", 1)];

/// Which client a process is, and of which server. Set only for those.
const KIND: &str = "FERRISDB_TEST_HOSTILE";
const ADDRESS: &str = "FERRISDB_TEST_ADDRESS";
/// How many connections an idle one opens.
const IDLE: &str = "FERRISDB_TEST_IDLE";

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len() + 4).unwrap();
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(message);
    let check = crc_fast::crc32_iscsi(&bytes);
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes
}

/// A connection that has said hello, and heard one.
fn greeted(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut hello = b"\x89FERRIS\n".to_vec();
    // ClientHello { protocol_min: 1, protocol_max: 1 }
    hello.extend(frame(&[0x08, 1, 0x10, 1]));
    stream.write_all(&hello).unwrap();
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"\x89FERRIS\n");
    take_frame(&mut stream);
    stream
}

fn take_frame(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut rest = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut rest).unwrap();
    rest
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
}

/// Request { id, get: Get { key: "k", version: 1 } }: a version that is too old, which is an answer too.
fn get(id: u64) -> Vec<u8> {
    let mut message = vec![0x08];
    varint(id, &mut message);
    message.extend([0x1a, 5, 0x0a, 1, b'k', 0x10, 1]);
    frame(&message)
}

/// Request { id, status: Empty }: a small question with a long answer.
fn status(id: u64) -> Vec<u8> {
    let mut message = vec![0x08];
    varint(id, &mut message);
    message.extend([0x6a, 0]);
    frame(&message)
}

/// Waits until the server closes it.
fn wait_for_end(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Until the test closes our input.
fn wait_for_parent() {
    drop(std::io::stdin().lock().read_to_end(&mut Vec::new()));
}

#[expect(clippy::disallowed_methods, reason = "the processes here live by the real clock")]
fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Who says nothing at all is closed after a minute, and nobody knows how long a machine needs for what the others do.
#[expect(
    clippy::disallowed_methods,
    reason = "the processes here live by the real clock, and this thread ends with its process"
)]
fn keep_alive(mut streams: Vec<TcpStream>) {
    drop(std::thread::spawn(move || {
        for id in 1.. {
            pause(15_000);
            for stream in &mut streams {
                stream.write_all(&get(id)).unwrap();
                take_frame(stream);
            }
        }
    }));
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nhostile: {what}").unwrap();
    out.flush().unwrap();
}

/// Not a test: what the processes run that [`hostile_clients`] starts.
#[test]
#[ignore = "hostile_clients starts it"]
fn client() {
    let (Ok(kind), Ok(address)) = (std::env::var(KIND), std::env::var(ADDRESS)) else { return };
    match kind.as_str() {
        "idle" => {
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
            let idle: u64 = std::env::var(IDLE).unwrap().parse().unwrap();
            let streams: Vec<TcpStream> = (0..idle).map(|_| greeted(&address)).collect();
            say(&format!("open {}", streams.len()));
            keep_alive(streams);
            wait_for_parent();
        }
        "pipeline" => {
            let mut stream = greeted(&address);
            let mut writer = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    for first in (0..PIPELINED).step_by(1000) {
                        let requests: Vec<u8> = (first..first + 1000).flat_map(|id| get(id + 1)).collect();
                        writer.write_all(&requests).unwrap();
                    }
                });
                let mut reader = BufReader::with_capacity(1 << 16, &mut stream);
                for _ in 0..PIPELINED {
                    take_frame(&mut reader);
                }
            });
            say(&format!("answered {PIPELINED}"));
        }
        "half" => {
            let mut streams: Vec<TcpStream> = (0..5).map(|_| greeted(&address)).collect();
            for (index, stream) in streams.iter_mut().enumerate() {
                stream.write_all(&get(1)[..3 + index]).unwrap();
            }
            streams.iter_mut().for_each(wait_for_end);
            say("closed 5");
        }
        "huge" => {
            for _ in 0..3 {
                let mut stream = greeted(&address);
                stream.write_all(&[0xff; 4]).unwrap();
                wait_for_end(&mut stream);
                let mut stream = TcpStream::connect(&address).unwrap();
                stream.write_all(b"\x89FERRIS\n\xff\xff\xff\xff").unwrap();
                wait_for_end(&mut stream);
            }
            say("closed 6");
        }
        "garbage" => {
            // The server logs ten such events in a second, and how many it left out: here most shall be named.
            pause(2000);
            let mut random = SplitMix64::new(4711);
            let mut noise =
                |length: usize| -> Vec<u8> { (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect() };
            for _ in 0..3 {
                for is_greeted in [false, true] {
                    let mut stream = if is_greeted { greeted(&address) } else { TcpStream::connect(&address).unwrap() };
                    // It may be closed before all of it is taken.
                    drop(stream.write_all(&noise(100_000)));
                    drop(stream.shutdown(Shutdown::Write));
                    wait_for_end(&mut stream);
                }
            }
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            say("closed 7");
        }
        "deaf" => {
            let mut stream = greeted(&address);
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let (mut next, mut waiting, mut written) = (1, Vec::new(), 0);
            // Until the server has had enough of waiting for us. What the system keeps between us is a few megabytes.
            while written < 256 << 20 {
                if waiting.is_empty() {
                    waiting = (next..next + 10_000).flat_map(status).collect();
                    next += 10_000;
                }
                match stream.write(&waiting) {
                    Ok(length) => {
                        written += length;
                        drop(waiting.drain(..length));
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => {
                        say("closed 1");
                        return;
                    }
                }
            }
            panic!("the server takes no more from whom it cannot answer");
        }
        kind => panic!("no such client: {kind}"),
    }
}

/// A client process.
struct Hostile {
    kind: &'static str,
    child: Child,
}

impl Hostile {
    fn start(kind: &'static str, address: &str, idle: u64) -> Hostile {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hostile::client", "--ignored", "--nocapture"])
            .env(KIND, kind)
            .env(ADDRESS, address)
            .env(IDLE, idle.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Hostile { kind, child }
    }

    /// What it says when it has done what it does.
    fn said(&mut self) -> String {
        let out = BufReader::new(self.child.stdout.as_mut().unwrap());
        let said = out.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("hostile: ").map(str::to_owned));
        said.unwrap_or_else(|| {
            let mut error = String::new();
            drop(self.child.stderr.take().unwrap().read_to_string(&mut error));
            panic!("{}: {error}", self.kind)
        })
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success(), "{}", self.kind);
    }
}

/// Bytes of memory that are nobody else's.
fn anonymous_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Ends the watching of the memory.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many idle connections there are, where a process may have so many open files. If they are fewer than they should be that is said past the test's output, which nobody sees
/// of a test that passes.
fn idle_count(files_max: Option<u64>) -> u64 {
    let idle = files_max.map_or(IDLE_MAX, |files| IDLE_MAX.min(files.saturating_sub(FILES)));
    let files = files_max.unwrap_or(u64::MAX);
    assert!(
        idle >= IDLE_MIN,
        "a process may have {files} open files here, and this test needs {}: raise the limit (`ulimit -Hn`)",
        IDLE_MIN + FILES
    );
    if idle < IDLE_MAX {
        let needed = IDLE_MAX + FILES;
        let what =
            format!("{idle} idle connections in place of {IDLE_MAX}: {files} open files are allowed, of {needed}");
        writeln!(std::io::stderr().lock(), "WARNING: hostile_clients has {what}; raise the limit (`ulimit -Hn`)")
            .unwrap();
    }
    idle
}

/// All of them at once: the server's memory stays within its budget, each is closed for a reason that the log names (or, of more than ten in a second, counts), every one of a million requests is
/// answered, and an honest client beside them reads what it wrote.
#[test]
fn hostile_clients() {
    let idle_count = idle_count(getrlimit(Resource::Nofile).maximum);
    let directory = tempfile::tempdir().unwrap();
    let options = ["--request-memory", "32MiB", "--reply-memory", "32MiB", "--block-cache", "16MiB"];
    let server = Server::start(directory.path(), &options);
    let address = server.address.clone();
    let process = server.child.id();
    ok(&["bench", "read-only", "--keys", "1000", "--seconds", "0.2", "--connect", &address]);
    let before = anonymous_bytes(process);
    let (most, is_over) = (AtomicU64::new(before), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Also after a panic.
        let over = Over(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                most.fetch_max(anonymous_bytes(process), Ordering::SeqCst);
                pause(50);
            }
        });
        let mut idle = Hostile::start("idle", &address, idle_count);
        assert_eq!(idle.said(), format!("open {idle_count}"));
        let honest = scope.spawn(|| {
            run(&[
                "bench",
                "ycsb-b",
                "--keys",
                "1000",
                "--clients",
                "8",
                "--seconds",
                "20",
                "--output",
                "json",
                "--connect",
                &address,
            ])
        });
        let others =
            ["pipeline", "half", "huge", "garbage", "deaf"].map(|kind| Hostile::start(kind, &address, idle_count));
        let expected = [
            format!("answered {PIPELINED}"),
            "closed 5".into(),
            "closed 6".into(),
            "closed 7".into(),
            "closed 1".into(),
        ];
        for (mut other, expected) in others.into_iter().zip(expected) {
            assert_eq!(other.said(), expected, "{}", other.kind);
            other.end();
        }
        let (code, report, error) = honest.join().unwrap();
        assert_eq!((code, error.as_str()), (0, ""));
        let report: Value = serde_json::from_str(&report).unwrap();
        assert!(report["transactions"].as_u64().unwrap() > 0 && report["unknown_outcomes"] == 0, "{report}");
        let rpc = || -> Value {
            let status: Value = serde_json::from_str(&ok(&["status", "--json", "--connect", &address])).unwrap();
            status["cluster"]["rpc"].clone()
        };
        // The connection that asks is one of them. Of some of the others the server has yet to notice that they are gone.
        wait_until("the idle ones are still there, and nobody else", || rpc()["connections_open"] == idle_count + 1);
        let told = rpc();
        let rejected = told["rejected"].as_object().unwrap();
        let rejected: Vec<_> = rejected.iter().filter(|(_, count)| **count != 0).collect();
        assert_eq!(rejected.len(), REASONS.len(), "{rejected:?}");
        for (reason, count) in REASONS {
            assert_eq!(told["rejected"][reason], count, "{reason}: {rejected:?}");
        }
        drop(over);
        let grown = most.load(Ordering::SeqCst) - before;
        eprintln!(
            "an honest client's p99 was {} us over {} transactions; the server's memory grew by {} KiB from {} KiB",
            report["p99_us"],
            report["transactions"],
            grown >> 10,
            before >> 10
        );
        let budget = (idle_count + OTHERS) * (32 << 10) + REQUEST_BYTES + REPLY_BYTES + DATABASE_BYTES;
        assert!(grown <= budget, "the server's memory grew by {grown} bytes, and {budget} are its budget");
        idle.end();
    });
    let (_, log) = server.stop();
    // Of more than ten in a second the log leaves some out, and the next event says how many.
    let mut logged = 0;
    for (reason, count) in REASONS {
        let named = log.matches(&format!("reason=\"{reason}\"")).count() as u64;
        assert!(named <= count, "{reason}: {log}");
        logged += named;
    }
    let left_out =
        log.split("left_out=").skip(1).filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let (left_out, all) = (left_out.sum::<u64>(), REASONS.iter().map(|(_, count)| count).sum::<u64>());
    assert!(logged >= 10 && logged + left_out <= all, "{logged} logged, {left_out} left out, of {all}: {log}");
    assert!(!log.contains("panicked"), "{log}");
}
