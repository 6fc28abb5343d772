//! When parts of the log were last written, roughly: what OBJECT IDLETIME rests on.
//!
//! Each time a part of the log becomes read-only, its end and the time are noted. A record below a
//! noted end was last written before that time. Notes are thinned as they become many, oldest and
//! newest alike, so the answer stays a lower bound and only loses precision.

use crate::sync::{Locked, Mutex, MutexGuard};

/// Notes that are kept.
const LIMIT: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// Ascending: (end of the part, Unix ms).
    notes: Mutex<Vec<(u64, u64)>>,
}

impl Ages {
    /// The log below `end` is read-only as of `now_ms`.
    pub fn note(&self, end: u64, now_ms: u64) {
        let mut notes = self.lock();
        if notes.last().is_some_and(|(last, _)| *last >= end) {
            return;
        }
        if notes.len() == LIMIT {
            let mut place = 0;
            notes.retain(|_| {
                place += 1;
                place % 2 == 0
            });
        }
        notes.push((end, now_ms));
    }

    /// A lower bound of the time since the record at `address` was written.
    pub fn idle_ms(&self, address: u64, now_ms: u64) -> u64 {
        let notes = self.lock();
        let first = notes.partition_point(|(end, _)| *end <= address);
        notes.get(first).map_or(0, |(_, at)| now_ms.saturating_sub(*at))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.notes.locked()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_at_least_as_old_as_the_part_it_lies_in() {
        let ages = Ages::default();
        assert_eq!(ages.idle_ms(5, 100), 0, "mutable");
        ages.note(10, 1000);
        ages.note(20, 2000);
        assert_eq!(ages.idle_ms(5, 2500), 1500);
        assert_eq!(ages.idle_ms(10, 2500), 500);
        assert_eq!(ages.idle_ms(20, 2500), 0);
    }

    #[test]
    fn thinning_loses_precision_and_never_claims_too_much() {
        let ages = Ages::default();
        (1..5000u64).for_each(|i| ages.note(i * 10, i * 100));
        for i in 1..5000u64 {
            let idle = ages.idle_ms(i * 10 - 1, 1_000_000);
            assert!(idle <= 1_000_000 - i * 100, "{i}");
        }
        assert!(ages.idle_ms(9, 1_000_000) > 900_000);
        assert!(ages.lock().len() <= LIMIT);
    }
}
