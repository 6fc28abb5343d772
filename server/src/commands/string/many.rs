//! Strings of several keys: MGET, MSET, MSETNX, LCS.

use crate::commands::Call;
use crate::commands::args::{Slices, integer, is};
use crate::error::{self, ErrorReply, Outcome};
use crate::lcs;
use crate::resp::Reply;
use ferrite_hybridlog::Database;
use smallvec::SmallVec;

pub(super) fn m_get(call: &mut Call<'_, '_>) -> Outcome {
    let keys = call.args.slices_from(1);
    let reply = &mut call.reply;
    let begun = reply.position();
    let mut hits = 0;
    call.inside.read_many(call.op, call.client.db, &keys, |i, value| {
        if i == 0 {
            reply.truncate(begun);
            reply.array(keys.len());
            hits = 0;
        }
        hits += u64::from(value.is_some());
        super::bulk_or_null(value, reply);
    })?;
    call.count_lookups(hits, keys.len() as u64 - hits);
    Ok(())
}

pub(super) fn m_set(call: &mut Call<'_, '_>) -> Outcome {
    let pairs = Pairs::of(call, "mset")?;
    call.inside.update_many(call.op, &pairs.keys, |many| {
        for (i, value) in pairs.values.iter().enumerate() {
            many.set(i, super::plain(value));
        }
    })?;
    call.reply.ok();
    Ok(())
}

pub(super) fn m_set_nx(call: &mut Call<'_, '_>) -> Outcome {
    let pairs = Pairs::of(call, "msetnx")?;
    let set = call.inside.update_many(call.op, &pairs.keys, |many| {
        if (0..pairs.keys.len()).any(|i| many.get(i).is_some()) {
            return false;
        }
        for (i, value) in pairs.values.iter().enumerate() {
            many.set(i, super::plain(value));
        }
        true
    })?;
    call.reply.integer(i64::from(set));
    Ok(())
}

/// Keys and their values, alternating in the arguments.
struct Pairs<'a> {
    keys: SmallVec<[(Database, &'a [u8]); 16]>,
    values: Slices<'a>,
}

impl<'a> Pairs<'a> {
    fn of(call: &Call<'a, '_>, command: &str) -> Result<Self, ErrorReply> {
        if call.args.len().is_multiple_of(2) {
            return Err(error::wrong_arity(command));
        }
        let keys = call.args.iter_from(1).step_by(2).map(|key| (call.client.db, key)).collect();
        let values = call.args.iter_from(2).step_by(2).collect();
        Ok(Self { keys, values })
    }
}

const BOTH_LENGTH_AND_INDEXES: ErrorReply =
    ErrorReply::new("ERR If you want both the length and indexes, please just use IDX.");
const LCS_MEMORY: ErrorReply =
    ErrorReply::new("ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len");

/// The options of LCS.
#[derive(Default)]
struct LcsOptions {
    length: bool,
    indexes: bool,
    shortest: i64,
    with_length: bool,
}

impl LcsOptions {
    fn of(call: &Call<'_, '_>) -> Result<Self, ErrorReply> {
        let mut options = Self::default();
        let mut words = call.args.cursor(3);
        while let Some(word) = words.next() {
            match word {
                _ if is(word, "IDX") => options.indexes = true,
                _ if is(word, "LEN") => options.length = true,
                _ if is(word, "WITHMATCHLEN") => options.with_length = true,
                _ if is(word, "MINMATCHLEN") => options.shortest = integer(words.word()?)?,
                _ => return Err(error::SYNTAX),
            }
        }
        if options.length && options.indexes {
            return Err(BOTH_LENGTH_AND_INDEXES);
        }
        Ok(options)
    }
}

pub(super) fn lcs(call: &mut Call<'_, '_>) -> Outcome {
    let options = LcsOptions::of(call)?;
    let keys = [call.args.at(1), call.args.at(2)];
    let mut values = [Vec::new(), Vec::new()];
    let mut found = [false; 2];
    call.inside.read_many(call.op, call.client.db, &keys, |i, value| {
        found[i] = value.is_some();
        values[i].clear();
        values[i].extend_from_slice(value.map_or(&[], |v| v.bytes));
    })?;
    for found in found {
        call.count_lookup(found);
    }
    let [a, b] = &values;
    if lcs::table_bytes(a, b) > call.context.limits.bulk_max.get() {
        return Err(LCS_MEMORY.into());
    }
    if options.length {
        call.reply.count(lcs::length(a, b));
        return Ok(());
    }
    let common = lcs::common(a, b);
    if options.indexes {
        write_indexes(&common, &options, &mut call.reply);
    } else {
        call.reply.bulk(&common.bytes);
    }
    Ok(())
}

fn write_indexes(common: &lcs::Common, options: &LcsOptions, reply: &mut Reply<'_>) {
    let long_enough = |m: &&lcs::Match| m.length() as i64 >= options.shortest;
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(common.matches.iter().filter(long_enough).count());
    for found in common.matches.iter().filter(long_enough) {
        reply.array(if options.with_length { 3 } else { 2 });
        for (first, last) in [found.a, found.b] {
            reply.array(2);
            reply.count(first);
            reply.count(last);
        }
        if options.with_length {
            reply.count(found.length());
        }
    }
    reply.bulk(b"len");
    reply.count(common.bytes.len());
}
