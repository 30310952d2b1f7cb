//! The command line: every command, its options, its help.
//!
//! The help texts are a part of the interface; `tests/help.rs` keeps a copy of each.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::bench::BenchArguments;
use crate::cluster::ClusterArguments;
use crate::sim::{SimArguments, SimSeedArguments};
use crate::text::Typed;
use crate::transfer::export::ExportArguments;
use crate::transfer::import::ImportArguments;

/// Exit codes, at the end of each help text.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the message says why
  2  the command line is wrong
  3  corruption was found: what is on disk is not what was written
  4  get: the key has no value
  5  status: the database answers, and is not available";

/// FerrisDB: an ordered, transactional key-value database.
#[derive(Debug, Parser)]
#[command(name = "ferrisdb", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a database at work: load, read, scan, bank transfers, delete, kill -9, recover
    ///
    /// Opens a database in a temporary directory, loads the names of 34,888 Unicode characters with an index in
    /// transactions, reads, scans, moves money between accounts from many clients at once and proves the total, clears a range under
    /// a snapshot, starts a child process that commits transactions, kills it in the middle of one, reopens and checks that
    /// nothing acknowledged was lost. Takes a few seconds. At a terminal a shell on the database follows; then the directory is removed.
    ///
    /// With `--nodes` it starts a cluster of processes on this machine instead, moves the money there for a while, shows the total every
    /// second, and ends with the proof; `--chaos` kills one of them every few seconds, and starts it again.
    #[command(after_help = example(
        "ferrisdb demo\n  ferrisdb demo --directory /mnt/disk --keep && ferrisdb shell --data /mnt/disk/ferrisdb-demo-*\n  \
         ferrisdb demo --nodes 3 --chaos --seconds 60"
    ))]
    Demo(DemoArguments),

    /// The writing process of `demo`, which `demo` kills
    #[command(name = "__child", hide = true)]
    DemoChild(DemoChildArguments),

    /// Serve a database to clients
    ///
    /// Opens the database in a directory, founding it if there is none, and serves it until SIGTERM, SIGINT or SIGHUP: then no
    /// more connections are accepted, what is under way is finished, and the database is closed. After SIGKILL, or a power failure, nothing
    /// that was acknowledged is lost. Each option may also be given in the environment or in a TOML file (`--config`), under its name with `-` as
    /// `_`; the command line comes before the environment, and that before the file. Logs go to standard error.
    #[command(after_help = example(
        "ferrisdb serve --data /var/lib/ferrisdb\n  ferrisdb serve --config /etc/ferrisdb.toml --log-format json"
    ))]
    Serve(ServeArguments),

    /// Work with a database interactively, or run commands from a pipe
    ///
    /// `help` in the shell lists its commands. When standard input is no terminal, commands are read from it, and the first one that fails
    /// ends the shell with exit code 1.
    #[command(after_help = example(
        "ferrisdb shell --connect localhost:4700\n  echo 'getrange user/ user0' | ferrisdb shell --data db"
    ))]
    Shell(ShellArguments),

    /// Print the value of a key
    #[command(after_help = example_with_text("ferrisdb get user/42 --data db"))]
    Get(GetArguments),

    /// Give a key a value
    #[command(after_help = example_with_text(
        "ferrisdb set user/42 Ada --data db\n  ferrisdb set picture/1 --stdin --connect localhost:4700 < picture.png"
    ))]
    Set(SetArguments),

    /// Take the value of a key, or of all keys in a range
    #[command(after_help = example_with_text(
        "ferrisdb clear user/42 --data db\n  ferrisdb clear --prefix user/ --data db\n  \
         ferrisdb clear --range user/ user0 --data db"
    ))]
    Clear(ClearArguments),

    /// Print the keys and values in a range
    ///
    /// The range has BEGIN in it and END not. All rows are of one moment, however long the printing takes.
    #[command(after_help = example_with_text(
        "ferrisdb range user/ user0 --limit 10 --data db\n  ferrisdb range --prefix \"\" --reverse --connect localhost:4700"
    ))]
    Range(RangeArguments),

    /// Write the rows of a file, CSV or NDJSON, as keys and values
    ///
    /// Rows are written in transactions of many rows, some at once. How far the import is, is kept in the database, in the same transactions: an
    /// import that was interrupted, even by kill -9, goes on when the same command is given again, and each row is written exactly once. A file that was
    /// changed meanwhile, in the part that was read, is refused. A bad row ends the import with its line and column, unless --skip-bad allows it.
    ///
    /// Without --key the file has the form of `export`: the columns, or members, `key` and `value`, with \xNN for odd bytes.
    #[command(after_help = example_with_text(
        "ferrisdb import people.csv --key 'people/{id}' --data db\n  \
         ferrisdb import people.ndjson --key-tuple 'people,{id:int}' --value '{name}' --connect localhost:4700\n  \
         ferrisdb export --data db | ferrisdb import - --format ndjson --data copy"
    ))]
    Import(ImportArguments),

    /// Write keys and values, as they are at one moment, into a file
    ///
    /// NDJSON has {"key":…,"value":…} on each line, CSV two columns; odd bytes are written as \xNN, so that `import` restores every byte. The file
    /// appears under its name when it is whole; until then it is called FILE.part, and --resume goes on with it.
    #[command(after_help = example_with_text(
        "ferrisdb export backup.ndjson --data db\n  ferrisdb export --prefix user/ --format csv --connect localhost:4700 > users.csv"
    ))]
    Export(ExportArguments),

    /// Show how the database is: what it did, what waits, what limits it
    #[command(after_help = example("ferrisdb status --connect localhost:4700\n  ferrisdb status --data db --json"))]
    Status(StatusArguments),

    /// Show the processes of a cluster, and change who belongs to it
    ///
    /// Each change can be tried with --dry-run, is refused with the reason if it would lose data or a majority, and is waited for, with progress on standard error.
    #[command(after_help = example(
        "ferrisdb cluster members --connect localhost:4700\n  ferrisdb cluster exclude 3 --connect localhost:4700"
    ))]
    Cluster(ClusterArguments),

    /// Explain an error's number or name, or list all of them
    #[command(after_help = example("ferrisdb explain 1020\n  ferrisdb explain commit_unknown_result"))]
    Explain(ExplainArguments),
    /// Measure a database: transactions a second, latencies, conflicts
    ///
    /// Loads rows, runs transactions of the chosen kind, checks every value that it reads and, where there is something to
    /// prove, proves it at the end. Without --connect or --data it makes a database in a temporary directory.
    #[command(after_help = example(
        "ferrisdb bench read-only\n  \
         ferrisdb bench ycsb-a --connect 127.0.0.1:4700 --clients 64 --seconds 30\n  \
         ferrisdb bench bank --data db --rate 2000 --output json"
    ))]
    Bench(BenchArguments),

    /// Prove the database: whole processes in a simulated world, where things go wrong
    ///
    /// Runs the real server and clients over a simulated network, disk and clock, kills them, cuts them off, fails their disks and their
    /// power, and checks that nothing acknowledged is lost, nothing happens twice, and every read is right. One number, the seed, decides everything: the same
    /// seed is the same run. Each runs in a process of its own for about a second; a seed that fails prints the command that runs it again. The last
    /// line is `N passed, M failed`.
    #[command(after_help = example(
        "ferrisdb sim --seeds 20\n  ferrisdb sim --minutes 60 --seed 1000000\n  ferrisdb sim --seed 17 --workload ring --trace"
    ))]
    Sim(SimArguments),

    /// The process of one seed of `sim`
    #[command(name = "__sim-seed", hide = true)]
    SimSeed(SimSeedArguments),

    /// Print what is inside a file of a database
    #[command(after_help = example(
        "ferrisdb inspect sst db/storage/000123.sst\n  ferrisdb inspect wal db/log/000007.wal --output json"
    ))]
    Inspect(InspectArguments),

    /// Check every checksum, the order of keys, the levels, the manifest against the directory, and the log
    ///
    /// Reads everything in tables, and every entry of the log, and compares where the log ends with what the tables have. Changes nothing. The database
    /// must not be open elsewhere.
    #[command(after_help = example("ferrisdb verify db && echo sound"))]
    Verify(VerifyArguments),

    /// Print a completion script for a shell
    #[command(after_help = example("ferrisdb completions bash > ~/.local/share/bash-completion/completions/ferrisdb"))]
    Completions(CompletionsArguments),

    /// Print the manual page, or write a page for each command
    #[command(after_help = example("ferrisdb man | man -l -\n  ferrisdb man --directory ~/.local/share/man/man1"))]
    Man(ManArguments),
}

