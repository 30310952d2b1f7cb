//! What clients see: every question and answer, order, cancelling, deadlines, loss, and connecting again.

use super::*;
use crate::client::{ATTEMPTS_MAX, Client, check_address};
use ferrisdb_core::{KeySelector, Mutation, MutationKind};

/// Asks everything once and checks that question and answer have arrived as they were.
async fn ask_everything(endpoint: &dyn Endpoint) {
    let v = Version::from_u64;
    assert_eq!(endpoint.description(), Puppet::default().description());
    for (priority, transactions) in [(Priority::Batch, 1), (Priority::Default, 2), (Priority::Immediate, u32::MAX)] {
        let begun = endpoint.begin(BeginRequest { transactions, priority }).await.unwrap();
        assert_eq!(begun.version, v(100 + u64::from(transactions)));
    }
    assert_eq!(endpoint.get(get("a key")).await.unwrap().as_deref(), Some(&b"a key"[..]));
    assert_eq!(endpoint.get(get("")).await.unwrap().as_deref(), Some(&b""[..]), "empty is not absent");
    assert_eq!(endpoint.get(get("none")).await.unwrap(), None);
    let selector = KeySelector { key: Bytes::from("k"), or_equal: true, offset: -7 };
    let request = GetKeyRequest { selector, end: Bytes::from("z"), version: v(1) };
    assert_eq!(endpoint.get_key(request).await.unwrap(), "k/true/-7");
    for (limit, reverse) in [(0, false), (3, true), (20_000, false)] {
        let range = KeyRange::new("begin", "end");
        let request = GetRangeRequest { range, version: v(1), limit, target_bytes: 0, reverse };
        let rows = endpoint.get_range(request).await.unwrap();
        assert_eq!((rows.rows.len(), rows.more), (limit as usize, reverse));
        assert!(rows.rows.iter().all(|row| row.key == "begin" && row.value == "end"));
    }
    let committed = endpoint.commit(commit("k")).await.unwrap();
    assert_eq!(committed, Committed::At { version: v(42), batch_index: 1 });
    let kinds = (0..=u8::MAX).filter_map(MutationKind::from_number);
    let all_kinds: Vec<Mutation> = kinds.map(|kind| Mutation::new(kind, "k", vec![7; 10_000])).collect();
    let count = all_kinds.len() as u16;
    let committed = endpoint.commit(CommitRequest { mutations: all_kinds, ..commit("k") }).await.unwrap();
    assert_eq!(committed, Committed::At { version: v(42), batch_index: count }, "it was longer than a frame");
    let conflict = endpoint.commit(CommitRequest { mutations: Vec::new(), id: None, ..commit("k") }).await.unwrap();
    assert_eq!(conflict, Committed::Conflict { ranges: vec![0, 300] });
    let resolve = |counter| ResolveRequest { id: CommitId { client: 1, counter }, read_version: v(8) };
    assert_eq!(endpoint.resolve(resolve(1)).await.unwrap(), None);
    assert_eq!(endpoint.resolve(resolve(2)).await.unwrap(), Some(Committed::Conflict { ranges: Vec::new() }));
    assert_eq!(endpoint.resolve(resolve(3)).await.unwrap(), Some(Committed::At { version: v(8), batch_index: 9 }));
    assert_eq!(endpoint.resolve(resolve(4)).await, Err(Error::new(Code::CommitUnknownResultFatal)));
    let lease = endpoint.lease(LeaseRequest::Grant(Some(v(3)))).await.unwrap();
    assert_eq!(lease, Lease { id: 1, version: v(3), term_ms: 2 });
    assert_eq!(endpoint.lease(LeaseRequest::Grant(None)).await.unwrap().version, Version::MAX);
    assert_eq!(endpoint.lease(LeaseRequest::Renew(5)).await.unwrap().term_ms, u64::MAX);
    let ended = Error::with(Code::TransactionTooOld, "lease 6 has expired");
    assert_eq!(endpoint.lease(LeaseRequest::End(6)).await, Err(ended));
    assert_eq!(endpoint.estimated_size(KeyRange::new("ab", "c")).await.unwrap(), 3);
    let split = SplitPointsRequest { range: KeyRange::new("s", "t"), part_bytes: 1, limit: 2 };
    assert_eq!(endpoint.split_points(split).await.unwrap(), ["s", "s"]);
    assert_eq!(endpoint.addresses_for_key(Bytes::from("here")).await.unwrap(), ["here"]);
    let of = |begin| LocationsRequest { range: KeyRange::new(begin, "there"), limit: 2 };
    let location = Location { begin: "ab".into(), addresses: vec!["there".to_owned()] };
    let found = endpoint.locations(of("ab")).await.unwrap();
    let coordinator = Some("ab".to_owned());
    assert_eq!(found, Locations { locations: vec![location; 2], more: true, coordinator });
    assert_eq!(endpoint.status().await.unwrap(), "{}");
}

