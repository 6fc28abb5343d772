//! `HashIndex`: the table, and how a hash is looked up in it without a latch.
//!
//! The size of the table is one number, its bucket count, in one atomic word ([`State`]): with
//! `2^level <= count < 2^(level+1)`, the buckets below `count - 2^level` have been split and are
//! chosen by `level + 1` bits of the hash, the others by `level` bits. A bucket is looked at like
//! this, latched or not: read the word; choose the bucket; read or latch it; read the word again; if
//! the hash now belongs to another bucket, start again. That works because a split publishes the
//! new count *after* it has filled the new bucket and *before* it takes anything out of the old one.
//!
//! While the low bit of the word is set, the split that led to this count is still tidying the old
//! bucket up: entries may move towards the front of its chain. A reader that finds its entry does
//! not care. One that finds nothing believes that only if no such tidying touched its bucket
//! meanwhile ([`State::disturbed`]).

use crate::bucket::{Bucket, Control, SLOTS};
use crate::entry::{Name, TAG_BITS};
use crate::latch::find;
use crate::limit::{IndexLimit, Share};
use crate::memory::Buckets;
use crate::overflow::Overflow;
use crate::sync::{
    Acquire, Arc, AtomicU32, AtomicU64, Mutex, Padded, Relaxed, fence, mutant, ordering, spin_loop,
};
use crate::{Address, Busy, Epoch, IndexError, KeyHash, Pin};
use std::fmt;

/// How many times the table can double: the largest is 256 times the smallest, which leaves 7 of
/// the tag's 15 bits to tell entries of one bucket apart.
pub(crate) const DOUBLINGS: u32 = if cfg!(loom) { 1 } else { 8 };

const _: () = assert!(DOUBLINGS < TAG_BITS);

/// How often a latch or a look is tried before the caller is told that the bucket is busy.
const TRIES: u32 = if cfg!(loom) { 2 } else { 128 };

/// The least room kept for overflow buckets, in buckets: address space, not memory.
const LEAST_OVERFLOW: u64 = if cfg!(loom) { 3 } else { 1 << 24 };

/// How large an index is and may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexConfig {
    /// Base-2 logarithm of the smallest table's bucket count, 0 to 26. A bucket is 64 bytes. It
    /// decides where tags lie in a hash, so an image is read with the value it was written with.
    pub smallest_bits: u32,
    /// The most bytes the index grows to, overflow buckets included; 0 is no limit. At the limit
    /// the table stops growing, and a new key whose chain would pass 4 buckets is refused; until
    /// then chains do lengthen, past the limit. [`HashIndex::sharing`] replaces it.
    pub max_bytes: u64,
    /// Whether to ask the kernel for huge pages.
    pub huge_pages: bool,
}

/// A hash index: hash and node bit in, address out.
///
/// All methods take `&self` and may be called by any number of threads; those that look at entries
/// take the caller's pin, which must belong to the epoch the index was made with.
pub struct HashIndex {
    state: Padded<AtomicU64>,
    entries: Padded<AtomicU64>,
    pub(crate) table: Buckets,
    pub(crate) overflow: Overflow,
    pub(crate) epoch: Arc<Epoch>,
    /// Held by the one who splits a bucket.
    pub(crate) turn: Mutex<()>,
    /// How many forbid growth just now.
    pub(crate) holds: AtomicU32,
    pub(crate) smallest_bits: u32,
    /// The most buckets this table's reserved range has room for.
    pub(crate) largest: u64,
    pub(crate) share: Share,
}

impl HashIndex {
    /// An empty index of the smallest size. Cheap whatever the size is: memory is touched when
    /// entries arrive.
    ///
    /// # Errors
    /// [`IndexError::SmallestBits`]; [`IndexError::Memory`] when the kernel refuses even the address
    /// space for a table that cannot grow (one that can grow less than 256-fold is accepted).
    pub fn new(config: IndexConfig, epoch: Arc<Epoch>) -> Result<Self, IndexError> {
        if config.smallest_bits > 26 {
            return Err(IndexError::SmallestBits(config.smallest_bits));
        }
        Self::with_buckets(config, epoch, 1 << config.smallest_bits)
    }

