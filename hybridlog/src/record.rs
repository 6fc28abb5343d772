//! [unsafe room] A record's bytes, in a frame or fetched from the device.
//!
//! ```text
//!   w0 info    previous address 48 | flags 16
//!   w1 shape   total bytes 32 | key length 16 | kind 4 | encoding 4 | slot 8      immutable
//!   w2 live    value length 32 | seqlock sequence 32                              in-place form only
//!      expiry  Unix milliseconds, 0 = none                                        has-ttl only
//!      key     padded to 8
//!      value   padded to 8 (in-place form: the capacity, a multiple of 8)
//!
//!   PAD        one word: flag PAD | length in words 48; skips to the next record
//! ```
//!
//! `total bytes` is exact, without the value's padding. In a record in the plain form everything
//! but the flags of w0 is immutable once published, so slices of it may be handed out. In the
//! in-place form expiry and value change behind the seqlock in w2 and are only ever copied.
//! A frame is zero before its first record, so a scanner that meets a zero w1 has met a
//! reservation that is not filled yet, or the tail.
//!
//! Numbers in w0 and w1 are stored on disk: never renumber.

use crate::seqlock;
use crate::sync::{AtomicU64, Ordering, ordering};
use ferrite_index::Address;
use std::marker::PhantomData;
use std::ptr::NonNull;

const ADDRESS_MASK: u64 = (1 << 48) - 1;
const VALID: u64 = 1 << 48;
const TOMBSTONE: u64 = 1 << 49;
const HAS_TTL: u64 = 1 << 50;
const IN_PLACE: u64 = 1 << 51;
const PAD: u64 = 1 << 52;

/// Kind 0 is no record at all, so that zeroed memory is none.
const KIND_STRING: u64 = 1;

/// The longest key, in bytes: 16 bits.
pub(crate) const KEY_LIMIT: usize = 65_535;
/// Values up to this many bytes get the in-place form when they are first overwritten.
pub(crate) const IN_PLACE_LIMIT: usize = 256;
/// The largest header: w0, w1, w2 and expiry.
pub(crate) const HEADER_LIMIT: usize = 32;

/// w0, as loaded once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info(u64);

impl Info {
    pub fn previous(self) -> Address {
        Address::new(self.0 & ADDRESS_MASK)
    }
    pub fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }
    pub fn is_tombstone(self) -> bool {
        self.0 & TOMBSTONE != 0
    }
    pub fn has_ttl(self) -> bool {
        self.0 & HAS_TTL != 0
    }
    pub fn is_in_place(self) -> bool {
        self.0 & IN_PLACE != 0
    }
}

/// w1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(u64);

impl Shape {
    pub fn total_bytes(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
    pub fn words(self) -> u64 {
        (self.total_bytes() as u64).div_ceil(8)
    }
    pub fn key_length(self) -> usize {
        (self.0 >> 32 & 0xffff) as usize
    }
    pub fn kind(self) -> u64 {
        self.0 >> 48 & 0xf
    }
    pub fn encoding(self) -> u8 {
        (self.0 >> 52 & 0xf) as u8
    }
    pub fn slot(self) -> u8 {
        (self.0 >> 56) as u8
    }
    /// Whether these words can be a record that ends within `words_left`.
    pub fn is_plausible(self, info: Info, words_left: u64) -> bool {
        self.kind() == KIND_STRING
            && self.words() <= words_left
            && self.total_bytes() >= fixed_bytes(info, self.key_length())
    }
}

/// What a scanner finds at an address.
pub(crate) enum Step {
    /// Nothing was written here yet.
    End,
    /// Skip so many words.
    Pad(u64),
    /// A record of so many words.
    Record(u64),
}

fn fixed_bytes(info: Info, key_length: usize) -> usize {
    16 + 8 * usize::from(info.is_in_place())
        + 8 * usize::from(info.has_ttl())
        + key_length.next_multiple_of(8)
}

/// What a new record is made of; [`Draft::words`] says how much room it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    pub slot: u8,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub expires_at_ms: Option<u64>,
    pub encoding: u8,
    pub tombstone: bool,
    /// Some: the in-place form with this capacity in bytes, a multiple of 8.
    pub capacity: Option<usize>,
}

