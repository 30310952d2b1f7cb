//! A server's bounds and timers, one by one.

use super::*;
use crate::hello::MAGIC;
use crate::stats::{Method, Rejection};
use crate::tests::golden::framed;
use crate::wire::{Question, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// When and why the server closes a connection that does no more than `bytes`, after a hello or instead of one.
async fn closed_after(stage: &Stage, bytes: &[u8], is_greeted: bool) -> u64 {
    let mut stream = stage.hall.enter().unwrap();
    if is_greeted {
        let mut hello = MAGIC.to_vec();
        let message = proto::ClientHello { protocol_min: 1, protocol_max: 1, ..proto::ClientHello::default() };
        crate::frame::put_hello(&mut hello, &message);
        stream.write_all(&hello).await.unwrap();
    }
    stream.write_all(bytes).await.unwrap();
    let began = tokio::time::Instant::now();
    drop(stream.read_to_end(&mut Vec::new()).await);
    began.elapsed().as_secs()
}

#[test]
fn who_is_too_slow_is_closed() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let part = |total_bytes| {
            let part = proto::Part { total_bytes, piece: "x".into() };
            framed(&proto::Request { id: 0, question: Some(Question::Part(part)) })
        };
        let cases: [(&[u8], bool, u64, Rejection); 6] = [
            (b"", false, 5, Rejection::HelloTimeout),
            (MAGIC, false, 5, Rejection::HelloTimeout),
            (b"", true, 60, Rejection::Idle),
            (b"\x10", true, 10, Rejection::FrameTimeout),
            (&part(1)[..6], true, 10, Rejection::FrameTimeout),
            (&part(10 << 20), true, 50, Rejection::FrameTimeout),
        ];
        for (index, (bytes, is_greeted, seconds, rejection)) in cases.into_iter().enumerate() {
            let before = stage.server.stats().rejected(rejection);
            let took = closed_after(&stage, bytes, is_greeted).await;
            assert!((seconds..=seconds + 1).contains(&took), "{index}: {took} s");
            settle().await;
            assert_eq!(stage.server.stats().rejected(rejection), before + 1, "{index}");
        }
        assert_eq!(stage.server.memory_reserved(), (0, 0));
    });
}

/// One byte a second is no progress: a frame has its time as a whole.
#[test]
fn a_frame_that_drips_is_closed() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let connection = stage.hall.enter().unwrap();
        let (mut read, mut write) = tokio::io::split(connection);
        let dripping = async {
            let mut hello = MAGIC.to_vec();
            let message = proto::ClientHello { protocol_min: 1, protocol_max: 1, ..proto::ClientHello::default() };
            crate::frame::put_hello(&mut hello, &message);
            write.write_all(&hello).await.unwrap();
            write.write_all(&1000u32.to_le_bytes()).await.unwrap();
            loop {
                drop(write.write_all(b"x").await);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let began = tokio::time::Instant::now();
        let mut answer = Vec::new();
        tokio::select! {
            _ = read.read_to_end(&mut answer) => {}
            () = dripping => unreachable!("it goes on for ever"),
        }
        assert!((10..=11).contains(&began.elapsed().as_secs()));
    });
}

/// A reader that takes nothing at all is closed in the end.
#[test]
fn who_takes_no_replies_is_closed() {
    run(async {
        let stage = Stage::with_room(ServeOptions::default(), 1 << 10);
        let get = Question::Get(proto::Get { key: "big 50000".into(), version: 1 });
        let began = tokio::time::Instant::now();
        let mut stream = stage.hall.enter().unwrap();
        let mut hello = MAGIC.to_vec();
        let message = proto::ClientHello { protocol_min: 1, protocol_max: 1, ..proto::ClientHello::default() };
        crate::frame::put_hello(&mut hello, &message);
        stream.write_all(&hello).await.unwrap();
        stream.write_all(&framed(&proto::Request { id: 1, question: Some(get) })).await.unwrap();
        while stage.server.stats().rejected(Rejection::WriteTimeout) == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(began.elapsed().as_secs() < 60);
        }
        assert!(began.elapsed().as_secs() >= 30);
    });
}

#[test]
fn connections_are_counted_and_bounded() {
    run(async {
        for (max, max_per_address, rejection, words) in [
            (2, 9, Rejection::TooManyConnections, "the server has as many connections as it takes (2)"),
            (9, 2, Rejection::TooManyFromAddress, "from 127.0.0.1 as it takes from one address (2)"),
        ] {
            let options = ServeOptions {
                connections_max: max,
                connections_per_address_max: max_per_address,
                ..ServeOptions::default()
            };
            let stage = Stage::open(options);
            let (first, second) = (stage.connect().await, stage.connect().await);
            let third = Connection::open(stage.hall.enter().unwrap(), "there", &ClientOptions::default()).await;
            let error = third.map(|_| ()).unwrap_err();
            assert_eq!(error.code(), Code::ConnectionFailed);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(stage.server.stats().rejected(rejection), 1);
            drop(first);
            settle().await;
            let third = stage.connect().await;
            assert!(third.get(get("k")).await.is_ok() && second.get(get("k")).await.is_ok());
            assert_eq!((stage.server.stats().connections_open(), stage.server.stats().connections_total()), (2, 3));
        }
    });
}

