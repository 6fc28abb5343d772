//! Compaction: what is still needed of the log's old end is copied to its tail, so that the end can go.
//!
//! By lookup (FASTER, Chandramouli and others 2018): a record of the oldest segments that is still the
//! newest of its key is appended again under the key's latch; any other is dead already. Everything
//! below the position of the work, [`CompactionControl::compacted`], then serves nobody, and the next
//! checkpoint begins there; once no kept checkpoint begins lower, the segments are removed.
//!
//! Invariants:
//!
//! * A copy changes no key: it takes the record's place in its chain under the latch, with the same
//!   value and expiry, and leaves no entry in the redo log. Without a checkpoint after it, it is as if
//!   it had not been made.
//! * Only what lies below `head` is looked at, or below `flushed_until` where all of the log is in
//!   memory: it is flushed and never changes.
//! * Addresses ascend. So when a record that heads its chain is met, all below it in the chain is dead:
//!   the living were copied before, and head the chain since. Its copy needs no previous address, and
//!   a tombstone that heads its chain takes the index entry along.
//! * The checkpoint's begin is where the work had come to before its cut. So no image of the index and
//!   no chain of that checkpoint leads below it to a key that is there.
//! * It leaves the disk its reserve, and while clients' writes are refused for want of space, half of
//!   it: the checkpoints that give space back need some.
//!
//! A log in memory needs no checkpoint for that: none of its files is part of one. Its segments go as soon
//! as all that lives in them was copied, one after the other, so that the work needs little room.
//!
//! It runs while the log takes more than so many times the bytes of the keys' newest records, and gives
//! way to the foreground as long as that is not far exceeded. A log without dead records is left alone:
//! large records leave the ends of pages unused, so when all of the log was copied and little was
//! gained, the log must first grow.

mod control;
mod copy;

pub(crate) use control::CompactionControl;
pub use control::{Compacted, CompactionReport};

use super::session::Session;
use super::{Inner, Store};
use crate::CompactError;
use crate::checkpoint;
use crate::log::space::Space;
use crate::sync::{Arc, Instant, Locked, mutant, thread};
use ferrite_index::assert_unpinned;
use std::time::Duration;

/// Between two looks at how much the log takes.
const PERIOD: Duration = Duration::from_secs(1);
/// The same for a log in memory, where space is dear and a look cheap.
const PERIOD_IN_MEMORY: Duration = Duration::from_millis(100);
/// What a log in memory may take for each living byte when little memory is left.
const MOST_WHEN_TIGHT: f64 = 1.05;
/// Between two pages at most.
const REST_MAX: Duration = Duration::from_secs(1);
/// After the device failed.
const RETRY: Duration = Duration::from_secs(60);

impl Store {
    /// Lets a background thread compact the log while it takes more than `most` bytes for each byte of
    /// the keys' newest records; `None` ends that. Segments go with the checkpoints that follow
    /// ([`Store::reclaimable_bytes`]): nobody should ask for it who takes none.
    pub fn set_space_amplification(&self, most: Option<f64>) {
        self.inner().compaction.set_most(most);
    }

    /// Bytes of the log that are compacted and that the next checkpoints (as many as are kept) give
    /// back.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.inner().compaction.reclaimable_bytes()
    }

    /// Whether a checkpoint is worth its while for what compaction has done. It is when the log takes
    /// more than it may ([`Store::set_space_amplification`]) and a checkpoint would give back two
    /// segments or more, and a tenth of what the keys take; and when the disk is nearly full and a
    /// checkpoint would give back anything. It may take as many as are kept.
    pub fn wants_checkpoint(&self) -> bool {
        let inner = self.inner();
        if inner.snapshots.is_some() {
            return false;
        }
        if inner.is_nearly_full() && inner.compaction.gives_back_files(&inner.log.geometry) {
            return true;
        }
        let Some(most) = inner.compaction.most() else { return false };
        let live = inner.live_words() * 8;
        let log = inner.log.words_from(inner.log.boundaries.begin()) * 8;
        let enough = (2 * inner.config.segment_size).max(live / 10);
        log as f64 > most * live as f64 && inner.compaction.reclaimable_bytes() >= enough
    }

    /// Compacts all that is not in memory, on the calling thread, which holds no [`crate::Inside`]. Waits for
    /// one that is under way. It leaves the disk its reserve, and may end early for that
    /// ([`Compacted::short_of_space`]).
    ///
    /// # Errors
    /// [`CompactError`]; nothing is lost, and what was done stays done.
    pub fn compact(&self) -> Result<Compacted, CompactError> {
        self.compact_below(u64::MAX)
    }

    /// The same for what lies below an address, in bytes: who goes on after checkpoints, since one
    /// compaction was short of space, ends where the log left memory ([`crate::Stats::log_head`])
    /// when it began.
    ///
    /// # Errors
    /// [`CompactError`]; nothing is lost, and what was done stays done.
    pub fn compact_below(&self, address: u64) -> Result<Compacted, CompactError> {
        let _asked = self.inner().compaction.ask();
        Compaction::work(self.inner(), address / 8, &mut |_| true)
    }
}

