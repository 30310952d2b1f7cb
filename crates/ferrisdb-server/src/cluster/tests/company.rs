//! Commits that wait for one another: who is alone by now is not held up by those who were there a moment ago.

use ferrisdb_client::Transaction;
use ferrisdb_core::Clock;
use futures_util::future::join_all;

use super::SECOND;
use super::world::World;

/// Eight clients commit at once, and then one alone, which its group takes for the first of eight; again and again. A group goes when a part of what groups take is over.
#[test]
fn commits_do_not_wait_for_those_who_left() {
    let world = World::new(90);
    world.grow_to(3);
    world.be_quiet();
    let leader = world.leader();
    let clients: Vec<_> = (0..8).map(|_| world.client_of(leader)).collect();
    let set = |number: usize| {
        let (client, clock) = (clients[number].clone(), world.clock());
        async move {
            let begun = clock.now();
            let key = format!("company/{number}");
            let body = async |transaction: Transaction| {
                transaction.set(&key, "here");
                Ok(())
            };
            client.run(body).await.expect("it commits");
            clock.now() - begun
        }
    };
    for _ in 0..3 {
        let together = world.finish(join_all((0..8).map(&set)));
        let alone = world.finish(set(0));
        // Messages take a tenth of a second at most each, and there are a handful.
        assert!(together.iter().chain([&alone]).all(|took| *took < SECOND), "{together:?} {alone:?}");
    }
}
