//! `Gate`: the safepoint. Closing it gives an instant at which nobody who came through it is
//! inside, so that no command is half done.
//!
//! Entering is: store the slot, SeqCst fence, look at the gate. Closing is: shut the gate, SeqCst
//! fence, look at the slots. Of the two fences one comes first, so either the one who enters sees
//! the shut gate and goes back out, or the closer sees the slot and waits for it.

use crate::Epoch;
use crate::epoch::assert_unpinned;
use crate::sync::{
    AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Relaxed, lock, mutant, ordering, spin_loop,
    wait,
};
use std::fmt;
use std::time::Instant;

/// How often a waiter looks before it goes to sleep.
const SPINS: u32 = if cfg!(any(loom, shuttle)) { 0 } else { 64 };

/// A gate that participants enter through, and that can be closed.
///
/// An epoch may have several gates, but its slots only tell that someone came through one of them:
/// closing any of them waits for all who came through any.
pub struct Gate {
    closed: AtomicBool,
    /// Held by the one who has it closed.
    closer: Mutex<()>,
    /// Held while the gate opens, and from a sleeper's look at it until it sleeps.
    asleep: Mutex<()>,
    opened: Condvar,
    longest_us: AtomicU64,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Self {
        Self {
            closed: AtomicBool::new(false),
            closer: Mutex::new(()),
            asleep: Mutex::new(()),
            opened: Condvar::new(),
            longest_us: AtomicU64::new(0),
        }
    }

    /// Shuts the gate and waits until nobody who came through it is inside. It opens when the
    /// returned value is dropped. One closer at a time, others wait; the calling thread must not be
    /// pinned.
    pub fn close<'a>(&'a self, epoch: &Epoch) -> Closed<'a> {
        let turn = lock(&self.closer);
        let since = Instant::now();
        // The look at the slots begins with a SeqCst fence. See the top of this file.
        self.closed.store(true, Relaxed);
        let closed = Closed { gate: self, since, _turn: turn };
        epoch.wait_until_gated_are_outside();
        closed
    }

    /// The longest time the gate was shut, from the attempt to close it until it opened, in µs.
    pub fn longest_us(&self) -> u64 {
        self.longest_us.load(Relaxed)
    }

    /// The longest time counts anew.
    pub fn forget_longest(&self) {
        self.longest_us.store(0, Relaxed);
    }

    /// Whether one may go in; called after the slot was stored and fenced.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        // Acquire pairs with the release store in `Closed::drop`: who enters after a closing sees
        // what the closer did.
        !self.closed.load(ordering!(Acquire, "gate_enter_acquire"))
    }

    #[cold]
    pub(crate) fn wait_until_open(&self) {
        assert_unpinned();
        for _ in 0..SPINS {
            if self.is_open() {
                return;
            }
            spin_loop();
        }
        let mut guard = lock(&self.asleep);
        while !self.is_open() {
            guard = wait(&self.opened, guard);
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

/// A closed gate with nobody inside. Opens it when dropped, and wakes all who wait.
pub struct Closed<'a> {
    gate: &'a Gate,
    since: Instant,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.gate.longest_us.fetch_max(us, Relaxed);
        let asleep = lock(&self.gate.asleep);
        self.gate.closed.store(false, ordering!(Release, "gate_open_release"));
        drop(asleep);
        if !mutant!("gate_opens_silently") {
            self.gate.opened.notify_all();
        }
    }
}

impl fmt::Debug for Closed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closed").finish_non_exhaustive()
    }
}
