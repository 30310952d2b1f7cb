//! Every bound and every wait of the transport, with its default and the reason for it.

use std::time::Duration;

use ferrisdb_core::Limits;

use crate::frame::MESSAGE_BYTES_MAX;

/// What a server bounds. A server's memory for its connections stays below
/// `connections_max × 32 KiB + request_memory_bytes_max + peer_memory_bytes_max + reply_memory_bytes_max`, plus what the endpoint itself holds
/// for the questions that it is answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// Connections at once. More are told so and closed. Default: 16,384.
    pub connections_max: usize,
    /// Connections at once from one address: three quarters of the default of `connections_max`, so that one machine gone wild leaves room for
    /// others. Default: 12,288.
    pub connections_per_address_max: usize,
    /// Questions of one connection that wait for their answers, watches apart (their number is a limit of the database). With more the connection is
    /// not read from. Default: 1,024.
    pub in_flight_max: usize,
    /// Bytes of one request. Default: twice what a transaction may have, for the encoding of many small mutations, and 1 MiB.
    pub request_bytes_max: usize,
    /// Bytes of requests that are being received or answered, over all connections, beyond 16 KiB each. With more, connections
    /// that need memory are not read from. At least `request_bytes_max`. Default: 256 MiB.
    pub request_memory_bytes_max: usize,
    /// Bytes of one request of another process of the cluster. At least `request_bytes_max`, because they forward what clients ask. Default:
    /// 32 MiB, for a message with several batches of the log.
    pub peer_request_bytes_max: usize,
    /// What `request_memory_bytes_max` is for clients, for the other processes of the cluster. It is apart because commits hold the clients'
    /// memory until other processes have been heard: if they shared it, a crowd of clients could keep the cluster from ever answering them. At
    /// least `peer_request_bytes_max`. Default: 128 MiB.
    pub peer_memory_bytes_max: usize,
    /// Bytes of replies that one connection has not taken yet. With more it is not read from, and no further answers are collected
    /// for it. One reply may exceed it. Default: 1 MiB.
    pub reply_bytes_max: usize,
    /// The same over all connections, beyond 16 KiB each. Default: 256 MiB.
    pub reply_memory_bytes_max: usize,
    /// A connection says who it is within this time. Default: 5 s.
    pub hello_timeout: Duration,
    /// A frame that has begun ends within this time; a long message gets a second more for each 256 KiB. Default: 10 s.
    pub frame_timeout: Duration,
    /// A connection from which nothing came for so long is closed; clients ping three times as often. Default: 60 s.
    pub idle_timeout: Duration,
    /// A connection that takes nothing of its replies for so long is closed. Default: 30 s.
    pub write_timeout: Duration,
    /// How long a server that stops waits for the questions under way. Default: 10 s.
    pub drain_timeout: Duration,
}

impl ServeOptions {
    /// The defaults for a database with these limits.
    pub fn for_limits(limits: &Limits) -> ServeOptions {
        let request_bytes_max = 2 * limits.transaction_bytes + (1 << 20);
        ServeOptions {
            connections_max: 16_384,
            connections_per_address_max: 12_288,
            in_flight_max: 1_024,
            request_bytes_max,
            request_memory_bytes_max: (256 << 20).max(request_bytes_max),
            peer_request_bytes_max: (32 << 20).max(request_bytes_max),
            peer_memory_bytes_max: (128 << 20).max(request_bytes_max),
            reply_bytes_max: 1 << 20,
            reply_memory_bytes_max: 256 << 20,
            hello_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }

    /// The same with every bound at least as large as what it bounds.
    pub(crate) fn resolved(mut self) -> ServeOptions {
        self.connections_max = self.connections_max.max(1);
        self.connections_per_address_max = self.connections_per_address_max.max(1);
        self.in_flight_max = self.in_flight_max.max(1);
        self.request_bytes_max = self.request_bytes_max.max(MESSAGE_BYTES_MAX);
        self.request_memory_bytes_max = self.request_memory_bytes_max.max(self.request_bytes_max);
        self.peer_request_bytes_max = self.peer_request_bytes_max.max(self.request_bytes_max);
        self.peer_memory_bytes_max = self.peer_memory_bytes_max.max(self.peer_request_bytes_max);
        self
    }
}

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        ServeOptions::for_limits(&Limits::DEFAULT)
    }
}

/// How a client deals with its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// The cluster that is expected; another is an error. `None`: whichever answers first, and no other after it.
    pub cluster_id: Option<[u8; 16]>,
    /// Whoever connects is another process of the cluster: it may ask [`message`](crate::Endpoint::message), and its questions are answered
    /// without being forwarded ([`for_peers`](crate::Endpoint::for_peers)). A process that forwards much should do so over a client of its own, beside the
    /// one for messages: what fills the bound of one connection does not hold up the other. Default: false.
    pub is_peer: bool,
    /// Whoever connects knows whom it asks: the process is to answer by itself, or to say that it cannot, and not to forward the question. A [`Router`](crate::Router) opens such
    /// connections. Default: false.
    pub asks_one: bool,
    /// A [`Router`](crate::Router) asks the processes that have what is asked for; otherwise one process at a time is asked, and forwards what it does not have. Off for processes that
    /// the client cannot reach under the addresses that they have among themselves; it goes on without them, but tries. Default: true.
    pub asks_holders: bool,
    /// Program and version, for the server's log. Default: `ferrisdb` and the version of this library.
    pub software: String,
    /// One attempt to connect, hello included. Default: 5 s.
    pub connect_timeout: Duration,
    /// Without a connection for so long, questions fail with `connection_failed` instead of waiting; connecting goes on. Default: 10 s.
    pub outage_max: Duration,
    /// The longest wait between two attempts to connect. The first is 10 ms; each is twice the one before, less a random part of up
    /// to a half, so that the clients of a server that was restarted do not come all at once. Default: 1 s.
    pub backoff_max: Duration,
    /// A question other than a commit or a watch is answered within this time, or fails with `connection_failed`. Who wants to wait for less drops
    /// the answer. Default: 10 s.
    pub question_timeout: Duration,
    /// A commit is answered within this time, or fails with `commit_unknown_result`. Default: 30 s.
    pub commit_timeout: Duration,
    /// Pings go out so often while nothing else does, and if nothing at all came back within as long again the connection
    /// counts as lost. A server may ask for more. Default: 5 s.
    pub keep_alive: Duration,
    /// While questions wait, watches apart, a connection from which nothing at all comes for so long counts as lost, and another address is tried; within that
    /// time the server is pinged, which it answers however long the questions take. So this is how long a process that stands still, or a network
    /// that swallows everything, holds up its clients; whoever is only slow is not left. Looked at six times within it, so it may take a sixth more. Default: 3 s.
    pub silence_max: Duration,
    /// Questions under way, watches apart; more wait their turn. Default: 4,096.
    pub in_flight_max: usize,
    /// Decides the random part of the waits, and at which of several addresses a client begins. `None`: another one in each process.
    pub seed: Option<u64>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            cluster_id: None,
            is_peer: false,
            asks_one: false,
            asks_holders: true,
            software: concat!("ferrisdb ", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
            outage_max: Duration::from_secs(10),
            backoff_max: Duration::from_secs(1),
            question_timeout: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            silence_max: Duration::from_secs(3),
            in_flight_max: 4_096,
            seed: None,
        }
    }
}
