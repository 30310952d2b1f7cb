//! The shell at a terminal, as a person uses it: a pseudo-terminal in place of the real one. It is not the process's controlling terminal, so that keys make no
//! signals; while the shell edits a line it takes them itself anyway.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ExitStatus};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{command, ok};

const PROMPT: &str = "ferrisdb> ";
const PROMPT_IN_TRANSACTION: &str = "ferrisdb*> ";
const UP: &str = "\x1b[A";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

struct Terminal {
    child: Child,
    master: File,
    /// All that was shown.
    shown: String,
    /// So much of it was expected.
    seen: usize,
}

impl Terminal {
    /// A shell that shows its first prompt.
    fn open(data: &Path, home: &Path) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let side = || -> OwnedFd { ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap() };
        let mut command = command(&["shell", "--data", data.to_str().unwrap()]);
        command.env("TERM", "xterm").env("HOME", home).env_remove("XDG_STATE_HOME");
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        // The command holds its three until it is dropped.
        drop(command);
        let mut terminal = Terminal { child, master: File::from(master), shown: String::new(), seen: 0 };
        terminal.expect(PROMPT);
        terminal
    }

    fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is shown, behind what was expected before.
    fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            assert!(self.read(), "the shell ended, and `{text}` was not shown: {:?}", self.shown);
        }
    }

    /// Sends SIGINT until this is shown: the first may come before the command that it shall end has begun to wait.
    fn interrupt(&mut self, text: &str) {
        while !self.shown[self.seen..].contains(text) {
            kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
            assert!(!self.is_ready(50) || self.read(), "the shell ended: {:?}", self.shown);
        }
        self.expect(text);
    }

    /// Types Ctrl-D until the shell ends: of several interrupts one may still be under way, and end the line that has the first. What was shown in all.
    fn leave(mut self) -> (ExitStatus, String) {
        loop {
            // Nobody may be there to take it any more.
            drop(self.master.write_all(CTRL_D.as_bytes()));
            if self.is_ready(200) && !self.read() {
                return (self.child.wait().unwrap(), std::mem::take(&mut self.shown));
            }
        }
    }

    /// Is something shown within so many milliseconds, or the shell at its end?
    fn is_ready(&self, milliseconds: i64) -> bool {
        let pause = Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
        poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&pause)).unwrap() == 1
    }

    /// Reads what is shown next. False at the end.
    fn read(&mut self) -> bool {
        assert!(self.is_ready(120_000), "nothing more is shown: {:?}", self.shown);
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            Ok(count) => {
                self.shown.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
                count > 0
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            // Nobody has the other side open any more.
            Err(_) => false,
        }
    }

    /// Types a line, waits for what it prints, and for the next prompt.
    fn line(&mut self, keys: &str, printed: &str, prompt: &str) {
        self.type_in(keys);
        self.type_in("\r");
        self.expect(printed);
        self.expect(prompt);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Prompt, completion of commands and of keys, history within a session, Ctrl-C for a line, an error that does not end it, Ctrl-D for the end.
#[test]
fn a_shell_at_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let (data, home) = (directory.path().join("db"), directory.path().join("home"));
    let mut terminal = Terminal::open(&data, &home);
    assert!(terminal.shown.contains("`help` lists the commands, Ctrl-D leaves."), "{:?}", terminal.shown);

    // A command is completed, and the prompt says that a transaction is under way.
    terminal.type_in("beg\t");
    terminal.expect("begin ");
    terminal.type_in("\r");
    terminal.expect(PROMPT_IN_TRANSACTION);
    // What is typed is shown again and again, with hints behind it: only the end of a line is sure to come once.
    terminal.line("set fruit/apple red", "\n", PROMPT_IN_TRANSACTION);
    terminal.line("commit", "\ncommitted at version ", PROMPT);

    // So is a key that is in the database.
    terminal.type_in("get fru\t");
    terminal.expect("fruit/apple");
    terminal.line("", "\nred\r\n", PROMPT);

    // The line before is there again.
    terminal.type_in(UP);
    terminal.expect("get fruit/apple");
    terminal.line("", "\nred\r\n", PROMPT);

    // Ctrl-C leaves the line, and not the shell.
    terminal.type_in("set fruit/apple green");
    terminal.type_in(CTRL_C);
    terminal.expect("\n");
    terminal.expect(PROMPT);
    terminal.line("get fruit/apple", "\nred\r\n", PROMPT);

    terminal.line("nonsense", "\nerror: `nonsense` is no command\r\n  help: `help` lists the commands\r\n", PROMPT);
    terminal.line(" set secret x", "\ncommitted at version ", PROMPT);
    let (status, shown) = terminal.leave();
    assert!(status.success(), "{status}: {shown:?}");

    // The next session has the history; what began with a space is not in it.
    let mut terminal = Terminal::open(&data, &home);
    terminal.type_in(UP);
    terminal.expect("nonsense");
    terminal.type_in(UP);
    terminal.expect("get fruit/apple");
    terminal.type_in(CTRL_C);
    terminal.expect("\n");
    terminal.expect(PROMPT);

    // While a command runs, an interrupt ends the command, and not the shell. Before the line has ended it would end the line.
    terminal.type_in("watch fruit/apple\r");
    terminal.expect("\n");
    terminal.interrupt("error: interrupted\r\n");
    terminal.expect(PROMPT);
    let (status, shown) = terminal.leave();
    assert!(status.success() && !shown.contains("secret"), "{status}: {shown:?}");
    assert_eq!(ok(&["get", "fruit/apple", "--data", data.to_str().unwrap()]), "red\n");
}
