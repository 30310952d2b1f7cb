//! What the processes of a cluster see of each other: messages, and an endpoint of their own.

use super::client::Breaking;
use super::*;
use crate::client::Client;
use crate::stats::Method;
use ferrisdb_core::Mutation;

/// A process of a cluster: a puppet that takes messages, and what answers other processes.
struct Member {
    puppet: Arc<Puppet>,
    for_peers: Option<Arc<dyn Endpoint>>,
}

impl Endpoint for Member {
    crate::pass_on! { |self| self.puppet =>
        begin, get, get_key, get_range, commit, resolve, watch, lease, estimated_size, split_points,
        addresses_for_key, locations, status
    }

    fn description(&self) -> Description {
        self.puppet.description()
    }

    /// `hold…` waits to be released; the answer to everything is what was sent.
    fn message(&self, message: Bytes) -> Answer<Bytes> {
        self.puppet.ask();
        if message.starts_with(b"hold") { self.puppet.hold(Ok(message)) } else { Answer::now(Ok(message)) }
    }

    fn for_peers(&self) -> Option<Arc<dyn Endpoint>> {
        self.for_peers.clone()
    }
}

/// A stage with a member that answers everybody itself.
fn member(options: ServeOptions, room: usize) -> Stage {
    let puppet = Arc::new(Puppet::default());
    let endpoint = Arc::new(Member { puppet: Arc::clone(&puppet), for_peers: None });
    Stage::with_endpoint(puppet, endpoint, options, room)
}

fn peer() -> ClientOptions {
    ClientOptions { is_peer: true, ..ClientOptions::default() }
}

/// Bytes in which a piece that is missing or in another's place would show.
fn long(len: usize) -> Bytes {
    (0..len).map(|at| (at / 1000) as u8).collect::<Vec<u8>>().into()
}

#[test]
fn a_message_and_its_answer_arrive_as_they_were() {
    run(async {
        let stage = member(ServeOptions::default(), 1 << 16);
        let client = Client::connect_with(stage.hall.clone(), "hall", peer()).await.unwrap();
        let endpoints: [&dyn Endpoint; 2] = [&stage.connect_with(&peer()).await, &client];
        for endpoint in endpoints {
            for len in [0, 1, 65_535, 65_536, 16 << 20, 31 << 20] {
                let answer = endpoint.message(long(len)).await.unwrap();
                assert!(answer == long(len), "{len} bytes");
            }
        }
        assert_eq!(stage.puppet.asked(), 12);
        assert_eq!(stage.server.stats().answered(Method::Message), (12, 0));
        assert_eq!(stage.server.memory_reserved().0, 0);
    });
}

/// A client that sends a message is told so and served on; what an older program's hello does not say is that it is a peer (`golden.txt`, "hello client").
#[test]
fn a_client_cannot_send_messages() {
    run(async {
        let stage = member(ServeOptions::default(), 1 << 16);
        let connection = stage.connect().await;
        let error = connection.message(Bytes::from("m")).await.unwrap_err();
        assert_eq!(error.code(), Code::ClientInvalidOperation);
        assert!(error.to_string().contains("only the processes of a cluster send each other messages"), "{error}");
        assert_eq!(stage.puppet.asked(), 0);
        assert_eq!(connection.get(get("k")).await.unwrap().unwrap(), "k");
    });
}

/// What is no process of a cluster answers a peer as it answers a client, and refuses messages.
#[test]
fn an_endpoint_without_a_cluster_refuses_messages() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let connection = stage.connect_with(&peer()).await;
        let error = connection.message(Bytes::from("m")).await.unwrap_err();
        assert_eq!(error, Error::with(Code::ClientInvalidOperation, "this is not a process of a cluster"));
        assert_eq!(connection.get(get("k")).await.unwrap().unwrap(), "k");
    });
}

/// A peer's questions, and only those, go to the endpoint that is there for peers.
#[test]
fn peers_are_answered_by_an_endpoint_of_their_own() {
    run(async {
        let (puppet, for_peers) = (Arc::new(Puppet::default()), Arc::new(Puppet::default()));
        let inner: Arc<dyn Endpoint> = Arc::new(Member { puppet: Arc::clone(&for_peers), for_peers: None });
        let endpoint = Arc::new(Member { puppet: Arc::clone(&puppet), for_peers: Some(inner) });
        let stage = Stage::with_endpoint(Arc::clone(&puppet), endpoint, ServeOptions::default(), 1 << 16);
        let (client, peer) = (stage.connect().await, stage.connect_with(&peer()).await);
        assert!(client.get(get("k")).await.is_ok());
        assert_eq!((puppet.asked(), for_peers.asked()), (1, 0));
        assert!(peer.get(get("k")).await.is_ok() && peer.commit(commit("k")).await.is_ok());
        assert!(peer.message(Bytes::from("m")).await.is_ok());
        assert_eq!((puppet.asked(), for_peers.asked()), (1, 3));
    });
}

/// A message that is not answered, and one that is long, hold up neither other messages nor other questions, on this connection or another.
#[test]
fn a_slow_message_holds_up_nothing() {
    run(async {
        let stage = member(ServeOptions::default(), 4 << 10);
        let connection = stage.connect_with(&peer()).await;
        let held = connection.message(Bytes::from("hold"));
        let mut large = connection.message(long(16 << 20));
        assert_eq!(connection.message(Bytes::from("small")).await.unwrap(), "small");
        assert_eq!(connection.get(get("k")).await.unwrap().unwrap(), "k");
        assert!(client::futures_poll(&mut large).await.is_pending());
        assert_eq!(large.await.unwrap().len(), 16 << 20);
        stage.puppet.release();
        assert_eq!(held.await.unwrap(), "hold");
    });
}

