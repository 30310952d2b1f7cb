//! What strangers and broken programs send: the answer is short, the memory bounded, and nothing panics.

use super::*;
use crate::frame::{Inbox, MESSAGE_BYTES_MAX, decode};
use crate::hello::MAGIC;
use crate::stats::{Method, Rejection};
use crate::tests::golden::{answers, framed, questions};
use crate::wire::{Body, Question, proto};
use ferrisdb_core::{Random, SplitMix64};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A client's hello.
fn hello(min: u32, max: u32) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let hello = proto::ClientHello {
        protocol_min: min,
        protocol_max: max,
        software: "ferrisdb 9.9".to_owned(),
        ..proto::ClientHello::default()
    };
    crate::frame::put_hello(&mut bytes, &hello);
    bytes
}

/// Sends `bytes` and reads all that comes back until the server closes.
async fn provoke(stage: &Stage, bytes: &[u8]) -> Vec<u8> {
    let mut stream = stage.hall.enter().unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // It may be closed with bytes of ours unread.
    drop(stream.read_to_end(&mut answer).await);
    answer
}

/// A connection after its hello, without a client behind it.
async fn greeted(stage: &Stage) -> DuplexStream {
    let mut stream = stage.hall.enter().unwrap();
    stream.write_all(&hello(1, 1)).await.unwrap();
    let mut inbox = Inbox::new();
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await.unwrap();
    while inbox.next_frame(MESSAGE_BYTES_MAX).unwrap().is_none() {
        assert_ne!(std::future::poll_fn(|context| inbox.poll_read(&mut stream, context)).await.unwrap(), 0);
    }
    stream
}

fn request(id: u64, question: Question) -> Vec<u8> {
    framed(&proto::Request { id, question: Some(question) })
}

fn get_bytes(id: u64, key: &str) -> Vec<u8> {
    request(id, Question::Get(proto::Get { key: Bytes::copy_from_slice(key.as_bytes()), version: 1 }))
}

/// Who sends thousands of small requests without waiting for answers has a turn like others: whoever asks once waits for a few hundred of them, not for all that were read.
/// Nothing here depends on time: one thread, and what is counted is questions.
#[test]
fn a_flood_leaves_others_their_turn() {
    const FLOOD: u64 = 50_000;
    run(async {
        // Room for all of it: the server never has to wait for the one who floods it.
        let stage = Stage::with_room(ServeOptions::default(), 8 << 20);
        let (mut flood, mut other) = (greeted(&stage).await, greeted(&stage).await);
        let requests: Vec<u8> = (1..=FLOOD).flat_map(|id| get_bytes(id, "k")).collect();
        flood.write_all(&requests).await.unwrap();
        let puppet = Arc::clone(&stage.puppet);
        // A task like those of the server: the test itself has its turn less often.
        let asking = tokio::spawn(async move {
            let mut answer = [0; 64];
            for id in 1..=5 {
                let before = puppet.asked();
                other.write_all(&get_bytes(id, "k")).await.unwrap();
                assert_ne!(other.read(&mut answer).await.unwrap(), 0);
                let meanwhile = puppet.asked() - before;
                assert!(meanwhile < 4_000, "{meanwhile} of the flood came first");
            }
            assert!(puppet.asked() < 25_000, "the flood was over, and showed nothing");
        });
        asking.await.unwrap();
    });
}

/// What a hostile client does again and again.
#[derive(Debug, Clone, Copy)]
enum Attack {
    /// Noise, before the hello and after it.
    Garbage,
    /// A connection that has sent the half of a frame.
    HalfFrame,
    /// A frame, or a hello, that says it has 4 GiB.
    FourGiB,
    /// Questions, and nobody who reads the answers.
    Deaf,
    /// A connection that says nothing.
    Idle,
    /// Thousands of questions at once, and then all the answers.
    Flood,
}

/// Questions of a flood: many more than one connection has handled before others have their turn.
const FLOOD: u64 = 20_000;