impl<'a> Draft<'a> {
    /// The marker that `key` was deleted.
    pub fn tombstone(slot: u8, key: &'a [u8]) -> Self {
        Self {
            slot,
            key,
            value: &[],
            expires_at_ms: None,
            encoding: 0,
            tombstone: true,
            capacity: None,
        }
    }

    fn info(&self, previous: Address) -> Info {
        Info(
            previous.raw()
                | VALID
                | if self.tombstone { TOMBSTONE } else { 0 }
                | if self.expires_at_ms.is_some() { HAS_TTL } else { 0 }
                | if self.capacity.is_some() { IN_PLACE } else { 0 },
        )
    }

    fn total_bytes(&self) -> usize {
        fixed_bytes(self.info(Address::INVALID), self.key.len())
            + self.capacity.unwrap_or(self.value.len())
    }

    /// Words of log that the record takes.
    pub fn words(&self) -> u64 {
        (self.total_bytes() as u64).div_ceil(8)
    }
}

/// Slack for a value that is being overwritten, so that the next overwrites fit: a quarter more,
/// at least 8 bytes, at most [`IN_PLACE_LIMIT`] in all and at most `limit`, what the page holds
/// beside the key.
pub(crate) fn in_place_capacity(length: usize, limit: usize) -> Option<usize> {
    let most = IN_PLACE_LIMIT.min(limit / 8 * 8);
    (length <= most).then(|| (length + (length / 4).max(8)).next_multiple_of(8).min(most))
}

/// A record at an address that stays readable for `'a`: the pin that keeps its frame, or the
/// buffer it was fetched into.
#[derive(Clone, Copy)]
pub(crate) struct RecordRef<'a> {
    /// Points to an initialised record: w0, w1 and `shape().words()` words in all are valid for
    /// atomic reads (and, in a frame, atomic writes) for `'a`.
    words: NonNull<AtomicU64>,
    lifetime: PhantomData<&'a [AtomicU64]>,
}

/// A record's value as one consistent copy or an immutable slice.
pub(crate) struct Loaded<'a> {
    pub bytes: &'a [u8],
    pub expires_at_ms: Option<u64>,
}

impl<'a> RecordRef<'a> {
    /// # Safety
    /// `words` is aligned to 8 and points to a completely published record (or a PAD, or zeroed
    /// words) that stays valid for `'a`.
    pub unsafe fn new(words: NonNull<AtomicU64>) -> Self {
        Self { words, lifetime: PhantomData }
    }

