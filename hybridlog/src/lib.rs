//! Ferrite's store: a HybridLog (the FASTER family) behind a small, embeddable surface.
//!
//! ```text
//!   Store::open(Config) ── session() ── enter() ── read / update / update_many / walk
//!                      └── checkpoint()            (one `Operation` per command)
//! ```
//!
//! A [`Store`] owns the index, the log and the threads that flush it. A [`Session`] is one
//! thread's handle. [`Session::enter`] pins the session for a short batch; operations run on the
//! resulting [`Inside`]. An operation never blocks: when it needs a record that lies on the
//! device, or room in the log, it answers [`Stop::Pending`], and its token comes out of
//! [`Session::ready`] once the same call can be made again.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("Ferrite needs a 64-bit target");

mod checkpoint;
mod config;
pub mod device;
mod error;
mod log;
mod progress;
mod record;
mod redo;
pub mod segment_store;
mod seqlock;
mod store;
mod sync;
mod tier;
#[cfg(all(test, debug_assertions, not(loom)))]
mod waits;

pub use checkpoint::CheckpointReport;
pub use checkpoint::recover::Recovery;
pub use checkpoint::stored::{StoredCheckpoint, StoredCheckpoints, StoredFile};
pub use config::{Backend, Config, IoChoice};
pub use error::{CheckpointError, CompactError, OpenError, OperationError};
pub use progress::Progress;
pub use redo::{RedoEffect, RedoEntry, RedoReader};
pub use store::{
    Alone, BlockingSession, Change, Compacted, CompactionReport, Database, Foreseen, Inside, Many,
    Operation, Session, Sizes, Stats, Stop, Store, Token, Value,
};