#[test]
fn every_question_and_answer_arrives_as_it_was() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        ask_everything(&stage.connect().await).await;
        let client = Client::connect_with(stage.hall.clone(), "hall", ClientOptions::default()).await.unwrap();
        ask_everything(&client).await;
    });
}

/// However the bytes are cut, the messages are the same.
#[test]
fn a_stream_that_gives_one_byte_at_a_time_is_enough() {
    run(async {
        let stage = Stage::with_room(ServeOptions::default(), 7);
        let stream = ByteByByte(stage.hall.enter().unwrap());
        let (connection, driver) = Connection::open(stream, "test", &ClientOptions::default()).await.unwrap();
        drop(tokio::spawn(driver));
        ask_everything(&connection).await;
    });
}

/// A question that waits holds up no other.
#[test]
fn answers_come_in_any_order() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let connection = stage.connect().await;
        let mut held = connection.get(get("hold"));
        let watch =
            connection.watch(WatchRequest { key: "w".into(), value: Some("v".into()), version: Version::from_u64(9) });
        assert_eq!(connection.get(get("quick")).await.unwrap().unwrap(), "quick");
        assert!(futures_poll(&mut held).await.is_pending());
        stage.puppet.release();
        assert_eq!(held.await.unwrap().unwrap(), "hold");
        assert_eq!(watch.await.unwrap(), Version::from_u64(9));
    });
}

/// Polls once.
pub(super) async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}

/// A small answer overtakes a large one: it waits for a piece of it and not for all.
#[test]
fn a_large_reply_does_not_hold_up_a_small_one() {
    run(async {
        let stage = Stage::with_room(ServeOptions::default(), 4 << 10);
        let connection = stage.connect().await;
        let mut large = connection.get(get("big 20000000"));
        let mut second = connection.get(get("big 1000000"));
        let small = connection.get(get("small")).await;
        assert_eq!(small.unwrap().unwrap(), "small");
        assert!(futures_poll(&mut large).await.is_pending() && futures_poll(&mut second).await.is_pending());
        assert_eq!(large.await.unwrap().unwrap().len(), 20_000_000);
        assert_eq!(second.await.unwrap().unwrap().len(), 1_000_000);
    });
}

/// The same in the other direction: a commit of 10 MB does not hold up a read.
#[test]
fn a_large_request_does_not_hold_up_a_small_one() {
    run(async {
        let stage = Stage::with_room(ServeOptions::default(), 4 << 10);
        let connection = stage.connect().await;
        let mutations: Vec<Mutation> = (0..100).map(|_| Mutation::set("k", vec![1; 100_000])).collect();
        let mut large = connection.commit(CommitRequest { mutations, ..commit("k") });
        assert_eq!(connection.get(get("small")).await.unwrap().unwrap(), "small");
        assert!(futures_poll(&mut large).await.is_pending());
        assert!(matches!(large.await.unwrap(), Committed::At { batch_index: 100, .. }));
        assert_eq!(stage.server.memory_reserved().0, 0, "its memory was given back");
    });
}

/// Dropping an answer drops it at the server too, except for a commit; the slot is used again and a late reply goes nowhere.
#[test]
fn a_dropped_answer_is_cancelled_but_for_a_commit() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let connection = stage.connect().await;
        let (read, commit) = (connection.get(get("hold")), connection.commit(commit("hold")));
        settle().await;
        assert_eq!(stage.puppet.held(), 2);
        drop(read);
        drop(commit);
        settle().await;
        assert_eq!((stage.puppet.dropped(), stage.server.stats().cancelled()), (1, 1));
        let next = connection.get(get("hold 2"));
        settle().await;
        stage.puppet.release();
        assert_eq!(next.await.unwrap().unwrap(), "hold 2");
    });
}

