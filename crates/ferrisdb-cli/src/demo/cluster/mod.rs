//! `ferrisdb demo --nodes 3`: real processes that are one database, under the bank's load; with `--chaos` one of them is killed every few
//! seconds, every other time the one that leads, and started again.
//!
//! What is shown every second, and proven at the end:
//! - Every audit saw the same total: no transaction was seen in part, or lost, or done twice.
//! - Each transfer that was acknowledged happened, once. A client counts its transfers in the transfers themselves; so one of whose end nobody
//!   knew is not done again if it was done.
//! - In the end every process has the same rows.

mod members;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::time::Duration;

use ferrisdb::{Database, KeyRange, KeyValue, RangeOptions, Transaction};
use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::inspect::{Cell as Shown, Sink as _};
use futures_util::future::{try_join_all, try_join4};
use tokio::sync::Mutex;

use self::members::Member;
use super::{Report, SEED, bank, mismatch, thousands};
use crate::arguments::{DemoArguments, Output};
use crate::failure::Failure;
use crate::printer::Printer;
use crate::stopwatch::Stopwatch;

const CLIENTS: usize = 16;
/// What does not come in this time does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// A process is killed so long after the last one was whole again.
const PEACE: Duration = Duration::from_secs(2);
/// It is missed for so long.
const AWAY: Duration = Duration::from_secs(2);
/// Between two audits.
const AUDIT_PAUSE: Duration = Duration::from_millis(20);
/// Before a transfer that could not be retried is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// How soon everything ends when it is time.
const TICK: Duration = Duration::from_millis(50);

/// What has happened so far.
struct Tally {
    watch: Stopwatch,
    is_over: Cell<bool>,
    /// By client.
    acknowledged: Vec<Cell<u64>>,
    attempts: Cell<u64>,
    audits: Cell<u64>,
    kills: Cell<u64>,
    last_commit: Cell<Duration>,
    longest_pause: Cell<Duration>,
}

impl Tally {
    fn transfers(&self) -> u64 {
        self.acknowledged.iter().map(Cell::get).sum()
    }

    fn note_commit(&self, client: usize) {
        let now = self.watch.elapsed();
        self.acknowledged[client].set(self.acknowledged[client].get() + 1);
        self.longest_pause.set(self.longest_pause.get().max(now.saturating_sub(self.last_commit.get())));
        self.last_commit.set(now);
    }

    /// Waits, not longer than until all is over.
    async fn pause(&self, duration: Duration) {
        let watch = Stopwatch::start();
        while !self.is_over.get() && watch.elapsed() < duration {
            tokio::time::sleep(TICK.min(duration)).await;
        }
    }
}

/// Runs everything in `directory`.
pub(super) fn run(
    arguments: &DemoArguments,
    nodes: usize,
    directory: &Path,
    report: Report<'_>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start the runtime: {error}"), ""))?;
    runtime.block_on(show(arguments, nodes, directory, report))
}

async fn show(arguments: &DemoArguments, nodes: usize, directory: &Path, report: Report<'_>) -> Result<(), Failure> {
    let report = RefCell::new(report);
    let say = |line: String| report.borrow_mut().say(line);
    say(format!("FerrisDB {}: {nodes} processes in {}\n", env!("CARGO_PKG_VERSION"), directory.display()))?;
    let members = start(nodes, directory).await?;
    for member in &members {
        say(format!("  process {} at {}", member.number, member.address))?;
    }
    let addresses: Vec<&str> = members.iter().map(|member| member.address.as_str()).collect();
    say(format!("\nUse it while it lasts: ferrisdb shell --connect {}\n", addresses.join(",")))?;
    let mut databases = Vec::new();
    for first in 0..nodes {
        let mut addresses = addresses.clone();
        addresses.rotate_left(first);
        databases.push(Database::connect(&addresses.join(",")).await?);
    }
    databases[0].run(bank::open_accounts).await?;

    let tally = Tally {
        watch: Stopwatch::start(),
        is_over: Cell::new(false),
        acknowledged: vec![Cell::new(0); CLIENTS],
        attempts: Cell::new(0),
        audits: Cell::new(0),
        kills: Cell::new(0),
        last_commit: Cell::new(Duration::ZERO),
        longest_pause: Cell::new(Duration::ZERO),
    };
    let members: Vec<Mutex<Member>> = members.into_iter().map(Mutex::new).collect();
    let clients = try_join_all((0..CLIENTS).map(|number| client(&databases[number % nodes], &tally, number)));
    let load = async {
        clients.await?;
        Ok::<(), Failure>(())
    };
    let chaos = async { if arguments.chaos { chaos(&members, &tally, &say).await } else { Ok(()) } };
    let seconds = Duration::from_secs(arguments.seconds.into());
    try_join4(load, audit(&databases, &tally), chaos, watch(&members, &tally, seconds, &say)).await?;
    let mut members: Vec<Member> = members.into_iter().map(Mutex::into_inner).collect();
    let rows = prove(&mut members, &tally).await?;
    // They are killed: what was acknowledged is on their disks.
    drop(members);

    let done = report.into_inner();
    say_proof(&tally, rows, nodes, done)
}

