//! The conflict window under load: check, add and forget, on one thread.
//!
//! Each structure runs in a process of its own, so that peak memory is its own. The transactions are made beforehand, in chunks, and not
//! timed. First the window is filled; what is measured is the steady state, in which every transaction also makes an old one go.
//! Time is the thread's CPU time, so that other work on the machine takes less from the numbers.
//! Before that each structure's answers are compared with the obvious one's.

mod structures;

use std::process::{Command, ExitCode};

use clap::ValueEnum;
use ferrisdb_core::{Bytes, KeyRange, Random, SplitMix64, Version};
use serde::{Deserialize, Serialize};

use crate::engine::Result;
use structures::StructureName;

/// Transactions that commit together, at one version.
const BATCH_LEN: usize = 64;
const BATCH: u64 = BATCH_LEN as u64;
/// Transactions that are made at a time, not timed.
const CHUNK: u64 = 16 * 1024;

/// What the command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which structures, separated by commas, or `all`.
    #[arg(long, value_delimiter = ',', default_value = "generations")]
    structures: Vec<String>,

    /// Which mixes of transactions, separated by commas, or `all`.
    #[arg(long, value_delimiter = ',', default_value = "points,points-old,ranges,clears,hot,prefixed,prefixed-ranges")]
    mixes: Vec<String>,

    /// Transactions in the window.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    window: u64,

    /// Transactions measured.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    transactions: u64,

    /// How many times each is measured, in turns; the result is the median.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,

    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    json: bool,

    /// Measure here, in this process (the parent process sets this).
    #[arg(long, hide = true)]
    here: bool,
}

/// What transactions are like. Keys have 32 bytes; all but `hot` choose them evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mix {
    /// One point read, one point write; read versions up to a fiftieth of the window (0.1 s of 5 s) ago.
    Points,
    /// The same, with read versions from all over the window.
    PointsOld,
    /// One read of a range of about a hundred-thousandth of the key space, one point write.
    Ranges,
    /// One point read; every tenth transaction clears such a range, the others write a point.
    Clears,
    /// As `points`, over a thousand keys: most conflict.
    Hot,
    /// As `points`, with sixteen bytes that all keys begin with, as those of a directory or a table do.
    Prefixed,
    /// As `ranges`, with such keys.
    PrefixedRanges,
}

impl Mix {
    /// What all keys begin with.
    fn prefix(self) -> &'static [u8] {
        match self {
            Mix::Prefixed | Mix::PrefixedRanges => b"accounts/by-name",
            _ => b"",
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    structure: String,
    mix: String,
    window: u64,
    transactions: u64,
    transactions_per_s: f64,
    conflicts: u64,
    /// The longest batch of 64 transactions.
    longest_batch_us: f64,
    /// What the structure says it takes.
    structure_mib: f64,
    /// The process's peak, less what it had before.
    peak_mib: f64,
}

struct Transaction {
    version: Version,
    read_version: Version,
    reads: Vec<KeyRange>,
    writes: Vec<KeyRange>,
}

/// Makes transactions one after another.
struct Source {
    random: SplitMix64,
    mix: Mix,
    window: u64,
    next: u64,
}

impl Source {
    fn key(&mut self) -> Bytes {
        let number = if self.mix == Mix::Hot { self.random.below(1000) << 40 } else { self.random.next_u64() };
        let mut key = [self.mix.prefix(), &number.to_be_bytes()].concat();
        let mut rest = SplitMix64::new(number);
        while key.len() < 32 {
            key.extend_from_slice(&rest.next_u64().to_be_bytes());
        }
        Bytes::from(key)
    }

    fn range(&mut self) -> KeyRange {
        // Room for the longest behind it.
        let begin = self.random.next_u64().min(u64::MAX - (1 << 49));
        let end = begin + self.random.below(u64::MAX / 50_000);
        let key = |number: u64| [self.mix.prefix(), &number.to_be_bytes()].concat();
        KeyRange::new(key(begin), key(end))
    }

