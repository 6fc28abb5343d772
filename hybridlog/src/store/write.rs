//! One key's change under its latch: in place where the record allows it, else a copy to the tail.
//!
//! | newest record                           | put                 | delete                    |
//! |-----------------------------------------|---------------------|---------------------------|
//! | mutable, in-place form, the value fits  | in place            | tombstone flag in place   |
//! | mutable otherwise                       | copy to tail        | tombstone flag in place   |
//! | read-only, on disk                      | copy to tail        | tombstone record at tail  |
//! | none                                    | insert at tail      | nothing                   |
//!
//! A copy or tombstone that replaces the chain's head takes over the head's previous address, so
//! the old version leaves the chain. A deleted key that was alone in its chain loses its entry.
//!
//! Every step that can fail comes before the first that shows: the caller has reserved the entry
//! in the index ([`Target::reserve`]), and here only room can be missing ([`Blocked::Room`]).

use super::find::{Located, Lookup, Pinned};
use super::tables::Slot;
use crate::OperationError;
use crate::record::{Draft, in_place_capacity};
use crate::redo;
use crate::sync::{atomic::Ordering, mutant};
use ferrite_index::{Address, KeyHash, Latch};

/// Why an operation must let go of everything and come back.
pub(crate) enum Blocked {
    /// A bucket is latched, or a multi-key command holds it.
    Busy,
    /// These records must be fetched.
    Fetch(Vec<Address>),
    /// So many words of room are needed.
    Room(u64),
    /// So many words of the redo log's ring are needed.
    Redo(u64),
    /// It cannot be done.
    Failed(OperationError),
}

/// What becomes of a key, with its bytes at hand.
#[derive(Clone, Copy)]
pub(crate) enum Effect<'a> {
    Delete,
    Put { value: &'a [u8], expires_at_ms: Option<u64>, encoding: u8 },
    Expire(Option<u64>),
}

impl<'a> Effect<'a> {
    /// The same as the redo log has it.
    pub fn redo(self, key: &'a [u8]) -> redo::Effect<'a> {
        match self {
            Self::Delete => redo::Effect::Delete { key },
            Self::Put { value, expires_at_ms, .. } => {
                redo::Effect::Put { key, value, expires_at_ms }
            }
            Self::Expire(at_ms) => redo::Effect::Expire { key, at_ms },
        }
    }
}

/// A key under the exclusive latch of its bucket.
pub(crate) struct Target<'a, 'p> {
    pub slot: &'a Slot,
    pub latch: &'a mut Latch<'p>,
    pub hash: KeyHash,
    pub key: &'a [u8],
    pub lookup: Lookup<'a>,
}

impl Target<'_, '_> {
    /// Makes sure that the key's entry can be set. Once for each key of a command.
    pub fn reserve(&self, pinned: &Pinned<'_>) -> Result<(), Blocked> {
        self.latch.reserve(self.hash, false).map_err(|_| pinned.inner.index_full())
    }
}

/// Words of the log that a key's record takes.
fn words_of(present: Option<Located<'_>>) -> u64 {
    present.map_or(0, |located| located.record.shape().words())
}

impl Pinned<'_> {
    /// Words of credit that surely suffice for the effect.
    pub fn room_for(&self, target_key: &[u8], effect: Effect<'_>, old_length: usize) -> u64 {
        let value = match effect {
            Effect::Delete => 0,
            Effect::Put { value, .. } => value.len(),
            Effect::Expire(_) => old_length,
        };
        let capacity = in_place_capacity(value, usize::MAX).unwrap_or(value);
        let bytes = crate::record::HEADER_LIMIT + target_key.len().next_multiple_of(8) + capacity;
        2 * (bytes as u64).div_ceil(8)
    }

