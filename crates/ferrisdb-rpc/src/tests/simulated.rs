//! The transport in a simulated network (`turmoil`): real client and server, partitions, crashes, and the same run for the same seed.

use super::*;
use crate::client::Client;
use ferrisdb_core::runtime::BoxFuture;

struct SimulatedConnector;

impl Connector for SimulatedConnector {
    fn connect(&self, address: &str) -> BoxFuture<io::Result<Box<dyn Stream>>> {
        let address = address.to_owned();
        Box::pin(async move { Ok(Box::new(turmoil::net::TcpStream::connect(address).await?) as Box<dyn Stream>) })
    }
}

struct SimulatedListener(turmoil::net::TcpListener);

impl Listener for SimulatedListener {
    type Stream = turmoil::net::TcpStream;

    async fn accept(&self) -> io::Result<(turmoil::net::TcpStream, SocketAddr)> {
        self.0.accept().await
    }
}

/// What happens to a server, and after how many milliseconds.
type Fault = (u64, &'static str, &'static str);

/// One server that crashes, comes back, cannot be reached, and starts anew.
const ALONE: &[Fault] = &[
    (3_000, "crash", "server"),
    (5_000, "bounce", "server"),
    (9_000, "cut", "server"),
    (14_000, "mend", "server"),
    (20_000, "bounce", "server"),
];

/// Three of which two are gone at a time, each time others: wherever the client is, it must leave.
const AMONG_THREE: &[Fault] = &[
    (3_000, "crash", "one"),
    (3_000, "crash", "two"),
    (5_000, "bounce", "one"),
    (5_000, "bounce", "two"),
    (9_000, "cut", "three"),
    (9_000, "crash", "one"),
    (14_000, "mend", "three"),
    (14_000, "bounce", "one"),
    (20_000, "cut", "two"),
    (20_000, "cut", "three"),
    (25_000, "mend", "two"),
    (25_000, "mend", "three"),
];

/// Reads and commits for half a minute while servers crash and the network is cut: what each got and when.
fn story(seed: u64, faults: &[Fault]) -> Vec<String> {
    let mut names: Vec<&str> = faults.iter().map(|(_, _, server)| *server).collect();
    names.sort_unstable();
    names.dedup();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(120))
        .tick_duration(Duration::from_millis(1))
        .tcp_capacity(1 << 16)
        .build();
    for name in &names {
        sim.host(*name, || async {
            let listener = SimulatedListener(turmoil::net::TcpListener::bind("0.0.0.0:4500").await?);
            let puppet: Arc<dyn Endpoint> = Arc::new(Puppet::default());
            crate::serve(listener, puppet, ServeOptions::default(), std::future::pending()).await;
            Ok(())
        });
    }
    let addresses = names.iter().map(|name| format!("{name}:4500")).collect::<Vec<_>>().join(",");
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    sim.client("client", async move {
        // A simulated network does not send again what a partition swallowed: the pings find that out.
        let options =
            ClientOptions { seed: Some(seed), keep_alive: Duration::from_secs(1), ..ClientOptions::default() };
        let client = Client::connect_with(Arc::new(SimulatedConnector), &addresses, options).await?;
        for number in 0..300 {
            let result = if number % 3 == 0 {
                client.commit(commit("k")).await.map(|_| "committed".to_owned())
            } else {
                client.get(get(format!("{number}"))).await.map(|value| format!("{value:?}"))
            };
            let line = format!("{:?} {}", turmoil::elapsed(), result.unwrap_or_else(|error| error.to_string()));
            tell.lock().unwrap().push(line);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    });
    let mut faults = faults.iter().peekable();
    loop {
        while let Some((_, fault, server)) = faults.next_if(|(at, ..)| sim.elapsed() >= Duration::from_millis(*at)) {
            match *fault {
                "crash" => sim.crash(*server),
                "bounce" => sim.bounce(*server),
                "cut" => sim.partition("client", *server),
                _ => sim.repair("client", *server),
            }
        }
        if sim.step().unwrap() {
            break;
        }
    }
    let told = told.lock().unwrap();
    told.clone()
}

/// Prints a story for the tests below: a process tells one, because tokio numbers the tasks of a process, and the numbers decide the order in
/// which a crash drops them.
#[test]
#[ignore = "a part of the tests that compare stories"]
#[expect(clippy::print_stdout, reason = "another process reads it")]
fn one_story() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let seed = variable("FERRISDB_RPC_STORY_SEED").parse().unwrap();
    let faults = if variable("FERRISDB_RPC_STORY_SERVERS") == "1" { ALONE } else { AMONG_THREE };
    story(seed, faults).iter().for_each(|line| println!("\nstory {line}"));
}

fn told_by_another_process(seed: u64, servers: usize) -> Vec<String> {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["tests::simulated::one_story", "--exact", "--ignored", "--nocapture"])
        .env("FERRISDB_RPC_STORY_SEED", seed.to_string())
        .env("FERRISDB_RPC_STORY_SERVERS", servers.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("story ")).map(str::to_owned).collect()
}

/// No read fails, a commit fails only with an unknown result, and the same seed tells the same story.
fn check_stories(servers: usize) -> Vec<String> {
    let once = told_by_another_process(3, servers);
    assert_eq!(once.len(), 300);
    let is_fine = |line: &&String| line.contains("committed") || line.contains("Some(");
    let failed: Vec<_> = once.iter().filter(|line| !is_fine(line)).collect();
    assert!(failed.len() <= 4, "{failed:#?}");
    assert!(failed.iter().all(|line| line.contains("commit_unknown_result")), "{failed:#?}");
    let again = told_by_another_process(3, servers);
    let differences: Vec<_> = once.iter().zip(&again).filter(|(one, other)| one != other).take(3).collect();
    assert!(once.len() == again.len() && differences.is_empty(), "{differences:#?}");
    assert_ne!(once, told_by_another_process(4, servers));
    once
}

#[test]
fn a_simulated_network_tells_the_same_story_twice() {
    check_stories(1);
}

/// With three servers, of which one always can be reached, nothing takes longer than it takes to notice that another cannot be (pings: a second, and one more
/// for the answer), and half a second for each that swallows what is sent to it.
#[test]
fn of_three_servers_one_is_enough() {
    let story = check_stories(3);
    let when = |line: &String| -> f64 {
        let time = line.split(' ').next().unwrap();
        let (number, unit) = time.split_at(time.find(|letter: char| letter.is_alphabetic()).unwrap());
        number.parse::<f64>().unwrap() * if unit == "s" { 1.0 } else { 0.001 }
    };
    let waits: Vec<f64> = story.windows(2).map(|two| when(&two[1]) - when(&two[0])).collect();
    let longest = waits.iter().copied().fold(0.0, f64::max);
    assert!(longest < 4.5, "{longest} s: {story:#?}");
    assert!(longest > 1.0, "the client was never with a server that was cut off: choose other faults");
}
