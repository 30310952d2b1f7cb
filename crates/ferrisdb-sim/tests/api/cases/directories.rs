//! What the tree promises, its keys as FoundationDB writes them, and prefixes given out to many at once.

use std::collections::BTreeSet;

use ferrisdb_client::Database;
use ferrisdb_client::layers::directory::{CreateOptions, Directory, DirectoryLayer, PARTITION};
use ferrisdb_client::layers::tuple::{Element, Tuple};
use ferrisdb_core::{Bytes, Code, Result};
use futures_executor::block_on;

use crate::deployment::Deployment;

fn layer() -> DirectoryLayer {
    DirectoryLayer::default()
}

async fn create(db: &Database, path: &[&str]) -> Result<Directory> {
    db.run(async |tx| layer().create(&tx, path, CreateOptions::default()).await).await
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    result.expect_err("it must fail").code()
}

pub(crate) fn directories_are_created_opened_listed_moved_and_removed(here: &Deployment) {
    let db = here.database();
    block_on(async {
        let users = create(&db, &["app", "users"]).await.expect("it is new");
        assert_eq!(code(create(&db, &["app", "users"]).await), Code::DirectoryAlreadyExists);
        let key = users.subspace().expect("no partition").pack((1,));
        db.run(async |tx| {
            tx.set(&key, b"Ann");
            Ok(())
        })
        .await
        .expect("it commits");
        create(&db, &["app", "users", "archive"]).await.expect("it is new");
        create(&db, &["app", "logs"]).await.expect("it is new");

        let opened = db.run(async |tx| layer().open(&tx, &["app", "users"], &b""[..]).await).await.expect("it exists");
        assert_eq!(opened, users);
        let names = db.run(async |tx| layer().list(&tx, &["app"]).await).await.expect("it exists");
        assert_eq!(names, ["logs", "users"]);

        let moved =
            db.run(async |tx| layer().move_to(&tx, &["app", "users"], &["people"]).await).await.expect("it moves");
        assert_eq!(moved.subspace(), users.subspace(), "a move touches no data");
        assert_eq!(moved.path(), ["people"]);
        let into_itself = db.run(async |tx| layer().move_to(&tx, &["people"], &["people", "x"]).await).await;
        assert_eq!(code(into_itself), Code::InvalidDestinationDirectory);
        let orphan = db.run(async |tx| layer().move_to(&tx, &["people"], &["no", "x"]).await).await;
        assert_eq!(code(orphan), Code::ParentDirectoryDoesNotExist);

        db.run(async |tx| layer().remove(&tx, &["people"]).await).await.expect("it exists");
        assert_eq!(db.run(async |tx| tx.get(&key).await).await.expect("it reads"), None, "its contents are gone");
        let exists = db.run(async |tx| layer().exists(&tx, &["people", "archive"]).await).await.expect("it reads");
        assert!(!exists);
        let again =
            db.run(async |tx| layer().remove_if_exists(&tx, &["people"]).await).await.expect("nothing to remove");
        assert!(!again);
        assert_eq!(code(db.run(async |tx| layer().remove(&tx, &["people"]).await).await), Code::DirectoryDoesNotExist);
    });
}

pub(crate) fn layers_and_manual_prefixes_are_checked(here: &Deployment) {
    let db = here.database();
    block_on(async {
        let queue = CreateOptions::layer(&b"queue"[..]);
        db.run(async |tx| layer().create(&tx, &["q"], queue.clone()).await).await.expect("it is new");
        let wrong = db.run(async |tx| layer().open(&tx, &["q"], &b"stack"[..]).await).await;
        assert_eq!(code(wrong), Code::MismatchedLayer);
        db.run(async |tx| layer().open(&tx, &["q"], &b""[..]).await).await.expect("no layer accepts any");

        let manual =
            |prefix: &'static [u8]| CreateOptions { layer: Bytes::new(), prefix: Some(Bytes::from_static(prefix)) };
        let refused = db.run(async |tx| layer().create(&tx, &["m"], manual(b"my")).await).await;
        assert_eq!(code(refused), Code::ManualPrefixesNotEnabled);
        let liberal = DirectoryLayer::new(&b"\xfe"[..], &b""[..], true);
        db.run(async |tx| liberal.create(&tx, &["m"], manual(b"my")).await).await.expect("the prefix is free");
        for taken in [&b"my"[..], b"myself", b"m", b"\xfe", b""] {
            let taken = CreateOptions { layer: Bytes::new(), prefix: Some(Bytes::copy_from_slice(taken)) };
            let result = db.run(async |tx| liberal.create(&tx, &["n"], taken.clone()).await).await;
            assert_eq!(code(result), Code::DirectoryPrefixInUse);
        }
        assert_eq!(code(create(&db, &[]).await), Code::CannotOpenRootDirectory);
    });
}

