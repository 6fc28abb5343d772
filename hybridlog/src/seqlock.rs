//! The protocol between the one writer of an in-place value and its readers.
//!
//! ```text
//!   word   value length 32 | sequence 32        odd sequence: a writer is inside
//! ```
//!
//! The writer holds the exclusive latch of the key's bucket, so there is one at a time; readers
//! hold nothing. A reader interprets nothing before the sequence has held. The body's words are
//! relaxed atomics: torn reads are possible and always detected.

use crate::sync::{AtomicU64, Ordering, fence, mutant, ordering, spin};

const SEQUENCE: u64 = 0xffff_ffff;

/// The word of a value that nobody has written in place yet.
pub(crate) fn initial(length: usize) -> u64 {
    (length as u64) << 32
}

/// The length in a word whose sequence has held.
pub(crate) fn length(word: u64) -> usize {
    (word >> 32) as usize
}

/// Runs `store` between an odd and an even sequence, then publishes `new_length`. The caller is
/// the only writer.
pub(crate) fn write(word: &AtomicU64, new_length: usize, store: impl FnOnce()) {
    let before = word.load(Ordering::Relaxed);
    debug_assert!(before & 1 == 0, "two writers in one record");
    let odd = (before & !SEQUENCE) | ((before.wrapping_add(1)) & SEQUENCE);
    word.store(odd, Ordering::Relaxed);
    // Pairs with the acquire fence in `read`: a reader that saw one of the body's new words sees
    // the odd sequence, or a later one, when it looks again.
    if !mutant!("seqlock_write_fence") {
        fence(Ordering::Release);
    }
    store();
    let even = initial(new_length) | (odd.wrapping_add(1) & SEQUENCE);
    // Pairs with the acquire load that starts `read`: who sees this sequence sees the body.
    word.store(even, ordering!(Release, "seqlock_release"));
}

/// How often a reader tries before it gives up: its writer may have lost its core.
const TRIES: u32 = if cfg!(loom) { 3 } else { 64 };

/// Runs `load` (with the value's length) until the sequence held around it; `None` when it moved
/// each time. It always holds for who shares or owns the latch of the key's bucket.
pub(crate) fn read<R>(word: &AtomicU64, mut load: impl FnMut(usize) -> R) -> Option<R> {
    for _ in 0..TRIES {
        let before = word.load(ordering!(Acquire, "seqlock_acquire"));
        if before & 1 == 0 {
            let out = load(length(before));
            // Pairs with the release fence in `write`.
            if !mutant!("seqlock_read_fence") {
                fence(Ordering::Acquire);
            }
            if word.load(Ordering::Relaxed) == before || mutant!("seqlock_without_recheck") {
                return Some(out);
            }
        }
        spin();
    }
    None
}
