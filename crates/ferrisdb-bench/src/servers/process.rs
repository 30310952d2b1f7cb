//! Other programs: where they are, how they start, what CPU they use, how they stop.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::engine::Result;

/// How long a program may take to end when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(20);
/// Ticks of `/proc/PID/stat` per second: fixed in Linux's interface.
const TICKS_PER_SECOND: u64 = 100;

/// A server in a process of its own, ended when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command`; what it says goes to a file in `directory`.
    pub(crate) fn start(name: &str, command: &mut Command, directory: &Path) -> Result<Process> {
        // One that is started again goes on in the same file.
        let log = fs::File::options().create(true).append(true).open(directory.join(format!("{name}.log")))?;
        // A process group of its own: an interrupt from the terminal is for us, and we end it.
        let child = command
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {name} ({:?}): {error}", command.get_program()))?;
        Ok(Process { name: name.to_owned(), child })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)?;
        Ok(())
    }

    /// Ends it at once (SIGKILL), and waits until it is gone.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The standard output, if it was piped; once.
    pub(crate) fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Has it and all its children stand still, or go on.
    pub(crate) fn stand_still(&self, still: bool) -> Result<()> {
        let signal = if still { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        for (pid, _) in self.family()? {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // A child may be gone by now: then there is nobody to tell.
                let _gone = rustix::process::kill_process(pid, signal).is_err();
            }
        }
        Ok(())
    }

    /// User and system time of it and all its children that live or were waited for.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let ticks: u64 = self.family()?.iter().map(|(_, ticks)| ticks).sum();
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// It and all its children: their numbers, and the ticks of the clock that they have used.
    fn family(&self) -> Result<Vec<(u32, u64)>> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // It may be gone by now.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            if let Some((parent, ticks)) = parent_and_ticks(&stat) {
                processes.push((pid, parent, ticks));
            }
        }
        let (mut family, mut ticks) = (vec![self.child.id()], Vec::new());
        let mut next = 0;
        while let Some(&pid) = family.get(next) {
            next += 1;
            family.extend(processes.iter().filter(|process| process.1 == pid).map(|process| process.0));
            ticks.push((pid, processes.iter().find(|process| process.0 == pid).map_or(0, |process| process.2)));
        }
        Ok(ticks)
    }
}

/// The parent and all CPU ticks in a line of `/proc/PID/stat`. The name before them may contain anything.
fn parent_and_ticks(stat: &str) -> Option<(u32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((fields.get(1)?.parse().ok()?, ticks(11)? + ticks(12)? + ticks(13)? + ticks(14)?))
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // PostgreSQL would wait for its clients on SIGTERM; the others may have been started with SIGINT ignored, as a shell does in the background.
        let signal = match self.name.as_str() {
            "postgres" => rustix::process::Signal::INT,
            _ => rustix::process::Signal::TERM,
        };
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself: then there is nothing to ask.
            let _gone = rustix::process::kill_process(pid, signal).is_err();
        }
        let asked = Instant::now();
        while asked.elapsed() < STOP_MAX {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        eprintln!("{} does not end, and is killed", self.name);
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program on the search path or in `directories`.
pub(crate) fn find(program: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(directories.iter().cloned())
        .map(|directory| directory.join(program))
        .find(|program| program.is_file())
}

/// A port of the loopback interface that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The number and group of a user, from `/etc/passwd`.
pub(crate) fn user(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let mut fields = fields.skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{:?} failed: {}", command.get_program(), said.trim()).into());
    }
    let mut text = String::new();
    (&output.stdout[..]).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name with spaces and brackets does not shift the fields.
    #[test]
    fn a_stat_line_is_understood() {
        let stat = "77 (a (b) c) S 12 77 77 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 1 0 5 6 7";
        assert_eq!(parent_and_ticks(stat), Some((12, 124)));
    }

    /// A child's work counts, and dropping it ends it.
    #[test]
    fn a_process_is_measured_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let process = Process::start("busy", command.args(["-c", "sh -c 'while :; do :; done'; :"]), directory.path());
        let process = process.unwrap();
        let began = Instant::now();
        while process.cpu().unwrap().is_zero() {
            assert!(began.elapsed() < Duration::from_secs(20), "a busy child uses no CPU");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
