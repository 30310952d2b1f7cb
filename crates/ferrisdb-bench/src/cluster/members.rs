//! Clusters of processes on this machine: started, asked how they stand, killed and started again at the same address.
//!
//! All processes listen on an address of this benchmark's own in the loopback network, so that nobody else takes the port of one that was killed.
//! A FerrisDB process is this program itself; it ends when its standard input does, so none outlives the benchmark.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrisdb::Database;
use ferrisdb::cluster::{Beginning, ClusterNode, ClusterOptions, Doors, Order, Peer, RpcNetwork, line_options, order};
use ferrisdb_rpc::{ServeOptions, TokioRuntime};
use ferrisdb_storage::Env;
use tonic::transport::Channel;

use crate::engine::Result;
use crate::servers::peers::{Client, ask_etcd, etcd, patiently};
use crate::servers::process::{Process, find};

/// What takes longer than this will not come.
const PATIENCE: Duration = Duration::from_secs(120);
/// A process that does not say in this time how it stands is asked again.
const ASKED: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// One process.
pub(super) struct Member {
    name: String,
    command: Box<dyn Fn() -> Result<Command>>,
    process: Option<Process>,
    /// Asks this process and no other.
    pub(super) client: Client,
}

/// What a process says of itself and its cluster.
struct Standing {
    leads: bool,
    has_leader: bool,
    /// How many voters it knows of; `None` where it does not say.
    voters: Option<usize>,
    is_complete: bool,
    /// Rises with each commit, in the same steps everywhere.
    applied: u64,
}

/// Three processes, and more that are added.
pub(super) struct Cluster {
    pub(super) name: &'static str,
    pub(super) members: Vec<Member>,
    directory: PathBuf,
    addresses: Vec<String>,
    /// Of FerrisDB's processes.
    options: Vec<String>,
}

