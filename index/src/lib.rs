//! The lock-free hash index of Ferrite: a key's hash in, a logical address out; and the epochs
//! that everything above it lives by.
//!
//! The index never sees a record. An entry is eight bytes (address, tag, node bit); two keys may
//! share a tag, and the log's chain of previous addresses settles which one is meant. Probing takes
//! no latch; changing an entry takes the exclusive latch of its bucket; the table grows bucket by
//! bucket while all of that goes on, and nothing is ever copied to a second table.
//!
//! | module | what it is for |
//! |---|---|
//! | [`address`](Address), [`key_hash`](KeyHash) | the two numbers that meet here |
//! | `entry`, `bucket` | eight bytes, and one cache line of seven of them |
//! | `memory`, `overflow` | where buckets live, and where the ones beyond the first come from |
//! | `table` | [`HashIndex`]: probe, latch, set, remove |
//! | `grow` | linear hashing, one bucket a step |
//! | `walk` | SCAN's cursor, RANDOMKEY's sample |
//! | `limit` | how many bytes several indexes may take together |
//! | `image` | the table as bytes, and back |
//! | `epoch`, `gate` | pins, grace periods, retired memory; the safepoint |
//! | `sync`, `scheduled` | std's atomics, or loom's, or those that shuttle schedules |

mod address;
mod bucket;
mod entry;
mod epoch;
mod error;
mod gate;
mod grow;
mod image;
mod key_hash;
mod latch;
mod limit;
mod memory;
mod overflow;
#[cfg(shuttle)]
#[doc(hidden)]
pub mod scheduled;
mod sync;
mod table;
mod walk;

pub use address::Address;
pub use epoch::{Epoch, Participant, Pin, assert_unpinned};
pub use error::{Busy, ImageError, IndexError, IndexFull};
pub use gate::{Closed, Gate};
pub use grow::GrowthHold;
pub use image::read_image;
pub use key_hash::{ALGORITHM_ID, HashSecret, KeyHash};
pub use latch::{Latch, SharedLatch};
pub use limit::IndexLimit;
pub use table::{HashIndex, IndexConfig, Probe};