/// With as many questions in flight as allowed the next waits its turn, in order, also if one of those that wait goes away.
#[test]
fn questions_beyond_the_bound_wait_their_turn() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let connection = stage.connect_with(&ClientOptions { in_flight_max: 2, ..ClientOptions::default() }).await;
        let mut held: Vec<_> = (0..5).map(|number| connection.get(get(format!("hold {number}")))).collect();
        for answer in &mut held {
            assert!(futures_poll(answer).await.is_pending());
        }
        settle().await;
        assert_eq!(stage.puppet.held(), 2, "the others have not been sent");
        drop(held.remove(2));
        stage.puppet.release();
        for answer in held {
            let (answer, ()) = tokio::join!(answer, async {
                settle().await;
                stage.puppet.release();
            });
            answer.unwrap();
        }
        assert_eq!(stage.puppet.asked(), 4);
    });
}

/// A question has a deadline, and a commit's leaves its outcome unknown; a watch has none.
#[test]
fn what_is_not_answered_in_time_fails() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let connection = stage.connect().await;
        let began = tokio::time::Instant::now();
        let mut watch = connection.watch(WatchRequest { key: "w".into(), value: None, version: Version::ZERO });
        let (read, commit) = (connection.get(get("hold")), connection.commit(commit("hold")));
        assert_eq!(code(read.await), Code::ConnectionFailed);
        let waited = began.elapsed().as_secs();
        assert!((10..20).contains(&waited), "{waited} s");
        assert_eq!(code(commit.await), Code::CommitUnknownResult);
        assert!((30..50).contains(&began.elapsed().as_secs()));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(futures_poll(&mut watch).await.is_pending(), "pings keep the connection for an hour");
        assert_eq!(stage.puppet.dropped(), 1, "the read was cancelled");
    });
}

/// The connection goes: reads have failed, a commit may have happened, and nothing more is asked.
#[test]
fn a_lost_connection_leaves_a_commit_unknown() {
    run(async {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let server = async {
            let mut inbox = crate::frame::Inbox::new();
            let description = Puppet::default().description();
            let options = ServeOptions::default();
            let greeted = crate::hello::greet_client(&mut theirs, &mut inbox, &description, &options);
            assert!(greeted.await.is_ok());
        };
        let options = ClientOptions::default();
        let (opened, ()) = tokio::join!(Connection::open(ours, "test", &options), server);
        let (connection, driver) = opened.unwrap();
        drop(tokio::spawn(driver));
        let (read, commit) = (connection.get(get("k")), connection.commit(commit("k")));
        settle().await;
        drop(theirs);
        let read = read.await.unwrap_err();
        assert_eq!(read.to_string(), "connection_failed (1026): the connection to test was lost: the server closed it");
        assert_eq!(code(commit.await), Code::CommitUnknownResult);
        assert_eq!(code(connection.commit(super::commit("k")).await), Code::ConnectionFailed, "it was never sent");
        assert!(connection.closed().is_some());
    });
}

/// A server that takes everything and says nothing is found out by its missing pongs.
#[test]
fn a_silent_server_counts_as_lost() {
    run(async {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut inbox = crate::frame::Inbox::new();
        let description = Puppet::default().description();
        let options = ServeOptions::default();
        let greeted = crate::hello::greet_client(&mut theirs, &mut inbox, &description, &options);
        let client_options = ClientOptions { question_timeout: Duration::from_secs(1000), ..ClientOptions::default() };
        let (opened, _) = tokio::join!(Connection::open(ours, "test", &client_options), greeted);
        let (connection, driver) = opened.unwrap();
        drop(tokio::spawn(driver));
        let began = tokio::time::Instant::now();
        assert_eq!(code(connection.get(get("k")).await), Code::ConnectionFailed);
        assert!((3..=4).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    });
}

/// Reads go on over connections that break; a commit that was under way is not sent again.
#[test]
fn a_client_connects_again_and_asks_again() {
    run(async {
        let stage = Arc::new(Stage::open(ServeOptions::default()));
        let breaking = Arc::new(Breaking::new(&stage.hall));
        let client = Client::connect_with(Arc::clone(&breaking) as _, "hall", ClientOptions::default()).await.unwrap();
        let (read, commit_held) = (tokio::spawn(client.get(get("hold"))), client.commit(commit("hold")));
        settle().await;
        assert_eq!(stage.puppet.held(), 2);
        breaking.break_all();
        assert_eq!(code(commit_held.await), Code::CommitUnknownResult);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(stage.puppet.asked(), 3, "the read came again, the commit did not");
        stage.puppet.release();
        assert_eq!(read.await.unwrap().unwrap().unwrap(), "hold");
        // A commit that finds no connection waits for the next one.
        breaking.break_all();
        settle().await;
        assert!(client.commit(commit("k")).await.is_ok());
        // A question that never gets an answer is not carried on for ever.
        let asked = stage.puppet.asked();
        let poison = client.get(get("hold"));
        let breaks = async {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                breaking.break_all();
            }
        };
        let failed = tokio::select! {
            result = poison => result,
            () = breaks => unreachable!("it goes on for ever"),
        };
        assert_eq!(code(failed), Code::ConnectionFailed);
        assert_eq!(stage.puppet.asked() - asked, ATTEMPTS_MAX as usize);
    });
}

