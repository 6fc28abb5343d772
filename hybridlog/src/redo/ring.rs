//! The redo ring: entries of many writers in one order, for one reader.
//!
//! ```text
//!            read (zeroed again)     | reserved: filled or being filled |   free, all zero   |
//!   ─────────────────────────────────┼──────────────────────────────────┼────────────────────┼
//!                              reader's position                       tail                limit
//! ```
//!
//! Positions count words of 8 bytes and never go back. A writer reserves its words with one
//! compare-exchange on `tail`, fills them, and stores the first word, the *header*, last. The reader
//! goes from header to header; one that is still zero ends what it can read. So an entry is read
//! whole or not yet, in the order of the reservations. An entry does not wrap: what is left at the
//! ring's end becomes a PAD. Whoever finds no room is refused before it has changed anything.
//!
//! The reader zeroes what it has read before it raises `limit`: a header is never what an earlier
//! entry left there.

use crate::sync::{AtomicU64, Ordering, mutant, ordering};

/// The first word of a slot: how many words it has, and what the caller says of it.
///
/// ```text
///   63        56 55                 32 31                                 0
///   |  kind      |      tag            |            words                  |
/// ```
///
/// Never zero, since no slot is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header(u64);

impl Header {
    /// The kind of a slot without an entry.
    pub const PAD: u8 = 0;

    pub fn new(kind: u8, tag: u32, words: u64) -> Self {
        assert!(words > 0 && words <= u64::from(u32::MAX) && tag < 1 << 24);
        Self(u64::from(kind) << 56 | u64::from(tag) << 32 | words)
    }
    pub fn kind(self) -> u8 {
        (self.0 >> 56) as u8
    }
    pub fn tag(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }
    pub fn words(self) -> u64 {
        self.0 & u64::from(u32::MAX)
    }
}

/// Cache lines of a next entry that are asked for ahead of it.
#[cfg(all(target_arch = "x86_64", not(loom)))]
const PREFETCHED_LINES: u64 = 8;

/// A word that no other shares its cache line with.
#[repr(align(128))]
struct Padded(AtomicU64);

pub(crate) struct Ring {
    words: Box<[AtomicU64]>,
    tail: Padded,
    limit: Padded,
}

/// Words that a writer has reserved. Dropped unfilled, they are skipped by the reader.
pub(crate) struct Reserved<'r> {
    ring: &'r Ring,
    /// Where it begins.
    pub position: u64,
    pub words: u64,
    filled: bool,
}

impl Ring {
    /// A ring of `words`, a power of two.
    pub fn new(words: usize) -> Self {
        assert!(words.is_power_of_two());
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            tail: Padded(AtomicU64::new(0)),
            limit: Padded(AtomicU64::new(words as u64)),
        }
    }

    pub fn capacity(&self) -> u64 {
        self.words.len() as u64
    }

    /// Up to where entries are reserved.
    pub fn tail(&self) -> u64 {
        self.tail.0.load(Ordering::Acquire)
    }

    fn at(&self, position: u64) -> &AtomicU64 {
        &self.words[(position & (self.capacity() - 1)) as usize]
    }

    /// Words that a reservation of `words` takes at `tail`, the PAD before it included.
    fn needs(&self, tail: u64, words: u64) -> (u64, u64) {
        let left = self.capacity() - (tail & (self.capacity() - 1));
        let pad = if words <= left || mutant!("redo_without_pad") { 0 } else { left };
        (pad, pad + words)
    }

    /// Whether a reservation would be granted now.
    pub fn has_room(&self, words: u64) -> bool {
        let tail = self.tail.0.load(Ordering::Relaxed);
        tail + self.needs(tail, words).1 <= self.limit.0.load(Ordering::Acquire)
    }

    /// Reserves `words`, at most half of the ring. `None`: there is no room for them.
    pub fn reserve(&self, words: u64) -> Option<Reserved<'_>> {
        assert!(words > 0 && words <= self.capacity() / 2);
        let mut tail = self.tail.0.load(Ordering::Relaxed);
        loop {
            let (pad, needed) = self.needs(tail, words);
            let next = tail + needed;
            // Acquire: pairs with the release in `release`, so that the words were zeroed before
            // this writer fills them.
            if next > self.limit.0.load(ordering!(Acquire, "redo_limit_acquire")) {
                return None;
            }
            if mutant!("redo_reserve_in_two_steps") {
                self.tail.0.store(next, Ordering::Release);
            } else if let Err(now) = self.tail.0.compare_exchange_weak(
                tail,
                next,
                // Release: pairs with `tail`, so that a cut that sees this entry reserved also sees
                // what its writer did before.
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                tail = now;
                continue;
            }
            if pad > 0 {
                // Release, as every header, so that it comes after the zeroes of the last round.
                self.at(tail).store(Header::new(Header::PAD, 0, pad).0, Ordering::Release);
            }
            self.expect_next(next, words);
            return Some(Reserved { ring: self, position: tail + pad, words, filled: false });
        }
    }

    /// The header at `position`, where an earlier entry ended; `None` until it is filled.
    pub fn header(&self, position: u64) -> Option<Header> {
        // Acquire: pairs with the release in `finish`, so that the entry's words are there.
        let word = self.at(position).load(ordering!(Acquire, "redo_header_acquire"));
        (word != 0).then_some(Header(word))
    }

    /// A word of an entry whose header was seen. For the reader.
    pub fn word(&self, position: u64) -> u64 {
        self.at(position).load(Ordering::Relaxed)
    }

    /// Words of an entry, which lie side by side, as their bytes: as many words as `to` has room for.
    /// For the reader.
    pub fn bytes(&self, position: u64, to: &mut [u8]) {
        let (to, _) = to.as_chunks_mut::<8>();
        let words = self.slice(position, to.len() as u64);
        for (bytes, word) in to.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
    }

    /// Zeroes the words of an entry that was read. For the reader.
    pub fn clear(&self, position: u64, words: u64) {
        if mutant!("redo_without_clear") {
            return;
        }
        for word in self.slice(position, words) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Words that do not wrap.
    fn slice(&self, position: u64, words: u64) -> &[AtomicU64] {
        let start = (position & (self.capacity() - 1)) as usize;
        &self.words[start..start + words as usize]
    }

    /// Brings words towards the cache that a writer is about to fill: the ring is larger than what a
    /// core keeps close by, and the next entry most likely looks like this one.
    #[inline]
    fn expect_next(&self, position: u64, words: u64) {
        #[cfg(all(target_arch = "x86_64", not(loom)))]
        for line in 0..words.div_ceil(8).min(PREFETCHED_LINES) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address: *const AtomicU64 = self.at(position + 8 * line);
            // SAFETY: prefetching is a hint that no address can make fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(loom))))]
        let _ = (position, words);
    }

    /// What lies below `position` was read and cleared: writers may have its words again.
    pub fn release(&self, position: u64) {
        // Release: pairs with the acquire in `reserve`.
        self.limit.0.store(position + self.capacity(), ordering!(Release, "redo_limit_release"));
    }
}

