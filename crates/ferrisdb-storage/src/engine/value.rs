//! [`Value`]: a value that was read, pinned where it lies.
//!
//! A value from a table keeps its block alive, one from a memtable keeps the memtable alive, one from a blob file is shared with the
//! block cache; nothing is copied. Do not keep many of them
//! for long: each may hold a block, or a whole memtable, in memory. [`Value::to_vec`] (from the slice) copies.

use std::fmt;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;

use super::view::LiveMemtable;
use crate::table::TableValue;

/// A value that was read. Dereferences to its bytes.
#[derive(Clone)]
pub struct Value(Place);

#[derive(Clone)]
enum Place {
    Table(TableValue),
    Memtable {
        /// Invariant: lies in the arena of `owner`.
        bytes: *const [u8],
        owner: Arc<LiveMemtable>,
    },
    Owned(Arc<[u8]>),
}

// SAFETY: the pointer is to bytes that are never written again and live as long as `owner`, which is Send + Sync itself.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Value {
    pub(crate) fn in_table(value: TableValue) -> Value {
        Value(Place::Table(value))
    }

    /// # Safety
    /// `bytes` lies in the arena of `owner`'s memtable.
    pub(crate) unsafe fn in_memtable(bytes: &[u8], owner: Arc<LiveMemtable>) -> Value {
        Value(Place::Memtable { bytes, owner })
    }

    pub(crate) fn owned(bytes: Arc<[u8]>) -> Value {
        Value(Place::Owned(bytes))
    }
}

impl Deref for Value {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Table(value) => value,
            Place::Memtable { bytes, owner } => {
                let _: &Arc<LiveMemtable> = owner;
                // SAFETY: an arena frees nothing and moves nothing before it is dropped, and `owner` keeps it.
                unsafe { slice::from_raw_parts(bytes.cast::<u8>(), bytes.len()) }
            }
            Place::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.escape_ascii().to_string()).finish()
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Value {}
