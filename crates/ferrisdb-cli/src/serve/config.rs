//! The settings of `serve`: from the command line, the environment, a TOML file, or the defaults, in this order.
//!
//! The file has the options' names with `_` for `-`, all at the top level; an unknown name is an error, so that a typo does not pass for a default.
//! Where each setting came from is printed at the start, and kept with it for errors.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::arguments::{LogFormat, ServeArguments, parse_duration};
use crate::connect::seconds;
use crate::failure::Failure;

/// Where `serve` listens unless it is told otherwise.
pub(crate) const LISTEN_DEFAULT: &str = "127.0.0.1:4700";

const MIB: usize = 1 << 20;

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    CommandLine,
    Environment,
    File,
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::CommandLine => "command line",
            Source::Environment => "environment",
            Source::File => "file",
            Source::Default => "default",
        })
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) source: Source,
}

/// The file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    listen: Option<String>,
    cluster: Option<bool>,
    join: Option<String>,
    advertise: Option<String>,
    zone: Option<String>,
    insecure: Option<bool>,
    exit_on_failure: Option<bool>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
    connections_max: Option<usize>,
    connections_per_address_max: Option<usize>,
    request_memory: Option<String>,
    reply_memory: Option<String>,
    block_cache: Option<String>,
    read_threads: Option<usize>,
    drain_timeout: Option<String>,
    gone_after: Option<String>,
    move_rate: Option<String>,
}

/// How a server is run.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) file: Option<PathBuf>,
    pub(crate) data: Setting<PathBuf>,
    pub(crate) listen: Setting<String>,
    pub(crate) cluster: Setting<bool>,
    /// Empty: do not join.
    pub(crate) join: Setting<Vec<String>>,
    pub(crate) advertise: Option<Setting<String>>,
    pub(crate) zone: Setting<String>,
    pub(crate) insecure: Setting<bool>,
    pub(crate) exit_on_failure: Setting<bool>,
    pub(crate) log_level: Setting<Targets>,
    pub(crate) log_format: Setting<LogFormat>,
    pub(crate) connections_max: Setting<usize>,
    pub(crate) connections_per_address_max: Setting<usize>,
    pub(crate) request_memory: Setting<usize>,
    pub(crate) reply_memory: Setting<usize>,
    pub(crate) block_cache: Setting<usize>,
    pub(crate) read_threads: Setting<usize>,
    pub(crate) drain_timeout: Setting<Duration>,
    pub(crate) gone_after: Setting<Duration>,
    pub(crate) move_rate: Setting<usize>,
}

