//! The `ferrite` server: RESP in, RESP out.
//!
//! ```text
//!   transport/   bytes in and out           one thread a worker
//!   connection   bytes to commands, replies in order
//!   commands/    rows and handlers
//!   hybridlog    the store
//! ```

pub mod aof;
pub(crate) mod checkpoints;
pub(crate) mod client;
pub mod commands;
pub(crate) mod compaction;
pub mod config;
pub(crate) mod connection;
pub mod context;
pub mod control;
pub(crate) mod counters;
pub(crate) mod encoding;
pub mod error;
pub(crate) mod facts;
pub(crate) mod glob;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod info;
pub(crate) mod input;
pub mod journal;
pub(crate) mod latency;
pub(crate) mod lcs;
pub mod lifecycle;
pub(crate) mod limits;
pub mod listener;
pub(crate) mod loading;
pub mod logging;
pub(crate) mod memory;
pub mod metrics;
pub(crate) mod numbers;
pub(crate) mod pause;
pub(crate) mod process;
pub(crate) mod rates;
pub mod resp;
pub mod server;
pub mod start;
pub mod tools;
pub mod totals;
pub(crate) mod transaction;
pub(crate) mod transport;
pub(crate) mod worker;
