//! The servers, each started with a directory of its own, and a client for each.
//!
//! Each is durable in its strictest ordinary way (every acknowledged write is on the disk), listens on loopback, and is used as its users
//! would with many operations in flight:
//!
//! | | connections | many in flight |
//! |---|---|---|
//! | FerrisDB | 1 | a transaction each |
//! | etcd | 1 | unary calls over one HTTP/2 connection; linearizable reads, the default |
//! | Redis | 1 | pipelined |
//! | PostgreSQL | 64 | prepared statements, one at a time on each connection; or pipelined over 8 |

use std::collections::VecDeque;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferrisdb::Database;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{NoTls, Statement};
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::process::{Process, find, free_port, run, user};
use crate::engine::Result;

/// How long a server may take until it answers.
const START_MAX: Duration = Duration::from_secs(60);

/// A server with its name and one client.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) client: Client,
    /// Shared by peers that are the same server, used differently.
    pub(crate) process: Arc<Process>,
}

impl Peer {
    /// The one client, for whoever takes several.
    pub(crate) fn clients(&self) -> [Client; 1] {
        [self.client.clone()]
    }
}

/// A client of one of the servers.
#[derive(Clone)]
pub(crate) enum Client {
    Ferris(Database),
    Etcd(tonic::client::Grpc<Channel>),
    Redis(Redis),
    Postgres(Arc<Vec<Session>>),
}

/// A connection to PostgreSQL with its statements.
pub(crate) struct Session {
    client: tokio_postgres::Client,
    get: Statement,
    put: Statement,
}

impl Client {
    /// A value; `number` says which of the clients asks.
    pub(crate) async fn get(&mut self, number: usize, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self {
            Client::Ferris(database) => {
                let value = database.run(async |transaction| transaction.get(key).await).await?;
                Ok(value.map(|value| value.to_vec()))
            }
            Client::Etcd(grpc) => {
                let question = etcd::RangeRequest { key: key.to_vec() };
                let answer: etcd::RangeResponse = ask_etcd(grpc, "/etcdserverpb.KV/Range", question).await?;
                Ok(answer.kvs.into_iter().next().map(|pair| pair.value))
            }
            Client::Redis(redis) => redis.ask(&[b"GET", key]).await,
            Client::Postgres(sessions) => {
                let session = &sessions[number % sessions.len()];
                let row = session.client.query_opt(&session.get, &[&key]).await?;
                Ok(row.map(|row| row.get(0)))
            }
        }
    }

    /// Stores a value; it is on the disk when this returns.
    pub(crate) async fn put(&mut self, number: usize, key: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Client::Ferris(database) => {
                database
                    .run(async |transaction| {
                        transaction.set(key, value);
                        Ok(())
                    })
                    .await?;
            }
            Client::Etcd(grpc) => {
                let question = etcd::PutRequest { key: key.to_vec(), value: value.to_vec() };
                let _: etcd::PutResponse = ask_etcd(grpc, "/etcdserverpb.KV/Put", question).await?;
            }
            Client::Redis(redis) => {
                redis.ask(&[b"SET", key, value]).await?;
            }
            Client::Postgres(sessions) => {
                let session = &sessions[number % sessions.len()];
                session.client.execute(&session.put, &[&key, &value]).await?;
            }
        }
        Ok(())
    }
}

/// Tries until it works or the server has had its time.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(
    name: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if began.elapsed() > START_MAX => return Err(format!("{name} does not answer: {error}").into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// FerrisDB, in a child process of this program.
pub(crate) async fn ferris(directory: &Path) -> Result<Vec<Peer>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve-child").arg(directory.join("ferris")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start("ferrisdb", &mut command, directory)?;
    let mut address = String::new();
    BufReader::new(process.stdout().ok_or("it is piped")?).read_line(&mut address)?;
    if address.trim().is_empty() {
        return Err("the FerrisDB server ended at once; its words are above".into());
    }
    let database = Database::connect(address.trim()).await?;
    Ok(vec![Peer { name: "FerrisDB", client: Client::Ferris(database), process: Arc::new(process) }])
}

/// The child: serves the database in `directory` until it is interrupted, and prints the address first.
pub(crate) fn serve(directory: &Path) -> Result<()> {
    let database = Database::open(directory)?;
    let endpoint = Arc::clone(database.node().ok_or("it is embedded")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        ferrisdb_rpc::serve(listener, endpoint, ferrisdb_rpc::ServeOptions::default(), std::future::pending()).await;
        Ok(())
    })
}

