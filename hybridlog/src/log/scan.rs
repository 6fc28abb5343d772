//! Records in log order, from bytes that no longer change.

use crate::record::{RecordRef, Step};
use crate::sync::AtomicU64;
use ferrite_index::Address;
use std::ptr::NonNull;

/// Visits the records of `bytes`, which hold the log from `first` on, start at a record and are
/// aligned to a word. Stops at the first zero word; returns where it stopped. `Err` carries the address of what is no record.
pub(crate) fn records_of(
    bytes: &[u8],
    first: u64,
    mut visit: impl FnMut(Address, RecordRef<'_>),
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
                visit(Address::new(first + at), record);
                at += count;
            }
        }
    }
    Ok(first + words)
}
