//! [`EpochCell`] under loom: every interleaving of readers and a replacement.
//!
//! ```sh
//! cargo xtask loom
//! ```
//!
//! The object's only field is a cell of loom's. Reading it through a guard and writing it in `Drop` must be ordered one after the
//! other in every execution, or loom reports a race: that is the whole promise. A weaker order in `read`, `replace` or the guard's drop, or
//! an object dropped while a counter was never seen at zero, breaks it.

use loom::cell::UnsafeCell;
use loom::thread;

use super::*;

/// An object that notices when it is dropped beside a reader.
struct Watched(UnsafeCell<u64>);

// SAFETY: not safe by itself, which is the point: loom watches each access and fails the test where two are not in order.
unsafe impl Sync for Watched {}

impl Watched {
    fn new(number: u64) -> Arc<Watched> {
        Arc::new(Watched(UnsafeCell::new(number)))
    }

    fn number(&self) -> u64 {
        // SAFETY: only `drop` writes, and loom fails the test where that may happen at the same time.
        self.0.with(|number| unsafe { *number })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: as above.
        self.0.with_mut(|number| unsafe { *number = u64::MAX });
    }
}

fn explore(scenario: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(scenario);
}

/// A reader and a replacement: the reader sees one of the two objects, whole, until it lets go.
#[test]
fn a_reader_beside_a_replacement() {
    explore(|| {
        let cell = Arc::new(EpochCell::new(Watched::new(1)));
        let reader = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let guard = cell.read_as(1);
                assert!([1, 2].contains(&guard.number()));
            })
        };
        cell.replace(Watched::new(2));
        assert_eq!(cell.read_as(0).number(), 2, "who replaced it sees the new one");
        reader.join().expect("the reader does not panic");
        assert_eq!(cell.reclaim(), 0, "no reader is left");
    });
}

/// Two readers of one counter, two replacements: the counter may never be seen at zero, and then nothing is dropped.
#[test]
fn two_readers_share_a_counter() {
    explore(|| {
        let cell = Arc::new(EpochCell::new(Watched::new(1)));
        let reader = |cell: &Arc<EpochCell<Watched>>| {
            let cell = Arc::clone(cell);
            thread::spawn(move || assert!((1..=3).contains(&cell.read_as(0).number())))
        };
        let readers = [reader(&cell), reader(&cell)];
        cell.replace(Watched::new(2));
        cell.replace(Watched::new(3));
        for reader in readers {
            reader.join().expect("no reader panics");
        }
        assert_eq!(cell.reclaim(), 0);
    });
}

/// An object that a reader took with a count of its own outlives the cell's hold on it.
#[test]
fn a_loaded_object_outlives_its_replacement() {
    explore(|| {
        let cell = Arc::new(EpochCell::new(Watched::new(1)));
        let holder = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let object = cell.load_as(1);
                drop(cell);
                // Whoever drops it last: the standard library's `Arc`, which loom does not see, orders that after this read.
                let number = object.number();
                assert!([1, 2].contains(&number));
                object
            })
        };
        cell.replace(Watched::new(2));
        let object = holder.join().expect("the holder does not panic");
        assert!(object.number() <= 2, "it was not dropped");
    });
}

/// What is taken out of a slot beside a reader that borrows it: it is there whole, or it is gone.
#[test]
fn a_borrower_beside_taking_away() {
    explore(|| {
        let epoch = Arc::new(Epoch::new());
        let cell = Arc::new(EpochCell::with_epoch(Arc::new(()), Arc::clone(&epoch)));
        let slot = Arc::new(EpochSlot::new(Arc::clone(&epoch)));
        assert!(slot.put(Watched::new(1)).1);
        let reader = {
            let (cell, slot) = (Arc::clone(&cell), Arc::clone(&slot));
            thread::spawn(move || {
                let guard = cell.read_as(1);
                assert!(slot.borrow(&guard).is_none_or(|object: &Watched| object.number() == 1));
            })
        };
        assert!(slot.take());
        reader.join().expect("the reader does not panic");
        assert_eq!(epoch.reclaim(), 0, "no reader is left");
    });
}
