//! `ferrisdb cluster`: who belongs to a cluster, and who leaves it.
//!
//! An order goes to the leader, which refuses what would lose data or a majority; then the cluster does it by itself, and the command looks on until it is
//! done. Looking on ends with Ctrl-C, and what was ordered goes on all the same.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use ferrisdb::cluster::{Order, Ordered, line_options, order};
use ferrisdb::{Code, Error};
use ferrisdb_rpc::Client;
use ferrisdb_storage::Env;
use ferrisdb_storage::inspect::{Cell, Sink as _};
use serde_json::Value;

use crate::arguments::{ConnectArguments, OutputArguments, example};
use crate::connect::{self, Connected, Missing};
use crate::failure::Failure;
use crate::lock::{self, LockArguments, UnlockArguments};
use crate::printer::Printer;
use crate::status::{self, text};

/// How often is looked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the processes: where they are, how they are, what they do
    #[command(after_help = example(
        "ferrisdb cluster members --connect localhost:4700\n  ferrisdb cluster members --connect localhost:4700 --output json"
    ))]
    Members(MembersArguments),

    /// Drain a process, so that it may be stopped for good
    ///
    /// It gives up its vote to another process, the lead if it has it, and its data once others have it. Then it may be stopped, and is
    /// forgotten a minute later. Refused if no other process could hold its data, or if none could take its vote: then start another one first. A process that
    /// is dead already may be excluded too: others take its place at once, not only after a minute.
    #[command(after_help = example(
        "ferrisdb cluster exclude 3 --dry-run --connect localhost:4700\n  ferrisdb cluster exclude 10.0.0.3:4700 --connect localhost:4700"
    ))]
    Exclude(ProcessArguments),

    /// Take an excluded process back
    ///
    /// It is given data again, and may get a vote.
    #[command(after_help = example("ferrisdb cluster include 3 --connect localhost:4700"))]
    Include(ProcessArguments),

    /// Change what the cluster shall be like: replication=N, the replicas of each shard, 1 to 5
    #[command(after_help = example("ferrisdb cluster configure replication=3 --connect localhost:4700"))]
    Configure(ConfigureArguments),

    /// Have another process lead
    ///
    /// The process must have a vote in the log. Without one named, any other voter that is up leads. Transactions under way may have to be tried again, which clients do.
    #[command(after_help = example(
        "ferrisdb cluster transfer --connect localhost:4700\n  ferrisdb cluster transfer 2 --connect localhost:4700"
    ))]
    Transfer(TransferArguments),

    /// Have everybody keep still: only who knows the lock reads and writes
    ///
    /// For a migration or a restore. Programs wait, and go on after the unlock; `get`, `set`, `clear` and `range` with --system get through. Prints the id under which the database
    /// is locked, which `unlock` asks for. For a database in one process, too.
    #[command(after_help = example("ferrisdb cluster lock --connect localhost:4700"))]
    Lock(LockArguments),

    /// Let everybody go on
    #[command(after_help = example("ferrisdb cluster unlock 00112233445566778899aabbccddeeff --connect localhost:4700"))]
    Unlock(UnlockArguments),
}

