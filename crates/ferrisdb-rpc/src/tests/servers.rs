//! A client with several addresses: which one it begins with, where it goes on, what it does not wait for, and what it says when none is left.

use std::collections::BTreeMap;

use super::client::Breaking;
use super::*;
use crate::client::{Client, addresses};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Random, SplitMix64};
use tokio::time::Instant;

/// What is found at an address.
#[derive(Clone)]
enum Door {
    /// A server, over streams that can be broken.
    Server(Arc<Breaking>),
    Refuses,
    /// Nothing ever comes back.
    Swallows,
    /// It takes a connection, and says no hello.
    Silent,
}

/// A network with a few addresses.
#[derive(Default)]
struct Town {
    doors: Mutex<BTreeMap<String, Door>>,
    /// Who was tried, when.
    tried: Mutex<Vec<(String, Instant)>>,
    silent: Mutex<Vec<DuplexStream>>,
}

impl Town {
    fn set(&self, address: &str, door: Door) {
        self.doors.lock().unwrap().insert(address.to_owned(), door);
    }

    fn open(&self, address: &str, stage: &Stage) {
        self.set(address, Door::Server(Arc::new(Breaking::new(&stage.hall))));
    }

    /// Breaks all connections to an address and takes no more.
    fn kill(&self, address: &str) {
        let door = self.doors.lock().unwrap().insert(address.to_owned(), Door::Refuses);
        if let Some(Door::Server(server)) = door {
            server.break_all();
        }
    }

    fn tried(&self) -> Vec<(String, Instant)> {
        std::mem::take(&mut self.tried.lock().unwrap())
    }

    fn tried_names(&self) -> Vec<String> {
        self.tried().into_iter().map(|(address, _)| address).collect()
    }
}

impl Connector for Town {
    fn connect(&self, address: &str) -> BoxFuture<io::Result<Box<dyn Stream>>> {
        self.tried.lock().unwrap().push((address.to_owned(), Instant::now()));
        let door = self.doors.lock().unwrap().get(address).cloned();
        match door.expect("only addresses of this town are tried") {
            Door::Server(server) => server.connect(address),
            Door::Refuses => Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }),
            Door::Swallows => Box::pin(std::future::pending()),
            Door::Silent => {
                let (ours, theirs) = tokio::io::duplex(1 << 12);
                self.silent.lock().unwrap().push(theirs);
                Box::pin(async move { Ok(Box::new(ours) as Box<dyn Stream>) })
            }
        }
    }
}

/// A town with so many servers, named `a`, `b` and so on, of one puppet.
fn town(servers: usize) -> (Arc<Town>, Arc<Puppet>, Vec<Stage>) {
    let (town, puppet) = (Arc::new(Town::default()), Arc::new(Puppet::default()));
    let stage =
        || Stage::with_endpoint(Arc::clone(&puppet), Arc::clone(&puppet) as _, ServeOptions::default(), 1 << 16);
    let stages: Vec<Stage> = (0..servers).map(|_| stage()).collect();
    for (stage, name) in stages.iter().zip(["a", "b", "c"]) {
        town.open(name, stage);
    }
    (town, puppet, stages)
}

/// Options with a seed that begins at the first of two addresses, and of three.
fn first() -> ClientOptions {
    let is_first = |seed: &u64| [2, 3].iter().all(|&count| SplitMix64::new(*seed).below(count) == 0);
    ClientOptions { seed: (0..1000).find(is_first), ..ClientOptions::default() }
}

async fn connect(town: &Arc<Town>, list: &str, options: ClientOptions) -> Result<Client> {
    Client::connect_with(Arc::clone(town) as _, list, options).await
}

/// Many clients spread over the servers; the same seed begins with the same one.
#[test]
fn where_a_client_begins_follows_from_its_seed() {
    run(async {
        let (town, _, _stages) = town(3);
        let mut begun = BTreeMap::new();
        for seed in 0..30 {
            let options = || ClientOptions { seed: Some(seed), ..ClientOptions::default() };
            drop((connect(&town, "a,b,c", options()).await, connect(&town, "a,b,c", options()).await));
            let tried = town.tried_names();
            assert!(tried.len() == 2 && tried[0] == tried[1], "seed {seed}: {tried:?}");
            *begun.entry(tried[0].clone()).or_insert(0) += 1;
        }
        assert!(begun.len() == 3 && begun.values().all(|count| *count >= 5), "{begun:?}");
        drop((connect(&town, "a,b,c", first()).await, connect(&town, "a,b", first()).await));
        assert_eq!(town.tried_names(), ["a", "a"]);
    });
}

