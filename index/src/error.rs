//! What can go wrong in the index, one type for each thing a caller does differently.

use std::io;
use thiserror::Error;

/// The bucket is latched, or held by a command of several keys: let go of everything and try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the bucket is busy; leave and try again")]
pub struct Busy;

/// There is no room for another entry: the chain may not grow beyond 4 buckets once the index has
/// reached its limit, or the memory for overflow buckets is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the index is full; raise index_max_size or delete keys")]
pub struct IndexFull;

/// Why an index could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The configured smallest size is outside `0..=26`.
    #[error("an index of 2^{0} buckets is outside 2^0..=2^26; change smallest_bits")]
    SmallestBits(u32),
    /// The size to start at cannot be reached from the smallest one.
    #[error(
        "an index of {buckets} buckets is outside {smallest}..={largest}; rebuild it from the log"
    )]
    StartSize {
        /// The bucket count that was asked for.
        buckets: u64,
        /// The fewest buckets this index can have.
        smallest: u64,
        /// The most buckets this index can have.
        largest: u64,
    },
    /// The kernel gave no address space or memory for the table.
    #[error(
        "{bytes} bytes for the index were refused: {source}; lower the memory settings or raise the address space limit"
    )]
    Memory {
        /// How much was asked for.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An index image that cannot be what was written.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the index image is damaged at byte {offset}: {found}; rebuild the index from the log")]
pub struct ImageError {
    /// Where in the bytes given, counted from 0.
    pub offset: u64,
    /// What stood there.
    pub found: String,
}
