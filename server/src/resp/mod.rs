//! RESP, the protocol of Redis: `decode` finds commands in bytes, `encode` writes replies.

pub mod ahead;
mod decode;
pub mod encode;

pub use ahead::SecondWords;
pub use decode::{Bounds, Decoded, Decoder, ProtocolError, Range};
pub use encode::{Protocol, Reply};
