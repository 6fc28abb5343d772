//! What the page thread has done for it: whatever may wait for the disk or takes long.
//!
//! One thread carries the jobs out in their order and reports each outcome; it decides nothing.
//! Writes and syncs are only submitted here: their completions report for themselves.

use super::Log;
use super::page_thread::{Outcome, PageWork};
use crate::device::{ALIGNMENT, Bytes, FileId, Mapping, Request, is_full};
use crate::sync::{
    Arc, Locked,
    atomic::Ordering,
    mpsc::{Receiver, Sender, channel},
    mutant,
    thread::JoinHandle,
};
use crate::tier::raw::{RawSegments, block_crc, side_size};
use std::io;

pub(crate) enum Job {
    /// Write `[from, to)`, part of one page below `safe_read_only` whose frame stays until both
    /// writes have reported, and its checksums.
    Flush { from: u64, to: u64 },
    /// Sync the files of a segment that no write comes to any more.
    Sync { segment: u64 },
    /// Bring the page at `at`, flushed up to `end`, into memory from its file.
    Map { at: u64, end: u64 },
    /// Give back the frame of a page that moved; the page stays in memory until this reports.
    Release { page: u64 },
    /// Unmap.
    Drop(Mapping),
}

/// Why a page was not brought in.
pub(crate) enum MapFailure {
    /// It cannot be mapped, or its checksums cannot be read.
    Refused(String),
    /// Its file does not hold what was written.
    Damaged(String),
}

/// The page thread's end; dropping it ends the thread once all jobs are done.
pub(crate) struct Helper {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    pub fn start(log: Arc<Log>, work: Arc<PageWork>) -> Self {
        let (jobs, queue) = channel();
        let own_reads = log.raw.with_own_counters();
        let worker = Worker { log, work, raw: own_reads };
        let run = move || worker.run(&queue);
        Self { jobs: Some(jobs), thread: Some(crate::store::spawn("ferrite-helper", run)) }
    }

    pub fn ask(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("it is taken at the drop only");
        // It only ends early by a panic, which ends the process.
        jobs.send(job).expect("the helper outlives its queue");
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Worker {
    log: Arc<Log>,
    work: Arc<PageWork>,
    /// Counts apart, so that filling the window is not taken for commands that missed memory.
    raw: RawSegments,
}

impl Worker {
    fn run(self, queue: &Receiver<Job>) {
        let carry_out = std::panic::AssertUnwindSafe(|| {
            while let Ok(job) = queue.recv() {
                self.carry_out(job);
            }
        });
        if std::panic::catch_unwind(carry_out).is_err() {
            tracing::error!("the helper thread died; restart to recover");
            std::process::abort();
        }
    }

    fn carry_out(&self, job: Job) {
        match job {
            Job::Flush { from, to } => {
                if let Err(e) = self.create_segment(self.log.geometry.segment_of(from)) {
                    // Both writes have failed with it.
                    let again = match e.raw_os_error() {
                        Some(number) => io::Error::from_raw_os_error(number),
                        None => io::Error::new(e.kind(), e.to_string()),
                    };
                    self.report(Outcome::Written { from, result: Err(e) });
                    self.report(Outcome::Written { from, result: Err(again) });
                } else {
                    self.write(from, to);
                }
            }
            Job::Sync { segment } => self.sync(segment),
            Job::Map { at, end } => {
                let result = self.map(at, end);
                self.report(Outcome::Mapped { at, result });
            }
            Job::Release { page } => {
                // SAFETY: the page thread asks once the move has settled, and keeps the page in
                // memory until this is reported.
                unsafe { self.log.frames.release_frame(page) };
                self.report(Outcome::Released);
            }
            Job::Drop(mapping) => drop(mapping),
        }
    }

    fn report(&self, outcome: Outcome) {
        self.work.report(&self.log, outcome);
    }

    fn write(&self, from: u64, to: u64) {
        let log = &self.log;
        // SAFETY: `to <= safe_read_only`, and the frame is not reused before `flushed_until`
        // passes the part, which happens after both writes have completed.
        let slice = unsafe { log.frames.flush_slice(from, to) };
        let data = Bytes::new(slice);
        let crcs: Vec<u8> =
            data.chunks(ALIGNMENT).flat_map(|block| block_crc(block).to_le_bytes()).collect();
        let segment = log.geometry.segment_of(from);
        let offset = log.geometry.offset_in_segment(from);
        let write_bytes = (data.len() + crcs.len()) as u64;
        log.counters.write_bytes.fetch_add(write_bytes, Ordering::Relaxed);
        let done = || -> Box<dyn FnOnce(io::Result<()>) + Send> {
            let (log, work) = (Arc::clone(&self.log), Arc::clone(&self.work));
            Box::new(move |result| work.report(&log, Outcome::Written { from, result }))
        };
        log.device.submit(Request::Write {
            file: FileId::Segment(segment),
            offset,
            bytes: data,
            done: done(),
        });
        log.device.submit(Request::Write {
            file: FileId::Side(segment),
            offset: offset / ALIGNMENT as u64 * 4,
            bytes: Bytes::new(crcs),
            done: done(),
        });
    }

    fn sync(&self, segment: u64) {
        let submit = |file, is_left_out: bool| {
            let (log, work) = (Arc::clone(&self.log), Arc::clone(&self.work));
            let done = Box::new(move |result| {
                work.report(&log, Outcome::Synced { file, segment, result });
            });
            if is_left_out {
                return done(Ok(()));
            }
            self.log.device.submit(Request::Sync { file, done });
        };
        submit(FileId::Segment(segment), mutant!("whole_segment_without_sync"));
        submit(FileId::Side(segment), mutant!("whole_side_without_sync"));
    }

    /// Files have their full size from creation, where the disk has the room.
    fn create_segment(&self, segment: u64) -> io::Result<()> {
        if self.work.created.locked().contains_key(&segment) {
            return Ok(());
        }
        let device = &self.log.device;
        let size = self.log.geometry.segment_words * 8;
        let create = |file, size| match device.create(file, size) {
            Ok(()) => Ok(true),
            Err(e) if is_full(&e) => device.create(file, 0).map(|()| false),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false), // an earlier try
            Err(e) => Err(e),
        };
        let whole = create(FileId::Segment(segment), size)?;
        // A side file is small and read in whole blocks: it has its full size or waits for space.
        match device.create(FileId::Side(segment), side_size(&self.log.geometry)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.work.created.locked().insert(segment, whole);
        Ok(())
    }

    /// The written part of a page, verified: mapped where that is allowed, else a copy.
    fn map(&self, at: u64, end: u64) -> Result<Mapping, MapFailure> {
        if self.log.unmapped.is_some() {
            return self
                .raw
                .read_blocking(at, end)
                .map(Mapping::copied)
                .map_err(MapFailure::Refused);
        }
        let file = FileId::Segment(self.log.geometry.segment_of(at));
        let offset = self.log.geometry.offset_in_segment(at);
        let mapping = self
            .log
            .device
            .map(file, offset, (end - at) as usize * 8)
            .map_err(|e| format!("mapping {}: {e}", self.log.device.path(file).display()))
            .map_err(MapFailure::Refused)?;
        match self.raw.compare_blocking(at, &mapping).map_err(MapFailure::Refused)? {
            None => Ok(mapping),
            Some(why) => Err(MapFailure::Damaged(why)),
        }
    }
}
