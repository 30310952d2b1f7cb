//! The bytes of one frame of each kind. Whoever changes them breaks every program of another version: see "How versions change" in
//! `docs/decisions/0012-transport.md`. `UPDATE_EXPECT=1` writes them anew.

use std::fmt::Write as _;

use super::*;
use crate::frame::{Inbox, MESSAGE_BYTES_MAX, Outbox, Writer};
use crate::wire::{self, Body, Envelope, Question, proto, result_out};
use ferrisdb_core::{KeySelector, Mutation, MutationKind};

/// Every question, with fields that are not their defaults.
pub(super) fn questions() -> Vec<(&'static str, Question)> {
    let version = Version::from_u64(0x0102_0304_0506);
    let id = CommitId { client: 0x1122_3344_5566_7788, counter: 300 };
    let selector = KeySelector { key: Bytes::from("k"), or_equal: true, offset: -1 };
    let range = KeyRange::new("a", "b");
    let commit = CommitRequest {
        read_version: version,
        read_conflicts: vec![range.clone()],
        write_conflicts: vec![range.clone(), KeyRange::new("c", "d")],
        mutations: vec![Mutation::set("k", "v"), Mutation::new(MutationKind::CompareAndClear, "k", "")],
        id: Some(id),
        lowest_unanswered: 299,
        report_conflicting_keys: true,
        begins: None,
        lock_aware: false,
    };
    vec![
        ("begin", wire::begin_out(BeginRequest { transactions: 3, priority: Priority::Batch })),
        ("get", wire::get_out(GetRequest { key: "key".into(), version })),
        ("get_key", wire::get_key_out(GetKeyRequest { selector, end: "z".into(), version })),
        (
            "get_range",
            wire::get_range_out(GetRangeRequest {
                range: range.clone(),
                version,
                limit: 7,
                target_bytes: 1000,
                reverse: true,
            }),
        ),
        ("commit", wire::commit_out(commit.clone())),
        ("commit blind", wire::commit_out(CommitRequest { begins: Some(Priority::Batch), ..commit.clone() })),
        ("commit lock aware", wire::commit_out(CommitRequest { lock_aware: true, ..commit })),
        ("resolve", wire::resolve_out(ResolveRequest { id, read_version: version })),
        ("watch", wire::watch_out(WatchRequest { key: "k".into(), value: Some("".into()), version })),
        ("watch absent", wire::watch_out(WatchRequest { key: "k".into(), value: None, version })),
        ("lease grant", wire::lease_out(LeaseRequest::Grant(Some(version)))),
        ("lease newest", wire::lease_out(LeaseRequest::Grant(None))),
        ("lease renew", wire::lease_out(LeaseRequest::Renew(9))),
        ("lease end", wire::lease_out(LeaseRequest::End(9))),
        ("estimated_size", wire::estimated_size_out(range.clone())),
        ("split_points", wire::split_points_out(SplitPointsRequest { range, part_bytes: 1000, limit: 2 })),
        ("addresses_for_key", Question::AddressesForKey(proto::AddressesForKey { key: "k".into() })),
        ("locations", wire::locations_out(LocationsRequest { range: KeyRange::new("a", "z"), limit: 300 })),
        ("status", Question::Status(proto::Empty {})),
        ("cancel", Question::Cancel(proto::Empty {})),
        ("ping", Question::Ping(proto::Empty {})),
        ("goodbye", Question::Goodbye(proto::Empty {})),
        ("part", Question::Part(proto::Part { total_bytes: 100_000, piece: "piece".into() })),
        ("message", Question::Message("message".into())),
        ("message empty", Question::Message("".into())),
    ]
}

/// Every answer.
pub(super) fn answers() -> Vec<(&'static str, Body)> {
    let version = Version::from_u64(0x0102_0304_0506);
    let row = KeyValue { key: "k".into(), value: "v".into() };
    vec![
        ("error", result_out::<u64>(Err(Error::with(Code::TransactionTooOld, "detail")))),
        ("begun", result_out(Ok(Begun { version, is_locked: false }))),
        ("begun locked", result_out(Ok(Begun { version, is_locked: true }))),
        ("value", result_out(Ok(Some(Bytes::from("value"))))),
        ("value empty", result_out(Ok(Some(Bytes::new())))),
        ("value absent", result_out(Ok(None::<Bytes>))),
        ("key", result_out(Ok(Bytes::from("key")))),
        ("rows", result_out(Ok(Rows { rows: vec![row.clone(), row], more: true }))),
        ("committed", result_out(Ok(Committed::At { version, batch_index: 65_535 }))),
        ("conflict", result_out(Ok(Committed::Conflict { ranges: vec![0, 300] }))),
        ("never", result_out(Ok(None::<Committed>))),
        ("lease", result_out(Ok(Lease { id: 9, version, term_ms: 5000 }))),
        ("size", result_out(Ok(1u64 << 40))),
        ("keys", result_out(Ok(vec![Bytes::from("a"), Bytes::new()]))),
        ("addresses", result_out(Ok(vec!["127.0.0.1:4500".to_owned()]))),
        (
            "locations",
            result_out(Ok(Locations {
                locations: vec![Location { begin: "k".into(), addresses: vec!["h:1".to_owned(), "h:2".to_owned()] }],
                more: false,
                coordinator: Some("h:3".to_owned()),
            })),
        ),
        ("text", result_out(Ok("{}".to_owned()))),
        ("pong", Body::Pong(proto::Empty {})),
        ("goodbye", Body::Goodbye(proto::Empty {})),
        ("part", Body::Part(proto::Part { total_bytes: 0, piece: "piece".into() })),
    ]
}