/// Starts all processes and waits until they are a cluster of three voters that have everything.
async fn start(nodes: usize, directory: &Path) -> Result<Vec<Member>, Failure> {
    let mut members: Vec<Member> = Vec::new();
    let watch = Stopwatch::start();
    let is_patient = || watch.elapsed() < PATIENCE;
    for number in 1..=nodes {
        let mut member = Member::new(number, directory, members.first())?;
        member.start()?;
        member.until(|standing| standing.has_leader, is_patient).await?;
        members.push(member);
    }
    for member in &mut members {
        member.until(|standing| standing.is_complete && standing.voters == 3, is_patient).await?;
    }
    Ok(members)
}

/// Moves money until it is over.
async fn client(database: &Database, tally: &Tally, client: usize) -> Result<(), Failure> {
    let random = RefCell::new(SplitMix64::new(SEED + client as u64));
    let key = client_key(client);
    while !tally.is_over.get() {
        let transfer = bank::Transfer::random(&mut random.borrow_mut());
        let number = tally.acknowledged[client].get() + 1;
        let attempt = async |tx: Transaction| {
            tally.attempts.set(tally.attempts.get() + 1);
            if count(tx.get(&key).await?.as_deref()) == number {
                // It happened before, and the answer was lost.
                return Ok(());
            }
            tx.set(&key, number.to_le_bytes());
            transfer.make(&tx).await
        };
        match database.run(attempt).await {
            Ok(()) => tally.note_commit(client),
            Err(error) => {
                let now = tally.watch.elapsed();
                if now.saturating_sub(tally.last_commit.get()) > PATIENCE {
                    return Err(Failure::from(error).about(&format!("nothing was committed for {PATIENCE:?}")));
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    Ok(())
}

/// Adds up all accounts again and again, at one process after the other.
async fn audit(databases: &[Database], tally: &Tally) -> Result<(), Failure> {
    for database in databases.iter().cycle() {
        if tally.is_over.get() {
            break;
        }
        // One that cannot be reached is left for the next.
        if let Ok(sum) = database.run(bank::total).await {
            tally.audits.set(tally.audits.get() + 1);
            if sum != bank::TOTAL {
                return Err(mismatch(format_args!("an auditor saw {sum} in the bank, not {}", bank::TOTAL)));
            }
        }
        tokio::time::sleep(AUDIT_PAUSE).await;
    }
    Ok(())
}

/// Kills one process after the other; at the end all run.
async fn chaos(
    members: &[Mutex<Member>],
    tally: &Tally,
    say: &impl Fn(String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut random = SplitMix64::new(SEED);
    loop {
        tally.pause(PEACE).await;
        // Once at least, however short the time.
        if tally.is_over.get() && tally.kills.get() > 0 {
            return Ok(());
        }
        let leader = leader(members).await;
        let any = usize::try_from(random.below(members.len() as u64)).expect("it is below their number");
        let victim = leader.filter(|_| tally.kills.get().is_multiple_of(2)).unwrap_or(any);
        let role = if leader == Some(victim) { ", which leads" } else { "" };
        members[victim].lock().await.kill()?;
        tally.kills.set(tally.kills.get() + 1);
        say(format!("{} kill -9 process {}{role}", time(tally), victim + 1))?;
        tally.pause(AWAY).await;
        members[victim].lock().await.start()?;
        say(format!("{} process {} is started again", time(tally), victim + 1))?;
        whole_again(members, victim).await?;
        say(format!("{} process {} has what it missed", time(tally), victim + 1))?;
    }
}

/// Waits until a process has all that others had when it was asked for.
async fn whole_again(members: &[Mutex<Member>], number: usize) -> Result<(), Failure> {
    let mut newest = 0;
    for (other, member) in members.iter().enumerate() {
        if other != number {
            let standing = member.lock().await.standing().await;
            newest = newest.max(standing.map_or(0, |standing| standing.applied));
        }
    }
    let watch = Stopwatch::start();
    let is_so =
        |standing: &members::Standing| standing.is_complete && standing.has_leader && standing.applied >= newest;
    members[number].lock().await.until(is_so, || watch.elapsed() < PATIENCE).await
}

/// Shows every second how things stand, until it is over.
async fn watch(
    members: &[Mutex<Member>],
    tally: &Tally,
    seconds: Duration,
    say: &impl Fn(String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut before = 0;
    let interrupted = async {
        // One who interrupts wants to see the end. Without a handler there is none but the usual.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let shown = async {
        for second in 1.. {
            while tally.watch.elapsed() < Duration::from_secs(second) {
                tokio::time::sleep(TICK / 5).await;
            }
            let transfers = tally.transfers();
            let leader = match leader(members).await {
                Some(leader) => format!("process {} leads", leader + 1),
                None => "nobody leads".to_owned(),
            };
            say(format!(
                "{} {leader:<16} {:>7} transfers/s  {:>9} in all  the total was {} in {} audits",
                time(tally),
                thousands(transfers - before),
                thousands(transfers),
                thousands(bank::TOTAL),
                thousands(tally.audits.get()),
            ))?;
            before = transfers;
            let quiet = tally.watch.elapsed().saturating_sub(tally.last_commit.get());
            if quiet > PATIENCE {
                return Err(Failure::failed(
                    format!("nothing was committed for {} s", quiet.as_secs()),
                    "see the logs in the directory that is left",
                ));
            }
            if tally.watch.elapsed() >= seconds {
                break;
            }
        }
        Ok(())
    };
    let (shown, interrupted) = (std::pin::pin!(shown), std::pin::pin!(interrupted));
    let ended = futures_util::future::select(shown, interrupted).await;
    tally.is_over.set(true);
    match ended {
        futures_util::future::Either::Left((shown, _)) => shown,
        futures_util::future::Either::Right(_) => say("interrupted: here is the proof so far".to_owned()),
    }
}

/// The index of the process that leads, as one of them says.
async fn leader(members: &[Mutex<Member>]) -> Option<usize> {
    for (index, member) in members.iter().enumerate() {
        // One that somebody waits for is not asked: it is on its way back.
        let Ok(mut member) = member.try_lock() else { continue };
        if member.standing().await.is_some_and(|standing| standing.leads) {
            return Some(index);
        }
    }
    None
}

/// Everything is as it was acknowledged, on each process. Returns how many rows there are.
async fn prove(members: &mut [Member], tally: &Tally) -> Result<usize, Failure> {
    let mut first: Option<Vec<KeyValue>> = None;
    for member in members {
        let database = member.database().await?;
        let everything = async |tx: Transaction| {
            let all = RangeOptions::from(KeyRange::new(&b""[..], &b"\xff"[..]));
            tx.get_ranges(all).collect().await
        };
        let rows = database.run(everything).await?;
        let value = |key: &[u8]| rows.iter().find(|row| row.key == key).map(|row| &row.value[..]);
        let sum = bank::sum(&rows);
        if sum != bank::TOTAL {
            return Err(mismatch(format_args!("process {} has {sum} in the bank, not {}", member.number, bank::TOTAL)));
        }
        let transfers = count(value(bank::COUNT_KEY));
        if transfers != tally.transfers() {
            return Err(mismatch(format_args!(
                "process {} counts {transfers} transfers, and {} were acknowledged",
                member.number,
                tally.transfers()
            )));
        }
        for (client, acknowledged) in tally.acknowledged.iter().enumerate() {
            let counted = count(value(&client_key(client)));
            if counted != acknowledged.get() {
                return Err(mismatch(format_args!(
                    "process {} counts {counted} transfers of client {client}, which was told of {}",
                    member.number,
                    acknowledged.get()
                )));
            }
        }
        match &first {
            Some(first) if *first != rows => {
                return Err(mismatch(format_args!("process {} has other rows than process 1", member.number)));
            }
            Some(_) => {}
            None => first = Some(rows),
        }
    }
    Ok(first.map_or(0, |rows| rows.len()))
}

fn say_proof(tally: &Tally, rows: usize, nodes: usize, mut report: Report<'_>) -> Result<(), Failure> {
    let (transfers, kills) = (tally.transfers(), tally.kills.get());
    let retried = tally.attempts.get().saturating_sub(transfers);
    if report.output == Output::Json {
        let mut printer = Printer::new(Output::Json, report.out);
        printer.field("ferrisdb", env!("CARGO_PKG_VERSION").into())?;
        printer.field("nothing_acknowledged_was_lost", Shown::Flag(true))?;
        printer.field("processes", (nodes as u64).into())?;
        printer.field("transfers", transfers.into())?;
        printer.field("retried", retried.into())?;
        printer.field("audits", tally.audits.get().into())?;
        printer.field("kills", kills.into())?;
        let pause = u64::try_from(tally.longest_pause.get().as_millis()).unwrap_or(u64::MAX);
        printer.field("longest_pause_milliseconds", pause.into())?;
        return Ok(printer.finish(None)?);
    }
    report.say(format_args!(
        "\nNothing acknowledged was lost: {} transfers by {CLIENTS} clients, each there once ({} attempts were retried).\n\
         {} audits always saw {}. All {nodes} processes have the same {rows} rows.",
        thousands(transfers),
        thousands(retried),
        thousands(tally.audits.get()),
        thousands(bank::TOTAL),
    ))?;
    let pause = tally.longest_pause.get().as_secs_f64();
    if kills > 0 {
        report.say(format_args!(
            "{kills} times a process was killed; the longest time without a commit was {pause:.2} s."
        ))?;
    }
    Ok(())
}

fn time(tally: &Tally) -> String {
    format!("{:>5.1} s ", tally.watch.elapsed().as_secs_f64())
}

/// Where a client counts its transfers.
fn client_key(client: usize) -> Vec<u8> {
    format!("client/{client:02}").into_bytes()
}

/// A count's value, little-endian as atomic additions are. One that is not there is zero.
fn count(value: Option<&[u8]>) -> u64 {
    value.and_then(|value| value.try_into().ok()).map_or(0, u64::from_le_bytes)
}
