//! The page thread: it alone moves the boundaries, flushes pages and frees frames.
//!
//! It only submits I/O and never waits for the disk. Each round:
//!
//! ```text
//!   tail moved on ---> announce read_only --grace--> safe_read_only ---> write blocks + checksums
//!                                                                              |
//!   limit (zeroed frames) <-- safe_head <--grace-- announce head <--- flushed_until
//! ```
//!
//! The next frames are ready before the tail needs them: `spare` pages ahead of the tail's own.

use super::Log;
use super::boundaries::Announced;
use crate::device::{ALIGNMENT, Bytes, FileId, Request};
use crate::sync::Locked;
use crate::tier::raw::{block_crc, side_size};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const BLOCK_WORDS: u64 = (ALIGNMENT / 8) as u64;
/// Writes in flight at once.
const FLUSH_DEPTH: usize = 16;
/// How often a full disk is tried again, and space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_millis(200);

/// Shared with the thread: what it is asked for, what I/O reports, what a checkpoint must sync.
#[derive(Default)]
pub(crate) struct PageWork {
    stop: AtomicBool,
    outcomes: Mutex<Vec<Outcome>>,
    unsynced: Mutex<BTreeSet<u64>>,
}

impl PageWork {
    /// Ends the thread once its I/O has completed.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
    /// Takes the segments written since they were last synced.
    pub fn take_unsynced(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *self.unsynced.locked())
    }
}

struct Outcome {
    from: u64,
    result: io::Result<()>,
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
    /// Segments whose files exist, and whether the disk gave them their full size.
    created: BTreeMap<u64, bool>,
    retry_at: Option<Instant>,
    space_checked: Instant,
    space_reserve: u64,
}

impl PageThread {
    pub fn new(log: Arc<Log>, work: Arc<PageWork>) -> Self {
        let submitted_until = log.boundaries.flushed_until();
        let free = log.device.free_space().unwrap_or(u64::MAX);
        let space_reserve = (log.geometry.segment_words * 16).min(free / 8);
        Self {
            log,
            work,
            read_only_pending: None,
            head_pending: None,
            chunks: VecDeque::new(),
            submitted_until,
            created: BTreeMap::new(),
            retry_at: None,
            space_checked: Instant::now(),
            space_reserve,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        loop {
            let moved = self.round();
            // A write that failed will not succeed now; one that is on its way must report first.
            let idle = self.chunks.iter().all(|c| c.parts_left == 0);
            if self.work.stop.load(Ordering::Acquire) && idle {
                return;
            }
            if !moved {
                self.log.wait_for_wake(self.patience());
            }
        }
    }

    /// How long to sleep: short while a grace period or a waiter needs polling.
    fn patience(&self) -> Duration {
        if self.read_only_pending.is_some() || self.head_pending.is_some() {
            Duration::from_micros(50)
        } else if self.log.room.is_waiting() {
            Duration::from_micros(200)
        } else {
            SPACE_INTERVAL
        }
    }

    fn round(&mut self) -> bool {
        let mut moved = self.settle_read_only();
        moved |= self.settle_flushes();
        moved |= self.submit_flushes();
        moved |= self.settle_head();
        self.announce_read_only();
        self.announce_head();
        self.look_at_space();
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
        ahead.max(for_waiter).saturating_sub(g.ring_words()).min(tail_page)
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
        let wanted = self.head_wanted().min(flushed);
        if wanted > b.head() {
            self.head_pending = Some(b.begin_head(&self.log.epoch, wanted));
        }
    }

    fn settle_head(&mut self) -> bool {
        let Some(announced) = self.head_pending else { return false };
        let b = &self.log.boundaries;
        let g = &self.log.geometry;
        let (from, to) = (g.page_start(b.safe_head()), announced.to);
        if !b.settle_head(&self.log.epoch, &announced) {
            return false;
        }
        self.head_pending = None;
        // A start in the middle of the ring's first turn leaves no partial page: both are aligned.
        for page in (from..to).step_by(g.page_words as usize) {
            self.log.page_left_memory(page);
        }
        self.log.tail.raise_limit(to + g.ring_words());
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
        while self.submitted_until < end && self.chunks.len() < FLUSH_DEPTH {
            let from = self.submitted_until;
            let page_end = self.log.geometry.page_start(from) + self.log.geometry.page_words;
            let to = end.min(page_end);
            debug_assert!(to.is_multiple_of(BLOCK_WORDS), "a block would be written twice");
            if let Err(e) = self.create_segment(self.log.geometry.segment_of(from)) {
                self.flush_failed(e);
                break;
            }
            self.chunks.push_back(Chunk { from, to, parts_left: 2, failed: None });
            self.submit_chunk(from, to);
            self.submitted_until = to;
            moved = true;
        }
        moved
    }

    fn resubmit_failed(&mut self) {
        let again: Vec<_> = self
            .chunks
            .iter_mut()
            .filter(|c| c.parts_left == 0 && c.failed.is_some())
            .map(|c| {
                (c.parts_left, c.failed) = (2, None);
                (c.from, c.to)
            })
            .collect();
        again.into_iter().for_each(|(from, to)| self.submit_chunk(from, to));
    }

    fn submit_chunk(&self, from: u64, to: u64) {
        let log = &self.log;
        // SAFETY: `to <= safe_read_only`, and the frame is not reused before `flushed_until`
        // passes the chunk, which happens after both writes have completed.
        let slice = unsafe { log.frames.flush_slice(from, to) };
        let data = Bytes::new(slice);
        let crcs: Vec<u8> =
            data.chunks(ALIGNMENT).flat_map(|block| block_crc(block).to_le_bytes()).collect();
        let segment = log.geometry.segment_of(from);
        let offset = log.geometry.offset_in_segment(from);
        let write_bytes = (data.len() + crcs.len()) as u64;
        log.counters.write_bytes.fetch_add(write_bytes, Ordering::Relaxed);
        log.device.submit(Request::Write {
            file: FileId::Segment(segment),
            offset,
            bytes: data,
            done: self.report(from),
        });
        log.device.submit(Request::Write {
            file: FileId::Side(segment),
            offset: offset / ALIGNMENT as u64 * 4,
            bytes: Bytes::new(crcs),
            done: self.report(from),
        });
    }

    fn report(&self, from: u64) -> Box<dyn FnOnce(io::Result<()>) + Send> {
        let (log, work) = (Arc::clone(&self.log), Arc::clone(&self.work));
        Box::new(move |result| {
            let outcome = Outcome { from, result };
            work.outcomes.locked().push(outcome);
            log.wake();
        })
    }

    /// Files have their full size from creation, where the disk has the room.
    fn create_segment(&mut self, segment: u64) -> io::Result<()> {
        if self.created.contains_key(&segment) {
            return Ok(());
        }
        let device = &self.log.device;
        let size = self.log.geometry.segment_words * 8;
        let create = |file, size| match device.create(file, size) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                device.create(file, 0).map(|()| false)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false), // an earlier try
            Err(e) => Err(e),
        };
        let whole = create(FileId::Segment(segment), size)?;
        // A side file is small and read in whole blocks: it has its full size or waits for space.
        match device.create(FileId::Side(segment), side_size(&self.log.geometry)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.created.insert(segment, whole);
        Ok(())
    }

