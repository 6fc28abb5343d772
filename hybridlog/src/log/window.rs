//! The read-only window: pages that are read from their mapped files, so that memory holds them
//! once and a restart finds them warm.
//!
//! One page at a time:
//!
//! ```text
//!   flushed ──map, populate, lock, verify──> mapped ──table──> settling ──grace──> frame released
//!   of an earlier run ──the same (or a copy where nothing may be locked)──> shown
//! ```
//!
//! While a move settles or its frame is being released, `head` does not pass the page, so that no
//! frame is given back that has a new page in it. A page that leaves memory while it is being
//! mapped is let go. One that cannot be mapped stays in its frame, or on the device if it is of an
//! earlier run. When a file does not hold what this run has written, the log takes no more writes,
//! and the page stays in memory: it can still be read.

use super::Log;
use super::helper::{Helper, Job, MapFailure};
use super::page_table::Moved;
use crate::device::Mapping;

pub(crate) struct Window {
    /// Flushed pages of this run from here on come next, where pages are mapped at all.
    next: u64,
    /// Pages of earlier runs to come, newest last.
    earlier: Vec<(u64, u64)>,
    stage: Stage,
    /// A page that the file does not hold as it was written: its frame is all there is of it.
    damaged: Option<u64>,
    warned: bool,
}

#[derive(Clone, Copy)]
enum Stage {
    Idle,
    Mapping { of_this_run: bool },
    Settling { at: u64, moved: Moved },
    Releasing { at: u64 },
}

impl Window {
    pub fn new(log: &Log) -> Self {
        Self {
            next: log.start,
            earlier: log.earlier.pages().to_vec(),
            stage: Stage::Idle,
            damaged: None,
            warned: false,
        }
    }

    /// Whether a grace period must be polled for.
    pub fn is_settling(&self) -> bool {
        matches!(self.stage, Stage::Settling { .. })
    }

    /// The page that must not leave memory now.
    pub fn holds(&self) -> Option<u64> {
        let held = match self.stage {
            Stage::Settling { at, .. } | Stage::Releasing { at } => Some(at),
            Stage::Idle | Stage::Mapping { .. } => None,
        };
        held.into_iter().chain(self.damaged).min()
    }

    /// Goes on if nothing is waited for; whether it did.
    pub fn step(&mut self, log: &Log, helper: &Helper) -> bool {
        match self.stage {
            Stage::Idle => {
                let Some((at, end, of_this_run)) = self.next_page(log) else { return false };
                helper.ask(Job::Map { at, end });
                self.stage = Stage::Mapping { of_this_run };
                true
            }
            Stage::Settling { at, moved } if log.frames.is_settled(&log.epoch, moved) => {
                helper.ask(Job::Release { page: moved.page });
                self.stage = Stage::Releasing { at };
                true
            }
            Stage::Mapping { .. } | Stage::Settling { .. } | Stage::Releasing { .. } => false,
        }
    }

    fn next_page(&mut self, log: &Log) -> Option<(u64, u64, bool)> {
        let head = log.boundaries.head();
        // A cut makes more than the region's pages immutable: those beyond it stay in their frames.
        if log.unmapped.is_none() && log.frames.mapped_pages() < log.geometry.readonly_pages() {
            let at = self.next.max(head);
            let end = at + log.geometry.page_words;
            if end <= log.boundaries.flushed_until() {
                self.next = end;
                return Some((at, end, true));
            }
        }
        while let Some((at, end)) = self.earlier.pop() {
            if end > head {
                return Some((at, end, false));
            }
            self.earlier.clear();
        }
        None
    }

    /// The page at `at` was brought in, or could not be.
    pub fn mapped(
        &mut self,
        log: &Log,
        helper: &Helper,
        at: u64,
        result: Result<Mapping, MapFailure>,
    ) {
        let Stage::Mapping { of_this_run } = self.stage else { unreachable!("one at a time") };
        self.stage = Stage::Idle;
        let has_left = at + log.geometry.page_words <= log.boundaries.head();
        let mapping = match result {
            Ok(mapping) if has_left => return helper.ask(Job::Drop(mapping)),
            // Its file may be gone by now.
            Err(_) if has_left => return,
            Err(MapFailure::Damaged(why)) if of_this_run => {
                self.damaged.get_or_insert(at);
                return log.health.broke(why);
            }
            Err(MapFailure::Refused(why) | MapFailure::Damaged(why)) => return self.warn(&why),
            Ok(mapping) => mapping,
        };
        if of_this_run {
            // SAFETY: flushed and, as just seen, at or above `head`, which only this thread moves;
            // the mapping was verified against the checksums of what was flushed.
            let moved = unsafe { log.frames.move_page(&log.epoch, at, mapping) };
            self.stage = Stage::Settling { at, moved };
        } else {
            // SAFETY: at or above `head`; verified up to the end of what was written.
            unsafe { log.frames.show_earlier(at, mapping) };
        }
    }

    /// The frame was given back.
    pub fn released(&mut self) {
        self.stage = Stage::Idle;
    }

    fn warn(&mut self, why: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!("a page of the read-only window stays unmapped: {why}");
        }
    }
}
