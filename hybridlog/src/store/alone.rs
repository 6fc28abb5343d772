//! A command that needs more room than the ring can promise at once: it runs alone.
//!
//! The gate is closed, so that nobody else is inside and nobody sees the command half done. It may
//! then wait, unpinned, for frames and for reads of records it has itself pushed out of memory:
//! their supply depends on the page thread and the device only, on no latch and no gate.

use super::find::{Lookup, View};
use super::many::{Many, Place, Planned, decide, effects, first_places};
use super::operation::{Operation, ReadyQueue, Stop};
use super::session::{Inside, take_tables};
use super::tables::Database;
use super::value::Change;
use super::write::{Blocked, Effect, Target};
use crate::OperationError;
use crate::log::Log;
use ferrite_index::Pin;
use std::sync::Arc;

/// What becomes of one key, independent of any record.
type Decided<'v> = (usize, Planned<'v>);

impl<'s> Inside<'s> {
    pub(crate) fn update_many_alone<'v, R>(
        &mut self,
        op: &mut Operation,
        keys: &[(Database, &[u8])],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<R, Stop> {
        self.return_credit();
        self.pin = None;
        let closed = self.inner.gate.close(&self.inner.log.epoch);
        self.inner.log.room.revoke(&self.inner.log.tail);
        let (_, tables) = self.inner.tables();
        let secret = &self.inner.secret;
        let places: Vec<Place<'_>> = keys
            .iter()
            .map(|(db, key)| Place { slot: tables.slot(*db), hash: secret.hash(key), key })
            .collect();
        let result = self.run_alone(op, &places, f);
        self.return_credit();
        self.pin = None;
        drop(closed);
        self.go_inside_again();
        result.map_err(|blocked| match blocked {
            Blocked::Failed(e) => Stop::Failed(e),
            _ => unreachable!("a command that runs alone waits where it stands"),
        })
    }

    /// Another safepoint may have come between: tables and boundaries are taken anew.
    fn go_inside_again(&mut self) {
        let pin = self.participant.enter(&self.inner.gate);
        take_tables(self.inner, self.generation, self.tables);
        self.view = View::load(self.inner, &pin);
        self.pin = Some(pin);
    }

    fn pin_alone(&mut self) {
        if self.pin.is_some() {
            return;
        }
        let pin: Pin<'s> = self.participant.pin();
        self.view = View::load(self.inner, &pin);
        self.pin = Some(pin);
    }

    fn run_alone<'v, R>(
        &mut self,
        op: &mut Operation,
        places: &[Place<'_>],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<R, Blocked> {
        let (r, decided) = loop {
            self.pin_alone();
            match self.decide_alone(op, places, f) {
                Err(blocked) => self.unblock(op, blocked)?,
                Ok(decided) => break decided,
            }
        };
        for (i, planned) in &decided {
            loop {
                self.pin_alone();
                match self.apply_alone(op, &places[*i], planned) {
                    Ok(()) => break,
                    Err(blocked) => {
                        if let Err(Blocked::Failed(e)) = self.unblock(op, blocked) {
                            // Some of its effects are there: only recovery can undo them.
                            tracing::error!("a command failed half way: {e}; restart to recover");
                            std::process::abort();
                        }
                    }
                }
            }
        }
        Ok(r)
    }