/// Since the work was at the log's begin the last time.
#[derive(Default)]
struct Round {
    done: CompactionReport,
    /// A log that takes less for each living byte has little to give.
    worth_it_from: f64,
}

impl Round {
    fn note(&mut self, report: Compacted, inner: &Inner) {
        self.done.read_bytes += report.read_bytes;
        self.done.copied_bytes += report.copied_bytes;
        // What is in memory is not looked at.
        let ring = inner.uncompacted_words() * 8;
        let round = (inner.log_words_from(inner.compaction.compacted()) * 8).saturating_sub(ring);
        if self.done.read_bytes == 0 || self.done.read_bytes < round {
            return;
        }
        let gained = self.done.read_bytes.saturating_sub(self.done.copied_bytes);
        let now = inner.amplification_from(inner.compaction.compacted());
        // Where memory is short a little is worth the work too.
        let worth = if inner.log.memory.is_tight() { 1.02 } else { 1.1 };
        self.worth_it_from = if gained * 10 < self.done.read_bytes { now * worth } else { 0.0 };
        self.done = CompactionReport::default();
    }
}

/// Why a step of the work ends early.
enum Ended {
    Stopped,
    Failed(CompactError),
}

impl From<Ended> for CompactError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Stopped => Self::Stopped,
            Ended::Failed(e) => e,
        }
    }
}

/// The work, on the thread that made it.
pub(crate) struct Compaction {
    inner: Arc<Inner>,
    session: Session,
}

impl Compaction {
    /// Takes its turn and works: see [`Compaction::pass`]. Only then is there a session: those who wait
    /// may be more than the store has room for.
    fn work(
        inner: &Arc<Inner>,
        below: u64,
        goes_on: &mut dyn FnMut(f64) -> bool,
    ) -> Result<Compacted, CompactError> {
        assert_unpinned();
        let _turn = inner.compaction.turn.locked();
        let thread = thread::current();
        let session = Session::new(inner, None, Box::new(move || thread.unpark()));
        let mut work = Self { inner: Arc::clone(inner), session };
        let outcome = work.pass(below, goes_on);
        inner.compaction.note_outcome(&outcome);
        outcome
    }

    /// The background thread. It has a session only while it works: one that rests would keep a
    /// database that was flushed in memory.
    pub fn run(inner: &Arc<Inner>) {
        let control = &inner.compaction;
        let period = if inner.snapshots.is_some() { PERIOD_IN_MEMORY } else { PERIOD };
        let mut rest = period;
        let mut round = Round::default();
        while !control.stop.sleep(rest) {
            rest = period;
            let Some(set) = control.most() else { continue };
            let is_tight = inner.log.memory.is_tight();
            let most = if is_tight { set.min(MOST_WHEN_TIGHT) } else { set };
            if inner.log.health.breakage().is_some() {
                continue;
            }
            let mut worked = Duration::ZERO;
            let mut since = Instant::now();
            let least = most.max(round.worth_it_from);
            if inner.amplification_from(control.compacted()) <= least {
                continue;
            }
            let outcome = Self::work(inner, u64::MAX, &mut |amplification| {
                let enough = amplification <= least || control.most() != Some(set);
                if enough || control.is_asked() {
                    return false;
                }
                // Between two pages the foreground has the machine for a while.
                worked += since.elapsed();
                let excess = if is_tight { f64::MAX } else { amplification / most };
                let pause = rest_after(worked, excess);
                // While it is refused there is nothing to make way for.
                if pause > Duration::from_millis(1) && !inner.log.health.is_short() {
                    worked = Duration::ZERO;
                    let _stopped = control.stop.sleep(pause);
                }
                since = Instant::now();
                true
            });
            match outcome {
                Ok(report) => round.note(report, inner),
                Err(CompactError::Unreadable(why)) => {
                    tracing::error!(
                        "compaction cannot go on: {why}; it is tried again in a minute"
                    );
                    rest = RETRY;
                }
                Err(_) => {}
            }
        }
    }

