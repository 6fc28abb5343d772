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
//!
//! A log in memory needs no checkpoint for that: none of its files is part of one. Its segments go as soon
//! as all that lives in them was copied, one after the other, so that the work needs little room.
//!
//! It runs while the log takes more than so many times the bytes of the keys' newest records, and gives
//! way to the foreground as long as that is not far exceeded. A log without dead records is left alone:
//! large records leave the ends of pages unused, so when all of the log was copied and little was
//! gained, the log must first grow.

use super::operation::Operation;
use super::session::{Inside, Session};
use super::write::Blocked;
use super::{Inner, Store};
use crate::checkpoint;
use crate::checkpoint::manifest::Manifest;
use crate::log::scan::records_of;
use crate::record::{Draft, RecordRef};
use crate::store::alone::wait_for_room;
use crate::store::expire::remove_if_expired;
use crate::sync::{Locked, mutant};
use crate::{CompactError, OperationError};
use ferrite_index::{Address, assert_unpinned};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Between two looks at how much the log takes.
const PERIOD: Duration = Duration::from_secs(1);
/// The same for a log in memory, where space is dear and a look cheap.
const PERIOD_IN_MEMORY: Duration = Duration::from_millis(100);
/// What a log in memory may take for each living byte when little memory is left.
const MOST_WHEN_TIGHT: f64 = 1.05;
/// After the device failed.
const RETRY: Duration = Duration::from_secs(60);
/// Records in one stay inside.
const BATCH: usize = 32;

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// Bytes of log that were looked at, and that the next checkpoints give back.
    pub read_bytes: u64,
    /// Bytes of log that the copies of what is needed take.
    pub copied_bytes: u64,
}

/// How far the work is, and when there is some.
#[derive(Default)]
pub(crate) struct CompactionControl {
    /// Log bytes a living byte above which the background works, as the bits of an `f64`; 0 never.
    most: AtomicU64,
    /// All that lives below has a copy above.
    compacted: AtomicU64,
    /// Where the oldest kept checkpoint begins.
    kept_begin: AtomicU64,
    stopped: Mutex<bool>,
    changed: Condvar,
    /// One at a time.
    turn: Mutex<()>,
    read_bytes: AtomicU64,
    copied_bytes: AtomicU64,
}

impl CompactionControl {
    pub fn stop(&self) {
        *self.stopped.locked() = true;
        self.changed.notify_all();
    }

    /// Nothing below is needed by any key, once a checkpoint is taken.
    pub fn compacted(&self) -> u64 {
        // Acquire: pairs with the release after the last copy.
        self.compacted.load(Ordering::Acquire)
    }

    /// A checkpoint is durable.
    pub fn checkpointed(&self, manifest: &Manifest) {
        let begin = manifest.checkpoints.iter().map(|c| c.begin).min().unwrap_or(0);
        self.kept_begin.store(begin, Ordering::Relaxed);
    }

    /// The memory below `begin` was given back.
    pub fn gave_back(&self, begin: u64) {
        self.kept_begin.store(begin, Ordering::Relaxed);
    }

    /// Bytes that checkpoints from now on give back.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.compacted().saturating_sub(self.kept_begin.load(Ordering::Relaxed)) * 8
    }

    /// Bytes read and copied so far.
    pub fn done(&self) -> CompactionReport {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        CompactionReport { read_bytes: of(&self.read_bytes), copied_bytes: of(&self.copied_bytes) }
    }

    fn most(&self) -> Option<f64> {
        Some(f64::from_bits(self.most.load(Ordering::Relaxed))).filter(|most| *most > 0.0)
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.locked()
    }

    /// Sleeps; true when it is time to stop.
    fn sleep(&self, time: Duration) -> bool {
        assert_unpinned();
        let stopped = self.stopped.locked();
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, time, |stopped| !*stopped)
            .expect("nothing panics under this lock");
        *stopped
    }
}

impl Store {
    /// Lets a background thread compact the log while it takes more than `most` bytes for each byte of
    /// the keys' newest records; `None` ends that. Segments go with the checkpoints that follow
    /// ([`Store::reclaimable_bytes`]): nobody should ask for it who takes none.
    pub fn set_space_amplification(&self, most: Option<f64>) {
        let control = &self.inner().compaction;
        control.most.store(most.unwrap_or(0.0).to_bits(), Ordering::Relaxed);
        control.changed.notify_all();
    }

