//! Where a client command finds its database: a server (`--connect`) or a directory (`--data`), never both.
//!
//! An option on the command line beats the environment; of one place both kinds are an error. The work runs on a tokio runtime with one thread beside the caller's, so
//! that a connection stays alive while the caller waits for a person at a terminal.

use std::env;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrisdb::{Code, Database, DatabaseOption};
use tokio::runtime::{Builder, Runtime};

use crate::arguments::ConnectArguments;
use crate::failure::{Failure, remedy};

/// How long to find out whether a database that has not answered is locked.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// A server's address, or several with commas between them, when nothing else is said.
pub(crate) const CONNECT_VARIABLE: &str = "FERRISDB_CONNECT";
/// A database's directory when nothing else is said.
pub(crate) const DATA_VARIABLE: &str = "FERRISDB_DATA";

/// What a command does about a directory that has no database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Founds one, and says so: the command writes.
    Found,
    /// Fails: who reads has mistyped.
    Refuse,
}

/// A place where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Server(String),
    Directory(PathBuf),
}

/// An open database and what runs its futures.
pub(crate) struct Connected {
    /// The database.
    pub(crate) database: Database,
    /// For errors: where it is.
    pub(crate) place: String,
    runtime: Runtime,
    timeout: Duration,
}

impl Connected {
    /// Opens, or connects to, what the arguments or the environment name.
    pub(crate) fn open(arguments: &ConnectArguments, missing: Missing) -> Result<Connected, Failure> {
        let Some(place) = named(arguments)? else {
            return Err(Failure::usage(
                "which database?",
                format!(
                    "give --connect HOST:PORT for a server or --data DIR for a directory, or set {CONNECT_VARIABLE} or {DATA_VARIABLE}"
                ),
            ));
        };
        let (timeout, runtime) = (arguments.timeout, runtime()?);
        let (database, place) = runtime.block_on(open(place, timeout, missing))?;
        Connected::with(database, place, runtime, timeout)
    }

    /// A database that is open already.
    pub(crate) fn embedded(database: Database, place: String, timeout: Duration) -> Result<Connected, Failure> {
        Connected::with(database, place, runtime()?, timeout)
    }

    fn with(database: Database, place: String, runtime: Runtime, timeout: Duration) -> Result<Connected, Failure> {
        limit(&database, timeout)?;
        Ok(Connected { database, place, runtime, timeout })
    }

    /// Waits for a future for as long as it takes.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Waits for a future, not longer than the timeout.
    pub(crate) fn run<T>(&self, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.runtime.block_on(async {
            match tokio::time::timeout(self.timeout, future).await {
                // The transaction has the same time, and may be the first to see that it is over.
                Err(_) | Ok(Err(Failure::TimedOut { .. })) => Err(self.overdue().await),
                Ok(answer) => answer,
            }
        })
    }

    /// Why nothing has come within the timeout.
    async fn overdue(&self) -> Failure {
        let waited = seconds(self.timeout);
        if let Ok(Ok(Some(id))) = tokio::time::timeout(LOCK_PATIENCE, self.database.locked_by()).await {
            let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            let what = format!("{} is locked, under the id {id}, and was not unlocked within {waited}", self.place);
            return Failure::failed(what, remedy(Code::DatabaseLocked)).coded(Code::DatabaseLocked);
        }
        silent(&self.place, self.timeout)
    }

    /// Ends the work: of an embedded database everything is made durable in tables and the directory is free again.
    pub(crate) fn close(&self) -> Result<(), Failure> {
        Ok(self.runtime.block_on(self.database.clone().close())?)
    }
}

/// Each transaction has this long, its retries with it.
fn limit(database: &Database, timeout: Duration) -> Result<(), Failure> {
    let milliseconds = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    Ok(database.set_option(&DatabaseOption::TransactionTimeout(milliseconds))?)
}

/// That nothing has come within the timeout.
pub(crate) fn silent(place: &str, timeout: Duration) -> Failure {
    Failure::failed(
        format!("{place} has not answered within {}", seconds(timeout)),
        "check that it runs, and try again, or wait longer with --timeout; what was asked may have happened",
    )
    .coded(Code::TransactionTimedOut)
}