impl Cluster {
    /// FerrisDB, with one voter or three that have everything, each started with these options.
    pub(super) async fn ferris(directory: &Path, processes: usize, options: &[&str]) -> Result<Cluster> {
        let mut cluster = Cluster {
            name: "FerrisDB",
            members: Vec::new(),
            directory: directory.to_path_buf(),
            addresses: Vec::new(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        for _ in 0..processes {
            cluster.add_ferris().await?;
        }
        let mut at = 0;
        until("voters that have everything", async || {
            let standing = standing(&mut cluster.members[at].client).await?;
            at += usize::from(standing.voters == Some(processes) && standing.is_complete);
            Ok(at == processes)
        })
        .await?;
        Ok(cluster)
    }

    /// One process more. Returns when it answers.
    pub(super) async fn add_ferris(&mut self) -> Result<()> {
        let name = format!("ferrisdb-{}", self.members.len() + 1);
        let (data, address) = (self.directory.join(&name), free_address()?);
        let join = self.addresses.first().cloned();
        let (listen, options) = (address.clone(), self.options.clone());
        let command = move || {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("serve-member-child").arg(&data).arg(&listen).args(&join).args(&options);
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            Ok(command)
        };
        let process = Process::start(&name, &mut command()?, &self.directory)?;
        let database = patiently(&name, async || Ok(Database::connect(&address).await?)).await?;
        let client = Client::Ferris(database);
        self.members.push(Member { name, command: Box::new(command), process: Some(process), client });
        self.addresses.push(address);
        Ok(())
    }

    /// etcd with its defaults, if it is installed.
    pub(super) async fn etcd(directory: &Path) -> Result<Option<Cluster>> {
        let Some(program) = find("etcd", &[PathBuf::from("/usr/sbin")]) else { return Ok(None) };
        let names: [&'static str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
        let url = || Ok(format!("http://{}", free_address()?));
        let clients = names.map(|_| url()).into_iter().collect::<Result<Vec<_>>>()?;
        let peers = names.map(|_| url()).into_iter().collect::<Result<Vec<_>>>()?;
        let all: Vec<String> = names.iter().zip(&peers).map(|(name, peer)| format!("{name}={peer}")).collect();
        let mut started = Vec::new();
        for ((name, client), peer) in names.into_iter().zip(&clients).zip(&peers) {
            let (program, data, all) = (program.clone(), directory.join(name), all.join(","));
            let (client, peer) = (client.clone(), peer.clone());
            let command = move || {
                let mut command = Command::new(&program);
                command.arg("--data-dir").arg(&data).args(["--name", name, "--log-level", "error"]);
                command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
                command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
                command.args(["--initial-cluster", &all]).stdin(Stdio::null()).stdout(Stdio::null());
                Ok(command)
            };
            let process = Process::start(name, &mut command()?, directory)?;
            started.push((command, process));
        }
        let mut members = Vec::new();
        for ((name, address), (command, process)) in names.into_iter().zip(&clients).zip(started) {
            let client = patiently(name, async || {
                let channel = Channel::from_shared(address.clone())?.tcp_nodelay(true).connect().await?;
                let mut client = Client::Etcd(tonic::client::Grpc::new(channel));
                client.get(0, b"is anybody there").await?;
                Ok(client)
            });
            let client = client.await?;
            members.push(Member { name: name.to_owned(), command: Box::new(command), process: Some(process), client });
        }
        Ok(Some(Cluster {
            name: "etcd",
            members,
            directory: directory.to_path_buf(),
            addresses: clients,
            options: Vec::new(),
        }))
    }

    /// A client for each process, in their order.
    pub(super) fn clients(&self) -> Vec<Client> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// Those that run.
    pub(super) fn processes(&self) -> Vec<&Process> {
        self.members.iter().filter_map(|member| member.process.as_ref()).collect()
    }

    /// The ways of a client that goes on when processes are lost: FerrisDB's client looks for another one itself, etcd's calls are tried at the next.
    pub(super) async fn ways(&self, number: usize) -> Result<Vec<Client>> {
        if matches!(self.members[0].client, Client::Etcd(_)) {
            let mut ways = self.clients();
            let first = number % ways.len();
            ways.rotate_left(first);
            return Ok(ways);
        }
        let mut addresses = self.addresses.clone();
        let first = number % addresses.len();
        addresses.rotate_left(first);
        let options = ferrisdb::ClientOptions { seed: Some(0), ..Default::default() };
        Ok(vec![Client::Ferris(Database::connect_with(&addresses.join(","), options).await?)])
    }

    /// The number of the process that leads. Waits for one.
    pub(super) async fn leader(&mut self) -> Result<usize> {
        let mut at = 0;
        let count = self.members.len();
        until("a leader", async || {
            // One that is being started does not answer: it does not lead.
            let leads = standing(&mut self.members[at % count].client).await.is_ok_and(|standing| standing.leads);
            at += usize::from(!leads);
            Ok(leads)
        })
        .await?;
        Ok(at % count)
    }

    /// Waits until a process has what the leader has now.
    pub(super) async fn caught_up(&mut self, number: usize) -> Result<()> {
        self.caught_up_within(number, PATIENCE).await
    }

    /// The same, for longer or shorter.
    pub(super) async fn caught_up_within(&mut self, number: usize, patience: Duration) -> Result<()> {
        let leader = self.leader().await?;
        let all = standing(&mut self.members[leader].client).await?.applied;
        let member = &mut self.members[number];
        let what = format!("{} with what the others have", member.name);
        until_within(patience, &what, async || {
            Ok(standing(&mut member.client)
                .await
                .is_ok_and(|here| here.has_leader && here.is_complete && here.applied >= all))
        })
        .await
    }

    /// The status document of a FerrisDB process.
    pub(super) async fn status(&self, at: usize) -> Result<serde_json::Value> {
        let Client::Ferris(database) = &self.members[at].client else { return Err("it is FerrisDB's".into()) };
        Ok(serde_json::from_str(&tokio::time::timeout(ASKED, database.status()).await??)?)
    }

    /// The number that a FerrisDB process has in its cluster.
    pub(super) async fn process_number(&self, at: usize) -> Result<u64> {
        let status = self.status(at).await?;
        Ok(status["cluster"]["process"]["number"].as_u64().ok_or("the status has no number of the process")?)
    }

    /// How many shards the process with a number holds, as another one sees it.
    pub(super) async fn shards_of(&self, at: usize, process: u64) -> Result<u64> {
        let status = self.status(at).await?;
        let shards = status["cluster"]["processes"][process.to_string()]["shards"].as_u64();
        Ok(shards.ok_or_else(|| format!("the status does not know process {process}"))?)
    }

    /// Gives FerrisDB's cluster an order, through one of its processes.
    pub(super) async fn order(&self, at: usize, wanted: Order) -> Result<()> {
        let client = ferrisdb_rpc::Client::connect(&self.addresses[at], line_options(None)).await?;
        order(&client, wanted, false).await?;
        Ok(())
    }

    /// Kills a process (SIGKILL). Returns the moments before and after.
    pub(super) fn kill(&mut self, number: usize) -> Result<(Instant, Instant)> {
        let process = self.members[number].process.take().ok_or("the process runs")?;
        let before = Instant::now();
        process.kill()?;
        Ok((before, Instant::now()))
    }

    /// Starts a process that was killed.
    pub(super) fn start(&mut self, number: usize) -> Result<()> {
        let member = &mut self.members[number];
        member.process = Some(Process::start(&member.name, &mut (member.command)()?, &self.directory)?);
        Ok(())
    }

    /// Stops a process where it is, or lets it go on.
    pub(super) fn signal(&self, number: usize, signal: rustix::process::Signal) -> Result<()> {
        self.members[number].process.as_ref().ok_or("the process runs")?.signal(signal)
    }
}

async fn standing(client: &mut Client) -> Result<Standing> {
    let asked = async {
        match client {
            Client::Ferris(database) => {
                let status: serde_json::Value = serde_json::from_str(&database.status().await?)?;
                let cluster = &status["cluster"];
                let process = &cluster["process"];
                Ok(Standing {
                    leads: cluster["leader"].is_u64() && cluster["leader"] == process["number"],
                    has_leader: cluster["leader"].is_u64(),
                    voters: process["log"]["voters"].as_array().map(Vec::len),
                    is_complete: process["is_complete"] == true,
                    applied: cluster["versions"]["applied"].as_u64().ok_or("the status has no applied version")?,
                })
            }
            Client::Etcd(grpc) => {
                let status: etcd::StatusResponse =
                    ask_etcd(grpc, "/etcdserverpb.Maintenance/Status", etcd::StatusRequest {}).await?;
                let own = status.header.ok_or("the status has no header")?.member_id;
                Ok(Standing {
                    leads: status.leader == own,
                    has_leader: status.leader != 0,
                    voters: None,
                    is_complete: true,
                    applied: status.raft_applied_index,
                })
            }
            Client::Redis(_) | Client::Postgres(_) => Err("only FerrisDB and etcd are clusters here".into()),
        }
    };
    tokio::time::timeout(ASKED, asked).await?
}

/// Looks until it is so.
pub(super) async fn until(what: &str, is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    until_within(PATIENCE, what, is_so).await
}

/// The same, for longer or shorter.
pub(super) async fn until_within(
    patience: Duration,
    what: &str,
    mut is_so: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    loop {
        let looked = is_so().await;
        if matches!(looked, Ok(true)) {
            return Ok(());
        }
        if began.elapsed() > patience {
            let last = looked.err().map_or_else(String::new, |error| format!("; the last answer was: {error}"));
            return Err(format!("waited {patience:?} for {what}{last}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// An address of this process's own on loopback, with a port that is free.
fn free_address() -> Result<String> {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, 64 + b % 64, c, d), 0))?;
    Ok(listener.local_addr()?.to_string())
}

/// The child: a process of a cluster, until it is told to end or its standard input ends.
pub(crate) fn serve(directory: &Path, listen: &str, join: Option<&str>, split_bytes: Option<u64>) -> Result<ExitCode> {
    std::thread::Builder::new().name("parent".to_owned()).spawn(|| {
        // Nobody writes: it ends with whoever holds the other end, however that happens.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        std::process::exit(0);
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        let env = Env::real();
        let seed = u64::from_le_bytes(env.entropy.unique_bytes()[..8].try_into()?);
        let transport = Arc::new(TokioRuntime::new(tokio::runtime::Handle::current(), seed));
        let network = Arc::new(RpcNetwork::new(Arc::clone(&transport)));
        let here = Peer { address: listen.to_owned(), zone: String::new() };
        let beginning = match join {
            Some(address) => Beginning::Join(vec![address.to_owned()]),
            None => Beginning::Found,
        };
        let doors = Doors { env, runtime: transport, network };
        let mut options = ClusterOptions::default();
        if let Some(split_bytes) = split_bytes {
            // Sizes that are so small change in no time.
            options.shards.split_bytes = split_bytes;
            options.shards.size_interval = Duration::from_secs(1);
        }
        let node = ClusterNode::open(doors, directory, options, here, beginning).await?;
        ferrisdb_rpc::serve(listener, node.endpoint(), ServeOptions::default(), std::future::pending()).await;
        Ok(ExitCode::SUCCESS)
    })
}
