//! Hints to the processor: what keys that come soon will need is on its way to the cache.
//!
//! A command costs two trips to memory that nothing hides, its bucket and its record. Whoever knows
//! the keys of several commands foresees all of them, then brings all of them in, then runs them:
//! the trips overlap. Nothing here waits, latches or changes what is found.

use super::session::Inside;
use super::tables::Database;
use ferrite_index::KeyHash;

/// A key whose bucket is on its way.
#[derive(Clone, Copy, Debug)]
pub struct Foreseen(Database, KeyHash);

impl Inside<'_> {
    /// Brings the bucket of a key towards the cache.
    #[inline]
    pub fn foresee(&self, db: Database, key: &[u8]) -> Foreseen {
        let hash = self.inner.secret.hash(key);
        self.tables.slot(db).index.prefetch(hash);
        Foreseen(db, hash)
    }

    /// Brings the record that the bucket of a foreseen key names towards the cache, if it is in
    /// memory.
    #[inline]
    pub fn bring_in(&self, foreseen: Foreseen) {
        let Foreseen(db, hash) = foreseen;
        let pinned = self.view.pinned(&self.pin);
        if let Ok(probe) = self.tables.slot(db).index.probe(pinned.pin, hash, false)
            && let Some(address) = probe.address()
            && pinned.is_live(address)
            && address.raw() >= pinned.head
            && let Some(record) = self.inner.log.record(pinned.pin, pinned.head, address)
        {
            record.prefetch();
        }
    }
}
