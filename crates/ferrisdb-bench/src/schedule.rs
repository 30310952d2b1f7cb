//! The parent's share: which engine measures what and when, what is already known, and the medians.
//!
//! # Fairness
//! Engines take turns group by group, each in a process of its own with a directory of its own, and another one goes
//! first each time: what the machine does meanwhile hits all of them. Nothing else of the benchmark runs beside a child.
//!
//! # Invariants
//! - A record in the resume file stands for exactly one run of one workload by one engine under the same settings. A
//!   workload is measured again only if its record is missing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::EXIT_WRONG_READ;
use crate::engine::{EngineConfig, MEMTABLES, Result};
use crate::engines::EngineName;
use crate::measure::Row;
use crate::memory_limit::MemoryLimit;
use crate::run::{Job, Measured};
use crate::workload::{Group, Suite, Workload};

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) suite: Suite,
    /// The first is the one that ratios are to, if RocksDB is not among them.
    pub(crate) engines: Vec<EngineName>,
    pub(crate) threads: usize,
    pub(crate) runs: u32,
    pub(crate) resume: Option<PathBuf>,
    pub(crate) directory: PathBuf,
    pub(crate) verbose: bool,
}

/// One line of the resume file.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Record {
    settings: String,
    run: u32,
    #[serde(flatten)]
    row: Row,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longest_put_ms: Option<Vec<f64>>,
}

impl Plan {
    /// Says in one line what decides the numbers; records under other settings are not mixed in.
    pub(crate) fn settings(&self) -> String {
        let suite = &self.suite;
        let limit = suite.memory_limit_bytes.map_or(String::new(), |bytes| format!(", all in {} MiB", bytes >> 20));
        format!(
            "suite {}: {} keys × {} B, cache {} MiB, memtables {} MiB, {} threads, {} s{limit}",
            suite.name,
            suite.keys,
            suite.value_bytes,
            suite.cache_bytes >> 20,
            suite.write_buffer_bytes >> 20,
            self.threads,
            suite.seconds
        )
    }

    /// The most anonymous memory that an engine should have: write buffers + cache + 30 %.
    pub(crate) fn memory_bound_bytes(&self) -> u64 {
        (MEMTABLES * self.suite.write_buffer_bytes + self.suite.cache_bytes) / 10 * 13
    }

    /// The groups in order, each with its workloads in order.
    fn groups(&self) -> BTreeMap<Group, Vec<Workload>> {
        let mut groups: BTreeMap<Group, Vec<Workload>> = BTreeMap::new();
        for &workload in &self.suite.workloads {
            groups.entry(workload.group()).or_default().push(workload);
        }
        for workloads in groups.values_mut() {
            workloads.sort();
            workloads.dedup();
        }
        groups
    }

    /// Measures whatever is not in the resume file yet. Returns all records under these settings.
    ///
    /// # Errors
    /// A wrong read ends everything at once. Any other failure of an engine loses its group: the others go on, and
    /// the failures are returned in the second list.
    pub(crate) fn measure(&self) -> Result<(Vec<Record>, Vec<String>)> {
        let mut records = self.known()?;
        let mut failures = Vec::new();
        let groups = self.groups();
        for run in 1..=self.runs {
            for (turn, (group, workloads)) in groups.iter().enumerate() {
                for index in 0..self.engines.len() {
                    let first = turn + usize::try_from(run)?;
                    let engine = self.engines[(first + index) % self.engines.len()];
                    let missing: Vec<Workload> = workloads
                        .iter()
                        .copied()
                        .filter(|workload| !records.iter().any(|record| record.is(engine, *workload, run)))
                        .collect();
                    if missing.is_empty() {
                        continue;
                    }
                    eprintln!("run {run} of {}: {} {group:?}", self.runs, engine.as_str());
                    match self.measure_group(engine, *group, missing, run, &mut records)? {
                        Ok(()) => {}
                        Err(failure) => {
                            eprintln!("{failure}");
                            failures.push(failure);
                        }
                    }
                }
            }
        }
        Ok((records, failures))
    }

