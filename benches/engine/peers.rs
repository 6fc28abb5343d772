//! papaya, dashmap and scc as engines, each driven as its documentation advises.
//!
//! All have room for every key from the start, so none is growing while it is measured. A value is
//! replaced as a whole: papaya stores a new node and retires the old one, dashmap and scc write the
//! value where it is, under the lock of its shard or bucket.

use crate::{Engine, Worker};
use ferrite_benches::keys::Key;
use ferrite_benches::values;
use ferrite_index::HashSecret;
use std::hash::{BuildHasher, Hasher};

/// The store's hash function in the form that the maps take.
#[derive(Clone)]
pub(crate) struct KeyHasher(HashSecret);

impl KeyHasher {
    /// Under a secret of its own.
    pub(crate) fn random() -> Self {
        Self(HashSecret::random().expect("the kernel has random bytes"))
    }
}

impl BuildHasher for KeyHasher {
    type Hasher = OneKey;

    #[inline]
    fn build_hasher(&self) -> OneKey {
        OneKey { secret: self.0.clone(), hash: 0 }
    }
}

/// Hashes the one piece of bytes that a [`Key`] is.
pub(crate) struct OneKey {
    secret: HashSecret,
    hash: u64,
}

impl Hasher for OneKey {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.hash = self.secret.hash(bytes).raw();
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}

pub(crate) struct Papaya(papaya::HashMap<Key, u64, KeyHasher>);

impl Papaya {
    pub(crate) fn new(keys: u32, hash: &KeyHasher) -> Self {
        Self(papaya::HashMap::with_capacity_and_hasher(keys as usize, hash.clone()))
    }
}

impl Engine for Papaya {
    type Worker<'a> = &'a Self;

    fn worker(&self) -> &Self {
        self
    }
}

impl Worker for &Papaya {
    fn read(&mut self, keys: &[Key], mut seen: impl FnMut(Key, u64)) {
        let map = self.0.pin();
        for key in keys {
            seen(*key, *map.get(key).expect("every key was stored"));
        }
    }

    fn upsert(&mut self, keys: &[Key], value: impl Fn(Key) -> u64) {
        let map = self.0.pin();
        for key in keys {
            map.insert(*key, value(*key));
        }
    }

    fn increment(&mut self, keys: &[Key]) {
        let map = self.0.pin();
        for key in keys {
            let first = || values::incremented(*key, None);
            map.update_or_insert_with(*key, |old| values::incremented(*key, Some(*old)), first);
        }
    }
}

pub(crate) struct Dashmap(dashmap::DashMap<Key, u64, KeyHasher>);

impl Dashmap {
    pub(crate) fn new(keys: u32, hash: &KeyHasher) -> Self {
        Self(dashmap::DashMap::with_capacity_and_hasher(keys as usize, hash.clone()))
    }
}

impl Engine for Dashmap {
    type Worker<'a> = &'a Self;

    fn worker(&self) -> &Self {
        self
    }
}

impl Worker for &Dashmap {
    fn read(&mut self, keys: &[Key], mut seen: impl FnMut(Key, u64)) {
        for key in keys {
            let value = *self.0.get(key).expect("every key was stored");
            seen(*key, value);
        }
    }

    fn upsert(&mut self, keys: &[Key], value: impl Fn(Key) -> u64) {
        for key in keys {
            self.0.insert(*key, value(*key));
        }
    }

    fn increment(&mut self, keys: &[Key]) {
        for key in keys {
            let bump = |value: &mut u64| *value = values::incremented(*key, Some(*value));
            let first = || values::incremented(*key, None);
            self.0.entry(*key).and_modify(bump).or_insert_with(first);
        }
    }
}

pub(crate) struct Scc(scc::HashMap<Key, u64, KeyHasher>);

impl Scc {
    pub(crate) fn new(keys: u32, hash: &KeyHasher) -> Self {
        Self(scc::HashMap::with_capacity_and_hasher(keys as usize, hash.clone()))
    }
}

impl Engine for Scc {
    type Worker<'a> = &'a Self;

    fn worker(&self) -> &Self {
        self
    }
}

impl Worker for &Scc {
    fn read(&mut self, keys: &[Key], mut seen: impl FnMut(Key, u64)) {
        for key in keys {
            let value = self.0.read_sync(key, |_, value| *value).expect("every key was stored");
            seen(*key, value);
        }
    }

    fn upsert(&mut self, keys: &[Key], value: impl Fn(Key) -> u64) {
        for key in keys {
            self.0.upsert_sync(*key, value(*key));
        }
    }

    fn increment(&mut self, keys: &[Key]) {
        for key in keys {
            let bump = |value: &mut u64| *value = values::incremented(*key, Some(*value));
            let first = || values::incremented(*key, None);
            self.0.entry_sync(*key).and_modify(bump).or_insert_with(first);
        }
    }
}