/// Opens, or connects to, what the arguments or the environment name, if they name anything; with the place for errors. To be awaited on the runtime that
/// a connection shall run on. No transaction takes longer than the timeout.
pub(crate) async fn open_if_named(
    arguments: &ConnectArguments,
    missing: Missing,
) -> Result<Option<(Database, String)>, Failure> {
    match named(arguments)? {
        Some(place) => {
            let (database, place) = open(place, arguments.timeout, missing).await?;
            limit(&database, arguments.timeout)?;
            Ok(Some((database, place)))
        }
        None => Ok(None),
    }
}

/// The servers that the arguments, or else the environment, name.
pub(crate) fn servers(arguments: &ConnectArguments) -> Result<String, Failure> {
    match named(arguments)? {
        Some(Place::Server(addresses)) => Ok(addresses),
        _ => Err(Failure::usage(
            "which cluster?",
            format!("give --connect HOST:PORT, the address of one of its processes, or set {CONNECT_VARIABLE}"),
        )),
    }
}

/// What the arguments name, or else the environment.
fn named(arguments: &ConnectArguments) -> Result<Option<Place>, Failure> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let connect = variable(CONNECT_VARIABLE).map(|value| value.to_string_lossy().into_owned());
    let data = variable(DATA_VARIABLE).map(PathBuf::from);
    place(arguments.connect.clone(), arguments.data.clone(), connect, data)
}

async fn open(place: Place, timeout: Duration, missing: Missing) -> Result<(Database, String), Failure> {
    match place {
        Place::Server(address) => {
            let failed = |what: String| {
                let remedy = "check the address, and that `ferrisdb serve` runs there";
                // What the connection says begins likewise.
                let what = what.replace(&format!("cannot connect to {address}: "), "");
                Failure::failed(format!("cannot connect to {address}: {what}"), remedy)
            };
            let connected = tokio::time::timeout(timeout, Database::connect(&address)).await;
            let connected = connected.map_err(|_| failed(format!("no answer within {}", seconds(timeout))))?;
            Ok((connected.map_err(|error| failed(error.to_string()).coded(error.code()))?, address))
        }
        Place::Directory(directory) => Ok((open_directory(&directory, missing)?, directory.display().to_string())),
    }
}

/// Opens what the arguments name, does the work, closes it.
pub(crate) fn with<T>(
    arguments: &ConnectArguments,
    missing: Missing,
    work: impl FnOnce(&Connected) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let connected = Connected::open(arguments, missing)?;
    let done = work(&connected);
    let closed = connected.close();
    let done = done?;
    closed.map(|()| done)
}

fn runtime() -> Result<Runtime, Failure> {
    let built = Builder::new_multi_thread().worker_threads(1).thread_name("ferrisdb-client").enable_all().build();
    built.map_err(|error| Failure::failed(format!("cannot start a thread: {error}"), "check the limits of processes"))
}

fn open_directory(directory: &Path, missing: Missing) -> Result<Database, Failure> {
    let is_missing = !has_database(directory);
    if missing == Missing::Refuse && is_missing && !is_file(directory) {
        return Err(Failure::failed(
            format!("there is no database in {}", directory.display()),
            "check --data; `ferrisdb set`, `shell` and `serve` make a new database there",
        ));
    }
    let database = Database::open(directory).map_err(|error| cannot_open(directory, error))?;
    if is_missing {
        // Whoever has mistyped the name of another one wants to know.
        eprintln!("a new database in {}", directory.display());
    }
    Ok(database)
}

/// False if a directory is not there, or has no database. What cannot be looked into may have one: opening it says why not.
pub(crate) fn has_database(directory: &Path) -> bool {
    let lacks = |name| matches!(directory.join(name).try_exists(), Ok(false));
    // A process of a cluster has the other file, and opening says what to do with it.
    !(lacks("cluster") && lacks("process"))
}

/// Why a directory could not be opened as a database, and what to do about it.
pub(crate) fn cannot_open(directory: &Path, error: ferrisdb::Error) -> Failure {
    let what = format!("cannot open {}: {error}", directory.display());
    match error.code() {
        _ if is_file(directory) => Failure::failed(
            format!("cannot open {}: it is a file, and a database is a directory", directory.display()),
            "give a directory, or a name that nothing has yet",
        ),
        // The detail says who has it.
        Code::FileNotWritable => {
            Failure::failed(what, "or, if that is a server, connect to it with --connect HOST:PORT").coded(error.code())
        }
        Code::IoError => Failure::failed(
            what,
            "give a directory that you may read and write, or a name in one, on a disk that is sound and has space",
        ),
        _ => Failure::from(error).about(&format!("cannot open {}", directory.display())),
    }
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_dir())
}

