//! The watch: how old what is not on the disk may be, and what follows from that under `everysec`.
//!
//! ```text
//!   log   ───────┬────────┬────────┬────────┬──> tail
//!   looks        t0       t1       t2       t3          where the log ended then
//!              ^ durable: what is not was written after t0, and is no older than now - t0
//! ```
//!
//! It looks at the log's end a few times a second, by a clock that neither stops nor jumps, and needs
//! nothing of the journal's thread: one that hangs at the disk, wherever it does, is late all the same.
//! Writers pay nothing for it. The time that entries carry would not do: it is the wall clock, made
//! never to go back, so after a correction it stands still, and nothing would grow old meanwhile.

use super::{Shared, lock};
use crate::config::AofSync;
use ferrite_hybridlog::Store;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two looks: an age is right to so much, and never too low.
const TICK: Duration = Duration::from_millis(50);
/// The age of the oldest entry at which a sync begins under `everysec`, so that it is complete in time.
const SYNC_AT: Duration = Duration::from_millis(500);
/// The age at which writes wait for it: by the next look it is a second old.
const HOLD_AT: Duration = Duration::from_millis(950);
/// Between two looks at whether there is anything to watch.
const IDLE: Duration = Duration::from_secs(10);

/// Where the log ended, and when.
#[derive(Default)]
struct Ages {
    looks: VecDeque<(Instant, u64)>,
}

impl Ages {
    /// The log ended at `tail` at `now` or later, and is durable up to `durable`. At most how old
    /// anything is that is not durable; `None` when everything is. What was there before the first look
    /// counts from then.
    fn look(&mut self, now: Instant, tail: u64, durable: u64) -> Option<Duration> {
        if self.looks.is_empty() {
            self.looks.push_back((now, durable));
        }
        match self.looks.back_mut() {
            // What follows was written after this look as well.
            Some((at, end)) if *end == tail => *at = now,
            _ => self.looks.push_back((now, tail)),
        }
        while self.looks.get(1).is_some_and(|(_, end)| *end <= durable) {
            self.looks.pop_front();
        }
        let (oldest, _) = self.looks.front()?;
        (durable < tail).then(|| now.saturating_duration_since(*oldest))
    }
}

/// Looks until the journal stops. On a thread of its own.
pub(super) fn watch(shared: &Shared, store: &Store) {
    let mut ages = Ages::default();
    let mut held: Option<Instant> = None;
    while !shared.stopping.load(Ordering::SeqCst) {
        let watched = shared.policy() == AofSync::Everysec;
        let now = Instant::now();
        // After a failure writes are refused, and what was there is the checkpoint's that heals it.
        let age = if watched && !shared.failing.load(Ordering::SeqCst) {
            ages.look(now, store.redo_tail(), store.redo_durable()).unwrap_or_default()
        } else {
            ages = Ages::default();
            Duration::ZERO
        };
        if age >= SYNC_AT {
            shared.sync_due.store(true, Ordering::SeqCst);
            store.wake_redo();
        }
        match (age >= HOLD_AT, held) {
            (true, None) => {
                held = Some(now);
                shared.held.store(true, Ordering::SeqCst);
                store.hold_redo(true);
                tracing::warn!(
                    "what was written a second ago is not on the append-only file's disk: writes wait for it"
                );
            }
            (false, Some(since)) => {
                held = None;
                let_go(shared, store, since);
            }
            _ => {}
        }
        std::thread::park_timeout(if watched { TICK } else { IDLE });
    }
    if let Some(since) = held {
        let_go(shared, store, since);
    }
}

fn let_go(shared: &Shared, store: &Store, since: Instant) {
    shared.held.store(false, Ordering::SeqCst);
    store.hold_redo(false);
    let time = since.elapsed();
    let mut state = lock(&shared.state);
    state.delayed += 1;
    state.delayed_time += time;
    drop(state);
    tracing::info!(ms = time.as_millis() as u64, "the append-only file is synced: writes go on");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_counts_from_the_last_look_before_the_entry() {
        let (mut ages, begin) = (Ages::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(ages.look(at(0), 100, 100), None);
        // Nothing was written for long: that is no age.
        assert_eq!(ages.look(at(5_000), 100, 100), None);
        assert_eq!(ages.look(at(5_050), 200, 100), ms(50));
        assert_eq!(ages.look(at(5_100), 300, 100), ms(100));
        assert_eq!(ages.look(at(5_900), 300, 100), ms(900), "it is not on the disk still");
        assert_eq!(ages.look(at(5_950), 300, 150), ms(950), "some of it is not");
        // Up to 200 all was there at 5,050; what follows came after.
        assert_eq!(ages.look(at(6_000), 400, 200), ms(950));
        assert_eq!(ages.look(at(6_050), 400, 300), ms(100), "300 was the end at 5,950 still");
        assert_eq!(ages.look(at(6_100), 400, 400), None);
        assert_eq!(ages.look(at(9_000), 500, 400), ms(2_900), "an age is never too low");
        assert_eq!(ages.looks.len(), 2);
    }

    #[test]
    fn what_was_there_before_counts_from_the_first_look() {
        let (mut ages, begin) = (Ages::default(), Instant::now());
        assert_eq!(ages.look(begin, 100, 0), Some(Duration::ZERO));
        let later = begin + Duration::from_secs(1);
        assert_eq!(ages.look(later, 100, 0), Some(Duration::from_secs(1)));
        assert_eq!(ages.look(later, 300, 50), Some(Duration::from_secs(1)));
    }
}
