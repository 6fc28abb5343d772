//! Where a part of the log lies when it is not in a frame.

pub(crate) mod block_cache;
pub(crate) mod raw;
