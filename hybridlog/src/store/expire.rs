//! The active expiry cycle: keys that have expired go even if nobody asks for them.
//!
//! Every page knows the earliest expiry that was ever written into it, in memory and on the
//! device, so only pages that have something due are looked at. A record found due is removed
//! through an ordinary update of its key, which does nothing when the key has moved on. The cycle
//! takes a tenth of one core at most.

use super::operation::Operation;
use super::stop_sign::StopSign;
use super::tables::Database;
use super::{Change, Inner, Session, Stop, Value};
use crate::OperationError;
use crate::log::scan::records_of;
use crate::record::RecordRef;
use crate::sync::{
    Arc, Instant, Locked,
    atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};
use ferrite_index::assert_unpinned;
use std::time::Duration;

/// Between two looks at the pages.
const PERIOD: Duration = Duration::from_millis(100);
/// Work is at most one part in so many.
const SHARE: u32 = 10;
/// Records looked at in one stay inside.
const BATCH: usize = 64;
/// How long, in milliseconds, a page rests that cannot be read, or a key of it.
const UNREADABLE_MS: u64 = 60_000;

/// Tells the cycle to stop, and to hold still.
#[derive(Default)]
pub(crate) struct ExpiryControl {
    pub stop: StopSign,
    paused: AtomicBool,
    /// Until then, in Unix milliseconds, no key is removed for having expired.
    held_until_ms: AtomicU64,
}

impl ExpiryControl {
    /// Holds the cycle (`DEBUG SET-ACTIVE-EXPIRE 0`).
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
    /// Lets no key go until then, whoever finds it.
    pub fn hold(&self, until_ms: u64) {
        // Relaxed: who goes inside after a safepoint sees what was set at it, and nothing else is
        // promised.
        self.held_until_ms.store(until_ms, Ordering::Relaxed);
    }
    pub fn is_held(&self, now_ms: u64) -> bool {
        now_ms < self.held_until_ms.load(Ordering::Relaxed)
    }
}

/// A key that was found due, by slot.
type Due = (u8, Vec<u8>);

pub(crate) struct ExpiryCycle {
    inner: Arc<Inner>,
    session: Session,
    /// Where the last look at the device ended, so that no page starves those above it.
    cold_cursor: u64,
}

impl ExpiryCycle {
    /// On the calling thread, which runs it. It holds no handle of the store, so that the last
    /// handle ends it.
    pub fn new(inner: Arc<Inner>) -> Self {
        let thread = thread::current();
        let session = Session::new(&inner, None, Box::new(move || thread.unpark()));
        Self { inner, session, cold_cursor: 0 }
    }

    pub fn run(mut self) {
        let control = Arc::clone(&self.inner.expiry);
        let mut rest = PERIOD;
        while !control.stop.sleep(rest) {
            // What cannot be removed now must not be forgotten.
            let held =
                control.is_held(self.inner.now_ms()) || control.paused.load(Ordering::Relaxed);
            if held || !self.inner.log.health.is_writable() {
                rest = PERIOD;
                continue;
            }
            let since = Instant::now();
            self.pages_in_memory();
            self.pages_on_device();
            rest = PERIOD.max(since.elapsed() * (SHARE - 1));
        }
    }

    fn pages_in_memory(&mut self) {
        let log = Arc::clone(&self.inner.log);
        let g = log.geometry;
        // What earlier runs left is looked at as if it were on the device, whether mapped or not.
        let mut page = g.page_start(log.boundaries.head()).max(log.start);
        while page < log.tail.load() {
            let now = self.inner.now_ms();
            if self.take_note(page, now) {
                self.page_in_memory(page, now);
            }
            page += g.page_words;
        }
    }

    /// Whether the page has something due; its note is wiped then, and a look at the page notes
    /// again what stays. Inside a pin, so that the note is this page's and not its successor's.
    fn take_note(&mut self, page: u64, now: u64) -> bool {
        let inside = self.session.enter();
        let pinned = inside.view.pinned(&inside.pin);
        if page < pinned.head {
            return false;
        }
        let earliest = self.inner.log.page_expiry(page);
        // AcqRel: pairs with the fetch_min of who notes an expiry after writing it.
        earliest.load(Ordering::Acquire) <= now && earliest.swap(u64::MAX, Ordering::AcqRel) <= now
    }