/// Attacks for ever. An attacker has so many connections at most.
async fn attack(stage: Arc<Stage>, attack: Attack, seed: u64, attacks: Arc<AtomicU64>) {
    const HELD: usize = 100;
    let mut random = SplitMix64::new(seed);
    let mut held = std::collections::VecDeque::new();
    let deaf: Vec<u8> = (1..=1_500).flat_map(|id| get_bytes(id, "k")).collect();
    let flood: Vec<u8> = (1..=FLOOD).flat_map(|id| get_bytes(id, "k")).collect();
    loop {
        let is_greeted = random.one_in(2) || !matches!(attack, Attack::Garbage | Attack::FourGiB);
        if matches!(attack, Attack::Idle) && held.len() == HELD {
            tokio::task::yield_now().await;
            attacks.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let mut stream = if is_greeted { greeted(&stage).await } else { stage.hall.enter().unwrap() };
        match attack {
            Attack::Garbage => {
                let noise: Vec<u8> =
                    std::iter::repeat_with(|| random.next_u64().to_le_bytes()).take(12_500).flatten().collect();
                // The server may have closed it before it has taken all.
                drop(stream.write_all(&noise).await);
                drop(stream.shutdown().await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            }
            Attack::HalfFrame => {
                stream.write_all(&get_bytes(1, "k")[..7]).await.unwrap();
                held.push_back(stream);
            }
            Attack::FourGiB => {
                let begin: &[u8] = if is_greeted { &[] } else { MAGIC };
                stream.write_all(&[begin, &[0xFF; 4]].concat()).await.unwrap();
                drop(stream.read_to_end(&mut Vec::new()).await);
            }
            Attack::Deaf => {
                stream.write_all(&deaf).await.unwrap();
                held.push_back(stream);
            }
            Attack::Idle => held.push_back(stream),
            Attack::Flood => {
                stream.write_all(&flood).await.unwrap();
                stream.shutdown().await.unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
            }
        }
        if held.len() > HELD {
            held.pop_front();
        }
        attacks.fetch_add(1, Ordering::Relaxed);
    }
}

/// A hundred attackers of each kind, each without end (of those who flood a few, who are enough): who asks an honest question beside them has its answer before each of them has attacked more
/// than a few times, and before any of them has had more than a few turns' questions answered. On one thread, and what is counted is attacks and questions: time plays no part, and the
/// clock does not even move meanwhile.
#[test]
fn every_attack_leaves_others_their_turn() {
    const ASKED: u64 = 30;
    // What the server says that it handles for one connection in a turn; an honest question waits for a few of them: its own, its answer's, and what the scheduler puts between.
    const REQUESTS_PER_TURN: u64 = 512;
    const TURNS: u64 = 6;
    for (kind, attackers) in [
        (Attack::Garbage, 100),
        (Attack::HalfFrame, 100),
        (Attack::FourGiB, 100),
        (Attack::Deaf, 100),
        (Attack::Idle, 100),
        (Attack::Flood, 5),
    ] {
        run(async {
            let stage = Arc::new(Stage::with_room(ServeOptions::default(), 1 << 20));
            let mut honest = greeted(&stage).await;
            let attacks = Arc::new(AtomicU64::new(0));
            let begin = |seed| tokio::spawn(attack(Arc::clone(&stage), kind, seed, Arc::clone(&attacks)));
            let all_attackers: Vec<_> = (0..attackers).map(begin).collect();
            while attacks.load(Ordering::Relaxed) < 2 * attackers {
                tokio::task::yield_now().await;
            }
            let begun = tokio::time::Instant::now();
            let (of_attacks, puppet) = (Arc::clone(&attacks), Arc::clone(&stage.puppet));
            // A task like theirs, with a turn as often.
            let asking = tokio::spawn(async move {
                let mut answer = [0; 64];
                let mut most = (0, 0);
                for id in 1..=ASKED {
                    let before = (of_attacks.load(Ordering::Relaxed), puppet.asked() as u64);
                    honest.write_all(&get_bytes(id, "k")).await.unwrap();
                    assert_ne!(honest.read(&mut answer).await.unwrap(), 0);
                    most.0 = most.0.max(of_attacks.load(Ordering::Relaxed) - before.0);
                    most.1 = most.1.max(puppet.asked() as u64 - before.1);
                }
                most
            });
            let (most, questions) = asking.await.unwrap();
            let all = attacks.load(Ordering::Relaxed);
            assert!(most <= 8 * attackers, "{kind:?}: {most} attacks came before an honest question");
            assert!(all >= 3 * attackers || matches!(kind, Attack::Flood), "{kind:?}: {all} attacks are none");
            if matches!(kind, Attack::Flood) {
                let bound = TURNS * REQUESTS_PER_TURN * attackers;
                assert!(questions <= bound, "{questions} questions of a flood came before an honest one");
                assert!(questions > 2 * attackers, "{questions} questions are no flood");
            }
            assert_eq!(tokio::time::Instant::now(), begun, "{kind:?}");
            all_attackers.iter().for_each(tokio::task::JoinHandle::abort);
        });
    }
}

#[test]
fn what_is_not_our_protocol_is_told_so() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let cases: [(&[u8], Rejection); 6] = [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Rejection::Http),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Rejection::Http),
            (&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00], Rejection::Tls),
            (b"SSH-2.0-OpenSSH_9.9\r\n", Rejection::NotFerris),
            (&[0; 100], Rejection::NotFerris),
            (b"\x89FERRID\n........", Rejection::NotFerris),
        ];
        for (index, (bytes, rejection)) in cases.into_iter().enumerate() {
            let before = stage.server.stats().rejected(rejection);
            let answer = String::from_utf8(provoke(&stage, bytes).await).unwrap();
            assert!(answer.contains("This is a FerrisDB server.") && answer.len() < 300, "{index}: {answer}");
            assert_eq!(answer.starts_with("HTTP/1.1 400 "), rejection == Rejection::Http, "{index}");
            settle().await;
            assert_eq!(stage.server.stats().rejected(rejection), before + 1, "{index}");
        }
        assert_eq!(stage.server.stats().connections_open(), 0);
        assert_eq!(stage.puppet.asked(), 0);
    });
}

