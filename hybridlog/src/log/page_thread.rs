//! The page thread: it alone moves the boundaries, flushes pages and frees frames.
//!
//! It never waits for the disk: what may, or takes long, is the [`helper`](super::helper)'s. Each
//! round:
//!
//! ```text
//!   tail moved on ---> announce read_only --grace--> safe_read_only ---> write blocks + checksums
//!                                                                              |
//!   limit (zeroed frames) <-- safe_head <--grace-- announce head <--- flushed_until ---> window
//! ```
//!
//! The next frames are ready before the tail needs them: `spare` pages ahead of the tail's own.
//! What is flushed moves into the mapped [`window`](super::window). A segment that is flushed to its
//! end is synced, so that what a checkpoint has to sync, and the descriptors that must stay open until
//! then, do not grow with what was written since the last one.

use super::Log;
use super::boundaries::Announced;
use super::helper::{Helper, Job, MapFailure};
use super::space::Space;
use super::syncs::Syncs;
use super::window::Window;
use crate::config::BLOCK_WORDS;
use crate::device::{ALIGNMENT, FileId, Mapping, could_not_open, is_full};
use crate::sync::{
    Arc, Instant, Locked, Mutex,
    atomic::{AtomicBool, Ordering},
    mutant,
};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

/// Writes in flight at once.
const FLUSH_DEPTH: usize = 16;
/// Whole segments whose syncs are in flight at once: half of the posix form's threads for writes.
const SYNC_DEPTH: usize = 2;
/// Whole segments that are being synced or wait for it, while which no flush begins: each keeps two
/// descriptors open.
const SYNC_BACKLOG: usize = 16;
/// How often a full disk is tried again, and space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_millis(200);

/// Shared with the thread: what it is asked for, what I/O reports, what a checkpoint must sync.
#[derive(Default)]
pub(crate) struct PageWork {
    stop: AtomicBool,
    outcomes: Mutex<Vec<Outcome>>,
    pub syncs: Syncs,
    /// Segments whose files exist, and whether the disk gave them their full size.
    pub created: Mutex<BTreeMap<u64, bool>>,
}

impl PageWork {
    /// Ends the thread once its I/O has completed.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
    /// Tells the page thread how something ended.
    pub fn report(&self, log: &Log, outcome: Outcome) {
        self.outcomes.locked().push(outcome);
        log.wake();
    }
}

/// How something ended that the page thread had asked for.
pub(crate) enum Outcome {
    /// One of the two writes of the part from `from` on.
    Written { from: u64, result: io::Result<()> },
    /// One of the two files of a whole segment was synced.
    Synced { file: FileId, segment: u64, result: io::Result<()> },
    /// The page at `at` was brought in from its file.
    Mapped { at: u64, result: Result<Mapping, MapFailure> },
    /// The frame of the page that moved was given back.
    Released,
}

/// One write on its way: a range of one page, and its checksums.
struct Chunk {
    from: u64,
    to: u64,
    parts_left: u8,
    failed: Option<io::Error>,
}

pub(crate) struct PageThread {
    log: Arc<Log>,
    work: Arc<PageWork>,
    /// Announced and not yet safe.
    read_only_pending: Option<Announced>,
    head_pending: Option<Announced>,
    /// In log order, from `flushed_until` on.
    chunks: VecDeque<Chunk>,
    submitted_until: u64,
    /// Flushed to their ends, and their syncs not begun.
    whole: VecDeque<u64>,
    window: Window,
    helper: Helper,
    retry_at: Option<Instant>,
    space_checked: Instant,
    /// Where the tail was then.
    space_checked_at: u64,
}

