//! The logical databases: which index serves which, and how many keys each holds.
//!
//! SELECT's number leads through `map` to a *slot*: an index with its counts. Records carry the
//! slot's number, so SWAPDB only swaps two places of the map, and FLUSHDB puts a new slot with a
//! floor in place: records of that slot number below the floor are dead. Both happen at a
//! safepoint, where the whole `Tables` is replaced; sessions take the new one when they enter.

use crate::sync::{
    Arc, Locked, Mutex,
    atomic::{AtomicBool, AtomicI64, Ordering},
};
use ferrite_index::HashIndex;

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
    /// Words of the log that the keys' newest records take.
    live: AtomicI64,
    /// Keys that readers found expired and could not remove without waiting.
    left: Mutex<Vec<Vec<u8>>>,
    /// Whether there are any.
    has_left: AtomicBool,
}

/// So many keys are remembered that readers have left; the expiry cycle comes to the others.
const LEFT_MOST: usize = 1024;

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub keys: u64,
    /// Keys with an expiry.
    pub expiring: u64,
    /// Words of the log that their newest records take.
    pub live: u64,
}

impl Slot {
    pub fn new(number: u8, index: HashIndex, floor: u64, counts: Counts) -> Self {
        let of = |n: u64| AtomicI64::new(n as i64);
        let Counts { keys, expiring, live } = counts;
        let (keys, expiring, live) = (of(keys), of(expiring), of(live));
        let (left, has_left) = (Mutex::default(), AtomicBool::new(false));
        Self { number, index, floor, keys, expiring, live, left, has_left }
    }

    pub fn counts(&self) -> Counts {
        let of = |n: &AtomicI64| n.load(Ordering::Relaxed).max(0) as u64;
        Counts { keys: of(&self.keys), expiring: of(&self.expiring), live: of(&self.live) }
    }

    /// A reader found that `key` has expired, and would have had to wait to remove it.
    #[cold]
    pub fn leave(&self, key: &[u8]) {
        let mut left = self.left.locked();
        if left.len() < LEFT_MOST && left.iter().all(|other| other != key) {
            left.push(key.to_vec());
        }
        self.has_left.store(true, Ordering::SeqCst);
    }

    /// The keys that readers have left.
    pub fn left(&self) -> Vec<Vec<u8>> {
        match self.has_left.load(Ordering::SeqCst) {
            true => self.left.locked().clone(),
            false => Vec::new(),
        }
    }

    /// These are removed, or live again.
    pub fn forget_left(&self, removed: &[Vec<u8>]) {
        let mut left = self.left.locked();
        left.retain(|key| !removed.contains(key));
        self.has_left.store(!left.is_empty(), Ordering::SeqCst);
    }

    /// Counts a record of `before` words that one of `after` takes the place of; 0 is none.
    pub fn count_words(&self, before: u64, after: u64) {
        if before != after {
            self.live.fetch_add(after as i64 - before as i64, Ordering::Relaxed);
        }
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