/// Both sides say both versions.
#[test]
fn a_version_mismatch_is_told_in_words() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let answer = provoke(&stage, &hello(7, 9)).await;
        let text = String::from_utf8_lossy(&answer);
        let words = "the client (ferrisdb 9.9) speaks protocol versions 7 to 9, the server (ferrisdb 0.1.0) version 1: update the older one";
        assert!(text.contains(words), "{text}");
        settle().await;
        assert_eq!(stage.server.stats().rejected(Rejection::ProtocolVersion), 1);
        // And the client, whether the server says it or leaves it to the client to see.
        let refused = crate::hello::refusing_hello(&Error::with(Code::IncompatibleProtocolVersion, words));
        let mut newer = MAGIC.to_vec();
        let future = proto::ServerHello {
            protocol: 7,
            protocol_min: 7,
            protocol_max: 9,
            software: "ferrisdb 9.9".to_owned(),
            ..proto::ServerHello::default()
        };
        crate::frame::put_hello(&mut newer, &future);
        for (answer, words) in [(refused, words), (newer, "the server (ferrisdb 9.9) versions 7 to 9")] {
            let (ours, mut theirs) = tokio::io::duplex(1 << 12);
            theirs.write_all(&answer).await.unwrap();
            let Err(error) = Connection::open(ours, "there:1", &ClientOptions::default()).await else {
                panic!("refused")
            };
            assert_eq!(error.code(), Code::IncompatibleProtocolVersion);
            assert!(error.to_string().contains(words) && error.to_string().contains("there:1"), "{error}");
        }
    });
}

#[test]
fn another_cluster_and_credentials_are_refused_in_words() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let options = ClientOptions { cluster_id: Some([1; 16]), ..ClientOptions::default() };
        let Err(error) = Connection::open(stage.hall.enter().unwrap(), "there:1", &options).await else {
            panic!("it should have been refused")
        };
        let words = "there:1 refuses the connection: the client wants the cluster 01010101010101010101010101010101, \
                     this is 30313233343536373839616263646566";
        assert_eq!(error, Error::with(Code::ClientInvalidOperation, words));
        let mut bytes = MAGIC.to_vec();
        let credentials = Bytes::from("token");
        let hello =
            proto::ClientHello { protocol_min: 1, protocol_max: 1, credentials, ..proto::ClientHello::default() };
        crate::frame::put_hello(&mut bytes, &hello);
        let answer = provoke(&stage, &bytes).await;
        assert!(String::from_utf8_lossy(&answer).contains("cannot check"));
        assert!(!String::from_utf8_lossy(&answer).contains("token"));
    });
}

