//! The processes of `demo --nodes`: this program as `serve`, each with a directory and an address of its own, killed and started again.
//!
//! Their standard input is a pipe that we hold: a member ends when it ends (`serve --tethered`), so none outlives the demo, however that ends.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferrisdb::Database;
use serde_json::Value;

use crate::failure::Failure;

/// How long a process may take to say how it stands.
const ASKED: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// One process of the cluster.
pub(super) struct Member {
    /// From 1.
    pub(super) number: usize,
    pub(super) address: String,
    data: PathBuf,
    /// An address to join at; the first founds.
    join: Option<String>,
    child: Option<Child>,
    /// Asks this process and no other, once it has answered.
    database: Option<Database>,
}

/// What a process says of itself and its cluster.
pub(super) struct Standing {
    /// This process leads.
    pub(super) leads: bool,
    pub(super) has_leader: bool,
    pub(super) is_complete: bool,
    pub(super) voters: usize,
    pub(super) applied: u64,
}

impl Member {
    /// A process that is not started yet, with a directory below `directory`.
    pub(super) fn new(number: usize, directory: &Path, join: Option<&Member>) -> Result<Member, Failure> {
        let address = free_address()
            .map_err(|error| Failure::failed(format!("cannot find a free port on loopback: {error}"), ""))?;
        let data = directory.join(number.to_string());
        Ok(Member { number, address, data, join: join.map(|to| to.address.clone()), child: None, database: None })
    }

    /// Starts it; what it logs is appended to a file beside its directory.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let started = || -> io::Result<Child> {
            #[expect(clippy::disallowed_methods, reason = "a file for what another process logs")]
            let log = std::fs::OpenOptions::new().create(true).append(true).open(self.data.with_extension("log"))?;
            let mut command = Command::new(std::env::current_exe()?);
            // What is set for other servers is not for these.
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("FERRISDB_") {
                    command.env_remove(name);
                }
            }
            command.args(["serve", "--tethered", "--listen", &self.address, "--data"]).arg(&self.data);
            match &self.join {
                Some(address) => command.args(["--join", address]),
                None => command.arg("--cluster"),
            };
            // A process group of its own: an interrupt from the terminal is for the demo, which ends it.
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).process_group(0).spawn()
        };
        let child =
            started().map_err(|error| Failure::failed(format!("cannot start process {}: {error}", self.number), ""))?;
        self.child = Some(child);
        Ok(())
    }

    /// Kills it: SIGKILL, in the middle of whatever it does.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let killed = child.kill().and_then(|()| child.wait());
        let status =
            killed.map_err(|error| Failure::failed(format!("cannot kill process {}: {error}", self.number), ""))?;
        if status.code().is_some() {
            return Err(self.ended(&status.to_string()));
        }
        Ok(())
    }

    /// An error if it has ended by itself.
    pub(super) fn check_runs(&mut self) -> Result<(), Failure> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(self.ended(&status.to_string())),
            _ => Ok(()),
        }
    }

    fn ended(&self, status: &str) -> Failure {
        let log = self.data.with_extension("log");
        Failure::failed(format!("process {} ended by itself: {status}", self.number), format!("see {}", log.display()))
    }

    /// A client of this process and no other.
    pub(super) async fn database(&mut self) -> ferrisdb::Result<Database> {
        if let Some(database) = &self.database {
            return Ok(database.clone());
        }
        let database = Database::connect(&self.address).await?;
        self.database = Some(database.clone());
        Ok(database)
    }

    /// What it says of itself; `None` if it does not answer.
    pub(super) async fn standing(&mut self) -> Option<Standing> {
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
            })
        };
        tokio::time::timeout(ASKED, asked).await.ok()?
    }

    /// Waits until it stands as wanted, for as long as `is_patient`.
    pub(super) async fn until(
        &mut self,
        is_so: impl Fn(&Standing) -> bool,
        is_patient: impl Fn() -> bool,
    ) -> Result<(), Failure> {
        while is_patient() {
            self.check_runs()?;
            if self.standing().await.is_some_and(|standing| is_so(&standing)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        let log = self.data.with_extension("log");
        Err(Failure::failed(
            format!("process {} does not come to have everything", self.number),
            format!("see {}", log.display()),
        ))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended.
            drop((child.kill(), child.wait()));
        }
    }
}

/// An address of this process's own on loopback: nobody else takes the port while no server has it.
fn free_address() -> io::Result<String> {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let own = TcpListener::bind((Ipv4Addr::new(127, 64 + b % 64, c, d), 0));
    // Some systems have one loopback address only.
    let listener = own.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(listener.local_addr()?.to_string())
}
