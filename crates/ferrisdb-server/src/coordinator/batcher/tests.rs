//! Decisions that are hard to reach from outside.

use std::sync::Arc;

use super::*;
use crate::log::Recovered;
use crate::log::state::TAG_PREFIX;

const AT: Duration = Duration::from_secs(1);

/// A batcher of an epoch that has begun, over these storage servers; `holders` have all keys.
fn batcher(tags: &[Tag], holders: &[Tag]) -> Batcher {
    let mut metadata = BTreeMap::new();
    for mutation in ShardMap::whole(holders.iter().map(|&tag| (tag, Version::ZERO))).write() {
        metadata.insert(mutation.key, mutation.value);
    }
    let recovered = Recovered {
        epoch: 0,
        last: Version::ZERO,
        horizon: Version::ZERO,
        leases: BTreeMap::new(),
        next_lease: 1,
        popped: tags.iter().map(|&tag| (tag, Version::ZERO)).collect(),
        lock: None,
        metadata: Arc::new(metadata),
    };
    let leases = LeaseOptions::default();
    let (_, mut batcher) = Batcher::begin_epoch(&recovered, [7; 16], Limits::DEFAULT, leases.clone(), AT);
    batcher.epoch_began(&recovered, leases, AT);
    batcher
}

/// Has one request decided, and the group appended. The version of its batch, if it has one, with the decision.
fn decide(batcher: &mut Batcher, request: Request, known: Lookup<'_>) -> (Option<Version>, Decision) {
    let mut group = batcher.form(vec![request], false, AT, batcher.previous, known);
    batcher.appended(&group);
    (group.version, group.decisions.remove(0))
}

fn nothing(_: CommitId) -> (Known, Version) {
    (Known::Nothing, Version::ZERO)
}

/// "It did not happen" was told, forgotten because there were too many, and then the commit itself arrives: it must not happen.
#[test]
fn what_may_have_been_told_as_undone_is_not_done() {
    let mut batcher = batcher(&[Tag::FIRST], &[Tag::FIRST]);
    let read_version = batcher.previous;
    let commit = || {
        Request::Commit(CommitRequest {
            read_version,
            mutations: vec![Mutation::set("key", "value")],
            write_conflicts: vec![KeyRange::single(b"key")],
            id: Some(CommitId { client: 5, counter: 1 }),
            read_conflicts: Vec::new(),
            lowest_unanswered: 0,
            report_conflicting_keys: false,
            begins: None,
            lock_aware: false,
        })
    };
    let above = Version::from_u64(read_version.get() + 1);
    let (_, refused) = decide(&mut batcher, commit(), &|_| (Known::Nothing, above));
    let Decision::Now(Err(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.code(), Code::TransactionTooOld, "{error}");
    let (_, taken) = decide(&mut batcher, commit(), &|_| (Known::Nothing, read_version));
    assert!(matches!(taken, Decision::WhenDurable(..)), "{taken:?}");
}

/// A storage server arrives that has lost its tag meanwhile: those that hold the keys now go on to hold them.
#[test]
fn nobody_arrives_without_a_tag() {
    let (old, new) = (Tag(1), Tag(2));
    let mut batcher = batcher(&[old, new], &[old]);
    let team = BTreeSet::from([new]);
    let whole = || (Bytes::new(), Bytes::from_static(SYSTEM_END));
    let (begin, end) = whole();
    let (id, moved) = decide(&mut batcher, Request::Shards(Change::Move { begin, end, team }), &nothing);
    assert!(matches!(moved, Decision::WhenDurable(..)), "{moved:?}");
    let id = id.expect("a change of the map has a version");
    let (from, _) = decide(&mut batcher, Request::Metadata(vec![Mutation::set(b"\xff/note".as_slice(), "")]), &nothing);
    let key = [TAG_PREFIX, &new.0.to_be_bytes()].concat();
    let lost = Mutation::clear_range(key.clone(), [&key[..], b"\0"].concat());
    let (_, dropped) = decide(&mut batcher, Request::Metadata(vec![lost]), &nothing);
    assert!(matches!(dropped, Decision::WhenDurable(..)), "{dropped:?}");
    let from = from.expect("as every change of the metadata");
    let arrived = Change::Arrived { begin: Bytes::new(), id, tag: new, from };
    let (_, refused) = decide(&mut batcher, Request::Shards(arrived), &nothing);
    let Decision::Now(Err(error)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("nobody else holds"), "{error}");
}