    /// Steps through a page that is being written to: up to the first word that is still zero.
    fn page_in_memory(&mut self, page: u64, now: u64) {
        let log = Arc::clone(&self.inner.log);
        let mut at = page;
        let end = page + log.geometry.page_words;
        while at < end {
            let mut due: Vec<Due> = Vec::new();
            {
                let inside = self.session.enter();
                let pinned = inside.view.pinned(&inside.pin);
                if at < pinned.head {
                    // It left for the device while we looked: its expiry went along, or did not.
                    drop(inside);
                    return self.note_cold(page, now);
                }
                let limit = log.tail.load().min(end);
                for _ in 0..BATCH {
                    if at >= limit {
                        break;
                    }
                    let address = ferrite_index::Address::new(at);
                    let record = log
                        .record(pinned.pin, pinned.head, address)
                        .expect("a page of this run is in memory from head on");
                    match record.step(end - at) {
                        Ok(crate::record::Step::Record(words)) => {
                            collect(&log, at, &record, now, &mut due);
                            at += words;
                        }
                        Ok(crate::record::Step::Pad(words)) => at += words,
                        Ok(crate::record::Step::End) | Err(_) => {
                            // A reservation that is not filled yet: come back for the rest.
                            log.note_expiry(page, now + 1);
                            drop(inside);
                            return self.remove_of(page, due);
                        }
                    }
                }
                if at >= limit && limit < end {
                    drop(inside);
                    return self.remove_of(page, due);
                }
            }
            self.remove_of(page, due);
        }
    }

    /// Removes the keys of a page whose note was taken; what stays is noted again, wherever the page
    /// is by now.
    fn remove_of(&mut self, page: u64, due: Vec<Due>) {
        let again = self.remove(due);
        if again == u64::MAX {
            return;
        }
        let inside = self.session.enter();
        // Until it leaves, the note is this page's.
        if page >= inside.view.pinned(&inside.pin).head {
            return self.inner.log.note_expiry(page, again);
        }
        drop(inside);
        self.note_cold(page, again);
    }

    fn note_cold(&self, page: u64, at: u64) {
        let mut cold = self.inner.log.cold_expiry.locked();
        let earliest = cold.entry(page).or_insert(u64::MAX);
        *earliest = (*earliest).min(at);
    }

    fn pages_on_device(&mut self) {
        let now = self.inner.now_ms();
        let log = Arc::clone(&self.inner.log);
        let begin = log.geometry.page_start(log.boundaries.begin());
        let page = {
            let mut cold = log.cold_expiry.locked();
            cold.retain(|page, _| *page >= begin);
            let due = |(_, earliest): &(&u64, &u64)| **earliest <= now;
            let after = cold.range(self.cold_cursor + 1..).find(due);
            after.or_else(|| cold.iter().find(due)).map(|(page, _)| *page)
        };
        let Some(page) = page else { return };
        self.cold_cursor = page;
        let end = log.boundaries.flushed_until().min(log.raw.end_of_page(page));
        let mut earliest = u64::MAX;
        let mut due = Vec::new();
        match log.raw.read_blocking(page, end) {
            Ok(buffer) => {
                // Damage shows where the record is read for a client.
                drop(records_of(&buffer, page, |_, record| match record.expires_at_ms() {
                    Some(at) if at < now => due.push(key_of(&record)),
                    Some(at) => earliest = earliest.min(at),
                    None => {}
                }));
            }
            // It is logged by the reader; do not come back at once.
            Err(_) => earliest = now + UNREADABLE_MS,
        }
        earliest = earliest.min(self.remove(due));
        let mut cold = self.inner.log.cold_expiry.locked();
        if earliest == u64::MAX {
            cold.remove(&page);
        } else {
            cold.insert(page, earliest);
        }
    }

    /// Removes the keys that are still due. What cannot be removed now is absent all the same, and is
    /// to be tried again then; `u64::MAX` when nothing is.
    fn remove(&mut self, due: Vec<Due>) -> u64 {
        let Self { inner, session, .. } = self;
        let control = &inner.expiry;
        let mut again = u64::MAX;
        for (slot, key) in due {
            match remove_if_expired(inner, session, slot, &key, || control.stop.is_up()) {
                Ok(true) => {}
                Ok(false) => break,
                // The cycle rests until writes are taken.
                Err(OperationError::NotWritable(_)) => again = again.min(inner.now_ms()),
                Err(_) => again = again.min(inner.now_ms() + UNREADABLE_MS),
            }
        }
        again
    }
}

/// Removes a key that has expired, on a thread that may wait and holds no [`super::Inside`]. False if
/// it was stopped before.
///
/// # Errors
/// [`OperationError`] when it is due still and cannot be removed.
pub(super) fn remove_if_expired(
    inner: &Inner,
    session: &mut Session,
    slot: u8,
    key: &[u8],
    is_stopped: impl Fn() -> bool,
) -> Result<bool, OperationError> {
    let mut op = Operation::new(0);
    loop {
        let mut inside = session.enter();
        if inner.expiry.is_held(inside.now_ms()) {
            drop(inside);
            if is_stopped() {
                return Ok(false);
            }
            assert_unpinned();
            thread::sleep(PERIOD);
            continue;
        }
        let db = inside.tables.map.iter().position(|s| *s == slot);
        let Some(db) = db else { return Ok(true) };
        // Not `Keep` of what is absent: that says nothing when writes are refused.
        let remove = |value: Option<Value<'_>>, _: &mut Vec<u8>| match value {
            Some(_) => (Change::Keep, ()),
            None => (Change::Delete, ()),
        };
        let outcome = inside.update(&mut op, Database(db as u8), key, remove);
        drop(inside);
        match outcome {
            Ok(()) => return Ok(true),
            Err(Stop::Failed(e)) => return Err(e),
            Err(Stop::Pending) => {
                session.wait_until_called(&is_stopped);
                if is_stopped() {
                    return Ok(false);
                }
            }
        }
    }
}