/// etcd, if it is installed.
pub(crate) async fn etcd(directory: &Path) -> Result<Vec<Peer>> {
    let Some(program) = find("etcd", &[PathBuf::from("/usr/sbin")]) else { return Ok(Vec::new()) };
    let clients = format!("http://127.0.0.1:{}", free_port()?);
    let peers = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(directory.join("etcd")).args(["--name", "one", "--log-level", "error"]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("one={peers}")]).stdin(Stdio::null()).stdout(Stdio::null());
    let process = Process::start("etcd", &mut command, directory)?;
    let client = patiently("etcd", async || {
        let channel = Channel::from_shared(clients.clone())?.tcp_nodelay(true).connect().await?;
        let mut client = Client::Etcd(tonic::client::Grpc::new(channel));
        client.get(0, b"is anybody there").await?;
        Ok(client)
    })
    .await?;
    Ok(vec![Peer { name: "etcd", client, process: Arc::new(process) }])
}

/// A call of etcd's interface.
pub(crate) async fn ask_etcd<Q, A>(
    grpc: &mut tonic::client::Grpc<Channel>,
    path: &'static str,
    question: Q,
) -> Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    grpc.ready().await?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    Ok(grpc.unary(tonic::Request::new(question), path, codec).await?.into_inner())
}

/// The messages of etcd's interface, as far as they are used here. Fields that are left out are skipped when they come.
pub(crate) mod etcd {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RangeRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RangeResponse {
        #[prost(message, repeated, tag = "2")]
        pub(super) kvs: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct KeyValue {
        #[prost(bytes = "vec", tag = "5")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PutRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PutResponse {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct StatusRequest {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct StatusResponse {
        #[prost(message, optional, tag = "1")]
        pub(crate) header: Option<ResponseHeader>,
        #[prost(uint64, tag = "4")]
        pub(crate) leader: u64,
        #[prost(uint64, tag = "7")]
        pub(crate) raft_applied_index: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ResponseHeader {
        #[prost(uint64, tag = "2")]
        pub(crate) member_id: u64,
    }
}

/// Redis, if it is installed.
pub(crate) async fn redis(directory: &Path) -> Result<Vec<Peer>> {
    let Some(program) = find("redis-server", &[]) else { return Ok(Vec::new()) };
    let port = free_port()?;
    let data = directory.join("redis");
    std::fs::create_dir_all(&data)?;
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]).arg("--dir").arg(data);
    let process = Process::start("redis", command.stdin(Stdio::null()).stdout(Stdio::null()), directory)?;
    let redis = patiently("Redis", || Redis::connect(port)).await?;
    Ok(vec![Peer { name: "Redis", client: Client::Redis(redis), process: Arc::new(process) }])
}

type Reply = Result<Option<Vec<u8>>>;

/// A connection to Redis on which commands are pipelined: all that are there go out in one write, answers come in order.
#[derive(Clone)]
pub(crate) struct Redis {
    commands: mpsc::UnboundedSender<(Vec<u8>, oneshot::Sender<Reply>)>,
}

impl Redis {
    async fn connect(port: u16) -> Result<Redis> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = stream.into_split();
        let (commands, mut waiting) = mpsc::unbounded_channel::<(Vec<u8>, oneshot::Sender<Reply>)>();
        let asked: Arc<Mutex<VecDeque<oneshot::Sender<Reply>>>> = Arc::default();
        let answered = Arc::clone(&asked);
        // When a task ends, the promises that it holds break, and whoever waits for them is told.
        drop(tokio::spawn(async move {
            while let Some((mut bytes, promise)) = waiting.recv().await {
                lock(&asked).push_back(promise);
                while let Ok((more, promise)) = waiting.try_recv() {
                    bytes.extend_from_slice(&more);
                    lock(&asked).push_back(promise);
                }
                if writer.write_all(&bytes).await.is_err() {
                    return lock(&asked).clear();
                }
            }
        }));
        drop(tokio::spawn(async move {
            let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
            loop {
                let Ok(count @ 1..) = reader.read(&mut buffer).await else { return lock(&answered).clear() };
                bytes.extend_from_slice(&buffer[..count]);
                let mut from = 0;
                while let Some((reply, length)) = parse(&bytes[from..]) {
                    from += length;
                    let Some(promise) = lock(&answered).pop_front() else { return };
                    // Whoever asked may have gone.
                    drop(promise.send(reply));
                }
                bytes.drain(..from);
            }
        }));
        let redis = Redis { commands };
        redis.ask(&[b"GET", b"is anybody there"]).await?;
        Ok(redis)
    }

    async fn ask(&self, words: &[&[u8]]) -> Reply {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        let (promise, answer) = oneshot::channel();
        self.commands.send((bytes, promise)).map_err(|_| "the connection to Redis has ended")?;
        answer.await.map_err(|_| "the connection to Redis has ended")?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is held")
}