    /// An empty index that starts with `buckets` buckets, as an index that had grown to that
    /// [`bucket_count`](Self::bucket_count) is restored.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`IndexError::StartSize`] if such a count cannot be reached.
    pub fn with_buckets(
        config: IndexConfig,
        epoch: Arc<Epoch>,
        buckets: u64,
    ) -> Result<Self, IndexError> {
        if config.smallest_bits > 26 {
            return Err(IndexError::SmallestBits(config.smallest_bits));
        }
        let smallest = 1u64 << config.smallest_bits;
        let largest = smallest << DOUBLINGS;
        if !(smallest..=largest).contains(&buckets) {
            return Err(IndexError::StartSize { buckets, smallest, largest });
        }
        let (table, largest) = reserve_table(buckets, largest, config.huge_pages)?;
        let most = largest.max(LEAST_OVERFLOW);
        let overflow = Overflow::new(most, config.huge_pages)
            .map_err(|source| IndexError::Memory { bytes: most * BUCKET_BYTES, source })?;
        Ok(Self {
            state: Padded(AtomicU64::new(State::settled(buckets).0)),
            entries: Padded(AtomicU64::new(0)),
            table,
            overflow,
            epoch,
            turn: Mutex::new(()),
            holds: AtomicU32::new(0),
            smallest_bits: config.smallest_bits,
            largest,
            share: Share::of(Arc::new(IndexLimit::new(config.max_bytes))),
        })
    }

    /// The same index, limited together with all others that share `limit`.
    #[must_use]
    pub fn sharing(mut self, limit: &Arc<IndexLimit>) -> Self {
        let counts = self.entries() > 0;
        self.share = Share::of(Arc::clone(limit));
        if counts {
            self.note_size();
        }
        self
    }

