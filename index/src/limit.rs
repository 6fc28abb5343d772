//! `IndexLimit`: how many bytes several indexes may take together.
//!
//! A sum and a bound. Each index adds what it grows by, once it has an entry, and takes all of it
//! back when it is dropped. Growth asks before it adds, without a lock, so threads that grow at the
//! same time may pass the bound by a bucket each. Nothing else rests on the sum, so its accesses are
//! relaxed, and no part of what the models explore.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What several indexes may take together; see [`HashIndex::sharing`](crate::HashIndex::sharing).
#[derive(Debug, Default)]
pub struct IndexLimit {
    max_bytes: AtomicU64,
    bytes: AtomicU64,
}

impl IndexLimit {
    /// At most so many bytes; 0 is no limit.
    pub fn new(max_bytes: u64) -> Self {
        Self { max_bytes: AtomicU64::new(max_bytes), bytes: AtomicU64::new(0) }
    }

    /// Sets the limit anew. Entries that are there already stay, whatever it is.
    pub fn set(&self, max_bytes: u64) {
        self.max_bytes.store(max_bytes, Relaxed);
    }

    /// Bytes of all buckets, touched or not, of the indexes that ever had an entry.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Whether so many more bytes fit.
    pub(crate) fn has_room_for(&self, more: u64) -> bool {
        let max_bytes = self.max_bytes.load(Relaxed);
        max_bytes == 0 || self.bytes().saturating_add(more) <= max_bytes
    }
}

/// One index's part of a limit.
#[derive(Debug)]
pub(crate) struct Share {
    pub limit: Arc<IndexLimit>,
    /// What this index has added.
    counted: AtomicU64,
}

impl Share {
    pub fn of(limit: Arc<IndexLimit>) -> Self {
        Self { limit, counted: AtomicU64::new(0) }
    }

    /// Says that the index takes `bytes` now; it only ever takes more.
    pub fn grown_to(&self, bytes: u64) {
        let before = self.counted.fetch_max(bytes, Relaxed);
        self.limit.bytes.fetch_add(bytes.saturating_sub(before), Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limit.bytes.fetch_sub(*self.counted.get_mut(), Relaxed);
    }
}