/// The first reply in `bytes` and its length; `None` if it is not whole yet.
fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let line = bytes.windows(2).position(|two| two == b"\r\n")?;
    let text = String::from_utf8_lossy(bytes.get(1..line)?).into_owned();
    match bytes[0] {
        b'+' | b':' => Some((Ok(Some(text.into_bytes())), line + 2)),
        b'$' => match text.parse::<usize>() {
            Ok(length) => {
                let begin = line + 2;
                let value = bytes.get(begin..begin + length)?.to_vec();
                (bytes.len() >= begin + length + 2).then(|| (Ok(Some(value)), begin + length + 2))
            }
            Err(_) => Some((Ok(None), line + 2)),
        },
        _ => Some((Err(format!("Redis: {text}").into()), line + 2)),
    }
}

/// PostgreSQL, if it is installed: once with a connection for each of 64 clients, once pipelined over eight connections.
pub(crate) async fn postgres(directory: &Path) -> Result<Vec<Peer>> {
    let mut programs: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.filter_map(|version| Some(version.ok()?.path().join("bin"))).collect())
        .unwrap_or_default();
    programs.sort();
    programs.reverse();
    let (Some(initdb), Some(postgres)) = (find("initdb", &programs), find("postgres", &programs)) else {
        return Ok(Vec::new());
    };
    let data = directory.join("postgres");
    std::fs::create_dir_all(&data)?;
    // It refuses to run as root; its package comes with a user.
    let owner = if rustix::process::geteuid().is_root() {
        let (uid, gid) = user("postgres").ok_or("PostgreSQL does not run as root, and there is no user postgres")?;
        chown(&data, Some(uid), Some(gid))?;
        Some((uid, gid))
    } else {
        None
    };
    let command = |program: &Path| {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = owner {
            command.uid(uid).gid(gid);
        }
        command.current_dir(&data).arg("-D").arg(&data);
        command
    };
    run(command(&initdb).args(["--username", "bench", "--auth", "trust", "--no-sync", "--encoding", "UTF8"]))?;
    let port = free_port()?;
    let mut server = command(&postgres);
    server.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=on"]);
    server.args(["-c", "synchronous_commit=on", "-c", "max_connections=100", "-c", "shared_buffers=256MB", "-k", ""]);
    let process = Process::start("postgres", server.stdin(Stdio::null()).stdout(Stdio::null()), directory)?;
    let process = Arc::new(process);
    let settings = format!("host=127.0.0.1 port={port} user=bench dbname=postgres");
    patiently("PostgreSQL", async || {
        let (client, connection) = tokio_postgres::connect(&settings, NoTls).await?;
        drop(tokio::spawn(connection));
        client.batch_execute("create table if not exists kv (k bytea primary key, v bytea not null)").await?;
        Ok(())
    })
    .await?;
    let mut peers = Vec::new();
    for (name, connections) in [("PostgreSQL, 64 connections", 64), ("PostgreSQL, 8 connections", 8)] {
        let mut sessions = Vec::new();
        for _ in 0..connections {
            let (client, connection) = tokio_postgres::connect(&settings, NoTls).await?;
            drop(tokio::spawn(connection));
            let get = client.prepare("select v from kv where k = $1").await?;
            let put = "insert into kv values ($1, $2) on conflict (k) do update set v = excluded.v";
            let put = client.prepare(put).await?;
            sessions.push(Session { client, get, put });
        }
        let client = Client::Postgres(Arc::new(sessions));
        peers.push(Peer { name, client, process: Arc::clone(&process) });
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies are cut where they end, also when they come in pieces.
    #[test]
    fn replies_of_redis_are_parsed() {
        let bytes = b"+OK\r\n$5\r\na\r\nbc\r\n$-1\r\n-ERR no\r\n";
        let (mut from, mut replies) = (0, Vec::new());
        while let Some((reply, length)) = parse(&bytes[from..]) {
            for cut in 0..length {
                assert!(parse(&bytes[from..from + cut]).is_none(), "{cut} bytes of {length} are no whole reply");
            }
            from += length;
            replies.push(reply.map_err(|error| error.to_string()));
        }
        assert_eq!(from, bytes.len());
        let expected =
            [Ok(Some(b"OK".to_vec())), Ok(Some(b"a\r\nbc".to_vec())), Ok(None), Err("Redis: ERR no".to_owned())];
        assert_eq!(replies, expected);
    }
}