/// A connector whose streams can be broken.
pub(super) struct Breaking {
    hall: Arc<Hall>,
    breaks: Mutex<Vec<tokio::sync::watch::Sender<bool>>>,
    /// Nothing goes either way, and all stay open.
    is_frozen: tokio::sync::watch::Sender<bool>,
}

impl Breaking {
    pub(super) fn new(hall: &Arc<Hall>) -> Breaking {
        Breaking { hall: Arc::clone(hall), breaks: Mutex::default(), is_frozen: Default::default() }
    }

    /// As a process that was stopped: the system takes what is sent, and connections, and nothing answers; then it goes on where it was.
    pub(super) fn freeze(&self, is_frozen: bool) {
        self.is_frozen.send_replace(is_frozen);
    }

    pub(super) fn break_all(&self) {
        for sender in self.breaks.lock().unwrap().drain(..) {
            // The connection may be gone already.
            sender.send(true).unwrap_or_default();
        }
    }
}

impl Connector for Breaking {
    fn connect(&self, _: &str) -> ferrisdb_core::runtime::BoxFuture<io::Result<Box<dyn Stream>>> {
        let entered = self.hall.enter();
        let (sender, mut receiver) = tokio::sync::watch::channel(false);
        self.breaks.lock().unwrap().push(sender);
        let mut is_frozen = self.is_frozen.subscribe();
        Box::pin(async move {
            let mut theirs = entered?;
            let (ours, mut middle) = tokio::io::duplex(1 << 16);
            drop(tokio::spawn(async move {
                let mut copying = std::pin::pin!(tokio::io::copy_bidirectional(&mut middle, &mut theirs));
                loop {
                    let freezes = is_frozen.wait_for(|is_frozen| *is_frozen);
                    let thaws = tokio::select! {
                        result = &mut copying => return drop(result),
                        result = receiver.changed() => return drop(result),
                        result = freezes => result.is_ok(),
                    };
                    tokio::select! {
                        result = is_frozen.wait_for(|is_frozen| !is_frozen), if thaws => drop(result),
                        result = receiver.changed() => return drop(result),
                    }
                }
            }));
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}

/// While there is no server, questions wait for so long and no longer, and then fail at once; when it is back, they go on.
#[test]
fn an_outage_has_a_bound() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let hall = Arc::new(Replaceable(Mutex::new(Arc::clone(&stage.hall))));
        let client = Client::connect_with(Arc::clone(&hall) as _, "hall", ClientOptions::default()).await.unwrap();
        let (closed, listener) = Hall::open(1);
        drop(listener);
        *hall.0.lock().unwrap() = closed;
        let mut stage = stage;
        stage.stop();
        settle().await;
        let began = tokio::time::Instant::now();
        let failed = client.get(get("k")).await.unwrap_err();
        assert_eq!(failed.code(), Code::ConnectionFailed);
        assert!(!client.is_reachable(), "there is no connection");
        assert!(failed.to_string().contains("cannot connect to hall"), "{failed}");
        assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert_eq!(code(client.commit(commit("k")).await), Code::ConnectionFailed);
        assert!(began.elapsed().as_secs() < 12, "at once");
        let again = Stage::open(ServeOptions::default());
        *hall.0.lock().unwrap() = Arc::clone(&again.hall);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(client.commit(commit("k")).await.is_ok());
        assert!(client.is_reachable());
    });
}

/// A connector that leads elsewhere in time.
struct Replaceable(Mutex<Arc<Hall>>);

impl Connector for Replaceable {
    fn connect(&self, address: &str) -> ferrisdb_core::runtime::BoxFuture<io::Result<Box<dyn Stream>>> {
        self.0.lock().unwrap().connect(address)
    }
}