impl Config {
    /// The settings. `matches` is what clap found for `serve`: it knows which options came from the environment.
    pub(crate) fn new(arguments: ServeArguments, matches: &ArgMatches) -> Result<Config, Failure> {
        let file = arguments.config.as_deref().map_or_else(|| Ok(File::default()), read)?;
        let pick = Pick { matches };
        let a = arguments;
        let data = pick.one("data", a.data, file.data);
        let data = data.ok_or_else(|| {
            Failure::usage(
                "in which directory is the database?",
                "give --data DIR, set FERRISDB_DATA, or write data = \"DIR\" into the file of --config",
            )
        })?;
        Ok(Config {
            data,
            listen: pick.or("listen", a.listen, file.listen, LISTEN_DEFAULT.to_owned()).parsed(
                "listen",
                "write HOST:PORT, such as 127.0.0.1:4700; port 0 takes any that is free",
                parse_listen,
            )?,
            cluster: pick.or("cluster", a.cluster, file.cluster, false),
            join: pick.or("join", a.join, file.join, String::new()).parsed(
                "join",
                "write HOST:PORT, or several with commas between them",
                parse_addresses,
            )?,
            advertise: pick
                .one("advertise", a.advertise, file.advertise)
                .map(|advertise| advertise.parsed("advertise", "write HOST:PORT", parse_address))
                .transpose()?,
            zone: pick.or("zone", a.zone, file.zone, String::new()),
            insecure: pick.or("insecure", a.insecure, file.insecure, false),
            exit_on_failure: pick.or("exit_on_failure", a.exit_on_failure, file.exit_on_failure, false),
            log_level: pick.or("log_level", a.log_level, file.log_level, "info".to_owned()).parsed(
                "log_level",
                "write error, warn, info, debug or trace, or parts: info,ferrisdb_rpc=debug",
                parse_level,
            )?,
            log_format: pick.or("log_format", a.log_format, file.log_format, LogFormat::Pretty),
            connections_max: pick
                .or("connections_max", a.connections_max, file.connections_max, 16_384)
                .positive("connections_max")?,
            connections_per_address_max: pick
                .or(
                    "connections_per_address_max",
                    a.connections_per_address_max,
                    file.connections_per_address_max,
                    12_288,
                )
                .positive("connections_per_address_max")?,
            request_memory: pick.bytes("request_memory", a.request_memory, file.request_memory, "256MiB")?,
            reply_memory: pick.bytes("reply_memory", a.reply_memory, file.reply_memory, "256MiB")?,
            block_cache: pick.bytes("block_cache", a.block_cache, file.block_cache, "256MiB")?,
            read_threads: pick.or("read_threads", a.read_threads, file.read_threads, 8).positive("read_threads")?,
            drain_timeout: pick.or("drain_timeout", a.drain_timeout, file.drain_timeout, "10s".to_owned()).parsed(
                "drain_timeout",
                "write it as 500ms, 10s or 2m",
                parse_duration,
            )?,
            gone_after: pick.or("gone_after", a.gone_after, file.gone_after, "60s".to_owned()).parsed(
                "gone_after",
                "write it as 10s or 2m",
                parse_gone_after,
            )?,
            move_rate: pick.bytes("move_rate", a.move_rate, file.move_rate, "64MiB")?,
            file: a.config,
        })
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display, source: Source| {
            writeln!(f, "  {name:<28} {:<28} {source}", value.to_string())
        };
        line("data", &self.data.value.display(), self.data.source)?;
        line("listen", &self.listen.value, self.listen.source)?;
        line("cluster", &self.cluster.value, self.cluster.source)?;
        line("join", &self.join.value.join(","), self.join.source)?;
        if let Some(advertise) = &self.advertise {
            line("advertise", &advertise.value, advertise.source)?;
        }
        line("zone", &self.zone.value, self.zone.source)?;
        line("insecure", &self.insecure.value, self.insecure.source)?;
        line("exit_on_failure", &self.exit_on_failure.value, self.exit_on_failure.source)?;
        line("log_level", &self.log_level.value, self.log_level.source)?;
        let format = match self.log_format.value {
            LogFormat::Pretty => "pretty",
            LogFormat::Json => "json",
        };
        line("log_format", &format, self.log_format.source)?;
        line("connections_max", &self.connections_max.value, self.connections_max.source)?;
        let per_address = &self.connections_per_address_max;
        line("connections_per_address_max", &per_address.value, per_address.source)?;
        for (name, setting) in [
            ("request_memory", &self.request_memory),
            ("reply_memory", &self.reply_memory),
            ("block_cache", &self.block_cache),
        ] {
            line(name, &bytes(setting.value), setting.source)?;
        }
        line("read_threads", &self.read_threads.value, self.read_threads.source)?;
        line("drain_timeout", &seconds(self.drain_timeout.value), self.drain_timeout.source)?;
        line("gone_after", &seconds(self.gone_after.value), self.gone_after.source)?;
        line("move_rate", &bytes(self.move_rate.value), self.move_rate.source)?;
        match &self.file {
            Some(file) => writeln!(f, "  file: {}", file.display()),
            None => writeln!(f, "  file: none (--config FILE)"),
        }
    }
}

/// Reads the file.
fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::failed(
            format!("cannot read the settings in {}: {error}", path.display()),
            "check --config or FERRISDB_CONFIG",
        )
    })?;
    toml::from_str(&text).map_err(|error| {
        let what = format!("the settings in {} are wrong: {}", path.display(), error.to_string().trim_end());
        Failure::usage(what, "`ferrisdb serve --help` lists the names; in the file `-` is written `_`")
    })
}

/// Chooses by rank.
struct Pick<'a> {
    matches: &'a ArgMatches,
}

