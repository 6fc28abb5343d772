//! Sealed segments of the log as objects in an object store: [`ObjectSegments`] is hybridlog's
//! [`SegmentStore`](ferrite_hybridlog::segment_store::SegmentStore) over the `object_store` crate.
//!
//! ```text
//!   PREFIX/STORE/log-SEGMENT.gGENERATION.ckpt     a whole object, put once, never overwritten
//!   PREFIX/STORE/unfinished/PROCESS-N             an upload on its way
//! ```
//!
//! STORE is the store's id in hexadecimal, SEGMENT and GENERATION are decimal.
//!
//! What durability it gives: an upload goes to `unfinished/` first and then takes its name by a
//! conditional copy, so an object is whole from the instant at which it can be seen, whatever fails
//! on the way, and of two puts of one name exactly one succeeds. In a local directory the file and the
//! directories that lead to it are synced before the put completes. What it does not give: a deleted
//! object may come back after a power cut, and an upload that a crash ended leaves its part in
//! `unfinished/` until the next start calls `remove_unfinished`.
//!
//! Memory: one part of each running upload, see [`Config`]; a ranged read holds what it returns.
//!
//! `async` stays inside: the futures run on a tokio runtime that is given or made here, and the
//! caller's completions are called from it.

#![forbid(unsafe_code)]

mod config;
mod error;
mod executor;
mod names;
mod store;
mod upload;

pub use config::Config;
pub use error::OpenError;
pub use store::ObjectSegments;