impl<'r> Reserved<'r> {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.position + self.words
    }

    /// Sets a word of the entry, which is not its first.
    pub fn set(&self, index: u64, word: u64) {
        debug_assert!(index > 0 && index < self.words);
        self.ring.at(self.position + index).store(word, Ordering::Relaxed);
    }

    /// Sets the words of bytes, the last padded with zeros, from word `index` on.
    pub fn set_bytes(&self, index: u64, bytes: &[u8]) {
        let start = ((self.position + index) & (self.ring.capacity() - 1)) as usize;
        let words = &self.ring.words[start..start + bytes.len().div_ceil(8)];
        let (whole, rest) = bytes.as_chunks::<8>();
        for (word, bytes) in words.iter().zip(whole) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            words[whole.len()].store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
    }

    /// Makes the entry readable.
    pub fn finish(mut self, kind: u8, tag: u32) {
        self.filled = true;
        self.publish(Header::new(kind, tag, self.words));
    }

    /// Splits `words` off its front.
    pub fn split(&mut self, words: u64) -> Reserved<'r> {
        assert!(words > 0 && words < self.words);
        let front = Self { ring: self.ring, position: self.position, words, filled: false };
        self.position += words;
        self.words -= words;
        front
    }

    fn publish(&self, header: Header) {
        // Release: pairs with the acquire in `header`.
        self.ring.at(self.position).store(header.0, ordering!(Release, "redo_header_release"));
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.publish(Header::new(Header::PAD, 0, self.words));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Reads all that is there; each entry's first word after its header, and where it began.
    fn read(ring: &Ring, at: &mut u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        while let Some(header) = ring.header(*at) {
            if header.kind() != Header::PAD {
                found.push((*at, ring.word(*at + 1)));
            }
            ring.clear(*at, header.words());
            *at += header.words();
        }
        ring.release(*at);
        found
    }

    #[test]
    fn entries_come_in_order_over_many_turns_and_never_wrap() {
        let ring = Ring::new(16);
        let mut at = 0;
        for i in 0..1000u64 {
            let words = 2 + i % 7;
            let entry = ring.reserve(words).expect("an empty ring has room for half of it");
            assert!(entry.position % 16 + words <= 16, "it wraps");
            for word in 1..words {
                entry.set(word, i);
            }
            entry.finish(1, 0);
            let found = read(&ring, &mut at);
            assert_eq!(found.iter().map(|(_, i)| *i).collect::<Vec<_>>(), [i]);
        }
    }

    #[test]
    fn an_entry_that_is_not_filled_holds_up_those_behind_it() {
        let ring = Ring::new(16);
        let mut at = 0;
        let first = ring.reserve(2).expect("room");
        let second = ring.reserve(2).expect("room");
        second.set(1, 2);
        second.finish(1, 0);
        assert_eq!(read(&ring, &mut at), []);
        drop(first); // given up: it is skipped
        assert_eq!(read(&ring, &mut at), [(2, 2)]);
    }

    #[test]
    fn a_full_ring_refuses_until_it_is_read() {
        let ring = Ring::new(16);
        let mut at = 0;
        for i in 0..4 {
            let entry = ring.reserve(4).expect("room");
            entry.set(1, i);
            entry.finish(1, 0);
        }
        assert!(ring.reserve(1).is_none() && !ring.has_room(1));
        assert_eq!(read(&ring, &mut at).len(), 4);
        assert!(ring.has_room(8) && ring.reserve(8).is_some());
    }

    #[test]
    fn bytes_come_back_as_they_went_in() {
        let ring = Ring::new(64);
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).collect();
            let words = 1 + bytes.len().div_ceil(8) as u64;
            let entry = ring.reserve(words).expect("room");
            let at = entry.position;
            entry.set_bytes(1, &bytes);
            entry.finish(1, 0);
            let back: Vec<u8> = (1..words)
                .flat_map(|i| ring.word(at + i).to_le_bytes())
                .take(bytes.len())
                .collect();
            assert_eq!(back, bytes);
            let mut from = at;
            read(&ring, &mut from);
        }
    }
}
