//! Kills the writing child in the middle of a transaction, reopens, and checks what is there.
//!
//! What must hold, with `acknowledged` and `begun` the last numbers that the child named: the records are 1, 2, … up to some
//! `last` without a gap, each with the content that was written; `acknowledged <= last <= begun`; and the key `last` says so.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Report, Step, child, mismatch, scan, snapshot, thousands};
use crate::connect::Connected;
use crate::failure::Failure;
use crate::stopwatch::Stopwatch;

/// Acknowledged transactions before the kill, round after round: different places in the log, and crashes after a crash recovery.
const ROUNDS: [u64; 3] = [50, 100, 150];

/// A commit that takes longer than this on a disk that works has hung.
const DEADLINE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// What the child had said when it died.
struct Said {
    begun: u64,
    acknowledged: u64,
    /// From the first write's beginning to the kill.
    took: Duration,
}

/// Runs all rounds.
pub(super) fn run(directory: &Path, report: &mut Report<'_>) -> Result<(), Failure> {
    let mut last = 0;
    for writes in ROUNDS {
        let said = write_and_kill(directory, last, writes)?;
        let place = if said.begun > said.acknowledged {
            format!("in the middle of transaction {}", thousands(said.begun))
        } else {
            format!("just after transaction {}", thousands(said.acknowledged))
        };
        let count = said.acknowledged - last;
        let what = format!("a writing process, kill -9 after {count} commits, {place}");
        report.add(Step { name: "kill", what, count, unit: "commits", took: said.took })?;

        let watch = Stopwatch::start();
        let connected = super::open(directory)?;
        let took = watch.elapsed();
        last = check(&connected, &said)?;
        connected.close()?;
        let unacknowledged = match last - said.acknowledged {
            0 => "and nothing else",
            _ => "and the one under way, whole",
        };
        let what = format!("all {} acknowledged records are there, {unacknowledged}", thousands(said.acknowledged));
        report.add(Step { name: "recover", what, count: last, unit: "", took })?;
    }
    Ok(())
}

/// Starts the child and kills it when it has begun another transaction after `writes` acknowledged ones.
fn write_and_kill(directory: &Path, last: u64, writes: u64) -> Result<Said, Failure> {
    let cannot = |what: &str, error: std::io::Error| Failure::failed(format!("cannot {what}: {error}"), "");
    let executable = std::env::current_exe().map_err(|error| cannot("find this program's file", error))?;
    let mut command = Command::new(executable);
    command.arg("__child").arg(directory).arg((last + 1).to_string());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cannot("start a child process", error))?;
    let listened = listen(&mut child, last, writes);
    // Whatever happened: no process of ours stays behind. Killing one that has ended is no error.
    child.kill().map_err(|error| cannot("kill the child process", error))?;
    let status = child.wait().map_err(|error| cannot("wait for the child process", error))?;
    let (mut said, mut lines) = listened?;
    while let Some(line) = lines.next()? {
        said.hear(&line)?;
    }
    if status.signal() != Some(rustix::process::Signal::KILL.as_raw()) {
        return Err(Failure::failed(
            format!("the child process ended by itself with {status}"),
            "its message is above",
        ));
    }
    Ok(said)
}

/// Listens until it is time to kill.
fn listen(child: &mut Child, last: u64, writes: u64) -> Result<(Said, Lines), Failure> {
    let pipe = child.stdout.take().expect("the child's standard output is a pipe");
    let mut lines = Lines { pipe: BufReader::new(pipe) };
    let mut said = Said { begun: last, acknowledged: last, took: Duration::ZERO };
    let mut watch = None;
    while let Some(line) = lines.next()? {
        said.hear(&line)?;
        said.took = watch.get_or_insert_with(Stopwatch::start).elapsed();
        if said.acknowledged >= last + writes && said.begun > said.acknowledged {
            break;
        }
    }
    Ok((said, lines))
}

impl Said {
    /// Takes in one line: `begin N` or `ack N`, in turn.
    fn hear(&mut self, line: &str) -> Result<(), Failure> {
        let number = |number: &str| number.parse::<u64>().ok();
        match line.split_once(' ') {
            Some(("begin", n)) if self.begun == self.acknowledged && number(n) == Some(self.begun + 1) => {
                self.begun += 1
            }
            Some(("ack", n)) if self.begun > self.acknowledged && number(n) == Some(self.begun) => {
                self.acknowledged = self.begun;
            }
            _ => {
                return Err(Failure::failed(
                    format!("the child process said {line:?} after beginning {}", self.begun),
                    "this is a bug in FerrisDB's demo: report it",
                ));
            }
        }
        Ok(())
    }
}

/// The child's lines.
struct Lines {
    pipe: BufReader<ChildStdout>,
}

impl Lines {
    /// The next line without its end, or `None` once the child is gone and everything that it said was read.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        let failed =
            |error: std::io::Error| Failure::failed(format!("cannot listen to the child process: {error}"), "");
        if self.pipe.buffer().is_empty() {
            let mut ready = [PollFd::from_borrowed_fd(self.pipe.get_ref().as_fd(), PollFlags::IN)];
            if poll(&mut ready, Some(&DEADLINE)).map_err(|error| failed(error.into()))? == 0 {
                return Err(Failure::failed(
                    format!("a commit has taken more than {} s", DEADLINE.tv_sec),
                    "check the disk, or choose another: ferrisdb demo --directory DIR",
                ));
            }
        }
        let mut line = String::new();
        let read = self.pipe.read_line(&mut line).map_err(failed)?;
        Ok((read > 0).then(|| line.trim_end().to_string()))
    }
}

/// Checks the records and returns the last one's number.
fn check(connected: &Connected, said: &Said) -> Result<u64, Failure> {
    let now = snapshot(connected)?;
    let records = scan(connected, &now, b"log/", b"log0")?;
    let last = records.len() as u64;
    for (number, row) in (1..).zip(&records) {
        if row.key != child::record_key(number) {
            return Err(mismatch(format_args!("record {number} of {last} is missing: {}", row.key.escape_ascii())));
        }
        if row.value != child::record_value(number) {
            return Err(mismatch(format_args!("record {number} is not as it was written")));
        }
    }
    let Said { begun, acknowledged, .. } = *said;
    if last < acknowledged {
        return Err(mismatch(format_args!("records end at {last}, but {acknowledged} was acknowledged as durable")));
    }
    if last > begun {
        return Err(mismatch(format_args!("records go up to {last}, but only {begun} was begun")));
    }
    let named = connected.run(async { Ok(now.get(child::LAST_KEY).await?) })?;
    if named.as_deref() != Some(last.to_be_bytes().as_slice()) {
        return Err(mismatch(format_args!("a transaction is there in part: record {last}, but `last` is {named:?}")));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only `begin N`, `ack N`, `begin N+1` … is believed: a child that skips or repeats a number proves nothing.
    #[test]
    fn the_child_is_heard_only_in_turn() {
        let mut said = Said { begun: 7, acknowledged: 7, took: Duration::ZERO };
        for line in ["begin 8", "ack 8", "begin 9"] {
            said.hear(line).unwrap();
        }
        assert_eq!((said.begun, said.acknowledged), (9, 8));
        for line in ["begin 9", "begin 10", "ack 8", "ack 10", "ack", ""] {
            assert!(said.hear(line).is_err(), "{line}");
        }
    }

    /// A record's content follows from its number, and differs from its neighbours'.
    #[test]
    fn records_are_told_apart() {
        assert_eq!(child::record_value(5), child::record_value(5));
        assert_ne!(child::record_value(5), child::record_value(6));
        assert!(child::record_key(9) < child::record_key(10));
    }
}
