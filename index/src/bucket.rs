//! A bucket: one cache line of seven entries and a control word.
//!
//! ```text
//!   byte 0        8                                    56         64
//!       +--------+--------+--------+--- ... --+--------+----------+
//!       | entry0 | entry1 | entry2 |          | entry6 | control  |
//!       +--------+--------+--------+--- ... --+--------+----------+
//!
//!   control   63            33   32   31           17    16     15         0
//!            +----------------+-------+--------------+--------+-------------+
//!            | overflow       | multi | shared       | excl.  | sequence    |
//!            | 31             | 1     | latch 15     | 1      | 16          |
//!            +----------------+-------+--------------+--------+-------------+
//! ```
//!
//! A chain is a bucket of the table and the overflow buckets behind it, linked by index (0 is the
//! end). Latch, multi and sequence mean something in the chain's first bucket only; an overflow
//! bucket uses the link alone.
//!
//! - While the exclusive bit is set, its holder alone stores to any word of the chain.
//! - *multi* is set only while the exclusive bit is.
//! - *sequence* counts the multi-key commands that have ended in this bucket, modulo 2^16.
//! - An entry never moves inside a chain except during a split (see `grow`), and an overflow bucket
//!   is unlinked only while it is empty and reused only a grace period later. So a reader without a
//!   latch that walks the chain meets every entry that stays in it.

use crate::entry::Entry;
use crate::sync::{AtomicU64, Relaxed, ordering};

/// Entries in a bucket; few under loom, so that chains are common.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 7 };

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

/// One cache line. All zero is an empty, unlatched bucket with nothing behind it.
#[repr(C, align(64))]
pub(crate) struct Bucket {
    entries: [AtomicU64; SLOTS],
    control: AtomicU64,
}

impl Bucket {
    #[cfg(loom)]
    pub(crate) fn empty() -> Self {
        Self { entries: std::array::from_fn(|_| AtomicU64::new(0)), control: AtomicU64::new(0) }
    }

    /// An entry for one who holds no latch.
    #[inline]
    pub(crate) fn entry(&self, slot: usize) -> Entry {
        // Acquire pairs with the release in `publish`: the record behind it is complete, and who
        // reads an entry that a split has cleared sees the split.
        Entry(self.entries[slot].load(ordering!(Acquire, "entry_acquire")))
    }

    /// Stores an entry (or empties it) for all to see. Only under the chain's exclusive latch, or
    /// before the bucket is linked.
    #[inline]
    pub(crate) fn publish(&self, slot: usize, entry: Entry) {
        self.entries[slot].store(entry.0, ordering!(Release, "entry_release"));
    }

    #[inline]
    pub(crate) fn is_vacant(&self) -> bool {
        (0..SLOTS).all(|slot| self.entry(slot).is_empty())
    }

    #[inline]
    pub(crate) fn control(&self) -> Control {
        // Acquire pairs with the release stores of this word: a linked bucket is initialised, and
        // whoever sees a latch free sees what was done under it.
        Control(self.control.load(ordering!(Acquire, "control_acquire")))
    }

    /// Stores the control word for all to see. Only under the chain's exclusive latch.
    #[inline]
    pub(crate) fn set_control(&self, control: Control) {
        self.control.store(control.0, ordering!(Release, "control_release"));
    }

    /// Takes the exclusive latch if nobody has any.
    #[inline]
    pub(crate) fn try_latch(&self) -> bool {
        let seen = Control(self.control.load(Relaxed));
        // Acquire pairs with the release of whoever let go of the latch.
        !seen.is_latched() && self.replace(seen, Control(seen.0 | EXCLUSIVE))
    }

    /// Takes a share of the latch if nobody has it exclusively.
    #[inline]
    pub(crate) fn try_latch_shared(&self) -> bool {
        let seen = Control(self.control.load(Relaxed));
        let room = seen.0 & (EXCLUSIVE | SHARED_MASK) < SHARED_MASK && seen.0 & EXCLUSIVE == 0;
        room && self.replace(seen, Control(seen.0 + SHARED_ONE))
    }

