//! `Latch` and `SharedLatch`: one bucket's chain, held by a writer or by readers of several keys.
//!
//! Taking one is bounded: after some tries the caller is told that the bucket is busy, and waits
//! outside. The holder of the exclusive latch is the only one who stores to the chain; readers
//! without a latch look on, so each store leaves a chain that is right.
//!
//! The state is read before the bucket is chosen and again once it is latched. While it is latched
//! it cannot be split, so from then on the bucket of its hashes stays the same.

use crate::bucket::{Bucket, SLOTS};
use crate::entry::{Entry, Name};
use crate::sync::{Release, fence, mutant};
use crate::table::{CHAIN_AT_LIMIT, HashIndex};
use crate::{Address, Busy, IndexFull, KeyHash, Pin};
use std::cell::Cell;
use std::fmt;

impl HashIndex {
    /// Takes the exclusive latch of the bucket of `hash`.
    ///
    /// # Errors
    /// [`Busy`] if others hold it for longer than a short spin: leave, then try again.
    #[inline]
    pub fn latch(&self, pin: &Pin<'_>, hash: KeyHash) -> Result<Latch<'_>, Busy> {
        self.check_pin(pin);
        self.attempt(|| {
            let number = self.state().bucket_of(hash);
            let latch = self.try_latch_number(number)?;
            let moved = self.state().bucket_of(hash) != number;
            (!moved || mutant!("latch_without_recheck")).then_some(latch)
        })
    }

    /// Takes a share of the latch of the bucket of `hash`: others may read too, nobody writes.
    ///
    /// # Errors
    /// As [`latch`](Self::latch).
    #[inline]
    pub fn latch_shared(&self, pin: &Pin<'_>, hash: KeyHash) -> Result<SharedLatch<'_>, Busy> {
        self.check_pin(pin);
        self.attempt(|| {
            let number = self.state().bucket_of(hash);
            let bucket = self.bucket(number);
            let latch =
                bucket.try_latch_shared().then(|| SharedLatch { index: self, bucket, number })?;
            let moved = self.state().bucket_of(hash) != number;
            (!moved || mutant!("shared_latch_without_recheck")).then_some(latch)
        })
    }

    #[inline]
    pub(crate) fn try_latch_number(&self, number: u64) -> Option<Latch<'_>> {
        let bucket = self.bucket(number);
        // Lazily: a Latch that was never taken must not be dropped.
        bucket.try_latch().then(|| Latch {
            index: self,
            bucket,
            number,
            reserved: Cell::new(0),
            sweep: Cell::new(false),
        })
    }
}

/// The entry called `name` in the chain that begins with `first`: its bucket, slot and value.
#[inline]
pub(crate) fn find<'a>(
    index: &'a HashIndex,
    first: &'a Bucket,
    name: Name,
) -> Option<(&'a Bucket, usize, Entry)> {
    for bucket in index.chain(first) {
        for slot in 0..SLOTS {
            let entry = bucket.entry(slot);
            if entry.has(name) {
                return Some((bucket, slot, entry));
            }
        }
    }
    None
}

/// The exclusive latch of one bucket, for any number of hashes that share it. Let go when dropped.
pub struct Latch<'a> {
    pub(crate) index: &'a HashIndex,
    pub(crate) bucket: &'a Bucket,
    number: u64,
    /// Slots kept for entries that are announced and not yet there.
    reserved: Cell<u32>,
    /// Whether overflow buckets may have become empty.
    sweep: Cell<bool>,
}