/// The frames of a message.
pub(super) fn framed<E: Envelope>(message: &E) -> Vec<u8> {
    let (mut outbox, mut writer, mut bytes) = (Outbox::default(), Writer::default(), Vec::new());
    outbox.put(message);
    let mut context = Context::from_waker(Waker::noop());
    while !outbox.is_empty() {
        writer.take_from::<E>(&mut outbox);
        assert!(writer.poll_write(&mut bytes, &mut context, &mut 0).is_ready());
    }
    bytes
}

#[test]
fn frames_have_their_golden_bytes() {
    let mut text = String::new();
    let mut line = |name: &str, bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name}\n    {hex}").unwrap();
    };
    for (name, question) in questions() {
        line(&format!("request {name}"), &framed(&proto::Request { id: 0x1234, question: Some(question) }));
    }
    for (name, answer) in answers() {
        line(&format!("reply {name}"), &framed(&proto::Reply { id: 0x1234, answer: Some(answer) }));
    }
    let error = Error::with(Code::IncompatibleProtocolVersion, "detail");
    line("hello refused", &crate::hello::refusing_hello(&error));
    let client =
        ClientOptions { cluster_id: Some([7; 16]), software: "ferrisdb 9.9".to_owned(), ..ClientOptions::default() };
    line("hello client", &crate::hello::client_hello(&client));
    line("hello peer", &crate::hello::client_hello(&ClientOptions { is_peer: true, ..client }));
    expect_test::expect_file!["golden.txt"].assert_eq(&text);
}

/// A message that is one byte too long for a frame goes in pieces, one that just fits does not, and both arrive.
#[test]
fn long_messages_go_in_pieces() {
    for value_bytes in [0, 1, MESSAGE_BYTES_MAX - 13, MESSAGE_BYTES_MAX, 1_000_000] {
        let body = Body::Value(proto::Value { value: Some(Bytes::from(vec![7; value_bytes])) });
        let bytes = framed(&proto::Reply { id: 77, answer: Some(body.clone()) });
        let mut inbox = Inbox::new();
        let mut stream = bytes.as_slice();
        let mut found = None;
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(1..)) = inbox.poll_read(&mut stream, &mut context) {
            while let Some(frame) = inbox.next_frame(MESSAGE_BYTES_MAX).unwrap() {
                let mut reply: proto::Reply = crate::frame::decode(frame).unwrap();
                if let Some(Body::Part(part)) = &reply.answer {
                    inbox.announced(part, 2_000_000).unwrap();
                    let Some(message) = inbox.add_piece(part).unwrap() else { continue };
                    reply = crate::frame::decode(message).unwrap();
                }
                assert!(found.replace(reply).is_none(), "one message");
            }
        }
        let found = found.expect("it arrived");
        assert!(found == proto::Reply { id: 77, answer: Some(body) }, "{value_bytes} bytes");
        assert_eq!(bytes.len() > MESSAGE_BYTES_MAX + 8, value_bytes > MESSAGE_BYTES_MAX - 13);
    }
}

/// Every single bit that a network may turn over in a frame is noticed. A length that claims more is noticed when as much has come, or by the timer.
#[test]
fn a_damaged_frame_is_noticed() {
    let get = Question::Get(proto::Get { key: "some key".into(), version: 1 << 40 });
    let good = framed(&proto::Request { id: 5, question: Some(get) });
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes.resize(bytes.len() + (1 << 17), 0);
        let mut inbox = Inbox::new();
        let mut stream = bytes.as_slice();
        let mut context = Context::from_waker(Waker::noop());
        let result = loop {
            assert!(matches!(inbox.poll_read(&mut stream, &mut context), Poll::Ready(Ok(1..))), "bit {bit}");
            match inbox.next_frame(MESSAGE_BYTES_MAX) {
                Ok(None) => {}
                result => break result,
            }
        };
        assert!(result.is_err(), "bit {bit}");
    }
}