impl PageThread {
    pub fn new(log: Arc<Log>, work: Arc<PageWork>) -> Self {
        let submitted_until = log.boundaries.flushed_until();
        Self {
            window: Window::new(&log),
            helper: Helper::start(Arc::clone(&log), Arc::clone(&work)),
            log,
            work,
            read_only_pending: None,
            head_pending: None,
            chunks: VecDeque::new(),
            submitted_until,
            whole: VecDeque::new(),
            retry_at: None,
            space_checked: Instant::now(),
            space_checked_at: submitted_until,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        loop {
            let moved = self.round();
            // A write that failed will not succeed now; one that is on its way must report first.
            let writes_idle = self.chunks.iter().all(|c| c.parts_left == 0);
            if self.work.stop.load(Ordering::Acquire) {
                self.whole.clear();
                if writes_idle && self.work.syncs.under_way() == 0 {
                    return;
                }
            }
            if !moved {
                self.log.wait_for_wake(self.patience());
            }
        }
    }

    /// How long to sleep: short while a grace period or a waiter needs polling.
    fn patience(&self) -> Duration {
        let settling = self.window.is_settling();
        if self.read_only_pending.is_some() || self.head_pending.is_some() || settling {
            Duration::from_micros(50)
        } else if self.log.room.is_waiting() {
            Duration::from_micros(200)
        } else {
            SPACE_INTERVAL
        }
    }

    fn round(&mut self) -> bool {
        let mut moved = self.settle_read_only();
        moved |= self.take_outcomes();
        moved |= self.settle_flushes();
        moved |= self.submit_syncs();
        moved |= self.submit_flushes();
        moved |= self.settle_head();
        moved |= self.window.step(&self.log, &self.helper);
        self.announce_read_only();
        self.announce_head();
        self.look_at_space();
        if self.log.is_in_memory {
            self.log.memory.look(self.log.bytes());
        }
        self.serve_waiters();
        self.log.epoch.reclaim();
        moved
    }

    /// The lowest address that must stay in memory for the frames ahead of the tail to be ready.
    fn head_wanted(&self) -> u64 {
        let g = &self.log.geometry;
        let tail = self.log.tail.load();
        let tail_page = g.page_start(tail);
        let spare = (g.frames / 16).max(1);
        let ahead = tail_page + (1 + spare) * g.page_words;
        let for_waiter = self
            .log
            .room
            .first_need()
            .map_or(0, |need| (self.log.tail.granted() + need).next_multiple_of(g.page_words));
        self.log.earlier.head_for(ahead.max(for_waiter)).min(tail_page)
    }

    fn announce_read_only(&mut self) {
        if self.read_only_pending.is_some() {
            return;
        }
        let g = &self.log.geometry;
        let tail_page = g.page_start(self.log.tail.load());
        let by_size = tail_page.saturating_sub((g.mutable_pages - 1) * g.page_words);
        let wanted = by_size.max(self.head_wanted());
        let b = &self.log.boundaries;
        if wanted > b.read_only() {
            b.announce_read_only(wanted);
        }
        self.read_only_pending = b.begin_read_only(&self.log.epoch);
    }

    fn settle_read_only(&mut self) -> bool {
        let Some(announced) = self.read_only_pending else { return false };
        if !self.log.boundaries.settle_read_only(&self.log.epoch, &announced) {
            return false;
        }
        self.read_only_pending = None;
        self.log.ages.note(announced.to, crate::store::unix_ms());
        true
    }

    fn announce_head(&mut self) {
        if self.head_pending.is_some() {
            return;
        }
        let b = &self.log.boundaries;
        let flushed = self.log.geometry.page_start(b.flushed_until());
        let held = match self.window.holds() {
            Some(page) if !mutant!("head_ignores_the_window") => page,
            _ => u64::MAX,
        };
        let unneeded = self.log.geometry.page_start(self.log.not_needed_below());
        let wanted = self.head_wanted().max(unneeded).min(flushed).min(held);
        if wanted > b.head() {
            self.head_pending = Some(b.begin_head(&self.log.epoch, wanted));
        }
    }

    fn settle_head(&mut self) -> bool {
        let Some(announced) = self.head_pending else { return false };
        let b = &self.log.boundaries;
        let (from, to) = (b.safe_head(), announced.to);
        if !b.settle_head(&self.log.epoch, &announced) {
            return false;
        }
        self.head_pending = None;
        for mapping in self.log.pages_left_memory(from, to) {
            self.helper.ask(Job::Drop(mapping));
        }
        self.log.tail.raise_limit(self.log.earlier.limit_for(to));
        true
    }

    fn serve_waiters(&mut self) {
        if !self.log.room.is_waiting() {
            return;
        }
        if !self.log.health.is_writable() {
            self.log.room.dismiss(self.log.health.breakage().is_some());
        }
        let tail_page = self.log.geometry.page_start(self.log.tail.load());
        let exhausted = self.log.boundaries.safe_head() >= tail_page;
        self.log.room.serve(&self.log.tail, exhausted);
    }

    fn submit_flushes(&mut self) -> bool {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        if self.retry_at.take().is_some() {
            self.resubmit_failed();
        }
        let mut moved = false;
        let end = self.log.boundaries.safe_read_only();
        while self.submitted_until < end
            && self.chunks.len() < FLUSH_DEPTH
            && self.whole.len() + self.work.syncs.under_way() < SYNC_BACKLOG
        {
            let from = self.submitted_until;
            let page_end = self.log.geometry.page_start(from) + self.log.geometry.page_words;
            let to = end.min(page_end);
            debug_assert!(to.is_multiple_of(BLOCK_WORDS), "a block would be written twice");
            self.chunks.push_back(Chunk { from, to, parts_left: 2, failed: None });
            self.helper.ask(Job::Flush { from, to });
            self.submitted_until = to;
            moved = true;
        }
        moved
    }

    /// Has segments synced that no write comes to any more.
    fn submit_syncs(&mut self) -> bool {
        let mut moved = false;
        while self.work.syncs.under_way() < SYNC_DEPTH
            && let Some(segment) = self.whole.pop_front()
        {
            // A checkpoint may have come first.
            if self.work.syncs.begin(segment) {
                self.helper.ask(Job::Sync { segment });
            }
            moved = true;
        }
        moved
    }

    /// What a failed sync left on the disk cannot be known: it is never tried again.
    fn file_synced(&self, file: FileId, segment: u64, result: io::Result<()>) {
        let unopened = match &result {
            // Left to the next checkpoint.
            Err(e) if could_not_open(e) => true,
            Err(e) => {
                self.log.health.sync_failed(self.log.device.path(file).display(), e);
                false
            }
            Ok(()) => false,
        };
        self.work.syncs.file_ended(segment, unopened);
    }

    fn resubmit_failed(&mut self) {
        let again: Vec<_> = self
            .chunks
            .iter_mut()
            .filter(|c| c.parts_left == 0 && c.failed.as_ref().is_some_and(is_shortage))
            .map(|c| {
                (c.parts_left, c.failed) = (2, None);
                (c.from, c.to)
            })
            .collect();
        again.into_iter().for_each(|(from, to)| self.helper.ask(Job::Flush { from, to }));
    }

    fn take_outcomes(&mut self) -> bool {
        let outcomes = std::mem::take(&mut *self.work.outcomes.locked());
        let any = !outcomes.is_empty();
        for outcome in outcomes {
            match outcome {
                Outcome::Written { from, result } => self.part_written(from, result),
                Outcome::Synced { file, segment, result } => {
                    self.file_synced(file, segment, result);
                }
                Outcome::Mapped { at, result } => {
                    self.window.mapped(&self.log, &self.helper, at, result);
                }
                Outcome::Released => self.window.released(),
            }
        }
        any
    }

    fn part_written(&mut self, from: u64, result: io::Result<()>) {
        let chunk = self
            .chunks
            .iter_mut()
            .find(|c| c.from == from)
            .expect("a chunk stays until both of its writes have reported");
        chunk.parts_left -= 1;
        if let Err(e) = result
            && chunk.failed.as_ref().is_none_or(is_shortage)
        {
            chunk.failed = Some(e);
        }
    }

    fn settle_flushes(&mut self) -> bool {
        let mut moved = false;
        while let Some(chunk) = self.chunks.front() {
            if chunk.parts_left > 0 {
                break;
            }
            let (from, to) = (chunk.from, chunk.to);
            let chunk = self.chunks.pop_front().expect("it is the first");
            if let Some(error) = &chunk.failed {
                self.flush_failed(error);
                self.chunks.push_front(chunk);
                break;
            }
            self.log.health.written();
            self.chunk_written(from, to);
            moved = true;
        }
        moved
    }

    fn chunk_written(&mut self, from: u64, to: u64) {
        let g = &self.log.geometry;
        let segment = g.segment_of(from);
        let first_block = g.offset_in_segment(from) / ALIGNMENT as u64;
        self.work.syncs.written(segment);
        self.log.raw.side_written(segment, first_block, (to - from) / BLOCK_WORDS);
        self.log.boundaries.flushed(to);
        // Parts settle in log order: all before this one are written as well.
        if to.is_multiple_of(g.segment_words) && !mutant!("whole_left_to_the_checkpoint") {
            self.whole.push_back(segment);
        }
    }

    /// A shortage is waited out; anything else ends writing for good.
    fn flush_failed(&mut self, error: &io::Error) {
        if self.retry_at.is_some() {
            return;
        }
        let path = self.log.device.path(FileId::Segment(0));
        let place = path.parent().unwrap_or(&path).display().to_string();
        if let Some(reason) = shortage(error, &place) {
            self.log.health.stuck(reason);
            self.retry_at = Some(Instant::now() + SPACE_INTERVAL);
        } else if self.log.health.breakage().is_none() {
            self.log.health.broke(format!("writing to {place} failed: {error}"));
        }
    }

    /// Refuses writes while the disk could not take what is in memory and keep its reserve. Looks now
    /// and then, and whenever a part of the reserve was written.
    fn look_at_space(&mut self) {
        let log = &self.log;
        let tail = log.tail.load();
        let written = (tail - self.space_checked_at) * 8;
        let due = self.space_checked.elapsed() >= SPACE_INTERVAL || written > log.space_reserve / 8;
        if !due || log.health.is_stuck() {
            return;
        }
        (self.space_checked, self.space_checked_at) = (Instant::now(), tail);
        let Ok(space) = Space::look(log, &self.work.created.locked()) else { return };
        let free = space.free;
        let reserve = if mutant!("space_without_reserve") { 0 } else { log.space_reserve };
        let needed = space.spoken_for + reserve;
        if free >= needed {
            log.health.short(None);
        } else {
            log.health.short(Some(format!(
                "{free} bytes are free in {}, {needed} are needed; free some, or move the data \
                 directory to a larger disk",
                log.device
                    .path(FileId::Manifest)
                    .parent()
                    .map_or_else(String::new, |p| p.display().to_string())
            )));
        }
    }
}

/// What is short, if an error says that something is that may come back: the disk's space, or the
/// descriptors or memory of process and system.
fn shortage(error: &io::Error, place: &str) -> Option<String> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => Some(format!(
            "no file can be opened in {place}: {error}; raise the limit of open files (ulimit -n) \
             or lower the number of clients"
        )),
        Some(libc::ENOMEM | libc::EAGAIN | libc::ENOBUFS) => {
            Some(format!("writing to {place} finds no memory: {error}"))
        }
        _ => is_full(error).then(|| format!("the disk that holds {place} is full: {error}")),
    }
}

fn is_shortage(error: &io::Error) -> bool {
    shortage(error, "").is_some()
}

#[cfg(all(test, not(loom)))]
mod tests;
