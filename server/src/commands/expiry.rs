//! Expiry times as commands give them, turned into absolute Unix milliseconds. What overflows is
//! `ERR invalid expire time`, where and when Redis says so.

use super::args;
use crate::error::{ErrorReply, invalid_expire};

/// How an argument gives a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// EX, EXPIRE: seconds from now.
    Seconds,
    /// PX, PEXPIRE: milliseconds from now.
    Milliseconds,
    /// EXAT, EXPIREAT: a Unix time in seconds.
    AtSeconds,
    /// PXAT, PEXPIREAT: a Unix time in milliseconds.
    AtMilliseconds,
}

impl Form {
    /// The argument in absolute milliseconds; `None` where 64 bits do not hold it.
    fn absolute(self, n: i64, now_ms: u64) -> Option<i64> {
        let now = i64::try_from(now_ms).expect("the clock stands within 292 million years");
        match self {
            Form::Seconds => n.checked_mul(1000)?.checked_add(now),
            Form::Milliseconds => n.checked_add(now),
            Form::AtSeconds => n.checked_mul(1000),
            Form::AtMilliseconds => Some(n),
        }
    }
}

/// A time for a value that is being written (SET, GETEX): above zero, though perhaps past.
pub(super) fn of_value(
    word: &[u8],
    form: Form,
    now_ms: u64,
    command: &str,
) -> Result<u64, ErrorReply> {
    let n = args::integer(word)?;
    let at = if n > 0 { form.absolute(n, now_ms) } else { None };
    at.and_then(|at| u64::try_from(at).ok()).ok_or_else(|| invalid_expire(command))
}

/// A time for EXPIRE and its kin: any sign.
pub(super) fn of_key(
    word: &[u8],
    form: Form,
    now_ms: u64,
    command: &str,
) -> Result<i64, ErrorReply> {
    let n = args::integer(word)?;
    form.absolute(n, now_ms).ok_or_else(|| invalid_expire(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn a_value_never_expires_at_or_before_zero() {
        let invalid = Err(invalid_expire("set"));
        let at = |word: &str, form| of_value(word.as_bytes(), form, NOW, "set");
        assert_eq!(at("10", Form::Seconds), Ok(NOW + 10_000));
        assert_eq!(at("10", Form::Milliseconds), Ok(NOW + 10));
        assert_eq!(at("10", Form::AtSeconds), Ok(10_000));
        assert_eq!(at("10", Form::AtMilliseconds), Ok(10));
        assert_eq!(at("0", Form::Seconds), invalid);
        assert_eq!(at("-1", Form::AtMilliseconds), invalid);
        assert_eq!(at("9223372036854775807", Form::AtMilliseconds), Ok(i64::MAX as u64));
        assert_eq!(at("9223372036854775807", Form::Milliseconds), invalid);
        assert_eq!(at("9223372036854775", Form::Seconds), invalid);
        assert_eq!(at("9223372036854775", Form::AtSeconds), Ok(9_223_372_036_854_775_000));
        assert_eq!(at("9223372036854776", Form::AtSeconds), invalid);
        assert_eq!(at("x", Form::Seconds), Err(crate::error::NOT_AN_INTEGER));
    }

    #[test]
    fn a_key_may_be_told_to_have_expired_before_the_epoch() {
        let at = |word: &str, form| of_key(word.as_bytes(), form, NOW, "expire");
        assert_eq!(at("-1", Form::AtMilliseconds), Ok(-1));
        assert_eq!(at("-9223372036854775808", Form::Milliseconds), Ok(i64::MIN + NOW as i64));
        assert_eq!(at("-9223372036854775808", Form::Seconds), Err(invalid_expire("expire")));
        assert_eq!(at("9223372036854775807", Form::Milliseconds), Err(invalid_expire("expire")));
    }
}
