//! What a process has used: CPU time, bytes sent to disk, memory, and files. Linux only, from `/proc`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::Result;

/// One line of `--json`: exactly these keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) engine: String,
    pub(crate) workload: String,
    /// Operations per second of all threads together, from the first to the last, without settling.
    pub(crate) ops_per_s: f64,
    /// CPU time of all threads of the process, user and system, divided by operations. Settling counts.
    pub(crate) cpu_us_per_op: f64,
    /// Latencies; of a whole batch in the workloads that write batches.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Bytes that the process sent to the disk, settling included, per byte of keys and values written; 0 for workloads
    /// that write nothing.
    pub(crate) write_amp: f64,
    /// Blocks of all files after settling.
    pub(crate) disk_mib: f64,
    /// The most anonymous memory seen during the workload; a memory map's pages are not in it.
    pub(crate) rss_mib: f64,
}

/// Totals of this process since it started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) written_bytes: u64,
}

impl Usage {
    pub(crate) fn now() -> Result<Usage> {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cpu = Duration::new(u64::try_from(cpu.tv_sec)?, u32::try_from(cpu.tv_nsec)?);
        let written_bytes = field(&std::fs::read_to_string("/proc/self/io")?, "write_bytes:")
            .ok_or("/proc/self/io does not say write_bytes: the kernel lacks task I/O accounting")?;
        Ok(Usage { cpu, written_bytes })
    }
}

/// Memory of this process, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Anonymous memory now.
    pub(crate) anonymous_bytes: u64,
    /// The most memory ever resident, pages of mapped files included.
    pub(crate) peak_resident_bytes: u64,
}

impl Memory {
    pub(crate) fn now() -> Result<Memory> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let kib = |name| field(&status, name).ok_or(format!("/proc/self/status does not say {name}"));
        Ok(Memory { anonymous_bytes: kib("RssAnon:")? * 1024, peak_resident_bytes: kib("VmHWM:")? * 1024 })
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Bytes of disk that the files below `directory` occupy: allocated blocks, so that holes and preallocation count as
/// what they are. Files that vanish meanwhile count as gone.
pub(crate) fn disk_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of a JSON line are an interface: plots and comparisons over time read them.
    #[test]
    fn a_json_line_has_exactly_the_promised_keys() {
        let row = Row {
            engine: "ferris".into(),
            workload: "fillseq".into(),
            ops_per_s: 1.0,
            cpu_us_per_op: 2.0,
            p50_us: 3.0,
            p99_us: 4.0,
            p999_us: 5.0,
            write_amp: 6.0,
            disk_mib: 7.0,
            rss_mib: 8.0,
        };
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            "{\"engine\":\"ferris\",\"workload\":\"fillseq\",\"ops_per_s\":1.0,\"cpu_us_per_op\":2.0,\"p50_us\":3.0,\
             \"p99_us\":4.0,\"p999_us\":5.0,\"write_amp\":6.0,\"disk_mib\":7.0,\"rss_mib\":8.0}"
        );
    }

    /// Writing and computing show in the totals, and files in the disk usage.
    #[test]
    fn usage_grows_with_use() {
        let directory = tempfile::tempdir().unwrap();
        let before = Usage::now().unwrap();
        std::fs::create_dir(directory.path().join("below")).unwrap();
        std::fs::write(directory.path().join("below/file"), vec![1_u8; 1 << 20]).unwrap();
        let mut sum = 0_u64;
        for i in 0..5_000_000_u64 {
            sum = std::hint::black_box(sum ^ i);
        }
        let after = Usage::now().unwrap();
        assert!(after.cpu > before.cpu);
        assert!(after.written_bytes >= before.written_bytes);
        let memory = Memory::now().unwrap();
        assert!(memory.anonymous_bytes > 0 && memory.peak_resident_bytes >= memory.anonymous_bytes);
        std::fs::File::open(directory.path().join("below/file")).unwrap().sync_all().unwrap();
        assert!(disk_bytes(directory.path()).unwrap() >= 1 << 20);
    }
}
