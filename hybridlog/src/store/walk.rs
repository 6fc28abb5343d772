//! Walks over all keys, a bucket at a time, with SCAN's guarantee; and a random key.

use super::operation::{Operation, Search, Stop};
use super::session::{Inside, Random};
use super::tables::Database;
use super::value::Value;
use super::write::Blocked;
use crate::sync::{Arc, thread};
use ferrite_index::Address;

/// Empty buckets that one step of a walk passes over.
const EMPTY_BUCKETS: u32 = 256;
/// Buckets that a search for a random key looks at before it leaves and comes again: in a table that
/// was large once there may be millions without a key.
const BUCKETS_A_STAY: u32 = 4096;
/// Buckets that one sample of the index may look at.
const SAMPLE: u32 = 1024;
/// Random buckets tried before a sparse table is walked from a random place on.
const RANDOM_TRIES: u32 = 64;

impl Inside<'_> {
    /// Visits the keys of one step of a walk and returns the next cursor, 0 at the end. Each key
    /// that is there from the first call to the last is visited at least once, whatever is
    /// written and however the index grows meanwhile (SCAN's guarantee).
    ///
    /// Expired keys are passed over and stay: a walk for its own sake writes nothing.
    pub fn walk(
        &mut self,
        op: &mut Operation,
        db: Database,
        cursor: u64,
        f: impl FnMut(Value<'_>),
    ) -> Result<u64, Stop> {
        self.walk_step(op, db, cursor, false, f).map(|(next, _)| next)
    }

    /// As [`Inside::walk`], and visits what has expired and was not removed yet, too: for who has
    /// another clock.
    pub fn walk_with_expired(
        &mut self,
        op: &mut Operation,
        db: Database,
        cursor: u64,
        f: impl FnMut(Value<'_>),
    ) -> Result<u64, Stop> {
        self.walk_step(op, db, cursor, true, f).map(|(next, _)| next)
    }

    /// As [`Inside::walk`], and removes those of the expired keys that it meets that `wanted` is
    /// for.
    pub fn walk_removing_expired(
        &mut self,
        op: &mut Operation,
        db: Database,
        cursor: u64,
        wanted: impl Fn(&[u8]) -> bool,
        f: impl FnMut(Value<'_>),
    ) -> Result<u64, Stop> {
        let (next, expired) = self.walk_step(op, db, cursor, false, f)?;
        self.remove_all_expired(op, db, expired.iter().filter(|key| wanted(key)))?;
        Ok(next)
    }

    /// The next cursor, and the expired keys that were met.
    fn walk_step(
        &mut self,
        op: &mut Operation,
        db: Database,
        cursor: u64,
        with_expired: bool,
        f: impl FnMut(Value<'_>),
    ) -> Result<(u64, Vec<Vec<u8>>), Stop> {
        op.begin(&mut self.credit);
        let slot = Arc::clone(self.tables.slot(db));
        let mut heads = Vec::new();
        let mut next = cursor;
        for _ in 0..EMPTY_BUCKETS {
            next = slot.index.walk(self.view.pinned(&self.pin).pin, next, |address, node| {
                if !node {
                    heads.push(address);
                }
            });
            if next == 0 || !heads.is_empty() {
                break;
            }
        }
        let expired = self.visit_chains(op, &heads, with_expired, f)?;
        self.has_read_all();
        Ok((next, expired))
    }

    /// A random key of the database, or `None` when it has none. Removes the expired keys that it
    /// meets.
    pub fn random_key<R>(
        &mut self,
        op: &mut Operation,
        db: Database,
        f: impl FnOnce(Option<Value<'_>>) -> R,
    ) -> Result<R, Stop> {
        let slot = Arc::clone(self.tables.slot(db));
        if slot.counts().keys == 0 {
            self.has_read_all();
            return Ok(f(None));
        }
        let mut looked_at = 0;
        loop {
            op.begin(&mut self.credit);
            if looked_at >= BUCKETS_A_STAY {
                return self.wait(op, Blocked::Busy);
            }
            let Search { random, attempt, mut cursor } = *op.search(|| self.scratch.random());
            let mut random = Random(random);
            let mut heads = Vec::new();
            let collect = |address, node: bool| {
                if !node {
                    heads.push(address);
                }
            };
            if attempt < RANDOM_TRIES {
                slot.index.sample(self.view.pinned(&self.pin).pin, random.next(), collect);
                looked_at += SAMPLE;
            } else {
                // A sparse table: go through all of it.
                cursor = slot.index.walk(self.view.pinned(&self.pin).pin, cursor, collect);
                looked_at += 1;
            }
            let mut found: Option<(Vec<u8>, usize)> = None;
            let (pick, mut seen) = (random.next(), 0);
            let expired = self.visit_chains(op, &heads, false, |value| {
                seen += 1;
                if pick.is_multiple_of(seen) || found.is_none() {
                    found = Some((value.key.to_vec(), value.stored_bytes));
                }
            })?;
            self.has_read_all();
            self.remove_all_expired(op, db, expired.iter())?;
            if let Some((key, stored_bytes)) = found {
                let value = Value {
                    key: &key,
                    bytes: &[],
                    expires_at_ms: None,
                    encoding: 0,
                    stored_bytes,
                    address: 0,
                };
                return Ok(f(Some(value)));
            }
            if attempt >= RANDOM_TRIES && cursor == 0 {
                return Ok(f(None));
            }
            let attempt = attempt.saturating_add(1);
            *op.search(|| 0) = Search { random: random.0, attempt, cursor };
        }
    }

    /// Calls `f` for each key below these chain heads that is there and has not expired (or has, if
    /// wanted), once every record is at hand. Returns the other expired keys.
    fn visit_chains(
        &mut self,
        op: &mut Operation,
        heads: &[Address],
        with_expired: bool,
        mut f: impl FnMut(Value<'_>),
    ) -> Result<Vec<Vec<u8>>, Stop> {
        let pinned = self.view.pinned(&self.pin);
        let mut records = Vec::new();
        let missing: Vec<Address> =
            heads.iter().filter_map(|head| pinned.chain(op, *head, &mut records).err()).collect();
        if !missing.is_empty() {
            return self.wait(op, Blocked::Fetch(missing));
        }
        let mut expired = Vec::new();
        for address in records {
            let record =
                pinned.resolve(op, address).expect("resolved a moment ago, inside the same pin");
            if record.info().is_tombstone() {
                continue;
            }
            let loaded = loop {
                // Only while one writer is inside this very value, for a few words.
                if let Some(loaded) = record.try_load(&mut self.scratch.value) {
                    break loaded;
                }
                thread::yield_now();
            };
            if !with_expired && pinned.is_due(loaded.expires_at_ms) {
                expired.push(record.key().to_vec());
            } else {
                f(Value::new(address, record, &loaded));
            }
        }
        Ok(expired)
    }
}