impl Latch<'_> {
    /// Whether this is the latch of `hash`'s bucket in `index`.
    #[inline]
    pub fn covers(&self, index: &HashIndex, hash: KeyHash) -> bool {
        std::ptr::eq(self.index, index) && index.state().bucket_of(hash) == self.number
    }

    /// The entry of `hash`, which this latch covers.
    #[inline]
    pub fn address(&self, hash: KeyHash, node: bool) -> Option<Address> {
        find(self.index, self.bucket, self.name(hash, node)).map(|(_, _, entry)| entry.address())
    }

    /// Makes sure that [`set`](Self::set) of this entry cannot fail. Reservations of several hashes
    /// add up; they end with the latch.
    ///
    /// # Errors
    /// [`IndexFull`] if the entry is absent and there is no room for it.
    pub fn reserve(&self, hash: KeyHash, node: bool) -> Result<(), IndexFull> {
        if find(self.index, self.bucket, self.name(hash, node)).is_some() {
            return Ok(());
        }
        let wanted = self.reserved.get() as usize + 1;
        let vacant = |bucket: &Bucket| (0..SLOTS).filter(|s| bucket.entry(*s).is_empty()).count();
        let mut free: usize = self.index.chain(self.bucket).map(vacant).sum();
        while free < wanted {
            self.append()?;
            free += SLOTS;
        }
        self.reserved.set(wanted as u32);
        Ok(())
    }

    /// Puts the entry of `hash` at `address`, for all to see; the record there is complete. An
    /// entry that was absent needs [`reserve`](Self::reserve) before.
    ///
    /// # Panics
    /// If there is no room, so the reservation was forgotten.
    #[inline]
    pub fn set(&self, hash: KeyHash, node: bool, address: Address) {
        let name = self.name(hash, node);
        let entry = Entry::new(name, address);
        if let Some((bucket, slot, _)) = find(self.index, self.bucket, name) {
            bucket.publish(slot, entry);
            return;
        }
        let (bucket, slot) = self.vacant_slot().expect("reserve came before set");
        bucket.publish(slot, entry);
        self.reserved.set(self.reserved.get().saturating_sub(1));
        self.index.count_entries(1);
    }

    /// Takes the entry of `hash` away, if it is there. The slot stays good for a later `set` under
    /// this latch.
    pub fn remove(&self, hash: KeyHash, node: bool) {
        if let Some((bucket, slot, _)) = find(self.index, self.bucket, self.name(hash, node)) {
            bucket.publish(slot, Entry::EMPTY);
            self.index.count_entries(-1);
            if !std::ptr::eq(bucket, self.bucket) {
                self.sweep.set(true);
            }
        }
    }

    /// Tells readers without a latch to stay away until this latch is let go of: a command of
    /// several keys is about to write. Called before its first write.
    pub fn mark_multi(&self) {
        self.bucket.set_control(self.bucket.control().with_multi());
        if !mutant!("mark_multi_fence") {
            // Pairs with the acquire fence in `still_open`: a write after this one, however weakly
            // ordered, is seen together with the bit.
            fence(Release);
        }
    }

    fn name(&self, hash: KeyHash, node: bool) -> Name {
        debug_assert!(self.covers(self.index, hash), "the latch is of another bucket");
        Name::new(hash, self.index.smallest_bits, node)
    }

    fn vacant_slot(&self) -> Option<(&Bucket, usize)> {
        self.index.chain(self.bucket).find_map(|bucket| {
            (0..SLOTS).find(|slot| bucket.entry(*slot).is_empty()).map(|slot| (bucket, slot))
        })
    }

    /// Links another empty bucket behind the chain.
    fn append(&self) -> Result<(), IndexFull> {
        let length = self.index.chain(self.bucket).count();
        if (length + 1) * SLOTS > CHAIN_AT_LIMIT && self.index.is_at_limit() {
            return Err(IndexFull);
        }
        let new = self.index.overflow.allocate(&self.index.epoch).ok_or(IndexFull)?;
        self.index.note_size();
        let last = self.index.chain(self.bucket).last().expect("a chain has a first bucket");
        last.set_control(last.control().with_overflow(new));
        Ok(())
    }

    /// Unlinks overflow buckets that are empty. Their own links stay, for readers that stand there.
    pub(crate) fn sweep(&self) {
        let mut last = self.bucket;
        loop {
            let next = last.control().overflow();
            if next == 0 {
                return;
            }
            let bucket = self.index.overflow.get(next);
            if bucket.is_vacant() {
                last.set_control(last.control().with_overflow(bucket.control().overflow()));
                self.index.overflow.retire(next, &self.index.epoch);
            } else {
                last = bucket;
            }
        }
    }
}

impl Drop for Latch<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.sweep.get() || self.reserved.get() != 0 {
            self.sweep();
        }
        self.bucket.set_control(self.bucket.control().unlatched());
    }
}

impl fmt::Debug for Latch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latch").field("bucket", &self.number).finish_non_exhaustive()
    }
}

/// A share of the latch of one bucket. Let go when dropped.
pub struct SharedLatch<'a> {
    index: &'a HashIndex,
    bucket: &'a Bucket,
    number: u64,
}

impl SharedLatch<'_> {
    /// Whether this is the latch of `hash`'s bucket in `index`.
    #[inline]
    pub fn covers(&self, index: &HashIndex, hash: KeyHash) -> bool {
        std::ptr::eq(self.index, index) && index.state().bucket_of(hash) == self.number
    }

    /// The entry of `hash`, which this latch covers.
    #[inline]
    pub fn address(&self, hash: KeyHash, node: bool) -> Option<Address> {
        debug_assert!(self.covers(self.index, hash), "the latch is of another bucket");
        let name = Name::new(hash, self.index.smallest_bits, node);
        find(self.index, self.bucket, name).map(|(_, _, entry)| entry.address())
    }
}

impl Drop for SharedLatch<'_> {
    #[inline]
    fn drop(&mut self) {
        self.bucket.unlatch_shared();
    }
}

impl fmt::Debug for SharedLatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLatch").field("bucket", &self.number).finish_non_exhaustive()
    }
}