    /// Page after page, while `goes_on` says so of how many bytes the log would take for each living
    /// byte if all that is compacted were given back.
    fn pass(
        &mut self,
        below: u64,
        goes_on: &mut dyn FnMut(f64) -> bool,
    ) -> Result<Compacted, CompactError> {
        let inner = Arc::clone(&self.inner);
        let before = inner.compaction.done();
        // Whole segments, and not the copies that leave memory meanwhile.
        let (geometry, boundaries) = (&inner.log.geometry, &inner.log.boundaries);
        let whole_segments = |address: u64| address - address % geometry.segment_words;
        let limit = match &inner.snapshots {
            None => whole_segments(below.min(boundaries.head())),
            Some(_) => geometry.page_start(below.min(boundaries.flushed_until())),
        };
        let mut given_back = geometry.segment_of(inner.compacted_or_begin());
        let mut short_of_space = false;
        while let Some((from, _)) = self.next_page(limit) {
            if inner.compaction.stop.is_up() {
                return Err(CompactError::Stopped);
            }
            if !goes_on(inner.amplification_from(from)) {
                break;
            }
            // That took a rest perhaps, in which the log came to begin above.
            let Some((from, to)) = self.next_page(limit) else { break };
            short_of_space = !inner.may_copy(from);
            if short_of_space {
                break;
            }
            match self.page(from, to) {
                Ok(copied) => {
                    inner.compaction.note_page(from, to, copied);
                    // Before more is copied.
                    let segment = geometry.segment_of(to);
                    if inner.snapshots.is_some() && segment > given_back {
                        checkpoint::give_back(&inner);
                        given_back = segment;
                    }
                }
                Err(Ended::Failed(CompactError::Unreadable(_)))
                    if inner.log.has_given_back(from) => {}
                Err(why) => return Err(why.into()),
            }
        }
        let after = inner.compaction.done();
        Ok(Compacted {
            read_bytes: after.read_bytes - before.read_bytes,
            copied_bytes: after.copied_bytes - before.copied_bytes,
            until: inner.compacted_or_begin() * 8,
            short_of_space,
        })
    }

    /// The oldest page below `limit` that is not compacted.
    fn next_page(&self, limit: u64) -> Option<(u64, u64)> {
        let log = &self.inner.log;
        let at = self.inner.compacted_or_begin();
        let at = log.raw.first_written(at).unwrap_or(at.max(log.start));
        (at < limit).then(|| (at, log.raw.end_of_page(at)))
    }
}

impl Inner {
    /// Where the work has come to, or the log begins.
    fn compacted_or_begin(&self) -> u64 {
        self.compaction.compacted().max(self.log.boundaries.begin())
    }

    /// Words at the log's newest end that are not looked at.
    fn uncompacted_words(&self) -> u64 {
        let geometry = &self.log.geometry;
        match &self.snapshots {
            None => geometry.ring_words(),
            Some(_) => geometry.mutable_pages * geometry.page_words,
        }
    }

    /// Whether the disk has room for the copies of the page at `from` and its reserve; or, while it has
    /// not and clients' writes are refused, for them and half of the reserve, which is what checkpoints
    /// need to give back what was copied. That comes in segments, so one is begun only if it can be
    /// ended, and then ended.
    fn may_copy(&self, from: u64) -> bool {
        if self.snapshots.is_some() {
            // Each segment goes before the next is begun.
            return true;
        }
        let Ok(space) = self.space() else { return true };
        let g = &self.log.geometry;
        let reserve = self.log.space_reserve;
        let begins = from.is_multiple_of(g.segment_words);
        let least = match (self.log.health.is_short(), begins) {
            (false, true) => reserve + g.segment_words * 8,
            // A copy may leave as much of a page unused as it takes.
            (false, false) => reserve + 2 * g.page_words * 8,
            (true, true) => reserve / 2,
            (true, false) => reserve / 8,
        };
        space.left() >= least || mutant!("copies_into_the_reserve")
    }

    /// Whether space is short, or soon will be.
    fn is_nearly_full(&self) -> bool {
        let is_low = |space: Space| space.left() < 2 * self.log.space_reserve;
        self.log.health.is_short() || self.space().is_ok_and(is_low)
    }

    fn space(&self) -> std::io::Result<Space> {
        Space::look(&self.log, &self.pages.created.locked())
    }

    /// Words of the log from `from` on, which may be below its begin.
    fn log_words_from(&self, from: u64) -> u64 {
        self.log.words_from(from.max(self.log.boundaries.begin()))
    }

    /// The same for each word that a key's newest record takes.
    fn amplification_from(&self, from: u64) -> f64 {
        self.log_words_from(from) as f64 / self.live_words().max(1) as f64
    }
}

/// How long to rest after so long at work, by how many times the log exceeds what it may take. What was
/// work to the clock may have been a wait, however long, which owes the foreground nothing.
fn rest_after(worked: Duration, excess: f64) -> Duration {
    let share = match excess {
        x if x < 1.2 => 3.0,
        x if x < 1.5 => 1.0,
        _ => 0.0,
    };
    worked.mul_f64(share).min(REST_MAX)
}

#[cfg(all(test, not(loom)))]
mod tests;
