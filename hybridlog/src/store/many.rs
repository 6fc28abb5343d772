//! Update of several keys as one step that nobody sees half of.
//!
//! All latches are held from the first read to the last publish, with the buckets' multi bit set
//! while more than one key changes: readers, who take no latch, wait for it. Room for everything
//! is in hand before the first effect. A command that needs more room than a quarter of the ring,
//! or that found some latch taken eight times, runs alone, at a safepoint ([`super::alone`]).

use super::alone::PATIENCE;
use super::find::{Located, Lookup, Pinned};
use super::operation::{Operation, Stop};
use super::session::Inside;
use super::tables::{Database, Slot, Tables};
use super::value::{Change, Value};
use super::write::{Blocked, Effect, Target};
use crate::OperationError;
use crate::record::Loaded;
use crate::redo::{Group, Redo};
use crate::sync::{Arc, atomic::Ordering, mutant};
use ferrite_index::{Address, KeyHash, Latch};
use std::cell::Cell;
use std::collections::HashMap;

/// The keys of [`Inside::update_many`]: what they hold, and what becomes of them.
pub struct Many<'a, 'v> {
    values: &'a [Option<Value<'a>>],
    /// For each place the first place that names the same key.
    same: &'a [usize],
    looked_at: &'a [Cell<bool>],
    changes: Vec<Option<Planned<'v>>>,
}

/// What becomes of a key, independent of any record.
pub(crate) enum Planned<'v> {
    Given(Change<'v>),
    Owned { value: Vec<u8>, expires_at_ms: Option<u64>, encoding: u8 },
}

impl Planned<'_> {
    /// The same for a key that is there and has not expired; `None` leaves it as it is.
    pub fn effect(&self) -> Option<Effect<'_>> {
        Some(match self {
            Self::Given(Change::Keep | Change::PutScratch { .. }) => return None,
            Self::Given(Change::Delete) => Effect::Delete,
            Self::Given(Change::Expire(at)) => Effect::Expire(*at),
            Self::Given(Change::Put { value, expires_at_ms, encoding }) => {
                Effect::Put { value, expires_at_ms: *expires_at_ms, encoding: *encoding }
            }
            Self::Owned { value, expires_at_ms, encoding } => {
                Effect::Put { value, expires_at_ms: *expires_at_ms, encoding: *encoding }
            }
        })
    }
}

impl<'v> Many<'_, 'v> {
    /// What key `i` held before the operation. A key that has expired is removed once it was looked at,
    /// and no sooner: DBSIZE shows what a command did not come to.
    pub fn get(&self, i: usize) -> Option<Value<'_>> {
        self.looked_at[self.same[i]].set(true);
        self.values[self.same[i]]
    }
    /// Sets what becomes of key `i`. A later change of the same key replaces an earlier one.
    /// `Change::PutScratch` has no meaning here; use [`Many::put_owned`].
    pub fn set(&mut self, i: usize, change: Change<'v>) {
        assert!(!matches!(change, Change::PutScratch { .. }), "use put_owned");
        self.changes[self.same[i]] = Some(Planned::Given(change));
    }
    /// Stores bytes that the closure made.
    pub fn put_owned(
        &mut self,
        i: usize,
        value: Vec<u8>,
        expires_at_ms: Option<u64>,
        encoding: u8,
    ) {
        self.changes[self.same[i]] = Some(Planned::Owned { value, expires_at_ms, encoding });
    }
    /// Stores under key `to` what key `from` held, expiry and encoding included.
    pub fn copy(&mut self, from: usize, to: usize) {
        if let Some(v) = self.get(from) {
            self.put_owned(to, v.bytes.to_vec(), v.expires_at_ms, v.encoding);
        }
    }
}

/// A key of the command, resolved to its slot.
pub(crate) struct Place<'a> {
    pub slot: &'a Arc<Slot>,
    pub hash: KeyHash,
    pub key: &'a [u8],
}

