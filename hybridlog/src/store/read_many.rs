//! Read of several keys at one instant: under shares of all their buckets' latches.
//!
//! Writers keep it out for as long as they hold one of them. A reader that found some latch taken
//! eight times runs alone, at a safepoint ([`super::alone`]), so that no stream of writers keeps it
//! waiting for ever.

use super::alone::PATIENCE;
use super::operation::{Operation, Stop};
use super::session::Inside;
use super::tables::{Database, Slot};
use super::value::Value;
use super::write::Blocked;
use crate::sync::{Arc, HashState, mutant};
use ferrite_index::{Address, KeyHash, SharedLatch};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

impl Inside<'_> {
    /// Reads several keys of one database at one instant; `f` gets each key's position.
    pub fn read_many(
        &mut self,
        op: &mut Operation,
        db: Database,
        keys: &[&[u8]],
        mut f: impl FnMut(usize, Option<Value<'_>>),
    ) -> Result<(), Stop> {
        op.begin(&mut self.credit);
        let slot = Arc::clone(self.tables.slot(db));
        let unlucky = keys.len() > 1 && op.tries() >= PATIENCE && !mutant!("reader_never_alone");
        let expired = match self.try_read_many(op, &slot, keys, &mut f) {
            Ok(expired) => expired,
            Err(Blocked::Busy) if unlucky => self.alone(op, |inside, op| {
                // The databases may have changed before the gate was closed.
                let slot = Arc::clone(inside.inner.tables().1.slot(db));
                inside.until_done(op, |inside, op| inside.try_read_many(op, &slot, keys, &mut f))
            })?,
            Err(blocked) => return self.wait(op, blocked),
        };
        expired.into_iter().for_each(|i| self.remove_expired(op, db, keys[i]));
        Ok(())
    }

    /// Calls `f` for each key once all are at hand. Returns the places of those that have expired.
    fn try_read_many(
        &mut self,
        op: &Operation,
        slot: &Slot,
        keys: &[&[u8]],
        f: &mut impl FnMut(usize, Option<Value<'_>>),
    ) -> Result<Vec<usize>, Blocked> {
        let pinned = self.view.pinned(&self.pin);
        let secret = &pinned.inner.secret;
        let hashes: Vec<KeyHash> = keys.iter().map(|key| secret.hash(key)).collect();
        // One share a bucket, however often a key stands: shares are counted in 15 bits.
        let mut shares: HashMap<u64, SharedLatch<'_>, HashState> =
            HashMap::with_capacity_and_hasher(keys.len(), HashState::default());
        for hash in &hashes {
            if let Entry::Vacant(vacant) = shares.entry(slot.index.bucket_number(*hash)) {
                let share = slot.index.latch_shared(pinned.pin, *hash);
                vacant.insert(share.map_err(|_| Blocked::Busy)?);
            }
        }
        // A bucket that is held does not split, so each number still leads to its share; one that
        // split before its share was taken is held under its old number.
        let first = |hash: &KeyHash| {
            let share = shares.get(&slot.index.bucket_number(*hash));
            share.filter(|s| s.covers(&slot.index, *hash)).map(|s| s.address(*hash, false))
        };
        let firsts: Option<Vec<_>> = hashes.iter().map(first).collect();
        let firsts = firsts.ok_or(Blocked::Busy)?;
        let missing: Vec<Address> = keys
            .iter()
            .zip(&firsts)
            .filter_map(|(key, first)| pinned.find(op, *first, key).err())
            .collect();
        if !missing.is_empty() {
            return Err(Blocked::Fetch(missing));
        }
        let last = hashes.iter().map(|hash| pinned.last_entry_of(*hash)).max();
        self.depends_on = self.depends_on.max(last.unwrap_or(0));
        let mut expired = Vec::new();
        for (i, (key, first)) in keys.iter().zip(&firsts).enumerate() {
            let lookup = pinned
                .find(op, *first, key)
                .expect("found a moment ago, and the shared latch keeps writers out");
            let loaded = lookup.load(&mut self.scratch.value);
            match (loaded, lookup.at) {
                (Some(loaded), Some(_)) if pinned.is_due(loaded.expires_at_ms) => {
                    expired.push(i);
                    f(i, None);
                }
                (Some(loaded), Some(located)) => {
                    f(i, Some(Value::new(located.address, located.record, &loaded)));
                }
                _ => f(i, None),
            }
        }
        Ok(expired)
    }
}
