//! Times as people write and read them.

use chrono::{DateTime, NaiveDateTime, SecondsFormat};

/// Unix milliseconds as `2026-11-22T17:05:25.123Z`.
pub fn format_time(time_ms: u64) -> String {
    let time = i64::try_from(time_ms).ok().and_then(DateTime::from_timestamp_millis);
    match time {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Millis, true),
        None => format!("{time_ms} ms after 1970"),
    }
}

/// Digits that are taken for milliseconds: as seconds they would be after the year 5138.
const MILLISECONDS_FROM: u64 = 100_000_000_000;

/// A time as Unix milliseconds: RFC 3339, with or without a fraction of a second and a zone (UTC
/// without), a blank or a `T` between; or Unix seconds, with or without a fraction, or Unix
/// milliseconds. What is finer than a millisecond is dropped.
pub fn parse_time(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let time = unix(text).or_else(|| {
        let zoned = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis());
        let plain = || {
            ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"].iter().find_map(|form| {
                let time = NaiveDateTime::parse_from_str(text, form).ok()?;
                Some(time.and_utc().timestamp_millis())
            })
        };
        u64::try_from(zoned.ok().or_else(plain)?).ok()
    });
    time.ok_or_else(|| {
        format!(
            "{text:?} is no time; write it as 2026-11-22T17:05:25.123Z, with +01:00 for another \
             zone than UTC, or as Unix seconds or milliseconds"
        )
    })
}

fn unix(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let number = super::text::parse_decimal(whole.as_bytes())?;
    if text.contains('.') {
        super::text::parse_decimal(fraction.as_bytes())?;
        let fraction = format!("{:0<3}", fraction.get(..3).unwrap_or(fraction));
        return number.checked_mul(1000)?.checked_add(fraction.parse().ok()?);
    }
    if number >= MILLISECONDS_FROM { Some(number) } else { number.checked_mul(1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_one_time_is_the_same() {
        for text in [
            "1795367125.123",
            "1795367125123",
            "2026-11-22T17:05:25.123Z",
            "2026-11-22T18:05:25.123+01:00",
            "2026-11-22T17:05:25.1239999",
            " 2026-11-22 17:05:25.123 ",
            "2026-11-22 12:05:25.123-05:00",
        ] {
            assert_eq!(parse_time(text), Ok(1_795_367_125_123), "{text}");
        }
        assert_eq!(parse_time("1795367125"), Ok(1_795_367_125_000));
        assert_eq!(parse_time("1795367125.5"), Ok(1_795_367_125_500));
        assert_eq!(parse_time("2026-11-22T17:05:25Z"), Ok(1_795_367_125_000));
        assert_eq!(parse_time("0"), Ok(0));
        assert_eq!(format_time(1_795_367_125_123), "2026-11-22T17:05:25.123Z");
        assert_eq!(parse_time(&format_time(1_795_367_125_123)), Ok(1_795_367_125_123));
    }

    #[test]
    fn what_is_no_time_is_refused_with_the_forms() {
        for text in [
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "-5",
            "1.x",
            "1.",
            "2026-11-22",
            "1969-01-01T00:00:00Z",
        ] {
            let error = parse_time(text).expect_err(text);
            assert!(error.contains("2026-11-22T17:05:25.123Z"), "{error}");
        }
        assert_eq!(format_time(u64::MAX), "18446744073709551615 ms after 1970");
    }
}