/// Examples and exit codes.
pub(crate) fn example(lines: &str) -> String {
    format!("Example:\n  {lines}\n\n{EXIT_CODES}")
}

/// Examples, how keys are typed, and exit codes.
fn example_with_text(lines: &str) -> String {
    format!(
        "Example:\n  {lines}\n\nKeys and values:\n  \\xNN is the byte with that hexadecimal number, \\\\ a backslash; results are printed so, too.\n  \
         After -- nothing is an option any more: ferrisdb set -- -key -value\n\n{EXIT_CODES}"
    )
}

/// Takes a key or a value from the command line.
pub(crate) fn typed() -> impl TypedValueParser<Value = Typed> {
    OsStringValueParser::new().try_map(|text: OsString| Typed::parse(text))
}

/// `10s`, `500ms`, `2m`, or a number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write a time as 500ms, 10s or 2m".to_owned())?;
    let milliseconds = match unit.trim() {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => return Err(format!("`{unit}` is no unit of time: write ms, s or m")),
    };
    match milliseconds {
        Some(milliseconds @ 1..=86_400_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err("a time is from 1ms to 1440m".to_owned()),
    }
}

/// How long to wait between two of something: a time, or `0` for not at all.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs: one JSON object
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct OutputArguments {
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// Which database a client command works with.
#[derive(Debug, Args)]
pub(crate) struct ConnectArguments {
    /// A server, or several of one database with commas between [env: FERRISDB_CONNECT]
    #[arg(long, value_name = "HOST:PORT,...", conflicts_with = "data")]
    pub(crate) connect: Option<String>,

    /// The database's directory, opened in this process; it must not be open elsewhere [env: FERRISDB_DATA]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// How long to wait for an answer: 500ms, 10s, 2m; a number alone is seconds
    #[arg(
        long,
        value_name = "TIME",
        env = "FERRISDB_TIMEOUT",
        hide_env_values = true,
        default_value = "30s",
        value_parser = parse_duration
    )]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// The key
    #[arg(value_parser = typed())]
    pub(crate) key: Typed,

    /// Print the value's bytes as they are, and nothing else
    #[arg(long, conflicts_with = "output")]
    pub(crate) raw: bool,

    /// Allow system keys, which begin with \xff
    #[arg(long)]
    pub(crate) system: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The key
    #[arg(value_parser = typed())]
    pub(crate) key: Typed,

    /// The value
    #[arg(value_parser = typed(), allow_negative_numbers = true)]
    pub(crate) value: Option<Typed>,

    /// Read the value from standard input, as it is
    #[arg(long, conflicts_with = "value")]
    pub(crate) stdin: bool,

    /// Allow system keys, which begin with \xff
    #[arg(long)]
    pub(crate) system: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ClearArguments {
    /// The key
    #[arg(value_parser = typed(), required_unless_present_any = ["range", "prefix", "all"])]
    pub(crate) key: Option<Typed>,

    /// All keys from BEGIN up to END, END not included
    #[arg(long, num_args = 2, value_names = ["BEGIN", "END"], value_parser = typed(), conflicts_with_all = ["key", "prefix"])]
    pub(crate) range: Option<Vec<Typed>>,

    /// All keys that begin so
    #[arg(long, value_name = "PREFIX", value_parser = typed(), conflicts_with = "key")]
    pub(crate) prefix: Option<Typed>,

    /// The whole database; an empty prefix, or a range of all keys, is refused
    #[arg(long, conflicts_with_all = ["key", "range", "prefix"])]
    pub(crate) all: bool,

    /// Allow system keys, which begin with \xff
    #[arg(long)]
    pub(crate) system: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Which keys.
#[derive(Debug, Args)]
pub(crate) struct RangeOfKeys {
    /// The first key
    #[arg(value_parser = typed())]
    pub(crate) begin: Option<Typed>,

    /// The first key that is not in the range any more
    #[arg(value_parser = typed())]
    pub(crate) end: Option<Typed>,

    /// All keys that begin so; "" for all
    #[arg(long, value_name = "PREFIX", value_parser = typed(), conflicts_with_all = ["begin", "end"])]
    pub(crate) prefix: Option<Typed>,
}

#[derive(Debug, Args)]
pub(crate) struct RangeArguments {
    #[command(flatten)]
    pub(crate) keys: RangeOfKeys,

    /// Rows at most; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) limit: u32,

    /// From the end, descending
    #[arg(long)]
    pub(crate) reverse: bool,

    /// Allow system keys, which begin with \xff
    #[arg(long)]
    pub(crate) system: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Print the whole document: the same as --output json
    #[arg(long, conflicts_with = "output")]
    pub(crate) json: bool,

    /// Again and again until Ctrl-C: a terminal is redrawn, otherwise tables follow each other, and JSON documents one on a line [default: 1]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = parse_duration)]
    pub(crate) watch: Option<Duration>,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ShellArguments {
    #[command(flatten)]
    pub(crate) connect: ConnectArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// The error's number or name
    pub(crate) code: Option<String>,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Each setting is optional here: what is not given is looked for in the file, and then has a default (`serve::config`).
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// End at once when standard input ends: for processes that must not outlive the one that started them
    #[arg(long, hide = true)]
    pub(crate) tethered: bool,

    /// A TOML file with settings
    #[arg(long, value_name = "FILE", env = "FERRISDB_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    /// The database's directory
    #[arg(long, value_name = "DIR", env = "FERRISDB_DATA", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,

    /// Where to listen; port 0 takes any [default: 127.0.0.1:4700]
    #[arg(long, value_name = "HOST:PORT", env = "FERRISDB_LISTEN", hide_env_values = true)]
    pub(crate) listen: Option<String>,

    /// Be a process of a cluster from the start: of a new one, or of one that goes on with the database in the directory. Without it, it becomes one when another process joins it.
    /// Once it is, it stays one
    #[arg(
        long,
        env = "FERRISDB_CLUSTER",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) cluster: Option<bool>,

    /// Join the cluster that one of these processes belongs to, if the directory is new
    #[arg(long, value_name = "HOST:PORT,...", env = "FERRISDB_JOIN", hide_env_values = true)]
    pub(crate) join: Option<String>,

    /// Where the other processes of the cluster reach this one [default: where it listens]
    #[arg(long, value_name = "HOST:PORT", env = "FERRISDB_ADVERTISE", hide_env_values = true)]
    pub(crate) advertise: Option<String>,

    /// The zone that this process fails with, such as a machine or a rack [default: none]
    #[arg(long, value_name = "NAME", env = "FERRISDB_ZONE", hide_env_values = true)]
    pub(crate) zone: Option<String>,

    /// Listen on an address that other machines reach, although anybody there can then read and write everything
    #[arg(
        long,
        env = "FERRISDB_INSECURE",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) insecure: Option<bool>,

    /// End with exit code 1 when the database cannot commit any more, instead of answering reads until it is stopped
    #[arg(
        long,
        env = "FERRISDB_EXIT_ON_FAILURE",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) exit_on_failure: Option<bool>,

    /// What to log: error, warn, info, debug or trace, or by part: info,ferrisdb_rpc=debug [default: info, of openraft warn]
    #[arg(long, value_name = "LEVEL", env = "FERRISDB_LOG_LEVEL", hide_env_values = true)]
    pub(crate) log_level: Option<String>,

    /// How to log [default: pretty]
    #[arg(long, value_name = "FORMAT", value_enum, env = "FERRISDB_LOG_FORMAT", hide_env_values = true)]
    pub(crate) log_format: Option<LogFormat>,

    /// Connections at once [default: 16384]
    #[arg(long, value_name = "N", env = "FERRISDB_CONNECTIONS_MAX", hide_env_values = true)]
    pub(crate) connections_max: Option<usize>,

    /// Connections at once from one address [default: 12288]
    #[arg(long, value_name = "N", env = "FERRISDB_CONNECTIONS_PER_ADDRESS_MAX", hide_env_values = true)]
    pub(crate) connections_per_address_max: Option<usize>,

    /// Memory for requests under way, over all connections [default: 256MiB]
    #[arg(long, value_name = "BYTES", env = "FERRISDB_REQUEST_MEMORY", hide_env_values = true)]
    pub(crate) request_memory: Option<String>,

    /// Memory for replies that clients have not taken yet [default: 256MiB]
    #[arg(long, value_name = "BYTES", env = "FERRISDB_REPLY_MEMORY", hide_env_values = true)]
    pub(crate) reply_memory: Option<String>,

    /// Memory for blocks of tables [default: 256MiB]
    #[arg(long, value_name = "BYTES", env = "FERRISDB_BLOCK_CACHE", hide_env_values = true)]
    pub(crate) block_cache: Option<String>,

    /// Threads that read from disk [default: 8]
    #[arg(long, value_name = "N", env = "FERRISDB_READ_THREADS", hide_env_values = true)]
    pub(crate) read_threads: Option<usize>,

    /// How long a stop waits for what is under way [default: 10s]
    #[arg(long, value_name = "TIME", env = "FERRISDB_DRAIN_TIMEOUT", hide_env_values = true)]
    pub(crate) drain_timeout: Option<String>,

    /// In a cluster: a process that is silent for so long is gone, and others take its place [default: 60s]
    #[arg(long, value_name = "TIME", env = "FERRISDB_GONE_AFTER", hide_env_values = true)]
    pub(crate) gone_after: Option<String>,

    /// In a cluster: bytes a second that all shards on the move together may take [default: 64MiB]
    #[arg(long, value_name = "BYTES", env = "FERRISDB_MOVE_RATE", hide_env_values = true)]
    pub(crate) move_rate: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people: one line each
    Pretty,
    /// For programs: one JSON object on each line
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Show a cluster of so many processes, 3 to 7
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(3..=7))]
    pub(crate) nodes: Option<u8>,

    /// With `--nodes`: kill -9 one of the processes every few seconds, and start it again
    #[arg(long, requires = "nodes")]
    pub(crate) chaos: bool,

    /// With `--nodes`: how long the load runs
    #[arg(long, value_name = "N", default_value_t = 20, requires = "nodes", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,

    /// Where to make the temporary directory [default: the system's]. Durable writes wait for its disk
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Leave the temporary directory there
    #[arg(long)]
    pub(crate) keep: bool,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DemoChildArguments {
    /// The database's directory
    pub(crate) directory: PathBuf,

    /// The first number to write
    pub(crate) first: u64,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// What it is
    #[arg(value_enum)]
    pub(crate) what: Inspected,

    /// The file, or the database's directory
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// What `inspect` can look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Inspected {
    /// A segment of the write-ahead log: its records
    Wal,
    /// An SSTable: footer, properties, blocks, entries
    Sst,
    /// A blob file: its header, and the large values that the tables beside it point to
    Blob,
    /// A manifest: its edits
    Manifest,
    /// A directory: which file is what, and whether the manifest names it
    Dir,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// The database's directory
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Write one page for each command into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// Names the environment variable where that has the value that is wrong: clap names the option, which nobody gave.
pub(crate) fn name_variable(
    mut error: clap::Error,
    command: &clap::Command,
    given: impl Iterator<Item = OsString>,
) -> clap::Error {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return error };
    let option = named.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let Some(variable) = variable_of(command, &option) else { return error };
    let mut given = given.take_while(|argument| argument != "--");
    let is_option = |argument: OsString| {
        let rest = argument.to_str().and_then(|argument| argument.strip_prefix(&option).map(str::to_owned));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    if !given.any(is_option) {
        error.insert(ContextKind::InvalidArg, ContextValue::String(format!("{variable} in the environment")));
    }
    error
}

/// The variable that gives this option a value, in whichever command has it.
fn variable_of(command: &clap::Command, option: &str) -> Option<String> {
    let long = option.strip_prefix("--")?;
    let here =
        command.get_arguments().find(|argument| argument.get_long() == Some(long) && argument.get_env().is_some());
    match here.and_then(clap::Arg::get_env) {
        Some(variable) => Some(variable.to_string_lossy().into_owned()),
        None => command.get_subcommands().find_map(|command| variable_of(command, option)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// clap's own consistency checks (no option twice, no default out of range, …).
    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_have_units() {
        let times = ["500ms", "10s", "10", "2m"].map(|text| parse_duration(text).unwrap().as_millis());
        assert_eq!(times, [500, 10_000, 10_000, 120_000]);
        for text in ["", "s", "0", "-1s", "1h", "1.5s", "99999999999999999999", "18446744073709551615m", "2000m"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
