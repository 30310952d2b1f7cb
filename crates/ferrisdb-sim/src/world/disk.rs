//! The disk of a simulated machine: [`Disk`], a [`SimFileSystem`] that takes time, and stops at an operation that was chosen before.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::fs::sim::{CrashMode, DiskError, OpInfo, OpKind, SimFileSystem, Verdict};

use super::trace::Trace;

/// What a step of a job did on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    syncs: u32,
    others: u32,
}

/// How long a disk takes, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// A sync takes up to this.
    pub sync_max: u64,
    /// One other use in four takes up to this.
    pub other_max: u64,
    /// Every use takes this on top.
    pub stall: u64,
}

impl Speed {
    /// A good SSD: most of what it does is over before the next tick of the simulation.
    pub const FAST: Speed = Speed { sync_max: 2, other_max: 1, stall: 0 };
}

/// A disk.
pub struct Disk {
    files: SimFileSystem,
    shared: Arc<Mutex<State>>,
    is_gone: Arc<AtomicBool>,
}

struct State {
    speed: Speed,
    used: Used,
    /// The power fails before the mutating operation with this number.
    fails_at: Option<u64>,
}

impl Disk {
    /// An empty disk. `host`: how the trace calls it.
    pub(super) fn new(host: &str, trace: Trace) -> Disk {
        let files = SimFileSystem::new();
        let shared = Arc::new(Mutex::new(State { speed: Speed::FAST, used: Used::default(), fails_at: None }));
        let is_gone = Arc::new(AtomicBool::new(false));
        let disk = Disk { files, shared: Arc::clone(&shared), is_gone: Arc::clone(&is_gone) };
        let host = host.to_owned();
        disk.files.set_hook(move |files, operation| {
            let OpInfo { number, kind, path, offset, len } = *operation;
            let path = path.display();
            trace.note(format_args!("{host} disk {kind:?} {path} {offset}+{len}"));
            trace.count(match kind {
                OpKind::Sync | OpKind::SyncDir => "disk syncs",
                _ => "disk operations",
            });
            let mut state = lock(&shared);
            match kind {
                OpKind::Sync | OpKind::SyncDir => state.used.syncs += 1,
                OpKind::Stat | OpKind::AvailableSpace | OpKind::Lock => {}
                _ => state.used.others += 1,
            }
            if kind.is_mutating() && state.fails_at.is_some_and(|at| number >= at) {
                state.fails_at = None;
                trace.note(format_args!("{host} the power fails here"));
                is_gone.store(true, Ordering::SeqCst);
                files.halt();
                return Verdict::Fail(DiskError::Io);
            }
            Verdict::Pass
        });
        disk
    }

    /// The files: to inject errors, to set the capacity, to flip bits.
    pub fn files(&self) -> &SimFileSystem {
        &self.files
    }

    /// How long it takes from now on.
    pub fn set_speed(&self, speed: Speed) {
        self.lock().speed = speed;
    }

    /// The power fails before the `operations`-th mutating operation from now.
    pub fn fail_in(&self, operations: u64) {
        self.lock().fails_at = Some(self.files.mutations() + operations);
    }

    /// The power has failed at an operation that was chosen, and not come back.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    /// Nothing reaches it any more: what is left of a process that was killed cannot write.
    pub(super) fn halt(&self) {
        self.files.halt();
    }

    /// The machine has stopped, and the disk is as `mode` leaves it.
    pub(super) fn crash(&self, mode: CrashMode) {
        self.files.crash(mode);
        self.lock().fails_at = None;
        self.is_gone.store(false, Ordering::SeqCst);
    }

    /// All files as they are.
    pub fn image(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = self.files.files().into_iter().map(|(path, _)| path);
        paths.filter_map(|path| self.files.read_raw(&path).map(|bytes| (path, bytes))).collect()
    }

    /// Another disk is in the machine, with these files. Only while no process runs there.
    pub fn replace(&self, image: &[(PathBuf, Vec<u8>)]) {
        self.files.files().into_iter().for_each(|(path, _)| self.files.remove_raw(path));
        image.iter().for_each(|(path, bytes)| self.files.write_raw(path, bytes));
        self.files.sync_everything();
    }

    /// What was done since the last call.
    pub(super) fn take_used(&self) -> Used {
        std::mem::take(&mut self.lock().used)
    }

    /// How long a use like this takes.
    pub(super) fn latency(&self, used: Used, random: &mut SplitMix64) -> Duration {
        if used == Used::default() {
            return Duration::ZERO;
        }
        let speed = self.lock().speed;
        let millis = if used.syncs > 0 {
            random.below(speed.sync_max + 1)
        } else if random.one_in(4) {
            random.below(speed.other_max + 1)
        } else {
            0
        };
        Duration::from_millis(millis + speed.stall)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("files", &self.files).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
