//! A network of our own: a namespace with an address for each process, on one bridge, and links that can be cut one way.
//!
//! A cut is an entry in the sender's table of neighbours that names a network card which nobody has: whatever goes that way is swallowed without a word, as by a
//! cable that is out, and what comes the other way arrives. No firewall and no module is needed for that.
//!
//! Everything is in namespaces that end with this process: nothing on the machine changes. A namespace lives as long as the process that holds it (`cat`), which
//! ends when its standard input does.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use crate::Outcome;

/// Set in the process that runs in namespaces of its own.
const INSIDE: &str = "FERRISDB_CHAOS_INSIDE";
/// A network card that nobody has.
const NOBODY: &str = "02:00:00:00:00:fe";

/// What became of the wish for namespaces of our own.
pub(crate) enum Isolation {
    /// The work was done by a process in there, which ended so.
    Done(ExitCode),
    /// This is that process.
    Inside,
    /// The system does not allow it, and why.
    Refused(String),
}

/// Runs this program anew, with the same arguments, in a network and a table of mounts of its own.
pub(crate) fn isolate() -> Isolation {
    if std::env::var_os(INSIDE).is_some() {
        return Isolation::Inside;
    }
    // Whoever is not root may be it in a namespace of users, on some systems.
    let ways: [&[&str]; 2] = [&["--net", "--mount"], &["--user", "--map-root-user", "--net", "--mount"]];
    let mut refused = Vec::new();
    for way in ways {
        match succeed(Command::new("unshare").args(way).arg("true")) {
            Ok(()) => return anew(way),
            Err(why) => refused.push(why),
        }
    }
    Isolation::Refused(refused.join("; "))
}

fn anew(way: &[&str]) -> Isolation {
    let run = || {
        let mut command = Command::new("unshare");
        command.args(way).arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1").status()
    };
    match run() {
        Ok(status) => Isolation::Done(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Err(error) => Isolation::Refused(error.to_string()),
    }
}

/// Namespaces for processes, numbered from 0.
pub(crate) struct Network {
    holders: Vec<Child>,
}

impl Network {
    pub(crate) fn new(processes: usize) -> Outcome<Network> {
        let mut network = Network { holders: Vec::new() };
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "hub", "type", "bridge"])?;
        ip(&["addr", "add", "10.77.0.254/24", "dev", "hub"])?;
        ip(&["link", "set", "hub", "up"])?;
        for number in 0..processes {
            let mut holder = Command::new("unshare");
            holder.args(["--net", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
            network.holders.push(holder.spawn().map_err(|error| format!("unshare: {error}"))?);
            network.wait_for_namespace(number)?;
            let (port, pid) = (format!("port{number}"), network.pid(number));
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
            ip(&["link", "set", &port, "master", "hub", "up"])?;
            network.ip_in(number, &["link", "set", "lo", "up"])?;
            network.ip_in(number, &["addr", "add", &format!("{}/24", address(number)), "dev", "eth0"])?;
            network.ip_in(number, &["link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    /// Its namespace is there once it is not ours.
    fn wait_for_namespace(&self, number: usize) -> Outcome<()> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        for _ in 0..1000 {
            match (namespace("self"), namespace(&self.pid(number))) {
                (Ok(ours), Ok(theirs)) if ours != theirs => return Ok(()),
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
        Err("a network namespace did not come to be".to_owned())
    }

    fn pid(&self, number: usize) -> String {
        self.holders[number].id().to_string()
    }

    fn ip_in(&self, number: usize, arguments: &[&str]) -> Outcome<()> {
        succeed(Command::new("nsenter").args(["-t", &self.pid(number), "-n", "ip"]).args(arguments))
    }

    /// The address of a process, which is reachable from here.
    pub(crate) fn address(&self, number: usize) -> String {
        format!("{}:4700", address(number))
    }

    /// A command that runs `program` in a namespace.
    pub(crate) fn command(&self, number: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        // It becomes the program: a kill hits that.
        command.args(["-t", &self.pid(number), "-n", "--"]).arg(program).process_group(0);
        command
    }

    /// Whatever goes from one process to the other is lost from now on.
    pub(crate) fn cut(&self, from: usize, to: usize) -> Outcome<()> {
        let neighbour = ["neigh", "replace", &address(to), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"];
        self.ip_in(from, &neighbour)
    }

    /// All links work again.
    pub(crate) fn heal(&self) -> Outcome<()> {
        for from in 0..self.holders.len() {
            self.ip_in(from, &["neigh", "flush", "dev", "eth0", "nud", "permanent"])?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            // It may have ended.
            drop((holder.kill(), holder.wait()));
        }
    }
}

fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

fn ip(arguments: &[&str]) -> Outcome<()> {
    succeed(Command::new("ip").args(arguments))
}

/// Runs a command to its end.
pub(crate) fn succeed(command: &mut Command) -> Outcome<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
