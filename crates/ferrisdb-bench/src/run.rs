//! One process's share: prepare a fresh directory, measure the workloads of one group, report each.
//!
//! # What counts
//! - ops/s: operations of all measured threads between the moment they start together and the end of the last one.
//! - CPU and bytes written: of the whole process, until the engine has settled, so that work put off is paid for.
//! - One client that syncs each put is moved from CPU to CPU: on the one that takes the disk's interrupts a sync costs about two thirds of what
//!   it costs elsewhere, and where the scheduler happens to leave a thread would decide the comparison.
//! - Latency: every operation where operations are slow (synced, batched, or looked at for stalls), else one in 16.

use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use crate::clients::{Client, Dataset};
use crate::engine::{Durability, EngineConfig, Result};
use crate::engines::EngineName;
use crate::measure::{Memory, Row, Usage, disk_bytes};
use crate::workload::{Group, Workload};

/// What a child is told to do, as JSON on its command line.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Job {
    pub(crate) engine: EngineName,
    pub(crate) config: EngineConfig,
    pub(crate) group: Group,
    /// All of that group.
    pub(crate) workloads: Vec<Workload>,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    pub(crate) verbose: bool,
    /// The file to write the process id to, which puts it under the memory limit.
    pub(crate) memory_limit: Option<PathBuf>,
}

/// What a child reports, one JSON line each.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Measured {
    pub(crate) row: Row,
    /// For overwrite-stall: the longest put that began in each second, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) longest_put_ms: Option<Vec<f64>>,
}

/// Reads of the audit after each workload that writes.
const AUDIT_READS: u64 = 5000;

/// Does all of `job` and hands each row to `report` when it is measured.
pub(crate) fn run(job: &Job, report: &mut dyn FnMut(Measured) -> Result<()>) -> Result<()> {
    if let Some(file) = &job.memory_limit {
        std::fs::write(file, std::process::id().to_string())?;
    }
    let engine = job.engine.open(&job.config)?;
    let mut runner = Runner { job, dataset: Dataset::new(engine.as_ref(), job.keys, job.value_bytes), report };
    runner.prepare()?;
    for &workload in &job.workloads {
        if workload != Workload::Fillrandom {
            runner.measure(workload)?;
        }
    }
    if job.verbose {
        eprintln!("{} after {:?}:\n{}", job.engine.as_str(), job.group, engine.statistics());
        eprintln!("peak resident memory {} MiB", Memory::now()?.peak_resident_bytes >> 20);
    }
    Ok(())
}

struct Runner<'a> {
    job: &'a Job,
    dataset: Dataset<'a>,
    report: &'a mut dyn FnMut(Measured) -> Result<()>,
}

/// When a workload ends: after a time, or when the clients have nothing left to do.
#[derive(Clone, Copy)]
struct Plan {
    seconds: Option<f64>,
    /// One operation in this many has its latency taken; a power of two.
    sample_every: u64,
    longest_per_second: bool,
    /// Each client runs on every CPU for equal times.
    every_cpu: bool,
}

impl Plan {
    const TO_THE_END: Plan = Plan { seconds: None, sample_every: 1, longest_per_second: false, every_cpu: false };
}

