//! `Epoch`: who is inside, since when; when nobody can see the old state any more; and what may
//! then be dropped.
//!
//! Whoever touches the index or the log is *pinned*: it owns a slot on its own cache lines, and
//! stores the current epoch number there before its first look and 0 after its last. A change that
//! others must be finished with before it is acted on goes in three steps:
//!
//! 1. make the change visible (unlink the bucket, announce the boundary),
//! 2. [`bump`](Epoch::bump) the epoch,
//! 3. wait until every slot is 0 or holds that number or a later one: [`is_safe`](Epoch::is_safe).
//!
//! A pin is a store, then a SeqCst fence, then the reads; the check is a SeqCst fence, then the
//! loads of the slots. Of the two fences one comes first: either the check sees the pin, or the
//! pinned thread sees the change. A participant that takes the number of step 2 or a later one
//! acquires it from the bump, so it sees the change too.
//!
//! Leaving is a release store, a SeqCst fence and a look at the number of sleepers, so that a
//! sleeper that saw the slot taken is always woken.
//!
//! Memory goes through a private crossbeam-epoch `Collector`. Participants do not pin that one:
//! two keepers inside this type do it for all of them (see [`Relay`]), so a pin stays one store and
//! one fence, and destructors run only in [`reclaim`](Epoch::reclaim), on the thread that calls it.

use crate::Gate;
use crate::sync::{
    Acquire, Arc, AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, Padded, Relaxed, Release,
    SeqCst, fence, lock, lock_std, mutant, ordering, spin_loop, wait,
};
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

/// How often a waiter looks before it goes to sleep.
const SPINS: u32 = if cfg!(any(loom, shuttle)) { 0 } else { 64 };

/// A slot's word when its participant is outside; else `epoch << 1 | came through a gate`.
const OUTSIDE: u64 = 0;
const GATED: u64 = 1;

/// The epochs of one store, and the slots of all who take part.
pub struct Epoch {
    current: Padded<AtomicU64>,
    slots: Box<[Slot]>,
    sleepers: AtomicU32,
    asleep: Mutex<()>,
    left: Condvar,
    relay: Mutex<Relay>,
    graveyard: Graveyard,
}

#[repr(align(128))]
struct Slot {
    word: AtomicU64,
    taken: AtomicBool,
    name: Mutex<String>,
}

impl Epoch {
    /// Epochs for up to `max_participants` at a time.
    pub fn new(max_participants: usize) -> Self {
        let slot = |_| Slot {
            word: AtomicU64::new(OUTSIDE),
            taken: AtomicBool::new(false),
            name: Mutex::new(String::new()),
        };
        Self {
            current: Padded(AtomicU64::new(1)),
            slots: (0..max_participants).map(slot).collect(),
            sleepers: AtomicU32::new(0),
            asleep: Mutex::new(()),
            left: Condvar::new(),
            relay: Mutex::new(Relay::new()),
            graveyard: Graveyard::default(),
        }
    }

    /// A slot of its own for a thread (or a session) called `name`; `None` when all are taken. The
    /// slot is free again when the participant is dropped.
    pub fn register(self: &Arc<Self>, name: &str) -> Option<Participant> {
        let slot = self.slots.iter().position(|slot| {
            // Acquire pairs with the release store of the participant that had it before.
            slot.taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
        })?;
        name.clone_into(&mut lock(&self.slots[slot].name));
        Some(Participant { epoch: Arc::clone(self), slot, not_sync: PhantomData })
    }

    /// Starts a new epoch and returns its number. What the caller made visible before is seen by
    /// every participant that enters in this epoch or a later one.
    pub fn bump(&self) -> u64 {
        // Release pairs with the fence after the load in `enter_slot`; acquire, so that a bump passes on
        // what was made visible before an earlier bump.
        self.current.fetch_add(1, ordering!(AcqRel, "epoch_bump_release")) + 1
    }

    /// The number of the current epoch.
    pub fn current(&self) -> u64 {
        self.current.load(Acquire)
    }

    /// Whether every participant is outside or entered at or after `epoch`. After `true`, nobody
    /// can still act on what was replaced before that epoch was begun.
    pub fn is_safe(&self, epoch: u64) -> bool {
        self.all_slots(|word| word == OUTSIDE || word >> 1 >= epoch)
    }

    /// Waits until [`is_safe`](Self::is_safe): looks a few times, then sleeps; participants wake it
    /// as they leave. The calling thread must not be pinned.
    pub fn wait_until_safe(&self, epoch: u64) {
        assert_unpinned();
        self.wait_until(|| self.is_safe(epoch));
    }

    /// The name of the participant that has been inside longest, if it entered before the current
    /// epoch: who to blame when a grace period does not end.
    pub fn laggard(&self) -> Option<String> {
        let current = self.current();
        let words = self.slots.iter().map(|slot| (slot.word.load(Acquire), slot));
        let (_, slot) = words
            .filter(|(word, _)| *word != OUTSIDE && word >> 1 < current)
            .min_by_key(|(word, _)| word >> 1)?;
        Some(lock(&slot.name).clone())
    }

