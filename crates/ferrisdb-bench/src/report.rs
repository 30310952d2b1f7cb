//! The results as Markdown: ratios of throughput to the base engine, then the other columns as they are.

use std::fmt::Write;

use crate::measure::Row;

/// Everything about one set of rows, in Markdown.
pub(crate) fn markdown(rows: &[Row], settings: &str, command: &str, runs: u32, memory_bound_bytes: u64) -> String {
    let engines = engines(rows);
    let Some(base) = base(rows) else { return "Nothing was measured.\n".to_owned() };
    let memory_bound_mib = memory_bound_bytes as f64 / (1 << 20) as f64;
    let mut out = String::new();
    let median = if runs > 1 { format!("medians of {runs} runs") } else { "one run".to_owned() };
    line(&mut out, &format!("{settings}; {median}. Made by:\n\n```sh\n{command}\n```\n"));
    line(&mut out, &format!("### Throughput: ops/s of {base}, ratios to it\n"));
    table(&mut out, &engines, rows, |engine, row, all| {
        let base_row = all.iter().find(|other| other.engine == base);
        let best = all.iter().all(|other| other.ops_per_s <= row.ops_per_s);
        let cell = match base_row {
            Some(base_row) if engine != base => ratio(row.ops_per_s / base_row.ops_per_s),
            _ => short(row.ops_per_s),
        };
        if best { format!("**{cell}**") } else { cell }
    });
    line(&mut out, "\n### CPU µs per operation, all threads, settling included\n");
    table(&mut out, &engines, rows, |_, row, all| {
        let best = all.iter().all(|other| other.cpu_us_per_op >= row.cpu_us_per_op);
        let cell = micros(row.cpu_us_per_op);
        if best { format!("**{cell}**") } else { cell }
    });
    line(&mut out, "\n### Latency in µs: p50 / p99 / p99.9\n");
    table(&mut out, &engines, rows, |_, row, _| {
        format!("{} / {} / {}", micros(row.p50_us), micros(row.p99_us), micros(row.p999_us))
    });
    line(&mut out, "\n### Write amplification · disk after settling, MiB · peak anonymous memory, MiB\n");
    table(&mut out, &engines, rows, |_, row, _| {
        let write_amp = if row.write_amp > 0.0 { format!("{:.2}", row.write_amp) } else { "–".to_owned() };
        let breach = if row.rss_mib > memory_bound_mib { " (!)" } else { "" };
        format!("{write_amp} · {:.0} · {:.0}{breach}", row.disk_mib, row.rss_mib)
    });
    line(
        &mut out,
        &format!(
            "\nAnonymous memory, the most of all rows, beside write buffers + cache + 30 % = {memory_bound_mib:.0} MiB:"
        ),
    );
    for engine in &engines {
        let of_engine = rows.iter().filter(|row| row.engine == *engine);
        let Some(most) = of_engine.max_by(|a, b| a.rss_mib.total_cmp(&b.rss_mib)) else { continue };
        let verdict = if most.rss_mib > memory_bound_mib { "**over it**" } else { "within it" };
        line(&mut out, &format!("- {engine}: {:.0} MiB in {}, {verdict}", most.rss_mib, most.workload));
    }
    out
}

/// The longest put of each second of overwrite-stall, in Markdown.
pub(crate) fn longest_puts(engines: &[(String, Vec<f64>)]) -> String {
    let mut out = String::from(
        "\n### Longest put of each second\n\n\
         | engine | seconds | longest, ms | in second | seconds with one over 100 ms | over 1 s |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for (engine, seconds) in engines {
        let (second, longest) =
            seconds.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
        let over = |limit: f64| seconds.iter().filter(|&&ms| ms > limit).count();
        line(
            &mut out,
            &format!("| {engine} | {} | {longest:.1} | {second} | {} | {} |", seconds.len(), over(100.0), over(1000.0)),
        );
    }
    out
}

/// The engine that ratios are to: RocksDB, or without it the first one.
pub(crate) fn base(rows: &[Row]) -> Option<&str> {
    let rocksdb = rows.iter().find(|row| row.engine == "rocksdb");
    rocksdb.or(rows.first()).map(|row| row.engine.as_str())
}

/// The engines, the base first.
pub(crate) fn engines(rows: &[Row]) -> Vec<&str> {
    let mut engines: Vec<&str> = base(rows).into_iter().collect();
    for row in rows {
        if !engines.contains(&row.engine.as_str()) {
            engines.push(&row.engine);
        }
    }
    engines
}

