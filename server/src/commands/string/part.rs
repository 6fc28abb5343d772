//! Parts of strings: APPEND, SETRANGE, GETRANGE.

use super::counter::put_scratch;
use crate::commands::Call;
use crate::commands::args::integer;
use crate::encoding;
use crate::error::{self, ErrorReply, Outcome};
use ferrite_hybridlog::Change;

/// Refuses a value that would be too long before any of it is made. The sum cannot overflow
/// unnoticed: one part is in memory, the other at most `i64::MAX`.
fn check_length(limit: u64, before: u64, added: usize) -> Result<(), ErrorReply> {
    match before.checked_add(added as u64) {
        Some(total) if total <= limit => Ok(()),
        _ => Err(error::STRING_TOO_LONG),
    }
}

/// The longest value that the key of this command may have.
fn length_limit(call: &Call<'_, '_>) -> u64 {
    let fits = call.context.store.value_limit(call.args.at(1).len()) as u64;
    fits.min(call.context.limits.bulk_max.get())
}

pub(super) fn append(call: &mut Call<'_, '_>) -> Outcome {
    let limit = length_limit(call);
    let added = call.args.at(2);
    call.update_key(|old, scratch, reply| {
        let Some(old) = old else {
            reply.count(added.len());
            return Ok((super::plain(added), ()));
        };
        check_length(limit, old.bytes.len() as u64, added.len())?;
        scratch.extend_from_slice(old.bytes);
        scratch.extend_from_slice(added);
        reply.count(scratch.len());
        Ok((put_scratch(Some(old), encoding::RAW), ()))
    })
}

pub(super) fn set_range(call: &mut Call<'_, '_>) -> Outcome {
    let offset = integer(call.args.at(2))?;
    let offset = u64::try_from(offset).map_err(|_| error::OFFSET_OUT_OF_RANGE)?;
    let part = call.args.at(3);
    let limit = length_limit(call);
    call.update_key(|old, scratch, reply| {
        let length = old.map_or(0, |old| old.bytes.len());
        if part.is_empty() {
            reply.count(length);
            return Ok((Change::Keep, ()));
        }
        check_length(limit, offset, part.len())?;
        let begin = offset as usize;
        let end = begin + part.len();
        scratch.extend_from_slice(old.map_or(&[], |old| old.bytes));
        scratch.resize(length.max(end), 0);
        scratch[begin..end].copy_from_slice(part);
        reply.count(scratch.len());
        Ok((put_scratch(old, encoding::RAW), ()))
    })
}

pub(super) fn get_range(call: &mut Call<'_, '_>) -> Outcome {
    let (start, end) = (integer(call.args.at(2))?, integer(call.args.at(3))?);
    call.read_key(|value, reply| reply.bulk(range(value.map_or(&[], |v| v.bytes), start, end)))
}

/// The bytes from `start` to `end`, both inclusive and counted from the back when negative.
fn range(bytes: &[u8], start: i64, end: i64) -> &[u8] {
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let length = bytes.len() as i64;
    let from_front = |i: i64| if i < 0 { (length + i).max(0) } else { i };
    // The end stops at the first byte, not before it: GETRANGE of 0 and -100 is one byte.
    let (start, end) = (from_front(start), from_front(end).min(length - 1));
    if start > end { &[] } else { &bytes[start as usize..=end as usize] }
}
