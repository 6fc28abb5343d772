//! Update: read one key and write what the caller makes of it, as one step under its latch.
//!
//! Upsert, read-modify-write and delete are all this operation; what differs is the closure.

use super::operation::{Operation, Stop};
use super::session::Inside;
use super::tables::Database;
use super::value::{Change, Value};
use super::write::{Blocked, Effect, Target};
use crate::OperationError;
use crate::record::{HEADER_LIMIT, KEY_LIMIT};
use crate::sync::atomic::Ordering;

impl Inside<'_> {
    /// Reads one key and writes what `f` makes of it, as one step. `f` may be called more than
    /// once and must not have effects of its own; only its last answer counts. The scratch buffer
    /// is empty at each call.
    pub fn update<'v, R>(
        &mut self,
        op: &mut Operation,
        db: Database,
        key: &[u8],
        mut f: impl FnMut(Option<Value<'_>>, &mut Vec<u8>) -> (Change<'v>, R),
    ) -> Result<R, Stop> {
        op.begin(&mut self.credit);
        match self.try_update(op, db, key, &mut f) {
            Ok(r) => Ok(r),
            Err(blocked) => self.wait(op, blocked),
        }
    }

    pub(crate) fn try_update<'v, R>(
        &mut self,
        op: &Operation,
        db: Database,
        key: &[u8],
        f: &mut impl FnMut(Option<Value<'_>>, &mut Vec<u8>) -> (Change<'v>, R),
    ) -> Result<R, Blocked> {
        let slot = self.tables.slot(db);
        let pinned = self.view.pinned(&self.pin);
        let hash = pinned.inner.secret.hash(key);
        let mut latch = slot.index.latch(pinned.pin, hash).map_err(|_| Blocked::Busy)?;
        let lookup = pinned
            .find(op, latch.address(hash, false), key)
            .map_err(|missing| Blocked::Fetch(vec![missing]))?;
        let scratch = &mut *self.scratch;
        scratch.out.clear();
        let loaded = lookup.load(&mut scratch.value);
        let due = loaded.as_ref().is_some_and(|l| pinned.is_due(l.expires_at_ms));
        let value = match (&loaded, lookup.at) {
            (Some(loaded), Some(located)) if !due => {
                Some(Value::new(located.address, located.record, loaded))
            }
            _ => None,
        };
        let was_there = value.is_some();
        let (change, r) = f(value, &mut scratch.out);
        let effect = match change {
            Change::Keep if due => Effect::Delete,
            Change::Keep => {
                self.depends_on = self.depends_on.max(pinned.last_entry_of(hash));
                return Ok(r);
            }
            Change::Delete if was_there || due => Effect::Delete,
            Change::Expire(_) if due => Effect::Delete,
            Change::Expire(at) if was_there => Effect::Expire(at),
            Change::Delete | Change::Expire(_) => {
                self.depends_on = self.depends_on.max(pinned.last_entry_of(hash));
                return Ok(r);
            }
            Change::Put { value, expires_at_ms, encoding } => {
                Effect::Put { value, expires_at_ms, encoding }
            }
            Change::PutScratch { expires_at_ms, encoding } => {
                Effect::Put { value: &scratch.out, expires_at_ms, encoding }
            }
        };
        if let Some(reason) = pinned.inner.log.health.refusal_of(self.alone_at_ms.is_some()) {
            // An expired key that cannot be removed now is absent all the same.
            return if matches!(change, Change::Keep) {
                self.depends_on = self.depends_on.max(pinned.last_entry_of(hash));
                Ok(r)
            } else {
                Err(Blocked::Failed(OperationError::NotWritable(reason)))
            };
        }
        if let Effect::Put { value, .. } = effect {
            pinned.inner.check_size(key, value.len())?;
        }
        let mut target = Target { slot, latch: &mut latch, hash, key, lookup };
        target.reserve(&pinned)?;
        let entry = pinned.redo_entry(hash, key, effect)?;
        let (credit, depends_on) = (&mut self.credit, &mut self.depends_on);
        pinned.apply_logged(&mut target, effect, entry, credit, depends_on, &mut scratch.value)?;
        if due {
            pinned.inner.log.counters.expired.fetch_add(1, Ordering::Relaxed);
        }
        drop(latch);
        slot.index.grow(pinned.pin);
        Ok(r)
    }
}

impl super::Inner {
    pub fn index_full(&self) -> Blocked {
        Blocked::Failed(OperationError::IndexFull { limit: self.config.index_max_size })
    }

    /// Refuses what no page can hold.
    pub fn check_size(&self, key: &[u8], value_length: usize) -> Result<(), Blocked> {
        let needed = HEADER_LIMIT + key.len().next_multiple_of(8) + value_length;
        let limit = self.config.page_size as usize;
        if key.len() > KEY_LIMIT || needed > limit {
            return Err(Blocked::Failed(OperationError::TooLarge { needed, limit }));
        }
        Ok(())
    }
}
