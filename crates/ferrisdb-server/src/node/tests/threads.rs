//! On real threads and a real disk.

use ferrisdb_core::{Random, Runtime, SplitMix64};
use ferrisdb_storage::env::Spawner;
use ferrisdb_storage::env::threads::ThreadSpawner;

use super::*;
use crate::JobRuntime;
use crate::signal::reply;

const ACCOUNTS: u64 = 40;
const BALANCE: u64 = 1_000;

fn account(number: u64) -> String {
    format!("account{number:02}")
}

async fn balances(node: &Node, version: Version) -> Result<Vec<u64>> {
    let mut balances = Vec::new();
    for number in 0..ACCOUNTS {
        let value =
            node.get(GetRequest { key: bytes(&account(number)), version }).await?.expect("every account exists");
        balances.push(u64::from_le_bytes(value.as_ref().try_into().expect("eight bytes")));
    }
    Ok(balances)
}

/// Moves money between two accounts until it commits; true if that took more than one try.
///
/// `is_alone`: a commit is asked for as by somebody who may block.
async fn transfer(node: &Node, random: &mut SplitMix64, id: CommitId, is_alone: bool) -> Result<u64> {
    let (from, to, amount) = (random.below(ACCOUNTS), random.below(ACCOUNTS), random.below(10));
    let mut conflicts = 0;
    loop {
        let read_version = node.begin(BeginRequest { transactions: 1, priority: Priority::Default }).await?.version;
        let mut transaction =
            Transaction::at(read_version).id(id.client, id.counter + conflicts, id.counter + conflicts);
        let mut moves = vec![(from, 0u64.wrapping_sub(amount)), (to, amount)];
        moves.sort_unstable();
        for (number, change) in moves {
            let key = account(number);
            let value = node.get(GetRequest { key: bytes(&key), version: read_version }).await?.expect("it exists");
            let balance = u64::from_le_bytes(value.as_ref().try_into().expect("eight bytes")).wrapping_add(change);
            transaction = transaction.read(&key);
            if from != to {
                transaction = transaction.mutate(Mutation::set(bytes(&key), balance.to_le_bytes().to_vec()));
            }
        }
        let answer = match is_alone {
            true => node.commit_alone(transaction.build(), &mut Afterwards::new()),
            false => node.commit(transaction.build()),
        };
        match answer.await? {
            Committed::At { .. } => return Ok(conflicts),
            Committed::Conflict { .. } => conflicts += 1,
        }
    }
}

/// Twelve tasks move money, every third of them asking as who may block, one adds it all up again and again at one version: it is always the same. Then the node is closed, and no
/// thread is left; opened again, the sum is still the same.
#[test]
fn money_is_neither_made_nor_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let spawner = Arc::new(ThreadSpawner::new());
    let env = Env { spawner: Arc::<ThreadSpawner>::clone(&spawner), ..Env::real() };
    let runtime = JobRuntime::new(env.clone());
    // Groups so small, and so much patience with those that come alone, that the driver's task and other threads get into each other's way.
    let mut options = NodeOptions::default();
    options.coordinator.group_transactions = 2;
    options.coordinator.alone_at_most = Duration::from_secs(60);
    let node = Arc::new(Node::open(env.clone(), dir.path(), options).expect("it opens"));
    let mut ends = Vec::new();
    super::super::block_on(&runtime, async {
        let read_version = node.begin(BeginRequest::default()).await.expect("it begins").version;
        let mut start = Transaction::at(read_version);
        for number in 0..ACCOUNTS {
            start = start.mutate(Mutation::set(bytes(&account(number)), BALANCE.to_le_bytes().to_vec()));
        }
        node.commit(start.build()).await.expect("it commits");
    });
    for client in 0..12u64 {
        let node = Arc::clone(&node);
        let (end, ended) = reply(Code::OperationCancelled);
        let task = async move {
            let mut random = SplitMix64::new(client);
            let mut counter = 1;
            let mut result = Ok(());
            for _ in 0..60 {
                match transfer(&node, &mut random, CommitId { client, counter }, client % 3 == 0).await {
                    Ok(conflicts) => counter += conflicts + 1,
                    Err(error) => result = Err(error),
                }
            }
            end.send(result);
        };
        runtime.spawn("teller", Box::pin(task));
        ends.push(ended);
    }
    let audits = super::super::block_on(&runtime, async {
        let mut audits = 0;
        for _ in 0..50 {
            let version = node.begin(BeginRequest::default()).await.expect("it begins").version;
            let sum: u64 = balances(&node, version).await.expect("it reads").into_iter().fold(0, u64::wrapping_add);
            assert_eq!(sum, ACCOUNTS * BALANCE);
            audits += 1;
        }
        for ended in ends {
            ended.await.expect("every transfer commits");
        }
        audits
    });
    assert_eq!(audits, 50);
    node.close_blocking().expect("it closes");
    drop(node);
    drop(runtime);
    for _ in 0..10_000 {
        if spawner.live_jobs() == 0 {
            break;
        }
        spawner.sleep(Duration::from_millis(10));
    }
    assert_eq!(spawner.live_jobs(), 0, "no thread is left");

    let node = Node::open(env.clone(), dir.path(), NodeOptions::default()).expect("it opens again");
    let runtime = JobRuntime::new(env);
    let sum: u64 = super::super::block_on(&runtime, async {
        let version = node.begin(BeginRequest::default()).await.expect("it begins").version;
        balances(&node, version).await.expect("it reads").into_iter().fold(0, u64::wrapping_add)
    });
    assert_eq!(sum, ACCOUNTS * BALANCE);
}
