//! The command `ferrisdb`.
//!
//! Parses the arguments (`arguments`), runs one command, and turns what came of it into an exit code (`failure`).
//! Results go to standard output as a table or as JSON (`printer`), errors to standard error.

mod arguments;
mod bench;
mod dataset;
mod demo;
mod failure;
mod inspect;
mod manual;
mod place;
mod printer;

use std::io::{self, BufWriter};
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs one command to its end.
fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Completions(arguments) => manual::completions(&arguments, &mut io::stdout().lock()),
        Command::Man(arguments) => manual::man(&arguments, &mut io::stdout().lock()),
        Command::Demo(arguments) => demo::run(&arguments, &mut io::stdout().lock()),
        Command::DemoChild(arguments) => demo::child::run(&arguments, &mut io::stdout().lock()),
        Command::Bench(arguments) => bench::run(&arguments, &mut io::stdout().lock()),
        Command::Inspect(arguments) => inspect::inspect(&arguments, BufWriter::new(io::stdout().lock())),
        Command::Verify(arguments) => inspect::verify(&arguments, BufWriter::new(io::stdout().lock())),
    }
}
