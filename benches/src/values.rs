//! Values of 8 bytes that show whose they are, so that each value that is read can be checked.
//!
//! ```text
//!   63                    40 39      32 31                      0
//!  +------------------------+----------+-------------------------+
//!  | fingerprint of the key | salt     | count                   |
//!  +------------------------+----------+-------------------------+
//! ```
//!
//! An upsert writes another salt and the count 0; an increment adds one to the count. So after
//! increments alone the sum of all counts is exactly their number, or an update was lost.

use crate::keys::Key;

/// A value of `key` with the count 0.
#[inline]
pub fn fresh(key: Key, salt: u8) -> u64 {
    key.fingerprint() << 40 | u64::from(salt) << 32
}

/// The count of a value that was read under `key`.
///
/// # Panics
/// If it is another key's value.
#[inline]
pub fn count(key: Key, value: u64) -> u32 {
    assert!(value >> 40 == key.fingerprint(), "{key:?} has the value {value:#x} of another key");
    value as u32
}

/// What an increment makes of the value that was read under `key`; an absent one counts as 0.
///
/// # Panics
/// If it is another key's value.
#[inline]
pub fn incremented(key: Key, value: Option<u64>) -> u64 {
    let value = value.unwrap_or_else(|| fresh(key, 0));
    let _ = count(key, value);
    value + 1
}

/// The value in the bytes that a store of bytes gave for `key`.
///
/// # Panics
/// If they are not 8.
#[inline]
pub fn from_bytes(key: Key, bytes: &[u8]) -> u64 {
    let Ok(bytes) = bytes.try_into() else { panic!("{key:?} has {} bytes", bytes.len()) };
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_and_knows_its_key() {
        let key = Key::of(3);
        let value = incremented(key, Some(incremented(key, None)));
        assert_eq!(count(key, value), 2);
        assert_eq!(count(key, fresh(key, 200)), 0);
        assert_eq!(from_bytes(key, &value.to_le_bytes()), value);
    }

    #[test]
    #[should_panic(expected = "of another key")]
    fn a_value_of_another_key_is_noticed() {
        count(Key::of(1), fresh(Key::of(2), 0));
    }
}
