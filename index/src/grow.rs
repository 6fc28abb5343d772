//! Growth: linear hashing, one bucket a step, while everybody goes on.
//!
//! The bucket at `split` is divided between itself and a new one at `2^level + split`. Which entry
//! goes where is one bit of its tag, so no record is read. The steps, under the old bucket's
//! exclusive latch:
//!
//! 1. fill the new chain, which nobody can find yet;
//! 2. publish the new count (and the tidying bit): from here on its hashes lead there;
//! 3. clear the entries that moved; move those that stay to the front of the old chain, copy first;
//! 4. unlink the overflow buckets that became empty; they wait out a grace period;
//! 5. clear the tidying bit; let go of the latch.
//!
//! A reader in the old bucket that misses its entry because of step 3 sees step 2 and looks again.
//!
//! **When.** The table grows once it holds more than [`LOAD`] entries a bucket on average. Chains of
//! buckets that were split are then half as long as those that were not, and with 9 the buckets and
//! overflow buckets together take 12.1 bytes an entry, averaged over a doubling (8 would take 12.5,
//! 7 would take 13.0; overflow gets more than it costs).

use crate::Pin;
use crate::bucket::{Bucket, SLOTS};
use crate::entry::{Entry, rebuild_hash};
use crate::latch::Latch;
use crate::sync::{Release, SeqCst, lock, mutant};
use crate::table::{HashIndex, State};
use std::fmt;

/// Entries a bucket, on average, above which the table grows.
pub(crate) const LOAD: u64 = if cfg!(loom) { 1 } else { 9 };

impl HashIndex {
    /// Splits one bucket if the table is over its load, and tells whether it did. Called by writers
    /// after an insert, when they hold no latch; cheap when there is nothing to do. It does not wait:
    /// where another thread is splitting, or the bucket is latched, a later call does the work.
    pub fn grow(&self, pin: &Pin<'_>) -> bool {
        self.check_pin(pin);
        if !self.wants_to_grow() {
            return false;
        }
        let turn = self.turn.try_lock();
        if turn.is_err() && !mutant!("grow_without_turn") {
            return false;
        }
        // Under the turn, so that a hold that has returned is seen (see `hold_growth`).
        if self.holds.load(SeqCst) != 0 || self.is_at_limit() {
            return false;
        }
        let count = self.bucket_count();
        if count >= self.largest || self.table.commit(count + 1).is_err() {
            return false;
        }
        let Some(latch) = self.try_latch_number(State::split_at(count)) else { return false };
        let split = self.split(&latch, count);
        self.note_size();
        split
    }

    /// Whether the table is over its load and not at its largest: then it grows with the next call,
    /// unless a hold or the limit keeps it from that.
    pub fn wants_to_grow(&self) -> bool {
        let count = self.bucket_count();
        self.entries() > count * LOAD && count < self.largest
    }

    /// Forbids growth until the returned value is dropped; a split that is going on is waited for.
    /// Inserts go on in overflow buckets. Holds add up.
    pub fn hold_growth(&self) -> GrowthHold<'_> {
        self.holds.fetch_add(1, SeqCst);
        if !mutant!("hold_without_turn") {
            // Whoever takes the turn after this sees the hold; whoever had it is done.
            drop(lock(&self.turn));
        }
        GrowthHold { index: self }
    }

    /// Splits the latched bucket of a table of `count` buckets; `false` if there was no memory.
    fn split(&self, latch: &Latch<'_>, count: u64) -> bool {
        let old = State::split_at(count);
        let next = State::tidying(count + 1);
        let moves = |entry: Entry| {
            let hash = rebuild_hash(old, entry.name(), self.smallest_bits);
            next.bucket_of(hash) != old
        };
        let moving = self.entries_of(latch.bucket).filter(|entry| moves(*entry));
        let moving: Vec<Entry> = moving.collect();
        // SAFETY: `grow` has granted memory for `count + 1` buckets, under the turn it still has.
        let new = unsafe { self.table.get(count) };
        if mutant!("split_publishes_first") {
            self.set_state(next);
        }
        if !self.fill(new, &moving) {
            return false;
        }
        if mutant!("split_clears_first") {
            self.tidy(latch, &moves);
        }
        self.set_state(next);
        self.tidy(latch, &moves);
        self.set_state(State::settled(count + 1));
        true
    }

    /// Puts `entries` into the chain of `first`, which nobody else can see.
    fn fill(&self, first: &Bucket, entries: &[Entry]) -> bool {
        let mut links = Vec::new();
        for _ in 1..entries.len().div_ceil(SLOTS) {
            let Some(index) = self.overflow.allocate(&self.epoch) else {
                links.into_iter().for_each(|index| self.overflow.put_back(index));
                return false;
            };
            links.push(index);
        }
        let mut bucket = first;
        for (n, part) in entries.chunks(SLOTS).enumerate() {
            if n > 0 {
                let index = links[n - 1];
                bucket.set_control(bucket.control().with_overflow(index));
                bucket = self.overflow.get(index);
            }
            for (slot, entry) in part.iter().enumerate() {
                bucket.publish(slot, *entry);
            }
        }
        true
    }

    /// Takes what has moved out of the latched chain and closes the gaps from behind.
    fn tidy(&self, latch: &Latch<'_>, moves: &impl Fn(Entry) -> bool) {
        for bucket in self.chain(latch.bucket) {
            for slot in 0..SLOTS {
                let entry = bucket.entry(slot);
                if !entry.is_empty() && moves(entry) {
                    bucket.publish(slot, Entry::EMPTY);
                }
            }
        }
        self.close_gaps(latch.bucket);
        latch.sweep();
    }

    /// Fills the gaps at the front of a latched chain with the entries at its back. Each entry is
    /// moved once at most, forwards, and is to be found in one place or both all the while.
    fn close_gaps(&self, first: &Bucket) {
        let chain: Vec<&Bucket> = self.chain(first).collect();
        let at = |position: usize| (chain[position / SLOTS], position % SLOTS);
        let is_empty = |position| {
            let (bucket, slot) = at(position);
            bucket.entry(slot).is_empty()
        };
        let (mut gap, mut last) = (0, chain.len() * SLOTS - 1);
        while gap < last {
            if !is_empty(gap) {
                gap += 1;
            } else if is_empty(last) {
                last -= 1;
            } else {
                let ((to, slot), (from, from_slot)) = (at(gap), at(last));
                let entry = from.entry(from_slot);
                if mutant!("tidy_clears_before_copy") {
                    from.publish(from_slot, Entry::EMPTY);
                }
                to.publish(slot, entry);
                from.publish(from_slot, Entry::EMPTY);
            }
        }
    }

    /// The entries of a chain, read one after the other.
    pub(crate) fn entries_of<'a>(&'a self, first: &'a Bucket) -> impl Iterator<Item = Entry> + 'a {
        let slots = |bucket: &'a Bucket| (0..SLOTS).map(move |slot| bucket.entry(slot));
        self.chain(first).flat_map(slots).filter(|entry| !entry.is_empty())
    }
}

/// While it lives, the index does not grow.
pub struct GrowthHold<'a> {
    pub(crate) index: &'a HashIndex,
}

impl Drop for GrowthHold<'_> {
    fn drop(&mut self) {
        self.index.holds.fetch_sub(1, Release);
    }
}

impl fmt::Debug for GrowthHold<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrowthHold").finish_non_exhaustive()
    }
}
