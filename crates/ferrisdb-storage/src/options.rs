//! [`Options`]: what an owner of an engine may choose, each with its unit, its one default and its limits.
//!
//! Options are validated before anything is touched, and the resolved values are written next to the data at open (file `OPTIONS`), so
//! that whoever looks at a directory later knows how it was run.

use std::fmt::Write as _;

use ferrisdb_core::Version;

use crate::engine::Listener;
use crate::error::{Error, Result};
use crate::levels::LEVELS;
use crate::table::{Compression, TableOptions};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Which old versions stay readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// Only the newest version of each key, and what snapshots and pins hold. For an engine used alone.
    #[default]
    Newest,
    /// Everything from a floor up, which the owner moves with [`Engine::set_oldest_readable_version`](crate::Engine::set_oldest_readable_version),
    /// and what snapshots and pins hold. For a storage server, whose readers choose their versions.
    FromFloor,
}

/// How an engine is opened. `Options::default()` is right for a general store on a machine with some memory to spare.
#[derive(Debug, Clone)]
pub struct Options {
    /// Create the engine if the directory is empty or missing; otherwise such an open fails. Default: true.
    pub create_if_missing: bool,

    /// Bytes of one memtable. Larger: fewer flushes, less write amplification, more memory and a longer crash recovery.
    /// From 16 KiB to 2 GiB. Default: 64 MiB.
    pub write_buffer_bytes: usize,

    /// Memtables that may exist at once, the active one included; when all are full, writes wait for a flush. Memory for
    /// writes is this times `write_buffer_bytes`. From 2 to 64. Default: 3.
    pub write_buffers_max: usize,

    /// Bytes for data, index and filter blocks in memory. Larger: fewer reads from the file system. Default: 256 MiB.
    pub block_cache_bytes: usize,

    /// Tables and blob files that are kept open, each with a file descriptor and, counted as block cache, its index and filter. Larger: fewer
    /// files are opened again; smaller: fewer descriptors. What iterators and background jobs are reading comes on top. From 1 to 1,048,576.
    /// Default: 512, half of the descriptors that a process has by default on Linux; with tables of 64 MiB that is 32 GiB.
    pub max_open_files: usize,

    /// Keep a write-ahead log of the engine's own. Without it a write is durable only once flushed; for owners with a log of their own.
    /// Default: true.
    pub wal: bool,

    /// Bytes of one WAL segment, preallocated. Larger: fewer switches; smaller: an idle engine holds less disk (one segment) and opens
    /// faster. From 4 KiB to 1 GiB. Default: 4 MiB.
    pub wal_segment_bytes: usize,

    /// Which old versions stay readable. Default: [`Retention::Newest`].
    pub retention: Retention,

    /// Uncompressed bytes of a data block. Larger: better compression, smaller indexes, more bytes read and decompressed per
    /// read that misses the cache. From 512 B to 1 MiB. Default: that of [`TableOptions`].
    pub block_bytes: usize,

    /// Bloom filter bits per key: 10 let about 1 % of misses through; 0 writes no filter. At most 32. Default: 10.
    pub filter_bits_per_key: u32,

    /// Compression by level. Default: LZ4 everywhere.
    pub compression: [Compression; LEVELS],

    /// Values of at least this many bytes lie in blob files, and tables hold pointers to them. Compactions then write less, because they
    /// move pointers; scans read more slowly, because neighbouring values lie apart; and until garbage is collected up to twice the space
    /// is used. `None`: all values lie in tables. May be changed at every open; values move as they are rewritten. From 64 B to 256 MiB.
    /// Default: `None`; where values are large, 4 KiB is a good choice (`docs/decisions/0006-blob-files.md` has measurements).
    pub blob_value_bytes: Option<usize>,

    /// Bytes of an output table of a compaction, on disk. Larger: fewer files; smaller: finer-grained compactions. From 4 KiB
    /// to 4 GiB. Default: 64 MiB.
    pub table_bytes: u64,

