//! What tests stand on: [`Machine`], a computer of which everything is simulated; [`script`], writes that remember what was promised;
//! [`decoders`] and [`operations`], the bodies of the fuzz targets.
//!
//! Behind the feature `testing`, which only this crate's own tests and `fuzz/` turn on.

pub mod decoders;
pub mod operations;
pub mod script;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::env::Env;
use crate::env::steps::StepSpawner;
use crate::fs::sim::{OpKind, SimFileSystem, Verdict};
use crate::{Engine, IterOptions, Options, Result};

/// Where the engine lives on the simulated disk.
pub const DIR: &str = "/db";

/// A simulated machine: a disk, and jobs whose order a seed decides.
pub struct Machine {
    /// The disk.
    pub disk: SimFileSystem,
    /// Runs the jobs.
    pub spawner: Arc<StepSpawner>,
    /// All of it, as an engine takes it.
    pub env: Env,
}

/// A disk as it was before an operation of that kind, or at the end.
pub type Fork = (SimFileSystem, Option<OpKind>);

impl Machine {
    /// A machine with that disk.
    pub fn new(disk: SimFileSystem, seed: u64) -> Machine {
        let (env, spawner, _) = Env::sim_with_seed(disk.clone(), seed);
        Machine { disk, spawner, env }
    }

    /// Opens the engine in [`DIR`].
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn open(&self, options: Options) -> Result<Engine> {
        Engine::open_in(self.env.clone(), Path::new(DIR), options)
    }

    /// As [`Machine::open`], read-only.
    ///
    /// # Errors
    /// Those of [`Engine::open_read_only`].
    pub fn open_read_only(&self, options: Options) -> Result<Engine> {
        Engine::open_read_only(self.env.clone(), Path::new(DIR), options)
    }

    /// The disk as it was before each operation of `run` that changes it, with the kind of that operation; last, as it is afterwards.
    pub fn forks_during(&self, run: impl FnOnce()) -> Vec<Fork> {
        let forks: Arc<Mutex<Vec<Fork>>> = Arc::default();
        let seen = Arc::clone(&forks);
        self.disk.set_hook(move |disk, op| {
            if op.kind.is_mutating() {
                seen.lock().expect("pushing does not panic").push((disk.fork(), Some(op.kind)));
            }
            Verdict::Pass
        });
        run();
        self.disk.clear_hook();
        let mut forks = std::mem::take(&mut *forks.lock().expect("pushing does not panic"));
        forks.push((self.disk.fork(), None));
        forks.iter().for_each(|(fork, _)| fork.clear_hook());
        forks
    }

    /// The files on the disk whose path contains `part`.
    pub fn files(&self, part: &str) -> Vec<PathBuf> {
        let all = self.disk.files().into_iter().map(|(path, _)| path);
        all.filter(|path| path.to_string_lossy().contains(part)).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Jobs hold the environment, and the environment the spawner.
        self.spawner.drop_jobs();
    }
}

/// All that an iterator with these options shows, from first to last.
///
/// # Errors
/// Those of the iterator.
pub fn scan(engine: &Engine, options: IterOptions) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut iter = engine.iter(options)?;
    iter.seek_to_first()?;
    let mut all = BTreeMap::new();
    while iter.valid() {
        all.insert(iter.key().to_vec(), iter.value().to_vec());
        iter.next()?;
    }
    Ok(all)
}

/// All that is visible now.
///
/// # Errors
/// Those of the iterator.
pub fn contents(engine: &Engine) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    scan(engine, IterOptions::default())
}
