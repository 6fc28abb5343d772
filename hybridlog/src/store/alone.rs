//! Alone: a transaction, a command that needs more room than the ring can promise at once, or one
//! that found some latch taken too often.
//!
//! The gate is closed, so that nobody else is inside, nobody sees the work half done and no cut
//! falls inside it. It may then wait, unpinned, for frames and for reads of records that are not in
//! memory: their supply depends on the page thread and the device only, on no latch and no gate.
//! The gate admits one closer at a time: that is the lock of all who run alone.

use super::Inner;
use super::find::{Lookup, Pinned, View};
use super::many::{Many, Place, Plan, Planned};
use super::operation::{Operation, ReadyQueue, Stop};
use super::session::Scratch;
use super::session::{Inside, take_tables};
use super::tables::Database;
use super::tables::Tables;
use super::value::Change;
use super::write::{Blocked, Effect, Target};
use crate::OperationError;
use crate::log::Log;
use crate::log::health::Shortage;
use crate::redo;
use crate::sync::{Arc, thread};
use ferrite_index::{Closed, Participant, Pin};

/// A command of several keys that has found some latch taken so often runs alone.
pub(crate) const PATIENCE: u32 = 8;

/// A session that has shut everybody else out ([`Session::alone`](super::Session::alone)): a
/// transaction. It begins when the gate is closed and ends when this is dropped; between the two no
/// other session is inside, no checkpoint makes its cut and nothing else changes the databases. All
/// of it sees one clock.
///
/// Operations of its stays inside wait where they stand, unpinned: when one answers
/// [`Stop::Pending`], what it needed is there, and the same call with the same operation can be
/// made again at once. Everybody waits meanwhile: fetch before what is cold
/// ([`Inside::fetch_ahead`]).
pub struct Alone<'s> {
    pub(super) inner: &'s Arc<Inner>,
    pub(super) participant: &'s Participant,
    pub(super) ready: &'s Arc<ReadyQueue>,
    pub(super) tables: &'s mut Arc<Tables>,
    pub(super) generation: &'s mut u64,
    pub(super) scratch: &'s mut Scratch,
    pub(super) now_ms: u64,
    pub(super) _closed: Option<Closed<'s>>,
}

impl Alone<'_> {
    /// Goes inside. Leave it before the next, and before the calls below.
    pub fn enter(&mut self) -> Inside<'_> {
        let Self { inner, participant, ready, tables, generation, scratch, now_ms, _closed } = self;
        let pin = participant.pin();
        take_tables(inner, generation, tables);
        let mut view = View::load(inner, &pin);
        view.now_ms = *now_ms;
        Inside {
            view,
            pin: Some(pin),
            inner,
            participant,
            tables,
            generation,
            ready,
            scratch,
            credit: 0,
            depends_on: 0,
            depended_on: 0,
            alone_at_ms: Some(*now_ms),
        }
    }

    /// Its clock, in Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Refuses a transaction that could not write: ask before its first effect. Afterwards only what
    /// breaks the log for good refuses any of it: a refusal that passes would tear it in two. `bytes`
    /// is what its commands bring along.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log takes no writes, or the disk may not hold it.
    pub fn refuse_unwritable(&self, bytes: u64) -> Result<(), OperationError> {
        if let Some(reason) = self.inner.log.health.refusal() {
            return Err(OperationError::NotWritable(reason));
        }
        if bytes == 0 {
            return Ok(());
        }
        // A record of twice its size may be written, and its page left half empty.
        refuse_without_disk(&self.inner.log, bytes / 2)
    }

    /// [`Store::flush_database`](super::Store::flush_database), in here.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log is broken.
    pub fn flush_database(&self, db: Database) -> Result<(), OperationError> {
        self.inner.flush_database(db, true)
    }

    /// [`Store::flush_all`](super::Store::flush_all), in here.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log is broken.
    pub fn flush_all(&self) -> Result<(), OperationError> {
        self.inner.flush_all(true)
    }

    /// [`Store::swap_databases`](super::Store::swap_databases), in here.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log is broken.
    pub fn swap_databases(&self, a: Database, b: Database) -> Result<(), OperationError> {
        self.inner.swap_databases(a, b, true)
    }
}

