//! The API oracle: random programs of every operation, run on the real client and on a simple model, compared step by step.
//!
//! The model ([`model`]) is written from the contract and not from the client: it keeps no overlay and no segments, but the plain list of what a
//! transaction did, and works everything out from the beginning each time it is asked. Slow and obvious.
//!
//! Where the contract leaves room (how many rows a chunk has, whether `more` is true when nothing is left, which read conflict ranges beyond the necessary
//! ones are added where a selector ran off an end), the model accepts what lies within it, and goes on from what it saw. Everything
//! else must be equal, byte for byte. Several transactions are open at once and commit in a random order, so that conflict ranges are
//! tested too: a commit must fail if it read what another wrote since, and must not fail otherwise. Within a transaction most calls are one after the other;
//! some begin before another has ended: two reads around a write, a read during a commit, a read that nobody waits for.
//!
//! # What is a step
//! Of a database: `create_transaction`, `lock`, `unlock`, `locked_by`, `snapshot` with all its options, `set_option` (the counters of snapshot reads, the retry limit, the size limit,
//! what is wrong). Of a transaction: all its calls but those below, with every option that changes what can be seen, and those that change nothing by their numbers. Of a snapshot: all of them.
//!
//! # What is none, and why
//! - `run`: a loop over steps that are here. The tests of the API have it for every deployment.
//! - `commit` with a time that ends meanwhile: whether it happened nobody can say, and so no model. The client's own tests have it, and the simulator's, which ask for the outcome.
//! - `set_automatic_idempotency` and the options that change who is asked first (priorities are steps, and change no answer): what comes of them shows when answers are lost, in the client's tests.
//! - `max_watches`: when a watch gives its place back is not said to the step. The client's tests count places.
//! - `database`, `description`, `status`, `get_client_status`, `get_server_protocol`, `get_tag_throttled_duration`, `get_total_cost`: they say nothing of what is stored.
//! - Special keys but those of conflict ranges, and system keys that are the database's own: of those the model knows only that they are there, and programs that read so far are
//!   not said to be wrong for what they find. Tests of the client and of the API name them one by one.
//! - The layers: they are made of steps, and are compared with published encodings.
//!
//! A failure names the seed and prints the steps that led to it. The same seed gives the same program as long as the subject answers the same.

mod arithmetic;
pub mod client;
mod dice;
pub mod model;
pub mod program;
mod view;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;

use ferrisdb_core::SplitMix64;

pub use client::ClientSubject;
pub use model::Model;
pub use program::{Observed, Step};
pub(crate) use view::{FOG, METADATA_VERSION};

/// A database under test: carries out a step on the transaction in the step's slot.
pub trait Subject {
    /// Carries out one step and says what came of it.
    fn step(&mut self, step: &Step) -> impl Future<Output = Observed>;
}

/// What a run went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Steps carried out.
    pub steps: u64,
    /// Commits that happened and wrote something.
    pub commits: u64,
    /// Commits that failed with a conflict.
    pub conflicts: u64,
    /// Steps that failed otherwise, as they should.
    pub errors: u64,
    /// Rows read.
    pub rows: u64,
}

/// A step whose result is not what the contract says.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// The seed of the program.
    pub seed: u64,
    /// The number of the step.
    pub step: u64,
    /// What is wrong.
    pub what: String,
    /// The last steps, with what was observed.
    pub trace: Vec<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, step {}: {}", self.seed, self.step, self.what)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl std::error::Error for Mismatch {}

/// Runs `steps` random steps on `subject`, whose database must be empty.
///
/// # Errors
/// The first step whose result is wrong.
pub async fn run(subject: &mut impl Subject, seed: u64, steps: u64) -> Result<Report, Box<Mismatch>> {
    const TRACE_MAX: usize = 200;
    let mut random = SplitMix64::new(seed);
    let mut model = Model::new();
    let mut report = Report::default();
    let mut trace = std::collections::VecDeque::new();
    for number in 0..steps {
        let step = program::next(&mut random, &model);
        let observed = subject.step(&step).await;
        if trace.len() == TRACE_MAX {
            trace.pop_front();
        }
        trace.push_back(format!("{number}: {step:?} -> {observed:?}"));
        report.steps += 1;
        let told = match &observed {
            Observed::During { commit, .. } => commit,
            other => other,
        };
        match told {
            Observed::Committed { version: Some(_), .. } => report.commits += 1,
            Observed::Failed(ferrisdb_core::Code::NotCommitted) => report.conflicts += 1,
            Observed::Failed(_) => report.errors += 1,
            Observed::Rows { rows, .. } => report.rows += rows.len() as u64,
            _ => {}
        }
        if let Err(what) = model.check(&step, &observed) {
            return Err(Box::new(Mismatch { seed, step: number, what, trace: trace.into() }));
        }
    }
    Ok(report)
}