impl Inside<'_> {
    /// Reads and writes several keys, of any databases, as one step that nobody sees half of.
    /// `f` may be called more than once. A key may stand more than once: all places name the same
    /// value.
    pub fn update_many<'v, R>(
        &mut self,
        op: &mut Operation,
        keys: &[(Database, &[u8])],
        mut f: impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<R, Stop> {
        op.begin(&mut self.credit);
        let tables = Arc::clone(self.tables);
        let places = self.places(&tables, keys);
        match self.try_update_many(op, &places, &mut f) {
            Ok(r) => Ok(r),
            Err(blocked) if self.must_run_alone(op, &blocked) => match self.may_write(op) {
                true => self.update_many_alone(op, keys, &mut f),
                false => Err(Stop::Pending),
            },
            Err(blocked) => self.wait(op, blocked),
        }
    }

    /// Whether a command that is blocked by this runs alone.
    fn must_run_alone(&self, op: &Operation, blocked: &Blocked) -> bool {
        match blocked {
            Blocked::Room(words) => self.is_large(*words),
            Blocked::Redo(words) => *words > self.redo_reservation_limit(),
            Blocked::Busy => op.tries() >= PATIENCE && !mutant!("writer_never_alone"),
            Blocked::Fetch(_) | Blocked::Failed(_) => false,
        }
    }

    /// Whether the ring may never have as much room at once; who is alone need not have it at once.
    fn is_large(&self, words: u64) -> bool {
        words > self.inner.log.geometry.ring_words() / 4 || self.alone_at_ms.is_some()
    }

    fn redo_reservation_limit(&self) -> u64 {
        self.inner.redo.as_ref().map_or(u64::MAX, Redo::reservation_limit)
    }

    pub(crate) fn places<'a>(
        &self,
        tables: &'a Tables,
        keys: &'a [(Database, &'a [u8])],
    ) -> Vec<Place<'a>> {
        let secret = &self.view.inner.secret;
        keys.iter()
            .map(|(db, key)| Place { slot: tables.slot(*db), hash: secret.hash(key), key })
            .collect()
    }

    fn try_update_many<'v, R>(
        &mut self,
        op: &Operation,
        places: &[Place<'_>],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<R, Blocked> {
        let pinned = self.view.pinned(&self.pin);
        let Plan { answer, mut latches, lookups, same, changes } = pinned.plan(op, places, f)?;
        let admitted = self.alone_at_ms.is_some();
        let effects = pinned.effects(places, &lookups, &changes, &same, admitted)?;
        if effects.is_empty() {
            let last = places.iter().map(|place| pinned.last_entry_of(place.hash)).max();
            self.depends_on = self.depends_on.max(last.unwrap_or(0));
            return Ok(answer);
        }
        let mut room = 0;
        for &(i, effect) in &effects {
            let old = lookups[i].load(&mut self.scratch.value).map_or(0, |l| l.bytes.len());
            room += pinned.room_for(places[i].key, effect, old);
        }
        pinned.top_up(room, &mut self.credit);
        if self.credit < room {
            return Err(Blocked::Room(room));
        }
        for &(i, _) in &effects {
            let reserved = latches.of(i).reserve(places[i].hash, false);
            reserved.map_err(|_| pinned.inner.index_full())?;
        }
        let mut group = pinned.redo_group(places, &effects)?;
        pinned.count_expired(&lookups, &effects);
        if effects.len() > 1 {
            effects.iter().for_each(|&(i, _)| latches.of(i).mark_multi());
        }
        for &(i, effect) in &effects {
            let place = &places[i];
            let (slot, hash, key, lookup) = (&**place.slot, place.hash, place.key, lookups[i]);
            let mut target = Target { slot, latch: latches.of(i), hash, key, lookup };
            let scratch = &mut self.scratch.value;
            let entry = group.as_mut().map(|group| group.next(effect.redo(key)));
            let (credit, depends_on) = (&mut self.credit, &mut self.depends_on);
            let done = pinned.apply_logged(&mut target, effect, entry, credit, depends_on, scratch);
            assert!(done.is_ok(), "room and entries were taken before the first effect");
        }
        if let Some(group) = group {
            self.depends_on = self.depends_on.max(group.finish(pinned.now_ms));
        }
        drop(latches);
        for &(i, _) in &effects {
            places[i].slot.index.grow(pinned.pin);
        }
        Ok(answer)
    }
}

/// What a command of several keys found, under the latches that it holds, and means to do.
pub(crate) struct Plan<'p, 'v, R> {
    pub answer: R,
    pub latches: Latches<'p>,
    pub lookups: Vec<Lookup<'p>>,
    /// For each place the first one with the same key.
    pub same: Vec<usize>,
    /// What becomes of each key, at its first place; `None` for one that the command did not come to.
    pub changes: Vec<Option<Planned<'v>>>,
}

impl<'p> Pinned<'p> {
    /// Latches and finds all keys, shows the closure what is there and takes its plan.
    pub fn plan<'v, R>(
        &self,
        op: &'p Operation,
        places: &[Place<'p>],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<Plan<'p, 'v, R>, Blocked> {
        let mut latches = Latches::take(self, places)?;
        let lookups = latches.find_all(self, op, places)?;
        let same = first_places(places);
        let mut copies = vec![Vec::new(); places.len()];
        let loaded: Vec<Option<Loaded<'_>>> =
            lookups.iter().zip(&mut copies).map(|(lookup, copy)| lookup.load(copy)).collect();
        let values: Vec<Option<Value<'_>>> = loaded
            .iter()
            .zip(&lookups)
            .map(|(loaded, lookup)| match (loaded, lookup.at) {
                (Some(loaded), Some(located)) if !self.is_due(loaded.expires_at_ms) => {
                    Some(Value::new(located.address, located.record, loaded))
                }
                _ => None,
            })
            .collect();
        let looked_at = vec![Cell::new(false); places.len()];
        let changes = (0..places.len()).map(|_| None).collect();
        let mut many = Many { values: &values, same: &same, looked_at: &looked_at, changes };
        let answer = f(&mut many);
        let mut changes = many.changes;
        for (change, looked_at) in changes.iter_mut().zip(&looked_at) {
            if looked_at.get() && change.is_none() {
                *change = Some(Planned::Given(Change::Keep));
            }
        }
        Ok(Plan { answer, latches, lookups, same, changes })
    }

