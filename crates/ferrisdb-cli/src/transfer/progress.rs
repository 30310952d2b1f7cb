//! How far a long command is: a bar on a terminal, otherwise a line now and then, both on standard error.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::arguments::Output;
use crate::stopwatch::Stopwatch;

/// Tells how far it is.
pub(crate) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    total_bytes: Option<u64>,
    output: Output,
    every: Duration,
    started: Stopwatch,
    told: Stopwatch,
}

impl Progress {
    /// Nothing is done yet. `what` is the command; `total_bytes` is about how many bytes there are, if that is known.
    pub(crate) fn start(what: &'static str, total_bytes: Option<u64>, output: Output, every: Duration) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total_bytes {
                Some(total) => {
                    (ProgressBar::new(total), "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
                }
                None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} {bytes_per_sec}"),
            };
            bar.with_style(ProgressStyle::with_template(template).expect("it has only placeholders that exist"))
        });
        Progress { what, bar, total_bytes, output, every, started: Stopwatch::start(), told: Stopwatch::start() }
    }

    /// So much is done.
    pub(crate) fn at(&mut self, rows: u64, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {rows} rows", self.what));
            // An estimate may be too small.
            if self.total_bytes.is_some_and(|total| bytes > total) {
                bar.set_length(bytes);
            }
            bar.set_position(bytes);
            return;
        }
        if self.told.elapsed() < self.every {
            return;
        }
        self.told = Stopwatch::start();
        let seconds = self.started.elapsed().as_secs();
        match self.output {
            Output::Json => {
                let (what, total) = (self.what, self.total_bytes.map(|total| total.max(bytes)));
                eprintln!(
                    "{}",
                    json!({"progress": what, "rows": rows, "bytes": bytes, "total_bytes": total, "seconds": seconds})
                );
            }
            Output::Table => {
                let of = of_total(bytes, self.total_bytes);
                eprintln!("{}: {rows} rows, {bytes}{of} bytes, {seconds} s", self.what);
            }
        }
    }

    /// Something for people, that a bar must not overwrite.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// It has ended, well or not. How long it took.
    pub(crate) fn end(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }
}

/// The total is an estimate for an export, and never less than what is done.
fn of_total(bytes: u64, total: Option<u64>) -> String {
    total.map(|total| format!(" of about {}", total.max(bytes))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_past_its_total() {
        assert_eq!(of_total(5, Some(100)), " of about 100");
        assert_eq!(of_total(2_366_670, Some(1_558_817)), " of about 2366670");
        assert_eq!(of_total(5, None), "");
    }
}
