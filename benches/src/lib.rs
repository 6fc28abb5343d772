//! How fast Ferrite is, measured the same way every time: what the measurements share.
//!
//! | module | what it is for |
//! |---|---|
//! | [`keys`] | which keys there are and which are asked for: uniform and Zipf, from a fixed seed |
//! | [`values`] | 8-byte values that show whose they are, so that each one read is checked |
//! | [`timing`] | threads that start together; samples, their median and their range |
//! | [`table`] | the Markdown table that a run ends with |
//! | [`memory`] | huge pages: asked for, refused, counted |
//!
//! Who measures what stands in `docs/benchmarks.md`; each file under `engine/` and `micro/` answers
//! one question and says how in its head.

pub mod keys;
pub mod memory;
pub mod table;
pub mod timing;
pub mod values;
