//! A memory limit for a child, page cache included: a cgroup.
//!
//! No resource limit can stand in for it, because `RLIMIT_DATA` and its kin do not count the page cache, which is what
//! "larger than memory" is about. So where no cgroup may be created, a limit that is already there is used, and without
//! one the suite refuses to run and says how to get one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::Result;

/// A limit that holds for every process whose id is written to [`MemoryLimit::processes_file`].
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    /// `None` if this process, and so its children, already runs under such a limit.
    directory: Option<PathBuf>,
}

impl MemoryLimit {
    /// A limit of `bytes`, below this process's own cgroup so that outer limits keep holding.
    pub(crate) fn new(bytes: u64) -> Result<MemoryLimit> {
        let memberships = std::fs::read_to_string("/proc/self/cgroup")?;
        let (hierarchy, limit_file) = memory_hierarchy(&memberships)
            .ok_or("no memory cgroup is mounted below /sys/fs/cgroup, which a memory limit needs")?;
        let own_limit = std::fs::read_to_string(hierarchy.join(limit_file)).ok();
        if own_limit.and_then(|text| text.trim().parse::<u64>().ok()).is_some_and(|own| own <= bytes) {
            return Ok(MemoryLimit { directory: None });
        }
        // In cgroup v2 a group with processes cannot pass its controllers on, so a sibling is made there.
        let siblings = hierarchy.parent().map(Path::to_path_buf);
        let mut failure = String::new();
        for parent in std::iter::once(hierarchy.clone()).chain(siblings) {
            let directory = parent.join(format!("ferrisdb-bench-{}", std::process::id()));
            match create(&directory, limit_file, bytes) {
                Ok(()) => return Ok(MemoryLimit { directory: Some(directory) }),
                Err(error) => {
                    // It may not exist, or be a group without the controller: both leave nothing behind.
                    drop(std::fs::remove_dir(&directory));
                    failure = format!("{}: {error}", directory.display());
                }
            }
        }
        let mib = bytes >> 20;
        Err(format!(
            "cannot create a memory cgroup ({failure}). Run the benchmark under a limit of its own instead: \
             systemd-run --user --scope -p MemoryMax={mib}M -p MemorySwapMax=0 ferrisdb-bench …"
        )
        .into())
    }

    /// Where a process writes its id to come under the limit.
    pub(crate) fn processes_file(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join("cgroup.procs"))
    }
}

fn create(directory: &Path, limit_file: &str, bytes: u64) -> std::io::Result<()> {
    std::fs::create_dir(directory)?;
    if !directory.join(limit_file).exists() {
        return Err(std::io::Error::other("the memory controller is not passed on to it"));
    }
    std::fs::write(directory.join(limit_file), bytes.to_string())?;
    // Swap would be memory by another name. The files are missing where the kernel does not account for swap.
    for (file, value) in [("memory.swap.max", "0".to_owned()), ("memory.memsw.limit_in_bytes", bytes.to_string())] {
        let path = directory.join(file);
        if path.exists() {
            std::fs::write(path, value)?;
        }
    }
    Ok(())
}

/// The directory of this process's memory cgroup, and the name of the file with its limit.
fn memory_hierarchy(memberships: &str) -> Option<(PathBuf, &'static str)> {
    memberships.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?.trim_start_matches('/'));
        let (mount, limit_file) = if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else if controllers.is_empty() && Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "memory.max")
        } else {
            return None;
        };
        // In a container the path may be that of the host; the mount's root is then this process's group.
        let own = Path::new(mount).join(path);
        Some((if own.exists() { own } else { PathBuf::from(mount) }, limit_file))
    })
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let Some(directory) = &self.directory else { return };
        // The kernel lets go of a group a moment after its last process has ended.
        for _ in 0..50 {
            if std::fs::remove_dir(directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("ferrisdb-bench: cannot remove {}", directory.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The memory controller is found among the lines of version 1, whatever it shares a line with.
    #[test]
    fn the_memory_hierarchy_of_version_1_is_found() {
        let (directory, file) = memory_hierarchy("9:name=systemd:/\n4:cpu,memory:/no/such/group\n0::/\n").unwrap();
        assert_eq!((directory, file), (PathBuf::from("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"));
        assert_eq!(memory_hierarchy("3:cpuset:/\n"), None);
    }
}
