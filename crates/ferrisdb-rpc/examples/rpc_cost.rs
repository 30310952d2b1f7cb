//! What a request costs: client and server on a thread each, over loopback TCP, with an endpoint in memory that answers at once.
//!
//! `cargo run --release -p ferrisdb-rpc --example rpc_cost -- [SECONDS]` prints, for each number of questions in flight, requests per second, the
//! processor time of client and server together per request, and the median and 99th percentile of the time to the answer.

#![expect(clippy::print_stdout, reason = "it prints its results")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrisdb_core::{Bytes, Code, Error, KeyRange, Limits, Mutation, Version};
use ferrisdb_rpc::api::{
    BeginRequest, Begun, CommitId, CommitRequest, Committed, Description, GetKeyRequest, GetRangeRequest, GetRequest,
    Lease, LeaseRequest, Locations, LocationsRequest, ResolveRequest, Rows, SplitPointsRequest, WatchRequest,
};
use ferrisdb_rpc::{Answer, Client, ClientOptions, Endpoint, ServeOptions, serve};

/// Answers everything at once.
struct Memory {
    value: Bytes,
}

fn none<T>() -> Answer<T> {
    Error::new(Code::UnsupportedOperation).into()
}

impl Endpoint for Memory {
    fn description(&self) -> Description {
        Description { cluster_id: [7; 16], limits: Limits::DEFAULT, connection_string: "memory".to_owned() }
    }

    fn begin(&self, _: BeginRequest) -> Answer<Begun> {
        Answer::now(Ok(Begun { version: Version::from_u64(1), is_locked: false }))
    }

    fn get(&self, _: GetRequest) -> Answer<Option<Bytes>> {
        Answer::now(Ok(Some(self.value.clone())))
    }

    fn get_key(&self, _: GetKeyRequest) -> Answer<Bytes> {
        none()
    }

    fn get_range(&self, _: GetRangeRequest) -> Answer<Rows> {
        none()
    }

    fn commit(&self, _: CommitRequest) -> Answer<Committed> {
        Answer::now(Ok(Committed::At { version: Version::from_u64(1_000_000), batch_index: 0 }))
    }

    fn resolve(&self, _: ResolveRequest) -> Answer<Option<Committed>> {
        none()
    }

    fn watch(&self, _: WatchRequest) -> Answer<Version> {
        none()
    }

    fn lease(&self, _: LeaseRequest) -> Answer<Lease> {
        none()
    }

    fn estimated_size(&self, _: KeyRange) -> Answer<u64> {
        none()
    }

    fn split_points(&self, _: SplitPointsRequest) -> Answer<Vec<Bytes>> {
        none()
    }

    fn addresses_for_key(&self, _: Bytes) -> Answer<Vec<String>> {
        none()
    }

    fn locations(&self, _: LocationsRequest) -> Answer<Locations> {
        none()
    }

    fn status(&self) -> Answer<String> {
        none()
    }
}

/// Processor time of the whole process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::from_secs(time.tv_sec as u64) + Duration::from_nanos(time.tv_nsec as u64)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Get,
    Commit,
}

async fn one(client: &Client, work: Work, number: u64) {
    let key = Bytes::copy_from_slice(&number.to_be_bytes().repeat(2));
    match work {
        Work::Get => {
            let value = client.get(GetRequest { key, version: Version::from_u64(1_000_000) }).await;
            assert_eq!(value.expect("a get is answered").map(|value| value.len()), Some(100));
        }
        Work::Commit => {
            let request = CommitRequest {
                read_version: Version::from_u64(1_000_000),
                read_conflicts: vec![KeyRange::single(&key)],
                write_conflicts: vec![KeyRange::single(&key)],
                mutations: vec![Mutation::set(key, vec![1; 100])],
                id: Some(CommitId { client: 1, counter: number }),
                lowest_unanswered: number,
                report_conflicting_keys: false,
                begins: None,
                lock_aware: false,
            };
            client.commit(request).await.expect("a commit is answered");
        }
    }
}

async fn run(client: &Client, work: Work, in_flight: u64, length: Duration) {
    let (began, cpu) = (Instant::now(), processor_time());
    let mut tasks = Vec::new();
    for task in 0..in_flight {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            let mut number = task << 32;
            while began.elapsed() < length {
                // The clock is read for one in sixteen when there is company, so that it is not what is measured.
                let sent = (in_flight == 1 || number % 16 == 0).then(Instant::now);
                one(&client, work, number).await;
                times.extend(sent.map(|sent| sent.elapsed()));
                number += 1;
            }
            (number - (task << 32), times)
        }));
    }
    let (mut count, mut times) = (0, Vec::new());
    for task in tasks {
        let (number, some) = task.await.expect("a task ends");
        count += number;
        times.extend(some);
    }
    let (took, cpu) = (began.elapsed(), processor_time() - cpu);
    times.sort_unstable();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "{:<7} {in_flight:>4} in flight: {:>9.0} /s, {:>6.2} µs processor time each, p50 {:>7.1} µs, p99 {:>7.1} µs",
        if work == Work::Get { "get" } else { "commit" },
        count as f64 / took.as_secs_f64(),
        micros(cpu) / count as f64,
        micros(times[times.len() / 2]),
        micros(times[times.len() * 99 / 100]),
    );
}

fn main() {
    let seconds = std::env::args().nth(1).map_or(3, |text| text.parse().expect("a number of seconds"));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
            tell.send(listener.local_addr().expect("it has an address")).expect("the main thread listens");
            let endpoint = Arc::new(Memory { value: Bytes::from(vec![b'v'; 100]) });
            serve(listener, endpoint, ServeOptions::default(), std::future::pending()).await;
        });
    });
    let address = told.recv().expect("the server starts").to_string();
    runtime().block_on(async move {
        let client = Client::connect(&address, ClientOptions::default()).await.expect("the server answers");
        run(&client, Work::Get, 64, Duration::from_millis(300)).await;
        for work in [Work::Get, Work::Commit] {
            for in_flight in [1, 8, 64, 512] {
                run(&client, work, in_flight, Duration::from_secs(seconds)).await;
            }
        }
    });
}
