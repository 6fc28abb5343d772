//! Walking the table while it is in use: SCAN's cursor, and a sample for RANDOMKEY.
//!
//! A cursor counts buckets in the order of their reversed bits, as Redis's does. Read as a binary
//! fraction of reversed hash bits, a bucket that is chosen by `w` bits is an interval of length
//! 2^-w; the cursor is the end of what has been handed out. A split cuts an interval in two at a
//! place that the cursor either has passed or has yet to come to. So an entry that is there from the
//! first call to the last is handed out at least once, whatever grew in between; and once exactly
//! unless it was removed and came back.
//!
//! No latch is taken. A chain is read into a buffer and believed if no split touched it meanwhile.
//! If the thread that tidies the chain up after a split is not running just now, waiting for it
//! would be waiting while pinned; instead the chain is read twice within that tidying. An entry
//! moves once at most in it, towards the front; one that slipped past the first reading by that move
//! is met by the second. Both readings together hold all entries that stay.

use crate::entry::{Entry, rebuild_hash};
use crate::sync::mutant;
use crate::table::{HashIndex, State};
use crate::{Address, Pin};

/// How many empty buckets a sample passes over before it gives up.
const SAMPLE_BUCKETS: u64 = 1024;

impl HashIndex {
    /// Hands out the entries (address, node bit) of one chain, and returns the cursor for the next
    /// call: 0 when all chains have been walked. Begin with cursor 0; any other cursor must come
    /// from an earlier call, to this index or to one that grew from the same smallest size.
    ///
    /// Entries that are set or removed during the walk may be handed out or not.
    pub fn walk(&self, pin: &Pin<'_>, cursor: u64, mut f: impl FnMut(Address, bool)) -> u64 {
        self.check_pin(pin);
        let hash = crate::KeyHash::from_raw(cursor);
        let (state, number) = self.read_chain(
            |state| state.bucket_of(hash),
            |entry| f(entry.address(), entry.name().is_node()),
        );
        next_cursor(cursor, state.width_of(number))
    }

    /// Hands out the entries of one pseudo-random chain, the first non-empty one from where `random`
    /// points. `false` if there was none among the next 1,024: try again with another number, as
    /// long as there are entries at all.
    pub fn sample(&self, pin: &Pin<'_>, random: u64, mut f: impl FnMut(Address, bool)) -> bool {
        self.check_pin(pin);
        if self.entries() == 0 {
            return false;
        }
        let mut any = false;
        for step in 0..SAMPLE_BUCKETS.min(self.bucket_count()) {
            self.read_chain(
                |state| random.wrapping_add(step) % state.count(),
                |entry| {
                    any = true;
                    f(entry.address(), entry.name().is_node());
                },
            );
            if any {
                break;
            }
        }
        any
    }

    /// Reads the chain that `choose` names in a given state, and hands out its entries; returns the
    /// state in which they are right, and the chain's number.
    pub(crate) fn read_chain(
        &self,
        choose: impl Fn(State) -> u64,
        f: impl FnMut(Entry),
    ) -> (State, u64) {
        let mut entries: Vec<Entry> = Vec::new();
        let mut read_in = None;
        loop {
            let before = self.state();
            let number = choose(before);
            if read_in != Some(before) {
                entries.clear();
            }
            entries.extend(self.entries_of(self.bucket(number)));
            // After the acquire loads of the entries: see `probe`.
            let after = self.state();
            let calm = !State::disturbed(before, after, number) || mutant!("walk_without_recheck");
            let read_before = read_in == Some(before) || mutant!("walk_reads_disturbed_once");
            let twice = before == after && read_before;
            if (calm && choose(after) == number) || twice {
                // Those that a split in progress has not cleared yet belong to the new bucket.
                entries.retain(|entry| {
                    let hash = rebuild_hash(number, entry.name(), self.smallest_bits);
                    after.bucket_of(hash) == number
                });
                // Newest first, so that the newest stays if one was replaced meanwhile.
                entries.sort_unstable_by(|a, b| b.cmp(a));
                entries.dedup_by_key(|entry| entry.name());
                entries.into_iter().for_each(f);
                return (after, number);
            }
            read_in = (before == after).then_some(before);
        }
    }
}

/// The cursor after a bucket that was chosen by the lowest `width` bits of `cursor`: the reversed
/// bits, counted up at the place of the last of them.
fn next_cursor(cursor: u64, width: u32) -> u64 {
    let above = u64::MAX.checked_shl(width).unwrap_or(0);
    (cursor | above).reverse_bits().wrapping_add(1).reverse_bits()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_visits_every_bucket_once_at_any_count() {
        for count in 1..70u64 {
            let state = State::settled(count);
            let (mut cursor, mut seen) = (0, vec![0; count as usize]);
            loop {
                let number = state.bucket_of(crate::KeyHash::from_raw(cursor));
                seen[number as usize] += 1;
                cursor = next_cursor(cursor, state.width_of(number));
                if cursor == 0 {
                    break;
                }
            }
            assert_eq!(seen, vec![1; count as usize], "{count} buckets");
        }
    }
}
