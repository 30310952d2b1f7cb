//! The command `ferrisdb`.
//!
//! Parses the arguments (`arguments`), runs one command, and turns what came of it into an exit code (`failure`).
//! Results go to standard output as a table or as JSON (`printer`), errors to standard error.
//!
//! ```text
//! serve      a database and its port               connect    where a client command finds its database
//! shell      commands typed or piped               text       keys and values as text
//! oneshot    get, set, clear, range                transfer   import, export
//! cluster, status, explain, demo, bench, sim, inspect, manual
//! ```

#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod cluster;
mod connect;
mod dataset;
mod demo;
mod explain;
mod failure;
mod inspect;
mod lock;
mod manual;
mod oneshot;
mod printer;
mod serve;
mod shell;
mod sim;
mod status;
mod stopwatch;
mod text;
mod transfer;

use std::env;
use std::io::{self, BufWriter};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use arguments::{Arguments, Command, Output};
use failure::Failure;

// Why, and why this one: decision 0028.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut command = Arguments::command();
    let matches = command.try_get_matches_from_mut(env::args_os());
    let matches = matches.unwrap_or_else(|error| arguments::name_variable(error, &command, env::args_os()).exit());
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(arguments.command, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output(&matches)),
    }
}

/// How the command prints its results, and so its error.
fn output(matches: &ArgMatches) -> Output {
    let mut matches = matches;
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    // Not every command has these.
    let is_json = matches!(matches.try_get_one("json"), Ok(Some(true)));
    match matches.try_get_one("output") {
        _ if is_json => Output::Json,
        Ok(Some(output)) => *output,
        Ok(None) | Err(_) => Output::Table,
    }
}

/// Runs one command to its end.
fn run(command: Command, matches: &ArgMatches) -> Result<(), Failure> {
    match command {
        Command::Completions(arguments) => manual::completions(&arguments, &mut io::stdout().lock()),
        Command::Man(arguments) => manual::man(&arguments, &mut io::stdout().lock()),
        Command::Demo(arguments) => demo::run(&arguments, &mut io::stdout().lock()),
        Command::DemoChild(arguments) => demo::child::run(&arguments, &mut io::stdout().lock()),
        Command::Serve(arguments) => {
            let matches = matches.subcommand_matches("serve").unwrap_or(matches);
            serve::run(arguments, matches, &mut io::stdout().lock())
        }
        Command::Shell(arguments) => shell::run(&arguments),
        Command::Get(arguments) => oneshot::get(&arguments, io::stdout().lock()),
        Command::Set(arguments) => oneshot::set(&arguments, io::stdout().lock()),
        Command::Clear(arguments) => oneshot::clear(&arguments, io::stdout().lock()),
        Command::Range(arguments) => oneshot::range(&arguments, BufWriter::new(io::stdout().lock())),
        Command::Import(arguments) => transfer::import::import(&arguments, io::stdout().lock()),
        Command::Export(arguments) => transfer::export::export(&arguments, io::stdout().lock()),
        Command::Cluster(arguments) => cluster::cluster(&arguments, io::stdout().lock()),
        Command::Status(arguments) => status::status(&arguments, BufWriter::new(io::stdout().lock())),
        Command::Explain(arguments) => explain::explain(&arguments, BufWriter::new(io::stdout().lock())),
        Command::Bench(arguments) => bench::run(&arguments, &mut io::stdout().lock()),
        Command::Sim(arguments) => sim::run(&arguments, &mut io::stdout()),
        Command::SimSeed(arguments) => sim::child(&arguments, &mut io::stdout().lock()),
        Command::Inspect(arguments) => inspect::inspect(&arguments, BufWriter::new(io::stdout().lock())),
        Command::Verify(arguments) => inspect::verify(&arguments, BufWriter::new(io::stdout().lock())),
    }
}
