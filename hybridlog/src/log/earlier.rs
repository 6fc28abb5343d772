//! Pages that earlier runs wrote and that fit into this run's memory, so that a restart is warm.
//!
//! Their addresses lie below those of this run, with gaps between the runs, since each run starts
//! a segment of its own. Memory is counted in pages: those of earlier runs from `head` on and those
//! of this run together are at most the ring's frames.

use crate::config::Geometry;

/// How far below this run's start a page may lie. The page table has a word for each number in
/// between, also where no page is: a crash may leave any gap.
const SPAN_PAGES: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct EarlierPages {
    /// Ascending: a page's start, and where what was written of it ends.
    pages: Vec<(u64, u64)>,
    /// Where this run starts.
    start: u64,
    frames: u64,
    page_words: u64,
}

impl EarlierPages {
    /// The newest pages of `extents` at or above `begin`, as many as the read-only region holds.
    pub fn choose(geometry: &Geometry, begin: u64, start: u64, extents: &[(u64, u64)]) -> Self {
        let most = geometry.readonly_pages() as usize;
        let step = geometry.page_words;
        let mut pages: Vec<(u64, u64)> = Vec::new();
        let lowest = start.saturating_sub(SPAN_PAGES * step);
        for &(from, to) in extents.iter().rev() {
            let first = geometry.page_start(from.max(begin).max(lowest));
            let count = to.saturating_sub(first).div_ceil(step);
            let starts = (0..count).rev().map(|n| first + n * step).take(most - pages.len());
            pages.extend(starts.map(|at| (at, to.min(at + step))));
        }
        pages.reverse();
        Self { pages, start, frames: geometry.frames, page_words: step }
    }

    /// The start and the written end of each page, ascending.
    pub fn pages(&self) -> &[(u64, u64)] {
        &self.pages
    }

    /// The lowest address that can be in memory.
    pub fn lowest(&self) -> u64 {
        self.pages.first().map_or(self.start, |(at, _)| *at)
    }

    /// The highest `head` that is needed for frames up to `ahead`, a page's start, to be free.
    pub fn head_for(&self, ahead: u64) -> u64 {
        let wanted = ahead.saturating_sub(self.start) / self.page_words;
        let leave = (wanted + self.pages.len() as u64).saturating_sub(self.frames);
        match self.pages.get(leave as usize) {
            Some((at, _)) => *at,
            None => self.start + (leave - self.pages.len() as u64) * self.page_words,
        }
    }

    /// Where the frames end that are free once all below `head` has left memory.
    pub fn limit_for(&self, head: u64) -> u64 {
        let left = self.pages.partition_point(|(at, _)| *at < head);
        let staying = (self.pages.len() - left) as u64;
        head.max(self.start) + (self.frames - staying) * self.page_words
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Pages of 512 words, segments of four pages, a ring of six frames of which two are mutable.
    fn geometry() -> Geometry {
        Geometry { page_words: 512, segment_words: 2048, frames: 6, mutable_pages: 2 }
    }

    #[test]
    fn the_newest_pages_come_back_however_many_runs_wrote_them() {
        let extents = [(2048, 3500), (4096, 4200), (6144, 7168)];
        let earlier = EarlierPages::choose(&geometry(), 2048, 8192, &extents);
        let all = [(3072, 3500), (4096, 4200), (6144, 6656), (6656, 7168)];
        assert_eq!(earlier.pages(), all, "four of the five fit");
        let fewer = EarlierPages::choose(&geometry(), 6700, 8192, &extents);
        assert_eq!(fewer.pages(), [(6656, 7168)], "nothing below the page of begin");
        assert_eq!(EarlierPages::choose(&geometry(), 8192, 8192, &[]).lowest(), 8192);
    }

    #[test]
    fn earlier_pages_leave_oldest_first_and_never_more_than_needed() {
        let extents = [(4096, 4608), (6144, 7168)];
        let earlier = EarlierPages::choose(&geometry(), 4096, 8192, &extents);
        assert_eq!(earlier.limit_for(earlier.lowest()), 8192 + 3 * 512);
        // Three pages stay while this run needs three frames; then one leaves for each.
        let heads: Vec<u64> = (0..9).map(|n| earlier.head_for(8192 + n * 512)).collect();
        assert_eq!(heads, [4096, 4096, 4096, 4096, 6144, 6656, 8192, 8704, 9216]);
        for (n, head) in heads.into_iter().enumerate() {
            let limit = earlier.limit_for(head);
            assert!(limit >= 8192 + n as u64 * 512, "page {n} has a frame");
            let kept = earlier.pages().iter().filter(|(at, _)| *at >= head).count() as u64;
            assert_eq!((limit - head.max(8192)) / 512 + kept, 6, "all frames are used");
        }
    }
}
