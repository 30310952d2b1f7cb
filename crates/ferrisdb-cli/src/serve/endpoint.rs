//! [`Served`]: a database as its server's clients see it. All questions go straight to it; only what it says about itself also has the
//! server's side: address, connections, requests, and a warning if it listens to everybody.

use std::sync::{Arc, OnceLock, Weak};

use ferrisdb::alone::Alone;
use ferrisdb::api::{Afterwards, CommitRequest, Committed, Description, Locations, LocationsRequest};
use ferrisdb::{Answer, Bytes, Endpoint};
use ferrisdb_rpc::stats::{LATENCY_CLASSES, Method, Rejection};
use ferrisdb_rpc::{Server, pass_on};
use serde_json::{Map, Value, json};

/// A database behind a server.
pub(super) struct Served {
    pub(super) endpoint: Arc<dyn Endpoint>,
    /// Says whether it is all processes of its database. `None`: it is one of a cluster.
    pub(super) alone: Option<Alone>,
    /// Where it listens.
    pub(super) address: String,
    /// The warning, if it listens to more than this machine without TLS.
    pub(super) insecure: Option<String>,
    /// Weak, because the server holds its endpoint.
    pub(super) server: OnceLock<Weak<Server>>,
}

impl Served {
    fn is_alone(&self) -> bool {
        self.alone.as_ref().is_some_and(Alone::is_alone)
    }

    fn document(&self, node: &str) -> Option<String> {
        let mut document: Value = serde_json::from_str(node).ok()?;
        let cluster = document.get_mut("cluster")?;
        if self.is_alone() {
            cluster["processes"]["0"]["address"] = json!(self.address);
        }
        cluster["insecure"] = json!(self.insecure.is_some());
        if let (Some(text), Some(messages)) = (&self.insecure, cluster["messages"].as_array_mut()) {
            messages.push(json!({"name": "insecure", "description": text}));
        }
        if let Some(server) = self.server.get().and_then(Weak::upgrade) {
            cluster["rpc"] = rpc(&server);
        }
        Some(document.to_string())
    }
}

/// What the server has counted.
fn rpc(server: &Server) -> Value {
    let stats = server.stats();
    let errors = stats.errors();
    let methods: Map<String, Value> = Method::ALL
        .iter()
        .map(|&method| {
            let (inline, later) = stats.answered(method);
            let latencies = stats.latencies(method);
            let codes: Map<String, Value> = errors
                .iter()
                .filter(|((of, _), _)| *of == method)
                .map(|((_, code), count)| (code.name().to_owned(), json!(count)))
                .collect();
            let value = json!({
                "inline": inline,
                "later": later,
                "p50_seconds": quantile(&latencies, 0.50),
                "p99_seconds": quantile(&latencies, 0.99),
                "errors": codes,
            });
            (method.name().to_owned(), value)
        })
        .collect();
    let rejected =
        Rejection::ALL.iter().map(|&rejection| (rejection.name().to_owned(), json!(stats.rejected(rejection))));
    let (request_bytes, reply_bytes) = server.memory_reserved();
    json!({
        "connections_open": stats.connections_open(),
        "connections_total": stats.connections_total(),
        "connections_max": server.options().connections_max,
        "bytes_received": stats.bytes_received(),
        "bytes_sent": stats.bytes_sent(),
        "cancelled": stats.cancelled(),
        "request_memory_bytes": request_bytes,
        "reply_memory_bytes": reply_bytes,
        "rejected": Value::Object(rejected.collect()),
        "methods": methods,
    })
}

/// The upper end, in seconds, of the class that the answer of this rank is in; of answers that were not there at once.
fn quantile(latencies: &[u64; LATENCY_CLASSES], share: f64) -> Option<f64> {
    let total: u64 = latencies.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a quantile of more than 2^53 answers may be off by one")]
    let rank = total as f64 * share;
    let mut seen = 0.0;
    for (class, count) in (0i32..).zip(latencies) {
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        let count = *count as f64;
        seen += count;
        if count > 0.0 && seen >= rank {
            return Some(2f64.powi(class) * 1e-6);
        }
    }
    None
}

impl Endpoint for Served {
    fn description(&self) -> Description {
        let description = self.endpoint.description();
        if self.is_alone() {
            Description { connection_string: self.address.clone(), ..description }
        } else {
            description
        }
    }

    pass_on! { |self| self.endpoint =>
        begin, get, get_key, get_range, commit, resolve, watch, lease, estimated_size, split_points, message
    }

    fn commit_alone(&self, request: CommitRequest, afterwards: &mut Afterwards) -> Answer<Committed> {
        self.endpoint.commit_alone(request, afterwards)
    }

    fn addresses_for_key(&self, key: Bytes) -> Answer<Vec<String>> {
        if self.is_alone() {
            return Answer::now(Ok(vec![self.address.clone()]));
        }
        self.endpoint.addresses_for_key(key)
    }

    fn locations(&self, request: LocationsRequest) -> Answer<Locations> {
        if self.is_alone() {
            return Answer::now(Ok(Locations::whole(vec![self.address.clone()])));
        }
        self.endpoint.locations(request)
    }

    fn status(&self) -> Answer<String> {
        match self.endpoint.status().try_now() {
            Ok(status) => Answer::now(status.map(|text| self.document(&text).unwrap_or(text))),
            Err(later) => later,
        }
    }

    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        self.endpoint.for_peers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quantile is the upper end of a class of a power of two of microseconds; without answers there is none.
    #[test]
    fn quantiles_are_upper_ends_of_classes() {
        let mut latencies = [0; LATENCY_CLASSES];
        assert_eq!(quantile(&latencies, 0.5), None);
        latencies[3] = 98;
        latencies[10] = 2;
        assert_eq!(quantile(&latencies, 0.5), Some(8e-6));
        assert_eq!(quantile(&latencies, 0.99), Some(1024e-6));
    }
}