/// The one place that is meant: an option, or else what the environment says.
fn place(
    connect: Option<String>,
    data: Option<PathBuf>,
    connect_variable: Option<String>,
    data_variable: Option<PathBuf>,
) -> Result<Option<Place>, Failure> {
    match (connect, data, connect_variable, data_variable) {
        (Some(address), None, ..) => server(address, "--connect").map(Some),
        (None, None, Some(address), None) => server(address, CONNECT_VARIABLE).map(Some),
        (None, Some(directory), ..) | (None, None, None, Some(directory)) => Ok(Some(Place::Directory(directory))),
        (None, None, Some(address), Some(directory)) => Err(Failure::usage(
            format!(
                "both {CONNECT_VARIABLE} ({address}) and {DATA_VARIABLE} ({}) are set, and they are two databases",
                directory.display()
            ),
            "unset one of them, or give --connect or --data",
        )),
        (None, None, None, None) => Ok(None),
        (Some(address), Some(directory), ..) => Err(Failure::usage(
            format!("--connect {address} and --data {} are two databases", directory.display()),
            "give one of them",
        )),
    }
}

/// One server or several, if they are addresses. `named` is what names them.
fn server(addresses: String, named: &str) -> Result<Place, Failure> {
    if addresses.trim().is_empty() {
        let remedy = "give HOST:PORT, such as localhost:4700, or several of one database with commas between them";
        return Err(Failure::usage(format!("{named} is empty, and names no server"), remedy));
    }
    match ferrisdb_rpc::client::addresses(&addresses) {
        Ok(_) => Ok(Place::Server(addresses)),
        Err(error) => {
            let detail = error.detail().unwrap_or_default();
            let (what, remedy) = detail.split_once("; ").unwrap_or((detail, "write HOST:PORT"));
            Err(Failure::usage(format!("{named}: {what}"), remedy))
        }
    }
}

/// A time as people write it.
pub(crate) fn seconds(time: Duration) -> String {
    if time.subsec_nanos() == 0 { format!("{} s", time.as_secs()) } else { format!("{} ms", time.as_millis()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An option beats the environment; two places are an error of the command line.
    #[test]
    fn one_place_is_meant() {
        let (a, d) = (|| Some("h:1".to_owned()), || Some(PathBuf::from("db")));
        let server = Ok(Some(Place::Server("h:1".into())));
        let directory = Ok(Some(Place::Directory("db".into())));
        let place = |c, d, cv, dv| place(c, d, cv, dv).map_err(|failure| failure.to_string());
        assert_eq!(place(a(), None, None, None), server);
        assert_eq!(place(a(), None, None, d()), server);
        assert_eq!(place(None, d(), a(), None), directory);
        assert_eq!(place(None, None, a(), None), server);
        assert_eq!(place(None, None, None, d()), directory);
        assert!(place(None, None, a(), d()).unwrap_err().contains("unset one"));
        assert_eq!(place(None, None, None, None), Ok(None));
        assert!(place(a(), d(), None, None).unwrap_err().contains("two databases"));
        assert!(place(None, None, Some("h".to_owned()), None).unwrap_err().contains("FERRISDB_CONNECT: `h` is not"));
    }

    /// What cannot be opened is told with the path and what is the matter with it, and not as a disk that fails.
    #[test]
    fn a_path_that_is_no_database_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let [missing, file] = ["missing", "file"].map(|name| directory.path().join(name));
        drop(tempfile::NamedTempFile::new().unwrap().persist(&file).unwrap());
        let told = |path: &Path, missing| {
            let told = open_directory(path, missing).expect_err("it is no database").to_string();
            told.replace(directory.path().to_str().unwrap(), "")
        };
        assert!(told(&missing, Missing::Refuse).starts_with("error: there is no database in /missing\n"));
        for way in [Missing::Refuse, Missing::Found] {
            assert!(told(&file, way).starts_with("error: cannot open /file: it is a file, and a database"));
        }
        let below = told(&file.join("below"), Missing::Found);
        assert!(below.contains("Not a directory") && below.contains("you may read and write"), "{below}");

        let _open = Database::open(&missing).unwrap();
        let held = told(&missing, Missing::Found);
        assert!(held.contains("in use by process") && held.contains("--connect"), "{held}");
    }

    #[test]
    fn times_are_written_without_zeros() {
        assert_eq!([10_000, 1500].map(|ms| seconds(Duration::from_millis(ms))), ["10 s", "1500 ms"]);
    }
}