#[derive(Debug, Args)]
pub(crate) struct MembersArguments {
    /// Wait until so many processes are up and have all that they are to have, and three of them, or the only one, vote
    #[arg(long, value_name = "N")]
    pub(crate) until_complete: Option<usize>,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// What all orders have.
#[derive(Debug, Args)]
pub(crate) struct OrderArguments {
    /// Say what would be done, or why it would be refused, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Do not wait until it is done
    #[arg(long)]
    pub(crate) no_wait: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ProcessArguments {
    /// The process: its number, or its address
    pub(crate) process: String,

    #[command(flatten)]
    pub(crate) order: OrderArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigureArguments {
    /// What, and how
    #[arg(value_name = "replication=N", value_parser = parse_replication)]
    pub(crate) setting: u64,

    #[command(flatten)]
    pub(crate) order: OrderArguments,
}

#[derive(Debug, Args)]
pub(crate) struct TransferArguments {
    /// The process that is to lead: its number, or its address [default: any other voter]
    pub(crate) process: Option<String>,

    #[command(flatten)]
    pub(crate) order: OrderArguments,
}

fn parse_replication(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("replication=").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "write replication=N, with a number from 1 to 5".to_owned())
}

/// Runs one of the commands.
pub(crate) fn cluster(arguments: &ClusterArguments, out: impl Write) -> Result<(), Failure> {
    match &arguments.command {
        ClusterCommand::Members(arguments) => {
            if arguments.until_complete.is_some() {
                wait_for_server(&arguments.connect);
            }
            let document = connect::with(&arguments.connect, Missing::Refuse, |connected| {
                if let Some(processes) = arguments.until_complete {
                    wait(connected, Awaited::Whole(processes))?;
                }
                status::ask(connected)
            })?;
            members(&document, Printer::new(arguments.output.output, out))
        }
        ClusterCommand::Exclude(arguments) => give(&arguments.order, out, |document| {
            let process = find(document, &arguments.process)?;
            Ok((Order::Exclude(process), Awaited::Drained(process)))
        }),
        ClusterCommand::Include(arguments) => give(&arguments.order, out, |document| {
            let process = find(document, &arguments.process)?;
            Ok((Order::Include(process), Awaited::Complete(process)))
        }),
        ClusterCommand::Configure(arguments) => give(&arguments.order, out, |_| {
            Ok((Order::Replication(arguments.setting), Awaited::Replication(arguments.setting)))
        }),
        ClusterCommand::Transfer(arguments) => give(&arguments.order, out, |document| {
            let to = arguments.process.as_ref().map(|process| find(document, process)).transpose()?;
            let from = document["cluster"]["leader"].as_u64();
            Ok((Order::Transfer(to), Awaited::Leader { from, to }))
        }),
        ClusterCommand::Lock(arguments) => lock::lock(arguments, out),
        ClusterCommand::Unlock(arguments) => lock::unlock(arguments, out),
    }
}

/// What is to be so when an order is carried out.
#[derive(Debug, Clone, Copy)]
enum Awaited {
    Whole(usize),
    Drained(u64),
    Complete(u64),
    Replication(u64),
    Leader { from: Option<u64>, to: Option<u64> },
}

impl Awaited {
    /// Whether it is so, and how far it is.
    fn look(self, document: &Value) -> (bool, String) {
        let cluster = &document["cluster"];
        let of = |process: u64| &cluster["processes"][process.to_string()];
        match self {
            Awaited::Whole(wanted) => {
                let processes = cluster["processes"].as_object().map_or(0, |processes| {
                    let is_there = |process: &&Value| {
                        process["state"] == "up" && process["serves"] == true && process["is_complete"] == true
                    };
                    processes.values().filter(is_there).count()
                });
                let voters: Vec<String> = cluster["voters"].as_array().into_iter().flatten().map(text).collect();
                let all_vote = voters.iter().all(|voter| cluster["processes"][voter]["state"] == "up");
                let is_so = processes >= wanted && voters.len() >= if wanted < 3 { 1 } else { 3 } && all_vote;
                (is_so, format!("{processes} of {wanted} processes are complete; voters: {}", voters.join(", ")))
            }
            Awaited::Drained(process) => {
                let known = of(process);
                let roles = known["roles"].as_array().map_or(0, Vec::len);
                let is_drained = known.is_null() || (known["excluded"] == true && roles == 0);
                (is_drained, format!("process {process} still has these roles: {}", roles_of(known)))
            }
            Awaited::Complete(process) => {
                let known = of(process);
                let is_so = known["excluded"] == false && known["is_complete"] == true && known["serves"] == true;
                (is_so, format!("process {process} is given its data: {}", copied(known)))
            }
            Awaited::Replication(copies) => {
                let shards = &cluster["shards"];
                let stays = |process: &&Value| process["excluded"] == false && process["state"] == "up";
                let there = cluster["processes"].as_object().map_or(0, |all| all.values().filter(stays).count() as u64);
                let least = shards["replicas_least"].as_u64().unwrap_or_default();
                let is_so = shards["replicas"].as_u64() == Some(copies)
                    && shards["moving"].as_u64() == Some(0)
                    && least >= copies.min(there);
                let moving = text(&shards["moving"]);
                (is_so, format!("{moving} shards are on the move; each has {least} replicas at least"))
            }
            Awaited::Leader { from, to } => {
                let leader = cluster["leader"].as_u64();
                let is_so = leader.is_some() && to.map_or(leader != from, |to| leader == Some(to));
                (is_so, format!("process {} leads", text(&cluster["leader"])))
            }
        }
    }

