//! `Address`: where a record lies in the log, as one opaque 48-bit number.
//!
//! The unit is 8 bytes, so 48 bits span 2 PiB of log over a store's life. Address 0 is no place at
//! all: the log never puts a record there, which lets an all-zero entry mean "empty".

use std::fmt;

/// How many bits an address has.
const BITS: u32 = 48;

/// A logical address: 48 bits, in units of 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(u64);

impl Address {
    /// No place: what an empty entry and the end of a chain hold.
    pub const INVALID: Self = Self(0);

    /// The largest address there is.
    pub const MAX: Self = Self((1 << BITS) - 1);

    /// The address with this number, in units of 8 bytes; it must fit in 48 bits.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        debug_assert!(raw < 1 << BITS, "a logical address has 48 bits");
        Self(raw)
    }

    /// The number, in units of 8 bytes.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether it names a place at all.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:#x}", self.0)
    }
}