fn key_of(record: &RecordRef<'_>) -> Due {
    (record.shape().slot(), record.key().to_vec())
}

fn collect(log: &crate::log::Log, at: u64, record: &RecordRef<'_>, now: u64, due: &mut Vec<Due>) {
    if record.info().is_tombstone() {
        return;
    }
    match record.expires_at_ms() {
        Some(expiry) if expiry < now => due.push(key_of(record)),
        Some(expiry) => log.note_expiry(at, expiry),
        None => {}
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::FileId;
    use crate::device::fault::{Fault, FaultDevice, Operation as Io};
    use crate::{Config, Store};

    const DB: Database = Database(0);

    /// A store of four pages whose own cycle holds still, and one that goes round by hand.
    fn by_hand() -> (Arc<FaultDevice>, Store, ExpiryCycle) {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (4096, 4 * 4096);
        (config.mutable_size, config.readonly_size) = (2 * 4096, 2 * 4096);
        config.block_cache_size = 0;
        let device = FaultDevice::new();
        let store = Store::open_on(config, device.clone()).expect("opens");
        store.pause_expiry_cycle(true);
        let cycle = ExpiryCycle::new(Arc::clone(store.inner()));
        (device, store, cycle)
    }

    /// A key that has expired, and so many others after it.
    fn fill(store: &Store, others: u64) {
        let mut s = store.blocking_session();
        let put = Change::Put { value: b"v", expires_at_ms: Some(1000), encoding: 0 };
        s.rmw(DB, b"due", |_, _| (put, ())).expect("writes");
        for i in 0..others {
            s.upsert(DB, &i.to_le_bytes(), &[1; 1000]).expect("writes");
        }
        assert_eq!(store.key_count(DB), (1 + others, 1));
    }

    /// The page's note was taken, the removal refused, and nobody came back: the key stayed for good,
    /// in every count and in every checkpoint.
    #[test]
    fn a_refusal_between_note_and_removal_makes_the_cycle_forget_nothing() {
        let (_, store, mut cycle) = by_hand();
        fill(&store, 0);
        let health = &store.inner().log.health;
        health.redo(Some("its disk is full".into()));
        cycle.pages_in_memory();
        assert_eq!(store.key_count(DB), (1, 1));
        health.redo(None);
        cycle.pages_in_memory();
        assert_eq!(store.key_count(DB), (0, 0));
    }

    /// The page left memory between the look at it and the removal that was refused.
    #[test]
    fn what_is_noted_again_goes_along_with_its_page() {
        let (_, store, mut cycle) = by_hand();
        fill(&store, 0);
        let log = Arc::clone(&store.inner().log);
        let page = log.geometry.page_start(log.start);
        assert!(cycle.take_note(page, store.inner().now_ms()));
        let mut s = store.blocking_session();
        for i in 0..40u64 {
            s.upsert(DB, &i.to_le_bytes(), &[1; 1000]).expect("writes");
        }
        assert!(log.boundaries.safe_head() > page && log.cold_expiry.locked().is_empty());
        let due = || vec![(cycle_slot(&store), b"due".to_vec())];
        log.health.redo(Some("its disk is full".into()));
        cycle.remove_of(page, due());
        log.health.redo(None);
        cycle.pages_on_device();
        assert_eq!(store.key_count(DB), (40, 0));
    }

    fn cycle_slot(store: &Store) -> u8 {
        store.session(|| {}).enter().place(DB)
    }

    /// The same of a page on the device, for a refusal and for a read that fails.
    #[test]
    fn what_cannot_be_removed_from_a_page_on_the_device_is_tried_again() {
        let (device, store, mut cycle) = by_hand();
        fill(&store, 40);
        let log = Arc::clone(&store.inner().log);
        let page = log.geometry.page_start(log.start);
        assert!(log.boundaries.safe_head() > page);
        log.health.redo(Some("its disk is full".into()));
        cycle.pages_on_device();
        assert_eq!(store.key_count(DB), (41, 1));
        log.health.redo(None);

        // The page itself can be read; its record is then read alone.
        let now = store.inner().now_ms();
        device.inject(Fault::new(Io::Read, libc::EIO).file(FileId::Segment(1)).after(1));
        cycle.pages_on_device();
        device.heal();
        assert_eq!(store.key_count(DB), (41, 1));
        let again = log.cold_expiry.locked().get(&page).copied();
        assert!(again.is_some_and(|at| at > now + 1000), "not at once, and not never: {again:?}");
        log.cold_expiry.locked().insert(page, now);
        cycle.pages_on_device();
        assert_eq!(store.key_count(DB), (40, 0));
    }
}
