//! The logical databases: which index serves which, and how many keys each holds.
//!
//! SELECT's number leads through `map` to a *slot*: an index with its counts. Records carry the
//! slot's number, so SWAPDB only swaps two places of the map, and FLUSHDB puts a new slot with a
//! floor in place: records of that slot number below the floor are dead. Both happen at a
//! safepoint, where the whole `Tables` is replaced; sessions take the new one when they enter.

use ferrite_index::HashIndex;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A logical database's number, as SELECT names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Database(pub u8);

pub(crate) struct Slot {
    pub number: u8,
    pub index: HashIndex,
    /// Records of this slot below it belong to a flushed database.
    pub floor: u64,
    keys: AtomicI64,
    expiring: AtomicI64,
}

impl Slot {
    pub fn new(number: u8, index: HashIndex, floor: u64, keys: u64, expiring: u64) -> Self {
        Self {
            number,
            index,
            floor,
            keys: AtomicI64::new(keys as i64),
            expiring: AtomicI64::new(expiring as i64),
        }
    }

    /// Keys, and keys with an expiry.
    pub fn counts(&self) -> (u64, u64) {
        let of = |n: &AtomicI64| n.load(Ordering::Relaxed).max(0) as u64;
        (of(&self.keys), of(&self.expiring))
    }

    /// Counts a change from one presence to another: `None` absent, else whether it expires.
    pub fn count(&self, before: Option<bool>, after: Option<bool>) {
        let keys = i64::from(after.is_some()) - i64::from(before.is_some());
        let expiring = i64::from(after == Some(true)) - i64::from(before == Some(true));
        if keys != 0 {
            self.keys.fetch_add(keys, Ordering::Relaxed);
        }
        if expiring != 0 {
            self.expiring.fetch_add(expiring, Ordering::Relaxed);
        }
    }
}

#[derive(Clone)]
pub(crate) struct Tables {
    /// Database number to slot number.
    pub map: Vec<u8>,
    pub slots: Vec<Arc<Slot>>,
}

impl Tables {
    pub fn slot(&self, db: Database) -> &Arc<Slot> {
        &self.slots[usize::from(self.map[usize::from(db.0)])]
    }
}