impl Runner<'_> {
    fn prepare(&mut self) -> Result<()> {
        match self.job.group {
            Group::Fillseq | Group::Durable => return Ok(()),
            // Fillrandom is this group's preparation: measured anyway, reported if it was asked for.
            Group::Read => self.measure(Workload::Fillrandom)?,
            Group::Ycsb | Group::Write | Group::Tombstones | Group::Stall => {
                drive(self.dataset.load(self.job.threads, false), Plan::TO_THE_END)?;
                self.settle()?;
            }
        }
        if self.job.group == Group::Tombstones {
            self.dataset.dig();
            drive(self.dataset.mass_delete(self.job.threads), Plan::TO_THE_END)?;
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.dataset.engine.settle()?;
        // The kernel's own write-back of what was written would otherwise disturb the next workload.
        rustix::fs::sync();
        Ok(())
    }

    fn measure(&mut self, workload: Workload) -> Result<()> {
        let timed = Plan { seconds: Some(self.job.seconds), sample_every: 16, ..Plan::TO_THE_END };
        let every = Plan { sample_every: 1, ..timed };
        let plan = match workload {
            Workload::Fillseq | Workload::Fillrandom => Plan::TO_THE_END,
            Workload::DurablePut1 => Plan { every_cpu: true, ..every },
            Workload::DurablePut8 | Workload::DurableBatch8 => every,
            Workload::OverwriteStall => Plan { longest_per_second: true, ..every },
            _ => timed,
        };
        if workload.is_read_only() {
            drive(self.clients(workload), Plan { seconds: Some(self.job.seconds / 5.0), ..timed })?;
        }
        let before = Usage::now()?;
        let driven = drive(self.clients(workload), plan)?;
        if !workload.is_read_only() {
            self.dataset.engine.settle()?;
        }
        let after = Usage::now()?;
        if !workload.is_read_only() {
            rustix::fs::sync();
            self.dataset.audit(AUDIT_READS)?;
        }
        if !self.job.workloads.contains(&workload) {
            return Ok(());
        }
        let measured = self.measured(workload, &driven, &before, &after)?;
        (self.report)(measured)
    }

    fn clients(&self, workload: Workload) -> Vec<Client<'_>> {
        let (dataset, threads) = (&self.dataset, self.job.threads);
        match workload {
            Workload::Fillseq => dataset.load(threads, true),
            Workload::Fillrandom => dataset.load(threads, false),
            Workload::Readrandom => dataset.read_random(threads),
            Workload::Readzipf => dataset.read_zipf(threads),
            Workload::Readmissing => dataset.read_missing(threads),
            Workload::Seek10 => dataset.seek(threads, 10),
            Workload::Seek100 => dataset.seek(threads, 100),
            Workload::Readwhilewriting => dataset.read_while_writing(threads),
            Workload::YcsbA
            | Workload::YcsbB
            | Workload::YcsbC
            | Workload::YcsbD
            | Workload::YcsbE
            | Workload::YcsbF => dataset.ycsb(threads, workload.mix().expect("each YCSB workload has a mix")),
            Workload::Overwrite | Workload::OverwriteStall => dataset.overwrite(threads, Durability::Buffered),
            Workload::Deletes => dataset.delete_half(threads),
            Workload::Seek10Tombstones => dataset.seek_into_holes(threads, 10),
            Workload::DurablePut1 => dataset.overwrite(1, Durability::Sync),
            Workload::DurablePut8 => dataset.overwrite(8, Durability::Sync),
            Workload::DurableBatch8 => dataset.overwrite_batches(8, Durability::Sync),
        }
    }

    fn measured(&self, workload: Workload, driven: &Driven, before: &Usage, after: &Usage) -> Result<Measured> {
        let operations = driven.operations.max(1) as f64;
        let latency_us = |quantile| round(driven.latency.value_at_quantile(quantile) as f64 / 1000.0);
        let write_amp = if workload.is_read_only() || driven.user_bytes == 0 {
            0.0
        } else {
            (after.written_bytes - before.written_bytes) as f64 / driven.user_bytes as f64
        };
        let mib = |bytes: u64| round(bytes as f64 / (1 << 20) as f64);
        let row = Row {
            engine: self.job.engine.as_str().to_owned(),
            workload: workload.name(),
            ops_per_s: round(driven.operations as f64 / driven.elapsed.as_secs_f64()),
            cpu_us_per_op: round((after.cpu - before.cpu).as_secs_f64() * 1e6 / operations),
            p50_us: latency_us(0.5),
            p99_us: latency_us(0.99),
            p999_us: latency_us(0.999),
            write_amp: round(write_amp),
            disk_mib: mib(disk_bytes(&self.job.config.directory)?),
            rss_mib: mib(driven.peak_anonymous_bytes),
        };
        let longest_put_ms =
            driven.longest_ns.as_ref().map(|seconds| seconds.iter().map(|&ns| round(ns as f64 / 1e6)).collect());
        Ok(Measured { row, longest_put_ms })
    }
}

/// Three decimals are more than the measurement is worth, and keep JSON lines readable.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// What all clients together did.
struct Driven {
    operations: u64,
    user_bytes: u64,
    elapsed: Duration,
    /// In nanoseconds.
    latency: Histogram<u64>,
    longest_ns: Option<Vec<u64>>,
    peak_anonymous_bytes: u64,
}

impl Driven {
    fn new() -> Result<Driven> {
        Ok(Driven {
            operations: 0,
            user_bytes: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new(3)?,
            longest_ns: None,
            peak_anonymous_bytes: 0,
        })
    }

    fn add(&mut self, other: Driven) -> Result<()> {
        self.operations += other.operations;
        self.user_bytes += other.user_bytes;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.add(other.latency)?;
        if let Some(theirs) = other.longest_ns {
            let ours = self.longest_ns.get_or_insert_default();
            ours.resize(ours.len().max(theirs.len()), 0);
            ours.iter_mut().zip(theirs).for_each(|(our, their)| *our = their.max(*our));
        }
        Ok(())
    }
}