impl Drop for Alone<'_> {
    /// Its entries in the redo log end, before the gate opens.
    fn drop(&mut self) {
        redo::end_transaction(self.inner);
    }
}

/// Closes the gate and takes back room that was granted and not taken: it belongs to those who wait
/// at the gate.
pub(crate) fn close_gate(inner: &Inner) -> Closed<'_> {
    let closed = inner.gate.close(&inner.log.epoch);
    inner.log.room.revoke(&inner.log.tail);
    closed
}

impl<'s> Inside<'s> {
    /// Runs a command at a safepoint. `run` waits where it stands ([`Inside::until_done`]).
    pub(crate) fn alone<R>(
        &mut self,
        op: &mut Operation,
        run: impl FnOnce(&mut Self, &mut Operation) -> Result<R, Blocked>,
    ) -> Result<R, Stop> {
        let result = if self.alone_at_ms.is_some() {
            let result = run(self, op);
            self.pin_alone();
            result
        } else {
            self.return_credit();
            self.pin = None;
            let closed = close_gate(self.inner);
            let result = run(self, op);
            self.return_credit();
            self.pin = None;
            drop(closed);
            self.go_inside_again();
            result
        };
        result.map_err(|blocked| match blocked {
            Blocked::Failed(e) => Stop::Failed(e),
            _ => unreachable!("a command that runs alone waits where it stands"),
        })
    }

    /// In a stay alone: waits for what blocks a command, which is then called again.
    pub(crate) fn wait_alone<R>(
        &mut self,
        op: &mut Operation,
        blocked: Blocked,
    ) -> Result<R, Stop> {
        let outcome = self.unblock(op, blocked);
        self.pin_alone();
        match outcome {
            Err(Blocked::Failed(e)) => Err(Stop::Failed(e)),
            _ => Err(Stop::Pending),
        }
    }

    /// Takes a step, pinned, again and again until nothing blocks it, waiting unpinned in between.
    pub(crate) fn until_done<R>(
        &mut self,
        op: &mut Operation,
        mut step: impl FnMut(&mut Self, &Operation) -> Result<R, Blocked>,
    ) -> Result<R, Blocked> {
        loop {
            self.pin_alone();
            match step(self, op) {
                Ok(r) => return Ok(r),
                Err(blocked) => self.unblock(op, blocked)?,
            }
        }
    }

    pub(crate) fn update_many_alone<'v, R>(
        &mut self,
        op: &mut Operation,
        keys: &[(Database, &[u8])],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<R, Stop> {
        self.alone(op, |inside, op| {
            // The databases may have changed before the gate was closed.
            let (_, tables) = inside.inner.tables();
            let places = inside.places(&tables, keys);
            let (answer, decided) =
                inside.until_done(op, |inside, op| inside.decide_alone(op, &places, f))?;
            if decided.is_empty() {
                inside.pin_alone();
                let pinned = inside.view.pinned(&inside.pin);
                let last = places.iter().map(|place| pinned.last_entry_of(place.hash)).max();
                inside.depends_on = inside.depends_on.max(last.unwrap_or(0));
            }
            let redo = inside.inner.redo.as_ref().filter(|_| !decided.is_empty());
            let one = redo.is_some_and(|redo| redo.run_alone(decided.len() > 1));
            for (i, planned) in &decided {
                let done = inside
                    .until_done(op, |inside, op| inside.apply_alone(op, &places[*i], planned));
                done.unwrap_or_else(|blocked| failed_half_way(&blocked));
            }
            if one {
                inside.return_credit();
                inside.pin = None;
                redo::end_transaction(inside.inner);
                inside.depends_on = inside.inner.redo.as_ref().map_or(0, redo::Redo::tail);
            }
            // Not before: a split would take of the room that was found for the keys to come.
            inside.pin_alone();
            let pinned = inside.view.pinned(&inside.pin);
            for (i, _) in &decided {
                places[*i].slot.index.grow(pinned.pin);
            }
            Ok(answer)
        })
    }

    /// Another safepoint may have come between: tables and boundaries are taken anew.
    fn go_inside_again(&mut self) {
        let pin = self.participant.enter(&self.inner.gate);
        take_tables(self.inner, self.generation, self.tables);
        self.view = View::load(self.inner, &pin);
        self.pin = Some(pin);
    }