    fn measure_group(
        &self,
        engine: EngineName,
        group: Group,
        workloads: Vec<Workload>,
        run: u32,
        records: &mut Vec<Record>,
    ) -> Result<std::result::Result<(), String>> {
        let directory = self.directory.join(format!("{}-{}", engine.as_str(), std::process::id()));
        clear(&directory)?;
        std::fs::create_dir_all(&directory)?;
        // What the last child left to the kernel to write must not slow this one down.
        rustix::fs::sync();
        let limit = self.suite.memory_limit_bytes.map(MemoryLimit::new).transpose()?;
        let job = Job {
            engine,
            config: EngineConfig {
                directory: directory.clone(),
                cache_bytes: self.suite.cache_bytes,
                write_buffer_bytes: self.suite.write_buffer_bytes,
                durable: group == Group::Durable,
                larger_than_memory: limit.is_some(),
            },
            group,
            workloads,
            keys: self.suite.keys,
            value_bytes: self.suite.value_bytes,
            threads: self.threads,
            seconds: self.suite.seconds,
            verbose: self.verbose,
            memory_limit: limit.as_ref().and_then(MemoryLimit::processes_file),
        };
        let mut child = Command::new(std::env::current_exe()?)
            .arg("child")
            .arg(serde_json::to_string(&job)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().expect("the child's output was asked for");
        for line in BufReader::new(output).lines() {
            let measured: Measured = serde_json::from_str(&line?)?;
            eprintln!("  {}", describe(&measured.row));
            let record =
                Record { settings: self.settings(), run, row: measured.row, longest_put_ms: measured.longest_put_ms };
            self.remember(&record)?;
            records.push(record);
        }
        let status = child.wait()?;
        clear(&directory)?;
        if status.success() {
            return Ok(Ok(()));
        }
        let failure = format!("{} failed in {group:?}, run {run}: {status}", engine.as_str());
        if status.code() == Some(EXIT_WRONG_READ) { Err(failure.into()) } else { Ok(Err(failure)) }
    }

    fn known(&self) -> Result<Vec<Record>> {
        let Some(file) = &self.resume else { return Ok(Vec::new()) };
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(format!("{}: {error}", file.display()).into()),
        };
        let mut records = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let record: Record = serde_json::from_str(line)
                .map_err(|error| format!("{} line {}: {error}", file.display(), index + 1))?;
            let ours = self.engines.iter().any(|engine| engine.as_str() == record.row.engine)
                && self.suite.workloads.iter().any(|workload| workload.name() == record.row.workload);
            if record.settings == self.settings() && record.run <= self.runs && ours {
                records.push(record);
            }
        }
        Ok(records)
    }

    fn remember(&self, record: &Record) -> Result<()> {
        let Some(file) = &self.resume else { return Ok(()) };
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
        // One write, so that a run that is killed leaves whole lines.
        Ok(file.write_all(format!("{}\n", serde_json::to_string(record)?).as_bytes())?)
    }
}

impl Record {
    fn is(&self, engine: EngineName, workload: Workload, run: u32) -> bool {
        self.run == run && self.row.engine == engine.as_str() && self.row.workload == workload.name()
    }
}

/// One row per engine and workload: the median of each column over the runs, in the order of the workloads and engines.
pub(crate) fn medians(records: &[Record], plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    for workload in plan.groups().values().flatten() {
        for engine in &plan.engines {
            let of_all_runs: Vec<&Row> = records
                .iter()
                .map(|record| &record.row)
                .filter(|row| row.engine == engine.as_str() && row.workload == workload.name())
                .collect();
            if of_all_runs.is_empty() {
                continue;
            }
            let column = |value: fn(&Row) -> f64| median(of_all_runs.iter().map(|row| value(row)).collect());
            rows.push(Row {
                engine: engine.as_str().to_owned(),
                workload: workload.name(),
                ops_per_s: column(|row| row.ops_per_s),
                cpu_us_per_op: column(|row| row.cpu_us_per_op),
                p50_us: column(|row| row.p50_us),
                p99_us: column(|row| row.p99_us),
                p999_us: column(|row| row.p999_us),
                write_amp: column(|row| row.write_amp),
                disk_mib: column(|row| row.disk_mib),
                rss_mib: column(|row| row.rss_mib),
            });
        }
    }
    rows
}