/// A path leads through partitions; nothing moves out of one; the partition's own prefix is nobody's subspace.
pub(crate) fn partitions_hold_trees_of_their_own(here: &Deployment) {
    let db = here.database();
    block_on(async {
        let partition = CreateOptions::layer(PARTITION);
        let tenant =
            db.run(async |tx| layer().create(&tx, &["tenant"], partition.clone()).await).await.expect("it is new");
        assert_eq!(code(tenant.subspace()), Code::CannotUsePartitionAsSubspace);
        let inside = create(&db, &["tenant", "data"]).await.expect("it is new");
        assert_eq!(inside.path(), ["tenant", "data"]);
        let key = inside.subspace().expect("no partition").pack((1,));
        db.run(async |tx| {
            tx.set(&key, "");
            Ok(())
        })
        .await
        .expect("it commits");

        let tree = tenant.partition().expect("it is one");
        let same = db.run(async |tx| tree.open(&tx, &["data"], &b""[..]).await).await.expect("the same directory");
        assert_eq!(same, inside);
        assert_eq!(db.run(async |tx| layer().list(&tx, &["tenant"]).await).await.expect("it exists"), ["data"]);
        let out = db.run(async |tx| layer().move_to(&tx, &["tenant", "data"], &["data"]).await).await;
        assert_eq!(code(out), Code::CannotMoveDirectoryBetweenPartitions);
        db.run(async |tx| layer().move_to(&tx, &["tenant", "data"], &["tenant", "moved"]).await).await.expect("within");
        let manual = CreateOptions { layer: Bytes::new(), prefix: Some(Bytes::from_static(b"x")) };
        let refused = db.run(async |tx| layer().create(&tx, &["tenant", "m"], manual.clone()).await).await;
        assert_eq!(code(refused), Code::PrefixInPartition);
        db.run(async |tx| layer().remove(&tx, &["tenant"]).await).await.expect("with all in it");
    });
    let is_of_the_tree = |(key, _): &(Bytes, Bytes)| key.starts_with(b"\xfe");
    assert!(here.rows().iter().all(is_of_the_tree), "what was in the partition is gone");
}

/// The keys of one directory, as FoundationDB's Python binding writes them.
pub(crate) fn keys_are_foundationdbs(here: &Deployment) {
    let db = here.database();
    block_on(create(&db, &["a"])).expect("it is new");
    let rows = here.rows();
    let mut keys = rows.iter().filter(|(key, _)| key.starts_with(b"\xfe"));
    let hca = b"\xfe\x01\xfe\x00\x01hca\x00";
    let (layer_of_node, layer) = keys.next().expect("the directory's layer");
    // The node of the new prefix sorts before the root's, whose prefix is 0xFE.
    let prefix = name_of_node(layer_of_node);
    assert_eq!(layer_of_node.as_ref(), [b"\xfe", &Tuple::from((prefix.clone(), &b"layer"[..])).pack()[..]].concat());
    assert_eq!(layer.as_ref(), b"");
    assert!(prefix.len() <= 2 && matches!(prefix[0], 0x14 | 0x15), "a number below 64: {prefix:?}");
    let rest: Vec<(&[u8], &[u8])> = keys.map(|(key, value)| (key.as_ref(), value.as_ref())).collect();
    let counter = [hca.as_slice(), b"\x14\x14"].concat();
    let recent = [hca.as_slice(), b"\x15\x01", &prefix].concat();
    let expected: [(&[u8], &[u8]); 4] = [
        (&counter, &1i64.to_le_bytes()),
        (&recent, b""),
        (b"\xfe\x01\xfe\x00\x01version\x00", b"\x01\0\0\0\0\0\0\0\0\0\0\0"),
        (b"\xfe\x01\xfe\x00\x14\x02a\x00", &prefix),
    ];
    assert_eq!(rest, expected);
}

fn name_of_node(key: &[u8]) -> Bytes {
    match Tuple::unpack(&key[1..]).expect("a tuple").into_elements().swap_remove(0) {
        Element::Bytes(prefix) => prefix,
        other => panic!("{other:?}"),
    }
}

/// Prefixes from transactions that overlap: none twice, none a beginning of another, all short.
pub(crate) fn many_prefixes_are_different_and_short(here: &Deployment) {
    let db = here.database();
    let mut prefixes = BTreeSet::new();
    block_on(async {
        for round in 0..20 {
            let open: Vec<_> = (0..5).map(|_| db.create_transaction()).collect();
            let mut made = Vec::new();
            for (number, tx) in open.iter().enumerate() {
                let path = [format!("{round}-{number}")];
                made.push(layer().create(tx, &path, CreateOptions::default()).await.expect("it is new"));
            }
            for (tx, directory) in open.iter().zip(made) {
                if tx.commit().await.is_ok() {
                    let prefix = directory.subspace().expect("no partition").prefix().clone();
                    assert!(prefixes.insert(prefix), "given out twice");
                }
            }
        }
    });
    assert!(prefixes.len() >= 20, "{} were committed", prefixes.len());
    let prefixes: Vec<_> = prefixes.into_iter().collect();
    assert!(prefixes.windows(2).all(|pair| !pair[1].starts_with(&pair[0])));
    assert!(prefixes.iter().all(|prefix| prefix.len() <= 3));
}
