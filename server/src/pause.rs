//! CLIENT PAUSE: commands of all clients, or those that write, wait until a time.
//!
//! The flag is raised at a safepoint: when CLIENT PAUSE answers, no write is half done and none is
//! still to come. So whoever looks at it must be inside (or alone) when it does and runs its
//! command in the same stay; a look before it goes inside only saves it the way. The data set
//! stands still meanwhile: no expired key is removed either. Checkpoints go on.
//!
//! Two pauses add up, as in redis-server 7.0.15: the longer time, and all commands if one of them
//! was for all.

use crate::commands::OutsideCall;
use crate::context::{Context, unix_ms};
use crate::worker::Message;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

/// Which commands wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Paused {
    /// Those that write.
    Writes = 1,
    /// All.
    All = 2,
}

/// Whether commands wait, and until when.
#[derive(Debug, Default)]
pub struct Pause {
    /// A [`Paused`], or 0. All accesses are `Relaxed`: the safepoint orders them.
    kind: AtomicU8,
    until_ms: AtomicU64,
    /// Held while it changes.
    turn: Mutex<()>,
}

impl Pause {
    /// Whether a command is to wait; `writes` says whether it may change data.
    #[inline]
    pub fn holds(&self, writes: bool) -> bool {
        match self.kind.load(Relaxed) {
            0 => false,
            kind => (writes || kind == Paused::All as u8) && !self.is_over(),
        }
    }
    /// When a pause that has begun ends, in Unix milliseconds.
    pub fn until_ms(&self) -> Option<u64> {
        (self.kind.load(Relaxed) != 0).then(|| self.until_ms.load(Relaxed))
    }
    #[cold]
    fn is_over(&self) -> bool {
        unix_ms() >= self.until_ms.load(Relaxed)
    }
    /// The right to change it.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("nothing panics while it changes")
    }
    fn raise(&self, kind: Paused, until_ms: u64) -> u64 {
        let goes_on = self.kind.load(Relaxed) != 0 && !self.is_over();
        let (last_kind, last_until_ms) = match goes_on {
            true => (self.kind.load(Relaxed), self.until_ms.load(Relaxed)),
            false => (0, 0),
        };
        let until_ms = until_ms.max(last_until_ms);
        self.until_ms.store(until_ms, Relaxed);
        self.kind.store(last_kind.max(kind as u8), Relaxed);
        until_ms
    }
}

/// Lets commands wait until `until_ms`.
pub fn begin(call: &OutsideCall<'_>, kind: Paused, until_ms: u64) {
    let context = call.context;
    let raise = || {
        let _turn = context.pause.turn();
        let until_ms = context.pause.raise(kind, until_ms);
        if let Some(store) = context.store.get() {
            store.hold_expiry(until_ms);
        }
    };
    match (call.alone, context.store.get()) {
        (None, Some(store)) => store.at_safepoint(raise),
        // In a transaction, which is a safepoint, or while nothing can write.
        _ => raise(),
    }
    context.bell.notify_one();
}

/// Lets all commands go on.
pub fn end(context: &Context) {
    end_where(context, |_| true);
}

/// [`end`], if the time has come. Looks only when it is its turn: a pause that begins meanwhile goes on.
pub fn end_if_over(context: &Context) {
    end_where(context, |pause| pause.until_ms().is_some() && pause.is_over());
}

fn end_where(context: &Context, ends: impl FnOnce(&Pause) -> bool) {
    {
        let _turn = context.pause.turn();
        if !ends(&context.pause) {
            return;
        }
        context.pause.kind.store(0, Relaxed);
        if let Some(store) = context.store.get() {
            store.hold_expiry(0);
        }
    }
    for mailbox in context.mailboxes.get().into_iter().flatten() {
        mailbox.send(Message::WakeAll);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Bench;

    /// The control plane saw that the first was over, and waited for its turn when the second began.
    #[test]
    fn a_pause_that_begins_when_another_is_over_goes_on() {
        let bench = Bench::new();
        let context = &bench.context;
        let turn = context.pause.turn();
        context.pause.raise(Paused::Writes, 1);
        std::thread::scope(|threads| {
            threads.spawn(|| end_if_over(context));
            // Time for a look before its turn; too little of it would only see less.
            std::thread::sleep(std::time::Duration::from_millis(100));
            context.pause.raise(Paused::Writes, u64::MAX);
            drop(turn);
        });
        assert!(context.pause.holds(true), "the second pause was ended for the first");
    }
}
