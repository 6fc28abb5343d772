//! What operations see of a key and what they make of it.

use crate::record::{Loaded, RecordRef};
use ferrite_index::Address;

/// A stored value as an operation sees it.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value's bytes.
    pub bytes: &'a [u8],
    /// Absolute expiry in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// The caller's 4 bits kept with the value (the server's string encoding hint).
    pub encoding: u8,
    /// Bytes that the record takes in the log.
    pub stored_bytes: usize,
    /// Where the record lies in the log, in words of 8 bytes; [`crate::Inside::idle_ms`] takes it.
    pub address: u64,
}

impl<'a> Value<'a> {
    pub(crate) fn new(address: Address, record: RecordRef<'a>, loaded: &Loaded<'a>) -> Self {
        let shape = record.shape();
        Self {
            key: record.key(),
            bytes: loaded.bytes,
            expires_at_ms: loaded.expires_at_ms,
            encoding: shape.encoding(),
            stored_bytes: shape.words() as usize * 8,
            address: address.raw(),
        }
    }
}

/// What a write makes of a key. `'v` outlives the operation (it borrows the caller's arguments).
#[derive(Clone, Copy, Debug)]
pub enum Change<'v> {
    /// Leave it as it is.
    Keep,
    /// Remove it.
    Delete,
    /// Store `value`.
    Put {
        /// The new bytes.
        value: &'v [u8],
        /// Absolute expiry in Unix milliseconds.
        expires_at_ms: Option<u64>,
        /// The caller's 4 bits.
        encoding: u8,
    },
    /// Store what the closure left in the scratch buffer.
    PutScratch {
        /// Absolute expiry in Unix milliseconds.
        expires_at_ms: Option<u64>,
        /// The caller's 4 bits.
        encoding: u8,
    },
    /// Keep the bytes, replace the expiry.
    Expire(Option<u64>),
}