/// The workloads in the order of the rows.
pub(crate) fn workloads(rows: &[Row]) -> Vec<&str> {
    let mut workloads: Vec<&str> = Vec::new();
    for row in rows {
        if !workloads.contains(&row.workload.as_str()) {
            workloads.push(&row.workload);
        }
    }
    workloads
}

/// One line per workload, one column per engine; `cell` gets the engine, its row, and all rows of the workload.
fn table(out: &mut String, engines: &[&str], rows: &[Row], cell: impl Fn(&str, &Row, &[&Row]) -> String) {
    line(out, &format!("| | {} |", engines.join(" | ")));
    line(out, &format!("|---|{}", "--:|".repeat(engines.len())));
    for workload in workloads(rows) {
        let all: Vec<&Row> = rows.iter().filter(|row| row.workload == workload).collect();
        let cells: Vec<String> = engines
            .iter()
            .map(|&engine| {
                all.iter().find(|row| row.engine == engine).map_or(String::new(), |row| cell(engine, row, &all))
            })
            .collect();
        line(out, &format!("| {workload} | {} |", cells.join(" | ")));
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a string cannot fail");
}

/// Three digits: 1.41M, 271k, 38.2.
pub(crate) fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v >= 999_500.0 => (v / 1e6, "M"),
        v if v >= 999.5 => (v / 1e3, "k"),
        v => (v, ""),
    };
    format!("{}{unit}", three_digits(scaled))
}

/// As many decimals as differences of a per cent need.
pub(crate) fn ratio(value: f64) -> String {
    if value.is_finite() { three_digits(value) } else { "–".to_owned() }
}

fn micros(value: f64) -> String {
    if value < 0.995 { format!("{value:.2}") } else { three_digits(value) }
}

fn three_digits(value: f64) -> String {
    match value {
        v if v >= 99.5 => format!("{v:.0}"),
        v if v >= 9.95 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(engine: &str, workload: &str, ops_per_s: f64, cpu_us_per_op: f64) -> Row {
        Row {
            engine: engine.into(),
            workload: workload.into(),
            ops_per_s,
            cpu_us_per_op,
            p50_us: 1.5,
            p99_us: 12.0,
            p999_us: 1234.0,
            write_amp: 2.0,
            disk_mib: 128.4,
            rss_mib: 300.0,
        }
    }

    /// An engine that takes more memory than it was given stands out, in its row and below the table.
    #[test]
    fn memory_over_the_bound_is_flagged() {
        let rows = [row("ferris", "fillseq", 1.0, 1.0), Row { rss_mib: 301.0, ..row("lmdb", "fillseq", 1.0, 1.0) }];
        let text = markdown(&rows, "suite A", "cargo run", 1, 300 << 20);
        for expected in
            ["128 · 300 |", "128 · 301 (!) |", "300 MiB in fillseq, within it", "301 MiB in fillseq, **over it**"]
        {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }

    /// Ratios are to RocksDB wherever it stands in the list, the best of a line is bold, and a gap stays a gap.
    #[test]
    fn the_table_has_ratios_to_rocksdb() {
        let rows = [
            row("ferris", "fillseq", 2_000_000.0, 0.5),
            row("rocksdb", "fillseq", 1_000_000.0, 1.0),
            row("lmdb", "fillseq", 250_000.0, 4.0),
            row("ferris", "readrandom", 150_000.0, 6.25),
            row("rocksdb", "readrandom", 300_000.0, 5.0),
        ];
        let text = markdown(&rows, "suite A", "cargo run", 3, 400 << 20);
        for expected in [
            "suite A; medians of 3 runs. Made by:",
            "| | rocksdb | ferris | lmdb |\n|---|--:|--:|--:|",
            "| fillseq | 1.00M | **2.00** | 0.25 |",
            "| readrandom | **300k** | 0.50 |  |",
            "| fillseq | 1.00 | **0.50** | 4.00 |",
            "| readrandom | 1.50 / 12.0 / 1234 | 1.50 / 12.0 / 1234 |  |",
            "2.00 · 128 · 300",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [1_406_000.0, 999_700.0, 271_234.0, 1000.0, 38.24, 9.96].map(short);
        assert_eq!(shown, ["1.41M", "1.00M", "271k", "1.00k", "38.2", "10.0"]);
        assert_eq!(ratio(f64::INFINITY), "–");
    }

    /// The second with the longest put is named, and stalls are counted by how bad they are.
    #[test]
    fn stalls_are_counted() {
        let text = longest_puts(&[("ferris".into(), vec![1.0, 1500.0, 120.0])]);
        assert!(text.contains("| ferris | 3 | 1500.0 | 1 | 2 | 1 |"), "{text}");
    }
}
