//! How far compaction is, and what it has done: what the work, the checkpoints and INFO share.

use crate::CompactError;
use crate::checkpoint::manifest::Manifest;
use crate::config::Geometry;
use crate::store::stop_sign::StopSign;
use crate::sync::{
    Locked, Mutex,
    atomic::{AtomicU64, Ordering},
};

/// What compaction has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// Bytes of log that were looked at, and that the next checkpoints give back.
    pub read_bytes: u64,
    /// Bytes of log that the copies of what is needed take.
    pub copied_bytes: u64,
}

/// What one compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes of log that were looked at.
    pub read_bytes: u64,
    /// Bytes of log that the copies of what is needed take.
    pub copied_bytes: u64,
    /// The address, in bytes, below which nothing is needed any more: once the log begins there
    /// ([`crate::Stats::log_begin`]), all of it was given back.
    pub until: u64,
    /// Whether it ended early for want of disk space: checkpoints must give some back first.
    pub short_of_space: bool,
}

/// How far the work is, and when there is some.
#[derive(Default)]
pub(crate) struct CompactionControl {
    /// Log bytes a living byte above which the background works, as the bits of an `f64`; 0 never.
    most: AtomicU64,
    /// All that lives below has a copy above.
    compacted: AtomicU64,
    /// Where the oldest kept checkpoint begins.
    kept_begin: AtomicU64,
    pub stop: StopSign,
    /// One at a time.
    pub turn: Mutex<()>,
    /// Who compacts by hand, or waits for it: the background lets them go first.
    pub(super) asked: AtomicU64,
    last_error: Mutex<Option<String>>,
    read_bytes: AtomicU64,
    copied_bytes: AtomicU64,
}

impl CompactionControl {
    /// Nothing below is needed by any key, once a checkpoint is taken.
    pub fn compacted(&self) -> u64 {
        // Acquire: pairs with the release after the last copy.
        self.compacted.load(Ordering::Acquire)
    }

    /// A checkpoint is durable.
    pub fn checkpointed(&self, manifest: &Manifest) {
        let begin = manifest.checkpoints.iter().map(|c| c.begin).min().unwrap_or(0);
        self.kept_begin.store(begin, Ordering::Relaxed);
    }

    /// The memory below `begin` was given back.
    pub fn gave_back(&self, begin: u64) {
        self.kept_begin.store(begin, Ordering::Relaxed);
    }

    /// Bytes that checkpoints from now on give back.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.compacted().saturating_sub(self.kept_begin.load(Ordering::Relaxed)) * 8
    }

    /// Whether checkpoints from now on give back a segment's files.
    pub fn gives_back_files(&self, geometry: &Geometry) -> bool {
        let kept = self.kept_begin.load(Ordering::Relaxed);
        geometry.segment_of(self.compacted()) > geometry.segment_of(kept)
    }

    /// All that lives in `[from, to)`, up to where the work had come, has its copy, of so many words.
    pub fn note_page(&self, from: u64, to: u64, copied_words: u64) {
        self.read_bytes.fetch_add((to - from) * 8, Ordering::Relaxed);
        self.copied_bytes.fetch_add(copied_words * 8, Ordering::Relaxed);
        // Release: who takes a cut from here on finds the copies below it.
        self.compacted.fetch_max(to, Ordering::Release);
    }

    /// Bytes read and copied so far.
    pub fn done(&self) -> CompactionReport {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        CompactionReport { read_bytes: of(&self.read_bytes), copied_bytes: of(&self.copied_bytes) }
    }

    /// Notes how a compaction ended.
    pub fn note_outcome(&self, outcome: &Result<Compacted, CompactError>) {
        *self.last_error.locked() = outcome.as_ref().err().map(CompactError::to_string);
    }

    /// Why the last compaction failed, if it did.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.locked().clone()
    }

    /// Lets the background end its turn at its next page, until what is returned is dropped.
    pub fn ask(&self) -> Asked<'_> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Asked(&self.asked)
    }

    pub fn is_asked(&self) -> bool {
        // Relaxed: whose turn it is the lock decides.
        self.asked.load(Ordering::Relaxed) > 0
    }

    /// Above how many log bytes a living byte the background works from now on.
    pub fn set_most(&self, most: Option<f64>) {
        self.most.store(most.unwrap_or(0.0).to_bits(), Ordering::Relaxed);
    }

    pub fn most(&self) -> Option<f64> {
        Some(f64::from_bits(self.most.load(Ordering::Relaxed))).filter(|most| *most > 0.0)
    }
}

/// Somebody compacts by hand.
pub(crate) struct Asked<'a>(&'a AtomicU64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
