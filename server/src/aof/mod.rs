//! The append-only file: what every write leaves behind, so that a start can do it again.
//!
//! ```text
//!   Entry ── effect.rs ──> RESP ── block.rs ──> blocks ── writer.rs ──> appendonly.000012.aof
//!            (one effect)          (one ms,               (write, sync,        │
//!                                   checksum)              next part)          │ hard link
//!                                                                       appendonly.aof
//! ```
//!
//! A *part* is one file: a first line that names it (`part.rs`), then *blocks* (`block.rs`). Between
//! annotation lines, which begin with `#`, it is plain RESP, so redis-server loads a part as its own
//! append-only file. docs/format.md has every byte.
//!
//! Nothing here knows the store or a thread: bytes in, files out, and back.

pub mod aside;
pub mod block;
pub mod chain;
mod checksum;
pub mod effect;
pub mod files;
pub mod part;
pub mod reader;
pub mod replay;
pub mod retention;
#[cfg(test)]
mod testing;
mod text;
mod time;
pub mod writer;

pub use block::{Annotation, Blocks};
pub use chain::{Chain, ChainError, Gap, Link, Origin, Part, Parts};
pub use effect::{Effect, Entry};
pub use files::{Files, LocalFiles, PartFile};
pub use part::{Base, Before, Header, Start};
pub use reader::{Command, Damage, End, Known, PartReader, ReadError, Torn};
pub use replay::{Replay, Replayed};
pub use time::{format_time, parse_time};
pub use writer::{BaseWriter, Failure, PartWriter, Progress, SwitchError, WriteError};