    fn settle_flushes(&mut self) -> bool {
        let outcomes = std::mem::take(&mut *self.work.outcomes.locked());
        for Outcome { from, result } in outcomes {
            let chunk = self
                .chunks
                .iter_mut()
                .find(|c| c.from == from)
                .expect("a chunk stays until both of its writes have reported");
            chunk.parts_left -= 1;
            if let Err(e) = result {
                chunk.failed = Some(e);
            }
        }
        let mut moved = false;
        while let Some(chunk) = self.chunks.front() {
            if chunk.parts_left > 0 {
                break;
            }
            if let Some(error) = &chunk.failed {
                let error = io::Error::new(error.kind(), error.to_string());
                self.flush_failed(error);
                break;
            }
            let Chunk { from, to, .. } = *chunk;
            self.chunks.pop_front();
            self.chunk_written(from, to);
            moved = true;
        }
        moved
    }

    fn chunk_written(&self, from: u64, to: u64) {
        let g = &self.log.geometry;
        let segment = g.segment_of(from);
        let first_block = g.offset_in_segment(from) / ALIGNMENT as u64;
        self.work.unsynced.locked().insert(segment);
        self.log.raw.side_written(segment, first_block, (to - from) / BLOCK_WORDS);
        self.log.boundaries.flushed(to);
    }

    /// A full disk is tried again; anything else ends writing for good.
    fn flush_failed(&mut self, error: io::Error) {
        if self.retry_at.is_some() {
            return;
        }
        let path = self.log.device.path(FileId::Segment(0));
        let place = path.parent().unwrap_or(&path).display().to_string();
        if error.kind() == io::ErrorKind::StorageFull {
            self.log.health.full(Some(format!("the disk that holds {place} is full")));
            self.retry_at = Some(Instant::now() + SPACE_INTERVAL);
        } else if self.log.health.breakage().is_none() {
            self.log.health.broke(format!("writing to {place} failed: {error}"));
        }
    }

    /// Refuses writes while the disk could not take what is in memory and keep its reserve.
    fn look_at_space(&mut self) {
        if self.space_checked.elapsed() < SPACE_INTERVAL || self.retry_at.is_some() {
            return;
        }
        self.space_checked = Instant::now();
        let log = &self.log;
        let Ok(free) = log.device.free_space() else { return };
        let g = &log.geometry;
        let unflushed = (log.tail.load() - log.boundaries.flushed_until()) * 8;
        let allocated = match self.created.get(&g.segment_of(self.submitted_until)) {
            Some(true) => g.segment_words * 8 - g.offset_in_segment(self.submitted_until),
            _ => 0,
        };
        let needed = unflushed.saturating_sub(allocated) + self.space_reserve;
        if free >= needed {
            log.health.full(None);
        } else {
            log.health.full(Some(format!(
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
