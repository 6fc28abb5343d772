//! Numbers in strings: INCR and its kin. A counter keeps its expiry.

use crate::commands::Call;
use crate::commands::args::{integer, parse_i64};
use crate::encoding;
use crate::error::{self, ErrorReply, Outcome};
use crate::numbers::Extended;
use ferrite_hybridlog::{Change, Value};

/// DECRBY of the one number without an opposite.
const DECREMENT_OVERFLOW: ErrorReply = ErrorReply::new("ERR decrement would overflow");

pub(super) fn incr(call: &mut Call<'_, '_>) -> Outcome {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_, '_>) -> Outcome {
    add(call, -1)
}

pub(super) fn incr_by(call: &mut Call<'_, '_>) -> Outcome {
    add(call, integer(call.args.at(2))?)
}

pub(super) fn decr_by(call: &mut Call<'_, '_>) -> Outcome {
    let by = integer(call.args.at(2))?.checked_neg().ok_or(DECREMENT_OVERFLOW)?;
    add(call, by)
}

fn add(call: &mut Call<'_, '_>, by: i64) -> Outcome {
    call.update_key(|old, scratch, reply| {
        let value = match old {
            Some(old) => parse_i64(old.bytes).ok_or(error::NOT_AN_INTEGER)?,
            None => 0,
        };
        let sum = value.checked_add(by).ok_or(error::OVERFLOW)?;
        scratch.extend_from_slice(itoa::Buffer::new().format(sum).as_bytes());
        reply.integer(sum);
        Ok((put_scratch(old, encoding::NATURAL), ()))
    })
}

pub(super) fn incr_by_float(call: &mut Call<'_, '_>) -> Outcome {
    let by = call.args.at(2);
    call.update_key(|old, scratch, reply| {
        let parsed = |text| Extended::parse(text).ok_or(error::NOT_A_FLOAT);
        let value = old.map_or(Ok(Extended::ZERO), |old| parsed(old.bytes))?;
        let sum = value.checked_add(parsed(by)?).ok_or(error::NAN_OR_INFINITY)?;
        sum.write_human(scratch);
        reply.bulk(scratch);
        Ok((put_scratch(old, encoding::TEXT), ()))
    })
}

/// The change to what is in the scratch buffer, that leaves the expiry alone.
pub(super) fn put_scratch(old: Option<Value<'_>>, encoding: u8) -> Change<'static> {
    Change::PutScratch { expires_at_ms: old.and_then(|v| v.expires_at_ms), encoding }
}
