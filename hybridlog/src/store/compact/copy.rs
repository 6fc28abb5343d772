//! The copy: each record of a page that is its key's newest goes to the tail, under its key's latch.

use super::{Compaction, Ended};
use crate::log::health::Shortage;
use crate::log::scan::records_of;
use crate::record::{Draft, RecordRef};
use crate::store::expire::remove_if_expired;
use crate::store::operation::Operation;
use crate::store::session::Inside;
use crate::store::write::Blocked;
use crate::sync::{Arc, mutant, thread};
use crate::{CompactError, OperationError};
use ferrite_index::Address;

/// Records in one stay inside.
const BATCH: usize = 32;

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

impl Compaction {
    /// Copies what lives in `[from, to)` of one page. Returns the words of the copies.
    pub(super) fn page(&mut self, from: u64, to: u64) -> Result<u64, Ended> {
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
            op.begin(&mut inside.credit);
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
            if let Some(Blocked::Room(words)) = blocked {
                op.wait_for_room_to_copy(words, &inside.inner.log, inside.ready);
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
            remove_if_expired(&self.inner, &mut self.session, slot, key, || control.stop.is_up());
        match removed {
            Ok(true) => Ok(()),
            Ok(false) => Err(Ended::Stopped),
            // Writes are refused: it goes on as it is, or the log is broken. The next look knows.
            Err(OperationError::NotWritable(_)) => Ok(()),
            // What cannot be removed now stays where it is.
            Err(e) => Err(Ended::Failed(CompactError::NotWritable(e.to_string()))),
        }
    }

    /// Waits, unpinned, for what blocks the work.
    fn unblock(&mut self, op: &mut Operation, blocked: Blocked) -> Result<(), Ended> {
        let log = &self.inner.log;
        let control = &self.inner.compaction;
        if control.stop.is_up() {
            return Err(Ended::Stopped);
        }
        match blocked {
            Blocked::Busy => thread::yield_now(),
            Blocked::Fetch(missing) => {
                for address in missing {
                    let fetched = log.fetch_blocking(address);
                    let fetched =
                        fetched.map_err(|e| Ended::Failed(CompactError::Unreadable(e)))?;
                    fetched.into_iter().for_each(|fetched| op.keep(fetched));
                }
            }
            // The room itself is taken inside: with some in hand at the gate it would keep from it a
            // command that runs alone and opens the gate afterwards.
            Blocked::Room(_) => {
                let mut shortage = Shortage::new(log);
                let given_up = || control.stop.is_up() || shortage.verdict().is_err();
                self.session.wait_until_called(given_up);
                let failed = |why| Ended::Failed(CompactError::NotWritable(why));
                shortage.verdict().map_err(failed)?;
            }
            Blocked::Redo(_) => unreachable!("a copy leaves no entry in the redo log"),
            Blocked::Failed(e) => {
                return Err(Ended::Failed(CompactError::NotWritable(e.to_string())));
            }
        }
        Ok(())
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