    /// Sorted runs in L0 at which they are compacted into the next level: a run is the table of one flush, or the disjoint tables of one
    /// ingestion. Larger: less write amplification, more tables per read. From 1 to 100. Default: 4.
    pub l0_compaction_tables: usize,

    /// Sorted runs in L0 (as in `l0_compaction_tables`) from which on writes are slowed down, more with every run. From
    /// `l0_compaction_tables` to 1,000. Default: 12.
    pub l0_slowdown_tables: usize,

    /// Sorted runs in L0 (as in `l0_compaction_tables`) at which writes stop until a compaction is done. Above `l0_slowdown_tables`, to
    /// 10,000. Default: 24.
    pub l0_stop_tables: usize,

    /// Bytes wanted in the first level below L0 that holds data. From 4 KiB up. Default: 256 MiB.
    pub base_level_bytes: u64,

    /// How many times larger each level is than the one above. From 2 to 100. Default: 10.
    pub level_multiplier: u64,

    /// Compactions that may run at once. From 0 (none ever; for tests and bulk loads) to 64. Default: 2.
    pub compaction_jobs: usize,

    /// Bytes waiting to be compacted from which on writes are slowed down. Default: 64 GiB.
    pub pending_compaction_slowdown_bytes: u64,

    /// Bytes that flushes and compactions may write per second, flushes first. Lower: reads and WAL syncs find the disk free more often; too low
    /// for what is written, and it is not kept: while writers are slowed down or about to be stopped there is no limit. From 1 KiB up.
    /// Default: `None`, no limit.
    pub background_bytes_per_second: Option<u64>,

    /// Versions that are pinned from the start, before any job could collect them: the owner's pins from before a restart, which the
    /// engine does not remember. Each is taken back with [`Engine::unpin`](crate::Engine::unpin). Default: none.
    pub pinned_versions: Vec<Version>,

    /// Bytes of the manifest, which lists the tables, at which it is written anew. Smaller: it is read faster at open, and
    /// rewritten more often. From 1 KiB to 1 GiB. Default: 1 MiB.
    pub manifest_bytes_max: u64,

    /// Entries that one step of a background job handles before it gives way to others: what makes a simulated run
    /// interleave. From 1 up. Default: 4,096.
    pub job_step_entries: usize,

    /// Told about flushes, compactions, stalls and errors as they happen. It must not wait. Default: none.
    pub event_listener: Option<Listener>,
}

impl Default for Options {
    fn default() -> Options {
        let table = TableOptions::default();
        Options {
            create_if_missing: true,
            write_buffer_bytes: 64 * MIB,
            write_buffers_max: 3,
            block_cache_bytes: 256 * MIB,
            max_open_files: 512,
            wal: true,
            wal_segment_bytes: 4 * MIB,
            retention: Retention::Newest,
            block_bytes: table.block_bytes,
            filter_bits_per_key: 10,
            compression: [Compression::Lz4; LEVELS],
            blob_value_bytes: None,
            table_bytes: 64 * MIB as u64,
            l0_compaction_tables: 4,
            l0_slowdown_tables: 12,
            l0_stop_tables: 24,
            base_level_bytes: 256 * MIB as u64,
            level_multiplier: 10,
            compaction_jobs: 2,
            pending_compaction_slowdown_bytes: 64 << 30,
            background_bytes_per_second: None,
            pinned_versions: Vec::new(),
            manifest_bytes_max: crate::manifest::log::LOG_BYTES_MAX,
            job_step_entries: 4096,
            event_listener: None,
        }
    }
}

impl Options {
    /// Small buffers everywhere, so that a test or a simulation reaches every mechanism with a few kilobytes of data.
    pub fn tiny() -> Options {
        Options {
            write_buffer_bytes: 16 * KIB,
            block_cache_bytes: 64 * KIB,
            wal_segment_bytes: 16 * KIB,
            block_bytes: 512,
            table_bytes: 8 * KIB as u64,
            base_level_bytes: 16 * KIB as u64,
            level_multiplier: 4,
            compaction_jobs: 1,
            job_step_entries: 64,
            ..Options::default()
        }
    }

