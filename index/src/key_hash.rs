//! `KeyHash`: which bucket and which tag a key has; `HashSecret`: the key of the hash itself.
//!
//! The hash is keyed with 128 random bits so that no client can choose keys that share a bucket.
//! It is stored (through bucket numbers and tags in an index image), so the function never changes
//! under an algorithm id: SipHash-1-3 is id 1, and the golden vectors below pin it.

use siphasher::sip::SipHasher13;
use std::fmt;
use std::io;

/// The hash function behind [`HashSecret::hash`]: 1 is SipHash-1-3, little-endian, as the crate
/// `siphasher` computes it. Never renumber: stored on disk.
pub const ALGORITHM_ID: u8 = 1;

/// The hash of a key (or of a collection node's name), 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash with these bits.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Its bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// The random key of the hash function. Whoever knows it can choose colliding keys, so it is kept
/// in the manifest and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HashSecret([u8; 16]);

impl HashSecret {
    /// A new secret from the kernel's random source.
    ///
    /// # Errors
    /// What `getrandom` answered, other than an interruption, which is tried again.
    pub fn random() -> io::Result<Self> {
        if cfg!(shuttle) {
            // Where keys lie decides what its threads do next, which has to replay.
            return Ok(Self([7; 16]));
        }
        let mut bytes = [0u8; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            // SAFETY: `rest` is a valid, exclusively borrowed buffer of `rest.len()` bytes.
            let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            if got < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            } else {
                filled += got as usize;
            }
        }
        Ok(Self(bytes))
    }

    /// The secret with these bytes, as [`bytes`](Self::bytes) gave them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be stored. Never log them.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The hash of `key` under this secret.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(SipHasher13::new_with_key(&self.0).hash(key))
    }
}

impl fmt::Debug for HashSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashSecret(..)")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn two_random_secrets_differ() {
        let a = HashSecret::random().unwrap();
        let b = HashSecret::random().unwrap();
        assert_ne!(a, b);
        assert_eq!(HashSecret::from_bytes(*a.bytes()), a);
        assert_eq!(format!("{a:?}"), "HashSecret(..)");
    }

    /// A stored index finds nothing if this ever changes: bump [`ALGORITHM_ID`] instead.
    #[test]
    fn golden_vectors_of_algorithm_1() {
        let secret = HashSecret::from_bytes(std::array::from_fn(|i| i as u8));
        let input: Vec<u8> = (0..64).collect();
        for (length, expected) in GOLDEN {
            assert_eq!(secret.hash(&input[..length]).raw(), expected, "length {length}");
        }
        assert_eq!(ALGORITHM_ID, 1);
    }

    /// The first n bytes of 0, 1, 2 ... under the secret 0, 1 ... 15, computed by another program.
    const GOLDEN: [(usize, u64); 8] = [
        (0, 0xabac_0158_050f_c4dc),
        (1, 0xc9f4_9bf3_7d57_ca93),
        (7, 0xd392_7d98_9bb1_1140),
        (8, 0x3690_9511_8d29_9a8e),
        (15, 0xd320_d86d_2a51_9956),
        (16, 0xcc4f_dd1a_7d90_8b66),
        (44, 0xc2ca_1ced_faf8_876b),
        (64, 0xf179_97ec_4b4a_6065),
    ];
}
