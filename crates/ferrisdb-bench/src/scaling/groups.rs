//! A batch that is durable when all of N log groups have it: how long that takes.
//!
//! A group has three replicas and a leader. The leader's own sync and those of the two followers, each a round trip away, go on at the same time; the
//! group has the batch when two of the three have synced it. The times of syncs are measured on this disk, one after another, then drawn at random.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use ferrisdb_core::{Random, SplitMix64};

use crate::engine::Result;

/// What is written before each sync: a batch of some dozens of small commits.
const SYNCED_BYTES: usize = 4096;
/// The file has its length from the beginning, as a segment of the log has.
const FILE_BYTES: u64 = 16 << 20;

/// Microseconds that syncs took.
pub(super) fn measure_syncs(directory: &Path, count: u64) -> Result<Vec<f64>> {
    let mut file = File::create(directory.join("syncs"))?;
    std::io::copy(&mut std::io::repeat(0).take(FILE_BYTES), &mut file)?;
    file.sync_all()?;
    let mut taken = Vec::new();
    for number in 0..count {
        let begin = Instant::now();
        file.write_all_at(&[7; SYNCED_BYTES], number * SYNCED_BYTES as u64 % FILE_BYTES)?;
        file.sync_data()?;
        taken.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(taken)
}

/// Draws how long a batch takes.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    /// Not empty.
    pub(super) syncs_us: Vec<f64>,
    pub(super) round_trip_us: f64,
    pub(super) groups: usize,
}

impl Groups {
    fn sync(&self, random: &mut SplitMix64) -> f64 {
        let at = random.below(self.syncs_us.len() as u64);
        self.syncs_us[usize::try_from(at).expect("below a length")]
    }

    /// Until two of the three replicas of one group have it.
    fn group(&self, random: &mut SplitMix64) -> f64 {
        let follower = |random: &mut SplitMix64| self.round_trip_us + self.sync(random);
        let mut taken = [self.sync(random), follower(random), follower(random)];
        taken.sort_by(f64::total_cmp);
        taken[1]
    }

    /// Until all groups have it.
    pub(super) fn batch(&self, random: &mut SplitMix64) -> f64 {
        (0..self.groups).map(|_| self.group(random)).fold(0.0, f64::max)
    }

    /// The times of so many batches, sorted.
    pub(super) fn sorted(&self, batches: u64) -> Vec<f64> {
        let mut random = SplitMix64::new(12);
        let mut taken: Vec<f64> = (0..batches).map(|_| self.batch(&mut random)).collect();
        taken.sort_by(f64::total_cmp);
        taken
    }
}

/// The smallest value that `part` of the sorted ones do not exceed.
pub(super) fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let at = (part * (sorted.len() - 1) as f64).round() as usize;
    sorted[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second of three decides, and the slowest of all groups.
    #[test]
    fn a_quorum_and_all_groups() {
        let mut syncs_us = vec![100.0; 99];
        syncs_us.push(10_000.0);
        let groups = |groups| Groups { syncs_us: syncs_us.clone(), round_trip_us: 50.0, groups };
        let one = groups(1).sorted(20_000);
        assert_eq!(quantile(&one, 0.5), 150.0, "a follower's");
        assert_eq!(quantile(&one, 0.99), 150.0, "one slow disk of three is not waited for");
        let many = groups(32).sorted(20_000);
        assert_eq!(quantile(&many, 0.5), 150.0);
        assert!(quantile(&many, 0.999) > 10_000.0, "two slow disks in one of 32 groups");
    }
}