    fn word(&self, index: usize) -> &'a AtomicU64 {
        // SAFETY: callers only name words below the record's length (the type's invariant), so
        // the offset stays inside it.
        let word = unsafe { self.words.add(index) };
        // SAFETY: the word is initialised and valid for `'a` (the type's invariant).
        unsafe { word.as_ref() }
    }

    /// Brings what most records have, header, key and a value of some hundred bytes, towards the
    /// processor's cache.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..3 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = self.words.as_ptr().cast::<i8>().wrapping_add(line * 64);
            // SAFETY: prefetching is a hint that no address can make fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
        }
    }

    pub fn info(&self) -> Info {
        // Acquire: pairs with the release of `mark_tombstone`; the rest of the record was
        // published by the index entry or the previous address that led here.
        Info(self.word(0).load(Ordering::Acquire))
    }

    pub fn shape(&self) -> Shape {
        Shape(self.word(1).load(Ordering::Relaxed))
    }

    /// For a scanner; `words_left` to the end of the page bounds what it believes.
    pub fn step(&self, words_left: u64) -> Result<Step, String> {
        let w0 = self.word(0).load(Ordering::Acquire);
        if w0 & PAD != 0 {
            let words = w0 & ADDRESS_MASK;
            return if (1..=words_left).contains(&words) {
                Ok(Step::Pad(words))
            } else {
                Err(format!("a pad of {words} words where {words_left} are left"))
            };
        }
        if words_left < 2 {
            return if w0 == 0 { Ok(Step::End) } else { Err("a record in one word".into()) };
        }
        // Acquire: pairs with the release store in `write_record`, after which w0 is set.
        let shape = Shape(self.word(1).load(Ordering::Acquire));
        if shape.0 == 0 {
            return Ok(Step::End);
        }
        if !shape.is_plausible(Info(w0 & !(HAS_TTL | IN_PLACE)), words_left) {
            return Err(format!("not a record: {:016x} {:016x}", w0, shape.0));
        }
        Ok(Step::Record(shape.words()))
    }

    fn key_word(&self, info: Info) -> usize {
        2 + usize::from(info.is_in_place()) + usize::from(info.has_ttl())
    }

    /// The key, which is immutable in every form.
    pub fn key(&self) -> &'a [u8] {
        let info = self.info();
        self.immutable_bytes(self.key_word(info), self.shape().key_length())
    }

    fn immutable_bytes(&self, first_word: usize, length: usize) -> &'a [u8] {
        // SAFETY: the offset is at most the record's length, so it stays inside the frame or the
        // buffer, or one past its end when `length` is 0.
        let start = unsafe { self.words.add(first_word) };
        // SAFETY: `length` bytes from there belong to the record (its shape says so) and are
        // never written again: the key in every form, the value in the plain form.
        unsafe { std::slice::from_raw_parts(start.as_ptr().cast::<u8>(), length) }
    }

    /// The value and expiry, for who shares or owns the latch of the key's bucket.
    pub fn load<'b>(&self, scratch: &'b mut Vec<u8>) -> Loaded<'b>
    where
        'a: 'b,
    {
        self.try_load(scratch).expect("no writer is inside while the latch is held")
    }

    /// The value and expiry: a slice of the record in the plain form, else a consistent copy in
    /// `scratch`. `None` when a writer kept moving it.
    pub fn try_load<'b>(&self, scratch: &'b mut Vec<u8>) -> Option<Loaded<'b>>
    where
        'a: 'b,
    {
        let info = self.info();
        let shape = self.shape();
        let value_word = self.key_word(info) + shape.key_length().div_ceil(8);
        if !info.is_in_place() {
            let length = shape.total_bytes() - fixed_bytes(info, shape.key_length());
            let expiry = if info.has_ttl() { self.word(2).load(Ordering::Relaxed) } else { 0 };
            return Some(Loaded {
                bytes: self.immutable_bytes(value_word, length),
                expires_at_ms: (expiry != 0).then_some(expiry),
            });
        }
        let capacity = self.capacity(info, shape);
        let expiry = seqlock::read(self.word(2), |length| {
            // What it held before is written over: only what is longer must be filled first.
            let words = length.min(capacity).div_ceil(8);
            scratch.resize(words * 8, 0);
            for (i, bytes) in scratch.chunks_exact_mut(8).enumerate() {
                let word = self.word(value_word + i).load(Ordering::Relaxed);
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            scratch.truncate(length);
            if info.has_ttl() { self.word(3).load(Ordering::Relaxed) } else { 0 }
        })?;
        Some(Loaded { bytes: scratch, expires_at_ms: (expiry != 0).then_some(expiry) })
    }

    /// Expiry alone.
    pub fn expires_at_ms(&self) -> Option<u64> {
        let info = self.info();
        if !info.has_ttl() {
            return None;
        }
        // One word is read whole; a concurrent change gives the old or the new one.
        let expiry = self.word(2 + usize::from(info.is_in_place())).load(Ordering::Relaxed);
        (expiry != 0).then_some(expiry)
    }

    fn capacity(&self, info: Info, shape: Shape) -> usize {
        shape.total_bytes() - fixed_bytes(info, shape.key_length())
    }

    /// Whether a value of this length, expiry and encoding can replace the present one in place.
    pub fn fits_in_place(&self, length: usize, expires: bool, encoding: u8) -> bool {
        let info = self.info();
        let shape = self.shape();
        info.is_in_place()
            && length <= self.capacity(info, shape)
            && (!expires || info.has_ttl())
            && encoding == shape.encoding()
    }

    /// Replaces value and expiry. The caller holds the exclusive latch of the key's bucket, saw
    /// the address at or above `read_only` inside its pin, and `fits_in_place`.
    pub fn write_in_place(&self, value: &[u8], expires_at_ms: Option<u64>) {
        let info = self.info();
        let shape = self.shape();
        debug_assert!(self.fits_in_place(value.len(), expires_at_ms.is_some(), shape.encoding()));
        let value_word = self.key_word(info) + shape.key_length().div_ceil(8);
        seqlock::write(self.word(2), value.len(), || {
            if info.has_ttl() {
                self.word(3).store(expires_at_ms.unwrap_or(0), Ordering::Relaxed);
            }
            store_bytes(value, |i, word| self.word(value_word + i).store(word, Ordering::Relaxed));
        });
    }

    /// Replaces the expiry alone, under the same conditions.
    pub fn write_expiry_in_place(&self, expires_at_ms: Option<u64>) {
        let length = seqlock::length(self.word(2).load(Ordering::Relaxed));
        seqlock::write(self.word(2), length, || {
            self.word(3).store(expires_at_ms.unwrap_or(0), Ordering::Relaxed);
        });
    }

    /// Marks the record deleted, under the same conditions as `write_in_place` but in any form.
    pub fn mark_tombstone(&self) {
        self.word(0).fetch_or(TOMBSTONE, Ordering::Release);
    }
}

