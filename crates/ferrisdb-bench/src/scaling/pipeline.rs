//! The commit pipeline as a model of queues: coordinator, resolvers, log groups, with costs that were measured.
//!
//! Commits arrive at random (a Poisson process) and wait for a place in a batch. A batch takes what has come while the one before it was being made, as the
//! coordinator does; it costs the coordinator and the busiest resolver processor time, each group a transfer to two followers and two of three
//! syncs. Batches overlap, up to so many in flight, and end in order. What the model leaves out: storage servers (they follow), clients, other work on the machines.

use std::collections::VecDeque;

use ferrisdb_core::{Random, SplitMix64};

use super::groups::{Groups, quantile};

/// Batches that may be under way: the coordinator's default.
const IN_FLIGHT: usize = 4;
/// Commits of the largest batch.
const BATCH_MAX: usize = 4096;
/// Commits of one run of the model.
const COMMITS: usize = 200_000;
/// A pipeline keeps up if one commit in a hundred waits no longer.
const P99_MAX_US: f64 = 20_000.0;

/// What things cost, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// Coordinator, for each commit, without the resolver.
    pub(super) coordinator_us: f64,
    /// Busiest resolver, for each commit.
    pub(super) resolver_us: f64,
    /// Bytes of a commit in the log.
    pub(super) commit_bytes: f64,
    /// Bytes a microsecond that a group's leader can send.
    pub(super) bytes_per_us: f64,
    pub(super) groups: Groups,
}

/// Latencies at one rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latencies {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl Pipeline {
    /// Commits at so many a second.
    pub(super) fn run(&self, per_second: f64) -> Latencies {
        let mut random = SplitMix64::new(13);
        let mut now = 0.0;
        let arrivals: Vec<f64> = (0..COMMITS)
            .map(|_| {
                let even = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
                now -= (1.0 - even).ln() * 1e6 / per_second;
                now
            })
            .collect();
        let (mut coordinator, mut resolvers, mut ended) = (0.0_f64, 0.0_f64, 0.0_f64);
        let mut disks = vec![0.0_f64; self.groups.groups];
        let one_group = Groups { groups: 1, ..self.groups.clone() };
        let mut in_flight: VecDeque<f64> = VecDeque::new();
        let mut latencies = Vec::with_capacity(COMMITS);
        while latencies.len() < COMMITS {
            let waiting = &arrivals[latencies.len()..];
            let mut begin = coordinator.max(waiting[0]);
            if in_flight.len() == IN_FLIGHT {
                begin = begin.max(in_flight.pop_front().expect("it is full"));
            }
            let taken = waiting.partition_point(|&arrival| arrival <= begin).clamp(1, BATCH_MAX);
            let commits = taken as f64;
            coordinator = begin + commits * self.coordinator_us;
            resolvers = resolvers.max(coordinator) + commits * self.resolver_us;
            let sent = 2.0 * commits * self.commit_bytes / self.groups.groups as f64 / self.bytes_per_us;
            for disk in &mut disks {
                // A group's disks take one batch after the other.
                *disk = disk.max(resolvers) + sent + one_group.batch(&mut random);
            }
            ended = disks.iter().copied().fold(ended, f64::max);
            in_flight.push_back(ended);
            latencies.extend(waiting[..taken].iter().map(|arrival| ended - arrival));
        }
        latencies.sort_by(f64::total_cmp);
        Latencies { p50_us: quantile(&latencies, 0.5), p99_us: quantile(&latencies, 0.99) }
    }

    /// The most commits a second that it keeps up with, to a fiftieth.
    pub(super) fn capacity(&self) -> f64 {
        let keeps_up = |rate: f64| self.run(rate).p99_us <= P99_MAX_US;
        let mut low = 100.0;
        let mut high = low;
        while keeps_up(high) && high < 1e9 {
            low = high;
            high *= 2.0;
        }
        while high / low > 1.02 {
            let middle = f64::midpoint(low, high);
            *(if keeps_up(middle) { &mut low } else { &mut high }) = middle;
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> Pipeline {
        let groups = Groups { syncs_us: vec![100.0], round_trip_us: 100.0, groups: 1 };
        Pipeline { coordinator_us: 2.0, resolver_us: 0.0, commit_bytes: 100.0, bytes_per_us: 1e9, groups }
    }

    /// What is slowest decides: the coordinator's processor, a resolver's, or the wire.
    #[test]
    fn the_slowest_part_decides() {
        let near = |rate: f64, expected: f64| assert!((rate / expected - 1.0).abs() < 0.1, "{rate}, not {expected}");
        near(pipeline().capacity(), 500_000.0);
        near(Pipeline { resolver_us: 5.0, ..pipeline() }.capacity(), 200_000.0);
        // Two copies of 100 bytes at 10 a microsecond: 20 µs a commit; two groups halve that.
        let wire = Pipeline { bytes_per_us: 10.0, ..pipeline() };
        near(wire.capacity(), 50_000.0);
        let two = Groups { groups: 2, ..wire.groups.clone() };
        near(Pipeline { groups: two, ..wire }.capacity(), 100_000.0);
    }

    /// With nobody else there a commit takes its own batch: costs, a round trip and a sync.
    #[test]
    fn alone() {
        let alone = pipeline().run(10.0);
        assert!((alone.p50_us - 202.0).abs() < 1.0, "{alone:?}");
    }
}
