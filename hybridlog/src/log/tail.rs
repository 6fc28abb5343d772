//! Where records are appended: room is granted first, so that an append never fails half way.
//!
//! ```text
//!   granted = tail + every ticket that is out          granted <= limit = safe_head + ring
//! ```
//!
//! A *ticket* is room in the ring, in words. It is taken before the latches of a write and held
//! as a session's credit; an append moves `tail` by the record and by the PAD that a page's end
//! may need, and is paid from the credit, so the equation above holds at every instant. A ticket
//! of twice a record's words always suffices, since a PAD is shorter than the record that caused
//! it. Credits are given back before their holder leaves.

use crate::sync::{AtomicU64, Ordering, mutant, ordering};

pub(crate) struct Tail {
    tail: AtomicU64,
    granted: AtomicU64,
    limit: AtomicU64,
    page_words: u64,
}

/// A reservation: `pad` words to skip at `pad_at` (0: none), then the record's own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub address: u64,
    pub pad_at: u64,
    pub pad: u64,
}

impl Tail {
    pub fn new(start: u64, limit: u64, page_words: u64) -> Self {
        assert!(start.is_multiple_of(page_words));
        Self {
            tail: AtomicU64::new(start),
            granted: AtomicU64::new(start),
            limit: AtomicU64::new(limit),
            page_words,
        }
    }

    pub fn load(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// Frames up to `limit` are ready. Called by the page thread, after it zeroed them.
    pub fn raise_limit(&self, limit: u64) {
        assert!(self.limit.load(Ordering::Relaxed) <= limit);
        // Release: pairs with the acquire in `grant`, so that who writes into a frame does it
        // after it was zeroed and after its last reader left.
        self.limit.store(limit, ordering!(Release, "limit_release"));
    }

    /// Takes `words` of room, if there are as many.
    pub fn grant(&self, words: u64) -> bool {
        let limit = self.limit.load(ordering!(Acquire, "limit_acquire"));
        if mutant!("grant_in_two_steps") {
            let fits = self.granted() + words <= limit;
            self.granted.fetch_add(if fits { words } else { 0 }, Ordering::AcqRel);
            return fits;
        }
        self.granted
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |granted| {
                (granted + words <= limit).then_some(granted + words)
            })
            .is_ok()
    }

    /// Gives unused room back.
    pub fn give_back(&self, words: u64) {
        if words > 0 {
            self.granted.fetch_sub(words, Ordering::AcqRel);
        }
    }

    /// Reserves a record's words and pays from `credit`; `Err` says how much credit this place
    /// would need.
    pub fn reserve(&self, words: u64, credit: &mut u64) -> Result<Reserved, u64> {
        assert!(words > 0 && words <= self.page_words);
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            let left = self.page_words - (tail & (self.page_words - 1));
            let pad = if words <= left || mutant!("reserve_across_pages") { 0 } else { left };
            if pad + words > *credit {
                return Err(pad + words);
            }
            let next = tail + pad + words;
            if mutant!("reserve_in_two_steps") {
                self.tail.store(next, Ordering::Release);
                *credit -= pad + words;
                return Ok(Reserved { address: tail + pad, pad_at: tail, pad });
            }
            // AcqRel: a later reservation in the page happens after this one's page turn.
            match self.tail.compare_exchange_weak(tail, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    *credit -= pad + words;
                    return Ok(Reserved { address: tail + pad, pad_at: tail, pad });
                }
                Err(now) => tail = now,
            }
        }
    }

    /// Moves the tail to the next multiple of `words`, after `fill` has written the PAD (its place
    /// and its words, if there are any), and returns it; `credit` pays. For the cut, at a
    /// safepoint.
    ///
    /// The PAD comes first: the caller is not pinned, so as soon as the tail has moved the page
    /// thread may make everything below it read-only and write it to the device.
    pub fn align(&self, words: u64, credit: &mut u64, fill: impl FnOnce(u64, u64)) -> u64 {
        let tail = self.tail.load(Ordering::Acquire);
        let next = tail.next_multiple_of(words);
        *credit = credit.checked_sub(next - tail).expect("the cut took room for its PAD first");
        if next > tail {
            fill(tail, next - tail);
        }
        self.tail.store(next, Ordering::Release);
        next
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_of_twice_the_record_always_suffices() {
        for start in 0..64 {
            for words in 1..=64 {
                let tail = Tail::new(64, 64 + 256, 64);
                assert!(tail.grant(start + 2 * words));
                let mut credit = start + 2 * words;
                if start > 0 {
                    tail.reserve(start, &mut credit).expect("room was granted");
                }
                let r = tail.reserve(words, &mut credit).expect("twice the record suffices");
                assert_eq!(r.address / 64, (r.address + words - 1) / 64, "crosses a page");
                assert_eq!(tail.granted(), tail.load() + credit);
            }
        }
    }

    /// The PAD of a cut was once written after the tail had moved: the page thread could write the
    /// block to the device without it, and the next start found the log ending before the cut.
    #[test]
    fn the_pad_of_a_cut_is_there_before_the_tail_moves() {
        let tail = Tail::new(64, 128, 64);
        assert!(tail.grant(64));
        let mut credit = 64;
        tail.reserve(10, &mut credit).expect("room was granted");
        let mut filled = None;
        let cut = tail.align(16, &mut credit, |at, words| filled = Some((at, words, tail.load())));
        assert_eq!(filled, Some((74, 6, 74)));
        assert_eq!((cut, tail.load(), credit), (80, 80, 48));
        tail.align(16, &mut credit, |_, _| panic!("it is aligned already"));
    }

    #[test]
    fn room_ends_at_the_limit_and_comes_back() {
        let tail = Tail::new(64, 128, 64);
        assert!(!tail.grant(65));
        assert!(tail.grant(64));
        assert!(!tail.grant(1));
        tail.give_back(10);
        assert!(tail.grant(10));
    }
}