/// A connection with as many questions in flight as allowed is not read from until one is answered. Watches have a bound of their own, the database's.
#[test]
fn questions_in_flight_are_bounded() {
    run(async {
        let stage = Stage::open(ServeOptions { in_flight_max: 5, ..ServeOptions::default() });
        let connection = stage.connect().await;
        let watch = || connection.watch(WatchRequest { key: "w".into(), value: None, version: Version::ZERO });
        let watches = [watch(), watch(), watch()];
        assert_eq!(code(watch().await), Code::TooManyWatches);
        let held: Vec<_> = (0..12).map(|_| connection.get(get("hold"))).collect();
        settle().await;
        assert_eq!(stage.puppet.held(), 3 + 5);
        for expected in [3 + 5 + 5, 3 + 12] {
            stage.puppet.release();
            settle().await;
            assert_eq!(stage.puppet.asked(), expected);
        }
        stage.puppet.release();
        for answer in held {
            answer.await.unwrap();
        }
        for watch in watches {
            watch.await.unwrap();
        }
        let (inline, later) = stage.server.stats().answered(Method::Get);
        assert_eq!((inline, later), (0, 12));
        assert_eq!(stage.server.stats().latencies(Method::Get).iter().sum::<u64>(), 12);
        assert_eq!(stage.server.stats().errors()[&(Method::Watch, Code::TooManyWatches)], 1);
    });
}

/// Long requests of many connections share one memory: who finds none waits until another gives some back. A half request that
/// holds some without going on is closed, so that the others go on.
#[test]
fn request_memory_is_shared() {
    run(async {
        let options =
            ServeOptions { request_bytes_max: 1 << 20, request_memory_bytes_max: 1 << 20, ..ServeOptions::default() };
        let stage = Stage::open(options);
        // Somebody holds 900 KB and never goes on.
        let part = proto::Part { total_bytes: 900_000, piece: "x".into() };
        let half = framed(&proto::Request { id: 0, question: Some(Question::Part(part)) });
        let holder = closed_after(&stage, &half, true);
        let connections: Vec<_> = [stage.connect().await, stage.connect().await, stage.connect().await].into();
        let work = async {
            settle().await;
            assert!(stage.server.memory_reserved().0 > 800_000);
            let began = tokio::time::Instant::now();
            let long = |key| CommitRequest {
                mutations: vec![ferrisdb_core::Mutation::set(key, vec![7; 600_000])],
                ..commit("k")
            };
            let mut commits: Vec<_> = connections.iter().map(|connection| connection.commit(long("hold"))).collect();
            // Small ones of others do not wait.
            let other = stage.connect().await;
            assert!(other.get(get("k")).await.is_ok());
            settle().await;
            assert_eq!(stage.puppet.held(), 0);
            for count in 0..3 {
                while stage.puppet.held() == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert_eq!(stage.puppet.held(), 1, "there is memory for one at a time");
                assert!(stage.server.memory_reserved().0 <= 1 << 20);
                if count == 0 {
                    assert!((13..=14).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
                }
                stage.puppet.release();
                settle().await;
            }
            for commit in &mut commits {
                assert!(commit.await.is_ok());
            }
            // Two rounds: what was given back is enough for everything again.
            assert_eq!(stage.server.memory_reserved().0, 0);
        };
        let (closed_after, ()) = tokio::join!(holder, work);
        assert!((13..=14).contains(&closed_after), "{closed_after} s");
    });
}

/// What is under way when the server stops has a bound, too.
#[test]
fn a_server_that_stops_waits_so_long_and_no_longer() {
    run(async {
        let mut stage = Stage::open(ServeOptions::default());
        let connection = stage.connect().await;
        let held = connection.commit(commit("hold"));
        settle().await;
        let began = tokio::time::Instant::now();
        stage.stop();
        settle().await;
        assert_eq!(code(connection.get(get("k")).await), Code::ConnectionFailed, "the server has said goodbye");
        assert_eq!(code(held.await), Code::CommitUnknownResult);
        stage.serving.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 10);
    });
}

/// Who has a server for himself, and asks one thing at a time, has his commits made by the thread that reads them; but not with anybody else there, nor with a
/// second question under way. Whoever was left for afterwards is woken.
#[test]
fn the_commits_of_a_lone_client_are_asked_for_as_such() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let (one, other) = (stage.connect().await, stage.connect().await);
        let alone = || stage.puppet.alone.load(Ordering::SeqCst);
        let in_a_row = async |count: usize| {
            let before = alone();
            for _ in 0..count {
                one.commit(commit("a")).await.unwrap();
            }
            alone() - before
        };
        let first = in_a_row(100).await;
        assert!((50..90).contains(&first), "after a while: {first} of 100");
        assert_eq!(in_a_row(10).await, 10);
        assert_eq!(stage.puppet.afterwards.0.load(Ordering::SeqCst), alone());

        // Somebody else asks one thing now and then.
        for _ in 0..10 {
            other.get(get("k")).await.unwrap();
            assert_eq!(in_a_row(5).await, 0);
        }
        // A question is under way all the while.
        let held = tokio::spawn(one.get(get("hold")));
        while stage.puppet.held() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(in_a_row(100).await, 0);
        stage.puppet.release();
        held.await.unwrap().unwrap();
        assert!(in_a_row(100).await > 50);
        // Two at once.
        let before = alone();
        for _ in 0..50 {
            let (first, second) = (one.commit(commit("a")), one.commit(commit("b")));
            first.await.unwrap();
            second.await.unwrap();
        }
        assert_eq!(alone(), before);
        assert_eq!(in_a_row(5).await, 0, "it begins anew");
    });
}