    /// Looks for the entry of `hash` without a latch.
    ///
    /// # Errors
    /// [`Busy`] while a multi-key command holds the bucket, and when splits got in the way too often.
    #[inline]
    pub fn probe(&self, pin: &Pin<'_>, hash: KeyHash, node: bool) -> Result<Probe<'_>, Busy> {
        self.check_pin(pin);
        let name = Name::new(hash, self.smallest_bits, node);
        for _ in 0..TRIES {
            let before = self.state();
            let number = before.bucket_of(hash);
            let bucket = self.bucket(number);
            let control = bucket.control();
            if control.is_multi() && !mutant!("read_ignores_multi") {
                return Err(Busy);
            }
            let found = find(self, bucket, name).map(|(_, _, entry)| entry.address());
            // The loads of entries and links above are acquire loads, so this load comes after
            // them: a cleared entry is seen together with the split that cleared it.
            let after = self.state();
            if self.believes(found, number, hash, before, after) {
                return Ok(Probe { index: self, bucket, number, hash, control, address: found });
            }
            spin_loop();
        }
        Err(Busy)
    }

    /// Whether what a look at bucket `number` found, between two readings of the state, is true.
    #[inline]
    fn believes(
        &self,
        found: Option<Address>,
        number: u64,
        hash: KeyHash,
        before: State,
        after: State,
    ) -> bool {
        if mutant!("probe_without_recheck") {
            return true;
        }
        if after.bucket_of(hash) != number {
            return false;
        }
        found.is_some()
            || mutant!("probe_believes_disturbed_miss")
            || !State::disturbed(before, after, number)
    }

    /// Brings the bucket of `hash` towards the cache.
    #[inline]
    pub fn prefetch(&self, hash: KeyHash) {
        let bucket = self.bucket(self.state().bucket_of(hash));
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: prefetching is a hint that no address can make fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(bucket.address().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = bucket.address();
    }

    /// How many buckets the table has now, overflow buckets not counted.
    pub fn bucket_count(&self) -> u64 {
        self.state().count()
    }

    /// How many entries there are, nodes included: exact, once every change begun has returned.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// The table's size as linear hashing names it: `2^level + split` buckets.
    pub fn level_and_split(&self) -> (u32, u64) {
        let count = self.bucket_count();
        (count.ilog2(), count - (1 << count.ilog2()))
    }

    /// Bytes of the index that are in memory, as the kernel counts them: pages never touched are
    /// not. Asks the kernel about every page, so it is for a metric read now and then.
    pub fn resident_bytes(&self) -> u64 {
        self.table.resident_bytes() + self.overflow.resident_bytes()
    }

    /// The number of the bucket that `hash` leads to now; it changes when that bucket splits, so not
    /// while its latch is held.
    pub fn bucket_number(&self, hash: KeyHash) -> u64 {
        self.state().bucket_of(hash)
    }

    /// Whether `more` new entries surely fit under the limit, each in an overflow bucket of its own.
    pub fn has_room_for(&self, more: u64) -> bool {
        self.share.limit.has_room_for(more.saturating_mul(BUCKET_BYTES))
    }

    /// Bytes of all buckets, touched or not: what [`IndexConfig::max_bytes`] limits. Cheap.
    pub fn bytes(&self) -> u64 {
        self.bucket_count() * BUCKET_BYTES + self.overflow.bytes()
    }

    /// The configured [`IndexConfig::smallest_bits`].
    pub fn smallest_bits(&self) -> u32 {
        self.smallest_bits
    }

    #[inline]
    pub(crate) fn state(&self) -> State {
        // Acquire pairs with `set_state`: the bucket a new count adds is filled and in memory.
        State(self.state.load(ordering!(Acquire, "state_acquire")))
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state.0, ordering!(Release, "state_release"));
    }

    /// Bucket `number` of the table, below a count read from the state.
    #[inline]
    pub(crate) fn bucket(&self, number: u64) -> &Bucket {
        debug_assert!(number < self.largest);
        // SAFETY: `number` is below a count that was read from `state`; the release store of that
        // count came after memory for so many buckets was granted.
        unsafe { self.table.get(number) }
    }

    /// The buckets of a chain, in order.
    #[inline]
    pub(crate) fn chain<'a>(&'a self, first: &'a Bucket) -> Chain<'a> {
        Chain { index: self, next: Some(first) }
    }

    #[inline]
    pub(crate) fn check_pin(&self, pin: &Pin<'_>) {
        debug_assert!(Arc::ptr_eq(pin.epoch(), &self.epoch), "the pin is of another epoch");
    }

    /// Whether another bucket would take the index past its configured size.
    pub(crate) fn is_at_limit(&self) -> bool {
        !self.has_room_for(1)
    }

    pub(crate) fn count_entries(&self, by: i64) {
        // Only the number matters; no one concludes from it what the table holds.
        if self.entries.fetch_add(by as u64, Relaxed) == 0 {
            // The table of an index that was never used takes no memory, and does not count.
            self.note_size();
        }
    }

    /// Called after the index has taken a bucket.
    #[cold]
    pub(crate) fn note_size(&self) {
        self.share.grown_to(self.bytes());
    }

    /// Tries `once` a bounded number of times.
    #[inline]
    pub(crate) fn attempt<T>(&self, mut once: impl FnMut() -> Option<T>) -> Result<T, Busy> {
        for _ in 0..TRIES {
            if let Some(done) = once() {
                return Ok(done);
            }
            spin_loop();
        }
        Err(Busy)
    }
}

impl fmt::Debug for HashIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashIndex")
            .field("buckets", &self.bucket_count())
            .field("entries", &self.entries())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// What a look without a latch found.
pub struct Probe<'a> {
    index: &'a HashIndex,
    bucket: &'a Bucket,
    number: u64,
    hash: KeyHash,
    control: Control,
    address: Option<Address>,
}

