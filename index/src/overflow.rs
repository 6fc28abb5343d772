//! Overflow buckets: where the buckets behind a chain's first one come from, and go back to.
//!
//! They have numbers from 1 on (31 bits; 0 ends a chain) in an arena that never moves. One that a
//! latch holder has unlinked may still be under the eyes of a reader without a latch, so it waits
//! in *limbo*, all zero but for its link, until an epoch begun after the unlinking is safe; only
//! then is it wiped and used again. Nobody waits for that: while limbo is not safe, fresh memory is.

use crate::Epoch;
use crate::bucket::{Bucket, OVERFLOW_MAX};
use crate::memory::Buckets;
use crate::sync::{AtomicU64, Mutex, Relaxed, SeqCst, fence, lock, mutant};
use std::collections::VecDeque;
use std::io;

pub(crate) struct Overflow {
    buckets: Buckets,
    most: u32,
    /// One more than the highest number ever given out; for the size in bytes, without the lock.
    used: AtomicU64,
    pool: Mutex<Pool>,
}

struct Pool {
    /// The next number that was never used.
    next: u32,
    /// Those nobody can see.
    free: Vec<u32>,
    /// Those that someone may still see, until the epoch beside them is safe; oldest first.
    limbo: VecDeque<(u64, u32)>,
}

impl Overflow {
    pub(crate) fn new(most: u64, huge_pages: bool) -> io::Result<Self> {
        let most = most.min(u64::from(OVERFLOW_MAX)) as u32;
        Ok(Self {
            buckets: Buckets::new(0, u64::from(most) + 1, huge_pages)?,
            most,
            used: AtomicU64::new(1),
            pool: Mutex::new(Pool { next: 1, free: Vec::new(), limbo: VecDeque::new() }),
        })
    }

    /// An empty, unlinked bucket; `None` when there is no memory for one.
    pub(crate) fn allocate(&self, epoch: &Epoch) -> Option<u32> {
        let mut pool = lock(&self.pool);
        pool.begin_grace(epoch);
        if pool.free.is_empty() {
            pool.free_what_is_safe(epoch);
        }
        if let Some(index) = pool.free.pop() {
            if !mutant!("overflow_without_wiping") {
                self.get(index).wipe();
            }
            return Some(index);
        }
        if pool.next > self.most || self.buckets.commit(u64::from(pool.next) + 1).is_err() {
            return None;
        }
        pool.next += 1;
        self.used.store(u64::from(pool.next), Relaxed);
        Some(pool.next - 1)
    }

    /// Takes back a bucket that was never linked.
    pub(crate) fn put_back(&self, index: u32) {
        lock(&self.pool).free.push(index);
    }

    /// Takes back a bucket that has been unlinked and is empty.
    pub(crate) fn retire(&self, index: u32, epoch: &Epoch) {
        debug_assert!(self.get(index).is_vacant(), "only an empty bucket leaves its chain");
        // The next epoch, whoever begins it. The fence keeps the load behind the unlinking: without
        // it another thread may begin that epoch before the unlinking is seen, and a reader that
        // pins in it may still come by the old link.
        if !mutant!("overflow_unlink_fence") {
            fence(SeqCst);
        }
        let after = epoch.current() + 1;
        lock(&self.pool).limbo.push_back((after, index));
    }

    /// Bucket `index`, which [`allocate`](Self::allocate) gave.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> &Bucket {
        // SAFETY: an index comes from `allocate`, which granted the memory before it gave out the
        // number; whoever reads it from a chain acquired it from the one who linked it.
        unsafe { self.buckets.get(u64::from(index)) }
    }

    /// Bytes ever used: they are not given back to the system.
    pub(crate) fn bytes(&self) -> u64 {
        (self.used.load(Relaxed) - 1) * size_of::<Bucket>() as u64
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        self.buckets.resident_bytes()
    }
}

impl Pool {
    /// Begins the epoch that limbo waits for, before it is needed: the caller is pinned in an older
    /// one, so it is never safe on the spot.
    fn begin_grace(&self, epoch: &Epoch) {
        if self.limbo.front().is_some_and(|&(oldest, _)| epoch.current() < oldest) {
            epoch.bump();
        }
    }

    fn free_what_is_safe(&mut self, epoch: &Epoch) {
        while let Some(&(after, index)) = self.limbo.front() {
            if !epoch.is_safe(after) && !mutant!("overflow_without_grace") {
                return;
            }
            self.limbo.pop_front();
            self.free.push(index);
        }
    }
}
