//! Read: without a latch, in every region, unless writers never rest.
//!
//! The record is read and then the bucket is looked at again: while a multi-key command holds it,
//! what was read may be half of that command's effect, and does not count.

use super::find::Pinned;
use super::operation::{Operation, Stop};
use super::session::Inside;
use super::tables::Database;
use super::value::Value;
use super::write::Blocked;
use crate::sync::mutant;
use ferrite_index::Address;

/// How often a read looks again at a value that a writer changes, or at a bucket that a multi-key
/// command holds, before it takes a share of the latch.
const PATIENCE: u32 = 8;

impl Inside<'_> {
    /// Starts the device read that `read` of this key would need, and returns at once.
    pub fn prefetch(&mut self, op: &mut Operation, db: Database, key: &[u8]) {
        let tables = &*self.tables;
        let slot = tables.slot(db);
        let hash = self.view.inner.secret.hash(key);
        let pinned = self.view.pinned(&self.pin);
        let Ok(probe) = slot.index.probe(pinned.pin, hash, false) else { return };
        if let Some(address) = probe.address()
            && pinned.is_live(address)
            && pinned.resolve(op, address).is_none()
        {
            op.fetch(address, &pinned.inner.log, self.ready);
        }
    }

    /// Brings all that an operation on this key needs of the device into `op`, without doing
    /// anything yet: true when it is at hand. Else a read is on its way: call again when `op`'s
    /// token is ready. A read that failed is left to the operation that needs it.
    pub fn fetch_ahead(&mut self, op: &mut Operation, db: Database, key: &[u8]) -> bool {
        op.begin(&mut self.credit);
        let slot = self.tables.slot(db);
        let hash = self.view.inner.secret.hash(key);
        let pinned = self.view.pinned(&self.pin);
        let Ok(probe) = slot.index.probe(pinned.pin, hash, false) else { return true };
        match pinned.find(op, probe.address(), key) {
            Err(missing) if op.failure(missing).is_none() => {
                op.fetch(missing, &pinned.inner.log, self.ready);
                false
            }
            _ => true,
        }
    }

    /// Reads one key. An expired one is absent (and is removed in passing).
    pub fn read<R>(
        &mut self,
        op: &mut Operation,
        db: Database,
        key: &[u8],
        f: impl FnOnce(Option<Value<'_>>) -> R,
    ) -> Result<R, Stop> {
        op.begin(&mut self.credit);
        let slot = self.tables.slot(db);
        let hash = self.view.inner.secret.hash(key);
        for _ in 0..PATIENCE {
            let pinned = self.view.pinned(&self.pin);
            let Ok(probe) = slot.index.probe(pinned.pin, hash, false) else { continue };
            let lookup = match pinned.find(op, probe.address(), key) {
                Ok(lookup) => lookup,
                Err(missing) => return self.wait(op, Blocked::Fetch(vec![missing])),
            };
            let Some(located) = lookup.present() else {
                if !probe.still_open() {
                    continue;
                }
                self.depends_on = self.depends_on.max(pinned.last_entry_of(hash));
                return Ok(f(None));
            };
            let Some(loaded) = located.record.try_load(&mut self.scratch.value) else { continue };
            if !probe.still_open() && !mutant!("read_ignores_multi") {
                continue;
            }
            self.depends_on = self.depends_on.max(pinned.last_entry_of(hash));
            if pinned.is_due(loaded.expires_at_ms) {
                let r = f(None);
                self.remove_expired(op, db, key);
                return Ok(r);
            }
            return Ok(f(Some(Value::new(located.address, located.record, &loaded))));
        }
        // A writer that never rests: it is kept out for this one read.
        let (mut f, mut answer) = (Some(f), None);
        self.read_many(op, db, &[key], |_, value| answer = f.take().map(|f| f(value)))?;
        Ok(answer.expect("one key has one value"))
    }

    /// Removes a key that a reader found expired, if that takes no waiting: readers go on while
    /// writers wait for the device. [`Inside::key_count`] or the expiry cycle comes to what stays.
    pub(crate) fn remove_expired(&mut self, op: &mut Operation, db: Database, key: &[u8]) {
        match self.try_remove_expired(op, db, key) {
            // One that cannot be removed at all is absent all the same.
            Ok(()) | Err(Blocked::Failed(_)) => {}
            Err(_) => self.tables.slot(db).leave(key),
        }
    }

    /// How many keys a database has: those that were not yet removed count, except where a reader has
    /// found that they have expired.
    ///
    /// # Errors
    /// [`Stop::Pending`] while such a key waits to be removed.
    pub fn key_count(&mut self, op: &mut Operation, db: Database) -> Result<u64, Stop> {
        op.begin(&mut self.credit);
        let slot = std::sync::Arc::clone(self.tables.slot(db));
        let left = slot.left();
        if !left.is_empty() {
            self.remove_all_expired(op, db, left.iter())?;
            slot.forget_left(&left);
        }
        let keys = slot.counts().keys;
        self.has_read_all();
        Ok(keys)
    }

    /// Behind what was read of more keys than are named: what was found there, or was not, is no younger than
    /// the redo log's end is now.
    pub(crate) fn has_read_all(&mut self) {
        if !mutant!("walk_depends_on_nothing") {
            self.depends_on_all();
        }
    }

    /// Removes keys that were found expired, and waits for what that takes: for the commands whose
    /// clients see in DBSIZE that it was done.
    pub(crate) fn remove_all_expired<'k>(
        &mut self,
        op: &mut Operation,
        db: Database,
        mut keys: impl Iterator<Item = &'k Vec<u8>>,
    ) -> Result<(), Stop> {
        keys.try_for_each(|key| match self.try_remove_expired(op, db, key) {
            // One that cannot be removed at all is absent all the same.
            Ok(()) | Err(Blocked::Failed(_)) => Ok(()),
            Err(blocked) => self.wait(op, blocked),
        })
    }

    fn try_remove_expired(
        &mut self,
        op: &mut Operation,
        db: Database,
        key: &[u8],
    ) -> Result<(), Blocked> {
        if self.inner.expiry.is_held(self.view.now_ms) {
            return Ok(());
        }
        let keep = &mut |_: Option<Value<'_>>, _: &mut Vec<u8>| (super::Change::Keep, ());
        self.try_update(op, db, key, keep)
    }
}

impl Pinned<'_> {
    /// Chain heads to visit on a walk: every key of the chains below them once, newest first.
    pub fn chain(
        &self,
        op: &Operation,
        first: Address,
        into: &mut Vec<Address>,
    ) -> Result<(), Address> {
        let from = into.len();
        let mut address = first;
        while self.is_live(address) {
            let record = self.resolve(op, address).ok_or(address)?;
            let seen = into[from..]
                .iter()
                .any(|a| self.resolve(op, *a).is_some_and(|newer| newer.key() == record.key()));
            if !seen {
                into.push(address);
            }
            address = record.info().previous();
        }
        Ok(())
    }
}
