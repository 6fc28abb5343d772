//! What the log leaves of the disk.
//!
//! A reserve is kept for checkpoints and compaction, which alone can give space back: below it clients'
//! writes are refused.

use super::Log;
use std::collections::BTreeMap;
use std::io;

/// The disk's space at one moment, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    /// Free in the file system.
    pub free: u64,
    /// Of it, what is in memory and not flushed will take.
    pub spoken_for: u64,
}

impl Space {
    /// `created` are the segments that have files, and whether the disk gave them their full size.
    pub fn look(log: &Log, created: &BTreeMap<u64, bool>) -> io::Result<Self> {
        let free = log.device.free_space()?;
        let g = &log.geometry;
        let flushed = log.boundaries.flushed_until();
        let unflushed = (log.tail.load() - flushed) * 8;
        let allocated = match created.get(&g.segment_of(flushed)) {
            Some(true) => g.segment_words * 8 - g.offset_in_segment(flushed),
            _ => 0,
        };
        Ok(Self { free, spoken_for: unflushed.saturating_sub(allocated) })
    }

    /// What nothing is meant for.
    pub fn left(&self) -> u64 {
        self.free.saturating_sub(self.spoken_for)
    }
}
