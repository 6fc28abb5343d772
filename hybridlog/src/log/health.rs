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
