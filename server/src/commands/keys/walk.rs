//! KEYS and SCAN: walks over a database, a step of the index at a time.
//!
//! A walk works in slices, so that neither a large database nor a large COUNT holds up the other
//! clients: after some steps the handler steps back ([`Stop::Again`]) and goes on later with what
//! it has put into `progress`. The records that a slice fetched from the device are let go with
//! it; the names found stay. Neither command is atomic.

use crate::commands::Call;
use crate::commands::args::{integer, is, parse_u64};
use crate::error::{self, ErrorReply, Outcome, Stop};
use crate::glob;
use ferrite_hybridlog::Value;

/// Steps of the index in a slice, and keys after which it ends early.
const SLICE_STEPS: usize = 64;
const SLICE_KEYS: usize = 512;
/// SCAN's COUNT when none is given.
const COUNT_DEFAULT: u64 = 10;
/// SCAN gives up looking for enough keys after so many steps for each of them, and not before so
/// many in all: a small database in a large index is walked in few calls, whatever its COUNT.
const STEPS_FOR_A_KEY: u64 = 10;
const STEPS_AT_LEAST: u64 = 1024;

/// What a walk keeps between its slices.
struct Walk {
    cursor: u64,
    /// Steps taken.
    steps: u64,
    /// Keys met, those that the filter refused included.
    met: u64,
    /// Bytes of the names found, one behind the other, and where each ends.
    names: Vec<u8>,
    ends: Vec<usize>,
}

/// Which keys a walk is for.
struct Filter<'a> {
    /// `None` for all.
    pattern: Option<&'a [u8]>,
    /// TYPE: whether strings are wanted.
    strings: bool,
    /// Whether keys that have expired are removed: SCAN does, KEYS does not, as in Redis.
    removes_expired: bool,
}

impl Filter<'_> {
    fn passes(&self, value: &Value<'_>) -> bool {
        self.strings && self.matches(value.key)
    }
    fn matches(&self, key: &[u8]) -> bool {
        self.pattern.is_none_or(|pattern| glob::matches(pattern, key))
    }
}

/// A lone star needs no matching, and the empty name would not match it.
fn pattern(word: &[u8]) -> Option<&[u8]> {
    (word != b"*").then_some(word)
}

impl Walk {
    fn from(cursor: u64) -> Self {
        Self { cursor, steps: 0, met: 0, names: Vec::new(), ends: Vec::new() }
    }

    /// Takes one step. What it found is kept only if the step is completed.
    fn step(&mut self, call: &mut Call<'_, '_>, filter: &Filter<'_>) -> Result<(), Stop> {
        let (found_before, bytes_before) = (self.ends.len(), self.names.len());
        let mut met = 0;
        let take = |value: Value<'_>| {
            met += 1;
            if filter.passes(&value) {
                self.names.extend_from_slice(value.key);
                self.ends.push(self.names.len());
            }
        };
        let (op, db) = (&mut *call.op, call.client.db);
        // Which of the two removes what has expired shows in DBSIZE.
        let next = match filter.removes_expired {
            // Redis looks at the pattern first, and at the expiry of what passes only.
            true => {
                let wanted = |key: &[u8]| filter.matches(key);
                call.inside.walk_removing_expired(op, db, self.cursor, wanted, take)
            }
            false => call.inside.walk(op, db, self.cursor, take),
        };
        match next {
            Ok(next) => {
                self.cursor = next;
                self.met += met;
                self.steps += 1;
                Ok(())
            }
            Err(stop) => {
                self.ends.truncate(found_before);
                self.names.truncate(bytes_before);
                Err(stop.into())
            }
        }
    }

    /// Takes steps until `enough`, and steps back in between.
    fn run(
        mut self: Box<Self>,
        call: &mut Call<'_, '_>,
        filter: &Filter<'_>,
        enough: impl Fn(&Walk) -> bool,
    ) -> Result<Box<Self>, Stop> {
        let met_before = self.met;
        for _ in 0..SLICE_STEPS {
            if let Err(stop) = self.step(call, filter) {
                *call.progress = Some(self);
                return Err(stop);
            }
            if enough(&self) {
                return Ok(self);
            }
            if self.met - met_before >= SLICE_KEYS as u64 {
                break;
            }
        }
        *call.progress = Some(self);
        call.op.clear();
        Err(Stop::Again)
    }

    fn write_names(&self, call: &mut Call<'_, '_>) {
        call.reply.array(self.ends.len());
        let mut begin = 0;
        for end in &self.ends {
            call.reply.bulk(&self.names[begin..*end]);
            begin = *end;
        }
    }
}

/// The walk that an earlier slice left, or one from `cursor`.
fn resume(call: &mut Call<'_, '_>, cursor: u64) -> Box<Walk> {
    let left = call.progress.take().and_then(|left| left.downcast().ok());
    left.unwrap_or_else(|| Box::new(Walk::from(cursor)))
}

pub(super) fn keys(call: &mut Call<'_, '_>) -> Outcome {
    let filter =
        Filter { pattern: pattern(call.args.at(1)), strings: true, removes_expired: false };
    let walk = resume(call, 0).run(call, &filter, |walk| walk.cursor == 0)?;
    walk.write_names(call);
    Ok(())
}

pub(super) fn scan(call: &mut Call<'_, '_>) -> Outcome {
    let cursor = parse_u64(call.args.at(1)).ok_or(error::INVALID_CURSOR)?;
    let (filter, count) = scan_options(call)?;
    let steps_max = count.saturating_mul(STEPS_FOR_A_KEY).max(STEPS_AT_LEAST);
    let walk = resume(call, cursor).run(call, &filter, |walk| {
        walk.cursor == 0 || walk.met >= count || walk.steps >= steps_max
    })?;
    call.reply.array(2);
    call.reply.bulk(walk.cursor.to_string().as_bytes());
    walk.write_names(call);
    Ok(())
}

fn scan_options<'a>(call: &Call<'a, '_>) -> Result<(Filter<'a>, u64), ErrorReply> {
    let mut filter = Filter { pattern: None, strings: true, removes_expired: true };
    let mut count = COUNT_DEFAULT;
    let mut words = call.args.cursor(2);
    while let Some(word) = words.next() {
        let argument = words.word()?;
        if is(word, "COUNT") {
            let n = integer(argument)?;
            count = u64::try_from(n).ok().filter(|n| *n > 0).ok_or(error::SYNTAX)?;
        } else if is(word, "MATCH") {
            filter.pattern = pattern(argument);
        } else if is(word, "TYPE") {
            filter.strings = is(argument, "string");
        } else {
            return Err(error::SYNTAX);
        }
    }
    Ok((filter, count))
}
