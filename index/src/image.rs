//! The index as bytes, and back.
//!
//! An image is a sequence of groups, one or more for each chain that has entries, in the order of
//! bucket numbers. All numbers are little-endian.
//!
//! ```text
//!   offset  size  what
//!   0       8     head:  bits 0..48   bucket number
//!                        bits 48..64  n, the entries in this group (1 to 65,535)
//!   8       8 n   entries, as in memory: address 48 | tag 15 | node 1
//! ```
//!
//! A chain with more than 65,535 entries is several groups with the same number. There is no header
//! and no end mark: images concatenate, and what the whole is (size of the smallest table, bucket
//! count, checksum, compression, encryption) is the caller's to keep. `offset` in an error counts
//! from the first byte given to [`read_image`].
//!
//! The image is written while entries change, and the table does not grow meanwhile: an entry in it
//! is one that was there at some time while its chain was read.

use crate::entry::{Entry, rebuild_hash};
use crate::table::DOUBLINGS;
use crate::{Address, GrowthHold, HashIndex, ImageError, KeyHash, Pin};

const NUMBER_BITS: u32 = 48;
const GROUP: usize = 0xffff;
const WORD: usize = 8;

impl HashIndex {
    /// Appends the chains of up to `buckets` buckets from `first_bucket` on to `into`, and returns
    /// the number of the bucket to go on with; it is [`bucket_count`](Self::bucket_count) at the end.
    ///
    /// # Panics
    /// If `hold` is of another index.
    pub fn image_chunk(
        &self,
        pin: &Pin<'_>,
        hold: &GrowthHold<'_>,
        first_bucket: u64,
        buckets: u64,
        into: &mut Vec<u8>,
    ) -> u64 {
        self.check_pin(pin);
        assert!(std::ptr::eq(hold.index, self), "the hold is of another index");
        let end = self.bucket_count().min(first_bucket.saturating_add(buckets));
        let mut entries = Vec::new();
        for number in first_bucket..end {
            entries.clear();
            self.read_chain(|_| number, |entry| entries.push(entry));
            for group in entries.chunks(GROUP) {
                let head = number | (group.len() as u64) << NUMBER_BITS;
                into.extend_from_slice(&head.to_le_bytes());
                group.iter().for_each(|entry| into.extend_from_slice(&entry.0.to_le_bytes()));
            }
        }
        end
    }
}

/// Hands out every entry of an image (or of some of its whole groups): the hash as far as bucket
/// number and tag tell it (the low `smallest_bits + 15` bits; the rest is zero), which leads to the
/// same bucket and tag as the full hash in a table of any size this index can have; node bit; address.
///
/// # Errors
/// [`ImageError`] at the first group that cannot have been written by an index with this
/// `smallest_bits`. Entries before it have been handed out.
pub fn read_image(
    bytes: &[u8],
    smallest_bits: u32,
    mut f: impl FnMut(KeyHash, bool, Address),
) -> Result<(), ImageError> {
    let mut at = 0;
    while at < bytes.len() {
        let head = word(bytes, at)?;
        let (number, count) = (head & ((1 << NUMBER_BITS) - 1), (head >> NUMBER_BITS) as usize);
        if count == 0 || number >> (smallest_bits + DOUBLINGS) != 0 {
            return Err(error(at, format!("a group of {count} entries for bucket {number}")));
        }
        at += WORD;
        for _ in 0..count {
            let entry = Entry(word(bytes, at)?);
            let hash = rebuild_hash(number, entry.name(), smallest_bits);
            // The bits of the bucket number, down from its highest, are those of the hash.
            let known = number.checked_ilog2().map_or(0, |high| u64::MAX >> (63 - high));
            if !entry.address().is_valid() || (hash.raw() ^ number) & known != 0 {
                return Err(error(at, format!("entry {:#018x} in bucket {number}", entry.0)));
            }
            f(hash, entry.name().is_node(), entry.address());
            at += WORD;
        }
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> Result<u64, ImageError> {
    let rest = &bytes[at..];
    let word = rest
        .first_chunk()
        .ok_or_else(|| error(at, format!("{} bytes, then the end", rest.len())))?;
    Ok(u64::from_le_bytes(*word))
}

fn error(at: usize, found: String) -> ImageError {
    ImageError { offset: at as u64, found }
}