impl Pick<'_> {
    fn one<T>(&self, name: &str, given: Option<T>, file: Option<T>) -> Option<Setting<T>> {
        match (given, file) {
            (Some(value), _) => {
                let is_environment = self.matches.value_source(name) == Some(ValueSource::EnvVariable);
                let source = if is_environment { Source::Environment } else { Source::CommandLine };
                Some(Setting { value, source })
            }
            (None, Some(value)) => Some(Setting { value, source: Source::File }),
            (None, None) => None,
        }
    }

    fn or<T>(&self, name: &str, given: Option<T>, file: Option<T>, default: T) -> Setting<T> {
        self.one(name, given, file).unwrap_or(Setting { value: default, source: Source::Default })
    }

    fn bytes(
        &self,
        name: &str,
        given: Option<String>,
        file: Option<String>,
        default: &str,
    ) -> Result<Setting<usize>, Failure> {
        self.or(name, given, file, default.to_owned()).parsed(
            name,
            "write it as 64MiB, 2GiB or a number of bytes",
            parse_bytes,
        )
    }
}

impl<T> Setting<T> {
    fn fail(&self, name: &str, value: &str, why: &str, remedy: &str) -> Failure {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        Failure::usage(format!("{name} is `{value}` ({}){why}", self.source), remedy)
    }
}

impl Setting<String> {
    fn parsed<T>(
        self,
        name: &str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Setting<T>, Failure> {
        match parse(&self.value) {
            Ok(value) => Ok(Setting { value, source: self.source }),
            Err(why) => Err(self.fail(name, &self.value, &why, remedy)),
        }
    }
}

impl Setting<usize> {
    fn positive(self, name: &str) -> Result<Setting<usize>, Failure> {
        match self.value {
            0 => Err(self.fail(name, "0", "", "it is at least 1")),
            _ => Ok(self),
        }
    }
}

/// Levels, alone or of a part. (A word alone would pass for a part whose every event is wanted.)
fn parse_level(text: &str) -> Result<Targets, String> {
    let unknown = |part: &&str| !part.contains('=') && part.parse::<LevelFilter>().is_err();
    match text.split(',').find(unknown) {
        Some(part) => Err(format!("`{part}` is no level")),
        None => {
            let levels = Targets::from_str(text).map_err(|error| error.to_string())?;
            // The consensus library tells each step of an election as information; whoever wants that names it.
            let is_named = text.contains("openraft");
            Ok(if is_named { levels } else { levels.with_target("openraft", LevelFilter::WARN) })
        }
    }
}

/// Where to listen: an address, or port 0 of one.
fn parse_listen(text: &str) -> Result<String, String> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let with_port = text.strip_suffix(":0").map_or_else(|| text.to_owned(), |host| format!("{host}:1"));
    let checked = ferrisdb_rpc::client::check_address(&with_port);
    checked.map(|()| text.to_owned()).map_err(|error| {
        let detail = error.detail().unwrap_or_default();
        let why = detail.split_once(": ").map_or(detail, |(_, why)| why);
        why.split_once("; ").map_or(why, |(why, _)| why).to_owned()
    })
}