    /// Hands over something that no new pin can find: it is dropped by a later
    /// [`reclaim`](Self::reclaim), once no pin of today is left.
    pub fn retire(&self, boxed: Box<dyn Send>) {
        let graveyard = Arc::clone(&self.graveyard);
        let mut relay = lock(&self.relay);
        relay.outstanding += 1;
        relay.keepers[0].guard.defer(move || lock_std(&graveyard).push(boxed));
    }

    /// Drops what has been retired and can no longer be seen. Called now and then by one background
    /// thread (the page manager), so that no destructor runs under a client's command. Cheap when
    /// there is nothing to do; never waits for a participant.
    pub fn reclaim(&self) {
        let dead = {
            let mut relay = lock(&self.relay);
            relay.run(self);
            let dead = std::mem::take(&mut *lock_std(&self.graveyard));
            relay.outstanding -= dead.len() as u64;
            dead
        };
        // Outside the lock: a destructor may retire something itself.
        drop(dead);
    }

    /// How many retired things have not been dropped yet.
    pub fn retired(&self) -> u64 {
        lock(&self.relay).outstanding
    }

    /// Waits until nobody is inside who came through a gate.
    pub(crate) fn wait_until_gated_are_outside(&self) {
        assert_unpinned();
        self.wait_until(|| self.all_slots(|word| word & GATED == 0));
    }

    /// Whether all slots satisfy `fits`, seen after a SeqCst fence.
    fn all_slots(&self, fits: impl Fn(u64) -> bool) -> bool {
        if !mutant!("epoch_check_fence") {
            // Pairs with the fence in `enter_slot`: see the top of this file.
            fence(SeqCst);
        }
        // Acquire pairs with the release store in `leave`: what the participant did while inside
        // happened before this returns true.
        self.slots
            .iter()
            .all(|slot| fits(slot.word.load(ordering!(Acquire, "epoch_check_acquire"))))
    }

    fn wait_until(&self, done: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if done() {
                return;
            }
            spin_loop();
        }
        let mut guard = lock(&self.asleep);
        self.sleepers.fetch_add(1, Relaxed);
        // `done` begins with a SeqCst fence, which pairs with the one in `leave`: either the look
        // at the slots sees the leaver's 0, or the leaver sees this sleeper and wakes it.
        while !done() {
            guard = wait(&self.left, guard);
        }
        self.sleepers.fetch_sub(1, Relaxed);
    }

    fn enter_slot(&self, slot: usize, gated: u64) {
        let word = &self.slots[slot].word;
        debug_assert_eq!(word.load(Relaxed), OUTSIDE, "a participant is pinned once at a time");
        // Relaxed, since the fence below is also the acquire that pairs with `bump`. An epoch that
        // is already old by the time it is stored only makes a grace period longer.
        let epoch = self.current.load(Relaxed);
        // Who sees this word instead of the one that `leave_slot` stored sees what was done before,
        // by the fence there; ThreadSanitizer does not follow fences.
        word.store(epoch << 1 | gated, if cfg!(ferrite_tsan) { Release } else { Relaxed });
        if !mutant!("epoch_pin_fence") {
            // Pairs with the fence in `all_slots`: see the top of this file.
            fence(SeqCst);
        }
    }

    fn leave_slot(&self, slot: usize) {
        // Release pairs with the acquire load in `all_slots`.
        self.slots[slot].word.store(OUTSIDE, ordering!(Release, "epoch_leave_release"));
        if !mutant!("epoch_leave_fence") {
            // Pairs with the fence between counting the sleeper and its look: see `wait_until`.
            fence(SeqCst);
        }
        if self.sleepers.load(Relaxed) != 0 && !mutant!("epoch_leaves_silently") {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // The sleeper holds this lock from its look at the slots until it sleeps.
        drop(lock(&self.asleep));
        self.left.notify_all();
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("current", &self.current()).finish_non_exhaustive()
    }
}

/// One thread's (or session's) seat in an [`Epoch`]. It may move to another thread while it is not
/// pinned; two threads cannot share it.
pub struct Participant {
    epoch: Arc<Epoch>,
    slot: usize,
    not_sync: PhantomData<Cell<()>>,
}

