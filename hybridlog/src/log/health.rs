//! Whether the log takes writes, and why not.
//!
//! Three things keep it from that. *Broken* is for good: a write or a sync failed, or a file does not
//! hold what was written; what is on the disk cannot be known, so nothing more is promised until a
//! restart looks. *Short* passes: the disk is full, or the process has no descriptor or memory left;
//! the page thread tries again and clears it. *Redo*: the redo log cannot be written; its reader sets
//! and clears that. Reads go on in all three.

use super::Log;
use crate::device::could_not_open;
use crate::sync::{
    Instant, Locked, Mutex,
    atomic::{AtomicBool, Ordering},
    mutant,
};
use std::fmt::Display;
use std::io;
use std::time::Duration;

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
    /// A write of the log has failed for that, not only its reserve been reached: until one succeeds.
    stuck: Option<String>,
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
        let Reasons { broken, short, redo, stuck: _ } = &*reasons;
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
    /// A write of the log failed for a shortage: it is short until one succeeds and there is space.
    pub fn stuck(&self, reason: String) {
        // Before writes are refused for it: who sees that sees this.
        self.set(|reasons| reasons.stuck = Some(reason.clone()));
        self.short(Some(reason));
    }
    /// A write of the log succeeded.
    pub fn written(&self) {
        if self.is_stuck() {
            self.set(|reasons| reasons.stuck = None);
        }
    }
    /// Whether a write of the log failed for a shortage, and none has succeeded since.
    pub fn is_stuck(&self) -> bool {
        !self.is_writable() && self.reasons.locked().stuck.is_some()
    }
    /// Why nothing of the log can be written, for good or for now: not why writes are refused though
    /// it could.
    fn obstacle(&self) -> Option<String> {
        if self.is_writable() {
            return None;
        }
        let reasons = self.reasons.locked();
        reasons.broken.clone().or_else(|| reasons.stuck.clone())
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

/// Ends a wait that a shortage makes long: whoever waits must be told. It is one for what the log's own
/// writes make possible, so only their failing counts: while they are slow, or others' writes are
/// refused for the redo log's sake or the disk's reserve, the wait goes on.
pub(crate) struct Shortage<'a> {
    log: &'a Log,
    flushed: u64,
    since: Instant,
}

impl<'a> Shortage<'a> {
    /// How long nothing may be flushed while the log's writes fail.
    pub const PATIENCE: Duration = Duration::from_secs(2);

    pub fn new(log: &'a Log) -> Self {
        Self { log, flushed: log.boundaries.flushed_until(), since: Instant::now() }
    }

    /// Why nothing can be written, once that has been so for too long.
    pub fn verdict(&mut self) -> Result<(), String> {
        let flushed = self.log.boundaries.flushed_until();
        match self.log.health.obstacle() {
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

    /// One who has waited for longer than anybody has patience.
    fn waits_long(log: &Log) -> Shortage<'_> {
        let since = Instant::now().checked_sub(Shortage::PATIENCE);
        Shortage { since: since.expect("the system is up that long"), ..Shortage::new(log) }
    }

    /// The append-only file could not be written or the disk's reserve was reached, a page's write took
    /// two seconds, and so a transaction ended in its middle and the checkpoint failed that would have
    /// healed the file.
    #[test]
    fn only_what_keeps_the_log_from_being_written_ends_a_wait_for_it() {
        let device = FaultDevice::new();
        let store = open(&device);
        let log = &store.inner().log;
        let verdict = || waits_long(log).verdict();
        log.health.redo(Some("its disk is full".into()));
        assert_eq!(verdict(), Ok(()));
        log.health.short(Some("the reserve is reached".into()));
        assert_eq!(verdict(), Ok(()));
        log.health.redo(None);
        log.health.short(None);

        device.inject(Fault::new(Operation::Write, libc::ENOSPC).file(FileId::Segment(1)));
        write_until(&store, false);
        assert!(log.health.is_stuck());
        assert_eq!(Shortage::new(log).verdict(), Ok(()), "it has not waited long");
        assert!(verdict().expect_err("nothing is written").contains("is full"));
        device.heal();
        write_until(&store, true);
        assert!(!log.health.is_stuck());
        assert_eq!(verdict(), Ok(()));

        log.health.broke("a write failed".into());
        assert_eq!(verdict(), Err("a write failed".into()));
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
