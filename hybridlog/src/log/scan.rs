//! Records in log order, from bytes that no longer change.

use crate::record::{RecordRef, Step};
use crate::sync::AtomicU64;
use ferrite_index::Address;
use std::ptr::NonNull;

/// Visits the records of `bytes`, which hold the log from `first` on, start at a record and are
/// aligned to a word. Stops at the first zero word; returns where it stopped. `Err` carries the address of what is no record.
pub(crate) fn records_of<'a>(
    bytes: &'a [u8],
    first: u64,
    mut visit: impl FnMut(Address, RecordRef<'a>),
) -> Result<u64, (u64, String)> {
    assert!(bytes.as_ptr().cast::<u64>().is_aligned());
    let words = (bytes.len() / 8) as u64;
    let mut at = 0;
    while at < words {
        let start = NonNull::from(&bytes[at as usize * 8..]).cast::<AtomicU64>();
        // SAFETY: the bytes are initialised, aligned, and live through this call; `step` believes
        // no record that would reach beyond the words left.
        let record = unsafe { RecordRef::new(start) };
        match record.step(words - at).map_err(|e| (first + at, e))? {
            Step::End => return Ok(first + at),
            Step::Pad(count) => at += count,
            Step::Record(count) => {
                // Its flags are there by now; they must fit its length too.
                let (info, shape) = (record.info(), record.shape());
                if !info.is_valid() || !shape.is_plausible(info, count) {
                    return Err((first + at, format!("not a whole record: {info:?} {shape:?}")));
                }
                visit(Address::new(first + at), record);
                at += count;
            }
        }
    }
    Ok(first + words)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// What docs/format.md draws: valid, with expiry and in place; 24 bytes, a key of one byte.
    const INFO: u64 = 1 << 48 | 1 << 50 | 1 << 51;
    const SHAPE: u64 = 24 | 1 << 32 | 1 << 48;

    fn visited(words: &[u64]) -> Result<usize, (u64, String)> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut aligned = crate::device::Buffer::zeroed(4096);
        aligned[..bytes.len()].copy_from_slice(&bytes);
        let mut count = 0;
        let outcome = records_of(&aligned[..bytes.len()], 100, |_, record| {
            count += record.key().len();
        });
        outcome.map(|_| count)
    }

    #[test]
    fn a_record_that_is_too_short_for_its_flags_is_none() {
        assert_eq!(visited(&[1 << 48, SHAPE, 0x61]), Ok(1));
        assert_eq!(visited(&[INFO, SHAPE + 16, 0, 0, 0x61]), Ok(1));
        for words in [[INFO, SHAPE, 0x61], [0, SHAPE, 0x61]] {
            assert_eq!(visited(&words).map_err(|(at, _)| at), Err(100), "{words:x?}");
        }
    }
}