    /// What a plan means for what is there, by place: only what changes something, and only if it
    /// may be written ([`crate::log::health::Health::refusal_of`]). A key that has expired is deleted
    /// if the command came to it. A key that stands more than once is changed at its first place
    /// (`same`), where its plan lies: its other places must not expire what the first one has just
    /// written.
    pub fn effects<'a>(
        &self,
        places: &[Place<'_>],
        lookups: &[Lookup<'_>],
        changes: &'a [Option<Planned<'_>>],
        same: &[usize],
        admitted: bool,
    ) -> Result<Vec<(usize, Effect<'a>)>, Blocked> {
        let mut effects = Vec::new();
        for i in (0..places.len()).filter(|i| same[*i] == *i) {
            let present = lookups[i].present();
            let due = present.is_some_and(|l| self.is_due(l.record.expires_at_ms()));
            let Some(planned) = &changes[i] else { continue };
            let effect = match planned.effect() {
                Some(put @ Effect::Put { value, .. }) => {
                    self.inner.check_size(places[i].key, value.len())?;
                    Some(put)
                }
                Some(Effect::Delete) => present.map(|_| Effect::Delete),
                Some(expire @ Effect::Expire(_)) if !due => present.map(|_| expire),
                Some(Effect::Expire(_)) | None => due.then_some(Effect::Delete),
            };
            effects.extend(effect.map(|effect| (i, effect)));
        }
        match self.inner.log.health.refusal_of(admitted) {
            Some(reason) if !effects.is_empty() => {
                Err(Blocked::Failed(OperationError::NotWritable(reason)))
            }
            _ => Ok(effects),
        }
    }

    /// Reserves the redo log's entries of all effects, which stand together.
    fn redo_group(
        &self,
        places: &[Place<'_>],
        effects: &[(usize, Effect<'_>)],
    ) -> Result<Option<Group<'_>>, Blocked> {
        let Some(redo) = self.redo() else { return Ok(None) };
        let of = effects.iter().map(|&(i, effect)| effect.redo(places[i].key));
        let group = Group::reserve(redo, of, self.now_ms).map_err(Blocked::Redo)?;
        effects.iter().for_each(|&(i, _)| group.note(places[i].hash));
        Ok(Some(group))
    }

    /// Counts the keys that had expired, before the effects take place.
    pub fn count_expired(&self, lookups: &[Lookup<'_>], effects: &[(usize, Effect<'_>)]) {
        let is_due = |l: Located<'_>| self.is_due(l.record.expires_at_ms());
        let due = effects.iter().filter(|(i, _)| lookups[*i].present().is_some_and(is_due)).count();
        self.inner.log.counters.expired.fetch_add(due as u64, Ordering::Relaxed);
    }
}

/// The exclusive latches of several keys, one a bucket.
pub(crate) struct Latches<'p> {
    latches: Vec<Latch<'p>>,
    of_place: Vec<usize>,
}

impl<'p> Latches<'p> {
    fn take<'a: 'p>(pinned: &Pinned<'p>, places: &[Place<'a>]) -> Result<Self, Blocked> {
        let mut latches: Vec<Latch<'p>> = Vec::with_capacity(places.len());
        let mut of_place = Vec::with_capacity(places.len());
        // A bucket whose latch is held does not split, so its number stays true.
        let mut held = HashMap::with_capacity(places.len());
        for place in places {
            let index = &place.slot.index;
            let bucket = (std::ptr::from_ref(index), index.bucket_number(place.hash));
            if let Some(at) = held.get(&bucket) {
                of_place.push(*at);
                continue;
            }
            let latch = index.latch(pinned.pin, place.hash).map_err(|_| Blocked::Busy)?;
            held.insert((bucket.0, index.bucket_number(place.hash)), latches.len());
            of_place.push(latches.len());
            latches.push(latch);
        }
        Ok(Self { latches, of_place })
    }

    fn of(&mut self, place: usize) -> &mut Latch<'p> {
        &mut self.latches[self.of_place[place]]
    }

    fn find_all<'a>(
        &mut self,
        pinned: &Pinned<'a>,
        op: &'a Operation,
        places: &[Place<'_>],
    ) -> Result<Vec<Lookup<'a>>, Blocked> {
        let mut lookups = Vec::with_capacity(places.len());
        let mut missing: Vec<Address> = Vec::new();
        for (i, place) in places.iter().enumerate() {
            let first = self.of(i).address(place.hash, false);
            match pinned.find(op, first, place.key) {
                Ok(lookup) => lookups.push(lookup),
                Err(address) => missing.push(address),
            }
        }
        if missing.is_empty() { Ok(lookups) } else { Err(Blocked::Fetch(missing)) }
    }
}

/// For each place the first one with the same key.
fn first_places(places: &[Place<'_>]) -> Vec<usize> {
    let mut first = HashMap::with_capacity(places.len());
    places
        .iter()
        .enumerate()
        .map(|(i, p)| *first.entry((p.slot.number, p.key)).or_insert(i))
        .collect()
}
