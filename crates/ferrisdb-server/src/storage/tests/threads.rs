//! On real threads: readers and watchers beside one who applies.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferrisdb_core::{KeyRange, Random, Runtime, SplitMix64};
use ferrisdb_rpc::api::GetRangeRequest;
use ferrisdb_storage::env::{Spawner, wait};
use ferrisdb_storage::fs::sim::SimFileSystem;
use ferrisdb_storage::{Env, Options};

use super::{DIR, batch, bytes, get, set, v, watch};
use crate::JobRuntime;
use crate::storage::{StorageOptions, StorageServer};

const VERSIONS: u64 = 2000;
const ACCOUNTS: usize = 200;

/// Every version moves money between accounts; whoever reads all accounts at one version, in memory or on disk or before it is there, finds the
/// same total. A watcher sees every change of its key that it waits for. Nothing hangs.
#[test]
fn readers_see_whole_versions() {
    let spawner: Arc<dyn Spawner> = Arc::new(ferrisdb_storage::env::threads::ThreadSpawner::new());
    let env = Env { fs: Arc::new(SimFileSystem::new()), spawner: Arc::clone(&spawner), ..Env::real() };
    let runtime = JobRuntime::new(env);
    let options = StorageOptions { engine: Options::tiny(), ..StorageOptions::default() };
    let (storage, _) = StorageServer::open(runtime.clone(), Path::new(DIR), options).expect("a new one");
    let name = |account: usize| format!("account{account:04}");
    let start = (0..ACCOUNTS).map(|account| set(&name(account), "1000")).collect();
    wait(&*spawner, storage.apply(batch(1, start))).expect("it can be applied");

    let newest = Arc::new(AtomicU64::new(1));
    let (sender, receiver) = std::sync::mpsc::channel();
    for reader in 0..3 {
        let (storage, newest, sender) = (storage.clone(), Arc::clone(&newest), sender.clone());
        runtime.spawn(
            "reader",
            Box::pin(async move {
                let mut random = SplitMix64::new(reader);
                let mut reads = 0u64;
                loop {
                    let at = newest.load(Ordering::Acquire);
                    // Some a little ahead: they wait.
                    let version = v((at + random.below(3)).min(VERSIONS));
                    let request = GetRangeRequest {
                        range: KeyRange::new(bytes("account"), bytes("b")),
                        version,
                        limit: 0,
                        target_bytes: 0,
                        reverse: reader == 1,
                    };
                    let rows = storage.get_range(request).await.expect("the version is in the window");
                    let total: u64 = rows
                        .rows
                        .iter()
                        .map(|row| std::str::from_utf8(&row.value).expect("digits").parse::<u64>().expect("digits"))
                        .sum();
                    assert_eq!((rows.rows.len(), total), (ACCOUNTS, ACCOUNTS as u64 * 1000), "at {version}");
                    reads += 1;
                    if at == VERSIONS {
                        break;
                    }
                }
                sender.send(reads).expect("the test waits");
            }),
        );
    }
    {
        let storage = storage.clone();
        runtime.spawn(
            "watcher",
            Box::pin(async move {
                let mut seen = 0u64;
                let mut version = 1;
                while version < VERSIONS {
                    let value = get(&storage, "tick", version).await.expect("it can be read");
                    let text = value.map(|value| String::from_utf8_lossy(&value).into_owned());
                    version = watch(&storage, "tick", text.as_deref(), version).await.expect("it fires").get();
                    seen += 1;
                }
                sender.send(seen).expect("the test waits");
            }),
        );
    }
    let mut random = SplitMix64::new(9);
    let mut money = vec![1000u64; ACCOUNTS];
    let mut account = move || usize::try_from(random.below(ACCOUNTS as u64)).expect("small");
    for version in 2..=VERSIONS {
        let mut mutations = vec![set("tick", &version.to_string())];
        for _ in 0..5 {
            let (from, to) = (account(), account());
            let amount = (version % 10).min(money[from]);
            money[from] -= amount;
            money[to] += amount;
            mutations.extend([from, to].map(|account| set(&name(account), &money[account].to_string())));
        }
        wait(&*spawner, storage.apply(batch(version, mutations))).expect("it can be applied");
        newest.store(version, Ordering::Release);
    }
    let counts: Vec<u64> = (0..4).map(|_| receiver.recv().expect("all end")).collect();
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    wait(&*spawner, storage.close()).expect("it can be closed");
}

/// What the role adds to a read of the engine, in memory: `cargo test --release -p ferrisdb-server --lib -- --ignored --nocapture what_the_role_adds`.
#[test]
#[ignore = "a measurement"]
fn what_the_role_adds() {
    const KEYS: u64 = 100_000;
    const READS: u64 = 2_000_000;
    let env = Env { fs: Arc::new(SimFileSystem::new()), ..Env::real() };
    let (spawner, clock) = (Arc::clone(&env.spawner), Arc::clone(&env.clock));
    let runtime = JobRuntime::new(env);
    let (storage, _) = StorageServer::open(runtime, Path::new(DIR), StorageOptions::default()).expect("a new one");
    let keys: Vec<ferrisdb_core::Bytes> = (0..KEYS).map(|number| bytes(&format!("user{number:012}"))).collect();
    let load = keys.iter().map(|key| ferrisdb_core::Mutation::set(key.clone(), vec![b'v'; 100])).collect();
    wait(&*spawner, storage.apply(batch(1, load))).expect("it can be applied");
    let time = |read: &dyn Fn(&ferrisdb_core::Bytes)| {
        let mut random = SplitMix64::new(5);
        let begin = clock.now();
        (0..READS).for_each(|_| read(&keys[usize::try_from(random.below(KEYS)).expect("small")]));
        (clock.now() - begin).as_nanos() / u128::from(READS)
    };
    for _ in 0..5 {
        let engine = time(&|key| drop(std::hint::black_box(storage.shared.engine.try_get(key, Some(v(1))))));
        let role = time(&|key| {
            let request = ferrisdb_rpc::api::GetRequest { key: key.clone(), version: v(1) };
            drop(std::hint::black_box(storage.get(request)));
        });
        eprintln!("engine {engine} ns, role {role} ns");
    }
}