/// A server that stops says so: what is under way is answered, what comes next waits for the next server, and nothing fails.
#[test]
fn nothing_fails_when_a_server_is_replaced() {
    run(async {
        let mut stage = Stage::open(ServeOptions::default());
        let hall = Arc::new(Replaceable(Mutex::new(Arc::clone(&stage.hall))));
        let client = Client::connect_with(Arc::clone(&hall) as _, "hall", ClientOptions::default()).await.unwrap();
        let (read, held) = (client.get(get("hold")), client.commit(commit("hold")));
        let watch = client.watch(WatchRequest { key: "w".into(), value: None, version: Version::from_u64(3) });
        settle().await;
        let next = Stage::open(ServeOptions::default());
        *hall.0.lock().unwrap() = Arc::clone(&next.hall);
        stage.stop();
        // Sent before the client knows.
        let crossing = client.commit(commit("k"));
        settle().await;
        let later = client.commit(commit("l"));
        stage.puppet.release();
        assert!(read.await.is_ok() && held.await.is_ok() && crossing.await.is_ok() && later.await.is_ok());
        assert_eq!(stage.puppet.asked(), 4);
        assert_eq!(next.puppet.asked(), 1, "the commit that came later");
        assert_eq!(watch.await.unwrap(), Version::from_u64(3), "the first server still answered it");
        stage.serving.await.unwrap();
        assert_eq!(stage.server.stats().connections_open(), 0);
    });
}

/// A client needs no tokio runtime: it makes a thread, which ends with it.
#[test]
fn a_client_works_without_a_runtime() {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let puppet: Arc<dyn Endpoint> = Arc::new(Puppet::default());
            crate::serve(listener, puppet, ServeOptions::default(), async move { drop(stopped.await) }).await;
        });
    });
    let address = told.recv().unwrap().to_string();
    futures_executor::block_on(async {
        let client = Client::connect(&address, ClientOptions::default()).await.unwrap();
        ask_everything(&client).await;
        let again = client.clone();
        drop(client);
        assert!(again.get(get("k")).await.is_ok());
    });
    drop(stop);
    server.unwrap().join().unwrap();
    let error = futures_executor::block_on(Client::connect(&address, ClientOptions::default())).unwrap_err();
    assert_eq!(error.code(), Code::ConnectionFailed);
}

/// When client and server are gone, so is everything that they held.
#[test]
fn nothing_is_left_behind() {
    run(async {
        let mut stage = Stage::open(ServeOptions::default());
        let client = Client::connect_with(stage.hall.clone(), "hall", ClientOptions::default()).await.unwrap();
        let answer = client.get(get("hold"));
        let commit = client.commit(commit("hold"));
        settle().await;
        drop((answer, commit, client));
        settle().await;
        assert_eq!(stage.server.stats().connections_open(), 0, "the last answer closed the connection");
        assert_eq!(stage.puppet.dropped(), 2);
        stage.stop();
        stage.serving.await.unwrap();
        drop(stage.server);
        assert_eq!(Arc::strong_count(&stage.puppet), 1);
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks, 0);
    });
}

#[test]
fn addresses_are_checked_in_words() {
    for address in ["localhost:4500", "10.0.0.1:1", "[::1]:65535", "db.example.org:80"] {
        assert_eq!(check_address(address), Ok(()), "{address}");
    }
    for address in
        ["", "localhost", "localhost:", ":4500", "::1:4500", "[::1]", "[x]:1", "a b:1", "h:0", "h:65536", "http://h:1"]
    {
        assert_eq!(code(check_address(address)), Code::ConnectionStringInvalid, "{address}");
    }
}

/// The runtime of tokio as one of ours: time is tokio's, randomness follows from the seed.
#[test]
fn a_tokio_runtime_has_time_and_seeded_randomness() {
    use ferrisdb_core::{Clock as _, Runtime as _};
    run(async {
        let handle = tokio::runtime::Handle::current();
        let (one, other) = (crate::TokioRuntime::new(handle.clone(), 1), crate::TokioRuntime::new(handle, 1));
        let (tell, told) = oneshot::channel();
        let began = one.now();
        let slept = one.sleep(Duration::from_secs(100));
        one.spawn(
            "test",
            Box::pin(async move {
                slept.await;
                tell.send(()).unwrap();
            }),
        );
        told.await.unwrap();
        let took = one.now() - began;
        assert!((100..101).contains(&took.as_secs()), "{took:?}");
        assert_eq!([one.random(), one.random()], [other.random(), other.random()]);
    });
}
