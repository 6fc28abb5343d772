//! Whether the log takes writes, and why not.
//!
//! Three things keep it from that. *Broken* is for good: a write or a sync failed, or a file does not
//! hold what was written; what is on the disk cannot be known, so nothing more is promised until a
//! restart looks. *Short* passes: the disk is full, or the process has no descriptor or memory left;
//! the page thread tries again and clears it. *Redo*: the redo log cannot be written; its reader sets
//! and clears that. Reads go on in all three.

use super::Log;
use crate::device::could_not_open;
use crate::sync::{Locked, mutant};
use std::fmt::Display;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whether the log takes writes.
#[derive(Default)]
pub(crate) struct Health {
    refuses: AtomicBool,
    reasons: Mutex<Reasons>,
}

#[derive(Default)]
struct Reasons {
    /// A write or a sync failed: for good.
    broken: Option<String>,
    /// The disk is full, or the system has no descriptor or memory left: until it has.
    short: Option<String>,
    /// The redo log cannot be written: until its reader says that it can.
    redo: Option<String>,
}

impl Health {
    /// Why nothing can be written any more, if so; what passes is no such reason.
    pub fn breakage(&self) -> Option<String> {
        self.reasons.locked().broken.clone()
    }
    /// Why writes are refused, if they are.
    pub fn refusal(&self) -> Option<String> {
        if !self.refuses.load(Ordering::Acquire) {
            return None;
        }
        let reasons = self.reasons.locked();
        let Reasons { broken, short, redo } = &*reasons;
        broken.clone().or_else(|| short.clone()).or_else(|| redo.clone())
    }
    /// Why a write is refused, if it is. One that was `admitted` belongs to a transaction that has
    /// begun: what passes does not tear it in two.
    pub fn refusal_of(&self, admitted: bool) -> Option<String> {
        match admitted && !mutant!("transaction_refused_half_way") {
            true if self.is_writable() => None,
            true => self.breakage(),
            false => self.refusal(),
        }
    }
    pub fn is_writable(&self) -> bool {
        !self.refuses.load(Ordering::Acquire)
    }
    /// Whether something is short that may come back: the disk's space above all.
    pub fn is_short(&self) -> bool {
        !self.is_writable() && self.reasons.locked().short.is_some()
    }
    /// A device failed: nothing is taken until a restart.
    pub fn broke(&self, reason: String) {
        tracing::error!("the log takes no writes until a restart: {reason}");
        self.set(|reasons| reasons.broken = reasons.broken.take().or(Some(reason)));
    }
    /// A sync failed. What it left on the disk cannot be known, so it is for good; but who could not
    /// open the file has synced nothing and failed nothing: a later one may do it. Says what happened.
    pub fn sync_failed(&self, what: impl Display, error: &io::Error) -> String {
        let what = format!("syncing {what} failed: {error}");
        if !could_not_open(error) {
            self.broke(what.clone());
        }
        what
    }
    /// Sets or clears a shortage that passes.
    pub fn short(&self, reason: Option<String>) {
        self.set(|reasons| match (&reasons.short, reason) {
            (None, Some(reason)) => {
                tracing::warn!("writes are refused for now: {reason}");
                reasons.short = Some(reason);
            }
            (Some(_), None) => {
                tracing::info!("writes are taken again");
                reasons.short = None;
            }
            _ => {}
        });
    }
    /// Sets or clears what is wrong with the redo log. Who sets it has logged it.
    pub fn redo(&self, reason: Option<String>) {
        self.set(|reasons| reasons.redo = reason);
    }
    fn set(&self, change: impl FnOnce(&mut Reasons)) {
        let mut reasons = self.reasons.locked();
        change(&mut reasons);
        let refuses = reasons.broken.is_some() || reasons.short.is_some() || reasons.redo.is_some();
        self.refuses.store(refuses, Ordering::Release);
    }
}

/// Ends a wait that a shortage makes long: whoever waits must be told.
pub(crate) struct Shortage<'a> {
    log: &'a Log,
    flushed: u64,
    since: Instant,
}

impl<'a> Shortage<'a> {
    /// How long nothing may be flushed while something is short.
    pub const PATIENCE: Duration = Duration::from_secs(2);

    pub fn new(log: &'a Log) -> Self {
        Self { log, flushed: log.boundaries.flushed_until(), since: Instant::now() }
    }

    /// What is short, once it has been for too long.
    pub fn verdict(&mut self) -> Result<(), String> {
        let flushed = self.log.boundaries.flushed_until();
        match self.log.health.refusal() {
            Some(reason) if flushed == self.flushed => {
                if self.since.elapsed() < Self::PATIENCE {
                    Ok(())
                } else {
                    Err(reason)
                }
            }
            _ => {
                (self.flushed, self.since) = (flushed, Instant::now());
                Ok(())
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::FileId;
    use crate::device::fault::{Fault, FaultDevice, Operation};
    use crate::{BlockingSession, Config, Database, Store};
    use std::sync::Arc;

    const PAGE: u64 = 4096;

    /// Four pages of memory, and segments of four.
    fn open(device: &Arc<FaultDevice>) -> Store {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (PAGE, 4 * PAGE);
        (config.mutable_size, config.readonly_size) = (2 * PAGE, 2 * PAGE);
        Store::open_on(config, device.clone()).expect("opens")
    }

    fn write(s: &mut BlockingSession, i: u64) -> bool {
        s.upsert(Database(0), &(i % 20).to_le_bytes(), &[1; 1000]).is_ok()
    }

    /// Writes until that is refused, or until it is taken.
    fn write_until(store: &Store, taken: bool) {
        let mut s = store.blocking_session();
        let end = Instant::now() + Duration::from_secs(60);
        for i in 0.. {
            if write(&mut s, i) == taken {
                return;
            }
            assert!(Instant::now() < end, "{:?}", store.stats().not_writable);
            std::thread::yield_now();
        }
    }

    /// A quota that was used up when a file was to be made broke the log until a restart.
    #[test]
    fn a_file_that_finds_no_space_is_a_shortage_that_passes() {
        for errno in [libc::EDQUOT, libc::ENOSPC] {
            for file in [FileId::Segment(1), FileId::Side(1)] {
                let device = FaultDevice::new();
                let store = open(&device);
                device.inject(Fault::new(Operation::Create, errno).file(file));
                write_until(&store, false);
                let health = &store.inner().log.health;
                assert!(health.is_short(), "{errno} {file:?}");
                device.heal();
                write_until(&store, true);
                assert_eq!(health.refusal(), None, "{errno} {file:?}");
            }
        }
    }

    /// It cannot have its full size at once, and grows as it is written.
    #[test]
    fn a_segment_that_the_quota_does_not_hold_whole_is_begun_all_the_same() {
        let device = FaultDevice::new();
        let store = open(&device);
        let full_size = Fault::new(Operation::Create, libc::EDQUOT).file(FileId::Segment(1));
        device.inject(full_size.times(1));
        let mut s = store.blocking_session();
        for i in 0..64 {
            assert!(write(&mut s, i), "{:?}", store.stats().not_writable);
        }
    }
}