    /// Bytes of the log that are compacted and that the next checkpoints (as many as are kept) give
    /// back.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.inner().compaction.reclaimable_bytes()
    }

    /// Whether the log takes more than it may ([`Store::set_space_amplification`]) and a checkpoint
    /// would give back two segments or more, and a tenth of what the keys take. It may take as many
    /// as are kept.
    pub fn wants_checkpoint(&self) -> bool {
        let inner = self.inner();
        let Some(most) = inner.compaction.most().filter(|_| inner.snapshots.is_none()) else {
            return false;
        };
        let live = inner.live_words() * 8;
        let log = inner.log.words_from(inner.log.boundaries.begin()) * 8;
        let enough = (2 * inner.config.segment_size).max(live / 10);
        log as f64 > most * live as f64 && inner.compaction.reclaimable_bytes() >= enough
    }

    /// Compacts all that is not in memory, on the calling thread, which holds no [`Inside`]. Waits for
    /// one that is under way.
    ///
    /// # Errors
    /// [`CompactError`]; nothing is lost, and what was done stays done.
    pub fn compact(&self) -> Result<CompactionReport, CompactError> {
        Compaction::new(Arc::clone(self.inner())).pass(&mut |_| true)
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
    fn note(&mut self, report: CompactionReport, inner: &Inner) {
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

/// What became of a record.
enum Found {
    /// Nobody needs it.
    Dead,
    /// It has a copy, which took so many words of the log: with the end of a page that it did not fit
    /// into.
    Copied(u64),
    /// It has expired, and nobody has removed it yet.
    Expired,
}

/// The work, on the thread that made it.
pub(crate) struct Compaction {
    inner: Arc<Inner>,
    session: Session,
    /// Room that was waited for.
    credit: u64,
}

impl Compaction {
    pub fn new(inner: Arc<Inner>) -> Self {
        let thread = std::thread::current();
        let session = Session::new(&inner, None, Box::new(move || thread.unpark()));
        Self { inner, session, credit: 0 }
    }

    /// The background thread. It has a session only while it works: one that rests would keep a
    /// database that was flushed in memory.
    pub fn run(inner: &Arc<Inner>) {
        let control = &inner.compaction;
        let period = if inner.snapshots.is_some() { PERIOD_IN_MEMORY } else { PERIOD };
        let mut rest = period;
        let mut round = Round::default();
        while !control.sleep(rest) {
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
            let outcome = Self::new(Arc::clone(inner)).pass(&mut |amplification| {
                if amplification <= least || control.most() != Some(set) {
                    return false;
                }
                // Between two pages the foreground has the machine for a while.
                worked += since.elapsed();
                let excess = if is_tight { f64::MAX } else { amplification / most };
                let pause = worked.mul_f64(rest_for(excess));
                if pause > Duration::from_millis(1) {
                    worked = Duration::ZERO;
                    let _stopped = control.sleep(pause);
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
        goes_on: &mut dyn FnMut(f64) -> bool,
    ) -> Result<CompactionReport, CompactError> {
        assert_unpinned();
        let inner = Arc::clone(&self.inner);
        let _turn = inner.compaction.turn.locked();
        let before = inner.compaction.done();
        // Whole segments, and not the copies that leave memory meanwhile.
        let (geometry, boundaries) = (&inner.log.geometry, &inner.log.boundaries);
        let limit = match &inner.snapshots {
            None => boundaries.head() / geometry.segment_words * geometry.segment_words,
            Some(_) => geometry.page_start(boundaries.flushed_until()),
        };
        let mut given_back = geometry.segment_of(control_begin(&inner));
        while let Some((from, to)) = self.next_page(limit) {
            if inner.compaction.is_stopped() {
                return Err(CompactError::Stopped);
            }
            if !goes_on(inner.amplification_from(from)) {
                break;
            }
            let control = &inner.compaction;
            let copied = self.page(from, to)?;
            control.read_bytes.fetch_add((to - from) * 8, Ordering::Relaxed);
            control.copied_bytes.fetch_add(copied * 8, Ordering::Relaxed);
            // Release: who takes a cut from here on finds the copies below it.
            control.compacted.fetch_max(to, Ordering::Release);
            // Before more is copied.
            let segment = geometry.segment_of(to);
            if inner.snapshots.is_some() && segment > given_back {
                checkpoint::give_back(&inner);
                given_back = segment;
            }
        }
        let after = inner.compaction.done();
        Ok(CompactionReport {
            read_bytes: after.read_bytes - before.read_bytes,
            copied_bytes: after.copied_bytes - before.copied_bytes,
        })
    }

    /// The oldest page below `limit` that is not compacted.
    fn next_page(&self, limit: u64) -> Option<(u64, u64)> {
        let log = &self.inner.log;
        let at = control_begin(&self.inner);
        let at = log.raw.first_written(at).unwrap_or(at.max(log.start));
        (at < limit).then(|| (at, log.raw.end_of_page(at)))
    }

    /// Copies what lives in `[from, to)` of one page. Returns the words of the copies.
    fn page(&mut self, from: u64, to: u64) -> Result<u64, Ended> {
        let log = Arc::clone(&self.inner.log);
        let page = log.geometry.page_start(from);
        let unreadable = |why| Ended::Failed(CompactError::Unreadable(why));
        let buffer = log.raw.read_blocking(page, to).map_err(unreadable)?;
        let bytes = &buffer[(from - page) as usize * 8..];
        let mut records = Vec::new();
        let end = records_of(bytes, from, |address, record| records.push((address, record)));
        match end {
            Ok(end) if end == to => {}
            Ok(at) | Err((at, _)) => {
                let file = log.raw.path_of(at);
                let offset = log.geometry.offset_in_segment(at);
                let file = file.display();
                return Err(unreadable(format!("no record lies at offset {offset} of {file}")));
            }
        }
        let mut copied = 0;
        for batch in records.chunks(BATCH) {
            copied += self.batch(batch)?;
        }
        Ok(copied)
    }

    fn batch(&mut self, records: &[(Address, RecordRef<'_>)]) -> Result<u64, Ended> {
        let mut op = Operation::new(0);
        let (mut copied, mut at) = (0, 0);
        while at < records.len() {
            let mut inside = self.session.enter();
            inside.credit += std::mem::take(&mut self.credit);
            let mut blocked = None;
            let mut expired = None;
            while let Some(&(address, record)) = records.get(at) {
                match inside.relocate(&op, address, record) {
                    Ok(Found::Dead) => {}
                    Ok(Found::Copied(words)) => copied += words,
                    Ok(Found::Expired) => expired = Some(record),
                    Err(why) => {
                        blocked = Some(why);
                        break;
                    }
                }
                at += 1;
                op.clear();
                if expired.is_some() {
                    break;
                }
            }
            drop(inside);
            if let Some(blocked) = blocked {
                self.unblock(&mut op, blocked)?;
            }
            if let Some(record) = expired {
                self.remove(record)?;
                // It may have been given another life, or not have been removed after all.
                at -= 1;
            }
        }
        Ok(copied)
    }

    /// Removes a key that has expired as anybody who meets it does, with all that follows.
    fn remove(&mut self, record: RecordRef<'_>) -> Result<(), Ended> {
        let (slot, key) = (record.shape().slot(), record.key());
        let control = &self.inner.compaction;
        let removed =
            remove_if_expired(&self.inner, &mut self.session, slot, key, || control.is_stopped());
        match removed {
            Ok(true) => Ok(()),
            Ok(false) => Err(Ended::Stopped),
            // What cannot be removed now stays where it is.
            Err(e) => Err(Ended::Failed(CompactError::NotWritable(e.to_string()))),
        }
    }

    /// Waits, unpinned, for what blocks the work.
    fn unblock(&mut self, op: &mut Operation, blocked: Blocked) -> Result<(), Ended> {
        let log = &self.inner.log;
        let control = &self.inner.compaction;
        if control.is_stopped() {
            return Err(Ended::Stopped);
        }
        match blocked {
            Blocked::Busy => std::thread::yield_now(),
            Blocked::Fetch(missing) => {
                for address in missing {
                    let fetched = log.raw.fetch_blocking(address);
                    let fetched =
                        fetched.map_err(|e| Ended::Failed(CompactError::Unreadable(e)))?;
                    op.keep(fetched);
                }
            }
            Blocked::Room(words) => {
                let given_up = || control.is_stopped() || log.health.breakage().is_some();
                self.credit = wait_for_room(log, words, given_up);
            }
            Blocked::Redo(_) => unreachable!("a copy leaves no entry in the redo log"),
            Blocked::Failed(e) => {
                return Err(Ended::Failed(CompactError::NotWritable(e.to_string())));
            }
        }
        Ok(())
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        self.inner.log.tail.give_back(self.credit);
    }
}

/// Where the log begins, or the work has come to.
fn control_begin(inner: &Inner) -> u64 {
    inner.compaction.compacted().max(inner.log.boundaries.begin())
}

impl Inner {
    /// Words at the log's newest end that are not looked at.
    fn uncompacted_words(&self) -> u64 {
        let geometry = &self.log.geometry;
        match &self.snapshots {
            None => geometry.ring_words(),
            Some(_) => geometry.mutable_pages * geometry.page_words,
        }
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

impl Inside<'_> {
    /// Copies the record at `address`, which never changes, to the tail if it is its key's newest.
    fn relocate(
        &mut self,
        op: &Operation,
        address: Address,
        record: RecordRef<'_>,
    ) -> Result<Found, Blocked> {
        let (shape, key) = (record.shape(), record.key());
        let slot = self.tables.slots.get(usize::from(shape.slot()));
        let Some(slot) = slot.filter(|slot| address.raw() >= slot.floor) else {
            return Ok(Found::Dead);
        };
        let pinned = self.view.pinned(&self.pin);
        if let Some(why) = pinned.inner.log.health.breakage() {
            return Err(Blocked::Failed(OperationError::NotWritable(why)));
        }
        let hash = pinned.inner.secret.hash(key);
        let latch = slot.index.latch(pinned.pin, hash).map_err(|_| Blocked::Busy)?;
        let Some(first) = latch.address(hash, false) else { return Ok(Found::Dead) };
        if first != address {
            let found = pinned.find(op, Some(first), key);
            let newest = found.map_err(|missing| Blocked::Fetch(vec![missing]))?.at;
            let is_newest = newest.is_some_and(|located| located.address == address);
            if !is_newest && !mutant!("copy_of_what_is_not_newest") {
                return Ok(Found::Dead);
            }
        }
        if record.info().is_tombstone() {
            if first == address && !mutant!("tombstone_keeps_its_entry") {
                latch.remove(hash, false);
            }
            return Ok(Found::Dead);
        }
        let loaded = record.load(&mut self.scratch.value);
        // While nothing may be removed it goes on as it is: absent to all.
        let stays = pinned.inner.expiry.is_held(pinned.now_ms)
            || pinned.inner.log.health.refusal().is_some();
        if pinned.is_due(loaded.expires_at_ms) && !stays {
            return Ok(Found::Expired);
        }
        let draft = Draft {
            slot: slot.number,
            key,
            value: loaded.bytes,
            expires_at_ms: loaded.expires_at_ms,
            encoding: shape.encoding(),
            tombstone: false,
            capacity: None,
        };
        let words = draft.words();
        pinned.top_up(2 * words, &mut self.credit);
        let previous = if first == address { Address::INVALID } else { first };
        let credit = self.credit;
        let copy = pinned.inner.log.append(pinned.pin, &draft, previous, &mut self.credit);
        let copy = copy.map_err(|_| Blocked::Room(2 * words))?;
        if !mutant!("copy_without_entry") {
            latch.set(hash, false, copy);
        }
        slot.count_words(shape.words(), words);
        Ok(Found::Copied(credit - self.credit))
    }
}

/// How long to rest for each time worked, by how many times the log exceeds what it may take.
fn rest_for(excess: f64) -> f64 {
    match excess {
        x if x < 1.2 => 3.0,
        x if x < 1.5 => 1.0,
        _ => 0.0,
    }
}
