//! What several families of handlers share: counting look-ups, and changing one key with a reply
//! that depends on what it held.

use super::Call;
use crate::error::{ErrorReply, Outcome, Stop};
use crate::resp::Reply;
use ferrite_hybridlog::{Change, Value};
use std::collections::HashSet;

impl<'c> Call<'c, '_> {
    /// Counts a key that a command looked up in order to read it.
    pub(super) fn count_lookup(&self, found: bool) {
        self.count_lookups(u64::from(found), u64::from(!found));
    }
    /// Counts keys that a command looked up in order to read them.
    pub(super) fn count_lookups(&self, hits: u64, misses: u64) {
        self.counters.keyspace_hits.add(hits);
        self.counters.keyspace_misses.add(misses);
    }
    /// Reads the key that is word 1; `f` writes the reply.
    pub(super) fn read_key(
        &mut self,
        f: impl FnOnce(Option<Value<'_>>, &mut Reply<'_>),
    ) -> Outcome {
        let reply = &mut self.reply;
        let found = self.inside.read(self.op, self.client.db, self.args.at(1), |value| {
            let found = value.is_some();
            f(value, reply);
            found
        })?;
        self.count_lookup(found);
        Ok(())
    }
    /// Reads and changes the key that is word 1, as one step. `f` writes the reply; it may be
    /// called more than once, and only what it did the last time counts.
    pub(super) fn update_key<R>(
        &mut self,
        mut f: impl FnMut(Option<Value<'_>>, &mut Vec<u8>, &mut Reply<'_>) -> Updated<'c, R>,
    ) -> Result<R, Stop> {
        let reply = &mut self.reply;
        let begun = reply.position();
        let result =
            self.inside.update(self.op, self.client.db, self.args.at(1), |old, scratch| {
                reply.truncate(begun);
                match f(old, scratch, reply) {
                    Ok((change, result)) => (change, Ok(result)),
                    Err(error) => (Change::Keep, Err(error)),
                }
            })?;
        Ok(result?)
    }
}

/// What becomes of a key and what the caller wants to know, or why nothing changes.
pub(super) type Updated<'v, R> = Result<(Change<'v>, R), ErrorReply>;

/// For each of some keys whether it stands there for the first time.
pub(super) fn first_places<K: Eq + std::hash::Hash>(keys: &[K]) -> impl Fn(usize) -> bool {
    // Looking back is quadratic, hashing is not, and most commands name a handful of keys.
    const FEW: usize = 16;
    let repeated: HashSet<usize> = if keys.len() <= FEW {
        (0..keys.len()).filter(|i| keys[..*i].contains(&keys[*i])).collect()
    } else {
        let mut seen = HashSet::with_capacity(keys.len());
        (0..keys.len()).filter(|i| !seen.insert(&keys[*i])).collect()
    };
    move |i| !repeated.contains(&i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_first_once() {
        for n in [4usize, 400] {
            let keys: Vec<usize> = (0..n).chain(0..n).collect();
            let first = first_places(&keys);
            assert_eq!((0..2 * n).filter(|i| first(*i)).collect::<Vec<_>>(), keys[..n]);
        }
    }
}
