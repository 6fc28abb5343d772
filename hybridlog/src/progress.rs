//! How far the opening of a store has come, for whoever watches it meanwhile.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that an opening reads and has read: the index image and the log. None of the numbers
/// orders anything, hence `Relaxed`.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// Bytes to be read; 0 until that is known, and for an empty store.
    pub fn total_bytes(&self) -> u64 {
        self.total.load(Relaxed)
    }
    /// Bytes that have been read and taken in.
    pub fn done_bytes(&self) -> u64 {
        self.done.load(Relaxed)
    }
    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }
    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }
}