impl Probe<'_> {
    /// The newest record whose key has this hash's tag; `None` if there is none.
    #[inline]
    pub fn address(&self) -> Option<Address> {
        self.address
    }

    /// Whether no multi-key command has held the bucket from the probe until now: what was read
    /// since then was no half-done state. Called after the record was read.
    ///
    /// Commands that ended in between are told by a 16-bit count. A read that is stopped while
    /// exactly 65,536 of them (or a multiple) go by could be misled, if it had also met the middle of
    /// one; called inside the record's seqlock window, it is exact for values changed in place.
    #[inline]
    pub fn still_open(&self) -> bool {
        // Pairs with the release fence in `mark_multi`, and with whatever made the record visible:
        // who has read what a multi-key command wrote sees the bit, or the count that replaced it.
        if !mutant!("still_open_fence") {
            fence(Acquire);
        }
        let now = self.bucket.control();
        let same =
            mutant!("still_open_without_sequence") || now.sequence() == self.control.sequence();
        // The key may have moved to another bucket, and the command may hold that one.
        let moved = !mutant!("still_open_without_state")
            && self.index.state().bucket_of(self.hash) != self.number;
        !now.is_multi() && same && !moved
    }
}

impl fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The size of the table, and whether the split that led to it is still tidying up.
///
/// ```text
///   63                              1     0
///  +---------------------------------+--------+
///  | bucket count = 2^level + split  | tidying|
///  +---------------------------------+--------+
/// ```
///
/// The sequence of its values only ever goes: `count`, `count + 1` tidying, `count + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State(u64);

impl State {
    pub(crate) const fn settled(count: u64) -> Self {
        Self(count << 1)
    }

    pub(crate) const fn tidying(count: u64) -> Self {
        Self(count << 1 | 1)
    }

    #[inline]
    pub(crate) const fn count(self) -> u64 {
        self.0 >> 1
    }

    const fn is_tidying(self) -> bool {
        self.0 & 1 == 1
    }

    /// The bucket of `hash` in a table of this size.
    #[inline]
    pub(crate) const fn bucket_of(self, hash: KeyHash) -> u64 {
        let count = self.count();
        let half = 1 << count.ilog2();
        let wide = hash.raw() & (2 * half - 1);
        if wide < count { wide } else { wide & (half - 1) }
    }

    /// How many bits of a hash lead to bucket `number`.
    pub(crate) const fn width_of(self, number: u64) -> u32 {
        let level = self.count().ilog2();
        let half = 1 << level;
        if number >= half || number < self.count() - half { level + 1 } else { level }
    }

    /// The bucket that is split when the count goes from `count` to `count + 1`.
    pub(crate) const fn split_at(count: u64) -> u64 {
        count - (1 << count.ilog2())
    }

    /// Whether a split may have moved entries inside bucket `number` between the two readings.
    #[inline]
    pub(crate) fn disturbed(before: Self, after: Self, number: u64) -> bool {
        if before == after && !before.is_tidying() {
            return false;
        }
        // The splits that were going on at some time in between led from these counts.
        let first = before.count() - u64::from(before.is_tidying());
        (first..after.count()).take(1 << 10).any(|count| Self::split_at(count) == number)
            || after.count() - first > 1 << 10
    }
}

pub(crate) struct Chain<'a> {
    index: &'a HashIndex,
    next: Option<&'a Bucket>,
}

impl<'a> Iterator for Chain<'a> {
    type Item = &'a Bucket;

    #[inline]
    fn next(&mut self) -> Option<&'a Bucket> {
        let bucket = self.next?;
        let link = bucket.control().overflow();
        self.next = (link != 0).then(|| self.index.overflow.get(link));
        Some(bucket)
    }
}

const BUCKET_BYTES: u64 = size_of::<Bucket>() as u64;
/// How many slots a chain may have once the index is at its limit.
pub(crate) const CHAIN_AT_LIMIT: usize = 4 * SLOTS;

/// Reserves room for `largest` buckets, or for as large a part of it as the kernel allows.
fn reserve_table(first: u64, largest: u64, huge_pages: bool) -> Result<(Buckets, u64), IndexError> {
    let mut room = largest;
    loop {
        match Buckets::new(first, room, huge_pages) {
            Ok(table) => return Ok((table, room)),
            Err(_) if room / 2 >= first => room /= 2,
            Err(source) => {
                return Err(IndexError::Memory { bytes: room * BUCKET_BYTES, source });
            }
        }
    }
}
