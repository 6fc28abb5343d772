//! Which of Redis's encodings OBJECT ENCODING names for a string. Ferrite stores plain bytes; the
//! name follows from them and from the four bits kept beside them, which say how the value came
//! about.

use ferrite_hybridlog::Value;

/// The value was set as a whole: an integer in its canonical form is `int`. Never renumber these:
/// they are stored on disk.
pub const NATURAL: u8 = 0;
/// The value was changed in parts (APPEND, SETRANGE): `raw` whatever it holds.
pub const RAW: u8 = 1;
/// The value is a text that no command made an integer (INCRBYFLOAT): never `int`.
pub const TEXT: u8 = 2;

/// Redis embeds strings up to this length in their object.
const EMBEDDED_MAX: usize = 44;
/// Redis shares one object for each of these integers, and never counts its references.
const SHARED_INTEGERS: std::ops::Range<i64> = 0..10_000;
/// What OBJECT REFCOUNT tells of a shared object.
const SHARED_REFERENCES: i64 = i32::MAX as i64;

/// OBJECT ENCODING of a string.
pub fn name(value: &Value<'_>) -> &'static str {
    if as_integer(value).is_some() {
        "int"
    } else if value.encoding != RAW && value.bytes.len() <= EMBEDDED_MAX {
        "embstr"
    } else {
        "raw"
    }
}

/// OBJECT REFCOUNT of a string.
pub fn references(value: &Value<'_>) -> i64 {
    match as_integer(value) {
        Some(n) if SHARED_INTEGERS.contains(&n) => SHARED_REFERENCES,
        _ => 1,
    }
}

fn as_integer(value: &Value<'_>) -> Option<i64> {
    match value.encoding {
        NATURAL => crate::commands::args::parse_i64(value.bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8], encoding: u8) -> Value<'_> {
        Value { key: b"k", bytes, expires_at_ms: None, encoding, stored_bytes: 0, address: 0 }
    }

    #[test]
    fn the_name_follows_from_the_bytes_and_from_how_they_came_about() {
        let long = [b'1'; 45];
        let cases: &[(&[u8], u8, &str)] = &[
            (b"12", NATURAL, "int"),
            (b"-9223372036854775808", NATURAL, "int"),
            (b"9223372036854775808", NATURAL, "embstr"),
            (b"012", NATURAL, "embstr"),
            (b"", NATURAL, "embstr"),
            (&long[..44], NATURAL, "embstr"),
            (&long, NATURAL, "raw"),
            (b"12", RAW, "raw"),
            (b"12", TEXT, "embstr"),
            (&long, TEXT, "raw"),
        ];
        for (bytes, encoding, expected) in cases {
            assert_eq!(name(&value(bytes, *encoding)), *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn only_small_integers_are_shared() {
        assert_eq!(references(&value(b"9999", NATURAL)), 2_147_483_647);
        assert_eq!(references(&value(b"10000", NATURAL)), 1);
        assert_eq!(references(&value(b"-1", NATURAL)), 1);
        assert_eq!(references(&value(b"5", RAW)), 1);
    }
}
