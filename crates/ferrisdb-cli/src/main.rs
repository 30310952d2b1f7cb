//! The command `ferrisdb`.
//!
//! Parses the arguments ([`arguments`]), runs one command, and turns what came of it into an exit code ([`failure`]).
//! Results go to standard output as a table or as JSON ([`printer`]), errors to standard error.

mod arguments;
#[cfg(any(test, feature = "engine"))]
mod dataset;
#[cfg(feature = "engine")]
mod demo;
mod failure;
#[cfg(feature = "engine")]
mod inspect;
mod manual;
#[cfg(any(test, feature = "engine"))]
mod printer;

use std::io;
#[cfg(feature = "engine")]
use std::io::BufWriter;
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
        #[cfg(feature = "engine")]
        Command::Demo(arguments) => demo::run(&arguments, &mut io::stdout().lock()),
        #[cfg(feature = "engine")]
        Command::DemoChild(arguments) => demo::child::run(&arguments, &mut io::stdout().lock()),
        #[cfg(feature = "engine")]
        Command::Inspect(arguments) => inspect::inspect(&arguments, BufWriter::new(io::stdout().lock())),
        #[cfg(feature = "engine")]
        Command::Verify(arguments) => inspect::verify(&arguments, BufWriter::new(io::stdout().lock())),
        #[cfg(not(feature = "engine"))]
        Command::Demo(_) | Command::DemoChild(_) | Command::Inspect(_) | Command::Verify(_) => Err(Failure::failed(
            "this build of ferrisdb has no storage engine",
            "build it with `cargo build --release --features engine`",
        )),
    }
}