/// The server dies: what reads is asked at the next one, without a wait; a commit under way is unknown and not sent again; what comes next goes there too.
#[test]
fn a_client_goes_on_with_the_next_server() {
    run(async {
        let (town, puppet, stages) = town(2);
        let client = connect(&town, "a,b", first()).await.unwrap();
        let (read, commit_held) = (tokio::spawn(client.get(get("hold"))), client.commit(commit("hold")));
        settle().await;
        assert_eq!((puppet.held(), stages[0].server.stats().connections_open()), (2, 1));
        let began = Instant::now();
        town.kill("a");
        assert_eq!(code(commit_held.await), Code::CommitUnknownResult);
        assert!(client.commit(commit("k")).await.is_ok());
        assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
        settle().await;
        assert_eq!(puppet.asked(), 4, "the read came again, the commit did not");
        puppet.release();
        assert_eq!(read.await.unwrap().unwrap().unwrap(), "hold");
        assert_eq!(stages[1].server.stats().connections_open(), 1);
        // And back.
        town.open("a", &stages[0]);
        town.kill("b");
        settle().await;
        assert!(client.commit(commit("k")).await.is_ok());
        assert_eq!(puppet.asked(), 5);
        assert_eq!(town.tried_names(), ["a", "b", "a"]);
    });
}

/// A server stands still: connections stay open, new ones are taken, and nothing answers. Its client is with the next server within the bound, whatever it asked and
/// whether it began to ask before or after; a commit under way is unknown. One that is only slow to answer is not left.
#[test]
fn a_server_that_stands_still_is_left_within_a_bound() {
    run(async {
        let silence_max = first().silence_max;
        let (town, puppet, stages) = town(2);
        let frozen = Arc::new(Breaking::new(&stages[0].hall));
        town.set("a", Door::Server(Arc::clone(&frozen)));
        let client = connect(&town, "a,b", first()).await.unwrap();
        // Slow, ten times as long as silence may last: the pongs say that it lives.
        let slow = tokio::spawn(client.commit(commit("hold")));
        tokio::time::sleep(silence_max * 9).await;
        puppet.release();
        assert!(slow.await.unwrap().is_ok());
        assert_eq!(town.tried_names(), ["a"], "it was not left");
        // Quiet for any time before.
        tokio::time::sleep(Duration::from_secs(17)).await;
        let under_way = tokio::spawn(client.commit(commit("hold")));
        settle().await;
        frozen.freeze(true);
        let began = Instant::now();
        let (read, committed) = tokio::join!(client.get(get("k")), client.commit(commit("k")));
        let took = began.elapsed();
        assert!(read.is_ok(), "{read:?}");
        assert_eq!(code(committed), Code::CommitUnknownResult, "it may have arrived");
        assert!((silence_max / 2..=silence_max * 4 / 3).contains(&took), "{took:?}");
        assert_eq!(code(under_way.await.unwrap()), Code::CommitUnknownResult);
        assert!(client.commit(commit("k")).await.is_ok(), "at the next one");
        assert_eq!(town.tried_names(), ["b"]);
        // It goes on: nobody minds.
        frozen.freeze(false);
        assert!(client.commit(commit("k")).await.is_ok());
    });
}

/// A server that stops says goodbye: the client goes on with the next one, and nothing fails.
#[test]
fn a_goodbye_leads_to_the_next_server() {
    run(async {
        let (town, puppet, mut stages) = town(2);
        let client = connect(&town, "a,b", first()).await.unwrap();
        let held = client.commit(commit("hold"));
        settle().await;
        stages[0].stop();
        let crossing = client.commit(commit("k"));
        settle().await;
        assert!(client.commit(commit("l")).await.is_ok());
        assert_eq!(stages[1].server.stats().answered(crate::stats::Method::Commit).0, 1);
        puppet.release();
        assert!(held.await.is_ok() && crossing.await.is_ok());
        assert_eq!(puppet.asked(), 3);
        assert_eq!(town.tried_names(), ["a", "b"]);
    });
}

