//! The engines under test, one adapter each. `docs/benchmarks/README.md` gives the reason for each of their options.

mod ferris;
#[cfg(feature = "peers")]
mod fjall;
#[cfg(feature = "peers")]
mod lmdb;
mod memory;
#[cfg(feature = "peers")]
mod redb;
#[cfg(feature = "peers")]
mod rocksdb;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::engine::{EngineConfig, KvEngine, Result};

/// An engine by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EngineName {
    /// FerrisDB's own engine.
    Ferris,
    /// RocksDB, to which all ratios are.
    #[cfg(feature = "peers")]
    Rocksdb,
    /// fjall, the log-structured engine in Rust.
    #[cfg(feature = "peers")]
    Fjall,
    /// redb, a copy-on-write B-tree in Rust.
    #[cfg(feature = "peers")]
    Redb,
    /// LMDB, a copy-on-write B-tree on a memory map; not crash-consistent except in the durable workloads.
    #[cfg(feature = "peers")]
    Lmdb,
    /// A sorted map behind a lock: writes no file, checks the harness, and is in no default.
    Memory,
}

impl EngineName {
    /// All that this build contains and that are worth comparing.
    pub(crate) fn defaults() -> Vec<EngineName> {
        EngineName::value_variants().iter().copied().filter(|&name| name != EngineName::Memory).collect()
    }

    /// The name in tables and JSON lines.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            EngineName::Ferris => "ferris",
            #[cfg(feature = "peers")]
            EngineName::Rocksdb => "rocksdb",
            #[cfg(feature = "peers")]
            EngineName::Fjall => "fjall",
            #[cfg(feature = "peers")]
            EngineName::Redb => "redb",
            #[cfg(feature = "peers")]
            EngineName::Lmdb => "lmdb",
            EngineName::Memory => "memory",
        }
    }

    /// Opens an empty store.
    pub(crate) fn open(self, config: &EngineConfig) -> Result<Box<dyn KvEngine>> {
        Ok(match self {
            EngineName::Ferris => Box::new(ferris::Ferris::open(config)?),
            #[cfg(feature = "peers")]
            EngineName::Rocksdb => Box::new(rocksdb::Rocks::open(config)?),
            #[cfg(feature = "peers")]
            EngineName::Fjall => Box::new(fjall::Fjall::open(config)?),
            #[cfg(feature = "peers")]
            EngineName::Redb => Box::new(redb::Redb::open(config)?),
            #[cfg(feature = "peers")]
            EngineName::Lmdb => Box::new(lmdb::Lmdb::open(config)?),
            EngineName::Memory => Box::new(memory::Memory::open(config)?),
        })
    }
}
