//! The ratios as a picture: one line of dots per workload on a logarithmic axis, as SVG without any library.

use std::fmt::Write;

use crate::measure::Row;
use crate::report::{base, engines, ratio, short, workloads};

const LEFT: f64 = 170.0;
const PLOT_WIDTH: f64 = 640.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 78.0;
const ROW_HEIGHT: f64 = 26.0;
const BOTTOM: f64 = 44.0;

/// Colours that stay apart for most colour-blind readers (Okabe and Ito), the base in black.
const COLOURS: [&str; 6] = ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"];

/// Throughput of every engine divided by the base engine's, per workload.
pub(crate) fn svg(rows: &[Row], settings: &str) -> String {
    let (engines, workloads) = (engines(rows), workloads(rows));
    let base = base(rows).unwrap_or_default();
    let find = |engine: &str, workload: &str| {
        rows.iter().find(|row| row.engine == engine && row.workload == workload).filter(|row| row.ops_per_s > 0.0)
    };
    let ratio_of =
        |engine: &str, workload: &str| Some(find(engine, workload)?.ops_per_s / find(base, workload)?.ops_per_s);
    let ratios =
        || engines.iter().flat_map(|engine| workloads.iter().filter_map(|workload| ratio_of(engine, workload)));
    // Whole powers of ten around all ratios, one at least on each side of 1.
    let low = ratios().fold(0.1, f64::min).log10().floor();
    let high = ratios().fold(10.0, f64::max).log10().ceil();
    let x = |ratio: f64| LEFT + PLOT_WIDTH * (ratio.log10() - low) / (high - low);
    let (width, height) = (LEFT + PLOT_WIDTH + RIGHT, TOP + ROW_HEIGHT * workloads.len() as f64 + BOTTOM);
    let bottom = height - BOTTOM;

    let mut out = String::new();
    let mut put = |text: String| writeln!(out, "{text}").expect("writing to a string cannot fail");
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
    ));
    put(format!("<text x=\"12\" y=\"22\" font-size=\"15\">Throughput, relative to {}</text>", escape(base)));
    put(format!("<text x=\"12\" y=\"40\" fill=\"#555555\">{}</text>", escape(settings)));
    for (index, engine) in engines.iter().enumerate() {
        let at = 18.0 + 95.0 * index as f64;
        put(format!("<circle cx=\"{at:.1}\" cy=\"57\" r=\"5\" fill=\"{}\"/>", COLOURS[index % COLOURS.len()]));
        put(format!("<text x=\"{:.1}\" y=\"61\">{}</text>", at + 9.0, escape(engine)));
    }
    let mut power = low;
    while power <= high {
        let tick = 10_f64.powf(power);
        let colour = if power == 0.0 { "#000000" } else { "#cccccc" };
        put(format!("<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{bottom}\" stroke=\"{colour}\"/>", x(tick)));
        put(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}×</text>", x(tick), bottom + 18.0));
        power += 1.0;
    }
    for (line, workload) in workloads.iter().enumerate() {
        let y = TOP + ROW_HEIGHT * (line as f64 + 0.5);
        put(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            y + 4.0,
            escape(workload)
        ));
        put(format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#eeeeee\"/>",
            LEFT + PLOT_WIDTH
        ));
        for (index, engine) in engines.iter().enumerate() {
            let Some(value) = ratio_of(engine, workload) else { continue };
            let ops_per_s = find(engine, workload).map_or(0.0, |row| row.ops_per_s);
            put(format!(
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{}\" fill-opacity=\"0.85\"><title>{} {}: {} ops/s, {}×\
                 </title></circle>",
                x(value),
                COLOURS[index % COLOURS.len()],
                escape(engine),
                escape(workload),
                short(ops_per_s),
                ratio(value)
            ));
        }
    }
    put("</svg>".to_owned());
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(engine: &str, ops_per_s: f64) -> Row {
        Row {
            engine: engine.into(),
            workload: "seek10".into(),
            ops_per_s,
            cpu_us_per_op: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            write_amp: 0.0,
            disk_mib: 0.0,
            rss_mib: 0.0,
        }
    }

    /// Every engine has its dot: the base on the line of 1×, ten times as fast one power of ten to the right.
    #[test]
    fn dots_stand_where_the_ratios_are() {
        let picture = svg(&[row("rocksdb", 1000.0), row("ferris", 10_000.0)], "a & b");
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("a &amp; b"));
        assert_eq!(picture.matches("<title>").count(), 2);
        let (one, ten) = (LEFT + PLOT_WIDTH / 2.0, LEFT + PLOT_WIDTH);
        assert!(
            picture.contains(&format!("<circle cx=\"{one:.1}\" cy=\"91.0\" r=\"5\" fill=\"#000000\"")),
            "{picture}"
        );
        assert!(
            picture.contains(&format!("<circle cx=\"{ten:.1}\" cy=\"91.0\" r=\"5\" fill=\"#d55e00\"")),
            "{picture}"
        );
    }
}
