//! Which segments of the log no sync covers yet.
//!
//! ```text
//!   a page is flushed ──> written ──a checkpoint takes it──> synced by the checkpoint
//!                            │ ^
//!      the segment is whole  │ │ a file that could not be opened
//!                            v │
//!                         under way ──both files synced──> gone, its descriptors may be closed
//! ```
//!
//! Promises:
//! * A segment with writes that no successful sync covers is *written*, *under way*, or in the hands
//!   of a checkpoint, which gives back what it does not sync; or a sync of it failed.
//! * A segment is under way only once all of it is flushed: no write comes behind its sync.
//! * [`Syncs::take`] leaves nothing below the checkpoint's cut behind: it has nothing to give while
//!   one of those segments is under way.
//! * A sync that failed has broken the log before its segment stops being under way, so a checkpoint
//!   that waited for it is refused.

use crate::sync::{Locked, Mutex, mutant};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(crate) struct Syncs(Mutex<State>);

#[derive(Default)]
struct State {
    written: BTreeSet<u64>,
    under_way: BTreeMap<u64, UnderWay>,
}

/// The syncs of a segment and its side file.
struct UnderWay {
    files_left: u8,
    /// A file could not be opened: nothing was synced, and nothing failed.
    unopened: bool,
}

impl Syncs {
    /// Part of a segment was written. To be called before the part counts as flushed.
    pub fn written(&self, segment: u64) {
        self.0.locked().written.insert(segment);
    }

    /// The segments up to `last` that were written since they were last synced, for the caller to
    /// sync or give back; `None` while one of them is under way.
    pub fn take(&self, last: u64) -> Option<BTreeSet<u64>> {
        let mut state = self.0.locked();
        if state.under_way.range(..=last).next().is_some() {
            return None;
        }
        let above = state.written.split_off(&(last + 1));
        Some(std::mem::replace(&mut state.written, above))
    }

    /// What was taken and not synced.
    pub fn give_back(&self, segments: BTreeSet<u64>) {
        self.0.locked().written.extend(segments);
    }

    /// Begins the sync of a whole segment; false if nothing of it is unsynced.
    pub fn begin(&self, segment: u64) -> bool {
        let mut state = self.0.locked();
        let begun = state.written.remove(&segment);
        if begun && !mutant!("left_unsynced_before_sync") {
            state.under_way.insert(segment, UnderWay { files_left: 2, unopened: false });
        }
        begun
    }

    /// One of the two files is synced, or could not be opened.
    pub fn file_ended(&self, segment: u64, unopened: bool) {
        let mut state = self.0.locked();
        if mutant!("left_unsynced_before_sync") {
            return;
        }
        let sync = state.under_way.get_mut(&segment).expect("it began, and has two files");
        sync.unopened |= unopened;
        sync.files_left -= 1;
        if sync.files_left == 0 {
            let unopened = sync.unopened;
            state.under_way.remove(&segment);
            if unopened && !mutant!("unopened_segment_forgotten") {
                state.written.insert(segment);
            }
        }
    }

    /// Segments that are under way.
    pub fn under_way(&self) -> usize {
        self.0.locked().under_way.len()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_gets_nothing_until_what_is_below_its_cut_has_ended() {
        let syncs = Syncs::default();
        (1..=4).for_each(|n| syncs.written(n));
        assert!(syncs.begin(2) && syncs.begin(4) && !syncs.begin(2));
        assert_eq!(syncs.take(3), None);
        syncs.file_ended(2, false);
        assert_eq!(syncs.take(3), None, "the side file is under way");
        syncs.file_ended(2, false);
        assert_eq!(syncs.take(3), Some(BTreeSet::from([1, 3])));
        assert_eq!(syncs.take(3), Some(BTreeSet::new()));
        syncs.give_back(BTreeSet::from([3]));
        syncs.file_ended(4, true);
        assert_eq!(syncs.under_way(), 1);
        syncs.file_ended(4, false);
        assert_eq!(syncs.take(9), Some(BTreeSet::from([3, 4])), "one file of 4 is not synced");
    }
}