/// What answers at an address may be anything.
#[test]
fn a_client_names_what_is_not_a_server() {
    run(async {
        let cases: [(&[u8], &str); 4] = [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a FerrisDB server; it begins with `HTTP/1.1 400 Bad Request"),
            (b"", "it closed the connection"),
            (b"\x89FERRIS\n\xff\xff\xff\xff", "a frame claims 4294967295 bytes"),
            (b"\x89FERRIS\n\x05\0\0\0", "it closed the connection"),
        ];
        for (bytes, words) in cases {
            let (ours, mut theirs) = tokio::io::duplex(1 << 12);
            theirs.write_all(bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let Err(error) = Connection::open(ours, "there:1", &ClientOptions::default()).await else {
                panic!("{words}")
            };
            assert_eq!(error.code(), Code::ConnectionFailed);
            assert!(error.to_string().contains(words) && error.to_string().contains("there:1"), "{error}");
        }
        let (ours, _theirs) = tokio::io::duplex(1 << 12);
        let Err(error) = Connection::open(ours, "there:1", &ClientOptions::default()).await else { panic!("silence") };
        assert!(error.to_string().contains("no hello within 5s"), "{error}");
    });
}

/// A length of 4 GiB, before and after the hello, sets nothing aside and ends the connection.
#[test]
fn a_length_that_is_too_great_ends_the_connection() {
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let answer = provoke(&stage, &[&MAGIC[..], &[0xff; 4]].concat()).await;
        assert!(String::from_utf8_lossy(&answer).contains("a frame claims 4294967295 bytes; one has 4 to 4100"));
        let just_above = (4 + MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes();
        for bytes in [[0xff; 4], just_above, [3, 0, 0, 0]] {
            let mut stream = greeted(&stage).await;
            stream.write_all(&bytes).await.unwrap();
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        }
        settle().await;
        assert_eq!(stage.server.stats().rejected(Rejection::Protocol), 4);
        // A long message that announces too much, likewise.
        for total_bytes in [u64::MAX, 21_000_001 + (1 << 20)] {
            let mut stream = greeted(&stage).await;
            let part = proto::Part { total_bytes, piece: "x".into() };
            stream.write_all(&request(0, Question::Part(part))).await.unwrap();
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        }
        settle().await;
        assert_eq!(stage.server.stats().rejected(Rejection::Protocol), 6);
        assert_eq!(stage.server.memory_reserved(), (0, 0));
    });
}

/// A question with a value that it cannot have gets an error; the connection goes on.
#[test]
fn a_question_that_is_not_valid_gets_an_error() {
    let range = |begin: &'static str, end: &'static str| proto::KeyRange { begin: begin.into(), end: end.into() };
    let commit = proto::Commit::default();
    let cases = [
        Question::Get(proto::Get { key: "k".into(), version: 1 << 56 }),
        Question::Begin(proto::Begin { transactions: 0, priority: 0 }),
        Question::Begin(proto::Begin { transactions: 1, priority: 77 }),
        Question::Resolve(proto::Resolve { commit_id: None, read_version: 1 }),
        Question::Lease(proto::LeaseQuestion { question: None }),
        Question::SplitPoints(proto::SplitPoints::default()),
        Question::Commit(proto::Commit { read_version: u64::MAX, ..commit.clone() }),
        Question::Commit(proto::Commit { read_conflicts: vec![range("b", "a")], ..commit.clone() }),
        Question::Commit(proto::Commit { write_conflicts: vec![range("b", "d"), range("c", "e")], ..commit.clone() }),
        Question::Commit(proto::Commit {
            mutations: vec![proto::Mutation { kind: 3, ..Default::default() }],
            ..commit.clone()
        }),
        Question::Commit(proto::Commit {
            mutations: vec![proto::Mutation { kind: 256, ..Default::default() }],
            ..commit
        }),
    ];
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let mut stream = greeted(&stage).await;
        let mut inbox = Inbox::new();
        for question in cases {
            stream.write_all(&request(7, question)).await.unwrap();
            let frame = loop {
                if let Some(frame) = inbox.next_frame(MESSAGE_BYTES_MAX).unwrap() {
                    break frame;
                }
                assert_ne!(std::future::poll_fn(|context| inbox.poll_read(&mut stream, context)).await.unwrap(), 0);
            };
            let reply: proto::Reply = decode(frame).unwrap();
            let Some(Body::Error(error)) = reply.answer else { panic!("an error was expected") };
            assert_eq!((reply.id, error.code), (7, Code::ClientInvalidOperation.number().into()));
        }
        assert_eq!(stage.puppet.asked(), 0);
        assert_eq!(stage.server.stats().errors()[&(Method::Commit, Code::ClientInvalidOperation)], 5);
    });
}

/// Frames with random changes, with and without a check value that fits, at a decoder and at a server: no panic, and the server goes on for others.
#[test]
fn mutilated_frames_do_no_harm() {
    let seed = 0x5eed;
    let mut random = SplitMix64::new(seed);
    let mut frames: Vec<Vec<u8>> = questions().into_iter().map(|(_, question)| request(3, question)).collect();
    frames.extend(answers().into_iter().map(|(_, body)| framed(&proto::Reply { id: 3, answer: Some(body) })));
    let mutilate = |random: &mut SplitMix64, frames: &[Vec<u8>]| {
        let mut bytes = frames[random.below(frames.len() as u64) as usize].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.next_u64() as u8,
                2 => bytes.insert(at, random.next_u64() as u8),
                _ if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {}
            }
        }
        if bytes.len() > 8 && !random.one_in(4) {
            // As a hostile program would send it.
            let len = bytes.len() - 4;
            bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
            let check = crc_fast::crc32_iscsi(&bytes[..len]);
            bytes[len..].copy_from_slice(&check.to_le_bytes());
        }
        bytes
    };
    for _ in 0..100_000 {
        let bytes = mutilate(&mut random, &frames);
        let mut inbox = Inbox::new();
        let mut stream = bytes.as_slice();
        let mut context = Context::from_waker(Waker::noop());
        assert!(inbox.poll_read(&mut stream, &mut context).is_ready());
        if let Ok(Some(frame)) = inbox.next_frame(MESSAGE_BYTES_MAX) {
            drop(decode::<proto::Request>(frame.clone()).map(|_| ()));
            let Ok(proto::Reply { answer: Some(body), .. }) = decode(frame) else { continue };
            drop(crate::wire::result_in::<Option<Committed>>(body.clone()));
            drop(crate::wire::result_in::<Rows>(body.clone()));
            drop(crate::wire::result_in::<Lease>(body));
        }
    }
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let witness = stage.connect().await;
        for _ in 0..3_000 {
            let mut stream = greeted(&stage).await;
            for _ in 0..random.below(5) {
                // The server may have closed it after the one before.
                drop(stream.write_all(&mutilate(&mut random, &frames)).await);
            }
        }
        assert_eq!(witness.get(get("k")).await.unwrap().unwrap(), "k", "seed {seed}");
        settle().await;
        assert_eq!(stage.server.stats().connections_open(), 1);
        assert_eq!(stage.server.memory_reserved(), (0, 0));
    });
}

/// A million requests and nobody who reads the answers: the server stops reading, holds no more than its bound, and others do not notice. When the answers
/// are read after all, every one of them is there, in order.
#[test]
fn a_reader_that_stops_reading_is_not_read_from() {
    const REQUESTS: u64 = 1_000_000;
    run(async {
        let options = ServeOptions {
            write_timeout: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(3600),
            ..ServeOptions::default()
        };
        let stage = Stage::open(options);
        let stream = greeted(&stage).await;
        let (mut read, mut write) = tokio::io::split(stream);
        let writer = tokio::spawn(async move {
            let mut bytes = Vec::new();
            for id in 0..REQUESTS {
                bytes.extend(get_bytes(id, "0123456789"));
                if bytes.len() > 10_000 {
                    write.write_all(&bytes).await.unwrap();
                    bytes.clear();
                }
            }
            write.write_all(&bytes).await.unwrap();
            write
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!writer.is_finished(), "the server has stopped reading");
        let asked = stage.puppet.asked();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(stage.puppet.asked(), asked);
        // A reply has 26 bytes or so; what was answered is in the server's 1 MiB, or in the 64 KiB of the stream.
        assert!(asked * 24 < (1 << 20) + (1 << 16) + (1 << 15), "{asked} questions were answered");
        assert!(stage.server.memory_reserved().1 < (2 << 20));
        let witness = stage.connect().await;
        assert_eq!(witness.get(get("k")).await.unwrap().unwrap(), "k");
        let mut inbox = Inbox::new();
        let mut next = 0;
        while next < REQUESTS {
            assert_ne!(std::future::poll_fn(|context| inbox.poll_read(&mut read, context)).await.unwrap(), 0);
            while let Some(frame) = inbox.next_frame(MESSAGE_BYTES_MAX).unwrap() {
                let reply: proto::Reply = decode(frame).unwrap();
                assert_eq!(reply.id, next);
                next += 1;
            }
        }
        drop(writer.await.unwrap());
        settle().await;
        assert_eq!(stage.server.memory_reserved(), (0, 0));
    });
}

/// Ten thousand connections that say nothing hold a few KiB each, both ends of their streams in memory included. In a process of its own: the memory of
/// others would be counted.
#[test]
fn idle_connections_are_cheap() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["tests::hostile::ten_thousand_idle_connections", "--exact", "--ignored"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "a part of idle_connections_are_cheap"]
fn ten_thousand_idle_connections() {
    const CONNECTIONS: usize = 10_000;
    let resident_bytes = || -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    run(async {
        let stage = Stage::open(ServeOptions::default());
        let before = resident_bytes();
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = greeted(&stage).await;
            stream.write_all(&get_bytes(1, "k")).await.unwrap();
            streams.push(stream);
        }
        settle().await;
        assert_eq!((stage.server.stats().connections_open(), stage.puppet.asked()), (CONNECTIONS as u64, CONNECTIONS));
        let each = (resident_bytes() - before) / CONNECTIONS;
        assert!(each < 16 << 10, "{each} bytes each");
        assert_eq!(stage.server.memory_reserved(), (0, 0));
    });
}