/// Runs the clients, one thread each, until the plan or the work is over, and watches the memory meanwhile.
fn drive(clients: Vec<Client<'_>>, plan: Plan) -> Result<Driven> {
    let stop = AtomicBool::new(false);
    let measured_running = AtomicUsize::new(clients.iter().filter(|client| client.measured).count());
    let start_line = Barrier::new(clients.len() + 1);
    std::thread::scope(|scope| {
        let (stop, running, start_line) = (&stop, &measured_running, &start_line);
        let threads: Vec<_> = clients
            .into_iter()
            .map(|client| {
                scope.spawn(move || {
                    let mut end = EndOfClient { measured: client.measured, failed: true, running, stop };
                    start_line.wait();
                    let result = drive_one(client, plan, stop);
                    end.failed = result.is_err();
                    result
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        let mut peak_anonymous_bytes = 0;
        while !stop.load(Ordering::Relaxed) {
            peak_anonymous_bytes = peak_anonymous_bytes.max(anonymous_bytes_now());
            let left = plan.seconds.map_or(f64::INFINITY, |seconds| seconds - start.elapsed().as_secs_f64());
            if left <= 0.0 {
                stop.store(true, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(Duration::from_secs_f64(left.min(0.05)));
        }
        let mut sum = Driven::new()?;
        for thread in threads {
            match thread.join() {
                Ok(result) => sum.add(result?)?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        sum.peak_anonymous_bytes = peak_anonymous_bytes.max(anonymous_bytes_now());
        Ok(sum)
    })
}

fn anonymous_bytes_now() -> u64 {
    // A sample that fails is a sample less: the threads that are running must not be left without an end.
    Memory::now().map_or(0, |memory| memory.anonymous_bytes)
}

/// Ends the others when a client fails or panics, or when it was the last measured one.
struct EndOfClient<'a> {
    measured: bool,
    failed: bool,
    running: &'a AtomicUsize,
    stop: &'a AtomicBool,
}

impl Drop for EndOfClient<'_> {
    fn drop(&mut self) {
        let was_last = self.measured && self.running.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.failed || was_last {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Moves the thread that asks it from CPU to CPU.
struct CpuTurns {
    cpus: Vec<usize>,
    turn: Option<usize>,
}

impl CpuTurns {
    const TURN: Duration = Duration::from_millis(50);

    fn new() -> CpuTurns {
        // Where it may not be asked or set, the thread stays where the scheduler has it.
        let allowed = rustix::thread::sched_getaffinity(None).ok();
        let cpus = allowed.map_or(Vec::new(), |set| (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect());
        CpuTurns { cpus, turn: None }
    }

    fn go_on_at(&mut self, elapsed: Duration) {
        let turn = usize::try_from(elapsed.as_millis() / CpuTurns::TURN.as_millis()).unwrap_or(0);
        if self.cpus.len() > 1 && self.turn != Some(turn) {
            self.turn = Some(turn);
            let mut only = CpuSet::new();
            only.set(self.cpus[turn % self.cpus.len()]);
            if rustix::thread::sched_setaffinity(None, &only).is_err() {
                self.cpus.clear();
            }
        }
    }
}

fn drive_one(mut client: Client<'_>, plan: Plan, stop: &AtomicBool) -> Result<Driven> {
    let mut driven = Driven::new()?;
    let start = Instant::now();
    let mut longest_ns = Vec::new();
    let mut steps = 0_u64;
    let mut turns = plan.every_cpu.then(CpuTurns::new);
    while !stop.load(Ordering::Relaxed) {
        if let Some(turns) = &mut turns
            && steps.is_multiple_of(16)
        {
            turns.go_on_at(start.elapsed());
        }
        let sampled_at = (client.measured && steps & (plan.sample_every - 1) == 0).then(Instant::now);
        let Some(step) = (client.step)()? else { break };
        if let Some(at) = sampled_at {
            let nanos = u64::try_from(at.elapsed().as_nanos())?;
            driven.latency.record(nanos)?;
            if plan.longest_per_second {
                let second = usize::try_from((at - start).as_secs())?;
                if longest_ns.len() <= second {
                    longest_ns.resize(second + 1, 0);
                }
                longest_ns[second] = nanos.max(longest_ns[second]);
            }
        }
        steps += 1;
        driven.user_bytes += step.user_bytes;
        if client.measured {
            driven.operations += step.operations;
        }
    }
    if client.measured {
        driven.elapsed = start.elapsed();
    }
    driven.longest_ns = plan.longest_per_second.then_some(longest_ns);
    Ok(driven)
}

#[cfg(test)]
mod tests;