/// Writes a whole record into reserved words.
///
/// w1 goes first, so that a scanner can step over the record from then on; w0 with the valid flag
/// goes last.
///
/// # Safety
/// `words` points to `draft.words()` words that this caller has reserved and nobody else writes.
pub(crate) unsafe fn write_record(words: NonNull<AtomicU64>, draft: &Draft<'_>, previous: Address) {
    // SAFETY: `write_record`'s caller vouches for so many words, exclusively ours.
    let out =
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast_const(), draft.words() as usize) };
    let info = draft.info(previous);
    let shape = draft.total_bytes() as u64
        | (draft.key.len() as u64) << 32
        | KIND_STRING << 48
        | u64::from(draft.encoding) << 52
        | u64::from(draft.slot) << 56;
    out[1].store(shape, Ordering::Release);
    let mut at = 2;
    if draft.capacity.is_some() {
        out[at].store(seqlock::initial(draft.value.len()), Ordering::Relaxed);
        at += 1;
    }
    if let Some(expiry) = draft.expires_at_ms {
        out[at].store(expiry, Ordering::Relaxed);
        at += 1;
    }
    store_bytes(draft.key, |i, word| out[at + i].store(word, Ordering::Relaxed));
    at += draft.key.len().div_ceil(8);
    store_bytes(draft.value, |i, word| out[at + i].store(word, Ordering::Relaxed));
    at += draft.value.len().div_ceil(8);
    out[at..].iter().for_each(|word| word.store(0, Ordering::Relaxed));
    // Release: a scanner that sees the valid flag sees the body. (Readers come through the index
    // entry, whose release store follows.)
    out[0].store(info.0, ordering!(Release, "record_release"));
}

/// Writes a PAD of `count` words.
///
/// # Safety
/// `words` points to at least one word that this caller has reserved and nobody else writes.
pub(crate) unsafe fn write_pad(words: NonNull<AtomicU64>, count: u64) {
    debug_assert!(count > 0);
    // SAFETY: one word, exclusively ours, says the caller.
    let word = unsafe { words.as_ref() };
    word.store(PAD | count, Ordering::Release);
}

fn store_bytes(bytes: &[u8], mut store: impl FnMut(usize, u64)) {
    let mut chunks = bytes.chunks_exact(8);
    let mut i = 0;
    for chunk in &mut chunks {
        store(i, u64::from_le_bytes(chunk.try_into().expect("chunks of 8")));
        i += 1;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        store(i, u64::from_le_bytes(last));
    }
}
