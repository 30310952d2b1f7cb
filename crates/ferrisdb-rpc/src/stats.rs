//! [`ServerStats`]: what a server counts, for its status.
//!
//! Counters are atomic and only ever added to; a snapshot of several is not of one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferrisdb_core::Code;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident: $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// Its stable name, in logs and in the status.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// A kind of question.
    Method:
    /// `begin`.
    Begin = "begin",
    /// `get`.
    Get = "get",
    /// `get_key`.
    GetKey = "get_key",
    /// `get_range`.
    GetRange = "get_range",
    /// `commit`.
    Commit = "commit",
    /// `resolve`.
    Resolve = "resolve",
    /// `watch`.
    Watch = "watch",
    /// `lease`.
    Lease = "lease",
    /// `estimated_size`.
    EstimatedSize = "estimated_size",
    /// `split_points`.
    SplitPoints = "split_points",
    /// `addresses_for_key`.
    AddressesForKey = "addresses_for_key",
    /// `locations`.
    Locations = "locations",
    /// `status`.
    Status = "status",
    /// `message`.
    Message = "message",
}

named! {
    /// Why a server did not keep a connection.
    Rejection:
    /// There are as many connections as the server takes.
    TooManyConnections = "too_many_connections",
    /// There are as many from this address as the server takes from one.
    TooManyFromAddress = "too_many_from_address",
    /// It speaks HTTP.
    Http = "http",
    /// It speaks TLS, which this listener does not.
    Tls = "tls",
    /// It speaks something else.
    NotFerris = "not_ferrisdb",
    /// No protocol version that both sides speak.
    ProtocolVersion = "protocol_version",
    /// It wants another cluster.
    ClusterId = "cluster_id",
    /// It brings credentials, which this server does not check yet.
    Credentials = "credentials",
    /// It did not say who it is in time.
    HelloTimeout = "hello_timeout",
    /// It broke the protocol.
    Protocol = "protocol_error",
    /// A frame that it began did not end in time.
    FrameTimeout = "frame_timeout",
    /// Nothing came from it.
    Idle = "idle",
    /// It did not take its replies.
    WriteTimeout = "write_timeout",
}

/// Latencies are counted in classes of a power of two of microseconds: class `n` holds those below `2^n` µs that class `n - 1` does not;
/// the last one has everything from 2^24 µs (17 s) on.
pub const LATENCY_CLASSES: usize = 26;

#[derive(Debug)]
struct MethodStats {
    inline: AtomicU64,
    later: AtomicU64,
    latencies: [AtomicU64; LATENCY_CLASSES],
}

impl Default for MethodStats {
    fn default() -> MethodStats {
        let latencies = std::array::from_fn(|_| AtomicU64::new(0));
        MethodStats { inline: AtomicU64::new(0), later: AtomicU64::new(0), latencies }
    }
}

/// What a server has counted since its start.
#[derive(Debug)]
pub struct ServerStats {
    methods: [MethodStats; Method::ALL.len()],
    /// Answers that are errors. Rare, so that a lock is cheap enough.
    errors: Mutex<BTreeMap<(Method, Code), u64>>,
    rejections: [AtomicU64; Rejection::ALL.len()],
    connections_open: AtomicU64,
    connections_total: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    cancelled: AtomicU64,
}

impl Default for ServerStats {
    fn default() -> ServerStats {
        ServerStats {
            methods: std::array::from_fn(|_| MethodStats::default()),
            errors: Mutex::default(),
            rejections: std::array::from_fn(|_| AtomicU64::new(0)),
            connections_open: AtomicU64::new(0),
            connections_total: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
        }
    }
}

/// Adds up in plain numbers what a connection's turn brings, so that a request costs no shared memory.
#[derive(Debug, Default)]
pub(crate) struct TurnStats {
    inline: [u64; Method::ALL.len()],
    received: u64,
    sent: u64,
}

impl TurnStats {
    pub(crate) fn count_inline(&mut self, method: Method) {
        self.inline[method as usize] += 1;
    }

    pub(crate) fn count_received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    pub(crate) fn count_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Moves everything to `stats`.
    pub(crate) fn pour_into(&mut self, stats: &ServerStats) {
        if self.received > 0 {
            stats.bytes_received.fetch_add(std::mem::take(&mut self.received), Ordering::Relaxed);
            for (count, method) in self.inline.iter_mut().zip(&stats.methods) {
                if *count > 0 {
                    method.inline.fetch_add(std::mem::take(count), Ordering::Relaxed);
                }
            }
        }
        if self.sent > 0 {
            stats.bytes_sent.fetch_add(std::mem::take(&mut self.sent), Ordering::Relaxed);
        }
    }
}

impl ServerStats {
    pub(crate) fn count_later(&self, method: Method, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let class = (u64::BITS - micros.leading_zeros()) as usize;
        let stats = &self.methods[method as usize];
        stats.later.fetch_add(1, Ordering::Relaxed);
        stats.latencies[class.min(LATENCY_CLASSES - 1)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error(&self, method: Method, code: Code) {
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry((method, code)).or_default() += 1;
    }

    pub(crate) fn count_rejection(&self, rejection: Rejection) {
        self.rejections[rejection as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_opened(&self) {
        self.connections_open.fetch_add(1, Ordering::Relaxed);
        self.connections_total.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_closed(&self) {
        self.connections_open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Questions that have been answered: at once, and after a wait.
    pub fn answered(&self, method: Method) -> (u64, u64) {
        let stats = &self.methods[method as usize];
        (stats.inline.load(Ordering::Relaxed), stats.later.load(Ordering::Relaxed))
    }

    /// How long the answers took that were not there at once, by class: see [`LATENCY_CLASSES`]. Those that were took less than one turn of
    /// their connection, which is not measured for each.
    pub fn latencies(&self, method: Method) -> [u64; LATENCY_CLASSES] {
        let stats = &self.methods[method as usize];
        std::array::from_fn(|class| stats.latencies[class].load(Ordering::Relaxed))
    }

    /// Answers that were errors, by question and code.
    pub fn errors(&self) -> BTreeMap<(Method, Code), u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that were refused or closed for this reason.
    pub fn rejected(&self, rejection: Rejection) -> u64 {
        self.rejections[rejection as usize].load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn connections_open(&self) -> u64 {
        self.connections_open.load(Ordering::Relaxed)
    }

    /// Connections that were ever accepted.
    pub fn connections_total(&self) -> u64 {
        self.connections_total.load(Ordering::Relaxed)
    }

    /// Bytes that have come.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Bytes that have been sent.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Questions whose client did not want the answer any more.
    pub fn cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::Relaxed)
    }
}
