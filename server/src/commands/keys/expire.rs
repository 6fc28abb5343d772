//! When keys expire: the EXPIRE and TTL families, and PERSIST. A time that has come already
//! deletes the key at once.

use crate::commands::Call;
use crate::commands::args::is;
use crate::commands::expiry::{self, Form};
use crate::error::{ErrorReply, Outcome};
use ferrite_hybridlog::Change;

pub(super) fn expire(call: &mut Call<'_, '_>) -> Outcome {
    set_expiry(call, Form::Seconds, "expire")
}

pub(super) fn p_expire(call: &mut Call<'_, '_>) -> Outcome {
    set_expiry(call, Form::Milliseconds, "pexpire")
}

pub(super) fn expire_at(call: &mut Call<'_, '_>) -> Outcome {
    set_expiry(call, Form::AtSeconds, "expireat")
}

pub(super) fn p_expire_at(call: &mut Call<'_, '_>) -> Outcome {
    set_expiry(call, Form::AtMilliseconds, "pexpireat")
}

fn set_expiry(call: &mut Call<'_, '_>, form: Form, command: &str) -> Outcome {
    let condition = Condition::of(call)?;
    let now = call.inside.now_ms();
    let at = expiry::of_key(call.args.at(2), form, now, command)?;
    // A time before the epoch has passed, like any other that is not after now.
    let change = match u64::try_from(at) {
        Ok(at) if at > now => Change::Expire(Some(at)),
        _ => Change::Delete,
    };
    call.update_key(|old, _, reply| {
        let changes = old.is_some_and(|old| condition.is_met(old.expires_at_ms, at));
        reply.integer(i64::from(changes));
        Ok((if changes { change } else { Change::Keep }, ()))
    })
}

const NX_AND_OTHERS: ErrorReply =
    ErrorReply::new("ERR NX and XX, GT or LT options at the same time are not compatible");
const GT_AND_LT: ErrorReply =
    ErrorReply::new("ERR GT and LT options at the same time are not compatible");

/// Which keys an EXPIRE command changes.
#[derive(Clone, Copy, Default)]
struct Condition {
    /// NX: those without an expiry.
    absent: bool,
    /// XX: those with one.
    present: bool,
    /// GT: those with an earlier one.
    later: bool,
    /// LT: those with a later one, or none.
    earlier: bool,
}

impl Condition {
    fn of(call: &Call<'_, '_>) -> Result<Self, ErrorReply> {
        let mut condition = Self::default();
        for word in call.args.iter_from(3) {
            match word {
                _ if is(word, "NX") => condition.absent = true,
                _ if is(word, "XX") => condition.present = true,
                _ if is(word, "GT") => condition.later = true,
                _ if is(word, "LT") => condition.earlier = true,
                _ => return Err(unsupported(word)),
            }
        }
        let Self { absent, present, later, earlier } = condition;
        if absent && (present || later || earlier) {
            Err(NX_AND_OTHERS)
        } else if later && earlier {
            Err(GT_AND_LT)
        } else {
            Ok(condition)
        }
    }

    /// No expiry counts as one that never comes.
    fn is_met(self, current_ms: Option<u64>, at_ms: i64) -> bool {
        let is_later = |current: u64| u64::try_from(at_ms).is_ok_and(|at| at > current);
        let is_earlier = |current: u64| u64::try_from(at_ms).map_or(true, |at| at < current);
        (!self.absent || current_ms.is_none())
            && (!self.present || current_ms.is_some())
            && (!self.later || current_ms.is_some_and(is_later))
            && (!self.earlier || current_ms.is_none_or(is_earlier))
    }
}

/// The option is shown as far as C prints it, up to a zero byte, and without line ends behind it.
fn unsupported(word: &[u8]) -> ErrorReply {
    let shown = word.split(|byte| *byte == 0).next().unwrap_or_default();
    let end = shown.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |i| i + 1);
    ErrorReply::owned([b"ERR Unsupported option ", &shown[..end]].concat())
}

pub(super) fn ttl(call: &mut Call<'_, '_>) -> Outcome {
    tell(call, seconds_until)
}

pub(super) fn p_ttl(call: &mut Call<'_, '_>) -> Outcome {
    tell(call, |at, now| at.saturating_sub(now) as i64)
}

pub(super) fn expire_time(call: &mut Call<'_, '_>) -> Outcome {
    tell(call, |at, _| seconds_until(at, 0))
}

pub(super) fn p_expire_time(call: &mut Call<'_, '_>) -> Outcome {
    tell(call, |at, _| at as i64)
}

/// Answers -2 without a key, -1 without an expiry, else what `tells` makes of expiry and clock.
fn tell(call: &mut Call<'_, '_>, tells: fn(u64, u64) -> i64) -> Outcome {
    let now = call.inside.now_ms();
    call.read_key(|value, reply| {
        reply.integer(match value {
            None => -2,
            Some(value) => value.expires_at_ms.map_or(-1, |at| tells(at, now)),
        });
    })
}

/// Rounded to the nearest second.
fn seconds_until(at_ms: u64, now_ms: u64) -> i64 {
    (at_ms.saturating_sub(now_ms).saturating_add(500) / 1000) as i64
}

pub(super) fn persist(call: &mut Call<'_, '_>) -> Outcome {
    call.update_key(|old, _, reply| {
        let expires = old.is_some_and(|old| old.expires_at_ms.is_some());
        reply.integer(i64::from(expires));
        Ok((if expires { Change::Expire(None) } else { Change::Keep }, ()))
    })
}
