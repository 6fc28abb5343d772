//! An entry: eight bytes that lead from a hash to a record.
//!
//! ```text
//!   63     62            48 47                                                   0
//!  +------+----------------+------------------------------------------------------+
//!  | node |      tag       |                       address                        |
//!  +------+----------------+------------------------------------------------------+
//! ```
//!
//! All zero is empty, since address 0 is no place. The node bit is part of the match: a record that
//! is no user key (a collection's node) and a key with the same tag are two entries, and SCAN can
//! leave the first one out without reading it.

use crate::{Address, KeyHash};

pub(crate) const TAG_BITS: u32 = 15;
const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;

const _: () = assert!(ADDRESS_BITS + TAG_BITS + 1 == u64::BITS);

/// What an entry is found by: tag and node bit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Name(u16);

impl Name {
    /// The tag is the 15 bits just above those that choose a bucket of the smallest table.
    #[inline]
    pub(crate) fn new(hash: KeyHash, smallest_bits: u32, node: bool) -> Self {
        let tag = (hash.raw() >> smallest_bits) & TAG_MASK;
        Self(tag as u16 | u16::from(node) << TAG_BITS)
    }

    pub(crate) fn tag(self) -> u64 {
        u64::from(self.0) & TAG_MASK
    }

    pub(crate) fn is_node(self) -> bool {
        self.0 >> TAG_BITS == 1
    }
}

/// The value of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    pub(crate) const EMPTY: Self = Self(0);

    #[inline]
    pub(crate) fn new(name: Name, address: Address) -> Self {
        assert!(address.is_valid(), "an entry leads to a record");
        Self(u64::from(name.0) << ADDRESS_BITS | address.raw())
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub(crate) fn has(self, name: Name) -> bool {
        !self.is_empty() && (self.0 >> ADDRESS_BITS) as u16 == name.0
    }

    #[inline]
    pub(crate) fn name(self) -> Name {
        Name((self.0 >> ADDRESS_BITS) as u16)
    }

    #[inline]
    pub(crate) fn address(self) -> Address {
        Address::new(self.0 & ADDRESS_MASK)
    }
}

/// The low bits of the hash that put an entry called `name` into bucket `number`: enough to find
/// the same bucket and tag at any size of the table. The bits above them are zero.
#[inline]
pub(crate) fn rebuild_hash(number: u64, name: Name, smallest_bits: u32) -> KeyHash {
    let low = number & ((1 << smallest_bits) - 1);
    KeyHash::from_raw(name.tag() << smallest_bits | low)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_back_what_it_was_made_of() {
        for (raw, bits) in [(u64::MAX, 0), (0x1234_5678_9abc_def0, 13), (1 << 40, 26)] {
            for node in [false, true] {
                let name = Name::new(KeyHash::from_raw(raw), bits, node);
                let entry = Entry::new(name, Address::MAX);
                assert!(entry.has(name));
                assert_eq!(entry.name(), name);
                assert_eq!(entry.address(), Address::MAX);
                assert_eq!(name.is_node(), node);
                assert_eq!(name.tag(), (raw >> bits) & 0x7fff);
            }
        }
    }

    #[test]
    fn an_empty_entry_has_no_name_not_even_zero() {
        assert!(!Entry::EMPTY.has(Name::new(KeyHash::from_raw(0), 4, false)));
    }

    #[test]
    fn a_rebuilt_hash_has_the_bits_of_bucket_and_tag() {
        let hash = KeyHash::from_raw(0xfedc_ba98_7654_3210);
        for bits in [0, 1, 7, 26] {
            for level in bits..=bits + 8 {
                let number = hash.raw() & ((1 << level) - 1);
                let rebuilt = rebuild_hash(number, Name::new(hash, bits, true), bits);
                let known = (1u64 << (bits + TAG_BITS)) - 1;
                assert_eq!(rebuilt.raw(), hash.raw() & known);
            }
        }
    }
}