/// As many wait for their answers as a connection may have under way, and no more; that one is full is nothing to another.
#[test]
fn messages_under_way_are_bounded() {
    run(async {
        let stage = member(ServeOptions { in_flight_max: 2, ..ServeOptions::default() }, 1 << 16);
        let (one, other) = (stage.connect_with(&peer()).await, stage.connect_with(&peer()).await);
        let held: Vec<_> = (0..5).map(|number| one.message(Bytes::from(format!("hold {number}")))).collect();
        settle().await;
        // The bound is looked at after each question, and what one read brought beyond it stays where it is.
        assert_eq!(stage.puppet.held(), 2);
        assert_eq!(other.message(Bytes::from("m")).await.unwrap(), "m");
        for answer in held {
            let release = async {
                settle().await;
                stage.puppet.release();
            };
            let (answer, ()) = tokio::join!(answer, release);
            assert!(answer.is_ok());
        }
        assert_eq!(stage.puppet.asked(), 6);
    });
}

/// A peer's requests may be longer than a client's. What is too long is refused before it is sent.
#[test]
fn a_message_has_a_greatest_length() {
    run(async {
        let limits = Limits { transaction_bytes: 1 << 20, ..Limits::DEFAULT };
        let stage = member(ServeOptions::for_limits(&limits), 1 << 16);
        let (client, peer) = (stage.connect().await, stage.connect_with(&peer()).await);
        assert!(peer.message(long(16 << 20)).await.is_ok(), "whatever a transaction may have");
        let error = peer.message(long(32 << 20)).await.unwrap_err();
        assert_eq!(error.code(), Code::ClientInvalidOperation);
        assert!(error.to_string().contains("the server takes 33554432"), "{error}");
        let mutations = vec![Mutation::set("k", long(4 << 20))];
        let large = CommitRequest { mutations, ..commit("k") };
        assert_eq!(code(client.commit(large.clone()).await), Code::TransactionTooLarge);
        assert!(peer.commit(large).await.is_ok(), "it may be forwarded by a process with other limits");
    });
}

/// Clients that hold all memory there is for requests do not keep the processes of the cluster from hearing each other.
#[test]
fn clients_do_not_use_up_the_memory_of_peers() {
    run(async {
        let stage = member(ServeOptions { request_memory_bytes_max: 0, ..ServeOptions::default() }, 1 << 16);
        let large = || {
            let mutations = (0..90).map(|_| Mutation::set("hold", vec![1; 100_000])).collect();
            CommitRequest { mutations, ..commit("hold") }
        };
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let connection = stage.connect().await;
            waiting.push((connection.commit(large()), connection));
            settle().await;
        }
        assert_eq!(stage.puppet.held(), 2, "there is no memory for the third");
        let peer = stage.connect_with(&peer()).await;
        assert_eq!(peer.message(long(16 << 20)).await.unwrap().len(), 16 << 20);
        assert_eq!(stage.puppet.held(), 2, "and still none");
        stage.puppet.release();
        settle().await;
        stage.puppet.release();
        for (answer, _connection) in waiting {
            assert!(answer.await.is_ok());
        }
        assert_eq!(stage.server.memory_reserved().0, 0);
    });
}

/// A message whose answer is lost may have been heard, and is not sent again; one that finds no connection waits for the next one.
#[test]
fn a_message_is_not_sent_twice() {
    run(async {
        let stage = member(ServeOptions::default(), 1 << 16);
        let breaking = Arc::new(Breaking::new(&stage.hall));
        let client = Client::connect_with(Arc::clone(&breaking) as _, "hall", peer()).await.unwrap();
        let (read, message) = (tokio::spawn(client.get(get("hold"))), client.message(Bytes::from("hold")));
        settle().await;
        assert_eq!(stage.puppet.held(), 2);
        breaking.break_all();
        let error = message.await.unwrap_err();
        assert_eq!(error.code(), Code::ConnectionFailed, "and not that a commit is unknown");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(stage.puppet.asked(), 3, "the read came again, the message did not");
        stage.puppet.release();
        assert!(read.await.unwrap().is_ok());
        breaking.break_all();
        settle().await;
        assert_eq!(client.message(Bytes::from("m")).await.unwrap(), "m");
        assert_eq!(stage.puppet.asked(), 4);
    });
}

/// A message has a deadline, and who drops its answer before gives it up: at the other process too.
#[test]
fn a_message_that_is_not_answered_is_given_up() {
    run(async {
        let stage = member(ServeOptions::default(), 1 << 16);
        let connection = stage.connect_with(&peer()).await;
        let short = tokio::time::timeout(Duration::from_millis(300), connection.message(Bytes::from("hold"))).await;
        assert!(short.is_err());
        settle().await;
        assert_eq!(stage.puppet.dropped(), 1);
        let began = tokio::time::Instant::now();
        assert_eq!(code(connection.message(Bytes::from("hold")).await), Code::ConnectionFailed);
        assert!((10..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        settle().await;
        assert_eq!(stage.puppet.dropped(), 2);
        assert_eq!(stage.server.memory_reserved().0, 0);
    });
}