    fn done(self) -> String {
        match self {
            Awaited::Whole(processes) => format!("{processes} processes are complete"),
            Awaited::Drained(process) => format!(
                "process {process} holds nothing any more: stop it for good, or take it back with `ferrisdb cluster include {process}`"
            ),
            Awaited::Complete(process) => format!("process {process} is complete"),
            Awaited::Replication(copies) => format!("replication is {copies}"),
            Awaited::Leader { .. } => "another process leads".to_owned(),
        }
    }
}

/// Gives an order, and waits until it is carried out.
fn give(
    arguments: &OrderArguments,
    out: impl Write,
    decide: impl FnOnce(&Value) -> Result<(Order, Awaited), Failure>,
) -> Result<(), Failure> {
    let servers = connect::servers(&arguments.connect)?;
    connect::with(&arguments.connect, Missing::Refuse, |connected| {
        let document = status::ask(connected)?;
        if document["cluster"]["process"].is_null() {
            return Err(Failure::failed(
                format!("{servers} is a database in one process, not a cluster"),
                "it becomes a cluster when another process joins it (serve --join), or is one from the start with serve --cluster",
            ));
        }
        let (wanted, awaited) = decide(&document)?;
        let ordered = connected.run(async {
            let client = Client::connect(&servers, line_options(None)).await?;
            order(&client, wanted, arguments.dry_run).await.map_err(refused)
        })?;
        // Whoever excludes means to stop the process when this ends, also if it is not the first to say so.
        let is_awaited = ordered.changes || matches!(wanted, Order::Exclude(_));
        let is_done = is_awaited && !arguments.dry_run && !arguments.no_wait;
        if is_done {
            wait(connected, awaited)?;
        }
        tell(&ordered, arguments, is_done.then(|| awaited.done()), out)
    })
}

/// The reason, without the number of an error that is none.
fn refused(error: Error) -> Failure {
    match error.code() {
        Code::ClientInvalidOperation => {
            let reason = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            Failure::failed(format!("refused: {reason}"), "")
        }
        _ => Failure::from(error),
    }
}

/// Tries until it is connected: whoever waits for a cluster may begin before its first process has. What is wrong is told, for it may stay so.
fn wait_for_server(arguments: &ConnectArguments) {
    let env = Env::real();
    let mut last = String::new();
    while let Err(failure) = connect::with(arguments, Missing::Refuse, |_| Ok(())) {
        // The command line does not become another one.
        if !matches!(failure, Failure::Failed { .. }) {
            return;
        }
        let said = format!("{failure}\ntrying again");
        if said != last {
            eprintln!("{said}");
            last = said;
        }
        env.spawner.sleep(LOOK_EVERY);
    }
}

/// Looks on until it is done. A question that fails is asked again: whoever was asked may be the one that goes.
fn wait(connected: &Connected, awaited: Awaited) -> Result<(), Failure> {
    let mut last = String::new();
    loop {
        if let Ok(document) = status::ask(connected) {
            let (is_done, progress) = awaited.look(&document);
            if is_done {
                return Ok(());
            }
            if progress != last {
                eprintln!("{progress}");
                last = progress;
            }
        }
        connected.wait(async { tokio::time::sleep(LOOK_EVERY).await });
    }
}

/// `done`: how it is now, if that was waited for.
fn tell(ordered: &Ordered, arguments: &OrderArguments, done: Option<String>, out: impl Write) -> Result<(), Failure> {
    let result = match (ordered.changes, arguments.dry_run, done.is_some()) {
        (false, ..) => "nothing to do",
        (true, true, _) => "would be done",
        (true, false, true) => "done",
        (true, false, false) => "ordered",
    };
    let mut printer = Printer::new(arguments.output.output, out);
    printer.field("result", result.into())?;
    printer.field("what", done.as_ref().unwrap_or(&ordered.says).as_str().into())?;
    Ok(printer.finish(None)?)
}

/// The process with that number or address.
fn find(document: &Value, named: &str) -> Result<u64, Failure> {
    let processes = document["cluster"]["processes"].as_object().cloned().unwrap_or_default();
    // A number that nobody has is for the leader to refuse: it says who there is.
    if let Ok(number) = named.parse() {
        return Ok(number);
    }
    let with_address: Vec<u64> = processes
        .iter()
        .filter(|(_, process)| process["address"] == named)
        .filter_map(|(number, _)| number.parse().ok())
        .collect();
    match with_address[..] {
        [process] => Ok(process),
        [] => {
            let known: Vec<String> = processes
                .iter()
                .map(|(number, process)| format!("{number} at {}", text(&process["address"])))
                .collect();
            Err(Failure::failed(
                format!("no process of the cluster is at {named}"),
                format!("there are: {}", known.join(", ")),
            ))
        }
        _ => Err(Failure::failed(
            format!("{} processes are or were at {named}: {with_address:?}", with_address.len()),
            "name it by its number, see `ferrisdb cluster members`",
        )),
    }
}

fn members(document: &Value, mut printer: Printer<impl Write>) -> Result<(), Failure> {
    let told = tell_members(document, &mut printer);
    printer.finish(None)?;
    Ok(told?)
}

/// Who leads, who votes, and a row for each process.
pub(crate) fn tell_members(document: &Value, printer: &mut Printer<impl Write>) -> ferrisdb_storage::Result<()> {
    let cluster = &document["cluster"];
    // Processes of a cluster have numbers from 1 on, and say of each how much it has.
    let is_alone = cluster["process"].is_null() && cluster["processes"]["0"].is_object();
    if is_alone {
        let told =
            "none: one process has the whole database; `ferrisdb serve --cluster` makes it the first of a cluster";
        printer.field("cluster", told.into())?;
    }
    printer.field("leader", text(&cluster["leader"]).as_str().into())?;
    let voters: Vec<String> = cluster["voters"].as_array().into_iter().flatten().map(text).collect();
    printer.field("voters", voters.join(", ").as_str().into())?;
    let shards = &cluster["shards"];
    printer.field("replication", text(&shards["replicas"]).as_str().into())?;
    let told = match shards["count"].as_u64() {
        Some(count) => {
            let (moving, least) = (text(&shards["moving"]), text(&shards["replicas_least"]));
            format!("{count}, {moving} on the move, each with {least} replicas at least")
        }
        None => "-".to_owned(),
    };
    printer.field("shards", told.as_str().into())?;
    printer.field("controller", text(&cluster["controller"]).as_str().into())?;
    printer
        .table("processes", &["process", "address", "zone", "state", "roles", "data", "lag_bytes", "lag_entries"])?;
    for (number, process) in cluster["processes"].as_object().into_iter().flatten() {
        let state = if process["excluded"] == true {
            format!("{} excluded", text(&process["state"]))
        } else {
            text(&process["state"])
        };
        let data = if is_alone || process["is_complete"] == true { "complete".to_owned() } else { copied(process) };
        let cells = [
            number.clone(),
            text(&process["address"]),
            text(&process["zone"]),
            state,
            roles_of(process),
            data,
            text(&process["lag_bytes"]),
            text(&process["lag_entries"]),
        ];
        printer.row(&cells.each_ref().map(|cell| Cell::Text(cell)))?;
    }
    Ok(())
}

fn roles_of(process: &Value) -> String {
    let roles: Vec<String> = process["roles"].as_array().into_iter().flatten().map(text).collect();
    if roles.is_empty() { "none".to_owned() } else { roles.join(" ") }
}

/// How far a process is with copying.
fn copied(process: &Value) -> String {
    let filling = &process["filling"];
    match (filling["bytes"].as_u64(), filling["of_about_bytes"].as_u64()) {
        (Some(bytes), Some(of)) => format!("{} rows, {bytes} of about {of} bytes", text(&filling["rows"])),
        _ => "none yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Output;
    use expect_test::expect;
    use serde_json::json;

    fn document() -> Value {
        json!({"cluster": {
            "leader": 1, "voters": [1, 2, 3], "replication": 3, "controller": null,
            "shards": {"count": 12, "moving": 0, "replicas": 3, "replicas_least": 3},
            "processes": {
                "1": {"address": "h:1", "zone": "a", "state": "up", "roles": ["storage", "log", "coordinator"], "is_complete": true, "excluded": false,
                      "serves": true, "lag_bytes": 0, "lag_entries": 0},
                "2": {"address": "h:2", "zone": "", "state": "gone", "roles": ["log"], "is_complete": false, "excluded": false},
                "3": {"address": "h:3", "zone": "", "state": "up", "roles": [], "is_complete": false, "excluded": true},
                "4": {"address": "h:4", "zone": "", "state": "up", "roles": ["storage"], "is_complete": false, "excluded": false,
                      "filling": {"rows": 5, "bytes": 100, "of_about_bytes": 1000}},
            },
        }})
    }

    #[test]
    fn members_are_a_table() {
        let mut out = Vec::new();
        members(&document(), Printer::new(Output::Table, &mut out)).unwrap();
        expect![[r#"
            leader                    1
            voters                    1, 2, 3
            replication               3
            shards                    12, 0 on the move, each with 3 replicas at least
            controller                -

            processes
              process  address  zone  state        roles                    data                             lag bytes  lag entries
              1        h:1      a     up           storage log coordinator  complete                         0          0
              2        h:2      -     gone         log                      none yet                         -          -
              3        h:3      -     up excluded  none                     none yet                         -          -
              4        h:4      -     up           storage                  5 rows, 100 of about 1000 bytes  -          -
        "#]].assert_eq(&String::from_utf8(out).unwrap());
    }

    /// A database that one process has is no cluster, and lacks nothing.
    #[test]
    fn one_process_has_all() {
        let document =
            json!({"cluster": {"processes": {"0": {"address": "h:1", "roles": ["coordinator", "log", "storage"]}}}});
        let mut out = Vec::new();
        members(&document, Printer::new(Output::Table, &mut out)).unwrap();
        let told = String::from_utf8(out).unwrap();
        assert!(
            told.contains("none: one process") && told.contains("complete") && !told.contains("none yet"),
            "{told}"
        );
    }

    /// What a command waits for, and what it says meanwhile.
    #[test]
    fn progress_is_told() {
        let document = document();
        let look = |awaited: Awaited| awaited.look(&document);
        assert!(!look(Awaited::Whole(1)).0, "a voter is gone");
        assert!(look(Awaited::Drained(3)).0 && look(Awaited::Drained(9)).0);
        assert_eq!(look(Awaited::Drained(2)), (false, "process 2 still has these roles: log".to_owned()));
        assert!(look(Awaited::Complete(1)).0);
        let copying = "process 4 is given its data: 5 rows, 100 of about 1000 bytes".to_owned();
        assert_eq!(look(Awaited::Complete(4)), (false, copying));
        assert!(look(Awaited::Replication(3)).0 && !look(Awaited::Replication(2)).0);
        assert!(look(Awaited::Leader { from: Some(2), to: None }).0);
        assert!(!look(Awaited::Leader { from: Some(1), to: None }).0);
        assert!(!look(Awaited::Leader { from: Some(1), to: Some(2) }).0);
    }

    #[test]
    fn a_process_has_a_number_or_an_address() {
        let document = document();
        assert_eq!([find(&document, "7").unwrap(), find(&document, "h:2").unwrap()], [7, 2]);
        let failure = find(&document, "elsewhere:1").unwrap_err().to_string();
        assert!(failure.contains("2 at h:2"), "{failure}");
        assert_eq!(parse_replication("replication=3"), Ok(3));
        assert!(parse_replication("3").is_err() && parse_replication("replication=x").is_err());
    }
}