    fn decide_alone<'v, R>(
        &self,
        op: &Operation,
        places: &[Place<'_>],
        f: &mut impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<(R, Vec<Decided<'v>>), Blocked> {
        let pinned = self.view.pinned(&self.pin);
        let mut lookups = Vec::with_capacity(places.len());
        let mut missing = Vec::new();
        for place in places {
            let latch =
                place.slot.index.latch(pinned.pin, place.hash).map_err(|_| Blocked::Busy)?;
            match pinned.find(op, latch.address(place.hash, false), place.key) {
                Ok(lookup) => lookups.push(lookup),
                Err(address) => missing.push(address),
            }
        }
        if !missing.is_empty() {
            return Err(Blocked::Fetch(missing));
        }
        let same = first_places(places);
        let (r, mut changes) = decide(&pinned, places, &lookups, &same, f);
        let wanted: Vec<bool> =
            effects(&pinned, &lookups, &changes, &same).iter().map(Option::is_some).collect();
        let new =
            lookups.iter().zip(&wanted).filter(|(l, wanted)| l.at.is_none() && **wanted).count();
        for place in places {
            // Each new key may need an overflow bucket of its own.
            if !place.slot.index.has_room_for(new as u64) {
                return Err(self.inner.index_full());
            }
        }
        if wanted.iter().any(|w| *w)
            && let Some(reason) = self.inner.log.health.refusal()
        {
            return Err(Blocked::Failed(OperationError::NotWritable(reason)));
        }
        let expired = |lookup: &Lookup<'_>| {
            lookup.present().is_some_and(|l| pinned.is_due(l.record.expires_at_ms()))
        };
        let mut decided = Vec::new();
        for (i, wanted) in wanted.into_iter().enumerate() {
            if !wanted {
                continue;
            }
            let planned = match changes[i].take() {
                // Wanted all the same: the key has expired.
                None | Some(Planned::Given(Change::Keep | Change::PutScratch { .. })) => {
                    Planned::Given(Change::Delete)
                }
                Some(Planned::Given(Change::Expire(_))) if expired(&lookups[i]) => {
                    Planned::Given(Change::Delete)
                }
                Some(planned) => planned,
            };
            let length = match &planned {
                Planned::Given(Change::Put { value, .. }) => value.len(),
                Planned::Owned { value, .. } => value.len(),
                Planned::Given(_) => 0,
            };
            self.inner.check_size(places[i].key, length)?;
            decided.push((i, planned));
        }
        Ok((r, decided))
    }

    fn apply_alone(
        &mut self,
        op: &Operation,
        place: &Place<'_>,
        planned: &Planned<'_>,
    ) -> Result<(), Blocked> {
        let pinned = self.view.pinned(&self.pin);
        let mut latch =
            place.slot.index.latch(pinned.pin, place.hash).map_err(|_| Blocked::Busy)?;
        let lookup = pinned
            .find(op, latch.address(place.hash, false), place.key)
            .map_err(|missing| Blocked::Fetch(vec![missing]))?;
        let effect = match planned {
            Planned::Given(Change::Put { value, expires_at_ms, encoding }) => {
                Effect::Put { value, expires_at_ms: *expires_at_ms, encoding: *encoding }
            }
            Planned::Owned { value, expires_at_ms, encoding } => {
                Effect::Put { value, expires_at_ms: *expires_at_ms, encoding: *encoding }
            }
            Planned::Given(Change::Expire(at)) => Effect::Expire(*at),
            Planned::Given(_) => Effect::Delete,
        };
        let (hash, key) = (place.hash, place.key);
        let mut target = Target { slot: place.slot, latch: &mut latch, hash, key, lookup };
        target.reserve(&pinned)?;
        pinned.apply(&mut target, effect, &mut self.credit, &mut self.scratch.value)?;
        drop(latch);
        place.slot.index.grow(pinned.pin);
        Ok(())
    }

    /// Waits, unpinned, for what blocks the command.
    fn unblock(&mut self, op: &mut Operation, blocked: Blocked) -> Result<(), Blocked> {
        self.pin = None;
        match blocked {
            Blocked::Busy => std::thread::yield_now(),
            Blocked::Fetch(missing) => {
                for address in missing {
                    let fetched = self
                        .inner
                        .log
                        .raw
                        .fetch_blocking(address)
                        .map_err(|e| Blocked::Failed(OperationError::Unreadable(e)))?;
                    op.keep(fetched);
                }
            }
            Blocked::Room(words) => {
                if let Some(reason) = self.inner.log.health.breakage() {
                    return Err(Blocked::Failed(OperationError::NotWritable(reason)));
                }
                self.return_credit();
                self.credit = wait_for_room(&self.inner.log, words);
            }
            Blocked::Failed(_) => return Err(blocked),
        }
        Ok(())
    }
}

/// Waits for room on the calling thread, which must not be pinned. May return less than asked
/// for when the ring can give no more at once (see [`crate::log::room::RoomQueue::serve`]), or
/// nothing once the log is broken. It is for checkpoints and commands that run alone, which may
/// use the disk's reserve: a full disk does not dismiss them.
pub(crate) fn wait_for_room(log: &Arc<Log>, words: u64) -> u64 {
    let thread = std::thread::current();
    let ready = Arc::new(ReadyQueue::new(Box::new(move || thread.unpark())));
    let grant = log.room.join_privileged(words, &ready);
    log.wake();
    let mut tokens = Vec::new();
    while tokens.is_empty() {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        ready.drain(&mut tokens);
    }
    grant.take()
}
