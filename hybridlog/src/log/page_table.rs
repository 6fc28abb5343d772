//! Where each page that is in memory lies: one word a page, the address of its first byte.
//!
//! A page of this run is written in its frame and stays there, or *moves* once it is flushed: the
//! page thread puts the place of its mapped file into the table, and one grace period later nobody
//! looks at the frame any more. Pages of earlier runs have no frame: their word is 0 until they
//! were mapped.
//!
//! Which addresses have a page in memory at an instant is the boundaries' business. The table
//! only says where, and never shows a place before what lies there is complete.

use crate::sync::{AtomicU64, mutant, ordering};
use ferrite_index::Epoch;

pub(crate) struct PageTable {
    /// Pages of this run, by their number modulo the ring's frames.
    ring: Box<[AtomicU64]>,
    /// The ring's length less one if that makes a mask, else 0: a division costs nanoseconds.
    mask: u64,
    /// The first page of this run.
    first: u64,
    /// Pages of earlier runs, from `lowest` on; some numbers among them have no page.
    earlier: Box<[AtomicU64]>,
    lowest: u64,
}

/// A page that moved, and the epoch that began when it had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub page: u64,
    epoch: u64,
}

impl PageTable {
    /// `place_of(n)` is the place of frame `n`. The pages of this run start at `first`; those of
    /// earlier ones that may come into memory lie in `lowest..first`.
    pub fn new(frames: u64, first: u64, lowest: u64, place_of: impl Fn(u64) -> u64) -> Self {
        assert!(lowest <= first);
        Self {
            ring: (0..frames).map(|frame| AtomicU64::new(place_of(frame))).collect(),
            mask: if frames.is_power_of_two() { frames - 1 } else { 0 },
            first,
            earlier: (lowest..first).map(|_| AtomicU64::new(0)).collect(),
            lowest,
        }
    }

    /// The number of the first page of this run.
    pub fn first_page(&self) -> u64 {
        self.first
    }

    /// The frame that a page of this run is written in.
    pub fn frame_of(&self, page: u64) -> u64 {
        if self.mask != 0 { page & self.mask } else { page % self.ring.len() as u64 }
    }

    /// Where a page lies; 0: it is of an earlier run and not in memory. The page is at or above
    /// the page of `head`, which was loaded inside a pin, and the place is good until that ends.
    pub fn place(&self, page: u64) -> u64 {
        let Some(entry) = self.entry(page) else { return 0 };
        // Acquire: pairs with the release in `put`, so that the bytes are there.
        entry.load(ordering!(Acquire, "page_table_acquire"))
    }

    /// Puts a page of an earlier run at `place`, or nowhere (0); or a page of this run back into
    /// its frame, once it has left memory.
    pub fn put(&self, page: u64, place: u64) {
        let entry = self.entry(page).expect("only pages that may be in memory are put anywhere");
        entry.store(place, ordering!(Release, "page_table_release"));
    }

    /// Moves a page of this run to `place`; readers that are inside may go on in its frame.
    pub fn begin_move(&self, epoch: &Epoch, page: u64, place: u64) -> Moved {
        self.put(page, place);
        Moved { page, epoch: epoch.bump() }
    }

    /// Whether nobody looks at the page's frame any more.
    pub fn is_settled(&self, epoch: &Epoch, moved: Moved) -> bool {
        epoch.is_safe(moved.epoch) || mutant!("page_moved_without_grace")
    }

    fn entry(&self, page: u64) -> Option<&AtomicU64> {
        if page >= self.first {
            return Some(&self.ring[self.frame_of(page) as usize]);
        }
        self.earlier.get(page.checked_sub(self.lowest)? as usize)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn pages_of_earlier_runs_are_nowhere_until_they_are_put() {
        let table = PageTable::new(3, 10, 7, |frame| 100 + frame);
        assert_eq!([9, 10, 11].map(|page| table.place(page)), [0, 101, 102]);
        table.put(8, 55);
        assert_eq!([6, 7, 8, 9].map(|page| table.place(page)), [0, 0, 55, 0]);
        table.put(8, 0);
        assert_eq!(table.place(8), 0);
    }

    #[test]
    fn a_ring_of_any_length_gives_each_of_its_pages_a_frame_of_its_own() {
        for frames in 1..20 {
            let table = PageTable::new(frames, 5, 5, |frame| frame + 1);
            let places: std::collections::BTreeSet<u64> =
                (5..5 + frames).map(|page| table.place(page)).collect();
            assert_eq!(places.len() as u64, frames);
            assert!(!places.contains(&0));
        }
    }
}