/// An address that swallows everything, and one that takes connections and says nothing, cost half a second each, at first and later.
#[test]
fn an_address_that_does_not_answer_holds_up_the_others_for_half_a_second() {
    run(async {
        let (town, puppet, stages) = town(3);
        town.set("a", Door::Swallows);
        town.set("b", Door::Silent);
        let began = Instant::now();
        let client = connect(&town, "a,b,c", first()).await.unwrap();
        assert!((1000..1010).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert_eq!(town.tried_names(), ["a", "b", "c"]);
        // Behind `c` comes `a`.
        town.open("b", &stages[1]);
        let began = Instant::now();
        town.kill("c");
        settle().await;
        assert!(client.commit(commit("k")).await.is_ok());
        assert!((500..510).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert_eq!((town.tried_names().as_slice(), puppet.asked()), (["a".to_owned(), "b".to_owned()].as_slice(), 1));
        // One alone has its whole time.
        let began = Instant::now();
        let error = connect(&town, "a", first()).await.unwrap_err();
        assert_eq!(error, Error::with(Code::ConnectionFailed, "cannot connect to a: no answer within 5s"));
        assert_eq!(began.elapsed().as_secs(), 5);
    });
}

/// Where nobody can be used, the error names each address with its reason, in the order in which they were given, wherever it began.
#[test]
fn an_error_names_every_address_and_its_reason() {
    run(async {
        let (town, _, _stages) = town(1);
        town.set("b", Door::Refuses);
        town.set("c", Door::Swallows);
        let words = "none of 3 addresses can be used: \
             a refuses the connection: the client wants the cluster 01010101010101010101010101010101, \
             this is 30313233343536373839616263646566; \
             cannot connect to b: connection refused; \
             cannot connect to c: no answer within 5s";
        for seed in 0..8 {
            let options = ClientOptions { seed: Some(seed), cluster_id: Some([1; 16]), ..ClientOptions::default() };
            let error = connect(&town, "a,b,c", options.clone()).await.unwrap_err();
            assert_eq!(error, Error::with(Code::ConnectionFailed, words), "b may come back");
            // What no time will mend is told by its code.
            assert_eq!(code(connect(&town, "a,a", options).await), Code::ClientInvalidOperation);
        }
    });
}

/// Without a server all addresses are tried at once; the wait between rounds grows to its bound, and questions fail with every reason.
#[test]
fn the_wait_grows_from_round_to_round() {
    run(async {
        let (town, _, stages) = town(3);
        let client = connect(&town, "a,b,c", first()).await.unwrap();
        town.tried();
        ["a", "b", "c"].iter().for_each(|address| town.kill(address));
        let error = client.get(get("k")).await.unwrap_err();
        assert_eq!(error.code(), Code::ConnectionFailed);
        let words = ["a", "b", "c"].map(|address| format!("cannot connect to {address}: connection refused"));
        assert!(words.iter().all(|words| error.to_string().contains(words)), "{error}");
        let tried = town.tried();
        let rounds: Vec<_> = tried.chunks(3).collect();
        for round in &rounds {
            let names: Vec<_> = round.iter().map(|(address, _)| address.as_str()).collect();
            assert_eq!(names, ["b", "c", "a"], "the one that was lost comes last");
            assert!(round.iter().all(|(_, when)| *when == round[0].1), "without a wait");
        }
        let waits: Vec<u128> = rounds.windows(2).map(|two| (two[1][0].1 - two[0][0].1).as_millis()).collect();
        for (number, wait) in waits.iter().enumerate() {
            let most = (10u128 << number.min(10)).min(1000);
            assert!((most / 2..=most + 1).contains(wait), "{waits:?}");
        }
        assert!(waits.len() >= 15, "{waits:?}");
        town.open("c", &stages[2]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(client.get(get("k")).await.is_ok());
    });
}

/// A server that takes connections and says nothing, as one that was stopped does, holds up questions for as long as an outage may, not for as long as an
/// attempt to connect.
#[test]
fn an_attempt_under_way_does_not_hold_up_questions() {
    run(async {
        let (town, _, stages) = town(1);
        let outage_max = Duration::from_millis(100);
        let client = connect(&town, "a", ClientOptions { outage_max, ..first() }).await.unwrap();
        town.kill("a");
        town.set("a", Door::Silent);
        let began = Instant::now();
        for _ in 0..2 {
            let error = client.get(get("k")).await.unwrap_err();
            assert_eq!(error.code(), Code::ConnectionFailed);
            assert!(error.to_string().contains("no connection to a for 100ms"), "{error}");
            assert!(began.elapsed() <= outage_max + Duration::from_millis(1), "{:?}", began.elapsed());
        }
        town.open("a", &stages[0]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(client.get(get("k")).await.is_ok());
    });
}

/// An address of another cluster is not used, however long the right ones are away, and an error says so.
#[test]
fn every_address_must_lead_to_one_cluster() {
    run(async {
        let (town, puppet, stages) = town(1);
        let elsewhere = Arc::new(Puppet { is_elsewhere: true, ..Puppet::default() });
        let other =
            Stage::with_endpoint(Arc::clone(&elsewhere), Arc::clone(&elsewhere) as _, ServeOptions::default(), 1 << 16);
        town.open("b", &other);
        let client = connect(&town, "a,b", first()).await.unwrap();
        town.kill("a");
        let error = client.get(get("k")).await.unwrap_err();
        assert_eq!(error.code(), Code::ConnectionFailed, "the right one may come back");
        assert!(error.to_string().contains("b refuses the connection: the client wants the cluster 3031"), "{error}");
        town.open("a", &stages[0]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(client.commit(commit("k")).await.is_ok());
        assert_eq!((puppet.asked(), elsewhere.asked()), (1, 0));
    });
}

#[test]
fn lists_of_addresses_are_checked_in_words() {
    assert_eq!(addresses("h:1").unwrap(), ["h:1"]);
    assert_eq!(addresses("h:1, [::1]:2,h:1 ,i:3").unwrap(), ["h:1", "[::1]:2", "i:3"]);
    for (list, words) in
        [("", "`` is not"), ("h:1,", "`` is not"), ("h:1,i", "`i` is not"), ("h:1;i:2", "`h:1;i:2` is not")]
    {
        let error = addresses(list).unwrap_err();
        assert_eq!(error.code(), Code::ConnectionStringInvalid, "{list}");
        assert!(error.to_string().contains(words), "{error}");
    }
}