    /// Checks every option and every combination.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] naming the first option that is out of range.
    pub fn validate(&self) -> Result<()> {
        let within = |option: &'static str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                let reason = format!("it must be from {min} to {max}");
                Err(Error::InvalidOption { option, value: value.to_string(), reason })
            }
        };
        within("write_buffer_bytes", self.write_buffer_bytes as u64, 16 << 10, 2 << 30)?;
        within("write_buffers_max", self.write_buffers_max as u64, 2, 64)?;
        within("block_cache_bytes", self.block_cache_bytes as u64, 0, 1 << 46)?;
        within("max_open_files", self.max_open_files as u64, 1, 1 << 20)?;
        within("wal_segment_bytes", self.wal_segment_bytes as u64, 4 << 10, 1 << 30)?;
        within("block_bytes", self.block_bytes as u64, 512, 1 << 20)?;
        within("filter_bits_per_key", u64::from(self.filter_bits_per_key), 0, 32)?;
        if let Some(bytes) = self.blob_value_bytes {
            within("blob_value_bytes", bytes as u64, 64, crate::key::VALUE_BYTES_MAX as u64)?;
        }
        within("table_bytes", self.table_bytes, 4 << 10, 4 << 30)?;
        within("l0_compaction_tables", self.l0_compaction_tables as u64, 1, 100)?;
        within("l0_slowdown_tables", self.l0_slowdown_tables as u64, self.l0_compaction_tables as u64, 1000)?;
        within("l0_stop_tables", self.l0_stop_tables as u64, self.l0_slowdown_tables as u64 + 1, 10_000)?;
        within("base_level_bytes", self.base_level_bytes, 4 << 10, 1 << 46)?;
        within("level_multiplier", self.level_multiplier, 2, 100)?;
        within("compaction_jobs", self.compaction_jobs as u64, 0, 64)?;
        within("pending_compaction_slowdown_bytes", self.pending_compaction_slowdown_bytes, 1, u64::MAX)?;
        if let Some(bytes) = self.background_bytes_per_second {
            within("background_bytes_per_second", bytes, 1 << 10, u64::MAX)?;
        }
        within("manifest_bytes_max", self.manifest_bytes_max, 1 << 10, 1 << 30)?;
        within("job_step_entries", self.job_step_entries as u64, 1, u64::MAX)?;
        Ok(())
    }

    /// The resolved options as text, one `name = value` a line.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::from(
            "# The options that this engine was last opened with. Written at open; changing this file changes nothing.\n",
        );
        let debug = format!("{self:#?}");
        for line in debug.lines().skip(1).take_while(|line| *line != "}") {
            let line = line.strip_prefix("    ").unwrap_or(line).trim_end_matches(',');
            let line = if line.starts_with([' ', ']', ')']) { line.to_owned() } else { line.replacen(": ", " = ", 1) };
            writeln!(text, "{line}").expect("writing to a String cannot fail");
        }
        text
    }

    /// A blob file is finished once it has this many bytes: a few tables' worth. Larger ones would take long to become mostly garbage,
    /// smaller ones would be many.
    pub(crate) fn blob_file_bytes(&self) -> u64 {
        4 * self.table_bytes
    }

    pub(crate) fn table_options(&self, level: usize) -> TableOptions {
        TableOptions {
            block_bytes: self.block_bytes,
            filter_bits_per_key: self.filter_bits_per_key,
            compression: self.compression[level],
            ..TableOptions::default()
        }
    }
}

/// How durable a write is when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// In the operating system's hands: it survives the death of the process, not that of the machine. A crash of the machine loses
    /// the newest such writes, never one from the middle.
    #[default]
    Buffered,
    /// On stable storage, with everything written before it.
    Sync,
}

/// How one batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// When the call may return.
    pub durability: Durability,
    /// The batch's version, above every one before it; `None` takes the next.
    pub version: Option<Version>,
}

impl From<Durability> for WriteOptions {
    fn from(durability: Durability) -> WriteOptions {
        WriteOptions { durability, version: None }
    }
}
