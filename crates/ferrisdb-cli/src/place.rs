//! Where a command's database is: at a server, or in a directory.

use std::path::PathBuf;

use clap::Args;
use ferrisdb::{Database, Error};

use crate::failure::Failure;

#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArguments {
    /// The server
    #[arg(long, value_name = "HOST:PORT", env = "FERRISDB_CONNECT", conflicts_with = "data")]
    pub(crate) connect: Option<String>,

    /// The directory of a database that no server has open
    #[arg(long, value_name = "DIR", env = "FERRISDB_DATA")]
    pub(crate) data: Option<PathBuf>,
}

impl PlaceArguments {
    /// The database there; `None` if the arguments name no place. To be awaited on the runtime that the connection shall run on.
    pub(crate) async fn open(&self) -> Result<Option<Database>, Failure> {
        match (&self.connect, &self.data) {
            (Some(address), _) => {
                let database = Database::connect(address).await.map_err(|error| {
                    let remedy = "is a server there? Start one with: ferrisdb serve --data DIR";
                    Failure::failed(format!("cannot connect to {address}: {error}"), remedy)
                })?;
                Ok(Some(database))
            }
            (None, Some(directory)) => {
                let database = Database::open(directory).map_err(|error| {
                    let remedy = "if a server has it open, use the server: --connect HOST:PORT";
                    Failure::failed(format!("cannot open {}: {error}", directory.display()), remedy)
                })?;
                Ok(Some(database))
            }
            (None, None) => Ok(None),
        }
    }
}

/// An error of the database while `what` was done.
pub(crate) fn failed(what: &str, error: &Error) -> Failure {
    Failure::failed(format!("cannot {what}: {error}"), "")
}