    fn transaction(&mut self) -> Transaction {
        self.next += 1;
        // A version for each batch; a transaction counts for one.
        let version = self.next.div_ceil(BATCH) * BATCH + self.window;
        let lag = match self.mix {
            Mix::PointsOld => self.random.below(self.window - 2 * BATCH),
            _ => self.random.below(self.window / 50),
        };
        let read = if matches!(self.mix, Mix::Ranges | Mix::PrefixedRanges) {
            self.range()
        } else {
            KeyRange::single(&self.key())
        };
        let write = match self.mix {
            Mix::Clears if self.random.one_in(10) => self.range(),
            _ => KeyRange::single(&self.key()),
        };
        Transaction {
            version: Version::from_u64(version),
            read_version: Version::from_u64(version - BATCH - lag),
            reads: vec![read],
            writes: vec![write],
        }
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let structures = chosen::<StructureName>(&arguments.structures)?;
    let mixes = chosen::<Mix>(&arguments.mixes)?;
    if arguments.here {
        let row = measure(structures[0], mixes[0], arguments)?;
        println!("{}", serde_json::to_string(&row)?);
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.json {
        println!("| structure | mix | transactions/s | longest batch of {BATCH}, µs | MiB | peak MiB | conflicts |");
        println!("|---|---|--:|--:|--:|--:|--:|");
    }
    for mix in mixes {
        for &structure in structures.iter().filter(|structure| structure.has(mix)) {
            let mut rows =
                (0..arguments.runs).map(|_| child(structure, mix, arguments)).collect::<Result<Vec<Row>>>()?;
            rows.sort_by(|a, b| a.transactions_per_s.total_cmp(&b.transactions_per_s));
            let row = &rows[rows.len() / 2];
            if arguments.json {
                println!("{}", serde_json::to_string(row)?);
                continue;
            }
            println!(
                "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} % |",
                row.structure,
                row.mix,
                row.transactions_per_s,
                row.longest_batch_us,
                row.structure_mib,
                row.peak_mib,
                100.0 * row.conflicts as f64 / row.transactions as f64
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen<T: ValueEnum>(names: &[String]) -> Result<Vec<T>> {
    if names == ["all"] {
        return Ok(T::value_variants().to_vec());
    }
    names.iter().map(|name| T::from_str(name, false).map_err(|error| format!("{name}: {error}").into())).collect()
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no variant is skipped").get_name().to_owned()
}

fn child(structure: StructureName, mix: Mix, arguments: &Arguments) -> Result<Row> {
    let output = Command::new(std::env::current_exe()?)
        .args(["resolver", "--here", "--structures", &name(&structure), "--mixes", &name(&mix)])
        .args(["--window", &arguments.window.to_string(), "--transactions", &arguments.transactions.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn measure(structure: StructureName, mix: Mix, arguments: &Arguments) -> Result<Row> {
    compare(structure, mix)?;
    let source = || Source { random: SplitMix64::new(1), mix, window: arguments.window, next: 0 };
    let mut source = source();
    let make = |source: &mut Source| (0..CHUNK).map(|_| source.transaction()).collect::<Vec<Transaction>>();
    // One chunk is always there, so that it is not taken for the structure's.
    let mut chunk = make(&mut source);
    source.next = 0;
    let before = memory_mib("VmRSS:")?;
    let mut window = structure.make(Version::from_u64(0));
    let (mut seconds, mut longest, mut conflicts, mut measured) = (0.0, 0.0f64, 0, 0);
    let mut filled = 0;
    while measured < arguments.transactions {
        chunk.clear();
        chunk.extend((0..CHUNK).map(|_| source.transaction()));
        let is_measured = filled >= arguments.window + arguments.window / 2;
        for batch in chunk.chunks(BATCH_LEN) {
            let begin = cpu_seconds();
            let mut in_conflict = 0;
            for transaction in batch {
                if window.is_conflict(transaction.read_version, &transaction.reads) {
                    in_conflict += 1;
                } else {
                    window.add(transaction.version, &transaction.writes);
                }
            }
            let newest = batch[batch.len() - 1].version.get();
            window.forget_below(Version::from_u64(newest.saturating_sub(arguments.window)));
            if is_measured {
                let took = cpu_seconds() - begin;
                seconds += took;
                longest = longest.max(took);
                conflicts += in_conflict;
                measured += batch.len() as u64;
            }
        }
        filled += CHUNK;
    }
    Ok(Row {
        structure: name(&structure),
        mix: name(&mix),
        window: arguments.window,
        transactions: measured,
        transactions_per_s: measured as f64 / seconds,
        conflicts,
        longest_batch_us: longest * 1e6,
        structure_mib: window.bytes() as f64 / f64::from(1 << 20),
        peak_mib: memory_mib("VmHWM:")? - before,
    })
}

/// A structure that gives another answer than the obvious one is not measured.
fn compare(structure: StructureName, mix: Mix) -> Result<()> {
    const WINDOW: u64 = 5000;
    let mut source = Source { random: SplitMix64::new(7), mix, window: WINDOW, next: 0 };
    let (mut window, mut model) =
        (structure.make(Version::from_u64(0)), StructureName::BTreeMap.make(Version::from_u64(0)));
    for number in 0..4 * WINDOW {
        let Transaction { version, read_version, reads, writes } = source.transaction();
        let expected = model.is_conflict(read_version, &reads);
        if window.is_conflict(read_version, &reads) != expected {
            return Err(
                format!("{}: transaction {number} of {}: expected {expected}", name(&structure), name(&mix)).into()
            );
        }
        if !expected {
            window.add(version, &writes);
            model.add(version, &writes);
        }
        let floor = Version::from_u64(version.get().saturating_sub(WINDOW));
        window.forget_below(floor);
        model.forget_below(floor);
    }
    Ok(())
}

/// What this thread has computed: a busy machine takes nothing from it.
pub(crate) fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A line of the process's status, in MiB.
fn memory_mib(line: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)).and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = found.ok_or_else(|| format!("/proc/self/status has no {line}"))?.parse()?;
    Ok(kib / 1024.0)
}