impl Participant {
    /// Goes inside. A closed gate does not hold it up: for those who serve the closer. One pin at a
    /// time; while it lives, wait for nothing.
    #[inline]
    pub fn pin(&self) -> Pin<'_> {
        self.epoch.enter_slot(self.slot, 0);
        pins_of_thread::add();
        Pin { participant: self }
    }

    /// Goes inside through `gate`, after waiting for it to open: a few looks, then asleep. One pin
    /// at a time.
    #[inline]
    pub fn enter(&self, gate: &Gate) -> Pin<'_> {
        loop {
            self.epoch.enter_slot(self.slot, GATED);
            if gate.is_open() || mutant!("gate_without_look") {
                pins_of_thread::add();
                return Pin { participant: self };
            }
            self.epoch.leave_slot(self.slot);
            gate.wait_until_open();
        }
    }

    /// The epochs it takes part in.
    pub fn epoch(&self) -> &Arc<Epoch> {
        &self.epoch
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let slot = &self.epoch.slots[self.slot];
        if slot.word.load(Relaxed) != OUTSIDE {
            // Its pin was leaked (mem::forget); nobody else will ever leave for it.
            self.epoch.leave_slot(self.slot);
        }
        // Release pairs with the acquire in `register`.
        slot.taken.store(false, Release);
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Being inside. Leaves when dropped.
pub struct Pin<'a> {
    participant: &'a Participant,
}

impl Pin<'_> {
    /// The epochs it belongs to.
    pub fn epoch(&self) -> &Arc<Epoch> {
        &self.participant.epoch
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        pins_of_thread::remove();
        self.participant.epoch.leave_slot(self.participant.slot);
    }
}

impl fmt::Debug for Pin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("slot", &self.participant.slot).finish_non_exhaustive()
    }
}

/// What was retired, waited out its grace period, and has not been dropped yet.
type Graveyard = Arc<std::sync::Mutex<Vec<Box<dyn Send>>>>;

/// Two crossbeam-epoch guards that are pinned for all participants, and take turns.
///
/// crossbeam runs a deferred function only when every guard that was pinned when it was deferred
/// has been dropped or repinned. Both keepers are always pinned; one repins only once the epoch
/// that began when the *other* one last repinned is safe. Something retired at time `t` therefore
/// outlives two repins after `t`, and the second of them waited for an epoch begun after the first,
/// so after `t`: for every pin that existed at `t`.
struct Relay {
    keepers: [Keeper; 2],
    /// Whose turn it is to repin.
    next: usize,
    /// The epoch begun at the latest repin.
    since: u64,
    /// Retired and not yet dropped.
    outstanding: u64,
}

struct Keeper {
    // Before the handle, so that it is dropped first.
    guard: Guard,
    _handle: LocalHandle,
}

// SAFETY: a `LocalHandle` and its `Guard` hold a pointer to a heap object of the collector, which
// knows no thread: crossbeam withholds `Send` only because they may not be used by two threads at a
// time. Both live in this struct alone, behind `Epoch::relay`'s mutex; what is deferred is `Send`.
unsafe impl Send for Keeper {}

impl Relay {
    /// Enough turns for one thing to travel from `retire` to the graveyard when nobody is inside.
    const TURNS: u32 = 8;

    fn new() -> Self {
        let collector = Collector::new();
        let keeper = || {
            let handle = collector.register();
            Keeper { guard: handle.pin(), _handle: handle }
        };
        // Every pin there will ever be is taken in epoch 1 or later, so the first repin waits for
        // one full epoch after the first turn.
        Self { keepers: [keeper(), keeper()], next: 0, since: 1, outstanding: 0 }
    }

    fn run(&mut self, epoch: &Epoch) {
        for _ in 0..Self::TURNS {
            if self.outstanding == 0 || !epoch.is_safe(self.since) {
                return;
            }
            let guard = &mut self.keepers[self.next].guard;
            guard.repin();
            // Seals what this keeper deferred and runs what has expired.
            guard.flush();
            self.next ^= 1;
            self.since = epoch.bump();
        }
    }
}

/// Asserts, in debug builds, that the calling thread is not pinned in any epoch: it is about to wait.
/// Grace periods and closed gates wait for whoever is inside, so one who waits there can be waiting
/// for himself. Every place that blocks calls it first.
#[inline]
#[track_caller]
pub fn assert_unpinned() {
    debug_assert_eq!(pins_of_thread::count(), 0, "a pinned thread waits");
}

/// Counts the pins of each thread in debug builds, to catch a wait inside a pin.
mod pins_of_thread {
    #[cfg(all(debug_assertions, not(loom)))]
    mod counted {
        #[cfg(shuttle)]
        use crate::scheduled::thread_local;
        use std::cell::Cell;
        thread_local! {
            static PINS: Cell<u32> = const { Cell::new(0) };
        }
        pub(super) fn change(by: i32) {
            PINS.with(|pins| pins.set(pins.get().wrapping_add_signed(by)));
        }
        pub(super) fn count() -> u32 {
            PINS.with(Cell::get)
        }
    }

    // loom's threads share one thread, so there is nothing to count by.
    #[cfg(not(all(debug_assertions, not(loom))))]
    mod counted {
        pub(super) fn change(_by: i32) {}
        pub(super) fn count() -> u32 {
            0
        }
    }

    #[inline]
    pub(super) fn add() {
        counted::change(1);
    }

    #[inline]
    pub(super) fn remove() {
        counted::change(-1);
    }

    pub(super) fn count() -> u32 {
        counted::count()
    }
}