    fn pin_alone(&mut self) {
        if self.pin.is_some() {
            return;
        }
        let pin: Pin<'s> = self.participant.pin();
        self.view = View::load(self.inner, &pin);
        self.view.now_ms = self.alone_at_ms.unwrap_or(self.view.now_ms);
        self.pin = Some(pin);
    }

    /// What becomes of the keys that change, so that it can be applied one by one.
    fn decide_alone<'v, R>(
        &self,
        op: &Operation,
        places: &[Place<'_>],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<(R, Vec<(usize, Planned<'v>)>), Blocked> {
        let pinned = self.view.pinned(&self.pin);
        let Plan { answer, lookups, same, mut changes, .. } = pinned.plan(op, places, f)?;
        let admitted = self.alone_at_ms.is_some();
        let effects = pinned.effects(places, &lookups, &changes, &same, admitted)?;
        let new = effects.iter().filter(|(i, _)| lookups[*i].at.is_none()).count();
        for place in places {
            // Each new key may need an overflow bucket of its own.
            if !place.slot.index.has_room_for(new as u64) {
                return Err(self.inner.index_full());
            }
        }
        self.refuse_without_disk(&pinned, places, &lookups, &effects)?;
        pinned.count_expired(&lookups, &effects);
        let simple = |effect| match effect {
            Effect::Delete => Some(Change::Delete),
            Effect::Expire(at) => Some(Change::Expire(at)),
            Effect::Put { .. } => None,
        };
        let effects: Vec<(usize, Option<Change<'v>>)> =
            effects.into_iter().map(|(i, effect)| (i, simple(effect))).collect();
        let decided = effects.into_iter().map(|(i, simple)| match simple {
            Some(change) => (i, Planned::Given(change)),
            None => (i, changes[i].take().expect("what is put was planned")),
        });
        Ok((answer, decided.collect()))
    }

    /// Refuses a command that the disk may not hold: once it has begun, all wait for its end.
    fn refuse_without_disk(
        &self,
        pinned: &Pinned<'_>,
        places: &[Place<'_>],
        lookups: &[Lookup<'_>],
        effects: &[(usize, Effect<'_>)],
    ) -> Result<(), Blocked> {
        let mut value = Vec::new();
        let mut words = 0;
        for &(i, effect) in effects {
            let old = lookups[i].load(&mut value).map_or(0, |l| l.bytes.len());
            words += pinned.room_for(places[i].key, effect, old);
        }
        refuse_without_disk(&self.inner.log, words).map_err(Blocked::Failed)
    }

    fn apply_alone(
        &mut self,
        op: &Operation,
        place: &Place<'_>,
        planned: &Planned<'_>,
    ) -> Result<(), Blocked> {
        let pinned = self.view.pinned(&self.pin);
        let mut latch =
            place.slot.index.latch(pinned.pin, place.hash).map_err(|_| Blocked::Busy)?;
        let lookup = pinned
            .find(op, latch.address(place.hash, false), place.key)
            .map_err(|missing| Blocked::Fetch(vec![missing]))?;
        let Some(effect) = planned.effect() else { return Ok(()) };
        let (hash, key) = (place.hash, place.key);
        let mut target = Target { slot: place.slot, latch: &mut latch, hash, key, lookup };
        target.reserve(&pinned)?;
        let entry = pinned.redo_entry(hash, key, effect)?;
        let (credit, depends_on) = (&mut self.credit, &mut self.depends_on);
        let scratch = &mut self.scratch.value;
        pinned.apply_logged(&mut target, effect, entry, credit, depends_on, scratch)
    }

    /// Waits, unpinned, for what blocks the command.
    fn unblock(&mut self, op: &mut Operation, blocked: Blocked) -> Result<(), Blocked> {
        self.pin = None;
        match blocked {
            Blocked::Busy => thread::yield_now(),
            Blocked::Fetch(missing) => {
                for address in missing {
                    let fetched = self.inner.log.fetch_blocking(address);
                    let fetched =
                        fetched.map_err(|e| Blocked::Failed(OperationError::Unreadable(e)))?;
                    fetched.into_iter().for_each(|fetched| op.keep(fetched));
                }
            }
            Blocked::Room(words) => {
                if let Some(reason) = self.inner.log.health.breakage() {
                    return Err(Blocked::Failed(OperationError::NotWritable(reason)));
                }
                self.return_credit();
                let mut shortage = Shortage::new(&self.inner.log);
                self.credit = wait_for_room(&self.inner.log, words, || shortage.verdict().is_err());
                let failed = |e| Blocked::Failed(OperationError::NotWritable(e));
                shortage.verdict().map_err(failed)?;
            }
            Blocked::Redo(words) => redo::wait_while_full(self.inner, words),
            Blocked::Failed(_) => return Err(blocked),
        }
        Ok(())
    }
}

/// Refuses what may need `words` of log, if the disk may not hold them.
fn refuse_without_disk(log: &Log, words: u64) -> Result<(), OperationError> {
    // What is in memory and not flushed goes there first.
    let needed = (words + log.tail.load() - log.boundaries.flushed_until()) * 8;
    match log.device.free_space() {
        Ok(free) if free < needed => Err(OperationError::NotWritable(format!(
            "the command may need {needed} bytes of disk, and {free} are free; free some, or write \
             less at once"
        ))),
        _ => Ok(()),
    }
}

/// Some effects of a command that runs alone are there, and the others cannot be: only recovery can
/// undo it.
fn failed_half_way(blocked: &Blocked) {
    let why = match blocked {
        Blocked::Failed(e) => e.to_string(),
        _ => "it could not wait".into(),
    };
    tracing::error!("a command failed half way: {why}; restart to recover");
    std::process::abort();
}

/// Waits for room on the calling thread, which must not be pinned. May return less than asked
/// for when the ring can give no more at once (see [`crate::log::room::RoomQueue::serve`]), or
/// nothing once the log is broken. It is for checkpoints and commands that run alone, which may
/// use the disk's reserve: a full disk does not dismiss them, but they may give up.
pub(crate) fn wait_for_room(log: &Arc<Log>, words: u64, mut give_up: impl FnMut() -> bool) -> u64 {
    ferrite_index::assert_unpinned();
    let thread = thread::current();
    let ready = Arc::new(ReadyQueue::new(Box::new(move || thread.unpark())));
    let grant = log.room.join_privileged(words, &ready);
    log.wake();
    let mut tokens = Vec::new();
    while tokens.is_empty() && !give_up() {
        thread::park_timeout(std::time::Duration::from_millis(50));
        ready.drain(&mut tokens);
    }
    // Nothing if it gave up: the queue passes over a grant that was taken.
    grant.take()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::device::fault::FaultDevice;
    use crate::device::{Device, FileId};
    use crate::store::write::Blocked;
    use crate::{Config, Database, Operation, Store};
    use ferrite_index::Address;

    /// A checkpoint ends between the look at a chain and the read of its record: no damage, the
    /// record is needed by nobody. Before, the client was told to restore a backup.
    #[test]
    fn what_the_log_gives_back_before_it_is_read_is_not_missed() {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (4096, 4 * 4096);
        (config.mutable_size, config.readonly_size) = (2 * 4096, 2 * 4096);
        let device = FaultDevice::new();
        let store = Store::open_on(config, device.clone()).expect("opens");
        let fill = || {
            let mut s = store.blocking_session();
            for i in 0..64u64 {
                s.upsert(Database(0), &i.to_le_bytes(), &[1; 1000]).expect("writes");
            }
        };
        let fetches = |address| {
            let mut session = store.session(|| {});
            let mut alone = session.alone();
            let missing = Blocked::Fetch(vec![Address::new(address)]);
            alone.enter().unblock(&mut Operation::new(0), missing).is_ok()
        };
        fill();
        let first = store.inner().log.start;
        assert!(fetches(first));
        store.flush_all().expect("flushes");
        for _ in 0..2 {
            store.checkpoint().expect("taken");
        }
        let geometry = store.inner().log.geometry;
        assert!(device.contents(FileId::Segment(geometry.segment_of(first))).is_none());
        assert!(fetches(first), "the log begins above it");
        // One that is needed is missed.
        let needed = store.inner().log.tail.load();
        fill();
        device.remove(FileId::Segment(geometry.segment_of(needed))).expect("it is there");
        assert!(!fetches(needed));
    }
}