    /// Reserves the redo log's entries for an effect on `key`, which is latched; `None` while there
    /// is no redo log. Comes before [`Pinned::apply`].
    pub fn redo_entry(
        &self,
        hash: KeyHash,
        key: &[u8],
        effect: Effect<'_>,
    ) -> Result<Option<redo::Entry<'_>>, Blocked> {
        let Some(redo) = self.redo() else { return Ok(None) };
        let words = redo.words([effect.redo(key)]);
        let entry = redo.reserve(words, self.now_ms).ok_or(Blocked::Redo(words))?;
        redo.note(hash, &entry);
        Ok(Some(entry))
    }

    /// The redo log, if writes leave entries.
    #[inline]
    pub fn redo(&self) -> Option<&'_ redo::Redo> {
        self.inner.redo.as_ref().filter(|redo| redo.is_active())
    }

    /// Applies the effect and then fills the entry that was reserved for it, whose end goes to
    /// `depends_on`. If it cannot be applied, the entry is skipped.
    pub fn apply_logged(
        &self,
        target: &mut Target<'_, '_>,
        effect: Effect<'_>,
        entry: Option<redo::Entry<'_>>,
        credit: &mut u64,
        depends_on: &mut u64,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Blocked> {
        self.apply(target, effect, credit, scratch)?;
        if let Some(entry) = entry {
            *depends_on = (*depends_on).max(entry.end());
            entry.fill(effect.redo(target.key), target.slot.number, self.now_ms);
        }
        Ok(())
    }

    /// Applies the effect. `scratch` is for a value that must be copied.
    fn apply(
        &self,
        target: &mut Target<'_, '_>,
        effect: Effect<'_>,
        credit: &mut u64,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Blocked> {
        match effect {
            Effect::Delete => self.delete(target, credit),
            Effect::Put { value, expires_at_ms, encoding } => {
                self.put(target, value, expires_at_ms, encoding, credit)
            }
            Effect::Expire(at) => self.set_expiry(target, at, credit, scratch),
        }
    }

    fn put(
        &self,
        target: &mut Target<'_, '_>,
        value: &[u8],
        expires_at_ms: Option<u64>,
        encoding: u8,
        credit: &mut u64,
    ) -> Result<(), Blocked> {
        let present = target.lookup.present();
        let before = present.map(|l| l.record.expires_at_ms().is_some());
        let fits = |l: &Located<'_>| {
            l.mutable && l.record.fits_in_place(value.len(), expires_at_ms.is_some(), encoding)
        };
        if let Some(located) = present.filter(fits) {
            located.record.write_in_place(value, expires_at_ms);
            if let Some(at) = expires_at_ms {
                self.inner.log.note_expiry(located.address.raw(), at);
            }
            self.inner.log.counters.in_place.fetch_add(1, Ordering::Relaxed);
        } else {
            let limit = self.inner.value_limit(target.key.len());
            let capacity = present.and_then(|_| in_place_capacity(value.len(), limit));
            let draft = Draft {
                slot: target.slot.number,
                key: target.key,
                value,
                expires_at_ms,
                encoding,
                tombstone: false,
                capacity,
            };
            self.publish(target, &draft, credit)?;
            target.slot.count_words(words_of(present), draft.words());
        }
        target.slot.count(before, Some(expires_at_ms.is_some()));
        Ok(())
    }

    fn set_expiry(
        &self,
        target: &mut Target<'_, '_>,
        at: Option<u64>,
        credit: &mut u64,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Blocked> {
        let Some(located) = target.lookup.present() else { return Ok(()) };
        let before = located.record.expires_at_ms();
        if before == at {
            return Ok(());
        }
        let encoding = located.record.shape().encoding();
        if located.mutable && located.record.fits_in_place(0, true, encoding) {
            located.record.write_expiry_in_place(at);
            if let Some(at) = at {
                self.inner.log.note_expiry(located.address.raw(), at);
            }
            self.inner.log.counters.in_place.fetch_add(1, Ordering::Relaxed);
            target.slot.count(Some(before.is_some()), Some(at.is_some()));
            return Ok(());
        }
        let value = located.record.load(scratch).bytes;
        self.put(target, value, at, encoding, credit)
    }

    fn delete(&self, target: &mut Target<'_, '_>, credit: &mut u64) -> Result<(), Blocked> {
        let Some(located) = target.lookup.present() else { return Ok(()) };
        let before = located.record.expires_at_ms().is_some();
        let first = target.latch.address(target.hash, false);
        let alone =
            first == Some(located.address) && !self.is_live(located.record.info().previous());
        if located.mutable {
            located.record.mark_tombstone();
            self.inner.log.counters.in_place.fetch_add(1, Ordering::Relaxed);
        } else {
            let draft = Draft::tombstone(target.slot.number, target.key);
            self.publish(target, &draft, credit)?;
        }
        if alone {
            target.latch.remove(target.hash, false);
        }
        target.slot.count(Some(before), None);
        target.slot.count_words(words_of(Some(located)), 0);
        Ok(())
    }

    /// Appends a record and makes it the chain's head.
    fn publish(
        &self,
        target: &mut Target<'_, '_>,
        draft: &Draft<'_>,
        credit: &mut u64,
    ) -> Result<(), Blocked> {
        // Another key of the same command may have become the head since the lookup.
        let first = target.latch.address(target.hash, false).unwrap_or(Address::INVALID);
        let previous = match target.lookup.at {
            Some(old) if old.address == first => old.record.info().previous(),
            _ => first,
        };
        let previous = if self.is_live(previous) { previous } else { Address::INVALID };
        self.top_up(2 * draft.words(), credit);
        let address = self
            .inner
            .log
            .append(self.pin, draft, previous, credit)
            .map_err(|_| Blocked::Room(2 * draft.words()))?;
        target.latch.set(target.hash, false, address);
        self.inner.log.counters.appends.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes room in advance: enough for this write, and for a batch's small writes where there
    /// is plenty. Who finds others waiting for room leaves it to them.
    pub fn top_up(&self, words: u64, credit: &mut u64) {
        let log = &self.inner.log;
        let others_wait = log.room.is_waiting() && !mutant!("room_to_newcomers");
        if *credit >= words || others_wait {
            return;
        }
        let missing = words - *credit;
        let generous = missing.max((log.geometry.ring_words() / 64).min(4096));
        if log.tail.grant(generous) {
            *credit += generous;
        } else if log.tail.grant(missing) {
            *credit += missing;
        }
    }
}
