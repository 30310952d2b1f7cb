//! What the command line can say about itself: shell completions and manual pages.

use std::io::Write;

use clap::CommandFactory;

use crate::arguments::{Arguments, CompletionsArguments, ManArguments};
use crate::failure::Failure;

/// Prints the completion script of a shell.
pub(crate) fn completions(arguments: &CompletionsArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "ferrisdb", &mut script);
    Ok(out.write_all(&script)?)
}

/// Prints the manual page, or writes one page for each command into a directory.
pub(crate) fn man(arguments: &ManArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(directory) = &arguments.directory else {
        return Ok(clap_mangen::Man::new(Arguments::command()).render(out)?);
    };
    clap_mangen::generate_to(Arguments::command(), directory).map_err(|error| {
        Failure::failed(
            format!("cannot write manual pages into {}: {error}", directory.display()),
            "give an existing directory that you may write to",
        )
    })
}
