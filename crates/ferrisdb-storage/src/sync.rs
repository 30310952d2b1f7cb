//! Atomics and locks, from the standard library or from a model checker.
//!
//! Lock-free code takes its primitives from here, so that the same code runs under three regimes:
//!
//! | build | from | what it explores |
//! | --- | --- | --- |
//! | ordinary | `std` | what the machine happens to do |
//! | `--cfg loom` | loom | every interleaving and every value that the memory model lets a load return |
//! | `--cfg shuttle` | shuttle | random interleavings of more threads; all atomics sequentially consistent |
//!
//! loom finds missing Acquire and Release but only within small tests; shuttle cannot see them but reaches scenarios that are too
//! large for loom. Both are needed.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, loom))]
pub(crate) use loom::{sync::Arc, thread};
#[cfg(all(test, shuttle))]
pub(crate) use shuttle::{sync::Arc, thread};
