//! Three servers that are one database, and what can be done to them.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferrisdb::Database;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Outcome;
use crate::network::{Network, succeed};

/// What takes longer than this will not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// One question takes so long at most.
const ASKED: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The size of a file system that is to be filled: room for logs and tables of some rounds, in which nobody forgets anything while one disk is full.
const SMALL_DISK: &str = "size=1g";

/// One server, numbered from 0.
pub(crate) struct Process {
    pub(crate) number: usize,
    pub(crate) address: String,
    data: PathBuf,
    join: Option<String>,
    child: Option<Child>,
    database: Option<Database>,
}

/// What a process says of itself and its cluster.
pub(crate) struct Standing {
    leads: bool,
    has_leader: bool,
    is_complete: bool,
    voters: usize,
    applied: u64,
    is_broken: bool,
}

/// The cluster of one scenario.
pub(crate) struct Cluster<'a> {
    pub(crate) processes: Vec<Process>,
    network: Option<&'a Network>,
    directory: PathBuf,
    has_small_disks: bool,
}

impl Cluster<'_> {
    /// Starts three processes below `directory`, and waits until they are three voters that have everything.
    pub(crate) async fn start<'a>(
        directory: &Path,
        network: Option<&'a Network>,
        has_small_disks: bool,
    ) -> Outcome<Cluster<'a>> {
        let directory = directory.to_path_buf();
        let mut cluster = Cluster { processes: Vec::new(), network, directory, has_small_disks };
        for number in 0..3 {
            let data = cluster.directory.join(format!("process-{number}"));
            if has_small_disks {
                std::fs::create_dir_all(&data).map_err(|error| error.to_string())?;
                succeed(Command::new("mount").args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(&data))?;
            }
            let address = network.map_or_else(free_address, |network| Ok(network.address(number)))?;
            let join = cluster.processes.first().map(|first| first.address.clone());
            cluster.processes.push(Process { number, address, data, join, child: None, database: None });
            cluster.start_one(number)?;
            cluster.until(number, "a leader", |standing| standing.has_leader).await?;
        }
        for number in 0..3 {
            cluster.until(number, "three voters", |standing| standing.is_complete && standing.voters == 3).await?;
        }
        Ok(cluster)
    }

    /// Starts a process that does not run.
    pub(crate) fn start_one(&mut self, number: usize) -> Outcome<()> {
        let program = Path::new(env!("CARGO_BIN_EXE_ferrisdb"));
        let process = &mut self.processes[number];
        let mut command = match self.network {
            Some(network) => network.command(number, program),
            None => Command::new(program),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FERRISDB_") {
                command.env_remove(name);
            }
        }
        command.args(["serve", "--tethered", "--listen", &process.address, "--data"]).arg(process.data.join("db"));
        match &process.join {
            Some(address) => command.args(["--join", address]),
            None => command.arg("--cluster"),
        };
        if self.network.is_some() {
            // Nobody else is in that network.
            command.arg("--insecure");
        }
        let log = self.directory.join(format!("process-{number}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(|error| error.to_string())?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).process_group(0);
        process.child = Some(command.spawn().map_err(|error| format!("cannot start process {number}: {error}"))?);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) -> Outcome<()> {
        let Some(mut child) = self.processes[number].child.take() else { return Ok(()) };
        let status = child.kill().and_then(|()| child.wait());
        let status = status.map_err(|error| format!("cannot kill process {number}: {error}"))?;
        match status.code() {
            None => Ok(()),
            Some(code) => Err(format!("process {number} had ended by itself with code {code}")),
        }
    }

    /// SIGSTOP and SIGCONT.
    pub(crate) fn signal(&self, number: usize, signal: Signal) -> Outcome<()> {
        let child = self.processes[number].child.as_ref().ok_or("the process runs")?;
        kill_process(Pid::from_child(child), signal).map_err(|error| format!("cannot signal process {number}: {error}"))
    }

    /// Takes all space that the disk of a process has.
    pub(crate) fn fill_disk(&self, number: usize) -> Outcome<()> {
        let path = self.processes[number].data.join("ballast");
        let mut file = std::fs::File::create(path).map_err(|error| error.to_string())?;
        for bytes in [1 << 20, 1 << 12] {
            let piece = vec![0_u8; bytes];
            while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    pub(crate) fn empty_disk(&self, number: usize) -> Outcome<()> {
        std::fs::remove_file(self.processes[number].data.join("ballast")).map_err(|error| error.to_string())
    }

    /// The number of the process that leads, as it says itself.
    pub(crate) async fn leader(&mut self) -> Outcome<usize> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for process in &mut self.processes {
                if process.standing().await.is_some_and(|standing| standing.leads) {
                    return Ok(process.number);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("no process leads".to_owned())
    }

    /// Starts again what has ended or is broken: as an operator does.
    pub(crate) async fn repair(&mut self, number: usize) -> Outcome<bool> {
        let process = &mut self.processes[number];
        let has_ended = match &mut process.child {
            Some(child) => child.try_wait().map_err(|error| error.to_string())?.is_some(),
            None => true,
        };
        if !has_ended && !process.standing().await.is_some_and(|standing| standing.is_broken) {
            return Ok(false);
        }
        if has_ended {
            process.child = None;
        } else {
            self.kill(number)?;
        }
        self.start_one(number)?;
        Ok(true)
    }

    /// Waits until every process has what any of them has now.
    pub(crate) async fn whole(&mut self) -> Outcome<()> {
        let leader = self.leader().await?;
        let newest = self.processes[leader].standing().await.map_or(0, |standing| standing.applied);
        for number in 0..self.processes.len() {
            let is_so = |standing: &Standing| standing.is_complete && standing.has_leader && standing.applied >= newest;
            self.until(number, "everything", is_so).await?;
        }
        Ok(())
    }

    async fn until(&mut self, number: usize, what: &str, is_so: impl Fn(&Standing) -> bool) -> Outcome<()> {
        let process = &mut self.processes[number];
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if process.standing().await.is_some_and(|standing| is_so(&standing)) {
                return Ok(());
            }
            if let Some(Ok(Some(status))) = process.child.as_mut().map(Child::try_wait) {
                return Err(format!("process {number} ended by itself: {status}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("process {number} has not come to have {what} within {PATIENCE:?}"))
    }
}

impl Process {
    /// A client of this process and no other.
    pub(crate) async fn database(&mut self) -> Outcome<Database> {
        if let Some(database) = &self.database {
            return Ok(database.clone());
        }
        let database = Database::connect(&self.address).await.map_err(|error| error.to_string())?;
        self.database = Some(database.clone());
        Ok(database)
    }

    async fn standing(&mut self) -> Option<Standing> {
        let asked = async {
            let text = self.database().await.ok()?.status().await.ok()?;
            let status: Value = serde_json::from_str(&text).ok()?;
            let cluster = &status["cluster"];
            let process = &cluster["process"];
            Some(Standing {
                leads: cluster["leader"].is_u64() && cluster["leader"] == process["number"],
                has_leader: cluster["leader"].is_u64(),
                is_complete: process["is_complete"] == true,
                voters: process["log"]["voters"].as_array()?.len(),
                applied: cluster["versions"]["applied"].as_u64()?,
                is_broken: cluster["state"] == "broken",
            })
        };
        tokio::time::timeout(ASKED, asked).await.ok()?
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if let Some(child) = &mut process.child {
                // It may have ended.
                drop((child.kill(), child.wait()));
            }
            if self.has_small_disks {
                // Whatever was not mounted is not there to be taken away.
                drop(succeed(Command::new("umount").arg(&process.data)));
            }
        }
    }
}

/// An address of this program's own on loopback: nobody else takes the port while no server has it.
fn free_address() -> Outcome<String> {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, 64 + b % 64, c, d), 0)).map_err(|error| error.to_string())?;
    Ok(listener.local_addr().map_err(|error| error.to_string())?.to_string())
}
