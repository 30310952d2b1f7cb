//! [`Held`]: a command that cannot come to its end before the test lets it, however fast the machine is.

use std::io::{PipeReader, Read as _, Write as _};
use std::process::Child;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::{command, told, wait_until};

/// A command with `--progress 0`, whose standard error is a pipe that nobody reads and that has room for `room` bytes: once it has said so much about its
/// progress, it waits in the middle of its work, until it is killed or let go.
///
/// The work is to be so much that the whole progress of it does not fit.
pub(crate) struct Held {
    child: Child,
    said: PipeReader,
    /// Bytes in the pipe that are none of the command's.
    filling: usize,
    room: usize,
}

impl Held {
    pub(crate) fn start(arguments: &[&str], room: usize) -> Held {
        let (said, mut writer) = std::io::pipe().unwrap();
        // One page, the least a pipe can have: then what is in it is not given free in parts.
        let size = rustix::pipe::fcntl_setpipe_size(&writer, 1).unwrap();
        let filling = size.checked_sub(room).unwrap();
        writer.write_all(&vec![b'\n'; filling]).unwrap();
        let child = command(&[arguments, &["--progress", "0"]].concat()).stderr(writer).spawn().unwrap();
        Held { child, said, filling, room }
    }

    /// Until it has said a good part of what it can, so that it is in the middle of its work.
    pub(crate) fn wait_until_it_works(&mut self) {
        let enough = self.filling + self.room / 2;
        wait_until("it says how far it is", || {
            let is_running = self.child.try_wait().unwrap().is_none();
            let there = usize::try_from(rustix::io::ioctl_fionread(&self.said).unwrap()).unwrap();
            assert!(is_running || there >= enough, "it ended early: {:?}", self.child);
            there >= enough
        });
    }

    /// Until all its threads stand still. [`go_on`](Self::go_on) ends that.
    pub(crate) fn stop(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    pub(crate) fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.code().is_none(), "it was killed before it ended: {status}");
    }

    /// Lets it come to its end. Exit code, standard output, standard error.
    pub(crate) fn let_go(mut self) -> (i32, String, String) {
        let mut said = Vec::new();
        self.said.read_to_end(&mut said).unwrap();
        let (code, out, _) = told(&self.child.wait_with_output().unwrap());
        (code, out, String::from_utf8(said.split_off(self.filling)).unwrap())
    }
}