/// The longest puts per second of each engine, from its last run.
pub(crate) fn longest_puts(records: &[Record]) -> Vec<(String, Vec<f64>)> {
    let mut longest: Vec<(String, Vec<f64>)> = Vec::new();
    for record in records {
        if let Some(seconds) = &record.longest_put_ms {
            longest.retain(|(engine, _)| *engine != record.row.engine);
            longest.push((record.row.engine.clone(), seconds.clone()));
        }
    }
    longest
}

/// The middle value; of an even count the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn clear(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", directory.display()).into())
        }
        _ => Ok(()),
    }
}

fn describe(row: &Row) -> String {
    format!(
        "{:<18} {:>12.0} ops/s  {:>8.2} µs CPU  p50 {:.1} p99 {:.1} p99.9 {:.1} µs  write amp {:.2}  disk {:.0} MiB  rss {:.0} MiB",
        row.workload,
        row.ops_per_s,
        row.cpu_us_per_op,
        row.p50_us,
        row.p99_us,
        row.p999_us,
        row.write_amp,
        row.disk_mib,
        row.rss_mib
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::SuiteName;

    fn plan(resume: Option<PathBuf>) -> Plan {
        Plan {
            suite: Suite { workloads: vec![Workload::Readrandom, Workload::Fillrandom], ..SuiteName::Smoke.suite() },
            engines: vec![EngineName::Memory],
            threads: 2,
            runs: 3,
            resume,
            directory: PathBuf::new(),
            verbose: false,
        }
    }

    fn record(plan: &Plan, run: u32, workload: Workload, ops_per_s: f64) -> Record {
        let row = Row {
            engine: "memory".into(),
            workload: workload.name(),
            ops_per_s,
            cpu_us_per_op: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            write_amp: 0.0,
            disk_mib: 0.0,
            rss_mib: 1.0,
        };
        Record { settings: plan.settings(), run, row, longest_put_ms: None }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![7.0]), 7.0);
    }

    /// One slow run of three does not show, and rows come in the order in which they are measured.
    #[test]
    fn rows_are_medians_in_order() {
        let plan = plan(None);
        let mut records = vec![record(&plan, 1, Workload::Readrandom, 5.0)];
        records.extend((1..=3).map(|run| record(&plan, run, Workload::Fillrandom, if run == 2 { 1.0 } else { 10.0 })));
        let rows: Vec<_> = medians(&records, &plan).into_iter().map(|row| (row.workload, row.ops_per_s)).collect();
        assert_eq!(rows, [("fillrandom".to_owned(), 10.0), ("readrandom".to_owned(), 5.0)]);
    }

    /// What was measured under the same settings is known again; what was measured under others is not.
    #[test]
    fn a_resume_file_gives_back_its_records() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(Some(directory.path().join("results.jsonl")));
        assert_eq!(plan.known().unwrap(), []);
        let ours = record(&plan, 2, Workload::Readrandom, 5.0);
        plan.remember(&ours).unwrap();
        plan.remember(&Record { settings: "others".into(), ..ours.clone() }).unwrap();
        assert_eq!(plan.known().unwrap(), [ours]);
        std::fs::write(plan.resume.as_ref().unwrap(), "{}\n").unwrap();
        assert!(plan.known().unwrap_err().to_string().contains("results.jsonl line 1"));
    }
}