fn parse_address(text: &str) -> Result<String, String> {
    ferrisdb_rpc::client::check_address(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Addresses with commas between them; none at all is none.
fn parse_addresses(text: &str) -> Result<Vec<String>, String> {
    let addresses: Vec<String> = text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    for address in &addresses {
        ferrisdb_rpc::client::check_address(address).map_err(|error| error.to_string())?;
    }
    Ok(addresses)
}

/// `64MiB`, `2GiB`, `1024`.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => MIB,
        "GiB" => 1 << 30,
        unit => return Err(format!("`{unit}` is no unit of memory")),
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    match bytes {
        Some(bytes @ 1_048_576..) => Ok(bytes),
        Some(_) => Err("less than 1MiB is not enough to work with".to_owned()),
        None => Err("that is no number of bytes".to_owned()),
    }
}

fn bytes(bytes: usize) -> String {
    if bytes.is_multiple_of(MIB) { format!("{} MiB", bytes / MIB) } else { format!("{bytes} B") }
}

/// Whoever is gone was suspected before: otherwise a process would lose its place between two of its beats.
fn parse_gone_after(text: &str) -> Result<Duration, String> {
    let after = parse_duration(text)?;
    let suspected = ferrisdb::cluster::MemberOptions::default().suspected_after;
    if after > suspected {
        return Ok(after);
    }
    Err(format!("it must be longer than {suspected:?}, after which a silent process is suspected"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::{CommandFactory as _, FromArgMatches as _};

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let matches = Arguments::command().get_matches_from([&["ferrisdb", "serve"], arguments].concat());
        let Command::Serve(parsed) = Arguments::from_arg_matches(&matches).unwrap().command else { panic!("serve") };
        Config::new(parsed, matches.subcommand_matches("serve").unwrap()).map_err(|failure| failure.to_string())
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ferrisdb.toml");
        #[expect(clippy::disallowed_methods, reason = "a test writes a file as a person would")]
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (directory, path)
    }

    /// The command line comes before the file, and that before the defaults; each line says which it was.
    #[test]
    fn settings_are_chosen_by_rank() {
        let (_directory, path) =
            file("data = \"/db\"\nconnections_max = 7\nblock_cache = \"1GiB\"\nlog_format = \"json\"");
        let config = config(&["--config", &path, "--connections-max", "9", "--insecure"]).unwrap();
        assert_eq!(config.data, Setting { value: "/db".into(), source: Source::File });
        assert_eq!(config.connections_max, Setting { value: 9, source: Source::CommandLine });
        assert_eq!(config.insecure, Setting { value: true, source: Source::CommandLine });
        assert_eq!(config.block_cache, Setting { value: 1 << 30, source: Source::File });
        assert_eq!(config.log_format, Setting { value: LogFormat::Json, source: Source::File });
        assert_eq!(config.listen, Setting { value: LISTEN_DEFAULT.into(), source: Source::Default });
        assert_eq!(config.drain_timeout.value, Duration::from_secs(10));
        let text = config.to_string();
        assert!(text.contains("block_cache                  1024 MiB                     file"), "{text}");
    }

    /// What is wrong is said with its name, its value and where it stands.
    #[test]
    fn wrong_settings_are_named() {
        let (_directory, path) = file("data = \"/db\"\nconections_max = 7");
        assert!(config(&["--config", &path]).unwrap_err().contains("conections_max"));
        assert!(config(&["--config", "/nonexistent.toml"]).unwrap_err().contains("/nonexistent.toml"));
        assert!(config(&[]).unwrap_err().contains("--data DIR"));
        for (option, value) in [
            ("--block-cache", "5MB"),
            ("--block-cache", "1KiB"),
            ("--connections-max", "0"),
            ("--drain-timeout", "soon"),
            ("--log-level", "loud"),
            ("--listen", "127.0.0.1"),
            ("--listen", "localhost:99999"),
            ("--listen", ":0"),
            ("--join", "nowhere"),
            ("--advertise", "nonsense"),
        ] {
            let error = config(&["--data", "db", option, value]).unwrap_err();
            assert!(error.contains(value) && error.contains("command line"), "{error}");
        }
    }

    #[test]
    fn addresses_to_listen_on_may_leave_the_port_open() {
        for address in ["127.0.0.1:0", "localhost:0", "[::1]:4700", "db.example:4700"] {
            assert_eq!(parse_listen(address), Ok(address.to_owned()));
        }
        assert_eq!(parse_listen("127.0.0.1"), Err("it has no port".to_owned()));
    }

    /// The defaults that the help texts name are those that the database has.
    #[test]
    fn the_defaults_are_those_of_the_library() {
        let config = config(&["--data", "db"]).unwrap();
        let serve = ferrisdb_rpc::ServeOptions::default();
        let node = ferrisdb::NodeOptions::default();
        assert_eq!(config.connections_max.value, serve.connections_max);
        assert_eq!(config.connections_per_address_max.value, serve.connections_per_address_max);
        assert_eq!(config.request_memory.value, serve.request_memory_bytes_max);
        assert_eq!(config.reply_memory.value, serve.reply_memory_bytes_max);
        assert_eq!(config.drain_timeout.value, serve.drain_timeout);
        assert_eq!(config.block_cache.value, node.storage.engine.block_cache_bytes);
        assert_eq!(config.read_threads.value, node.storage.read_jobs);
        assert_eq!(config.gone_after.value, ferrisdb::cluster::MemberOptions::default().gone_after);
        let shards = ferrisdb::cluster::ShardOptions::default();
        assert_eq!(config.move_rate.value as u64, shards.all_moves_bytes_per_second);
    }

    #[test]
    fn nobody_is_gone_before_he_is_suspected() {
        assert_eq!(parse_gone_after("4s"), Ok(Duration::from_secs(4)));
        assert!(parse_gone_after("3s").is_err() && parse_gone_after("1ms").is_err());
    }
}