    /// Lets go of a share of the latch.
    #[inline]
    pub(crate) fn unlatch_shared(&self) {
        // Release pairs with the acquire in `try_latch`: no read under the share comes after a
        // write of the next holder.
        let before = self.control.fetch_sub(SHARED_ONE, ordering!(Release, "unshare_release"));
        debug_assert!(before & SHARED_MASK != 0, "a share is let go of once");
    }

    #[inline]
    fn replace(&self, seen: Control, new: Control) -> bool {
        self.control
            .compare_exchange_weak(seen.0, new.0, ordering!(Acquire, "latch_acquire"), Relaxed)
            .is_ok()
    }

    /// Empties a bucket that nobody can see: it is not linked, and a grace period has passed.
    pub(crate) fn wipe(&self) {
        for slot in &self.entries {
            slot.store(0, Relaxed);
        }
        self.control.store(0, Relaxed);
    }

    pub(crate) fn address(&self) -> *const u8 {
        std::ptr::from_ref(self).cast()
    }
}

const SEQUENCE_MASK: u64 = 0xffff;
const EXCLUSIVE: u64 = 1 << 16;
const SHARED_ONE: u64 = 1 << 17;
const SHARED_MASK: u64 = 0x7fff << 17;
const MULTI: u64 = 1 << 32;
const OVERFLOW_SHIFT: u32 = 33;

/// The largest index of an overflow bucket.
pub(crate) const OVERFLOW_MAX: u32 = (1 << 31) - 1;

const _: () = assert!(
    SEQUENCE_MASK | EXCLUSIVE | SHARED_MASK | MULTI | (OVERFLOW_MAX as u64) << OVERFLOW_SHIFT
        == u64::MAX
);

/// The value of a control word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Control(u64);

impl Control {
    #[inline]
    pub(crate) fn is_latched(self) -> bool {
        self.0 & (EXCLUSIVE | SHARED_MASK) != 0
    }

    #[inline]
    pub(crate) fn is_multi(self) -> bool {
        self.0 & MULTI != 0
    }

    #[inline]
    pub(crate) fn sequence(self) -> u16 {
        (self.0 & SEQUENCE_MASK) as u16
    }

    /// The next bucket of the chain; 0 is none.
    #[inline]
    pub(crate) fn overflow(self) -> u32 {
        (self.0 >> OVERFLOW_SHIFT) as u32
    }

    #[inline]
    pub(crate) fn with_overflow(self, index: u32) -> Self {
        let rest = self.0 & ((1 << OVERFLOW_SHIFT) - 1);
        Self(rest | u64::from(index) << OVERFLOW_SHIFT)
    }

    #[inline]
    pub(crate) fn with_multi(self) -> Self {
        Self(self.0 | MULTI)
    }

    /// Without the exclusive latch; a multi-key command that held it is counted as ended.
    #[inline]
    pub(crate) fn unlatched(self) -> Self {
        debug_assert!(self.0 & EXCLUSIVE != 0, "a latch is let go of once");
        let sequence = self.sequence().wrapping_add(u16::from(self.is_multi()));
        Self(self.0 & !(EXCLUSIVE | MULTI | SEQUENCE_MASK) | u64::from(sequence))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_wraps_without_touching_the_latch() {
        let control = Control(SEQUENCE_MASK | EXCLUSIVE | MULTI).with_overflow(OVERFLOW_MAX);
        let after = control.unlatched();
        assert_eq!(after.sequence(), 0);
        assert!(!after.is_latched() && !after.is_multi());
        assert_eq!(after.overflow(), OVERFLOW_MAX);
    }

    #[test]
    fn only_multi_key_commands_move_the_sequence() {
        assert_eq!(Control(EXCLUSIVE | 7).unlatched().sequence(), 7);
        assert_eq!(Control(EXCLUSIVE | MULTI | 7).unlatched().sequence(), 8);
    }
}
